"""Perceptual path length: how much an image changes along a short step in latent space [S1 4.1; S2 Table 1].

PPL = E[ d(G(p(t)), G(p(t + eps))) / eps^2 ]; p runs straight between two w (space 'w'), or on an arc between two z
(space 'z'); t is uniform in [0,1) (sampling 'full') or 0 ('end': S2's tables, with 'w'). d is the caller's: PPL as published
takes LPIPS, at 256 px. Both ends of a step have the same noise, here the network's constant maps, where the papers draw
it anew for each batch.

The arithmetic is in the dtype of the variables. A step changes pixels by little, but float32 is enough for eps = 1e-4: two
32 px networks were 0.01 % off float64 then, 0.4 % at 1e-5; TF32 and bfloat16 are not enough.
"""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sg2jax.models.mapping import broadcast
from sg2jax.models.stylegan2 import largest

EPS = 1e-4
SPACES, SAMPLINGS = ('z', 'w'), ('full', 'end')


def slerp(a, b, t):
  """From direction a (t = 0) to b (1) on the great circle: [N,K] x 2, t [N] -> unit vectors [N,K] [Shoemake 1985]."""
  unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
  a, b = unit(a), unit(b)
  cosine = (a * b).sum(-1, keepdims=True)
  angle = t[:, None] * jnp.arccos(cosine)
  return unit(a * jnp.cos(angle) + unit(b - cosine * a) * jnp.sin(angle))


def lerp(a, b, t):
  """From a (t = 0) to b (1) on a straight line: [N,...] x 2, t [N] -> [N,...]."""
  return a + (b - a) * t.reshape(-1, *[1] * (a.ndim - 1))


def distances(generator, distance, space, variables, z0, z1, t, c, eps=EPS):
  """d(G(p(t)), G(p(t + eps))) / eps^2 of each pair: [N]. Can be jitted, the first three static.

  generator: a Generator at full size; distance: ([N,H,W,C], [N,H,W,C]), nominally in [-1,1] -> [N]; z0, z1: [N,z_dim];
  t: [N]; c: [N,c_dim], the same at both ends.
  """
  twice, at = lambda x: jnp.concatenate([x, x]), jnp.concatenate([t, t + eps])
  net = partial(generator.apply, variables, method='map')
  if space == 'z':
    w = net(slerp(twice(z0), twice(z1), at), twice(c))
  else:
    w = lerp(twice(net(z0, c)), twice(net(z1, c)), at)
  images = largest(generator.apply(variables, broadcast(w, generator.synthesis.num_ws), 'const', method='synthesize'))
  return distance(*jnp.split(images, 2)) / eps ** 2


def trimmed_mean(values):
  """Mean, in float64, of those from the 1st to the 99th percentile, both included: [N] -> float."""
  values = np.asarray(values, np.float64)
  low, high = np.percentile(values, 1, method='lower'), np.percentile(values, 99, method='higher')
  return float(values[(low <= values) & (values <= high)].mean())


_distances = jax.jit(distances, static_argnums=(0, 1, 2))


def ppl(generator, variables, distance, pairs, seed=0, space='w', sampling='end', c=None, eps=EPS, batch=64):
  """Path length over `pairs` pairs of latents, a float.

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
  if space not in SPACES or sampling not in SAMPLINGS or pairs < 1 or c.shape != (pairs, mapping.c_dim):
    raise ValueError(f'ppl needs space in {SPACES}, sampling in {SAMPLINGS}, pairs >= 1 and c [pairs,{mapping.c_dim}]; got '
                     f'{space!r}, {sampling!r}, {pairs}, {list(c.shape)}')
  dtype, key = jax.tree.leaves(variables['params'])[0].dtype, np.random.RandomState(seed)
  z0, z1 = key.randn(2, pairs, mapping.z_dim)
  t = key.rand(pairs) * (sampling == 'full')
  found = []
  for first in range(0, pairs, batch):
    part = np.arange(first, first + batch) % pairs
    found.append(_distances(generator, distance, space, variables, *(jnp.asarray(x[part], dtype) for x in (z0, z1, t, c)), eps))
  return trimmed_mean(np.concatenate(found)[:pairs])
