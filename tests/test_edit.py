"""Editing by text as users do it: what channels do is kept, files are written, mistakes named."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
from types import SimpleNamespace

from absl.testing import flagsaver
from flax import traverse_util
import jax
import numpy as np
from PIL import Image
import pytest

import sg2jax
from sg2jax import clip as clips
from sg2jax import files, paths, progress
from sg2jax.edit import (
  channel_effects,
  direction,
  directions,
  mapper,
  mapper_training,
  optimize,
  project,
  text_directions,
  text_losses,
)
from sg2jax.faults import Fault, NonFiniteError, Preempted, UsageError, WeightsError
from sg2jax.nets import clip as clip_nets
from sg2jax.tools import edit, edit_methods, edit_results, generate, mappers, projections, videos
from tests.runs import call
from tests.test_clip import VIT, drawn, save
from tests.test_sampler import Z, close, make_run
from tests.test_text_editing import checkpoint, mapper_of

pytestmark = pytest.mark.usefixtures('quick_compile')
TEXTS = ('a thin seven', 'a thick seven')
FEW = channel_effects.Settings(images=3, latents=50)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return make_run(tmp_path_factory.mktemp('edited'))


@pytest.fixture(scope='module')
def net(run):
  return sg2jax.load(run)


@pytest.fixture(scope='module')
def clip_file(tmp_path_factory):
  """A small CLIP that knows a few words."""
  words = np.unique(clips.tokenizer()([*TEXTS, 'a dog'], 6))
  spec = dataclasses.replace(VIT, vocab_size=len(words))
  return save(
    tmp_path_factory.mktemp('clip'),
    drawn(spec) | {'tokens': words.astype(np.int32)},
    format=clips.FORMAT,
    activation='gelu',
    templates=['{}'],
    neutral=['a dog', 'a seven'],
  )


@pytest.fixture(scope='module')
def clip(clip_file):
  return clips.load(clip_file)


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """An empty cache."""
  monkeypatch.setenv(paths.VARIABLE, str(tmp_path / 'cache'))
  return tmp_path / 'cache'


class Signal:
  """A signals.Stop that hears a signal at its n-th look."""

  def __init__(self, looks):
    self.looks = looks

  def __bool__(self):
    self.looks -= 1
    return self.looks < 0

  def leave(self, text):
    raise Preempted(text)


# ---- what channels do


def test_what_channels_do_is_measured_once_and_goes_on_after_a_signal(
  net, clip, cache, monkeypatch, capsys
):
  monkeypatch.setattr(progress, 'EVERY', 0)
  whole = channel_effects.measure(net, clip, FEW)
  total = sum(whole.counts.values())
  assert whole.delta_i.shape == (total, 8) and list(whole.counts)[:2] == ['b4.conv1', 'b8.conv0']
  # two images at once give the same, by other batches
  (file,) = (cache / 'effects').glob('*.npz')
  file.unlink()
  with pytest.raises(Preempted) as caught:
    channel_effects.measure(net, clip, FEW, batch=2, stop=Signal(3))
  assert f'of {total} channels are measured' in str(caught.value)
  there = files.parse_npz(file.read_bytes(), 2**20)['delta_i']
  assert f'effects: {len(there)} of {total} channels, 00:' in capsys.readouterr().err
  assert 0 < len(there) < total
  rest = channel_effects.measure(net, clip, FEW, batch=2)
  np.testing.assert_allclose(rest.delta_i, whole.delta_i, atol=1e-3)
  np.testing.assert_array_equal(rest.delta_i[: len(there)], there)
  with monkeypatch.context() as patch:
    for name in ('ChannelFeatures', 'statistics'):
      patch.setattr(channel_effects.global_directions, name, None)  # not needed any more
    again = channel_effects.measure(net, clip, FEW)
  np.testing.assert_array_equal(again.delta_i, rest.delta_i)
  # a file that isn't as it was written
  file.write_bytes(file.read_bytes()[:-50])
  mended = channel_effects.measure(net, clip, FEW)
  np.testing.assert_allclose(mended.delta_i, whole.delta_i, atol=1e-3)
  # other settings, another file
  channel_effects.measure(net, clip, dataclasses.replace(FEW, images=2))
  assert len(list((cache / 'effects').glob('*.npz'))) == 2


def test_a_direction_of_two_texts(net, clip, cache):
  move = sg2jax.edit.text(net, *TEXTS, clip=clip, channels=5, settings=FEW)
  moved = sum(np.count_nonzero(x) for x in move.styles.values())
  assert moved == 5 == move.about['channels']
  assert max(np.abs(x).max() for x in move.styles.values()) > 0
  assert not any(layer.endswith('torgb') for layer in move.styles)
  back = sg2jax.edit.text(net, *TEXTS[::-1], clip=clip, channels=5, settings=FEW)
  for layer, x in move.styles.items():
    np.testing.assert_allclose(back.styles[layer], -x, rtol=1e-4, atol=1e-6)
  plain, edited = net([1]), net([1], edit=move * 5)
  assert np.abs(plain.astype(int) - edited).max() > 3
  with pytest.raises(UsageError) as caught:
    text_directions.direction(net, *TEXTS, clip, beta=1.5, settings=FEW)
  assert 'largest relevance' in str(caught.value)
  with pytest.raises(UsageError) as caught:
    text_directions.between(clip, TEXTS[0], TEXTS[0])
  assert 'say the same' in str(caught.value)


# ---- the tool


def shown(folder, *seeds):
  """The pictures of seeds in a folder: [N,H,W,C]."""
  return np.stack([np.asarray(Image.open(folder / f'seed{seed:04d}.png')) for seed in seeds])


def edit_text(run, clip_file, out, *more):
  """A run of `edit text`; what edit.json says."""
  few = ['--effect_images=3', '--effect_latents=50']
  if any(flag.startswith('--method=') for flag in more):
    few = [] if any(flag.startswith('--mapper=') for flag in more) else ['--steps=20']
  args = [f'--checkpoint={run}', f'--clip={clip_file}', f'--out={out}', '--batch=4', *few, *more]
  call(edit, 'text', f'--target={TEXTS[1]}', *args)
  return json.loads((out / 'edit.json').read_text())


def test_files_of_a_global_edit(net, run, clip_file, cache, tmp_path, monkeypatch):
  out = tmp_path / 'out'
  films = {}
  monkeypatch.setattr(edit_results, 'FRAMES', 4)
  monkeypatch.setattr(videos, 'write_video', lambda path, x, fps: films.update({path: list(x)}))
  pair = [f'--source={TEXTS[0]}', '--channels=5']
  said = edit_text(run, clip_file, out, *pair, '--seeds=3-5', '--class=2', '--video')
  names = ['seed0003', 'seed0004', 'seed0005']
  assert [row['name'] for row in said['images']] == names
  assert sorted(path.stem for path in (out / 'before').iterdir()) == names
  move = direction.read(out / 'directions.npz')
  for when, options in (('before', {}), ('.', {'edit': move * 3})):
    made = net([3, 4, 5], label=2, batch=4, **options)
    np.testing.assert_array_equal(shown(out / when, 3, 4, 5), made)
  # from the strength's negative to it and back
  film = np.stack(films[out / 'strength.mp4']).reshape(4, 8, 3, 16, 3).swapaxes(1, 2)
  for frame, share in zip(film, (-1, 0, 1, 0)):
    made = net([3, 4, 5], label=2, batch=4, edit=move * (3 * share))
    np.testing.assert_array_equal(frame, made)
  assert said['mean'].keys() == {'before', 'after'} and said['neutral'] == 2
  assert said['network'] == net.hash()
  assert {'sheet.png', 'strengths.png', 'latents.npz'} <= {path.name for path in out.iterdir()}


def test_an_optimised_edit_finds_its_text(net, run, clip_file, tmp_path):
  said = edit_text(run, clip_file, tmp_path, '--method=optimize', '--seeds=0-4', '--l2_lambda=0')
  for row in said['images']:
    assert row['after']['target'] > row['before']['target'] and row['after']['rank'] >= 1
  moves = direction.read_all(tmp_path / 'directions.npz')
  assert [move.name for move in moves] == [f'seed{i:04d}' for i in range(5)]
  # each image by its own
  edited = net([2], batch=4, edit=moves[2])
  picture = np.asarray(Image.open(tmp_path / 'seed0002.png'))
  assert np.abs(picture.astype(int) - edited[0]).max() <= 1


def test_a_search_sees_the_noise_maps_that_were_found(net, run, clip_file, tmp_path, monkeypatch):
  (tmp_path / 'found').mkdir()
  flat = traverse_util.flatten_dict({'noise': net.variables['noise']}, sep='/')
  # with names that directions can't have
  names = [': \n', 'a:b', 'a:b\x7f']
  for seed, name, factor in zip((3, 4, 5), names, (0, -1, None)):
    maps = {} if factor is None else {layer: x * factor for layer, x in flat.items()}
    np.savez(tmp_path / 'found' / f'{name}.npz', ws=net.ws([seed])[0], **maps)
  last = []
  result = optimize.Optimizer.result
  monkeypatch.setattr(
    optimize.Optimizer, 'result', lambda self: last.append(result(self)) or last[-1]
  )
  flags = ['--method=optimize', f'--latents={tmp_path / "found"}', '--steps=3']
  edit_text(run, clip_file, tmp_path / 'out', *flags)
  searched = np.concatenate([found.images for found in last])
  pictures = [np.asarray(Image.open(tmp_path / 'out' / f'{name}.png')) for name in names]
  assert close(np.stack(pictures), searched)
  # and with the network's own it would be another
  moves = direction.read_all(tmp_path / 'out' / 'directions.npz')
  assert not close(net([4], batch=4, edit=moves[1]), searched[1:2], 10)
  assert {move.networks for move in moves} == {(net.hash(),)}
  assert [move.name for move in moves] == ['image', 'a b', 'a b_2']


def test_what_is_asked_of_a_search_is_done(run, clip_file, tmp_path, monkeypatch):
  asked = []

  def search(net, ws, tower, texts, settings):
    asked.append(settings)
    raise Preempted('here')

  monkeypatch.setattr(optimize, 'Optimizer', search)
  flags = ['--augmentations=2', '--lr=0.2', '--space=s', '--strength=6']
  for more in ([], flags):
    with pytest.raises(Preempted):
      edit_text(run, clip_file, tmp_path, '--method=optimize', '--seeds=0', *more)
  assert asked[0] == optimize.Settings(steps=20)
  want = {'augmentations': 2, 'lr': 0.2, 'space': 's', 'l2_lambda': asked[0].l2_lambda / 4}
  assert asked[1] == asked[0]._replace(**want)


def test_free_generation_starts_at_the_mean_without_a_penalty(net, run, clip_file, tmp_path):
  said = edit_text(run, clip_file, tmp_path, '--method=optimize', '--free')
  (row,) = said['images']
  assert row['name'] == 'free' and row['after']['target'] > row['before']['target']
  assert said['about']['l2_lambda'] == 0 and said['about']['free']
  start = np.asarray(Image.open(tmp_path / 'before' / 'free.png'))
  mean = project.statistics(net, 4096)[0]
  ws = np.broadcast_to(np.float32(mean), (1, net.num_ws, Z))
  assert close(start[None], net.images(ws, batch=4))
  end = np.asarray(Image.open(tmp_path / 'free.png'))
  assert close(end[None], net.images(np.load(tmp_path / 'latents.npz')['ws'], batch=4))


# ---- mappers


MAPPER = ('--method=mapper', f'--source={TEXTS[0]}', '--levels=coarse', '--seeds=3-5')


def test_a_mapper_is_trained_goes_on_and_is_applied_anywhere(
  net, run, clip_file, tmp_path, monkeypatch, capsys
):
  whole = tmp_path / 'whole'
  said = edit_text(run, clip_file, whole, *MAPPER)
  assert said['strength'] == 1 and said['about']['steps'] == 20
  assert said['mean']['after']['target'] != said['mean']['before']['target']
  move = direction.read(whole / 'mapper.npz')
  for when, options in (('before', {}), ('.', {'edit': move})):
    np.testing.assert_array_equal(shown(whole / when, 3, 4, 5), net([3, 4, 5], batch=4, **options))
  moved = move.moves(net, net.ws([3, 4]))['ws']
  assert moved[:, :4].all() and not moved[:, 4:].any() and moved.std(0).max() > 0
  # stopped in the middle, and killed: what was kept is gone on with
  parts = tmp_path / 'parts'
  with monkeypatch.context() as patch, pytest.raises(Preempted, match='8 of 20 steps'):
    patch.setattr(edit, 'Stop', lambda: contextlib.nullcontext(Signal(7)))
    edit_text(run, clip_file, parts, *MAPPER)
  assert [path.name for path in parts.iterdir() if path.suffix] == ['mapper_training.npz']
  with pytest.raises(UsageError, match=r'is of another training.*lr: 0.5 there, 0.1 here'):
    edit_text(run, clip_file, parts, *MAPPER, '--lr=0.1')
  edit_text(run, clip_file, parts, *MAPPER)
  assert not (parts / 'mapper_training.npz').exists()
  again = direction.read(parts / 'mapper.npz')
  assert again.about == move.about
  jax.tree.map(np.testing.assert_array_equal, again.mappers[0][1].params, move.mappers[0][1].params)
  # trained once: for other seeds it is taken as it is, from the folder or from its file
  with monkeypatch.context() as patch:
    patch.setattr(mapper_training, 'Training', None)
    edit_text(run, clip_file, whole, *MAPPER, '--seeds=6')
    # another text would take its place
    with pytest.raises(
      UsageError, match=r'mapper.npz is another mapper \(steps: 20 there, 3 here\)'
    ):
      edit_text(run, clip_file, whole, *MAPPER, '--steps=3')
    other = [f'--mapper={whole / "mapper.npz"}', *MAPPER[:2], '--seeds=6', '--strength=2']
    edit_text(run, clip_file, tmp_path / 'other', *other)
  np.testing.assert_array_equal(shown(whole, 6), net([6], batch=4, edit=move))
  np.testing.assert_array_equal(shown(tmp_path / 'other', 6), net([6], batch=4, edit=move * 2))
  # and generate and video take it like any direction
  place = f'--edit={whole / "mapper.npz"}:2'
  args = [f'--checkpoint={run}', '--batch=4', '--seeds=6', f'--out={tmp_path / "made"}']
  call(generate, *args, place)
  np.testing.assert_array_equal(shown(tmp_path / 'made', 6), net([6], batch=4, edit=move * 2))
  assert 'fine has no layers' not in capsys.readouterr().err


def test_a_damaged_training_begins_anew_and_levels_without_layers_are_named(
  run, clip_file, tmp_path, capsys
):
  (tmp_path / 'mapper_training.npz').write_bytes(b'PK')
  (tmp_path / 'mapper.npz').write_bytes(b'PK')
  flags = ['--method=mapper', '--seeds=3-4', '--steps=2', '--class=1']
  said = edit_text(run, clip_file, tmp_path, *flags)
  assert said['about']['label'] == [[0, 1, 0]]
  assert 'fine has no layers here' in capsys.readouterr().err
  assert direction.read(tmp_path / 'mapper.npz').about == said['about']


def test_a_mapper_of_styleclips_is_applied(net, run, clip_file, tmp_path):
  theirs = mapper_of(net, ('coarse',), 'layers')
  for name, num_ws in (('mine.pt', net.num_ws), ('theirs.pt', 18)):
    (tmp_path / name).write_bytes(checkpoint(mapper.arrays(theirs.params), num_ws))
  args = ['--method=mapper', '--seeds=3', '--strength=5']
  edit_text(run, clip_file, tmp_path / 'out', f'--mapper={tmp_path / "mine.pt"}', *args)
  move = direction.read(tmp_path / 'out' / 'directions.npz')
  assert move.name == 'mine'
  ws = net.ws([3]) + 5 * theirs.moves(net, net.ws([3]))['ws']
  np.testing.assert_array_equal(shown(tmp_path / 'out', 3), net.images(ws, batch=4))
  # of another network: one line, exit code 2, and nothing is written
  with pytest.raises(UsageError, match=r'theirs.pt was .* another network .* ws \[18, 12\]') as e:
    edit_text(run, clip_file, tmp_path / 'none', f'--mapper={tmp_path / "theirs.pt"}', *args)
  assert '\n' not in str(e.value) and e.value.code == 2
  assert [path.name for path in (tmp_path / 'none').iterdir()] == ['.lock']
  channel = directions.channel(net, 'b8.conv0', 1, np.eye(Z, dtype=np.float32))
  direction.write(tmp_path / 'c.npz', [channel])
  with pytest.raises(UsageError, match='holds the direction b8.conv0.1, which is no mapper'):
    edit_text(run, clip_file, tmp_path / 'none', f'--mapper={tmp_path / "c.npz"}', *args)


# ---- other things that move images, and that are moved


def test_a_channel(net, run, tmp_path):
  args = [f'--checkpoint={run}', f'--out={tmp_path}', '--seeds=1', '--batch=4']
  call(edit, 'channel', '--channel=b16.conv0.3', *args, '--strength=0')
  pictures = [np.asarray(Image.open(tmp_path / when / 'seed0001.png')) for when in ('.', 'before')]
  np.testing.assert_array_equal(*pictures)
  for flags, says in (
    (['--channel=b16.conv9.3'], 'layer b16.conv9 has no styles; choose from b4.conv1'),
    (['--channel=b8.conv0.999'], 'channel 999 of b8.conv0 is none of its'),
    (['--channel=third eye'], 'LAYER.NUMBER'),
    ([], '--channel=b8.conv0.12'),
  ):
    with pytest.raises(UsageError) as caught:
      call(edit, 'channel', *flags, *args)
    assert says in str(caught.value) and '\n' not in str(caught.value)


def test_directions_of_files(net, run, tmp_path):
  ws = np.random.RandomState(0).randn(2, net.num_ws, Z).astype(np.float32)
  known = [direction.Direction(f'pca{i}', (net.hash(),), x) for i, x in enumerate(ws)]
  direction.write(tmp_path / 'pca.npz', known)
  channel = directions.channel(net, 'b8.conv0', 1, np.eye(Z, dtype=np.float32))
  direction.write(tmp_path / 'c.npz', [channel])
  arrays = dict(np.load(tmp_path / 'c.npz'))
  # by others, with a name that ours can't have
  about = str(arrays.pop('about')).replace('"b8.conv0.1"', '"b8: 1"')
  np.savez(tmp_path / 'c.npz', about=about, **arrays)
  pair = [f'--edit={tmp_path / "pca.npz"}:pca1:0.5', f'--edit={tmp_path / "c.npz"}:-4']
  args = [f'--checkpoint={run}', f'--out={tmp_path / "out"}', '--seeds=1', '--batch=4']
  call(edit, 'direction', *pair, *args)
  # the same files as of any edit, and the same images as of `generate`
  assert {path.name for path in (tmp_path / 'out').iterdir() if path.suffix} == {
    *('seed0001.png', 'sheet.png', 'directions.npz', 'latents.npz', 'edit.json')
  }
  made = net([1], batch=4, edit=[(known[1], 0.5), (channel, -4)])
  assert close(shown(tmp_path / 'out', 1), made) and not close(net([1], batch=4), made, 10)
  said = json.loads((tmp_path / 'out' / 'edit.json').read_text())
  assert [part['times'] for part in said['about']['mix']] == [0.5, -4] and 'mean' not in said
  move = direction.read(tmp_path / 'out' / 'directions.npz')
  assert move.name == '0.5 pca1 - 4 b8 1' and said['strength'] == 1
  direction.write(tmp_path / 'x.npz', [direction.Direction('other', ('x',), ws[0, :, :-1])])
  for flags, says in (
    ([], '--edit=pca.npz:pca1:3'),
    ([f'--edit={tmp_path / "pca.npz"}:3'], 'name one of pca0, pca1'),
    ([f'--edit={tmp_path / "x.npz"}:3'], 'does not fit'),
  ):
    with pytest.raises(UsageError) as caught:
      call(edit, 'direction', *flags, *args, f'--out={tmp_path / "none"}')
    assert says in str(caught.value) and '\n' not in str(caught.value)
  with pytest.raises(UsageError, match='--strength'):
    call(edit, 'direction', *pair, *args, '--strength=2')
  assert not (tmp_path / 'none').exists()


def test_pictures_are_projected_first(net, run, tmp_path):
  (tmp_path / 'a').mkdir()
  for name, picture in zip(('a/cat.png', 'a/dog.png', 'cat.png'), net([20, 21, 22], batch=4)):
    # twice as large: it is shrunk to the network's size
    Image.fromarray(picture.repeat(2, 0).repeat(2, 1)).save(tmp_path / name)
  args = [f'--checkpoint={run}', '--channel=b16.conv0.3', '--strength=4', '--batch=4']
  projecting = ['--distance=pyramid', '--projection_steps=6']
  out = tmp_path / 'out'
  call(edit, 'channel', *args, *projecting, f'--images={tmp_path / "a"}', f'--out={out}')
  found = [np.load(out / 'projections' / f'{name}.npz') for name in ('cat', 'dog')]
  for name, one in zip(('cat', 'dog'), found):
    projection = np.asarray(Image.open(out / 'projections' / f'{name}_projected.png'))
    before = np.asarray(Image.open(out / 'before' / f'{name}.png'))
    assert close(before, projection) and not close(before, net.images(one['ws'][None])[0], 10)
  # picture, projection, edit
  after = [np.asarray(Image.open(out / f'{name}.png')) for name in ('cat', 'dog')]
  tiles = np.asarray(Image.open(out / 'sheet.png'))[-192::8, -256::8].reshape(3, 8, 2, 16, 3)
  tiles = tiles.swapaxes(1, 2)
  assert close(tiles[0], net([20, 21], batch=4)) and close(tiles[2], np.stack(after))
  assert not close(tiles[1], tiles[2], 10)
  row = json.loads((out / 'edit.json').read_text())['images'][1]
  assert row['picture']['source'] == str(tmp_path / 'a' / 'dog.png')
  assert row['picture']['distance'] == found[1]['distance'] < row['picture']['distance_start']
  # the same as of what `project` wrote
  call(edit, 'channel', *args, f'--latents={out / "projections"}', f'--out={tmp_path / "again"}')
  assert close(np.asarray(Image.open(tmp_path / 'again' / 'cat.png')), after[0])
  # files of one name
  files = f'{tmp_path / "a" / "cat.png"},{tmp_path / "cat.png"}'
  call(edit, 'channel', *args, *projecting, f'--images={files}', f'--out={tmp_path / "two"}')
  assert {path.name for path in (tmp_path / 'two' / 'before').iterdir()} == {
    'cat.png.png',
    'cat.png_2.png',
  }
  for flags, says in (
    ([f'--images={tmp_path / "a"}', '--psi=0.7'], '--images are taken as they are'),
    ([f'--images={tmp_path / "a"}', f'--latents={out}'], 'images'),
    ([*projecting, f'--images={tmp_path / "no.png"}'], 'no.png'),
  ):
    with pytest.raises(Fault) as caught:
      call(edit, 'channel', *args, *flags, f'--out={tmp_path / "none"}')
    assert says in str(caught.value) and '\n' not in str(caught.value)
  assert not (tmp_path / 'none').exists()
  # noise maps of another network
  np.savez(tmp_path / 'wrong.npz', **dict(found[0]) | {'noise/x': np.zeros(3)})
  with pytest.raises(UsageError, match='wrong.npz has noise maps of another network'):
    call(edit, 'channel', *args, f'--latents={tmp_path / "wrong.npz"}', f'--out={out}')


# ---- as StyleCLIP's own program does it


def test_an_original_search(net, run, clip, clip_file, tmp_path):
  flags = ['--method=optimize', '--original', '--steps=4', '--seeds=3', f'--source={TEXTS[0]}']
  said = edit_text(run, clip_file, tmp_path, *flags)
  assert said['about']['original'] is True
  move = direction.read(tmp_path / 'directions.npz')
  tower = text_losses.Tower(clip.params, clip.architecture, clip_nets.raw_view)
  settings = optimize.Settings(steps=4, l2_lambda=0.008)
  goals = clip.texts([TEXTS[1]]), text_directions.between(clip, *TEXTS)[None]
  found = optimize.optimize(net, net.ws([3]), tower, goals[0], settings)
  # the target alone, raw pixels, the image before the last step: each changes what comes out
  np.testing.assert_array_equal(move.ws, found.moves_before['ws'][0])
  for other in (
    found.moves['ws'],
    optimize.optimize(net, net.ws([3]), tower, goals[1], settings).moves_before['ws'],
    optimize.optimize(
      net, net.ws([3]), tower._replace(view=clip_nets.view), goals[0], settings
    ).moves_before['ws'],
  ):
    assert np.abs(move.ws - other[0]).max() > 1e-4


def test_an_original_search_has_styleclips_length_and_penalty(
  run, clip_file, tmp_path, monkeypatch
):
  asked = []

  def search(net, ws, tower, texts, settings):
    asked.append((settings.steps, settings.l2_lambda))
    raise Preempted('here')

  monkeypatch.setattr(optimize, 'Optimizer', search)
  args = [f'--checkpoint={run}', f'--clip={clip_file}', f'--out={tmp_path}', '--seeds=0']
  args += [f'--target={TEXTS[1]}', '--method=optimize']
  for more in ([], ['--original'], ['--original', '--steps=7', '--l2_lambda=0.5']):
    with pytest.raises(Preempted):
      call(edit, 'text', *args, *more)
  assert asked == [(100, 0.012), (300, 0.008), (7, 0.5)]


def test_an_original_mapper(net, run, clip, clip_file, tmp_path, monkeypatch):
  jobs = []
  channel = directions.channel(net, 'b8.conv0', 1, np.eye(Z, dtype=np.float32))
  monkeypatch.setattr(mappers, 'train', lambda job, name, out: jobs.append(job) or channel)
  for flags in ([], ['--original']):
    edit_text(run, clip_file, tmp_path, *MAPPER, *flags)
  ours, theirs = jobs
  assert (ours.settings.normalized, ours.settings.optimizer) == ('features', 'adam')
  assert (theirs.settings.normalized, theirs.settings.optimizer) == ('layers', 'ranger')
  assert ours.tower.view is clip_nets.view and theirs.tower.view is clip_nets.raw_view
  np.testing.assert_array_equal(ours.goal[0], clip.text(TEXTS[1]))
  np.testing.assert_array_equal(theirs.goal, clip.texts([TEXTS[1]]))
  assert theirs.about['original'] and not ours.about['original']


def test_original_effects_of_channels(run, clip_file, tmp_path, monkeypatch):
  asked = []

  def measure(net, clip, settings, *rest):
    asked.append(settings)
    raise Preempted('here')

  monkeypatch.setattr(channel_effects, 'measure', measure)
  for flags in ([], ['--original']):
    with pytest.raises(Preempted):
      edit_text(run, clip_file, tmp_path, f'--source={TEXTS[0]}', '--seeds=3', *flags)
  # what it changes is seen in test_text_editing.py and in the vectors
  assert asked == [FEW, dataclasses.replace(FEW, original=True)]


# ---- latents


def test_latents_of_files(net, run, tmp_path):
  ws = net.ws([7, 8])
  np.savez(tmp_path / 'two.npz', ws=ws)
  (tmp_path / 'folder').mkdir()
  np.savez(tmp_path / 'folder' / 'cat.npz', ws=ws[0], about='a text')
  args = [f'--checkpoint={run}', '--channel=b16.conv0.3', '--strength=0', '--batch=4']
  for given, names in (('two.npz', ['two_0000', 'two_0001']), ('folder', ['cat'])):
    out = tmp_path / f'of-{given}'
    call(edit, 'channel', f'--latents={tmp_path / given}', f'--out={out}', *args)
    pictures = [np.asarray(Image.open(out / f'{name}.png')) for name in names]
    np.testing.assert_array_equal(pictures, net([7, 8], batch=4)[: len(names)])
  # what `edit` moved in styles isn't in its ws
  call(edit, 'channel', f'--out={tmp_path / "moved"}', *args[:2], '--strength=9', '--seeds=7')
  moved = tmp_path / 'moved' / 'latents.npz'
  with pytest.raises(UsageError, match='latents.npz was moved in styles'):
    call(edit, 'channel', f'--latents={moved}', f'--out={tmp_path}', *args)
  np.savez(tmp_path / 'other.npz', ws=ws[:, :, :-1])
  with pytest.raises(UsageError) as caught:
    call(edit, 'channel', f'--latents={tmp_path / "other.npz"}', f'--out={tmp_path}', *args)
  said = str(caught.value)
  assert f'[2, {net.num_ws}, {Z - 1}]' in said and f'[{net.num_ws}, {Z}]' in said
  np.savez(tmp_path / 'huge.npz', ws=ws.astype(float) * 1e300)
  for name in ('no.npz', 'huge.npz'):
    with pytest.raises(UsageError):
      call(edit, 'channel', f'--latents={tmp_path / name}', f'--out={tmp_path}', *args)
  # names that are one picture's, or would be the sheet's
  more = tmp_path / 'more'
  more.mkdir()
  for name, given in (('a', ws), ('a_0000', ws[0]), ('sheet', ws[0]), ('p:q', ws[0])):
    np.savez(more / f'{name}.npz', ws=given)
  out = tmp_path / 'of-more'
  call(edit, 'channel', f'--latents={more}', f'--out={out}', *args)
  names = [row['name'] for row in json.loads((out / 'edit.json').read_text())['images']]
  assert names == ['a_0000', 'a_0001', 'a_0000_2', 'p:q', 'sheet_2']
  assert {path.name for path in out.glob('*.png')} == {'sheet.png', *(f'{x}.png' for x in names)}


def test_names_of_directions(net, run, clip_file, cache, tmp_path):
  assert direction.name_of(' a:b\n\u200dc ') == 'a b c'
  ws = net.ws([1])
  for name in ('p q', 'p:q'):  # one name, without the colon
    np.savez(tmp_path / f'{name}.npz', ws=ws)
  out = tmp_path / 'out'
  flags = ['--method=optimize', '--space=w', f'--latents={tmp_path}', '--steps=1']
  edit_text(run, clip_file, out, f'--source={TEXTS[0]}', *flags)
  found = direction.read_all(out / 'directions.npz')
  assert [move.name for move in found] == ['p q', 'p q_2']
  # a text with a line break, which no name may have
  edit_text(run, clip_file, out, '--source=a\nthin seven', '--seeds=0')
  assert direction.read(out / 'directions.npz').name == 'a thin seven - a thick seven'


@pytest.mark.parametrize(
  'flags, says',
  [
    (['--method=optimize', '--strength=1e-30', '--space=w'], 'is not finite any more'),
    (['--method=mapper', '--lr=1e38', '--l2_lambda=0'], 'smaller --lr'),
  ],
)
def test_what_is_not_finite_is_not_written(run, clip_file, tmp_path, flags, says):
  with pytest.raises(NonFiniteError) as caught:
    edit_text(run, clip_file, tmp_path, '--seeds=0', '--steps=2', *flags)
  assert says in str(caught.value)
  assert {path.name for path in tmp_path.iterdir()} == {'.lock'}


def test_a_strength_beyond_all_bounds_is_json(net):
  moved = {'b8.conv0': np.full((1, 4), 3e38, np.float32)}
  image = np.zeros((1, 2, 2, 3), np.uint8)
  move = direction.Direction('far', (net.hash(),))
  given = SimpleNamespace(ws=net.ws([1]), names=['a'], about=())
  edited = edit_results.Edited([move], 1.0, given.ws + np.float32(1e38), moved, image, image)
  far = edit_results.describe(given, edited)['images'][0]['moved']
  assert np.isfinite([*far.values()]).all()


def test_a_signal_is_not_kept_waiting_by_the_images(run, tmp_path, monkeypatch):
  def apply(*_):
    assert signal.getsignal(signal.SIGTERM) == before
    raise Preempted('as the handler from before does it')

  before = signal.getsignal(signal.SIGTERM)
  monkeypatch.setattr(edit_results, 'apply', apply)
  args = [f'--checkpoint={run}', f'--out={tmp_path}', '--channel=b16.conv0.3', '--seeds=0']
  with pytest.raises(Preempted, match='as the handler'):
    call(edit, 'channel', *args)
  # one that came while what moves was looked for
  end = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
  monkeypatch.setattr(edit.latents, 'read', lambda *_: end)
  with pytest.raises(Preempted, match='no image is written; the same command goes on'):
    call(edit, 'channel', *args)


def test_names_of_directions_can_be_written():
  assert text_directions.named('', 'a: thick\n\x00 seven') == 'a thick seven'
  assert text_directions.named('a', 'b') == 'a - b'


def test_every_edit_has_a_folder_of_its_own(run, net, clip_file, tmp_path, monkeypatch):
  found = []

  def locked(out, flag):
    found.append(out)
    raise Preempted('here')

  monkeypatch.setattr(edit, 'locked', locked)
  text = ['text', f'--clip={clip_file}', f'--target={TEXTS[1]}']
  channel = directions.channel(net, 'b8.conv0', 1, np.eye(Z, dtype=np.float32))
  direction.write(tmp_path / 'c.npz', [channel])
  for line, name in (
    ([*text, f'--source={TEXTS[0]}'], 'global-a-thin-seven-a-thick-seven'),
    ([*text, '--method=optimize', '--free'], 'optimize-free-a-thick-seven'),
    ([*text, '--method=mapper', '--mapper=x/m.npz'], 'mapper-m-a-thick-seven'),
    (['channel', '--channel=b8.conv0.12'], 'channel-b8.conv0.12'),
    (['direction', f'--edit={tmp_path / "c.npz"}:-0.5'], 'direction-c--0.5'),
  ):
    with pytest.raises(Preempted):
      call(edit, *line, f'--checkpoint={run}')
    assert found[-1] == run / 'edits' / f'{net.step:08d}' / name
  # what names can't have, or is too long, or only differs where it was cut
  texts = ('a seven!', 'a seven?', 'a\n\x00seven', 'x ' * 100 + '1', 'x ' * 100 + '2', '\U0001f600')
  with flagsaver.flagsaver():
    edit_methods.define_flags()
    names = []
    for target in texts:
      edit_methods.flags.FLAGS(['', f'--target={target}'])
      names.append(edit_methods.folder_name('text'))
  assert len(set(names)) == len(texts)
  assert all(
    name.isprintable() and len(name) <= 80 and not set(name) & set('/: ') for name in names
  )


def test_projections_are_shared_by_the_edits_of_a_network(run, net, tmp_path, monkeypatch):
  Image.fromarray(net([1], batch=4)[0]).save(tmp_path / 'a.png')
  found = []

  def project_all(job, items, out, label):
    found.append(out)
    raise Preempted('here')

  monkeypatch.setattr(projections, 'project_all', project_all)
  args = [f'--checkpoint={run}', '--channel=b8.conv0.1', '--distance=pyramid']
  for more in ([], [f'--out={tmp_path / "out"}']):
    with pytest.raises(Preempted):
      call(edit, 'channel', *args, *more, f'--images={tmp_path / "a.png"}')
  home = run / 'edits' / f'{net.step:08d}'
  assert found == [home / 'projections', tmp_path / 'out' / 'projections']


def test_an_unknown_channel_is_found_before_pictures_are_projected(run, net, tmp_path, monkeypatch):
  Image.fromarray(net([1], batch=4)[0]).save(tmp_path / 'a.png')
  monkeypatch.setattr(projections, 'project_all', None)
  args = [f'--checkpoint={run}', f'--images={tmp_path / "a.png"}', '--distance=pyramid']
  with pytest.raises(UsageError, match='channel 999 of b8.conv0 is none of its'):
    call(edit, 'channel', *args, '--channel=b8.conv0.999')


def test_nada_comes_before_the_flags(run, tmp_path, monkeypatch):
  monkeypatch.setattr(edit.sys, 'argv', ['edit', f'--checkpoint={run}', 'nada'])
  with pytest.raises(UsageError, match='write nada before the flags'):
    edit.main(['edit', 'nada'])


@pytest.mark.parametrize(
  'flags, says',
  [
    (['--target='], '--target='),
    (['--target= '], "the text ' ' is blank"),
    (['--source='], '--source='),
    (['--images=,'], '--images=, names nothing'),
    (['--latents='], '--latents names nothing'),
    (['--latents=w.npz', '--seeds=3'], '--seeds and --latents are both'),
    (['--projection_steps=9'], '--projection_steps is for pictures'),
    (['--distance=l2'], '--distance is for pictures'),
    (['--method=optimize', '--strength=0'], '--strength=0'),
    (['--method=optimize', '--noise=random'], '--noise=random'),
    (['--target=a thick octopus'], 'does not know octopus'),
    (['--method=mapper', '--source=a thin octopus'], 'does not know octopus'),
    (['--target=' + 'a seven ' * 9], 'and CLIP takes 6'),
    (['--beta=1.5'], 'largest relevance'),
    (['--beta=nan'], 'finite'),
    (['--method=mapper', '--space=w'], 'a mapper moves w+ or s'),
    (['--method=mapper', '--levels=course'], 'the level course is unknown'),
    (['--method=mapper', '--mapper=no.npz'], 'cannot read no.npz'),
  ],
)
def test_mistakes_of_texts(run, clip_file, cache, tmp_path, flags, says):
  with pytest.raises(UsageError) as caught:
    edit_text(run, clip_file, tmp_path, f'--source={TEXTS[0]}', *flags)
  assert says in str(caught.value)
  assert '\n' not in str(caught.value) and caught.value.code == 2
  assert {path.name for path in tmp_path.iterdir()} <= {'.lock', 'cache'}


@pytest.mark.parametrize(
  'line, says',
  [
    ('text --method=optimize --channels=5', '--channels is for --method=global; --method=optimize'),
    ('text --method=optimize --minibatch=2', '--minibatch is for --method=mapper; --method=opt'),
    ('text --method=mapper --augmentations=4', '--augmentations is for --method=optimize; --m'),
    ('text --method=global --steps=3', '--steps is for --method=optimize and --method=mapper; '),
    ('text --mapper=m.npz', '--mapper is for --method=mapper; --method=global does not read it'),
    (
      'text --method=mapper --mapper=m.npz --steps=3',
      '--steps is for training a mapper; --mapper=m.npz is trained',
    ),
    ('text --method=mapper --mapper=m.npz --original', '--original is for training'),
    ('text --method=mapper --space=s --levels=fine', '--levels is for --space=w+'),
    ('text --free', '--free is for --method=optimize'),
    ('text --target=x --method=optimize --free --seeds=3', '--seeds is not for --free'),
    ('text --target=x --method=optimize --free --l2_lambda=3', '--l2_lambda is not for --free'),
    ('text --channel=b8.conv0.1', '--channel is for edit channel; --method=global does not read'),
    ('channel --clip=digits', '--clip is for edit text; edit channel does not read it'),
    ('channel --target=thick', '--target is for edit text'),
    ('channel --original', '--original is for edit text'),
    ('channel --edit=a.npz:3', '--edit is for edit direction'),
    ('direction --strength=3', '--strength is for edit text and edit channel; edit direction does'),
    ('direction --method=global', '--method is for edit text'),
  ],
)
def test_flags_that_nothing_reads_are_refused(line, says, tmp_path):
  # before the network and CLIP are looked for
  with pytest.raises(UsageError) as caught:
    call(edit, *line.split(), '--checkpoint=nowhere', f'--out={tmp_path / "out"}')
  assert str(caught.value).startswith(says) and '\n' not in str(caught.value)


def test_all_flags_of_methods_have_readers():
  with flagsaver.flagsaver():
    before = set(edit_methods.flags.FLAGS)
    edit_methods.define_flags()
    own = set(edit_methods.flags.FLAGS) - before
  assert own | {'channel', 'edit', 'strength'} == set(edit_methods.READERS)


def test_missing_weights_come_before_the_network(tmp_path, monkeypatch):
  monkeypatch.setenv('SG2JAX_WEIGHTS', str(tmp_path))
  with pytest.raises(WeightsError) as caught:
    edit_text(pathlib.Path('nowhere'), 'clip-vit-b-32', tmp_path, f'--source={TEXTS[0]}')
  assert 'ViT-B-32.pt' in str(caught.value) and 'fetch_weights clip-vit-b-32' in str(caught.value)
