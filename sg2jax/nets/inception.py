"""Inception-v3 as FID is defined on it: the TensorFlow graph of 2015-12-05.

[Szegedy et al. 2016; Heusel et al. 2017]. Layers have the names of the graph's PyTorch conversion,
pt_inception-2015-12-05-6726825d.pth. What is unlike the paper and torchvision's network: 1008
outputs, TensorFlow 1's resize, means that don't count padding, a max-pool in Mixed_7c.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from sg2jax.nets.arrays import checked

BATCH_NORM_EPS = 1e-3
_BATCH_NORM = ('weight', 'bias', 'running_mean', 'running_var')


def tf1_resize(x: jax.Array, height: int, width: int) -> jax.Array:
  """Bilinear resize of TensorFlow 1, align_corners=False: floats [N,H,W,C] -> [N,height,width,C].

  Source coordinate i * in / out, no half-pixel centres, no antialiasing. The scale in / out is
  rounded to float32, as there.
  """
  for axis, size in ((2, width), (1, height)):
    last = x.shape[axis] - 1
    at = np.arange(size, dtype=x.dtype) * np.float32((last + 1) / size)
    low = at.astype(np.int32)
    weight = (at - low).astype(x.dtype).reshape((-1,) + (1,) * (3 - axis))
    first = jnp.take(x, low, axis)
    second = jnp.take(x, np.minimum(low + 1, last), axis)
    x = first + (second - first) * weight
  return x


def _mean_pool(x):
  return nn.avg_pool(x, (3, 3), padding='SAME', count_include_pad=False)


def _join(*branches):
  return jnp.concatenate(branches, -1)


class Inception(nn.Module):
  """Images [N,H,W,3], uint8 or floats in 0..255 -> {'64', '192', '768', '2048', 'logits' ...}.

  The numbers are spatial means [N,D] after the first and the second max-pool, after Mixed_6e and
  after Mixed_7c (the last are FID's features); 'logits_unbiased' and 'logits' [N,1008] are without
  and with the last bias.
  Images are resized to 299x299 and scaled by (x - 128) / 128 first. Computes in float32, in float64
  if the parameters are. Outputs that a jitted caller drops cost nothing.
  """

  def _conv(self, x, name, features, kernel=(1, 1), stride=1, padding='SAME'):
    """Convolution, bias (the batch norm's is in it), ReLU."""
    return nn.relu(
      nn.Conv(features, kernel, stride, padding, precision=lax.Precision.HIGHEST, name=name)(x)
    )

  def _chain(self, x, name, *layers):
    """Convolutions name_1, name_2 ...; each layer: (features, kernel, stride, padding)."""
    for i, layer in enumerate(layers, 1):
      x = self._conv(x, f'{name}_{i}', *layer)
    return x

  def _mixed_5(self, x, name, features):  # [N,35,35,C]
    a = self._conv(x, f'{name}.branch1x1', 64)
    b = self._chain(x, f'{name}.branch5x5', (48,), (64, (5, 5)))
    c = self._chain(x, f'{name}.branch3x3dbl', (64,), (96, (3, 3)), (96, (3, 3)))
    return _join(a, b, c, self._conv(_mean_pool(x), f'{name}.branch_pool', features))

  def _mixed_6(self, x, name, inner):  # [N,17,17,768]
    flat = (inner, (1, 7))
    tall = (inner, (7, 1))
    a = self._conv(x, f'{name}.branch1x1', 192)
    b = self._chain(x, f'{name}.branch7x7', (inner,), flat, (192, (7, 1)))
    c = self._chain(x, f'{name}.branch7x7dbl', (inner,), tall, flat, tall, (192, (1, 7)))
    return _join(a, b, c, self._conv(_mean_pool(x), f'{name}.branch_pool', 192))

  def _mixed_7(self, x, name, pooled):  # [N,8,8,C]
    a = self._conv(x, f'{name}.branch1x1', 320)
    b = self._conv(x, f'{name}.branch3x3_1', 384)
    c = self._chain(x, f'{name}.branch3x3dbl', (448,), (384, (3, 3)))
    return _join(
      a,
      self._conv(b, f'{name}.branch3x3_2a', 384, (1, 3)),
      self._conv(b, f'{name}.branch3x3_2b', 384, (3, 1)),
      self._conv(c, f'{name}.branch3x3dbl_3a', 384, (1, 3)),
      self._conv(c, f'{name}.branch3x3dbl_3b', 384, (3, 1)),
      self._conv(pooled, f'{name}.branch_pool', 192),
    )

  @nn.compact
  def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(self.variables))
    halve = ((3, 3), 2, 'VALID')
    out = {}

    # ---- stem
    x = (tf1_resize(images.astype(dtype), 299, 299) - 128) / 128  # [N,299,299,3]
    x = self._conv(x, 'Conv2d_1a_3x3', 32, *halve)
    x = self._conv(x, 'Conv2d_2a_3x3', 32, (3, 3), padding='VALID')
    x = self._conv(x, 'Conv2d_2b_3x3', 64, (3, 3))  # [N,147,147,64]
    x = nn.max_pool(x, (3, 3), (2, 2))  # [N,73,73,64]
    out['64'] = x.mean((1, 2))
    x = self._conv(x, 'Conv2d_3b_1x1', 80)
    x = self._conv(x, 'Conv2d_4a_3x3', 192, (3, 3), padding='VALID')
    x = nn.max_pool(x, (3, 3), (2, 2))  # [N,35,35,192]
    out['192'] = x.mean((1, 2))

    # ---- 35x35, then 17x17
    for name, features in (('Mixed_5b', 32), ('Mixed_5c', 64), ('Mixed_5d', 64)):
      x = self._mixed_5(x, name, features)
    a = self._conv(x, 'Mixed_6a.branch3x3', 384, *halve)
    b = self._chain(x, 'Mixed_6a.branch3x3dbl', (64,), (96, (3, 3)), (96, *halve))
    x = _join(a, b, nn.max_pool(x, (3, 3), (2, 2)))  # [N,17,17,768]
    for name, inner in (('Mixed_6b', 128), ('Mixed_6c', 160), ('Mixed_6d', 160), ('Mixed_6e', 192)):
      x = self._mixed_6(x, name, inner)
    out['768'] = x.mean((1, 2))

    # ---- 8x8, then logits
    a = self._chain(x, 'Mixed_7a.branch3x3', (192,), (320, *halve))
    b = self._chain(x, 'Mixed_7a.branch7x7x3', (192,), (192, (1, 7)), (192, (7, 1)), (192, *halve))
    x = _join(a, b, nn.max_pool(x, (3, 3), (2, 2)))  # [N,8,8,1280]
    x = self._mixed_7(x, 'Mixed_7b', _mean_pool(x))
    x = self._mixed_7(x, 'Mixed_7c', nn.max_pool(x, (3, 3), padding='SAME'))  # [N,8,8,2048]
    out['2048'] = x.mean((1, 2))
    dense = nn.Dense(1008, use_bias=False, precision=lax.Precision.HIGHEST, name='fc')
    out['logits_unbiased'] = dense(out['2048'])
    out['logits'] = out['logits_unbiased'] + self.param('fc_bias', nn.initializers.zeros, (1008,))
    return out


def features(params: Any, images: jax.Array) -> dict[str, jax.Array]:
  """`Inception().apply` with `params`: images [N,H,W,3] -> {name: [N,D]}.

  On CPUs one image at a time: there its activations stay in the cache, twice as fast. With images
  sharded over devices call it per shard (jax.shard_map), since a loop over a sharded axis would
  gather them.
  """
  network = partial(Inception().apply, {'params': params})

  def one_by_one(images):
    return lax.map(lambda image: jax.tree.map(lambda y: y[0], network(image[None])), images)

  return lax.platform_dependent(images, cpu=one_by_one, default=network)


def params(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Parameters of Inception from the arrays of the PyTorch conversion.

  Their names are like 'Mixed_5b.branch1x1.conv.weight' [O,I,H,W]; `num_batches_tracked` is skipped.
  The batch norm of each convolution is folded into kernel and bias, in float64. Float64 arrays give
  float64 parameters, all others float32. Raises: ValueError, naming missing, unknown or ill-shaped
  arrays.
  """
  image = jax.ShapeDtypeStruct((1, 299, 299, 3), np.uint8)
  tree = jax.eval_shape(Inception().init, jax.random.key(0), image)['params']
  convs = {name: leaf['kernel'].shape for name, leaf in tree.items() if not name.startswith('fc')}
  shapes = {'fc.weight': (1008, 2048), 'fc.bias': (1008,)}
  for name, (h, w, i, o) in convs.items():
    shapes[f'{name}.conv.weight'] = (o, i, h, w)
    shapes |= {f'{name}.bn.{part}': (o,) for part in _BATCH_NORM}
  arrays = {k: x for k, x in arrays.items() if not k.endswith('.num_batches_tracked')}
  arrays, dtype = checked('Inception-v3', arrays, shapes)
  wide = {k: x.astype(np.float64) for k, x in arrays.items()}
  out = {'fc': {'kernel': wide['fc.weight'].T}, 'fc_bias': wide['fc.bias']}
  for name in convs:
    gain, bias, mean, variance = (wide[f'{name}.bn.{part}'] for part in _BATCH_NORM)
    gain = gain / np.sqrt(variance + BATCH_NORM_EPS)
    kernel = wide[f'{name}.conv.weight'].transpose(2, 3, 1, 0) * gain
    out[name] = {'kernel': kernel, 'bias': bias - mean * gain}
  return jax.tree.map(lambda x: x.astype(dtype), out)
