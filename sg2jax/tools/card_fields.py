"""What of a model card only a person knows: from the command line, or asked at a terminal."""

from collections.abc import Mapping
import os
import pathlib
import re
import sys
from typing import NamedTuple

from absl import flags

from sg2jax.faults import UsageError
from sg2jax.tools import card_facts
from sg2jax.tools import flags as shared

DEFAULT_BASE = 'configs/default.py'
MAX_BYTES = 2**20  # of the text of a licence
LICENCE_FILES = ('LICENSE', 'LICENSE.md')  # as hubs look for them


class Asked(NamedTuple):
  """A field that has to be filled."""

  question: str
  example: str


ASKED = {
  'license': Asked(
    'Licence of the network, as hubs spell it (apache-2.0, cc-by-nc-4.0, unknown, or other for one '
    'of your own)',
    'apache-2.0',
  ),
  'data_license': Asked(
    'Licence of the pictures that it learnt from (cc-by-4.0, cc-by-nc-4.0, unknown)', 'cc-by-4.0'
  ),
  'author': Asked('Who made it', '"Ada Lovelace"'),
}
# Of a licence that is 'other'.
ASKED_OF_OTHER = {
  'license_name': Asked('What that other licence is called (my-licence-1.0)', 'my-licence-1.0'),
  'license_link': Asked(
    'Where its text is (a file to publish with the network, or https://...)', 'LICENSE'
  ),
}
FIELDS = (*ASKED, *ASKED_OF_OTHER, 'data_id', 'base')  # flags of `define`


class Given(NamedTuple):
  """What a person said."""

  license: str
  license_name: str  # of one that is 'other'; ''
  license_link: str  # of the same, an address or one of LICENCE_FILES; ''
  license_text: bytes  # of such a file
  data_license: str
  data_id: str  # what the data set is called at the hub; '': it isn't there
  author: str
  base: Mapping  # settings of the configuration to compare with; {}: none
  base_name: str


def define() -> None:
  """The flags that `given` reads."""
  what = 'Card: licence of the network as hubs spell it, such as apache-2.0, or other.'
  flags.DEFINE_string('license', '', what)
  flags.DEFINE_string('license_name', '', 'Card: what --license=other is called: my-licence-1.0.')
  what = 'Card: where the text of --license=other is: https://..., or a file to publish with it.'
  flags.DEFINE_string('license_link', '', what)
  flags.DEFINE_string('data_license', '', 'Card: licence of the pictures that it learnt from.')
  what = 'Card: name of the data set at the hub, as in ylecun/mnist, to be linked; default: none.'
  flags.DEFINE_string('data_id', '', what)
  flags.DEFINE_string('author', '', 'Card: who made it.')
  what = f'Card: configuration to compare with; default: {DEFAULT_BASE}, if it is there.'
  flags.DEFINE_string('base', '', what)


def given() -> Given:
  """What the flags of `define` say; where somebody sits at a terminal, the rest is asked for.

  Raises UsageError, naming what is wrong, or all that is missing.
  """
  args = flags.FLAGS
  said = {name: args[name].value.strip() for name in (*ASKED, *ASKED_OF_OTHER)}
  for name, value in said.items():
    if value and (problem := _problem(name, value)):
      raise UsageError(f'--{name}={value} {problem}')
  if not re.fullmatch(r'(\w[\w.-]*(/\w[\w.-]*)?)?', args.data_id, re.ASCII):
    raise UsageError(f'--data_id={args.data_id} is no name at a hub, such as ylecun/mnist')
  base = args.base or (DEFAULT_BASE if pathlib.Path(DEFAULT_BASE).is_file() else '')
  settings = _settings(base) if base else {}
  # Jupyter's !COMMAND looks like a terminal, and nobody can answer there.
  streams = (sys.stdin, sys.stdout)  # None: it is closed
  if all(x and x.isatty() for x in streams) and 'JPY_PARENT_PID' not in os.environ:
    if said['license']:
      _check_of_other(said)
    _ask(said)
  _check_whole(said)
  link, text = _text_of_licence(said['license_link'])
  return Given(
    license=said['license'],
    license_name=said['license_name'],
    license_link=link,
    license_text=text,
    data_license=said['data_license'],
    data_id=args.data_id,
    author=said['author'],
    base=settings,
    base_name=card_facts.last_name(base) if pathlib.Path(base).is_absolute() else base,
  )


