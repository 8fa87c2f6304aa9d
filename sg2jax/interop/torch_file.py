"""Files of PyTorch (.pt, .pth), without torch: the pickle is read by `pickle_reader`, never run.

Both formats of torch.save: the zip file of 1.6 and later, and the one before, a row of pickles
followed by the storages, also as written under Python 2. What makes a tensor is known by name;
anything else is refused, among it `torch.storage._load_from_bytes`, which hides a second file in a
pickle (see `network_file`, which reads that one as well).
"""

from collections.abc import Callable, Container
import contextlib
import dataclasses
import io
import math
import zipfile

import ml_dtypes
import numpy as np

from sg2jax.interop import pickle_reader, sniff
from sg2jax.interop.pickle_reader import Call, Global, describe

STORAGES = {  # of modules torch and torch.cuda
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
}
PROTOCOL = 1001  # of the older format
MAX_DIMS = 32
MAX_SIZE = 2**48  # of a storage, in elements; of a side, a stride, an offset
_DICT = Global('collections', 'OrderedDict')
_SIZE = Global('torch', 'Size')
_PARAMETER = Global('torch._utils', '_rebuild_parameter')
_TENSORS = {  # with the number of arguments
  Global('torch._utils', '_rebuild_tensor'): (4,),  # until torch 0.3
  Global('torch._utils', '_rebuild_tensor_v2'): (6, 7),
}
NAMES = {
  _DICT,
  _SIZE,
  _PARAMETER,
  *_TENSORS,
  *(Global(module, name) for module in ('torch', 'torch.cuda') for name in STORAGES),
}


@dataclasses.dataclass(frozen=True)
class Storage:
  """Memory that tensors share, as a file's pickle refers to it; `size` in elements."""

  key: str
  dtype: np.dtype
  size: int

  @property
  def nbytes(self) -> int:
    """Its size in bytes."""
    return self.size * self.dtype.itemsize


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
  tree, load_storage = contents(data)
  nodes = entries(tree)
  if list(nodes) == ['state_dict']:
    nodes = entries(nodes['state_dict'])
  return {name: tensor(node, name, load_storage) for name, node in nodes.items()}


def contents(
  data: bytes, names: Container[Global] = NAMES
) -> tuple[object, Callable[[Storage], np.ndarray]]:
  """(what a file's pickle holds, a function that gives the elements of a Storage in it).

  Raises:
    ValueError: malformed, or a name that isn't in `names`; that function: as well.
  """
  return _zip(data, names) if data.startswith(b'PK\x03\x04') else _legacy(data, names)


def entries(node: object, kinds: Container[Global] = (_DICT,)) -> dict[str, object]:
  """The entries of a dict, or of what is made as an OrderedDict is (`kinds`), all named by text.

  Raises:
    ValueError: something else; a key that isn't text or occurs twice.
  """
  pairs = _pairs(node, kinds)
  found = {name: value for name, value in pairs if isinstance(name, str)}
  if len(found) < len(pairs):
    raise ValueError('its names are not text, or one occurs twice')
  return found


def _pairs(node, kinds):
  if isinstance(node, dict):
    return node.items()
  if isinstance(node, Call) and node.function in kinds and not node.items and not node.kwargs:
    if not node.args:
      return node.pairs
    if len(node.args) == 1 and isinstance(node.args[0], list) and not node.pairs:  # of Python 2
      if all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in node.args[0]):
        return node.args[0]
  raise ValueError(f'holds {describe(node)} where a state dict should be')


def tensor(node: object, name: str, load_storage: Callable[[object], np.ndarray]) -> np.ndarray:
  """The array, read-only, that the node of a tensor or parameter stands for.

  Args:
    node: part of a tree of `contents`.
    name: what messages call it.
    load_storage: gives the elements of what stands for a storage.

  Raises:
    ValueError: not exactly a tensor, or not within its storage.
  """
  label = describe(name)
  if isinstance(node, Call) and node.function == _PARAMETER and node.state is None:
    if len(node.args) == 3:
      node = node.args[0]
  if not isinstance(node, Call) or node.state is not None:
    raise ValueError(f'{label} is {describe(node)}, which is no tensor')
  if len(node.args) not in _TENSORS.get(node.function, ()):
    raise ValueError(f'{label} is {describe(node)}, which is no tensor')
  storage_node, offset, shape, strides = node.args[:4]
  storage = load_storage(storage_node)
  shape = _unwrapped_size(shape)
  strides = _unwrapped_size(strides)
  if not is_shape(shape) or not is_shape(strides) or not is_shape((offset,)):
    raise ValueError(f'{label} has an impossible shape, stride or offset')
  if len(shape) != len(strides):
    raise ValueError(f'{label} has an impossible shape, stride or offset')
  size = math.prod(shape)
  last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
  # `size`, too: strides of 0 would make a large array of little.
  if size > storage.size or (size and last >= storage.size):
    raise ValueError(f'{label} reaches beyond its storage of {storage.size} elements')
  # Before strides: of an empty array they may point anywhere.
  if not size:
    return np.zeros(shape, storage.dtype)
  strides = [stride * storage.itemsize for stride in strides]
  return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)


def _unwrapped_size(node):
  """The tuple in a torch.Size; anything else as it is."""
  if isinstance(node, Call) and node.function == _SIZE and len(node.args) == 1:
    return node.args[0]
  return node


