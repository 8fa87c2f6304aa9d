"""Names and layouts of other implementations' parameters <-> nested dicts of ours, NHWC and HWIO.

Ours are those of stylegan2-ada-pytorch, so PyTorch needs only transposes (a name that a
later release changed is to be renamed in read._load_pytorch); TensorFlow and rosinality have
tables. Buffers that no network of ours has (FIR filters) are not dealt with here. dtypes are
kept.
"""

from collections.abc import Iterable
import dataclasses
import re

from flax import traverse_util
import numpy as np

from sg2jax.resample import TAPS, setup_filter

# Of a state: all but the optimizers' moments. What files hold, and what is imported.
FIELDS = ('step', 'nimg', 'g', 'd', 'g_ema', 'noise', 'w_avg', 'pl_mean')
BUFFERS = ('w_avg', 'noise_const', 'resample_filter')  # not parameters: no gradient, no optimizer
FILTER = re.compile(r'(.*\.)?(resample_filter|kernel)')  # of PyTorch and rosinality
# PyTorch's layers with a filter that they don't use
IDLE = {'G': ('conv1',), 'D': ('fromrgb', 'conv0', 'conv')}


def nhwc(x: np.ndarray) -> np.ndarray:
  """[...,C,H,W] -> [...,H,W,C]."""
  return np.moveaxis(x, -3, -1)


def nchw(x: np.ndarray) -> np.ndarray:
  """[...,H,W,C] -> [...,C,H,W]."""
  return np.moveaxis(np.asarray(x), -1, -3)


def _nested(flat):
  """{path: array} of ours -> (parameters, noise buffers, w_avg or None)."""
  params = {path: x for path, x in flat.items() if path[-1] not in BUFFERS}
  noise = {path: x for path, x in flat.items() if path[-1] == 'noise_const'}
  w_avg = next((x for path, x in flat.items() if path[-1] == 'w_avg'), None)
  return traverse_util.unflatten_dict(params), traverse_util.unflatten_dict(noise), w_avg


# b4.fc takes the flattened last feature maps, [C,h,w] there and [h,w,C] here: its weight, [in,out],
# has its rows in that order.


def _rows_to_hwc(weight, size):
  h, w = size
  rows = weight.reshape(-1, h, w, weight.shape[1])  # [C,h,w,out]
  return rows.transpose(1, 2, 0, 3).reshape(weight.shape)


def _rows_to_chw(weight, size):
  h, w = size
  rows = weight.reshape(h, w, -1, weight.shape[1])  # [h,w,C,out]
  return rows.transpose(2, 0, 1, 3).reshape(weight.shape)


# ---- PyTorch


def from_pytorch(arrays: dict[str, np.ndarray], size: tuple[int, int] = (4, 4)) -> tuple:
  """PyTorch's {key: array} -> (parameters, noise buffers, w_avg or None).

  Args:
    arrays: parameters and buffers.
    size: (height, width) of the first block.
  """
  flat = {}
  for key, x in arrays.items():
    path = tuple(key.split('.'))
    if path[-1] == 'const':
      x = nhwc(x)
    elif path[-1] == 'weight' and x.ndim == 4:
      x = x.transpose(2, 3, 1, 0)  # [H,W,I,O]
    elif path[-1] == 'weight' and x.ndim == 2:
      x = _rows_to_hwc(x.T, size) if path[-2] == 'fc' else x.T
    flat[path] = x
  return _nested(flat)


def to_pytorch(
  params: dict, size: tuple[int, int] = (4, 4), prefix: str = ''
) -> dict[str, np.ndarray]:
  """Nested parameters, or their gradients -> {prefix + PyTorch's key: array} in its layouts."""
  arrays = {}
  for path, x in traverse_util.flatten_dict(params).items():
    x = np.asarray(x)
    if path[-1] == 'const':
      x = nchw(x)
    elif path[-1] == 'weight' and x.ndim == 4:
      x = x.transpose(3, 2, 0, 1)  # [O,I,H,W]
    elif path[-1] == 'weight' and x.ndim == 2:
      x = _rows_to_chw(x, size).T if path[-2] == 'fc' else x.T
    arrays[prefix + '.'.join(path)] = x
  return arrays


def filters(params: dict, taps: Iterable, letter: str, prefix: str = '') -> dict[str, np.ndarray]:
  """The FIR filters that PyTorch keeps with parameters: {prefix + key: float32 [n,n] or [n]}.

  Every block has one, but for the discriminator's last, and every layer that could resample: those
  in IDLE don't.

  Args:
    params: nested parameters.
    taps: of the network's filter.
    letter: 'G' or 'D', which they are of.
    prefix: of the keys.
  """
  taps_of = {}
  for path in traverse_util.flatten_dict(params):
    block = next((i for i, part in enumerate(path) if re.fullmatch(r'b\d+', part)), None)
    if block is None or path[block + 1] not in ('conv0', 'conv1', 'skip', 'fromrgb', 'conv'):
      continue
    layer = path[block + 1]
    taps_of['.'.join(path[: block + 2])] = TAPS if layer in IDLE[letter] else taps
    if layer in ('conv0', 'conv1'):
      taps_of['.'.join(path[: block + 1])] = taps
  return {
    f'{prefix}{name}.resample_filter': setup_filter(f).astype(np.float32)
    for name, f in taps_of.items()
  }


