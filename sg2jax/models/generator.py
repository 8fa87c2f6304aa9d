"""Generators: mapping network and synthesis network [S2 Fig. 7; S1 Fig. 1b].

The architectures differ in their layers (`Synthesis._layer`), in what a block does with them (the
three classes of blocks), and in which blocks have a torgb.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from sg2jax import folding, products, resample
from sg2jax.models.layers import RSQRT2, Conv, SynthesisLayer, ToRGB, cast, fade
from sg2jax.models.mapping import Mapping, broadcast, truncate
from sg2jax.models.sizes import (
  Size,
  block_dtypes,
  block_folds,
  block_sizes,
  fmaps,
  image_blocks,
  newest_block,
)
from sg2jax.models.stylegan1 import StyleLayer
from sg2jax.models.variant import Variant


class SynthesisBlock(nn.Module):
  """conv0 (up x2), conv1 and, where an image leaves, torgb: orig, skip, msg, revised.

  The first block has no conv0; it starts from a learned constant [S1 Fig. 1b].

  size: (height, width) of the result. layer: makes conv0 and conv1 of a number of feature maps.
  torgb: makes torgb, None: no image leaves here. dtype: of the features, None: full precision.
  taps: filter by which a lower image, or the block's input, gets twice as large.
  folds: columns in the channels of the block's input and result, for a TPU.
  """

  size: Size
  features: int
  first: bool
  layer: Callable
  torgb: Callable | None
  dtype: Any
  taps: tuple
  folds: folding.Folds

  @nn.compact
  def __call__(
    self,
    x: jax.Array | None,
    img: jax.Array | None,
    ws: Sequence[jax.Array],
    noise_mode: str,
    keys: Sequence[jax.Array | None],
  ) -> tuple[jax.Array, jax.Array | None]:
    """x [N,h,w,I], img [N,h,w,C] or None, ws: w [N,w_dim] of conv0, conv1, torgb -> (x, img) at 2x.

    noise_mode, keys: of conv0 and conv1, see layer_noise.
    The first block takes x None, and makes both at its own size.
    """
    noise = [(noise_mode, key) for key in keys]
    if self.first:
      x = self.start(ws, noise)  # [N,h0,w0,features]
    else:
      x = self.body(cast(x, self.dtype), ws, noise)  # [N,2h,2w,features]
    if img is not None:
      f = resample.setup_filter(self.taps, separable=True)
      img = resample.upsample2d(img, f)  # [N,2h,2w,C]
    if self.torgb:
      # Images are summed in float32: bfloat16 has 8 bits, no more than the picture itself.
      rgb = products.full_precision(self.pixels(x, ws[2]))
      img = rgb if img is None else img + rgb
    return x, img

  def constant(self, batch: int, init: Callable) -> jax.Array:
    """The learned constant for each sample: [N,h0,w0,features]."""
    const = self.param('const', init, (*self.size, self.features))
    return jnp.broadcast_to(const, (batch, *const.shape))

  def start(self, ws: Sequence[jax.Array], noise: Sequence[tuple]) -> jax.Array:
    """What the first block does: ws -> [N,h0,w0,features]."""
    x = self.constant(ws[1].shape[0], nn.initializers.normal(1))
    return self.layer(self.features, name='conv1', **self.folded())(x, ws[1], *noise[1])

  def body(self, x: jax.Array, ws: Sequence[jax.Array], noise: Sequence[tuple]) -> jax.Array:
    """What all others do: [N,h,w,I] -> [N,2h,2w,features]."""
    x = self.layer(self.features, up=2, name='conv0', **self.folded(up=2))(x, ws[0], *noise[0])
    return self.layer(self.features, name='conv1', **self.folded())(x, ws[1], *noise[1])

  def folded(self, up: int = 1) -> dict[str, folding.Folds]:
    """What layers have to know of folds: those from the block's input, or its own."""
    folds = self.folds if up == 2 else (self.folds[1],) * 2
    return {} if folds == folding.NONE else {'folds': folds}

  def pixels(self, x: jax.Array, w: jax.Array) -> jax.Array:
    """[N,H,W,features], w [N,w_dim] -> [N,H,W,C]."""
    return self.torgb(name='torgb', fold=self.folds[1])(x, w)


