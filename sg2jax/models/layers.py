"""Layers with equalized learning rate [S1 App. C].

Parameters are stored as N(0,1) (over lr_mul) and scaled at run time: the steps of Adam do not
depend on the size of gradients, and so change all weights equally fast for their size.
"""

from collections.abc import Sequence
import functools
import math
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from sg2jax import conv, folding, ops, products, resample
from sg2jax.keys import purpose_key

NOISE_MODES = ('const', 'random', 'none')
RSQRT2 = math.sqrt(0.5)  # gain of each of two sums of equal variance, whose sum keeps it


def activate(
  x: jax.Array | None,
  b: jax.Array | None,
  activation: str,
  gain: float = 1,
  clamp: float | None = None,
  **more: Any,
) -> jax.Array:
  """clamp(act(x + b)) * gain, act with the gain that keeps the variance; see ops.bias_act.

  b may have fewer components than x, which then has columns in its channels (folding.py).
  """
  if x is not None and b is not None:
    b = jnp.tile(b, x.shape[-1] // b.size)
  if clamp is not None:
    clamp = clamp * gain
  gain = ops.ACTIVATIONS[activation][1] * gain
  return ops.bias_act(x, b, activation, gain=gain, clamp=clamp, **more)


class Dense(nn.Module):
  """act(x @ (weight * lr_mul / sqrt(in)) + bias * lr_mul * bias_gain): [N,in] -> [N,features]."""

  features: int
  activation: str = 'linear'
  lr_mul: float = 1
  bias_init: float = 0
  bias_gain: float = 1
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (x.shape[-1], self.features)
    weight = self.param('weight', nn.initializers.normal(1 / self.lr_mul), shape)
    # The scale goes to x, which is smaller. In full precision on every machine: w and the styles
    # scale everything that comes after.
    x = x * (self.lr_mul / math.sqrt(shape[0]))
    x = jnp.dot(x, weight, precision=lax.Precision.HIGHEST)  # [N,features]
    bias = None
    if self.use_bias:
      bias = self.param('bias', nn.initializers.constant(self.bias_init), (self.features,))
      bias = bias * (self.lr_mul * self.bias_gain)
    return ops.bias_act(x, bias, self.activation)


class Conv(nn.Module):
  """Convolution, bias, activation: [N,H,W,I] -> [N,H*up/down,W*up/down,features].

  gain: of the result, its clamp included.
  mean: whether it down-samples as StyleGAN does, by filter, convolution and 2x2 mean, instead of
  filter and strided convolution.
  folds: columns in the channels of what it takes and makes, for a TPU.
  """

  features: int
  kernel: int
  activation: str = 'lrelu'
  up: int = 1
  down: int = 1
  use_bias: bool = True
  gain: float = 1
  clamp: float | None = None
  taps: tuple = resample.TAPS
  bias_gain: float = 1
  mean: bool = False
  folds: folding.Folds = folding.NONE

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1] // self.folds[0]
    shape = (self.kernel, self.kernel, channels, self.features)
    weight = self.param('weight', nn.initializers.normal(1), shape) / math.sqrt(fan_in(shape))
    bias = None
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,)) * self.bias_gain
    if self.kernel == 1 and self.up == self.down == 1 and x.shape[-1] <= products.THIN:
      return activate(
        None, bias, self.activation, self.gain, self.clamp, thin=(x, weight[0]), dtype=x.dtype
      )
    if self.mean and self.down == 2:
      x = resample.filter2d(x, resample.setup_filter(self.taps, separable=True))  # [N,H,W,I]
      x = conv.conv2d_mean(x, weight)  # [N,H/2,W/2,features]
    else:
      # A correlation, but a true convolution where it enlarges: so are weights in NVIDIA's files.
      x = conv.conv2d_resample(
        x,
        weight,
        taps=self.taps,
        up=self.up,
        down=self.down,
        padding=self.kernel // 2,
        flip_weight=self.up == 1,
        folds=self.folds,
      )  # [N,H*up/down,W*up/down,features]
    return activate(x, bias, self.activation, self.gain, self.clamp)


def fan_in(shape: Sequence[int]) -> int:
  """Number of products in each sum of a convolution with weights of this shape, [k,k,I,O]."""
  return math.prod(shape[:3])


def layer_noise(
  layer: nn.Module,
  mode: str,
  key: jax.Array | None,
  batch: int,
  size: tuple[int, int],
  channels: tuple[int, ...] = (),
) -> tuple[jax.Array, jax.Array] | None:
  """The noise of a layer, in whose compact method it is called, and its strength.

  Args:
    layer: gets a parameter noise_strength, and noise_const [H,W] in the collection 'noise'.
    mode: 'const' takes noise_const, or, if it is a buffer [N,H,W,1], the noise of each sample;
      'random' draws for each sample.
    key: what 'random' draws by.
    batch: N.
    size: (H, W).
    channels: (C,) for a strength per channel, () for one of all.

  Returns:
    Noise [N,H,W,1], with an N of 1 where all samples share it, and its strength; None in mode
    'none'.

  Raises:
    ValueError: there is no such mode.
  """
  if mode not in NOISE_MODES:
    raise ValueError(f'noise_mode={mode!r} is unknown; choose from {", ".join(NOISE_MODES)}')

  def draw_const():
    return jnp.asarray(nn.initializers.normal(1)(layer.make_rng('params'), size))

  # Both exist whatever the mode, so that all modes have the same parameters.
  const = layer.variable('noise', 'noise_const', draw_const).value
  strength = layer.param('noise_strength', nn.initializers.zeros, channels)
  if mode == 'none':
    return None
  if mode == 'random':
    shape = (batch, *size, 1)
    return jax.random.normal(key, shape, strength.dtype), strength
  if const.ndim == 2:
    const = const[None, :, :, None]  # [1,H,W,1]
  return const, strength


