"""What takes a while: a dropped picture is projected, a pair of texts becomes a direction."""

import hashlib
import pathlib
import re
import unicodedata

import jax
import numpy as np

from sg2jax.data import images
from sg2jax.edit import direction, project, text_directions
from sg2jax.faults import UsageError
from sg2jax.tools.latents import Latents
from sg2jax.view.picture import Shown, Start
from sg2jax.view.server import Leaving, Viewer

STEPS = 500  # of a projection
SPACE = 'w+'  # what is dropped is rarely one of the network's own pictures
MOST_BYTES = 50_000_000  # of a file


def projected(viewer: Viewer, id: str, name: str, data: bytes) -> None:
  """Projects a picture file, and has the tab `id` show what was found.

  The distance is 'pyramid', which needs no weights. Raises: UsageError, if it is no picture;
  Interrupted, if the tab is closed or the server ends.
  """
  net = viewer.net
  session, leaving = _of_tab(viewer, id)
  session.progress = 'projecting: compiling'
  # What is found is to look like the picture: one that is too small to learn from will do.
  options = images.Options(
    *net.generator.synthesis.resolution,
    net.config.data.channels,
    allow_upscale=True,
    animation='first',
  )
  try:
    target = images.convert(data, options)
  except images.Unusable as e:
    raise UsageError(f'{name:.60}: {e.reason()}; drop a PNG or JPEG file') from None
  settings = project.Settings(STEPS, SPACE)
  projector = project.Projector(net, target[None], project.distance('pyramid'), settings)
  for step in range(STEPS):
    if leaving:
      leaving.leave(f'{name} is not projected')
    distance = float(projector.advance()[0])
    session.progress = f'projecting: {step + 1} of {STEPS}, distance {distance:.4f}'
  found = projector.result()
  if not np.isfinite(found.distance).all():
    raise UsageError(f'{name:.60}: the search was lost in numbers that are not finite')
  # of one picture [1,H,W,1], as variables of a network have them [H,W]
  noise = jax.tree.map(lambda maps: np.asarray(maps)[0, ..., 0], found.noise)
  stem = stem_of(name)
  latents = Latents([stem], np.array(found.ws), [0], [noise])
  moves = session.shown.moves
  session.shown = Shown(seed=session.shown.seed, moves=moves, start=Start(stem, latents))
  session.version += 1


def stem_of(name: str) -> str:
  """What files of a dropped picture are called: its name, where browsers and shells leave it so."""
  stem = pathlib.PurePath(name.replace('\\', '/')).stem
  tame = re.sub(r'[^\w .()+-]+', '_', unicodedata.normalize('NFC', stem))
  # A stem is not to look like a flag, or a hidden file, nor to be longer than files' names may be.
  return tame.strip(' ._-')[:60].strip(' ._-') or 'picture'


def of_texts(viewer: Viewer, id: str, source: str, target: str) -> str:
  """Finds the direction from one text to another, and saves it below edits/ of the run: its name.

  What the channels of the network do is measured the first time, which takes a minute for 32 px and
  hours for 1024, and kept. Raises: what text_directions.direction does; Interrupted, if the tab is
  closed or the server ends.
  """
  session, leaving = _of_tab(viewer, id)
  if not source.strip() or not target.strip():
    raise UsageError('say what there is, such as "a thin seven", and what it is to become')
  net = viewer.net
  session.progress = 'measuring what channels do; the first time this takes minutes'
  found = text_directions.direction(net, source.strip(), target.strip(), viewer.clip, stop=leaving)
  digest = hashlib.sha256(f'{net.hash()}\n{source}\n{target}'.encode()).hexdigest()[:12]
  direction.write(net.workdir / 'edits' / 'viewer' / f'{digest}.npz', [found])
  return found.name


def _of_tab(viewer, id):
  """Its session, and a Leaving. Raises Interrupted: it was closed while others were searching."""
  leaving = Leaving(viewer, id)
  session = viewer.sessions.get(id)
  if not session:
    leaving.leave('nothing was searched for')
  return session, leaving
