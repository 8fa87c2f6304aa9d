"""Networks of other programs: written in each of their shapes, and read back bit for bit."""

import argparse
import collections

import ml_dtypes
import numpy as np
import pytest

from sg2jax.interop import network_file
from tests.foreign_files import (
  UNREAD,
  EasyDict,
  Module,
  Plain,
  Storage,
  Tensor,
  dumps,
  modules,
  network,
  save_legacy,
  save_zip,
)

RNG = np.random.RandomState(0)


def array(*shape):
  return np.asarray(RNG.randn(*shape), np.float32)


def under(arrays, prefix):
  return {f'{prefix}/{name}': x for name, x in arrays.items()}


def tensorflow_file(protocol=4, old=False):
  """(bytes, {network: arrays}) of (G, D, Gs)."""
  expected = {}
  nets = []
  for key in ('G', 'G_ema'):
    mapping = {'Dense0/weight': array(3, 4), 'Dense0/bias': array(4)}
    synthesis = {
      'lod': np.float32(0),
      '4x4/Const/const': array(1, 2, 4, 4),
      'noise0': array(1, 1, 4, 4),
      '4x4/Conv/weight': np.asfortranarray(array(3, 3, 2, 2)),
      '4x4/Conv/noise_strength': array(),
      '4x4/Conv/mod_weight': array(4, 2).T,
      '4x4/ToRGB/weight': array(6, 4, 2).transpose(1, 0, 2)[:, ::2],
      'turned': array(2, 3, 4).transpose(1, 2, 0),
      'half': array(2).astype(np.float16),
      'count': np.array([7], np.int64),
    }
    own = {'lod': np.float32(0), 'dlatent_avg': array(4)}
    options = {'resolution': 4, 'resample_kernel': [1, 3, 3, 1]}
    parts = {
      'mapping': network('G_mapping', mapping, mapping_layers=1),
      'synthesis': network('G_synthesis_stylegan2', synthesis, **options),
    }
    kwargs = {'label_size': np.int64(0), 'fmap_base': 16 << 10, 'truncation_psi': None}
    nets.append(network('G_main', own, parts, **kwargs, shape=(1, 2)))
    expected[key] = own | under(mapping, 'mapping') | under(synthesis, 'synthesis')
  expected['D'] = {'4x4/Conv/weight': array(3, 3, 2, 2), 'Output/bias': array(1)}
  d = network('D_stylegan2', expected['D'], resolution=4)
  return dumps((nets[0], d, nets[1]), protocol, old=old), expected


def pytorch_parts():
  """(nested parts, {name: array}) of a module."""
  shared = array(4, 6)
  storage = Storage(shared.ravel())
  parameters = {
    'mapping.fc0.weight': array(4, 3),
    'mapping.fc0.bias': array(4),
    'synthesis.b4.const': array(2, 4, 4),
    'synthesis.b4.conv1.weight': array(3, 3, 2, 2).transpose(3, 2, 0, 1),
    'synthesis.b4.conv1.noise_strength': array(),
    'synthesis.b4.half': array(3).astype(np.float16),
    'synthesis.b4.brain': array(3).astype(ml_dtypes.bfloat16),
    'synthesis.b4.empty': array(0, 3),
  }
  buffers = {
    'mapping.w_avg': array(4),
    'synthesis.num': np.array([3], np.int64),
    'synthesis.flag': np.array([True, False]),
  }
  tensors = {
    name: Tensor(x, parameter=name in parameters) for name, x in (parameters | buffers).items()
  }
  tensors['synthesis.b4.whole'] = Tensor(shared, storage)
  tensors['synthesis.b4.part'] = Tensor(shared[1:, ::2], storage, 6, parameter=True)
  tensors['synthesis.b4.none'] = None
  tree = {}
  for name, tensor in tensors.items():
    *path, last = name.split('.')
    node = tree
    for part in path:
      node = node.setdefault(part, {})
    node[last] = tensor
  shared_arrays = {'synthesis.b4.whole': shared, 'synthesis.b4.part': shared[1:, ::2]}
  return tree, parameters | buffers | shared_arrays


