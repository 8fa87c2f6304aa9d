"""The folder of a run: who holds it, whether it may go on with a configuration, and what a new run starts from."""
import contextlib
import fcntl
import json
import os

import jax

from sg2jax import build, checkpoint, report
from sg2jax import state as state_lib
from sg2jax.faults import CheckpointError, UsageError

# Fields that may differ from the run that a workdir holds: they change how long or how it is watched, not what is computed.
FREE = ('total_kimg', 'tick_kimg', 'snapshot_kimg', 'keep', 'swd_images', 'metrics', 'metrics_kimg', 'device', 'data.dir',
        'g.remat', 'd.remat')

# Fields of the networks without which weights of another run can't be used: the arrays don't show them.
MEANING = {f'{net}.{name}' for net in 'gd' for name in ('activation', 'taps', 'mapping_lr_mul')}


def check_workdir(values, workdir):
  """Raises UsageError if the workdir holds a run of another configuration or data set. Creates nothing."""
  path = workdir / 'config.json'
  if workdir.exists() and not workdir.is_dir():
    raise UsageError(f'--workdir={workdir} is a file; name a directory')
  if not path.exists() or not any((workdir / 'checkpoints').glob('*')):
    return  # nothing has been trained yet
  try:
    old = flat(json.loads(path.read_text()))
  except ValueError:
    raise UsageError(f'{path} is not readable as JSON; restore it or use another --workdir') from None
  new = flat(json.loads(json.dumps(values)))
  changed = [f'{k}: {old[k]} there, {new[k]} here' for k in sorted(new)
             if k not in FREE and k in old and old[k] != new[k]]
  if changed:
    raise UsageError(f'--workdir={workdir} holds a run of another configuration ({"; ".join(changed)}); use another '
                     'workdir, or the configuration of that run')


def flat(tree, prefix=''):
  """Nested dict -> {'a.b': value}."""
  items = {}
  for k, v in tree.items():
    items |= flat(v, f'{prefix}{k}.') if isinstance(v, dict) else {prefix + k: v}
  return items


@contextlib.contextmanager
def locked(workdir, flag='workdir'):
  """Holds a folder, named by `flag`, for this process; the system releases it however the process ends."""
  with report.writing(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    f = open(workdir / '.lock', 'a+')
  with f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      f.seek(0)
      raise UsageError(f'--{flag}={workdir} is in use by process {f.read().strip()}; use another, or stop that one') from None
    f.truncate(0)
    f.write(f'{os.getpid()} on {os.uname().nodename}')
    f.flush()
    yield


def other_settings(config, step):
  """{field of config.g, config.d: 'a there, b here'} where the checkpoint to start from has another value.

  Raises: UsageError for a field that changes what its weights mean.
  """
  there, here = (flat(json.loads(json.dumps({k: tree[k] for k in 'gd'})))
                 for tree in (build.complete(checkpoint.configuration(step)).to_dict(), config.to_dict()))
  other = {name: f'{there[name]} there, {x} here' for name, x in here.items() if there.get(name, x) != x}
  for name in sorted(MEANING & other.keys()):
    raise UsageError(f'--config.{name}={here[name]}: the weights of {config.init_from} go with {there[name]}; set it to that')
  return other


def init_from(config, state, workdir, log):
  """A fresh state with the weights of config.init_from that fit; what was done goes to the log and init_from.json."""
  path, step = config.init_from, checkpoint.find(config.init_from)
  state, done = state_lib.transfer(state, checkpoint.load(step)[0])
  if not any(name.startswith('g') for name in done['copied']):
    raise CheckpointError(f'--config.init_from={path}: no weight of it fits this generator; use a configuration like its own')
  done = {'checkpoint': str(step), 'settings': other_settings(config, step)} | done
  note = workdir / 'init_from.json'
  if jax.process_index() == 0:
    report.write_atomic(note, json.dumps(done, indent=1) + '\n')
  lines = [f'{path}: {len(done["copied"])} arrays copied, {len(done["initialised"])} initialised, {len(done["unused"])} unused']
  lines += [f'  {kind} {name}: {why}' for kind in ('settings', 'initialised', 'unused') for name, why in done[kind].items()]
  log.say('\n'.join(lines[:20] + ([f'  ... and others, see {note}'] if len(lines) > 20 else [])))
  return state
