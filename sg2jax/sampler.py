"""A trained generator, ready to be applied: out of a checkpoint, or out of the state of a run.

g = sg2jax.load('runs/quickstart')
images = g(seeds=range(8), psi=0.7)  # uint8 [8,H,W,C]
"""

import functools
from functools import partial
import hashlib
import json
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sg2jax import build, checkpoint, ops, paths, sharding
from sg2jax.data.labels import FILE, Labels
from sg2jax.faults import CheckpointError, UsageError
from sg2jax.keys import purpose_key
from sg2jax.models.layers import NOISE_MODES, draw_noise
from sg2jax.models.mapping import broadcast, truncate
from sg2jax.models.stylegan2 import largest

# images and pixels that are made or looked at at once on a device, at most
BATCH, PIXELS = 32, 2**22
MAX_PSI = 1e6


class Sampler(NamedTuple):
  """A trained generator: moving average of the weights, at the stage that a growing network had
  reached.

  workdir, config: of its run, with `c_dim`; generator: a models.stylegan2.Generator; variables:
  {'params', 'noise'}; growing: arguments `stage` and `alpha` of its synthesis, {} for a network
  that doesn't grow; w_avg: moving average of w, [w_dim];
  labels: the data.labels.Labels of the data that it was trained on, None without labels.

  `net(seeds)` makes images. In steps: `z`, `c` and `ws` are what they are made of, `images` makes
  them of ws.
  """

  workdir: pathlib.Path
  config: Any
  step: int
  nimg: int
  generator: Any
  variables: dict
  growing: dict
  w_avg: Any
  labels: Any = None

  @property
  def title(self):
    """What a person needs to know it by."""
    text = ''.join(f', {k} {v:.3g}' for k, v in self.growing.items() if v)
    run = '/'.join(self.workdir.parts[-2:])
    return f'{run}: {self.config.g.architecture}{text}, {self.nimg / 1000:g} kimg'

  @property
  def num_ws(self):
    """Number of w that an image takes."""
    return self.generator.synthesis.num_ws

  @property
  def grows(self):
    """Whether it has not reached its full size, or is fading it in."""
    return bool(self.growing.get('stage')) or self.growing.get('alpha') is not None

  @property
  def batch(self):
    """Images that are made at once, over all devices, where nothing else is said."""
    return images_at_once(self.generator.synthesis.resolution) * sharding.make_mesh().size

  def __call__(self, seeds, psi=1.0, cutoff=None, label=None, noise='const', batch=None):
    """Images of seeds: uint8 [N,H,W,C], of the same bytes (but for 1 of 255) whatever the batch and
    the number of devices.

    Args:
      seeds: whole numbers in [0, 2^32), one for each image; or one number.
      psi: truncation towards w_avg [S1 App. B]; 1: none, 0: the mean image.
      cutoff: number of ws from the coarsest that are truncated; None: all.
      label: what `c` takes; None: drawn from the seed as the data has them, where there are labels.
      noise: 'const', the network's constant maps; 'random', drawn from the seed; 'none'.
      batch: images at once, over all devices; None: what suits their size.

    Raises: UsageError, naming the value.
    """
    seeds = check_seeds(seeds)
    return self.images(self.ws(seeds, psi, cutoff, label, batch), noise, seeds, batch)

  def z(self, seeds):
    """Latents as NVIDIA's tools draw them, RandomState(seed).randn(z_dim): float32 [N,z_dim]."""
    z_dim = self.generator.mapping.z_dim
    return np.stack([np.random.RandomState(s).randn(z_dim) for s in check_seeds(seeds)]).astype(
      np.float32
    )

  def c(self, seeds, label=None):
    """Labels of seeds: float32 [N,c_dim].

    Args:
      seeds: whole numbers, one for each label.
      label: a class by number (int) or by name (str); a list of classes, one for each seed; a
      vector of float [c_dim] (or of
        anything, where the labels are vectors) or one for each seed, [N,c_dim]. None: drawn from
        the seed as the data has them, so never a class that no image has.

    Raises: UsageError, naming the label and the choices.
    """
    seeds = check_seeds(seeds)
    if label is not None:
      return _labels(self.labels, label, len(seeds))
    if not self.labels:
      return np.zeros((len(seeds), 0), np.float32)
    return np.concatenate(
      [self.labels.draw(_after(s, self.generator.mapping.z_dim), 1) for s in seeds]
    )

  def ws(self, seeds, psi=1.0, cutoff=None, label=None, batch=None):
    """The mapped latents of seeds, truncated: float32 [N,num_ws,w_dim]. Arguments as of a call."""
    return self.truncate(self.map(self.z(seeds), self.c(seeds, label), batch), psi, cutoff)

  def truncate(self, w, psi=1.0, cutoff=None):
    """w [N,w_dim] -> ws, truncated: float32 [N,num_ws,w_dim]. Arguments as of a call."""
    if not abs(psi) <= MAX_PSI:  # NaN isn't, either
      raise UsageError(f'psi={psi} must be a number such as 0.7, within +-{MAX_PSI:g}')
    if cutoff is not None and not (0 <= cutoff <= self.num_ws and cutoff == int(cutoff)):
      raise UsageError(f'cutoff={cutoff} must be a number of ws, from 0 to {self.num_ws}')
    ws = np.broadcast_to(w[:, None], (len(w), self.num_ws, w.shape[1]))
    return (
      ws if psi == 1 else np.asarray(truncate(ws, np.asarray(self.w_avg), np.float32(psi), cutoff))
    )

  def map(self, z, c=None, batch=None):
    """z [N,z_dim], c [N,c_dim] (None: no labels) -> w, float32 [N,w_dim]."""
    c = np.zeros((len(z), 0), np.float32) if c is None else c
    step = _map_step(sharding.make_mesh(), self.generator)
    return _in_batches(step, (self.variables,), {'z': z, 'c': c}, 4096 if batch is None else batch)

  def images(self, ws, noise='const', seeds=None, batch=None):
    """ws [N,num_ws,w_dim] -> images uint8 [N,H,W,C], at full size while the network grows.

    seeds: [N], from which noise 'random' is drawn; None: 0 ... N-1; the others as of a call.
    """
    if noise not in NOISE_MODES:
      raise UsageError(f'noise={noise} is unknown; choose from {", ".join(NOISE_MODES)}')
    w_dim = self.generator.mapping.w_dim
    if np.ndim(ws) != 3 or not len(ws) or np.shape(ws)[1:] != (self.num_ws, w_dim):
      raise UsageError(
        f'ws of shape {list(np.shape(ws))}: this network takes [N,{self.num_ws},{w_dim}], with N '
        'of 1 or more'
      )
    mesh = sharding.make_mesh()
    step = _images_step(mesh, self.generator, tuple(self.growing.items()), noise)
    number = np.arange(len(ws)) if seeds is None else np.asarray(seeds)
    arrays = {'ws': np.asarray(ws), 'number': number.astype(np.uint32)}
    return _in_batches(step, (self.variables,), arrays, self.batch if batch is None else batch)

  def hash(self):
    """SHA-256 of all that decides about an image: the network and its stage, weights, noise maps.
    Hex digits.
    """
    config = {k: self.config[k] for k in ('resolution', 'data', 'g')}
    config['data'] = config['data'].channels
    config['g'] = {k: v for k, v in config['g'].items() if k != 'remat'}
    digest = hashlib.sha256(json.dumps([config, self.growing], sort_keys=True).encode())
    for path, x in jax.tree_util.tree_leaves_with_path(jax.device_get(self.variables)):
      digest.update(
        f'{jax.tree_util.keystr(path)} {x.dtype} {x.shape}'.encode()
        + np.ascontiguousarray(x).tobytes()
      )
    return digest.hexdigest()


