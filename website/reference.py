"""The reference: which page describes which modules, as mkdocstrings makes it of their docstrings.

What only serves a command (tools, lab, view) isn't here: `--help` has it.
"""

import ast
import pathlib
from typing import NamedTuple

import docstrings  # beside this file, where MkDocs looks, too

ROOT = pathlib.Path(__file__).parent.parent


class Page(NamedTuple):
  """A page of the reference."""

  name: str  # of its file, api/<name>.md
  title: str
  about: str  # its first words
  modules: str  # those of sg2jax, in the order in which one would read them


PAGES = (
  Page(
    'use',
    'A trained network',
    'What `sg2jax.load` gives, what it takes, and how it fails.',
    'sg2jax sg2jax.sampler sg2jax.inputs sg2jax.data.labels sg2jax.bundle sg2jax.faults',
  ),
  Page(
    'edit',
    'Directions and projection',
    'What moves latents, and the latents of a picture.',
    """
    sg2jax.edit sg2jax.edit.direction sg2jax.edit.directions sg2jax.edit.moves
    sg2jax.edit.project sg2jax.edit.attribute
    """,
  ),
  Page(
    'text',
    'Editing by text',
    'CLIP, and what is done with it.',
    """
    sg2jax.edit.text_directions sg2jax.edit.global_directions sg2jax.edit.optimize
    sg2jax.edit.mapper sg2jax.edit.mapper_training sg2jax.edit.nada sg2jax.edit.text_losses
    sg2jax.clip
    """,
  ),
  Page(
    'adversarial',
    'Classifiers',
    'What is fooled, and how.',
    'sg2jax.edit.classifiers sg2jax.edit.adversarial sg2jax.edit.adversarial_rates',
  ),
  Page(
    'operators',
    'Operators',
    'Functions of arrays, each differentiable any number of times.',
    'sg2jax.products sg2jax.ops sg2jax.resample sg2jax.conv sg2jax.folding sg2jax.warp',
  ),
  Page(
    'models',
    'Networks',
    'Modules of Flax (linen). They know no files, random keys or configurations.',
    """
    sg2jax.models.layers sg2jax.models.mapping sg2jax.models.generator
    sg2jax.models.discriminator sg2jax.models.styles sg2jax.models.stylegan1 sg2jax.models.sizes
    sg2jax.models.variant
    """,
  ),
  Page(
    'steps',
    'Losses and steps',
    'The mathematics of training: pure functions and steps.',
    'sg2jax.losses sg2jax.augment sg2jax.schedule sg2jax.state sg2jax.update sg2jax.steps',
  ),
  Page(
    'training',
    'Runs',
    'From a configuration to a run.',
    """
    sg2jax.configurations sg2jax.checks sg2jax.build sg2jax.training.train sg2jax.training.loop
    sg2jax.training.stage sg2jax.training.snapshot sg2jax.training.report
    sg2jax.training.memorising sg2jax.training.health
    """,
  ),
  Page(
    'checkpoints',
    'What a run keeps',
    'Checkpoints, and how the same command goes on.',
    """
    sg2jax.training.checkpoint sg2jax.training.shelves sg2jax.training.workdir
    sg2jax.training.init_from sg2jax.training.nonfinite sg2jax.files sg2jax.paths
    """,
  ),
  Page(
    'devices',
    'Devices and processes',
    'How a batch is divided, and how processes agree.',
    'sg2jax.keys sg2jax.sharding sg2jax.processes',
  ),
  Page(
    'data',
    'Data',
    'Pictures become a data set; a data set becomes a stream of minibatches.',
    """
    sg2jax.data sg2jax.data.dataset sg2jax.data.digits sg2jax.data.holdout sg2jax.data.prepare
    sg2jax.data.sources sg2jax.data.images sg2jax.data.label_rules sg2jax.data.dataset_json
    sg2jax.data.records sg2jax.data.remote
    """,
  ),
  Page(
    'evaluation',
    'Metrics',
    'From images to numbers.',
    """
    sg2jax.evaluation sg2jax.evaluation.measure sg2jax.evaluation.protocols
    sg2jax.evaluation.features sg2jax.evaluation.passes sg2jax.evaluation.scores
    sg2jax.evaluation.neighbors sg2jax.evaluation.ppl sg2jax.evaluation.swd
    sg2jax.evaluation.reals sg2jax.evaluation.artifacts
    """,
  ),
  Page(
    'nets',
    'Networks of others',
    'What looks at images for metrics and edits, and where its weights are.',
    """
    sg2jax.pretrained sg2jax.nets.inception sg2jax.nets.vgg sg2jax.nets.clip
    sg2jax.nets.tokenizer
    """,
  ),
  Page(
    'interop',
    'Files of others',
    'Read as data, never run; written for others to read.',
    """
    sg2jax.interop sg2jax.interop.read sg2jax.interop.write sg2jax.interop.sniff
    sg2jax.interop.network_file sg2jax.interop.architecture sg2jax.interop.arguments
    sg2jax.interop.names sg2jax.interop.pickle_reader sg2jax.interop.torch_file
    """,
  ),
  Page(
    'planning',
    'Plans',
    'What a run will take, by compilers for devices that need not be here.',
    """
    sg2jax.planning sg2jax.planning.plan sg2jax.planning.largest sg2jax.planning.compile
    sg2jax.planning.devices sg2jax.planning.hlo
    """,
  ),
)
MODULES = {module for page in PAGES for module in page.modules.split()}


def text(page: Page) -> str:
  """A page as Markdown."""
  entries = [f'::: {module}\n' for module in page.modules.split()]
  return '\n'.join([f'# {page.title}\n\n{page.about}\n', *entries])


def contents() -> str:
  """The first page: each module with the first line of its docstring."""
  lines = ['# In Python\n']
  for page in PAGES:
    lines += [f'\n## [{page.title}]({page.name}.md)\n\n{page.about}\n', '| | |', '|---|---|']
    for module in page.modules.split():
      path = ROOT / f'{module.replace(".", "/")}.py'
      path = path if path.exists() else path.with_suffix('') / '__init__.py'
      first = ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]
      lines.append(f'| [{module}][] | {docstrings.literal(first)} |')
  return '\n'.join(lines) + '\n'
