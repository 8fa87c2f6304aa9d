"""Names and layouts of other implementations' parameters <-> nested dicts of ours, NHWC and HWIO.

Ours are those of stylegan2-ada-pytorch, so PyTorch needs only transposes; TensorFlow and rosinality
have tables. Buffers that no network of ours has (FIR filters) are not dealt with here. dtypes are
kept.
"""

import dataclasses
import re

from flax import traverse_util
import numpy as np

from sg2jax.resample import setup_filter

BUFFERS = ('w_avg', 'noise_const', 'resample_filter')  # not parameters: no gradient, no optimizer
FILTER = re.compile(r'(.*\.)?(resample_filter|kernel)')  # of PyTorch and rosinality
# PyTorch's layers with a filter that they don't use
IDLE = {'G': ('conv1',), 'D': ('fromrgb', 'conv0', 'conv')}


def nhwc(x):
  """[...,C,H,W] -> [...,H,W,C]."""
  return np.moveaxis(x, -3, -1)


def nchw(x):
  """[...,H,W,C] -> [...,C,H,W]."""
  return np.moveaxis(np.asarray(x), -1, -3)


# ---- PyTorch


def _first(array, size, inward):
  """b4.fc.weight [in,out], whose input is flattened [C,h,w] there and [h,w,C] here; size is (h,
  w).
  """
  h, w = size
  shape = (-1, h, w, array.shape[1]) if inward else (h, w, -1, array.shape[1])
  return (
    array.reshape(shape).transpose((1, 2, 0, 3) if inward else (2, 0, 1, 3)).reshape(array.shape)
  )


def _layout(path, array, size, inward):
  """One parameter from their layout to ours (inward) or back."""
  name = path[-1]
  if name == 'const':
    return nhwc(array) if inward else nchw(array)
  if name == 'weight' and array.ndim == 4:
    return array.transpose(2, 3, 1, 0) if inward else array.transpose(3, 2, 0, 1)
  if name != 'weight' or array.ndim != 2:
    return array
  if path[-2] != 'fc':
    return array.T
  return _first(array.T, size, True) if inward else _first(array, size, False).T


def load(arrays, size=(4, 4)):
  """{key: array} -> (parameters, noise buffers, w_avg or None). size: (height, width) of the first
  block.
  """
  flat = {tuple(key.split('.')): array for key, array in arrays.items()}
  params = {p: _layout(p, a, size, True) for p, a in flat.items() if p[-1] not in BUFFERS}
  noise = {p: a for p, a in flat.items() if p[-1] == 'noise_const'}
  w_avg = [a for p, a in flat.items() if p[-1] == 'w_avg']
  return (
    traverse_util.unflatten_dict(params),
    traverse_util.unflatten_dict(noise),
    w_avg[0] if w_avg else None,
  )


def store(params, size=(4, 4), prefix=''):
  """Nested parameters, or their gradients -> {prefix + key: array} under PyTorch's keys and in its
  layouts.
  """
  flat = traverse_util.flatten_dict(params)
  return {prefix + '.'.join(p): _layout(p, np.asarray(a), size, False) for p, a in flat.items()}


def filters(params, taps, letter, prefix=''):
  """The FIR filters that PyTorch keeps with the parameters of a 'G' or 'D': {prefix + key: float32
  [n,n] or [n]}.

  Every block has one, but for the discriminator's last, and every layer that could resample: those
  in IDLE don't.
  """
  found = {}
  for path in traverse_util.flatten_dict(params):
    block = next((i for i, part in enumerate(path) if re.fullmatch(r'b\d+', part)), None)
    if block is None or path[block + 1] not in ('conv0', 'conv1', 'skip', 'fromrgb', 'conv'):
      continue
    layer = path[block + 1]
    found['.'.join(path[: block + 2])] = (1, 3, 3, 1) if layer in IDLE[letter] else taps
    if layer in ('conv0', 'conv1'):
      found['.'.join(path[: block + 1])] = taps
  return {
    f'{prefix}{name}.resample_filter': setup_filter(f).astype(np.float32)
    for name, f in found.items()
  }


# ---- rosinality

