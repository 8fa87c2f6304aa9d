"""The run that a training for a text makes: its files, and how it goes on."""

from collections.abc import Callable, Sequence
import contextlib
import json
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from sg2jax import clip as clips
from sg2jax import files, sampler
from sg2jax.data.labels import FILE
from sg2jax.edit import nada
from sg2jax.faults import CheckpointError, NonFiniteError, UsageError
from sg2jax.progress import Progress
from sg2jax.signals import Stop
from sg2jax.state import TrainState
from sg2jax.tools import sheets
from sg2jax.training.checkpoint import Checkpoints

KEPT = 10**6  # checkpoints: all


class Job(NamedTuple):
  """What is trained, and what it is looked at by."""

  net: sampler.Sampler
  scores: list[clips.Scores]  # of each CLIP
  settings: nada.Settings
  steps: int
  save_every: int  # steps
  labels: np.ndarray | None  # [K,c_dim], of which each image gets one
  seeds: list[int]  # of the images that are shown and judged
  ws: np.ndarray  # of them, [N,num_ws,w_dim]
  about: dict  # all that a result depends on but for the number of steps
  stop: Stop


# ---- the training


def train(job: Job, looks: Sequence[nada.Look], out: pathlib.Path) -> dict:
  """Trains in the folder `out`, from where it was; what nada.json says in the end.

  Raises: UsageError: `out` holds something else; NonFiniteError; WriteError; Preempted,
    Interrupted.
  """
  config = configuration(job)
  losses = begin(job, config, out)
  meta = {'data_hash': config.get('data_hash', ''), 'config': config}
  with contextlib.closing(Checkpoints(out, keep=KEPT, meta=meta)) as checkpoints:
    state = nada.first_state(job.net.variables['params'])
    restored = checkpoints.restore_latest(checkpoint_state(job, state, 0))
    done = 0
    if restored is not None:
      done = int(restored.step)
      state = nada.TrainingState(nada.trainable(restored.g_ema), restored.g_opt)
    if done > job.steps:
      raise UsageError(
        f'--out={out} has {done} steps already, and --steps={job.steps}; take one of its '
        'checkpoints, or another --out'
      )
    if len(losses) < done:
      raise CheckpointError(
        f'{out}/nada.json is missing, or has {len(losses)} losses of {done} steps; take another '
        '--out, or one of the checkpoints there'
      )
    losses = losses[:done]
    training = nada.Training(job.net, looks, job.settings, job.labels, state)
    before = judge(job)

    def save():
      # The checkpoint last: it is what says how far the training is.
      document = write(job, training.net(), losses, before, out)
      checkpoints.save(checkpoint_state(job, training.state, len(losses)))
      checkpoints.wait()
      return document

    run_steps(job, training, losses, save, out)
    return save()


def run_steps(
  job: Job, training: nada.Training, losses: list[float], save: Callable, out: pathlib.Path
) -> None:
  """Does what is left of the steps, with a `save` now and then; losses: get one of each step."""
  first = len(losses)
  with Progress(job.steps, 'nada', 'steps', first) as progress:
    for step in range(first, job.steps):
      if job.stop:
        save()
        job.stop.leave(f'{step} of {job.steps} steps are done, and {out} has them')
      found = training.advance(step)
      loss = float(found.loss)
      if not found.is_finite:
        raise NonFiniteError(
          f'step {step}: its loss, {loss:g}, or what it makes of the network is not finite; the '
          f'checkpoints in {out} stand. Try a smaller --lr than {job.settings.lr:g}, and another '
          '--out'
        )
      losses.append(loss)
      progress.update(note=f'loss {relative(job, losses):.3f} of the start')
      if (step + 1) % job.save_every == 0 and step + 1 < job.steps:
        save()


def relative(job: Job, losses: Sequence[float]) -> float:
  """The mean of the last losses over that at the start, where both networks are the same."""
  return float(np.mean(losses[-10:])) / len(job.scores)


# ---- the run that comes out


def configuration(job: Job) -> dict:
  """The config.json of the run: that of the network, and what was made of it."""
  config = job.net.config.to_dict()
  # What has grown is a plain network: `step` is one of this training, and no clock of growth.
  if 'grow' in config:
    config['grow']['start_res'] = 0
  return json.loads(json.dumps(config | {'made_from': job.about}))


