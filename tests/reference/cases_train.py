"""Reference cases of training: the gradients of every phase and whole trajectories, both through
sg2jax.steps.TrainSteps.
"""

from functools import partial
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sg2jax import losses, schedule
from sg2jax import state as state_lib
from sg2jax.interop.names import from_pytorch, nchw, nhwc, to_pytorch
from sg2jax.models.sizes import block_sizes
from sg2jax.steps import TrainSteps
from tests.reference.cases_nets import read_discriminator, read_generator
from tests.reference.check import jit

# An "optimizer" whose state is the last gradient, so that a whole update of TrainSteps yields its
# gradient.
RECORD = optax.GradientTransformation(
  lambda p: jax.tree.map(jnp.zeros_like, p), lambda g, s, p=None: (g, g)
)


def _state(steps, params, pl_mean):
  """TrainState at step 0 from Given with 'G/key', 'D/key'; also the size of the first block."""
  size = block_sizes(steps.discriminator.resolution)[0]
  g, noise, w_avg = from_pytorch(params.under('G/'), size)
  d, _, _ = from_pytorch(params.under('D/'), size)
  zero = np.zeros((), np.int32)
  return jax.tree.map(
    jnp.asarray,
    state_lib.TrainState(
      step=zero,
      nimg=zero,
      g=g,
      d=d,
      g_ema=g,
      g_opt=steps.g_tx.init(g),
      d_opt=steps.d_tx.init(d),
      noise=noise,
      w_avg=w_avg,
      pl_mean=pl_mean,
    ),
  ), size


def make_draws(z, c, **more):
  """Draws of one phase: z [R,M,z_dim], c [R,M,c_dim] or None. Noise is constant, so its keys are
  never used.
  """
  c = np.zeros((*z.shape[:2], 0), z.dtype) if c is None else c
  return {'z': z, 'c': c, 'noise': np.zeros(len(z))} | more


# ---- losses


def _per_sample(steps, phase, state, draws, pl_draws, reals, labels):
  """The values of one phase image by image, which TrainSteps only averages. All under their names;
  draws have R = 1.
  """
  results = {}
  if phase in ('Greg', 'Gboth'):
    results |= _path_lengths(steps, state, jax.tree.map(lambda v: v[0], pl_draws))
  if phase in ('Dreg', 'Dboth'):
    discriminate = lambda img: steps._discriminate(state, state.d, img, labels[0])
    penalty, logits = losses.r1_penalty(discriminate, reals[0])
    penalty = penalty * 4.0**-steps.stage.level  # of the image enlarged to full size
    grads = jax.grad(lambda img: discriminate(img).sum())(reals[0])
    results |= {
      'r1_penalty': penalty,
      'loss_Dr1': penalty * steps.r1_gamma / 2,
      'real_logits': logits,
      'r1_grads': jnp.moveaxis(grads, -1, 1),
    }
  if phase in ('Greg', 'Dreg'):
    return results
  x = jax.tree.map(lambda v: v[0], draws)
  ws, _ = steps._ws(state.g, state.w_avg, x['z'], x['c'], x.get('mix'))
  img = steps._synthesize(state, state.g, None, ws)
  logits = steps._discriminate(state, state.d, img, x['c'])
  results |= {'gen_logits': logits, 'gen_img': jnp.moveaxis(img, -1, 1), 'ws': ws}
  if phase[0] == 'G':
    return results | {'loss': losses.g_nonsaturating(logits)}
  real_logits = steps._discriminate(state, state.d, reals[0], labels[0])
  loss_real, loss_fake = losses.d_logistic(real_logits, logits)
  return results | {'real_logits': real_logits, 'loss_Dreal': loss_real, 'loss_Dgen': loss_fake}


