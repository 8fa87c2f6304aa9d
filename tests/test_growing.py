"""Growing and MSG-GAN, where the reference vectors say nothing."""

import dataclasses
from functools import partial
import json
import math
import re
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import paper
from sg2jax import build, data, losses, resample, schedule, state
from sg2jax.models.discriminator import Discriminator
from sg2jax.models.generator import Generator, Synthesis
from sg2jax.models.mapping import Mapping
from sg2jax.steps import Averages
from tests.runs import content, finish, log, start
from tests.test_configs import LADDER
from tests.test_models import variables


def nets(architecture, resolution=(8, 8)):
  """Generator, discriminator and variables of both, as test_models.variables makes them."""
  g = Generator(Mapping(8, 0, 8, 1), Synthesis(resolution, 3, 32, 8, architecture))
  d = Discriminator(resolution, 32, 8, architecture=architecture)
  return g, d, variables(g), variables(d)


# ---- fades


@pytest.mark.parametrize(
  'architecture, resolution',
  [
    ('revised', (6, 8)),
    ('stylegan1', (6, 8)),
    pytest.param('revised', (16, 16), marks=pytest.mark.slow),
    pytest.param('stylegan1', (12, 16), marks=pytest.mark.slow),
  ],
)
def test_alpha_0_and_1_continue_the_stages_below_and_above(quick_compile, architecture, resolution):
  g, d, vg, vd = nets(architecture, resolution)
  draws = np.random.default_rng(1)
  ws = draws.normal(size=(4, g.synthesis.num_ws, 8)).astype(np.float32)
  images = draws.normal(size=(4, *resolution, 3)).astype(np.float32)

  @partial(jax.jit, static_argnums=2)
  def made_and_judged(images, alpha, stage):
    img = g.apply(vg, ws, 'const', stage, alpha, method='synthesize')
    return img, d.apply(vd, images, None, alpha)

  last = g.synthesis.num_ws // 2 - 1
  for stage in range(last + 1):
    whole, logits = made_and_judged(images, 1.0, stage)
    assert whole.shape == (4, resolution[0] >> stage, resolution[1] >> stage, 3) == images.shape
    # Nothing is left of the stage below. Step by step: XLA may fuse the two programs differently.
    step_by_step = made_and_judged.__wrapped__
    without_alpha = step_by_step(images, None, stage)
    for with_alpha, without in zip(step_by_step(images, 1.0, stage), without_alpha):
      np.testing.assert_array_equal(with_alpha, without)
    if stage == last:
      break
    half = resample.half(images)
    below, below_logits = made_and_judged(half, 1.0, stage + 1)
    faint, faint_logits = made_and_judged(images, 0.0, stage)
    assert jnp.abs(faint - resample.nearest(below)).max() < 1e-5
    assert jnp.abs(faint_logits - below_logits).max() < 1e-5
    # linear in between
    middle, _ = made_and_judged(images, 0.5, stage)
    assert jnp.abs(middle - (whole + faint) / 2).max() < 1e-5
    assert jnp.abs(whole - faint).max() > 0.01 and jnp.abs(logits - faint_logits).max() > 1e-4
    images = half


def test_a_stage_that_is_not_there_is_an_error():
  for architecture, stage, said in (('skip', 1, 'revised'), ('revised', 3, '3 resolutions')):
    with pytest.raises(ValueError, match=said):
      Synthesis((16, 16), 3, 32, 8, architecture).apply({}, jnp.zeros((1, 6, 8)), 'const', stage)
  for size, said in ((8, 'stage=1'), (10, '10x10')):
    with pytest.raises(ValueError, match=said):
      Discriminator((16, 16), 32, 8, architecture='skip').apply({}, jnp.zeros((4, size, size, 3)))


def config(cell='d', **fields):
  """A tiny paper configuration; levels of detail 2 -> 0 from 4 px."""
  c = paper.get_config(cell)
  c.update_from_flattened_dict(
    {
      'resolution': 16,
      'batch': 4,
      'data.dir': '-',
      'g.fmap_base': 32,
      'd.fmap_base': 32,
      'g.fmap_max': 8,
      'd.fmap_max': 8,
      'g.z_dim': 8,
      'g.w_dim': 8,
      'g.mapping_layers': 1,
    }
    | fields
  )
  if c.grow.start_res:
    c.grow.start_res, c.grow.batch, c.grow.hold_kimg, c.grow.fade_kimg = 4, (), 0.064, 0.064
  return c


