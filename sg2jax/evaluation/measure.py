"""From a trained generator and a data set to the values of metrics, each with what it is. `measure`
is the entry.
"""

from collections.abc import Callable
import contextlib
from functools import partial
import json
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from sg2jax import __version__, files, pretrained, report
from sg2jax.evaluation import detectors, neighbors, passes, ppl, samples, scores
from sg2jax.evaluation.protocols import LEAST, MAX_REALS, K
from sg2jax.evaluation.separability import linear_separability
from sg2jax.evaluation.swd import PATCH, swd
from sg2jax.faults import DatasetError, UsageError
from sg2jax.sampler import Sampler, images_at_once

OUTPUTS = {'inception': 'pool', 'vgg16': 'fc', 'pixels': 'pixels', 'small': 'small'}
LPIPS_SIDE = 16  # px, the least that VGG16 halves four times; cropped, images are half as large
SPLITS = 10  # of the inception score
GROUPS = 8  # disjoint subsets from which the interval of swd comes
FAKES = 'which fakes were drawn'


class Setting(NamedTuple):
  """What is measured, and how. batch: images at once, over all devices, 0: what suits their size;
  holdout: a Source of reals that weren't trained on, or None; explicit: {name: path of weights};
  out: folder of results, and of passes over fakes until all is measured; stop: true after a
  signal.
  """

  trained: Sampler
  source: Any
  mesh: Any
  out: pathlib.Path
  seed: int = 0
  batch: int = 0
  holdout: Any = None
  explicit: dict = {}
  stop: Any = ()

  @property
  def at_once(self):
    """Images at once, over all devices."""
    return self.batch or images_at_once(self.source.shape) * self.mesh.size


class Found(NamedTuple):
  """values and intervals: {name: float}, {name: (low, high)}; covers: what the intervals are about;
  reals, fakes: images.
  """

  values: dict
  intervals: dict
  covers: str
  fakes: int
  reals: int
  picture: Callable | None = None  # PNG bytes
  notes: dict = {}  # what else the result says


def check(protocols, explicit):
  """Raises WeightsError for all missing weights at once; starts nothing."""
  pretrained.require(sorted({name for p in protocols for name in p.weights}), explicit)
  if any(p.kind == 'ls' for p in protocols):
    detectors.classifiers(explicit.get('attributes', ''))


