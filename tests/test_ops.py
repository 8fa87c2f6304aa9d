"""Operators: hand-written transposes against jax's own differentiation of plain forms, precision,
group rules.
"""

from functools import partial
import math

import jax
from jax import lax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from sg2jax import ops

pytestmark = pytest.mark.usefixtures('quick_compile')


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def draw(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape)


# ---- plain forms: one lax convolution, differentiated by jax


def plain_upfirdn2d(x, f, *, up=1, down=1, padding=0, flip_filter=False, gain=1):
  """Zero insertion, padding, correlation, decimation, a channel at a time."""
  f = np.outer(f, f) if f.ndim == 1 else f
  (ux, uy), (dx, dy), (x0, x1, y0, y1) = ops._pair(up), ops._pair(down), ops._pad4(padding)
  f = (f if flip_filter else f[::-1, ::-1]) * gain
  n, h, w, c = x.shape
  x = jnp.moveaxis(x, 3, 1).reshape(n * c, h, w, 1)
  x = lax.pad(
    x,
    jnp.zeros((), x.dtype),
    ((0, 0, 0), (y0, y1 + uy - 1, uy - 1), (x0, x1 + ux - 1, ux - 1), (0, 0, 0)),
  )
  y = lax.conv_general_dilated(
    x, jnp.asarray(f, x.dtype)[:, :, None, None], (dy, dx), 'VALID', dimension_numbers=ops._DIMS
  )
  return jnp.moveaxis(y.reshape(n, c, *y.shape[1:3]), 1, 3)


def plain_conv2d_resample(x, w, *, taps, up=1, down=1, padding=0, flip_weight=True):
  """Up-sampling, convolution, down-sampling one after the other."""
  f, n = np.asarray(taps) / np.sum(taps), len(taps)
  p0 = padding + (n + up - 1) // 2 * (up > 1) + (n - down + 1) // 2 * (down > 1)
  p1 = padding + (n - up) // 2 * (up > 1) + (n - down) // 2 * (down > 1)
  w = w if flip_weight else w[::-1, ::-1]
  if up > 1:
    x = plain_upfirdn2d(x, f, up=up, padding=(p0, p1, p0, p1), gain=up**2)
    x = lax.conv_general_dilated(x, w, (1, 1), 'VALID', dimension_numbers=ops._DIMS)
    return plain_upfirdn2d(x, f, down=down) if down > 1 else x
  if down > 1:
    x = plain_upfirdn2d(x, f, padding=(p0, p1, p0, p1))
    return lax.conv_general_dilated(x, w, (down, down), 'VALID', dimension_numbers=ops._DIMS)
  return lax.conv_general_dilated(
    x, w, (1, 1), [(padding, padding)] * 2, dimension_numbers=ops._DIMS
  )


def derivatives(function, args):
  """Value and first, second and third derivatives along fixed directions of a nonlinear functional
  of `function`.
  """

  def loss(args):
    y = function(*args)
    return jnp.sum(jnp.sin(y + 0.3 * y**2))

  def along(f, seed):
    directions = [draw(seed + i, *np.shape(a)) for i, a in enumerate(args)]
    return lambda args: sum(
      jnp.vdot(g, d) for g, d in zip(jax.grad(f)(args), directions, strict=True)
    )

  first = along(loss, 100)
  second = along(first, 200)
  everything = lambda args: (
    function(*args),
    jax.grad(loss)(args),
    jax.grad(first)(args),
    jax.grad(second)(args),
  )
  return jax.tree.leaves(jax.jit(everything)(args))


def check_same(f, plain, args):
  for ours, theirs in zip(derivatives(f, args), derivatives(plain, args), strict=True):
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9 * np.abs(theirs).max())


@pytest.mark.parametrize(
  'size, filter_shape, options',
  [
    ((4, 5), (4,), dict(up=2, padding=(2, 1, 2, 1), gain=4)),
    ((5, 4), (3,), dict(down=2, padding=1, flip_filter=True)),
    ((5, 6), (3, 4), dict(up=(2, 3), down=(3, 2), padding=(3, -1, 0, 2))),
    ((7, 6), (2, 1), dict(padding=(-2, 1, 3, -1))),
  ],
)
def test_fir_transposes(x64, size, filter_shape, options):
  f = draw(1, *filter_shape)
  check_same(
    partial(ops.upfirdn2d, f=f, **options),
    partial(plain_upfirdn2d, f=f, **options),
    (draw(0, 1, *size, 2),),
  )


