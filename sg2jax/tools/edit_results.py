"""What `edit` writes and says of images that were moved."""

from collections.abc import Iterator, Sequence
import json
import pathlib
from typing import NamedTuple

from absl import flags
import numpy as np
from tqdm import tqdm

from sg2jax import clip as clips
from sg2jax import files, grids, sampler
from sg2jax.edit import direction, text_directions
from sg2jax.edit.direction import Direction, Edit
from sg2jax.tools import sheets, videos
from sg2jax.tools.latents import Latents

SHOWN = 16  # images on sheet.png
GRID_CHANNELS = (5, 10, 20, 50, 100, 200)  # of strengths.png
GRID_STEPS = 7  # strengths of it, from the negative to the positive one
FILMED = 8  # images in strength.mp4
FRAMES = 96
FPS = 24

# What is defined elsewhere is read here; see edit.py.
flags.disclaim_key_flags()


class Edited(NamedTuple):
  """What moves images, and how they come out."""

  moves: list[Direction]  # of all, or of each
  amount: float  # of these
  ws: np.ndarray  # [N,num_ws,w_dim], moved
  styles: dict[str, np.ndarray]  # {layer: [N,C]} that are added
  before: np.ndarray  # uint8 [N,H,W,C]
  after: np.ndarray


def apply(
  net: sampler.Sampler, given: Latents, moves: Sequence[Direction], amount: float
) -> Edited:
  """Images of latents without moves and with them: one for all, or one for each."""
  noise, batch = flags.FLAGS.noise, flags.FLAGS.batch or None
  edit = _each(moves, np.full(len(given.ws), amount))
  ws, styles = direction.apply(net, edit, given.ws)
  before = given.images(net, noise, batch)
  after = given.images(net, noise, batch, edit)
  return Edited(list(moves), amount, ws, styles, before, after)


def _each(moves: Sequence[Direction], amounts: np.ndarray) -> Edit:
  """Moves, one for all or one for each, at the amounts of images [N]."""
  if len(moves) == 1:
    return [(moves[0], amounts)]
  # Each at its own image only.
  return list(zip(moves, np.diag(amounts.astype(np.float32))))


# ---- what came of it


def judge(clip: clips.Clip, given: Latents, edited: Edited) -> dict:
  """What edit.json says of an edit by text: of each image clip.Scores, and the means."""
  asked = flags.FLAGS
  scores = clips.Scores(clip, asked.target, asked.source)
  document = describe(given, edited)
  mean = {}
  for when, images in (('before', edited.before), ('after', edited.after)):
    found = scores(images)
    mean[when] = {name: float(x.mean()) for name, x in found.items()}
    for i, row in enumerate(document['images']):
      row[when] = {name: x[i].item() for name, x in found.items()}
  return document | {'mean': mean, 'neutral': scores.neutral}


def describe(given: Latents, edited: Edited) -> dict:
  """What edit.json says of any edit: how far each image was moved.

  In w, in styles, in levels of pixels; and of pictures where they are and how near a projection is.
  """
  ws = np.sqrt(((edited.ws - given.ws.astype(float)) ** 2).mean((1, 2)))
  styles = np.zeros(len(ws))
  if edited.styles:
    styles = np.sqrt(sum((x.astype(float) ** 2).sum(1) for x in edited.styles.values()))
  pixels = np.abs(edited.after.astype(float) - edited.before).mean((1, 2, 3))
  rows = [
    {'name': name, 'moved': {'ws': float(a), 'styles': float(b), 'pixels': float(c)}}
    for name, a, b, c in zip(given.names, ws, styles, pixels)
  ]
  for row, about in zip(rows, given.about):
    row['picture'] = about
  return {'about': edited.moves[0].about, 'images': rows}


def summary(document: dict) -> list[str]:
  """Lines for people."""
  pixels = np.mean([row['moved']['pixels'] for row in document['images']])
  lines = [f'{len(document["images"])} images edited; pixels changed by {pixels:.1f} of 255']
  if 'mean' in document:
    before, after = document['mean']['before'], document['mean']['after']
    lines += [
      f'{name}: cosine {before[name]:.3f} -> {after[name]:.3f}'
      for name in ('target', 'source')
      if name in before
    ]
    count = document['neutral'] + 1
    lines.append(f'rank of the target among {count}: {before["rank"]:.1f} -> {after["rank"]:.1f}')
  about = document['about']
  if 'channels' in about:
    lines.append(f'{about["channels"]} channels moved, of relevance {about["beta"]:.2g} or more')
  return lines


# ---- files


def write(out: pathlib.Path, given: Latents, edited: Edited, document: dict) -> None:
  """The files of an edit but those of several strengths; edit.json is the last."""
  for name, before, after in zip(given.names, edited.before, edited.after):
    files.write_atomic(out / 'before' / f'{name}.png', files.png(before))
    files.write_atomic(out / f'{name}.png', files.png(after))
  rows = {'before': edited.before, 'after': edited.after}
  if given.pictures is not None:
    rows = {'picture': given.pictures, 'projection': edited.before, 'edit': edited.after}
  shown = np.stack([images[:SHOWN] for images in rows.values()])  # [2|3,N,H,W,C]
  names = [name.removeprefix('seed') for name in given.names[:SHOWN]]
  sheets.write_sheet(out / 'sheet.png', shown, list(rows), names)
  direction.write(out / 'directions.npz', edited.moves)
  arrays = {f'styles/{layer}': x for layer, x in edited.styles.items()}
  files.write_atomic(out / 'latents.npz', files.npz(ws=edited.ws, names=given.names, **arrays))
  files.write_atomic(out / 'edit.json', json.dumps(document, indent=1) + '\n')


def write_strengths(
  out: pathlib.Path,
  net: sampler.Sampler,
  given: Latents,
  relevance: text_directions.Relevance,
  strength: float,
) -> None:
  """strengths.png: the first image by several strengths (columns) and numbers of channels."""
  asked = flags.FLAGS
  total = len(relevance.values)
  numbers = [*(n for n in GRID_CHANNELS if n < total), total]
  amounts = np.linspace(-abs(strength), abs(strength), GRID_STEPS)
  first = given.take([0] * GRID_STEPS)
  rows = []
  for number in numbers:
    move = relevance.direction(channels=number)
    rows.append(first.images(net, asked.noise, asked.batch or None, [(move, amounts)]))
  names = [f'{number} channels' for number in numbers]
  sheets.write_sheet(
    out / 'strengths.png', np.stack(rows), names, [f'{amount:+.2g}' for amount in amounts]
  )


def write_video(out: pathlib.Path, net: sampler.Sampler, given: Latents, edited: Edited) -> None:
  """strength.mp4: the first images from the strength's negative to it and back."""
  shown = given.take(range(min(FILMED, len(given.ws))))
  frames = _frames(net, shown, edited.moves[:FILMED], edited.amount)
  videos.write_video(
    out / 'strength.mp4', tqdm(frames, 'video', FRAMES, unit=' frames', disable=None), FPS
  )


def _frames(net, given, moves, amount) -> Iterator[np.ndarray]:
  asked = flags.FLAGS
  # from -1, by 1 in the middle, nearly back: the first frame follows on the last
  for share in 1 - 2 * np.abs(1 - 2 * np.arange(FRAMES) / FRAMES):
    edit = _each(moves, np.full(len(given.ws), share * amount))
    made = given.images(net, asked.noise, asked.batch or None, edit)
    yield grids.image_grid(made, min(len(made), 4))
