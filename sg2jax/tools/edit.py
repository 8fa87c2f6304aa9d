"""Edits images by text, or by a channel of style space.

python -m sg2jax.tools.edit text --checkpoint=RUN --clip=digits --source="a thin seven"
--target="a thick seven" [--method=global|optimize] [--strength=3] [--seeds=0-7] [--out=DIR] ...
python -m sg2jax.tools.edit channel --checkpoint=RUN --channel=b8.conv0.12 [--strength=3] ...

Writes DIR/seed0000.png ... (edited), DIR/before/seed0000.png ..., DIR/sheet.png (both, side by
side), DIR/directions.npz (what moved them: for --edit of `generate` and `video`) and DIR/edit.json.
--latents=FILE-OR-FOLDER edits what `project` found instead of seeds. The methods of StyleCLIP are
  global    directions in style space that a pair of texts says, the same for all images. What each
            channel does is measured once for a network and a CLIP: minutes for a small network,
            hours for one of 1024 px; stop it any way you like, the same command goes on. Then any
            texts take seconds. DIR/strengths.png has several strengths and numbers of channels.
  optimize  a search for each image. Without --source it only goes towards --target.
CLIP is `digits`, the package's own for the bundled digits; clip-vit-b-32 or another of OpenAI's
(python -m sg2jax.tools.fetch_weights clip-vit-b-32); or a file. docs/editing.md says more.
"""

from collections.abc import Sequence
import json
import pathlib
from typing import NamedTuple

from absl import flags
import numpy as np
from tqdm import tqdm

from sg2jax import cli, files, sampler
from sg2jax import clip as clips
from sg2jax.edit import (
  channel_effects,
  direction,
  directions,
  optimize,
  text_directions,
  text_losses,
)
from sg2jax.edit.direction import Direction
from sg2jax.faults import UsageError
from sg2jax.locks import locked
from sg2jax.nets import clip as clip_nets
from sg2jax.signals import Stop
from sg2jax.tools import flags as shared
from sg2jax.tools import latents, sheets

KINDS = ('text', 'channel')
METHODS = ('global', 'optimize')
STRENGTH = 3.0  # at which --l2_lambda is as it says
SHOWN = 16  # images on sheet.png
GRID_CHANNELS = (5, 10, 20, 50, 100, 200)  # of strengths.png
GRID_STEPS = 7  # strengths of it, from the negative to the positive one


def define_flags() -> None:
  """The command line."""
  shared.define_image_flags()
  latents.define_flags()
  shared.define_psi()
  shared.define_batch()
  shared.define_out('edits')
  what = 'How far: of directions the amount; optimize: its penalty is divided by its square.'
  shared.define_finite('strength', STRENGTH, what)
  flags.DEFINE_string('source', '', 'text: what the images show, such as "a thin seven".')
  flags.DEFINE_string('target', '', 'text: what they are to show.')
  flags.DEFINE_enum('method', 'global', METHODS, 'text: see above.')
  flags.DEFINE_string('clip', 'digits', f'{", ".join(clips.NAMES)}, or a file of weights.')
  what = 'Of the transformers in a file of --clip that does not tell it.'
  flags.DEFINE_enum('clip_activation', None, clip_nets.ACTIVATIONS, what)
  what = 'global: the least relevance of a channel that is moved, such as 0.15.'
  flags.DEFINE_float('beta', None, what, lower_bound=0)
  what = (
    'global: how many channels are moved; default: one of 32. Few for colours, more for shapes.'
  )
  flags.DEFINE_integer('channels', None, what, lower_bound=1)
  flags.mark_flags_as_mutual_exclusive(['beta', 'channels'])
  default = channel_effects.Settings()
  flags.DEFINE_integer('images', default.images, 'global: on which channels are measured.', 1)
  flags.DEFINE_integer('samples', default.latents, 'global: latents for their deviation.', 2)
  search = optimize.Settings()
  flags.DEFINE_integer('steps', search.steps, 'optimize: of the search.', lower_bound=1)
  flags.DEFINE_enum('space', search.space, optimize.SPACES, 'optimize: what is searched.')
  shared.define_finite('lr', search.lr, 'optimize: learning rate, at its largest.', lower_bound=0)
  what = 'optimize: weight of the sum of squares of what is added.'
  shared.define_finite('l2_lambda', search.l2_lambda, what, lower_bound=0)
  flags.DEFINE_string('channel', '', 'channel: LAYER.NUMBER, such as b8.conv0.12.')


