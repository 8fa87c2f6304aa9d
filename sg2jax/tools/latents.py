"""Latents that a tool starts from: those of seeds, or of files."""

import pathlib
from typing import NamedTuple

from absl import flags
import numpy as np

from sg2jax import files
from sg2jax.faults import UsageError
from sg2jax.sampler import Sampler
from sg2jax.tools import flags as shared

MAX_BYTES = 2**30

# What `define_flags` defines counts as the calling tool's own, so that its --help shows it.
flags.disclaim_key_flags()


class Latents(NamedTuple):
  """N latents."""

  names: list[str]  # of their files
  ws: np.ndarray  # float32 [N,num_ws,w_dim]
  seeds: list[int]  # of random noise


def define_flags() -> None:
  """--latents; needs shared.define_image_flags and shared.define_psi."""
  what = (
    'Instead of --seeds: an .npz with ws [num_ws,w_dim] or [N,num_ws,w_dim], such as `project` '
    'writes, or a folder of them.'
  )
  flags.DEFINE_string('latents', '', what)


def read(net: Sampler) -> Latents:
  """What --latents or --seeds ask for.

  Raises: UsageError, naming a file and the shape that is needed.
  """
  asked = flags.FLAGS
  if asked.latents and (asked.psi != 1 or asked.cutoff is not None):
    raise UsageError('--psi and --cutoff are for --seeds; --latents are taken as they are')
  if not asked.latents:
    seeds = asked.seeds
    ws = net.ws(seeds, asked.psi, asked.cutoff, shared.labels(net, len(seeds)))
    return Latents([f'seed{seed:04d}' for seed in seeds], ws, seeds)
  path = pathlib.Path(asked.latents).expanduser()
  places = sorted(path.glob('*.npz')) if path.is_dir() else [path]
  if not places:
    raise UsageError(f'--latents={path} has no .npz files')
  names, found = [], []
  for place in places:
    ws = _read(place, net)
    names += [place.stem] if len(ws) == 1 else [f'{place.stem}_{i:04d}' for i in range(len(ws))]
    found.append(ws)
  return Latents(names, np.concatenate(found), list(range(len(names))))


def _read(path, net):
  """ws [N,num_ws,w_dim] of a file."""
  wanted = (net.num_ws, net.generator.mapping.w_dim)
  try:
    with files.reading(path):
      data = path.read_bytes()
    ws = files.parse_npz(data, MAX_BYTES, 'fiubU')['ws']
  except OSError as e:
    raise UsageError(f'--latents: cannot read {path}: {files.reason(e)}') from e
  except Exception as e:  # whatever a file that isn't as it was written leads to
    raise UsageError(f'--latents: {path} has no array ws of numbers ({e})') from e
  # One latent, not num_ws of them.
  ws = ws[None] if ws.shape == wanted else ws
  if ws.ndim != 3 or ws.shape[1:] != wanted or not len(ws) or not np.isfinite(ws).all():
    raise UsageError(
      f'--latents: {path} has ws {list(ws.shape)}; this network takes {list(wanted)} or '
      f'{["N", *wanted]} of finite numbers'
    )
  return ws.astype(np.float32)
