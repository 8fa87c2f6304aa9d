"""Pure numbers from the clock: progressive growing, learning rates, the lazy Adam correction, the
EMA of the generator.
"""

import dataclasses
import math

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class GrowthStage:
  """What is static between two changes of resolution."""

  level: int = 0  # number of upper resolutions that aren't there yet: floor(lod)
  batch: int = 0  # images per minibatch
  g_lr: float = 0.0
  d_lr: float = 0.0


@dataclasses.dataclass(frozen=True)
class Growth:
  """Progressive growing [Karras et al. 2018, S1 App. C, S2 Table 1 A-D]: each resolution fades in,
  then holds.

  lod, the level of detail, falls from `levels` to 0: during a fade it is fractional and floor(lod)
  is the new resolution, whose batch and learning rates apply. The schedule is looked at every
  `repeats` minibatches.
  """

  # px, the longer one at full resolution; if that is no power of 2, the one below it stands for it
  side: int
  levels: int  # resolutions missing at the start; 0: nothing grows
  hold_kimg: float  # thousands of images at a resolution
  fade_kimg: float  # and on the way to the next; 0: at once
  batch: int  # images per minibatch, where batches doesn't say otherwise
  g_lr: float
  d_lr: float
  batches: tuple = ()  # (longer side in px, images per minibatch), ...
  g_lrs: tuple = ()  # (longer side in px, learning rate), ...
  d_lrs: tuple = ()
  repeats: int = 1

  def lod(self, nimg):
    """Level of detail after `nimg` images, a float in [0, levels]."""
    kimg, phase = nimg / 1000, self.hold_kimg + self.fade_kimg
    done = math.floor(kimg / phase) if self.levels else 0
    fading = (
      max(kimg - done * phase - self.hold_kimg, 0) / self.fade_kimg
      if self.levels and self.fade_kimg
      else 0.0
    )
    return max(self.levels - done - fading, 0.0)

  def stage(self, nimg):
    """The GrowthStage that `nimg` images fall in."""
    level = math.floor(self.lod(nimg))
    side = self.side >> level
    return GrowthStage(
      level,
      at_side(self.batches, side, self.batch),
      at_side(self.g_lrs, side, self.g_lr),
      at_side(self.d_lrs, side, self.d_lr),
    )

  def last_check(self, step, nimg):
    """Images at the last check of the schedule; step, nimg: done so far. Walks the schedule, a
    second for 25 million images.
    """
    if step % self.repeats == 0:
      return nimg
    nimg = 0
    for _ in range(step // self.repeats):
      nimg += self.stage(nimg).batch * self.repeats
    return nimg

  def resets(self, before, after):
    """True if Adam starts afresh between schedule looks at `before` and at `after` images: a fade
    begins or ends.
    """
    ends = lambda nimg: (math.floor(self.lod(nimg)), math.ceil(self.lod(nimg)))
    return ends(before) != ends(after)

  def last_check_traced(self, stage, step, nimg):
    """As `last_check`, in a stage that is known, and traced: int32 []."""
    return nimg - step % self.repeats * stage.batch

  def alpha(self, stage, step, nimg, dtype=jnp.float32):
    """1 - (lod - floor(lod)) in `stage`, [] of dtype: how far its resolution is faded in. step,
    nimg: int32 [], traced.

    Both count from 0; nimg is taken as it was at the last look at the schedule.
    """
    if stage.level == self.levels or not self.fade_kimg:
      return jnp.ones((), dtype)
    phase = self.hold_kimg + self.fade_kimg
    start = 1000 * ((self.levels - stage.level - 1) * phase + self.hold_kimg)  # of the fade, images
    seen = self.last_check_traced(stage, step, nimg) - int(
      start
    )  # exact, where a float32 of nimg is not
    return jnp.clip((seen.astype(dtype) - start % 1) / (1000 * self.fade_kimg), 0, 1)


def at_side(pairs, side, default):
  """The value of `side` in ((side, value), ...)."""
  return dict(pairs).get(side, default)


def ramp(nimg, kimg):
  """Factor of the learning rate, rising from 0 to 1 in `kimg` thousand images; kimg 0: 1."""
  return jnp.minimum(nimg / (1000 * kimg), 1) if kimg else 1


def lazy_correction(interval):
  """c = k/(k+1): Adam's lr is multiplied by c and its betas are raised to c when the loss is
  regularized every k [S2 App. B].

  interval 0 means that the regularizer isn't lazy: 1.
  """
  return interval / (interval + 1) if interval else 1.0


def ema_beta(nimg, batch, ema_kimg, ema_rampup, dtype=jnp.float32):
  """0.5^(batch / half-life), half-life = min(ema_kimg * 1000, nimg * ema_rampup) images [ADA App.
  F]. Scalar.

  nimg counts images before this minibatch; ema_rampup None: no ramp. At nimg 0 with a ramp it is 0:
  EMA copies G.
  """
  half_life = jnp.asarray(ema_kimg * 1000, dtype)
  if ema_rampup is not None:
    half_life = jnp.minimum(half_life, jnp.asarray(nimg, dtype) * ema_rampup)
  return 0.5 ** (batch / jnp.maximum(half_life, 1e-8))
