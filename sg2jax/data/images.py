"""Pictures from strangers -> uint8 arrays of one size: pure functions and the rules of `prepare`.

What a file is shown as, following a photo viewer:
- one of FORMATS, recognised by content, never by name; Pillow may try no other (EPS runs code);
- EXIF orientation is applied; colour profiles (ICC) are ignored;
- 16-bit grey is scaled by 255/65535; of 16-bit colour Pillow keeps the high byte; 32-bit integers
  are taken as 16-bit if none is above 65535; floating point is refused: its range is unknown;
- palettes are looked up; CMYK becomes RGB without a profile, Adobe's inverted CMYK too;
- transparency (alpha, grey + alpha, palette, colour-key) is composited on the background colour;
- animations and multi-page files are refused; of a multi-picture JPEG (MPO, from phones) the first
  picture is taken.
"""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM')
FILTERS = {f.name.lower(): f for f in Image.Resampling}
FITS = ('center', 'wide', 'pad')
MAX_PIXELS = 89_478_485  # 256 MiB of RGB, Pillow's limit too

_SIGNATURES = (
    (b'\x89PNG', 'corrupt: PNG with an unreadable header'),
    (b'\xff\xd8', 'corrupt: JPEG with an unreadable header'),
    (b'GIF8', 'corrupt: GIF with an unreadable header'),
    (b'RIFF', 'corrupt or not an image: RIFF file that is no readable WebP'),
    (b'%!PS', 'wrong format: EPS or PostScript'),
    (b'\xc5\xd0\xd3\xc6', 'wrong format: EPS'),
    (b'%PDF', 'wrong format: PDF'),
    (b'8BPS', 'wrong format: Photoshop'),
    (b'PK\x03\x04', 'not an image: zip archive'),
)


class Unusable(Exception):
  """A picture that can't be used; `str()` is the reason, for the report."""


def encode_png(image: np.ndarray) -> bytes:
  """PNG bytes of uint8 [H,W,1] or [H,W,3].

  Not deflated: the record file compresses to the same size, and reading gets 1.3x faster.
  """
  out = io.BytesIO()
  _to_pil(image).save(out, 'PNG', compress_level=0)
  return out.getvalue()


