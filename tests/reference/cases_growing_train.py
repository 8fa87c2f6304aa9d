"""Reference cases of training while growing (configs A-D), all through sg2jax.steps.TrainSteps:
losses, a whole trajectory.
"""

import dataclasses
from functools import cache, partial
import re

import jax.numpy as jnp
import numpy as np

from sg2jax import state as state_lib
from sg2jax.interop.names import nhwc
from sg2jax.steps import TrainSteps
from tests.reference.cases_growing import (
  read_discriminator,
  read_generator,
  read_growth,
  read_lods,
  state_at,
  steps_at,
  store,
)
from tests.reference.cases_train import make_draws, run_phase
from tests.reference.check import jit

# Their name <- ours, of run_phase.
VALUES = {
  'fake_scores': 'gen_logits',
  'real_scores': 'real_logits',
  'gradient_penalty': 'r1_penalty',
  'pl_lengths': 'pl_lengths',
  'pl_penalty': 'pl_penalty',
  'loss': 'loss',
}


NAMES_OF_LABELS = {
  'c_G': ('c_G', 'labels_G', 'gen_c'),
  'c_pl': ('c_pl', 'labels_pl', 'c_G_pl', 'gen_c_pl'),
  'c_real': ('c_real', 'c_D', 'labels', 'labels_real', 'real_c'),
}