def of_state(workdir, config, state, labels=None):
  """The Trained in a TrainState, or in one as a dict. config: a ConfigDict or a dict, with `c_dim`;
  labels: None: unknown.
  """
  config = build.complete(config)
  labels = (labels or Labels.unknown(config.c_dim)) if config.c_dim else None
  get = state.get if isinstance(state, dict) else partial(getattr, state)
  generator, _ = build.networks(config, config.c_dim)
  step, nimg, growing = int(get('step')), int(get('nimg')), {}
  if config.get('grow') and config.grow.start_res:  # older runs don't have it
    growth = build.growth(config)
    stage = growth.stage(nimg)
    alpha = float(growth.alpha(stage, jnp.int32(step), jnp.int32(nimg)))
    growing = {'stage': stage.level, 'alpha': alpha if alpha < 1 else None}
  variables = {'params': get('g_ema'), 'noise': get('noise') or {}}
  return Sampler(workdir, config, step, nimg, generator, variables, growing, get('w_avg'), labels)


def load(path):
  """The Trained in a checkpoint: a workdir, whose newest counts, or one step of it.

  Raises: CheckpointError as `checkpoint.load` and `read_labels` do; UsageError for an address, such
  as gs://...
  """
  paths.check_local(path)
  paths.check_text(path)
  state, config = checkpoint.load(path)
  trained = of_state(_workdir(path), config, state, read_labels(path, config['c_dim']))
  return trained._replace(variables=jax.device_put(trained.variables))


