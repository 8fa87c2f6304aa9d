"""Exports are read back bit for bit, and the StableHLO module runs without this package."""

import hashlib
import json
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from configs import custom, default
from sg2jax import build, checks, configurations, sampler
from sg2jax import state as state_lib
from sg2jax.data.labels import Labels
from sg2jax.faults import UsageError, WeightsError
from sg2jax.interop import arguments, names, read, write
from sg2jax.tools import convert, export
from sg2jax.tools.export import destination
from sg2jax.training import checkpoint
from tests.runs import ROOT, write_run
from tests.test_convert import same, tool

pytestmark = pytest.mark.usefixtures('quick_compile')
TINY = {
  'resolution': 16,
  'batch': 8,
  'data.dir': 'somewhere',
  'data.channels': 1,
  'g.fmap_base': 48,
  'd.fmap_base': 48,
  'g.fmap_max': 12,
  'd.fmap_max': 10,
  'g.z_dim': 6,
  'g.w_dim': 8,
  'g.mapping_layers': 2,
  'd.mapping_layers': 1,
}
NETWORKS = {  # fields of the configuration and c_dim
  'skip': ({}, 0),
  'resnet with labels': (
    {
      'g.architecture': 'resnet',
      'g.variant.layer_features': 5,
      'g.variant.embed_features': 3,
      'd.variant.cmap_dim': 4,
      'd.mapping_layers': 2,
      'd.variant.embed_features': 5,
      'd.variant.layer_features': 7,
      'd.variant.mapping_lr_mul': 0.1,
      'd.architecture': 'skip',
      'd.mbstd_group_size': arguments.WHOLE_BATCH,
      'd.clamp': 2.5,
      'g.num_bf16_res': 1,
      'd.variant.activation': 'relu',
    },
    3,
  ),
  'oblong': (
    {
      'resolution': (12, 20),
      'g.variant.taps': (1, 2, 1),
      'd.variant.taps': (1, 4, 6, 4, 1),
      'g.noise': False,
      'g.variant.activation': 'swish',
      'data.channels': 3,
      'd.architecture': 'orig',
      'd.variant.mbstd_num_channels': 0,
      'g.clamp': 3.0,
    },
    0,
  ),
  'growing': (
    {
      'g.architecture': 'revised',
      'g.variant.fmap_min': 9,
      'd.variant.fmap_min': 7,
      'd.architecture': 'stylegan1',
      'grow.start_res': 8,
    },
    2,
  ),
  'msg': ({'g.architecture': 'msg', 'd.architecture': 'msg'}, 0),
}


def random_state(config, c_dim):
  """A state as a dict of random numbers."""
  nothing = optax.identity()
  shapes = jax.eval_shape(
    lambda key: state_lib.create_train_state(key, *build.networks(config, c_dim), nothing, nothing),
    jax.random.key(0),
  )
  draws = np.random.RandomState(0)
  state = jax.tree.map(lambda x: np.asarray(draws.randn(*x.shape), np.float32), shapes)
  return {name: getattr(state, name) for name in names.FIELDS}


def fresh(name, nimg=0):
  """(state as a dict of random numbers, configuration as of a run's config.json)."""
  fields, c_dim = NETWORKS[name]
  config = default.get_config()
  config.update_from_flattened_dict(TINY | fields)
  checks.check(config)
  state = random_state(config, c_dim) | {'step': np.int32(7), 'nimg': np.int32(nimg)}
  return state, json.loads(json.dumps(config.to_dict() | {'c_dim': c_dim}))


def written(folder, name, data, document):
  """The file, and its JSON, as the tool writes them."""
  path = folder / name
  path.write_bytes(data)
  path.with_name(f'{path.name}.json').write_text(
    json.dumps(document | {'sha256': hashlib.sha256(data).hexdigest()})
  )
  return path


@pytest.mark.parametrize('name', NETWORKS)
def test_safetensors_are_read_back_bit_for_bit(name, tmp_path):
  state, config = fresh(name, nimg=100)
  found = read.read_network(
    written(tmp_path, 'net.safetensors', *write.write_safetensors(state, config))
  )
  same(found.state, state)
  assert found.config == config and not found.report['initialised']
  if name == 'growing':
    assert [net['b16']['conv1']['bias'].shape for net in (state['g']['synthesis'], state['d'])] == [
      (9,),
      (10,),
    ]
    assert state['d']['b16']['conv0']['bias'].shape == (7,)
  assert (
    sampler.from_state(tmp_path, found.config, found.state).hash()
    == sampler.from_state(tmp_path, config, state).hash()
  )


