"""The flags that several tools share, each declared once; imported as `shared`.

A tool's `define_flags` calls those that it wants. absl's flags are global and tools have flags of
the same names, so nothing is defined at import: one process runs one tool, and tests, which run
several, do so under `flagsaver` (tests/runs.py), which takes flags away again.

Whatever can be checked without the network is checked by absl as it parses; `cli.parse` makes one
line of it: the flag, its value, the rule.
"""

from collections.abc import Callable
import json
import math
import re
from typing import NamedTuple

from absl import flags
from ml_collections.config_flags import config_flags
import numpy as np

from sg2jax import cli, files, inputs, paths, pretrained, processes
from sg2jax.edit import direction
from sg2jax.faults import UsageError
from sg2jax.models.layers import NOISE_MODES
from sg2jax.nets.clip import ACTIVATIONS
from sg2jax.sampler import Sampler

# What is defined here counts as the calling tool's own, so that its --help shows it.
flags.disclaim_key_flags()


class _Parser(flags.ArgumentParser):
  """Of a flag whose text a function turns into its value."""

  def __init__(self, function: Callable[[str], object]):
    self.parse = function


def define_parsed(
  name: str, default: str | None, what: str, function: Callable[[str], object]
) -> None:
  """A flag whose text `function` turns into its value; it raises ValueError with the rule."""
  flags.DEFINE(_Parser(function), name, default, what)
  if default is not None:
    # What one would write, and not the value, as absl has it.
    flags.FLAGS[name].default_as_str = repr(default)


def define_required(name: str, remedy: str) -> None:
  """Makes a flag, defined already, one that has to be given: '--NAME is missing; REMEDY'."""

  def is_given(value):
    if not value:
      raise UsageError(f'--{name} is missing; {remedy}')
    return True

  flags.register_validator(name, is_given)


class _ConfigParser(config_flags.ConfigFileFlagParser):
  """Runs a configuration file; what `cli.parse` would take for --help or a field is its own."""

  def parse(self, path: str) -> object:
    try:
      config = super().parse(path)
    except (AttributeError, KeyError, SystemExit) as e:
      text = ' '.join(str(e).split())
      raise UsageError(f'--config={path} ends with {type(e).__name__}: {text}') from e
    if config is None:
      raise UsageError(f'--config={path}: get_config() returns None; it must return a ConfigDict')
    return config


def define_config() -> None:
  """--config=FILE, with --config.FIELD=VALUE for any of its fields."""
  _define_config(flags.FLAGS)
  define_required('config', 'name a file, as in --config=configs/quickstart.py')
  # Of a file that can't be read, ml_collections raises only now, as one of its fields is asked for.
  flags.register_validator(
    'config', lambda config: hasattr(config, 'batch'), 'get_config() must return a ConfigDict'
  )


def _define_config(values, argv=None):
  what = 'Configuration; any field: --config.FIELD=VALUE.'
  config_flags.DEFINE_config_file('config', None, what, values, sys_argv=argv)
  values['config'].parser = _ConfigParser('config')


def configuration(arguments: list[str]) -> object:
  """The configuration that --config=FILE and --config.FIELD=VALUE make, on another command line."""
  values = flags.FlagValues()
  argv = ['', *arguments]
  _define_config(values, argv)
  cli.parse(argv, values)
  return values.config


def define_clip_activation() -> None:
  """--clip_activation, beside a --clip."""
  what = 'Of the transformers in a file of --clip that does not tell it.'
  flags.DEFINE_enum('clip_activation', None, ACTIVATIONS, what)


def define_json() -> None:
  """--json, a file for figures, which `write_json` writes."""
  flags.DEFINE_string('json', None, 'File to write the figures to.')
  # Before the work, which may take long.
  flags.register_validator('json', lambda path: not path or cli.file(path, flag='json'))


def write_json(figures: object) -> None:
  """Writes --json, if it is given."""
  if path := flags.FLAGS.json:
    files.write_atomic(cli.file(path, flag='json'), json.dumps(figures, indent=1) + '\n')


def define_processes() -> None:
  """What makes this process one of several that compute together; `cli.run` has it join them."""
  flags.DEFINE_enum(
    'distributed',
    'auto',
    ['auto', 'off'],
    'Several processes: auto joins those that the next three flags name or, on Cloud TPUs, under '
    'Slurm and on Kubernetes, that JAX finds; off goes on alone.',
  )
  flags.DEFINE_string(
    'coordinator_address', None, 'HOST:PORT of process 0; default: $JAX_COORDINATOR_ADDRESS.'
  )
  flags.DEFINE_integer('num_processes', None, 'How many there are; default: $JAX_NUM_PROCESSES.')
  flags.DEFINE_integer('process_id', None, 'Number of this one, from 0; default: $JAX_PROCESS_ID.')
  what = 'After so many without a sign of life of one of them, the others end.'
  define_finite('heartbeat_seconds', processes.HEARTBEAT, what, lower_bound=1)