@pytest.mark.slow
def test_what_is_not_there_yet_stays_as_it_was(quick_compile):
  """Inactive weights and their Adam moments are bit-equal after a step of both networks, in the
  middle of a fade.
  """
  c = config()
  stage = build.growth(c).stage(96)
  steps = build.steps(c, 0, None, stage)
  before = build.init_state(c, steps, None).replace(step=jnp.int32(24), nimg=jnp.int32(96))
  assert stage.level == 1 and float(steps.alpha(before)) == 0.5
  after, batch = (
    before,
    {
      'image': np.random.default_rng(0).integers(0, 256, (1, 4, 8, 8, 3), np.uint8),
      'label': np.zeros((1, 4, 0), np.float32),
    },
  )
  for name in ('g', 'd'):
    after, _ = jax.jit(getattr(steps, name))(jax.random.key(0), after, batch)

  def moved(old, new):
    leaves = zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new))
    return {
      jax.tree_util.keystr(path, simple=True, separator='/')
      for (path, x), y in leaves
      if (x != y).any()
    }

  for field in ('g', 'd', 'g_opt', 'd_opt'):
    names = moved(getattr(before, field), getattr(after, field))
    assert not any('b16' in name for name in names), names
    assert any('b8' in name for name in names) and any('b4' in name for name in names)
  assert 'b16' in before.d and 'b16' in before.g['synthesis']


def test_gradients_are_those_of_full_size_images(quick_compile):
  """R1 and path lengths at a stage are those of images enlarged to full size."""
  g, d, vg, vd = nets('revised')
  draws = np.random.default_rng(2)
  small = draws.normal(size=(4, 4, 4, 3)).astype(np.float32)
  ws = draws.normal(size=(4, 4, 8)).astype(np.float32)
  noise = draws.normal(size=(4, 8, 8, 3)).astype(np.float32)
  native = noise.reshape(4, 4, 2, 4, 2, 3).sum((2, 4)) / 2
  steps = dataclasses.replace(
    build.steps(config(), 0, None),
    discriminator=d,
    growth=schedule.Growth(8, 1, 0.1, 0.1, 4, 1e-3, 1e-3),
    stage=schedule.GrowthStage(1),
  )
  clock = types.SimpleNamespace(step=jnp.int32(0), nimg=jnp.int32(0), pl_mean=jnp.zeros(()))

  def synthesize(factor, ws):
    img = g.apply(vg, ws, 'const', 1, 1.0, method='synthesize')
    return resample.nearest(img, factor)

  def judge(img):
    return d.apply(vd, resample.half(img), None, 1.0)

  @jax.jit
  def all_values(small, ws, noise, native):
    averages = Averages(None, None, jnp.zeros(2))
    _, (_, aux) = steps._r1_loss(clock, vd['params'], averages, {'reals': small, 'real_c': None})
    penalty, _ = losses.r1_penalty(judge, resample.nearest(small))
    lengths = [
      losses.path_lengths(partial(synthesize, factor), ws, y)
      for factor, y in ((2, noise), (1, native))
    ]
    return penalty.mean(), aux['r1'], *lengths

  penalty, ours, lengths, our_lengths = all_values(small, ws, noise, native)
  np.testing.assert_allclose(penalty, ours, rtol=1e-4)
  np.testing.assert_allclose(lengths, our_lengths, rtol=1e-4)


# ---- schedule


@pytest.mark.parametrize('hold, fade', [(0.1, 0.3), (0.0165, 0.2), (0.2, 0.0), (0.0, 0.2)])
def test_alpha_follows_the_level_of_detail_and_is_looked_at_every_few_minibatches(hold, fade):
  growth = schedule.Growth(64, 3, hold, fade, 5, 1e-3, 1e-3, repeats=4)
  for step in range(0, 400):
    seen = step // 4 * 4 * 5
    stage = growth.stage(seen)
    alpha = growth.alpha(stage, jnp.int32(step), jnp.int32(5 * step))
    assert float(alpha) == pytest.approx(1 - (growth.lod(seen) - stage.level), abs=1e-6)
  assert growth.stage(0).level == 3 and growth.stage(10**6).level == 0
  first = next(nimg for nimg in range(1000) if growth.stage(nimg).level == 2)
  assert first == (200 if not fade else math.floor(1000 * hold) + 1)


def test_stage_and_last_check_of_a_run_between_two_checks():
  growth = schedule.Growth(64, 3, 0.1, 0.3, 5, 1e-3, 1e-3, batches=((8, 40), (16, 20)), repeats=4)
  nimg = seen = 0
  for step in range(200):
    if step % 4 == 0:
      seen = nimg
    stage = growth.current_stage(step, nimg)
    assert stage == growth.stage(seen) and growth.last_check(stage, step, nimg) == seen
    nimg += growth.stage(seen).batch
  assert growth.stage(seen).level == 0


