"""Adversarial samples: the search, what counts as success, controls, classifiers, the tool."""

import dataclasses
import importlib
import json
import signal
import sys

import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

import sg2jax
from sg2jax import clip as clips
from sg2jax import files, progress, sharding
from sg2jax.edit import (
  adversarial,
  adversarial_rates,
  classifiers,
  digit_classifiers,
  direction,
  mapper,
  project,
  text_directions,
)
from sg2jax.edit import moves as moves_lib
from sg2jax.edit.adversarial import Models, Search, Settings
from sg2jax.edit.classifiers import Classifier
from sg2jax.edit.direction import Direction
from sg2jax.edit.text_losses import Tower, directional_loss
from sg2jax.faults import NonFiniteError, Preempted, UsageError, WeightsError
from sg2jax.models import styles as style_space
from sg2jax.signals import Stop
from sg2jax.tools import adversarial as tool
from sg2jax.tools import searches
from tests.runs import call, on_devices, random_run
from tests.test_clip import VIT, drawn, save
from tests.test_project import contents

pytestmark = pytest.mark.usefixtures('quick_compile')
SHAPE = (4, 8, 1)
LAYER = 'b4.conv1'
# Classifiers whose logits are the brightness of columns, and a judge, in a module of a user. The
# network has three classes.
MODULE = """
import jax
import jax.numpy as jnp

def columns(images, count=3):
  return 20 * jnp.stack([images[:, :, i::count, 0].mean((1, 2)) for i in range(count)], 1)

def four(images):
  return columns(images, 4)

def judge(images):
  return four(images) + jnp.array([0.0, 5.0, 0.0, 5.0])

def flat(images):
  return images.mean((1, 2, 3))

def broken(images):
  return images @ jnp.zeros((7, 3))

def nan(images):
  return jnp.where(columns(images) > 0, jnp.nan, 0.0)

def no_gradient(images):
  shape = jax.ShapeDtypeStruct((len(images), 3), images.dtype)
  return jax.pure_callback(lambda x: x, shape, images)

number = 3
"""


def columns(_, images):
  return 20 * jnp.stack([images[:, :, i::3, 0].mean((1, 2)) for i in range(3)], 1)


def always(number):
  """A judge that sees the same class in all images."""

  def function(_, images):
    return jnp.zeros((len(images), 6)).at[:, number].set(1)

  return Classifier(f'always {number}', '', 6, function)


