"""Import of networks of others: known formats give the reference's images; what would make others
is refused by name.
"""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from sg2jax import build, configurations, sampler
from sg2jax.evaluation import reals
from sg2jax.faults import UsageError, WeightsError, WriteError
from sg2jax.interop import arguments, names, read
from sg2jax.interop.names import nhwc
from sg2jax.interop.network_file import Net
from sg2jax.models.generator import Generator
from sg2jax.tools import convert
from sg2jax.training import checkpoint
from tests.foreign_files import Tensor, dumps, save_zip
from tests.foreign_networks import (
  module,
  rosinality_d,
  rosinality_g,
  stored,
  tensorflow,
  tensorflow_file,
  torch_nets,
  under,
  vectors,
)
from tests.reference import cases_growing, cases_nets
from tests.reference.check import Config
from tests.runs import ROOT, call

pytestmark = pytest.mark.usefixtures('quick_compile')


def network_of(found, i):
  """Generator (0) or discriminator (1) of an Imported."""
  return build.networks(configurations.complete(found.config), found.config['c_dim'])[i]


def images(found, z, c=None, **more):
  """Images of an Imported, in float32."""
  generator = network_of(found, 0)
  variables = {'params': found.state['g_ema'], 'noise': found.state['noise']}
  c = np.zeros((len(z), 0)) if c is None else c
  apply = jax.jit(lambda v, z, c: generator.apply(v, z, c, noise_mode='const', **more))
  return np.asarray(apply(*jax.tree.map(np.float32, (variables, z, c))))


def logits(found, img, c=None):
  """Of an Imported, in float32."""
  discriminator = network_of(found, 1)
  c = np.zeros((len(img), 0)) if c is None else c
  return np.asarray(
    jax.jit(discriminator.apply)({'params': found.state['d']}, np.float32(nhwc(img)), np.float32(c))
  )


def close(actual, expected):
  """To float32's precision, of arrays whose largest is not 0."""
  assert actual.shape == expected.shape
  assert np.abs(actual - expected).max() < 1e-4 * np.abs(expected).max()


def same(a, b):
  """Equal trees, bit for bit."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), (_, y) in zip(jax.tree.leaves_with_path(a), jax.tree.leaves_with_path(b)):
    assert np.array_equal(x, y), path


# ---- PyTorch


@pytest.mark.parametrize('g', ['skip', 'orig', 'resnet', 'skip_cond_gray_121'])
def test_pytorch_generators(g):
  """Those that the reference's `generator` case checks."""
  net = torch_nets(g)[0]['G_ema']
  found = read.of_nets({'G_ema': net})
  assert network_of(found, 0) == cases_nets.read_generator(Config(vectors('generator', g)[0]))[0]
  params, noise, w_avg = names.from_pytorch(net.arrays)
  same((found.state['g_ema'], found.state['noise'], found.state['w_avg']), (params, noise, w_avg))


@pytest.mark.slow
@pytest.mark.parametrize(
  'g, d', [('skip', 'resnet'), ('orig', None), ('resnet', None), ('skip_cond_gray_121', None)]
)
def test_pytorch_pickles_make_the_references_images_and_logits(g, d, tmp_path):
  nets, arrays, more = torch_nets(g, d)
  file = tmp_path / 'network.pkl'
  modules = {name: module(net.kind, net.arrays, net.kwargs) for name, net in nets.items()}
  file.write_bytes(dumps(modules | {'augment_pipe': None}))
  found = read.read_network(file)
  close(images(found, arrays['z'], arrays.get('c')), nhwc(arrays['img']))
  assert found.config['g']['architecture'] == g.split('_')[0]
  assert set(found.report['unused']['G_ema']) == {
    name for name in nets['G_ema'].arrays if 'resample' in name
  }
  same(found.state['g'], found.state['g_ema'])
  if d:
    close(logits(found, more['img']), more['logits'])
  else:
    assert found.state['d'] == {} and 'no D' in found.report['initialised']['(D)']


