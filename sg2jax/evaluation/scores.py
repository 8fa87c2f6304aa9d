"""From features to numbers: FID, KID, inception score, and how far a mean may be off. NumPy float64
on the host.

Moments give the same bits however their rows were cut into batches, and go on exactly from their
`state()`. Features may be np.memmap: they are read CHUNK rows at a time.
"""

import numpy as np
from scipy.special import xlogy

CHUNK = 1024  # rows; part of the result's last bits


# ---- Frechet distance


class Moments:
  """Mean and covariance of rows [n,dim] that come in batches.

  Whole chunks of CHUNK rows are merged by the pairwise update [Chan, Golub, LeVeque 1983]: each is
  summed around its own mean, so that no digits are lost where the mean is large against the
  deviation, as they are in plain sums of squares.
  """

  def __init__(self, dim):
    self._sums = 0, np.zeros(dim), np.zeros((dim, dim))
    self._rows, self._pending = np.empty((CHUNK, dim)), 0

  def add(self, x):
    """Takes rows [n,dim], any n, any float dtype. Raises: ValueError for another shape."""
    if np.ndim(x) != 2 or x.shape[1] != self._rows.shape[1]:
      raise ValueError(f'rows must be [n,{self._rows.shape[1]}], got {list(np.shape(x))}')
    first = 0
    while first < len(x):
      part = x[first : first + CHUNK - self._pending]
      self._rows[self._pending : self._pending + len(part)] = part
      first, self._pending = first + len(part), self._pending + len(part)
      if self._pending == CHUNK:
        self._sums, self._pending = self._total(), 0

  def _total(self):
    """(count, mean, scatter around it) of all rows."""
    count, mean, scatter = self._sums
    if not self._pending:
      return count, mean, scatter
    rows = self._rows[: self._pending]
    center, total = rows.mean(0), count + len(rows)
    rows, delta = rows - center, center - mean
    scatter = scatter + rows.T @ rows
    between = delta * np.sqrt(count * len(rows) / total)
    scatter += np.multiply.outer(between, between)
    return total, mean + delta * (len(rows) / total), scatter

  @property
  def count(self):
    """Rows so far."""
    return self._sums[0] + self._pending

  @property
  def mean(self):
    """[dim], 0 if there are no rows."""
    return self._total()[1]

  def cov(self, ddof=0):
    """[dim,dim], divided by count - ddof. Raises: ValueError if that isn't above 0."""
    if self.count <= ddof:
      raise ValueError(
        f'a covariance with ddof={ddof} needs {ddof + 1} rows or more, there are {self.count}'
      )
    return self._total()[2] / (self.count - ddof)

  def state(self):
    """{name: array}: all there is to `restore`."""
    count, mean, scatter = self._sums
    return {
      'count': np.int64(count),
      'mean': mean,
      'scatter': scatter,
      'pending': self._rows[: self._pending].copy(),
    }

  @classmethod
  def restore(cls, state):
    """The Moments whose `state()` this was."""
    moments = cls(len(state['mean']))
    moments._sums = int(state['count']), np.array(state['mean']), np.array(state['scatter'])
    moments.add(state['pending'])
    return moments


def _factor(cov):
  """A [D,rank] with A A' = cov, by its eigenvectors; eigenvalues under D * eps * the largest are
  noise, and 0.
  """
  values, vectors = np.linalg.eigh(np.asarray(cov, np.float64))
  real = values > len(cov) * np.finfo(np.asarray(cov).dtype).eps * values[-1]
  return vectors[:, real] * np.sqrt(values[real])


def frechet_distance(mean1, cov1, mean2, cov2):
  """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2) of two Gaussians [Heusel et al. 2017, arXiv
  1706.08500, eq. 6], a float >= 0.

  With C1 = A A' and C2 = B B' the trace of the root is the sum of the singular values of A'B: no
  root of a matrix that is not symmetric, nothing added to its diagonal, and no digits lost where a
  covariance lacks rank, as with fewer images than features. mean: [D], cov: [D,D], float64 (in
  float32 more eigenvalues are noise).
  """
  roots = np.linalg.svd(_factor(cov1).T @ _factor(cov2), compute_uv=False)
  delta = np.asarray(mean1, np.float64) - mean2
  distance = (
    delta @ delta
    + np.trace(cov1, dtype=np.float64)
    + np.trace(cov2, dtype=np.float64)
    - 2 * roots.sum()
  )
  return max(float(distance), 0.0)  # of equal sets it may be -1e-13


