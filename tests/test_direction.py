"""Directions: what they move, what is made of them, their file, other networks."""

import dataclasses
import json

from absl import logging
import jax
import numpy as np
import pytest

import sg2jax
from sg2jax import files, sampler
from sg2jax.edit import direction, directions, mapper
from sg2jax.edit.direction import Direction
from sg2jax.faults import CheckpointError, UsageError
from sg2jax.models import styles as style_space
from tests.test_sampler import Z, close, made, make_run

pytestmark = pytest.mark.usefixtures('quick_compile')
LAYER = 'b8.conv0'


@pytest.fixture(scope='module')
def net(tmp_path_factory):
  return sg2jax.load(make_run(tmp_path_factory.mktemp('directed')))


@pytest.fixture(scope='module')
def both(net):
  """One that moves ws 1 and 2, and one that moves styles."""
  random = np.random.RandomState(0)
  ws = np.zeros((net.num_ws, Z), np.float32)
  ws[1:3] = random.randn(2, Z)
  count = style_space.channels(net.generator, net.variables)[LAYER]
  offsets = {LAYER: random.randn(count).astype(np.float32)}
  about = {'method': 'test', 'unit': 'stdev'}
  return (
    Direction('bend', (net.hash(),), ws=ws, about=about),
    Direction('paint', (net.hash(),), styles=offsets),
  )


@pytest.fixture(scope='module')
def mappers(net):
  """A mapper of w, at the coarse levels, and one of styles, as Directions."""
  layers = style_space.channels(net.generator, net.variables)
  latent, style = mapper.LatentMapper(('coarse',)), mapper.StyleMapper(tuple(layers))
  styles = {layer: np.zeros((1, count), np.float32) for layer, count in layers.items()}
  random = np.random.RandomState(7)
  found = []
  for module, example in ((latent, np.zeros((1, net.num_ws, Z), np.float32)), (style, styles)):
    shapes = jax.eval_shape(module.init, jax.random.key(0), example)['params']
    params = jax.tree.map(lambda x: 100 * random.randn(*x.shape).astype(np.float32), shapes)
    found.append(mapper.Mapper(module, params, net.num_ws))
  names = ('grow', 'tint')
  return [Direction(name, (net.hash(),), mappers=((1.0, one),)) for name, one in zip(names, found)]


def same(a, b):
  """Whether two directions move the same by the same."""
  np.testing.assert_equal([a.ws, a.styles], [b.ws, b.styles])
  for (factor, mine), (other, its) in zip(a.mappers, b.mappers, strict=True):
    assert factor == other and mine.module == its.module and mine.about() == its.about()
    jax.tree.map(np.testing.assert_array_equal, mine.params, its.params)


# ---- moved, mixed, scaled, named


@pytest.mark.smoke
def test_amounts_move_each_image(net, both):
  bend, paint = both
  ws = net.ws([1, 2])
  moved, offsets = bend.move(ws, [2, -0.5])
  want = ws.copy()
  want[0] += 2 * bend.ws
  want[1] -= bend.ws / 2
  np.testing.assert_allclose(moved, want, atol=1e-6)
  np.testing.assert_array_equal(moved[:, [0, 3, 4, 5]], ws[:, [0, 3, 4, 5]])
  assert moved.dtype == np.float32 and not offsets
  moved, offsets = paint.move(ws[:1], [0, 3, -1])
  np.testing.assert_array_equal(moved, ws[[0, 0, 0]])
  np.testing.assert_array_equal(
    offsets[LAYER], np.outer(np.float32([0, 3, -1]), paint.styles[LAYER])
  )


