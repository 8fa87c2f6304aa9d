"""A generator is trained for the domain that a text names [StyleGAN-NADA].

training = Training(sg2jax.load('runs/quickstart'), looks, Settings())
for step in range(300):
  losses = training.advance(step)
training.net()  # a Sampler

StyleGAN-NADA is Gal et al. 2021, arXiv 2108.00946. The way from an image of the network as it was
to the one that is trained makes of the same latent is to be, in CLIP's features, the way from one
text to another. No picture of the domain is needed.
"""

from collections.abc import Callable, Sequence
import functools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from sg2jax import sampler, schedule, sharding
from sg2jax.edit.text_losses import Tower, directional_loss
from sg2jax.faults import UsageError
from sg2jax.keys import purpose_key
from sg2jax.models.layers import draw_noise
from sg2jax.nets import clip

# Adam's, whose beta1 is 0, so that it keeps no mean of gradients. lr and beta2 are corrected as in
# StyleGAN2, for a regularization at every fourth step: so they are in its program, without one.
BETA2 = 0.99
INTERVAL = 4
EPS = 1e-8
LAYER_BATCH = 8  # images by which layers are chosen


class Settings(NamedTuple):
  """The training, with StyleGAN-NADA's values."""

  lr: float = 0.002  # before the correction for INTERVAL: 0.0016 is what Adam gets
  batch: int = 4  # images of a step; there 2 to 4
  layers: int | None = None  # convolutions that a step trains; None: all
  psi: float = 1.0  # truncation of the latents
  seed: int = 0  # of latents and noise


class Look(NamedTuple):
  """What one CLIP network says of images."""

  tower: Tower
  direction: np.ndarray  # unit [E], from the text of what there is to the other
  target: np.ndarray  # unit [E], of the other


class Moments(NamedTuple):
  """What Adam keeps of a layer."""

  count: jax.Array  # [] int32, of its steps
  square: Any  # moving average of the squares of its gradients


class TrainingState(NamedTuple):
  """What a training changes, by layers: see `trainable`."""

  params: dict[str, Any]
  moments: dict[str, Moments]


class Losses(NamedTuple):
  """What a step found before its update.

  loss is the sum over CLIP networks of 1 - cos, so as many as there are at the start, where both
  images are the same.
  """

  loss: jax.Array  # []
  is_finite: jax.Array  # [] bool; if not, nothing was changed
  chosen: jax.Array  # [L] bool: which of `convolutions` were trained


# ---- layers


def convolutions(params: Any) -> list[str]:
  """Names of a generator's convolutions, coarse to fine; number j takes ws[:, j]."""
  names = [name for name in trainable(params) if name.split('.')[1].startswith('conv')]
  return sorted(names, key=lambda name: (int(name[1:].split('.')[0]), name))


def trainable(params: Any) -> dict[str, Any]:
  """{'b4.const', 'b4.conv1' ...: arrays} of a generator that may be trained.

  The mapping network, the affine layers of styles and torgb stay as they are [StyleGAN-NADA 4.2].
  """
  found = {}
  for block, layers in params['synthesis'].items():
    for name, layer in layers.items():
      if isinstance(layer, dict):
        layer = {what: x for what, x in layer.items() if what != 'affine'}
      if name != 'torgb':
        found[f'{block}.{name}'] = layer
  return found


def merged(params: Any, layers: dict[str, Any]) -> Any:
  """The parameters of a generator with those of `trainable` in their place."""
  synthesis = {block: dict(there) for block, there in params['synthesis'].items()}
  for path, layer in layers.items():
    block, name = path.split('.')
    if isinstance(layer, dict):
      layer = synthesis[block][name] | layer
    synthesis[block][name] = layer
  return params | {'synthesis': synthesis}


def choose(moved: jax.Array, count: int) -> jax.Array:
  """Which of L layers are trained, bool [L]: the `count` ones whose w moved most, [L]."""
  _, rows = jax.lax.top_k(moved, count)
  return jnp.zeros(len(moved), bool).at[rows].set(True)


