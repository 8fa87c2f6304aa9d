"""A reader of pickles that runs nothing: what a pickle would import, call or set becomes a node
that says so.

Protocols 2 to 5, and of 0 and 1 what Python 3 writes; without what needs the outside (extension
codes, out-of-band buffers). Stricter than `pickle` where honest files don't notice: what became
part of another value is finished, so nothing changes behind a reader's back and no value contains
itself; only names are called, not what a call returned; dictionary keys are simple and occur once.
Memory and time are in proportion to the bytes read. A result is at most MAX_DEPTH deep, but parts
may be shared, so 2^MAX_DEPTH paths can lead through a small file: who walks one remembers where it
was.
"""

import codecs
from collections.abc import Container
import dataclasses
import struct

MAX_OPCODES = 500_000  # a state dict of a thousand tensors has 30,000
MAX_DEPTH = 100
MAX_TEXT = 65_536  # bytes of a line of text (protocol 0)
MAX_INTEGER = 1024  # bytes
MAX_KEYWORDS = 100
MAX_NAME = 256  # characters of a module or of a class


@dataclasses.dataclass(frozen=True)
class Global:
  """A name that `pickle` would import."""

  module: str
  name: str

  def __str__(self):
    return f'{self.module}.{self.name}'


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Call:
  """What `pickle` would make by calling `function(*args, **kwargs)`, or that class's __new__, and
  then change.

  Attributes:
    function: Global.
    args: tuple.
    kwargs: dict with str keys.
    state: what __setstate__ or __dict__ would get, or None.
    items: what append (of sets: add) would get, in order.
    pairs: (key, value) that item assignment would get, in order.
  """

  function: Global
  args: tuple
  kwargs: dict = dataclasses.field(default_factory=dict)
  state: object = None
  items: list = dataclasses.field(default_factory=list)
  pairs: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Persistent:
  """An object outside of the pickle, known to its writer by `id`."""

  id: object


# Hashes of text are seeded anew in each process and those of small numbers hardly collide: no file
# makes a dict slow.
KEYS = (str, bytes, int, float, Global, type(None))


def parse(data: bytes, names: Container[Global] | None = None):
  """The value of a pickle, made of None, bool, int, float, str, bytes, list, tuple, dict, Global,
  Call and Persistent.

  `names`, if given, are all that may be named. Text of Python 2 becomes str as latin-1, which loses
  nothing; a bytearray becomes bytes.

  Raises:
    ValueError: malformed, too long, too deep or not allowed (see the module); names the position.
  """
  value, end = parse_at(data, 0, names)
  if end != len(data):
    raise ValueError(f'{len(data) - end} bytes follow the end of the pickle')
  return value


def parse_at(data: bytes, start: int, names: Container[Global] | None = None):
  """(value, end) of the pickle that begins at byte `start` and ends before byte `end`; otherwise as
  `parse`.
  """
  reader = _Reader(data, start, names)
  try:
    return reader.run(), reader.position
  except ValueError as e:
    # whose message quotes all of the text
    reason = str(e) if type(e) is ValueError else 'not UTF-8'
    raise ValueError(f'byte {reader.began} of the pickle: {reason[:300]}') from None


def describe(value) -> str:
  """A short name of any value from `parse`, in printable ASCII, for messages."""
  if isinstance(value, Global):
    return ascii(str(value))[1:-1]
  if isinstance(value, Call):
    return f'{describe(value.function)}(...)'
  if isinstance(value, (str, bytes)):
    return ascii(value[:60])
  short = value is None or (isinstance(value, (int, float)) and -(2**63) <= value < 2**63)
  return str(value) if short else type(value).__name__


def nodes(value):
  """Yields every value in a result of `parse`, itself among them; of parts that are shared, each
  once.
  """
  seen, rest = set(), [value]
  while rest:
    value = rest.pop()
    if id(value) not in seen:
      seen.add(id(value))
      yield value
      if isinstance(value, Call):
        rest += [value.args, value.kwargs, value.state, value.items, value.pairs]
      elif isinstance(value, Persistent):
        rest.append(value.id)
      elif isinstance(value, (list, tuple, dict)):
        rest += [*value, *value.values()] if isinstance(value, dict) else value