def _workdir(path):
  """Of a workdir, or one step of it: the workdir; of a step that was copied elsewhere, the folder
  that it is in.
  """
  path = pathlib.Path(path).expanduser().absolute()
  return next((p for p in (path, *path.parents[:2]) if (p / 'checkpoints').is_dir()), path.parent)


def read_labels(path, c_dim):
  """The Labels of a run: a workdir or one step, which may have its own labels.json beside it; None
  without labels.

  Unknown ones where no file says them: in older and imported runs.
  Raises: CheckpointError: they can't be read, or are of another run.
  """
  folders = (pathlib.Path(path).expanduser().absolute(), _workdir(path))
  path = next((p for p in (folder / FILE for folder in folders) if p.exists()), None)
  if not path or not c_dim:
    return Labels.unknown(c_dim) if c_dim else None
  try:
    found = Labels.from_json(path.read_text(encoding='utf-8'))
    if (
      found.c_dim != c_dim
      or not len(found.counts)
      or min(found.counts) < 1
      or len(found.names) not in (0, c_dim)
    ):
      raise ValueError(f'{found.c_dim} components, and {c_dim} of the run')
  except Exception as e:  # whatever a file that isn't as it was written leads to
    raise CheckpointError(
      f'{path} does not hold the labels of this run ({e or type(e).__name__}); bring it back, or '
      'move it away: then classes have numbers only, and are drawn as equally frequent'
    ) from e
  return found


def class_number(labels, given):
  """Number of a class of Labels by number, or by name or number as text. Raises UsageError, naming
  the choices.
  """
  if isinstance(given, str):
    if labels.names or not (given.isascii() and given.isdigit()):
      return labels.index(given)
    given = int(given)
  if (
    isinstance(given, bool)
    or not isinstance(given, (int, float))
    or not 0 <= given < labels.c_dim
    or given != int(given)
  ):
    names = f': {labels.listing()}' if labels.names else ''
    raise UsageError(
      f'class {given}: there is no such class; this network has the classes 0 to '
      f'{labels.c_dim - 1}{names}'
    )
  return int(given)


