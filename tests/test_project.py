"""Projection and attribution: the parts against their definitions, the tools against what they
promise.
"""

from functools import partial
import json
import os
import signal
import subprocess
import sys
import time

from absl import flags
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
from sg2jax.tools import project as project_tool
from tests.runs import ROOT, random_run, xla_flags

pytestmark = pytest.mark.usefixtures('quick_compile')
SETTING = project.Setting(steps=6)
PYRAMID = project.distance('pyramid')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A workdir with a tiny network, 4x8 px, grey, 3 classes, whose weights are random in all that
  starts at 0.
  """
  return random_run(
    tmp_path_factory.mktemp('projected'),
    (0.03, 0.3, 1, 1, 1),
    resolution=(4, 8),
    **{'data.channels': 1, 'g.fmap_base': 32, 'g.z_dim': 8, 'g.w_dim': 8, 'g.mapping_layers': 1},
  )


@pytest.fixture(scope='module')
def net(run):
  return sg2jax.load(run)


@pytest.fixture(scope='module')
def start(net):
  return project.statistics(net, 200)


@pytest.fixture
def pictures(net, tmp_path):
  """A folder of 6 images of the network's, larger than it makes them, two of them in a folder, and
  three useless files.
  """
  folder = tmp_path / 'pictures'
  (folder / 'deep').mkdir(parents=True)
  for i, image in enumerate(net(range(6)).repeat(2, 1).repeat(2, 2)):
    (folder / ('deep' if i > 3 else '.') / f'p{i}.png').write_bytes(files.png(image))
  (folder / 'small.png').write_bytes(files.png(np.zeros((3, 6, 1), np.uint8)))
  (folder / 'torn.png').write_bytes((folder / 'p0.png').read_bytes()[:60])
  (folder / 'text.png').write_text('no picture')
  return folder


@pytest.fixture
def call(monkeypatch, run):
  """A tool's main with flags, in this process, on the run, with few steps and a cheap distance."""

  def call(tool, *args):
    values = flags.FlagValues()
    with monkeypatch.context() as patch:
      for kind in ('string', 'integer', 'float', 'bool', 'enum', 'multi_string'):
        patch.setattr(
          flags, f'DEFINE_{kind}', partial(getattr(flags, f'DEFINE_{kind}'), flag_values=values)
        )
      patch.setattr(flags, 'FLAGS', values)
      tool.define_flags()
      tool.main(
        values(['tool', f'--checkpoint={run}', '--steps=6', '--distance=pyramid', *map(str, args)])
      )

  return call


def content(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(folder.rglob('*'))
    if p.is_file() and p.name != '.lock'
  }


class Early(Stop):
  """As a signal in the fourth step of each run."""

  def __enter__(self):
    self.asked, self._handlers, self.signal = 0, {}, signal.SIGTERM
    return self

  def __bool__(self):
    self.asked += 1
    return self.asked >= 4


# ---- parts


