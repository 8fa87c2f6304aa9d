"""Files of latent mappers that StyleCLIP's program writes, as Directions.

A mapper of ours is in a file of directions; see direction.py.
"""

import os
import pathlib
import re

from sg2jax import files, paths, sampler
from sg2jax.edit import mapper
from sg2jax.edit.direction import Direction, name_of
from sg2jax.faults import UsageError, WeightsError
from sg2jax.interop import mapper_file, sniff
from sg2jax.models import styles as style_space

_STYLES = re.compile(r'mapper_(\d{1,3})\.')


def read(path: str | os.PathLike | paths.Path, net: sampler.Sampler) -> Direction:
  """The mapper of a file (.pt) as a Direction of a network; it is called as the file is.

  Its ws are normalised over layers, as that program does.

  Raises:
    WeightsError: it can't be read, or holds no mapper.
    UsageError: it was trained for a network of another shape.
  """
  place = paths.place(path)
  try:
    with files.reading(place):
      data = place.read_bytes()
  except OSError as e:
    raise WeightsError(f'cannot read {path}: {files.reason(e)}; name a file of a mapper') from e
  try:
    if sniff.kind(data) != 'torch':
      raise ValueError(sniff.explain(data, "no checkpoint of StyleCLIP's"))
    arrays, num_ws = mapper_file.parse(data)
    layers = tuple(style_space.channels(net.generator, net.variables))
    # Those of a larger network have more layers, which `misfit` names.
    numbers = [int(match[1]) for name in arrays if (match := _STYLES.match(name))]
    layers += tuple(f'layer {i}' for i in range(len(layers), max(numbers, default=0) + 1))
    # Not every file tells its num_ws.
    found = mapper.of_arrays(arrays, num_ws or net.num_ws, 'layers', layers)
  except Exception as e:  # whatever a file that isn't as it was written leads to
    reason = f'{type(e).__name__} {e}' if isinstance(e, KeyError) else str(e) or type(e).__name__
    raise WeightsError(f'{path} is no mapper for {net.title}: {reason}') from e
  about = {'method': 'mapper', 'file': pathlib.Path(str(path)).name}
  name = name_of(pathlib.Path(about['file']).stem)
  made = Direction(name, (net.hash(),), mappers=((1.0, found),), about=about)
  if misfit := made.misfit(net):
    raise UsageError(
      f'{path} was trained for another network than {net.title}: {misfit}; train one for this '
      'network, --method=mapper'
    )
  return made
