"""Trees of arrays as one array of rows, so that what is done to all of them is one kernel.

A network has a hundred arrays and more, most of them tiny. Norms, guards and Adam array by array
were half of the kernels of a step on a GPU, each with its start-up (docs/performance.md).
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

WIDTH = 1024  # numbers in a row


class Layout(NamedTuple):
  """Where the arrays of a tree are: those that take rows, then small ones without gaps."""

  tree: Any  # PyTreeDef
  shapes: tuple[tuple[int, ...], ...]

  @property
  def sizes(self) -> list[int]:
    """Numbers in each array."""
    return [math.prod(shape) for shape in self.shapes]

  @property
  def rows(self) -> list[int]:
    """Rows of each array; 0 of those that are smaller than one."""
    return [-(-size // WIDTH) if size >= WIDTH else 0 for size in self.sizes]

  @property
  def order(self) -> list[int]:
    """Indices of the arrays as they follow each other."""
    return sorted(range(len(self.shapes)), key=lambda i: self.rows[i] == 0)


@struct.dataclass
class Packed:
  """A tree of arrays of one dtype as rows [R,WIDTH]; what no array fills is 0."""

  rows: jax.Array
  layout: Layout = struct.field(pytree_node=False)


def pack(tree: Any) -> Packed:
  """A tree of arrays, all of one dtype, as Packed."""
  arrays, treedef = jax.tree.flatten(tree)
  layout = Layout(treedef, tuple(x.shape for x in arrays))
  parts = []
  for i in layout.order:
    flat = arrays[i].reshape(-1)
    rest = max(0, layout.rows[i] * WIDTH - flat.size)
    parts.append(jnp.pad(flat, (0, rest)) if rest else flat)
  parts.append(jnp.zeros(-sum(x.size for x in parts) % WIDTH, parts[0].dtype))
  return Packed(jnp.concatenate(parts).reshape(-1, WIDTH), layout)


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
    start += layout.rows[i] * WIDTH or layout.sizes[i]
  return jax.tree.unflatten(layout.tree, arrays)


def sums(tree: Any, of: Callable[[jax.Array], jax.Array]) -> jax.Array:
  """The sum of `of`, an elementwise function, over each array of a tree, packed or not: [L]."""
  if not isinstance(tree, Packed):
    return jnp.stack([jnp.sum(of(x)) for x in jax.tree.leaves(tree)])
  layout = tree.layout
  rows = [layout.rows[i] for i in layout.order if layout.rows[i]]
  small = [layout.sizes[i] for i in layout.order if not layout.rows[i]]
  # Row by row, then number by number: a few kernels, whatever the number of arrays. `of` apart for
  # each, or a TPU would write its result for both.
  by_row = jnp.sum(of(tree.rows[: sum(rows)]), axis=1)
  others = of(tree.rows[sum(rows) :]).reshape(-1)[: sum(small)]
  in_order = jnp.concatenate([_sums_of(by_row, rows), _sums_of(others, small)])
  return in_order[np.argsort(layout.order)]


def _sums_of(x, counts):
  """Sums of x [K] over so many numbers each, one after the other: [L]."""
  owner = jnp.asarray(np.repeat(np.arange(len(counts)), counts))
  is_its = owner == jnp.arange(len(counts))[:, None]  # [L,K]
  # where, not a product: 0 * inf would spread to all
  return jnp.sum(jnp.where(is_its, x, 0), axis=1)