@pytest.mark.parametrize(
  'd',
  [
    'orig',
    'skip',
    'resnet_cond',
    'orig_cond_group_none',
    'skip_gray_batch3_group4',
    'resnet_no_mbstd_121',
  ],
)
def test_pytorch_discriminators(d):
  """Beside a generator of the right sizes, of which nothing else is looked at."""
  config, more = vectors('discriminator', d)
  nets, _, _ = torch_nets('skip', d)
  config_there = configurations.complete(read.of_nets(torch_nets('skip')[0]).config)
  generator = build.networks(config_there, 0)[0]
  generator = generator.clone(
    mapping=generator.mapping.clone(c_dim=config['c_dim']),
    synthesis=generator.synthesis.clone(
      resolution=(config['img_resolution'],) * 2, img_channels=config['img_channels']
    ),
  )
  z, c = np.zeros((1, 32)), np.zeros((1, config['c_dim']))
  params = jax.eval_shape(
    lambda key: generator.init(key, z, c, noise_mode='const'), jax.random.key(0)
  )
  params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), params)
  arrays = names.to_pytorch(params['params']) | names.to_pytorch(params['noise'])
  kwargs = {
    key: value
    for key, value in nets['G_ema'].kwargs.items()
    if key in ('mapping_kwargs', 'synthesis_kwargs')
  }
  nets['G_ema'] = nets['G_ema']._replace(
    arrays=arrays | {'mapping.w_avg': np.zeros(32, np.float32)}, kwargs=kwargs
  )
  found = read.of_nets(nets)
  expected = cases_nets.read_discriminator(Config(config))
  rest = dict(mapping_layers=0 if not config['c_dim'] else expected.mapping_layers)
  if expected.mbstd_group_size is None:
    rest['mbstd_group_size'] = arguments.WHOLE_BATCH
  assert network_of(found, 1) == expected.clone(**rest)
  same(found.state['d'], names.from_pytorch(nets['D'].arrays)[0])


def layers(net, **values):
  """Attributes of every convolution of a Net."""
  return {
    name.removesuffix('.weight'): values
    for name in net.arrays
    if name.endswith(('conv0.weight', 'conv1.weight'))
  }


def test_attributes_say_what_runs_whatever_the_arguments_say(tmp_path):
  """stylegan3's layers clamp to 256 where no argument says so."""
  net = torch_nets('skip')[0]['G_ema']
  flat = {k: v for k, v in net.kwargs.items() if k != 'synthesis_kwargs'}
  flat |= {'channel_base': 1024, 'channel_max': 32}
  assert read.of_nets({'G': net._replace(kwargs=flat)}).config['g']['clamp'] == 0
  file = tmp_path / 'network.pkl'
  attributes = layers(net, conv_clamp=256, activation='relu')
  file.write_bytes(dumps({'G_ema': module('Generator', net.arrays, flat, attributes)}))
  found = read.read_network(file).config['g']
  assert (found['clamp'], found['fmap_base'], found['fmap_max']) == (256, 512, 32)
  assert found['variant'] == {'activation': 'relu'}


def fields(net, nested=None, **more):
  """A Net with arguments changed; nested: the dict within the arguments that they are in."""
  kwargs = json.loads(json.dumps(net.kwargs))
  (kwargs.setdefault(nested, {}) if nested else kwargs).update(more)
  return net._replace(kwargs=kwargs)


def without(net, name):
  return net._replace(arrays={k: v for k, v in net.arrays.items() if k != name})


def other(net, name, change):
  return net._replace(arrays=net.arrays | {name: change(net.arrays[name])})


SYNTHESIS = 'synthesis_kwargs'
FILTER = 'synthesis.b8.conv0.resample_filter'


@pytest.mark.parametrize(
  'nested, changed, says',
  [
    (SYNTHESIS, {'use_magic': 0}, 'use_magic=0 is not known'),
    (SYNTHESIS, {'kernel_size': 5}, 'kernel_size=5'),
    ('mapping_kwargs', {'activation': 'relu'}, 'mapping_kwargs.activation=relu'),
    (SYNTHESIS, {'activation': 'gelu'}, 'activation=gelu: it must be one of'),
    (SYNTHESIS, {'architecture': 'resnet'}, 'architecture=resnet, but its arrays say skip'),
    (None, {'img_resolution': 64}, 'resolution=64, but its arrays say 32'),
    (None, {'c_dim': 2}, 'c_dim=2'),
    (SYNTHESIS, {'use_noise': False}, 'noise=False, but its arrays say True'),
    (SYNTHESIS, {'conv_clamp': -1}, 'conv_clamp=-1: it must be a number above 0'),
    (SYNTHESIS, {'resample_filter': [1, 2, 1]}, 'is not the filter of the taps [1, 2, 1]'),
    (None, {'args': [512]}, 'args=[512] is not known'),
  ],
)
def test_arguments_that_would_make_other_images_are_refused_by_name(nested, changed, says):
  with pytest.raises(ValueError, match=re.escape(says)):
    read.of_nets({'G_ema': fields(torch_nets('skip')[0]['G_ema'], nested, **changed)})


