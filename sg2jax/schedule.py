"""Pure numbers from the clock: growing, learning rates, Adam's lazy correction, the EMA of G."""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class GrowthStage:
  """What doesn't change between two changes of resolution; steps are compiled for one."""

  level: int = 0  # number of upper resolutions that aren't there yet: floor(lod)
  batch: int = 0  # images per minibatch
  g_lr: float = 0.0
  d_lr: float = 0.0


@dataclasses.dataclass(frozen=True)
class Growth:
  """Progressive growing: each resolution fades in, then holds.

  [Karras et al. 2018; S1 App. C; S2 Table 1 A-D]. lod, the level of detail, falls from `levels` to
  0. During a fade it is fractional: floor(lod) is the new resolution, whose batch and learning
  rates apply.

  The schedule is looked at only every `repeats` minibatches, as in the reference. So what applies
  now depends on the number of images at the last of these checks (`last_check`), not on nimg.
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
  repeats: int = 1  # minibatches between checks of the schedule

  def lod(self, nimg: int) -> float:
    """Level of detail at a check after `nimg` images, in [0, levels]."""
    if not self.levels:
      return 0.0
    kimg = nimg / 1000
    phase = self.hold_kimg + self.fade_kimg
    done = math.floor(kimg / phase)
    faded = 0.0
    if self.fade_kimg:
      faded = max(kimg - done * phase - self.hold_kimg, 0) / self.fade_kimg
    return max(self.levels - done - faded, 0.0)

  def stage(self, nimg: int) -> GrowthStage:
    """The stage that a check at `nimg` images starts or goes on with."""
    level = math.floor(self.lod(nimg))
    side = self.side >> level
    return GrowthStage(
      level,
      at_side(self.batches, side, self.batch),
      at_side(self.g_lrs, side, self.g_lr),
      at_side(self.d_lrs, side, self.d_lr),
    )

  def current_stage(self, step: int, nimg: int) -> GrowthStage:
    """The stage of a run after `step` minibatches and `nimg` images, at a check or between two."""
    if step % self.repeats == 0:
      return self.stage(nimg)
    return self._stage_after_checks(step // self.repeats)

  def last_stage(self, step: int) -> GrowthStage:
    """The stage that the last of `step` >= 1 minibatches was of."""
    return self._stage_after_checks((step - 1) // self.repeats)

  def _stage_after_checks(self, count):
    # Near a change nimg alone may fit two stages, as their batches differ. So the schedule is
    # walked from its start: a second for 25 million images.
    nimg = 0
    for _ in range(count if self.levels else 0):
      nimg += self.stage(nimg).batch * self.repeats
    return self.stage(nimg)

  def last_check(
    self, stage: GrowthStage, step: jax.Array | int, nimg: jax.Array | int
  ) -> jax.Array | int:
    """Images at the last check of a run in `stage`; step, nimg: int, or traced int32 []."""
    return nimg - step % self.repeats * stage.batch

  def resets_adam(self, before: int, after: int) -> bool:
    """Whether Adam starts afresh between checks at so many images: a fade begins or ends."""
    lod_before = self.lod(before)
    lod_after = self.lod(after)
    return math.floor(lod_before) != math.floor(lod_after) or math.ceil(lod_before) != math.ceil(
      lod_after
    )

  def alpha(
    self, stage: GrowthStage, step: jax.Array, nimg: jax.Array, dtype: Any = jnp.float32
  ) -> jax.Array:
    """1 - (lod - floor(lod)), [] of dtype: how far the resolution of `stage` is faded in.

    step, nimg: int32 [], traced, done so far.
    """
    if stage.level == self.levels or not self.fade_kimg:
      return jnp.ones((), dtype)
    phase = self.hold_kimg + self.fade_kimg
    # images at the start of the fade; subtracted as a whole number, which is exact where a float32
    # of nimg is not
    start = 1000 * ((self.levels - stage.level - 1) * phase + self.hold_kimg)
    since = self.last_check(stage, step, nimg) - int(start)
    return jnp.clip((since.astype(dtype) - start % 1) / (1000 * self.fade_kimg), 0, 1)


def at_side(pairs: Sequence, side: int, default: float) -> float:
  """The value of `side` in ((side, value), ...)."""
  return dict(pairs).get(side, default)


def ramp(nimg: jax.Array | int, kimg: float) -> jax.Array | float:
  """Factor of the learning rate, rising from 0 to 1 in `kimg` thousand images; kimg 0: 1."""
  return jnp.minimum(nimg / (1000 * kimg), 1) if kimg else 1


def lazy_correction(interval: int) -> float:
  """c = k/(k+1) for a regularizer at every k-th minibatch; 1 for one that isn't lazy (k = 0).

  Adam takes k+1 steps where it took k, so its lr is multiplied by c and its betas are raised to c
  [S2 App. B].
  """
  return interval / (interval + 1) if interval else 1.0


@dataclasses.dataclass(frozen=True)
class MovesOfP:
  """How p, the strength of augmentation, follows the discriminator [ADA 3]."""

  target: float = 0.0  # of r_t, the mean sign of D's logits of reals; 0: p stays
  interval: int = 4  # minibatches between moves
  kimg: float = 500.0  # thousands of images in which p can rise from 0 to 1

  def move(
    self, p: jax.Array, signs: jax.Array, step: jax.Array | int, batch: jax.Array | int
  ) -> tuple[jax.Array, jax.Array]:
    """(p, signs) after a minibatch: up if r_t is above the target, else down; or as they were.

    p stays in [0,1]: the reference has no upper bound, and p of 20 was seen there, which does no
    more than 1.

    Args:
      p: [].
      signs: [2], sum and number of the signs of D's logits of reals since the last move.
      step: number of the minibatch, from 0.
      batch: its images.
    """
    is_due = (step + 1) % self.interval == 0
    direction = jnp.sign(signs[0] / signs[1] - self.target)
    moved = jnp.clip(p + direction * (batch * self.interval / (self.kimg * 1000)), 0, 1)
    return jnp.where(is_due, moved, p), jnp.where(is_due, 0, signs)


def ema_beta(
  nimg: jax.Array | int,
  batch: int,
  ema_kimg: float,
  ema_rampup: float | None,
  dtype: Any = jnp.float32,
) -> jax.Array:
  """0.5^(batch / half-life), half-life = min(1000 ema_kimg, nimg ema_rampup) images [ADA App. F].

  nimg counts images before this minibatch; ema_rampup None: no ramp. With one, beta at nimg 0 is 0:
  the EMA starts as a copy of G.
  """
  half_life = jnp.asarray(ema_kimg * 1000, dtype)
  if ema_rampup is not None:
    half_life = jnp.minimum(half_life, jnp.asarray(nimg, dtype) * ema_rampup)
  return 0.5 ** (batch / jnp.maximum(half_life, 1e-8))
