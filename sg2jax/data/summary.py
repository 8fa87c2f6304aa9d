"""What `prepare` found, for people: counts, reasons, classes, warnings."""

import collections
import re

import numpy as np

from sg2jax.data import classes, labels

_LISTED = 20  # files, and
_CLASSES = 40  # classes, of more there is the report
_KINDS = (
  'too small',
  'wrong aspect',
  'truncated',
  'corrupt',
  'corrupt zip member',
  'animated or multi-page',
  'decompression bomb',
  'no label',
  'unreadable',
  'unreadable folder',
  'link to a folder',
  'two labels',
)


def count(assigned: classes.Assigned, used: list) -> labels.Labels:
  """The labels of the pictures that were used."""
  if not assigned.one_hot:
    return labels.Labels.of_vectors(np.array(used, np.float32))
  return labels.Labels.of_classes(assigned.names, np.bincount(used, minlength=assigned.c_dim))


def of_labels(assigned: classes.Assigned, used: list) -> tuple[dict, list[str]]:
  """Entries of the report on the labels of the pictures that were used, and warnings."""
  if not assigned.one_hot:
    vectors = np.array(used, np.float32)  # [N,c_dim]
    return {
      'components': np.count_nonzero(vectors, axis=0).tolist(),
      'vectors': len(np.unique(vectors, axis=0)),
    }, []
  counts = np.bincount(used, minlength=assigned.c_dim).tolist()
  names = assigned.names or [str(i) for i in range(len(counts))]
  empty = [i for i, n in enumerate(counts) if not n]
  warnings = []
  if empty:
    named = (
      classes.ranges(empty) if not assigned.names else classes.enumerated([names[i] for i in empty])
    )
    plural = ('es', 'have', 'they are') if len(empty) > 1 else ('', 'has', 'it is')
    warnings.append(f'class{plural[0]} {named} {plural[1]} no picture: {plural[2]} never drawn')
  if len(empty) == len(counts) - 1:
    warnings.append(
      f'there is only one class with pictures, {names[int(np.argmax(counts))]}: it teaches nothing'
    )
  return {'classes': dict(zip(names, counts, strict=True))}, warnings


def lines(report: dict) -> str:
  """The report for people: the counts, unusable files by kind, the first of them with their
  reasons, classes, warnings.
  """
  bad = report['unusable']
  out = [f'{report["images"]} images, {len(bad)} unusable files']
  kinds = collections.Counter(_kind(e['reason']) for e in bad)
  out += [f'  {n} x {kind}{_hint(kind, report)}' for kind, n in kinds.most_common(_LISTED)]
  out += [f'  {e["file"]}: {e["reason"]}' for e in bad[:_LISTED]]
  if len(bad) > _LISTED:
    out.append(f'  ... and {len(bad) - _LISTED} more')
  out += _classes(report['classes']) if 'classes' in report else []
  if 'components' in report:
    n = len(report['components'])
    some = ', '.join(f'{i}: {c}' for i, c in enumerate(report['components'][:_CLASSES]))
    out.append(
      f'labels are vectors of {n} components, {report["vectors"]} different ones; images in which '
      f'a component is not 0: {some}{" ..." if n > _CLASSES else ""}'
    )
  return '\n'.join(out + [f'warning: {line}' for line in report['warnings']])


def _classes(counts: dict[str, int]) -> list[str]:
  named = list(counts) != [str(i) for i in range(len(counts))]
  order = ' (their names in natural order: numbers by value, then text)' if named else ''
  out = [f'{classes.counted(len(counts), "class")}, by index{order}:']
  out += [
    f'  {i}: {name + ", " if named else ""}{classes.counted(n, "image")}'
    for i, (name, n) in enumerate(counts.items())
    if i < _CLASSES
  ]
  return out + (
    [f'  ... and {len(counts) - _CLASSES} more, see the report'] if len(counts) > _CLASSES else []
  )


def _kind(reason: str) -> str:
  first = re.split('[:;,(]', reason)[0].strip()
  kind = next(
    (kind for kind in sorted(_KINDS, key=len, reverse=True) if first.startswith(kind)), None
  )
  short = reason.split(';')[0]
  return kind or (short if short.startswith('wrong format') else re.sub(r'\d+', 'N', short))


def _hint(kind: str, report: dict) -> str:
  if kind == 'too small' and report['fit'] != 'wide':
    return ' (--allow_upscale enlarges them; a smaller --resolution takes more of them)'
  return {
    'too small': ' (a smaller --resolution takes more of them)',
    'animated or multi-page': ' (--animation=first takes the first picture)',
    'decompression bomb': ' (--max_pixels takes larger ones)',
  }.get(kind, '')
