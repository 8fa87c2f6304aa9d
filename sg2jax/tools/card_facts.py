"""What a card says of a run, read from its files; what isn't there is left out."""

import datetime
import json
import math
from typing import Any, NamedTuple

from sg2jax import paths
from sg2jax.faults import UsageError
from sg2jax.sampler import Sampler
from sg2jax.training import workdir

# Of a configuration: where things lie on a machine, and what the card says elsewhere.
PLACES = ('data.dir', 'init_from', 'profile')
ELSEWHERE = (*PLACES, 'c_dim', 'data_hash', 'data_images', 'data_title', 'device')
OF_LINES = ('step', 'nimg', 'time')


class Facts(NamedTuple):
  """What files of a run say.

  Attributes:
    lines: of metrics.jsonl, up to the checkpoint.
    starts: of environment.json.
    evaluations: [(where below evaluation/<step>, document)] of this checkpoint.
    pictures: {metric: PNG} of those that compare with nearest neighbours.
    origin: what import.json or init_from.json says; {}.
  """

  lines: list[dict[str, Any]]
  starts: list[dict[str, Any]]
  evaluations: list[tuple[str, dict[str, Any]]]
  pictures: dict[str, bytes]
  origin: dict[str, Any]


def settings(config: Any) -> dict[str, Any]:
  """A configuration, flat, without what the card says elsewhere."""
  flat = workdir.settings(config)
  return {name: value for name, value in flat.items() if name not in ELSEWHERE}


def read(net: Sampler) -> Facts:
  """The Facts of the run of a network. Raises UsageError: a file can't be understood."""
  folder = net.workdir
  lines = []
  # The last line of a run in training may be torn.
  for text in _text(folder / 'metrics.jsonl').split('\n')[:-1]:
    line = _parsed(folder / 'metrics.jsonl', text)
    if line['step'] <= net.step:
      lines.append(line)
  starts = _json(folder / 'environment.json', [])
  origin = _json(folder / 'import.json', {}) or _json(folder / 'init_from.json', {})
  evaluations, pictures = _evaluations(folder / 'evaluation' / f'{net.step:08d}', net.step)
  return Facts(lines, starts, evaluations, pictures, origin)


def _evaluations(folder, step):
  """What was measured of a step, also against other pictures, which has folders of its own."""
  found = []
  pictures = {}
  here = list(folder.iterdir()) if folder.exists() else []
  below = [file for other in here if other.is_dir() for file in other.iterdir()]
  for file in sorted([*here, *below], key=str):
    if file.suffix != '.json':
      continue
    document = _json(file, {})
    if 'metric' not in document or document['checkpoint']['step'] != step:
      continue
    below = '' if file.parent == folder else file.parent.name
    found.append((below, document))
    picture = file.with_suffix('.png')
    if not below and picture.exists():
      pictures[document['metric']] = picture.read_bytes()
  return found, pictures


def training_hours(facts: Facts) -> float:
  """Hours of training alone: a tick is without compilation, snapshots and measurements."""
  return sum(float(line.get('sec_per_tick', 0)) for line in facts.lines) / 3600


def hours(facts: Facts) -> float | None:
  """Hours from each start to the last line before the next, with all that was done in them.

  None: the starts are not known.
  """
  if not facts.starts or not all('time' in start for start in facts.starts):
    return None
  begins = [datetime.datetime.fromisoformat(start['time']).timestamp() for start in facts.starts]
  seconds = 0
  before = begins[0]
  for line in facts.lines:
    # Time without a process is nobody's.
    before = max([before, *(begin for begin in begins if begin <= line['time'])])
    seconds += line['time'] - before
    before = line['time']
  return seconds / 3600


def series(lines: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
  """(kimg, value) of what metrics.jsonl says of a name, where it is finite."""
  pairs = [(line['nimg'] / 1000, float(line[name])) for line in lines if name in line]
  pairs = [(x, y) for x, y in pairs if math.isfinite(y)]
  return [x for x, _ in pairs], [y for _, y in pairs]


def measured(lines: list[dict[str, Any]]) -> list[str]:
  """Names of the metrics that were measured in training: they have lines of their own."""
  names = {}
  for line in lines:
    if 'sec_per_tick' not in line:
      names |= {name: 0 for name in line if name not in OF_LINES}
  return list(names)


# ---- files


def _text(path: paths.Path) -> str:
  try:
    return path.read_text()
  except FileNotFoundError:
    return ''
  except (OSError, ValueError) as e:
    raise UsageError(f'{path} cannot be read ({e}); bring it back, or move it away') from e


def _json(path, default):
  text = _text(path)
  return _parsed(path, text) if text else default


def _parsed(path, text):
  try:
    return json.loads(text)
  except ValueError as e:
    raise UsageError(f'{path} is not JSON ({e}); bring it back, or move it away') from e