def test_a_mix_moves_as_its_parts_do_together(net, both):
  bend, paint = both
  mix = np.float32(2) * bend - paint * 0.5 + bend
  ws = net.ws([1])
  moved, offsets = mix.move(ws, [1])
  np.testing.assert_allclose(moved, bend.move(ws, [3])[0], atol=1e-5)
  np.testing.assert_allclose(offsets[LAYER], paint.move(ws, [-0.5])[1][LAYER], atol=1e-6)
  assert mix.name == '2 bend - 0.5 paint + bend'
  assert mix.about['mix'][0] == {'times': 2.0, 'name': 'bend', 'about': bend.about}
  assert (-mix * 2).name == '-4 bend + paint - 2 bend'
  named = mix.named('twist')
  same(named, mix)
  assert (3 * named).name == '3 twist' and (3 * named).about['mix'][0]['about'] == mix.about
  assert bend.styles == {} and bend.about == {'method': 'test', 'unit': 'stdev'}


def test_what_is_no_direction_or_number_is_no_part_of_a_mix(both):
  bend, paint = both
  for wrong in (lambda: bend + 1, lambda: bend - 1, lambda: bend * bend, lambda: bend * 'x'):
    with pytest.raises(TypeError):
      wrong()
  with pytest.raises(UsageError, match=r'bend \* nan'):
    bend * float('nan')
  other = dataclasses.replace(bend, name='other', ws=np.zeros((5, Z), np.float32))
  with pytest.raises(UsageError, match=r'bend and other .* ws \[6, 12\] and \[5, 12\]'):
    bend + other
  other = dataclasses.replace(paint, name='other', styles={LAYER: np.zeros(3, np.float32)})
  with pytest.raises(UsageError, match=r'other and paint .*b8.conv0 \[3\] and'):
    other + paint


# ---- images


def test_an_edited_image_is_that_of_moved_ws_and_changed_styles(net, both):
  bend, paint = both
  seeds = [3, 4, 5, 6]
  plain = made(net, seeds, 0.7)
  ws = net.ws(seeds, 0.7)
  bent = net.images(ws + 3 * bend.ws, batch=4)
  np.testing.assert_array_equal(net(seeds, 0.7, batch=4, edit=bend * 3), bent)

  @jax.jit
  def painted(variables, ws):
    def change(layer, x):
      return x + 3 * paint.styles[LAYER] if layer == LAYER else x

    return sampler.to_uint8(style_space.image(net.generator, variables, ws, change))

  found = net(seeds, 0.7, batch=4, edit=paint * 3)
  with jax.default_matmul_precision('highest'):
    assert close(found, np.asarray(painted(net.variables, ws)))
    mixed = np.asarray(painted(net.variables, ws + 3 * bend.ws))
  assert not close(bent, plain, 20) and not close(found, plain, 20)
  assert close(net(seeds, 0.7, batch=4, edit=3 * (bend + paint)), mixed)
  assert close(net(seeds, 0.7, batch=4, edit=[(paint, 3), (bend, 3)]), mixed)


def test_amounts_are_each_images_own_and_0_is_no_edit_to_the_last_bit(net, both):
  bend, paint = both
  seeds = range(5)
  plain = made(net, seeds)[:4]
  for edit in (bend * 0, paint * 0, [], [(bend, 0), (paint, 0.0)]):
    np.testing.assert_array_equal(net(seeds, batch=4, edit=edit)[:4], plain)
  # of five in batches of four: the amounts go with their images
  amounts = [0, 1, 2, 0, -2]
  halves = [(paint, np.array(amounts) / 2)] * 2
  found = net(seeds, batch=4, edit=[*halves, (bend, np.array(amounts))])
  for i, amount in enumerate(amounts):
    assert close(found[i], net([seeds[i]] * 4, batch=4, edit=(bend + paint) * amount)[0])
  for amounts in ([1, 2], [[1]] * 5, float('nan'), [0, 1, 2, 3, float('inf')], 'much'):
    with pytest.raises(UsageError, match='amounts of bend: .* 5 images'):
      net(seeds, edit=[(bend, amounts)])


def test_other_strengths_and_directions_compile_nothing(net, both):
  bend, paint = both
  seeds = range(4)
  net(seeds, batch=4), net(seeds, batch=4, edit=paint)
  other = dataclasses.replace(paint, styles={LAYER: 1 - paint.styles[LAYER]})
  step = sampler._images_step(
    sampler.sharding.make_mesh(), net.generator, tuple(net.growing.items()), 'const'
  )
  before = step._cache_size()
  for edit in (bend, bend * 2, -paint, other + 2 * bend):
    net(seeds, batch=4, edit=edit)
  assert step._cache_size() == before


