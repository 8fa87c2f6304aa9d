"""Fixtures shared by the test files, and how they compile."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

# Its flags have to be there before a flagsaver is (tests/runs.py), which takes others away again.
import grain  # noqa: F401
import jax
import pytest

# Of the files that take longest: first, so that neither worker is left with one at the end.
LONG = (
  'test_reference',
  'test_train',
  'test_processes',
  'test_models',
  'test_growing',
  'test_bfloat16',
  'test_devices',
)
CACHE = 'JAX_COMPILATION_CACHE_DIR'
SECONDS = 0.3  # what compiles faster isn't worth a file


def pytest_configure(config):
  """What is compiled once is compiled for the session: for both workers and for their processes.

  They inherit the environment of the first process, which alone makes the folder and removes it.
  """
  if not hasattr(config, 'workerinput'):
    session = tempfile.mkdtemp(prefix='sg2jax-tests-')
    config.add_cleanup(lambda: shutil.rmtree(session, ignore_errors=True))
    os.environ[CACHE] = session
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = str(SECONDS)
    if 'XLA_FLAGS' not in os.environ:
      # Found out by another process: a flag that XLA lacks is fatal.
      code = 'from tests.runs import xla_flags; print(xla_flags())'
      os.environ['XLA_FLAGS'] = subprocess.run(
        [sys.executable, '-c', code],
        cwd=config.rootpath,
        capture_output=True,
        text=True,
        check=True,
      ).stdout.strip()
  # JAX read the environment when this file imported it.
  jax.config.update('jax_compilation_cache_dir', os.environ[CACHE])
  jax.config.update('jax_persistent_cache_min_compile_time_secs', SECONDS)


def pytest_collection_modifyitems(items):
  """Long files first; files stay together, with what their fixtures made."""
  items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture
def quick_compile():
  """Little optimization: for tests that compile far longer than they run."""
  name = 'jax_disable_most_optimizations'
  before = jax.config.values[name]
  jax.config.update(name, True)
  yield
  jax.config.update(name, before)


@pytest.fixture(scope='session')
def home(tmp_path_factory) -> pathlib.Path:
  """Data set and a package `tensorflow` that fails when imported, shared by all runs."""
  home = tmp_path_factory.mktemp('home')
  (home / 'poison').mkdir()
  (home / 'poison' / 'tensorflow.py').write_text('raise RuntimeError("TensorFlow was imported")\n')
  return home
