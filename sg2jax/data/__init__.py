"""Data sets and the input pipeline: `load` a Source, iterate `batches` of it."""

from sg2jax.data.pipeline import Source, batches, check_size, load

__all__ = ['Source', 'batches', 'check_size', 'load']
