"""Extension of Griffe: our docstrings and comments as the Markdown that mkdocstrings takes.

A docstring of ours is plain text with names in backticks, Google's sections, and now and then
indented lines that are read as they stand. As Markdown, a shape would be a link, `*` emphasis, and
lines would run into each other. What is said of a constant or a field stands in a comment beside or
above it, which Griffe doesn't look at.
"""

import ast
import io
import itertools
import re
import textwrap
import tokenize

import griffe

SECTION = re.compile(r'(Args|Returns|Raises|Yields|Attributes):$')
ITEM = re.compile(r'  ((?:, |\*{0,2}\w[\w.]*)+): (.*)')  # of a section: what is described, and how
COLUMNS = re.compile(r'\S  +\S|^ {4}')  # words below each other
NAMED = re.compile(r'\w+(, \w+)*: ')  # what a line is about
HANGING = re.compile(r'[-*] |\w[\w. ,]*: ')  # what such a line begins, the indented ones below end
RECORDS = {'NamedTuple', 'nn.Module', 'Module'}
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
  if is_code('\n'.join(lines)):
    return fenced(lines, 'python')
  if len(lines) > 1 and all(COLUMNS.search(line) for line in lines):
    return fenced(lines, 'text')
  made, items = [], []
  for indented, group in itertools.groupby(lines, lambda line: line.startswith(' ')):
    if not indented:
      items += group
    elif items and HANGING.match(items[-1]) and not items[-1].endswith(':'):
      items[-1] += ' ' + ' '.join(line.strip() for line in group)
    else:
      made += [*listed(items), *fenced(list(group), 'text')]
      items = []
  return made + listed(items)


def listed(lines: list[str]) -> list[str]:
  """Lines as Markdown; where each begins with what it is about, or `- `, as a list."""
  if len(lines) > 1 and all(NAMED.match(line) for line in lines):
    lines = [f'- {line}' for line in lines]
  made = []
  for line in lines:
    made += [''] if line.startswith('- ') else []  # or it would not be a list
    made.append(literal(line).replace('Raises: ', '**Raises:** '))
  return made


def section(lines: list[str]) -> list[str]:
  """A section: one item a name, as Griffe reads it, and after it lines that describe no name."""
  if lines[0] in ('Returns:', 'Yields:'):  # a colon in it would be taken for the end of a type
    return [f'**{lines[0]}**', *(literal(line.strip()) for line in lines[1:]), '']
  items, rest = [], []
  for line in lines[1:]:
    item = ITEM.fullmatch(line)
    if item:
      items.append((item[1].split(', '), [literal(item[2])]))
    elif line.startswith('   ') and items:
      items[-1][1].append(literal(line))
    elif line:
      rest.append(literal(line.strip()))
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
    if token.type == tokenize.COMMENT and not token.string.startswith('# fmt:'):
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
  """Markdown, with a section of attributes for those that have a comment."""
  before, _, after = text.partition('Attributes:\n')
  there = {item[1] for item in map(ITEM.match, after.splitlines()) if item}
  lines = []
  for name, member in described.members.items():
    if member.is_alias or not member.is_attribute or name.startswith('_') or name in there:
      continue
    said = said_of(member, found)
    value = '' if member.value is None else str(member.value)
    if said and not member.docstring:
      shown = f'`{value}`: ' if described.is_module and 0 < len(value) <= 24 else ''
      lines.append(f'  {name}: {shown}{literal(said)}')
  if not lines:
    return text
  return '\n'.join([before.rstrip(), '', 'Attributes:', *lines, after])


def add_signature(described: griffe.Class) -> None:
  """What makes one: of named tuples and Flax's modules, too, which Griffe doesn't know."""
  if not RECORDS & {str(base) for base in described.bases}:
    return
  kind = griffe.ParameterKind.positional_or_keyword
  fields = [griffe.Parameter('self', kind=kind)]
  for name, x in described.members.items():
    if x.is_attribute and x.annotation and 'property' not in x.labels:
      fields.append(griffe.Parameter(name, annotation=x.annotation, kind=kind, default=x.value))
  made = griffe.Function('__init__', parameters=griffe.Parameters(*fields), parent=described)
  described.set_member('__init__', made)


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
      if described.is_class:
        add_signature(described)
      if described.is_module or described.is_class:
        text = with_attributes(text, described, found)
      described.docstring.value = text
    for member in described.members.values():
      if not member.is_alias:
        self._visit(member, found)
