"""How names and counts are written in messages and reports, and how names are sorted."""

from collections.abc import Iterable
import re
import unicodedata

_NO_TEXT = ('Cc', 'Cs', 'Zl', 'Zp')  # Unicode categories: controls, surrogates, line separators


def printable(name: str) -> str:
  """A name as it is shown or stored: what is no text, and blanks at its ends, are escaped.

  File names are any bytes; a line of output, the name of a class, and JSON are text.
  """
  shown = ''.join(_escaped(c) if unicodedata.category(c) in _NO_TEXT else c for c in name)
  inner = shown.strip()
  start = len(shown) - len(shown.lstrip())
  head = map(_escaped, shown[:start])
  tail = map(_escaped, shown[start + len(inner) :])
  return ''.join([*head, inner, *tail])


def _escaped(char: str) -> str:
  if char == ' ':
    return '\\x20'
  return char.encode('unicode_escape', 'surrogatepass').decode()


def natural_key(name: str) -> tuple:
  """Key for sorting names: numbers by value, and before text; text by code points."""
  key = []
  for part in re.findall('[0-9]+|[^0-9]+', name):
    if re.match('[0-9]', part):
      digits = part.lstrip('0')
      # By length, then as text: Python refuses to read numbers of more than 4,300 digits.
      key.append((0, len(digits), digits))
    else:
      key.append((1, 0, part))
  return key, name


def enumerate_names(names: Iterable[str], most: int = 20) -> str:
  """'a, b, c', of more than `most` names the first ones and their number."""
  names = list(names)
  listed = ', '.join(map(printable, names[:most]))
  if len(names) > most:
    listed += f' ... ({len(names)} in all)'
  return listed


def count(number: int, noun: str) -> str:
  """'1 image', '2 images', '2 classes'."""
  if number != 1:
    noun += 'es' if noun.endswith('s') else 's'
  return f'{number} {noun}'
