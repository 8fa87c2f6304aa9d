"""Trains cells of the paper's tables at small scale, and prints tables of its own.

  python -m sg2jax.tools.minipaper --out=DIR [--cells=a,e,e:Gorig-Dorig] [--seeds=2] [--kimg=30]
      [--resolution=32] [--set=FIELD=VALUE ...]

The cells, of Table 1 and Table 2 (configs/minipaper.py), train one after another under the same
budget, each with several seeds. The same command goes on where it was: a run that has its
DIR/<cell>/seed<k>/result.json isn't started again, one that was interrupted resumes. More cells and
seeds can join later. DIR then holds table.md, table.json (with every run) and samples.png. FIELD is
one of configs/default.py, for all cells alike. A cell that fails is named in the tables, the others
go on, and the exit code is 1. docs/minipaper.md says what it shows.
"""

import re

from absl import flags
import jax

from sg2jax import checks, cli, faults
from sg2jax.lab import minipaper, tables
from sg2jax.signals import Stop
from sg2jax.tools import flags as shared


def define_flags() -> None:
  """The command line."""
  flags.DEFINE_string(
    'out', None, 'Directory of all runs and of the tables; one that holds them goes on.'
  )
  shared.define_required(
    'out', 'as in python -m sg2jax.tools.minipaper --out=runs/minipaper --cells=a,e'
  )
  shared.define_parsed(
    'cells', ','.join(tables.CELLS), 'Cells to compare, such as a,e,e:Gorig-Dorig.', _cells
  )
  flags.DEFINE_integer('seeds', 2, 'Runs of each cell, with seeds 0, 1, ...', lower_bound=1)
  flags.DEFINE_float('kimg', 30, 'Budget of a run, thousands of images.')
  flags.DEFINE_integer('resolution', 32, 'Pixels: a power of 2, 16 or more.')
  flags.DEFINE_multi_string(
    'set', [], 'FIELD=VALUE of the configuration, such as data.name=cifar10; may be repeated.'
  )
  flags.register_validator(
    'set',
    lambda pairs: all(re.match(r'(?!(seed|total_kimg|resolution)=).+=', x) for x in pairs),
    'must be FIELD=VALUE, such as --set=batch=32; use --seeds, --kimg and --resolution for theirs',
  )


def _cells(text: str) -> list[str]:
  # e is also called by its pair.
  cells = text.replace('e:Gskip-Dresnet', 'e').split(',')
  if not set(cells) <= set(tables.CELLS):
    raise ValueError(f'choose from {", ".join(tables.CELLS)}')
  return cells


def main(_: list[str]) -> None:
  """Trains and measures what isn't there yet; tables to the terminal and into files."""
  args = flags.FLAGS
  out = cli.folder(args.out)
  runs = minipaper.plan(out, args.cells, args.seeds)
  fields = dict(pair.split('=', 1) for pair in args.set)
  settings = {'kimg': args.kimg, 'resolution': args.resolution, 'set': fields}
  for run in runs[: len(set(args.cells))]:  # the first seed of each
    checks.check(shared.configuration(minipaper.arguments(run, settings)))
  minipaper.begin(out, settings)
  # Of this process, which measures; the accelerator is for training.
  jax.config.update('jax_platforms', 'cpu')
  with Stop() as stop:
    failed = minipaper.work(out, runs, settings, stop)
  if tables.save(out, runs, settings, failed):
    print(f'\n{(out / "table.md").read_text()}\nwrote {out}/table.md, table.json and samples.png')
  if failed:
    text = '; '.join(f'{run} (exit {code})' for run, code in failed.items())
    raise faults.Fault(
      f'{len(failed)} of {len(runs)} runs failed: {text}; the same command tries them again'
    )


if __name__ == '__main__':
  define_flags()
  cli.run(main)
