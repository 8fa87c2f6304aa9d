"""ops, resample, conv: hand-written transposes against those of plain forms, precision, rules."""

from functools import partial
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from sg2jax import conv, ops, resample

pytestmark = pytest.mark.usefixtures('quick_compile')


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def draw(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape)


# ---- plain forms: lax convolutions, differentiated by jax


def correlate(x, w, stride=(1, 1), padding=0):
  return lax.conv_general_dilated(
    x, w, stride, [(padding, padding)] * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def plain_upfirdn2d(x, f, *, up=1, down=1, padding=0, flip_filter=False, gain=1):
  """Zero insertion, padding, correlation, decimation, a channel at a time."""
  f = np.outer(f, f) if f.ndim == 1 else f
  (ux, uy), (dx, dy) = resample._pair(up), resample._pair(down)
  x0, x1, y0, y1 = resample._pad4(padding)
  f = (f if flip_filter else f[::-1, ::-1]) * gain
  n, h, w, c = x.shape
  x = jnp.moveaxis(x, 3, 1).reshape(n * c, h, w, 1)
  pads = ((0, 0, 0), (y0, y1 + uy - 1, uy - 1), (x0, x1 + ux - 1, ux - 1), (0, 0, 0))
  x = lax.pad(x, jnp.zeros((), x.dtype), pads)
  y = correlate(x, jnp.asarray(f, x.dtype)[:, :, None, None], (dy, dx))
  return jnp.moveaxis(y.reshape(n, c, *y.shape[1:3]), 1, 3)


def plain_conv2d_resample(x, w, *, taps, up=1, down=1, padding=0, flip_weight=True):
  """Up-sampling, convolution, down-sampling one after the other."""
  f, n = np.asarray(taps) / np.sum(taps), len(taps)
  p0 = padding + (n + up - 1) // 2 * (up > 1) + (n - down + 1) // 2 * (down > 1)
  p1 = padding + (n - up) // 2 * (up > 1) + (n - down) // 2 * (down > 1)
  w = w if flip_weight else w[::-1, ::-1]
  if up > 1:
    x = plain_upfirdn2d(x, f, up=up, padding=(p0, p1, p0, p1), gain=up**2)
    x = correlate(x, w)
    return plain_upfirdn2d(x, f, down=down) if down > 1 else x
  if down > 1:
    return correlate(plain_upfirdn2d(x, f, padding=(p0, p1, p0, p1)), w, (down, down))
  return correlate(x, w, padding=padding)


def plain_modulated_conv2d(x, w, styles, noise):
  """[S2 Eq. 1-3] as written: a kernel for each sample."""

  def one(x, style):
    kernel = w * style[:, None]
    kernel = kernel / jnp.sqrt(jnp.sum(kernel**2, axis=(0, 1, 2)) + 1e-8)
    return plain_conv2d_resample(x[None], kernel, taps=(1, 3, 3, 1), up=2, padding=1)[0]

  return jax.vmap(one)(x, styles) + noise


def derivatives(function, args):
  """Value, gradient and gradient of a directional derivative of a nonlinear functional of it."""

  def loss(args):
    y = function(*args)
    return jnp.sum(jnp.sin(y + 0.3 * y**2))

  directions = [draw(100 + i, *np.shape(a)) for i, a in enumerate(args)]

  def along(args):
    return sum(jnp.vdot(g, d) for g, d in zip(jax.grad(loss)(args), directions, strict=True))

  everything = jax.jit(lambda args: (function(*args), jax.grad(loss)(args), jax.grad(along)(args)))
  return jax.tree.leaves(everything(args))


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
  ours, plain = partial(resample.upfirdn2d, f=f), partial(plain_upfirdn2d, f=f)
  check_same(partial(ours, **options), partial(plain, **options), (draw(0, 1, *size, 2),))


@pytest.mark.parametrize(
  'up, down, pad',
  [(1, 1, (2, 1)), (2, 1, (2, 1)), (1, 2, (1, 1)), (2, 1, (-1, 3))],
)
def test_depthwise_filters_are_sums_of_slices(x64, up, down, pad):
  x, taps = draw(0, 1, 9, 8, 3), (0.125, 0.375, 0.25, 0.5)
  for axis in (1, 2):
    forms = resample._fir_slices, resample._fir_depthwise
    ours, theirs = (form(x, taps, axis, up, down, pad) for form in forms)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_tpu_filters_bfloat16_by_depthwise_convolutions():
  """Where the taps are exact in it; float32 would lose bits there, and a GPU time."""

  def count(platform, taps=(1, 3, 3, 1), dtype=jnp.bfloat16):
    filtered = jax.jit(jax.grad(lambda x: resample.filter2d(x, np.array(taps)).sum()))
    trace = filtered.trace(jax.ShapeDtypeStruct((2, 8, 8, 32), dtype))
    text = trace.lower(lowering_platforms=(platform,)).as_text()
    return text.count('feature_group_count = 32')

  assert count('tpu') == 2
  assert count('tpu', taps=(0.3, 0.4, 0.3)) == count('tpu', dtype=jnp.float32) == count('cuda') == 0


@pytest.mark.parametrize(
  'size, kernel, options',
  [
    pytest.param((4, 5), 3, dict(padding=1), marks=pytest.mark.smoke),
    ((5, 4), 3, dict(up=2, padding=1, flip_weight=False)),
    ((6, 5), 3, dict(down=2, padding=1)),
    ((5, 6), 3, dict(down=3)),
    ((4, 3), 2, dict(up=3, padding=1)),
    ((3, 4), 5, dict(up=2, padding=2)),
    ((4, 3), 1, dict(up=2)),
    ((4, 6), 1, dict(down=2)),
    ((4, 6), 1, dict(padding=1)),
    ((4, 5), 3, dict(up=2, down=2, padding=1)),
  ],
)
def test_three_bilinear_functions(x64, size, kernel, options):
  options = options | {'taps': (1, 3, 2)}
  args = (draw(0, 2, *size, 2), draw(1, kernel, kernel, 2, 3))
  ours, plain = conv.conv2d_resample, plain_conv2d_resample
  check_same(partial(ours, **options), partial(plain, **options), args)


def test_modulation_is_that_of_a_kernel_for_each_sample(x64):
  args = (draw(0, 2, 3, 2, 2), draw(1, 3, 3, 2, 2), draw(2, 2, 2), draw(3, 2, 6, 4, 1))

  def ours(x, w, styles, noise):
    return conv.modulated_conv2d(x, w, styles, noise=noise, up=2, padding=1)

  check_same(ours, plain_modulated_conv2d, args)


@pytest.fixture(params=['cpu', 'default'])
def form(request, monkeypatch):
  """Of what is chosen by platform, the form of CPUs or of others, computed here."""

  def choose(*args, default, **others):
    return others.get(request.param, default)(*args)

  monkeypatch.setattr(lax, 'platform_dependent', choose)


@pytest.mark.parametrize('act, slope', [('lrelu', 0.2), ('linear', 1), ('relu', 0)])
def test_activation_of_all_that_is_added(x64, form, act, slope):
  """The gradient of the scale is made of the result, or of x."""
  args = [draw(0, 2, 4, 3, 5), draw(1, 2, 5), draw(2, 2, 4, 3, 2), draw(3, 1, 2, 5), draw(4, 5)]

  def ours(x, s, y, m, b):
    return ops.bias_act(x, b, act, scale=s, thin=(y, m), gain=1.5, clamp=1.2)

  def plain(x, s, y, m, b):
    z = x * s[:, None, None] + jnp.einsum('nhwj,jc->nhwc', y, m[0]) + b
    return jnp.clip(1.5 * jnp.where(z > 0, z, slope * z), -1.2, 1.2)

  assert 0.1 < np.mean(np.abs(plain(*args)) == 1.2) < 0.9
  check_same(ours, plain, args)


def test_a_scale_has_derivatives_of_any_order(x64, form):
  """Also of its gradient, which is made of the result."""
  x = draw(0, 2, 4, 3, 2)

  def value(s):
    return jnp.sum(ops.bias_act(x, None, 'linear', scale=s) ** 2)

  def slopes(s):
    return jnp.sum(jax.grad(value)(s) ** 2)

  s = jnp.asarray(1 + draw(1, 2, 2) ** 2)
  exact = 8 * np.sum(x**2, axis=(1, 2)) ** 2  # of sum (2 s sum x^2)^2, twice
  second = jax.grad(lambda s: jnp.sum(jax.grad(slopes)(s)))(s)
  np.testing.assert_allclose(second, exact, rtol=1e-12)


def test_a_tpu_has_its_own_forms():
  """Up-convolutions by phases where there are more channels than lanes, and float32 gradients."""

  def convolutions(channels, function):
    x = jax.ShapeDtypeStruct((2, 8, 8, channels), jnp.bfloat16)
    w = jax.ShapeDtypeStruct((3, 3, channels, channels), jnp.float32)
    text = jax.jit(function).trace(x, w).lower(lowering_platforms=('tpu',)).as_text()
    return [line for line in text.splitlines() if 'stablehlo.convolution' in line]

  def up(x, w):
    return conv._conv_t(x, w, 2, 0, (17, 17))

  assert [len(convolutions(channels, up)) for channels in (128, 129)] == [1, 4]
  (line,) = convolutions(8, lambda x, w: conv._conv_w(x, x, 1, 1, 3))
  assert line.endswith('tensor<3x3x8x8xf32>')


SIZES = ((2, 6, 6), (2, 7, 5), (2, 4, 9), (8, 48, 50))  # the last in several chunks
KERNELS = ((1, 0), (3, 0), (3, 1), (3, 2))  # side, padding


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('kernel', KERNELS)
def test_weight_gradient_is_the_same_on_every_platform(x64, size, kernel):
  """Every pair of size, kernel and stride."""
  n, h, w = size
  k, pad = kernel
  stride = 1 + (SIZES.index(size) + KERNELS.index(kernel)) % 3
  out = [(m + 2 * pad - k) // stride + 1 for m in (h, w)]
  x, y = jnp.asarray(draw(0, n, h, w, 2)), jnp.asarray(draw(1, n, *out, 3))
  conv_w = partial(conv._conv_w_conv, result=x.dtype)
  forms = [form(x, y, stride, pad, k, x.dtype) for form in (conv._conv_w_matmul, conv_w)]
  np.testing.assert_allclose(*forms, rtol=1e-11, atol=1e-11)


# ---- precision


def rounded(*shape, seed=0):
  """N(0,1), in bfloat16 and the same numbers in float32."""
  x = jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.bfloat16)
  return x, x.astype(jnp.float32)


SIZE = (4, 64, 64, 4)  # 16,384 pixels: a sum of them in bfloat16 is off by far
W3, W1 = (0.2 * rounded(k, k, 4, 4, seed=k)[1] for k in (3, 1))
STYLES = 1 + 0.5 * rounded(4, 4, seed=4)[1]
BIAS, STRENGTH = 0.3 * rounded(4, seed=5)[1], jnp.float32(0.7)
NOISE, ONE = rounded(4, 64, 64, 1, seed=7)[1], jnp.ones((1, 1, 1))
MODULATED = partial(conv.modulated_conv2d, padding=1)
FUNCTIONS = {  # of x and one float32 parameter
  'bias': (lambda x, b: ops.bias_act(x, b, 'lrelu', clamp=256.0), BIAS),
  'scale': (lambda x, s: ops.bias_act(x, BIAS, scale=s, thin=(NOISE, ONE)), STYLES),
  'bias swish': (lambda x, b: ops.bias_act(x, b, 'swish'), BIAS),
  'weight 3x3': (lambda x, w: conv.conv2d_resample(x, w, padding=1), W3),
  'weight 1x1': (lambda x, w: conv.conv2d_resample(x, w), W1),
  'weight 1x1 up': (lambda x, w: conv.conv2d_resample(x, w, up=2), W1),
  'weight 1x1 down': (lambda x, w: conv.conv2d_resample(x, w, down=2), W1),
  'weight up': (lambda x, w: conv.conv2d_resample(x, w, up=2, padding=1, flip_weight=False), W3),
  'weight down': (lambda x, w: conv.conv2d_resample(x, w, down=2, padding=1), W3),
  'styles': (lambda x, s: MODULATED(x, W3, s), STYLES),
  'styles 1x1': (lambda x, s: conv.modulated_conv2d(x, W1, s, demodulate=False), STYLES),
  'noise strength': (lambda x, s: MODULATED(x, W3, STYLES, noise=NOISE * s), STRENGTH),
  'noise strengths': (lambda x, s: MODULATED(x, W3, STYLES, noise=NOISE * s), BIAS),
}


@pytest.mark.parametrize('name', FUNCTIONS)
def test_bfloat16_gradients_are_those_of_float32(name):
  """Value and both gradients: a layer rounds at its ends only. A bias gradient was off 16 times."""
  function, parameter = FUNCTIONS[name]
  low, full = rounded(*SIZE)

  @jax.jit
  def all_of(x, p):
    y, back = jax.vjp(function, x, p)
    dy = jnp.asarray(np.random.default_rng(9).normal(size=y.shape) + 1, y.dtype)
    return y, *back(dy)

  (y, dx, dp), exact = all_of(low, parameter), all_of(full, parameter)
  assert (y.dtype, dx.dtype, dp.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
  for value, wanted in zip((y, dx, dp), exact, strict=True):
    assert np.linalg.norm(np.float32(value) - wanted) < 0.01 * np.linalg.norm(wanted)


@pytest.mark.parametrize('function', [resample.filter2d, resample.downsample2d])
def test_bfloat16_filters_sum_in_float32(function):
  """Of 16 taps: off by 0.2 %, in bfloat16 by 0.4 %. Not compiled: a fusion sums in float32."""
  x = rounded(2, 16, 16, 4)[0] + 1
  low, full = (function(x, np.ones(16) / 16) for x in (x, x.astype(jnp.float32)))
  assert low.dtype == jnp.bfloat16
  assert np.linalg.norm(np.float32(low) - full) < 0.003 * np.linalg.norm(full)


def test_result_of_another_dtype_is_not_rounded_before():
  low, full = rounded(2, 8, 8, 4)
  y = ops.bias_act(low, BIAS, 'lrelu', dtype=jnp.float32)
  np.testing.assert_array_equal(y, ops.bias_act(full, BIAS, 'lrelu'))
  assert y.dtype == jnp.float32


# ---- rules


@pytest.mark.smoke
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
  x, w, styles = (
    np.float32(draw(i, *s)) for i, s in enumerate([(4, 16, 16, 16), (3, 3, 16, 16), (4, 16)])
  )
  y = conv.modulated_conv2d(jnp.asarray(x), 7 * w, 1 + 3 * np.abs(styles), padding=1)
  assert abs(float(jnp.std(y[:, 1:-1, 1:-1])) - 1) < 0.05


def test_resampling_keeps_brightness():
  x, f = jnp.ones((1, 8, 8, 1)), resample.setup_filter([1, 3, 3, 1])
  for function in (resample.upsample2d, resample.downsample2d, resample.filter2d):
    np.testing.assert_allclose(function(x, f)[:, 2:-2, 2:-2], 1, rtol=1e-6)


@pytest.mark.parametrize('act', ops.ACTIVATIONS)
def test_activation_gains_are_python_floats(act):
  assert type(ops.ACTIVATIONS[act][1]) in (int, float)  # a NumPy scalar would widen bfloat16


def test_clamped_values_have_no_gradient():
  x = jnp.array([[-9.0, -0.1, 0.1, 9.0]])
  y, pull = jax.vjp(partial(ops.bias_act, clamp=1.0), x)
  gain = math.sqrt(2)
  np.testing.assert_allclose(y, [[-1, -0.02 * gain, 0.1 * gain, 1]], rtol=1e-6)
  np.testing.assert_allclose(pull(jnp.ones_like(y))[0], [[0, 0.2 * gain, gain, 0]], rtol=1e-6)
