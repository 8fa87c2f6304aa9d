"""Directions found without labels: in w along which images change, and the channels of style space.

By GANSpace [Haerkoenen et al. 2020, arXiv 2004.02546], or by closed-form factorisation, SeFa [Shen
and Zhou 2021, arXiv 2007.06600].
"""

from typing import NamedTuple

import jax
import numpy as np

from sg2jax.edit.direction import Direction
from sg2jax.faults import UsageError
from sg2jax.models import styles as style_space
from sg2jax.sampler import Sampler, sample_w

SAMPLES = 50_000  # w, of which directions and standard deviations are computed


class Found(NamedTuple):
  """K directions in w, the largest value first."""

  vectors: np.ndarray  # unit, float32 [K,w_dim]
  stdevs: np.ndarray  # [K], standard deviations of the network's w along them
  values: np.ndarray  # [K], by which the method ranks them


def pca(w: np.ndarray, count: int) -> Found:
  """The first principal components of w [N,w_dim] [GANSpace 2.1]; values: variances along them."""
  covariance = _covariance(w)
  return _leading(covariance, covariance, count)


def sefa(net: Sampler, w: np.ndarray, layers: slice, count: int) -> Found:
  """What changes the styles of the convolutions at `layers` the most [SeFa Eq. 8].

  That is max |A n|^2 over unit n, which is the value. A has the affine weights of all convolutions
  that read these ws, one below the other, as the network scales them. torgb's, which change colours
  only, are left out. w [N,w_dim]: gives the standard deviations.

  Raises: UsageError if no convolution reads these ws.
  """
  affine = _affine(net, layers)
  a = np.concatenate([x for layer, x in affine.items() if not layer.endswith('torgb')], 1)
  if not a.any():
    raise UsageError(
      f'--layers={layers.start}-{layers.stop - 1}: no convolution reads these ws; take lower ones'
    )
  return _leading(a @ a.T, _covariance(w), count)


def as_directions(
  net: Sampler, method: str, found: Found, layers: slice, w: np.ndarray
) -> list[Direction]:
  """A Direction of each, METHOD0, METHOD1 ..., that moves the ws at `layers` [GANSpace, E(v,a-b)].

  Its unit is the standard deviation of w along it. w [N,w_dim]: gives the shares of the variance.
  """
  networks = (net.hash(),)
  total = np.var(w, 0, dtype=np.float64).sum()
  made = []
  for i, (vector, stdev, value) in enumerate(zip(*found)):
    ws = np.zeros((net.num_ws, vector.size), np.float32)
    ws[layers] = stdev * vector
    about = {
      'method': method,
      'layers': [layers.start, layers.stop - 1],
      'unit': 'stdev',
      'stdev': float(stdev),
      'value': float(value),
      'share': float(stdev**2 / total),
    }
    made.append(Direction(f'{method}{i}', networks, ws=ws, about=about))
  return made


def channel(net: Sampler, layer: str, number: int, w: np.ndarray | None = None) -> Direction:
  """One channel of the styles of a layer, such as 12 of 'b8.conv0' [StyleSpace].

  Its unit is the channel's standard deviation over w [N,w_dim]; None: w of 50,000 latents.

  Raises: UsageError, with the choices, if there is no such layer or channel.
  """
  affine = _affine(net, slice(None))
  if layer not in affine:
    choices = ', '.join(sorted(affine, key=style_space.order))
    raise UsageError(f'layer {layer} has no styles; choose from {choices}')
  count = affine[layer].shape[1]
  if number not in range(count):
    raise UsageError(
      f'channel {number} of {layer} is none of its {count}; choose from 0 to {count - 1}'
    )
  if w is None:
    w = sample_w(net, SAMPLES, 0)
  a = affine[layer][:, number]  # [w_dim]
  stdev = np.sqrt(a @ _covariance(w) @ a)
  styles = np.zeros(count, np.float32)
  styles[number] = stdev
  about = {
    'method': 'channel',
    'layer': layer,
    'channel': int(number),
    'unit': 'stdev',
    'stdev': float(stdev),
  }
  return Direction(f'{layer}.{number}', (net.hash(),), styles={layer: styles}, about=about)


def _covariance(w):
  """Covariance [w_dim,w_dim] of w [N,w_dim], in float64."""
  w = np.asarray(w, np.float64)
  mean = w.mean(0)
  # (Two arrays: one with its own transpose goes another way in BLAS, with other roundings.)
  return (w - mean).T @ (w - mean) / (len(w) - 1)


def _leading(matrix, covariance, count):
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
  return Found(vectors.astype(np.float32), stdevs, values)


def _affine(net, layers):
  """{layer: float64 [w_dim,C]}: what the styles of each are times, of w at the ws `layers`.

  Styles are affine in w, so differences are the matrix, whatever the architecture.
  """
  w_dim = net.generator.mapping.w_dim
  ws = np.zeros((1 + w_dim, net.num_ws, w_dim), np.float32)
  ws[1:, layers] = np.eye(w_dim)[:, None]

  @jax.jit  # The compiler drops the convolutions.
  def read(variables):
    return style_space.read(net.generator, variables, ws, net.growing.get('stage', 0))

  with jax.default_matmul_precision('highest'):
    styles = read(net.variables)
  return {layer: np.asarray(x[1:] - x[0], np.float64) for layer, x in styles.items()}
