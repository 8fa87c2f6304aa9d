"""Adversarial search: images of a network are moved until a classifier takes them for others.

search = Search(net, ws, classes, Models(classifier, judge, tower), basis, texts, Settings())
while not search.done.all() and search.steps < 100:
  search.advance()
found = search.result()

What is searched are the amounts of named directions, such as those of texts, as in ZOOM [Luo et al.
2023, arXiv 2303.15441], or w+, as in CLIP2Protect [2023, arXiv 2306.10008]. The hinge on logits is
Carlini and Wagner's [2017, arXiv 1608.04644]. Images of a batch know nothing of each other.
"""

from collections.abc import Callable
import functools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sg2jax import sampler, sharding
from sg2jax.edit import optimizers, project
from sg2jax.edit.classifiers import Classifier, from_uint8
from sg2jax.edit.moves import Moves, add_up, render_moved
from sg2jax.edit.text_losses import Tower, clip_loss, directional_loss

SPACES = ('amounts', 'w+')
TEXT_TERMS = ('stay', 'move')


class Settings(NamedTuple):
  """The search."""

  steps: int = 100  # at most
  space: str = 'amounts'  # one of SPACES
  # Of Adam, in units of amounts or of w. With small steps the first error is just behind the border
  # of the class; farther on it's often another class to the judge, too.
  lr: float = 0.1
  most: float = 10.0  # of |amount|
  kappa: float = 0.1  # by how much the wrong logit is to lead, as far as the loss pushes
  # stay: the cosine distance to the text of an image's class; move: of what has changed since the
  # start to the direction of a pair of texts.
  text_term: str = 'stay'
  # Of that. Of the quickstart's samples (of 28 seeds) a third were other digits to CLIP with 1, a
  # sixth with 20, none with 60.
  clip_lambda: float = 30.0
  l2_lambda: float = 0.01  # of |amounts|^2, or of the mean of (w - w0)^2
  distance_lambda: float = 0.0  # of the Distance to the start


class Models(NamedTuple):
  """What looks at the images. Of a classifier and a judge the classes are the same."""

  classifier: Classifier
  judge: Classifier  # decides when a search is over; nothing is done to please it
  tower: Tower | None = None  # None: no text term
  distance: project.Distance | None = None  # None: no distance to the start


class Losses(NamedTuple):
  """What a step found before its update, [N] each."""

  loss: jax.Array
  margin: jax.Array  # logit of the class minus the largest other one: below 0 the classifier errs
  text: jax.Array
  l2: jax.Array
  distance: jax.Array


class SearchState(NamedTuple):
  """Where a search is."""

  params: jax.Array  # amounts [N,K], or what is added to ws [N,num_ws,w_dim]
  moments: optimizers.Moments
  done: jax.Array  # [N] whether the classifier errs and the judge doesn't, or inactive; they stay
  steps: jax.Array  # [N] updates that each got
  images: jax.Array  # uint8 [N,H,W,C] of the last step, or at which it was done


class Found(NamedTuple):
  """What came out for N images."""

  params: np.ndarray  # as in a SearchState
  moves: Moves  # what these add
  images: np.ndarray  # uint8 [N,H,W,C]
  done: np.ndarray  # [N]
  steps: np.ndarray  # [N]


# ---- parts of a step


def margins(logits: jax.Array, classes: jax.Array) -> jax.Array:
  """Logits [N,K] at classes [N], minus the largest of the others: [N]."""
  own = jax.nn.one_hot(classes, logits.shape[1], dtype=bool)
  others = jnp.where(own, -jnp.inf, logits).max(1)
  return jnp.where(own, logits, 0).sum(1) - others


