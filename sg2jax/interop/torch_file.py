"""Files of PyTorch (.pt, .pth), without torch: the pickle is read by `pickle_reader`, never run.

Both formats of torch.save: the zip file of 1.6 and later, and the one before, a row of pickles
followed by the storages, also as written under Python 2. What makes a tensor is known by name;
anything else is refused, among it `torch.storage._load_from_bytes`, which hides a second file in a
pickle (see `network_file`, which reads that one as well).
"""

from collections.abc import Callable, Container
import contextlib
import io
import math
from typing import NamedTuple
import zipfile

import ml_dtypes
import numpy as np

from sg2jax.interop import foreign, pickle_reader
from sg2jax.interop.pickle_reader import Call, Global, Persistent, describe

STORAGES = {
  'FloatStorage': np.float32,
  'DoubleStorage': np.float64,
  'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ShortStorage': np.int16,
  'CharStorage': np.int8,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
}  # of modules torch and torch.cuda
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the older format
MAX_DIMS = 32
_DICT = Global('collections', 'OrderedDict')
_SIZE = Global('torch', 'Size')
_PARAMETER = Global('torch._utils', '_rebuild_parameter')
# number of arguments; the older one until torch 0.3
_TENSORS = {
  Global('torch._utils', '_rebuild_tensor'): (4,),
  Global('torch._utils', '_rebuild_tensor_v2'): (6, 7),
}
NAMES = {
  _DICT,
  _SIZE,
  _PARAMETER,
  *_TENSORS,
  *(Global(module, name) for module in ('torch', 'torch.cuda') for name in STORAGES),
}


def parse(data: bytes) -> dict[str, np.ndarray]:
  """The tensors of a state dict, in its order.

  Args:
    data: content of the file: {name: tensor or parameter}, or {'state_dict': that} and nothing
    else.

  Returns:
    {name: array}, read-only, in the dtype of the file (bfloat16 as ml_dtypes.bfloat16). Tensors
    that share memory in the file share it here.

  Raises:
    ValueError: malformed, or anything else in it; says what.
  """
  tree, load = contents(data)
  found = entries(tree)
  if list(found) == ['state_dict']:
    found = entries(found['state_dict'])
  return {name: tensor(node, name, load) for name, node in found.items()}


def is_file(data: bytes) -> bool:
  """Whether a file looks like one of torch.save."""
  return data.startswith(b'PK\x03\x04') or MAGIC.to_bytes(10, 'little') in data[:64]


def contents(data: bytes, names: Container[Global] = NAMES) -> tuple[object, Callable]:
  """What a file holds, as `pickle_reader.parse` has it, and the function that gives a storage's
  elements for its node.

  Raises:
    ValueError: malformed, or a name that isn't in `names`; that function: as well.
  """
  return (_zip if data.startswith(b'PK\x03\x04') else _legacy)(data, names)


def entries(node, kinds: Container[Global] = (_DICT,)) -> dict[str, object]:
  """The entries of a node that stands for a dict, or what is made as an OrderedDict is (`kinds`),
  with names as keys.

  Raises:
    ValueError: something else; a key that isn't text or occurs twice.
  """
  pairs = _pairs(node, kinds)
  if not all(isinstance(name, str) for name, _ in pairs) or len({name for name, _ in pairs}) < len(
    pairs
  ):
    raise ValueError('its names are not text, or one occurs twice')
  return dict(pairs)


def _pairs(node, kinds):
  """Key and value pairs."""
  if isinstance(node, dict):
    return node.items()
  if isinstance(node, Call) and node.function in kinds and not node.items and not node.kwargs:
    if not node.args:
      return node.pairs
    if len(node.args) == 1 and isinstance(node.args[0], list) and not node.pairs:  # of Python 2
      if all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in node.args[0]):
        return node.args[0]
  raise ValueError(f'holds {describe(node)} where a state dict should be')


def tensor(node, name: str, load: Callable) -> np.ndarray:
  """The array, read-only, that the node of a tensor or parameter stands for; `load` is that of
  `contents`.

  Raises:
    ValueError: not exactly a tensor, or not within its storage; names it by `name`.
  """
  if (
    isinstance(node, Call)
    and node.function == _PARAMETER
    and len(node.args) == 3
    and node.state is None
  ):
    node = node.args[0]
  if (
    not isinstance(node, Call)
    or node.state is not None
    or len(node.args) not in _TENSORS.get(node.function, ())
  ):
    raise ValueError(f'{describe(name)} is {describe(node)}, which is no tensor')
  held, offset, shape, stride = node.args[:4]
  shape, stride = (
    node.args[0]
    if isinstance(node, Call) and node.function == _SIZE and len(node.args) == 1
    else node
    for node in (shape, stride)
  )
  storage = load(held)
  sizes = (
    isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= MAX_DIMS
  )
  if not sizes or not all(type(n) is int and 0 <= n < 2**48 for n in (offset, *shape, *stride)):
    raise ValueError(f'{describe(name)} has an impossible shape, stride or offset')
  count, last = math.prod(shape), offset + sum((n - 1) * s for n, s in zip(shape, stride))
  if count > storage.size or (count and last >= storage.size):
    raise ValueError(f'{describe(name)} reaches beyond its storage of {storage.size} elements')
  if not count:
    return np.zeros(shape, storage.dtype)
  stride = [s * storage.itemsize for s in stride]
  return np.lib.stride_tricks.as_strided(storage[offset:], shape, stride, writeable=False)


