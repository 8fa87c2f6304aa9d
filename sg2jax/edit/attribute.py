"""Attribution: whether a network made an image, from how close its projection comes [S2 5].

All functions take distances, [N] each: of projections of the network's own images and of reals that
it never saw. None of them is below 0; the smaller, the more an image is like the network's own.
"""

import numpy as np

RESAMPLES = 1000  # for intervals


def auc(own: np.ndarray, reals: np.ndarray) -> float:
  """Area under the ROC curve: how often an own image is closer than a real one.

  0.5 is chance, 1 perfect. Ties count half.
  """
  own = np.asarray(own)[:, None]
  reals = np.asarray(reals)[None]
  return float(((own < reals) + 0.5 * (own == reals)).mean())


def auc_interval(own: np.ndarray, reals: np.ndarray, seed: int = 0) -> list[float]:
  """95 % interval of `auc` over which images were drawn: of a bootstrap over both groups."""
  key = np.random.RandomState(seed)
  own = np.asarray(own)
  reals = np.asarray(reals)
  resampled = [
    auc(key.choice(own, len(own)), key.choice(reals, len(reals))) for _ in range(RESAMPLES)
  ]
  return np.percentile(resampled, (2.5, 97.5)).tolist()


def threshold(own: np.ndarray, reals: np.ndarray) -> float:
  """The distance up to which an image is best taken for the network's own.

  Best is the least mean of both error rates. It lies between two of the distances, in the middle of
  their logarithms; of several as good the median is taken.
  """
  own = np.sort(own)
  reals = np.sort(reals)
  at = np.unique(np.concatenate([own, reals]))
  missed = 1 - np.searchsorted(own, at, 'right') / len(own)
  false = np.searchsorted(reals, at, 'right') / len(reals)
  best = np.flatnonzero(np.isclose(missed + false, (missed + false).min()))
  i = best[len(best) // 2]
  return float(np.sqrt(at[i] * at[min(i + 1, len(at) - 1)]))


def error_rates(own: np.ndarray, reals: np.ndarray) -> tuple[float, float]:
  """(share of own images that are missed, share of reals that are taken for own).

  Each image is judged by the `threshold` of all others, so that the rates hold for images that the
  threshold didn't see.
  """
  own = np.asarray(own)
  reals = np.asarray(reals)
  missed = [own[i] > threshold(np.delete(own, i), reals) for i in range(len(own))]
  false = [reals[i] <= threshold(own, np.delete(reals, i)) for i in range(len(reals))]
  return float(np.mean(missed)), float(np.mean(false))


def judge(distance: float, own: np.ndarray, reals: np.ndarray) -> dict[str, bool | float]:
  """Whether an image is taken for the network's own.

  It is counted among those it is compared with, as in permutation tests: no p is below 1 / (N + 1).

  Returns:
    'own', the decision, by `threshold`; 'p_own', the share of own images that are as far or
    farther; 'p_real', the share of reals that are as close or closer.
  """
  farther = np.count_nonzero(np.asarray(own) >= distance)
  closer = np.count_nonzero(np.asarray(reals) <= distance)
  return {
    'own': bool(distance <= threshold(own, reals)),
    'p_own': (1 + farther) / (1 + len(own)),
    'p_real': (1 + closer) / (1 + len(reals)),
  }
