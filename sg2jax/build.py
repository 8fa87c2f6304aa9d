"""From a configuration to networks and steps. What is wrong with one, `checks` says."""

from collections.abc import Sequence
from functools import partial
import math
from typing import Any

import jax
from jax.sharding import Mesh, Sharding
import numpy as np

from sg2jax import configurations, data, keys, schedule, sharding
from sg2jax import state as state_lib
from sg2jax.configurations import Config, augmentation, variant
from sg2jax.faults import CheckpointError
from sg2jax.models.discriminator import Discriminator
from sg2jax.models.generator import Generator, Synthesis
from sg2jax.models.layers import RSQRT2
from sg2jax.models.mapping import Mapping
from sg2jax.models.sizes import GROWING, Size, block_sizes, image_side_layers
from sg2jax.steps import TrainSteps

# Traces of more are too large for those who show them.
MAX_PROFILED = 100
MAX_LAYERS = 64  # of a stranger's mapping network; far above any
FULLY_GROWN = 10**12  # nimg
# Thousands of images in which p can rise from 0 to 1, where augment.kimg is 0 [ADA 3, 4.2].
AUGMENT_KIMG = 500.0
AUGMENT_KIMG_FROM_TRAINED = 100.0
CLASSES = 10  # where there are labels but no data set: as many as of digits and CIFAR-10
# Images that fill a TPU's vectors. Path lengths of fewer would take twice as long: its compiler
# would cut images up to have more. Where the other steps have fewer, too, repeating doesn't pay.
TPU_ROWS = 8


# ---- what follows from a few fields


def resolution(config: Config) -> Size:
  """(height, width) of config.resolution."""
  side = config.resolution
  return (side, side) if isinstance(side, int) else tuple(side)


def microbatch(config: Config, batch: int) -> int:
  """Images per round of gradient accumulation of a minibatch of `batch`."""
  return config.microbatch or batch


def profiled(config: Config) -> range:
  """Numbers of the minibatches that config.profile says; raises ValueError if it says none."""
  if not config.profile:
    return range(0)
  first, count = map(int, config.profile.split(','))
  if first < 0 or not 1 <= count <= MAX_PROFILED:
    raise ValueError
  return range(first, first + count)


def growth(config: Config) -> schedule.Growth:
  """The schedule of growing; without it there are 0 levels, and one stage for ever."""
  grow = config.grow
  doublings = len(block_sizes(resolution(config))) - 1
  levels = 0
  batches = ()
  lrs = ()
  if grow.start_res:
    levels = doublings - int(math.log2(grow.start_res / 4))
    batches = tuple(tuple(pair) for pair in grow.batch)
    lrs = tuple(tuple(pair) for pair in grow.lr)
  return schedule.Growth(
    side=4 << doublings,
    levels=levels,
    hold_kimg=grow.hold_kimg,
    fade_kimg=grow.fade_kimg,
    batch=config.batch,
    g_lr=config.opt.g_lr,
    d_lr=config.opt.d_lr,
    batches=batches,
    g_lrs=lrs,
    d_lrs=lrs,
    repeats=grow.repeats if levels else 1,
  )


def batches(config: Config) -> dict[int, str]:
  """{minibatch size: name of the field that says so}, of all stages."""
  grows = growth(config)
  by_side = dict(grows.batches)
  names = {}
  for level in range(grows.levels + 1):
    side = grows.side >> level
    if side in by_side:
      names[by_side[side]] = f'grow.batch[{side}]'
    else:
      names[config.batch] = 'batch'
  return names


def frozen_layers(config: Config) -> list[tuple[str, str]]:
  """(block, layer) of D that keep their weights."""
  layers = image_side_layers(config.d.architecture, block_sizes(resolution(config)))
  return layers[: config.d.freeze_layers]


def moves_of_p(config: Config) -> schedule.MovesOfP:
  """How the strength of augmentation moves."""
  kimg = AUGMENT_KIMG_FROM_TRAINED if config.init_from else AUGMENT_KIMG
  return schedule.MovesOfP(
    config.augment.target, config.augment.interval, config.augment.kimg or kimg
  )


