"""How often edits by text do what the text says, by a judge who took no part.

python -m sg2jax.lab.text_study --checkpoint=RUN [--seeds=0-199] [--out=DIR]

RUN is a network of the bundled digits, such as the quickstart's; CLIP is the package's own. Each
seed's image is edited by eight texts of attributes ("a thin seven" -> "a thick seven"), by both
methods of `tools.edit` with its defaults; and to the word of another digit ("a seven" -> "a
three"), which is farther: with --strength=6 and one of eight channels, or --strength=9 of a search.
What counts: the attribute, measured from pixels, has changed as the text says; the judge, a support
vector machine of scikit-learn on the bundled digits, sees the same digit as before, or the one of
the text. Prints a table, and writes DIR/study.json and DIR/sheet.png.
"""

from collections.abc import Callable, Sequence
import json
import time
from typing import NamedTuple

from absl import flags
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sg2jax import cli, files, grids, sampler
from sg2jax import clip as clips
from sg2jax.edit import (
  adversarial_rates,
  channel_effects,
  digit_classifiers,
  optimize,
  text_directions,
  text_losses,
)
from sg2jax.faults import UsageError
from sg2jax.lab import digit_attributes
from sg2jax.lab import digit_captions as captions
from sg2jax.nets import clip as clip_nets

WORDS = captions.WORDS
METHODS = ('global', 'optimize')
STRENGTH = 3.0  # of `tools.edit`, of an attribute
FAR = {'global': 6.0, 'optimize': 9.0}  # the same to another digit
FAR_SHARE = 8  # one of so many channels is moved there
JUDGE_SIDE = 16  # px that the judge looks at
SHOWN = 10  # images of each row of the sheet


class Edit(NamedTuple):
  """What texts are to do: to an attribute, or (attribute '') to the digit."""

  adjectives: tuple[str, ...] = ()  # of the source and of the target
  attribute: str = ''
  sign: int = 0  # of the wanted change

  def texts(self, digit: int, wanted: int) -> tuple[str, str]:
    """(source, target) for an image of a digit that is to show one."""
    source, target = ([x] for x in self.adjectives) if self.adjectives else ([], [])
    return captions.phrase(source, WORDS[digit], []), captions.phrase(target, WORDS[wanted], [])


# By what is new in the image.
EDITS = {
  pair[1]: Edit(pair, attribute, sign)
  for attribute, low, high in (
    ('thickness', 'thin', 'thick'),
    ('slant', 'left-slanted', 'right-slanted'),
    ('width', 'narrow', 'wide'),
    ('size', 'small', 'large'),
  )
  for pair, sign in (((low, high), 1), ((high, low), -1))
} | {'another digit': Edit()}


def define_flags() -> None:
  """The command line."""
  flags.DEFINE_string('checkpoint', None, 'A workdir, such as runs/quickstart.', required=True)
  flags.DEFINE_string('seeds', '0-199', 'FIRST-LAST: of the images that are edited.')
  flags.DEFINE_string('out', 'text_study', 'Folder of study.json and sheet.png.')
  flags.DEFINE_string('clip', 'digits', 'As of `tools.edit`; it has to know the words of digits.')


def main(_: list[str]) -> None:
  """Edits, judges, prints, writes."""
  asked = flags.FLAGS
  out = cli.folder(asked.out)
  first, dash, last = asked.seeds.partition('-')
  if not (first.isdecimal() and (last.isdecimal() or not dash)):
    raise UsageError(f'--seeds={asked.seeds} must be FIRST-LAST, such as 0-199')
  seeds = range(int(first), int(last or first) + 1)
  if not seeds:
    raise UsageError(f'--seeds={asked.seeds} has no seeds: give the smaller number first')
  began = time.monotonic()
  clip = clips.load(asked.clip)
  net = sampler.load(asked.checkpoint)
  judge = train_judge()
  rows, pictures = study(net, clip, judge.see, seeds)
  document = {
    'checkpoint': net.hash(),
    'clip': clip.hash,
    'seeds': [seeds[0], seeds[-1]],
    'strength': {'attributes': STRENGTH, 'another digit': FAR},
    'search': optimize.Settings()._asdict(),
    'judge_held_out': judge.held_out,
    'seconds': time.monotonic() - began,
    'rows': rows,
  }
  files.write_atomic(out / 'study.json', json.dumps(document, indent=1) + '\n')
  sheet = grids.readable_grid(pictures.reshape(-1, *pictures.shape[2:]), pictures.shape[1])
  files.write_atomic(out / 'sheet.png', files.png(sheet))
  print(
    '\n'.join(
      [
        net.title,
        f'the judge knows {judge.held_out:.1%} of held-out digits',
        *table(rows),
        f'results in {out}/',
      ]
    )
  )


# ---- the judge


class Judge(NamedTuple):
  """Who says which digit an image shows."""

  see: Callable  # images uint8 [N,H,W,C] -> digits [N]
  held_out: float  # how often it is right about digits that it wasn't trained on


def train_judge() -> Judge:
  """A support vector machine of four fifths of the bundled digits.

  Neither the generator's training nor CLIP's knows of it.

  Raises: UsageError: scikit-learn is missing.
  """
  try:
    from sklearn import svm  # here, because nothing else needs it
  except ModuleNotFoundError as e:
    raise UsageError(f'{e}: the judge is one of scikit-learn; pip install "sg2jax[lab]"') from e

  images, labels, held_out = digit_classifiers.samples()
  machine = svm.SVC(C=10).fit(_judged(images[~held_out]), labels[~held_out])

  def see(shown):
    return machine.predict(_judged(shown))

  return Judge(see, float((see(images[held_out]) == labels[held_out]).mean()))


