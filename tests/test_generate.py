"""Images of seeds, sheets, videos, directions: against numpy, by invariants, read again from the
files; the command line.
"""

from functools import partial
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

from absl import flags
import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageSequence
import pytest

import sg2jax
from sg2jax import sampler
from sg2jax.data.labels import Labels
from sg2jax.edit import directions
from sg2jax.faults import CheckpointError, UsageError, WriteError
from sg2jax.tools import directions as directions_tool
from sg2jax.tools import generate, video
from tests.runs import random_run, xla_flags

ROOT = pathlib.Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures('quick_compile')
Z = 12


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A workdir with a tiny network, 8x16 px, RGB, 3 classes, 6 ws, whose weights are random in all
  that starts at 0.
  """
  return random_run(
    tmp_path_factory.mktemp('generated'),
    (0.3, 0.3, 1, 1, 1),
    resolution=(8, 16),
    **{'g.fmap_base': 64, 'g.z_dim': Z, 'g.w_dim': Z, 'g.mapping_layers': 2},
  )


@pytest.fixture(scope='module')
def net(run):
  return sg2jax.load(run)


@pytest.fixture
def call(monkeypatch):
  """A tool's main with flags, as the command line calls it, but in this process."""

  def run(tool, *args):
    values = flags.FlagValues()
    with monkeypatch.context() as patch:
      for kind in ('string', 'integer', 'float', 'boolean', 'enum'):
        patch.setattr(
          flags, f'DEFINE_{kind}', partial(getattr(flags, f'DEFINE_{kind}'), flag_values=values)
        )
      patch.setattr(
        flags, 'adopt_module_key_flags', partial(flags.adopt_module_key_flags, flag_values=values)
      )
      patch.setattr(flags, 'FLAGS', values)
      tool.define_flags()
      tool.main(values(['tool', *map(str, args)]))

  return run


def png(path):
  """uint8 [H,W,C] of a file."""
  image = np.asarray(Image.open(path))
  return image[..., None] if image.ndim == 2 else image


def close(a, b, limit=1):
  """Whether uint8 images agree."""
  return a.shape == b.shape and np.abs(a.astype(int) - b).max() <= limit


def made(net, seeds, *args, **options):
  """net(seeds), 4 at once: one size is compiled once."""
  return net([*seeds, 0, 0, 0], *args, batch=4, **options)[: len(seeds)]


# ---- seeds, truncation, batches


def test_latents_and_labels_are_those_of_numpy(net):
  assert net.config.c_dim == 3 and net.num_ws == 6
  seeds = [5, 2**32 - 1, 5]
  want = [np.random.RandomState(s) for s in seeds]
  np.testing.assert_array_equal(
    net.z(seeds), np.stack([r.randn(1, Z)[0] for r in want]).astype(np.float32)
  )
  np.testing.assert_array_equal(net.c(seeds), np.eye(3)[[r.randint(3) for r in want]])
  np.testing.assert_array_equal(net.c(seeds, 2), np.eye(3)[[2, 2, 2]])
  assert len({net.c([s]).argmax() for s in range(20)}) == 3


def test_an_image_is_the_same_whatever_the_batch(net):
  seeds = range(20, 31)
  const, random, none = (
    made(net, seeds, 0.7, noise=noise) for noise in ('const', 'random', 'none')
  )
  assert const.dtype == np.uint8 and const.shape == (11, 8, 16, 3) and const.std() > 10
  assert close(net(seeds, 0.7, noise='random'), random)
  assert close(net([27], 0.7, noise='random')[0], random[7])
  assert not any(
    close(*pair, 20)
    for pair in ((const, random), (const, none), (random, none), (const[:4], const[4:8]))
  )
  assert not close(made(net, seeds, label=0), made(net, seeds, label=1), 20)


