"""The run: checks, restore, then minibatches until the end. The only reader of the clock."""

from collections import Counter
from collections.abc import Iterator
import contextlib
import dataclasses
from functools import partial
import pathlib
import shlex
import time
from typing import Any

from clu import parameter_overview
import jax
import jax.numpy as jnp
from jax.profiler import StepTraceAnnotation, TraceAnnotation
from jax.sharding import Mesh
import numpy as np

from sg2jax import build, checks, data, locks, memory, paths, processes, sharding
from sg2jax import state as state_lib
from sg2jax.evaluation import measure, protocols
from sg2jax.faults import UsageError
from sg2jax.schedule import Growth, GrowthStage
from sg2jax.signals import Stop
from sg2jax.state import TrainState
from sg2jax.training import checkpoint, init_from, nonfinite, report, watchdog
from sg2jax.training import stage as stage_lib
from sg2jax.training.checkpoint import Checkpoints
from sg2jax.training.profile import Profile
from sg2jax.training.snapshot import Snapshot
from sg2jax.training.stage import TrainStage
from sg2jax.training.watchdog import Watchdog
from sg2jax.training.workdir import (
  check_workdir,
  data_values,
  resume,
  save_run,
  settings,
  workdir_path,
)


@dataclasses.dataclass(frozen=True)
class Run:
  """What a process trains with from its first minibatch to its last."""

  config: Any
  workdir: pathlib.Path
  source: Any  # data.Source
  mesh: Mesh
  growth: Growth
  checkpoints: Checkpoints
  log: report.Report
  snapshot: Snapshot
  profile: Profile
  stop: Stop
  watchdog: Watchdog

  def is_finished(self, step: int, nimg: int) -> bool:
    """Whether total_kimg is reached, at a check of the schedule of growth."""
    return nimg >= self.config.total_kimg * 1000 and step % self.growth.repeats == 0


def train(config: Any, workdir: str | pathlib.Path) -> None:
  """Trains `config` in `workdir` until total_kimg, from its latest checkpoint if there is one.

  Raises: the Faults of faults.py, each with its exit code; nothing that was saved is lost.
  """
  # ---- what can be refused before a device starts, which takes seconds to minutes
  checks.check(config)
  wanted = [protocols.parse(name) for name in config.metrics]
  measure.check(wanted, {})
  if 'swd' in config.metrics:
    raise UsageError(
      f'--config.metrics={config.metrics}: swd is logged at every snapshot, of swd_images images; '
      'leave it out'
    )
  paths.check_local(config.data.dir, f'--config.data.dir={config.data.dir}')
  workdir = workdir_path(workdir)
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
  """The data.Source of a run. Raises what says that it, or a wanted metric of it, won't do."""
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
    log = processes.together(partial(report.Report, workdir, step, config.total_kimg))
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

    snapshot = Snapshot(workdir, config, source, mesh, log, stop)
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


def train_stages(run: Run, state: TrainState) -> None:
  """Trains a state, as pack_state made it, to total_kimg, stage by stage.

  Raises Preempted or Interrupted if a signal comes.
  """
  step, nimg = state_lib.clock(state)
  while not (stopped := processes.heard(run.stop)) and not run.is_finished(step, nimg):
    state = train_stage(run, state)
    step, nimg = state_lib.clock(state)
  if stopped:
    saved = f'saved step {step} ({nimg / 1000:g} kimg)'
    run.stop.leave(saved if step else 'stopped before the first minibatch')
  run.profile.conclude(step)
  run.log.say(hint(run.workdir))


