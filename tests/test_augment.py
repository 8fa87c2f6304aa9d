"""Augmentation where the reference vectors say nothing: draws, sizes, precision, p in the steps."""

import dataclasses
from functools import cache
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from sg2jax import augment, build, checks, configurations, schedule
from sg2jax.faults import UsageError
from tests import test_steps
from tests.test_steps import KEY, batch, initial, make

pytestmark = pytest.mark.usefixtures('quick_compile')

EVERYTHING = augment.pipeline('bgcfnc')


@cache
def apply(pipe):
  return jax.jit(pipe.apply)


def images(n, height, width, channels, dtype=np.float32):
  shape = (n, height, width, channels)
  return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), dtype)


def draws(pipe, x, seed=0, dtype=jnp.float32):
  return pipe.draw(jax.random.key(seed), x.shape[:1], x.shape[1:], dtype)


# ---- one image, many images


@pytest.mark.smoke
def test_at_p_0_nothing_is_done():
  """To the rounding of two filters; the steps leave such images alone."""
  x = images(4, 8, 8, 3)
  for name in augment.PIPELINES:
    done = augment.pipeline(name).parameters(draws(augment.pipeline(name), x), 0.0, x.shape[1:])
    if done.geometry is not None:
      np.testing.assert_array_equal(done.geometry.x_axis, np.tile([1, 0], (4, 1)))
      np.testing.assert_array_equal(done.geometry.origin, 0)
    if done.colors is not None:
      np.testing.assert_array_equal(done.colors, np.tile(np.eye(3, 4), (4, 1, 1)))
    if done.gains is not None:
      np.testing.assert_array_equal(done.gains, 1)
    for nothing in (done.sigma, None if done.cutout is None else done.cutout[1]):
      assert nothing is None or not nothing.any()


@pytest.mark.parametrize('shape', [(8, 8, 1), (6, 12, 3), (12, 6, 4), (4, 4, 3), (32, 24, 1)])
def test_any_size_and_every_image_its_own(shape):
  """An image alone is augmented as in a batch, and no two alike."""
  x = jnp.broadcast_to(images(1, *shape), (5, *shape))
  numbers = draws(EVERYTHING, x)
  y = apply(EVERYTHING)(x, numbers, 1.0)
  assert y.shape == x.shape and np.isfinite(y).all()
  alone = apply(EVERYTHING)(x[3:4], jax.tree.map(lambda v: v[3:4], numbers), 1.0)
  np.testing.assert_allclose(alone[0], y[3], atol=1e-5)
  different = np.abs(y[:, None] - y[None]).max((2, 3, 4))
  assert (different[~np.eye(5, dtype=bool)] > 0.01).all()


def test_whole_moves_are_exact():
  """Mirrored, turned, shifted by whole pixels: pixels only change places."""
  x = images(64, 16, 16, 3)
  pipe = augment.pipeline('blit')
  numbers = draws(pipe, x)
  y = np.asarray(apply(pipe)(x, numbers, 1.0))
  for image, moved, value in zip(np.asarray(x), y, np.asarray(numbers['uniform'])):
    number = dict(zip(augment.UNIFORM, value))
    expected = np.pad(image, ((16, 16), (16, 16), (0, 0)), mode='reflect')[16:32, 16:32]
    if number['xflip'] >= 0.5:
      expected = expected[:, ::-1]
    expected = np.rot90(expected, int(4 * number['rotate90']))
    padded = np.pad(expected, ((15, 15), (15, 15), (0, 0)), mode='reflect')
    dx, dy = (round((2 * number[f'xint_{axis}'] - 1) * 2) for axis in 'xy')
    expected = padded[15 - dy : 31 - dy, 15 - dx : 31 - dx]
    # the two filters are one whose taps sum to 1, not an impulse: smooth parts tell
    assert np.corrcoef(moved.ravel(), expected.ravel())[0, 1] > 0.95


