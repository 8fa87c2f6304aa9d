"""CLIP's parameters out of other programs' files: OpenAI's, open_clip's and transformers' names."""

from collections.abc import Mapping
import math
import re
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from sg2jax.nets import clip
from sg2jax.nets.arrays import checked

HEAD = 64  # channels of an attention head, where a file doesn't say it
_TRANSFORMERS = 'text_model.embeddings.token_embedding.weight'
_PREFIXED = 'text.token_embedding.weight'  # of some of open_clip's models
# Of transformers' names, regular expressions, to OpenAI's; of layers, what follows their number.
_RENAMED = (
  (r'text_model\.embeddings\.position_embedding\.weight', 'positional_embedding'),
  (r'text_model\.embeddings\.token_embedding', 'token_embedding'),
  (r'text_model\.final_layer_norm', 'ln_final'),
  (r'text_model\.encoder\.layers', 'transformer.resblocks'),
  (r'vision_model\.embeddings\.class_embedding', 'visual.class_embedding'),
  (r'vision_model\.embeddings\.patch_embedding', 'visual.conv1'),
  (r'vision_model\.embeddings\.position_embedding\.weight', 'visual.positional_embedding'),
  (r'vision_model\.pre_layrnorm', 'visual.ln_pre'),  # so spelled there
  (r'vision_model\.post_layernorm', 'visual.ln_post'),
  (r'vision_model\.encoder\.layers', 'visual.transformer.resblocks'),
  (r'\.self_attn\.', '.attn.'),
  (r'\.layer_norm([12])\.', r'.ln_\1.'),
  (r'\.mlp\.fc1\.', '.mlp.c_fc.'),
  (r'\.mlp\.fc2\.', '.mlp.c_proj.'),
)
_BATCH_NORM = ('weight', 'bias', 'running_mean', 'running_var')


def is_transformers(arrays: Mapping[str, np.ndarray]) -> bool:
  """Whether arrays have the names of transformers' CLIPModel."""
  return _TRANSFORMERS in arrays


