"""Finds images that a classifier gets wrong while the text says that they are what they are.

python -m sg2jax.tools.adversarial --checkpoint=RUN --classifier=digits --clip=digits
[--seeds=0-199] [--out=DIR] [--judge=...] [--texts="a thin {}=>a thick {};..."] [--space=w+] ...

From each seed it moves the image, by amounts of the directions of pairs of texts (or freely in w+),
until the classifier errs. That counts as a success only if the classifier was right at the start
and an independent judge sees the class all the same, before and after. A CLASSIFIER is
  digits            of the bundled digits, trained in seconds; digits-1 ...: from other seeds;
                    digits+FILE.npz: also on the samples in DIR/adversarial.npz of an earlier search
  digits-kernel     of another family; the judge of digits, unless --judge says another one
  MODULE:FUNCTION   a JAX function of images float32 [N,H,W,C] in [-1,1] to logits [N,K]
  FILE.stablehlo    such a function, written by jax.export; docs/editing.md has the lines
and the judge any of these, or `clip`. Writes DIR/adversarial.json (rates with intervals, that of
random directions of the same length among them, and which text flips at what strength),
DIR/sheet.png (before and after), DIR/adversarial.npz (images, classes and latents of the successes)
and DIR/seeds/*.npz (each a direction for --edit of generate). Stop it any way you like: the same
command goes on.
"""

from collections.abc import Callable
import functools
import pathlib
import re

from absl import flags
import numpy as np

from sg2jax import cli, files, sampler
from sg2jax import clip as clips
from sg2jax.edit import (
  adversarial,
  classifiers,
  direction,
  global_directions,
  project,
  text_directions,
)
from sg2jax.edit.digit_classifiers import WORDS
from sg2jax.edit.direction import Direction
from sg2jax.edit.text_losses import Tower
from sg2jax.faults import UsageError
from sg2jax.locks import locked
from sg2jax.models import styles as style_space
from sg2jax.signals import Stop
from sg2jax.tools import flags as shared
from sg2jax.tools import projections, searches, searches_report

TEXTS = (
  'a thin {}=>a thick {};a left-slanted {}=>a right-slanted {};a narrow {}=>a wide {};'
  'a small {}=>a large {}'
)
LR = {'amounts': adversarial.Settings().lr, 'w+': 0.01}
# Of the channels so many move for a pair of texts, unless --channels says it. More than tools.edit
# has it: of 28 seeds of the quickstart 22 were successes with an eighth, 17 with 1 of 32.
SHARE = 1 / 8
MAX_IMAGES = 32  # searched at once, unless --batch says it
MAX_PIXELS = 2**18


def define_flags() -> None:
  """The command line."""
  shared.define_checkpoint()
  shared.define_out('adversarial')
  shared.define_seeds('seeds', '0-199', 'To start from, as in 0-199.')
  shared.define_psi()
  shared.define_labels('images', 'drawn from each seed as the data has them')
  shared.define_batch()
  # ---- who looks
  flags.DEFINE_string('classifier', None, 'That is to err; see above.')
  shared.define_required('classifier', f'name one: {classifiers.CHOICES}')
  what = 'That has to see the class; default: digits-kernel for digits (digits for it), else clip.'
  flags.DEFINE_string('judge', '', what)
  flags.DEFINE_multi_string('transfer', [], 'Another classifier that is shown what is found.')
  flags.DEFINE_string('clip', '', f'{", ".join(clips.NAMES)}, or a file; needed for texts.')
  shared.define_clip_activation()
  what = 'Of the classes, in the order of the logits; default: those of the network; digits: words.'
  flags.DEFINE_list('class_names', [], what)
  # ---- what is moved
  what = 'Pairs SOURCE=>TARGET with ; between, or a file with one a line; {} is the class.'
  flags.DEFINE_string('texts', '', f'{what} Default, with --clip=digits: {TEXTS}')
  flags.DEFINE_integer(
    'channels', None, 'Of style space that a pair of texts moves.', lower_bound=1
  )
  flags.DEFINE_string('directions', '', 'Instead of texts: a file of directions; all are taken.')
  settings = adversarial.Settings()
  what = 'What is searched: amounts of the directions, or w+.'
  flags.DEFINE_enum('space', settings.space, adversarial.SPACES, what)
  # ---- the search
  flags.DEFINE_integer('steps', settings.steps, 'Of the search, at most.', lower_bound=1)
  what = f'Learning rate; default: {LR["amounts"]}, in w+ {LR["w+"]}.'
  shared.define_finite('lr', None, what, lower_bound=0)
  shared.define_finite('max_amount', settings.most, 'Of a direction, either way.', lower_bound=1e-6)
  what = 'By how much a wrong logit is to lead; the search ends at the first error.'
  shared.define_finite('kappa', settings.kappa, what, lower_bound=0)
  what = (
    'CLIP term: stay at the text of the class, --class_text; or move as the pair of texts says.'
  )
  flags.DEFINE_enum('text_term', settings.text_term, adversarial.TEXT_TERMS, what)
  flags.DEFINE_string('class_text', 'a {}', 'What an image of a class is called.')
  shared.define_finite('clip_lambda', settings.clip_lambda, 'Weight of it.', lower_bound=0)
  shared.define_finite('l2_lambda', settings.l2_lambda, 'Weight of squares.', lower_bound=0)
  what = 'Distance to the start that is reported, and weighted by --distance_lambda.'
  flags.DEFINE_enum('distance', 'pyramid', list(project.DISTANCES), what)
  shared.define_finite('distance_lambda', 0, 'Weight of it in the search.', lower_bound=0)
  shared.define_weights('vgg16=FILE, lpips_vgg=FILE')


