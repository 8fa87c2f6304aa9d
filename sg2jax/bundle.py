"""A folder to publish: a trained generator, what is known of it, and a list of hashes.

  generator.safetensors  moving average of the weights, noise maps, w_avg, under our names
  config.json            of the run, with c_dim
  labels.json            where there are labels
  README.md, *.png       the card (tools.card)
  LICENSE                the text of a licence that hubs have no name of
  SHA256SUMS             of all of these, as `sha256sum -c` reads it

What a network is made of is checked against the list each time it is read. The card may be edited:
only `sha256sum -c` looks at it, and who would replace it.
"""

import hashlib
import json
import os
import re
from typing import Any

from flax import traverse_util
import numpy as np

from sg2jax import files, paths
from sg2jax.addresses import Address
from sg2jax.faults import CheckpointError

WEIGHTS = 'generator.safetensors'
CONFIG = 'config.json'
LABELS = 'labels.json'
CARD = 'README.md'
SUMS = 'SHA256SUMS'
FORMAT = 'sg2jax-bundle-1'
FIELDS = ('step', 'nimg', 'g_ema', 'noise', 'w_avg')  # of a state
AGAIN = 'download the bundle again'
# Of strangers' files, at most: what a machine reads into memory, and whose values it allocates.
MAX_BYTES = {WEIGHTS: 2**34}
MAX_OTHER_BYTES = 2**26
MAX_C_DIM = 2**20
_LINE = re.compile(r'([0-9a-f]{64}) [ *]([^/\\\n]+)')


def is_there(path: paths.Path) -> bool:
  """Whether a path is a bundle, be it a damaged one; a run or a checkpoint is none."""
  ours = ('checkpoints', 'state', 'manifest.json')
  return (path / SUMS).exists() and not any((path / name).exists() for name in ours)


def home(path: str | os.PathLike) -> paths.Path:
  """The workdir of a workdir, or of one step; a bundle; the folder of a step copied elsewhere."""
  path = paths.place(path).absolute()
  for place in (path, *path.parents[:2]):
    if (place / 'checkpoints').is_dir() or is_there(place):
      return place
  return path.parent


# ---- writing


def weights(state: dict[str, Any]) -> bytes:
  """The file of weights of a state, as `checkpoint.load` gives it.

  Raises CheckpointError: `read` would refuse it.
  """
  from safetensors import numpy as safetensors  # here: who loads a run does without

  flat = traverse_util.flatten_dict({name: state[name] for name in FIELDS}, sep='.')
  arrays = {name: np.array(x, order='C') for name, x in flat.items()}
  if problem := _not_finite(arrays):
    raise CheckpointError(
      f'{problem}: this network has diverged; name an earlier checkpoint, RUN/checkpoints/STEP'
    )
  return safetensors.save(arrays, {'format': FORMAT})


def _not_finite(arrays):
  """What is wrong with the first array {name: array} that holds NaN or infinity; '': nothing."""
  for name, x in arrays.items():
    if not np.isfinite(x).all():
      return f'{name} has numbers that are not finite'
  return ''


def sums(contents: dict[str, bytes]) -> str:
  """The list of hashes of {name: content}."""
  lines = [f'{hashlib.sha256(data).hexdigest()}  {name}' for name, data in sorted(contents.items())]
  return '\n'.join(lines) + '\n'


# ---- reading


def read(path: paths.Path) -> tuple[dict, dict]:
  """State and configuration in a bundle, as `checkpoint.load` gives them.

  There is no discriminator, so that 'd' is {}; 'g' is the moving average, as of an imported file.

  Raises:
    CheckpointError: a file is missing, is not what was written, or is from the future.
  """
  listed = read_sums(path)
  content = {name: checked(path, name, listed) for name in (WEIGHTS, CONFIG)}
  # One that is not listed would decide about images, too.
  if LABELS in listed or (path / LABELS).exists():
    checked(path, LABELS, listed)
  try:
    config = json.loads(content[CONFIG])
    state = _state(content[WEIGHTS])
    c_dim = config['c_dim']
    if type(c_dim) is not int or not 0 <= c_dim <= MAX_C_DIM:
      raise ValueError(f'c_dim={c_dim!a} is no number from 0 to {MAX_C_DIM:,}')
  except CheckpointError:
    raise
  except Exception as e:  # strangers' files make safetensors, flax and json raise all sorts
    reason = ' '.join(f'{type(e).__name__}: {e}'.split())[:300]
    raise CheckpointError(f'{path} is no bundle of sg2jax export ({reason}); {AGAIN}') from e
  return state, config


