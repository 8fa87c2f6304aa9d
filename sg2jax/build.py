"""From a configuration to checked networks and steps. With `train` and the tools, the only reader
of `config`.
"""

import copy
import dataclasses
import math
from typing import Any

import jax
import ml_collections

from sg2jax import data, keys, ops, schedule, sharding
from sg2jax import state as state_lib
from sg2jax.faults import UsageError
from sg2jax.models import stylegan2
from sg2jax.models.mapping import Mapping
from sg2jax.models.stylegan2 import (
  ARCHITECTURES,
  GROWING,
  Discriminator,
  Generator,
  Synthesis,
  block_sizes,
  fmaps,
  image_side_layers,
)
from sg2jax.models.variant import DiscriminatorVariant, Variant
from sg2jax.steps import TrainSteps

FORMULATIONS = ('pytorch', 'tensorflow')
PRECISIONS = ('default', 'high', 'highest')
VARIANTS = {'g': Variant, 'd': DiscriminatorVariant}
# What config.json of a run may lack, because the field is younger, and what it then means.
YOUNGER = {
  'init_from': '',
  'precision': 'default',
  'd.freeze_layers': 0,
  'data.allow_change': False,
}


def complete(config):
  """The config.json of a run of any version, as a ConfigDict of this one that can be changed.

  It gets the fields that are younger than it, and those of Variants are where they belong now.

  Args:
    config: a dict, or a ConfigDict, which stays as it is.
  """
  is_ours = isinstance(config, ml_collections.ConfigDict)
  tree = config.to_dict() if is_ours else copy.deepcopy(config)
  for name, value in YOUNGER.items():
    *path, last = name.split('.')
    node = tree[path[0]] if path else tree
    node.setdefault(last, value)
  for net, record in VARIANTS.items():
    tree[net] = with_variant(tree[net], record)
  return ml_collections.ConfigDict(tree)


def with_variant(fields, record):
  """A dict config.g or config.d in which the fields of its Variant are in 'variant'.

  That's where they may be already, and only those that differ from the defaults remain.
  """
  defaults = dataclasses.asdict(record())
  values = {name: value for name, value in fields.items() if name in defaults}
  values |= fields.get('variant', {})
  rest = {name: value for name, value in fields.items() if name not in values}
  values = {name: _frozen(value) for name, value in values.items()}
  return rest | {'variant': {k: v for k, v in values.items() if v != defaults.get(k)}}


def variant(config, net):
  """The Variant of config.g or the DiscriminatorVariant of config.d; net: 'g' or 'd'.

  Raises: UsageError for a field that it doesn't have.
  """
  record = VARIANTS[net]
  names = [field.name for field in dataclasses.fields(record)]
  for name in config[net].variant:
    if name not in names:
      raise UsageError(f'--config.{net}.variant: {name} is unknown; choose from {", ".join(names)}')
  return record(**{name: _frozen(value) for name, value in config[net].variant.items()})


def spell_out(config):
  """A configuration as a dict, with all fields of its Variants."""
  tree = config.to_dict()
  for net in VARIANTS:
    tree[net]['variant'] = dataclasses.asdict(variant(config, net))
  return tree


def _frozen(value):
  return tuple(value) if isinstance(value, list) else value


def resolution(config):
  """(height, width) of config.resolution."""
  r = config.resolution
  return (r, r) if isinstance(r, int) else tuple(r)


def microbatch(config, batch):
  """Images per round of gradient accumulation of a minibatch of `batch`."""
  return config.microbatch or batch


def batches(config):
  """{minibatch size: name of the field that says so}, of all stages."""
  grows = growth(config)
  sides, table = [grows.side >> level for level in range(grows.levels + 1)], dict(grows.batches)
  return {
    table.get(side, config.batch): f'grow.batch[{side}]' if side in table else 'batch'
    for side in sides
  }


