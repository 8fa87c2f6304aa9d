"""Hooks of MkDocs: what the site has beside docs/, and where its links lead.

README.md, CHANGELOG.md and CONTRIBUTING.md are pages of it, the README its first. A link of any
page is meant as GitHub reads it, as a path in this repository: to another page it leads there, to a
module that the reference describes to its entry, to any other file to that file, which the site
then has. The pages of the reference are made of `REFERENCE`: docstrings, read and not imported.
"""

import ast
import os
import pathlib
import re

import docstrings  # beside this file, where MkDocs looks, too
from mkdocs.structure.files import File

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
PAGES = {
  'README.md': 'index.md',
  'CHANGELOG.md': 'CHANGELOG.md',
  'CONTRIBUTING.md': 'CONTRIBUTING.md',
}
ASSETS = ('iframe-worker.js', 'style.css')
# A page -> its title, its first words, and its modules in the order in which one would read them.
# What only serves a command (tools, lab, view) isn't here: `--help` has it.
REFERENCE = {
  'use': (
    'A trained network',
    'What `sg2jax.load` gives, what it takes, and how it fails.',
    ('', 'sampler', 'inputs', 'data.labels', 'bundle', 'faults'),
  ),
  'edit': (
    'Editing',
    'What is done with latents: directions, texts, projection, attribution, adversarial search.',
    (
      'edit',
      'edit.direction',
      'edit.directions',
      'edit.text_directions',
      'edit.global_directions',
      'edit.optimize',
      'edit.mapper',
      'edit.mapper_training',
      'edit.nada',
      'edit.text_losses',
      'edit.moves',
      'edit.project',
      'edit.attribute',
      'edit.classifiers',
      'edit.adversarial',
      'edit.adversarial_rates',
      'clip',
    ),
  ),
  'operators': (
    'Operators',
    'Functions of arrays, each differentiable any number of times.',
    ('products', 'ops', 'resample', 'conv', 'folding', 'warp'),
  ),
  'models': (
    'Networks',
    'Modules of Flax (linen). They know no files, random keys or configurations.',
    (
      'models.layers',
      'models.mapping',
      'models.generator',
      'models.discriminator',
      'models.styles',
      'models.stylegan1',
      'models.sizes',
      'models.variant',
    ),
  ),
  'steps': (
    'Losses and steps',
    'The mathematics of training: pure functions and steps.',
    ('losses', 'augment', 'schedule', 'state', 'update', 'steps'),
  ),
  'training': (
    'Runs',
    'From a configuration to a run: built, trained, kept, gone on with.',
    (
      'configurations',
      'checks',
      'build',
      'training.train',
      'training.loop',
      'training.stage',
      'training.snapshot',
      'training.report',
      'training.checkpoint',
      'training.shelves',
      'training.workdir',
      'training.init_from',
      'training.nonfinite',
      'training.memorising',
      'training.health',
      'keys',
      'sharding',
      'processes',
      'paths',
      'files',
    ),
  ),
  'data': (
    'Data',
    'Pictures become a data set; a data set becomes a stream of minibatches.',
    (
      'data',
      'data.dataset',
      'data.digits',
      'data.holdout',
      'data.prepare',
      'data.sources',
      'data.images',
      'data.label_rules',
      'data.dataset_json',
      'data.records',
      'data.remote',
    ),
  ),
  'evaluation': (
    'Metrics',
    'From images to numbers.',
    (
      'evaluation',
      'evaluation.measure',
      'evaluation.protocols',
      'evaluation.features',
      'evaluation.passes',
      'evaluation.scores',
      'evaluation.neighbors',
      'evaluation.ppl',
      'evaluation.swd',
      'evaluation.reals',
      'evaluation.artifacts',
      'nets.inception',
      'nets.vgg',
      'nets.clip',
      'nets.tokenizer',
      'pretrained',
    ),
  ),
  'interop': (
    'Files of others',
    'Read as data, never run; written for others to read.',
    (
      'interop',
      'interop.read',
      'interop.write',
      'interop.sniff',
      'interop.network_file',
      'interop.architecture',
      'interop.arguments',
      'interop.names',
      'interop.pickle_reader',
      'interop.torch_file',
    ),
  ),
  'planning': (
    'Plans',
    'What a run will take, by compilers for devices that need not be here.',
    (
      'planning',
      'planning.plan',
      'planning.largest',
      'planning.compile',
      'planning.devices',
      'planning.hlo',
    ),
  ),
}
LINK = re.compile(r'\]\(([^()\s]+)\)')
CODE = re.compile(r'(^```.*?^```|`[^`\n]*`)', re.M | re.S)
SHOWN_CODE = re.compile(r'<code[ >].*?</code>', re.S)
TAG = re.compile(r'(<[^>]*>)')
HYPHENED = re.compile(r'(?=\S*-)\S{2,}')
ELSEWHERE = ('http://', 'https://', 'mailto:', '#')


