"""State dicts of PyTorch files (.pt, .pth), without torch: the pickle is read by `pickle_reader`, never run.

Both formats of torch.save: the zip file of 1.6 and later, and the one before, a row of pickles followed by the storages,
also as written under Python 2. What makes a tensor is known by name; anything else is refused, among it
`torch.storage._load_from_bytes`, which hides a second file in a pickle.
"""

import contextlib
import dataclasses
import io
import math
import zipfile

import ml_dtypes
import numpy as np

from sg2jax.interop import pickle_reader
from sg2jax.interop.pickle_reader import Call, Global, Persistent, describe

STORAGES = {
    'FloatStorage': np.float32, 'DoubleStorage': np.float64, 'HalfStorage': np.float16, 'BFloat16Storage': ml_dtypes.bfloat16,
    'LongStorage': np.int64, 'IntStorage': np.int32, 'ShortStorage': np.int16, 'CharStorage': np.int8,
    'ByteStorage': np.uint8, 'BoolStorage': np.bool_}  # of modules torch and torch.cuda
MAGIC, PROTOCOL = 0x1950a86a20f9469cfc6c, 1001  # of the older format
MAX_DIMS = 32
_DICT = Global('collections', 'OrderedDict')
_SIZE = Global('torch', 'Size')
_PARAMETER = Global('torch._utils', '_rebuild_parameter')
_TENSORS = {Global('torch._utils', '_rebuild_tensor'): (4,),  # number of arguments; the older one until torch 0.3
            Global('torch._utils', '_rebuild_tensor_v2'): (6, 7)}
_NAMES = {_DICT, _SIZE, _PARAMETER, *_TENSORS,
          *(Global(module, name) for module in ('torch', 'torch.cuda') for name in STORAGES)}


def parse(data: bytes) -> dict[str, np.ndarray]:
  """The tensors of a state dict, in its order.

  Args:
    data: content of the file: {name: tensor or parameter}, or {'state_dict': that} and nothing else.

  Returns:
    {name: array}, read-only, in the dtype of the file (bfloat16 as ml_dtypes.bfloat16). Tensors that share memory in the
    file share it here.

  Raises:
    ValueError: malformed, or anything else in it; says what.
  """
  zipped = data.startswith(b'PK\x03\x04')
  tree, storages = (_zip if zipped else _legacy)(data)
  tensors = {name: _tensor(node, name) for name, node in _names(tree)}
  arrays = storages({t.key: t for t in tensors.values()})
  return {name: _view(name, t, arrays[t.key]) for name, t in tensors.items()}


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """Elements of storage `key`, which has `count` of them; offset and stride in elements."""
  key: str
  dtype: np.dtype
  count: int
  offset: int
  shape: tuple
  stride: tuple


def _names(tree):
  """(name, node) of a state dict's entries."""
  pairs = _pairs(tree)
  if len(pairs) == 1 and pairs[0][0] == 'state_dict':
    pairs = _pairs(pairs[0][1])
  names = [name for name, _ in pairs]
  if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
    raise ValueError('its names are not text, or one occurs twice')
  return pairs


def _pairs(node):
  """Key and value pairs of a dict or OrderedDict."""
  if isinstance(node, dict):
    return list(node.items())
  if isinstance(node, Call) and node.function == _DICT and not node.items and not node.kwargs:
    if not node.args:
      return node.pairs
    if len(node.args) == 1 and isinstance(node.args[0], list) and not node.pairs:  # of Python 2
      if all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in node.args[0]):
        return [tuple(pair) for pair in node.args[0]]
  raise ValueError(f'holds {describe(node)} where a state dict should be')


def _tensor(node, name):
  """The _Tensor that a node stands for; refuses what isn't exactly one."""
  if isinstance(node, Call) and node.function == _PARAMETER and len(node.args) == 3:
    node = node.args[0]
  if not isinstance(node, Call) or node.state is not None or len(node.args) not in _TENSORS.get(node.function, ()):
    raise ValueError(f'{describe(name)} is {describe(node)}, which is no tensor')
  storage, offset, shape, stride = node.args[:4]
  shape, stride = (node.args[0] if isinstance(node, Call) and node.function == _SIZE and len(node.args) == 1 else node
                   for node in (shape, stride))
  what = storage.id if isinstance(storage, Persistent) else storage
  if not (isinstance(what, tuple) and len(what) in (5, 6) and what[0] == 'storage' and what[5:] in ((), (None,))
          and isinstance(what[1], Global) and what[1].name in STORAGES
          and isinstance(what[2], str)):
    inner = what[1] if isinstance(what, tuple) and len(what) > 1 else what
    raise ValueError(f'{describe(name)} has a storage of an unknown kind: {describe(inner)}')
  _, kind, key, _, count = what[:5]
  sizes = isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= MAX_DIMS
  if not sizes or not all(type(n) is int and 0 <= n < 2 ** 48 for n in (offset, count, *shape, *stride)):
    raise ValueError(f'{describe(name)} has an impossible shape, stride or offset')
  last = offset + sum((n - 1) * s for n, s in zip(shape, stride))
  if math.prod(shape) > count or (math.prod(shape) and last >= count):
    raise ValueError(f'{describe(name)} reaches beyond its storage of {count} elements')
  return _Tensor(key, np.dtype(STORAGES[kind.name]), count, offset, shape, stride)