_ROSINALITY_G = (  # the group i is the index that the key's resolution or layer follows from
  (r'style\.(?P<i>[1-9]\d{0,2})\.(?P<leaf>weight|bias)', lambda i: f'mapping.fc{i - 1}'),
  (r'input\.input()', lambda i: 'synthesis.b4.const'),
  (r'conv1\.(?P<leaf>.+)', lambda i: 'synthesis.b4.conv1'),
  (r'to_rgb1\.(?P<leaf>.+)', lambda i: 'synthesis.b4.torgb'),
  (r'convs\.(?P<i>\d{1,2})\.(?P<leaf>.+)', lambda i: f'synthesis.b{8 << i // 2}.conv{i % 2}'),
  (r'to_rgbs\.(?P<i>\d{1,2})\.(?P<leaf>.+)', lambda i: f'synthesis.b{8 << i}.torgb'),
  (
    r'noises\.noise_(?P<i>\d{1,2})',
    lambda i: f'synthesis.b{4 << (i + 1) // 2}.conv{(i + 1) % 2}.noise_const',
  ),
  (r'latent_avg', lambda i: 'mapping.w_avg'),
)
_ROSINALITY_LEAF = {
  'conv.weight': 'weight',
  'conv.modulation.weight': 'affine.weight',
  'conv.modulation.bias': 'affine.bias',
  'noise.weight': 'noise_strength',
  'activate.bias': 'bias',
  'bias': 'bias',
  'weight': 'weight',
}
_ROSINALITY_D = {
  'conv1.0.weight': 'conv0.weight',
  'conv1.1.bias': 'conv0.bias',
  'conv2.1.weight': 'conv1.weight',
  'conv2.2.bias': 'conv1.bias',
  'skip.1.weight': 'skip.weight',
}
_ROSINALITY_TOP = {'convs.0.0.weight': 'fromrgb.weight', 'convs.0.1.bias': 'fromrgb.bias'}
_ROSINALITY_LAST = {
  'final_conv.0.weight': 'conv.weight',
  'final_conv.1.bias': 'conv.bias',
  'final_linear.0.weight': 'fc.weight',
  'final_linear.0.bias': 'fc.bias',
  'final_linear.1.weight': 'out.weight',
  'final_linear.1.bias': 'out.bias',
}


def rosinality(arrays, letter):
  """{rosinality's name: array} of a generator ('G') or discriminator ('D'), without filters ->
  {PyTorch key: array}.

  Raises: ValueError, naming what is not understood.
  """
  blocks = max(
    (int(m[1]) for m in map(re.compile(r'convs\.(\d{1,2})\..+').fullmatch, arrays) if m), default=0
  )
  found = {}
  for name, array in arrays.items():
    key = _rosinality_generator(name) if letter == 'G' else _rosinality_discriminator(name, blocks)
    if key is None or key in found:
      raise ValueError(f'array {name[:80]!a} is not understood')
    leaf, shape = key.rpartition('.')[2], array.shape
    if leaf == 'noise_const' or (leaf == 'bias' and array.ndim == 4):  # [1,1,H,W] and [1,C,1,1]
      array = array.reshape(shape[2:] if leaf == 'noise_const' else shape[1:2])
    elif leaf == 'const' or (leaf == 'weight' and array.ndim == 5):  # [1,...]
      array = array[0]
    found[key] = array.reshape(()) if leaf == 'noise_strength' else array
  return found


def _rosinality_generator(name):
  for pattern, place in _ROSINALITY_G:
    if m := re.fullmatch(pattern, name):
      groups = m.groupdict()
      stem = place(int(groups.get('i') or 0))
      if 'leaf' not in groups:
        return stem
      return (
        f'{stem}.{_ROSINALITY_LEAF[groups["leaf"]]}' if groups['leaf'] in _ROSINALITY_LEAF else None
      )
  return None


