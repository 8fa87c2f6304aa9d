"""The command line. `run` starts every tool: flags in; exit code and one line of error out."""

from collections.abc import Callable, Collection
import os
import pathlib
import re
import signal
import sys

from absl import app, flags, logging

from sg2jax import faults

_DEBUG = flags.DEFINE_bool('debug', False, 'Show the traceback of an expected error.')


def run(main: Callable[[list[str]], None], positional: int = 0):
  """Parses absl flags, runs `main(argv)` and exits. argv[1:] are up to `positional` arguments that are no flags.

  With 0, with 2 for bad flags, or with a Fault's code; the message is on stderr, the traceback only
  with --debug.
  """
  logging.set_verbosity(logging.WARNING)  # orbax tells every save at length; --verbosity=0 shows it
  app.run(lambda argv: _guard(main, argv, positional), flags_parser=_parse)


def seeds(text: str, flag: str = 'seeds') -> list[int]:
  """'0-3,100' -> [0, 1, 2, 3, 100]. Raises UsageError, naming the flag, for anything but numbers and ranges in [0, 2^32)."""
  found = []
  for part in text.split(','):
    match = re.fullmatch(r' *(\d{1,10})(?:-(\d{1,10}))? *', part)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if not first <= last < 2 ** 32 or last - first >= 10 ** 6:
      raise faults.UsageError(f'--{flag}={text}: {part.strip()!r} is no seed; give numbers in [0, 2^32) and ranges, as in '
                              '0-31,100')
    found += range(first, last + 1)
  return found


def folder(path: str, flag: str = 'out') -> pathlib.Path:
  """The absolute path of a folder to write to, which need not exist. Raises UsageError if it is missing or a file."""
  if not path:
    raise faults.UsageError(f'--{flag} is missing; name a folder to write to')
  place = pathlib.Path(path).expanduser().absolute()
  if place.exists() and not place.is_dir():
    raise faults.UsageError(f'--{flag}={path} is a file; name a folder')
  _check_writable(place, f'--{flag}={path}')
  return place


def file(path: str, endings: Collection[str], flag: str = 'out') -> pathlib.Path:
  """The absolute path of a file to write, with one of the endings. Raises UsageError: missing, another ending, a folder."""
  place, said = pathlib.Path(path or '').expanduser().absolute(), f'--{flag}={path}'
  if not path:
    raise faults.UsageError(f'--{flag} is missing; name a file to write, that ends in {" or ".join(endings)}')
  if place.suffix not in endings:
    raise faults.UsageError(f'{said} must end in {" or ".join(endings)}')
  if place.is_dir():
    raise faults.UsageError(f'{said} is a folder; name a file')
  _check_writable(place.parent, said)
  return place


def check_checkpoint(path: str | None):
  """Raises UsageError if no --checkpoint was named."""
  if not path:
    raise faults.UsageError('--checkpoint is missing; name a workdir, as in --checkpoint=runs/quickstart')


def _check_writable(folder, said):
  """Raises UsageError or WriteError now, rather than after the work, for a place where nothing can be written."""
  there = next(p for p in (folder, *folder.parents) if p.exists())
  if not there.is_dir():
    raise faults.UsageError(f'{said}: {there} is a file; name another place')
  if not os.access(there, os.W_OK | os.X_OK):
    raise faults.WriteError(f'{said}: {there} may not be written to; name another place, or ask for the permission')


def _fail(message: object, code: int):
  print(f'{os.path.basename(sys.argv[0])}: {message}', file=sys.stderr)
  sys.exit(code)


def _parse(argv: list[str]) -> list[str]:
  for arg in argv:
    path = arg.split('=', 1)[-1].split(':')[0]
    if arg.startswith('--config=') and not os.path.exists(path):
      _fail(f'{arg}: there is no file {path}; run from the folder that holds configs/', faults.UsageError.code)
  try:
    return flags.FLAGS(argv)
  except SystemExit:
    sys.exit(0)  # after --help, which absl takes for an error
  # Whatever a configuration file or an unknown --config.key raises; ml_collections wraps it in tracebacks.
  except Exception as err:
    if '--debug' in argv:
      raise
    said = str(err).replace('\\n', '\n').replace("\\'", "'")  # some of it is a repr
    lines = [line for line in said.replace('"\'', '').strip('" \n').splitlines() if line.strip()]
    text = lines[-1].split('Error: ', 1)[-1] if 'Traceback' in said else ' '.join(lines)
    text = ' '.join(text.split()).replace("''", "'")
    _fail(text.rstrip("'") if text.count("'") % 2 else text, faults.UsageError.code)


def _guard(main: Callable[[list[str]], None], argv: list[str], positional: int):
  signal.signal(signal.SIGTERM, _terminate)
  try:
    if len(argv) > 1 + positional:
      raise faults.UsageError(f'unexpected argument {argv[1 + positional]!r}; flags are written --name=value')
    main(argv)
  except faults.Fault as fault:
    if _DEBUG.value:
      raise
    _fail(fault, fault.code)
  except KeyboardInterrupt:
    if _DEBUG.value:
      raise
    _fail('interrupted; files that were written are whole', faults.Interrupted.code)


def _terminate(number, _):
  """Of SIGTERM where nothing is to be saved: ends as if it hadn't been caught, but cleans up first."""
  _fail('SIGTERM: ended; files that were written are whole', 128 + number)
