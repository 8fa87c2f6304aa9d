"""Hooks of MkDocs: what the site has beside docs/, and where its links lead.

README.md, CHANGELOG.md and CONTRIBUTING.md are pages of it, the README its first. A link of any
page is meant as GitHub reads it, as a path in this repository: to another page it leads there, to a
module that the reference describes to its entry, to any other file to that file, which the site
then has. The pages of the reference are those of `reference.py`.
"""

import os
import pathlib
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
import reference  # beside this file, where MkDocs looks, too

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
PAGES = {'README.md': 'index.md'} | {name: name for name in ('CHANGELOG.md', 'CONTRIBUTING.md')}
ASSETS = ('iframe-worker.js', 'style.css')
LINK = re.compile(r'\]\(([^()\s]+)\)')
CODE = re.compile(r'(^```.*?^```|`[^`\n]*`)', re.M | re.S)
SHOWN_CODE = re.compile(r'<code[ >].*?</code>', re.S)
TAG = re.compile(r'(<[^>]*>)')
HYPHENED = re.compile(r'(?=\S*-)\S{2,}')
ELSEWHERE = ('http://', 'https://', 'mailto:', '#')


def slug(heading: str, separator: str) -> str:
  """The anchor of a heading as GitHub makes it."""
  return re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', separator)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
  """Anchors as GitHub's; the reference in the navigation, before the last group."""
  config.mdx_configs['toc']['slugify'] = slug
  pages = [{page.title: f'api/{page.name}.md'} for page in reference.PAGES]
  config.nav.insert(-1, {'In Python': ['api/index.md', *pages]})
  return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
  """The files that aren't in docs/."""
  for source, page in PAGES.items():
    files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
  for name in ASSETS:
    files.append(File.generated(config, f'assets/{name}', abs_src_path=str(HERE / name)))
  files.append(File.generated(config, 'api/index.md', content=reference.contents()))
  for page in reference.PAGES:
    files.append(File.generated(config, f'api/{page.name}.md', content=reference.text(page)))
  return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
  """A page with links that lead somewhere on the site; code keeps its brackets."""
  source = {there: here for here, there in PAGES.items()}.get(page.file.src_uri)
  folder = ROOT if source else ROOT / 'docs' / os.path.dirname(page.file.src_uri)

  def moved(found):
    link, _, anchor = found[1].partition('#')
    path = (folder / link).resolve()
    if found[1].startswith(ELSEWHERE) or not path.is_relative_to(ROOT) or not path.is_file():
      return found[0]  # what is wrong with it MkDocs says
    where = os.path.relpath(path, ROOT)
    module = dotted(where)
    if module in reference.MODULES:
      return f'][{module}]'
    return f']({place(where, config, files)}{"#" if anchor else ""}{anchor})'

  parts = CODE.split(markdown)
  parts[::2] = [LINK.sub(moved, part) for part in parts[::2]]
  return ''.join(parts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
  """Words of code with hyphens as one each, so that no line of a command ends in `--`."""

  def whole(found):
    parts = TAG.split(found[0])
    parts[::2] = [HYPHENED.sub(r'<span class="word">\g<0></span>', part) for part in parts[::2]]
    return ''.join(parts)

  return SHOWN_CODE.sub(whole, html)


def place(where: str, config: MkDocsConfig, files: Files) -> str:
  """Where a file of the repository is on the site, as pages at its root link to it."""
  if where in PAGES:
    return PAGES[where]
  if where.startswith('docs/'):
    return where.removeprefix('docs/')
  there = f'files/{where}'
  if not files.get_file_from_path(there):
    files.append(File.generated(config, there, abs_src_path=str(ROOT / where)))
  return there


def dotted(where: str) -> str:
  """The full name of the module in a file of the repository."""
  return where.removesuffix('.py').removesuffix('/__init__').replace('/', '.')
