"""Latent mappers: networks, trained for one text, that say how to move any latent [SC 5].

[SC] is StyleCLIP [Patashnik et al. 2021, arXiv 2103.17249]. Parameters are named as in its files:
`course_mapping.mapping.1.weight` (so spelled there). Layers are counted from the coarse end, so a
level means the same at every size that starts at 4x4.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from sg2jax.faults import UsageError
from sg2jax.models import styles as style_space
from sg2jax.models.layers import Dense
from sg2jax.nets.arrays import checked

# Of ws: the name of its network in files, and its layers. 'all' alone is one network for all.
LEVELS = {
  'coarse': ('course_mapping', slice(0, 4)),
  'medium': ('medium_mapping', slice(4, 8)),
  'fine': ('fine_mapping', slice(8, None)),
  'all': ('mapping', slice(0, None)),
}
# What a latent [N,L,W] is normalised over: its features, or the layers of its level, each feature
# for itself. StyleCLIP's networks have the latter, which presumably was not meant.
NORMALIZED = {'features': -1, 'layers': -2}
STRENGTH = 0.1  # of what a mapper says, in what is added
DEPTH = 4  # dense layers


class LevelMapper(nn.Module):
  """A mapper of one level: [N,L,W] -> [N,L,W]."""

  normalized: str = 'features'  # one of NORMALIZED

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    features = x.shape[-1]
    axis = NORMALIZED[self.normalized]
    x = x * jax.lax.rsqrt((x**2).mean(axis, keepdims=True) + 1e-8)
    for i in range(DEPTH):  # number 0 is the normalisation
      x = Dense(features, 'lrelu', lr_mul=0.01, name=f'mapping.{i + 1}')(x)
    return x


class LatentMapper(nn.Module):
  """ws [N,num_ws,w_dim] -> what is added to them, over STRENGTH: [N,num_ws,w_dim].

  It is 0 at the layers of levels that aren't there.
  """

  levels: tuple[str, ...]  # keys of LEVELS
  normalized: str = 'features'

  @nn.compact
  def __call__(self, ws: jax.Array) -> jax.Array:
    moves = jnp.zeros_like(ws)
    for level in self.levels:
      name, layers = LEVELS[level]
      part = LevelMapper(self.normalized, name=name)(ws[:, layers])
      moves = moves.at[:, layers].set(part)
    return moves


class StyleMapper(nn.Module):
  """Styles {layer: [N,C]} -> what is added to them, over STRENGTH, torgb's left out.

  layers: all layers with a style, in the order of the network. Those that a growing one doesn't
  have yet have no mapper.
  """

  layers: tuple[str, ...]

  @nn.compact
  def __call__(self, styles: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {
      layer: LevelMapper(name=f'mapper_{i}')(styles[layer])
      for i, layer in enumerate(self.layers)
      if layer in styles and not layer.endswith('.torgb')
    }


def usable_levels(levels: Sequence[str], num_ws: int) -> tuple[tuple[str, ...], list[str]]:
  """(those of the levels that a network with num_ws layers has, what is to be said of the others).

  Raises: UsageError: an unknown level; 'all' beside others; none is left.
  """
  for level in levels:
    if level not in LEVELS:
      raise UsageError(f'the level {level} is unknown; choose from {", ".join(LEVELS)}')
  if 'all' in levels and len(set(levels)) > 1:
    raise UsageError(f'levels={",".join(levels)}: all is one network for all layers; take it alone')
  used, said = [], []
  for level in dict.fromkeys(levels):
    layers = range(num_ws)[LEVELS[level][1]]
    whole = LEVELS[level][1].stop
    if not layers:
      first = LEVELS[level][1].start
      said.append(f'{level} has no layers here: it begins at {first}, of {num_ws} from 0 on')
      continue
    if whole and layers.stop < whole:
      said.append(f'{level} has {len(layers)} of its 4 layers here: the network has {num_ws}')
    used.append(level)
  if not used:
    raise UsageError(f'levels={",".join(levels) or "none"}: {"; ".join(said) or "name one"}')
  return tuple(used), said


@dataclasses.dataclass(frozen=True, eq=False)
class Mapper:
  """A trained mapper, ready to apply to latents of the network that it is for."""

  module: LatentMapper | StyleMapper
  params: Any
  num_ws: int  # of the network that it is for
  strength: float = STRENGTH

  def moves(self, net: Any, ws: np.ndarray) -> dict[str, np.ndarray]:
    """What is to be added to ws [N,num_ws,w_dim], {'ws': [N,num_ws,w_dim]}, or {layer: [N,C]}.

    net: a Sampler, whose styles those of styles take.
    """
    step = _moves_step(net.generator, net.growing.get('stage', 0), self.module)
    with jax.default_matmul_precision('highest'):  # as it was trained
      moves = jax.device_get(step(net.variables, self.params, np.asarray(ws)))
    return jax.tree.map(lambda x: x * np.asarray(self.strength, x.dtype), moves)

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """What it is for, without N: {'ws': (num_ws, w_dim)}, or {layer: (C,)}."""
    widths = {name: len(level['mapping.1']['bias']) for name, level in self.params.items()}
    if isinstance(self.module, LatentMapper):
      return {'ws': (self.num_ws, *set(widths.values()))}
    return {self.module.layers[_number(name)]: (width,) for name, width in widths.items()}

  def about(self) -> dict[str, Any]:
    """What `of_arrays` has to be told besides its arrays, as JSON."""
    about = {'num_ws': self.num_ws, 'strength': self.strength}
    if isinstance(self.module, LatentMapper):
      return about | {'normalized': self.module.normalized}
    return about | {'layers': list(self.module.layers)}


@functools.lru_cache(8)
def _moves_step(generator, stage, module):
  @jax.jit
  def step(variables, params, ws):
    if isinstance(module, StyleMapper):
      return module.apply({'params': params}, style_space.read(generator, variables, ws, stage))
    return {'ws': module.apply({'params': params}, ws)}

  return step


# ---- parameters, as they are in files


def arrays(params: Any) -> dict[str, np.ndarray]:
  """Parameters, or what has their shapes, under StyleCLIP's names, matrices [out,in]."""
  flat = traverse_util.flatten_dict(params)
  return {'.'.join(path): np.asarray(x).T for path, x in flat.items()}


