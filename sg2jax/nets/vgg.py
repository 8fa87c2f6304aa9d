"""VGG16 [Simonyan & Zisserman 2015] and the LPIPS distance [Zhang et al. 2018], as flaxmodels and
lpips-j have them.

Both libraries would download weights; here all parameters are arguments and come from the authors'
PyTorch files. The libraries are imported by the functions that need them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sg2jax.nets.inception import check_arrays

_CONVS = {
  'conv1_1': 0,
  'conv1_2': 2,
  'conv2_1': 5,
  'conv2_2': 7,
  'conv3_1': 10,
  'conv3_2': 12,
  'conv3_3': 14,
  # places in `features`
  'conv4_1': 17,
  'conv4_2': 19,
  'conv4_3': 21,
  'conv5_1': 24,
  'conv5_2': 26,
  'conv5_3': 28,
}
_DENSE = {'fc6': 0, 'fc7': 3, 'fc8': 6}  # places in `classifier`
_WIDTHS = {'1': 64, '2': 128, '3': 256, '4': 512, '5': 512}  # of a block


def _dtype(params):
  return jnp.result_type(jnp.float32, *jax.tree.leaves(params))


def fc_features(params, images):
  """Features for precision and recall [Kynkaanniemi et al. 2019]: the second fully connected
  layer's, after its ReLU.

  params: of `fc_params`; images: uint8 [N,H,W,3] -> [N,4096], float32, or float64 if the parameters
  are. Images are resized to 224x224 bilinearly with half-pixel centres and no antialiasing, then
  normalized as for ImageNet.
  """
  import flaxmodels

  dtype = _dtype(params)
  network = flaxmodels.VGG16(output='activations', pretrained=None, include_head=True, dtype=dtype)
  with jax.default_matmul_precision('highest'):  # float32 products on GPUs and TPUs too
    x = jax.image.resize(
      images.astype(dtype), (len(images), 224, 224, 3), 'bilinear', antialias=False
    )
    return network.apply({'params': params}, x / 255, train=False)['relu7']


def lpips_network(dtype):
  """lpips-j's distance as a module: (x0, x1) [N,H,W,3] in [-1,1] -> [N,1,1,1]. Parameters: of
  `lpips_params`.

  Its two halves are methods: `features` of images, and `between` such features, of which a
  projection keeps its target's.
  """
  from flax import linen as nn
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
      found = self.vgg((x + 1) / 2)
      return [_unit_length(found[name]) for name in self.feature_names]

    def between(self, f, g):
      return sum(library.spatial_average(lin((x - y) ** 2)) for lin, x, y in zip(self.lins, f, g))

  return Lpips()


def _unit_length(x, eps=1e-10):
  """The library's `normalize_tensor`, whose gradient is NaN where all channels are 0, as ReLUs
  leave them.
  """
  square = jnp.sum(x**2, axis=-1, keepdims=True)
  some = square > 0
  return x / (jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), 0) + eps)


def lpips(params, x0, x1):
  """LPIPS 0.1 with VGG16 [Zhang et al. 2018, eq. 1]. params: of `lpips_params`; x0, x1: [N,H,W,3]
  in [-1,1] -> [N].

  Differentiable; float32, or float64 if the parameters are.
  """
  return lpips_between(params, lpips_features(params, x0), lpips_features(params, x1))


def lpips_features(params, x):
  """What `lpips` compares of images [N,H,W,3] in [-1,1]: a list of [N,h,w,C], of unit length over
  the channels.
  """
  return _lpips(params, 'features', x)


def lpips_between(params, f, g):
  """`lpips` of two results of `lpips_features`: [N]."""
  return _lpips(params, 'between', f, g)[:, 0, 0, 0]


def _lpips(params, method, *args):
  dtype = _dtype(params)
  args = jax.tree.map(lambda x: x.astype(dtype), args)
  with jax.default_matmul_precision('highest'):
    return lpips_network(dtype).apply({'params': params}, *args, method=method)


def _conv_shapes():
  """{torchvision's name: shape} of the convolutions."""
  shapes, inputs = {}, 3
  for name, place in _CONVS.items():
    width = _WIDTHS[name[4]]
    shapes |= {
      f'features.{place}.weight': (width, inputs, 3, 3),
      f'features.{place}.bias': (width,),
    }
    inputs = width
  return shapes


def _convert(network, arrays, shapes, layers):
  """Checked arrays -> {layer: {'kernel', 'bias'}}; layers: {layer: torchvision's name}."""
  arrays = {k: np.asarray(v) for k, v in arrays.items()}
  check_arrays(network, arrays, shapes)
  dtype = np.result_type(np.float32, *(v.dtype for v in arrays.values()))
  order = {4: (2, 3, 1, 0), 2: (1, 0)}

  def kernel(w):
    return w.astype(dtype, copy=False).transpose(order[w.ndim])

  return {
    layer: {'kernel': kernel(arrays[f'{name}.weight'])}
    | ({'bias': arrays[f'{name}.bias'].astype(dtype)} if f'{name}.bias' in arrays else {})
    for layer, name in layers.items()
  }


def fc_params(arrays):
  """Parameters of `fc_features` from all arrays of torchvision's vgg16-397923af.pth,
  'features.0.weight' [O,I,H,W] and so on.

  Float64 arrays give float64 parameters, all others float32. Raises: ValueError, naming missing,
  unknown or ill-shaped ones.
  """
  shapes, inputs = _conv_shapes(), 7 * 7 * 512
  for place, width in zip(_DENSE.values(), (4096, 4096, 1000)):
    shapes |= {f'classifier.{place}.weight': (width, inputs), f'classifier.{place}.bias': (width,)}
    inputs = width
  layers = {k: f'features.{i}' for k, i in _CONVS.items()} | {
    k: f'classifier.{i}' for k, i in _DENSE.items()
  }
  return _convert('VGG16', arrays, shapes, layers)


def lpips_params(arrays, heads):
  """Parameters of `lpips` from torchvision's vgg16-397923af.pth and lpips' v0.1 vgg.pth,
  'lin0.model.1.weight' [1,C,1,1] ...

  Of the first file the classifier isn't needed. Dtypes and errors: as for `fc_params`.
  """
  arrays = {k: v for k, v in arrays.items() if not k.startswith('classifier.')}
  trunk = _convert('VGG16', arrays, _conv_shapes(), {k: f'features.{i}' for k, i in _CONVS.items()})
  shapes = {f'lin{i}.model.1.weight': (1, width, 1, 1) for i, width in enumerate(_WIDTHS.values())}
  lins = _convert(
    "LPIPS' heads for VGG16",
    heads,
    shapes,
    {f'lins_{i}': f'lin{i}.model.1' for i in range(len(shapes))},
  )
  return {'vgg': trunk} | lins
