"""Discriminators [S2 Fig. 7], from the image down to one number.

The architectures differ in what a block does (two classes), in how the image of a lower resolution
is joined to the features from above, and in which blocks have a fromrgb.
"""

from collections.abc import Callable
from functools import partial
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from sg2jax import folding, ops, products, resample
from sg2jax.models.layers import RSQRT2, Conv, Dense, cast, fade
from sg2jax.models.mapping import Mapping
from sg2jax.models.sizes import (
  GROWING,
  Size,
  block_dtypes,
  block_folds,
  block_sizes,
  fmaps,
  image_blocks,
  newest_block,
)
from sg2jax.models.stylegan1 import BLUR
from sg2jax.models.variant import DiscriminatorVariant


def _add(x, y, alpha):
  return x + y


def _concatenate(x, y, alpha):
  return jnp.concatenate([x, y], axis=-1)


# How features from above x [N,H,W,C] and those of this resolution's image y [N,H,W,C] are joined.
# The others never have both, unless they grow: then the upper part is faded in.
JOINS = {'skip': _add, 'msg': _concatenate}


class DiscriminatorBlock(nn.Module):
  """fromrgb where there is an image, conv0, conv1 (down x2).

  conv: makes a layer of (feature maps, side of its kernel). join: see JOINS. dtype: of all of it,
  None: full precision. folds: columns in the channels of the result and of x.
  """

  features: int
  out_features: int
  conv: Callable
  join: Callable
  dtype: Any
  folds: folding.Folds

  @nn.compact
  def __call__(
    self, x: jax.Array | None, img: jax.Array | None, alpha: jax.Array | float | None
  ) -> jax.Array:
    """x [N,H,W,I] or None, img [N,H,W,C] or None -> [N,H/2,W/2,out_features]."""
    if x is not None:
      x = cast(x, self.dtype)
    if img is not None:
      img = folding.refold(img, 1, self.folds[1])
      fromrgb = self.conv(self.features, 1, name='fromrgb', **self.folded())
      y = fromrgb(cast(img, self.dtype))  # [N,H,W,features]
      x = y if x is None else self.join(x, y, alpha)
    return self.body(x)

  def body(self, x: jax.Array) -> jax.Array:
    """[N,H,W,I] -> [N,H/2,W/2,out_features]."""
    x = self.conv(self.features, 3, name='conv0', **self.folded())(x)  # [N,H,W,features]
    return self.conv(self.out_features, 3, down=2, name='conv1', **self.folded(down=2))(x)

  def folded(self, down: int = 1) -> dict[str, folding.Folds]:
    """What layers have to know of folds: those to the block's result, or its own."""
    folds = self.folds[::-1] if down == 2 else (self.folds[1],) * 2
    return {} if folds == folding.NONE else {'folds': folds}


class ResidualDiscriminatorBlock(DiscriminatorBlock):
  """resnet: a 1x1 convolution around conv0 and conv1 [S2 Fig. 7c], each sum of half variance."""

  def body(self, x: jax.Array) -> jax.Array:
    """[N,H,W,I] -> [N,H/2,W/2,out_features]."""
    around = partial(self.conv, activation='linear', use_bias=False, gain=RSQRT2, clamp=None)
    down = self.folded(down=2)
    skip = around(self.out_features, 1, down=2, name='skip', **down)(x)
    x = self.conv(self.features, 3, name='conv0', **self.folded())(x)  # [N,H,W,features]
    x = self.conv(self.out_features, 3, down=2, gain=RSQRT2, name='conv1', **down)(x)
    return skip + x


class DiscriminatorEpilogue(nn.Module):
  """The last block: fromrgb where there is an image, minibatch stddev, conv 3x3, two dense layers.

  All of it is in float32. stddev: [N,H,W,C] -> [N,H,W,C+F], or None.
  """

  features: int
  hidden: int
  out: int
  conv: Callable
  dense: Callable
  join: Callable
  stddev: Callable | None

  @nn.compact
  def __call__(
    self, x: jax.Array | None, img: jax.Array | None, alpha: jax.Array | float | None
  ) -> jax.Array:
    """x [N,h0,w0,I] or None, img [N,h0,w0,C] or None -> [N,out]."""
    if x is not None:
      x = products.full_precision(x)
    if img is not None:
      fromrgb = self.conv(self.features, 1, clamp=None, name='fromrgb')
      y = fromrgb(products.full_precision(img))  # [N,h0,w0,features]
      x = y if x is None else self.join(x, y, alpha)
    if self.stddev:
      x = self.stddev(x)  # [N,h0,w0,I+F]
    x = self.conv(self.features, 3, name='conv')(x)  # [N,h0,w0,features]
    x = x.reshape(x.shape[0], -1)  # [N,h0*w0*features]; imports put NVIDIA's C,H,W in this order
    x = self.dense(self.hidden, name='fc')(x)  # [N,hidden]
    return Dense(self.out, name='out')(x)


