"""The arrays of a checkpoint: their names, their files, and how every process gets them.

Orbax writes them, one uncompressed file each: equal states are equal bytes, on any number of
devices.
"""

from collections.abc import Mapping
import math
import pathlib
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from sg2jax import processes

CHUNK = 2**24  # bytes that are handed to the other processes at once

# Orbax says the first at every save without OCDBT, which is meant (OCDBT's file names are random);
# the others are tracebacks of an error that reaches the user as a WriteError.
_NOISE = ('Skipping merge of OCDBT', '_SignalingThread.run() raised')
logging.get_absl_logger().addFilter(
  lambda record: not any(noise in record.getMessage() for noise in _NOISE)
)


# ---- names


def name(path: tuple) -> str:
  """What a leaf is called, by its path in a tree."""
  return jax.tree_util.keystr(path, simple=True, separator='.')


def named(tree: Any) -> dict[str, Any]:
  """{name: leaf} of a tree."""
  return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def spelled(dtype: Any, shape: tuple[int, ...]) -> str:
  """'float32 3,8' of an array: a leaf that JSON can hold."""
  return f'{dtype} {",".join(map(str, shape))}'


# ---- files


def write(folder: pathlib.Path, tree: Any) -> None:
  """Makes a folder with a tree of numpy arrays. Raises all sorts of errors where it can't."""
  with _orbax() as checkpointer:
    checkpointer.save(folder, args=ocp.args.PyTreeSave(tree))


def read(step: pathlib.Path) -> dict:
  """The state in the folder of a checkpoint as nested dicts and lists of numpy arrays."""
  with _orbax() as checkpointer:
    return checkpointer.restore(step / 'state', args=ocp.args.PyTreeRestore())


def _orbax():
  """Orbax's reader and writer of one item; of several processes, process 0 uses it alone."""
  options = ocp.options.MultiprocessingOptions()
  if processes.several():
    options = ocp.options.MultiprocessingOptions(
      primary_host=0, active_processes={0}, barrier_sync_key_prefix='sg2jax'
    )
  handler = ocp.PyTreeCheckpointHandler(
    use_ocdbt=False, use_compression=False, multiprocessing_options=options
  )
  return ocp.Checkpointer(handler, multiprocessing_options=options)


# ---- several processes


def handed(tree: Any, spec: Mapping) -> Any:
  """The arrays that process 0 has, in every process.

  Args:
    tree: of arrays, of process 0.
    spec: a tree as `tree`, with what `spelled` says of each array.
  """
  if not processes.several():
    return tree
  leaves, structure = jax.tree.flatten(spec)
  sizes = []
  for leaf in leaves:
    dtype, _, shape = leaf.partition(' ')
    shape = tuple(map(int, shape.split(','))) if shape else ()
    sizes.append((np.dtype(dtype), shape, math.prod(shape) * np.dtype(dtype).itemsize))
  total = sum(size for *_, size in sizes)
  data = np.zeros(total, np.uint8)
  if processes.is_first():
    blobs = [np.ascontiguousarray(x).tobytes() for x in jax.tree.leaves(tree)]
    data[:] = np.frombuffer(b''.join(blobs), np.uint8)
  # As bytes: a sum of zeros and -0.0, by which JAX hands an array on, would be 0.0. In parts of one
  # size: compiled once, and no second state lies on the devices.
  for first in range(0, total, CHUNK):
    part = np.zeros(CHUNK, np.uint8)
    part[: total - first] = data[first : first + CHUNK]
    found = multihost_utils.broadcast_one_to_all(part)
    data[first : first + CHUNK] = found[: total - first]
  arrays = []
  first = 0
  for dtype, shape, size in sizes:
    arrays.append(data[first : first + size].copy().view(dtype).reshape(shape))
    first += size
  return jax.tree.unflatten(structure, arrays)
