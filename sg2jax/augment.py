"""Augmentation of what D sees [ADA, arXiv 2006.06676, App. B]: pipelines of transforms.

Each transform of a pipeline is done to an image with probability strength * p, with numbers of its
own, in the paper's order:

  blit    mirroring, turns by 90 degrees, shifts by whole pixels
  geom    scaling alike and unlike in x and y, rotation, shifts by parts of pixels
  color   brightness, contrast, luma flip, hue, saturation
  filter  gains of four bands of frequencies
  noise   normal noise
  cutout  a rectangle of zeros

What is geometric is one affine map and one pass of resampling, colours are one more. Random numbers
are drawn (`Augment.draw`) apart from what is done with them (`Augment.apply`), which is
differentiable by the images any number of times. Images are [N,H,W,C] in [-1,1], of any size; of
RGBA, colours are not done to alpha. All arithmetic is in float32 at least.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from sg2jax.products import full_precision
from sg2jax.warp import Geometry, warp

# Names of strengths, in the order in which the transforms are done.
BLIT = ('xflip', 'rotate90', 'xint')
GEOM = ('scale', 'rotate', 'aniso', 'xfrac')
COLOR = ('brightness', 'contrast', 'lumaflip', 'hue', 'saturation')
TRANSFORMS = (*BLIT, *GEOM, *COLOR, 'imgfilter', 'noise', 'cutout')
PIPELINES = {
  'blit': BLIT,
  'geom': GEOM,
  'color': COLOR,
  'filter': ('imgfilter',),
  'noise': ('noise',),
  'cutout': ('cutout',),
  'bg': BLIT + GEOM,
  'bgc': BLIT + GEOM + COLOR,
  'bgcf': (*BLIT, *GEOM, *COLOR, 'imgfilter'),
  'bgcfn': (*BLIT, *GEOM, *COLOR, 'imgfilter', 'noise'),
  'bgcfnc': TRANSFORMS,
}
BANDS = tuple(f'imgfilter_{band}' for band in range(4))  # of frequencies, each by itself
# The numbers that an image takes, by name, and what stands for a transform that isn't done to it:
# nothing of what is drawn then shows. Uniform in [0,1), or normal.
UNIFORM = {
  'xflip': 0.0,
  'rotate90': 0.0,
  'xint_x': 0.5,
  'xint_y': 0.5,
  'rotate_before': 0.5,
  'rotate_after': 0.5,
  'lumaflip': 0.0,
  'hue': 0.5,
  'cutout_x': 0.5,
  'cutout_y': 0.5,
}
NORMAL = (
  'scale',
  'aniso',
  'xfrac_x',
  'xfrac_y',
  'brightness',
  'contrast',
  'saturation',
  *BANDS,
  'noise',
)
# What decides whether something is done.
GATES = (
  *BLIT,
  'scale',
  'rotate_before',
  'aniso',
  'rotate_after',
  'xfrac',
  *COLOR,
  *BANDS,
  'noise',
  'cutout',
)
# A low-pass filter whose squares sum to 1, the symlet of 4 taps [Daubechies 1992, chapter 8].
SYM2 = np.array([1 - 3**0.5, 3 - 3**0.5, 3 + 3**0.5, 1 + 3**0.5]) / (4 * 2**0.5)
# Share of the power of natural images in each band [ADA App. B].
BAND_POWER = np.array([10, 1, 1, 1]) / 13


class Parameters(NamedTuple):
  """What is done to N images; None: nothing of the kind."""

  geometry: Geometry | None = None
  colors: jax.Array | None = None  # [N,3,4], see `recolor`
  gains: jax.Array | None = None  # of bands of frequencies, [N,4]
  sigma: jax.Array | None = None  # standard deviation of the noise, [N]
  noise: jax.Array | None = None  # normal draws, [N,H,W,C]
  # the middle and the size of the rectangle that is 0, [N,2] each (x, y), of the image's sides
  cutout: tuple[jax.Array, jax.Array] | None = None


@dataclasses.dataclass(frozen=True)
class Augment:
  """A pipeline: strengths of its transforms, and how far they go [ADA App. B]."""

  # ---- strengths: the probability of each is this times p
  xflip: float = 0.0
  rotate90: float = 0.0
  xint: float = 0.0
  scale: float = 0.0
  rotate: float = 0.0
  aniso: float = 0.0
  xfrac: float = 0.0
  brightness: float = 0.0
  contrast: float = 0.0
  lumaflip: float = 0.0
  hue: float = 0.0
  saturation: float = 0.0
  imgfilter: float = 0.0
  noise: float = 0.0
  cutout: float = 0.0
  # ---- ranges
  xint_max: float = 0.125  # of the image's side
  scale_std: float = 0.2  # of log2 of the factor
  rotate_max: float = 1.0  # of half a turn
  aniso_std: float = 0.2  # of log2 of the factor
  xfrac_std: float = 0.125  # of the image's side
  brightness_std: float = 0.2
  contrast_std: float = 0.5  # of log2 of the factor
  hue_max: float = 1.0  # of half a turn
  saturation_std: float = 1.0  # of log2 of the factor
  imgfilter_bands: tuple = (1.0, 1.0, 1.0, 1.0)  # strengths of bands, from low frequencies to high
  imgfilter_std: float = 1.0  # of log2 of the gain
  noise_std: float = 0.1  # of which the noise's own standard deviation is a half-normal draw
  cutout_size: float = 0.5  # of the image's side

  def draw(
    self, key: jax.Array, shape: Sequence[int], image: Sequence[int], dtype: jnp.dtype
  ) -> dict[str, jax.Array]:
    """The random numbers of images, whatever p.

    Args:
      key: used up.
      shape: of the batch, (..., N).
      image: (H, W, C).
      dtype: of all numbers.

    Returns:
      {'gate': [...,N,20], 'uniform': [...,N,10], 'normal': [...,N,12]}, and 'noise' [...,N,H,W,C]
      where the pipeline has noise.
    """
    gate, uniform, normal, noise = jax.random.split(key, 4)
    draws = {
      'gate': jax.random.uniform(gate, (*shape, len(GATES)), dtype),
      'uniform': jax.random.uniform(uniform, (*shape, len(UNIFORM)), dtype),
      'normal': jax.random.normal(normal, (*shape, len(NORMAL)), dtype),
    }
    if self.noise:
      draws['noise'] = jax.random.normal(noise, (*shape, *image), dtype)
    return draws

  def apply(self, images: jax.Array, draws: dict[str, jax.Array], p: jax.Array) -> jax.Array:
    """The augmented images, in their dtype.

    Args:
      images: [N,H,W,C] in [-1,1]; C: 1, 3 or 4.
      draws: of `draw`, of a batch of shape (N,).
      p: [] in [0,1], what each strength is multiplied with.
    """
    return transform(images, self.parameters(draws, p, images.shape[1:]))

  def parameters(
    self, draws: dict[str, jax.Array], p: jax.Array, image: Sequence[int]
  ) -> 'Parameters':
    """What is done to images (H, W, C); arguments as of `apply`."""
    height, width, channels = image
    numbers = self.numbers(draws, p)
    done = Parameters()
    if self.has(*BLIT, *GEOM):
      done = done._replace(geometry=self.geometry(numbers, height, width))
    if self.has(*COLOR):
      done = done._replace(colors=self.colors(numbers, channels))
    if self.imgfilter:
      done = done._replace(gains=self.gains(numbers))
    if self.noise:
      done = done._replace(sigma=jnp.abs(numbers['noise']) * self.noise_std, noise=draws['noise'])
    if self.cutout:
      middle = jnp.stack([numbers['cutout_x'], numbers['cutout_y']], 1)
      size = jnp.stack([numbers['cutout'] * self.cutout_size] * 2, 1)
      done = done._replace(cutout=(middle, size))
    return done

  def has(self, *names: str) -> bool:
    """Whether any of these transforms has a strength above 0."""
    return any(getattr(self, name) > 0 for name in names)

  # ---- from draws to what is done; all take the numbers by name, [N] each

  def numbers(self, draws: dict[str, jax.Array], p: jax.Array) -> dict[str, jax.Array]:
    """The numbers of a batch by name, [N] each; those of transforms that aren't done are neutral.

    'cutout' is 1 where there is one.
    """
    gates = dict(zip(GATES, jnp.moveaxis(draws['gate'], -1, 0), strict=True))
    done = {name: gate < self._probability(name, p) for name, gate in gates.items()}

    def kept(name, value, neutral):
      # the two coordinates of a shift, and of a cutout, have one gate
      is_done = done.get(name)
      if is_done is None:
        is_done = done[name.rpartition('_')[0]]
      return jnp.where(is_done, value, neutral)

    uniform = zip(UNIFORM.items(), jnp.moveaxis(draws['uniform'], -1, 0), strict=True)
    normal = zip(NORMAL, jnp.moveaxis(draws['normal'], -1, 0), strict=True)
    numbers = {name: kept(name, value, neutral) for (name, neutral), value in uniform}
    numbers |= {name: kept(name, value, 0.0) for name, value in normal}
    numbers['cutout'] = done['cutout'].astype(draws['gate'].dtype)
    return numbers

  def _probability(self, gate, p):
    if gate.startswith('rotate_'):
      # of each of the two, so that one or both are done as often as `rotate` says
      return 1 - jnp.sqrt(1 - jnp.clip(self.rotate * p, 0, 1))
    if gate.startswith('imgfilter_'):
      return self.imgfilter * p * self.imgfilter_bands[int(gate[-1])]
    return getattr(self, gate) * p

  def geometry(self, numbers: dict[str, jax.Array], height: int, width: int) -> Geometry:
    """All geometric transforms as one."""
    zero = jnp.zeros_like(numbers['scale'])
    one = jnp.ones_like(zero)
    g = Geometry(jnp.stack([one, zero], 1), jnp.stack([zero, one], 1), jnp.stack([zero, zero], 1))
    g = g.scale(1 - 2 * jnp.floor(2 * numbers['xflip']), one)
    g = g.rotate(math.pi / 2 * jnp.floor(4 * numbers['rotate90']))
    g = g.shift(
      -jnp.round((2 * numbers['xint_x'] - 1) * self.xint_max * width),
      -jnp.round((2 * numbers['xint_y'] - 1) * self.xint_max * height),
    )
    factor = jnp.exp2(-numbers['scale'] * self.scale_std)
    g = g.scale(factor, factor)
    turn = math.pi * self.rotate_max
    g = g.rotate((2 * numbers['rotate_before'] - 1) * turn)
    factor = jnp.exp2(-numbers['aniso'] * self.aniso_std)
    g = g.scale(factor, 1 / factor)
    g = g.rotate((2 * numbers['rotate_after'] - 1) * turn)
    return g.shift(
      -numbers['xfrac_x'] * self.xfrac_std * width, -numbers['xfrac_y'] * self.xfrac_std * height
    )

  def colors(self, numbers: dict[str, jax.Array], channels: int) -> jax.Array:
    """All colour transforms as one, [N,3,4]: three new colours of (red, green, blue, 1).

    The axis of luma is (1,1,1)/sqrt(3): a vector's part along it is the mean of its components.
    """
    c = jnp.broadcast_to(jnp.eye(3, 4, dtype=numbers['scale'].dtype), (len(numbers['scale']), 3, 4))
    number = {name: value[:, None, None] for name, value in numbers.items()}
    c = c.at[:, :, 3].add(numbers['brightness'][:, None] * self.brightness_std)
    c = c * jnp.exp2(number['contrast'] * self.contrast_std)
    c = c - 2 * jnp.floor(2 * number['lumaflip']) * c.mean(1, keepdims=True)
    if channels > 1:  # grey has neither
      grey = c.mean(1, keepdims=True)
      angle = (2 * number['hue'] - 1) * (math.pi * self.hue_max)
      across = (jnp.roll(c, 1, 1) - jnp.roll(c, -1, 1)) / 3**0.5  # luma x c
      c = grey + (c - grey) * jnp.cos(angle) + across * jnp.sin(angle)
      c = grey + (c - grey) * jnp.exp2(number['saturation'] * self.saturation_std)
    return c

  def gains(self, numbers: dict[str, jax.Array]) -> jax.Array:
    """Gains of the bands, [N,4], each such that the power of natural images stays."""
    gains = jnp.ones((len(numbers['scale']), len(BAND_POWER)), numbers['scale'].dtype)
    for band, name in enumerate(BANDS):
      gain = jnp.exp2(numbers[name] * self.imgfilter_std)
      of_this = jnp.ones_like(gains).at[:, band].set(gain)
      power = jnp.sum(of_this**2 * BAND_POWER.astype(gains.dtype), 1, keepdims=True)
      gains = gains * of_this / jnp.sqrt(power)
    return gains


def largest(name: str) -> int:
  """The largest value of a field of Augment."""
  # Turns and hues come round at 1. Of other ranges 10 is beyond all use, and pixels stay finite.
  is_range = name.endswith(('_max', '_std', '_size'))
  return 10 if is_range and name not in ('rotate_max', 'hue_max') else 1


def pipeline(name: str) -> Augment:
  """The pipeline of a name in PIPELINES, its transforms at full strength."""
  return Augment(**dict.fromkeys(PIPELINES[name], 1.0))


def transform(
  images: jax.Array, parameters: Parameters, padding: Sequence[int] | None = None
) -> jax.Array:
  """Images [N,H,W,C] with all of `parameters` done to them, in their dtype; padding: see `warp`."""
  geometry, colors, gains, sigma, noise, cutout = parameters
  x = full_precision(images)
  if geometry is not None:
    x = warp(x, geometry, padding)
  if colors is not None:
    x = recolor(x, colors)
  if gains is not None:
    x = amplify(x, gains)
  if sigma is not None:
    x = x + noise * sigma[:, None, None, None]
  if cutout is not None:
    x = cut(x, *cutout)
  return x.astype(images.dtype)


# ---- colours, frequencies


def recolor(images: jax.Array, colors: jax.Array) -> jax.Array:
  """Images [N,H,W,C] with colours [N,3,4] done to them; grey has the mean of what red, green and
  blue would become, alpha stays.
  """
  channels = images.shape[-1]
  if channels == 1:
    mean = colors.mean(1)
    factor = mean[:, :3].sum(1)
    return images * factor[:, None, None, None] + mean[:, 3][:, None, None, None]
  new = colors[:, None, None, :, 3]
  for channel in range(3):
    new = new + images[..., channel, None] * colors[:, None, None, :, channel]
  return new if channels == 3 else jnp.concatenate([new, images[..., 3:]], -1)


@functools.cache
def _bands():
  """Impulse responses of the four bands, from low frequencies to high, [4,43] [ADA App. B.3]."""
  low = np.convolve(SYM2, SYM2[::-1]) / 2
  high_pass = SYM2 * (-1.0) ** np.arange(len(SYM2))
  high = np.convolve(high_pass, high_pass[::-1]) / 2
  bank = np.eye(4, 1)
  for band in range(1, 4):
    apart = np.zeros((4, 2 * bank.shape[1] - 1))
    apart[:, ::2] = bank
    bank = np.stack([np.convolve(row, low) for row in apart])
    first = (bank.shape[1] - len(high)) // 2
    bank[band, first : first + len(high)] += high
  return bank


@functools.cache
def _band_matrices(side):
  """Each of `_bands` along an axis of `side` pixels, which goes on as its mirror image: [4,S,S]."""
  bank = _bands()
  reach = bank.shape[1] // 2
  places = np.pad(np.arange(side), reach, mode='reflect')
  matrices = np.zeros((4, side, side))
  for result in range(side):
    for tap in range(bank.shape[1]):
      matrices[:, result, places[result + tap]] += bank[:, tap]
  return matrices


def amplify(images: jax.Array, gains: jax.Array) -> jax.Array:
  """Images [N,H,W,C] with the bands' gains [N,4] along both axes [ADA App. B.3]."""
  _, height, width, _ = images.shape

  def filters(side):
    return jnp.einsum(
      'nb,bij->nij',
      gains,
      _band_matrices(side).astype(gains.dtype),
      precision=lax.Precision.HIGHEST,
    )

  # Products of matrices: they filter a picture of a few pixels as well, and need no form for each
  # device, as 43 taps that are other ones for each image would.
  return jnp.einsum(
    'nyi,nijc,nxj->nyxc', filters(height), images, filters(width), precision=lax.Precision.HIGHEST
  )


def cut(images: jax.Array, middle: jax.Array, size: jax.Array) -> jax.Array:
  """Images [N,H,W,C] with 0 in a rectangle; middle, size: [N,2] (x, y), of the image's sides."""
  _, height, width, _ = images.shape

  def is_outside(axis, pixels):
    places = (np.arange(pixels) + 0.5) / pixels
    return jnp.abs(places - middle[:, axis, None]) >= size[:, axis, None] / 2

  outside = is_outside(1, height)[:, :, None] | is_outside(0, width)[:, None]  # [N,H,W]
  return jnp.where(outside[..., None], images, 0)
