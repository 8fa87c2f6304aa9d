"""Shows what augmentation (ADA) makes of pictures of a data set, on one sheet.

  python -m sg2jax.tools.show_augment --data=DATA/mine [--pipeline=bgc] [--p=0.2,0.5,0.8]
      [--set=rotate90=0 ...] [--out=augment.png]

DATA/mine is a data set of `prepare`, or a name such as digits. The first row has pictures as they
are, those below the same ones as D sees them, two rows for each p. This is how to find transforms
that could leak: such as make pictures that could be real ones. --set=TRANSFORM=STRENGTH changes the
pipeline as `config.augment.variant` does in training. docs/small_data.md says what to look for.
"""

import dataclasses
import math
import pathlib
import re

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from sg2jax import augment, cli, data
from sg2jax.data import dataset
from sg2jax.faults import UsageError
from sg2jax.sampler import to_uint8
from sg2jax.tools import flags as shared
from sg2jax.tools import sheets

COUNT = 8  # pictures
ROWS = 2  # of each p
SIDE = 256  # px of a picture on the sheet, at most
DIGITS = (32, 32)  # of the bundled ones, which have any size


def define_flags() -> None:
  """The command line."""
  flags.DEFINE_string('data', None, 'Folder, address or name of a data set.')
  shared.define_required('data', 'name a data set of `prepare`, as in --data=DATA/mine')
  flags.DEFINE_enum('pipeline', 'bgc', list(augment.PIPELINES), 'As config.augment.pipeline.')
  shared.define_parsed('p', '0.2,0.5,0.8', 'Probabilities of each transform.', _probabilities)
  flags.DEFINE_multi_string(
    'set', [], 'FIELD=NUMBER of augment.py, such as rotate90=0 or scale_std=0.1; may be repeated.'
  )
  flags.DEFINE_string('out', 'augment.png', 'File to write.')
  shared.define_seed('Of the choice of pictures, and of what is done to them.')


def _probabilities(text: str) -> list[float]:
  try:
    found = [float(part) for part in text.split(',')]
  except ValueError:
    found = [math.nan]
  if not all(0 <= p <= 1 for p in found):
    raise ValueError('must be numbers in [0, 1], such as 0.2,0.5,0.8')
  return found


def main(_: list[str]) -> None:
  """Draws the sheet."""
  given = flags.FLAGS
  out = cli.file(given.out, ('.png',))
  pipeline = dataclasses.replace(augment.pipeline(given.pipeline), **_changes(given.set))
  pictures = _read(given.data, given.seed)
  rows = augmented(pipeline, pictures, given.p, given.seed)
  names = ['originals']
  for p in given.p:
    names += [f'p = {p:g}'] + [''] * (ROWS - 1)
  sheet = data.shrink(np.stack([pictures, *rows]), -(-max(pictures.shape[1:3]) // SIDE))
  sheets.write_sheet(out, sheet, names)
  print(f'{out}: {len(pictures)} pictures of {given.data}, {given.pipeline}')


def _changes(pairs):
  """{field: number} of --set."""
  known = [field.name for field in dataclasses.fields(augment.Augment) if field.type is float]
  changes = {}
  for pair in pairs:
    name, _, text = pair.partition('=')
    if name not in known:
      raise UsageError(f'--set={pair}: there is no {name!r}; choose from {", ".join(known)}')
    if not re.fullmatch(r'\d+(\.\d*)?|\.\d+', text):
      raise UsageError(f'--set={pair} must be {name}=NUMBER, as in {name}=0')
    changes[name] = float(text)
    most = augment.largest(name)
    if changes[name] > most:
      raise UsageError(f'--set={pair} must lie in [0, {most}], as in {name}={most}')
  return changes


def _read(named, seed):
  """Some pictures of a data set, uint8 [COUNT,H,W,C], or fewer where there are fewer."""
  is_place = '/' in named or pathlib.Path(named).exists()
  where = ('', named) if is_place else (named, '')
  source = dataset.open_source(*where, DIGITS, labels=False)
  chosen = np.random.RandomState(seed).permutation(len(source))[:COUNT]
  return np.stack([source[i]['image'] for i in chosen.tolist()])


def augmented(
  pipeline: augment.Augment, pictures: np.ndarray, ps: list[float], seed: int
) -> list[np.ndarray]:
  """ROWS times the pictures uint8 [N,H,W,C] for each p; the random numbers are the same for all p.

  So what is done at a small p is done at a large one, too.
  """

  @jax.jit
  def row(key, p):
    x = jnp.asarray(pictures, jnp.float32) / 127.5 - 1
    draws = pipeline.draw(key, (len(x),), x.shape[1:], x.dtype)
    return to_uint8(pipeline.apply(x, draws, p))

  keys = jax.random.split(jax.random.key(seed), ROWS)
  return [np.asarray(row(key, p)) for p in ps for key in keys]


if __name__ == '__main__':
  define_flags()
  cli.run(main)
