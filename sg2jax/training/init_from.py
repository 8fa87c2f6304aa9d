"""What a new run starts from: the weights of another run, of a checkpoint or of a network file."""

from collections.abc import Iterable
import json
import pathlib
from typing import Any, NamedTuple

import jax

from sg2jax import build, files, paths
from sg2jax import state as state_lib
from sg2jax.faults import CheckpointError, UsageError
from sg2jax.interop.read import read_network
from sg2jax.models.sizes import GROWING, block_sizes, image_side_layers
from sg2jax.state import TrainState
from sg2jax.training import checkpoint
from sg2jax.training.workdir import difference, settings

# Fields without which weights of another run can't be used: the arrays don't show them.
MEANING = {
  f'{net}.variant.{name}' for net in 'gd' for name in ('activation', 'taps', 'mapping_lr_mul')
}
SHOWN = 20  # lines of the log on what was taken over and what not, at most

Layer = tuple[str, str]  # (block, layer) of a discriminator, such as ('b16', 'conv0')


class Origin(NamedTuple):
  """What a new run starts from.

  Attributes:
    path: as the user gave it.
    state: nested dicts of arrays, as of `checkpoint.load`.
    config: of its networks, as of `checkpoint.load`.
    note: where it is from, JSON values.
    untrained: layers of its discriminator from the image side that nobody trained.
  """

  path: str
  state: dict
  config: dict
  note: dict
  untrained: frozenset[Layer]


def read(config: Any) -> Origin | None:
  """The Origin that config.init_from names: a workdir, a checkpoint, a network file; or None.

  Raises:
    CheckpointError: there is no whole checkpoint.
    WeightsError: of a file: it can't be read, or holds what our networks can't do.
    UsageError: its weights mean something else in this configuration.
  """
  given = config.init_from
  if not given:
    return None
  paths.check_local(given, f'--config.init_from={given}')
  path = pathlib.Path(given).expanduser().absolute()
  if not path.exists():
    raise CheckpointError(
      f'--config.init_from={given}: there is nothing; name a workdir, one of its checkpoints, or a '
      'network file'
    )
  if path.is_file():
    state, old, note, history = _read_file(path)
  else:
    step = checkpoint.find(path)
    state, old = checkpoint.load(step)
    note = {'checkpoint': str(step)}
    history = _history(step, state, old)
  origin = Origin(given, state, old, note, _untrained(state, build.complete(old), history))
  other_settings(config, origin)
  return origin


def _read_file(path):
  """(state, config, note, report) of a network file."""
  imported = read_network(path)
  report = imported.report
  note = {
    'file': report['source'],
    'sha256': report['sha256'],
    'format': report['format'],
    'notes': [f'{name}: {why}' for name, why in report['initialised'].items()] + report['notes'],
  }
  return imported.state, imported.config, note, report


def other_settings(config: Any, origin: Origin) -> dict[str, str]:
  """{field of config.g, config.d: 'a there, b here'} where an Origin has another value.

  Raises:
    UsageError: a field that changes what its weights mean.
  """
  old = settings(origin.config)
  new = settings(config)
  # Of a file without a discriminator, its config.d says nothing.
  nets = [net for net in 'gd' if origin.state.get(net)]
  names = [name for name in new if name in old and name.split('.')[0] in nets]
  differ = {name: difference(name, old, new) for name in names if old[name] != new[name]}
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
  return {name: text.removeprefix(f'{name}: ') for name, text in differ.items()}


# ---- layers of a discriminator that nobody trained


def _history(step, state, config):
  """How a checkpoint began, as a dict: init_from.json or import.json of its run; {}: from nothing.

  step: path of the checkpoint.
  """
  imported = not state.get('d_opt')  # imported networks have no moments
  if not imported and not config.get('init_from'):
    return {}
  name = 'import.json' if imported else 'init_from.json'
  try:
    return json.loads((step.parent.parent / name).read_text())
  # It was moved; what it said isn't known, and nothing is refused for it.
  except (OSError, ValueError):
    return {'initialised': {}}


