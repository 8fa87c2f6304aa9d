"""Moves: what is added to the latents of N images, as `Direction.move` makes it.

{'ws': [N,num_ws,w_dim]} and {layer: styles [N,C]}; what isn't there stays.
"""

from collections.abc import Sequence
import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sg2jax import sampler, sharding
from sg2jax.edit.direction import Direction
from sg2jax.models import styles as style_space

Moves = dict[str, Any]


def basis(net: sampler.Sampler, ws: np.ndarray, directions: Sequence[Sequence[Direction]]) -> Moves:
  """K directions of each of N images, side by side: {'ws': [N,K,num_ws,w_dim], layer: [N,K,C]}.

  ws, [N,num_ws,w_dim], is where they start, which mappers look at. All convolutions are in it, 0
  where they stay, so that other directions compile nothing anew.
  """
  channels = style_space.channels(net.generator, net.variables)
  shapes = {layer: (c,) for layer, c in channels.items() if not layer.endswith('.torgb')}
  moves = [
    [direction.moves(net, ws[i : i + 1]) for direction in each] for i, each in enumerate(directions)
  ]
  for one in (one for each in moves for one in each):
    shapes |= {what: x.shape[1:] for what, x in one.items()}
  count = len(directions[0])
  found = {
    what: np.zeros((len(directions), count, *shape), np.float32) for what, shape in shapes.items()
  }
  for i, each in enumerate(moves):
    for k, one in enumerate(each):
      for what, x in one.items():
        found[what][i, k] = x[0]
  return found


def add_up(amounts: jax.Array, basis: Moves) -> Moves:
  """Amounts [N,K] of a `basis` -> moves: {'ws': [N,num_ws,w_dim], layer: [N,C]}."""
  return jax.tree.map(partial(jnp.einsum, 'nk,nk...->n...', amounts, precision='highest'), basis)


def render_moved(
  generator: Any, growing: tuple, variables: Any, ws: jax.Array, moves: Moves
) -> jax.Array:
  """ws [N,num_ws,w_dim] -> images [N,H,W,C], in [-1,1] but for some pixels; for use inside jit.

  growing: items of that of a Sampler.
  """
  change = partial(style_space.add, moves)
  ws = ws + moves.get('ws', 0)
  return style_space.image(generator, variables, ws, change, 'const', **dict(growing))


@functools.lru_cache(8)
def _images_step(mesh, generator, growing):
  def step(variables, batch):
    with jax.default_matmul_precision('highest'):  # as a Sampler makes them
      moves = {what: x for what, x in batch.items() if what != 'start'}
      return sampler.to_uint8(render_moved(generator, growing, variables, batch['start'], moves))

  return sharding.jit_each(step, mesh, 1)


def moved_images(net: sampler.Sampler, ws: np.ndarray, moves: Moves, batch: int) -> np.ndarray:
  """ws [N,num_ws,w_dim] and what is added -> images uint8 [N,H,W,C], `batch` at a time."""
  mesh = sharding.make_mesh()
  step = _images_step(mesh, net.generator, tuple(net.growing.items()))
  variables = sharding.replicate(mesh, net.variables)
  arrays = {what: np.asarray(x) for what, x in moves.items()} | {'start': np.asarray(ws)}
  size = -(-batch // mesh.size) * mesh.size
  found = []
  for rows, count in sampler.parts(len(ws), size):
    part = sharding.divide(mesh, {what: x[rows][None] for what, x in arrays.items()})
    found.append(np.asarray(step(variables, part))[:count])
  return np.concatenate(found)


# ---- as long as others


def lengths(moves: Moves) -> np.ndarray:
  """Lengths of moves {what: [N,...]} as one vector each: [N]."""
  n = len(next(iter(moves.values())))
  squares = [(np.asarray(x, np.float64) ** 2).reshape(n, -1).sum(1) for x in moves.values()]
  return np.sqrt(sum(squares))


def random_moves(moves: Moves, seeds: Sequence[int]) -> Moves:
  """Moves as long as these, [N,...], of the same layers, each in a random direction of its seed."""
  drawn = {what: np.zeros(x.shape) for what, x in moves.items()}
  for i, seed in enumerate(seeds):
    random = np.random.RandomState(seed)
    # Whether one is moved depends on this image alone, and so does what is drawn for it.
    for what in sorted(what for what, x in moves.items() if x[i].any()):
      drawn[what][i] = random.randn(*moves[what].shape[1:])
  length = lengths(drawn)
  scale = np.where(length > 0, lengths(moves) / np.where(length > 0, length, 1), 0)
  return {
    what: (x * scale.reshape(-1, *[1] * (x.ndim - 1))).astype(np.float32)
    for what, x in drawn.items()
  }


def random_amounts(amounts: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
  """Amounts [N,K] of the same length as these, each in a random direction of its seed."""
  return random_moves({'amounts': amounts}, seeds)['amounts']