@pytest.mark.parametrize(
  'size, kernel, options',
  [
    ((4, 5), 3, dict(padding=1)),
    ((5, 4), 3, dict(up=2, padding=1, flip_weight=False)),
    ((6, 5), 3, dict(down=2, padding=1)),
    ((5, 6), 3, dict(down=3)),
    ((4, 3), 2, dict(up=3, padding=1)),
    ((3, 4), 5, dict(up=2, padding=2)),
    ((4, 3), 1, dict(up=2)),
    ((4, 6), 1, dict(down=2)),
    ((4, 6), 1, dict(padding=1)),
    ((4, 5), 3, dict(up=2, down=2, padding=1)),
    ((4, 4), 1, dict(up=2, down=2)),
  ],
)
def test_convolution_triad(x64, size, kernel, options):
  options['taps'] = (1, 3, 2)
  args = (draw(0, 2, *size, 2), draw(1, kernel, kernel, 2, 3))
  check_same(
    partial(ops.conv2d_resample, **options), partial(plain_conv2d_resample, **options), args
  )


def test_derivatives_against_differences(x64):
  f = lambda x, w, s: ops.modulated_conv2d(x, w, s, up=2, padding=1, flip_weight=False)
  args = (draw(0, 1, 3, 2, 2), draw(1, 3, 3, 2, 2), draw(2, 1, 2))
  check_grads(lambda *a: jnp.sin(f(*a)), args, order=2, modes=['rev'], rtol=1e-4)


@pytest.mark.parametrize('stride', [1, 2, 3])
# the last in several chunks
@pytest.mark.parametrize('n, h, w', [(2, 6, 6), (2, 7, 5), (2, 4, 9), (8, 48, 50)])
@pytest.mark.parametrize('k, pad', [(1, 0), (3, 0), (3, 1), (3, 2)])
def test_weight_gradient_is_the_same_on_every_platform(x64, stride, n, h, w, k, pad):
  size = [(m + 2 * pad - k) // stride + 1 for m in (h, w)]
  x, y = draw(0, n, h, w, 2), draw(1, n, *size, 3)
  forms = [
    form(jnp.asarray(x), jnp.asarray(y), stride, pad, k, jnp.float64)
    for form in (ops._conv_w_matmul, ops._conv_w_conv)
  ]
  np.testing.assert_allclose(*forms, rtol=1e-11, atol=1e-11)


# ---- precision


def rounded(*shape, seed=0):
  """N(0,1), in bfloat16 and the same numbers in float32."""
  x = jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.bfloat16)
  return x, x.astype(jnp.float32)


SIZE = (8, 64, 64, 16)  # 32,768 pixels: a sum of them in bfloat16 is off by far
W3, W1 = (0.1 * rounded(k, k, 16, 16, seed=k)[1] for k in (3, 1))
STYLES = 1 + 0.5 * rounded(8, 16, seed=4)[1]
BIAS, STRENGTH = 0.3 * rounded(16, seed=5)[1], jnp.float32(0.7)
NOISE = rounded(8, 64, 64, 1, seed=6)[1]
MODULATED = partial(ops.modulated_conv2d, padding=1)
FUNCTIONS = {  # of x and one float32 parameter
  'bias': (lambda x, b: ops.bias_act(x, b, 'lrelu', clamp=256.0), BIAS),
  'bias swish': (lambda x, b: ops.bias_act(x, b, 'swish'), BIAS),
  'weight 3x3': (lambda x, w: ops.conv2d_resample(x, w, padding=1), W3),
  'weight 1x1': (lambda x, w: ops.conv2d_resample(x, w), W1),
  'weight 1x1 up': (lambda x, w: ops.conv2d_resample(x, w, up=2), W1),
  'weight 1x1 down': (lambda x, w: ops.conv2d_resample(x, w, down=2), W1),
  'weight up': (lambda x, w: ops.conv2d_resample(x, w, up=2, padding=1, flip_weight=False), W3),
  'weight down': (lambda x, w: ops.conv2d_resample(x, w, down=2, padding=1), W3),
  'styles': (lambda x, s: MODULATED(x, W3, s), STYLES),
  'styles 1x1': (lambda x, s: ops.modulated_conv2d(x, W1, s, demodulate=False), STYLES),
  'noise strength': (lambda x, s: MODULATED(x, W3, STYLES, noise=NOISE * s), STRENGTH),
  'noise strengths': (lambda x, s: MODULATED(x, W3, STYLES, noise=NOISE * s), BIAS),
}


