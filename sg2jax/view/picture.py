"""What a viewer shows, as a value; the picture of it, its files, and the command that makes it."""

from collections.abc import Mapping
import dataclasses
import math
import shlex
import sys

from flax import traverse_util
import numpy as np

from sg2jax import files, inputs
from sg2jax.edit import direction
from sg2jax.edit.direction import Direction, Edit
from sg2jax.evaluation import ppl
from sg2jax.faults import UsageError
from sg2jax.sampler import Sampler
from sg2jax.tools import generate, video
from sg2jax.tools.latents import Latents
from sg2jax.tools.pictures import names_of_seeds

Directions = Mapping[tuple[str, str], Direction]  # {(file, name): ...}
NO_WALK = 'a walk goes through seeds; choose one first'  # said of what was projected


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
  """What a picture begins with instead of a seed: a projection, one latent."""

  name: str  # of its file, without .npz
  latents: Latents


@dataclasses.dataclass(frozen=True)
class Shown:
  """All that decides about a picture, but for the network.

  With a `start` there is neither label nor truncation nor mix, and the seed counts for nothing.
  A mix has the styles of ws `mix_first` to `mix_last`, counted from the coarsest, of another seed.
  """

  seed: int = 0
  # a class by name or number, components of a vector 1,0,1; '': drawn from the seed
  label: str = ''
  psi: float = 1.0
  cutoff: int | None = None  # ws from the coarsest that are truncated; None: all
  noise: str = 'const'
  mix_seed: int | None = None  # None: no mix
  mix_first: int = 0
  mix_last: int = 0
  moves: tuple[tuple[str, str, float], ...] = ()  # (file, name, strength), by these two
  start: Start | None = None


def label_of(net: Sampler, text: str) -> inputs.LabelsLike | None:
  """What `Sampler.c` takes for the label of a Shown. Raises UsageError if there is no such one."""
  if not text:
    return None
  if net.labels and net.labels.one_hot:
    label = net.labels.index(text)
  else:
    label = [part.strip() for part in text.split(',')]
  return inputs.label_vectors(net.labels, label, 1)[0]


def latents(net: Sampler, shown: Shown) -> np.ndarray:
  """The ws [1,num_ws,w_dim] of a picture, before any direction."""
  if shown.start:
    return shown.start.latents.ws
  label = label_of(net, shown.label)
  options = {'psi': shown.psi, 'cutoff': shown.cutoff}
  if shown.mix_seed is None:
    return net.ws([shown.seed], label=label, **options)
  if not 0 <= shown.mix_first <= shown.mix_last < net.num_ws:
    raise UsageError(
      f'styles {shown.mix_first}-{shown.mix_last}: this network has the ws 0 to {net.num_ws - 1}'
    )
  styles = slice(shown.mix_first, shown.mix_last + 1)
  ws, _ = generate.mix(net, [shown.seed], [shown.mix_seed], styles, label, **options)
  return ws[1, 1:]


def edit_of(shown: Shown, directions: Directions) -> Edit:
  """The directions of a Shown with their strengths, as `Sampler.images` takes them."""
  found = []
  for file, name, strength in shown.moves:
    if (file, name) not in directions:
      raise UsageError(f'the direction {name} of {file} is not there any more; set it to 0')
    found.append((directions[file, name], strength))
  return found


def picture(net: Sampler, shown: Shown, directions: Directions) -> np.ndarray:
  """The picture, uint8 [H,W,C]: without a mix the bytes of the same call of `net`."""
  edit = edit_of(shown, directions)
  if shown.start:
    return shown.start.latents.images(net, shown.noise, 1, edit)[0]
  return net.images(latents(net, shown), shown.noise, [shown.seed], 1, edit)[0]


