"""Gradients of a loss over rounds, and one Adam step on them.

Unless a number isn't finite: then the state halts as it was.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sg2jax.packing import Packed, pack, sums, unpack
from sg2jax.state import TrainState

PHASES = ('g', 'g_reg', 'd', 'd_reg')  # a place is the number in keys and in TrainState.fault
OBJECTIVE = 'objective'  # what a step minimises, among the numbers that must be finite


# ---- gradients


def regularized(main: Callable, regularizer: Callable) -> Callable:
  """The loss that adds a regularizer which isn't lazy. x: what main takes, what the other takes."""

  def loss(state, params, averages, x):
    value, (averages, aux) = main(state, params, averages, x[0])
    penalty, (averages, more) = regularizer(state, params, averages, x[1])
    return value + penalty, (averages, aux | more)

  return loss


def accumulate(
  loss: Callable, params: Any, averages: Any, xs: Any, mean: bool
) -> tuple[Any, Any, dict]:
  """Gradients over rounds -> (grads, averages after the last round, aux as means).

  Gradients are summed, each a mean over its round, as PyTorch's code does; or averaged (`mean`).
  """
  grad = jax.grad(loss, has_aux=True)
  rounds = jax.tree.leaves(xs)[0].shape[0]
  first = jax.tree.map(lambda x: x[0], xs)
  if rounds == 1:
    grads, (averages, aux) = grad(params, averages, first)
    return grads, averages, aux

  def add(total, x):
    sums, averages = total
    grads, (averages, aux) = grad(params, averages, x)
    return (jax.tree.map(jnp.add, sums, (grads, aux)), averages), None

  # A scan, so that one round's activations are in memory at a time, and it is compiled once.
  grads, (_, aux) = jax.eval_shape(grad, params, averages, first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, aux))
  (sums, averages), _ = jax.lax.scan(add, (zeros, averages), xs)
  means = jax.tree.map(lambda x: x / rounds, sums)
  return (means if mean else sums)[0], averages, means[1]


# ---- the step


def apply_gradients(
  phase: str,
  tx: optax.GradientTransformation,
  state: TrainState,
  grads: Any,
  aux: dict[str, jax.Array],
  ramp: jax.Array | float,
  check_updates: bool = False,
  **changes: Any,
) -> tuple[TrainState, dict]:
  """One Adam step on the network of `phase` and the given changes; or none of it, with a `fault`.

  Args:
    phase: one of PHASES; its first letter is the network.
    tx: the network's optimizer.
    state: packed (state.pack_state), or not.
    grads: a tree, not packed.
    aux: scalars that the step reports, and OBJECTIVE.
    ramp: of the learning rate, [] in [0,1].
    check_updates: whether new weights are checked as well.
    changes: other fields of the new state.

  Returns:
    The new state; and aux without OBJECTIVE but with grad_norm_<phase> and grad_squares_<phase>,
    the squared norms [L] of the arrays.
  """
  net = phase[0]
  params = getattr(state, net)
  if isinstance(params, Packed):
    grads = pack(grads)
  updates, opt = tx.update(grads, getattr(state, f'{net}_opt'), params)
  params = optax.apply_updates(params, jax.tree.map(lambda u: u * ramp, updates))
  changes |= {net: params, f'{net}_opt': opt}

  # ---- what isn't finite, in the order of `checked_names`
  squares = sums(grads, jnp.square)
  reported = jnp.stack([aux[name] for name in sorted(aux)])
  bad = [~jnp.isfinite(squares), ~jnp.isfinite(reported)]
  if check_updates:
    # the losses would show it one minibatch later, perhaps after a checkpoint
    bad.append(sums(params, lambda x: ~jnp.isfinite(x)) > 0)
  bad = jnp.concatenate(bad)

  # ---- halting: the first such number leaves the state as it was and says in `fault` which it was.
  # No later step changes anything either, so the host, which looks perhaps many minibatches later,
  # finds the state that made the number. Nothing is replaced by zeros in silence.
  number = jnp.int32(PHASES.index(phase))
  found = jnp.stack([state.step, number, jnp.argmax(bad).astype(jnp.int32)])
  fault = jnp.where((state.fault[1] < 0) & bad.any(), found, state.fault)
  before = {name: getattr(state, name) for name in changes}
  after = jax.tree.map(partial(jnp.where, fault[1] < 0), changes, before)
  norms = {f'grad_norm_{phase}': jnp.sqrt(squares.sum()), f'grad_squares_{phase}': squares}
  aux = {name: x for name, x in aux.items() if name != OBJECTIVE} | norms
  return state.replace(**after, fault=fault), aux


def checked_names(phase: str, state: TrainState, aux: dict) -> list[str]:
  """Names of what a step checks, in the order in which fault[2] counts it.

  Arrays of the network of `phase`, for their gradients; what the step reports (`aux`); and the
  arrays as Adam would have left them.
  """
  net = jax.eval_shape(unpack, getattr(state, phase[0]))
  arrays = [
    f'{phase[0]}.{jax.tree_util.keystr(path, simple=True, separator=".")}'
    for path, _ in jax.tree_util.tree_leaves_with_path(net)
  ]
  norms = {f'grad_norm_{phase}', f'grad_squares_{phase}'}
  reported = sorted({OBJECTIVE, *aux} - norms)
  return arrays + reported + [f'{name} after the update' for name in arrays]
