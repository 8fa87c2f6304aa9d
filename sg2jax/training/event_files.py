"""TensorBoard's event files, without TensorFlow.

Importing anything of `clu.metric_writers` (0.0.12) imports TensorFlow, which training must not. So
clu's writer is used where TensorFlow is in the process already, else `EventWriter`.
"""

import contextlib
import os
import pathlib
import socket
import sys
import time
from typing import Any

import numpy as np


def open_writer(folder: pathlib.Path, step: int) -> Any:
  """clu's SummaryWriter if TensorFlow is loaded, our own if not, None without tensorboard.

  step: minibatches done in the state that a run goes on from.
  """
  with contextlib.suppress(ImportError):
    if 'tensorflow' in sys.modules:
      from clu.metric_writers import SummaryWriter

      return SummaryWriter(str(folder))
  with contextlib.suppress(ImportError):
    return EventWriter(folder, step)
  return None


class EventWriter:
  """An event file; `write_scalars`, `flush` and `close` are those of clu's MetricWriter."""

  def __init__(self, folder: pathlib.Path, step: int) -> None:
    # tensorboard's EventFileWriter would import TensorFlow where that is installed
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    self._event = event_pb2
    self._summary = summary_pb2.Summary
    folder.mkdir(parents=True, exist_ok=True)
    name = f'events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}'
    self._writer = RecordWriter(open(folder / name, 'ab'))  # noqa: SIM115 (open for the whole run)
    self._add(file_version='brain.Event:2')
    # A session start makes TensorBoard forget what an interrupted run wrote beyond this step.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(step=step + 1 if step else 0, session_log=start)

  def _add(self, **fields):
    event = self._event.Event(wall_time=time.time(), **fields)
    self._writer.write(event.SerializeToString())

  def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
    """Writes numbers."""
    values = [self._summary.Value(tag=tag, simple_value=x) for tag, x in scalars.items()]
    self._add(step=step, summary=self._summary(value=values))

  def write_png(self, step: int, tag: str, png: bytes, image: np.ndarray) -> None:
    """Writes a picture: a PNG file, and what is in it, [H,W,C]."""
    height, width, channels = image.shape
    picture = self._summary.Image(
      height=height, width=width, colorspace=channels, encoded_image_string=png
    )
    value = self._summary.Value(tag=tag, image=picture)
    self._add(step=step, summary=self._summary(value=[value]))

  def flush(self) -> None:
    """Hands everything to the operating system."""
    self._writer.flush()

  def close(self) -> None:
    """Closes the file."""
    self._writer.close()
