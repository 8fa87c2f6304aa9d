"""Turns a trained StyleGAN2 of others into a run of ours.

  python -m sg2jax.tools.convert --source=FILE --dest=DIR

FILE is one of

  a pickle of stylegan2 or stylegan2-ada for TensorFlow (configs A to F), with G, D and Gs or one
  a pickle of stylegan2-ada-pytorch, or of a StyleGAN2 from stylegan3's repository
  a .pt of rosinality's stylegan2-pytorch
  a .safetensors or .npz that `python -m sg2jax.tools.export` wrote, with its .json beside it
  a folder that `python -m sg2jax.tools.export --bundle` wrote

It is read, never run: neither TensorFlow nor PyTorch is needed, and a file can't do harm. A network
that would make other images here is refused, with the reason. DIR must not exist yet, or be empty;
generate, video, project, evaluate and training take it. It gets

  config.json, checkpoints/  the run
  import.json                the certificate: what was in FILE, missing, computed; hashes
  test.png                   the image of seed 0

docs/interop.md has the details.
"""

import contextlib
import hashlib
import json

from absl import flags
import jax

import sg2jax
from sg2jax import cli, files, grids, paths, sampler
from sg2jax.data.labels import FILE
from sg2jax.faults import UsageError
from sg2jax.interop.read import read_network
from sg2jax.state import TrainState
from sg2jax.tools import flags as shared
from sg2jax.training.checkpoint import Checkpoints


def define_flags() -> None:
  """The command line."""
  flags.DEFINE_string('source', None, 'File to read.')
  shared.define_required('source', 'name a file, as in --source=stylegan2-ffhq-config-f.pkl')
  flags.DEFINE_string('dest', None, 'Folder to make.')
  shared.define_required('dest', 'name a folder to make')


def main(_: list[str]) -> None:
  """Reads, checks, makes an image, writes."""
  args = flags.FLAGS
  dest = cli.folder(args.dest, 'dest')
  paths.check_name(dest, f'--dest={args.dest}')
  if dest.is_dir() and any(dest.iterdir()):
    raise UsageError(
      f'--dest={args.dest} holds something; name a folder that is empty or not there yet'
    )
  imported = read_network(args.source)
  net = sampler.from_state(dest, imported.config, imported.state, imported.labels)
  image = net([0])[0]
  certificate = {
    'sg2jax': sg2jax.__version__,
    **imported.report,
    'network_sha256': net.hash(),
    'test_image': {
      'file': 'test.png',
      'seed': 0,
      'psi': 1,
      'noise': 'const',
      'label': net.c([0])[0].tolist(),
      'sha256': hashlib.sha256(image.tobytes()).hexdigest(),
      'shape': list(image.shape),
      'platform': jax.default_backend(),
      'jax': jax.__version__,
    },
  }
  with files.whole_folder(dest) as folder:
    meta = {'data_hash': '', 'config': imported.config}
    with contextlib.closing(Checkpoints(folder, keep=1, meta=meta)) as checkpoints:
      checkpoints.save(TrainState(**imported.state, g_opt={}, d_opt={}))
    config = json.dumps(imported.config, indent=2, sort_keys=True) + '\n'
    files.write_atomic(folder / 'config.json', config)
    if imported.labels:
      files.write_atomic(folder / FILE, imported.labels.to_json())
    files.write_atomic(folder / 'import.json', json.dumps(certificate, indent=1) + '\n')
    files.write_atomic(folder / 'test.png', files.png(grids.readable_grid(image[None])))
  print(f'{dest}: {net.config.g.architecture}, images of {" x ".join(map(str, image.shape))}')
  for name, text in imported.report['initialised'].items():
    print(f'  {name}: {text}')
  for note in imported.report['notes']:
    print(f'  {note}')


if __name__ == '__main__':
  define_flags()
  cli.run(main)
