"""StyleGAN2 generator and discriminator, architectures orig / skip / resnet for both [S2 Fig. 7, Table 2].

Resolutions are h0*2^k x w0*2^k; a block is called b{res} after the longer side of its output, b4 ... b1024.
"""
import math

from flax import linen as nn
import jax.numpy as jnp
import numpy as np

from sg2jax import ops
from sg2jax.models.layers import Conv, Dense, SynthesisLayer, ToRGB, cast, full_precision
from sg2jax.models.mapping import Mapping, broadcast, truncate

ARCHITECTURES = ('orig', 'skip', 'resnet')
HALF = math.sqrt(0.5)


def block_sizes(resolution):
  """(height, width) of every block, smallest first, the longer side of the first in 4..7.

  Raises: ValueError if a side isn't h0 * 2^k, with the nearest that is.
  """
  h, w = resolution
  k = max(max(h, w).bit_length() - 3, 0)
  near = [max(1, round(s / 2 ** k)) * 2 ** k for s in (h, w)]
  if min(h, w) < 1 or max(h, w) < 4 or near != [h, w]:
    raise ValueError(f'resolution={h}x{w} must be h0*2^k x w0*2^k with the longer of h0, w0 in 4..7; '
                     f'try {max(near[0], 4)}x{max(near[1], 4)}')
  return [(h >> i, w >> i) for i in range(k, -1, -1)]