def draw_noise(noise: Any, keys: jax.Array) -> Any:
  """The collection 'noise' with buffers [N,H,W,1] for mode 'const', drawn by keys [N].

  What a sample gets follows from its key alone: neither the batch nor the number of devices shows.
  """
  leaves, tree = jax.tree.flatten(noise)

  def draw(key):
    def of_layer(i, x):
      return jax.random.normal(jax.random.fold_in(key, i), (*x.shape, 1), x.dtype)

    return [of_layer(i, x) for i, x in enumerate(leaves)]

  return jax.tree.unflatten(tree, jax.vmap(draw)(keys))


def noise_of_seeds(noise: Any, seeds: jax.Array) -> Any:
  """The noise of images of seeds, uint32 [N], with mode 'random': as `draw_noise`."""
  key = purpose_key(0, 'sampling')
  return draw_noise(noise, jax.vmap(functools.partial(jax.random.fold_in, key))(seeds))


def fold_noise(
  noise: jax.Array, strength: jax.Array, channels: int, fold: int
) -> tuple[jax.Array, jax.Array]:
  """What bias_act adds to images of so many channels, `fold` columns in each.

  noise [N|1,H,W,1], strength [] -> [N|1,H,W/fold,fold], [1,fold,fold*channels] or [1,1,1].
  """
  strength = strength[None, None, None]
  if fold == 1:
    return noise, strength
  each = jnp.broadcast_to(strength, (1, 1, channels))
  return folding.refold(noise, 1, fold), folding.blocks(each, fold)


class SynthesisLayer(nn.Module):
  """Modulated 3x3 convolution, noise, bias, activation [S2 Fig. 2d].

  x: [N,H,W,I], w: [N,w_dim] -> [N,H*up,W*up,features].
  noise_mode, key: see layer_noise.
  equalized: weights are scaled by 1/sqrt(fan-in) first, as in S2's own code; after demodulation
  only its epsilon tells.
  folds: see Conv.
  """

  features: int
  activation: str = 'lrelu'
  up: int = 1
  gain: float = 1
  clamp: float | None = None
  taps: tuple = resample.TAPS
  use_noise: bool = True
  equalized: bool = False
  folds: folding.Folds = folding.NONE

  @nn.compact
  def __call__(
    self, x: jax.Array, w: jax.Array, noise_mode: str, key: jax.Array | None = None
  ) -> jax.Array:
    before, after = self.folds
    channels = x.shape[-1] // before
    styles = Dense(channels, bias_init=1, name='affine')(w)  # [N,I]
    weight = self.param('weight', nn.initializers.normal(1), (3, 3, channels, self.features))
    if self.equalized:
      weight = weight / math.sqrt(fan_in(weight.shape))
    noise = None
    if self.use_noise:
      size = (x.shape[1] * self.up, x.shape[2] * before * self.up)
      noise = layer_noise(self, noise_mode, key, x.shape[0], size)  # [N|1,H*up,W*up,1], []
      if noise is not None:
        noise = fold_noise(*noise, self.features, after)
    y, demod = conv.modulate(
      x,
      weight,
      styles,
      taps=self.taps,
      up=self.up,
      padding=1,
      flip_weight=self.up == 1,  # see Conv
      folds=self.folds,
    )  # [N,H*up,W*up,features], [N,features]
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    return activate(y, bias, self.activation, self.gain, self.clamp, scale=demod, thin=noise)


class ToRGB(nn.Module):
  """Modulated 1x1 convolution without demodulation [S2 Fig. 7].

  x: [N,H,W,I], w: [N,w_dim] -> float32 [N,H,W,channels], never folded.
  fold: columns in the channels of x, for a TPU.
  """

  channels: int
  clamp: float | None = None
  fold: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
    shape = (1, 1, x.shape[-1] // self.fold, self.channels)
    # As nothing demodulates, the fan-in is in the styles.
    styles = Dense(shape[2], bias_init=1, name='affine')(w) / math.sqrt(fan_in(shape))  # [N,I]
    weight = self.param('weight', nn.initializers.normal(1), shape)
    bias = self.param('bias', nn.initializers.zeros, (self.channels,))
    dtype = products.full_precision(x).dtype
    folds = (self.fold, self.fold)
    x = conv.modulated_conv2d(x, weight, styles, demodulate=False, dtype=dtype, folds=folds)
    x = folding.refold(x, self.fold, 1)  # [N,H,W,channels]
    return ops.bias_act(x, bias, 'linear', clamp=self.clamp)


def cast(x: jax.Array, dtype: Any) -> jax.Array:
  """x in `dtype`; None is full precision."""
  return products.full_precision(x) if dtype is None else x.astype(dtype)


def fade(new: jax.Array, old: jax.Array, alpha: jax.Array | float) -> jax.Array:
  """From old (alpha 0) to new (alpha 1; then exactly new, in every bit), in new's dtype."""
  wide = products.full_precision(new)
  return (wide + (old - wide) * (1 - alpha)).astype(new.dtype)
