"""A trained network applied: seeds, labels, truncation, batches; what it may import."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import sg2jax
from sg2jax import sampler
from sg2jax.data.labels import Labels
from sg2jax.faults import CheckpointError, UsageError
from tests.runs import ROOT, random_run, xla_flags

pytestmark = pytest.mark.usefixtures('quick_compile')
Z = 12
CATS = Labels.of_classes(('cat', 'dog', '0'), (5, 0, 2))  # no image is a dog; the last is called 0
VECTORS = Labels.of_vectors([[1, 0, 1], [1, 1, 0.5], [1, 0, 1]])


def make_run(folder):
  """A workdir with a tiny network, 8x16 px, RGB, 3 classes, 6 ws, random in what starts at 0."""
  fields = {'g.fmap_base': 64, 'g.z_dim': Z, 'g.w_dim': Z, 'g.mapping_layers': 2}
  return random_run(folder, (0.3, 0.3, 1, 1, 1), resolution=(8, 16), **fields)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return make_run(tmp_path_factory.mktemp('sampled'))


@pytest.fixture(scope='module')
def net(run):
  return sg2jax.load(run)


def close(a, b, limit=1):
  """Whether uint8 images agree."""
  return a.shape == b.shape and np.abs(a.astype(int) - b).max() <= limit


def made(net, seeds, *args, **options):
  """net(seeds), 4 at once: one size is compiled once."""
  return net([*seeds, 0, 0, 0], *args, batch=4, **options)[: len(seeds)]


# ---- seeds, truncation, batches


@pytest.mark.smoke
def test_latents_and_labels_are_those_of_numpy(net):
  assert net.config.c_dim == 3 and net.num_ws == 6
  seeds = [5, 2**32 - 1, 5]
  keys = [np.random.RandomState(seed) for seed in seeds]
  z = np.stack([key.randn(1, Z)[0] for key in keys])
  np.testing.assert_array_equal(net.z(seeds), z.astype(np.float32))
  np.testing.assert_array_equal(net.c(seeds), np.eye(3)[[key.randint(3) for key in keys]])
  np.testing.assert_array_equal(net.c(seeds, 2), np.eye(3)[[2, 2, 2]])
  assert len({net.c([seed]).argmax() for seed in range(20)}) == 3
  np.testing.assert_array_equal(net.z(5), net.z([5]))


def test_an_image_is_the_same_whatever_the_batch(net):
  seeds = range(20, 31)
  const = made(net, seeds, 0.7)
  random = made(net, seeds, 0.7, noise='random')
  none = made(net, seeds, 0.7, noise='none')
  assert const.dtype == np.uint8 and const.shape == (11, 8, 16, 3) and const.std() > 10
  assert close(net([27], 0.7, noise='random')[0], random[7])
  for a, b in ((const, random), (const, none), (random, none), (const[:4], const[4:8])):
    assert not close(a, b, 20)
  assert not close(made(net, seeds, label=0), made(net, seeds, label=1), 20)


def test_truncation(net):
  seeds = [1, 2]
  w_avg = np.asarray(net.w_avg)
  ws = net.ws(seeds)
  assert np.ptp(ws, 1).max() == 0 and np.ptp(ws, 0).max() > 0.1
  np.testing.assert_allclose(net.ws(seeds, 0.25), w_avg + 0.25 * (ws - w_avg), atol=1e-6)
  np.testing.assert_array_equal(net.ws(seeds, 0), np.broadcast_to(w_avg, ws.shape))
  mean = net.images(np.broadcast_to(w_avg, (4, *ws.shape[1:])), batch=4)
  assert close(made(net, seeds, psi=0), mean[:2]) and not close(made(net, seeds), mean[:2], 20)
  cut = net.ws(seeds, -0.5, cutoff=3)
  np.testing.assert_array_equal(cut[:, 3:], ws[:, 3:])
  np.testing.assert_array_equal(cut[:, :3], net.ws(seeds, -0.5)[:, :3])
  assert np.ptp(cut, 1).max() > 0.1


@pytest.mark.parametrize(
  'fields, said',
  [
    ({'seeds': []}, r'seeds=\[\]'),
    ({'seeds': [-1]}, '-1'),
    ({'seeds': [2**32]}, '4294967296'),
    ({'seeds': [0.5]}, '0.5'),
    ({'seeds': [float('nan')]}, 'nan'),
    ({'seeds': ['a']}, r"seeds=\['a'\]"),
    ({'seeds': '3'}, r"seeds=\['3'\]"),
    ({'seeds': None}, 'None'),
    ({'seeds': [[0]]}, r'\[\[0\]\]'),
    ({'psi': 'a'}, 'psi=a'),
    ({'psi': None}, 'psi=None'),
    ({'psi': [0.5]}, r'psi=\[0.5\]'),
    ({'edit': 'x'}, 'edit=x must be a Direction'),
    ({'edit': [1]}, r'edit=\[1\] must be a Direction'),
    ({'batch': 'x'}, 'batch=x'),
    ({'batch': 1.5}, 'batch=1.5'),
    ({'psi': float('nan')}, 'psi=nan'),
    ({'psi': 1e39}, '1e.39'),
    ({'cutoff': 2.5}, 'cutoff=2.5'),
    ({'cutoff': 7}, 'cutoff=7 .* 0 to 6'),
    ({'label': 3}, 'class 3: .* 0, 1, 2'),
    ({'label': np.zeros((2, 3))}, 'all seeds, or 1$'),
    ({'label': 1.5}, 'class 1.5'),
    ({'label': 'cat'}, 'class cat: .* 0, 1, 2'),
    ({'label': [0, 1]}, r'label \[0, 1\]: .* all seeds, or 1$'),
    ({'label': [[0, 1], [1]]}, r'\[\[0, 1'),
    ({'label': [0, float('nan'), 1]}, 'finite'),
    ({'label': {1}}, r'\{1\}'),
    ({'label': ['0', 'x']}, 'class x'),
    ({'label': [None]}, 'None'),
    ({'noise': 'loud'}, 'const, random, none'),
    ({'batch': 0}, 'batch=0'),
  ],
)
def test_bad_values_are_named(net, fields, said):
  with pytest.raises(UsageError, match=said):
    net(**({'seeds': [0]} | fields))


def test_ws_of_another_network_are_refused(net):
  for shape in ((1, 5, Z), (1, 6, Z + 1), (6, Z), (0, 6, Z)):
    with pytest.raises(UsageError, match=r'takes \[1 or more,6,12\]'):
      net.images(np.zeros(shape, np.float32))
  with pytest.raises(UsageError, match='finite'):
    net.images(np.full((1, 6, Z), np.nan, np.float32))


def test_parts_cover_everything_once_at_one_size():
  for n, size in ((1, 1), (7, 3), (6, 3), (2, 5)):
    parts = list(sampler.parts(n, size))
    assert {len(rows) for rows, _ in parts} == {size}
    assert max(rows.max() for rows, _ in parts) == n - 1
    assert np.concatenate([rows[:count] for rows, count in parts]).tolist() == list(range(n))


# ---- labels: as the data has them, by name, one for each seed


@pytest.mark.parametrize('labels', [CATS, VECTORS])
def test_labels_are_drawn_as_the_data_has_them(net, labels):
  net = net._replace(labels=labels)
  wanted = []
  for seed in range(300):
    key = np.random.RandomState(seed)
    key.randn(Z)
    wanted.append(labels.draw(key, 1)[0])
  found = net.c(range(300))
  np.testing.assert_array_equal(found, wanted)
  for c in (found, sampler.draw_labels(net, 300, np.random.RandomState(0))):
    assert {tuple(x) for x in c} == {tuple(x) for x in labels.values}
    share = (c == labels.values[labels.counts.argmax()]).all(1).mean()
    assert share == pytest.approx(labels.counts.max() / labels.counts.sum(), abs=0.1)
  key = np.random.RandomState(3)
  z = key.randn(7, Z).astype(np.float32)
  np.testing.assert_array_equal(sampler.sample_w(net, 7, 3), net.map(z, labels.draw(key, 7)))


@pytest.mark.parametrize(
  'label, want',
  [
    ('cat', [0, 0, 0]),
    ('0', [2, 2, 2]),
    ('2', [2, 2, 2]),
    (0, [0, 0, 0]),
    (np.int64(2), [2, 2, 2]),
    (2.0, [2, 2, 2]),
    (['cat', 'dog', '0'], [0, 1, 2]),
    ([2, 0, 1], [2, 0, 1]),
    ((1, 'cat', '0'), [1, 0, 2]),
    (np.array([1, 1, 0]), [1, 1, 0]),
    ([1], [1, 1, 1]),
    (range(3), [0, 1, 2]),
  ],
)
def test_classes_by_number_and_name(net, label, want):
  np.testing.assert_array_equal(net._replace(labels=CATS).c([7, 8, 9], label), np.eye(3)[want])


def test_vectors_for_all_or_each(net):
  vectors = net._replace(labels=VECTORS)
  named = net._replace(labels=CATS)
  for label in ([1, 0, 1], (1.0, 0.0, 1.0), np.array([[1, 0, 1]])):
    np.testing.assert_array_equal(vectors.c([7, 8, 9], label), [[1, 0, 1]] * 3)
  each = [[1, 0, 1], [0, 0.5, -1]]
  np.testing.assert_array_equal(vectors.c([7, 8], each), each)
  # between two classes
  np.testing.assert_array_equal(named.c([7, 8], [0.5, 0.5, 0]), [[0.5, 0.5, 0]] * 2)
  np.testing.assert_array_equal(named.c([7, 8], [0, 0, 1]), [[0, 0, 1]] * 2)  # no list of 2 classes
  for label in (1, 'cat', ['cat'], '1,0,1'):
    with pytest.raises(UsageError, match=r'no classes but vectors of 3 components.*--label='):
      vectors.c([7, 8], label)
  for label in ('bird', -1, 3, [0, 'bird']):
    with pytest.raises(UsageError, match='(bird|-1|3): .*cat, dog, 0'):
      named.c([7, 8], label)
  with pytest.raises(UsageError, match='without labels'):
    named._replace(labels=None).c([7], 'cat')


def test_a_run_says_its_labels(run, net, tmp_path):
  assert net.labels.one_hot and net.labels.counts.tolist() == [1, 1, 1] and net.labels.names == ()
  workdir = shutil.copytree(run, tmp_path / 'run')
  step = workdir / 'checkpoints' / '3'
  copy = shutil.copytree(step, tmp_path / 'elsewhere')
  shutil.copy(run / 'config.json', copy)
  for folder, paths in ((workdir, [step, workdir]), (step, [step]), (copy, [copy])):
    (folder / 'labels.json').write_text(CATS.to_json())
    for path in paths:
      labels = sampler.read_labels(path, 3)
      assert labels.names == CATS.names and labels.index('0') == 2
  assert sg2jax.load(copy).labels.names == CATS.names


@pytest.mark.parametrize(
  'text',
  [
    '',
    '[]',
    '{}',
    Labels.unknown(4).to_json(),
    CATS.to_json().replace('[0, 2]', '[0, 7]'),
  ],
)
def test_labels_of_another_run_are_refused(tmp_path, text):
  (tmp_path / 'labels.json').write_text(text)
  with pytest.raises(CheckpointError, match='labels.json'):
    sampler.read_labels(tmp_path, 3)


# ---- what it needs

# Packages that other parts of sg2jax need; scipy isn't among them, because JAX needs it.
OTHERS = (
  'PIL array_record clu flaxmodels grain h5py imageio_ffmpeg lpips_j matplotlib requests '
  'safetensors sklearn tensorboard tensorflow tensorflow_datasets torch tqdm'
)
LIGHT = """
import sys
sys.modules |= dict.fromkeys(sys.argv[2].split())  # None: whoever imports it gets an ImportError
import sg2jax
images = sg2jax.load(sys.argv[1])(seeds=range(11), psi=0.7, noise='random', batch=4)
sys.stdout.buffer.write(images.tobytes())
"""


def test_the_same_with_the_core_alone_and_on_eight_devices(run, net):
  """With nothing but jax, flax, optax, orbax, ml_collections, absl, numpy and what these need."""
  env = os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  env['XLA_FLAGS'] = f'{xla_flags()} --xla_force_host_platform_device_count=8'
  code = [sys.executable, '-c', LIGHT, str(run), OTHERS]
  done = subprocess.run(code, cwd=ROOT, env=env, capture_output=True, check=False, timeout=200)
  assert done.returncode == 0, done.stderr.decode()
  images = np.frombuffer(done.stdout, np.uint8).reshape(11, 8, 16, 3)
  assert close(images, made(net, range(11), 0.7, noise='random'))
