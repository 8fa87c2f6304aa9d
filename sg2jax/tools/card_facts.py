"""What a card says of a run, read from its files; what isn't there is left out."""

from collections.abc import Iterator
import contextlib
import datetime
import json
import math
import re
from typing import Any, NamedTuple

from sg2jax import paths, sampler
from sg2jax.data.labels import Labels
from sg2jax.evaluation import protocols
from sg2jax.faults import UsageError
from sg2jax.training import workdir

# Of a configuration: where things lie on a machine, and what the card says elsewhere.
PLACES = ('data.dir', 'init_from', 'profile', 'made_from.clip')
ELSEWHERE = (
  *PLACES,
  *('c_dim', 'data_hash', 'data_images', 'data_title', 'device'),
  *(f'made_from.{name}' for name in ('source', 'target', 'network', 'clip_hash')),
)
# Fields that say what a network is, or how it was fine-tuned.
OF_NETWORK = ('resolution', 'data.channels', 'g.', 'made_from.')
OF_LINES = ('step', 'nimg', 'time')
NOT_FINITE = ('nan', 'inf', '-inf')  # as metrics.jsonl spells them
REMEDY = 'bring it back as it was written, or move it away'


class Start(NamedTuple):
  """A start of a run."""

  begin: float  # seconds since 1970
  machine: str  # '8 x TPU v4 in 2 processes'
  devices: int
  packages: str
  commit: str


class Measured(NamedTuple):
  """A document of `evaluate`; fields as there.

  Attributes:
    below: the folder in evaluation/<step> that it is in; '': what the run trains on.
    left_out: of nearest neighbours, what the distances are compared with; ''.
    medians: of nearest neighbours, of generated and of left out pictures; ().
    picture: of nearest neighbours, PNG; b''.
  """

  below: str
  metric: str
  kind: str
  values: dict[str, float]
  intervals: dict[str, tuple[float, float]]
  covers: str
  fakes: int
  reals: int
  data: str
  data_hash: str
  detector: str
  seed: int
  left_out: str
  medians: tuple[float, ...]
  picture: bytes


class Facts(NamedTuple):
  """What files of a run say.

  Attributes:
    lines: of metrics.jsonl, up to the checkpoint.
    starts: of environment.json.
    measured: of this very network.
    labels: of the data set; None: none, or nobody says.
    imported: (name of the file, its hash) of a network that another program may have trained; ().
    began_with: (name, arrays taken, arrays drawn) of another network's weights; ().
    made_from: of a network fine-tuned for a text, how; {}.
  """

  lines: list[dict[str, Any]]
  starts: list[Start]
  measured: list[Measured]
  labels: Labels | None
  imported: tuple
  began_with: tuple
  made_from: dict[str, Any]

  @property
  def is_trained_here(self) -> bool:
    """Whether its configuration says how it was trained."""
    return not self.imported and not self.made_from


def settings(config: Any) -> dict[str, Any]:
  """A configuration, flat, without what the card says elsewhere."""
  flat = workdir.settings(config)
  return {name: value for name, value in flat.items() if name not in ELSEWHERE}


def of_pipeline(config: Any) -> dict[str, Any]:
  """Those settings of augmentation that a configuration has by its pipeline's name alone."""
  tree = config.to_dict()
  if not tree.get('augment'):  # of an older run
    return {}
  tree['augment']['variant'] = {}
  return {name: x for name, x in settings(tree).items() if name.startswith('augment.variant.')}


def read(net: sampler.Sampler, place: paths.Path) -> Facts:
  """The Facts of the run of a network at a place. Raises UsageError: a file isn't understood."""
  folder = net.workdir
  made_from = net.config.get('made_from')
  return Facts(
    _lines(folder / 'metrics.jsonl', net.step),
    _starts(folder / 'environment.json'),
    _evaluations(folder / 'evaluation' / f'{net.step:08d}', net.hash()),
    sampler.read_labels(place, net.config.c_dim),
    _imported(folder / 'import.json'),
    _began_with(folder / 'init_from.json'),
    _made_from(folder / 'config.json', made_from) if made_from else {},
  )


# ---- numbers


def training_hours(facts: Facts) -> float:
  """Hours of training alone: a tick is without compilation, snapshots and measurements."""
  return sum(float(line.get('sec_per_tick', 0)) for line in facts.lines) / 3600


def hours(facts: Facts) -> float:
  """Hours from each start to the last line before the next, with all that was done in them."""
  if not facts.starts:
    return 0
  begins = [start.begin for start in facts.starts]
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


