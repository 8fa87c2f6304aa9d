"""The four updates where the reference trajectories say nothing: draws, keys, halting."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from sg2jax import build, checks, losses, packing, schedule, state
from sg2jax import steps as steps_lib
from sg2jax.models.discriminator import Discriminator
from sg2jax.models.generator import Generator, Synthesis
from sg2jax.models.mapping import Mapping
from sg2jax.steps import TrainSteps
from sg2jax.update import apply_gradients, checked_names

pytestmark = pytest.mark.usefixtures('quick_compile')


@cache
def make(**changes):
  g = Generator(Mapping(4, 2, 4, 1), Synthesis((8, 4), 1, 8, 2))
  d = Discriminator((8, 4), 8, 2, c_dim=2, mapping_layers=1)
  tx = state.adam(0.01, 0.0, 0.99, 1e-8, 4)
  steps = TrainSteps(
    g,
    d,
    tx,
    tx,
    r1_gamma=1.0,
    r1_interval=16,
    pl_weight=2.0,
    pl_decay=0.01,
    pl_interval=4,
    pl_shrink=2,
    mixing_prob=0.9,
    ema_kimg=0.01,
    ema_rampup=0.05,
  )
  return dataclasses.replace(steps, **changes)


@jax.jit
def create(key):
  steps = make()
  return state.create_train_state(key, steps.generator, steps.discriminator, steps.g_tx, steps.d_tx)


@cache
def initial(seed=0):
  return create(jax.random.key(seed))


def batch(rounds=2, micro=4):
  images = np.random.default_rng(0).integers(0, 256, (rounds, micro, 8, 4, 1), np.uint8)
  labels = np.eye(2, dtype=np.float32)[np.arange(rounds * micro) % 2]
  return {'image': images, 'label': labels.reshape(rounds, micro, 2)}


@cache
def run(name, **changes):
  return jax.jit(getattr(make(**changes), name))


def same(a, b):
  return all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


KEY = jax.random.key(1)


# ---- optimizer


@pytest.mark.parametrize('interval', [0, 4, 16])
def test_adam_is_corrected_for_lazy_regularization(interval):
  """[S2 App. B]: lr c, beta^c with c = k/(k+1), written out."""
  lr, b1, b2, eps = 0.002, 0.5, 0.99, 1e-8
  c = interval / (interval + 1) if interval else 1
  tx, w, m, v = state.adam(lr, b1, b2, eps, interval), np.float64(1), 0, 0
  with jax.enable_x64(True):
    params, opt = jnp.asarray(w), tx.init(jnp.asarray(w))
    for t, grad in enumerate((0.3, -2.0, 0.7), 1):
      m, v = b1**c * m + (1 - b1**c) * grad, b2**c * v + (1 - b2**c) * grad**2
      w = w - lr * c * (m / (1 - b1 ** (c * t))) / (np.sqrt(v / (1 - b2 ** (c * t))) + eps)
      update, opt = tx.update(jnp.asarray(grad), opt)
      params = params + update
    assert float(params) == pytest.approx(w, rel=1e-12)


def test_spec_rates_of_lr_002():
  """Section 3 of the specification, from lr .002 and beta2 .99."""
  g, d = schedule.lazy_correction(4), schedule.lazy_correction(16)
  assert (0.002 * g, 0.99**g) == pytest.approx((0.0016, 0.991992), rel=1e-6)
  assert (0.002 * d, 0.99**d) == pytest.approx((0.00188235, 0.990585), rel=1e-5)


def test_a_net_and_its_regularizer_share_one_optimizer_state():
  s, _ = run('g')(KEY, initial(), batch())
  s, _ = run('g_reg')(KEY, s, batch())
  assert int(s.g_opt[0].count) == 2 and int(s.d_opt[0].count) == 0


@pytest.mark.smoke
def test_phases_of_a_minibatch():
  steps = make()
  assert steps.phases(0) == ['g', 'g_reg', 'd', 'd_reg'] and steps.phases(1) == ['g', 'd']
  assert steps.phases(4) == ['g', 'g_reg', 'd'] and steps.phases(32) == ['g', 'g_reg', 'd', 'd_reg']
  assert make(pl_interval=0, r1_interval=0).phases(0) == ['g', 'd']


# ---- EMA and clock


def test_ema_follows_the_global_batch_and_the_clock_before_it():
  for nimg, half_life in ((1000, 10), (100, 5)):  # ema_kimg * 1000; nimg * ema_rampup
    start = initial().replace(
      g_ema=jax.tree.map(jnp.zeros_like, initial().g), nimg=jnp.asarray(nimg, jnp.int32)
    )
    s, _ = run('d')(KEY, start, batch())
    beta = 0.5 ** (8 / half_life)  # 2 rounds of 4 images
    for e, p in zip(jax.tree.leaves(s.g_ema), jax.tree.leaves(start.g), strict=True):
      np.testing.assert_allclose(e, (1 - beta) * p, rtol=1e-5)
    assert (int(s.nimg), int(s.step)) == (nimg + 8, 1)


def test_ema_with_ramp_starts_as_a_copy():
  assert float(schedule.ema_beta(0, 64, 20, 0.05)) == 0
  assert float(schedule.ema_beta(10**6, 64, 20, 0.05)) == pytest.approx(0.5 ** (64 / 20000))


# ---- draws


def draws(step=0, phase='g', rounds=2, micro=4, **changes):
  steps = make(**changes)
  key = steps_lib._phase_key(KEY, initial().replace(step=step), phase)
  return (steps.draw_pl if phase == 'g_reg' else steps.draw)(key, batch(rounds, micro))


def test_no_key_is_used_twice():
  """Latents of two minibatches and three phases all differ, and so do the noise keys of rounds."""
  drawn = [draws(step, phase) for step in (0, 1) for phase in ('g', 'g_reg', 'd')]
  latents = np.concatenate([np.reshape(z, (-1, 4)) for x in drawn for z in (x['z'], x['mix']['z'])])
  assert len(np.unique(latents.round(5), axis=0)) == len(latents) == 2 * 2 * (8 + 4 + 8)
  keys = np.concatenate([jax.random.key_data(x['noise']) for x in drawn])
  assert len(np.unique(keys, axis=0)) == len(keys) == 12


def test_phases_and_steps_have_their_own_keys():
  state_1 = initial().replace(step=jnp.asarray(1, jnp.int32))
  w_avgs = [
    run(name)(KEY, s, batch())[0].w_avg for name in ('g', 'd') for s in (initial(), state_1)
  ]
  assert len({np.asarray(w).tobytes() for w in w_avgs}) == 4
  assert same(run('g')(KEY, initial(), batch()), run('g')(KEY, initial(), batch()))


def test_draws_do_not_depend_on_the_number_of_rounds():
  one, two = draws(rounds=1, micro=8), draws(rounds=2, micro=4)
  for name in ('z', 'c'):
    np.testing.assert_array_equal(one[name].reshape(8, -1), two[name].reshape(8, -1))
  np.testing.assert_array_equal(one['mix']['cutoff'].ravel(), two['mix']['cutoff'].ravel())


def test_style_mixing():
  cutoffs = np.ravel(draws(micro=2048)['mix']['cutoff'])
  num_ws = make().generator.synthesis.num_ws
  assert set(cutoffs) == {1, 2, 3, num_ws} and abs((cutoffs == num_ws).mean() - 0.1) < 0.02
  assert abs((cutoffs == 1).mean() - 0.3) < 0.03
  assert 'mix' not in draws(mixing_prob=0)
  steps, s, z = make(), initial(), jnp.ones((2, 4))
  mix = {'z': -z, 'cutoff': jnp.array([1, num_ws])}
  ws, w_avg = steps._ws(s.g, s.w_avg, z, jnp.eye(2), mix)
  plain, plain_avg = steps._ws(s.g, s.w_avg, z, jnp.eye(2), None)
  other, _ = steps._ws(s.g, s.w_avg, -z, jnp.eye(2), None)
  np.testing.assert_allclose(ws[0], np.concatenate([plain[0, :1], other[0, 1:]]), rtol=1e-6)
  np.testing.assert_allclose(ws[1], plain[1], rtol=1e-6)
  np.testing.assert_array_equal(w_avg, plain_avg)  # follows the first latents only


def test_path_length_uses_part_of_each_microbatch():
  x = draws(phase='g_reg')
  assert x['z'].shape == (2, 2, 4) and x['pl'].shape == (2, 2, 8, 4, 1)
  np.testing.assert_array_equal(x['c'], batch()['label'][:, :2])


# ---- losses


def test_path_noise_is_divided_by_the_pixels_only():
  """Of a linear generator: img[n] = sum_l ws[n,l] . A_l, N = 3, 2x5 pixels, 2 channels."""
  rng = np.random.default_rng(0)
  a, ws, noise = (
    rng.normal(size=(4, 6, 2, 5, 2)),
    rng.normal(size=(3, 4, 6)),
    rng.normal(size=(3, 2, 5, 2)),
  )
  lengths = losses.path_lengths(lambda ws: jnp.einsum('nlk,lkhwc->nhwc', ws, a), ws, noise)
  jacobian = np.einsum('lkhwc,nhwc->nlk', a, noise) / np.sqrt(2 * 5)
  np.testing.assert_allclose(lengths, np.sqrt((jacobian**2).sum(2).mean(1)), rtol=1e-5)


def test_gradient_flows_through_the_mean_path_length():
  def penalty(length):
    return losses.path_length_penalty(length * jnp.ones(2), 1.0, decay=0.25)[0].sum()

  # (0.75 (length - 1))^2, twice
  assert float(jax.grad(penalty)(3.0)) == pytest.approx(2 * 2 * 2 * 0.75**2, rel=1e-6)


def test_r1_is_a_sum_over_pixels():
  w = jnp.arange(12.0).reshape(2, 3, 2)
  penalty, logits = losses.r1_penalty(
    lambda x: jnp.sum(x * w, axis=(1, 2, 3))[:, None], jnp.ones((5, 2, 3, 2))
  )
  np.testing.assert_allclose(penalty, np.full(5, (np.arange(12) ** 2).sum()))
  np.testing.assert_allclose(logits, np.full((5, 1), 66))


# ---- what each step may change


@pytest.mark.parametrize(
  'name, changes',
  [
    ('g', {'g', 'g_opt', 'w_avg'}),
    ('g_reg', {'g', 'g_opt', 'w_avg', 'pl_mean'}),
    ('d', {'d', 'd_opt', 'w_avg', 'step', 'nimg', 'g_ema'}),
    ('d_reg', {'d', 'd_opt'}),
  ],
)
def test_fields_that_a_step_changes(name, changes):
  start = initial().replace(g_ema=jax.tree.map(lambda p: 2 * p + 1, initial().g))
  after, aux = run(name)(KEY, start, batch())
  fields = {f.name for f in dataclasses.fields(start)}
  assert {f for f in fields if not same(getattr(start, f), getattr(after, f))} == changes
  assert all(np.isfinite(v).all() for v in aux.values())
  assert {k for k, v in aux.items() if np.ndim(v)} == {f'grad_squares_{name}'}


def test_arrays_are_packed_and_summed_each_for_itself():
  draw = np.random.default_rng(0).normal
  shapes = {'a': (5,), 'b': {'w': (3, 3, 513), 'x': ()}, 'c': (2, packing.WIDTH), 'd': (7, 11)}
  tree = jax.tree.map(lambda s: draw(size=s), shapes, is_leaf=lambda s: isinstance(s, tuple))
  tree['c'][1, 5] = np.inf
  tree['d'][0, 0] = np.nan
  with jax.enable_x64(True):
    packed = packing.pack(tree)
    assert packed.rows.shape == (5 + 2 + 1, packing.WIDTH)
    assert same(packing.unpack(packed)['b'], tree['b']) and same(packed.rows[5:7], tree['c'])
    expected = [(x**2).sum() for x in jax.tree.leaves(tree)]
    np.testing.assert_allclose(packing.sums(packed, jnp.square), expected, rtol=1e-12)
    np.testing.assert_allclose(packing.sums(tree, jnp.square), expected, rtol=1e-12)


@pytest.mark.parametrize('name', ['g', 'd'])
def test_packed_states_train_as_others(name):
  start = initial().replace(g_ema=jax.tree.map(lambda p: 2 * p + 1, initial().g))
  frozen = {'frozen': (('b8', 'conv0'),)}
  after, aux = run(name, **frozen)(KEY, start, batch())
  packed, packed_aux = run(name, **frozen)(KEY, state.pack_state(start), batch())
  arrays = jax.tree.leaves(packed)
  assert len(arrays) < 20 and packed.d.rows.shape[1] == packing.WIDTH
  assert checked_names(name, packed, packed_aux) == checked_names(name, after, aux)
  for x, y in zip(
    jax.tree.leaves((state.unpack_state(packed), packed_aux)),
    jax.tree.leaves((after, aux)),
    strict=True,
  ):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
  kept = after.d['b8']['conv0'], state.unpack_state(packed).d['b8']['conv0']
  assert all(same(x, start.d['b8']['conv0']) for x in kept)


def test_repeated_images_change_no_path_length():
  """As sharding.spread repeats them; the noise of the first must be theirs as before."""
  after, aux = run('g_reg')(KEY, initial(), batch())
  twice, twice_aux = run('g_reg', spread=lambda x: jnp.concatenate([x, x]))(KEY, initial(), batch())
  for x, y in zip(jax.tree.leaves((twice, twice_aux)), jax.tree.leaves((after, aux)), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_d_reg_draws_nothing():
  assert same(
    run('d_reg')(KEY, initial(), batch()), run('d_reg')(jax.random.key(7), initial(), batch())
  )


def test_reals_and_fakes_keep_their_own_labels():
  steps, s, b = make(noise_mode='const', mixing_prob=0), initial(), batch(1, 4)
  x = steps.draw(KEY, b)
  reals, update = b['image'] / 127.5 - 1, jax.jit(steps.d_update)
  swapped = b['label'][..., ::-1]
  _, first = update(s, x, reals, b['label'])
  _, other_reals = update(s, x, reals, swapped)
  _, other_fakes = update(s, x | {'c': swapped}, reals, b['label'])
  assert (
    first['loss_d_fake'] == other_reals['loss_d_fake']
    and first['loss_d_real'] != other_reals['loss_d_real']
  )
  assert (
    first['loss_d_real'] == other_fakes['loss_d_real']
    and first['loss_d_fake'] != other_fakes['loss_d_fake']
  )


def test_gradients_of_rounds_are_summed():
  """As in the reference: two rounds of the same images give twice the gradient, not a mean."""
  one = batch(1, 4)
  two = {k: np.concatenate([v, v]) for k, v in one.items()}
  norms = [run('d_reg')(KEY, initial(), b)[1]['grad_norm_d_reg'] for b in (one, two)]
  assert float(norms[1] / norms[0]) == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize('name', ['g', 'g_reg', 'd', 'd_reg'])
def test_a_step_with_a_gradient_that_is_not_finite_changes_no_weight(name):
  broken = jax.tree.map(lambda x: x, initial())
  net = 'g' if name[0] == 'g' else 'd'
  if net == 'g':
    broken.g['mapping']['fc0']['weight'] = (
      broken.g['mapping']['fc0']['weight'].at[0, 0].set(jnp.nan)
    )
  else:
    broken.d['b4']['fc']['weight'] = broken.d['b4']['fc']['weight'].at[0, 0].set(jnp.inf)
  after, aux = run(name)(KEY, broken, batch())
  assert not np.isfinite(aux[f'grad_norm_{name}'])
  for field in (net, f'{net}_opt', 'w_avg', 'pl_mean'):
    for x, y in zip(
      jax.tree.leaves(getattr(after, field)), jax.tree.leaves(getattr(broken, field)), strict=True
    ):
      np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('is_packed', [False, True])
def test_an_update_that_overflows_halts_before_it_is_applied(is_packed):
  """Its loss and gradients are finite: only the minibatch after it would tell."""
  params = {'a': {'w': jnp.ones(3)}, 'b': {'w': jnp.ones(2)}}
  grads = {'a': {'w': jnp.zeros(3)}, 'b': {'w': jnp.full(2, 0.1)}}

  def update(lr, check=True):
    tx = state.adam(lr, 0.0, 0.99, 1e-8, 4)
    before = initial().replace(d=params, d_opt=tx.init(params))
    if is_packed:
      before = state.pack_state(before)
    return before, *apply_gradients(
      'd', tx, before, grads, {'objective': jnp.float32(1)}, 1.0, check, pl_mean=jnp.float32(3)
    )

  before, after, aux = update(1e39)
  assert same(after.replace(fault=before.fault), before) and np.isfinite(aux['grad_norm_d'])
  assert after.fault.tolist()[:2] == [0, 2]
  # 0 times infinity
  assert checked_names('d', after, aux)[after.fault[2]] == 'd.a.w after the update'
  for check in (True, False):
    before, after, _ = update(1e9, check)
    assert after.fault.tolist() == [-1, -1, -1] and not same(after.d, before.d)


@pytest.mark.parametrize(
  'fields, checked',
  [
    ({}, False),
    ({'opt.g_lr': 1.0, 'opt.eps': 1e-12}, False),
    ({'opt.d_lr': 1e39}, True),
    ({'opt.g_lr': 1e39}, True),
    ({'opt.eps': 1e-60}, True),
    ({'opt.beta2': 1 - 1e-9}, True),
    (
      {
        'grow.start_res': 8,
        'grow.lr': ((8, 1e39),),
        'g.architecture': 'revised',
        'd.architecture': 'revised',
      },
      True,
    ),
  ],
)
def test_updates_are_checked_where_they_can_overflow(fields, checked):
  config = default.get_config()
  config.update_from_flattened_dict({'data.dir': '-', 'resolution': 16} | fields)
  checks.check(config)
  assert build.steps(config, 0, None).check_updates == checked


# ---- initial state


def test_initial_state():
  s = initial()
  assert same(s.g_ema, s.g) and s.g_ema is not s.g
  assert int(s.step) == int(s.nimg) == 0 and not np.any(s.w_avg) and float(s.pl_mean) == 0
  assert all(
    x.dtype == jnp.float32
    for x in jax.tree.leaves((s.g, s.d, s.g_ema, s.noise, s.w_avg, s.pl_mean))
  )
  other = initial(5)
  assert not np.array_equal(s.g['synthesis']['b4']['const'], other.g['synthesis']['b4']['const'])
  assert not np.array_equal(s.d['b4']['fc']['weight'], other.d['b4']['fc']['weight'])
