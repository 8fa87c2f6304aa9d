"""TrainState: what training changes and a checkpoint holds. Arrays only."""

from typing import Any

from flax import struct, traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sg2jax import schedule

NO_FAULT = np.full(3, -1, np.int32)


@struct.dataclass
class TrainState:
  """Everything that a step reads and writes; nested dicts under NVIDIA's names."""

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
  # [3] int32: step, phase and array (see steps.PHASES, steps.suspects) of the first number that
  # wasn't finite; -1 while there was none. Once set, no step changes anything any more.
  fault: jax.Array = struct.field(default_factory=NO_FAULT.copy)


YOUNGER = {'fault': NO_FAULT}  # fields that an older checkpoint lacks, and what they then are


def adam(lr, beta1, beta2, eps, interval, eps_hat=False):
  """Adam shared by a loss and its regularizer at every `interval` minibatches (0: not lazy) [S2
  App. B].

  eps_hat: eps is added to sqrt(v) before the correction of the bias, as TensorFlow does (Kingma &
  Ba 2015, end of section 2).
  """
  c = schedule.lazy_correction(interval)
  lr, beta1, beta2 = lr * c, beta1**c, beta2**c
  if not eps_hat:
    return optax.adam(lr, beta1, beta2, eps)

  def update(grads, state, params=None):
    corrected = eps / jnp.sqrt(1 - beta2 ** (state.count + 1))
    return optax.scale_by_adam(beta1, beta2, corrected).update(grads, state, params)

  return optax.chain(
    optax.GradientTransformation(optax.scale_by_adam(beta1, beta2, eps).init, update),
    optax.scale_by_learning_rate(lr),
  )


def can_overflow(lr, beta1, beta2, eps):
  """Whether an update of Adam can make float32 weights that aren't finite of gradients whose
  squares are.

  It is at most lr / eps times the largest such gradient, 2e19; and betas next to 1 make 0 / 0 of
  the correction of the bias.
  """
  return lr / eps > 1e18 or max(beta1, beta2) > 1 - 1e-6


def frozen(tx, layers):
  """`tx` that sees gradients of 0 for these (block, layer), which Adam therefore leaves alone
  [Freeze-D, arXiv 2002.10964].
  """

  def update(grads, state, params=None):
    held = {
      block: {
        name: jax.tree.map(jnp.zeros_like, x) if (block, name) in layers else x
        for name, x in part.items()
      }
      for block, part in grads.items()
    }
    return tx.update(held, state, params)

  return optax.GradientTransformation(tx.init, update)


def transfer(fresh, old):
  """The fresh TrainState with the weights of another, as nested dicts, that fit: (state, what was
  done).

  Of networks, noise maps and w_avg an array fits if its name and shape are the same; clock, Adam
  and pl_mean begin anew. What was done: {'copied': [name], 'initialised': {name: why}, 'unused':
  {name: shape}}.
  """
  done, changes = {'copied': [], 'initialised': {}, 'unused': {}}, {}
  for field in ('g', 'd', 'g_ema', 'noise', 'w_avg'):
    flat = lambda tree: traverse_util.flatten_dict({field: tree})  # noqa: B023 - used at once
    here, there = flat(getattr(fresh, field)), flat(old.get(field, {}))
    for path, x in here.items():
      name, shape = '.'.join(path), list(x.shape)
      if path in there and there[path].shape == x.shape:
        here[path] = jnp.asarray(there.pop(path), x.dtype)
        done['copied'].append(name)
      else:
        other = f'{list(there.pop(path).shape)} there' if path in there else 'not there'
        done['initialised'][name] = f'{shape}, {other}'
    done['unused'] |= {
      '.'.join(path): list(x.shape) for path, x in there.items() if hasattr(x, 'shape')
    }
    changes[field] = traverse_util.unflatten_dict(here).get(field, {})
  return fresh.replace(**changes), done


def halted(state):
  """Whether a number that isn't finite has halted it. Waits for the device."""
  return int(state.fault[1]) >= 0


def reset_adam(state):
  """The state with Adam's moments and counts of both networks at 0, unless a fault has halted
  it.
  """
  sound = state.fault[1] < 0
  return state.replace(
    **jax.tree.map(
      lambda x: jnp.where(sound, jnp.zeros_like(x), x), {'g_opt': state.g_opt, 'd_opt': state.d_opt}
    )
  )


def scale_adam(state, factor):
  """The state with Adam's moments as if all gradients so far had been `factor` times as large."""

  def scaled(opt):
    times = lambda tree, by: jax.tree.map(lambda x: x * by, tree)
    return opt._replace(mu=times(opt.mu, factor), nu=times(opt.nu, factor**2))

  is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)
  return state.replace(
    **jax.tree.map(
      lambda x: scaled(x) if is_adam(x) else x,
      {'g_opt': state.g_opt, 'd_opt': state.d_opt},
      is_leaf=is_adam,
    )
  )


def init(key, generator, discriminator, g_tx, d_tx, dtype=jnp.float32):
  """A fresh TrainState. Weights and noise maps are N(0,1) draws from `key`; dtype of every float
  array.
  """
  key_g, key_d = jax.random.split(key)
  mapping, synthesis = generator.mapping, generator.synthesis
  z, c = jnp.zeros((1, mapping.z_dim)), jnp.zeros((1, mapping.c_dim))
  img = jnp.zeros((1, *synthesis.resolution, synthesis.img_channels))
  g = generator.init(key_g, z, c, noise_mode='const')
  d = discriminator.init(key_d, img, jnp.zeros((1, discriminator.c_dim)))
  g, d = jax.tree.map(lambda x: x.astype(dtype), (g, d))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    nimg=jnp.zeros((), jnp.int32),
    g=g['params'],
    d=d['params'],
    g_ema=jax.tree.map(jnp.copy, g['params']),
    g_opt=g_tx.init(g['params']),
    d_opt=d_tx.init(d['params']),
    noise=g.get('noise', {}),
    w_avg=jnp.zeros(mapping.w_dim, dtype),
    pl_mean=jnp.zeros((), dtype),
    fault=jnp.asarray(NO_FAULT),
  )
