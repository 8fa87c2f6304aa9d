"""The study of edits by text: what it counts, and that it runs."""

import json
import sys

import numpy as np
from PIL import Image
import pytest

from sg2jax import paths
from sg2jax.edit import channel_effects, digit_classifiers, optimize
from sg2jax.faults import UsageError
from sg2jax.lab import digit_attributes, text_study
from tests.runs import call
from tests.test_sampler import make_run


def test_what_counts():
  bars = np.zeros((4, 32, 32, 1), np.uint8)
  for bar, width in zip(bars, (4, 6, 8, 8)):
    bar[4:28, 8 : 8 + width] = 255
  before, after = bars[[0, 1, 2, 2]], bars[[1, 2, 1, 3]]  # thicker, thicker, thinner, the same

  def see(images):
    return np.arange(4) + (images is after)

  wanted = np.array([1, 2, 0, 0])
  found = text_study.compare(text_study.EDITS['thick'], before, after, wanted, see)
  assert (found['changed_rate'], found['digit_rate']) == (0.5, 0.5)
  assert found['changed_interval'] == pytest.approx([0.150, 0.850], abs=1e-3)
  found = text_study.compare(text_study.EDITS['thin'], before, after, wanted, see)
  assert found['changed_rate'] == 0.25
  # by how much: of bars 4, 6 and 8 wide the middle one becomes the widest
  found = text_study.compare(text_study.EDITS['thick'], bars[:3], bars[1:], np.arange(3), len)
  thickness = digit_attributes.measure(bars[:3])['thickness']
  assert found['deviations'] == pytest.approx((thickness[2] - thickness[1]) / thickness.std())
  found = text_study.compare(text_study.EDITS['another digit'], before, after, wanted + 1, see)
  assert found['digit_rate'] == 0 and 'changed_rate' not in found


def test_texts_of_an_edit():
  texts = {name: edit.texts(8, 3) for name, edit in text_study.EDITS.items()}
  assert texts['left-slanted'] == ('a right-slanted eight', 'a left-slanted three')
  assert texts['another digit'] == ('an eight', 'a three')
  signs = {name: edit.sign for name, edit in text_study.EDITS.items()}
  assert {name for name, sign in signs.items() if sign < 0} == {
    'thin',
    'left-slanted',
    'narrow',
    'small',
  }


def test_the_judge_knows_digits(monkeypatch):
  judge = text_study.train_judge()
  assert 0.97 < judge.held_out < 1
  images, labels, _ = digit_classifiers.samples()
  large = np.repeat(np.repeat(images[:50], 2, 1), 2, 2).repeat(3, -1)  # of any size, in colour
  assert (judge.see(large) == labels[:50]).mean() > 0.9
  monkeypatch.setitem(sys.modules, 'sklearn', None)
  with pytest.raises(UsageError, match=r'sg2jax\[lab\]'):
    text_study.train_judge()


@pytest.mark.usefixtures('quick_compile')
def test_the_command(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv(paths.VARIABLE, str(tmp_path / 'cache'))
  edits = ('thick', 'another digit')
  monkeypatch.setattr(text_study, 'EDITS', {name: text_study.EDITS[name] for name in edits})
  few = {'effects': channel_effects.Settings(2, 50), 'search': optimize.Settings(2, 'w')}
  asked = []
  for name in ('by_directions', 'by_search'):
    function = getattr(text_study, name)
    monkeypatch.setattr(
      text_study, name, lambda *args, do=function: asked.append(args[4:]) or do(*args)
    )
  study = text_study.study
  monkeypatch.setattr(text_study, 'study', lambda *args: study(*args, **few))
  run = make_run(tmp_path / 'run')
  args = [f'--checkpoint={run}', f'--out={tmp_path / "out"}']
  call(text_study, '--seeds=2-5', *args)
  # an attribute, and farther to another digit
  (near, default, _), (far, share, _), (search,), (far_search,) = asked
  assert (near, default, far, share) == (3, None, 6, 8)
  assert search.l2_lambda == few['search'].l2_lambda == pytest.approx(9 * far_search.l2_lambda)
  document = json.loads((tmp_path / 'out' / 'study.json').read_text())
  assert document['seeds'] == [2, 5] and document['judge_held_out'] > 0.97
  rows = document['rows']
  names = [(method, edit) for method in ('global', 'optimize') for edit in edits]
  assert [(row['method'], row['edit']) for row in rows] == names
  assert all(row['images'] == 4 and 0 <= row['digit_rate'] <= 1 for row in rows)
  said = capsys.readouterr().out
  assert f'{rows[0]["changed_rate"]:.1%} (' in said and 'held-out' in said
  with Image.open(tmp_path / 'out' / 'sheet.png') as sheet:
    assert sheet.size == (8 * 4 * 16, 8 * 5 * 8)  # before, and of both methods two edits
  for seeds in ('5-2', 'many', '-3'):
    with pytest.raises(UsageError, match='--seeds'):
      call(text_study, f'--seeds={seeds}', *args)