CLASSIFIER = Classifier('columns', '', 3, columns)
SEES_NONE = always(5)  # one object: a search is compiled once for each judge


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A workdir with a tiny network, 4x8 px, grey, 3 classes, random in what starts at 0."""
  fields = {'g.fmap_base': 32, 'g.z_dim': 8, 'g.w_dim': 8, 'g.mapping_layers': 1}
  folder = tmp_path_factory.mktemp('fooled')
  return random_run(
    folder, (0.03, 0.3, 1, 1, 1), resolution=(4, 8), **fields | {'data.channels': 1}
  )


@pytest.fixture(scope='module')
def net(run):
  return sg2jax.load(run)


def make_moves(net):
  """Two directions in style space and one in w."""
  random = np.random.RandomState(0)
  count = style_space.channels(net.generator, net.variables)[LAYER]
  styles = [{LAYER: random.randn(count).astype(np.float32)} for _ in range(2)]
  ws = random.randn(net.num_ws, 8).astype(np.float32) / 4
  found = [Direction(f'paint{i}', (net.hash(),), styles=x) for i, x in enumerate(styles)]
  return [*found, Direction('bend', (net.hash(),), ws=ws)]


@pytest.fixture(scope='module')
def moves(net):
  return make_moves(net)


def make_start(net):
  """ws of images, and what the classifier says of them."""
  ws = net.ws(range(8))
  return ws, CLASSIFIER.predict(moves_lib.moved_images(net, ws, {}, 8)).argmax(1)


@pytest.fixture(scope='module')
def start(net):
  return make_start(net)


def searched(
  net, start, moves, judge=None, tower=None, texts=None, distance=None, active=None, **fields
):
  """(Losses of each step, the Search)."""
  ws, classes = start
  settings = Settings(**{'steps': 40, 'lr': 0.1, 'clip_lambda': 0.0} | fields)
  basis = moves_lib.basis(net, ws, [moves] * len(ws)) if settings.space == 'amounts' else {}
  models = Models(CLASSIFIER, judge or CLASSIFIER, tower, distance)
  search = Search(net, ws, classes, models, basis, texts, settings, active)
  losses = []
  while search.steps < settings.steps and not search.done.all():
    losses.append(search.advance())
  return losses, search


def seeing(classes):
  """A judge for a batch of these images that sees the class in each."""

  def function(_, images):
    return jax.nn.one_hot(jnp.resize(jnp.asarray(classes), len(images)), 3)

  return Classifier('sees', '', 3, function)


# ---- the search


def test_a_basis_adds_up_as_directions_do(net, moves, start):
  ws, _ = start
  module = mapper.LatentMapper(('coarse',))
  params = jax.device_get(jax.jit(module.init)(jax.random.key(0), ws)['params'])
  # one that moves each image another way
  moves = [
    *moves,
    Direction('map', (net.hash(),), mappers=((30.0, mapper.Mapper(module, params, 4)),)),
  ]
  amounts = np.random.RandomState(1).randn(8, 4).astype(np.float32)
  found = moves_lib.add_up(amounts, moves_lib.basis(net, ws, [moves] * 8))
  moved, offsets = direction.apply(net, list(zip(moves, amounts.T)), ws)
  np.testing.assert_allclose(ws + found['ws'], moved, atol=1e-5)
  np.testing.assert_allclose(found[LAYER], offsets[LAYER], atol=1e-5)
  images = moves_lib.moved_images(net, ws, jax.device_get(found), 3)
  edited = net.images(ws, edit=list(zip(moves, amounts.T)))
  assert np.abs(images.astype(int) - edited).max() <= 1
  # others for each image; what one lacks stays, and all convolutions are there
  mixed = moves_lib.basis(net, ws, [moves[:1], moves[2:3]])
  assert not mixed['ws'][0].any() and not mixed[LAYER][1].any()
  np.testing.assert_array_equal(mixed['ws'][1, 0], moves[2].ws)
  layers = {what for what in style_space.channels(net.generator, net.variables) if 'conv' in what}
  assert set(mixed) == {'ws', *layers}


def test_margins():
  logits = jnp.array([[3.0, 1, 2], [0, 5, -1]])
  np.testing.assert_array_equal(adversarial.margins(logits, jnp.array([0, 2])), [1, -6])


@pytest.mark.parametrize('space', adversarial.SPACES)
def test_a_search_lowers_the_loss_and_stops_at_the_first_error(net, moves, start, space):
  ws, classes = start
  losses, search = searched(net, start, moves, seeing(classes), space=space, most=3.0)
  assert losses[-1].loss.sum() < losses[0].loss.sum() and search.done.sum() >= 5
  found = search.result()
  said = CLASSIFIER.predict(found.images).argmax(1)
  assert (said != classes)[found.done].all()
  # an image stays at its first error, whatever the others still do; bytes are a bit off
  for i in np.flatnonzero(found.done):
    last = found.steps[i]
    assert losses[last].margin[i] < 0.05 and (not last or losses[last - 1].margin[i] > -0.05)
  assert len(set(found.steps[found.done])) > 2
  images = moves_lib.moved_images(net, ws, found.moves, 8)
  assert np.abs(images.astype(int) - found.images).max() <= 1
  if space == 'amounts':
    assert np.abs(found.params).max() <= 3 and found.params.shape == (8, 3)


def test_amounts_are_bounded_and_some_images_left_alone(net, moves, start):
  active = np.arange(8) != 2
  _, search = searched(net, start, moves, SEES_NONE, most=0.25, steps=8, active=active)
  found = search.result()
  assert np.abs(found.params).max() == 0.25
  np.testing.assert_array_equal(found.params.any(1), active)
  np.testing.assert_array_equal(search.done, ~active)
  assert found.steps.tolist() == [8, 8, 0, 8, 8, 8, 8, 8]


def test_the_judge_decides_when_a_search_is_over(net, moves, start):
  _, classes = start
  _, search = searched(net, start, moves, always(classes[0]))
  said = CLASSIFIER.predict(search.result().images).argmax(1)
  assert (said != classes)[classes != classes[0]].any()
  assert search.done.any() and (said != classes)[search.done].all()
  np.testing.assert_array_equal(classes[search.done], classes[0])


def test_neighbours_do_not_matter(net, moves, start):
  ws, classes = start
  others = [3, 0, 0, 1, 1, 2, 2, 5]
  _, one = searched(net, start, moves, SEES_NONE, steps=6)
  _, other = searched(net, (ws[others], classes[others]), moves, SEES_NONE, steps=6)
  np.testing.assert_allclose(one.result().params[3], other.result().params[0], atol=1e-3)


@pytest.fixture(scope='module')
def clip_file(tmp_path_factory):
  spec = dataclasses.replace(VIT, vocab_size=49408, context_length=32)
  heads = {f'{tower}_config': {'num_attention_heads': 1} for tower in ('vision', 'text')}
  return save(tmp_path_factory.mktemp('clip'), drawn(spec), **heads)


def test_weights_keep_images_at_their_text_and_start(net, moves, start, clip_file):
  ws, classes = (x[:3] for x in start)
  clip = clips.load(clip_file)
  tower = Tower(clip.params, clip.architecture)
  features = clip.images(moves_lib.moved_images(net, ws, {}, 8))
  more = {'tower': tower, 'texts': features, 'distance': project.distance('pyramid')}

  def last(**fields):
    losses, search = searched(net, (ws, classes), moves, SEES_NONE, steps=12, **more | fields)
    return losses[-1], clip.images(search.result().images)

  free, seen = last()
  np.testing.assert_allclose(
    free.loss, np.maximum(0, free.margin + 0.1) + 0.01 * free.l2, atol=1e-4
  )
  near, seen_near = last(clip_lambda=1e4)
  assert near.text.mean() < free.text.mean() / 2
  assert (seen_near * features).sum() > (seen * features).sum()
  assert last(distance_lambda=1e4)[0].distance.mean() < free.distance.mean() / 2
  assert last(l2_lambda=1e4)[0].l2.mean() < free.l2.mean() / 2
  # along what the third image has and the first hasn't
  way = np.repeat((features[2] - features[0])[None], 3, 0)
  moving, seen_moving = last(clip_lambda=1e4, text_term='move', texts=way)
  assert moving.text.mean() < 0.9
  assert directional_loss(features, seen_moving, way[0]).mean() < 0.9


# ---- what counts


@pytest.mark.smoke
def test_each_condition_alone_makes_it_no_success():
  classes = np.array([1, 1, 1, 1, 1])
  said_before = np.array([1, 0, 1, 1, 1])  # wrong at the start
  seen_before = np.array([1, 1, 2, 1, 1])  # the judge sees something else at the start
  said = np.array([0, 0, 0, 1, 0])  # still right
  seen = np.array([1, 1, 1, 1, 0])  # the judge sees what the classifier sees
  counted = adversarial_rates.counts(classes, said_before, seen_before)
  success = counted & adversarial_rates.fooled(classes, said, seen)
  assert counted.tolist() == [True, False, False, True, True]
  assert success.tolist() == [True, False, False, False, False]


def test_intervals_are_wilsons():
  np.testing.assert_allclose(adversarial_rates.interval(8, 10), [0.490, 0.943], atol=1e-3)
  np.testing.assert_allclose(adversarial_rates.interval(0, 200), [0, 0.0188], atol=1e-4)
  np.testing.assert_allclose(adversarial_rates.interval(200, 200), [0.9812, 1], atol=1e-4)
  assert adversarial_rates.interval(0, 0) == [0, 1]


def test_the_smallest_strength_that_flips():
  limits = np.array([[2.3, np.inf], [np.inf, 9.9], [0.1, 5.0]])
  signs = np.array([[1, 1], [1, -1], [-1, 1]])
  asked = []

  def is_fooled(image, number, amounts):
    asked.append(len(image))
    side = signs[image, number] * amounts
    # of the last one also on the other side, farther out
    other = (image == 2) & (number == 0) & (amounts > 4)
    return (side > limits[image, number]) | other

  found = adversarial_rates.flips(is_fooled, 3, 2, 10, steps=10, halvings=4)
  want = signs * limits
  assert np.isnan(found).tolist() == np.isinf(want).tolist()
  fine = np.isfinite(want)
  over = (found - want)[fine] * signs[fine]
  assert (over >= 0).all() and (over <= 1 / 16).all()
  assert asked == [3 * 2 * 20, 4, 4, 4, 4]
  document = adversarial_rates.histogram(['a', 'b'], found, 10)
  assert document['a']['flipped'] == 2 and document['a']['upwards'] == 1
  assert document['a']['counts'] == [1, 0, 1] + [0] * 7 and document['b']['counts'][9] == 1
  nothing = adversarial_rates.flips(lambda i, k, a: np.zeros(len(i), bool), 2, 1, 10)
  assert np.isnan(nothing).all()
  assert adversarial_rates.histogram(['a'], nothing, 10)['a']['median'] is None


def test_controls_are_as_long_and_go_elsewhere():
  random = np.random.RandomState(0)
  moves = {'b8.conv0': random.randn(3, 40).astype(np.float32), 'ws': random.randn(3, 6, 20) * 2}
  moves = {
    what: x * np.array([0, 1, 5]).reshape(3, *[1] * (x.ndim - 1)) for what, x in moves.items()
  }
  drawn = moves_lib.random_moves(moves, [7, 8, 8])
  np.testing.assert_allclose(moves_lib.lengths(drawn), moves_lib.lengths(moves), rtol=1e-5)
  a, b = (np.concatenate([x[1:].reshape(2, -1) for x in m.values()], 1) for m in (moves, drawn))
  cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
  assert np.abs(cosines).max() < 0.3
  # of a seed always the same, whatever its neighbours move
  np.testing.assert_allclose(b[0] / np.linalg.norm(b[0]), b[1] / np.linalg.norm(b[1]), rtol=1e-4)
  moves['b8.conv1'] = np.array([[0], [0], [1]]) * np.ones(4)
  other = moves_lib.random_moves({what: x[1:] for what, x in moves.items()}, [8, 9])
  np.testing.assert_array_equal(other['ws'][0], drawn['ws'][1])
  assert other['b8.conv1'][1].any() and not other['b8.conv1'][0].any()
  amounts = moves_lib.random_amounts(np.array([[3.0, 4, 0]]), [1])
  np.testing.assert_allclose(np.linalg.norm(amounts), 5, rtol=1e-5)


# ---- classifiers


@pytest.fixture(scope='module')
def module(tmp_path_factory):
  """A folder with a module of classifiers, from which it can be imported."""
  folder = tmp_path_factory.mktemp('module')
  (folder / 'my_classifiers.py').write_text(MODULE)
  (folder / 'my_mistake.py').write_text('import no_such_package')
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    yield folder


def exported(path, function=None, shape=SHAPE, dtype=np.float32, batch='N', vjp_order=1, **options):
  """Writes a classifier as StableHLO -> its path."""
  sides = ','.join(map(str, (batch, *shape)))
  example = jax.ShapeDtypeStruct(jax_export.symbolic_shape(sides), dtype)
  found = jax_export.export(jax.jit(function or (lambda x: columns(None, x))), **options)(example)
  path.write_bytes(found.serialize(vjp_order=vjp_order))
  return str(path)


@pytest.fixture(scope='module')
def pictures():
  return np.random.RandomState(0).randint(0, 256, (5, *SHAPE), np.uint8)


def test_a_function_and_its_stablehlo_give_the_same(module, pictures, tmp_path):
  own = classifiers.load('my_classifiers:columns', SHAPE)
  given = classifiers.load(exported(tmp_path / 'c.stablehlo'), SHAPE)
  assert own.classes == given.classes == 3 and own.hash != given.hash
  np.testing.assert_allclose(own.predict(pictures), CLASSIFIER.predict(pictures))
  np.testing.assert_allclose(given.predict(pictures), own.predict(pictures), atol=1e-5)
  images = classifiers.from_uint8(pictures)
  slopes = [jax.grad(lambda x, c=c: c.logits(x)[:, 1].sum())(images) for c in (own, given)]
  np.testing.assert_allclose(*slopes, atol=1e-6)


def test_other_weights_are_another_classifier(module):
  """Whose source stays as it is."""
  source = 'import numpy as np\nw = np.load({!r})\ndef f(x): return x.mean((1, 2)) @ w'
  np.save(module / 'weights.npy', np.ones((1, 3), np.float32))
  (module / 'my_weights.py').write_text(source.format(str(module / 'weights.npy')))
  first, again = (classifiers.load('my_weights:f', SHAPE) for _ in range(2))
  np.save(module / 'weights.npy', np.float32([[1, 1, 1.1]]))
  importlib.reload(sys.modules['my_weights'])
  other = classifiers.load('my_weights:f', SHAPE)
  assert first.hash == again.hash != other.hash


@pytest.mark.parametrize(
  'spec, said',
  [
    ('no_such_module:f', 'ModuleNotFoundError: .*no_such_module.*importable'),
    ('my_mistake:f', 'no_such_package'),
    ('my_classifiers:f', 'AttributeError.* f'),
    ('my_classifiers:number', 'JAX function of images float32'),
    ('my_classifiers:flat', r'returns float32 \[3\] for 3 images; it must .*\[N,4,8,1\]'),
    ('my_classifiers:broken', 'JAX function'),
    ('my_classifiers:no_gradient', 'no gradient by which to search: ValueError'),
    ('resnet', 'classifier resnet is unknown; give digits'),
    ('digits-x', 'digits-x is unknown'),
    ('digits_x', 'classifier digits_x is unknown'),
    ('digits+/no/where.npz', 'cannot read /no/where.npz'),
    ('/no/where.stablehlo', 'No such file'),
  ],
)
def test_errors_of_classifiers(module, spec, said):
  with pytest.raises(UsageError, match=said) as caught:
    classifiers.load(spec, SHAPE)
  assert '\n' not in str(caught.value)


def test_what_a_judge_cannot_say_is_no_class(module, pictures):
  load = lambda name: classifiers.load(f'my_classifiers:{name}', SHAPE, gradient=False)
  with pytest.raises(NonFiniteError, match='my_classifiers:nan gives NaN for 4 of 5 images'):
    load('nan').predict(pictures)


@pytest.mark.parametrize(
  'options, said',
  [
    ({'shape': (8, 8, 3)}, r'takes float32 \[N,8,8,3\]; it must take float32 \[N,4,8,1\]'),
    ({'batch': 4}, r'takes float32 \[4,4,8,1\]'),
    ({'dtype': np.float16}, 'takes float16'),
    ({'function': lambda x: x.mean((1, 2, 3))}, r'gives float32 \[N\]'),
    ({'function': lambda x: columns(None, x).argmax(1)}, r'gives int32 \[N\]'),
    ({'platforms': ['tpu']}, 'runs on tpu and this is cpu'),
    ({'vjp_order': 0}, 'without its gradient; .*vjp_order=1'),
  ],
)
def test_other_modules_of_stablehlo_are_refused(tmp_path, options, said):
  path = exported(tmp_path / 'c.stablehlo', **options)
  with pytest.raises(UsageError, match=said):
    classifiers.load(path, SHAPE)
  if 'vjp_order' in options:  # a judge needs none
    assert classifiers.load(path, SHAPE, gradient=False).classes == 3


def test_no_module_of_stablehlo(tmp_path):
  (tmp_path / 'c.stablehlo').write_bytes(b'what else')
  with pytest.raises(UsageError, match='no module of jax.export'):
    classifiers.load(str(tmp_path / 'c.stablehlo'), SHAPE)


def test_the_judge_of_digits_is_of_the_other_family():
  for spec in ('digits', 'digits-3', 'digits+a.npz'):
    assert classifiers.judge_of(spec) == 'digits-kernel'
  for spec in ('digits-kernel', 'digits-kernel+a.npz'):
    assert classifiers.judge_of(spec) == 'digits'
  assert not classifiers.judge_of('my_module:digits')


def test_clip_names_the_text_that_is_nearest(clip_file, pictures):
  clip = clips.load(clip_file)
  texts = ['a cat', 'a dog', 'a seven']
  found = classifiers.zero_shot(clip, texts).predict(pictures)
  want = clip.images(pictures) @ np.stack([clip.text(text) for text in texts]).T
  scale = np.exp(np.asarray(clip.params['logit_scale']))
  np.testing.assert_allclose(found, scale * want, atol=1e-4)


def test_digits_and_their_judge_know_held_out_ones(tmp_path, monkeypatch):
  monkeypatch.setattr(digit_classifiers, 'EPOCHS', 2)
  images, labels, held_out = digit_classifiers.samples()
  assert images.shape == (1797, 32, 32, 1) and held_out.sum() == 360 and held_out[::5].all()
  files.write_atomic(
    tmp_path / 'x.npz', files.npz(images=images[:40].repeat(2, 1), labels=labels[:40])
  )
  found = {}
  for spec, least in (('digits', 0.8), ('digits-kernel', 0.97), (f'digits+{tmp_path}/x.npz', 0.8)):
    classifier = classifiers.load(spec, (32, 32, 1))
    assert (classifier.predict(images[held_out]).argmax(1) == labels[held_out]).mean() > least
    found[spec] = classifier.hash
  assert len(set(found.values())) == 3
  # rectangles and colours are seen in the middle, in grey
  wide = np.pad(images[:9], [(0, 0), (0, 0), (16, 16), (0, 0)]).repeat(3, 3)
  np.testing.assert_allclose(classifier.predict(wide), classifier.predict(images[:9]), atol=1e-3)
  for arrays, said in (
    ({'images': images[:2], 'labels': [3, 10]}, 'no digits: .3, 10'),
    ({'images': images[:2, ..., 0], 'labels': labels[:2]}, r'images uint8 \(2, 32, 32\)'),
    ({'images': images[:2]}, 'KeyError'),
  ):
    files.write_atomic(tmp_path / 'bad.npz', files.npz(**arrays))
    with pytest.raises(UsageError, match=said):
      classifiers.load(f'digits+{tmp_path}/bad.npz', (32, 32, 1))


# ---- the tool


@pytest.fixture(scope='module')
def file(moves, tmp_path_factory):
  """A file of directions."""
  path = tmp_path_factory.mktemp('moves') / 'moves.npz'
  direction.write(path, moves)
  return path


@pytest.fixture
def search(run, module, file):
  """Calls the tool on the run."""

  def search(*args):
    given = [f'--checkpoint={run}', '--classifier=my_classifiers:four', '--seeds=0-4']
    given += [f'--directions={file}', '--judge=my_classifiers:judge', '--steps=30', '--batch=2']
    given += ['--max_amount=3', '--lr=0.1']
    call(tool, *given, *args)

  return search


class Early(Stop):
  """As a signal at the first step of the second batch."""

  def __enter__(self):
    super().__enter__()
    self.signal = signal.SIGTERM
    return self

  def __bool__(self):
    return searches.path(Early.out, 1).exists()


def test_a_search_is_told_whole_and_goes_on(
  search, net, run, tmp_path, capsys, monkeypatch, module
):
  out = tmp_path / 'whole'
  monkeypatch.setattr(progress, 'EVERY', 0)
  search(f'--out={out}', '--transfer=my_classifiers:judge')
  whole = contents(out)
  names = {'adversarial.json', 'adversarial.npz', 'sheet.png'}
  assert set(whole) == names | {f'seeds/seed000{i}.npz' for i in range(5)}
  document = json.loads(whole['adversarial.json'])
  rows = document['images']
  assert [row['seed'] for row in rows] == [0, 1, 2, 3, 4] and document['truth'] == 'judge'
  # ---- rows are what the files of seeds show
  own, judge = (classifiers.load(f'my_classifiers:{x}', SHAPE) for x in ('four', 'judge'))
  before = net(range(5))
  for row in rows:
    path = out / 'seeds' / f'seed000{row["seed"]}.npz'
    with np.load(path) as arrays:
      after = arrays['after'][None]
      assert np.abs(arrays['before'].astype(int) - before[row['seed']]).max() <= 1
    assert (
      row['said'] == own.predict(after).argmax() and row['seen'] == judge.predict(after).argmax()
    )
    told = [(row['said_before'], row['seen_before']), (row['said'], row['seen'])]
    right = [[x == row['class'] for x in pair] for pair in told]
    assert row['counts'] == all(right[0])
    assert row['success'] == (row['counts'] and right[1] == [False, True])
    assert row['transfer']['my_classifiers:judge'] == {
      'said_before': row['seen_before'],
      'said': row['seen'],
    }
    assert row['length'] == pytest.approx(np.linalg.norm(list(row['amounts'].values())))
    edited = net([row['seed']], edit=direction.read(path))
    assert np.abs(edited.astype(int) - after).max() <= 1
  # ---- the figures are those of the rows
  judged = [row for row in rows if row['counts']]
  successes = [row for row in judged if row['success']]
  assert document['judged'] == len(judged) and 0 < len(successes)
  assert document['success_rate'] == len(successes) / len(judged)
  assert document['control_rate'] == np.mean([row['control']['success'] for row in judged])
  assert document['texts']['bend']['of'] == len(judged)
  assert document['transfer']['my_classifiers:judge']['success_rate'] == 0
  with np.load(out / 'adversarial.npz') as arrays:
    assert arrays['seeds'].tolist() == [row['seed'] for row in successes]
    assert arrays['labels'].tolist() == [row['class'] for row in successes]
    shown = net.images(arrays['ws'][:1], edit=None)
    assert arrays['images'].shape[1:] == shown.shape[1:] and f'styles/{LAYER}' in arrays
  assert Image.open(out / 'sheet.png').width > 200
  said, log = capsys.readouterr()
  assert 'searches: 2 of 5 seeds, step 1 of 30, ' in log
  assert f'{len(judged)} of 5 seeds count' in said and 'paint0: alone flips' in said

  # ---- stopped, it goes on to the same
  Early.out = out = tmp_path / 'parts'
  monkeypatch.setattr(tool, 'Stop', Early)
  args = [f'--out={out}', '--transfer=my_classifiers:judge']
  with pytest.raises(Preempted, match='the same command goes on'):
    search(*args)
  assert set(contents(out)) == {'seeds/seed0000.npz', 'seeds/seed0001.npz'}
  monkeypatch.setattr(tool, 'Stop', Stop)
  search(*args)
  assert contents(out) == whole
  monkeypatch.setattr(adversarial, 'Search', pytest.fail)  # nothing is done again
  search(*args)
  with pytest.raises(UsageError, match='seed0000.npz holds something else .kappa: 0.1 there, 1.0'):
    search(*args, '--kappa=1')
  with pytest.raises(UsageError, match='holds something else .start: .*another --out'):
    search(*args, '--psi=0.5')
  (out / 'seeds' / 'seed0002.npz').write_bytes(b'mine')
  with pytest.raises(UsageError, match='seed0002.npz holds something else'):
    search(*args)
  assert contents(out)['seeds/seed0002.npz'] == b'mine'


def test_texts_are_those_of_the_class(search, net, moves, clip_file, tmp_path, monkeypatch):
  asked = []

  def of_texts(sampler, source, target, clip, channels=None, stop=()):
    assert sampler.hash() == net.hash() and clip.name == clip_file and channels == 3
    asked.append((source, target))
    return moves[len(asked) % 2]

  monkeypatch.setattr(text_directions, 'direction', of_texts)
  (tmp_path / 'texts').write_text('a thin {} => a thick {}\n\na red {} => a blue one\n')
  args = [f'--clip={clip_file}', '--directions=', f'--texts={tmp_path}/texts', '--channels=3']
  args += ['--class_names=cat,ape,dog', '--judge=clip', '--steps=2', '--seeds=0-7']
  args += ['--classifier=my_classifiers:columns']
  search(*args, f'--out={tmp_path / "out"}')
  classes = {row: name for row, name in enumerate(('cat', 'ape', 'dog'))}
  document = json.loads((tmp_path / 'out' / 'adversarial.json').read_text())
  assert document['truth'] == 'label'
  shown = {classes[row['class']] for row in document['images']}
  assert [row['class'] for row in document['images']] == net.c(range(8)).argmax(1).tolist()
  assert len(shown) > 1 and set(asked) == {
    pair
    for name in shown
    for pair in (
      (f'a thin {name}', f'a thick {name}'),
      (f'a red {name}', 'a blue one'),
    )
  }
  assert len(asked) == 2 * len(shown)
  assert list(document['texts']) == ['a thin {} => a thick {}', 'a red {} => a blue one']
  assert document['judge_took_part'] is True and document['about']['class_text'] == 'a {}'
  clip = clips.load(clip_file)
  row = document['images'][0]
  with np.load(tmp_path / 'out' / 'seeds' / 'seed0000.npz') as arrays:
    text = clip.text(tool.say('a {}', classes[row['class']]))
    cosine = clip.images(arrays['after'][None])[0] @ text
  assert row['text_after'] == pytest.approx(cosine, abs=1e-4)
  # the judge is CLIP as well
  agrees = [row['text_agrees'] for row in document['images']]
  assert agrees == [row['seen'] == row['class'] for row in document['images']]


def test_in_w_plus_along_a_pair_of_texts(search, clip_file, tmp_path, monkeypatch):
  asked = []

  def between(clip, source, target):
    asked.append((source, target))
    return np.eye(clip.architecture.embed_dim, dtype=np.float32)[0]

  monkeypatch.setattr(text_directions, 'between', between)
  args = [f'--clip={clip_file}', '--directions=', '--texts=a cat=>a dog', '--space=w+']
  search(*args, '--text_term=move', '--seeds=0-1', '--steps=3', f'--out={tmp_path}')
  document = json.loads((tmp_path / 'adversarial.json').read_text())
  assert set(asked) == {('a cat', 'a dog')}
  assert 'texts' not in document and 'span_rate' not in document
  assert document['about']['text_term'] == 'move' and not document['judge_took_part']
  move = direction.read(tmp_path / 'seeds' / 'seed0000.npz')
  assert move.ws.shape[1] == 8 and not move.styles


def test_texts_of_classes():
  assert [tool.say('a thin {}', x) for x in ('eight', 'one')] == ['a thin eight', 'a thin one']
  assert [tool.say('a {}', x) for x in ('eight', 'one', 'two')] == ['an eight', 'a one', 'a two']


@pytest.mark.parametrize(
  'args, said',
  [
    (['--classifier='], '--classifier is missing'),
    (['--judge='], 'independent --judge'),
    (['--judge=clip'], '--judge=clip needs --clip'),
    (['--judge=my_classifiers:four'], 'is the classifier; name an independent one'),
    (['--classifier=digits', '--judge=digits-1'], 'of the family .*take --judge=digits-kernel'),
    (['--classifier=digits-kernel', '--judge=digits-kernel+a.npz'], 'take --judge=digits$'),
    (['--judge=digits-kernel'], '10 classes, --classifier=my_classifiers:four 4'),
    (['--directions='], 'amounts need directions'),
    (['--directions=', '--clip=CLIP'], 'say which texts'),
    (['--text_term=move', '--clip=CLIP'], 'one pair of --texts'),
    (['--clip=CLIP', '--directions=', '--texts=a=>b=>c'], 'a=>b=>c must be SOURCE=>TARGET'),
    (['--clip=CLIP', '--directions=', '--texts=/no/where'], 'nor a file of them'),
    (['--clip=CLIP', '--directions=', '--texts=a=>b;a=>b'], 'or one twice'),
    (['--class_text=cat'], 'must have {}'),
    (['--class_names=a,b'], '4 classes, and 2 are named .a, b.'),
    (['--class_names=a,b,a,c'], 'must be different names'),
    (['--class_names=a,b,,c'], 'none of them blank'),
    (['--lr=nan'], '--lr=nan'),
    (['--max_amount=0'], '--max_amount=0'),
    (['--lr=-1'], '--lr=-1'),
    (['--lr=nan'], 'finite'),
    (['--space=z'], '--space=z'),
  ],
)
def test_bad_input(search, clip_file, tmp_path, args, said):
  with pytest.raises(UsageError, match=said):
    search(f'--out={tmp_path / "out"}', *(arg.replace('CLIP', clip_file) for arg in args))
  assert not (tmp_path / 'out' / 'seeds').exists()


def test_lpips_wants_its_weights(search, tmp_path, monkeypatch):
  monkeypatch.setenv('SG2JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.delenv('SG2JAX_WEIGHTS', raising=False)
  with pytest.raises(WeightsError, match='vgg16.*--distance=pyramid'):
    search('--distance=lpips', f'--out={tmp_path / "out"}')


def test_a_loss_that_is_not_finite(search, tmp_path):
  with pytest.raises(NonFiniteError, match='smaller --lr'):
    search('--space=w+', '--directions=', '--lr=1e30', f'--out={tmp_path / "out"}')


# ---- several devices


def results(net):
  """What searches come to, by the devices that there are: (last Losses, done, Found) of each."""
  moves, start = make_moves(net), make_start(net)
  some = np.arange(8) != 2
  found = []
  for judge, fields in (
    (SEES_NONE, {'steps': 6, 'active': some, 'most': 3.0}),
    (SEES_NONE, {'steps': 6, 'active': some, 'space': 'w+'}),
    (seeing(start[1]), {'most': 3.0}),
  ):
    losses, search = searched(net, start, moves, judge, **fields)
    found.append((losses[-1], search.done, search.result()))
  return found


@pytest.mark.slow
def test_one_and_three_devices_agree(run):
  """Of 8 images three devices have nine rows, one of them twice."""
  on_devices(3, __file__, run)


if __name__ == '__main__':
  assert jax.device_count() == 3
  given = sg2jax.load(sys.argv[1])
  three = results(given)
  real = sharding.make_mesh
  sharding.make_mesh = lambda: real(jax.devices()[:1])
  for (losses, done, x), (losses_of_one, done_of_one, y) in zip(three, results(given)):
    np.testing.assert_allclose(losses.loss, losses_of_one.loss, atol=1e-3)
    np.testing.assert_array_equal(done, done_of_one)
    np.testing.assert_array_equal(x.steps, y.steps)
    np.testing.assert_allclose(x.params, y.params, atol=1e-3)
    assert np.abs(x.images.astype(int) - y.images).max() <= 1
    for what, move in x.moves.items():
      np.testing.assert_allclose(move, y.moves[what], atol=2e-3, err_msg=what)
  assert three[-1][1].sum() >= 5