def frechet_influence(mean_r, cov_r, mean_f, cov_f):
  """The derivative of FID by the distribution of fakes: a function, rows [N,D] -> float64 [N] (read
  in chunks).

  If a share e of the fakes moves to x, FID changes by e IF(x) + O(e^2), where with d = x - mf
      IF(x) = 2 (mf - mr).d + d'(I - T) d - tr((I - T) Cf),  T = Cr^1/2 (Cr^1/2 Cf Cr^1/2)^-1/2
      Cr^1/2,
  from the derivative I - T of the trace term by Cf. Its mean over the fakes is 0, with cov_f
  divided by N. Where Cf lacks rank the root has a pseudo-inverse: right for all that stays within
  the span of the fakes, such as resampling them.
  """
  a, b = _factor(cov_r), _factor(cov_f)
  u, roots, _ = np.linalg.svd(a.T @ b, full_matrices=False)
  real = roots > len(cov_r) * np.finfo(np.float64).eps * roots.max(initial=0)
  t = a @ u[:, real] / np.sqrt(roots[real])  # [D,rank], t t' = T
  shift, rest = 2 * (np.asarray(mean_f) - mean_r), np.trace(cov_f) - roots[real].sum()

  def influence(rows):
    found = np.empty(len(rows))
    for i in range(0, len(rows), CHUNK):
      d = rows[i : i + CHUNK] - np.asarray(mean_f, np.float64)
      found[i : i + CHUNK] = d @ shift + (d**2).sum(1) - ((d @ t) ** 2).sum(1) - rest
    return found

  return influence


def bootstrap_mean(values, seed, replicates=1000):
  """95 % interval of what the mean of a resample, with replacement, is off the mean: [N] -> (low,
  high) [Efron 1979].

  A mean m has the interval m + (low, high). With the influences of all fakes for values it is
  FID's, in which FID is
  linearised: it knows how the fakes were drawn, not the bias that FID has for few of them.
  """
  values = np.asarray(values, np.float64)
  key, n = np.random.default_rng(seed), len(values)
  means = [values[key.integers(0, n, n)].mean() for _ in range(replicates)]
  low, high = np.percentile(means, [2.5, 97.5]) - values.mean()
  return float(low), float(high)


# ---- kernel inception distance


def kid_subsets(reals, fakes, seed, subsets=100, size=1000):
  """Which of `reals` and of `fakes` images are in each subset: two int arrays [subsets,m], m the
  least of size and these.

  Within a subset none occurs twice.
  """
  key, m = np.random.default_rng(seed), min(size, reals, fakes)
  draw = lambda n: np.stack([key.choice(n, m, replace=False) for _ in range(subsets)])
  return draw(reals), draw(fakes)


def mmd(x, y):
  """Unbiased squared maximum mean discrepancy, kernel (x.y / D + 1)^3 [Binkowski et al. 2018, arXiv
  1801.01401].

  x: [m,D], y: [n,D] -> float, which may be negative. KID is its mean over subsets. Raises:
  ValueError if m or n is 1.
  """
  if min(len(x), len(y)) < 2:
    raise ValueError(
      f'an unbiased estimate needs 2 rows or more on both sides, got {len(x)} and {len(y)}'
    )
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3

  def among(a):
    k = kernel(a, a)
    return (k.sum() - k.trace()) / (len(a) * (len(a) - 1))

  return float(among(x) + among(y) - 2 * kernel(x, y).mean())


# ---- inception score


def inception_scores(probs, splits=10):
  """exp(E KL(p(y|x) || p(y))) of contiguous parts [Salimans et al. 2016, arXiv 1606.03498, 4]:
  float64 [splits].

  probs: [N,K]; part i begins at image i * N // splits. Raises: ValueError unless 1 <= splits <= N.
  """
  if not 1 <= splits <= len(probs):
    raise ValueError(
      f'{len(probs)} images cannot be divided into {splits} splits; ask for 1 to {len(probs)}'
    )
  ends, found = np.arange(splits + 1) * len(probs) // splits, []
  for first, end in zip(ends, ends[1:]):
    entropy, mean = 0, 0
    for i in range(first, end, CHUNK):
      p = np.asarray(probs[i : min(i + CHUNK, end)], np.float64)
      entropy, mean = entropy - xlogy(p, p).sum() / (end - first), mean + p.sum(0) / (end - first)
    found.append(np.exp(-xlogy(mean, mean).sum() - entropy))
  return np.array(found)