def unfit(p, shape):
  """Why a protocol can't be measured on images of `shape`, '' if it can."""
  height, width = shape[:2]
  shrunk = {'small': detectors.SWD_SIDE, 'pixels': detectors.PIXELS}.get(
    p.detector, max(height, width)
  )
  factor = -(-max(height, width) // shrunk)
  least = {'ppl': LPIPS_SIDE * (1 + p.crop), 'swd': PATCH}.get(p.kind, 1)
  if min(height, width) // factor >= least:
    return ''
  after = f', {height // factor}x{width // factor} after shrinking' if factor > 1 else ''
  return f'{p.name} needs images of {least} px or more; these have {height}x{width}{after}'


def load(protocols, source, explicit):
  """{name: Detector} of all that these metrics need. Raises WeightsError, UsageError, DatasetError
  if that can't be.
  """
  for p in protocols:
    if len(source) < LEAST.get(p.kind, 1):
      raise DatasetError(
        f'{source.place}: {len(source)} images, and {p.name} needs {LEAST[p.kind]} or more'
      )
    if reason := unfit(p, source.shape):
      raise UsageError(reason)
  loaded, shape = {}, source.shape
  for name in sorted({p.detector for p in protocols}):
    if name == 'lpips':
      loaded[name] = detectors.lpips(shape, explicit)
    else:
      one = detectors.attributes if name == 'attributes' else partial(detectors.load, name)
      loaded[name] = one(shape, explicit.get(name, ''))
  return loaded


def measure(protocols, setting):
  """Measures one metric after the other, and yields for each the dict that it also writes as
  <out>/<metric>.json.

  A metric whose file is there, of the same generator, data, weights and seed, is not measured
  again. Processes but the first take part, and yield nothing. Raises: WeightsError, UsageError,
  DatasetError, WriteError; passes.Stopped after a signal: the same call goes on from there.
  """
  if any(p.kind == 'ppl' for p in protocols) and setting.trained.grows:
    raise UsageError('ppl needs a network that has grown to its full size; this one has not')
  if setting.holdout and setting.holdout.hash == setting.source.hash:
    raise UsageError(
      f'--holdout: {setting.holdout.place} is the data set itself; give images that were not '
      'trained on'
    )
  with contextlib.ExitStack() as held:
    room = Room(setting, load(protocols, setting.source, setting.explicit), protocols, held)
    for protocol in protocols:
      yield from room.result(protocol)
    if jax.process_index() == 0:
      passes.remove(room.partial, room.kept)
    passes.agree(True)  # the others wait until the first has done its arithmetic


class Room:
  """The passes of one `measure`, shared between its metrics; those over fakes are held until the
  end.
  """

  def __init__(self, setting, loaded, protocols, held=None):
    self.s, self.detectors, self.kept, self.held, self.partial = (
      setting,
      loaded,
      {},
      held,
      setting.out / 'partial',
    )
    self._wanted = {}  # count: detectors that look at so many fakes
    for p in protocols:
      if p.kind != 'ppl':
        self._wanted.setdefault(self.count(p), set()).add(p.detector)

  def count(self, p):
    """Fakes of a protocol; swd takes no more than there are reals."""
    return min(p.count, len(self.s.source)) if p.kind == 'swd' else p.count

  def result(self, p):
    """Yields the result of a protocol, measured or read."""
    detector, path, old, start = (
      self.detectors[p.detector],
      self.s.out / f'{p.name}.json',
      {},
      time.monotonic(),
    )
    about = self.about(p, detector)
    with contextlib.suppress(OSError, ValueError):
      old = json.loads(path.read_text())
    if passes.agree(isinstance(old, dict) and all(old.get(k) == v for k, v in about.items())):
      if jax.process_index() == 0:
        yield old | {'measured_before': True}
      return
    found = KINDS[p.kind](self, p, detector)
    if jax.process_index():
      return
    document = {
      'metric': p.name,
      'run': str(self.s.trained.workdir.absolute()),
      'values': found.values,
      'intervals_95': found.intervals,
      'intervals_cover': found.covers,
      'fakes': found.fakes,
      'reals': found.reals,
      **about,
      **found.notes,
      'seconds': round(time.monotonic() - start, 1),
      'device': jax.devices()[0].device_kind,
      'devices': self.s.mesh.size,
      'sg2jax': __version__,
    }
    if found.picture:
      files.write_atomic(path.with_suffix('.png'), found.picture())
    files.write_atomic(path, json.dumps(document, indent=1) + '\n')
    yield document

  def about(self, p, detector):
    """All that a result depends on, as JSON values."""
    s = self.s
    describe = lambda source: {
      'name': source.name,
      'sha256': source.hash,
      'images': len(source),
      'shape': list(source.shape),
      'resize_filter': source.resize_filter,
    }
    return {
      'format': passes.FORMAT,
      'data': describe(s.source) | {'mirrored': mirrored(s, p)},
      'holdout': s.holdout and describe(s.holdout),
      'detector': {
        'name': detector.name,
        'sha256': detector.hash,
        'standard': detector.known,
        'resize': detector.resize,
      },
      'checkpoint': {
        'step': s.trained.step,
        'nimg': s.trained.nimg,
        'sha256': s.trained.hash(),
        'weights': 'moving average',
        **s.trained.growing,
      },
      'seed': s.seed,
    }

  def fakes(self, p):
    """The pass over the fakes of a protocol, by all detectors that want so many."""
    looking = [self.detectors[name] for name in sorted(self._wanted[self.count(p)])]
    s, label = self.s, f'fakes: {", ".join(d.name for d in looking)}'
    return self.own(
      samples.fakes_pass(s.trained, s.source, s.mesh, looking, self.count(p), s.seed), label
    )

  def own(self, job, label):
    """A pass that is kept only until all is measured."""
    if job.key not in self.kept:
      self.kept[job.key] = passes.run(
        job, self.partial, self.s.at_once, self.s.stop, label, self.held
      )
    return self.kept[job.key]

  def reals(self, p, detector, places, moments=False, source=None):
    """A pass over reals at `places`, kept in the cache."""
    s, training = self.s, None if p.full else (self.s.seed, mirrored(self.s, p))
    job = samples.reals_pass(
      source or s.source, s.mesh, detector, OUTPUTS[detector.name], places, moments, training
    )
    return passes.run(
      job, pretrained.cache() / 'reals', s.at_once, s.stop, f'reals: {detector.name}'
    )

  def tick(self):
    """For long work on the host: raises Stopped after a signal."""
    if self.s.stop:
      raise passes.Stopped

  def places(self, p):
    """Reals of a protocol: places in the data set, or in the order of training."""
    most = self.count(p) if p.kind == 'swd' else MAX_REALS.get(p.kind)
    return samples.order(self.s.source, most, self.s.seed) if p.full else np.arange(p.count)


def mirrored(setting, p):
  """Whether the reals of a protocol are mirrored at random."""
  return not p.full and bool(setting.trained.config.data.mirror)


def shifted(value, interval):
  """(value + low, value + high), as floats."""
  return [float(value + x) for x in interval]


# ---- one function for each kind: (room, protocol, detector) -> Found, on processes but the first N


def frechet(room, p, detector):
  """FID, and the distance of pixels by the same formula."""
  output, places = OUTPUTS[detector.name], room.places(p)
  reals, fakes = room.reals(p, detector, places, moments=True), room.fakes(p)
  if fakes is None:
    return None
  ddof, real, rows = int(not p.full), reals.moments(output), fakes.rows(output)
  fake = scores.Moments(rows.shape[1])
  for i in range(0, len(rows), scores.CHUNK):
    fake.add(rows[i : i + scores.CHUNK])
  ends = (real.mean, real.cov(ddof), fake.mean, fake.cov(ddof))
  value = scores.frechet_distance(*ends)
  room.tick()
  influence = scores.frechet_influence(*ends[:3], fake.cov())(rows)
  interval = shifted(value, scores.bootstrap_mean(influence, room.s.seed))
  return Found(
    {p.name: value},
    {p.name: interval},
    FAKES + ' (linearised; not the bias of few images)',
    len(rows),
    len(places),
  )


def kernel(room, p, detector):
  """KID: only the reals that are in a subset are looked at."""
  population = room.places(p)
  of_reals, of_fakes = scores.kid_subsets(len(population), p.count, room.s.seed)
  drawn, inverse = np.unique(of_reals, return_inverse=True)
  reals, fakes = room.reals(p, detector, population[drawn]), room.fakes(p)
  if fakes is None:
    return None
  x, y, inverse = reals.rows('pool'), fakes.rows('pool'), inverse.reshape(of_reals.shape)
  each = []
  for i, j in zip(inverse, of_fakes):
    room.tick()
    each.append(scores.mmd(x[i], y[j]))
  value = float(np.mean(each))
  if of_reals.shape[1] == p.count == len(population):
    intervals, covers = {}, 'nothing: every subset is the whole set'
  else:
    intervals, covers = (
      {p.name: shifted(value, scores.bootstrap_mean(each, room.s.seed))},
      'the draw of subsets',
    )
  return Found(
    {p.name: value},
    intervals,
    covers,
    p.count,
    len(drawn),
    notes={'subsets': len(each), 'subset_size': of_reals.shape[1]},
  )


def inception_score(room, p, _):
  """IS; its spread is over the splits."""
  fakes = room.fakes(p)
  if fakes is None:
    return None
  each = scores.inception_scores(fakes.rows('probs'), SPLITS)
  mean = f'{p.name}_mean'
  return Found(
    {mean: float(each.mean()), f'{p.name}_std': float(each.std())},
    {mean: shifted(each.mean(), scores.bootstrap_mean(each, room.s.seed))},
    f'the {len(each)} splits',
    p.count,
    0,
  )


def precision_recall(room, p, detector):
  """Improved precision and recall."""
  places = room.places(p)
  reals, fakes = room.reals(p, detector, places), room.fakes(p)
  if fakes is None:
    return None
  found = neighbors.precision_recall(reals.rows('fc'), fakes.rows('fc'), K, room.tick)
  inside = {f'{p.name}_precision': found.in_reals, f'{p.name}_recall': found.in_fakes}
  return Found(
    {k: float(x.mean()) for k, x in inside.items()},
    {k: shifted(x.mean(), scores.bootstrap_mean(x, room.s.seed)) for k, x in inside.items()},
    'which images of one set are compared with the other',
    p.count,
    len(places),
  )


def path_length(room, p, distance):
  """PPL; 'fakes' are pairs of latents."""
  s = room.s
  done = room.own(
    samples.ppl_pass(s.trained, s.source, s.mesh, distance, p, s.seed), f'pairs: {p.name}'
  )
  if done is None:
    return None
  each = ppl.trimmed(done.rows('ppl'))
  interval = shifted(each.mean(), scores.bootstrap_mean(each, s.seed))
  return Found(
    {p.name: float(each.mean())}, {p.name: interval}, 'which pairs were drawn', p.count, 0
  )


def sliced_wasserstein(room, p, detector):
  """SWD of images at SWD_SIDE px at most; its interval is what disjoint subsets differ by."""
  count = room.count(p)
  reals, fakes = room.reals(p, detector, room.places(p)), room.fakes(p)
  if fakes is None:
    return None
  x, y = reals.rows('small'), fakes.rows('small')

  def distance(part):
    found = swd(x[part], y[part], room.s.seed, room.s.stop)
    room.tick()  # stopped, it returns nothing
    return found

  levels = distance(slice(None))
  groups = min(GROUPS, count)
  each = [distance(slice(i, None, groups))['mean'] for i in range(groups)]
  interval = (
    {p.name: shifted(levels['mean'], scores.bootstrap_mean(each, room.s.seed))}
    if groups > 1
    else {}
  )
  return Found(
    {p.name: levels['mean']},
    interval,
    f'both sets, by {groups} disjoint subsets',
    count,
    count,
    notes={'levels': levels},
  )


def separability(room, p, _):
  """Linear separability in z and in w."""
  fakes = room.fakes(p)
  if fakes is None:
    return None
  sure = 1 / (1 + np.exp(-fakes.rows('attributes').astype(np.float64)))
  found = {space: linear_separability(fakes.rows(space), sure) for space in 'zw'}
  each = {f'{p.name}_{space}': entropies for space, (_, entropies) in found.items()}
  return Found(
    {f'{p.name}_{space}': value for space, (value, _) in found.items()},
    {
      name: [
        float(np.exp(len(e) * x)) for x in shifted(e.mean(), scores.bootstrap_mean(e, room.s.seed))
      ]
      for name, e in each.items()
    },
    'the choice of attributes',
    p.count,
    0,
    notes={'entropies': {name: e.tolist() for name, e in each.items()}},
  )


def nearest_reals(room, p, detector):
  """Are fakes closer to reals than other reals are? The closest of them as a picture."""
  s, output, places = room.s, OUTPUTS[detector.name], room.places(p)
  reals, fakes = room.reals(p, detector, places), room.fakes(p)
  others = (
    room.reals(p, detector, np.arange(len(s.holdout)), source=s.holdout) if s.holdout else None
  )
  closest = np.zeros(SHOWN, np.int64)
  if fakes is not None:
    base = reals.rows(output)
    distance, index = neighbors.nearest(fakes.rows(output), base, tick=room.tick)
    held, _ = neighbors.nearest(
      others.rows(output) if others else base, base, not others, room.tick
    )
    closest = np.resize(np.argsort(distance, kind='stable')[:SHOWN], SHOWN)
  images = samples.fake_images(s.trained, s.source, s.mesh, s.seed, passes.agree(closest))
  if fakes is None:
    return None
  farther = np.mean(
    [np.searchsorted(np.sort(held), distance, side) for side in ('left', 'right')], 0
  ) / len(held)
  name = f'{p.name}_farther'
  values = {name: float(farther.mean()), f'{p.name}_z': neighbors.copying(distance, held)}
  return Found(
    values,
    {name: shifted(values[name], scores.bootstrap_mean(farther, s.seed))},
    FAKES,
    p.count,
    len(places),
    lambda: pairs(images, np.stack([s.source[int(places[i])]['image'] for i in index[closest]])),
    {
      'held_out': 'holdout' if others else 'each real in turn, out of the others',
      'held_out_at_distance_0': int((held == 0).sum()),
      'median_distance': {'fakes': float(np.median(distance)), 'held_out': float(np.median(held))},
      'picture': f'{SHOWN} closest: fake, and right of it its nearest real',
      'closest_fakes': closest.tolist(),
      'their_reals': places[index[closest]].tolist(),
    },
  )


SHOWN = 32  # pairs in the picture


def pairs(fakes, reals):
  """PNG of fakes [N,H,W,C], each with a real to its right."""
  both = np.stack([fakes, reals], 1).reshape(-1, *fakes.shape[1:])
  return files.png(report.readable_grid(both, cols=8))


KINDS = {
  'fid': frechet,
  'pixelfd': frechet,
  'kid': kernel,
  'is': inception_score,
  'pr': precision_recall,
  'ppl': path_length,
  'swd': sliced_wasserstein,
  'nn': nearest_reals,
  'pixelnn': nearest_reals,
  'ls': separability,
}


def table(document):
  """Lines for a terminal: each value with its interval."""
  lines = []
  for name, value in document['values'].items():
    low_high = document['intervals_95'].get(name)
    text = f'  [{low_high[0]:.4g}, {low_high[1]:.4g}]' if low_high else ''
    text += '' if document['detector']['standard'] else '  (not the standard weights)'
    text += '  (measured before)' if document.get('measured_before', False) else ''
    lines.append(f'{name:<26}{value:>12.5g}{text}')
  return lines
