"""When a number stops being finite: the minibatch is saved with the state that it met, and can be
computed again.

Inside the steps the first loss or gradient that isn't finite halts the state (steps._apply): no
parameter, moment, average or counter changes any more, whatever is computed until the host looks at
the end of the tick. So what the host then finds is the state right before the update that failed;
with the key of the run and the place in the data it is all that the update depends on.
"""

import contextlib
import json
import math
import pathlib
import shlex
import shutil

import jax
import numpy as np

from sg2jax import build, checkpoint, data, files, sharding
from sg2jax import state as state_lib
from sg2jax.checkpoint import Checkpoints
from sg2jax.faults import CheckpointError, DatasetError, NonFiniteError, UsageError, WriteError
from sg2jax.keys import purpose_key
from sg2jax.steps import PHASES, suspects
from sg2jax.workdir import flat

REMEDY = (
  'Lower the learning rate or raise loss.r1_gamma; with bfloat16 set g.clamp and d.clamp to 256'
)
SHOWN = 20  # arrays that `replay` lists at most


def batches(config, stage, images, nimg):
  """The minibatches of a stage from stream position `nimg` on, as `data.batches`; images: a Source
  at the stage's size.
  """
  return data.batches(
    images,
    batch=stage.batch,
    microbatch=build.microbatch(config, stage.batch),
    seed=config.seed,
    mirror=config.data.mirror,
    nimg=nimg,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def halt(workdir, config, steps, compiled, state, key, images, mesh, checkpoints):
  """Saves the minibatch that halted `state` and raises the NonFiniteError.

  Args:
    workdir: of the run; WORKDIR/nonfinite is replaced.
    config: its configuration.
    steps: the TrainSteps of its stage.
    compiled: {phase: the compiled step}.
    state: the halted TrainState; it is used up.
    key: of training.
    images: the data.Source that was trained on, at the size of the stage.
    mesh: what the work is divided over.
    checkpoints: the Checkpoints of the run; one of them may still be being written.

  Raises:
    NonFiniteError: always.
  """
  step, phase = _fault(state.fault)
  folder = pathlib.Path(workdir) / 'nonfinite'
  place = folder / f'{step}-{phase}.json'
  first = _first(state, steps.stage, phase)
  found = {
    'step': step,
    'phase': phase,
    'nimg': first,
    'batch': steps.stage.batch,
    'microbatch': build.microbatch(config, steps.stage.batch),
    'seed': config.seed,
    'key': _words(key),
    'images': _indices(config, images, first, steps.stage.batch),
    'data': {'name': repr(images), 'place': images.place},
    'devices': mesh.size,
    'config': config.to_dict(),
    'state': f'checkpoints/{int(state.step)}',
  }
  failure, before = None, 'what was saved before is sound'
  try:
    checkpoints.wait()
  except WriteError as e:  # raised when the run closes them, it would hide why the run ends
    before = f'the last checkpoint before is lost: {e}'
  try:
    if jax.process_index() == 0:
      _clear(folder)
    with contextlib.closing(Checkpoints(folder, keep=1, meta={})) as keeper:
      keeper.save(state)
  except WriteError as e:  # why the run ends matters more than that this could not be kept
    failure = e
  numbers, array = _again(config, steps, compiled[phase], state, key, images, mesh, phase)
  try:
    if not failure and jax.process_index() == 0:
      text = json.dumps(found | {'array': array, 'numbers': numbers}, indent=1) + '\n'
      files.write_atomic(place, text)
      # so that the state can be loaded as any other
      values = found['config'] | {'c_dim': images.c_dim}
      files.write_atomic(folder / 'config.json', json.dumps(values) + '\n')
  except WriteError as e:
    failure = e
  what = f'{array} is not finite'
  if array is None:
    what = 'a number was not finite, but is when computed once more: suspect the device'
  saved = (
    f'The batch, its key and the state are in {place}: the same command with '
    f'--replay={shlex.quote(str(place))} shows the numbers again'
  )
  if failure:
    saved = f'The batch could not be saved for --replay: {failure}'
  raise NonFiniteError(
    f'step {step}, phase {phase}: {what}. Nothing of it was applied, and {before}. '
    f'{saved}. {REMEDY}'
  )


def _clear(folder):
  """Removes what an earlier halt left; the folder itself may be a link, or one where nothing can be
  removed.
  """
  shutil.rmtree(folder / 'checkpoints', ignore_errors=True)
  for old in folder.glob('*.json') if folder.is_dir() else []:
    with contextlib.suppress(OSError):
      old.unlink()


def replay(config, file):
  """Computes the phase of a minibatch that `halt` saved once more, and prints the numbers of then
  and of now.

  config may differ from the run's, to try a remedy; how is printed.

  Raises:
    NonFiniteError: a number isn't finite now either.
    UsageError: `file` isn't what `halt` wrote, or config makes another minibatch.
    CheckpointError: the state beside it is damaged or doesn't fit.
    DatasetError: the data set isn't that of the run.
  """
  file = pathlib.Path(file).expanduser()
  saved = _read(file)
  build.check(config)
  build.check_devices(config, jax.devices())
  source = data.load(
    config.data.name,
    config.data.dir,
    build.resolution(config),
    config.data.channels,
    config.data.labels,
  )
  then, now = flat(saved['config']), flat(json.loads(json.dumps(config.to_dict())))
  growth, mesh = build.growth(config), sharding.make_mesh()
  stage = growth.stage(growth.last_check(saved['step'], saved['nimg']))
  images = data.Shrunk(source, 2**stage.level) if stage.level else source
  if repr(images) != saved['data']['name']:
    raise DatasetError(
      f'--replay={file}: it is of {saved["data"]["name"]} in {saved["data"]["place"]}, '
      f'and this is {images!r}; give the data set of that run'
    )
  steps, same = build.steps(config, source.c_dim, mesh, stage), sharding.replicated(mesh)
  like = jax.eval_shape(lambda: build.init_state(config, steps, None))
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=same), like)
  state = checkpoint.restore(file.parent / saved['state'], like)
  if jax.device_get(state.fault).tolist()[:2] != [saved['step'], PHASES.index(saved['phase'])]:
    raise CheckpointError(
      f'--replay={file}: the state beside it is of another minibatch; copy the whole folder'
    )
  phase, key = saved['phase'], jax.device_put(purpose_key(config.seed, 'training'), same)
  first = _first(state, stage, phase)
  here = [first, _indices(config, images, first, stage.batch), _words(key), config.data.mirror]
  if here != [saved['nimg'], saved['images'], saved['key'], then.get('data.mirror')]:
    raise UsageError(
      f'--replay={file}: seed, batch, data.mirror or the growing of this configuration '
      'make another minibatch; leave them as they were in that run'
    )
  step = sharding.jit_step(getattr(steps, phase), mesh)
  last = saved['nimg'] + stage.batch
  print(
    f'step {saved["step"]}, phase {phase}: images {saved["nimg"]} to {last} of the run, '
    f'in the data set {_few(saved["images"])}; key {saved["key"]}'
  )
  for name in sorted(now.keys() & then.keys()):
    if json.dumps(now[name]) != json.dumps(then[name]):
      print(f'  {name}: {then[name]} then, {now[name]} now')
  numbers, array = _again(config, steps, step, state, key, images, mesh, phase)
  _compare(saved['numbers'], numbers)
  if array:
    raise NonFiniteError(
      f'step {saved["step"]}, phase {phase}: {array} is not finite; then it was {saved["array"]}. '
      f'{REMEDY}'
    )
  print('all numbers are finite now')


