"""Contribution, droplets, phase: invariants, and planted artefacts that must be found."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sg2jax import build
from sg2jax.evaluation import artifacts
from sg2jax.faults import UsageError
from sg2jax.models.generator import largest

pytestmark = pytest.mark.usefixtures('quick_compile')


def tiny(architecture, **fields):
  """A configuration at 16 px with few weights."""
  from configs import default

  c = default.get_config()
  c.resolution = 16
  c.update_from_flattened_dict(
    {
      'g.architecture': architecture,
      'd.architecture': 'msg' if architecture == 'msg' else 'orig',
      'g.fmap_base': 64,
      'd.fmap_base': 64,
      'g.fmap_max': 16,
      'd.fmap_max': 16,
      'g.z_dim': 16,
      'g.w_dim': 16,
      'g.mapping_layers': 2,
    }
    | fields
  )
  return c


@lru_cache
def initialized(architecture):
  """A generator, and variables of it that were drawn by NumPy: nothing is compiled for them."""
  generator, _ = build.networks(tiny(architecture), 0)
  shapes = jax.eval_shape(
    partial(generator.init, noise_mode='const'),
    jax.random.key(0),
    jnp.zeros((1, 16)),
    jnp.zeros((1, 0)),
  )
  random = np.random.RandomState(0)
  return generator, jax.tree.map(lambda x: np.float32(random.randn(*x.shape)), shapes)


def network(architecture):
  """(generator, variables of its own that may be changed, ws [6,num_ws,16])."""
  generator, variables = initialized(architecture)
  ws = jax.random.normal(jax.random.key(1), (6, generator.synthesis.num_ws, 16))
  return generator, jax.tree.map(lambda x: x, variables), ws


def smooth(size, seed=0):
  """Low-passed noise [size,size], standard deviation 1."""
  f = np.fft.rfft2(np.random.default_rng(seed).standard_normal((size, size)))
  f *= np.exp(-((np.fft.fftfreq(size)[:, None] ** 2 + np.fft.rfftfreq(size) ** 2) * 900))
  x = np.fft.irfft2(f, (size, size))
  return x / x.std()


def moving(detail, shape=None, frames=24, step=(3, 2), size=64):
  """Frames of a picture that slides; `detail` slides along, or is a function of the frame."""
  shape = smooth(size) if shape is None else shape
  fixed = callable(detail)
  return np.stack(
    [
      np.roll(shape if fixed else shape + detail, (step[0] * t, step[1] * t), (0, 1))
      + (detail(t) if fixed else 0)
      for t in range(frames)
    ]
  )[..., None]


# ---- contribution --------------------------------------------------------------------------------


@lru_cache
def contributions(architecture):
  """(variables, ws [3,num_ws,16]) -> (parts, image, torgb's pixels, their moments, shares)."""
  generator, _ = initialized(architecture)

  def measure(variables, ws):
    image = largest(generator.apply(variables, ws, 'const', method='synthesize'))
    pixels = artifacts.torgb_pixels(generator, variables, ws)
    return (
      artifacts.image_parts(generator, variables, ws),
      image,
      pixels,
      artifacts.moments(pixels),
      artifacts.contribution(generator, variables, ws),
    )

  return jax.jit(measure)


@pytest.mark.parametrize('architecture', ['skip', 'msg'])
def test_parts_add_up_to_the_image(architecture):
  _, variables, ws = network(architecture)
  parts, image, pixels, _, _ = contributions(architecture)(variables, ws[:3])
  assert sorted(parts, key=artifacts.resolution) == ['b4', 'b8', 'b16']
  assert pixels['b8'].shape == (3, 8, 8, 3)
  np.testing.assert_allclose(sum(parts.values()), image, atol=1e-5)


def test_shares_follow_the_torgb_layers():
  """Against NumPy; and three times what a torgb makes is three times its standard deviation."""
  _, variables, ws = network('skip')
  parts, *_, before = contributions('skip')(variables, ws[:3])
  std = {
    name: np.sqrt(np.mean([np.var(np.asarray(x)[..., c], dtype=np.float64) for c in range(3)]))
    for name, x in parts.items()
  }
  np.testing.assert_allclose(sum(before.values()), 1, rtol=1e-5)
  for name in parts:
    np.testing.assert_allclose(before[name], std[name] / sum(std.values()), rtol=1e-4)
  torgb = variables['params']['synthesis']['b8']['torgb']
  torgb['weight'] = 3 * torgb['weight']
  torgb['bias'] = 3 * torgb['bias']
  last = variables['params']['synthesis']['b16']['torgb']
  last['bias'] = last['bias'] + 5  # without effect: the mean is taken out
  *_, after = contributions('skip')(variables, ws[:3])
  for name, factor in (('b8', 3), ('b16', 1)):
    np.testing.assert_allclose(
      after[name] / after['b4'], factor * before[name] / before['b4'], rtol=1e-3
    )


def test_moments_of_batches_pool_to_those_of_all():
  _, variables, ws = network('skip')
  (_, _, x, mx, _), (_, _, y, my, _) = (
    contributions('skip')(variables, part) for part in (ws[:3], ws[3:])
  )
  for name in x:
    both = np.concatenate([x[name], y[name]]).astype(np.float64)
    np.testing.assert_allclose(
      (mx[name] + my[name]) / 2, [both.mean((0, 1, 2)), (both**2).mean((0, 1, 2))], atol=1e-5
    )


@pytest.mark.parametrize('architecture', ['orig', 'resnet', 'revised', 'stylegan1'])
def test_one_torgb_has_no_contributions(architecture):
  generator, _ = build.networks(tiny(architecture), 0)
  with pytest.raises(UsageError, match=f'skip or msg; in {architecture}'):
    artifacts.contribution(generator, {}, None)


# ---- droplets ------------------------------------------------------------------------------------


def test_a_spike_is_found_where_it_is():
  x = np.random.default_rng(0).standard_normal((4, 32, 32, 64)).astype(np.float32)
  clean, _ = artifacts.peak_to_median(x)
  assert np.all((1 < clean) & (clean < 1.6))
  x[2, 5, 9] += 100 * np.random.default_rng(1).choice([-1, 1], 64)
  ratio, maps = artifacts.peak_to_median(x)
  np.testing.assert_allclose(np.delete(ratio, 2), np.delete(clean, 2), rtol=1e-5)
  assert ratio[2] > 30 and np.unravel_index(np.argmax(maps[2]), (32, 32)) == (5, 9)
  np.testing.assert_allclose(np.median(maps, (1, 2)), 1, rtol=1e-5)


def test_scale_and_offset_of_a_map_are_without_effect():
  key = np.random.default_rng(0)
  x = key.gamma(1, size=(2, 16, 16, 8)).astype(np.float32)
  y = x * 10 ** key.uniform(-2, 2, (2, 1, 1, 8)) + key.normal(size=(2, 1, 1, 8))
  np.testing.assert_allclose(
    artifacts.peak_to_median(x)[0], artifacts.peak_to_median(y)[0], rtol=1e-3
  )


def test_constant_maps_count_as_nothing():
  x = np.random.default_rng(0).standard_normal((2, 8, 8, 6)).astype(np.float32)
  x[..., 3:] = 7.3
  np.testing.assert_allclose(
    artifacts.peak_to_median(x)[0], artifacts.peak_to_median(x[..., :3])[0], rtol=1e-4
  )
  np.testing.assert_allclose(artifacts.peak_to_median(np.full((2, 8, 8, 6), 0.1))[0], 1)


@pytest.mark.parametrize('architecture', ['skip', 'stylegan1'])
def test_a_droplet_planted_in_a_layer_is_seen_in_that_layer(architecture):
  generator, variables, ws = network(architecture)
  f = jax.jit(partial(artifacts.droplets, generator))
  before = f(variables, ws)
  assert sorted(before, key=artifacts.resolution)[-1].startswith('b16')
  variables['noise']['synthesis']['b16']['conv0']['noise_const'] = (
    jnp.zeros((16, 16)).at[4, 11].set(1000.0)
  )
  layer = variables['params']['synthesis']['b16']['conv0']
  layer['noise_strength'] = jnp.ones_like(layer['noise_strength'])
  after = f(variables, ws)
  ratio, maps = after['b16.conv0']
  assert np.all(ratio > 4 * before['b16.conv0'][0]) and np.all(ratio > 20)
  assert all(np.unravel_index(np.argmax(m), m.shape) == (4, 11) for m in maps)
  np.testing.assert_allclose(after['b8.conv1'][0], before['b8.conv1'][0], rtol=1e-4)


def test_a_growing_network_is_measured_at_its_stage():
  generator, variables, ws = network('stylegan1')
  found = jax.jit(partial(artifacts.droplets, generator, stage=1, alpha=0.5))(variables, ws)
  assert set(found) == {'b4.conv0', 'b4.conv1', 'b8.conv0', 'b8.conv1'}


# ---- phase ---------------------------------------------------------------------------------------

PHASE = jax.jit(artifacts.phase)
NOISE = np.random.default_rng(5).standard_normal((100, 64, 64))


def test_details_are_octaves():
  x = np.arange(64)
  waves = np.stack(
    [np.cos(2 * np.pi * x / period) * np.ones((64, 1)) for period in (2, 6, 12)]
    + [np.ones((64, 64))]
  )
  plane = np.mgrid[:64, :64].sum(0)[None]
  octaves = np.array(
    jax.jit(artifacts.details)(np.concatenate([waves, plane])[..., None].astype(np.float32))
  )
  assert len(octaves) == 4  # each needs 4 of its pixels on a side
  assert (octaves[:, :3] ** 2).mean((2, 3, 4)).argmax(0).tolist() == [0, 1, 2]
  # neither a constant nor, inside, a plane has details
  np.testing.assert_allclose(octaves[:, 3], 0, atol=1e-5)
  np.testing.assert_allclose(octaves[0, 4, 2:-2, 2:-2], 0, atol=1e-4)


@pytest.mark.parametrize(
  'detail, low, high',
  [
    (lambda t: 0.3 * NOISE[0], 0.98, 1.0),
    (0.3 * NOISE[0], -0.03, 0.03),
    (lambda t: 0.3 * NOISE[t], -0.03, 0.03),
  ],
  ids=['glued to the pixels', 'moving with the shape', 'independent'],
)
def test_details_that_stick_are_told_from_those_that_move(detail, low, high):
  fixed, _ = PHASE(moving(detail))
  assert low <= fixed[0] <= high


def test_half_of_the_energy_glued_is_a_half():
  fixed, _ = PHASE(moving(lambda t: 0.3 * (NOISE[0] + NOISE[1 + t])))
  assert fixed[0] == pytest.approx(0.5, abs=0.03)


def test_the_number_of_frames_is_not_in_the_share():
  """Uncorrected, T independent frames have 1/T. The definition, pair by pair."""
  assert PHASE(moving(lambda t: NOISE[t], frames=2))[0][0] == pytest.approx(0, abs=0.05)
  frames = moving(lambda t: NOISE[t] + NOISE[50])
  for h, share in zip(jax.jit(artifacts.details)(frames), PHASE(frames)[0]):
    gram = np.einsum('ahwc,bhwc->ab', h, h)
    np.testing.assert_allclose(
      share, (gram.sum() - np.trace(gram)) / 23 / np.trace(gram), atol=1e-4
    )


def test_what_does_not_move_is_seen_in_the_coarse_octaves():
  still, _ = PHASE(moving(lambda t: 0.3 * NOISE[0], step=(0, 0)))
  glued, _ = PHASE(moving(lambda t: 0.3 * NOISE[0]))
  np.testing.assert_allclose(still, 1, atol=1e-5)
  assert glued[0] - glued[-1] > 0.5
  assert np.all(PHASE(np.zeros((24, 64, 64, 1)))[0] == 0)


def test_preferred_positions_are_found_and_only_at_their_period():
  y, x = np.mgrid[:96, :128]
  envelope = np.exp(-((y - 40) ** 2 + (x - 70) ** 2) / 1500) + 0.1
  assert artifacts.grid_preference(envelope)[0] < 0.01  # a smooth subject prefers nothing
  preference, folded = artifacts.grid_preference(envelope * (1 + (y % 8 == 3) * (x % 8 == 6)))
  assert np.unravel_index(np.argmax(folded), (8, 8)) == (3, 6)
  assert preference == pytest.approx(np.std([2] + 63 * [1]) / (65 / 64), rel=0.05)
  assert (
    artifacts.grid_preference(envelope * (1 + (y % 8 == 3) * (x % 8 == 6)), 7)[0] < preference / 4
  )
  assert artifacts.grid_preference(1 + (y % 4 == 1))[0] > 0.3  # shorter periods of 2^k are seen too
