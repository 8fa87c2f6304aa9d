"""The loop: stages, minibatches, ticks. The only reader of the clock."""

from collections import Counter
from collections.abc import Iterator
import contextlib
import dataclasses
from functools import partial
import pathlib
import shlex
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.profiler import StepTraceAnnotation, TraceAnnotation
from jax.sharding import Mesh
import numpy as np

from sg2jax import processes, sharding
from sg2jax import state as state_lib
from sg2jax.schedule import Growth, GrowthStage
from sg2jax.signals import Stop
from sg2jax.state import TrainState
from sg2jax.training import nonfinite, report, watchdog
from sg2jax.training import stage as stage_lib
from sg2jax.training.checkpoint import Checkpoints
from sg2jax.training.profile import Profile
from sg2jax.training.snapshot import Snapshot
from sg2jax.training.stage import TrainStage
from sg2jax.training.watchdog import Watchdog


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
  with run.stop.ending_at_once('stopped while pictures are read; nothing to save'):
    run.snapshot.compile_sampler(stage.steps)
  if not step:
    # A picture to compare with before the first minute is over, and a row at 0 in every curve.
    run.snapshot.write_reals('reals', 0)
    metrics = run.snapshot.take(unpacked(state, run.mesh))
    processes.agreed(partial(run.log.tick, 0, 0, metrics, 0, 0))
  elif run.growth.last_stage(step) == stage.steps.stage:
    make_up_for_snapshot(run, state)
  with contextlib.closing(stage.minibatches(nimg)) as minibatches, run.profile:
    state = loop(run, stage, state, run.watchdog.follow(minibatches, step))
  step, nimg = state_lib.clock(state)
  run.watchdog.at(watchdog.SAVING, step)
  if processes.heard(run.stop) and not run.is_finished(step, nimg):
    if state_lib.halted(state):  # in the minibatches since the last tick
      nonfinite.halt(stage, state, run.workdir, run.checkpoints)
    run.checkpoints.save(unpacked(state, run.mesh))
  run.checkpoints.wait()
  return state


def make_up_for_snapshot(run: Run, state: TrainState) -> None:
  """Shows and compares what a signal at the end of the last tick left out."""
  step, nimg = state_lib.clock(state)
  if step % run.growth.repeats:
    return
  due = whats_due(run, run.growth.last_stage(step), nimg)
  if due.snapshot and processes.agreed(partial(run.log.lacks, step, run.snapshot.names)):
    metrics = run.snapshot.take(unpacked(state, run.mesh))
    processes.agreed(partial(run.log.values, step, nimg, metrics))


def loop(run: Run, stage: TrainStage, state: TrainState, minibatches: Iterator[dict]) -> TrainState:
  """Trains until the stage of growth ends, the run ends, or a signal comes. -> state.

  Only the end of a tick waits for the device. `state` is used up.
  """
  step, nimg = state_lib.clock(state)
  aux = ()
  tally = Tally(nimg)
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
    # of training only, not of the snapshot that follows
    end_tick(run, state, (step, nimg), due, metrics, tally.pace(nimg))
    if due.stage_ends:
      break
    tally = Tally(nimg)
  return state


def end_tick(
  run: Run,
  state: TrainState,
  clock: tuple[int, int],
  due: 'Due',
  metrics: dict[str, float],
  pace: tuple[float, float],
) -> None:
  """Logs a tick, shows, saves and measures what is due.

  Args:
    run: what trains.
    state: of the loop.
    clock: minibatches and images so far.
    due: what happens now.
    metrics: means over the tick.
    pace: seconds that its training took, and images per second.
  """
  step, nimg = clock
  if run.growth.levels:
    metrics['lod'] = run.growth.lod(nimg)
  whole = None
  if due.snapshot:
    run.watchdog.at('showing images after', step)
    whole = unpacked(state, run.mesh)
    metrics |= run.snapshot.take(whole, last=run.is_finished(step, nimg))
  # Before the checkpoint: a kill between the two repeats the tick, and no line of it is lost.
  processes.agreed(partial(run.log.tick, step, nimg, metrics, *pace))
  # The checkpoint, then metrics: a kill while they are measured loses no training.
  if due.snapshot:
    run.watchdog.at(watchdog.SAVING, step)
    run.checkpoints.save(whole, score=metrics.get('swd'))
  if due.metrics:
    run.watchdog.at('measuring metrics after', step)
    run.snapshot.measure_metrics(whole)


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
  """Means over a tick of the scalars that steps report, summed on the device; and its pace."""

  def __init__(self, nimg: int = 0) -> None:
    """nimg: images before the tick, which begins now."""
    self._nimg = nimg
    self._start = time.monotonic()
    self._sums = {}  # {phase: {name: a scalar}}
    self._counts = Counter()

  def add(self, phase: str, aux: dict[str, jax.Array]) -> None:
    """Adds what a step of `phase` reported; arrays with axes are left out."""
    scalars = {name: x for name, x in aux.items() if x.ndim == 0}
    self._sums[phase] = _add(self._sums[phase], scalars) if phase in self._sums else scalars
    self._counts[phase] += 1

  def pace(self, nimg: int) -> tuple[float, float]:
    """Seconds so far, and images per second; nimg: images by now."""
    seconds = time.monotonic() - self._start
    return seconds, (nimg - self._nimg) / seconds

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
