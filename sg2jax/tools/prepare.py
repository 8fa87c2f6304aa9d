"""Turns a folder or zip of pictures into a data set for training.

  python -m sg2jax.tools.prepare --source=FOLDER|ZIP --dest=DIR --resolution=R

DIR becomes a TFDS data set in array_record format, to be used as --config.data.name=
--config.data.dir=DIR, and DIR/report.json names every file that was left out, with the reason. The
rules are stated in docs/data.md. If it is killed, the same command goes on.
"""

import collections
from collections.abc import Iterable, Iterator
import re
import warnings

from absl import flags
from PIL import ImageColor

from sg2jax import cli, faults
from sg2jax.data import destination, images, label_rules, prepare
from sg2jax.tools import flags as shared

_LISTED = 20  # files, kinds of reasons, classes; of more there is the report


def define_flags() -> None:
  """The flags of this tool."""
  flags.DEFINE_string('source', None, 'Folder or zip of pictures.')
  flags.DEFINE_string('dest', None, 'Folder to make.')
  shared.define_parsed(
    'resolution', None, 'Pixels: R, or HEIGHTxWIDTH such as 384x512.', _resolution
  )
  shared.define_required('source', 'name a folder or zip of pictures')
  shared.define_required('dest', 'name a folder to make')
  shared.define_required('resolution', 'give one, as in --resolution=256')
  flags.DEFINE_enum(
    'fit',
    'center',
    images.FITS,
    'center: crop the middle; wide: crop the middle rows, black bars above and below, giving '
    'WIDTHxWIDTH; pad: keep all, fill with --background.',
  )
  flags.register_multi_flags_validator(
    ('fit', 'resolution'),
    lambda given: given['fit'] != 'wide' or given['resolution'][1] >= given['resolution'][0],
    'with --fit=wide, the width must be the larger side',
  )
  flags.DEFINE_enum('filter', 'box', sorted(images.FILTERS), 'Resampling filter.')
  flags.DEFINE_enum('channels', '3', ('3', '1', '4'), '3: RGB, 1: grey, 4: RGBA (straight alpha).')
  flags.DEFINE_enum(
    'labels', 'none', label_rules.RULES, 'Labels from the names of folders, or from dataset.json.'
  )
  shared.define_parsed(
    'background',
    'white',
    'Colour behind transparent pixels: a CSS name or #rrggbb.',
    _background,
  )
  flags.DEFINE_bool(
    'allow_upscale', False, 'Enlarge pictures that are too small instead of refusing them.'
  )
  flags.DEFINE_integer('max_pixels', images.MAX_PIXELS, 'Refuse larger pictures.', lower_bound=1)
  flags.DEFINE_enum(
    'animation',
    'refuse',
    images.ANIMATIONS,
    'Of animations and files of several pages: refuse, or take the first picture.',
  )
  flags.DEFINE_integer(
    'max_value',
    None,
    'Value of 16-bit grey that becomes white, such as 4095 for 12 bits; default: 65535.',
    lower_bound=1,
    upper_bound=2**31 - 1,
  )
  _define_who_works()


def _define_who_works():
  flags.DEFINE_integer('workers', None, 'Threads; default: one per core.', lower_bound=1)
  flags.DEFINE_string(
    'runner',
    None,
    'Make the shards with this runner of Apache Beam, such as DirectRunner, FlinkRunner, '
    'SparkRunner or DataflowRunner, instead of threads.',
  )
  flags.DEFINE_string(
    'beam_options',
    '',
    "Options of Beam's for --runner, as for any pipeline: '--NAME=VALUE --NAME=VALUE'.",
  )
  flags.register_multi_flags_validator(
    ('runner', 'beam_options'),
    lambda given: given['runner'] or not given['beam_options'],
    '--beam_options are of a --runner; name one, such as --runner=DirectRunner',
  )
  flags.register_multi_flags_validator(
    ('runner', 'workers'),
    lambda given: not (given['runner'] and given['workers']),
    "--workers are threads of this machine; how many a --runner has is one of Beam's options, such "
    'as --beam_options=--direct_num_workers=8',
  )


def _resolution(text: str) -> tuple[int, int]:
  match = re.fullmatch(r'([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?', text)
  if not match or max(int(side or 0) for side in match.groups()) > 16_384:
    raise ValueError('must be R or HEIGHTxWIDTH in pixels, such as 64 or 384x512')
  return int(match[1]), int(match[2] or match[1])


def _background(text: str) -> tuple[int, int, int]:
  try:
    return ImageColor.getrgb(text)[:3]
  except ValueError:
    raise ValueError('must be a CSS colour name or #rrggbb') from None


def main(argv: list[str]) -> None:
  """Builds the data set. Raises DatasetError if no picture was usable."""
  del argv
  # Pillow warns of oddities that it can read, and the report is for what it can't.
  warnings.filterwarnings('ignore', module='PIL')
  given = flags.FLAGS
  options = images.Options(
    *given.resolution,
    channels=int(given.channels),
    fit=given.fit,
    resize_filter=given.filter,
    background=given.background,
    allow_upscale=given.allow_upscale,
    max_pixels=given.max_pixels,
    animation=given.animation,
    max_value=given.max_value or 0,
  )
  write = _shard_writer(given.runner, given.beam_options) if given.runner else None
  try:
    report = prepare.build(given.source, given.dest, options, given.labels, given.workers, write)
  except (KeyboardInterrupt, SystemExit) as e:  # `cli` makes the latter of SIGTERM
    fault = faults.Interrupted if isinstance(e, KeyboardInterrupt) else faults.Preempted
    raise fault(
      f'{given.dest}: stopped by a signal; the same command goes on from the finished shards'
    ) from e
  for line in summary(report):
    print(line)
  if not report['images']:
    raise faults.DatasetError(
      f'--source={given.source}: no usable picture in it (the reasons are above); nothing was made'
    )
  print(f'{given.dest}: ready; the report is {given.dest}/{destination.REPORT}')


def _shard_writer(runner: str, beam_options: str) -> prepare.WriteShards:
  try:
    from sg2jax.data import prepare_beam  # here: nothing else needs Beam
  except ModuleNotFoundError as e:
    raise faults.UsageError(
      f'--runner={runner} needs Apache Beam ({e}); pip install "sg2jax[train,beam]", best in an '
      'environment of its own'
    ) from e
  return prepare_beam.shard_writer(runner, beam_options)


def summary(report: dict) -> Iterator[str]:
  """The report for people, line by line."""
  unusable = report['unusable']
  yield f'{report["images"]} images, {len(unusable)} unusable files'
  # 70,000 files may have one reason, which begins with its kind.
  kinds = collections.Counter(entry['reason'].partition(':')[0] for entry in unusable)
  for kind, count in kinds.most_common(_LISTED):
    yield f'  {count} x {kind}'
  yield from _first(f'{entry["file"]}: {entry["reason"]}' for entry in unusable)
  if 'classes' in report:
    yield 'classes by index (in natural order: numbers by value, then text), and their images:'
    counted = enumerate(report['classes'].items())
    yield from _first(f'{i}: {name}, {count}' for i, (name, count) in counted)
  if 'components' in report:
    yield f'labels are vectors of {report["components"]} components'
  for warning in report['warnings']:
    yield f'warning: {warning}'


def _first(lines: Iterable[str]) -> Iterator[str]:
  """The first few, indented, and how many more there are."""
  lines = list(lines)
  for line in lines[:_LISTED]:
    yield f'  {line}'
  if len(lines) > _LISTED:
    yield f'  ... and {len(lines) - _LISTED} more, see the report'


if __name__ == '__main__':
  define_flags()
  cli.run(main)
