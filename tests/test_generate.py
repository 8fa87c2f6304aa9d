"""Tools that show a trained network: images and sheets, videos, directions; their command lines."""

import pathlib
import re
import shutil
import subprocess
import time

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageSequence
import pytest

import sg2jax
from sg2jax import sampler
from sg2jax.edit import direction, directions
from sg2jax.faults import CheckpointError, UsageError, WriteError
from sg2jax.tools import directions as directions_tool
from sg2jax.tools import generate, sheets, video, videos
from tests.runs import call
from tests.test_sampler import CATS, VECTORS, Z, close, made, make_run

pytestmark = pytest.mark.usefixtures('quick_compile')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return make_run(tmp_path_factory.mktemp('generated'))


@pytest.fixture(scope='module')
def net(run):
  return sg2jax.load(run)


@pytest.fixture
def named_run(run, tmp_path):
  """The run with labels.json of CATS."""
  shutil.copytree(run, tmp_path / 'named')
  (tmp_path / 'named' / 'labels.json').write_text(CATS.to_json())
  return tmp_path / 'named'


def png(path):
  """uint8 [H,W,C] of a file."""
  image = np.asarray(Image.open(path))
  return image[..., None] if image.ndim == 2 else image


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def all_close(folder, images):
  """Whether the pictures of a folder, by name, are these."""
  files = sorted(folder.iterdir())
  return len(files) == len(images) and all(close(png(f), x) for f, x in zip(files, images))


# ---- generate


def test_mixing_copies_the_chosen_ws_only(net):
  rows, cols = [3, 4], [5, 6, 7]
  ws, number = generate.mix(net, rows, cols, slice(2, 5), None, psi=0.8)
  a, b = net.ws(rows, 0.8), net.ws(cols, 0.8)
  want = np.repeat(a[:, None], 3, 1)
  want[:, :, 2:5] = b[:, 2:5]
  np.testing.assert_array_equal(ws[1:, 1:], want)
  np.testing.assert_array_equal(ws[1:, 0], a)
  np.testing.assert_array_equal(ws[0, 1:], b)
  assert number[0, 1:].tolist() == cols and number[1:].tolist() == [[3] * 4, [4] * 4]


def test_sweep(net):
  psis = (1, 0, -0.5)
  ws, number = generate.sweep(net, [3, 4], psis, label=1, cutoff=4)
  for j, psi in enumerate(psis):
    np.testing.assert_array_equal(ws[:, j], net.ws([3, 4], psi, 4, 1))
  assert number.tolist() == [[3] * 3, [4] * 3]


def test_files_of_images(net, run, tmp_path, monkeypatch):
  out = tmp_path / 'new' / 'out'
  sizes = []
  make = sampler.Sampler.__call__

  def counted(self, seeds, *options):
    sizes.append(len(seeds))
    return make(self, seeds, *options)

  args = [f'--checkpoint={run}', f'--out={out}', '--batch=4']
  with monkeypatch.context() as patch:
    patch.setattr(sampler.Sampler, '__call__', counted)
    call(generate, *args, '--seeds=0-8,10000', '--psi=0.5', '--class=2', '--noise=none')
  assert sizes == [4, 4, 4]
  seeds = [*range(9), 10000]
  assert names(out) == [f'seed{seed:04d}.png' for seed in seeds]
  want = made(net, seeds, 0.5, label=2, noise='none')
  assert all_close(out, want)
  (out / 'seed0003.png').write_bytes(b'old')
  (out / 'mine.txt').write_text('mine')
  call(generate, *args, '--seeds=3-6', f'--sheet={tmp_path / "sheet.png"}')
  assert close(png(out / 'seed0003.png'), made(net, [3])[0]) and len(names(out)) == 11
  assert (out / 'mine.txt').read_text() == 'mine' and close(png(out / 'seed0002.png'), want[2])
  tiles = png(tmp_path / 'sheet.png')  # 8 px are enlarged by 8, and a name is on the left
  assert tiles.shape[0] == 64 + sheets.LINE  # with the class below each
  assert all(close(tiles[k:64:8, k - 128 :: 8], made(net, [6])[0]) for k in (0, 7))


