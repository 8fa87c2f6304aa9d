"""Training of latent mappers [SC 5]: on drawn latents, towards one text.

training = Training(sg2jax.load('runs/quickstart'), tower, texts, Settings())
for seeds in ...:
  losses = training.advance(net.ws(seeds, psi=0.7))
"""

from collections.abc import Callable, Sequence
import functools
from functools import partial
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax

from sg2jax import sampler, sharding
from sg2jax.edit import mapper, optimizers
from sg2jax.edit.text_losses import Tower
from sg2jax.faults import UsageError
from sg2jax.keys import purpose_key
from sg2jax.models import styles as style_space
from sg2jax.nets import clip

OPTIMIZERS = ('adam', 'ranger')


class Settings(NamedTuple):
  """The mapper and its training, with StyleCLIP's values where nothing is said.

  Adam instead of its Ranger: with gradients as small as these, Ranger's steps are hundreds of times
  smaller at the same lr. Parameters are stored 100 times too large, so lr is, too.
  """

  space: str = 'w+'  # or 's'
  levels: tuple[str, ...] = ('coarse', 'medium', 'fine')  # of w+
  normalized: str = 'features'  # StyleCLIP: 'layers'
  optimizer: str = 'adam'  # StyleCLIP: 'ranger'
  lr: float = 0.5
  clip_lambda: float = 1.0
  latent_l2_lambda: float = 0.8  # of the mean of squares of what is added
  strength: float = mapper.STRENGTH
  seed: int = 0  # of the first parameters
  adam_betas: tuple[float, float] = (0.9, 0.999)
  adam_eps: float = 1e-8


class TrainingState(NamedTuple):
  """Parameters of a mapper, of Ranger fast and slow ones, and what the optimizer keeps."""

  params: Any
  moments: Any

  @property
  def current(self) -> Any:
    """The parameters that are trained and used."""
    return self.params.fast if isinstance(self.params, optax.LookaheadParams) else self.params


class Losses(NamedTuple):
  """What a step found before its update. loss: clip_lambda * clip_loss + latent_l2_lambda * l2."""

  loss: jax.Array
  clip_loss: jax.Array  # mean over images
  l2: jax.Array  # mean of squares of what is added; of styles the sum of those of the layers


def mapper_losses(settings: Settings, moves: Any, clip_losses: jax.Array) -> Losses:
  """The loss of a mapper, but for that of identity [SC Eq. 2-3].

  Args:
    settings: see Settings.
    moves: what is added, [N,num_ws,w_dim], or to styles {layer: [N,C]}.
    clip_losses: [N], of the images.
  """
  l2 = sum((x**2).mean() for x in jax.tree.leaves(moves))
  clip_loss = clip_losses.mean()
  loss = settings.clip_lambda * clip_loss + settings.latent_l2_lambda * l2
  return Losses(loss, clip_loss, l2)


def first_state(settings: Settings, params: Any) -> TrainingState:
  """Where a training begins, given parameters of a mapper."""
  if settings.optimizer == 'ranger':
    params = optax.LookaheadParams.init_synced(params)
  return TrainingState(params, _optimizer(settings).init(params))


def _optimizer(settings):
  match settings.optimizer:
    case 'adam':
      direction = optimizers.adam(*settings.adam_betas, settings.adam_eps)
      return optax.chain(direction, optax.scale(-settings.lr))
    case 'ranger':
      return optimizers.ranger(settings.lr)
  raise UsageError(
    f'optimizer={settings.optimizer} is unknown; choose from {", ".join(OPTIMIZERS)}'
  )


def train_step(
  compute: Callable, settings: Settings, state: TrainingState
) -> tuple[TrainingState, Losses]:
  """One step. compute: parameters of the mapper -> Losses. -> (state, Losses before it)."""

  def loss(params):
    losses = compute(params)
    return losses.loss, losses

  grads, losses = jax.grad(loss, has_aux=True)(state.current)
  updates, moments = _optimizer(settings).update(grads, state.moments, state.params)
  return TrainingState(optax.apply_updates(state.params, updates), moments), losses


# ---- on a network


def module_of(settings: Settings, net: sampler.Sampler) -> nn.Module:
  """The mapper that is trained for a network.

  Raises: UsageError: none of the levels has a layer there; see `mapper.usable_levels`.
  """
  if settings.space == 's':
    return mapper.StyleMapper(tuple(style_space.channels(net.generator, net.variables)))
  levels, _ = mapper.usable_levels(settings.levels, net.num_ws)
  return mapper.LatentMapper(levels, settings.normalized)


