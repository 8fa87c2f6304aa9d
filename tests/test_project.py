"""Projection and attribution: parts against their definitions, tools against what they promise."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

import sg2jax
from sg2jax import files, locks
from sg2jax.edit import attribute, project
from sg2jax.faults import DatasetError, NonFiniteError, Preempted, UsageError, WeightsError
from sg2jax.nets import vgg
from sg2jax.signals import Stop
from sg2jax.tools import attribute as attribute_tool
from sg2jax.tools import pictures as pictures_tool
from sg2jax.tools import project as project_tool
from tests.runs import ROOT, call, random_run, xla_flags
from tests.test_generate import frames_of

pytestmark = pytest.mark.usefixtures('quick_compile')
SETTINGS = project.Settings(steps=6)
PYRAMID = project.distance('pyramid')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A workdir with a tiny network, 4x8 px, grey, 3 classes, random in what starts at 0."""
  fields = {'g.fmap_base': 32, 'g.z_dim': 8, 'g.w_dim': 8, 'g.mapping_layers': 1}
  folder = tmp_path_factory.mktemp('projected')
  fields |= {'resolution': (4, 8), 'data.channels': 1}
  return random_run(folder, (0.03, 0.3, 1, 1, 1), **fields)


@pytest.fixture(scope='module')
def net(run):
  return sg2jax.load(run)


@pytest.fixture(scope='module')
def start(net):
  return project.statistics(net, 200)


@pytest.fixture
def search(run):
  """Calls a tool on the run, with few steps and a cheap distance."""

  def search(tool, *args):
    call(tool, f'--checkpoint={run}', '--steps=6', '--distance=pyramid', *args)

  return search


@pytest.fixture(scope='module')
def images(net):
  return net(range(6))


@pytest.fixture
def pictures(images, tmp_path):
  """A folder of the 6 images, enlarged, two of them in a folder in it; 3 useless files."""
  folder = tmp_path / 'pictures'
  (folder / 'deep').mkdir(parents=True)
  for i, image in enumerate(images.repeat(2, 1).repeat(2, 2)):
    (folder / ('deep' if i > 3 else '.') / f'p{i}.png').write_bytes(files.png(image))
  (folder / 'small.png').write_bytes(files.png(np.zeros((3, 6, 1), np.uint8)))
  (folder / 'torn.png').write_bytes((folder / 'p0.png').read_bytes()[:60])
  (folder / 'text.png').write_text('no picture')
  return folder


def contents(folder):
  """{file: bytes} of all in a folder, but for its lock."""
  paths = [p for p in sorted(folder.rglob('*')) if p.is_file() and p.name != '.lock']
  return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


class Early(Stop):
  """As a signal in the second batch of 6 steps of each run."""

  def __enter__(self):
    super().__enter__()
    self.asked = 0
    self.signal = signal.SIGTERM
    return self

  def __bool__(self):
    self.asked += 1
    return self.asked >= 9


# ---- parts


