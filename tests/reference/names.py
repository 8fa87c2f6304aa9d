"""The border to the reference vectors, whose names and layouts are those that networks of others
are imported by.
"""

from sg2jax.interop.names import TensorFlow, load, nchw, nhwc, store

__all__ = ['TensorFlow', 'load', 'nchw', 'nhwc', 'store']