class Discriminator(nn.Module):
  """image [N,H,W,C], label [N,c_dim] -> logits [N,1], float32.

  The size of the image says at which stage a growing network is. msg takes a tuple of images,
  smallest first; one image stands for its own pyramid of 2x2 means.
  fold: whether it is computed as a TPU likes it (folding.py); msg and config A never are.
  """

  resolution: Size
  fmap_base: float
  fmap_max: int
  c_dim: int = 0
  architecture: str = 'resnet'
  num_bf16_res: int = 0
  clamp: float | None = None
  mbstd_group_size: int | None = 4
  mapping_layers: int = 8
  # Upper resolutions whose blocks are computed once more in the backward pass; and whether their
  # layers are again, in that of the backward pass (R1), where a block is the peak of memory.
  remat: int = 0
  remat_layers: bool = False
  variant: DiscriminatorVariant = DiscriminatorVariant()
  fold: bool = False

  @nn.compact
  def __call__(
    self,
    img: jax.Array | tuple[jax.Array, ...],
    c: jax.Array | None = None,
    alpha: jax.Array | float | None = None,
  ) -> jax.Array:
    sizes = block_sizes(self.resolution)
    widths = [self._fmaps(max(size)) for size in sizes]
    names = [f'b{max(size)}' for size in sizes]
    dtypes = block_dtypes(sizes, self.num_bf16_res)
    images = dict(enumerate(img)) if isinstance(img, tuple) else self._pyramid(img, sizes, alpha)
    if self.is_initializing():
      alpha = 1.0  # lower images are there, too, and something has to be said
    conv, dense = self._layers(Conv)
    conv_again, _ = self._layers(nn.remat(Conv) if self.remat_layers else Conv)
    join = JOINS.get(self.architecture, fade)
    is_residual = self.architecture == 'resnet'
    block = ResidualDiscriminatorBlock if is_residual else DiscriminatorBlock

    folds = block_folds(sizes, widths, self.fold and self.architecture not in ('msg', 'stylegan1'))
    x = None
    for i in range(max(images), 0, -1):
      in_memory = i < len(sizes) - self.remat
      block_ = block if in_memory else nn.remat(block)
      parts = dict(conv=conv if in_memory else conv_again, join=join, dtype=dtypes[i])
      parts |= dict(folds=folds[i], name=names[i])
      x = block_(widths[i], widths[i - 1], **parts)(x, images.get(i), alpha)

    grows = self.architecture in GROWING
    cmap_dim = (self.variant.cmap_dim or widths[0]) if self.c_dim else 1
    x = DiscriminatorEpilogue(
      widths[0],
      hidden=self._fmaps(2) if grows else widths[0],  # configs A-D count on to 2 px here
      out=max(self.c_dim, 1) if grows else cmap_dim,
      conv=conv,
      dense=dense,
      join=join,
      stddev=self._stddev(),
      name=names[0],
    )(x, images.get(0), alpha)  # [N,out]

    if not self.c_dim:
      return x
    if grows:  # a logit for each class [as S2's code]
      return jnp.sum(x * c, axis=1, keepdims=True)
    # projection: the product with the mapped label [Miyato and Koyama 2018; ADA]
    mapping = Mapping(0, self.c_dim, cmap_dim, self.mapping_layers, self.variant, name='mapping')
    return jnp.sum(x * mapping(None, c), axis=1, keepdims=True) / math.sqrt(cmap_dim)

  def _fmaps(self, res):
    return fmaps(res, self.fmap_base, self.fmap_max, self.variant.fmap_min)

  def _layers(self, layer):
    """Makers of convolutions, of (feature maps, side of the kernel), and of dense layers."""
    adain = self.architecture == 'stylegan1'
    # In config A the gain sqrt(2) is in the weights, and biases don't have it.
    common = dict(activation=self.variant.activation, bias_gain=RSQRT2 if adain else 1)
    taps = BLUR if adain else self.variant.taps
    conv = partial(layer, clamp=self.clamp, taps=taps, mean=adain, **common)
    return conv, partial(Dense, **common)

  def _stddev(self):
    """The minibatch stddev, or None."""
    num_channels = self.variant.mbstd_num_channels
    if not num_channels:
      return None
    return partial(
      ops.minibatch_stddev, group_size=self.mbstd_group_size, num_channels=num_channels
    )

  def _pyramid(self, img, sizes, alpha):
    """{index of a block: the image [N,h,w,C] that its fromrgb gets}."""
    if img.shape[1:3] not in sizes:
      raise ValueError(f'images of {img.shape[1]}x{img.shape[2]} are none of the sizes {sizes}')
    stage = len(sizes) - 1 - sizes.index(img.shape[1:3])
    newest = newest_block(stage, sizes, self.architecture)
    shrink = resample.half
    if self.architecture == 'skip':
      f = resample.setup_filter(self.variant.taps, separable=True)
      shrink = partial(resample.downsample2d, f=f)
    indices = image_blocks(newest, self.architecture, alpha is not None, self.is_initializing())
    images = {newest: img}
    for i in reversed(indices[:-1]):
      images[i] = shrink(images[i + 1])  # [N,h/2,w/2,C]
    return images
