"""Latents that a tool starts from: those of seeds, of files, or of pictures that it projects."""

from collections.abc import Callable, Sequence
from functools import partial
import pathlib
from typing import Any, NamedTuple

from absl import flags
from flax import traverse_util
import numpy as np

from sg2jax import files
from sg2jax.edit import direction, project
from sg2jax.edit.direction import Edit
from sg2jax.edit.moves import moved_images
from sg2jax.faults import UsageError
from sg2jax.sampler import Sampler
from sg2jax.signals import Stop
from sg2jax.tools import flags as shared
from sg2jax.tools import pictures, projections

MAX_BYTES = 2**30
PROJECTING = ('distance', 'projection_space', 'projection_steps', 'weights')  # flags of --images
SHEETS = ('sheet', 'strengths')  # pictures beside those of latents: none of these is called so

# What `define_flags` defines counts as the calling tool's own, so that its --help shows it.
flags.disclaim_key_flags()


class Latents(NamedTuple):
  """N latents."""

  names: list[str]  # of their files
  ws: np.ndarray  # float32 [N,num_ws,w_dim]
  seeds: list[int]  # of random noise
  # Noise maps that were found with each, as a Sampler's variables have them; None: the network's.
  noise: Sequence[Any]
  pictures: np.ndarray | None = None  # uint8 [N,H,W,C], that were projected
  about: Sequence[dict] = ()  # of each of these, JSON

  def images(
    self,
    net: Sampler,
    noise: str = 'const',
    batch: int | None = None,
    edit: Edit | None = None,
  ) -> np.ndarray:
    """Their images, uint8 [N,H,W,C], 'const' with their own noise maps. As of Sampler.images."""
    if noise != 'const' or not any(self.noise):
      return net.images(self.ws, noise, self.seeds, batch, edit)
    ws, offsets = direction.apply(net, edit, self.ws)
    found = []
    for i in range(len(ws)):
      moves = {layer: x[i : i + 1] for layer, x in offsets.items()}
      found.append(moved_images(self.network(net, i), ws[i : i + 1], moves, 1))
    return np.concatenate(found)

  def network(self, net: Sampler, i: int) -> Sampler:
    """The network that makes image i: with the noise maps that were found with it."""
    maps = self.noise[i]
    return net._replace(variables=net.variables | {'noise': maps}) if maps else net

  def take(self, rows: Sequence[int]) -> 'Latents':
    """Some of them, without pictures."""
    names, ws, seeds, noise = ([x[i] for i in rows] for x in self[:4])
    return Latents(names, np.stack(ws), seeds, noise)


def define_flags() -> None:
  """--latents and --images; needs shared.define_image_flags and shared.define_psi."""
  what = (
    'Instead of --seeds: an .npz with ws [num_ws,w_dim] or [N,num_ws,w_dim], such as `project` '
    'writes, or a folder of them.'
  )
  flags.DEFINE_string('latents', None, what)
  what = (
    'Instead of --seeds: a picture, several (a.jpg,b.jpg) or a folder of them, which are projected '
    'first, as `project` does it.'
  )
  flags.DEFINE_string('images', None, what)
  flags.mark_flags_as_mutual_exclusive(['latents', 'images'])
  settings = project.Settings()
  what = '--images: w, one for all layers, or w+, one for each: closer, and harder to edit.'
  flags.DEFINE_enum('projection_space', settings.space, project.SPACES, what)
  flags.DEFINE_integer('projection_steps', settings.steps, '--images: of the search.', 1)
  projections.define_distance()


def read(
  net: Sampler, out: pathlib.Path, projected: pathlib.Path, stop: Stop
) -> Callable[[], Latents]:
  """Checks what --latents, --images or --seeds ask for, and returns what gives the Latents.

  That of --images projects them into the folder `projected`; other results go to `out`.

  Raises: UsageError, naming a file and the shape that is needed; what projections.job and
    pictures.read_items raise.
  """
  asked = flags.FLAGS
  given = next((x for x in ('latents', 'images') if asked[x].value is not None), '')
  if given and not asked[given].value:
    raise UsageError(f'--{given} names nothing; give a file or a folder')
  if given and (asked.psi != 1 or asked.cutoff is not None):
    raise UsageError(f'--psi and --cutoff are for --seeds; --{given} are taken as they are')
  if given and asked['seeds'].present:
    raise UsageError(f'--seeds and --{given} are both what is started from; give one of them')
  for name in PROJECTING:
    if asked[name].present and not asked.images:
      raise UsageError(f'--{name} is for pictures, which are projected: give them by --images')
  if asked.images:
    items = _items(net, out)
    settings = project.Settings(asked.projection_steps, asked.projection_space)
    job = projections.job(net, asked.distance, settings, asked.batch, stop)
    return partial(_projected, job, items, projected)
  if asked.latents:
    found = of_files(net, pathlib.Path(asked.latents).expanduser())
  else:
    seeds = asked.seeds
    ws = net.ws(seeds, asked.psi, asked.cutoff, shared.labels(net, len(seeds)))
    found = Latents(pictures.names_of_seeds(seeds), ws, seeds, [None] * len(seeds))
  return lambda: found


