"""Weights of other people's networks: which files there are, where they are looked for, and what is
in them.

A file is looked for at an explicit path; without one in the folder $SG2JAX_WEIGHTS, then in
`weights` of the cache. Nothing is downloaded here: `python -m sg2jax.tools.fetch_weights` does, on
request. Nothing in a file is run, see `interop`.
"""

import dataclasses
import hashlib
import io
import os
import pathlib

import numpy as np

from sg2jax import faults, files, paths
from sg2jax.interop import foreign, torch_file

TOOL = 'python -m sg2jax.tools.fetch_weights'
MAX_BYTES = 2**31  # of a file, and of the arrays in it
MAX_DATASETS = 10_000  # and groups, in an HDF5 file


@dataclasses.dataclass(frozen=True)
class File:
  """A file as its author published it: name, size, sha256 in hexadecimal, https addresses of the
  same bytes.
  """

  name: str
  bytes: int
  sha256: str
  urls: tuple[str, ...]
  what: str
  licence: str


@dataclasses.dataclass(frozen=True)
class Identity:
  """What was loaded: where from, its sha256 in hexadecimal, and whether that is the published
  file's.
  """

  path: str
  sha256: str
  known: bool


# Sizes and hashes as several independent projects record them. Two names carry the first 8 digits,
# as torch.hub checks them.
FILES = {
  'inception': File(
    'pt_inception-2015-12-05-6726825d.pth',
    95_628_359,
    '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2',
    (
      'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth',
      'https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth',
    ),
    'Inception-v3 of 2015-12-05 by Google, converted by pytorch-fid: FID, KID, IS',
    'Apache-2.0',
  ),
  'vgg16': File(
    'vgg16-397923af.pth',
    553_433_881,
    '397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0',
    ('https://download.pytorch.org/models/vgg16-397923af.pth',),
    'VGG16 of torchvision: precision and recall, PPL (with lpips_vgg)',
    'BSD-3-Clause',
  ),
  'lpips_vgg': File(
    'vgg.pth',
    7_289,
    'a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868',
    (
      'https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1/vgg.pth',
    ),
    'linear layers of LPIPS 0.1 on VGG16, by its authors: PPL',
    'BSD-2-Clause',
  ),
}


def cache() -> pathlib.Path:
  """The folder for what can be made or fetched again, see `places.cache`."""
  return paths.cache()


def folders() -> list[pathlib.Path]:
  """The folders where files of FILES are looked for, first to last."""
  own = os.environ.get('SG2JAX_WEIGHTS')
  paths.check_local(own, f'SG2JAX_WEIGHTS={own}')
  found = [pathlib.Path(os.path.expanduser(own)).absolute()] if own else []
  found.append(cache() / 'weights')
  if not os.environ.get(paths.VARIABLE) and (home := paths.home_cache()):
    found.append(home / 'weights')  # one that can only be read
  return list(dict.fromkeys(found))


def find(name: str, explicit: str | os.PathLike = '') -> pathlib.Path | None:
  """Path of the file `name` of FILES: `explicit` if given, else from `folders`; None if there is
  none.
  """
  return next((path for path in _places(name, explicit) if path.is_file()), None)


def require(names: list[str], explicit: dict[str, str] | None = None) -> dict[str, pathlib.Path]:
  """{name: path} of all files, of which `explicit` gives the paths of some; reads none.

  Raises:
    UsageError: a name that isn't in FILES.
    WeightsError: one for all missing files, with the places looked at and the remedy.
  """
  explicit = {name: (explicit or {}).get(name, '') for name in names}
  found = {name: find(name, path) for name, path in explicit.items()}
  missing = [name for name, path in found.items() if path is None]
  if missing:
    looked = '; '.join(
      f'{name} ({FILES[name].name}), looked for at '
      f'{", ".join(map(str, _places(name, explicit[name])))}'
      for name in missing
    )
    raise faults.WeightsError(
      f'missing weights: {looked}. Get them with: {TOOL} {" ".join(missing)}'
    )
  return found


