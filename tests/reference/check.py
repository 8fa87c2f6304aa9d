"""What all cases share: reading a manifest, comparing with its tolerances, one report line per
case.

A case is computed by a function `Subcase -> {name: array}`; every expected array of the manifest is
looked up in that dict. What nothing computes, an unread config field, a given array that nobody
takes and an exception are failures of the sub-case.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
import time
import traceback

import jax
import numpy as np

WHOLE = 'whole case'  # where a failure stands that belongs to no sub-case
# Cases whose float32 arrays the reference computed in float32: their bounds for float32 hold in
# float64, too. In float64 torch-fidelity misses the others as we do, and agrees with us
# (tests/test_nets.py).
IN_FLOAT32 = ('inception_v3_fid',)


class Config:
  """A config of the manifest that knows which of its fields were read. Indexing is strict, `get`
  has a default.
  """

  def __init__(self, values, path=''):
    self._values, self._path, self._unread = values, path, set(values)

  def __contains__(self, key):
    return key in self._values

  def __getitem__(self, key):
    if key not in self._values:
      raise KeyError(f'config lacks {self._path}{key}')
    self._unread.discard(key)
    return self._values[key]

  def get(self, key, default=None):
    """The value of an optional field."""
    return self[key] if key in self else default

  def sub(self, key):
    """An optional dict as a Config. What it has unread counts here."""
    value = self._values.get(key)
    if not isinstance(value, Config):
      value = self._values[key] = Config(dict(value or {}), f'{self._path}{key}.')
    self._unread.discard(key)
    return value

  def expect(self, key, value):
    """Checks a derived field where it is given."""
    if key in self and self[key] != value:
      raise ValueError(f'config has {self._path}{key}={self[key]!r}, the code has {value!r}')

  def ignore(self, *keys):
    """Marks fields that can't change a number here; the caller says why."""
    self._unread.difference_update(keys)

  def unread(self):
    """Paths of the fields that nobody read."""
    subs = (v for v in self._values.values() if isinstance(v, Config))
    return sorted(
      [f'{self._path}{key}' for key in self._unread] + [k for s in subs for k in s.unread()]
    )


class Given(dict):
  """The given arrays of a sub-case, which know who was asked for by name; looping over all isn't
  asking.
  """

  def __init__(self, values, unread=()):
    super().__init__(values)
    self._unread = set(unread)

  def __getitem__(self, name):
    self._unread.discard(name)
    return super().__getitem__(name)

  def get(self, name, default=None):
    """The array of an optional name."""
    return self[name] if name in self else default

  def first(self, *names):
    """The array of the first of these names that there is, or None: cases may call the same thing
    differently.
    """
    return next((self[name] for name in names if name in self), None)

  def under(self, prefix):
    """Given of those whose name begins with prefix, without it."""
    return Given({name[len(prefix) :]: self[name] for name in self if name.startswith(prefix)})

  def know(self, pattern):
    """Names that match are understood, even where no expected array needs them."""
    self._unread -= {name for name in self._unread if re.fullmatch(pattern, name)}

  def unread(self):
    """Names that nobody asked for."""
    return sorted(self._unread)


@dataclasses.dataclass
class Subcase:
  """One sub-case: config, given arrays (floats in the working precision) and the names of the
  expected arrays.

  common: the config of the case, where its sub-cases have their own.
  folder: of the manifest, where a config names files.
  """

  id: str
  config: Config
  given: Given
  wanted: list
  common: dict = dataclasses.field(default_factory=dict)
  folder: pathlib.Path = pathlib.Path()

  def under(self, prefix):
    """Given of the arrays whose name begins with prefix, without it."""
    return self.given.under(prefix)


