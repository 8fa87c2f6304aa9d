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

from sg2jax import addresses, faults, paths
from sg2jax.addresses import Address

# ---- on disk


@contextlib.contextmanager
def writing(path: str | os.PathLike | Address) -> Iterator[None]:
  """Turns an OSError inside the `with` into a WriteError that names `path` and the room there."""
  try:
    yield
  except OSError as e:
    if isinstance(path, Address):
      raise faults.WriteError(
        f'cannot write {path}: {reason(e)}. What was written before is whole; see that the bucket '
        'is there, that you may write to it, and the connection, then run the same command again.'
      ) from e
    raise faults.WriteError(
      f'cannot write {path}: {e.strerror or e}; {free_bytes(path):,} bytes are free there. Make '
      'room or choose another place, then run the same command again.'
    ) from e


@contextlib.contextmanager
def reading(path: paths.Path) -> Iterator[None]:
  """Turns what a store refuses inside the `with` into a UsageError that names the address."""
  try:
    yield
  except addresses.StoreError as e:
    raise faults.UsageError(
      f'cannot read {path}: {reason(e)}. See that you may read it, and the connection, then run '
      'the same command again'
    ) from e


def reason(error: OSError) -> str:
  """What an error of a disk or a store says, for people."""
  if isinstance(error, FileNotFoundError) and not error.strerror:
    return f'no such bucket or object ({error})'
  return error.strerror or str(error)


def write_atomic(path: str | os.PathLike | Address, data: str | bytes) -> None:
  """Writes so that `path` holds the old or the new content whole, whenever it is read.

  Raises:
    WriteError: with the path and the free bytes.
  """
  path = paths.place(path)
  if isinstance(path, Address):  # objects appear whole
    with writing(path):
      path.write_bytes(data.encode() if isinstance(data, str) else data)
    return
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


@contextlib.contextmanager
def whole_folder(dest: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder to fill: it is called `dest` once all is in it, and is gone otherwise.

  What was at `dest` is replaced by it, or stays as it was. Raises WriteError.
  """
  dest = dest.resolve()  # a link stays, and what it leads to is replaced
  folder = dest.with_name(f'.{dest.name}.{os.getpid()}')
  before = dest.with_name(f'{folder.name}.before')
  try:
    with writing(dest):
      yield folder
      if not dest.is_dir():
        os.replace(folder, dest)
        return
      try:
        os.replace(dest, before)  # a folder is not put in the place of one that holds something
        os.replace(folder, dest)
      except BaseException:  # a signal, too
        if before.is_dir() and not dest.exists():
          os.replace(before, dest)
        raise
  finally:
    shutil.rmtree(folder, ignore_errors=True)
    if dest.exists():
      shutil.rmtree(before, ignore_errors=True)


def remove_tree(folder: paths.Path) -> None:
  """Deletes a folder, or all objects below an address, as far as it can be."""
  if not isinstance(folder, Address):
    shutil.rmtree(folder, ignore_errors=True)
    return
  with contextlib.suppress(OSError):
    folder.remove_all()


def free_bytes(path: str | os.PathLike) -> int:
  """Bytes free where a path of this machine is, or would be."""
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


def parse_npz(data: bytes, max_bytes: int, kinds: str = 'fiub') -> dict[str, np.ndarray]:
  """An .npz file -> its arrays; nothing in it is run. kinds: of dtypes that it may hold, U: texts.

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
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
      raise ValueError(f'{name!a} is not an array of numbers')
  return arrays


def png(image: np.ndarray) -> bytes:
  """uint8 [H,W,C], C of 1, 3 or 4 -> a PNG file."""
  # Here, not above: networks are loaded where Pillow isn't installed.
  from PIL import Image

  out = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(out, 'PNG')
  return out.getvalue()
