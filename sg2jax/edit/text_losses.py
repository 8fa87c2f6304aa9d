"""What text-guided editing makes small: how far CLIP's features of images are from those of texts.

Features, [...,E], are as CLIP's towers make them, not normalised. [SC] is StyleCLIP [Patashnik et
al. 2021, arXiv 2103.17249], [NADA] StyleGAN-NADA [Gal et al. 2021, arXiv 2108.00946].
"""

from collections.abc import Callable
from functools import partial
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sg2jax.nets import clip

LOGIT_SCALE = math.log(100)  # what OpenAI's models are trained to
# Differences of unit features below it are taken for none: most of them is rounding.
SAME = 1e-4
# Of `random_views`: the largest part of a side by which a picture is moved, the largest factor by
# which it grows or shrinks, and the deviation of the noise, in those of `clip.normalize`.
SHIFT = 0.08
SCALE = 1.15
NOISE = 0.2


def clip_loss(
  images: jax.Array, texts: jax.Array, logit_scale: jax.Array | float = LOGIT_SCALE
) -> jax.Array:
  """1 - exp(logit_scale) cos / 100 of images [N,E] and texts [N|1,E]: [N] [SC Eq. 1].

  With the scale of OpenAI's models that is 1 - cos, the cosine distance.
  """
  cosine = (clip.unit(images) * clip.unit(texts)).sum(-1)
  return 1 - jnp.exp(logit_scale) / 100 * cosine


def text_direction(source: jax.Array, target: jax.Array) -> jax.Array:
  """The unit vector [E] from what texts [T,E] say to what others [T,E] say [SC 6, NADA 4.1].

  Both are the mean of T templates, as a unit vector.
  """
  source, target = (clip.unit(clip.unit(texts).mean(-2)) for texts in (source, target))
  return clip.unit(target - source)


def plain_text_direction(source: jax.Array, target: jax.Array) -> jax.Array:
  """As `text_direction`, but the means are not made unit vectors: as StyleGAN-NADA computes it."""
  return clip.unit((clip.unit(target) - clip.unit(source)).mean(-2))


def directional_loss(source: jax.Array, target: jax.Array, direction: jax.Array) -> jax.Array:
  """1 - cos of the way from images to others, [N,E] each, and a direction [E]: [N] [NADA Eq. 3].

  Images that are the same have gone no way: their loss is 1, and their gradient finite, against
  the direction. So a generator leaves its own copy, from which it starts.
  """
  way = clip.unit(target) - clip.unit(source)
  square = (way**2).sum(-1, keepdims=True)
  is_some = square > SAME**2
  way = way / jnp.sqrt(jnp.where(is_some, square, 1))
  return 1 - (way * clip.unit(direction)).sum(-1)


def random_views(key: jax.Array, images: jax.Array, count: int) -> jax.Array:
  """What a tower takes, [N,S,S,C] -> as seen `count` times a little otherwise, [count,N,S,S,C].

  Moved, larger or smaller (beyond the edge goes on what is there), and with noise: what shows in
  one view only, as patterns that no person sees do, does not count [FuseDream, Liu et al. 2021,
  arXiv 2112.01573]. All images are seen by the same views, so one's neighbours don't show.
  """
  return jax.vmap(partial(_random_view, images))(jax.random.split(key, count))


def _random_view(images, key):
  shift_key, scale_key, noise_key = jax.random.split(key, 3)
  shifts = jax.random.uniform(shift_key, (2,), images.dtype, -SHIFT, SHIFT)
  scale = SCALE ** jax.random.uniform(scale_key, (), images.dtype, -1, 1)
  for axis, shift in zip((1, 2), shifts):
    size = images.shape[axis]
    weights = _resampling(size, scale, shift * size)
    images = jnp.moveaxis(jnp.tensordot(images, weights, (axis, 1), precision='highest'), -1, axis)
  return images + NOISE * jax.random.normal(noise_key, images.shape[1:], images.dtype)


def _resampling(size, scale, shift):
  """[out,in]: the share of each input in each output, linearly between neighbours."""
  middle = (size - 1) / 2
  places = (jnp.arange(size) - middle) / scale + middle - shift
  places = jnp.clip(places, 0, size - 1)
  return jnp.maximum(1 - jnp.abs(places[:, None] - jnp.arange(size)), 0).astype(shift.dtype)


class Tower(NamedTuple):
  """CLIP's image tower, and what it is shown of a generator's images."""

  params: Any  # {'visual', 'logit_scale'} of nets.clip; more is passed over
  architecture: clip.Architecture
  # (images [N,H,W,1|3] in [-1,1], size) -> what the tower takes, [N,size,size,3]
  view: Callable = clip.view

  def features(self, images: jax.Array) -> jax.Array:
    """Images [N,H,W,1|3] in [-1,1] -> features [N,E]."""
    return self._look(self.view(images, self.architecture.image_size))

  def features_of_views(self, images: jax.Array, key: jax.Array, count: int) -> jax.Array:
    """Images [N,H,W,1|3] in [-1,1] -> features of their `random_views`, [count,N,E]."""
    shown = self.view(images, self.architecture.image_size)
    return jax.vmap(self._look)(random_views(key, shown, count))

  def loss(
    self,
    images: jax.Array,
    texts: jax.Array,
    key: jax.Array | None = None,
    augmentations: int = 0,
  ) -> jax.Array:
    """`clip_loss` of images [N,H,W,1|3] in [-1,1] and features of texts [N|1,E]: [N].

    augmentations: the mean over so many `random_views`, drawn from the key; 0: of images as they
    are.
    """
    scale = self.params['logit_scale']
    if not augmentations:
      return clip_loss(self.features(images), texts, scale)
    return clip_loss(self.features_of_views(images, key, augmentations), texts, scale).mean(0)

  def _look(self, shown):
    return clip.image_features(self.params, self.architecture, shown)
