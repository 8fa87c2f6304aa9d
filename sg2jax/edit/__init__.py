"""Editing: what is done with the latents of a trained network.

d = sg2jax.edit.text(g, 'a thin seven', 'a thick seven', clip='digits')
images = g(seeds=range(8), edit=d * 3)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from sg2jax.edit.direction import Direction
  from sg2jax.sampler import Sampler


def text(net: 'Sampler', source: str, target: str, clip: Any, **options: Any) -> 'Direction':
  """The Direction in style space from one text to another: text_directions.direction.

  clip: 'digits', 'clip-vit-b-32' or another of clip.NAMES, a file, or what clip.load gave.
  """
  from sg2jax.edit import text_directions  # here, because a sampler imports directions

  return text_directions.direction(net, source, target, clip, **options)
