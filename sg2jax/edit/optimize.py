"""Latent optimisation: a latent is moved until CLIP finds a text in its image [SC 4].

optimizer = Optimizer(sg2jax.load('runs/quickstart'), ws, tower, texts, Settings(steps=100))
for _ in range(100):
  losses = optimizer.advance()

[SC] is StyleCLIP [Patashnik et al. 2021, arXiv 2103.17249]. Images of a batch know nothing of each
other. What is searched is what is added to the ws or styles of each, which starts at 0.
"""

from collections.abc import Callable
import functools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax

from sg2jax import sampler, sharding
from sg2jax.edit import optimizers
from sg2jax.edit.direction import Direction
from sg2jax.edit.moves import render_moved
from sg2jax.edit.project import learning_rates
from sg2jax.edit.text_losses import Tower
from sg2jax.keys import purpose_key
from sg2jax.models import styles as style_space
from sg2jax.nets import clip

# One w for all layers, one for each, or the styles of the convolutions.
SPACES = ('w', 'w+', 's')


class Settings(NamedTuple):
  """The search, with StyleCLIP's values but for `steps` (300 there) and `l2_lambda` (0.008).

  On digits 100 steps do, and with 0.012 fewer become others (lab/text_study.py). StyleCLIP's free
  generation is l2_lambda 0 from the mean w (`project.statistics`): --free of tools.edit.
  """

  steps: int = 100
  space: str = 'w+'  # one of SPACES
  lr: float = 0.1  # at its largest
  l2_lambda: float = 0.012  # of the sum of squares of what is added
  lr_rampup: float = 0.05  # part of all steps
  lr_rampdown: float = 0.25
  adam_betas: tuple[float, float] = (0.9, 0.999)
  adam_eps: float = 1e-8
  augmentations: int = 0  # random views, new ones at each step, whose mean loss counts; 0: none
  seed: int = 0  # of these


class SearchState(NamedTuple):
  """What is added, {'ws': [N,1|num_ws,w_dim]} or {layer: styles [N,C]}, and what Adam keeps."""

  moves: dict
  moments: optimizers.Moments


class Losses(NamedTuple):
  """What a step found before its update, [N] each. loss: clip_loss + l2_lambda * l2."""

  loss: jax.Array
  clip_loss: jax.Array
  l2: jax.Array  # sum of squares of what is added