def test_all_files_are_written_however_slowly_and_what_fails_is_told(run, tmp_path, monkeypatch):
  write = generate.files.write_atomic

  def slow(path, data):
    time.sleep(0.05)
    if path.name == 'seed0021.png' and path.parent.name == 'full':
      raise WriteError('no room')
    write(path, data)

  monkeypatch.setattr(generate.files, 'write_atomic', slow)
  arguments = (f'--checkpoint={run}', '--seeds=0-39', '--batch=20')
  call(generate, *arguments, f'--out={tmp_path}/all')
  assert len(names(tmp_path / 'all')) == 40
  with pytest.raises(WriteError, match='no room'):
    call(generate, *arguments, f'--out={tmp_path}/full')


def test_sheets(net, run, tmp_path):
  place = tmp_path / 'sheet.png'
  args = [f'--checkpoint={run}', '--batch=4', f'--sheet={place}']
  call(generate, *args, '--seeds=0-8')
  want = np.full((16, 8, 16, 3), 255, np.uint8)
  want[:9] = made(net, range(9))
  tiles = png(place).reshape(2, 64 + sheets.LINE, -1, 3)[:, :64:8, -8 * 128 :: 8]
  assert close(tiles, want.reshape(2, 8, 8, 16, 3).transpose(0, 2, 1, 3, 4).reshape(2, 8, 128, 3))
  mix = ['--seeds=0,1', '--cols=2-4', '--styles=1-1', '--noise=random']
  call(generate, 'mix', *args, *mix)
  ws, number = generate.mix(net, [0, 1], [2, 3, 4], slice(1, 2), None)
  want = net.images(ws.reshape(12, 6, Z), 'random', number.ravel(), 4)
  want[0] = 255
  tiles = png(place)[-192::8, -4 * 128 :: 8].reshape(3, 8, 4, 16, 3)
  assert close(tiles.swapaxes(1, 2).reshape(want.shape), want)
  call(generate, 'sweep', *args, '--seeds=0')
  assert png(place).shape[1] > 6 * 128 and close(png(place)[-64::8, -128::8], made(net, [0], -1)[0])
  assert names(tmp_path) == ['sheet.png']


# ---- classes on the command line


def test_classes_of_images(net, named_run, tmp_path):
  out = tmp_path / 'out'
  args = [f'--checkpoint={named_run}', f'--out={out}', '--batch=4']
  call(generate, *args, '--seeds=5,6', '--class=cat')
  assert all_close(out, made(net, [5, 6], label=0))
  call(generate, *args, '--seeds=5,6,7,7,7', '--class=2, cat,0,dog,cat')
  assert names(out) == [f'seed000{x}.png' for x in ('5', '6', '7', '7_2', '7_3')]
  label = np.eye(3)[[2, 0, 2, 1, 0, 0, 0, 0]]
  assert all_close(out, made(net, [5, 6, 7, 7, 7], label=label))
  shutil.rmtree(out)
  call(generate, *args, '--seeds=5,6', '--label=0.5,0,0.5;0,1,0')
  label = np.array([[0.5, 0, 0.5]] + [[0, 1, 0]] * 4)
  assert all_close(out, made(net, [5, 6], label=label))


@pytest.mark.parametrize(
  'args, said',
  [
    (['--class=bird'], 'bird.*cat, dog, 0'),
    (['--class=cat,dog'], '--class=cat,dog: label .* all seeds, or 3$'),
    (['--class='], '--class=: .*choose from cat, dog, 0'),
    (['--label=1,0'], '--label: label .* 3 finite numbers'),
    (['--label=1,0,nan'], '--label=1,0,nan: must be numbers'),
    (['--label=cat'], '--label=cat: must be numbers'),
    (['--label=1,0,0;0,0'], 'must be numbers'),
    (['--label=1,0,0;0,0,1'], 'all seeds, or 3$'),
    (['--label='], 'must be numbers'),
    (['--class=cat', '--label=1,0,0'], 'At most one of .class, label.'),
  ],
)
def test_bad_labels_are_refused(named_run, tmp_path, args, said):
  with pytest.raises(UsageError, match=said):
    call(generate, f'--checkpoint={named_run}', f'--out={tmp_path}', '--seeds=1-3', *args)