# ---- mappers


def test_a_mapper_moves_each_image_by_what_it_says_of_it(net, both, mappers):
  bend, paint = both
  grow, tint = mappers
  ws = net.ws([1, 2, 3, 4])
  said = grow.mappers[0][1].moves(net, ws)['ws']
  offsets = tint.mappers[0][1].moves(net, ws)
  assert said[:, :4].std(0).min() > 1e-3 and not said[:, 4:].any()
  assert set(offsets) == {x for x in style_space.channels(net.generator, net.variables)} - {
    'b4.torgb',
    'b8.torgb',
    'b16.torgb',
  }
  # whatever moves it besides: what it says is of the given ws
  moved, styles = (2 * grow + bend - tint - grow * 0.5).move(ws, [0, 1, 1, -2], net)
  amounts = np.float32([0, 1, 1, -2])[:, None, None]
  np.testing.assert_allclose(moved, ws + amounts * (1.5 * said + bend.ws), atol=1e-5)
  np.testing.assert_allclose(styles[LAYER], -amounts[:, 0] * offsets[LAYER], atol=1e-5)
  # and so are the images of it
  found = net.images(ws, batch=4, edit=[(grow, [0, 1, 1, 0]), (paint, 1)])
  want = net.images(ws + amounts.clip(0) * said, batch=4, edit=paint)
  assert close(found, want) and not close(found[1], net.images(ws, batch=4, edit=paint)[1], 20)
  plain = net.images(ws, batch=4)
  np.testing.assert_array_equal(net.images(ws, batch=4, edit=grow * 0), plain)
  assert not close(net.images(ws, batch=4, edit=tint), plain, 20)
  mix = 2 * grow - tint
  assert mix.name == '2 grow - tint' and len((mix + grow).mappers) == 2


def test_a_mapper_of_another_network_is_refused(net, mappers):
  layers = dict.fromkeys(style_space.channels(net.generator, net.variables), 2)
  for move, fields, said in (
    (mappers[0], {'num_ws': 18}, r'ws \[18, 12\] there, \[6, 12\] here'),
    (mappers[1], {'module': mapper.StyleMapper(('b4.conv9', *layers))}, r'b4.conv9 .* none here'),
  ):
    other = dataclasses.replace(move.mappers[0][1], **fields)
    wrong = dataclasses.replace(move, networks=('ab' * 32,), mappers=((1.0, other),))
    with pytest.raises(UsageError, match=f'{move.name} .*abababababab .*{said}') as e:
      net([0], edit=wrong)
    assert '\n' not in str(e.value)
  with pytest.raises(UsageError, match=r'grow and wrong .* ws \[6, 12\] and \[5, 12\]'):
    mappers[0] + Direction('wrong', ('a',), np.zeros((5, Z), np.float32))


# ---- a style channel


def test_a_channel_moves_by_its_standard_deviation(net):
  w = sampler.sample_w(net, 2000, 1)
  found = directions.channel(net, LAYER, 2, w)
  ws = np.repeat(w[:, None], net.num_ws, 1)
  values = jax.jit(lambda ws: style_space.read(net.generator, net.variables, ws)[LAYER])(ws)
  np.testing.assert_allclose(found.styles[LAYER][2], np.std(values[:, 2], ddof=1), rtol=1e-4)
  assert np.count_nonzero(found.styles[LAYER]) == 1 and found.ws is None
  assert found.name == 'b8.conv0.2' and found.about['unit'] == 'stdev'
  plain = net([1, 2, 3, 4], batch=4)
  assert not close(net([1, 2, 3, 4], batch=4, edit=found * 5), plain, 5)
  with pytest.raises(
    UsageError, match='layer b64.conv0 .*; choose from b4.conv1, b4.torgb, b8.conv0'
  ):
    directions.channel(net, 'b64.conv0', 2, w)
  for number in (-1, 999):
    with pytest.raises(UsageError, match=f'channel {number} of b8.conv0 .* choose from 0 to'):
      directions.channel(net, LAYER, number, w)


