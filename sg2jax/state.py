"""TrainState: what training changes and a checkpoint holds, arrays only; and Adam."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from flax import struct, traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax

from sg2jax import packing, schedule, sharding

NO_FAULT = np.full(3, -1, np.int32)
ZERO = np.zeros((), np.float32)
NO_SIGNS = np.zeros(2, np.float32)


@struct.dataclass
class TrainState:
  """Everything that a step reads and writes; nested dicts under NVIDIA's names.

  While minibatches run, networks and moments are as pack_state makes them.
  """

  step: jax.Array  # [] int32, minibatches so far
  nimg: jax.Array  # [] int32, images so far: the clock
  g: Any  # generator parameters
  d: Any  # discriminator parameters
  g_ema: Any  # exponential moving average of g
  g_opt: Any  # Adam moments and count, shared by g and g_reg
  d_opt: Any  # the same for d and d_reg
  noise: Any  # constant noise maps of the synthesis network, {..., 'noise_const': [H,W]}
  w_avg: jax.Array  # [w_dim], moving average of w
  pl_mean: jax.Array  # [], moving average of path lengths
  # [], probability that an augmentation is done where its strength is 1
  augment_p: jax.Array = struct.field(default_factory=ZERO.copy)
  # [2], sum and number of the signs of D's logits of reals since p last moved
  augment_signs: jax.Array = struct.field(default_factory=NO_SIGNS.copy)
  # [3] int32: step, phase and array (see update.PHASES, update.checked_names) of the first number
  # that wasn't finite; -1 while there was none. Once set, no step changes anything any more.
  fault: jax.Array = struct.field(default_factory=NO_FAULT.copy)


# Fields that checkpoints of an older format lack, and what they then are.
LATER_FIELDS = {'fault': NO_FAULT, 'augment_p': ZERO, 'augment_signs': NO_SIGNS}


def create_train_state(
  key: jax.Array,
  generator: Any,
  discriminator: Any,
  g_tx: optax.GradientTransformation,
  d_tx: optax.GradientTransformation,
  dtype: Any = jnp.float32,
  augment_p: float = 0.0,
) -> TrainState:
  """A fresh state. Weights and noise maps are N(0,1) draws from `key`; dtype: of every float."""
  key_g, key_d = jax.random.split(key)
  mapping, synthesis = generator.mapping, generator.synthesis
  z = jnp.zeros((1, mapping.z_dim))
  c = jnp.zeros((1, mapping.c_dim))
  img = jnp.zeros((1, *synthesis.resolution, synthesis.img_channels))
  g = generator.init(key_g, z, c, noise_mode='const')
  d = discriminator.init(key_d, img, jnp.zeros((1, discriminator.c_dim)))
  g, d = jax.tree.map(lambda x: x.astype(dtype), (g, d))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    nimg=jnp.zeros((), jnp.int32),
    g=g['params'],
    d=d['params'],
    g_ema=jax.tree.map(
      jnp.copy, g['params']
    ),  # steps donate the state: no array may be in it twice
    g_opt=g_tx.init(g['params']),
    d_opt=d_tx.init(d['params']),
    noise=g.get('noise', {}),
    w_avg=jnp.zeros(mapping.w_dim, dtype),
    pl_mean=jnp.zeros((), dtype),
    augment_p=jnp.asarray(augment_p, dtype),
    augment_signs=jnp.asarray(NO_SIGNS, dtype),
    fault=jnp.asarray(NO_FAULT),
  )


def transfer(fresh: TrainState, old: dict) -> tuple[TrainState, dict]:
  """A fresh state with those weights of another, as nested dicts, that fit by name and shape.

  Networks, noise maps and w_avg are taken over; the clock, Adam and pl_mean begin anew.

  Returns:
    The state, and {'copied': [name], 'initialised': {name: why}, 'unused': {name: shape}}.
  """
  copied, initialised, unused, changes = [], {}, {}, {}
  for field in ('g', 'd', 'g_ema', 'noise', 'w_avg'):
    here = traverse_util.flatten_dict({field: getattr(fresh, field)})
    there = traverse_util.flatten_dict({field: old.get(field, {})})
    for path, x in here.items():
      name = '.'.join(path)
      found = there.pop(path, None)
      if found is None:
        initialised[name] = f'{list(x.shape)}, not there'
      elif found.shape != x.shape:
        initialised[name] = f'{list(x.shape)}, {list(found.shape)} there'
      else:
        here[path] = jnp.asarray(found, x.dtype)
        copied.append(name)
    unused |= {'.'.join(path): list(x.shape) for path, x in there.items() if hasattr(x, 'shape')}
    changes[field] = traverse_util.unflatten_dict(here).get(field, {})
  done = {'copied': copied, 'initialised': initialised, 'unused': unused}
  return fresh.replace(**changes), done


def clock(state: TrainState) -> tuple[int, int]:
  """(step, nimg) as numbers. Waits for the device."""
  step, nimg = jax.device_get((state.step, state.nimg))
  return int(step), int(nimg)


def halted(state: TrainState) -> bool:
  """Whether a number that isn't finite has halted it. Waits for the device."""
  return bool(jax.device_get(state.fault)[1] >= 0)