@dataclasses.dataclass
class Report:
  """Outcome of a case. worst: the largest |error| / tolerance and where; failures: sub-case id ->
  messages.
  """

  id: str
  total: int = 0
  worst: tuple = (0.0, '')
  failures: dict = dataclasses.field(default_factory=dict)
  seconds: float = 0.0

  @property
  def passed(self):
    return not self.failures

  def __str__(self):
    good = self.total - len(set(self.failures) - {WHOLE})
    head = (
      f'{self.id:<22}{good:>4}/{self.total} sub-cases  worst {self.worst[0]:8.2g} of tolerance'
      f'  {self.seconds:6.1f} s  {"ok" if self.passed else "FAILED"}'
    )
    lines = [
      f'    {sub}: {m}' for sub, messages in self.failures.items() for m in _abridge(messages)
    ]
    return '\n'.join(
      [head]
      + lines
      + ([f'    worst at {self.worst[1]}'] if self.failures and self.worst[1] else [])
    )


def _abridge(messages, most=5):
  return messages[:most] + (
    [f'... and {len(messages) - most} more'] if len(messages) > most else []
  )


def kind_of(case, kinds):
  """What kind of case it is: its id, or the longest of `kinds` that its id, or a field `kind`,
  begins with; None: none.
  """
  for name in (case.get('kind'), case['id']):
    fits = [kind for kind in kinds if name == kind or (name or '').startswith(f'{kind}_')]
    if fits:
      return max(fits, key=len)
  return None


def read_manifest(folder):
  """The cases of a folder. Raises: FileNotFoundError, ValueError if it has no manifest of this
  format.
  """
  path = pathlib.Path(folder, 'manifest.json')
  manifest = json.loads(path.read_text())
  if not isinstance(manifest, dict) or not isinstance(manifest.get('cases'), list):
    raise ValueError(f'{path} has no list `cases`')
  return manifest['cases']


def only(case, keep):
  """A copy of a case with some of its sub-cases, or with some of their expected arrays.

  keep: {sub-case id: pattern of the expected arrays' names that stay}.
  """
  case = json.loads(json.dumps(case))
  everything = case['subcases']
  case['subcases'] = {sub: everything[sub] for sub in keep}

  def stays(key):
    sub, _, name = key.partition('/')
    if sub not in everything:
      return True  # shared by all
    is_expected = case['arrays'][key]['role'] == 'expected'
    return sub in keep and (not is_expected or re.fullmatch(keep[sub], name))

  case['arrays'] = {key: info for key, info in case['arrays'].items() if stays(key)}
  return case


def _split(case):
  """{sub-case id: [(array name within it, key)]}, the shared keys, and the expected keys that
  belong to no sub-case. A prefix with nothing but expected arrays, such as filters that all
  sub-cases have, is a sub-case without a config.
  """
  ids = list(case.get('subcases') or {'': {}})
  own, shared = {sub: [] for sub in ids}, []
  for key in case['arrays']:
    owners = [s for s in ids if not s or key == s or key.startswith(s + '/')]
    if owners:
      sub = max(owners, key=len)
      own[sub].append((key[len(sub) :].lstrip('/') if sub else key, key))
    else:
      shared.append(key)
  expected = [key for key in shared if case['arrays'][key]['role'] == 'expected']
  given = [key for key in shared if key not in expected]
  strays = []
  for key in expected:
    sub, _, name = key.partition('/')
    if not name or any(other.startswith(sub + '/') for other in given):
      strays.append(key)
    else:
      own.setdefault(sub, []).append((name, key))
  return own, given, strays


@contextlib.contextmanager
def _precision(float32):
  """64 bits and exact products, or 32; and little optimization, since here compiling takes longer
  than running.
  """
  name = 'jax_disable_most_optimizations'
  before = jax.config.values[name]
  jax.config.update(name, True)
  try:
    with jax.enable_x64(not float32), jax.default_matmul_precision('highest'):
      yield
  finally:
    jax.config.update(name, before)


def jit(function, **options):
  """jax.jit with half the time for compiling, in the precision context of the runner."""

  @functools.cache
  def compiled():
    return jax.jit(function, compiler_options=compiler_options(), **options)

  return functools.wraps(function)(lambda *args: compiled()(*args))


@functools.cache
def compiler_options():
  """XLA's older CPU code generation is the faster one while nothing is optimized; {} where XLA
  hasn't got it any more.
  """
  options = {'xla_cpu_use_fusion_emitters': False}
  try:
    jax.jit(lambda: 0, compiler_options=options)()
  except jax.errors.JaxRuntimeError:
    return {}
  return options


