"""What shows that a network memorises: what D says of held-out pictures, and how new samples are.

At each snapshot:

  logits_training, logits_heldout, logits_generated   mean logits of D, seen as in training
  r_v      (training - heldout) / (training - generated) of these [ADA Eq. 1]. 0: pictures that D
           never saw look to it as those it was trained on do; 1: they look like fakes
  nearest  how far samples are from the nearest training picture, the median, as a share of how far
           held-out pictures are; without any, training pictures from the nearest other one.
           About 1: samples are new pictures; far below: copies
"""

from collections.abc import Callable
from concurrent import futures
from functools import partial
import math
import os
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from sg2jax import build, data, processes, sharding
from sg2jax.evaluation import neighbors
from sg2jax.keys import purpose_key
from sg2jax.models.mapping import broadcast
from sg2jax.progress import Progress
from sg2jax.state import TrainState
from sg2jax.steps import TrainSteps

LOGITS = 128  # fakes, and pictures of either part at most, that D is asked about
# Of training and generated pictures: where D hardly tells them apart, the quotient is noise.
MARGIN = 0.5
SIDE = 32  # px, longer side of what neighbours are looked for among
BASE = 5000  # training pictures among which they are, at most
QUERIES = 512  # fakes, and reals, of which the nearest is looked for, at most


# ---- logits


class Logits:
  """Asks D about training pictures, held-out pictures and fakes: the same ones every time."""

  names = ('logits_training', 'logits_heldout', 'logits_generated')

  def __init__(self, config: Any, source: Any, mesh: Mesh) -> None:
    """source: a data.Source with `held_out`. Draws by the seed which pictures and latents."""
    random = np.random.default_rng([config.seed, 3])
    self._config = config
    self._mesh = mesh
    self._sources = (source, source.held_out)
    self._places = [random.permutation(len(part))[:LOGITS] for part in self._sources]
    self._z = random.standard_normal((LOGITS, config.g.z_dim))
    # Of training pictures, as in training; there may be fewer of these than of fakes.
    labels = [source.label(int(i)) for i in self._places[0]]
    self._labels = np.resize(labels, (LOGITS, source.c_dim))
    self._stage = None  # sources at its size, batch, the jitted functions

  def compile(self, steps: TrainSteps) -> None:
    """Asks the networks of this stage of growth from now on."""
    level = steps.stage.level
    sources = [data.Shrunk(part, 2**level) if level else part for part in self._sources]
    same = sharding.replicated(self._mesh)
    divided = sharding.batched(self._mesh)

    def jitted(function, result):
      return jax.jit(function, in_shardings=(same, same, divided), out_shardings=result)

    batch = build.microbatch(self._config, steps.stage.batch)
    functions = map(jitted, logits_functions(steps, self._config.seed), (divided, divided, same))
    self._stage = sources, batch, tuple(functions)

  def take(self, state: TrainState, check_stop: Callable) -> dict[str, float]:
    """{name: mean logit}, and 'r_v' where D tells training pictures from fakes.

    check_stop: is called by every process before each batch; raises to end the work.
    """
    sources, batch, (reals, fakes, logits_of) = self._stage
    dtype = state.pl_mean.dtype

    def mean(function, count, make):
      """make: which of `count`, int [batch] -> what the function takes of them."""
      found = []
      batches = full_batches(count, batch, self._config.d.mbstd_group_size)
      for number, (which, is_counted) in enumerate(batches):
        check_stop()
        images = function(state, np.int32(number), self._divide(make(which)))
        logits = logits_of(state, np.int32(number), images)
        found.append(np.asarray(logits)[is_counted])
      return float(np.concatenate(found).mean(dtype=np.float64))

    def real(source, places, which):
      samples = [source[int(i)] for i in places[which]]
      c = np.stack([sample['label'] for sample in samples]).astype(dtype)
      return {'image': np.stack([sample['image'] for sample in samples]), 'c': c}

    def fake(which):
      return {'z': self._z[which].astype(dtype), 'c': self._labels[which].astype(dtype)}

    means = [
      mean(reals, len(places), partial(real, source, places))
      for source, places in zip(sources, self._places)
    ]
    means.append(mean(fakes, LOGITS, fake))
    return dict(zip(self.names, means)) | overfitting(*means)

  def _divide(self, batch):
    return sharding.divide(self._mesh, {name: x[None] for name, x in batch.items()})


