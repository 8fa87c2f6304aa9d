"""Evaluation of a tiny checkpoint: names, what a metric sees, metrics, and the tool.

With networks of others, in processes that are killed, on several devices: `-m slow`.
"""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import pytest

from configs import quickstart
from sg2jax import build, data, sampler, sharding
from sg2jax.data.labels import Labels
from sg2jax.evaluation import features, measure, protocols, reals, scores, swd
from sg2jax.faults import (
  CheckpointError,
  DatasetError,
  Preempted,
  UsageError,
  WeightsError,
)
from sg2jax.state import TrainState
from sg2jax.tools import evaluate
from tests.reference import cases_detectors
from tests.reference.check import read_manifest
from tests.runs import ROOT, TINY, call, write_run, xla_flags


@pytest.fixture(scope='module')
def run(home, tmp_path_factory):
  """A workdir with the checkpoint of a tiny network of random numbers, with classes, 16 px."""
  config = quickstart.get_config()
  fields = {'resolution': 16, 'metrics': (), 'data.dir': str(home / 'data')}
  config.update_from_flattened_dict(TINY | fields)
  generator, _ = build.networks(config, 10)
  shapes = jax.eval_shape(
    lambda key: generator.init(key, jnp.zeros((1, 16)), jnp.zeros((1, 10)), noise_mode='const'),
    jax.random.key(0),
  )
  random = np.random.RandomState(0)

  def draw(x):
    return np.float32(random.randn(*x.shape) * (0.1 if x.ndim < 2 else 1))

  params = jax.tree.map(draw, shapes['params'])
  noise = jax.tree.map(draw, shapes['noise'])
  zero = np.zeros((), np.int32)
  w_avg = np.zeros(16, np.float32)
  state = TrainState(zero + 3, zero, {}, {}, params, {}, {}, noise, w_avg, zero)
  workdir = tmp_path_factory.mktemp('evaluated')
  return write_run(workdir, config.to_dict() | {'c_dim': 10}, state)


@pytest.fixture(scope='module')
def source(home):
  """The data set of the run."""
  return data.load('digits', str(home / 'data'), (16, 16), 1, True)


@pytest.fixture
def setting(quick_compile, run, source, tmp_path, monkeypatch):
  """What `measure` takes, with a cache of its own."""
  monkeypatch.setenv('SG2JAX_CACHE', str(tmp_path / 'cache'))
  mesh = sharding.make_mesh(jax.devices()[:1])
  return measure.Setting(sampler.load(run), source, mesh, tmp_path / 'out', batch=32)


def values(names, setting):
  """{name: value} of metrics."""
  found = {}
  for document in measure.measure([protocols.parse(name) for name in names], setting):
    found |= document['values']
  return found


# ---- names


@pytest.mark.smoke
@pytest.mark.parametrize(
  'name, kind, count, full',
  [
    ('fid50k_full', 'fid', 50_000, True),
    ('fid50k', 'fid', 50_000, False),
    ('kid50k_full', 'kid', 50_000, True),
    ('is50k', 'is', 50_000, True),
    ('pr50k3', 'pr', 50_000, False),
    ('swd', 'swd', 16_384, True),
    ('fid2.5k_full', 'fid', 2500, True),
    ('ppl2_wend', 'ppl', 50_000, True),
    ('ppl_1k_zfull', 'ppl', 1000, True),
    ('pixelnn0.2k', 'pixelnn', 200, True),
  ],
)
def test_a_name_is_the_protocol(name, kind, count, full):
  assert protocols.parse(name)[:4] == (name, kind, count, full)


def test_path_lengths_by_name():
  assert protocols.parse('ppl2_wend')[4:] == (False, 'w', 'end')
  assert protocols.parse('ppl_zfull')[4:] == (True, 'z', 'full')


def test_every_kind_has_a_name_and_a_function():
  assert scores.SCORES.keys() == protocols.KINDS.keys()
  for name, kind in protocols.KINDS.items():
    assert protocols.parse(kind.example).of_kind is kind is protocols.KINDS[name]
  assert protocols.parse(protocols.OFFLINE).weights == ()


