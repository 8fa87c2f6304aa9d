"""How far gradients in bfloat16 are from those in float32, in all four steps: `python -m
tests.bfloat16`.

Both are gradients of the same losses at the same parameters, latents, images and noise; the
networks differ only in `num_bf16_res`. What is compared is grouped by what a parameter is; `ws` are
the style inputs of the synthesis network. A part of the difference is bfloat16's own: where
rounding changes the sign before a leaky ReLU, the slope is another one.
"""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

from configs import default
from sg2jax import build, losses
from sg2jax.models.stylegan2 import largest
from sg2jax.steps import PHASES, Averages

GROUPS = {
  'biases': r'(conv\d|torgb|fromrgb)\.bias$',
  'noise strengths': r'noise_strength$',
  'affine': r'affine\.(weight|bias)$',
  'weights 3x3': r'conv\d\.weight$',
  'weights 1x1': r'(torgb|fromrgb|skip)\.weight$',
}


WS = r'^ws$'


def networks(resolution=128, bits=2, batch=8, **fields):
  """(TrainSteps in float32, TrainSteps with `bits` bfloat16 resolutions, configuration) of config
  F, narrow.
  """
  config = default.get_config()
  config.update_from_flattened_dict(
    {
      'resolution': resolution,
      'batch': batch,
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
    | fields
  )
  full = build.steps(config, 0, None)
  config.g.num_bf16_res = config.d.num_bf16_res = bits
  return full, build.steps(config, 0, None), config


def inputs(config, steps, seed):
  """(state, minibatch): initial weights, with noise strengths and biases that aren't 0, and smooth
  images with grain.
  """
  random, res = np.random.default_rng(seed), config.resolution
  config.seed = seed
  lively = lambda path, x: (
    x + 0.1 * random.normal(size=x.shape) if path[-1].key in ('bias', 'noise_strength') else x
  )
  state = build.init_state(config, steps, None)
  state = state.replace(
    g=jax.tree_util.tree_map_with_path(lively, state.g),
    d=jax.tree_util.tree_map_with_path(lively, state.d),
  )
  coarse = random.normal(size=(1, config.batch, 8, 8, 3)).repeat(res // 8, 2).repeat(res // 8, 3)
  images = 128 + 50 * coarse + 12 * random.normal(size=coarse.shape)
  images = np.clip(images, 0, 255).astype(np.uint8)
  return (
    jax.tree.map(jnp.float32, (state.g, state.d)),
    state,
    {'image': images, 'label': np.zeros((1, config.batch, 0), np.float32)},
  )


def gradient_function(steps, phases):
  """jit of (g, d, state, minibatch, key) -> {phase: gradients}, of ws too where a phase takes
  them.
  """

  def gradients(g, d, state, batch, key):
    state = state.replace(g=g, d=d)
    draws = {
      'main': steps.draw(key, batch),
      'pl': steps.draw_pl(jax.random.fold_in(key, 1), batch),
    }
    x = jax.tree.map(lambda v: v[0], draws)
    reals = {'reals': steps.reals(state, batch['image'])[0], 'real_c': batch['label'][0]}
    carry = Averages(state.w_avg, state.pl_mean)
    losses_of = {
      'g': lambda p: steps._g_loss(state, p, carry, x['main'])[0],
      'g_reg': lambda p: steps._pl_loss(state, p, carry, x['pl'])[0],
      'd': lambda p: steps._d_loss(state, p, carry, x['main'] | reals)[0],
      'd_reg': lambda p: steps._r1_loss(state, p, carry, reals)[0],
    }
    found = {phase: jax.grad(losses_of[phase])(g if phase[0] == 'g' else d) for phase in phases}

    def through_d(ws):
      images = steps._synthesize(state, g, x['main']['noise'], ws)
      return losses.g_nonsaturating(steps._discriminate(state, d, images, x['main']['c'])).mean()

    def length(ws):
      return losses.path_lengths(
        lambda ws: largest(steps._synthesize(state, g, x['pl']['noise'], ws)), ws, x['pl']['pl']
      ).mean()

    for name, function, part in (('g', through_d, 'main'), ('g_reg', length, 'pl')):
      if name not in phases:
        continue
      ws, _ = steps._ws(g, state.w_avg, x[part]['z'], x[part]['c'], x[part].get('mix'))
      found[name] = found[name] | {'ws': jax.grad(function)(ws)}
    return found

  return jax.jit(gradients)


def errors(exact, rough, res=None):
  """{phase: {group: relative L2 error}}; res: only of the blocks b<res>; None: of all."""
  table = {}
  for phase in exact:
    flat = [
      {
        '.'.join(k.key for k in path): np.asarray(x, np.float64)
        for path, x in jax.tree_util.tree_leaves_with_path(tree[phase])
      }
      for tree in (exact, rough)
    ]
    for group, pattern in {**GROUPS, 'ws': WS}.items():
      names = [
        n
        for n in flat[0]
        if re.search(pattern, n) and (n == 'ws' or not res or any(f'b{r}.' in n for r in res))
      ]
      far, size = (
        np.sqrt(sum(np.sum(x**2) for x in part))
        for part in ([flat[1][n] - flat[0][n] for n in names], [flat[0][n] for n in names])
      )
      if size:
        table.setdefault(phase, {})[group] = far / size
  return table


def measure(seeds=3, phases=PHASES, **options):
  """Errors in the median of some seeds: (of whole networks, of the bfloat16 blocks)."""
  full, low, config = networks(**options)
  functions, found = [gradient_function(steps, phases) for steps in (full, low)], []
  for seed in range(seeds):
    (g, d), state, batch = inputs(config, full, seed)
    exact, rough = (f(g, d, state, batch, jax.random.key(seed)) for f in functions)
    found.append(
      (errors(exact, rough), errors(exact, rough, (config.resolution, config.resolution // 2)))
    )
  return [jax.tree.map(lambda *x: float(np.median(x)), *part) for part in zip(*found)]


def main():
  """Prints the table. Arguments: seeds, resolution, fmap_base, fmap_max."""
  seeds, resolution, base, most = (
    (int(x) for x in sys.argv[1:5]) if len(sys.argv) > 1 else (3, 128, 1024, 64)
  )
  fields = {f'{net}.{k}': v for net in 'gd' for k, v in (('fmap_base', base), ('fmap_max', most))}
  whole, blocks = measure(seeds, resolution=resolution, **fields)
  print(f'{"relative error":<16}' + ''.join(f'{phase:>18}' for phase in whole))
  for group in [*GROUPS, 'ws']:
    cells = [
      f'{whole[p][group]:.2%} ({blocks[p][group]:.2%})' if group in whole[p] else '-' for p in whole
    ]
    print(f'{group:<16}' + ''.join(f'{cell:>18}' for cell in cells))
  print('of all blocks (of the bfloat16 blocks)')


if __name__ == '__main__':
  main()
