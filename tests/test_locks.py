"""Locks: one holder, named; file systems and systems that have none."""

import errno
import fcntl
import logging
import os
import subprocess
import sys

import pytest

from sg2jax import faults, locks
from tests.runs import ROOT


@pytest.mark.smoke
def test_a_folder_in_use_names_its_process(tmp_path):
  said = f'--out=.*run is in use by process {os.getpid()} on'
  with locks.locked(tmp_path / 'run', 'out'):
    with pytest.raises(faults.UsageError, match=said), locks.locked(tmp_path / 'run', 'out'):
      pass
  file = tmp_path / 'run/.lock'
  file.write_text('a longer text than the new one ' * 9)  # of a process that was killed
  with locks.locked(tmp_path / 'run'):  # it was released
    assert file.read_text().startswith(f'{os.getpid()} on ') and len(file.read_text()) < 100
  (tmp_path / 'file').write_text('')
  with pytest.raises(faults.WriteError), locks.locked(tmp_path / 'file'):
    pass


def refuse(monkeypatch, number):
  def flock(*_):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, 'flock', flock)


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_not_one_in_use(tmp_path, monkeypatch, caplog, number):
  refuse(monkeypatch, number)
  logging.getLogger('absl').propagate = True
  with caplog.at_level('WARNING'), locks.locked(tmp_path):
    assert 'no locks' in caplog.text and os.strerror(number) in caplog.text


@pytest.mark.parametrize('number', [errno.EAGAIN, errno.EACCES])
def test_some_systems_say_otherwise_that_it_is_held(tmp_path, monkeypatch, number):
  refuse(monkeypatch, number)
  with pytest.raises(faults.UsageError, match='in use'), locks.locked(tmp_path):
    pass


def test_windows_is_told_in_one_line(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'fcntl', None)
  with pytest.raises(faults.UsageError, match='Linux or macOS only'), locks.locked(tmp_path / 'a'):
    pass
  assert not list(tmp_path.iterdir())


def test_all_can_be_imported_without_fcntl():
  code = (
    'import sys; sys.modules["fcntl"] = None; import sg2jax.main, sg2jax.sampler, '
    'sg2jax.evaluation.measure, sg2jax.tools.generate, sg2jax.tools.project, sg2jax.tools.prepare'
  )
  env = os.environ | {'JAX_PLATFORMS': 'cpu'}
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT, env=env)