def check(config):
  """Raises UsageError with the offending value and the remedy. Starts no device, creates
  nothing.
  """

  def need(ok, name, value, rule):
    if not ok:
      raise UsageError(f'--config.{name}={value} {rule}')

  for net in VARIANTS:
    for name in dataclasses.asdict(variant(config, net)).keys() & config[net].keys():
      raise UsageError(f'--config.{net}.{name}: it is a field of {net}.variant; set it there')
  spelled_out = spell_out(config)

  def each(names, ok, rule):
    for name in names.split():
      value = spelled_out
      for part in name.split('.'):
        value = value[part]
      try:
        is_good = ok(value)
      except TypeError:  # a Variant's fields have no type until they are looked at
        is_good = False
      need(is_good, name, value, rule)

  try:
    if (
      not all(isinstance(side, int) for side in resolution(config)) or len(resolution(config)) != 2
    ):
      raise TypeError('must be a whole number of pixels, or (height, width)')
    sizes = block_sizes(resolution(config))
  except (ValueError, TypeError) as e:
    raise UsageError(f'--config.resolution={config.resolution}: {e}') from None
  each(
    'total_kimg tick_kimg snapshot_kimg metrics_kimg g.variant.mapping_lr_mul '
    'd.variant.mapping_lr_mul opt.g_lr opt.d_lr opt.eps ema.kimg',
    lambda v: math.isfinite(v) and v > 0,
    'must be a finite number above 0',
  )
  each(
    'loss.r1_gamma loss.pl_weight ema.rampup g.clamp d.clamp opt.lr_rampup_kimg grow.hold_kimg '
    'grow.fade_kimg',
    lambda v: math.isfinite(v) and v >= 0,
    'must be a finite number, 0 or more',
  )
  each('loss.mixing_prob loss.pl_decay', lambda v: 0 <= v <= 1, 'must lie in [0, 1]')
  each('opt.beta1 opt.beta2', lambda v: 0 <= v < 1, 'must lie in [0, 1)')
  each('seed', lambda v: v < 2**32, 'must be less than 2^32')
  each(
    'batch keep data.channels g.fmap_base g.fmap_max g.variant.fmap_min g.z_dim g.w_dim '
    'g.mapping_layers d.fmap_base d.fmap_max d.variant.fmap_min d.mbstd_group_size '
    'loss.pl_shrink grow.repeats',
    lambda v: v >= 1,
    'must be 1 or more',
  )
  each(
    'loss.r1_interval loss.pl_interval grow.start_res microbatch seed swd_images g.num_bf16_res '
    'd.num_bf16_res d.mapping_layers d.freeze_layers g.variant.layer_features '
    'g.variant.embed_features d.variant.layer_features d.variant.embed_features '
    'd.variant.cmap_dim d.variant.mbstd_num_channels',
    lambda v: v >= 0,
    'must be 0 or more',
  )
  each(
    'g.architecture d.architecture',
    lambda v: v in ARCHITECTURES,
    f'is unknown; choose from {", ".join(ARCHITECTURES)}',
  )
  each(
    'g.variant.activation d.variant.activation',
    lambda v: v in ops.ACTIVATIONS,
    f'is unknown; choose from {", ".join(ops.ACTIVATIONS)}',
  )
  each(
    'g.variant.taps d.variant.taps',
    lambda v: len(v) and all(math.isfinite(tap) for tap in v) and sum(v),
    'must be finite numbers whose sum is not 0, such as (1, 3, 3, 1)',
  )
  each(
    'opt.formulation',
    lambda v: v in FORMULATIONS,
    f'is unknown; choose from {", ".join(FORMULATIONS)}',
  )
  each('precision', lambda v: v in PRECISIONS, f'is unknown; choose from {", ".join(PRECISIONS)}')
  each(
    'device',
    lambda v: v in ('', 'cpu', 'gpu', 'tpu', 'accelerator'),
    'is unknown; choose from gpu, tpu, accelerator, cpu, or leave it empty',
  )
  d_variant = variant(config, 'd')
  need(
    config.d.mapping_layers or not d_variant.embed_features,
    'd.variant.embed_features',
    d_variant.embed_features,
    'needs d.mapping_layers of 1 or more; use 0',
  )
  need(
    config.data.name or config.data.dir,
    'data.dir',
    "''",
    'names no data set: give the directory that `python -m sg2jax.tools.prepare` wrote, or '
    '--config.data.name=digits',
  )
  most = len(image_side_layers(config.d.architecture, sizes))
  need(
    config.d.freeze_layers <= most,
    'd.freeze_layers',
    config.d.freeze_layers,
    f'must be at most {most}, which is all layers before the last block',
  )
  _check_growth(config, sizes, need)
  _check_batches(config, sizes, need)