def _lines(file, step):
  """The lines of metrics.jsonl up to a step."""
  lines = []
  # The last line of a run in training may be torn.
  for number, text in enumerate(_text(file).split('\n')[:-1], 1):
    with _understood(f'line {number} of {file}'):
      line = json.loads(text)
      for name in OF_LINES:
        line[name] = _number(line[name])
      wrong = [
        n for n, x in line.items() if x not in NOT_FINITE and not isinstance(x, (int, float))
      ]
      if wrong:
        raise ValueError(f'{wrong[0]} is {line[wrong[0]]!r}')
    if line['step'] <= step:
      lines.append(line)
  return lines


def _starts(file):
  found = []
  with _understood(file):
    for start in _json(file, []):
      count = int(start['devices'])
      processes = int(start['processes'])
      several = f' in {processes} processes' if processes > 1 else ''
      packages = [f'{name} {start[name]}' for name in ('sg2jax', 'jax', 'flax') if name in start]
      found.append(
        Start(
          datetime.datetime.fromisoformat(start['time']).timestamp(),
          f'{count} x {start["device"]}{several}',
          count,
          ', '.join(packages),
          str(start.get('git_commit') or ''),
        )
      )
  return found


def _imported(file):
  with _understood(file):
    certificate = _json(file, {})
    return (last_name(certificate['source']), str(certificate['sha256'])) if certificate else ()


def _began_with(file):
  with _understood(file):
    note = _json(file, {})
    if not note:
      return ()
    name = last_name(note.get('file') or note['checkpoint'])
    return (name, len(note['copied']), len(note['initialised']))


def _made_from(file, about):
  """What `edit nada` says of the network that it made."""
  with _understood(file):
    found = {name: str(about[name]) for name in ('source', 'target', 'network')}
    return found | {'clip': ', '.join(map(last_name, about['clip']))}


def _evaluations(folder, digest):
  """What was measured of a network, also against other pictures, which has folders of its own."""
  here = list(folder.iterdir()) if folder.exists() else []
  below = [file for other in here if other.is_dir() for file in other.iterdir()]
  found = []
  for file in [*sorted(here, key=str), *sorted(below, key=str)]:
    if file.suffix != '.json':
      continue
    name = '' if file.parent == folder else file.parent.name
    with _understood(file, 'or measure again'):
      document = _json(file, {})
      if document['checkpoint']['sha256'] != digest:
        raise ValueError('it is about another network than this checkpoint')
      found.append(_measured(file, name, document))
  return found


def _measured(file, below, document):
  metric = document['metric']
  kind = protocols.parse(metric).kind
  values = {name: float(value) for name, value in document['values'].items()}
  alien = [x for x in values if not (x.startswith(metric) and re.fullmatch(r'[\w.]+', x))]
  if alien:
    raise ValueError(f'{alien[0]} is no value of {metric}')
  intervals = {name: (float(a), float(b)) for name, (a, b) in document['intervals_95'].items()}
  detector = document['detector']
  left_out = ''
  medians = ()
  picture = b''
  if median := document.get('median_distance'):
    left_out = str(document['held_out'])
    medians = (float(median['fakes']), float(median['held_out']))
    # Against other pictures it shows those, which nobody asked to publish.
    png = file.with_name(f'{file.name.removesuffix(".json")}.png')
    picture = png.read_bytes() if not below and png.exists() else b''
  return Measured(
    below=below,
    metric=metric,
    kind=kind,
    values=values,
    intervals=intervals,
    covers=str(document['intervals_cover']),
    fakes=int(document['fakes']),
    reals=int(document['reals']),
    data=str(document['data']['name']),
    data_hash=str(document['data']['sha256']),
    detector=str(detector['name']) + ('' if detector['standard'] else ', not the standard weights'),
    seed=int(document['seed']),
    left_out=left_out,
    medians=medians,
    picture=picture,
  )


def last_name(path: str) -> str:
  """Of a path, which may be one of Windows, what doesn't tell of a machine: of a step, the run."""
  names = path.replace('\\', '/').rstrip('/').split('/')
  if len(names) > 2 and names[-2] == 'checkpoints':
    return '/'.join(names[-3:])
  return names[-1]


def _number(value):
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
    raise ValueError(f'{value!r} is no number')
  return value


def _text(path: paths.Path) -> str:
  try:
    return path.read_text()
  except FileNotFoundError:
    return ''
  except (OSError, ValueError) as e:
    raise UsageError(f'{path} cannot be read ({e}); {REMEDY}') from e


def _json(path, default):
  text = _text(path)
  return json.loads(text) if text else default


@contextlib.contextmanager
def _understood(what: object, besides: str = '') -> Iterator[None]:
  """Names the file, whatever one that isn't as it was written leads to inside the `with`."""
  try:
    yield
  except Exception as e:
    reason = str(e) if isinstance(e, (ValueError, UsageError)) else f'{type(e).__name__}: {e}'
    remedy = f'{REMEDY}, {besides}' if besides else REMEDY
    raise UsageError(f'{what} is not as it was written ({reason[:200]}); {remedy}') from e
