"""What a run shows of itself at a snapshot: the grid of fixed latents, SWD, and the metrics that
are due.
"""

import jax
import numpy as np

from sg2jax import build, data, files, grids, resample, sharding
from sg2jax.evaluation import artifacts, measure, passes, protocols
from sg2jax.evaluation.features import SWD_SIDE
from sg2jax.evaluation.swd import swd
from sg2jax.models.mapping import broadcast
from sg2jax.models.stylegan2 import largest
from sg2jax.sampler import from_state, images_at_once, to_uint8

GRID = 64  # fixed latents shown in every snapshot, at most


class Snapshot:
  """Grid of fixed latents and SWD of the EMA generator against reals that don't change; all from
  the seed.
  """

  def __init__(self, workdir, config, source, mesh, log, stop):
    self.workdir, self.config, self.source = (
      workdir,
      config.to_dict() | {'c_dim': source.c_dim},
      source,
    )
    self.log, self.seed, self.stop, self.mesh = log, config.seed, stop, mesh
    # On a device never more images at once than in training, which its memory is known to be enough
    # for.
    micro = min(build.microbatch(config, batch) for batch in build.batches(config))
    self.batch = max(1, min(images_at_once(source.shape), micro // mesh.size)) * mesh.size
    rows, self.cols = grids.grid_shape(*source.shape[:2], GRID)
    self.shown = rows * self.cols
    self.factor = -(-max(source.shape[:2]) // SWD_SIDE)
    # SWD takes 7x7 patches
    compare = config.swd_images if min(source.shape[:2]) // self.factor >= 7 else 0
    count = max(min(self.shown, len(source)), min(compare, len(source)))
    self.order = np.random.default_rng([config.seed, 0]).permutation(len(source))[:count].tolist()
    self.small_reals, labels = [], []
    for i in self.order:
      sample = source[i]
      labels.append(sample['label'])
      if compare:
        self.small_reals.append(data.shrink(sample['image'], self.factor))
    self.labels = np.stack(labels)
    self.z = np.random.RandomState(config.seed).randn(max(count, self.shown), config.g.z_dim)

  def reals(self, name, step):
    """Writes as many real images as a grid has places, or as there are."""
    images = np.stack([self.source[i]['image'] for i in self.order[: self.shown]])
    self.log.images(name, images, step, min(self.cols, len(images)))

  def enter(self, steps):
    """Takes the images of this stage from now on, and with several torgb layers what each
    contributes [S2 Fig. 8].
    """
    generator, parts = steps.generator, steps.generator.synthesis.architecture in artifacts.PARTS

    def sample(state, z, c):
      variables = {'params': state.g_ema, 'noise': state.noise}
      # as everything that makes images to be looked at
      with jax.default_matmul_precision('highest'):
        ws = broadcast(
          generator.apply(variables, z[0], c[0], method='map'), generator.synthesis.num_ws
        )
        images = generator.apply(
          variables, ws, 'const', steps.stage.level, steps.alpha(state), method='synthesize'
        )
        images = resample.nearest(largest(images), 2**steps.stage.level)
        return to_uint8(images), artifacts.contribution(generator, variables, ws) if parts else {}

    same = sharding.replicated(self.mesh)
    self.sample = jax.jit(
      sample, in_shardings=(same, *[sharding.batched(self.mesh)] * 2), out_shardings=same
    )

  def __call__(self, state, last=False):
    """Writes the grid; returns {'contribution_b4', ..., 'swd', 'swd_<level>'}, less what doesn't
    apply or was stopped.

    The last one isn't stopped by a signal: a finished run would lack it for ever.
    """
    dtype, stop, grid, fakes, parts = state.pl_mean.dtype, () if last else self.stop, [], [], []

    def tick():
      if stop:
        raise passes.Stopped

    for first in range(0, len(self.z), self.batch):
      if stop:
        return {}
      part = np.arange(first, first + self.batch)
      z, c = (x[part % len(x)][None].astype(dtype) for x in (self.z, self.labels))
      images, shares = jax.device_get(self.sample(state, z, c))
      if first < self.shown:
        grid.append(images[: self.shown - first])
      parts.append(shares)
      if self.small_reals:
        fakes.append(data.shrink(images, self.factor))
    self.log.images(
      f'fakes_{int(state.nimg) // 1000:06d}', np.concatenate(grid), int(state.step), self.cols
    )
    metrics = {
      f'contribution_{name}': np.mean([float(shares[name]) for shares in parts])
      for name in sorted(parts[0], key=artifacts.resolution)
    }
    if self.small_reals:
      compared = np.stack(self.small_reals), np.concatenate(fakes)[: len(self.small_reals)]
      try:
        levels = swd(*compared, self.seed, tick)
      except passes.Stopped:
        levels = {}
      metrics |= {'swd' if k == 'mean' else f'swd_{k}': v for k, v in levels.items()}
    return metrics

  def plan(self, step):
    """Notes that config.metrics are to be measured at this step; a run that is resumed there begins
    with it.
    """
    if self.config['metrics']:
      files.write_atomic(self.pending(step), '')

  def pending(self, step):
    """The note of `plan`."""
    return self.workdir / 'evaluation' / f'{step:08d}' / '.due'

  def measure(self, state):
    """Measures config.metrics of this state into <workdir>/evaluation/<step> and the log, unless a
    signal comes.
    """
    net = from_state(self.workdir, self.config, state, self.source.labels)
    note, found = self.pending(net.step), {}
    wanted = [protocols.parse(name) for name in self.config['metrics']]
    left = [p.name for p in wanted if p.kind == 'ppl' and net.grows]
    if left:
      self.log.say(f'{", ".join(left)}: left out while the network grows')
    try:
      for document in measure.measure(
        [p for p in wanted if p.name not in left],
        measure.Setting(
          net, self.source, self.mesh, note.parent, self.seed, self.batch, stop=self.stop
        ),
      ):
        found |= document['values']
    except passes.Stopped:
      return
    if found:
      self.log.values(net.step, net.nimg, found)
    note.unlink(missing_ok=True)
