"""A trained generator, ready to apply: out of a checkpoint, or out of the state of a run.

g = sg2jax.load('runs/quickstart')
images = g(seeds=range(8), psi=0.7)  # uint8 [8,H,W,C]

What this imports is the light core of the package: no pictures, no data sets, no plots.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
from functools import partial
import hashlib
import json
import math
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from sg2jax import build, bundle, configurations, files, inputs, paths, processes, sharding
from sg2jax.data.labels import FILE, Labels
from sg2jax.edit import direction
from sg2jax.faults import CheckpointError, UsageError
from sg2jax.models import styles as style_space
from sg2jax.models.layers import NOISE_MODES, noise_of_seeds
from sg2jax.models.mapping import broadcast, truncate
from sg2jax.state import TrainState
from sg2jax.training import checkpoint

# Of images that a device makes, or looks at, at once: their number and their pixels, at most.
MAX_IMAGES = 32
MAX_PIXELS = 2**22
MAPPED = 4096  # latents that are mapped at once


class Sampler(NamedTuple):
  """A trained generator: moving average of the weights, at the stage that a growing network had.

  `net(seeds)` makes images. In steps: `z`, `c` and `ws` are what they are made of, `images` makes
  them of ws.
  """

  workdir: paths.Path  # of its run
  config: ConfigDict  # of its run, with `c_dim`
  step: int
  nimg: int
  generator: Any  # a models.generator.Generator
  variables: dict  # {'params', 'noise'} of it
  growing: dict  # arguments `stage` and `alpha` of its synthesis; {} if it doesn't grow
  w_avg: Any  # moving average of w, [w_dim]
  labels: Labels | None = None  # of its data set; None without labels

  # ---- what it is

  @property
  def title(self) -> str:
    """What a person needs to know it by."""
    run = '/'.join(self.workdir.parts[-2:])
    growing = ''.join(f', {name} {value:.3g}' for name, value in self.growing.items() if value)
    return f'{run}: {self.config.g.architecture}{growing}, {self.nimg / 1000:g} kimg'

  @property
  def num_ws(self) -> int:
    """Number of w that an image takes."""
    return self.generator.synthesis.num_ws

  @property
  def grows(self) -> bool:
    """Whether it has not reached its full size, or is fading it in."""
    return bool(self.growing.get('stage')) or self.growing.get('alpha') is not None

  @property
  def batch(self) -> int:
    """Images that are made at once, over all devices, where nothing else is said."""
    return images_at_once(self.generator.synthesis.resolution) * sharding.make_mesh().size

  def hash(self) -> str:
    """SHA-256, in hex, of all that decides about an image: network, stage, weights, noise maps."""
    g = self.config.g.to_dict()
    del g['remat']  # it changes no image
    # Side by side, as version 0.2 had them: hashes in files that are there already stay true.
    g |= dataclasses.asdict(configurations.variant(self.config, 'g'))
    del g['variant']
    config = {'resolution': self.config.resolution, 'data': self.config.data.channels, 'g': g}
    digest = hashlib.sha256(json.dumps([config, self.growing], sort_keys=True).encode())
    for path, x in jax.tree_util.tree_leaves_with_path(jax.device_get(self.variables)):
      digest.update(f'{jax.tree_util.keystr(path)} {x.dtype} {x.shape}'.encode())
      digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()

  # ---- images

  def __call__(
    self,
    seeds: inputs.Seeds,
    psi: float = 1.0,
    cutoff: int | None = None,
    label: inputs.LabelsLike | None = None,
    noise: str = 'const',
    batch: int | None = None,
    edit: direction.Edit | None = None,
  ) -> np.ndarray:
    """Images of seeds: uint8 [N,H,W,C].

    They are the same, to 1 of 255, whatever the batch, the other seeds and the number of devices.

    Args:
      seeds: whole numbers in [0, 2^32), one for each image; or one number.
      psi: truncation towards w_avg [S1 App. B]; 1: none, 0: the mean image.
      cutoff: number of ws from the coarsest that are truncated; None: all.
      label: what `c` takes; None: drawn from the seed as the data has them, where there are labels.
      noise: 'const', the network's constant maps; 'random', drawn from the seed; 'none'.
      batch: images at once, over all devices; None: what suits their size.
      edit: a Direction that moves all of them, after truncation; or several, [(Direction, amounts)
        ...], amounts being a number or one for each image.

    Raises: UsageError, naming the value.
    """
    seeds = inputs.check_seeds(seeds)
    return self.images(self.ws(seeds, psi, cutoff, label, batch), noise, seeds, batch, edit)

  def z(self, seeds: inputs.Seeds) -> np.ndarray:
    """Latents as NVIDIA's tools draw them, RandomState(seed).randn(z_dim): float32 [N,z_dim]."""
    z_dim = self.generator.mapping.z_dim
    drawn = [np.random.RandomState(seed).randn(z_dim) for seed in inputs.check_seeds(seeds)]
    return np.stack(drawn).astype(np.float32)

  def c(self, seeds: inputs.Seeds, label: inputs.LabelsLike | None = None) -> np.ndarray:
    """Labels of seeds: float32 [N,c_dim].

    Args:
      seeds: whole numbers, one for each label.
      label: a class by number (int) or by name (str); a list of classes, one for each seed; a
        vector of float [c_dim] (or of anything, where the labels are vectors) or one for each
        seed, [N,c_dim]. None: drawn from the seed as the data has them, so never a class that no
        image has.

    Raises: UsageError, naming the label and the choices.
    """
    seeds = inputs.check_seeds(seeds)
    if label is not None:
      return inputs.label_vectors(self.labels, label, len(seeds))
    drawn = []
    for seed in seeds:
      key = np.random.RandomState(seed)
      key.randn(self.generator.mapping.z_dim)  # the latent comes first, as in NVIDIA's tools
      drawn.append(draw_labels(self, 1, key))
    return np.concatenate(drawn)

  def ws(
    self,
    seeds: inputs.Seeds,
    psi: float = 1.0,
    cutoff: int | None = None,
    label: inputs.LabelsLike | None = None,
    batch: int | None = None,
  ) -> np.ndarray:
    """The mapped latents of seeds, truncated: float32 [N,num_ws,w_dim]. Arguments as of a call."""
    return self.truncate(self.map(self.z(seeds), self.c(seeds, label), batch), psi, cutoff)

  def map(self, z: np.ndarray, c: np.ndarray | None = None, batch: int | None = None) -> np.ndarray:
    """z [N,z_dim], c [N,c_dim] (None: no labels) -> w, float32 [N,w_dim]."""
    if c is None:
      c = np.zeros((len(z), 0), np.float32)
    step = _map_step(sharding.make_mesh(), self.generator)
    return _in_batches(step, self.variables, {'z': z, 'c': c}, MAPPED if batch is None else batch)

  def truncate(self, w: np.ndarray, psi: float = 1.0, cutoff: int | None = None) -> np.ndarray:
    """w [N,w_dim] -> ws, truncated: float32 [N,num_ws,w_dim]. Arguments as of a call."""
    # NaN isn't, either; beyond, float32 has no digits left for w
    if not (inputs.is_number(psi) and abs(psi) <= 1e6):
      raise UsageError(f'psi={psi} must be a number such as 0.7, within +-1e6')
    if cutoff is not None and cutoff not in range(self.num_ws + 1):
      raise UsageError(f'cutoff={cutoff} must be a number of ws, from 0 to {self.num_ws}')
    ws = np.broadcast_to(w[:, None], (len(w), self.num_ws, w.shape[1]))
    if psi == 1:  # to the last bit the network as it is; the formula would round
      return ws
    return np.asarray(truncate(ws, np.asarray(self.w_avg), np.float32(psi), cutoff))

  def images(
    self,
    ws: np.ndarray,
    noise: str = 'const',
    seeds: Sequence[int] | None = None,
    batch: int | None = None,
    edit: direction.Edit | None = None,
  ) -> np.ndarray:
    """ws [N,num_ws,w_dim] -> images uint8 [N,H,W,C], at full size while the network grows.

    seeds: [N], from which noise 'random' is drawn; None: 0 ... N-1; the others as of a call.
    """
    if noise not in NOISE_MODES:
      raise UsageError(f'noise={noise} is unknown; choose from {", ".join(NOISE_MODES)}')
    w_dim = self.generator.mapping.w_dim
    ws = np.asarray(ws)
    if ws.shape[1:] != (self.num_ws, w_dim) or not len(ws):
      raise UsageError(
        f'ws of shape {list(ws.shape)}: this network takes [1 or more,{self.num_ws},{w_dim}]'
      )
    if not np.isfinite(ws).all():
      raise UsageError('ws must be finite numbers, and some are NaN or infinite')
    ws, offsets = direction.apply(self, edit, ws)
    step = _images_step(sharding.make_mesh(), self.generator, tuple(self.growing.items()), noise)
    number = np.arange(len(ws)) if seeds is None else np.asarray(seeds)
    arrays = {'ws': ws, 'number': number.astype(np.uint32)} | offsets
    return _in_batches(step, self.variables, arrays, self.batch if batch is None else batch)


