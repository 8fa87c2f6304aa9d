"""The command line: `run` starts every tool. Out come an exit code and, of errors, a line."""

from collections.abc import Callable, Collection, Iterator
import contextlib
import importlib.util
import os
import pathlib
import re
import signal
import sys

from absl import app, flags, logging
from ml_collections import ConfigDict

from sg2jax import faults, paths

flags.DEFINE_bool('debug', False, 'Show the traceback of an expected error.')
# Looked for in the arguments: they may be what can't be parsed.
_DEBUG = re.compile(r'--?debug(=(1|t|true))?', re.IGNORECASE)
_HELP = re.compile(r'--?(help(short|full|xml)?|\?)')


def run(main: Callable[[list[str]], None], positional: int = 0) -> None:
  """Parses the flags, runs `main(argv)` and exits: 0, or the code of a Fault, whose text is shown.

  Args:
    main: gets the program's name and the arguments that are no flags.
    positional: how many of these there may be.
  """
  # What a terminal can't show is escaped: a name never ends the work.
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, 'reconfigure'):
      stream.reconfigure(errors='backslashreplace')
  # Orbax tells every save at length; --verbosity=0 shows it.
  logging.set_verbosity(logging.WARNING)
  # ml_collections warns of what `_check_config` refuses.
  logging.get_absl_logger().addFilter(
    lambda record: 'get_config() returned None' not in record.getMessage()
  )

  def checked(argv: list[str]):
    # As it is, no `finally` would run, and files that were begun would stay.
    signal.signal(signal.SIGTERM, _terminate)
    with exit_codes():
      if len(argv) > 1 + positional:
        raise faults.UsageError(
          f'unexpected argument {argv[1 + positional]!r}; flags are written --name=value'
        )
      _cache_compiled()
      main(argv)

  def parser(argv: list[str]) -> list[str]:
    with exit_codes():
      if importlib.util.find_spec('fcntl') is None:
        raise faults.UsageError(f'sg2jax runs on Linux or macOS only, and this is {sys.platform}')
      return parse(argv)

  app.run(checked, flags_parser=parser)


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
  """Exits with a Fault's code and text, or 2 for a missing package; --debug: with a traceback."""
  try:
    yield
  except (faults.Fault, KeyboardInterrupt) as e:
    if _given(_DEBUG, sys.argv):
      raise
    if isinstance(e, KeyboardInterrupt):
      _fail('interrupted; files that were written are whole', faults.Interrupted.code)
    _fail(e, e.code)
  except ModuleNotFoundError as e:
    # Installed with pip, the package brings only what `sg2jax.load` needs.
    if e.name is None or e.name.startswith('sg2jax') or _given(_DEBUG, sys.argv):
      raise
    _fail(
      f'the package {e.name} is missing; pip install "sg2jax[train,eval,video]" brings all',
      faults.UsageError.code,
    )


def _given(pattern: re.Pattern, argv: list[str]) -> bool:
  return any(pattern.fullmatch(argument) for argument in argv)


def _fail(message: object, code: int):
  print(f'{os.path.basename(sys.argv[0])}: {message}', file=sys.stderr)
  sys.exit(code)


def _terminate(number: int, _):
  """SIGTERM where nothing is to be saved: ends as if it weren't caught, but cleans up first."""
  _fail('SIGTERM: ended; files that were written are whole', 128 + number)


def _cache_compiled():
  """Has JAX keep what it compiles in our cache, unless the user said where."""
  name = 'JAX_COMPILATION_CACHE_DIR'
  if name in os.environ:
    return
  if 'jax' not in sys.modules:
    # Not imported for this alone: it takes long, and not every tool needs it.
    os.environ[name] = str(paths.cache() / 'jax')
  elif not (jax := sys.modules['jax']).config.jax_compilation_cache_dir:
    jax.config.update('jax_compilation_cache_dir', str(paths.cache() / 'jax'))


# ---- parsing


def parse(argv: list[str]) -> list[str]:
  """Parses flags. Returns the program's name and what is no flag.

  Raises UsageError, in one line, for anything: unknown flags, values against a rule, whatever a
  configuration file raises, addresses (gs://...) in any flag or field.
  """
  try:
    configs = list(_config_arguments(argv))
    # Before ml_collections looks: all that it says of a missing file is a traceback.
    for argument, path in configs:
      _check_config_file(argument, path)
    rest = flags.FLAGS(argv)
    # ml_collections takes anything for a configuration, and fails where it is used.
    for argument, _ in configs:
      _check_config(argument, flags.FLAGS['config'].value)
  except SystemExit:
    if _given(_HELP, argv):
      sys.exit(0)  # absl exits with 1, as if help were an error
    raise faults.UsageError('the configuration file ended the program itself') from None
  except faults.Fault:
    raise
  except Exception as e:
    if _given(_DEBUG, argv):
      raise
    text = _one_line(e)
    if isinstance(e, (AttributeError, KeyError)) and text.isidentifier():
      # Of a locked configuration: no more than the name comes out of ml_collections.
      text = (
        f'there is no field {text}; configs/default.py has all fields, and those of networks of '
        'others are set as --config.g.variant="{...}"'
      )
    raise faults.UsageError(text) from e
  _check_places(rest)
  return rest