# ---- networks and steps


def networks(config: Config, c_dim: int, fold: bool = False) -> tuple[Generator, Discriminator]:
  """Generator and discriminator for labels of c_dim components; fold: in a TPU's form."""
  g = config.g
  d = config.d
  mapping = Mapping(
    g.z_dim,
    c_dim,
    g.w_dim,
    g.mapping_layers,
    variant=variant(config, 'g'),
    joint=g.architecture in GROWING,
    bias_gain=RSQRT2 if g.architecture == 'stylegan1' else 1,
  )
  synthesis = Synthesis(
    resolution(config),
    config.data.channels,
    g.fmap_base,
    g.fmap_max,
    g.architecture,
    num_bf16_res=g.num_bf16_res,
    clamp=g.clamp or None,
    use_noise=g.noise,
    remat=g.remat,
    variant=variant(config, 'g'),
    fold=fold,
  )
  discriminator = Discriminator(
    resolution(config),
    d.fmap_base,
    d.fmap_max,
    c_dim,
    d.architecture,
    num_bf16_res=d.num_bf16_res,
    clamp=d.clamp or None,
    mbstd_group_size=d.mbstd_group_size,
    mapping_layers=d.mapping_layers,
    remat=d.remat,
    variant=variant(config, 'd'),
    fold=fold,
  )
  return Generator(mapping, synthesis), discriminator


def check_generator(config: dict, state: dict, where: object) -> None:
  """Raises CheckpointError if a state is not of the generator of a configuration (JSON values)."""
  try:
    config = configurations.complete(config)
    layers = config.g.mapping_layers
    if layers > MAX_LAYERS:  # they would be traced one by one
      raise ValueError(f'{layers} layers of a mapping network; {MAX_LAYERS} are allowed')
    generator, _ = networks(config, config.c_dim)
    sizes = (config.g.z_dim, config.c_dim)  # huge ones, perhaps: nothing is allocated
    inputs = [jax.ShapeDtypeStruct((1, size), np.float32) for size in sizes]
    init = partial(generator.init, noise_mode='const')
    made = jax.eval_shape(init, jax.random.key(0), *inputs)
    if config.get('grow') and config.grow.start_res:
      growth(config).stage(int(state['nimg']))
    w_avg = jax.ShapeDtypeStruct((config.g.w_dim,), np.float32)
    wanted = _shapes({'g_ema': made['params'], 'noise': made.get('noise', {}), 'w_avg': w_avg})
    given = _shapes({name: state[name] for name in ('g_ema', 'noise', 'w_avg')})
    differ = [name for name in given | wanted if given.get(name) != wanted.get(name)]
    if differ:
      raise ValueError(f'{len(differ)} arrays are unlike it, such as {differ[0]}')
  except Exception as e:  # whatever a configuration that is none of ours leads to
    reason = ' '.join(f'{type(e).__name__}: {e}'.split())[:300]
    raise CheckpointError(
      f'{where}: its weights are not of the network that its config.json says ({reason}); get both '
      'again from where they are from'
    ) from e


