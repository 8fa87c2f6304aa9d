"""Pictures from strangers -> uint8 arrays of one size: pure functions and the rules of `prepare`.

What a file is shown as, following a photo viewer:
- one of formats.FORMATS, recognised by content, never by name; Pillow may try no other (EPS runs
code);
- EXIF orientation is applied, if it can be read; broken metadata never lose a picture; colour
profiles
  (ICC) are ignored;
- 16-bit grey is scaled by 255/max_value (65535 unless stated), what is above is white; of 16-bit
colour
  Pillow keeps the high byte; 32-bit integers are taken as 16-bit if none is above 65535; floating
  point is refused: its range is unknown;
- palettes are looked up; CMYK becomes RGB without a profile, Adobe's inverted CMYK too;
- transparency (alpha, grey + alpha, palette, colour-key) is composited on the background colour, or
  kept as straight alpha where 4 channels are asked for;
- animations and multi-page files are refused, unless their first picture is asked for; of a
  multi-picture JPEG (MPO, from phones) the first picture is taken.
"""

import contextlib
import io
import re
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from sg2jax.data import formats

FILTERS = {f.name.lower(): f for f in Image.Resampling}
FITS = ('center', 'wide', 'pad')
ANIMATIONS = ('refuse', 'first')
MAX_PIXELS = 89_478_485  # 256 MiB of RGB, Pillow's limit too
WHITE = (255, 255, 255)
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation


class Unusable(Exception):
  """A picture that can't be used; `str()` is the reason, for the report."""


def encode_png(image: np.ndarray) -> bytes:
  """PNG bytes of uint8 [H,W,C], C being 1 (grey), 3 (RGB) or 4 (RGBA).

  Not deflated: the record file compresses to the same size, and reading gets 1.3x faster.
  """
  out = io.BytesIO()
  _to_pil(image).save(out, 'PNG', compress_level=0)
  return out.getvalue()


class Rules(NamedTuple):
  """What is asked of a picture.

  Attributes:
    channels: 1 for grey (ITU-R 601 luma), 3 for RGB, 4 for RGBA with straight alpha.
    background: RGB in 0..255 behind transparent pixels; unused with 4 channels.
    max_pixels: larger pictures are refused.
    animation: 'refuse', or 'first' for the first picture of several.
    max_value: value of deep grey that becomes white; 0: 65535.
  """

  channels: int = 3
  background: tuple[int, int, int] = WHITE
  max_pixels: int = MAX_PIXELS
  animation: str = 'refuse'
  max_value: int = 0


class Picture(NamedTuple):
  """What was read: pixels uint8 [H,W,C]; of more than 8 bits, the largest value (of colour about),
  and which it is.
  """

  pixels: np.ndarray
  peak: int | None
  grey: bool


def decode(data: bytes, channels: int = 3, background: tuple[int, int, int] = WHITE) -> np.ndarray:
  """The pixels of a picture file by the rules above, uint8 [H,W,channels]. Raises Unusable; see
  `read`.
  """
  return read(data, Rules(channels, background)).pixels


def read(data: bytes, rules: Rules, name: str = '') -> Picture:
  """Decodes a picture file by the rules above.

  Args:
    data: the file's bytes.
    rules: see Rules.
    name: of the file; only to say what else it may be.

  Raises:
    Unusable: with the reason.
  """
  if not data:
    raise Unusable('empty file')
  try:
    return _open(data, rules)
  except Unusable:
    raise
  except Image.DecompressionBombError as err:  # Pillow looks at the size before we can
    raise _too_many(rules, re.search(r'\((\d+) pixels', str(err))[1]) from None
  except Exception as err:  # Pillow's decoders raise nearly anything on damaged files
    bare = formats.without_metadata(data)
    with contextlib.suppress(Exception):
      if bare != data:
        return _open(bare, rules)
    if isinstance(err, UnidentifiedImageError):
      raise Unusable(formats.what_else(data, name)) from None
    word = 'truncated' if 'truncated' in str(err).lower() else 'corrupt'
    raise Unusable(f'{word}: {str(err) or type(err).__name__}') from err


def _too_many(rules: Rules, pixels: int | str) -> Unusable:
  return Unusable(
    f'decompression bomb, or a very large picture: {pixels} pixels, more than {rules.max_pixels}; '
    f'--max_pixels={pixels} takes it'
  )