def define_checkpoint() -> None:
  """--checkpoint, which has to be given."""
  flags.DEFINE_string(
    'checkpoint', None, 'Workdir, whose newest checkpoint counts, one step of it, or a bundle.'
  )
  define_required('checkpoint', 'name a workdir, as in --checkpoint=runs/quickstart')


def define_out(name: str, anywhere: bool = False, below: str = '') -> None:
  """--out, the folder of results; `out_folder` makes a path of it.

  anywhere: or an address; below: what --help says of a folder for each command, '/<...>'.
  """
  what = f'Folder of results; default: {name}/<step>{below} in the workdir.'
  flags.DEFINE_string('out', '', what)
  # Before the network is read, which may take long.
  flags.register_validator('out', lambda path: not path or cli.folder(path, anywhere=anywhere))


def out_folder(net: Sampler, name: str, anywhere: bool = False, below: str = '') -> paths.Path:
  """The folder that --out names, by default NAME/<step>/BELOW in the workdir of a Sampler.

  anywhere: it may be an address.
  """
  path = flags.FLAGS.out or net.workdir / name / f'{net.step:08d}' / below
  return cli.folder(path, anywhere=anywhere)


def define_seed(what: str, default: int | None = 0) -> None:
  """--seed of `what`: NumPy takes numbers in [0, 2^32)."""
  flags.DEFINE_integer('seed', default, what, lower_bound=0, upper_bound=2**32 - 1)


def define_batch() -> None:
  """--batch: 0 leaves it to the size of the images."""
  what = 'Images at once, over all devices; 0: what suits their size. Results do not depend on it.'
  flags.DEFINE_integer('batch', 0, what, lower_bound=0)


def define_finite(
  name: str, default: float | None, what: str, lower_bound: float | None = None
) -> None:
  """A float flag that is finite: absl's own lets NaN through any bound."""
  flags.DEFINE_float(name, default, what, lower_bound=lower_bound)
  flags.register_validator(name, lambda x: x is None or math.isfinite(x), 'must be a finite number')


# ---- weights of others


def define_weights(example: str) -> None:
  """--weights=NAME=PATH, as often as wanted; `weights_paths` makes a dict of them."""
  names = [name for name in pretrained.FILES if name not in pretrained.CLIP]
  flags.DEFINE_multi_string(
    'weights', [], f'NAME=PATH of weights elsewhere, or others than the standard ones: {example}.'
  )
  flags.register_validator(
    'weights',
    lambda pairs: all('=' in pair and pair.partition('=')[0] in names for pair in pairs),
    f'must be NAME=PATH, with a NAME of {", ".join(names)}',
  )


def weights_paths() -> dict[str, str]:
  """--weights as {name: path}."""
  return dict(pair.split('=', 1) for pair in flags.FLAGS.weights)


# ---- images of seeds


def define_image_flags() -> None:
  """What makes images of seeds, but for --psi."""
  define_checkpoint()
  define_seeds(
    'seeds', '0-7', 'Numbers and ranges, such as 0-31,100. NumPy draws a latent from each.'
  )
  flags.DEFINE_integer(
    'cutoff', None, 'How many ws are truncated, counted from the coarsest; default: all.'
  )
  define_labels('images', 'drawn from each seed as the data has them')
  flags.DEFINE_enum(
    'noise',
    'const',
    NOISE_MODES,
    'const: the noise maps of the network; random: drawn from the seed; none.',
  )


def define_seeds(name: str, default: str, what: str) -> None:
  """Seeds: '0-3,100' is [0, 1, 2, 3, 100]."""
  define_parsed(name, default, what, _seeds)


def _seeds(text: str) -> list[int]:
  found = []
  for part in text.split(','):
    first, dash, last = part.partition('-')
    try:
      seeds = range(int(first), int(last if dash else first) + 1)
      # A million: a range is a list before it is anything else.
      good = 0 < len(seeds) <= 10**6 and seeds[-1] < 2**32
    except (ValueError, OverflowError):
      good = False
    if not good:
      raise ValueError(
        f'{part.strip()!r} is no seed; give numbers in [0, 2^32) and ranges, as in 0-31,100'
      )
    found += seeds
  return found


def define_psi(what: str = 'Truncation; default: 1, none.') -> None:
  """--psi, one number."""
  define_parsed('psi', '1', what, _number)


