"""The data sets and the stream of batches: exact, resumable, refused with a remedy."""

import concurrent.futures
import io
import os
import pathlib
import pickle
import subprocess
import sys
import threading

import grain
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from sg2jax import data
from sg2jax.data import digits, images, prepare, records
from sg2jax.faults import DatasetError


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp('tfds'))


@pytest.fixture(scope='module')
def source(data_dir):
  return data.load('digits', data_dir, (16, 16), 1, True)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  """A prepared data set of ten 8x12 pictures without labels."""
  root = tmp_path_factory.mktemp('pictures')
  (root / 'in').mkdir()
  for i in range(10):
    noise = np.random.default_rng(i).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / 'in' / f'{i}.png')
  prepare.build(str(root / 'in'), str(root / 'set'), images.Options(8, 12))
  return str(root / 'set')


def take(source, count, **kwargs):
  stream = data.batches(
    source, **({'batch': 16, 'microbatch': 8, 'seed': 0, 'mirror': True, 'nimg': 0} | kwargs)
  )
  got = [next(stream) for _ in range(count)]
  stream.close()
  return np.concatenate([b['image'] for b in got]), np.concatenate([b['label'] for b in got])


def test_digits_are_the_digits(source):
  arrays = np.load(digits.ARRAYS)
  assert len(source) == 1797 and source.shape == (16, 16, 1) and source.c_dim == 10
  for i in (0, 1000, 1796):
    sample = source[i]
    assert sample['image'].dtype == np.uint8 and sample['label'].dtype == np.float32
    np.testing.assert_array_equal(sample['image'], digits.enlarge(arrays['images'][i], 16, 16))
    assert sample['label'].argmax() == arrays['labels'][i] and sample['label'].sum() == 1


def test_enlarge():
  image = np.load(digits.ARRAYS)['images'][0]
  assert digits.enlarge(image, 4, 4).shape == (4, 4, 1)
  wide = digits.enlarge(image, 20, 40)
  assert (wide[:, :10] == 0).all() and (wide[:, 30:] == 0).all()
  big = digits.enlarge(image, 80, 80)[4:68:8, 4:68:8, 0].astype(float)
  small = np.pad(image, 1)[:8, :8].astype(float)
  assert np.corrcoef(big.ravel(), small.ravel())[0, 1] > 0.95


def test_digits_read_by_tfds_and_stable_hash(source, tmp_path):
  again = data.load('digits', str(tmp_path), (16, 16), 1, False)
  assert again.hash == source.hash and again.c_dim == 0 and again[0]['label'].shape == (0,)
  assert data.load('digits', str(tmp_path), (16, 8), 1, False).hash != source.hash
  builder = tfds.builder_from_directory(tmp_path / 'digits/16x16/1.0.0')
  example = builder.as_data_source('train')[7]
  np.testing.assert_array_equal(example['image'], source[7]['image'])


def test_digits_built_by_two_at_once(tmp_path, monkeypatch):
  rename = os.rename
  both = threading.Barrier(2)

  def rename_last(source, target):
    if str(target).endswith(digits.VERSION):
      both.wait(60)  # until the other has built them, too
    rename(source, target)

  monkeypatch.setattr(digits.os, 'rename', rename_last)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    places = set(pool.map(lambda _: digits.prepare(tmp_path, 8, 8), range(2)))
  assert places == {tmp_path / 'digits/8x8' / digits.VERSION}
  assert os.listdir(tmp_path / 'digits/8x8') == ['1.0.0']
  assert len(data.load('digits', str(tmp_path), (8, 8), 1, True)) == 1797


