"""Scores against what is known of them in closed form, streaming against all at once, memory."""

from functools import partial
import subprocess
import sys

import jax
import numpy as np
import pytest
from scipy.stats import norm

from sg2jax.evaluation import neighbors, protocols, scores
from tests.runs import ROOT


def key(seed=0):
  return np.random.default_rng(seed)


def moments(rows, batch):
  return scores.moments(rows[i : i + batch] for i in range(0, len(rows), batch))


# ---- moments


def test_moments_are_those_of_all_rows_though_the_mean_is_large():
  rows = key().standard_normal((2500, 5)) * [1, 2, 3, 1e-3, 1] + [1e6, 1e8, 0, 1e5, 0]
  found = moments(rows, 64)
  centered = rows - rows.mean(0)
  assert found.count == 2500
  np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-14, atol=1e-14)
  for ddof in 0, 1:
    np.testing.assert_allclose(
      found.cov(ddof), centered.T @ centered / (2500 - ddof), rtol=1e-6, atol=1e-9
    )
    np.testing.assert_array_equal(found.cov(ddof), found.cov(ddof).T)
  np.testing.assert_array_equal(moments(rows[:1], 1).cov(), np.zeros((5, 5)))


@pytest.mark.smoke
def test_moments_have_the_same_bits_for_any_batch():
  rows = key().standard_normal((2300, 6)).astype(np.float32)
  whole = moments(rows, 2300)
  for batch in 7, 64, 1024, 2000:
    for x, y in zip(moments(rows, batch), whole):
      np.testing.assert_array_equal(x, y)


# ---- FID


def gaussian(seed, dim, rank=None):
  """A mean and a covariance of that rank."""
  a = key(seed).standard_normal((dim, rank or dim))
  return key(seed + 100).standard_normal(dim), a @ a.T


def test_fid_of_gaussians_whose_covariances_commute():
  rotation = np.linalg.qr(key().standard_normal((8, 8)))[0]
  deviations = key(1).uniform(0.1, 3, (2, 8))
  covs = [rotation * s**2 @ rotation.T for s in deviations]
  expected = 9 * 8 + ((deviations[0] - deviations[1]) ** 2).sum()
  assert scores.frechet_distance(np.zeros(8), covs[0], np.full(8, 3), covs[1]) == pytest.approx(
    expected, rel=1e-13
  )


def test_fid_of_gaussians_in_the_plane():
  """There tr (C1 C2)^1/2 = sqrt(tr C1 C2 + 2 sqrt(det C1 C2)), commuting or not."""
  (m1, c1), (m2, c2) = gaussian(1, 2), gaussian(2, 2)
  assert np.abs(c1 @ c2 - c2 @ c1).max() > 0.1
  root = np.sqrt(np.trace(c1 @ c2) + 2 * np.sqrt(np.linalg.det(c1 @ c2)))
  expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2) - 2 * root
  assert scores.frechet_distance(m1, c1, m2, c2) == pytest.approx(expected, rel=1e-12)


def test_fid_by_the_definition_with_a_matrix_root():
  (m1, c1), (m2, c2) = gaussian(3, 12), gaussian(4, 12)
  eigenvalues = np.linalg.eigvals(c1 @ c2)
  expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2) - 2 * np.sqrt(eigenvalues.real).sum()
  assert scores.frechet_distance(m1, c1, m2, c2) == pytest.approx(expected, rel=1e-10)
  assert scores.frechet_distance(m2, c2, m1, c1) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize('images', [2, 50, 500])
def test_fid_of_a_set_with_itself_is_0_also_where_it_lacks_rank(images):
  rows = key().standard_normal((images, 200)) ** 2
  statistics = moments(rows, 64)
  same = statistics.mean, statistics.cov()
  distance = scores.frechet_distance(*same, *same)
  assert 0 <= distance < 1e-11


