"""Directions in w along which images change, found without labels: GANSpace [Haerkoenen et al.
2020, arXiv 2004.02546] and closed-form factorisation, SeFa [Shen and Zhou 2021, arXiv 2007.06600].

Either gives unit vectors n_k and their strength; an edit is w + s n_k at some of the layers
(GANSpace's E(v, from-to)).
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sg2jax.faults import UsageError


class Directions(NamedTuple):
  """vectors: unit, [K,w_dim], float32; values: [K], falling; stdevs: of w along each, [K]; mean: of
  w, [w_dim].
  """

  vectors: np.ndarray
  values: np.ndarray
  stdevs: np.ndarray
  mean: np.ndarray


def pca(w, count):
  """The first `count` principal components of w [N,w_dim] [GANSpace 2.1]; values: variances along
  them.
  """
  mean, covariance = moments(w)
  return largest(covariance, count, mean, covariance)


def sefa(net, w, layers, count):
  """What changes the styles of the convolutions at `layers` the most [SeFa Eq. 8]: max |A n|^2 over
  unit n; values: |A n|^2.

  A: affine weights of all convolutions that read the ws of the slice `layers`, one below the other,
  as the network scales them. torgb's, which change colours only, are left out. w [N,w_dim]: gives
  the standard deviations.

  Raises: UsageError if no convolution reads these ws.
  """
  styles = _styles(net.generator, net.growing.get('stage', 0), layers.start, layers.stop)(
    net.variables
  )
  styles = np.asarray(styles, np.float64)
  a = styles[1:] - styles[0]  # [w_dim,features]
  if not a.any():
    raise UsageError(
      f'--layers={layers.start}-{layers.stop - 1}: no convolution reads these ws; take lower ones'
    )
  return largest(a @ a.T, count, *moments(w))


def edit(ws, vector, amounts, layers):
  """ws [num_ws,w_dim] moved by each of `amounts` [M] along `vector` [w_dim] at the slice `layers`:
  [M,num_ws,w_dim].
  """
  moved = np.repeat(ws[None], len(amounts), 0)
  moved[:, layers] += np.asarray(amounts, np.float32)[:, None, None] * vector
  return moved


def moments(w):
  """Mean [w_dim] and covariance [w_dim,w_dim] of w [N,w_dim], in float64."""
  w = np.asarray(w, np.float64)
  mean = w.mean(0)
  return mean, (w - mean).T @ (w - mean) / (len(w) - 1)


def largest(matrix, count, mean, covariance):
  """Directions: eigenvectors of the `count` largest eigenvalues of a symmetric matrix
  [w_dim,w_dim].

  Of n and -n it is the one whose largest component is positive.
  """
  values, vectors = np.linalg.eigh(matrix)
  values, vectors = values[::-1][:count], vectors.T[::-1][:count]
  vectors = vectors * np.sign(vectors[np.arange(len(vectors)), np.abs(vectors).argmax(1)])[:, None]
  stdevs = np.sqrt(np.einsum('ki,ij,kj->k', vectors, covariance, vectors).clip(0))
  return Directions(vectors.astype(np.float32), values, stdevs, mean.astype(np.float32))


@lru_cache(8)
def _styles(generator, stage, start, stop):
  """A function of the variables: all convolutions' styles, for w = 0 and each unit vector at
  start:stop, [1+w_dim,features].

  Styles are affine in w, so differences are the matrix, whatever the architecture. The compiler
  drops the convolutions.
  """
  w_dim = generator.mapping.w_dim
  ws = np.zeros((1 + w_dim, generator.synthesis.num_ws, w_dim), np.float32)
  ws[1:, start:stop] = np.eye(w_dim)[:, None]

  def found(variables):
    with jax.default_matmul_precision('highest'):
      _, kept = generator.apply(
        variables,
        jnp.asarray(ws),
        'none',
        stage,
        method='synthesize',
        mutable=['intermediates'],
        capture_intermediates=lambda module, _: (
          module.name == 'affine' and module.path[-2] != 'torgb'
        ),
      )
    return jnp.concatenate(jax.tree.leaves(kept['intermediates']), 1)

  return jax.jit(found)
