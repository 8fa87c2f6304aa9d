"""What a run says of itself: status line, metrics.jsonl, TensorBoard, image grids, environment.

Only process 0 writes; every process may call. Non-finite numbers go to JSON as the strings "nan",
"inf", "-inf": valid JSON, unlike NaN, and `float()` reads them back, unlike null.

TensorBoard: importing anything of `clu.metric_writers` (0.0.12) imports TensorFlow, which training
must not. So clu's writer is used where TensorFlow is in the process already, else `EventWriter`.
"""

import contextlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import re
import shlex
import socket
import subprocess
import sys
import time

import jax

from sg2jax import __version__, files, grids

# Metrics of the status line, in this order, and their names there. metrics.jsonl has all metrics.
SHOWN = {
  'lod': 'lod',
  'loss_g': 'G',
  'loss_d': 'D',
  'pl_length': 'pl',
  'r1': 'r1',
  'ada_p': 'p',
  'swd': 'swd',
}
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


class Report:
  """The log of one run. Failures of the file system raise WriteError."""

  def __init__(self, workdir, step, total_kimg):
    """Opens the log in `workdir` and cuts it back to `step`, so that each step is logged once.

    Args:
      workdir: str or path; created if need be.
      step: minibatches done in the state that the run goes on from; 0 starts the log afresh.
      total_kimg: length of the run, thousands of images.
    """
    self._active = jax.process_index() == 0
    self._workdir, self._total = pathlib.Path(workdir), total_kimg
    self._bar_due = 0.0
    if not self._active:
      return
    self._log = self._workdir / 'metrics.jsonl'
    with files.writing(self._log):
      self._workdir.mkdir(parents=True, exist_ok=True)
      old = self._log.read_bytes() if self._log.exists() else b''
    kept = [line + b'\n' for line in old.split(b'\n') if 0 < step >= _step_of(line)]
    if b''.join(kept) != old:
      files.write_atomic(self._log, b''.join(kept))
      dropped = len(old.splitlines()) - len(kept)
      self.say(f'{self._log}: dropped {dropped} line(s) from after step {step}')
    records = [json.loads(line) for line in kept]
    # Metrics that were measured later have lines of their own, which are no ticks.
    self._ticks, self._columns = sum('sec_per_tick' in record for record in records), set()
    self._values = {
      (record['step'], name)
      for record in records
      if 'sec_per_tick' not in record
      for name in record
    }
    with files.writing(self._workdir / 'tensorboard'):
      self._writer = _tensorboard_writer(self._workdir / 'tensorboard', step)
    if not self._writer:
      self.say('TensorBoard logging is off: the package "tensorboard" is not installed')

  def tick(self, step, nimg, metrics, sec_per_tick, img_per_sec):
    """Logs one tick: a status line, a line of metrics.jsonl and TensorBoard scalars.

    Args:
      step: minibatches so far.
      nimg: images so far.
      metrics: dict, name -> number; any names; those in SHOWN are on the status line.
      sec_per_tick: seconds since the last tick.
      img_per_sec: images per second in training; the time left follows from it.
    """
    if not self._active:
      return
    scalars = {
      'sec_per_tick': sec_per_tick,
      'img_per_sec': img_per_sec,
      **metrics,
      'host_bytes': host_memory(),
      'device_bytes': device_memory(jax.local_devices()[0]),
    }
    scalars = self._write(step, nimg, scalars)
    self.say(self._status(nimg / 1000, scalars))
    self._ticks += 1

  def values(self, step, nimg, metrics):
    """Logs metrics that were measured after the tick of their step, in a line of their own; each
    once.
    """
    metrics = {
      name: value
      for name, value in metrics.items()
      if self._active and (step, name) not in self._values
    }
    if metrics:
      self._values |= {(step, name) for name in metrics}
      self._write(step, nimg, metrics)
      self.say('  '.join(f'{name} {number(value)}' for name, value in metrics.items()))

  def _write(self, step, nimg, scalars):
    """A line of metrics.jsonl, and TensorBoard; returns the scalars without None."""
    scalars = {name: float(value) for name, value in scalars.items() if value is not None}
    with files.writing(self._log), open(self._log, 'a') as f:
      json_safe = {k: v if math.isfinite(v) else str(v) for k, v in scalars.items()}
      f.write(json.dumps({'step': int(step), 'nimg': int(nimg), 'time': time.time(), **json_safe}))
      f.write('\n')
      f.flush()
      os.fsync(f.fileno())
    if self._writer:
      with files.writing(self._workdir / 'tensorboard'):
        self._writer.write_scalars(int(step), {'kimg': nimg / 1000, **scalars})
        self._writer.flush()
    return scalars

  def images(self, name, images, step, cols=None):
    """Writes a grid to WORKDIR/images/<name>.png and to TensorBoard.

    Args:
      name: file name without ending; a trailing _<number> is not part of the TensorBoard name.
      images: uint8 [N,H,W,C]. 1 and 2 channels become grey, 4 become RGBA, others RGB of the first
        three. Sides under 64 px are enlarged by a whole factor, so that a person can read them.
      step: minibatches so far.
      cols: columns of the grid; None: as `grids.image_grid` chooses.
    """
    if not self._active:
      return
    grid = grids.readable_grid(images, cols)
    file, tag = files.png(grid), re.sub(r'_\d+$', '', name)
    files.write_atomic(self._workdir / 'images' / f'{name}.png', file)
    if self._writer:
      with files.writing(self._workdir / 'tensorboard'):
        if isinstance(self._writer, EventWriter):
          self._writer.write_png(int(step), tag, file, grid.shape)
        else:
          self._writer.write_images(int(step), {tag: grid[None, ..., :3]})
        self._writer.flush()

  def progress(self, nimg):
    """Redraws the progress bar, at most 10 times a second, if stderr is a terminal."""
    if self._active and time.monotonic() >= self._bar_due and sys.stderr.isatty():
      self._bar_due = time.monotonic() + 0.1
      share = min(nimg / (1000 * self._total), 1)
      bar = ('#' * int(30 * share)).ljust(30, '.')
      print(
        f'\r[{bar}] {share:4.0%}  {nimg / 1000:.1f}/{self._total:g} kimg\x1b[K',
        end='',
        file=sys.stderr,
        flush=True,
      )

  def say(self, text):
    """Prints a line to stdout, clear of the progress bar."""
    if self._active:
      self._clear_bar()
      print(text, flush=True)

  def close(self):
    """Removes the progress bar and closes the TensorBoard file."""
    if self._active:
      self._clear_bar()
      if self._writer:
        self._writer.close()

  def _clear_bar(self):
    if self._bar_due:
      print('\r\x1b[K', end='', file=sys.stderr, flush=True)

  def _status(self, kimg, scalars):
    """The status line; a column stays, as '-', once its metric has been seen."""
    rate = scalars['img_per_sec']
    left = duration((self._total - kimg) * 1000 / rate) if rate > 0 else '-'
    self._columns |= scalars.keys()
    metrics = [
      f'{label} {number(scalars[name]) if name in scalars else "-":<6}'
      for name, label in SHOWN.items()
      if name in self._columns
    ]
    memory = [
      f'{label} {scalars[name] / 2**30:.1f} GB'
      for name, label in (('host_bytes', 'mem'), ('device_bytes', 'device'))
      if name in scalars
    ]
    return '  '.join(
      [
        f'tick {self._ticks:<4}',
        f'kimg {kimg:>{len(f"{self._total:.1f}")}.1f}/{self._total:g}',
        f'{number(scalars["sec_per_tick"]):>5} s/tick',
        f'{number(rate):>5} img/s',
        f'left {left:<7}',
        *metrics,
        *memory,
      ]
    )


