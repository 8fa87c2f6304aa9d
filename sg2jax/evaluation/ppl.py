"""Perceptual path length: how much an image changes along a short step in latent space [S1 4.1; S2
Table 1].

PPL = E[ d(G(p(t)), G(p(t + eps))) / eps^2 ]; p runs straight between two w (space 'w'), or on an
arc between two z (space 'z'); t is uniform in [0,1) (sampling 'full') or 0 ('end': S2's tables,
with 'w'). d is the caller's: PPL as published takes LPIPS. Both ends of a step have the same noise:
drawn for each pair, where the papers draw it for each batch, or the network's constant maps. Images
over 256 px are shrunk by the mean of boxes, after the crop to a face where there is one.

The arithmetic is in the dtype of the variables. A step changes pixels by little, but float32 is
enough for eps = 1e-4: two 32 px networks were 0.01 % off float64 then, 0.4 % at 1e-5; TF32 and
bfloat16 are not enough.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sg2jax.models.layers import draw_noise
from sg2jax.models.mapping import broadcast
from sg2jax.models.stylegan2 import largest

EPS = 1e-4
SIZE = 256  # px, at which LPIPS looks
SPACES, SAMPLINGS = ('z', 'w'), ('full', 'end')


def slerp(a, b, t):
  """From direction a (t = 0) to b (1) on the great circle: [N,K] x 2, t [N] -> unit vectors [N,K]
  [Shoemake 1985].
  """
  unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
  a, b = unit(a), unit(b)
  cosine = (a * b).sum(-1, keepdims=True)
  angle = t[:, None] * jnp.arccos(cosine)
  return unit(a * jnp.cos(angle) + unit(b - cosine * a) * jnp.sin(angle))


def lerp(a, b, t):
  """From a (t = 0) to b (1) on a straight line: [N,...] x 2, t [N] -> [N,...]."""
  return a + (b - a) * t.reshape(-1, *[1] * (a.ndim - 1))


def view(images, crop=False):
  """What the distance sees: [N,H,W,C] -> [N,h,w,C]. crop: only rows 3/8 to 7/8 and columns 2/8 to
  6/8, where FFHQ has faces.

  If a side is then over SIZE, boxes of k x k become their mean; k is the largest that divides both
  sides and leaves SIZE or more of the longer one.
  """
  if crop:
    h, w = images.shape[1] // 8, images.shape[2] // 8
    images = images[:, 3 * h : 7 * h, 2 * w : 6 * w]
  n, h, w, channels = images.shape
  k = max((k for k in range(2, max(h, w) // SIZE + 1) if h % k == w % k == 0), default=1)
  return images.reshape(n, h // k, k, w // k, k, channels).mean((2, 4)) if k > 1 else images


def distances(generator, distance, space, variables, z0, z1, t, c, keys=None, crop=False, eps=EPS):
  """d(G(p(t)), G(p(t + eps))) / eps^2 of each pair: [N]. Can be jitted; generator, distance, space
  and crop static.

  generator: a Generator at full size; distance: ([N,h,w,C], [N,h,w,C]), nominally in [-1,1] -> [N];
  z0, z1: [N,z_dim];
  t: [N]; c: [N,c_dim], the same at both ends; keys [N]: one per pair, from which its noise is
  drawn, None for the noise in `variables` (constant maps [H,W], or [2N,H,W,1]); crop: as in `view`.
  """
  # ends side by side: on one device
  twice, at = lambda x: jnp.repeat(x, 2, 0), jnp.stack([t, t + eps], 1).ravel()
  net = partial(generator.apply, variables, method='map')
  if space == 'z':
    w = net(slerp(twice(z0), twice(z1), at), twice(c))
  else:
    w = lerp(twice(net(z0, c)), twice(net(z1, c)), at)
  if keys is not None:
    variables = variables | {'noise': jax.tree.map(twice, draw_noise(variables['noise'], keys))}
  images = largest(
    generator.apply(
      variables, broadcast(w, generator.synthesis.num_ws), 'const', method='synthesize'
    )
  )
  images = view(images, crop)
  images = images.reshape(-1, 2, *images.shape[1:])
  return distance(images[:, 0], images[:, 1]) / eps**2


def trimmed(values):
  """Those from the 1st to the 99th percentile, both included, in float64: [N] -> [M]."""
  values = np.asarray(values, np.float64)
  low, high = np.percentile(values, 1, method='lower'), np.percentile(values, 99, method='higher')
  return values[(low <= values) & (values <= high)]


def trimmed_mean(values):
  """Path length of distances [N]: the mean of `trimmed`, a float."""
  return float(trimmed(values).mean())


_distances = jax.jit(distances, static_argnums=(0, 1, 2), static_argnames='crop')


def ppl(
  generator,
  variables,
  distance,
  pairs,
  seed=0,
  space='w',
  sampling='end',
  c=None,
  eps=EPS,
  batch=64,
):
  """Path length over `pairs` pairs of latents, of whole images with constant noise: a float.

  Args:
    generator: a Generator, whose network has its full size.
    variables: {'params': ..., 'noise': ...}; their dtype is that of the arithmetic.
    distance: as in `distances`; hashable, and the same object again to be compiled only once.
    pairs: number of pairs; the papers take 50,000.
    seed: latents and t follow from it.
    space: 'z' or 'w'.
    sampling: 'full' or 'end'.
    c: labels [pairs,c_dim]; None for a network without.
    eps: length of the step.
    batch: pairs at once.

  Raises: ValueError for another space or sampling, no pairs, or labels that are missing.
  """
  mapping = generator.mapping
  c = np.zeros((pairs, 0)) if c is None else np.asarray(c)
  if (
    space not in SPACES
    or sampling not in SAMPLINGS
    or pairs < 1
    or c.shape != (pairs, mapping.c_dim)
  ):
    raise ValueError(
      f'ppl needs space in {SPACES}, sampling in {SAMPLINGS}, pairs >= 1 and c '
      f'[pairs,{mapping.c_dim}]; got {space!r}, {sampling!r}, {pairs}, {list(c.shape)}'
    )
  dtype, key = jax.tree.leaves(variables['params'])[0].dtype, np.random.RandomState(seed)
  z0, z1 = key.randn(2, pairs, mapping.z_dim)
  t = key.rand(pairs) * (sampling == 'full')
  found = []
  for first in range(0, pairs, batch):
    part = np.arange(first, first + batch) % pairs
    args = (jnp.asarray(x[part], dtype) for x in (z0, z1, t, c))
    with jax.default_matmul_precision('highest'):
      found.append(_distances(generator, distance, space, variables, *args, eps=eps))
  return trimmed_mean(np.concatenate(found)[:pairs])
