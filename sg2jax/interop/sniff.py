"""What a file is, by its content: its name says nothing, and downloads go wrong in a few ways."""

import codecs
from collections.abc import Iterable
import contextlib
import re

# First of the pickles in a file of torch.save before 1.6.
TORCH_MAGIC = 0x1950A86A20F9469CFC6C
AGAIN = 'download it again'
_UNPACK = f'unpack it first, or {AGAIN}'
_OTHER = f'take another file, or {AGAIN}'
_SIGNATURES = (
  (b'version https://git-lfs', 'a pointer of Git LFS', f'git lfs pull fetches it, or {AGAIN}'),
  (b'\x1f\x8b', 'compressed by gzip', _UNPACK),
  (b'BZh', 'compressed by bzip2', _UNPACK),
  (b'\xfd7zXZ\0', 'compressed by xz', _UNPACK),
  (b'\x28\xb5\x2f\xfd', 'compressed by zstd', _UNPACK),
  (b'PK\x05\x06', 'an empty zip archive', AGAIN),
  (b'7z\xbc\xaf\x27\x1c', 'a 7z archive', _UNPACK),
  (b'Rar!', 'a RAR archive', _UNPACK),
  (b'\x89HDF', 'an HDF5 file (Keras, or other weights)', _OTHER),
  (b'\x93NUMPY', 'a single array of NumPy (.npy)', _OTHER),
  (b'\x89PNG', 'a PNG picture', _OTHER),
  (b'\xff\xd8\xff', 'a JPEG picture', _OTHER),
  (b'GIF8', 'a GIF picture', _OTHER),
  (b'RIFF', 'a RIFF file (WebP, sound or video)', _OTHER),
  (b'%PDF', 'a PDF document', _OTHER),
  (b'\x7fELF', 'a program', _OTHER),
  (b'MZ', 'a program', _OTHER),
)


def kind(data: bytes) -> str:
  """'npz', 'torch' (of torch.save, either format), 'pickle', 'safetensors' or '': none of these."""
  if data.startswith(b'PK\x03\x04'):
    first_name = data[30 : 30 + int.from_bytes(data[26:28], 'little')]
    return 'npz' if first_name.endswith(b'.npy') else 'torch'
  if TORCH_MAGIC.to_bytes(10, 'little') in data[:64]:
    return 'torch'
  if data.startswith(b'\x80'):
    return 'pickle'
  if data[8:9] == b'{' and int.from_bytes(data[:8], 'little') < len(data):
    return 'safetensors'
  return ''


def explain(data: bytes, wanted: str) -> str:
  """'it is a web page (HTML) ..., WANTED: download it again', or whatever else it looks like."""
  what, remedy = _what_and_remedy(data)
  return f'it is {what}, {wanted}: {remedy}'


def some(names: Iterable[str]) -> str:
  """The first of some names of strangers, for messages."""
  names = list(names)
  shown = ', '.join(ascii(name[:60])[1:-1] for name in names[:3])
  return (shown or 'empty') + (', ...' if len(names) > 3 else '')


def _what_and_remedy(data):
  if not data:
    return 'empty (0 bytes)', AGAIN
  if not data.strip(b'\0'):
    return 'nothing but zeros', AGAIN
  for signature, what, remedy in _SIGNATURES:
    if data.startswith(signature):
      return what, remedy
  if data[257:262] == b'ustar':
    return 'a tar archive', _UNPACK
  if kind(data) == 'safetensors':
    return 'a file of safetensors', 'take another file'
  start = data[:1024].lstrip(b'\xef\xbb\xbf \t\r\n')
  if start.lower().startswith((b'<!doctype html', b'<html', b'<head', b'<body', b'<script')):
    return 'a web page (HTML), such as a message that a quota was exceeded', AGAIN
  if start.startswith(b'<'):
    return 'XML, such as the error message of a server', AGAIN
  with contextlib.suppress(UnicodeDecodeError):
    # Incremental, since the end may be in the middle of a letter.
    words = codecs.getincrementaldecoder('utf-8')().decode(start)
    if not re.search('[^\t\n\r\x20-\x7e\xa0-\uffff]', words):
      return f'text ({ascii(" ".join(words[:60].split()))})', _OTHER
  return 'of unknown content', f'if it should be one, it is damaged: {AGAIN}'
