"""The border to the reference vectors: NVIDIA's keys and NCHW / OIHW layouts <-> nested dicts, NHWC / HWIO."""
import dataclasses
import re

from flax import traverse_util
import numpy as np

BUFFERS = ('w_avg', 'noise_const', 'resample_filter')  # not parameters: no gradient, no optimizer


def nhwc(x):
  """[...,C,H,W] -> [...,H,W,C]."""
  return np.moveaxis(x, -3, -1)


def nchw(x):
  """[...,H,W,C] -> [...,C,H,W]."""
  return np.moveaxis(np.asarray(x), -1, -3)


def _first(array, size, inward):
  """b4.fc.weight [in,out], whose input is flattened [C,h,w] there and [h,w,C] here; size is (h, w)."""
  h, w = size
  shape = (-1, h, w, array.shape[1]) if inward else (h, w, -1, array.shape[1])
  return array.reshape(shape).transpose((1, 2, 0, 3) if inward else (2, 0, 1, 3)).reshape(array.shape)


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
  """{key: array} -> (parameters, noise buffers, w_avg or None). size: (height, width) of the first block."""
  flat = {tuple(key.split('.')): array for key, array in arrays.items()}
  params = {p: _layout(p, a, size, True) for p, a in flat.items() if p[-1] not in BUFFERS}
  noise = {p: a for p, a in flat.items() if p[-1] == 'noise_const'}
  w_avg = [a for p, a in flat.items() if p[-1] == 'w_avg']
  return traverse_util.unflatten_dict(params), traverse_util.unflatten_dict(noise), w_avg[0] if w_avg else None


def store(params, size=(4, 4), prefix=''):
  """Nested parameters, or their gradients -> {prefix + key: array} under the names and layouts of the vectors."""
  flat = traverse_util.flatten_dict(params)
  return {prefix + '.'.join(p): _layout(p, np.asarray(a), size, False) for p, a in flat.items()}


# ---- TensorFlow

_LAYERS = {'Const': 'conv0', 'Conv0_up': 'conv0', 'Conv0': 'conv0', 'Conv1': 'conv1', 'Conv1_down': 'conv1', 'ToRGB': 'torgb',
           'FromRGB': 'fromrgb', 'Dense0': 'fc', 'Dense1': 'out', 'Output': 'out'}
_LEAVES = {'Noise/weight': ('noise_strength',), 'StyleMod/weight': ('affine', 'weight'), 'StyleMod/bias': ('affine', 'bias'),
           'mod_weight': ('affine', 'weight'), 'mod_bias': ('affine', 'bias')}


@dataclasses.dataclass(frozen=True)
class TensorFlow:
  """Names and layouts of the TensorFlow networks that grow, G or D without that prefix (naming.md of the vectors)."""
  resolution: int
  adain: bool  # config A; else B-D
  fused: bool | str = False  # fused_scale of config A's generator

  def path(self, name):
    """Their variable name -> the path of ours."""
    if name == 'dlatent_avg':
      return ('w_avg',)
    if m := re.fullmatch(r'mapping/Dense(\d+)/(weight|bias)', name):
      return ('mapping', f'fc{m[1]}', m[2])
    if name == 'mapping/LabelConcat/weight':
      return ('mapping', 'embed')
    if m := re.fullmatch(r'synthesis/noise(\d+)', name):
      i = int(m[1]) + (not self.adain)  # config A has one for the constant
      return ('synthesis', f'b{4 << i // 2}', f'conv{i % 2}', 'noise_const')
    m = re.fullmatch(r'(synthesis/)?(?:(\d+)x\2/)?([A-Za-z0-9]+(?:_up|_down)?)(?:_lod(\d+))?/(.+)', name)
    if not m or m[3] not in ('Conv', *_LAYERS):
      raise ValueError(f'TensorFlow variable {name} is not understood')
    res = m[2] or (self.resolution >> int(m[4]) if m[4] else 4)
    layer = {'Conv': 'conv1' if m[1] else 'conv'} | _LAYERS
    rest = ('const',) if m[5] == 'const' else (layer[m[3]], *_LEAVES.get(m[5], (m[5],)))
    return (('synthesis',) if m[1] else ()) + (f'b{res}', *rest)

  def _layout(self, path, array, inward, shift):
    if path[-1] == 'const':
      return nhwc(array[0]) if inward else nchw(array)[None]
    if path[-1] == 'noise_const':
      return array[0, 0] if inward else array[None, None]
    if path[-2:] == ('fc', 'weight'):
      return _first(array, (4, 4), inward)
    if path[-2:] == ('affine', 'bias') and not self.adain:  # theirs adds 1 when it runs
      return array + (shift if inward else -shift)
    if path[-2:] == ('conv0', 'weight') and path[0] == 'synthesis':
      side = int(path[1][1:])
      flip = not self.adain or self.fused is True or (self.fused == 'auto' and side >= 128)
      return array[::-1, ::-1] if flip else array
    return array

  def load(self, arrays):
    """{name: array} -> (parameters, noise buffers, w_avg or None), as of `load`."""
    flat = {self.path(name): array for name, array in arrays.items()}
    params = {p: self._layout(p, a, True, 1) for p, a in flat.items() if p[-1] not in BUFFERS}
    noise = {p: self._layout(p, a, True, 1) for p, a in flat.items() if p[-1] == 'noise_const'}
    return traverse_util.unflatten_dict(params), traverse_util.unflatten_dict(noise), flat.get(('w_avg',))

  def store(self, params, names, prefix='', gradients=False):
    """Nested parameters, or their gradients -> {prefix + name: array} for those of `names` that are parameters."""
    flat = traverse_util.flatten_dict(params)
    paths = {name: self.path(name) for name in names}
    return {prefix + name: self._layout(p, np.asarray(flat[p]), False, int(not gradients)) for name, p in paths.items()
            if p[-1] not in BUFFERS}
