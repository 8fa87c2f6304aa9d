"""The four updates of a minibatch, in this order: g, g_reg (path length), d (with EMA and clock),
d_reg (R1) [S2 App. B].

A regularizer of interval k is a step of its own at every k-th minibatch, with k times its weight;
one of interval 0 is added to the main loss of every minibatch (configs A and B); one of weight 0
doesn't exist.

Each is `(key, state, batch) -> (state, aux)`, pure, and is jitted by itself on a donated state. A
batch is {'image': uint8 [R,M,H,W,C], 'label': float32 [R,M,c_dim]}: R rounds of gradient
accumulation over M images, on the global batch R*M. The random draws come first (`draw_*`) and the
updates take them as arrays, so that a reference trajectory can supply its own.
"""

from collections.abc import Callable
import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sg2jax import losses, ops, schedule
from sg2jax.models.mapping import broadcast
from sg2jax.models.stylegan2 import largest

PHASES = ('g', 'g_reg', 'd', 'd_reg')
OBJECTIVE = 'objective'  # what a step minimises, among the numbers that must be finite


@dataclasses.dataclass(frozen=True)
class TrainSteps:
  """Networks, optimizers and constants of training; the methods are the steps. When growing, one
  for each stage.
  """

  generator: Any
  discriminator: Any
  g_tx: optax.GradientTransformation
  d_tx: optax.GradientTransformation
  r1_gamma: float
  r1_interval: int
  pl_weight: float
  pl_decay: float
  pl_interval: int
  pl_shrink: int
  mixing_prob: float
  ema_kimg: float
  ema_rampup: float | None
  w_avg_beta: float = 0.995
  noise_mode: str = 'random'
  constrain: Callable = lambda x: x  # shards [R,M,...] over M; from sharding.py
  spread: Callable = lambda x: x  # shards [M,...], repeated so that it divides; from sharding.py
  lr_rampup_kimg: float = 0
  # gradients of rounds are averaged (TensorFlow's S2) instead of summed (PyTorch's)
  mean_rounds: bool = False
  growth: schedule.Growth | None = None
  stage: schedule.GrowthStage = schedule.GrowthStage()
  precision: str = 'highest'  # of products of float32 arrays: default, high, highest
  # whether finite gradients can make weights that aren't; see state.can_overflow
  check_updates: bool = False

  # ---- networks in training mode

  def _ws(self, g, w_avg, z, c, mix):
    """Mapping with style mixing [S1 3.1]; w_avg follows the first latents only. z [M,z_dim] -> ws,
    new w_avg.
    """
    net = partial(self.generator.apply, {'params': g}, method='map')
    w = net(z, c)
    w_avg = self.w_avg_beta * w_avg + (1 - self.w_avg_beta) * jax.lax.stop_gradient(w.mean(axis=0))
    ws = broadcast(w, self.generator.synthesis.num_ws)
    if mix is not None:
      layer = jnp.arange(ws.shape[1])[None, :, None]
      ws = jnp.where(layer < mix['cutoff'][:, None, None], ws, net(mix['z'], c)[:, None])
    return ws, w_avg

  def _synthesize(self, state, g, key, ws):
    rngs = {'noise': key} if self.noise_mode == 'random' else None
    return self.generator.apply(
      {'params': g, 'noise': state.noise},
      ws,
      self.noise_mode,
      self.stage.level,
      self.alpha(state),
      rngs=rngs,
      method='synthesize',
    )

  def _discriminate(self, state, d, img, c):
    return self.discriminator.apply({'params': d}, img, c, self.alpha(state))

  def alpha(self, state):
    """How far the newest resolution is faded in, [] in [0,1]; None for networks that don't grow."""
    return self.growth and self.growth.alpha(
      self.stage, state.step, state.nimg, state.pl_mean.dtype
    )

  # ---- random draws

  def draw(self, key, batch, shrink=1):
    """Latents, style mixing and labels of one phase: each [R, M/shrink, ...]; the labels are those
    of the reals.
    """
    rounds, micro = batch['label'].shape[:2]
    shape = (rounds, micro // shrink)
    keys = dict(zip(('z', 'z_mix', 'mix', 'cutoff', 'noise', 'pl'), jax.random.split(key, 6)))
    dtype = batch['label'].dtype
    latents = lambda k: self.constrain(
      jax.random.normal(k, (*shape, self.generator.mapping.z_dim), dtype)
    )
    draws = {
      'z': latents(keys['z']),
      'c': batch['label'][:, : shape[1]],
      'noise': jax.random.split(keys['noise'], rounds),
    }
    if self.mixing_prob:
      num_ws = self.generator.synthesis.num_ws - 2 * self.stage.level
      cutoff = jax.random.randint(keys['cutoff'], shape, 1, num_ws)
      mixed = jax.random.bernoulli(keys['mix'], self.mixing_prob, shape)
      draws['mix'] = {'z': latents(keys['z_mix']), 'cutoff': jnp.where(mixed, cutoff, num_ws)}
    return draws, keys['pl']

  def draw_pl(self, key, batch):
    """As `draw` for 1/pl_shrink of the batch, with the image-space noise of the path length
    [R,M/s,H,W,C].
    """
    draws, key = self.draw(key, batch, self.pl_shrink)
    size = (*draws['z'].shape[:2], *batch['image'].shape[2:])
    return draws | {'pl': self.constrain(jax.random.normal(key, size, draws['z'].dtype))}

  # ---- losses of one round x: (params, (w_avg, pl_mean), x) -> (value, ((w_avg, pl_mean), aux))

  def _g_loss(self, state, g, carry, x):
    """Non-saturating loss."""
    ws, w_avg = self._ws(g, carry[0], x['z'], x['c'], x.get('mix'))
    logits = self._discriminate(state, state.d, self._synthesize(state, g, x['noise'], ws), x['c'])
    value = losses.g_nonsaturating(logits).mean()
    return value, ((w_avg, carry[1]), {'loss_g': value, 'logits_fake': logits.mean()})

  def _pl_loss(self, state, g, carry, x):
    """Path length penalty of the full-size image, times its interval; w_avg is tracked here too."""
    ws, w_avg = self._ws(g, carry[0], x['z'], x['c'], x.get('mix'))
    # A part of the batch may be fewer images than there are devices: see sharding.spread. No image
    # feels the others here.
    synthesize = lambda ws: largest(self._synthesize(state, g, x['noise'], ws))
    lengths = losses.path_lengths(synthesize, self.spread(ws), self.spread(x['pl']))[: len(ws)]
    penalty, pl_mean = losses.path_length_penalty(lengths, carry[1], self.pl_decay)
    aux = {'pl_length': lengths.mean(), 'pl_penalty': penalty.mean()}
    return penalty.mean() * (self.pl_weight * (self.pl_interval or 1)), ((w_avg, pl_mean), aux)

  def _d_loss(self, state, d, carry, x):
    """Logistic loss in two passes."""
    ws, w_avg = self._ws(state.g, carry[0], x['z'], x['c'], x.get('mix'))
    fakes = jax.lax.stop_gradient(self._synthesize(state, state.g, x['noise'], ws))
    net = partial(self._discriminate, state, d)
    real_logits, fake_logits = net(x['reals'], x['real_c']), net(fakes, x['c'])
    loss_real, loss_fake = (v.mean() for v in losses.d_logistic(real_logits, fake_logits))
    aux = {
      'loss_d': loss_real + loss_fake,
      'loss_d_real': loss_real,
      'loss_d_fake': loss_fake,
      'logits_real': real_logits.mean(),
    }
    return loss_real + loss_fake, ((w_avg, carry[1]), aux)

  def _r1_loss(self, state, d, carry, x):
    """R1 on the reals, times its interval; 4^-level makes it that of the image enlarged to full
    size, as the paper's was.
    """
    penalty, _ = losses.r1_penalty(
      lambda img: self._discriminate(state, d, img, x['real_c']), x['reals']
    )
    penalty = penalty.mean() * 4.0**-self.stage.level
    return penalty * (self.r1_gamma / 2 * (self.r1_interval or 1)), (carry, {'r1': penalty})

  # ---- updates from draws

  def g_update(self, state, draws, pl_draws=None):
    """Generator step; pl_draws: those of a path length that isn't lazy."""
    return self._update('g', state, [(self._g_loss, draws), (self._pl_loss, pl_draws)])

  def g_reg_update(self, state, draws):
    """Path length step."""
    return self._update('g_reg', state, [(self._pl_loss, draws)])

  def d_update(self, state, draws, reals, labels):
    """Discriminator step, then the EMA of g and the clock.

    reals: [R,M,H,W,C] in [-1,1], labels: theirs [R,M,c_dim]; the fakes have those of `draws`.
    """
    reals = {'reals': reals, 'real_c': labels}
    eager = self.r1_gamma and not self.r1_interval
    batch = labels.shape[0] * labels.shape[1]
    beta = schedule.ema_beta(state.nimg, batch, self.ema_kimg, self.ema_rampup, state.pl_mean.dtype)
    ema = jax.tree.map(lambda p, e: p + (e - p) * beta, state.g, state.g_ema)
    state, aux = self._update(
      'd', state, [(self._d_loss, draws | reals), (self._r1_loss, reals if eager else None)]
    )
    after = {'step': state.step + 1, 'nimg': state.nimg + batch, 'g_ema': ema}
    return state.replace(
      **_unless_halted(state.fault, after, {name: getattr(state, name) for name in after})
    ), aux

  def d_reg_update(self, state, reals, labels):
    """R1 step."""
    before = _minibatch(state, labels)
    after, aux = self._update(
      'd_reg', before, [(self._r1_loss, {'reals': reals, 'real_c': labels})]
    )
    return after.replace(step=state.step, nimg=state.nimg), aux

  def _update(self, phase, state, terms):
    """One Adam step on the sum of the losses [(loss, what it takes of each round [R,...] or None:
    not now)].
    """
    terms = [(loss, xs) for loss, xs in terms if xs is not None]

    def total(params, carry, xs):
      value, aux = 0, {}
      for (loss, _), x in zip(terms, xs):
        term, (carry, more) = loss(state, params, carry, x)
        value, aux = value + term, aux | more
      return value, (carry, aux | {OBJECTIVE: value})

    net, xs = phase[0], [xs for _, xs in terms]
    with jax.default_matmul_precision(self.precision):
      grads, (w_avg, pl_mean), aux = _accumulate(
        total, getattr(state, net), (state.w_avg, state.pl_mean), xs, self.mean_rounds
      )
    nimg = (
      self.growth.last_check_traced(self.stage, state.step, state.nimg)
      if self.growth
      else state.nimg
    )
    ramp = schedule.ramp(nimg, self.lr_rampup_kimg)
    return _apply(
      phase,
      self.g_tx if net == 'g' else self.d_tx,
      state,
      grads,
      aux,
      ramp,
      self.check_updates,
      w_avg=w_avg,
      pl_mean=pl_mean,
    )

  # ---- steps

  def g(self, key, state, batch):
    """Generator step."""
    eager = self.pl_weight and not self.pl_interval
    return self.g_update(
      state,
      self.draw(_phase(key, state, 'g'), batch)[0],
      self.draw_pl(_phase(key, state, 'g_reg'), batch) if eager else None,
    )

  def g_reg(self, key, state, batch):
    """Path length step."""
    return self.g_reg_update(state, self.draw_pl(_phase(key, state, 'g_reg'), batch))

  def d(self, key, state, batch):
    """Discriminator step; advances the clock."""
    draws, _ = self.draw(_phase(key, state, 'd'), batch)
    return self.d_update(state, draws, self.reals(state, batch['image']), batch['label'])

  def d_reg(self, key, state, batch):
    """R1 step, on the reals of the same minibatch; draws nothing."""
    del key
    return self.d_reg_update(
      state, self.reals(_minibatch(state, batch['label']), batch['image']), batch['label']
    )

  def reals(self, state, images):
    """uint8 [R,M,H,W,C] at the size of the stage -> [-1,1] in the dtype of the state, faded like
    the fakes.
    """
    x = images.astype(state.pl_mean.dtype) / 127.5 - 1
    alpha = self.alpha(state)
    if alpha is None or self.stage.level == self.growth.levels:
      return x
    coarse = jax.vmap(lambda x: ops.nearest(ops.half(x)))(x)
    return x + (coarse - x) * (1 - alpha)

  def phases(self, step):
    """Names of the steps that minibatch number `step` runs, in order."""
    every = {
      'g': 1,
      'g_reg': self.pl_weight and self.pl_interval,
      'd': 1,
      'd_reg': self.r1_gamma and self.r1_interval,
    }
    return [name for name in PHASES if every[name] and step % every[name] == 0]


def _phase(key, state, name):
  """The key of this minibatch and phase; never reused, independent of batch layout and device
  count.
  """
  return jax.random.fold_in(jax.random.fold_in(key, state.step), PHASES.index(name))


def _minibatch(state, labels):
  """The state with the clock of this minibatch, which the d step has moved on. labels:
  [R,M,c_dim].
  """
  return state.replace(step=state.step - 1, nimg=state.nimg - labels.shape[0] * labels.shape[1])


def _accumulate(loss, params, carry, xs, mean):
  """Sums gradients over rounds, as the reference does (each a mean over its micro-batch), or
  averages; aux is averaged.
  """
  grad = jax.grad(loss, has_aux=True)
  rounds = jax.tree.leaves(xs)[0].shape[0]
  one = jax.tree.map(lambda x: x[0], xs)
  if rounds == 1:
    grads, (carry, aux) = grad(params, carry, one)
    return grads, carry, aux

  def add(total, x):
    sums, carry = total
    grads, (carry, aux) = grad(params, carry, x)
    return (jax.tree.map(jnp.add, sums, (grads, aux)), carry), None

  grads, (_, aux) = jax.eval_shape(grad, params, carry, one)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, aux))
  ((grads, aux), carry), _ = jax.lax.scan(add, (zeros, carry), xs)
  average = lambda tree: jax.tree.map(lambda x: x / rounds, tree)
  return average(grads) if mean else grads, carry, average(aux)


