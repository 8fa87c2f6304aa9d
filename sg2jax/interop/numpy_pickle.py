"""Arrays of NumPy 1 and 2 in pickles: nodes of `pickle_reader` -> arrays."""

import math

import numpy as np

from sg2jax.interop import torch_file
from sg2jax.interop.pickle_reader import Call, Global, describe, is_call, need

_ARRAY = Global('numpy', 'ndarray')
_DTYPE = {Global('numpy', 'dtype')}
_ENCODE = {Global('_codecs', 'encode')}  # how protocol 2 writes bytes
_CORES = ('numpy.core', 'numpy._core')  # before and since NumPy 2
_RECONSTRUCT = {Global(f'{core}.multiarray', '_reconstruct') for core in _CORES}
_SCALAR = {Global(f'{core}.multiarray', 'scalar') for core in _CORES}
_FROMBUFFER = {Global(f'{core}.numeric', '_frombuffer') for core in _CORES}
NAMES = {_ARRAY, *_DTYPE, *_ENCODE, *_RECONSTRUCT, *_SCALAR, *_FROMBUFFER}
_NUMBERS = ('f2', 'f4', 'f8', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'b1')


def array(node: object, name: str) -> np.ndarray:
  """The array, read-only, that the node of a NumPy array or number, or a float, stands for.

  Args:
    node: part of a value of `pickle_reader.parse`.
    name: what messages call it.

  Raises:
    ValueError: anything else; numbers that are not little-endian; an impossible shape.
  """
  label = describe(name)
  order = 'C'
  axes = None
  if isinstance(node, float):
    return np.broadcast_to(node, ())  # read-only by that
  made = is_call(node, _RECONSTRUCT, stateful=True) and node.args[:1] == (_ARRAY,)
  if made and isinstance(node.state, tuple) and len(node.state) == 5:
    _, shape, dtype, fortran, raw = node.state
    order = 'F' if fortran is True else 'C'
  elif is_call(node, _FROMBUFFER) and len(node.args) in (4, 5):
    raw, dtype, shape, order, axes = (*node.args, None)[:5]
  elif is_call(node, _SCALAR) and len(node.args) == 2:
    dtype, raw = node.args
    shape = ()
  else:
    raise ValueError(f'{label} is {describe(node)}, which is no array of numbers')
  dtype = _dtype(dtype, label)
  raw = to_bytes(raw)
  is_whole = torch_file.is_shape(shape) and math.prod(shape) * dtype.itemsize == len(raw)
  need(is_whole, f'{label} has an impossible shape, or not as many bytes as that')
  values = torch_file.numbers(raw, dtype)
  # 'K': in the order of memory, of which `axes` are the array's own
  if order == 'K' and torch_file.is_shape(axes) and sorted(axes) == [*range(len(shape))]:
    return values.reshape(shape).transpose(axes)
  need(order in ('C', 'F'), f'{label} is in the order {describe(order)}')
  return values.reshape(shape, order=order)


def _dtype(node, label):
  """The dtype of a node: little-endian numbers only."""
  if not is_call(node, _DTYPE, stateful=True) or not node.args or node.args[0] not in _NUMBERS:
    what = node.args[0] if isinstance(node, Call) and node.args else node
    raise ValueError(f'{label} has the dtype {describe(what)}, which is refused')
  match node.state:
    case None | (_, '<' | '|' | '=', None, None, None, *_):  # version, order, parts of a dtype
      return np.dtype(node.args[0])
  raise ValueError(f'{label} has numbers that are not little-endian, or a dtype with parts')


def to_bytes(node: object) -> bytes:
  """The bytes that a node stands for. Raises ValueError."""
  if is_call(node, _ENCODE) and len(node.args) == 2 and node.args[1] == 'latin1':
    if isinstance(node.args[0], str):
      return node.args[0].encode('latin-1')
  need(isinstance(node, bytes), f'holds {describe(node)} where bytes should be')
  return node