def is_shape(node: object) -> bool:
  """Whether a node is a tuple of up to MAX_DIMS ints from 0 to MAX_SIZE, no bools."""
  return (
    isinstance(node, tuple)
    and len(node) <= MAX_DIMS
    and all(type(n) is int and 0 <= n < MAX_SIZE for n in node)
  )


def numbers(data: bytes, dtype: np.dtype, size: int, start: int = 0) -> np.ndarray:
  """[size] numbers of `data`, read-only. Raises ValueError for booleans other than 0 and 1."""
  if dtype == np.bool_ and np.frombuffer(data, np.uint8, size, start).max(initial=0) > 1:
    raise ValueError('booleans other than 0 and 1')
  return np.frombuffer(data, dtype, size, start)


class _Storages(dict):
  """{key: Storage} of those that a file's pickle refers to."""

  def persistent_load(self, identity):
    """The Storage that a persistent id says; all that say the same key must agree."""
    match identity:
      case ['storage', Global(name=kind), str(key), _, int(size), *rest] if (
        kind in STORAGES and 0 <= size < MAX_SIZE and rest in ([], [None])
      ):
        storage = Storage(key, np.dtype(STORAGES[kind]), size)
      case _:
        what = identity[1] if isinstance(identity, tuple) and len(identity) > 1 else identity
        raise ValueError(f'a storage of an unknown kind: {describe(what)}')
    if self.setdefault(key, storage) != storage:
      raise ValueError(f'a tensor disagrees with another about storage {describe(key)}')
    return storage


def check_storage(node: object) -> Storage:
  """The node, if it is a Storage. Raises ValueError."""
  if not isinstance(node, Storage):
    raise ValueError(f'a storage of an unknown kind: {describe(node)}')
  return node


# ---- the zip format


def _zip(data, names):
  with _zip_errors():
    # not cp437, which Python would have to import
    archive = zipfile.ZipFile(io.BytesIO(data), metadata_encoding='latin-1')
  parts = archive.infolist()
  sizes = {part.filename: part.file_size for part in parts}
  roots = [name.removesuffix('data.pkl') for name in sizes if name.endswith('/data.pkl')]
  if not roots:
    raise ValueError(
      'a zip archive without data.pkl, so not of torch.save: unpack it and name the file in it, '
      f'or {sniff.AGAIN}'
    )
  # So that nothing unpacks to more than the file, and readers agree on what a name stands for.
  if (
    len(sizes) < len(parts)
    or sum(sizes.values()) > len(data)
    or any(part.compress_type != zipfile.ZIP_STORED or part.flag_bits & 1 for part in parts)
  ):
    raise ValueError(
      'its parts are compressed, encrypted, doubled or overlapping, as torch.save never makes them'
    )
  if len(roots) > 1:
    raise ValueError('a zip file with several data.pkl')

  def read(name):
    with _zip_errors():
      return archive.read(roots[0] + name)

  # One array for each storage, so that tensors that share memory there share it here.
  arrays = {}

  def load_storage(node):
    storage = check_storage(node)
    if storage.key not in arrays:
      part = f'data/{storage.key}'
      if sizes.get(roots[0] + part) != storage.nbytes:
        raise ValueError(
          f'storage {describe(storage.key)} is missing or not of {storage.size} elements'
        )
      arrays[storage.key] = numbers(read(part), storage.dtype, storage.size)
    return arrays[storage.key]

  if f'{roots[0]}byteorder' in sizes and read('byteorder') != b'little':
    raise ValueError('its numbers are not little-endian')
  tree = pickle_reader.parse(read('data.pkl'), names, _Storages().persistent_load)
  return tree, load_storage


@contextlib.contextmanager
def _zip_errors():
  try:
    yield
  except Exception as e:  # zipfile raises all sorts of them
    raise ValueError(f'a broken zip file: {e}; {sniff.AGAIN}') from None


# ---- the format before


def _legacy(data, names):
  storages = _Storages()
  position = 0

  def next_pickle():
    nonlocal position
    value, position = pickle_reader.parse_at(data, position, names, storages.persistent_load)
    return value

  # Magic number, protocol, machine, tensors, keys of the storages.
  if next_pickle() != sniff.TORCH_MAGIC or next_pickle() != PROTOCOL:
    raise ValueError('not a file of torch.save')
  machine = next_pickle()
  if not isinstance(machine, dict) or machine.get('little_endian') is not True:
    raise ValueError('its numbers are not little-endian')
  tree = next_pickle()
  keys = next_pickle()
  if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
    raise ValueError('the keys of its storages are not text')
  # Else a part of the file would be skipped, or a tensor be without memory.
  if sorted(keys) != sorted(storages):
    raise ValueError('its storages are not those of its tensors')

  # The storages follow in the order of their keys, each after its size.
  arrays = {}
  for key in keys:
    storage = storages[key]
    start = position + 8
    if int.from_bytes(data[position:start], 'little') != storage.size:
      raise ValueError(f'storage {describe(key)} is cut off or not of {storage.size} elements')
    position = start + storage.nbytes
    if position > len(data):
      raise ValueError(f'storage {describe(key)} is cut off or not of {storage.size} elements')
    arrays[key] = numbers(data, storage.dtype, storage.size, start)
  if position != len(data):
    raise ValueError(f'{len(data) - position} bytes follow its end')
  return tree, lambda node: arrays[check_storage(node).key]