# ---- where one comes from


def load(path: str | os.PathLike) -> Sampler:
  """The Sampler in a checkpoint: a workdir, whose newest counts, or one step of it; or in a bundle.

  Raises: CheckpointError as `checkpoint.load` and `read_labels` do; UsageError for a path that
    isn't UTF-8, and an address that can't be read.
  """
  path = paths.place(path)
  state, config = checkpoint.load(path)
  workdir, labels, is_bundle = processes.agreed(partial(_look_around, path, config['c_dim']))
  if is_bundle:  # a stranger's, perhaps
    build.check_generator(config, state, path)
  labels = Labels.from_json(labels) if labels else None
  net = from_state(paths.place(workdir), config, state, labels)
  return net._replace(variables=jax.device_put(net.variables))  # once, not at every call


def from_state(
  workdir: paths.Path,
  config: ConfigDict | dict,
  state: TrainState | dict,
  labels: Labels | None = None,
) -> Sampler:
  """The Sampler in a TrainState, or in one as a dict.

  Args:
    workdir: path of the run.
    config: of the run, a ConfigDict or a dict, with `c_dim`.
    state: what is trained.
    labels: Labels of the data set; None: unknown.
  """
  config = configurations.complete(config)
  if not config.c_dim:
    labels = None
  elif not labels:
    labels = Labels.unknown(config.c_dim)
  fields = state if isinstance(state, dict) else vars(state)
  step = int(fields['step'])
  nimg = int(fields['nimg'])
  generator, _ = build.networks(config, config.c_dim)
  # A growing network is used as it was at this step: what lies above was never trained.
  growing = {}
  if config.get('grow') and config.grow.start_res:  # older runs don't have it
    growth = build.growth(config)
    stage = growth.stage(nimg)
    alpha = float(growth.alpha(stage, jnp.int32(step), jnp.int32(nimg)))
    growing = {'stage': stage.level, 'alpha': alpha if alpha < 1 else None}
  variables = {'params': fields['g_ema'], 'noise': fields.get('noise') or {}}
  w_avg = fields.get('w_avg')
  return Sampler(workdir, config, step, nimg, generator, variables, growing, w_avg, labels)


