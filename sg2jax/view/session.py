"""The state of one tab of a viewer: what it shows, changed by whatever a person types."""

import dataclasses
import math
from typing import Any

import numpy as np

from sg2jax import inputs
from sg2jax.evaluation import ppl
from sg2jax.faults import UsageError
from sg2jax.models.layers import NOISE_MODES
from sg2jax.sampler import Sampler
from sg2jax.view import picture
from sg2jax.view.picture import Directions, Shown

OF_SEEDS = ('label', 'psi', 'cutoff', 'mix_seed')  # what a projected picture has no use for
OF_WALKS = ('walk_seeds', 'walk_seconds', 'walk_space')
CHOICES = {'noise': NOISE_MODES, 'walk_space': ppl.SPACES}
LARGEST = 1000.0  # of psi and strengths: beyond, no picture is left
MOST_SEEDS = 1000  # of a walk
MOST_SECONDS = 60.0  # from seed to seed


@dataclasses.dataclass
class Session:
  """Of one tab."""

  shown: Shown = Shown()
  walk_seeds: int = 8
  walk_seconds: float = 2.0  # from seed to seed
  walk_space: str = 'w'  # w: straight; z: on the sphere
  progress: str = ''  # of a search that is under way
  version: int = 0  # counts what was changed by others than the controls
  # What stands in a control and can't be taken, by control; '': of the last search or recording.
  troubles: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def message(self) -> str:
    """The newest of `troubles`; '': none."""
    return next(reversed(self.troubles.values()), '')

  def say(self, text: str, name: str = '') -> bool:
    """Notes what is wrong with a control, or by '' that nothing is any more; whether it is so."""
    self.troubles.pop('', None)
    self.troubles.pop(name, None)
    if text:
      self.troubles[name] = text
    return not text

  def set(self, net: Sampler, name: str, given: Any) -> bool:
    """Takes what was given for a control; if it can't be, all stays, and `message` says why.

    name: a field of Shown but `moves`, or one of this class. Returns whether it was taken.
    """
    if name == 'seed' and self.shown.start and not str(given or '').strip():
      return self.say('', name)  # as the field is while what was projected is shown
    try:
      value = _read(net, name, given)
      if name in OF_WALKS:
        setattr(self, name, value)
      else:
        if self.shown.start and name in OF_SEEDS and value != getattr(Shown, name):
          raise UsageError(f'{name} is for seeds, and this picture was projected; choose a seed')
        # A seed is chosen instead of what was projected.
        leaving = {'start': None} if name == 'seed' else {}
        self.shown = dataclasses.replace(self.shown, **{name: value} | leaving)
    except UsageError as e:
      return self.say(str(e), name)
    return self.say('', name)

  def move(self, directions: Directions, file: str, name: str, strength: Any) -> bool:
    """As `set`, of the strength of a direction."""
    if (file, name) not in directions:
      return self.say(f'the direction {name} of {file} is not there any more')
    control = f'{file}:{name}'
    try:
      value = _number(name, strength, -LARGEST, LARGEST)
    except UsageError as e:
      return self.say(str(e), control)
    others = tuple(move for move in self.shown.moves if move[:2] != (file, name))
    moves = sorted((*others, (file, name, value)) if value else others)
    self.shown = dataclasses.replace(self.shown, moves=tuple(moves))
    return self.say('', control)

  def mix(self, net: Sampler, first: Any, last: Any) -> bool:
    """As `set`, of both ends of the ws that are mixed."""
    # The far end first would be refused where the near one has yet to follow.
    try:
      ends = sorted(_whole('styles', x, 0, net.num_ws - 1) for x in (first, last))
    except UsageError as e:
      return self.say(str(e), 'styles')
    self.shown = dataclasses.replace(self.shown, mix_first=ends[0], mix_last=ends[1])
    return self.say('', 'styles')

  def strength(self, file: str, name: str) -> float:
    """Of a direction; 0 if it isn't used."""
    return next((x for *key, x in self.shown.moves if key == [file, name]), 0.0)

  def fit(self, net: Sampler, directions: Directions) -> None:
    """Lets go of what another network or other directions no longer have."""
    shown = self.shown
    changes = {'moves': tuple(move for move in shown.moves if move[:2] in directions)}
    if shown.cutoff is not None:
      changes['cutoff'] = min(shown.cutoff, net.num_ws)
    if shown.start and shown.start.latents.ws.shape[1] != net.num_ws:
      changes['start'] = None
    changes['mix_first'] = min(shown.mix_first, net.num_ws - 1)
    changes['mix_last'] = min(shown.mix_last, net.num_ws - 1)
    self.shown = dataclasses.replace(shown, **changes)


