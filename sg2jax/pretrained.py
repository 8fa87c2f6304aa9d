"""Weights of other people's networks: where they are, how they are read and fetched.

A file is looked for at an explicit path; without one in the folder $SG2JAX_WEIGHTS, then in
`weights` of the cache. It is downloaded only on request (`fetch`, which the tool fetch_weights
calls). Nothing in a file is run, see `interop`.
"""

import hashlib
import http.client
import os
import pathlib
from typing import NamedTuple
from urllib import request

import numpy as np
import tqdm

from sg2jax import faults, files, paths
from sg2jax.interop import safetensors_file, sniff, torch_file

TOOL = 'python -m sg2jax.tools.fetch_weights'
MAX_BYTES = 2**31  # of a file, and of the arrays in it
CHUNK = 2**20  # bytes of a download
TIMEOUT = 30  # seconds without a byte


class File(NamedTuple):
  """A file as its author published it."""

  name: str
  bytes: int
  sha256: str  # hexadecimal
  urls: tuple[str, ...]  # https addresses of the same bytes
  what: str  # what it is, and what for
  licence: str


def _clip(name, size, sha256):
  """A CLIP of OpenAI's. Its hash is part of its address."""
  return File(
    name,
    size,
    sha256,
    (f'https://openaipublic.azureedge.net/clip/models/{sha256}/{name}',),
    f'CLIP {name.removesuffix(".pt")} by OpenAI: text-guided editing',
    'MIT',
  )


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
  'clip-vit-b-32': _clip(
    'ViT-B-32.pt', 353_976_522, '40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af'
  ),
  'clip-vit-b-16': _clip(
    'ViT-B-16.pt', 350_837_078, '5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f'
  ),
  'clip-vit-l-14': _clip(
    'ViT-L-14.pt', 932_768_134, 'b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836'
  ),
  'clip-vit-l-14-336px': _clip(
    'ViT-L-14-336px.pt',
    934_088_680,
    '3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02',
  ),
  'clip-rn50': _clip(
    'RN50.pt', 255_827_503, 'afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762'
  ),
  'clip-rn101': _clip(
    'RN101.pt', 291_791_292, '8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599'
  ),
  'clip-rn50x4': _clip(
    'RN50x4.pt', 421_854_225, '7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd'
  ),
  'clip-rn50x16': _clip(
    'RN50x16.pt', 661_125_706, '52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa'
  ),
  'clip-rn50x64': _clip(
    'RN50x64.pt', 1_353_500_174, 'be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c'
  ),
}
CLIP = tuple(name for name in FILES if name.startswith('clip-'))


# ---- where they are


def folders() -> list[pathlib.Path]:
  """The folders where files of FILES are looked for, first to last."""
  own = os.environ.get('SG2JAX_WEIGHTS')
  paths.check_local(own, f'SG2JAX_WEIGHTS={own}')
  found = [pathlib.Path(os.path.expanduser(own)).absolute()] if own else []
  found.append(paths.cache() / 'weights')
  if not os.environ.get(paths.VARIABLE) and (home := paths.home_cache()):
    found.append(home / 'weights')  # one that can only be read
  return list(dict.fromkeys(found))


def find(name: str, explicit: str | os.PathLike = '') -> pathlib.Path | None:
  """Path of the file `name` of FILES, at `explicit` or else in `folders`; None if there is none."""
  return next((path for path in _places(name, explicit) if path.is_file()), None)


def require(names: list[str], explicit: dict[str, str]) -> None:
  """Raises one WeightsError for all files that are missing, with the places looked at.

  names: of FILES; explicit: {name: path} of some.
  """
  missing = [name for name in names if not find(name, explicit.get(name, ''))]
  if missing:
    looked = '; '.join(
      f'{name} ({FILES[name].name}), looked for at '
      f'{", ".join(map(str, _places(name, explicit.get(name, ""))))}'
      for name in missing
    )
    raise faults.WeightsError(
      f'missing weights: {looked}. Get them with: {TOOL} {" ".join(missing)}'
    )


def _places(name, explicit):
  if explicit:
    return [pathlib.Path(os.path.expanduser(explicit)).absolute()]
  return [folder / FILES[name].name for folder in folders()]


def load(name: str, explicit: str | os.PathLike = '') -> tuple[dict[str, np.ndarray], str]:
  """The arrays of the file `name` of FILES, and the SHA-256 of that file, hexadecimal.

  What it can be: see `parse`. A file from `folders` must be the published one; at an explicit path
  any will do.

  Raises:
    WeightsError: it is missing, can't be read, or is refused by `parse`; the one in a folder is
      another one. Says file and reason.
  """
  require([name], {name: explicit})
  return load_file(find(name, explicit), None if explicit else name)