# ---- rosinality

_ROSINALITY_LEAF = {  # of the generator's layers
  'conv.weight': 'weight',
  'conv.modulation.weight': 'affine.weight',
  'conv.modulation.bias': 'affine.bias',
  'noise.weight': 'noise_strength',
  'activate.bias': 'bias',
  'bias': 'bias',
}
_ROSINALITY_D = {  # of the discriminator's blocks
  'conv1.0.weight': 'conv0.weight',
  'conv1.1.bias': 'conv0.bias',
  'conv2.1.weight': 'conv1.weight',
  'conv2.2.bias': 'conv1.bias',
  'skip.1.weight': 'skip.weight',
}
_ROSINALITY_D_TOP = {
  'convs.0.0.weight': 'fromrgb.weight',
  'convs.0.1.bias': 'fromrgb.bias',
}
_ROSINALITY_D_LAST = {
  'final_conv.0.weight': 'conv.weight',
  'final_conv.1.bias': 'conv.bias',
  'final_linear.0.weight': 'fc.weight',
  'final_linear.0.bias': 'fc.bias',
  'final_linear.1.weight': 'out.weight',
  'final_linear.1.bias': 'out.bias',
}


def rosinality(arrays: dict[str, np.ndarray], letter: str) -> dict[str, np.ndarray]:
  """rosinality's {name: array} of a 'G' or 'D', without filters -> {PyTorch's key: array}.

  Raises:
    ValueError: names what is not understood.
  """
  blocks = [int(m[1]) for m in map(re.compile(r'convs\.(\d{1,2})\..+').fullmatch, arrays) if m]
  # Singular dimensions are of broadcasting there.
  found = {}
  for name, x in arrays.items():
    key = (
      _generator_key(name) if letter == 'G' else _discriminator_key(name, max(blocks, default=0))
    )
    if key is None or key in found:
      raise ValueError(f'array {name[:80]!a} is not understood')
    leaf = key.rpartition('.')[2]
    if leaf == 'noise_const':
      x = x.reshape(x.shape[2:])  # of [1,1,H,W]
    elif leaf == 'bias' and x.ndim == 4:
      x = x.reshape(x.shape[1:2])  # of [1,C,1,1]
    elif leaf == 'const' or (leaf == 'weight' and x.ndim == 5):
      x = x[0]
    elif leaf == 'noise_strength':
      x = x.reshape(())
    found[key] = x
  return found


def _generator_key(name):
  """PyTorch's key of a name in the generator, or None."""
  if name == 'latent_avg':
    return 'mapping.w_avg'
  if name == 'input.input':
    return 'synthesis.b4.const'
  if m := re.fullmatch(r'style\.([1-9]\d{0,2})\.(weight|bias)', name):
    return f'mapping.fc{int(m[1]) - 1}.{m[2]}'
  if m := re.fullmatch(r'noises\.noise_(\d{1,2})', name):
    return f'{_generator_layer(int(m[1]))}.noise_const'
  m = re.fullmatch(r'(conv1|to_rgb1|convs\.(\d{1,2})|to_rgbs\.(\d{1,2}))\.(.+)', name)
  if not m or m[4] not in _ROSINALITY_LEAF:
    return None
  if m[1] == 'conv1':
    layer = _generator_layer(0)
  elif m[2]:
    layer = _generator_layer(int(m[2]) + 1)
  else:
    layer = f'synthesis.b{8 << int(m[3]) if m[3] else 4}.torgb'
  return f'{layer}.{_ROSINALITY_LEAF[m[4]]}'


# rosinality counts layers from the coarsest on: convs.0 is b8.conv0, noises.noise_0 is b4.conv1's.
# The discriminator counts from the image on: convs.1 is the block of the full resolution.


def _generator_layer(i):
  """Of the layers with noise the i-th: b4.conv1, b8.conv0, b8.conv1, b16.conv0 ..."""
  return f'synthesis.b{4 << (i + 1) // 2}.conv{(i + 1) % 2}'


def _discriminator_key(name, blocks):
  """PyTorch's key of a name in a discriminator of so many blocks before the last, or None."""
  if name in _ROSINALITY_D_LAST:
    return f'b4.{_ROSINALITY_D_LAST[name]}'
  if name in _ROSINALITY_D_TOP:
    return f'b{4 << blocks}.{_ROSINALITY_D_TOP[name]}'
  m = re.fullmatch(r'convs\.(\d{1,2})\.(.+)', name)
  if not m or m[2] not in _ROSINALITY_D:
    return None
  return f'b{8 << blocks - int(m[1])}.{_ROSINALITY_D[m[2]]}'


# ---- TensorFlow

