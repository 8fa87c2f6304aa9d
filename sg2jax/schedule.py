"""Pure numbers: the lazy Adam correction and the EMA of the generator."""
import jax.numpy as jnp


def lazy_correction(interval):
  """c = k/(k+1): Adam's lr is multiplied by c and its betas are raised to c when the loss is regularized every k [S2 App. B].

  interval 0 means that the regularizer isn't lazy: 1.
  """
  return interval / (interval + 1) if interval else 1.0


def ema_beta(nimg, batch, ema_kimg, ema_rampup, dtype=jnp.float32):
  """0.5^(batch / half-life), half-life = min(ema_kimg * 1000, nimg * ema_rampup) images [ADA App. F]. Scalar.

  nimg counts images before this minibatch; ema_rampup None: no ramp. At nimg 0 with a ramp it is 0: EMA copies G.
  """
  half_life = jnp.asarray(ema_kimg * 1000, dtype)
  if ema_rampup is not None:
    half_life = jnp.minimum(half_life, jnp.asarray(nimg, dtype) * ema_rampup)
  return 0.5 ** (batch / jnp.maximum(half_life, 1e-8))