def check(net: sampler.Sampler, settings: Settings) -> None:
  """Raises UsageError if a network can't be trained with these Settings."""
  if net.grows:
    raise UsageError(f'{net.title}: it is still growing; take a network of full size')
  count = len(convolutions(net.variables['params']))
  if settings.layers is not None and settings.layers not in range(1, count + 1):
    raise UsageError(
      f'layers={settings.layers} must be from 1 to {count}: so many convolutions this network has'
    )


# ---- a step


def draw(
  net: sampler.Sampler, count: int, seed: Sequence[int], psi: float, labels: np.ndarray | None
) -> np.ndarray:
  """ws of random latents: float32 [count,num_ws,w_dim].

  Args:
    net: whose.
    count: how many.
    seed: numbers that decide about them.
    psi: truncation.
    labels: [K,c_dim], of which each gets one; None: as the data has them.
  """
  random = np.random.RandomState(seed)
  z = random.randn(count, net.generator.mapping.z_dim).astype(np.float32)
  if labels is None:
    c = sampler.draw_labels(net, count, random)
  else:
    c = labels[random.randint(len(labels), size=count)]
  return net.truncate(net.map(z, c), psi)


def adam_step(
  settings: Settings,
  state: TrainingState,
  grads: dict[str, Any],
  is_chosen: dict[str, jax.Array],
) -> TrainingState:
  """One step of Adam [Kingma and Ba 2015] on the chosen layers; the others stay.

  Each has a count of its own. So one that is chosen for the first time late takes a first step, and
  not a far longer one.
  """
  c = schedule.lazy_correction(INTERVAL)
  beta2 = BETA2**c

  def of_layer(params, moments, grads, is_chosen):
    count = moments.count + 1
    square = jax.tree.map(lambda x, g: beta2 * x + (1 - beta2) * g**2, moments.square, grads)
    bias = 1 - beta2 ** count.astype(jnp.float32)
    moved = jax.tree.map(
      lambda x, g, v: x - settings.lr * c * g / (jnp.sqrt(v / bias) + EPS), params, grads, square
    )
    new, old = (moved, Moments(count, square)), (params, moments)
    return jax.tree.map(partial(jnp.where, is_chosen), new, old)

  found = {
    name: of_layer(params, state.moments[name], grads[name], is_chosen[name])
    for name, params in state.params.items()
  }
  return TrainingState(*({name: x[i] for name, x in found.items()} for i in range(2)))


def first_state(params: Any) -> TrainingState:
  """Where the training of a generator with these parameters begins."""
  layers = trainable(params)
  moments = {
    name: Moments(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, layer))
    for name, layer in layers.items()
  }
  return TrainingState(layers, moments)


def _render(generator, variables, layers, ws, key):
  """Images [N,H,W,C] of ws [N,num_ws,w_dim] by a network with these layers."""
  # Noise follows from the number of an image, whatever the devices; both networks get the same.
  keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(ws)))
  params = merged(variables['params'], layers)
  noise = draw_noise(variables['noise'], keys)
  return generator.apply({'params': params, 'noise': noise}, ws, 'const', method='image')


def _all_finite(tree):
  return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