def test_vectors_are_no_classes(named_run, tmp_path):
  (named_run / 'labels.json').write_text(VECTORS.to_json())
  args = [f'--checkpoint={named_run}', '--class=1', f'--out={tmp_path}/x.gif']
  for tool, kind in ((generate, ['images']), (video, []), (directions_tool, ['pca'])):
    with pytest.raises(UsageError, match='are no classes but .* as in --label=1,0,1'):
      call(tool, *kind, *args)


def test_sheets_name_the_classes(named_run, tmp_path, monkeypatch):
  texts = []
  write = sheets.write_sheet

  def told(path, pictures, *rows_and_cols, **names):
    texts.append((*rows_and_cols, names))
    write(path, pictures, *rows_and_cols, **names)

  monkeypatch.setattr(sheets, 'write_sheet', told)
  args = [f'--checkpoint={named_run}', f'--sheet={tmp_path}/s.png', '--batch=4']
  call(generate, *args, '--seeds=5,6', '--class=cat,0')
  assert texts.pop() == (['seed 5 ...'], {'below': ['cat', '0']})
  assert (png(tmp_path / 's.png')[64:, -128:] < 128).any()  # text is there
  call(generate, 'sweep', *args, '--seeds=5', '--class=dog')
  assert texts.pop()[0] == ['seed 5\ndog']
  call(generate, 'mix', *args, '--seeds=5,6', '--cols=7', '--styles=0-1', '--class=cat,0,dog')
  assert texts.pop()[:2] == (['', 'seed 5\ncat', 'seed 6\n0'], ['', 'seed 7\ndog'])
  (named_run / 'labels.json').write_text(VECTORS.to_json())
  call(generate, *args, '--seeds=0-3')
  assert set(texts.pop()[1]['below']) == {'1,0,1', '1,1,0.5'}


def test_names_of_any_length_fit(tmp_path):
  pictures = np.zeros((1, 2, 64, 64, 4), np.uint8)
  below = ['long ' * 50, '']
  sheets.write_sheet(tmp_path / 's.png', pictures, ['ab'], ['c' * 99, '写真'], below)
  sheet = png(tmp_path / 's.png')
  assert sheet.shape[2] == 4 and sheet.shape[0] == 26 + 64 + sheets.LINE
  assert (sheet[26:90, -128:] == 0).all()


# ---- video


@pytest.mark.parametrize('space', ['w', 'z'])
def test_frames_pass_through_the_seeds(net, space):
  seeds = np.arange(3, 9).reshape(1, 2, 3)
  options = {'space': space, 'psi': 0.7, 'noise': 'random'}
  found = np.stack(list(video.frames(net, seeds, 6, **options)))
  assert found.shape == (6, 8, 32, 3)
  left, right = found[..., :16, :], found[..., 16:, :]

  def shown(ws, seed):
    return net.images(np.repeat(ws, 2, 0), 'random', [seed] * 2 * len(ws), 4)[::2]

  for k, side in ((3, left), (6, right)):  # the noise is that of the first seed of the cell
    assert close(side[::2], shown(net.ws(range(k, k + 3), 0.7), k))
  z, c = net.z([8, 6]), net.c([8, 6])
  assert (c[0] != c[1]).any()
  middle = net.map(z, c).mean(0)
  if space == 'z':
    between = (z / np.linalg.norm(z, axis=1, keepdims=True)).sum(0)
    middle = net.map(between[None], c.mean(0)[None])[0]
  assert close(right[5:6], shown(net.truncate(np.stack([middle] * 2), 0.7), 6)[:1], 2)
  once = np.stack(list(video.frames(net, seeds, 6, loop=False, **options)))
  assert close(once[[0, 5], :, 16:], shown(net.ws([6, 8], 0.7), 6))


