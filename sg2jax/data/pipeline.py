"""The deterministic stream of batches: which sample comes when.

The sample at stream position p is a function of (seed, p) alone, whatever the batch size, the
number of processes or the point of resumption. Without mirroring, position p is in epoch
p // len(source), and each epoch has its own permutation. With it the data set is as if it had twice
as many images, each plain and flipped, and an epoch is a permutation of all of these [ADA, A]: a
coin per position would show some images twice the same way, and others never flipped.
"""

from collections.abc import Iterator, Sequence
import math
import os
import sys
from typing import TYPE_CHECKING

import numpy as np

from sg2jax.faults import DatasetError

if TYPE_CHECKING:  # these import TFDS, and this file is imported without it
  from sg2jax.data.dataset import Source
  from sg2jax.data.holdout import Part
  from sg2jax.data.labels import Labels

Sample = dict[str, np.ndarray]
# Of the rule by which `order` mirrors, for what is kept of images that were taken in this order.
ORDER = 2


def load(
  name: str,
  data_dir: str,
  resolution: tuple[int, int],
  channels: int,
  labels: bool,
  holdout: float = 0.0,
) -> 'Source | Part':
  """Opens a data set and checks that it is what the configuration says.

  Args:
    name: 'digits' (bundled, any resolution), a TFDS name, 'name/config:version', the folder of a
      data set, or '' if `data_dir` is that folder.
    data_dir: TFDS data directory, or the folder of a data set; '': TFDS's own, of digits the cache.
    resolution: (height, width) in pixels.
    channels: 1 grey, 3 RGB, 4 RGBA.
    labels: whether labels are wanted.
    holdout: the share of images that are kept aside, see holdout.py. The result is then the part
      that is trained on, and its `held_out` the other one.

  Raises:
    DatasetError: missing, unreadable, in another record format, or unlike the arguments.
    WriteError: the bundled digits, or which images are kept aside, can't be written.
  """
  from sg2jax.data import dataset
  from sg2jax.data import holdout as holdout_lib

  source = dataset.open_source(name, data_dir, tuple(resolution), labels)
  height, width, stored_channels = source.shape
  if (height, width) != tuple(resolution):
    wanted = f'{resolution[0]}x{resolution[1]}'
    raise DatasetError(
      f'{source.place}: its images are {height}x{width}, resolution says {wanted}; set '
      f'resolution=({height}, {width}) or prepare it again with --resolution={wanted}'
    )
  if name == 'digits' and channels in dataset.MODES:
    # Grey, in whatever mode is asked for.
    source.shape = (height, width, channels)
  elif stored_channels != channels:
    remedy = f'set data.channels={stored_channels}'
    if channels in (1, 3, 4):
      remedy += f' or prepare it again with --channels={channels}'
    raise DatasetError(
      f'{source.place}: its images have {stored_channels} channels, the configuration says '
      f'{channels}; {remedy}'
    )
  return holdout_lib.split(source, holdout) if holdout else source


def check_size(source: 'Source | Part | Shrunk', batch: int) -> None:
  """Raises DatasetError if there are fewer images to train on than in a batch."""
  if len(source) >= batch:
    return
  aside = ''
  remedy = ''
  if source.held_out:
    aside = f' to train on (data.holdout keeps {len(source.held_out)} aside)'
    remedy = ', or lower data.holdout'
  raise DatasetError(
    f'{source.place}: {len(source)} images{aside}, fewer than batch={batch}; '
    f'set batch (and grow.batch) to {len(source)} or less{remedy}'
  )


# ---- images at a fraction of their size


def shrink(images: np.ndarray, factor: int) -> np.ndarray:
  """Means of boxes: uint8 [...,H,W,C] -> uint8 [...,H/factor,W/factor,C], rounded half to even.

  Sides are cut to multiples of `factor` at the bottom and the right. Takes arrays of JAX, too.
  """
  if factor == 1:
    return images
  *leading, height, width, channels = images.shape
  height //= factor
  width //= factor
  images = images[..., : height * factor, : width * factor, :]
  boxes = images.reshape(*leading, height, factor, width, factor, channels)
  return boxes.mean((-4, -2), dtype=np.float32).round().astype(np.uint8)


