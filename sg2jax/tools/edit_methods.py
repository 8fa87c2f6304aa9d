"""What moves images by text: StyleCLIP's three methods, as the flags of `edit` ask for them."""

import functools
import hashlib
import operator
import pathlib
import re
import sys
from typing import Any, NamedTuple

from absl import flags
import numpy as np

from sg2jax import clip as clips
from sg2jax import paths
from sg2jax.edit import (
  channel_effects,
  direction,
  mapper,
  mapper_files,
  mapper_training,
  optimize,
  project,
  text_directions,
)
from sg2jax.edit.direction import Direction
from sg2jax.edit.text_losses import Tower
from sg2jax.faults import NonFiniteError, UsageError
from sg2jax.nets import clip as clip_nets
from sg2jax.progress import Progress
from sg2jax.sampler import Sampler
from sg2jax.signals import Stop
from sg2jax.tools import flags as shared
from sg2jax.tools import mappers, pictures
from sg2jax.tools.latents import Latents

METHODS = ('global', 'optimize', 'mapper')
# Unless --strength says it; that of `optimize` is where its penalty is as --l2_lambda says.
STRENGTHS = {'channel': 3.0, 'direction': 1.0, 'global': 3.0, 'optimize': 3.0, 'mapper': 1.0}
# What --original has of a search unless flags say it.
ORIGINAL = {'steps': 300, 'l2_lambda': 0.008}
# StyleCLIP takes 50,000 for faces.
MAPPER_STEPS = 1000

# Who reads which flags: methods of `text`, or kinds. Those that all of them read aren't here.
READERS = {
  'channel': ('channel',),
  'edit': ('direction',),
  'strength': ('channel', *METHODS),
  **dict.fromkeys(('target', 'source', 'method', 'clip', 'clip_activation', 'original'), METHODS),
  **dict.fromkeys(('beta', 'channels', 'effect_images', 'effect_latents'), ('global',)),
  **dict.fromkeys(('augmentations', 'free'), ('optimize',)),
  **dict.fromkeys(('steps', 'space', 'lr', 'l2_lambda'), ('optimize', 'mapper')),
  **dict.fromkeys(('levels', 'minibatch', 'mapper'), ('mapper',)),
}
# Of those that `mapper` reads, what is said with a mapper that is trained.
TRAINED = ('strength', 'target', 'source', 'method', 'clip', 'clip_activation', 'mapper')
# What --free leaves no room for: it has a start of its own, no way from it and no penalty.
NOT_FREE = (
  *('seeds', 'latents', 'images', 'psi', 'cutoff', 'class', 'label'),
  *('source', 'strength', 'l2_lambda'),
)
LONGEST = 80  # bytes of a folder's name
FREE_LATENTS = 4096  # whose mean is where it begins, as in StyleCLIP

# What `define_flags` defines counts as the calling tool's own, so that its --help shows it.
flags.disclaim_key_flags()