def test_truncation(net):
  seeds, w_avg = [1, 2], np.asarray(net.w_avg)
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
    ({'psi': float('nan')}, 'psi=nan'),
    ({'psi': 1e39}, '1e.39'),
    ({'cutoff': 2.5}, 'cutoff=2.5'),
    ({'cutoff': 7}, 'cutoff=7 .* 0 to 6'),
    ({'label': 3}, 'choose from 0, 1, 2'),
    ({'label': np.zeros((2, 3))}, r'\[1,3\]'),
    ({'label': -1}, 'class -1'),
    ({'label': 1.5}, 'class 1.5'),
    ({'label': 'cat'}, 'class cat: .* 0, 1, 2'),
    ({'label': [0, 1]}, 'these are 2'),
    ({'label': [[0, 1], [1]]}, r'\[\[0, 1'),
    ({'label': [0, float('nan'), 1]}, 'finite'),
    ({'label': True}, 'class True'),
    ({'label': {1}}, r'\{1\}'),
    ({'label': ['0', 'x']}, 'these are 2'),
    ({'label': [None]}, 'None'),
    ({'noise': 'loud'}, 'const, random, none'),
    ({'batch': 0}, 'batch=0'),
    ({'batch': -2}, 'batch=-2'),
  ],
)
def test_bad_values_are_named(net, fields, said):
  with pytest.raises(UsageError, match=said):
    net(**({'seeds': [0]} | fields))


def test_ws_of_another_network_are_refused(net):
  for shape in ((1, 5, Z), (1, 6, Z + 1), (6, Z), (0, 6, Z)):
    with pytest.raises(UsageError, match=r'takes \[N,6,12\]'):
      net.images(np.zeros(shape, np.float32))
  np.testing.assert_array_equal(net(5), net([5]))


def test_parts_cover_everything_once_at_one_size():
  for n, size in ((1, 1), (7, 3), (6, 3), (2, 5)):
    found = list(sampler.parts(n, size))
    assert {len(rows) for rows, _ in found} == {size} and np.max(
      np.concatenate([rows for rows, _ in found])
    ) == n - 1
    assert np.concatenate([rows[:kept] for rows, kept in found]).tolist() == list(range(n))


# ---- generate


def test_mixing_copies_the_chosen_ws_only(net):
  rows, cols = [3, 4], [5, 6, 7]
  found = generate.mix(net, rows, cols, slice(2, 5), 'random', 4, psi=0.8)
  a, b = net.ws(rows, 0.8), net.ws(cols, 0.8)
  ws = np.stack(
    [[a[i, k] if k < 2 or k > 4 else b[j, k] for k in range(6)] for i in range(2) for j in range(3)]
  )
  assert found.shape == (3, 4, 8, 16, 3) and (found[0, 0] == 255).all()
  assert close(found[1:, 1:].reshape(6, 8, 16, 3), net.images(ws, 'random', np.repeat(rows, 3), 4))
  assert close(
    np.concatenate([found[1:, 0], found[0, 1:]]), made(net, [*rows, *cols], 0.8, noise='random')
  )


def test_sweep(net):
  found = generate.sweep(net, [3, 4], [1, 0, -0.5], 'random', 4, label=1, cutoff=4)
  for j, psi in enumerate((1, 0, -0.5)):
    assert close(found[:, j], made(net, [3, 4], psi, label=1, cutoff=4, noise='random'))


def test_files_of_images(net, run, call, tmp_path, monkeypatch, capsys):
  asked, out, make = [], tmp_path / 'new' / 'out', sampler.Sampler.__call__
  with monkeypatch.context() as patch:
    patch.setattr(
      sampler.Sampler,
      '__call__',
      lambda self, seeds, **k: asked.append(len(seeds)) or make(self, seeds, **k),
    )
    call(
      generate,
      f'--checkpoint={run}',
      '--seeds=0-8,3,10000',
      f'--out={out}',
      '--batch=4',
      '--psi=0.5',
      '--class=2',
      '--noise=none',
    )
  assert sorted(p.name for p in out.iterdir()) == [f'seed{s:04d}.png' for s in [*range(9), 10000]]
  assert asked == [4, 4, 4] and '10 images in' in capsys.readouterr().out
  want = made(net, [*range(9), 10000], 0.5, label=2, noise='none')
  assert all(close(png(p), x) for p, x in zip(sorted(out.iterdir()), want))
  (out / 'seed0003.png').write_bytes(b'old')
  (out / 'mine.txt').write_text('mine')
  call(
    generate,
    f'--checkpoint={run}',
    '--seeds=3-6',
    f'--out={out}',
    f'--sheet={tmp_path / "sheet.png"}',
  )
  assert close(png(out / 'seed0003.png'), made(net, [3])[0]) and len(list(out.iterdir())) == 11
  assert (out / 'mine.txt').read_text() == 'mine' and close(png(out / 'seed0002.png'), want[2])
  tiles = png(tmp_path / 'sheet.png')  # 8 px are enlarged by 8, and a name is on the left
  assert tiles.shape[0] == 64 + generate.LINE  # with the class below each
  assert all(close(tiles[k:64:8, k - 128 :: 8], made(net, [6])[0]) for k in (0, 7))


