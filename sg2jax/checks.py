"""What is wrong with a configuration, before anything starts: the value and the remedy."""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any

import jax

from sg2jax import augment, build, configurations, ops
from sg2jax.build import Config
from sg2jax.faults import UsageError
from sg2jax.models.sizes import ARCHITECTURES, GROWING, block_sizes, fmaps, image_side_layers

# What each field must be by itself: (rule, test, fields). `net.` stands for `g.` and for `d.`.
RULES: list[tuple[str, Callable[[Any], bool], str]] = [
  (
    'must be a finite number above 0',
    lambda v: math.isfinite(v) and v > 0,
    'total_kimg tick_kimg snapshot_kimg metrics_kimg opt.g_lr opt.d_lr opt.eps ema.kimg '
    'net.variant.mapping_lr_mul',
  ),
  (
    'must be a finite number, 0 or more',
    lambda v: math.isfinite(v) and v >= 0,
    'watchdog_seconds loss.r1_gamma loss.pl_weight opt.lr_rampup_kimg ema.rampup net.clamp '
    'grow.hold_kimg grow.fade_kimg augment.kimg',
  ),
  ('must lie in [0, 1]', lambda v: 0 <= v <= 1, 'loss.mixing_prob loss.pl_decay augment.p'),
  ('must lie in [0, 1)', lambda v: 0 <= v < 1, 'opt.beta1 opt.beta2 data.holdout augment.target'),
  ('must be less than 2^32', lambda v: v < 2**32, 'seed'),
  (
    'must be 1 or more',
    lambda v: v >= 1,
    'batch keep data.channels g.z_dim g.w_dim g.mapping_layers net.fmap_base net.fmap_max '
    'net.variant.fmap_min d.mbstd_group_size loss.pl_shrink grow.repeats augment.interval',
  ),
  (
    'must be 0 or more',
    lambda v: v >= 0,
    'microbatch seed swd_images net.num_bf16_res net.remat d.mapping_layers d.freeze_layers '
    'loss.r1_interval loss.pl_interval grow.start_res net.variant.layer_features '
    'net.variant.embed_features d.variant.cmap_dim d.variant.mbstd_num_channels',
  ),
  (
    'must be finite numbers whose sum is not 0, such as (1, 3, 3, 1)',
    lambda v: len(v) > 0 and all(math.isfinite(tap) for tap in v) and sum(v) != 0,
    'net.variant.taps',
  ),
]
# What a field of a Variant is, by its type: unlike others it can be given as anything.
TYPES = {
  int: (int, 'a whole number'),
  float: ((int, float), 'a number'),
  str: (str, 'a name'),
  tuple: ((list, tuple), 'a list of numbers'),
}
# The fields that name something, and what they may name.
CHOICES: dict[str, Sequence[str]] = {
  'g.architecture': ARCHITECTURES,
  'd.architecture': ARCHITECTURES,
  'g.variant.activation': tuple(ops.ACTIVATIONS),
  'd.variant.activation': tuple(ops.ACTIVATIONS),
  'opt.formulation': ('pytorch', 'tensorflow'),
  'precision': ('default', 'high', 'highest'),
  'device': ('gpu', 'tpu', 'accelerator', 'cpu', ''),
}


def check(config: Config) -> None:
  """Looks at all that can be known without data and devices. Starts and creates nothing.

  Raises:
    UsageError: with the value that is wrong, and the remedy.
  """
  sizes = _sizes(config)
  for net in configurations.VARIANTS:
    record = configurations.variant(config, net)
    for field in dataclasses.fields(record):
      name = field.name
      _need(name not in config[net], f'{net}.{name}: it is a field of {net}.variant; set it there')
      value = getattr(record, name)
      types, rule = TYPES[field.type]
      is_good = isinstance(value, types) and not isinstance(value, bool)
      _need(is_good, f'{net}.variant.{name}={" ".join(str(value).split())} must be {rule}')
  _check_fields(configurations.spell_out(config))
  _check_networks(config, sizes)
  _need(
    config.data.name or config.data.dir,
    "data.dir='' names no data set: give the directory that `python -m sg2jax.tools.prepare` "
    'wrote, or --config.data.name=digits',
  )
  _need(
    all(isinstance(name, str) for name in config.metrics),
    f"metrics={config.metrics} must be names, such as ('fid50k_full',)",
  )
  _check_augmentation(config)
  _check_growth(config, sizes)
  _check_batches(config)
  _check_profile(config)


