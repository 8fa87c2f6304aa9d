"""The report of `prepare` for people: counts, reasons, classes, warnings."""

import collections
from collections.abc import Iterator
import re

from sg2jax.data import wording

_LISTED = 20  # files, and kinds of reasons
_CLASSES = 40  # of more there is the report
# Reasons that begin so are counted together, with a hint where there is one.
_KINDS = {
  'too small': '--allow_upscale enlarges them; a smaller --resolution takes more of them',
  'wrong aspect': '',
  'truncated': '',
  'corrupt zip member': '',
  'corrupt': '',
  'animated or multi-page': '--animation=first takes the first picture',
  'decompression bomb': '--max_pixels takes larger ones',
  'no label': '',
  'two labels': '',
  'unreadable folder': '',
  'unreadable': '',
  'link to a folder': '',
}


def peak_warnings(peaks: list[int], max_value: int) -> list[str]:
  """What the largest values of pictures with 16 bits say of their range."""
  top = max(peaks, default=0)
  if max_value and top > max_value:
    above = wording.count(sum(peak > max_value for peak in peaks), 'picture')
    return [f'{above} with values above --max_value={max_value}, up to {top}: these are white']
  if peaks and not max_value and top <= 4095:
    bits = max(top.bit_length(), 8)
    return [
      f'{wording.count(len(peaks), "picture")} of 16 bits without a value above {top} of 65535, '
      f'nearly black; --max_value={2**bits - 1} makes that value white (of grey; convert colour to '
      '8 bits first)'
    ]
  return []


def class_warnings(classes: dict[str, int]) -> list[str]:
  """What is odd about {class: images}; {} without classes."""
  empty = [name for name, count in classes.items() if not count]
  warnings = []
  if empty:
    warnings.append(f'never drawn, as no picture has this class: {wording.enumerate_names(empty)}')
  if len(empty) == len(classes) - 1:
    only = max(classes, key=classes.get)
    warnings.append(f'there is only one class with pictures, {only}: it teaches nothing')
  return warnings


def lines(report: dict) -> Iterator[str]:
  """The report, line by line."""
  unusable = report['unusable']
  yield f'{report["images"]} images, {len(unusable)} unusable files'
  # ---- reasons: 70,000 files may have one
  kinds = collections.Counter(_kind(entry['reason']) for entry in unusable)
  for kind, count in kinds.most_common(_LISTED):
    hint = _KINDS.get(kind, '')
    if report['fit'] == 'wide':  # which never enlarges
      hint = hint.removeprefix('--allow_upscale enlarges them; ')
    yield f'  {count} x {kind}' + (f' ({hint})' if hint else '')
  for entry in unusable[:_LISTED]:
    yield f'  {entry["file"]}: {entry["reason"]}'
  if len(unusable) > _LISTED:
    yield f'  ... and {len(unusable) - _LISTED} more'
  # ---- labels
  if 'classes' in report:
    yield from _class_lines(report['classes'])
  if 'components' in report:
    counts = [f'{i}: {count}' for i, count in enumerate(report['components'])]
    more = ' ...' if len(counts) > _CLASSES else ''
    yield (
      f'labels are vectors of {len(counts)} components, {report["vectors"]} different ones; images '
      f'in which a component is not 0: {", ".join(counts[:_CLASSES])}{more}'
    )
  for warning in report['warnings']:
    yield f'warning: {warning}'


def _class_lines(classes: dict[str, int]) -> Iterator[str]:
  is_named = list(classes) != [str(i) for i in range(len(classes))]
  order = ' (their names in natural order: numbers by value, then text)' if is_named else ''
  yield f'{wording.count(len(classes), "class")}, by index{order}:'
  for i, (name, count) in enumerate(list(classes.items())[:_CLASSES]):
    shown = f'{name}, ' if is_named else ''
    yield f'  {i}: {shown}{wording.count(count, "image")}'
  if len(classes) > _CLASSES:
    yield f'  ... and {len(classes) - _CLASSES} more, see the report'


def _kind(reason: str) -> str:
  for kind in _KINDS:  # 'corrupt zip member' before 'corrupt'
    if reason.startswith(kind):
      return kind
  short = reason.partition(';')[0]
  return short if short.startswith('wrong format') else re.sub(r'\d+', 'N', short)
