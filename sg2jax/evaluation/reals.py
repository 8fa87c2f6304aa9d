"""The data set that a network is measured against: that of its run, or another that fits."""

import pathlib
import re
from typing import Any

from sg2jax import build, data, paths
from sg2jax.data.labels import Labels
from sg2jax.faults import DatasetError, UsageError
from sg2jax.sampler import Sampler

PARTS = ('training', 'holdout', 'all')


def load(net: Sampler, named: str = '', labels: bool = True, part: str = '') -> Any:
  """The data.Source of a folder or TFDS name, by default that of the network's run.

  Args:
    net: the network.
    named: the folder or TFDS name.
    labels: whether they are read, and have to mean what the network's do.
    part: one of PARTS: what the run trains on, what its data.holdout keeps aside, or both. '':
      'training' of the run's own data set, of a named one 'all'.

  Raises: DatasetError, UsageError: there is none, or it doesn't fit.
  """
  config = net.config
  name = named or config.data.name
  folder = config.data.dir
  if not (name or folder):
    raise UsageError(
      f'{net.workdir} was imported and names no data set; name one, as in --data=DATA/mine'
    )
  is_place = named.startswith(('/', '.', '~')) or paths.is_address(named)
  if is_place or named and pathlib.Path(named).exists():
    name = ''
    folder = named
  share = config.data.holdout
  part = part or ('all' if named else 'training')
  if part == 'holdout' and not share:
    raise UsageError(
      f'--part=holdout: {net.workdir} was trained without data.holdout, on all pictures; use '
      '--part=training'
    )
  source = data.load(
    name,
    folder,
    build.resolution(config),
    config.data.channels,
    config.data.labels and labels,
    0.0 if part == 'all' else share,
  )
  if part == 'holdout':
    source = source.held_out
  if labels and source.c_dim != config.c_dim:
    raise UsageError(
      f'--data={named}: its labels have {source.c_dim} components, and those of the run '
      f'{config.c_dim}; use a data set with the same classes'
    )
  if labels and config.c_dim:
    check_labels(net.labels, source.labels, source.place)
  return source


def subfolder(net: Sampler, source: Any, named: str = '', part: str = '') -> str:
  """Where results of a `load`ed source belong, below those of what the run trains on; '': there.

  A part of the run's data set has its name; others have their own, and the hash that tells them
  apart.
  """
  if source.hash == net.config.get('data_hash'):
    return ''
  if named:
    return f'{re.sub(r"[^A-Za-z0-9.]+", "_", source.name)}-{source.hash[:8]}'
  return '' if part in ('', 'training') else part


def check_labels(trained: Labels, measured: Labels, place: str) -> None:
  """Raises DatasetError if labels mean something else than those trained on, if both say it."""
  # Older and imported runs don't say what theirs mean; they look like classes without names.
  said = trained.names or not trained.one_hot
  found = []
  if said and trained.one_hot != measured.one_hot:
    found = ['its labels are vectors' if trained.one_hot else "the run's labels are vectors"]
  elif trained.names and measured.names:
    pairs = enumerate(zip(measured.names, trained.names))
    found = [f'its class {i} is {x}, and that of the run {y}' for i, (x, y) in pairs if x != y]
  if found:
    raise DatasetError(
      f'{place}: {found[0]}; prepare it again with the classes of the run, in their order, or name '
      'another --data'
    )
