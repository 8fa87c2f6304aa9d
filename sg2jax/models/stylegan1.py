"""The layer of StyleGAN's generator, config A [S1]: adaptive instance normalization, which S2
replaces by demodulation.
"""

import math

from flax import linen as nn
from jax import lax
import jax.numpy as jnp

from sg2jax import conv, ops, resample
from sg2jax.models.layers import Dense, scaled_noise

TAPS = (1, 2, 1)  # of every blur in config A


class StyleLayer(nn.Module):
  """Convolution, noise, bias, lrelu, AdaIN [S1 Fig. 1b, Eq. 1]. x: [N,H,W,I], w: [N,w_dim] ->
  [N,H*up,W*up,features].

  The gain sqrt(2) is in the weights, so biases don't have it. up 2: nearest neighbour, convolution,
  blur. convolve False leaves the convolution out: so is the learned constant treated.
  """

  features: int
  up: int = 1
  clamp: float | None = None
  use_noise: bool = True
  convolve: bool = True

  @nn.compact
  def __call__(self, x, w, noise_mode):
    dtype = x.dtype
    if self.convolve:
      shape = (3, 3, x.shape[-1], self.features)
      weight = self.param('weight', nn.initializers.normal(1), shape) * math.sqrt(
        2 / math.prod(shape[:3])
      )
      if self.up == 2:
        x = resample.filter2d(conv.nearest_conv2d(x, weight), resample.setup_filter(TAPS))
      else:
        x = conv.conv2d_resample(x, weight, padding=1)
    x = ops.full_precision(x)
    if self.use_noise:
      noise = scaled_noise(self, noise_mode, x.shape[0], x.shape[1:3], (self.features,))
      x = x if noise is None else x + noise
    b = self.param('bias', nn.initializers.zeros, (self.features,))
    x = ops.bias_act(x, b, 'lrelu', gain=1, clamp=self.clamp)
    scale, shift = jnp.split(Dense(2 * self.features, name='affine')(w)[:, None, None], 2, axis=-1)
    return (instance_norm(x) * (scale + 1) + shift).astype(dtype)


def instance_norm(x, eps=1e-8):
  """(x - mean) / sqrt(var + eps) of each sample and channel over its pixels. [N,H,W,C]."""
  x = x - x.mean((1, 2), keepdims=True)
  return x * lax.rsqrt((x**2).mean((1, 2), keepdims=True) + eps)