def _path_lengths(steps, state, x):
  """What Greg makes of each image."""
  ws, _ = steps._ws(state.g, state.w_avg, x['z'], x['c'], x.get('mix'))
  synthesize = partial(steps._synthesize, state, state.g, None)
  lengths = losses.path_lengths(synthesize, ws, x['pl'])
  penalty, _ = losses.path_length_penalty(lengths, state.pl_mean, steps.pl_decay)
  _, h, w, _ = x['pl'].shape
  grads = jax.grad(lambda ws: jnp.sum(synthesize(ws) * x['pl'] / np.sqrt(h * w)))(ws)
  return {
    'pl_lengths': lengths,
    'pl_penalty': penalty,
    'loss_Gpl': penalty * steps.pl_weight,
    'pl_grads': grads,
    'ws': ws,
  }


@partial(jit, static_argnums=(0, 1))
def run_phase(steps, phase, state, draws, pl_draws, reals, labels):
  """Per-sample values of a phase, those that TrainSteps lacks, and the state after it, whose
  optimizer states are the gradients.

  Gboth and Dboth: the regularizer isn't lazy, and the intervals of `steps` are 0. Arguments that a
  phase lacks are None.
  """
  if phase in ('Gmain', 'Gboth'):
    new, _ = steps.g_update(state, draws, pl_draws)
  elif phase == 'Greg':
    new, _ = steps.g_reg_update(state, pl_draws)
  elif phase in ('Dmain', 'Dboth'):
    new, _ = steps.d_update(state, draws, reals, labels)
  else:  # which follows d, and d has moved the clock
    batch = labels.shape[0] * labels.shape[1]
    new, _ = steps.d_reg_update(
      state.replace(step=state.step + 1, nimg=state.nimg + batch), reals, labels
    )
  return _per_sample(steps, phase, state, draws, pl_draws, reals, labels), new


def loss_phases(sub):
  """Losses and gradients of each phase `<phase>[_mixing][_shrink<k>]` that has expected arrays."""
  config, given = sub.config, sub.given
  given.know(r'z_mix|gen_c|real_c|pl_noise_raw(_shrink\d+)?')
  net, beta = read_generator(config.sub('G'))
  config.expect('batch', len(given['z']))
  config.expect('num_ws', net.synthesis.num_ws)
  shrink, cutoff = config['pl_batch_shrink'], config.get('style_mixing_cutoff')
  make = partial(
    TrainSteps,
    net,
    read_discriminator(config.sub('D')),
    RECORD,
    RECORD,
    r1_gamma=config['r1_gamma'],
    pl_weight=config['pl_weight'],
    pl_decay=config['pl_decay'],
    pl_shrink=shrink,
    mixing_prob=0,
    ema_kimg=1,
    ema_rampup=None,
    w_avg_beta=beta,
    noise_mode='const',
  )
  lazy, eager = (make(r1_interval=k, pl_interval=k) for k in (1, 0))
  state, size = _state(lazy, sub.given, given['pl_mean_before'])
  reals = nhwc(given['real_img'])[None]
  labels = given['real_c'][None] if 'real_c' in given else np.zeros((*reals.shape[:2], 0))
  results = {}
  for full in dict.fromkeys(name.split('/')[0] for name in sub.wanted):
    match = re.fullmatch(r'(([GD])(?:main|reg|both))(_mixing)?(_shrink(\d+))?', full)
    if not match:
      continue  # its arrays will be reported as computed by nothing
    phase, net_name, mixing, other, divide = match.groups()
    # As in training, an unmixed pass is one whose cutoff is num_ws: one compilation for both.
    until = cutoff if mixing else net.synthesis.num_ws

    def first(count, until=until, **more):
      mix = {
        'z': given.get('z_mix', given['z'])[None, :count],
        'cutoff': np.full((1, count), until),
      }
      return make_draws(
        given['z'][None, :count],
        given['gen_c'][None, :count] if 'gen_c' in given else None,
        mix=mix,
        **more,
      )

    draws = None if phase in ('Greg', 'Dreg') else first(len(given['z']))
    pl_draws = None
    if phase in ('Greg', 'Gboth'):
      pl_draws = first(
        len(given['z']) // int(divide or shrink),
        pl=nhwc(given['pl_noise_raw' + (other or '')])[None],
      )
    given_reals = (reals, labels) if net_name == 'D' else (None, None)
    out, new = run_phase(
      eager if phase.endswith('both') else lazy, phase, state, draws, pl_draws, *given_reals
    )
    grads = new.g_opt if net_name == 'G' else new.d_opt
    out |= to_pytorch(grads, size, 'grad/') | {
      'w_avg_after': new.w_avg,
      'pl_mean_after': new.pl_mean,
    }
    results |= {f'{full}/{name}': value for name, value in out.items()}
  return results


