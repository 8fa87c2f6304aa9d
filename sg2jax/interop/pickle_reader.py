"""Pickles read as data: what one would import, call or set becomes a node that says so.

Protocols 2 to 5, and of 0 and 1 what Python 3 writes; without what needs the outside (extension
codes, out-of-band buffers) and what no file of a network has (calls with keywords). Stricter than
`pickle` where honest files don't notice: what became part of another value is finished, so nothing
changes behind a reader's back and no value contains itself; only names are called, not what a call
returned; dictionary keys are simple and occur once.
Memory and time are in proportion to the bytes read. A result is at most MAX_DEPTH deep, but parts
may be shared, so 2^MAX_DEPTH paths can lead through a small file: who walks one remembers where it
was.
"""

import codecs
from collections.abc import Callable, Container, Iterable
import dataclasses
import io
import pickletools

from sg2jax.interop import sniff

MAX_OPCODES = 500_000  # a state dict of a thousand tensors has 30,000
MAX_DEPTH = 100
MAX_INTEGER = 8192  # bits
MAX_NAME = 256  # characters of a module or of a class

# genops decodes text of protocol 0 by it. Found now, so that reading a file imports nothing.
codecs.lookup('raw-unicode-escape')


@dataclasses.dataclass(frozen=True)
class Global:
  """A name that `pickle` would import."""

  module: str
  name: str

  def __str__(self) -> str:
    return f'{self.module}.{self.name}'


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Call:
  """What `pickle` would make by calling `function(*args)`, or that class's __new__.

  Attributes:
    function: Global.
    args: tuple.
    state: what __setstate__ or __dict__ would then get, or None.
    items: what append (of sets: add) would get, in order.
    pairs: (key, value) that item assignment would get, in order.
  """

  function: Global
  args: tuple
  state: object = None
  items: list = dataclasses.field(default_factory=list)
  pairs: list = dataclasses.field(default_factory=list)


# Hashes of text are seeded anew in each process and those of small numbers hardly collide: no file
# makes a dict slow.
KEYS = (str, bytes, int, float, Global, type(None))


def parse(
  data: bytes | io.BytesIO,
  names: Container[Global] | None = None,
  persistent_load: Callable[[object], object] | None = None,
) -> object:
  """The value of a pickle, made of plain Python values, Global and Call.

  The plain ones: None, bool, int, float, str, bytes (also for bytearray), list, tuple, dict. Text
  of Python 2 becomes str as latin-1, which loses nothing.

  Args:
    data: the pickle, and nothing after it; or a stream that has it next.
    names: all that may be named; None: anything.
    persistent_load: what stands for an object outside of the pickle, of the id that its writer
      knows it by. None: there may be none.

  Raises:
    ValueError: malformed, too long, too deep or not allowed (see the module); names the position.
  """
  stream = data if isinstance(data, io.BytesIO) else io.BytesIO(data)  # shares its memory
  try:
    value = _StackMachine(names, persistent_load).run(pickletools.genops(stream))
  # A Warning: genops undoes escapes in names, and `python -W error` makes an unknown one an error.
  except (ValueError, Warning) as e:
    # Errors of decoding quote all of the text.
    reason = str(e) if type(e) is ValueError else 'text that cannot be decoded'
    where = f'byte {stream.tell()} of the pickle'
    hint = '' if stream.read(1) else f'; it may be cut off: {sniff.AGAIN}'
    raise ValueError(f'{where}: {reason[:300]}{hint}') from None
  need(stream is data or not stream.read(1), 'bytes follow the end of the pickle')
  return value


def need(is_right: bool, text: str) -> None:
  """Raises ValueError with the text unless what was looked at is right."""
  if not is_right:
    raise ValueError(text)


def describe(value: object) -> str:
  """A short name of any value from `parse`, in printable ASCII, for messages."""
  if isinstance(value, Global):
    return ascii(str(value))[1:-1]
  if isinstance(value, Call):
    return f'{describe(value.function)}(...)'
  if isinstance(value, (str, bytes)):
    return ascii(value[:60])
  if value is None or isinstance(value, float) or is_int64(value):
    return str(value)
  return type(value).__name__


def is_int64(value: object) -> bool:
  """Whether a value is an int (or bool) that 64 bits hold: larger ones are slow to print."""
  return isinstance(value, int) and -(2**63) <= value < 2**63