class Edited(NamedTuple):
  """What moves images, and how they come out."""

  moves: list[Direction]  # of all, or of each
  ws: np.ndarray  # [N,num_ws,w_dim], moved
  styles: dict[str, np.ndarray]  # {layer: [N,C]} that are added
  before: np.ndarray  # uint8 [N,H,W,C]
  after: np.ndarray


def main(argv: list[str]) -> None:
  """Checks, edits, writes, prints."""
  # ---- what is asked, before anything is loaded
  asked = flags.FLAGS
  kind = cli.choice(argv, 'KIND', KINDS)
  check(kind)
  with Stop() as stop:
    clip = clips.load(asked.clip, asked.clip_activation or '') if kind == 'text' else None
    net = sampler.load(asked.checkpoint)
    given = latents.read(net)
    out = shared.out_folder(net, 'edits')
    with locked(out, 'out'):
      # ---- the edit
      if kind == 'channel':
        layer, _, number = asked.channel.rpartition('.')
        moves = [directions.channel(net, layer, int(number))]
      elif asked.method == 'global':
        moves = [_global(net, clip, stop)]
      else:
        moves = _optimized(net, clip, given, stop)
      strength = 1.0 if kind == 'text' and asked.method == 'optimize' else asked.strength
      edited = apply(net, given, moves, strength)
      # ---- files
      document = judge(clip, given, edited) if clip else {'images': _rows(given, edited)}
      document |= {'checkpoint': net.hash(), 'strength': asked.strength}
      write(out, net, given, edited, document)
      if kind == 'text' and asked.method == 'global':
        write_strengths(out, net, clip, given)
  print('\n'.join([net.title, *summary(document), f'results in {out}/']))


def check(kind: str) -> None:
  """Raises UsageError if the flags of a kind are missing."""
  asked = flags.FLAGS
  if kind == 'channel':
    layer, _, number = asked.channel.rpartition('.')
    if not layer or not number.isdecimal():
      raise UsageError(f'--channel={asked.channel} must be LAYER.NUMBER, such as b8.conv0.12')
  elif not asked.target:
    raise UsageError('say what the images are to show: --target="a thick seven"')
  elif asked.method == 'global' and not asked.source:
    raise UsageError('say what they show now, --source="a thin seven", or take --method=optimize')
  elif asked.method == 'optimize' and not asked.strength > 0:
    raise UsageError(f'--strength={asked.strength:g} of a search must be more than 0')


# ---- the edit


def _global(net, clip, stop):
  asked = flags.FLAGS
  settings = channel_effects.Settings(images=asked.images, latents=asked.samples)
  return text_directions.direction(
    net,
    asked.source,
    asked.target,
    clip,
    asked.beta,
    asked.channels,
    settings,
    asked.batch or None,
    stop,
  )


def _optimized(net, clip, given, stop):
  """A Direction of each latent."""
  asked = flags.FLAGS
  weight = asked.l2_lambda * (STRENGTH / asked.strength) ** 2
  settings = optimize.Settings(asked.steps, asked.space, asked.lr, weight)
  goal = clip.text(asked.target)
  if asked.source:
    # Away from what there is: what both texts say, such as the digit, counts for nothing.
    goal = text_directions.between(clip, asked.source, asked.target)
  tower = text_losses.Tower(clip.params, clip.architecture)
  about = {
    'source': asked.source,
    'target': asked.target,
    'clip': clip.name,
    'clip_hash': clip.hash,
  } | settings._asdict()
  moves = []
  batch = asked.batch or net.batch
  for first in range(0, len(given.ws), batch):
    names = given.names[first : first + batch]
    ws = given.ws[first : first + batch]
    optimizer = optimize.Optimizer(net, ws, tower, goal[None], settings)
    label = f'{first + 1}-{first + len(ws)} of {len(given.ws)}'
    for _ in tqdm(range(settings.steps), label, unit=' steps', leave=False, disable=None):
      if stop:
        stop.leave('nothing is written before all images are edited')
      losses = optimizer.advance()
      np.asarray(losses.loss)  # so that a signal waits for one step, not for many
    found = optimizer.result()
    moves += [found.direction(net, i, name, **about) for i, name in enumerate(names)]
  return moves


def apply(
  net: sampler.Sampler, given: latents.Latents, moves: Sequence[Direction], strength: float
) -> Edited:
  """Images of latents without moves and with them: one for all, or one for each."""
  noise, batch = flags.FLAGS.noise, flags.FLAGS.batch or None
  before = net.images(given.ws, noise, given.seeds, batch)
  if len(moves) == 1:
    edit = [(moves[0], strength)]
  else:
    # Each at its own image only.
    each = strength * np.eye(len(moves), dtype=np.float32)
    edit = list(zip(moves, each))
  ws, styles = direction.apply(net, edit, given.ws)
  after = net.images(given.ws, noise, given.seeds, batch, edit)
  return Edited(list(moves), ws, styles, before, after)


