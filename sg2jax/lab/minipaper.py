"""The paper's comparison at small scale: a run for each cell and seed, trained and measured."""

from collections.abc import Sequence
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sg2jax import build, pretrained, sampler, sharding
from sg2jax.evaluation import measure, passes, protocols, reals
from sg2jax.evaluation.ppl import path_length
from sg2jax.faults import DatasetError, Fault, Interrupted, Preempted, UsageError, WriteError
from sg2jax.files import write_atomic
from sg2jax.lab import tables
from sg2jax.lab.tables import Run, result
from sg2jax.training import checkpoint

# Exit codes that aren't about the cell but about the command, the data, the disk, a signal.
ENDS = [x.code for x in (UsageError, DatasetError, WriteError, Preempted, Interrupted)]
PPL_PAIRS = 4096


# ---- what is asked for


def plan(out: pathlib.Path, cells: Sequence[str], seeds: int) -> list[Run]:
  """The runs of cells of tables.CELLS, all with a seed before the next."""
  return [
    Run(cell, seed, out / cell.replace(':', '-') / f'seed{seed}')
    for seed in range(seeds)
    for cell in dict.fromkeys(cells)
  ]


def begin(out: pathlib.Path, settings: dict) -> None:
  """Writes <out>/settings.json. Raises UsageError if there are runs under other settings."""
  path = out / 'settings.json'
  if any(out.glob('*/seed*/checkpoints')):
    old = json.loads(path.read_text()) if path.exists() else 'no settings.json'
    if old != settings:
      raise UsageError(
        f'{out} holds runs with {json.dumps(old)}, not {json.dumps(settings)}; use another --out'
      )
  write_atomic(path, json.dumps(settings) + '\n')


# ---- train


def command(run: Run, settings: dict) -> list[str]:
  """Command line of a run; it finds configs/ where the user stands, as sg2jax.main does."""
  config, *fields = arguments(run, settings)
  return [sys.executable, '-m', 'sg2jax.main', config, f'--workdir={run.workdir}', *fields]


def arguments(run: Run, settings: dict) -> list[str]:
  """What makes the configuration of a run on its command line."""
  fields = {'seed': run.seed, 'total_kimg': settings['kimg'], **settings['set']}
  return [
    f'--config=configs/minipaper.py:{run.cell},{settings["resolution"]}',
    *[f'--config.{field}={value}' for field, value in fields.items()],
  ]


def start(command: list[str], stop: Any, core: int | None = None, **options: Any) -> int:
  """Runs a command on this terminal -> its exit code; once `stop` is true it gets a SIGTERM.

  core: on which alone it runs; options: of subprocess.Popen.
  """
  with subprocess.Popen(command, **options) as process:
    if core is not None:
      os.sched_setaffinity(process.pid, {core})
    while process.poll() is None:
      time.sleep(0.2)
      # Ctrl-C reaches the child by itself, a SIGTERM this process alone. Once: a second one would
      # end the child before it has saved.
      if stop:
        process.terminate()
        return process.wait()
    return process.returncode


def work(out: pathlib.Path, runs: list[Run], settings: dict, stop: Any) -> dict[Run, int]:
  """Trains and measures the runs without a result; {run: exit code} of those that failed.

  Args:
    out: where the tables are written, after each run.
    runs: of `plan`.
    settings: what all runs have in common: 'kimg', 'resolution', 'set' {field: value}.
    stop: a signals.Stop.

  Raises: Preempted or Interrupted after a signal, and a Fault with an exit code of ENDS.
  """
  failed = {}
  for i, run in enumerate(runs):
    if result(run):
      continue
    print(f'[{i + 1}/{len(runs)}] {run}: {run.workdir}', flush=True)
    code = start(command(run, settings), stop)
    done = f'{sum(bool(result(other)) for other in runs)} of {len(runs)} runs are done'
    # First of all: a signal may end a run with any code.
    if stop:
      stop.leave(done)
    # The next run would end in the same way.
    if code in ENDS:
      fault = Fault(f'{run} ended with exit code {code}, for the reason above; {done}')
      fault.code = code
      raise fault
    if code:
      failed[run] = code
      print(f'{run} failed with exit code {code}, for the reason above', flush=True)
    else:
      try:
        numbers = measure_run(run, stop)
      except passes.Stopped:
        stop.leave(done)
      write_atomic(run.workdir / 'result.json', json.dumps(numbers, indent=1) + '\n')
    tables.save(out, runs, settings, failed)
  return failed


# ---- measure


def measure_run(run: Run, stop: Any = ()) -> dict:
  """All figures of a finished run, JSON values. Raises UsageError if it can't be compared."""
  lines = (run.workdir / 'metrics.jsonl').read_text().splitlines()
  # The others are of config.metrics.
  ticks = [row for row in map(json.loads, lines) if 'sec_per_tick' in row]
  state, config = checkpoint.load(run.workdir)
  labels = sampler.read_labels(run.workdir, config['c_dim'])
  net = sampler.from_state(run.workdir, config, state, labels)
  # Smaller images have an SWD of their own, that can't be compared.
  if build.growth(net.config).lod(net.nimg) or 'swd' not in ticks[-1]:
    raise UsageError(
      f'{run} has no SWD, or has not grown to full size; leave grow and swd_images as they are, '
      'and use another --out'
    )
  seconds, rates = np.array([[row['sec_per_tick'], row['img_per_sec']] for row in ticks]).T
  environment = json.loads((run.workdir / 'environment.json').read_text())[-1]
  values = _of_networks(net, stop)
  labels = sampler.draw_labels(net, PPL_PAIRS, np.random.RandomState(0))
  return values | {
    'cell': run.cell,
    'seed': run.seed,
    'kimg': net.nimg / 1000,
    'minibatches': net.step,
    'data': net.config.data.name or net.config.data.dir,
    'swd': float(ticks[-1]['swd']),
    'swd_start': float(ticks[0]['swd']),
    'ppl_w_end_pixel_mse': path_length(net.generator, net.variables, pixel_distance, labels),
    'ppl_pairs': PPL_PAIRS,
    # Of all images over all seconds: a growing cell is many times faster at first.
    'img_per_sec': float((seconds * rates).sum() / seconds.sum()),
    'img_per_sec_full_size': statistics.median(
      row['img_per_sec'] for row in ticks if row['nimg'] and not row.get('lod')
    ),
    'train_seconds': float(seconds.sum()),
    'parameters_g': sum(x.size for x in jax.tree.leaves(state['g'])),
    'parameters_d': sum(x.size for x in jax.tree.leaves(state['d'])),
    'device': environment['device'],
    'git_commit': environment['git_commit'],
  }


def _of_networks(net, stop):
  """{name: value} of FID and PPL, as far as the weights of their networks are there."""
  wanted = [protocols.parse(name) for name, _, _ in tables.NETWORKS]
  wanted = [p for p in wanted if all(map(pretrained.find, p.weights))]
  out = net.workdir / 'evaluation' / f'{net.step:08d}'
  setting = measure.Setting(net, reals.load(net), sharding.make_mesh(), out, stop=stop)
  values = {}
  for document in measure.measure(wanted, setting):
    values |= document['values']
  return values


def pixel_distance(a: jax.Array, b: jax.Array) -> jax.Array:
  """Mean squared difference of pixels in [-1,1]: [N,H,W,C] x 2 -> [N]."""
  return jnp.mean((a - b) ** 2, (1, 2, 3))