def _one_line(error: Exception) -> str:
  """What absl, ml_collections or a configuration file raised, without what is no news."""
  # ml_collections puts the text of a traceback, some of it as a repr, into the message of its own.
  text = str(error).replace('\\n', '\n').replace("\\'", "'").replace('"\'', '').strip('" \n')
  lines = [line for line in text.splitlines() if line.strip()] or [type(error).__name__]
  if 'Traceback' in text:
    lines = [lines[-1].split('Error: ', 1)[-1]]
  # absl says 'flag --seed=-1: RULE', also of what wasn't given: 'flag --checkpoint=None: RULE'.
  lines = [re.sub(r'^flag (--\w+)=(None|\[\])?: is missing', r'\1 is missing', x) for x in lines]
  lines = [re.sub(r'^flag (--\w+=)', r'\1', line) for line in lines]
  text = ' '.join(' '.join(lines).split()).replace("''", "'")
  return text.rstrip("'") if text.count("'") % 2 else text


def _config_arguments(argv: list[str]) -> Iterator[tuple[str, str]]:
  """(argument as given, value) of each --config, in all the forms that absl knows."""
  if 'config' not in flags.FLAGS:
    return
  for argument, after in zip(argv[1:], [*argv[2:], '']):
    if argument == '--':
      return
    if match := re.fullmatch(r'--?config(?:=(.*))?', argument, re.DOTALL):
      yield (argument, match[1]) if match[1] is not None else (f'{argument} {after}', after)


def _check_config_file(argument: str, path: str):
  paths.check_local(path, argument)
  path = path.split(':')[0]  # FILE:ARGUMENT
  if not path:
    raise faults.UsageError(
      f'{argument.strip()} names no file; as in --config=configs/quickstart.py'
    )
  if os.path.isfile(path):
    return
  reason = f'there is no file {path}'
  if os.path.isdir(path):
    reason = f'{path} is a folder; name a file'
  raise faults.UsageError(f'{argument}: {reason}; run from the folder that holds configs/')


def _check_config(argument: str, config: object):
  if isinstance(config, ConfigDict):
    return
  reason = f'get_config() returned {type(config).__name__}, and must return a ConfigDict'
  try:
    getattr(config, 'batch', None)
  except OSError as e:  # ml_collections raises only now what came of the file
    reason = f'cannot be read ({" ".join(str(e.__cause__ or e).split())})'
  raise faults.UsageError(f'{argument}: {reason}')


def _check_places(rest: list[str]):
  """Raises UsageError for addresses and unknown home folders, wherever there is text."""
  # A path library makes gs:/b of gs://b, and a folder gs: where the user stands.
  given = [('', argument) for argument in rest[1:]]
  for name in flags.FLAGS:
    value = flags.FLAGS[name].value
    if isinstance(value, ConfigDict):
      given += [(f'--{name}.{field}=', leaf) for field, leaf in _leaves(value)]
    elif isinstance(value, (list, tuple)):
      given += [(f'--{name}=', element) for element in value]
    else:
      given.append((f'--{name}=', value))
  for flag, text in given:
    if isinstance(text, str):
      paths.check_local(text, flag + text)
      # Orbax writes and reads these paths, and takes UTF-8 only.
      if flag in ('--workdir=', '--checkpoint=', '--config.init_from='):
        paths.check_text(text, flag + text)


def _leaves(config: ConfigDict, prefix: str = '') -> Iterator[tuple[str, object]]:
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      yield from _leaves(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value


# ---- what flags and arguments name


def choice(argv: list[str], name: str, choices: Collection[str], default: str | None = None) -> str:
  """argv[1], one of the choices. Raises UsageError, naming it, if it isn't or is missing."""
  chosen = argv[1] if len(argv) > 1 else default
  if chosen not in choices:
    problem = f'{name} is missing' if chosen is None else f'{name}={chosen} is unknown'
    raise faults.UsageError(f'{problem}; choose from {", ".join(choices)}')
  return chosen


def folder(path: str, flag: str = 'out') -> pathlib.Path:
  """The absolute path of a folder to write to, there or not. Raises UsageError, WriteError."""
  if not path:
    raise faults.UsageError(f'--{flag} is missing; name a folder to write to')
  place = pathlib.Path(path).expanduser().absolute()
  if place.exists() and not place.is_dir():
    raise faults.UsageError(f'--{flag}={path} is a file; name a folder')
  _check_writable(place, f'--{flag}={path}')
  return place


def file(path: str, endings: Collection[str], flag: str = 'out') -> pathlib.Path:
  """The absolute path of a file to write, with one of the endings. Raises as `folder` does."""
  place = pathlib.Path(path or '').expanduser().absolute()
  ends = ' or '.join(endings)
  if not path:
    raise faults.UsageError(f'--{flag} is missing; name a file to write, that ends in {ends}')
  if place.suffix not in endings:
    raise faults.UsageError(f'--{flag}={path} must end in {ends}')
  if place.is_dir():
    raise faults.UsageError(f'--{flag}={path} is a folder; name a file')
  _check_writable(place.parent, f'--{flag}={path}')
  return place


def _check_writable(place: pathlib.Path, argument: str):
  """Raises UsageError or WriteError now, rather than after the work, if nothing can be written."""
  there = next(p for p in (place, *place.parents) if p.exists())
  if not there.is_dir():
    raise faults.UsageError(f'{argument}: {there} is a file; name another place')
  # Root may write anywhere by these bits; it then fails where the file is written.
  if not os.access(there, os.W_OK | os.X_OK):
    raise faults.WriteError(
      f'{argument}: {there} may not be written to; name another place, or ask for the permission'
    )
