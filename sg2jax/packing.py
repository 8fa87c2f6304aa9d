"""Trees of arrays as one array of rows, so that what is done to all of them is one kernel.

A network has a hundred arrays and more, most of them tiny. Norms, guards and Adam array by array
were half of the kernels of a step on a GPU, each with its start-up (docs/performance.md).
"""

import math
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

WIDTH = 1024  # numbers in a row; each array begins one


class Layout(NamedTuple):
  """Where the arrays of a tree are."""

  tree: Any  # PyTreeDef
  shapes: tuple[tuple[int, ...], ...]

  @property
  def heights(self) -> list[int]:
    """Rows of each array."""
    return [-(-math.prod(shape) // WIDTH) for shape in self.shapes]


@struct.dataclass
class Packed:
  """A tree of arrays of one dtype as rows [R,WIDTH]. What an array leaves of its last row is 0."""

  rows: jax.Array
  layout: Layout = struct.field(pytree_node=False)


def pack(tree: Any) -> Packed:
  """A tree of arrays, all of one dtype, as Packed."""
  arrays, treedef = jax.tree.flatten(tree)
  layout = Layout(treedef, tuple(x.shape for x in arrays))
  parts = []
  for x, height in zip(arrays, layout.heights, strict=True):
    flat = x.reshape(-1)
    parts.append(jnp.pad(flat, (0, height * WIDTH - flat.size)).reshape(height, WIDTH))
  return Packed(jnp.concatenate(parts), layout)


def unpack(tree: Any) -> Any:
  """Packed as the tree it was made of; other trees stay as they are."""
  if not isinstance(tree, Packed):
    return tree
  arrays = []
  start = 0
  for shape, height in zip(tree.layout.shapes, tree.layout.heights, strict=True):
    flat = tree.rows[start : start + height].reshape(-1)
    arrays.append(flat[: math.prod(shape)].reshape(shape))
    start += height
  return jax.tree.unflatten(tree.layout.tree, arrays)


def sums(tree: Any) -> jax.Array:
  """The sum of each array of a tree, packed or not: [L]."""
  if not isinstance(tree, Packed):
    return jnp.stack([jnp.sum(x) for x in jax.tree.leaves(tree)])
  heights = tree.layout.heights
  array_of_row = np.repeat(np.arange(len(heights)), heights)
  is_its = array_of_row == np.arange(len(heights))[:, None]  # [L,R]
  # where, not a product: 0 * inf would spread to all
  return jnp.sum(jnp.where(is_its, jnp.sum(tree.rows, axis=1), 0), axis=1)
