"""Nearest neighbours among features: precision and recall, and whether fakes are copies of reals.

Distances are Euclidean, |a|^2 + |b|^2 - 2 a.b in blocks of BLOCK x BLOCK on the device, around the
mean of the first block; float32 with exact products (no TF32, no bfloat16), float64 with x64.
Features may be np.memmap; they are read block by block.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

BLOCK = 4096  # rows


def _slices(n):
  return [slice(i, i + BLOCK) for i in range(0, n, BLOCK)]


def _pairs(x, y, origin, tick):
  """(rows of x, rows of y, these blocks [<=BLOCK,D] on the device) for all pairs of blocks."""
  for i in _slices(len(x)):
    a = jnp.asarray(x[i] - origin, float)
    for j in _slices(len(y)):
      tick()
      yield i, j, a, jnp.asarray(y[j] - origin, float)


def _origin(rows):
  return np.mean(rows[:BLOCK], 0, np.float64)


def _squares(a, b):
  """Squared distances [n,D], [m,D] -> [n,m], >= 0."""
  products = jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST)
  return jnp.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * products, 0)


# ---- precision and recall


@jax.jit
def _smallest(best, a, b):
  """best [n,k]: the least squared distances of a [n,D] so far -> those with b [m,D], ascending."""
  return -lax.top_k(-jnp.concatenate([best, _squares(a, b)], 1), best.shape[1])[0]


@jax.jit
def _within(a, b, radius_a, radius_b):
  """Whether each of a is within the radius (squared) of one of b, and the reverse: [n], [m]."""
  squares = _squares(a, b)
  return (squares <= radius_b).any(1), (squares <= radius_a[:, None]).any(0)


def _kth_square(rows, k, origin, tick):
  """Squared distance to the k-th nearest other row, the (k+1)-th smallest with itself: [N]."""
  best = np.full((len(rows), k + 1), np.inf)
  for i, _, a, b in _pairs(rows, rows, origin, tick):
    best[i] = _smallest(best[i], a, b)
  return best[:, k]


class PrecisionRecall(NamedTuple):
  """What precision and recall are made of."""

  in_reals: np.ndarray  # bool [F], fakes within the reals' manifold; precision is their share
  in_fakes: np.ndarray  # bool [R], reals within the fakes' manifold; recall is their share
  real_kth: np.ndarray  # float64 [R], radii of the reals' manifold
  fake_kth: np.ndarray  # float64 [F], radii of the fakes' manifold


def precision_recall(
  reals: np.ndarray, fakes: np.ndarray, k: int, tick: Callable = lambda: None
) -> PrecisionRecall:
  """Improved precision and recall [Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2].

  A manifold is the union of balls around its features that reach to the k-th neighbour, edge
  included. reals: [R,D]; fakes: [F,D]; k: under R and F; tick: called before each block of
  distances.
  """
  origin = _origin(reals)
  real_square = _kth_square(reals, k, origin, tick)
  fake_square = _kth_square(fakes, k, origin, tick)
  in_reals = np.zeros(len(fakes), bool)
  in_fakes = np.zeros(len(reals), bool)
  for i, j, a, b in _pairs(fakes, reals, origin, tick):
    fakes_in, reals_in = _within(a, b, fake_square[i], real_square[j])
    in_reals[i] |= fakes_in
    in_fakes[j] |= reals_in
  return PrecisionRecall(in_reals, in_fakes, np.sqrt(real_square), np.sqrt(fake_square))


# ---- copies


@partial(jax.jit, static_argnames='exclude_self')
def _closest(best, index, a, b, first_a, first_b, exclude_self):
  """best [n] and index [n]: the nearest of a [n,D] so far -> those with b [m,D]."""
  squares = _squares(a, b)
  if exclude_self:
    same = (first_a + jnp.arange(len(a)))[:, None] == first_b + jnp.arange(len(b))
    squares = jnp.where(same, jnp.inf, squares)
  least = squares.min(1)
  index = jnp.where(least < best, first_b + squares.argmin(1), index)
  return jnp.minimum(best, least), index


def nearest(
  queries: np.ndarray,
  base: np.ndarray,
  exclude_self: bool = False,
  tick: Callable = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
  """The nearest row of base [B,D] to each query [Q,D]: (distance float64 [Q], index int64 [Q]).

  The distance is taken anew of the one that was found, from differences, so that a copy is at 0.

  Args:
    queries: [Q,D].
    base: [B,D].
    exclude_self: row i of the base is none for query i, for neighbours within one set.
    tick: called before each block of distances.
  """
  origin = _origin(base)
  best = np.full(len(queries), np.inf)
  index = np.zeros(len(queries), np.int64)
  for i, j, a, b in _pairs(queries, base, origin, tick):
    best[i], index[i] = _closest(best[i], index[i], a, b, i.start, j.start, exclude_self)
  for i in _slices(len(queries)):
    differences = queries[i] - np.asarray(base[index[i]], np.float64)
    best[i] = np.linalg.norm(differences, axis=1)
  return best, index


def copying(fake_distances: np.ndarray, heldout_distances: np.ndarray) -> tuple[np.ndarray, float]:
  """Whether fakes are closer to the training set than held-out reals are.

  The Mann-Whitney U test of Meehan et al. 2020 (arXiv 2004.05675), over the whole space, where the
  paper's C_T is a mean over cells. Ties count half and lessen the deviation.

  Args:
    fake_distances: of fakes to the nearest training image, [F].
    heldout_distances: of held-out reals to it, [H].

  Returns:
    of each fake, how often it is the farther one of it and a held-out real, float64 [F] in [0,1];
    their mean less a half, in standard deviations under chance: far below 0 for copies. All tied:
    0.
  """
  from scipy import stats  # here: it takes a second, and training does without

  f = len(fake_distances)
  h = len(heldout_distances)
  ranks = stats.rankdata(np.concatenate([fake_distances, heldout_distances]))
  farther = (ranks[:f] - stats.rankdata(fake_distances)) / h
  deviation = np.sqrt(stats.tiecorrect(ranks) * (f + h + 1) / (12 * f * h))
  return farther, float((farther.mean() - 0.5) / deviation) if deviation else 0.0
