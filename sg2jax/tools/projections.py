"""A folder of projections: pictures in, files out; what is finished, sealed by its .npz, stays."""

from collections.abc import Callable
import contextlib
from functools import partial
import json
from operator import itemgetter
import pathlib
import sys
from typing import NamedTuple

from absl import flags
from flax import traverse_util
import jax
import numpy as np
from tqdm import tqdm

from sg2jax import files, grids, processes, sampler
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
FRAMES = 240  # of a video
FPS = 24

# What `define_flags` defines counts as the calling tool's own, so that its --help shows it.
flags.disclaim_key_flags()


class Job(NamedTuple):
  """How pictures are projected."""

  net: sampler.Sampler
  begin: Callable  # images uint8 [N,H,W,C] -> a project.Projector
  about: dict  # all that a result depends on but for the picture: 'distance', 'steps' ...
  batch: int  # pictures at once
  video: bool  # whether there is one of each search
  stop: Stop


# ---- the command line


def define_flags() -> None:
  """What `read_job` reads."""
  shared.define_checkpoint()
  define_distance()
  what = (
    'One w for all layers, or (w+) one for each: closer, but farther from what the network makes.'
  )
  flags.DEFINE_enum('space', 'w', project.SPACES, what)
  flags.DEFINE_integer('steps', 1000, 'Of the search.', lower_bound=1)
  shared.define_finite('lr', 0.1, 'Learning rate, at its largest.', lower_bound=0)
  shared.define_seed('Of the noise in the search.')
  what = 'Pictures at once, over all devices; 0: what suits their size.'
  flags.DEFINE_integer('batch', 0, what, lower_bound=0)


def define_distance() -> None:
  """--distance, and --weights of the networks that it needs."""
  what = 'What is made small: LPIPS; mean square of pixels (l2), of those of all sizes (pyramid).'
  flags.DEFINE_enum('distance', 'lpips', list(project.DISTANCES), what)
  shared.define_weights('vgg16=FILE, lpips_vgg=FILE')


def read_job(stop: Stop, video: bool = False) -> Job:
  """The Job of the flags. Raises UsageError, WeightsError, CheckpointError."""
  asked = flags.FLAGS
  net = processes.together(partial(sampler.load, asked.checkpoint))
  settings = project.Settings(asked.steps, asked.space, asked.lr, seed=asked.seed)
  return job(net, asked.distance, settings, asked.batch, stop, video)