def decode(data: bytes, channels: int = 3,
           background: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
  """Decodes a picture file by the rules above.

  Args:
    data: the file's bytes.
    channels: 3 for RGB, 1 for grey (ITU-R 601 luma).
    background: RGB in 0..255 behind transparent pixels.

  Returns:
    uint8 [H,W,channels].

  Raises:
    Unusable: with the reason.
  """
  if not data:
    raise Unusable('empty file')
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
      frames = getattr(image, 'n_frames', 1)
      if frames > 1 and image.format != 'MPO':
        raise Unusable(f'animated or multi-page: {frames} frames')
      image.load()
      return _to_array(ImageOps.exif_transpose(image), channels, background)
  except Unusable:
    raise
  except UnidentifiedImageError:
    raise Unusable(_what_else(data)) from None
  except Image.DecompressionBombError:
    raise Unusable(f'decompression bomb: more than {MAX_PIXELS} pixels') from None
  except Exception as err:  # Pillow's decoders raise nearly anything on damaged files
    word = 'truncated' if 'truncated' in str(err).lower() else 'corrupt'
    raise Unusable(f'{word}: {str(err) or type(err).__name__}') from err


def shrink(images: np.ndarray, factor: int) -> np.ndarray:
  """Mean of each factor x factor box: uint8 [...,H,W,C] -> uint8 [...,H/factor,W/factor,C], rounded half to even.

  Sides are cut to multiples of `factor` (bottom and right).
  """
  if factor == 1:
    return images
  *n, h, w, c = images.shape
  h, w = h // factor, w // factor
  boxes = images[..., :h * factor, :w * factor, :].reshape(*n, h, factor, w, factor, c)
  return np.rint(boxes.mean((-4, -2), dtype=np.float32)).astype(np.uint8)


def _what_else(data: bytes) -> str:
  """Names a file that is no picture we read."""
  for signature, words in _SIGNATURES:
    if data.startswith(signature):
      return words
  if data[4:8] == b'ftyp':
    return 'wrong format: HEIC, AVIF or video'
  start = data[:1024].lstrip(b'\xef\xbb\xbf \t\r\n').lower()
  if b'<svg' in start:
    return 'wrong format: SVG'
  if start.startswith(b'<'):
    return 'not an image: HTML or XML'
  if start.isascii() and b'\0' not in start:
    return 'not an image: text'
  return 'not an image: unknown content'


def _to_array(image: Image.Image, channels: int, background: tuple[int, int, int]) -> np.ndarray:
  if image.mode == 'I' or image.mode.startswith('I;16'):
    deep = np.asarray(image).astype(np.int64)  # [H,W]
    if deep.min() < 0 or deep.max() > 65535:
      raise Unusable('wrong format: 32-bit integer pixels, brightness range unknown')
    image = Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
  elif image.mode == 'F':
    raise Unusable('wrong format: floating-point pixels, brightness range unknown')
  if image.has_transparency_data:
    canvas = Image.new('RGBA', image.size, (*background, 255))
    canvas.alpha_composite(image.convert('RGBA'))
    image = canvas
  image = image.convert('RGB')
  if channels == 1:
    return np.asarray(image.convert('L'))[:, :, np.newaxis]
  return np.asarray(image)


def _to_pil(image: np.ndarray) -> Image.Image:
  return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _resize(image: np.ndarray, height: int, width: int, resize_filter: str) -> np.ndarray:
  """Resizes uint8 [H,W,C] to [height,width,C]; unchanged if it has that size."""
  if image.shape[:2] == (height, width):
    return image
  resized = _to_pil(image).resize((width, height), FILTERS[resize_filter])
  return np.asarray(resized).reshape(height, width, -1)


def _crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """The central [height,width,C] of uint8 [H,W,C]; odd pixels as in the vectors."""
  top = (image.shape[0] - height) // 2
  left = (image.shape[1] - width) // 2
  return image[top:top + height, left:left + width]


def transform_image(image: np.ndarray, transform: str | None, width: int, height: int,
                    resize_filter: str) -> np.ndarray | None:
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
  canvas[(width - height) // 2:(width + height) // 2] = picture
  return canvas


def fit_image(image: np.ndarray, fit: str, height: int, width: int, resize_filter: str = 'box',
              background: tuple[int, int, int] = (255, 255, 255),
              allow_upscale: bool = False) -> np.ndarray:
  """Brings a picture to the data set's size.

  - center: the largest central rectangle of the target's aspect, resized (a square: `center-crop`).
  - wide: `center-crop-wide`, a [width,width] square with black bars above and below.
  - pad: the whole picture, resized to fit, centred on the background.

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
      raise Unusable(f'too small: {h}x{w} is less than {width} wide' if w < width else
                     f'wrong aspect: {h}x{w} is flatter than {height}x{width}')
    return wide
  if fit == 'center':
    rows = max(1, min(h, round(w * height / width)))
    columns = max(1, min(w, round(h * width / height)))
    if (rows < height or columns < width) and not allow_upscale:
      raise Unusable(f'too small: {h}x{w} gives a crop of {rows}x{columns}, '
                     f'the target is {height}x{width}')
    return _resize(_crop(image, rows, columns), height, width, resize_filter)
  scale = min(height / h, width / w)
  if scale > 1 and not allow_upscale:
    raise Unusable(f'too small: {h}x{w} fits into the target {height}x{width}')
  inner = _resize(image, max(1, round(h * scale)), max(1, round(w * scale)), resize_filter)
  grey = Image.new('RGB', (1, 1), background).convert('L').getpixel((0, 0))
  fill = background if channels == 3 else grey
  canvas = np.full((height, width, channels), fill, np.uint8)
  top, left = (height - inner.shape[0]) // 2, (width - inner.shape[1]) // 2
  canvas[top:top + inner.shape[0], left:left + inner.shape[1]] = inner
  return canvas