def _rosinality_discriminator(name, blocks):
  if name in _ROSINALITY_LAST:
    return f'b4.{_ROSINALITY_LAST[name]}'
  if name in _ROSINALITY_TOP:
    return f'b{4 << blocks}.{_ROSINALITY_TOP[name]}'
  m = re.fullmatch(r'convs\.(\d{1,2})\.(.+)', name)
  return (
    f'b{8 << blocks - int(m[1])}.{_ROSINALITY_D[m[2]]}' if m and m[2] in _ROSINALITY_D else None
  )


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
  """Names and layouts of TensorFlow's networks, G or D without that prefix (configs A-F and
  ADA).
  """

  resolution: int
  adain: bool = False  # config A; else B-F
  fused: bool | str = False  # fused_scale of config A's generator

  def path(self, name):
    """Their variable name -> the path of ours. Raises ValueError for a name that is not
    understood.
    """
    if name == 'dlatent_avg':
      return ('w_avg',)
    if m := re.fullmatch(r'mapping/Dense(\d+)/(weight|bias)|Mapping(\d+)/(weight|bias)', name):
      return ('mapping', f'fc{m[1] or m[3]}', m[2] or m[4])
    if m := re.fullmatch(r'(?:mapping/)?LabelEmbed/(weight|bias)', name):
      return ('mapping', 'embed', m[1])
    if name == 'mapping/LabelConcat/weight':
      return ('mapping', 'embed')
    if m := re.fullmatch(r'synthesis/noise(\d{1,2})', name):
      i = int(m[1]) + (not self.adain)  # config A has one for the constant
      return ('synthesis', f'b{4 << i // 2}', f'conv{i % 2}', 'noise_const')
    m = re.fullmatch(
      r'(synthesis/)?(?:(\d+)x\2/)?([A-Za-z0-9]+(?:_up|_down)?)(?:_lod(\d+))?/(.+)', name
    )
    if not m or m[3] not in ('Conv', *_LAYERS):
      raise ValueError(f'TensorFlow variable {name[:80]!a} is not understood')
    res = m[2] or (self.resolution >> int(m[4]) if m[4] else 4)
    layer = {'Conv': 'conv1' if m[1] else 'conv'} | _LAYERS
    rest = ('const',) if m[5] == 'const' else (layer[m[3]], *_LEAVES.get(m[5], (m[5],)))
    return (('synthesis',) if m[1] else ()) + (f'b{res}', *rest)

  def _layout(self, path, array, inward, shift):
    if path[-1] == 'const':
      return nhwc(array[0]) if inward else nchw(array)[None]
    if path[-1] == 'noise_const':
      return array[0, 0] if inward else array[None, None]
    if path[-1] == 'noise_strength' and array.shape == (1,):
      return array[0]
    if path[-2:] == ('fc', 'weight'):
      return _first(array, (4, 4), inward)
    if path[-2:] == ('affine', 'bias') and not self.adain:  # theirs adds 1 when it runs
      return array + array.dtype.type(shift if inward else -shift)
    if path[-2:] == ('conv0', 'weight') and path[0] == 'synthesis':
      side = int(path[1][1:])
      flip = not self.adain or self.fused is True or (self.fused == 'auto' and side >= 128)
      return array[::-1, ::-1] if flip else array
    return array

  def load(self, arrays):
    """{name: array} -> (parameters, noise buffers, w_avg or None), as of `load`."""
    flat = {self.path(name): array for name, array in arrays.items()}
    if len(flat) < len(arrays):
      raise ValueError('two TensorFlow variables mean the same')
    params = {p: self._layout(p, a, True, 1) for p, a in flat.items() if p[-1] not in BUFFERS}
    noise = {p: self._layout(p, a, True, 1) for p, a in flat.items() if p[-1] == 'noise_const'}
    return (
      traverse_util.unflatten_dict(params),
      traverse_util.unflatten_dict(noise),
      flat.get(('w_avg',)),
    )

  def store(self, params, names, prefix='', gradients=False):
    """Nested parameters, or their gradients -> {prefix + name: array} for those of `names` that are
    parameters.
    """
    flat = traverse_util.flatten_dict(params)
    paths = {name: self.path(name) for name in names}
    return {
      prefix + name: self._layout(p, np.asarray(flat[p]), False, int(not gradients))
      for name, p in paths.items()
      if p[-1] not in BUFFERS
    }
