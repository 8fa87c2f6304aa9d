"""Pictures of digits and what can be said of them: what the tiny CLIP learns from."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from sg2jax.edit.digit_classifiers import WORDS
from sg2jax.lab import digit_attributes

RESOLUTION = 32
# Of each attribute, what is said of the lowest third of the digits of a class, of the middle third
# and of the highest: before the noun, or behind it.
PHRASES = {
  'thickness': (
    (('thin', 'light', 'fine', 'skinny'), ('with thin strokes', 'drawn with a fine pen')),
    ((), ()),
    (('thick', 'bold', 'heavy', 'fat'), ('with thick strokes', 'drawn with a thick pen')),
  ),
  'slant': (
    (('left-slanted', 'left-leaning'), ('slanted to the left', 'leaning left', 'slanted left')),
    (('upright', 'straight', 'vertical'), ('that stands upright',)),
    (
      ('right-slanted', 'right-leaning'),
      ('slanted to the right', 'leaning right', 'slanted right'),
    ),
  ),
  'width': (
    (('narrow', 'slim'), ('that is narrow',)),
    ((), ()),
    (('wide', 'broad'), ('that is wide',)),
  ),
  'size': (
    (('small', 'little', 'tiny'), ('that is small',)),
    ((), ()),
    (('large', 'big', 'huge'), ('that is large',)),
  ),
}
# The network's own; a text goes into each of them, and the mean counts.
TEMPLATES = (
  '{}',
  'a picture of {}',
  'an image of {}',
  'a photo of {}',
  'a drawing of {}',
  'a scan of {}',
  'this is {}',
  'there is {}',
  'somebody wrote {}',
  '{} written by hand',
  'a handwritten sign: {}',
  'white on black, {}',
)
NOUNS = (
  '{word}',
  '{word}',
  '{number}',
  '{number}',
  'digit {word}',
  'digit {number}',
  'number {word}',
)
ANY = ('digit', 'number', 'handwritten digit')
UNSAID = -1


class Pictures(NamedTuple):
  """Pictures and their facts."""

  images: np.ndarray  # uint8 [N,32,32,1]
  facts: np.ndarray  # int [N,5]: digit 0..9, and of each attribute the third, 0..2


def facts_of(images: np.ndarray, labels: np.ndarray, edges: np.ndarray) -> np.ndarray:
  """Facts [N,5] of images uint8 [N,H,W,1]; edges [10,4,2]: of thirds, see `thirds`."""
  measured = digit_attributes.measure(images)
  found = [labels]
  for values, bounds in zip(measured.values(), np.moveaxis(edges[labels], 1, 0)):
    found.append((values[:, None] > bounds).sum(1))
  return np.stack(found, 1).astype(np.int32)


def thirds(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Of each class and attribute where the middle third begins and ends: [10,4,2]."""
  measured = digit_attributes.measure(images)
  return np.array(
    [
      [np.quantile(values[labels == k], (1 / 3, 2 / 3)) for values in measured.values()]
      for k in range(10)
    ]
  )


# ---- more pictures


def vary(image: np.ndarray, draws: np.random.Generator) -> np.ndarray:
  """A picture sheared, scaled, moved, bent, blurred, with thicker or thinner strokes; [32,32,1]."""
  middle = (RESOLUTION - 1) / 2
  wide, high = draws.uniform(0.85, 1.3, 2)  # of what is seen: larger ones shrink the digit
  shear = draws.uniform(-0.45, 0.45)
  x, y = middle + draws.uniform(-1.5, 1.5, 2)
  # Pillow asks for the place in the old picture of each place in the new one.
  matrix = (wide, shear, x - wide * middle - shear * middle, 0, high, y - high * middle)
  picture = Image.fromarray(image[:, :, 0]).transform(
    (RESOLUTION, RESOLUTION), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
  )
  if draws.random() < 0.5:
    picture = _bent(picture, draws)
  filtered = picture.filter(draws.choice([ImageFilter.MaxFilter(3), ImageFilter.MinFilter(3)]))
  picture = Image.blend(picture, filtered, draws.uniform(0, 0.7))
  if draws.random() < 0.3:
    picture = picture.filter(ImageFilter.GaussianBlur(draws.uniform(0.3, 1.2)))
  return np.asarray(picture)[:, :, None]


def _bent(picture, draws):
  """A picture whose parts are moved against each other, as generators bend strokes."""
  cells = 4
  edges = np.linspace(0, RESOLUTION, cells + 1).round().astype(int)
  y, x = np.meshgrid(edges, edges, indexing='ij')
  places = np.stack([x, y], -1).astype(float)  # [5,5,2] of corners
  places[1:-1, 1:-1] += draws.uniform(-1.5, 1.5, (cells - 1, cells - 1, 2))
  mesh = []
  for i in range(cells):
    for j in range(cells):
      box = (edges[j], edges[i], edges[j + 1], edges[i + 1])
      # the corners in Pillow's order: upper left, lower left, lower right, upper right
      corners = places[[i, i + 1, i + 1, i], [j, j, j + 1, j + 1]]
      mesh.append((tuple(map(int, box)), tuple(corners.ravel())))
  return picture.transform(picture.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def varied(
  images: np.ndarray, labels: np.ndarray, edges: np.ndarray, copies: int, seed: int
) -> Pictures:
  """The pictures and so many variations of each."""
  draws = np.random.default_rng(seed)
  more = [vary(image, draws) for _ in range(copies) for image in images]
  images = np.concatenate([images, np.stack(more)])
  labels = np.tile(labels, 1 + copies)
  return Pictures(images, facts_of(images, labels, edges))


# ---- captions


def caption(facts: np.ndarray, draws: np.random.Generator) -> tuple[str, np.ndarray]:
  """(a text that is true of a picture with these facts [5], what it says: facts or UNSAID [5])."""
  said = np.full(len(facts), UNSAID, np.int32)
  before, behind = [], []
  for i, phrases in enumerate(PHRASES.values(), 1):
    words, clauses = phrases[facts[i]]
    if words and draws.random() < 0.35:
      said[i] = facts[i]
      if draws.random() < 0.75:
        before.append(draws.choice(words))
      else:
        behind.append(draws.choice(clauses))
  noun = draws.choice(ANY)
  # A text says something.
  if draws.random() < 0.85 or not (before or behind):
    said[0] = facts[0]
    noun = draws.choice(NOUNS).format(word=WORDS[facts[0]], number=facts[0])
  text = phrase(draws.permutation(before), noun, draws.permutation(behind))
  return draws.choice(TEMPLATES).format(text), said


def phrase(before: list[str], noun: str, behind: list[str]) -> str:
  """'a thick left-slanted seven that is wide', with the article that belongs there."""
  words = ' '.join([*before, noun])
  article = 'an' if words[0] in 'aeiou8' and not words.startswith('one') else 'a'
  return ' '.join([article, words, ' and '.join(behind)]).strip()


def neutral() -> list[str]:
  """Texts among which another one can rank: each digit, plain and with each attribute."""
  texts = [phrase([], word, []) for word in WORDS]
  for thirds in PHRASES.values():
    texts += [phrase([thirds[i][0][0]], word, []) for i in (0, 2) for word in WORDS]
  return texts
