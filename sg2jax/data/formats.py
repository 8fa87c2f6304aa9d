"""Which files are pictures: the formats that are read, and what others are called in the report."""

import codecs
import contextlib
import struct

from PIL import Image, features

FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM') + ('AVIF',) * features.check('avif')

# What Pillow doesn't know: (offset, bytes there, what to say).
_SIGNATURES = (
  (0, (b'\0\0\0\x0cJXL ', b'\xff\x0a'), 'wrong format: JPEG XL'),
  (4, (b'ftyphei', b'ftyphev', b'ftypmi', b'ftypms'), 'wrong format: HEIC'),
  (4, b'ftypavi', 'wrong format, or corrupt: AVIF (an older Pillow reads none; update it)'),
  (4, b'ftyp', 'not an image: video (MP4, MOV)'),
  (0, b'%!PS', 'wrong format: EPS or PostScript'),
  (0, b'PK\x03\x04', 'not an image: zip archive'),
  (0, b'\x1f\x8b', 'not an image: gzip (of an SVG, or an archive)'),
  (0, b'version https://git-lfs', 'not an image: Git LFS pointer; `git lfs pull` fetches the file'),
)


def what_else(data: bytes) -> str:
  """Names a file that is no picture we read, by its content."""
  if not data:
    return 'empty file'
  for offset, signature, reason in _SIGNATURES:
    if data.startswith(signature, offset):
      return reason
  # ---- text, before formats of Pillow, of which some begin with two letters
  start = data[:1024].lstrip(b'\xef\xbb\xbf \t\r\n').lower()
  if b'<svg' in start:
    return 'wrong format: SVG'
  if start.startswith(b'<'):
    return 'not an image: HTML or XML'
  if _is_text(start):
    return 'not an image: text'
  # ---- by headers
  if data.rstrip(b'\0').endswith(b'TRUEVISION-XFILE.'):
    return 'wrong format: TGA'
  kind = _known_to_pillow(data[:16])
  if kind in FORMATS:
    return f'corrupt: {kind} with an unreadable header'
  return f'wrong format: {kind}' if kind else 'not an image: unknown content'


def _is_text(start: bytes) -> bool:
  try:
    text = codecs.getincrementaldecoder('utf-8')().decode(start)  # which may end within a character
  except UnicodeDecodeError:
    return False
  return all(char.isprintable() or char.isspace() for char in text)


def _known_to_pillow(start: bytes) -> str | None:
  """The format by its first bytes. Pillow opens nothing: of some formats that would run code."""
  Image.init()
  for kind, (_, accepts) in Image.OPEN.items():
    with contextlib.suppress(struct.error, IndexError):
      if accepts and accepts(start):
        return kind
  return None