def _check_batches(config, sizes, need):
  """The checks of what a minibatch, its rounds and its minibatch-stddev groups are divided into."""
  channels = variant(config, 'd').mbstd_num_channels
  if channels:
    least = variant(config, 'd').fmap_min
    width = fmaps(max(sizes[0]), config.d.fmap_base, config.d.fmap_max, least)
    need(
      width % channels == 0,
      'd.variant.mbstd_num_channels',
      channels,
      f'must divide the {width} feature maps of the last block; use 1',
    )
  for batch, name in batches(config).items():
    micro = microbatch(config, batch)
    group = min(config.d.mbstd_group_size, micro)
    need(
      batch % micro == 0,
      name,
      batch,
      f'must be a multiple of microbatch={micro}; try {math.ceil(batch / micro) * micro}',
    )
    name = 'microbatch' if config.microbatch else name
    if channels:
      need(
        micro % group == 0,
        name,
        micro,
        f'must be a multiple of mbstd_group_size={group}; try {_near(micro, group)}',
      )
    if config.loss.pl_weight:
      need(
        micro % config.loss.pl_shrink == 0,
        name,
        micro,
        f'must be a multiple of pl_shrink={config.loss.pl_shrink}; try '
        f'{_near(micro, config.loss.pl_shrink)}',
      )


def _check_growth(config, sizes, need):
  """The checks of architectures that only go together, and of the fields of config.grow."""
  g, d, grow = config.g.architecture, config.d.architecture, config.grow
  need(
    (g == 'msg') == (d == 'msg'),
    'd.architecture',
    d,
    f'does not fit g.architecture={g}: msg needs msg in both',
  )
  for name, kind in (('batch', int), ('lr', (int, float))):
    for pair in grow[name]:
      need(
        isinstance(pair, (tuple, list))
        and len(pair) == 2
        and isinstance(pair[0], int)
        and isinstance(pair[1], kind)
        and 0 < pair[1] < math.inf,
        f'grow.{name}',
        grow[name],
        f'must be pairs of pixels and a {"whole " if kind is int else ""}number above 0, such as '
        '((8, 256), (16, 128))',
      )
  if not grow.start_res:
    return
  starts = [4 << i for i in range(len(sizes))]
  need(
    grow.start_res in starts,
    'grow.start_res',
    grow.start_res,
    f'must be one of {", ".join(map(str, starts))}, or 0',
  )
  need(
    grow.hold_kimg + grow.fade_kimg > 0,
    'grow.hold_kimg',
    grow.hold_kimg,
    'and grow.fade_kimg=0 leave no time to grow',
  )
  for name in ('g', 'd'):
    need(
      config[name].architecture in GROWING,
      f'{name}.architecture',
      config[name].architecture,
      f'cannot grow; use {" or ".join(GROWING)}, or set grow.start_res=0',
    )


def check_devices(config, devices):
  """Raises UsageError if the devices aren't of the kind that was asked for, or don't divide the
  batch.
  """
  kind, n = devices[0].platform, len(devices)
  wanted = {
    'gpu': ('gpu', 'cuda', 'rocm'),
    'tpu': ('tpu',),
    'cpu': ('cpu',),
    '': (kind,),
    'accelerator': tuple({kind} - {'cpu'}),
  }[config.device]
  if kind not in wanted:
    raise UsageError(
      f'--config.device={config.device}, but JAX sees only {n} {kind} device(s); install the JAX '
      'build for '
      f'your accelerator (pip install "jax[cuda13]" or "jax[tpu]"), or say --config.device=cpu'
    )
  for batch, name in batches(config).items():
    micro = microbatch(config, batch)
    if micro % n:
      raise UsageError(
        f'--config.{"microbatch" if config.microbatch else name}={micro} must be a multiple of the '
        f'{n} devices; try {_near(micro, n)}'
      )


def _near(value, multiple):
  low = value // multiple * multiple
  return f'{low} or {low + multiple}' if low else f'{multiple}'


def growth(config):
  """The schedule.Growth of a configuration; without growing it has 0 levels, and one stage for
  ever.
  """
  grow, opt, sizes = config.grow, config.opt, block_sizes(resolution(config))
  levels = len(sizes) - 1 - int(math.log2(grow.start_res / 4)) if grow.start_res else 0
  pairs = lambda name: tuple(map(tuple, grow[name])) if grow.start_res else ()
  return schedule.Growth(
    4 << len(sizes) - 1,
    levels,
    grow.hold_kimg,
    grow.fade_kimg,
    config.batch,
    opt.g_lr,
    opt.d_lr,
    pairs('batch'),
    pairs('lr'),
    pairs('lr'),
    grow.repeats if levels else 1,
  )