def _shrunk(images, level):
  """The mean of each box of 2^level pixels: NumPy [N,H,W,C] -> [N,h,w,C]."""
  n, h, w, c = images.shape
  side = 2**level
  return images.reshape(n, h // side, side, w // side, side, c).mean((2, 4))


def _native(noise, level):
  """Path length noise [N,3,R,R] of full-size images -> the same for ours, which TrainSteps divides
  by the smaller side.
  """
  return _shrunk(nhwc(noise), level) * 2**level


# ---- losses


class _Losses:
  """The evaluations of one sub-case: networks, settings and stored variables."""

  def __init__(self, sub):
    config, self.given = sub.config, sub.given
    config.ignore('config')  # a name
    self.g, self.g_border = read_generator(config.sub('G_static_kwargs'), config['networks'])
    self.d = self.d_border = None
    if 'D_static_kwargs' in config:
      self.d, self.d_border = read_discriminator(config.sub('D_static_kwargs'), config['networks'])
    self.given.know(
      r'[zc]_[GD]|c_real|pl_mean_before|lod[\d.]+/(real_images|call\d+/(z_pl|c_pl|pl_noise_raw))'
    )
    self.lazy = config.get('lazy_regularization', True)
    config.ignore('G_reg_interval', 'D_reg_interval')  # no gradient here has this factor
    self.names = {net: sub.under(f'tf/{net}/') for net in 'GD'}
    params, self.noise, self.w_avg = self.g_border.load(self.names['G'])
    self.params = {'G': params, 'D': self.d_border.load(self.names['D'])[0] if self.d else {}}
    settings = dict(
      r1_gamma=config.get('r1_gamma', 0),
      pl_weight=config.get('pl_weight', 0),
      pl_decay=config.get('pl_decay', 0),
      pl_shrink=config.get('pl_minibatch_shrink', 1),
    )
    sizes = {len(z) for name, z in self.given.items() if name in ('z_G', 'z_D')}
    sizes |= {
      len(z) * settings['pl_shrink'] for name, z in self.given.items() if name.endswith('/z_pl')
    }
    if sizes != {config['batch']}:
      raise ValueError(f'config has batch={config["batch"]}, the latents are for {sizes}')
    interval = int(self.lazy)
    self.at = cache(
      partial(
        steps_at,
        generator=self.g,
        discriminator=self.d,
        r1_interval=interval,
        pl_interval=interval,
        **settings,
      )
    )

  def labels(self, name, z, *prefixes):
    """The labels of the latents z, or None: an array `name`, or, of path lengths, the first of the
    generator's.
    """
    names = [
      f'{prefix}{n}'
      for prefix in prefixes or ('',)
      for n in (*NAMES_OF_LABELS[name], 'c' if prefix else name)
    ]
    found = self.given.first(*names)
    if found is None and name == 'c_pl':
      found = self.given.first(*NAMES_OF_LABELS['c_G'])
      found = None if found is None else found[: len(z)]
    c_dim = self.g.mapping.c_dim
    if (0 if found is None else found.shape[1]) != c_dim or (
      found is not None and len(found) != len(z)
    ):
      raise ValueError(
        f'{c_dim} labels for {len(z)} latents, and {name} is '
        f'{None if found is None else found.shape}'
      )
    return found

  def run(self, phase, lod, net, z, labels=None, pl=None, reals=None, w_avg=None, pl_mean=0.0):
    """One evaluation at lod = (level, alpha) -> (values by their names, gradients, state after
    it).
    """
    level, alpha = lod
    steps = self.at(level)
    w_avg = self.w_avg if w_avg is None else w_avg
    state = state_at(alpha, self.params['G'], self.params['D'], self.noise, w_avg, pl_mean, z.dtype)
    draws = make_draws(z[None], None if labels is None else labels[None])
    pl_draws = None
    if pl is not None:
      draws, pl_draws = None, draws | {'pl': _native(pl, level)[None]}
    if reals is not None:
      reals, labels = _shrunk(nhwc(reals), level)[None], draws['c']
    else:
      labels = None
    out, new = run_phase(steps, phase, state, draws, pl_draws, reals, labels)
    values = {theirs: out[ours] for theirs, ours in VALUES.items() if ours in out}
    if 'gen_img' in out:
      values['fake_images'] = np.repeat(np.repeat(out['gen_img'], 2**level, 2), 2**level, 3)
    if 'loss_Dreal' in out:
      values['loss'] = out['loss_Dreal'] + out['loss_Dgen']
    for ours in ('loss_Dr1', 'loss_Gpl'):
      if ours in out:
        values['reg'] = out[ours]
    border, opt = (self.g_border, new.g_opt) if net == 'G' else (self.d_border, new.d_opt)
    grads = store(border, opt, self.names[net], gradients=True)
    return values | {'dlatent_avg_after': new.w_avg, 'pl_mean_after': new.pl_mean}, grads, new


def losses_ad(sub):
  """Losses and gradients of lod<x>/G, lod<x>/D and of the path lengths lod<x>/call<k>."""
  at, given, results = _Losses(sub), sub.given, {}

  def note(prefix, values, grads, kind):
    results.update(
      {f'{prefix}/{k}': v for k, v in values.items()}
      | {f'{prefix}/{kind}/{k}': v for k, v in grads.items()}
    )

  for name, lod in read_lods(sub).items():
    parts = sorted({full.split('/')[1] for full in sub.wanted if full.startswith(f'{name}/')})
    if 'G' in parts:
      note(
        f'{name}/G',
        *at.run('Gmain', lod, 'G', given['z_G'], at.labels('c_G', given['z_G']))[:2],
        'grad',
      )
    if 'D' in parts:
      args = lod, 'D', given['z_D'], at.labels('c_real', given['z_D'])
      reals = given[f'{name}/real_images']
      values, grads, _ = at.run('Dmain' if at.lazy else 'Dboth', *args, reals=reals)
      note(f'{name}/D', values, grads, 'grad_main' if at.lazy else 'grad_total')
      if at.lazy:
        values, grads, _ = at.run('Dreg', *args, reals=reals)
        note(f'{name}/D', {k: values[k] for k in ('gradient_penalty', 'reg')}, grads, 'grad_reg')
    carry = {'w_avg': None, 'pl_mean': given.get('pl_mean_before', 0.0)}
    for call in [part for part in parts if re.fullmatch(r'call\d+', part)]:
      prefix = f'{name}/{call}'
      z = given[f'{prefix}/z_pl']
      values, grads, new = at.run(
        'Greg',
        lod,
        'G',
        z,
        at.labels('c_pl', z, f'{prefix}/', f'{name}/', ''),
        pl=given[f'{prefix}/pl_noise_raw'],
        **carry,
      )
      note(prefix, values, grads, 'grad_reg')
      carry = {'w_avg': new.w_avg, 'pl_mean': new.pl_mean}
  return results


# ---- growing_trajectory


def _read_training(config):
  """Config of a trajectory -> (function of a Stage: its TrainSteps, updates and round; Growth;
  {net: TensorFlow}; labels).
  """
  config.ignore('config')  # a name
  g, g_border = read_generator(config.sub('G_static_kwargs'), config['networks'])
  d, d_border = read_discriminator(config.sub('D_static_kwargs'), config['networks'])
  if g.mapping.c_dim != d.c_dim:
    raise NotImplementedError(
      f'a generator with {g.mapping.c_dim} labels and a discriminator with {d.c_dim}'
    )
  loss, hyper = config.sub('loss'), config.sub('adam')
  loss.expect('D', 'D_logistic_r1')
  path = {'G_logistic_ns': False, 'G_logistic_ns_pathreg': True}[loss['G']]
  intervals = {'G': 0, 'D': 0}
  if config['lazy_regularization']:  # with the defaults of their training loop
    intervals = {'G': config.get('G_reg_interval', 4), 'D': config.get('D_reg_interval', 16)}
  config.ignore('G_reg_interval', 'D_reg_interval')
  growth, more = read_growth(config, g_border.resolution)
  weight, decay, shrink = (
    loss[key] if path else 0 for key in ('pl_weight', 'pl_decay', 'pl_minibatch_shrink')
  )
  steps = TrainSteps(
    g,
    d,
    None,
    None,
    r1_gamma=loss['r1_gamma'],
    r1_interval=intervals['D'],
    pl_weight=weight,
    pl_decay=decay,
    pl_interval=intervals['G'],
    pl_shrink=shrink,
    mixing_prob=0,
    ema_kimg=config['G_smoothing_kimg'],
    ema_rampup=None,
    noise_mode='const',
    lr_rampup_kimg=more['rampup'],
    mean_rounds=True,
    growth=growth,
  )
  adam = lambda net, lr: state_lib.adam(
    lr, hyper['beta1'], hyper['beta2'], hyper['epsilon'], intervals[net], eps_hat=True
  )

  @cache
  def at(stage):
    """TrainSteps of a stage. The rate of the generator is that of both, as in their loop."""
    new = dataclasses.replace(
      steps, stage=stage, g_tx=adam('G', stage.g_lr), d_tx=adam('D', stage.g_lr)
    )
    updates = {
      phase: jit(getattr(new, f'{phase}_update')) for phase in ('g', 'g_reg', 'd', 'd_reg')
    }
    updates['reals'] = jit(new.reals)
    return new, updates, more['minibatch_gpu'](growth.side >> stage.level)

  return at, growth, {'G': g_border, 'D': d_border}, d.c_dim


# What the labels of draws are called.
LABELS = {
  'z_G': ('c_G', 'labels_G', 'gen_c'),
  'z_pl': ('c_pl', 'labels_pl', 'gen_c_pl'),
  'reals': (
    'c_real',
    'c_reals',
    'labels',
    'labels_real',
    'real_labels',
    'reals_c',
    'real_c',
    'c_D',
  ),
}


class _Draws:
  """The stored draws of a sub-case in the order in which they are consumed: `<name>/<i>`. c_dim 0:
  no labels among them.
  """

  def __init__(self, given, c_dim):
    self.given, self.c_dim, self.used = given, c_dim, {}
    labels = [name for names in LABELS.values() for name in names] if c_dim else []
    # `draw_counts` says how many of them are to be consumed
    given.know(rf'({"|".join(["z_G", "z_D", "z_pl", "reals", "pl_noise_raw", *labels])})/\d+')

  def take(self, name, rounds):
    """The next `rounds` arrays called name/<i>, stacked."""
    i = self.used.get(name, 0)
    self.used[name] = i + rounds
    return np.stack([self.given[f'{name}/{k}'] for k in range(i, i + rounds)])

  def labels(self, of, rounds):
    """The labels that belong to the next `rounds` draws called `of`, or None."""
    names = [name for name in LABELS[of] if f'{name}/0' in self.given]
    if not self.c_dim and not names:
      return None
    if not self.c_dim or len(names) != 1:
      raise ValueError(
        f'{self.c_dim} labels, and of the arrays {", ".join(f"{name}/<i>" for name in LABELS[of])} '
        f'there is {" and ".join(names) or "none"}'
      )
    return self.take(names[0], rounds)

  def latents(self, name, rounds, **more):
    """Draws of a phase of the generator."""
    return make_draws(self.take(name, rounds), self.labels(name, rounds), **more)


def _minibatch(steps, updates, rounds, state, draws):
  """One pass of the loop: g, g_reg if due, d with the average of g, d_reg if due."""
  due = steps.phases(int(state.step))

  def path_lengths():
    noise = np.asarray([_native(x, steps.stage.level) for x in draws.take('pl_noise_raw', rounds)])
    return draws.latents('z_pl', rounds, pl=noise)

  eager = steps.pl_weight and not steps.pl_interval
  state, _ = updates['g'](state, draws.latents('z_G', rounds), path_lengths() if eager else None)
  if 'g_reg' in due:
    state, _ = updates['g_reg'](state, path_lengths())
  reals = updates['reals'](state, nhwc(draws.take('reals', rounds)))
  labels = draws.labels('reals', rounds)  # of the fakes, too
  fakes = make_draws(draws.take('z_D', rounds), labels)
  state, _ = updates['d'](state, fakes, reals, fakes['c'])
  if 'd_reg' in due:  # without fetching: all its rounds have the last reals
    last = lambda x: jnp.broadcast_to(x[-1:], x.shape)
    state, _ = updates['d_reg'](state, last(reals), last(fakes['c']))
  return state


def _snapshot(state, borders, names, prefix):
  nets = {'G': (state.g, 'G'), 'D': (state.d, 'D'), 'Gs': (state.g_ema, 'G')}
  results = {f'{prefix}/G/dlatent_avg': state.w_avg, f'{prefix}/pl_mean': state.pl_mean}
  for name, (params, net) in nets.items():
    results |= store(borders[net], params, names[net], f'{prefix}/{name}/')
  return results


def trajectory(sub):
  """The training loop from stored draws, across changes of resolution."""
  config, names = sub.config, {net: sub.under(f'init/{net}/') for net in 'GD'}
  at, growth, borders, c_dim = _read_training(config)
  g, noise, w_avg = borders['G'].load(names['G'])
  d = borders['D'].load(names['D'])[0]
  dtype = w_avg.dtype
  state = state_at(
    0, g, d, noise, w_avg, config.sub('loss').get('pl_mean_initial', 0.0), dtype
  ).replace(nimg=np.int32(0))
  wanted, draws, lods, resets, before, results = (
    list(config['nimg_at_state']),
    _Draws(sub.given, c_dim),
    [],
    [],
    None,
    {},
  )
  done = 0
  while done < len(wanted):
    nimg = int(state.nimg)
    steps, updates, micro = at(growth.stage(nimg))
    if before is None or growth.resets_adam(before, nimg):
      resets.append(len(lods))
      state = state.replace(g_opt=steps.g_tx.init(state.g), d_opt=steps.d_tx.init(state.d))
    before = nimg
    lods.append(growth.lod(nimg))
    if steps.stage.batch % micro:
      raise NotImplementedError(f'minibatches of {steps.stage.batch} in rounds of {micro}')
    for _ in range(growth.repeats):
      state = _minibatch(steps, updates, steps.stage.batch // micro, state, draws)
    while done < len(wanted) and int(state.nimg) >= wanted[done]:
      results |= _snapshot(state, borders, names, f'state{done}')
      done += 1
  config.expect('reset_before_evaluation', resets)
  config.expect('num_schedule_evaluations', len(lods))
  counts = config.sub('draw_counts')
  for name in {'z_G', 'z_D', 'z_pl', 'reals', 'pl_noise_raw', *draws.used}:
    counts.expect(name, draws.used.get(name, 0))
  return results | {'schedule_lod': np.asarray(lods)}


CASES = {'losses_ad': losses_ad, 'growing_trajectory': trajectory}
