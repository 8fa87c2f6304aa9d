"""Writes a trained network to one file that others can use, or to a folder to publish.

  python -m sg2jax.tools.export --checkpoint=RUN --dest=FILE [--format=safetensors|nvidia|stablehlo]
  python -m sg2jax.tools.export --checkpoint=RUN --bundle=DIR --license=ID --data_license=ID
      --author=NAME [more fields of the card: see tools.card]

  safetensors  FILE.safetensors: all weights (G, its moving average, D), noise maps and w_avg under
               our names
  nvidia       FILE.npz: the same as state dicts of stylegan2-ada-pytorch (G., D., G_ema.), and its
               constructors' arguments
  stablehlo    FILE.stablehlo: the generator as a module of StableHLO: latents in, images out. Runs
               where jax and flatbuffers are installed (CPU, CUDA, ROCm, TPU), without this package;
               docs/interop.md has the lines for it

Beside it FILE.<ending>.json says what it is. `python -m sg2jax.tools.convert` reads the first two
again. FILE may be a folder; the file is then called after the run. Nothing is overwritten.
docs/interop.md has the details.

DIR becomes a bundle, which sg2jax.load and --checkpoint take: the moving average of G as
safetensors, configuration, labels, a model card with pictures (see tools.card), and SHA256SUMS. An
older bundle there is replaced, unless its card was edited. docs/publishing.md has the details.
"""

import hashlib
import json
import pathlib

from absl import flags

from sg2jax import bundle, cli, paths, sampler
from sg2jax.faults import UsageError
from sg2jax.files import write_atomic
from sg2jax.interop import write
from sg2jax.tools import bundles, card_fields
from sg2jax.tools import flags as shared
from sg2jax.training import checkpoint

SUFFIXES = {'safetensors': '.safetensors', 'nvidia': '.npz', 'stablehlo': '.stablehlo'}


def define_flags() -> None:
  """The command line."""
  shared.define_checkpoint()
  flags.DEFINE_string('dest', None, 'File to write, or a folder for it.')
  flags.DEFINE_string('bundle', None, 'Instead: folder to publish.')
  flags.DEFINE_enum('format', 'safetensors', list(SUFFIXES), 'What to write.')
  card_fields.define()
  flags.adopt_module_key_flags(card_fields)  # so that --help lists them


def main(_: list[str]) -> None:
  """Reads, converts, writes."""
  args = flags.FLAGS
  if bool(args.dest) == bool(args.bundle):
    problem = 'goes without --bundle' if args.dest else 'is missing'
    raise UsageError(
      f'--dest {problem}; name a file or a folder to write to, or --bundle=DIR, a folder to publish'
    )
  names, other = (('format',), 'bundle') if args.bundle else (card_fields.FIELDS, 'dest')
  for name in names:
    if args[name].present:
      raise UsageError(f'--{name} says nothing of what --{other} writes; leave it away')
  if args.bundle:
    folder = bundles.write(args.checkpoint, args.bundle)
    print(f'{folder}: a bundle; {bundle.SUMS} has the hashes of its files')
    return
  run = paths.place(args.checkpoint).absolute()
  # Before the weights are read, which may take minutes.
  path = destination(args.dest, run.name, SUFFIXES[args.format])
  state, config = checkpoint.load(args.checkpoint)
  if args.format == 'safetensors':
    data, document = write.write_safetensors(state, config)
  elif args.format == 'nvidia':
    data, document = write.write_nvidia(state, config)
  else:
    data, document = write.write_stablehlo(sampler.from_state(path.parent, config, state))
  if labels := sampler.read_labels(args.checkpoint, config['c_dim']):
    document['labels'] = json.loads(labels.to_json())
  document |= {
    'file': path.name,
    'sha256': hashlib.sha256(data).hexdigest(),
    'step': int(state['step']),
    'nimg': int(state['nimg']),
  }
  write_atomic(path, data)
  write_atomic(beside(path), json.dumps(document, indent=1) + '\n')
  print(f'{path}: {len(data):,} bytes; {beside(path).name} says what it is')


def beside(path: pathlib.Path) -> pathlib.Path:
  """The JSON file of an exported one: FILE.npz.json for FILE.npz."""
  return path.with_name(f'{path.name}.json')


def destination(dest: str, name: str, suffix: str) -> pathlib.Path:
  """The file to write: `dest`, or one of that name in it.

  Raises as `cli.file` does, and UsageError if it is there already.
  """
  if pathlib.Path(dest).expanduser().is_dir() or dest.endswith('/'):
    dest = f'{dest}/{name}{suffix}'
  path = cli.file(dest, [suffix], 'dest')
  for there in (path, beside(path)):
    if there.exists():
      raise UsageError(f'--dest={dest}: {there} is there already; choose another name')
  return path


if __name__ == '__main__':
  define_flags()
  cli.run(main)
