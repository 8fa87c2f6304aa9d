"""A trained generator, ready to be applied: out of a checkpoint, or out of the state of a run."""
from functools import partial
import hashlib
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sg2jax import build, checkpoint
from sg2jax.models.mapping import broadcast


class Trained(NamedTuple):
  """A trained generator: moving average of the weights, at the stage that a growing network had reached.

  workdir, config: of its run, with `c_dim`; generator: a models.stylegan2.Generator; variables: {'params', 'noise'}; growing:
  arguments `stage` and `alpha` of its synthesis, {} for a network that doesn't grow.
  """
  workdir: pathlib.Path
  config: Any
  step: int
  nimg: int
  generator: Any
  variables: dict
  growing: dict

  @property
  def title(self):
    """What a person needs to know it by."""
    text = ''.join(f', {k} {v:.3g}' for k, v in self.growing.items() if v)
    return f'{"/".join(self.workdir.parts[-2:])}: {self.config.g.architecture}{text}, {self.nimg / 1000:g} kimg'

  @property
  def num_ws(self):
    """Number of w that an image takes."""
    return self.generator.synthesis.num_ws

  @property
  def grows(self):
    """Whether it has not reached its full size, or is fading it in."""
    return bool(self.growing.get('stage')) or self.growing.get('alpha') is not None

  def hash(self):
    """SHA-256 of all that decides about an image: the network and its stage, weights, noise maps. Hex digits."""
    config = {k: self.config[k] for k in ('resolution', 'data', 'g')}
    config['data'] = config['data'].channels
    config['g'] = {k: v for k, v in config['g'].items() if k != 'remat'}
    digest = hashlib.sha256(json.dumps([config, self.growing], sort_keys=True).encode())
    for path, x in jax.tree_util.tree_leaves_with_path(jax.device_get(self.variables)):
      digest.update(f'{jax.tree_util.keystr(path)} {x.dtype} {x.shape}'.encode() + np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()


def of_state(workdir, config, state):
  """The Trained in a TrainState, or in one as a dict. config: a ConfigDict or a dict, with `c_dim`."""
  config = ml_collections.ConfigDict(config)
  get = state.get if isinstance(state, dict) else partial(getattr, state)
  generator, _ = build.networks(config, config.c_dim)
  step, nimg, growing = int(get('step')), int(get('nimg')), {}
  if config.get('grow') and config.grow.start_res:  # older runs don't have it
    growth = build.growth(config)
    stage = growth.stage(nimg)
    alpha = float(growth.alpha(stage, jnp.int32(step), jnp.int32(nimg)))
    growing = {'stage': stage.level, 'alpha': alpha if alpha < 1 else None}
  return Trained(workdir, config, step, nimg, generator, {'params': get('g_ema'), 'noise': get('noise') or {}}, growing)


def load(path):
  """The Trained in a checkpoint: a workdir, whose newest counts, or one step of it.

  Raises: CheckpointError as `checkpoint.load` does.
  """
  state, config = checkpoint.load(path)
  path = pathlib.Path(path).expanduser().absolute()
  workdir = next((p for p in (path, *path.parents[:2]) if (p / 'checkpoints').is_dir()), path.parent)
  trained = of_state(workdir, config, state)
  return trained._replace(variables=jax.device_put(trained.variables))


def labels(trained, count, key):
  """`count` labels drawn at random from all classes: float32 [count,c_dim]. key: a numpy RandomState."""
  c_dim = trained.config.c_dim
  return np.eye(max(c_dim, 1), c_dim, dtype=np.float32)[key.randint(max(c_dim, 1), size=count)]


def sample_ws(trained, count, seed):
  """ws of `count` latents, with random labels where there are any: float32 [count,num_ws,w_dim]."""
  key = np.random.RandomState(seed)
  z = key.randn(count, trained.generator.mapping.z_dim).astype(np.float32)
  c = labels(trained, count, key)
  w = jax.jit(lambda v, z, c: trained.generator.apply(v, z, c, method='map'))(trained.variables, z, c)
  return broadcast(w, trained.num_ws)


def to_uint8(images):
  """Network output in [-1,1] -> uint8: truncate(clip(127.5 x + 128, 0, 255)) [S2 metrics]. Any shape."""
  return jnp.clip(images * 127.5 + 128, 0, 255).astype(jnp.uint8)