def images_at_once(shape):
  """Images of shape (H, W, ...) that a device makes or looks at at once: by their pixels, whatever
  they are for.
  """
  return max(1, min(BATCH, PIXELS // math.prod(shape[:2])))


def check_seeds(seeds):
  """Seeds as a list of int. Raises UsageError if there are none, or one is not a whole number in
  [0, 2^32).
  """
  seeds = [seeds] if np.ndim(seeds) == 0 and not hasattr(seeds, '__iter__') else list(seeds)
  if not seeds or not all(0 <= s < 2**32 and s == int(s) for s in seeds):
    raise UsageError(f'seeds={seeds} must be whole numbers in [0, 2^32), one for each image')
  return [int(s) for s in seeds]


def _labels(labels, given, count):
  """`given` as `Sampler.c` takes it, not None -> float32 [count,c_dim]."""
  shown = ' '.join(str(given).split())[:100]
  if not labels:
    raise UsageError(f'class {shown}: this network was trained without labels; leave the class out')
  try:
    array = np.asarray(given)
  except ValueError:  # rows of unlike lengths
    array = np.zeros(0)
  text, whole = array.dtype.kind == 'U', array.dtype.kind in 'iu'
  if labels.one_hot and (
    not array.ndim
    or array.ndim == 1
    and (text or whole and (len(array) in (1, count) or len(array) != labels.c_dim))
  ):
    if array.size not in (1, count):
      raise UsageError(
        f'classes {shown}: these are {array.size}; give one for all, or one for each of {count} '
        'seeds'
      )
    found = [class_number(labels, x) for x in array.ravel().tolist()]
    return np.eye(labels.c_dim, dtype=np.float32)[np.resize(found, count)]
  if not labels.one_hot and (text or not array.ndim):
    raise UsageError(
      f'class {shown}: the labels of this network are no classes but {labels.listing()}; give a '
      f'vector, as in --label={labels.name(labels.values[0])}'
    )
  try:
    vectors = array.astype(np.float32)
  except (TypeError, ValueError):
    vectors = np.zeros(0)
  if (
    vectors.ndim not in (1, 2)
    or vectors.shape[-1] != labels.c_dim
    or len(np.atleast_2d(vectors)) not in (1, count)
  ):
    raise UsageError(
      f'labels of shape {list(np.shape(array))} ({shown}): they must be a class '
      f'({labels.listing()}), a list of classes, or vectors [{count},{labels.c_dim}]'
    )
  if not np.isfinite(vectors).all():
    raise UsageError(f'label {shown}: must be finite numbers')
  return np.broadcast_to(vectors, (count, labels.c_dim)).copy()


def _after(seed, count):
  """RandomState(seed) after it drew a latent of `count` numbers."""
  state = np.random.RandomState(seed)
  state.randn(count)
  return state


# Compiled once for equal arguments.


@functools.lru_cache(32)
def _map_step(mesh, generator):
  def step(variables, batch):
    with jax.default_matmul_precision('highest'):
      return {'': generator.apply(variables, batch['z'], batch['c'], method='map')}

  return sharding.jit_each(step, mesh, 1)


@functools.lru_cache(32)
def _images_step(mesh, generator, growing, noise):
  growing = dict(growing)

  def step(variables, batch):
    if noise == 'random':
      each = jax.vmap(partial(jax.random.fold_in, purpose_key(0, 'sampling')))(batch['number'])
      variables = variables | {'noise': draw_noise(variables['noise'], each)}
    # in TF32 the batch would show, and others' images would be other ones
    with jax.default_matmul_precision('highest'):
      images = generator.apply(
        variables,
        batch['ws'],
        'none' if noise == 'none' else 'const',
        method='synthesize',
        **growing,
      )
    return {'': to_uint8(ops.nearest(largest(images), 2 ** growing.get('stage', 0)))}

  return sharding.jit_each(step, mesh, 1)


def _in_batches(step, constants, arrays, batch):
  """A step of `sharding.jit_each` over arrays {name: [N,...]}, in batches of one size."""
  if batch < 1:
    raise UsageError(f'batch={batch} must be 1 or more')
  mesh, n = sharding.make_mesh(), len(next(iter(arrays.values())))
  size = -(-min(batch, n) // mesh.size) * mesh.size
  constants, found = jax.device_put(constants, sharding.replicated(mesh)), []
  for rows, kept in parts(n, size):
    part = sharding.to_global(mesh, {name: x[rows][None] for name, x in arrays.items()})
    found.append(np.asarray(step(*constants, part)[''])[:kept])
  return np.concatenate(found)


def parts(n, size):
  """Divides range(n) into (indices [size], how many of them count): the last is filled up by
  repetition.

  One size means that nothing is compiled twice.
  """
  for first in range(0, n, size):
    kept = min(size, n - first)
    yield first + np.arange(size) % kept, kept


def labels(trained, count, key):
  """`count` labels drawn at random as the data has them: float32 [count,c_dim]. key: a numpy
  RandomState.
  """
  return trained.labels.draw(key, count) if trained.labels else np.zeros((count, 0), np.float32)


def sample_w(trained, count, seed, label=None):
  """w of `count` latents of RandomState(seed), of a class or with random labels where there are
  any: [count,w_dim].

  The dtype is that of the weights.
  """
  key, dtype = np.random.RandomState(seed), jax.tree.leaves(trained.variables['params'])[0].dtype
  z = key.randn(count, trained.generator.mapping.z_dim).astype(dtype)
  c = labels(trained, count, key) if label is None else trained.c(range(count), label)
  return trained.map(z, c.astype(dtype))


def sample_ws(trained, count, seed):
  """`sample_w` for every layer: [count,num_ws,w_dim]."""
  return broadcast(sample_w(trained, count, seed), trained.num_ws)


def to_uint8(images):
  """Network output in [-1,1] -> uint8: truncate(clip(127.5 x + 128, 0, 255)) [S2 metrics]. Any
  shape.
  """
  return jnp.clip(images * 127.5 + 128, 0, 255).astype(jnp.uint8)
