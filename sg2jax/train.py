"""The run: build, restore, loop, maintenance. The only reader of the clock."""

from concurrent import futures
import contextlib
from functools import partial
import shlex
import time

import jax
import jax.numpy as jnp
import numpy as np

from sg2jax import build, checkpoint, data, locks, nonfinite, paths, report, sharding
from sg2jax import state as state_lib
from sg2jax.checkpoint import Checkpoints
from sg2jax.evaluation import measure, protocols
from sg2jax.faults import UsageError
from sg2jax.keys import purpose_key
from sg2jax.locks import locked
from sg2jax.signals import Stop
from sg2jax.snapshot import Snapshot
from sg2jax.workdir import (
  check_start,
  check_workdir,
  data_values,
  folder,
  init_from,
  origin,
  resume,
)


def train(config, workdir):
  """Trains `config` in `workdir` until total_kimg, from its latest checkpoint if there is one.

  Raises: the Faults of faults.py, each with its exit code; nothing that was saved is lost.
  """
  locks.module()
  build.check(config)
  wanted = [protocols.parse(name) for name in config.metrics]
  measure.check(wanted, {})
  if 'swd' in config.metrics:
    raise UsageError(
      f'--config.metrics={config.metrics}: swd is logged at every snapshot, of swd_images images; '
      'leave it out'
    )
  paths.check_local(config.data.dir, f'--config.data.dir={config.data.dir}')
  workdir, values = folder(workdir), config.to_dict()
  check_workdir(values, workdir)
  begins = not checkpoint.begun(workdir)
  start = origin(config) if begins else None
  with Stop() as stop:
    devices = jax.devices()
    build.check_devices(config, devices)
    source = data.load(
      config.data.name,
      config.data.dir,
      build.resolution(config),
      config.data.channels,
      config.data.labels,
    )
    data.check_size(source, max(build.batches(config)))
    # weights and images that can't be used are refused now, not after days
    measure.load(wanted, source, {})
    if begins:
      check_start(config, start, source.c_dim)
    values |= data_values(source)
    # The others of several processes write nothing, and the folder is one for all.
    with locked(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
      changes = check_workdir(values, workdir, source.labels)
      report.save_run(workdir, values, source.labels, changes)
      run(config, workdir, source, sharding.make_mesh(devices), stop, start, changes)


def run(config, workdir, source, mesh, stop, start=None, changes=()):
  """Everything after the checks: restore, then stage by stage (one, unless the networks grow)
  compile and train.

  start: the workdir.Origin of a new run, or None; changes: what is other than in the run that goes
  on, lines for people.
  """
  growth, same = build.growth(config), sharding.replicated(mesh)
  make_steps = partial(build.steps, config, source.c_dim, mesh)
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
      contextlib.closing(
        Checkpoints(
          workdir, keep=config.keep, meta={'data_hash': source.hash, 'config': config.to_dict()}
        )
      )
    )
    abstract = jax.eval_shape(lambda: build.init_state(config, make_steps(), None))
    state = checkpoints.restore_latest(
      jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=same), abstract)
    )
    fresh = state is None
    if fresh:
      state = build.init_state(config, make_steps(), same)
    step, nimg = int(state.step), int(state.nimg)
    log = stack.enter_context(contextlib.closing(report.Report(workdir, step, config.total_kimg)))
    log.say(describe(config, state, source, mesh, step))
    for text in changes:
      log.say(f'another than so far: {text}')
    if not fresh:
      state = resume(
        config,
        growth.current_stage(step, nimg).batch,
        state,
        checkpoints.restored,
        mesh,
        log,
      )
    elif start:
      state = jax.device_put(init_from(config, state, start, workdir, log), same)
    snapshot = Snapshot(workdir, config, source, mesh, log, stop)
    if not fresh and checkpoints.restored['meta'].get('data_hash') != source.hash:
      snapshot.reals(f'reals_{nimg // 1000:06d}', step)
    if snapshot.pending(step).exists():
      snapshot.measure(state)
    key = jax.device_put(purpose_key(config.seed, 'training'), same)
    unfinished = lambda: nimg < config.total_kimg * 1000 or step % growth.repeats
    while unfinished() and not stop:
      stage = growth.current_stage(step, nimg)
      steps, images = (
        make_steps(stage),
        data.Shrunk(source, 2**stage.level) if stage.level else source,
      )
      compiled, seconds = compile_steps(steps, state, mesh, config, images, stop)
      log.say(
        f'{"x".join(map(str, images.shape))}, batch {stage.batch}: compiled in {seconds:.0f} s'
      )
      snapshot.enter(steps)
      if not step:
        snapshot.reals('reals', 0)
        log.tick(0, 0, snapshot(state), 0, 0)
      halt = partial(
        nonfinite.halt,
        workdir,
        config,
        steps,
        compiled,
        key=key,
        images=images,
        mesh=mesh,
        checkpoints=checkpoints,
      )
      with contextlib.closing(nonfinite.batches(config, stage, images, nimg)) as batches:
        state = loop(
          config,
          growth,
          steps,
          compiled,
          state,
          key,
          batches,
          mesh,
          checkpoints,
          log,
          snapshot,
          halt,
          stop,
        )
      step, nimg = int(state.step), int(state.nimg)
    if unfinished() or snapshot.pending(step).exists():
      stop.leave(
        f'saved step {step} ({nimg / 1000:g} kimg)'
        if step
        else 'stopped before the first minibatch'
      )
    log.say(hint(workdir))


