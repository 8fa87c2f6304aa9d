"""Which architectures there are, and the sizes and names of their blocks: arithmetic, no arrays.

  orig, skip, resnet   configs E and F and the nine pairs of Table 2 [S2 Fig. 7]
  msg                  MSG-GAN [MSG; S2 Fig. 7a]: an image leaves G and enters D at every resolution
  revised              configs B-D: orig with a torgb and a fromrgb at every resolution, to be grown
  stylegan1            config A: the same topology with the layers of StyleGAN [S1]

Resolutions are h0*2^k x w0*2^k; a block is called b{res} after the longer side of its output, b4
... b1024. Networks that grow have all their parameters from the start. Their `stage` (static) is
the number of upper resolutions not there yet, and `alpha` in [0,1] (traced) how far the newest is
faded in; they work at the size of the stage.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from sg2jax import folding

GROWING = ('revised', 'stylegan1')
ARCHITECTURES = ('orig', 'skip', 'resnet', 'msg', *GROWING)

Size = tuple[int, int]


def block_sizes(resolution: Size) -> list[Size]:
  """(height, width) of every block, smallest first, the longer side of the first in 4..7.

  Raises:
    ValueError: a side isn't h0 * 2^k; names the nearest that is.
  """
  h, w = resolution
  doublings = max(max(h, w).bit_length() - 3, 0)
  unit = 2**doublings
  near_h, near_w = (max(1, round(side / unit)) * unit for side in (h, w))
  if min(h, w) < 1 or max(h, w) < 4 or (near_h, near_w) != (h, w):
    raise ValueError(
      f'resolution={h}x{w} must be h0*2^k x w0*2^k with the longer of h0, w0 in 4..7; '
      f'try {max(near_h, 4)}x{max(near_w, 4)}'
    )
  return [(h >> i, w >> i) for i in range(doublings, -1, -1)]


def fmaps(res: int, fmap_base: float, fmap_max: int, fmap_min: int = 1) -> int:
  """Feature maps at `res` pixels: 2 fmap_base / res, in [fmap_min, fmap_max] [S2 App. B]."""
  return max(min(int(2 * fmap_base // res), fmap_max), fmap_min)


def block_dtypes(sizes: Sequence[Size], num_bf16_res: int) -> list:
  """bfloat16 for the `num_bf16_res` largest blocks, None (full precision) for the rest.

  The first block is never in bfloat16: minibatch stddev and the logits follow it.
  """
  low = min(num_bf16_res, len(sizes) - 1)
  return [None] * (len(sizes) - low) + [jnp.bfloat16] * low


def block_folds(sizes: Sequence[Size], channels: Sequence[int], fold: bool) -> list[folding.Folds]:
  """(columns in the channels of the next smaller block, of this one); without `fold` 1 each.

  The smallest has none: what is not a convolution begins or ends there.
  """
  if not fold:
    return [folding.NONE] * len(sizes)
  factors = [folding.factor(c, w) for c, (_, w) in zip(channels, sizes, strict=True)]
  factors[0] = 1
  return list(zip([1, *factors], factors))


def newest_block(stage: int, sizes: Sequence[Size], architecture: str) -> int:
  """Index of the largest block that a network has in this stage.

  Raises:
    ValueError: there is no such stage.
  """
  stages = len(sizes) if architecture in GROWING else 1
  if not 0 <= stage < stages:
    raise ValueError(
      f'stage={stage} is not one of the {len(sizes)} resolutions of architecture {architecture}; '
      f'only {" and ".join(GROWING)} have stages above 0'
    )
  return len(sizes) - 1 - stage


def image_blocks(newest: int, architecture: str, fading: bool, initializing: bool) -> range:
  """Indices of the blocks where an image leaves a generator or enters a discriminator."""
  if architecture in ('skip', 'msg'):
    return range(newest + 1)
  if architecture in GROWING and initializing:
    return range(newest + 1)  # all parameters are there from the start
  if architecture in GROWING and fading:
    return range(max(newest - 1, 0), newest + 1)
  return range(newest, newest + 1)


def image_side_layers(architecture: str, sizes: Sequence[Size]) -> list[tuple[str, str]]:
  """(block, layer) of a discriminator's layers before the last block, from the image on.

  That is what Freeze-D counts.
  """
  layers = []
  for i, size in enumerate(reversed(sizes[1:])):
    names = ['conv0', 'conv1']
    if i == 0 or architecture in ('skip', 'msg', *GROWING):
      names.insert(0, 'fromrgb')
    if architecture == 'resnet':
      names.append('skip')
    layers += [(f'b{max(size)}', name) for name in names]
  return layers