# ---- what came of it


def judge(clip: clips.Clip, given: latents.Latents, edited: Edited) -> dict:
  """What edit.json says of an edit by text: of each image, and the means.

  Scores are cosines. The rank is that of the target among `clip.neutral`: 1 means that no other of
  these texts fits the image better.
  """
  asked = flags.FLAGS
  texts = [asked.target, *([asked.source] if asked.source else [])]
  wanted = np.stack([clip.text(x) for x in texts])  # [1|2,E]
  others = np.stack([clip.text(x) for x in clip.neutral if x != asked.target])
  rows = _rows(given, edited)
  for when, images in (('before', edited.before), ('after', edited.after)):
    seen = clip.images(images)
    scores = seen @ wanted.T
    ranks = 1 + (seen @ others.T > scores[:, :1]).sum(1)
    for row, score, rank in zip(rows, scores, ranks):
      row[when] = dict(zip(('target', 'source'), map(float, score))) | {'rank': int(rank)}
  mean = {
    when: {name: float(np.mean([row[when][name] for row in rows])) for name in rows[0][when]}
    for when in ('before', 'after')
  }
  about = edited.moves[0].about
  return {'about': about, 'mean': mean, 'neutral': len(others), 'images': rows}


def _rows(given, edited):
  """Of each image its name and how far it was moved: in w, in styles, in levels of pixels."""
  ws = np.sqrt(((edited.ws - given.ws) ** 2).mean((1, 2)))
  styles = np.zeros(len(ws))
  if edited.styles:
    styles = np.sqrt(sum((x**2).sum(1) for x in edited.styles.values()))
  pixels = np.abs(edited.after.astype(float) - edited.before).mean((1, 2, 3))
  return [
    {'name': name, 'moved': {'ws': float(a), 'styles': float(b), 'pixels': float(c)}}
    for name, a, b, c in zip(given.names, ws, styles, pixels)
  ]


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
  if 'channels' in document.get('about', {}):
    about = document['about']
    lines.append(f'{about["channels"]} channels moved, of relevance {about["beta"]:.2g} or more')
  return lines


def write(
  out: pathlib.Path,
  net: sampler.Sampler,
  given: latents.Latents,
  edited: Edited,
  document: dict,
) -> None:
  """The files of an edit; edit.json is the last."""
  for name, before, after in zip(given.names, edited.before, edited.after):
    files.write_atomic(out / 'before' / f'{name}.png', files.png(before))
    files.write_atomic(out / f'{name}.png', files.png(after))
  pairs = np.stack([edited.before[:SHOWN], edited.after[:SHOWN]])  # [2,N,H,W,C]
  sheets.write_sheet(
    out / 'sheet.png',
    pairs,
    ['before', 'after'],
    [name.removeprefix('seed') for name in given.names[:SHOWN]],
  )
  direction.write(out / 'directions.npz', edited.moves)
  arrays = {f'styles/{layer}': x for layer, x in edited.styles.items()}
  files.write_atomic(out / 'latents.npz', files.npz(ws=edited.ws, names=given.names, **arrays))
  files.write_atomic(out / 'edit.json', json.dumps(document, indent=1) + '\n')


def write_strengths(
  out: pathlib.Path, net: sampler.Sampler, clip: clips.Clip, given: latents.Latents
) -> None:
  """strengths.png: the first image by several strengths (columns) and numbers of channels."""
  asked = flags.FLAGS
  settings = channel_effects.Settings(images=asked.images, latents=asked.samples)
  effects = channel_effects.measure(net, clip, settings)  # out of the cache by now
  total = len(effects.delta_i)
  numbers = [*(n for n in GRID_CHANNELS if n < total), total]
  amounts = np.linspace(-abs(asked.strength), abs(asked.strength), GRID_STEPS)
  rows = []
  for number in numbers:
    move = text_directions.direction(
      net, asked.source, asked.target, clip, channels=number, settings=settings
    )
    ws = np.repeat(given.ws[:1], len(amounts), 0)
    seeds = [given.seeds[0]] * len(amounts)
    rows.append(net.images(ws, asked.noise, seeds, asked.batch or None, [(move, amounts)]))
  names = [f'{number} channels' for number in numbers]
  sheets.write_sheet(
    out / 'strengths.png', np.stack(rows), names, [f'{amount:+.2g}' for amount in amounts]
  )


if __name__ == '__main__':
  define_flags()
  cli.run(main, positional=1)