def fmaps(res, fmap_base, fmap_max):
  """Number of feature maps at `res` pixels: min(2 fmap_base / res, fmap_max) [S2 App. B]."""
  return max(min(int(2 * fmap_base // res), fmap_max), 1)


def _dtypes(sizes, num_bf16_res):
  """bfloat16 for the `num_bf16_res` largest blocks, None (full precision) for the rest; never for the first."""
  low = min(num_bf16_res, len(sizes) - 1)
  return [None] * (len(sizes) - low) + [jnp.bfloat16] * low


class SynthesisBlock(nn.Module):
  """conv0 (up x2), conv1, torgb. x: [N,h,w,I] or None, img: [N,h,w,C] or None, ws: [N,3,w_dim] -> (x, img) at 2x."""
  size: tuple
  features: int
  img_channels: int
  first: bool
  last: bool
  architecture: str
  dtype: object
  clamp: float | None
  taps: tuple
  activation: str
  use_noise: bool

  @nn.compact
  def __call__(self, x, img, ws, noise_mode):
    layer = dict(activation=self.activation, clamp=self.clamp, taps=self.taps, use_noise=self.use_noise)
    resnet = self.architecture == 'resnet' and not self.first
    if self.first:
      const = self.param('const', nn.initializers.normal(1), (*self.size, self.features))
      x = jnp.broadcast_to(const, (ws.shape[0], *const.shape))
    else:
      x = cast(x, self.dtype)
      if resnet:
        skip = Conv(self.features, 1, 'linear', up=2, use_bias=False, gain=HALF, taps=self.taps, name='skip')(x)
      x = SynthesisLayer(self.features, up=2, name='conv0', **layer)(x, ws[:, 0], noise_mode)
    x = SynthesisLayer(self.features, gain=HALF if resnet else 1, name='conv1', **layer)(x, ws[:, 1], noise_mode)
    if resnet:
      x = skip + x
    if img is not None:
      img = ops.upsample2d(img, _unit(self.taps))
    if self.architecture == 'skip' or self.last:
      rgb = full_precision(ToRGB(self.img_channels, self.clamp, name='torgb')(x, ws[:, 2]))
      img = rgb if img is None else img + rgb  # summed in float32
    return x, img


class Synthesis(nn.Module):
  """ws [N,num_ws,w_dim] -> image [N,H,W,C], float32, nominally in [-1,1]."""
  resolution: tuple
  img_channels: int
  fmap_base: float
  fmap_max: int
  architecture: str = 'skip'
  num_bf16_res: int = 0
  clamp: float | None = None
  taps: tuple = (1, 3, 3, 1)
  activation: str = 'lrelu'
  use_noise: bool = True
  remat: bool = False

  @property
  def num_ws(self):
    """Number of style inputs: two per block."""
    return 2 * len(block_sizes(self.resolution))

  @nn.compact
  def __call__(self, ws, noise_mode='random'):
    sizes = block_sizes(self.resolution)
    block = nn.remat(SynthesisBlock, static_argnums=(4,)) if self.remat else SynthesisBlock
    x = img = None
    for i, (size, dtype) in enumerate(zip(sizes, _dtypes(sizes, self.num_bf16_res))):
      res = max(size)
      begin = max(2 * i - 1, 0)  # torgb uses the w of the next block's conv0
      w = ws[:, begin:begin + 3] if i else ws[:, jnp.array([0, 0, 1])]
      x, img = block(
          size=size, features=fmaps(res, self.fmap_base, self.fmap_max), img_channels=self.img_channels,
          first=i == 0, last=i == len(sizes) - 1, architecture=self.architecture, dtype=dtype, clamp=self.clamp,
          taps=self.taps, activation=self.activation, use_noise=self.use_noise, name=f'b{res}')(x, img, w, noise_mode)
    return img


class Generator(nn.Module):
  """mapping + synthesis. The three methods are what training and sampling need."""
  mapping: Mapping
  synthesis: Synthesis

  def __call__(self, z, c, w_avg=None, psi=1.0, cutoff=None, noise_mode='random'):
    """z [N,z_dim], c [N,c_dim] -> image [N,H,W,C]; psi != 1 truncates towards w_avg [w_dim]."""
    ws = broadcast(self.mapping(z, c), self.synthesis.num_ws)
    if w_avg is not None:
      ws = truncate(ws, w_avg, psi, cutoff)
    return self.synthesis(ws, noise_mode)

  def map(self, z, c):
    """z [N,z_dim], c [N,c_dim] -> w [N,w_dim]."""
    return self.mapping(z, c)

  def synthesize(self, ws, noise_mode='random'):
    """ws [N,num_ws,w_dim] -> image [N,H,W,C]."""
    return self.synthesis(ws, noise_mode)


class DiscriminatorBlock(nn.Module):
  """fromrgb (top block, or every block of 'skip'), conv0, conv1 (down x2). (x, img) -> (x, img) at half the size."""
  features: int
  out_features: int
  first: bool
  architecture: str
  dtype: object
  clamp: float | None
  taps: tuple
  activation: str

  @nn.compact
  def __call__(self, x, img):
    conv = dict(activation=self.activation, clamp=self.clamp, taps=self.taps)
    if self.first or self.architecture == 'skip':
      y = Conv(self.features, 1, self.activation, clamp=self.clamp, name='fromrgb')(cast(img, self.dtype))
      x = y if x is None else cast(x, self.dtype) + y
      img = ops.downsample2d(img, _unit(self.taps)) if self.architecture == 'skip' else None
    x = cast(x, self.dtype)
    if self.architecture == 'resnet':
      skip = Conv(self.out_features, 1, 'linear', down=2, use_bias=False, gain=HALF, taps=self.taps, name='skip')(x)
    x = Conv(self.features, 3, name='conv0', **conv)(x)
    x = Conv(self.out_features, 3, down=2, gain=HALF if self.architecture == 'resnet' else 1, name='conv1', **conv)(x)
    return (skip + x if self.architecture == 'resnet' else x), img


class DiscriminatorEpilogue(nn.Module):
  """Minibatch stddev, conv 3x3, two dense layers. x: [N,h0,w0,I] -> [N,cmap_dim or 1], float32."""
  features: int
  architecture: str
  cmap_dim: int
  mbstd_group_size: int | None
  mbstd_num_channels: int
  clamp: float | None
  activation: str

  @nn.compact
  def __call__(self, x, img):
    if x is None or self.architecture == 'skip':  # None: there is no other block
      y = Conv(self.features, 1, self.activation, name='fromrgb')(full_precision(img))
      x = y if x is None else full_precision(x) + y
    x = full_precision(x)
    if self.mbstd_num_channels:
      x = ops.minibatch_stddev(x, self.mbstd_group_size, self.mbstd_num_channels)
    x = Conv(self.features, 3, self.activation, clamp=self.clamp, name='conv')(x)
    x = Dense(self.features, self.activation, name='fc')(x.reshape(x.shape[0], -1))  # H,W,C order
    return Dense(self.cmap_dim or 1, name='out')(x)


class Discriminator(nn.Module):
  """image [N,H,W,C], label [N,c_dim] -> logits [N,1], float32."""
  resolution: tuple
  fmap_base: float
  fmap_max: int
  c_dim: int = 0
  architecture: str = 'resnet'
  num_bf16_res: int = 0
  clamp: float | None = None
  taps: tuple = (1, 3, 3, 1)
  activation: str = 'lrelu'
  mbstd_group_size: int | None = 4
  mbstd_num_channels: int = 1
  cmap_dim: int | None = None
  mapping_layers: int = 8
  mapping_lr_mul: float = 0.01
  remat: bool = False

  @nn.compact
  def __call__(self, img, c=None):
    sizes = block_sizes(self.resolution)
    width = [fmaps(max(size), self.fmap_base, self.fmap_max) for size in sizes]
    block = nn.remat(DiscriminatorBlock) if self.remat else DiscriminatorBlock
    dtypes = _dtypes(sizes, self.num_bf16_res)
    x = None
    for i in range(len(sizes) - 1, 0, -1):
      x, img = block(
          features=width[i], out_features=width[i - 1], first=i == len(sizes) - 1, architecture=self.architecture,
          dtype=dtypes[i], clamp=self.clamp, taps=self.taps, activation=self.activation,
          name=f'b{max(sizes[i])}')(x, img)
    cmap_dim = (self.cmap_dim or width[0]) if self.c_dim else 0
    x = DiscriminatorEpilogue(
        features=width[0], architecture=self.architecture, cmap_dim=cmap_dim, clamp=self.clamp,
        mbstd_group_size=self.mbstd_group_size, mbstd_num_channels=self.mbstd_num_channels,
        activation=self.activation, name=f'b{max(sizes[0])}')(x, img)
    if self.c_dim:
      cmap = Mapping(0, self.c_dim, cmap_dim, self.mapping_layers, lr_mul=self.mapping_lr_mul, name='mapping')(None, c)
      x = jnp.sum(x * cmap, axis=1, keepdims=True) / math.sqrt(cmap_dim)
    return x


def _unit(taps):
  f = np.asarray(taps, np.float64)
  return f / f.sum()