class ResidualSynthesisBlock(SynthesisBlock):
  """resnet: a 1x1 convolution around conv0 and conv1 [S2 Fig. 7c].

  Each of the two sums has half the variance, so that their sum has the block's [S2 4.1].
  """

  def body(self, x: jax.Array, ws: Sequence[jax.Array], noise: Sequence[tuple]) -> jax.Array:
    """[N,h,w,I] -> [N,2h,2w,features]."""
    around = partial(Conv, activation='linear', up=2, use_bias=False, gain=RSQRT2, taps=self.taps)
    up = self.folded(up=2)
    skip = around(self.features, 1, name='skip', **up)(x)
    x = self.layer(self.features, up=2, name='conv0', **up)(x, ws[0], *noise[0])
    last = self.layer(self.features, gain=RSQRT2, name='conv1', **self.folded())
    return skip + last(x, ws[1], *noise[1])


class StyleBlock(SynthesisBlock):
  """stylegan1: the constant starts at 1 and gets noise, bias and style; torgb has no style."""

  def start(self, ws: Sequence[jax.Array], noise: Sequence[tuple]) -> jax.Array:
    """ws -> [N,h0,w0,features]."""
    x = self.constant(ws[0].shape[0], nn.initializers.ones)
    x = self.layer(self.features, convolve=False, name='conv0')(x, ws[0], *noise[0])
    return self.layer(self.features, name='conv1')(x, ws[1], *noise[1])

  def pixels(self, x: jax.Array, w: jax.Array) -> jax.Array:
    """[N,H,W,features], w unused -> [N,H,W,C]."""
    return self.torgb(name='torgb')(x)


BLOCKS = {'resnet': ResidualSynthesisBlock, 'stylegan1': StyleBlock}  # others: SynthesisBlock


class Synthesis(nn.Module):
  """ws [N,num_ws,w_dim] -> image [N,H,W,C], float32, nominally in [-1,1].

  The image has the size of the stage; msg gives the images of all resolutions, smallest first.
  num_ws is two per block for every architecture. ws of stages that aren't there yet are ignored.
  fold: whether it is computed as a TPU likes it (folding.py); config A never is.
  """

  resolution: Size
  img_channels: int
  fmap_base: float
  fmap_max: int
  architecture: str = 'skip'
  num_bf16_res: int = 0
  clamp: float | None = None
  use_noise: bool = True
  remat: int = 0  # upper resolutions whose blocks are computed once more in the backward pass
  variant: Variant = Variant()
  fold: bool = False

  @property
  def num_ws(self) -> int:
    """Number of style inputs: two per block."""
    return 2 * len(block_sizes(self.resolution))

  @nn.compact
  def __call__(
    self,
    ws: jax.Array,
    noise_mode: str = 'random',
    stage: int = 0,
    alpha: jax.Array | float | None = None,
  ) -> jax.Array | tuple[jax.Array, ...]:
    sizes = block_sizes(self.resolution)
    newest = newest_block(stage, sizes, self.architecture)
    with_image = image_blocks(newest, self.architecture, alpha is not None, self.is_initializing())
    dtypes = block_dtypes(sizes, self.num_bf16_res)
    # Static slices: an index array would be a gather, with a scatter-add behind it in every block.
    styles = [lax.index_in_dim(ws, j, 1, keepdims=False) for j in range(ws.shape[1])]  # [N,w_dim]
    block = BLOCKS.get(self.architecture, SynthesisBlock)
    again = nn.remat(block, static_argnums=(4,))  # noise_mode (self counts) is a string
    features = [
      fmaps(max(size), self.fmap_base, self.fmap_max, self.variant.fmap_min) for size in sizes
    ]
    folds = block_folds(sizes, features, self.fold and self.architecture != 'stylegan1')
    keys = [None] * self.num_ws
    if self.use_noise and noise_mode == 'random':
      # All at once: a GPU takes as long for one.
      keys = jax.random.split(self.make_rng('noise'), self.num_ws)
    x = None
    images = []
    for i in range(newest + 1):
      res = max(sizes[i])
      in_memory = i < len(sizes) - self.remat
      x, img = (block if in_memory else again)(
        size=sizes[i],
        features=features[i],
        first=i == 0,
        layer=self._layer(),
        torgb=self._torgb() if i in with_image else None,
        dtype=dtypes[i],
        taps=self.variant.taps,
        folds=folds[i],
        name=f'b{res}',
      )(
        x,
        images[-1] if images and self.architecture == 'skip' else None,
        [styles[j] for j in self._style_indices(i)],
        noise_mode,
        keys[2 * i : 2 * i + 2],
      )  # [N,h,w,features], [N,h,w,C] or None
      images.append(img)
    if self.architecture == 'msg':
      return tuple(images)
    if alpha is None or newest == 0:
      return images[-1]
    return fade(images[-1], resample.nearest(images[-2]), alpha)

  def _layer(self):
    """Makes conv0 and conv1 of a number of feature maps."""
    if self.architecture == 'stylegan1':
      return partial(StyleLayer, clamp=self.clamp, use_noise=self.use_noise)
    return partial(
      SynthesisLayer,
      activation=self.variant.activation,
      clamp=self.clamp,
      taps=self.variant.taps,
      use_noise=self.use_noise,
      equalized=self.architecture == 'revised',
    )

  def _torgb(self):
    """Makes torgb."""
    if self.architecture == 'stylegan1':
      return partial(Conv, self.img_channels, 1, 'linear', clamp=self.clamp)
    return partial(ToRGB, self.img_channels, self.clamp)

  def _style_indices(self, i):
    """Which of ws the conv0, conv1 and torgb of block i take.

    The constant of stylegan1 has a style, its torgb has none: two a block. In the others the
    constant has none, so torgb takes the w of the next block's conv0, in NVIDIA's order: when
    styles are mixed from there on, the image and the features above it change together.
    """
    if self.architecture == 'stylegan1':
      return 2 * i, 2 * i + 1, 2 * i + 1
    return max(2 * i - 1, 0), 2 * i, 2 * i + 1