def main(_: list[str]) -> None:
  """Checks, searches, writes, prints."""
  asked = flags.FLAGS
  seeds = list(dict.fromkeys(asked.seeds))
  check()
  with Stop() as stop:
    net = sampler.load(asked.checkpoint)
    label = shared.labels(net, len(seeds))
    ws = net.ws(seeds, asked.psi, label=label)
    job = read_job(net, stop)
    classes = None
    # Where the network was told what to draw, that is what its images show.
    if net.labels and net.labels.one_hot and net.labels.c_dim == job.models.classifier.classes:
      classes = net.c(seeds, label).argmax(1)
    out = shared.out_folder(net, 'adversarial')
    # Two commands on one folder would mix their files.
    with locked(out, 'out'):
      rows = searches.search_all(job, seeds, ws, classes, out)
      truth = 'judge' if classes is None else 'label'
      document = searches_report.write(job, rows, out, names_of(net, job.models.classifier), truth)
  print('\n'.join([net.title, *searches_report.table(document), f'results in {out}/']))


def check() -> None:
  """Raises UsageError for flags that don't go together, before anything is loaded."""
  asked = flags.FLAGS
  if asked.space == 'amounts' and not asked.directions:
    if not asked.clip:
      raise UsageError('amounts need directions: --clip for those of texts, or --directions=FILE')
    if not asked.texts and asked.clip != 'digits':
      raise UsageError('say which texts: --texts="SOURCE=>TARGET;..."; {} in them is the class')
  if asked.text_term == 'move' and (not asked.clip or len(text_pairs()) != 1):
    raise UsageError('--text_term=move needs --clip, and one pair of --texts to move by')
  if asked.judge == 'clip' and not asked.clip:
    raise UsageError('--judge=clip needs --clip')
  if not asked.judge and not asked.clip and not classifiers.is_of_digits(asked.classifier):
    raise UsageError('name an independent --judge: a classifier, or clip')
  independent = classifiers.judge_of(asked.classifier)
  if independent and classifiers.judge_of(asked.judge) == independent:
    raise UsageError(
      f'--judge={asked.judge} is of the family of --classifier={asked.classifier}, and errs where '
      f'that does; take --judge={independent}'
    )
  if '{}' not in asked.class_text:
    raise UsageError(f'--class_text={asked.class_text} must have {{}} where the class belongs')


def text_pairs() -> list[tuple[str, str]]:
  """The pairs of --texts, (source, target); {} stands for a class. Raises UsageError."""
  given = flags.FLAGS.texts or TEXTS
  lines = given.split(';')
  if '=>' not in given:
    try:
      lines = pathlib.Path(given).expanduser().read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as e:
      raise UsageError(
        f'--texts={given} is neither pairs, SOURCE=>TARGET;..., nor a file of them: {e}'
      ) from e
  pairs = [tuple(part.strip() for part in line.split('=>')) for line in lines if line.strip()]
  for pair in pairs:
    if len(pair) != 2 or not all(pair):
      raise UsageError(f'--texts: {"=>".join(pair)} must be SOURCE=>TARGET')
  if not pairs or len(set(pairs)) < len(pairs):
    raise UsageError(f'--texts={given} has no pairs, or one twice')
  return pairs


def say(template: str, name: str) -> str:
  """The text of a class: 'a {}' of eight is 'an eight'."""
  if re.match('[aeiou](?!ne)', name):
    template = re.sub(r'\b([Aa]) \{\}', r'\1n {}', template)
  return template.replace('{}', name)


def names_of(net: sampler.Sampler, classifier: classifiers.Classifier) -> list[str]:
  """What the classes are called. Raises UsageError if that are not as many as there are."""
  asked = flags.FLAGS
  names = asked.class_names or list(net.labels.names if net.labels else ())
  if not names and (asked.clip == 'digits' or classifiers.is_of_digits(asked.classifier)):
    names = list(WORDS)
  names = names or [str(i) for i in range(classifier.classes)]
  if len(names) != classifier.classes:
    raise UsageError(
      f'{classifier.name} has {classifier.classes} classes, and {len(names)} are named '
      f'({", ".join(names)[:60]}); name as many by --class_names'
    )
  if len(set(names)) < len(names) or not all(name.strip() for name in names):
    raise UsageError(
      f'--class_names={",".join(names):.60} must be different names, none of them blank'
    )
  return names


# ---- the job


