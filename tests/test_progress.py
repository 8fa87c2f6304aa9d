"""Progress: a bar on a terminal, lines elsewhere."""

import io
import sys

from sg2jax import progress
from sg2jax.progress import Progress


class Clock:
  """Time that passes when it is told to."""

  now = 1000.0

  def monotonic(self):
    return self.now


def run(monkeypatch, stream):
  """Of 10 steps 4 were done; the first takes 300 seconds, the others 30."""
  clock = Clock()
  with monkeypatch.context() as patch:
    patch.setattr(progress, 'time', clock)
    patch.setattr(sys, 'stderr', stream)
    with Progress(10, 'mapper', 'steps', done=4) as shown:
      for step in range(4):
        clock.now += 30 if step else 300
        shown.update(note=f'loss {step}')
      clock.now += 60
      shown.update(0)
  return stream.getvalue()


def test_a_log_has_a_line_a_minute(monkeypatch):
  assert run(monkeypatch, io.StringIO()).splitlines() == [
    'mapper: 5 of 10 steps, loss 0',
    'mapper: 7 of 10 steps, loss 2, 01:30 left',  # without what the first took
    'mapper: 8 of 10 steps, 01:40 left',
  ]


def test_a_terminal_has_a_bar(monkeypatch):
  stream = io.StringIO()
  stream.isatty = lambda: True
  said = run(monkeypatch, stream)
  assert 'mapper:' in said and '4/10' in said and 'mapper: 5 of 10' not in said


def test_nothing_is_said_of_what_is_short(capsys):
  with Progress(3, 'mapper', 'steps') as shown:
    shown.update(3)
  assert capsys.readouterr() == ('', '')
