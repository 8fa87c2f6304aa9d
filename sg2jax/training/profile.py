"""A trace of a few minibatches, as XProf, TensorBoard's profile plugin and Perfetto read it.

It lies where the first two look for it: WORKDIR/profile/plugins/profile/minibatches_<from>-<to>/,
with the files of every process. What is in it: a step `minibatch` with its number, in it `input`
and the phases, all as the host issued them; and what the device ran, by the names of XLA.
"""

import os
import pathlib
import shutil
import tempfile
from typing import Any, Self

import jax

from sg2jax import files, paths
from sg2jax.addresses import Address
from sg2jax.faults import WriteError

SESSION = 'trace'  # the name of a folder until all of its minibatches are done


class Profile:
  """Traces the minibatches that config.profile names.

  A context manager, entered for each stage of growth: what is being traced when it is left is
  written, whatever ends it. Inside, `begin` and `end` enclose every minibatch.
  """

  def __init__(self, window: range, workdir: paths.Path, log: Any) -> None:
    """Writes nothing yet.

    Args:
      window: numbers of the minibatches to trace; may be empty.
      workdir: of the run.
      log: report.Report.
    """
    self._window = window
    self._folder = workdir / 'profile'
    # Each process has a place of its own until its trace is whole: JAX names files by the host
    # alone, and makes none for Perfetto where it finds those of other processes.
    self._scratch = self._folder / f'.process{jax.process_index()}'
    if isinstance(workdir, Address):  # JAX writes to disks
      self._scratch = pathlib.Path(tempfile.gettempdir()) / f'sg2jax-profile-{os.getpid()}'
    self._log = log
    self._first = None  # of the minibatches that are being traced
    self._last = None  # that has ended
    self._aux = ()  # what its steps reported

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: type | None, *_: object) -> None:
    if self._first is None:
      return
    try:
      self._write()
    except WriteError as e:
      if kind is None:
        raise
      # Why the run ends matters more.
      self._log.say(str(e))

  def announce(self, step: int) -> None:
    """Says what a run that goes on from `step` is too late for."""
    if not self._window or step <= self._window.start:
      return
    text = 'nothing will be traced; name one that is to come'
    if step in self._window:
      text = f'{_span(step, self._window[-1])} will be traced'
    self._log.say(f'{self._name()}: the run goes on from minibatch {step}: {text}')

  def conclude(self, step: int) -> None:
    """Says at the end of the run, after `step` minibatches, if it came before what was to trace."""
    if self._window and step <= self._window.start:
      self._log.say(
        f'{self._name()}: the run ended after {step} minibatches: nothing was traced; a later '
        'total_kimg goes on to it'
      )

  def _name(self):
    return f'profile={self._window.start},{len(self._window)}'

  # ---- around each minibatch

  def begin(self, step: int) -> None:
    """Before minibatch `step`: begins to trace, if it is one of those. Raises WriteError."""
    if self._first is not None or step not in self._window:
      return
    with files.writing(self._scratch):
      shutil.rmtree(self._scratch, ignore_errors=True)  # of a process that was killed
      self._scratch.mkdir(parents=True)
    options = jax.profiler.ProfileOptions()
    # Else every call of a Python function is in it, and slower for that.
    options.python_tracer_level = 0
    options.session_id = SESSION
    # Nothing of the minibatch before is to be in it.
    jax.block_until_ready(self._aux)
    jax.profiler.start_trace(self._scratch, create_perfetto_trace=True, profiler_options=options)
    self._first = step

  def end(self, step: int, aux: dict[str, jax.Array]) -> None:
    """After minibatch `step`: writes the trace, if it was the last one.

    aux: what the last of its phases reported, which is never donated.

    Raises:
      WriteError: with the path and the free bytes.
    """
    self._last = step
    self._aux = aux
    if self._first is not None and step + 1 not in self._window:
      self._write()

  def _write(self):
    """Ends the trace with the minibatches that are done; waits for them on the device."""
    first = self._first
    self._first = None
    jax.block_until_ready(self._aux)
    span = f'minibatches_{first}-{self._last}'
    place = self._folder / 'plugins' / 'profile' / span
    with files.writing(self._folder):
      try:
        jax.profiler.stop_trace()
      except RuntimeError as e:  # as XLA reports what the system refuses
        raise OSError(str(e)) from e
      place.mkdir(parents=True, exist_ok=True)
      for file in (self._scratch / 'plugins' / 'profile' / SESSION).iterdir():
        target = place / f'{jax.process_index()}.{file.name}'
        if isinstance(target, Address):
          target.upload(file)
        else:
          os.replace(file, target)
      shutil.rmtree(self._scratch)
    self._log.say(f'{_span(first, self._last)} traced in {place}')


def _span(first, last):
  return f'minibatch {first}' if first == last else f'minibatches {first} to {last}'
