"""The four updates of a minibatch [S2 App. B].

  g      generator loss
  g_reg  path lengths, on part of the batch
  d      discriminator loss; then the EMA of g follows, and the clock moves on
  d_reg  R1, on the reals of the same minibatch

Lazy regularization: g_reg and d_reg are steps of their own at every k-th minibatch, with k times
their weight. With interval 0 the regularizer is added to the main loss of every minibatch (configs
A and B); with weight 0 it doesn't exist.

A step is `(key, state, batch) -> (state, aux)`, pure, and jitted by itself with the state donated:
its buffers become those of the new state, which saves a second copy of it. A batch is
{'image': uint8 [R,M,H,W,C], 'label': float32 [R,M,c_dim]}: R rounds of gradient accumulation over M
images; sizes are global, over all devices. What a step reports (`aux`) stays on the device.

Random numbers are drawn apart (`draw`) from the updates that take them (`*_update`), so that the
reference trajectories of the tests can supply their own.
"""

from collections.abc import Callable, Collection
import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sg2jax import losses, resample, schedule
from sg2jax.augment import Augment, transform
from sg2jax.models.generator import largest
from sg2jax.models.mapping import broadcast
from sg2jax.packing import unpack
from sg2jax.state import TrainState, freeze
from sg2jax.update import OBJECTIVE, PHASES, accumulate, apply_gradients, regularized

# Of a minibatch: g_reg follows g as both are of one Adam, d sees the generator after both. d moves
# the clock and the EMA: what follows it must look back, as d_reg does (_before_d), g and g_reg not.
ORDER = ('g', 'g_reg', 'd', 'd_reg')
Result = tuple[TrainState, dict]  # of a step: the new state, and what it reports


class Averages(NamedTuple):
  """Moving averages that a loss uses and moves on, one round of accumulation after the other."""

  w_avg: jax.Array  # [w_dim]
  pl_mean: jax.Array  # []
  augment_signs: jax.Array  # [2], sum and number of the signs of D's logits of reals


