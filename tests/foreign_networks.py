"""Networks of the reference vectors in the names, layouts and files of other programs."""

import functools
import json
import re

from flax import traverse_util
import numpy as np

from sg2jax.interop.network_file import Net
from tests.foreign_files import Module, Storage, Tensor, dumps, network
from tests.reference.check import read_manifest
from tests.runs import ROOT

FOLDERS = [ROOT / 'tests' / name for name in ('reference', 'reference_growing')]
CASES = {case['id']: (case, folder) for folder in FOLDERS for case in read_manifest(folder)}


@functools.cache
def case_arrays(case):
  """{name: array} of a case of the reference."""
  entry, folder = CASES[case]
  with np.load(folder / entry['file']) as data:
    return dict(data)


def vectors(case, sub):
  """(config, {name: array}) of a sub-case of the reference."""
  config = CASES[case][0]['subcases'][sub]['config']
  return json.loads(json.dumps(config)), under(case_arrays(case), f'{sub}/')


def under(arrays, prefix):
  """Those whose names begin so, without that."""
  return {key.removeprefix(prefix): x for key, x in arrays.items() if key.startswith(prefix)}


def torch_nets(g, d=None):
  """{name: Net} of PyTorch networks; arrays of the generator's vectors, of the discriminator's."""
  config, arrays = vectors('generator', g)
  keys = ('z_dim', 'c_dim', 'w_dim', 'img_resolution', 'img_channels', 'mapping_kwargs')
  kwargs = {key: config[key] for key in (*keys, 'synthesis_kwargs')}
  nets = {'G_ema': Net('pytorch', 'Generator', kwargs, under(arrays, 'G/'))}
  if d is None:
    return nets, arrays, None
  config, more = vectors('discriminator', d)
  del config['channels']
  return nets | {'D': Net('pytorch', 'Discriminator', config, under(more, 'D/'))}, arrays, more


# ---- PyTorch


def stored(arrays):
  """{name: Tensor}, of one storage for each dtype, which is written fast."""
  tensors = {}
  arrays = {name: np.ascontiguousarray(x).reshape(np.shape(x)) for name, x in arrays.items()}
  for dtype in {x.dtype for x in arrays.values()}:
    own = {name: x for name, x in arrays.items() if x.dtype == dtype}
    storage = Storage(np.concatenate([x.ravel() for x in own.values()]))
    offset = 0
    for name, x in own.items():
      parameter = not name.endswith(('noise_const', 'resample_filter', 'w_avg'))
      tensors[name] = Tensor(x, storage, offset, parameter)
      offset += x.size
  return {name: tensors[name] for name in arrays}


def module(kind, arrays, kwargs, attributes=None):
  """A file's Module of {'synthesis.b4.const': array}, with attributes {path: {name: value}}."""

  def make(tree, path, kind):
    parts = {
      name: make(x, f'{path}.{name}'.lstrip('.'), 'Part') if isinstance(x, dict) else x
      for name, x in tree.items()
    }
    return Module(kind, parts, (attributes or {}).get(path), **({} if path else kwargs))

  return make(traverse_util.unflatten_dict(stored(arrays), sep='.'), '', kind)


# ---- rosinality

ROSINALITY = {  # the discriminator's ends, and what its blocks have
  'b4.conv.weight': 'final_conv.0.weight',
  'b4.conv.bias': 'final_conv.1.bias',
  'b4.fc.weight': 'final_linear.0.weight',
  'b4.fc.bias': 'final_linear.0.bias',
  'b4.out.weight': 'final_linear.1.weight',
  'b4.out.bias': 'final_linear.1.bias',
  'fromrgb.weight': 'convs.0.0.weight',
  'fromrgb.bias': 'convs.0.1.bias',
  'conv0.weight': 'conv1.0.weight',
  'conv0.bias': 'conv1.1.bias',
  'conv1.weight': 'conv2.1.weight',
  'conv1.bias': 'conv2.2.bias',
  'skip.weight': 'skip.1.weight',
}
ROSINALITY_LAYER = {
  'weight': 'conv.weight',
  'affine.weight': 'conv.modulation.weight',
  'affine.bias': 'conv.modulation.bias',
  'noise_strength': 'noise.weight',
  'bias': 'activate.bias',
}
KERNEL = np.float32(np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64)


def rosinality_d(arrays):
  """PyTorch's arrays of a discriminator under rosinality's names."""
  found = {}
  top = max(int(re.search(r'b(\d+)\.', name)[1]) for name in arrays)
  for name, x in arrays.items():
    side, leaf = re.fullmatch(r'b(\d+)\.(.+)', name).groups()
    block = f'convs.{(top // int(side)).bit_length()}'
    if name in ROSINALITY:
      found[ROSINALITY[name]] = x
    elif leaf.startswith('fromrgb') and leaf in ROSINALITY:
      found[ROSINALITY[leaf]] = x
    elif leaf in ROSINALITY:
      found[f'{block}.{ROSINALITY[leaf]}'] = x
      if leaf == 'skip.weight':
        found |= {f'{block}.conv2.0.kernel': KERNEL, f'{block}.skip.0.kernel': KERNEL}
  return found