def define_psis(what: str) -> None:
  """--psi, one or more numbers: '1,0.5' is [1.0, 0.5]; None if it isn't given."""
  define_parsed('psi', None, what, _numbers)


def _number(text: str) -> float:
  found = _numbers(text)
  if len(found) > 1:
    raise ValueError('must be one number, such as 0.7')
  return found[0]


def _numbers(text: str) -> list[float]:
  try:
    found = [float(part) for part in text.split(',')]
  except ValueError:
    found = [math.nan]
  if not all(map(math.isfinite, found)):
    raise ValueError('must be finite numbers, such as 1,0.5,0')
  return found


def define_labels(what: str, default: str) -> None:
  """--class and --label: what the images of seeds show."""
  flags.DEFINE_string(
    'class',
    None,
    f'Class of all {what} by name or number, or one for each seed: cat,dog,cat; default: '
    f'{default}.',
  )
  define_parsed(
    'label',
    None,
    'The same for networks whose labels are vectors: 1,0,1 or one for each seed: 1,0,1;0,0,1.',
    _vectors,
  )
  flags.mark_flags_as_mutual_exclusive(['class', 'label'])


def _vectors(text: str) -> np.ndarray:
  try:
    return np.array([_numbers(part) for part in text.split(';')], np.float32)
  except ValueError:  # no numbers, or rows of unlike lengths
    raise ValueError('must be numbers, as in 1,0,1, or 1,0,1;0,0,1 for two seeds') from None


# ---- directions


class _Edit(NamedTuple):
  path: str
  name: str  # of a direction in it; '': the only one
  low: float  # strengths; the same where it isn't a range
  high: float


def define_edit(ranges: bool = False) -> None:
  """--edit, as often as wanted; `edits` reads the files. ranges: whether a strength may be one."""
  what = (
    'FILE:STRENGTH, or FILE:NAME:STRENGTH where it holds several directions: moves every image, in '
    'the units of the direction; given more than once, by all of them.'
  )
  if ranges:
    what += ' A range, -3..3, goes through strengths, there and back.'

  def parse(text):
    edit = _edit(text)
    if edit.low != edit.high and not ranges:
      raise ValueError('a range of strengths is for a video; give one number')
    return edit

  flags.DEFINE_multi(_Parser(parse), None, 'edit', None, what)


def _edit(text: str) -> _Edit:
  rest, _, strength = text.rpartition(':')
  path, _, name = rest.rpartition(':')
  # Colons may be in the path: of a bucket, of a drive.
  if not path or rest.endswith('.npz'):
    path, name = rest, ''
  try:
    low, separator, high = strength.partition('..')
    found = _Edit(path, name, _number(low), _number(high if separator else low))
  except ValueError:
    path = ''
  if not path:
    raise ValueError(
      'must be FILE:STRENGTH or FILE:NAME:STRENGTH, as in pca.npz:pca1:3; in a video a strength '
      'may be a range with both ends, -3..3'
    )
  return found


def edits() -> list[tuple[direction.Direction, float, float]]:
  """What --edit asks for: directions, each with its lowest and highest strength."""
  asked = flags.FLAGS.edit or []
  return [(direction.read(edit.path, edit.name), edit.low, edit.high) for edit in asked]


# ---- what they mean for a network


def labels(net: Sampler, count: int) -> np.ndarray | None:
  """What --class or --label ask for: float32 [count,c_dim]; None if neither is given.

  Raises: UsageError, naming the flag, if the network hasn't got such labels.

  Args:
    net: a Sampler.
    count: of seeds.
  """
  given = flags.FLAGS['label'].value
  flag = '--label'
  if (text := flags.FLAGS['class'].value) is not None:
    flag = f'--class={text}'
    known = net.labels.names if net.labels else ()
    # Names may hold commas.
    given = [text] if text in known else [name.strip() for name in text.split(',')]
  if given is None:
    return None
  try:
    return inputs.label_vectors(net.labels, given, count)
  except UsageError as e:
    raise UsageError(f'{flag}: {e}') from None


def ws_range(net: Sampler, name: str) -> slice:
  """The ws that a flag names by the first and the last, '2-4': slice(2, 5); all if it is ''.

  Raises: UsageError, naming the flag, if the network hasn't got them.
  """
  text = flags.FLAGS[name].value or f'0-{net.num_ws - 1}'
  match = re.fullmatch(r'(\d{1,4})-(\d{1,4})', text)
  if not match or not int(match[1]) <= int(match[2]) < net.num_ws:
    raise UsageError(
      f'--{name}={text} must be the first and the last of some ws, as in 0-1; this network has the '
      f'ws 0 to {net.num_ws - 1}'
    )
  return slice(int(match[1]), int(match[2]) + 1)