class _Reader:
  """The stack machine of a pickle."""

  def __init__(self, data, start, names):
    # began: of the present opcode
    self.data, self.names, self.position, self.began = data, names, start, start
    self.stack, self.marks, self.memo = [], [], {}  # marks: the stacks below the present one
    # by id of a container, which belongs to it as long as `made` keeps it alive
    self.depth, self.closed = {}, set()
    self.made = []

  def run(self):
    for _ in range(MAX_OPCODES):
      self.began = self.position
      op = self.take(1)
      if op == b'.':
        if len(self.stack) != 1 or self.marks:
          raise ValueError('ends with an unfinished value')
        return self.stack[0]
      if op not in _OPCODES:
        raise ValueError(f'opcode {op!r} is unknown or not allowed')
      _OPCODES[op](self)
    raise ValueError(f'more than {MAX_OPCODES:,} opcodes')

  def take(self, size, most=2**63):
    """The next `size` bytes."""
    most = min(most, len(self.data) - self.position)
    if not 0 <= size <= most:
      raise ValueError(f'wants {size} bytes where at most {most} can follow')
    self.position += size
    return self.data[self.position - size : self.position]

  def unpack(self, fmt):
    return struct.unpack(fmt, self.take(struct.calcsize(fmt)))[0]

  def line(self):
    end = self.data.find(b'\n', self.position, self.position + MAX_TEXT)
    if end < 0:
      raise ValueError(f'no end of line within {MAX_TEXT} bytes')
    return self.take(end + 1 - self.position)[:-1]

  def push(self, value):
    self.stack.append(value)

  def pop(self, count):
    if len(self.stack) < count:
      raise ValueError('takes a value where there is none')
    items = self.stack[-count:]
    del self.stack[-count:]
    return items

  def mark(self):
    self.marks.append(self.stack)
    self.stack = []

  def pop_mark(self):
    if not self.marks:
      raise ValueError('there is no mark')
    items, self.stack = self.stack, self.marks.pop()
    return items

  def top(self, kind):
    if not self.stack:
      raise ValueError('changes a value where there is none')
    return _checked(self.stack[-1], kind)

  def new(self, container, parts=()):
    """Pushes a container that has `parts`."""
    if container != ():  # of which there is only one
      self.made.append(container)
      self.depth[id(container)] = 0
      self.hold(container, parts)
    self.push(container)

  def hold(self, container, parts):
    """Notes that `parts`, which are finished by that, became part of a container."""
    parts = [id(part) for part in parts if id(part) in self.depth]
    self.closed.update(parts)
    if id(container) in self.closed:
      raise ValueError(
        f'{describe(container)} changes after it became part of another value or of itself'
      )
    self.depth[id(container)] = max(
      [self.depth[id(container)], *(self.depth[part] + 1 for part in parts)]
    )
    if self.depth[id(container)] > MAX_DEPTH:
      raise ValueError(f'values nested more than {MAX_DEPTH} deep')

  def tuple(self, items):
    self.new(tuple(items), items)

  def call(self, function, args, kwargs):
    kwargs = _checked(kwargs, dict)
    # looked at in each call
    if len(kwargs) > MAX_KEYWORDS or not all(isinstance(key, str) for key in kwargs):
      raise ValueError(f'keywords must be text, and {MAX_KEYWORDS} at most')
    self.new(Call(_checked(function, Global), _checked(args, tuple), kwargs), [args, kwargs])

  def name(self, module, name):
    if not all(isinstance(text, str) and 0 < len(text) <= MAX_NAME for text in (module, name)):
      raise ValueError(f'a module and a name must be text of 1 to {MAX_NAME} characters')
    found = Global(module, name)
    if self.names is not None and found not in self.names:
      raise ValueError(f'{describe(found)} is refused')
    self.push(found)

  def append(self, items):
    container = self.top((list, Call))
    self.hold(container, items)
    (container if isinstance(container, list) else container.items).extend(items)

  def assign(self, items):
    container = self.top((dict, Call))
    if len(items) % 2:
      raise ValueError('a key without a value')
    self.hold(container, items)
    for key, value in zip(items[::2], items[1::2]):
      if isinstance(container, Call):
        container.pairs.append((key, value))
      elif not isinstance(key, KEYS) or (isinstance(key, int) and not -(2**63) <= key < 2**63):
        raise ValueError(f'the key {describe(key)} is not simple')
      elif key in container:
        raise ValueError(f'the key {describe(key)} occurs twice')
      else:
        container[key] = value

  def fill(self, container, add, items):
    self.new(container)
    add(self, items)

  def build(self, state):
    target = self.top(Call)
    if target.state is not None:
      raise ValueError(f'{describe(target)} gets a state twice')
    self.hold(target, [state])
    target.state = state

  def put(self, index):
    self.memo[index] = self.top(object)

  def get(self, index):
    if index not in self.memo:
      raise ValueError('recalls a value that was not remembered')
    self.push(self.memo[index])

  def protocol(self):
    version = self.unpack('B')
    if version > 5:
      raise ValueError(f'protocol {version}; known are 0 to 5')