def _missing(said):
  """Fields that have to be filled, and aren't."""
  asked = ASKED | (ASKED_OF_OTHER if said['license'] == 'other' else {})
  return {name: field for name, field in asked.items() if not said[name]}


def _ask(said):
  """Fills what is missing by what a person types; an end of the input leaves it missing."""
  while missing := _missing(said):
    name, field = next(iter(missing.items()))
    try:
      value = input(f'{field.question}: ').strip()
    except EOFError:
      print()
      return
    except ValueError:  # what was typed is no text
      print('that can not be read; once more')
      continue
    if value and (problem := _problem(name, value)):
      print(f'{value} {problem}')
    else:
      said[name] = value


def _check_whole(said):
  if missing := _missing(said):
    names = ', '.join(f'--{name}' for name in missing)
    example = ' '.join(f'--{name}={field.example}' for name, field in missing.items())
    raise UsageError(
      f'{names} {"is" if len(missing) == 1 else "are"} missing; only you know what holds for this '
      f'network, so say it, as in {example}'
    )
  _check_of_other(said)


def _check_of_other(said):
  """Only licences that hubs don't know have a name and a link."""
  if said['license'] != 'other' and (said['license_name'] or said['license_link']):
    raise UsageError(
      f'--license={said["license"]} goes without --license_name and --license_link: a hub knows '
      'both; they are for --license=other'
    )


def _problem(name, value):
  """What is wrong with a value of a field; '': nothing."""
  try:
    value.encode()
  except UnicodeEncodeError:
    return 'is no text in UTF-8'
  if name in ('license', 'data_license', 'license_name'):
    example = (ASKED | ASKED_OF_OTHER)[name]
    if not re.fullmatch(r'[a-z0-9][a-z0-9.+-]*', value):
      return (
        'is not as hubs spell licences: lower case, no spaces, such as '
        f'{example.example}{"" if name == "license_name" else ", or unknown"}'
      )
  if name == 'data_license' and value == 'other':
    return 'says nothing; give what it is called, or unknown if nobody knows'
  if name == 'license_link':
    try:
      _text_of_licence(value)
    except UsageError as e:
      return str(e)
  return ''


def _text_of_licence(link):
  """(link, b'') of an address or of none; else what a file is called at a hub, and its text.

  Raises UsageError, which goes on after the link: it can't be read.
  """
  if not link or re.fullmatch(r'https?://[^\s()<>"]+', link):
    return link, b''
  try:
    file = pathlib.Path(link).expanduser()
    if file.exists() and not file.is_file():  # a device or a pipe has no end
      raise ValueError('it is no file')
    if file.exists() and not 0 < file.stat().st_size <= MAX_BYTES:
      raise ValueError(f'it has {file.stat().st_size:,} bytes')
    text = file.read_bytes()
    text.decode()
  except (OSError, ValueError, RuntimeError) as e:  # RuntimeError: ~ of nobody
    raise UsageError(f'cannot be read ({e}); name a file with the text, or https://...') from e
  return LICENCE_FILES[file.suffix == '.md'], text


def _settings(base):
  try:
    return card_facts.settings(shared.configuration([f'--config={base}']))
  except Exception as e:  # ml_collections raises as fields are asked for, and files do anything
    reason = str(e).splitlines()[-1].strip() if str(e) else type(e).__name__
    raise UsageError(f'--base={base} is no configuration of sg2jax ({reason}); name one') from e
