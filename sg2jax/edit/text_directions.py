"""Directions that a pair of texts says [StyleCLIP 6].

d = text_directions.direction(g, 'a thin seven', 'a thick seven', clip='digits')
images = g(seeds=range(8), edit=d * 3)
"""

from typing import Any

import numpy as np

from sg2jax import clip as clips
from sg2jax.edit import channel_effects, text_losses
from sg2jax.edit import global_directions as global_
from sg2jax.edit.direction import Direction
from sg2jax.faults import UsageError
from sg2jax.sampler import Sampler

# The part of all channels that is moved unless something else is asked for: 189 of the 6,048 of a
# network of 1024 px, where StyleCLIP takes 100 to 200 for shapes. Its beta, 0.15, would move most
# channels of a small network if a pair of texts says what that knows well.
SHARE = 1 / 32


def direction(
  net: Sampler,
  source: str,
  target: str,
  clip: str | clips.Clip,
  beta: float | None = None,
  channels: int | None = None,
  settings: channel_effects.Settings = channel_effects.Settings(),
  batch: int | None = None,
  stop: Any = (),
) -> Direction:
  """The direction in style space from one text to another.

  Amount 1 moves the channel that agrees most by its standard deviation; StyleCLIP takes 3 to 4.

  Args:
    net: whose styles. What its channels do is measured once, and kept: minutes of a small network,
      hours of one at 1024 px.
    source: a text of what there is, such as 'a face'.
    target: of what it is to become, such as 'a smiling face'.
    clip: a name or path for `clip.load`, or what that gave.
    beta: least relevance of a channel that is moved, 0.08 to 0.4.
    channels: instead of beta: how many are moved; neither: SHARE of them. Few for colours, more for
      shapes.
    settings, batch, stop: as of channel_effects.measure.

  Raises: UsageError: the texts say the same, or no channel is that relevant, naming the largest;
    what `clip.load` raises.
  """
  if not isinstance(clip, clips.Clip):
    clip = clips.load(clip)
  dt = between(clip, source, target)
  effects = channel_effects.measure(net, clip, settings, batch, stop)
  if beta is None and channels is None:
    channels = max(1, round(SHARE * len(effects.delta_i)))
  selection = global_.select(effects.delta_i @ dt, beta, channels)
  # ':' separates a file, a name and a strength where directions are given by name.
  name = f'{source} - {target}'.replace(':', ' ')
  return selection.direction(
    net,
    effects.counts,
    effects.std,
    name,
    source=source,
    target=target,
    clip=clip.name,
    clip_hash=clip.hash,
    largest_relevance=float(np.abs(selection.relevance).max()),
    unit='standard deviation of the most relevant channel',
  )


def between(clip: clips.Clip, source: str, target: str) -> np.ndarray:
  """The unit vector [E] from one text to another, each the mean of the network's templates.

  Raises: UsageError: they say the same.
  """
  texts = [clip.texts([x.format(text) for x in clip.templates]) for text in (source, target)]
  dt = np.asarray(text_losses.text_direction(*texts))
  if not dt.any():
    raise UsageError(f'{source!r} and {target!r} say the same to {clip.name}; take other texts')
  return dt
