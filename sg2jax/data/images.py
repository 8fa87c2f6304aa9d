"""Pictures from strangers -> uint8 arrays of one size: pure functions and the rules of `prepare`.

What a file is shown as, following a photo viewer:
- one of formats.FORMATS, recognised by content, never by name; Pillow may try no other (EPS runs
  code);
- EXIF orientation is applied, if it can be read; colour profiles (ICC) are ignored;
- 16-bit grey is scaled by 255/max_value (65535 unless stated), what is above is white; of 16-bit
  colour Pillow keeps the high byte; 32-bit integers are taken as 16-bit if none is above 65535;
  floating point is refused: its range is unknown;
- palettes are looked up; CMYK becomes RGB without a profile, Adobe's inverted CMYK too;
- transparency (alpha, grey + alpha, palette, colour-key) is composited on the background colour, or
  kept as straight alpha where 4 channels are asked for;
- animations and multi-page files are refused, unless their first picture is asked for; of a
  multi-picture JPEG (MPO, from phones) the first picture is taken.
"""

import dataclasses
import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from sg2jax.data import formats

FILTERS = {f.name.lower(): f for f in Image.Resampling}
FITS = ('center', 'wide', 'pad')
ANIMATIONS = ('refuse', 'first')
MAX_PIXELS = 89_478_485  # 256 MiB of RGB, Pillow's limit too
# Every picture is held against Options.max_pixels instead, before its pixels are decoded.
Image.MAX_IMAGE_PIXELS = None


class Unusable(Exception):
  """A picture that can't be used; `str()` is the reason, for the report."""

  def reason(self) -> str:
    """It without what `prepare` could do, for who doesn't prepare a data set."""
    return str(self).partition('; `')[0]


@dataclasses.dataclass(frozen=True)
class Options:
  """How pictures become images.

  Attributes:
    height: pixels.
    width: pixels.
    channels: 3 RGB, 1 grey (ITU-R 601 luma), 4 RGBA with straight alpha.
    fit: crop rule, see `fit_image`.
    resize_filter: a key of FILTERS.
    background: RGB in 0..255 behind transparency and, with fit='pad', around the picture.
    allow_upscale: take pictures smaller than the target.
    max_pixels: larger pictures are refused.
    animation: 'refuse', or 'first' for the first picture of several.
    max_value: value of 16-bit grey that becomes white; 0: 65535.
  """

  height: int
  width: int
  channels: int = 3
  fit: str = 'center'
  resize_filter: str = 'box'
  background: tuple[int, int, int] = (255, 255, 255)
  allow_upscale: bool = False
  max_pixels: int = MAX_PIXELS
  animation: str = 'refuse'
  max_value: int = 0

  @property
  def shape(self) -> tuple[int, int, int]:
    """(H, W, C) of the images that come out."""
    return self.width if self.fit == 'wide' else self.height, self.width, self.channels


def convert(data: bytes, options: Options) -> np.ndarray:
  """A picture file at the size of the data set: `decode`, then `fit_image`."""
  return fit_image(decode(data, options), options)


# ---- file -> pixels


def decode(data: bytes, options: Options) -> np.ndarray:
  """Reads a picture file by the rules above, as large as it is: uint8 [H,W,C].

  Raises Unusable with the reason.
  """
  try:
    return _open(data, options)
  except Unusable:
    raise
  except UnidentifiedImageError:
    raise Unusable(formats.what_else(data)) from None
  except Exception as e:  # Pillow's decoders raise nearly anything on damaged files
    kind = 'truncated' if 'truncated' in str(e).lower() else 'corrupt'
    raise Unusable(f'{kind}: {str(e) or type(e).__name__}') from e


def _open(data: bytes, options: Options) -> np.ndarray:
  with Image.open(io.BytesIO(data), formats=formats.FORMATS) as image:
    pixels = image.width * image.height
    if pixels > options.max_pixels:
      raise Unusable(
        f'decompression bomb, or a very large picture: {pixels} pixels, more than '
        f'{options.max_pixels}; `prepare --max_pixels={pixels}` takes it'
      )
    count = getattr(image, 'n_frames', 1)
    if count > 1 and image.format != 'MPO' and options.animation != 'first':
      raise Unusable(
        f'animated or multi-page: {count} pictures of {image.format}; `prepare --animation=first` '
        'takes the first'
      )
    image.load()
    return _to_channels(_to_8_bits(_upright(image), options.max_value), options)


