"""The folder of a run: who holds it, whether it may go on with a configuration, and what a new run
starts from.
"""

import contextlib
from functools import partial
import json
import os
import pathlib
import re
import shlex
from typing import NamedTuple

import jax

from sg2jax import build, checkpoint, files, locks, paths, sampler, sharding
from sg2jax import state as state_lib
from sg2jax.faults import CheckpointError, UsageError
from sg2jax.interop import read
from sg2jax.models.stylegan2 import GROWING, block_sizes, image_side_layers

# Fields that may differ from the run that a workdir holds: they change how long or how it is
# watched, not what is computed.
FREE = (
  'total_kimg',
  'tick_kimg',
  'snapshot_kimg',
  'keep',
  'swd_images',
  'metrics',
  'metrics_kimg',
  'device',
  'data.dir',
  'g.remat',
  'd.remat',
)
# These may, too, but it is said: they change what is computed, but not what it is about.
TOLD = ('microbatch', 'precision')
# What belongs to the data set, which `config.data.allow_change` lets be another.
DATA = ('data.name', 'data.allow_change', 'data_hash', 'data_title', 'data_images')

# Fields of the networks without which weights of another run can't be used: the arrays don't show
# them.
MEANING = {f'{net}.{name}' for net in 'gd' for name in ('activation', 'taps', 'mapping_lr_mul')}


# ---- the run that it holds


def folder(workdir):
  """The workdir as a path. Raises UsageError if it is the address of something that isn't mounted,
  or a file.
  """
  paths.check_local(workdir, f'--workdir={workdir}')
  # a Path has made one slash of two
  if scheme := re.match(r'[A-Za-z][A-Za-z0-9+.-]+:(?=/)', str(workdir)):
    paths.check_local(f'{scheme[0]}//', f'--workdir={workdir}')
  if os.path.exists(workdir) and not os.path.isdir(workdir):
    raise UsageError(f'--workdir={workdir} is a file; name a directory')
  return pathlib.Path(workdir)


def data_values(source):
  """What config.json says of a data set, so that another one is noticed and named."""
  return {
    'c_dim': source.c_dim,
    'data_hash': source.hash,
    'data_title': source.name,
    'data_images': len(source),
  }


def check_workdir(values, workdir, labels=None):
  """Compares a configuration with that of the run which a workdir holds. Creates nothing.

  Args:
    values: the configuration as a dict; once the data set is known with `data_values` of it.
    workdir: path of the run.
    labels: data.labels.Labels of the data set, or None.

  Returns:
    What is another and may be, as lines for people.

  Raises:
    UsageError: it holds a run of another configuration or data set.
  """
  path = workdir / 'config.json'
  if not path.exists() or not checkpoint.begun(workdir):
    return []  # nothing has been trained yet
  start = (
    f'a new --workdir with --config.init_from={shlex.quote(str(workdir))} starts from its weights'
  )
  if (workdir / 'import.json').exists():
    raise UsageError(
      f'--workdir={workdir} holds an imported network, of which there is no state of training to '
      f'go on from; {start}'
    )
  try:
    old = flat(json.loads(json.dumps(build.YOUNGER))) | flat(json.loads(path.read_text()))
  except (ValueError, AttributeError):
    raise UsageError(
      f'{path} is not readable as JSON; restore it or use another --workdir'
    ) from None
  new = flat(json.loads(json.dumps(values)))
  pictures = _other_pictures(old, new, workdir, labels)
  changed = [
    f'{k}: {old[k]} there, {new[k]} here'
    for k in sorted(new)
    if k not in (*FREE, *TOLD, *DATA) and k in old and old[k] != new[k]
  ]
  if changed:
    raise UsageError(
      f'--workdir={workdir} holds a run of another configuration '
      f'({"; ".join(changed + pictures)}); use another '
      f'workdir, or the configuration of that run; {start}'
    )
  lines = [f'{k}: {old[k]} there, {new[k]} here' for k in TOLD if old.get(k, new[k]) != new[k]]
  if pictures and not new['data.allow_change']:
    raise UsageError(
      f'--workdir={workdir} holds a run on other pictures ({"; ".join(pictures)}); '
      f'--config.data.allow_change=True goes on with these; {start}'
    )
  return lines + [f'pictures: {text}' for text in pictures]


def _other_pictures(old, new, workdir, labels):
  """How the data sets of two flat configurations differ, as a list of text."""
  found = []
  if old.get('data_hash', new.get('data_hash')) != new.get('data_hash') and 'data_hash' in new:
    text = lambda x: (
      f'{x.get("data_title") or x.get("data.name") or "a data set"}, {_count(x)}'
      f'hash {str(x["data_hash"])[:8]}'
    )
    found.append(f'{text(old)} there; {text(new)} here')
  before = sampler.read_labels(workdir, old.get('c_dim', 0)) if labels else None
  if before and before.names and labels.names and before.names != labels.names:
    found.append(f'classes {before.listing()} there; {labels.listing()} here')
  return found