def overfitting(training: float, heldout: float, generated: float) -> dict[str, float]:
  """{'r_v'} of mean logits, or {} where D hardly tells training pictures from fakes."""
  margin = training - generated
  return {'r_v': (training - heldout) / margin} if margin >= MARGIN else {}


def full_batches(count: int, batch: int, group: int) -> list[tuple[np.ndarray, np.ndarray]]:
  """Divides `count` pictures into batches of one size, the last filled up by repetition.

  Those in a minibatch-stddev group (ops.py: number i is in group i mod batch/group) follow each
  other among the pictures. So no group has one twice, which would look like no other to D, unless
  there are fewer pictures than a group has.

  Returns:
    for each batch (which pictures, int [batch]; which of these are there for the first time, bool).
  """
  group = min(group, batch)
  within = np.arange(batch).reshape(-1, group).T.ravel()
  firsts = range(0, count, batch)
  return [((first + within) % count, first + within < count) for first in firsts]


def logits_functions(steps: TrainSteps, seed: int) -> tuple[Callable, Callable, Callable]:
  """Functions of (state, number of the batch, batch), apart as D then is compiled once.

  The first two make what the third sees, {'x': images of [1,M,...], 'c': [1,M,c_dim]}: one of
  reals, {'image': uint8 [1,M,H,W,C], 'c'}; one of {'z': [1,M,z_dim], 'c'}, by G, not by its moving
  average. The third: logits [M].
  """
  generator = steps.generator

  def keys(number):
    # The same for all, at every snapshot: what is compared differs in the pictures alone.
    return jax.random.split(jax.random.fold_in(purpose_key(seed, 'memorising'), number))

  def reals(state, number, batch):
    del number
    return {'x': steps.reals(state, batch['image']), 'c': batch['c']}

  def fakes(state, number, batch):
    c = batch['c'][0]
    variables = {'params': state.g, 'noise': state.noise}
    with jax.default_matmul_precision('highest'):
      w = generator.apply(variables, batch['z'][0], c, method='map')
      x = generator.apply(
        variables,
        broadcast(w, generator.synthesis.num_ws),
        steps.noise_mode,
        steps.stage.level,
        steps.alpha(state),
        rngs={'noise': keys(number)[0]},
        method='synthesize',
      )
    return {'x': jax.tree.map(lambda x: x[None], x), 'c': batch['c']}

  def augmented(state, key, x):
    draws = steps.augment.draw(key, x.shape[:1], x.shape[1:], x.dtype)
    return steps.augment.apply(x, draws, state.augment_p)

  def logits(state, number, batch):
    x, c = jax.tree.map(lambda x: x[0], (batch['x'], batch['c']))
    with jax.default_matmul_precision('highest'):
      if steps.augment is not None:  # as in training: at p = 0 nothing is computed
        key = keys(number)[1]
        x = jax.lax.cond(state.augment_p > 0, augmented, lambda _state, _key, x: x, state, key, x)
      return steps.discriminator.apply({'params': state.d}, x, c, steps.alpha(state))[:, 0]

  return reals, fakes, logits


# ---- neighbours