def _judged(images):
  """Images uint8 [N,H,W,C] -> what the judge looks at, [N,D]: the middle square, in grey."""
  grey = clip_nets.raw_view(jnp.asarray(images, jnp.float32), JUDGE_SIDE)[..., 0] / 255
  return np.asarray(grey).reshape(len(images), -1)


def _attributes(images):
  """The attributes of images uint8 [N,H,W,C], grey: {name: [N]}."""
  return digit_attributes.measure(images.mean(-1, keepdims=True))


# ---- the study


def study(
  net: sampler.Sampler,
  clip: clips.Clip,
  see: Callable,
  seeds: Sequence[int],
  effects: channel_effects.Settings = channel_effects.Settings(),
  search: optimize.Settings = optimize.Settings(),
) -> tuple[list[dict], np.ndarray]:
  """(a row of each method and edit, JSON values; pictures uint8 [R,SHOWN,H,W,C]).

  The first row of pictures is before any edit.

  Args:
    net: a network of the bundled digits.
    clip: which knows words of digits and attributes.
    see: of a Judge.
    seeds: of the images.
    effects: how channels are measured.
    search: of method optimize.
  """
  seeds = list(seeds)
  ws = net.ws(seeds)
  before = net.images(ws)
  digits = see(before)
  others = (digits + 1 + np.array(seeds) % 9) % 10  # of each some other digit
  rows, pictures = [], [before[:SHOWN]]
  for method in METHODS:
    for name, edit in tqdm(EDITS.items(), method, leave=False, disable=None):
      wanted = digits if edit.attribute else others
      texts = [edit.texts(digit, other) for digit, other in zip(digits, wanted)]
      strength = STRENGTH if edit.attribute else FAR[method]
      if method == 'global':
        share = None if edit.attribute else FAR_SHARE
        after = by_directions(net, clip, ws, texts, strength, share, effects)
      else:
        # as `tools.edit` has it
        settings = search._replace(l2_lambda=search.l2_lambda * (STRENGTH / strength) ** 2)
        after = by_search(net, clip, ws, texts, settings)
      rows.append({'method': method, 'edit': name} | compare(edit, before, after, wanted, see))
      pictures.append(after[:SHOWN])
  return rows, np.stack(pictures)


def by_directions(
  net: sampler.Sampler,
  clip: clips.Clip,
  ws: np.ndarray,
  texts: Sequence[tuple[str, str]],
  strength: float,
  share: int | None,
  effects: channel_effects.Settings,
) -> np.ndarray:
  """Images of ws [N,num_ws,w_dim], each moved by the direction of its pair of texts.

  share: one of so many channels is moved; None: as many as by default.
  """
  edit = []
  for pair in sorted(set(texts)):
    relevance = text_directions.relevance(net, *pair, clip, effects)
    channels = -(-len(relevance.values) // share) if share else None
    move = relevance.direction(channels=channels)
    edit.append((move, strength * np.array([pair == other for other in texts])))
  return net.images(ws, edit=edit)


def by_search(
  net: sampler.Sampler,
  clip: clips.Clip,
  ws: np.ndarray,
  texts: Sequence[tuple[str, str]],
  settings: optimize.Settings,
) -> np.ndarray:
  """The same by a search for each image."""
  tower = text_losses.Tower(clip.params, clip.architecture)
  goals = {pair: text_directions.between(clip, *pair) for pair in set(texts)}
  goals = np.stack([goals[pair] for pair in texts])
  found = []
  for rows, count in sampler.parts(len(ws), min(len(ws), net.batch)):
    result = optimize.optimize(net, ws[rows], tower, goals[rows], settings)
    found.append(result.images[:count])
  return np.concatenate(found)


def compare(
  edit: Edit, before: np.ndarray, after: np.ndarray, wanted: np.ndarray, see: Callable
) -> dict:
  """What an edit has done to images uint8 [N,H,W,C]: rates with 95 % intervals.

  wanted: digits [N] that are to be seen after it.
  """
  found = {'images': len(after)}
  if edit.attribute:
    a, b = (_attributes(x)[edit.attribute] for x in (before, after))
    found |= adversarial_rates.rate('changed', edit.sign * (b - a) > 0)
    found['median_before'], found['median_after'] = float(np.median(a)), float(np.median(b))
    # what of the spread of images before that is
    found['deviations'] = (found['median_after'] - found['median_before']) / max(a.std(), 1e-9)
  return found | adversarial_rates.rate('digit', see(after) == wanted)


def table(rows: Sequence[dict]) -> list[str]:
  """Lines for people. digit: that of before, or that of the text."""
  lines = [f'{"method":9}{"to":15}{"as the text says":24}digit']
  for row in rows:
    cells = [_cell(row, name) for name in ('changed', 'digit')]
    lines.append(f'{row["method"]:9}{row["edit"]:15}{cells[0]:24}{cells[1]}')
  return lines


def _cell(row, name):
  if f'{name}_rate' not in row:
    return ''
  low, high = row[f'{name}_interval']
  return f'{row[f"{name}_rate"]:.1%} ({low:.1%}-{high:.1%})'


if __name__ == '__main__':
  define_flags()
  cli.run(main)
