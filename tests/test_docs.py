"""Links between pages lead somewhere, nothing in docs/ is without a way to it; commands parse."""

import ast
import pathlib
import re

import jax

from tests import commands

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ('README.md', 'CHANGELOG.md', 'CONTRIBUTING.md')
LINK = re.compile(r'\]\(([^()\s]+)\)')
ELSEWHERE = ('http://', 'https://', 'mailto:')


def prose(text: str) -> str:
  """A page without its blocks and spans of code, whose brackets and # are no links or headings."""
  return re.sub(r'`[^`\n]*`', '', re.sub(r'^```.*?^```', '', text, flags=re.M | re.S))


def anchors(text: str) -> set[str]:
  """What GitHub calls the headings: lower case, hyphens for spaces, no other marks."""
  text = re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)
  headings = re.findall(r'^#+ +(.+?) *$', text, flags=re.M)
  return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def targets(page: pathlib.Path) -> list[tuple[str, pathlib.Path, str]]:
  """(link as written, file, anchor or '') of all that a page links to in this repository."""
  found = []
  for link in LINK.findall(prose(page.read_text())):
    if not link.startswith(ELSEWHERE):
      path, _, anchor = link.partition('#')
      found.append((link, (page.parent / path).resolve() if path else page.resolve(), anchor))
  return found


def broken(pages: list[pathlib.Path]) -> list[str]:
  """'page: link' of each link that leads to no file, or to no heading of it."""
  bad = []
  for page in pages:
    for link, path, anchor in targets(page):
      if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
        bad.append(f'{page.name}: {link}')
  return bad


def pages_of_ours() -> list[pathlib.Path]:
  return [ROOT / name for name in PAGES] + sorted((ROOT / 'docs').rglob('*.md'))


def test_links_lead_somewhere():
  assert broken(pages_of_ours()) == []


def test_every_page_and_picture_of_docs_can_be_reached_from_the_readme():
  there = {ROOT / 'README.md'}
  new = there
  while new:
    new = {path for page in new if page.suffix == '.md' for _, path, _ in targets(page)} - there
    there = there | new
  files = {path for path in (ROOT / 'docs').rglob('*') if path.is_file()}
  assert sorted(str(path.relative_to(ROOT)) for path in files - there) == []


def test_a_broken_link_is_found(tmp_path):
  page = tmp_path / 'page.md'
  (tmp_path / 'other.md').write_text('# A `b` heading: two!\n\n```\n# no heading\n```\n')
  good = (
    '[a](other.md) [b](other.md#a-b-heading-two) [c](#here) [d](https://nowhere/x)\n\n## Here\n'
  )
  page.write_text(good + '`[x](y)`\n\n```\n[x](y)\n```\n')
  assert broken([page]) == []
  page.write_text(good + '[e](gone.md) [f](other.md#no-heading) ![g](gone.png)')
  assert broken([page]) == [
    'page.md: gone.md',
    'page.md: other.md#no-heading',
    'page.md: gone.png',
  ]


def test_the_example_for_researchers_runs(monkeypatch):
  monkeypatch.syspath_prepend(ROOT)
  page = (ROOT / 'docs' / 'researcher.md').read_text()
  (example,) = [x for x in commands.blocks(page) if 'losses.r1_penalty' in x]

  def run():
    found = {}
    exec(example, found)
    return {name: found[name] for name in ('images', 'logits', 'penalty')}

  found = jax.eval_shape(run)  # traced: to compile each operation by itself takes 15 s
  assert {name: x.shape for name, x in found.items()} == {
    'images': (8, 32, 32, 1),
    'logits': (8, 1),
    'penalty': (8,),
  }


def wrong(page: pathlib.Path) -> list[str]:
  """'page: command: error' of each command of ours that its tool doesn't take."""
  bad = []
  for command in commands.of_page(page.read_text()):
    try:
      commands.parse(command)
    except Exception as e:  # a tool that isn't there, a flag, its value: all are wrong
      bad.append(f'{page.name}: {command}: {e}')
  return bad


def test_commands_are_of_tools_and_flags_that_are_there(monkeypatch):
  monkeypatch.chdir(ROOT)
  assert [error for page in pages_of_ours() for error in wrong(page)] == []


def test_a_wrong_command_is_found(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  page = tmp_path / 'page.md'
  page.write_text(
    """
`python -m sg2jax.tools.gone` is no block, and this one is right:

```bash
cd x && .venv/bin/python -m sg2jax.main --config=configs/quickstart.py \\
   --config.batch=8 --workdir=x   # a comment
sg2jax doctor --config=configs/quickstart.py
```

```
python -m sg2jax.tools.gone --checkpoint=x
sg2jax generate --checkpoint=x --sed=1
sg2jax doctor --config=configs/quickstart.py --config.bach=8
```
"""
  )
  found = wrong(page)
  assert len(commands.of_page(page.read_text())) == 5
  assert len(found) == 3
  assert all(name in error for name, error in zip(('gone', 'sed', 'bach'), found))


# ---- messages that troubleshooting.md quotes

TABLES = re.compile(r'^\| (?!symptom|-)(.*?) \|', re.M)


def said_by_us() -> str:
  """All texts in the package, a line each; what is filled in is '...'."""
  texts = []
  for path in sorted((ROOT / 'sg2jax').rglob('*.py')):
    for node in ast.walk(ast.parse(path.read_text())):
      match node:
        case ast.Constant(value=str(text)):
          texts.append(text)
        case ast.JoinedStr():
          parts = [x.value if isinstance(x, ast.Constant) else '...' for x in node.values]
          texts.append(''.join(parts))
  return '\n'.join(texts)


def quotes(page: str) -> list[str]:
  """What the first columns of a page's tables quote."""
  return [quote for cell in TABLES.findall(page) for quote in re.findall(r'`(.+?)`', cell)]


def not_said(page: str, said: str) -> list[str]:
  """The quotes of a page that aren't in any text of ours; '...' in them is whatever is there."""
  # `warning: ` stands before texts that are elsewhere.
  asked = {quote: quote.removeprefix('warning: ').split('...') for quote in quotes(page)}
  forms = {quote: '.*'.join(map(re.escape, parts)) for quote, parts in asked.items()}
  return [quote for quote, form in forms.items() if not re.search(form, said)]


def test_messages_that_are_quoted_are_those_that_are_printed():
  page = (ROOT / 'docs/troubleshooting.md').read_text()
  assert len(quotes(page)) > 40
  said = said_by_us()
  assert not_said(page, said) == []
  wrong = '| exit 3, `empty file`, `is a folder; ... takes` | x |'
  assert not_said(wrong, said) == ['is a folder; ... takes']