# ---- Adam


def adam(
  lr: float, beta1: float, beta2: float, eps: float, interval: int, eps_hat: bool = False
) -> optax.GradientTransformation:
  """Adam shared by a loss and its regularizer at every `interval` minibatches [S2 App. B].

  interval 0: the regularizer isn't lazy. eps_hat: eps is added to sqrt(v) before the correction of
  the bias, as TensorFlow does [Kingma & Ba 2015, end of section 2].
  """
  c = schedule.lazy_correction(interval)
  lr, beta1, beta2 = lr * c, beta1**c, beta2**c
  if not eps_hat:
    return optax.adam(lr, beta1, beta2, eps)

  def update(grads, state, params=None):
    # optax adds eps after the correction: that of the step t = count + 1 is taken out of it
    corrected = eps / jnp.sqrt(1 - beta2 ** (state.count + 1))
    return optax.scale_by_adam(beta1, beta2, corrected).update(grads, state, params)

  moments = optax.scale_by_adam(beta1, beta2, eps)
  return optax.chain(
    optax.GradientTransformation(moments.init, update), optax.scale_by_learning_rate(lr)
  )


def can_overflow(lr: float, beta1: float, beta2: float, eps: float) -> bool:
  """Whether Adam can make float32 weights that aren't finite of gradients whose squares are.

  An update is at most lr / eps times the largest such gradient, 2e19; and betas next to 1 make
  0 / 0 of the correction of the bias.
  """
  return lr / eps > 1e18 or max(beta1, beta2) > 1 - 1e-6


def freeze(grads: dict, layers: Collection[tuple[str, str]]) -> dict:
  """Gradients with zeros for these (block, layer) [Freeze-D, arXiv 2002.10964].

  Adam's moments and updates of them stay 0, and the layers as they are.
  """
  return {
    block: {
      name: jax.tree.map(jnp.zeros_like, x) if (block, name) in layers else x
      for name, x in part.items()
    }
    for block, part in grads.items()
  }


def reset_adam(state: TrainState) -> TrainState:
  """Adam's moments and counts of both networks at 0, unless a fault has halted the state."""
  running = state.fault[1] < 0

  def reset(x):
    return jnp.where(running, jnp.zeros_like(x), x)

  return state.replace(
    g_opt=jax.tree.map(reset, state.g_opt), d_opt=jax.tree.map(reset, state.d_opt)
  )


def scale_adam(state: TrainState, factor: float) -> TrainState:
  """Adam's moments as if all gradients so far had been `factor` times as large."""
  by_mu = partial(jax.tree.map, lambda x: x * factor)
  by_nu = partial(jax.tree.map, lambda x: x * factor**2)
  return state.replace(
    g_opt=_map_moments(state.g_opt, by_mu, by_nu), d_opt=_map_moments(state.d_opt, by_mu, by_nu)
  )


def _map_moments(opt, of_mu, of_nu):
  """An optimizer's state with functions of Adam's two moments in their place."""

  def is_adam(x):
    return isinstance(x, optax.ScaleByAdamState)

  def mapped(x):
    return x._replace(mu=of_mu(x.mu), nu=of_nu(x.nu)) if is_adam(x) else x

  return jax.tree.map(mapped, opt, is_leaf=is_adam)


# ---- packed


def pack_state(state: TrainState, mesh: Mesh | None = None) -> TrainState:
  """A state with its networks and their moments packed: what the loop trains with on `mesh`.

  As it is for TPUs: they keep weights in tiles, of which rows would be copies, and have no kernels
  to start (docs/performance.md).
  """
  if mesh is not None and sharding.is_tpu(mesh):
    return state
  return _map_networks(state, packing.pack)


def unpack_state(state: TrainState) -> TrainState:
  """The inverse of pack_state: what checkpoints hold."""
  return _map_networks(state, packing.unpack)


def _map_networks(state, function: Callable):
  nets = {name: function(getattr(state, name)) for name in ('g', 'd', 'g_ema')}
  opts = {
    name: _map_moments(getattr(state, name), function, function) for name in ('g_opt', 'd_opt')
  }
  return state.replace(**nets, **opts)
