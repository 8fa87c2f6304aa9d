"""What a run says of itself: status line, metrics.jsonl, TensorBoard, image grids.

Only process 0 writes; every process may call. Non-finite numbers go to JSON as the strings "nan",
"inf", "-inf": valid JSON, unlike NaN, and `float()` reads them back, unlike null.
"""

from collections.abc import Iterable
import contextlib
import json
import math
import os
import pathlib
import re
import time

import jax
import numpy as np
import tqdm

from sg2jax import files, grids, paths
from sg2jax.addresses import Address
from sg2jax.training.events import EventFile, tag
from sg2jax.training.health import Health

# Metrics of the status line, in this order, and their names there; metrics.jsonl has all. They come
# from what the steps report (means of a tick), from loop.loop and from Snapshot.take; columns with
# units are in _status.
SHOWN = {
  'lod': 'lod',
  'loss_g': 'G',
  'loss_d': 'D',
  'pl_length': 'pl',
  'r1': 'r1',
  'swd': 'swd',
  'r_t': 'r_t',
  'augment_p': 'p',
  'r_v': 'r_v',
  'nearest': 'nearest',
}


class Report:
  """The log of one run. Failures of the file system raise WriteError."""

  def __init__(
    self,
    workdir: str | os.PathLike,
    step: int,
    total_kimg: float,
    augment_target: float = 0.0,
  ) -> None:
    """Opens the log in `workdir` and cuts it back to `step`, so that each step is logged once.

    Args:
      workdir: created if need be.
      step: minibatches done in the state that the run goes on from; 0 starts the log afresh.
      total_kimg: length of the run, thousands of images.
      augment_target: config.augment.target, see Health.
    """
    self._active = jax.process_index() == 0
    self._workdir = paths.place(workdir)
    self._total = total_kimg
    self._log = self._workdir / 'metrics.jsonl'
    self._bar = None
    self._events = None
    self._health = Health(augment_target)
    self._columns = set()  # metrics that a status line had
    records = self._cut_back(step) if self._active else []
    # Metrics that were measured later have lines of their own, which are no ticks.
    self._ticks = sum('sec_per_tick' in record for record in records)
    self._step = step  # of the last line, and what is logged of it
    self._names = {name for record in records if record['step'] == step for name in record}
    if self._active:
      folder = self._workdir / 'tensorboard'
      with files.writing(folder):
        self._events = EventFile(folder, step)
        self._events.flush()

  def _cut_back(self, step):
    """Removes lines of metrics.jsonl from after `step`, and torn ones; returns the others, read."""
    with files.writing(self._log):
      self._workdir.mkdir(parents=True, exist_ok=True)
      old = self._log.read_bytes() if self._log.exists() else b''
    self._lines = old
    lines = [line + b'\n' for line in old.split(b'\n') if 0 < step >= _step_of(line)]
    if b''.join(lines) != old:
      files.write_atomic(self._log, b''.join(lines))
      dropped = len(old.splitlines()) - len(lines)
      self.say(f'{self._log}: dropped {dropped} line(s) from after step {step}')
      self._lines = b''.join(lines)
    return [json.loads(line) for line in lines]

  # ---- numbers

  def tick(
    self, step: int, nimg: int, metrics: dict[str, float], sec_per_tick: float, img_per_sec: float
  ) -> None:
    """Logs one tick: a status line, a line of metrics.jsonl and TensorBoard scalars.

    Args:
      step: minibatches so far.
      nimg: images so far.
      metrics: any names; those in SHOWN are on the status line.
      sec_per_tick: seconds since the last tick.
      img_per_sec: images per second in training; the time left follows from it.
    """
    scalars = {
      'sec_per_tick': sec_per_tick,
      'img_per_sec': img_per_sec,
      **metrics,
      'host_bytes': host_memory(),
      'device_bytes': device_memory(jax.local_devices()[0]),
    }
    scalars = self._write(step, nimg, scalars)
    self.say(self._status(nimg / 1000, scalars))
    # Not of networks that nothing was trained of yet.
    for warning in self._health.look(scalars) if step else ():
      self.say(warning)
    self._ticks += 1

  def values(self, step: int, nimg: int, metrics: dict[str, float]) -> None:
    """Logs metrics that were measured after the tick of their step, in a line of their own.

    Each once: a run that was killed before it noted that they are logged measures again.
    """
    lacking = self.lacks(step, metrics)
    metrics = {name: metrics[name] for name in lacking}
    if metrics:
      self._write(step, nimg, metrics)
      self.say('  '.join(f'{name} {number(value)}' for name, value in metrics.items()))

  def lacks(self, step: int, names: Iterable[str]) -> list[str]:
    """Those of `names` that aren't logged yet of the step of the last line, or of one after it."""
    return [name for name in names if step != self._step or name not in self._names]

  def _write(self, step, nimg, scalars):
    """A line of metrics.jsonl, and TensorBoard; returns the scalars without None."""
    scalars = {name: float(value) for name, value in scalars.items() if value is not None}
    if step != self._step:
      self._step = step
      self._names = set()
    self._names |= scalars.keys()
    if self._active:
      line = {'step': int(step), 'nimg': int(nimg), 'time': time.time()}
      for name, value in scalars.items():
        line[name] = value if math.isfinite(value) else str(value)
      self._append(json.dumps(line) + '\n')
    if self._events:
      with files.writing(self._workdir / 'tensorboard'):
        tagged = {tag(name): x for name, x in {'kimg': nimg / 1000, **scalars}.items()}
        self._events.write_scalars(int(step), tagged)
        self._events.flush()
    return scalars

  def _append(self, line):
    """Adds a line to metrics.jsonl; to an object nothing can be added: it is put again."""
    if isinstance(self._log, Address):
      self._lines += line.encode()
      files.write_atomic(self._log, self._lines)
      return
    with files.writing(self._log), open(self._log, 'a') as f:
      f.write(line)
      f.flush()
      os.fsync(f.fileno())

  def _status(self, kimg, scalars):
    """The status line; a metric that once was there keeps its column, as '-'."""
    rate = scalars['img_per_sec']
    seconds = max(self._total - kimg, 0) * 1000 / rate if rate > 0 else 0
    self._columns |= scalars.keys()
    columns = [
      f'tick {self._ticks:<4}',
      f'kimg {kimg:>{len(f"{self._total:.1f}")}.1f}/{self._total:g}',
      f'{number(scalars["sec_per_tick"]):>5} s/tick',
      f'{number(rate):>5} img/s',
      f'left {tqdm.tqdm.format_interval(seconds):<8}',
    ]
    for name, label in SHOWN.items():
      if name in self._columns:
        columns.append(f'{label} {number(scalars[name]) if name in scalars else "-":<6}')
    for name, label in (('host_bytes', 'mem'), ('device_bytes', 'device')):
      if name in scalars:
        columns.append(f'{label} {scalars[name] / 2**30:.1f} GB')
    return '  '.join(columns)

  # ---- pictures

  def images(self, name: str, images: np.ndarray, step: int, cols: int | None = None) -> None:
    """Writes a grid to WORKDIR/images/<name>.png and to TensorBoard.

    Args:
      name: file name without ending; a trailing _<number> is not part of the TensorBoard name.
      images: uint8 [N,H,W,C], shown as by `grids.readable_grid`.
      step: minibatches so far.
      cols: columns of the grid; None: as `grids.image_grid` chooses.
    """
    if not self._active:
      return
    grid = grids.readable_grid(images, cols)
    # A large grid takes a second to encode: once is enough.
    png = files.png(grid)
    files.write_atomic(self._workdir / 'images' / f'{name}.png', png)
    if self._events:
      with files.writing(self._workdir / 'tensorboard'):
        name = re.sub(r'_\d+$', '', name)
        self._events.write_png(int(step), f'pictures/{name}', png, grid.shape)

  def histograms(self, values: dict[str, np.ndarray], step: int) -> None:
    """Writes how numbers are distributed, {tag: any shape}, to TensorBoard alone."""
    if self._events:
      with files.writing(self._workdir / 'tensorboard'):
        for name, numbers in values.items():
          self._events.write_histogram(int(step), name, numbers)

  # ---- the terminal

  def progress(self, nimg: int) -> None:
    """Moves the progress bar, if stderr is a terminal."""
    if not self._active:
      return
    kimg = min(nimg / 1000, self._total)
    if self._bar is None:
      self._bar = tqdm.tqdm(
        total=self._total,
        initial=kimg,
        bar_format='[{bar:30}] {percentage:3.0f}%  {n:.1f}/{total:g} kimg',
        ascii='.#',
        leave=False,
        disable=None,  # unless stderr is a terminal
      )
    self._bar.update(kimg - self._bar.n)

  def say(self, text: str) -> None:
    """Prints a line to stdout, clear of the progress bar."""
    if self._active:
      with tqdm.tqdm.external_write_mode():
        print(text, flush=True)

  def close(self) -> None:
    """Removes the progress bar and closes the TensorBoard file."""
    if self._bar is not None:
      self._bar.close()
    if self._events is not None:
      with files.writing(self._workdir / 'tensorboard'):
        self._events.close()


