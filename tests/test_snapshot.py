"""Snapshots: never more images at once than training, grids that a viewer can show, and nothing
kept that isn't needed.
"""

import re
import types

import jax
from jax.extend import core
import numpy as np
import pytest

from configs import custom, default
from sg2jax import build, checks, sharding
from sg2jax.training import snapshot
from sg2jax.training.snapshot import Snapshot


class Source:
  """A data set of `count` grey images of a shape, or of none at all."""

  def __init__(self, shape, count=90):
    self.shape, self.count, self.c_dim, self.labels = shape, count, 0, None
    self.stored, self.held_out = shape, None

  def __len__(self):
    return self.count

  def __getitem__(self, i):
    return {'image': np.full(self.shape, i, np.uint8), 'label': np.zeros(0, np.float32)}


class Log:
  def __init__(self):
    self.grids = {}
    self.distributions = {}

  def histograms(self, values, step):
    self.distributions[step] = values

  def images(self, name, images, step, cols):
    self.grids[name] = images, step, cols


def config_of(**fields):
  config = default.get_config()
  config.update_from_flattened_dict({'data.dir': '-', 'swd_images': 0} | fields)
  return config


def made(config, source, devices=1):
  mesh = types.SimpleNamespace(size=devices)
  if devices == 1:
    mesh = sharding.make_mesh(jax.devices()[:1])
  return Snapshot('-', config, source, mesh, Log(), ())


@pytest.mark.parametrize(
  'fields, devices, at_once',
  [
    ({'resolution': 1024, 'batch': 4}, 1, 4),
    ({'resolution': 1024, 'batch': 32}, 1, 4),
    ({'resolution': 1024, 'batch': 32}, 8, 32),
    ({'resolution': 1024, 'batch': 8}, 8, 8),
    ({'resolution': 2048, 'batch': 32}, 1, 1),
    ({'resolution': 4096, 'batch': 8}, 8, 8),
    ({'resolution': 256, 'batch': 64}, 1, 32),
    ({'resolution': 256, 'batch': 64}, 8, 64),
    ({'resolution': 256, 'batch': 64, 'microbatch': 8}, 1, 8),
    ({'resolution': 256, 'batch': 64, 'microbatch': 8}, 4, 8),
    ({'resolution': (512, 1024), 'batch': 32}, 1, 8),
    ({'resolution': 32, 'batch': 256}, 2, 64),
    (
      {
        'resolution': 64,
        'batch': 32,
        'grow.start_res': 8,
        'grow.batch': ((8, 128), (64, 4)),
        'g.architecture': 'revised',
        'd.architecture': 'revised',
      },
      2,
      4,
    ),
  ],
)
def test_never_more_images_at_once_than_pixels_and_training_allow(fields, devices, at_once):
  config = config_of(**fields)
  checks.check(config)
  assert made(config, Source((*build.resolution(config), 1)), devices).batch == at_once


@pytest.mark.parametrize(
  'size, count, shown, latents, reals',
  [
    ((64, 64), 90, (64, 8), 64, (64, 8)),
    ((1024, 1024), 90, (16, 4), 16, (16, 4)),
    ((512, 1024), 90, (32, 4), 32, (32, 4)),
    ((4096, 4096), 90, (1, 1), 1, (1, 1)),
    ((64, 64), 5, (64, 8), 64, (5, 5)),
    ((64, 64), 1, (64, 8), 64, (1, 1)),
  ],
)
def test_grids_have_the_images_that_fit_and_no_others_are_made(size, count, shown, latents, reals):
  config = config_of(resolution=size, batch=4)
  snap = made(config, Source((*size, 1), count))
  black = lambda z: np.zeros((len(z), *size, 1), np.uint8)
  snap.sample = lambda state, z, c: (black(z[0]), {}, z[0])
  metrics = snap.take(types.SimpleNamespace(pl_mean=np.float32(0), nimg=7000, step=3))
  # of black samples; of one real image nothing can be said
  assert metrics == ({'diversity': 0} if reals[0] > 1 else {})
  images, step, cols = snap.log.grids['fakes_000007']
  assert ((len(images), cols), step, len(snap.z)) == (shown, 3, latents)
  assert snap.log.distributions[3]['w/components'].shape == (latents, 512)
  snap.write_reals('reals', 0)
  images, step, cols = snap.log.grids['reals']
  assert ((len(images), cols), step) == (reals, 0)


