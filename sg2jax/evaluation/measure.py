"""From a trained generator and a data set to the values of metrics, each with what it is.

`measure` is the entry. An `Evaluation` makes the features that a metric compares, `scores.SCORES`
has the function that makes numbers of them.
"""

from collections.abc import Iterator
import contextlib
import json
import shutil
import time
from typing import Any

import jax
import numpy as np

from sg2jax import __version__, files, grids, paths, pretrained
from sg2jax.evaluation import features, passes, scores
from sg2jax.evaluation.features import Detector, Setting
from sg2jax.evaluation.protocols import Protocol
from sg2jax.evaluation.scores import Features, Result
from sg2jax.evaluation.swd import PATCH
from sg2jax.faults import DatasetError, UsageError

FORMAT = 2  # of a result, and of what is computed: one of another format is measured again
LPIPS_SIDE = 16  # px, the least that VGG16 halves four times; cropped, images are half as large


# ---- what can be measured


def check(protocols: list[Protocol], explicit: dict[str, str]) -> None:
  """Raises WeightsError for all missing weights at once; starts nothing."""
  pretrained.require(sorted({name for p in protocols for name in p.weights}), explicit)


def unfit(p: Protocol, shape: tuple[int, ...]) -> str:
  """Why a protocol can't be measured on images of `shape`, '' if it can."""
  height, width = shape[:2]
  factor = features.shrink_factor(p.of_kind.detector, shape)
  least = {'ppl': LPIPS_SIDE * (1 + p.crop), 'swd': PATCH}.get(p.kind, 1)
  if min(height, width) // factor >= least:
    return ''
  after = f', {height // factor}x{width // factor} after shrinking' if factor > 1 else ''
  return f'{p.name} needs images of {least} px or more; these have {height}x{width}{after}'


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


def places(p: Protocol, s: Setting, everyone: np.ndarray) -> np.ndarray:
  """Those of a `population` that are looked at: all; of KID, those that are in a subset."""
  if p.kind != 'kid':
    return everyone
  return everyone[np.unique(scores.kid_subsets(len(everyone), p.count, s.seed)[0])]


# ---- measuring


def measure(protocols: list[Protocol], setting: Setting) -> Iterator[dict[str, Any]]:
  """Measures one metric after the other, and yields the dict of each.

  It is also written, as <out>/<metric>.json. A metric whose file is there, of the same generator,
  data, weights and seed, is not measured again. Processes but the first take part, and yield
  nothing.

  Raises: WeightsError, UsageError, DatasetError, WriteError; passes.Stopped after a signal: the
    same call goes on with the passes that were whole.
  """
  if any(p.kind == 'ppl' for p in protocols) and setting.sampler.grows:
    raise UsageError('ppl needs a network that has grown to its full size; this one has not')
  if setting.holdout and setting.holdout.hash == setting.source.hash:
    raise UsageError(
      f'--holdout: {setting.holdout.place} is the data set itself; give images that were not '
      'trained on'
    )
  detectors = load(protocols, setting.source, setting.explicit)
  with contextlib.ExitStack() as stack:
    evaluation = Evaluation(setting, detectors, protocols, stack)
    for p in protocols:
      document = evaluation.document(p)
      if document:
        yield document
    evaluation.remove_fakes()
    passes.agree(True)  # the others wait until the first has done its arithmetic


