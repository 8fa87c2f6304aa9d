"""Reference cases of CLIP: tokens, towers, pixels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sg2jax import clip as clips
from sg2jax.faults import UsageError
from sg2jax.interop.names import nchw, nhwc
from sg2jax.nets import clip, clip_names
from tests.reference import cases_clip_files
from tests.reference.check import jit


def clip_tokenizer(sub):
  """Rows of tokens, truncated, and which texts have to be."""
  texts, context = sub.config['texts'], sub.config['context_length']
  tokenizer = clips.tokenizer()

  def is_too_long(text):
    try:
      tokenizer([text], context)
    except UsageError:
      return True
    return False

  return {
    'tokens': tokenizer(texts, context, truncate=True),
    'too_long': [is_too_long(text) for text in texts],
  }


# ---- towers


def architecture(config, **more):
  """The Architecture of a config, which may have one of the towers only."""
  fields = {field.name for field in dataclasses.fields(clip.Architecture)}
  missing = {field: 0 for field in fields - {'patch_size', 'activation'}}
  given = {field: config[field] for field in fields if field in config}
  return clip.Architecture(**missing | given | more)


def clip_vit(sub):
  """Features, cosines, logits, gradients; or of texts alone."""
  config, given = sub.config, sub.given
  arrays = sub.under('P/')
  if 'texts' in config:
    return _real_tokens(sub, arrays)
  spec = architecture(config)
  check_architecture(
    clip_names.architecture(arrays, spec.activation, spec.vision_heads, spec.text_heads), spec
  )
  params = clip_names.params({name: arrays[name] for name in arrays}, spec)
  image, tokens, dy = nhwc(given['image']), given['tokens'], given['dy']

  def outputs(params, image):
    images = clip.image_features(params, spec, image)
    texts = clip.text_features(params, spec, tokens)
    cosine = clip.unit(images) @ clip.unit(texts).T
    logits = jnp.exp(params['logit_scale']) * cosine
    return {
      'image_features': images,
      'text_features': texts,
      'cosine': cosine,
      'logits_per_image': logits,
    }

  def everything(params, image):
    def total(params, image, name):
      return (outputs(params, image)[name] * dy).sum()

    grad_image = jax.grad(total, 1)(params, image, 'cosine')
    return outputs(params, image), grad_image, jax.grad(total)(params, image, 'logits_per_image')

  results, grad_image, grads = jit(everything)(params, image)
  named = clip_names.arrays(grads)
  return results | {'grad_image': nchw(grad_image)} | {f'grad/{k}': v for k, v in named.items()}


def check_architecture(found, spec):
  """What the arrays tell must be what the config says."""
  if found != spec:
    raise ValueError(f'the arrays are of {found}, the config says {spec}')


def _real_tokens(sub, arrays):
  config, given = sub.config, sub.given
  tokens = clips.tokenizer()(config['texts'], config['context_length'])
  np.testing.assert_array_equal(tokens, given['tokens'])
  rows = given['token_embedding_rows']
  table = np.zeros((config['vocab_size'], config['text_width']), rows.dtype)
  table[given['rows']] = rows
  spec = architecture(config)
  arrays = {name: arrays[name] for name in arrays} | {'token_embedding.weight': table}
  params = {'text': clip_names.text_params(arrays, spec)}
  return {'text_features': jit(clip.text_features, static_argnums=1)(params, spec, tokens)}


def resnet_architecture(config):
  """The Architecture of a config that has an image tower that is a ResNet only."""
  return architecture(
    {'embed_dim': config['embed_dim'], 'image_size': config['image_size']},
    vision_layers=tuple(config['layers']),
    vision_width=config['width'],
    vision_heads=config['heads'],
  )


def clip_resnet(sub):
  """Features of an image tower that is a ResNet, and their gradient."""
  config, given = sub.config, sub.given
  spec = resnet_architecture(config)
  arrays = sub.under('P/')
  arrays = clip_names.openai({name: arrays[name] for name in arrays})
  params = {'visual': clip_names.vision_params(arrays, spec)}
  dy = given['dy']

  def everything(params, image):
    def total(image):
      features = clip.image_features(params, spec, image)
      return (features * dy).sum(), features

    grad, features = jax.grad(total, has_aux=True)(image)
    return {'image_features': features, 'grad_image': grad}

  out = jit(everything)(params, nhwc(given['image']))
  return out | {'grad_image': nchw(out['grad_image'])}


def clip_state_dict(sub):
  """What is in a file, what network it is, and what that makes of pictures and texts."""
  config, given = sub.config, sub.given
  config.ignore('format')  # the content tells it
  config.expect('config_file', config['file'].rpartition('.')[0] + '.config.json')  # is found
  arrays, sums = cases_clip_files.arrays(sub.folder, config)
  fields = config['architecture']
  layers = fields['vision_layers']
  spec = architecture(fields, vision_layers=tuple(layers) if isinstance(layers, list) else layers)
  # as users load it; in float32
  net = clips.load(str(sub.folder / config['file']), spec.activation)
  check_architecture(net.architecture, spec)
  dtype = jnp.zeros(()).dtype
  arrays = {name: x.astype(dtype) for name, x in clip_names.openai(arrays).items()}
  params = clip_names.params(arrays, spec)

  def everything(params, image, tokens):
    images = clip.image_features(params, spec, image)
    texts = clip.text_features(params, spec, tokens)
    cosine = clip.unit(images) @ clip.unit(texts).T
    return {
      'image_features': images,
      'text_features': texts,
      'logits_per_image': jnp.exp(params['logit_scale']) * cosine,
    }

  return sums | jit(everything)(params, nhwc(given['image']), given['tokens'])


# ---- pixels


def clip_preprocess(sub):
  """A picture's square; what a tower takes of it; the view of generated images."""
  config, given = sub.config, sub.given
  if 'picture' in given:
    picture = Image.fromarray(given['picture'])
    config.expect('mode', picture.mode)
    return {'square': clips.square(picture, config['size'])}
  if 'square' in given:
    dtype = jnp.zeros(()).dtype
    return {'input': nchw(clip.normalize(jnp.asarray(given['square'], dtype) / 255))}
  return generated(nhwc(given['image']), nhwc(given['dy']), config)


def generated(image, dy, config):
  """The view of StyleCLIP, and its gradient."""
  view = original_view(config)

  def everything(image):
    def total(image):
      y = view(image)
      return (y * dy).sum(), y

    return jax.grad(total, has_aux=True)(image)

  grad, y = jit(everything)(image)
  return {'view': nchw(y), 'grad_image': nchw(grad)}


def original_view(config):
  """StyleCLIP's view as a config says it: images [N,H,W,C] in [-1,1] -> [N,h,w,C]."""
  upsample, pool, normalize = config['upsample'], config['pool'], config['normalize']

  def view(images):
    height, width = (side * upsample // pool for side in images.shape[1:3])
    images = clip.resize_by_area(images, height, width)
    return clip.normalize((images + 1) / 2) if normalize else images

  return view


CASES = {
  'clip_tokenizer': clip_tokenizer,
  'clip_vit': clip_vit,
  'clip_resnet': clip_resnet,
  'clip_preprocess': clip_preprocess,
  'clip_state_dict': clip_state_dict,
}
