"""A folder to publish: a trained generator, what is known of it, and a list of hashes.

  generator.safetensors  moving average of the weights, noise maps, w_avg, under our names
  config.json            of the run, with c_dim
  labels.json            where there are labels
  README.md, *.png       the card (tools.card)
  SHA256SUMS             of all of these, as `sha256sum -c` reads it

What a network is made of is checked against the list each time it is read. The card may be edited:
only `sha256sum -c` looks at it.
"""

import hashlib
import json
import os
import re
from typing import Any

from flax import traverse_util
import numpy as np

from sg2jax import paths
from sg2jax.faults import CheckpointError

WEIGHTS = 'generator.safetensors'
CONFIG = 'config.json'
LABELS = 'labels.json'
CARD = 'README.md'
SUMS = 'SHA256SUMS'
FORMAT = 'sg2jax-bundle-1'
FIELDS = ('step', 'nimg', 'g_ema', 'noise', 'w_avg')  # of a state
AGAIN = 'download the bundle again'
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
  """The file of weights of a state, as `checkpoint.load` gives it."""
  from safetensors import numpy as safetensors  # here: who loads a run does without

  flat = traverse_util.flatten_dict({name: state[name] for name in FIELDS}, sep='.')
  arrays = {name: np.array(x, order='C') for name, x in flat.items()}
  return safetensors.save(arrays, {'format': FORMAT})


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
  content = {name: _checked(path, name, listed) for name in (WEIGHTS, CONFIG)}
  # One that is not listed would decide about images, too.
  if LABELS in listed or (path / LABELS).exists():
    _checked(path, LABELS, listed)
  try:
    config = json.loads(content[CONFIG])
    state = _state(content[WEIGHTS])
    if not isinstance(config['c_dim'], int):
      raise ValueError(f'c_dim={config["c_dim"]!a} is no number')
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
    lines = file.read_bytes().decode().splitlines()
  except (OSError, ValueError) as e:
    raise CheckpointError(f'{file} cannot be read ({e}); {AGAIN}') from e
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


def _checked(path, name, listed):
  """The content of a file, if it has the hash that is listed."""
  if name not in listed:
    raise CheckpointError(f'{path / name} is not in {SUMS}: it is not of this bundle; {AGAIN}')
  try:
    data = (path / name).read_bytes()
  except OSError as e:
    raise CheckpointError(f'{path / name}: {e.strerror or e}; {AGAIN}') from e
  if hashlib.sha256(data).hexdigest() != listed[name]:
    raise CheckpointError(
      f'{path / name} is not what was written (its SHA-256 is not that in {SUMS}); {AGAIN}'
    )
  return data


def _state(data):
  from safetensors import numpy as safetensors  # here: who loads a run does without

  header = json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])
  found = header.get('__metadata__', {}).get('format')
  if found != FORMAT:
    raise CheckpointError(
      f'{WEIGHTS} has format {found!a}; this code reads {FORMAT}: update sg2jax'
    )
  state = {'noise': {}} | traverse_util.unflatten_dict(safetensors.load(data), sep='.')
  if state.keys() != set(FIELDS):
    raise ValueError(f'{WEIGHTS} holds {sorted(state)}, and should hold {sorted(FIELDS)}')
  return state | {'g': state['g_ema'], 'd': {}, 'pl_mean': np.float32(0)}