class Generator(nn.Module):
  """mapping + synthesis. The methods are what training and sampling need."""

  mapping: Mapping
  synthesis: Synthesis

  def __call__(
    self,
    z: jax.Array,
    c: jax.Array,
    w_avg: jax.Array | None = None,
    psi: jax.Array | float = 1.0,
    cutoff: int | None = None,
    noise_mode: str = 'random',
    stage: int = 0,
    alpha: jax.Array | float | None = None,
  ) -> jax.Array:
    """z [N,z_dim], c [N,c_dim] -> image [N,H,W,C], enlarged to that size while growing.

    With w_avg [w_dim], the first `cutoff` ws are truncated towards it by psi.
    """
    ws = broadcast(self.mapping(z, c), self.synthesis.num_ws)  # [N,num_ws,w_dim]
    if w_avg is not None:
      ws = truncate(ws, w_avg, psi, cutoff)
    return self.image(ws, noise_mode, stage, alpha)

  def image(
    self,
    ws: jax.Array,
    noise_mode: str = 'random',
    stage: int = 0,
    alpha: jax.Array | float | None = None,
  ) -> jax.Array:
    """ws [N,num_ws,w_dim] -> image [N,H,W,C], enlarged to that size while growing."""
    img = largest(self.synthesis(ws, noise_mode, stage, alpha))  # [N,H/2^stage,W/2^stage,C]
    return resample.nearest(img, 2**stage)

  def map(self, z: jax.Array, c: jax.Array) -> jax.Array:
    """z [N,z_dim], c [N,c_dim] -> w [N,w_dim]."""
    return self.mapping(z, c)

  def synthesize(
    self,
    ws: jax.Array,
    noise_mode: str = 'random',
    stage: int = 0,
    alpha: jax.Array | float | None = None,
  ) -> jax.Array | tuple[jax.Array, ...]:
    """ws [N,num_ws,w_dim] -> what the discriminator takes: an image, or msg's tuple of them."""
    return self.synthesis(ws, noise_mode, stage, alpha)


def largest(images: jax.Array | tuple[jax.Array, ...]) -> jax.Array:
  """The full-size one of what a generator makes."""
  return images[-1] if isinstance(images, tuple) else images
