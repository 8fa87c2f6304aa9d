"""When a number stops being finite: its minibatch is saved, and can be computed again.

Inside the steps the first loss or gradient that isn't finite halts the state (update.py): no
parameter, moment, average or counter changes any more, whatever is computed until the host looks at
the end of the tick. So what the host then finds is the state right before the update that failed;
with the key of the run and the place in the data it is all that the update depends on.
"""

import contextlib
from functools import partial
import json
import math
import pathlib
import shlex
from typing import Any, NoReturn

import jax
import numpy as np

from sg2jax import build, checks, data, files, paths, processes, sharding
from sg2jax import state as state_lib
from sg2jax.faults import CheckpointError, DatasetError, NonFiniteError, UsageError, WriteError
from sg2jax.state import TrainState
from sg2jax.training import checkpoint
from sg2jax.training import stage as stage_lib
from sg2jax.training.checkpoint import Checkpoints
from sg2jax.training.stage import TrainStage
from sg2jax.training.workdir import differences, settings
from sg2jax.update import PHASES, checked_names

# of the file for --replay, those that are read
FIELDS = {'step', 'phase', 'nimg', 'images', 'key', 'numbers', 'array', 'config', 'state', 'data'}
REMEDY = (
  'Lower the learning rate or raise loss.r1_gamma; with bfloat16 set g.clamp and d.clamp to 256'
)


# ---- the run ends


def halt(
  stage: TrainStage, state: TrainState, workdir: pathlib.Path, checkpoints: Checkpoints
) -> NoReturn:
  """Saves the minibatch that halted `state` and raises the NonFiniteError.

  Args:
    stage: that the run is in.
    state: halted; it is used up.
    workdir: of the run; WORKDIR/nonfinite is replaced.
    checkpoints: of the run; one of them may still be being written.

  Raises:
    NonFiniteError: always.
  """
  step, phase = _fault(state)
  folder = paths.place(workdir) / 'nonfinite'
  file = folder / f'{step}-{phase}.json'
  document = _document(stage, state)
  whole = state_lib.unpack_state(state)
  kept = jax.tree.map(np.array, jax.device_get(whole))  # computing uses it up
  numbers, array = compute_again(stage, state, phase)
  what = f'{array} is not finite'
  if array is None:
    what = 'a number was not finite, but is when computed once more: suspect the device'
  # Why the run ends matters more than what can't be written, which is only added to it.
  before = 'what was saved before is sound'
  try:
    checkpoints.wait()
  except WriteError as e:
    before = f'the last checkpoint before is lost: {e}'
  saved = (
    f'The batch, its key and the state are in {file}: the same command with '
    f'--replay={shlex.quote(str(file))} shows the numbers again'
  )
  try:
    _write(folder, file, kept, document | {'array': array, 'numbers': numbers})
  except (WriteError, CheckpointError) as e:
    saved = f'The batch could not be saved for --replay: {e}'
  raise NonFiniteError(
    f'step {step}, phase {phase}: {what}. Nothing of it was applied, and {before}. '
    f'{saved}. {REMEDY}'
  )


def _document(stage, state):
  """What the file for --replay holds, without what is computed again: JSON values."""
  step, phase = _fault(state)
  first = _first_position(stage, state, phase)
  return {
    'step': step,
    'phase': phase,
    'nimg': first,
    'batch': stage.batch,
    'microbatch': stage.microbatch,
    'seed': stage.config.seed,
    'key': _words(stage.key),
    'images': indices(stage, first),
    'data': {'name': repr(stage.images), 'place': stage.images.place},
    'devices': stage.mesh.size,
    'config': stage.config.to_dict() | {'c_dim': stage.images.c_dim},
    'state': f'checkpoints/{int(state.step)}',
  }


def _write(folder, file, state, document):
  """Replaces what an earlier halt left in a folder, not the folder itself: it may be a link."""
  processes.agreed(partial(_clear, folder))
  with contextlib.closing(Checkpoints(folder, keep=1, meta={})) as place:
    place.save(state)
    place.wait()  # here, where its error is that of all processes
  # The configuration is for tools, which can load this state as any other.
  config = json.dumps(document['config']) + '\n'
  processes.agreed(partial(files.write_atomic, folder / 'config.json', config))
  processes.agreed(partial(files.write_atomic, file, json.dumps(document, indent=1) + '\n'))


def _clear(folder):
  with files.writing(folder):
    files.remove_tree(folder / 'checkpoints')
    for old in folder.iterdir() if folder.is_dir() else ():
      if old.suffix == '.json':
        old.unlink()


# ---- the same minibatch once more


def compute_again(
  stage: TrainStage, state: TrainState, phase: str
) -> tuple[dict[str, float | str], str | None]:
  """Runs a phase on the halted state, which is used up.

  Returns:
    {name: number, of arrays their squared norm; as JSON values}, and the first name whose number
    isn't finite, or None.
  """
  first = _first_position(stage, state, phase)
  no_fault = sharding.replicate(stage.mesh, state_lib.NO_FAULT)
  state = state.replace(fault=no_fault)
  with contextlib.closing(stage.minibatches(first)) as minibatches:
    batch = sharding.to_global(stage.mesh, next(minibatches))
  state, aux = stage.functions[phase](stage.key, state, batch)
  names = checked_names(phase, state, aux)
  aux = jax.device_get(aux)
  squares = aux.pop(f'grad_squares_{phase}')
  numbers = {name: _number(x) for name, x in aux.items()}
  # The arrays come first among the names; what follows has a number of its own.
  numbers |= {f'|grad {name}|^2': _number(x) for name, x in zip(names, squares, strict=False)}
  _, failed_phase, place = jax.device_get(state.fault)
  return numbers, names[place] if failed_phase >= 0 else None


