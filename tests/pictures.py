"""Picture files for tests, good and odd, as bytes."""

import io
import os
import struct
import zlib

import numpy as np
from PIL import Image

from sg2jax.data import formats


def encode(array, fmt='PNG', mode=None, **kwargs):
  image = Image.fromarray(np.asarray(array))
  return saved(image.convert(mode) if mode else image, fmt, **kwargs)


def saved(image, fmt='PNG', **kwargs):
  out = io.BytesIO()
  image.save(out, fmt, **kwargs)
  return out.getvalue()


def noise(i, height=20, width=20, channels=3):
  return np.random.default_rng(i).integers(0, 256, (height, width, channels), dtype=np.uint8)


def flat(*color, size=16):
  return np.full((size, size, len(color)), color, np.uint8)


def half():
  """White left, black right."""
  array = np.zeros((16, 16, 3), np.uint8)
  array[:, :8] = 255
  return array


def animation(fmt, *colors):
  frames = [Image.fromarray(flat(*c)) for c in colors or ((1, 2, 3), (4, 5, 6), (7, 8, 9))]
  return saved(frames[0], fmt, save_all=True, append_images=frames[1:])


def write_all(root, files):
  """Writes {name, also bytes: content} below `root`."""
  for name, content in files.items():
    path = os.path.join(os.fsencode(root), os.fsencode(name))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as file:
      file.write(content)


# ---- parts of files


def chunk(kind, content):
  """Of a PNG."""
  size = struct.pack('>I', len(content))
  return size + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def png(width, height, bits, rows):
  """RGB from rows with their filter bytes, whatever the header says."""
  header = struct.pack('>IIBBBBB', width, height, bits, 2, 0, 0, 0)
  chunks = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')
  return b'\x89PNG\r\n\x1a\n' + chunks


def bomb():
  return png(60_000, 60_000, 8, bytes(100_000))


def exif_block(entries, prefix=b''):
  """A TIFF header and one IFD of (tag, type, count, value)."""
  ifd = struct.pack('<H', len(entries)) + b''.join(struct.pack('<HHII', *e) for e in entries)
  return prefix + b'II*\0\x08\0\0\0' + ifd + bytes(4) + struct.pack('<II', 1, 2)


def with_chunk(data, kind, content):
  return data[:33] + chunk(kind, content) + data[33:]  # after IHDR


def with_segment(data, marker, content):
  """Of a JPEG."""
  return data[:2] + bytes([0xFF, marker]) + struct.pack('>H', len(content) + 2) + content + data[2:]


# ---- sets of files


