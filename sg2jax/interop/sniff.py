"""What a file is, by its content: its name says nothing, and downloads go wrong in a few ways."""

import re

# First of the pickles in a file of torch.save before 1.6.
TORCH_MAGIC = 0x1950A86A20F9469CFC6C
AGAIN = 'download it again'
_SIGNATURES = (  # what such a file begins with
  (rb'\Z', 'empty (0 bytes)'),
  (rb'version https://git-lfs', 'a pointer of Git LFS, which `git lfs pull` replaces by the file'),
  (rb'(\xef\xbb\xbf)?\s*<[!?a-zA-Z]', 'a web page (HTML or XML), such as a message of the server'),
  (rb'\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!', 'compressed, so unpack it first'),
  (rb'', 'of unknown content'),
)


def kind(data: bytes) -> str:
  """'npz', 'torch', 'pickle', 'safetensors' or '': none of these.

  'torch': of torch.save, in either format, or TorchScript.
  """
  if data.startswith(b'PK\x03\x04'):
    first_name = data[30 : 30 + int.from_bytes(data[26:28], 'little')]
    return 'npz' if first_name.endswith(b'.npy') else 'torch'
  # Before pickles: a length can begin with their first byte, but no network's pickle is, read as
  # a number, that small.
  if data[8:9] == b'{' and int.from_bytes(data[:8], 'little') < len(data):
    return 'safetensors'
  if TORCH_MAGIC.to_bytes(10, 'little') in data[:64]:
    return 'torch'
  if data.startswith(b'\x80'):
    return 'pickle'
  return ''


def explain(data: bytes, wanted: str) -> str:
  """'it is a web page ... (b'<html>'), WANTED: download it again', or what else it looks like."""
  what = next(what for signature, what in _SIGNATURES if re.match(signature, data))
  return f'it is {what} ({data[:40]}), {wanted}: {AGAIN}'