@pytest.mark.parametrize('name', ['skip', 'resnet with labels', 'oblong'])
def test_nvidias_names_are_read_back_bit_for_bit(name, tmp_path):
  state, config = fresh(name)
  data, document = write.write_nvidia(state, config)
  found = read.read_network(written(tmp_path, 'net.npz', data, document))
  for part in ('g', 'd', 'g_ema', 'noise', 'w_avg'):
    same(found.state[part], state[part])
  whole = [configurations.complete(found.config), configurations.complete(config)]
  pairs = zip(*(build.networks(c, c.c_dim) for c in whole))
  for i, (ours, theirs) in enumerate(pairs):
    low = dict(num_bf16_res=0)  # a precision, which an import doesn't take over
    if i and not config['c_dim']:
      low |= dict(mapping_layers=0)  # there is no such network
    assert ours == (
      theirs.clone(**low) if i else theirs.clone(synthesis=theirs.synthesis.clone(**low))
    )
  assert document['networks']['D']['cmap_dim'] == config['d']['variant'].get('cmap_dim')
  for field in ('embed_features', 'layer_features'):
    for net in 'GD':
      theirs = document['networks'][net]['mapping_kwargs']
      assert theirs[field] == config[net.lower()]['variant'].get(field)
  arrays = np.load(tmp_path / 'net.npz')
  if name == 'oblong':
    assert arrays['G.synthesis.b5.const'].shape == (12, 3, 5)
    assert arrays['D.b10.conv1.resample_filter'].shape == (5, 5) and arrays[
      'D.b10.conv0.resample_filter'
    ].shape == (4, 4)


def test_names_and_filters_are_those_of_the_reference():
  """Of the vectors' state dicts, which are stylegan2-ada-pytorch's."""
  for case, letter in (('generator', 'G'), ('discriminator', 'D')):
    data = np.load(ROOT / 'tests' / 'reference' / f'{case}.npz')
    for sub, taps in (
      ('skip', (1, 3, 3, 1)),
      ('orig', (1, 3, 3, 1)),
      ('resnet', (1, 3, 3, 1)),
      ('skip_cond_gray_121' if letter == 'G' else 'resnet_no_mbstd_121', (1, 2, 1)),
    ):
      theirs = {
        key.removeprefix(f'{sub}/{letter}/'): data[key]
        for key in data.files
        if key.startswith(f'{sub}/{letter}/')
      }
      params, noise, w_avg = names.from_pytorch(
        {k: v for k, v in theirs.items() if 'resample' not in k}
      )
      ours = (
        names.to_pytorch(params) | names.to_pytorch(noise) | names.filters(params, taps, letter)
      )
      ours |= {} if w_avg is None else {'mapping.w_avg': w_avg}
      same(dict(sorted(ours.items())), dict(sorted(theirs.items())))


def test_nvidia_has_no_growing_networks_and_no_least_width():
  with pytest.raises(UsageError, match='no g.architecture=revised .*; use --format=safetensors'):
    write.write_nvidia(*fresh('growing'))
  state, config = fresh('skip')
  with pytest.raises(UsageError, match='with fmap_min=9; use --format=safetensors'):
    write.write_nvidia(state, config | {'d': config['d'] | {'variant': {'fmap_min': 9}}})


def test_exports_without_their_json_or_changed_are_refused(tmp_path):
  state, config = fresh('skip')
  data, document = write.write_safetensors(state, config)
  path = written(tmp_path, 'net.safetensors', data, document)
  beside = path.with_name(f'{path.name}.json')
  text = beside.read_text()

  def refused(says, content=None):
    if content is not None:
      beside.write_text(content)
    with pytest.raises(WeightsError, match=says):
      read.read_network(path)
    beside.write_text(text)

  path.write_bytes(data[:-1] + b'?')
  refused('belongs to another file')
  path.write_bytes(data)
  for change, says in (
    ({'resolution': 32}, 'is missing'),
    ({'g': 3}, 'malformed'),
    ({'c_dim': 'x'}, 'refused'),
    ({'g': config['g'] | {'mapping_layers': 10**9}}, 'more than 64 layers'),
    ({'g': config['g'] | {'variant': {'taps': [1] * 10**5}}}, 'taps'),
  ):
    refused(says, json.dumps(json.loads(text) | {'config': config | change}))
  refused('malformed', '{}')
  refused('refused', '[')
  more = read.safetensors.save(read.safetensors.load(data) | {'h.x': np.zeros(2)})
  path = written(tmp_path, 'more.safetensors', more, document)
  beside, text = (
    path.with_name(f'{path.name}.json'),
    path.with_name(f'{path.name}.json').read_text(),
  )
  refused("'h'.* and should hold")
  beside.unlink()
  with pytest.raises(WeightsError, match='it needs more.safetensors.json'):
    read.read_network(path)


def saved(tmp_path, name, nimg=0):
  """A run of a network that nobody trained."""
  state, config = fresh(name, nimg)
  return sampler.load(
    write_run(tmp_path / 'run', config, state_lib.TrainState(**state, g_opt={}, d_opt={}))
  ), state


SCRIPT = """
import sys
import jax
from jax import export
import numpy as np
net = export.deserialize(open(sys.argv[1], 'rb').read())
given = np.load(sys.argv[2])
np.save(sys.argv[3], net.call(*(given[name] for name in given.files)))
heavy = {'sg2jax', 'flax', 'optax', 'orbax', 'safetensors', 'ml_collections'}
assert not {name.split('.')[0] for name in sys.modules} & heavy
"""