def logged(workdir: paths.Path) -> list[dict]:
  """The lines of a run's metrics.jsonl; [] without one. What a killed run left torn is left out."""
  log = workdir / 'metrics.jsonl'
  rows = []
  for line in log.read_text().splitlines() if log.exists() else ():
    with contextlib.suppress(ValueError):
      rows.append(json.loads(line))
  return [row for row in rows if isinstance(row, dict)]


# ---- memory


def host_memory() -> int | None:
  """Resident memory of this process in bytes, or None where the system has no /proc (not Linux)."""
  try:
    return int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
  except OSError:
    return None


def device_memory(device: jax.Device) -> int | None:
  """Peak memory in use on a device in bytes, or None if it doesn't tell (CPU)."""
  stats = device.memory_stats()
  return stats.get('peak_bytes_in_use') if stats else None


# ---- text


def number(value: float) -> str:
  """At most 6 characters or so for people: '0.012', '1.31', '61.2', '1234', '3e-05'."""
  size = abs(value)
  if not math.isfinite(value) or size >= 1e6 or 0 < size < 5e-4:
    return f'{value:.0e}'
  decimals = sum(size < limit for limit in (1, 10, 100))
  return f'{value:.{decimals}f}'


def _step_of(line):
  """Step of a line of metrics.jsonl; infinite if it is torn or none."""
  try:
    return int(json.loads(line)['step'])
  except (ValueError, KeyError, TypeError):
    return math.inf
