"""Directions in w along which images change, found without labels.

By GANSpace [Haerkoenen et al. 2020, arXiv 2004.02546], or by closed-form factorisation, SeFa [Shen
and Zhou 2021, arXiv 2007.06600].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sg2jax.faults import UsageError
from sg2jax.sampler import Sampler


class Direction(NamedTuple):
  """How latents are moved, whatever found it: at some layers, ws + amount * stdev * vector.

  That is GANSpace's E(v, from-to).
  """

  vector: np.ndarray  # unit, float32 [w_dim]; or one for each of L layers, [L,w_dim]
  layers: slice  # of the ws that are moved
  stdev: float  # standard deviation of the network's w along it, the unit of amounts
  value: float  # by which its method ranks it; the largest is the first

  def move(self, ws: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """ws [num_ws,w_dim], moved by each of `amounts` [M], in stdev: [M,num_ws,w_dim]."""
    moved = np.repeat(ws[None], len(amounts), 0)
    lengths = np.asarray(np.asarray(amounts) * self.stdev, np.float32)
    moved[:, self.layers] += lengths[:, None, None] * self.vector
    return moved


def pca(w: np.ndarray, layers: slice, count: int) -> list[Direction]:
  """The first principal components of w [N,w_dim] [GANSpace 2.1]; values: variances along them."""
  covariance = _covariance(w)
  return _leading(covariance, covariance, layers, count)


def sefa(net: Sampler, w: np.ndarray, layers: slice, count: int) -> list[Direction]:
  """What changes the styles of the convolutions at `layers` the most [SeFa Eq. 8].

  That is max |A n|^2 over unit n, which is the value. A has the affine weights of all convolutions
  that read these ws, one below the other, as the network scales them. torgb's, which change colours
  only, are left out. w [N,w_dim]: gives the standard deviations.

  Raises: UsageError if no convolution reads these ws.
  """
  styles = np.asarray(_styles(net, layers), np.float64)
  a = styles[1:] - styles[0]  # [w_dim,features], A transposed
  if not a.any():
    raise UsageError(
      f'--layers={layers.start}-{layers.stop - 1}: no convolution reads these ws; take lower ones'
    )
  return _leading(a @ a.T, _covariance(w), layers, count)


def _covariance(w):
  """Covariance [w_dim,w_dim] of w [N,w_dim], in float64."""
  w = np.asarray(w, np.float64)
  mean = w.mean(0)
  # (Two arrays: one with its own transpose goes another way in BLAS, with other roundings.)
  return (w - mean).T @ (w - mean) / (len(w) - 1)


def _leading(matrix, covariance, layers, count):
  """The eigenvectors of the largest eigenvalues of a symmetric matrix [w_dim,w_dim].

  Of n and -n it is the one whose largest component is positive.
  """
  values, vectors = np.linalg.eigh(matrix)  # rising, in columns
  # the largest first
  values = values[::-1][:count]
  vectors = vectors.T[::-1][:count]
  peaks = vectors[np.arange(len(vectors)), np.abs(vectors).argmax(1)]
  vectors = vectors * np.sign(peaks)[:, None]
  stdevs = np.sqrt(np.einsum('ki,ij,kj->k', vectors, covariance, vectors).clip(0))
  rows = zip(vectors.astype(np.float32), stdevs, values)
  return [Direction(vector, layers, stdev, value) for vector, stdev, value in rows]


def _styles(net, layers):
  """All convolutions' styles, for w = 0 and each unit vector at the layers: [1+w_dim,features].

  Styles are affine in w, so differences are the matrix, whatever the architecture.
  """
  w_dim = net.generator.mapping.w_dim
  ws = np.zeros((1 + w_dim, net.num_ws, w_dim), np.float32)
  ws[1:, layers] = np.eye(w_dim)[:, None]

  def is_style(module, _):
    return module.name == 'affine' and module.path[-2] != 'torgb'

  @jax.jit  # The compiler drops the convolutions.
  def styles(variables):
    captured = {'mutable': ['intermediates'], 'capture_intermediates': is_style}
    stage = net.growing.get('stage', 0)
    _, found = net.generator.apply(variables, ws, 'none', stage, method='image', **captured)
    return jnp.concatenate(jax.tree.leaves(found['intermediates']), 1)

  with jax.default_matmul_precision('highest'):
    return styles(net.variables)