@pytest.mark.parametrize(
  'name',
  'fid fid50 fid0k fid0.001k is0.009k pr0.003k3 FID50k fid50k_half pr50k5 ppl_wmid ls'.split()
  + [''],
)
def test_unknown_names_are_refused(name):
  with pytest.raises(UsageError, match='fid50k_full|use 0'):
    protocols.parse(name)


# ---- what is seen


def test_latents_belong_to_the_number_of_a_fake(setting):
  def draw(numbers):
    return features.latents(setting._replace(seed=5), np.array(numbers))

  one = draw(range(250, 270))
  other = draw([600, 262, 3])
  for name in ('z', 'z1', 't', 'label'):
    np.testing.assert_array_equal(one[name][0, 12], other[name][0, 1])
  many = draw(range(2000))
  z = many['z'][0]
  assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02 and abs(many['t'].mean() - 0.5) < 0.03
  assert len(np.unique(z[:, 0])) == 2000
  assert abs(np.corrcoef(z[:, 0], many['z1'][0, :, 0])[0, 1]) < 0.1
  reals = np.mean([setting.source.label(i) for i in range(len(setting.source))], 0)
  assert np.abs(many['label'][0].mean(0) - reals).max() < 0.03


def test_fakes_have_noise_of_their_own_and_are_never_normalised(setting, monkeypatch):
  def show(numbers, seed=0):
    return features.fake_images(setting._replace(seed=seed), numbers)

  few = show([3])
  many = show([0, 1, 2, 3])
  assert np.abs(few[0].astype(int) - many[3]).max() <= 1  # a level may flip by rounding
  assert (show([3], 1) != few).mean() > 0.5
  draw = features.latents

  def same_latents(*args):
    drawn = draw(*args)
    return {k: x if k == 'number' else 0 * x + x[:, :1] for k, x in drawn.items()}

  monkeypatch.setattr(features, 'latents', same_latents)
  noise = show([0, 1, 2, 3])
  assert all((noise[0] != other).mean() > 0.1 for other in noise[1:])
  flat = np.float32([-3, -1, 0, 1, 3])
  assert sampler.to_uint8(flat).tolist() == [0, 0, 128, 255, 255]


def test_reals_full_or_as_training_draws_them(setting):
  source = setting.source
  raw = features.Detector('raw', '', True, '', {}, lambda _, images: {'pixels': images})

  def look(name):
    s = setting._replace(seed=4)
    job = features.reals_pass(s, protocols.parse(name), source, raw, np.array([5, 0, 7]))
    return job.compute(0, 3, 4)['pixels']

  full = look('pixelfd1k_full')
  np.testing.assert_array_equal(full, [source[i]['image'] for i in (5, 0, 7)])
  stream = data.stream(source, seed=4, mirror=True)
  np.testing.assert_array_equal(look('pixelfd1k'), [stream[i]['image'] for i in (5, 0, 7)])
  batch = next(data.batches(source, batch=8, microbatch=8, seed=4, mirror=True, nimg=0))['image'][0]
  np.testing.assert_array_equal(stream[7]['image'], batch[7])


def test_shrink_on_the_device_is_that_of_the_host():
  images = np.random.default_rng(0).integers(0, 256, (2, 15, 42, 3), np.uint8)
  for factor in (1, 2, 7):
    h, w = 15 // factor, 42 // factor
    boxes = images[:, : h * factor].reshape(2, h, factor, w, factor, 3)
    expected = np.rint(boxes.mean((2, 4)))
    np.testing.assert_array_equal(data.shrink(images, factor), expected)
    shrunk = jax.jit(data.shrink, static_argnums=1)(images, factor)
    np.testing.assert_array_equal(shrunk, expected)


def test_a_missing_package_is_an_error_before_anything_is_computed(monkeypatch):
  monkeypatch.setitem(sys.modules, 'lpips_j', None)
  with pytest.raises(ModuleNotFoundError, match='lpips_j'):
    features.load('vgg16', (8, 8, 3), {})