def is_scalar(value: object) -> bool:
  """Whether a value is None, text, a bool, a float or an int that 64 bits hold."""
  return value is None or isinstance(value, (float, str)) or is_int64(value)


def is_call(node: object, functions: Container[Global], stateful: bool = False) -> bool:
  """Whether a node calls one of `functions`, and nothing is added to what that makes.

  Args:
    node: a value from `parse`.
    functions: names.
    stateful: whether it may get a state.
  """
  return (
    isinstance(node, Call)
    and node.function in functions
    and not (node.items or node.pairs)
    and (stateful or node.state is None)
  )


class Budget:
  """Bytes that may still be made of a file.

  Small files can share parts so often that they become huge.
  """

  def __init__(self, size: int):
    """size: of the file, in bytes."""
    # Honest files need about 1, for arrays, and some 100 bytes for each name and argument.
    self.left = 4 * size + 100_000

  def spend(self, size: int) -> None:
    """Raises ValueError if that is more than there is."""
    self.left -= size
    need(self.left >= 0, 'its values are shared so often that they are far larger than the file')


# Opcodes that push their argument; of the others `_StackMachine.execute` knows the allowed ones.
_LITERALS = {
  *('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT'),
  *('UNICODE', 'SHORT_BINUNICODE', 'BINUNICODE', 'BINUNICODE8', 'SHORT_BINSTRING', 'BINSTRING'),
  *('SHORT_BINBYTES', 'BINBYTES', 'BINBYTES8', 'BYTEARRAY8'),
}
_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}