def define_flags() -> None:
  """What the three of them read; needs latents.define_flags and those of images."""
  flags.DEFINE_string('source', '', 'text: what the images show, such as "a thin seven".')
  flags.DEFINE_string('target', '', 'text: what they are to show.')
  flags.DEFINE_enum('method', 'global', METHODS, 'text: see above.')
  flags.DEFINE_string('clip', 'digits', f'{", ".join(clips.NAMES)}, or a file of weights.')
  shared.define_clip_activation()
  what = "text: as StyleCLIP's own program does it, where it does something odd (docs/editing.md)."
  flags.DEFINE_bool('original', False, what)
  # ---- global
  what = 'global: the least relevance of a channel that is moved, such as 0.15.'
  shared.define_finite('beta', None, what, lower_bound=0)
  what = (
    'global: how many channels are moved; default: one of 32. Few for colours, more for shapes.'
  )
  flags.DEFINE_integer('channels', None, what, lower_bound=1)
  flags.mark_flags_as_mutual_exclusive(['beta', 'channels'])
  default = channel_effects.Settings()
  what = 'global: images on which channels are measured.'
  flags.DEFINE_integer('effect_images', default.images, what, 1)
  what = 'global: latents for the deviation of channels.'
  flags.DEFINE_integer('effect_latents', default.latents, what, 2)
  # ---- optimize, mapper
  search, training = optimize.Settings(), mapper_training.Settings()
  what = (
    f'optimize, mapper: of the search or training; default: {search.steps} (--original: '
    f'{ORIGINAL["steps"]}), {MAPPER_STEPS}.'
  )
  flags.DEFINE_integer('steps', None, what, lower_bound=1)
  flags.DEFINE_enum('space', search.space, optimize.SPACES, 'optimize, mapper: what is moved.')
  what = 'optimize: learning rate, at its largest; mapper: of all steps; default: {}, {}.'
  shared.define_finite('lr', None, what.format(search.lr, training.lr), lower_bound=0)
  what = (
    'optimize: weight of the sum of squares of what is added; mapper: of their mean; default: '
    f'{search.l2_lambda} (--original: {ORIGINAL["l2_lambda"]}), {training.latent_l2_lambda}.'
  )
  shared.define_finite('l2_lambda', None, what, lower_bound=0)
  what = (
    'optimize: the loss is the mean over so many views, moved, scaled and with noise, so that '
    'patterns that no person sees do not count; 0: of images as they are.'
  )
  flags.DEFINE_integer('augmentations', search.augmentations, what, 0)
  what = (
    'optimize: instead of edits one image, free.png, of the target: from the mean w, without the '
    'penalty.'
  )
  flags.DEFINE_bool('free', False, what)
  what = 'mapper: those of w+ that are moved: coarse, medium, fine, or all by one network.'
  flags.DEFINE_list('levels', list(training.levels), what)
  flags.DEFINE_integer('minibatch', 2, 'mapper: latents of a step of its training.', 1)
  what = "mapper: a file of one, ours or StyleCLIP's (.pt), instead of training one."
  flags.DEFINE_string('mapper', '', what)


def check(kind: str) -> None:
  """Raises UsageError for flags that are missing, aren't read or don't go together.

  kind: one of `edit`'s.
  """
  asked = flags.FLAGS
  _check_read(kind)
  if kind == 'text':
    _check_text()
  elif kind == 'channel' and not asked.channel:
    raise UsageError('say which channel is moved: --channel=b8.conv0.12')
  elif kind == 'direction' and not asked.edit:
    raise UsageError('say what moves the images: --edit=pca.npz:pca1:3')


def _check_read(kind):
  """Raises UsageError for a flag that would count for nothing."""
  asked = flags.FLAGS
  here = asked.method if kind == 'text' else kind
  for name, readers in READERS.items():
    if not asked[name].present:
      continue
    if here not in readers:
      places = ['edit text'] if set(METHODS) <= set(readers) else []
      places += [_place(x) for x in readers if not (places and x in METHODS)]
      raise UsageError(f'--{name} is for {" and ".join(places)}; {_place(here)} does not read it')
    if here == 'mapper' and asked.mapper and name not in TRAINED:
      raise UsageError(f'--{name} is for training a mapper; --mapper={asked.mapper} is trained')
  if here == 'mapper' and asked['levels'].present and asked.space == 's':
    raise UsageError('--levels is for --space=w+; with --space=s all convolutions are moved')


def _place(reader):
  return f'--method={reader}' if reader in METHODS else f'edit {reader}'


def _check_text():
  asked = flags.FLAGS
  if not asked.target:
    raise UsageError('say what the images are to show: --target="a thick seven"')
  if asked.method == 'global' and not asked.source:
    raise UsageError('say what they show now, --source="a thin seven", or take --method=optimize')
  if asked.method == 'optimize' and not strength() > 0:
    raise UsageError(f'--strength={asked.strength:g} of a search must be more than 0')
  given = [name for name in NOT_FREE if asked[name].present]
  if asked.free and given:
    raise UsageError(f'--{given[0]} is not for --free, which goes from the mean w to --target')
  if asked.method == 'optimize' and asked.noise != 'const':
    raise UsageError(
      f'--noise={asked.noise}: a search looks at images with constant noise; make others of its '
      'directions.npz, by generate --edit'
    )
  if asked.method == 'mapper' and asked.space == 'w':
    raise UsageError('--space=w: a mapper moves w+ or s')


