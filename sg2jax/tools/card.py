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

import hashlib
import re

from absl import flags

from sg2jax import bundle, cli, files, paths, sampler
from sg2jax.faults import UsageError
from sg2jax.tools import card_facts, card_fields, card_pictures, card_text
from sg2jax.tools import flags as shared

MARK = '<!-- A card of sg2jax; SHA-256 of it, up to here, and of its files: {} -->\n'


def define_flags() -> None:
  """The command line."""
  shared.define_checkpoint()
  card_fields.define()
  flags.DEFINE_string('out', '', 'File to write; default: card.md in the workdir.')
  flags.register_validator('out', lambda path: not path or cli.file(path, ['.md'], anywhere=True))


def main(_: list[str]) -> None:
  """Checks, reads, makes pictures, writes."""
  args = flags.FLAGS
  net, place = load(args.checkpoint)
  path = cli.file(args.out or str(net.workdir / 'card.md'), ['.md'], anywhere=True)
  try:
    path.name.encode()
  except UnicodeEncodeError:
    raise UsageError(
      f'--out={args.out!a}: pages link to names in UTF-8 only; name another'
    ) from None
  check_untouched(path)
  fields = card_fields.given()
  where = '/'.join(place.parts[len(net.workdir.parts) - 1 :])
  title = net.workdir.name
  if title.isdigit():  # of an edit, which is called after the step of a run
    title = '-'.join(net.workdir.parts[-3:])
  prefix = f'{path.name.removesuffix(".md")}_'
  written = make(net, place, fields, path.name, prefix, title, where)
  _check_others(path, written)
  for name, data in written.items():
    files.write_atomic(path.parent / name, data)
  print(f'{path}: the card; beside it {", ".join(name for name in written if name != path.name)}')


# ---- what is there already


def check_untouched(path: paths.Path) -> None:
  """Raises UsageError if there is a file that isn't a card as it was written, with its files."""
  if not path.exists():
    return
  if not path.is_file():  # a pipe would be waited for
    raise UsageError(f'{path} is there, and no file; move it away, or name another place')
  text = path.read_bytes().decode(errors='replace')
  there = {name: path.parent / name for name in _beside(text)}
  contents = {name: file.read_bytes() for name, file in there.items() if file.is_file()}
  if text != _marked(text[: text.rfind('<!--')], contents):
    raise UsageError(
      f'{path} is no card of sg2jax, or was edited since it was written, as may be a picture or '
      'the licence beside it, and would be lost; move it away, or name another place'
    )


def _check_others(path, written):
  """Beside it, what no card has written stays as it is."""
  old = path.read_bytes().decode(errors='replace') if path.exists() else ''
  ours = {path.name, *_beside(old)}
  files_there = {name: path.parent / name for name in written if name not in ours}
  others = [
    name
    for name, file in files_there.items()
    if file.exists() and not (file.is_file() and file.read_bytes() == written[name])
  ]
  if others:
    raise UsageError(
      f'{path.parent} holds {", ".join(others)}, which no card has written there; move them away, '
      'or write the card elsewhere (--out)'
    )


def _beside(text):
  """Names of the files that a card brings: pictures, the text of a licence."""
  pictures = re.findall(r'\]\(([^/\n]+?\.png)\)', text)
  return pictures + re.findall(r'^license_link: "(LICENSE(?:\.md)?)"$', text, re.M)


def _marked(text, contents):
  """With a last line that tells whether it, or one of its files {name: bytes}, was changed."""
  parts = [text.encode(), *(contents.get(name, b'') for name in _beside(text))]
  return text + MARK.format(hashlib.sha256(b''.join(parts)).hexdigest())


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
  fields: card_fields.Given,
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
  text = text.encode(errors='replace').decode()  # names of folders may be no text
  others = pictures | licence
  return others | {name: _marked(text, others).encode()}


if __name__ == '__main__':
  define_flags()
  cli.run(main)