def test_each_transform_is_done_as_often_as_p_says():
  n = 4000
  numbers = EVERYTHING.draw(jax.random.key(1), (n,), (4, 4, 1), jnp.float32)
  pipe = dataclasses.replace(EVERYTHING, hue=0.5)
  found = pipe.numbers(numbers, 0.4)
  share = {name: float(np.mean(found[name] != 0)) for name in augment.NORMAL}
  assert all(abs(value - 0.4) < 0.04 for value in share.values()), share
  neutral = {name: np.mean(found[name] == value) for name, value in augment.UNIFORM.items()}
  assert neutral.pop('hue') == pytest.approx(0.8, abs=0.04)
  # one or both of the two rotations: 0.4
  turned = (found['rotate_before'] != 0.5) | (found['rotate_after'] != 0.5)
  assert turned.mean() == pytest.approx(0.4, abs=0.04)
  assert neutral.pop('rotate_before') == pytest.approx(0.6**0.5, abs=0.04)
  assert neutral.pop('rotate_after') == pytest.approx(0.6**0.5, abs=0.04)
  assert all(abs(value - 0.6) < 0.04 for value in neutral.values()), neutral
  # independent of each other; the two coordinates of a shift have one gate
  apart = [name for name in augment.NORMAL if name != 'xfrac_y']
  done = np.stack([found[name] != 0 for name in apart])
  assert np.abs(np.corrcoef(done) - np.eye(len(done))).max() < 0.06


def test_alpha_keeps_its_colours():
  x = images(8, 8, 8, 4)
  pipe = augment.pipeline('color')
  y = apply(pipe)(x, draws(pipe, x), 1.0)
  np.testing.assert_array_equal(y[..., 3], x[..., 3])
  rgb = apply(pipe)(x[..., :3], draws(pipe, x), 1.0)
  np.testing.assert_allclose(y[..., :3], rgb, atol=1e-6)


def test_beyond_its_edge_an_image_goes_on_as_its_mirror_image():
  """However far: a map that shrinks it tenfold finds no zeros."""
  x = jnp.ones((1, 8, 8, 1))
  column = jnp.asarray([[10.0, 0.0]]), jnp.asarray([[0.0, 10.0]]), jnp.asarray([[30.0, -7.0]])
  y = augment.warp(x, augment.Geometry(*column))
  np.testing.assert_allclose(y, 1, atol=1e-4)


# ---- precision


def test_bfloat16_is_float32_rounded_once():
  x = images(4, 16, 16, 3, jnp.bfloat16)
  numbers = draws(EVERYTHING, x)

  def loss(x):
    return jnp.sum(jnp.sin(apply(EVERYTHING)(x, numbers, 0.8).astype(jnp.float32)))

  y = apply(EVERYTHING)(x, numbers, 0.8)
  full = apply(EVERYTHING)(x.astype(jnp.float32), numbers, 0.8)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_array_equal(y, full.astype(jnp.bfloat16))
  low, high = jax.grad(loss)(x), jax.grad(loss)(x.astype(jnp.float32))
  assert low.dtype == jnp.bfloat16
  error = np.linalg.norm(low.astype(np.float32) - high) / np.linalg.norm(high)
  assert error < 0.02


def test_r1_through_the_augmentation_by_finite_differences():
  """The gradient by a weight of |d logit / d image|^2, in float64."""
  with jax.enable_x64(True):
    x = images(2, 8, 6, 3, np.float64)
    numbers = draws(EVERYTHING, x, dtype=jnp.float64)
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(8, 6, 3)))

    @jax.jit
    def penalty(weight):
      def logit(x):
        return jnp.sum(jnp.tanh(weight * EVERYTHING.apply(x, numbers, 0.9) * kernel))

      return jnp.sum(jax.grad(logit)(x) ** 2)

    weight, step = 0.7, 1e-5
    slope = (penalty(weight + step) - penalty(weight - step)) / (2 * step)
    assert float(jax.grad(penalty)(weight)) == pytest.approx(float(slope), rel=1e-7)


# ---- p


@pytest.mark.parametrize(
  'p, signs, expected',
  [(0.5, (7, 10), 0.508), (0.5, (5, 10), 0.492), (0.5, (6, 10), 0.5), (0.999, (9, 10), 1.0),
   (0.001, (-9, 10), 0.0)],
)  # fmt: skip
def test_p_follows_r_t_in_its_bounds(p, signs, expected):
  moves = schedule.MovesOfP(target=0.6, interval=2, kimg=0.5)
  p = jnp.float32(p)
  signs = jnp.asarray(signs, jnp.float32)
  stays, kept = moves.move(p, signs, 0, 2)
  assert stays == p and (kept == signs).all()
  moved, zero = moves.move(p, signs, 1, 2)
  assert float(moved) == pytest.approx(expected, abs=1e-6) and not zero.any()


