"""Directions that a pair of texts says [StyleCLIP 6].

d = text_directions.direction(g, 'a thin seven', 'a thick seven', clip='digits')
images = g(seeds=range(8), edit=d * 3)
"""

from typing import Any, NamedTuple

import numpy as np

from sg2jax import clip as clips
from sg2jax.edit import channel_effects, global_directions, text_losses
from sg2jax.edit.direction import Direction, name_of
from sg2jax.faults import UsageError
from sg2jax.sampler import Sampler

# The part of all channels that is moved unless something else is asked for: 189 of the 6,048 of a
# network of 1024 px, where StyleCLIP takes 100 to 200 for shapes. Its beta, 0.15, would move most
# channels of a small network if a pair of texts says what that knows well.
SHARE = 1 / 32


class Relevance(NamedTuple):
  """What the channels of a network have to do with a pair of texts."""

  net: Sampler
  effects: channel_effects.Effects
  values: np.ndarray  # [C], cosine of what a channel does and of what the texts say
  name: str  # of Directions
  about: dict[str, Any]  # of them, JSON

  def direction(self, beta: float | None = None, channels: int | None = None) -> Direction:
    """The Direction that moves the channels of relevance beta at least, or so many of them.

    Neither: SHARE of them. Raises: UsageError as `global_directions.select` does.
    """
    if beta is None and channels is None:
      channels = max(1, round(SHARE * len(self.values)))
    selection = global_directions.select(self.values, beta, channels)
    return selection.direction(
      self.net, self.effects.counts, self.effects.std, self.name, **self.about
    )


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
  return relevance(net, source, target, clip, settings, batch, stop).direction(beta, channels)


def relevance(
  net: Sampler,
  source: str,
  target: str,
  clip: str | clips.Clip,
  settings: channel_effects.Settings = channel_effects.Settings(),
  batch: int | None = None,
  stop: Any = (),
) -> Relevance:
  """The Relevance of a pair of texts, from which `direction` selects. Arguments as there."""
  if not isinstance(clip, clips.Clip):
    clip = clips.load(clip)
  dt = between(clip, source, target)
  effects = channel_effects.measure(net, clip, settings, batch, stop)
  values = effects.delta_i @ dt
  about = {
    'source': source,
    'target': target,
    'clip': clip.name,
    'clip_hash': clip.hash,
    'original': settings.original,
    'largest_relevance': float(np.abs(values).max()),
    'unit': 'standard deviation of the most relevant channel',
  }
  return Relevance(net, effects, values, named(source, target), about)


def named(source: str, target: str) -> str:
  """What a Direction from one text to another, or ('') towards one, is called."""
  return name_of(f'{source} - {target}' if source else target)


def between(clip: clips.Clip, source: str, target: str) -> np.ndarray:
  """The unit vector [E] from one text to another, each the mean of the network's templates.

  Raises: UsageError: they say the same.
  """
  texts = [clip.text(text)[None] for text in (source, target)]
  dt = np.asarray(text_losses.text_direction(*texts))
  if not dt.any():
    raise UsageError(f'{source!r} and {target!r} say the same to {clip.name}; take other texts')
  return dt