def _checked(value, kind):
  if not isinstance(value, kind):
    names = ' or '.join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
    raise ValueError(f'finds {describe(value)} where it must find {names}')
  return value


def _sized(fmt, decode, most=2**63):
  """Opcode that pushes what follows its size."""
  return lambda r: r.push(decode(r.take(r.unpack(fmt), most)))


_INTEGER = lambda data: int.from_bytes(data, 'little', signed=True)
_TEXT = lambda data: data.decode('utf-8', 'surrogatepass')
_LATIN = lambda data: data.decode('latin-1')
_LINE_INT = lambda line: {b'00': False, b'01': True}[line] if line in (b'00', b'01') else int(line)
_set = lambda name: Call(Global('builtins', name), ())
_persistent = lambda r, name: r.new(Persistent(name), [name])
_OPCODES = {
  # a frame, which only serves reading ahead
  b'\x80': _Reader.protocol,
  b'\x95': lambda r: r.unpack('<Q'),
  b'(': _Reader.mark,
  b'0': lambda r: r.pop(1) if r.stack else r.pop_mark(),
  b'1': _Reader.pop_mark,
  b'2': lambda r: r.push(r.top(object)),
  # Values
  b'N': lambda r: r.push(None),
  b'\x88': lambda r: r.push(True),
  b'\x89': lambda r: r.push(False),
  b'J': lambda r: r.push(r.unpack('<i')),
  b'K': lambda r: r.push(r.unpack('B')),
  b'M': lambda r: r.push(r.unpack('<H')),
  b'G': lambda r: r.push(r.unpack('>d')),
  b'F': lambda r: r.push(float(r.line())),
  b'I': lambda r: r.push(_LINE_INT(r.line())),
  b'L': lambda r: r.push(int(r.line().removesuffix(b'L'))),
  b'\x8a': _sized('B', _INTEGER),
  b'\x8b': _sized('<i', _INTEGER, MAX_INTEGER),
  # without the import that bytes.decode needs
  b'V': lambda r: r.push(codecs.raw_unicode_escape_decode(r.line())[0]),
  b'U': _sized('B', _LATIN),
  b'T': _sized('<i', _LATIN),
  b'\x8c': _sized('B', _TEXT),
  b'X': _sized('<I', _TEXT),
  b'\x8d': _sized('<Q', _TEXT),
  b'C': _sized('B', bytes),
  b'B': _sized('<I', bytes),
  b'\x8e': _sized('<Q', bytes),
  b'\x96': _sized('<Q', bytes),
  # Containers
  b']': lambda r: r.new([]),
  b'l': lambda r: r.fill([], _Reader.append, r.pop_mark()),
  b'a': lambda r: r.append(r.pop(1)),
  b'e': lambda r: r.append(r.pop_mark()),
  b'}': lambda r: r.new({}),
  b'd': lambda r: r.fill({}, _Reader.assign, r.pop_mark()),
  b's': lambda r: r.assign(r.pop(2)),
  b'u': lambda r: r.assign(r.pop_mark()),
  b')': lambda r: r.push(()),
  b't': lambda r: r.tuple(r.pop_mark()),
  b'\x85': lambda r: r.tuple(r.pop(1)),
  b'\x86': lambda r: r.tuple(r.pop(2)),
  b'\x87': lambda r: r.tuple(r.pop(3)),
  b'\x8f': lambda r: r.new(_set('set')),
  b'\x90': lambda r: r.append(r.pop_mark()),
  b'\x91': lambda r: r.fill(_set('frozenset'), _Reader.append, r.pop_mark()),
  # Names, calls, states
  b'c': lambda r: r.name(_TEXT(r.line()), _TEXT(r.line())),
  b'\x93': lambda r: r.name(*r.pop(2)),
  b'R': lambda r: r.call(*r.pop(2), {}),
  b'\x81': lambda r: r.call(*r.pop(2), {}),
  b'\x92': lambda r: r.call(*r.pop(3)),
  b'b': lambda r: r.build(*r.pop(1)),
  b'P': lambda r: _persistent(r, _TEXT(r.line())),
  b'Q': lambda r: _persistent(r, *r.pop(1)),
  # Memory
  b'p': lambda r: r.put(int(r.line())),
  b'q': lambda r: r.put(r.unpack('B')),
  b'r': lambda r: r.put(r.unpack('<I')),
  b'\x94': lambda r: r.put(len(r.memo)),
  b'g': lambda r: r.get(int(r.line())),
  b'h': lambda r: r.get(r.unpack('B')),
  b'j': lambda r: r.get(r.unpack('<I')),
}
