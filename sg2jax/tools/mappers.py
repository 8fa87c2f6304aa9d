"""Training of a latent mapper into a folder: what is done stays, and the same command goes on."""

from collections.abc import Iterator
import contextlib
import itertools
import json
import time
from typing import Any, NamedTuple

from absl import logging
import jax
import numpy as np

from sg2jax import files, paths, sampler
from sg2jax.edit import direction, mapper_training
from sg2jax.edit.direction import Direction
from sg2jax.edit.text_losses import Tower
from sg2jax.faults import CheckpointError, NonFiniteError, UsageError
from sg2jax.progress import Progress

FILE = 'mapper.npz'  # the mapper, when it is trained
STATE = 'mapper_training.npz'  # until then
MAX_BYTES = 2**32  # of a state: three times the mapper
KEPT_EVERY = 20  # seconds
AT_ONCE = 100  # steps whose latents are drawn at once


class Job(NamedTuple):
  """What is trained."""

  net: sampler.Sampler
  tower: Tower
  goal: np.ndarray  # [1,E], what the features of moved images are to be like
  settings: mapper_training.Settings
  steps: int
  minibatch: int  # latents of a step
  # How they are drawn: labels [K,c_dim] in turn (None: as the data has them), truncation
  label: np.ndarray | None
  psi: float
  cutoff: int | None
  about: dict  # JSON: all that the mapper depends on but for the network, and what it is for
  stop: Any  # a signals.Stop


def train(job: Job, name: str, out: paths.Path) -> Direction:
  """Trains a mapper, or takes that which is in a folder, trained by the same job.

  Raises: UsageError: the folder has another mapper, or a training of another one that isn't
    finished; NonFiniteError; what `stop.leave` raises, once what is done is kept; WriteError.
  """
  about = json.loads(json.dumps(job.about))  # as a file has it
  about_file = about | {'network': job.net.hash()}
  found = None
  with contextlib.suppress(UsageError, CheckpointError):  # it isn't there, or isn't whole
    found = direction.read(out / FILE)
  if found:
    # It may have taken hours.
    _check_same(
      out / FILE, 'another mapper', found.about | {'network': found.networks[0]}, about_file
    )
    return found
  training = mapper_training.Training(job.net, job.tower, job.goal, job.settings)
  first = _restore(training, out / STATE, about_file)
  kept = time.monotonic()
  with Progress(job.steps, 'mapper', 'steps', first) as progress:
    for step, ws in zip(range(first, job.steps), _drawn(job, first)):
      # Waiting for each step keeps a signal from waiting for many.
      loss = float(training.advance(ws).loss)
      if not np.isfinite(loss):
        raise NonFiniteError(f'the loss of the mapper became {loss}; try a smaller --lr')
      progress.update(note=f'loss {loss:.3f}')
      is_leaving = bool(job.stop) and step + 1 < job.steps  # asked once: it may come any time
      if is_leaving or time.monotonic() - kept > KEPT_EVERY:
        _keep(training, step + 1, out / STATE, about_file)
        kept = time.monotonic()
      if is_leaving:
        job.stop.leave(f'{step + 1} of {job.steps} steps of the mapper are done')
  trained = training.trained()
  # The last update is in no loss.
  if not all(np.isfinite(x).all() for x in jax.tree.leaves(trained.params)):
    raise NonFiniteError('the mapper became infinite in its last step; try a smaller --lr')
  move = Direction(name, (job.net.hash(),), about=about, mappers=((1.0, trained),))
  direction.write(out / FILE, [move])
  with files.writing(out):
    (out / STATE).unlink(missing_ok=True)
  return move


def _drawn(job, first) -> Iterator[np.ndarray]:
  """Latents [minibatch,num_ws,w_dim] of each step from number `first` on."""
  part, offset = divmod(first, AT_ONCE)
  count = AT_ONCE * job.minibatch
  label = job.label
  if label is not None:
    label = np.resize(label, (count, label.shape[1]))  # one after the other, again and again
  for seed in itertools.count(part):
    w = sampler.sample_w(job.net, count, seed, label)
    for i in range(offset, AT_ONCE):
      yield job.net.truncate(w[i * job.minibatch : (i + 1) * job.minibatch], job.psi, job.cutoff)
    offset = 0


# ---- what is kept of a training that isn't finished


def _keep(training, step, path, about):
  arrays = {str(i): x for i, x in enumerate(training.arrays())}
  files.write_atomic(path, files.npz(**arrays, about=json.dumps({'step': step, 'about': about})))


def _restore(training, path, about):
  """Brings a training to where a file has it -> the steps that are done; 0 without a file.

  Raises: UsageError: it is of another training.
  """
  try:
    arrays = files.parse_npz(path.read_bytes(), MAX_BYTES, 'fiubU')
    told = json.loads(str(arrays.pop('about')))
    step, there = told['step'], told['about']
    if not _differing(there, about):
      training.restore([arrays[str(i)] for i in range(len(arrays))])
      return step
  except FileNotFoundError:
    return 0
  except Exception as e:  # whatever a file that isn't as it was written leads to
    logging.warning('%s is damaged (%s); the training begins anew', path, e)
    return 0
  _check_same(path, 'of another training, which is not finished', there, about)


def _differing(there, here):
  return [name for name, x in here.items() if there.get(name) != x]


def _check_same(path, what, there, here):
  """Raises UsageError if what a file was made of isn't what is asked for."""
  changed = [f'{k}: {there.get(k)} there, {here[k]} here' for k in _differing(there, here)]
  if changed:
    raise UsageError(f'{path} is {what} ({"; ".join(changed)}); delete it, or use another --out')