@pytest.mark.parametrize('height, width', [(512, 256), (384, 384), (300, 100)])
def test_view_is_the_mean_of_the_area(height, width):
  x = np.random.RandomState(0).rand(1, height, width, 2).astype(np.float32)
  y = np.asarray(project.view(x))
  rows, columns = (round(side * 256 / max(height, width)) for side in (height, width))
  assert y.shape == (1, rows, columns, 2)
  for i, j in (0, 0), (1, 2), (rows // 2, columns // 3), (rows - 1, columns - 1):
    box = x[
      0,
      i * height // rows : -(-(i + 1) * height // rows),
      j * width // columns : -(-(j + 1) * width // columns),
    ]
    np.testing.assert_allclose(y[0, i, j], box.mean((0, 1)), rtol=1e-5)
  assert project.view(x[:, :256, :100]).shape == (1, 256, 100, 2)


def test_distances():
  a, b = np.random.RandomState(0).rand(2, 3, 8, 16, 1).astype(np.float32)
  for name in 'l2', 'pyramid':
    _, _, params, features, between = project.distance(name)
    same, other = features(params, a), features(params, a + 0.5)
    assert between(params, same, same).tolist() == [0] * 3
    np.testing.assert_allclose(between(params, same, other), [0.25] * 3, rtol=1e-5)
  assert [
    x.shape[1:3] for x in project.distance('pyramid').features(None, jnp.zeros((1, 32, 64, 3)))
  ] == [(32, 64), (16, 32), (8, 16), (4, 8)]
  np.testing.assert_allclose(
    project.distance('l2').between(None, [a], [b]), ((a - b) ** 2).mean((1, 2, 3)), rtol=1e-5
  )


def test_unit_length_is_the_librarys_with_a_gradient():
  from lpips_j.lpips import normalize_tensor

  x = np.random.RandomState(0).rand(1, 2, 2, 3).astype(np.float32)
  x[0, 0, 0] = 0
  assert np.array_equal(vgg._unit_length(x), normalize_tensor(x))
  slope = lambda f: np.asarray(jax.grad(lambda x: (f(x) * np.arange(3)).sum())(x))
  assert (
    np.isnan(slope(normalize_tensor)[0, 0, 0]).all() and np.isfinite(slope(vgg._unit_length)).all()
  )
  np.testing.assert_allclose(
    slope(vgg._unit_length)[0, 1], slope(normalize_tensor)[0, 1], rtol=1e-5
  )


def test_statistics_have_all_labels(net):
  mean, spread = project.statistics(net, 500)
  z, c = (
    np.random.RandomState(0).randn(1200, 8).astype(np.float32),
    np.eye(3, dtype=np.float32).repeat(400, 0),
  )
  w = net.map(z, c)
  np.testing.assert_allclose(mean, w.mean(0), atol=0.15)
  np.testing.assert_allclose(spread, np.sqrt(((w - w.mean(0)) ** 2).sum(1).mean()), rtol=0.1)
  # and not those of one
  assert min(np.abs(mean - w[i * 400 :][:400].mean(0)).max() for i in range(3)) > 0.2


@pytest.mark.parametrize('space', project.SPACES)
def test_a_generated_image_is_found_again(net, start, space):
  setting = project.Setting(150, space)
  projector = project.Projector(net, net([5, 6, 7], noise='random'), PYRAMID, setting, start)
  while projector.done < 150:
    assert projector.advance().shape == (3,)
  found = projector.found()
  assert (found.start > 10 * found.distance).all(), (found.start, found.distance)
  assert found.ws.shape == (3, net.num_ws, 8) and (found.ws.std(1).max() > 0.01) == (space == 'w+')
  for noise in jax.tree.leaves(found.noise):
    np.testing.assert_allclose(
      [noise.mean((1, 2, 3)), (noise**2).mean((1, 2, 3))], [[0] * 3, [1] * 3], atol=1e-5
    )
  shared = net._replace(
    variables=net.variables | {'noise': jax.tree.map(lambda x: x[1, ..., 0], found.noise)}
  )
  # they are all that it takes
  assert np.abs(shared.images(found.ws[1:2]).astype(int) - found.images[1:2]).max() <= 1


def test_neighbours_do_not_matter(net, start):
  images = net(range(3))
  together, alone = (
    project.Projector(net, x, PYRAMID, SETTING, start) for x in (images, images[2:])
  )
  for _ in range(6):
    a, b = together.advance(), alone.advance()
    np.testing.assert_allclose(a[2], b[0], rtol=1e-4)
  a, b = together.found(), alone.found()
  np.testing.assert_allclose(a.ws[2], b.ws[0], atol=1e-3)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x[2], y[0], atol=1e-3), a.noise, b.noise)


def test_a_projection_goes_on_bit_for_bit(net, start):
  images = net([1, 2, 3])
  whole = project.Projector(net, images, PYRAMID, SETTING, start)
  part = project.Projector(net, images, PYRAMID, SETTING, start)
  for _ in range(6):
    whole.advance()
  for _ in range(3):
    part.advance()
  rest = project.Projector(net, images, PYRAMID, SETTING, start, part.save())
  for _ in range(3):
    rest.advance()
  assert rest.done == 6
  assert jax.tree.all(jax.tree.map(np.array_equal, rest.found(), whole.found()))
  assert not np.array_equal(part.found().ws, whole.found().ws)


# ---- the tool


