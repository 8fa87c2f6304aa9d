"""Projection: the w and the noise maps whose image is nearest to a given one [S2 App. D].

result = project(sg2jax.load('runs/quickstart'), images, distance('pyramid'))  # uint8 [N,H,W,C]

Images of a batch know nothing of each other, and all get the same random numbers: what comes out
for one depends neither on its neighbours nor on its place, but for float32 rounding.
"""

from collections.abc import Callable
import functools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sg2jax import resample, sampler, sharding
from sg2jax.keys import purpose_key
from sg2jax.models.layers import draw_noise
from sg2jax.nets import vgg

SPACES = ('w', 'w+')  # one w for all layers, or one for each [I2S]
MAX_SIDE = 256  # px: distances look at no more
ADAM = optax.scale_by_adam(0.9, 0.999, 1e-8)


class Settings(NamedTuple):
  """The search, with S2's values. Lengths are parts of all steps."""

  steps: int = 1000
  space: str = 'w'  # one of SPACES
  lr: float = 0.1  # at its largest
  noise_weight: float = 1e5  # of `noise_penalty`
  seed: int = 0  # of the noise in w and of the first noise maps
  lr_rampup: float = 0.05
  lr_rampdown: float = 0.25
  w_noise: float = 0.05  # at the start, in spreads of w
  w_noise_length: float = 0.75


class Distance(NamedTuple):
  """How far images are from each other."""

  name: str  # one of DISTANCES
  hash: str  # SHA-256 of its weights, '' without
  params: Any  # its weights
  # (params, images [N,H,W,C] in [-1,1], at most MAX_SIDE px) -> what is compared
  features: Callable
  compare: Callable  # (params, features, features) -> [N]


class SearchState(NamedTuple):
  """What is optimised, {'w': [N,1|num_ws,w_dim], 'noise': maps [N,H,W,1]}, and Adam's state."""

  params: dict
  adam: optax.ScaleByAdamState


class Projection(NamedTuple):
  """What came out for N images."""

  ws: np.ndarray  # [N,num_ws,w_dim]
  noise: dict  # tree of noise maps [N,H,W,1]
  images: np.ndarray  # uint8 [N,H,W,C], that these make
  distance_start: np.ndarray  # [N], before the search
  distance: np.ndarray  # [N], after it


# ---- distances


def _lpips_features(params, images):
  return vgg.lpips_features(params, jnp.broadcast_to(images, (*images.shape[:3], 3)))  # grey, too


def _pixels(_, images):
  return [images]


def _pyramid(_, images):
  levels = [images]
  while min(levels[-1].shape[1:3]) >= 8 and not any(side % 2 for side in levels[-1].shape[1:3]):
    levels.append(resample.half(levels[-1]))
  return levels


def _mean_square(_, a, b):
  return sum(((x - y) ** 2).mean((1, 2, 3)) for x, y in zip(a, b)) / len(a)


DISTANCES = {
  'lpips': (_lpips_features, vgg.lpips_between),
  'l2': (_pixels, _mean_square),
  'pyramid': (_pyramid, _mean_square),
}


def distance(name: str, params: Any = None, hash: str = '') -> Distance:
  """The Distance of that name.

  'lpips', with params of `vgg.lpips_params`; 'l2': mean square of the pixels in [-1,1]; 'pyramid':
  the same, averaged over the image and its halvings down to 4..7 px.
  """
  return Distance(name, hash, params, *DISTANCES[name])