def load_file(path: pathlib.Path, name: str | None = None) -> tuple[dict[str, np.ndarray], str]:
  """The arrays of a file, and its SHA-256, hexadecimal. name: of FILES, which it must be.

  Raises: WeightsError as `load`.
  """
  try:
    size = path.stat().st_size
    if size > MAX_BYTES:
      raise ValueError(f'it has {size:,} bytes, and {MAX_BYTES:,} are allowed')
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if name and digest != FILES[name].sha256:
      known = FILES[name]
      raise ValueError(
        f'it has {size:,} bytes and sha256 {digest}, and {known.name} {known.bytes:,} and '
        f'{known.sha256}; delete it and get the right one with: {TOOL} {name}; weights of your own '
        f'are given by their path'
      )
    return parse(data), digest
  # Of files of strangers, zipfile and numpy raise all sorts of errors.
  except Exception as e:
    reason = str(e) if isinstance(e, ValueError) else f'{type(e).__name__}: {e}'
    raise faults.WeightsError(f'{path} is refused: {" ".join(reason.split())}') from e


def parse(data: bytes) -> dict[str, np.ndarray]:
  """{name: array} of a file's content, in the file's names and dtypes.

  It is a PyTorch state dict or TorchScript archive (see interop.torch_file), safetensors or NPZ
  (numbers only); its content says which.

  Raises:
    ValueError: it is none of them, or has anything else in it.
    Whatever zipfile and numpy raise on a broken NPZ.
  """
  match sniff.kind(data):
    case 'npz':
      return files.parse_npz(data, MAX_BYTES)
    case 'torch' | 'pickle':
      return torch_file.parse(data)
    case 'safetensors':
      return safetensors_file.parse(data)
  raise ValueError(sniff.explain(data, 'neither a PyTorch, a safetensors nor an NPZ file'))


# ---- fetching them

_HANDLERS = (
  request.ProxyHandler,
  request.HTTPSHandler,
  request.HTTPRedirectHandler,
  request.HTTPDefaultErrorHandler,
  request.HTTPErrorProcessor,
  request.UnknownHandler,
)


def is_right(path: pathlib.Path, file: File) -> bool:
  """Whether `path` has the content of `file`."""
  return path.is_file() and files.sha256(path) == file.sha256


def fetch(file: File, dest: pathlib.Path) -> None:
  """Makes sure that `dest` holds `file`: it is there, or an address has it; says what it did.

  Raises:
    WeightsError: no address had it; with reasons, and what to put where by hand.
    WriteError: `dest` can't be written.
  """
  path = dest / file.name
  if is_right(path, file):
    print(f'{path}: already there, and the right file')
    return
  reasons = []
  for url in file.urls:
    try:
      data = _download(url, file)
    except (OSError, http.client.HTTPException, ValueError) as e:
      reasons.append(f'{url}: {" ".join(str(e).strip("<>").split()) or type(e).__name__}')
      continue
    files.write_atomic(path, data)
    print(f'{path}: {file.bytes:,} bytes, sha256 {file.sha256}')
    return
  raise faults.WeightsError(
    f'{file.name} could not be downloaded ({"; ".join(reasons)}). Without network: get the file '
    f'elsewhere ({file.bytes:,} bytes, sha256 {file.sha256}) and put it at {path}'
  )


def _download(url, file):
  """The content of `url`. Raises: ValueError if it isn't `file`; OSError for the network."""
  # Https only, also where a server sends us on: no handler is for anything else.
  opener = request.OpenerDirector()
  for handler in _HANDLERS:
    opener.add_handler(handler())
  data = bytearray()
  bar = tqdm.tqdm(total=file.bytes, desc=file.name, unit='B', unit_scale=True, disable=None)
  with bar, opener.open(url, timeout=TIMEOUT) as response:
    # A server that doesn't end sends no more than a chunk too much.
    while len(data) <= file.bytes and (chunk := response.read(CHUNK)):
      data += chunk
      bar.update(len(chunk))
  digest = hashlib.sha256(data).hexdigest()
  if digest != file.sha256:
    raise ValueError(
      f'{len(data):,} bytes with sha256 {digest} came, and the file has {file.bytes:,} with '
      f'{file.sha256}'
    )
  return data
