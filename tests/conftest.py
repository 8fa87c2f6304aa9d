"""Fixtures shared by the test files, and how they compile."""

import os
import subprocess
import sys

import jax
import pytest

# Of the files that take minutes: first, so that neither worker is left with one at the end.
LONG = ('test_train', 'test_growing', 'test_reference', 'test_devices', 'test_models')


def pytest_configure(config):
  """Compiles all as tests/runs.py does, in half the time; found out by another process: a flag that
  XLA lacks is fatal.
  """
  if 'XLA_FLAGS' not in os.environ and not hasattr(config, 'workerinput'):
    code = 'from tests.runs import xla_flags; print(xla_flags())'
    os.environ['XLA_FLAGS'] = subprocess.run(
      [sys.executable, '-c', code], cwd=config.rootpath, capture_output=True, text=True, check=True
    ).stdout.strip()


def pytest_collection_modifyitems(items):
  """Long files first; files stay together."""
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
def home(tmp_path_factory):
  """Data set, compile cache and a package `tensorflow` that fails when imported, shared by all
  runs.
  """
  home = tmp_path_factory.mktemp('home')
  (home / 'poison').mkdir()
  (home / 'poison' / 'tensorflow.py').write_text('raise RuntimeError("TensorFlow was imported")\n')
  return home