@dataclasses.dataclass(frozen=True)
class TrainSteps:
  """Networks, optimizers and constants of training (of one stage of growth); methods are steps."""

  generator: Any  # models.generator.Generator
  discriminator: Any  # models.discriminator.Discriminator
  g_tx: optax.GradientTransformation  # of g and g_reg
  d_tx: optax.GradientTransformation  # of d and d_reg
  r1_gamma: float  # weight of R1; 0: none
  r1_interval: int  # minibatches between d_reg steps; 0: R1 is part of d
  pl_weight: float  # weight of path lengths; 0: none
  pl_decay: float  # of pl_mean, per round
  pl_interval: int  # minibatches between g_reg steps; 0: path lengths are part of g
  pl_shrink: int  # path lengths use 1/pl_shrink of each round
  mixing_prob: float  # of style mixing, per image
  ema_kimg: float  # half-life of g_ema, thousands of images
  ema_rampup: float | None  # the half-life is at most this times the images so far; None: no ramp
  w_avg_beta: float = 0.995  # w_avg keeps so much of itself, per round
  noise_mode: str = 'random'  # of the synthesis network: random, const, none
  constrain: Callable = lambda x: x  # divides [R,M,...] over the devices; from sharding.py
  spread: Callable = lambda x: x  # divides [M,...], with rows repeated; from sharding.py
  lr_rampup_kimg: float = 0  # thousands of images over which the learning rate rises from 0
  mean_rounds: bool = False  # gradients of rounds: averaged (TensorFlow) or summed (PyTorch)
  growth: schedule.Growth | None = None  # None: the networks don't grow
  stage: schedule.GrowthStage = schedule.GrowthStage()  # of growth
  precision: str = 'highest'  # of products of float32 arrays: default, high, highest
  check_updates: bool = False  # whether new weights are checked as well: see state.can_overflow
  frozen: Collection[tuple[str, str]] = ()  # (block, layer) of D that keep their weights
  augment: Augment | None = None  # of all images that D sees; None: it sees them as they are
  moves_of_p: schedule.MovesOfP = schedule.MovesOfP()  # the strength of the augmentation

  # ---- networks in training mode

  def _ws(self, g, w_avg, z, c, mix):
    """Mapping with style mixing [S1 3.1]: z [M,z_dim] -> (ws [M,num_ws,w_dim], new w_avg)."""
    mapping = partial(self.generator.apply, {'params': g}, method='map')
    if mix is None:
      w = mapping(z, c)
    else:
      # at once, side by side: along the batch they would be apart from their devices
      w, mixed = mapping(jnp.stack([z, mix['z']]), jnp.stack([c, c]))  # [M,w_dim] each
    # w_avg follows the first latents only, not those that are mixed in
    mean = jax.lax.stop_gradient(w.mean(axis=0))
    w_avg = self.w_avg_beta * w_avg + (1 - self.w_avg_beta) * mean
    ws = broadcast(w, self.generator.synthesis.num_ws)
    if mix is not None:
      layer = jnp.arange(ws.shape[1])[None, :, None]
      ws = jnp.where(layer < mix['cutoff'][:, None, None], ws, mixed[:, None])
    return ws, w_avg

  def _synthesize(self, state, g, key, ws):
    return self.generator.apply(
      {'params': g, 'noise': state.noise},
      ws,
      self.noise_mode,
      self.stage.level,
      self.alpha(state),
      rngs={'noise': key} if self.noise_mode == 'random' else None,
      method='synthesize',
    )

  def _discriminate(self, state, d, img, c, draws=None, twice=False):
    """draws: of the augmentation. twice: whether it is differentiated twice."""
    discriminator = self.discriminator.clone(remat_layers=True) if twice else self.discriminator
    if draws is not None:
      img = self._augmented(state, img, draws)
    return discriminator.apply({'params': d}, img, c, self.alpha(state))

  def _augmented(self, state, img, draws):
    """Images [M,H,W,C] as D sees them."""
    # Outside of what is conditional: inside, XLA computes them again for every pixel.
    parameters = self.augment.parameters(draws, state.augment_p, img.shape[1:])
    # Of one program: at p = 0 images are left alone, and nothing is compiled anew when p moves.
    return jax.lax.cond(state.augment_p > 0, transform, _unchanged, img, parameters)

  def alpha(self, state: TrainState) -> jax.Array | None:
    """How far the newest resolution is faded in, [] in [0,1]; None for networks that don't grow."""
    if self.growth is None:
      return None
    return self.growth.alpha(self.stage, state.step, state.nimg, state.pl_mean.dtype)

  # ---- random draws

  def draw(self, key: jax.Array, batch: dict) -> dict:
    """Latents, style mixing, noise keys and labels (those of the reals) of one phase: [R,M,...].

    And 'augment', the draws of the augmentation of fakes, where there is one.
    """
    keys = _draw_keys(key)
    draws = self._draw(keys, batch['label'])
    return draws | self._draw_augmentation('augment', keys, batch)

  def draw_reals(self, key: jax.Array, batch: dict) -> dict:
    """What a phase draws for the reals: {'augment_reals': of the augmentation}, or {}."""
    return self._draw_augmentation('augment_reals', _draw_keys(key), batch)

  def _draw_augmentation(self, name, keys, batch):
    if self.augment is None:
      return {}
    shape = batch['image'].shape
    draws = self.augment.draw(keys[name], shape[:2], shape[2:], batch['label'].dtype)
    return {name: jax.tree.map(self.constrain, draws)}

  def draw_pl(self, key: jax.Array, batch: dict) -> dict:
    """As `draw` for 1/pl_shrink of each round; 'pl' is the image noise of Eq. 4, [R,M',H,W,C]."""
    keys = _draw_keys(key)
    part = batch['label'].shape[1] // self.pl_shrink
    draws = self._draw(keys, batch['label'][:, :part])
    shape = (*draws['z'].shape[:2], *batch['image'].shape[2:])
    return draws | {'pl': self._normal(keys['pl'], shape, draws['z'].dtype)}

  def _normal(self, key, shape, dtype):
    return self.constrain(jax.random.normal(key, shape, dtype))

  def _draw(self, keys, labels):
    shape = labels.shape[:2]
    latents = (*shape, self.generator.mapping.z_dim)
    draws = {
      'z': self._normal(keys['z'], latents, labels.dtype),
      'c': labels,
      'noise': jax.random.split(keys['noise'], shape[0]),  # a key for each round
    }
    if self.mixing_prob:
      # layers from the cutoff on take the second w; of the layers that are there, when growing
      num_ws = self.generator.synthesis.num_ws - 2 * self.stage.level
      cutoff = jax.random.randint(keys['cutoff'], shape, 1, num_ws)
      mixed = jax.random.bernoulli(keys['mix'], self.mixing_prob, shape)
      draws['mix'] = {
        'z': self._normal(keys['z_mix'], latents, labels.dtype),
        'cutoff': jnp.where(mixed, cutoff, num_ws),
      }
    return draws

  # ---- losses of one round: (state, params, averages, x) -> (value, (averages, aux))
  #
  # x: what the round takes of the draws and the batch, [M,...]. `state` supplies the other network.

  def _g_loss(self, state, g, averages, x):
    """Non-saturating loss."""
    ws, w_avg = self._ws(g, averages.w_avg, x['z'], x['c'], x.get('mix'))
    fakes = self._synthesize(state, g, x['noise'], ws)
    logits = self._discriminate(state, state.d, fakes, x['c'], x.get('augment'))
    value = losses.g_nonsaturating(logits).mean()
    aux = {'loss_g': value, 'logits_fake': logits.mean()}
    return value, (averages._replace(w_avg=w_avg), aux)

  def _pl_loss(self, state, g, averages, x):
    """Path length penalty of the full-size image, times its interval; w_avg is tracked here too."""
    ws, w_avg = self._ws(g, averages.w_avg, x['z'], x['c'], x.get('mix'))

    def synthesize(ws):
      return largest(self._synthesize(state, g, x['noise'], ws))

    # A part of the batch may be fewer images than there are devices, or than a TPU likes: then some
    # are repeated (see sharding.spread), which changes nothing, as no image feels the others here,
    # and of random numbers, noise for instance, the first rows don't depend on how many there are.
    lengths = losses.path_lengths(synthesize, self.spread(ws), self.spread(x['pl']))[: len(ws)]
    penalty, pl_mean = losses.path_length_penalty(lengths, averages.pl_mean, self.pl_decay)
    value = penalty.mean() * (self.pl_weight * (self.pl_interval or 1))
    aux = {'pl_length': lengths.mean(), 'pl_penalty': penalty.mean()}
    return value, (averages._replace(w_avg=w_avg, pl_mean=pl_mean), aux)

  def _d_loss(self, state, d, averages, x):
    """Logistic loss. Reals and fakes go through D one after the other, each in its own groups."""
    ws, w_avg = self._ws(state.g, averages.w_avg, x['z'], x['c'], x.get('mix'))
    fakes = jax.lax.stop_gradient(self._synthesize(state, state.g, x['noise'], ws))
    real_logits = self._discriminate(state, d, x['reals'], x['real_c'], x.get('augment_reals'))
    fake_logits = self._discriminate(state, d, fakes, x['c'], x.get('augment'))
    loss_real, loss_fake = (v.mean() for v in losses.d_logistic(real_logits, fake_logits))
    value = loss_real + loss_fake
    aux = {'loss_d': value, 'loss_d_real': loss_real, 'loss_d_fake': loss_fake}
    averages, signs = _add_signs(averages, real_logits)
    aux |= {'logits_real': real_logits.mean(), 'r_t': signs[0] / signs[1]}
    if self.augment is not None:
      aux['augment_p'] = state.augment_p
    return value, (averages._replace(w_avg=w_avg), aux)

  def _r1_loss(self, state, d, averages, x):
    """R1 on the reals, times its interval."""

    def discriminate(img):
      draws = x.get('augment_reals')
      return self._discriminate(state, d, img, x['real_c'], draws, twice=True)

    penalty, logits = losses.r1_penalty(discriminate, x['reals'])
    # As in the reference the signs of these logits count as well; where this minibatch's d has just
    # moved p, as with augment.interval=1, at its next move, and in the reference at this one.
    averages, _ = _add_signs(averages, logits)
    # Of the image enlarged to full size, as the paper's was when growing: a pixel's gradient is
    # spread over 4^level pixels, so that the squared norm is 4^-level of this.
    penalty = penalty.mean() * 4.0**-self.stage.level
    return penalty * (self.r1_gamma / 2 * (self.r1_interval or 1)), (averages, {'r1': penalty})

  # ---- updates from draws

  def g_update(self, state: TrainState, draws: dict, pl_draws: dict | None = None) -> Result:
    """Generator step; pl_draws: those of path lengths that aren't lazy."""
    if pl_draws is None:
      return self._update('g', state, self._g_loss, draws)
    return self._update('g', state, regularized(self._g_loss, self._pl_loss), (draws, pl_draws))

  def g_reg_update(self, state: TrainState, draws: dict) -> Result:
    """Path length step."""
    return self._update('g_reg', state, self._pl_loss, draws)

  def d_update(
    self,
    state: TrainState,
    draws: dict,
    reals: jax.Array,
    labels: jax.Array,
    real_draws: dict | None = None,
  ) -> Result:
    """Discriminator step, then the EMA of g, the clock, and p of the augmentation.

    Args:
      state: of training.
      draws: of `draw`; the fakes have its labels.
      reals: [R,M,H,W,C] in [-1,1].
      labels: theirs [R,M,c_dim].
      real_draws: of `draw_reals`.
    """
    reals = _of_reals(reals, labels, real_draws)
    batch = labels.shape[0] * labels.shape[1]
    # with the clock before this minibatch, and the weights that g and g_reg have left
    beta = schedule.ema_beta(state.nimg, batch, self.ema_kimg, self.ema_rampup, state.pl_mean.dtype)
    ema = jax.tree.map(lambda p, e: p + (e - p) * beta, state.g, state.g_ema)
    after = {'g_ema': ema, 'step': state.step + 1, 'nimg': state.nimg + batch}
    if self.r1_gamma and not self.r1_interval:
      loss = regularized(self._d_loss, self._r1_loss)
      return self._update('d', state, loss, (draws | reals, reals), **after)
    return self._update('d', state, self._d_loss, draws | reals, **after)

  def d_reg_update(
    self, state: TrainState, reals: jax.Array, labels: jax.Array, real_draws: dict | None = None
  ) -> Result:
    """R1 step; arguments as of d_update."""
    before = _before_d(state, labels)
    xs = _of_reals(reals, labels, real_draws)
    after, aux = self._update('d_reg', before, self._r1_loss, xs)
    return after.replace(step=state.step, nimg=state.nimg), aux

  def _update(self, phase, state, loss, xs, **changes):
    """One Adam step on a loss, and the given changes of the state. xs: [R,M,...]."""
    net = phase[0]  # 'g' or 'd', which is also the field of the weights
    nets = state.replace(g=unpack(state.g), d=unpack(state.d))

    def objective(params, averages, x):
      value, (averages, aux) = loss(nets, params, averages, x)
      return value, (averages, aux | {OBJECTIVE: value})

    with jax.default_matmul_precision(self.precision):
      averages = Averages(state.w_avg, state.pl_mean, state.augment_signs)
      grads, averages, aux = accumulate(
        objective, getattr(nets, net), averages, xs, self.mean_rounds
      )
    if net == 'd' and self.frozen:
      grads = freeze(grads, self.frozen)
    nimg = state.nimg
    if self.growth is not None:
      nimg = self.growth.last_check(self.stage, state.step, nimg)
    ramp = schedule.ramp(nimg, self.lr_rampup_kimg)
    tx = self.g_tx if net == 'g' else self.d_tx
    changes |= averages._asdict()
    if self.augment is None or not self.moves_of_p.target:
      del changes['augment_signs']  # nobody reads them
    elif phase == 'd':
      signs = changes['augment_signs']
      batch = changes['nimg'] - state.nimg
      p, signs = self.moves_of_p.move(state.augment_p, signs, state.step, batch)
      changes |= {'augment_p': p, 'augment_signs': signs}
    return apply_gradients(phase, tx, state, grads, aux, ramp, self.check_updates, **changes)

  # ---- steps

  def g(self, key: jax.Array, state: TrainState, batch: dict) -> Result:
    """Generator step."""
    draws = self.draw(_phase_key(key, state, 'g'), batch)
    pl_draws = None
    if self.pl_weight and not self.pl_interval:
      pl_draws = self.draw_pl(_phase_key(key, state, 'g_reg'), batch)
    return self.g_update(state, draws, pl_draws)

  def g_reg(self, key: jax.Array, state: TrainState, batch: dict) -> Result:
    """Path length step."""
    return self.g_reg_update(state, self.draw_pl(_phase_key(key, state, 'g_reg'), batch))

  def d(self, key: jax.Array, state: TrainState, batch: dict) -> Result:
    """Discriminator step; moves the clock on."""
    key = _phase_key(key, state, 'd')
    draws = self.draw(key, batch)
    reals = self.reals(state, batch['image'])
    return self.d_update(state, draws, reals, batch['label'], self.draw_reals(key, batch))

  def d_reg(self, key: jax.Array, state: TrainState, batch: dict) -> Result:
    """R1 step, on the reals of the same minibatch."""
    before = _before_d(state, batch['label'])
    draws = self.draw_reals(_phase_key(key, before, 'd_reg'), batch)
    return self.d_reg_update(state, self.reals(before, batch['image']), batch['label'], draws)

  def reals(self, state: TrainState, images: jax.Array) -> jax.Array:
    """uint8 [R,M,H,W,C] at the stage's size -> [-1,1] in the state's dtype, faded like fakes."""
    x = images.astype(state.pl_mean.dtype) / 127.5 - 1
    alpha = self.alpha(state)
    if alpha is None or self.stage.level == self.growth.levels:
      return x
    coarse = jax.vmap(lambda x: resample.nearest(resample.half(x)))(x)
    return x + (coarse - x) * (1 - alpha)

  def phases(self, step: int) -> list[str]:
    """Names of the steps that minibatch number `step` runs, in order."""
    intervals = {
      'g': 1,
      'g_reg': self.pl_interval if self.pl_weight else 0,
      'd': 1,
      'd_reg': self.r1_interval if self.r1_gamma else 0,
    }
    return [name for name in ORDER if intervals[name] and step % intervals[name] == 0]


def _unchanged(img, parameters):
  del parameters
  return img


def _phase_key(key, state, phase):
  """The key of this minibatch and phase; never reused, and no other one for other batch layouts."""
  return jax.random.fold_in(jax.random.fold_in(key, state.step), PHASES.index(phase))


def _draw_keys(key):
  names = ('z', 'z_mix', 'mix', 'cutoff', 'noise', 'pl', 'augment', 'augment_reals')
  return dict(zip(names, jax.random.split(key, len(names)), strict=True))


def _of_reals(reals, labels, draws):
  return {'reals': reals, 'real_c': labels} | (draws or {})


def _add_signs(averages, logits):
  """Averages with the signs of the logits [M,1] of reals, and [2] their own sum and number."""
  signs = jnp.stack([jnp.sign(logits).sum(), jnp.asarray(logits.size, logits.dtype)])
  total = averages.augment_signs + signs.astype(averages.augment_signs.dtype)
  return averages._replace(augment_signs=total), signs


def _before_d(state, labels):
  """The state with the clock of this minibatch, which d has moved on. labels: [R,M,c_dim]."""
  return state.replace(step=state.step - 1, nimg=state.nimg - labels.shape[0] * labels.shape[1])
