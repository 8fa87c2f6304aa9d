"""Which files are pictures: formats that are read, names for others, files without metadata."""

import codecs
from collections.abc import Iterator
import contextlib
import pathlib
import re
import struct

from PIL import Image, features

FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM') + ('AVIF',) * features.check('avif')

# ---- files that are no pictures that we read

# (offset, bytes there, what to say) of what Pillow doesn't know, or only text tells; the first that
# fits counts.
_SIGNATURES = (
  (8, b'AVI ', 'not an image: AVI video'),
  (8, b'WAVE', 'not an image: sound'),
  (0, (b'\0\0\0\x0cJXL ', b'\xff\x0a'), 'wrong format: JPEG XL'),
  (0, (b'%!PS', b'\xc5\xd0\xd3\xc6'), 'wrong format: EPS or PostScript'),
  (0, b'%PDF', 'wrong format: PDF'),
  (0, b'gimp xcf', 'wrong format: GIMP (XCF)'),
  (0, b'\x76\x2f\x31\x01', 'wrong format: OpenEXR'),
  (0, (b'#?RADIANCE', b'#?RGBE'), 'wrong format: Radiance HDR'),
  (0, (b'PF\n', b'Pf\n'), 'wrong format: PFM (floating point)'),
  (0, b'P7\n', 'wrong format: PAM'),
  (0, b'SIMPLE  =', 'wrong format: FITS'),
  (128, b'DICM', 'wrong format: DICOM'),
  (0, b'/* XPM */', 'wrong format: XPM'),
  (0, (b'II*\0\x10\0\0\0CR', b'FUJIFILMCCD', b'IIRO', b'IIU\0'), 'wrong format: camera raw'),
  (0, b'\x93NUMPY', 'not an image: NumPy array'),
  (0, b'PK\x03\x04', 'not an image: zip archive'),
  (0, b'\x1f\x8b', 'not an image: gzip (of an SVG, or an archive)'),
  (0, (b'BZh', b'\xfd7zXZ', b'7z\xbc\xaf', b'Rar!'), 'not an image: bzip2, xz, 7z or RAR archive'),
  (257, b'ustar', 'not an image: tar archive'),
  (0, (b'\x1aE\xdf\xa3', b'\0\0\1\xba', b'FLV\1'), 'not an image: video (WebM, MPEG, Flash)'),
  (0, (b'OggS', b'ID3'), 'not an image: sound, or Ogg video'),
  (0, b'version https://git-lfs', 'not an image: Git LFS pointer; `git lfs pull` fetches the file'),
)
_RAW = '.raw .nef .nrw .arw .dng .cr2 .cr3 .raf .orf .rw2 .pef'.split()
# What only the name tells, and Pillow doesn't know.
_SUFFIXES = {suffix: f'camera raw ({suffix[1:].upper()})' for suffix in _RAW} | {
  '.heic': 'HEIC',
  '.heif': 'HEIC',
  '.jxl': 'JPEG XL',
  '.exr': 'OpenEXR',
  '.hdr': 'Radiance HDR',
  '.pict': 'PICT',
  '.pct': 'PICT',
  '.targa': 'TGA',
}


def what_else(data: bytes, name: str = '') -> str:
  """Names a file that is no picture we read, by its content, or else by its name."""
  # ---- by signatures
  for offset, signature, reason in _SIGNATURES:
    if data.startswith(signature, offset):
      return reason
  if data[4:8] == b'ftyp':
    return _of_iso_media(data[8:256])
  # ---- text, before formats of Pillow, of which some begin with two letters
  start = data[:1024].lstrip(b'\xef\xbb\xbf \t\r\n').lower()
  if b'<svg' in start:
    return 'wrong format: SVG'
  if start.startswith(b'<'):
    return 'not an image: HTML or XML'
  if _is_text(start):
    return 'not an image: text'
  # ---- by headers
  if _is_tga(data):
    return 'wrong format: TGA'
  if kind := _known_to_pillow(data[:16]):
    return (
      f'corrupt: {kind} with an unreadable header' if kind in FORMATS else f'wrong format: {kind}'
    )
  # ---- by the name
  suffix = pathlib.PurePosixPath(name).suffix.lower()
  kind = _SUFFIXES.get(suffix) or Image.EXTENSION.get(suffix)
  if kind and kind not in FORMATS:
    return f'wrong format: {kind}, by its name'
  return 'not an image: unknown content'