class EventWriter:
  """TensorBoard event files without TensorFlow; `write_scalars`, `flush` and `close` are those of
  clu's MetricWriter.

  Uses tensorboard's RecordWriter: its EventFileWriter imports TensorFlow where that is installed.
  """

  def __init__(self, logdir, step):
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    self._event, self._summary = event_pb2, summary_pb2.Summary
    logdir.mkdir(parents=True, exist_ok=True)
    name = f'events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}'
    self._writer = RecordWriter(open(logdir / name, 'ab'))  # noqa: SIM115 (open for the whole run)
    self._add(file_version='brain.Event:2')
    # A session start makes TensorBoard forget what an interrupted run wrote beyond this step.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(step=step + 1 if step else 0, session_log=start)
    self.flush, self.close = self._writer.flush, self._writer.close

  def _add(self, **fields):
    self._writer.write(self._event.Event(wall_time=time.time(), **fields).SerializeToString())

  def write_scalars(self, step, scalars):
    """Writes numbers: dict, name -> float."""
    values = [self._summary.Value(tag=k, simple_value=v) for k, v in scalars.items()]
    self._add(step=step, summary=self._summary(value=values))

  def write_png(self, step, name, file, shape):
    """Writes a picture: the bytes of a PNG file of a shape [H,W,C]."""
    height, width, channels = shape
    picture = self._summary.Image(
      height=height, width=width, colorspace=channels, encoded_image_string=file
    )
    self._add(
      step=step, summary=self._summary(value=[self._summary.Value(tag=name, image=picture)])
    )