def adaptive(**changes):
  options = {'augment': EVERYTHING, 'moves_of_p': schedule.MovesOfP(0.6, 2, 1.0)}
  return make(**(options | changes))


@cache
def run(name, steps):
  return jax.jit(getattr(steps, name))


def test_p_moves_after_d_by_the_signs_of_d_and_d_reg():
  steps = adaptive()
  start = initial().replace(augment_p=jnp.float32(0.5))
  after, aux = run('d', steps)(KEY, start, batch())
  assert float(after.augment_p) == 0.5 and float(aux['augment_p']) == 0.5
  assert after.augment_signs[1] == 8
  assert float(aux['r_t']) == pytest.approx(float(after.augment_signs[0]) / 8)
  regular, _ = run('d_reg', steps)(KEY, after, batch())
  assert regular.augment_signs[1] == 16
  again, _ = run('d', steps)(KEY, regular, batch())
  assert abs(float(again.augment_p) - 0.5) == pytest.approx(2 * 8 / 1000)
  assert not again.augment_signs.any()
  for name in ('g', 'g_reg'):
    same, _ = run(name, steps)(KEY, after, batch())
    assert float(same.augment_p) == 0.5 and (same.augment_signs == after.augment_signs).all()


def test_a_fixed_p_stays():
  steps = adaptive(moves_of_p=schedule.MovesOfP(0.0, 1, 0.001))
  state = initial().replace(augment_p=jnp.float32(0.5))
  for _ in range(2):
    state, _ = run('d', steps)(KEY, state, batch())
  assert float(state.augment_p) == 0.5 and not state.augment_signs.any()


@pytest.mark.parametrize('name', ['g', 'd', 'd_reg'])
def test_at_p_0_a_step_is_the_one_without_augmentation(name):
  """And at p = 0.9 another one, of the same program."""
  steps = adaptive()
  plain, _ = test_steps.run(name)(KEY, initial(), batch())
  off, _ = run(name, steps)(KEY, initial(), batch())
  on, _ = run(name, steps)(KEY, initial().replace(augment_p=jnp.float32(0.9)), batch())
  net = name[0]
  for a, b in zip(jax.tree.leaves(getattr(plain, net)), jax.tree.leaves(getattr(off, net))):
    np.testing.assert_allclose(a, b, atol=1e-6)
  assert not test_steps.same(getattr(off, net), getattr(on, net))
  assert run(name, steps)._cache_size() == 1


def test_minibatches_and_phases_draw_their_own():
  steps = adaptive()
  key = jax.random.key(5)
  found = [steps.draw(key, batch())['augment'], steps.draw_reals(key, batch())['augment_reals']]
  found.append(steps.draw(jax.random.key(6), batch())['augment'])
  gates = np.stack([x['gate'].ravel() for x in found])
  assert len(np.unique(gates)) == gates.size
  assert not steps.draw_pl(key, batch()).keys() & {'augment', 'augment_reals'}


# ---- the configuration


def config(**fields):
  c = default.get_config()
  c.data.dir = '-'
  c.update_from_flattened_dict({name.replace('__', '.'): v for name, v in fields.items()})
  return c


def test_auto_is_bgc_for_few_pictures():
  c = config(augment__pipeline='auto')
  assert configurations.augmentation(c, 9_999) == augment.pipeline('bgc')
  assert configurations.augmentation(c, 10_000) is None
  assert build.steps(c, 0, None, images=200_000).augment is None
  c.augment.variant = {'rotate90': 0.0, 'imgfilter_bands': [1, 0, 1, 0]}
  found = configurations.augmentation(c, 100)
  assert found.rotate90 == 0 and found.hue == 1 and found.imgfilter_bands == (1, 0, 1, 0)


def test_p_rises_faster_after_init_from():
  assert build.moves_of_p(config(augment__pipeline='bgc')).kimg == 500
  assert build.moves_of_p(config(augment__pipeline='bgc', init_from='x')).kimg == 100
  assert build.moves_of_p(config(augment__pipeline='bgc', augment__kimg=20.0)).kimg == 20


