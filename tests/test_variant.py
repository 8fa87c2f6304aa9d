"""The records of fields that only imports set, and runs from before there were records."""

import copy
import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import default
from sg2jax import build, checks, configurations, sampler
from sg2jax.faults import UsageError
from sg2jax.models.variant import DiscriminatorVariant, Variant
from sg2jax.training import workdir
from tests.runs import write_run

SHARED = {
  'activation': 'swish',
  'taps': (1, 2, 1),
  'fmap_min': 6,
  'mapping_lr_mul': 0.5,
  'layer_features': 5,
  'embed_features': 3,
}
FIELDS = {'g': SHARED, 'd': SHARED | {'cmap_dim': 7, 'mbstd_num_channels': 2}}
SMALL = {
  'resolution': 8,
  'data.dir': 'somewhere',
  'g.fmap_base': 16,
  'd.fmap_base': 16,
  'g.z_dim': 4,
  'g.w_dim': 4,
  'g.mapping_layers': 2,
  'd.mapping_layers': 2,
}


def config_of(fields):
  """A small network's configuration, and the same as JSON as versions before wrote it."""
  config = default.get_config()
  config.update_from_flattened_dict(SMALL)
  old = json.loads(json.dumps(config.to_dict()))
  for net, record in (('g', Variant), ('d', DiscriminatorVariant)):
    config[net].variant.update(fields[net])
    del old[net]['variant']
    old[net] |= json.loads(json.dumps(dataclasses.asdict(record()) | fields[net]))
  return config, old


def as_json(config):
  return json.dumps(config.to_dict(), sort_keys=True)


@pytest.mark.smoke
def test_fields_of_older_runs_move_into_the_record():
  assert {net: set(values) for net, values in FIELDS.items()} == {
    'g': {field.name for field in dataclasses.fields(Variant)},
    'd': {field.name for field in dataclasses.fields(DiscriminatorVariant)},
  }
  config, old = config_of(FIELDS)
  before = copy.deepcopy(old)
  found = configurations.complete(old)
  assert as_json(found) == as_json(config) and old == before
  assert configurations.variant(found, 'd') == DiscriminatorVariant(**FIELDS['d'])
  assert build.networks(found, 3) == build.networks(config, 3)
  # what is as in the defaults is left out; younger fields come to what older versions wrote
  config, old = config_of({'g': {}, 'd': {}})
  for net, name in (
    ('g', 'taps'),
    ('d', 'cmap_dim'),
    ('d', 'freeze_layers'),
    ('data', 'allow_change'),
  ):
    del old[net][name]
  # and remat was of all resolutions or none
  old['g']['remat'] = False
  old['d']['remat'] = True
  config.d.remat = 16
  assert as_json(configurations.complete(old)) == as_json(config)


def test_a_run_of_an_older_version_makes_the_same_images_and_goes_on(tmp_path):
  config, old = config_of(FIELDS)
  shapes = jax.eval_shape(lambda: build.init_state(config, build.steps(config, 3, None), None))
  draws = np.random.RandomState(0)
  numbers = jax.tree.map(lambda x: np.asarray(draws.randn(*x.shape), x.dtype), shapes)
  numbers = numbers.replace(step=np.int32(2), nimg=np.int32(64))
  nets = [
    sampler.load(write_run(tmp_path / name, values | {'c_dim': 3}, numbers))
    for name, values in (('old', old), ('new', config.to_dict()))
  ]
  assert nets[0].hash() == nets[1].hash()
  images = [net([1, 2], label=1) for net in nets]
  assert np.array_equal(*images) and images[0].std() > 1
  values = config.to_dict() | {'c_dim': 3}
  assert workdir.check_workdir(values, tmp_path / 'old') == []
  config.d.variant.cmap_dim = 8
  with pytest.raises(UsageError, match='d.variant.cmap_dim: 7 there, 8 here'):
    workdir.check_workdir(config.to_dict(), tmp_path / 'old')
  del config.d.variant['cmap_dim']
  with pytest.raises(UsageError, match='d.variant.cmap_dim: 7 there, 0 here'):
    workdir.check_workdir(config.to_dict(), tmp_path / 'old')


@pytest.mark.parametrize(
  'fields, said',
  [
    ({'g.variant': {'tap': 1}}, 'g.variant: tap is unknown; choose from activation, taps'),
    ({'g.variant.cmap_dim': 1}, 'g.variant: cmap_dim is unknown'),
    ({'d.variant.activation': 'gelu'}, 'd.variant.activation=gelu is unknown'),
    ({'g.variant.taps': (1, -1)}, r'g.variant.taps=\(1, -1\) must be'),
    ({'g.variant.taps': 3}, 'g.variant.taps=3 must be'),
    ({'d.variant.mapping_lr_mul': 0.0}, 'd.variant.mapping_lr_mul=0.0 must be'),
    ({'d.variant.mbstd_num_channels': -1}, 'd.variant.mbstd_num_channels=-1 must be 0'),
    ({'g.taps': (1, 2, 1)}, 'g.taps: it is a field of g.variant'),
    ({'g.variant.fmap_min': 0}, 'g.variant.fmap_min=0 must be 1'),
    ({'d.variant.layer_features': -1}, 'd.variant.layer_features=-1 must be 0'),
    ({'d.variant.embed_features': 3, 'd.mapping_layers': 0}, 'embed_features=3 needs d.mapping_l'),
    ({'d.variant.fmap_min': 9, 'd.variant.mbstd_num_channels': 4}, 'must divide the 9 feature'),
  ],
)
def test_what_no_network_has_is_refused_by_name(fields, said):
  config = default.get_config()
  config.update_from_flattened_dict(SMALL | fields)
  with pytest.raises(UsageError, match=said):
    checks.check(config)


@pytest.mark.parametrize(
  'variant', [{'layer_features': 2.5}, {'fmap_min': True}, {'taps': 4}, {'activation': 3}]
)
def test_fields_are_of_their_types(variant):
  config = default.get_config()
  config.data.dir = '-'
  config.g.variant = variant
  with pytest.raises(UsageError, match=f'g.variant.{next(iter(variant))}=.* must be a '):
    checks.check(config)