@pytest.mark.parametrize('height, width', [(512, 256), (384, 384), (300, 100)])
def test_view_is_the_mean_of_the_area(height, width):
  x = np.random.RandomState(0).rand(1, height, width, 2).astype(np.float32)
  y = np.asarray(project.view(x))
  rows, columns = (round(side * 256 / max(height, width)) for side in (height, width))
  assert y.shape == (1, rows, columns, 2)
  for i, j in ((0, 0), (1, 2), (rows // 2, columns // 3), (rows - 1, columns - 1)):
    box = x[0, i * height // rows : -(-(i + 1) * height // rows)]
    box = box[:, j * width // columns : -(-(j + 1) * width // columns)]
    np.testing.assert_allclose(y[0, i, j], box.mean((0, 1)), rtol=1e-5)
  assert project.view(x[:, :256, :100]).shape == (1, 256, 100, 2)


def test_distances():
  a, b = np.random.RandomState(0).rand(2, 3, 8, 16, 1).astype(np.float32)
  for name in ('l2', 'pyramid'):
    distance = project.distance(name)
    same, other = distance.features(None, a), distance.features(None, a + 0.5)
    assert distance.compare(None, same, same).tolist() == [0] * 3
    np.testing.assert_allclose(distance.compare(None, same, other), [0.25] * 3, rtol=1e-5)
  levels = jax.eval_shape(lambda x: PYRAMID.features(None, x), jnp.zeros((1, 32, 64, 3)))
  assert [x.shape[1:3] for x in levels] == [(32, 64), (16, 32), (8, 16), (4, 8)]
  squares = project.distance('l2').compare(None, [a], [b])
  np.testing.assert_allclose(squares, ((a - b) ** 2).mean((1, 2, 3)), rtol=1e-5)


def test_unit_length_is_the_librarys_with_a_gradient():
  from lpips_j.lpips import normalize_tensor

  def slope(function):
    return np.asarray(jax.grad(lambda x: (function(x) * np.arange(3)).sum())(x))

  x = np.random.RandomState(0).rand(1, 2, 2, 3).astype(np.float32)
  x[0, 0, 0] = 0
  assert np.array_equal(vgg._unit_length(x), normalize_tensor(x))
  ours, theirs = slope(vgg._unit_length), slope(normalize_tensor)
  assert np.isnan(theirs[0, 0, 0]).all() and np.isfinite(ours).all()
  np.testing.assert_allclose(ours[0, 1], theirs[0, 1], rtol=1e-5)


def test_a_map_of_one_row_is_no_neighbour_of_itself():
  noise = jnp.asarray(np.random.RandomState(0).randn(1, 1, 8, 1), jnp.float32)
  want = float((noise * jnp.roll(noise, 1, 2)).mean()) ** 2
  np.testing.assert_allclose(project.noise_penalty(noise), [want], rtol=1e-5)


def test_statistics_have_all_labels(net):
  mean, spread = project.statistics(net, 500)
  z = np.random.RandomState(0).randn(1200, 8).astype(np.float32)
  w = net.map(z, np.eye(3, dtype=np.float32).repeat(400, 0))
  np.testing.assert_allclose(mean, w.mean(0), atol=0.15)
  np.testing.assert_allclose(spread, np.sqrt(((w - w.mean(0)) ** 2).sum(1).mean()), rtol=0.1)
  # and not those of one
  assert min(np.abs(mean - w[i * 400 :][:400].mean(0)).max() for i in range(3)) > 0.2


@pytest.mark.parametrize('space', project.SPACES)
def test_a_generated_image_is_found_again(net, start, space):
  settings = project.Settings(100, space)
  projector = project.Projector(net, net([5, 6, 7], noise='random'), PYRAMID, settings, start)
  for _ in range(settings.steps):
    assert projector.advance().shape == (3,)
  found = projector.result()
  assert (found.distance_start > 10 * found.distance).all(), found
  assert found.ws.shape == (3, net.num_ws, 8) and (found.ws.std(1).max() > 0.01) == (space == 'w+')
  for noise in jax.tree.leaves(found.noise):
    moments = [noise.mean((1, 2, 3)), (noise**2).mean((1, 2, 3))]
    np.testing.assert_allclose(moments, [[0] * 3, [1] * 3], atol=1e-5)
  # ws and noise maps are all that it takes
  noise = jax.tree.map(lambda x: x[1, ..., 0], found.noise)
  own = net._replace(variables=net.variables | {'noise': noise})
  assert np.abs(own.images(found.ws[1:2]).astype(int) - found.images[1:2]).max() <= 1


def test_neighbours_do_not_matter(net, start, images):
  together = project.Projector(net, images[:3], PYRAMID, SETTINGS, start)
  alone = project.Projector(net, images[2:3], PYRAMID, SETTINGS, start)
  for _ in range(6):
    a, b = together.advance(), alone.advance()
    np.testing.assert_allclose(a[2], b[0], rtol=1e-4)
  a, b = together.result(), alone.result()
  np.testing.assert_allclose(a.ws[2], b.ws[0], atol=1e-3)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x[2], y[0], atol=1e-3), a.noise, b.noise)


# ---- the tool


def test_a_folder_is_projected_and_goes_on(search, pictures, tmp_path, capsys, monkeypatch):
  search(project_tool, f'--images={pictures}', f'--out={tmp_path / "whole"}', '--batch=3')
  said = capsys.readouterr()
  assert '6 projected; pyramid fell to 1/' in said.out
  left_out = [line.split(':')[1].strip() for line in said.err.splitlines() if 'left out' in line]
  assert left_out == ['small.png', 'text.png', 'torn.png']
  whole = contents(tmp_path / 'whole')
  stems = ['p0', 'p1', 'p2', 'p3', 'deep_p4', 'deep_p5']
  endings = ('.png', '_projected.png', '.npz')
  assert set(whole) == {'projections.json', *(s + end for s in stems for end in endings)}
  documents = json.loads(whole['projections.json'])['images']
  assert [d['name'] for d in documents][:2] == ['deep_p4', 'deep_p5']
  assert all(d['distance'] > 0 for d in documents)
  assert np.asarray(Image.open(tmp_path / 'whole' / 'p3_projected.png')).shape == (4, 8)
  assert np.asarray(Image.open(tmp_path / 'whole' / 'p3.png')).shape == (64, 256)
  with np.load(tmp_path / 'whole' / 'p3.npz') as data:
    assert data['ws'].shape == (4, 8)
    assert data['noise/synthesis/b8/conv1/noise_const'].shape == (4, 8)

  monkeypatch.setattr(project_tool, 'Stop', Early)
  args = [f'--images={pictures}', f'--out={tmp_path / "parts"}', '--batch=3']
  with pytest.raises(Preempted, match='the same command goes on'):
    search(project_tool, *args)
  assert {d.stem for d in (tmp_path / 'parts').glob('*.npz')} == {'deep_p4', 'deep_p5', 'p0'}
  search(project_tool, *args)
  assert contents(tmp_path / 'parts') == whole

  monkeypatch.setattr(project, 'Projector', pytest.fail)  # nothing is done again
  search(project_tool, *args)
  with pytest.raises(UsageError, match='lr: 0.1 there, 0.2 here.*another --out'):
    search(project_tool, *args, '--lr=0.2')


def test_other_files_are_not_replaced(search, pictures, tmp_path):
  out = tmp_path / 'out'
  out.mkdir()
  (out / 'p2.npz').write_bytes(b'mine')
  with pytest.raises(UsageError, match='p2.npz holds something else'):
    search(project_tool, f'--images={pictures}/p2.png', f'--out={out}')
  assert contents(out) == {'p2.npz': b'mine'}


def test_pictures_of_earlier_commands_stay_listed(search, pictures, tmp_path):
  for name in ('p1', 'p2', 'p1'):
    search(project_tool, f'--images={pictures}/{name}.png', f'--out={tmp_path / "out"}')
  listed = json.loads((tmp_path / 'out' / 'projections.json').read_text())['images']
  assert sorted(d['name'] for d in listed) == ['p1', 'p2']


def test_a_folder_in_use_is_refused(search, pictures, tmp_path):
  out = tmp_path / 'out'
  with locks.locked(out, 'out'), pytest.raises(UsageError, match='--out=.* in use by process'):
    search(project_tool, f'--images={pictures}/p1.png', f'--out={out}')


def test_video(search, pictures, tmp_path):
  out = tmp_path / 'out'
  image = f'--images={pictures}/p1.png'
  search(project_tool, image, f'--out={out}')
  before = contents(out)
  # again, though it is finished: there is no video of it yet
  search(project_tool, image, f'--out={out}', '--video')
  assert len(contents(out)['p1.mp4']) > 500 and before.items() <= contents(out).items()
  frames, seconds = frames_of(out / 'p1.mp4')
  assert len(frames) == 7 and np.abs(frames[-1].astype(float) - frames[0]).max() > 9


@pytest.mark.parametrize(
  'args, fault, said',
  [
    (['--images='], UsageError, '--images is missing'),
    (['--steps=0'], UsageError, '--steps=0'),
    (['--lr=nan'], UsageError, '--lr=nan'),
    (['--batch=-1'], UsageError, '--batch=-1'),
    (['--images=/nowhere'], DatasetError, '/nowhere has no picture.* No such file'),
    (['--images=PICTURES/text.png'], DatasetError, 'not an image: text'),
    (['--out=PICTURES/p1.png'], UsageError, 'is a file'),
    (['--out=PICTURES/deep/out'], UsageError, 'among the pictures'),
    (['--images=PICTURES/p1.png', '--out=PICTURES'], UsageError, 'among the pictures'),
    (['--distance=lpips'], WeightsError, 'vgg16-397923af.pth.*--distance=pyramid'),
    (['--images=PICTURES/p1.png', '--lr=1e30'], NonFiniteError, 'smaller --lr'),
  ],
)
def test_bad_input(search, pictures, args, fault, said, tmp_path, monkeypatch):
  monkeypatch.setenv('SG2JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.delenv('SG2JAX_WEIGHTS', raising=False)
  before = contents(tmp_path)
  args = [f'--out={tmp_path / "out"}', '--images=PICTURES', *args]
  with pytest.raises(fault, match=said):
    search(project_tool, *(arg.replace('PICTURES', str(pictures)) for arg in args))
  assert contents(tmp_path) == before


@pytest.mark.parametrize(
  'given, want',
  [
    (['a.jpg', 'b.png'], ['a', 'b']),
    (['cat.jpg', 'cat.png', 'dog.png'], ['cat.jpg', 'cat.png', 'dog']),
    (['a.png', 'a_projected.png'], ['a', 'a_projected_2']),
    (['a_b.png', 'a_b.png', 'a_b.jpg'], ['a_b.png', 'a_b.png_2', 'a_b.jpg']),
    (['cat.jpg', 'cat.png', 'cat.png.gif'], ['cat.jpg', 'cat.png', 'cat.png_2']),
    (['x', 'x.png'], ['x', 'x.png']),
  ],
)
def test_names_of_results_are_unlike(given, want):
  assert pictures_tool.result_names(given) == want


def test_of_pictures_that_are_too_small_the_size_is_said(net, tmp_path):
  Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / 'a.png')
  with pytest.raises(DatasetError, match='a.png: too small.*give PNG or JPEG files of') as e:
    pictures_tool.read_items(str(tmp_path / 'a.png'), net, tmp_path / 'out')
  assert 'prepare' not in str(e.value)


def test_pictures_of_one_name_are_all_taken(net, pictures, tmp_path):
  image = Image.open(pictures / 'p1.png').convert('RGB')
  folder = tmp_path / 'clash'
  (folder / 'p').mkdir(parents=True)
  for name in ('p1.png', 'p1.jpg', 'p_2.png', 'p/2.png'):
    image.save(folder / name)
  items = pictures_tool.read_items(str(folder), net, tmp_path / 'out')
  assert {item.name: os.path.relpath(item.source, folder) for item in items} == {
    'p1.jpg': 'p1.jpg',
    'p1.png': 'p1.png',
    'p_2.png': 'p/2.png',
    'p_2.png_2': 'p_2.png',
  }


# ---- attribution


def test_auc_threshold_and_errors():
  assert attribute.auc([1, 2], [3, 4]) == 1
  assert attribute.auc([3, 4], [1, 2]) == 0
  assert attribute.auc([1, 3], [3, 3]) == 0.75
  assert attribute.threshold([1, 2], [8, 9]) == 4
  assert attribute.error_rates([1, 2, 3], [8, 9, 10]) == (0, 0)

  def errors(limit, own, reals):
    return np.mean(np.array(own) > limit) + np.mean(np.array(reals) <= limit)

  groups = [1, 2, 3, 4, 9], [5, 6, 7, 8, 3.5]
  best = min(errors(x, *groups) for x in np.linspace(0, 10, 2001))
  assert errors(attribute.threshold(*groups), *groups) == pytest.approx(best)
  random = np.random.RandomState(0)
  widths = []
  for count in (40, 320):  # intervals hold the value, and shrink as the root of the count
    x, y = random.rand(2, count)
    low, high = attribute.auc_interval(x, y + 0.3)
    assert low < attribute.auc(x, y + 0.3) < high
    widths.append(high - low)
  assert 2 < widths[0] / widths[1] < 4
  # Of groups without a difference about half is mistaken; a threshold that has seen the image
  # promises less.
  x, y = random.rand(2, 60)
  promised = errors(attribute.threshold(x, y), x, y) / 2
  assert np.mean(attribute.error_rates(x, y)) > max(0.4, promised)
  found = attribute.judge(2.5, [1, 2, 3], [8, 9, 10])
  assert found == {'own': True, 'p_own': 2 / 4, 'p_real': 1 / 4}
  assert not attribute.judge(9.5, [1, 2, 3], [8, 9, 10])['own']


def test_attribution_tool(search, pictures, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(attribute_tool, 'LEAST', 4)
  random = np.random.RandomState(0)
  (tmp_path / 'reals').mkdir()
  for i in range(5):
    picture = files.png(random.randint(0, 256, (4, 8, 1), np.uint8))
    (tmp_path / 'reals' / f'{i}.png').write_bytes(picture)
  out = tmp_path / 'out'
  args = [f'--reals={tmp_path / "reals"}', f'--images={pictures}/p1.png', f'--out={out}']
  args += ['--own=0-3', '--steps=60', '--batch=1']  # 1: the size that is compiled already
  search(attribute_tool, *args)
  said = capsys.readouterr().out
  assert 'AUC 1.000' in said and '4 own images and 4 reals' in said
  assert "p1: the network's own" in said
  document = json.loads((out / 'attribution.json').read_text())
  assert document['auc'] == 1 and document['images'][0]['own'] is True
  assert document['own_missed'] == document['reals_taken_for_own'] == 0
  distances = document['distances']
  assert max(distances['own']) < document['threshold'] < min(distances['reals'])
  assert Image.open(out / 'attribution.png').width == 1200
  own = [{'name': f'seed{i:04d}', 'distance': i} for i in range(3)]
  assert list(attribute_tool.examples(out / 'own', own)) == ['closest', '60 %', 'farthest']
  monkeypatch.setattr(project, 'Projector', pytest.fail)  # nothing is done again
  search(attribute_tool, *args)
  for bad, match in (
    ('--own=0-2', '3 seeds.* 4 at least'),
    (f'--reals={pictures}/p1.png', '1 pictures'),
    ('--reals=', '--reals is missing'),
  ):
    with pytest.raises(UsageError, match=match):
      search(attribute_tool, *args, bad)


# ---- long ones


@pytest.mark.slow
def test_killed_and_on_more_devices(run, pictures, tmp_path):
  """Stopped and killed, it ends with the same bytes; 3 devices find the same, but for rounding."""

  def begin(out, devices=1):
    flags = f'{xla_flags()} --xla_force_host_platform_device_count={devices}'
    args = [f'--checkpoint={run}', f'--images={pictures}', f'--out={tmp_path / out}']
    args += ['--distance=l2', '--steps=300', '--batch=4']
    env = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags}
    return subprocess.Popen(
      [sys.executable, '-m', 'sg2jax.tools.project', *args], cwd=ROOT, env=env
    )

  assert begin('whole').wait() == 0
  for delay, number in (
    (7, signal.SIGTERM),
    (7, signal.SIGKILL),
    (8, signal.SIGINT),
    (6, signal.SIGTERM),
    (7, signal.SIGTERM),
  ):
    process = begin('killed')
    time.sleep(delay)
    process.send_signal(number)
    process.wait()
  assert begin('killed').wait() == 0 and begin('three', 3).wait() == 0
  assert contents(tmp_path / 'killed') == contents(tmp_path / 'whole')
  distances = [
    [
      d['distance']
      for d in json.loads((tmp_path / name / 'projections.json').read_text())['images']
    ]
    for name in ('whole', 'three')
  ]
  np.testing.assert_allclose(*distances, rtol=0.05)
