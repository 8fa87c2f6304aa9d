"""The command line: `run` starts every tool. Out come an exit code and, of errors, a line."""

from collections.abc import Callable, Collection
import os
import pathlib
import re
import signal
import sys
import threading
from types import TracebackType

from absl import app, flags, logging

from sg2jax import faults, files, paths, peers
from sg2jax.addresses import Address

# Flags and fields that may name an address (gs://...), if the tool has it so.
ADDRESSES = (
  'workdir',
  'checkpoint',
  'out',
  'sheet',
  'data',
  'holdout',
  'replay',
  'edit',
  'config.data.dir',
  'config.init_from',
)

# These may hold one, and nothing is read there: what is Beam's, and what people say of themselves.
TEXTS = ('beam_options', 'author', 'license_link')

# Exit codes of several processes that all have if one has them.
TOGETHER = (faults.NonFiniteError.code, faults.Preempted.code, faults.Interrupted.code)

flags.DEFINE_bool('debug', False, 'Show the traceback of an expected error.')


def run(main: Callable[[list[str]], None], positional: int = 0) -> None:
  """Parses the flags, runs `main(argv)` and exits: 0, or as `except_hook` does.

  Args:
    main: gets the program's name and the arguments that are no flags.
    positional: how many of these there may be.
  """
  sys.excepthook = except_hook
  sys.unraisablehook = _unraisable_hook
  # What a terminal can't show is escaped: a name never ends the work.
  for stream in filter(None, (sys.stdout, sys.stderr)):  # None: it is closed
    stream.reconfigure(errors='backslashreplace')
  # Orbax tells every save at length; --verbosity=0 shows it.
  logging.set_verbosity(logging.WARNING)

  def checked(argv: list[str]):
    # As it is, no `finally` would run, and files that were begun would stay.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if len(argv) > 1 + positional:
      raise faults.UsageError(
        f'unexpected argument {argv[1 + positional]!r}; flags are written --name=value'
      )
    # What JAX compiles is kept in our cache, unless the user said where; not all tools need JAX.
    jax = sys.modules.get('jax')
    if jax and not jax.config.jax_compilation_cache_dir:
      jax.config.update('jax_compilation_cache_dir', str(paths.cache() / 'jax'))
    if 'distributed' in flags.FLAGS:
      _join_processes()
    elif 'checkpoint' in flags.FLAGS:  # those that only prepare data may run on every machine
      _check_alone()
    try:
      main(argv)
    except SystemExit as e:  # of SIGTERM; no excepthook sees it, and at the end JAX would wait
      _end_job('leave', e.code or 0, True)
      raise
    _end_job('part')

  app.run(checked, flags_parser=parse)


def _unraisable_hook(dropped):
  """A signal comes again whose exception Python dropped: JAX has a callback of the collector."""
  numbers = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}
  if dropped.exc_type not in numbers:
    sys.__unraisablehook__(dropped)
    return
  again = threading.Timer(0.05, os.kill, (os.getpid(), numbers[dropped.exc_type]))
  again.daemon = True
  again.start()