def params(arrays: Mapping[str, np.ndarray], module: nn.Module, example: Any) -> Any:
  """Parameters of a LatentMapper or StyleMapper from arrays under StyleCLIP's names.

  Args:
    arrays: float32 or float64, all of the module's and no others.
    module: whose they are.
    example: what it takes, arrays or their shapes.

  Raises: ValueError naming missing, unknown or ill-shaped arrays.
  """
  tree = jax.eval_shape(module.init, jax.random.key(0), example)['params']
  shapes = {path: x.shape[::-1] for path, x in traverse_util.flatten_dict(tree).items()}
  wanted = {'.'.join(path): shape for path, shape in shapes.items()}
  arrays, dtype = checked("StyleCLIP's mapper", arrays, wanted)
  found = {path: arrays['.'.join(path)].astype(dtype).T for path in shapes}
  return traverse_util.unflatten_dict(found)


def of_arrays(
  arrays: Mapping[str, np.ndarray],
  num_ws: int,
  normalized: str = 'features',
  layers: Sequence[str] = (),
  strength: float = STRENGTH,
) -> Mapper:
  """The Mapper of arrays under StyleCLIP's names, of ws or of styles.

  Args:
    arrays: float32 or float64.
    num_ws: of the network that it is for.
    normalized: of ws: one of NORMALIZED.
    layers: of styles: all layers with a style, in the order of the network.
    strength: see Mapper.

  Raises: ValueError: they are no mapper's.
  """
  levels = levels_of(arrays)
  if levels:
    if normalized not in NORMALIZED:
      raise ValueError(f'it normalises over {normalized!a:.40}, which is unknown')
    widths = {np.shape(x)[0] for x in arrays.values() if np.ndim(x)}
    if len(widths) != 1:
      raise ValueError(f'it moves w of {sorted(widths)} numbers; they must be as many everywhere')
    try:
      usable, said = usable_levels(levels, num_ws)
    except UsageError as e:
      raise ValueError(str(e)) from e
    if usable != levels:
      raise ValueError('; '.join(said))
    module = LatentMapper(levels, normalized)
    example = jax.ShapeDtypeStruct((1, num_ws, *widths), np.float32)
  else:
    module = StyleMapper(tuple(layers))
    biases = {i: arrays.get(f'mapper_{i}.mapping.1.bias') for i in range(len(layers))}
    example = {
      layers[i]: jax.ShapeDtypeStruct((1, *np.shape(x)), np.float32)
      for i, x in biases.items()
      if x is not None
    }
    if not example:
      raise ValueError('it has neither levels of w nor layers of styles')
  return Mapper(module, params(arrays, module, example), num_ws, strength)


def _number(name):
  """3 of 'mapper_3', a network of StyleMapper's."""
  return int(name.removeprefix('mapper_'))


def levels_of(arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
  """The levels that arrays under StyleCLIP's names have; () for those of styles and of others."""
  networks = {name.split('.')[0] for name in arrays}
  return tuple(level for level, (name, _) in LEVELS.items() if name in networks)
