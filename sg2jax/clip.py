"""CLIP ready to use: texts and pictures to vectors whose product says how well they fit.

Networks are in nets/clip.py; here is what needs files.
"""

import functools
import gzip
import importlib.resources

import numpy as np
from PIL import Image

from sg2jax.nets.tokenizer import MERGES, Tokenizer

VOCABULARY = 'bpe_simple_vocab_16e6.txt.gz'


@functools.cache
def tokenizer() -> Tokenizer:
  """The tokenizer with OpenAI's vocabulary, which the package has (MIT licence, beside it)."""
  data = importlib.resources.files('sg2jax.nets').joinpath(VOCABULARY).read_bytes()
  # A line of comment first; after the merges come some that aren't used.
  lines = gzip.decompress(data).decode().splitlines()[1 : 1 + MERGES]
  return Tokenizer([tuple(line.split()) for line in lines])


def square(picture: Image.Image, size: int) -> np.ndarray:
  """A picture as CLIP looks at it: uint8 [size,size,3], of its middle.

  The shorter side becomes `size`, by Pillow's bicubic filter. Grey pictures become RGB.
  """
  width, height = picture.size
  short = min(width, height)
  if short != size:
    scaled = (int(size * width / short), int(size * height / short))
    picture = picture.resize(scaled, Image.Resampling.BICUBIC)
  left, top = (round((side - size) / 2) for side in picture.size)  # halves to even, as there
  picture = picture.crop((left, top, left + size, top + size))
  return np.asarray(picture.convert('RGB'))