def train_stage(run: Run, state: TrainState) -> TrainState:
  """Compiles for the stage of growth that `state` is in, and trains to its end."""
  step, nimg = state_lib.clock(state)
  run.watchdog.at('compiling for', step)
  stage = stage_lib.create(run.config, run.source, run.mesh, run.growth.current_stage(step, nimg))
  start = time.monotonic()
  stage = stage_lib.compiled(stage, state, run.stop)
  size = 'x'.join(map(str, stage.images.shape))
  run.log.say(f'{size}, batch {stage.batch}: compiled in {time.monotonic() - start:.0f} s')
  run.snapshot.compile_sampler(stage.steps)
  if not step:
    # A picture to compare with before the first minute is over, and a row at 0 in every curve.
    run.snapshot.write_reals('reals', 0)
    metrics = run.snapshot.take(unpacked(state, run.mesh))
    processes.agreed(partial(run.log.tick, 0, 0, metrics, 0, 0))
  with contextlib.closing(stage.minibatches(nimg)) as minibatches, run.profile:
    state = loop(run, stage, state, run.watchdog.follow(minibatches, step))
  run.watchdog.at(watchdog.SAVING, step)
  if processes.heard(run.stop) and not run.is_finished(*state_lib.clock(state)):
    if state_lib.halted(state):  # in the minibatches since the last tick
      nonfinite.halt(stage, state, run.workdir, run.checkpoints)
    run.checkpoints.save(unpacked(state, run.mesh))
  run.checkpoints.wait()
  return state


def loop(run: Run, stage: TrainStage, state: TrainState, minibatches: Iterator[dict]) -> TrainState:
  """Trains until the stage of growth ends, the run ends, or a signal comes. -> state.

  Only the end of a tick waits for the device. `state` is used up.
  """
  step, nimg = state_lib.clock(state)
  aux = ()
  tally = Tally()
  tick_start = time.monotonic()
  tick_nimg = nimg
  while not processes.heard(run.stop):
    # ---- one minibatch
    aux_before = aux
    run.profile.begin(step)
    # A copy between host and device that nobody asked for would wait for one of them: an error.
    with StepTraceAnnotation('minibatch', step_num=step), jax.transfer_guard('disallow'):
      state, aux = train_minibatch(stage, state, step, minibatches, tally)
      # The device is one minibatch behind at most: a signal is heard in time.
      jax.block_until_ready(aux_before)
    run.profile.end(step, aux)
    step += 1
    nimg += stage.batch
    run.log.progress(nimg)

    # ---- what is due, looked at with the schedule of growth
    if step % run.growth.repeats:
      continue
    due = whats_due(run, stage.steps.stage, nimg)
    if due.reset_adam:
      state = reset_adam(state, run.mesh)
    if not due.tick:
      continue

    # ---- end of a tick
    metrics = tally.fetch(state)
    if metrics is None:
      run.watchdog.at(watchdog.SAVING, step)
      nonfinite.halt(stage, state, run.workdir, run.checkpoints)
    if run.growth.levels:
      metrics['lod'] = run.growth.lod(nimg)
    # of training only, not of the snapshot below
    seconds = time.monotonic() - tick_start
    if due.snapshot:
      run.watchdog.at('showing images after', step)
      whole = unpacked(state, run.mesh)
      metrics |= run.snapshot.take(whole, last=run.is_finished(step, nimg))
    # Before the checkpoint: a kill between the two repeats the tick, and no line of it is lost.
    rate = (nimg - tick_nimg) / seconds
    processes.agreed(partial(run.log.tick, step, nimg, metrics, seconds, rate))

    # ---- checkpoint, then metrics: a kill while they are measured loses no training
    if due.snapshot:
      run.watchdog.at(watchdog.SAVING, step)
      run.checkpoints.save(whole, score=metrics.get('swd'))
    if due.metrics:
      run.watchdog.at('measuring metrics after', step)
      run.snapshot.measure_metrics(whole)
    whole = None  # or a second state would stay on the device
    if due.stage_ends:
      break
    tally = Tally()
    tick_start = time.monotonic()
    tick_nimg = nimg
  return state


def train_minibatch(
  stage: TrainStage, state: TrainState, step: int, minibatches: Iterator[dict], tally: 'Tally'
) -> tuple[TrainState, dict]:
  """Issues the phases of minibatch `step` -> state and what the last phase reports, as promises.

  Names them for a profile.
  """
  # Asked for: to several processes' devices JAX copies in a way that its guard takes for a mistake.
  with TraceAnnotation('input'), jax.transfer_guard('allow'):
    batch = sharding.to_global(stage.mesh, next(minibatches))
  for phase in stage.steps.phases(step):
    with TraceAnnotation(phase):
      state, aux = stage.functions[phase](stage.key, state, batch)
    tally.add(phase, aux)
  return state, aux


