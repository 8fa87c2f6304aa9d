"""The command line. `run` starts every tool: flags in; exit code and one line of error out."""

from collections.abc import Callable, Collection
import importlib.util
import os
import pathlib
import re
import signal
import sys

from absl import app, flags, logging
from ml_collections import ConfigDict

from sg2jax import faults, paths

_DEBUG = flags.DEFINE_bool('debug', False, 'Show the traceback of an expected error.')


def run(main: Callable[[list[str]], None], positional: int = 0):
  """Parses absl flags, runs `main(argv)` and exits. argv[1:] are up to `positional` arguments that
  are no flags.

  With 0, with 2 for bad flags, or with a Fault's code; the message is on stderr, the traceback only
  with --debug.
  """
  # what a terminal can't show is escaped: a name never ends the work
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, 'reconfigure'):
      stream.reconfigure(errors='backslashreplace')
  if importlib.util.find_spec('fcntl') is None:
    _fail(f'sg2jax runs on Linux or macOS only, and this is {sys.platform}', faults.UsageError.code)
  logging.set_verbosity(logging.WARNING)  # orbax tells every save at length; --verbosity=0 shows it
  # refused below
  logging.get_absl_logger().addFilter(lambda r: 'get_config() returned None' not in r.getMessage())
  app.run(lambda argv: _guard(main, argv, positional), flags_parser=_parse)


def seeds(text: str, flag: str = 'seeds') -> list[int]:
  """'0-3,100' -> [0, 1, 2, 3, 100]. Raises UsageError, naming the flag, for anything but numbers
  and ranges in [0, 2^32).
  """
  found = []
  for part in text.split(','):
    match = re.fullmatch(r' *(\d{1,10})(?:-(\d{1,10}))? *', part)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if not first <= last < 2**32 or last - first >= 10**6:
      raise faults.UsageError(
        f'--{flag}={text}: {part.strip()!r} is no seed; give numbers in [0, 2^32) and ranges, as '
        'in 0-31,100'
      )
    found += range(first, last + 1)
  return found


def folder(path: str, flag: str = 'out') -> pathlib.Path:
  """The absolute path of a folder to write to, which need not exist. Raises UsageError if it is
  missing or a file.
  """
  if not path:
    raise faults.UsageError(f'--{flag} is missing; name a folder to write to')
  place = pathlib.Path(path).expanduser().absolute()
  if place.exists() and not place.is_dir():
    raise faults.UsageError(f'--{flag}={path} is a file; name a folder')
  _check_writable(place, f'--{flag}={path}')
  return place


def file(path: str, endings: Collection[str], flag: str = 'out') -> pathlib.Path:
  """The absolute path of a file to write, with one of the endings. Raises UsageError: missing,
  another ending, a folder.
  """
  place, said = pathlib.Path(path or '').expanduser().absolute(), f'--{flag}={path}'
  if not path:
    raise faults.UsageError(
      f'--{flag} is missing; name a file to write, that ends in {" or ".join(endings)}'
    )
  if place.suffix not in endings:
    raise faults.UsageError(f'{said} must end in {" or ".join(endings)}')
  if place.is_dir():
    raise faults.UsageError(f'{said} is a folder; name a file')
  _check_writable(place.parent, said)
  return place


def check_checkpoint(path: str | None):
  """Raises UsageError if no --checkpoint was named."""
  if not path:
    raise faults.UsageError(
      '--checkpoint is missing; name a workdir, as in --checkpoint=runs/quickstart'
    )


def _check_writable(folder, said):
  """Raises UsageError or WriteError now, rather than after the work, for a place where nothing can
  be written.
  """
  there = next(p for p in (folder, *folder.parents) if p.exists())
  if not there.is_dir():
    raise faults.UsageError(f'{said}: {there} is a file; name another place')
  if not os.access(there, os.W_OK | os.X_OK):
    raise faults.WriteError(
      f'{said}: {there} may not be written to; name another place, or ask for the permission'
    )


def _fail(message: object, code: int):
  print(f'{os.path.basename(sys.argv[0])}: {message}', file=sys.stderr)
  sys.exit(code)


