"""Signs that a run goes wrong although its numbers are finite: a line in the tick they appear in.

Limits are far from what healthy runs show, so that a warning means something. Those of the
quickstart, by ticks: loss_d 0.56 to 1.16, logits -2.5 to 2.2, |grad g| 4 to 46, diversity 0.72 to
0.95, and from one tick to the next nothing grew more than fivefold; growing, 29-fold at most. With
data.holdout=0.1, 15 kimg: r_v -0.00 to 0.07, nearest falling from 4 to 1.4.

Of fewer digits (20 a class, 170 trained on and 30 held out): r_v -0.04 to 0.19 up to 50 kimg, when
SWD was at its best so far, then rising slowly, to 0.75 at 110 kimg; nearest 0.97 to 1.06 from
30 to 80 kimg, then 0.9. Of 29, with 11 held out: r_v about 0.5 from 12 kimg on and 0.5 to 1.2 from
50, when SWD began to rise; nearest below 0.8 from 42 and 0.59 at 67 kimg, where samples are copies.
"""

from collections import deque
from collections.abc import Iterator
import statistics

# of loss_d, the logistic loss of reals and fakes: below, D is 97 % sure of each image, and learns
# the few that it isn't sure of by heart
SURE = 0.05
LOGIT = 50.0  # of mean logits: what one image is worth is then lost in the rounding of float32
NO_GRADIENT = 1e-6  # of the norm that reaches G: D says the same of all images
ALIKE = 0.1  # of the diversity of samples, that of reals being 1
# of r_v, in snapshots that follow each other (memorising.py): held-out pictures look to D more like
# fakes than like those it was trained on
MEMORISED = 0.6
SNAPSHOTS = 2  # of that, as a few held-out pictures make r_v uncertain by 0.1 and more
COPIES = 0.5  # of `nearest`: most samples are half as far from a training picture as new ones are
BOUND = 0.999  # of augment_p, which can't rise above 1
FACTOR = 100.0  # of what runs away, above its median
WINDOW = 10  # ticks of that median
LEAST = 5  # ticks before there is one
RUNAWAYS = ('grad_norm_g', 'grad_norm_g_reg', 'grad_norm_d', 'grad_norm_d_reg', 'pl_length')
OTHERWISE = (
  'a higher loss.r1_gamma, or init_from with d.freeze_layers; or stop here: the best checkpoint is '
  'kept'
)
Trouble = tuple[str, bool, str]  # its name, whether it is there, what to say of it


class Health:
  """Looks at the numbers of each tick; says of each trouble once that it came."""

  def __init__(self, augment_target: float = 0.0) -> None:
    """augment_target: of r_t, by augment_p; 0: that stays where it was put, which is no trouble."""
    self._augment_target = augment_target
    self._before = {name: deque(maxlen=WINDOW) for name in RUNAWAYS}
    self._memorised = 0  # snapshots in a row
    self._known = set()  # troubles that were there when last looked at

  def look(self, metrics: dict[str, float]) -> list[str]:
    """Warnings of troubles that this tick has and the one before hadn't.

    metrics: of a tick, as the steps and Snapshot.take report them. A trouble stays as it is while
      what it shows in isn't there, as diversity between snapshots.
    """
    warnings = []
    troubles = (
      *_of_logits(metrics),
      *_of_samples(metrics),
      *self._of_memorising(metrics),
      *self._of_growth(metrics),
    )
    for name, is_there, text in troubles:
      if is_there and name not in self._known:
        warnings.append(f'warning: {text}')
      (self._known.add if is_there else self._known.discard)(name)
    return warnings

  def _of_memorising(self, metrics) -> Iterator[Trouble]:
    if 'r_v' in metrics:
      r_v = metrics['r_v']
      self._memorised = self._memorised + 1 if r_v > MEMORISED else 0
      text = (
        f'D knows its pictures by heart: held-out ones look to it like fakes (r_v {r_v:.2g} in '
        f'{SNAPSHOTS} snapshots). More pictures help, augment.pipeline=auto, {OTHERWISE}'
      )
      yield 'memorised', self._memorised >= SNAPSHOTS, text
    if 'nearest' in metrics:
      text = (
        f'samples are copies of training pictures (nearest {metrics["nearest"]:.2g}, where new '
        f'pictures have 1). More pictures help, augment.pipeline=auto, {OTHERWISE}'
      )
      yield 'copies', metrics['nearest'] < COPIES, text
    target = self._augment_target
    if target and {'augment_p', 'r_t'} <= metrics.keys():
      r_t = metrics['r_t']
      text = (
        f'augment_p is at 1, its bound, and D is still sure of its pictures (r_t {r_t:.2g}, where '
        f'augment.target is {target:g}): augmentation can do no more against memorising, and may '
        f'show in samples. More pictures help, {OTHERWISE}'
      )
      yield 'bound', metrics['augment_p'] >= BOUND and r_t > target, text

  def _of_growth(self, metrics) -> Iterator[Trouble]:
    """What is far above its median of the ticks before."""
    for name, before in self._before.items():
      if name not in metrics:
        continue
      value = metrics[name]
      if len(before) >= LEAST:
        usual = statistics.median(before)
        text = (
          f'{name} runs away: {value:.3g}, where {usual:.3g} was usual in the last {len(before)} '
          'ticks. Lower the learning rates, or go on from an earlier checkpoint'
        )
        yield name, value > FACTOR * usual > 0, text
      before.append(value)


def _of_logits(metrics) -> Iterator[Trouble]:
  if not {'loss_d', 'logits_real', 'logits_fake', 'grad_norm_g'} <= metrics.keys():
    return
  loss = metrics['loss_d']
  real = metrics['logits_real']
  fake = metrics['logits_fake']
  norm = metrics['grad_norm_g']
  logits = f'mean logits of reals {real:.3g}, of fakes {fake:.3g}'
  text = (
    f'D tells reals and fakes apart without fail (loss_d {loss:.2g}; {logits}): G learns little '
    'from it. Raise loss.r1_gamma, or lower opt.d_lr; with few images data.mirror helps'
  )
  yield 'sure', loss < SURE, text
  text = f'the logits of D run away ({logits}). Lower the learning rates, or raise loss.r1_gamma'
  yield 'logits', max(abs(real), abs(fake)) > LOGIT, text
  text = (
    f'no gradient reaches G (norm {norm:.2g}; {logits}): D says the same of all images. Go on from '
    'an earlier checkpoint with lower learning rates'
  )
  yield 'gradient', norm < NO_GRADIENT, text


def _of_samples(metrics) -> Iterator[Trouble]:
  if 'diversity' in metrics:
    text = (
      f'samples are alike: their standard deviation is {metrics["diversity"]:.2g} of that of the '
      'reals. Go on from an earlier checkpoint with a higher loss.r1_gamma or lower learning rates'
    )
    yield 'alike', metrics['diversity'] < ALIKE, text
