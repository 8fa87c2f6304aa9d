"""Data sets and the input pipeline: `load` a Source, iterate `batches` of it."""

from sg2jax.data.images import shrink
from sg2jax.data.pipeline import Shrunk, Source, batches, check_size, load, stream

__all__ = ['Shrunk', 'Source', 'batches', 'check_size', 'load', 'shrink', 'stream']