@dataclasses.dataclass(frozen=True)
class Due:
  """What happens after a minibatch."""

  stage_ends: bool
  reset_adam: bool
  tick: bool
  snapshot: bool  # and a checkpoint
  metrics: bool


def whats_due(run: Run, growth_stage: GrowthStage, nimg: int) -> Due:
  """What is due at a check of the schedule, since the check before."""
  config = run.config
  before = nimg - run.growth.repeats * growth_stage.batch

  def passed(kimg):
    """Whether a multiple of so many thousand images was reached."""
    return nimg // (1000 * kimg) > before // (1000 * kimg)

  run_ends = nimg >= config.total_kimg * 1000
  stage_ends = run_ends or run.growth.stage(nimg) != growth_stage
  metrics = bool(config.metrics) and (run_ends or passed(config.metrics_kimg))
  snapshot = stage_ends or metrics or passed(config.snapshot_kimg)
  tick = snapshot or passed(config.tick_kimg)
  return Due(stage_ends, run.growth.resets_adam(before, nimg), tick, snapshot, metrics)


class Tally:
  """Means over a tick of the scalars that steps report, summed on the device."""

  def __init__(self) -> None:
    self._sums = {}  # {phase: {name: a scalar}}
    self._counts = Counter()

  def add(self, phase: str, aux: dict[str, jax.Array]) -> None:
    """Adds what a step of `phase` reported; arrays with axes are left out."""
    scalars = {name: x for name, x in aux.items() if x.ndim == 0}
    self._sums[phase] = _add(self._sums[phase], scalars) if phase in self._sums else scalars
    self._counts[phase] += 1

  def fetch(self, state: TrainState) -> dict[str, float] | None:
    """{name: mean}; None if `state` is halted. Waits for the device."""
    # At once: all are on their way before the first is waited for.
    sums, fault = jax.device_get((self._sums, state.fault))
    if fault[1] >= 0:
      return None
    means = {}
    for phase, scalars in sums.items():
      count = np.float32(self._counts[phase])
      means |= {name: float(x / count) for name, x in scalars.items()}
    return means


@jax.jit
def _add(a, b):
  return jax.tree.map(jnp.add, a, b)


def reset_adam(state: TrainState, mesh: Mesh) -> TrainState:
  """The state with the moments of Adam at 0; it is used up."""
  same = sharding.replicated(mesh)
  return jax.jit(state_lib.reset_adam, donate_argnums=0, out_shardings=same)(state)


def unpacked(state: TrainState, mesh: Mesh) -> TrainState:
  """A copy of a state of the loop, not packed, for pictures, metrics and checkpoints."""
  return jax.jit(state_lib.unpack_state, out_shardings=sharding.replicated(mesh))(state)


def hint(workdir: pathlib.Path) -> str:
  """What a finished run says; the command can be pasted."""
  option = f'--checkpoint={shlex.quote(str(workdir))}'
  return f'done: pictures in {workdir}/images; python -m sg2jax.tools.evaluate {option} measures it'


def describe(config: Any, state: TrainState, source: Any, mesh: Mesh) -> str:
  """Two lines on what is about to run."""

  height, width, channels = source.shape
  g, d = (parameter_overview.count_parameters(net) / 1e6 for net in (state.g, state.d))
  begin = f'starting from {config.init_from or "scratch"}'
  if state.step:
    begin = f'resuming at step {int(state.step)}, {int(state.nimg) / 1000:g} kimg'
  return (
    f'{source.name}: {len(source)} images {height}x{width}x{channels}, {source.c_dim} label '
    f'components; G {config.g.architecture} {g:.2f}M, D {config.d.architecture} '
    f'{d:.2f}M parameters; {mesh.size} x {mesh.devices.flat[0].device_kind}\n'
    f'{begin}; to {config.total_kimg:g} kimg'
  )
