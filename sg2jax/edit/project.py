"""Projection: the w and the noise maps whose image is nearest to a given one [S2 App. D].

    found = project(sg2jax.load('runs/quickstart'), images, distance('pyramid'))  # images: uint8
    [N,H,W,C]

Images of a batch know nothing of each other, and all get the same random numbers: what is found for
one depends neither on its neighbours nor on its place, but for float32 rounding.
"""

from collections.abc import Callable
import functools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sg2jax import ops, sampler, sharding
from sg2jax.keys import purpose_key
from sg2jax.models.layers import draw_noise
from sg2jax.models.stylegan2 import largest
from sg2jax.nets import vgg

SPACES = ('w', 'w+')  # one w for all layers, or one for each [I2S]
SIZE = 256  # px: distances look at no more
SAMPLES, SAMPLES_SEED = 10_000, 123  # of z, for the w to start at
LPIPS_SIDE = 16  # px that VGG16 can halve four times


class Setting(NamedTuple):
  """The optimisation, with S2's values. Lengths are parts of all steps; seed: of the noise in w and
  of the first noise maps.
  """

  steps: int = 1000
  space: str = 'w'
  lr: float = 0.1
  noise_weight: float = 1e5
  seed: int = 0
  lr_rampup: float = 0.05
  lr_rampdown: float = 0.25
  w_noise: float = 0.05
  w_noise_length: float = 0.75


class Distance(NamedTuple):
  """How far images are from each other.

  features: (params, images [N,H,W,C] in [-1,1], at most SIZE px) -> what is compared; between:
  (params, features, features) -> [N]; hash: SHA-256 of weights, '' without.
  """

  name: str
  hash: str
  params: Any
  features: Callable
  between: Callable


class State(NamedTuple):
  """What is optimised, {'w': [N,1|num_ws,w_dim], 'noise': maps [N,H,W,1]}, and Adam's moments of
  it.
  """

  x: dict
  mean: dict
  square: dict


class Found(NamedTuple):
  """Of N images: ws [N,num_ws,w_dim], noise maps [N,H,W,1], images uint8 [N,H,W,C], distance at the
  start and now [N].
  """

  ws: Any
  noise: dict
  images: Any
  start: Any
  distance: Any


# ---- distances


def _pyramid(_, images):
  levels = [images]
  while min(levels[-1].shape[1:3]) >= 8 and not any(side % 2 for side in levels[-1].shape[1:3]):
    levels.append(ops.half(levels[-1]))
  return levels


def _mean_square(_, f, g):
  return sum(((x - y) ** 2).mean((1, 2, 3)) for x, y in zip(f, g)) / len(f)


def _lpips_features(params, images):
  # grey becomes RGB
  return vgg.lpips_features(params, jnp.broadcast_to(images, (*images.shape[:3], 3)))


DISTANCES = {
  'lpips': (_lpips_features, vgg.lpips_between),
  'l2': (lambda _, images: [images], _mean_square),
  'pyramid': (_pyramid, _mean_square),
}


def distance(name, params=None, hash=''):
  """The Distance of that name.

  'lpips', with params of `vgg.lpips_params`; 'l2': mean square of the pixels in [-1,1]; 'pyramid':
  the same, averaged over the image and its halvings down to 4..7 px.
  """
  return Distance(name, hash, params, *DISTANCES[name])


