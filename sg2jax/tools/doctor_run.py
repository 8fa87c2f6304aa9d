"""What `doctor` looks at of a run, a data set and a configuration. Nothing is changed there."""

from collections.abc import Iterator
import json
import pathlib
import re
import shlex
import types
from typing import Any

from sg2jax import faults, files, paths
from sg2jax.addresses import Address
from sg2jax.tools import doctor_machine
from sg2jax.tools.doctor_findings import Finding, amount, note, ok, problem

KEEP = 2  # checkpoints, of a run that doesn't say; as in configs/default.py


# ---- a run


def workdir(text: str) -> Iterator[Finding]:
  """The folder of a run: its lock, its configuration, its newest whole checkpoint, the room."""
  place = paths.place(text, f'--workdir={text}').absolute()
  is_disk = not isinstance(place, Address)
  if place.exists() and not place.is_dir():
    yield problem(f'--workdir={text} is a file', 'name a folder')
    return
  if is_disk:
    yield from doctor_machine.disk('workdir', place, 'name another --workdir')
  if not place.exists():
    yield note(f'{place} is not there yet', 'training makes it')
    return
  if _is_bundle(place):
    yield from _bundle(place)
    return
  yield from _lock(place)
  config = {}
  file = place / 'config.json'
  if not file.exists() and (place / 'checkpoints').exists():
    yield problem(
      f'{place} has checkpoints and no config.json',
      'bring it back: without it nobody knows what they are of',
    )
  elif not file.exists():
    yield note(f'{place} holds no run yet', 'training begins one')
  else:
    try:
      config = dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as e:
      yield problem(f'{file} is not readable as JSON: {e}', 'restore it, or use another --workdir')
  yield from _progress(place / 'metrics.jsonl', config)
  keep = config.get('keep')
  yield from _checkpoints(place, keep if isinstance(keep, int) else KEEP, is_disk)


def _is_bundle(place):
  """As `bundle.is_there`, whose module is imported only where there may be one."""
  if not (place / 'SHA256SUMS').exists():
    return False
  from sg2jax import bundle  # here: it imports packages that may be what is broken

  return bundle.is_there(place)


def _bundle(place):
  """A published network instead of a run: whether its files are what was written."""
  from sg2jax import bundle  # here: it imports packages that may be what is broken

  listed = bundle.read_sums(place)
  if not isinstance(place, Address):  # of a bucket, all files would be downloaded
    for name in listed:
      if name != bundle.CARD:  # it may be edited
        bundle.checked(place, name, listed)
  yield note(
    f'{place} is a bundle, a published network: nothing is trained there',
    f'another --workdir, with --config.init_from={shlex.quote(str(place))}',
  )


def _lock(place):
  """Who holds the folder. Asked for in a way that takes it from nobody."""
  file = place / '.lock'
  if not file.exists():
    return
  if isinstance(place, Address):
    # Whether its owner is alive, only the next run finds out: it waits for a beat.
    owner = json.loads(file.read_bytes()).get('owner', 'unknown')
    yield note(f'{place} is locked by {owner}', 'if that is gone, the next run takes it over')
    return
  import fcntl

  with open(file) as f:
    owner = f.read(200)
    try:
      fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      yield note(
        f'{place} is in use by process {owner}', 'let it train; a second one would be refused'
      )
    except OSError:
      yield note(f'{place}: its file system has no locks', 'start no second process on it')


def _progress(log, config):
  """How far the run is, by its log."""
  if not log.exists():
    return
  try:
    lines = log.read_bytes().splitlines()
    last = json.loads(lines[-1])
    done = last['nimg'] / 1000
  except OSError as e:
    yield problem(f'{log} can not be read: {e.strerror or e}', 'move it away')
    return
  except (IndexError, ValueError, KeyError, TypeError):
    yield note(f'{log}: its last line is torn', 'the next start cuts it off')
    return
  yield ok(f'run: {done:.1f} of {config.get("total_kimg", "?")} kimg')


