"""What networks of other implementations do otherwise, one record per network.

Imports set these (interop/read.py), and --config.g.variant may. A run's configuration holds what
differs from the defaults, so a default that changes changes what saved runs mean. `build` hands the
record through whole.
"""

import dataclasses

from sg2jax.resample import TAPS


@dataclasses.dataclass(frozen=True)
class Variant:
  """Of a generator, with its mapping network.

  activation: of convolutions, a name of ops.ACTIVATIONS. taps: FIR filter of up- and down-sampling
  [S2 App. B]; config A has its own. fmap_min: feature maps at least. mapping_lr_mul: [S1 App. C].
  layer_features: units of the mapping network's hidden layers, 0: as many as it puts out.
  embed_features: components of the label embedding, 0: as many.
  """

  activation: str = 'lrelu'
  taps: tuple = TAPS
  fmap_min: int = 1
  mapping_lr_mul: float = 0.01
  layer_features: int = 0
  embed_features: int = 0


@dataclasses.dataclass(frozen=True)
class DiscriminatorVariant(Variant):
  """Of a discriminator; its mapping network is that of labels.

  cmap_dim: components of the mapped label, 0: as many as feature maps in the last block.
  mbstd_num_channels: feature maps of the minibatch stddev, 0: there is none.
  """

  cmap_dim: int = 0
  mbstd_num_channels: int = 1
