"""Files of PyTorch (.pt, .pth), without torch: the pickle is read by `pickle_reader`, never run.

Both formats of torch.save: the zip file of 1.6 and later, and the one before, a row of pickles
followed by the storages, also as written under Python 2. What makes a tensor is known by name;
anything else is refused, among it `torch.storage._load_from_bytes`, which hides a second file in a
pickle (see `network_file`, which reads that one as well).

A TorchScript archive is a zip file whose pickle holds a tree of modules, objects of classes of
`__torch__`; its program, which makes most of it, is left alone.
"""

from collections.abc import Callable, Container, Iterator
import dataclasses
import functools
import io
import math
import re

import ml_dtypes
import numpy as np

from sg2jax.interop import pickle_reader, sniff, torch_zip
from sg2jax.interop.pickle_reader import Call, Global, describe, is_call, need

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
# Of all modules of a TorchScript archive; CLIP's largest has 5,000. Paths through shared modules
# can be 2^50.
MAX_ATTRIBUTES = 100_000
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


class _ModuleClasses:
  """A set of names: `others`, and the classes of TorchScript's modules, which no list can have."""

  # Made by the compiler of TorchScript from a module's path and class: `__torch__.torch.nn.modules.
  # container.___torch_mangle_12` `Sequential`.
  _PATH = re.compile(r'__torch__(\.[A-Za-z_]\w*)*', re.ASCII)
  _CLASS = re.compile(r'[A-Za-z_]\w*', re.ASCII)

  def __init__(self, others=frozenset()):
    self._others = others

  def __contains__(self, name):
    if name in self._others:
      return True
    return bool(self._PATH.fullmatch(name.module) and self._CLASS.fullmatch(name.name))


_MODULES = _ModuleClasses()


def parse(data: bytes) -> dict[str, np.ndarray]:
  """The tensors of a state dict, in its order; of a TorchScript archive its modules' state dict.

  Args:
    data: content of the file: {name: tensor or parameter}, or a module of TorchScript.

  Returns:
    {name: array}, read-only, in the dtype of the file (bfloat16 as ml_dtypes.bfloat16). Tensors
    that share memory in the file share it here.

  Raises:
    ValueError: malformed, or anything else in it; says what. Time and memory are in proportion to
      the file.
  """
  is_zip = data.startswith(torch_zip.SIGNATURE)
  tree, load_storage = contents(data, _ModuleClasses(NAMES) if is_zip else NAMES)
  spend = pickle_reader.Budget(len(data)).spend
  nodes = dict(_tensors(tree, spend)) if _is_module(tree) else entries(tree)
  arrays = {}
  for name, node in nodes.items():
    arrays[name] = tensor(node, name, load_storage)
    spend(32 + len(name) + arrays[name].nbytes)
  return arrays


def contents(
  data: bytes, names: Container[Global] = NAMES
) -> tuple[object, Callable[[Storage], np.ndarray]]:
  """(what a file's pickle holds, a function that gives the elements of a Storage in it).

  Raises:
    ValueError: malformed, or a name that isn't in `names`; that function: as well.
  """
  read_format = _zip if data.startswith(torch_zip.SIGNATURE) else _legacy
  tree, raw = read_format(data, names)

  @functools.cache  # tensors that share memory in the file share it here
  def elements(storage):
    content = raw(storage.key)
    is_whole = len(content) == storage.size * storage.dtype.itemsize
    need(is_whole, f'storage {describe(storage.key)} is not of {storage.size} elements')
    return numbers(content, storage.dtype)

  def load_storage(node):
    need(isinstance(node, Storage), f'a storage of an unknown kind: {describe(node)}')
    return elements(node)

  return tree, load_storage


def entries(node: object, kinds: Container[Global] = (_DICT,)) -> dict[str, object]:
  """The entries of a dict, or of what is made as an OrderedDict is (`kinds`), all named by text.

  Raises:
    ValueError: something else; a key that isn't text or occurs twice.
  """
  pairs = _pairs(node, kinds)
  found = {name: value for name, value in pairs if isinstance(name, str)}
  need(len(found) == len(pairs), 'its names are not text, or one occurs twice')
  return found


def _pairs(node, kinds):
  if isinstance(node, dict):
    return node.items()
  if isinstance(node, Call) and node.function in kinds and not node.items:
    if not node.args:
      return node.pairs
    if len(node.args) == 1 and isinstance(node.args[0], list) and not node.pairs:  # of Python 2
      if all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in node.args[0]):
        return node.args[0]
  raise ValueError(f'holds {describe(node)} where a state dict should be')


def _is_module(node):
  return isinstance(node, Call) and node.function in _MODULES


