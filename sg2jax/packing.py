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

WIDTH = 1024  # numbers in a row


class Layout(NamedTuple):
  """Where the arrays of a tree are: first those that fill rows, then the others without gaps."""

  tree: Any  # PyTreeDef
  shapes: tuple[tuple[int, ...], ...]

  @property
  def sizes(self) -> list[int]:
    """Numbers in each array."""
    return [math.prod(shape) for shape in self.shapes]

  @property
  def order(self) -> list[int]:
    """Indices of the arrays as they follow each other."""
    return sorted(range(len(self.shapes)), key=lambda i: self.sizes[i] % WIDTH != 0)

  @property
  def full_rows(self) -> int:
    """Rows that are filled by one array each."""
    return sum(size for size in self.sizes if size % WIDTH == 0) // WIDTH


@struct.dataclass
class Packed:
  """A tree of arrays of one dtype as rows [R,WIDTH]; the end of the last one may be 0."""

  rows: jax.Array
  layout: Layout = struct.field(pytree_node=False)


def pack(tree: Any) -> Packed:
  """A tree of arrays, all of one dtype, as Packed."""
  arrays, treedef = jax.tree.flatten(tree)
  layout = Layout(treedef, tuple(x.shape for x in arrays))
  flat = [arrays[i].reshape(-1) for i in layout.order]
  rest = -sum(layout.sizes) % WIDTH
  flat.append(jnp.zeros(rest, flat[0].dtype))
  return Packed(jnp.concatenate(flat).reshape(-1, WIDTH), layout)


def unpack(tree: Any) -> Any:
  """Packed as the tree it was made of; other trees stay as they are."""
  if not isinstance(tree, Packed):
    return tree
  layout = tree.layout
  flat = tree.rows.reshape(-1)
  arrays = [None] * len(layout.shapes)
  start = 0
  for i in layout.order:
    arrays[i] = flat[start : start + layout.sizes[i]].reshape(layout.shapes[i])
    start += layout.sizes[i]
  return jax.tree.unflatten(layout.tree, arrays)


def sums(tree: Any) -> jax.Array:
  """The sum of each array of a tree, packed or not: [L]."""
  if not isinstance(tree, Packed):
    return jnp.stack([jnp.sum(x) for x in jax.tree.leaves(tree)])
  layout = tree.layout
  sizes = np.array(layout.sizes)
  owner = np.repeat(layout.order, sizes[layout.order])  # of each number, its array
  numbers = layout.full_rows * WIDTH
  # Row by row, then number by number: two kernels, whatever the number of arrays.
  by_row = jnp.sum(tree.rows[: layout.full_rows], axis=1)
  others = tree.rows[layout.full_rows :].reshape(-1)[: sizes.sum() - numbers]
  return _sums_of(by_row, owner[:numbers:WIDTH], len(sizes)) + _sums_of(
    others, owner[numbers:], len(sizes)
  )


def _sums_of(x, owner, count):
  """Sums of x [K] by owner [K]: [count]."""
  is_its = jnp.asarray(owner) == jnp.arange(count)[:, None]  # [count,K]
  # where, not a product: 0 * inf would spread to all
  return jnp.sum(jnp.where(is_its, x, 0), axis=1)
