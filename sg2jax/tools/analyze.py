"""Measures artefacts in trained generators, several side by side.

  python -m sg2jax.tools.analyze KIND --checkpoint=RUN [--checkpoint=OTHER ...] [--out=DIR]
      [--images=N] [--seed=S]

Writes DIR/KIND.png and DIR/KIND.json. KIND is

  contribution   what each resolution adds to the image (skip, msg), and how that went in training
  droplets       how far the tallest pixel stands out of each layer's feature maps: AdaIN against
                 demodulation
  phase          how much of the details stays on its pixels while w moves: growing against skip

A checkpoint is a workdir (its newest) or one step of it. Weights are the moving average, w is not
truncated, a network that grows is taken at the stage it had reached. docs/analysis.md says how to
read the figures.
"""

from absl import flags

from sg2jax import charts, cli, sampler
from sg2jax.faults import UsageError
from sg2jax.lab import analyze
from sg2jax.tools import flags as shared


def define_flags() -> None:
  """The command line."""
  flags.DEFINE_multi_string(
    'checkpoint', [], 'Workdir, or one step of it; give several to compare them.'
  )
  shared.define_required('checkpoint', 'name a workdir, as in --checkpoint=runs/quickstart')
  most = len(charts.COLOURS)
  flags.register_validator(
    'checkpoint', lambda paths: len(paths) <= most, f'can be given {most} times at most'
  )
  flags.DEFINE_string(
    'out', None, 'Folder for the figure and the numbers; default: analysis/ in the first workdir.'
  )
  flags.DEFINE_integer(
    'images',
    None,
    'Samples of w; default: 1024, droplets: 256. phase: 32 make a path.',
    lower_bound=1,
  )
  shared.define_seed('Of latents and labels.')


def main(argv: list[str]) -> None:
  """Checks, measures, draws."""
  args = flags.FLAGS
  kind = cli.choice(argv, 'KIND', analyze.KINDS)
  images = args.images or analyze.KINDS[kind].images
  if kind == 'phase' and (images % analyze.FRAMES or images < 2 * analyze.FRAMES):
    raise UsageError(
      f'--images={images} must be a multiple of {analyze.FRAMES}, and {2 * analyze.FRAMES} at least'
    )
  networks = [(path, sampler.load(path)) for path in args.checkpoint]
  out = cli.folder(args.out or networks[0][1].workdir / 'analysis', anywhere=True)
  analyze.analyze(kind, networks, images, args.seed, out)


if __name__ == '__main__':
  define_flags()
  cli.run(main, positional=1)