def test_learning_rate_ramp(quick_compile):
  # at 4 px D is its last block alone
  c = config('e', **{'resolution': 4, 'opt.lr_rampup_kimg': 0.1, 'opt.beta2': 0.0})
  steps = build.steps(c, 0, None)
  shapes = build.abstract_state(c, 0)
  draws = np.random.default_rng(0)
  begin = jax.tree.map(lambda x: draws.normal(size=x.shape).astype(x.dtype), shapes)
  begin = begin.replace(step=jnp.int32(0), pl_mean=jnp.float32(0), fault=state.NO_FAULT)
  begin = state.reset_adam(begin)
  batch = {'image': np.zeros((1, 4, 4, 4, 3), np.uint8), 'label': np.zeros((1, 4, 0), np.float32)}
  run = jax.jit(steps.d)

  def change(nimg):
    after, _ = run(jax.random.key(0), begin.replace(nimg=jnp.int32(nimg)), batch)
    return float(jnp.abs(after.d['b4']['fc']['weight'] - begin.d['b4']['fc']['weight']).max())

  assert change(0) == 0
  assert change(50) == pytest.approx(change(100) / 2, rel=1e-2)
  assert change(100) == change(10**6)


# ---- MSG-GAN


@pytest.mark.slow
def test_msg_judges_every_resolution(quick_compile):
  g, d, vg, vd = nets('msg', (16, 16))
  ws = jax.random.normal(jax.random.key(1), (4, g.synthesis.num_ws, 8))
  images = g.apply(vg, ws, 'const', method='synthesize')
  assert [x.shape for x in images] == [(4, s, s, 3) for s in (4, 8, 16)]
  assert g.apply(vg, jnp.ones((4, 8)), jnp.zeros((4, 0)), noise_mode='const').shape == (
    4,
    16,
    16,
    3,
  )
  grads = jax.jit(jax.grad(lambda images: d.apply(vd, images).sum()))(images)
  assert all((jnp.abs(x) > 0).mean() > 0.9 for x in grads)
  real = images[-1]
  np.testing.assert_array_equal(
    d.apply(vd, real), d.apply(vd, (resample.half(resample.half(real)), resample.half(real), real))
  )

  def judged(params):
    return d.apply(vd, g.apply({**vg, 'params': params}, ws, 'const', method='synthesize')).sum()

  grads = jax.jit(jax.grad(judged))(vg['params'])
  # images are independent: each torgb is judged by itself
  for block in grads['synthesis'].values():
    assert jnp.abs(block['torgb']['weight']).max() > 0


# ---- data


def test_shrunk_source(tmp_path, monkeypatch):
  source = data.load('digits', str(tmp_path), (16, 16), 1, True)
  small = data.Shrunk(source, 4)
  assert small.shape == (4, 4, 1) and len(small) == len(source)
  image = source[7]['image'].astype(int)
  mean = np.array(
    [[image[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean() for j in range(4)] for i in range(4)]
  )
  for _ in range(2):  # the second comes from memory
    np.testing.assert_array_equal(small[7]['image'][..., 0], np.rint(mean))
    np.testing.assert_array_equal(small[7]['label'], source[7]['label'])
  assert (
    np.rint(2.5) == 2
    and data.shrink(np.full((2, 2, 1), 2, np.uint8) + np.uint8([[[0], [1]], [[0], [1]]]), 2) == 2
  )
  stream = data.batches(small, batch=4, microbatch=4, seed=0, mirror=False, nimg=9)
  whole = data.batches(source, batch=4, microbatch=4, seed=0, mirror=False, nimg=9)
  np.testing.assert_array_equal(next(stream)['image'], data.shrink(next(whole)['image'], 4))
  monkeypatch.setattr(data.Shrunk, 'MAX_BYTES', 10)
  frugal = data.Shrunk(source, 4)
  assert frugal[7]['image'].shape == (4, 4, 1) and not frugal._cache


# ---- runs

GROW = {
  'data.name': 'digits',
  'data.channels': 1,
  'data.mirror': False,
  'grow.start_res': 4,
  'grow.hold_kimg': 0.032,
  'grow.fade_kimg': 0.128,
  'resolution': 16,
  'grow.batch': '((4,8),)',
  'total_kimg': 0.352,
  'tick_kimg': 0.032,
}


def test_run_grows_through_a_fade(home, tmp_path):
  # without R1, whose second derivatives compile for longer than all else
  fields = GROW | {'resolution': 8, 'total_kimg': 0.192, 'loss.r1_gamma': 0.0, 'swd_images': 0}
  fields['data.holdout'] = 0.1  # whose pictures D sees at the size of the stage
  out, _ = finish(start(home, tmp_path, 'paper.py:a', **fields))
  assert [f'{s}x{s}x1, batch 8: compiled' in out for s in (4, 8)] == [True] * 2
  lines = log(tmp_path)
  assert [line['lod'] for line in lines[1:]] == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0])
  assert all({'nearest', 'logits_heldout'} <= line.keys() for line in lines[:1] + lines[2:])


