"""What a run shows of itself: the grid of fixed latents, SWD, and the metrics that are due.

All of it is compared with what the run trains on; what data.holdout keeps aside is looked at by
memorising.py, and by the metrics that look for copies.
"""

from collections.abc import Callable, Sequence
from functools import partial
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from sg2jax import build, data, grids, processes, sharding
from sg2jax.evaluation import artifacts, measure, passes, protocols
from sg2jax.evaluation.features import SWD_SIDE
from sg2jax.evaluation.swd import PATCH, swd
from sg2jax.models.mapping import broadcast
from sg2jax.sampler import from_state, images_at_once, parts, to_uint8
from sg2jax.signals import Stop
from sg2jax.state import TrainState
from sg2jax.steps import TrainSteps
from sg2jax.training.memorising import Memorising

GRID = 64  # fixed latents shown in every snapshot, at most


class Snapshot:
  """Looks at the EMA generator, always with the same latents and against the same reals.

  `compile_sampler` comes first, and again in each stage of growth.
  """

  def __init__(
    self, workdir: pathlib.Path, config: Any, source: Any, mesh: Mesh, log: Any, stop: Stop
  ) -> None:
    """Draws the latents from the seed and reads the reals, of which only small ones stay in memory.

    Args:
      workdir: of the run.
      config: of the run.
      source: data.Source of the reals.
      mesh: that the work is divided over.
      log: report.Report for the grids.
      stop: true after a signal, which ends all work here but that of the last snapshot.
    """
    self.workdir = workdir
    self.config = config.to_dict() | {'c_dim': source.c_dim}
    self.source = source
    self.mesh = mesh
    self.log = log
    self.stop = stop
    self.sample = None  # (state, z [1,N,z_dim], c [1,N,c_dim]) -> images, contributions, w
    # On a device never more images at once than in training, which its memory is known to be enough
    # for.
    micro = min(build.microbatch(config, batch) for batch in build.batches(config))
    self.batch = max(1, min(images_at_once(source.shape), micro // mesh.size)) * mesh.size
    rows, self.cols = grids.grid_shape(*source.shape[:2], GRID)
    self.shown = rows * self.cols
    self.factor = -(-max(source.shape[:2]) // SWD_SIDE)
    compared = config.swd_images if min(source.shape[:2]) // self.factor >= PATCH else 0
    count = min(max(self.shown, compared), len(source))
    self.order = np.random.default_rng([config.seed, 0]).permutation(len(source))[:count].tolist()
    labels = []
    small = []
    for i in self.order:
      sample = source[i]
      labels.append(sample['label'])
      small.append(data.shrink(sample['image'], self.factor))
    self.small_reals = small if compared else []
    self.spread_of_reals = spread(small[: self.shown])
    self.memorising = Memorising(config, source, mesh, self.factor)
    self.labels = np.stack(labels)
    self.z = np.random.RandomState(config.seed).randn(max(count, self.shown), config.g.z_dim)

  @property
  def names(self) -> list[str]:
    """Of metrics that `take` has if nothing stops it, and that end with it."""
    names = ['diversity'] * bool(self.spread_of_reals) + ['swd'] * bool(self.small_reals)
    return names + self.memorising.names

  def compile_sampler(self, steps: TrainSteps) -> None:
    """Takes the images of this stage of growth from now on."""
    same = sharding.replicated(self.mesh)
    divided = sharding.batched(self.mesh)
    self.sample = jax.jit(
      sample_function(steps), in_shardings=(same, divided, divided), out_shardings=same
    )
    self.memorising.compile(steps)

  def write_reals(self, name: str, step: int) -> None:
    """Writes as many real images as a grid has places, or as there are."""
    images = np.stack([self.source[i]['image'] for i in self.order[: self.shown]])
    processes.agreed(partial(self.log.images, name, images, step, min(self.cols, len(images))))

  def take(self, state: TrainState, last: bool = False) -> dict[str, float]:
    """Writes the grid, and compares.

    Args:
      state: its g_ema is looked at.
      last: a signal doesn't stop it: a finished run would lack it for ever.

    Returns:
      {'diversity', 'contribution_b4', ..., those of memorising.py, 'swd', 'swd_<level>'}, less
      what doesn't apply or was stopped; of several processes the first has them all. Diversity: of
      the grid, of the reals 1.
    """

    def check_stop():
      if self.stop and not last:
        raise passes.Stopped

    def check_stop_of_all():
      if processes.heard(self.stop) and not last:
        raise passes.Stopped

    metrics = {}
    try:
      shown, fakes, shares, w = self._images(state, check_stop_of_all)
      name = f'fakes_{int(state.nimg) // 1000:06d}'
      processes.agreed(partial(self.log.images, name, shown, int(state.step), self.cols))
      processes.agreed(partial(self.log.histograms, histograms(w), int(state.step)))
      if self.spread_of_reals:
        metrics['diversity'] = spread(data.shrink(shown, self.factor)) / self.spread_of_reals
      for name in sorted(shares[0], key=artifacts.resolution):
        metrics[f'contribution_{name}'] = np.mean([float(part[name]) for part in shares])
      metrics |= self.memorising.take(state, fakes, check_stop_of_all)
      # The numbers go to the log and, as a score, to a checkpoint: to what process 0 writes.
      if self.small_reals and processes.is_first():
        reals = np.stack(self.small_reals)
        levels = swd(reals, fakes[: len(reals)], self.config['seed'], check_stop)
        for level, value in levels.items():
          metrics['swd' if level == 'mean' else f'swd_{level}'] = value
    except passes.Stopped:
      pass
    return metrics

  def _images(self, state, check_stop):
    """Of the latents: images of the grid, all small, contributions by batch, w of the grid."""
    dtype = state.pl_mean.dtype
    n = len(self.z)
    # as many: data sets may have fewer images than a grid has places
    labels = np.resize(self.labels, (n, self.labels.shape[1]))
    shown = []
    small = []
    shares = []
    ws = []
    for places, count in parts(n, self.batch):
      check_stop()
      z = self.z[places][None].astype(dtype)
      c = labels[places][None].astype(dtype)
      z, c = sharding.divide(self.mesh, (z, c))
      images, share, w = jax.device_get(self.sample(state, z, c))
      shares.append(share)
      images = images[:count]
      of_grid = slice(max(0, self.shown - places[0]))
      shown.append(images[of_grid])
      ws.append(w[:count][of_grid])
      small.append(data.shrink(images, self.factor))
    return np.concatenate(shown), np.concatenate(small), shares, np.concatenate(ws)

  def measure_metrics(self, state: TrainState) -> None:
    """Measures config.metrics into WORKDIR/evaluation/<step> and the log, unless a signal comes."""
    sampler = from_state(self.workdir, self.config, state, self.source.labels)
    wanted = [protocols.parse(name) for name in self.config['metrics']]
    too_early = [p.name for p in wanted if p.kind == 'ppl' and sampler.grows]
    if too_early:
      self.log.say(f'{", ".join(too_early)}: left out while the network grows')
    setting = measure.Setting(
      sampler,
      self.source,
      self.mesh,
      self.workdir / 'evaluation' / f'{sampler.step:08d}',
      seed=self.config['seed'],
      batch=self.batch,
      holdout=self.source.held_out,
      stop=self.stop,
    )
    wanted = [p for p in wanted if p.name not in too_early]
    try:
      documents = list(measure.measure(wanted, setting))
    except passes.Stopped:
      return  # a run that goes on from here measures what is left
    values = {}
    for document in documents:
      values |= document['values']
    processes.agreed(partial(self.log.values, sampler.step, sampler.nimg, values))


def spread(images: Sequence[np.ndarray]) -> float:
  """Standard deviation of a pixel over images [N,H,W,C], mean of all pixels."""
  return float(np.std(images, axis=0, dtype=np.float32).mean())


def histograms(w: np.ndarray) -> dict[str, np.ndarray]:
  """What is shown of w [N,w_dim], by tag: its components, and how far each w is from their mean.

  The distance is an RMS of components. It goes to 0 where the mapping makes one w of all latents,
  of which the components alone show nothing.
  """
  w = w.astype(np.float32)
  return {'w/components': w, 'w/distance': np.sqrt(np.square(w - w.mean(0)).mean(1))}


def sample_function(steps: TrainSteps) -> Callable:
  """(state, z [1,N,z_dim], c [1,N,c_dim]) -> what a snapshot looks at.

  That is uint8 images [N,H,W,C], {block: its contribution} and w [N,w_dim]. Contributions: of
  networks with several torgb layers, of each to the picture [S2 Fig. 8].
  """
  generator = steps.generator
  level = steps.stage.level
  has_parts = generator.synthesis.architecture in artifacts.PARTS

  def sample(state, z, c):
    variables = {'params': state.g_ema, 'noise': state.noise}
    # as everything that makes images to be looked at
    with jax.default_matmul_precision('highest'):
      w = generator.apply(variables, z[0], c[0], method='map')
      ws = broadcast(w, generator.synthesis.num_ws)
      images = generator.apply(variables, ws, 'const', level, steps.alpha(state), method='image')
      shares = artifacts.contribution(generator, variables, ws) if has_parts else {}
      return to_uint8(images), shares, w

  return sample