def slug(heading: str, separator: str) -> str:
  """The anchor of a heading as GitHub makes it."""
  return re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', separator)


def on_config(config):
  """Anchors as GitHub's; the reference in the navigation, before the last group."""
  config.mdx_configs['toc']['slugify'] = slug
  pages = [{title: f'api/{name}.md'} for name, (title, _, _) in REFERENCE.items()]
  config.nav.insert(-1, {'In Python': ['api/index.md', *pages]})
  return config


def on_files(files, config):
  """The files that aren't in docs/."""
  for source, page in PAGES.items():
    files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
  for name in ASSETS:
    files.append(File.generated(config, f'assets/{name}', abs_src_path=str(HERE / name)))
  files.append(File.generated(config, 'api/index.md', content=contents()))
  for name, (title, about, modules) in REFERENCE.items():
    entries = [f'::: {dotted(module)}\n' for module in modules]
    text = '\n'.join([f'# {title}\n\n{about}\n', *entries])
    files.append(File.generated(config, f'api/{name}.md', content=text))
  return files


def on_page_markdown(markdown, page, config, files):
  """A page with links that lead somewhere on the site; code keeps its brackets."""
  source = {there: here for here, there in PAGES.items()}.get(page.file.src_uri)
  folder = ROOT if source else ROOT / 'docs' / os.path.dirname(page.file.src_uri)

  def moved(found):
    link, _, anchor = found[1].partition('#')
    path = (folder / link).resolve()
    if found[1].startswith(ELSEWHERE) or not path.is_relative_to(ROOT) or not path.is_file():
      return found[0]  # what is wrong with it MkDocs says
    where = os.path.relpath(path, ROOT)
    if dotted_of(where) in described():
      return f'][{dotted_of(where)}]'
    return f']({place(where, config, files)}{"#" if anchor else ""}{anchor})'

  parts = CODE.split(markdown)
  parts[::2] = [LINK.sub(moved, part) for part in parts[::2]]
  return ''.join(parts)


def on_page_content(html, page, config, files):
  """Words of code with hyphens as one each, so that no line of a command ends in `--`."""

  def whole(found):
    parts = TAG.split(found[0])
    parts[::2] = [HYPHENED.sub(r'<span class="word">\g<0></span>', part) for part in parts[::2]]
    return ''.join(parts)

  return SHOWN_CODE.sub(whole, html)


def place(where, config, files):
  """Where a file of the repository is on the site, as pages at its root link to it."""
  if where in PAGES:
    return PAGES[where]
  if where.startswith('docs/'):
    return where.removeprefix('docs/')
  there = f'files/{where}'
  if not files.get_file_from_path(there):
    files.append(File.generated(config, there, abs_src_path=str(ROOT / where)))
  return there


def dotted(module: str) -> str:
  """The full name of a module of `REFERENCE`."""
  return f'sg2jax.{module}' if module else 'sg2jax'


def dotted_of(where: str) -> str:
  """The full name of the module in a file of the repository."""
  return where.removesuffix('.py').removesuffix('/__init__').replace('/', '.')


def described() -> set[str]:
  """The modules that the reference has."""
  return {dotted(module) for _, _, modules in REFERENCE.values() for module in modules}


def contents() -> str:
  """The first page of the reference: each module with the first line of its docstring."""
  lines = ['# In Python\n']
  for name, (title, about, modules) in REFERENCE.items():
    lines += [f'\n## [{title}]({name}.md)\n\n{about}\n', '| module | |', '|---|---|']
    for module in map(dotted, modules):
      base = ROOT / module.replace('.', '/')
      path = base.with_suffix('.py')
      path = path if path.exists() else base / '__init__.py'
      first = ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]
      lines.append(f'| [{module}][] | {docstrings.literal(first)} |')
  return '\n'.join(lines) + '\n'
