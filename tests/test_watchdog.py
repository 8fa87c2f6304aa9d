"""Runs that hang, and processes that are lost: who is named, when, and with which exit code."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from sg2jax import peers
from sg2jax.training import watchdog
from sg2jax.training.watchdog import Watchdog
from tests.runs import ROOT, job

# ---- one process

STALL = """
import threading
from sg2jax.training.watchdog import Watchdog

def reader():
  yield 'a minibatch'
  threading.Event().wait()  # as of a pipeline that delivers no more

with Watchdog(0.5) as dog:
  dog.at('compiling for', 6)
  threading.Event().wait(2)
  print('no false alarm', flush=True)
  for _ in dog.follow(reader(), 6):
    pass
"""


def python(code, *args, **env):
  """A process that runs code."""
  command = [sys.executable, '-c', code, *map(str, args)]
  env = os.environ | {'JAX_PLATFORMS': 'cpu'} | {k: str(v) for k, v in env.items()}
  return subprocess.Popen(
    command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )


@pytest.mark.smoke
def test_data_that_never_come_end_the_process_with_its_stacks():
  process = python(STALL)
  out, err = process.communicate(timeout=20)
  assert process.returncode == 76 and 'no false alarm' in out
  *stacks, line = err.splitlines()
  assert 'reading data for minibatch 7' in line and 'watchdog_seconds' in line
  # two threads: this one and that of the dog
  assert sum('most recent call first' in x for x in stacks) == 2
  assert any('in reader' in x for x in stacks)


@pytest.fixture
def barks(monkeypatch):
  """[(place, seconds)] of a dog that can't end the process."""
  found = []
  monkeypatch.setattr(watchdog, 'bark', lambda *args: found.append(args))
  return found


def test_what_moves_or_has_no_limit_does_not_hang(barks):
  with Watchdog(0.2) as dog:
    for step in range(8):
      dog.at(watchdog.COMPUTING, step)
      time.sleep(0.1)
    dog.at(watchdog.SAVING, 8)
    time.sleep(0.6)
    assert not barks
    dog.at(watchdog.COMPUTING, 9)
    time.sleep(0.6)
  assert barks[0][0] == 'computing minibatch 9' and 0.2 < barks[0][1] < 0.6


def test_a_process_that_was_stopped_did_not_hang(barks, monkeypatch):
  """The clock jumps by an hour between two looks, as after Ctrl-Z and fg."""
  slept = []
  clock = types.SimpleNamespace(monotonic=lambda: time.monotonic() + sum(slept))
  monkeypatch.setattr(watchdog, 'time', clock)
  with Watchdog(2) as dog:
    dog.at(watchdog.COMPUTING, 0)
    time.sleep(0.7)
    slept.append(3600)
    time.sleep(0.7)
  assert not barks


def test_no_dog_no_thread_and_one_that_costs_nothing(barks):
  before = threading.active_count()
  with Watchdog(0):
    assert threading.active_count() == before
  with Watchdog(600) as dog:
    batches = dog.follow(iter(range(10_000)), 0)
    began = time.perf_counter()
    assert sum(1 for _ in zip(range(10_000), batches)) == 10_000
    # measured: 1 us a minibatch; here not more than a hundredth of the fastest step, 2 ms
    assert (time.perf_counter() - began) / 10_000 < 20e-6
  assert threading.active_count() == before


WAITING = """
import os, signal, sys, threading
from sg2jax.signals import Stop

with Stop() as stop:
  if sys.argv[1:]:
    os.kill(os.getpid(), signal.SIGTERM)
  print('waits', flush=True)
  with stop.ending_at_once('stopped while nothing comes'):
    # as a thread of XLA's or of a download, which can't be interrupted
    threading.Thread(target=threading.Event().wait).start()
    threading.Event().wait()
"""


@pytest.mark.parametrize('before', [False, True])
def test_a_signal_ends_at_once_what_waits_for_what_never_comes(before):
  process = python(WAITING, *['before'] * before)
  assert process.stdout.readline() == 'waits\n'
  if not before:
    time.sleep(0.2)
    process.terminate()
  _, err = process.communicate(timeout=10)
  assert process.returncode == 75
  assert err == 'SIGTERM: stopped while nothing comes; the same command goes on from there\n'


# ---- several processes, with a stand-in for the coordinator


class Store(dict):
  """As JAX's client: keys and values."""

  def key_value_set(self, key, value, allow_overwrite=False):
    self[key] = value

  def key_value_dir_get(self, folder):
    return [(key, value) for key, value in list(self.items()) if key.startswith(f'{folder}/')]


@pytest.fixture
def ends(monkeypatch):
  """What processes of a job say as they end; they don't."""
  found = []

  def end(self):
    found.append((self._index, self._verdict))
    self._over.set()

  monkeypatch.setattr(peers.Peers, '_end', end)
  monkeypatch.setattr(peers, '_Aborted', lambda function: None)
  yield found
  # A thread that outlives its test would meet the real `_end`, which ends the test's process.
  for x in _started:
    x._over.set()
  _started.clear()
  for thread in threading.enumerate():
    if thread.name.startswith('peers'):
      thread.join()


_started = []


def process(store, index, count=3, seconds=0.5):
  _started.append(peers.Peers(store, 'host0:1234', index, count, seconds))
  return _started[-1]


def last(ends):
  time.sleep(1.2)
  return dict(ends)


def test_all_that_are_left_name_the_one_that_is_gone(ends):
  store = Store()
  job = [process(store, index) for index in range(3)]
  time.sleep(0.5)
  assert not ends
  job[1]._over.set()  # no more signs of life
  said = last(ends)
  assert set(said) == {0, 2} and said[0] == said[2]
  code, line = said[0]
  assert code == 76 and line.startswith('process 1 of 3 (') and 'no sign of life for 0.5 s' in line
  assert 'run the same command again' in line


