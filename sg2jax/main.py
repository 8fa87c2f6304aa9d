"""python -m sg2jax.main --config=configs/quickstart.py --workdir=DIR: trains; the same command resumes."""
import os
import pathlib

from absl import flags
import jax
from ml_collections import config_flags

from sg2jax import tools
from sg2jax.train import train

CONFIG = config_flags.DEFINE_config_file('config', None, 'Configuration; any field: --config.FIELD=VALUE.')
WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run; one that holds this run resumes it.')


def main(_):
  """Trains. Compiled steps are cached in $JAX_COMPILATION_CACHE_DIR, by default ~/.cache/sg2jax."""
  if not jax.config.jax_compilation_cache_dir:
    cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    jax.config.update('jax_compilation_cache_dir', str(pathlib.Path(cache) / 'sg2jax'))
  train(CONFIG.value, os.path.expanduser(WORKDIR.value))


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir'])
  tools.run(main)
