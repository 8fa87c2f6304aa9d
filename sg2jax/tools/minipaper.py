"""python -m sg2jax.tools.minipaper --out=DIR [--cells=a,e,e:Gorig-Dorig] [--seeds=2] [--kimg=30]
[--set=FIELD=VALUE ...]

Trains cells of the paper's Table 1 and Table 2 at small scale (configs/minipaper.py), one after
another under the same budget, each with several seeds, and prints tables of its own. The same
command goes on where it was: a run that has its DIR/<cell>/seed<k>/result.json isn't started again,
one that was interrupted resumes. More cells and seeds can join later. DIR then holds table.md,
table.json (with every run) and samples.png. FIELD is one of configs/default.py, for all cells
alike. A cell that fails is named in the tables, the others go on, and the exit code is 1.
docs/minipaper.md says what it shows.
"""

import contextlib
from functools import partial
import json
import pathlib
import statistics
import subprocess
import sys
from typing import NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
from PIL import Image

from sg2jax import build, checkpoint, cli, data, faults, paths, pretrained, sampler, sharding
from sg2jax.evaluation import measure, passes, protocols
from sg2jax.evaluation.ppl import ppl
from sg2jax.files import write_atomic
from sg2jax.signals import Stop
from sg2jax.tools.figures import png

LADDER = {
  'a': 'A  StyleGAN',
  'b': 'B  + weight demodulation',
  'c': 'C  + lazy regularization',
  'd': 'D  + path length reg.',
  'e': 'E  no growing, G skip, D resnet',
  'f': 'F  + large networks',
  'msg': 'MSG-GAN, else as E',
}
KINDS = ('orig', 'skip', 'resnet')
PAIRS = {
  (g, d): 'e' if (g, d) == ('skip', 'resnet') else f'e:G{g}-D{d}' for g in KINDS for d in KINDS
}
CELLS = list(dict.fromkeys([*LADDER, *PAIRS.values()]))
OWN = {'seed': 'use --seeds', 'total_kimg': 'use --kimg', 'resolution': 'use --resolution'}
# Exit codes that aren't about the cell: the command, the data, the disk, a signal.
ENDS = {
  f.code: f
  for f in (
    faults.UsageError,
    faults.DatasetError,
    faults.WriteError,
    faults.Preempted,
    faults.Interrupted,
  )
}
PPL_PAIRS = 4096
# measured where the weights are, and their columns
NETWORKS = {'fid10k_full': 'FID', 'ppl2_4k_wend': 'PPL'}


class Run(NamedTuple):
  """One cell with one seed."""

  cell: str
  seed: int
  workdir: pathlib.Path

  def __str__(self):
    return f'{self.cell}, seed {self.seed}'


def define_flags():
  """The command line. Not at import: tools have flags of the same names."""
  flags.DEFINE_string(
    'out', None, 'Directory of all runs and of the tables; one that holds them goes on.'
  )
  flags.DEFINE_list('cells', CELLS, 'Cells to compare, such as a,e,e:Gorig-Dorig.')
  flags.DEFINE_integer('seeds', 2, 'Runs of each cell, with seeds 0, 1, ...')
  flags.DEFINE_float('kimg', 30, 'Budget of a run, thousands of images.')
  flags.DEFINE_integer('resolution', 32, 'Pixels: a power of 2, 16 or more.')
  flags.DEFINE_multi_string(
    'set', [], 'FIELD=VALUE of the configuration, such as data.name=cifar10; may be repeated.'
  )


def main(_):
  """Trains and measures what isn't there yet; tables to the terminal and into files."""
  asked = flags.FLAGS
  if not asked.out:
    raise faults.UsageError(
      '--out is missing; as in python -m sg2jax.tools.minipaper --out=runs/minipaper --cells=a,e'
    )
  paths.check_text(asked.out, f'--out={asked.out}')
  out = pathlib.Path(asked.out)
  runs, settings = plan(out, asked.cells, asked.seeds, asked.kimg, asked.resolution, asked.set)
  begin(out, settings)
  # of this process, which measures; the accelerator is for training
  jax.config.update('jax_platforms', 'cpu')
  with Stop() as stop:
    failed = work(
      runs,
      settings,
      stop,
      lambda failed: save(out, runs, settings, failed),
      measure=partial(figures, stop=stop),
    )
  if save(out, runs, settings, failed):
    print(f'\n{(out / "table.md").read_text()}\nwrote {out}/table.md, table.json and samples.png')
  if failed:
    text = '; '.join(f'{run} (exit {code})' for run, code in failed.items())
    raise faults.Fault(
      f'{len(failed)} of {len(runs)} runs failed: {text}; the same command tries them again'
    )