def _open(data: bytes, rules: Rules) -> Picture:
  with Image.open(io.BytesIO(data), formats=formats.FORMATS) as image:
    if image.width * image.height > rules.max_pixels:
      raise _too_many(rules, image.width * image.height)
    if (
      rules.animation != 'first'
      and image.format != 'MPO'
      and (frames := getattr(image, 'n_frames', 1)) > 1
    ):
      raise Unusable(
        f'animated or multi-page {image.format}: {frames} pictures; --animation=first takes the '
        'first'
      )
    deep_colour = any(';16' in str(tile[3]) for tile in image.tile) and not image.mode.startswith(
      'I'
    )
    image.load()
    pixels, peak = _to_array(_turned(image), rules)
    if deep_colour:  # Pillow kept the high byte
      peak = int(pixels[:, :, :3].max()) * 257
    return Picture(pixels, peak, not deep_colour)


def _turned(image: Image.Image) -> Image.Image:
  """Upright by EXIF; as it is where that can't be read. Not ImageOps.exif_transpose, which also
  writes EXIF anew.
  """
  try:
    turn = _TURNS.get(image.getexif().get(0x112))
  except Exception:
    return image
  return image if turn is None else image.transpose(turn)


def shrink(images: np.ndarray, factor: int) -> np.ndarray:
  """Mean of each factor x factor box: uint8 [...,H,W,C] -> uint8 [...,H/factor,W/factor,C], rounded
  half to even.

  Sides are cut to multiples of `factor` (bottom and right).
  """
  if factor == 1:
    return images
  *n, h, w, c = images.shape
  h, w = h // factor, w // factor
  boxes = images[..., : h * factor, : w * factor, :].reshape(*n, h, factor, w, factor, c)
  return np.rint(boxes.mean((-4, -2), dtype=np.float32)).astype(np.uint8)


