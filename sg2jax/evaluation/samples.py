"""Which images a metric sees: reals by their place in the data set, fakes by their number, the same
whatever the batch.
"""

from concurrent import futures
import functools
from functools import partial
import hashlib
import os

import jax
import jax.numpy as jnp
import numpy as np

from sg2jax import data, sharding
from sg2jax.build import networks
from sg2jax.evaluation import ppl
from sg2jax.evaluation.passes import Pass
from sg2jax.keys import purpose_key
from sg2jax.models.layers import draw_noise
from sg2jax.sampler import Sampler, images_at_once, to_uint8

BLOCK = 256  # latents that are drawn at once
PAIRS = 4  # path lengths that are computed at once, at most


def _pairs(shape):
  """Path lengths of images of `shape` that are computed at once, whatever the batch: they feel the
  last bits of float32.
  """
  return min(PAIRS, max(1, images_at_once(shape) // 2))


def _share(mesh, first, n, size, group=1):
  """Numbers of n images, repeated up to `size` or whole groups on every device, and of these the
  ones of this process.

  So the last batch is as large as the others, and is not compiled for itself.
  """
  size = -(-size // (group * mesh.size)) * group * mesh.size
  numbers = first + np.arange(size) % n
  return np.array_split(numbers, jax.process_count())[jax.process_index()]


def _look(mesh, step, *constant):
  """(n, batch of the host) -> {output: [n,...]}, by a step of `sharding.jit_each` that takes
  (*constant, batch).
  """
  constant = jax.device_put(constant, sharding.replicated(mesh))
  return lambda n, batch: {
    name: x[:n] for name, x in step(*constant, sharding.to_global(mesh, batch)).items()
  }


# The steps are compiled once for equal arguments: training measures again and again.

# ---- reals


def order(source, count, seed):
  """Places in the data set: all, or if there are more than `count` a random subset, ascending. int
  [<=count].
  """
  if count is None or len(source) <= count:
    return np.arange(len(source))
  return np.sort(np.random.default_rng([seed, 2]).permutation(len(source))[:count])


@functools.lru_cache
def _reals_step(mesh, apply, output):
  def step(params, batch):
    with jax.default_matmul_precision('highest'):  # as the fakes
      return {output: apply(params, batch['image'])[output]}

  return sharding.jit_each(step, mesh, 1)


def reals_pass(source, mesh, detector, output, places, moments=False, training=None):
  """The Pass of an output of a detector over reals at `places`: in the data set, or in the order of
  training=(seed, mirror).
  """
  samples = data.stream(source, seed=training[0], mirror=training[1]) if training else source
  digest = hashlib.sha256(np.asarray(places, np.int64).tobytes()).hexdigest()
  about = {
    'images': 'reals',
    'data': source.hash,
    'shape': list(source.shape),
    'count': len(places),
    'places': digest,
    'training': training and {'seed': training[0], 'mirror': training[1]},
    'detector': [detector.name, detector.hash],
    'resize': detector.resize,
    'output': output,
    'moments': moments,
  }
  look = _look(mesh, _reals_step(mesh, detector.apply, output), detector.params)
  pool = futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1))

  def compute(first, n, size):
    numbers = _share(mesh, first, n, size)
    images = list(pool.map(lambda i: samples[int(places[i])]['image'], numbers))
    return look(n, {'image': np.stack(images)[None]})

  return Pass(about, len(places), compute, (output,) if moments else ())


# ---- fakes


def latents(trained, source, seed, numbers, kind=0):
  """What fakes are made of, by their numbers [n]: z and z1 [1,n,z_dim], t in [0,1) [1,n], label
  [1,n,c_dim], and number [1,n].

  Labels are those of random images of the data set, as in NVIDIA's metrics. kind: of the sequence.
  """
  drawn = []
  for block in np.unique(numbers // BLOCK):
    key = np.random.default_rng([seed, kind, int(block)])
    z, z1 = key.standard_normal((2, BLOCK, trained.generator.mapping.z_dim), np.float32)
    drawn.append((z, z1, key.random(BLOCK, np.float32), key.integers(0, len(source), BLOCK)))
  rows = np.searchsorted(np.unique(numbers // BLOCK), numbers // BLOCK) * BLOCK + numbers % BLOCK
  z, z1, t, places = (np.concatenate(parts)[rows][None] for parts in zip(*drawn))
  label = np.stack([source.label(int(i)) for i in places[0]])[None]
  return {'z': z, 'z1': z1, 't': t, 'label': label, 'number': numbers[None].astype(np.int32)}


@functools.lru_cache
def _fakes_step(mesh, generator, growing, seed, looks):
  """looks: (name, apply) of detectors; none: the images themselves."""

  def step(variables, params, batch):
    noise = draw_noise(variables['noise'], _keys(seed, batch['number']))
    with jax.default_matmul_precision('highest'):  # in TF32 the batch would show
      found, images = (
        {},
        to_uint8(
          generator.apply(
            {'params': variables['params'], 'noise': noise},
            batch['z'],
            batch['label'],
            noise_mode='const',
            **dict(growing),
          )
        ),
      )
      if 'attributes' in dict(looks):
        found = {
          'z': batch['z'],
          'w': generator.apply(variables, batch['z'], batch['label'], method='map'),
        }
      for name, apply in looks:
        found |= apply(params[name], images)
    return found if looks else {'image': images}

  return sharding.jit_each(step, mesh, 2)


def _fakes_look(trained, mesh, seed, detectors):
  step = _fakes_step(
    mesh,
    trained.generator,
    tuple(trained.growing.items()),
    seed,
    tuple((d.name, d.apply) for d in detectors),
  )
  return _look(mesh, step, trained.variables, {d.name: d.params for d in detectors})


def fakes_pass(trained: Sampler, source, mesh, detectors, count, seed):
  """The Pass of detectors over `count` fakes: no truncation, noise of its own for each; with
  'attributes' z and w are kept.
  """
  look = _fakes_look(trained, mesh, seed, detectors)
  compute = lambda first, n, size: look(
    n, latents(trained, source, seed, _share(mesh, first, n, size))
  )
  about = _fakes(trained, source, count, seed) | {
    'detectors': sorted([d.name, d.hash, d.resize] for d in detectors)
  }
  return Pass(about, count, compute)


def fake_images(trained: Sampler, source, mesh, seed, numbers):
  """The fakes with these numbers, uint8 [N,H,W,C]."""
  picked = [numbers[i] for i in _share(mesh, 0, len(numbers), len(numbers))]
  drawn = latents(trained, source, seed, np.array(picked))
  return np.asarray(_fakes_look(trained, mesh, seed, ())(len(numbers), drawn)['image'])


@functools.lru_cache
def _ppl_step(mesh, generator, distance, protocol, seed):
  pairs = _pairs(generator.synthesis.resolution)

  def step(variables, params, batch):
    def group(part):
      t = part['t'] if protocol.sampling == 'full' else jnp.zeros_like(part['t'])
      return ppl.distances(
        generator,
        partial(distance, params),
        protocol.space,
        variables,
        part['z'],
        part['z1'],
        t,
        part['label'],
        _keys(seed, part['number']),
        protocol.crop,
      )

    with jax.default_matmul_precision('highest'):
      groups = {name: x.reshape(-1, pairs, *x.shape[1:]) for name, x in batch.items()}
      return {'ppl': jax.lax.map(group, groups).ravel()}

  return sharding.jit_each(step, mesh, 2)


def ppl_pass(trained: Sampler, source, mesh, distance, protocol, seed):
  """The Pass of perceptual path lengths [pairs]; distance: of `detectors.lpips`."""
  config = trained.config.copy_and_resolve_references()
  config.g.num_bf16_res = 0  # a step of 1e-4 is lost in bfloat16
  step = _ppl_step(mesh, networks(config, config.c_dim)[0], distance.apply, protocol, seed)
  look = _look(mesh, step, trained.variables, distance.params)
  pairs = _pairs(trained.generator.synthesis.resolution)
  compute = lambda first, n, size: look(
    n, latents(trained, source, seed, _share(mesh, first, n, size, pairs), kind=1)
  )
  about = _fakes(trained, source, protocol.count, seed) | {
    'ppl': list(protocol[4:]),
    'distance': distance.hash,
  }
  return Pass(about, protocol.count, compute)


def _fakes(trained, source, count, seed):
  return {
    'images': 'fakes',
    'generator': trained.hash(),
    'count': count,
    'seed': seed,
    'labels': source.hash if trained.config.c_dim else None,
  }


def _keys(seed, numbers):
  """One key for each fake, by its number."""
  return jax.vmap(partial(jax.random.fold_in, purpose_key(seed, 'evaluation')))(numbers)
