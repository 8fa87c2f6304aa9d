"""Reference case of the projection: noise penalty, schedules, and whole runs with recorded random
numbers.
"""

import pathlib
import re
import types

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from sg2jax import resample, sampler
from sg2jax.edit import project
from sg2jax.models.stylegan2 import block_sizes, largest
from tests.reference.cases_nets import read_generator
from tests.reference.check import jit
from tests.reference.names import load, nhwc

FIXED = {'adam_betas': [0.9, 0.999], 'adam_eps': 1e-8}


def _setting(config):
  weight = config.get('regularize_noise_weight', 1e5)
  return project.Setting(
    config['num_steps'],
    'w',
    config['initial_learning_rate'],
    weight,
    0,
    config['lr_rampup_length'],
    config['lr_rampdown_length'],
    config['initial_noise_factor'],
    config['noise_ramp_length'],
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
  return {
    'reg_loss': value,
    'grad': grad[0, :, :, 0],
    'normalized': project.normalized(noise)[0, :, :, 0],
  }


def _run(sub):
  config, given = sub.config, sub.given
  for key, value in FIXED.items():
    config.expect(key, value)
  setting, features, samples = _setting(config), _features(config), config['w_avg_samples']
  generator, _ = read_generator(config.sub('G'))
  size = block_sizes(generator.synthesis.resolution)[0]
  params, noise, w_avg = load(sub.under('G/'), size)
  variables = {'params': params, 'noise': noise}
  config = types.SimpleNamespace(c_dim=generator.mapping.c_dim)
  net = sampler.Sampler(pathlib.Path(), config, 0, 0, generator, variables, {}, w_avg)
  mean, spread = project.statistics(net, samples)
  lr, scale = project.rates(setting, spread)
  target = nhwc(given['target_uint8'])[None] / jnp.asarray(127.5) - 1
  drawn = load(sub.under('initial_noise/'))[1]
  x = {
    'w': jnp.asarray(mean)[None, None],
    'noise': jax.tree.map(lambda x: jnp.asarray(x)[None, :, :, None], drawn),
  }
  zeros = jax.tree.map(jnp.zeros_like, x)

  def render(x):
    ws = jnp.broadcast_to(x['w'], (1, generator.synthesis.num_ws, x['w'].shape[2]))
    return largest(
      generator.apply(variables | {'noise': x['noise']}, ws, 'const', method='synthesize')
    )

  def measure(images):
    return ((features(project.view(images)) - features(project.view(target))) ** 2).sum((1, 2, 3))

  one = jit(lambda *args: project.step(render, measure, setting.noise_weight, *args))
  state, path = project.State(x, zeros, zeros), []
  for t in range(setting.steps):
    state, _ = one(state, t, lr[t], scale[t] * given['w_noise'][t])
    path.append(state.x['w'][0, 0])
  final = {
    f'final_noise/{".".join(k)}': v[0, :, :, 0]
    for k, v in traverse_util.flatten_dict(state.x['noise']).items()
  }
  return final | {
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
  lr, scale = project.rates(_setting(sub.config), sub.config['w_std'])
  return {'lr': lr, 'w_noise_scale': scale}


CASES = {'projector': projector}