def elements(data: bytes, dtype: np.dtype, count: int, start: int = 0) -> np.ndarray:
  """[count] numbers of `data`, read-only. Raises ValueError for booleans other than 0 and 1."""
  if dtype == np.bool_ and np.frombuffer(data, np.uint8, count, start).max(initial=0) > 1:
    raise ValueError('booleans other than 0 and 1')
  return np.frombuffer(data, dtype, count, start)


class _Storage(NamedTuple):
  """What the node of a storage says of it."""

  key: str
  dtype: np.dtype
  count: int


def _declared(node, known):
  """The _Storage of a node; `known` collects them by key."""
  what = node.id if isinstance(node, Persistent) else node
  if not (
    isinstance(what, tuple)
    and len(what) in (5, 6)
    and what[0] == 'storage'
    and what[5:] in ((), (None,))
    and isinstance(what[1], Global)
    and what[1].name in STORAGES
    and isinstance(what[2], str)
    and type(what[4]) is int
    and 0 <= what[4] < 2**48
  ):
    inner = what[1] if isinstance(what, tuple) and len(what) > 1 else what
    raise ValueError(f'a storage of an unknown kind: {describe(inner)}')
  storage = _Storage(what[2], np.dtype(STORAGES[what[1].name]), what[4])
  if known.setdefault(storage.key, storage) != storage:
    raise ValueError(f'a tensor disagrees with another about storage {describe(storage.key)}')
  return storage


def _zip(data, names):
  """`contents` of the zip format."""
  with _zip_errors():
    # not cp437, which Python would have to import
    archive = zipfile.ZipFile(io.BytesIO(data), metadata_encoding='latin-1')
  parts = archive.infolist()
  sizes = {part.filename: part.file_size for part in parts}
  roots = [name[: -len('data.pkl')] for name in sizes if name.endswith('/data.pkl')]
  if not roots:
    raise ValueError(
      f'a zip archive without data.pkl, so not of torch.save ({foreign.some(sizes)}): unpack it '
      f'and name the file in it, or {foreign.AGAIN}'
    )
  if (
    len(sizes) < len(parts)
    or sum(sizes.values()) > len(data)
    or any(part.compress_type != zipfile.ZIP_STORED or part.flag_bits & 1 for part in parts)
  ):
    raise ValueError(
      'its parts are compressed, encrypted, doubled or overlapping, as torch.save never makes them'
    )
  if len(roots) != 1:
    raise ValueError('a zip file with several data.pkl')

  def read(name):
    with _zip_errors():
      return archive.read(roots[0] + name)

  known, loaded = {}, {}

  def load(node):
    storage = _declared(node, known)
    if sizes.get(f'{roots[0]}data/{storage.key}') != storage.count * storage.dtype.itemsize:
      raise ValueError(
        f'storage {describe(storage.key)} is missing or not of {storage.count} elements'
      )
    if storage.key not in loaded:
      loaded[storage.key] = elements(read(f'data/{storage.key}'), storage.dtype, storage.count)
    return loaded[storage.key]

  if roots[0] + 'byteorder' in sizes and read('byteorder') != b'little':
    raise ValueError('its numbers are not little-endian')
  return pickle_reader.parse(read('data.pkl'), names), load


@contextlib.contextmanager
def _zip_errors():
  try:
    yield
  except Exception as e:  # zipfile raises all sorts of them
    raise ValueError(f'a broken zip file: {e}; {foreign.AGAIN}') from None


def _legacy(data, names):
  """`contents` of the older format."""
  values, position = [], 0
  # magic number, protocol, machine, tensors, keys of the storages in their order
  for _ in range(5):
    value, position = pickle_reader.parse_at(data, position, names)
    values.append(value)
    if values[0] != MAGIC or values[1:2] not in ([], [PROTOCOL]):
      raise ValueError('not a file of torch.save')
  _, _, machine, tree, keys = values
  if not isinstance(machine, dict) or machine.get('little_endian') is not True:
    raise ValueError('its numbers are not little-endian')

  known, arrays = {}, {}
  for node in pickle_reader.nodes(tree):
    if isinstance(node, Persistent):
      _declared(node, known)
  if (
    not isinstance(keys, list)
    or not all(isinstance(k, str) for k in keys)
    or sorted(keys) != sorted(known)
  ):
    raise ValueError('its storages are not those of its tensors')
  for key in keys:
    storage = known[key]
    end = position + 8 + storage.count * storage.dtype.itemsize
    if end > len(data) or int.from_bytes(data[position : position + 8], 'little') != storage.count:
      raise ValueError(f'storage {describe(key)} is cut off or not of {storage.count} elements')
    arrays[key], position = elements(data, storage.dtype, storage.count, position + 8), end
  if position != len(data):
    raise ValueError(f'{len(data) - position} bytes follow its end')
  return tree, lambda node: arrays[_declared(node, known).key]