def _need(is_good, text):
  if not is_good:
    raise UsageError(f'--config.{text}')


def _sizes(config):
  """Sizes of the blocks of config.resolution."""
  try:
    sides = build.resolution(config)
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
      raise TypeError('must be a whole number of pixels, or (height, width)')
    return block_sizes(sides)
  except (ValueError, TypeError) as e:
    raise UsageError(f'--config.resolution={config.resolution}: {e}') from None


def _names(fields):
  """The names in a string, those of both networks for `net.`."""
  names = []
  for name in fields.split():
    if name.startswith('net.'):
      names += [name.replace('net', net, 1) for net in configurations.VARIANTS]
    else:
      names.append(name)
  return names


def _check_fields(tree):
  """The RULES and CHOICES, of a configuration as a dict."""

  def value_of(name):
    value = tree
    for part in name.split('.'):
      value = value[part]
    return value

  for rule, test, fields in RULES:
    for name in _names(fields):
      try:
        is_good = test(value_of(name))
      except TypeError:  # the fields of a Variant may be of any type
        is_good = False
      _need(is_good, f'{name}={value_of(name)} {rule}')
  for name, choices in CHOICES.items():
    words = [choice for choice in choices if choice]
    rule = f'is unknown; choose from {", ".join(words)}'
    if '' in choices:
      rule += ', or leave it empty'
    _need(value_of(name) in choices, f'{name}={value_of(name)} {rule}')


def _check_networks(config, sizes):
  """What the fields of the networks must be together."""
  g = config.g.architecture
  d = config.d.architecture
  _need(
    (g == 'msg') == (d == 'msg'),
    f'd.architecture={d} does not fit g.architecture={g}: msg needs msg in both',
  )
  variant = configurations.variant(config, 'd')
  _need(
    config.d.mapping_layers or not variant.embed_features,
    f'd.variant.embed_features={variant.embed_features} needs d.mapping_layers of 1 or more; use 0',
  )
  channels = variant.mbstd_num_channels
  width = fmaps(max(sizes[0]), config.d.fmap_base, config.d.fmap_max, variant.fmap_min)
  _need(
    not channels or width % channels == 0,
    f'd.variant.mbstd_num_channels={channels} must divide the {width} feature maps of the last '
    'block; use 1',
  )
  most = len(image_side_layers(d, sizes))
  _need(
    config.d.freeze_layers <= most,
    f'd.freeze_layers={config.d.freeze_layers} must be at most {most}, which is all layers before '
    'the last block',
  )


def _check_augmentation(config):
  """The fields of config.augment together, and the networks that can be augmented."""
  name = config.augment.pipeline
  pipeline = configurations.augmentation(config)
  if pipeline is None:
    _need(
      not config.augment.variant,
      f'augment.variant={dict(config.augment.variant)} needs augment.pipeline, such as bgc',
    )
    _need(
      not config.augment.p,
      f'augment.p={config.augment.p} needs augment.pipeline, such as bgc; or set augment.p=0',
    )
    return
  _check_transforms(pipeline)
  _need(
    pipeline.has(*augment.TRANSFORMS),
    f'augment.pipeline={name} does nothing with augment.variant={dict(config.augment.variant)}: '
    "all strengths are 0; raise one, or set augment.pipeline=''",
  )
  _need(
    config.augment.p or config.augment.target,
    f'augment.pipeline={name} does nothing with augment.p=0 and augment.target=0; set one of them, '
    "or augment.pipeline=''",
  )
  _need(
    config.data.channels in (1, 3, 4) or not pipeline.has(*augment.COLOR),
    f'augment.pipeline={name} has colours, for which data.channels={config.data.channels} must be '
    '1, 3 or 4; use bg',
  )
  # Its D takes images of all sizes, which would have to be augmented alike.
  _need(
    config.d.architecture != 'msg',
    f"augment.pipeline={name} cannot augment what d.architecture=msg takes; set augment.pipeline=''"
    ', or use resnet',
  )