def test_fid_of_a_plane_and_a_line_and_of_constants():
  """Without rank in common the trace term vanishes; on a line it is a product of deviations."""
  plane = np.diag([4.0, 9, 0, 0])
  line = np.diag([0.0, 0, 0, 16])
  none = np.zeros((4, 4))
  zero = np.zeros(4)
  assert scores.frechet_distance(zero, plane, zero, line) == pytest.approx(4 + 9 + 16)
  assert scores.frechet_distance(zero, plane, zero, np.diag([25.0, 0, 0, 0])) == pytest.approx(
    9 + (5 - 2) ** 2
  )
  assert scores.frechet_distance(zero, none, zero + 2, none) == 16
  assert scores.frechet_distance(zero, plane, zero, none) == 13


def weighted(rows, weights):
  weights = weights / weights.sum()
  mean = weights @ rows
  return mean, (rows - mean).T * weights @ (rows - mean)


@pytest.mark.parametrize('fakes, reals', [(300, 400), (9, 400), (300, 9), (9, 8)])
def test_influence_is_the_derivative_of_fid(fakes, reals):
  """By finite differences of the weight of a fake; with more and fewer images than features."""
  real = weighted(key(1).standard_normal((reals, 20)) * np.arange(1, 21) ** -0.5, np.ones(reals))
  rows = key(2).standard_normal((fakes, 20)) + 0.2
  influence = scores.frechet_influence(rows, *real, *weighted(rows, np.ones(fakes)))
  assert abs(influence.mean()) < 1e-10 * np.abs(influence).max()

  def fid(i, step):
    return scores.frechet_distance(
      *real, *weighted(rows, np.ones(fakes) / fakes * (1 - step) + step * (np.arange(fakes) == i))
    )

  for i in 0, 5:
    assert influence[i] == pytest.approx((fid(i, 1e-5) - fid(i, -1e-5)) / 2e-5, rel=1e-5, abs=1e-6)


def test_influences_give_the_spread_of_fid():
  """The linearised interval against the scatter of FID over sets of fakes."""
  real, fid, intervals = (np.zeros(4), np.eye(4)), [], []
  for seed in range(100):
    rows = key(seed).standard_normal((2500, 4)) * 1.3 + 0.3
    mean, cov = weighted(rows, np.ones(2500))
    fid.append(scores.frechet_distance(*real, mean, cov))
    if seed < 5:
      influence = scores.frechet_influence(rows, *real, mean, cov)
      intervals.append(scores.interval(0, influence, seed))
  low, high = np.percentile(fid, [2.5, 97.5])
  assert np.diff(intervals, axis=1).mean() == pytest.approx(high - low, rel=0.25)
  assert all(a < 0 < b for a, b in intervals)


def test_bootstrap_of_a_mean_is_the_normal_interval():
  values = key().exponential(3, 4000)
  low, high = scores.interval(0, values, 0)
  expected = 1.96 * values.std() / np.sqrt(len(values))
  assert low == pytest.approx(-expected, rel=0.15) and high == pytest.approx(expected, rel=0.15)
  assert scores.interval(0, values, 0) == (low, high) != scores.interval(0, values, 1)
  assert scores.interval(3, np.full(5, 2.5), 0) == (3, 3)
  low, high = scores.interval(0, key().exponential(3, 20), 0)  # a skew one
  assert 0 < -low < high


# ---- KID


def test_kid_is_unbiased():
  """Of equal distributions the mean over repeats is 0 within its error; of others it isn't."""

  def draw(seed, shift=0):
    return key(seed).standard_normal((30, 6)) + shift

  def diagonal(a):
    return (((a**2).sum(1) / 6 + 1) ** 3).mean() / len(a)

  def biased(x, y):
    return scores.mmd(x, y) + diagonal(x) + diagonal(y)

  same = np.array([scores.mmd(draw(2 * i), draw(2 * i + 1)) for i in range(600)])
  assert (same < 0).sum() > 100
  assert abs(same.mean()) < 3 * same.std() / np.sqrt(len(same))
  many = np.array([biased(draw(2 * i), draw(2 * i + 1)) for i in range(600)])
  assert abs(many.mean()) > 10 * many.std() / np.sqrt(len(many))  # so the test can tell
  other = np.array([scores.mmd(draw(2 * i), draw(2 * i + 1, 0.5)) for i in range(50)])
  assert other.mean() > 5 * other.std() / np.sqrt(len(other))


