"""How far gradients in bfloat16 are from those in float32: `python -m tests.bfloat16`.

Both are gradients of the same losses, those of all four steps, at the same parameters, latents,
images and noise; the networks differ only in `num_bf16_res`. What is compared is grouped by what a
parameter is; `ws` are the style inputs of the synthesis network. A part of the difference is
bfloat16's own: where rounding changes the sign before a leaky ReLU, the slope is another one.
`python -m tests.bfloat16 operands` shows how large that part is at least: float32 networks whose
convolutions, at the same resolutions, get operands that were rounded to bfloat16.
"""

import contextlib
import re
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from configs import default
from sg2jax import build, conv, losses
from sg2jax.models.generator import largest
from sg2jax.steps import Averages
from sg2jax.update import PHASES

GROUPS = {
  'biases': r'(conv\d|torgb|fromrgb)\.bias$',
  'noise strengths': r'noise_strength$',
  'affine': r'affine\.(weight|bias)$',
  'weights 3x3': r'conv\d\.weight$',
  'weights 1x1': r'(torgb|fromrgb|skip)\.weight$',
  'ws': r'^ws$',
}
CONFIG = {
  'data.dir': '-',
  'g.fmap_base': 1024,
  'd.fmap_base': 1024,
  'g.fmap_max': 64,
  'd.fmap_max': 64,
  'g.z_dim': 64,
  'g.w_dim': 64,
  'g.mapping_layers': 2,
  'g.clamp': 256.0,
  'd.clamp': 256.0,
}


def make_steps(resolution=128, bf16_res=2, batch=8, **fields):
  """TrainSteps of a narrow config F in float32, those in bfloat16, and the configuration."""
  config = default.get_config()
  config.update_from_flattened_dict(CONFIG | {'resolution': resolution, 'batch': batch} | fields)
  full = build.steps(config, 0, None)
  config.g.num_bf16_res = config.d.num_bf16_res = bf16_res
  return full, build.steps(config, 0, None), config


def make_inputs(config, steps, seed):
  """(state, minibatch): weights of which none is 0, and smooth images with grain."""
  random = np.random.default_rng(seed)
  config.seed = seed

  def moved(path, x):  # initial biases and noise strengths are 0
    if path[-1].key not in ('bias', 'noise_strength'):
      return x
    return jnp.float32(x + 0.1 * random.normal(size=x.shape))

  state = build.init_state(config, steps, None)
  state = state.replace(
    g=jax.tree_util.tree_map_with_path(moved, state.g),
    d=jax.tree_util.tree_map_with_path(moved, state.d),
  )
  scale = config.resolution // 8
  coarse = random.normal(size=(1, config.batch, 8, 8, 3)).repeat(scale, 2).repeat(scale, 3)
  images = 128 + 50 * coarse + 12 * random.normal(size=coarse.shape)
  images = np.clip(images, 0, 255).astype(np.uint8)
  return state, {'image': images, 'label': np.zeros((1, config.batch, 0), np.float32)}


def gradient_function(steps, phases):
  """jit of (state, minibatch, key) -> {phase: gradients}, of ws too where a phase takes them."""

  @jax.jit
  def gradients(state, batch, key):
    draws = steps.draw(key, batch)
    pl_draws = steps.draw_pl(jax.random.fold_in(key, 1), batch)
    reals = {'reals': steps.reals(state, batch['image']), 'real_c': batch['label']}
    averages = Averages(state.w_avg, state.pl_mean, state.augment_signs)
    of_phase = {
      'g': (steps._g_loss, draws),
      'g_reg': (steps._pl_loss, pl_draws),
      'd': (steps._d_loss, draws | reals),
      'd_reg': (steps._r1_loss, reals),
    }
    result = {}
    for phase in phases:
      loss, xs = of_phase[phase]
      x = jax.tree.map(lambda v: v[0], xs)  # of the only round

      def value(params, loss=loss, x=x):
        return loss(state, params, averages, x)[0]

      result[phase] = jax.grad(value)(getattr(state, phase[0]))
      if phase[0] == 'g':
        ws, _ = steps._ws(state.g, state.w_avg, x['z'], x['c'], x.get('mix'))
        of_ws = _adversarial if phase == 'g' else _length
        result[phase]['ws'] = jax.grad(lambda ws, x=x, of_ws=of_ws: of_ws(steps, state, x, ws))(ws)
    return result

  return gradients


