"""A folder of adversarial searches, a file for each seed; what is finished stays."""

from collections.abc import Callable
import contextlib
import functools
import hashlib
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from sg2jax import sampler
from sg2jax.edit import adversarial, adversarial_rates, direction, project
from sg2jax.edit.classifiers import Classifier, from_uint8
from sg2jax.edit.direction import Direction
from sg2jax.edit.moves import add_up, lengths, moved_images, random_amounts, random_moves
from sg2jax.edit.moves import basis as basis_of
from sg2jax.faults import CheckpointError, NonFiniteError, UsageError
from sg2jax.progress import Progress
from sg2jax.signals import Stop


class Job(NamedTuple):
  """What is searched, and how."""

  net: sampler.Sampler
  models: adversarial.Models
  settings: adversarial.Settings
  names: tuple[str, ...]  # of the directions, the same for all classes; () in w+
  directions: Callable  # class -> its Directions
  texts: Callable | None  # class -> features of its text, or of a pair of them, [E]
  score: Callable | None  # images uint8 -> their cosines with the texts of all classes [N,K]
  distance: project.Distance  # that is reported
  others: dict[str, Classifier]  # that the samples are shown, too
  about: dict  # all that a result depends on, but for the seed
  batch: int
  stop: Stop


def path(out: pathlib.Path, seed: int) -> pathlib.Path:
  """The file of a seed."""
  return out / 'seeds' / f'seed{seed:04d}.npz'


def search_all(
  job: Job, seeds: list[int], ws: np.ndarray, classes: np.ndarray | None, out: pathlib.Path
) -> list[dict]:
  """Searches from the seeds that aren't in `out` yet, in batches; the row of each seed.

  Args:
    job: see Job.
    seeds: none of them twice.
    ws: of their images, [N,num_ws,w_dim].
    classes: what these show, int [N]; None: what the judge sees in them.
    out: folder of results.

  Raises: UsageError if `out` holds results of other settings; NonFiniteError; Preempted,
    Interrupted.
  """
  rows = {seed: _finished(job, seed, ws[i], out) for i, seed in enumerate(seeds)}
  pending = [i for i, seed in enumerate(seeds) if rows[seed] is None]
  batch = min(job.batch, len(seeds))  # of all, so that nothing is compiled anew for the last ones
  with Progress(len(seeds), 'searches', 'seeds', len(seeds) - len(pending)) as progress:
    for part, count in sampler.parts(len(pending), batch):
      some = [pending[i] for i in part]
      found = _search(
        job,
        [seeds[i] for i in some],
        ws[some],
        None if classes is None else classes[some],
        out,
        progress,
      )
      for row, arrays, move in found[:count]:
        about = {'method': 'adversarial', 'search': _about(job, arrays['start']), 'row': row}
        name = f'adversarial {row["seed"]}'
        moved = Direction(name, (job.net.hash(),), move.get('ws'), _layers(move), about)
        direction.write(path(out, row['seed']), [moved], **arrays)
        rows[row['seed']] = row
      progress.update(count)
  return [rows[seed] for seed in seeds]


def _layers(move):
  return {layer: x for layer, x in move.items() if layer != 'ws'}


def _about(job, start):
  """All that the result of a seed depends on, whose image begins at `start`, [num_ws,w_dim]."""
  return job.about | {'start': hashlib.sha256(np.ascontiguousarray(start).tobytes()).hexdigest()}


def _finished(job, seed, start, out):
  """The row of a seed that was searched before; else None.

  Raises: UsageError: there is a file of its name with something else.
  """
  place = path(out, seed)
  if not place.exists():
    return None
  there, row = {}, None
  with contextlib.suppress(CheckpointError, KeyError):  # another's file: nothing of it is as here
    about = direction.read(place).about
    there, row = about['search'], about['row']
  here = _about(job, start)
  changed = [f'{k}: {there.get(k)} there, {v} here' for k, v in here.items() if there.get(k) != v]
  if changed:
    raise UsageError(f'{place} holds something else ({"; ".join(changed)}); use another --out')
  return row


