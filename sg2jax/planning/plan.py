"""A plan: memory, time, images/s and days of a run, of what compilers say of its steps."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from sg2jax import build
from sg2jax.planning import largest as largest_lib
from sg2jax.planning.compile import Steps
from sg2jax.planning.devices import Target
from sg2jax.steps import TrainSteps

# Seconds of a link that a device's bytes of a collective take at least, times the bandwidth: an
# all-reduce sends all but a part twice.
TIMES_SENT = {'all-reduce': 2}


def lazily(values: dict[str, float], steps: TrainSteps) -> float:
  """What a minibatch takes, of what each step does: regularizers run every few minibatches only."""
  every = {'g': 1, 'd': 1, 'g_reg': steps.pl_interval, 'd_reg': steps.r1_interval}
  return sum(value / every[name] for name, value in values.items())


def make(
  config: ConfigDict, target: Target, devices: list[Any], search: bool, say: Callable
) -> dict:
  """All figures of a plan, as JSON values; what a compiler doesn't say is None.

  Args:
    config: the configuration, checked.
    target: of what kind the devices are.
    devices: to compile for.
    search: whether to look for the largest batch, which compiles more.
    say: called with a line of progress for each step.
  """
  compiled = Steps(config, target, devices)
  steps = compiled.steps
  figures = {name: _told(compiled, name, say) for name in steps.phases(0)}
  limit = target.memory(devices)
  peaks = [found['peak_bytes'] for found in figures.values()]
  whole = {
    'device': target.name,
    'kind': devices[0].device_kind,
    'devices': len(devices),
    'resolution': list(build.resolution(config)),
    'stage': 'last of growth' if steps.growth else 'only',
    'batch': steps.stage.batch,
    'microbatch': build.microbatch(config, steps.stage.batch),
    'steps': figures,
    'peak_bytes': max(peaks),
    'limit_bytes': limit,
    'fits': max(peaks) <= limit if limit else None,
    'flop_per_image': _per_image('flop', figures, steps, len(devices)),
    'bytes_per_image': _per_image('bytes', figures, steps, len(devices)),
    'seconds_collectives': _link_seconds(figures, steps, target),
    **rates('roofline', config, figures, steps, len(devices)),
    **rates('model', config, figures, steps, len(devices)),
  }
  whole['images_per_sec'] = whole['images_per_sec_roofline']
  whole['largest'] = largest_lib.largest(compiled, figures, limit, say) if search else None
  return whole


def _told(compiled, name, say):
  """`figures` of a step, with a line of progress."""
  found = compiled.figures(name)
  seconds = found.pop('seconds_compiling')
  how = f'compiled in {seconds:.0f} s' if seconds else 'known already'
  say(f'{name}: {how}, {found["peak_bytes"] / 2**30:.2f} GiB')
  return found


def _lazy(field, figures, steps):
  """A field of the steps, lazily summed; None if a compiler doesn't say it."""
  values = {name: found[field] for name, found in figures.items()}
  return None if None in values.values() else lazily(values, steps)


def _per_image(field, figures, steps, count):
  """A field over all devices, by image."""
  value = _lazy(field, figures, steps)
  return None if value is None else value * count / steps.stage.batch


def rates(by: str, config: ConfigDict, figures: dict, steps: TrainSteps, count: int) -> dict:
  """What follows from seconds by 'roofline' or 'model', of `count` devices; None: not known."""
  seconds = _lazy(f'seconds_{by}', figures, steps)
  names = ('seconds_per_image', 'images_per_sec', 'days', 'device_hours', 'laziness')
  if seconds is None:
    return {f'{name}_{by}': None for name in names}
  an_image = seconds / steps.stage.batch
  run = an_image * config.total_kimg * 1000
  eager = sum(found[f'seconds_{by}'] for found in figures.values())
  values = (an_image, 1 / an_image, run / 86_400, run / 3600 * count, eager / seconds)
  return {f'{name}_{by}': value for name, value in zip(names, values, strict=True)}


def _link_seconds(figures, steps, target):
  """Seconds a minibatch that collectives take at least, were nothing else done; None: unknown."""
  link = target.data.get('link_bytes_per_sec')
  if not link or any(found['collectives'] is None for found in figures.values()):
    return None
  sent = {
    name: sum(x['bytes'] * TIMES_SENT.get(op, 1) for op, x in found['collectives'].items())
    for name, found in figures.items()
  }
  return lazily(sent, steps) / link


