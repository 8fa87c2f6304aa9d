"""Fixtures shared by the test files."""
import jax
import pytest


@pytest.fixture
def quick_compile():
  """Little optimization: for tests that compile far longer than they run."""
  name = 'jax_disable_most_optimizations'
  before = jax.config.values[name]
  jax.config.update(name, True)
  yield
  jax.config.update(name, before)