def test_all_missing_weights_of_a_network_are_named_at_once():
  files = {'vgg16': '/nowhere/v.pth', 'lpips_vgg': '/nowhere/l.pth'}
  with pytest.raises(WeightsError, match='(?s)nowhere/v.pth.*nowhere/l.pth'):
    features.load('lpips', (64, 64, 3), files)


def test_networks_take_grey_and_rgb_only():
  assert features.colour(np.ones((2, 4, 4, 1))).shape == (2, 4, 4, 3)
  with pytest.raises(UsageError, match='4 channels'):
    features.load('inception', (8, 8, 4), {})


def test_reals_are_found_by_content_not_by_place(setting, tmp_path):
  """A second copy of the data set uses the cache; the same place with other images doesn't."""
  detector = features.load('pixels', setting.source.shape, {})
  plain = setting.sampler.config.copy_and_resolve_references()
  plain.data.mirror = False

  def key(source, name='pixelfd1k_full', detector=detector, **changes):
    s = setting._replace(**changes)
    return features.reals_pass(s, protocols.parse(name), source, detector, np.arange(9)).key

  copy = data.load('digits', str(tmp_path / 'elsewhere'), (16, 16), 1, True)
  assert copy.place != setting.source.place and key(copy) == key(setting.source)
  copy.hash = 'of other images'
  others = [
    key(copy),
    key(setting.source),
    key(setting.source, 'pixelnn1k'),  # rows, not moments
    key(setting.source, detector=detector._replace(hash='of other weights')),
    key(setting.source, 'pixelfd1k'),
    key(setting.source, 'pixelfd1k', seed=1),
    key(setting.source, 'pixelfd1k', sampler=setting.sampler._replace(config=plain)),
  ]
  assert len(set(others)) == 7


@pytest.mark.parametrize(
  'shape, each',
  [((4, 4), 32), ((512, 256), 32), ((512, 512), 16), ((1024, 512), 8), ((8192, 8192), 1)],
)
def test_images_at_once_are_bound_by_their_pixels(shape, each, run):
  assert sampler.images_at_once(shape) == each and sampler.images_at_once((*shape, 3)) == each
  source = type('Source', (), {'shape': (*shape, 3)})
  mesh = type('Mesh', (), {'size': 8})
  assert measure.Setting(None, source, mesh, None).at_once == 8 * each
  assert measure.Setting(None, source, mesh, None, batch=24).at_once == 24
  assert 2 * features.pairs_at_once(shape) <= max(2, each)
  net = sampler.load(run)
  big = net.generator.clone(synthesis=net.generator.synthesis.clone(resolution=shape))
  assert net._replace(generator=big).batch == each * jax.device_count()


def precisions(step, *args):
  """Those of all products of float32 arrays in a step."""
  found = set()

  def look(jaxpr):
    for eqn in jaxpr.eqns:
      if eqn.primitive.name in ('dot_general', 'conv_general_dilated'):
        found.add(str(eqn.params['precision']))
      for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else [value]:
          inner = getattr(part, 'jaxpr', part)
          if hasattr(inner, 'eqns'):
            look(inner)

  look(jax.make_jaxpr(step)(*args).jaxpr)
  return found


def test_what_is_looked_at_is_made_in_full_precision(run):
  net = sampler.load(run)
  mesh = sharding.make_mesh(jax.devices()[:1])
  z = np.zeros((1, 4, 16), np.float32)
  label = np.zeros((1, 4, 10), np.float32)
  number = np.zeros((1, 4), np.int32)
  ws = np.zeros((1, 4, net.num_ws, 16), np.float32)
  eye = np.eye(3, dtype=np.float32)

  def product(params, x):
    return {'a': x.reshape(len(x), -1)[:, :3].astype(np.float32) @ params}

  fakes = features._fakes_step(mesh, net.generator, (), 0, (('a', product),))
  latents = {'z': z, 'label': label, 'number': number}
  reals = features._reals_step(mesh, product, 'a')
  steps = {
    'fakes': (fakes, net.variables, {'a': eye}, latents),
    'reals': (reals, eye, {'image': np.zeros((1, 4, 3), np.float32)}),
    'w': (sampler._map_step(mesh, net.generator), net.variables, {'z': z, 'c': label}),
    'images': (
      sampler._images_step(mesh, net.generator, (), 'const'),
      net.variables,
      {'ws': ws, 'number': number},
    ),
  }
  for name, (step, *args) in steps.items():
    assert precisions(step, *args) == {'(Precision.HIGHEST, Precision.HIGHEST)'}, name