def test_sheets(net, run, call, tmp_path):
  place = tmp_path / 'sheet.png'
  flags_ = f'--checkpoint={run}', '--batch=4', f'--sheet={place}'
  call(generate, *flags_, '--seeds=0-8')
  want = np.full((16, 8, 16, 3), 255, np.uint8)
  want[:9] = made(net, range(9))
  tiles = png(place).reshape(2, 64 + generate.LINE, -1, 3)[:, :64:8, -8 * 128 :: 8]
  assert close(tiles, want.reshape(2, 8, 8, 16, 3).transpose(0, 2, 1, 3, 4).reshape(2, 8, 128, 3))
  call(generate, 'mix', *flags_, '--seeds=0,1', '--cols=2-4', '--styles=1-1')
  want = generate.mix(net, [0, 1], [2, 3, 4], slice(1, 2), batch=4)
  assert close(png(place)[-192::8, -4 * 128 :: 8], want.transpose(0, 2, 1, 3, 4).reshape(24, 64, 3))
  call(generate, 'sweep', *flags_, '--seeds=0')
  assert png(place).shape[1] > 6 * 128 and close(png(place)[-64::8, -128::8], made(net, [0], -1)[0])
  assert [p.name for p in tmp_path.iterdir()] == ['sheet.png']


def test_the_same_files_on_eight_devices(net, run, tmp_path):
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count=8 {xla_flags()}',
  }
  command = [
    sys.executable,
    '-m',
    'sg2jax.tools.generate',
    f'--checkpoint={run}',
    '--seeds=0-9',
    f'--out={tmp_path}',
    '--noise=random',
    '--psi=0.7',
  ]
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)
  assert done.returncode == 0, done.stderr
  want = made(net, range(10), 0.7, noise='random')
  assert all(close(png(tmp_path / f'seed{s:04d}.png'), want[s]) for s in range(10))


# ---- video


@pytest.mark.parametrize('space', ['w', 'z'])
def test_frames_pass_through_the_seeds(net, space):
  seeds = np.arange(3, 9).reshape(1, 2, 3)
  found = np.stack(list(video.frames(net, seeds, 6, space, psi=0.7, noise='random')))
  assert found.shape == (6, 8, 32, 3)
  left, right = found[..., :16, :], found[..., 16:, :]
  shown = lambda ws, seed: net.images(np.repeat(ws, 2, 0), 'random', [seed] * 2 * len(ws), 4)[::2]
  for k, side in ((3, left), (6, right)):  # the noise is that of the first seed of the cell
    assert close(side[::2], shown(net.ws(range(k, k + 3), 0.7), k))
  z, c = net.z([8, 6]), net.c([8, 6])
  assert (c[0] != c[1]).any()
  if space == 'w':
    middle = net.map(z, c).mean(0)
  else:
    middle = net.map(
      (z / np.linalg.norm(z, axis=1, keepdims=True)).sum(0, keepdims=True), c.mean(0, keepdims=True)
    )[0]
  assert close(right[5:6], shown(net.truncate(np.stack([middle] * 2), 0.7), 6)[:1], 2)
  ends = np.stack(list(video.frames(net, seeds, 6, space, loop=False, psi=0.7, noise='random')))[
    [0, 5], :, 16:
  ]
  assert close(ends, shown(net.ws([6, 8], 0.7), 6))


def test_arcs_keep_lengths_and_stand_still():
  a = np.random.RandomState(0).randn(3, Z).astype(np.float32)
  b, t = 2 * a[[1, 2, 0]], np.float32([0, 1, 0.5])
  found = video.arc(a, b, t)
  np.testing.assert_allclose(found[:2], [a[0], b[1]], atol=1e-5)
  assert np.linalg.norm(found[2]) == pytest.approx(
    np.linalg.norm([a[2], b[2]], axis=1).mean(), rel=1e-5
  )
  np.testing.assert_array_equal(video.arc(a, a, t), a)