def load(name: str, explicit: str | os.PathLike = '') -> tuple[dict[str, np.ndarray], Identity]:
  """The arrays of the file `name` of FILES, and its identity.

  A file from `folders` must be the published one; at an explicit path any will do, and the identity
  says which it was.

  Raises:
    UsageError, WeightsError: as `require` and `read`; the file in a folder is another one.
  """
  path = require([name], {name: explicit})[name]
  data, known = _bytes(path), FILES[name]
  digest = hashlib.sha256(data).hexdigest()
  if digest != known.sha256 and not explicit:
    raise faults.WeightsError(
      f'{path}: {len(data):,} bytes with sha256 {digest}, and {known.name} has {known.bytes:,} '
      f'with {known.sha256}. Delete '
      f'the file and get it with: {TOOL} {name}; weights of your own are given by their path'
    )
  return _parse(path, data), Identity(str(path), digest, digest == known.sha256)


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """The arrays in a file, whose content, not its name, says what it is.

  Args:
    path: PyTorch state dict (see interop.torch_file), HDF5 ({'/group/name': dataset}; numbers only,
    no links to elsewhere),
      or NPZ (numbers only).

  Raises:
    WeightsError: the file can't be read, is none of these, or has anything else in it; says file
    and reason.
  """
  return _parse(path, _bytes(path))


def _places(name, explicit):
  if name not in FILES:
    raise faults.UsageError(f'weights {name!r} are unknown; choose from {", ".join(FILES)}')
  if explicit:
    return [pathlib.Path(os.path.expanduser(explicit)).absolute()]
  return [folder / FILES[name].name for folder in folders()]


def _bytes(path):
  try:
    if (size := os.stat(path).st_size) > MAX_BYTES:
      raise faults.WeightsError(
        f'{path} is refused: it has {size:,} bytes, and {MAX_BYTES:,} are allowed'
      )
    return pathlib.Path(path).read_bytes()
  except (OSError, MemoryError) as e:
    raise faults.WeightsError(
      f'cannot read {path}: {getattr(e, "strerror", None) or type(e).__name__}'
    ) from e


def _parse(path, data):
  entry = data[30 : 30 + int.from_bytes(data[26:28], 'little')]  # name of a zip file's first part
  zipped = data.startswith(b'PK\x03\x04')
  try:
    if data.startswith(b'\x89HDF\r\n\x1a\n'):
      return _hdf5(data)
    if zipped and entry.endswith(b'.npy'):
      return files.parse_npz(data, MAX_BYTES)
    if zipped or data.startswith(b'\x80'):
      return torch_file.parse(data)
    raise ValueError(foreign.describe(data, 'neither a PyTorch nor an HDF5 nor an NPZ file'))
  except Exception as e:  # zipfile, numpy and h5py raise all sorts of them on broken files
    reason = str(e) if isinstance(e, ValueError) else f'{type(e).__name__}: {e}'
    raise faults.WeightsError(f'{path} is refused: {" ".join(reason.split())}') from e


def _hdf5(data):
  try:
    import h5py
  except ImportError:
    raise ValueError('reading HDF5 needs h5py; install it with: pip install h5py') from None
  arrays, count, size = {}, 0, 0
  with h5py.File(io.BytesIO(data), 'r') as file:
    groups = [('', file)]
    while groups:
      prefix, group = groups.pop()
      for name in group:
        path, count = f'{prefix}/{name}', count + 1
        if count > MAX_DATASETS:  # or groups that contain themselves
          raise ValueError(f'more than {MAX_DATASETS:,} groups and datasets')
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
          raise ValueError(f'{path!a} is a link')
        item = group[name]
        if isinstance(item, h5py.Group):
          groups.append((path, item))
          continue
        if (
          not isinstance(item, h5py.Dataset)
          or item.dtype.kind not in 'fiub'
          or item.shape is None
          or item.external
          or item.is_virtual
        ):  # the latter two are read from other files
          raise ValueError(f'{path!a} is not an array of numbers in this file')
        size += item.nbytes
        if size > MAX_BYTES:
          raise ValueError(f'its arrays have more than {MAX_BYTES:,} bytes')
        arrays[path] = item[()]
  return arrays