_LAYERS = {
  'Const': 'conv0',
  'Conv0_up': 'conv0',
  'Conv0': 'conv0',
  'Conv1': 'conv1',
  'Conv1_down': 'conv1',
  'ToRGB': 'torgb',
  'FromRGB': 'fromrgb',
  'Skip': 'skip',
  'Dense0': 'fc',
  'Dense1': 'out',
  'Output': 'out',
}
_LEAVES = {
  'Noise/weight': ('noise_strength',),
  'StyleMod/weight': ('affine', 'weight'),
  'StyleMod/bias': ('affine', 'bias'),
  'mod_weight': ('affine', 'weight'),
  'mod_bias': ('affine', 'bias'),
}


@dataclasses.dataclass(frozen=True)
class TensorFlow:
  """Names and layouts of TensorFlow's networks of configs A-F and ADA, without the prefix G or D.

  Attributes:
    resolution: of the images.
    adain: config A; else B-F.
    fused: fused_scale of config A's generator.
  """

  resolution: int
  adain: bool = False
  fused: bool | str = False

  def path(self, name: str) -> tuple[str, ...]:
    """Their variable's name -> the path of ours. Raises ValueError: a name is not understood."""
    if name == 'dlatent_avg':
      return ('w_avg',)
    if m := re.fullmatch(r'(?:mapping/Dense|Mapping)(\d+)/(weight|bias)', name):
      return ('mapping', f'fc{m[1]}', m[2])
    if m := re.fullmatch(r'(?:mapping/)?LabelEmbed/(weight|bias)', name):
      return ('mapping', 'embed', m[1])
    if name == 'mapping/LabelConcat/weight':
      return ('mapping', 'embed')
    # Noise maps are numbered by layer, two to a resolution, and 4x4 has one but in config A.
    if m := re.fullmatch(r'synthesis/noise(\d{1,2})', name):
      i = int(m[1]) + (not self.adain)
      return ('synthesis', f'b{4 << i // 2}', f'conv{i % 2}', 'noise_const')
    m = re.fullmatch(
      r'(synthesis/)?(?:(\d+)x\2/)?([A-Za-z0-9]+(?:_up|_down)?)(?:_lod(\d+))?/(.+)', name
    )
    if not m or m[3] not in ('Conv', *_LAYERS):
      raise ValueError(f'TensorFlow variable {name[:80]!a} is not understood')
    synthesis, side, layer, lod, leaf = m.groups()
    # Layers of images are named by the number of halvings, ToRGB_lod3, where networks grow.
    if lod and not side:
      side = self.resolution >> int(lod)
    # 4x4/Conv: the only convolution at 4x4 of either network.
    if layer == 'Conv':
      layer = 'conv1' if synthesis else 'conv'
    else:
      layer = _LAYERS[layer]
    rest = ('const',) if leaf == 'const' else (layer, *_LEAVES.get(leaf, (leaf,)))
    return (*(['synthesis'] if synthesis else []), f'b{side or 4}', *rest)

  def load(self, arrays: dict[str, np.ndarray]) -> tuple:
    """{name: array} -> (parameters, noise buffers, w_avg or None), as of `from_pytorch`."""
    paths = {name: self.path(name) for name in arrays}
    if len(set(paths.values())) < len(paths):
      raise ValueError('two TensorFlow variables mean the same')
    return _nested({paths[name]: self._to_ours(paths[name], x) for name, x in arrays.items()})

  def store(
    self, params: dict, names: Iterable[str], prefix: str = '', gradients: bool = False
  ) -> dict[str, np.ndarray]:
    """Nested parameters -> {prefix + name: array} for those of `names` that are parameters.

    Args:
      params: nested parameters, or their gradients.
      names: of their variables.
      prefix: of the results' names.
      gradients: whether they are gradients.
    """
    flat = traverse_util.flatten_dict(params)
    paths = {name: self.path(name) for name in names}
    return {
      prefix + name: self._to_theirs(path, np.asarray(flat[path]), gradients)
      for name, path in paths.items()
      if path[-1] not in BUFFERS
    }

  def _to_ours(self, path, x):
    if path[-1] == 'const':
      return nhwc(x[0])
    if path[-1] == 'noise_const':
      return x[0, 0]
    if path[-1] == 'noise_strength' and x.shape == (1,):
      return x[0]
    if path[-2:] == ('fc', 'weight'):
      return _rows_to_hwc(x, (4, 4))
    if self._adds_one(path):
      return x + x.dtype.type(1)
    return self._flipped(path, x)

  def _to_theirs(self, path, x, gradients):
    if path[-1] == 'const':
      return nchw(x)[None]
    if path[-2:] == ('fc', 'weight'):
      return _rows_to_chw(x, (4, 4))
    if self._adds_one(path) and not gradients:
      return x - x.dtype.type(1)
    return self._flipped(path, x)

  def _adds_one(self, path):
    """Whether their network adds 1 to this variable when it runs."""
    return path[-2:] == ('affine', 'bias') and not self.adain

  def _flipped(self, path, x):
    """Filters [H,W,I,O] of transposed convolutions lie the other way round there."""
    if path[-2:] != ('conv0', 'weight') or path[0] != 'synthesis':
      return x
    side = int(path[1][1:])
    transposed = not self.adain or self.fused is True or (self.fused == 'auto' and side >= 128)
    return x[::-1, ::-1] if transposed else x
