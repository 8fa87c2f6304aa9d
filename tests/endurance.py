"""Whether a run's memory grows: `python -m tests.endurance [STEPS]` trains 10,000 tiny minibatches.

With a snapshot and a save every 100 and a metric every 1,000 of them. Prints the slope of the
resident memory, and exits with 1 if it is 1 MB in 1,000 minibatches or more.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np

from sg2jax import cli
from sg2jax.training.train import train
from tests.runs import configuration

STEPS = 10_000
LIMIT = 1.0  # MB in 1,000 minibatches
BATCH = 8
FIELDS = {
  'batch': BATCH,
  'tick_kimg': 0.05 * BATCH,
  'snapshot_kimg': 0.1 * BATCH,
  'metrics_kimg': 1.0 * BATCH,
  'metrics': ('pixelfd0.1k_full',),
  'swd_images': 32,
}


def memory(workdir: pathlib.Path) -> np.ndarray:
  """[(minibatches, MB)] of the ticks of a run."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  rows = [row for row in map(json.loads, lines) if 'host_bytes' in row]
  return np.array([(row['step'], row['host_bytes'] / 2**20) for row in rows])


def slope(points: np.ndarray) -> float:
  """MB in 1,000 minibatches, over the last four fifths: before, caches and pools fill."""
  late = points[points[:, 0] > points[-1, 0] / 5]
  return np.polyfit(late[:, 0] / 1000, late[:, 1], 1)[0]


def main(argv: list[str]) -> None:
  """Trains, measures, prints."""
  steps = int(argv[1]) if len(argv) > 1 else STEPS
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder) / 'run'
    fields = FIELDS | {'total_kimg': steps * BATCH / 1000}
    train(configuration(pathlib.Path(folder), **fields), workdir)
    points = memory(workdir)
  for step, size in points[:: max(1, len(points) // 20)]:
    print(f'{step:6.0f}  {size:7.1f} MB')
  found = slope(points)
  print(f'{found:+.2f} MB in 1,000 minibatches, of {steps}; the limit is {LIMIT:g}')
  sys.exit(bool(found >= LIMIT))


if __name__ == '__main__':
  cli.run(main, positional=1)
