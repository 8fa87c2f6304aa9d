"""CLIP [Radford et al. 2021, arXiv 2103.00020]: pictures and texts as vectors that can be compared.

An image tower, a vision transformer or a ResNet, and a text tower. Parameters are named and laid
out as in OpenAI's files, but for what Flax's layers call `kernel`, `scale` and `embedding`; see
clip_names.py for how they come out of files. Features are not normalised.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

EPS = 1e-5  # of LayerNorm, and of the batch norms that are folded into convolutions
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pixels it was trained on, RGB in [0,1]
STD = (0.26862954, 0.26130258, 0.27577711)
ACTIVATIONS = ('quick_gelu', 'gelu')


@dataclasses.dataclass(frozen=True)
class Architecture:
  """Sizes of both towers. patch_size None: the image tower is a ResNet."""

  image_size: int
  vision_width: int
  vision_layers: int | tuple[int, ...]  # blocks; of a ResNet, of each of its four stages
  vision_heads: int
  embed_dim: int  # of the features
  context_length: int  # tokens of a text
  vocab_size: int
  text_width: int
  text_layers: int
  text_heads: int
  patch_size: int | None = None
  activation: str = 'quick_gelu'  # or 'gelu'; of the transformers


def _activate(x, activation):
  if activation == 'quick_gelu':
    return x * nn.sigmoid(1.702 * x)
  return nn.gelu(x, approximate=False)


def _norm(name):
  # Not by E[x^2] - E[x]^2, which cancels.
  return nn.LayerNorm(epsilon=EPS, use_fast_variance=False, name=name)


# ---- transformers


class Attention(nn.Module):
  """Self-attention: [N,T,W] -> [N,T,W]. mask: [T,T], None: all look at all."""

  heads: int

  @nn.compact
  def __call__(self, x: jax.Array, mask: np.ndarray | None) -> jax.Array:
    n, t, width = x.shape
    qkv = nn.Dense(3 * width, name='in_proj')(x)
    q, k, v = (part.reshape(n, t, self.heads, -1) for part in jnp.split(qkv, 3, -1))
    x = nn.dot_product_attention(q, k, v, mask=mask)  # [N,T,heads,W/heads]
    return nn.Dense(width, name='out_proj')(x.reshape(n, t, width))


class Block(nn.Module):
  """A residual block of a transformer: [N,T,W] -> [N,T,W]."""

  heads: int
  activation: str

  @nn.compact
  def __call__(self, x: jax.Array, mask: np.ndarray | None = None) -> jax.Array:
    width = x.shape[-1]
    x = x + Attention(self.heads, name='attn')(_norm('ln_1')(x), mask)
    y = nn.Dense(4 * width, name='mlp.c_fc')(_norm('ln_2')(x))
    return x + nn.Dense(width, name='mlp.c_proj')(_activate(y, self.activation))


class VisionTransformer(nn.Module):
  """Pixels [N,S,S,3], as `normalize` makes them -> features [N,embed_dim]."""

  architecture: Architecture

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    a = self.architecture
    width, patch = a.vision_width, a.patch_size
    init = nn.initializers.normal(width**-0.5)
    x = nn.Conv(width, (patch, patch), patch, 'VALID', use_bias=False, name='conv1')(images)
    x = x.reshape(len(x), -1, width)  # [N,patches,W], row by row
    first = self.param('class_embedding', init, (width,))
    x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, width)), x], 1)
    x = x + self.param('positional_embedding', init, x.shape[1:])
    x = _norm('ln_pre')(x)
    for i in range(a.vision_layers):
      x = Block(a.vision_heads, a.activation, name=f'transformer.resblocks.{i}')(x)
    x = _norm('ln_post')(x[:, 0])  # of the class token
    return x @ self.param('proj', init, (width, a.embed_dim))


class TextTransformer(nn.Module):
  """Tokens int32 [N,context_length] -> features [N,embed_dim]; see tokenizer.py."""

  architecture: Architecture

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    a = self.architecture
    small = nn.initializers.normal(0.02)
    embed = nn.Embed(a.vocab_size, a.text_width, embedding_init=small, name='token_embedding')
    position = self.param('positional_embedding', small, (a.context_length, a.text_width))
    x = embed(tokens) + position  # [N,T,W]
    # A token sees itself and those before it, so what follows the end of a text changes nothing.
    causal = np.tri(a.context_length, dtype=bool)
    for i in range(a.text_layers):
      x = Block(a.text_heads, a.activation, name=f'transformer.resblocks.{i}')(x, causal)
    end = tokens.argmax(-1)  # the first end token has the largest id
    x = _norm('ln_final')(x[jnp.arange(len(x)), end])  # [N,W]
    init = nn.initializers.normal(a.text_width**-0.5)
    return x @ self.param('text_projection', init, (a.text_width, a.embed_dim))


# ---- ResNet


def _conv(features, kernel, name, stride=1):
  """A convolution with the batch norm behind it in its kernel and bias."""
  return nn.Conv(features, (kernel, kernel), stride, kernel // 2, name=name)


def _mean(x, stride):
  return nn.avg_pool(x, (stride, stride), (stride, stride))


class Bottleneck(nn.Module):
  """[N,H,W,I] -> [N,H/stride,W/stride,4 features]; it shrinks by means, not by strides."""

  features: int
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = nn.relu(_conv(self.features, 1, 'conv1')(x))
    y = nn.relu(_conv(self.features, 3, 'conv2')(y))
    y = _conv(4 * self.features, 1, 'conv3')(_mean(y, self.stride))
    if self.stride > 1 or x.shape[-1] != y.shape[-1]:
      x = _conv(4 * self.features, 1, 'downsample.0')(_mean(x, self.stride))
    return nn.relu(x + y)


class AttentionPool(nn.Module):
  """[N,H,W,C] -> [N,features]: attention whose one query is the mean of all positions."""

  heads: int
  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    n, *_, channels = x.shape
    x = x.reshape(n, -1, channels)
    x = jnp.concatenate([x.mean(1, keepdims=True), x], 1)  # [N,1+HW,C]
    init = nn.initializers.normal(channels**-0.5)
    x = x + self.param('positional_embedding', init, x.shape[1:])

    def project(x, name):
      return nn.Dense(channels, name=name)(x).reshape(n, -1, self.heads, channels // self.heads)

    q, k, v = project(x[:, :1], 'q_proj'), project(x, 'k_proj'), project(x, 'v_proj')
    x = nn.dot_product_attention(q, k, v).reshape(n, channels)
    return nn.Dense(self.features, name='c_proj')(x)


class ResNet(nn.Module):
  """Pixels [N,S,S,3], as `normalize` makes them -> features [N,embed_dim]."""

  architecture: Architecture

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    a = self.architecture
    width = a.vision_width
    x = nn.relu(_conv(width // 2, 3, 'conv1', stride=2)(images))
    x = nn.relu(_conv(width // 2, 3, 'conv2')(x))
    x = nn.relu(_conv(width, 3, 'conv3')(x))
    x = _mean(x, 2)  # [N,S/4,S/4,width]
    for stage, blocks in enumerate(a.vision_layers):
      for i in range(blocks):
        stride = 2 if stage > 0 and i == 0 else 1
        x = Bottleneck(width * 2**stage, stride, name=f'layer{stage + 1}.{i}')(x)
    return AttentionPool(a.vision_heads, a.embed_dim, name='attnpool')(x)  # of [N,S/32,S/32,32 W]


# ---- both


def image_tower(architecture: Architecture) -> nn.Module:
  """The module of the image tower: a VisionTransformer or a ResNet."""
  return (ResNet if architecture.patch_size is None else VisionTransformer)(architecture)


def image_features(params: Any, architecture: Architecture, images: jax.Array) -> jax.Array:
  """Pixels [N,S,S,3] of `normalize` -> features [N,E].

  params: {'visual', 'text', 'logit_scale'}; the result has their dtype. Differentiable.
  """
  with jax.default_matmul_precision('highest'):  # float32 products on GPUs and TPUs too
    return image_tower(architecture).apply({'params': params['visual']}, images)


def text_features(params: Any, architecture: Architecture, tokens: jax.Array) -> jax.Array:
  """Tokens int32 [N,context_length] -> features [N,E]; params as of `image_features`."""
  with jax.default_matmul_precision('highest'):
    return TextTransformer(architecture).apply({'params': params['text']}, tokens)


def unit(features: jax.Array) -> jax.Array:
  """Vectors [...,E] divided by their lengths; those of length 0 stay 0, with a gradient of 0."""
  square = jnp.sum(features**2, -1, keepdims=True)
  some = square > 0
  return jnp.where(some, features / jnp.sqrt(jnp.where(some, square, 1)), 0)


# ---- pixels


def normalize(images: jax.Array) -> jax.Array:
  """RGB in [0,1], [N,S,S,3] -> what the image towers take."""
  return (images - np.asarray(MEAN, images.dtype)) / np.asarray(STD, images.dtype)


def resize_by_area(images: jax.Array, height: int, width: int) -> jax.Array:
  """[N,H,W,C] -> [N,height,width,C]: each pixel is the mean over the area that it covers.

  StyleCLIP's view of generated images (nearest, times 7, then a mean pool) is this, for all ratios.
  """
  for sums, size, axis in (('nhwc,ph->npwc', height, 1), ('nhwc,qw->nhqc', width, 2)):
    weights = _overlaps(images.shape[axis], size).astype(images.dtype)
    images = jnp.einsum(sums, images, weights, precision='highest')
  return images


def _overlaps(inputs, outputs):
  """[outputs,inputs]: the share of each input in the mean that an output is."""
  edges = np.arange(outputs + 1) * (inputs / outputs)  # of outputs, in inputs
  low, high = edges[:-1, None], edges[1:, None]
  first = np.arange(inputs)
  overlap = np.minimum(high, first + 1) - np.maximum(low, first)
  return overlap.clip(0) / (high - low)


def view(images: jax.Array, size: int) -> jax.Array:
  """Images of a generator, [N,H,W,1|3] in [-1,1] -> what the image tower takes, [N,size,size,3].

  Of rectangles the middle square. As a picture of them would be: clipped. Differentiable.
  """
  return normalize((raw_view(jnp.clip(images, -1, 1), size) + 1) / 2)


def raw_view(images: jax.Array, size: int) -> jax.Array:
  """As `view`, but neither clipped nor normalised: what StyleCLIP shows CLIP while it optimises."""
  height, width = images.shape[1:3]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  images = images[:, top : top + side, left : left + side]
  images = resize_by_area(images, size, size)
  return jnp.repeat(images, 3, -1) if images.shape[-1] == 1 else images
