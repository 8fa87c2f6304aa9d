"""The run: checks, restore, then minibatches until the end (loop.py)."""

import contextlib
from functools import partial
import pathlib
from typing import Any

from clu import parameter_overview
import jax
from jax.sharding import Mesh

from sg2jax import build, checks, configurations, data, locks, memory, processes, sharding
from sg2jax import state as state_lib
from sg2jax.evaluation import measure, protocols
from sg2jax.faults import UsageError
from sg2jax.signals import Stop
from sg2jax.state import TrainState
from sg2jax.training import checkpoint, init_from, report
from sg2jax.training.checkpoint import Checkpoints
from sg2jax.training.loop import Run, train_stages, whats_due
from sg2jax.training.profile import Profile
from sg2jax.training.snapshot import Snapshot
from sg2jax.training.watchdog import Watchdog
from sg2jax.training.workdir import (
  check_workdir,
  data_values,
  resume,
  save_run,
  settings,
  workdir_path,
)


def train(config: Any, workdir: str | pathlib.Path) -> None:
  """Trains `config` in `workdir` until total_kimg, from its latest checkpoint if there is one.

  Raises: the Faults of faults.py, each with its exit code; nothing that was saved is lost.
  """
  # ---- what can be refused before a device starts, which takes seconds to minutes
  checks.check(config)
  wanted = [protocols.parse(name) for name in config.metrics]
  processes.together(partial(measure.check, wanted, {}))
  if 'swd' in config.metrics:
    raise UsageError(
      f'--config.metrics={config.metrics}: swd is logged at every snapshot, of swd_images images; '
      'leave it out'
    )
  workdir = processes.together(partial(workdir_path, workdir))
  values = config.to_dict()
  # The folder is process 0's alone: the others need not even see it.
  processes.agreed(partial(check_workdir, values, workdir))
  is_new = not processes.agreed(partial(checkpoint.begun, workdir))
  origin = processes.together(partial(init_from.read, config)) if is_new else None

  with Stop() as stop:
    # ---- what devices and the data set must allow
    devices = jax.devices()
    checks.check_devices(config, devices)
    memory.keep_pages(jax.default_backend())
    # Data of a bucket are downloaded, for hours perhaps; the files that came stay.
    with stop.ending_at_once('stopped while the data set is opened'):
      source = processes.together(partial(open_data, config, wanted))
    if is_new:
      init_from.check(config, origin, source.c_dim)
    values |= data_values(source)
    processes.check_same('the run', settings(values))

    # ---- from here on, files are written
    # Compared once more: another run may have begun there, and now the data set is known.
    with processes.held_by_first(locks.locked(workdir)):
      changes = processes.agreed(partial(check_workdir, values, workdir, source.labels))
      processes.agreed(partial(save_run, workdir, values, source.labels, changes))
      mesh = sharding.make_mesh(devices)
      restore_and_train(config, workdir, source, mesh, stop, origin, changes)


def open_data(config: Any, wanted: list[protocols.Protocol]) -> Any:
  """The data.Source that a run trains on, with what it holds out in `held_out`.

  Raises what says that it, or a wanted metric of it, won't do.
  """
  source = build.dataset(config)
  data.check_size(source, max(build.batches(config)))
  # Weights and images that can't be used are refused now, not after days.
  measure.load(wanted, source, {})
  return source


def restore_and_train(
  config: Any,
  workdir: pathlib.Path,
  source: Any,
  mesh: Mesh,
  stop: Stop,
  origin: init_from.Origin | None = None,
  changes: list[str] = (),
) -> None:
  """Everything after the checks: restores, or begins, and trains.

  Args:
    config: of the run.
    workdir: of the run, locked.
    source: the data.Source.
    mesh: of all devices.
    stop: true after a signal.
    origin: of a new run, what it starts from.
    changes: what is other than in the run that goes on, lines for people.
  """
  growth = build.growth(config)
  meta = {'data_hash': source.hash, 'config': config.to_dict()}
  with contextlib.ExitStack() as stack:
    # ---- restore
    checkpoints = Checkpoints(workdir, keep=config.keep, meta=meta)
    stack.enter_context(contextlib.closing(checkpoints))
    same = sharding.replicated(mesh)
    state = checkpoints.restore_latest(build.abstract_state(config, source.c_dim, same))
    is_new = state is None
    if is_new:
      state = build.init_state(config, build.steps(config, source.c_dim, mesh), same)
    step, nimg = state_lib.clock(state)
    log = processes.together(
      partial(report.Report, workdir, step, config.total_kimg, config.augment.target)
    )
    stack.enter_context(contextlib.closing(log))
    log.say(describe(config, state, source, mesh))
    for text in changes:
      log.say(f'another than so far: {text}')
    if not is_new:
      # Another microbatch changes what Adam's moments are of.
      batch = growth.current_stage(step, nimg).batch
      state = resume(config, batch, state, checkpoints.restored, mesh, log)
    elif origin:
      state = sharding.replicate(mesh, init_from.apply(config, state, origin, workdir, log))

    snapshot = processes.together(partial(Snapshot, workdir, config, source, mesh, log, stop))
    profile = Profile(build.profiled(config), workdir, log)
    profile.announce(step)
    dog = stack.enter_context(Watchdog(config.watchdog_seconds))
    run = Run(config, workdir, source, mesh, growth, checkpoints, log, snapshot, profile, stop, dog)

    if not is_new:
      catch_up(run, state)
    # From here on a few large arrays, where that is faster; the small ones are let go.
    state = jax.jit(partial(state_lib.pack_state, mesh=mesh), out_shardings=same)(state)
    train_stages(run, state)


def catch_up(run: Run, state: TrainState) -> None:
  """What is due at a restored state, and what the process that saved it may have left undone."""
  step, nimg = state_lib.clock(state)
  if run.checkpoints.restored['meta'].get('data_hash') != run.source.hash:
    # Metrics of this step, if there are any, are of the pictures before, and stay.
    run.snapshot.write_reals(f'reals_{nimg // 1000:06d}', step)
  elif step and step % run.growth.repeats == 0:
    if whats_due(run, run.growth.last_stage(step), nimg).metrics:
      run.snapshot.measure_metrics(state)  # only those that aren't there


def describe(config: Any, state: TrainState, source: Any, mesh: Mesh) -> str:
  """Lines on what is about to run."""
  height, width, channels = source.shape
  g, d = (parameter_overview.count_parameters(net) / 1e6 for net in (state.g, state.d))
  aside = f' ({len(source.held_out)} more are held out)' if source.held_out else ''
  begin = f'starting from {config.init_from or "scratch"}'
  augmentation = ''
  if config.augment.pipeline == 'auto':
    chosen = configurations.chosen_pipeline('auto', len(source)) or 'none'
    reason = f'of {len(source)} images; none from {configurations.AUTO_IMAGES} on'
    augmentation = f'\naugmentation: {chosen} ({reason}: --config.augment.pipeline=auto)'
  if state.step:
    begin = f'resuming at step {int(state.step)}, {int(state.nimg) / 1000:g} kimg'
  return (
    f'{source.name}: {len(source)} images {height}x{width}x{channels}{aside}, {source.c_dim} label '
    f'components; G {config.g.architecture} {g:.2f}M, D {config.d.architecture} '
    f'{d:.2f}M parameters; {mesh.size} x {mesh.devices.flat[0].device_kind}\n'
    f'{begin}; to {config.total_kimg:g} kimg{augmentation}'
  )