def _fault(fault):
  """(step, phase) of state.fault."""
  step, phase, _ = map(int, jax.device_get(fault))
  return step, PHASES[phase]


def _first(state, stage, phase):
  """Stream position of the first image of the minibatch; d_reg comes after the clock has moved
  on.
  """
  return int(state.nimg) - (stage.batch if phase == 'd_reg' else 0)


def _indices(config, images, first, count):
  """Where in the data set the images of these stream positions are."""
  places = data.stream(range(len(images)), seed=config.seed, mirror=False)
  return [int(places[first + k]) for k in range(count)]


def _words(key):
  """A random key as a list of whole numbers."""
  return jax.device_get(jax.random.key_data(key)).tolist()


def _again(config, steps, step, state, key, images, mesh, phase):
  """Runs the phase on the halted state -> ({name: number, of arrays their squared norm, JSON-safe},
  first bad name or None).
  """
  first = _first(state, steps.stage, phase)
  state = state.replace(fault=jax.device_put(state_lib.NO_FAULT, sharding.replicated(mesh)))
  with contextlib.closing(batches(config, steps.stage, images, first)) as stream:
    batch = sharding.to_global(mesh, next(stream))
  state, aux = step(key, state, batch)
  names, aux = suspects(phase, state, aux), jax.device_get(aux)
  squares = aux.pop(f'grad_squares_{phase}')
  numbers = {name: _number(x) for name, x in aux.items()}
  numbers |= {f'|grad {name}|^2': _number(x) for name, x in zip(names, squares, strict=False)}
  found = jax.device_get(state.fault)
  return numbers, names[found[2]] if found[1] >= 0 else None


def _number(x):
  """A float32 as a number of JSON that is read back bit for bit, or as text where JSON has none."""
  x = float(np.float32(x))
  return x if math.isfinite(x) else str(x)


def _read(file):
  """What `halt` wrote."""
  whole = lambda x: type(x) is int and x >= 0
  right = {
    **dict.fromkeys(('step', 'nimg'), whole),
    'array': lambda x: x is None or isinstance(x, str),
    'state': lambda x: isinstance(x, str),
    **dict.fromkeys(('config', 'numbers'), lambda x: isinstance(x, dict)),
    **dict.fromkeys(('images', 'key'), lambda x: isinstance(x, list) and all(map(whole, x))),
    'phase': lambda x: x in PHASES,
    'data': lambda x: isinstance(x, dict) and {'name', 'place'} <= x.keys(),
  }
  try:
    saved = json.loads(file.read_text())
    wrong = [name for name, check in right.items() if not check(saved.get(name))]
    if wrong:
      raise ValueError(f'wrong or missing: {", ".join(wrong)}')
    return saved
  except (OSError, ValueError, AttributeError, RecursionError) as e:
    raise UsageError(
      f'--replay={file} is not what a run writes to WORKDIR/nonfinite/ before it exits '
      f'with code 4 ({e})'
    ) from None


def _few(indices, most=16):
  text = ', '.join(map(str, indices[:most]))
  return f'{text} ... ({len(indices)} in all)' if len(indices) > most else text


def _compare(then, now):
  """Prints the numbers: all that are not of arrays, and of the arrays those that aren't finite,
  then or now.
  """
  arrays = [
    name
    for name in now
    if name.startswith('|grad ') and isinstance(now[name], str) | isinstance(then.get(name), str)
  ]
  rows = [name for name in now if not name.startswith('|grad ')] + arrays[:SHOWN]
  width = max(map(len, rows))
  print(f'{"":<{width}}  {"then":>22}  {"now":>22}')
  for name in rows:
    print(f'{name:<{width}}  {then.get(name, "-")!s:>22}  {now[name]!s:>22}')
  if len(arrays) > SHOWN:
    print(f'... and {len(arrays) - SHOWN} more arrays whose gradient is not finite')