def _count(values):
  return f'{values["data_images"]:,} images, ' if 'data_images' in values else ''


def flat(tree, prefix=''):
  """Nested dict -> {'a.b': value}."""
  items = {}
  for k, v in tree.items():
    items |= flat(v, f'{prefix}{k}.') if isinstance(v, dict) else {prefix + k: v}
  return items


@contextlib.contextmanager
def locked(workdir, flag='workdir'):
  """Holds a folder, named by `flag`, for this process; the system releases it however the process
  ends.
  """
  with files.writing(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    try:
      lock = locks.acquire(workdir / '.lock')
    except locks.Held as e:
      raise UsageError(
        f'--{flag}={workdir} is in use by process {e}; use another, or stop that one'
      ) from None
  with lock:
    yield


def resume(config, batch, state, manifest, mesh, log):
  """A restored state, as this configuration goes on with it; says what is not as if it had never
  stopped.

  Args:
    config: of this start.
    batch: images of a minibatch, at the stage of growing that the state is in.
    state: TrainState on all devices.
    manifest: of its checkpoint.
    mesh: of the devices.
    log: report.Report.
  """
  if manifest['format'] < 2:
    log.say(
      'begun by version 0.1, which drew other random numbers: this run goes on from what was '
      'saved, but not bit for bit as that version would have'
    )
  before = build.complete(manifest['meta']['config'])
  old, new = (build.microbatch(c, batch) for c in (before, config))
  if old == new:
    return state
  groups = [min(c.d.mbstd_group_size, micro) for c, micro in ((before, old), (config, new))]
  log.say(
    f'microbatch: rounds of {old} images there, of {new} here: sums differ in rounding, w_avg and '
    'pl_mean move with each round'
    + (
      f', and minibatch stddev is over groups of {groups[1]} images, not {groups[0]}'
      if groups[0] != groups[1] and config.d.mbstd_num_channels
      else ''
    )
  )
  # it averages over rounds; the other one sums, and the moments are of the sums
  if config.opt.formulation == 'tensorflow':
    return state
  scale = partial(state_lib.scale_adam, factor=old / new)
  return jax.jit(scale, donate_argnums=0, out_shardings=sharding.replicated(mesh))(state)


# ---- what a new run starts from


class Origin(NamedTuple):
  """What a new run starts from.

  path: as the user gave it; state, config: as of `checkpoint.load`; note: where it is from, JSON
  values; random: layers of its discriminator from the image side that nobody trained, {(block,
  layer)}.
  """

  path: str
  state: dict
  config: dict
  note: dict
  random: frozenset


def origin(config):
  """The Origin that config.init_from names: a workdir, a checkpoint of one, or a network file; None
  if it names nothing.

  Raises:
    CheckpointError: there is no whole checkpoint.
    WeightsError: of a file: it can't be read, or holds what our networks can't do.
    UsageError: its weights mean something else in this configuration.
  """
  path = config.init_from
  if not path:
    return None
  paths.check_local(path, f'--config.init_from={path}')
  place = pathlib.Path(path).expanduser().absolute()
  if not place.exists():
    raise CheckpointError(
      f'--config.init_from={path}: there is nothing; name a workdir, one of its checkpoints, or a '
      'network file'
    )
  if place.is_file():
    found = read.read(place)
    note = {
      'file': found.report['source'],
      'sha256': found.report['sha256'],
      'format': found.report['format'],
      'notes': [f'{k}: {v}' for k, v in found.report['initialised'].items()]
      + found.report['notes'],
    }
    start = Origin(
      path, found.state, found.config, note, _random(found.state, found.config, found.report)
    )
  else:
    step = checkpoint.find(place)
    state, old = checkpoint.load(step)
    start = Origin(
      path, state, old, {'checkpoint': str(step)}, _random(state, old, _history(step, state, old))
    )
  other_settings(config, start)
  return start


def _history(step, state, config):
  """What says where a checkpoint began: init_from.json or import.json of its run, as a dict; {}: it
  began from nothing.
  """
  imported = not state.get('d_opt')  # imported networks have no moments
  if not imported and not config.get('init_from'):
    return {}
  try:
    return json.loads(
      (step.parent.parent / ('import.json' if imported else 'init_from.json')).read_text()
    )
  # it was moved; what it said isn't known, and nothing is refused for it
  except (OSError, ValueError):
    return {'initialised': {}}


def _random(state, config, history):
  """{(block, layer)} of a discriminator that nobody trained. history: with the names that were
  'initialised'; {}: all were.
  """
  config = build.complete(config)
  layers, nimg, untouched = layers_of(config), int(state['nimg']), 0
  if config.get('grow') and config.grow.start_res:
    untouched = build.growth(config).stage(nimg).level  # so many blocks it has yet to grow
  blocks = list(dict.fromkeys(block for block, _ in layers))
  frozen = layers[: config.d.freeze_layers]
  candidates = {
    x
    for x in layers
    if not nimg or x in frozen or x[0] in blocks[:untouched] or not _is_used(config, x)
  }
  if history:
    candidates &= initialised(layers, history.get('initialised', {}))
  return frozenset(candidates)


def layers_of(config):
  """(block, layer) of a discriminator from the image side, before the last block: what Freeze-D
  counts.
  """
  return image_side_layers(config.d.architecture, block_sizes(build.resolution(config)))


def initialised(layers, names):
  """Which of {(block, layer)} of a discriminator have arrays among these names of a state."""
  return {x for x in layers if any(name.startswith(f'd.{x[0]}.{x[1]}.') for name in names)}


def other_settings(config, start):
  """{field of config.g, config.d: 'a there, b here'} where an Origin has another value.

  Raises: UsageError for a field that changes what its weights mean.
  """
  # of a file without a discriminator, config.d says nothing
  nets = [net for net in 'gd' if start.state.get(net)]
  there, here = (
    flat(json.loads(json.dumps({k: tree[k] for k in nets})))
    for tree in (build.complete(start.config).to_dict(), config.to_dict())
  )
  other = {
    name: f'{there[name]} there, {x} here' for name, x in here.items() if there.get(name, x) != x
  }
  for name in sorted(MEANING & other.keys()):
    raise UsageError(
      f'--config.{name}={here[name]}: the weights of {start.path} go with {there[name]}; set it to '
      'that'
    )
  return other


def check_start(config, start, c_dim):
  """Refuses what a new run can't start from, before anything is created. start: an Origin or None.

  Raises:
    CheckpointError: no weight of it fits the generator.
    UsageError: frozen layers of the discriminator would stay as they were drawn for ever.
  """
  if not start and not config.d.freeze_layers:
    return
  state = jax.eval_shape(lambda: build.init_state(config, build.steps(config, c_dim, None), None))
  done = state_lib.transfer(state, start.state if start else {})[1]
  if start and not any(name.startswith('g') for name in done['copied']):
    raise CheckpointError(
      f'--config.init_from={start.path}: no weight of it fits this generator; use a configuration '
      'like its own'
    )
  layers = layers_of(config)[: config.d.freeze_layers]
  drawn, untrained = (
    initialised(layers, done['initialised']),
    start.random if start else frozenset(),
  )
  random = [x for x in layers if x in drawn | untrained and _is_used(config, x)]
  if not random:
    return
  some = ', '.join('.'.join(x) for x in random[:8]) + (', ...' if len(random) > 8 else '')
  why = (
    (
      f'{start.path} has nothing that fits'
      if random[0] in drawn
      else f'in {start.path} nobody trained them, either'
    )
    if start
    else 'without --config.init_from they are drawn anew'
  )
  raise UsageError(
    f'--config.d.freeze_layers={config.d.freeze_layers}: {some} of D would stay random for ever: '
    f'{why}. Set --config.init_from= to a run or network file with a trained D of the same '
    'architecture, resolution, channels and widths, or '
    f'--config.d.freeze_layers={layers.index(random[0])}'
  )


def _is_used(config, layer):
  """Whether a layer ever computes anything: networks that can grow take images at sizes that they
  have in training only.
  """
  blocks = list(dict.fromkeys(block for block, _ in layers_of(config)))
  return (
    layer[1] != 'fromrgb'
    or config.d.architecture not in GROWING
    or blocks.index(layer[0]) <= build.growth(config).levels
  )


def init_from(config, state, start, workdir, log):
  """A fresh state with the weights of an Origin that fit; what was done goes to the log and
  init_from.json.
  """
  settings, (state, done) = other_settings(config, start), state_lib.transfer(state, start.state)
  start.state.clear()  # it is as large as the whole run
  done = start.note | {'settings': settings} | done
  note = workdir / 'init_from.json'
  if jax.process_index() == 0:
    files.write_atomic(note, json.dumps(done, indent=1) + '\n')
  lines = [
    f'{start.path}: {len(done["copied"])} arrays copied, {len(done["initialised"])} initialised, '
    f'{len(done["unused"])} unused'
  ]
  lines += [f'  {text}' for text in done.get('notes', [])]
  lines += [
    f'  {kind} {name}: {why}'
    for kind in ('settings', 'initialised', 'unused')
    for name, why in done[kind].items()
  ]
  log.say('\n'.join(lines[:20] + ([f'  ... and others, see {note}'] if len(lines) > 20 else [])))
  return state