def unusable_files():
  """{name: (bytes, part of the reason)}: about 190 files that can't be used at 16 pixels."""
  files = {}
  wholes = {
    'png': encode(noise(1, 40, 40)),
    'jpg': encode(noise(2, 40, 40), 'JPEG'),
    'webp': encode(noise(3, 40, 40), 'WEBP', lossless=True),
    'bmp': encode(noise(4, 40, 40), 'BMP'),
    'gif': encode(noise(5, 40, 40), 'GIF', 'P'),
  }
  tif = encode(noise(6, 40, 40), 'TIFF')
  for kind, whole in wholes.items():
    for k in range(25):
      files[f'truncated/{k}.{kind}'] = (whole[: 1 + k * (len(whole) - 40) // 25], '')
  for k in range(17):  # damage in the compressed pixels
    place = 200 + k * 99
    damaged = wholes['png'][:place] + b'\xff\0\xff\0' + wholes['png'][place + 4 :]
    files[f'flipped/{k}.png'] = (damaged, '')
  for k in range(8):
    files[f'truncated/{k}.tif'] = (tif[: k * len(tif) // 10], '')
    files[f'zero/{k}.png'] = (b'', 'empty file')
    files[f'zeros/{k}.jpg'] = (b'\0' * (k + 1) * 100, 'not an image')
    files[f'text/{k}.png'] = (b'not a picture ' * (k + 1), 'text')
    files[f'small/{k}.png'] = (encode(noise(k, 1 + k, 40)), 'too small')
  avif = animation('AVIF') if 'AVIF' in formats.FORMATS else b'\0\0\0\x18ftypavif'
  return files | {
    'page.png': (b'<!DOCTYPE html><html></html>', 'HTML'),
    'a.avif': (avif, 'AVIF'),
    'a.gif': (animation('GIF'), 'animated'),
    'a.webp': (animation('WEBP'), 'animated'),
    'a.png': (animation('PNG'), 'animated'),
    'pages.tif': (animation('TIFF'), 'multi-page'),
    '1x1.png': (encode(flat(1, 2, 3, size=1)), 'too small'),
    'bomb.png': (bomb(), 'decompression bomb'),
    'eps.png': (b'%!PS-Adobe-3.0 EPSF-3.0\n', 'EPS'),
    'float.tif': (encode(np.ones((16, 16), np.float32), 'TIFF'), 'floating-point'),
  }


def odd_files():
  """{name: (bytes, pixel [3] expected at the top left)}: usable at 16 pixels in unusual ways."""
  hole = Image.new('P', (16, 16), 1)
  hole.putpalette([0, 0, 0, 9, 9, 9])
  exif = Image.Exif()
  exif[0x112] = 8  # shown turned by 90 degrees, so that the right is at the top
  deep = np.full((16, 16), 257 * 99, np.uint16)
  return {
    'palette.png': (saved(Image.fromarray(flat(200, 30, 40)).quantize(4)), (200, 30, 40)),
    'hole.png': (saved(hole, transparency=1), (255, 255, 255)),
    'rgba.png': (encode(flat(0, 0, 0, 0)), (255, 255, 255)),
    'half.png': (encode(flat(0, 0, 0, 51)), (204, 204, 204)),
    'la.png': (saved(Image.new('LA', (16, 16), (100, 255))), (100, 100, 100)),
    'grey.png': (saved(Image.new('L', (16, 16), 77)), (77, 77, 77)),
    'bits.png': (saved(Image.new('1', (16, 16), 1)), (255, 255, 255)),
    'deep.png': (encode(deep), (99, 99, 99)),
    'deep.tif': (encode(deep, 'TIFF'), (99, 99, 99)),
    'cmyk.jpg': (encode(flat(255, 0, 0), 'JPEG', 'CMYK', quality=100), (255, 0, 0)),
    'turned.jpg': (encode(255 - half(), 'JPEG', exif=exif, quality=100), (255, 255, 255)),
    'wrong_suffix.jpg': (encode(flat(1, 2, 3)), (1, 2, 3)),
    'still.gif': (encode(flat(204, 51, 0), 'GIF', 'P'), (204, 51, 0)),
    'UPPER.BMP': (encode(flat(8, 9, 10), 'BMP'), (8, 9, 10)),
    'na\u00efve \u5b57.png': (encode(flat(11, 12, 13)), (11, 12, 13)),
  }


def files_with_broken_metadata():
  """{name: (bytes, are they to be turned by 270 degrees)} of `half`, which any viewer shows."""
  junk = b'\x00\x08\x00\x02\x01\x12\x00\x03'
  turn = (0x112, 3, 1, 6)
  rational = (0x10F, 5, 1, 38)
  exif = b'Exif\0\0'
  png = encode(half())
  jpeg = encode(half(), 'JPEG', quality=100)
  return {
    'junk.png': (encode(half(), exif=junk), False),
    'junk.webp': (encode(half(), 'WEBP', exif=junk, lossless=True), False),
    'rational.png': (with_chunk(png, b'eXIf', exif_block([rational, turn])), True),
    'rational.jpg': (with_segment(jpeg, 0xE1, exif_block([rational, turn], exif)), True),
    'junk.jpg': (with_segment(jpeg, 0xE1, exif + junk), False),
    'mpf.jpg': (with_segment(jpeg, 0xE2, b'MPF\0' + exif_block([(0xB001, 2, 9, 0)])), False),
    'photoshop.jpg': (with_segment(jpeg, 0xED, b'Photoshop 3.0\x008BIM\x04'), False),
    'hex.png': (with_chunk(png, b'tEXt', b'Raw profile type exif\0\nexif\n 8\nxyz'), False),
    'iccp.png': (with_chunk(png, b'iCCP', b'x\0\0y'), False),
    'array.jpg': (with_segment(jpeg, 0xE1, exif_block([(0x112, 3, 9, 6)], exif)), False),
    'pointer.tif': (encode(half(), 'TIFF', tiffinfo={0x8769: 3}), False),
  }


def files_of_other_formats():
  """{name: (bytes, what is said)}"""
  made = ('TGA', 'ICO', 'PCX', 'DDS', 'SGI', 'ICNS', 'JPEG2000')
  files = {f'{fmt}.png': (encode(noise(0, 32, 32), fmt), fmt) for fmt in made}
  return files | {
    'a.jxl': (b'\xff\x0a' + b'abc' * 9, 'JPEG XL'),
    'b.png': (b'\0\0\0\x0cJXL \r\n\x87\n', 'JPEG XL'),
    'codestream.jpg': (b'\xff\x4f\xff\x51' + bytes(40), 'JPEG2000'),
    'q.png': (b'qoif' + bytes(40), 'QOI'),
    'p.jpg': (b'8BPS\0\1' + bytes(40), 'PSD'),
    'h.jpg': (b'\0\0\0\x18ftypheic' + bytes(40), 'HEIC'),
    'm.jpg': (b'\0\0\0\x18ftypmif1\0\0\0\0heic', 'HEIC'),
    'v.png': (b'\0\0\0\x18ftypmp42' + bytes(40), 'video'),
    'x.svg': (b'<?xml version="1.0"?><svg xmlns="x"/>', 'SVG'),
    's.svg': (b'<svg xmlns="x"/>', 'SVG'),
    'z.svgz': (b'\x1f\x8b\x08' + bytes(40), 'gzip'),
    'x.zip': (b'PK\x03\x04' + bytes(30), 'zip'),
    'l.png': (b'version https://git-lfs.github.com/spec/v1', 'git lfs pull'),
    'README.txt': (b'hello', 'text'),
  }