# ---- metrics


def test_metrics_without_networks(setting, monkeypatch):
  monkeypatch.setattr(swd, 'DIRECTIONS', 64)
  monkeypatch.setattr(swd, 'CELLS', 2**13)
  names = ['swd_0.2k', 'pixelfd0.2k_full', 'pixelfd0.2k', 'pixelnn0.2k']
  found = values(names, setting)
  assert set(found) == {*names[:3], 'pixelnn0.2k_farther', 'pixelnn0.2k_z'}
  document = json.loads((setting.out / 'pixelfd0.2k_full.json').read_text())
  low, high = document['intervals_95']['pixelfd0.2k_full']
  assert low < found['pixelfd0.2k_full'] < high
  assert (document['fakes'], document['reals']) == (200, len(setting.source))
  assert document['data']['sha256'] == setting.source.hash
  assert document['data']['resize_filter'] == 'lanczos'
  assert document['checkpoint']['step'] == 3 and document['seed'] == 0
  assert document['detector']['resize'] == 'box, 1/1'
  assert found['pixelnn0.2k_farther'] > 0.9  # noise is no copy of a digit
  assert (setting.out / 'pixelnn0.2k.png').stat().st_size > 1000
  # batches of 7 give the same
  again = values(names[1:2], setting._replace(batch=7, out=setting.out.with_name('seven')))
  assert again['pixelfd0.2k_full'] == pytest.approx(found['pixelfd0.2k_full'], rel=1e-6)
  # what is there isn't measured again, unless it is torn
  path = setting.out / 'swd_0.2k.json'
  path.write_text(path.read_text().replace(f'"swd_0.2k": {found["swd_0.2k"]}', '"swd_0.2k": -1.0'))
  assert values(['swd_0.2k'], setting) == {'swd_0.2k': -1}
  assert values(['swd_0.2k'], setting._replace(seed=1))['swd_0.2k'] > 0
  path.write_text('{"torn')
  assert values(['swd_0.2k'], setting)['swd_0.2k'] == found['swd_0.2k']


def test_reals_of_a_protocol(setting):
  class Large:
    """A data set of more images than any metric takes."""

    def __len__(self):
      return 250_000

  many = setting._replace(source=Large(), seed=3)

  def population(name, setting=many):
    return measure.population(protocols.parse(name), setting)

  assert len(population('fid50k_full')) == 250_000
  np.testing.assert_array_equal(population('fid0.5k'), np.arange(500))
  some = population('pr50k3_full')
  assert len(some) == 200_000 and (np.diff(some) > 0).all() and some[-1] >= 200_000
  assert (some != population('pr50k3_full', many._replace(seed=4))).any()
  assert len(population('swd_4k')) == 4000 and len(population('swd_4k', setting)) == 1797
  assert measure.count(protocols.parse('swd'), setting) == 1797


def test_a_network_in_its_last_fade_has_no_path_length(setting):
  net = setting.sampler._replace(growing={'stage': 0, 'alpha': 0.5})
  assert net.grows and not setting.sampler.grows and net.hash() != setting.sampler.hash()
  with pytest.raises(UsageError, match='full size'):
    values(['ppl2_wend'], setting._replace(sampler=net))
  with pytest.raises(UsageError, match='32 px or more'):
    values(['ppl_wend'], setting)
  config = setting.sampler.config.copy_and_resolve_references()
  config.g.clamp = 1.0
  assert setting.sampler._replace(config=config).hash() != setting.sampler.hash()


