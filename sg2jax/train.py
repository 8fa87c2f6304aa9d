"""The run: build, restore, loop, maintenance. The only reader of the clock."""
from concurrent import futures
import contextlib
from functools import partial
import os
import pathlib
import signal
import threading
import time

import jax
import numpy as np

from sg2jax import build, checkpoint, data, report, sharding
from sg2jax import state as state_lib
from sg2jax.checkpoint import Checkpoints
from sg2jax.evaluation import measure, protocols
from sg2jax.faults import Interrupted, NonFiniteError, Preempted, UsageError
from sg2jax.snapshot import GRID, Snapshot
from sg2jax.workdir import check_workdir, init_from, locked, other_settings


def train(config, workdir):
  """Trains `config` in `workdir` until total_kimg, from its latest checkpoint if there is one.

  Raises: the Faults of faults.py, each with its exit code; nothing that was saved is lost.
  """
  build.check(config)
  wanted = [protocols.parse(name) for name in config.metrics]
  measure.check(wanted, {})
  if 'swd' in config.metrics:
    raise UsageError(f'--config.metrics={config.metrics}: swd is logged at every snapshot, of swd_images images; leave it out')
  workdir = pathlib.Path(workdir)
  values = config.to_dict()
  check_workdir(values, workdir)
  if config.init_from and not any((workdir / 'checkpoints').glob('*')):
    other_settings(config, checkpoint.find(config.init_from))
  with Stop() as stop:
    devices = jax.devices()
    build.check_devices(config, devices)
    source = data.load(config.data.name, config.data.dir, build.resolution(config), config.data.channels,
                       config.data.labels)
    data.check_size(source, max(build.batches(config)))
    measure.load(wanted, source, {})  # weights and images that can't be used are refused now, not after days
    values |= {'c_dim': source.c_dim, 'data_hash': source.hash}
    with locked(workdir):
      check_workdir(values, workdir)
      report.save_run(workdir, values)
      run(config, workdir, source, sharding.make_mesh(devices), stop)


def run(config, workdir, source, mesh, stop):
  """Everything after the checks: restore, then stage by stage (one, unless the networks grow) compile and train."""
  growth, same = build.growth(config), sharding.replicated(mesh)
  make_steps = partial(build.steps, config, source.c_dim, sharding.constrain(mesh))
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(contextlib.closing(
        Checkpoints(workdir, keep=config.keep, meta={'data_hash': source.hash, 'config': config.to_dict()})))
    abstract = jax.eval_shape(lambda: build.init_state(config, make_steps(), None))
    state = checkpoints.restore_latest(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=same), abstract))
    fresh = state is None
    if fresh:
      state = build.init_state(config, make_steps(), same)
    step, nimg = int(state.step), int(state.nimg)
    log = stack.enter_context(contextlib.closing(report.Report(workdir, step, config.total_kimg)))
    log.say(describe(config, state, source, mesh, step))
    if fresh and config.init_from:
      state = jax.device_put(init_from(config, state, workdir, log), same)
    snapshot = Snapshot(workdir, config, source, mesh, log, stop)
    if snapshot.due(step).exists():
      snapshot.measure(state)
    key = jax.device_put(jax.random.key(config.seed), same)
    unfinished = lambda: nimg < config.total_kimg * 1000 or step % growth.repeats
    while unfinished() and not stop:
      stage = growth.stage(growth.look(step, nimg))
      steps, images = make_steps(stage), data.Shrunk(source, 2 ** stage.level) if stage.level else source
      compiled, seconds = compile_steps(steps, state, mesh, config, images, stop)
      log.say(f'{"x".join(map(str, images.shape))}, batch {stage.batch}: compiled in {seconds:.0f} s')
      snapshot.enter(steps)
      if not step:
        log.images('reals', np.stack([source[i]['image'] for i in snapshot.order[:GRID]]), 0)
        log.tick(0, 0, snapshot(state), 0, 0)
      with contextlib.closing(data.batches(
          images, batch=stage.batch, microbatch=build.microbatch(config, stage.batch), seed=config.seed,
          mirror=config.data.mirror, nimg=nimg, process_index=jax.process_index(),
          process_count=jax.process_count())) as batches:
        state = loop(config, growth, steps, compiled, state, key, batches, mesh, checkpoints, log, snapshot, stop)
      step, nimg = int(state.step), int(state.nimg)
    if unfinished() or snapshot.due(step).exists():
      stop.leave(f'saved step {step} ({nimg / 1000:g} kimg)' if step else 'stopped before the first minibatch')
    log.say(f'done: pictures in {workdir}/images; python -m sg2jax.tools.evaluate --checkpoint={workdir} measures it')


