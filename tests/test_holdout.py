"""Pictures that are kept aside: by content alone, never trained on, found again by the tools."""

import json
import pathlib

import numpy as np
from PIL import Image
import pytest

from sg2jax import build, data, sampler
from sg2jax.data import holdout, images, prepare
from sg2jax.evaluation import reals
from sg2jax.faults import DatasetError, UsageError
from sg2jax.tools import evaluate
from sg2jax.training.workdir import check_workdir, data_values
from tests.runs import call, random_run
from tests.test_workdir import config_of

COUNT = 60


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A prepared data set of COUNT pictures in three classes; the last ten repeat the first ten."""
  return write(tmp_path_factory.mktemp('pictures'), range(COUNT))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv('SG2JAX_CACHE', str(tmp_path_factory.mktemp('cache')))


def write(root, numbers):
  for i in numbers:
    folder = root / 'in' / 'abc'[i % 3]
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(i)).save(folder / f'{i:03d}.png')
  options = images.Options(8, 12)
  prepare.build(str(root / 'in'), str(root / 'set'), options, 'folder')
  return str(root / 'set')


def picture(i):
  seed = i - 50 if 50 <= i < COUNT else i
  return np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def load(place, share):
  return data.load('', place, (8, 12), 3, True, share)


def pixels(source):
  return [source[i]['image'].tobytes() for i in range(len(source))]


def test_the_content_decides_and_nothing_else(place, tmp_path):
  training = load(place, 0.3)
  held_out = training.held_out
  assert 10 <= len(held_out) <= 26 and len(training) + len(held_out) == COUNT
  assert sorted([*training.places, *held_out.places]) == list(range(COUNT))
  # Equal pictures, of which there are ten pairs, are on one side.
  assert not set(pixels(training)) & set(pixels(held_out))
  # What is added between them moves none of the others across.
  larger = load(write(tmp_path, range(COUNT + 60)), 0.3)
  assert set(pixels(training)) < set(pixels(larger))
  assert set(pixels(held_out)) < set(pixels(larger.held_out))
  # A larger share keeps those aside, and more.
  assert set(pixels(held_out)) < set(pixels(load(place, 0.6).held_out))


def test_a_share_is_about_that_share():
  numbers = [holdout.side(np.full((2, 2, 1), i, np.uint8)) for i in range(256)]
  numbers += [holdout.side(np.full((2, 3, 1), i, np.uint8)) for i in range(256)]
  assert len(set(numbers)) == 512 and 0 <= min(numbers) and max(numbers) < 1
  for share in (0.1, 0.5, 0.9):
    assert np.mean(np.array(numbers) < share) == pytest.approx(share, abs=0.06)
  # A number that stays what it is in every version: runs go on.
  assert holdout.side(np.zeros((1, 1, 1), np.uint8)) == 0.5797811962859424


def test_parts_are_sources(place):
  whole = load(place, 0.0)
  training = load(place, 0.3)
  held_out = training.held_out
  assert whole.held_out is None and held_out.held_out is None
  assert len({whole.hash, training.hash, held_out.hash, load(place, 0.6).hash}) == 4
  for part in (training, held_out):
    counts = np.zeros(3, int)
    for i, k in enumerate(part.places.tolist()):
      np.testing.assert_array_equal(part[i]['image'], whole[k]['image'])
      np.testing.assert_array_equal(part.label(i), whole.label(k))
      counts += whole.label(k).astype(int)
    assert list(part.labels.class_counts().values()) == counts.tolist()
    assert part.labels.names == whole.labels.names == ('a', 'b', 'c')
  assert load(place, 0.3).hash == training.hash
  grey = data.load('', place, (8, 12), 3, False, 0.3)
  assert grey.labels is None and grey.hash == training.hash


@pytest.mark.parametrize('level', [0, 1])
def test_no_minibatch_has_a_held_out_picture(place, level):
  training = load(place, 0.3)
  source = data.Shrunk(training, 2) if level else training
  aside = data.Shrunk(training.held_out, 2) if level else training.held_out
  forbidden = set(pixels(aside))
  forbidden |= {data.flip(aside[i]['image']).tobytes() for i in range(len(aside))}
  stream = data.batches(source, batch=8, microbatch=8, seed=0, mirror=True, nimg=0)
  seen = {x.tobytes() for _ in range(25) for x in next(stream)['image'][0]}
  stream.close()
  assert len(seen) == 2 * len(set(pixels(source))) and not seen & forbidden


def test_pictures_are_read_once_and_damage_is_noticed(place, monkeypatch, cache):
  found = holdout.sides(load(place, 0.0))
  (file,) = (pathlib.Path(holdout.paths.cache()) / 'holdout').iterdir()
  compute = holdout._compute
  monkeypatch.setattr(holdout, '_compute', None)
  np.testing.assert_array_equal(holdout.sides(load(place, 0.0)), found)
  monkeypatch.setattr(holdout, '_compute', compute)
  for damaged in (b'', file.read_bytes()[:-8], file.read_bytes()[:-1] + b'\0'):
    file.write_bytes(damaged)
    np.testing.assert_array_equal(holdout.sides(load(place, 0.0)), found)


@pytest.mark.parametrize(
  'share, said',
  [
    (1e-9, 'keeps none of its 60 images aside; give a larger share, such as 0.1'),
    (1 - 1e-9, 'keeps all of its 60 images aside; give a smaller share'),
  ],
)
def test_a_part_without_pictures_is_refused(place, share, said):
  with pytest.raises(DatasetError, match=said):
    load(place, share)


def test_too_few_to_train_on(place):
  training = load(place, 0.6)
  said = rf'data.holdout keeps {len(training.held_out)} aside\), fewer than batch=50; .*or lower'
  with pytest.raises(DatasetError, match=said):
    data.check_size(training, 50)


def test_a_run_keeps_its_share(place, tmp_path):
  """It is part of what a run is, and what it trains on is what is noted of it."""
  config = config_of(**{'data.dir': place, 'data.holdout': 0.3, 'resolution': (8, 12)})
  source = build.dataset(config)
  values = config.to_dict() | data_values(source)
  assert values['data_images'] == len(source) < COUNT
  (tmp_path / 'config.json').write_text(json.dumps(values))
  (tmp_path / 'checkpoints' / '1').mkdir(parents=True)
  (tmp_path / 'checkpoints' / '1' / 'manifest.json').write_text('{}')
  assert check_workdir(values, tmp_path) == []
  for share in (0.0, 0.4):
    config.data.holdout = share
    with pytest.raises(UsageError, match=f'data.holdout: 0.3 there, {share} here'):
      check_workdir(config.to_dict(), tmp_path)


# ---- the tools


@pytest.fixture(scope='module')
def run(tmp_path_factory, place):
  fields = {
    'resolution': (8, 12),
    'data.dir': place,
    'data.labels': True,
    'data.holdout': 0.3,
    'g.fmap_base': 32,
    'd.fmap_base': 32,
    'g.z_dim': 8,
    'g.w_dim': 8,
    'g.mapping_layers': 1,
  }
  return random_run(tmp_path_factory.mktemp('run'), (1, 0.1, 1, 1, 1), **fields)


def test_parts_of_the_data_of_a_run(run, place, tmp_path):
  net = sampler.load(run)
  whole = load(place, 0.0)
  training = load(place, 0.3)
  assert reals.load(net).hash == reals.load(net, place, part='training').hash == training.hash
  assert reals.load(net).held_out.hash == training.held_out.hash
  assert reals.load(net, part='holdout').hash == training.held_out.hash
  assert reals.load(net, place).hash == reals.load(net, part='all').hash == whole.hash
  net.config.data.holdout = 0.0
  with pytest.raises(UsageError, match='--part=holdout: .* was trained without data.holdout'):
    reals.load(net, part='holdout')


def test_results_of_other_pictures_lie_beside_those_of_the_runs_own(run, place):
  net = sampler.load(run)
  training = load(place, 0.3)
  net.config.data_hash = training.hash  # as training notes it
  whole = load(place, 0.0)
  assert [reals.subfolder(net, reals.load(net, part=part), '', part) for part in reals.PARTS] == [
    '',
    'holdout',
    'all',
  ]
  assert reals.subfolder(net, training) == reals.subfolder(net, training, place, 'training') == ''
  named = reals.subfolder(net, whole, place)
  assert named.endswith(f'-{whole.hash[:8]}') and len(pathlib.Path(named).parts) == 1
  # Without data.holdout all pictures are those that it was trained on.
  net.config.data_hash = whole.hash
  assert reals.subfolder(net, whole, '', 'all') == ''


def test_by_default_a_part_replaces_no_result(run, quick_compile):
  for part in ('training', 'holdout'):
    call(evaluate, f'--checkpoint={run}', '--metrics=pixelnn0.02k', f'--part={part}')
  step = run / 'evaluation' / f'{sampler.load(run).step:08d}'
  aside = json.loads((step / 'holdout' / 'pixelnn0.02k.json').read_text())['data']['images']
  trained = json.loads((step / 'pixelnn0.02k.json').read_text())['data']['images']
  assert aside + trained == COUNT and aside < trained


def test_copies_are_looked_for_beside_what_was_held_out(run, place, tmp_path, quick_compile):
  aside = len(load(place, 0.3).held_out)
  found = {}
  for part in ('training', 'holdout'):
    out = tmp_path / part
    call(
      evaluate,
      f'--checkpoint={run}',
      '--metrics=pixelnn0.02k',
      f'--part={part}',
      f'--out={out}',
    )
    found[part] = json.loads((out / 'pixelnn0.02k.json').read_text())
  assert {part: x['data']['images'] for part, x in found.items()} == {
    'training': COUNT - aside,
    'holdout': aside,
  }
  assert found['training']['holdout']['images'] == aside
  assert found['holdout']['holdout'] is None  # of each in turn among the others
