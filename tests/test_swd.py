"""Sliced Wasserstein distance: invariants, the 1-D truth, and what it must tell apart."""

import numpy as np
import pytest
from scipy import ndimage, stats

from sg2jax.evaluation import swd as module
from sg2jax.evaluation.swd import CELLS, swd, wasserstein


@pytest.fixture(autouse=True, scope='module')
def coarse():
  """An eighth of the directions and of the cells: the properties are the same."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(module, 'DIRECTIONS', 64)
    patch.setattr(module, 'CELLS', 2**13)
    yield


def smooth(n, size=(32, 32), channels=1, seed=0):
  """Smooth random pictures with structure at every level."""
  x = np.random.default_rng(seed).standard_normal((n, *size, channels))
  x = sum(ndimage.gaussian_filter(x, (0, s, s, 0)) * s for s in (1, 3))
  return (127 + 60 * x / x.std()).clip(0, 255).astype(np.uint8)


def changed(x, f):
  return f(x.astype(np.float64)).clip(0, 255).astype(np.uint8)


A = smooth(100)
B = smooth(100, seed=1)


@pytest.fixture(scope='module')
def floor(coarse):
  """What two samples of one distribution are apart."""
  return swd(A, B)['mean']


@pytest.mark.smoke
def test_zero_for_equal_sets_symmetric_and_reproducible():
  assert swd(A, A.copy()) == {'32x32': 0, '16x16': 0, 'mean': 0}
  first = swd(A[:20], B[:20])
  assert first == swd(A[:20], B[:20])
  assert first == pytest.approx(swd(B[:20], A[:20]), rel=1e-9)
  assert first != swd(A[:20], B[:20], seed=1)


def test_order_of_images_and_a_subset_cost_no_more_than_sampling(floor):
  assert swd(A, A[::-1].copy())['mean'] < floor
  assert swd(A, B[:75])['mean'] < 2 * floor
  assert swd(A, B[:75]) == pytest.approx(swd(B[:75], A), rel=1e-9)


def test_offset_and_contrast_are_normalised_away(floor):
  half = changed(A, lambda x: x // 4 * 2)  # even numbers, so that what follows is exact
  assert swd(half, half + 40)['mean'] < 1e-3 * floor
  assert swd(half, half * 2 - half)['mean'] == 0
  assert swd(half, half // 2)['mean'] < 1e-3 * floor
  grey = np.full((20, 32, 32, 3), 77, np.uint8)
  assert swd(grey, grey + 100) == {'32x32': 0, '16x16': 0, 'mean': 0}


@pytest.mark.parametrize(
  'change',
  [
    lambda s: lambda x: x + 12 * s * np.random.default_rng(9).standard_normal(x.shape),
    lambda s: lambda x: ndimage.gaussian_filter(x, (0, 0.7 * s, 0.7 * s, 0)),
    lambda s: lambda x: np.where(np.arange(32)[:, None, None] % 8 < s, 255, x),
  ],
  ids=['noise', 'blur', 'bars'],
)
def test_grows_with_damage(floor, change):
  values = [swd(A, changed(B, change(s)))['mean'] for s in (1, 3)]
  assert 1.2 * floor < values[0] < values[1]


def test_noise_constant_copies_and_unlike_channels_are_far_from_reals(floor):
  noise = np.random.default_rng(0).integers(0, 256, A.shape).astype(np.uint8)
  for fakes in (noise, np.full_like(A, 128), np.repeat(A[:1], len(A), 0)):
    assert swd(A, fakes)['mean'] > 3 * floor
  x = smooth(100, channels=3)
  y = x.copy()
  y[..., 2] = x[..., 0]
  assert swd(x, y)['mean'] > 2 * swd(x, smooth(100, channels=3, seed=1))['mean']


@pytest.mark.parametrize(
  'size, levels',
  [
    ((7, 7), ['7x7']),
    ((8, 16), ['8x16']),
    ((31, 31), ['31x31']),
    ((35, 70), ['35x70', '18x35']),
    ((64, 64), ['64x64', '32x32', '16x16']),
  ],
)
def test_levels(size, levels):
  ticks = []
  result = swd(smooth(4, size), smooth(4, size, seed=1), tick=lambda: ticks.append(0))
  assert list(result) == [*levels, 'mean'] and len(ticks) == len(levels)
  assert result['mean'] == pytest.approx(np.mean([result[k] for k in levels]))
  assert all(np.isfinite(v) and v > 0 for v in result.values())


@pytest.mark.parametrize('shift, scale', [(0.003, 1.01), (0.5, 1), (0, 3)])
def test_one_dimension_agrees_with_scipy(monkeypatch, shift, scale):
  monkeypatch.setattr(module, 'CELLS', CELLS)
  key = np.random.default_rng(0)
  x = key.standard_normal(20_000, np.float32)
  y = (key.standard_normal(20_000, np.float32) * scale + shift).astype(np.float32)
  x[0] = 40  # an outlier coarsens the grid
  expected = stats.wasserstein_distance(x, y)
  assert wasserstein(x, y) == pytest.approx(expected, rel=2e-3)


def test_one_dimension_agrees_with_closed_forms(monkeypatch):
  """Shift: W1 = 1. Scale: W1 = E|x| = sqrt(2/pi). Other shape, same variance: by quantiles."""
  monkeypatch.setattr(module, 'CELLS', CELLS)
  q = (np.arange(200_000) + 0.5) / 200_000
  x = stats.norm.ppf(q).astype(np.float32)
  y = stats.laplace.ppf(q, scale=0.5**0.5).astype(np.float32)
  assert wasserstein(x, y) == pytest.approx(np.abs(x - y).mean(), rel=1e-3)
  assert wasserstein(x, x + 1) == pytest.approx(1, rel=1e-4)
  assert wasserstein(x, 2 * x) == pytest.approx((2 / np.pi) ** 0.5, rel=1e-3)


def test_whole_distance_agrees_with_the_definition(monkeypatch):
  """White noise of two pixel distributions, one level: the slow way, with sorting."""
  monkeypatch.setattr(module, 'CELLS', CELLS)
  key = np.random.default_rng(3)
  x = key.integers(0, 256, (60, 16, 16, 2)).astype(np.uint8)
  y = (255 * key.random(x.shape) ** 4).astype(np.uint8)
  key = np.random.default_rng(5)
  key.permutation(60)
  rows, columns = (key.integers(0, 10, (60, module.PATCHES_PER_IMAGE)) for _ in range(2))
  directions = key.standard_normal((module.DIRECTIONS, 98), np.float32)
  directions /= np.linalg.norm(directions, axis=1, keepdims=True)
  projected = []
  for images in (x, y):
    patches = [
      images[n, i : i + 7, j : j + 7]
      for n in range(60)
      for i, j in zip(rows[n], columns[n], strict=True)
    ]
    patches = np.array(patches, np.float64)
    patches = (patches - patches.mean((0, 1, 2))) / patches.std((0, 1, 2))
    patches = patches.transpose(0, 3, 1, 2).reshape(len(patches), -1)
    projected.append(np.sort(patches @ directions.T, 0))
  expected = 1e3 * np.abs(projected[0] - projected[1]).mean()
  assert swd(x, y, seed=5)['16x16'] == pytest.approx(expected, rel=1e-3)


def test_pyramid_against_scipy():
  """Down-sampling and detail by scipy's mirrored correlation; a plane has no detail inside."""
  x = smooth(2, (35, 48), 3).astype(np.float32)
  detail, coarse = module._split(x)
  taps = np.array([1, 4, 6, 4, 1]) / 16

  def blur(v):
    rows = ndimage.correlate1d(v, taps, 1, mode='mirror')
    return ndimage.correlate1d(rows, taps, 2, mode='mirror')

  np.testing.assert_allclose(coarse, blur(x)[:, ::2, ::2], atol=1e-3)
  up = np.zeros_like(x)
  up[:, ::2, ::2] = 4 * coarse
  np.testing.assert_allclose(detail, x - blur(up), atol=1e-3)
  plane = np.mgrid[:32, :32].sum(0).astype(np.float32)[None, ..., None]
  np.testing.assert_allclose(module._split(plane)[0][:, 4:-4, 4:-4], 0, atol=1e-4)