def test_copies_are_seen(setting):
  """Fakes of which each is a real: distance 0, z far below 0; against held-out reals as well."""
  p = protocols.parse('pixelnn0.3k')
  rows = np.stack([setting.source[i]['image'].ravel() for i in range(600)]).astype(np.float32)
  copies = scores.Features(rows[100:400], rows, np.arange(600) + 7)
  found = scores.nearest_reals(p, copies, 0, lambda: None)
  assert found.values['pixelnn0.3k_farther'][0] == 0 and found.values['pixelnn0.3k_z'][0] < -20
  assert found.notes['closest_fakes'] == list(range(32))
  assert found.notes['their_reals'] == list(range(107, 139))
  assert found.notes['held_out'].startswith('each real')
  # "held-out" reals that were trained on: no difference then
  found = scores.nearest_reals(p, copies._replace(holdout=rows[:99]), 0, lambda: None)
  assert [value for value, _ in found.values.values()] == [0.5, 0]
  assert found.notes['held_out'] == 'holdout'
  with pytest.raises(UsageError, match='is the data set itself'):
    values(['pixelnn0.3k'], setting._replace(holdout=setting.source))


@pytest.mark.parametrize(
  'name, shape, said',
  [
    ('swd', (4, 4, 1), 'sides of 7 px or more; these images have 4x4'),
    ('swd', (6, 6, 1), '6x6'),
    ('swd', (7, 7, 1), ''),
    ('swd', (8, 2048, 1), '112 px or more; these images have 8x2048'),
    ('swd', (512, 32, 1), ''),
    ('pixelfd1k_full', (4, 16, 1), ''),
    ('pixelnn1k', (4, 256, 1), '16 px'),
    ('ppl2_1k_wend', (8, 16, 3), '16 px'),
    ('ppl_1k_wend', (16, 16, 3), '32 px'),
    ('ppl_1k_wend', (32, 32, 3), ''),
    ('fid1k', (4, 4, 1), ''),
  ],
)
def test_images_that_are_too_small_for_a_metric(name, shape, said):
  reason = measure.unfit(protocols.parse(name), shape)
  if not said:
    assert reason == ''
    return
  assert said in reason and name in reason
  source = type('Source', (), {'shape': shape, '__len__': lambda _: 99})()
  with pytest.raises(UsageError, match='px or more'):
    measure.load([protocols.parse(name)], source, {})


# ---- the tool


@pytest.mark.parametrize(
  'flags, fault, said',
  [
    (['--metrics=fid'], UsageError, "'fid' is unknown"),
    (['--data=/nowhere'], DatasetError, 'nowhere'),
    (['--metrics=fid50k_full,ppl2_wend'], WeightsError, 'fetch_weights inception lpips_vgg vgg16'),
    (['--checkpoint=/nowhere', '--metrics=swd'], CheckpointError, '/nowhere'),
  ],
)
def test_bad_input_is_refused(run, monkeypatch, tmp_path, flags, fault, said):
  monkeypatch.setenv('SG2JAX_CACHE', str(tmp_path / 'no weights here'))
  with pytest.raises(fault, match=said):
    call(evaluate, f'--checkpoint={run}', *flags)
  assert not (run / 'evaluation').exists()


def test_a_signal_loses_the_pass_that_is_computed_and_no_result(
  quick_compile, source, run, tmp_path, monkeypatch, capsys
):
  """SIGTERM while the second pass over fakes is made; the same command goes on with that."""
  monkeypatch.setenv('SG2JAX_CACHE', str(tmp_path / 'cache'))
  out = tmp_path / 'out'
  command = f'--checkpoint={run}', '--metrics=pixelfd0.1k_full,swd_0.2k', f'--out={out}'
  draw = features.latents
  drawn = []

  def latents(*args):
    drawn.append(args[1][0])
    if len(drawn) == 6:
      os.kill(os.getpid(), signal.SIGTERM)
    return draw(*args)

  monkeypatch.setattr(features, 'latents', latents)
  with pytest.raises(Preempted, match='the same command goes on'):
    call(evaluate, *command, '--batch=32')
  assert drawn == [0, 32, 64, 96, 0, 32]
  assert [path.name for path in out.iterdir()] == ['pixelfd0.1k_full.json']
  cached = sorted((tmp_path / 'cache').rglob('*-*.np?'))
  assert len(cached) == 2  # the reals of both
  call(evaluate, *command, '--batch=100')
  assert drawn[6:] == [0, 100] and len(list(out.iterdir())) == 2
  assert '(measured before)' in capsys.readouterr().out
  assert sorted(path for path in (tmp_path / 'cache').rglob('*') if path.is_file()) == cached