def view(images):
  """What distances see: [N,H,W,C] whose longer side is over SIZE px, at SIZE px, a pixel the mean
  of the area it covers.
  """
  sides = images.shape[1:3]
  for axis, side in enumerate(sides, 1) if max(sides) > SIZE else ():
    size = max(1, round(side * SIZE / max(sides)))
    row, column = np.arange(size)[:, None], np.arange(side)
    covered = (column >= row * side // size) & (column < -(-(row + 1) * side // size))
    share = jnp.asarray(covered / covered.sum(1, keepdims=True), images.dtype)
    images = jnp.moveaxis(jnp.tensordot(images, share, (axis, 1), precision='highest'), -1, axis)
  return images


# ---- parts of a step


def statistics(net, samples=SAMPLES, seed=SAMPLES_SEED):
  """(mean w [w_dim], spread) of a Sampler's latents of RandomState(seed), with random labels where
  there are any: float64.

  The spread is one number: the root of the mean squared distance to the mean.
  """
  w = sampler.sample_w(net, samples, seed).astype(np.float64)
  return w.mean(0), np.sqrt(((w - w.mean(0)) ** 2).sum() / samples)


def rates(setting, spread):
  """(learning rate, scale of the noise added to w) of every step: float64 [steps] each. spread: of
  `statistics`.
  """
  t = np.arange(setting.steps) / setting.steps
  lr = 0.5 - 0.5 * np.cos(np.pi * np.minimum(1, (1 - t) / setting.lr_rampdown))
  lr = setting.lr * lr * np.minimum(1, t / setting.lr_rampup)
  return lr, spread * setting.w_noise * np.maximum(0, 1 - t / setting.w_noise_length) ** 2


def noise_penalty(noise):
  """What keeps a noise map [N,H,W,1] from drawing the image: squared correlations with its
  neighbours on all scales: [N].
  """
  total = 0
  while True:
    for axis in (1, 2):
      if noise.shape[axis] > 1:  # else it is its own neighbour
        total += (noise * jnp.roll(noise, 1, axis)).mean((1, 2, 3)) ** 2
    if min(noise.shape[1:3]) <= 8:
      return total
    noise = ops.half(noise)


def normalized(noise):
  """Noise maps [N,H,W,1] with mean 0 and mean square 1."""
  noise = noise - noise.mean((1, 2, 3), keepdims=True)
  return noise * jax.lax.rsqrt((noise**2).mean((1, 2, 3), keepdims=True))


def step(render, measure, noise_weight, state, t, lr, w_noise):
  """Step t of Adam on distance + noise_weight * noise_penalty; then noise maps are normalized. ->
  (State, distances [N]).

  render: x of a State -> images [N,H,W,C] in [-1,1]; measure: images -> distances [N]; w_noise:
  added to w, [1|N,1|num_ws,w_dim].
  """

  def loss(x):
    found = measure(render(x | {'w': x['w'] + w_noise}))
    penalty = sum(map(noise_penalty, jax.tree.leaves(x['noise'])))
    return (found + noise_weight * penalty).sum(), found

  grads, found = jax.grad(loss, has_aux=True)(state.x)
  updates, adam = optax.scale_by_adam(0.9, 0.999, 1e-8).update(
    grads, optax.ScaleByAdamState(t, state.mean, state.square)
  )
  x = jax.tree.map(lambda x, update: x - lr * update, state.x, updates)
  return State(x | {'noise': jax.tree.map(normalized, x['noise'])}, adam.mu, adam.nu), found


@functools.lru_cache(8)
def _compiled(mesh, generator, growing, features, between):
  """(prepare, advance, look), compiled once for equal arguments; what has a row per image is
  [1,N,...] and divided.
  """
  growing = dict(growing)

  def render(variables, x):
    w = x['w']
    ws = jnp.broadcast_to(w, (len(w), generator.synthesis.num_ws, w.shape[2]))
    images = generator.apply(
      variables | {'noise': x['noise']}, ws, 'const', method='synthesize', **growing
    )
    return ops.nearest(largest(images), 2 ** growing.get('stage', 0))

  def measure(params, target, images):
    return between(params, features(params, view(images)), target)

  def prepare(variables, params, key, images):
    return features(params, view(images))

  def advance(variables, params, key, state, target, t, lr, scale, noise_weight):
    shape = (1, *state.x['w'].shape[1:])
    w_noise = scale * jax.random.normal(jax.random.fold_in(key, t), shape, state.x['w'].dtype)
    return step(
      partial(render, variables),
      partial(measure, params, target),
      noise_weight,
      state,
      t,
      lr,
      w_noise,
    )

  def look(variables, params, key, state, target):
    images = render(variables, state.x)
    return sampler.to_uint8(images), measure(params, target, images)

  def divided(function, **options):
    def whole(constants, *batch, **scalars):
      # what is found must be what `trained` makes of it
      with jax.default_matmul_precision('highest'):
        found = function(*constants, *jax.tree.map(lambda x: x[0], batch), **scalars)
      return jax.tree.map(lambda x: x[None], found)

    return jax.jit(whole, out_shardings=sharding.batched(mesh), **options)

  return divided(prepare), divided(advance, donate_argnums=1), divided(look)


class Projector:
  """Projects images a step at a time; `done` counts the steps."""

  def __init__(self, net, targets, distance, setting=Setting(), start=None, saved=None):
    """net: a Sampler; targets: uint8 [N,H,W,C]; start: of `statistics`; saved: what `save`
    returned, to go on from there.
    """
    mesh, self.count, self._setting = sharding.make_mesh(), len(targets), setting
    mean, spread = statistics(net) if start is None else start
    # a multiple of the devices
    rows = np.arange(-(-self.count // mesh.size) * mesh.size) % self.count
    place = lambda tree: sharding.to_global(
      mesh, jax.tree.map(lambda x: np.asarray(x)[rows][None], tree)
    )
    key, first = jax.random.split(purpose_key(setting.seed, 'projection'))
    self._constants = jax.device_put(
      (net.variables, distance.params, key), sharding.replicated(mesh)
    )
    self._rates = np.stack(rates(setting, spread)).astype(np.float32)
    prepare, self._advance, self._look = _compiled(
      mesh, net.generator, tuple(net.growing.items()), *distance[3:]
    )
    self._target = prepare(self._constants, place(targets.astype(np.float32) / 127.5 - 1))
    w = np.float32(np.broadcast_to(mean, (1 if setting.space == 'w' else net.num_ws, len(mean))))
    x = jax.device_get({'w': w[None], 'noise': draw_noise(net.variables['noise'], first[None])})
    x = jax.tree.map(lambda x: np.repeat(x, self.count, 0), x)
    zeros = jax.tree.map(np.zeros_like, x)
    leaves, self._tree = jax.tree.flatten(State(x, zeros, zeros))
    self.done, self.start = 0, None
    if saved:
      self.done, self.start, leaves = (
        int(saved['done']),
        saved['start'],
        [saved[str(i)] for i in range(len(leaves))],
      )
    self._num_ws, self._state = net.num_ws, place(self._tree.unflatten(leaves))
    self.start = self.look()[1] if self.start is None else self.start

  def advance(self):
    """One step. Returns the distances [N] before it, with noise in w, as they come."""
    lr, scale = self._rates[:, self.done]
    self._state, found = self._advance(
      self._constants,
      self._state,
      self._target,
      t=np.int32(self.done),
      lr=lr,
      scale=scale,
      noise_weight=np.float32(self._setting.noise_weight),
    )
    self.done += 1
    return found[0, : self.count]

  def look(self):
    """(images uint8 [N,H,W,C], distances [N]) now."""
    return self._host(self._look(self._constants, self._state, self._target))

  def save(self):
    """{name: array} for `saved` of another Projector of the same arguments, which goes on bit for
    bit.
    """
    leaves = jax.tree.leaves(self._host(self._state))
    return {'done': self.done, 'start': self.start} | {str(i): x for i, x in enumerate(leaves)}

  def found(self):
    """The Found of now."""
    x, (images, distance) = self._host(self._state.x), self.look()
    ws = np.broadcast_to(x['w'], (self.count, self._num_ws, x['w'].shape[2]))
    return Found(ws, x['noise'], images, self.start, distance)

  def _host(self, tree):
    return jax.tree.map(lambda x: np.asarray(x)[0, : self.count], tree)


def project(net, images, distance, setting=Setting()):
  """Projects images. net: a Sampler; images: uint8 [N,H,W,C] of its size; distance: a Distance. ->
  Found.
  """
  projector = Projector(net, images, distance, setting)
  while projector.done < setting.steps:
    projector.advance()
  return projector.found()
