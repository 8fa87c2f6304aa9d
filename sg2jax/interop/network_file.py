"""Networks in the pickles of stylegan2 and stylegan2-ada (TensorFlow), stylegan2-ada-pytorch and
stylegan3, and in the .pt files of rosinality's stylegan2-pytorch: read as data by `pickle_reader`,
never run.

What such a file may name is a closed set, and each name is understood in the one shape that those
programs write. The source code that a pickle brings along (`module_src`, `build_module_src`) is
left alone.
"""

import math
from typing import NamedTuple

import numpy as np

from sg2jax.interop import foreign, pickle_reader, torch_file
from sg2jax.interop.pickle_reader import Call, Global, describe

_NETWORK = Global('dnnlib.tflib.network', 'Network')
_MODULE = Global('torch_utils.persistence', '_reconstruct_persistent_obj')
_HIDDEN = Global('torch.storage', '_load_from_bytes')
_DICTS = {Global('collections', 'OrderedDict'), Global('dnnlib.util', 'EasyDict')}
# the second is its name in protocol 2
_SETS = {Global(module, 'set') for module in ('builtins', '__builtin__')}
_BYTES = {Global(module, 'bytes') for module in ('builtins', '__builtin__')}
_ENCODE = {Global('_codecs', 'encode')}  # how protocol 2 holds bytes
_ARRAY, _DTYPE = Global('numpy', 'ndarray'), {Global('numpy', 'dtype')}
_RECONSTRUCT, _SCALAR, _BUFFER = (  # before and since numpy 2
  {Global(f'numpy.{core}.{name.split()[0]}', name.split()[1]) for core in ('core', '_core')}
  for name in ('multiarray _reconstruct', 'multiarray scalar', 'numeric _frombuffer')
)
_NUMPY = {_ARRAY, *_DTYPE, *_RECONSTRUCT, *_SCALAR, *_BUFFER, *_ENCODE, *_BYTES}
# what modules hold besides, and nobody looks at; a format's name depends on what was imported when
# it was written
_UNREAD = {
  *(
    Global('torch', name)
    for name in ('float16', 'float32', 'device', 'channels_last', 'contiguous_format')
  ),
  *(Global('torch._utils', f'torch.{name}') for name in ('channels_last', 'contiguous_format')),
}
_PICKLE = {_NETWORK, _MODULE, _HIDDEN, *_DICTS, *_SETS, *_NUMPY, *_UNREAD, *torch_file.NAMES}
_TORCH = {
  Global('argparse', 'Namespace'),
  Global('torch.torch_version', 'TorchVersion'),
  *_NUMPY,
  *torch_file.NAMES,
}
_NUMBERS = ('f2', 'f4', 'f8', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'b1')


class Net(NamedTuple):
  """A network in a file.

  Attributes:
    format: 'tensorflow', 'pytorch' (stylegan2-ada-pytorch, stylegan3) or 'rosinality'.
    kind: the function that builds it (tensorflow; of a generator the synthesis network's), its
    class (pytorch), or ''.
    kwargs: what it was made with, of None, bool, int, float, str, list, dict; tensorflow: that of
    its parts under
      'components', if it has any; pytorch: arguments without names under 'args', if there are any,
      and under 'attributes' the plain ones of each module, {'synthesis.b4.conv1': {name: value}}.
    arrays: {name: array}, read-only, in the file's dtype and layout, under the names of the program
    that wrote it.
  """

  format: str
  kind: str
  kwargs: dict
  arrays: dict