class Nearest:
  """Compares distances to the nearest training picture: of fakes, and of reals that aren't copies.

  Euclidean, of pixels; with data.mirror also to training pictures that are flipped.
  """

  def __init__(self, config: Any, source: Any, factor: int) -> None:
    """Reads nothing yet. factor: by which the fakes that `take` gets are shrunk."""
    random = np.random.default_rng([config.seed, 4])
    self._mirror = config.data.mirror
    self._source = source
    self._factor = factor
    self._training = random.permutation(len(source))[:BASE]
    self._heldout = ()
    if source.held_out:
      self._heldout = random.permutation(len(source.held_out))[:QUERIES]
    self._images = None  # training and held-out pictures, uint8 [N,h,w,C], at most SIDE
    self._base = ()  # rows of the stage: training pictures, or these and the same flipped
    self._reals = 0.0  # the median of reals
    self._shrink = None

  def compile(self, level: int) -> None:
    """Looks at pictures of a stage of growth, 1/2^level of their full size.

    Fakes are no finer, and would be nearer to coarse pictures than sharp ones are.
    """
    longer = max(self._source.shape[:2])
    small = longer // self._factor
    factor = -(-small // min(SIDE, max(1, longer >> level)))
    if self._images is None:
      self._images = [
        read_small(part, places, self._factor)
        for part, places in ((self._source, self._training), (self._source.held_out, self._heldout))
        if len(places)
      ]
    self._shrink = factor
    training, *others = (rows(data.shrink(images, factor)) for images in self._images)
    flipped = ()
    if self._mirror:
      flipped = (rows(data.shrink(self._images[0], factor)[:, :, ::-1]),)
    self._base = (training, *flipped)
    if others:
      distances = self._distances(others[0])
    elif len(training) > 1:
      # A picture is no neighbour of itself, nor of itself flipped.
      distances = self._distances(training[:QUERIES], exclude_self=True)
    else:
      distances = np.zeros(1)
    self._reals = float(np.median(distances))

  @property
  def names(self) -> list[str]:
    """What `take` has: nothing if most pictures have an equal one."""
    return ['nearest'] if self._reals else []

  def take(self, fakes: np.ndarray) -> dict[str, float]:
    """{'nearest'} of fakes uint8 [N,h,w,C]."""
    if not self._reals:
      return {}
    queries = rows(data.shrink(fakes[:QUERIES], self._shrink))
    return {'nearest': float(np.median(self._distances(queries))) / self._reals}

  def _distances(self, queries, exclude_self=False):
    found = [neighbors.nearest(queries, base, exclude_self)[0] for base in self._base]
    return np.min(found, axis=0)


def rows(images: np.ndarray) -> np.ndarray:
  """[N,H,W,C] -> [N,H*W*C]."""
  return images.reshape(len(images), -1)


def read_small(source: Any, places: np.ndarray, factor: int) -> np.ndarray:
  """Images of a data.Source shrunk by a factor: uint8 [N,h,w,C]."""
  # As for minibatches: small images are read in less time than threads need.
  threads = 1 if math.prod(source.stored[:2]) < 128**2 else min(16, os.cpu_count() or 1)
  found = []

  def read(place):
    return data.shrink(source[int(place)]['image'], factor)

  with (
    futures.ThreadPoolExecutor(threads) as pool,
    Progress(len(places), 'reading pictures to compare with', 'images') as progress,
  ):
    for image in pool.map(read, places):
      found.append(image)
      progress.update()
  return np.stack(found)


# ---- both


class Memorising:
  """What a snapshot says of it. `compile` comes first, and again in each stage of growth."""

  def __init__(self, config: Any, source: Any, mesh: Mesh, factor: int) -> None:
    """source: that is trained on; factor: by which the fakes that `take` gets are shrunk."""
    self._logits = Logits(config, source, mesh) if source.held_out else None
    self._nearest = Nearest(config, source, factor)

  @property
  def names(self) -> list[str]:
    """Of what `take` always has."""
    return [*(self._logits.names if self._logits else ()), *self._nearest.names]

  def compile(self, steps: TrainSteps) -> None:
    """Looks at the networks of this stage of growth from now on; reads pictures the first time."""
    if self._logits:
      self._logits.compile(steps)
    processes.together(lambda: self._nearest.compile(steps.stage.level))

  def take(
    self, state: TrainState, fakes: np.ndarray, check_stop: Callable = lambda: None
  ) -> dict[str, float]:
    """All numbers, of a state and its fakes (uint8 [N,h,w,C], shrunk by the factor).

    check_stop: as of Logits.
    """
    check_stop()
    found = self._nearest.take(fakes)
    return found | (self._logits.take(state, check_stop) if self._logits else {})
