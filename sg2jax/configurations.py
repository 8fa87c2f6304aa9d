"""Configurations of any version, whole; and the records that some of their fields make up."""

import copy
import dataclasses
from typing import Any

import ml_collections

from sg2jax import augment
from sg2jax.faults import UsageError
from sg2jax.models.variant import DiscriminatorVariant, Variant

Config = Any  # a ConfigDict with the fields of configs/default.py
VARIANTS = {'g': Variant, 'd': DiscriminatorVariant}
ALL_RESOLUTIONS = 16  # of g.remat and d.remat: more than there are
# augment.pipeline=auto: this one with fewer pictures than so many, else none.
AUTO_PIPELINE = 'bgc'
AUTO_IMAGES = 10_000
# What config.json of a run may lack, because the field is younger, and what it then means.
YOUNGER = {
  'init_from': '',
  'profile': '',
  'watchdog_seconds': 600.0,
  'precision': 'default',
  'd.freeze_layers': 0,
  'data.allow_change': False,
  'data.holdout': 0.0,
  'augment': {
    'pipeline': '',
    'p': 0.0,
    'target': 0.6,
    'interval': 4,
    'kimg': 0.0,
    'variant': {},
  },
}


def complete(config: Config | dict) -> ml_collections.ConfigDict:
  """The config.json of a run of any version as a ConfigDict of this one, which can be changed.

  It gets the fields that are younger than it; those of a Variant move to where they are now, and
  remat becomes a number.
  """
  is_ours = isinstance(config, ml_collections.ConfigDict)
  tree = config.to_dict() if is_ours else copy.deepcopy(config)
  for name, value in YOUNGER.items():
    *path, last = name.split('.')
    node = tree[path[0]] if path else tree
    node.setdefault(last, copy.deepcopy(value))
  for net, record in VARIANTS.items():
    tree[net] = with_variant(tree[net], record)
    if tree[net]['remat'] is True:  # up to version 0.3: of all resolutions or none
      tree[net]['remat'] = ALL_RESOLUTIONS
    tree[net]['remat'] = int(tree[net]['remat'])
  return ml_collections.ConfigDict(tree)


def with_variant(fields: dict, record: type[Variant]) -> dict:
  """config.g or config.d as a dict, with the fields of its Variant in 'variant'.

  They may be there or, as in version 0.2, beside the others. Only what isn't as in the defaults
  remains.
  """
  defaults = dataclasses.asdict(record())
  values = {name: value for name, value in fields.items() if name in defaults}
  values |= fields.get('variant', {})
  rest = {name: value for name, value in fields.items() if name not in values}
  values = {name: _hashable(value) for name, value in values.items()}
  return rest | {'variant': {k: v for k, v in values.items() if v != defaults.get(k)}}


def variant(config: Config, net: str) -> Variant:
  """The record of config.g or config.d; net: 'g' or 'd'.

  Raises:
    UsageError: there is no such field.
  """
  record = VARIANTS[net]
  names = [field.name for field in dataclasses.fields(record)]
  for name in config[net].variant:
    if name not in names:
      raise UsageError(f'--config.{net}.variant: {name} is unknown; choose from {", ".join(names)}')
  return record(**{name: _hashable(value) for name, value in config[net].variant.items()})


def _hashable(value):
  """Networks are keys of caches, so that what they hold has to be hashable: tuples, no lists."""
  return tuple(value) if isinstance(value, list) else value


def spell_out(config: Config) -> dict:
  """A configuration as a dict, with all fields of its Variants."""
  tree = config.to_dict()
  for net in VARIANTS:
    tree[net]['variant'] = dataclasses.asdict(variant(config, net))
  pipeline = augmentation(config)
  tree['augment']['variant'] = dataclasses.asdict(pipeline) if pipeline else {}
  return tree


def chosen_pipeline(name: str, images: int) -> str:
  """The name of a pipeline, '' for none; for `auto`, what it is for a data set of `images`."""
  if name == 'auto':
    return AUTO_PIPELINE if images < AUTO_IMAGES else ''
  return name


def augmentation(config: Config, images: int = 0) -> augment.Augment | None:
  """The pipeline of config.augment, None for none.

  images: of the data set, for `auto`; by default few, as what is planned must allow.

  Raises:
    UsageError: there is no such pipeline, transform or range.
  """
  name = chosen_pipeline(config.augment.pipeline, images)
  if not name:
    return None
  if name not in augment.PIPELINES:
    raise UsageError(
      f'--config.augment.pipeline={name} is unknown; choose from auto, '
      f'{", ".join(augment.PIPELINES)}, or leave it empty'
    )
  fields = [field.name for field in dataclasses.fields(augment.Augment)]
  changes = {key: _hashable(value) for key, value in config.augment.variant.items()}
  for key in changes:
    if key not in fields:
      raise UsageError(
        f'--config.augment.variant: {key} is unknown; choose from {", ".join(fields)}'
      )
  return dataclasses.replace(augment.pipeline(name), **changes)