def _view(name, tensor, storage):
  if storage.dtype != tensor.dtype or storage.size != tensor.count:
    raise ValueError(f'{describe(name)} disagrees with another tensor about their storage')
  if not math.prod(tensor.shape):
    return np.zeros(tensor.shape, tensor.dtype)
  stride = [s * tensor.dtype.itemsize for s in tensor.stride]
  return np.lib.stride_tricks.as_strided(storage[tensor.offset:], tensor.shape, stride, writeable=False)


def _storage(data, tensor, start=0):
  """Elements of a storage: [count]."""
  if tensor.dtype == np.bool_ and np.frombuffer(data, np.uint8, tensor.count, start).max(initial=0) > 1:
    raise ValueError(f'storage {describe(tensor.key)} holds booleans other than 0 and 1')
  return np.frombuffer(data, tensor.dtype, tensor.count, start)


def _zip(data):
  """Pickle of the zip format, and the function {key: _Tensor} -> {key: storage}."""
  with _zip_errors():
    archive = zipfile.ZipFile(io.BytesIO(data))
  parts = archive.infolist()
  sizes = {part.filename: part.file_size for part in parts}
  if (len(sizes) < len(parts) or sum(sizes.values()) > len(data)
      or any(part.compress_type != zipfile.ZIP_STORED or part.flag_bits & 1 for part in parts)):
    raise ValueError('its parts are compressed, encrypted, doubled or overlapping, as torch.save never makes them')
  roots = [name[:-len('data.pkl')] for name in sizes if name.endswith('/data.pkl')]
  if len(roots) != 1:
    raise ValueError('a zip file without data.pkl, or with several')

  def read(name):
    with _zip_errors():
      return archive.read(roots[0] + name)

  def storages(tensors):
    for key, tensor in tensors.items():
      if sizes.get(f'{roots[0]}data/{key}') != tensor.count * tensor.dtype.itemsize:
        raise ValueError(f'storage {describe(key)} is missing or not of {tensor.count} elements')
    return {key: _storage(read(f'data/{key}'), tensor) for key, tensor in tensors.items()}

  if roots[0] + 'byteorder' in sizes and read('byteorder') != b'little':
    raise ValueError('its numbers are not little-endian')
  return pickle_reader.parse(read('data.pkl'), _NAMES), storages


@contextlib.contextmanager
def _zip_errors():
  try:
    yield
  except Exception as e:  # zipfile raises all sorts of them
    raise ValueError(f'a broken zip file: {e}') from None


def _legacy(data):
  """Pickle of the older format, and the function {key: _Tensor} -> {key: storage}."""
  values, position = [], 0
  for _ in range(5):  # magic number, protocol, machine, tensors, keys of the storages in their order
    value, position = pickle_reader.parse_at(data, position, _NAMES)
    values.append(value)
    if values[0] != MAGIC or values[1:2] not in ([], [PROTOCOL]):
      raise ValueError('not a file of torch.save')
  _, _, machine, tree, keys = values
  if not isinstance(machine, dict) or machine.get('little_endian') is not True:
    raise ValueError('its numbers are not little-endian')

  def storages(tensors):
    if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys) or sorted(keys) != sorted(tensors):
      raise ValueError('its storages are not those of its tensors')
    arrays, at = {}, position
    for key in keys:
      tensor = tensors[key]
      end = at + 8 + tensor.count * tensor.dtype.itemsize
      if end > len(data) or int.from_bytes(data[at:at + 8], 'little') != tensor.count:
        raise ValueError(f'storage {describe(key)} is cut off or not of {tensor.count} elements')
      arrays[key], at = _storage(data, tensor, at + 8), end
    if at != len(data):
      raise ValueError(f'{len(data) - at} bytes follow its end')
    return arrays
  return tree, storages
