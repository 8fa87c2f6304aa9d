"""What each style channel of a network does to CLIP's features: once for both, kept in the cache.

For global_directions.py. A large network takes hours, so what is finished stays: the same call goes
on with it, in this process or in another.
"""

from collections.abc import Iterator
import dataclasses
import hashlib
import json
import time
from typing import Any, NamedTuple

from absl import logging
import numpy as np

from sg2jax import files, paths, sampler
from sg2jax.clip import Clip
from sg2jax.edit import global_directions
from sg2jax.edit.text_losses import Tower
from sg2jax.progress import Progress

FORMAT = 2  # part of the key: files of another format are never opened
MAX_BYTES = 2**31
KEPT_EVERY = 20  # seconds
LATENTS_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True)
class Settings:
  """How they are measured, with StyleCLIP's values but for `latents`, of which it takes 100,000.

  original: as StyleCLIP's program does it: pixels cut off to bytes, channels never restored (see
  global_directions.Measured).
  """

  images: int = 100  # on which each channel is set off
  latents: int = 20_000  # of which styles have their mean and deviation
  psi: float = 0.7  # truncation of both
  alpha: float = global_directions.ALPHA
  seed: int = 5  # as there
  original: bool = False


class Effects(NamedTuple):
  """What the channels of a network do."""

  counts: dict[str, int]  # {layer: C} of convolutions, in order
  std: dict[str, np.ndarray]  # of styles, {layer: [C]}
  delta_i: np.ndarray  # unit [sum of C,E]


def measure(
  net: sampler.Sampler,
  clip: Clip,
  settings: Settings = Settings(),
  batch: int | None = None,
  stop: Any = (),
) -> Effects:
  """The Effects of a network, out of the cache or computed and left there.

  Args:
    net: whose channels.
    clip: whose features.
    settings: see Settings.
    batch: images at once, over all devices; None: what suits their size.
    stop: a signals.Stop.

  Raises: what `stop.leave` raises, once what is finished is kept; WriteError.
  """
  path = paths.cache() / 'effects' / f'{_key(net, clip, settings)}.npz'
  statistics, found = _read(path, clip.architecture.embed_dim)
  statistics = statistics or global_directions.statistics(net, _latents(net, settings, stop))
  layers = global_directions.convolutions(statistics.mean)
  counts = {layer: len(statistics.mean[layer]) for layer in layers}
  total = sum(counts.values())
  if len(found) < total:
    coming = _rest(net, clip, settings, counts, statistics, len(found), batch or net.batch)
    with Progress(total, 'effects', 'channels', len(found)) as progress:
      kept = time.monotonic()
      for rows in coming:
        found = np.concatenate([found, rows])
        progress.update(len(rows))
        is_last = len(found) == total
        is_leaving = bool(stop) and not is_last  # asked once: a signal may come any time
        if is_last or is_leaving or time.monotonic() - kept > KEPT_EVERY:
          _write(path, statistics, found)
          kept = time.monotonic()
        if is_leaving:
          stop.leave(f'{len(found)} of {total} channels are measured')
  return Effects(counts, {layer: statistics.std[layer] for layer in counts}, found)


def _rest(net, clip, settings, counts, statistics, first, batch) -> Iterator[np.ndarray]:
  """delta_i [K,E] of the channels from number `first` on, a few at a time."""
  measured = global_directions.Measured(
    counts, statistics, settings.alpha, settings.original, settings.original
  )
  look = global_directions.ChannelFeatures(net, Tower(clip.params, clip.architecture), measured)
  w = sampler.sample_w(net, settings.images, settings.seed + 1)
  styles = global_directions.read_styles(net, net.truncate(w, settings.psi))
  # Two images of each channel and each image; of large ones not all fit at once.
  images_at_once = max(1, min(settings.images, batch // 2))
  channels_at_once = max(1, batch // (2 * settings.images))
  for rows, count in sampler.parts(look.channels - first, channels_at_once):
    features = []
    for part, size in sampler.parts(settings.images, images_at_once):
      some = {layer: x[part] for layer, x in styles.items()}
      features.append(look(some, first + rows)[:, :size])
    yield global_directions.delta_i(np.concatenate(features, 1))[:count]


def _latents(net, settings, stop):
  """ws [N,num_ws,w_dim] of the statistics, in batches."""
  w = sampler.sample_w(net, settings.latents, settings.seed)
  for first in range(0, len(w), LATENTS_AT_ONCE):
    if stop:
      stop.leave('no channel is measured yet')
    yield net.truncate(w[first : first + LATENTS_AT_ONCE], settings.psi)


# ---- the cache


def _key(net, clip, settings):
  about = [FORMAT, net.hash(), clip.hash, dataclasses.asdict(settings)]
  return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def _write(path, statistics, found):
  arrays = {
    f'{name}/{layer}': x
    for name, of_layers in statistics._asdict().items()
    for layer, x in of_layers.items()
  }
  files.write_atomic(path, files.npz(delta_i=found, **arrays))


def _read(path, embed_dim):
  """(Statistics, rows [K,E]) that a file of the cache has; None and no rows, if it isn't whole."""
  nothing = None, np.zeros((0, embed_dim), np.float32)
  try:
    arrays = files.parse_npz(path.read_bytes(), MAX_BYTES)
    found = arrays.pop('delta_i')
    statistics = global_directions.Statistics({}, {})
    for name, x in arrays.items():
      kind, _, layer = name.partition('/')
      getattr(statistics, kind)[layer] = x
    if found.ndim != 2 or found.shape[1] != embed_dim or not np.isfinite(found).all():
      raise ValueError(f'delta_i of shape {list(found.shape)}')
  except FileNotFoundError:
    return nothing
  except Exception as e:  # whatever a file that isn't as it was written leads to
    logging.warning('%s is damaged (%s); it is computed anew', path, e)
    return nothing
  return statistics, found