def _search(job, seeds, ws, classes, out, progress):
  """(row, arrays, moves without [N]) of each seed of a batch."""
  show = functools.partial(moved_images, job.net, batch=len(seeds))
  before = show(ws, {})
  start = _predict(job, before)
  classes = start.seen if classes is None else classes
  counts = adversarial_rates.counts(classes, *start)
  basis = basis_of(job.net, ws, [job.directions(c) for c in classes]) if job.names else {}
  # ---- the search, and what it is compared with
  texts = np.stack([job.texts(c) for c in classes]) if job.texts else None
  # What doesn't count isn't searched, and keeps nobody waiting.
  search = adversarial.Search(job.net, ws, classes, job.models, basis, texts, job.settings, counts)
  found = _run(job, search, seeds, out, progress)
  after = {
    'found': found.images,
    'control': show(ws, random_moves(found.moves, seeds)),
  }
  if job.names:
    amounts = random_amounts(found.params, seeds)
    after['span'] = show(ws, jax.device_get(add_up(amounts, basis)))
  verdicts = {name: _predict(job, images) for name, images in after.items()}
  flips = _flips(job, ws, classes, basis, counts, show) if job.names else None
  told = {name: [_classes(c, x) for x in (before, found.images)] for name, c in job.others.items()}
  columns = {
    'seed': np.array(seeds),
    'class': classes,
    'said_before': start.said,
    'seen_before': start.seen,
    'counts': counts,
    'steps': found.steps,
    'length': lengths({'params': found.params}),
    'distance': _distances(job.distance, before, found.images),
  }
  if job.score:
    cosines = job.score(before), job.score(found.images)
    own = (x[np.arange(len(seeds)), classes] for x in cosines)
    columns['text_before'], columns['text_after'] = own
    columns['text_agrees'] = cosines[1].argmax(1) == classes
  # ---- a seed at a time
  results = []
  for i in range(len(seeds)):
    row = {name: x[i].item() for name, x in columns.items()}
    row |= _verdicts({name: Verdict(*(x[i] for x in both)) for name, both in verdicts.items()}, row)
    row['transfer'] = {
      name: {'said_before': int(a[i]), 'said': int(b[i])} for name, (a, b) in told.items()
    }
    if job.names:
      row['amounts'] = dict(zip(job.names, found.params[i].tolist()))
      strengths = [None if np.isnan(x) else x for x in flips[i].tolist()]
      row['flips'] = dict(zip(job.names, strengths))
    arrays = {'before': before[i], 'after': found.images[i], 'start': ws[i]}
    results.append((row, arrays, {what: x[i] for what, x in found.moves.items()}))
  return results


def _run(job, search, seeds, out, progress):
  """Goes through a Search -> adversarial.Found; between two steps it leaves if it is to stop."""
  for step in range(job.settings.steps):
    if job.stop:
      job.stop.leave(f'{out} has the seeds that are finished')
    losses = search.advance()
    if not np.isfinite(losses.loss[~search.done]).all():
      raise NonFiniteError(f'seeds {seeds[0]} ...: the loss is not finite; try a smaller --lr')
    waiting = (~search.done).sum()
    progress.update(0, f'step {step + 1} of {job.settings.steps}, {waiting} still searched')
    if not waiting:
      break
  return search.result()


class Verdict(NamedTuple):
  """Classes of images, [N] or one."""

  said: np.ndarray  # by the classifier
  seen: np.ndarray  # by the judge


def _verdicts(verdicts, row):
  """What a row says of the verdicts on what was found, and on the controls."""
  found = {}
  for name, (said, seen) in verdicts.items():
    success = row['counts'] and adversarial_rates.fooled(row['class'], said, seen)
    found[name] = {'said': int(said), 'seen': int(seen), 'success': bool(success)}
  return found.pop('found') | found


def _classes(classifier, images):
  return classifier.predict(images).argmax(1)


def _predict(job, images):
  """The Verdict on images, [N]."""
  return Verdict(_classes(job.models.classifier, images), _classes(job.models.judge, images))


def _flips(job, ws, classes, basis, counts, show):
  """Of images that count the smallest amount of each direction that fools, [N,K]; else NaN."""
  some = np.flatnonzero(counts)

  def is_fooled(image, number, amounts):
    found = []
    # In parts, as the moves of all of them may be larger than the memory.
    for first in range(0, len(image), 1024):
      rows, columns = some[image[first : first + 1024]], number[first : first + 1024]
      scale = np.float32(amounts[first : first + 1024])
      moves = {
        what: x[rows, columns] * scale.reshape(-1, *[1] * (x.ndim - 2)) for what, x in basis.items()
      }
      verdict = _predict(job, show(ws[rows], moves))
      found.append(adversarial_rates.fooled(classes[rows], *verdict))
    return np.concatenate(found)

  flips = np.full((len(counts), len(job.names)), np.nan)
  if len(some):
    flips[some] = adversarial_rates.flips(is_fooled, len(some), len(job.names), job.settings.most)
  return flips


def _distances(distance, before, after):
  """Distances [N] of images uint8 [N,H,W,C]."""
  features = [
    distance.features(distance.params, project.view(from_uint8(x))) for x in (before, after)
  ]
  return np.asarray(distance.compare(distance.params, *features))
