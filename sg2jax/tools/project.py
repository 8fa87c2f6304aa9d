"""python -m sg2jax.tools.project --checkpoint=RUN --images=FILE-OR-FOLDER [--out=DIR]
[--distance=pyramid] [--video]

Finds for each picture the point of the network's latent space whose image comes nearest to it. The
closer it comes, the better the network knows such pictures; what is found can be mixed, truncated
and moved like any w. Writes for a picture cat.jpg DIR/cat.png (the picture beside what was found),
DIR/cat_projected.png (what was found), DIR/cat.npz (its ws and noise maps) and, with --video,
DIR/cat.mp4 (the search); DIR/projections.json has the distances of all. Pictures are cropped to the
middle and shrunk to the network's size. The distance LPIPS wants weights first: python -m
sg2jax.tools.fetch_weights vgg16 lpips_vgg; without them take --distance=pyramid, which compares
pixels. Stop it any way you like: the same command goes on where it was.
"""

from collections.abc import Callable
import contextlib
import hashlib
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

from sg2jax import build, cli, files, grids, pretrained, sampler
from sg2jax.data import images, sources
from sg2jax.edit import project
from sg2jax.evaluation import features
from sg2jax.faults import DatasetError, NonFiniteError, UsageError, WeightsError
from sg2jax.locks import locked
from sg2jax.signals import Stop
from sg2jax.tools.evaluate import parse_weights
from sg2jax.tools.video import write_video

PIXELS, BATCH = 2**18, 16  # at once, at most, if --batch doesn't say it
SAVE_SECONDS = 20
FRAMES, FPS = 240, 24  # of a video


class Item(NamedTuple):
  """A picture to be projected. source: where it is from; load: () -> uint8 [H,W,C] of the network's
  size; hash: of that.
  """

  name: str
  source: str
  load: Callable
  hash: str


class Job(NamedTuple):
  """How pictures are projected. start: of `project.statistics`; about: all that the result depends
  on but for the picture.
  """

  net: sampler.Sampler
  distance: project.Distance
  setting: project.Setting
  start: tuple
  about: dict
  batch: int
  video: bool
  stop: Stop


def define_flags():
  """The command line. Not at import: tools have flags of the same names."""
  define_common()
  flags.DEFINE_string('images', None, 'Picture, or folder of pictures.')
  flags.DEFINE_string('out', '', 'Folder of results; default: projections/<step> in the workdir.')
  flags.DEFINE_bool('video', False, 'Also a video of the search, <name>.mp4.')


def define_common():
  """The flags that attribute has, too."""
  flags.DEFINE_string(
    'checkpoint', None, 'Workdir, whose newest checkpoint counts, or one step of it.'
  )
  flags.DEFINE_enum(
    'distance',
    'lpips',
    list(project.DISTANCES),
    'What is made small: LPIPS; mean square of the pixels (l2), '
    'and of those of all smaller sizes (pyramid).',
  )
  flags.DEFINE_enum(
    'space',
    'w',
    project.SPACES,
    'One w for all layers, or (w+) one for each: closer, but farther from what the network makes.',
  )
  flags.DEFINE_integer('steps', 1000, 'Of the search.')
  flags.DEFINE_float('lr', 0.1, 'Learning rate, at its largest.')
  flags.DEFINE_float('noise_weight', 1e5, 'How strictly noise maps must stay noise.')
  flags.DEFINE_integer('seed', 0, 'Of the noise in the search.')
  flags.DEFINE_integer('batch', 0, 'Pictures at once, over all devices; 0: what suits their size.')
  flags.DEFINE_multi_string(
    'weights', [], 'NAME=PATH of weights that are elsewhere: vgg16=FILE, lpips_vgg=FILE.'
  )


def main(_):
  """Checks, projects, prints."""
  asked = flags.FLAGS
  if not asked.images:
    raise UsageError('--images is missing; name a picture or a folder of pictures')
  out = cli.folder(asked.out) if asked.out else None
  check_there(asked.images)
  with Stop() as stop:
    job = read_job(asked, stop, asked.video)
    out = out or job.net.workdir / 'projections' / f'{job.net.step:08d}'
    documents = project_all(job, read_items(asked.images, job.net, out), out)
  factor = np.median([d['distance_start'] / max(d['distance'], 1e-12) for d in documents])
  print(
    f'{job.net.title}: {len(documents)} projected; {job.distance.name} fell to 1/{factor:.3g} '
    f'(median); results in {out}/'
  )