def _read(net, name, given):
  """The value of a control, from a number, a text, or nothing. Raises UsageError."""
  empty = given is None or (isinstance(given, str) and not given.strip())
  if name == 'seed':
    return _whole(name, given, 0, 2**32 - 1)
  if name == 'mix_seed':
    return None if empty else _whole('mixing seed', given, 0, 2**32 - 1)
  if name == 'cutoff':
    value = net.num_ws if empty else _whole(name, given, 0, net.num_ws)
    return None if value == net.num_ws else value  # all of them
  if name == 'psi':
    return _number(name, given, -LARGEST, LARGEST)
  if name == 'walk_seeds':
    return _whole('seeds of the walk', given, 2, MOST_SEEDS)
  if name == 'walk_seconds':
    return _number('seconds of the walk', given, 0.1, MOST_SECONDS)
  if name in CHOICES:
    if given not in CHOICES[name]:
      raise UsageError(f'{name}={given!s:.40} is unknown; choose from {", ".join(CHOICES[name])}')
    return given
  if name == 'label':
    text = '' if empty else str(given).strip()
    picture.label_of(net, text)
    return text
  raise UsageError(f'{name!s:.40} is no control of the viewer')


def _number(name, given, low, high):
  try:
    value = float(given)
  except (TypeError, ValueError, OverflowError):
    value = math.nan
  if not low <= value <= high:
    raise UsageError(f'{name}={given!s:.40} must be a number from {low:g} to {high:g}')
  return value


def _whole(name, given, low, high):
  value = math.nan
  try:
    # Of a text float() would lose nothing below 2^53, and takes 1e3 and ' 7 ', too.
    value = float(given)
  except (TypeError, ValueError, OverflowError):
    pass
  if not low <= value <= high or value != int(value):
    raise UsageError(f'{name}={given!s:.40} must be a whole number from {low} to {high}')
  return int(value)


# ---- what controls offer


def controls(net: Sampler) -> tuple:
  """What decides which controls there are, and their ranges."""
  label = net.labels.listing() if net.labels else ''
  return net.num_ws, net.generator.synthesis.resolution, classes(net), label


def classes(net: Sampler) -> list[str]:
  """Names or numbers of the classes of a network; [] where there are none."""
  return list(net.labels.class_counts()) if net.labels else []


def resolution_of(net: Sampler, number: int) -> int:
  """Pixels of the layers, but for torgb, that take this one of the ws: longer side."""
  blocks = net.num_ws // 2
  # The constant has no style but in StyleGAN's own architecture; torgb takes the last.
  first = number if net.config.g.architecture == 'stylegan1' else number + 1
  block = min(first // 2, blocks - 1)
  return max(net.generator.synthesis.resolution) >> (blocks - 1 - block)


def drawn_class(net: Sampler, shown: Shown) -> str:
  """The label of a picture by name, drawn or chosen; '' without labels."""
  if not net.labels or shown.start:
    return ''
  label = picture.label_of(net, shown.label)
  given: inputs.LabelsLike | None = None if label is None else np.asarray(label)
  return net.labels.name(net.c([shown.seed], given)[0])