def loop(
  config, growth, steps, compiled, state, key, batches, mesh, checkpoints, log, snapshot, halt, stop
):
  """Minibatches until the stage ends, total_kimg or a signal. Only maintenance waits for the
  device. -> state.

  halt: called with a state in which something isn't finite; raises the NonFiniteError.
  """
  step, nimg, total, stage = int(state.step), int(state.nimg), config.total_kimg * 1000, steps.stage
  seen = growth.last_check(stage, step, nimg)
  tally, last, tick_time, tick_nimg = Tally(), (), time.monotonic(), nimg
  while not stop and growth.stage(seen) == stage and (nimg < total or step % growth.repeats):
    batch, before = sharding.to_global(mesh, next(batches)), last
    for name in steps.phases(step):
      state, aux = compiled[name](key, state, batch)
      tally.add(name, aux)
      last = aux
    # the device is one minibatch behind at most: a signal is heard in time
    jax.block_until_ready(before)
    step, nimg = step + 1, nimg + stage.batch
    log.progress(nimg)
    if step % growth.repeats:
      continue
    if growth.resets_adam(seen, nimg):
      state = jax.jit(
        state_lib.reset_adam, donate_argnums=0, out_shardings=sharding.replicated(mesh)
      )(state)
    over = nimg >= total or growth.stage(nimg) != stage
    measured = bool(config.metrics) and (nimg >= total or passed(config.metrics_kimg, seen, nimg))
    tick, snap = (
      over or passed(config.tick_kimg, seen, nimg),
      over or measured or passed(config.snapshot_kimg, seen, nimg),
    )
    seen = nimg
    if tick or snap:
      metrics = tally.fetch(state)
      if metrics is None:
        halt(state)
      metrics |= {'lod': growth.lod(nimg)} if growth.levels else {}
      now = time.monotonic()  # the time of training only, not of the snapshot below
      seconds, images = now - tick_time, nimg - tick_nimg
      if snap:
        metrics |= snapshot(state, last=nimg >= total)
      # before the checkpoint: a kill between loses nothing
      log.tick(step, nimg, metrics, seconds, images / seconds)
      if measured:
        snapshot.plan(step)
      if snap:
        checkpoints.save(state, score=metrics.get('swd'))
      if measured:
        snapshot.measure(state)
      tally, tick_time, tick_nimg = Tally(), time.monotonic(), nimg
  if stop and (nimg < total or step % growth.repeats):
    if state_lib.halted(state):
      halt(state)
    checkpoints.save(state)
  checkpoints.wait()
  return state


