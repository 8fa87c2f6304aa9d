"""The site of docs/ builds, without network and warnings; its links lead somewhere in it."""

import html
from html.parser import HTMLParser
import os
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.parse

import pytest

from tests import test_docs
from website import docstrings

ROOT = pathlib.Path(__file__).parent.parent
IN_STYLE = re.compile(r'(?:url\(|@import)\s*["\']?([^"\')\s;]+)')
ELSEWHERE = ('http:', 'https:', 'mailto:', '//')
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
# MkDocs' command, in which nothing can be asked of another host.
BUILD = """
import socket
def refuse(*args): raise OSError('a site is built without network')
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from mkdocs.__main__ import cli
cli()
"""


class Page(HTMLParser):
  """What a page links to, what a browser loads for it, and its anchors."""

  def __init__(self, text: str):
    super().__init__()
    self.links, self.loaded, self.anchors = [], [], set()
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.anchors |= {attrs[name] for name in ('id', 'name') if attrs.get(name)}
    self.loaded += IN_STYLE.findall(attrs.get('style') or '')
    if tag == 'a':
      self.links += [attrs['href']] if 'href' in attrs else []
    elif tag != 'meta':
      self.loaded += [attrs[name] for name in ('src', 'href', 'data') if attrs.get(name)]


def target(site: pathlib.Path, page: pathlib.Path, link: str) -> tuple[pathlib.Path, str]:
  """(file, anchor or '') of a link of a page, either of which may not be there."""
  path, _, anchor = link.partition('#')
  path = urllib.parse.unquote(path)
  base = site if path.startswith('/') else page.parent
  return (base / path.lstrip('/')).resolve() if path else page.resolve(), urllib.parse.unquote(
    anchor
  )


def broken(site: pathlib.Path) -> list[str]:
  """'page: link' of what leads nowhere on a site, or is loaded from elsewhere."""
  site = site.resolve()
  pages = {path: Page(path.read_text()) for path in site.rglob('*.html')}
  bad = []
  for path, page in pages.items():
    links = [link for link in page.links if not link.startswith(ELSEWHERE)]
    for link in links + page.loaded:
      there, anchor = target(site, path, link)
      is_anchor = not anchor or there not in pages or anchor in pages[there].anchors
      if link.startswith(ELSEWHERE) or not there.is_file() or not is_anchor:
        bad.append(f'{path.relative_to(site)}: {link}')
  for path in site.rglob('*.css'):
    for link in IN_STYLE.findall(path.read_text()):
      if not link.startswith('data:') and not target(site, path, link)[0].is_file():
        bad.append(f'{path.relative_to(site)}: {link}')
  return sorted(bad)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  folder = tmp_path_factory.mktemp('site')
  # Not --quiet, by which --strict sees no warnings.
  command = [sys.executable, '-c', BUILD, 'build', '--strict', '--site-dir', folder]
  env = os.environ | {'NO_MKDOCS_2_WARNING': '1'}  # an advertisement of the theme
  built = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
  lines = (built.stdout + built.stderr).splitlines()
  told = [line for line in lines if not line.startswith('INFO')]
  if built.returncode or told:
    pytest.fail('\n'.join(told), pytrace=False)
  return folder


def test_links_lead_somewhere_and_nothing_is_loaded_from_elsewhere(site):
  assert broken(site) == []


def test_a_broken_link_is_found(tmp_path):
  (tmp_path / 'sub').mkdir()
  other = tmp_path / 'sub' / 'other.html'
  other.write_text('<h1 id="here">x</h1><a href="../a.html">a</a><a href="/a.html">a</a>')
  page = tmp_path / 'a.html'
  good = (
    '<a href="sub/other.html#here">a</a><a href="#b">b</a><p id="b"><a href="https://x/y">c</a>'
    '<img src="a.html"><link rel="stylesheet" href="a.css">'
  )
  page.write_text(good)
  style = tmp_path / 'a.css'
  style.write_text('a { background: url(data:image/png;base64,xx), url("a.html") }')
  assert broken(tmp_path) == []
  page.write_text(
    good + '<a href="gone.html">a</a><a href="sub/other.html#gone">a</a><img src="gone.png">'
    '<script src="https://x/y.js"></script><p style="background: url(//x/y)">'
  )
  style.write_text('@import "https://x/y.css"; a { background: url(gone.png) }')
  assert broken(tmp_path) == [
    'a.css: gone.png',
    'a.css: https://x/y.css',
    'a.html: //x/y',
    'a.html: gone.html',
    'a.html: gone.png',
    'a.html: https://x/y.js',
    'a.html: sub/other.html#gone',
  ]