def folder_name(kind: str) -> str:
  """What the folder of an edit is called unless --out says it: 'global-a-seven-a-thick-seven'.

  kind: one of `edit`'s. Another method, text, channel or direction has another name; where the
  characters that a name may have don't tell that, a hash does.
  """
  asked = flags.FLAGS
  if kind == 'channel':
    layer, number = asked.channel
    parts = [kind, f'{layer}.{number}']
  elif kind == 'direction':
    parts = [kind, *(f'{pathlib.PurePath(x.path).stem} {x.name} {x.low:g}' for x in asked.edit)]
  else:
    free = 'free' if asked.free else ''
    parts = [asked.method, free, pathlib.PurePath(asked.mapper).stem, asked.source, asked.target]
  text = ' '.join(filter(None, parts))
  name = re.sub(r'[^\w.+-]+', '-', text.lower()).strip('-')
  if len(name.encode()) > LONGEST or re.search(r'[^\w.+ -]', text):
    digest = hashlib.sha256(ascii(parts).encode()).hexdigest()[:8]
    short = name.encode()[: LONGEST - 1 - len(digest)].decode(errors='ignore')
    name = f'{short}-{digest}'
  return name


def strength(kind: str = 'text') -> float:
  """--strength, or what it is with a kind of `edit`, and of `text` with this --method."""
  asked = flags.FLAGS
  if asked.strength is not None:
    return asked.strength
  return STRENGTHS[asked.method if kind == 'text' else kind]


class Found(NamedTuple):
  """What moves images."""

  moves: list[Direction]  # of all, or of each
  amount: float  # of them
  relevance: text_directions.Relevance | None = None  # of global


def find(net: Sampler, clip: clips.Clip, given: Latents, out: paths.Path, stop: Stop) -> Found:
  """What --method finds.

  Raises: UsageError; NonFiniteError; what `stop.leave` raises; of --mapper WeightsError,
    CheckpointError.
  """
  asked = flags.FLAGS
  if asked.method == 'optimize':
    return Found(_optimized(net, clip, given, stop), 1.0)
  if asked.method == 'mapper':
    return Found([_mapper(net, clip, out, stop)], strength())
  settings = channel_effects.Settings(
    asked.effect_images, asked.effect_latents, original=asked.original
  )
  found = text_directions.relevance(
    net, asked.source, asked.target, clip, settings, asked.batch or None, stop
  )
  return Found([found.direction(asked.beta, asked.channels)], strength(), found)


def mix() -> Direction:
  """All that --edit names, at its strengths, as one Direction.

  Raises: as direction.read; UsageError: they are of different networks.
  """
  move = functools.reduce(operator.add, (move * times for move, times, _ in shared.edits()))
  # A file of others may have names that ours can't.
  return move.named(direction.name_of(move.name) or 'mix')


def free(net: Sampler) -> Latents:
  """What --free begins with: the mean w."""
  w, _ = project.statistics(net, FREE_LATENTS)
  ws = np.tile(w.astype(np.float32), (1, net.num_ws, 1))
  return Latents(['free'], ws, [0], [None])


# ---- towards a text


def _goal(clip):
  """What features of images are to be like, [1,E]."""
  asked = flags.FLAGS
  if asked.original:
    return clip.texts([asked.target])
  if asked.source and asked.method == 'optimize':
    # Away from what there is: what both texts say, such as the digit, counts for nothing. A mapper
    # goes to the target alone, as in StyleCLIP: it keeps digits better, at the same effect.
    return text_directions.between(clip, asked.source, asked.target)[None]
  return clip.text(asked.target)[None]


def _tower(clip):
  view = clip_nets.raw_view if flags.FLAGS.original else clip_nets.view
  return Tower(clip.params, clip.architecture, view)


def _about(clip) -> dict[str, Any]:
  """What a Direction says of how it was found, besides its settings."""
  asked = flags.FLAGS
  return {
    'source': asked.source,
    'target': asked.target,
    'clip': clip.name,
    'clip_hash': clip.hash,
    'original': asked.original,
  }


