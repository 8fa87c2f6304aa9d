"""Editing by text: what the reference vectors don't say. See cases_styleclip.py for the numbers."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from sg2jax import build, files, paths, sampler, sharding
from sg2jax.edit import (
  direction,
  global_directions,
  mapper,
  mapper_files,
  mapper_training,
  optimize,
  optimizers,
  text_losses,
)
from sg2jax.faults import CheckpointError, UsageError, WeightsError
from sg2jax.models import styles as style_space
from sg2jax.nets import clip
from tests.foreign_files import Tensor, save_legacy, save_zip
from tests.runs import on_devices
from tests.test_models import variables

pytestmark = pytest.mark.usefixtures('quick_compile')
SPEC = clip.Architecture(
  image_size=8,
  patch_size=4,
  vision_width=8,
  vision_layers=1,
  vision_heads=2,
  embed_dim=6,
  context_length=0,
  vocab_size=0,
  text_width=0,
  text_layers=0,
  text_heads=0,
)
TEXTS = np.random.RandomState(5).randn(3, 6).astype(np.float32)


def small_net():
  """A rectangular, grey network of 8x16 px, 6 ws of 8 numbers."""
  config = default.get_config()
  sizes = {'fmap_base': 32, 'fmap_max': 8, 'z_dim': 8, 'w_dim': 8, 'mapping_layers': 1}
  fields = {'data.dir': '-', 'resolution': (8, 16), 'data.channels': 1}
  config.update_from_flattened_dict(fields | {f'g.{name}': x for name, x in sizes.items()})
  generator, _ = build.networks(config, 0)
  found = variables(generator, channels=1)
  for block in found['params']['synthesis'].values():
    block['torgb']['weight'] *= 0.3  # most pixels within [-1,1]: beyond it there is no gradient
  state = {'step': 0, 'nimg': 0, 'g_ema': found['params'], 'noise': found['noise']}
  state['w_avg'] = np.zeros(8, np.float32)
  return sampler.from_state(paths.place('.'), config.to_dict() | {'c_dim': 0}, state)


def small_tower(view=clip.view):
  size = SPEC.image_size
  shapes = jax.eval_shape(
    clip.image_tower(SPEC).init, jax.random.key(0), jnp.zeros((1, size, size, 3))
  )
  draws = np.random.RandomState(1)
  visual = jax.tree.map(lambda x: draws.randn(*x.shape).astype(np.float32), shapes['params'])
  scale = np.float32(text_losses.LOGIT_SCALE)
  return text_losses.Tower({'visual': visual, 'logit_scale': scale}, SPEC, view)


@pytest.fixture(scope='module')
def net():
  return small_net()


@pytest.fixture(scope='module')
def tower():
  return small_tower()


@pytest.fixture(scope='module')
def ws():
  return np.random.RandomState(2).randn(3, 6, 8).astype(np.float32)


# ---- losses


def test_a_copy_has_a_loss_and_a_way_out_of_it():
  way = text_losses.text_direction(TEXTS[:2], TEXTS[1:])

  @jax.jit
  def loss(target):
    return text_losses.directional_loss(TEXTS, target, way).sum()

  value, grad = jax.value_and_grad(loss)(jnp.asarray(TEXTS))
  assert value == 3 and jnp.isfinite(grad).all()
  assert loss(TEXTS - 0.1 * grad) < 2.9


def test_raw_view_is_neither_clipped_nor_normalised():
  images = np.random.RandomState(0).randn(2, 8, 16, 1).astype(np.float32) * 2
  raw = clip.raw_view(images, 8)
  np.testing.assert_allclose(raw, images[:, :, 4:12].repeat(3, -1), rtol=1e-6)
  assert np.abs(clip.view(images, 8) - clip.normalize((raw + 1) / 2)).max() > 1


def test_adam_is_without_bias_to_the_last_digit():
  grad = jnp.full(3, 0.7)
  adam = optimizers.adam()
  moments = adam.init(grad)
  for _ in range(4):
    step, moments = adam.update(grad, moments)
    np.testing.assert_allclose(step, 1, rtol=5e-7)  # optax.scale_by_adam: 1.5e-5


def test_ranger_adapts_from_the_sixth_step_on():
  params = optax.LookaheadParams.init_synced(jnp.zeros(1))
  ranger = optimizers.ranger(0.5)
  state = ranger.init(params)
  for i in range(5):
    step, state = ranger.update(jnp.full(1, 1e-3), state, params)
    np.testing.assert_allclose(step.fast, -0.5e-3, rtol=1e-6, err_msg=f'step {i}')
  step, _ = ranger.update(jnp.full(1, 1e-3), state, params)
  assert abs(step.fast) > 5 * 0.5e-3


# ---- optimisation


@pytest.mark.parametrize('space', ['w', pytest.param('w+', marks=pytest.mark.slow), 's'])
def test_images_move_to_their_texts_alone_or_together(net, tower, ws, space):
  settings = optimize.Settings(steps=8, space=space)
  optimizer = optimize.Optimizer(net, ws, tower, TEXTS, settings)
  path = [optimizer.advance() for _ in range(settings.steps)]
  found = optimizer.result()
  losses = optimize.Losses(*map(np.stack, zip(*path)))  # [steps,N]
  assert losses.loss.shape == (8, 3) and not losses.l2[:2].any() and losses.l2[2].all()
  np.testing.assert_allclose(
    losses.loss, losses.clip_loss + settings.l2_lambda * losses.l2, rtol=1e-6
  )
  assert (found.clip_loss < losses.clip_loss[0] - 1e-4).all()
  # what is found is what the losses were of, before the last update and after it
  l2 = sum((x**2).sum(tuple(range(1, x.ndim))) for x in found.moves_before.values())
  np.testing.assert_allclose(l2, losses.l2[-1], rtol=1e-5)
  assert not np.array_equal(*(jax.tree.leaves(x)[0] for x in (found.moves, found.moves_before)))
  if space == 's':
    names = style_space.channels(net.generator, net.variables)
    assert set(found.moves) == set(global_directions.convolutions(names)) < set(names)
  else:
    assert found.moves['ws'].shape == (3, 1 if space == 'w' else 6, 8)
  # an image's neighbours and its place don't show, and it is what its Direction makes
  other = optimize.optimize(net, ws[[1, 1, 0]], tower, TEXTS[[1, 0, 2]], settings)
  for layer, x in found.moves.items():
    np.testing.assert_allclose(other.moves[layer][0], x[1], atol=1e-3)
  move = found.direction(net, 1, 'thick', text='a thick 7')
  again = net.images(ws[1:2], edit=move).astype(int)
  np.testing.assert_allclose(again, found.images[1:2], atol=1)
  before = found.direction(net, 1, 'thick', before=True)
  for layer, x in found.moves_before.items():
    moved = before.ws if layer == 'ws' else before.styles[layer]
    np.testing.assert_array_equal(moved, np.broadcast_to(x[1], moved.shape))


def test_random_views_are_of_the_same_picture(tower):
  key = jax.random.key(3)
  # a bright point, nothing, and a picture that is bright up to its edge
  images = np.zeros((3, 8, 8, 3), np.float32)
  images[0, 3, 5], images[2] = 1, 1
  views = np.asarray(jax.jit(text_losses.random_views, static_argnums=2)(key, images, 40))
  point, nothing, bright = np.moveaxis(views, 1, 0)  # [40,8,8,3] each
  assert nothing.std() == pytest.approx(text_losses.NOISE, rel=0.05)
  np.testing.assert_allclose(bright - nothing, 1, atol=1e-5)  # all have the same noise
  # the point stays about where it was, but never quite
  weights = (point - nothing).mean(-1)
  places = np.einsum('khw,hwd->kd', weights, np.stack(np.indices((8, 8)), -1))
  places /= weights.sum((1, 2))[:, None]
  assert np.abs(places - [3, 5]).max() < 0.08 * 8 + 0.15 * 1.5 + 0.5
  assert places.std(0).min() > 0.1

  @jax.jit
  def found(images):
    features = tower.features_of_views(images, key, 3)
    return features, tower.loss(images, TEXTS[:1], key, 3), tower.loss(images, TEXTS[:1])

  features, loss, plain = found(images)
  expected = np.mean([text_losses.clip_loss(x, TEXTS[:1]) for x in features], 0)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert np.abs(loss - plain).min() > 1e-4


def test_searches_by_random_views_are_deterministic_and_of_each_image(net, tower, ws):
  settings = optimize.Settings(steps=5, space='w', augmentations=2)
  found = optimize.optimize(net, ws, tower, TEXTS, settings)
  again = optimize.optimize(net, ws[[1, 1, 0]], tower, TEXTS[[1, 0, 0]], settings)
  np.testing.assert_allclose(again.moves['ws'][[2, 0]], found.moves['ws'][:2], atol=1e-3)
  for other in (settings._replace(augmentations=0), settings._replace(seed=1)):
    moves = optimize.optimize(net, ws, tower, TEXTS, other).moves['ws']
    assert np.abs(moves - found.moves['ws']).max() > 1e-2
  # at each step they are new ones
  path = optimize.Optimizer(net, ws, tower, TEXTS, settings._replace(lr=0))
  losses = np.stack([path.advance().clip_loss for _ in range(3)])
  assert losses.std(0).min() > 1e-5


# ---- mapper


def test_a_training_goes_on_and_is_applied(net, tower, ws):
  settings = mapper_training.Settings(levels=('medium',), latent_l2_lambda=0.1)
  whole = mapper_training.Training(net, tower, TEXTS[:1], settings)
  losses = [float(whole.advance(ws).loss) for _ in range(6)]
  assert losses[-1] < losses[0] - 1e-4
  parts = mapper_training.Training(net, tower, TEXTS[:1], settings)
  for i in range(6):
    if i == 3:
      saved = parts.state
      parts = mapper_training.Training(net, tower, TEXTS[:1], settings, saved)
    parts.advance(ws)
  jax.device_get(saved)  # still there
  trained = whole.trained()
  jax.tree.map(np.testing.assert_array_equal, trained.params, parts.trained().params)
  moves = trained.moves(net, ws)['ws']
  assert moves.shape == ws.shape and not moves[:, :4].any() and moves[:, 4:].all()
  np.testing.assert_allclose((moves**2).mean(), whole.advance(ws).l2, rtol=1e-5)


@pytest.mark.slow
def test_a_mapper_of_styles_is_trained(net, tower, ws):
  settings = mapper_training.Settings(space='s', optimizer='ranger', lr=50.0)
  training = mapper_training.Training(net, tower, TEXTS[:1], settings)
  losses = [float(training.advance(ws).loss) for _ in range(5)]
  assert losses[-1] < losses[0]
  moves = training.trained().moves(net, ws)
  l2 = sum((x**2).mean() for x in moves.values())
  np.testing.assert_allclose(l2, training.advance(ws).l2, rtol=1e-5)


def test_a_mapper_of_styles_leaves_torgb(net):
  names = style_space.channels(net.generator, net.variables)
  styles = {layer: np.ones((2, count), np.float32) for layer, count in names.items()}
  module = mapper.StyleMapper(tuple(names))
  shapes = jax.eval_shape(module.init, jax.random.key(0), styles)['params']
  params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
  moves = jax.eval_shape(module.apply, {'params': params}, styles)
  assert set(moves) == set(global_directions.convolutions(names)) < set(names)
  arrays = mapper.arrays(params)
  assert {name.split('.')[0] for name in arrays} == {
    f'mapper_{i}' for i, layer in enumerate(names) if layer in moves
  }
  found = mapper.of_arrays(arrays, 6, layers=tuple(names))
  assert found.module == module
  assert found.shapes() == {layer: (names[layer],) for layer in moves}
  jax.tree.map(np.testing.assert_array_equal, found.params, params)


def test_levels_that_a_network_lacks_are_named():
  usable = mapper.usable_levels
  assert usable(('coarse', 'medium', 'fine'), 18) == (('coarse', 'medium', 'fine'), [])
  levels, said = usable(('coarse', 'medium', 'fine'), 6)
  assert levels == ('coarse', 'medium') and len(said) == 2
  assert 'medium has 2 of its 4' in said[0] and 'fine has no layers' in said[1]
  for levels, match in (
    (('fine',), 'fine has no layers here: it begins at 8, of 8'),
    ((), 'levels=none: name one'),
    (('course',), 'the level course is unknown; choose from coarse'),
    (('all', 'fine'), 'all is one network'),
  ):
    with pytest.raises(UsageError, match=match):
      usable(levels, 8)


def test_a_level_without_layers_changes_nothing():
  module = mapper.LatentMapper(('coarse', 'fine'), 'layers')
  ws = jnp.ones((2, 8, 3))
  params = jax.jit(module.init)(jax.random.key(0), ws)['params']
  grads = jax.jit(jax.grad(lambda params: module.apply({'params': params}, ws).sum()))(params)
  assert not any(x.any() for x in jax.tree.leaves(grads['fine_mapping']))
  assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(grads['course_mapping']))


def test_arrays_of_a_mapper_are_checked():
  module = mapper.LatentMapper(('coarse',))
  example = jax.ShapeDtypeStruct((1, 8, 3), np.float32)
  params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 8, 3)))['params']
  arrays = mapper.arrays(params)
  weight = 'course_mapping.mapping.1.weight'
  np.testing.assert_array_equal(arrays[weight], params['course_mapping']['mapping.1']['weight'].T)
  jax.tree.map(np.testing.assert_array_equal, mapper.params(arrays, module, example), params)
  with pytest.raises(ValueError, match=r'mapping.1.weight has shape \[2, 2\], not \[3, 3\]'):
    mapper.params(arrays | {weight: np.zeros((2, 2))}, module, example)
  with pytest.raises(ValueError, match='fine_mapping.mapping.1.weight is unknown'):
    mapper.params(arrays | {'fine_mapping.mapping.1.weight': 0}, module, example)


def mapper_of(net, levels, normalized='features'):
  module = mapper.LatentMapper(levels, normalized)
  shape = (1, net.num_ws, net.generator.mapping.w_dim)
  params = jax.jit(module.init)(jax.random.key(0), jnp.zeros(shape))['params']
  return mapper.Mapper(module, jax.device_get(params), net.num_ws)


def checkpoint(arrays, num_ws, save=save_zip, **other):
  """A file of StyleCLIP's program; num_ws: of the generator in it."""
  state = {f'mapper.{name}': Tensor(x) for name, x in arrays.items()}
  for i in range(num_ws - 2):
    state[f'decoder.convs.{i}.conv.weight'] = Tensor(np.zeros((1, 2, 2, 3, 3), np.float32))
  opts = {'description': 'a thick 7', 'lr': 0.5, 'no_fine_mapper': True, 'latents': None}
  return save({'state_dict': collections.OrderedDict(state), 'opts': opts} | other)


