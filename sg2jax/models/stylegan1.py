"""The layer of StyleGAN's generator, config A [S1].

Its adaptive instance normalization is what S2 replaces by demodulation.
"""

import math

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from sg2jax import conv, ops, products, resample
from sg2jax.models.layers import Dense, fan_in, layer_noise

BLUR = (1, 2, 1)  # of every blur in config A


class StyleLayer(nn.Module):
  """Convolution, noise, bias, lrelu, AdaIN [S1 Fig. 1b, Eq. 1].

  x: [N,H,W,I], w: [N,w_dim] -> [N,H*up,W*up,features].
  noise_mode, key: see layer_noise.
  up 2: nearest neighbour, convolution, blur.
  convolve False leaves the convolution out: so is the learned constant treated.
  """

  features: int
  up: int = 1
  clamp: float | None = None
  use_noise: bool = True
  convolve: bool = True

  @nn.compact
  def __call__(
    self, x: jax.Array, w: jax.Array, noise_mode: str, key: jax.Array | None = None
  ) -> jax.Array:
    dtype = x.dtype
    if self.convolve:
      x = self.convolution(x)  # [N,H*up,W*up,features]
    x = products.full_precision(x)
    if self.use_noise:
      noise = layer_noise(self, noise_mode, key, x.shape[0], x.shape[1:3], (self.features,))
      if noise is not None:
        x = x + noise[0] * noise[1]
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x = ops.bias_act(x, bias, 'lrelu', gain=1, clamp=self.clamp)
    style = Dense(2 * self.features, name='affine')(w)[:, None, None]  # [N,1,1,2*features]
    scale, shift = jnp.split(style, 2, axis=-1)  # [N,1,1,features] each
    return (instance_norm(x) * (scale + 1) + shift).astype(dtype)

  def convolution(self, x: jax.Array) -> jax.Array:
    """[N,H,W,I] -> [N,H*up,W*up,features]. The gain sqrt(2) is in the weights, unlike S2's."""
    shape = (3, 3, x.shape[-1], self.features)
    weight = self.param('weight', nn.initializers.normal(1), shape) * math.sqrt(2 / fan_in(shape))
    if self.up == 2:
      x = conv.nearest_conv2d(x, weight)  # [N,2H,2W,features]
      return resample.filter2d(x, resample.setup_filter(BLUR, separable=True))
    return conv.conv2d_resample(x, weight, padding=1)


def instance_norm(x: jax.Array, eps: float = 1e-8) -> jax.Array:
  """(x - mean) / sqrt(var + eps) of each sample and channel over its pixels. [N,H,W,C]."""
  x = x - x.mean((1, 2), keepdims=True)
  return x * lax.rsqrt((x**2).mean((1, 2), keepdims=True) + eps)