def _adversarial(steps, state, x, ws):
  images = steps._synthesize(state, state.g, x['noise'], ws)
  return losses.g_nonsaturating(steps._discriminate(state, state.d, images, x['c'])).mean()


def _length(steps, state, x, ws):
  def synthesize(ws):
    return largest(steps._synthesize(state, state.g, x['noise'], ws))

  return losses.path_lengths(synthesize, ws, x['pl']).mean()


def relative_errors(exact, rough, resolutions=None):
  """{group: relative L2 error} of gradients; resolutions: only of their blocks. None: of all."""

  def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {'.'.join(k.key for k in path): np.asarray(x, np.float64) for path, x in leaves}

  def counts(name):
    return name == 'ws' or not resolutions or any(f'b{res}.' in name for res in resolutions)

  exact, rough = named(exact), named(rough)
  table = {}
  for group, pattern in GROUPS.items():
    names = [name for name in exact if re.search(pattern, name) and counts(name)]
    error = np.sqrt(sum(np.sum((rough[name] - exact[name]) ** 2) for name in names))
    size = np.sqrt(sum(np.sum(exact[name] ** 2) for name in names))
    if size:
      table[group] = error / size
  return table


@contextlib.contextmanager
def rounded_operands(least_side):
  """What is traced within rounds operands of convolutions at this side or more, nothing else."""

  def rounding(function):
    def call(*args, **options):
      arrays = [x for x in args if hasattr(x, 'ndim')]
      if any(x.ndim == 4 and x.shape[1] >= least_side for x in arrays):
        args = [jax.lax.reduce_precision(x, 8, 7) if hasattr(x, 'ndim') else x for x in args]
      return function(*args, **options)

    return call

  parts = ((conv.lax, 'conv_general_dilated'), (conv.jnp, 'einsum'), (conv, '_conv_w_matmul'))
  with contextlib.ExitStack() as stack:
    for place, name in parts:
      stack.enter_context(mock.patch.object(place, name, rounding(getattr(place, name))))
    yield


def measure(seeds=3, phases=PHASES, operands_only=False, **options):
  """{phase: {group: error}} in the median of some seeds: (whole networks, bfloat16 blocks)."""
  full, low, config = make_steps(**options)
  blocks = (config.resolution, config.resolution // 2)
  full_gradients, low_gradients = (gradient_function(steps, phases) for steps in (full, low))
  if operands_only:
    inputs = *make_inputs(config, full, 0), jax.random.key(0)
    with rounded_operands(min(blocks)):
      low_gradients = gradient_function(full, phases).lower(*inputs).compile()
  tables = []
  for seed in range(seeds):
    inputs = *make_inputs(config, full, seed), jax.random.key(seed)
    exact, rough = full_gradients(*inputs), low_gradients(*inputs)
    tables.append(
      [
        {phase: relative_errors(exact[phase], rough[phase], part) for phase in phases}
        for part in (None, blocks)
      ]
    )
  return [jax.tree.map(lambda *x: float(np.median(x)), *part) for part in zip(*tables)]


def main():
  """Prints the table. Arguments: [operands] [seeds, resolution, fmap_base, fmap_max]."""
  operands_only = sys.argv[1:2] == ['operands']
  numbers = sys.argv[2:] if operands_only else sys.argv[1:]
  seeds, resolution, base, most = map(int, numbers or (3, 128, 1024, 64))
  fields = {'g.fmap_base': base, 'd.fmap_base': base, 'g.fmap_max': most, 'd.fmap_max': most}
  whole, blocks = measure(seeds, operands_only=operands_only, resolution=resolution, **fields)
  print(f'{"relative error":<16}' + ''.join(f'{phase:>18}' for phase in whole))
  for group in GROUPS:
    cells = [
      f'{whole[p][group]:.2%} ({blocks[p][group]:.2%})' if group in whole[p] else '-' for p in whole
    ]
    print(f'{group:<16}' + ''.join(f'{cell:>18}' for cell in cells))
  print('of all blocks (of the bfloat16 blocks)')


if __name__ == '__main__':
  main()
