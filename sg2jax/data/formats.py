"""Which files are pictures: formats that are read, names for those that aren't, and files without
their metadata.
"""

import codecs
import struct

from PIL import features

FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM') + ('AVIF',) * features.check('avif')

_SIGNATURES = (  # (offset, bytes there, what to say); the first that fits counts
  (0, b'\x89PNG', 'corrupt: PNG with an unreadable header'),
  (0, b'\xff\xd8', 'corrupt: JPEG with an unreadable header'),
  (0, b'GIF8', 'corrupt: GIF with an unreadable header'),
  (8, b'WEBP', 'corrupt: WebP with an unreadable header'),
  (8, b'AVI ', 'not an image: AVI video'),
  (8, b'WAVE', 'not an image: sound'),
  (0, b'RIFF', 'corrupt or not an image: RIFF file that is no readable WebP'),
  (0, b'\0\0\0\x0cJXL ', 'wrong format: JPEG XL'),
  (0, b'\xff\x0a', 'wrong format: JPEG XL'),
  (0, b'\0\0\0\x0cjP  ', 'wrong format: JPEG 2000'),
  (0, b'\xff\x4f\xff\x51', 'wrong format: JPEG 2000'),
  (0, b'II\xbc', 'wrong format: JPEG XR'),
  (0, b'\x8aMNG', 'wrong format: MNG'),
  (0, b'\x8bJNG', 'wrong format: JNG'),
  (0, b'%!PS', 'wrong format: EPS or PostScript'),
  (0, b'\xc5\xd0\xd3\xc6', 'wrong format: EPS'),
  (0, b'%PDF', 'wrong format: PDF'),
  (0, b'8BPS', 'wrong format: Photoshop (PSD)'),
  (0, b'gimp xcf', 'wrong format: GIMP (XCF)'),
  (0, b'icns', 'wrong format: Apple icon (ICNS)'),
  (0, b'DDS ', 'wrong format: DDS'),
  (0, b'\xabKTX', 'wrong format: KTX'),
  (0, b'\x01\xda', 'wrong format: SGI'),
  (0, b'qoif', 'wrong format: QOI'),
  (0, b'BPG\xfb', 'wrong format: BPG'),
  (0, b'FLIF', 'wrong format: FLIF'),
  (0, b'\x76\x2f\x31\x01', 'wrong format: OpenEXR'),
  (0, b'#?RADIANCE', 'wrong format: Radiance HDR'),
  (0, b'#?RGBE', 'wrong format: Radiance HDR'),
  (0, b'PF\n', 'wrong format: PFM (floating point)'),
  (0, b'Pf\n', 'wrong format: PFM (floating point)'),
  (0, b'P7\n', 'wrong format: PAM'),
  (0, b'SIMPLE  =', 'wrong format: FITS'),
  (128, b'DICM', 'wrong format: DICOM'),
  (0, b'/* XPM */', 'wrong format: XPM'),
  (0, b'#define ', 'wrong format: XBM, or source text'),
  (0, b'\x59\xa6\x6a\x95', 'wrong format: Sun raster'),
  (0, b'AT&TFORM', 'wrong format: DjVu'),
  (0, b'\xd7\xcd\xc6\x9a', 'wrong format: WMF'),
  (40, b' EMF', 'wrong format: EMF'),
  (0, b'II*\0\x10\0\0\0CR', 'wrong format: camera raw (CR2)'),
  (0, b'FUJIFILMCCD', 'wrong format: camera raw (RAF)'),
  (0, b'IIRO', 'wrong format: camera raw (ORF)'),
  (0, b'IIU\0', 'wrong format: camera raw (RW2)'),
  (0, b'FOVb', 'wrong format: camera raw (X3F)'),
  (0, b'\x93NUMPY', 'not an image: NumPy array'),
  (0, b'\x89HDF', 'not an image: HDF5'),
  (0, b'SQLite', 'not an image: SQLite'),
  (0, b'PAR1', 'not an image: Parquet'),
  (0, b'PK\x03\x04', 'not an image: zip archive'),
  (0, b'\x1f\x8b', 'not an image: gzip (of an SVG, or an archive)'),
  (0, b'BZh', 'not an image: bzip2'),
  (0, b'\xfd7zXZ', 'not an image: xz'),
  (0, b'7z\xbc\xaf', 'not an image: 7z archive'),
  (0, b'Rar!', 'not an image: RAR archive'),
  (257, b'ustar', 'not an image: tar archive'),
  (0, b'\x1aE\xdf\xa3', 'not an image: Matroska or WebM video'),
  (0, b'\0\0\1\xba', 'not an image: MPEG video'),
  (0, b'FLV\1', 'not an image: Flash video'),
  (0, b'OggS', 'not an image: Ogg'),
  (0, b'ID3', 'not an image: sound'),
  (
    0,
    b'version https://git-lfs',
    'not an image: Git LFS pointer, fetch the file with `git lfs pull`',
  ),
)
_HEIF = (b'heic', b'heix', b'hevc', b'hevx', b'heim', b'heis', b'hevm', b'hevs', b'mif1', b'msf1')
_SUFFIXES = {  # of formats whose content has no signature
  '.tga': 'TGA',
  '.targa': 'TGA',
  '.icb': 'TGA',
  '.vda': 'TGA',
  '.vst': 'TGA',
  '.pcx': 'PCX',
  '.dcx': 'PCX',
  '.heic': 'HEIC',
  '.heif': 'HEIC',
  '.jxl': 'JPEG XL',
  '.jp2': 'JPEG 2000',
  '.j2k': 'JPEG 2000',
  '.ico': 'Windows icon (ICO)',
  '.psd': 'Photoshop (PSD)',
  '.dds': 'DDS',
  '.sgi': 'SGI',
  '.rgb': 'SGI',
  '.qoi': 'QOI',
  '.exr': 'OpenEXR',
  '.hdr': 'Radiance HDR',
  '.wbmp': 'WBMP',
  '.pict': 'PICT',
  '.pct': 'PICT',
  '.raw': 'camera raw',
  '.nef': 'camera raw (NEF)',
  '.nrw': 'camera raw',
  '.arw': 'camera raw (ARW)',
  '.dng': 'camera raw (DNG)',
  '.cr2': 'camera raw (CR2)',
  '.cr3': 'camera raw (CR3)',
  '.raf': 'camera raw (RAF)',
  '.orf': 'camera raw (ORF)',
  '.rw2': 'camera raw (RW2)',
  '.pef': 'camera raw (PEF)',
}
_PNG_KEPT = (b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND', b'acTL', b'fcTL', b'fdAT')


def what_else(data: bytes, name: str = '') -> str:
  """Names a file that is no picture we read, by its content, and by its name where the content says
  nothing.
  """
  if data.rstrip(b'\0').endswith(b'TRUEVISION-XFILE.'):
    return 'wrong format: TGA'
  for offset, signature, words in _SIGNATURES:
    if data.startswith(signature, offset):
      return words
  if data[4:8] == b'ftyp':
    return _of_iso_media(data)
  if len(data) > 18 and (kind := _of_numbers(data)):
    return f'wrong format: {kind}'
  start = data[:1024].lstrip(b'\xef\xbb\xbf \t\r\n').lower()
  if b'<svg' in start:
    return 'wrong format: SVG'
  if start.startswith(b'<'):
    return 'not an image: HTML or XML'
  if _is_text(start):
    return 'not an image: text'
  dot = name.lower().rfind('.')
  if dot >= 0 and name[dot:].lower() in _SUFFIXES:
    return f'wrong format: {_SUFFIXES[name[dot:].lower()]}, by its name'
  return 'not an image: unknown content'


def _is_text(start: bytes) -> bool:
  try:
    text = codecs.getincrementaldecoder('utf-8')().decode(start)  # which may end within a character
  except UnicodeDecodeError:
    return False
  return all(char.isprintable() or char.isspace() for char in text)


def _of_numbers(data: bytes) -> str | None:
  """Formats without a signature, by header fields that have few values."""
  if data[:3] in (b'\0\0\1', b'\0\0\2') and data[3] == 0 and data[4] and not data[9]:
    return 'Windows icon (ICO)' if data[2] == 1 else 'Windows cursor (CUR)'
  if data[0] == 10 and data[1] <= 5 and data[2] <= 1 and data[3] in (1, 2, 4, 8):
    return 'PCX'
  sides = struct.unpack_from('<HH', data, 12)
  if (
    data[1] <= 1
    and data[2] in (1, 2, 3, 9, 10, 11)
    and data[16] in (8, 15, 16, 24, 32)
    and all(sides)
  ):
    return 'TGA'
  return None


def _of_iso_media(data: bytes) -> str:
  brands = {
    data[8:12],
    *(data[i : i + 4] for i in range(16, min(int.from_bytes(data[:4], 'big'), 256), 4)),
  }
  if brands & {b'avif', b'avis'}:
    return (
      'corrupt: AVIF with an unreadable header'
      if 'AVIF' in FORMATS
      else 'wrong format: AVIF (this Pillow reads none; update it)'
    )
  if brands & set(_HEIF):
    return 'wrong format: HEIC; convert it to JPEG or PNG'
  return 'wrong format: camera raw (CR3)' if b'crx ' in brands else 'not an image: video (MP4, MOV)'


def without_metadata(data: bytes) -> bytes:
  """The same picture without EXIF, XMP, profiles and texts; unchanged if of another format, or
  broken earlier.

  Viewers show a picture whatever its metadata are; Pillow raises for some, before it looks at the
  pixels.
  """
  try:
    if data.startswith(b'\x89PNG\r\n\x1a\n'):
      return data[:8] + b''.join(c for kind, c in _png_chunks(data) if kind in _PNG_KEPT)
    if data.startswith(b'\xff\xd8'):
      return data[:2] + b''.join(_jpeg_kept(data))
    if data.startswith(b'RIFF') and data[8:12] == b'WEBP':
      return _webp_stripped(data)
  except (struct.error, IndexError):
    return data
  if data[4:12] in (b'ftypavif', b'ftypavis', b'ftypmif1'):
    return data.replace(b'Exif', b'xxxx')  # of this type nobody reads items; the offsets stay right
  return data


def _png_chunks(data: bytes):
  place = 8
  while place + 12 <= len(data):
    size = struct.unpack_from('>I', data, place)[0] + 12
    yield data[place + 4 : place + 8], data[place : place + size]
    place += size


def _jpeg_kept(data: bytes):
  """Segments but APP1 to APP13, APP15 and comments; APP14 says how Adobe's colours are meant."""
  place = 2
  while data[place] == 0xFF and data[place + 1] != 0xDA:
    marker, size = data[place + 1], 2 + struct.unpack_from('>H', data, place + 2)[0]
    if not (0xE1 <= marker <= 0xED or marker in (0xEF, 0xFE)):
      yield data[place : place + size]
    place += size
  yield data[place:]


def _webp_stripped(data: bytes) -> bytes:
  chunks, place = [], 12
  while place + 8 <= len(data):
    kind, size = data[place : place + 4], struct.unpack_from('<I', data, place + 4)[0]
    chunk = data[place : place + 8 + size + size % 2]
    if kind == b'VP8X':
      chunk = chunk[:8] + bytes([chunk[8] & ~0b101100]) + chunk[9:]  # its flags: profile, EXIF, XMP
    if kind not in (b'EXIF', b'XMP ', b'ICCP'):
      chunks.append(chunk)
    place += 8 + size + size % 2
  body = b'WEBP' + b''.join(chunks)
  return b'RIFF' + struct.pack('<I', len(body)) + body