def test_arcs_keep_lengths_and_stand_still():
  a = np.random.RandomState(0).randn(3, Z).astype(np.float32)
  b = 2 * a[[1, 2, 0]]
  found = video.arc(a, b, np.float32([0, 1, 0.5]))
  np.testing.assert_allclose(found[:2], [a[0], b[1]], atol=1e-5)
  length = np.linalg.norm([a[2], b[2]], axis=1).mean()
  assert np.linalg.norm(found[2]) == pytest.approx(length, rel=1e-5)
  np.testing.assert_array_equal(video.arc(a, a, np.float32([0, 1, 0.5])), a)


def pictures(shape, count=7):
  """Frames uint8 [*shape] that differ, smooth enough for an encoder."""
  y, x, c = np.meshgrid(*map(np.arange, shape), indexing='ij')
  waves = (np.sin(x / shape[1] * 5 + t + c) * np.cos(y / shape[0] * 4) for t in range(count))
  return [np.uint8(127 + 100 * wave) for wave in waves]


def frames_of(path):
  """(uint8 [T,H,W,3], seconds) of a file."""
  if path.suffix == '.mp4':
    raw = ['-f', 'rawvideo', '-pix_fmt', 'rgb24', '-']
    command = [imageio_ffmpeg.get_ffmpeg_exe(), '-i', str(path), *raw]
    done = subprocess.run(command, capture_output=True)
    said = re.search(r'Duration: 00:00:([0-9.]+).*, (\d+)x(\d+)', done.stderr.decode(), re.DOTALL)
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, int(said[3]), int(said[2]), 3)
    return frames, float(said[1])
  image = Image.open(path)
  frames, seconds = [], 0
  for frame in ImageSequence.Iterator(image):
    frames.append(np.asarray(frame.convert('RGB')))
    seconds += frame.info['duration'] / 1000
  assert image.info['loop'] == 0
  return np.stack(frames), seconds


@pytest.mark.parametrize('ending', ['mp4', 'gif', 'webp'])
@pytest.mark.parametrize('shape', [(8, 10, 1), (257, 259, 3)])
def test_videos_are_what_was_written(tmp_path, ending, shape):
  path = tmp_path / 'new' / f'x.{ending}'
  given = pictures(shape)
  videos.write_video(path, iter(given), 10)
  found, seconds = frames_of(path)
  k = 32 if shape[0] == 8 else 1  # 8 px -> 256 px
  want = np.stack(given).repeat(k, 1).repeat(k, 2)
  size = [side + (ending == 'mp4' and side % 2) for side in want.shape[1:3]]
  assert found.shape == (7, *size, 3) and seconds == pytest.approx(0.7)
  errors = np.abs(found[:, : want.shape[1], : want.shape[2]] - want.astype(float))
  assert errors.mean() < 5 and (ending != 'gif' or shape[2] == 3 or errors.max() == 0)
  assert names(path.parent) == [path.name]


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_video_that_is_interrupted_is_not_there(tmp_path, error):
  def broken():
    yield from pictures((64, 64, 3), 3)
    raise error

  path = tmp_path / 'x.mp4'
  path.write_text('old')
  with pytest.raises(error):
    videos.write_video(path, broken(), 10)
  assert path.read_text() == 'old' and names(tmp_path) == ['x.mp4']


def test_a_video_that_cannot_be_encoded_is_not_there(tmp_path, monkeypatch):
  path = tmp_path / 'x.mp4'
  # it gives up before the last frame; without a file, though it says that all is well
  for program, said in (('/bin/false', 'the encoder ended with 1'), ('/bin/true', 'No such file')):
    with monkeypatch.context() as patch:
      patch.setattr(imageio_ffmpeg, 'get_ffmpeg_exe', lambda program=program: program)
      with pytest.raises(WriteError, match=f'x.mp4: {said}'):
        videos.write_video(path, pictures((64, 64, 3), 200), 10)
  monkeypatch.setitem(videos.ENCODERS, '.mp4', '-c:v nothing')
  with pytest.raises(WriteError, match='x.mp4: the encoder ended with .*: '):
    videos.write_video(path, pictures((64, 64, 3)), 10)
  assert not names(tmp_path)
  with pytest.raises(WriteError, match='/proc/x'):
    videos.write_video(pathlib.Path('/proc/x/y.gif'), pictures((64, 64, 3)), 10)