@pytest.mark.parametrize(
  'name, change, says',
  [
    (FILTER, lambda x: x.T * 1.1, f'{FILTER} is not the filter'),
    ('mapping.fc1.bias', lambda x: x[:5], 'fc1.bias is [5], and should be [32]'),
    ('mapping.w_avg', lambda x: x[:5], 'w_avg is [5], and should be [32]'),
    ('synthesis.b8.conv1.bias', lambda x: x[:31], 'feature maps {4: 32, 8: 31'),
  ],
)
def test_arrays_of_other_networks_are_refused_by_name(name, change, says):
  with pytest.raises(ValueError, match=re.escape(says)):
    read.of_nets({'G_ema': other(torch_nets('skip')[0]['G_ema'], name, change)})


def test_other_networks_are_refused_by_name():
  g = torch_nets('skip')[0]['G_ema']
  more = {'synthesis.b8.conv2.weight': np.zeros(3)}
  stylegan3 = {'mapping.fc0.weight': np.zeros((3, 2)), 'synthesis.L0_36_512.bias': np.zeros(3)}
  attributes = layers(g, conv_clamp=None) | {'synthesis.b8.conv0': {'conv_clamp': 1}}
  missing = without(g, 'synthesis.b8.conv0.bias')
  for net, says in (
    (missing, 'g_ema.synthesis.b8.conv0.bias [32] is missing'),
    (g._replace(arrays=g.arrays | more), 'b8.conv2.weight is [3], and belongs to none'),
    (g._replace(arrays=stylegan3), 'not the layers of a StyleGAN2 (IndexError'),
    (g._replace(kind='TriPlaneGenerator'), 'TriPlaneGenerator'),
    (g._replace(attributes=attributes), 'differ in conv_clamp'),
  ):
    with pytest.raises(ValueError, match=re.escape(says)):
      read.of_nets({'G_ema': net})


def test_networks_that_do_not_fit_each_other_are_refused():
  g = torch_nets('skip')[0]['G_ema']
  d = torch_nets('skip', 'resnet')[0]['D']
  labelled = torch_nets('skip', 'resnet_cond')[0]['D']
  for nets, says in (
    ({'D': labelled}, 'D: resolution=16, but its arrays say 32'),
    ({'D': labelled._replace(kwargs={})}, 'D has c_dim=5, and the generator has 0'),
    ({'D': fields(d, 'block_kwargs', activation='relu')}, 'epilogue'),
    (
      {'D': d, 'G': fields(g, SYNTHESIS, conv_clamp=3)},
      '^G has clamp=3.0, and the generator has 0.0$',
    ),
  ):
    with pytest.raises(ValueError, match=says):
      read.of_nets({'G_ema': g} | nets)


def test_what_a_file_lacks_is_computed_and_said():
  net = torch_nets('skip')[0]['G_ema']
  given = read.of_nets({'G': net})
  found = read.of_nets(
    {'G': without(without(net, 'mapping.w_avg'), 'synthesis.b8.conv0.noise_const')}
  )
  assert 'no G_ema: g_ema is a copy' in found.report['initialised']['(G_ema)']
  assert {'w_avg', 'noise.synthesis.b8.conv0.noise_const'} < set(found.report['initialised'])
  assert found.state['noise']['synthesis']['b8']['conv0']['noise_const'].shape == (8, 8)
  ws = sampler.sample_ws(sampler.from_state(ROOT, given.config, given.state), 10_000, 7)
  assert np.abs(found.state['w_avg'] - ws[:, 0].mean(0)).max() < 0.1 * ws.std()


