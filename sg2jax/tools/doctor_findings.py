"""What `doctor` finds: its form, and looks that end in time whatever they meet.

Nothing heavy is imported here or in doctor_machine.py: what they look at may be what is broken.
"""

from collections.abc import Callable, Iterator
import importlib.metadata
import pathlib
import threading
from typing import NamedTuple

from sg2jax import faults

SECONDS = 60  # that a look may take: a network disk that is gone never answers
GB = 1e9
EVERYTHING = 'train,eval,text,video,view'


class Finding(NamedTuple):
  """A line. `code`: the exit code of a problem, see faults.py."""

  level: str  # ok, note, problem
  what: str
  remedy: str = ''
  code: int = faults.UsageError.code

  def line(self) -> str:
    """As it is printed."""
    text = f'{self.level:<8} {one_line(self.what)}'
    return f'{text}  \u2192  {one_line(self.remedy)}' if self.remedy else text


def ok(what: str) -> Finding:
  """Nothing to do."""
  return Finding('ok', what)


def note(what: str, remedy: str = '') -> Finding:
  """Something that may be as it is."""
  return Finding('note', what, remedy)


def problem(what: str, remedy: str, code: int = faults.UsageError.code) -> Finding:
  """Something that will stop a command."""
  return Finding('problem', what, remedy, code)


def one_line(text: object) -> str:
  """Text, or what an error says."""
  said = ' '.join(str(text).split())
  return said or type(text).__name__


def install(extra: str) -> str:
  """The command that brings the packages of an extra."""
  try:
    importlib.metadata.version('sg2jax')
  except importlib.metadata.PackageNotFoundError:  # a clone, of which no index knows
    return f'pip install -e "{pathlib.Path(__file__).parents[2]}[{extra}]"'
  return f'pip install "sg2jax[{extra}]"'  # which asks what is installed for them


def amount(count: float) -> str:
  """Bytes, for people."""
  return f'{count / GB:.1f} GB' if count >= GB / 10 else f'{count / 1e6:.1f} MB'


def look(
  subject: str, function: Callable[[], Iterator[Finding]], seconds: float = SECONDS
) -> tuple[list[Finding], bool]:
  """The findings of `function`; whatever it raises is one more, and so is that it didn't end.

  Args:
    subject: what is looked at, for such a finding.
    function: takes nothing.
    seconds: after which nobody waits for it.

  Returns:
    Findings, and whether it has ended.
  """
  found = []

  def run():
    try:
      for finding in function():
        found.append(finding)
    except faults.Fault as e:
      found.append(Finding('problem', f'{subject}: {e}', code=e.code))
    except BaseException as e:  # a broken package raises anything; also SystemExit
      # A thread must not end without a word: nothing that was looked at is no sign of health.
      remedy = 'mend what it names, or report it'
      if isinstance(e, ModuleNotFoundError) and not str(e.name).startswith('sg2jax'):
        remedy = install(EVERYTHING)
      found.append(problem(f'{subject}: {type(e).__name__}: {e}', remedy))

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  thread.join(seconds)
  # A copy: what comes later isn't shown.
  found = list(found)
  if thread.is_alive():
    found.append(
      problem(
        f'{subject}: no answer in {seconds:g} s',
        'see whether its disk or network is there (mount, df)',
      )
    )
  return found, not thread.is_alive()


def exit_code(findings: list[Finding]) -> int:
  """0 without problems; that of the problems if they all have the same; else 2."""
  codes = {finding.code for finding in findings if finding.level == 'problem'}
  if not codes:
    return 0
  return codes.pop() if len(codes) == 1 else faults.UsageError.code
