"""Passes over images: whole or not there, the same whatever the batch, damaged ones not used."""

import logging
import resource

import numpy as np
import pytest

from sg2jax.evaluation import passes
from sg2jax.faults import WriteError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """The folder of cached passes, which is empty."""
  monkeypatch.setenv('SG2JAX_CACHE', str(tmp_path))
  return tmp_path / 'reals'


def known_pass(asked=None, total=300, fail_at=None):
  """A Pass with known features; appends to `asked` what is computed; dies at an image."""

  def compute(first, n, _):
    if fail_at is not None and first >= fail_at:
      raise KeyboardInterrupt
    if asked is not None:
      asked.append(first)
    return {'rows': np.float32(np.arange(first, first + n)[:, None] * [1, 0.1] + 0.3)}

  return passes.Pass('a test', total, compute, {'images': 'test', 'total': total})


class AfterLooks:
  """A signal that comes after it was asked for a number of times."""

  def __init__(self, looks):
    self.looks = looks

  def __bool__(self):
    self.looks -= 1
    return self.looks < 0


@pytest.mark.smoke
@pytest.mark.parametrize('only_moments', [False, True])
def test_a_pass_is_the_same_whatever_the_batch_and_is_computed_once(cache, only_moments):
  def content(job, batch):
    found = passes.cached(job, only_moments, batch)
    return [x.tobytes() for x in map(np.asarray, found)]

  whole = passes.rows(passes.run(known_pass(total=2500), 2500))['rows']
  assert whole.shape == (2500, 2) and whole.dtype == np.float32 and not whole.flags.writeable
  np.testing.assert_allclose(whole[:, 0], np.arange(2500) + 0.3, rtol=1e-6)
  expected = passes.moments([whole]) if only_moments else whole
  asked = []
  job = known_pass(asked, 2500)
  assert content(job, 77) == [x.tobytes() for x in map(np.asarray, expected)]
  assert asked == list(range(0, 2500, 77))
  assert len(list(cache.iterdir())) == 1 and len(list(cache.parent.iterdir())) == 1
  asked.clear()
  assert content(job, 64) == content(job, 77) and not asked


def test_a_pass_that_is_stopped_leaves_nothing_and_is_begun_again(cache):
  asked = []
  with pytest.raises(passes.Stopped):
    passes.cached(known_pass(asked), False, 20, AfterLooks(5))
  assert len(asked) == 5
  with pytest.raises(KeyboardInterrupt):
    passes.cached(known_pass(asked, fail_at=200), True, 20)
  assert not list(cache.parent.iterdir())
  asked.clear()
  assert len(passes.cached(known_pass(asked), False, 20)) == 300 and asked[0] == 0


@pytest.mark.parametrize('only_moments', [False, True])
@pytest.mark.parametrize('damage', ['truncated', 'flipped', 'missing'])
def test_a_damaged_pass_is_computed_anew(cache, caplog, damage, only_moments):
  whole = passes.cached(known_pass(), only_moments, 64)
  (path,) = cache.iterdir()
  before = path.read_bytes()
  if damage == 'truncated':
    path.write_bytes(before[:-100])
  elif damage == 'flipped':
    path.write_bytes(before[:-100] + bytes([before[-100] ^ 1]) + before[-99:])
  else:
    path.unlink()
  asked = []
  logging.getLogger('absl').propagate = True
  with caplog.at_level('WARNING'):
    again = passes.cached(known_pass(asked), only_moments, 64)
  for x, y in zip(again, whole):
    np.testing.assert_array_equal(x, y)
  assert asked and (damage == 'missing' or f'{path} is damaged' in caplog.text)
  assert [path.read_bytes() for path in cache.iterdir()] == [before]


@pytest.mark.parametrize('only_moments', [False, True])
def test_a_full_disk_is_an_error(cache, only_moments):
  """What has no room is said, however little it is that is lacking; nothing is left."""
  sizes = [2300, 2500] if not only_moments else [700]  # of 2400 bytes of rows; with header; Moments
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  for size in sizes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
      with pytest.raises(WriteError, match='cannot write .*: File too large; .*bytes are free'):
        passes.cached(known_pass(), only_moments, 300)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [path for path in cache.parent.rglob('*') if path.is_file()]
  assert len(passes.cached(known_pass(), False, 300)) == 300


def test_files_of_another_format_are_not_opened(monkeypatch):
  key = known_pass().key
  monkeypatch.setattr(passes, 'FORMAT', passes.FORMAT - 1)
  assert known_pass().key != key
