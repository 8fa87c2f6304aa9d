"""What looks at images in a metric: networks with weights of others, or the pixels themselves."""

from collections.abc import Callable
import functools
import hashlib
from importlib import util
import pathlib
from typing import Any, NamedTuple

import flax
from flax import traverse_util
import jax
import jax.numpy as jnp

from sg2jax import pretrained
from sg2jax.faults import UsageError, WeightsError
from sg2jax.models.stylegan2 import Discriminator
from sg2jax.nets import inception, vgg

PIXELS = 16  # px, longer side of what 'pixels' sees
SWD_SIDE = 128  # px, longer side of what swd sees; larger images would take hours and tens of GB


class Detector(NamedTuple):
  """What looks at images.

  apply: (params, uint8 [N,H,W,C]) -> {output: [N,...]}; hash: SHA-256 of its weights, '' without;
  known: whether they are the ones that the metric is defined with; resize: how it brings images to
  its size.
  """

  name: str
  hash: str
  known: bool
  resize: str
  params: Any
  apply: Callable


def load(name, shape, explicit=''):
  """The Detector of that name for images of `shape` (H, W, C). explicit: path of its weights, if
  they aren't in their place.

  Outputs of 'inception': 'pool' [N,2048] and 'probs' [N,1008]; of 'vgg16': 'fc' [N,4096]; of
  'pixels': 'pixels' [N,h*w*C] in 0..1; of 'small': 'small', uint8 images [N,h,w,C] for the SWD.

  Raises: WeightsError; UsageError for images that a network can't see.
  """
  if name in ('inception', 'vgg16'):
    check_colour(name, shape)
    if name == 'vgg16':
      check_installed('lpips_j', 'flaxmodels')
    arrays, identity = pretrained.load(name, explicit)
    convert, apply, resize = {
      'inception': (inception.params, _inception, 'bilinear to 299x299 as TensorFlow 1'),
      'vgg16': (vgg.fc_params, _vgg16, 'bilinear to 224x224'),
    }[name]
    return Detector(name, identity.sha256, identity.known, resize, _params(convert, arrays), apply)
  factor = -(-max(shape[:2]) // (PIXELS if name == 'pixels' else SWD_SIDE))
  return Detector(name, '', True, f'box, 1/{factor}', {}, _shrinking(name, factor))


def lpips(shape, explicit):
  """The Detector of LPIPS; its apply is another: (params, images in [-1,1] [N,H,W,C] x 2) ->
  distance [N]. Raises as `load`.
  """
  check_colour('lpips', shape)
  check_installed('lpips_j', 'flaxmodels')
  (trunk, first), (heads, second) = (
    pretrained.load(name, explicit.get(name, '')) for name in ('vgg16', 'lpips_vgg')
  )
  return Detector(
    'lpips',
    hashlib.sha256(f'{first.sha256} {second.sha256}'.encode()).hexdigest(),
    first.known and second.known,
    'box to 256 px or a little more',
    _params(vgg.lpips_params, trunk, heads),
    _lpips,
  )


def attributes(shape, folder):
  """The Detector of attribute classifiers: 'attributes' [N,A], the logits, one for each .npz file
  in `folder`, in their order.

  A file holds the parameters of a discriminator of StyleGAN under our names, 'b256/fromrgb/weight'
  ...: S1 trained 40 of them on CelebA-HQ at 256 px. Its minibatch stddev, if it has one, is of each
  image alone. Raises: WeightsError, UsageError.
  """
  paths = classifiers(folder)
  nets = [_classifier(path, shape) for path in paths]
  digest = hashlib.sha256(b''.join(path.read_bytes() for path in paths)).hexdigest()

  def apply(params, images):
    logits = []
    for (net, _), p in zip(nets, params):
      small = shrink(images, images.shape[1] // net.resolution[0])
      logits.append(net.apply({'params': p}, small.astype(jnp.float32) / 127.5 - 1)[:, 0])
    return {'attributes': jnp.stack(logits, 1)}

  return Detector(
    'attributes',
    digest,
    False,
    'box to the size of the classifiers',
    [params for _, params in nets],
    apply,
  )


def classifiers(folder):
  """The files of `attributes`. Raises WeightsError if there are none, UsageError without
  scikit-learn.
  """
  check_installed('sklearn')
  paths = sorted(pathlib.Path(folder).expanduser().glob('*.npz')) if folder else []
  if not paths:
    there = f'in {folder} are no .npz files' if folder else 'no folder was given'
    raise WeightsError(
      f'ls needs classifiers of attributes, and {there}; evaluate takes --weights=attributes=FOLDER'
    )
  return paths


def _classifier(path, shape):
  """(Discriminator, parameters) of a file, its widths read off the arrays."""
  arrays = {tuple(name.split('/')): x for name, x in pretrained.read(path).items()}
  try:
    sizes = {
      int(name[0][1:]): x.shape[-1]
      for name, x in arrays.items()
      if name[1:] == ('fromrgb', 'weight')
    }
    res, channels = max(sizes), arrays['b4', 'conv', 'weight'].shape[2] - sizes[4]
    net = Discriminator(
      (res, res),
      sizes[res] * res / 2,
      sizes[4],
      architecture='stylegan1',
      mbstd_group_size=1,
      mbstd_num_channels=channels,
    )
    params = traverse_util.unflatten_dict(arrays)
    jax.eval_shape(lambda p: net.apply({'params': p}, jnp.zeros((1, res, res, shape[2]))), params)
  except (KeyError, ValueError, IndexError, flax.errors.FlaxError) as e:
    raise WeightsError(
      f'{path} does not hold the parameters of a discriminator of StyleGAN ({e})'
    ) from None
  if shape[0] != shape[1] or shape[0] % res:
    raise UsageError(
      f'{path} looks at {res}x{res} px, and the images have {shape[0]}x{shape[1]}; ls needs a '
      'multiple'
    )
  return net, params


def check_installed(*modules):
  """Raises UsageError if one of these isn't there, now and not after hours."""
  missing = [name for name in modules if util.find_spec(name) is None]
  if missing:
    raise UsageError(f'{", ".join(missing)} cannot be imported; pip install -r requirements.txt')


def check_colour(name, shape):
  """Raises UsageError for images that a network of photographs can't see."""
  if shape[2] not in (1, 3):
    raise UsageError(
      f'{name} takes grey or RGB images, and these have {shape[2]} channels; use swd, pixelfd or '
      'pixelnn'
    )


def _params(convert, *arrays):
  try:
    return jax.device_put(convert(*arrays))
  except ValueError as e:
    raise WeightsError(str(e)) from None


def colour(images):
  """Grey images [N,H,W,1] as RGB; others as they are."""
  return jnp.repeat(images, 3, -1) if images.shape[-1] == 1 else images


def _inception(params, images):
  found = inception.features(params, colour(images))
  # The score takes the logits without their bias [Salimans et al. 2016; as in NVIDIA's and OpenAI's
  # evaluation].
  return {'pool': found['2048'], 'probs': jax.nn.softmax(found['logits_unbiased'])}


def _lpips(params, x, y):
  return vgg.lpips(params, colour(x), colour(y))


def _vgg16(params, images):
  return {'fc': vgg.fc_features(params, colour(images))}


def shrink(images, factor):
  """`data.shrink` on the device: uint8 [N,H,W,C] -> uint8 [N,H/factor,W/factor,C], means of boxes,
  rounded half to even.
  """
  n, h, w, c = images.shape
  h, w = h // factor, w // factor
  boxes = (
    images[:, : h * factor, : w * factor].reshape(n, h, factor, w, factor, c).astype(jnp.float32)
  )
  return jnp.rint(boxes.sum((2, 4)) / factor**2).astype(jnp.uint8)


@functools.lru_cache
def _shrinking(name, factor):
  """The apply of 'small' and of 'pixels'; always the same one, so that what has it is compiled
  once.
  """
  if name == 'small':
    return lambda _, images: {name: shrink(images, factor)}
  return lambda _, images: {
    name: shrink(images, factor).reshape(len(images), -1).astype(jnp.float32) / 255
  }