def test_video_tool(net, run, tmp_path):
  path = tmp_path / 'x.gif'
  args = ['--seeds=0-3', '--grid=2x1', '--fps=5', '--seconds=1', '--noloop']
  call(video, f'--checkpoint={run}', f'--out={path}', *args)
  found, seconds = frames_of(path)
  assert found.shape == (5, 256, 256, 3) and seconds == pytest.approx(1)
  last = np.concatenate(made(net, [1, 3])).repeat(16, 0).repeat(16, 1)
  assert np.abs(found[-1] - last.astype(float)).mean() < 8


# ---- directions


def test_principal_components_of_a_known_covariance():
  random = np.random.RandomState(0)
  basis, _ = np.linalg.qr(random.randn(6, 6))
  stdevs = np.array([5, 3, 2, 1, 0.5, 0.1])
  w = random.randn(100_000, 6) * stdevs @ basis.T + np.arange(6)
  vectors, found, values = directions.pca(w.astype(np.float32), 4)
  np.testing.assert_allclose(np.abs(vectors @ basis[:, :4]), np.eye(4), atol=0.02)
  np.testing.assert_allclose(found, stdevs[:4], rtol=0.02)
  np.testing.assert_allclose(values, stdevs[:4] ** 2, rtol=0.03)
  assert all(vector[np.abs(vector).argmax()] > 0 for vector in vectors)


def test_sefa_is_what_a_search_finds(net):
  w = np.random.RandomState(1).randn(1000, Z) * np.arange(1, Z + 1)
  vectors, stdevs, values = directions.sefa(net, w, slice(3, 5), 3)
  # b8.conv1 reads ws 2, b16.conv0 3, b16.conv1 4
  block = net.variables['params']['synthesis']['b16']
  affine = [block[name]['affine']['weight'] for name in ('conv0', 'conv1')]
  matrix = np.concatenate(affine, 1).T / np.sqrt(Z)
  random = np.random.RandomState(2)
  for k in range(3):
    best = random.randn(Z)
    for _ in range(3000):  # ascent of |A n|^2 on the sphere, orthogonal to those before
      best = best + 0.3 * matrix.T @ (matrix @ best)
      best -= vectors[:k].T @ (vectors[:k] @ best)
      best /= np.linalg.norm(best)
    assert abs(best @ vectors[k]) > 0.999
    assert values[k] == pytest.approx(((matrix @ best) ** 2).sum(), rel=1e-4)
    assert stdevs[k] == pytest.approx((w @ vectors[k]).std(ddof=1), rel=1e-4)
  with pytest.raises(UsageError, match='--layers=5-5'):
    directions.sefa(net, w, slice(5, 6), 3)


@pytest.mark.smoke
def test_directions_move_the_chosen_ws_by_standard_deviations(net):
  found = directions.Found(np.eye(2, Z, dtype=np.float32), np.array([1.5, 0.5]), np.array([9, 4]))
  w = np.random.RandomState(0).randn(1000, Z) * np.r_[1.5, 0.5, np.ones(Z - 2)]
  first, second = directions.as_directions(net, 'pca', found, slice(1, 3), w)
  want = np.zeros((6, Z), np.float32)
  want[1:3, 0] = 1.5
  np.testing.assert_array_equal(first.ws, want)
  assert not first.styles and first.networks == (net.hash(),)
  assert (first.name, second.name) == ('pca0', 'pca1')
  about = {'method': 'pca', 'layers': [1, 2], 'unit': 'stdev', 'stdev': 0.5, 'value': 4.0}
  share = second.about.pop('share')
  assert second.about == about and share == pytest.approx(0.5**2 / (Z + 0.5), rel=0.1)