def _untrained(state, config, history):
  """The layers of the discriminator of a state that nobody trained.

  history: a dict with the names of arrays that were 'initialised' at its start; {}: all were.
  """
  layers = layers_of(config)
  nimg = int(state['nimg'])
  blocks = _blocks(layers)
  blocks_to_grow = 0
  if config.get('grow') and config.grow.start_res:
    blocks_to_grow = build.growth(config).stage(nimg).level
  as_at_the_start = {
    layer
    for layer in layers
    if not nimg
    or layer in layers[: config.d.freeze_layers]
    or layer[0] in blocks[:blocks_to_grow]
    or not _is_used(config, layer)
  }
  if history:
    as_at_the_start &= _layers_among(layers, history.get('initialised', {}))
  return frozenset(as_at_the_start)


def layers_of(config: Any) -> list[Layer]:
  """A discriminator's layers from the image side on, without the last block: Freeze-D's count."""
  return image_side_layers(config.d.architecture, block_sizes(build.resolution(config)))


def _blocks(layers):
  """Names of the blocks of these layers, in order."""
  return list(dict.fromkeys(block for block, _ in layers))


def _layers_among(layers: Iterable[Layer], names: Iterable[str]) -> set[Layer]:
  """The layers of which arrays are among these names of a state."""
  return {
    (block, layer)
    for block, layer in layers
    if any(name.startswith(f'd.{block}.{layer}.') for name in names)
  }


def _is_used(config, layer):
  """Whether a layer ever computes anything.

  Networks that can grow have a fromrgb in every block, for images at sizes that they may never have
  in training.
  """
  block, name = layer
  if name != 'fromrgb' or config.d.architecture not in GROWING:
    return True
  return _blocks(layers_of(config)).index(block) <= build.growth(config).levels


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
  layers = layers_of(config)
  frozen = layers[: config.d.freeze_layers]
  drawn = _layers_among(frozen, done['initialised'])
  untrained = origin.untrained if origin else frozenset()
  random = [x for x in frozen if x in drawn | untrained and _is_used(config, x)]
  if not random:
    return
  if not origin:
    why = 'without --config.init_from they are drawn anew'
  elif random[0] in drawn:
    why = f'{origin.path} has nothing that fits'
  else:
    why = f'in {origin.path} nobody trained them, either'
  some = ', '.join('.'.join(layer) for layer in random[:8])
  if len(random) > 8:
    some += ', ...'
  raise UsageError(
    f'--config.d.freeze_layers={config.d.freeze_layers}: {some} of D would stay random for ever: '
    f'{why}. Set --config.init_from= to a run or network file with a trained D of the same '
    'architecture, resolution, channels and widths, or '
    f'--config.d.freeze_layers={layers.index(random[0])}'
  )


# ---- the start


def apply(
  config: Any, state: TrainState, origin: Origin, workdir: pathlib.Path, log: Any
) -> TrainState:
  """A fresh state with the weights of an Origin that fit, which is used up.

  What was done goes to the log (a report.Report) and to WORKDIR/init_from.json.
  """
  differ = other_settings(config, origin)
  state, done = state_lib.transfer(state, origin.state)
  origin.state.clear()  # it is as large as the whole run
  done = origin.note | {'settings': differ} | done
  note = workdir / 'init_from.json'
  if jax.process_index() == 0:
    files.write_atomic(note, json.dumps(done, indent=1) + '\n')
  lines = [
    f'{origin.path}: {len(done["copied"])} arrays copied, {len(done["initialised"])} initialised, '
    f'{len(done["unused"])} unused'
  ]
  lines += [f'  {text}' for text in done.get('notes', [])]
  for kind in ('settings', 'initialised', 'unused'):
    lines += [f'  {kind} {name}: {why}' for name, why in done[kind].items()]
  if len(lines) > SHOWN:
    lines[SHOWN:] = [f'  ... and others, see {note}']
  log.say('\n'.join(lines))
  return state
