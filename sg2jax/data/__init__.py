"""Data sets and the stream of batches: `load` one, iterate `batches` of it.

Nothing that is imported here imports grain, array_record, TFDS or Pillow: a trained network knows
its `labels`, and is used where none of these is installed.
"""

from sg2jax.data.pipeline import (
  ORDER,
  Shrunk,
  batches,
  check_size,
  flip,
  load,
  order,
  shrink,
  stream,
)

__all__ = [
  'ORDER',
  'Shrunk',
  'batches',
  'check_size',
  'flip',
  'load',
  'order',
  'shrink',
  'stream',
]
