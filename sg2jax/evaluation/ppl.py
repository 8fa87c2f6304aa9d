"""Perceptual path length: how much an image changes along a short step in latent space.

PPL = E[ d(G(p(t)), G(p(t + eps))) / eps^2 ] [S1 4.1; S2 Table 1]. p runs straight between two w
(space 'w'), or on an arc between two z (space 'z'); t is uniform in [0,1) (sampling 'full') or 0
('end': S2's tables, with 'w'). d is the caller's: PPL as published takes LPIPS. Both ends of a step
have the same noise: drawn for each pair, where the papers draw it for each batch, or the network's
constant maps. Images over 256 px are shrunk by the mean of boxes, after the crop to a face where
there is one.

The arithmetic is in the dtype of the variables. A step changes pixels by little, but float32 is
enough for eps = 1e-4: two 32 px networks were 0.01 % off float64 then, 0.4 % at 1e-5; TF32 and
bfloat16 are not enough.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sg2jax.models.layers import draw_noise
from sg2jax.models.mapping import broadcast
from sg2jax.sampler import parts

EPS = 1e-4
SIZE = 256  # px, at which LPIPS looks
BATCH = 64  # pairs at once in `path_length`
SPACES = ('z', 'w')


def _unit(x):
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def slerp(a: jax.Array, b: jax.Array, t: jax.Array) -> jax.Array:
  """From direction a (t = 0) to b (1) on the great circle: [N,K] x 2, t [N] -> unit vectors [N,K].

  [Shoemake 1985]
  """
  a = _unit(a)
  b = _unit(b)
  cosine = (a * b).sum(-1, keepdims=True)
  angle = t[:, None] * jnp.arccos(cosine)
  return _unit(a * jnp.cos(angle) + _unit(b - cosine * a) * jnp.sin(angle))


def lerp(a: jax.Array, b: jax.Array, t: jax.Array) -> jax.Array:
  """From a (t = 0) to b (1) on a straight line: [N,...] x 2, t [N] -> [N,...]."""
  return a + (b - a) * t.reshape(-1, *[1] * (a.ndim - 1))


def view(images: jax.Array, crop: bool = False) -> jax.Array:
  """What the distance sees: [N,H,W,C] -> [N,h,w,C].

  crop: only rows 3/8 to 7/8 and columns 2/8 to 6/8, where FFHQ has faces. If a side is then over
  SIZE, boxes of k x k become their mean; k is the largest that divides both sides and leaves SIZE
  or more of the longer one.
  """
  if crop:
    h = images.shape[1] // 8
    w = images.shape[2] // 8
    images = images[:, 3 * h : 7 * h, 2 * w : 6 * w]
  n, h, w, channels = images.shape
  k = max((k for k in range(2, max(h, w) // SIZE + 1) if h % k == w % k == 0), default=1)
  return images.reshape(n, h // k, k, w // k, k, channels).mean((2, 4)) if k > 1 else images


def _twice(x):
  """[N,...] -> [2N,...], each row beside its copy: both ends of a step are on one device."""
  return jnp.repeat(x, 2, 0)


def distances(
  generator: Any,
  distance: Callable[[jax.Array, jax.Array], jax.Array],
  space: str,
  variables: dict[str, Any],
  z0: jax.Array,
  z1: jax.Array,
  t: jax.Array,
  c: jax.Array,
  keys: jax.Array | None = None,
  crop: bool = False,
  eps: float = EPS,
) -> jax.Array:
  """d(G(p(t)), G(p(t + eps))) / eps^2 of each pair: [N].

  Can be jitted, with generator, distance, space and crop static.

  Args:
    generator: a Generator at full size.
    distance: ([N,h,w,C], [N,h,w,C]), nominally in [-1,1] -> [N].
    space: 'z' or 'w'.
    variables: {'params', 'noise'} of the generator.
    z0, z1: [N,z_dim].
    t: [N].
    c: [N,c_dim], the same at both ends.
    keys: [N], one per pair, from which its noise is drawn; None for the noise in `variables`
      (constant maps [H,W], or [2N,H,W,1]).
    crop: as in `view`.
    eps: length of the step.
  """
  at = jnp.stack([t, t + eps], 1).ravel()
  mapping = partial(generator.apply, variables, method='map')
  if space == 'z':
    w = mapping(slerp(_twice(z0), _twice(z1), at), _twice(c))
  else:
    w = lerp(_twice(mapping(z0, c)), _twice(mapping(z1, c)), at)
  if keys is not None:
    variables = variables | {'noise': jax.tree.map(_twice, draw_noise(variables['noise'], keys))}
  ws = broadcast(w, generator.synthesis.num_ws)
  images = view(generator.apply(variables, ws, 'const', method='image'), crop)
  images = images.reshape(-1, 2, *images.shape[1:])
  return distance(images[:, 0], images[:, 1]) / eps**2


def trimmed(values: np.ndarray) -> np.ndarray:
  """Those from the 1st to the 99th percentile, both included, in float64: [N] -> [M]."""
  values = np.asarray(values, np.float64)
  low = np.percentile(values, 1, method='lower')
  high = np.percentile(values, 99, method='higher')
  return values[(low <= values) & (values <= high)]


_distances = jax.jit(distances, static_argnums=(0, 1, 2))


def path_length(
  generator: Any,
  variables: dict[str, Any],
  distance: Callable[[jax.Array, jax.Array], jax.Array],
  c: np.ndarray,
  seed: int = 0,
) -> float:
  """Path length in w, at end points, of whole images with constant noise.

  Args:
    generator: a Generator, whose network has its full size.
    variables: {'params': ..., 'noise': ...}; their dtype is that of the arithmetic.
    distance: as in `distances`; hashable, and the same object again to be compiled only once.
    c: labels, one for each pair: [pairs,c_dim].
    seed: of the latents.
  """
  pairs = len(c)
  dtype = jax.tree.leaves(variables['params'])[0].dtype
  z0, z1 = np.random.RandomState(seed).randn(2, pairs, generator.mapping.z_dim)
  lengths = []
  with jax.default_matmul_precision('highest'):
    for part, count in parts(pairs, BATCH):
      args = (jnp.asarray(x[part], dtype) for x in (z0, z1, np.zeros(pairs), c))
      # eps is traced, not a constant that XLA folds: results keep the last bits that they had.
      found = _distances(generator, distance, 'w', variables, *args, eps=EPS)
      lengths.append(found[:count])
  return float(trimmed(np.concatenate(lengths)).mean())