def pictures(shape, count=7):
  """Frames uint8 [*shape] that differ, smooth enough for an encoder."""
  y, x, c = np.meshgrid(*map(np.arange, shape), indexing='ij')
  return [
    np.uint8(127 + 100 * np.sin(x / shape[1] * 5 + t + c) * np.cos(y / shape[0] * 4))
    for t in range(count)
  ]


def frames_of(path):
  """(uint8 [T,H,W,3], seconds) of a file."""
  if path.suffix == '.mp4':
    command = [
      imageio_ffmpeg.get_ffmpeg_exe(),
      '-i',
      str(path),
      '-f',
      'rawvideo',
      '-pix_fmt',
      'rgb24',
      '-',
    ]
    done = subprocess.run(command, capture_output=True)
    said = re.search(r'Duration: 00:00:([0-9.]+).*, (\d+)x(\d+)', done.stderr.decode(), re.DOTALL)
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, int(said[3]), int(said[2]), 3), float(
      said[1]
    )
  image, frames, seconds = Image.open(path), [], 0
  for frame in ImageSequence.Iterator(image):
    frames.append(np.asarray(frame.convert('RGB')))
    seconds += frame.info['duration'] / 1000
  assert image.info['loop'] == 0
  return np.stack(frames), seconds


@pytest.mark.parametrize('ending', ['mp4', 'gif', 'webp'])
@pytest.mark.parametrize('shape', [(8, 10, 1), (257, 259, 3)])
def test_videos_are_what_was_written(tmp_path, ending, shape):
  path, given = tmp_path / 'new' / f'x.{ending}', pictures(shape)
  video.write_video(path, iter(given), 10)
  found, seconds = frames_of(path)
  k = 32 if shape[0] == 8 else 1  # 8 px -> 256 px
  want = np.stack(given).repeat(k, 1).repeat(k, 2)
  size = [side + (ending == 'mp4' and side % 2) for side in want.shape[1:3]]
  assert found.shape == (7, *size, 3) and seconds == pytest.approx(0.7)
  errors = np.abs(found[:, : want.shape[1], : want.shape[2]] - want.astype(float))
  assert errors.mean() < 5 and (ending != 'gif' or shape[2] == 3 or errors.max() == 0)
  assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_video_is_whole_or_not_there(tmp_path, monkeypatch):
  path = tmp_path / 'x.mp4'
  path.write_text('old')

  def broken():
    yield from pictures((64, 64, 3))
    raise RuntimeError

  with pytest.raises(RuntimeError):
    video.write_video(path, broken(), 10)
  monkeypatch.setattr(imageio_ffmpeg, 'get_ffmpeg_exe', lambda: '/bin/false')
  with pytest.raises(WriteError, match='the encoder ended with 1'):
    video.write_video(path, pictures((64, 64, 3), 200), 10)
  monkeypatch.undo()
  monkeypatch.setitem(video.ENCODERS, '.mp4', lambda grey: ['-c:v', 'nothing'])
  with pytest.raises(
    WriteError, match='x.mp4: the encoder ended with .*nothing|x.mp4: the encoder ended with'
  ):
    video.write_video(path, pictures((64, 64, 3)), 10)
  assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]
  with pytest.raises(WriteError, match='/proc/x'):
    video.write_video('/proc/x/y.gif', pictures((64, 64, 3)), 10)


def test_video_tool(net, run, call, tmp_path):
  call(
    video,
    f'--checkpoint={run}',
    '--seeds=0-3',
    '--grid=2x1',
    '--fps=5',
    '--seconds=1',
    '--noloop',
    f'--out={tmp_path / "x.gif"}',
  )
  found, seconds = frames_of(tmp_path / 'x.gif')
  assert found.shape == (5, 256, 256, 3) and seconds == pytest.approx(1)
  last = np.concatenate(made(net, [1, 3])).repeat(16, 0).repeat(16, 1)
  assert np.abs(found[-1] - last.astype(float)).mean() < 8


# ---- directions


