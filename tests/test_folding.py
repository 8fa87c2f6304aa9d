"""Networks as a TPU computes them: columns in channels, filters in kernels; values as elsewhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sg2jax import build, conv, folding, packing, sharding
from sg2jax.models.discriminator import Discriminator
from sg2jax.models.generator import Synthesis
from sg2jax.models.sizes import block_folds
from tests.runs import ROOT, configuration

pytestmark = pytest.mark.usefixtures('quick_compile')

TAPS = (1, 2, 3, 5)  # not symmetric


def close(x, y):
  """Equal up to float64's rounding."""
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10 * (1 + np.abs(b).max())), x, y
  )


@pytest.mark.parametrize('kernel', (1, 3))
@pytest.mark.parametrize(
  'up, down, folds',
  [
    (1, 1, (4, 4)),
    (2, 1, (1, 2)),
    (2, 1, (2, 4)),
    (2, 1, (2, 2)),
    (1, 2, (2, 1)),
    (1, 2, (4, 2)),
    (1, 2, (2, 2)),
  ],
)
def test_folded_convolutions_are_convolutions(kernel, up, down, folds):
  draw = np.random.default_rng(0).normal
  x, w = draw(size=(2, 6, 8, 3)), draw(size=(kernel, kernel, 3, 5))

  def plain(x, w):
    return conv.conv2d_resample(x, w, taps=TAPS, up=up, down=down, padding=kernel // 2)

  def folded(x, w):
    x = folding.refold(x, 1, folds[0])
    return folding.refold(folding.conv2d(x, w, TAPS, up, down, folds), folds[1], 1)

  weights = draw(size=jax.eval_shape(plain, x, w).shape)

  def derivatives(f):
    def value(x, w):
      return jnp.sum(jnp.sin(f(x, w)) * weights)

    def of_gradients(x, w):
      dx, dw = jax.grad(value, (0, 1))(x, w)
      return jnp.sum(dx**3) + jnp.sum(dw**3)

    return f(x, w), jax.grad(of_gradients, (0, 1))(x, w)

  with jax.enable_x64(True):
    close(*jax.jit(lambda: (derivatives(folded), derivatives(plain)))())


def test_columns_are_folded_where_channels_are_few():
  assert folding.factor(32, 1024) == 4
  assert folding.factor(128, 256) == 1
  assert folding.factor(100, 64) == 1
  assert folding.factor(8, 12) == 4  # 12 columns make no 8
  sizes = [(4, 5), (8, 10), (16, 20)]
  assert block_folds(sizes, (8, 64, 32), True) == [(1, 1), (1, 2), (2, 4)]
  assert block_folds(sizes, (8, 64, 32), False) == [(1, 1)] * 3


def networks(architecture, size):
  """(synthesis, discriminator) as they are, the same as a TPU computes them, and their inputs."""
  key = jax.random.key(0)
  synthesis = Synthesis(size, 3, 128, 16, architecture, clamp=2.0)
  discriminator = Discriminator(size, 128, 16, architecture=architecture, clamp=2.0)
  ws = jax.random.normal(key, (2, synthesis.num_ws, 5))
  image = jax.random.normal(key, (2, *size, 3))
  of_g = jax.jit(synthesis.init)({'params': key, 'noise': key}, ws)
  of_d = jax.jit(discriminator.init)(key, image)
  of_g, of_d = jax.tree.map(lambda x: x + 0.1, (of_g, of_d))  # noise and biases are 0 at first
  plain = (synthesis, discriminator)
  folded = tuple(dataclasses.replace(network, fold=True) for network in plain)
  return plain, folded, (of_g, ws), (of_d, image)


@pytest.mark.parametrize(
  'architecture',
  [
    pytest.param('orig', marks=pytest.mark.slow),
    pytest.param('msg', marks=pytest.mark.slow),
    'revised',
    'stylegan1',
  ],
)
def test_images_and_logits_are_the_same(architecture):
  with jax.enable_x64(True):
    plain, folded, of_g, of_d = networks(architecture, (16, 12))
    of = jax.jit(lambda g, d: (g.apply(*of_g, 'const'), d.apply(*of_d)), static_argnums=(0, 1))
    close(of(*folded), of(*plain))


@pytest.mark.parametrize('architecture', ('skip', 'resnet'))
def test_regularizers_and_their_gradients_are_the_same(architecture):
  """Path lengths, R1, and what they say about parameters and inputs, in float64."""

  def path_lengths(synthesis, variables, ws):
    images, pull = jax.vjp(lambda ws: synthesis.apply(variables, ws, 'const'), ws)
    return jnp.sum(pull(jnp.sin(images))[0] ** 2)

  def r1(discriminator, variables, image):
    slopes = jax.grad(lambda image: discriminator.apply(variables, image).sum())(image)
    return jnp.sum(slopes**2)

  with jax.enable_x64(True):
    plain, folded, of_g, of_d = networks(architecture, (8, 12))
    for i, measure, inputs in ((0, path_lengths, of_g), (1, r1, of_d)):
      of = jax.jit(jax.value_and_grad(measure, (1, 2)), static_argnums=0)
      close(of(folded[i], *inputs), of(plain[i], *inputs))


def test_devices_say_what_is_done(monkeypatch):
  class Device:
    platform = 'tpu'

  class Mesh:
    devices = np.array([Device()])

  mesh = sharding.make_mesh(jax.devices()[:1])
  assert sharding.is_tpu(Mesh()) and not sharding.is_tpu(mesh)
  config = configuration(ROOT)

  def found(batch):
    config.batch = batch
    steps = build.steps(config, 0, mesh)
    key, state, _ = build.abstract_arguments(config, steps, mesh)
    rows = jax.eval_shape(steps.spread, np.zeros((batch // 2, 3))).shape[0]
    return steps.generator.synthesis.fold, isinstance(state.g, packing.Packed), rows

  assert found(8) == (False, True, 4)
  monkeypatch.setattr(sharding, 'is_tpu', lambda mesh: True)
  assert found(8) == (True, False, 8)
  assert found(6) == (True, False, 3)  # of these the other steps have too few, too
