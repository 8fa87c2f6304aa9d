"""What the layers of a network do for one picture: its parts by resolution, its feature maps."""

import functools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sg2jax import grids, sampler
from sg2jax.edit import direction
from sg2jax.evaluation import artifacts
from sg2jax.faults import UsageError
from sg2jax.models import styles as style_space
from sg2jax.models.layers import noise_of_seeds
from sg2jax.sampler import Sampler
from sg2jax.view import picture
from sg2jax.view.picture import Directions, Shown

MAPS = 64  # channels of a layer that are shown, its first ones
PART_SIDE = 128  # px at most, of a part as it is shown
MAP_SIDE = 64  # and of a map


class Part(NamedTuple):
  """What a resolution adds to a picture."""

  share: float  # of the sum of all parts' standard deviations
  image: np.ndarray  # uint8 [h,w,C], grey where it adds nothing


def parts(net: Sampler, shown: Shown, directions: Directions) -> dict[str, Part]:
  """Parts by resolution, {'b4': ...}, whose sum is the picture.

  Raises: UsageError for a network that grows, or in which one layer makes the picture alone.
  """
  if net.grows:
    raise UsageError('what each resolution adds is shown once the network has its full size')
  found, shares = _parts(net.generator)(*_given(net, shown, directions))
  return {
    name: Part(float(shares[name]), np.asarray(sampler.to_uint8(image[0] - 0.5 / 127.5)))
    for name, image in sorted(found.items(), key=lambda item: artifacts.resolution(item[0]))
  }


def names(net: Sampler) -> list[str]:
  """The layers that have feature maps, coarse to fine."""
  found = [x for x in style_space.channels(net.generator, net.variables) if 'torgb' not in x]
  # Of a growing network those that are there.
  side = max(net.generator.synthesis.resolution) >> net.growing.get('stage', 0)
  return [x for x in found if artifacts.resolution(x) <= side]


def maps(net: Sampler, shown: Shown, directions: Directions, layer: str) -> np.ndarray:
  """The first MAPS feature maps of a layer, after its activation, side by side: uint8 [H,W,1].

  Grey is 0; white and black are the largest of all these maps, and its opposite.
  """
  if layer not in names(net):
    raise UsageError(f'layer {layer!s:.40}: choose from {", ".join(names(net))}')
  compute = _features(net.generator, tuple(net.growing.items()))
  found = compute(*_given(net, shown, directions))[layer]  # [1,h,w,C]
  x = np.asarray(found[0, ..., :MAPS], np.float32).transpose(2, 0, 1)[..., None]  # [C,h,w,1]
  most = max(np.abs(x).max(), artifacts.TINY)
  shades = np.round(128 + 127 * x / most).astype(np.uint8)
  return grids.image_grid(np.stack([reduced(shade, MAP_SIDE) for shade in shades]))


def reduced(image: np.ndarray, side: int) -> np.ndarray:
  """uint8 [H,W,C] with its longer side at most `side` px."""
  height, width, channels = image.shape
  factor = side / max(height, width)
  if factor >= 1:
    return image
  size = max(1, round(width * factor)), max(1, round(height * factor))
  planes = [Image.fromarray(image[..., k]).resize(size, Image.BOX) for k in range(channels)]
  return np.stack(planes, -1)


def _given(net, shown, directions):
  """(variables, ws, offsets of styles) of a picture: noise is in its maps."""
  ws, offsets = direction.apply(
    net, picture.edit_of(shown, directions), picture.latents(net, shown)
  )
  variables = net.variables
  if shown.noise == 'random':
    seeds = shown.start.latents.seeds if shown.start else [shown.seed]
    noise = noise_of_seeds(variables['noise'], np.array(seeds, np.uint32))
    variables = variables | {'noise': noise}
  elif shown.start and shown.noise == 'const':
    variables = shown.start.latents.network(net, 0).variables
  elif shown.noise == 'none':
    variables = variables | {'noise': jax.tree.map(jnp.zeros_like, variables['noise'])}
  return variables, ws, offsets


# Compiled once for equal arguments.


@functools.lru_cache(4)
def _parts(generator):
  @jax.jit
  def compute(variables, ws, offsets):
    with _as_shown(offsets):
      found = artifacts.image_parts(generator, variables, ws)
    return found, artifacts.shares(artifacts.moments(found))

  return compute


@functools.lru_cache(4)
def _features(generator, growing):
  @jax.jit
  def compute(variables, ws, offsets):
    with _as_shown(offsets):
      layers = ('conv0', 'conv1')
      return artifacts.features(generator, variables, ws, layers, **dict(growing))

  return compute


def _as_shown(offsets):
  return style_space.changing(partial(style_space.add, offsets))