# ---- other networks


def test_other_weights_are_warned_of_and_other_shapes_refused(net, both, monkeypatch):
  warnings = []
  monkeypatch.setattr(logging, 'warning', lambda text, *args: warnings.append(text % args))
  bend, paint = both
  net(range(4), edit=bend + paint)
  assert not warnings
  params = net.variables['params']
  tuned = net._replace(variables=net.variables | {'params': jax.tree.map(lambda x: 2 * x, params)})
  image = tuned(range(4), edit=bend)
  assert f'bend was made for the network {net.hash()[:12]}' in warnings[0]
  assert tuned.hash()[:12] in warnings[0] and len(warnings) == 1
  np.testing.assert_array_equal(image, tuned.images(tuned.ws(range(4)) + bend.ws))
  tuned(range(4), edit=bend)  # once
  mine = dataclasses.replace(bend, networks=(tuned.hash(),))
  tuned(range(4), edit=mine)
  assert len(warnings) == 1
  # a mix of both is known to both
  tuned(range(4), edit=mine + bend)
  net(range(4), edit=mine + bend)
  assert len(warnings) == 1
  small = dataclasses.replace(bend, networks=('ab' * 32,), ws=np.zeros((4, Z), np.float32))
  with pytest.raises(
    UsageError, match=rf'bend .*abababababab .*{net.hash()[:12]}, .* ws \[4, 12\]'
  ):
    net([0], edit=small)
  with pytest.raises(UsageError, match=r'bend .* ws \[4, 12\] there'):  # whatever it says
    net([0], edit=dataclasses.replace(small, networks=(net.hash(),)))
  for styles, said in (
    ({LAYER: [1]}, r'b8.conv0 \[1\] there, \[\d+\]'),
    ({'b64.conv1': [1]}, 'none'),
  ):
    styles = {layer: np.ones(1, np.float32) for layer in styles}
    wrong = dataclasses.replace(paint, networks=('ab' * 32,), styles=styles)
    with pytest.raises(UsageError, match=f'paint .*{said} here'):
      net([0], edit=wrong)


def test_a_network_is_hashed_once(net, both, monkeypatch):
  asked = []
  whole = sampler.Sampler.hash
  monkeypatch.setattr(sampler.Sampler, 'hash', lambda self: asked.append(1) or whole(self))
  for _ in range(3):
    both[0].check(net)
  assert len(asked) <= 1
  stage = net._replace(growing={'stage': 1, 'alpha': None})
  assert direction._hash(stage) == whole(stage) != direction._hash(net) == whole(net)


# ---- files


@pytest.fixture
def written(both, mappers):
  grow, tint = mappers
  return [*both, (both[0] * 2 + both[1]).named('bent'), grow, tint, both[0] + tint * 2 - grow]


@pytest.fixture
def path(written, tmp_path):
  direction.write(tmp_path / 'd.npz', written, extra=np.arange(3))
  return tmp_path / 'd.npz'


def test_what_is_written_is_read(both, written, path):
  found = direction.read_all(path)
  for a, b in zip(found, written, strict=True):
    same(a, b)
    assert (a.name, a.networks, a.about) == (b.name, b.networks, b.about)
  same(direction.read(path, 'paint'), both[1])
  direction.write(path, found[:1])
  same(direction.read(str(path)), both[0])
  direction.write('memory://b/directions/d.npz', found)
  same(direction.read('memory://b/directions/d.npz', 'paint'), both[1])
  with np.load(path) as arrays:  # nothing but numbers and text
    assert {x.dtype.kind for x in arrays.values()} == {'f', 'U'}


def test_names_that_could_not_be_asked_for_are_refused(both, tmp_path):
  for names in (['a', 'a'], ['a:b'], [''], ['a\n']):
    with pytest.raises(UsageError, match=r'called'):
      direction.write(tmp_path / 'd.npz', [both[0].named(name) for name in names])
  assert not any(tmp_path.iterdir())


