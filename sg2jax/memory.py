"""The C library's allocator, from which XLA:CPU has the arrays of every step."""

import ctypes
import platform

# Parameters of mallopt(3) by their numbers in malloc.h, and values: nothing is mapped by itself,
# nothing is given back below 2 GB at the top of the heap, which grows by 64 MiB.
KEEP = {-4: 0, -1: 2**31 - 1, -2: 64 * 2**20}  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD


def keep_pages(backend: str) -> bool:
  """Makes glibc keep the pages of arrays that are freed, where `backend` is 'cpu'.

  Else each large array of a step is mapped anew, and the kernel clears its pages as they are
  touched: 9 % of the time of a step at 256 px (docs/performance.md). To be called before training.

  Returns:
    Whether it did so: on Linux with glibc only, and for good.
  """
  if backend != 'cpu' or platform.libc_ver()[0] != 'glibc':
    return False
  libc = ctypes.CDLL(None)
  return all([libc.mallopt(parameter, value) for parameter, value in KEEP.items()])