@pytest.mark.parametrize('method', ['pca', 'sefa'])
def test_directions_tool(net, run, tmp_path, monkeypatch, method):
  monkeypatch.setattr(directions, 'SAMPLES', 1000)
  args = ['--count=3', '--seed=4', '--layers=2-4', '--sigma=2']
  call(directions_tool, method, f'--checkpoint={run}', f'--out={tmp_path}', *args)
  with np.load(tmp_path / f'{method}.npz') as file:
    found = dict(file)
  assert found['layers'].tolist() == [2, 4] and str(found['method']) == method
  assert str(found['checkpoint']) == net.hash()
  np.testing.assert_allclose(found['vectors'] @ found['vectors'].T, np.eye(3), atol=1e-5)
  w = net.map(np.random.RandomState(1).randn(4000, Z).astype(np.float32), net.c(range(4000)))
  np.testing.assert_allclose(found['stdevs'], (w @ found['vectors'].T).std(0), rtol=0.1)
  np.testing.assert_allclose(found['mean'], w.mean(0), atol=0.1)
  again = direction.read(tmp_path / f'{method}.npz', f'{method}1')
  want = found['stdevs'][1] * found['vectors'][1]
  np.testing.assert_allclose(again.ws, np.outer([0, 0, 1, 1, 1, 0], want), rtol=1e-6)
  assert again.networks == (net.hash(),) and again.about['method'] == method
  ws = np.repeat(net.ws([4]), 2, 0)
  ws[1, 2:5] += 2 * found['stdevs'][1] * found['vectors'][1]
  tiles = png(tmp_path / f'{method}.png')[-192::8, -7 * 128 :: 8].reshape(3, 8, 7, 16, 3)
  assert close(tiles[1][:, [3, 6]].swapaxes(0, 1), net.images(ws[[0, 1, 0, 1]])[:2])


# ---- edited images


@pytest.fixture
def edits(net, tmp_path):
  """Files of one direction and of two; the three."""
  ws = np.zeros((2, 6, Z), np.float32)
  ws[[0, 1], [1, 4]] = np.random.RandomState(5).randn(2, Z)
  bend = direction.Direction('bend', (net.hash(),), ws=ws[0])
  fold = direction.Direction('fold', (net.hash(),), ws=ws[1])
  paint = directions.channel(net, 'b8.conv0', 1, np.random.RandomState(6).randn(100, Z)) * 4
  (tmp_path / 'edits').mkdir()
  direction.write(tmp_path / 'edits' / 'one.npz', [bend])
  direction.write(tmp_path / 'edits' / 'two.npz', [fold, paint.named('paint')])
  return bend, fold, paint


def test_every_image_of_a_command_is_edited(net, run, edits, tmp_path):
  bend, fold, paint = edits
  files = tmp_path / 'edits'
  args = [f'--checkpoint={run}', '--batch=4', f'--edit={files}/one.npz:2']
  call(generate, *args, f'--out={tmp_path}/out', '--seeds=3-8', f'--edit={files}/two.npz:paint:-1')
  want = made(net, range(3, 9), edit=2 * bend - paint)
  assert all_close(tmp_path / 'out', want) and not close(want, made(net, range(3, 9)), 20)
  place = f'--sheet={tmp_path}/s.png'
  direction.write('memory://b/one.npz', [bend, fold])
  args[2] = '--edit=memory://b/one.npz:bend:2'
  call(generate, 'sweep', *args, place, '--seeds=3,4', '--psi=1,0.5')
  tiles = png(tmp_path / 's.png')[-128::8, -256::8].reshape(2, 8, 2, 16, 3).swapaxes(1, 2)
  assert close(tiles[:, 1], made(net, [3, 4], 0.5, edit=2 * bend))
  call(generate, 'mix', *args, place, '--seeds=3', '--cols=4', '--styles=2-5')
  ws = np.repeat(net.ws([3]), 4, 0)
  ws[:, 2:] = net.ws([4])[:, 2:]
  mixed = net.images(ws, batch=4, edit=2 * bend)[0]
  assert close(png(tmp_path / 's.png')[-64::8, -128::8], mixed)


