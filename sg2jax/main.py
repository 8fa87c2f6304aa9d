"""python -m sg2jax.main --config=configs/quickstart.py --workdir=DIR: trains; the same command resumes."""
import os

from absl import flags
from ml_collections import config_flags

from sg2jax import tools
from sg2jax.train import train

CONFIG = config_flags.DEFINE_config_file('config', None, 'Configuration; any field: --config.FIELD=VALUE.')
WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run; one that holds this run resumes it.')


def main(_):
  """Trains."""
  train(CONFIG.value, os.path.expanduser(WORKDIR.value))


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir'])
  tools.run(main)
