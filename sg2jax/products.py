"""Products of images [N,H,W,C] with factors by channel or by pixel.

Around its convolution a layer does little else. Each pair below is linear in all its arguments, so
that its gradients are the pair again:

  <scale(x, s), y> = <s, inner(x, y)>           x, y [N,H,W,C], s [N,C]
  <expand(y, m), x> = <y, contract(x, m)>       x [N,H,W,C], y [N,H,W,J], m [N|1,J,C]

and the gradients by m are inner products with y. They are written by hand, so that the backward
pass keeps arrays as layers hand them on: differentiating casts to float32 would keep float32
copies of bfloat16 activations, twice the memory and most of the traffic of a step. J is the few
channels of an image, or the one of noise. Expanding is a sum over J, which fuses with what comes
after it, where a product would write all channels once more; contracting and the sums over pixels
are matrix products, the faster ones on a GPU (docs/performance.md).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

THIN = 4  # J at most


def full_precision(x: jax.Array) -> jax.Array:
  """Casts to float32, or leaves x's own dtype where that is wider."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def scale(x: jax.Array, s: jax.Array, dtype: Any) -> jax.Array:
  """x [N,H,W,C] times s [N,C], in float32 at least, rounded once to `dtype`."""
  return (full_precision(x) * s[:, None, None]).astype(dtype)


@jax.custom_vjp
def inner(x: jax.Array, y: jax.Array) -> jax.Array:
  """Sums over pixels of x times y, both [N,H,W,C]: [N,C], float32 at least."""
  return jnp.sum(partial_sums(x, y), axis=1)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def expand(y: jax.Array, m: jax.Array, dtype: Any) -> jax.Array:
  """Pixels y [N,H,W,J] times matrices m [N|1,J,C]: [N,H,W,C], rounded once to `dtype`."""
  if y.shape[-1] > THIN:  # columns in the channels, see folding.py
    return jnp.einsum('nhwj,njc->nhwc', y, m.astype(y.dtype), **_sums(y)).astype(dtype)
  y = full_precision(y)
  terms = [y[..., j : j + 1] * m[:, None, None, j] for j in range(y.shape[-1])]
  return sum(terms).astype(dtype)


@jax.custom_vjp
def contract(x: jax.Array, m: jax.Array) -> jax.Array:
  """Pixels x [N,H,W,C] times matrices m [N|1,J,C]: [N,H,W,J], float32 at least."""
  if m.shape[0] == 1:
    return jnp.einsum('nhwc,jc->nhwj', x, m[0].astype(x.dtype), **_sums(x))
  return jnp.einsum('nhwc,njc->nhwj', x, m.astype(x.dtype), **_sums(x))


def _sums(x):
  """For products whose sums are float32 at least."""
  return {'preferred_element_type': full_precision(x).dtype}


def _scale_fwd(x, s, dtype):
  return scale(x, s, dtype), (x, s)


def _scale_bwd(dtype, saved, dz):
  x, s = saved
  return scale(dz, s, x.dtype), inner(x, dz)


def _inner_fwd(x, y):
  return inner(x, y), (x, y)


def _inner_bwd(saved, ds):
  x, y = saved
  return scale(y, ds, x.dtype), scale(x, ds, y.dtype)


def _expand_fwd(y, m, dtype):
  return expand(y, m, dtype), (y, m)


def _expand_bwd(dtype, saved, dx):
  y, m = saved
  dy = sum_to(contract(dx, m), y.shape)
  return dy.astype(y.dtype), sum_to(outer(dx, y), m.shape)


def _contract_fwd(x, m):
  return contract(x, m), (x, m)


def _contract_bwd(saved, dy):
  x, m = saved
  return expand(dy, m, x.dtype), sum_to(outer(x, dy), m.shape)


@jax.custom_vjp
def told_inner(x: jax.Array, d: jax.Array, value: jax.Array) -> jax.Array:
  """inner(x, d), whose value [N,C] is known already.

  So the forward pass has no need to keep x, unless a second derivative asks for it. But on a CPU,
  where it is there anyway: steps of 256 px took 7 % longer without.
  """
  return lax.platform_dependent(x, d, value, cpu=_computed, default=_told)


def _computed(x, d, value):
  return inner(x, d).astype(value.dtype)


def _told(x, d, value):
  return value


def _told_inner_fwd(x, d, value):
  return told_inner(x, d, value), (x, d)


def _told_inner_bwd(saved, ds):
  return *_inner_bwd(saved, ds), None


scale.defvjp(_scale_fwd, _scale_bwd)
inner.defvjp(_inner_fwd, _inner_bwd)
expand.defvjp(_expand_fwd, _expand_bwd)
contract.defvjp(_contract_fwd, _contract_bwd)
told_inner.defvjp(_told_inner_fwd, _told_inner_bwd)


def outer(x: jax.Array, y: jax.Array) -> jax.Array:
  """Sums over pixels of x [N,H,W,C] times y [N|1,H,W,J] -> [N,J,C]."""
  wide = jnp.broadcast_to(y, (*x.shape[:3], y.shape[-1]))
  if y.shape[-1] == 1:
    return jnp.sum(partial_sums(x, wide), axis=1)[:, None]
  return jnp.einsum('nhwc,nhwj->njc', x, wide.astype(x.dtype), **_sums(x))


def partial_sums(x: jax.Array, y: jax.Array | None = None) -> jax.Array:
  """Sums over pixels of x [N,H,W,C], times y of its shape if there is one, in parts -> [N,P,C]."""
  x = full_precision(x)
  if y is not None:
    x = x * full_precision(y)
  sums = jnp.sum(x, axis=2) if x.shape[1] > 16 else jnp.sum(x, axis=(1, 2))[:, None]
  # The sums that follow are kept apart. Merged with this one they would read x once for each shape
  # of result; and of a few thousand pixels a GPU would make too few blocks to be busy.
  return lax.optimization_barrier(sums)


def sum_to(x: jax.Array, shape: Sequence[int]) -> jax.Array:
  """x summed over the axes along which `shape` was broadcast."""
  axes = tuple(i for i, (n, m) in enumerate(zip(x.shape, shape)) if m == 1 and n != 1)
  return jnp.sum(x, axis=axes, keepdims=True)
