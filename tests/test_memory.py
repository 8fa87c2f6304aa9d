"""The allocator that keeps its pages: what it is told, and that it does so."""

import platform
import subprocess
import sys

import pytest

from sg2jax import memory

# The setting is for good, and so of another process. Prints the pages that the kernel had to supply
# for 64 MiB that were there, touched and freed, before.
FAULTS = """
import ctypes, resource, sys
from sg2jax import memory
if sys.argv[1] == 'keep':
  assert memory.keep_pages('cpu')
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
size = 64 * 2**20
for _ in range(2):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  array = libc.malloc(ctypes.c_size_t(size))
  ctypes.memset(array, 1, size)
  libc.free(array)
  faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def test_keeps_nothing_on_other_backends():
  assert not memory.keep_pages('gpu')
  assert not memory.keep_pages('tpu')


def test_keeps_nothing_of_other_c_libraries(monkeypatch):
  monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
  assert not memory.keep_pages('cpu')


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='mallopt is of glibc')
def test_pages_of_freed_arrays_are_kept():
  def faults(mode):
    command = [sys.executable, '-c', FAULTS, mode]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

  assert faults('keep') < 10 < faults('drop')  # 16,384 pages, or 32 where they are huge
