"""What a new run starts from: the weights of another run, of a checkpoint or of a network file."""

from functools import partial
import json
import pathlib
from typing import Any, NamedTuple

from sg2jax import build, files, paths, processes
from sg2jax import state as state_lib
from sg2jax.faults import CheckpointError, UsageError
from sg2jax.interop.read import read_network
from sg2jax.state import TrainState
from sg2jax.training import checkpoint
from sg2jax.training.workdir import differences, settings

# Fields without which weights of another run can't be used: the arrays don't show them.
MEANING = {
  f'{net}.variant.{name}' for net in 'gd' for name in ('activation', 'taps', 'mapping_lr_mul')
}


class Origin(NamedTuple):
  """What a new run starts from.

  Attributes:
    path: as the user gave it.
    state: nested dicts of arrays, as of `checkpoint.load`.
    config: of its networks, as of `checkpoint.load`.
    note: where it is from, JSON values.
  """

  path: str
  state: dict
  config: dict
  note: dict


def read(config: Any) -> Origin | None:
  """The Origin that config.init_from names: a workdir, a checkpoint, a network file; or None.

  Process 0 reads a run for all; a network file is read by every process.

  Raises:
    CheckpointError: there is no whole checkpoint.
    WeightsError: of a file: it can't be read, or holds what our networks can't do.
    UsageError: its weights mean something else in this configuration.
  """
  given = config.init_from
  if not given:
    return None
  path = paths.place(given, f'--config.init_from={given}').absolute()
  is_file = processes.agreed(lambda: _is_file(path))
  if is_file is None:
    raise CheckpointError(
      f'--config.init_from={given}: there is nothing; name a workdir, one of its checkpoints, or a '
      'network file'
    )
  if is_file:
    paths.check_local(path, f'--config.init_from={given}')  # it is read where it lies
    imported = read_network(path)
    report = imported.report
    note = {
      'file': report['source'],
      'sha256': report['sha256'],
      'format': report['format'],
      'notes': [f'{name}: {why}' for name, why in report['initialised'].items()] + report['notes'],
    }
    origin = Origin(given, imported.state, imported.config, note)
  else:
    state, config_there = checkpoint.load(path)
    note = {'checkpoint': f'{path}, step {int(state["step"])}'}
    origin = Origin(given, state, config_there, note)
  other_settings(config, origin)
  return origin


def _is_file(path):
  """None: there is nothing."""
  with files.reading(path):
    return path.is_file() if path.exists() else None


def other_settings(config: Any, origin: Origin) -> dict[str, str]:
  """{field of config.g, config.d: 'a there, b here'} where an Origin has another value.

  Raises:
    UsageError: a field that changes what its weights mean.
  """
  old = settings(origin.config)
  new = settings(config)
  # Of a file without a discriminator, its config.d says nothing.
  nets = [net for net in 'gd' if origin.state.get(net)]
  differ = differences(old, new)
  differ = {name: text for name, text in differ.items() if name.split('.')[0] in nets}
  wrong = sorted(MEANING & differ.keys())
  if wrong:
    name = wrong[0]
    net = name.split('.')[0]
    # All of the record: a second flag would take the place of the first.
    variant = json.loads(json.dumps(config[net].variant.to_dict()))
    variant |= {x.split('.')[2]: old[x] for x in wrong if x.startswith(f'{net}.')}
    raise UsageError(
      f'--config.{name}={new[name]}: the weights of {origin.path} go with {old[name]}; set it to '
      f'that, as --config.{net}.variant="{variant}"'
    )
  return differ


def check(config: Any, origin: Origin | None, c_dim: int) -> None:
  """Refuses what a new run can't start from, before anything is created.

  Raises:
    CheckpointError: no weight of the Origin fits the generator.
    UsageError: frozen layers of the discriminator would stay as they were drawn for ever.
  """
  if not origin and not config.d.freeze_layers:
    return
  fresh = build.abstract_state(config, c_dim)
  _, done = state_lib.transfer(fresh, origin.state if origin else {})
  if origin and not any(name.startswith('g') for name in done['copied']):
    raise CheckpointError(
      f'--config.init_from={origin.path}: no weight of it fits this generator; use a configuration '
      'like its own'
    )
  frozen = [f'd.{block}.{layer}.' for block, layer in build.frozen_layers(config)]
  random = [x for x in frozen if any(name.startswith(x) for name in done['initialised'])]
  if random:
    names = ', '.join(x.removeprefix('d.').rstrip('.') for x in random)
    raise UsageError(
      f'--config.d.freeze_layers={len(frozen)}: {names} of D would stay random for ever; set '
      '--config.init_from= to a run or network file with a trained D of the same architecture, '
      f'resolution, channels and widths, or --config.d.freeze_layers={frozen.index(random[0])}'
    )


def apply(
  config: Any, state: TrainState, origin: Origin, workdir: pathlib.Path, log: Any
) -> TrainState:
  """A fresh state with the weights of an Origin that fit, which is used up.

  What was done goes to the log (a report.Report) and to WORKDIR/init_from.json.
  """
  settings_ = {'settings': other_settings(config, origin)}
  state, done = state_lib.transfer(state, origin.state)
  origin.state.clear()  # it is as large as the whole run
  file = workdir / 'init_from.json'
  note = json.dumps(origin.note | settings_ | done, indent=1) + '\n'
  processes.agreed(partial(files.write_atomic, file, note))
  counts = ', '.join(f'{len(names)} {what}' for what, names in done.items())
  log.say(f'arrays of {origin.path}: {counts}; {file} lists them')
  return state