# ---- training_trajectory

NAMES = {'Gmain': 'g', 'Greg': 'g_reg', 'Gboth': 'g', 'Dmain': 'd', 'Dreg': 'd_reg', 'Dboth': 'd'}


def _read_phases(config):
  """({'G': interval of its regularizer, 'D': ...}, phases). Interval 0, None there: not lazy, one
  phase `<net>both`.
  """
  lazy = config.get('lazy_regularization', True)
  intervals = {name: (config.get(f'{name}_reg_interval') or 0) * lazy for name in 'GD'}
  phases = [
    phase
    for name, k in intervals.items()
    for phase in ([f'{name}main', f'{name}reg'] if k else [f'{name}both'])
  ]
  config.expect('phases', phases)
  for name, interval in intervals.items():
    effective, ratio = config.sub('effective').sub(name), schedule.lazy_correction(interval)
    if interval or effective.get('mb_ratio') is not None:
      effective.expect('mb_ratio', ratio)
    effective.ignore('lr', 'betas')  # follow from it
  return intervals, phases


def _read_training(config, mixes):
  """Config of a trajectory -> TrainSteps, phases. mixes: the case holds styles to mix. What this
  code can't do is an error.
  """
  g, beta = read_generator(config.sub('G'))
  d = read_discriminator(config.sub('D'))
  intervals, phases = _read_phases(config)
  for key, value in (('optimizer', 'Adam'), ('real_image_scaling', 'x/127.5 - 1')):
    config.expect(key, value)
  if mixes:
    config.ignore('style_mixing_prob')  # the stored cutoffs are drawn with it
  else:
    config.expect('style_mixing_prob', 0)
  (b1, b2), lr, eps = config['betas'], config['lr'], config['eps']
  config.ignore('float64_sensitivity')  # a remark
  gamma, weight = config['r1_gamma'], config['pl_weight']
  # Weight 0 switches a regularizer off, its bookkeeping included, but leaves Adam's correction.
  steps = TrainSteps(
    g,
    d,
    *(state_lib.adam(lr, b1, b2, eps, k) for k in intervals.values()),
    r1_gamma=gamma,
    r1_interval=intervals['D'],
    pl_weight=weight,
    pl_decay=config['pl_decay'],
    pl_interval=intervals['G'],
    pl_shrink=config['pl_batch_shrink'],
    mixing_prob=0,
    ema_kimg=config['ema_kimg'],
    ema_rampup=config['ema_rampup'],
    w_avg_beta=beta,
    noise_mode='const',
  )
  return steps, phases