def test_a_folder_is_projected_and_goes_on(call, pictures, tmp_path, capsys, monkeypatch):
  call(project_tool, f'--images={pictures}', f'--out={tmp_path / "whole"}', '--batch=3')
  said = capsys.readouterr()
  assert '6 projected; pyramid fell to 1/' in said.out
  out = [line.split(':')[1].strip() for line in said.err.splitlines() if 'left out' in line]
  assert out == ['small.png', 'text.png', 'torn.png']
  whole = content(tmp_path / 'whole')
  assert set(whole) == {'projections.json'} | {
    f'{"deep_" if i > 3 else ""}p{i}{end}'
    for i in range(6)
    for end in ('.png', '_projected.png', '.npz')
  }
  documents = json.loads(whole['projections.json'])['images']
  assert [d['name'] for d in documents][:2] == ['deep_p4', 'deep_p5'] and all(
    d['distance'] > 0 for d in documents
  )
  assert np.asarray(Image.open(tmp_path / 'whole' / 'p3_projected.png')).shape == (4, 8)
  assert np.asarray(Image.open(tmp_path / 'whole' / 'p3.png')).shape == (64, 256)
  with np.load(tmp_path / 'whole' / 'p3.npz') as data:
    assert data['ws'].shape == (4, 8) and data['noise/synthesis/b8/conv1/noise_const'].shape == (
      4,
      8,
    )

  monkeypatch.setattr(project_tool, 'Stop', Early)
  times = 0
  while True:
    try:
      call(project_tool, f'--images={pictures}', f'--out={tmp_path / "parts"}', '--batch=3')
      break
    except Preempted as e:
      times += 1
      assert 'the same command goes on' in str(e) and times < 9
  assert times == 3 and content(tmp_path / 'parts') == whole

  monkeypatch.setattr(project, 'Projector', None)  # nothing is done again
  call(project_tool, f'--images={pictures}', f'--out={tmp_path / "parts"}')
  with pytest.raises(UsageError, match='lr: 0.1 there, 0.2 here.*another --out'):
    call(project_tool, f'--images={pictures}', f'--out={tmp_path / "parts"}', '--lr=0.2')


def test_damaged_and_foreign_states_are_not_taken(call, pictures, tmp_path, monkeypatch):
  other = [f'--images={pictures}/p3.png', '--lr=0.2']
  with monkeypatch.context() as patch:
    patch.setattr(project_tool, 'Stop', Early)
    with pytest.raises(Preempted):
      call(project_tool, f'--images={pictures}/p3.png', f'--out={tmp_path / "began"}')
  assert set(content(tmp_path / 'began')) == {'.unfinished.npz'}
  call(project_tool, *other, f'--out={tmp_path / "began"}')
  call(project_tool, *other, f'--out={tmp_path / "fresh"}')
  assert content(tmp_path / 'began') == content(tmp_path / 'fresh')
  out = tmp_path / 'out'
  out.mkdir()
  (out / '.unfinished.npz').write_bytes(b'PK\x03\x04 torn')
  call(project_tool, f'--images={pictures}/p1.png', f'--out={out}')
  assert set(content(out)) == {'p1.png', 'p1.npz', 'p1_projected.png', 'projections.json'}
  (out / 'p2.npz').write_bytes(b'mine')
  with pytest.raises(UsageError, match='p2.npz holds something else'):
    call(project_tool, f'--images={pictures}/p2.png', f'--out={out}')
  assert (out / 'p2.npz').read_bytes() == b'mine'


def test_pictures_of_earlier_commands_stay_listed(call, pictures, tmp_path):
  for name in ('p1', 'p2', 'p1'):
    call(project_tool, f'--images={pictures}/{name}.png', f'--out={tmp_path / "out"}')
  listed = json.loads((tmp_path / 'out' / 'projections.json').read_text())['images']
  assert sorted(d['name'] for d in listed) == ['p1', 'p2']


def test_a_folder_in_use_is_refused(call, pictures, tmp_path):
  with (
    locks.locked(tmp_path / 'out', 'out'),
    pytest.raises(UsageError, match='--out=.* is in use by process'),
  ):
    call(project_tool, f'--images={pictures}/p1.png', f'--out={tmp_path / "out"}')


def test_video(call, pictures, tmp_path, monkeypatch):
  args = [f'--images={pictures}/p1.png', f'--out={tmp_path / "out"}']
  call(project_tool, *args)  # and again, though it is finished: there is no video of it yet
  call(project_tool, *args, '--video')
  assert (tmp_path / 'out' / 'p1.mp4').stat().st_size > 500 and not (
    tmp_path / 'out' / '.frames'
  ).exists()
  args = [f'--images={pictures}/p1.png', f'--out={tmp_path / "late"}']
  with monkeypatch.context() as patch:
    patch.setattr(project_tool, 'Stop', Early)
    with pytest.raises(Preempted):
      call(project_tool, *args)
  call(project_tool, *args, '--video')  # begins anew: the film would lack its beginning
  assert content(tmp_path / 'late') == content(tmp_path / 'out')