@functools.lru_cache(8)
def compiled(
  mesh: Mesh,
  generator: Any,
  looks: tuple[tuple[clip.Architecture, Callable], ...],
  settings: Settings,
) -> Callable:
  """The step of a Training, compiled once for equal arguments.

  looks: (architecture, view) of each tower.
  """
  place = sharding.spread(mesh)
  whole = sharding.replicated(mesh)

  render = partial(_render, generator)

  def most_moved(variables, towers, targets, layers, ws, key):
    """Which convolutions are trained. w moves against its gradient, in a single step."""
    count = len(ws)
    names = convolutions(variables['params'])
    if settings.layers is None:
      return jnp.ones(len(names), bool)

    def distance(ws):
      images = render(variables, layers, ws, key)
      found = [tower.loss(images, target[None]) for tower, target in zip(towers, targets)]
      return sum(x[:count].sum() for x in found)

    gradient = jax.grad(distance)(place(ws))[:count]  # [N,num_ws,w_dim]
    return choose(jnp.abs(gradient).mean((0, 2))[: len(names)], settings.layers)

  @partial(jax.jit, donate_argnames='state', out_shardings=whole)
  def advance(variables, weights, directions, targets, state, ws, layer_ws, number):
    towers = [Tower(x, *look) for x, look in zip(weights, looks)]
    keys = jax.random.split(jax.random.fold_in(purpose_key(settings.seed, 'training'), number))
    chosen = most_moved(variables, towers, targets, state.params, layer_ws, keys[0])
    count = len(ws)
    ws = place(ws)  # rows that it repeats must not count in a mean
    before = render(variables, {}, ws, keys[1])

    def loss(layers):
      after = render(variables, layers, ws, keys[1])
      found = [
        directional_loss(tower.features(before), tower.features(after), direction)
        for tower, direction in zip(towers, directions)
      ]
      return sum(x[:count].mean() for x in found)

    value, grads = jax.value_and_grad(loss)(state.params)
    # Of layers that aren't among those to choose from: the constant, a block's skip.
    is_chosen = dict.fromkeys(state.params, jnp.asarray(settings.layers is None))
    is_chosen |= dict(zip(convolutions(variables['params']), chosen))
    new = adam_step(settings, state, grads, is_chosen)
    is_finite = _all_finite((value, new))
    state = jax.tree.map(partial(jnp.where, is_finite), new, state)
    return state, Losses(value, is_finite, chosen)

  return advance


class Training:
  """Trains a generator a step at a time. `state` is all that a training needs to go on."""

  def __init__(
    self,
    net: sampler.Sampler,
    looks: Sequence[Look],
    settings: Settings = Settings(),
    labels: np.ndarray | None = None,
    state: TrainingState | None = None,
  ) -> None:
    """Prepares the training.

    Args:
      net: a network of full size, which stays as it is.
      looks: what its images are seen by; the losses of several are added.
      settings: see Settings.
      labels: [K,c_dim], of which each image gets one; None: as the data has them.
      state: where another training of the same was; None: from the start.

    Raises: UsageError, as `check`.
    """
    check(net, settings)
    self._net, self._settings, self._labels = net, settings, labels
    mesh = sharding.make_mesh()
    static = tuple((look.tower.architecture, look.tower.view) for look in looks)
    advance = compiled(mesh, net.generator, static, settings)
    weights = [
      {name: look.tower.params[name] for name in ('visual', 'logit_scale')} for look in looks
    ]
    constant = weights, [look.direction for look in looks], [look.target for look in looks]
    constant = sharding.replicate(mesh, (net.variables, *constant))
    if state is None:
      state = first_state(net.variables['params'])
    # By way of the host: the first step takes the memory of what it is given.
    self.state = sharding.replicate(mesh, jax.device_get(state))
    self._advance = partial(advance, *constant)

  def advance(self, step: int) -> Losses:
    """Step number `step`, by latents and noise of that number. Returns the Losses before it."""
    settings = self._settings
    ws, layer_ws = (
      draw(self._net, count, (settings.seed, step, use), settings.psi, self._labels)
      for use, count in enumerate((settings.batch, LAYER_BATCH))
    )
    with jax.default_matmul_precision('highest'):  # as a Sampler makes images
      self.state, losses = self._advance(self.state, ws, layer_ws, np.int32(step))
    return losses

  def net(self) -> sampler.Sampler:
    """The network as it is now. Its workdir, step and nimg are those of what it was made from."""
    params = merged(self._net.variables['params'], jax.device_get(self.state.params))
    return self._net._replace(variables=self._net.variables | {'params': params})