def test_tiny_networks_are_measured_by_what_suits_them(capsys):
  def net(side, metrics=()):
    config = ConfigDict({'resolution': side, 'metrics': metrics})
    return type('Net', (), {'workdir': 'W', 'config': config})

  assert [p.name for p in evaluate.defaults(net(16))] == ['swd', protocols.OFFLINE]
  assert [p.name for p in evaluate.defaults(net((4, 16)))] == [protocols.OFFLINE]
  assert (
    'left out: swd needs sides of 7 px or more; these images have 4x16' in capsys.readouterr().err
  )
  with pytest.raises(UsageError, match='W: none of the metrics'):
    evaluate.defaults(net((4, 16), ('ppl2_wend',)))


CATS = Labels.of_classes(('cat', 'dog'), (3, 4))
VECTORS = Labels.of_vectors(np.eye(2) + 1)


@pytest.mark.parametrize(
  'ours, theirs, said',
  [
    (
      CATS,
      Labels.of_classes(('dog', 'cat'), (3, 4)),
      'its class 0 is dog, and that of the run cat; prepare',
    ),
    (
      CATS,
      Labels.of_classes(('cat', 'bird'), (3, 4)),
      'its class 1 is bird, and that of the run dog; prepare',
    ),
    (CATS, VECTORS, 'its labels are vectors; prepare'),
    (VECTORS, CATS, "the run's labels are vectors; prepare"),
    (CATS, Labels.of_classes(('cat', 'dog'), (9, 0)), ''),
    (Labels.unknown(2), CATS, ''),
    (Labels.unknown(2), VECTORS, ''),
    (CATS, Labels.unknown(2), ''),
  ],
)
def test_a_data_set_of_other_classes_is_refused(ours, theirs, said):
  if not said:
    reals.check_labels(ours, theirs, 'D/other')
    return
  with pytest.raises(DatasetError, match=said) as e:
    reals.check_labels(ours, theirs, 'D/other')
  assert 'D/other' in str(e.value) and '--data' in str(e.value)


def test_the_tool_compares_labels(run):
  net = sampler.load(run)
  assert reals.load(net).labels.c_dim == 10
  other = net._replace(labels=Labels.of_vectors(np.eye(10) + 1))
  with pytest.raises(DatasetError, match="the run's labels are vectors"):
    reals.load(other)


# ---- processes