def search_step(
  render: Callable, measure: Callable, look: Callable, settings: Settings, state: SearchState
) -> tuple[SearchState, Losses]:
  """A step of Adam -> (state, Losses before it). Images that are done get none.

  Args:
    render: params -> images [N,H,W,C] in [-1,1].
    measure: images -> (margin, text, distance) [N] each.
    look: images uint8 -> [N] whether the classifier errs and the judge sees the class.
    settings: see Settings.
    state: where the search is.
  """

  def total(params):
    # As a picture of them would be: else what lies beyond black and white would count.
    images = jnp.clip(render(params), -1, 1)
    margin, text, distance = measure(images)
    squares = (params**2).reshape(len(params), -1)
    l2 = squares.sum(1) if settings.space == 'amounts' else squares.mean(1)
    loss = jnp.maximum(0, margin + settings.kappa) + settings.clip_lambda * text
    loss += settings.l2_lambda * l2 + settings.distance_lambda * distance
    return loss.sum(), (images, Losses(loss, margin, text, l2, distance))

  grads, (images, losses) = jax.grad(total, has_aux=True)(state.params)

  def keep(old, new):
    return jnp.where(state.done.reshape(-1, *[1] * (new.ndim - 1)), old, new)

  # What is looked at is what will be saved: an error in the digits that are rounded off is none.
  images = keep(state.images, sampler.to_uint8(images))
  done = state.done | look(images)
  state = state._replace(images=images, done=done)
  updates, moments = optimizers.adam().update(grads, state.moments)
  params = state.params - settings.lr * updates
  if settings.space == 'amounts':
    params = jnp.clip(params, -settings.most, settings.most)
  steps = state.steps + jnp.where(done, 0, 1)
  return state._replace(params=keep(state.params, params), moments=moments, steps=steps), losses


# ---- compiled


def _moves(space, params, basis):
  return add_up(params, basis) if space == 'amounts' else {'ws': params}


class _Static(NamedTuple):
  """All that a compiled search depends on, but for arrays."""

  mesh: Any
  generator: Any
  growing: tuple
  classifier: Callable
  judge: Callable
  architecture: Any  # and view: of a Tower
  view: Callable | None
  features: Callable | None  # and compare: of a Distance
  compare: Callable | None
  space: str
  text_term: str


class _Networks(NamedTuple):
  """Arrays that are the same for all images."""

  variables: Any
  classifier: Any
  judge: Any
  tower: Any
  distance: Any


class _Targets(NamedTuple):
  """Arrays with a row for each image."""

  ws: jax.Array
  classes: jax.Array
  basis: Moves
  texts: jax.Array  # [N,E]
  start: Any  # features of the start, for CLIP and for the distance


def _parts(static):
  """(render, features, measure, look) of a search, see `search_step`; before these come arrays."""

  def render(networks, targets, params):
    moves = _moves(static.space, params, targets.basis)
    return render_moved(static.generator, static.growing, networks.variables, targets.ws, moves)

  def features(networks, images):
    found = []
    if static.architecture is not None:
      found.append(Tower(networks.tower, static.architecture, static.view).features(images))
    if static.features is not None:
      found.append(static.features(networks.distance, project.view(images)))
    return found

  def measure(networks, targets, images):
    text = distance = jnp.zeros(len(images))
    now, start = features(networks, images), targets.start
    if static.architecture is not None:
      if static.text_term == 'stay':
        text = clip_loss(now[0], targets.texts)
      else:
        text = directional_loss(start[0], now[0], targets.texts)
    if static.features is not None:
      distance = static.compare(networks.distance, now[-1], start[-1])
    logits = static.classifier(networks.classifier, images)
    return margins(logits, targets.classes), text, distance

  def look(networks, targets, images):
    images = from_uint8(images)
    said = static.classifier(networks.classifier, images).argmax(1)
    seen = static.judge(networks.judge, images).argmax(1)
    return (said != targets.classes) & (seen == targets.classes)

  return render, features, measure, look


