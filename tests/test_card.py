"""Model cards say what the run says; bundles make the run's images, and are refused if tampered."""

import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

from absl import flags
from absl.testing import flagsaver
import numpy as np
import pytest
import safetensors.numpy
import yaml

from configs import default
from sg2jax import build, bundle, files, paths, sampler
from sg2jax import state as state_lib
from sg2jax.data.labels import Labels
from sg2jax.faults import CheckpointError, UsageError, WeightsError
from sg2jax.interop import names
from sg2jax.tools import (
  bundles,
  card,
  card_fields,
  card_pictures,
  card_text,
  convert,
  doctor_run,
  export,
  generate,
)
from sg2jax.training import checkpoint, init_from, workdir
from tests.runs import ROOT, SMALL, call, random_run

pytestmark = pytest.mark.usefixtures('quick_compile')
NETWORK = SMALL | {'data.dir': '/home/ada/secret/cats'}
LABELS = ('tom', 'fritz', 'garfield')
SCALES = {0: 0.1, 1: 0.1, 2: 0.5, 3: 1, 4: 0.3}
FLAGS = ('--license=apache-2.0', '--data_license=cc-by-4.0', '--author=Ada | Lovelace')
# As in metrics.jsonl: not finite numbers are texts; a metric has a line of its own.
LINES = (
  {'step': 1, 'nimg': 8, 'time': 3600.0, 'sec_per_tick': 1800.0, 'loss_g': 2.0, 'loss_d': 'nan'},
  {'step': 3, 'nimg': 24, 'time': 97200.0, 'sec_per_tick': 5400.0, 'loss_g': 1.0, 'r_t': 0.5},
  {'step': 3, 'nimg': 24, 'time': 97200.0, 'swd_4k': 9.0},
  {'step': 9, 'nimg': 72, 'time': 1e6, 'sec_per_tick': 9e9, 'loss_g': 7.0},
)
# The second one goes on after a stop of a day.
STARTS = ('1970-01-01T00:00:00+0000', '1970-01-02T01:00:00+0000')
DOCUMENT = {
  'metric': 'pixelnn0.1k',
  'values': {'pixelnn0.1k': 1.5, 'pixelnn0.1k_z': float('nan')},
  'intervals_95': {'pixelnn0.1k': [1.25, 1.75]},
  'intervals_cover': 'which fakes were drawn',
  'fakes': 1000,
  'reals': 30,
  'data': {'name': 'my cats', 'sha256': 'a1b2'},
  'detector': {'name': 'pixels', 'standard': True},
  'seed': 0,
  'held_out': 'each real in turn, out of the others',
  'median_distance': {'fakes': 1.5, 'held_out': 1.25},
}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run with all that a card tells of; tests leave it as it is."""
  home = tmp_path_factory.mktemp('runs') / 'cats'
  random_run(home, SCALES, **NETWORK)
  config = json.loads((home / 'config.json').read_text())
  config |= {'data_title': 'my cats', 'data_hash': 'a1b2', 'data_images': 30}
  (home / 'config.json').write_text(json.dumps(config))
  labels = Labels.of_classes(LABELS, (9, 0, 21))
  (home / 'labels.json').write_text(labels.to_json())
  (home / 'metrics.jsonl').write_text(''.join(json.dumps(x) + '\n' for x in LINES) + '{"st')
  start = {'device': 'TPU v4', 'devices': 8, 'processes': 2, 'sg2jax': '1', 'jax': '2', 'flax': '3'}
  start |= {'host': 'secret-host', 'command': '/home/ada/secret/python'}
  (home / 'environment.json').write_text(json.dumps([start | {'time': time} for time in STARTS]))
  folder = home / 'evaluation' / '00000003'
  (folder / 'holdout').mkdir(parents=True)
  document = DOCUMENT | {'checkpoint': {'sha256': sampler.load(home).hash()}}
  (folder / 'pixelnn0.1k.json').write_text(json.dumps(document))
  (folder / 'pixelnn0.1k.png').write_bytes(b'a picture')
  (folder / 'holdout' / 'pixelnn0.1k.json').write_text(json.dumps(document))
  return home


@pytest.fixture(scope='module')
def published(run, tmp_path_factory):
  """A bundle of the run; tests leave it as it is."""
  folder = tmp_path_factory.mktemp('published') / 'cats'
  call(export, f'--checkpoint={run}', f'--bundle={folder}', *FLAGS)
  return folder


@pytest.fixture
def copy(published, tmp_path):
  """A bundle to spoil."""
  return shutil.copytree(published, tmp_path / 'copy')


def test_a_card_says_what_the_run_says(run, tmp_path, capsys):
  file = tmp_path / 'cats.md'
  call(card, f'--checkpoint={run}', f'--out={file}', *FLAGS)
  assert f'{file}: the card' in capsys.readouterr().out
  text = file.read_text()
  _, head, body = text.split('---\n', 2)
  meta = yaml.safe_load(head)
  assert meta['license'] == 'apache-2.0' and meta['library_name'] == 'sg2jax'
  assert meta['pipeline_tag'] == 'unconditional-image-generation'
  assert 'datasets' not in meta and 'class-conditional' in meta['tags']
  metrics = [{'type': 'pixelnn', 'name': 'pixelnn0.1k', 'value': 1.5}]
  data = {'type': 'my-cats', 'name': 'my cats'}
  task = {'type': 'unconditional-image-generation'}
  results = [
    {'task': task, 'dataset': data, 'metrics': metrics},
    {'task': task, 'dataset': data | {'split': 'holdout'}, 'metrics': metrics},
  ]
  assert meta['model-index'] == [{'name': 'cats', 'results': results}]
  for said in (
    'Made by Ada \\| Lovelace',
    'a row for each class of which there are pictures, with',
    '| garfield | 21 |',
    '| fritz | 0 |',
    '`a1b2`',
    '| pixelnn0.1k | 1.5 | 1.25 to 1.75 | 1,000 | 30 of my cats |',
    '| 30 of my cats |',
    '| time, without stops | 3 hours |',  # not of the tick after the checkpoint
    '| devices x time | 24 hours |',
    '| time in minibatches | 2 hours |',
    '1.5 for generated pictures, 1.25 for each picture of the data set, left out of it in turn.',
    "label='tom'",
    '8 x TPU v4 in 2 processes',
    'By thousands of images. `r_t`: mean sign of',
    '2 times',
    '| `resolution` | `256` | `8` |',
    'Network: `apache-2.0`. Pictures that it learnt from: `cc-by-4.0`.',
  ):
    assert said in body, said
  assert 'secret' not in text and str(run.parent) not in text
  assert '`batch`' not in body  # as in the defaults
  shown = {part.split(')')[0] for part in body.split('](cats_')[1:]}
  kinds = ('samples', 'samples_psi07', 'curves', 'neighbours_pixelnn0.1k')
  assert shown == {f'{kind}.png' for kind in kinds}
  assert all((tmp_path / f'cats_{name}').exists() for name in shown)


def test_a_card_of_a_run_that_nobody_trained_leaves_out_what_it_does_not_know(tmp_path):
  run = random_run(tmp_path / 'run', SCALES, **NETWORK)
  (run / 'import.json').write_text(json.dumps({'source': '/home/ada/ffhq.pkl', 'sha256': 'c3d4'}))
  vectors = np.float32([[0, 0.5, 1], [1, 1, 0]])
  (run / 'labels.json').write_text(Labels.of_vectors(vectors).to_json())
  call(card, f'--checkpoint={run}', *FLAGS)
  text = (run / 'card.md').read_text()
  assert 'Imported from `ffhq.pkl` (SHA-256 `c3d4`)' in text and '/home' not in text
  assert 'Seeds 0 to 31' in text and 'labels of 3 components' in text and 'of_a_class' not in text
  assert 'None were measured' in text and 'model-index' not in text
  assert not any(heading in text for heading in ('## Training', '## Data', '## Nearest'))


def test_yaml_is_read_back():
  tree = {'a': 'no: # "x"\n', 'b': [{'c': [1.5, 2], 'd': {'e': 'ü'}}, 'f'], 'g': {'h': ['-']}}
  tree |= {'nothing': [], 'empty': {}, 'smile': '\U0001f600'}
  assert yaml.safe_load(card_text.yaml(tree)) == tree
  # which YAML doesn't allow, or UTF-8 doesn't have
  assert yaml.safe_load(card_text.yaml({'a': 'b\x7f\ud800\u2028c'}).encode()) == {'a': 'bc'}


@pytest.fixture
def other(run, tmp_path):
  """A run to spoil."""
  return shutil.copytree(run, tmp_path / 'cats')


def card_of(path, *flags):
  """The text of a card."""
  file = path.parent / 'x.md'
  call(card, f'--checkpoint={path}', f'--out={file}', *(flags or FLAGS))
  return file.read_text()


EVALUATION = 'evaluation/00000003/pixelnn0.1k.json'


@pytest.mark.parametrize(
  'name, before, after',
  [
    (EVALUATION, '"seed": 0', '"seed": '),
    (EVALUATION, '"seed": 0', '"seed": "x"'),
    (EVALUATION, '"pixelnn0.1k": 1.5', '"pixelnn0.1k": null'),
    (EVALUATION, '"pixelnn0.1k": 1.5', '"| <b>": 1.5'),
    (EVALUATION, '[1.25, 1.75]', '1.25'),
    (EVALUATION, '"metric": "pixelnn0.1k"', '"metric": "best"'),
    (EVALUATION, '"checkpoint": {"sha256": "', '"checkpoint": {"sha256": "0'),
    (EVALUATION, '"detector"', '"viewer"'),
    ('metrics.jsonl', '"step": 1,', '"step": 1'),
    ('metrics.jsonl', '"step": 1,', ''),
    ('metrics.jsonl', '"loss_g": 2.0', '"loss_g": [2.0]'),
    ('metrics.jsonl', '"time": 3600.0', '"time": "noon"'),
    ('environment.json', '"devices": 8', '"devices": "many"'),
    ('environment.json', '"time": "1970-01-01', '"time": "the first of'),
  ],
)
def test_a_file_that_nobody_wrote_so_is_named(name, before, after, other):
  file = other / name
  text = file.read_text()
  assert before in text
  file.write_text(text.replace(before, after, 1))
  with pytest.raises(UsageError, match=f'{name} is not as it was written .*move it away'):
    card_of(other)


def test_of_augmentation_the_card_has_what_its_name_does_not_say(other):
  config = json.loads((other / 'config.json').read_text())
  config['augment'] |= {'pipeline': 'bgc', 'variant': {'noise': 0.5}}
  (other / 'config.json').write_text(json.dumps(config))
  rows = [line for line in card_of(other).splitlines() if '`augment.' in line]
  assert len(rows) == 2 and '| `"bgc"` |' in rows[0] and rows[1].endswith('not there | `0.5` |')


def test_what_is_no_base_is_named(run, tmp_path):
  (tmp_path / 'others.py').write_text('get_config = lambda: 3')
  for name in ('none.py', 'others.py'):
    with pytest.raises(UsageError, match=f'--base={tmp_path}/{name} is no configuration'):
      card_of(run, *FLAGS, f'--base={tmp_path}/{name}')


def test_of_many_classes_the_first_are_shown(other):
  (other / 'labels.json').write_text(Labels.of_classes(LABELS, (9, 1, 21)).to_json())
  assert 'a row for each class, with' in card_of(other)
  with mock.patch.object(card_pictures, 'CLASSES', 2):
    assert 'a row for each of the first 2 classes, with' in card_of(other)


def test_of_a_step_the_card_loads_that_step(other):
  text = card_of(other / 'checkpoints' / '3')
  assert "sg2jax.load('cats/checkpoints/3')" in text and '--checkpoint=cats/checkpoints/3 ' in text


def test_labels_that_no_file_tells_are_not_made_up(other):
  (other / 'labels.json').unlink()
  text = card_of(other)
  assert 'with labels of 3 components, of which nothing says what they mean' in text
  assert 'class' not in text.split('---')[2] and 'Pictures of each' not in text
  assert 'a row for each component of the label,' in text
  call(export, f'--checkpoint={other}', f'--bundle={other.parent}/b', *FLAGS)
  assert not (other.parent / 'b' / 'labels.json').exists()
  ours, theirs = (sampler.load(path)([0, 1]) for path in (other, other.parent / 'b'))
  np.testing.assert_array_equal(ours, theirs)


def test_a_network_fine_tuned_for_a_text_says_so(other):
  about = {'source': 'photo', 'target': 'a *sketch*', 'network': 'e5', 'clip': ['/home/ada/x.pt']}
  config = json.loads((other / 'config.json').read_text()) | {'made_from': about}
  (other / 'config.json').write_text(json.dumps(config))
  for name in ('metrics.jsonl', 'environment.json'):
    (other / name).unlink()
  text = card_of(other)
  assert 'in 3 steps, from "photo" to "a \\*sketch\\*" by CLIP x.pt' in text
  assert 'after 24 images' not in text and 'the fine-tuning saw no pictures' in text
  assert '`loss.r1_gamma`' not in text and '`g.w_dim`' in text and '/home' not in text
  call(export, f'--checkpoint={other}', f'--bundle={other.parent}/b', *FLAGS)
  assert '/home' not in (other.parent / 'b' / 'config.json').read_text()


def test_what_training_began_with_is_said(other):
  note = {'checkpoint': '/home/ada/dogs/checkpoints/5, step 5', 'copied': [1] * 9}
  (other / 'init_from.json').write_text(json.dumps(note | {'initialised': [1, 2]}))
  said = 'the weights of `dogs/checkpoints/5, step 5`: 9 arrays of them, and 2 drawn anew'
  assert said in card_of(other)


def test_a_network_that_grows_says_how_far_it_is(other):
  config = json.loads((other / 'config.json').read_text())
  config['grow'] = config['grow'] | {'start_res': 4, 'hold_kimg': 0.016, 'fade_kimg': 0.016}
  (other / 'config.json').write_text(json.dumps(config))
  shutil.rmtree(other / 'evaluation')  # of the grown one
  said = 'It is growing: it has learnt 8 x 8 pixels so far, the last of them faded in by '
  assert said in card_of(other)


def test_a_licence_that_hubs_do_not_know_has_a_name_and_a_link(run, tmp_path):
  flags = ('--license=other', *FLAGS[1:])
  for more, said in (
    ((), '--license_name, --license_link are missing.*as in --license_name=my'),
    (('--license_name=lab-1.0',), '--license_link is missing'),
    (('--license_name=Lab 1', '--license_link=x'), 'lower case'),
    (('--license_name=lab-1.0', f'--license_link={tmp_path}/none'), 'none cannot be read'),
    (('--license_name=lab-1.0', '--license_link=~nosuchuser/LICENSE'), 'cannot be read'),
    (('--license=mit', '--license_name=lab-1.0'), 'for --license=other'),
    (('--data_license=other',), 'says nothing'),
    (('--data_id=my cats',), 'is no name at a hub'),
  ):
    with pytest.raises(UsageError, match=said):
      call(export, f'--checkpoint={run}', f'--bundle={tmp_path}/b', *flags, *more)
  (tmp_path / 'mine.txt').write_text('Do what you like.')
  named = (*flags, '--license_name=lab-1.0', '--data_id=ada/cats')
  call(
    export,
    f'--checkpoint={run}',
    f'--bundle={tmp_path}/b',
    f'--license_link={tmp_path}/mine.txt',
    *named,
  )
  meta = yaml.safe_load((tmp_path / 'b' / 'README.md').read_text().split('---\n')[1])
  found = [meta[name] for name in ('license', 'license_name', 'license_link', 'datasets')]
  assert found == ['other', 'lab-1.0', 'LICENSE', ['ada/cats']]
  assert meta['model-index'][0]['results'][0]['dataset']['type'] == 'ada/cats'
  assert (tmp_path / 'b' / 'LICENSE').read_text() == 'Do what you like.'
  assert 'LICENSE' in bundle.read_sums(tmp_path / 'b')
  address = '--license_link=https://ada.org/lab'
  call(card, f'--checkpoint={run}', f'--out={tmp_path}/x.md', *named, address)
  assert '[lab-1.0](https://ada.org/lab)' in (tmp_path / 'x.md').read_text()
  (tmp_path / 'LICENSE').write_text('of something else')
  with pytest.raises(UsageError, match='holds LICENSE, which no card has written'):
    link = f'--license_link={tmp_path}/mine.txt'
    call(card, f'--checkpoint={run}', f'--out={tmp_path}/x.md', *named, link)


@pytest.mark.parametrize(
  'flags, said',
  [
    ([], '--license, --data_license, --author are missing'),
    (FLAGS[:2], '--author is missing'),
    (('--license=Apache 2.0', *FLAGS[1:]), 'lower case'),
  ],
)
def test_licences_are_asked_for(flags, said, run, tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'stdin', None)  # as of a daemon: it is closed
  for tool, where in ((card, '--out=@/a.md'), (export, '--bundle=@/b')):
    with pytest.raises(UsageError, match=said):
      call(tool, f'--checkpoint={run}', where.replace('@', str(tmp_path)), *flags)
  assert not list(tmp_path.iterdir())


@contextlib.contextmanager
def terminal(typed):
  """A person who types this; yields a function of what they have seen."""
  here, there = pty.openpty()
  os.write(here, typed.encode())
  with (
    open(there) as keys,
    open(os.dup(there), 'w') as screen,
    mock.patch.multiple(sys, stdin=keys, stdout=screen),
  ):
    yield lambda: os.read(here, 10**6).decode()
  os.close(here)


def test_at_a_terminal_a_person_is_asked(run, tmp_path, monkeypatch):
  monkeypatch.delenv('JPY_PARENT_PID', raising=False)
  answers = ('Apache 2.0', '', 'other', 'other', 'cc-by-4.0', 'Ada', 'lab-1.0', 'none.txt')
  with terminal('\n'.join([*answers, 'https://ada.org/lab', ''])) as seen:
    call(card, f'--checkpoint={run}', f'--out={tmp_path}/a.md', '--data_id=ada/cats')
    text = seen()
  assert text.count('Licence of the network') == 3 and 'lower case, no spaces' in text
  assert text.count('Licence of the pictures') == 2 and text.count('Who made it') == 1
  assert 'none.txt cannot be read' in text and text.count('Where its text is') == 2
  written = (tmp_path / 'a.md').read_text()
  assert 'Made by Ada.' in written and '[lab-1.0](https://ada.org/lab)' in written
  end = '\x04'
  with terminal(f'mit\n{end}'), pytest.raises(UsageError, match='--data_license is missing'):
    call(card, f'--checkpoint={run}', f'--out={tmp_path}/b.md', '--author=Ada')
  # ---- nothing, where the flags can't do
  with terminal(''), pytest.raises(UsageError, match='goes without --license_name'):
    call(card, f'--checkpoint={run}', '--license=mit', '--license_name=x')
  # ---- and not in a notebook, whose commands see a terminal that nobody types at
  monkeypatch.setenv('JPY_PARENT_PID', '1')
  with terminal(''), pytest.raises(UsageError, match='--license, --data_license are missing'):
    call(card, f'--checkpoint={run}', f'--out={tmp_path}/b.md', '--author=Ada')
  assert not (tmp_path / 'b.md').exists()


def test_a_card_that_was_edited_and_files_of_others_stay(other, tmp_path):
  file = tmp_path / 'README.md'
  make = lambda: call(card, f'--checkpoint={other}', f'--out={file}', *FLAGS)
  file.write_text('# My project\n')
  with pytest.raises(UsageError, match='README.md is no card of sg2jax, or was edited'):
    make()
  assert file.read_text() == '# My project\n'
  file.unlink()
  picture = tmp_path / 'README_samples.png'
  picture.write_bytes(b'mine')
  with pytest.raises(UsageError, match='holds README_samples.png, which no card has written'):
    make()
  picture.unlink()
  make()
  drawn = picture.read_bytes()
  picture.write_bytes(b'mine')
  with pytest.raises(UsageError, match='as may be a picture or the licence'):
    make()
  picture.write_bytes(drawn)
  (other / 'metrics.jsonl').unlink()
  before = file.read_text()
  make()
  after = file.read_text()
  assert '![Curves' in before and '![Curves' not in after
  file.write_text(after.replace('# README', '# Cats').replace('Made by', 'Drawn by'))
  with pytest.raises(UsageError, match='README.md is no card of sg2jax, or was edited'):
    make()
  assert 'Drawn by' in file.read_text()


# ---- bundles


def test_flags_that_say_nothing_are_refused(run, tmp_path):
  for given, said in (
    ((f'--dest={tmp_path}/x', '--license=mit'), '--license says nothing of what --dest writes'),
    ((f'--bundle={tmp_path}/x', *FLAGS, '--format=nvidia'), '--format says nothing'),
  ):
    with pytest.raises(UsageError, match=said):
      call(export, f'--checkpoint={run}', *given)


def test_a_bundle_whose_card_was_edited_is_not_replaced(run, copy):
  (copy / 'README.md').write_text((copy / 'README.md').read_text() + 'Thanks to Tom.\n')
  list_anew(copy)
  with pytest.raises(UsageError, match='README.md is no card of sg2jax, or was edited'):
    call(export, f'--checkpoint={run}', f'--bundle={copy}', *FLAGS)
  (copy / 'README.md').unlink()
  drawn = (copy / 'samples.png').read_bytes()
  (copy / 'samples.png').write_bytes(b'mine')
  with pytest.raises(UsageError, match='samples.png was changed'):
    call(export, f'--checkpoint={run}', f'--bundle={copy}', *FLAGS)
  (copy / 'samples.png').write_bytes(drawn)
  call(export, f'--checkpoint={run}', f'--bundle={copy}', *FLAGS)
  assert (copy / 'README.md').exists()


def test_a_bundle_is_what_it_lists(published):
  subprocess.run(['sha256sum', '-c', '--quiet', bundle.SUMS], cwd=published, check=True)
  listed = bundle.read_sums(published)
  assert {*listed, bundle.SUMS} == {path.name for path in published.iterdir()}
  text = b''.join(path.read_bytes() for path in published.iterdir())
  assert b'secret' not in text
  assert json.loads((published / 'config.json').read_text())['data']['dir'] == 'cats'


def test_a_bundle_makes_the_images_of_its_run(run, published, tmp_path):
  nets = [sampler.load(run), sampler.load(published)]
  assert nets[0].hash() == nets[1].hash() and nets[1].workdir == published
  for options in ({}, {'psi': 0.5, 'noise': 'random', 'label': 'garfield'}):
    ours, theirs = (net(range(3), **options) for net in nets)
    np.testing.assert_array_equal(ours, theirs)
    assert ours.std() > 0
  call(generate, f'--checkpoint={published}', '--seeds=0-1', f'--out={tmp_path}/pictures')
  assert len(list((tmp_path / 'pictures').iterdir())) == 2
  # what trains and converts gets a whole state, without a discriminator
  state, _ = checkpoint.load(published)
  assert state.keys() == set(names.FIELDS) and not state['d']


def test_a_bundle_in_the_folder_of_its_run_is_itself(run, tmp_path):
  other = shutil.copytree(run, tmp_path / 'run')
  folder = other / 'bundle'
  call(export, f'--checkpoint={other}', f'--bundle={folder}', *FLAGS)
  assert sampler.load(folder).workdir == folder and sampler.load(other).workdir == other


def test_the_core_loads_a_bundle(published):
  """Without what only the extras bring: they fail to import."""
  extras = 'matplotlib clu grain tensorflow tensorboard scipy sklearn imageio_ffmpeg nicegui'
  code = (
    'import sys\n'
    f'sys.modules.update(dict.fromkeys({extras.split()!r}))\n'
    'import sg2jax, sg2jax.tools.export\n'
    f'print(sg2jax.load({str(published)!r})([0]).shape)'
  )
  env = os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, env=env, capture_output=True, text=True
  )
  assert '(1, 8, 8, 1)' in done.stdout, done.stderr


@pytest.mark.parametrize(
  'name, change, said',
  [
    ('generator.safetensors', lambda data: data[:-1] + bytes([data[-1] ^ 1]), 'SHA-256'),
    ('config.json', lambda data: data.replace(b'"seed": 0', b'"seed": 1'), 'SHA-256'),
    ('labels.json', lambda data: data.replace(b'tom', b'tim'), 'SHA-256'),
    ('labels.json', None, 'No such file'),
    ('generator.safetensors', None, 'No such file'),
    ('SHA256SUMS', lambda data: data.replace(b'labels', b'others'), 'not of this bundle'),
    ('SHA256SUMS', lambda data: data + b'what\n', 'no list of hashes'),
    ('SHA256SUMS', lambda data: data.splitlines(True)[0], 'not that of a bundle'),
  ],
)
def test_a_tampered_bundle_is_refused(name, change, said, copy):
  file = copy / name
  before = file.read_bytes()
  if change:
    file.write_bytes(change(before))
    assert file.read_bytes() != before
  else:
    file.unlink()
  with pytest.raises(CheckpointError, match=said):
    sampler.load(copy)


def list_anew(folder):
  """What a stranger does who changes a bundle."""
  contents = {name: (folder / name).read_bytes() for name in bundle.read_sums(folder)}
  (folder / bundle.SUMS).write_text(bundle.sums(contents))


@pytest.mark.parametrize(
  'part, field, value',
  [
    ('g', 'w_dim', 9),
    ('g', 'z_dim', 10**13),  # inputs of 40 TB
    ('g', 'mapping_layers', 10**9),
    ('g', 'architecture', 'x'),
    ('grow', 'start_res', 'x'),
  ],
)
def test_a_strangers_bundle_of_another_network_is_refused(part, field, value, copy):
  """Whose list of hashes is right."""
  config = json.loads((copy / 'config.json').read_text())
  config[part][field] = value
  (copy / 'config.json').write_text(json.dumps(config))
  list_anew(copy)
  with pytest.raises(CheckpointError, match='not of the network that its config.json says'):
    sampler.load(copy)
  with pytest.raises(WeightsError, match='is refused'):
    call(convert, f'--source={copy}', f'--dest={copy.parent}/run')


@pytest.mark.parametrize('c_dim', [10**12, -1, True, '3'])
def test_a_strangers_number_of_classes_is_refused_before_labels_are_made_of_it(c_dim, copy):
  config = json.loads((copy / 'config.json').read_text()) | {'c_dim': c_dim}
  (copy / 'config.json').write_text(json.dumps(config))
  list_anew(copy)
  with pytest.raises(CheckpointError, match='is no number from 0'):
    sampler.load(copy)


@pytest.mark.parametrize('step', [np.int32([3, 3]), np.float32(3), np.int32(-1)])
def test_a_strangers_step_is_refused(step, copy):
  file = copy / bundle.WEIGHTS
  arrays = safetensors.numpy.load(file.read_bytes()) | {'step': np.array(step)}
  file.write_bytes(safetensors.numpy.save(arrays, {'format': bundle.FORMAT}))
  list_anew(copy)
  with pytest.raises(CheckpointError, match='step is no count'):
    sampler.load(copy)


@pytest.mark.parametrize('name', ['w_avg', 'noise.'])
def test_a_strangers_numbers_are_finite(name, copy):
  file = copy / bundle.WEIGHTS
  arrays = safetensors.numpy.load(file.read_bytes())
  name = next(key for key in arrays if key.startswith(name))
  arrays[name] = np.full_like(arrays[name], np.nan)
  file.write_bytes(safetensors.numpy.save(arrays, {'format': bundle.FORMAT}))
  list_anew(copy)
  with pytest.raises(CheckpointError, match=f'{name} has numbers that are not finite'):
    sampler.load(copy)
  file.write_bytes(safetensors.numpy.save(arrays))
  list_anew(copy)
  with pytest.raises(CheckpointError, match='says of no format that it is in.*download'):
    sampler.load(copy)


def test_what_nobody_could_read_is_not_written(run):
  state, _ = checkpoint.load(run)
  assert bundle.weights(state)
  state['w_avg'] = np.full_like(state['w_avg'], np.nan)
  with pytest.raises(CheckpointError, match='w_avg has numbers that are not finite.*earlier'):
    bundle.weights(state)


@pytest.mark.parametrize('name', [bundle.WEIGHTS, 'config.json', 'labels.json', bundle.SUMS])
def test_what_has_no_end_is_not_read(name, copy):
  (copy / name).unlink()
  (copy / name).symlink_to('/dev/zero')
  with pytest.raises(CheckpointError, match='it is no file'):
    sampler.load(copy)
  (copy / name).unlink()
  (copy / name).touch()
  os.truncate(copy / name, 2**40)
  with pytest.raises(CheckpointError, match='it has 1,099,511,627,776 bytes'):
    sampler.load(copy)


@pytest.mark.parametrize('line', ['../../etc/passwd', '/etc/passwd', 'a/../../b', '..\\\\b'])
def test_a_list_names_files_of_its_folder_alone(line, copy):
  with open(copy / bundle.SUMS, 'a') as f:
    f.write(f'{"0" * 64}  {line}\n')
  for use in (sampler.load, lambda path: bundles.destination(str(path))):
    with pytest.raises(CheckpointError, match='no list of hashes'):
      use(copy)


def test_files_may_be_links_as_hubs_keep_them(copy, tmp_path):
  (copy / bundle.WEIGHTS).rename(tmp_path / 'blob')
  (copy / bundle.WEIGHTS).symlink_to(tmp_path / 'blob')
  assert sampler.load(copy).step == 3


def test_nothing_is_trained_in_a_bundle(copy):
  before = {path.name: path.read_bytes() for path in copy.iterdir()}
  with pytest.raises(UsageError, match='published network.*--config.init_from'):
    workdir.check_workdir({}, copy)
  lines = [finding.line() for finding in doctor_run.workdir(str(copy))]
  assert 'is a bundle' in lines[-1] and f'--config.init_from={copy}' in lines[-1]
  assert before == {path.name: path.read_bytes() for path in copy.iterdir()}


def test_a_bundle_and_a_card_in_a_bucket(run, published, tmp_path):
  place = paths.place('memory://cards/a')
  for source, dest in ((published, place / 'bundle'), (run, place / 'run')):
    for file in source.rglob('*'):
      if file.is_file():
        paths.place(f'{dest}/{file.relative_to(source)}').write_bytes(file.read_bytes())
  assert sampler.load(place / 'bundle').hash() == sampler.load(run).hash()
  text = (published / bundle.CARD).read_text()
  call(card, f'--checkpoint={place}/run', *FLAGS)
  assert '| 30 of my cats |' in text and '| 30 of my cats |' in (place / 'run/card.md').read_text()
  (place / 'bundle' / bundle.WEIGHTS).unlink()
  with pytest.raises(CheckpointError, match='download the bundle again'):
    sampler.load(place / 'bundle')
  with pytest.raises(UsageError, match='no memory:// address'):
    call(export, f'--checkpoint={run}', f'--bundle={place}/b', *FLAGS)


def test_a_bundle_becomes_a_run(run, published, tmp_path):
  call(convert, f'--source={published}', f'--dest={tmp_path}/back')
  back = sampler.load(tmp_path / 'back')
  assert back.hash() == sampler.load(run).hash() and back.labels.names == LABELS


def test_the_card_may_be_edited(copy):
  (copy / bundle.CARD).write_text('mine')
  assert sampler.load(copy).step == 3


def test_a_bundle_of_the_future_is_refused(run, copy, monkeypatch):
  monkeypatch.setattr(bundle, 'FORMAT', 'sg2jax-bundle-2')
  with pytest.raises(CheckpointError, match='update sg2jax'):
    sampler.load(copy)


def test_a_bundle_takes_the_place_of_a_bundle_alone(run, copy, tmp_path):
  flags = (f'--checkpoint={run}', *FLAGS[:2], '--author=Grace Hopper')
  call(export, *flags, f'--bundle={copy}')
  assert 'Made by Grace Hopper' in (copy / bundle.CARD).read_text()
  (copy / 'notes.txt').write_text('mine')
  before = {path.name: path.read_bytes() for path in copy.iterdir()}
  with pytest.raises(UsageError, match='notes.txt is not of the bundle'):
    call(export, *flags, f'--bundle={copy}')
  assert before == {path.name: path.read_bytes() for path in copy.iterdir()}
  with pytest.raises(UsageError, match='holds something, and is no bundle'):
    call(export, *flags, f'--bundle={run}')
  assert [path.name for path in tmp_path.iterdir()] == ['copy']


def test_what_a_renewed_list_names_besides_stays(run, copy):
  """A publisher who adds a file lists it, too."""
  (copy / 'notes.txt').write_text('mine')
  with open(copy / bundle.SUMS, 'a') as f:
    f.write(f'{"0" * 64}  notes.txt\n')
  with pytest.raises(UsageError, match='notes.txt is not of the bundle'):
    bundles.destination(str(copy))
  (copy / 'notes.txt').unlink()
  (copy / 'config.json').write_text('{}')
  with pytest.raises(UsageError, match='config.json was changed'):
    bundles.destination(str(copy))
  (copy / 'config.json').unlink()
  assert bundles.destination(str(copy)) == copy
  (copy / 'config.json').mkdir()
  with pytest.raises(UsageError, match='config.json is not of the bundle'):
    bundles.destination(str(copy))


def test_what_comes_while_the_pictures_are_made_stays(run, copy, monkeypatch):
  def sums(contents):
    (copy / 'thesis.txt').write_text('months of work')
    return ''

  monkeypatch.setattr(bundle, 'sums', sums)
  with pytest.raises(UsageError, match='thesis.txt is not of the bundle'):
    call(export, f'--checkpoint={run}', f'--bundle={copy}', *FLAGS)
  assert (copy / 'thesis.txt').exists() and sampler.load(copy).step == 3


def test_no_bundle_takes_the_place_of_where_one_stands_or_of_a_mount(copy, monkeypatch):
  monkeypatch.chdir(copy)
  for place in ('.', '..'):
    with pytest.raises(UsageError, match='is where you stand'):
      bundles.destination(place)
  with pytest.raises(UsageError, match='is a mount'):
    bundles.destination('/proc')
  # ---- a link to another disk isn't one
  elsewhere = tempfile.mkdtemp(dir='/dev/shm')
  try:
    (copy.parent / 'link').symlink_to(elsewhere)
    assert bundles.destination(str(copy.parent / 'link'))
  finally:
    os.rmdir(elsewhere)


@pytest.mark.parametrize(
  'make, said',
  [
    (lambda file: file.symlink_to('/dev/zero'), 'it is no file'),
    (os.mkfifo, 'it is no file'),
    (lambda file: file.touch(), 'it has 0 bytes'),
    (lambda file: (file.touch(), os.truncate(file, 2**30)), 'it has 1,073,741,824 bytes'),
    (lambda file: file.write_bytes(b'\xff'), 'can.t decode'),
  ],
)
def test_a_licence_is_a_text(make, said, run, tmp_path):
  make(tmp_path / 'mine')
  of_other = ('--license=other', '--license_name=x', f'--license_link={tmp_path}/mine')
  with pytest.raises(UsageError, match=said):
    call(card, f'--checkpoint={run}', f'--out={tmp_path}/x.md', *of_other, *FLAGS[1:])


def test_what_is_no_file_is_not_waited_for(run, tmp_path):
  os.mkfifo(tmp_path / 'x.md')
  with pytest.raises(UsageError, match='x.md is there, and no file'):
    call(card, f'--checkpoint={run}', f'--out={tmp_path}/x.md', *FLAGS)
  (tmp_path / 'y_curves.png').mkdir()
  with pytest.raises(UsageError, match='holds y_curves.png'):
    call(card, f'--checkpoint={run}', f'--out={tmp_path}/y.md', *FLAGS)
  with pytest.raises(UsageError, match='is no text in UTF-8'):
    call(card, f'--checkpoint={run}', f'--out={tmp_path}/z.md', *FLAGS[:2], '--author=J\udcf6rg')
  with pytest.raises(UsageError, match='names in UTF-8 only'):
    call(card, f'--checkpoint={run}', f'--out={tmp_path}/J\udcf6rg.md', *FLAGS)


def test_a_licence_of_ours_is_replaced(run, tmp_path):
  of_other = ('--license=other', '--license_name=x', f'--license_link={tmp_path}/mine')
  for text in ('Do this.', 'Do that.'):
    (tmp_path / 'mine').write_text(text)
    call(card, f'--checkpoint={run}', f'--out={tmp_path}/x.md', *of_other, *FLAGS[1:])
    assert (tmp_path / 'LICENSE').read_text() == text
  (tmp_path / 'LICENSE').write_text('Do nothing.')
  with pytest.raises(UsageError, match='or the licence beside it'):
    call(card, f'--checkpoint={run}', f'--out={tmp_path}/x.md', *of_other, *FLAGS[1:])


def test_a_bundle_goes_where_a_link_leads(run, copy, tmp_path):
  (tmp_path / 'link').symlink_to(copy)
  before = copy.stat().st_ino
  call(export, f'--checkpoint={run}', f'--bundle={tmp_path}/link', *FLAGS)
  assert (tmp_path / 'link').is_symlink() and copy.stat().st_ino != before
  assert sorted(path.name for path in tmp_path.iterdir()) == ['copy', 'link']


def test_a_bundle_that_fails_leaves_what_was_there(run, copy, tmp_path, monkeypatch):
  before = (copy / bundle.SUMS).read_bytes()

  def full(contents):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(bundle, 'sums', full)
  with pytest.raises(Exception, match='No space left'):
    call(export, f'--checkpoint={run}', f'--bundle={copy}', *FLAGS)
  assert (copy / bundle.SUMS).read_bytes() == before
  assert [path.name for path in tmp_path.iterdir()] == ['copy']


def test_a_signal_between_both_renames_leaves_what_was_there(copy, monkeypatch):
  def replace(source, dest):
    rename(source, dest)
    if str(dest).endswith('.before'):
      raise KeyboardInterrupt

  rename = os.replace
  monkeypatch.setattr(os, 'replace', replace)
  with pytest.raises(KeyboardInterrupt), files.whole_folder(copy) as folder:
    folder.mkdir()
  assert sampler.load(copy).step == 3
  assert [path.name for path in copy.parent.iterdir()] == ['copy']


def test_what_there_is_no_card_of(copy, tmp_path):
  with pytest.raises(UsageError, match='is a bundle, which has its card'):
    call(card, f'--checkpoint={copy}', f'--out={tmp_path}/x.md', *FLAGS)
  with pytest.raises(CheckpointError, match='no whole checkpoint'):
    call(card, f'--checkpoint={tmp_path}/none', *FLAGS)
  with pytest.raises(UsageError, match='goes without --bundle'):
    call(export, f'--checkpoint={copy}', '--dest=a.npz', '--bundle=b', *FLAGS)


def test_training_starts_from_a_bundle(published):
  """Its generator fits; D begins anew."""
  config = default.get_config()
  config.update_from_flattened_dict(NETWORK | {'init_from': str(published)})
  config.g.variant = {'mapping_lr_mul': 1.0}
  origin = init_from.read(config)
  init_from.check(config, origin, 3)
  _, done = state_lib.transfer(build.abstract_state(config, 3), origin.state)
  assert all(name.startswith('d.') for name in done['initialised']) and not done['unused']


def test_help_of_export_lists_what_a_card_asks_for():
  with flagsaver.flagsaver():
    export.define_flags()
    listed = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(export)}
  assert {*card_fields.FIELDS, 'bundle'} <= listed
