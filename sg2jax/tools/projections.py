"""A folder of projections: pictures in, files out; what was stopped goes on where it was.

What is finished is sealed by its .npz; the search at hand is in .unfinished.npz, frames of its
video in .frames/.
"""

import contextlib
import json
import pathlib
import shutil
import sys
import time
from typing import NamedTuple

from absl import flags
from flax import traverse_util
import numpy as np
from PIL import Image
import tqdm

from sg2jax import files, grids, pretrained, sampler
from sg2jax.edit import project
from sg2jax.evaluation import features
from sg2jax.faults import NonFiniteError, UsageError, WeightsError
from sg2jax.locks import locked
from sg2jax.signals import Stop
from sg2jax.tools import flags as shared
from sg2jax.tools import videos
from sg2jax.tools.pictures import Item

# Of pictures that are projected at once, unless --batch says it: their number and their pixels.
MAX_IMAGES = 16
MAX_PIXELS = 2**18
SAVE_SECONDS = 20
FRAMES = 240  # of a video
FPS = 24

# What `define_flags` defines counts as the calling tool's own, so that its --help shows it.
flags.disclaim_key_flags()


class Job(NamedTuple):
  """How pictures are projected."""

  net: sampler.Sampler
  distance: project.Distance
  settings: project.Settings
  start: tuple  # of `project.statistics`
  about: dict  # all that a result depends on but for the picture
  batch: int  # pictures at once
  video: bool  # whether there is one of each search
  stop: Stop


# ---- the command line


def define_flags() -> None:
  """What `read_job` reads."""
  shared.define_checkpoint()
  flags.DEFINE_enum(
    'distance',
    'lpips',
    list(project.DISTANCES),
    'What is made small: LPIPS; mean square of the pixels (l2), and of those of all smaller sizes '
    '(pyramid).',
  )
  flags.DEFINE_enum(
    'space',
    'w',
    project.SPACES,
    'One w for all layers, or (w+) one for each: closer, but farther from what the network makes.',
  )
  flags.DEFINE_integer('steps', 1000, 'Of the search.', lower_bound=1)
  shared.define_finite('lr', 0.1, 'Learning rate, at its largest.', positive=True)
  shared.define_finite(
    'noise_weight', 1e5, 'How strictly noise maps must stay noise.', lower_bound=0
  )
  shared.define_seed('Of the noise in the search.')
  flags.DEFINE_integer(
    'batch', 0, 'Pictures at once, over all devices; 0: what suits their size.', lower_bound=0
  )
  shared.define_weights('vgg16=FILE, lpips_vgg=FILE')