def plan(out, cells, seeds=2, kimg=30.0, resolution=32, fields=()):
  """([Run, ...], settings) of what was asked for; all cells with a seed before the next. Raises
  UsageError.
  """
  cells = dict.fromkeys(
    PAIRS['skip', 'resnet'] if cell == 'e:Gskip-Dresnet' else cell for cell in cells
  )
  if unknown := [cell for cell in cells if cell not in CELLS]:
    raise faults.UsageError(
      f'--cells={",".join(unknown)} is unknown; choose from {", ".join(CELLS)}'
    )
  if seeds < 1 or not cells:
    raise faults.UsageError(f'--seeds={seeds} --cells={",".join(cells)}: must be 1 or more of each')
  values = {}
  for text in fields:
    field, equals, value = text.partition('=')
    values[field] = value
    if not equals or field in OWN:
      raise faults.UsageError(
        f'--set={text}: {OWN.get(field, "must be FIELD=VALUE, such as --set=batch=32")}'
      )
  runs = [
    Run(cell, seed, out / cell.replace(':', '-') / f'seed{seed}')
    for seed in range(seeds)
    for cell in cells
  ]
  return runs, {'kimg': kimg, 'resolution': resolution, 'set': values}


def begin(out, settings):
  """Writes DIR/settings.json. Raises UsageError if DIR holds runs under other settings: they
  couldn't be compared.
  """
  path = out / 'settings.json'
  if any(out.glob('*/seed*/checkpoints')):
    try:
      old = json.loads(path.read_text())
    except (OSError, ValueError):
      raise faults.UsageError(
        f'{path} is not readable, but there are runs in {out}; use another --out'
      ) from None
    if old != settings:
      raise faults.UsageError(
        f'{out} holds runs with {json.dumps(old)}, not {json.dumps(settings)}; use another --out'
      )
  write_atomic(path, json.dumps(settings) + '\n')


def command(run, settings):
  """Command line of a run; it finds configs/ where the user stands, as sg2jax.main does."""
  fields = {'seed': run.seed, 'total_kimg': settings['kimg'], **settings['set']}
  return [
    sys.executable,
    '-m',
    'sg2jax.main',
    f'--config=configs/minipaper.py:{run.cell},{settings["resolution"]}',
    f'--workdir={run.workdir}',
    *[f'--config.{field}={value}' for field, value in fields.items()],
  ]


def start(command, stop):
  """Runs a command on this terminal and returns its exit code; SIGTERM to it once `stop` is true,
  so that it saves.
  """
  with subprocess.Popen(command) as process:
    told = False
    while True:
      with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(0.2)
      if stop and not told:
        process.terminate()
        told = True


def result(run):
  """What was measured of a finished run, or None."""
  with contextlib.suppress(OSError, ValueError):
    return json.loads((run.workdir / 'result.json').read_text())


def pixel_distance(a, b):
  """Mean squared difference of pixels in [-1,1]: [N,H,W,C] x 2 -> [N]."""
  return jnp.mean((a - b) ** 2, (1, 2, 3))


