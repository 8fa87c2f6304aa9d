"""What augmentation (ADA) does for a few pictures: runs with and without it, by held-out pictures.

python -m sg2jax.lab.small_data --out=DIR [--set=digits|emoji] [--emoji=ZIP] [--seeds=2] [--kimg=60]

Trains the quickstart's network on 200 of the bundled digits, 20 a class, or on 300 pictures of ZIP
(a zip or folder) at 32 px in RGB without labels; each seed once without augmentation and once with
bgc, whose p may go from 0 to 1 in 20 kimg: a run has 60 (the paper: 500 of 25,000). On CPUs, as
many runs at a time as there are cores, each on one. Every 10 kimg the moving average of the weights
is measured (swd, pixelfd) against all pictures that were not trained on.

Half of all pictures, by their content, are those that the runs keep aside (`data.holdout`), and the
few are drawn from the other half, the same for all runs. DIR gets figure.png, table.md and
table.json, with every curve; DIR/<without|ada>/seed<k> are the runs. Stop it any way you like: the
same command goes on where it was.
"""

from concurrent import futures
import json
import os
import queue
import subprocess
import sys
from typing import Any

from absl import flags

from sg2jax import cli
from sg2jax.faults import Fault, UsageError
from sg2jax.files import write_atomic
from sg2jax.lab import minipaper, small_report, small_sets
from sg2jax.lab.tables import Run, result
from sg2jax.signals import Stop

SNAPSHOT = 10.0  # kimg between measurements
VARIANTS = {
  'without': {'augment.pipeline': ''},
  'ada': {'augment.pipeline': 'bgc', 'augment.kimg': 20.0},
}
METRICS = {'swd': 'swd', 'pixelfd2k_full': 'pixelfd'}  # of `evaluate`: how they are called here


def define_flags() -> None:
  """The command line."""
  flags.DEFINE_string('out', None, 'Folder of runs and results; one that holds them goes on.')
  flags.DEFINE_enum('set', 'digits', list(small_sets.KINDS), 'Which pictures.')
  flags.DEFINE_string('emoji', '', 'Zip or folder of pictures for --set=emoji.')
  flags.DEFINE_integer('seeds', 2, 'Runs of each kind, with seeds 0, 1, ...', lower_bound=1)
  flags.DEFINE_float('kimg', 60.0, 'Length of a run.', lower_bound=SNAPSHOT)
  flags.mark_flag_as_required('out')


def main(_: list[str]) -> None:
  """Trains and measures what isn't there yet; prints the table."""
  given = flags.FLAGS
  if given.set == 'emoji' and not given.emoji:
    raise UsageError('--emoji is missing; name a zip or folder of pictures')
  out = cli.folder(given.out)
  settings = {'set': given.set, 'kimg': given.kimg}
  minipaper.begin(out, settings)
  sets = small_sets.make(given.set, given.emoji, out / 'data')
  runs = minipaper.plan(out, list(VARIANTS), given.seeds)
  with Stop() as stop:
    work(runs, settings, sets, stop)
    if stop:
      stop.leave(f'{sum(bool(result(run)) for run in runs)} of {len(runs)} runs are done')
  small_report.save(out, runs, settings)
  print(f'{(out / "table.md").read_text()}\nwrote {out}/table.md, table.json and figure.png')


def work(runs: list[Run], settings: dict, sets: small_sets.Sets, stop: Any) -> None:
  """Finishes all runs without a result, a core for each; ends early once `stop` is true.

  Raises: Fault: one of them failed; the others were finished.
  """
  cores = queue.SimpleQueue()
  mine = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else [None]
  for core in mine:
    cores.put(core)

  def job(run):
    core = cores.get()
    try:
      finish(run, settings, sets, core, stop)
    finally:
      cores.put(core)

  with futures.ThreadPoolExecutor(len(mine)) as pool:
    jobs = [pool.submit(job, run) for run in runs if not result(run)]
  for done in jobs:
    done.result()


def finish(run: Run, settings: dict, sets: small_sets.Sets, core: int | None, stop: Any) -> None:
  """Trains a run and measures its checkpoints on a core; once `stop` is true it does no more."""

  def start(step, *arguments):
    if stop:
      return
    log = run.workdir.with_suffix('.log')
    log.parent.mkdir(parents=True, exist_ok=True)
    env = os.environ | {'JAX_PLATFORMS': 'cpu'}
    with open(log, 'ab') as file:
      command = [sys.executable, '-m', *arguments]
      both = {'stdout': file, 'stderr': subprocess.STDOUT, 'env': env}
      code = minipaper.start(command, stop, core, **both)
    if stop:
      return
    if code:
      raise Fault(f'{run}: {step} ended with exit code {code}; {log} says why')
    print(f'{run}: {step}', flush=True)

  start('trained', 'sg2jax.main', *arguments(run, settings, sets))
  steps = sorted(int(p.name) for p in run.workdir.glob('checkpoints/*') if p.name.isdigit())
  for step in filter(None, steps):
    start(
      f'measured after {step} minibatches',
      'sg2jax.tools.evaluate',
      f'--checkpoint={run.workdir}/checkpoints/{step}',
      f'--metrics={",".join(METRICS)}',
      f'--data={sets.held_out}',
      f'--out={run.workdir}/held_out/{step:08d}',
    )
  if not stop:
    write_atomic(run.workdir / 'result.json', json.dumps(read(run)) + '\n')


def arguments(run: Run, settings: dict, sets: small_sets.Sets) -> list[str]:
  """The command line of a run, after sg2jax.main."""
  kind = small_sets.KINDS[settings['set']]
  fields = {
    'seed': run.seed,
    'total_kimg': settings['kimg'],
    'snapshot_kimg': SNAPSHOT,
    'keep': 1000,  # all: they are measured afterwards
    'metrics': (),
    'data.name': '',
    'data.dir': sets.train,
    'data.holdout': small_sets.SHARE,
    'data.channels': kind.channels,
    'data.labels': kind.labels,
    **VARIANTS[run.cell],
  }
  return [
    '--config=configs/quickstart.py',
    f'--workdir={run.workdir}',
    *[f'--config.{field}={value}' for field, value in fields.items()],
  ]


def read(run: Run) -> dict:
  """Curves of a run, {name: [[kimg, value], ...]}: what was measured, and what it logged."""
  curves = {name: [] for name in METRICS.values()}
  for folder in sorted((run.workdir / 'held_out').iterdir()):
    for metric, name in METRICS.items():
      document = json.loads((folder / f'{metric}.json').read_text())
      kimg = document['checkpoint']['nimg'] / 1000
      curves[name].append([kimg, document['values'][metric]])
  for line in (run.workdir / 'metrics.jsonl').read_text().splitlines():
    row = json.loads(line)
    for name in small_report.LOGGED:
      if name in row and row['nimg']:
        curves.setdefault(name, []).append([row['nimg'] / 1000, row[name]])
  return curves


if __name__ == '__main__':
  define_flags()
  cli.run(main)
