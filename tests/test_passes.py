"""Passes over images: whole or not there, the same whatever the batch, damaged ones set aside."""

import logging
import os
import shutil

import numpy as np
import pytest

from sg2jax import files
from sg2jax.evaluation import passes
from sg2jax.faults import WriteError


def known_pass(asked=None, total=300, fail_at=None):
  """A Pass with known features; appends to `asked` what is computed; dies at an image."""

  def compute(first, n, _):
    if fail_at is not None and first >= fail_at:
      raise KeyboardInterrupt
    if asked is not None:
      asked.append(first)
    x = np.float32(np.arange(first, first + n)[:, None] * [1, 0.1] + 0.3)
    return {'rows': x, 'sum': x**2}

  return passes.Pass({'images': 'test', 'total': total}, total, compute, ('sum',))


def content(outputs):
  """Bytes of all that a pass found."""
  moments = outputs['sum']
  arrays = outputs['rows'], moments.mean, moments.cov()
  return [moments.count, *(x.tobytes() for x in arrays)]


def names(folder):
  return sorted(path.name for path in folder.iterdir())


class AfterLooks:
  """A signal that comes after it was asked for a number of times."""

  def __init__(self, looks):
    self.looks = looks

  def __bool__(self):
    self.looks -= 1
    return self.looks < 0


@pytest.mark.smoke
def test_a_pass_is_the_same_whatever_the_batch_and_is_computed_once(tmp_path):
  whole = passes.run(known_pass(total=2500), tmp_path / 'a', 2500)
  assert whole['rows'].shape == (2500, 2) and whole['rows'].dtype == np.float32
  np.testing.assert_allclose(whole['rows'][:, 0], np.arange(2500) + 0.3, rtol=1e-6)
  asked = []
  job = known_pass(asked, 2500)
  assert content(passes.run(job, tmp_path / 'b', 77)) == content(whole)
  assert asked == list(range(0, 2500, 77))
  assert names(tmp_path / 'b') == [job.key, f'{job.key}.lock']
  asked.clear()
  assert content(passes.run(job, tmp_path / 'b', 64)) == content(whole) and not asked


@pytest.mark.parametrize('how', ['signal', 'error', 'killed'])
def test_a_pass_that_is_not_whole_is_dropped_and_begun_again(tmp_path, how):
  asked = []
  job = known_pass(asked)
  part = tmp_path / f'{job.key}.part'
  if how == 'signal':
    with pytest.raises(passes.Stopped):
      passes.run(job, tmp_path, 20, AfterLooks(5))
    assert len(asked) == 5
  elif how == 'error':
    with pytest.raises(KeyboardInterrupt):
      passes.run(known_pass(asked, fail_at=200), tmp_path, 20)
  else:  # by SIGKILL: what it had written is still there
    part.mkdir()
    (part / 'rows.npy').write_bytes(b'half')
    (part / 'other.npy').write_bytes(b'half')
  if how != 'killed':
    assert names(tmp_path) == [f'{job.key}.lock']
  asked.clear()
  outputs = passes.run(job, tmp_path, 20)
  assert asked[0] == 0 and set(outputs) == {'rows', 'sum'} and not part.exists()
  assert content(outputs) == content(passes.run(known_pass(), tmp_path / 'whole', 300))


@pytest.mark.parametrize('damage', ['truncated', 'flipped', 'missing', 'foreign', 'torn'])
def test_a_damaged_or_foreign_pass_is_set_aside(tmp_path, caplog, damage):
  job = known_pass()
  whole = content(passes.run(job, tmp_path, 64))
  rows, about = (tmp_path / job.key / name for name in ('rows.npy', 'about.json'))
  before = rows.read_bytes()
  if damage == 'truncated':
    rows.write_bytes(before[:-100])
  elif damage == 'flipped':
    rows.write_bytes(before[:-100] + bytes([before[-100] ^ 1]) + before[-99:])
  elif damage == 'missing':
    rows.unlink()
  elif damage == 'foreign':  # of another data set, copied to where these should be
    about.write_text(about.read_text().replace('"test"', '"others"'))
  else:
    about.write_text(about.read_text()[:50])
  asked = []
  logging.getLogger('absl').propagate = True
  with caplog.at_level('WARNING'):
    assert content(passes.run(known_pass(asked), tmp_path, 64)) == whole
  assert asked and 'set aside' in caplog.text and list(tmp_path.glob(f'{job.key}.damaged-*'))


def test_a_full_disk_is_an_error_before_anything_is_computed_for_nothing(tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(files, 'free_bytes', lambda path: 300 * 8 - 1)
  with pytest.raises(WriteError, match='rows.npy: No space left.*2,399 bytes are free'):
    passes.run(known_pass(asked), tmp_path, 50)
  assert len(asked) <= 2 and names(tmp_path) == [f'{known_pass().key}.lock']
  monkeypatch.setattr(files, 'free_bytes', lambda path: 300 * 8)
  assert passes.run(known_pass(asked), tmp_path, 50)['sum'].count == 300


def test_a_disk_that_fills_up_meanwhile_is_an_error(tmp_path):
  """/dev/full takes no byte: what is written is reported, not buffered until it is too late."""
  if not os.path.exists('/dev/full'):
    pytest.skip('this system has no /dev/full')
  folder = tmp_path / known_pass().key

  def batches():
    yield {'rows': np.zeros((1000, 2000), np.float32)}

  real = passes._new_rows
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(passes, '_new_rows', lambda path, total, x: real('/dev/full', 0, x))
    with pytest.raises(WriteError, match='No space left'):
      passes._write(folder, passes.Pass({}, 1000, None), batches())
  assert not list(tmp_path.iterdir())


def test_a_pass_belongs_to_one_process_and_waiting_for_it_can_be_ended(tmp_path, capsys):
  job = known_pass()
  folder = tmp_path / job.key
  with passes.hold(tmp_path / f'{job.key}.lock', folder, ()):
    with pytest.raises(passes.Stopped):
      passes.run(job, tmp_path, 64, AfterLooks(2))
  assert f'waiting for another process that computes {folder}' in capsys.readouterr().err
  outputs = passes.run(job, tmp_path, 64)
  shutil.rmtree(tmp_path)
  assert len(content(outputs)) == 4  # what was read can still be used


def test_files_of_another_format_are_not_opened(monkeypatch):
  key = known_pass().key
  monkeypatch.setattr(passes, 'FORMAT', passes.FORMAT - 1)
  assert known_pass().key != key
