"""Generators and discriminators of StyleGAN2 [S2 Fig. 7, Tables 1 and 2] and of what it is compared
with.

  orig, skip, resnet   configs E and F and the nine pairs of Table 2
  msg                  MSG-GAN [MSG, S2 Fig. 7a]: an image leaves G and enters D at every resolution
  revised              configs B-D: orig with a torgb and a fromrgb at every resolution, to be grown
  stylegan1            config A: the same topology with the layers of StyleGAN [S1]

Resolutions are h0*2^k x w0*2^k; a block is called b{res} after the longer side of its output, b4
... b1024. Networks that grow have all their parameters from the start. Their `stage` (static) is
the number of upper resolutions not there yet, and `alpha` in [0,1] (traced) how far the newest is
faded in; they work at the size of the stage.
"""

from functools import partial
import math

from flax import linen as nn
from jax import lax
import jax.numpy as jnp
import numpy as np

from sg2jax import ops, resample
from sg2jax.models.layers import Conv, Dense, SynthesisLayer, ToRGB, cast
from sg2jax.models.mapping import Mapping, broadcast, truncate
from sg2jax.models.stylegan1 import TAPS, StyleLayer
from sg2jax.models.variant import DiscriminatorVariant, Variant

GROWING = ('revised', 'stylegan1')
ARCHITECTURES = ('orig', 'skip', 'resnet', 'msg', *GROWING)
HALF = math.sqrt(0.5)


def block_sizes(resolution):
  """(height, width) of every block, smallest first, the longer side of the first in 4..7.

  Raises: ValueError if a side isn't h0 * 2^k, with the nearest that is.
  """
  h, w = resolution
  k = max(max(h, w).bit_length() - 3, 0)
  near = [max(1, round(s / 2**k)) * 2**k for s in (h, w)]
  if min(h, w) < 1 or max(h, w) < 4 or near != [h, w]:
    raise ValueError(
      f'resolution={h}x{w} must be h0*2^k x w0*2^k with the longer of h0, w0 in 4..7; '
      f'try {max(near[0], 4)}x{max(near[1], 4)}'
    )
  return [(h >> i, w >> i) for i in range(k, -1, -1)]