def _to_array(image: Image.Image, rules: Rules) -> tuple[np.ndarray, int | None]:
  peak = None
  if image.mode == 'I' or image.mode.startswith('I;16'):
    deep = np.asarray(image).astype(np.int64)  # [H,W]
    peak, white = int(deep.max()), rules.max_value or 65535
    if deep.min() < 0 or peak > 65535 and not rules.max_value:
      raise Unusable(
        'wrong format: 32-bit integer pixels, brightness range unknown; --max_value states it'
      )
    image = Image.fromarray(
      ((np.minimum(deep, white) * 255 + white // 2) // white).astype(np.uint8)
    )
  elif image.mode == 'F':
    raise Unusable('wrong format: floating-point pixels, brightness range unknown')
  if rules.channels == 4:
    return np.asarray(
      image.convert('RGBA' if image.has_transparency_data else 'RGB').convert('RGBA')
    ), peak
  if image.has_transparency_data:
    canvas = Image.new('RGBA', image.size, (*rules.background, 255))
    canvas.alpha_composite(image.convert('RGBA'))
    image = canvas
  image = image.convert('RGB')
  return np.asarray(image.convert('L'))[:, :, np.newaxis] if rules.channels == 1 else np.asarray(
    image
  ), peak


def _to_pil(image: np.ndarray) -> Image.Image:
  return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _resize(image: np.ndarray, height: int, width: int, resize_filter: str) -> np.ndarray:
  """Resizes uint8 [H,W,C] to [height,width,C]; unchanged if it has that size."""
  if image.shape[:2] == (height, width):
    return image
  if image.shape[2] == 4:
    return _resize_rgba(image, height, width, resize_filter)
  resized = _to_pil(image).resize((width, height), FILTERS[resize_filter])
  return np.asarray(resized).reshape(height, width, -1)


def _resize_rgba(image: np.ndarray, height: int, width: int, resize_filter: str) -> np.ndarray:
  """With alpha as the weight of a colour, so that colours that nobody sees don't bleed; black where
  alpha becomes 0.
  """
  alpha = image[:, :, 3]
  if alpha.min() == 255:  # the very pixels of RGB
    rgb = _resize(image[:, :, :3], height, width, resize_filter)
    return np.dstack([rgb, np.full((height, width), 255, np.uint8)])
  # In floating point: eight bits of colour times alpha would leave few of a faint colour.
  weighted = image.astype(np.float32)  # [H,W,4]
  weighted[:, :, :3] *= alpha[:, :, np.newaxis] / np.float32(255)
  small = np.dstack(
    [
      np.asarray(Image.fromarray(weighted[:, :, i]).resize((width, height), FILTERS[resize_filter]))
      for i in range(4)
    ]
  )  # [height,width,4]
  opacity = np.rint(np.clip(small[:, :, 3:], 0, 255))
  colour = small[:, :, :3] * 255 / np.maximum(small[:, :, 3:], 0.5)
  return np.concatenate(
    [np.where(opacity > 0, np.rint(np.clip(colour, 0, 255)), 0), opacity], 2
  ).astype(np.uint8)


def _crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """The central [height,width,C] of uint8 [H,W,C]; odd pixels as in the vectors."""
  top = (image.shape[0] - height) // 2
  left = (image.shape[1] - width) // 2
  return image[top : top + height, left : left + width]


def transform_image(
  image: np.ndarray, transform: str | None, width: int, height: int, resize_filter: str
) -> np.ndarray | None:
  """Crops and resizes as the reference vectors `image_preprocessing` do.

  Args:
    image: uint8 [H,W,C].
    transform: None (resize only, aspect not kept), 'center-crop' (the central square) or
      'center-crop-wide' (the central rows, pasted between black bars into a square).
    width: of the picture in pixels.
    height: of the picture in pixels.
    resize_filter: a key of FILTERS.

  Returns:
    uint8 [height,width,C], for 'center-crop-wide' [width,width,C]; None if 'center-crop-wide' would
    have to enlarge the picture.
  """
  if transform is None:
    return _resize(image, height, width, resize_filter)
  if transform == 'center-crop':
    side = min(image.shape[:2])
    return _resize(_crop(image, side, side), height, width, resize_filter)
  if transform != 'center-crop-wide':
    raise ValueError(f"transform={transform!r}: must be None, 'center-crop' or 'center-crop-wide'")
  # The rows kept of the source, computed from the output's width: so do the vectors.
  rows = int(np.round(width * image.shape[0] / image.shape[1]))
  if image.shape[1] < width or rows < height:
    return None
  top, bottom = (image.shape[0] - rows) // 2, (image.shape[0] + rows) // 2
  picture = _resize(image[top:bottom], height, width, resize_filter)
  canvas = np.zeros((width, width, image.shape[2]), np.uint8)
  canvas[(width - height) // 2 : (width + height) // 2] = picture
  return canvas


def fit_image(
  image: np.ndarray,
  fit: str,
  height: int,
  width: int,
  resize_filter: str = 'box',
  background: tuple[int, int, int] = (255, 255, 255),
  allow_upscale: bool = False,
) -> np.ndarray:
  """Brings a picture to the data set's size.

  - center: the largest central rectangle of the target's aspect, resized (a square: `center-crop`).
  - wide: `center-crop-wide`, a [width,width] square with black bars above and below.
  - pad: the whole picture, resized to fit, centred on the background.

  Of RGBA, bars and background are transparent.

  Nothing is enlarged unless `allow_upscale` (never for `wide`): enlarged pictures teach blur.

  Args:
    image: uint8 [H,W,C].
    fit: one of FITS.
    height: pixels.
    width: pixels.
    resize_filter: a key of FILTERS.
    background: RGB in 0..255, for `pad`.
    allow_upscale: take pictures smaller than the target.

  Returns:
    uint8 [height,width,C], for `wide` [width,width,C].

  Raises:
    Unusable: too small, or (wide) too flat.
  """
  h, w, channels = image.shape
  if fit == 'wide':
    wide = transform_image(image, 'center-crop-wide', width, height, resize_filter)
    if wide is None:
      raise Unusable(
        f'too small: {h}x{w} is less than {width} wide'
        if w < width
        else f'wrong aspect: {h}x{w} is flatter than {height}x{width}'
      )
    return wide
  if fit == 'center':
    rows = max(1, min(h, round(w * height / width)))
    columns = max(1, min(w, round(h * width / height)))
    if (rows < height or columns < width) and not allow_upscale:
      raise Unusable(
        f'too small: {h}x{w} gives a crop of {rows}x{columns}, the target is {height}x{width}'
      )
    return _resize(_crop(image, rows, columns), height, width, resize_filter)
  scale = min(height / h, width / w)
  if scale > 1 and not allow_upscale:
    raise Unusable(f'too small: {h}x{w} fits into the target {height}x{width}')
  inner = _resize(image, max(1, round(h * scale)), max(1, round(w * scale)), resize_filter)
  grey = Image.new('RGB', (1, 1), background).convert('L').getpixel((0, 0))
  fill = {1: grey, 3: background, 4: (*background, 0)}[channels]
  canvas = np.full((height, width, channels), fill, np.uint8)
  top, left = (height - inner.shape[0]) // 2, (width - inner.shape[1]) // 2
  canvas[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
  return canvas