def test_interrupted_digits_are_built_again(tmp_path, monkeypatch):
  def die(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(digits.os, 'rename', die)
    with pytest.raises(KeyboardInterrupt):
      digits.prepare(str(tmp_path), 8, 8)
  leftover = tmp_path / 'digits/8x8/.building-dead/digits/8x8/1.0.0'
  leftover.mkdir(parents=True)
  (leftover / 'dataset_info.json').write_text('{')
  assert len(data.load('digits', str(tmp_path), (8, 8), 1, False)) == 1797


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_stored_pngs_are_the_pixels(channels):
  """As Pillow reads them, which checks the sums of all parts, and the values modulo 256."""
  for height, width in ((1, 1), (1, 7), (300, 301)):
    image = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    with Image.open(io.BytesIO(records.png(image)), formats=('PNG',)) as picture:
      picture.verify()
    read = np.asarray(Image.open(io.BytesIO(records.png(image))))
    np.testing.assert_array_equal(read.reshape(image.shape), image)


def test_every_epoch_is_a_permutation_mirrored_of_twice_as_many(pictures):
  source = data.load('', pictures, (8, 12), 3, False)
  plain = {source[i]['image'].tobytes(): i for i in range(10)}
  flipped = {source[i]['image'][:, ::-1].tobytes(): i for i in range(10)}
  stream = data.stream(source, seed=0, mirror=True)
  flat = [stream[p]['image'].tobytes() for p in range(400)]
  order = [(plain.get(x, flipped.get(x)), x in flipped) for x in flat]
  assert order == [data.order(10, seed=0, mirror=True)[p] for p in range(400)]
  epochs = [tuple(order[i : i + 20]) for i in range(0, 400, 20)]
  both = [(i, is_flipped) for i in range(10) for is_flipped in (False, True)]
  assert all(sorted(epoch) == both for epoch in epochs) and len(set(epochs)) == 20
  # Plain and flipped ones are mixed: not one after the other.
  assert 0.3 < np.mean([is_flipped for epoch in epochs for _, is_flipped in epoch[:10]]) < 0.7


def test_the_order_without_mirroring_is_that_of_earlier_versions():
  """Runs of theirs go on with it, bit for bit: grain's of the data set itself."""
  for count in (3, 97):
    before = grain.MapDataset.source(range(count)).seed(5).shuffle().repeat()
    now = data.order(count, seed=5, mirror=False)
    assert [now[p] for p in range(300)] == [(before[p], False) for p in range(300)]


def test_position_alone_decides(source):
  images, labels = take(source, 8, nimg=1790)  # crosses the end of an epoch
  flat = images.reshape(128, 16, 16, 1)
  later, _ = take(pickle.loads(pickle.dumps(source)), 2, nimg=1790 + 3 * 16)
  np.testing.assert_array_equal(later.reshape(32, 16, 16, 1), flat[48:80])
  other, _ = take(source, 4, batch=32, microbatch=32, nimg=1790)
  np.testing.assert_array_equal(other.reshape(128, 16, 16, 1), flat)
  parts = [take(source, 8, nimg=1790, process_index=p, process_count=4) for p in range(4)]
  np.testing.assert_array_equal(np.concatenate([p[0] for p in parts], axis=1), images)
  np.testing.assert_array_equal(np.concatenate([p[1] for p in parts], axis=1), labels)
  far, _ = take(source, 1, nimg=25_000_000)
  assert far.shape == (2, 8, 16, 16, 1)


def test_seed_and_mirror(source):
  images, labels = take(source, 2)
  assert not np.array_equal(take(source, 2, seed=1)[1], labels)
  order = [data.order(len(source), seed=0, mirror=True)[p] for p in range(32)]
  for image, (i, is_flipped) in zip(images.reshape(-1, 16, 16, 1), order, strict=True):
    np.testing.assert_array_equal(image, source[i]['image'][:, :: -1 if is_flipped else 1])
  assert {is_flipped for _, is_flipped in order} == {False, True}
  straight, _ = take(source, 2, mirror=False)
  order = [data.order(len(source), seed=0, mirror=False)[p] for p in range(32)]
  for image, (i, _) in zip(straight.reshape(-1, 16, 16, 1), order, strict=True):
    np.testing.assert_array_equal(image, source[i]['image'])


@pytest.mark.parametrize('name', ['', 'set', 'itself', 'child', 'grandchild'])
def test_found_by_folder(pictures, name):
  parent = pathlib.Path(pictures).parent
  where = {
    '': ('', pictures),
    'set': ('set', pictures),
    'itself': (pictures, ''),
    'child': ('set', str(parent)),
    'grandchild': (f'{parent.name}/set', str(parent.parent)),
  }[name]
  source = data.load(*where, (8, 12), 3, False)
  assert len(source) == 10 and source.hash == data.load('', pictures, (8, 12), 3, False).hash


@pytest.mark.parametrize(
  'change, words',
  [
    ({'resolution': (16, 16)}, ['8x12', '16x16', '--resolution=16x16']),
    ({'channels': 1}, ['3 channels', '1', '--channels=1']),
    ({'channels': 4}, ['3 channels', '--channels=4']),
    ({'labels': True}, ['labels asked for', '--labels=folder']),
    ({'name': 'cifar10'}, ['cifar10', 'itself a data set']),
    ({'name': 'cifar10', 'data_dir': '/nowhere'}, ['/nowhere', 'tfds build cifar10', 'prepare']),
    ({'data_dir': ''}, ['data.name is empty', 'prepare']),
    ({'data_dir': '/nowhere'}, ['/nowhere', 'prepare']),
  ],
)
def test_refusals_name_value_and_remedy(pictures, change, words):
  arguments = {
    'name': '',
    'data_dir': pictures,
    'resolution': (8, 12),
    'channels': 3,
    'labels': False,
  } | change
  with pytest.raises(DatasetError) as refusal:
    data.load(**arguments)
  for word in words:
    assert word in str(refusal.value)


def test_fewer_images_than_a_batch(pictures):
  source = data.load('', pictures, (8, 12), 3, False)
  with pytest.raises(DatasetError, match='10 images, fewer than batch=12'):
    data.check_size(source, 12)


@pytest.mark.parametrize('damage', ['gone', 'empty', 'cut', 'noise', 'info', 'features', 'format'])
def test_damaged_data_set(pictures, tmp_path, damage):
  place = tmp_path / 'set'
  place.mkdir()
  for file in pathlib.Path(pictures).iterdir():
    name, content = file.name, file.read_bytes()
    if 'array_record' in name and damage in ('gone', 'empty', 'cut', 'noise'):
      if damage == 'gone':
        continue
      content = {'empty': b'', 'cut': content[:1000], 'noise': bytes(len(content))}[damage]
    if name == 'dataset_info.json' and damage in ('info', 'format'):
      content = b'{' if damage == 'info' else content.replace(b'array_record', b'tfrecord')
    if name == 'features.json' and damage == 'features':
      content = b'{'
    (place / name).write_bytes(content)
  with pytest.raises(DatasetError) as refusal:
    data.load('', str(place), (8, 12), 3, False)
  assert str(place) in str(refusal.value)
  if damage == 'format':
    assert '--file_format=array_record' in str(refusal.value)


# What those lack who only use a trained network.
OPTIONAL = 'grain array_record tensorflow_datasets PIL scipy sklearn matplotlib tqdm etils'.split()


def test_little_is_imported(data_dir, source):
  """Labels are known without TFDS and Pillow, and reading needs no TensorFlow."""
  code = f"""
import sys
sys.modules |= dict.fromkeys({OPTIONAL!r})  # None: to import it is an error
import sg2jax.data.labels
from sg2jax import data
for name in {OPTIONAL!r}:
  del sys.modules[name]
source = data.load('digits', {data_dir!r}, (16, 16), 1, True)
next(data.batches(source, batch=4, microbatch=4, seed=0, mirror=True, nimg=0))
assert not {{'tensorflow', 'sklearn'}} & set(sys.modules), 'imported'
"""
  subprocess.run([sys.executable, '-c', code], check=True, cwd=os.path.dirname(__file__) + '/..')