@pytest.mark.slow
def test_run_interrupted_in_mid_fade_ends_with_the_same_bytes(home, tmp_path):
  """4 -> 8 -> 16 px; SIGTERM and kill -9 in the first fade; Adam starts afresh at each end of a
  fade.
  """
  out, _ = finish(start(home, tmp_path / 'whole', 'paper.py:a', **GROW))
  assert [f'{s}x{s}x1, batch 8: compiled' in out for s in (4, 8, 16)] == [True] * 3
  assert [line['lod'] for line in log(tmp_path / 'whole')[1:]] == pytest.approx(
    [2, 1.75, 1.5, 1.25, 1, 1, 0.75, 0.5, 0.25, 0, 0]
  )
  process = start(home, tmp_path / 'run', 'paper.py:a', **GROW)
  while 'lod 1.75' not in process.stdout.readline():
    assert process.poll() is None
  process.send_signal(signal.SIGTERM)
  _, err = finish(process, 75)
  assert 'saved step' in err
  process = start(home, tmp_path / 'run', 'paper.py:a', **GROW)
  while 'lod 1.25' not in process.stdout.readline():
    assert process.poll() is None
  process.kill()
  process.communicate()
  out, _ = finish(start(home, tmp_path / 'run', 'paper.py:a', **GROW))
  resumed = int(re.search(r'resuming at step (\d+)', out)[1])
  # in the fade; saves run beside the training, so the newest may have been lost
  assert 8 <= resumed <= 16
  assert content(tmp_path / 'run', 44) == content(tmp_path / 'whole', 44)
  assert log(tmp_path / 'run') == log(tmp_path / 'whole')
  from sg2jax.training import checkpoint

  end, _ = checkpoint.load(tmp_path / 'run')
  counts = [x for x in jax.tree.leaves((end['g_opt'], end['d_opt'])) if np.ndim(x) == 0]
  assert list(map(int, counts)) == [4, 4]  # since the last reset, at step 40


def test_reset_adam():
  s = build.abstract_state(config('e', resolution=4), 0)
  s = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), s).replace(fault=state.NO_FAULT)
  fresh = state.reset_adam(s)
  assert not any(np.any(x) for x in jax.tree.leaves((fresh.g_opt, fresh.d_opt)))
  assert all(
    np.all(x == 1)
    for x in jax.tree.leaves((fresh.g, fresh.d, fresh.g_ema, fresh.w_avg, fresh.step))
  )


@pytest.mark.slow
@pytest.mark.parametrize('cell', LADDER)
def test_every_configuration_trains_saves_and_resumes(home, tmp_path, cell):
  """64 minibatches at 32 px on the digits, stopped at 32 by total_kimg and resumed."""
  grow = (
    {}
    if cell not in 'abcd'
    else {'grow.hold_kimg': 0.128, 'grow.fade_kimg': 0.128, 'resolution': 16, 'grow.batch': '()'}
  )
  fields = {
    'resolution': 32,
    'data.name': 'digits',
    'data.channels': 1,
    'data.mirror': False,
    'batch': 8,
    'tick_kimg': 0.128,
    'snapshot_kimg': 0.256,
    **grow,
  }
  for kimg in (0.256, 0.512):
    out, _ = finish(start(home, tmp_path, f'paper.py:{cell}', **fields | {'total_kimg': kimg}))
  assert 'resuming at step 32' in out
  lines = log(tmp_path)
  assert lines[-1]['step'] == 64 and all(np.isfinite(v) for line in lines for v in line.values())
  assert {'loss_g', 'loss_d', 'r1', 'swd'} <= set().union(*lines)
  assert ('pl_length' in set().union(*lines)) == (cell not in 'abc')
  assert (
    json.loads((tmp_path / 'config.json').read_text())['g']['architecture']
    == paper.get_config(cell).g.architecture
  )
