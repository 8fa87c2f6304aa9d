"""Commands as they are written in pages and notebooks, read as their tools do, and not run."""

import importlib
import re
import shlex
import sys
from unittest import mock

from absl.testing import flagsaver

from sg2jax import cli
from sg2jax.tools import doctor
from sg2jax.tools import flags as shared

_BLOCK = re.compile(r'^```\w*\n(.*?)^```', re.M | re.S)
# At the start of a line or behind `&&` and a path, as in `.venv/bin/python -m sg2jax.main`.
_OURS = re.compile(r'(?:^|&& |/)(python -m sg2jax\S* .*|sg2jax [a-z_]+(?: .*)?)$')


def blocks(text: str) -> list[str]:
  """The blocks of code of a page."""
  return _BLOCK.findall(text)


def of_page(text: str) -> list[str]:
  """The commands of ours in a page's blocks of code, continued lines as one."""
  lines = [line.strip() for block in blocks(text) for line in joined(block).splitlines()]
  return [match[1] for match in map(_OURS.search, lines) if match]


def joined(text: str) -> str:
  """A text with continued lines as one."""
  return text.replace('\\\n', ' ')


def parse(command: str) -> None:
  """Reads `python -m MODULE ARGUMENTS` or `sg2jax TOOL ARGUMENTS`; raises as the tool does.

  The current folder must be that of the project, as for those who type it.
  """
  words = shlex.split(command, comments=True)
  if words[0] == 'sg2jax':
    module = 'sg2jax.main' if words[1] == 'train' else f'sg2jax.tools.{words[1]}'
    arguments = words[2:]
  else:
    assert words[:2] == ['python', '-m'], command
    _, _, module, *arguments = words
  tool = importlib.import_module(module)
  config = []
  if tool is doctor:  # to which a broken one is a finding
    arguments, config = doctor.take_config(arguments)
  argv = [module, *arguments]
  with flagsaver.flagsaver(), mock.patch.object(sys, 'argv', argv):
    tool.define_flags()
    cli.parse(argv)
  if config:
    shared.configuration(config)