def view(images: jax.Array) -> jax.Array:
  """What distances see: images [N,H,W,C], the longer side at most MAX_SIDE px.

  A pixel of a smaller one is the mean of the area that it covers, pixels that it cuts included.
  """
  sides = images.shape[1:3]
  if max(sides) <= MAX_SIDE:
    return images
  for axis, side in enumerate(sides, 1):
    size = max(1, round(side * MAX_SIDE / max(sides)))
    row = np.arange(size)[:, None]
    column = np.arange(side)
    covered = (column >= row * side // size) & (column < -(-(row + 1) * side // size))
    share = jnp.asarray(covered / covered.sum(1, keepdims=True), images.dtype)  # [size,side]
    images = jnp.moveaxis(jnp.tensordot(images, share, (axis, 1), precision='highest'), -1, axis)
  return images


# ---- parts of a step


def statistics(net: sampler.Sampler, samples: int = 10_000) -> tuple[np.ndarray, float]:
  """(mean w [w_dim], at which the search starts, spread), with random labels: float64.

  The spread is one number: the root of the mean squared distance to the mean.
  """
  w = sampler.sample_w(net, samples, 123).astype(np.float64)
  return w.mean(0), np.sqrt(((w - w.mean(0)) ** 2).sum() / samples)


def rates(settings: Settings, spread: float) -> np.ndarray:
  """Learning rate, and scale of the noise added to w, of every step: float64 [steps,2].

  spread: of `statistics`.
  """
  t = np.arange(settings.steps) / settings.steps
  lr = learning_rates(settings.steps, settings.lr, settings.lr_rampup, settings.lr_rampdown)
  scale = spread * settings.w_noise * np.maximum(0, 1 - t / settings.w_noise_length) ** 2
  return np.stack([lr, scale], 1)


def learning_rates(steps: int, lr: float, rampup: float, rampdown: float) -> np.ndarray:
  """Learning rates [steps], float64, that rise from 0 to lr, and fall along a cosine at the end.

  rampup, rampdown: of all steps, the parts that this takes.
  """
  t = np.arange(steps) / steps
  falling = 0.5 - 0.5 * np.cos(np.pi * np.minimum(1, (1 - t) / rampdown))
  return lr * falling * np.minimum(1, t / rampup)


def noise_penalty(noise: jax.Array) -> jax.Array:
  """What keeps a noise map [N,H,W,1] from drawing the image: [N].

  Squared correlations with its neighbours, on all scales.
  """
  total = 0
  while True:
    for axis in (1, 2):
      if noise.shape[axis] > 1:  # else it is its own neighbour
        total += (noise * jnp.roll(noise, 1, axis)).mean((1, 2, 3)) ** 2
    if min(noise.shape[1:3]) <= 8:
      return total
    noise = resample.half(noise)


def normalized(noise: jax.Array) -> jax.Array:
  """Noise maps [N,H,W,1] with mean 0 and mean square 1."""
  noise = noise - noise.mean((1, 2, 3), keepdims=True)
  return noise * jax.lax.rsqrt((noise**2).mean((1, 2, 3), keepdims=True))


def search_step(
  render: Callable,
  measure: Callable,
  noise_weight: float,
  state: SearchState,
  lr: jax.Array,
  w_noise: jax.Array,
) -> tuple[SearchState, jax.Array]:
  """A step of Adam on distance + noise_weight * noise_penalty -> (state, distances [N] before it).

  Args:
    render: params of a SearchState -> images [N,H,W,C] in [-1,1].
    measure: images -> distances [N].
    noise_weight: see Settings.
    state: where the search is.
    lr: learning rate.
    w_noise: added to w, [1|N,1|num_ws,w_dim].
  """

  def loss(params):
    distances = measure(render(params | {'w': params['w'] + w_noise}))
    penalty = sum(map(noise_penalty, jax.tree.leaves(params['noise'])))
    return (distances + noise_weight * penalty).sum(), distances

  grads, distances = jax.grad(loss, has_aux=True)(state.params)
  updates, adam = ADAM.update(grads, state.adam)
  params = jax.tree.map(lambda x, update: x - lr * update, state.params, updates)
  params |= {'noise': jax.tree.map(normalized, params['noise'])}
  return SearchState(params, adam), distances


@functools.lru_cache(8)
def _compiled(mesh, generator, growing, features, compare):
  """(begin, advance, inspect) of a Projector, compiled once for equal arguments.

  Images, and all that has a row for each, are divided over the devices.
  """
  place = sharding.spread(mesh)
  whole = sharding.replicated(mesh)  # what the host reads: it may be one of several

  def render(variables, params):
    w = params['w']
    ws = jnp.broadcast_to(w, (len(w), generator.synthesis.num_ws, w.shape[2]))
    variables = variables | {'noise': params['noise']}
    return generator.apply(variables, ws, 'const', **dict(growing), method='image')

  def measure(weights, target, images):
    return compare(weights, features(weights, view(images)), target)

  @jax.jit
  def begin(variables, weights, key, w, images):
    images = place(images)
    params = {'w': w, 'noise': draw_noise(variables['noise'], key[None])}
    params = jax.tree.map(lambda x: place(jnp.repeat(x, len(images), 0)), params)
    # What is compared of the targets never changes, so it is computed once.
    return SearchState(params, ADAM.init(params)), features(weights, view(images))

  # The state is donated: it holds noise maps three times over, with both moments, for each image.
  @partial(jax.jit, donate_argnames='state')
  def advance(variables, weights, key, rates, noise_weight, target, state):
    w = state.params['w']
    t = state.adam.count
    lr, scale = rates[t]
    # one row for all images: neighbours don't show
    w_noise = scale * jax.random.normal(jax.random.fold_in(key, t), (1, *w.shape[1:]), w.dtype)
    closer = partial(measure, weights, target)
    state, distances = search_step(
      partial(render, variables), closer, noise_weight, state, lr, w_noise
    )
    return state, jax.lax.with_sharding_constraint(distances, whole)

  @partial(jax.jit, out_shardings=whole)
  def inspect(variables, weights, target, state):
    images = render(variables, state.params)
    return sampler.to_uint8(images), measure(weights, target, images), state.params

  return begin, advance, inspect


# ---- the search


class Projector:
  """Projects images a step at a time."""

  def __init__(
    self,
    net: sampler.Sampler,
    targets: np.ndarray,
    distance: Distance,
    settings: Settings = Settings(),
    start: tuple[np.ndarray, float] | None = None,
  ) -> None:
    """Prepares the search.

    Args:
      net: whose images are looked for.
      targets: uint8 [N,H,W,C] of its size.
      distance: what is made small.
      settings: see Settings.
      start: what `statistics` returned; None: computed here.
    """
    self._count = len(targets)
    self._num_ws = net.num_ws
    mesh = sharding.make_mesh()
    begin, advance, inspect = _compiled(
      mesh, net.generator, tuple(net.growing.items()), distance.features, distance.compare
    )
    mean, spread = statistics(net) if start is None else start
    w = np.broadcast_to(mean, (1, 1 if settings.space == 'w' else net.num_ws, len(mean)))
    # One key for all images, so that what comes out doesn't depend on the place in the batch.
    key, noise_key = jax.random.split(purpose_key(settings.seed, 'projection'))
    constants = (net.variables, distance.params), key, rates(settings, spread).astype(np.float32)
    networks, key, schedule = sharding.replicate(mesh, constants)
    targets = targets.astype(np.float32) / 127.5 - 1
    with _full_precision():
      self._state, target = begin(*networks, noise_key, np.float32(w), targets)
    self._advance = partial(
      advance, *networks, key, schedule, np.float32(settings.noise_weight), target
    )
    self._inspect = partial(inspect, *networks, target)
    self.distance_start = self.current()[1]

  def advance(self) -> jax.Array:
    """One step. Returns the distances [N] before it, with noise in w, as they come."""
    with _full_precision():
      self._state, distances = self._advance(self._state)
    return distances[: self._count]

  def current(self) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [N,H,W,C], distances [N]) now."""
    return self._look()[:2]

  def result(self) -> Projection:
    """The Projection of now."""
    images, distance, params = self._look()
    w = params['w']
    ws = np.broadcast_to(w, (len(w), self._num_ws, w.shape[2]))
    return Projection(ws, params['noise'], images, self.distance_start, distance)

  def _look(self):
    """(images, distances, params of a SearchState) now, without the rows that `spread` repeated."""
    with _full_precision():
      found = self._inspect(self._state)
    return jax.tree.map(lambda x: np.asarray(x)[: self._count], found)


def _full_precision():
  # as a Sampler makes images: else it would make others of what was found
  return jax.default_matmul_precision('highest')


def project(
  net: sampler.Sampler, images: np.ndarray, distance: Distance, settings: Settings = Settings()
) -> Projection:
  """The Projection of images, uint8 [N,H,W,C] of the size of the network's."""
  projector = Projector(net, images, distance, settings)
  for _ in range(settings.steps):
    projector.advance()
  return projector.result()