def test_a_video_is_edited_or_goes_through_strengths(net, run, edits, tmp_path):
  bend, fold, paint = edits
  seeds = np.array([[[3], [4]]])
  there = [(bend, -2.0, 2.0), (fold, 1.0, 1.0), (paint, 0.0, 4.0)]
  found = np.stack(list(video.frames(net, seeds, 8, edits=there)))
  for t, place in ((0, 0), (2, 0.5), (4, 1), (6, 0.5), (7, 0.25)):
    edit = (4 * place - 2) * bend + fold + 4 * place * paint
    assert close(np.concatenate(made(net, [3, 4], edit=edit), 1), found[t], 2)
  assert not close(found[0], found[4], 20)
  once = np.stack(list(video.frames(net, seeds, 5, loop=False, edits=there)))
  assert close(once[[0, 2, 4]], found[[0, 2, 4]], 2)
  args = [f'--checkpoint={run}', f'--out={tmp_path}/x.gif', '--fps=5', '--noloop']
  files = tmp_path / 'edits'
  call(video, *args, '--seeds=3', f'--edit={files}/one.npz:-2..2', f'--edit={files}/two.npz:fold:1')
  frames, seconds = frames_of(tmp_path / 'x.gif')
  assert len(frames) == 10 and seconds == pytest.approx(2)
  last = made(net, [3], edit=2 * bend + fold)[0].repeat(32, 0).repeat(32, 1)
  assert np.abs(frames[-1] - last.astype(float)).mean() < 8
  call(video, *args, '--seeds=3,4', '--seconds=1', f'--edit={files}/two.npz:paint:4')
  last = made(net, [4], edit=4 * paint)[0].repeat(32, 0).repeat(32, 1)
  assert np.abs(frames_of(tmp_path / 'x.gif')[0][-1] - last.astype(float)).mean() < 8


@pytest.mark.parametrize(
  'edit, said',
  [
    ('one.npz', 'must be FILE:STRENGTH or FILE:NAME:STRENGTH'),
    ('one.npz:', 'must be FILE:STRENGTH'),
    ('one.npz:bend:much', 'must be FILE:STRENGTH'),
    ('one.npz:bend:nan', 'must be FILE:STRENGTH'),
    ('one.npz:1..', 'must be FILE:STRENGTH.* a range with both ends'),
    ('one.npz:-3..3', 'a range of strengths is for a video'),
    ('two.npz:3', 'two.npz holds 2 directions; name one of fold, paint'),
    ('two.npz:smile:3', 'no direction smile; choose from fold, paint'),
    ('three.npz:3', 'cannot read .*three.npz'),
  ],
)
def test_bad_edits_are_named(run, edits, tmp_path, edit, said):
  with pytest.raises(UsageError, match=said):
    call(
      generate, f'--checkpoint={run}', f'--out={tmp_path}/out', f'--edit={tmp_path}/edits/{edit}'
    )
  assert names(tmp_path) == ['edits']


def test_edits_that_cannot_be_are_told_before_anything_is_made(run, edits, tmp_path):
  path = tmp_path / 'edits' / 'one.npz'
  args = [f'--checkpoint={run}', f'--out={tmp_path}/x.gif']
  with pytest.raises(UsageError, match='--seeds are 8; .* a range of strengths, .* give 4, or an'):
    call(video, *args, '--grid=2x2', f'--edit={path}:-3..3')
  with pytest.raises(UsageError, match='2 or more, or an --edit with a range'):
    call(video, *args, '--seeds=1', f'--edit={path}:3')
  path.write_bytes(b'x')
  with pytest.raises(CheckpointError, match='one.npz is no file of directions'):
    call(video, *args, f'--edit={path}:3')
  wrong = direction.Direction('wrong', ('ab' * 32,), ws=np.ones((6, 3), np.float32))
  direction.write(path, [wrong])
  for tool in (video, generate):
    with pytest.raises(
      UsageError, match=r'wrong was made for the network abab.* ws \[6, 3\] there'
    ):
      call(tool, *args, f'--edit={path}:3')
  assert names(tmp_path) == ['edits']


# ---- bad flags


