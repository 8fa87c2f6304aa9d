"""The largest batch, or round of one, that a device's memory holds.

Memory is nearly affine in the images of a round. So a guess is made from two sizes that were
compiled, and what is answered was compiled: it fits, and the next larger one doesn't.
"""

import bisect
from collections.abc import Callable, Sequence
import copy
import dataclasses
import math

from sg2jax import configurations
from sg2jax.planning.compile import Steps

MOST = 1024  # images a device, of what is tried


def largest(compiled: Steps, figures: dict, limit: int | None, say: Callable) -> list[dict]:
  """Of `batch` and of `microbatch`, as configured and with remat: the largest that fits.

  Only the step that needs most is compiled at each size, and the others at the answer.

  Args:
    compiled: the steps as configured.
    figures: of these, {step: figures}.
    limit: bytes of a device.
    say: called with a line of progress.

  Returns:
    [{'field': 'batch' or 'microbatch', 'remat': bool, 'value': int or None, 'peak_bytes',
    'is_last': bool}]; value None: not even the smallest fits; is_last: no larger one was tried.
  """
  if not limit:
    return []
  found = []
  for remat in (False, True):  # as it is configured, and of all resolutions
    for field in ('batch', 'microbatch'):
      config = copy.deepcopy(compiled.config)
      # Of the stage that is planned, whatever a schedule of growth says of others.
      config.batch = compiled.steps.stage.batch
      config.grow.batch = ()
      if remat:
        config.g.remat = config.d.remat = configurations.ALL_RESOLUTIONS
      of = dataclasses.replace(compiled, config=config)
      worst = max(figures, key=lambda name: figures[name]['peak_bytes'])
      size = _largest(of, field, list(figures), worst, limit, say)
      found.append({'field': field, 'remat': remat} | size)
  return found


def line(found: dict) -> str:
  """One of the results of `largest`, for a person."""
  remat = f' with g.remat and d.remat of {configurations.ALL_RESOLUTIONS}' if found['remat'] else ''
  if found['value'] is None:
    return f'no {found["field"]} fits{remat}'
  size = f'{found["peak_bytes"] / 2**30:.2f} GiB'
  more = ' or more' if found['field'] == 'batch' and found['is_last'] else ''
  return f'the largest {found["field"]} that fits{remat}: {found["value"]}{more} ({size})'


def _largest(compiled, field, names, worst, limit, say):
  """value, peak_bytes and is_last of `largest`, for one field. worst: the step to begin with."""
  sizes = candidates(compiled.config, field, len(compiled.devices))
  deciding = [worst]

  def peak(size):
    config = copy.deepcopy(compiled.config)
    config[field] = size
    if field == 'batch':
      config.microbatch = 0
    most = 0
    for name in deciding:
      of = dataclasses.replace(compiled, config=config)
      most = max(most, of.figures(name)['peak_bytes'])
    say(f'{field} {size}, {", ".join(deciding)}: {most / 2**30:.2f} GiB')
    return most

  # As configured, it has been compiled already.
  configured = bisect.bisect_left(sizes, compiled.config[field] or compiled.config.batch)
  index = search(sizes, peak, limit, configured)
  deciding = names  # another step may need more at this size
  if index is not None and peak(sizes[index]) > limit:
    index = search(sizes[:index], peak, limit)
  if index is None:
    return {'value': None, 'peak_bytes': None, 'is_last': False}
  size = sizes[index]
  return {'value': size, 'peak_bytes': peak(size), 'is_last': size == sizes[-1]}


def candidates(config: configurations.Config, field: str, count: int) -> Sequence[int]:
  """The sizes, rising, that `checks` allow on `count` devices; field: batch or microbatch."""
  unit = count
  if configurations.variant(config, 'd').mbstd_num_channels:
    unit = math.lcm(unit, config.d.mbstd_group_size)
  if config.loss.pl_weight:
    unit = math.lcm(unit, config.loss.pl_shrink)
  if field == 'batch':
    return range(unit, MOST * count + 1, unit)
  return [size for size in range(unit, config.batch + 1, unit) if config.batch % size == 0]


def search(
  sizes: Sequence[int], peak: Callable[[int], float], limit: float, start: int = 1
) -> int | None:
  """Index of a size with peak(size) <= limit < peak(the next); None if the smallest is too large.

  Args:
    sizes: rising.
    peak: nearly affine in the size, give or take some percent; costly.
    limit: of it.
    start: index of the size to look at after the smallest.
  """
  low, high = -1, len(sizes)  # fits, does not
  known = {}
  guess = 0
  while high - low > 1:
    known[guess] = peak(sizes[guess])
    width = high - low
    if known[guess] <= limit:
      low = guess
    else:
      high = guess
    if low < 0:
      break
    if len(known) == 1:
      guess = start
    elif high in known and high - low > width / 2 and len(known) > 4:
      guess = (low + high) // 2  # a line has not brought it nearer
    else:
      guess = _where(sizes, known, low, high, limit)
    guess = min(max(guess, low + 1), high - 1)
  return None if low < 0 else low


def _where(sizes, known, low, high, limit):
  """Index of the largest size below the limit by a line: through what fits and what does not.

  As long as all fit, through the smallest and the largest of them.
  """
  first, last = (low, high) if high in known else (0, low)
  slope = (known[last] - known[first]) / (sizes[last] - sizes[first])
  if slope <= 0:
    return high - 1
  return bisect.bisect_right(sizes, sizes[first] + (limit - known[first]) / slope) - 1