def start(home, *flags, **env):
  """The running process of the tool on the CPU."""
  given = {
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': str(home / 'poison'),
    'XLA_FLAGS': xla_flags(),
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
  }
  return subprocess.Popen(
    [sys.executable, '-m', 'sg2jax.tools.evaluate', *flags],
    cwd=ROOT,
    env=os.environ | given | env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def results(out, names):
  """The documents of metrics."""
  return [json.loads((out / f'{name}.json').read_text()) for name in names]


@pytest.mark.slow
def test_killed_evaluation_on_eight_devices_ends_with_the_same_values(home, run, setting, tmp_path):
  """The tool, killed after its first metric, then on 8 devices; against one device."""
  names = ['pixelfd0.5k_full', 'pixelnn2k']
  alone = values(names, setting)
  out = tmp_path / 'tool'
  flags = f'--checkpoint={run}', f'--metrics={",".join(names)}', f'--out={out}'
  cache = str(tmp_path / 'cache')
  process = start(home, *flags, '--batch=2', SG2JAX_CACHE=cache)
  deadline = time.monotonic() + 120
  while not list(out.glob('*.json')):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  process.kill()
  process.communicate()
  assert len(list(out.glob('*.json'))) == 1
  devices = f'--xla_force_host_platform_device_count=8 {xla_flags()}'
  process = start(home, *flags, '--batch=64', SG2JAX_CACHE=cache, XLA_FLAGS=devices)
  text, err = process.communicate(timeout=200)
  assert process.returncode == 0 and 'pixelnn2k_z' in text, err
  assert '(measured before)' in text
  documents = results(out, names)
  assert [document['devices'] for document in documents] == [1, 8]
  found = {k: v for document in documents for k, v in document['values'].items()}
  assert found == pytest.approx(alone, rel=1e-6)


@pytest.fixture(scope='module')
def networks(tmp_path_factory):
  """Flags for weights of all networks, drawn at random, by the rules of the vectors."""
  folder = tmp_path_factory.mktemp('weights')
  random = np.random.default_rng(0)
  cases = {case['id']: case for case in read_manifest(ROOT / 'tests' / 'reference')}
  inception = cases['inception_v3_fid']['config']
  lpips = cases['lpips']['config']
  heads = {
    f'lin{i}.model.1.weight': random.random((1, width, 1, 1), np.float32)
    for i, width in enumerate((64, 128, 256, 512, 512))
  }
  arrays = {
    'inception': cases_detectors.inception_arrays(
      inception['weight_rule'], inception['state_dict']
    ),
    'vgg16': cases_detectors.vgg_arrays(lpips['vgg_weight_rule'], lpips['tapped_layers']),
    'lpips_vgg': heads,
  }
  inputs = 7 * 7 * 512
  for place, width in ((0, 4096), (3, 4096), (6, 1000)):
    weight = random.standard_normal((width, inputs), np.float32) / np.float32(inputs) ** 0.5
    arrays['vgg16'][f'classifier.{place}.weight'] = weight
    arrays['vgg16'][f'classifier.{place}.bias'] = np.zeros(width, np.float32)
    inputs = width
  for name in arrays:
    np.savez(folder / f'{name}.npz', **arrays[name])
  return [f'--weights={name}={folder / name}.npz' for name in arrays]


@pytest.mark.slow
def test_metrics_of_networks_whatever_the_batch_and_the_devices(
  home, run, source, networks, tmp_path
):
  """All of them, on 60 digits: batches of 32, of 7, and 8 devices."""
  from sg2jax.tools import prepare

  for i in range(60):
    folder = tmp_path / 'pictures' / str(source[i]['label'].argmax())
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(source[i]['image'][..., 0]).save(folder / f'{i}.png')
  prepared = f'--source={tmp_path / "pictures"}', '--labels=folder', f'--dest={tmp_path / "set"}'
  call(prepare, *prepared, '--resolution=16', '--channels=1')
  names = ['fid0.06k_full', 'fid0.06k', 'kid0.05k_full', 'is0.06k', 'pr0.06k3_full', 'nn0.06k']
  names += ['ppl2_0.016k_wend', 'ppl2_0.016k_zfull']
  found = []
  for batch, devices in ((32, 1), (7, 1), (64, 8)):
    out = tmp_path / f'{batch} on {devices}'
    process = start(
      home,
      f'--checkpoint={run}',
      f'--data={tmp_path / "set"}',
      f'--metrics={",".join(names)}',
      f'--batch={batch}',
      *networks,
      f'--out={out}',
      SG2JAX_CACHE=str(out / 'cache'),
      JAX_DISABLE_MOST_OPTIMIZATIONS='0',
      XLA_FLAGS=f'--xla_force_host_platform_device_count={devices}',
    )
    text, err = process.communicate()
    assert process.returncode == 0, err
    documents = results(out, names)
    assert not any(document['detector']['standard'] for document in documents)
    assert 'not the standard weights' in text
    found.append({k: v for document in documents for k, v in document['values'].items()})
    del found[-1]['is0.06k_std']
  assert len(found[0]) == 10 and found[0]['nn0.06k_farther'] > 0.5 and found[0]['is0.06k_mean'] >= 1
  assert found[1] == pytest.approx(found[0], rel=1e-6)
  assert found[2] == pytest.approx(found[0], rel=1e-6)