def read(data: bytes) -> dict[str, Net]:
  """The networks of a file: of 'G', 'D' and 'G_ema' those that it holds.

  Args:
    data: content of the file: a pickle of protocol 2 to 5 of (G, D, Gs) or of one network
    (tensorflow), of {'G', 'D',
      'G_ema' or 'Gs', ...} (either), or a file of torch.save of {'g', 'd', 'g_ema', 'latent_avg',
      ...} (rosinality; 'latent_avg' becomes an array of its generators).

  Raises:
    ValueError: malformed, or anything else in it; says what. Time and memory are in proportion to
    the file.
  """
  file = _File(data)
  if torch_file.is_file(data):
    nets = file.rosinality(data)
  elif data[:1] == b'\x80':
    try:
      tree = pickle_reader.parse(data, _PICKLE)
    except ValueError as e:
      cut = data[-1:] != b'.'  # with which every pickle ends
      raise ValueError(
        f'{e}; it is cut off or damaged: {foreign.AGAIN}' if cut else str(e)
      ) from None
    if isinstance(tree, Call) and tree.function == _NETWORK:
      net = file.network(tree)
      nets = {'D' if net.kind.startswith('D') else 'G_ema': net}
    else:
      found = dict(zip(('G', 'D', 'Gs'), tree)) if _sized(tree, 3) else file.entries(tree)
      nets = {
        new: file.net(found[key])
        for key, new in (('G', 'G'), ('D', 'D'), ('Gs', 'G_ema'), ('G_ema', 'G_ema'))
        if found.get(key) is not None
      }
  else:
    raise ValueError(
      foreign.describe(data, 'neither a pickle of protocol 2 to 5 nor a file of torch.save')
    )
  if not nets:
    raise ValueError('it holds no network')
  return nets


def _is(node, functions, stateful=False):
  """Whether a node calls one of `functions`, with nothing added to what that makes."""
  return (
    isinstance(node, Call)
    and node.function in functions
    and not (node.kwargs or node.items or node.pairs)
    and (stateful or node.state is None)
  )


