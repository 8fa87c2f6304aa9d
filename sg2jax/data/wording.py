"""How names and counts are written in messages and reports, and how names are sorted."""

from collections.abc import Iterable
import re


def printable(name: str) -> str:
  """A name as it is shown or stored: what can't be shown, and blanks at its ends, are escaped.

  File names are any bytes; a line of output, the name of a class, and JSON are text.
  """
  # Backslashes, too, so that different names stay different.
  shown = ''.join(c if c.isprintable() and c != '\\' else ascii(c)[1:-1] for c in name)
  return re.sub('^ +| +$', lambda blanks: r'\x20' * len(blanks[0]), shown)


def natural_key(name: str) -> tuple:
  """Key for sorting names: numbers by value, and before text; text by code points."""
  key = []
  for number, text in re.findall('([0-9]+)|([^0-9]+)', name):
    digits = number.lstrip('0')
    # By length, then as text: Python refuses to read numbers of more than 4,300 digits.
    key.append((text != '', len(digits), digits or text))
  return key, name


def enumerate_names(names: Iterable[str], most: int = 20) -> str:
  """'a, b, c', of more than `most` names the first ones and their number."""
  names = list(names)
  listed = ', '.join(names[:most])
  if len(names) > most:
    listed += f' ... ({len(names)} in all)'
  return listed