def _apply(phase, tx, state, grads, aux, ramp, check=False, **changes):
  """One Adam step on the network of `phase` and the given field changes; none of it if a loss, a
  gradient or what Adam makes of it isn't finite.

  Then `fault` says what, and no later step changes anything either, so the host finds the state as
  it was when it looks. aux gains `grad_norm_<phase>` and `grad_squares_<phase>`, the squared norms
  [L] of the arrays: nothing is replaced silently.
  """
  net = phase[0]
  squares = jnp.stack([jnp.sum(jnp.square(x)) for x in jax.tree.leaves(grads)])
  reported = jnp.stack([aux[name] for name in sorted(aux)])
  old = {net: getattr(state, net), f'{net}_opt': getattr(state, f'{net}_opt')}
  updates, opt = tx.update(grads, old[f'{net}_opt'], old[net])
  updates = jax.tree.map(lambda u: u * ramp, updates)
  new = {net: optax.apply_updates(old[net], updates), f'{net}_opt': opt} | changes
  bad = jnp.concatenate([~jnp.isfinite(squares), ~jnp.isfinite(reported)])
  if check:  # the losses would show it one minibatch later, after a checkpoint perhaps
    bad = jnp.concatenate(
      [bad, jnp.stack([~jnp.isfinite(x).all() for x in jax.tree.leaves(new[net])])]
    )
  found = jnp.stack([state.step, jnp.int32(PHASES.index(phase)), jnp.argmax(bad).astype(jnp.int32)])
  fault = jnp.where((state.fault[1] < 0) & bad.any(), found, state.fault)
  old |= {name: getattr(state, name) for name in changes}
  del aux[OBJECTIVE]
  aux |= {f'grad_norm_{phase}': jnp.sqrt(squares.sum()), f'grad_squares_{phase}': squares}
  return state.replace(**_unless_halted(fault, new, old), fault=fault), aux


def _unless_halted(fault, new, old):
  """The new values, or the old ones if there was a fault."""
  return jax.tree.map(partial(jnp.where, fault[1] < 0), new, old)


def suspects(phase, state, aux):
  """Names of what the last number of a fault counts: arrays of the network of `phase`, then what
  the step reports (`aux`), then the arrays as Adam would have left them.
  """
  arrays = [
    jax.tree_util.keystr(path, simple=True, separator='.')
    for path, _ in jax.tree_util.tree_leaves_with_path(getattr(state, phase[0]))
  ]
  own = {f'grad_norm_{phase}', f'grad_squares_{phase}'}
  names = [f'{phase[0]}.{name}' for name in arrays]
  return names + sorted({OBJECTIVE, *aux} - own) + [f'{name} after the update' for name in names]