def test_a_map_of_one_row_is_no_neighbour_of_itself():
  noise = jnp.asarray(np.random.RandomState(0).randn(1, 1, 8, 1), jnp.float32)
  want = float((noise * jnp.roll(noise, 1, 2)).mean()) ** 2
  np.testing.assert_allclose(project.noise_penalty(noise), [want], rtol=1e-5)


@pytest.mark.parametrize(
  'args, fault, said',
  [
    ([], UsageError, '--images is missing'),
    (['--images=PICTURES', '--steps=0'], UsageError, '--steps=0'),
    (['--images=PICTURES', '--lr=nan'], UsageError, '--lr=nan'),
    (['--images=PICTURES', '--batch=-1'], UsageError, '--batch=-1'),
    (['--images=PICTURES', '--noise_weight=-1'], UsageError, '--noise_weight=-1'),
    (['--images=/nowhere'], DatasetError, '/nowhere: there is no such picture'),
    (['--images=PICTURES/text.png'], DatasetError, 'not an image: text'),
    (['--images=PICTURES', '--out=PICTURES/p1.png'], UsageError, 'is a file'),
    (['--images=PICTURES', '--out=PICTURES/deep/out'], UsageError, 'among the pictures'),
    (['--images=PICTURES/p1.png', '--out=PICTURES'], UsageError, 'among the pictures'),
    (
      ['--images=PICTURES', '--distance=lpips'],
      WeightsError,
      'vgg16-397923af.pth.*--distance=pyramid',
    ),
    (['--images=PICTURES/p1.png', '--lr=1e30'], NonFiniteError, 'smaller --lr'),
  ],
)
def test_bad_input(call, pictures, args, fault, said, tmp_path, monkeypatch):
  monkeypatch.setenv('SG2JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.delenv('SG2JAX_WEIGHTS', raising=False)
  before = content(tmp_path)
  args = [arg.replace('PICTURES', str(pictures)) for arg in [f'--out={tmp_path / "out"}', *args]]
  with pytest.raises(fault, match=said):
    call(project_tool, *args)
  assert content(tmp_path) == before


@pytest.mark.parametrize(
  'given, want',
  [
    (['a.jpg', 'b.png'], ['a', 'b']),
    (['cat.jpg', 'cat.png', 'dog.png'], ['cat.jpg', 'cat.png', 'dog']),
    (['a.png', 'a_projected.png'], ['a.png', 'a_projected.png']),
    (['a_b.png', 'a_b.png'], ['a_b.png', 'a_b.png_2']),
    (['a_b.png', 'a_b.png', 'a_b.jpg'], ['a_b.png', 'a_b.png_2', 'a_b.jpg']),
    (['cat.jpg', 'cat.png', 'cat.png.gif'], ['cat.jpg', 'cat.png', 'cat.png.gif']),
    (['x', 'x.png'], ['x', 'x.png']),
  ],
)
def test_names_of_results_are_unlike(given, want):
  assert project_tool.result_names(given) == want


def test_pictures_of_one_name_are_all_projected(call, pictures, tmp_path):
  image = Image.open(pictures / 'p1.png').convert('RGB')
  folder = tmp_path / 'clash'
  (folder / 'p').mkdir(parents=True)
  for name in ('p1.png', 'p1.jpg', 'p_2.png', 'p/2.png'):
    image.save(folder / name)
  call(project_tool, f'--images={folder}', f'--out={tmp_path / "out"}')
  documents = json.loads((tmp_path / 'out' / 'projections.json').read_text())['images']
  found = {d['name']: os.path.relpath(d['source'], folder) for d in documents}
  assert found == {
    'p1.jpg': 'p1.jpg',
    'p1.png': 'p1.png',
    'p_2.png': 'p/2.png',
    'p_2.png_2': 'p_2.png',
  }
  for name in found:
    assert all(
      (tmp_path / 'out' / f'{name}{ending}').exists()
      for ending in ('.png', '_projected.png', '.npz')
    )


# ---- attribution


def test_auc_threshold_and_errors():
  assert (
    attribute.auc([1, 2], [3, 4]) == 1
    and attribute.auc([3, 4], [1, 2]) == 0
    and attribute.auc([1, 3], [3, 3]) == 0.75
  )
  assert attribute.threshold([1, 2], [8, 9]) == 4 and attribute.error_rates(
    [1, 2, 3], [8, 9, 10]
  ) == (0, 0)
  own, reals = [1, 2, 3, 4, 9], [5, 6, 7, 8, 3.5]
  limit = attribute.threshold(own, reals)
  errors = [
    (np.mean(np.array(own) > x) + np.mean(np.array(reals) <= x)) for x in np.linspace(0, 10, 2001)
  ]
  assert (np.mean(np.array(own) > limit) + np.mean(np.array(reals) <= limit)) == pytest.approx(
    min(errors)
  )
  random = np.random.RandomState(0)
  widths = []
  for count in 40, 640:  # intervals hold the value, and shrink as the root of the count
    x, y = random.rand(2, count)
    low, high = attribute.auc_interval(x, y + 0.3)
    assert low < attribute.auc(x, y + 0.3) < high
    widths.append(high - low)
  assert 3 < widths[0] / widths[1] < 5.5
  # Of groups without a difference about half is mistaken; a threshold that has seen the image
  # promises less.
  x, y = random.rand(2, 60)
  seen = (np.mean(x > attribute.threshold(x, y)) + np.mean(y <= attribute.threshold(x, y))) / 2
  assert np.mean(attribute.error_rates(x, y)) > max(0.4, seen)
  own, p_own, p_real = attribute.judge(2.5, [1, 2, 3], [8, 9, 10])
  assert own and p_own == 2 / 4 and p_real == 1 / 4
  assert not attribute.judge(9.5, [1, 2, 3], [8, 9, 10]).own


def test_attribution_tool(call, pictures, tmp_path, capsys, monkeypatch):
  random = np.random.RandomState(0)
  (tmp_path / 'reals').mkdir()
  for i in range(11):
    (tmp_path / 'reals' / f'{i}.png').write_bytes(
      files.png(random.randint(0, 256, (4, 8, 1), np.uint8))
    )
  args = [
    f'--reals={tmp_path / "reals"}',
    f'--images={pictures}/p1.png',
    '--own=0-9',
    f'--out={tmp_path / "out"}',
    '--steps=60',
    '--batch=1',
  ]
  call(attribute_tool, *args)
  said = capsys.readouterr().out
  assert (
    'AUC 1.000' in said and "p1: the network's own" in said and '10 own images and 10 reals' in said
  )
  document = json.loads((tmp_path / 'out' / 'attribution.json').read_text())
  assert document['auc'] == 1 and document['images'][0]['own'] is True
  assert document['own_missed'] == document['reals_taken_for_own'] == 0
  assert (
    max(document['distances']['own']) < document['threshold'] < min(document['distances']['reals'])
  )
  assert Image.open(tmp_path / 'out' / 'attribution.png').width == 1200
  own = [{'name': f'seed{i:04d}', 'distance': i} for i in range(3)]
  assert list(attribute_tool.examples(tmp_path / 'out' / 'own', own)) == [
    'closest',
    '60 %',
    'farthest',
  ]
  monkeypatch.setattr(project, 'Projector', None)  # nothing is done again
  call(attribute_tool, *args)
  for bad, match in (
    ('--own=0-3', '10 at least'),
    (f'--reals={pictures}/p1.png', '1 pictures'),
    ('--reals=', '--reals is missing'),
  ):
    with pytest.raises(UsageError, match=match):
      call(attribute_tool, *args, bad)


# ---- long ones


@pytest.mark.slow
def test_killed_and_on_more_devices(run, pictures, tmp_path):
  """A run that is stopped and killed goes on to the same bytes; with 3 devices the same is found,
  but for rounding.
  """

  def start(out, devices=1):
    env = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': f'{xla_flags()} --xla_force_host_platform_device_count={devices}',
    }
    return subprocess.Popen(
      [
        sys.executable,
        '-m',
        'sg2jax.tools.project',
        f'--checkpoint={run}',
        f'--images={pictures}',
        '--distance=l2',
        '--steps=300',
        '--batch=4',
        f'--out={tmp_path / out}',
      ],
      cwd=ROOT,
      env=env,
    )

  assert start('whole').wait() == 0
  for delay, number in (
    (7, signal.SIGTERM),
    (7, signal.SIGKILL),
    (8, signal.SIGINT),
    (6, signal.SIGTERM),
    (7, signal.SIGTERM),
  ):
    process = start('killed')
    time.sleep(delay)
    process.send_signal(number)
    process.wait()
  assert start('killed').wait() == 0 and start('three', 3).wait() == 0
  assert content(tmp_path / 'killed') == content(tmp_path / 'whole')
  one, three = (
    json.loads((tmp_path / name / 'projections.json').read_text())['images']
    for name in ('whole', 'three')
  )
  np.testing.assert_allclose(
    [d['distance'] for d in one], [d['distance'] for d in three], rtol=0.05
  )