def _check_transforms(pipeline):
  """The strengths and ranges of an augment.Augment."""
  for field in dataclasses.fields(pipeline):
    value = getattr(pipeline, field.name)
    most = augment.largest(field.name)
    rule = f'must lie in [0, {most}]'
    values = (value,)
    if field.name == 'imgfilter_bands':
      rule = 'must be 4 numbers in [0, 1]'
      is_right = isinstance(value, tuple) and len(value) == len(augment.BANDS)
      values = value if is_right else (None,)
    elif field.name not in augment.TRANSFORMS:
      rule += f'; {field.default:g} is usual'
    is_good = all(
      isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v <= most for v in values
    )
    _need(is_good, f'augment.variant.{field.name}={" ".join(str(value).split())} {rule}')


def _check_growth(config, sizes):
  """The fields of config.grow, and the architectures that can grow."""
  grow = config.grow
  _check_pairs('batch', grow.batch, 'whole number', int)
  _check_pairs('lr', grow.lr, 'number', (int, float))
  if not grow.start_res:
    return
  starts = [4 << i for i in range(len(sizes))]
  _need(
    grow.start_res in starts,
    f'grow.start_res={grow.start_res} must be one of {", ".join(map(str, starts))}, or 0',
  )
  _need(
    grow.hold_kimg + grow.fade_kimg > 0,
    f'grow.hold_kimg={grow.hold_kimg} and grow.fade_kimg=0 leave no time to grow',
  )
  for net in configurations.VARIANTS:
    architecture = config[net].architecture
    _need(
      architecture in GROWING,
      f'{net}.architecture={architecture} cannot grow; use {" or ".join(GROWING)}, or set '
      'grow.start_res=0',
    )


def _check_pairs(name, pairs, what, kind):
  """config.grow.batch or config.grow.lr: ((pixels, value), ...)."""

  def is_good(pair):
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
      return False
    side, value = pair
    return isinstance(side, int) and isinstance(value, kind) and 0 < value < math.inf

  _need(
    all(is_good(pair) for pair in pairs),
    f'grow.{name}={pairs} must be pairs of pixels and a {what} above 0, such as ((8, 256), '
    '(16, 128))',
  )


def _check_batches(config):
  """What a minibatch, its rounds and its minibatch-stddev groups are divided into."""
  for batch, name in build.batches(config).items():
    micro = build.microbatch(config, batch)
    above = math.ceil(batch / micro) * micro
    _need(
      batch % micro == 0, f'{name}={batch} must be a multiple of microbatch={micro}; try {above}'
    )
    divisors = {}
    if configurations.variant(config, 'd').mbstd_num_channels:
      divisors['mbstd_group_size'] = min(config.d.mbstd_group_size, micro)
    if config.loss.pl_weight:
      divisors['pl_shrink'] = config.loss.pl_shrink
    for divisor, n in divisors.items():
      _check_multiple(config, name, micro, n, f'{divisor}={n}')


def _check_multiple(config, name, micro, n, what):
  """The images of a round, of a batch that the field `name` says."""
  name = 'microbatch' if config.microbatch else name
  below = micro // n * n
  near = f'{below} or {below + n}' if below else f'{n}'
  _need(micro % n == 0, f'{name}={micro} must be a multiple of {what}; try {near}')


def _check_profile(config):
  """The field that says which minibatches are traced."""
  try:
    build.profiled(config)
  except ValueError:
    raise UsageError(
      f'--config.profile={config.profile} must be STEP,COUNT: the number of a minibatch, 0 or '
      f'more, and how many from there on, 1 to {build.MAX_PROFILED}; such as 64,5'
    ) from None


def check_devices(config: Config, devices: Sequence[jax.Device]) -> None:
  """Whether the devices are of the kind that was asked for, and divide the batch.

  Raises:
    UsageError: with both, and the remedy.
  """
  kind = devices[0].platform
  n = len(devices)
  if config.device == 'accelerator':
    is_good = kind != 'cpu'
  elif config.device == 'gpu':
    is_good = kind in ('gpu', 'cuda', 'rocm')
  else:
    is_good = config.device in ('', kind)
  _need(
    is_good,
    f'device={config.device}, but JAX sees only {n} {kind} device(s); install the JAX build for '
    'your accelerator (pip install "jax[cuda13]" or "jax[tpu]"), or say --config.device=cpu',
  )
  for batch, name in build.batches(config).items():
    _check_multiple(config, name, build.microbatch(config, batch), n, f'the {n} devices')
