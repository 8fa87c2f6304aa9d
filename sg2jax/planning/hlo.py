"""Reads optimized HLO, as compilers print it: kernels, bytes, FLOP, collectives.

An instruction of the entry computation, or of a loop's body, is a kernel; on a TPU one that has an
estimate of its cycles. Its bytes are what it reads from and writes to the memory of the device: of
a sliced operand the slice, of an update in place the update. Its FLOP are those of convolutions and
matrix products, multiply-adds times 2; taps that meet padding, or zeros between samples, are not
counted, and neither is what is done pixel by pixel.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
import dataclasses
import functools
import math
import re

import numpy as np

# What costs nothing by itself.
FREE = frozenset(
  'parameter constant get-tuple-element tuple bitcast after-all partition-id replica-id '
  'opt-barrier iota'.split()
)
SLICING = ('slice', 'dynamic-slice', 'dynamic-update-slice', 'gather')
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
_SHAPE = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of HLO: `%name = type op(%operand, ...), attributes`."""

  name: str
  type: str
  op: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool

  @property
  def calls(self) -> str:
    """The computation that a fusion or call runs; '' if there is none."""
    found = re.search(r'(?:calls|to_apply)=%?([\w.\-]+)', self.attributes)
    return found[1] if found else ''

  @property
  def dims(self) -> tuple[int, ...]:
    """Dimensions of the (first) array of its result."""
    return _shapes(self.type)[0][1]

  @property
  def dtype(self) -> str:
    """Type of the (first) array of its result."""
    return _shapes(self.type)[0][0]


@dataclasses.dataclass(frozen=True)
class Kernel:
  """What is run at once, `times` times in a step."""

  name: str
  op: str
  times: int
  bytes: int
  products: tuple[tuple[float, str], ...]  # (FLOP, type of the operands)
  cycles: int | None  # by a TPU's compiler
  seconds: float | None  # by a GPU's compiler, of fusions

  @property
  def flop(self) -> float:
    """Of one time."""
    return sum(flop for flop, _ in self.products)


# ---- text -> instructions


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
  """HLO text -> ({computation: {name: Instruction}}, name of the entry)."""
  computations, entry, current = {}, '', None
  for line in text.splitlines():
    if not line.startswith(' '):
      head = re.match(r'(ENTRY )?%?([\w.\-]+) .*\{$', line)
      if head:
        current = computations[head[2]] = {}
        entry = head[2] if head[1] else entry
      continue
    found = re.match(r'\s+(ROOT )?%?([\w.\-]+) = (.*)$', line)
    if found and current is not None:
      current[found[2]] = _instruction(found[2], found[3], bool(found[1]))
  return computations, entry


def _instruction(name, text, is_root):
  end = _closing(text, 0) + 1 if text[0] == '(' else text.index(' ')
  kind, text = text[:end], text[end:].strip()
  start = text.index('(')
  end = _closing(text, start)
  operands = tuple(re.findall(r'%([\w.\-]+)', text[start:end]))
  return Instruction(name, kind, text[:start], operands, text[end + 1 :], is_root)


def _closing(text, start):
  """Where the bracket that opens at `start` is closed."""
  depth = 0
  for found in re.finditer(r'[()]', text[start:]):
    depth += 1 if found[0] == '(' else -1
    if not depth:
      return start + found.start()
  raise ValueError(f'a bracket is not closed: {text[:80]}')


def _shapes(text):
  """[(type, dims, layout)] of a type, which may be a tuple of arrays."""
  return [
    (dtype, tuple(int(x) for x in dims.split(',') if x), layout)
    for dtype, dims, layout in _SHAPE.findall(text)
  ]


def array_bytes(text: str) -> int:
  """Bytes that the arrays of a type have in the memory of the device.

  What a TPU's compiler has placed elsewhere, as in `f32[8]{0:T(128)S(1)}`, has none.
  """
  total = 0
  for dtype, dims, layout in _shapes(text):
    if not re.search(r'S\([1-9]', layout):
      total += math.prod(dims) * _item_bytes(dtype)
  return total


