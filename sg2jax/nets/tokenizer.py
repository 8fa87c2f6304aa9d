"""CLIP's tokenizer: texts to rows of numbers, by byte-pair encoding [Sennrich et al. 2016].

The vocabulary is OpenAI's (`vocabulary` in sg2jax.clip reads it): 256 bytes, the same at the end of
a word, 48,894 merges of two entries, start and end.
"""

from collections.abc import Iterable, Sequence
import functools
import html
import itertools

import numpy as np

from sg2jax.faults import UsageError

MERGES = 48_894
CONTEXT = 77  # tokens of a text, start and end among them
_WORD_END = '</w>'
_SPECIAL = ('<|startoftext|>', '<|endoftext|>')
_PIECES = (
  r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|"
  r'\p{L}+|\p{N}|[^\s\p{L}\p{N}]+'
)


def _byte_characters():
  """The printable character that stands for each byte, in the order of the vocabulary."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  shown = {byte: chr(byte) for byte in printable}
  return shown | {byte: chr(256 + i) for i, byte in enumerate(others)}


def clean(text: str) -> str:
  """The text without what differs between sources: mended encodings, entities, blanks, case.

  Raises: UsageError if ftfy isn't installed.
  """
  text = _library('ftfy').fix_text(text)
  text = html.unescape(html.unescape(text))
  return ' '.join(text.split()).lower()


def _library(name):
  try:
    return __import__(name)
  except ImportError:
    raise UsageError(
      f'the package {name}, which CLIP\'s tokenizer needs, is missing: pip install "sg2jax[text]"'
    ) from None


class Tokenizer:
  """Texts to tokens. merges: MERGES pairs of entries, in order of rank."""

  def __init__(self, merges: Sequence[tuple[str, str]]) -> None:
    self._shown = _byte_characters()
    characters = list(self._shown.values())
    entries = characters + [character + _WORD_END for character in characters]
    entries += [first + second for first, second in merges]
    entries += _SPECIAL
    self._ids = {entry: i for i, entry in enumerate(entries)}
    self._ranks = {pair: rank for rank, pair in enumerate(merges)}
    self._pattern = _library('regex').compile(_PIECES, _library('regex').IGNORECASE)
    self._of_word = functools.lru_cache(100_000)(self._merge)
    self.start, self.end = (self._ids[special] for special in _SPECIAL)

  def encode(self, text: str) -> list[int]:
    """Tokens of a text, without start and end."""
    ids = []
    for piece in self._pattern.findall(clean(text)):
      ids += [self._ids[piece]] if piece in _SPECIAL else self._of_word(piece)
    return ids

  def __call__(
    self, texts: Sequence[str], context: int = CONTEXT, truncate: bool = False
  ) -> np.ndarray:
    """int32 [N,context]: start, tokens, end, zeros.

    truncate: whether of a text that is too long the beginning is taken.

    Raises: UsageError for one that is too long, naming it and its length.
    """
    rows = np.zeros((len(texts), context), np.int32)
    for row, text in zip(rows, texts):
      ids = [self.start, *self.encode(text), self.end]
      if len(ids) > context:
        if not truncate:
          raise UsageError(
            f'{text[:60]!r} has {len(ids)} tokens with start and end, and CLIP takes {context}: '
            'shorten it'
          )
        ids = [*ids[: context - 1], self.end]
      row[: len(ids)] = ids
    return rows

  def entries(self, ids: Iterable[int]) -> list[str]:
    """The entries of the vocabulary with these numbers, sorted."""
    ids = set(ids)
    return sorted(entry.removesuffix(_WORD_END) for entry, i in self._ids.items() if i in ids)

  def _merge(self, piece):
    """Tokens of a word: its bytes, of which neighbours are merged as long as a merge applies."""
    *word, last = (self._shown[byte] for byte in piece.encode())
    word.append(last + _WORD_END)
    while len(word) > 1:
      rank, pair = min((self._ranks.get(pair, MERGES), pair) for pair in itertools.pairwise(word))
      if rank == MERGES:
        break
      word = _joined(word, pair)
    return [self._ids[entry] for entry in word]


def _joined(word, pair):
  """The word with each occurrence of a pair, from the left, made one."""
  joined = []
  i = 0
  while i < len(word):
    if tuple(word[i : i + 2]) == pair:
      joined.append(word[i] + word[i + 1])
      i += 2
    else:
      joined.append(word[i])
      i += 1
  return joined
