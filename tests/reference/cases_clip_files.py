"""Reference case of CLIP's files: what is in them, under their own names."""

import hashlib
import pathlib

import numpy as np

from sg2jax import pretrained


def arrays(folder, config):
  """({name: array} of the file of a sub-case of clip_state_dict, its expected sums).

  The sums: {'sum', 'abs_sum': float64 [number of arrays]}, in the order of the arrays.

  Args:
    folder: where the manifest is.
    config: the sub-case's; file, bytes, sha256 and parameters are read.

  Raises:
    ValueError: the file is another one, or its arrays are not those of `parameters`, in that order.
  """
  data = pathlib.Path(folder, config['file']).read_bytes()
  digest = hashlib.sha256(data).hexdigest()
  if (len(data), digest) != (config['bytes'], config['sha256']):
    raise ValueError(f'{config["file"]} has {len(data)} bytes and sha256 {digest}: another file')
  found = pretrained.parse(data)
  told = [(name, _shape(shape), dtype) for name, shape, dtype in config['parameters']]
  read = [(name, _shape(x.shape), x.dtype.name) for name, x in found.items()]
  if told != read:
    differ = [pair for pair in zip(told, read) if pair[0] != pair[1]]
    raise ValueError(f'{len(told)} parameters, {len(read)} read; first difference: {differ[:1]}')
  wide = [x.astype(np.float64) for x in found.values()]
  return found, {
    'sum': np.array([x.sum() for x in wide]),
    'abs_sum': np.array([np.abs(x).sum() for x in wide]),
  }


def _shape(shape):
  # open_clip's file has its scalar as [1], and the manifest says [].
  return () if tuple(shape) == (1,) else tuple(shape)