def test_numbers_become_float32_and_must_be_finite(tmp_path):
  net = torch_nets('skip')[0]['G_ema']
  half = other(net, 'mapping.fc0.bias', np.float16)
  file = tmp_path / 'network.pkl'
  file.write_bytes(dumps({'G_ema': module('Generator', half.arrays, half.kwargs)}))
  found = read.read_network(file)
  assert {x.dtype for x in jax.tree.leaves(found.state)} == {
    np.dtype(np.float32),
    np.dtype(np.int32),
  }
  assert found.report['notes'] == ['float16 became float32']
  for change, says in (
    (lambda x: x * np.nan, 'mapping.fc0.bias holds NaN'),
    (lambda x: x.astype(int), 'no float'),
  ):
    odd = other(net, 'mapping.fc0.bias', change)
    file.write_bytes(dumps({'G_ema': module('Generator', odd.arrays, odd.kwargs)}))
    with pytest.raises(WeightsError, match=says):
      read.read_network(file)


# ---- rosinality


def test_files_of_rosinality_are_the_same_networks(tmp_path):
  nets, _, _ = torch_nets('skip', 'resnet')
  expected = read.of_nets(nets)
  g = rosinality_g(nets['G_ema'].arrays)
  d = rosinality_d(nets['D'].arrays)
  file, latent = tmp_path / 'network.pt', g.pop('latent_avg')
  file.write_bytes(save_zip({'g_ema': stored(g), 'd': stored(d), 'latent_avg': Tensor(latent)}))
  found = read.read_network(file)
  same(found.state, expected.state)
  assert found.config == expected.config
  net = Net('rosinality', '', {}, g)
  for name, change in (
    ('convs.0.conv.blur.kernel', lambda x: x / 4),
    ('to_rgbs.0.upsample.kernel', lambda x: x[:3]),
  ):
    with pytest.raises(ValueError, match=f'{name} is not the filter'):
      read.of_nets({'G_ema': other(net, name, change)})
  for name in ('convs.0.conv.magic', 'convs.999999999.conv.weight', 'style.0.weight'):
    with pytest.raises(ValueError, match=f'{name}.* is not understood'):
      read.of_nets({'G_ema': net._replace(arrays=g | {name: np.zeros(3)})})


# ---- TensorFlow


@pytest.mark.parametrize(
  'g, d, lods',
  [('orig', None, False), ('orig', None, True), ('resnet', 'resnet', False), ('skip', None, False)],
)
def test_tensorflow_networks_of_all_architectures_are_those_of_pytorch(g, d, lods):
  nets, _, _ = torch_nets(g, d)
  expected = read.of_nets(nets)
  theirs = {
    'G_ema': Net(
      'tensorflow', 'G_synthesis_stylegan2', {}, tensorflow(nets['G_ema'].arrays, 'G', lods)
    )
  }
  if lods:
    theirs['G_ema'].arrays['ToRGB_lod1/bias'] = np.zeros(3)
  if d:
    theirs['D'] = Net('tensorflow', 'D_stylegan2', {}, tensorflow(nets['D'].arrays, 'D'))
  found = read.of_nets(theirs)
  for part in ('d', 'noise', 'w_avg'):
    same(found.state[part], expected.state[part])
  for x, y in zip(jax.tree.leaves(found.state['g']), jax.tree.leaves(expected.state['g'])):
    assert np.abs(x - y).max() <= 2e-7 * max(1, np.abs(y).max())  # mod_bias lost bits above
  assert found.config['g'] == expected.config['g']
  assert ('ToRGB_lod1/bias' in found.report['unused']['G_ema']) == lods


GROWING = [
  ('stylegan1_generator', 'G_style', 'r32', 'stylegan1_discriminator r32_n3'),
  (
    'revised_generator',
    'G_synthesis_stylegan_revised',
    'cond_r16',
    'growing_discriminator cond_nf2_r16',
  ),
  ('stylegan1_generator', '', 'fused_scale_r16', ''),
  ('revised_generator', 'G_main', 'cond_r16', ''),
  ('revised_generator', 'G_main', 'r16_fmapmin', ''),
]