@pytest.mark.parametrize(
  'name, nimg',
  [('resnet with labels', 0), pytest.param('growing', 700_000, marks=pytest.mark.slow)],
)
def test_stablehlo_runs_in_a_process_that_imports_only_jax(name, nimg, tmp_path):
  """A network with labels, and one that is just fading in its last resolution."""
  net, _ = saved(tmp_path, name, nimg)
  net = net._replace(
    generator=net.generator.clone(synthesis=net.generator.synthesis.clone(num_bf16_res=0))
  )
  data, document = write.write_stablehlo(net)
  (tmp_path / 'net.stablehlo').write_bytes(data)
  z, c, psi = (
    net.z(range(5)),
    np.eye(net.config.c_dim, dtype=np.float32)[[0, 1, 1, 0, 1]],
    np.float32(0.7),
  )
  np.savez(tmp_path / 'given.npz', z=z, c=c, psi=psi)
  command = [
    sys.executable,
    '-c',
    SCRIPT,
    *(str(tmp_path / name) for name in ('net.stablehlo', 'given.npz', 'images.npy')),
  ]
  subprocess.run(command, cwd=tmp_path, check=True)
  ours = jax.jit(
    lambda v, z: net.generator.apply(v, z, c, net.w_avg, psi, None, 'const', **net.growing)
  )(net.variables, z)
  theirs = np.load(tmp_path / 'images.npy')
  assert (
    theirs.dtype == np.float32
    and theirs.shape == (5, 16, 16, 1)
    and document['result'] == ['N', '16', '16', '1']
  )
  assert np.abs(theirs - ours).max() < 1e-5 * max(1, np.abs(ours).max()) and theirs.std() > 0
  assert bool(net.growing) == (name == 'growing') and (not nimg or 0 < net.growing['alpha'] < 1)


def test_tools(tmp_path, capsys):
  """From a run to a file and back to a run; nothing is overwritten."""
  net, state = saved(tmp_path, 'growing')
  given = dict(checkpoint=net.workdir, dest=tmp_path, format='safetensors')
  tool(export, **given)
  assert f'{tmp_path}/run.safetensors' in capsys.readouterr().out
  with pytest.raises(UsageError, match='is there already'):
    tool(export, **given)
  tool(convert, source=tmp_path / 'run.safetensors', dest=tmp_path / 'back')
  assert [p.name for p in (tmp_path / 'back' / 'checkpoints').iterdir()] == ['7']
  found, _ = checkpoint.load(tmp_path / 'back')
  same({name: found[name] for name in names.FIELDS}, state)
  assert sampler.load(tmp_path / 'back').hash() == net.hash()


@pytest.mark.parametrize('name', ['e.safetensors', pytest.param('e.npz', marks=pytest.mark.slow)])
def test_labels_come_along(name, tmp_path):
  """So that a copy draws the same label from a seed, and has the names."""
  net, _ = saved(tmp_path, 'resnet with labels')
  workdir = net.workdir
  labels = Labels.of_classes(('cat', 'dog', 'bird'), (9, 0, 1))
  (workdir / 'labels.json').write_text(labels.to_json())
  form = 'nvidia' if name.endswith('npz') else 'safetensors'
  tool(export, checkpoint=workdir, dest=tmp_path / name, format=form)
  tool(convert, source=tmp_path / name, dest=tmp_path / 'copy')
  copy = sampler.load(tmp_path / 'copy')
  assert copy.labels.names == labels.names and copy.labels.counts.tolist() == [9, 1]
  np.testing.assert_array_equal(copy.c(range(50)), sampler.load(workdir).c(range(50)))
  beside = tmp_path / f'{name}.json'
  for old, new, said in (
    (
      '"c_dim": 3, "values": [0, 2]',
      '"c_dim": 3, "values": [0, 7]',
      'classes and counts are whole numbers',
    ),
    ('"one_hot": true, ', '', 'is malformed'),
  ):
    assert old in (text := json.dumps(json.loads(beside.read_text())))
    (tmp_path / f'{name}.json').write_text(text.replace(old, new, 1))
    with pytest.raises(WeightsError, match=said):
      tool(convert, source=tmp_path / name, dest=tmp_path / 'other')
    beside.write_text(text)
  assert not (tmp_path / 'other').exists()


def test_destination(tmp_path):
  with pytest.raises(UsageError, match='must end in .npz'):
    destination(str(tmp_path / 'x.pt'), 'run', '.npz')
  assert destination(str(tmp_path), 'run', '.npz') == tmp_path / 'run.npz'
  assert destination(f'{tmp_path}/new/', 'run', '.npz') == tmp_path / 'new' / 'run.npz'


@pytest.mark.slow
def test_a_network_of_config_f_at_full_width(tmp_path):
  """Its module has its 30 million weights within."""
  config = custom.get_config('64')
  config.data.dir = 'somewhere'
  state = random_state(config, 0)
  net = sampler.from_state(tmp_path, config.to_dict() | {'c_dim': 0}, state)
  data, _ = write.write_stablehlo(net)
  images = jax.export.deserialize(bytearray(data)).call(net.z([0]), np.float32(1))
  ours = net.generator.apply(net.variables, net.z([0]), np.zeros((1, 0)), noise_mode='const')
  assert np.abs(images - ours).max() < 1e-5 * np.abs(ours).max()
