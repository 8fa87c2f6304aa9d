"""Reference case of the projection: noise penalty, schedules, runs with recorded random numbers."""

import pathlib
import re
import types

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from sg2jax import resample, sampler
from sg2jax.edit import project
from sg2jax.interop.names import from_pytorch, nhwc
from sg2jax.models.sizes import block_sizes
from tests.reference.cases_nets import read_generator
from tests.reference.check import jit

FIXED = {'adam_betas': [0.9, 0.999], 'adam_eps': 1e-8}


def _settings(config):
  return project.Settings(
    steps=config['num_steps'],
    lr=config['initial_learning_rate'],
    noise_weight=config.get('regularize_noise_weight', 1e5),
    lr_rampup=config['lr_rampup_length'],
    lr_rampdown=config['lr_rampdown_length'],
    w_noise=config['initial_noise_factor'],
    w_noise_length=config['noise_ramp_length'],
  )


def _features(config):
  """The feature extractor, on images in [-1,1]: the mean of boxes of pixels in [0,1]."""
  text = config['feature_extractor']
  match = re.fullmatch(
    r'(?:(\d+)x\1 average pooling of the )?(?:image in \[0,255\] \(float\), flattened, / 255|'
    r'flatten\(image in \[0,255\]\) / 255, no resizing)',
    text,
  )
  if not match:
    raise ValueError(f'feature_extractor={text!r} is not understood')
  side = int(match[1] or 1)
  return lambda x: resample.upfirdn2d((x + 1) / 2, np.full((side, side), side**-2), down=side)


def _penalty(given):
  noise = jnp.asarray(given['noise'])[None, :, :, None]
  value, grad = jit(jax.value_and_grad(lambda x: project.noise_penalty(x)[0]))(noise)
  normalized = project.normalized(noise)[0, :, :, 0]
  return {'reg_loss': value, 'grad': grad[0, :, :, 0], 'normalized': normalized}


def _run(sub):
  given = sub.given
  for key, value in FIXED.items():
    sub.config.expect(key, value)
  settings = _settings(sub.config)
  features = _features(sub.config)
  samples = sub.config['w_avg_samples']
  generator, _ = read_generator(sub.config.sub('G'))
  size = block_sizes(generator.synthesis.resolution)[0]
  params, noise, w_avg = from_pytorch(sub.under('G/'), size)
  variables = {'params': params, 'noise': noise}
  config = types.SimpleNamespace(c_dim=generator.mapping.c_dim)
  net = sampler.Sampler(pathlib.Path(), config, 0, 0, generator, variables, {}, w_avg)
  mean, spread = project.statistics(net, samples)
  lr, scale = project.rates(settings, spread).T
  target = nhwc(given['target_uint8'])[None] / jnp.asarray(127.5) - 1
  first = from_pytorch(sub.under('initial_noise/'))[1]
  first = jax.tree.map(lambda x: jnp.asarray(x)[None, :, :, None], first)
  first = {'w': jnp.asarray(mean)[None, None], 'noise': first}

  def render(params):
    ws = jnp.broadcast_to(params['w'], (1, generator.synthesis.num_ws, params['w'].shape[2]))
    both = variables | {'noise': params['noise']}
    return generator.apply(both, ws, 'const', method='image')

  def measure(images):
    return ((features(project.view(images)) - features(project.view(target))) ** 2).sum((1, 2, 3))

  @jit
  def step(*args):
    return project.search_step(render, measure, settings.noise_weight, *args)

  state = project.SearchState(first, project.ADAM.init(first))
  path = []
  for t in range(settings.steps):
    state, _ = step(state, lr[t], scale[t] * given['w_noise'][t])
    path.append(state.params['w'][0, 0])
  final = traverse_util.flatten_dict(state.params['noise'], sep='.')
  return {f'final_noise/{name}': x[0, :, :, 0] for name, x in final.items()} | {
    'w_trajectory': jnp.stack(path),
    'lr': lr,
    'w_noise_scale': scale,
    'w_avg_start': mean,
    'w_std': spread,
  }


def projector(sub):
  """Noise penalty, schedules, or a run."""
  if 'noise' in sub.given:
    sub.config.expect('size', len(sub.given['noise']))
    return _penalty(sub.given)
  if 'target_uint8' in sub.given:
    return _run(sub)
  lr, scale = project.rates(_settings(sub.config), sub.config['w_std']).T
  return {'lr': lr, 'w_noise_scale': scale}


CASES = {'projector': projector}