def fmaps(res, fmap_base, fmap_max, fmap_min=1):
  """Number of feature maps at `res` pixels: 2 fmap_base / res, in [fmap_min, fmap_max] [S2 App.
  B].
  """
  return max(min(int(2 * fmap_base // res), fmap_max), fmap_min)


def image_side_layers(architecture, sizes):
  """(block, layer) of a discriminator's layers before the last block, from the image on: what
  Freeze-D counts.
  """
  everywhere = architecture in ('skip', 'msg', *GROWING)
  names = lambda i: (
    (['fromrgb'] if i == 0 or everywhere else [])
    + ['conv0', 'conv1']
    + ['skip'] * (architecture == 'resnet')
  )
  return [
    (f'b{max(size)}', name) for i, size in enumerate(reversed(sizes[1:])) for name in names(i)
  ]


def _dtypes(sizes, num_bf16_res):
  """bfloat16 for the `num_bf16_res` largest blocks, None (full precision) for the rest; never for
  the first.
  """
  low = min(num_bf16_res, len(sizes) - 1)
  return [None] * (len(sizes) - low) + [jnp.bfloat16] * low


class SynthesisBlock(nn.Module):
  """conv0 (up x2), conv1, torgb. x: [N,h,w,I] or None, img: [N,h,w,C] or None, ws: three [N,w_dim]
  -> (x, img) at 2x.
  """

  size: tuple
  features: int
  img_channels: int
  first: bool
  rgb: bool
  architecture: str
  dtype: object
  clamp: float | None
  taps: tuple
  activation: str
  use_noise: bool

  @nn.compact
  def __call__(self, x, img, ws, noise_mode):
    adain, resnet = (
      self.architecture == 'stylegan1',
      self.architecture == 'resnet' and not self.first,
    )
    layer = dict(clamp=self.clamp, use_noise=self.use_noise)
    if not adain:
      layer |= dict(
        activation=self.activation, taps=self.taps, equalized=self.architecture == 'revised'
      )
    layer = partial(StyleLayer if adain else SynthesisLayer, self.features, **layer)
    if self.first:
      init = nn.initializers.ones if adain else nn.initializers.normal(1)
      const = self.param('const', init, (*self.size, self.features))
      x = jnp.broadcast_to(const, (ws[0].shape[0], *const.shape))
      if adain:
        x = layer(convolve=False, name='conv0')(x, ws[0], noise_mode)
    else:
      x = cast(x, self.dtype)
      if resnet:
        skip = Conv(
          self.features, 1, 'linear', up=2, use_bias=False, gain=HALF, taps=self.taps, name='skip'
        )(x)
      x = layer(up=2, name='conv0')(x, ws[0], noise_mode)
    x = layer(name='conv1', **({'gain': HALF} if resnet else {}))(x, ws[1], noise_mode)
    if resnet:
      x = skip + x
    if img is not None:
      img = resample.upsample2d(img, _unit(self.taps))
    if self.rgb:
      if adain:
        rgb = Conv(self.img_channels, 1, 'linear', clamp=self.clamp, name='torgb')(x)
      else:
        rgb = ToRGB(self.img_channels, self.clamp, name='torgb')(x, ws[2])
      rgb = ops.full_precision(rgb)
      img = rgb if img is None else img + rgb  # summed in float32
    return x, img


class Synthesis(nn.Module):
  """ws [N,num_ws,w_dim] -> image [N,H,W,C], float32, nominally in [-1,1]; at the size of the stage;
  'msg': all sizes.

  num_ws is two per block for every architecture. ws of stages that aren't there yet are ignored.
  """

  resolution: tuple
  img_channels: int
  fmap_base: float
  fmap_max: int
  architecture: str = 'skip'
  num_bf16_res: int = 0
  clamp: float | None = None
  use_noise: bool = True
  remat: bool = False
  variant: Variant = Variant()

  @property
  def num_ws(self):
    """Number of style inputs: two per block."""
    return 2 * len(block_sizes(self.resolution))

  @nn.compact
  def __call__(self, ws, noise_mode='random', stage=0, alpha=None):
    sizes, arch = block_sizes(self.resolution), self.architecture
    top = _top(stage, sizes, arch)
    low = top - 1 if alpha is not None else top  # the lowest whose image is needed
    if arch == 'msg' or self.is_initializing():
      low = 0
    block = nn.remat(SynthesisBlock, static_argnums=(4,)) if self.remat else SynthesisBlock
    # Static slices: an index array would be a gather, with a scatter-add behind it in every block.
    styles = [lax.index_in_dim(ws, j, 1, keepdims=False) for j in range(ws.shape[1])]
    x, images = None, []
    for i, (size, dtype) in enumerate(zip(sizes[: top + 1], _dtypes(sizes, self.num_bf16_res))):
      res = max(size)
      # torgb uses the w of the next block's conv0; AdaIN's has no style, but the constant has one
      index = (
        [2 * i, 2 * i + 1, 0] if arch == 'stylegan1' else [max(2 * i - 1, 0), 2 * i, 2 * i + 1]
      )
      x, img = block(
        size=size,
        features=fmaps(res, self.fmap_base, self.fmap_max, self.variant.fmap_min),
        img_channels=self.img_channels,
        first=i == 0,
        rgb=arch == 'skip' or i == top or (arch in ('msg', *GROWING) and i >= low),
        architecture=arch,
        dtype=dtype,
        clamp=self.clamp,
        taps=self.variant.taps,
        activation=self.variant.activation,
        use_noise=self.use_noise,
        name=f'b{res}',
      )(
        x, images[-1] if arch == 'skip' and images else None, [styles[j] for j in index], noise_mode
      )
      images.append(img)
    if arch == 'msg':
      return tuple(images)
    return (
      images[-1]
      if alpha is None or not top
      else _fade(images[-1], resample.nearest(images[-2]), alpha)
    )


class Generator(nn.Module):
  """mapping + synthesis. The three methods are what training and sampling need."""

  mapping: Mapping
  synthesis: Synthesis

  def __call__(
    self, z, c, w_avg=None, psi=1.0, cutoff=None, noise_mode='random', stage=0, alpha=None
  ):
    """z [N,z_dim], c [N,c_dim] -> image [N,H,W,C], enlarged to it if growing; psi != 1 truncates
    towards w_avg [w_dim].
    """
    ws = broadcast(self.mapping(z, c), self.synthesis.num_ws)
    if w_avg is not None:
      ws = truncate(ws, w_avg, psi, cutoff)
    return resample.nearest(largest(self.synthesis(ws, noise_mode, stage, alpha)), 2**stage)

  def map(self, z, c):
    """z [N,z_dim], c [N,c_dim] -> w [N,w_dim]."""
    return self.mapping(z, c)

  def synthesize(self, ws, noise_mode='random', stage=0, alpha=None):
    """ws [N,num_ws,w_dim] -> what the discriminator takes: an image, or the tuple of them of
    'msg'.
    """
    return self.synthesis(ws, noise_mode, stage, alpha)


def largest(images):
  """The full-size one of what a generator makes."""
  return images[-1] if isinstance(images, tuple) else images


def _top(stage, sizes, architecture):
  """Index of the newest block."""
  if not 0 <= stage < (len(sizes) if architecture in GROWING else 1):
    raise ValueError(
      f'stage={stage} is not one of the {len(sizes)} resolutions of architecture {architecture}; '
      f'only {" and ".join(GROWING)} have stages above 0'
    )
  return len(sizes) - 1 - stage


def _fade(new, old, alpha):
  """From old (alpha 0) to new (1; then exactly new)."""
  wide = ops.full_precision(new)
  return (wide + (old - wide) * (1 - alpha)).astype(new.dtype)


class DiscriminatorBlock(nn.Module):
  """fromrgb where there is an image, conv0, conv1 (down x2). x: [N,H,W,I] or None, img: [N,H,W,C]
  or None -> x at half size.
  """

  features: int
  out_features: int
  architecture: str
  dtype: object
  clamp: float | None
  taps: tuple
  activation: str

  @nn.compact
  def __call__(self, x, img, alpha):
    adain, resnet = self.architecture == 'stylegan1', self.architecture == 'resnet'
    conv = partial(
      Conv,
      activation=self.activation,
      clamp=self.clamp,
      taps=self.taps,
      bias_gain=HALF if adain else 1,
    )
    x = None if x is None else cast(x, self.dtype)
    if img is not None:
      x = _join(
        self.architecture, x, conv(self.features, 1, name='fromrgb')(cast(img, self.dtype)), alpha
      )
    if resnet:
      skip = Conv(
        self.out_features,
        1,
        'linear',
        down=2,
        use_bias=False,
        gain=HALF,
        taps=self.taps,
        name='skip',
      )(x)
    x = conv(self.features, 3, name='conv0')(x)
    x = conv(self.out_features, 3, down=2, gain=HALF if resnet else 1, mean=adain, name='conv1')(x)
    return skip + x if resnet else x


def _join(architecture, x, y, alpha):
  """Features from above x (None: there are none) and those of this resolution's image y."""
  if x is None:
    return y
  if architecture == 'skip':
    return x + y
  return jnp.concatenate([x, y], axis=-1) if architecture == 'msg' else _fade(x, y, alpha)


class DiscriminatorEpilogue(nn.Module):
  """fromrgb where there is an image, minibatch stddev, conv 3x3, two dense layers. x: [N,h0,w0,I]
  -> [N,out], float32.
  """

  features: int
  hidden: int
  out: int
  architecture: str
  mbstd_group_size: int | None
  mbstd_num_channels: int
  clamp: float | None
  activation: str

  @nn.compact
  def __call__(self, x, img, alpha):
    gain = dict(bias_gain=HALF) if self.architecture == 'stylegan1' else {}
    x = None if x is None else ops.full_precision(x)
    if img is not None:
      y = Conv(self.features, 1, self.activation, name='fromrgb', **gain)(ops.full_precision(img))
      x = _join(self.architecture, x, y, alpha)
    if self.mbstd_num_channels:
      x = ops.minibatch_stddev(x, self.mbstd_group_size, self.mbstd_num_channels)
    x = Conv(self.features, 3, self.activation, clamp=self.clamp, name='conv', **gain)(x)
    # H,W,C order
    x = Dense(self.hidden, self.activation, name='fc', **gain)(x.reshape(x.shape[0], -1))
    return Dense(self.out, name='out')(x)


class Discriminator(nn.Module):
  """image [N,H,W,C], label [N,c_dim] -> logits [N,1], float32.

  The size of the image says at which stage a growing network is. 'msg' takes a tuple of images,
  smallest first; one image stands for its own pyramid of 2x2 means.
  """

  resolution: tuple
  fmap_base: float
  fmap_max: int
  c_dim: int = 0
  architecture: str = 'resnet'
  num_bf16_res: int = 0
  clamp: float | None = None
  mbstd_group_size: int | None = 4
  mapping_layers: int = 8
  remat: bool = False
  variant: DiscriminatorVariant = DiscriminatorVariant()

  @nn.compact
  def __call__(self, img, c=None, alpha=None):
    sizes, grows = block_sizes(self.resolution), self.architecture in GROWING
    width = [
      fmaps(r, self.fmap_base, self.fmap_max, self.variant.fmap_min) for r in map(max, sizes)
    ]
    block = nn.remat(DiscriminatorBlock) if self.remat else DiscriminatorBlock
    dtypes, images = _dtypes(sizes, self.num_bf16_res), self._images(img, sizes, alpha)
    taps = TAPS if self.architecture == 'stylegan1' else self.variant.taps
    alpha = 1.0 if self.is_initializing() else alpha
    x = None
    for i in range(max(images), 0, -1):
      x = block(
        features=width[i],
        out_features=width[i - 1],
        architecture=self.architecture,
        dtype=dtypes[i],
        clamp=self.clamp,
        taps=taps,
        activation=self.variant.activation,
        name=f'b{max(sizes[i])}',
      )(x, images.get(i), alpha)
    cmap_dim = (self.variant.cmap_dim or width[0]) if self.c_dim else 1
    x = DiscriminatorEpilogue(
      features=width[0],
      hidden=fmaps(2, self.fmap_base, self.fmap_max, self.variant.fmap_min) if grows else width[0],
      out=max(self.c_dim, 1) if grows else cmap_dim,
      architecture=self.architecture,
      clamp=self.clamp,
      mbstd_group_size=self.mbstd_group_size,
      mbstd_num_channels=self.variant.mbstd_num_channels,
      activation=self.variant.activation,
      name=f'b{max(sizes[0])}',
    )(x, images.get(0), alpha)
    if self.c_dim and grows:
      return jnp.sum(x * c, axis=1, keepdims=True)
    if self.c_dim:
      cmap = Mapping(
        0,
        self.c_dim,
        cmap_dim,
        self.mapping_layers,
        self.variant,
        name='mapping',
      )(None, c)
      x = jnp.sum(x * cmap, axis=1, keepdims=True) / math.sqrt(cmap_dim)
    return x

  def _images(self, img, sizes, alpha):
    """{index of a block: the image that its fromrgb gets}."""
    if isinstance(img, tuple):
      return dict(enumerate(img))
    if img.shape[1:3] not in sizes:
      raise ValueError(f'images of {img.shape[1]}x{img.shape[2]} are none of the sizes {sizes}')
    top = sizes.index(img.shape[1:3])
    _top(len(sizes) - 1 - top, sizes, self.architecture)
    low = {'skip': 0, 'msg': 0}.get(self.architecture, top)
    if self.architecture in GROWING and alpha is not None:
      low = max(top - 1, 0)
    if self.architecture in GROWING and self.is_initializing():
      low = 0  # all of them exist from the start
    shrink = (
      partial(resample.downsample2d, f=_unit(self.variant.taps))
      if self.architecture == 'skip'
      else resample.half
    )
    images = {top: img}
    for i in range(top - 1, low - 1, -1):
      images[i] = shrink(images[i + 1])
    return images


def _unit(taps):
  f = np.asarray(taps, np.float64)
  return f / f.sum()