@functools.lru_cache(8)
def _compiled(static):
  """(begin, advance, inspect) of a Search, compiled once for equal arguments."""
  place = sharding.spread(static.mesh)
  whole = sharding.replicated(static.mesh)  # what the host reads
  render, features, measure, look = _parts(static)

  @jax.jit
  def begin(networks, targets, params, done):
    targets, params, done = jax.tree.map(place, (targets, params, done))
    images = jnp.clip(render(networks, targets, params), -1, 1)
    moments = optimizers.adam().init(params)
    steps = jnp.zeros(len(params), jnp.int32)
    state = SearchState(params, moments, done, steps, sampler.to_uint8(images))
    return targets._replace(start=features(networks, images)), state

  @partial(jax.jit, donate_argnames='state')
  def advance(networks, numbers, targets, state):
    state, losses = search_step(
      partial(render, networks, targets),
      partial(measure, networks, targets),
      partial(look, networks, targets),
      Settings(space=static.space, text_term=static.text_term, **numbers),
      state,
    )
    return state, jax.lax.with_sharding_constraint((losses, state.done), whole)

  @partial(jax.jit, out_shardings=whole)
  def inspect(networks, targets, state):
    moves = _moves(static.space, state.params, targets.basis)
    # That of the last step was made before its update.
    images = sampler.to_uint8(render(networks, targets, state.params))
    images = jnp.where(state.done[:, None, None, None], state.images, images)
    return Found(state.params, moves, images, state.done, state.steps)

  return begin, advance, inspect


# ---- the search


class Search:
  """Looks for adversarial samples a step at a time. done: [N], which are found, or left alone."""

  def __init__(
    self,
    net: sampler.Sampler,
    ws: np.ndarray,
    classes: np.ndarray,
    models: Models,
    basis: Moves,
    texts: np.ndarray | None = None,
    settings: Settings = Settings(),
    active: np.ndarray | None = None,
  ) -> None:
    """Prepares the search.

    Args:
      net: whose images are moved.
      ws: of their start, float32 [N,num_ws,w_dim].
      classes: what the images show, and the classifier is to miss: int [N].
      models: see Models.
      basis: what `moves.basis` makes of K directions for each; {} in w+.
      texts: features of the class's text of each, or the direction of a pair of texts, [N,E], as
        settings.text_term says; None without a tower.
      settings: see Settings.
      active: bool [N], which are searched; the others stay. None: all.
    """
    n = self._count = len(ws)
    mesh = sharding.make_mesh()
    classifier, judge, tower, distance = models
    static = _Static(
      mesh,
      net.generator,
      tuple(net.growing.items()),
      classifier.function,
      judge.function,
      *((tower.architecture, tower.view) if tower else (None, None)),
      *((distance.features, distance.compare) if distance else (None, None)),
      settings.space,
      settings.text_term,
    )
    begin, advance, inspect = _compiled(static)
    weights = {'visual': tower.params['visual']} if tower else None
    networks = _Networks(
      net.variables, classifier.params, judge.params, weights, distance and distance.params
    )
    networks = sharding.replicate(mesh, networks)
    if settings.space == 'amounts':
      params = np.zeros((n, len(next(iter(basis.values()))[0])), np.float32)
    else:
      params = np.zeros(ws.shape, np.float32)
    texts = np.zeros((n, 1), np.float32) if texts is None else np.asarray(texts)
    active = np.ones(n, bool) if active is None else np.asarray(active)
    targets = _Targets(np.asarray(ws), np.asarray(classes, np.int32), basis, texts, ())
    with _full_precision():
      targets, self._state = begin(networks, targets, params, ~active)
    # Numbers are arguments, so that others compile nothing anew.
    numbers = {name: x for name, x in settings._asdict().items() if not isinstance(x, str)}
    self._advance = partial(advance, networks, numbers, targets)
    self._inspect = partial(inspect, networks, targets)
    self.done = ~active
    self.steps = 0

  def advance(self) -> Losses:
    """One step. Returns the Losses [N] before it."""
    with _full_precision():
      self._state, (losses, done) = self._advance(self._state)
    self.done = np.asarray(done)[: self._count]
    self.steps += 1
    return jax.tree.map(lambda x: np.asarray(x)[: self._count], losses)

  def result(self) -> Found:
    """The Found of now."""
    with _full_precision():
      found = self._inspect(self._state)
    # without the rows that `spread` repeated
    return jax.tree.map(lambda x: np.asarray(x)[: self._count], found)


def _full_precision():
  # as a Sampler makes images: else it would make others of what was found
  return jax.default_matmul_precision('highest')