def test_pages_have_the_anchors_of_github(site):
  lacking = []
  for page in test_docs.pages_of_ours():
    built = site / ('index.html' if page.name == 'README.md' else f'{page.stem}.html')
    missing = test_docs.anchors(page.read_text()) - Page(built.read_text()).anchors
    lacking += [f'{page.name}: {anchor}' for anchor in sorted(missing)]
  assert lacking == []


def test_commands_are_copied_as_they_are_written(site):
  page = re.findall(r'<code[ >].*?</code>', (site / 'index.html').read_text(), flags=re.S)
  shown = {html.unescape(re.sub(r'<[^>]*>', '', code)) for code in page}
  blocks = re.findall(r'^```\w*\n(.*?)^```', (ROOT / 'README.md').read_text(), flags=re.M | re.S)
  assert len(blocks) > 5
  assert [block for block in blocks if block not in shown] == []


def test_links_out_of_docs_lead_to_what_they_name(site):
  links = [link for page in site.glob('*.html') for link in Page(page.read_text()).links]
  assert {'index.html#start', 'CONTRIBUTING.html', 'api/use.html#sg2jax.data.labels'} <= {*links}
  notebook = 'launch/colab/quickstart.ipynb'
  assert f'files/{notebook}' in links
  assert (site / 'files' / notebook).read_bytes() == (ROOT / notebook).read_bytes()


def test_the_reference_is_of_public_names(site):
  text = (site / 'api/use.html').read_text()
  anchors = Page(text).anchors
  assert {'sg2jax.load', 'sg2jax.sampler.Sampler.__call__', 'sg2jax.faults.UsageError'} <= anchors
  assert 'moving average of w, [w_dim]' in text  # a comment beside a field
  assert not [name for name in anchors if re.search(r'[.]_(?!_call__$)', name)]


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason='there is no Chromium; apt-get install chromium')
def test_the_search_works_from_a_disk_and_no_other_host_is_asked(site):
  from playwright.sync_api import sync_playwright

  asked, errors = [], []
  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
    page = browser.new_page()
    page.on('request', lambda request: asked.append(request.url))
    page.on('pageerror', lambda error: errors.append(str(error)))
    page.goto((site / 'api' / 'use.html').as_uri())
    page.keyboard.press('f')
    page.keyboard.type('modulated_conv2d')
    page.locator('.md-search-result__link').first.click()
    page.wait_for_url('**/api/operators.html**')
    browser.close()
  elsewhere = [url for url in asked if not url.startswith((site.as_uri(), 'data:', 'about:'))]
  assert (elsewhere, errors) == ([], [])


READ = """\
Sums x * y of [N,H,W,C] over <name>, see `a*b` and https://x/y_z.

Rooms:
  a   one
  bb  two
- a list,
  hanging

x: one
y, z: two
  and more

one    columns
three  of text

g = load('x')  # [8]

Args:
  x_, y: [N,C], or *.
    More.
  **rest: z.

Returns:
  z: [N].

Raises: ValueError: one; UsageError
  for two."""
AS_MARKDOWN = r"""
Sums x \* y of \[N,H,W,C\] over &lt;name>, see `a*b` and https://x/y_z.

Rooms:

```text
a   one
bb  two
```

- a list, hanging

- x: one

- y, z: two and more

```text
one    columns
three  of text
```

```python
g = load('x')  # [8]
```

Args:
  x_: \[N,C\], or \*.
    More.
  y: \[N,C\], or \*.
    More.
  **rest: z.

**Returns:**
z: \[N\].

**Raises:** ValueError: one; UsageError for two."""


def test_docstrings_are_shown_as_they_are_read():
  assert docstrings.markdown(READ) == AS_MARKDOWN.strip()
