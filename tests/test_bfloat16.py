"""bfloat16 networks: no sum in 16 bits, and gradients of all steps that are those of float32."""

import jax
import jax.numpy as jnp
import pytest

from tests import bfloat16

pytestmark = pytest.mark.usefixtures('quick_compile')
NARROW = {
  'g.fmap_max': 8,
  'd.fmap_max': 8,
  'g.z_dim': 8,
  'g.w_dim': 8,
  'g.mapping_layers': 1,
}
# no slope jumps where rounding changes a sign
SMOOTH = {'g.variant.activation': 'swish', 'd.variant.activation': 'swish'}


@pytest.fixture
def no_16_bit_sums():
  """Tracing a sum over float16 or bfloat16 raises."""
  jax.config.update('jax_allow_f16_reductions', False)
  yield
  jax.config.update('jax_allow_f16_reductions', True)


OTHERS = [('resnet', 'orig'), ('orig', 'skip'), ('msg', 'msg'), ('revised', 'revised')]


@pytest.mark.parametrize(
  'g, d',
  [
    ('skip', 'resnet'),
    ('stylegan1', 'stylegan1'),
    *(pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHERS),
  ],
)
def test_no_step_sums_in_bfloat16(no_16_bit_sums, g, d):
  """Traced only: 4 px in float32, 8 px in bfloat16."""
  architectures = {'g.architecture': g, 'd.architecture': d}
  _, steps, config = bfloat16.make_steps(8, bf16_res=1, batch=4, **NARROW, **architectures)
  state, batch = bfloat16.make_inputs(config, steps, 0)
  for name in steps.phases(0):
    traced = jax.make_jaxpr(getattr(steps, name))(jax.random.key(0), state, batch)
    assert 'bf16[' in str(traced), 'nothing is computed in bfloat16'


def test_the_guard_sees_a_sum_in_bfloat16(no_16_bit_sums):
  def total(b):
    return (jnp.ones((2, 3), 'bfloat16') + b).sum().astype('float32')

  with pytest.raises(Exception, match='f16_reductions'):
    jax.make_jaxpr(jax.grad(total))(jnp.ones(3, 'bfloat16'))


@pytest.mark.parametrize(
  'phases', [('g', 'd'), pytest.param(('g_reg', 'd_reg'), marks=pytest.mark.slow)]
)
def test_gradients_of_smooth_networks_are_those_of_float32(phases):
  """Whole networks with two bfloat16 resolutions, by what a parameter is."""
  whole, _ = bfloat16.measure(1, phases, resolution=16, batch=16, **NARROW, **SMOOTH)
  assert whole.keys() == set(phases) and {'biases', 'ws', 'weights 1x1'} <= whole[phases[0]].keys()
  assert max(error for errors in whole.values() for error in errors.values()) < 0.02, whole


@pytest.mark.slow
def test_gradients_at_128_px_are_those_of_float32():
  """Of leaky ReLUs, whose slope jumps where rounding changes a sign: that is what is left."""
  whole, _ = bfloat16.measure(3)
  assert max(error for phase in ('g', 'd') for error in whole[phase].values()) < 0.04, whole
  assert max(whole['g_reg'].values()) < 0.05, whole