_TURNS = {  # by EXIF orientation
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
  """Turned by EXIF; as it is where that can't be read."""
  # Not ImageOps.exif_transpose, which also writes EXIF anew, and raises where it can't.
  try:
    turn = _TURNS.get(image.getexif().get(0x112))
  except Exception:
    return image
  return image if turn is None else image.transpose(turn)


def _to_8_bits(image: Image.Image, max_value: int) -> Image.Image:
  """Grey of 16 bits to 8; others as they are."""
  if image.mode == 'F':
    raise Unusable('wrong format: floating-point pixels, brightness range unknown')
  if image.mode != 'I' and not image.mode.startswith('I;16'):
    return image
  values = np.asarray(image).astype(np.int64)  # [H,W]
  if values.min() < 0 or (values.max() > 65535 and not max_value):
    raise Unusable(
      'wrong format: 32-bit integer pixels, brightness range unknown; `prepare --max_value` states '
      'it'
    )
  white = max_value or 65535
  values = (np.minimum(values, white) * 255 + white // 2) // white
  return Image.fromarray(values.astype(np.uint8))


def _to_channels(image: Image.Image, options: Options) -> np.ndarray:
  """uint8 [H,W,C] of an image of any mode of 8 bits."""
  if options.channels == 4:
    return np.asarray(image.convert('RGBA'))
  # Before RGB: colours of transparent pixels are anything.
  if image.has_transparency_data:
    canvas = Image.new('RGBA', image.size, (*options.background, 255))
    canvas.alpha_composite(image.convert('RGBA'))
    image = canvas
  image = image.convert('RGB')
  if options.channels == 1:
    return np.asarray(image.convert('L'))[:, :, np.newaxis]
  return np.asarray(image)


# ---- pixels -> one size


def fit_image(image: np.ndarray, options: Options) -> np.ndarray:
  """Brings a picture to the data set's size.

  - center: the largest central rectangle of the target's aspect, resized.
  - wide: the central rows, resized, between black bars above and below: a [width,width] square.
  - pad: the whole picture, resized to fit, centred on the background.

  Of RGBA, bars and background are transparent. The reference vectors `image_preprocessing` are met
  by center (center-crop) and wide (center-crop-wide).

  Nothing is enlarged unless `allow_upscale` (never for `wide`): enlarged pictures teach blur.

  uint8 [H,W,C] -> uint8 of options.shape. Raises Unusable: too small, or (wide) too flat.
  """
  h, w, channels = image.shape
  size = options.height, options.width  # that the picture gets
  # ---- how much of the picture is kept
  if options.fit == 'center':
    # One of the two is the whole side, the other what the target's aspect leaves of it.
    rows = max(1, min(h, round(w * options.height / options.width)))
    columns = max(1, min(w, round(h * options.width / options.height)))
  elif options.fit == 'wide':
    # Computed from the width that comes out: so do the vectors.
    rows, columns = round(options.width * h / w), w
  else:
    rows, columns = h, w
    scale = min(options.height / h, options.width / w)
    size = max(1, round(h * scale)), max(1, round(w * scale))
  if rows < size[0] or columns < size[1]:
    reason = f'{h}x{w} gives {rows}x{columns} pixels for {size[0]}x{size[1]}'
    if options.fit == 'wide':
      raise Unusable(f'too small, or wrong aspect: {reason}')
    if not options.allow_upscale:
      raise Unusable(f'too small: {reason}; `prepare --allow_upscale` enlarges it')
  # ---- cut out, resized, in the middle of what comes out
  image = _middle(image, rows, columns)
  canvas = np.zeros((*options.shape[:2], channels), np.uint8)
  if options.fit == 'pad':
    # What nothing but transparency looks like.
    nothing = Image.new('RGBA', (1, 1), (*options.background, 0))
    canvas[:] = _to_channels(nothing, options)
  _middle(canvas, *size)[:] = resize(image, *size, options.resize_filter)
  return canvas


def _middle(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
  """A view of so many rows and columns."""
  top = (image.shape[0] - rows) // 2
  left = (image.shape[1] - columns) // 2
  return image[top : top + rows, left : left + columns]


def resize(image: np.ndarray, height: int, width: int, resize_filter: str) -> np.ndarray:
  """Resizes uint8 [H,W,C] to [height,width,C]; unchanged if it has that size."""
  if image.shape[:2] == (height, width):
    return image
  if image.shape[2] == 4:
    return _resize_rgba(image, height, width, resize_filter)
  # Of grey, Pillow wants [H,W].
  picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
  resized = picture.resize((width, height), FILTERS[resize_filter])
  return np.asarray(resized).reshape(height, width, -1)


def _resize_rgba(image: np.ndarray, height: int, width: int, resize_filter: str) -> np.ndarray:
  """With alpha as the weight of a colour, so that hidden colours don't bleed."""
  alpha = image[:, :, 3:]  # [H,W,1]
  if alpha.min() == 255:  # the very pixels of RGB
    rgb = resize(image[:, :, :3], height, width, resize_filter)
    return np.dstack([rgb, np.full((height, width), 255, np.uint8)])
  # In floating point: eight bits of colour times alpha would leave few of a faint colour.
  weighted = image.astype(np.float32)  # [H,W,4]
  weighted[:, :, :3] *= alpha / np.float32(255)
  planes = [Image.fromarray(weighted[:, :, i]) for i in range(4)]
  planes = [plane.resize((width, height), FILTERS[resize_filter]) for plane in planes]
  small = np.dstack([np.asarray(plane) for plane in planes])  # [height,width,4]
  # Filters with negative lobes leave the range.
  opacity = np.rint(np.clip(small[:, :, 3:], 0, 255))
  colour = small[:, :, :3] * 255 / np.maximum(small[:, :, 3:], 0.5)
  colour = np.where(opacity > 0, np.rint(np.clip(colour, 0, 255)), 0)
  return np.concatenate([colour, opacity], axis=2).astype(np.uint8)