def test_principal_components_of_a_known_covariance():
  random = np.random.RandomState(0)
  basis, _ = np.linalg.qr(random.randn(6, 6))
  stdevs = np.array([5, 3, 2, 1, 0.5, 0.1])
  w = random.randn(100_000, 6) * stdevs @ basis.T + np.arange(6)
  found = directions.pca(w.astype(np.float32), 4)
  np.testing.assert_allclose(np.abs(found.vectors @ basis[:, :4]), np.eye(4), atol=0.02)
  np.testing.assert_allclose(found.stdevs, stdevs[:4], rtol=0.02)
  np.testing.assert_allclose(found.values, stdevs[:4] ** 2, rtol=0.03)
  np.testing.assert_allclose(found.mean, np.arange(6), atol=0.1)
  assert (np.take_along_axis(found.vectors, np.abs(found.vectors).argmax(1)[:, None], 1) > 0).all()


def test_sefa_is_what_a_search_finds(net):
  w = np.random.RandomState(1).randn(1000, Z) * np.arange(1, Z + 1)
  found = directions.sefa(net, w, slice(3, 5), 3)
  # b8.conv1 reads ws 2, b16.conv0 3, b16.conv1 4
  params = net.variables['params']['synthesis']
  matrix = np.concatenate(
    [params['b16'][f'conv{i}']['affine']['weight'] for i in (0, 1)], 1
  ).T / np.sqrt(Z)
  random = np.random.RandomState(2)
  for k in range(3):
    best = random.randn(Z)
    for _ in range(3000):  # ascent of |A n|^2 on the sphere, orthogonal to those before
      best = best + 0.3 * matrix.T @ (matrix @ best)
      best -= found.vectors[:k].T @ (found.vectors[:k] @ best)
      best /= np.linalg.norm(best)
    assert abs(best @ found.vectors[k]) > 0.999 and found.values[k] == pytest.approx(
      ((matrix @ best) ** 2).sum(), rel=1e-4
    )
    assert found.stdevs[k] == pytest.approx((w @ found.vectors[k]).std(ddof=1), rel=1e-4)
  others = random.randn(1000, Z)
  others /= np.linalg.norm(others, axis=1, keepdims=True)
  assert ((others @ matrix.T) ** 2).sum(1).max() < found.values[0]
  with pytest.raises(UsageError, match='--layers=5-5'):
    directions.sefa(net, w, slice(5, 6), 3)


def test_edits_move_the_chosen_ws(net):
  ws, n = net.ws([0])[0], np.eye(Z, dtype=np.float32)[2]
  moved = directions.edit(ws, n, [-1, 0, 2], slice(1, 3))
  want = np.zeros((3, 6, Z), np.float32)
  want[:, 1:3, 2] = np.array([-1, 0, 2])[:, None]
  np.testing.assert_allclose(moved - ws, want, atol=1e-6)


@pytest.mark.parametrize('method', ['pca', 'sefa'])
def test_directions_tool(net, run, call, tmp_path, monkeypatch, method):
  monkeypatch.setattr(directions_tool, 'SAMPLES', 4000)
  call(
    directions_tool,
    method,
    f'--checkpoint={run}',
    '--count=3',
    '--seed=4',
    '--layers=2-4',
    '--sigma=2',
    f'--out={tmp_path}',
  )
  with np.load(tmp_path / f'{method}.npz') as found:
    found = dict(found)
  assert (
    found['layers'].tolist() == [2, 4]
    and str(found['method']) == method
    and str(found['checkpoint']) == net.hash()
  )
  np.testing.assert_allclose(found['vectors'] @ found['vectors'].T, np.eye(3), atol=1e-5)
  w = net.map(np.random.RandomState(1).randn(4000, Z).astype(np.float32), net.c(range(4000)))
  np.testing.assert_allclose(found['stdevs'], (w @ found['vectors'].T).std(0), rtol=0.1)
  ws = np.repeat(net.ws([4]), 2, 0)
  ws[1, 2:5] += 2 * found['stdevs'][1] * found['vectors'][1]
  tiles = png(tmp_path / f'{method}.png')[-192::8, -7 * 128 :: 8].reshape(3, 8, 7, 16, 3)
  assert close(tiles[1][:, [3, 6]].swapaxes(0, 1), net.images(ws[[0, 1, 0, 1]])[:2])


# ---- labels: as the data has them, by name, one for each seed

# nobody has dog; 0 is the name of the last
CATS = Labels.of_classes(('cat', 'dog', '0'), (5, 0, 2))
VECTORS = Labels.of_vectors([[1, 0, 1], [1, 1, 0.5], [1, 0, 1]])


def drawn(labels, seeds):
  """What a network with these labels draws from seeds."""
  found = []
  for seed in seeds:
    key = np.random.RandomState(seed)
    key.randn(Z)
    found.append(labels.draw(key, 1)[0])
  return np.array(found)


