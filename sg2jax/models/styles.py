"""Style space: what the affine layers of a generator make of ws [Wu et al. 2021, arXiv 2011.12799].

Of each layer, 'b4.conv1', 'b4.torgb', 'b8.conv0', 'b8.conv1', 'b8.torgb' ..., styles [N,C] scale
the C channels that it reads; torgb's are those before its factor 1/sqrt(C). In config A they are
the scales and the offsets of AdaIN.
"""

from collections.abc import Callable
import contextlib
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from sg2jax.models.generator import Generator

Styles = dict[str, jax.Array]


def order(layer: str) -> tuple[int, str]:
  """A key by which names of layers are sorted as the network has them: coarse to fine."""
  block, name = layer.split('.')
  return int(block[1:]), name  # conv0 < conv1 < torgb


def read(generator: Generator, variables: Any, ws: jax.Array, stage: int = 0) -> Styles:
  """ws [N,num_ws,w_dim] -> {layer: styles [N,C]}, in order where it isn't jitted.

  Under jit the images that nobody takes aren't computed. stage: of a growing network.
  """

  def is_affine(module, _):
    return module.name == 'affine'

  _, found = generator.apply(
    variables,
    ws,
    'none',
    stage,
    method='image',
    mutable=['intermediates'],
    capture_intermediates=is_affine,
  )
  blocks = found['intermediates']['synthesis']
  styles = {
    f'{block}.{layer}': modules['affine']['__call__'][0]
    for block, layers in blocks.items()
    for layer, modules in layers.items()
  }
  return {layer: styles[layer] for layer in sorted(styles, key=order)}


def channels(generator: Generator, variables: Any) -> dict[str, int]:
  """{layer: C} of all layers with styles, in order. Nothing is computed."""
  leaves, tree = jax.tree.flatten(variables)
  shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)
  return dict(_channels(generator, tree, shapes))


@functools.lru_cache(32)  # a quarter of a second, and every edited batch asks for it
def _channels(generator, tree, leaves):
  ws = jax.ShapeDtypeStruct((1, generator.synthesis.num_ws, generator.mapping.w_dim), jnp.float32)
  shapes = jax.eval_shape(functools.partial(read, generator), jax.tree.unflatten(tree, leaves), ws)
  return {layer: shapes[layer].shape[1] for layer in sorted(shapes, key=order)}


def image(
  generator: Generator,
  variables: Any,
  ws: jax.Array,
  change: Callable[[str, jax.Array], jax.Array],
  noise_mode: str = 'const',
  stage: int = 0,
  alpha: jax.Array | float | None = None,
) -> jax.Array:
  """ws [N,num_ws,w_dim] -> images [N,H,W,C] in [-1,1], with other styles than theirs.

  change: of a layer's name and its styles [N,C], gives those to take. The other arguments are
  those of `Generator.image`.
  """

  with changing(change):
    return generator.apply(variables, ws, noise_mode, stage, alpha, method='image')


def changing(
  change: Callable[[str, jax.Array], jax.Array],
) -> contextlib.AbstractContextManager:
  """While it lasts, networks take other styles than theirs. change: as of `image`."""

  def intercept(call, args, kwargs, context):
    styles = call(*args, **kwargs)
    if context.module.name != 'affine':
      return styles
    return change('.'.join(context.module.path[-3:-1]), styles)

  return nn.intercept_methods(intercept)


def add(offsets: Styles, layer: str, styles: jax.Array) -> jax.Array:
  """A `change`, given offsets: of the layers that have some, they [N,C] are added."""
  return styles + offsets[layer] if layer in offsets else styles
