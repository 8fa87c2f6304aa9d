"""One function per equation. Receives callables, imports no model. All reductions in float32 or
wider.
"""

import jax
import jax.numpy as jnp


def g_nonsaturating(fake_logits):
  """softplus(-D(G(z))), the non-saturating generator loss [Goodfellow et al. 2014; S2 App. B].
  [N,1] -> [N,1].
  """
  return jax.nn.softplus(-fake_logits)


def d_logistic(real_logits, fake_logits):
  """(softplus(-D(x)), softplus(D(G(z)))); their sum is the logistic discriminator loss [S2 App. B].
  [N,1] each.
  """
  return jax.nn.softplus(-real_logits), jax.nn.softplus(fake_logits)


def r1_penalty(discriminate, reals):
  """sum_{h,w,c} (dD/dx)^2 per image [R1 Eq. 9]; the loss is gamma/2 times its mean. reals:
  [N,H,W,C] -> ([N], logits).
  """

  def total(x):
    logits = discriminate(x)
    return logits.sum(), logits

  grads, logits = jax.grad(total, has_aux=True)(reals)
  return jnp.sum(grads**2, axis=(1, 2, 3)), logits


def path_lengths(synthesize, ws, noise):
  """||J_w^T y||_2 per image [S2 Eq. 4], by back-propagation of sum(g(w) . y).

  ws: [N,num_ws,w_dim] after broadcasting, noise: [N,H,W,C] drawn from N(0,1) and divided here by
  sqrt(H W). The norm is sqrt(mean over layers of the sum over w_dim). -> [N].
  """
  _, h, w, _ = noise.shape
  grads = jax.grad(lambda ws: jnp.sum(synthesize(ws) * noise) / (h * w) ** 0.5)(ws)
  return jnp.sqrt(jnp.mean(jnp.sum(grads**2, axis=2), axis=1))


def path_length_penalty(lengths, pl_mean, decay=0.01):
  """(length - a)^2 with a the EMA of the mean length, through which the gradient flows [S2 Eq. 4].
  -> ([N], new a).
  """
  pl_mean = pl_mean + decay * (jnp.mean(lengths) - pl_mean)
  return (lengths - pl_mean) ** 2, pl_mean