def growing_nets(g, kind, sub, d):
  """{name: Net} of a row of GROWING, the vectors of G, and config and vectors of D or None."""
  config, arrays = vectors(g, sub)
  variables = under(arrays, 'tf/G/') | {'lod': np.float32(0)}
  nets = {'G_ema': Net('tensorflow', kind, config['static_kwargs'], variables)}
  if not d:
    return nets, arrays, None, None
  config, more = vectors(*d.split())
  d = Net('tensorflow', config['network'], config['static_kwargs'], under(more, 'tf/D/'))
  return nets | {'D': d}, arrays, config, more


@pytest.mark.parametrize('g, kind, sub, d', GROWING)
def test_configs_a_to_d(g, kind, sub, d):
  """Those that the reference's cases check."""
  nets, arrays, of_d, _ = growing_nets(g, kind, sub, d)

  def networks_of(reader, config):
    return reader(Config(dict(config['static_kwargs'])), config['network'])

  expected, border = networks_of(cases_growing.read_generator, vectors(g, sub)[0])
  found = read.of_nets(nets)
  if expected.mapping.num_layers == 1:
    variant = dataclasses.replace(expected.mapping.variant, layer_features=0)
    parts = (expected.mapping, expected.synthesis)
    expected = Generator(*(part.clone(variant=variant) for part in parts))
  assert network_of(found, 0) == expected
  same(
    (found.state['g_ema'], found.state['noise'], found.state['w_avg']),
    border.load(under(arrays, 'tf/G/')),
  )
  if d:
    expected, border = networks_of(cases_growing.read_discriminator, of_d)
    # of labels, which these have no network for
    variant = dataclasses.replace(expected.variant, mapping_lr_mul=0.1)
    assert network_of(found, 1) == expected.clone(mapping_layers=0, variant=variant)
    same(found.state['d'], border.load(nets['D'].arrays)[0])
  with pytest.raises(ValueError, match='still growing'):
    read.of_nets({'G_ema': other(nets['G_ema'], 'lod', lambda x: x + 0.5)})


def test_feature_maps_that_are_held_up_by_fmap_min_do_not_say_fmap_base():
  config, arrays = vectors('revised_generator', 'r16_fmapmin')
  kwargs = {key: value for key, value in config['static_kwargs'].items() if key != 'fmap_base'}
  found = read.of_nets({'G_ema': Net('tensorflow', '', kwargs, under(arrays, 'tf/G/'))}).config
  assert all(
    (found[net]['fmap_base'], found[net]['fmap_max'], found[net]['variant']['fmap_min'])
    == (48, 16, 10)
    for net in 'gd'
  )


@pytest.mark.slow
@pytest.mark.parametrize('g, kind, sub, d', GROWING)
def test_configs_a_to_d_make_the_references_images(g, kind, sub, d):
  nets, arrays, _, more = growing_nets(g, kind, sub, d)
  found = read.of_nets(nets)
  close(images(found, arrays['z'], arrays.get('c')), nhwc(arrays['images/lod0']))
  if d:
    close(logits(found, more['images'], more.get('c')), more['logits/lod0'])
  fixed = {name: x for name, x in nets['G_ema'].arrays.items() if not re.search('_lod[1-9]', name)}
  found = read.of_nets({'G_ema': nets['G_ema']._replace(arrays=fixed)})
  close(images(found, arrays['z'], arrays.get('c')), nhwc(arrays['images/lod0']))
  assert any('zeros' in text for text in found.report['initialised'].values())


@pytest.mark.parametrize(
  'fields_, says',
  [
    ({'mapping_nonlinearity': 'relu'}, 'mapping_nonlinearity=relu'),
    ({'normalize_latents': False}, 'normalize_latents=False'),
    ({'resample_kernel': [[1]]}, 'resample_kernel=[[1]]: networks here have a filter'),
    ({'resample_kernel': None}, 'resample_kernel=None'),
    ({'blur_filter': None}, 'blur_filter=None'),
    ({'fmap_min': 30}, 'fmap_max), 30)'),
    ({'latent_size': 7}, 'z_dim=7'),
    ({'spectral': True}, 'spectral=True is not known'),
    ({'label_size': 3}, 'c_dim=3'),
  ],
)
def test_tensorflow_arguments(fields_, says):
  config, arrays = vectors('tf_checkpoint_import', 'skipG_resnetD')
  net = Net('tensorflow', '', config['generator_static_kwargs'] | fields_, under(arrays, 'tf/G/'))
  with pytest.raises(ValueError, match=re.escape(says)):
    read.of_nets({'G': net})