@pytest.mark.parametrize(
  'tool, args, said',
  [
    (generate, 'draw', 'KIND=draw'),
    (generate, '', '--out=DIR'),
    (generate, '--out=OUT --checkpoint=', '--checkpoint is missing'),
    (generate, '--out=OUT --seeds=3-1', '--seeds=3-1'),
    (generate, '--out=OUT --seeds=a', "'a' is no seed"),
    (generate, '--out=OUT --psi=nan', '--psi=nan'),
    (generate, '--out=OUT --psi=1,2', '--psi'),
    (generate, '--out=OUT --psi=much', '--psi=much'),
    (generate, '--out=FILE', '--out=.* is a file'),
    (generate, '--out=FILE/in/it', 'file is a file'),
    (generate, '--sheet=OUT.jpg', 'must end in .png'),
    (generate, '--sheet=FOLDER.png', '--sheet=.*folder.png is a folder; name a file'),
    (generate, '--out=OUT --batch=-1', '--batch=-1'),
    (generate, 'sweep --out=OUT', 'is for images'),
    (generate, 'mix', '--out=DIR'),
    (generate, 'sweep', '--sheet is missing'),
    (generate, 'mix --sheet=OUT.png --styles=3-1', '--styles=3-1'),
    (generate, 'mix --sheet=OUT.png --cols=x', "--cols=x: 'x'"),
    (generate, 'mix --sheet=OUT.png --styles=0-6', 'ws 0 to 5'),
    (generate, '--out=OUT --edit=:3', '--edit.*must be FILE:STRENGTH'),
    (generate, '--out=OUT --cutoff=7', 'cutoff=7'),
    (generate, '--out=OUT --class=3', 'class 3'),
    (generate, '--sheet=OUT.png --seeds=0-9999', 'a sheet of 10000 images'),
    (generate, 'sweep --sheet=OUT.png --seeds=0-1999', 'a sheet of 12000'),
    (video, '', '--out is missing'),
    (video, '--out=FILE/x.gif', 'file is a file'),
    (video, '--out=OUT.avi', 'must end in .mp4 or .gif or .webp'),
    (video, '--out=OUT.gif --fps=60', '--fps=60'),
    (video, '--out=OUT.mp4 --fps=0', '--fps=0'),
    (video, '--out=OUT.mp4 --fps=-30 --seconds=-2', '--fps=-30'),
    (video, '--out=OUT.mp4 --grid=2', '--grid=2'),
    (video, '--out=OUT.mp4 --grid=3x3', 'a multiple of 9, 18 or more'),
    (video, '--out=OUT.mp4 --seeds=1', '2 or more'),
    (video, '--out=OUT.mp4 --seconds=nan', '--seconds=nan'),
    (video, '--out=OUT.mp4 --seconds=-1', '--seconds=-1'),
    (video, '--out=OUT.mp4 --cutoff=-1', 'cutoff=-1'),
    (directions_tool, '', 'METHOD is missing'),
    (directions_tool, 'lda', 'METHOD=lda'),
    (directions_tool, 'pca --layers=4', '--layers=4'),
    (directions_tool, 'pca --sigma=inf', '--sigma=inf'),
    (directions_tool, 'pca --seed=-1', '--seed=-1'),
    (directions_tool, 'pca --layers=0-6 --out=OUT', 'ws 0 to 5'),
    (directions_tool, 'pca --count=13 --out=OUT', 'at most 12'),
    (directions_tool, 'pca --count=0 --out=OUT', '--count=0'),
    (directions_tool, 'sefa --layers=5-5 --out=OUT', 'no convolution'),
  ],
)
def test_bad_flags_are_refused_and_nothing_is_made(run, tmp_path, monkeypatch, tool, args, said):
  monkeypatch.setattr(directions, 'SAMPLES', 100)
  (tmp_path / 'file').write_text('')
  (tmp_path / 'folder.png').mkdir()
  for name in ('out', 'file', 'folder'):
    args = args.replace(name.upper(), str(tmp_path / name))
  with pytest.raises(UsageError, match=said):
    call(tool, f'--checkpoint={run}', *args.split())
  assert names(tmp_path) == ['file', 'folder.png'] and not (run / 'directions').exists()