def indices(stage: TrainStage, first: int) -> list[int]:
  """Where in the data set the images of the minibatch at stream position `first` are."""
  order = data.order(len(stage.images), seed=stage.config.seed, mirror=stage.config.data.mirror)
  return [int(stage.images.places[order[first + i][0]]) for i in range(stage.batch)]


def _fault(state):
  """(step, phase) of the first number that wasn't finite."""
  step, phase, _ = map(int, jax.device_get(state.fault))
  return step, PHASES[phase]


def _first_position(stage, state, phase):
  """Stream position of the first image; d_reg comes after d, which moves the clock (ORDER)."""
  return int(state.nimg) - (stage.batch if phase == 'd_reg' else 0)


def _words(key):
  """A random key as a list of whole numbers."""
  return jax.device_get(jax.random.key_data(key)).tolist()


def _number(x):
  """A float32 as a number of JSON that is read back bit for bit, or as text where JSON has none."""
  x = float(np.float32(x))
  return x if math.isfinite(x) else str(x)


# ---- --replay


def replay(config: Any, file: str | pathlib.Path) -> None:
  """Computes the minibatch that `halt` saved once more; prints the numbers of then and of now.

  config may differ from the run's, to try a remedy; how is printed.

  Raises:
    NonFiniteError: a number isn't finite now either.
    UsageError: `file` isn't what `halt` wrote, or config makes another minibatch.
    CheckpointError: the state beside it is damaged or doesn't fit.
    DatasetError: the data set isn't that of the run.
  """
  file = paths.place(file)
  saved = processes.agreed(partial(read, file))
  stage, state = _restore(config, saved, file)
  phase = saved['phase']
  print(
    f'step {saved["step"]}, phase {phase}: images {saved["nimg"]} to {saved["nimg"] + stage.batch} '
    f'of the run, in the data set {saved["images"]}; key {saved["key"]}'
  )
  for name, text in differences(settings(saved['config']), settings(config)).items():
    print(f'  {name}: {text}')
  numbers, array = compute_again(stage, state, phase)
  _print_numbers(saved['numbers'], numbers)
  if array:
    raise NonFiniteError(
      f'step {saved["step"]}, phase {phase}: {array} is not finite; then it was {saved["array"]}. '
      f'{REMEDY}'
    )
  print('all numbers are finite now')


def _restore(config, saved, file):
  """The (TrainStage, halted TrainState) of the minibatch that was saved; raises as `replay`."""
  checks.check(config)
  checks.check_devices(config, jax.devices())
  source = build.dataset(config)
  mesh = sharding.make_mesh()
  growth_stage = build.growth(config).current_stage(saved['step'], saved['nimg'])
  stage = stage_lib.create(config, source, mesh, growth_stage)
  if repr(stage.images) != saved['data']['name']:
    raise DatasetError(
      f'--replay={file}: it is of {saved["data"]["name"]} in {saved["data"]["place"]}, '
      f'and this is {stage.images!r}; give the data set of that run'
    )
  like = build.abstract_state(config, source.c_dim, sharding.replicated(mesh))
  state = checkpoint.restore(file.parent / saved['state'], like)
  first = _first_position(stage, state, saved['phase'])
  here = [first, indices(stage, first), _words(stage.key), config.data.mirror]
  then = [saved['nimg'], saved['images'], saved['key'], saved['config']['data']['mirror']]
  if here != then:
    raise UsageError(
      f'--replay={file}: seed, batch, data.mirror or the growing of this configuration '
      'make another minibatch; leave them as they were in that run'
    )
  return stage, state_lib.pack_state(state, mesh)  # as in training, so that sums are the same


def read(file: paths.Path) -> dict[str, Any]:
  """What `halt` wrote. Raises UsageError if it isn't that."""
  try:
    saved = json.loads(file.read_text())
    if missing := FIELDS - saved.keys():
      raise ValueError(f'{", ".join(sorted(missing))} missing')
    return saved
  except (OSError, ValueError, AttributeError) as e:
    raise UsageError(
      f'--replay={file} is not what a run writes to WORKDIR/nonfinite/ before it exits '
      f'with code 4 ({e})'
    ) from None


def _print_numbers(then, now):
  """All that are not of arrays, and of the arrays those that aren't finite, then or now."""
  rows = [
    name
    for name, x in now.items()
    # JSON has no number for what isn't finite: it is text.
    if not name.startswith('|grad ') or isinstance(x, str) or isinstance(then.get(name), str)
  ]
  width = max(map(len, rows))
  print(f'{"":<{width}}  {"then":>22}  {"now":>22}')
  for name in rows:
    print(f'{name:<{width}}  {then.get(name, "-")!s:>22}  {now[name]!s:>22}')
