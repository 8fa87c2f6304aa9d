"""Links between pages lead somewhere, and nothing in docs/ is without a way to it."""

import pathlib
import re

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