def read_labels(path: str | os.PathLike, c_dim: int) -> Labels | None:
  """The Labels of a run: a workdir or one step, which may have its own labels.json beside it.

  None without labels, and where no file says them: in older and imported runs.

  Raises: CheckpointError: they can't be read, or are of another run.
  """
  # that of a step first: it may have been copied from a run with other classes
  with files.reading(path):
    places = [folder / FILE for folder in (paths.place(path), bundle.home(path))]
    file = next((place for place in places if place.exists()), None)
  if not c_dim or not file:
    return None
  try:
    labels = Labels.from_json(file.read_text(encoding='utf-8'))
    if labels.c_dim != c_dim:
      raise ValueError(f'{labels.c_dim} components, and {c_dim} of the run')
  except Exception as e:  # whatever a file that isn't as it was written leads to
    raise CheckpointError(
      f'{file} does not hold the labels of this run ({e or type(e).__name__}); bring it back, or '
      'move it away: then classes have numbers only, and are drawn as equally frequent'
    ) from e
  return labels


def _look_around(path, c_dim):
  """The workdir and the labels of what is at a path, and whether it is a bundle; JSON values."""
  labels = read_labels(path, c_dim)
  with files.reading(path):
    home = bundle.home(path)
    return str(home), labels.to_json() if labels else None, bundle.is_there(home)