def read_sums(path: paths.Path) -> dict[str, str]:
  """{name: SHA-256} of the files of a bundle. Raises CheckpointError: it is no list of one."""
  file = path / SUMS
  try:
    lines = _content(path, SUMS).decode().splitlines()
  except (OSError, ValueError) as e:
    reason = files.reason(e) if isinstance(e, OSError) else e
    raise CheckpointError(f'{file} cannot be read ({reason}); {AGAIN}') from e
  matches = [_LINE.fullmatch(line) for line in lines]
  if not all(matches):
    raise CheckpointError(f'{file} is no list of hashes as sha256sum writes it; {AGAIN}')
  listed = {match[2]: match[1] for match in matches}
  if WEIGHTS not in listed or CONFIG not in listed:
    raise CheckpointError(
      f'{file} is not that of a bundle: it does not list {WEIGHTS} and {CONFIG}. Give a workdir, a '
      'checkpoint, or a folder that `sg2jax export --bundle` wrote'
    )
  return listed


def checked(path: paths.Path, name: str, listed: dict[str, str]) -> bytes:
  """The content of a file, if it has the hash that is listed. Raises CheckpointError."""
  if name not in listed:
    raise CheckpointError(f'{path / name} is not in {SUMS}: it is not of this bundle; {AGAIN}')
  try:
    data = _content(path, name)
  except (OSError, ValueError) as e:
    reason = files.reason(e) if isinstance(e, OSError) else e
    raise CheckpointError(f'{path / name}: {reason}; {AGAIN}') from e
  if hashlib.sha256(data).hexdigest() != listed[name]:
    raise CheckpointError(
      f'{path / name} is not what was written (its SHA-256 is not that in {SUMS}); {AGAIN}'
    )
  return data


def _content(path, name):
  """Of a file; links are followed, as hubs keep their downloads behind links."""
  file = path / name
  if file.exists() and not file.is_file():  # a folder; a device or a pipe has no end
    raise ValueError('it is no file')
  most = MAX_BYTES.get(name, MAX_OTHER_BYTES)
  if isinstance(file, Address):
    size = (file.details() or {}).get('size', 0)  # what isn't there is said as it is read
  else:
    size = file.stat().st_size
  if size > most:
    raise ValueError(f'it has {size:,} bytes, and {most:,} are allowed')
  return file.read_bytes()


def _state(data):
  from safetensors import numpy as safetensors  # here: who loads a run does without

  header = json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])
  found = header.get('__metadata__', {}).get('format')
  if found is None:
    raise ValueError(f'{WEIGHTS} says of no format that it is in')
  if found != FORMAT:
    raise CheckpointError(
      f'{WEIGHTS} has format {found!a}; this code reads {FORMAT}: update sg2jax'
    )
  arrays = safetensors.load(data)
  state = {'noise': {}} | traverse_util.unflatten_dict(arrays, sep='.')
  if state.keys() != set(FIELDS):
    raise ValueError(f'{WEIGHTS} holds {sorted(state)}, and should hold {sorted(FIELDS)}')
  if problem := _not_finite(arrays):
    raise ValueError(problem)
  for name in ('step', 'nimg'):
    x = state[name]
    if not isinstance(x, np.ndarray) or x.shape or x.dtype != np.int32 or x < 0:
      raise ValueError(f'{name} is no count')
  return state | {'g': state['g_ema'], 'd': {}, 'pl_mean': np.float32(0)}