@pytest.mark.parametrize('labels', [CATS, VECTORS])
def test_labels_are_drawn_as_the_data_has_them(net, labels):
  net = net._replace(labels=labels)
  found = net.c(range(300))
  np.testing.assert_array_equal(found, drawn(labels, range(300)))
  for drawn_ in (found, sampler.draw_labels(net, 300, np.random.RandomState(0))):
    assert {tuple(x) for x in drawn_} == {tuple(x) for x in labels.values}
    share = (drawn_ == labels.values[labels.counts.argmax()]).all(1).mean()
    assert share == pytest.approx(labels.counts.max() / labels.counts.sum(), abs=0.1)
  np.testing.assert_array_equal(
    sampler.sample_w(net, 7, 3),
    net.map(
      *(lambda key: (key.randn(7, Z).astype(np.float32), labels.draw(key, 7)))(
        np.random.RandomState(3)
      )
    ),
  )


def test_without_labels_json_classes_are_as_frequent(net):
  assert net.labels.one_hot and net.labels.counts.tolist() == [1, 1, 1] and net.labels.names == ()


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
  vectors, named = net._replace(labels=VECTORS), net._replace(labels=CATS)
  for label in ([1, 0, 1], (1.0, 0.0, 1.0), np.array([[1, 0, 1]])):
    np.testing.assert_array_equal(vectors.c([7, 8, 9], label), [[1, 0, 1]] * 3)
  np.testing.assert_array_equal(
    vectors.c([7, 8], [[1, 0, 1], [0, 0.5, -1]]), [[1, 0, 1], [0, 0.5, -1]]
  )
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


@pytest.mark.parametrize('where', ['workdir', 'step', 'copy'])
def test_a_run_says_its_labels(run, tmp_path, where):
  shutil.copytree(run, tmp_path / 'run')
  step = tmp_path / 'run' / 'checkpoints' / '3'
  if where == 'copy':
    step = shutil.copytree(step, tmp_path / 'elsewhere')
    shutil.copy(run / 'config.json', step)
  place = (tmp_path / 'run' if where == 'workdir' else step) / 'labels.json'
  place.write_text(CATS.to_json())
  for path in (
    [step] if where == 'copy' else [step, tmp_path / 'run'] if where == 'workdir' else [step]
  ):
    assert (
      sg2jax.load(path).labels.names == CATS.names and sg2jax.load(path).c([5], '0').argmax() == 2
    )
  for text in (
    '',
    '[]',
    '{}',
    Labels.unknown(4).to_json(),
    CATS.to_json().replace('[5, 2]', '[5, 0]'),
    CATS.to_json().replace('[0, 2]', '[0, 7]'),
    CATS.to_json().replace('"dog", ', ''),
  ):
    place.write_text(text)
    with pytest.raises(CheckpointError, match='labels.json'):
      sg2jax.load(step)
  place.unlink()
  assert sg2jax.load(step).labels.names == ()


@pytest.fixture
def named_run(run, tmp_path):
  """The run with labels.json of CATS."""
  shutil.copytree(run, tmp_path / 'named')
  (tmp_path / 'named' / 'labels.json').write_text(CATS.to_json())
  return tmp_path / 'named'