@pytest.mark.parametrize(
  'fields, said',
  [
    ({'augment__pipeline': 'bgd'}, 'augment.pipeline=bgd is unknown; choose from auto, blit, geom'),
    ({'augment__p': 1.5}, r'augment.p=1.5 must lie in \[0, 1\]'),
    ({'augment__target': 1.0}, r'augment.target=1.0 must lie in \[0, 1\)'),
    ({'augment__target': -0.1}, r'augment.target=-0.1 must lie in \[0, 1\)'),
    ({'augment__kimg': -1.0}, 'augment.kimg=-1.0 must be a finite number'),
    ({'augment__interval': 0}, 'augment.interval=0 must be 1 or more'),
    ({'augment__target': 0.0}, 'does nothing with augment.p=0 and augment.target=0'),
    ({'augment__variant': {'rotat': 1.0}}, 'rotat is unknown; choose from xflip, rotate90'),
    ({'augment__variant': {'hue': 2.0}}, r'augment.variant.hue=2.0 must lie in \[0, 1\]'),
    ({'augment__variant': {'hue': 'no'}}, 'augment.variant.hue=no must lie in'),
    ({'augment__variant': {'scale_std': -1.0}}, r'scale_std=-1.0 must lie in \[0, 10\]; 0.2 is u'),
    ({'augment__variant': {'aniso_std': 1e300}}, r'aniso_std=1e\+300 must lie in \[0, 10\]; 0.2'),
    ({'augment__variant': {'noise_std': math.nan}}, r'noise_std=nan must lie in \[0, 10\]; 0.1'),
    ({'augment__variant': {'rotate_max': 1.5}}, r'rotate_max=1.5 must lie in \[0, 1\]; 1 is usual'),
    ({'augment__variant': {'hue': True}}, 'augment.variant.hue=True must lie in'),
    ({'augment__variant': {'hue': {'a': 1}}}, 'augment.variant.hue=a: 1 must lie in'),
    ({'augment__pipeline': 'noise', 'augment__variant': {'noise': 0.0}}, 'all strengths are 0'),
    ({'augment__pipeline': '', 'augment__p': 0.5}, 'augment.p=0.5 needs augment.pipeline'),
    ({'augment__variant': {'imgfilter_bands': (1, 1)}}, 'must be 4 numbers in'),
    ({'augment__pipeline': '', 'augment__variant': {'hue': 0.0}}, 'needs augment.pipeline'),
    ({'data__channels': 2}, 'data.channels=2 must be 1, 3 or 4; use bg'),
    (
      {'g__architecture': 'msg', 'd__architecture': 'msg'},
      'cannot augment what d.architecture=msg',
    ),
    ({'data__holdout': 1.0}, r'data.holdout=1.0 must lie in \[0, 1\)'),
  ],
)
def test_bad_fields_are_named_with_the_remedy(fields, said):
  with pytest.raises(UsageError, match=said):
    checks.check(config(**({'augment__pipeline': 'bgc'} | fields)))


def test_images_stay_finite_at_the_largest_ranges():
  fields = dataclasses.fields(augment.Augment)
  most = {x.name: augment.largest(x.name) for x in fields if x.name != 'imgfilter_bands'}
  assert most['xflip'] == most['hue_max'] == 1 and most['scale_std'] == most['cutout_size'] == 10
  checks.check(config(augment__pipeline='bgcfnc', augment__variant=most))
  pipe = dataclasses.replace(EVERYTHING, **most)
  x = images(64, 8, 8, 3)
  assert np.isfinite(apply(pipe)(x, draws(pipe, x), 1.0)).all()


def test_growing_networks_are_augmented_at_their_size():
  c = config(
    resolution=8, batch=4, g__architecture='revised', d__architecture='revised', g__z_dim=4,
    g__w_dim=4, g__mapping_layers=1, g__fmap_base=8, d__fmap_base=8, grow__start_res=4,
    augment__pipeline='bgc', augment__p=0.5,
  )  # fmt: skip
  checks.check(c)
  steps = build.steps(c, 0, None)
  assert steps.stage.level == 1
  images = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 4, 3), np.uint8)
  state, aux = jax.jit(steps.d)(
    KEY, build.init_state(c, steps, None), {'image': images, 'label': np.zeros((1, 4, 0), 'f')}
  )
  assert np.isfinite(float(aux['loss_d'])) and state.step == 1
