"""From a trained generator and a data set to the values of metrics, each with what it is.

`measure` is the entry. It has the features made that a metric compares; `scores.SCORES` has the
function that makes numbers of them.
"""

from collections.abc import Iterator
import contextlib
from functools import partial
import json
import time
from typing import Any

import jax
import numpy as np

from sg2jax import __version__, files, grids, pretrained, processes
from sg2jax.evaluation import features, passes, scores
from sg2jax.evaluation.features import Detector, Setting
from sg2jax.evaluation.protocols import Protocol
from sg2jax.evaluation.scores import Features
from sg2jax.evaluation.swd import PATCH
from sg2jax.faults import DatasetError, UsageError

FORMAT = 2  # of a result, and of what is computed: one of another format is measured again
NEIGHBOURS = ('nn', 'pixelnn')  # kinds that show a picture, and compare with held-out reals
LPIPS_SIDE = 16  # px, the least that VGG16 halves four times; cropped, images are half as large


# ---- what can be measured


def check(protocols: list[Protocol], explicit: dict[str, str]) -> None:
  """Raises WeightsError for all missing weights at once; starts nothing."""
  pretrained.require(sorted({name for p in protocols for name in p.weights}), explicit)


def unfit(p: Protocol, shape: tuple[int, ...]) -> str:
  """Why a protocol can't be measured on images of `shape`, '' if it can."""
  height, width = shape[:2]
  factor = features.shrink_factor(p.of_kind.detector, shape)
  least = factor * {'ppl': LPIPS_SIDE * (1 + p.crop), 'swd': PATCH}.get(p.kind, 1)
  if min(height, width) >= least:
    return ''
  return f'{p.name} needs sides of {least} px or more; these images have {height}x{width}'


def load(protocols: list[Protocol], source: Any, explicit: dict[str, str]) -> dict[str, Detector]:
  """{name: Detector} of all that these metrics need.

  Raises: WeightsError, UsageError, DatasetError if that can't be.
  """
  for p in protocols:
    if len(source) < p.of_kind.least:
      raise DatasetError(
        f'{source.place}: {len(source)} images, and {p.name} needs {p.of_kind.least} or more'
      )
    if reason := unfit(p, source.shape):
      raise UsageError(reason)
  names = sorted({p.of_kind.detector for p in protocols})
  return {name: features.load(name, source.shape, explicit) for name in names}


# ---- which images


def count(p: Protocol, s: Setting) -> int:
  """Fakes of a protocol; swd takes no more than there are reals."""
  return min(p.count, len(s.source)) if p.kind == 'swd' else p.count


def population(p: Protocol, s: Setting) -> np.ndarray:
  """Reals that a protocol is about: places in the data set, or in the order of training.

  All of the data set, or if there are more than it takes a random subset, ascending.
  """
  if not p.full:
    return np.arange(p.count)
  images = len(s.source)
  most = count(p, s) if p.kind == 'swd' else p.of_kind.max_reals
  if most is None or images <= most:
    return np.arange(images)
  return np.sort(np.random.default_rng([s.seed, 2]).permutation(images)[:most])


def chosen_reals(p: Protocol, s: Setting, everyone: np.ndarray) -> np.ndarray:
  """Those of a `population` that are looked at: all; of KID, those that are in a subset."""
  if p.kind != 'kid':
    return everyone
  return everyone[np.unique(scores.kid_subsets(len(everyone), p.count, s.seed)[0])]


# ---- measuring


def measure(protocols: list[Protocol], setting: Setting) -> Iterator[dict[str, Any]]:
  """Measures one metric after the other, and yields the dict of each.

  It is also written, as <out>/<metric>.json, by the first of several processes. A metric whose file
  is there, of the same generator, data, weights and seed, is not measured again.

  Raises: WeightsError, UsageError, DatasetError, WriteError; passes.Stopped after a signal: the
    same call goes on with the metrics that were measured, and with the reals that were looked at.
  """
  s = setting
  if any(p.kind == 'ppl' for p in protocols) and s.sampler.grows:
    raise UsageError('ppl needs a network that has grown to its full size; this one has not')
  if s.holdout and s.holdout.hash == s.source.hash:
    raise UsageError(
      f'--holdout: {s.holdout.place} is the data set itself; give images that were not trained on'
    )
  detectors = load(protocols, s.source, s.explicit)
  start = time.monotonic()  # the seconds of a metric are those since the one before
  about = {p: _about(p, s, detectors[p.of_kind.detector]) for p in protocols}
  files_before = [s.out / f'{p.name}.json' for p in protocols]
  read = processes.agreed(lambda: list(map(_measured, files_before, about.values())))
  before = dict(zip(protocols, read))
  due = [p for p in protocols if before[p] is None]
  # Before all fakes, which have to be made again if the process ends: these stay in the cache.
  reals = {p: _reals(p, s, detectors[p.of_kind.detector]) for p in due}
  # Outputs of detectors, by number of fakes: several metrics take theirs of one pass. Path lengths
  # look at pairs of their own, so that theirs are by protocol.
  fakes = {}
  for p in protocols:
    if p not in due:
      yield before[p] | {'measured_before': True}
      continue
    group = p if p.kind == 'ppl' else count(p, s)
    if group not in fakes:
      job = _fakes_pass(p, s, detectors, due)
      fakes[group] = passes.rows(passes.run(job, s.at_once, s.stop))
    compared = reals[p]._replace(fakes=fakes[group][p.of_kind.output])
    counts = {'fakes': count(p, s), 'reals': len(compared.places)}
    document = processes.agreed(
      partial(_score, p, s, compared, counts | about[p], start), also=(passes.Stopped,)
    )
    if p.kind in NEIGHBOURS:
      picture = _picture(s, document)
      processes.agreed(partial(files.write_atomic, s.out / f'{p.name}.png', picture))
    # The last of its files: where it is, the others are.
    text = json.dumps(document, indent=1) + '\n'
    processes.agreed(partial(files.write_atomic, s.out / f'{p.name}.json', text))
    yield document
    start = time.monotonic()