def _parse(argv: list[str]) -> list[str]:
  try:
    for said, path in _config_files(argv):
      paths.check_local(path, said)
      if not (path := path.split(':')[0]):
        raise faults.UsageError(
          f'{said.strip()} names no file; as in --config=configs/quickstart.py'
        )
      if not os.path.isfile(path):
        what = (
          f'{path} is a folder; name a file' if os.path.isdir(path) else f'there is no file {path}'
        )
        raise faults.UsageError(f'{said}: {what}; run from the folder that holds configs/')
    found = flags.FLAGS(argv)
    for said, _ in _config_files(argv):
      if not isinstance(value := flags.FLAGS['config'].value, ConfigDict):
        raise faults.UsageError(f'{said}: {_reason(value)}')
    return found
  except SystemExit:
    if any(re.fullmatch(r'--?(help(short|full|xml)?|\?)', arg) for arg in argv):
      sys.exit(0)  # absl takes it for an error
    _fail('the configuration file ended the program itself', faults.UsageError.code)
  except faults.Fault as fault:
    _fail(fault, fault.code)
  # Whatever a configuration file or an unknown --config.key raises; ml_collections wraps it in
  # tracebacks.
  except Exception as err:
    if '--debug' in argv:
      raise
    said = str(err).replace('\\n', '\n').replace("\\'", "'")  # some of it is a repr
    lines = [
      line for line in said.replace('"\'', '').strip('" \n').splitlines() if line.strip()
    ] or [type(err).__name__]
    text = lines[-1].split('Error: ', 1)[-1] if 'Traceback' in said else ' '.join(lines)
    text = ' '.join(text.split()).replace("''", "'")
    _fail(text.rstrip("'") if text.count("'") % 2 else text, faults.UsageError.code)


def _config_files(argv: list[str]):
  """(argument as given, value) of each --config, in all the forms that absl knows."""
  if 'config' not in flags.FLAGS:
    return
  for arg, after in zip(argv[1:], [*argv[2:], '']):
    if arg == '--':
      return
    if found := re.fullmatch(r'--?config(=(.*))?', arg, re.DOTALL):
      yield (arg, found[2]) if found[1] else (f'{arg} {after}', after)


def _reason(config) -> str:
  """Why what a configuration file gave is none."""
  try:
    getattr(config, 'batch', None)
  except OSError as e:  # ml_collections raises only now what came of the file
    return f'cannot be read ({" ".join(str(e.__cause__ or e).split())})'
  return f'get_config() returned {type(config).__name__}, and must return a ConfigDict'


def _check_places(argv: list[str]):
  """Raises UsageError for addresses (gs://...) and home folders that nobody knows, wherever a flag
  or a field has text.
  """
  given = [('', argument) for argument in argv[1:]]
  for name in flags.FLAGS:
    value = flags.FLAGS[name].value
    if isinstance(value, ConfigDict):
      given += [(f'--{name}.{field}=', x) for field, x in _leaves(value)]
    else:
      given += [(f'--{name}=', x) for x in (value if isinstance(value, (list, tuple)) else [value])]
  for said, text in given:
    if isinstance(text, str):
      paths.check_local(text, said + text)
      if said in ('--workdir=', '--checkpoint=', '--config.init_from='):
        paths.check_text(text, said + text)


def _leaves(config: ConfigDict, prefix=''):
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      yield from _leaves(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value


def _keep_compiled():
  """Has JAX keep what it compiles in the cache, unless the user said where. Doesn't import it: that
  takes long.
  """
  name = 'JAX_COMPILATION_CACHE_DIR'
  if name in os.environ:
    return
  if 'jax' not in sys.modules:
    os.environ[name] = str(paths.cache() / 'jax')
  elif not (jax := sys.modules['jax']).config.jax_compilation_cache_dir:
    jax.config.update('jax_compilation_cache_dir', str(paths.cache() / 'jax'))


def _guard(main: Callable[[list[str]], None], argv: list[str], positional: int):
  signal.signal(signal.SIGTERM, _terminate)
  try:
    if len(argv) > 1 + positional:
      raise faults.UsageError(
        f'unexpected argument {argv[1 + positional]!r}; flags are written --name=value'
      )
    _check_places(argv)
    _keep_compiled()
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
  """Of SIGTERM where nothing is to be saved: ends as if it hadn't been caught, but cleans up
  first.
  """
  _fail('SIGTERM: ended; files that were written are whole', 128 + number)
