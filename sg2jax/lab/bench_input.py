"""How fast a data set is read: images/s of the minibatches of a run, without training."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from sg2jax import build, sharding
from sg2jax.training import stage as stage_lib

WARM_UP = 2  # minibatches that aren't timed: until as many are read ahead as ever will be


def measure(config: ConfigDict, rounds: int) -> dict:
  """All figures of a configuration's data set, as JSON values: images/s of this process.

  Of the same minibatches, first with the files out of the page cache, then with them in it.

  Args:
    config: of the run.
    rounds: minibatches that are timed.
  """
  source = build.dataset(config)
  mesh = sharding.make_mesh()
  # Fully grown: the stage in which a run spends most of its time.
  stage = stage_lib.create(config, source, mesh, build.growth(config).stage(build.FULLY_GROWN))
  # What a second epoch reads again isn't cold any more.
  is_cold = (WARM_UP + rounds) * stage.batch <= len(source) and _forget(source.place)
  cold = images_per_sec(stage, rounds)
  stored = len(source) + len(source.held_out or ())
  return {
    'host_cpus': os.cpu_count(),
    'devices': mesh.size,
    'data': source.name,
    'resolution': list(build.resolution(config)),
    'batch': stage.batch,
    'microbatch': stage.microbatch,
    'rounds': rounds,
    'stored_bytes_per_image': sum(f.stat().st_size for f in _files(source.place)) / stored,
    'img_per_sec_cold': cold if is_cold else None,
    'img_per_sec_warm': images_per_sec(stage, rounds),
  }


def images_per_sec(stage: Any, rounds: int) -> float:
  """Images/s of reading, decoding, flipping and handing to the devices. stage: a TrainStage."""
  with contextlib.closing(stage.minibatches(0)) as minibatches:
    for _ in range(WARM_UP):
      _hand_over(stage, minibatches)
    start = time.perf_counter()
    for _ in range(rounds):
      _hand_over(stage, minibatches)
    return rounds * stage.batch / jax.process_count() / (time.perf_counter() - start)


def _hand_over(stage, minibatches: Iterator[dict]):
  """One minibatch on the devices, as in training."""
  jax.block_until_ready(sharding.to_global(stage.mesh, next(minibatches)))


def _files(place):
  return [file for file in pathlib.Path(place).iterdir() if 'array_record' in file.name]


def _forget(place) -> bool:
  """Takes the files of a data set out of the page cache; False where the system can't."""
  if not hasattr(os, 'posix_fadvise'):
    return False
  for file in _files(place):
    with open(file, 'rb') as f:
      os.fsync(f.fileno())  # only what is on disk can be dropped
      os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
  return True


def table(r: dict) -> str:
  """The figures of `measure`, for a person."""
  size = 'x'.join(map(str, r['resolution']))
  cold = r['img_per_sec_cold']
  cold = 'not measured' if cold is None else f'{cold:.0f} images/s'
  return (
    f'{r["data"]}, {size}, batch {r["batch"]} in rounds of {r["microbatch"]}, '
    f'{r["stored_bytes_per_image"] / 1024:.0f} KiB an image, {r["host_cpus"]} CPUs\n'
    f'input: {r["img_per_sec_warm"]:.0f} images/s a process from the page cache, from disk {cold}'
  )
