"""From a configuration to checked networks and steps. With `train` and the tools, the only reader of `config`."""
import math

import jax

from sg2jax import state as state_lib
from sg2jax.faults import UsageError
from sg2jax.models.mapping import Mapping
from sg2jax.models.stylegan2 import ARCHITECTURES, Discriminator, Generator, Synthesis, block_sizes, fmaps
from sg2jax.steps import Steps


def resolution(config):
  """(height, width) of config.resolution."""
  r = config.resolution
  return (r, r) if isinstance(r, int) else tuple(r)


def microbatch(config):
  """Images per round of gradient accumulation."""
  return config.microbatch or config.batch


def check(config):
  """Raises UsageError with the offending value and the remedy. Starts no device, creates nothing."""
  def need(ok, name, value, rule):
    if not ok:
      raise UsageError(f'--config.{name}={value} {rule}')

  def each(names, ok, rule):
    for name in names.split():
      value = config
      for part in name.split('.'):
        value = value[part]
      need(ok(value), name, value, rule)

  try:
    if not all(isinstance(side, int) for side in resolution(config)) or len(resolution(config)) != 2:
      raise TypeError('must be a whole number of pixels, or (height, width)')
    sizes = block_sizes(resolution(config))
  except (ValueError, TypeError) as e:
    raise UsageError(f'--config.resolution={config.resolution}: {e}') from None
  each('total_kimg tick_kimg snapshot_kimg g.mapping_lr_mul opt.g_lr opt.d_lr opt.eps ema.kimg',
       lambda v: math.isfinite(v) and v > 0, 'must be a finite number above 0')
  each('loss.r1_gamma loss.pl_weight ema.rampup g.clamp d.clamp',
       lambda v: math.isfinite(v) and v >= 0, 'must be a finite number, 0 or more')
  each('loss.mixing_prob loss.pl_decay', lambda v: 0 <= v <= 1, 'must lie in [0, 1]')
  each('opt.beta1 opt.beta2', lambda v: 0 <= v < 1, 'must lie in [0, 1)')
  each('seed', lambda v: v < 2 ** 32, 'must be less than 2^32')
  each('batch keep data.channels g.fmap_base g.fmap_max g.z_dim g.w_dim g.mapping_layers d.fmap_base d.fmap_max '
       'd.mapping_layers d.mbstd_group_size loss.r1_interval loss.pl_interval loss.pl_shrink',
       lambda v: v >= 1, 'must be 1 or more')
  each('microbatch seed swd_images g.num_bf16_res d.num_bf16_res d.mbstd_num_channels',
       lambda v: v >= 0, 'must be 0 or more')
  each('g.architecture d.architecture', lambda v: v in ARCHITECTURES, f'is unknown; choose from {", ".join(ARCHITECTURES)}')
  each('device', lambda v: v in ('', 'cpu', 'gpu', 'tpu', 'accelerator'),
       'is unknown; choose from gpu, tpu, accelerator, cpu, or leave it empty')
  need(config.data.name or config.data.dir, 'data.dir', "''",
       'names no data set: give the directory that `python -m sg2jax.tools.prepare` wrote, or --config.data.name=digits')
  micro, group = microbatch(config), min(config.d.mbstd_group_size, microbatch(config))
  need(config.batch % micro == 0, 'batch', config.batch, f'must be a multiple of microbatch={micro}; '
       f'try {math.ceil(config.batch / micro) * micro}')
  name = 'microbatch' if config.microbatch else 'batch'
  if config.d.mbstd_num_channels:
    width = fmaps(max(sizes[0]), config.d.fmap_base, config.d.fmap_max)
    need(width % config.d.mbstd_num_channels == 0, 'd.mbstd_num_channels', config.d.mbstd_num_channels,
         f'must divide the {width} feature maps of the last block; use 1')
    need(micro % group == 0, name, micro, f'must be a multiple of mbstd_group_size={group}; try {_near(micro, group)}')
  if config.loss.pl_weight:
    need(micro % config.loss.pl_shrink == 0, name, micro,
         f'must be a multiple of pl_shrink={config.loss.pl_shrink}; try {_near(micro, config.loss.pl_shrink)}')


def check_devices(config, devices):
  """Raises UsageError if the devices aren't of the kind that was asked for, or don't divide the batch."""
  kind, micro, n = devices[0].platform, microbatch(config), len(devices)
  wanted = {'gpu': ('gpu', 'cuda', 'rocm'), 'tpu': ('tpu',), 'cpu': ('cpu',), '': (kind,),
            'accelerator': tuple({kind} - {'cpu'})}[config.device]
  if kind not in wanted:
    raise UsageError(f'--config.device={config.device}, but JAX sees only {n} {kind} device(s); install the JAX build for '
                     f'your accelerator (pip install "jax[cuda13]" or "jax[tpu]"), or say --config.device=cpu')
  if micro % n:
    raise UsageError(f'--config.{"microbatch" if config.microbatch else "batch"}={micro} must be a multiple of the {n} '
                     f'devices; try {_near(micro, n)}')


def _near(value, multiple):
  low = value // multiple * multiple
  return f'{low} or {low + multiple}' if low else f'{multiple}'


def networks(config, c_dim):
  """(Generator, Discriminator) for labels of c_dim components."""
  g, d, size = config.g, config.d, resolution(config)
  generator = Generator(
      Mapping(g.z_dim, c_dim, g.w_dim, g.mapping_layers, lr_mul=g.mapping_lr_mul),
      Synthesis(size, config.data.channels, g.fmap_base, g.fmap_max, g.architecture, g.num_bf16_res, g.clamp or None,
                use_noise=g.noise, remat=g.remat))
  discriminator = Discriminator(
      size, d.fmap_base, d.fmap_max, c_dim, d.architecture, d.num_bf16_res, d.clamp or None,
      mbstd_group_size=d.mbstd_group_size, mbstd_num_channels=d.mbstd_num_channels, mapping_layers=d.mapping_layers,
      remat=d.remat)
  return generator, discriminator


def steps(config, c_dim, constrain):
  """The Steps of a configuration; `constrain` from sharding.py."""
  generator, discriminator = networks(config, c_dim)
  loss, opt = config.loss, config.opt
  # Adam is corrected for the interval even if the regularizer's weight is 0, as in config C [S2 Table 1].
  return Steps(
      generator, discriminator,
      g_tx=state_lib.adam(opt.g_lr, opt.beta1, opt.beta2, opt.eps, loss.pl_interval),
      d_tx=state_lib.adam(opt.d_lr, opt.beta1, opt.beta2, opt.eps, loss.r1_interval),
      r1_gamma=loss.r1_gamma, r1_interval=loss.r1_interval if loss.r1_gamma else 0,
      pl_weight=loss.pl_weight, pl_decay=loss.pl_decay, pl_interval=loss.pl_interval if loss.pl_weight else 0,
      pl_shrink=loss.pl_shrink, mixing_prob=loss.mixing_prob, ema_kimg=config.ema.kimg,
      ema_rampup=config.ema.rampup or None, constrain=constrain)


def init_state(config, steps_, sharding):
  """A fresh TrainState of config.seed, placed by `sharding`."""
  make = lambda key: state_lib.init(key, steps_.generator, steps_.discriminator, steps_.g_tx, steps_.d_tx)
  return jax.jit(make, out_shardings=sharding)(jax.random.key(config.seed))
