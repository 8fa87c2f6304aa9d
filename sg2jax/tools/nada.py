"""Trains a network for the domain that a text names, without pictures of it (StyleGAN-NADA).

python -m sg2jax.tools.nada --checkpoint=RUN --clip=digits --source="a digit"
--target="a thick digit" [--steps=50] [--batch=4] [--lr=0.005] [--layers=2] [--out=DIR] ...

DIR becomes a run like any other: generate, video, project, evaluate, export, edit take it by
--checkpoint=DIR, and a new training by --config.init_from=DIR. It gets

  config.json, checkpoints/  the run, a checkpoint every --save_every steps: each is a network to
                             use, --checkpoint=DIR/checkpoints/100, as too many steps do harm
  sheet.png                  images of --seeds before and after; sheets/: of each checkpoint
  nada.json                  loss of each step; CLIP's scores of these images before and after

Stop it any way you like: the same command goes on from the last checkpoint, and one with more
--steps from the end. docs/editing.md says more.
"""

from absl import flags
import numpy as np

from sg2jax import cli, sampler
from sg2jax import clip as clips
from sg2jax.edit import nada, text_directions
from sg2jax.edit.text_losses import Tower
from sg2jax.faults import UsageError
from sg2jax.locks import locked
from sg2jax.signals import Stop
from sg2jax.tools import flags as shared
from sg2jax.tools import nada_runs

STEPS = 300
# With the small CLIP for digits other defaults: all layers together find a grey haze that it takes
# for thicker strokes (docs/editing.md).
OF_DIGITS = {'steps': 50, 'lr': 0.005, 'layers': 2}


def define_flags() -> None:
  """The command line."""
  shared.define_checkpoint()
  shared.define_out('nada')
  default = nada.Settings()
  flags.DEFINE_string('source', '', 'What the images show, such as "a digit".')
  flags.DEFINE_string('target', '', 'What they are to show.')
  what = f'{", ".join(clips.NAMES)}, or a file of weights. Losses of several, with commas, add up.'
  flags.DEFINE_list('clip', ['digits'], what)
  shared.define_clip_activation()
  what = f'Of the training; default: {STEPS}, with --clip=digits {OF_DIGITS["steps"]}.'
  flags.DEFINE_integer('steps', None, what, lower_bound=1)
  flags.DEFINE_integer('batch', default.batch, 'Images of a step.', lower_bound=1)
  what = f'Learning rate; default: {default.lr}, with --clip=digits {OF_DIGITS["lr"]}.'
  shared.define_finite('lr', None, what, lower_bound=0)
  what = (
    'Train only so many convolutions at a step, those that the text needs most; 0: all. Default: '
    f'all, with --clip=digits {OF_DIGITS["layers"]}.'
  )
  flags.DEFINE_integer('layers', None, what, lower_bound=0)
  shared.define_psi()
  shared.define_labels('images', 'drawn as the data has them; one of several is drawn')
  shared.define_seeds('seeds', '0-15', 'Of the images that are shown and judged.')
  shared.define_seed('Of latents and noise in training.')
  flags.DEFINE_integer('save_every', 50, 'Steps from checkpoint to checkpoint.', lower_bound=1)


def main(_: list[str]) -> None:
  """Checks, trains, writes, prints."""
  asked = flags.FLAGS
  if not asked.source or not asked.target:
    raise UsageError(
      'say what the images show, --source="a digit", and what they are to: --target="a thick digit"'
    )
  if len(set(asked.clip)) < len(asked.clip) or not asked.clip:
    raise UsageError(f'--clip={",".join(asked.clip)} must be different networks, one or more')
  with Stop() as stop:
    loaded = [clips.load(name, asked.clip_activation or '') for name in asked.clip]
    looks = [
      nada.Look(
        Tower(clip.params, clip.architecture),
        text_directions.between(clip, asked.source, asked.target),
        clip.text(asked.target),
      )
      for clip in loaded
    ]
    job = read_job(loaded, stop)
    out = shared.out_folder(job.net, 'nada')
    with locked(out, 'out'):
      document = nada_runs.train(job, looks, out)
  print('\n'.join([job.net.title, *summary(document), f'the trained network is {out}/']))


def read_job(loaded: list[clips.Clip], stop: Stop) -> nada_runs.Job:
  """The Job of the flags. Raises UsageError, CheckpointError."""
  asked = flags.FLAGS
  net = sampler.load(asked.checkpoint)
  settings, steps = read_settings()
  nada.check(net, settings)
  labels = read_labels(net)
  seeds = list(dict.fromkeys(asked.seeds))
  # Of several classes each seed has one, in turn.
  shown = None if labels is None else labels[np.arange(len(seeds)) % len(labels)]
  about = {
    'method': 'nada',
    'network': net.hash(),
    'source': asked.source,
    'target': asked.target,
    'clip': asked.clip,
    'clip_hash': [clip.hash for clip in loaded],
    'labels': None if labels is None else labels.tolist(),
    **settings._asdict(),
  }
  return nada_runs.Job(
    net=net,
    scores=[clips.Scores(clip, asked.target, asked.source) for clip in loaded],
    settings=settings,
    steps=steps,
    save_every=asked.save_every,
    labels=labels,
    seeds=seeds,
    ws=net.ws(seeds, asked.psi, label=shown),
    about=about,
    stop=stop,
  )


def read_settings() -> tuple[nada.Settings, int]:
  """The Settings of the flags, and the number of steps."""
  asked = flags.FLAGS
  default = {'steps': STEPS, 'lr': nada.Settings().lr, 'layers': 0}
  if asked.clip == ['digits']:
    default = OF_DIGITS
  steps, lr, layers = (
    default[name] if asked[name].value is None else asked[name].value for name in default
  )
  return nada.Settings(lr, asked.batch, layers or None, asked.psi, asked.seed), steps


def read_labels(net: sampler.Sampler) -> np.ndarray | None:
  """The labels of --class or --label, [K,c_dim]; None if neither is given."""
  text, vectors = (flags.FLAGS[name].value for name in ('class', 'label'))
  names = net.labels.names if net.labels else ()
  count = 1
  if text is not None and text not in names:  # names may hold commas
    count = text.count(',') + 1
  elif vectors is not None:
    count = len(vectors)
  return shared.labels(net, count)


def summary(document: dict) -> list[str]:
  """Lines for people."""
  lines = [
    f'{document["steps"]} steps: loss {document["relative_loss"]:.3f} of the start; pixels of '
    f'{len(document["images"])} images changed by {document["pixels"]:.1f} of 255'
  ]
  for name, mean in document['mean'].items():
    before, after = mean['before'], mean['after']
    lines += [
      f'{name}: {what} cosine {before[what]:.3f} -> {after[what]:.3f}'
      for what in ('target', 'source')
    ]
    ranks = f'{before["rank"]:.1f} -> {after["rank"]:.1f}'
    lines.append(f'{name}: rank of the target among {mean["neutral"] + 1}: {ranks}')
  return lines


if __name__ == '__main__':
  define_flags()
  cli.run(main)
