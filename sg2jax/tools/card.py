"""Writes a model card: README.md for a hub such as Hugging Face, from the run itself.

  python -m sg2jax.tools.card --checkpoint=RUN --license=ID --data_license=ID --author=NAME
      [--out=FILE.md]
  ... --license=other --license_name=NAME --license_link=FILE-OR-URL

What it says: the data set by name, hash, counts and classes; the configuration, as far as it
differs from --base; devices, hours and images; curves; what was measured of this checkpoint, with
intervals and protocol (measure first: python -m sg2jax.tools.evaluate); samples of seeds 0 and up,
none chosen; nearest neighbours, if nn10k or pixelnn10k was measured; how to load the network.
Nobody but you knows the licences and the author: at a terminal you are asked for what the command
doesn't say. Pictures are written beside FILE and called after it. A card is replaced unless it was
edited. `python -m sg2jax.tools.export --bundle=DIR` writes a folder to publish, with its card.
docs/publishing.md has the details.
"""

from collections.abc import Mapping
import hashlib
import pathlib
import re
import sys
from typing import NamedTuple

from absl import flags

from sg2jax import bundle, cli, files, paths, sampler
from sg2jax.faults import UsageError
from sg2jax.tools import card_facts, card_pictures, card_text
from sg2jax.tools import flags as shared

# What is asked for at a terminal; the last two only of a licence that is 'other'.
QUESTIONS = {
  'license': 'Licence of the network, as hubs spell it (apache-2.0, cc-by-nc-4.0, other, unknown)',
  'data_license': 'Licence of the pictures that it learnt from, spelt so, too',
  'author': 'Who made it',
  'license_name': 'What that other licence is called (my-licence-1.0)',
  'license_link': 'Where its text is (a file to publish with the network, or https://...)',
}
FIELDS = (*QUESTIONS, 'data_id', 'base')  # flags of `define_fields`
DEFAULT_BASE = 'configs/default.py'
LICENCE_FILES = ('LICENSE', 'LICENSE.md')  # as hubs look for them
MARK = '<!-- A card of sg2jax; SHA-256 of the text above: {} -->\n'


class Given(NamedTuple):
  """What only a person knows."""

  license: str
  license_name: str  # of one that is 'other'; ''
  license_link: str  # of the same, an address or one of LICENCE_FILES; ''
  license_text: bytes  # of such a file
  data_license: str
  data_id: str  # what the data set is called at the hub; '': it isn't there
  author: str
  base: Mapping  # settings of the configuration to compare with; {}: none
  base_name: str


def define_flags() -> None:
  """The command line."""
  shared.define_checkpoint()
  define_fields()
  flags.DEFINE_string('out', '', 'File to write; default: card.md in the workdir.')
  flags.register_validator('out', lambda path: not path or cli.file(path, ['.md'], anywhere=True))


def define_fields() -> None:
  """What a card asks for; `given` reads it."""
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


def main(_: list[str]) -> None:
  """Checks, reads, makes pictures, writes."""
  args = flags.FLAGS
  fields = given()
  net, place = load(args.checkpoint)
  path = cli.file(args.out or str(net.workdir / 'card.md'), ['.md'], anywhere=True)
  where = '/'.join(place.parts[len(net.workdir.parts) - 1 :])
  title = net.workdir.name
  if title.isdigit():  # of an edit, which is called after the step of a run
    title = '-'.join(net.workdir.parts[-3:])
  prefix = f'{path.name.removesuffix(".md")}_'
  written = make(net, place, fields, path.name, prefix, title, where)
  _check_replaced(path, written)
  for name, data in written.items():
    files.write_atomic(path.parent / name, data)
  print(f'{path}: the card; beside it {", ".join(name for name in written if name != path.name)}')


def _check_replaced(path, written):
  """Only a card that nobody edited, and its pictures, may be replaced."""
  old = path.read_bytes().decode(errors='replace') if path.exists() else ''
  above = old[: old.rfind('<!--')]
  ours = {path.name, *re.findall(r'\]\((.+\.png)\)', old)} if old == _marked(above) else set()
  for name, data in written.items():
    file = path.parent / name
    if name not in ours and file.exists() and file.read_bytes() != data:
      raise UsageError(
        f'{file} is there, and not as a card of sg2jax was written; move it away, or write the '
        'card elsewhere (--out)'
      )


def _marked(text):
  """With a last line that tells whether it was edited since."""
  return text + MARK.format(hashlib.sha256(text.encode()).hexdigest())


# ---- what a person says


