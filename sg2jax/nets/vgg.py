"""VGG16 [Simonyan & Zisserman 2015] and the LPIPS distance [Zhang et al. 2018].

As flaxmodels and lpips-j have them. Both libraries would download weights; here all parameters are
arguments and come from the authors' PyTorch files. The libraries are imported by the functions that
need them.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sg2jax.nets.arrays import checked

_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # (convolutions, their width)
_DENSE = {'fc6': (0, 4096), 'fc7': (3, 4096), 'fc8': (6, 1000)}  # (place in `classifier`, width)


def _dtype(params):
  return jnp.result_type(jnp.float32, *jax.tree.leaves(params))


# ---- features for precision and recall


def fc_features(params: Any, images: jax.Array) -> jax.Array:
  """The second fully connected layer's, after its ReLU [Kynkaanniemi et al. 2019]: -> [N,4096].

  Images are resized to 224x224 bilinearly with half-pixel centres and no antialiasing, then
  normalized as for ImageNet.

  Args:
    params: of `fc_params`; the result is float32, or float64 if they are.
    images: uint8 [N,H,W,3].
  """
  import flaxmodels

  dtype = _dtype(params)
  network = flaxmodels.VGG16(output='activations', pretrained=None, include_head=True, dtype=dtype)
  shape = (len(images), 224, 224, 3)
  with jax.default_matmul_precision('highest'):  # float32 products on GPUs and TPUs too
    x = jax.image.resize(images.astype(dtype), shape, 'bilinear', antialias=False)
    return network.apply({'params': params}, x / 255, train=False)['relu7']


# ---- LPIPS


def lpips_network(dtype: Any) -> nn.Module:
  """lpips-j's distance as a module: (x0, x1) [N,H,W,3] in [-1,1] -> [N,1,1,1].

  Parameters: of `lpips_params`. Its two halves are methods: `features` of images, and `between`
  such features, of which a projection keeps its target's.
  """
  from flaxmodels.vgg.vgg import VGG
  from lpips_j import lpips as library

  class Lpips(library.LPIPS):
    def setup(self):  # the library's downloads weights here
      self.feature_names = ['relu1_2', 'relu2_2', 'relu3_3', 'relu4_3', 'relu5_3']
      self.vgg = VGG(output='activations', pretrained=None, include_head=False, dtype=dtype)
      self.lins = [nn.Conv(1, (1, 1), use_bias=False) for _ in self.feature_names]

    def __call__(self, x, t):
      return self.between(self.features(x), self.features(t))

    def features(self, x):
      layers = self.vgg((x + 1) / 2)
      return [_unit_length(layers[name]) for name in self.feature_names]

    def between(self, f, g):
      return sum(library.spatial_average(lin((x - y) ** 2)) for lin, x, y in zip(self.lins, f, g))

  return Lpips()


def _unit_length(x, eps=1e-10):
  """The library's `normalize_tensor`, over channels, with a gradient where all of them are 0.

  ReLUs leave such pixels, and there the library's gradient is NaN.
  """
  square = jnp.sum(x**2, axis=-1, keepdims=True)
  some = square > 0
  return x / (jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), 0) + eps)


def lpips(params: Any, x0: jax.Array, x1: jax.Array) -> jax.Array:
  """LPIPS 0.1 with VGG16 [Zhang et al. 2018, eq. 1]: [N,H,W,3] in [-1,1] x 2 -> [N].

  params: of `lpips_params`. Differentiable; float32, or float64 if the parameters are.
  """
  return lpips_between(params, lpips_features(params, x0), lpips_features(params, x1))


def lpips_features(params: Any, x: jax.Array) -> list[jax.Array]:
  """What `lpips` compares of images [N,H,W,3] in [-1,1]: [N,h,w,C] of unit length over C."""
  return _lpips(params, 'features', x)


def lpips_between(params: Any, f: list[jax.Array], g: list[jax.Array]) -> jax.Array:
  """`lpips` of two results of `lpips_features`: [N]."""
  return _lpips(params, 'between', f, g)[:, 0, 0, 0]


def _lpips(params, method, *args):
  dtype = _dtype(params)
  args = jax.tree.map(lambda x: x.astype(dtype), args)
  with jax.default_matmul_precision('highest'):
    return lpips_network(dtype).apply({'params': params}, *args, method=method)


# ---- parameters from PyTorch files


def fc_params(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Parameters of `fc_features` from all arrays of torchvision's vgg16-397923af.pth.

  'features.0.weight' [O,I,H,W] and so on. Float64 arrays give float64 parameters, all others
  float32. Raises: ValueError, naming missing, unknown or ill-shaped ones.
  """
  layers = _convolutions()
  inputs = 7 * 7 * 512
  for layer, (place, width) in _DENSE.items():
    layers[layer] = f'classifier.{place}', (width, inputs)
    inputs = width
  return _convert('VGG16', arrays, layers)


def lpips_params(
  arrays: Mapping[str, np.ndarray], heads: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Parameters of `lpips` from torchvision's vgg16-397923af.pth and lpips' v0.1 vgg.pth.

  Of the first file the classifier isn't needed; the second holds 'lin0.model.1.weight' [1,C,1,1]
  ... Dtypes and errors: as for `fc_params`.
  """
  arrays = {name: x for name, x in arrays.items() if not name.startswith('classifier.')}
  lins = {
    f'lins_{i}': (f'lin{i}.model.1', (1, width, 1, 1)) for i, (_, width) in enumerate(_BLOCKS)
  }
  trunk = _convert('VGG16', arrays, _convolutions())
  return {'vgg': trunk} | _convert("LPIPS' heads for VGG16", heads, lins, bias=False)


def _convolutions():
  """{layer: (torchvision's name, shape of its weight)} of the convolutions."""
  layers = {}
  place = 0  # in `features`, where a ReLU follows each convolution, and a max-pool each block
  inputs = 3
  for block, (count, width) in enumerate(_BLOCKS, 1):
    for i in range(1, count + 1):
      layers[f'conv{block}_{i}'] = f'features.{place}', (width, inputs, 3, 3)
      inputs = width
      place += 2
    place += 1
  return layers


def _convert(network, arrays, layers, bias=True):
  """Arrays, checked -> {layer: {'kernel', 'bias'}}. layers: as of `_convolutions`."""
  shapes = {f'{name}.weight': shape for name, shape in layers.values()}
  if bias:
    shapes |= {f'{name}.bias': shape[:1] for name, shape in layers.values()}
  arrays, dtype = checked(network, arrays, shapes)
  order = {4: (2, 3, 1, 0), 2: (1, 0)}  # [O,I,H,W] -> [H,W,I,O], [O,I] -> [I,O]
  params = {}
  for layer, (name, shape) in layers.items():
    weight = arrays[f'{name}.weight'].astype(dtype, copy=False)
    params[layer] = {'kernel': weight.transpose(order[len(shape)])}
    if bias:
      params[layer]['bias'] = arrays[f'{name}.bias'].astype(dtype)
  return params
