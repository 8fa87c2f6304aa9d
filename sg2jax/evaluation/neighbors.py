"""Nearest neighbours among features: precision and recall, and whether fakes are copies of the
training set.

Distances are Euclidean, |a|^2 + |b|^2 - 2 a.b in blocks of BLOCK x BLOCK on the device, around the
mean of the first block; float32 with exact products (no TF32, no bfloat16), float64 with x64.
Features may be np.memmap; they are read block by block.
"""

from functools import partial
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

BLOCK = 4096  # rows


def _blocks(rows, origin):
  """(index of the first row, block [<=BLOCK,D] on the device), one after the other."""
  for i in range(0, len(rows), BLOCK):
    yield i, jnp.asarray(rows[i : i + BLOCK] - origin, float)


def _origin(rows):
  return np.mean(rows[:BLOCK], 0, np.float64)


def _squares(a, b):
  """Squared distances [n,D], [m,D] -> [n,m], >= 0."""
  products = jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST)
  return jnp.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * products, 0)


@jax.jit
def _smallest(best, a, b):
  """best [n,k]: the smallest squared distances of a [n,D] so far -> the same with b [m,D] looked
  at, ascending.
  """
  return -lax.top_k(-jnp.concatenate([best, _squares(a, b)], 1), best.shape[1])[0]


@partial(jax.jit, static_argnames='exclude_self')
def _closest(best, index, a, b, first_a, first_b, exclude_self):
  squares = _squares(a, b)
  if exclude_self:
    same = (first_a + jnp.arange(len(a)))[:, None] == first_b + jnp.arange(len(b))
    squares = jnp.where(same, jnp.inf, squares)
  at = squares.argmin(1)
  found = squares.min(1)
  return jnp.minimum(best, found), jnp.where(found < best, first_b + at, index)


@jax.jit
def _within(a, b, radius_a, radius_b):
  """Whether each of a lies within the radius (squared) of one of b, and the reverse: [n] and [m]
  bool.
  """
  squares = _squares(a, b)
  return (squares <= radius_b).any(1), (squares <= radius_a[:, None]).any(0)


def _kth_square(rows, k, origin, tick):
  if not 0 < k < len(rows):
    raise ValueError(
      f'k={k} neighbours need k + 1 rows or more, and k above 0; there are {len(rows)} rows'
    )
  found = []
  for _, a in _blocks(rows, origin):
    best = jnp.full((len(a), k + 1), jnp.inf, a.dtype)
    for _, b in _blocks(rows, origin):
      tick()
      best = _smallest(best, a, b)
    found.append(np.asarray(best[:, k]))
  return np.concatenate(found)


def kth_distance(rows, k):
  """Distance to the k-th nearest other row, i.e. the (k+1)-th smallest with the row itself among
  them: [N,D] -> float64 [N].

  Raises: ValueError unless 0 < k < N.
  """
  return np.sqrt(_kth_square(rows, k, _origin(rows), lambda: None), dtype=np.float64)


class PrecisionRecall(NamedTuple):
  """precision, recall: shares of the bool arrays. in_reals [F]: fakes within the reals' manifold,
  in_fakes [R]: the reverse.

  real_kth [R], fake_kth [F]: radii of the manifolds, float64.
  """

  precision: float
  recall: float
  in_reals: np.ndarray
  in_fakes: np.ndarray
  real_kth: np.ndarray
  fake_kth: np.ndarray


def precision_recall(reals, fakes, k=3, tick=lambda: None):
  """Improved precision and recall [Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2]. reals:
  [R,D], fakes: [F,D].

  A manifold is the union of balls around its features that reach to the k-th neighbour
  (`kth_distance`), edge included.
  tick: called before each block of distances. -> PrecisionRecall. Raises: ValueError unless 0 < k <
  R, F.
  """
  origin = _origin(reals)
  real_square, fake_square = (_kth_square(x, k, origin, tick) for x in (reals, fakes))
  in_reals, in_fakes = np.zeros(len(fakes), bool), np.zeros(len(reals), bool)
  for i, a in _blocks(fakes, origin):
    for j, b in _blocks(reals, origin):
      tick()
      rows, columns = slice(i, i + len(a)), slice(j, j + len(b))
      fakes_in, reals_in = _within(a, b, fake_square[rows], real_square[columns])
      in_reals[rows] |= fakes_in
      in_fakes[columns] |= reals_in
  radii = (np.sqrt(square, dtype=np.float64) for square in (real_square, fake_square))
  return PrecisionRecall(float(in_reals.mean()), float(in_fakes.mean()), in_reals, in_fakes, *radii)


def nearest(queries, base, exclude_self=False, tick=lambda: None):
  """The nearest row of base [B,D] to each query [Q,D]: (distance float64 [Q], index int64 [Q]).

  The distance is taken anew of the one that was found, from differences, so that a copy is at 0.
  exclude_self: row i of the base is none for query i, for neighbours within one set. tick: as
  above. Raises: ValueError if there is none.
  """
  if len(base) <= exclude_self:
    raise ValueError(
      f'no neighbours among {len(base)} rows' + ' without the row itself' * exclude_self
    )
  origin = _origin(base)
  distance, index = np.empty(len(queries)), np.empty(len(queries), np.int64)
  for i, a in _blocks(queries, origin):
    best, found = jnp.full(len(a), jnp.inf, a.dtype), jnp.zeros(len(a), int)
    for j, b in _blocks(base, origin):
      tick()
      best, found = _closest(best, found, a, b, i, j, exclude_self)
    rows = slice(i, i + len(a))
    index[rows] = found
    distance[rows] = np.linalg.norm(
      queries[rows] - np.asarray(base[index[rows]], np.float64), axis=1
    )
  return distance, index


def copying(fake_distances, heldout_distances):
  """Whether fakes are closer to the training set than held-out reals are, as copies would be: a
  z-score, then far below 0.

  The Mann-Whitney U test of Meehan et al. 2020 (arXiv 2004.05675): of all pairs, how often the fake
  is farther, against half of them, in standard deviations under chance. Ties count half and lessen
  the deviation; all tied: 0. Over the whole space, where the paper's C_T is a mean over cells.
  Distances to the nearest training image: [F], [H].
  Raises: ValueError if either is empty.
  """
  f, h = len(fake_distances), len(heldout_distances)
  if not f or not h:
    raise ValueError(f'copying needs distances of both, got {f} of fakes and {h} of held-out reals')
  _, which, counts = np.unique(
    np.concatenate([fake_distances, heldout_distances]), return_inverse=True, return_counts=True
  )
  ranks = (np.cumsum(counts) - (counts - 1) / 2)[which]
  u, n = ranks[:f].sum() - f * (f + 1) / 2, f + h
  ties = (counts.astype(np.float64) ** 3 - counts).sum() / (n * (n - 1))
  deviation = np.sqrt(f * h / 12 * max(n + 1 - ties, 0))
  return float((u - f * h / 2) / deviation) if deviation else 0.0