class Optimized(NamedTuple):
  """What came out for N images."""

  moves: dict  # as in a SearchState
  images: np.ndarray  # uint8 [N,H,W,C], with them
  clip_loss: np.ndarray  # [N], with them
  moves_before: dict  # those before the last step: StyleCLIP returns their images

  def direction(
    self, net: sampler.Sampler, i: int, name: str, before: bool = False, **about: Any
  ) -> Direction:
    """What moves image i, as a Direction. before: by moves_before; about: more for it, JSON."""
    moves = self.moves_before if before else self.moves
    styles = {layer: x[i] for layer, x in moves.items()}
    ws = styles.pop('ws', None)
    if ws is not None:
      ws = np.repeat(ws, net.num_ws // len(ws), 0)
    return Direction(name, (net.hash(),), ws, styles, {'method': 'optimize'} | about)


def first_state(adam: optax.GradientTransformation, moves: dict) -> SearchState:
  """Where a search begins, given moves of 0."""
  return SearchState(moves, adam.init(moves))


def search_step(
  render: Callable,
  measure: Callable,
  adam: optax.GradientTransformation,
  l2_lambda: jax.Array | float,
  state: SearchState,
  lr: jax.Array,
) -> tuple[SearchState, Losses]:
  """A step of Adam on clip_loss + l2_lambda * l2 [SC Eq. 1] -> (state, Losses before it).

  StyleCLIP's loss of identity, which is for faces only, is left out.

  Args:
    render: moves -> images [N,H,W,C] in [-1,1].
    measure: images -> clip_loss [N].
    adam: of optimizers.py.
    l2_lambda: see Settings.
    state: where the search is.
    lr: learning rate.
  """

  def total(moves):
    clip_loss = measure(render(moves))
    l2 = sum((x**2).sum(range(1, x.ndim)) for x in jax.tree.leaves(moves))
    losses = Losses(clip_loss + l2_lambda * l2, clip_loss, l2)
    return losses.loss.sum(), losses

  grads, losses = jax.grad(total, has_aux=True)(state.moves)
  updates, moments = adam.update(grads, state.moments)
  moves = jax.tree.map(lambda x, update: x - lr * update, state.moves, updates)
  return SearchState(moves, moments), losses


# ---- the search


@functools.lru_cache(8)
def compiled(
  mesh: Mesh,
  generator: Any,
  growing: tuple,
  architecture: clip.Architecture,
  view: Callable,
  adam_options: tuple[float, ...],
  augmentations: int,
) -> tuple[Callable, Callable, Callable, Callable]:
  """(begin, advance, inspect, fetch) of an Optimizer, compiled once for equal arguments.

  Images, and all that has a row for each, are divided over the devices.
  """
  place = sharding.spread(mesh)
  whole = sharding.replicated(mesh)  # what the host reads: it may be one of several
  adam = optimizers.adam(*adam_options)
  render = partial(render_moved, generator, growing)

  def measure(weights, texts, images, *views):
    return Tower(weights, architecture, view).loss(images, texts, *views)

  @jax.jit
  def begin(ws, texts, moves):
    ws, texts = place(ws), place(jnp.broadcast_to(texts, (len(ws), texts.shape[-1])))
    return ws, texts, first_state(adam, jax.tree.map(place, moves))

  @partial(jax.jit, donate_argnames='moments')  # moves stay: they are those before the last step
  def advance(variables, weights, l2_lambda, lr, key, ws, texts, moves, moments):
    key = jax.random.fold_in(key, moments.count)

    def measure_views(images):
      return measure(weights, texts, images, key, augmentations)

    state, losses = search_step(
      partial(render, variables, ws),
      measure_views,
      adam,
      l2_lambda,
      SearchState(moves, moments),
      lr[moments.count],
    )
    return state, jax.lax.with_sharding_constraint(losses, whole)

  @partial(jax.jit, out_shardings=whole)
  def inspect(variables, weights, ws, texts, moves):
    images = render(variables, ws, moves)
    return moves, sampler.to_uint8(images), measure(weights, texts, images)

  @partial(jax.jit, out_shardings=whole)
  def fetch(moves):
    return moves

  return begin, advance, inspect, fetch


class Optimizer:
  """Moves latents towards texts a step at a time."""

  def __init__(
    self,
    net: sampler.Sampler,
    ws: np.ndarray,
    tower: Tower,
    texts: np.ndarray,
    settings: Settings = Settings(),
  ) -> None:
    """Prepares the search.

    Args:
      net: whose images are edited.
      ws: of their start, float32 [N,num_ws,w_dim].
      tower: what looks at them.
      texts: features of the text of each, or of one for all: [N|1,E].
      settings: see Settings.
    """
    self._count = len(ws)
    mesh = sharding.make_mesh()
    static = net.generator, tuple(net.growing.items()), tower.architecture, tower.view
    options = *settings.adam_betas, settings.adam_eps
    begin, advance, inspect, self._fetch = compiled(mesh, *static, options, settings.augmentations)
    lr = learning_rates(settings.steps, settings.lr, settings.lr_rampup, settings.lr_rampdown)
    weights = {name: tower.params[name] for name in ('visual', 'logit_scale')}
    key = purpose_key(settings.seed, 'views')
    numbers = np.float32(settings.l2_lambda), lr.astype(np.float32), key
    variables, weights, numbers = sharding.replicate(mesh, (net.variables, weights, numbers))
    moves = _no_moves(net, ws, settings.space)
    ws, texts, self._state = begin(np.asarray(ws), np.asarray(texts), moves)
    self._before = self._state.moves
    self._advance = partial(advance, variables, weights, *numbers, ws, texts)
    self._inspect = partial(inspect, variables, weights, ws, texts)

  def advance(self) -> Losses:
    """One step. Returns the Losses [N] before it, as they come."""
    self._before = self._state.moves
    with _full_precision():
      self._state, losses = self._advance(*self._state)
    return jax.tree.map(lambda x: x[: self._count], losses)

  def current(self) -> tuple[dict, np.ndarray, np.ndarray]:
    """(moves, images uint8 [N,H,W,C], clip_loss [N]) now."""
    with _full_precision():
      return self._whole(self._inspect(self._state.moves))

  def result(self) -> Optimized:
    """The Optimized of now."""
    return Optimized(*self.current(), self._whole(self._fetch(self._before)))

  def _whole(self, found):
    """Arrays without the rows that `spread` repeated."""
    return jax.tree.map(lambda x: np.asarray(x)[: self._count], found)


def _no_moves(net, ws, space):
  """Moves of 0 for ws [N,num_ws,w_dim]."""
  n, num_ws, w_dim = ws.shape
  if space != 's':
    rows = {'w': 1, 'w+': num_ws}[space]
    return {'ws': np.zeros((n, rows, w_dim), ws.dtype)}
  # torgb's stay, as in StyleCLIP: they change colours only
  channels = style_space.channels(net.generator, net.variables)
  return {
    layer: np.zeros((n, count), ws.dtype)
    for layer, count in channels.items()
    if not layer.endswith('.torgb')
  }


def _full_precision():
  # as a Sampler makes images: else it would make others of what was found
  return jax.default_matmul_precision('highest')


def optimize(
  net: sampler.Sampler,
  ws: np.ndarray,
  tower: Tower,
  texts: np.ndarray,
  settings: Settings = Settings(),
) -> Optimized:
  """The Optimized of ws; arguments as of an Optimizer."""
  optimizer = Optimizer(net, ws, tower, texts, settings)
  for _ in range(settings.steps):
    optimizer.advance()
  return optimizer.result()
