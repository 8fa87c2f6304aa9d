"""A stage of growth in training: its images, its steps, its minibatches.

What a run trains in and what a replay of one minibatch computes. A run that doesn't grow has one.
"""

from collections.abc import Callable, Iterator
from concurrent import futures
import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from sg2jax import build, data, processes, sharding
from sg2jax.keys import purpose_key
from sg2jax.schedule import GrowthStage
from sg2jax.signals import Stop
from sg2jax.state import TrainState
from sg2jax.steps import TrainSteps
from sg2jax.update import PHASES


@dataclasses.dataclass(frozen=True)
class TrainStage:
  """All that the minibatches of a stage are computed from, but the state.

  Attributes:
    config: of the run.
    mesh: that the work is divided over.
    key: of training, the same for all stages.
    images: a data.Source at the size of the stage.
    steps: the four updates.
    functions: {phase: the jitted step, (key, state, batch) -> (state, aux)}.
  """

  config: Any
  mesh: Mesh
  key: jax.Array
  images: Any
  steps: TrainSteps
  functions: dict[str, Callable]

  @property
  def batch(self) -> int:
    """Images per minibatch."""
    return self.steps.stage.batch

  @property
  def microbatch(self) -> int:
    """Images per round of gradient accumulation."""
    return build.microbatch(self.config, self.batch)

  def minibatches(self, nimg: int) -> Iterator[dict[str, np.ndarray]]:
    """The endless minibatches from stream position `nimg` on, as `data.batches`; to be closed."""
    return data.batches(
      self.images,
      batch=self.batch,
      microbatch=self.microbatch,
      seed=self.config.seed,
      mirror=self.config.data.mirror,
      nimg=nimg,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )


def create(config: Any, source: Any, mesh: Mesh, growth_stage: GrowthStage) -> TrainStage:
  """The TrainStage of a configuration; its functions compile when they are first called."""
  steps = build.steps(config, source.c_dim, mesh, growth_stage, len(source))
  # Reals are shrunk on the host, by boxes: the steps never see the full size.
  if growth_stage.level:
    source = data.Shrunk(source, 2**growth_stage.level)
  return TrainStage(
    config=config,
    mesh=mesh,
    key=sharding.replicate(mesh, purpose_key(config.seed, 'training')),
    images=source,
    steps=steps,
    functions={phase: sharding.jit_step(getattr(steps, phase), mesh) for phase in PHASES},
  )


def compiled(stage: TrainStage, state: TrainState, stop: Stop) -> TrainStage:
  """The stage with its functions compiled, side by side. Leaves the process if a signal comes."""
  rounds = (stage.batch // stage.microbatch, stage.microbatch)
  images = stage.images
  batch_spec = build.abstract_batch(
    stage.mesh, rounds, images.shape, images.c_dim, state.pl_mean.dtype
  )
  key_spec = jax.eval_shape(lambda: jax.random.key(0))

  def compile_one(function):
    return function.lower(key_spec, state, batch_spec).compile()

  # In threads: XLA compiles outside the GIL.
  pool = futures.ThreadPoolExecutor(4)
  # The path length takes longest to compile: first, so that it isn't left alone at the end.
  # The order in which they run is another: steps.ORDER.
  longest_first = sorted(stage.steps.phases(0), key=('g_reg', 'g', 'd', 'd_reg').index)
  jobs = {phase: pool.submit(compile_one, stage.functions[phase]) for phase in longest_first}

  def wait_for_all():
    futures.wait(jobs.values())
    # In a step that another process still compiles no signal would be heard.
    processes.everywhere(True)

  # Nothing new has been computed that could be lost.
  with stop.ending_at_once('stopped while compiling; nothing to save'):
    pool.submit(wait_for_all).result()
  functions = {phase: job.result() for phase, job in jobs.items()}
  return dataclasses.replace(stage, functions=functions)