def passed(kimg, before, after):
  """Whether the number of images reached a multiple of `kimg` thousand between two looks."""
  return after // (1000 * kimg) > before // (1000 * kimg)


class Tally:
  """Sums of what the steps of a tick report. They stay on the device, so that a tick fetches one
  small array.
  """

  def __init__(self):
    self._sums, self._names = {}, {}

  def add(self, phase, aux):
    """Adds the scalars that a step of `phase` reported."""
    scalars = {name: x for name, x in aux.items() if x.ndim == 0}
    self._names[phase] = sorted(scalars)
    self._sums[phase] = _add(self._sums[phase], scalars) if phase in self._sums else _start(scalars)

  def fetch(self, state):
    """{name: mean}; None if `state` is halted. Waits for the device."""
    phases = sorted(self._sums)
    found = jax.device_get(_pack([self._sums[phase] for phase in phases], state.fault))
    fault, sums = found[:3], found[3:].view(np.float32)
    if fault[1] >= 0:
      return None
    means, first = {}, 0
    for names in (self._names[phase] for phase in phases):
      count = sums[first + len(names)]
      means |= {name: float(x / count) for name, x in zip(names, sums[first:], strict=False)}
      first += len(names) + 1
    return means


@jax.jit
def _start(scalars):
  """[K+1]: the scalars in the order of their names, and 1."""
  return jnp.stack([*(scalars[name] for name in sorted(scalars)), jnp.float32(1)])


@jax.jit
def _add(sums, scalars):
  return sums + _start(scalars)


@jax.jit
def _pack(sums, fault):
  """One array of int32, the sums by their bits."""
  return jnp.concatenate([fault, *(jax.lax.bitcast_convert_type(x, jnp.int32) for x in sums)])


def compile_steps(steps, state, mesh, config, source, stop):
  """The steps, compiled side by side before the first minibatch. -> ({name: compiled}, seconds)."""
  micro = build.microbatch(config, steps.stage.batch)
  rounds = steps.stage.batch // micro
  spec = lambda *shape, dtype: jax.ShapeDtypeStruct(
    (rounds, micro, *shape), dtype, sharding=sharding.batched(mesh)
  )
  batch = {
    'image': spec(*source.shape, dtype=np.uint8),
    'label': spec(source.c_dim, dtype=state.pl_mean.dtype),
  }
  key = jax.eval_shape(lambda: jax.random.key(0))
  start = time.monotonic()
  pool = futures.ThreadPoolExecutor(4)
  jobs = {
    name: pool.submit(
      lambda f: f.lower(key, state, batch).compile(), sharding.jit_step(getattr(steps, name), mesh)
    )
    for name in ('g_reg', 'g', 'd', 'd_reg')
    if name in steps.phases(0)
  }
  while futures.wait(jobs.values(), timeout=0.2, return_when=futures.FIRST_EXCEPTION).not_done:
    # compilation can't be interrupted, and nothing new has been computed that could be lost
    if stop:
      stop.leave('stopped while compiling; nothing to save', hard=True)
    if any(job.done() and job.exception() for job in jobs.values()):
      break
  return {name: job.result() for name, job in jobs.items()}, time.monotonic() - start


def hint(workdir):
  """What a finished run says; the command can be pasted."""
  option = f'--checkpoint={shlex.quote(str(workdir))}'
  return f'done: pictures in {workdir}/images; python -m sg2jax.tools.evaluate {option} measures it'


def describe(config, state, source, mesh, step):
  """Two lines on what is about to run."""
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree)) / 1e6
  device = mesh.devices.flat[0]
  height, width, channels = source.shape
  return (
    f'{source.name}: {len(source)} images {height}x{width}x{channels}, {source.c_dim} label '
    f'components; G {config.g.architecture} {count(state.g):.2f}M, D {config.d.architecture} '
    f'{count(state.d):.2f}M parameters; {mesh.size} x {device.device_kind}\n'
    + (
      f'resuming at step {step}, {int(state.nimg) / 1000:g} kimg'
      if step
      else f'starting from {config.init_from or "scratch"}'
    )
    + f'; to {config.total_kimg:g} kimg'
  )
