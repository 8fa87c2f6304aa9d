"""Turns a folder or zip of pictures into a data set for training.

  python -m sg2jax.tools.prepare --source=FOLDER|ZIP --dest=DIR --resolution=R

DIR becomes a TFDS data set in array_record format, to be used as --config.data.name=
--config.data.dir=DIR, and DIR/report.json names every file that was left out, with the reason. The
rules are stated in docs/data.md.
"""

import re

from absl import flags
from PIL import ImageColor

from sg2jax import cli, faults
from sg2jax.data import images, label_rules, prepare, sources, summary

_SOURCE = flags.DEFINE_string('source', None, 'Folder or zip of pictures.')
_DEST = flags.DEFINE_string('dest', None, 'Folder to make.')
_RESOLUTION = flags.DEFINE_string('resolution', None, 'Pixels: R, or HEIGHTxWIDTH such as 384x512.')
_FIT = flags.DEFINE_enum(
  'fit',
  'center',
  images.FITS,
  'center: crop the middle; wide: crop the middle rows, black bars above '
  'and below, giving WIDTHxWIDTH; pad: keep all, fill with --background.',
)
_FILTER = flags.DEFINE_enum('filter', 'box', sorted(images.FILTERS), 'Resampling filter.')
_CHANNELS = flags.DEFINE_enum(
  'channels', '3', ('3', '1', '4'), '3: RGB, 1: grey, 4: RGBA (straight alpha).'
)
_LABELS = flags.DEFINE_enum(
  'labels', 'none', label_rules.RULES, 'Class labels from folder names or dataset.json.'
)
_BACKGROUND = flags.DEFINE_string(
  'background', 'white', 'Colour behind transparent pixels: a CSS name or #rrggbb.'
)
_UPSCALE = flags.DEFINE_bool(
  'allow_upscale', False, 'Enlarge pictures that are too small instead of refusing them.'
)
_MAX_PIXELS = flags.DEFINE_integer(
  'max_pixels', images.MAX_PIXELS, 'Refuse larger pictures.', lower_bound=1
)
_ANIMATION = flags.DEFINE_enum(
  'animation',
  'refuse',
  images.ANIMATIONS,
  'Of animations and files of several pages: refuse, or take the first picture.',
)
_MAX_VALUE = flags.DEFINE_integer(
  'max_value',
  None,
  'Value of 16-bit grey that becomes white, such as 4095 for 12 bits; default: 65535.',
  lower_bound=1,
  upper_bound=2**31 - 1,
)
_WORKERS = flags.DEFINE_integer('workers', None, 'Threads; default: one per core.', lower_bound=1)


def _resolution(text: str) -> tuple[int, int]:
  match = re.fullmatch(r'([1-9]\d*)(?:x([1-9]\d*))?', text)
  if not match or max(int(x or 0) for x in match.groups()) > 16384:
    raise faults.UsageError(
      f'--resolution={text}: must be R or HEIGHTxWIDTH in pixels, such as 64 or 384x512'
    )
  return int(match[1]), int(match[2] or match[1])


def _background(text: str) -> tuple[int, int, int]:
  try:
    return ImageColor.getrgb(text)[:3]
  except ValueError:
    raise faults.UsageError(f'--background={text}: must be a CSS colour name or #rrggbb') from None


def main(argv: list[str]):
  """Builds the data set; exits 3 if no picture was usable."""
  del argv
  for flag in (_SOURCE, _DEST, _RESOLUTION):
    if not flag.value:
      raise faults.UsageError(
        f'--{flag.name} is missing; usage: python -m sg2jax.tools.prepare '
        '--source=FOLDER|ZIP --dest=DIR --resolution=R'
      )
  height, width = _resolution(_RESOLUTION.value)
  if _FIT.value == 'wide' and width < height:
    raise faults.UsageError(
      f'--fit=wide --resolution={height}x{width}: the width must be the larger side'
    )
  options = prepare.Options(
    height,
    width,
    int(_CHANNELS.value),
    _FIT.value,
    _FILTER.value,
    _background(_BACKGROUND.value),
    _UPSCALE.value,
    _LABELS.value,
    _MAX_PIXELS.value,
    _ANIMATION.value,
    _MAX_VALUE.value or 0,
  )
  report = prepare.build(_SOURCE.value, _DEST.value, options, _WORKERS.value)
  print(summary.lines(report))
  if not report['images']:
    raise faults.DatasetError(
      f'--source={sources.text(_SOURCE.value)}: no usable picture in it (the reasons are '
      'above); nothing was made'
    )
  dest = sources.text(_DEST.value)
  print(f'{dest}: ready; the report is {dest}/{prepare.REPORT}')


if __name__ == '__main__':
  cli.run(main)