class Shrunk:
  """A Source at 1/factor of its size, for the early stages of a network that grows.

  Decoding a large picture for a few pixels of it would dwarf training, so the small ones are kept
  in memory if all of them fit.
  """

  MAX_BYTES = 2**30  # of the small images that are kept

  def __init__(self, source: 'Source | Part', factor: int) -> None:
    height, width, channels = source.shape
    self.shape = (height // factor, width // factor, channels)
    self.stored = source.shape
    self.c_dim = source.c_dim
    self.place = source.place
    self.places = source.places
    self.held_out = source.held_out
    self._source = source
    self._factor = factor
    self._cache = {}
    # 600: Python's share.
    self._fits = len(source) * (math.prod(self.shape) + 600) <= self.MAX_BYTES

  @property
  def labels(self) -> 'Labels | None':
    """As of the Source."""
    return self._source.labels

  def __repr__(self) -> str:
    return f'Shrunk({self._source}, {self._factor})'

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i: int) -> Sample:
    if i in self._cache:
      return self._cache[i]
    sample = self._source[i]
    sample = {**sample, 'image': shrink(sample['image'], self._factor)}
    if self._fits:
      self._cache[i] = sample
    return sample


# ---- the order of samples


def order(count: int, *, seed: int, mirror: bool) -> Sequence[tuple[int, bool]]:
  """The endless order of training over `count` images: at each position (image, is it flipped).

  mirror: whether each comes both ways.
  """
  import grain  # not above: see __init__.py

  # seed() before shuffle(): each epoch draws from it. NumPy takes 32 bits.
  numbers = grain.MapDataset.range(2 * count if mirror else count)
  shuffled = numbers.seed(seed % 2**32).shuffle().repeat()
  return shuffled.map(lambda number: (int(number) % count, int(number) >= count))


def stream(source: 'Source | Part | Shrunk', *, seed: int, mirror: bool) -> Sequence[Sample]:
  """The endless stream of samples in the order of training, each by its position; see `order`."""

  def read(entry):
    place, is_flipped = entry
    sample = source[place]
    return {**sample, 'image': flip(sample['image'])} if is_flipped else sample

  return order(len(source), seed=seed, mirror=mirror).map(read)


def flip(image: np.ndarray) -> np.ndarray:
  """[H,W,C], left to right."""
  flipped = np.empty_like(image)
  # By channels: NumPy copies a reversed view three bytes at a time, 6.0 ms for 1024x1024x3 against
  # 0.9.
  for channel in range(image.shape[2]):
    flipped[..., channel] = image[:, ::-1, channel]
  return flipped


def batches(
  source: 'Source | Part | Shrunk',
  *,
  batch: int,
  microbatch: int,
  seed: int,
  mirror: bool,
  nimg: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Sample]:
  """The endless stream of batches from position `nimg` on; reads and decodes ahead in threads.

  Args:
    source: what to read.
    batch: images per minibatch, of all processes; a multiple of `microbatch`.
    microbatch: images per accumulation round, of all processes; a multiple of `process_count`.
    seed: of the order.
    mirror: see `order`.
    nimg: stream position of the first sample; starting anywhere costs nothing.
    process_index: which slice of each round this process reads.
    process_count: how many slices there are.

  Returns:
    An iterator (with `close()`) of dict(image=uint8 [rounds,micro_local,H,W,C], label=float32
    [rounds,micro_local,c_dim]); rounds = batch / microbatch, micro_local = microbatch /
    process_count.
  """
  import grain

  rounds = batch // microbatch
  micro_local = microbatch // process_count
  samples = stream(source, seed=seed, mirror=mirror)

  def read_round(r: int) -> Sample:
    """This process's slice of accumulation round r, counted from `nimg`."""
    first = nimg + r * microbatch + process_index * micro_local
    return _stack([samples[first + k] for k in range(micro_local)])

  # A small picture decodes in less time than threads need to pass the GIL around (measured at 64
  # pixels: one thread 4,200 images/s, sixteen 3,600); a large one decodes outside the GIL.
  threads = 1 if math.prod(source.stored[:2]) < 128**2 else min(16, os.cpu_count() or 1)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2 * rounds, threads))
  endless = grain.MapDataset.range(sys.maxsize // microbatch - nimg).map(read_round)
  return iter(endless.to_iter_dataset(options).batch(rounds, batch_fn=_stack))


def _stack(samples: list[Sample]) -> Sample:
  return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
