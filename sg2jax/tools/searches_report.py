"""What the adversarial searches of a folder come to: figures, samples, a sheet."""

from collections.abc import Sequence
import json
import pathlib

import numpy as np

from sg2jax import files
from sg2jax.edit import adversarial_rates, direction
from sg2jax.tools import searches, sheets

SHOWN = 12  # seeds on the sheet
MAX_BYTES = 2**30  # of the file of a seed


def write(
  job: searches.Job, rows: list[dict], out: pathlib.Path, classes: Sequence[str], truth: str
) -> dict:
  """Writes adversarial.json, adversarial.npz and sheet.png. Returns what the first says.

  Args:
    job: how the seeds were searched.
    rows: of the seeds.
    out: folder of results.
    classes: their names.
    truth: who says what an image shows, 'label' or 'judge'.
  """
  document = adversarial_rates.summarize(rows, job.names, job.settings.most)
  document |= {
    'truth': truth,
    # It may be asked for all the same where there is no other; then it is no independent judge.
    'judge_took_part': job.models.judge.name == 'clip' and bool(job.models.tower),
    'about': job.about,
    'images': rows,
  }
  files.write_atomic(out / 'adversarial.json', json.dumps(document, indent=1) + '\n')
  successes = [row for row in rows if row['success']]
  files.write_atomic(out / 'adversarial.npz', files.npz(**samples(job, successes, out)))
  others = [row for row in rows if row['counts'] and not row['success']]
  shown = [*successes, *others, *(row for row in rows if not row['counts'])][:SHOWN]
  arrays = [read(out, row['seed']) for row in shown]
  pictures = np.stack([[x[name] for x in arrays] for name in ('before', 'after')])
  cols = [f'seed {row["seed"]}\n{classes[row["class"]]}' for row in shown]
  below = [classes[row[key]] for key in ('said_before', 'said') for row in shown]
  sheets.write_sheet(out / 'sheet.png', pictures, ['before,\nclassified as', 'after'], cols, below)
  return document


def read(out: pathlib.Path, seed: int) -> dict[str, np.ndarray]:
  """The arrays in the file of a seed."""
  return files.parse_npz(searches.path(out, seed).read_bytes(), MAX_BYTES, 'fiubU')


def samples(job: searches.Job, successes: list[dict], out: pathlib.Path) -> dict[str, np.ndarray]:
  """Of the successes: `images`, uint8, `labels` (the class), `said`, `seeds`, and where they are.

  That is `ws` [N,num_ws,w_dim], and what is added to styles: `styles/<layer>` [N,C].
  """
  h, w = job.net.generator.synthesis.resolution
  found = {
    'images': np.zeros((0, h, w, job.net.config.data.channels), np.uint8),
    'ws': np.zeros((0, job.net.num_ws, job.net.generator.mapping.w_dim), np.float32),
    'styles': {},
  }
  images, ws, styles = [], [], []
  for row in successes:
    arrays = read(out, row['seed'])
    move = direction.read(searches.path(out, row['seed']))
    moved, offsets = move.move(arrays['start'][None], [1])
    images.append(arrays['after'])
    ws.append(moved[0])
    styles.append(offsets)
  if successes:
    found = {'images': np.stack(images), 'ws': np.stack(ws)}
    layers = {layer: None for each in styles for layer in each}
    found['styles'] = {layer: np.concatenate([each[layer] for each in styles]) for layer in layers}
  offsets = {f'styles/{layer}': x for layer, x in found.pop('styles').items()}
  numbers = {
    name: np.array([row[key] for row in successes], np.int64)
    for name, key in (('labels', 'class'), ('said', 'said'), ('seeds', 'seed'))
  }
  return found | offsets | numbers


def table(document: dict) -> list[str]:
  """Lines for people."""

  def percent(name, found=document):
    if found[f'{name}_rate'] is None:
      return 'none to judge by'
    low, high = found[f'{name}_interval']
    return f'{found[f"{name}_rate"]:.1%} ({low:.1%} to {high:.1%})'

  lines = [
    f'{document["judged"]} of {document["seeds"]} seeds count: classifier and judge are right',
    f'success {percent("success")}, random directions as long {percent("control")} '
    '(95 % intervals)',
    f'the judge rejected {document["rejected"]} more errors of the classifier',
  ]
  if 'span_rate' in document:
    lines.append(f'random amounts as long, of the same directions: {percent("span")}')
  if 'text_rate' in document:
    lines.append(f'to CLIP, of the successes still nearest to the text: {percent("text")}')
  if document['median_length'] is not None:
    lines.append(
      f'medians of successes: length {document["median_length"]:.3g}, distance '
      f'{document["median_distance"]:.3g}, {document["median_steps"]:g} steps'
    )
  for name, text in document.get('texts', {}).items():
    median = '' if text['median'] is None else f', at {text["median"]:.3g} (median)'
    lines.append(f'{name}: alone flips {text["flipped"]} of {text["of"]}{median}')
  for name, found in document['transfer'].items():
    lines.append(f'{name} is fooled by {percent("success", found)} of {found["of"]} samples')
  if document['judge_took_part']:
    lines.append('the judge, CLIP, took part in the search: --clip_lambda=0 keeps it out')
  return lines
