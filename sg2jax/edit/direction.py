"""What moves a latent, whatever it was made from: one object for all of it, and its file.

d = direction.read('runs/quickstart/directions/00003750/pca.npz', 'pca1')
images = g(seeds=range(8), edit=d * 3)

Directions are found in directions.py. A file is an .npz of numbers and one text in JSON, `about`:
{"format": "sg2jax-directions-1", "directions": [{"name", "networks", "about"} ...]}; the arrays of
direction i are `i/ws` and `i/styles/<layer>`, what it moves of these, and `i/mappers/<k>/<name>` of
its mappers, of which "mappers" in the text tells the rest. Others are passed over.
"""

import collections
from collections.abc import Iterable, Sequence
import dataclasses
import functools
import itertools
import json
import operator
import os
from typing import Any
import weakref

from absl import logging
import jax
import numpy as np

from sg2jax import files, paths
from sg2jax.edit import mapper as mapper_lib
from sg2jax.edit.mapper import Mapper
from sg2jax.faults import CheckpointError, UsageError
from sg2jax.interop import sniff
from sg2jax.models import styles as style_space

FORMAT = 'sg2jax-directions-1'
MAX_BYTES = 2**30  # of the arrays of a file
SHOWN = 12  # digits of a hash that are shown


@dataclasses.dataclass(frozen=True, eq=False)
class Direction:
  """What is added to ws and to styles at amount 1; `d * 3`, `-d`, `d1 + d2`, `d1 - d2` are others.

  That is the same for all images, but for what mappers say, who look at each one's ws.

  A mix keeps what it was made from in `about`: {"mix": [{"times", "name", "about"} ...]}.
  """

  name: str
  networks: tuple[str, ...]  # Sampler.hash() of that it was made for; several after a mix of theirs
  ws: np.ndarray | None = None  # float32 [num_ws,w_dim], 0 at layers that stay; None: all stay
  styles: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # {layer: float32 [C]}
  about: dict[str, Any] = dataclasses.field(default_factory=dict)  # JSON: method, layers, unit ...
  mappers: tuple[tuple[float, Mapper], ...] = ()  # each with a factor for what it says

  # ---- others made of it

  def __mul__(self, factor: float) -> 'Direction':
    """Amount 1 is `factor` of this one."""
    if not isinstance(factor, (int, float, np.number)):
      return NotImplemented
    factor = float(factor)
    if not np.isfinite(factor):
      raise UsageError(f'{self.name} * {factor}: the factor must be a finite number')
    parts = [part | {'times': part['times'] * factor} for part in self._parts()]
    return Direction(_title(parts), self.networks, about={'mix': parts}, **_sum([(factor, self)]))

  __rmul__ = __mul__

  def __neg__(self) -> 'Direction':
    return self * -1

  def __add__(self, other: 'Direction') -> 'Direction':
    """Both at once. Raises UsageError if they can't be of one network."""
    if not isinstance(other, Direction):
      return NotImplemented
    for (what, mine), (same, its) in itertools.product(self._shapes(), other._shapes()):
      if what == same and mine != its:
        raise UsageError(
          f'{self.name} and {other.name} are of different networks: {what} {list(mine)} and '
          f'{list(its)}; mix directions of one'
        )
    parts = [*self._parts(), *other._parts()]
    networks = tuple(dict.fromkeys([*self.networks, *other.networks]))
    return Direction(_title(parts), networks, about={'mix': parts}, **_sum([(1, self), (1, other)]))

  def __sub__(self, other: 'Direction') -> 'Direction':
    return self + -other if isinstance(other, Direction) else NotImplemented

  def named(self, name: str) -> 'Direction':
    """The same by another name, a mix for example."""
    return dataclasses.replace(self, name=name)

  def _parts(self):
    """What a mix of it says it was made from."""
    parts = self.about.get('mix')
    # One that was given a name of its own is a part by that name.
    if parts and self.name == _title(parts):
      return parts
    return [{'times': 1.0, 'name': self.name, 'about': self.about}]

  def _shapes(self):
    """[(what it moves, its shape) ...], of each mapper for itself."""
    shapes = [(layer, x.shape) for layer, x in self.styles.items()]
    if self.ws is not None:
      shapes.append(('ws', self.ws.shape))
    for _, mapper in self.mappers:
      shapes += mapper.shapes().items()
    return shapes

  # ---- applied

  def moves(self, net: Any, ws: np.ndarray) -> dict[str, np.ndarray]:
    """What is added to ws [N,num_ws,w_dim] at amount 1: {'ws': [N|1,num_ws,w_dim], layer: [N|1,C]}.

    net: a Sampler, with which mappers look at ws.
    """
    moves = {layer: x[None] for layer, x in self.styles.items()}
    if self.ws is not None:
      moves['ws'] = self.ws[None]
    for factor, mapper in self.mappers:
      for what, x in mapper.moves(net, ws).items():
        moves[what] = moves.get(what, 0) + np.float32(factor) * x
    return moves

  def move(
    self, ws: np.ndarray, amounts: Sequence[float], net: Any = None
  ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """ws [N|1,num_ws,w_dim], amounts [N] -> moved ws [N,num_ws,w_dim], {layer: offsets [N,C]}.

    The offsets are what is to be added to the styles that the moved ws make. net: a Sampler; only
    mappers need it.
    """
    amounts = np.asarray(amounts, np.float32)
    ws = np.broadcast_to(ws, (len(amounts), *np.shape(ws)[1:]))
    return _move(net, ws, [(self, amounts)])

  def misfit(self, net: Any) -> str:
    """What doesn't fit a Sampler, such as 'ws [18, 512] there, [6, 8] here'; '' if all does."""
    known = {'ws': (net.num_ws, net.generator.mapping.w_dim)}
    if any(what != 'ws' for what, _ in self._shapes()):
      channels = style_space.channels(net.generator, net.variables)
      known |= {layer: (count,) for layer, count in channels.items()}
    for what, shape in self._shapes():
      if known.get(what) != shape:
        its = list(known[what]) if what in known else 'none'
        return f'{what} {list(shape)} there, {its} here'
    return ''

  def check(self, net: Any) -> None:
    """Warns if it was made for other weights than those of `net`, a Sampler.

    Raises: UsageError: it doesn't fit, having other shapes.
    """
    here = _hash(net)
    there = ' and '.join(x[:SHOWN] for x in self.networks)
    if misfit := self.misfit(net):
      raise UsageError(
        f'the direction {self.name} was made for the network {there} and does not fit '
        f'{here[:SHOWN]}, {net.title}: {misfit}; take one that was made for this network'
      )
    if here not in self.networks:
      _warn(self.name, there, here[:SHOWN])


Edit = Direction | Sequence[tuple[Direction, Any]]  # each with its amounts: a number, or [N]


def apply(net: Any, edit: Edit | None, ws: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """As `Direction.move`, by one direction at amount 1, or by several at theirs. net: a Sampler.

  All of them are those of the given ws, whatever their order.

  Raises: UsageError: one doesn't fit the network; amounts are not one finite number for each ws.
  """
  if edit is None:
    return ws, {}
  asked = [(edit, 1)] if isinstance(edit, Direction) else list(edit)
  if not all(_is_pair(x) for x in asked):
    raise UsageError(
      f'edit={edit!s:.60} must be a Direction, or several: [(Direction, amounts) ...]'
    )
  pairs = []
  for direction, amounts in asked:
    direction.check(net)
    try:
      given = np.asarray(amounts, np.float32)
    except (TypeError, ValueError):  # text, or rows of unlike lengths
      given = np.float32(np.nan)
    if given.shape not in ((), (len(ws),)) or not np.isfinite(given).all():
      raise UsageError(
        f'amounts of {direction.name}: {amounts!s:.60} must be a finite number, or one for each of '
        f'{len(ws)} images'
      )
    pairs.append((direction, np.broadcast_to(given, len(ws))))
  return _move(net, ws, pairs)


def _is_pair(x):
  return isinstance(x, Sequence) and len(x) == 2 and isinstance(x[0], Direction)


def _move(net, ws, pairs):
  """ws [N,num_ws,w_dim], (Direction, amounts [N]) -> moved ws, {layer: offsets [N,C]}."""
  moved = np.array(ws)
  offsets = {}
  for direction, amounts in pairs:
    moves = direction.moves(net, ws)
    if 'ws' in moves:
      moved += amounts[:, None, None] * moves.pop('ws')
    for layer, x in moves.items():
      offsets[layer] = offsets.get(layer, 0) + amounts[:, None] * x
  return moved, offsets


def _sum(terms):
  """(factor, Direction) ... -> {'ws', 'styles', 'mappers'} of their sum, as of a Direction."""
  ws = None
  styles = {}
  mappers = {}  # each once, however often it is a part
  for factor, direction in terms:
    factor = np.float32(factor)
    if direction.ws is not None:
      ws = (0 if ws is None else ws) + factor * direction.ws
    for layer, x in direction.styles.items():
      styles[layer] = styles.get(layer, 0) + factor * x
    for its, mapper in direction.mappers:
      before, _ = mappers.get(id(mapper), (0.0, mapper))
      mappers[id(mapper)] = before + float(factor) * its, mapper
  return {'ws': ws, 'styles': styles, 'mappers': tuple(mappers.values())}


def _title(parts):
  """The name of a mix: '3 pca1 - 0.5 b8.conv0.12 + smile'."""
  text = ''
  for part in parts:
    size = abs(part['times'])
    factor = '' if size == 1 else f'{size:g} '
    text += f' {"-" if part["times"] < 0 else "+"} {factor}{part["name"]}'
  return text[3:] if text.startswith(' +') else f'-{text[3:]}'


@functools.lru_cache(256)  # once, not at every batch
def _warn(name, there, here):
  logging.warning(
    'the direction %s was made for the network %s and is applied to %s, which has other weights: '
    'it may do something else there',
    name,
    there,
    here,
  )


# Of a large network the hash takes a tenth of a second, and a video asks for it at every batch.
# Those of the last networks, by their arrays, which are held weakly.
_hashes = collections.deque(maxlen=4)


def _hash(net):
  arrays = jax.tree.leaves(net.variables)
  for references, growing, digest in _hashes:
    same = [reference() for reference in references]
    if len(same) == len(arrays) and all(map(operator.is_, same, arrays)) and growing == net.growing:
      return digest
  digest = net.hash()
  _hashes.append(([weakref.ref(x) for x in arrays], dict(net.growing), digest))
  return digest


# ---- files


def name_of(text: str) -> str:
  """A text as a name that `write` takes: without colons, line breaks and what can't be shown."""
  shown = (x if x.isprintable() and x != ':' else ' ' for x in text)
  return ' '.join(''.join(shown).split())


def write(
  path: str | os.PathLike | paths.Path, directions: Iterable[Direction], **also: np.ndarray
) -> None:
  """Writes directions, each with a name of its own, to an .npz. also: other arrays for it.

  Raises: UsageError: two have one name, or one has a name that `--edit` couldn't name; WriteError.
  """
  directions = list(directions)
  names = [direction.name for direction in directions]
  for name in names:
    if names.count(name) > 1:
      raise UsageError(f'two directions are called {name}; give each a name of its own')
    if not name or ':' in name or not name.isprintable():
      raise UsageError(f'a direction cannot be called {name!a}; take letters without a colon')
  arrays = {}
  about = []
  for i, direction in enumerate(directions):
    if direction.ws is not None:
      arrays[f'{i}/ws'] = direction.ws
    arrays |= {f'{i}/styles/{layer}': x for layer, x in direction.styles.items()}
    entry = {'name': direction.name, 'networks': direction.networks, 'about': direction.about}
    mappers = []
    for k, (factor, mapper) in enumerate(direction.mappers):
      named = mapper_lib.arrays(mapper.params)
      arrays |= {f'{i}/mappers/{k}/{name}': x for name, x in named.items()}
      mappers.append({'factor': factor} | mapper.about())
    about.append(entry | ({'mappers': mappers} if mappers else {}))
  text = json.dumps({'format': FORMAT, 'directions': about})
  files.write_atomic(path, files.npz(**also, **arrays, about=text))


def read(path: str | os.PathLike | paths.Path, name: str = '') -> Direction:
  """The direction of a file that has this name; '': the only one.

  Raises: as `read_all`; UsageError, with the names, if there is no such one, or no only one.
  """
  found = {direction.name: direction for direction in read_all(path)}
  choices = ', '.join(found)
  if not name and len(found) > 1:
    raise UsageError(f'{path} holds {len(found)} directions; name one of {choices}')
  name = name or choices
  if name not in found:
    raise UsageError(f'{path} holds no direction {name}; choose from {choices}')
  return found[name]


def read_all(path: str | os.PathLike | paths.Path) -> list[Direction]:
  """The directions of a file.

  Raises:
    UsageError: it is missing or can't be read.
    CheckpointError: it is no such file.
  """
  place = paths.place(path)
  try:
    with files.reading(place):
      data = place.read_bytes()
  except OSError as e:
    raise UsageError(
      f'cannot read {path}: {files.reason(e)}; name a file of directions, such as tools.directions '
      'writes'
    ) from e
  try:
    if sniff.kind(data) == 'torch':
      raise ValueError(
        "it is PyTorch's; of a mapper of StyleCLIP's, `edit text --method=mapper --mapper=FILE "
        '--target=TEXT` makes one'
      )
    arrays = files.parse_npz(data, MAX_BYTES, 'fiubU')
    if 'about' not in arrays and 'vectors' in arrays:
      raise ValueError('version 0.4 or an earlier one wrote it; run tools.directions again')
    document = json.loads(str(arrays['about']))
    if document['format'] != FORMAT:
      raise ValueError(f'its format is {document["format"]!a}, and this version reads {FORMAT}')
    found = [_parse(i, entry, arrays) for i, entry in enumerate(document['directions'])]
    if not found or len({direction.name for direction in found}) < len(found):
      raise ValueError('it holds none, or two of one name')
  except Exception as e:  # whatever a file that isn't as it was written leads to
    reason = f'{type(e).__name__} {e}' if isinstance(e, KeyError) else str(e) or type(e).__name__
    raise CheckpointError(f'{path} is no file of directions: {reason}') from e
  return found


def _parse(i, entry, arrays):
  """Direction number i of a file. Raises ValueError, KeyError, TypeError ... if it isn't whole."""
  moved = _below(arrays, f'{i}/styles/')
  ws = arrays.get(f'{i}/ws')
  name, networks, about = entry['name'], tuple(entry['networks']), entry['about']
  texts = all(isinstance(x, str) for x in (name, *networks))
  if not texts or not networks or not isinstance(about, dict):
    raise ValueError(f'direction {i} does not say its name, networks and what it was made from')
  shapes = [(ws, 2)] if ws is not None else []
  shapes += [(x, 1) for x in moved.values()]
  for x, ndim in shapes:
    if x.dtype != np.float32 or x.ndim != ndim or not np.isfinite(x).all():
      raise ValueError(f'direction {name!a} is not of finite numbers, float32')
  mappers = []
  for k, told in enumerate(entry.get('mappers', [])):
    told = dict(told)
    factor = float(told.pop('factor'))
    its = _below(arrays, f'{i}/mappers/{k}/')
    if any(x.dtype != np.float32 or not np.isfinite(x).all() for x in its.values()):
      raise ValueError(f'a mapper of direction {name!a} is not of finite numbers, float32')
    found = mapper_lib.of_arrays(its, **told)
    if not np.isfinite([factor, found.strength]).all():
      raise ValueError(f'a mapper of direction {name!a} has no finite strength')
    mappers.append((factor, found))
  if not shapes and not mappers:
    raise ValueError(f'direction {name!a} moves nothing')
  return Direction(name, networks, ws, moved, about, tuple(mappers))


def _below(arrays, prefix):
  """{name without the prefix: array} of those that begin with it."""
  return {key.removeprefix(prefix): x for key, x in arrays.items() if key.startswith(prefix)}
