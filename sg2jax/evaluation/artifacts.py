"""Three artefacts that StyleGAN2 was made to remove, as numbers [S2, arXiv 1912.04958].

contribution: what each resolution adds to the image [S2 4.2, Fig. 8].
droplets: spikes in feature maps, which instance normalization provokes [S2 2, Fig. 1 and 3].
phase: details that keep to pixels while w moves [S2 4, Fig. 6; Karras et al. 2021, arXiv
  2106.12423, Fig. 1].

`variables` are {'params': ..., 'noise': ...} of a Generator, ws [N,num_ws,w_dim]; `growing` stands
for the `stage` and `alpha` of its `synthesize`. Everything but `grid_preference` can be jitted,
with the generator and the stage static.
"""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from sg2jax import resample
from sg2jax.evaluation.swd import blur
from sg2jax.faults import UsageError

PARTS = ('skip', 'msg')  # architectures in which several torgb layers make the picture
TINY = 1e-30
# of normalised features, whose mean square is 1; keeps the ratio of a layer of constant maps at 1
MIN_NORM = 1e-6


def features(
  generator: Any, variables: dict[str, Any], ws: jax.Array, names: tuple[str, ...], **growing: Any
) -> dict[str, jax.Array]:
  """What the layers called `names` return, with constant noise: {'b8.conv0': [N,h,w,C]}.

  In the layers' own dtype. torgb: the pixels before they are added to anything; conv0, conv1: after
  the activation, and in AdaIN networks after the style.
  """
  _, state = generator.apply(
    variables,
    ws,
    'const',
    **growing,
    method='synthesize',
    mutable=['intermediates'],
    capture_intermediates=lambda module, _: module.name in names,
  )
  return {
    f'{block}.{name}': layer['__call__'][0]
    for block, layers in state['intermediates']['synthesis'].items()
    for name, layer in layers.items()
    if name in names
  }


def resolution(name: str) -> int:
  """Pixels of a block or layer, to sort by: 'b8' or 'b8.conv0' -> 8."""
  return int(name.split('.')[0][1:])


# ---- contribution


def torgb_pixels(generator: Any, variables: dict[str, Any], ws: jax.Array) -> dict[str, jax.Array]:
  """What each torgb returns, lowest resolution first: {'b8': float32 [N,8,8,C]}."""
  pixels = features(generator, variables, ws, ('torgb',))
  names = sorted(pixels, key=resolution)
  return {name.split('.')[0]: pixels[name].astype(jnp.float32) for name in names}


def image_parts(generator: Any, variables: dict[str, Any], ws: jax.Array) -> dict[str, jax.Array]:
  """The image as a sum of one part per resolution: {'b8': float32 [N,H,W,C]}, all of full size.

  skip: torgb's pixels, up-sampled by the network's own filter, as the network adds them up [S2 Fig.
  7b].
  msg: every torgb makes a whole image, so a part is what an image has beyond the one below it,
  enlarged by nearest neighbour (which the 2x2 mean of the discriminator's pyramid undoes).
  Raises: UsageError for other architectures.
  """
  net = generator.synthesis
  if net.architecture not in PARTS:
    raise UsageError(
      'contribution needs several torgb layers that make the picture, so architecture skip or '
      f'msg; in {net.architecture} one of them makes it alone'
    )
  taps = np.asarray(net.variant.taps) / np.sum(net.variant.taps)
  whole_images = net.architecture == 'msg'
  below = 0
  parts = {}
  for name, rgb in torgb_pixels(generator, variables, ws).items():
    part = rgb - below
    if whole_images:
      below = resample.nearest(rgb)
    while part.shape[1] < net.resolution[0]:
      part = resample.nearest(part) if whole_images else resample.upsample2d(part, taps)
    parts[name] = part
  return parts