def except_hook(
  kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
  """The sys.excepthook of tools: shows what a user can mend in one line, and exits with its code.

  That is 2 for a package that is missing. --debug: shows the traceback instead of the line.
  """
  peers.explain(error)
  shown = error
  if isinstance(error, KeyboardInterrupt):
    shown = faults.Interrupted('interrupted; files that were written are whole')
  # Installed with pip, the package brings only what `sg2jax.load` needs.
  if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith('sg2jax'):
    shown = faults.UsageError(
      f'{error}; pip install "sg2jax[train,eval,text,video,view]" brings all'
    )
  if not isinstance(shown, faults.Fault):
    sys.__excepthook__(kind, error, trace)
    _end_job('leave', 1, True)
    return
  # Looked for in the arguments: they may be what couldn't be parsed.
  if {'--debug', '--debug=true', '--debug=1'} & set(sys.argv):
    sys.__excepthook__(kind, error, trace)
  else:
    print(f'{pathlib.Path(sys.argv[0]).stem}: {shown}', file=sys.stderr)
  # A signals.Stop tells all processes of Ctrl-C; without one it came to this one alone.
  is_alone = shown is not error or not (shown.is_everyones or shown.code in TOGETHER)
  _end_job('leave', shown.code, is_alone)
  sys.exit(shown.code)


def _check_alone():
  """Raises UsageError if a tool that is one process was started as one of several.

  They would do the same work, and write the same files.
  """
  from sg2jax import processes  # here, because not all tools need JAX

  _, count, _ = processes.environment()
  if count and count > 1:
    raise faults.UsageError(
      f'{processes.VARIABLES[1]}={count}: this tool runs as one process, on all of its devices; '
      'start it once, without launch/'
    )


def _join_processes():
  """Makes this process one of its job, as the flags of tools.flags.define_processes say."""
  from sg2jax import processes  # here, because not all tools need JAX

  asked = flags.FLAGS
  given = (asked.coordinator_address, asked.num_processes, asked.process_id)
  values = [there if flag is None else flag for flag, there in zip(given, processes.environment())]
  processes.join(asked.distributed, *values, asked.heartbeat_seconds)


def _end_job(how, *args):
  """Calls that function of `processes`, if anything has needed them."""
  if processes := sys.modules.get('sg2jax.processes'):
    getattr(processes, how)(*args)


def parse(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
  """Parses flags into `values`. Returns the program's name and what is no flag.

  Raises UsageError, in one line, for anything: unknown flags, values against a rule, whatever a
  configuration file raises, and addresses (gs://...) where only a disk will do.
  """
  for name, value, argument in _arguments(argv[1:]):
    # A path library makes gs:/b of gs://b, and a folder gs: where the user stands.
    if name in ADDRESSES:
      paths.place(value, argument)
    elif name not in TEXTS:
      paths.check_local(value, argument)
  try:
    return values(argv)
  except SystemExit:
    sys.exit(0)  # --help, after which absl exits with 1
  except faults.Fault:
    raise
  except Exception as e:
    raise faults.UsageError(_one_line(e)) from e


def _arguments(argv):
  """(name, value, as it is written) of --NAME=VALUE and --NAME VALUE, and of what is no flag."""
  before = ''
  for argument in argv:
    name, separator, value = argument.lstrip('-').partition('=')
    if separator:
      yield name, value, argument
    elif not argument.startswith('-'):
      yield before, argument, argument
    before = '' if separator else name


def _one_line(error: Exception) -> str:
  """What absl, ml_collections or a configuration file raised."""
  text = str(error) or type(error).__name__
  if 'Traceback' in text:  # ml_collections shows all that a configuration raised
    text = text.strip().splitlines()[-1].partition('Error: ')[2]
  if isinstance(error, (AttributeError, KeyError)):
    name = text.replace('\\n', ' ').translate({ord(x): None for x in "\\'"}).strip('"')
    text = (
      f'--config has no such field: {name}; configs/default.py has all, and those of networks of '
      'others are set as --config.g.variant="{...}"'
    )
  # What Python and absl say of texts that are something else.
  text = re.sub(r'invalid literal for int\(\) with base 10: .*', 'must be a whole number', text)
  text = re.sub(r'could not convert string to float: .*', 'must be a number', text)
  text = re.sub(r"\('Non-boolean argument to boolean flag', .*\)", 'must be True or False', text)
  if isinstance(error, OSError):
    text += '; name a file, and run from the folder that holds configs/'
  return ' '.join(text.split())


# ---- what flags and arguments name


def choice(argv: list[str], name: str, choices: Collection[str], default: str = '') -> str:
  """argv[1], one of the choices. Raises UsageError, naming it, if it isn't or is missing."""
  chosen = argv[1] if len(argv) > 1 else default
  if chosen not in choices:
    problem = f'{name}={chosen} is unknown' if chosen else f'{name} is missing'
    raise faults.UsageError(f'{problem}; choose from {", ".join(choices)}')
  return chosen


def folder(path: str | paths.Path, flag: str = 'out', anywhere: bool = False) -> paths.Path:
  """The absolute path of a folder to write to, there or not.

  anywhere: it may be an address.

  Raises UsageError or WriteError now, rather than after the work, if nothing can be written.
  """
  if not anywhere:
    paths.check_local(path, f'--{flag}={path}')
  place = paths.place(path, f'--{flag}={path}').absolute()
  if isinstance(place, Address):
    _try_to_write(place)
    return place
  there = paths.nearest(place)
  if not there.is_dir():
    raise faults.UsageError(f'--{flag}={path}: {there} is a file; name a folder')
  # Root may write anywhere by these bits; it then fails where the file is written.
  if not os.access(there, os.W_OK | os.X_OK):
    raise faults.WriteError(
      f'--{flag}={path}: {there} may not be written to; name another place, or ask for the '
      'permission'
    )
  return place


def _try_to_write(place):
  """Puts an object below an address, and deletes it again."""
  trial = place / f'.trial-{os.getpid()}'
  with files.writing(place):
    trial.write_bytes(b'')
    trial.unlink(missing_ok=True)


def file(
  path: str, endings: Collection[str] = (), flag: str = 'out', anywhere: bool = False
) -> paths.Path:
  """The absolute path of a file to write, with one of the endings if there are any.

  As `folder` otherwise.
  """
  if not anywhere:
    paths.check_local(path, f'--{flag}={path}')
  place = paths.place(path, f'--{flag}={path}')
  if endings and place.suffix not in endings:
    problem = f'--{flag}={path}' if path else f'--{flag} is missing; the name of a file'
    raise faults.UsageError(f'{problem} must end in {" or ".join(endings)}')
  whole = folder(place.parent, flag, anywhere) / place.name
  if whole.is_dir():
    raise faults.UsageError(f'--{flag}={path} is a folder; name a file')
  return whole