def loop(config, growth, steps, compiled, state, key, batches, mesh, checkpoints, log, snapshot, stop):
  """Minibatches until the stage ends, total_kimg or a signal. Only maintenance waits for the device. -> state."""
  step, nimg, total, stage = int(state.step), int(state.nimg), config.total_kimg * 1000, steps.stage
  seen = growth.look(step, nimg)
  pending, tick_time, tick_nimg = [], time.monotonic(), nimg
  while not stop and growth.stage(seen) == stage and (nimg < total or step % growth.repeats):
    batch, last = sharding.to_global(mesh, next(batches)), pending[-1:]
    for name in steps.due(step):
      state, aux = compiled[name](key, state, batch)
      pending.append(aux)
    jax.block_until_ready(last)  # the device is one minibatch behind at most: a signal is heard in time
    step, nimg = step + 1, nimg + stage.batch
    log.progress(nimg)
    if step % growth.repeats:
      continue
    if growth.resets(seen, nimg):
      state = jax.jit(state_lib.reset_adam, donate_argnums=0, out_shardings=sharding.replicated(mesh))(state)
    over = nimg >= total or growth.stage(nimg) != stage
    measured = bool(config.metrics) and (nimg >= total or passed(config.metrics_kimg, seen, nimg))
    tick, snap = over or passed(config.tick_kimg, seen, nimg), over or measured or passed(config.snapshot_kimg, seen, nimg)
    seen = nimg
    if tick or snap:
      metrics = fetch(pending, step) | ({'lod': growth.lod(nimg)} if growth.levels else {})
      now = time.monotonic()  # the time of training only, not of the snapshot below
      seconds, images = now - tick_time, nimg - tick_nimg
      if snap:
        metrics |= snapshot(state, last=nimg >= total)
      log.tick(step, nimg, metrics, seconds, images / seconds)  # before the checkpoint: a kill between loses nothing
      if measured:
        snapshot.plan(step)
      if snap:
        checkpoints.save(state, score=metrics.get('swd'))
      if measured:
        snapshot.measure(state)
      pending, tick_time, tick_nimg = [], time.monotonic(), nimg
  if stop and (nimg < total or step % growth.repeats):
    fetch(pending, step)
    checkpoints.save(state)
  checkpoints.wait()
  return state


def passed(kimg, before, after):
  """Whether the number of images reached a multiple of `kimg` thousand between two looks."""
  return after // (1000 * kimg) > before // (1000 * kimg)


def fetch(pending, step):
  """Means of the aux of a tick, in one transfer. Raises NonFiniteError if an update was held back in it."""
  rows = jax.device_get(pending)
  values = {name: np.array([row[name] for row in rows if name in row], np.float64)
            for name in sorted({name for row in rows for name in row})}
  for name, v in values.items():
    if name.startswith('grad_norm') and not np.isfinite(v).all():
      raise NonFiniteError(
          f'{(~np.isfinite(v)).sum()} of the last {len(v)} gradients of phase {name.removeprefix("grad_norm_")}, up to step '
          f'{step}, are not finite; they were not applied, and the last checkpoint is sound. Lower the learning rate or '
          'raise loss.r1_gamma; with bfloat16 set g.clamp and d.clamp to 256')
  return {name: v.mean() for name, v in values.items()}


def compile_steps(steps, state, mesh, config, source, stop):
  """The steps, compiled side by side before the first minibatch. -> ({name: compiled}, seconds)."""
  micro = build.microbatch(config, steps.stage.batch)
  rounds = steps.stage.batch // micro
  spec = lambda *shape, dtype: jax.ShapeDtypeStruct((rounds, micro, *shape), dtype, sharding=sharding.batched(mesh))
  batch = {'image': spec(*source.shape, dtype=np.uint8), 'label': spec(source.c_dim, dtype=state.pl_mean.dtype)}
  key = jax.eval_shape(lambda: jax.random.key(0))
  start = time.monotonic()
  pool = futures.ThreadPoolExecutor(4)
  jobs = {name: pool.submit(lambda f: f.lower(key, state, batch).compile(), sharding.jit_step(getattr(steps, name), mesh))
          for name in ('g_reg', 'g', 'd', 'd_reg') if name in steps.due(0)}
  while futures.wait(jobs.values(), timeout=0.2, return_when=futures.FIRST_EXCEPTION).not_done:
    if stop:  # compilation can't be interrupted, and nothing new has been computed that could be lost
      stop.leave('stopped while compiling; nothing to save', hard=True)
    if any(job.done() and job.exception() for job in jobs.values()):
      break
  return {name: job.result() for name, job in jobs.items()}, time.monotonic() - start


class Stop:
  """True once SIGTERM or Ctrl-C was received. A context manager; the second signal acts as usual."""

  def __enter__(self):
    self.signal, self.old = None, {}
    if threading.current_thread() is threading.main_thread():
      self.old = {s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *_):
    for s, handler in self.old.items():
      signal.signal(s, handler)

  def _receive(self, number, _):
    self.signal = number
    signal.signal(number, self.old[number])

  def __bool__(self):
    return self.signal is not None

  def leave(self, text, hard=False):
    """Raises the Fault of the signal; `hard` leaves the process at once, past threads that can't be joined."""
    fault = Preempted if self.signal == signal.SIGTERM else Interrupted
    text = f'{signal.Signals(self.signal).name}: {text}; the same command goes on from there'
    if hard:
      os.write(2, f'{text}\n'.encode())
      os._exit(fault.code)
    raise fault(text)


def describe(config, state, source, mesh, step):
  """Two lines on what is about to run."""
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree)) / 1e6
  device = mesh.devices.flat[0]
  height, width, channels = source.shape
  return (f'{source.name}: {len(source)} images {height}x{width}x{channels}, {source.c_dim} label components; '
          f'G {config.g.architecture} {count(state.g):.2f}M, D {config.d.architecture} {count(state.d):.2f}M parameters; '
          f'{mesh.size} x {device.device_kind}\n'
          + (f'resuming at step {step}, {int(state.nimg) / 1000:g} kimg' if step else
             f'starting from {config.init_from or "scratch"}') + f'; to {config.total_kimg:g} kimg')
