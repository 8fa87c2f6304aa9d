"""What can go wrong for a user: one line each, no traceback (`--debug` shows it), an exit code."""


class Fault(Exception):
  """An error with a remedy: `str(fault)` says what, where and what to do; `code`: the exit code."""

  code = 1
  is_everyones = False  # whether all processes of the job raise it


class UsageError(Fault):
  """A flag or a configuration value that can't work; raised before any device starts."""

  code = 2


class DatasetError(Fault):
  """A data set that is missing, empty, unreadable or unlike the configuration."""

  code = 3


class NonFiniteError(Fault):
  """A loss or gradient became NaN or infinite; the parameters were not touched by it."""

  code = 4


class WriteError(Fault):
  """A file could not be written (disk full, read-only, gone)."""

  code = 5


class CheckpointError(Fault):
  """No usable checkpoint, or one that doesn't match."""

  code = 6


class WeightsError(Fault):
  """Weights refused: missing, corrupt or of an unknown shape."""

  code = 7


class Preempted(Fault):
  """SIGTERM: the last finished step was saved; the same command goes on from there."""

  code = 75


class Interrupted(Fault):
  """Ctrl-C: the last finished step was saved."""

  code = 130


class Hang(Fault):
  """A step that doesn't end, or another process of the run that is gone; the checkpoints stand."""

  code = 76
