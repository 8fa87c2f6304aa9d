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

from sg2jax.interop.pickle_reader import need
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


def rows_to_hwc(weight: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """b4.fc's weight [C*h*w,out] -> [h*w*C,out], for maps of `size` (h,w)."""
  rows = weight.reshape(-1, *size, weight.shape[1])  # [C,h,w,out]
  return rows.transpose(1, 2, 0, 3).reshape(weight.shape)


def rows_to_chw(weight: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """The inverse of `rows_to_hwc`."""
  rows = weight.reshape(*size, -1, weight.shape[1])  # [h,w,C,out]
  return rows.transpose(2, 0, 1, 3).reshape(weight.shape)


# ---- PyTorch


def _axes(path, x):
  """Which axis of PyTorch's array each of ours is; x: either array."""
  if path[-1] == 'const':
    return (1, 2, 0)  # [C,H,W]
  if path[-1] == 'weight' and x.ndim > 1:
    return (2, 3, 1, 0)[-x.ndim :]  # [O,I,H,W], or the end of it: [O,I]
  return range(x.ndim)


def from_pytorch(arrays: dict[str, np.ndarray], size: tuple[int, int] = (4, 4)) -> tuple:
  """PyTorch's {key: array} -> (parameters, noise buffers, w_avg or None).

  Args:
    arrays: parameters and buffers.
    size: (height, width) of the first block.
  """
  flat = {}
  for key, x in arrays.items():
    path = tuple(key.split('.'))
    x = x.transpose(_axes(path, x))
    flat[path] = rows_to_hwc(x, size) if path[-2:] == ('fc', 'weight') else x
  return _nested(flat)


def to_pytorch(
  params: dict, size: tuple[int, int] = (4, 4), prefix: str = ''
) -> dict[str, np.ndarray]:
  """Nested parameters, or their gradients -> {prefix + PyTorch's key: array} in its layouts."""
  arrays = {}
  for path, x in traverse_util.flatten_dict(params).items():
    x = np.asarray(x)
    if path[-2:] == ('fc', 'weight'):
      x = rows_to_chw(x, size)
    arrays[prefix + '.'.join(path)] = x.transpose(np.argsort(_axes(path, x)))
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
  for path in traverse_util.flatten_dict(params, sep='.'):
    if m := re.match(r'((?:synthesis\.)?b\d+)\.(conv0|conv1|skip|fromrgb|conv)\.', path):
      block, layer = m.groups()
      taps_of[f'{block}.{layer}'] = TAPS if layer in IDLE[letter] else taps
      if layer in ('conv0', 'conv1'):
        taps_of[block] = taps
  return {
    f'{prefix}{name}.resample_filter': setup_filter(f).astype(np.float32)
    for name, f in taps_of.items()
  }


# ---- rosinality

_TORGB = {
  'conv.weight': 'weight',
  'conv.modulation.weight': 'affine.weight',
  'conv.modulation.bias': 'affine.bias',
  'bias': 'bias',
}
_CONV = _TORGB | {'noise.weight': 'noise_strength', 'activate.bias': 'bias'}
_D_BLOCK = {
  'conv1.0.weight': 'conv0.weight',
  'conv1.1.bias': 'conv0.bias',
  'conv2.1.weight': 'conv1.weight',
  'conv2.2.bias': 'conv1.bias',
  'skip.1.weight': 'skip.weight',
}
_D_LAST = {
  'final_conv.0.weight': 'b4.conv.weight',
  'final_conv.1.bias': 'b4.conv.bias',
  'final_linear.0.weight': 'b4.fc.weight',
  'final_linear.0.bias': 'b4.fc.bias',
  'final_linear.1.weight': 'b4.out.weight',
  'final_linear.1.bias': 'b4.out.bias',
}
_MAX_BLOCKS = 16  # far more than any network has


def rosinality(arrays: dict[str, np.ndarray], letter: str) -> dict[str, np.ndarray]:
  """rosinality's {name: array} of a 'G' or 'D', without filters -> {PyTorch's key: array}.

  Raises:
    ValueError: names what is not understood.
  """
  keys = _generator_keys() if letter == 'G' else _discriminator_keys(arrays)
  found = {}
  for name, x in arrays.items():
    is_new = name in keys and keys[name] not in found
    need(is_new, f'array {name[:80]!a} is not understood')
    leaf = keys[name].rpartition('.')[2]
    # Singular dimensions are of broadcasting there.
    if leaf == 'noise_const':
      x = x.reshape(x.shape[2:])  # of [1,1,H,W]
    elif leaf == 'bias':
      x = x.reshape(-1)  # of [C] or [1,C,1,1]
    elif leaf == 'const' or x.ndim == 5:
      x = x.reshape(x.shape[1:])  # of [1,C,h,w], [1,O,I,h,w]
    elif leaf == 'noise_strength':
      x = x.reshape(())
    found[keys[name]] = x
  return found


def _generator_keys():
  """{rosinality's name: PyTorch's key} of a generator of any size."""
  keys = {'latent_avg': 'mapping.w_avg', 'input.input': 'synthesis.b4.const'}
  for i in range(64):
    for leaf in ('weight', 'bias'):
      keys[f'style.{i + 1}.{leaf}'] = f'mapping.fc{i}.{leaf}'
  # Layers are counted from the coarsest on: b4.conv1, b8.conv0, b8.conv1, b16.conv0 ...
  for i in range(2 * _MAX_BLOCKS - 1):
    theirs = f'convs.{i - 1}' if i else 'conv1'
    ours = f'synthesis.b{4 << (i + 1) // 2}.conv{(i + 1) % 2}'
    keys[f'noises.noise_{i}'] = f'{ours}.noise_const'
    keys |= {f'{theirs}.{leaf}': f'{ours}.{key}' for leaf, key in _CONV.items()}
  for i in range(_MAX_BLOCKS):
    theirs = f'to_rgbs.{i - 1}' if i else 'to_rgb1'
    keys |= {f'{theirs}.{leaf}': f'synthesis.b{4 << i}.torgb.{key}' for leaf, key in _TORGB.items()}
  return keys


def _discriminator_keys(arrays):
  """{rosinality's name: PyTorch's key} of the discriminator that has these arrays."""
  # Blocks are counted from the image on: convs.1 is that of the full resolution.
  blocks = min(sum(name.endswith('.conv1.0.weight') for name in arrays), _MAX_BLOCKS)
  top = f'b{4 << blocks}.fromrgb'
  keys = _D_LAST | {'convs.0.0.weight': f'{top}.weight', 'convs.0.1.bias': f'{top}.bias'}
  for i in range(blocks):
    keys |= {f'convs.{i + 1}.{leaf}': f'b{4 << blocks - i}.{key}' for leaf, key in _D_BLOCK.items()}
  return keys


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
    # 4x4/Conv: the only convolution at 4x4 of either network.
    layers = _LAYERS | {'Conv': 'conv1' if m and m[1] else 'conv'}
    need(m and m[3] in layers, f'TensorFlow variable {name[:80]!a} is not understood')
    synthesis, side, layer, lod, leaf = m.groups()
    # Layers of images are named by the number of halvings, ToRGB_lod3, where networks grow.
    if lod and not side:
      side = self.resolution >> int(lod)
    rest = ('const',) if leaf == 'const' else (layers[layer], *_LEAVES.get(leaf, (leaf,)))
    return (*(['synthesis'] if synthesis else []), f'b{side or 4}', *rest)

  def load(self, arrays: dict[str, np.ndarray]) -> tuple:
    """{name: array} -> (parameters, noise buffers, w_avg or None), as of `from_pytorch`."""
    paths = {name: self.path(name) for name in arrays}
    need(len(set(paths.values())) == len(paths), 'two TensorFlow variables mean the same')
    return _nested({paths[name]: self._to_ours(paths[name], x) for name, x in arrays.items()})

  def _to_ours(self, path, x):
    if path[-1] == 'const':
      return nhwc(x[0])
    if path[-1] == 'noise_const':
      return x[0, 0]
    if path[-1] == 'noise_strength' and x.shape == (1,):
      return x[0]
    if path[-2:] == ('fc', 'weight'):
      return rows_to_hwc(x, (4, 4))
    # Their networks but config A's add 1 to it when they run.
    if path[-2:] == ('affine', 'bias') and not self.adain:
      return x + x.dtype.type(1)
    return x[::-1, ::-1] if self.is_flipped(path) else x

  def is_flipped(self, path: tuple[str, ...]) -> bool:
    """Whether it is the filter [H,W,I,O] of a transposed convolution: they lie the other way."""
    if path[-2:] != ('conv0', 'weight') or path[0] != 'synthesis':
      return False
    side = int(path[1][1:])
    return not self.adain or self.fused is True or (self.fused == 'auto' and side >= 128)