def networks(config, c_dim):
  """(Generator, Discriminator) for labels of c_dim components."""
  g, d, size = config.g, config.d, resolution(config)
  generator = Generator(
    Mapping(
      g.z_dim,
      c_dim,
      g.w_dim,
      g.mapping_layers,
      variant(config, 'g'),
      joint=g.architecture in GROWING,
      bias_gain=stylegan2.HALF if g.architecture == 'stylegan1' else 1,
    ),
    Synthesis(
      size,
      config.data.channels,
      g.fmap_base,
      g.fmap_max,
      g.architecture,
      g.num_bf16_res,
      g.clamp or None,
      use_noise=g.noise,
      remat=g.remat,
      variant=variant(config, 'g'),
    ),
  )
  discriminator = Discriminator(
    size,
    d.fmap_base,
    d.fmap_max,
    c_dim,
    d.architecture,
    d.num_bf16_res,
    d.clamp or None,
    mbstd_group_size=d.mbstd_group_size,
    mapping_layers=d.mapping_layers,
    remat=d.remat,
    variant=variant(config, 'd'),
  )
  return generator, discriminator


def steps(config, c_dim, mesh, stage=None):
  """The TrainSteps of a configuration in a stage of its growth (None: the first); mesh: over which
  they divide work, or None.
  """
  generator, discriminator = networks(config, c_dim)
  loss, opt, grows = config.loss, config.opt, growth(config)
  stage, tensorflow = stage or grows.stage(0), opt.formulation == 'tensorflow'
  # Adam is corrected for the interval even if the regularizer's weight is 0, as in config C [S2
  # Table 1].
  adam = lambda lr, interval: state_lib.adam(
    lr, opt.beta1, opt.beta2, opt.eps, interval, tensorflow
  )
  frozen = image_side_layers(config.d.architecture, block_sizes(resolution(config)))[
    : config.d.freeze_layers
  ]
  places = {'constrain': sharding.constrain(mesh), 'spread': sharding.spread(mesh)} if mesh else {}
  return TrainSteps(
    generator,
    discriminator,
    g_tx=adam(stage.g_lr, loss.pl_interval),
    d_tx=state_lib.frozen(adam(stage.d_lr, loss.r1_interval), frozen),
    r1_gamma=loss.r1_gamma,
    r1_interval=loss.r1_interval,
    pl_weight=loss.pl_weight,
    pl_decay=loss.pl_decay,
    pl_interval=loss.pl_interval,
    pl_shrink=loss.pl_shrink,
    mixing_prob=loss.mixing_prob,
    ema_kimg=config.ema.kimg,
    ema_rampup=config.ema.rampup or None,
    lr_rampup_kimg=opt.lr_rampup_kimg,
    mean_rounds=tensorflow,
    growth=grows if grows.levels else None,
    stage=stage,
    precision=config.precision,
    check_updates=any(
      state_lib.can_overflow(lr, opt.beta1, opt.beta2, opt.eps) for lr in (stage.g_lr, stage.d_lr)
    ),
    **places,
  )


def init_state(config, steps_, place):
  """A fresh TrainState of config.seed; place: a sharding, or None."""
  make = lambda key: state_lib.create_train_state(
    key, steps_.generator, steps_.discriminator, steps_.g_tx, steps_.d_tx
  )
  return jax.jit(make, out_shardings=place)(keys.purpose_key(config.seed, 'init'))


def abstract_state(config: Any, c_dim: int, place: jax.sharding.Sharding | None = None):
  """The TrainState of a configuration as ShapeDtypeStructs: what a checkpoint is restored like."""
  steps_ = steps(config, c_dim, None)
  shapes = jax.eval_shape(lambda: init_state(config, steps_, None))
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)


def dataset(config: Any) -> 'data.Source':
  """The data set of a configuration. Raises DatasetError, WriteError: see `data.load`."""
  return data.load(
    config.data.name,
    config.data.dir,
    resolution(config),
    config.data.channels,
    config.data.labels,
  )