def figures(run, stop=()):
  """Measures a finished run: a dict of JSON values. Raises: CheckpointError, UsageError if it isn't
  fit for comparison.
  """
  rows = [json.loads(line) for line in (run.workdir / 'metrics.jsonl').read_text().splitlines()]
  rows = [row for row in rows if 'sec_per_tick' in row]  # the others are of config.metrics
  state, config = checkpoint.load(run.workdir)
  net = sampler.from_state(
    run.workdir, config, state, sampler.read_labels(run.workdir, config['c_dim'])
  )
  kimg, config = net.nimg / 1000, net.config
  if kimg < config.total_kimg:
    raise faults.CheckpointError(
      f'{run}: the newest whole checkpoint is of {kimg:g} of {config.total_kimg:g} kimg; the same '
      'command goes on'
    )
  if build.growth(config).lod(net.nimg):
    raise faults.UsageError(
      f'{run} has not grown to full size in {kimg:g} kimg; leave grow as it is, and use another '
      '--out'
    )
  if 'swd' not in rows[-1]:
    raise faults.UsageError(f'{run} has no SWD; leave swd_images above 0, and use another --out')
  seconds, rates = np.array([[row['sec_per_tick'], row['img_per_sec']] for row in rows]).T
  environment = json.loads((run.workdir / 'environment.json').read_text())[-1]
  count = lambda name: sum(x.size for x in jax.tree.leaves(state[name]))
  wanted = [
    p for p in map(protocols.parse, NETWORKS) if all(pretrained.find(name) for name in p.weights)
  ]
  source = data.load(
    config.data.name,
    config.data.dir,
    build.resolution(config),
    config.data.channels,
    config.data.labels,
  )
  setting = measure.Setting(
    net, source, sharding.make_mesh(), run.workdir / 'evaluation' / f'{net.step:08d}', stop=stop
  )
  return {
    k: v for document in measure.measure(wanted, setting) for k, v in document['values'].items()
  } | {
    'cell': run.cell,
    'seed': run.seed,
    'kimg': kimg,
    'minibatches': net.step,
    'data': config.data.name or config.data.dir,
    'swd': float(rows[-1]['swd']),
    'swd_start': float(rows[0]['swd']),
    'ppl_w_end_pixel_mse': ppl(
      net.generator,
      net.variables,
      pixel_distance,
      PPL_PAIRS,
      c=sampler.draw_labels(net, PPL_PAIRS, np.random.RandomState(0)),
    ),
    'ppl_pairs': PPL_PAIRS,
    'img_per_sec': float((seconds * rates).sum() / seconds.sum()),
    'img_per_sec_full_size': statistics.median(
      row['img_per_sec'] for row in rows if row['nimg'] and not row.get('lod')
    ),
    'train_seconds': float(seconds.sum()),
    'parameters_g': count('g'),
    'parameters_d': count('d'),
    'device': environment['device'],
    'git_commit': environment['git_commit'],
  }


def work(runs, settings, stop, save, train=start, measure=figures):
  """Trains and measures the runs without a result; save(failed) after each. -> {Run: exit code} of
  those that failed.

  Raises: Preempted or Interrupted after a signal, and the Fault of an exit code that isn't about
  the cell.
  """
  failed = {}
  done = lambda: f'{sum(bool(result(run)) for run in runs)} of {len(runs)} runs are done'
  for i, run in enumerate(runs):
    if result(run):
      continue
    if stop:
      stop.leave(done())
    print(f'[{i + 1}/{len(runs)}] {run}: {run.workdir}', flush=True)
    code = train(command(run, settings), stop)
    if stop:
      stop.leave(done())
    if code in ENDS:
      raise ENDS[code](
        f'{run} ended with exit code {code}, for the reason above; {done()}, and the same command '
        'goes on'
      )
    if code:
      failed[run] = code
      print(
        f'{run} failed with exit code {code}, for the reason above; going on with the others',
        flush=True,
      )
    else:
      try:
        write_atomic(run.workdir / 'result.json', json.dumps(measure(run), indent=1) + '\n')
      except passes.Stopped:
        stop.leave(done())
    save(failed)
  return failed


# ---- tables


def save(out, runs, settings, failed):
  """Writes table.md, table.json and samples.png of the runs that have a result. -> False if there
  are none.
  """
  if not any(result(run) for run in runs):
    return False
  cells = {}
  for run in runs:
    cells.setdefault(run.cell, {'runs': [], 'failed': {}, 'asked': 0})['asked'] += 1
    if measured := result(run):
      cells[run.cell]['runs'].append(measured)
    elif run in failed:
      cells[run.cell]['failed'][f'seed {run.seed}'] = f'exit {failed[run]}'
  cells = {cell: cells[cell] for cell in CELLS if cell in cells}
  write_atomic(
    out / 'table.json', json.dumps({'settings': settings, 'cells': cells}, indent=1) + '\n'
  )
  write_atomic(out / 'table.md', tables(cells, settings))
  write_atomic(out / 'samples.png', samples(runs))
  return True


def spread(runs, name, digits=None):
  """'mean [least, greatest]' of a number over the runs; the brackets only if there are several; '-'
  without runs.
  """
  values = [run[name] for run in runs]
  text = lambda v: f'{v:.{digits}f}' if digits is not None else f'{v:.3g}'
  if not values:
    return '-'
  return text(statistics.fmean(values)) + (
    f' [{text(min(values))}, {text(max(values))}]' if len(values) > 1 else ''
  )