def _is_text(start: bytes) -> bool:
  try:
    text = codecs.getincrementaldecoder('utf-8')().decode(start)  # which may end within a character
  except UnicodeDecodeError:
    return False
  return all(char.isprintable() or char.isspace() for char in text)


def _is_tga(data: bytes) -> bool:
  """By its end, or by fields of the header that have few values."""
  if data.rstrip(b'\0').endswith(b'TRUEVISION-XFILE.'):
    return True
  if len(data) <= 18:
    return False
  _, palette, kind = data[:3]
  width, height, bits = struct.unpack_from('<HHB', data, 12)
  is_known = palette <= 1 and kind in (1, 2, 3, 9, 10, 11) and bits in (8, 15, 16, 24, 32)
  return is_known and width > 0 and height > 0


def _known_to_pillow(start: bytes) -> str | None:
  """The format by its first bytes. Pillow opens nothing: of some formats that would run code."""
  Image.init()
  for kind, (_, accepts) in Image.OPEN.items():
    with contextlib.suppress(struct.error, IndexError):
      if accepts and accepts(start):
        return kind
  return None


def _of_iso_media(brands: bytes) -> str:
  """AVIF, HEIC, camera raw and MP4 are containers of one kind: their brands tell them apart."""
  if re.search(rb'avi[fs]', brands):
    if 'AVIF' in FORMATS:
      return 'corrupt: AVIF with an unreadable header'
    return 'wrong format: AVIF (this Pillow reads none; update it)'
  if re.search(rb'hei[cxms]|hev[cxms]|m[is]f1', brands):
    return 'wrong format: HEIC; convert it to JPEG or PNG'
  if b'crx ' in brands:
    return 'wrong format: camera raw (CR3)'
  return 'not an image: video (MP4, MOV)'


# ---- metadata

_PNG_CHUNKS = (b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND', b'acTL', b'fcTL', b'fdAT')


def without_metadata(data: bytes) -> bytes:
  """The same picture without EXIF, profiles and texts; as it is if of another format, or broken.

  Viewers show a picture whatever its metadata are; Pillow raises for some, before it looks at the
  pixels. For those of WebP it doesn't.
  """
  try:
    if data.startswith(b'\x89PNG\r\n\x1a\n'):
      return data[:8] + b''.join(_png_chunks(data))
    if data.startswith(b'\xff\xd8'):
      return data[:2] + b''.join(_jpeg_segments(data))
  except (struct.error, IndexError):
    return data
  if data[4:12] in (b'ftypavif', b'ftypavis', b'ftypmif1'):
    return data.replace(b'Exif', b'xxxx')  # of this type nobody reads items; the offsets stay right
  return data


def _png_chunks(data: bytes) -> Iterator[bytes]:
  """Chunks without which the pixels can't be read."""
  place = 8
  while place + 12 <= len(data):
    size = struct.unpack_from('>I', data, place)[0] + 12
    if data[place + 4 : place + 8] in _PNG_CHUNKS:
      yield data[place : place + size]
    place += size


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
  """Segments but APP1 to APP13, APP15 and comments; APP14 says how Adobe's colours are meant."""
  place = 2
  while data[place] == 0xFF and data[place + 1] != 0xDA:
    marker = data[place + 1]
    size = 2 + struct.unpack_from('>H', data, place + 2)[0]
    if not (0xE1 <= marker <= 0xED or marker in (0xEF, 0xFE)):
      yield data[place : place + size]
    place += size
  yield data[place:]
