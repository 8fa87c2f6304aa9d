"""Global directions: which style channels do to CLIP's features what a pair of texts says [SC 6].

Once for a network: statistics of its styles, and what each channel of a convolution does to the
features of images, delta_i. Then, for any pair of texts, the channels that agree with it: at once.
[SC] is StyleCLIP [Patashnik et al. 2021, arXiv 2103.17249]. torgb's styles are never moved, and
channels are numbered over the convolutions, one after the other, from coarse to fine.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import functools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
from PIL import Image

from sg2jax import clip as clips
from sg2jax import sampler, sharding
from sg2jax.edit.direction import Direction
from sg2jax.edit.text_losses import Tower
from sg2jax.faults import UsageError
from sg2jax.models import styles as style_space
from sg2jax.nets import clip

ALPHA = 5  # standard deviations by which channels are set off, either way
BETAS = np.arange(0.1, 0.3, 0.01)  # those that `auto_beta` tries


def convolutions(layers: Iterable[str]) -> tuple[str, ...]:
  """The layers whose channels count, in order: all with a style but torgb."""
  return tuple(sorted((x for x in layers if not x.endswith('.torgb')), key=style_space.order))


def split(values: np.ndarray, counts: Mapping[str, int]) -> dict[str, np.ndarray]:
  """Values of channels [C,...] by layers. counts: {layer: channels}, in order, C in all."""
  ends = np.cumsum(list(counts.values()))
  return dict(zip(counts, np.split(values, ends[:-1])))


# ---- statistics


class Statistics(NamedTuple):
  """Mean and standard deviation (of the population) of styles: {layer: float64 [C]} each."""

  mean: dict
  std: dict


class Moments:
  """Collects Statistics over batches [Chan et al. 1979], without the loss of digits of sums."""

  def __init__(self) -> None:
    self._count = 0
    self._mean = {}
    self._square = {}  # sums of squared distances to the mean

  def add(self, styles: Mapping[str, np.ndarray]) -> None:
    """Styles {layer: [N,C]} of more samples."""
    n = len(next(iter(styles.values())))
    total = self._count + n
    for layer, x in styles.items():
      x = np.asarray(x, np.float64)
      mean = x.mean(0)
      square = ((x - mean) ** 2).sum(0)
      if self._count:
        way = mean - self._mean[layer]
        square += self._square[layer] + way**2 * (self._count * n / total)
        mean = self._mean[layer] + way * (n / total)
      self._mean[layer], self._square[layer] = mean, square
    self._count = total

  def result(self) -> Statistics:
    """The Statistics of all that was added."""
    std = {layer: np.sqrt(x / self._count) for layer, x in self._square.items()}
    return Statistics(dict(self._mean), std)


def read_styles(net: sampler.Sampler, ws: np.ndarray) -> dict[str, np.ndarray]:
  """ws [N,num_ws,w_dim] -> {layer: styles [N,C]} of a network, in its order."""
  step = _styles_step(sharding.make_mesh(), net.generator, net.growing.get('stage', 0))
  found = jax.device_get(step(net.variables, np.asarray(ws)))
  return {layer: found[layer][: len(ws)] for layer in sorted(found, key=style_space.order)}


@functools.lru_cache(8)
def _styles_step(mesh, generator, stage):
  place = sharding.spread(mesh)

  @partial(jax.jit, out_shardings=sharding.replicated(mesh))
  def step(variables, ws):
    with jax.default_matmul_precision('highest'):
      return style_space.read(generator, variables, place(ws), stage)

  return step


def statistics(net: sampler.Sampler, ws: Iterable[np.ndarray]) -> Statistics:
  """Statistics of the styles of ws, batches [N,num_ws,w_dim] of one size.

  StyleCLIP takes 100,000 with psi 0.7; a few thousand give each to some per cent.
  """
  moments = Moments()
  for batch in ws:
    moments.add(read_styles(net, batch))
  return moments.result()


# ---- what channels do


class Measured(NamedTuple):
  """The channels that are looked at, and how."""

  counts: dict  # {layer: C} of convolutions, in order: channels are numbered over these
  statistics: Statistics  # of these layers at least
  alpha: float = ALPHA
  # StyleCLIP's own program never restores a channel: all before the one that is looked at are at
  # their mean, in its layer and in those before it. So late ones are seen on average images.
  cumulative: bool = False
  # Pixels as its program makes them: cut off to bytes, resized by Pillow. Else by a Tower's view.
  pictures: bool = False


class ChannelFeatures:
  """Renders images with single channels set off, and looks at them."""

  def __init__(self, net: sampler.Sampler, tower: Tower, measured: Measured) -> None:
    """net: whose images; tower: what looks at them; measured: see Measured."""
    mesh = sharding.make_mesh()
    static = net.generator, tuple(net.growing.items()), tower.architecture, tower.view
    counts = tuple(measured.counts.items())
    self._step, self._look = compiled(mesh, *static, counts, measured.cumulative, measured.pictures)
    self._size = tower.architecture.image_size
    self.channels = sum(measured.counts.values())
    mean, std = (
      np.concatenate([found[layer] for layer in measured.counts]) for found in measured.statistics
    )
    dtype = jax.tree.leaves(net.variables['params'])[0].dtype
    table = np.stack([mean - measured.alpha * std, mean + measured.alpha * std, mean])
    constants = net.variables, {'visual': tower.params['visual']}, table.astype(dtype)
    self._constants = sharding.replicate(mesh, constants)

  def __call__(self, styles: Mapping[str, np.ndarray], channels: Sequence[int]) -> np.ndarray:
    """Features, not normalised, of K channels of N images: float [K,N,2,E].

    2 K N images are rendered at once, over all devices; K and N of one size compile nothing anew.

    Args:
      styles: of the images, {layer: [N,C]}, torgb's too.
      channels: numbers of the channels [K]. In [...,0,:] and [...,1,:] a channel is set to its mean
        minus and plus alpha standard deviations, whatever it was in the image.
    """
    n = len(next(iter(styles.values())))
    variables, weights, table = self._constants
    found = self._step(variables, weights, table, dict(styles), np.asarray(channels, np.int32))
    if self._look:
      pictures = np.asarray(found)
      if pictures.shape[-1] == 1:
        pictures = pictures[..., 0]
      shown = np.stack([clips.square(Image.fromarray(x), self._size) for x in pictures])
      found = self._look(weights, shown)
    count = len(channels) * n * 2
    return np.asarray(found)[:count].reshape(len(channels), n, 2, -1)


@functools.lru_cache(8)
def compiled(
  mesh: Mesh,
  generator: Any,
  growing: tuple,
  architecture: clip.Architecture,
  view: Callable,
  counts: tuple[tuple[str, int], ...],
  cumulative: bool,
  pictures: bool,
) -> tuple[Callable, Callable | None]:
  """(step, look) of ChannelFeatures, look None unless Pillow has to come between them."""
  place = sharding.spread(mesh)
  whole = sharding.replicated(mesh)
  layers = tuple(layer for layer, _ in counts)
  firsts = dict(zip(layers, np.cumsum([0] + [count for _, count in counts]).tolist()))

  def render(variables, table, styles, channels):
    n = len(next(iter(styles.values())))
    # [K,N,2] images one after the other
    image = place(jnp.tile(jnp.repeat(jnp.arange(n), 2), len(channels)))
    side = place(jnp.tile(jnp.arange(2), len(channels) * n))
    channel = place(jnp.repeat(channels, 2 * n))

    def change(layer, _):
      x = styles[layer][image]  # [2KN,C]
      if layer not in firsts:
        return x
      here = firsts[layer] + jnp.arange(x.shape[1])
      if cumulative:
        x = jnp.where(here < channel[:, None], table[2, here], x)
      return jnp.where(here == channel[:, None], table[:2, here][side], x)

    ws = jnp.zeros((len(image), generator.synthesis.num_ws, generator.mapping.w_dim))
    return style_space.image(generator, variables, ws, change, 'const', **dict(growing))

  @partial(jax.jit, out_shardings=whole)
  def step(variables, weights, table, styles, channels):
    with jax.default_matmul_precision('highest'):
      images = render(variables, table, styles, channels)
      if pictures:
        return jnp.clip((images + 1) * 127.5, 0, 255).astype(jnp.uint8)
      return Tower(weights, architecture, view).features(images)

  @partial(jax.jit, out_shardings=whole)
  def look(weights, squares):
    pixels = place(squares.astype(jax.tree.leaves(weights)[0].dtype) / 255)
    return clip.image_features(weights, architecture, clip.normalize(pixels))

  return step, look if pictures else None


def delta_i(features: np.ndarray) -> np.ndarray:
  """Features [K,N,2,E] of `ChannelFeatures` -> what each channel does to them, unit [K,E] [SC 6].

  0 where it does nothing: differences that rounding explains count as none.
  """
  dtype = np.result_type(features, np.float32)
  unit = _unit(np.asarray(features, dtype))
  ways = unit[:, :, 1] - unit[:, :, 0]  # [K,N,E]
  return _unit(_unit(ways, 100 * np.finfo(dtype).eps).mean(1), 100 * np.finfo(dtype).eps)


def _unit(x, least=0.0):
  """Vectors [...,E] divided by their lengths; 0 where these are not above `least`."""
  length = np.sqrt((x**2).sum(-1, keepdims=True))
  return np.where(length > least, x / np.where(length > least, length, 1), 0)


# ---- what a pair of texts says


class Selection(NamedTuple):
  """The channels that a pair of texts moves."""

  relevance: np.ndarray  # [C], cosine of what a channel does and what the texts say
  beta: float  # the least |relevance| that is kept
  weights: np.ndarray  # [C], relevance over the largest, 0 where it isn't kept

  @property
  def channels(self) -> int:
    """How many are kept."""
    return int((np.abs(self.relevance) >= self.beta).sum())

  def shifts(
    self, counts: Mapping[str, int], std: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """What is added to styles at amount 1, in the texts' direction: {layer: [C]}.

    counts: {layer: C} of the convolutions whose channels these are; std: of Statistics.
    """
    return {layer: x * std[layer] for layer, x in split(self.weights, counts).items()}

  def direction(
    self,
    net: sampler.Sampler,
    counts: Mapping[str, int],
    std: Mapping[str, np.ndarray],
    name: str,
    **about: Any,
  ) -> Direction:
    """The `shifts` as a Direction of a network. about: more for it, JSON."""
    shifts = self.shifts(counts, std)
    moved = {layer: x.astype(np.float32) for layer, x in shifts.items() if x.any()}
    known = {'method': 'global', 'beta': self.beta, 'channels': self.channels}
    return Direction(name, (net.hash(),), None, moved, known | about)


def select(
  relevance: np.ndarray, beta: float | None = None, channels: int | None = None
) -> Selection:
  """The channels whose |relevance| is beta at least, or so many of the most relevant ones [SC 6].

  Args:
    relevance: [C], delta_i @ the direction of the texts.
    beta: usually 0.08 to 0.3.
    channels: instead of beta: beta is that of the last one. More are kept where several are
      equally relevant; those of no relevance never are.

  Raises: UsageError: nothing would be kept; both or neither of beta and channels.
  """
  size = np.abs(relevance)
  largest = float(size.max(initial=0))
  if (beta is None) == (channels is None):
    raise UsageError(f'beta={beta} and channels={channels}: give one of them')
  if not largest > 0:
    raise UsageError('no channel has anything to do with these texts: their relevance is 0')
  if channels is not None:
    if not 1 <= channels <= len(size):
      raise UsageError(f'channels={channels} must be a number of channels, from 1 to {len(size)}')
    some = np.sort(size[size > 0])[::-1]
    beta = float(some[min(channels, len(some)) - 1])
  if not beta <= largest:
    raise UsageError(
      f'beta={beta:g} keeps no channel: the largest relevance is {largest:.3g}; take less, such as '
      f'{largest / 2:.2g}, or a number of channels'
    )
  weights = np.where(size >= beta, relevance, 0) / largest
  return Selection(relevance, beta, weights)


def auto_beta(relevance: np.ndarray, more_than: int) -> float:
  """The largest of BETAS that keeps more than so many channels; the smallest if none does.

  StyleCLIP's program takes 20 for its faces, 100 for others.
  """
  kept = count_kept(relevance, BETAS)
  enough = BETAS[kept > more_than]
  return float(enough.max(initial=BETAS[0]))


def count_kept(relevance: np.ndarray, betas: np.ndarray) -> np.ndarray:
  """How many channels each of betas [B] keeps: [B]."""
  return (np.abs(relevance) >= np.asarray(betas)[:, None]).sum(1)
