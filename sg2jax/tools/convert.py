"""python -m sg2jax.tools.convert --source=FILE --dest=DIR

Turns a trained StyleGAN2 of others into a run of ours, which generate, video, project, evaluate and
training take. FILE is

  a TensorFlow pickle of stylegan2 or stylegan2-ada (configs A to F), with G, D and Gs or one of
  them, a pickle of stylegan2-ada-pytorch, or of a StyleGAN2 from stylegan3's repository, a .pt of
  rosinality's stylegan2-pytorch, or a .safetensors or .npz that `python -m sg2jax.tools.export`
  wrote, with its .json beside it.

FILE is read, never run: neither TensorFlow nor PyTorch is needed, and a file can't do harm. A
network that would make other images here is refused, with the reason. DIR must not exist yet, or be
empty; it gets

  config.json, checkpoints/  the run import.json                the certificate: what was in FILE,
  what was missing and computed, shapes, hashes test.png                   the image of seed 0

docs/interop.md has the details.
"""

import hashlib
import json
import os
import pathlib
import shutil

from absl import flags
import jax

import sg2jax
from sg2jax import cli, files, grids, paths, sampler
from sg2jax.checkpoint import Checkpoints
from sg2jax.data.labels import FILE, Labels
from sg2jax.faults import UsageError, WeightsError, WriteError
from sg2jax.interop import read
from sg2jax.state import TrainState


def define_flags():
  """The command line. Not at import: tools have flags of the same names."""
  flags.DEFINE_string('source', None, 'File to read.')
  flags.DEFINE_string('dest', None, 'Folder to make.')


def main(_):
  """Reads, checks, makes an image, writes."""
  source, dest = flags.FLAGS.source, cli.folder(flags.FLAGS.dest, 'dest')
  if not source:
    raise UsageError('--source is missing; name a file, as in --source=stylegan2-ffhq-config-f.pkl')
  if dest.is_dir() and any(dest.iterdir()):
    raise UsageError(
      f'--dest={flags.FLAGS.dest} holds something; name a folder that is empty or not there yet'
    )
  paths.check_text(dest, f'--dest={flags.FLAGS.dest}')
  found = read.read(source)
  labels = labels_beside(source, found)
  net = sampler.from_state(dest, found.config, found.state, labels)
  image = net([0])[0]
  certificate = {
    'sg2jax': sg2jax.__version__,
    **found.report,
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
  write(dest, found, certificate, image, labels)
  print(f'{dest}: {net.config.g.architecture}, images of {" x ".join(map(str, image.shape))}')
  for name, text in found.report['initialised'].items():
    print(f'  {name}: {text}')
  for note in found.report['notes']:
    print(f'  {note}')


def labels_beside(source, found):
  """The Labels that the JSON of an export says, None if nothing does. Raises WeightsError."""
  beside = pathlib.Path(f'{source}.json').expanduser()
  if not found.config['c_dim'] or not beside.exists():
    return None
  try:
    document = json.loads(beside.read_text())
    if document.get('sha256') != found.report['sha256'] or 'labels' not in document:
      return None
    labels = Labels.from_json(json.dumps(document['labels']))
  except Exception as e:  # whatever a file that isn't as it was written leads to
    raise WeightsError(
      f'{beside} is refused: its labels are damaged ({e or type(e).__name__}); export it again'
    ) from e
  if labels.c_dim != (c_dim := found.config['c_dim']):
    raise WeightsError(
      f'{beside} is refused: its labels have {labels.c_dim} components, and the network {c_dim}'
    )
  return labels


def write(dest, found, certificate, image, labels=None):
  """Makes `dest` as a whole: under another name, then renamed. Raises WriteError."""
  made = dest.with_name(f'.{dest.name}.{os.getpid()}')
  try:
    checkpoints = Checkpoints(made, keep=1, meta={'data_hash': '', 'config': found.config})
    try:
      checkpoints.save(TrainState(**found.state, g_opt={}, d_opt={}))
    finally:
      checkpoints.close()
    files.write_atomic(
      made / 'config.json', json.dumps(found.config, indent=2, sort_keys=True) + '\n'
    )
    if labels:
      files.write_atomic(made / FILE, labels.to_json())
    files.write_atomic(made / 'import.json', json.dumps(certificate, indent=1) + '\n')
    files.write_atomic(made / 'test.png', files.png(grids.readable_grid(image[None])))
    try:
      os.replace(made, dest)
    except OSError as e:
      raise WriteError(f'cannot write {dest}: {e.strerror}; name another folder') from e
  finally:
    shutil.rmtree(made, ignore_errors=True)


if __name__ == '__main__':
  define_flags()
  cli.run(main)