@pytest.mark.parametrize('name', FUNCTIONS)
def test_bfloat16_gradients_are_those_of_float32(name):
  """Of the parameter, of x, and the value; the layer rounds at its ends only. A bias gradient was
  off by 16 times before.
  """
  function, parameter = FUNCTIONS[name]
  low, full = rounded(*SIZE)

  @jax.jit
  def all_of(x, p):
    y, back = jax.vjp(function, x, p)
    dy = jnp.asarray(np.random.default_rng(9).normal(size=y.shape) + 1, y.dtype)
    return y, *back(dy)

  (y, dx, dp), exact = all_of(low, parameter), all_of(full, parameter)
  assert (y.dtype, dx.dtype, dp.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
  for got, wanted in zip((y, dx, dp), exact, strict=True):
    assert np.linalg.norm(np.float32(got) - wanted) < 0.01 * np.linalg.norm(wanted)


@pytest.mark.parametrize(
  'resample',
  [
    lambda x: ops.upsample2d(x, ops.setup_filter([1, 3, 3, 1])),
    lambda x: ops.downsample2d(x, np.ones((3, 4)) / 12),
  ],
)
def test_bfloat16_filters_sum_in_float32(resample):
  low, full = rounded(2, 16, 16, 4)
  assert resample(low).dtype == jnp.bfloat16
  assert np.linalg.norm(np.float32(resample(low)) - resample(full)) < 0.004 * np.linalg.norm(
    resample(full)
  )


def test_result_of_another_dtype_is_not_rounded_before():
  low, full = rounded(2, 8, 8, 16)
  y = ops.bias_act(low, BIAS, 'lrelu', dtype=jnp.float32)
  np.testing.assert_array_equal(y, ops.bias_act(full, BIAS, 'lrelu'))
  assert y.dtype == jnp.float32


# ---- rules


def test_minibatch_stddev_groups_are_strided():
  x = draw(0, 6, 2, 3, 4).astype(np.float32)
  y = np.asarray(ops.minibatch_stddev(x, group_size=3, num_channels=2))
  np.testing.assert_array_equal(y[..., :4], x)
  for i in range(6):
    members = x[i % 2 :: 2].reshape(3, 2, 3, 2, 2)  # samples i, i+2, i+4; channels in two blocks
    expected = members.std(axis=0).mean(axis=(0, 1, 3))
    np.testing.assert_allclose(y[i, ..., 4:], np.broadcast_to(expected, (2, 3, 2)), rtol=1e-5)


def test_minibatch_stddev_names_both_numbers_and_the_remedy():
  with pytest.raises(ValueError, match='batch of 6 .* groups of 4; use a multiple of 4'):
    ops.minibatch_stddev(jnp.zeros((6, 4, 4, 2)), group_size=4)


def test_demodulated_convolution_has_unit_variance():
  """[S2 2.2]: with unit input, whatever the styles and weights."""
  x = draw(0, 8, 16, 16, 16)
  y = ops.modulated_conv2d(x, 7 * draw(1, 3, 3, 16, 16), 1 + 3 * np.abs(draw(2, 8, 16)), padding=1)
  assert abs(float(jnp.std(y[:, 1:-1, 1:-1])) - 1) < 0.05


def test_resampling_keeps_brightness():
  x = jnp.ones((1, 8, 8, 1))
  f = ops.setup_filter([1, 3, 3, 1])
  for y in (ops.upsample2d(x, f), ops.downsample2d(x, f), ops.filter2d(x, f)):
    np.testing.assert_allclose(y[:, 2:-2, 2:-2], 1, rtol=1e-6)


@pytest.mark.parametrize('act', ops.ACTIVATIONS)
def test_activation_gains_are_python_floats(act):
  assert type(ops.ACTIVATIONS[act][1]) in (int, float)  # a NumPy scalar would widen bfloat16


def test_clamped_values_have_no_gradient():
  x = jnp.array([[-9.0, -0.1, 0.1, 9.0]])
  y, pull = jax.vjp(partial(ops.bias_act, clamp=1.0), x)
  np.testing.assert_allclose(y, [[-1, -0.02 * math.sqrt(2), 0.1 * math.sqrt(2), 1]], rtol=1e-6)
  np.testing.assert_allclose(
    pull(jnp.ones_like(y))[0], [[0, 0.2 * math.sqrt(2), math.sqrt(2), 0]], rtol=1e-6
  )