def _is_finished(run, total_kimg):
  """Whether the newest whole checkpoint of a run is its last."""
  try:
    lines = (run / 'metrics.jsonl').read_bytes().splitlines()
    steps = set(_steps_after(reversed(lines), total_kimg))
    return bool(steps) and _newest(run)[0] in steps
  except (OSError, faults.Fault):  # as was said of the run
    return False


def _steps_after(lines, total_kimg):
  """The steps of a log's lines, last first, that have so many images; torn lines have none."""
  for line in lines:
    try:
      found = json.loads(line)
      if found['nimg'] < 1000 * total_kimg:
        return
      yield found['step']
    except (ValueError, KeyError, TypeError):
      continue


def _newest(place):
  """(step, bytes) of the newest whole checkpoint, 0 if there is none; what is wrong with others."""
  from sg2jax.training import manifest, shelves

  shelf = shelves.of(place / 'checkpoints')
  bad = []
  for step in reversed(shelf.steps()):
    try:
      if isinstance(place, Address):
        found = shelf.manifest(str(step))  # of a bucket, all files would be downloaded
      else:
        found = manifest.verify(shelf.root / str(step))
    except manifest.Damaged as e:
      bad.append(str(e))
      continue
    return step, sum(size for size, _ in found['files'].values()), bad
  return 0, 0, bad


def _checkpoints(place, keep, is_disk):
  """The newest whole checkpoint, what is damaged, the room for the next ones."""
  from sg2jax.training import shelves

  shelf = shelves.of(place / 'checkpoints')
  steps = shelf.steps()
  for step in shelf.set_aside_before():
    yield note(f'checkpoint {step} was damaged, and is set aside', 'delete it once it is examined')
  step, size, bad = _newest(place)
  if size:
    compared = 'whole' if is_disk else 'its files are not compared'
    yield ok(f'newest checkpoint: step {step}, {size / 1e6:,.1f} MB, {compared}')
  code = faults.CheckpointError.code
  for text in bad:
    where = f'the run would go on from step {step}; ' if size else ''
    yield problem(f'damaged checkpoint: {text}', f'{where}restore it from a copy', code)
  if not steps:
    yield note(f'{place} has no checkpoint', 'training saves one every snapshot_kimg')
  if size and is_disk:
    yield from _room(place, size, keep, len(steps))


def _room(place, size, keep, there):
  """A checkpoint is written before an old one goes; besides the newest, the best stays."""
  needed = max(1, keep + 2 - there) * size
  free = files.free_bytes(place)
  what = f'room for checkpoints: {amount(needed)} more for keep={keep}, {amount(free)} free'
  if free < needed:
    yield problem(what, 'make room, or --config.keep=1', faults.WriteError.code)
  else:
    yield ok(what)


# ---- a data set