def tables(cells, settings):
  """Markdown of the ladder, then of the grid; only with the cells that were asked for."""
  measured = [run for cell in cells.values() for run in cell['runs']]
  names = lambda key: ', '.join(sorted({str(run[key]) for run in measured}))
  fields = ''.join(f', {field}={value}' for field, value in settings['set'].items())
  text = [
    f'{names("data")} at {settings["resolution"]} px, {settings["kimg"]:g} kimg a run{fields}; '
    f'{names("device")}; mean [least, greatest] over seeds',
    '',
  ]
  columns = {'swd': ('SWD', 1), 'ppl_w_end_pixel_mse': ('PPL_W of pixels', None)}
  columns |= {
    name: (title, 1)
    for name, title in NETWORKS.items()
    if measured and all(name in run for run in measured)
  }
  titles = [title for title, _ in columns.values()]
  quality = lambda cell: [
    spread(cell['runs'], name, digits) for name, (_, digits) in columns.items()
  ]
  ladder = [
    [
      LADDER[name],
      seeds(cell),
      *quality(cell),
      spread(cell['runs'], 'img_per_sec', 0),
      spread(cell['runs'], 'img_per_sec_full_size', 0),
      spread(cell['runs'], 'train_seconds', 0),
      *(spread(cell['runs'][:1], f'parameters_{n}', 0) for n in 'gd'),
    ]
    for name, cell in cells.items()
    if name in LADDER
  ]
  if ladder:
    heading = [
      'configuration',
      'seeds',
      *titles,
      'images/s',
      'at full size',
      'seconds',
      'parameters G',
      'D',
    ]
    text += ['Table 1', '', *markdown([heading, *ladder]), '']
  if any(cell in cells for cell in PAIRS.values() if cell != 'e'):
    # empty: it wasn't asked for
    pair = lambda cell: '; '.join([*quality(cell), seeds(cell)]) if cell else ''
    text += [
      f'Table 2: {"; ".join(titles)}; seeds',
      '',
      *markdown(
        [
          ['', *(f'D {d}' for d in KINDS)],
          *([f'G {g}', *(pair(cells.get(PAIRS[g, d])) for d in KINDS)] for g in KINDS),
        ]
      ),
      '',
    ]
  return '\n'.join([*text, *NOTES]) + '\n'


NOTES = (
  'SWD: sliced Wasserstein distance x 1000 to the real images, of the moving average of the '
  'weights. It is not FID.',
  'PPL_W of pixels: path length in W at the end points, eps 1e-4, with the mean squared '
  'difference of pixels for a distance:',
  'not LPIPS, so not a PPL as published. FID (fid10k_full) and PPL (ppl2_4k_wend) are there if '
  'the weights of their networks',
  'were found (python -m sg2jax.tools.fetch_weights). images/s: in training, without compilation '
  'and snapshots; growing',
  'cells train faster while small. A run that met a non-finite number is counted as failed (exit '
  '4).',
)


def seeds(cell):
  """How many runs there are, out of how many if some are missing, and why."""
  count = len(cell['runs'])
  failed = ''.join(f', {seed}: {why}' for seed, why in cell['failed'].items())
  return (f'{count}' if count == cell['asked'] else f'{count} of {cell["asked"]}') + failed


def markdown(rows):
  """Lines of a table whose columns stand one below the other in a terminal too; rows: [[str, ...],
  ...], the heading first.
  """
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = [
    '| ' + ' | '.join(text.ljust(width) for text, width in zip(row, widths)) + ' |' for row in rows
  ]
  return [lines[0], '|' + '|'.join('-' * (width + 2) for width in widths) + '|', *lines[1:]]


def samples(runs):
  """PNG of the upper half of the last grid of each cell, of its first seed, besides real images."""
  shown = {}
  for run in sorted(runs, key=lambda run: CELLS.index(run.cell)):
    if result(run) and run.cell not in shown:
      shown |= {} if shown else {'real images': run.workdir / 'images' / 'reals.png'}
      shown[run.cell] = max((run.workdir / 'images').glob('fakes_*.png'))
  rows = -(-len(shown) // 3)
  figure = Figure((12, 2.3 * rows), dpi=120, layout='constrained')
  for i, (name, path) in enumerate(shown.items()):
    with Image.open(path) as image:
      grid = np.asarray(image.convert('RGB'))
    axes = figure.add_subplot(rows, 3, i + 1)
    axes.imshow(grid[: len(grid) // 2])
    axes.set_title(LADDER.get(name, name), loc='left', size=10)
    axes.axis('off')
  return png(figure)


if __name__ == '__main__':
  define_flags()
  cli.run(main)