def openai(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Arrays of any of the three kinds of names under OpenAI's; those of integers are left out.

  Raises: ValueError naming what is missing.
  """
  arrays = {name: x for name, x in arrays.items() if np.asarray(x).dtype.kind not in 'iub'}
  if 'logit_scale' in arrays:
    arrays['logit_scale'] = np.reshape(arrays['logit_scale'], ())  # [1] in some files
  if is_transformers(arrays):
    return _from_transformers(arrays)
  if _PREFIXED in arrays:
    arrays = {name.removeprefix('text.'): x for name, x in arrays.items()}
  return arrays


def _from_transformers(arrays):
  found = {}
  for name, x in arrays.items():
    for old, new in _RENAMED:
      name = re.sub(old, new, name)
    found[name] = x
  for name, to in (('text_projection', 'text_projection'), ('visual_projection', 'visual.proj')):
    found[to] = _take(found, f'{name}.weight').T
  # Three projections one below the other.
  for name in [name for name in found if '.q_proj.' in name]:
    thirds = [_take(found, name.replace('.q_proj.', f'.{part}_proj.')) for part in 'qkv']
    found[name.replace('.q_proj.', '.in_proj_')] = np.concatenate(thirds)
  return found


def _take(arrays, name):
  if name not in arrays:
    raise ValueError(f'not the arrays of CLIP: {name} is missing')
  return arrays.pop(name)


def architecture(
  arrays: Mapping[str, np.ndarray],
  activation: str = 'quick_gelu',
  vision_heads: int | None = None,
  text_heads: int | None = None,
) -> clip.Architecture:
  """What arrays under OpenAI's names are the parameters of.

  Args:
    arrays: of `openai`.
    activation: of the transformers, which no array tells.
    vision_heads, text_heads: heads of attention, which no array tells; None: HEAD channels each.

  Raises: ValueError naming an array that is missing or that has an impossible shape, or heads that
    don't divide a width.
  """

  def shape(name, dims):
    found = np.shape(arrays.get(name))
    if len(found) != dims:
      raise ValueError(f'not the arrays of CLIP: {name} is missing, or not of {dims} dimensions')
    return found

  text_width, embed_dim = shape('text_projection', 2)
  if 'visual.proj' in arrays:
    vision_width, _, patch, _ = shape('visual.conv1.weight', 4)
    side = math.isqrt(shape('visual.positional_embedding', 2)[0] - 1)
    image_size, layers = patch * side, _count(arrays, r'visual\.transformer\.resblocks\.(\d+)\.')
    attending = vision_width
  else:
    vision_width = shape('visual.layer1.0.conv1.weight', 4)[0]
    patch = None
    image_size = 32 * math.isqrt(shape('visual.attnpool.positional_embedding', 2)[0] - 1)
    layers = tuple(_count(arrays, rf'visual\.layer{stage}\.(\d+)\.') for stage in range(1, 5))
    attending = 32 * vision_width
  vision_heads = vision_heads or max(1, attending // HEAD)
  text_heads = text_heads or max(1, text_width // HEAD)
  towers = ('vision', vision_heads, attending), ('text', text_heads, text_width)
  for tower, heads, width in towers:
    if not isinstance(heads, int) or heads < 1 or width % heads:
      raise ValueError(f'{heads} heads of the {tower} tower do not divide its {width} channels')
  return clip.Architecture(
    image_size=image_size,
    patch_size=patch,
    vision_width=vision_width,
    vision_layers=layers,
    vision_heads=vision_heads,
    embed_dim=embed_dim,
    context_length=shape('positional_embedding', 2)[0],
    vocab_size=shape('token_embedding.weight', 2)[0],
    text_width=text_width,
    text_layers=_count(arrays, r'transformer\.resblocks\.(\d+)\.'),
    text_heads=text_heads,
    activation=activation,
  )


def _count(arrays, pattern):
  """The number of blocks: how many different numbers names have there."""
  return len({match[1] for name in arrays if (match := re.match(pattern, name))})


# ---- parameters


def params(arrays: Mapping[str, np.ndarray], architecture: clip.Architecture) -> dict[str, Any]:
  """Parameters of `clip` from arrays of `openai`: {'visual', 'text', 'logit_scale'}.

  Batch norms of a ResNet are folded into its convolutions, in float64. Float64 arrays give float64
  parameters, all others float32.

  Raises: ValueError naming missing, unknown or ill-shaped arrays.
  """
  if 'logit_scale' not in arrays:
    raise ValueError('not the arrays of CLIP: logit_scale is missing')
  dtype = np.result_type(np.float32, *(x.dtype for x in arrays.values()))
  return {
    'visual': vision_params(arrays, architecture),
    'text': text_params(arrays, architecture),
    'logit_scale': np.asarray(arrays['logit_scale'], dtype),  # a logarithm
  }


def vision_params(arrays: Mapping[str, np.ndarray], architecture: clip.Architecture) -> Any:
  """'visual' of `params`, of the arrays whose names begin with it."""
  size = architecture.image_size
  images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
  arrays = {name: x for name, x in arrays.items() if name.startswith('visual.')}
  if architecture.patch_size is None:
    arrays = _folded(arrays)
  return _tower("CLIP's image tower", clip.image_tower(architecture), images, arrays, 'visual.')


def text_params(arrays: Mapping[str, np.ndarray], architecture: clip.Architecture) -> Any:
  """'text' of `params`, of the other arrays."""
  tokens = jax.ShapeDtypeStruct((1, architecture.context_length), np.int32)
  arrays = {
    name: x
    for name, x in arrays.items()
    if not name.startswith('visual.') and name != 'logit_scale'
  }
  return _tower("CLIP's text tower", clip.TextTransformer(architecture), tokens, arrays, '')


def _tower(what, module, example, arrays, prefix):
  """The parameters of a module that takes what `example` is like."""
  tree = jax.eval_shape(module.init, jax.random.key(0), example)['params']
  leaves = traverse_util.flatten_dict(tree)
  names = {path: prefix + _name(path) for path in leaves}
  shapes = {}
  for path, leaf in leaves.items():
    order = _FILE_ORDER[leaf.ndim] if path[-1] == 'kernel' else range(leaf.ndim)
    shapes[names[path]] = tuple(leaf.shape[axis] for axis in order)
  arrays, dtype = checked(what, arrays, shapes)
  found = {}
  for path, name in names.items():
    x = arrays[name].astype(dtype)
    found[path] = x.transpose(_OUR_ORDER[x.ndim]) if path[-1] == 'kernel' else x
  return traverse_util.unflatten_dict(found)


def arrays(params: Any) -> dict[str, np.ndarray]:
  """The other way: arrays under OpenAI's names of parameters, or of what has their shapes."""
  found = {'logit_scale': params['logit_scale']}
  for tower, prefix in (('visual', 'visual.'), ('text', '')):
    for path, x in traverse_util.flatten_dict(params[tower]).items():
      x = np.asarray(x)
      found[prefix + _name(path)] = x.transpose(_FILE_ORDER[x.ndim]) if path[-1] == 'kernel' else x
  return found


# Axes of kernels: HWIO -> OIHW, [in,out] -> [out,in], and back.
_FILE_ORDER = {4: (3, 2, 0, 1), 2: (1, 0)}
_OUR_ORDER = {4: (2, 3, 1, 0), 2: (1, 0)}
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'embedding': 'weight'}


def _name(path):
  """OpenAI's name of a parameter of ours, within its tower."""
  name = '.'.join([*path[:-1], _LEAVES.get(path[-1], path[-1])])
  return re.sub(r'\.in_proj\.', '.in_proj_', name)


def _folded(arrays):
  """A ResNet's arrays with each batch norm in the convolution before it."""
  found = dict(arrays)
  for name in arrays:
    match = re.fullmatch(r'(.*\.)(bn([123])|downsample\.1)\.running_var', name)
    if not match:
      continue
    before = match[1] + (f'conv{match[3]}' if match[3] else 'downsample.0')
    norm = [_take(found, f'{match[1]}{match[2]}.{part}') for part in _BATCH_NORM]
    gain, bias, mean, variance = (np.asarray(x, np.float64) for x in norm)
    gain = gain / np.sqrt(variance + clip.EPS)
    weight = np.asarray(_take(found, f'{before}.weight'))
    # float16 as it is in files would lose what float64 keeps
    dtype = np.result_type(np.float32, weight.dtype)
    found[f'{before}.weight'] = (weight * gain[:, None, None, None]).astype(dtype)
    found[f'{before}.bias'] = (bias - mean * gain).astype(dtype)
  return found