class _Draws:
  """The stored draws of a trajectory, as rounds [R,M,...].

  z and gen_c (and z_mix, style_mixing_cutoff) are [iterations, phases, batch, ...], or <phase>/z
  ... [iterations, batch, ...]; pl_noise_raw is [path length phases, rounds, ...], and so are
  z_mix_pl and style_mixing_cutoff_pl.
  """

  def __init__(self, given, phases, rounds, num_ws, c_dim):
    self.given, self.phases, self.rounds, self.num_ws, self.regs = given, phases, rounds, num_ws, 0
    given.know('Dreg/(z|gen_c)')  # drawn there, and never used
    labels = [name for name in given if name.rpartition('/')[2] in ('gen_c', 'real_c')]
    if labels and not c_dim:
      raise ValueError(f'{" and ".join(labels)}, but the networks take no labels')
    for name in ('z', 'gen_c', 'z_mix'):
      if name in given and given[name].shape[1] != len(phases):
        raise ValueError(
          f'{name} is for {given[name].shape[1]} phases, but there are {", ".join(phases)}'
        )

  def find(self, name, i, phase):
    """The array of an iteration and a phase, or None."""
    if f'{phase}/{name}' in self.given:
      return self.given[f'{phase}/{name}'][i]
    found = self.given.get(name)
    return None if found is None else found[i, self.phases.index(phase)]

  def _mix(self, z, cutoff, shape):
    """Mixed styles; cutoff: one for all, or one for each round; the number of layers means none."""
    if cutoff is None:
      raise ValueError('z_mix without style_mixing_cutoff')
    cutoff = np.broadcast_to(np.reshape(cutoff, (-1, 1)), shape)
    return {'mix': {'z': z, 'cutoff': np.where(cutoff < 0, self.num_ws, cutoff)}}

  def main(self, i, phase):
    """Draws of the main loss."""
    z, c, other = (
      None if x is None else self.rounds(x)
      for x in (self.find(k, i, phase) for k in ('z', 'gen_c', 'z_mix'))
    )
    if z is None:
      raise KeyError(f'no z for {phase}')
    more = (
      {}
      if other is None
      else self._mix(other, self.find('style_mixing_cutoff', i, phase), z.shape[:2])
    )
    return make_draws(z, c, **more)

  def path_lengths(self, phase, draws, count):
    """Draws of the path length that follows: of each round the first `count` images, but styles to
    mix of its own.
    """
    first = {k: v[:, :count] if np.ndim(v) > 1 else v for k, v in draws.items() if k != 'mix'}
    own = lambda name: self.given.first(f'{phase}/{name}', name)[self.regs]
    noise = nhwc(own('pl_noise_raw'))
    first['pl'] = noise if noise.ndim == 5 else noise[None]
    if 'mix' in draws and 'z_mix_pl' in self.given:
      other = own('z_mix_pl').reshape(*first['z'].shape)
      first |= self._mix(other, own('style_mixing_cutoff_pl'), first['z'].shape[:2])
    elif 'mix' in draws:
      first['mix'] = {k: v[:, :count] for k, v in draws['mix'].items()}
    self.regs += 1
    return first


def _lengths(steps, state, draws):
  """Path lengths [R,M/s] at `state`, image by image."""

  def one(x):
    ws, _ = steps._ws(state.g, state.w_avg, x['z'], x['c'], x.get('mix'))
    return losses.path_lengths(partial(steps._synthesize, state, state.g, None), ws, x['pl'])

  return jax.lax.map(one, draws)


def _sumsq(tree):
  return sum(jnp.sum(x**2) for x in jax.tree.leaves(tree))


def _end_of_iteration(state, beta):
  return {
    'pl_mean': state.pl_mean,
    'w_avg_norm': jnp.linalg.norm(state.w_avg),
    'G_param_sumsq': _sumsq(state.g),
    'D_param_sumsq': _sumsq(state.d),
    'G_ema_param_sumsq': _sumsq(state.g_ema),
    'ema_beta': beta,
  }


def _snapshot(state, size, prefix):
  nets = {'G': state.g, 'D': state.d, 'G_ema': state.g_ema}
  results = {f'{prefix}/w_avg': state.w_avg, f'{prefix}/pl_mean': state.pl_mean}
  for name, params in nets.items():
    results |= to_pytorch(params, size, f'{prefix}/{name}/')
  return results


# Their trace <- our aux.
TRACES = {
  'loss_Gmain': 'loss_g',
  'scores_fake_Gmain': 'logits_fake',
  'pl_penalty_mean': 'pl_penalty',
  'loss_Dgen': 'loss_d_fake',
  'loss_Dreal': 'loss_d_real',
  'scores_real': 'logits_real',
  'r1_penalty_mean': 'r1',
}