def read_job(asked, stop, video=False):
  """The Job of the common flags. Raises UsageError, WeightsError, CheckpointError."""
  setting = project.Setting(asked.steps, asked.space, asked.lr, asked.noise_weight, asked.seed)
  explicit = parse_weights(asked.weights)
  cli.check_checkpoint(asked.checkpoint)
  for name, low, high in (
    ('steps', 1, 1e6),
    ('lr', 1e-9, 1e30),
    ('noise_weight', 0, 1e30),
    ('batch', 0, 1e6),
    ('seed', 0, 2**32 - 1),
  ):
    if not low <= asked[name].value <= high:  # NaN isn't, either
      raise UsageError(f'--{name}={asked[name].value} must be from {low:g} to {high:g}')
  if asked.distance == 'lpips':
    try:
      pretrained.require(['vgg16', 'lpips_vgg'], explicit)
    except WeightsError as e:
      raise WeightsError(f'{e}; or take --distance=pyramid, which needs none') from None
  net = sampler.load(asked.checkpoint)
  shape = (*build.resolution(net.config), net.config.data.channels)
  if shape[2] not in (1, 3):
    raise UsageError(
      f'--checkpoint={asked.checkpoint}: its images have {shape[2]} channels, and pictures 1 or 3'
    )
  distance = project.distance(asked.distance)
  if asked.distance == 'lpips':
    if min(shape[:2]) < project.LPIPS_SIDE:
      raise UsageError(
        f'--distance=lpips needs {project.LPIPS_SIDE} px, and this network has '
        f'{shape[0]}x{shape[1]}; take --distance=pyramid'
      )
    detector = features.load('lpips', shape, explicit)
    distance = project.distance('lpips', detector.params, detector.hash)
    if not detector.known:
      print(
        'the weights of LPIPS are not the published ones: distances are of another kind',
        file=sys.stderr,
      )
  about = {
    'network': net.hash(),
    'distance': distance.name,
    'weights': distance.hash,
    **setting._asdict(),
  }
  batch = asked.batch or max(1, min(BATCH, PIXELS // (shape[0] * shape[1])))
  return Job(net, distance, setting, project.statistics(net), about, batch, video, stop)


def check_there(path):
  """Raises DatasetError if there is nothing at a path."""
  if not pathlib.Path(path).expanduser().exists():
    raise DatasetError(f'{path}: there is no such picture or folder')


def read_items(path, net, out):
  """Items of a picture, or of those in a folder and its folders; names the files that can't be
  used, with the reason.

  Raises: DatasetError if there are none, UsageError if results, which go to the folder `out`, would
  be among them.
  """
  path, items = pathlib.Path(path).expanduser().absolute(), []
  if out == path.parent or path.is_dir() and path in (out, *out.parents):
    raise UsageError(
      f'--out={out}: results would be among the pictures of {path}; use another folder'
    )
  root, listed = (
    (path, sources.listing(path))
    if path.is_dir()
    else (path.parent, sources.Listing([path.name], [], None, None))
  )
  unusable = [f'{entry["file"]}: {entry["reason"]}' for entry in listed.unusable]
  size, channels = build.resolution(net.config), net.config.data.channels
  for name in listed.names:

    def load(file=root / name):
      return images.fit_image(images.decode(file.read_bytes(), channels), 'center', *size)

    try:
      items.append(Item(name.replace('/', '_'), str(root / name), load, image_hash(load())))
    except (images.Unusable, OSError) as e:
      unusable.append(f'{name}: {getattr(e, "strerror", None) or e}')
  if not items:
    raise DatasetError(
      f'{path} has no picture that can be projected: {"; ".join(unusable[:3]) or "it is empty"}'
    )
  print(''.join(f'left out: {line}\n' for line in unusable), end='', file=sys.stderr)
  return [
    item._replace(name=name)
    for item, name in zip(items, result_names([item.name for item in items]))
  ]


def result_names(paths):
  """Names of the results of pictures, from their names: 'cat' of cat.jpg, if no other picture's
  results are called so.

  Or else both keep their ending, cat.jpg and cat.png (which makes cat.jpg.png and cat.png.png); and
  if that isn't enough, as for a/b.png and a_b.png, all but the first get a number.
  """
  names = [file.rpartition('.')[0] or file for file in paths]
  while clashing := {i for i in _clashing(names) if names[i] != paths[i]}:
    names = [paths[i] if i in clashing else name for i, name in enumerate(names)]
  taken = set()
  for i, name in enumerate(names):
    count = 1
    while taken & set(_files(names[i])):
      count += 1
      names[i] = f'{name}_{count}'
    taken |= set(_files(names[i]))
  return names


def _clashing(names):
  """Places of names whose results would have a file in common with another's."""
  owners = {}
  for i, name in enumerate(names):
    for file in _files(name):
      owners.setdefault(file, []).append(i)
  return {i for several in owners.values() if len(several) > 1 for i in several}


def _files(name):
  return f'{name}.png', f'{name}_projected.png', f'{name}.npz', f'{name}.mp4'


def project_all(job, items, out, label=''):
  """Projects what isn't in `out` yet, in batches; returns what projections.json says of each.

  Raises: UsageError if `out` holds other results of these names, or two have the same name;
  Preempted, Interrupted.
  """
  _check_names(items)
  with locked(out, 'out'):
    documents = {item.name: _finished(out, item, job) for item in items}
    others = [d for d in _listed(out, job.about) if d['name'] not in documents]
    pending = [item for item in items if not documents[item.name]]
    saved = _unfinished(out, job, items) if pending else None
    while pending:
      batch = (
        [item for item in items if item.name in saved['names']] if saved else pending[: job.batch]
      )
      done = len(items) - len(pending)
      name = (
        f'{label}{done + 1}'
        + (f'-{done + len(batch)}' if len(batch) > 1 else '')
        + f' of {len(items)}'
      )
      documents |= _project(job, batch, out, saved, name)
      pending, saved = [item for item in pending if not documents[item.name]], None
      document = {
        'about': job.about,
        'images': [documents[item.name] for item in items if documents[item.name]] + others,
      }
      files.write_atomic(out / 'projections.json', json.dumps(document, indent=1))
      (out / '.unfinished.npz').unlink(missing_ok=True)
    return [documents[item.name] for item in items]


def _listed(out, about):
  """What projections.json says of pictures that were projected as these are, and are still
  there.
  """
  with contextlib.suppress(Exception):  # there is none, or it is something else
    old = json.loads((out / 'projections.json').read_text())
    return [
      d for d in old['images'] if old['about'] == about and (out / f'{d["name"]}.npz').exists()
    ]
  return []


def _project(job, batch, out, saved, label):
  """Projects a batch and writes its files, the sealing .npz last: {name: document}."""
  targets, saving, current = np.stack([item.load() for item in batch]), time.monotonic(), None
  for item in () if saved else batch:
    shutil.rmtree(_frames(out, item), ignore_errors=True)  # of another search
  projector = project.Projector(job.net, targets, job.distance, job.setting, job.start, saved)
  steps, every = job.setting.steps, max(1, job.setting.steps // FRAMES)
  quiet = {} if sys.stderr.isatty() else {'delay': 60, 'mininterval': 60}  # seconds, in a log file
  with tqdm.tqdm(
    total=steps, initial=projector.done, desc=label, unit='step', leave=False, **quiet
  ) as bar:
    while True:
      if job.video and (projector.done % every == 0 or projector.done == steps):
        for item, target, image in zip(batch, targets, projector.look()[0]):
          files.write_atomic(_frames(out, item) / f'{projector.done:07d}.png', _pair(target, image))
      if projector.done == steps:
        break
      if job.stop or time.monotonic() > saving + SAVE_SECONDS:
        _save(out, projector.save(), batch, job.about)
        saving = time.monotonic()
        if job.stop:
          bar.close()
          job.stop.leave(f'step {projector.done} of {steps} of {label} is saved in {out}')
      last, current = current, projector.advance()
      # computed while this one was asked for; so no more than two wait when a signal comes
      if last is not None:
        bar.set_postfix_str(f'{job.distance.name} {_finite(batch, last).mean():.3g}', refresh=False)
      bar.update()
  found = projector.found()
  _finite(batch, found.distance)
  return {
    item.name: _write(job, out, item, targets[i], _row(found, i)) for i, item in enumerate(batch)
  }


def _finite(batch, distances):
  distances = np.asarray(distances)
  for item, value in zip(batch, distances):
    if not np.isfinite(value):
      raise NonFiniteError(f'{item.source}: its distance became {value}; try a smaller --lr')
  return distances


def _pair(target, image):
  return files.png(grids.readable_grid(np.stack([target, image]), 2))


def _row(found, i):
  return found._replace(
    **{name: x[i] for name, x in found._asdict().items() if name != 'noise'},
    noise={
      '/'.join(path): x[i, ..., 0] for path, x in traverse_util.flatten_dict(found.noise).items()
    },
  )


def _write(job, out, item, target, found):
  """The files of one picture; returns its document."""
  files.write_atomic(out / f'{item.name}.png', _pair(target, found.images))
  files.write_atomic(out / f'{item.name}_projected.png', files.png(found.images))
  if job.video:
    paths = sorted(_frames(out, item).glob('*.png'))
    frames = (np.atleast_3d(np.asarray(Image.open(path))) for path in paths)
    write_video(out / f'{item.name}.mp4', frames, FPS)
    shutil.rmtree(_frames(out, item))
    with contextlib.suppress(OSError):  # others are in there
      _frames(out, item).parent.rmdir()
  document = {
    'name': item.name,
    'source': item.source,
    'target': item.hash,
    'distance_start': float(found.start),
    'distance': float(found.distance),
  }
  about = json.dumps({'about': job.about | {'target': item.hash}, 'document': document})
  files.write_atomic(
    out / f'{item.name}.npz',
    files.npz(
      ws=found.ws,
      **{f'noise/{name}': x for name, x in found.noise.items()},
      distance=found.distance,
      about=about,
    ),
  )
  return document


def _save(out, arrays, batch, about):
  files.write_atomic(
    out / '.unfinished.npz',
    files.npz(
      **arrays,
      names=[item.name for item in batch],
      hashes=[item.hash for item in batch],
      about=json.dumps(about),
    ),
  )


def _unfinished(out, job, items):
  """The saved state of a batch of these items, or None; also if a video is wanted and its beginning
  was not kept.
  """
  with contextlib.suppress(Exception):  # numpy and zipfile raise nearly anything on damaged files
    with np.load(out / '.unfinished.npz') as data:
      saved = dict(data)
    known = {item.name: item.hash for item in items}
    begun = not job.video or all(
      (out / '.frames' / name / f'{0:07d}.png').exists() for name in saved['names']
    )
    same = saved['hashes'].tolist() == [known.get(n) for n in saved['names']]
    if begun and same and json.loads(str(saved['about'])) == job.about:
      return saved
  return None


def _finished(out, item, job):
  """What is known of an item that was projected before; None if it wasn't. Raises UsageError for
  another result.
  """
  path = out / f'{item.name}.npz'
  if not path.exists():
    return None
  try:
    with np.load(path) as data:
      old = json.loads(str(data['about']))
    changed = [
      f'{k}: {old["about"].get(k)} there, {v} here'
      for k, v in {**job.about, 'target': item.hash}.items()
      if old['about'].get(k) != v
    ]
  except Exception:
    changed = ['no projection']
  if changed:
    raise UsageError(f'{path} holds something else ({"; ".join(changed)}); use another --out')
  return None if job.video and not (out / f'{item.name}.mp4').exists() else old['document']


def _check_names(items):
  sources = {}
  for item in items:
    for name in _files(item.name):
      if name in sources:
        raise UsageError(
          f'{item.source} and {sources[name]} would both be written to {name}; rename one of them'
        )
      sources[name] = item.source


def _frames(out, item):
  return out / '.frames' / item.name


def image_hash(image):
  """SHA-256 of an image and its shape, hex digits."""
  return hashlib.sha256(f'{image.shape}'.encode() + image.tobytes()).hexdigest()


if __name__ == '__main__':
  define_flags()
  cli.run(main)