def begin(job: Job, config: dict, out: pathlib.Path) -> list[float]:
  """Makes the folder of a run, or reads what is there: losses of its steps.

  Raises: UsageError: it holds something else.
  """
  if not (out / 'config.json').exists():
    # .config.json.<pid> is left by a kill while that was written.
    ours = ('.lock', '.config.json.')
    if any(not path.name.startswith(ours) for path in out.iterdir()):
      raise UsageError(
        f'--out={out} holds something else; name a folder that is empty or not there'
      )
    # The first file: from here on it is this training's folder, whenever it is killed.
    files.write_atomic(out / 'config.json', json.dumps(config, indent=2, sort_keys=True) + '\n')
  try:
    there = json.loads((out / 'config.json').read_text()).get('made_from', {})
  except (ValueError, AttributeError) as e:
    raise CheckpointError(f'{out}/config.json is damaged ({e}); take another --out') from e
  here = config['made_from']
  changed = [
    f'{name}: {there.get(name)} there, {x} here' for name, x in here.items() if there.get(name) != x
  ]
  if changed:
    raise UsageError(f'--out={out} holds something else ({"; ".join(changed)}); use another --out')
  if job.net.labels and not (out / FILE).exists():
    files.write_atomic(out / FILE, job.net.labels.to_json())
  if not (out / 'nada.json').exists():
    return []
  try:
    return [float(x) for x in json.loads((out / 'nada.json').read_text())['losses']]
  except (ValueError, KeyError, TypeError) as e:
    raise CheckpointError(
      f'{out}/nada.json is damaged ({type(e).__name__}: {e}); take another --out, or one of the '
      'checkpoints there'
    ) from e


def checkpoint_state(job: Job, state: nada.TrainingState, step: int) -> TrainState:
  """The TrainState of a checkpoint, without a discriminator."""
  state = jax.device_get(state)
  params = nada.merged(jax.device_get(job.net.variables['params']), state.params)
  return TrainState(
    step=np.int32(step),
    nimg=np.int32(job.net.nimg),
    g=params,  # what a training with --config.init_from begins with
    d={},
    g_ema=params,
    g_opt=state.moments,
    d_opt={},
    noise=jax.device_get(job.net.variables['noise']),
    w_avg=np.asarray(job.net.w_avg),
    pl_mean=np.float32(0),
  )


# ---- what came of it


class Judged(NamedTuple):
  """Images, and what each CLIP says of them."""

  images: np.ndarray  # uint8 [N,H,W,C]
  scores: list[dict[str, np.ndarray]]  # what clip.Scores returns


def judge(job: Job, net: sampler.Sampler | None = None) -> Judged:
  """The images of job.seeds by a network, by default by that which is trained from."""
  images = (net or job.net).images(job.ws, seeds=job.seeds)
  return Judged(images, [scores(images) for scores in job.scores])


def write(
  job: Job, net: sampler.Sampler, losses: list[float], before: Judged, out: pathlib.Path
) -> dict:
  """Writes sheets and nada.json, and returns what that says."""
  after = judge(job, net)
  pixels = np.abs(after.images.astype(float) - before.images).mean((1, 2, 3))
  rows = [{'seed': seed, 'pixels': float(x), 'clips': {}} for seed, x in zip(job.seeds, pixels)]
  means = {}
  for scores, *both in zip(job.scores, before.scores, after.scores):
    name = scores.net.name
    for when, found in zip(('before', 'after'), both):
      means.setdefault(name, {})[when] = {k: float(x.mean()) for k, x in found.items()}
      for i, row in enumerate(rows):
        row['clips'].setdefault(name, {})[when] = {k: x[i].item() for k, x in found.items()}
    means[name]['neutral'] = scores.neutral
  document = {
    'about': job.about,
    'network': net.hash(),
    'steps': len(losses),
    'relative_loss': relative(job, losses) if losses else 1.0,
    'mean': means,
    'pixels': float(pixels.mean()),
    'images': rows,
    'losses': losses,
  }
  names = [str(seed) for seed in job.seeds]
  pairs = np.stack([before.images, after.images])
  for path in (out / 'sheet.png', out / 'sheets' / f'{len(losses):06d}.png'):
    sheets.write_sheet(path, pairs, ['before', 'after'], names)
  files.write_atomic(out / 'nada.json', json.dumps(document, indent=1) + '\n')
  return document
