"""The four updates of a minibatch, in this order: g, g_reg (path length), d (with EMA and clock), d_reg (R1) [S2 App. B].

Each is `(key, state, batch) -> (state, aux)`, pure, and is jitted by itself on a donated state. A batch is
{'image': uint8 [R,M,H,W,C], 'label': float32 [R,M,c_dim]}: R rounds of gradient accumulation over M images, on the
global batch R*M. The random draws come first (`draw_*`) and the updates take them as arrays, so that a reference
trajectory can supply its own.
"""
from collections.abc import Callable
import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sg2jax import losses, schedule
from sg2jax.models.mapping import broadcast

PHASES = ('g', 'g_reg', 'd', 'd_reg')


@dataclasses.dataclass(frozen=True)
class Steps:
  """Networks, optimizers and constants of training; the methods are the steps. Intervals 0: that regularizer is off."""
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

  # ---- networks in training mode

  def _ws(self, g, w_avg, z, c, mix):
    """Mapping with style mixing [S1 3.1]; w_avg follows the first latents only. z [M,z_dim] -> ws, new w_avg."""
    net = partial(self.generator.apply, {'params': g}, method='map')
    w = net(z, c)
    w_avg = self.w_avg_beta * w_avg + (1 - self.w_avg_beta) * jax.lax.stop_gradient(w.mean(axis=0))
    ws = broadcast(w, self.generator.synthesis.num_ws)
    if mix is not None:
      layer = jnp.arange(ws.shape[1])[None, :, None]
      ws = jnp.where(layer < mix['cutoff'][:, None, None], ws, net(mix['z'], c)[:, None])
    return ws, w_avg

  def _synthesize(self, g, noise, key, ws):
    rngs = {'noise': key} if self.noise_mode == 'random' else None
    return self.generator.apply({'params': g, 'noise': noise}, ws, self.noise_mode, rngs=rngs, method='synthesize')

  # ---- random draws

  def draw(self, key, batch, shrink=1):
    """Latents, style mixing and labels of one phase: each [R, M/shrink, ...]; the labels are those of the reals."""
    rounds, micro = batch['label'].shape[:2]
    shape = (rounds, micro // shrink)
    keys = dict(zip(('z', 'z_mix', 'mix', 'cutoff', 'noise', 'pl'), jax.random.split(key, 6)))
    dtype = batch['label'].dtype
    latents = lambda k: self.constrain(jax.random.normal(k, (*shape, self.generator.mapping.z_dim), dtype))
    draws = {'z': latents(keys['z']), 'c': batch['label'][:, :shape[1]], 'noise': jax.random.split(keys['noise'], rounds)}
    if self.mixing_prob:
      num_ws = self.generator.synthesis.num_ws
      cutoff = jax.random.randint(keys['cutoff'], shape, 1, num_ws)
      mixed = jax.random.bernoulli(keys['mix'], self.mixing_prob, shape)
      draws['mix'] = {'z': latents(keys['z_mix']), 'cutoff': jnp.where(mixed, cutoff, num_ws)}
    return draws, keys['pl']

  def draw_pl(self, key, batch):
    """As `draw` for 1/pl_shrink of the batch, with the image-space noise of the path length [R,M/s,H,W,C]."""
    draws, key = self.draw(key, batch, self.pl_shrink)
    size = (*draws['z'].shape[:2], *batch['image'].shape[2:])
    return draws | {'pl': self.constrain(jax.random.normal(key, size, draws['z'].dtype))}

  # ---- updates from draws

  def g_update(self, state, draws):
    """Non-saturating loss of the generator."""
    def loss(g, w_avg, x):
      ws, w_avg = self._ws(g, w_avg, x['z'], x['c'], x.get('mix'))
      logits = self.discriminator.apply({'params': state.d}, self._synthesize(g, state.noise, x['noise'], ws), x['c'])
      value = losses.g_nonsaturating(logits).mean()
      return value, (w_avg, {'loss_g': value, 'logits_fake': logits.mean()})
    grads, w_avg, aux = _accumulate(loss, state.g, state.w_avg, draws)
    return _apply('g', self.g_tx, state, grads, aux, w_avg=w_avg)

  def g_reg_update(self, state, draws):
    """Path length regularization, times its interval; w_avg is tracked here too."""
    def loss(g, carry, x):
      ws, w_avg = self._ws(g, carry[0], x['z'], x['c'], x.get('mix'))
      lengths = losses.path_lengths(partial(self._synthesize, g, state.noise, x['noise']), ws, x['pl'])
      penalty, pl_mean = losses.path_length_penalty(lengths, carry[1], self.pl_decay)
      aux = {'pl_length': lengths.mean(), 'pl_penalty': penalty.mean()}
      return penalty.mean() * self.pl_weight * self.pl_interval, ((w_avg, pl_mean), aux)
    grads, (w_avg, pl_mean), aux = _accumulate(loss, state.g, (state.w_avg, state.pl_mean), draws)
    return _apply('g_reg', self.g_tx, state, grads, aux, w_avg=w_avg, pl_mean=pl_mean)

  def d_update(self, state, draws, reals, labels):
    """Logistic loss of the discriminator in two passes, then the EMA of g and the clock.

    reals: [R,M,H,W,C] in [-1,1], labels: theirs [R,M,c_dim]; the fakes have those of `draws`.
    """
    def loss(d, w_avg, x):
      ws, w_avg = self._ws(state.g, w_avg, x['z'], x['c'], x.get('mix'))
      fakes = jax.lax.stop_gradient(self._synthesize(state.g, state.noise, x['noise'], ws))
      net = partial(self.discriminator.apply, {'params': d})
      real_logits, fake_logits = net(x['reals'], x['real_c']), net(fakes, x['c'])
      loss_real, loss_fake = (v.mean() for v in losses.d_logistic(real_logits, fake_logits))
      aux = {'loss_d': loss_real + loss_fake, 'loss_d_real': loss_real, 'loss_d_fake': loss_fake,
             'logits_real': real_logits.mean()}
      return loss_real + loss_fake, (w_avg, aux)
    grads, w_avg, aux = _accumulate(loss, state.d, state.w_avg, draws | {'reals': reals, 'real_c': labels})
    batch = reals.shape[0] * reals.shape[1]
    beta = schedule.ema_beta(state.nimg, batch, self.ema_kimg, self.ema_rampup, state.pl_mean.dtype)
    ema = jax.tree.map(lambda p, e: p + (e - p) * beta, state.g, state.g_ema)
    state, aux = _apply('d', self.d_tx, state, grads, aux, w_avg=w_avg)
    return state.replace(step=state.step + 1, nimg=state.nimg + batch, g_ema=ema), aux

  def d_reg_update(self, state, reals, labels):
    """R1 on the reals, times its interval."""
    def loss(d, carry, x):
      penalty, _ = losses.r1_penalty(lambda img: self.discriminator.apply({'params': d}, img, x['c']), x['reals'])
      return penalty.mean() * (self.r1_gamma / 2 * self.r1_interval), (carry, {'r1': penalty.mean()})
    grads, _, aux = _accumulate(loss, state.d, (), {'reals': reals, 'c': labels})
    return _apply('d_reg', self.d_tx, state, grads, aux)

  # ---- steps

  def g(self, key, state, batch):
    """Generator step."""
    return self.g_update(state, self.draw(_phase(key, state, 'g'), batch)[0])

  def g_reg(self, key, state, batch):
    """Path length step."""
    return self.g_reg_update(state, self.draw_pl(_phase(key, state, 'g_reg'), batch))

  def d(self, key, state, batch):
    """Discriminator step; advances the clock."""
    draws, _ = self.draw(_phase(key, state, 'd'), batch)
    return self.d_update(state, draws, to_float(batch['image'], state), batch['label'])

  def d_reg(self, key, state, batch):
    """R1 step, on the reals of the same minibatch; draws nothing."""
    del key
    return self.d_reg_update(state, to_float(batch['image'], state), batch['label'])

  def due(self, step):
    """Names of the steps that minibatch number `step` runs, in order."""
    every = {'g': 1, 'g_reg': self.pl_interval, 'd': 1, 'd_reg': self.r1_interval}
    return [name for name in PHASES if every[name] and step % every[name] == 0]


def to_float(images, state):
  """uint8 images -> [-1,1] in the dtype of the state."""
  return images.astype(state.pl_mean.dtype) / 127.5 - 1


def _phase(key, state, name):
  """The key of this minibatch and phase; never reused, independent of batch layout and device count."""
  return jax.random.fold_in(jax.random.fold_in(key, state.step), PHASES.index(name))


def _accumulate(loss, params, carry, xs):
  """Sums gradients over rounds, as the reference does (each a mean over its micro-batch); aux is averaged."""
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
  return grads, carry, jax.tree.map(lambda x: x / rounds, aux)


def _apply(phase, tx, state, grads, aux, **changes):
  """One Adam step on the network of `phase` and the given field changes; none of it if a gradient isn't finite.

  aux gains `grad_norm_<phase>`, which is how the host learns of it: nothing is ever replaced silently.
  """
  net, norm = phase[0], optax.tree.norm(grads)
  old = {net: getattr(state, net), f'{net}_opt': getattr(state, f'{net}_opt')}
  updates, opt = tx.update(grads, old[f'{net}_opt'], old[net])
  new = {net: optax.apply_updates(old[net], updates), f'{net}_opt': opt} | changes
  old |= {name: getattr(state, name) for name in changes}
  kept = jax.tree.map(partial(jnp.where, jnp.isfinite(norm)), new, old)
  return state.replace(**kept), aux | {f'grad_norm_{phase}': norm}
