"""The study of augmentation with a few pictures, its runs faked."""

import json
import pathlib
import shutil

import numpy as np
from PIL import Image
import pytest

from sg2jax.data import dataset, holdout
from sg2jax.faults import DatasetError, Fault, UsageError
from sg2jax.lab import minipaper, small_data, small_report, small_sets
from tests import pictures
from tests.runs import call


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
  return small_sets.make('digits', '', tmp_path_factory.mktemp('sets'))


def test_twenty_digits_of_each_class_are_trained_on_and_no_other(sets):
  source = dataset.open_source('', str(sets.train), (32, 32), True)
  training = holdout.split(source, small_sets.SHARE)
  assert list(training.labels.counts) == [20] * 10
  others = dataset.open_source('', str(sets.held_out), (32, 32), True)
  assert len(others) == 1597 and others.labels.names == training.labels.names

  def hashes(part):
    return {part[i]['image'].tobytes() for i in range(len(part))}

  assert not hashes(training) & hashes(others) and hashes(training.held_out) <= hashes(others)


def test_what_is_made_stays_and_too_few_are_refused(sets, tmp_path):
  before = sets.train.stat().st_ino
  shutil.rmtree(sets.held_out)  # as if it had been killed
  for _ in range(2):
    assert small_sets.make('digits', '', sets.train.parent) == sets
  assert sets.train.stat().st_ino == before and sets.held_out.exists()
  few = {f'{i}.png': pictures.encode(pictures.noise(i, 32, 32)) for i in range(4)}
  pictures.write_all(tmp_path / 'few', few)
  with pytest.raises(DatasetError, match='4 pictures are too few to train on 300 of a half'):
    small_sets.make('emoji', str(tmp_path / 'few'), tmp_path / 'out')


class Commands:
  """Stands for `minipaper.start`; FAIL fails."""

  def __init__(self):
    self.started = []
    self.fail = None

  def __call__(self, command, stop, core, **options):
    assert options['env']['JAX_PLATFORMS'] == 'cpu'
    words = dict(word.split('=', 1) for word in command[3:])
    self.started.append((command[2], words))
    if self.fail and self.fail in ' '.join(command):
      return 4
    if command[2] == 'sg2jax.main':
      self.train(words)
    else:
      self.evaluate(words)
    return 0

  def train(self, words):
    folder = pathlib.Path(words['--workdir'])
    for step in (0, 625, 1250):
      (folder / 'checkpoints' / str(step)).mkdir(parents=True)
    is_ada = words['--config.augment.pipeline'] == 'bgc'
    rows = [{'nimg': 0, 'r_t': 0.0}]
    for kimg in (4, 8, 12, 20):
      rows.append({'nimg': kimg * 1000, 'r_t': kimg / 20, 'r_v': 0.5})
      if is_ada:
        rows[-1]['augment_p'] = 0.25
    (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, rows)))

  def evaluate(self, words):
    step = int(words['--checkpoint'].rpartition('/')[2])
    out = pathlib.Path(words['--out'])
    out.mkdir(parents=True)
    for name in words['--metrics'].split(','):
      document = {'checkpoint': {'nimg': step * 16}, 'values': {name: float(step)}}
      (out / f'{name}.json').write_text(json.dumps(document))


@pytest.fixture
def commands(monkeypatch, sets):
  commands = Commands()
  monkeypatch.setattr(minipaper, 'start', commands)
  monkeypatch.setattr(small_sets, 'make', lambda *_: sets)
  return commands


def test_each_seed_runs_with_and_without_and_nothing_runs_twice(commands, sets, tmp_path, capsys):
  args = f'--out={tmp_path / "out"}', '--kimg=20'
  commands.fail = 'ada/seed1'
  with pytest.raises(Fault, match='ada, seed 1: trained ended with exit code 4.*seed1.log'):
    call(small_data, *args)
  first = len(commands.started)
  assert first == 3 * 3 + 1
  commands.fail = None
  call(small_data, *args)
  assert len(commands.started) == first + 3
  call(small_data, *args)
  assert len(commands.started) == first + 3
  # ---- what they were told
  train = [words for module, words in commands.started if module == 'sg2jax.main']
  assert {words['--config.augment.pipeline'] for words in train} == {'', 'bgc'}
  assert {words['--config.data.dir'] for words in train} == {str(sets.train)}
  measured = [words for module, words in commands.started if module != 'sg2jax.main']
  assert {words['--data'] for words in measured} == {str(sets.held_out)}
  # ---- what is said of them
  out = capsys.readouterr().out
  (ada,) = (line for line in out.splitlines()[-8:] if 'ADA' in line)
  cells = [cell.strip() for cell in ada.split('|')[2:-1]]
  # at the end 1250, at its best 625 at 10 kimg; p 0.25; r_t of the last 10 kimg (.6 + 1) / 2
  assert cells == [
    *('2', '1.25e+03', '625', '10', '1250.0', '625.0', '10', '0.25', '0.80', '0.50', '-')
  ]
  document = json.loads((tmp_path / 'out' / 'table.json').read_text())
  assert document['curves']['without'][1]['swd'] == [[10.0, 625.0], [20.0, 1250.0]]
  assert 'augment_p' not in document['curves']['without'][0]
  assert Image.open(tmp_path / 'out' / 'figure.png').width == 1200
  with pytest.raises(UsageError, match='use another --out'):
    (tmp_path / 'out' / 'ada' / 'seed0' / 'checkpoints').mkdir(exist_ok=True)
    call(small_data, args[0], '--kimg=30')


def test_a_signal_ends_it_and_the_table_waits(commands, tmp_path, monkeypatch):
  class Came:
    def __enter__(self):
      return self

    def __exit__(self, *_):
      pass

    def leave(self, text):
      raise Fault(text)

  monkeypatch.setattr(small_data, 'Stop', Came)
  with pytest.raises(Fault, match='0 of 4 runs are done'):
    call(small_data, f'--out={tmp_path / "out"}')
  assert not commands.started and not (tmp_path / 'out' / 'table.md').exists()


def test_emoji_are_asked_for(tmp_path):
  with pytest.raises(UsageError, match='--emoji is missing'):
    call(small_data, f'--out={tmp_path}', '--set=emoji')


def test_every_curve_is_drawn():
  curves = {name: [[1, 1.0], [2, 2.0]] for name in (*small_report.LOGGED, 'swd', 'pixelfd')}
  sheet = small_report.figure('digits', {'without': [curves], 'ada': [curves, curves]})
  lines = sum(len(axes.lines) for axes in sheet.axes)
  assert lines == 3 * len(curves)
  first = sheet.axes[0].lines[0].get_xydata()
  assert np.array_equal(first, curves['pixelfd'])
