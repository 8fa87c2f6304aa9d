"""From features to numbers: FID, KID, inception score, and how far a mean may be off; all metrics.

SCORES, at the end, has a function for each kind of metric. NumPy float64 on the host; features may
be np.memmap, which are read CHUNK rows at a time.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from scipy.special import rel_entr

from sg2jax.evaluation import neighbors, ppl
from sg2jax.evaluation.protocols import PR_K, Protocol
from sg2jax.evaluation.swd import swd

CHUNK = 1024  # rows; part of the result's last bits
SPLITS = 10  # of the inception score
GROUPS = 8  # disjoint subsets from which the interval of swd comes
SHOWN = 32  # pairs in the picture of nearest neighbours
FAKES = 'which fakes were drawn'

# ---- Frechet distance


class Moments(NamedTuple):
  """Mean and covariance of rows [n,D]."""

  count: int  # of rows
  mean: np.ndarray  # [D]
  scatter: np.ndarray  # [D,D], sum of (x - mean) (x - mean)'

  def cov(self, ddof: int = 0) -> np.ndarray:
    """[D,D], divided by count - ddof."""
    return self.scatter / (self.count - ddof)


def moments(batches: Iterable[np.ndarray]) -> Moments:
  """The Moments of rows that come in batches [n,D]; the same bits however they are cut.

  Whole chunks of CHUNK rows are merged by the pairwise update [Chan, Golub, LeVeque 1983]: each is
  summed around its own mean, so that no digits are lost where the mean is large against the
  deviation, as they are in plain sums of squares.
  """
  total = Moments(0, 0.0, 0.0)
  for rows in _chunks(batches):
    center = rows.mean(0)
    rows = rows - center
    count = total.count + len(rows)
    delta = center - total.mean
    scatter = total.scatter + rows.T @ rows
    between = delta * np.sqrt(total.count * len(rows) / count)
    scatter += np.multiply.outer(between, between)
    total = Moments(count, total.mean + delta * (len(rows) / count), scatter)
  return total


def _chunks(batches):
  """float64 [CHUNK,D] of rows that come in batches [n,D]; the last one may be shorter."""
  rest = []
  for batch in batches:
    rest = np.concatenate([rest, batch]) if len(rest) else batch
    while len(rest) >= CHUNK:
      yield np.asarray(rest[:CHUNK], np.float64)
      rest = rest[CHUNK:]
  if len(rest):
    yield np.asarray(rest, np.float64)


def _factor(cov):
  """A [D,rank] with A A' = cov, by its eigenvectors.

  Eigenvalues under D * eps * the largest are noise, and 0.
  """
  values, vectors = np.linalg.eigh(np.asarray(cov, np.float64))
  real = values > len(cov) * np.finfo(np.asarray(cov).dtype).eps * values[-1]
  return vectors[:, real] * np.sqrt(values[real])


def frechet_distance(
  mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray
) -> float:
  """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2) of two Gaussians, >= 0.

  [Heusel et al. 2017, arXiv 1706.08500, eq. 6]. With C1 = A A' and C2 = B B' the trace of the root
  is the sum of the singular values of A'B: no root of a matrix that is not symmetric, nothing added
  to its diagonal, and no digits lost where a covariance lacks rank, as with fewer images than
  features. mean: [D], cov: [D,D], float64 (in float32 more eigenvalues are noise).
  """
  roots = np.linalg.svd(_factor(cov1).T @ _factor(cov2), compute_uv=False)
  delta = np.asarray(mean1, np.float64) - mean2
  traces = np.trace(cov1, dtype=np.float64) + np.trace(cov2, dtype=np.float64)
  distance = delta @ delta + traces - 2 * roots.sum()
  return max(float(distance), 0.0)  # of equal sets it may be -1e-13


def frechet_influence(
  rows: np.ndarray, mean_r: np.ndarray, cov_r: np.ndarray, mean_f: np.ndarray, cov_f: np.ndarray
) -> np.ndarray:
  """The derivative of FID by the distribution of fakes, at each of some rows: [N,D] -> float64 [N].

  If a share e of the fakes moves to x, FID changes by e IF(x) + O(e^2), where with d = x - mf
      IF(x) = 2 (mf - mr).d + d'(I - T) d - tr((I - T) Cf),
      T = Cr^1/2 (Cr^1/2 Cf Cr^1/2)^-1/2 Cr^1/2,
  from the derivative I - T of the trace term by Cf. Its mean over the fakes is 0, with cov_f
  divided by N. Where Cf lacks rank the root has a pseudo-inverse: right for all that stays within
  the span of the fakes, such as resampling them.
  """
  a = _factor(cov_r)
  u, roots, _ = np.linalg.svd(a.T @ _factor(cov_f), full_matrices=False)
  real = roots > len(cov_r) * np.finfo(np.float64).eps * roots.max(initial=0)
  t = a @ u[:, real] / np.sqrt(roots[real])  # [D,rank], t t' = T
  shift = 2 * (np.asarray(mean_f) - mean_r)
  rest = np.trace(cov_f) - roots[real].sum()

  influence = np.empty(len(rows))
  for i in range(0, len(rows), CHUNK):
    d = rows[i : i + CHUNK] - np.asarray(mean_f, np.float64)
    influence[i : i + CHUNK] = d @ shift + (d**2).sum(1) - ((d @ t) ** 2).sum(1) - rest
  return influence


def interval(
  value: float, each: np.ndarray, seed: int, replicates: int = 1000
) -> tuple[float, float]:
  """95 % interval [Efron 1979] of a value that is the mean of `each` [N], or has its influences.

  With the influences of all fakes it is FID's, in which FID is linearised: it knows how the fakes
  were drawn, not the bias that FID has for few of them.
  """
  each = np.asarray(each, np.float64)
  random = np.random.default_rng(seed)
  n = len(each)
  means = [each[random.integers(0, n, n)].mean() for _ in range(replicates)]
  low, high = np.percentile(means, [2.5, 97.5]) - each.mean()
  return float(value + low), float(value + high)


# ---- kernel inception distance


def kid_subsets(
  reals: int, fakes: int, seed: int, subsets: int = 100, size: int = 1000
) -> list[np.ndarray]:
  """Which of `reals` and of `fakes` images are in each subset: two int arrays [subsets,m].

  m is the least of size and these. Within a subset none occurs twice.
  """
  random = np.random.default_rng(seed)
  m = min(size, reals, fakes)
  return [
    np.stack([random.choice(n, m, replace=False) for _ in range(subsets)]) for n in (reals, fakes)
  ]


def mmd(x: np.ndarray, y: np.ndarray) -> float:
  """Unbiased squared maximum mean discrepancy, kernel (x.y / D + 1)^3: [m,D], [n,D] -> float.

  [Binkowski et al. 2018, arXiv 1801.01401]. It may be negative. KID is its mean over subsets.
  m and n are 2 or more.
  """
  x = np.asarray(x, np.float64)
  y = np.asarray(y, np.float64)

  def kernel(a, b):
    return (a @ b.T / a.shape[1] + 1) ** 3

  def among(a):
    k = kernel(a, a)
    return (k.sum() - k.trace()) / (len(a) * (len(a) - 1))

  return float(among(x) + among(y) - 2 * kernel(x, y).mean())


# ---- inception score


def inception_scores(probs: np.ndarray, splits: int = SPLITS) -> np.ndarray:
  """exp(E KL(p(y|x) || p(y))) of contiguous parts: [N,K] -> float64 [splits].

  [Salimans et al. 2016, arXiv 1606.03498, 4]. Part i begins at image i * N // splits.
  """
  ends = np.arange(splits + 1) * len(probs) // splits
  parts = (np.asarray(probs[i:j], np.float64) for i, j in zip(ends, ends[1:]))
  return np.exp([rel_entr(p, p.mean(0)).sum(1).mean() for p in parts])


# ---- one function for each kind of metric: (protocol, features, seed, tick) -> Result
# tick is called in long work; it raises after a signal.


class Features(NamedTuple):
  """What a metric compares."""

  fakes: Any = None  # [N,D]; of ppl, lengths [N]
  reals: Any = None  # [M,D], or their Moments
  places: np.ndarray = np.arange(0)  # int [M], of these reals: in the data set, or in training
  population: int = 0  # number of reals of which these were taken
  holdout: Any = None  # [L,D], of reals that weren't trained on, if there are any


class Result(NamedTuple):
  """What a metric says."""

  # {name: (value, that of which it is the mean or its influences [N], None if it's neither)}
  values: dict[str, tuple[float, np.ndarray | None]]
  covers: str  # what the intervals of these values are about
  notes: dict[str, Any] = {}  # what else there is to say, JSON values


def frechet(p: Protocol, compared: Features, seed: int, tick: Callable) -> Result:
  """FID, and the distance of pixels by the same formula."""
  ddof = int(not p.full)
  reals = compared.reals
  fakes = moments([compared.fakes])
  real = reals.mean, reals.cov(ddof)
  value = frechet_distance(*real, fakes.mean, fakes.cov(ddof))
  tick()
  influence = frechet_influence(compared.fakes, *real, fakes.mean, fakes.cov())
  return Result({p.name: (value, influence)}, f'{FAKES} (linearised; not the bias of few images)')


def kernel(p: Protocol, compared: Features, seed: int, tick: Callable) -> Result:
  """KID; only the reals that are in a subset were looked at."""
  of_reals, of_fakes = kid_subsets(compared.population, p.count, seed)
  rows = np.searchsorted(np.unique(of_reals), of_reals)
  each = []
  for i, j in zip(rows, of_fakes):
    tick()
    each.append(mmd(compared.reals[i], compared.fakes[j]))
  notes = {'subsets': len(each), 'subset_size': of_reals.shape[1]}
  return Result({p.name: (np.mean(each), each)}, 'the draw of subsets', notes)


def inception_score(p: Protocol, compared: Features, seed: int, tick: Callable) -> Result:
  """IS; its spread is over the splits."""
  each = inception_scores(compared.fakes)
  values = {f'{p.name}_mean': (each.mean(), each), f'{p.name}_std': (each.std(), None)}
  return Result(values, f'the {len(each)} splits')


def precision_recall(p: Protocol, compared: Features, seed: int, tick: Callable) -> Result:
  """Improved precision and recall."""
  found = neighbors.precision_recall(compared.reals, compared.fakes, PR_K, tick)
  inside = {f'{p.name}_precision': found.in_reals, f'{p.name}_recall': found.in_fakes}
  values = {name: (x.mean(), x) for name, x in inside.items()}
  return Result(values, 'which images of one set are compared with the other')


def path_length(p: Protocol, compared: Features, seed: int, tick: Callable) -> Result:
  """PPL; its fakes are lengths of steps between two of them."""
  each = ppl.trimmed(compared.fakes)
  return Result({p.name: (each.mean(), each)}, 'which pairs were drawn')


def sliced_wasserstein(p: Protocol, compared: Features, seed: int, tick: Callable) -> Result:
  """SWD of shrunk images; its interval is what disjoint subsets differ by."""

  def distance(part):
    return swd(compared.reals[part], compared.fakes[part], seed, tick)

  levels = distance(slice(None))
  groups = min(GROUPS, len(compared.fakes))
  each = [distance(slice(i, None, groups))['mean'] for i in range(groups)]
  covers = f'both sets, by {groups} disjoint subsets'
  return Result({p.name: (levels['mean'], each)}, covers, {'levels': levels})


def nearest_reals(p: Protocol, compared: Features, seed: int, tick: Callable) -> Result:
  """Are fakes closer to reals than other reals are?"""
  base = compared.reals
  distance, index = neighbors.nearest(compared.fakes, base, tick=tick)
  if compared.holdout is None:
    source = 'each real in turn, out of the others'
    held_out, _ = neighbors.nearest(base, base, exclude_self=True, tick=tick)
  else:
    source = 'holdout'
    held_out, _ = neighbors.nearest(compared.holdout, base, tick=tick)
  closest = np.resize(np.argsort(distance, kind='stable')[:SHOWN], SHOWN)
  farther, z = neighbors.copying(distance, held_out)
  medians = {'fakes': float(np.median(distance)), 'held_out': float(np.median(held_out))}
  notes = {
    'held_out': source,
    'held_out_at_distance_0': int((held_out == 0).sum()),
    'median_distance': medians,
    'picture': f'{SHOWN} closest: fake, and right of it its nearest real',
    'closest_fakes': closest.tolist(),
    'their_reals': compared.places[index[closest]].tolist(),
  }
  values = {f'{p.name}_farther': (farther.mean(), farther), f'{p.name}_z': (z, None)}
  return Result(values, FAKES, notes)


SCORES = {
  'fid': frechet,
  'pixelfd': frechet,
  'kid': kernel,
  'is': inception_score,
  'pr': precision_recall,
  'ppl': path_length,
  'swd': sliced_wasserstein,
  'nn': nearest_reals,
  'pixelnn': nearest_reals,
}
