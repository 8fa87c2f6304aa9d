"""Trains a network; the same command resumes a run that was interrupted.

python -m sg2jax.main --config=configs/quickstart.py --workdir=DIR
"""

from absl import flags

from sg2jax import cli
from sg2jax.tools import flags as shared
from sg2jax.training import nonfinite
from sg2jax.training.train import train


def define_flags() -> None:
  """The command line."""
  shared.define_processes()
  shared.define_config()
  flags.DEFINE_string('workdir', None, 'Directory of the run; one that holds this run resumes it.')
  shared.define_required('workdir', 'name a folder, as in --workdir=runs/quickstart')
  flags.DEFINE_string(
    'replay',
    '',
    'File in WORKDIR/nonfinite/, which a run writes before it exits with code 4: '
    'computes that minibatch once more and shows its numbers, instead of training.',
  )


def main(_: list[str]) -> None:
  """Trains, or replays one minibatch."""
  args = flags.FLAGS
  if args.replay:
    nonfinite.replay(args.config, args.replay)
  else:
    train(args.config, args.workdir)


if __name__ == '__main__':
  define_flags()
  cli.run(main)
