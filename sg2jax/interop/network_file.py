"""Networks in the files of NVIDIA's programs and of rosinality's: read as data, never run.

They are the pickles of stylegan2 and stylegan2-ada (TensorFlow), of stylegan2-ada-pytorch and
stylegan3, and the .pt files of rosinality's stylegan2-pytorch. What such a file may name is a
closed set, and each name is understood in the one shape that those programs write. The source code
that a pickle brings along (`module_src`, `build_module_src`) is left alone.
"""

from typing import NamedTuple

from sg2jax.interop import numpy_pickle, pickle_reader, sniff, torch_file
from sg2jax.interop.pickle_reader import Call, Global, describe, is_call, need

_NETWORK = Global('dnnlib.tflib.network', 'Network')
_MODULE = {Global('torch_utils.persistence', '_reconstruct_persistent_obj')}
_HIDDEN_FILE = {Global('torch.storage', '_load_from_bytes')}
_DICTS = {Global('collections', 'OrderedDict'), Global('dnnlib.util', 'EasyDict')}
# What modules hold besides, and nobody looks at. The name of a memory format depends on what was
# imported when it was written; `__builtin__` is of protocol 2.
_UNREAD = {
  *(Global(module, 'set') for module in ('builtins', '__builtin__')),
  *(Global('torch', name) for name in ('float16', 'float32', 'device')),
  *(Global('torch', name) for name in ('channels_last', 'contiguous_format')),
  *(Global('torch._utils', f'torch.{name}') for name in ('channels_last', 'contiguous_format')),
}
_COMMON_NAMES = numpy_pickle.NAMES | torch_file.NAMES
_PICKLE_NAMES = _COMMON_NAMES | {_NETWORK} | _MODULE | _HIDDEN_FILE | _DICTS | _UNREAD
_ROSINALITY_NAMES = _COMMON_NAMES | {
  Global('argparse', 'Namespace'),
  Global('torch.torch_version', 'TorchVersion'),
}


class Net(NamedTuple):
  """A network in a file.

  Attributes:
    format: 'tensorflow', 'pytorch' (stylegan2-ada-pytorch, stylegan3) or 'rosinality'.
    kind: the function that builds it (tensorflow; of a generator the synthesis network's), its
      class (pytorch), or ''.
    kwargs: what it and its parts were made with, of None, bool, int, float, str, list, dict;
      under 'args' arguments without names, if there are any.
    arrays: {name: array}, read-only, in the file's dtype and layout, under the names of the program
      that wrote it.
    attributes: pytorch: those of each module that are None, text or numbers, by its path:
      {'synthesis.b4.conv1': {name: value}}.
  """

  format: str
  kind: str
  kwargs: dict
  arrays: dict
  attributes: dict = {}


def parse(data: bytes) -> dict[str, Net]:
  """The networks of a file: of 'G', 'D' and 'G_ema' those that it holds.

  Args:
    data: content of the file: a pickle of protocol 2 to 5 of (G, D, Gs) or of one network
      (tensorflow), of {'G', 'D', 'G_ema' or 'Gs', ...} (either), or a file of torch.save of {'g',
      'd', 'g_ema', 'latent_avg', ...} (rosinality; 'latent_avg' becomes an array of its
      generators).

  Raises:
    ValueError: malformed, or anything else in it; says what. Time and memory are in proportion to
      the file.
  """
  parser = _Parser(data)
  match sniff.kind(data):
    case 'torch':
      nets = parser.rosinality(data)
    case 'pickle':
      nets = parser.nvidia(data)
    case _:
      raise ValueError(
        sniff.explain(data, 'neither a pickle of protocol 2 to 5 nor a file of torch.save')
      )
  need(nets, 'it holds no network')
  return nets