def test_of_those_that_never_come_all_are_named(ends):
  code, line = (process(Store(), 0), last(ends))[1][0]
  assert code == 76 and 'process 1 of 3' in line and 'process 2 of 3' in line


@pytest.mark.parametrize('lost', [0, 1])
def test_one_that_leaves_alone_hands_its_code_on(ends, lost):
  store = Store()
  job = [process(store, index) for index in range(3)]
  time.sleep(0.3)
  job[lost].part(5, True)
  said = last(ends)
  assert set(said) == {0, 1, 2} - {lost}
  where = f'process {lost} of 3 ({os.uname().nodename})'
  for code, line in said.values():
    assert code == 5 and line.startswith(f'{where} has left with exit code 5, alone')
    assert 'run the same command again' not in line


def test_those_that_leave_together_may_wait_for_process_0(ends):
  """It may still be saving."""
  store = Store()
  job = [process(store, index, 2) for index in range(2)]
  time.sleep(0.3)
  job[1].part(75, False)
  assert not last(ends)
  job[0].part(75, False)


def test_process_0_does_not_answer(ends):
  class Stopped(Store):
    def key_value_set(self, *_, **__):
      threading.Event().wait(2)

  process(Stopped(), 1)
  code, line = last(ends)[1]
  assert code == 76 and 'process 0 of 3 (host0:1234) is gone' in line


def test_errors_that_a_loss_may_have_made_wait_for_its_name(ends):
  store = Store()
  job = [process(store, index, 2) for index in range(2)]

  def seconds(error):
    began = time.monotonic()
    job[0].explain(error)
    return time.monotonic() - began

  assert seconds(KeyError('INTERNAL')) < 0.1
  assert seconds(ValueError('RESOURCE_EXHAUSTED: memory')) < 0.1
  job[1]._over.set()
  error = RuntimeError('a save failed')
  error.__cause__ = ValueError('UNKNOWN: Gloo all-reduce failed: Connection reset by peer')
  assert 0.2 < seconds(error) < 3 and ends


ABORT = """
import faulthandler, os, signal, sys
from sg2jax.peers import _Aborted

faulthandler.enable()
aborted = _Aborted(lambda: print('looked at', flush=True))
os.abort() if sys.argv[1] == 'abort' else os.kill(os.getpid(), signal.SIGABRT)
print('went on', flush=True)
"""


@pytest.mark.parametrize('how', ['abort', 'signal'])
def test_an_abort_that_has_another_reason_ends_as_ever(how):
  process = python(ABORT, how)
  out, err = process.communicate(timeout=20)
  assert process.returncode == -signal.SIGABRT and out == 'looked at\n'
  assert 'Fatal Python error: Aborted' in err


# ---- real processes

JOB = """
import sys, time
import jax
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
from sg2jax import cli, faults, processes
from sg2jax.tools import flags as shared

processes.FAREWELL = 2

def main(argv):
  add = jax.jit(jax.numpy.sum, out_shardings=None)
  mesh = jax.make_mesh((jax.process_count(),), ('data',))
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  x = jax.make_array_from_callback(
    (jax.process_count(),), place, lambda i: jax.numpy.ones(1, 'float32')
  )
  for i in range(10**6):
    add(x).block_until_ready()
    if i == 3:
      print('running', flush=True)
    if i == 100 and argv[1:] == [str(jax.process_index())]:
      raise faults.WriteError('no room')
    time.sleep(0.01)

shared.define_processes()
cli.run(main, positional=1)
"""


@contextlib.contextmanager
def running(count, *args):
  """So many processes, all of them running."""
  found = [
    python(JOB, '--heartbeat_seconds=2', *args, **variables, XLA_FLAGS='')
    for variables in job(count)
  ]
  try:
    for x in found:
      while 'running' not in (line := x.stdout.readline()):  # gloo speaks here, too
        assert line, x.stderr.read()
    yield found
  finally:
    for x in found:
      x.kill()
      x.communicate()


@pytest.mark.parametrize(
  'count, lost, number',
  [
    (3, 1, signal.SIGKILL),
    (2, 0, signal.SIGKILL),
    pytest.param(2, 0, signal.SIGSTOP, marks=pytest.mark.slow),
  ],
)
def test_a_process_that_is_killed_or_stopped_ends_the_others(count, lost, number):
  with running(count) as processes:
    processes[lost].send_signal(number)
    began = time.monotonic()
    for index, process in enumerate(processes):
      if index != lost:
        _, err = process.communicate(timeout=20)
        assert time.monotonic() - began < 2 + peers.SLACK
        assert process.returncode == 76, err
        line = err.splitlines()[-1]
        assert f'process {lost} of {count} (' in line and 'is gone' in line
        assert 'Traceback' not in err


@pytest.mark.parametrize(
  'lost, code', [(0, 5), pytest.param(1, 5, marks=pytest.mark.slow), (1, 143)]
)
def test_a_process_that_ends_alone_ends_the_others(lost, code):
  """With an error of its own; by a SIGTERM that its tool doesn't tell the others of."""
  is_fault = code == 5
  with running(2, str(lost) if is_fault else '') as processes:
    if not is_fault:
      processes[lost].terminate()
    _, err = processes[1 - lost].communicate(timeout=20)
    assert processes[1 - lost].returncode == code, err
    line = err.splitlines()[-1]
    assert f'process {lost} of 2 (' in line and f'has left with exit code {code}, alone' in line
    _, err = processes[lost].communicate(timeout=20)
    assert processes[lost].returncode == code and ('no room' in err) == is_fault
