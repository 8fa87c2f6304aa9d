"""Downloads weights that the metrics and text-guided editing need, or lists what there is.

  python -m sg2jax.tools.fetch_weights [NAME ...] [--dest=DIR]

Without NAME: what there is, where it goes and whether it is there. DIR is $SG2JAX_WEIGHTS, else the
cache. Files come by https, are checked (size, sha256) and only then get their name. Behind a proxy,
$https_proxy is used; SSL_CERT_FILE names other certificates. On a machine without network: put the
files there by hand, under the names listed.
"""

import pathlib

from absl import flags

from sg2jax import cli, pretrained
from sg2jax.faults import UsageError


def define_flags() -> None:
  """The command line. Not at import: tools have flags of the same names."""
  flags.DEFINE_string('dest', '', 'Folder for the files; default: $SG2JAX_WEIGHTS, else the cache.')


def main(argv: list[str]) -> None:
  """Fetches the files named in argv[1:], or lists all."""
  names = dict.fromkeys(argv[1:])
  for name in names:
    if name not in pretrained.FILES:
      raise UsageError(f'NAME={name} is unknown; choose from {", ".join(pretrained.FILES)}')
  dest = pretrained.folders()[0]
  if flags.FLAGS.dest:
    dest = cli.folder(flags.FLAGS.dest, 'dest')
  if not names:
    list_files(dest)
    return
  for name in names:
    pretrained.fetch(pretrained.FILES[name], dest)


def list_files(dest: pathlib.Path) -> None:
  """Prints what there is, and which of it is in `dest`."""
  for name, file in pretrained.FILES.items():
    path = dest / file.name
    state = 'missing'
    if path.exists():
      state = 'there' if pretrained.is_right(path, file) else 'another file'
    print(f'{name}: {file.what}; {file.licence}\n  {path} ({file.bytes / 1e6:,.2f} MB): {state}')
  print(f'to fetch some of them: {pretrained.TOOL} NAME ...')


if __name__ == '__main__':
  define_flags()
  cli.run(main, positional=len(pretrained.FILES))
