"""Layers with equalized learning rate: parameters are stored as N(0,1) (over lr_mul) and scaled at
run time [S1 App. C].
"""

import math
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from sg2jax import conv, ops, resample

NOISE_MODES = ('const', 'random', 'none')


class Dense(nn.Module):
  """act(x @ (weight * lr_mul / sqrt(in)) + bias * lr_mul * bias_gain). x: [N,in] ->
  [N,features].
  """

  features: int
  activation: str = 'linear'
  lr_mul: float = 1
  bias_init: float = 0
  bias_gain: float = 1
  use_bias: bool = True

  @nn.compact
  def __call__(self, x):
    init = nn.initializers.normal(1 / self.lr_mul)
    w = self.param('weight', init, (x.shape[-1], self.features))
    x = jnp.dot(x, w * (self.lr_mul / math.sqrt(x.shape[-1])), precision=lax.Precision.HIGHEST)
    b = None
    if self.use_bias:
      b = self.param('bias', nn.initializers.constant(self.bias_init), (self.features,)) * (
        self.lr_mul * self.bias_gain
      )
    return ops.bias_act(x, b, self.activation)


class Conv(nn.Module):
  """Convolution, bias, activation. x: [N,H,W,I] -> [N,H/down,W/down,features]; gain scales result
  and clamp.

  mean: down-samples as StyleGAN does, by filter, convolution and 2x2 mean, instead of filter and
  strided convolution.
  """

  features: int
  kernel: int
  activation: str = 'lrelu'
  up: int = 1
  down: int = 1
  use_bias: bool = True
  gain: float = 1
  clamp: float | None = None
  taps: tuple = (1, 3, 3, 1)
  bias_gain: float = 1
  mean: bool = False

  @nn.compact
  def __call__(self, x):
    shape = (self.kernel, self.kernel, x.shape[-1], self.features)
    w = self.param('weight', nn.initializers.normal(1), shape) / math.sqrt(math.prod(shape[:3]))
    b = (
      self.param('bias', nn.initializers.zeros, (self.features,)) * self.bias_gain
      if self.use_bias
      else None
    )
    if self.mean:
      x = conv.conv2d_mean(resample.filter2d(x, resample.setup_filter(self.taps)), w)
    else:
      x = conv.conv2d_resample(
        x,
        w,
        taps=self.taps,
        up=self.up,
        down=self.down,
        padding=self.kernel // 2,
        flip_weight=self.up == 1,
      )
    return ops.bias_act(
      x,
      b,
      self.activation,
      gain=ops.ACTIVATIONS[self.activation][1] * self.gain,
      clamp=self.clamp and self.clamp * self.gain,
    )


def scaled_noise(layer, mode, batch, size, channels=()):
  """strength * noise of a layer, [N|1,H,W,1] or with a strength per channel [N|1,H,W,C]; None in
  mode 'none'.

  Noise [H,W] lives in the collection 'noise' (mode 'const'; a buffer [N,H,W,1] is taken as
  per-sample noise), or is drawn per sample from the rng 'noise' (mode 'random'). To be called in
  the layer's compact method.
  Raises: ValueError for another mode.
  """
  if mode not in NOISE_MODES:
    raise ValueError(f'noise_mode={mode!r} is unknown; choose from {", ".join(NOISE_MODES)}')
  const = layer.variable(
    'noise',
    'noise_const',
    lambda: jnp.asarray(nn.initializers.normal(1)(layer.make_rng('params'), size)),
  )
  strength = layer.param('noise_strength', nn.initializers.zeros, channels)
  if mode == 'none':
    return None
  if mode == 'random':
    return (
      nn.initializers.normal(1)(layer.make_rng('noise'), (batch, *size, 1), strength.dtype)
      * strength
    )
  return (const.value if const.value.ndim == 4 else const.value[None, :, :, None]) * strength


def draw_noise(noise, keys):
  """Noise of its own for each sample: collection 'noise' and keys [N] -> the collection with
  buffers [N,H,W,1], for 'const'.

  What a sample gets follows from its key alone, so neither the batch nor the number of devices
  shows.
  """
  leaves, tree = jax.tree.flatten(noise)
  draw = jax.vmap(
    lambda key: [
      jax.random.normal(jax.random.fold_in(key, i), (*x.shape, 1), x.dtype)
      for i, x in enumerate(leaves)
    ]
  )
  return jax.tree.unflatten(tree, draw(keys))


class SynthesisLayer(nn.Module):
  """Modulated 3x3 convolution, noise, bias, activation [S2 Fig. 2d]. x: [N,H,W,I], w: [N,w_dim] ->
  [N,H*up,W*up,features].

  equalized: weights are scaled by 1/sqrt(fan-in) first, as in S2's own code; after demodulation
  only its epsilon tells.
  """

  features: int
  activation: str = 'lrelu'
  up: int = 1
  gain: float = 1
  clamp: float | None = None
  taps: tuple = (1, 3, 3, 1)
  use_noise: bool = True
  equalized: bool = False

  @nn.compact
  def __call__(self, x, w, noise_mode):
    styles = Dense(x.shape[-1], bias_init=1, name='affine')(w)
    weight = self.param('weight', nn.initializers.normal(1), (3, 3, x.shape[-1], self.features))
    if self.equalized:
      weight = weight / math.sqrt(math.prod(weight.shape[:3]))
    hw = (x.shape[1] * self.up, x.shape[2] * self.up)
    noise = scaled_noise(self, noise_mode, x.shape[0], hw) if self.use_noise else None
    y = conv.modulated_conv2d(
      x,
      weight,
      styles,
      noise=noise,
      taps=self.taps,
      up=self.up,
      padding=1,
      flip_weight=self.up == 1,
      dtype=ops.full_precision(x).dtype,
    )
    b = self.param('bias', nn.initializers.zeros, (self.features,))
    return ops.bias_act(
      y,
      b,
      self.activation,
      gain=ops.ACTIVATIONS[self.activation][1] * self.gain,
      clamp=self.clamp and self.clamp * self.gain,
      dtype=x.dtype,
    )


class ToRGB(nn.Module):
  """Modulated 1x1 convolution without demodulation [S2 Fig. 7]. x: [N,H,W,I], w: [N,w_dim] ->
  float32 [N,H,W,channels].
  """

  channels: int
  clamp: float | None = None

  @nn.compact
  def __call__(self, x, w):
    styles = Dense(x.shape[-1], bias_init=1, name='affine')(w) / math.sqrt(x.shape[-1])
    weight = self.param('weight', nn.initializers.normal(1), (1, 1, x.shape[-1], self.channels))
    b = self.param('bias', nn.initializers.zeros, (self.channels,))
    x = conv.modulated_conv2d(
      x, weight, styles, demodulate=False, dtype=ops.full_precision(x).dtype
    )
    return ops.bias_act(x, b, 'linear', clamp=self.clamp)


def cast(x, dtype: Any):
  """x in `dtype`; None is full precision."""
  return ops.full_precision(x) if dtype is None else x.astype(dtype)
