"""One function per equation. They take callables, import no model, and sum in float32 or wider."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def g_nonsaturating(fake_logits: jax.Array) -> jax.Array:
  """softplus(-D(G(z))), the non-saturating loss [Goodfellow et al. 2014; S2 App. B]: [N,1] each."""
  return jax.nn.softplus(-fake_logits)


def d_logistic(real_logits: jax.Array, fake_logits: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(softplus(-D(x)), softplus(D(G(z)))), the sum is the logistic loss [S2 App. B]: [N,1] each."""
  return jax.nn.softplus(-real_logits), jax.nn.softplus(fake_logits)


def r1_penalty(discriminate: Callable, reals: jax.Array) -> tuple[jax.Array, jax.Array]:
  """sum_{h,w,c} (dD/dx)^2 per image [R1 Eq. 9]; the loss is gamma/2 times its mean.

  reals: [N,H,W,C] -> ([N], logits).
  """

  def total(x):
    # of the sum: as if each logit depended on its own image only, which minibatch stddev denies
    logits = discriminate(x)
    return logits.sum(), logits

  grads, logits = jax.grad(total, has_aux=True)(reals)
  return jnp.sum(grads**2, axis=(1, 2, 3)), logits


def path_lengths(synthesize: Callable, ws: jax.Array, noise: jax.Array) -> jax.Array:
  """||J_w^T y||_2 per image [S2 Eq. 4], by back-propagation of sum(g(w) . y): [N].

  Args:
    synthesize: ws -> images.
    ws: [N,num_ws,w_dim], after broadcasting; the norm is sqrt(mean over layers of sum over w_dim).
    noise: [N,H,W,C], drawn from N(0,1) and divided here by sqrt(H W).
  """
  _, h, w, _ = noise.shape

  def projection(ws):
    return jnp.sum(synthesize(ws) * noise) / (h * w) ** 0.5

  grads = jax.grad(projection)(ws)
  return jnp.sqrt(jnp.mean(jnp.sum(grads**2, axis=2), axis=1))


def path_length_penalty(
  lengths: jax.Array, pl_mean: jax.Array, decay: float = 0.01
) -> tuple[jax.Array, jax.Array]:
  """(length - a)^2, a the EMA of the mean length [S2 Eq. 4]: [N] -> ([N], new a).

  The gradient flows through a as well, as in the reference.
  """
  pl_mean = pl_mean + decay * (jnp.mean(lengths) - pl_mean)
  return (lengths - pl_mean) ** 2, pl_mean