def pytorch_file(protocol=4, old=False):
  """(bytes, {network: arrays}) of {G, D, G_ema, ...}."""
  value = {'augment_pipe': None, 'training_set_kwargs': {'path': 'x.zip', 'max_size': 7}}
  expected = {}
  for key in ('G', 'D', 'G_ema'):
    tree, expected[key] = pytorch_parts()
    value[key] = modules(
      tree,
      'Discriminator' if key == 'D' else 'Generator',
      z_dim=3,
      c_dim=np.int64(0),
      conv_clamp=None,
      mapping_kwargs=EasyDict(num_layers=1),
      synthesis_kwargs=EasyDict(channel_base=1 << 10, psi=0.5),
    )
  return dumps(value, protocol, old=old), expected


def rosinality_file(protocol=2, save=save_zip):
  """(bytes, {network: arrays}) of a checkpoint."""
  latent = array(4)
  optim = {'state': {0: {'step': 3, 'exp_avg': Tensor(array(4))}}, 'param_groups': [{'lr': 0.002}]}
  value = {
    'g_optim': optim,
    'd_optim': optim,
    'args': argparse.Namespace(size=4, ckpt=None),
    'ada_aug_p': 0.5,
    'latent_avg': Tensor(latent),
  }
  expected = {}
  for key, name in (('g', 'G'), ('d', 'D'), ('g_ema', 'G_ema')):
    arrays = {
      'style.1.weight': array(4, 3),
      'conv1.conv.weight': array(1, 2, 2, 3, 3),
      'noises.noise_0': array(1, 1, 4, 4),
    }
    value[key] = collections.OrderedDict((k, Tensor(v)) for k, v in arrays.items())
    value[key]._metadata = {'': {'version': 1}}
    expected[name] = arrays if key == 'd' else arrays | {'latent_avg': latent}
  return save(value, protocol), expected


def check(data, expected, format_):
  """The nets of a file, which are bit for bit the expected ones."""
  nets = network_file.parse(data)
  assert set(nets) == set(expected)
  for key, arrays in expected.items():
    assert nets[key].format == format_ and set(nets[key].arrays) == set(arrays)
    for name, value in arrays.items():
      x = nets[key].arrays[name]
      assert isinstance(x, np.ndarray) and not x.flags.writeable or not x.size, name
      assert x.shape == np.shape(value) and x.dtype == value.dtype, name
      assert x.tobytes() == value.tobytes(), name
  return nets


@pytest.mark.parametrize('old', [True, False], ids=['numpy1', 'numpy2'])
@pytest.mark.parametrize('protocol', range(2, 6))
def test_tensorflow_pickles(protocol, old):
  nets = check(*tensorflow_file(protocol, old), 'tensorflow')
  assert nets['G_ema'].kind == 'G_synthesis_stylegan2' and nets['D'].kind == 'D_stylegan2'
  assert nets['D'].kwargs == {'resolution': 4}
  assert nets['G'].kwargs == {
    'label_size': 0,
    'fmap_base': 16384,
    'truncation_psi': None,
    'shape': [1, 2],
    'mapping_layers': 1,
    'resolution': 4,
    'resample_kernel': [1, 3, 3, 1],
  }
  assert type(nets['G'].kwargs['label_size']) is int


PLAIN_ATTRIBUTES = {'training': False, 'up': 2, 'clamp': None}


@pytest.mark.parametrize('old', [True, False], ids=['numpy1', 'numpy2'])
@pytest.mark.parametrize('protocol', range(2, 6))
def test_pytorch_pickles(protocol, old):
  nets = check(*pytorch_file(protocol, old), 'pytorch')
  assert nets['G'].kind == 'Generator' and nets['D'].kind == 'Discriminator'
  assert np.shares_memory(*(nets['G'].arrays[f'synthesis.b4.{name}'] for name in ('whole', 'part')))
  paths = ('', 'mapping', 'mapping.fc0', 'synthesis', 'synthesis.b4', 'synthesis.b4.conv1')
  assert nets['G'].kwargs == {
    'z_dim': 3,
    'c_dim': 0,
    'conv_clamp': None,
    'mapping_kwargs': {'num_layers': 1},
    'synthesis_kwargs': {'channel_base': 1024, 'psi': 0.5},
  }
  assert nets['G'].attributes == dict.fromkeys(paths, PLAIN_ATTRIBUTES)