def job(
  net: sampler.Sampler,
  distance: str,
  settings: project.Settings,
  batch: int,
  stop: Stop,
  video: bool = False,
) -> Job:
  """A Job of a network; needs `shared.define_weights`. Raises UsageError, WeightsError.

  distance: one of project.DISTANCES; batch: pictures at once, 0: what suits their size.
  """
  height, width = net.generator.synthesis.resolution
  measure = project.distance(distance)
  if distance == 'lpips':
    measure = lpips((height, width, net.config.data.channels))
  # Whatever changes the result is in here, so that other results are never taken for these.
  about = {'network': net.hash(), 'distance': measure.name, 'weights': measure.hash}
  about |= settings._asdict()
  batch = batch or max(1, min(MAX_IMAGES, MAX_PIXELS // (height * width)))
  start = project.statistics(net)
  begin = partial(project.Projector, net, distance=measure, settings=settings, start=start)
  return Job(net, begin, about, batch, video, stop)


def lpips(shape: tuple[int, int, int]) -> project.Distance:
  """LPIPS as a Distance, for images of a shape [H,W,C]. Raises WeightsError, UsageError."""
  remedy = 'take --distance=pyramid, which needs no weights'
  try:
    detector = features.load('lpips', shape, shared.weights_paths())
  except WeightsError as e:
    raise WeightsError(f'{e}; or {remedy}') from None
  if min(shape[:2]) < 16:  # VGG16 halves four times
    raise UsageError(f'--distance=lpips: {shape[0]}x{shape[1]} is too small; {remedy}')
  if not detector.known:
    print('other weights than the published ones: no distance of others compares', file=sys.stderr)
  return project.distance('lpips', detector.params, detector.hash)


# ---- the work


def project_all(job: Job, items: list[Item], out: pathlib.Path, label: str = '') -> list[dict]:
  """Projects what isn't in `out` yet, in batches; what projections.json says of each.

  Raises: UsageError if `out` holds other results of these names; NonFiniteError; Preempted,
    Interrupted.
  """
  # Two commands on one folder would mix their files.
  with processes.held_by_first(locked(out, 'out')):
    finished = processes.agreed(lambda: [_is_finished(job, item, out) for item in items])
    pending = [item for item, is_finished in zip(items, finished) if not is_finished]
    for first in range(0, len(pending), job.batch):
      batch = pending[first : first + job.batch]
      _project(job, batch, out, f'{label}{first + 1}-{first + len(batch)} of {len(pending)}')
    documents = processes.agreed(partial(_list_results, job, out))
    return [documents[item.name] for item in items]


def _list_results(job, out):
  """Writes projections.json -> {name: document} of all in it."""
  documents = {}
  # pictures of earlier commands, too, if they were projected as these
  for path in sorted(out.glob('*.npz')):
    about, document = _read(path)
    if about == job.about | {'target': document.get('target')}:
      documents[path.stem] = document
  listed = {'about': job.about, 'images': list(documents.values())}
  files.write_atomic(out / 'projections.json', json.dumps(listed, indent=1))
  return documents


def _project(job, batch, out, label):
  """Projects a batch and writes its files; between two steps it leaves if it is to stop."""
  targets = np.stack([item.image for item in batch])
  projector = job.begin(targets)
  steps = job.about['steps']
  film = []  # for each frame, images [N,H,W,C]
  with tqdm(range(steps), label, unit=' steps', leave=False, disable=None) as bar:
    for step in bar:
      if job.video and step % max(1, steps // FRAMES) == 0:
        film.append(projector.current()[0])
      if processes.heard(job.stop):
        job.stop.leave(f'{out} has the pictures that are finished')
      # Waiting for each step keeps a signal from waiting for many.
      distance = np.asarray(projector.advance()).mean()
      bar.set_postfix_str(f'{job.about["distance"]} {distance:.3g}', refresh=False)
  result = projector.result()
  for i, item in enumerate(batch):
    if not np.isfinite(result.distance[i]):
      raise NonFiniteError(
        f'{item.source}: its distance became {result.distance[i]}; try a smaller --lr'
      )
  film.append(result.images)

  def write():
    for i, item in enumerate(batch):
      if job.video:
        frames = (_pair(targets[i], images[i]) for images in film)
        videos.write_video(out / f'{item.name}.mp4', frames, FPS)
      _write(job, item, out, targets[i], jax.tree.map(itemgetter(i), result))

  processes.agreed(write)


def _pair(target, image):
  """A picture beside what was found, as a person sees it."""
  return grids.readable_grid(np.stack([target, image]), 2)


def _write(job, item, out, target, found):
  """The files of a picture and of its Projection, which is without the axis [N]."""
  files.write_atomic(out / f'{item.name}.png', files.png(_pair(target, found.images)))
  files.write_atomic(out / f'{item.name}_projected.png', files.png(found.images))
  document = {
    'name': item.name,
    'source': item.source,
    'target': item.hash,
    'distance_start': float(found.distance_start),
    'distance': float(found.distance),
  }
  noise = traverse_util.flatten_dict({'noise': found.noise}, sep='/')
  arrays = files.npz(
    ws=found.ws,
    **{name: x[..., 0] for name, x in noise.items()},
    distance=found.distance,
    about=json.dumps({'about': job.about | {'target': item.hash}, 'document': document}),
  )
  # The last of its files: where it is, the others are.
  files.write_atomic(out / f'{item.name}.npz', arrays)


def _read(path):
  """(all that a result depends on, its document); ({}, {}) of a file that is none."""
  with contextlib.suppress(Exception):  # numpy and zipfile raise nearly anything on other files
    with np.load(path) as data:
      found = json.loads(str(data['about']))
    return found['about'], found['document']
  return {}, {}


def _is_finished(job, item, out):
  """Whether an item was projected before. Raises UsageError if another result has its name."""
  path = out / f'{item.name}.npz'
  if not path.exists():
    return False
  here = job.about | {'target': item.hash}
  there, _ = _read(path)
  changed = [f'{k}: {there.get(k)} there, {v} here' for k, v in here.items() if there.get(k) != v]
  if changed:
    raise UsageError(f'{path} holds something else ({"; ".join(changed)}); use another --out')
  return not job.video or (out / f'{item.name}.mp4').exists()