def read_job(stop: Stop, video: bool = False) -> Job:
  """The Job of the flags. Raises UsageError, WeightsError, CheckpointError."""
  asked = flags.FLAGS
  weights = shared.weights_paths()
  if asked.distance == 'lpips':
    try:
      pretrained.require(['vgg16', 'lpips_vgg'], weights)
    except WeightsError as e:
      raise WeightsError(f'{e}; or take --distance=pyramid, which needs none') from None
  net = sampler.load(asked.checkpoint)
  height, width = net.generator.synthesis.resolution
  channels = net.config.data.channels
  if channels not in (1, 3):
    raise UsageError(
      f'--checkpoint={asked.checkpoint}: its images have {channels} channels, and pictures 1 or 3'
    )
  distance = project.distance(asked.distance)
  if asked.distance == 'lpips':
    distance = _lpips((height, width, channels), weights)
  settings = project.Settings(asked.steps, asked.space, asked.lr, asked.noise_weight, asked.seed)
  # Whatever changes the result is in here, so that other results are never taken for these.
  about = {'network': net.hash(), 'distance': distance.name, 'weights': distance.hash}
  about |= settings._asdict()
  batch = asked.batch or max(1, min(MAX_IMAGES, MAX_PIXELS // (height * width)))
  start = project.statistics(net)
  return Job(net, distance, settings, start, about, batch, video, stop)


def _lpips(shape, weights):
  """LPIPS as a project.Distance, for images of a shape [H,W,C]."""
  if min(shape[:2]) < project.LPIPS_MIN_SIDE:
    raise UsageError(
      f'--distance=lpips needs {project.LPIPS_MIN_SIDE} px, and this network has '
      f'{shape[0]}x{shape[1]}; take --distance=pyramid'
    )
  detector = features.load('lpips', shape, weights)
  if not detector.known:
    print(
      'the weights of LPIPS are not the published ones: distances are of another kind',
      file=sys.stderr,
    )
  return project.distance('lpips', detector.params, detector.hash)


# ---- the work


def project_all(job: Job, items: list[Item], out: pathlib.Path, label: str = '') -> list[dict]:
  """Projects what isn't in `out` yet, in batches; what projections.json says of each.

  Raises: UsageError if `out` holds other results of these names; Preempted, Interrupted.
  """
  by_name = {item.name: item for item in items}
  # Two commands on one folder would take each other's states for their own.
  with locked(out, 'out'):
    documents = {item.name: _finished(out, item, job) for item in items}
    others = [d for d in _listed(out, job.about) if d['name'] not in documents]
    saved = _unfinished(out, job, items) if None in documents.values() else None
    while pending := [item for item in items if not documents[item.name]]:
      # What was stopped goes on in the batch that it was in: neighbours show in the last bits.
      batch = [by_name[name] for name in saved['names']] if saved else pending[: job.batch]
      first = len(items) - len(pending) + 1
      last = first + len(batch) - 1
      place = f'{first}-{last}' if last > first else str(first)
      documents |= _project(job, batch, out, saved, f'{label}{place} of {len(items)}')
      saved = None
      listed = [documents[item.name] for item in items if documents[item.name]] + others
      document = {'about': job.about, 'images': listed}
      files.write_atomic(out / 'projections.json', json.dumps(document, indent=1))
      (out / '.unfinished.npz').unlink(missing_ok=True)
    return [documents[item.name] for item in items]


def _project(job, batch, out, saved, label):
  """Projects a batch and writes its files: {name: document}. saved: of `_unfinished`, or None."""
  targets = np.stack([item.load() for item in batch])
  if not saved:
    for item in batch:
      shutil.rmtree(_frames(out, item), ignore_errors=True)  # of another search
  projector = project.Projector(job.net, targets, job.distance, job.settings, job.start, saved)
  _search(job, batch, out, projector, targets, label)
  result = projector.result()
  _check_finite(batch, result.distance)
  return {
    item.name: _write(job, out, item, target, result, i)
    for i, (item, target) in enumerate(zip(batch, targets))
  }


def _search(job, batch, out, projector, targets, label):
  """All steps of a Projector, with its frames and states on the way. Leaves if it is to stop."""
  steps = job.settings.steps
  every = max(1, steps // FRAMES)
  saved_at = time.monotonic()
  distances = None
  quiet = {} if sys.stderr.isatty() else {'delay': 60, 'mininterval': 60}  # seconds, in a log file
  bar = tqdm.tqdm(
    total=steps, initial=projector.done, desc=label, unit='step', leave=False, **quiet
  )
  with bar:
    while True:
      if job.video and (projector.done % every == 0 or projector.done == steps):
        made, _ = projector.current()
        for item, target, image in zip(batch, targets, made):
          frame = _frames(out, item) / f'{projector.done:07d}.png'
          files.write_atomic(frame, _pair(target, image))
      if projector.done == steps:
        return
      if job.stop or time.monotonic() > saved_at + SAVE_SECONDS:
        _save(out, projector, batch, job.about)
        saved_at = time.monotonic()
        if job.stop:
          bar.close()
          job.stop.leave(f'step {projector.done} of {steps} of {label} is saved in {out}')
      # Waits for the step before, while the device works on this one: no more than two are under
      # way when a signal comes.
      before = distances
      distances = projector.advance()
      if before is not None:
        mean = _check_finite(batch, before).mean()
        bar.set_postfix_str(f'{job.distance.name} {mean:.3g}', refresh=False)
      bar.update()


def _check_finite(batch, distances):
  distances = np.asarray(distances)
  for item, value in zip(batch, distances):
    if not np.isfinite(value):
      raise NonFiniteError(f'{item.source}: its distance became {value}; try a smaller --lr')
  return distances


# ---- files


def _frames(out, item):
  return out / '.frames' / item.name


def _pair(target, image):
  return files.png(grids.readable_grid(np.stack([target, image]), 2))


def _write(job, out, item, target, result, i):
  """The files of picture i of a project.Projection; returns its document."""
  files.write_atomic(out / f'{item.name}.png', _pair(target, result.images[i]))
  files.write_atomic(out / f'{item.name}_projected.png', files.png(result.images[i]))
  if job.video:
    _write_video(out, item)
  document = {
    'name': item.name,
    'source': item.source,
    'target': item.hash,
    'distance_start': float(result.distance_start[i]),
    'distance': float(result.distance[i]),
  }
  noise = traverse_util.flatten_dict(result.noise, sep='/')
  arrays = files.npz(
    ws=result.ws[i],
    **{f'noise/{name}': x[i, ..., 0] for name, x in noise.items()},
    distance=result.distance[i],
    about=json.dumps({'about': job.about | {'target': item.hash}, 'document': document}),
  )
  # The last of its files: where it is, the others are.
  files.write_atomic(out / f'{item.name}.npz', arrays)
  return document


def _write_video(out, item):
  folder = _frames(out, item)
  frames = (np.atleast_3d(np.asarray(Image.open(path))) for path in sorted(folder.glob('*.png')))
  videos.write_video(out / f'{item.name}.mp4', frames, FPS)
  shutil.rmtree(folder)
  with contextlib.suppress(OSError):  # others are in there
    folder.parent.rmdir()


def _save(out, projector, batch, about):
  arrays = files.npz(
    **projector.save(),
    names=[item.name for item in batch],
    hashes=[item.hash for item in batch],
    about=json.dumps(about),
  )
  files.write_atomic(out / '.unfinished.npz', arrays)


def _unfinished(out, job, items):
  """The saved state of a batch of these items; None without, or if a video would begin late."""
  with contextlib.suppress(Exception):  # numpy and zipfile raise nearly anything on damaged files
    with np.load(out / '.unfinished.npz') as data:
      saved = dict(data)
    # The pictures may have changed since, and others may be asked for now.
    hashes = {item.name: item.hash for item in items}
    same = saved['hashes'].tolist() == [hashes.get(name) for name in saved['names']]
    filmed = [(out / '.frames' / name / f'{0:07d}.png').exists() for name in saved['names']]
    if same and json.loads(str(saved['about'])) == job.about and (all(filmed) or not job.video):
      return saved
  return None


def _listed(out, about):
  """What projections.json says of pictures projected as these are, whose files are there."""
  with contextlib.suppress(Exception):  # there is none, or it is something else
    old = json.loads((out / 'projections.json').read_text())
    if old['about'] == about:
      return [d for d in old['images'] if (out / f'{d["name"]}.npz').exists()]
  return []


def _finished(out, item, job):
  """What is known of an item that was projected before; None if it wasn't.

  Raises: UsageError if there is another result of its name.
  """
  path = out / f'{item.name}.npz'
  if not path.exists():
    return None
  here = job.about | {'target': item.hash}
  try:
    with np.load(path) as data:
      old = json.loads(str(data['about']))
    there = old['about']
    changed = [f'{k}: {there.get(k)} there, {v} here' for k, v in here.items() if there.get(k) != v]
  except Exception:  # as in `_unfinished`
    changed = ['no projection']
  if changed:
    raise UsageError(f'{path} holds something else ({"; ".join(changed)}); use another --out')
  if job.video and not (out / f'{item.name}.mp4').exists():
    return None
  return old['document']
