"""Mapping network z, c -> w and truncation [S1 3.1; S2 App. B]."""

from flax import linen as nn
import jax.numpy as jnp

from sg2jax import ops
from sg2jax.models.layers import Dense
from sg2jax.models.variant import Variant


class Mapping(nn.Module):
  """z [N,z_dim], c [N,c_dim] -> w [N,w_dim]. z_dim 0 maps labels only (the discriminator's), c_dim
  0 latents only.

  joint: as in StyleGAN and configs A-D, labels pass a plain matrix [c_dim,z_dim] and are normalised
  together with z.
  """

  z_dim: int
  c_dim: int
  w_dim: int
  num_layers: int = 8
  variant: Variant = Variant()
  activation: str = 'lrelu'
  joint: bool = False
  bias_gain: float = 1

  @nn.compact
  def __call__(self, z, c):
    if self.joint:
      embed = (
        [c @ self.param('embed', nn.initializers.normal(1), (self.c_dim, self.z_dim))]
        if self.c_dim
        else []
      )
      x = ops.normalize_2nd_moment(jnp.concatenate([z, *embed], axis=-1))
    else:
      embed = (
        [Dense(self.variant.embed_features or self.w_dim, name='embed')(c)] if self.c_dim else []
      )
      x = jnp.concatenate(
        [ops.normalize_2nd_moment(v) for v in ([z] if self.z_dim else []) + embed], axis=-1
      )
    for i in range(self.num_layers):
      features = self.variant.layer_features if i < self.num_layers - 1 else self.w_dim
      features = features or self.w_dim
      x = Dense(
        features,
        self.activation,
        self.variant.mapping_lr_mul,
        bias_gain=self.bias_gain,
        name=f'fc{i}',
      )(x)
    return x


def broadcast(w, num_ws):
  """w [N,w_dim] -> ws [N,num_ws,w_dim], the same for every layer."""
  return jnp.broadcast_to(w[:, None], (w.shape[0], num_ws, w.shape[1]))


def truncate(ws, w_avg, psi=1.0, cutoff=None):
  """w_avg + psi (w - w_avg) for the first `cutoff` layers (None: all) [S1 App. B]. ws:
  [N,num_ws,w_dim] or [N,w_dim].
  """
  truncated = w_avg + psi * (ws - w_avg)
  if cutoff is None:
    return truncated
  return jnp.where(jnp.arange(ws.shape[1])[:, None] < cutoff, truncated, ws)