def given() -> Given:
  """What `define_fields` defines. Raises UsageError, naming all that is missing."""
  args = flags.FLAGS
  said = {name: args[name].value.strip() for name in QUESTIONS}
  if sys.stdin.isatty() and sys.stdout.isatty():
    _ask(said)
  for name, value in said.items():
    _check_field(name, value)
  _check_none_missing(said)
  if not re.fullmatch(r'(\w[\w.-]*(/\w[\w.-]*)?)?', args.data_id, re.ASCII):
    raise UsageError(f'--data_id={args.data_id} is no name at a hub, such as ylecun/mnist')
  link, text = _license_link(said)
  base = args.base or (DEFAULT_BASE if pathlib.Path(DEFAULT_BASE).is_file() else '')
  return Given(
    license=said['license'],
    license_name=said['license_name'],
    license_link=link,
    license_text=text,
    data_license=said['data_license'],
    data_id=args.data_id,
    author=said['author'],
    base=_settings(base) if base else {},
    base_name=card_facts.last_name(base) if pathlib.Path(base).is_absolute() else base,
  )


def _missing(said):
  """Fields that have to be filled, and aren't."""
  needed = QUESTIONS if said['license'] == 'other' else ('license', 'data_license', 'author')
  return [name for name in needed if not said[name]]


def _ask(said):
  """Fills what is missing by what a person types; an end of the input leaves it missing."""
  while names := _missing(said):
    try:
      value = input(f'{QUESTIONS[names[0]]}: ').strip()
      _check_field(names[0], value)
    except EOFError:
      return
    except UsageError as e:
      print(e)
      continue
    said[names[0]] = value


def _check_none_missing(said):
  names = _missing(said)
  if not names:
    return
  example = (
    '--license_name=my-licence-1.0 --license_link=LICENSE (a file to publish with it, or '
    'https://...)'
    if said['license'] == 'other'
    else '--license=apache-2.0 --data_license=cc-by-4.0 --author="Ada Lovelace"'
  )
  raise UsageError(
    f'{", ".join(f"--{name}" for name in names)} {"is" if len(names) == 1 else "are"} missing; '
    f'only you know what holds for this network, so say it, as in {example}'
  )


def _check_field(name, value):
  """Raises UsageError: a value that hubs would refuse."""
  is_licence = name in ('license', 'data_license', 'license_name')
  if is_licence and value and not re.fullmatch(r'[a-z0-9][a-z0-9.+-]*', value):
    raise UsageError(
      f'--{name}={value} is not as hubs spell licences: lower case, no spaces, such as '
      'apache-2.0, cc-by-nc-4.0, other or unknown'
    )
  if name == 'data_license' and value == 'other':
    raise UsageError(
      '--data_license=other says nothing; give what it is called, or unknown if nobody knows'
    )


def _settings(base):
  try:
    return card_facts.settings(shared.configuration([f'--config={base}']))
  except Exception as e:  # ml_collections raises as fields are asked for, and files do anything
    reason = str(e).splitlines()[-1].strip() if str(e) else type(e).__name__
    raise UsageError(f'--base={base} is no configuration of sg2jax ({reason}); name one') from e


def _license_link(said):
  """The link to a licence that hubs have no name of, and the text of the file that it is."""
  link = said['license_link']
  if said['license'] != 'other':
    if said['license_name'] or link:
      raise UsageError(
        f'--license={said["license"]} goes without --license_name and --license_link: a hub knows '
        'both; they are for --license=other'
      )
    return '', b''
  if re.fullmatch(r'https?://[^\s()<>"]+', link):
    return link, b''
  file = pathlib.Path(link).expanduser()
  try:
    text = file.read_bytes()
    text.decode()
  except (OSError, ValueError) as e:
    raise UsageError(
      f'--license_link={link} cannot be read ({e}); name a file with the text, or https://...'
    ) from e
  return LICENCE_FILES[file.suffix == '.md'], text


# ---- the card


def load(path: str) -> tuple[sampler.Sampler, paths.Path]:
  """The network of a run, and where it is. Raises UsageError for a bundle, which has its card."""
  place = paths.place(path).absolute()
  with files.reading(place):
    if bundle.is_there(place):
      raise UsageError(
        f'--checkpoint={path} is a bundle, which has its card, {bundle.CARD}; name the run'
      )
  return sampler.load(path), place


def make(
  net: sampler.Sampler,
  place: paths.Path,
  fields: Given,
  name: str,
  prefix: str,
  title: str,
  where: str,
) -> dict[str, bytes]:
  """A card and what belongs beside it, pictures and the text of a licence: {file name: content}.

  Args:
    net: the network.
    place: where it is.
    fields: what a person said.
    name: of the card's file.
    prefix: of its pictures' names.
    title: what the network is called.
    where: what `sg2jax.load` is to be given, after a download.
  """
  facts = card_facts.read(net, place)
  pictures = {f'{prefix}{stem}.png': x for stem, x in card_pictures.make(net, facts).items()}
  text = card_text.write(net, facts, fields, title, where, {x: prefix for x in pictures})
  licence = {fields.license_link: fields.license_text} if fields.license_text else {}
  return pictures | licence | {name: _marked(text).encode()}


if __name__ == '__main__':
  define_flags()
  cli.run(main)