@pytest.mark.parametrize('save', [save_zip, save_legacy])
@pytest.mark.parametrize('protocol', range(2, 6))
def test_rosinality_files(protocol, save):
  nets = check(*rosinality_file(protocol, save), 'rosinality')
  assert nets['G'].kind == '' and nets['G'].kwargs == {}


# Real files have these, too.


def test_networks_that_are_missing_alone_or_the_same():
  def found(data):
    return {name: [*net.arrays] for name, net in network_file.parse(data).items()}

  d = network('D_stylegan2', {'Output/bias': array(1)})
  assert found(dumps(d)) == {'D': ['Output/bias']}
  const = {'G_mapping/Dense0/bias': array(2), 'G_synthesis/4x4/Const/const': array(1, 2, 4, 4)}
  old = network('G_style', const | {'dlatent_avg': array(2)})
  short = ['mapping/Dense0/bias', 'synthesis/4x4/Const/const', 'dlatent_avg']
  assert found(dumps(old)) == {'G_ema': short}
  assert found(dumps((old, None, old))) == {'G': short, 'G_ema': short}
  components = {'G_synthesis': network('G_synthesis_stylegan', {'noise0': array(1)}, fused=True)}
  net = network_file.parse(dumps(network('G_style', {}, components)))['G_ema']
  assert net.kind == 'G_synthesis_stylegan' and list(net.arrays) == ['synthesis/noise0']
  assert net.kwargs == {'fused': True}
  g = modules({'w': Tensor(array(2))}, 'Generator')
  assert found(dumps({'G': None, 'D': None, 'G_ema': g})) == {'G_ema': ['w']}
  assert found(dumps({'G': g, 'G_ema': g})) == {'G': ['w'], 'G_ema': ['w']}
  assert found(save_zip({'g_ema': collections.OrderedDict(w=Tensor(array(2)))})) == {'G_ema': ['w']}


def test_tensorflow_networks_in_other_containers():
  g, d, ema = (network(kind, {'w': array(2)}) for kind in ('G_main', 'D_stylegan2', 'G_ema'))
  for value in (
    [g, d, ema],
    {'G': g, 'D': d, 'Gs': ema},
    {'G': g, 'D': d, 'G_ema': ema},
    EasyDict(G=g, D=d, Gs=ema),
  ):
    kinds = {name: net.kind for name, net in network_file.parse(dumps(value)).items()}
    assert kinds == {'G': 'G_main', 'D': 'D_stylegan2', 'G_ema': 'G_ema'}
  w = array(2)
  for variables in ((('w', w),), {'w': w}, collections.OrderedDict(w=w)):
    d.__dict__ |= {'variables': variables, 'components': None}
    net = network_file.parse(dumps(d))['D']
    assert np.array_equal(net.arrays['w'], w) and net.kwargs == {}
  x = network_file.parse(dumps(network('D', {'w': 0.1})))['D'].arrays['w']
  assert x == 0.1 and x.shape == () and x.dtype == np.float64 and not x.flags.writeable


def test_what_modules_and_checkpoints_hold_besides_is_not_looked_at():
  state = {name: thing for name, thing in UNREAD.items() if name != 'TorchVersion'}
  state |= {'at': Plain(UNREAD['device'], ('cpu',)), 'list': [UNREAD['float16']]}
  g = Module('Generator', {'w': Tensor(array(2))}, state)
  assert network_file.parse(dumps({'G': g}))['G'].attributes == {'': PLAIN_ATTRIBUTES}
  version = Plain(UNREAD['TorchVersion'], ('2.1',))
  nets = network_file.parse(save_zip({'g': {'w': Tensor(array(2))}, 'version': version}))
  assert list(nets['G'].arrays) == ['w']


def test_arguments_that_a_module_does_not_say_or_without_names():
  g = Module('Generator', {'w': Tensor(array(2))}, {'_init_args': (5, [1.5, 'x'])}, z_dim=2)
  kwargs = network_file.parse(dumps({'G': g}))['G'].kwargs
  assert kwargs == {'z_dim': 2, 'args': [5, [1.5, 'x']]}
  meta = g.meta()
  del meta['state']['_init_args'], meta['state']['_init_kwargs']
  g.meta = lambda: meta
  assert network_file.parse(dumps({'G': g}))['G'].kwargs == {}