def test_more_images_for_swd_are_made_but_not_kept():
  made_at = []
  config = config_of(resolution=1024, batch=8, swd_images=80)
  snap = made(config, Source((1024, 1024, 1)))

  def sample(state, z, c):
    made_at.append(len(z[0]))
    return np.zeros((len(z[0]), 1024, 1024, 1), np.uint8), {}, z[0]

  snap.sample = sample
  metrics = snap.take(types.SimpleNamespace(pl_mean=np.float32(0), nimg=0, step=0), last=True)
  assert made_at == [4] * 20 and 'swd' in metrics
  assert len(snap.log.grids['fakes_000000'][0]) == 16
  # of the latents that are shown
  np.testing.assert_allclose(snap.log.distributions[0]['w/components'], snap.z[:16], rtol=1e-6)


def test_histograms_tell_a_mapping_that_makes_one_w_of_all():
  w = np.random.default_rng(0).normal(size=(64, 32))
  found = snapshot.histograms(w)
  assert found['w/components'].shape == (64, 32)
  np.testing.assert_allclose(found['w/distance'], np.std(w, 0).mean(), rtol=0.5)
  collapsed = snapshot.histograms(np.tile(w[:1], (64, 1)))
  assert collapsed['w/components'].std() > 0.5 and collapsed['w/distance'].max() < 1e-6


def largest(jaxpr):
  """(bytes, shape) of the largest array that a jaxpr makes, at any depth."""
  found = (0, ())
  for eqn in jaxpr.eqns:
    for var in eqn.outvars:
      if hasattr(var.aval, 'shape'):
        found = max(found, (var.aval.size * var.aval.dtype.itemsize, var.aval.shape))
    for inner in core.jaxprs_in_params(eqn.params):
      found = max(found, largest(inner))
  return found


def programs(config, batch=None):
  """The generator's step and a snapshot of a configuration, with the arguments of each. batch: of
  the snapshot, instead.
  """
  mesh = sharding.make_mesh(jax.devices()[:1])
  steps, shape = build.steps(config, 0, mesh), (*build.resolution(config), 3)
  state = jax.eval_shape(lambda: build.init_state(config, steps, None))
  snap = Snapshot('-', config, Source(shape), mesh, Log(), ())
  snap.compile_sampler(steps)
  array = jax.ShapeDtypeStruct
  images = {
    'image': array((1, config.batch, *shape), np.uint8),
    'label': array((1, config.batch, 0), np.float32),
  }
  latents = [array((1, batch or snap.batch, n), np.float32) for n in (config.g.z_dim, 0)]
  return (jax.jit(steps.g), (jax.eval_shape(lambda: jax.random.key(0)), state, images)), (
    snap.sample,
    (state, *latents),
  )


@pytest.mark.parametrize('architecture', ['skip', 'resnet'])
def test_the_first_snapshot_needs_no_larger_array_than_training(monkeypatch, architecture):
  """As custom.py:1024 with its 4 images at 4 Mpx, here with 4 at 64 px."""
  config = custom.get_config('64')
  config.update_from_flattened_dict(
    {
      'batch': 4,
      'data.dir': '-',
      'g.architecture': architecture,
      'g.fmap_base': 512,
      'd.fmap_base': 512,
    }
  )
  step, sample = programs(config)
  most = largest(jax.make_jaxpr(step[0])(*step[1]).jaxpr)
  assert largest(jax.make_jaxpr(sample[0])(*sample[1]).jaxpr) <= most
  too_many = programs(config, 32)[1]
  assert largest(jax.make_jaxpr(too_many[0])(*too_many[1]).jaxpr) > most
  monkeypatch.setattr(snapshot, 'images_at_once', lambda shape: 2)
  assert programs(config)[1][1][1].shape[1] == 2


@pytest.mark.slow
def test_the_first_snapshot_of_custom_1024_by_compiled_memory():
  """Compiled, not run: the largest array of the optimized programs, and their temporary memory."""
  config = custom.get_config('1024')
  config.data.dir = '-'
  assert config.batch == 4
  found = []
  for program, arguments in programs(config):
    compiled = program.lower(*arguments).compile()
    size = {'f32': 4, 'bf16': 2, 'u8': 1, 's32': 4, 'u32': 4, 'pred': 1, 'f64': 8}
    shapes = re.findall(r'= (\w+)\[([\d,]+)\]', compiled.as_text())
    found.append(
      (
        max(
          (size.get(kind, 8) * np.prod([int(n) for n in dims.split(',')]), kind, dims)
          for kind, dims in shapes
        ),
        compiled.memory_analysis().temp_size_in_bytes,
      )
    )
  print(found)
  (step, step_temp), (sample, sample_temp) = found
  assert sample[0] <= step[0] and sample_temp <= step_temp