@functools.lru_cache(8)
def compiled(
  mesh: Mesh,
  generator: Any,
  growing: tuple,
  architecture: clip.Architecture,
  view: Callable,
  module: nn.Module,
  settings: Settings,
) -> tuple[Callable, Callable]:
  """(begin, advance) of a Training, compiled once for equal arguments."""
  place = sharding.spread(mesh)
  whole = sharding.replicated(mesh)
  growing = dict(growing)

  def latents(variables, ws):
    if settings.space == 's':
      return style_space.read(generator, variables, ws, growing.get('stage', 0))
    return ws

  def moves_of(variables, params, ws):
    moves = module.apply({'params': params}, latents(variables, ws))
    moves = jax.tree.map(lambda x: settings.strength * x, moves)
    return moves if settings.space == 's' else {'ws': moves}

  @partial(jax.jit, out_shardings=whole)
  def begin(variables, ws):
    key = purpose_key(settings.seed, 'mapper')
    return first_state(settings, module.init(key, latents(variables, ws))['params'])

  @partial(jax.jit, donate_argnames='state', out_shardings=whole)
  def advance(variables, weights, texts, state, ws):
    count = len(ws)
    ws = place(ws)  # rows that it repeats must not count twice in a mean

    def compute(params):
      moves = moves_of(variables, params, ws)
      change = partial(style_space.add, moves)
      moved = ws + moves.get('ws', 0)
      images = style_space.image(generator, variables, moved, change, 'const', **growing)
      found = Tower(weights, architecture, view).loss(images, texts)
      return mapper_losses(settings, jax.tree.map(lambda x: x[:count], moves), found[:count])

    return train_step(compute, settings, state)

  return begin, advance


class Training:
  """Trains a mapper a step at a time. `state` is all that a training needs to go on."""

  def __init__(
    self,
    net: sampler.Sampler,
    tower: Tower,
    texts: np.ndarray,
    settings: Settings = Settings(),
    state: TrainingState | None = None,
  ) -> None:
    """Prepares the training.

    Args:
      net: whose latents are moved.
      tower: what looks at its images.
      texts: features of the text [1,E].
      settings: see Settings.
      state: where another one of the same settings was; None: from the start.
    """
    mesh = self._mesh = sharding.make_mesh()
    self.module = module_of(settings, net)
    self._settings = settings
    self._num_ws = net.num_ws
    static = net.generator, tuple(net.growing.items()), tower.architecture, tower.view
    begin, advance = compiled(mesh, *static, self.module, settings)
    weights = {name: tower.params[name] for name in ('visual', 'logit_scale')}
    variables, weights, texts = sharding.replicate(mesh, (net.variables, weights, texts))
    if state is None:
      state = begin(variables, jnp.zeros((1, net.num_ws, net.generator.mapping.w_dim)))
    # By way of the host: the first step takes the memory of what it is given.
    self.state = sharding.replicate(mesh, jax.device_get(state))
    self._advance = partial(advance, variables, weights, texts)

  def advance(self, ws: np.ndarray) -> Losses:
    """One step on latents [N,num_ws,w_dim]. Returns the Losses before it, as they come."""
    with jax.default_matmul_precision('highest'):
      self.state, losses = self._advance(self.state, ws)
    return losses

  def arrays(self) -> list[np.ndarray]:
    """The state, to be kept in a file."""
    return jax.tree.leaves(jax.device_get(self.state))

  def restore(self, arrays: Sequence[np.ndarray]) -> None:
    """Goes on from what `arrays` gave. Raises ValueError if they are no state of this training."""
    leaves, tree = jax.tree.flatten(self.state)
    for x, wanted in zip(arrays, leaves, strict=True):
      if x.shape != wanted.shape or x.dtype != wanted.dtype or not np.isfinite(x).all():
        raise ValueError(f'an array is {x.dtype} {list(x.shape)}, not {list(wanted.shape)}')
    self.state = sharding.replicate(self._mesh, jax.tree.unflatten(tree, arrays))

  def trained(self) -> mapper.Mapper:
    """What is trained, as of now."""
    params = jax.device_get(self.state.current)
    return mapper.Mapper(self.module, params, self._num_ws, self._settings.strength)
