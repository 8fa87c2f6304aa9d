"""Style space: what is read is what the layers use, and what replaces it counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sg2jax.models import styles
from tests.test_models import make, variables

pytestmark = pytest.mark.usefixtures('quick_compile')


@pytest.fixture(params=['skip', 'resnet', 'stylegan1'])
def net(request):
  generator = make((16, 16), architecture=request.param, remat=1)
  return generator, variables(generator)


def latents(generator, n=2):
  return jax.random.normal(jax.random.key(3), (n, generator.synthesis.num_ws, 8))


def test_layers_come_in_order_and_torgb_where_it_has_a_style(net):
  generator, params = net
  names = list(styles.channels(generator, params))
  expected = ['b4.conv1', 'b8.conv0', 'b8.conv1', 'b16.conv0', 'b16.conv1']
  match generator.synthesis.architecture:
    case 'skip':
      expected = [*expected[:1], 'b4.torgb', *expected[1:3], 'b8.torgb', *expected[3:], 'b16.torgb']
    case 'resnet':
      expected.append('b16.torgb')
    case 'stylegan1':
      expected.insert(0, 'b4.conv0')
  assert names == expected


def test_an_image_of_given_styles_needs_no_ws_and_of_its_own_is_the_same(net):
  generator, params = net
  ws = latents(generator)

  @jax.jit
  def both(ws):
    found = styles.read(generator, params, ws)
    given = styles.image(generator, params, 0 * ws, lambda layer, _: found[layer])
    return generator.apply(params, ws, 'const', method='image'), given

  image, given = both(ws)
  np.testing.assert_allclose(given, image, atol=1e-6)


def test_a_change_of_one_channel_changes_the_image_by_its_gradient(net):
  generator, params = net
  ws = latents(generator, 1)
  layer = list(styles.channels(generator, params))[-2]

  def total(step):
    def change(name, x):
      return x.at[:, 1].add(step) if name == layer else x

    return (styles.image(generator, params, ws, change) ** 2).sum()

  slope = jax.jit(jax.grad(total))(0.0)
  step = 1e-2
  central = (jax.jit(total)(step) - total(-step)) / (2 * step)
  assert jnp.abs(slope) > 1e-3
  np.testing.assert_allclose(central, slope, rtol=2e-2)
