"""Editing by text as users do it: what channels do is kept, files are written, mistakes named."""

import dataclasses
import json
import pathlib

import numpy as np
from PIL import Image
import pytest

import sg2jax
from sg2jax import clip as clips
from sg2jax import files, paths
from sg2jax.edit import channel_effects, direction, text_directions
from sg2jax.faults import Preempted, UsageError, WeightsError
from sg2jax.tools import edit
from tests.runs import call
from tests.test_clip import VIT, drawn, save
from tests.test_sampler import Z, make_run

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
  net, clip, cache, monkeypatch
):
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
  assert 0 < len(there) < total
  rest = channel_effects.measure(net, clip, FEW, batch=2)
  np.testing.assert_allclose(rest.delta_i, whole.delta_i, atol=1e-3)
  np.testing.assert_array_equal(rest.delta_i[: len(there)], there)
  with monkeypatch.context() as patch:
    for name in ('ChannelFeatures', 'statistics'):
      patch.setattr(channel_effects.directions, name, None)  # not needed any more
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


def edit_text(run, clip_file, out, *more):
  """A run of `edit text`; what edit.json says."""
  few = ['--images=3', '--samples=50', '--steps=20', '--batch=4']
  args = [f'--checkpoint={run}', f'--clip={clip_file}', f'--out={out}', *few, *more]
  call(edit, 'text', f'--target={TEXTS[1]}', *args)
  return json.loads((out / 'edit.json').read_text())


def test_files_of_a_global_edit(net, run, clip_file, cache, tmp_path):
  out = tmp_path / 'out'
  said = edit_text(run, clip_file, out, f'--source={TEXTS[0]}', '--channels=5', '--seeds=3-5')
  names = ['seed0003', 'seed0004', 'seed0005']
  assert [row['name'] for row in said['images']] == names
  assert sorted(path.stem for path in (out / 'before').iterdir()) == names
  move = direction.read(out / 'directions.npz')
  for when, options in (('before', {}), ('.', {'edit': move * 3})):
    pictures = [np.asarray(Image.open(out / when / f'{name}.png')) for name in names]
    np.testing.assert_array_equal(pictures, net([3, 4, 5], batch=4, **options))
  assert said['mean'].keys() == {'before', 'after'} and said['neutral'] == 2
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


def test_a_channel(net, run, tmp_path):
  args = [f'--checkpoint={run}', f'--out={tmp_path}', '--seeds=1', '--batch=4']
  call(edit, 'channel', '--channel=b16.conv0.3', *args, '--strength=0')
  pictures = [np.asarray(Image.open(tmp_path / when / 'seed0001.png')) for when in ('.', 'before')]
  np.testing.assert_array_equal(*pictures)
  with pytest.raises(UsageError) as caught:
    call(edit, 'channel', '--channel=b16.conv9.3', *args)
  assert 'b16.conv9' in str(caught.value) and 'b16.conv0' in str(caught.value)
  with pytest.raises(UsageError) as caught:
    call(edit, 'channel', '--channel=third eye', *args)
  assert 'LAYER.NUMBER' in str(caught.value)


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
  np.savez(tmp_path / 'other.npz', ws=ws[:, :, :-1])
  with pytest.raises(UsageError) as caught:
    call(edit, 'channel', f'--latents={tmp_path / "other.npz"}', f'--out={tmp_path}', *args)
  said = str(caught.value)
  assert f'[2, {net.num_ws}, {Z - 1}]' in said and f'[{net.num_ws}, {Z}]' in said
  with pytest.raises(UsageError):
    call(edit, 'channel', f'--latents={tmp_path / "no.npz"}', f'--out={tmp_path}', *args)


@pytest.mark.parametrize(
  'flags, says',
  [
    (['--target='], '--target='),
    (['--source='], '--source='),
    (['--method=optimize', '--strength=0'], '--strength=0'),
    (['--target=a thick octopus'], 'does not know octopus'),
    (['--target=' + 'a seven ' * 9], 'and CLIP takes 6'),
    (['--beta=1.5'], 'largest relevance'),
  ],
)
def test_mistakes_of_texts(run, clip_file, cache, tmp_path, flags, says):
  with pytest.raises(UsageError) as caught:
    edit_text(run, clip_file, tmp_path, f'--source={TEXTS[0]}', '--seeds=0', *flags)
  assert says in str(caught.value)


def test_missing_weights_come_before_the_network(tmp_path, monkeypatch):
  monkeypatch.setenv('SG2JAX_WEIGHTS', str(tmp_path))
  with pytest.raises(WeightsError) as caught:
    edit_text(pathlib.Path('nowhere'), 'clip-vit-b-32', tmp_path, f'--source={TEXTS[0]}')
  assert 'ViT-B-32.pt' in str(caught.value) and 'fetch_weights clip-vit-b-32' in str(caught.value)