def test_harmless_differences_of_tensorflow_networks():
  """Arguments that are as if they weren't there, and a noise strength that is an array of one
  number.
  """
  config, arrays = vectors('tf_checkpoint_import', 'skipG_resnetD')
  g = Net('tensorflow', '', config['generator_static_kwargs'], under(arrays, 'tf/G/'))
  d = Net('tensorflow', '', config['discriminator_static_kwargs'], under(arrays, 'tf/D/'))
  expected = read.of_nets({'G': g, 'D': d})
  one = {k: x.reshape(1) if k.endswith('noise_strength') else x for k, x in g.arrays.items()}
  more = {'score_max': 1, 'use_spectral_norm': False, 'adaptive_dropout': 0}
  found = read.of_nets({'G': g._replace(arrays=one), 'D': fields(d, **more)})
  same(found.state, expected.state)
  assert found.config == expected.config
  for name in more:
    with pytest.raises(ValueError, match=f'{name}=3: networks here have'):
      read.of_nets({'G': g, 'D': fields(d, **{name: 3})})


def test_labels_of_old_stylegan2_are_refused():
  _, arrays = vectors('tf_checkpoint_import', 'skipG_resnetD')
  net = Net(
    'tensorflow', '', {}, under(arrays, 'tf/G/') | {'mapping/LabelConcat/weight': np.zeros((2, 20))}
  )
  with pytest.raises(ValueError, match='LabelConcat'):
    read.of_nets({'G': net})


# ---- the tool


def tool(module, **values):
  """Runs a tool with these flags in this process."""
  call(module, *[f'--{name}={value}' for name, value in values.items()])


def test_tool(tmp_path, capsys):
  """A pickle of stylegan2 becomes a run, whole and certified."""
  data, arrays = tensorflow_file()
  file, dest = tmp_path / 'stylegan2.pkl', tmp_path / 'deep' / 'run'
  file.write_bytes(data)
  tool(convert, source=file, dest=dest)
  out = capsys.readouterr().out
  notes = [line.partition(' is ')[0] for line in out.splitlines() if 'psi' in line]
  assert str(dest) in out
  assert notes == ['  G_ema: truncation_psi=0.5', '  G: truncation_psi=0.5']
  files = sorted(p.name for p in dest.iterdir())
  assert files == ['checkpoints', 'config.json', 'import.json', 'test.png']
  assert [p.name for p in dest.parent.iterdir()] == ['run']
  certificate = json.loads((dest / 'import.json').read_text())
  net = sampler.load(dest)
  assert certificate['network_sha256'] == net.hash()
  assert certificate['test_image']['shape'] == [32, 32, 3]
  assert certificate['shapes']['d.b4.fc.weight'] == [320, 20] and certificate['initialised'] == {}
  made = images(read.Imported(net.config.to_dict(), checkpoint.load(dest)[0], {}), arrays['z'])
  close(made, nhwc(arrays['img_const']))
  with pytest.raises(UsageError, match='imported and names no data set'):
    reals.load(net)
  with pytest.raises(UsageError, match='holds something'):
    tool(convert, source=file, dest=dest)
  with pytest.raises(UsageError, match='--source is missing'):
    tool(convert, source='', dest=tmp_path / 'other')
  with pytest.raises(WriteError, match='cannot write|could not be written'):
    tool(convert, source=file, dest='/proc/run')
  file.write_bytes(data[:-100])
  with pytest.raises(WeightsError, match='is refused'):
    tool(convert, source=file, dest=tmp_path / 'other')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['deep', 'stylegan2.pkl']


def test_files_that_are_none(tmp_path):
  file = tmp_path / 'network.pkl'
  with pytest.raises(WeightsError, match=f'cannot read {file}'):
    read.read_network(file)
  for data, says in (
    (dumps({'D': None}), 'no network'),
    (
      dumps({'D': module('Discriminator', {'b4.out.bias': np.zeros(1, np.float32)}, {})}),
      'no generator',
    ),
    (
      dumps({'G': module('Generator', {'a.weight': np.zeros(1, np.float32)}, {})}),
      'not the layers',
    ),
  ):
    file.write_bytes(data)
    with pytest.raises(WeightsError, match=says):
      read.read_network(file)