def moments(images: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Mean and mean square over samples and pixels: {'b8': [N,h,w,C]} -> {'b8': float32 [2,C]}."""
  return {
    name: jnp.stack([x.mean((0, 1, 2)), (x**2).mean((0, 1, 2))]) for name, x in images.items()
  }


def shares(parts: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Relative standard deviations of `moments`: {'b8': [2,C]} -> {'b8': share}; the shares sum to 1.

  The mean of each channel is taken out; variances are averaged over channels. All 0 if every image
  is the same flat colour.
  """
  std = {name: jnp.sqrt(jnp.maximum(m[1] - m[0] ** 2, 0).mean()) for name, m in parts.items()}
  return {name: s / jnp.maximum(sum(std.values()), TINY) for name, s in std.items()}


def contribution(generator: Any, variables: dict[str, Any], ws: jax.Array) -> dict[str, jax.Array]:
  """How much each resolution contributes to the image [S2 Fig. 8]: {'b4': float32 share, ...}.

  They sum to 1. S2 takes the standard deviation of the pixel values that each tRGB layer
  produces, over 1024 random w, and normalises the values to sum to 1. Decided here: noise is
  constant, and pixels count as they arrive in the image (`image_parts`); up-sampling smooths the
  low resolutions, whose shares are larger in `shares(moments(torgb_pixels(...)))`. Raises:
  UsageError for architectures other than skip and msg.
  """
  return shares(moments(image_parts(generator, variables, ws)))


# ---- droplets


def peak_to_median(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """How far the tallest pixel's feature vector stands out: [N,h,w,C] -> ratio [N], map [N,h,w].

  float32, >= 0. Each map of each sample is brought to mean 0 and variance 1, as instance
  normalization does it; the map returned is the root mean square over channels at each pixel,
  over its median; ratio is its maximum. Scale and offset of a map are without effect, so that
  AdaIN's style is: what is measured is the result of the activation, normalised, in AdaIN
  networks and in others alike. A constant map counts as 0. Independent Gaussian maps give 1.1 (C
  = 512) to 1.7 (C = 16).
  """
  x = x.astype(jnp.float32)
  tiny = 1e-12 * (x**2).mean((1, 2), keepdims=True)
  x = x - x.mean((1, 2), keepdims=True)
  var = (x**2).mean((1, 2), keepdims=True)
  x = jnp.where(var > tiny, x * lax.rsqrt(jnp.where(var > tiny, var, 1)), 0)
  norm = jnp.sqrt((x**2).mean(-1)) + MIN_NORM
  norm = norm / jnp.median(norm, axis=(1, 2), keepdims=True)
  return norm.max((1, 2)), norm


def droplets(
  generator: Any, variables: dict[str, Any], ws: jax.Array, **growing: Any
) -> dict[str, tuple[jax.Array, jax.Array]]:
  """`peak_to_median` of every synthesis layer: {'b8.conv0': (ratio [N], map [N,h,w]), ...}.

  S2 sees droplets in all feature maps from 64 px on, in networks with AdaIN: a spike strong enough
  to set the variance of a map lets the generator choose the scale of everything else in it. Without
  normalization there is nothing to gain by it.
  """
  layers = features(generator, variables, ws, ('conv0', 'conv1'), **growing)
  return {name: peak_to_median(x) for name, x in layers.items()}


# ---- phase


def details(x: jax.Array) -> list[jax.Array]:
  """Octaves of an image at full size, finest first: [N,H,W,C] -> list of [N,H,W,C].

  Their sum lacks only the low pass. The undecimated Laplacian pyramid [Burt and Adelson 1983]
  with the filter [1,4,6,4,1]/16, its taps 2^k apart, borders mirrored. Octave k holds periods of
  about 2^(k+1) to 2^(k+2) px; as many as are well inside the image.
  """
  octaves = []
  k = 1
  while 4 * k < min(x.shape[1:3]):
    low = blur(blur(x, 1, step=k, xp=jnp), 2, step=k, xp=jnp)
    octaves.append(x - low)
    x = low
    k *= 2
  return octaves


def phase(frames: jax.Array) -> tuple[jax.Array, jax.Array]:
  """How much of the detail stays on its pixels along a path: [T,H,W,C] -> fixed [K], energy [H,W].

  T >= 2; float32. fixed, for each octave h of `details`, finest first: the share of its energy
  that keeps to fixed pixels,
      (|sum_t h_t|^2 - sum_t |h_t|^2) / ((T - 1) sum_t |h_t|^2),
  which is the mean product of two different frames over the mean square of one. 1: glued to the
  pixels; 0: as unrelated as independent frames, which have 0 for any T; details that ride on a
  moving shape are near 0 as soon as they have moved by half a period. It turns two figures into a
  number: the average of images along a path, which stays sharp where details stick (Karras et al.
  2021, arXiv 2106.12423, Fig. 1), and the teeth that keep their place while the face turns [S2 Fig.
  6]. If nothing moves, all octaves are near 1: read it against the coarse octaves, which show how
  much the shapes stay. An octave without any detail counts as 0.
  energy: mean square of the finest octave over frames and channels, for `grid_preference`.
  """
  octaves = details(frames.astype(jnp.float32))
  fixed = []
  for h in octaves:
    each = (h**2).sum()
    pairs = (h.sum(0) ** 2).sum() - each
    fixed.append(pairs / jnp.maximum((len(frames) - 1) * each, TINY))
  return jnp.stack(fixed), (octaves[0] ** 2).mean((0, 3))


def grid_preference(energy: np.ndarray, period: int = 8) -> tuple[float, np.ndarray]:
  """How strongly details prefer some positions of a grid: [H,W] -> (preference, folded).

  folded: [period,period]. Energy relative to its mean in the period x period window around,
  averaged over all pixels with the same position modulo `period`; preference is the standard
  deviation of these means, 0 if there is none. A generator that grew has details jump from one
  preferred location to the next [S2 4]; what was aliased in a layer repeats with its pixels, so
  with periods 2, 4, 8 of the image. What the subject itself does shows at any period: compare
  with one that divides no power of 2. Sides of 2 period - 1 or more.
  """
  energy = np.asarray(energy, np.float64)
  windows = np.lib.stride_tricks.sliding_window_view(energy, (period, period))
  mean = windows.mean((2, 3))
  first = period // 2
  h, w = (side // period * period for side in mean.shape)
  relative = energy[first : first + h, first : first + w] / np.maximum(mean[:h, :w], 1e-12)
  folded = relative.reshape(h // period, period, w // period, period).mean((0, 2))
  folded = np.roll(folded, first, (0, 1))  # element [i,j] is position [i,j] modulo period
  return float(folded.std()), folded