def read_job(net: sampler.Sampler, stop: Stop) -> searches.Job:
  """The Job of the flags. Raises UsageError, WeightsError, CheckpointError."""
  asked = flags.FLAGS
  height, width = net.generator.synthesis.resolution
  shape = (height, width, net.config.data.channels)
  # Before a classifier is trained, which takes seconds.
  clip = clips.load(asked.clip, asked.clip_activation or '') if asked.clip else None
  classifier = classifiers.load(asked.classifier, shape)
  names = names_of(net, classifier)
  judge = read_judge(classifier, clip, names, shape)
  distance = project.distance(asked.distance)
  if asked.distance == 'lpips':
    distance = projections.lpips(shape)
  settings = adversarial.Settings(
    asked.steps,
    asked.space,
    LR[asked.space] if asked.lr is None else asked.lr,
    asked.max_amount,
    asked.kappa,
    asked.text_term,
    asked.clip_lambda if clip else 0.0,
    asked.l2_lambda,
    asked.distance_lambda,
  )
  models = adversarial.Models(
    classifier,
    judge,
    Tower(clip.params, clip.architecture) if settings.clip_lambda else None,
    distance if settings.distance_lambda else None,
  )
  others = {spec: classifiers.load(spec, shape, gradient=False) for spec in asked.transfer}
  moved, directions, what = read_directions(net, clip, names, stop)
  # Whatever changes the result is in here, so that other results are never taken for these.
  about = {'network': net.hash(), 'clip': clip.hash if clip else '', 'distance': distance.name}
  looking = {'classifier': classifier, 'judge': judge} | {
    f'transfer {x}': others[x] for x in others
  }
  about |= {role: f'{x.name} {x.hash}' for role, x in looking.items()}
  about |= {'class_names': names, 'directions': what, **settings._asdict()}
  if clip:
    about['class_text'] = asked.class_text
  return searches.Job(
    net=net,
    models=models,
    settings=settings,
    names=moved,
    directions=directions,
    texts=text_features(clip, names) if settings.clip_lambda else None,
    score=scores(clip, names) if clip else None,
    distance=distance,
    others=others,
    about=about,
    batch=asked.batch or max(1, min(MAX_IMAGES, MAX_PIXELS // (height * width))),
    stop=stop,
  )


def read_judge(
  classifier: classifiers.Classifier, clip: clips.Clip | None, names: list[str], shape: tuple
) -> classifiers.Classifier:
  """The judge of the flags. Raises UsageError: it has other classes, or is the classifier."""
  asked = flags.FLAGS
  spec = asked.judge or classifiers.judge_of(asked.classifier) or 'clip'
  if spec == 'clip':
    judge = classifiers.zero_shot(clip, [say(asked.class_text, name) for name in names])
  else:
    judge = classifiers.load(spec, shape, gradient=False)
  if judge.classes != classifier.classes:
    raise UsageError(
      f'--judge={spec} has {judge.classes} classes, --classifier={classifier.name} '
      f'{classifier.classes}; they must be the same'
    )
  if (judge.name, judge.hash) == (classifier.name, classifier.hash):
    raise UsageError(f'--judge={spec} is the classifier; name an independent one')
  return judge


def read_directions(
  net: sampler.Sampler, clip: clips.Clip | None, names: list[str], stop: Stop
) -> tuple[tuple[str, ...], Callable, list]:
  """(names of the directions, class -> its Directions, what they are, as JSON)."""
  asked = flags.FLAGS
  if asked.space == 'w+':
    return (), lambda _: [], []
  if asked.directions:
    found = direction.read_all(asked.directions)
    for move in found:
      move.check(net)
    return tuple(move.name for move in found), lambda _: found, [files.sha256(asked.directions)]
  pairs = text_pairs()
  counts = style_space.channels(net.generator, net.variables)
  moving = sum(counts[layer] for layer in global_directions.convolutions(counts))
  channels = asked.channels or max(1, round(SHARE * moving))

  @functools.cache
  def of_class(number: int) -> list[Direction]:
    return [
      text_directions.direction(
        net, *(say(text, names[number]) for text in pair), clip, channels=channels, stop=stop
      )
      for pair in pairs
    ]

  moved = [f'{source} => {target}' for source, target in pairs]
  return tuple(moved), of_class, [moved, channels]


def text_features(clip: clips.Clip, names: list[str]) -> Callable:
  """Class -> what the CLIP term compares with, [E]."""
  asked = flags.FLAGS

  @functools.cache
  def of_class(number: int) -> np.ndarray:
    if asked.text_term == 'stay':
      return clip.text(say(asked.class_text, names[number]))
    pair = (say(text, names[number]) for text in text_pairs()[0])
    return text_directions.between(clip, *pair)

  return of_class


def scores(clip: clips.Clip, names: list[str]) -> Callable:
  """Images uint8 [N,H,W,C] -> cosines with the texts of all classes [N,K]."""
  vectors = np.stack([clip.text(say(flags.FLAGS.class_text, name)) for name in names])

  def score(images: np.ndarray) -> np.ndarray:
    return clip.images(images) @ vectors.T

  return score


if __name__ == '__main__':
  define_flags()
  cli.run(main)