def test_kid_by_hand_and_its_subsets():
  x, y = np.array([[1.0], [2]]), np.array([[0.0], [1], [3]])
  among_x, among_y = 3**3, (1 + 1 + 4**3) / 3
  across = np.mean([(a * b + 1) ** 3 for a in (1, 2) for b in (0, 1, 3)])
  assert scores.mmd(x, y) == pytest.approx(among_x + among_y - 2 * across)
  reals, fakes = scores.kid_subsets(10**6, 60, seed=3, subsets=9)
  assert reals.shape == fakes.shape == (9, 60) and reals.max() > 60
  assert all(len(set(rows)) == 60 for rows in [*reals, *fakes])
  np.testing.assert_array_equal(reals, scores.kid_subsets(10**6, 60, seed=3, subsets=9)[0])
  assert (reals != scores.kid_subsets(10**6, 60, seed=4, subsets=9)[0]).any()
  assert scores.kid_subsets(5000, 3000, seed=0)[1].shape == (100, 1000)


# ---- inception score


def test_inception_score_of_uniform_and_of_one_hot_classes():
  score = partial(scores.inception_scores, splits=4)
  np.testing.assert_allclose(score(np.full((40, 8), 1 / 8)), np.ones(4), rtol=1e-14)
  np.testing.assert_allclose(score(np.eye(8)[np.arange(64) % 8]), np.full(4, 8), rtol=1e-14)
  # each split one class
  np.testing.assert_allclose(score(np.eye(8)[np.arange(64) // 16]), np.ones(4), rtol=1e-14)
  np.testing.assert_allclose(score(np.eye(8)[np.arange(64) // 16], splits=1), [4], rtol=1e-14)


def test_inception_score_of_splits_that_are_not_equal():
  probs = key().dirichlet(np.full(6, 0.3), 53)
  expected = []
  for i in range(4):
    part = probs[i * 53 // 4 : (i + 1) * 53 // 4]
    expected.append(np.exp((part * np.log(part / part.mean(0))).sum(1).mean()))
  np.testing.assert_allclose(scores.inception_scores(probs, 4), expected, rtol=1e-13)


# ---- neighbours


@pytest.fixture
def small_blocks(monkeypatch):
  """Sets of some tens of rows need several blocks."""
  monkeypatch.setattr(neighbors, 'BLOCK', 16)


def pairwise(a, b):
  return np.sqrt(((a[:, None].astype(np.float64) - b) ** 2).sum(-1))


def test_neighbours_are_those_of_all_distances(small_blocks):
  a, b = (key(i).standard_normal((n, 5)).astype(np.float32) + 100 for i, n in enumerate((35, 40)))
  distance, index = neighbors.nearest(a, b)
  np.testing.assert_array_equal(index, pairwise(a, b).argmin(1))
  np.testing.assert_allclose(distance, pairwise(a, b).min(1), rtol=1e-12)
  others = pairwise(b, b) + np.diag(np.full(40, np.inf))
  distance, index = neighbors.nearest(b, b, exclude_self=True)
  np.testing.assert_array_equal(index, others.argmin(1))
  np.testing.assert_allclose(distance, others.min(1), rtol=1e-12)
  distance, index = neighbors.nearest(b, b)
  np.testing.assert_array_equal(index, np.arange(40))
  np.testing.assert_array_equal(distance, np.zeros(40))


def test_precision_and_recall_are_those_of_all_distances(small_blocks):
  reals, fakes = key(0).standard_normal((40, 3)), key(1).standard_normal((35, 3)) + 0.8
  with jax.enable_x64(True):
    found = neighbors.precision_recall(reals, fakes, k=2)
  real_kth, fake_kth = (np.sort(pairwise(x, x), 1)[:, 2] for x in (reals, fakes))
  across = pairwise(fakes, reals)
  np.testing.assert_allclose(found.real_kth, real_kth, rtol=1e-12)
  np.testing.assert_allclose(found.fake_kth, fake_kth, rtol=1e-12)
  np.testing.assert_array_equal(found.in_reals, (across <= real_kth).any(1))
  np.testing.assert_array_equal(found.in_fakes, (across <= fake_kth[:, None]).any(0))
  assert 0 < found.in_reals.mean() < 1 and 0 < found.in_fakes.mean() < 1
  single = neighbors.precision_recall(reals.astype(np.float32), fakes.astype(np.float32), k=2)
  np.testing.assert_array_equal(single.in_reals, found.in_reals)
  np.testing.assert_array_equal(single.in_fakes, found.in_fakes)


def test_precision_and_recall_of_constructed_sets():
  line = np.linspace(0, 1, 21)[:, None] * [1, 0]  # steps of 0.05: radii of 0.1 to 0.15

  def shares(reals, fakes):
    found = neighbors.precision_recall(reals, fakes, k=3)
    return found.in_reals.mean(), found.in_fakes.mean()

  assert shares(line, line) == (1, 1)
  assert shares(line, line + [0, 5]) == (0, 0)
  # half of the fakes are elsewhere
  assert shares(line, np.concatenate([line, line + [0, 5]])) == (0.5, 1)
  both = np.concatenate([line, line + [0, 5]])
  assert shares(both, line + [0.01, 0]) == (1, 0.5)  # fakes of one mode out of two
  collapsed = np.tile([[0.5, 0]], (8, 1)) + np.arange(8)[:, None] * [1e-4, 0]
  assert shares(line, collapsed) == (1, pytest.approx(1 / 21))
  # the edge of a ball belongs to it: 4 is as far from 3 as 2 is
  found = neighbors.precision_recall(np.arange(4.0)[:, None], np.array([[4.0], [9]]), k=1)
  assert found.in_reals.tolist() == [True, False]


# ---- copies


def test_copying_is_the_test_of_mann_and_whitney():
  f, h = np.round(key(0).random(40), 1), np.round(key(1).random(50), 1)  # many ties
  each = ((f[:, None] > h).sum(1) + (f[:, None] == h).sum(1) / 2) / 50
  ties = sum(n**3 - n for n in np.unique(np.concatenate([f, h]), return_counts=True)[1])
  farther, z = neighbors.copying(f, h)
  np.testing.assert_allclose(farther, each, rtol=1e-12)
  deviation = np.sqrt(2000 / 12 * (91 - ties / (90 * 89)))
  assert z == pytest.approx((2000 * each.mean() - 1000) / deviation)
  assert neighbors.copying(h, f)[1] == pytest.approx(-z)
  scattered = [
    neighbors.copying(key(i).random(40), key(-i % 99991).random(50))[1] for i in range(1, 300)
  ]
  assert np.std(scattered) == pytest.approx(1, abs=0.15) and abs(np.mean(scattered)) < 0.25
  assert np.mean(np.abs(scattered) > norm.ppf(0.975)) == pytest.approx(0.05, abs=0.04)
  assert neighbors.copying(np.ones(5), np.ones(9))[1] == 0


def test_copies_are_told_from_fakes_of_the_same_distribution():
  train, held, fakes = (key(i).standard_normal((200, 8)).astype(np.float32) for i in range(3))
  copies = np.where(np.arange(200)[:, None] % 2, fakes, train + 1e-3)  # every second one
  held, fakes, copies = (neighbors.nearest(x, train)[0] for x in (held, fakes, copies))
  assert abs(neighbors.copying(fakes, held)[1]) < 3
  assert neighbors.copying(copies, held)[1] < -6


# ---- from features to results


def scored(name, seed=0, **compared):
  """(values, intervals, notes, covers) of a metric from features."""
  p = protocols.parse(name)
  result = scores.SCORES[p.kind](p, scores.Features(**compared), seed, lambda: None)
  values = {name: value for name, (value, _) in result.values.items()}
  each = {name: (value, x) for name, (value, x) in result.values.items() if x is not None}
  intervals = {name: scores.interval(value, x, seed) for name, (value, x) in each.items()}
  return values, intervals, result.notes, result.covers


def test_frechet_divides_as_its_name_says():
  real = key(1).standard_normal((40, 3))
  fakes = key(2).standard_normal((30, 3)) + 1
  reals = moments(real, 40)
  for name, ddof in (('fid0.03k_full', 0), ('fid0.03k', 1)):
    found, intervals, *_ = scored(name, reals=reals, fakes=fakes)
    real_cov, fake_cov = (np.cov(rows.T, ddof=ddof) for rows in (real, fakes))
    expected = scores.frechet_distance(real.mean(0), real_cov, fakes.mean(0), fake_cov)
    assert found == {name: pytest.approx(expected, rel=1e-10)}
    low, high = intervals[name]
    assert low < expected < high


def test_kid_looks_at_the_reals_of_its_subsets():
  """5000 reals, of which the subsets of 100 have 4300; their rows are what is passed on."""
  real = key(1).standard_normal((5000, 3))
  fakes = key(2).standard_normal((100, 3))
  of_reals, of_fakes = scores.kid_subsets(5000, 100, 7)
  drawn = np.unique(of_reals)
  found, intervals, notes, _ = scored(
    'kid0.1k_full', 7, reals=real[drawn], fakes=fakes, population=5000
  )
  expected = np.mean([scores.mmd(real[i], fakes[j]) for i, j in zip(of_reals, of_fakes)])
  assert found == {'kid0.1k_full': pytest.approx(expected, rel=1e-12)}
  low, high = intervals['kid0.1k_full']
  assert notes == {'subsets': 100, 'subset_size': 100} and low < expected < high


def test_other_results():
  probs = key().dirichlet(np.full(6, 0.3), 50)
  each = scores.inception_scores(probs, 10)
  found, intervals, *_ = scored('is0.05k', fakes=probs)
  assert found == {'is0.05k_mean': each.mean(), 'is0.05k_std': each.std()}
  assert list(intervals) == ['is0.05k_mean']
  lengths = key().random(200)
  found, *_ = scored('ppl2_0.2k_wend', fakes=lengths)
  assert found['ppl2_0.2k_wend'] == np.sort(lengths)[1:-1].mean()
  line = np.linspace(0, 1, 21)[:, None] * [1, 0]
  fakes = np.concatenate([line, line + [0, 5]])
  found, intervals, *_ = scored('pr0.042k3', reals=line, fakes=fakes)
  assert found == {'pr0.042k3_precision': 0.5, 'pr0.042k3_recall': 1}
  assert intervals['pr0.042k3_recall'] == (1, 1)
  images = key().integers(0, 256, (2, 40, 8, 8, 1)).astype(np.uint8)
  found, _, notes, covers = scored('swd_0.04k', reals=images[0], fakes=images[1])
  assert found['swd_0.04k'] == notes['levels']['mean']
  assert covers == 'both sets, by 8 disjoint subsets'


# ---- memory

WORK = """
import re, sys, tempfile
import numpy as np
from sg2jax.evaluation import neighbors, scores
N, D, key, sets = 50_000, 2048, np.random.default_rng(0), []
for shift in 0, 0.1:
  file = tempfile.NamedTemporaryFile(dir=sys.argv[1])
  rows = np.memmap(file, np.float32, 'w+', shape=(N, D))
  for i in range(0, N, 1000):
    rows[i:i + 1000] = key.standard_normal((1000, D), np.float32) + shift
  sets.append(rows)
found = [scores.moments([rows]) for rows in sets]
found = [x for m in found for x in (m.mean, m.cov())]
print(scores.frechet_distance(*found))
print(scores.interval(0, scores.frechet_influence(sets[1], *found), 0))
subsets = scores.kid_subsets(N, N, 0, subsets=2)
print([scores.mmd(sets[0][i], sets[1][j]) for i, j in zip(*subsets)])
few = 2 * neighbors.BLOCK + 1  # blocks of all kinds
print(neighbors.precision_recall(sets[0][:few], sets[1][:few], 3).in_reals.mean())
print(neighbors.nearest(sets[0][:few], sets[1][:few])[0].mean())
# not ru_maxrss, which begins with that of the process that started this one
print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 2 ** 20)
"""


@pytest.mark.slow
def test_50000_features_stay_within_2_gib(tmp_path):
  """With the mapped files (0.8 GiB) counted in."""
  done = subprocess.run(
    [sys.executable, '-c', WORK, str(tmp_path)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  lines = done.stdout.splitlines()
  assert float(lines[0]) > 20 and float(lines[-1]) < 2