def data(text: str, name: str = '', labels: bool = False) -> Iterator[Finding]:
  """A data set: whether it can be read, how many pictures of which size, its hash.

  Args:
    text: folder or address, of which only is looked at whether it is there.
    name: of the data set in it.
    labels: whether they are asked for.
  """
  from sg2jax.data import dataset, records

  place = paths.place(text, f'--data={text}')
  if isinstance(place, Address):
    if (place / records.INFO).exists() or (name and (place / name / records.INFO).exists()):
      yield ok(f'data {place}: there; each machine downloads it to its cache once')
    else:
      yield problem(
        f'data {place}: no {records.INFO} there',
        'copy a prepared data set',
        faults.DatasetError.code,
      )
    return
  try:
    source = dataset.open_source(name, str(place) if text else '', (0, 0), labels)
  except faults.DatasetError as e:
    remedy = 'python -m sg2jax.tools.prepare --source=FOLDER --dest=DIR --resolution=SIDE'
    yield problem(f'data: {str(e).partition("; to make one")[0]}', remedy, e.code)
    return
  for i in (0, len(source) // 2, len(source) - 1):
    source[i]
  side = 'x'.join(map(str, source.shape))
  classes = f', {source.labels.listing()}' if source.labels else ''
  yield ok(f'data {source.place}: {len(source):,} images {side}{classes}, hash {source.hash[:12]}')


# ---- a configuration


def configuration(arguments: list[str], devices: list[dict], run: str) -> Iterator[Finding]:
  """A configuration, and what training with it needs.

  Args:
    arguments: --config=FILE --config.FIELD=VALUE ...
    devices: what JAX sees, as of doctor_machine.jax_devices.
    run: --workdir, or ''.
  """
  from sg2jax import checks, pretrained
  from sg2jax.evaluation import protocols
  from sg2jax.tools import flags as shared
  from sg2jax.training import workdir as workdir_lib

  if not any(re.match('--?config($|=)', argument) for argument in arguments):
    yield problem(
      f'configuration: {arguments[0]} is a field of none',
      'name a file, too, as in --config=configs/quickstart.py',
    )
    return
  config = shared.configuration(arguments)
  try:
    checks.check(config)
  except OSError as e:  # ml_collections raises it as a field is asked for
    remedy = 'name a file, and run from the folder that holds configs/'
    said = re.search(r'\[Errno \d+\] (.*)', str(e))  # after how ml_collections looked for it
    yield problem(f'configuration: {said[1] if said else e}', remedy)
    return
  side = config.resolution
  yield ok(f'configuration: {side} px, batch {config.batch}, {config.total_kimg:g} kimg')
  if devices:
    sorts = [types.SimpleNamespace(platform=device['platform']) for device in devices]
    checks.check_devices(config, sorts)
    yield ok(f'batch {config.batch} divides over {len(devices)} {sorts[0].platform} device(s)')
  names = [name for metric in config.metrics for name in _weights(protocols, metric)]
  for name in dict.fromkeys(names):
    if not pretrained.find(name):
      yield problem(
        f'configuration: metrics={config.metrics} need the weights {name}',
        f'{pretrained.TOOL} {name}, or --config.metrics="()"',
        faults.WeightsError.code,
      )
  yield from _own_data(config)
  if config.init_from and not paths.place(config.init_from).exists():
    yield problem(
      f'configuration: init_from={config.init_from} is not there', 'name a run or checkpoint'
    )
  if run:
    changes = workdir_lib.check_workdir(config.to_dict(), paths.place(run))
    for line in changes:
      yield note(f'configuration: {line}')
  yield from _next(shlex.join(arguments), config.total_kimg, run)


def _next(arguments, total_kimg, run):
  """What to do now."""
  train = f'sg2jax train {arguments} --workdir={shlex.quote(run or "DIR")}'
  if run and _is_finished(paths.place(run), total_kimg):
    tools = f'sg2jax generate, evaluate or view --checkpoint={shlex.quote(run)}'
    more = f'{train} --config.total_kimg={2 * total_kimg:g}'
    yield note('next: this run is finished', f'{tools}; to go on: {more}')
    return
  yield note(
    'memory and time of its steps: known once they are compiled',
    f'sg2jax plan {arguments} --device=local',
  )
  yield note('next', train)


def _weights(protocols: Any, metric: str):
  return protocols.WEIGHTS.get(protocols.parse(metric).of_kind.detector, ())


def _own_data(config):
  """The data set that a configuration names."""
  if config.data.name == 'random':
    yield ok('data: random pictures')
  elif config.data.name == 'digits' and not (
    config.data.dir and pathlib.Path(config.data.dir).exists()
  ):
    yield ok('data: digits, which come with sg2jax')
  elif config.data.name == 'digits':
    yield from doctor_machine.disk(
      'data', pathlib.Path(config.data.dir), 'name another --config.data.dir'
    )
  else:
    yield from data(config.data.dir, config.data.name, config.data.labels)