def rosinality_g(arrays):
  """PyTorch's arrays of a generator under rosinality's names and in its shapes."""
  found = {}
  for name, x in arrays.items():
    if m := re.fullmatch(r'mapping\.fc(\d+)\.(.+)', name):
      found[f'style.{int(m[1]) + 1}.{m[2]}'] = x
    elif name == 'mapping.w_avg':
      found['latent_avg'] = x
    elif name.endswith('.const'):
      found['input.input'] = x[None]
    elif m := re.search(r'b(\d+)\.(conv0|conv1|torgb)\.(.+)', name):
      if m[3] != 'resample_filter':
        found |= rosinality_layer(int(m[1]).bit_length() - 3, m[2], m[3], x)
  return found


def rosinality_layer(k, layer, leaf, x):
  """Of the generator's layers at 4 * 2^k pixels."""
  i = 2 * k - 1 + (layer == 'conv1')  # among the layers
  if leaf == 'noise_const':
    return {f'noises.noise_{i}': x[None, None]}
  place = f'convs.{i - 1}' if k else 'conv1'
  kernel = f'{place}.conv.blur.kernel'
  if layer == 'torgb':
    place = f'to_rgbs.{k - 1}' if k else 'to_rgb1'
    kernel = f'{place}.upsample.kernel'
    if leaf == 'bias':
      return {f'{place}.bias': x[None, :, None, None]}
  if leaf == 'noise_strength':
    x = x.reshape(1)
  found = {f'{place}.{ROSINALITY_LAYER[leaf]}': x[None] if leaf == 'weight' else x}
  if leaf == 'weight' and k and layer != 'conv1':
    found[kernel] = 4 * KERNEL
  return found


# ---- TensorFlow

TF_LAYERS = {'skip': 'Skip', 'torgb': 'ToRGB', 'fromrgb': 'FromRGB', 'conv': 'Conv', 'fc': 'Dense0'}
TF_LAYERS = {
  'G': TF_LAYERS | {'conv0': 'Conv0_up', 'conv1': 'Conv1'},
  'D': TF_LAYERS | {'conv0': 'Conv0', 'conv1': 'Conv1_down'},
}
TF_LEAVES = {'affine.weight': 'mod_weight', 'affine.bias': 'mod_bias'}


def tensorflow(arrays, letter, lods=False):
  """PyTorch's arrays under TensorFlow's names and in its layouts.

  lods: layers of images are ToRGB_lod0 and FromRGB_lod0.
  """
  found = {}
  for name, x in arrays.items():
    if m := re.fullmatch(r'mapping\.(?:fc(\d+)|embed)\.(.+)', name):
      layer = 'LabelEmbed'
      if m[1]:
        layer = f'Dense{m[1]}' if letter == 'G' else f'Mapping{m[1]}'
      found[f'mapping/{layer}/{m[2]}' if letter == 'G' else f'{layer}/{m[2]}'] = x.T
    elif name == 'mapping.w_avg':
      found['dlatent_avg'] = x
    elif not name.endswith('resample_filter'):
      m = re.fullmatch(r'(synthesis\.)?b(\d+)\.(.+?)(?:\.(.+))?', name)
      name, x = tensorflow_layer(int(m[2]), m[3], m[4], np.asarray(x), letter, lods)
      found['synthesis/' + name if m[1] else name] = x
  return found


def tensorflow_layer(side, layer, leaf, x, letter, lods):
  """(name, array) of an array of a block."""
  if layer == 'const':
    return '4x4/Const/const', x[None]
  if leaf == 'noise_const':
    return f'noise{2 * side.bit_length() - 7 + (layer == "conv1")}', x[None, None]
  place = f'{side}x{side}/{TF_LAYERS[letter].get(layer)}'
  if side == 4 and layer == 'conv1':
    place = '4x4/Conv'
  elif layer == 'out':
    place = 'Output'
  elif lods and layer in ('torgb', 'fromrgb'):
    place = f'{TF_LAYERS[letter][layer]}_lod0'
  if x.ndim == 4:
    x = x.transpose(2, 3, 1, 0)
    if layer in ('conv0', 'skip') and letter == 'G':
      x = x[::-1, ::-1]
  elif x.ndim == 2:
    x = x.T
  elif leaf == 'affine.bias':
    x = x - np.float32(1)
  return f'{place}/{TF_LEAVES.get(leaf, leaf)}', x


def tensorflow_file(sub='skipG_resnetD'):
  """A pickle of the vectors of TensorFlow networks, with G, D and Gs, as stylegan2 writes it."""
  config, arrays = vectors('tf_checkpoint_import', sub)
  g, kwargs = under(arrays, 'tf/G/'), config['generator_static_kwargs']

  def generator():
    parts = {
      name: network(f'G_{name}', under(g, f'{name}/'), **kwargs)
      for name in ('mapping', 'synthesis')
    }
    return network('G_main', {'dlatent_avg': g['dlatent_avg']}, parts, **kwargs)

  d = network('D_stylegan2', under(arrays, 'tf/D/'), **config['discriminator_static_kwargs'])
  return dumps((generator(), d, generator())), arrays