def test_a_direction_that_is_not_there_is_named(path):
  with pytest.raises(UsageError, match=r'd.npz holds 6 directions; name one of bend, paint, ben'):
    direction.read(path)
  with pytest.raises(UsageError, match=r'd.npz holds no direction smile; choose from bend, paint'):
    direction.read(path, 'smile')
  for name in ('missing.npz', ''):
    with pytest.raises(UsageError, match=f'cannot read .*{name}: .*; name a file of directions'):
      direction.read(path.parent / name)


def change_text(arrays, number=0, **fields):
  document = json.loads(str(arrays['about']))
  document['directions'][number] |= fields
  return arrays | {'about': json.dumps(document)}


GROW = '3/mappers/0/course_mapping.mapping.1.weight'


@pytest.mark.parametrize(
  'damage, said',
  [
    (lambda arrays: {'vectors': arrays['0/ws']}, '0.4 or an earlier'),
    (lambda arrays: {'ws': arrays['0/ws']}, 'KeyError'),
    (lambda arrays: arrays | {'about': '{"format": "sg2jax-directions-2"}'}, "directions-2'"),
    (lambda arrays: arrays | {'about': '[]'}, ''),
    (lambda arrays: arrays | {'about': '{'}, ''),
    (lambda arrays: {k: v for k, v in arrays.items() if k != '0/ws'}, "'bend' moves nothing"),
    (lambda arrays: arrays | {'0/ws': arrays['0/ws'][0]}, "'bend' is not of finite"),
    (lambda arrays: arrays | {'0/ws': arrays['0/ws'] * np.nan}, "'bend' is not of finite"),
    (lambda arrays: arrays | {'1/styles/b8.conv0': np.ones(3)}, "'paint' is not of finite"),
    (lambda arrays: arrays | {'0/ws': np.array([None])}, 'allow_pickle'),
    (lambda arrays: change_text(arrays, name='paint'), 'two of one name'),
    (lambda arrays: change_text(arrays, name=3), 'does not say'),
    (lambda arrays: change_text(arrays, networks=[]), 'does not say'),
    (lambda arrays: change_text(arrays, about=[]), 'does not say'),
    (lambda arrays: change_text(arrays, 3, mappers=[]), "'grow' moves nothing"),
    (lambda arrays: change_text(arrays, 3, mappers=[{'num_ws': 6}]), 'factor'),
    (lambda arrays: change_text(arrays, 3, mappers=[{'factor': 1, 'num_ws': 6, 'x': 1}]), 'x'),
    (
      lambda arrays: change_text(
        arrays, 3, mappers=[{'factor': 1, 'num_ws': 6, 'normalized': 'rows'}]
      ),
      'over .rows., which is unknown',
    ),
    (lambda arrays: change_text(arrays, 3, mappers=[{'factor': np.inf, 'num_ws': 6}]), 'finite'),
    (lambda arrays: arrays | {GROW: arrays[GROW] * np.nan}, "a mapper of direction 'grow'"),
    (lambda arrays: arrays | {GROW: arrays[GROW][1:]}, 'it moves w of '),
    (lambda arrays: {k: v for k, v in arrays.items() if k != GROW}, 'mapping.1.weight is missing'),
  ],
)
def test_other_files_are_refused(path, damage, said):
  with np.load(path) as arrays:
    arrays = dict(arrays)
  np.savez(path, **damage(arrays))
  with pytest.raises(CheckpointError, match=f'd.npz is no file of directions: .*{said}'):
    direction.read(path, 'bend')


def test_no_damage_raises_anything_else(path):
  data = path.read_bytes()
  for cut in (0, 1, 100, len(data) - 1):
    path.write_bytes(data[:cut])
    with pytest.raises(CheckpointError, match='d.npz is no file of directions: .'):
      direction.read(path)
  with pytest.raises(ValueError, match='allowed'):
    files.parse_npz(data, 100, 'fiubU')
