"""python -m sg2jax.main --config=configs/quickstart.py --workdir=DIR: trains; the same command
resumes.
"""

import os

from absl import flags
from ml_collections import config_flags

from sg2jax import cli, nonfinite
from sg2jax.train import train

CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Configuration; any field: --config.FIELD=VALUE.'
)
WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of the run; one that holds this run resumes it.'
)
REPLAY = flags.DEFINE_string(
  'replay',
  '',
  'File in WORKDIR/nonfinite/, which a run writes before it exits with code 4: '
  'computes that minibatch once more and shows its numbers, instead of training.',
)


def main(_):
  """Trains, or replays one minibatch."""
  if REPLAY.value:
    nonfinite.replay(CONFIG.value, REPLAY.value)
    return
  train(CONFIG.value, os.path.expanduser(WORKDIR.value))


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir'])
  cli.run(main)