def _tensorboard_writer(logdir, step):
  """clu's writer if TensorFlow is loaded already, our own if not, None without tensorboard."""
  with contextlib.suppress(ImportError):
    if 'tensorflow' in sys.modules:
      from clu.metric_writers import SummaryWriter

      return SummaryWriter(str(logdir))
  with contextlib.suppress(ImportError):
    return EventWriter(logdir, step)
  return None


def save_run(workdir, config, labels=None, changes=()):
  """Writes what is being run into WORKDIR: config.json, labels.json, and one more start in
  environment.json.

  Args:
    workdir: str or path; created if need be.
    config: dict of JSON values.
    labels: data.labels.Labels of the data set; None: it has none.
    changes: what is other than in the run that goes on, as lines for people.
  """
  if jax.process_index() != 0:
    return
  path = pathlib.Path(workdir) / 'environment.json'
  if labels is None:
    with files.writing(path):
      path.with_name('labels.json').unlink(missing_ok=True)
  else:
    files.write_atomic(path.with_name('labels.json'), labels.to_json())
  files.write_atomic(
    path.with_name('config.json'), json.dumps(config, indent=2, sort_keys=True) + '\n'
  )
  with files.writing(path):
    text = path.read_text() if path.exists() else '[]'
  try:
    starts = json.loads(text)
  except ValueError:
    starts = [{'unreadable': text}]
  files.write_atomic(
    path,
    json.dumps([*starts, environment() | ({'changes': list(changes)} if changes else {})], indent=2)
    + '\n',
  )


def environment():
  """What this process runs on: dict of versions, devices, host, command line and git commit."""
  devices = jax.devices()
  return {
    'time': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
    'host': platform.node(),
    'platform': platform.platform(),
    'command': shlex.join([sys.executable, *sys.orig_argv[1:]]),
    'git_commit': _git_commit(),
    'python': platform.python_version(),
    'sg2jax': __version__,
    **{name: _version(name) for name in PACKAGES},
    'device': devices[0].device_kind,
    'backend': devices[0].platform,
    'devices': len(devices),
    'processes': jax.process_count(),
    'cpus': os.cpu_count(),
  }


def _version(package):
  with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    return importlib.metadata.version(package)


def _git_commit():
  """Commit of the checkout that this file is in, with -dirty if changed; None outside of one."""
  root = pathlib.Path(__file__).resolve().parents[1]
  # An installed copy may lie inside another project's checkout; its commit would mislead.
  if not (root / '.git').exists():
    return None
  command = ['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
  with contextlib.suppress(OSError, subprocess.TimeoutExpired):
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=5, check=False)
    return done.stdout.strip() or None


def host_memory():
  """Resident memory of this process in bytes, or None where the system has no /proc (not Linux)."""
  try:
    return int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
  except OSError:
    return None


def device_memory(device):
  """Peak memory in use on a jax device in bytes, or None if it doesn't tell (CPU)."""
  stats = device.memory_stats()
  return stats.get('peak_bytes_in_use') if stats else None


def number(value):
  """float -> at most 6 characters or so for people: '0.012', '1.31', '61.2', '1234', '3e-05'."""
  size = abs(value)
  if not math.isfinite(value) or size >= 1e6 or 0 < size < 5e-4:
    return f'{value:.0e}'
  return f'{value:.{3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0}f}'


def duration(seconds):
  """Seconds -> '45s', '12m 05s', '1h 12m' or '3d 04h'."""
  seconds = max(round(seconds), 0)
  for big, small, units in ((86400, 3600, 'dh'), (3600, 60, 'hm'), (60, 1, 'ms')):
    if seconds >= big:
      return f'{seconds // big}{units[0]} {seconds % big // small:02d}{units[1]}'
  return f'{seconds}s'


def _step_of(line):
  """Step of a line of metrics.jsonl; infinite if it is torn or none."""
  try:
    return int(json.loads(line)['step'])
  except (ValueError, KeyError, TypeError):
    return math.inf