class Evaluation:
  """The passes of one `measure`, shared between its metrics; those over fakes end with it."""

  def __init__(
    self,
    setting: Setting,
    detectors: dict[str, Detector],
    protocols: list[Protocol],
    stack: contextlib.ExitStack,
  ) -> None:
    self.setting = setting
    self.detectors = detectors
    self.protocols = protocols
    self._stack = stack
    self._partial = setting.out / 'partial'
    self._fakes = {}  # outputs of the passes over fakes, by their keys

  def document(self, p: Protocol) -> dict[str, Any] | None:
    """The result of a protocol, measured or read; None on processes but the first."""
    s = self.setting
    path = s.out / f'{p.name}.json'
    about = self.about(p)
    start = time.monotonic()
    old = None
    with contextlib.suppress(OSError, ValueError):
      old = json.loads(path.read_text())
    same = isinstance(old, dict) and all(old.get(k) == v for k, v in about.items())
    first = jax.process_index() == 0
    if passes.agree(same):
      return old | {'measured_before': True} if first else None

    compared = self.features(p)
    result = None
    if first:
      result = scores.SCORES[p.kind](p, compared, s.seed, s.check_stop)
    if p.kind in ('nn', 'pixelnn'):
      picture = self.picture(result)
      if first:
        files.write_atomic(path.with_suffix('.png'), picture)
    if not first:
      return None
    document = {
      'metric': p.name,
      'run': str(s.sampler.workdir.absolute()),
      'values': result.values,
      'intervals_95': result.intervals,
      'intervals_cover': result.covers,
      'fakes': count(p, s),
      'reals': len(compared.places),
      **about,
      **result.notes,
      'seconds': round(time.monotonic() - start, 1),
      'device': jax.devices()[0].device_kind,
      'devices': s.mesh.size,
      'sg2jax': __version__,
    }
    files.write_atomic(path, json.dumps(document, indent=1) + '\n')
    return document

  def about(self, p: Protocol) -> dict[str, Any]:
    """All that a result depends on, as JSON values."""
    s = self.setting
    detector = self.detectors[p.of_kind.detector]
    training = s.training_order(p)
    return {
      'format': FORMAT,
      'data': _describe(s.source) | {'mirrored': bool(training and training['mirror'])},
      'holdout': s.holdout and _describe(s.holdout),
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

  # ---- passes; every process makes them, in the same order

  def features(self, p: Protocol) -> Features:
    """What a metric compares."""
    s = self.setting
    if not p.of_kind.reals:
      return Features(self.fakes(p))
    everyone = population(p, s)
    chosen = places(p, s, everyone)
    reals = self.reals(p, s.source, chosen)
    fakes = self.fakes(p)
    holdout = None
    if s.holdout and p.kind in ('nn', 'pixelnn'):
      holdout = self.reals(p, s.holdout, np.arange(len(s.holdout)))
    return Features(fakes, reals, chosen, len(everyone), holdout)

  def reals(self, p: Protocol, source: Any, places: np.ndarray) -> Any:
    """Features of reals, or their Moments, from a pass that stays in the cache."""
    s = self.setting
    detector = self.detectors[p.of_kind.detector]
    job = features.reals_pass(s, p, source, detector, places)
    root = paths.cache() / 'reals'
    outputs = passes.run(job, root, s.at_once, s.stop, f'reals: {detector.name}')
    return outputs and outputs[p.of_kind.output]

  def fakes(self, p: Protocol) -> Any:
    """Features of fakes, from a pass by all detectors that look at so many; of ppl, lengths."""
    s = self.setting
    if p.kind == 'ppl':
      job = features.ppl_pass(s, p, self.detectors['lpips'])
      label = f'pairs: {p.name}'
    else:
      others = [q for q in self.protocols if q.kind != 'ppl' and count(q, s) == count(p, s)]
      detectors = [self.detectors[name] for name in sorted({q.of_kind.detector for q in others})]
      job = features.fakes_pass(s, detectors, count(p, s))
      label = f'fakes: {", ".join(d.name for d in detectors)}'
    if jax.process_index() == 0 and not self._fakes:
      # One process at a time, because the first to end removes the passes.
      self._stack.enter_context(passes.hold(s.out / '.lock', s.out, s.stop))
    if job.key not in self._fakes:
      self._fakes[job.key] = passes.run(job, self._partial, s.at_once, s.stop, label)
    outputs = self._fakes[job.key]
    return outputs and outputs[p.of_kind.output]

  def picture(self, result: Result | None) -> bytes | None:
    """PNG of the fakes that are closest to reals, each with its real to the right."""
    s = self.setting
    numbers = result.notes['closest_fakes'] if result else [0] * scores.SHOWN
    fakes = features.fake_images(s, passes.agree(np.array(numbers)))
    if not result:
      return None
    reals = np.stack([s.source[i]['image'] for i in result.notes['their_reals']])
    both = np.stack([fakes, reals], 1).reshape(-1, *fakes.shape[1:])
    return files.png(grids.readable_grid(both, cols=8))

  def remove_fakes(self) -> None:
    """Deletes the passes over fakes, also those that a command which was killed has left."""
    if jax.process_index() == 0 and self._fakes:
      shutil.rmtree(self._partial, ignore_errors=True)


def _describe(source):
  return {
    'name': source.name,
    'sha256': source.hash,
    'images': len(source),
    'shape': list(source.shape),
    'resize_filter': source.resize_filter,
  }


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
