"""sg2jax: StyleGAN2 (Karras et al. 2020, arXiv 1912.04958) for JAX: training, evaluation, use.

g = sg2jax.load('runs/quickstart')
images = g(seeds=range(8), psi=0.7)  # uint8 [8,H,W,C]
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from sg2jax.sampler import Sampler

__version__ = '0.8.0'


def load(path: str | os.PathLike) -> 'Sampler':
  """The sampler.Sampler in a workdir (its newest checkpoint), one step of it, or a bundle.

  Raises: CheckpointError: there is no usable checkpoint at `path`.
  """
  from sg2jax import sampler  # here, because importing sg2jax itself imports nothing heavy

  return sampler.load(path)