def _tensors(module: Call, spend: Callable[[int], None]) -> Iterator[tuple[str, object]]:
  """(name, node) of what the attributes of a module, and of those within, are but for scalars.

  The order is that of a state dict: a module's, then those of the modules within.

  Raises:
    ValueError: a module is made in another way than TorchScript does, or there are too many.
  """
  count = 0
  # Of those to come the last is the next. Shared modules come as often as they occur.
  waiting = [('', module)]
  while waiting:
    prefix, node = waiting.pop()
    label = describe(prefix.removesuffix('.'))
    is_plain = is_call(node, _MODULES, stateful=True) and not node.args
    need(is_plain, f'the module {label} is {describe(node)} with more than attributes')
    attributes = entries(node.state)
    count += len(attributes)
    need(count <= MAX_ATTRIBUTES, f'its modules have more than {MAX_ATTRIBUTES:,} attributes')
    within = []
    for name, value in attributes.items():
      # Then no two paths are alike.
      need(name and '.' not in name, f'the module {label} has an attribute {describe(name)}')
      spend(32 + len(prefix) + len(name))
      if _is_module(value):
        within.append((f'{prefix}{name}.', value))
      elif not pickle_reader.is_scalar(value):
        yield prefix + name, value
    waiting += reversed(within)


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
  if is_call(node, {_PARAMETER}) and len(node.args) == 3:
    node = node.args[0]
  is_tensor = is_call(node, _TENSORS) and len(node.args) in _TENSORS[node.function]
  need(is_tensor, f'{label} is {describe(node)}, which is no tensor')
  storage_node, offset, shape, strides = node.args[:4]
  storage = load_storage(storage_node)
  shape = _unwrapped_size(shape)
  strides = _unwrapped_size(strides)
  is_possible = all(map(is_shape, (shape, strides, (offset,)))) and len(shape) == len(strides)
  need(is_possible, f'{label} has an impossible shape, stride or offset')
  size = math.prod(shape)
  last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
  # `size`, too: strides of 0 would make a large array of little.
  is_within = size <= storage.size and (not size or last < storage.size)
  need(is_within, f'{label} reaches beyond its storage of {storage.size} elements')
  # Before strides: of an empty array they may point anywhere.
  if not size:
    return np.zeros(shape, storage.dtype)
  strides = [stride * storage.itemsize for stride in strides]
  return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)


def _unwrapped_size(node):
  """The tuple in a torch.Size; anything else as it is."""
  return node.args[0] if is_call(node, {_SIZE}) and len(node.args) == 1 else node


def is_shape(node: object) -> bool:
  """Whether a node is a tuple of up to MAX_DIMS ints from 0 to MAX_SIZE, no bools."""
  return (
    isinstance(node, tuple)
    and len(node) <= MAX_DIMS
    and all(type(n) is int and 0 <= n < MAX_SIZE for n in node)
  )


def numbers(data: bytes, dtype: np.dtype) -> np.ndarray:
  """[N] numbers of `data`, read-only. Raises ValueError for booleans other than 0 and 1."""
  if dtype == np.bool_ and np.frombuffer(data, np.uint8).max(initial=0) > 1:
    raise ValueError('booleans other than 0 and 1')
  return np.frombuffer(data, dtype)


class _Storages(dict):
  """{key: Storage} of those that a file's pickle refers to."""

  def persistent_load(self, identity):
    """The Storage that a persistent id says; all that say the same key must agree."""
    match identity:
      case ['storage', Global('torch' | 'torch.cuda', kind), str(key), _, int(size), *rest] if (
        kind in STORAGES and 0 <= size < MAX_SIZE and rest in ([], [None])
      ):
        storage = Storage(key, np.dtype(STORAGES[kind]), size)
      case _:
        what = identity[1] if isinstance(identity, tuple) and len(identity) > 1 else identity
        raise ValueError(f'a storage of an unknown kind: {describe(what)}')
    agrees = self.setdefault(key, storage) == storage
    need(agrees, f'a tensor disagrees with another about storage {describe(key)}')
    return storage


# ---- the two formats: (what the pickle holds, a function from a storage's key to its bytes)


def _zip(data, names):
  archive = torch_zip.Archive(data)
  if 'byteorder' in archive:
    need(archive.read('byteorder') == b'little', 'its numbers are not little-endian')
  tree = pickle_reader.parse(archive.read('data.pkl'), names, _Storages().persistent_load)
  # torch.save compresses nothing, TorchScript its program, which nobody opens.
  if not _is_module(tree):
    archive.check_all()
  return tree, lambda key: archive.read(f'data/{key}')


def _legacy(data, names):
  """Of before torch 1.6."""
  storages = _Storages()
  stream = io.BytesIO(data)
  next_pickle = functools.partial(pickle_reader.parse, stream, names, storages.persistent_load)

  # Magic number, protocol, machine, tensors, keys of the storages.
  is_known = next_pickle() == sniff.TORCH_MAGIC and next_pickle() == PROTOCOL
  need(is_known, 'not a file of torch.save')
  machine = next_pickle()
  is_little = isinstance(machine, dict) and machine.get('little_endian') is True
  need(is_little, 'its numbers are not little-endian')
  tree = next_pickle()
  keys = next_pickle()
  # Else a part of the file would be skipped, or a tensor be without memory.
  is_text = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
  need(is_text and sorted(keys) == sorted(storages), 'its storages are not those of its tensors')

  # The storages follow in the order of their keys, each after its size.
  contents = {}
  position = stream.tell()
  for key in keys:
    size = int.from_bytes(data[position : position + 8], 'little')
    end = position + 8 + size * storages[key].dtype.itemsize
    contents[key] = memoryview(data)[position + 8 : end]
    position = end
  need(position == len(data), 'it is cut off, or bytes follow its end')
  return tree, contents.get
