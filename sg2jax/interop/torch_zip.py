"""The zip file that torch.save (1.6 and later) and TorchScript write: its parts, as they lie in it.

Both store what matters as it is: the pickle, and beside it the elements of each storage. In
TorchScript's the program is compressed. A part is looked at when it is asked for, so whoever asks
for no program never opens one.
"""

import contextlib
import io
import zipfile

from sg2jax.interop import sniff
from sg2jax.interop.pickle_reader import describe, need

SIGNATURE = b'PK\x03\x04'
_HEADER = 30  # bytes of a part's own header, before its name


class Archive:
  """The parts in the folder that has data.pkl, whatever it is called."""

  def __init__(self, data: bytes):
    """Reads the list of parts.

    Raises:
      ValueError: malformed, without data.pkl, or readers might disagree on what a name stands for.
    """
    with _zip_errors():
      # not cp437, which Python would have to import
      self._zip = zipfile.ZipFile(io.BytesIO(data), metadata_encoding='latin-1')
    self._data = data
    parts = self._zip.infolist()
    names = {part.filename for part in parts}
    roots = [name.removesuffix('data.pkl') for name in names if name.endswith('/data.pkl')]
    need(
      roots,
      'a zip archive without data.pkl, so not of PyTorch: unpack it and name the file in it, '
      f'or {sniff.AGAIN}',
    )
    # Where each part ends at the latest. Python before 3.11.8 doesn't look whether they overlap.
    starts = sorted({part.header_offset for part in parts})
    self._ends = dict(zip(starts, [*starts[1:], self._zip.start_dir]))
    need(
      len(names) == len(starts) == len(parts) and len(roots) == 1,
      'its parts are doubled or overlapping, or there are several data.pkl, as PyTorch never '
      'writes them',
    )
    self._root = roots[0]

  def __contains__(self, name: str) -> bool:
    return self._root + name in self._zip.NameToInfo

  def read(self, name: str) -> bytes:
    """The content of a part of the folder.

    Raises:
      ValueError: there is none; it is broken, compressed, encrypted, or not alone in its place.
    """
    with _zip_errors():
      part = self._zip.getinfo(self._root + name)
    self._check(part)
    with _zip_errors():
      return self._zip.read(part)

  def check_all(self) -> None:
    """Raises ValueError if there is any part that `read` would call odd, in whatever folder."""
    for part in self._zip.infolist():
      self._check(part)

  def _check(self, part):
    """So that nothing unpacks to more than the file, and no byte belongs to two parts."""
    at = part.header_offset
    lengths = (self._data[at + 26 : at + 28], self._data[at + 28 : at + 30])  # of name and rest
    start = at + _HEADER + sum(int.from_bytes(length, 'little') for length in lengths)
    need(
      part.compress_type == zipfile.ZIP_STORED
      and part.file_size == part.compress_size
      and start + part.file_size <= self._ends[at]
      and not part.flag_bits & 1,
      f'its part {describe(part.filename)} is compressed, encrypted or overlapping, as PyTorch '
      'never writes it',
    )


@contextlib.contextmanager
def _zip_errors():
  try:
    yield
  except Exception as e:  # zipfile raises all sorts of them
    raise ValueError(f'a broken zip file: {str(e)[:200]}; {sniff.AGAIN}') from None