def npz(net: Sampler, shown: Shown, directions: Directions, path: str) -> bytes:
  """An .npz of the picture: its moved ws, offsets of styles, pixels, and the command for it.

  `--latents` of tools reads it, unless a direction moves styles. Of a Start the ws are those before
  any direction, with the noise maps that were found: what the command reads. path: as of `command`.
  """
  arrays = {
    'image': picture(net, shown, directions),
    'command': command(net, shown, path),
    'network': net.hash(),
  }
  if shown.start:
    (maps,) = shown.start.latents.noise
    noise = traverse_util.flatten_dict({'noise': maps}, sep='/')
    return files.npz(ws=shown.start.latents.ws, **noise, **arrays)
  ws, offsets = direction.apply(net, edit_of(shown, directions), latents(net, shown))
  styles = {f'styles/{layer}': x for layer, x in offsets.items()}
  return files.npz(
    ws=ws,
    names=names_of_seeds([shown.seed]),
    **styles,
    **arrays,
  )


def name_of(shown: Shown) -> str:
  """What files of it are called, without an ending."""
  return shown.start.name if shown.start else names_of_seeds([shown.seed])[0]


# ---- a walk


def walk_frame(
  net: Sampler, shown: Shown, directions: Directions, at: float, count: int, space: str = 'w'
) -> np.ndarray:
  """The picture at a place of a walk through `count` seeds and back to the first: uint8 [H,W,C].

  In w it goes straight from the ws of one seed to those of the next, in z on the sphere, labels
  blended, as `video` does; where `at` is whole, seed number `at` of the walk, and its picture as
  `picture` makes it. Random noise stays that of the first.
  """
  if not math.isfinite(at):
    raise UsageError(f'at={at} must be a finite number of seeds')
  if shown.start:
    raise UsageError(NO_WALK)
  at = at % count
  t = np.array([at % 1], np.float32)
  ends = [
    dataclasses.replace(shown, seed=(shown.seed + number % count) % 2**32)
    for number in (int(at), int(at) + 1)
  ]
  ws = latents(net, ends[0])
  if space == 'w':
    ws = ppl.lerp(ws, latents(net, ends[1]), t)
  elif t:
    seeds = [end.seed for end in ends]
    z, c = net.z(seeds), net.c(seeds, label_of(net, shown.label))
    w = net.map(video.arc(z[:1], z[1:], t), ppl.lerp(c[:1], c[1:], t))
    between = np.array(net.truncate(w, shown.psi, shown.cutoff))
    if shown.mix_seed is not None:
      lent = slice(shown.mix_first, shown.mix_last + 1)
      between[:, lent] = ws[:, lent]
    ws = between
  return net.images(ws, shown.noise, [shown.seed], 1, edit_of(shown, directions))[0]


# ---- commands


def checkpoint_of(net: Sampler, path: str) -> str:
  """The step that a network was read from; path: what was given, a workdir or a step of it."""
  step = net.workdir / 'checkpoints' / str(net.step)
  return str(step) if step.exists() else path


def command(net: Sampler, shown: Shown, path: str) -> str:
  """The command line that makes the same picture as a PNG file; path: of the checkpoint.

  Of a Start it reads the file that `npz` makes, where the user stands.
  """
  kind = 'images' if shown.mix_seed is None else 'mix'
  parts = [sys.executable.rpartition('/')[2] or 'python', '-m', 'sg2jax.tools.generate', kind]
  # One at a time, as it is made here: other batches may round otherwise.
  flags = {'checkpoint': checkpoint_of(net, path), 'seeds': shown.seed, 'batch': 1}
  if shown.start:
    del flags['seeds']
    flags['latents'] = f'{shown.start.name}.npz'
  if shown.mix_seed is not None:
    flags |= {'cols': shown.mix_seed, 'styles': f'{shown.mix_first}-{shown.mix_last}'}
  if shown.label:
    flags['class' if net.labels and net.labels.one_hot else 'label'] = shown.label
  if shown.psi != 1:
    flags['psi'] = repr(shown.psi)
  if shown.cutoff is not None:
    flags['cutoff'] = shown.cutoff
  if shown.noise != 'const':
    flags['noise'] = shown.noise
  parts += [f'--{name}={value}' for name, value in flags.items()]
  parts += [f'--edit={file}:{name}:{strength!r}' for file, name, strength in shown.moves]
  return shlex.join([*parts, '--out=pictures'])
