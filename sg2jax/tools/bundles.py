"""Writes a bundle: a folder to publish, see sg2jax/bundle.py for what is in it."""

import contextlib
import json
import pathlib
import re

from sg2jax import bundle, cli, files, sampler
from sg2jax.faults import UsageError
from sg2jax.tools import card, card_facts, card_fields
from sg2jax.training import checkpoint

# Of the files of a bundle, see bundle.py.
_NAMES = re.compile(
  '|'.join(map(re.escape, (bundle.WEIGHTS, bundle.CONFIG, bundle.LABELS, bundle.CARD)))
  + r'|(samples(_psi07)?|curves|neighbours_[\w.]+)\.png|LICENSE(\.md)?'
)


def write(path: str, dest: str) -> pathlib.Path:
  """Makes the bundle of a run, with the card of the flags of `card_fields.define`; its folder.

  Raises: UsageError as `destination`, `card.load` and `card_fields.given`; CheckpointError;
  WriteError.
  """
  folder = destination(dest)
  net, place = card.load(path)
  fields = card_fields.given()
  state, config = checkpoint.load(path)
  if int(state['step']) != net.step:
    raise UsageError(f'--checkpoint={path} was written to meanwhile; run the same command again')
  contents = card.make(net, place, fields, bundle.CARD, '', folder.name, folder.name)
  contents[bundle.WEIGHTS] = bundle.weights(state)
  text = json.dumps(without_places(config), indent=2, sort_keys=True) + '\n'
  contents[bundle.CONFIG] = text.encode()
  # Those that a file says; what `load` assumes where none does is no fact to publish.
  if labels := sampler.read_labels(path, net.config.c_dim):
    contents[bundle.LABELS] = labels.to_json().encode()
  with files.whole_folder(folder) as temporary:
    for name, data in contents.items():
      files.write_atomic(temporary / name, data)
    files.write_atomic(temporary / bundle.SUMS, bundle.sums(contents))
    destination(dest)  # once more: the pictures may have taken minutes
  return folder


def destination(dest: str) -> pathlib.Path:
  """The folder of a bundle: new, empty, or a bundle with nothing else in it and a card that
  nobody edited, which is replaced.

  Raises UsageError for any other.
  """
  folder = cli.folder(dest, 'bundle')
  with contextlib.suppress(FileNotFoundError):  # where one stands may have been deleted
    here = pathlib.Path.cwd()
    if folder.resolve() in (here, *here.parents):
      raise UsageError(f'--bundle={dest} is where you stand; name a folder in it')
  if folder.resolve().is_mount():
    raise UsageError(f'--bundle={dest} is a mount, which nothing can replace; name a folder in it')
  if not folder.is_dir() or not any(folder.iterdir()):
    return folder
  if not bundle.is_there(folder):
    raise UsageError(
      f'--bundle={dest} holds something, and is no bundle; name a folder that is empty or new'
    )
  listed = bundle.read_sums(folder)
  # A list that was written anew may name files of others, too.
  ours = {name for name in listed if _NAMES.fullmatch(name)} | {bundle.SUMS}
  others = sorted(p.name for p in folder.iterdir() if p.name not in ours or not p.is_file())
  if others:
    raise UsageError(
      f'--bundle={dest}: {", ".join(others[:3])} is not of the bundle there, and would be lost; '
      'move it away, or name another folder'
    )
  card.check_untouched(folder / bundle.CARD)
  for name in sorted(ours - {bundle.CARD, bundle.SUMS}):
    with contextlib.suppress(FileNotFoundError):
      if files.sha256(folder / name) != listed[name]:
        raise UsageError(
          f'--bundle={dest}: {name} was changed since it was written, and would be lost; move it '
          'away, or name another folder'
        )
  return folder


def without_places(config: dict) -> dict:
  """A configuration to publish: of paths on this machine, only the last name."""
  tree = json.loads(json.dumps(config))
  for name in card_facts.PLACES:
    *path, last = name.split('.')
    node = tree.get(path[0], {}) if path else tree
    given = node.get(last)
    if isinstance(given, list):
      node[last] = [card_facts.last_name(text) for text in given]
    elif given:
      node[last] = card_facts.last_name(given)
  return tree
