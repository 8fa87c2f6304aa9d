"""Path length against closed forms; its reference vectors are in the case `metrics`."""

from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sg2jax.evaluation import ppl
from sg2jax.evaluation.ppl import distances, path_length, trimmed, view
from sg2jax.models.generator import Generator, Synthesis
from sg2jax.models.mapping import Mapping


class Power(nn.Module):
  """w = 3 z [N,2], pixels = w^power as an image [N,1,2,1]: everything is known of it."""

  power: int = 1
  mapping: object = type('', (), {'z_dim': 2, 'c_dim': 0})
  synthesis: object = type('', (), {'num_ws': 2})

  def map(self, z, c):
    return 3 * z

  def image(self, ws, noise_mode):
    assert noise_mode == 'const'
    return ws[:, 0, None, :, None] ** self.power


def sum_of_squares(a, b):
  return ((a - b) ** 2).sum((1, 2, 3))


@pytest.mark.smoke
@pytest.mark.parametrize('full', [False, True])
def test_path_length_in_closed_form(full, monkeypatch):
  """Lines: w moves by d = 3 (z1 - z0), pixels by d, or by 2 w d if squares. Arcs: of radius 3."""
  variables = {'params': {'x': np.zeros(())}, 'noise': {}}
  random = np.random.RandomState(5)
  z0, z1 = random.randn(2, 50, 2)
  t = random.rand(50) * full
  w = 3 * (z0 + (z1 - z0) * t[:, None])
  cosine = (z0 * z1).sum(1) / np.sqrt((z0**2).sum(1) * (z1**2).sum(1))
  c = np.zeros((50, 0))

  def length(net, space='w', eps=1e-4):
    return distances(
      net, sum_of_squares, space, variables, *map(jnp.asarray, (z0, z1, t, c)), eps=eps
    )

  with jax.enable_x64(True):
    lines = 9 * ((z1 - z0) ** 2).sum(1)
    squares = 36 * (w**2 * (z1 - z0) ** 2).sum(1)
    np.testing.assert_allclose(length(Power()), lines, 1e-7)
    np.testing.assert_allclose(length(Power(2), eps=1e-7), squares, 1e-4)
    np.testing.assert_allclose(length(Power(), 'z'), 9 * np.arccos(cosine) ** 2, 1e-5)
    monkeypatch.setattr(ppl, 'BATCH', 16)
    found = path_length(Power(), variables, sum_of_squares, c, seed=5)
    assert found == pytest.approx(trimmed(lines).mean(), rel=1e-7)


def test_one_percent_is_left_out_at_either_end():
  values = np.arange(101.0)
  values[[0, 100]] = -1e6, 1e9
  found = trimmed(np.random.default_rng(0).permutation(values))
  assert sorted(found) == list(range(1, 100)) and list(trimmed([3, 7])) == [3, 7]


# ---- the published protocol


class Linear(nn.Module):
  """w = z [N,3], pixels = the matrix [8,16,2,3] times w, times the noise [8,16]."""

  mapping: object = type('', (), {'z_dim': 3, 'c_dim': 0})
  synthesis: object = type('', (), {'num_ws': 1})

  def map(self, z, c):
    return z

  @nn.compact
  def image(self, ws, noise_mode):
    image = jnp.einsum(
      'hwck,nk->nhwc', self.param('matrix', nn.initializers.zeros, (8, 16, 2, 3)), ws[:, 0]
    )
    noise = self.variable('noise', 'map', lambda: None).value
    return image * (noise if noise.ndim == 4 else noise[None, :, :, None])


@pytest.fixture
def linear():
  """A Linear, its variables with a noise of 1, z0, z1, t, c, in float64."""
  with jax.enable_x64(True):
    key = np.random.default_rng(0)
    variables = {
      'params': {'matrix': key.standard_normal((8, 16, 2, 3))},
      'noise': {'map': np.ones((8, 16))},
    }
    z0, z1 = key.standard_normal((2, 12, 3))
    yield Linear(), variables, z0, z1, key.random(12), np.zeros((12, 0))