def _about(p, s, detector):
  """All that a result depends on, as JSON values."""
  order = s.about_order(p) or {'mirror': False}
  about_data = _describe(s.source) | {'mirrored': order['mirror']}
  if 'order' in order:
    about_data['order'] = order['order']
  return {
    'format': FORMAT,
    'data': about_data,
    'holdout': _describe(s.holdout) if s.holdout and p.kind in NEIGHBOURS else None,
    'detector': {
      'name': detector.name,
      'sha256': detector.hash,
      'standard': detector.known,
      'resize': detector.resize,
    },
    'checkpoint': {
      'step': s.sampler.step,
      'nimg': s.sampler.nimg,
      'sha256': s.sampler.hash(),
      'weights': 'moving average',
      **s.sampler.growing,
    },
    'seed': s.seed,
  }


def _describe(source):
  return {
    'name': source.name,
    'sha256': source.hash,
    'images': len(source),
    'shape': list(source.shape),
    'resize_filter': source.resize_filter,
  }


def _measured(path, about):
  """The document at `path`; None if there is none, or it is about something else."""
  with contextlib.suppress(OSError, ValueError):
    old = json.loads(path.read_text())
    if isinstance(old, dict) and all(old.get(k) == v for k, v in about.items()):
      return old
  return None


# ---- passes; every process makes them, in the same order


def _reals(p, s, detector):
  """What the fakes of a metric are compared with, as scores.Features without fakes."""
  if not p.of_kind.reals:
    return Features()

  def look(source, places):
    job = features.reals_pass(s, p, source, detector, places)
    return passes.cached(job, p.of_kind.reals == 'moments', s.at_once, s.stop)

  everyone = population(p, s)
  chosen = chosen_reals(p, s, everyone)
  holdout = None
  if s.holdout and p.kind in NEIGHBOURS:
    holdout = look(s.holdout, np.arange(len(s.holdout)))
  return Features(None, look(s.source, chosen), chosen, len(everyone), holdout)


def _fakes_pass(p, s, detectors, due):
  """The Pass of all detectors that look at as many fakes as p does, or over pairs of fakes."""
  if p.kind == 'ppl':
    return features.ppl_pass(s, p, detectors['lpips'])
  others = [q for q in due if q.kind != 'ppl' and count(q, s) == count(p, s)]
  names = sorted({q.of_kind.detector for q in others})
  return features.fakes_pass(s, [detectors[name] for name in names], count(p, s))


# ---- results


def _score(p, s, compared, about, start):
  """The document of a metric, from what it compares."""
  result = scores.SCORES[p.kind](p, compared, s.seed, s.check_stop)
  return _document(p, s, result, about, time.monotonic() - start)


def _document(p, s, result, about, seconds):
  """All that there is to say of a result."""
  intervals = {
    name: scores.interval(value, each, s.seed)
    for name, (value, each) in result.values.items()
    if each is not None
  }
  return {
    'metric': p.name,
    'run': str(s.sampler.workdir.absolute()),
    'values': {name: float(value) for name, (value, _) in result.values.items()},
    'intervals_95': intervals,
    'intervals_cover': result.covers,
    **about,
    **result.notes,
    'seconds': round(seconds, 1),
    'device': jax.devices()[0].device_kind,
    'devices': s.mesh.size,
    'sg2jax': __version__,
  }


def _picture(s, document):
  """PNG of the fakes that are closest to reals, each with its real to the right."""
  fakes = features.fake_images(s, np.array(document['closest_fakes']))
  reals = np.stack([s.source[i]['image'] for i in document['their_reals']])
  both = np.stack([fakes, reals], 1).reshape(-1, *fakes.shape[1:])
  return files.png(grids.readable_grid(both, cols=8))


def table(document: dict[str, Any]) -> list[str]:
  """Lines for a terminal: each value with its interval."""
  notes = '' if document['detector']['standard'] else '  (not the standard weights)'
  if document.get('measured_before'):
    notes += '  (measured before)'
  lines = []
  for name, value in document['values'].items():
    interval = ''
    if name in document['intervals_95']:
      low, high = document['intervals_95'][name]
      interval = f'  [{low:.4g}, {high:.4g}]'
    lines.append(f'{name:<26}{value:>12.5g}{interval}{notes}')
  return lines
