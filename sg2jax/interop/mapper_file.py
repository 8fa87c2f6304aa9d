"""Files of StyleCLIP's latent mappers (.pt), without torch; see torch_file.py.

One is a dict: 'state_dict' has the mapper's arrays under `mapper.` and a whole generator under
`decoder.`, 'opts' has the options of its training. The generator is only counted.
"""

import re
from typing import NamedTuple

import numpy as np

from sg2jax.interop import torch_file
from sg2jax.interop.pickle_reader import need

_PREFIX = 'mapper.'
_CONVOLUTION = re.compile(
  r'decoder\.convs\.(\d+)\.'
)  # of rosinality's generator: all but the first


class MapperFile(NamedTuple):
  """The mapper's arrays, and the number of ws of the generator beside it, 0 without one."""

  arrays: dict[str, np.ndarray]
  num_ws: int


def parse(data: bytes) -> MapperFile:
  """What a file's bytes hold.

  Raises:
    ValueError: it is no file of torch.save, has anything unknown in it, or no mapper.
  """
  tree, load_storage = torch_file.contents(data)
  nodes = torch_file.entries(tree)
  need('state_dict' in nodes, 'it has no state_dict, as the checkpoints of StyleCLIP have')
  nodes = torch_file.entries(nodes['state_dict'])
  arrays = {
    name.removeprefix(_PREFIX): torch_file.tensor(node, name, load_storage)
    for name, node in nodes.items()
    if name.startswith(_PREFIX)
  }
  need(arrays, f'its state_dict has nothing under {_PREFIX}')
  numbers = {match[1] for name in nodes if (match := _CONVOLUTION.match(name))}
  # a w for each convolution, and one for the last torgb
  return MapperFile(arrays, len(numbers) + 2 if numbers else 0)