@pytest.mark.parametrize('crop', [False, True])
def test_path_length_of_a_linear_generator(linear, crop):
  """d' M'M d for d = z1 - z0; M: of the matrix, if cropped rows 3 to 6 and columns 4 to 11."""
  net, variables, *args = linear
  matrix = variables['params']['matrix']
  seen = (matrix[3:7, 4:12] if crop else matrix).reshape(-1, 3)
  expected = (((args[1] - args[0]) @ seen.T) ** 2).sum(1)
  np.testing.assert_allclose(
    distances(net, sum_of_squares, 'w', variables, *args, crop=crop), expected, 1e-7
  )


def test_each_pair_has_noise_of_its_own_at_both_ends(linear):
  """The noise weights the pixels, so it shows in each length, the same at both ends."""
  net, variables, *args = linear
  keys = jax.random.split(jax.random.key(1), 12)
  found = np.asarray(distances(net, sum_of_squares, 'w', variables, *args, keys))
  noise = np.asarray(
    jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), (8, 16, 1)))(keys)
  )
  assert np.abs(noise - noise[:1])[1:].max((1, 2, 3)).min() > 1
  moved = np.einsum('hwck,nk->nhwc', variables['params']['matrix'], args[1] - args[0]) * noise
  np.testing.assert_allclose(found, (moved**2).sum((1, 2, 3)), 1e-7)
  parts = [
    distances(net, sum_of_squares, 'w', variables, *(x[i : i + 6] for x in args), keys[i : i + 6])
    for i in (0, 6)
  ]
  np.testing.assert_allclose(np.concatenate(parts), found, 1e-12)


def test_a_generator_with_noise_of_its_own_for_each_pair(quick_compile):
  net = Generator(Mapping(4, 0, 4, 1), Synthesis((8, 8), 1, 16, 4, 'orig'))
  variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 4)), jnp.zeros((1, 0)))
  # so that noise has strength
  variables = variables | {'params': jax.tree.map(lambda x: x + 0.1, variables['params'])}
  z = jax.random.normal(jax.random.key(2), (2, 6, 4))
  keys = jax.random.split(jax.random.key(1), 6)
  none = jnp.zeros((6, 0))
  function = jax.jit(partial(distances, net, sum_of_squares, 'w', crop=True, eps=1e-2))
  found = function(variables, *z, none.sum(1), none, keys)
  np.testing.assert_allclose(
    function(variables, *z[:, ::-1], none.sum(1), none, keys[::-1]), found[::-1], 1e-4
  )
  # noise shows
  assert np.abs(function(variables, *z, none.sum(1), none, keys[::-1]) / found - 1).min() > 1e-4
  ends = function(variables, z[0], z[0], none.sum(1), none, keys)
  # without a step the ends are equal
  np.testing.assert_allclose(ends, np.zeros(6), atol=1e-3 * found.min())


@pytest.mark.parametrize(
  'size, crop, shape',
  [
    ((8, 16), False, (8, 16)),
    ((512, 512), False, (256, 256)),
    ((384, 512), False, (192, 256)),
    ((768, 512), False, (384, 256)),
    ((1024, 1024), True, (256, 256)),
    ((256, 256), True, (128, 128)),
  ],
)
def test_view(size, crop, shape):
  images = np.random.default_rng(0).random((2, *size, 1)).astype(np.float32)
  found = np.asarray(view(jnp.asarray(images), crop))
  h, w = size
  part = images[:, h * 3 // 8 : h * 7 // 8, w * 2 // 8 : w * 6 // 8] if crop else images
  assert found.shape == (2, *shape, 1)
  k = part.shape[1] // shape[0]
  np.testing.assert_allclose(
    found[1, 3, 5], part[1, 3 * k : 4 * k, 5 * k : 6 * k].mean((0, 1)), 1e-5
  )
