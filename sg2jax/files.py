"""Files: written whole or not at all, the bytes of arrays and pictures, digests."""

from collections.abc import Iterator
import contextlib
import hashlib
import io
import os
import pathlib
import shutil
import zipfile

import numpy as np

from sg2jax import faults, paths

# ---- on disk


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
  """Turns an OSError inside the `with` into a WriteError that names `path` and the room there."""
  try:
    yield
  except OSError as e:
    raise faults.WriteError(
      f'cannot write {path}: {e.strerror or e}; {free_bytes(path):,} bytes are free there. Make '
      'room or choose another place, then run the same command again.'
    ) from e


def write_atomic(path: str | os.PathLike, data: str | bytes) -> None:
  """Writes so that `path` holds the old or the new content whole, whenever it is read.

  Raises:
    WriteError: with the path and the free bytes.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with open(temporary, 'wb') as f:
        f.write(data.encode() if isinstance(data, str) else data)
        f.flush()
        # Without it a crash of the machine can leave the new name on an empty file.
        os.fsync(f.fileno())
      os.replace(temporary, path)
    except OSError:
      temporary.unlink(missing_ok=True)
      raise


def free_bytes(path: str | os.PathLike) -> int:
  """Bytes free where `path` is, or would be."""
  return shutil.disk_usage(paths.nearest(pathlib.Path(path).absolute())).free


def sha256(path: str | os.PathLike) -> str:
  """Hexadecimal SHA-256 of a file."""
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


# ---- as bytes


def npz(**arrays: np.ndarray) -> bytes:
  """Arrays -> an .npz file."""
  out = io.BytesIO()
  np.savez(out, **arrays)
  return out.getvalue()


def parse_npz(data: bytes, max_bytes: int) -> dict[str, np.ndarray]:
  """An .npz file -> its arrays; nothing in it is run.

  Raises:
    ValueError: it holds more than `max_bytes`, or what is no array of numbers.
    Whatever zipfile and numpy raise on a broken file.
  """
  # What the archive says of itself; zipfile reads no more than that, so a bomb is seen here.
  size = sum(part.file_size for part in zipfile.ZipFile(io.BytesIO(data)).infolist())
  if size > max_bytes:
    raise ValueError(f'its arrays have {size:,} bytes, and {max_bytes:,} are allowed')
  with np.load(io.BytesIO(data), allow_pickle=False) as file:
    arrays = dict(file)
  for name, value in arrays.items():
    if not isinstance(value, np.ndarray) or value.dtype.kind not in 'fiub':
      raise ValueError(f'{name!a} is not an array of numbers')
  return arrays


def png(image: np.ndarray) -> bytes:
  """uint8 [H,W,C], C of 1, 3 or 4 -> a PNG file."""
  # Here, not above: networks are loaded where Pillow isn't installed.
  from PIL import Image

  out = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(out, 'PNG')
  return out.getvalue()
