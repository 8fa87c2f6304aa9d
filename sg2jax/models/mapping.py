"""Mapping network z, c -> w, and truncation [S1 3.1; S2 App. B]."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from sg2jax import ops
from sg2jax.models.layers import Dense
from sg2jax.models.variant import Variant


class Mapping(nn.Module):
  """z [N,z_dim], c [N,c_dim] -> w [N,w_dim].

  z_dim 0 maps labels only (the discriminator's), c_dim 0 latents only.
  joint: as in StyleGAN and configs A-D, labels pass a plain matrix [c_dim,z_dim] and are normalised
  together with z, not each alone.
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
  def __call__(self, z: jax.Array | None, c: jax.Array | None) -> jax.Array:
    parts = [z] if self.z_dim else []
    if self.c_dim and self.joint:
      matrix = self.param('embed', nn.initializers.normal(1), (self.c_dim, self.z_dim))
      parts.append(c @ matrix)  # [N,z_dim]
    elif self.c_dim:
      features = self.variant.embed_features or self.w_dim
      parts.append(Dense(features, name='embed')(c))  # [N,features]
    if self.joint:
      x = ops.normalize_2nd_moment(jnp.concatenate(parts, axis=-1))  # [N,all features]
    else:
      x = jnp.concatenate([ops.normalize_2nd_moment(part) for part in parts], axis=-1)
    for i in range(self.num_layers):
      is_last = i == self.num_layers - 1
      features = self.w_dim if is_last else self.variant.layer_features or self.w_dim
      x = Dense(
        features,
        self.activation,
        self.variant.mapping_lr_mul,
        bias_gain=self.bias_gain,
        name=f'fc{i}',
      )(x)  # [N,features]
    return x


def broadcast(w: jax.Array, num_ws: int) -> jax.Array:
  """w [N,w_dim] -> ws [N,num_ws,w_dim], the same for every layer."""
  return jnp.broadcast_to(w[:, None], (w.shape[0], num_ws, w.shape[1]))


def truncate(
  ws: jax.Array, w_avg: jax.Array, psi: jax.Array | float = 1.0, cutoff: int | None = None
) -> jax.Array:
  """w_avg + psi (w - w_avg) of the first `cutoff` layers, None for all [S1 App. B].

  ws: [N,num_ws,w_dim] or, without a cutoff, [N,w_dim].
  """
  truncated = w_avg + psi * (ws - w_avg)
  if cutoff is None:
    return truncated
  is_truncated = jnp.arange(ws.shape[1])[:, None] < cutoff  # [num_ws,1]
  return jnp.where(is_truncated, truncated, ws)