def _traces(steps, phase, aux):
  """What a phase leaves in the traces, by their names."""
  values = {theirs: aux[ours] for theirs, ours in TRACES.items() if ours in aux}
  if 'pl_penalty' in aux:
    values['loss_Gpl'] = aux['pl_penalty'] * steps.pl_weight
  if 'r1' in aux:
    values['loss_Dr1'] = aux['r1'] * steps.r1_gamma / 2
  if phase.endswith('both'):
    values[f'loss_{phase}'] = (
      aux.get('loss_g', aux.get('loss_d')) + values.get('loss_Gpl', 0) + values.get('loss_Dr1', 0)
    )
  return values


def _expect_due(config, due, phases):
  """Checks the field that says when a regularizer runs: a phase of its own, or, without laziness,
  every iteration or none.
  """
  there = config.sub('regularisation_iterations')
  for net, ours in (('G', 'g_reg'), ('D', 'd_reg')):
    every = list(range(len(due)))
    if f'{net}both' in phases:
      there.expect(f'{net}both', every)
      if there.get(f'{net}reg') not in (None, [], 'all', 'every'):
        there.expect(f'{net}reg', every)
    else:
      there.expect(f'{net}reg', [i for i in every if ours in due[i]])


def training_trajectory(sub):
  """The loop over minibatches from stored draws: traces, the state after some iterations and at the
  end.
  """
  config, given = sub.config, sub.given
  steps, phases = _read_training(config, any(name.endswith('z_mix') for name in given))
  iterations, batch, micro = config['iterations'], config['batch_size'], config['batch_gpu']
  due = [steps.phases(i) for i in range(iterations)]
  _expect_due(config, due, phases)
  images = nhwc(given['real_img_uint8'])
  dtype = next(iter(sub.under('init/').values())).dtype
  state, size = _state(steps, sub.under('init/'), np.zeros((), dtype))
  rounds = lambda x: x.reshape(batch // micro, micro, *x.shape[1:])
  c_dim = max(steps.generator.mapping.c_dim, steps.discriminator.c_dim)
  draws = _Draws(given, phases, rounds, steps.generator.synthesis.num_ws, c_dim)
  update = {name: jit(getattr(steps, f'{name}_update')) for name in NAMES.values()}
  lengths, end, beta_at = (
    jit(partial(_lengths, steps)),
    jit(_end_of_iteration),
    jit(lambda nimg: schedule.ema_beta(nimg, batch, steps.ema_kimg, steps.ema_rampup, dtype)),
  )
  trace, results = {}, {}

  def note(values):
    for key, value in values.items():
      trace.setdefault(key, []).append(value)

  for i in range(iterations):
    reals = steps.reals(state, rounds(images[i]))
    labels = rounds(given['real_c'][i]) if 'real_c' in given else np.zeros((*reals.shape[:2], 0))
    beta = beta_at(state.nimg)
    for phase in [phase for phase in phases if NAMES[phase] in due[i]]:
      main, pl_draws = draws.main(i, phase) if phase != 'Dreg' else None, None
      if phase == 'Greg' or (phase == 'Gboth' and steps.pl_weight):
        pl_draws = draws.path_lengths(phase, main, micro // steps.pl_shrink)
        note({'pl_lengths': lengths(state, pl_draws)})
      name = NAMES[phase]
      args = {
        'g': (main, pl_draws),
        'g_reg': (pl_draws,),
        'd': (main, reals, labels),
        'd_reg': (reals, labels),
      }[name]
      state, aux = update[name](state, *args)
      note(_traces(steps, phase, aux))
    note(end(state, beta))
    if any(name.startswith(f'iter{i + 1}/') for name in sub.wanted):
      results |= _snapshot(state, size, f'iter{i + 1}')
  results |= _snapshot(state, size, 'final') | {
    f'trace/{key}': np.stack(values) for key, values in trace.items()
  }
  z, c = (draws.find(name, 0, phases[0]) for name in ('z', 'gen_c'))
  img = jit(partial(steps.generator.apply, noise_mode='const'))(
    {'params': state.g_ema, 'noise': state.noise}, z, c
  )
  return results | {'final/G_ema_img': nchw(img)}


CASES = {'losses': loss_phases, 'training_trajectory': training_trajectory}