class _StackMachine:
  """What a pickle is a program for, with nodes in place of effects."""

  def __init__(self, names, persistent_load):
    self.names = names
    self.persistent_load = persistent_load
    self.memo = {}
    self.stack = []  # values since the latest mark
    self.stacks_below = []  # before each mark
    # By id of a container, which is its own as long as `alive` holds the container.
    self.alive = []
    self.depth = {}
    self.finished = set()

  def run(self, operations: Iterable) -> object:
    """The value that genops' operations make."""
    for count, (opcode, argument, _) in enumerate(operations):
      if count == MAX_OPCODES:
        raise ValueError(f'more than {MAX_OPCODES:,} opcodes')
      operands = self.operands(opcode)
      if opcode.name == 'STOP':
        need(not self.stack and not self.stacks_below, 'ends with an unfinished value')
        return operands[0]
      if opcode.name in _LITERALS:
        self.literal(argument)
      else:
        self.execute(opcode.name, argument, operands)
    raise AssertionError('genops raises if there is no STOP')

  def operands(self, opcode):
    """Takes from the stack what the opcode is about: a fixed number of values, or all since a mark.

    A container that it changes is the first of them.
    """
    # pickletools knows of each opcode what lies on the stack before it, by kinds.
    count = len(opcode.stack_before)
    after_mark = []
    if pickletools.markobject in opcode.stack_before:
      count = opcode.stack_before.index(pickletools.markobject)
      after_mark = self.pop_mark()
    elif opcode.name == 'POP' and not self.stack:
      return self.pop_mark()
    need(len(self.stack) >= count, 'takes a value where there is none')
    values = self.stack[len(self.stack) - count :]
    del self.stack[len(self.stack) - count :]
    return values + after_mark

  def pop_mark(self):
    need(self.stacks_below, 'there is no mark')
    values = self.stack
    self.stack = self.stacks_below.pop()
    return values

  def literal(self, value):
    # So that nothing that is read can be changed.
    if isinstance(value, bytearray):
      value = bytes(value)
    is_short = not isinstance(value, int) or value.bit_length() <= MAX_INTEGER
    need(is_short, f'an integer of more than {MAX_INTEGER} bits')
    self.stack.append(value)

  def execute(self, name, argument, operands):
    match name:
      case 'FRAME' | 'POP' | 'POP_MARK':
        pass  # a frame only serves reading ahead
      case 'PROTO':
        need(argument <= 5, f'protocol {argument}; known are 0 to 5')
      case 'MARK':
        self.stacks_below.append(self.stack)
        self.stack = []
      case 'NONE' | 'NEWTRUE' | 'NEWFALSE':
        self.stack.append(_CONSTANTS[name])
      # Memory
      case 'PUT' | 'BINPUT' | 'LONG_BINPUT':
        self.memorize(argument)
      case 'MEMOIZE':
        self.stack += operands
        self.memorize(len(self.memo))
      case 'GET' | 'BINGET' | 'LONG_BINGET':
        need(argument in self.memo, 'recalls a value that was not remembered')
        self.stack.append(self.memo[argument])
      # Containers
      case 'EMPTY_TUPLE' | 'TUPLE' | 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
        self.push_container(tuple(operands), operands)
      case 'EMPTY_LIST' | 'LIST':
        self.push_container(operands, operands)
      case 'EMPTY_DICT' | 'DICT':
        self.push_container({})
        self.assign(self.stack[-1], operands)
      case 'EMPTY_SET':
        self.push_container(Call(Global('builtins', 'set'), ()))
      case 'APPEND' | 'APPENDS' | 'ADDITEMS':
        self.stack.append(_expect(operands[0], list, Call))
        self.append(*operands)
      case 'SETITEM' | 'SETITEMS':
        self.stack.append(_expect(operands[0], dict, Call))
        self.assign(operands[0], operands[1:])
      # Names, calls, states
      case 'GLOBAL':
        self.push_name(*argument.split(' ', 1))
      case 'STACK_GLOBAL':
        self.push_name(*operands)
      case 'REDUCE' | 'NEWOBJ':
        call = Call(_expect(operands[0], Global), _expect(operands[1], tuple))
        self.push_container(call, [call.args])
      case 'BUILD':
        self.set_state(*operands)
      case 'PERSID' | 'BINPERSID':
        self.push_persistent(operands[0] if operands else argument)
      case _:
        raise ValueError(f'opcode {name} is not allowed')

  def memorize(self, index):
    need(self.stack, 'remembers a value where there is none')
    self.memo[index] = self.stack[-1]

  def push_container(self, container, parts=()):
    """Pushes a container that has `parts`."""
    if container != ():  # there is only one empty tuple, and nothing in it
      self.alive.append(container)
      self.depth[id(container)] = 0
      self.finish(container, parts)
    self.stack.append(container)

  def finish(self, container, parts):
    """Notes that `parts` became part of a container: they may not change any more."""
    # By this no value contains itself, and the depth of a container is known when it is made.
    parts = [id(part) for part in parts if id(part) in self.depth]
    self.finished.update(parts)
    if id(container) in self.finished:
      what = describe(container)
      raise ValueError(f'{what} changes after it became part of another value or of itself')
    depth = max((self.depth[part] + 1 for part in parts), default=0)
    need(depth <= MAX_DEPTH, f'values nested more than {MAX_DEPTH} deep')
    self.depth[id(container)] = max(self.depth[id(container)], depth)

  def append(self, container, *items):
    self.finish(container, items)
    target = container if isinstance(container, list) else container.items
    target.extend(items)

  def assign(self, container, keys_and_values):
    need(len(keys_and_values) % 2 == 0, 'a key without a value')
    self.finish(container, keys_and_values)
    for key, value in zip(keys_and_values[::2], keys_and_values[1::2]):
      if isinstance(container, Call):
        container.pairs.append((key, value))
      elif not isinstance(key, KEYS) or (isinstance(key, int) and not is_int64(key)):
        raise ValueError(f'the key {describe(key)} is not simple')
      elif key in container:
        raise ValueError(f'the key {describe(key)} occurs twice')
      else:
        container[key] = value

  def push_name(self, module, name):
    for text in (module, name):
      # genops parts the two by a blank; no name that anyone asks for has one in itself.
      if not isinstance(text, str) or not 0 < len(text) <= MAX_NAME or ' ' in text:
        raise ValueError(
          f'a module and a name must be text of 1 to {MAX_NAME} characters without blanks'
        )
    found = Global(module, name)
    if self.names is not None and found not in self.names:
      raise ValueError(f'{describe(found)} is refused')
    self.stack.append(found)

  def push_persistent(self, identity):
    need(self.persistent_load, f'refers to {describe(identity)} outside of the pickle')
    self.stack.append(self.persistent_load(identity))

  def set_state(self, target, state):
    need(_expect(target, Call).state is None, f'{describe(target)} gets a state twice')
    self.finish(target, [state])
    target.state = state
    self.stack.append(target)


def _expect(value, *kinds):
  if not isinstance(value, kinds):
    names = ' or '.join(kind.__name__ for kind in kinds)
    raise ValueError(f'finds {describe(value)} where it must find {names}')
  return value