class _Parser:
  """Of one file."""

  def __init__(self, data):
    self.spend = pickle_reader.Budget(len(data)).spend
    self.storages = {}  # by id of the bytes that each was hidden in

  # ---- parts of all formats

  def entries(self, node):
    """{name: node} of a dict, OrderedDict or EasyDict."""
    found = torch_file.entries(node, _DICTS)
    self.spend(1 + len(found))
    return found

  def required(self, node, *names):
    """The entries `names` of a dict."""
    found = self.entries(node)
    missing = [name for name in names if name not in found]
    need(not missing, f'a network, or a part of one, lacks {", ".join(missing)}')
    return [found[name] for name in names]

  def add_array(self, arrays, name, array):
    self.spend(32 + len(name) + array.nbytes)
    need(name not in arrays, f'{describe(name)} occurs twice')
    arrays[name] = array

  def plain(self, node):
    """The value of an argument."""
    self.spend(32)
    if pickle_reader.is_scalar(node):
      self.spend(len(node) if isinstance(node, str) else 0)
      return node
    if isinstance(node, (list, tuple)):
      return [self.plain(part) for part in node]
    if isinstance(node, Call) and node.function in numpy_pickle.NAMES:
      array = numpy_pickle.array(node, 'an argument')
      self.spend(32 * array.size)
      return array.tolist()
    if isinstance(node, dict) or (isinstance(node, Call) and node.function in _DICTS):
      return self.plain_dict(node)
    raise ValueError(f'{describe(node)} is among the arguments of a network')

  def plain_dict(self, node):
    return {name: self.plain(part) for name, part in self.entries(node).items()}

  # ---- NVIDIA's

  def nvidia(self, data):
    """{'G', 'D', 'G_ema': Net} of a pickle."""
    tree = pickle_reader.parse(data, _PICKLE_NAMES)
    if _is_network(tree):
      net = self.network(tree)
      return {'D' if net.kind.startswith('D') else 'G_ema': net}
    if _is_sequence(tree, 3):
      nodes = dict(zip(('G', 'D', 'Gs'), tree))
    else:
      nodes = self.entries(tree)
    nets = {}
    for theirs, ours in (('G', 'G'), ('D', 'D'), ('Gs', 'G_ema'), ('G_ema', 'G_ema')):
      node = nodes.get(theirs)
      if node is not None:
        nets[ours] = self.network(node) if _is_network(node) else self.module(node)
    return nets

  def network(self, node):
    """Net of a Network of dnnlib (TensorFlow)."""
    is_network = is_call(node, {_NETWORK}, stateful=True) and not node.args
    need(is_network, f'holds {describe(node)} where a network should be')
    version, kind, kwargs, variables = self.required(
      node.state, 'version', 'build_func_name', 'static_kwargs', 'variables'
    )
    # Of all of these what is read here is alike.
    need(version in (2, 3, 4, 5), f'a network of version {describe(version)}; known are 2 to 5')
    need(isinstance(kind, str), f'build_func_name is {describe(kind)}, which is no text')
    kwargs = self.plain_dict(kwargs)
    arrays = {}
    if not isinstance(variables, (list, tuple)):
      variables = self.entries(variables).items()
    for variable in variables:
      is_variable = _is_sequence(variable, 2) and isinstance(variable[0], str)
      need(is_variable, f'holds {describe(variable)} where a variable should be')
      name, value = variable
      self.add_array(arrays, _without_g(name), numpy_pickle.array(value, name))

    # Parts of a generator are networks of their own; from here on it is as if it had no parts.
    components = self.entries(node.state).get('components')
    parts = {} if components is None else self.entries(components)
    for part, node in parts.items():
      net = self.network(node)
      for name, array in net.arrays.items():
        self.add_array(arrays, _without_g(f'{part}/{name}'), array)
      kwargs |= net.kwargs  # these are what runs
      if part.removeprefix('G_') == 'synthesis':
        kind = net.kind
    return Net('tensorflow', kind, kwargs, arrays)

  def module(self, node):
    """Net of a persistent module (PyTorch)."""
    arrays = {}
    attributes = {}
    kind, state = self.add_module(node, '', arrays, attributes)
    kwargs = self.plain_dict(state.get('_init_kwargs', {}))
    if args := state.get('_init_args'):
      kwargs['args'] = self.plain(args)
    return Net('pytorch', kind, kwargs, arrays, attributes)

  def add_module(self, node, prefix, arrays, attributes):
    """Puts what is in a module, and in those within, into `arrays` and `attributes`.

    Returns:
      (class name, {name: node} of all that it holds).
    """
    where = prefix.removesuffix('.')
    is_module = is_call(node, _MODULE) and len(node.args) == 1
    need(is_module, f'{describe(where)} is {describe(node)}, which is no module')
    what, kind, state = self.required(node.args[0], 'type', 'class_name', 'state')
    is_class = what == 'class' and isinstance(kind, str)
    need(is_class, f'{describe(where)} is {describe(what)} {describe(kind)}, which is no class')
    state = self.entries(state)
    groups = self.required(state, '_parameters', '_buffers', '_modules')
    parameters, buffers, modules = map(self.entries, groups)
    attributes[where] = {
      name: self.plain(value)
      for name, value in state.items()
      if not name.startswith('_') and pickle_reader.is_scalar(value)
    }
    for name, value in (*parameters.items(), *buffers.items()):
      if value is not None:
        array = torch_file.tensor(value, prefix + name, self.hidden_storage)
        self.add_array(arrays, prefix + name, array)
    for name, value in modules.items():
      if value is not None:
        self.spend(len(prefix) + len(name))
        self.add_module(value, f'{prefix}{name}.', arrays, attributes)
    return kind, state

  def hidden_storage(self, node):
    """The elements of a storage, which is a file of torch.save by itself."""
    is_file = is_call(node, _HIDDEN_FILE) and len(node.args) == 1
    need(is_file, f'a storage of an unknown kind: {describe(node)}')
    content = node.args[0]
    # By id: the pickle's memo makes tensors share the bytes. The tree keeps them alive.
    if id(content) not in self.storages:
      tree, load_storage = torch_file.contents(numpy_pickle.to_bytes(content))
      self.storages[id(content)] = load_storage(tree)
    return self.storages[id(content)]

  # ---- rosinality's

  def rosinality(self, data):
    """Nets of a training program's file; the rest of it (optimizers, arguments) is left alone."""
    # Storages are read when a tensor asks: the optimizers' are most of the file.
    tree, load_storage = torch_file.contents(data, _ROSINALITY_NAMES)
    nodes = self.entries(tree)
    nets = {}
    for theirs, ours in (('g', 'G'), ('d', 'D'), ('g_ema', 'G_ema')):
      if nodes.get(theirs) is None:
        continue
      tensors = [*self.entries(nodes[theirs]).items()]
      if ours != 'D' and nodes.get('latent_avg') is not None:
        tensors.append(('latent_avg', nodes['latent_avg']))
      arrays = {}
      for name, node in tensors:
        self.add_array(arrays, name, torch_file.tensor(node, name, load_storage))
      nets[ours] = Net('rosinality', '', {}, arrays)
    return nets


def _is_network(node):
  return isinstance(node, Call) and node.function == _NETWORK


def _is_sequence(node, length):
  return isinstance(node, (tuple, list)) and len(node) == length


def _without_g(name):
  """A variable's name, of parts named as the generator's components are."""
  return name.removeprefix('G_') if name.startswith(('G_mapping/', 'G_synthesis/')) else name