def test_classes_on_the_command_line(net, named_run, call, tmp_path, capsys):
  flags_ = f'--checkpoint={named_run}', f'--out={tmp_path / "out"}', '--batch=4'
  found = lambda: [png(p) for p in sorted((tmp_path / 'out').iterdir())]
  call(generate, *flags_, '--seeds=5,6', '--class=cat')
  assert all(close(*pair) for pair in zip(found(), made(net, [5, 6], label=0)))
  call(generate, *flags_, '--seeds=5,6,7,7,7', '--class=2, cat,0,dog,cat')
  assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == [
    'seed0005.png',
    'seed0006.png',
    'seed0007.png',
    'seed0007_2.png',
    'seed0007_3.png',
  ]
  assert all(
    close(*pair)
    for pair in zip(found(), made(net, [5, 6, 7, 7, 7], label=np.eye(3)[[2, 0, 2, 1, 0, 0, 0, 0]]))
  )
  assert 'had class dog' in capsys.readouterr().err
  call(generate, *flags_, '--seeds=5,6', '--label=0.5,0,0.5;0,1,0')
  assert all(
    close(*pair)
    for pair in zip(found(), made(net, [5, 6], label=np.array([[0.5, 0, 0.5]] + [[0, 1, 0]] * 4)))
  )
  for text, said in (
    ('--class=bird', 'bird.*cat, dog, 0'),
    ('--class=cat,dog', 'has 2, and there are 3 seeds'),
    ('--class=', 'empty'),
    ('--label=1,0', 'must be 3 finite'),
    ('--label=1,0,nan', 'must be 3'),
    ('--label=cat', 'must be 3'),
    ('--label=1,0,0;0,0,1', 'has 2'),
    ('--label=', 'must be 3'),
  ):
    with pytest.raises(UsageError, match=said):
      call(generate, *flags_, '--seeds=1-3', text)
  with pytest.raises(UsageError, match='give one'):
    call(generate, *flags_, '--class=cat', '--label=1,0,0')
  (named_run / 'labels.json').write_text(VECTORS.to_json())
  with pytest.raises(UsageError, match='--class=1: .* use --label, as in --label=1,0,1'):
    call(generate, *flags_, '--class=1')
  with pytest.raises(UsageError, match='use --label'):
    call(video, f'--checkpoint={named_run}', f'--out={tmp_path}/x.gif', '--class=1')
  with pytest.raises(UsageError, match='use --label'):
    call(directions_tool, 'pca', f'--checkpoint={named_run}', '--class=1')


def test_sheets_name_the_classes(net, named_run, call, tmp_path, monkeypatch):
  told, write = [], generate.write_sheet
  monkeypatch.setattr(
    generate,
    'write_sheet',
    lambda *args, **names: told.append((args[2:], names)) or write(*args, **names),
  )
  flags_ = f'--checkpoint={named_run}', f'--sheet={tmp_path}/s.png', '--batch=4'
  call(generate, *flags_, '--seeds=5,6', '--class=cat,0')
  assert told.pop() == ((['seed 5 ...'],), {'below': ['cat', '0']})
  blank = png(tmp_path / 's.png')[64:, -128:]
  assert (blank < 128).any()  # text is there
  call(generate, 'sweep', *flags_, '--seeds=5', '--class=dog')
  assert told.pop()[0][0] == ['seed 5\ndog']
  call(generate, 'mix', *flags_, '--seeds=5,6', '--cols=7', '--styles=0-1', '--class=cat,0,dog')
  assert told.pop()[0] == (['', 'seed 5\ncat', 'seed 6\n0'], ['', 'seed 7\ndog'])
  (named_run / 'labels.json').write_text(VECTORS.to_json())
  call(generate, *flags_, '--seeds=0-3')
  assert set(told.pop()[1]['below']) == {'1,0,1', '1,1,0.5'}


def test_names_of_any_length_and_kind_fit(tmp_path):
  pictures = np.zeros((1, 2, 64, 64, 4), np.uint8)
  generate.write_sheet(
    tmp_path / 's.png', pictures, ['a\udcffb'], ['c' * 99, '写真'], below=['long ' * 50, '\udcff']
  )
  found = png(tmp_path / 's.png')
  assert (
    found.shape[2] == 4
    and (found[26:90, -128:] == 0).all()
    and found.shape[0] == 26 + 64 + generate.LINE
  )


# ---- the command line