# ---- batches


def images_at_once(shape: Sequence[int]) -> int:
  """Images of a shape (H, W, ...) that a device makes or looks at at once, by their pixels."""
  return max(1, min(MAX_IMAGES, MAX_PIXELS // math.prod(shape[:2])))


def parts(n: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
  """Divides range(n) into (indices [size], how many of them count).

  The last part is filled up by repetition: one size means that nothing is compiled twice.
  """
  for first in range(0, n, size):
    count = min(size, n - first)
    yield first + np.arange(size) % count, count


def _in_batches(step, variables, arrays, batch):
  """A step of `sharding.jit_each` over arrays {name: [N,...]}, in batches of one size: [N,...]."""
  if not inputs.is_number(batch, 'iu') or batch < 1:
    raise UsageError(f'batch={batch} must be a whole number, 1 or more')
  mesh = sharding.make_mesh()
  n = len(next(iter(arrays.values())))
  size = -(-min(batch, n) // mesh.size) * mesh.size  # every device has as many
  variables = sharding.replicate(mesh, variables)
  results = []
  for rows, count in parts(n, size):
    part = sharding.divide(mesh, {name: np.asarray(x)[rows][None] for name, x in arrays.items()})
    results.append(np.asarray(step(variables, part))[:count])
  return np.concatenate(results)


# Compiled once for equal arguments: modules of Flax with equal fields are equal.


@functools.lru_cache(32)
def _map_step(mesh, generator):
  def step(variables, batch):
    with jax.default_matmul_precision('highest'):
      return generator.apply(variables, batch['z'], batch['c'], method='map')

  return sharding.jit_each(step, mesh, 1)


@functools.lru_cache(32)
def _images_step(mesh, generator, growing, noise):
  growing = dict(growing)
  # Noise that is drawn is given as maps, one for each image: the mode 'random' would draw it from
  # the place in the batch instead of from the seed.
  mode = 'none' if noise == 'none' else 'const'

  def step(variables, batch):
    if noise == 'random':
      variables = variables | {'noise': noise_of_seeds(variables['noise'], batch['number'])}
    # In TF32 the batch would show, and images would be other ones than those that NVIDIA's code
    # makes of the same weights.
    with jax.default_matmul_precision('highest'):
      # An edit's offsets are in the batch, by layers: other ones compile nothing anew.
      change = partial(style_space.add, batch)
      made = style_space.image(generator, variables, batch['ws'], change, mode, **growing)
      return to_uint8(made)

  return sharding.jit_each(step, mesh, 1)


# ---- many latents, for statistics; the pixels


def draw_labels(net: Sampler, count: int, key: np.random.RandomState) -> np.ndarray:
  """Labels drawn at random as the data has them: float32 [count,c_dim]."""
  if not net.labels:
    return np.zeros((count, 0), np.float32)
  return net.labels.draw(key, count)


def sample_w(
  net: Sampler, count: int, seed: int, label: inputs.LabelsLike | None = None
) -> np.ndarray:
  """w of latents of RandomState(seed): [count,w_dim], of the dtype of the weights.

  label: what `Sampler.c` takes; None: drawn at random where there are any.
  """
  key = np.random.RandomState(seed)
  dtype = jax.tree.leaves(net.variables['params'])[0].dtype
  z = key.randn(count, net.generator.mapping.z_dim).astype(dtype)
  c = draw_labels(net, count, key) if label is None else net.c(range(count), label)
  return net.map(z, c.astype(dtype))


def sample_ws(net: Sampler, count: int, seed: int) -> jax.Array:
  """`sample_w` for every layer: [count,num_ws,w_dim]."""
  return broadcast(sample_w(net, count, seed), net.num_ws)


def to_uint8(images: jax.Array) -> jax.Array:
  """Network output in [-1,1] -> uint8: truncate(clip(127.5 x + 128, 0, 255)) [S2 metrics]."""
  return jnp.clip(images * 127.5 + 128, 0, 255).astype(jnp.uint8)