def _without_none(**fields):
  """Those that were asked for; of the others Settings have defaults."""
  return {name: x for name, x in fields.items() if x is not None}


def _optimized(net, clip, given, stop):
  """A Direction of each latent."""
  asked = flags.FLAGS
  fields = dict(ORIGINAL) if asked.original else {}
  fields |= _without_none(steps=asked.steps, lr=asked.lr, l2_lambda=asked.l2_lambda)
  if asked.free:
    fields['l2_lambda'] = 0.0
  settings = optimize.Settings(space=asked.space, augmentations=asked.augmentations, **fields)
  weight = settings.l2_lambda * (STRENGTHS['optimize'] / strength()) ** 2
  settings = settings._replace(l2_lambda=weight)
  goal = _goal(clip)
  about = _about(clip) | settings._asdict() | {'free': asked.free}
  moves = []
  names = pictures.unique([direction.name_of(name) or 'image' for name in given.names])
  # Noise maps that were found are of one image.
  batch = 1 if any(given.noise) else asked.batch or net.batch
  for first in range(0, len(given.ws), batch):
    ws = given.ws[first : first + batch]
    # What is searched is what will be shown.
    shown = given.network(net, first)
    optimizer = optimize.Optimizer(shown, ws, _tower(clip), goal, settings)
    label = f'images {first + 1}-{first + len(ws)} of {len(given.ws)}'
    with Progress(settings.steps, label, 'steps') as progress:
      for _ in range(settings.steps):
        if stop:
          stop.leave('nothing is written before all images are edited, so it begins anew')
        losses = optimizer.advance()
        # Waiting for each step keeps a signal from waiting for many.
        progress.update(note=f'loss {np.asarray(losses.loss).mean():.3f}')
    found = optimizer.result()
    if not all(np.isfinite(x).all() for x in (found.clip_loss, *found.moves.values())):
      raise NonFiniteError(
        f'the search of {label} is not finite any more; try a smaller --lr than {settings.lr:g}, '
        'or a --strength and --l2_lambda nearer to the defaults'
      )
    moves += [
      # StyleCLIP's program returns the image before the last update.
      found.direction(net, i, name, before=asked.original, **about)
      for i, name in enumerate(names[first : first + batch])
    ]
  return moves


def _mapper(net, clip, out, stop):
  """The Direction of --mapper, or of one that is trained."""
  asked = flags.FLAGS
  if asked.mapper:
    return _mapper_of_file(asked.mapper, net)
  said = []
  if asked.space == 'w+':
    _, said = mapper.usable_levels(asked.levels, net.num_ws)
  for line in said:
    print(f'--levels: {line}', file=sys.stderr)
  original = {'normalized': 'layers', 'optimizer': 'ranger'} if asked.original else {}
  settings = mapper_training.Settings(
    space=asked.space,
    levels=tuple(asked.levels),
    **_without_none(lr=asked.lr, latent_l2_lambda=asked.l2_lambda),
    **original,
  )
  # As --seeds are made, whatever is moved: latents and pictures have no labels of their own.
  label = shared.labels(net, 1 if asked.latents or asked.images else len(asked.seeds))
  if label is not None:
    label = np.unique(label, axis=0)  # so that other seeds of one class have the same mapper
  drawn = {
    'steps': asked.steps or MAPPER_STEPS,
    'minibatch': asked.minibatch,
    'label': label,
    'psi': asked.psi,
    'cutoff': asked.cutoff,
  }
  about = {'method': 'mapper'} | _about(clip) | settings._asdict() | drawn
  about['label'] = label if label is None else label.tolist()
  job = mappers.Job(net, _tower(clip), _goal(clip), settings, about=about, stop=stop, **drawn)
  return mappers.train(job, text_directions.named(asked.source, asked.target), out)


def _mapper_of_file(path, net):
  """A mapper of ours, or of StyleCLIP's. Raises UsageError, WeightsError, CheckpointError."""
  if not path.endswith('.npz'):
    return mapper_files.read(path, net)
  move = direction.read(path)
  if not move.mappers:
    raise UsageError(f'--mapper={path} holds the direction {move.name}, which is no mapper: --edit')
  move.check(net)
  return move
