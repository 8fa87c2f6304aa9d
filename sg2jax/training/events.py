"""TensorBoard's event files: numbers under tags that group them, pictures, histograms."""

import math
import os
import pathlib
import re
import socket
import tempfile
import time

import numpy as np

from sg2jax import paths
from sg2jax.addresses import Address

BINS = 40  # of a histogram, at most
# TensorBoard shows what comes before the / of a tag as a group, in the order of the alphabet.
GROUPS = {
  'augmentation': 'augment_p|r_t',
  'contribution': 'contribution_.*',
  'gradients': 'grad_norm_.*',
  'logits': 'logits_(real|fake)',
  'losses': 'loss_.*|r1|pl_.*',
  'machine': 'sec_per_tick|img_per_sec|host_bytes|device_bytes',
  'memorising': 'logits_.*|nearest|r_v',
  'progress': 'kimg|lod',
}
SAID = '^(augment|contribution|grad_norm|loss)_'  # by the group
OTHERS = 'quality'  # what compares pictures; config.metrics may name many


def tag(name: str) -> str:
  """Of a metric: loss_g -> losses/g, contribution_b4 -> contribution/b4, swd -> quality/swd."""
  group = next((g for g, pattern in GROUPS.items() if re.fullmatch(pattern, name)), OTHERS)
  return f'{group}/{re.sub(SAID, "", name)}'


class EventFile:
  """TensorBoard's event file, without TensorFlow.

  tensorboard's own EventFileWriter and clu's SummaryWriter import TensorFlow where it is installed,
  which training must not.

  For a bucket it is written on this machine, and put there with each `flush`; a new one begins once
  it has MAX_BYTES, or every tick of a long run would put all of its pictures again.
  """

  MAX_BYTES = 2**24

  def __init__(self, folder: paths.Path, step: int) -> None:
    """Makes a file in `folder`. step: minibatches done in the state that a run goes on from."""
    # Here, not above: tools that only use a network do without it.
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    self._event = event_pb2
    self._summary = summary_pb2.Summary
    self._histogram = summary_pb2.HistogramProto
    self._record_writer = RecordWriter
    self._folder = folder
    self._scratch = None
    if isinstance(folder, Address):
      self._scratch = tempfile.TemporaryDirectory(prefix='sg2jax-')
    folder.mkdir(parents=True, exist_ok=True)
    now = int(time.time())
    self._name = f'events.out.tfevents.{now:010d}.{socket.gethostname()}.{os.getpid()}'
    self._begin(0)
    # A session start makes TensorBoard forget what an interrupted run wrote beyond this step.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(step=step + 1 if step else 0, session_log=start)

  def _begin(self, number):
    """Opens file `number` of this run; TensorBoard reads them in the order of their names."""
    folder = pathlib.Path(self._scratch.name) if self._scratch else self._folder
    self._number = number
    self._file = folder / (f'{self._name}.{number:04d}' if self._scratch else self._name)
    self._writer = self._record_writer(open(self._file, 'ab'))  # noqa: SIM115 (for long)
    self._add(file_version='brain.Event:2')

  def flush(self) -> None:
    """Puts the file to the bucket; on a disk there is nothing to do."""
    if not self._scratch:
      return
    (self._folder / self._file.name).upload(self._file)
    if self._file.stat().st_size >= self.MAX_BYTES:
      self._writer.close()
      self._file.unlink()
      self._begin(self._number + 1)

  def close(self) -> None:
    """Closes the file, and puts it."""
    self._writer.close()
    if self._scratch:
      try:
        (self._folder / self._file.name).upload(self._file)
      finally:
        self._scratch.cleanup()

  def _add(self, **fields):
    event = self._event.Event(wall_time=time.time(), **fields)
    self._writer.write(event.SerializeToString())
    self._writer.flush()

  def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
    """Writes numbers."""
    values = [self._summary.Value(tag=tag, simple_value=x) for tag, x in scalars.items()]
    self._add(step=step, summary=self._summary(value=values))

  def write_histogram(self, step: int, tag: str, values: np.ndarray) -> None:
    """Writes how numbers of any shape are distributed; those that aren't finite don't count."""
    values = np.asarray(values, np.float64).ravel()
    values = values[np.isfinite(values)]
    if not values.size:
      return
    counts, edges = np.histogram(values, min(BINS, math.ceil(2 * math.sqrt(values.size))))
    histogram = self._histogram(
      min=values.min(),
      max=values.max(),
      num=values.size,
      sum=values.sum(),
      sum_squares=np.square(values).sum(),
      bucket_limit=edges[1:],
      bucket=counts,
    )
    value = self._summary.Value(tag=tag, histo=histogram)
    self._add(step=step, summary=self._summary(value=[value]))

  def write_png(self, step: int, tag: str, png: bytes, shape: tuple[int, int, int]) -> None:
    """Writes a PNG file of a picture of shape (H, W, C)."""
    height, width, channels = shape
    picture = self._summary.Image(
      height=height, width=width, colorspace=channels, encoded_image_string=png
    )
    value = self._summary.Value(tag=tag, image=picture)
    self._add(step=step, summary=self._summary(value=[value]))