@pytest.mark.parametrize(
  'tool, args, said',
  [
    (generate, '--out=OUT', '--checkpoint is missing'),
    (generate, 'draw', 'KIND=draw'),
    (generate, '', '--out and --sheet'),
    (generate, '--out=OUT --seeds=3-1', '--seeds=3-1'),
    (generate, '--out=OUT --seeds=a', "'a' is no seed"),
    (generate, '--out=OUT --psi=nan', '--psi=nan'),
    (generate, '--out=OUT --psi=1,2', '--psi=1,2'),
    (generate, '--out=OUT --psi=much', '--psi=much'),
    (generate, '--out=FILE', '--out=.* is a file'),
    (generate, '--out=FILE/in/it', 'file is a file'),
    (video, '--out=FILE/x.gif', 'file is a file'),
    (generate, '--sheet=OUT.jpg', 'must end in .png'),
    (generate, '--out=OUT --batch=-1', '--batch=-1'),
    (generate, 'mix --out=OUT', 'is for images'),
    (generate, 'mix', '--sheet is missing'),
    (generate, 'mix --checkpoint=RUN --sheet=OUT.png --styles=3-1', '--styles=3-1'),
    (generate, 'mix --sheet=OUT.png --cols=x', "--cols=x: 'x'"),
    (generate, 'mix --checkpoint=RUN --sheet=OUT.png --styles=0-6', 'ws 0 to 5'),
    (generate, '--checkpoint=RUN --out=OUT --cutoff=7', 'cutoff=7'),
    (generate, '--checkpoint=RUN --out=OUT --class=3', 'choose from 0, 1, 2'),
    (generate, '--checkpoint=RUN --sheet=OUT.png --seeds=0-999999', 'a sheet of 1000000 images'),
    (generate, 'sweep --checkpoint=RUN --sheet=OUT.png --seeds=0-199999', 'a sheet of 1200000'),
    (video, '', '--out is missing'),
    (video, '--out=OUT.avi', 'must end in .mp4 or .gif or .webp'),
    (video, '--out=OUT.gif --fps=60', '--fps=60'),
    (video, '--out=OUT.mp4 --fps=0', '--fps=0'),
    (video, '--out=OUT.mp4 --grid=2', '--grid=2'),
    (video, '--out=OUT.mp4 --grid=3x3', 'a multiple of 9, 18 or more'),
    (video, '--out=OUT.mp4 --seeds=1', '2 or more'),
    (video, '--out=OUT.mp4 --seconds=nan', '--seconds=nan'),
    (video, '--out=OUT.mp4 --seconds=-1', '--seconds=-1'),
    (video, '--out=OUT.mp4', '--checkpoint is missing'),
    (video, '--checkpoint=RUN --out=OUT.mp4 --class=3', 'choose from 0, 1, 2'),
    (video, '--checkpoint=RUN --out=OUT.mp4 --cutoff=-1', 'cutoff=-1'),
    (directions_tool, '', 'METHOD is missing'),
    (directions_tool, 'lda', 'METHOD=lda'),
    (directions_tool, 'pca --checkpoint=RUN --layers=4', '--layers=4'),
    (directions_tool, 'pca --sigma=inf', '--sigma=inf'),
    (directions_tool, 'pca --seed=-1', '-1'),
    (directions_tool, 'pca --checkpoint=RUN --layers=0-6 --out=OUT', 'ws 0 to 5'),
    (directions_tool, 'pca --checkpoint=RUN --count=13 --out=OUT', 'at most 12'),
    (directions_tool, 'pca --checkpoint=RUN --count=0 --out=OUT', '--count=0'),
    (directions_tool, 'sefa --checkpoint=RUN --layers=5-5 --out=OUT', 'no convolution'),
    (directions_tool, 'sefa --checkpoint=RUN --class=7 --out=OUT', 'choose from 0, 1, 2'),
  ],
)
def test_bad_flags_are_refused_and_nothing_is_made(
  run, call, tmp_path, monkeypatch, tool, args, said
):
  monkeypatch.setattr(directions_tool, 'SAMPLES', 100)
  (tmp_path / 'file').write_text('')
  for name, value in {'OUT': tmp_path / 'out', 'FILE': tmp_path / 'file', 'RUN': run}.items():
    args = args.replace(f'={name}', f'={value}')
  with pytest.raises(UsageError, match=said):
    call(tool, *args.split())
  assert [p.name for p in tmp_path.iterdir()] == ['file'] and not (run / 'directions').exists()


def test_a_signal_leaves_nothing_half_made(run, tmp_path):
  command = [
    sys.executable,
    '-m',
    'sg2jax.tools.video',
    f'--checkpoint={run}',
    f'--out={tmp_path}/v.mp4',
    '--seconds=100000',
  ]
  env = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': xla_flags()}
  process = subprocess.Popen(
    command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  while not list(tmp_path.iterdir()):
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.05)
  process.terminate()
  _, err = process.communicate(timeout=60)
  assert (
    process.returncode == 143 and 'SIGTERM' in err.splitlines()[-1] and not list(tmp_path.iterdir())
  )


def test_help_is_no_error():
  done = subprocess.run(
    [sys.executable, '-m', 'sg2jax.tools.generate', '--help'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0 and 'seed0000.png' in done.stdout and '--psi' in done.stdout