def _item_bytes(dtype):
  if dtype == 'pred':
    return 1
  bits = re.match(r'[a-z]+(\d+)', dtype)  # none: token, opaque
  return max(int(bits[1]) // 8, 1) if bits else 0


# ---- instructions -> kernels


def kernels(text: str) -> list[Kernel]:
  """All kernels of a module, those of loops with the number of times that they run."""
  computations, entry = parse(text)
  return [
    _kernel(computations, instruction, computations[name], times)
    for instruction, name, times in _launched(computations, entry, 1)
  ]


def loops_of_unknown_length(text: str) -> int:
  """Loops of a module of which the compiler doesn't say how often they run; counted as once."""
  computations, _ = parse(text)
  return sum(
    i.op == 'while' and not _trip_count(i) for body in computations.values() for i in body.values()
  )


def _trip_count(loop):
  """How often a `while` runs; 0: the compiler doesn't say."""
  found = re.search(r'"known_trip_count":\{"n":"?(\d+)', loop.attributes)
  return int(found[1]) if found else 0


def _launched(computations, name, times) -> Iterator[tuple[Instruction, str, int]]:
  """(instruction, its computation, how often it runs), of all that isn't free."""
  for i in computations[name].values():
    attributes = i.attributes
    if i.op in FREE or (i.op.endswith('-start') and i.op != 'async-start'):
      continue  # what a -start begins is counted where it is -done
    if i.op == 'while':
      body = re.search(r'body=%?([\w.\-]+)', attributes)[1]
      yield from _launched(computations, body, times * (_trip_count(i) or 1))
    elif i.op in ('call', 'async-start'):
      yield from _launched(computations, i.calls, times)
    elif i.op == 'conditional':
      # Each branch is counted, as if all ran.
      listed = re.search(r'branch_computations=\{([^}]*)\}', attributes)
      found = listed[1] if listed else ' '.join(re.findall(r'_computation=(\S+)', attributes))
      for branch in re.findall(r'%([\w.\-]+)', found):
        yield from _launched(computations, branch, times)
    elif i.op not in ('async-done', 'async-update'):
      yield i, name, times


def _kernel(computations, i, env, times):
  cycles = re.search(r'"estimated_cycles":"?(\d+)', i.attributes)
  # A GPU's cost model: the first estimate of the list is of the kernel as it is compiled.
  seconds = re.search(r'"reification_cost":\[\{.*?"exec_time_us":"?([\d.e+-]+)', i.attributes)
  return Kernel(
    name=i.name,
    op=i.op,
    times=times,
    bytes=_traffic(computations, i, env),
    products=tuple(_products(computations, i, env)),
    cycles=int(cycles[1]) if cycles else None,
    seconds=float(seconds[1]) / 1e6 if seconds else None,
  )


def _traffic(computations, i, env):
  """Bytes that a kernel reads and writes."""
  out = array_bytes(i.type)
  if i.op.endswith('-done'):
    return _moved(i, env)
  body = computations.get(i.calls)
  if i.op != 'fusion' or body is None:
    if i.op in ('slice', 'dynamic-slice'):
      return 2 * out
    if i.op == 'dynamic-update-slice':
      return 2 * array_bytes(env[i.operands[1]].type)
    return out + sum(array_bytes(env[name].type) for name in set(i.operands) if name in env)
  users = defaultdict(list)
  for j in body.values():
    for name in j.operands:
      users[name].append(j)
  reads = sum(_read(j, users) for j in body.values() if j.op == 'parameter')
  root = next(j for j in body.values() if j.is_root)
  results = [body[name] for name in root.operands] if root.op == 'tuple' else [root]
  for j in results:
    while j.op == 'bitcast':
      j = body[j.operands[0]]
    if j.op == 'dynamic-update-slice':  # in place: all but the update stays where it is
      out += array_bytes(body[j.operands[1]].type) - array_bytes(j.type)
  return reads + out


def _read(parameter, users):
  """Bytes that a fusion reads of a parameter: where all that is used are slices, these."""
  whole = array_bytes(parameter.type)
  seen = _users(parameter, users)
  if not seen or not all(j.op in SLICING for j, _ in seen):
    return whole
  parts = 0
  for j, name in seen:
    if j.op == 'dynamic-update-slice':
      # Of what is updated nothing is read; of the update all is.
      parts += 0 if j.operands[0] == name else whole
    else:
      parts += array_bytes(j.type)
  return min(whole, parts)


def _users(j, users):
  """(instruction, name of its operand) of all that take j, through bitcasts."""
  found = []
  for user in users[j.name]:
    found += _users(user, users) if user.op == 'bitcast' else [(user, j.name)]
  return found


def _moved(done, env):
  """Bytes of a copy, slice or collective that was begun before: each end that is in the memory."""
  begun = env[done.operands[0]]
  source = env.get(begun.operands[0]) if begun.operands else None
  size = sum(math.prod(dims) * _item_bytes(dtype) for dtype, dims, _ in _shapes(done.type))
  reads = size if source and array_bytes(source.type) else 0
  return reads + array_bytes(done.type)


# ---- FLOP


def _products(computations, i, env):
  """(FLOP, type of the operands) of each product in a kernel."""
  found = []
  body = computations.get(i.calls) if i.op == 'fusion' else None
  for j in body.values() if body else ():
    found += _products(computations, j, body)
  flop = 0
  if 'dim_labels=' in i.attributes:
    flop = _convolution(i, env)
  elif i.op == 'dot' or '"lhs_contracting_dimensions"' in i.attributes:
    flop = _dot(i, env)
  if flop:
    found.append((flop, _dtype(i, env)))
  return found


def _dtype(i, env):
  """bf16, f32, ...; f32_high, f32_highest where more than the usual precision is asked for."""
  dtype = env[i.operands[0]].dtype
  asked = i.attributes.lower()
  for precision in ('highest', 'high'):
    if dtype == 'f32' and re.search(rf'operand_precision"?[=:][\[{{]"?{precision}\b', asked):
      return f'f32_{precision}'
  return dtype


def _dot(i, env):
  pattern = r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"\s]*)'
  contracted = re.findall(r'\d+', re.search(pattern, i.attributes)[1])
  lhs = env[i.operands[0]].dims
  return 2 * math.prod(i.dims) * math.prod(lhs[int(k)] for k in contracted)


def _convolution(i, env):
  """FLOP of a convolution, or of a call of cuDNN for one or for one of its two gradients.

  cuDNN's calls have labels and window of the convolution that they differentiate.
  """
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', i.attributes)
  first, second = (env[name].dims for name in i.operands[:2])
  if 'BackwardFilter' in i.attributes:  # (x, dy) -> dw
    x, w, y = first, i.dims, second
  elif 'BackwardInput' in i.attributes:  # (dy, w) -> dx
    x, w, y = i.dims, second, first
  else:
    x, w, y = first, second, i.dims
  x, w, y = (dict(zip(names, dims)) for names, dims in zip(labels.groups(), (x, w, y)))
  text = re.search(r'window=\{([^}]*)\}', i.attributes)
  window = dict(pair.split('=') for pair in text[1].split()) if text else {}
  flop = 2 * y['b'] * y['f'] * w['i']
  for axis in sorted(k for k in w if k.isdigit()):
    field = functools.partial(_window_field, window, int(axis))
    flop *= _meetings(x[axis], w[axis], y[axis], field)
  return flop


def _window_field(window, axis, name, default):
  """A field of a window for an axis: `stride=2x2`, `pad=0_1x0_1`."""
  return window[name].split('x')[axis] if name in window else default


def _meetings(samples: int, taps: int, outputs: int, field: Callable) -> int:
  """How often a tap meets a sample along an axis, over all outputs."""
  dilation = int(field('lhs_dilate', 1))
  place = (
    np.arange(outputs)[:, None] * int(field('stride', 1))
    + np.arange(taps) * int(field('rhs_dilate', 1))
    - int(str(field('pad', '0_0')).split('_')[0])
  )
  inside = (place >= 0) & (place <= (samples - 1) * dilation) & (place % dilation == 0)
  return int(inside.sum())


# ---- collectives


def collectives(text: str) -> dict[str, dict[str, int]]:
  """{op: {'count', 'bytes'}} of a step; bytes: what each device gets of it."""
  computations, entry = parse(text)
  counts, sizes = Counter(), Counter()
  for i, _, times in _launched(computations, entry, 1):
    op = i.op.removesuffix('-done')
    if op in COLLECTIVES:
      counts[op] += times
      size = sum(math.prod(dims) * _item_bytes(dtype) for dtype, dims, _ in _shapes(i.type))
      sizes[op] += times * size
  return {op: {'count': counts[op], 'bytes': sizes[op]} for op in sorted(counts)}
