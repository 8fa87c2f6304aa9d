"""Files of latent mappers: our own, and those that StyleCLIP's program writes.

Ours are .npz of arrays under StyleCLIP's names and of one text in JSON, `about`: {"format":
"sg2jax-mapper-1", "normalized", "strength", "network", ...}.
"""

from collections.abc import Mapping
import functools
import json
import os
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from sg2jax import files, paths, sampler
from sg2jax.edit import mapper
from sg2jax.faults import UsageError, WeightsError
from sg2jax.interop import mapper_file, sniff
from sg2jax.models import styles as style_space

FORMAT = 'sg2jax-mapper-1'
MAX_BYTES = 2**30  # of the arrays of a file of ours


def write(
  path: str | os.PathLike | paths.Path, trained: mapper.Mapper, network: str, **about: Any
) -> None:
  """Writes a mapper. network: `Sampler.hash()` of what it is for; about: more for it, JSON."""
  text = {
    'format': FORMAT,
    'normalized': getattr(trained.module, 'normalized', 'features'),
    'strength': trained.strength,
    'network': network,
  }
  arrays = mapper.arrays(trained.params)
  files.write_atomic(path, files.npz(**arrays, about=json.dumps(text | about)))


def read(
  path: str | os.PathLike | paths.Path, net: sampler.Sampler
) -> tuple[mapper.Mapper, dict[str, Any]]:
  """(the mapper of a file, what the file says about it), to be applied to a network.

  StyleCLIP's normalise over layers, as their program does, and say nothing.

  Raises: WeightsError: it can't be read, is no such file, or doesn't fit the network.
  """
  place = paths.place(path)
  try:
    with files.reading(place):
      data = place.read_bytes()
  except OSError as e:
    raise WeightsError(f'cannot read {path}: {files.reason(e)}; name a file of a mapper') from e
  try:
    match sniff.kind(data):
      case 'npz':
        return _own(data, net)
      case 'torch':
        return _published(data, net)
    raise ValueError(sniff.explain(data, "neither an .npz nor a checkpoint of StyleCLIP's"))
  except Exception as e:  # whatever a file that isn't as it was written leads to
    reason = f'{type(e).__name__} {e}' if isinstance(e, KeyError) else str(e) or type(e).__name__
    raise WeightsError(f'{path} is no mapper for {net.title}: {reason}') from e


def _own(data, net):
  arrays = files.parse_npz(data, MAX_BYTES, 'fU')
  about = json.loads(str(arrays.pop('about')))
  if about['format'] != FORMAT:
    raise ValueError(f'its format is {about["format"]!a}, and this version reads {FORMAT}')
  found = of_arrays(arrays, net, about['normalized'], float(about['strength']))
  return found, about


def _published(data, net):
  arrays, num_ws = mapper_file.parse(data)
  if num_ws not in (0, net.num_ws):
    raise ValueError(
      f'it was trained for a network with {num_ws} ws, and this one has {net.num_ws}; train one '
      'for this network'
    )
  return of_arrays(arrays, net, 'layers'), {}


def of_arrays(
  arrays: Mapping[str, np.ndarray],
  net: sampler.Sampler,
  normalized: str,
  strength: float = mapper.STRENGTH,
) -> mapper.Mapper:
  """The Mapper of arrays under StyleCLIP's names.

  Raises: ValueError: they are no mapper's, or of another network's.
  """
  module, example = _module(arrays, net, normalized)
  return mapper.Mapper(module, mapper.params(arrays, module, example), strength)


def _module(arrays, net, normalized) -> tuple[nn.Module, Any]:
  """The module that such arrays are of, and the shapes of what it takes."""
  if normalized not in mapper.NORMALIZED:
    raise ValueError(f'it normalises over {normalized!a:.40}, which is unknown')
  w_dim = net.generator.mapping.w_dim
  ws = jax.ShapeDtypeStruct((1, net.num_ws, w_dim), np.float32)
  levels = mapper.levels_of(arrays)
  if not levels:
    layers = tuple(style_space.channels(net.generator, net.variables))
    stage = net.growing.get('stage', 0)
    read = functools.partial(style_space.read, net.generator, stage=stage)
    return mapper.StyleMapper(layers), jax.eval_shape(read, net.variables, ws)
  widths = {np.shape(x)[0] for x in arrays.values() if np.ndim(x)}
  if widths != {w_dim}:
    raise ValueError(f'it moves w of {sorted(widths)} numbers, and this network has {w_dim}')
  try:
    usable, said = mapper.usable_levels(levels, net.num_ws)
  except UsageError as e:
    raise ValueError(str(e)) from e
  if usable != levels:
    raise ValueError('; '.join(said))
  return mapper.LatentMapper(levels, normalized), ws