def _shapes(tree):
  """{name: shape and dtype} of the arrays in a tree."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): (x.shape, x.dtype) for path, x in leaves}


def steps(
  config: Config,
  c_dim: int,
  mesh: Mesh | None,
  stage: schedule.GrowthStage | None = None,
  images: int = 0,
) -> TrainSteps:
  """The steps of training.

  Args:
    config: the configuration.
    c_dim: components of a label.
    mesh: of the devices over which they divide their work, None for one device.
    stage: of growing, None for the first.
    images: of the data set, see `augmentation`.
  """
  fold = mesh is not None and sharding.is_tpu(mesh)
  generator, discriminator = networks(config, c_dim, fold)
  loss = config.loss
  opt = config.opt
  grows = growth(config)
  stage = stage or grows.stage(0)
  is_tensorflow = opt.formulation == 'tensorflow'

  def adam(lr, interval):
    return state_lib.adam(lr, opt.beta1, opt.beta2, opt.eps, interval, is_tensorflow)

  return TrainSteps(
    generator,
    discriminator,
    # Corrected for the interval even where the regularizer's weight is 0: so is config C [S2
    # Table 1], which has lazy steps of a path length regularization that it doesn't have yet.
    g_tx=adam(stage.g_lr, loss.pl_interval),
    d_tx=adam(stage.d_lr, loss.r1_interval),
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
    mean_rounds=is_tensorflow,
    growth=grows if grows.levels else None,
    stage=stage,
    frozen=frozen_layers(config),
    precision=config.precision,
    check_updates=any(
      state_lib.can_overflow(lr, opt.beta1, opt.beta2, opt.eps) for lr in (stage.g_lr, stage.d_lr)
    ),
    augment=augmentation(config, images),
    moves_of_p=moves_of_p(config),
    **_places(mesh, microbatch(config, stage.batch)),
  )


def _places(mesh, micro):
  """The fields of TrainSteps that divide rounds of `micro` images over devices."""
  if mesh is None:
    return {}
  each = TPU_ROWS if sharding.is_tpu(mesh) and micro >= TPU_ROWS * mesh.size else 1
  return {'constrain': sharding.constrain(mesh), 'spread': sharding.spread(mesh, each)}


def last_steps(config: Config, mesh: Mesh) -> TrainSteps:
  """The steps of the last stage of growth, where a run spends most of its time, without data."""
  stage = growth(config).stage(FULLY_GROWN)
  return steps(config, CLASSES if config.data.labels else 0, mesh, stage)


def init_state(config: Config, steps_: TrainSteps, place: Sharding | None) -> state_lib.TrainState:
  """A fresh TrainState, drawn by config.seed."""

  def make(key):
    return state_lib.create_train_state(
      key,
      steps_.generator,
      steps_.discriminator,
      steps_.g_tx,
      steps_.d_tx,
      augment_p=config.augment.p,
    )

  return jax.jit(make, out_shardings=place)(keys.purpose_key(config.seed, 'init'))


def abstract_state(
  config: Config, c_dim: int, place: Sharding | None = None
) -> state_lib.TrainState:
  """The TrainState of a configuration as ShapeDtypeStructs: what a checkpoint is restored like."""
  steps_ = steps(config, c_dim, None)
  shapes = jax.eval_shape(lambda: init_state(config, steps_, None))
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)


def abstract_batch(
  mesh: Mesh, rounds: tuple[int, int], image: Sequence[int], c_dim: int, dtype: Any
) -> dict[str, jax.ShapeDtypeStruct]:
  """What data.batches gives, placed: image [R,M,H,W,C], label [R,M,c_dim] of `dtype`.

  rounds: (R, M). image: (H, W, C).
  """
  place = sharding.batched(mesh)
  return {
    'image': jax.ShapeDtypeStruct((*rounds, *image), np.uint8, sharding=place),
    'label': jax.ShapeDtypeStruct((*rounds, c_dim), dtype, sharding=place),
  }


def abstract_arguments(config: Config, steps_: TrainSteps, mesh: Mesh) -> tuple:
  """(key, state, batch) of full-size steps as ShapeDtypeStructs, placed, as the loop has them."""
  c_dim = steps_.generator.mapping.c_dim
  same = sharding.replicated(mesh)
  state = jax.eval_shape(partial(state_lib.pack_state, mesh=mesh), abstract_state(config, c_dim))
  state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=same), state)
  batch = steps_.stage.batch
  micro = microbatch(config, batch)
  rounds = (batch // micro, micro)
  image = (*resolution(config), config.data.channels)
  key = jax.eval_shape(lambda: jax.random.key(0))
  return (
    jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=same),
    state,
    abstract_batch(mesh, rounds, image, c_dim, state.pl_mean.dtype),
  )


def dataset(config: Config) -> 'data.Source':
  """What a configuration trains on. Raises DatasetError, WriteError: see `data.load`."""
  return data.load(
    config.data.name,
    config.data.dir,
    resolution(config),
    config.data.channels,
    config.data.labels,
    config.data.holdout,
  )