# ---- for a person


def table(config: ConfigDict, plan: dict) -> str:
  """The figures of `make`, for a person."""
  size = 'x'.join(map(str, plan['resolution']))
  head = f'{plan["devices"]} x {plan["kind"]}, {size}, batch {plan["batch"]}'
  if plan['microbatch'] != plan['batch']:
    head += f' in rounds of {plan["microbatch"]}'
  if plan['stage'] != 'only':
    head += ', the last stage of growth'
  columns = '{:<7}{:>11}{:>11}{:>11}{:>10}{:>9}{:>9}{:>12}{:>12}{:>13}'
  lines = [
    head,
    '',
    columns.format(
      'a step',
      'arguments',
      'temporary',
      'peak GiB',
      'TFLOP',
      'GB',
      'kernels',
      'roofline',
      'model',
      'collectives',
    ),  # fmt: skip
  ]
  for name, s in plan['steps'].items():
    sizes = [_number(s[k], 2**30, 2) for k in ('argument_bytes', 'temp_bytes', 'peak_bytes')]
    work = [_number(s['flop'], 1e12, 2), _number(s['bytes'], 1e9, 1), _number(s['kernels'], 1, 0)]
    times = [_number(s[f'seconds_{by}'], 1e-3, 1, ' ms') for by in ('roofline', 'model')]
    lines.append(columns.format(name, *sizes, *work, *times, _collectives(s['collectives'])))
  return '\n'.join([*lines, '', *_summary(config, plan)])


def _number(value, unit, digits, suffix=''):
  """A value in a unit; '-' if it isn't known."""
  return '-' if value is None else f'{value / unit:.{digits}f}{suffix}'


def _collectives(found):
  """Number and bytes, of all kinds together."""
  if not found:
    return '-'
  size = sum(x['bytes'] for x in found.values())
  return f'{sum(x["count"] for x in found.values())}: {size / 1e6:.0f} MB'


def _summary(config, plan):
  """Lines on the run as a whole."""
  peak = f'{plan["peak_bytes"] / 2**30:.2f}'
  if plan['limit_bytes'] is None:
    yield f'memory: {peak} GiB a device; what it has is not known'
  else:
    verdict = 'fits' if plan['fits'] else 'DOES NOT FIT'
    yield f'memory: {peak} of {plan["limit_bytes"] / 2**30:.2f} GiB a device: {verdict}'
  refused = sorted({s['refused'] for s in plan['steps'].values() if s.get('refused')})
  yield from (f'the compiler: {text}' for text in refused)
  if plan['flop_per_image'] is not None:
    yield (
      f'an image, lazily: {_number(plan["flop_per_image"], 1e9, 0)} GFLOP, '
      f'{_number(plan["bytes_per_image"], 1e6, 0)} MB'
    )
  for by, what in (
    ('roofline', 'at best, by the roofline of these kernels'),
    ('model', "by the compiler's own model"),
  ):
    if plan[f'images_per_sec_{by}'] is not None:
      yield (
        f'{what}: {plan[f"images_per_sec_{by}"]:.1f} images/s; {config.total_kimg:g} kimg take '
        f'{plan[f"days_{by}"]:.2f} days, {plan[f"device_hours_{by}"]:.0f} device-hours; '
        f'laziness pays {plan[f"laziness_{by}"]:.2f}x'
      )
  yield from _left_out(plan)
  if plan['seconds_collectives']:
    yield (
      f'collectives of a minibatch: at least {plan["seconds_collectives"] * 1e3:.1f} ms, in part '
      'beside the rest'
    )
  for found in plan['largest'] or ():
    yield largest_lib.line(found)


def _left_out(plan):
  """Warnings of what times don't have in them."""
  for field, text in (
    (
      'kernels_unestimated',
      "by the compiler's own model, which has no estimate of these kernels, as of gathers and "
      'scatters, is a lower bound',
    ),
    ('loops_unknown', 'is a lower bound: these loops are counted as if they ran once'),
  ):
    counts = [f'{name} {s[field]}' for name, s in plan['steps'].items() if s[field]]
    if counts:
      yield f'warning: the time {text}: {", ".join(counts)}'
