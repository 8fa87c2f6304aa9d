"""What a file is that isn't what was asked for: downloads go wrong in a few ways, which people
should be told by name.
"""

import codecs
import contextlib
import re

AGAIN = 'download it again'
UNPACK = f'unpack it first, or {AGAIN}'
_SIGNATURES = (
  (
    b'version https://git-lfs',
    'a pointer of Git LFS, not the file itself',
    f'git lfs pull fetches that, or {AGAIN}',
  ),
  (b'\x1f\x8b', 'compressed by gzip', UNPACK),
  (b'BZh', 'compressed by bzip2', UNPACK),
  (b'\xfd7zXZ\0', 'compressed by xz', UNPACK),
  (b'\x28\xb5\x2f\xfd', 'compressed by zstd', UNPACK),
  (b'PK\x05\x06', 'an empty zip archive', AGAIN),
  (b'7z\xbc\xaf\x27\x1c', 'a 7z archive', UNPACK),
  (b'Rar!', 'a RAR archive', UNPACK),
  (b'\x89HDF', 'an HDF5 file (Keras, or other weights)', ''),
  (b'\x93NUMPY', 'a single array of NumPy (.npy)', ''),
  (b'\x89PNG', 'a PNG picture', ''),
  (b'\xff\xd8\xff', 'a JPEG picture', ''),
  (b'GIF8', 'a GIF picture', ''),
  (b'RIFF', 'a RIFF file (WebP, sound or video)', ''),
  (b'%PDF', 'a PDF document', ''),
  (b'\x7fELF', 'a program', ''),
  (b'MZ', 'a program', ''),
)


def describe(data: bytes, wanted: str) -> str:
  """'it is a web page (HTML) ..., WANTED: download it again', or whatever else the content of a
  file looks like.
  """
  what, remedy = _look(data)
  return f'it is {what}, {wanted}: {remedy}'


def some(names) -> str:
  """The first of some names of strangers, for messages."""
  names = list(names)
  return (', '.join(ascii(name[:60])[1:-1] for name in names[:3]) or 'empty') + (
    ', ...' if len(names) > 3 else ''
  )


def _look(data):
  """(what it is, what to do)."""
  if not data:
    return 'empty (0 bytes)', AGAIN
  if not data.strip(b'\0'):
    return 'nothing but zeros', AGAIN
  for signature, what, remedy in _SIGNATURES:
    if data.startswith(signature):
      return what, remedy or f'take another file, or {AGAIN}'
  if data[257:262] == b'ustar':
    return 'a tar archive', UNPACK
  if data[8:9] == b'{' and int.from_bytes(data[:8], 'little') < len(data):
    return 'a file of safetensors', 'take another file'
  return _text(data)


def _text(data):
  text = data[:1024].lstrip(b'\xef\xbb\xbf \t\r\n')
  start = text.lower()
  if start.startswith((b'<!doctype html', b'<html', b'<head', b'<body', b'<script')):
    return 'a web page (HTML), such as a message that a quota was exceeded', AGAIN
  if start.startswith(b'<'):
    return 'XML, such as the error message of a server', AGAIN
  with contextlib.suppress(UnicodeDecodeError):
    # whose end may be in the middle of a letter
    words = codecs.getincrementaldecoder('utf-8')().decode(text)
    if not re.search('[^\t\n\r\x20-\x7e\xa0-\uffff]', words):
      return f'text ({ascii(" ".join(words[:60].split()))})', f'take another file, or {AGAIN}'
  return 'of unknown content', f'if it should be one, it is damaged: {AGAIN}'
