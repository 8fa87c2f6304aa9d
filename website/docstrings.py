"""Extension of Griffe: our docstrings and comments as the Markdown that mkdocstrings takes.

A docstring of ours is plain text with names in backticks, Google's sections, and now and then
indented lines that are read as they stand. As Markdown, a shape would be a link, `*` emphasis, and
lines would run into each other. What is said of a constant or a field stands in a comment beside or
above it, which Griffe doesn't look at.
"""

import ast
import io
import re
import textwrap
import tokenize

import griffe

SECTION = re.compile(r'(Args|Returns|Raises|Yields|Attributes):$')
ITEM = re.compile(r'  ((?:, |\*{0,2}\w[\w.]*)+): (.*)')  # of a section: what is described, and how
HANGING = re.compile(r'[-*] |\w[\w. ,]*: ')  # what such a line begins, the indented ones below end
AS_IT_IS = re.compile(r'(`[^`\n]*`|https?://\S+)')
MARKS = re.compile(r'[\\*\[\]#]|(?<![a-zA-Z0-9])_|_(?![a-zA-Z0-9])')


def literal(text: str) -> str:
  """Plain text as Markdown that shows it so, but for `code` and addresses."""
  parts = AS_IT_IS.split(text)
  for i in range(0, len(parts), 2):
    parts[i] = MARKS.sub(r'\\\g<0>', parts[i].replace('&', '&amp;').replace('<', '&lt;'))
  return ''.join(parts)


def is_code(text: str) -> bool:
  """Whether lines are an example in Python, not words that happen to parse."""
  try:
    body = ast.parse(text).body
  except SyntaxError:
    return False
  telling = [isinstance(getattr(line, 'value', None), ast.Call) for line in body]
  return bool(body) and all(telling)


def fenced(lines: list[str], language: str) -> list[str]:
  return ['', f'```{language}', *textwrap.dedent('\n'.join(lines)).splitlines(), '```', '']


def paragraph(lines: list[str]) -> list[str]:
  """Lines without a blank one among them and outside sections, as Markdown."""
  text = '\n'.join(lines)
  if is_code(textwrap.dedent(text)):
    return fenced(lines, 'python')
  made = []
  while lines:
    end = next((i for i, line in enumerate(lines) if not line.startswith(' ')), len(lines))
    if end:  # indented: as it stands
      made += fenced(lines[:end], 'text')
    else:
      end = next((i for i, line in enumerate(lines[1:], 1) if line.startswith(' ')), len(lines))
      while end < len(lines) and HANGING.match(lines[end - 1]) and not lines[end - 1].endswith(':'):
        lines[end - 1] = f'{lines[end - 1]} {lines.pop(end).strip()}'
        end = next((i for i, line in enumerate(lines[1:], 1) if line.startswith(' ')), len(lines))
      for line in lines[:end]:
        made += [''] if line.startswith('- ') else []  # or it would not be a list
        made.append(literal(line).replace('Raises: ', '**Raises:** '))
    lines = lines[end:]
  return made


def section(lines: list[str]) -> list[str]:
  """A section: one item a name, as Griffe reads it, and after it lines that describe no name."""
  items, rest = [], []
  for line in lines[1:]:
    item = ITEM.fullmatch(line)
    if item:
      items.append((item[1].split(', '), [literal(item[2])]))
    elif line.startswith('   ') and items:
      items[-1][1].append(literal(line))
    elif line:
      rest.append(literal(line.strip()))
  if lines[0] in ('Returns:', 'Yields:'):
    return ['', lines[0], *map(literal, lines[1:]), '']
  made = [f'  {name}: ' + '\n'.join(text) for names, text in items for name in names]
  return ['', lines[0], *made, '', *rest, '']


def markdown(text: str) -> str:
  """A docstring, cleaned of its indentation, as Markdown with Google's sections."""
  made = []
  lines = text.splitlines()
  while lines:
    if SECTION.match(lines[0]):
      end = next((i for i, x in enumerate(lines[1:], 1) if x and not x.startswith(' ')), len(lines))
      made += section(lines[:end])
    else:
      end = next((i for i, x in enumerate(lines) if not x or SECTION.match(x)), len(lines))
      made += [*paragraph(lines[:end]), '']
      end += end < len(lines) and not lines[end]
    lines = lines[end:]
  return re.sub('\n{3,}', '\n\n', '\n'.join(made)).strip()


def comments(source: str) -> dict[int, tuple[bool, str]]:
  """{line: (whether it is alone there, text)} of the comments of a file."""
  found = {}
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      alone = not token.line[: token.start[1]].strip()
      found[token.start[0]] = alone, token.string.lstrip('# ')
  return found


def said_of(attribute: griffe.Attribute, found: dict[int, tuple[bool, str]]) -> str:
  """The comment at the end of an attribute's first or last line, or else the one above it; ''."""
  for line in (attribute.lineno, attribute.endlineno):
    if line in found and not found[line][0]:
      return found[line][1]
  above = []
  line = attribute.lineno - 1
  while line in found and found[line][0] and not found[line][1].startswith('----'):
    above.insert(0, found[line][1])
    line -= 1
  return ' '.join(above)


def with_attributes(text: str, described: griffe.Object, found: dict[int, tuple[bool, str]]) -> str:
  """Markdown, and in its section of attributes those with a comment or in no signature."""
  lines = []
  for name, member in described.members.items():
    if member.is_alias or not member.is_attribute or name.startswith('_') or member.docstring:
      continue
    said = said_of(member, found)
    value = '' if member.value is None else str(member.value)
    shown = f'`{value}`' if 0 < len(value) <= 24 else ''
    # The fields of a dataclass are in its signature.
    is_field = described.is_class and member.annotation and 'dataclass' not in described.labels
    if said or is_field:
      lines.append(f'  {name}: ' + ': '.join(filter(None, (shown, literal(said)))))
  before, _, after = text.partition('Attributes:\n')
  if not lines:
    return text
  return '\n'.join([before.rstrip(), '', 'Attributes:', *lines, after])


class Docstrings(griffe.Extension):
  """Rewrites the docstrings of a package once it is read."""

  def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
    """Of all that is in it."""
    self._visit(pkg, {})

  def _visit(self, described, found):
    if described.is_module:
      found = comments(described.filepath.read_text())
    if described.docstring:
      text = markdown(described.docstring.value)
      if described.is_module or described.is_class:
        text = with_attributes(text, described, found)
      described.docstring.value = text
    for member in described.members.values():
      if not member.is_alias:
        self._visit(member, found)