@pytest.mark.parametrize('save', [save_zip, save_legacy])
def test_published_mappers_are_read(net, ws, tmp_path, save):
  theirs = mapper_of(net, ('coarse', 'medium'), 'layers')
  path = tmp_path / 'thick.pt'
  path.write_bytes(checkpoint(mapper.arrays(theirs.params), net.num_ws, save))
  move = mapper_files.read(path, net)
  ((factor, found),) = move.mappers
  assert factor == 1 and found.module == theirs.module and move.name == 'thick'
  np.testing.assert_array_equal(found.moves(net, ws)['ws'], theirs.moves(net, ws)['ws'])
  with pytest.raises(CheckpointError, match='`edit text --method=mapper --mapper=FILE'):
    direction.read(path)
  # as a Direction it is written and read like any other
  direction.write(tmp_path / 'thick.npz', [move])
  again = direction.read(tmp_path / 'thick.npz')
  np.testing.assert_array_equal(net.images(ws, edit=again), net.images(ws, edit=move))


def test_mappers_of_other_networks_are_refused(net, tmp_path):
  arrays = mapper.arrays(mapper_of(net, ('coarse',)).params)
  weight = 'course_mapping.mapping.1.weight'
  wide = {name: np.zeros([9] * x.ndim, np.float32) for name, x in arrays.items()}
  fine = {name.replace('course', 'fine'): x for name, x in arrays.items()}
  whole = checkpoint(arrays, 6)
  for data, match in (
    (checkpoint(arrays | fine, 6), 'fine has no layers here'),
    (checkpoint(dict(list(arrays.items())[1:]), 0), 'mapping.1.bias is missing'),
    (checkpoint({'a.weight': arrays[weight]}, 0), 'neither levels of w nor layers'),
    (checkpoint({}, 6), 'nothing under mapper'),
    (save_zip({'g_ema': {}}), 'no state_dict'),
    (whole[: len(whole) // 2], 'a broken zip file'),
    (b'<html>', 'a web page'),
    (files.npz(about='{}'), "no checkpoint of StyleCLIP's"),
  ):
    (tmp_path / 'm.pt').write_bytes(data)
    with pytest.raises(WeightsError, match=f'm.pt is no mapper for .*: .*{match}') as e:
      mapper_files.read(tmp_path / 'm.pt', net)
    assert '\n' not in str(e.value)
  styles = {f'mapper_17.{name.partition(".")[2]}': x for name, x in arrays.items()}
  for data, match in (
    (checkpoint(styles, 0), r'layer 17 \[8\] there, none here'),
    (checkpoint(arrays, 18), r'ws \[18, 8\] there, \[6, 8\] here'),
    (checkpoint(wide, 6), r'ws \[6, 9\] there, \[6, 8\] here'),
  ):
    (tmp_path / 'm.pt').write_bytes(data)
    with pytest.raises(UsageError, match=f'm.pt was trained for another network than .*: {match};'):
      mapper_files.read(tmp_path / 'm.pt', net)
  with pytest.raises(WeightsError, match='cannot read .*no.pt: No such file'):
    mapper_files.read(tmp_path / 'no.pt', net)


# ---- global directions


def test_moments_of_parts_are_those_of_all():
  x = np.random.RandomState(0).randn(50, 4) + 1e4
  moments = global_directions.Moments()
  for part in np.split(x, (7, 8, 40)):
    moments.add({'b4.conv1': part})
  found = moments.result()
  np.testing.assert_allclose(found.mean['b4.conv1'], x.mean(0), rtol=1e-12)
  np.testing.assert_allclose(found.std['b4.conv1'], x.std(0), rtol=1e-9)


def test_channels_are_set_one_at_a_time(net, tower, ws):
  found = global_directions.statistics(net, [ws])
  styles = global_directions.read_styles(net, ws)  # of one shape: compiled once
  styles = {layer: x[:2] for layer, x in styles.items()}
  layers = global_directions.convolutions(styles)
  assert layers[0] == 'b4.conv1' and not any('torgb' in layer for layer in layers)
  counts = {layer: styles[layer].shape[1] for layer in layers}
  first = counts['b4.conv1']  # channel 0 of the second layer
  found.std['b8.conv0'][1] = 0  # without effect
  measured = global_directions.Measured(counts, found)
  features = global_directions.ChannelFeatures(net, tower, measured)
  assert features.channels == sum(counts.values())
  y = features(styles, [first, first + 1, 2])

  value = found.mean['b8.conv0'][0] + 5 * found.std['b8.conv0'][0]

  def change(layer, x):
    return x.at[:, 0].set(value) if layer == 'b8.conv0' else x

  @jax.jit
  def expected(variables):
    return tower.features(style_space.image(net.generator, variables, ws[:2], change))

  np.testing.assert_allclose(y[0, :, 1], expected(net.variables), rtol=1e-3, atol=1e-4)
  np.testing.assert_array_equal(y[1, :, 0], y[1, :, 1])
  effect = global_directions.delta_i(y)
  np.testing.assert_allclose((effect**2).sum(1), [1, 0, 1], rtol=1e-5)

  # as StyleCLIP's program makes pixels: close to the view, grey and rectangular as they are
  pictures = global_directions.ChannelFeatures(net, tower, measured._replace(pictures=True))
  other = pictures(styles, [first])
  assert 0 < np.abs(other - y[:1]).max() < 0.2 * np.abs(y).max()


def test_what_rounding_explains_is_no_effect():
  features = np.random.RandomState(0).randn(2, 4, 2, 6).astype(np.float32)
  features[1, :, 1] = features[1, :, 0] * (1 + 2e-7 * np.sign(features[1, :, 1]))
  found = global_directions.delta_i(features)
  assert found.dtype == np.float32 and not found[1].any()
  np.testing.assert_allclose((found[0] ** 2).sum(), 1, rtol=1e-6)


RELEVANCE = np.array([0.05, -0.3, 0.2, -0.2, 0.0, 0.1])


@pytest.mark.parametrize(
  'how, kept',
  [({'beta': 0.2}, 3), ({'channels': 1}, 1), ({'channels': 2}, 3), ({'channels': 6}, 5)],
)
def test_channels_are_selected(net, how, kept):
  found = global_directions.select(RELEVANCE, **how)
  assert found.channels == kept == np.count_nonzero(found.weights)
  assert np.abs(found.weights).max() == 1 and found.weights[1] == -1
  std = {'b4.conv1': np.full(2, 2.0), 'b8.conv0': np.full(4, 3.0)}
  counts = {'b4.conv1': 2, 'b8.conv0': 4}
  shifts = found.shifts(counts, std)
  assert shifts['b4.conv1'].tolist()[1] == -2 and shifts['b8.conv0'].shape == (4,)
  move = found.direction(net, counts, std, 'thick')
  assert move.about['channels'] == kept and move.styles['b4.conv1'].dtype == np.float32


@pytest.mark.parametrize(
  'relevance, how, match',
  [
    (RELEVANCE, {'beta': 0.31}, 'beta=0.31 keeps no channel: the largest relevance is 0.3;.* 0.15'),
    (RELEVANCE, {'channels': 7}, 'channels=7 must be a number of channels, from 1 to 6'),
    (RELEVANCE, {'channels': 0}, 'channels=0'),
    (RELEVANCE, {}, 'give one of them'),
    (RELEVANCE, {'beta': float('nan')}, 'beta=nan'),
    (0 * RELEVANCE, {'channels': 2}, 'their relevance is 0'),
  ],
)
def test_an_empty_selection_is_refused(relevance, how, match):
  with pytest.raises(UsageError, match=match):
    global_directions.select(relevance, **how)


# ---- several devices


def results():
  """What searches, trainings and looks come to, by the devices that there are."""
  net, tower, ws = small_net(), small_tower(), np.random.RandomState(2).randn(3, 6, 8)
  ws = ws.astype(np.float32)
  found = optimize.optimize(net, ws, tower, TEXTS, optimize.Settings(steps=4))
  training = mapper_training.Training(net, tower, TEXTS[:1])
  losses = [training.advance(ws[:2]).loss for _ in range(3)]
  statistics = global_directions.statistics(net, [ws])
  counts = {'b4.conv1': 8, 'b8.conv0': 8}
  features = global_directions.ChannelFeatures(
    net, tower, global_directions.Measured(counts, statistics)
  )
  y = features(global_directions.read_styles(net, ws[:1]), range(5))
  views = optimize.optimize(net, ws, tower, TEXTS, optimize.Settings(steps=4, augmentations=2))
  return found.moves['ws'], views.moves['ws'], np.stack(losses), statistics.std['b4.conv1'], y


@pytest.mark.slow
def test_one_and_three_devices_agree():
  on_devices(3, __file__)


if __name__ == '__main__':
  assert jax.device_count() == 3
  three = results()
  real = sharding.make_mesh
  sharding.make_mesh = lambda: real(jax.devices()[:1])
  for a, b in zip(three, results(), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)
