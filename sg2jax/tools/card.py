"""Writes a model card: README.md for a hub such as Hugging Face, from the run itself.

  python -m sg2jax.tools.card --checkpoint=RUN --license=ID --data_license=ID --author=NAME
      [--out=FILE.md]

What it says: the data set by name, hash, counts and classes; the configuration, as far as it
differs from --base; devices, hours and images; curves; what was measured of this checkpoint, with
intervals and protocol (measure first: python -m sg2jax.tools.evaluate); samples of seeds 0 and up,
none chosen; nearest neighbours, if nn10k or pixelnn10k was measured; how to load the network.
Nobody but you knows the licences: they have to be given. Pictures are written beside FILE and
called after it. `python -m sg2jax.tools.export --bundle=DIR` writes a folder to publish, with its
card. docs/publishing.md has the details.
"""

from collections.abc import Mapping
import pathlib
import re
from typing import NamedTuple

from absl import flags

from sg2jax import bundle, cli, files, paths, sampler
from sg2jax.faults import UsageError
from sg2jax.tools import card_facts, card_pictures, card_text
from sg2jax.tools import flags as shared

REQUIRED = ('license', 'data_license', 'author')
DEFAULT_BASE = 'configs/default.py'


class Given(NamedTuple):
  """What only a person knows."""

  license: str
  data_license: str
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
  what = 'Card: licence of the network as hubs spell it, such as apache-2.0.'
  flags.DEFINE_string('license', None, what)
  flags.DEFINE_string('data_license', None, 'Card: licence of the pictures that it learnt from.')
  flags.DEFINE_string('author', None, 'Card: who made it.')
  what = f'Card: configuration to compare with; default: {DEFAULT_BASE}, if it is there.'
  flags.DEFINE_string('base', None, what)


def main(_: list[str]) -> None:
  """Checks, reads, makes pictures, writes."""
  args = flags.FLAGS
  fields = given()
  net = load(args.checkpoint)
  path = cli.file(args.out or str(net.workdir / 'card.md'), ['.md'], anywhere=True)
  written = make(net, fields, path.name, f'{path.stem}_', net.workdir.name)
  for name, data in written.items():
    files.write_atomic(path.parent / name, data)
  print(f'{path}: the card; beside it {", ".join(name for name in written if name != path.name)}')


def given() -> Given:
  """What `define_fields` defines. Raises UsageError, naming all that is missing."""
  args = flags.FLAGS
  missing = [f'--{name}' for name in REQUIRED if not (args[name].value or '').strip()]
  if missing:
    raise UsageError(
      f'{", ".join(missing)} {"is" if len(missing) == 1 else "are"} missing; only you know what '
      'holds for this network, so say it, as in --license=apache-2.0 --data_license=cc-by-4.0 '
      '--author="Ada Lovelace"'
    )
  for name in ('license', 'data_license'):
    if not re.fullmatch(r'[a-z0-9][a-z0-9.+-]*', args[name].value):
      raise UsageError(
        f'--{name}={args[name].value} is not as hubs spell licences: lower case, no spaces, such '
        'as apache-2.0, cc-by-nc-4.0, other or unknown'
      )
  base = args.base or (DEFAULT_BASE if pathlib.Path(DEFAULT_BASE).is_file() else '')
  settings = card_facts.settings(shared.configuration([f'--config={base}'])) if base else {}
  author = ' '.join(args.author.split())
  return Given(args.license, args.data_license, author, settings, base)


def load(path: str) -> sampler.Sampler:
  """The network of a run. Raises UsageError for a bundle, which has its card."""
  place = paths.place(path).absolute()
  if bundle.is_there(place):
    raise UsageError(
      f'--checkpoint={path} is a bundle, which has its card, {bundle.CARD}; name the run'
    )
  return sampler.load(path)


def make(
  net: sampler.Sampler, fields: Given, name: str, prefix: str, title: str
) -> dict[str, bytes]:
  """A card and its pictures: {file name: content}.

  Args:
    net: the network.
    fields: what a person said.
    name: of the card's file.
    prefix: of its pictures' names.
    title: what the network is called, and its folder.
  """
  facts = card_facts.read(net)
  pictures = {f'{prefix}{stem}.png': x for stem, x in card_pictures.make(net, facts).items()}
  text = card_text.write(net, facts, fields, title, {x: prefix for x in pictures})
  return pictures | {name: text.encode()}


if __name__ == '__main__':
  define_flags()
  cli.run(main)