class _File:
  """One file: `left` is what may still be made of it, since small files can share parts so often
  that they become huge.
  """

  def __init__(self, data):
    self.left, self.storages = 4 * len(data) + 100_000, {}

  def spend(self, size):
    self.left -= size
    if self.left < 0:
      raise ValueError('its values are shared so often that they are far larger than the file')

  def entries(self, node):
    """{name: node} of a dict, OrderedDict or EasyDict."""
    found = torch_file.entries(node, _DICTS)
    self.spend(1 + len(found))
    return found

  def fields(self, node, *names):
    """The entries `names` of a dict."""
    found = self.entries(node)
    missing = [name for name in names if name not in found]
    if missing:
      raise ValueError(f'a network, or a part of one, lacks {", ".join(missing)}')
    return [found[name] for name in names]

  def add(self, arrays, name, array):
    """Puts a new array among others."""
    self.spend(32 + len(name) + array.nbytes)
    if name in arrays:
      raise ValueError(f'{describe(name)} occurs twice')
    arrays[name] = array

  def plain(self, node):
    """The value of an argument."""
    self.spend(32)
    if _simple(node):
      self.spend(len(node) if isinstance(node, str) else 0)
      return node
    if isinstance(node, (list, tuple)):
      return [self.plain(part) for part in node]
    if isinstance(node, Call) and node.function in _NUMPY:
      array = _array(node, 'an argument')
      self.spend(32 * array.size)
      return array.tolist()
    if isinstance(node, dict) or (isinstance(node, Call) and node.function in _DICTS):
      return self.named(node)
    raise ValueError(f'{describe(node)} is among the arguments of a network')

  def simple(self, node):
    """Whether a value is simple, or a list of such."""
    parts = node if isinstance(node, (list, tuple)) else [node]
    self.spend(len(parts))
    return all(map(_simple, parts))

  def named(self, node):
    """{name: value} of arguments."""
    return {name: self.plain(part) for name, part in self.entries(node).items()}

  def net(self, node):
    """Net of a Network or of a persistent module."""
    return (
      self.network(node)
      if isinstance(node, Call) and node.function == _NETWORK
      else self.module(node)
    )

  # TensorFlow

  def network(self, node):
    """Net of a Network of dnnlib."""
    if not _is(node, {_NETWORK}, stateful=True) or node.args:
      raise ValueError(f'holds {describe(node)} where a network should be')
    state = self.entries(node.state)
    version, kind, kwargs, variables = self.fields(
      state, 'version', 'build_func_name', 'static_kwargs', 'variables'
    )
    if version not in (2, 3, 4, 5):
      raise ValueError(f'a network of version {describe(version)}; known are 2 to 5')
    if not isinstance(kind, str):
      raise ValueError(f'a network whose build_func_name is {describe(kind)}, which is no text')
    parts = state.get('components')
    parts = (
      {}
      if parts is None
      else {name: self.network(part) for name, part in self.entries(parts).items()}
    )
    arrays, kwargs = {}, self.named(kwargs)
    for pair in (
      variables if isinstance(variables, (list, tuple)) else self.entries(variables).items()
    ):
      if not _sized(pair, 2) or not isinstance(pair[0], str):
        raise ValueError(f'holds {describe(pair)} where a variable should be')
      self.add(arrays, _short(pair[0]), _array(pair[1], pair[0]))
    for part, net in parts.items():
      for name, array in net.arrays.items():
        self.add(arrays, _short(f'{part}/{name}'), array)
    if parts:
      parts = {name.removeprefix('G_'): net for name, net in parts.items()}
      kind = parts['synthesis'].kind if 'synthesis' in parts else kind
      kwargs['components'] = {name: net.kwargs for name, net in parts.items()}
    return Net('tensorflow', kind, kwargs, arrays)

  # PyTorch

  def module(self, node):
    """Net of a persistent module."""
    arrays, attributes = {}, {}
    kind, state = self.tensors(node, '', arrays, attributes)
    args, kwargs = state.get('_init_args', ()), self.named(state.get('_init_kwargs', {}))
    kwargs |= {'args': self.plain(args)} if args else {}
    return Net('pytorch', kind, kwargs | {'attributes': attributes}, arrays)

  def tensors(self, node, prefix, arrays, attributes):
    """Puts what is in a module, and in those within, into `arrays` and `attributes`; (class name,
    {name: node}).
    """
    where = prefix.removesuffix('.')
    if not _is(node, {_MODULE}) or len(node.args) != 1:
      raise ValueError(f'{describe(where)} is {describe(node)}, which is no module')
    what, kind, state = self.fields(node.args[0], 'type', 'class_name', 'state')
    if what != 'class' or not isinstance(kind, str):
      raise ValueError(f'{describe(where)} is {describe(what)} {describe(kind)}, which is no class')
    state = self.entries(state)
    parameters, buffers, modules = map(
      self.entries, self.fields(state, '_parameters', '_buffers', '_modules')
    )
    attributes[where] = {
      name: self.plain(value)
      for name, value in state.items()
      if name[:1] != '_' and self.simple(value)
    }
    for name, value in (*parameters.items(), *buffers.items()):
      if value is not None:
        self.add(arrays, prefix + name, torch_file.tensor(value, prefix + name, self.storage))
    for name, value in modules.items():
      if value is not None:
        self.spend(len(prefix) + len(name))
        self.tensors(value, f'{prefix}{name}.', arrays, attributes)
    return kind, state

  def storage(self, node):
    """The elements of a storage, which is a file of torch.save by itself."""
    if not _is(node, {_HIDDEN}) or len(node.args) != 1:
      raise ValueError(f'a storage of an unknown kind: {describe(node)}')
    held = node.args[0]
    if id(held) not in self.storages:
      try:
        tree, load = torch_file.contents(_bytes(held))
        self.storages[id(held)] = load(tree)
      except ValueError as e:
        raise ValueError(f'the pickle in a tensor: {e}') from None
    return self.storages[id(held)]

  # rosinality

  def rosinality(self, data):
    """Nets of a training program's file; the rest of it (optimizers, arguments) is left alone."""
    tree, load = torch_file.contents(data, _TORCH)
    found, nets = self.entries(tree), {}
    for key, new in (('g', 'G'), ('d', 'D'), ('g_ema', 'G_ema')):
      if found.get(key) is not None:
        latent = (
          [('latent_avg', found['latent_avg'])]
          if key != 'd' and found.get('latent_avg') is not None
          else []
        )
        arrays = {}
        for name, node in (*self.entries(found[key]).items(), *latent):
          self.add(arrays, name, torch_file.tensor(node, name, load))
        nets[new] = Net('rosinality', '', {}, arrays)
    return nets