def run_case(case, folder, compute, float32=False):
  """Computes and compares every sub-case. compute: Subcase -> {name: array}. -> Report."""
  report, start = Report(case['id']), time.perf_counter()

  def guard(sub, function, *args):  # a fault of one sub-case must not end the run
    try:
      messages = function(*args)
    except Exception as e:
      place = traceback.extract_tb(e.__traceback__)[-1]
      messages = [
        f'{type(e).__name__}: {str(e)[:300]} ({pathlib.Path(place.filename).name}:{place.lineno})'
      ]
    if messages:
      report.failures[sub] = messages

  def all_subcases():
    own, shared, strays = _split(case)
    report.total = len(own)
    with _precision(float32), np.load(pathlib.Path(folder, case['file'])) as data:
      for sub, names in own.items():
        guard(sub, _run, case, sub, names, shared, data, folder, compute, float32, report)
    return [f'expected array {key} belongs to no sub-case' for key in strays]

  guard(WHOLE, all_subcases)
  report.seconds = time.perf_counter() - start
  return report


def _run(case, sub, names, shared, data, folder, compute, float32, report):
  info = case['arrays']
  config = Config(
    dict((case['subcases'].get(sub, {}) if case.get('subcases') else case).get('config') or {})
  )
  wide = np.float32 if float32 else np.float64

  def cast(key):
    return data[key].astype(wide) if data[key].dtype.kind == 'f' else data[key]

  own = [(name, key) for name, key in names if info[key]['role'] != 'expected']
  # what belongs to all sub-cases need not serve each of them
  given = Given(
    {name: cast(key) for name, key in [(k, k) for k in shared] + own}, [name for name, _ in own]
  )
  wanted = {name: key for name, key in names if info[key]['role'] == 'expected'}
  common = case.get('config') or {}
  results = compute(Subcase(sub, config, given, list(wanted), common, pathlib.Path(folder)))
  messages = [f'config field {key} is not understood' for key in config.unread()]
  messages += [f'{name}: nothing takes this given array' for name in given.unread()]
  if results and not wanted:
    messages.append('nothing is expected of it')
  for name, key in wanted.items():
    if name not in results:
      messages.append(f'{name}: nothing computes this expected array')
      continue
    rounded = case['id'] in IN_FLOAT32 and data[key].dtype == np.float32
    error, message = compare(results[name], data[key], info[key].get('tol'), float32 or rounded)
    report.worst = max(report.worst, (error, key))
    messages += [f'{name}: {message}'] if message else []
  return messages


def compare(actual, expected, tol, float32):
  """(largest |actual - expected| / tolerance, message or None). tol: bounds, 'exact' or 'exact ...
  +-1 level'.
  """
  actual = np.asarray(actual)
  if actual.shape != expected.shape:
    return np.inf, f'shape {list(actual.shape)}, expected {list(expected.shape)}'
  if isinstance(tol, dict):
    bits = '32' if float32 else '64'
    bound = tol['atol' + bits] + tol['rtol' + bits] * np.abs(expected)
  elif isinstance(tol, str) and 'exact' in tol:
    bound = np.ones(expected.shape) if '+-1' in tol else np.zeros(expected.shape)
  else:
    raise ValueError(f'tolerance {tol!r} is not understood')
  error = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
  with np.errstate(divide='ignore', invalid='ignore'):
    ratio = np.where(error == 0, 0, error / bound)
  ratio = np.where(np.isnan(ratio), np.inf, ratio)
  worst = float(ratio.max(initial=0))
  if worst <= 1:
    return worst, None
  at = np.unravel_index(ratio.argmax(), ratio.shape)
  return worst, (
    f'{np.count_nonzero(ratio > 1)} of {ratio.size} differ, worst {worst:.3g} times the tolerance '
    f'at {[int(i) for i in at]}: {actual[at]:.9g}, expected {expected[at]:.9g}'
  )