def of_files(net: Sampler, path: pathlib.Path) -> Latents:
  """Latents of an .npz or of a folder of them. Raises UsageError, naming a file."""
  places = sorted(path.glob('*.npz')) if path.is_dir() else [path]
  if not places:
    raise UsageError(f'--latents={path} has no .npz files')
  names, found, noise = [], [], []
  for place in places:
    ws, maps = _read(place, net)
    names += [place.stem] if len(ws) == 1 else [f'{place.stem}_{i:04d}' for i in range(len(ws))]
    found.append(ws)
    noise += [maps] * len(ws)
  names = pictures.unique(names, SHEETS)
  return Latents(names, np.concatenate(found), list(range(len(names))), noise)


def _read(path, net):
  """ws [N,num_ws,w_dim] of a file, and noise maps that go with them, None without."""
  wanted = (net.num_ws, net.generator.mapping.w_dim)
  try:
    with files.reading(path):
      data = path.read_bytes()
    arrays = files.parse_npz(data, MAX_BYTES, 'fiubU')
    ws = arrays['ws']
  except OSError as e:
    raise UsageError(f'--latents: cannot read {path}: {files.reason(e)}') from e
  except Exception as e:  # whatever a file that isn't as it was written leads to
    raise UsageError(f'--latents: {path} has no array ws of numbers ({e})') from e
  # One latent, not num_ws of them.
  ws = (ws[None] if ws.shape == wanted else ws).astype(np.float32)
  if ws.ndim != 3 or ws.shape[1:] != wanted or not len(ws) or not np.isfinite(ws).all():
    raise UsageError(
      f'--latents: {path} has ws {list(ws.shape)}; this network takes {list(wanted)} or '
      f'{["N", *wanted]} of finite numbers'
    )
  if any(name.startswith('styles/') and x.any() for name, x in arrays.items()):
    raise UsageError(
      f'--latents: {path} was moved in styles, which are not in its ws: the images would be those '
      'before the edit. Take the latents of before, and several directions by --edit of generate'
    )
  return ws, _noise(path, net, arrays)


def _noise(path, net, arrays):
  """The noise maps among the arrays of a file, as variables of a network; None without any."""
  found = {name: x for name, x in arrays.items() if name.startswith('noise/')}
  own = traverse_util.flatten_dict({'noise': net.variables['noise']}, sep='/')
  if not found:
    return None
  if {name: x.shape for name, x in found.items()} != {name: x.shape for name, x in own.items()}:
    raise UsageError(f'--latents: {path} has noise maps of another network')
  found = {name: x.astype(np.float32) for name, x in found.items()}
  return traverse_util.unflatten_dict(found, sep='/')['noise']


# ---- pictures


def _items(net, out):
  """The pictures of --images, each with a name of its own."""
  text = flags.FLAGS.images
  # A name may hold commas.
  whole = pathlib.Path(text).expanduser().exists()
  paths = [text] if whole else [x for x in text.split(',') if x]
  if not paths:
    raise UsageError(f'--images={text} names nothing; give a picture or a folder')
  items = [item for path in paths for item in pictures.read_items(path, net, out)]
  names = pictures.result_names([f'{item.name}.png' for item in items])
  return [item._replace(name=name) for item, name in zip(items, names)]


def _projected(job, items, out):
  """Latents of pictures, which are projected into a folder unless that was done before."""
  documents = projections.project_all(job, items, out, 'projecting ')
  found = [_read(out / f'{item.name}.npz', job.net) for item in items]
  ws, noise = zip(*found)
  keys = ('source', 'distance_start', 'distance')
  about = [{key: document[key] for key in keys} for document in documents]
  names = pictures.unique([item.name for item in items], SHEETS)
  shown = np.stack([item.image for item in items])
  return Latents(names, np.concatenate(ws), list(range(len(names))), noise, shown, about)