def _array(node, name):
  """The array that the node of a numpy array or number, or of a float, stands for."""
  axes, order = None, 'C'
  if isinstance(node, float):
    return np.broadcast_to(node, ())  # which makes it read-only
  if (
    _is(node, _RECONSTRUCT, stateful=True) and node.args[:1] == (_ARRAY,) and _sized(node.state, 5)
  ):
    _, shape, dtype, fortran, raw = node.state
    order = 'F' if fortran is True else 'C'
  elif _is(node, _BUFFER) and len(node.args) in (4, 5):
    raw, dtype, shape, order, axes = (*node.args, None)[:5]
  elif _is(node, _SCALAR) and len(node.args) == 2:
    (dtype, raw), shape = node.args, ()
  else:
    raise ValueError(f'{describe(name)} is {describe(node)}, which is no array of numbers')
  dtype, raw = _dtype(dtype, name), _bytes(raw)
  if (
    not isinstance(shape, tuple)
    or len(shape) > torch_file.MAX_DIMS
    or not all(type(n) is int and 0 <= n < 2**48 for n in shape)
    or math.prod(shape) * dtype.itemsize != len(raw)
  ):
    raise ValueError(f'{describe(name)} has an impossible shape, or not as many bytes as that')
  values = torch_file.elements(raw, dtype, math.prod(shape)) if raw else np.zeros(0, dtype)
  if (
    order == 'K'
    and _sized(axes, len(shape))
    and all(type(n) is int for n in axes)
    and sorted(axes) == [*range(len(shape))]
  ):
    return values.reshape(shape).transpose(axes)
  if order not in ('C', 'F'):
    raise ValueError(f'{describe(name)} is in the order {describe(order)}')
  return values.reshape(shape, order=order)


def _dtype(node, name):
  """The dtype of a node: little-endian numbers only."""
  if not _is(node, _DTYPE, stateful=True) or not node.args or node.args[0] not in _NUMBERS:
    what = node.args[0] if isinstance(node, Call) and node.args else node
    raise ValueError(f'{describe(name)} has the dtype {describe(what)}, which is refused')
  state = node.state
  if state is not None and not (
    isinstance(state, tuple)
    and state[1:2]
    and state[1] in ('<', '|', '=')
    and all(part is None for part in state[2:5])
  ):
    raise ValueError(
      f'{describe(name)} has numbers that are not little-endian, or a dtype with parts'
    )
  return np.dtype(node.args[0])


def _bytes(node):
  """The bytes that a node stands for."""
  if (
    _is(node, _ENCODE)
    and len(node.args) == 2
    and isinstance(node.args[0], str)
    and node.args[1] == 'latin1'
  ):
    return node.args[0].encode('latin-1')
  if _is(node, _BYTES) and not node.args:
    return b''
  if not isinstance(node, bytes):
    raise ValueError(f'holds {describe(node)} where bytes should be')
  return node


def _simple(node):
  return (
    node is None
    or isinstance(node, (float, str))
    or (isinstance(node, int) and -(2**63) <= node < 2**63)
  )


def _sized(node, size):
  return isinstance(node, (tuple, list)) and len(node) == size


def _short(name):
  """A variable's name, of parts named as the generator's components are."""
  return name.removeprefix('G_') if name.startswith(('G_mapping/', 'G_synthesis/')) else name
