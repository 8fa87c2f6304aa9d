"""The border to the reference vectors: NVIDIA's keys and NCHW / OIHW layouts <-> nested dicts, NHWC / HWIO."""
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
