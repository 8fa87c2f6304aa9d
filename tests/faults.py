"""Faults in real runs, and whether anything was lost: a table of what was tried.

python -m tests.faults [--short] [--only=NAME,NAME]

Each fault is injected into processes as users start them, at random moments that a seed fixes. A
line a fault: how often it was tried, survived and lost; what was lost is told on stderr. The last
line is `N survived, M lost`, and the exit code 1 if anything was lost. The whole table takes an
hour and a half on two cores; --short, which tests/test_faults.py runs, takes a minute.
"""

import argparse
from concurrent import futures
import contextlib
from functools import partial
import itertools
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

from absl import logging

from sg2jax import addresses
from tests.runs import checkpoint_at, content, finish, job, log, of_states, start, wait_for

# A run of 48 minibatches that saves, shows itself and measures at every eighth.
RUN = {
  'total_kimg': 0.384,
  'tick_kimg': 0.032,
  'snapshot_kimg': 0.064,
  'metrics': "('pixelfd0.1k_full',)",
  'metrics_kimg': 0.128,
}
END = 48
PATIENCE = 10  # seconds from a signal to the exit, and a step, on an idle machine
BUSY = 2  # how much longer they may take here, where trials run side by side
RATE = 1 / 150  # of a bucket's requests that fail; each costs seconds of waiting for the next


class Lost(Exception):
  """What a trial finds that a user would have lost."""


def expect(true, text):
  """Raises Lost with a text unless something is true."""
  if not true:
    raise Lost(text)


class Trials:
  """Where trials run, and what an uninterrupted run ends with."""

  def __init__(self, folder):
    self.home = folder / 'home'
    (self.home / 'poison').mkdir(parents=True)
    self.folder = folder
    self.longest = 0  # seconds from a SIGTERM to the exit
    self.injected = 0  # requests to the bucket that failed
    self._lock = threading.Lock()
    self._whole = {}
    self._serving = None

  def place(self, *name):
    """A new path for a workdir."""
    return self.folder / '-'.join(map(str, name))

  def start(self, workdir, **fields):
    """The process of a run; see tests.runs.start."""
    return start(self.home, workdir, **RUN | fields)

  def whole(self, processes=1):
    """(files of the last checkpoint, log) of a run that nothing interrupted."""
    with self._lock:
      if processes not in self._whole:
        workdir = self.place('whole', processes)
        for process in self.start_all(workdir, processes):
          finish(process)
        self._whole[processes] = content(workdir, END), log(workdir)
      return self._whole[processes]

  def start_all(self, workdir, processes, **fields):
    """The processes of a run of so many."""
    if processes == 1:
      return [self.start(workdir, **fields)]
    return [self.start(workdir, job=variables, **fields) for variables in job(processes)]

  def bucket(self):
    """gs://b of an emulator of which RATE of the requests fail, in several ways."""
    from tests import emulator  # here, because only this fault needs it

    draw = random.Random(0)
    faults = [503, 429, 'drop', 'half']
    with self._lock:
      if not self._serving:
        self._serving = emulator.serving()  # to the end of this process
        found = self._serving.__enter__()

        def fault(*_):
          if draw.random() < RATE:
            self.injected += 1
            return draw.choice(faults)
          return None

        found.fault = fault
    return addresses.parse('gs://b')

  def ends_as_if_nothing_was(self, workdir, processes=1, means=True):
    """The same command once more goes to the end, with the bytes and the log of a whole run.

    means: whether ticks have means of as many minibatches; not if a signal came within one.
    """
    for process in self.start_all(workdir, processes):
      finish(process, timeout=900)
    files, lines = self.whole(processes)
    expect(content(workdir, END) == files, 'the last checkpoint has other bytes')
    here = log(workdir)
    if not means:
      here, lines = map(of_states, (here, lines))
    other = [f'{a} instead of {b}' for a, b in itertools.zip_longest(here, lines) if a != b]
    expect(not other, f'metrics.jsonl has other lines: {other[:2]}')


def end(process):
  """Kills a process and reads what it still said."""
  process.kill()
  process.communicate()


def until(true, process, seconds=120):
  """Waits until true() is true while a process runs."""
  deadline = time.monotonic() + seconds
  while not true():
    expect(process.poll() is None, f'ended with {process.returncode} before its time')
    expect(time.monotonic() < deadline, 'waited too long for the moment of the fault')
    time.sleep(0.002)


# ---- kill -9


def kills(trials, draw, number):
  """Five kills of a run at any moment, from its first import to its last file."""
  workdir = trials.place('kills', number)
  trials.whole()
  return _kill_repeatedly(trials, workdir, [draw.uniform(0.2, 9) for _ in range(5)])


def _kill_repeatedly(trials, workdir, times):
  """Kills a run after each of the times, then lets it go to its end; how often it was killed."""
  kills = 0
  for seconds in times:
    process = trials.start(workdir)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.communicate(timeout=seconds)
    end(process)
    kills += process.returncode == -signal.SIGKILL  # unless it had ended before
  trials.ends_as_if_nothing_was(workdir)
  return kills


def kills_of_one(trials, draw, number, how=signal.SIGKILL):
  """One of two processes is killed, or stopped: the other leaves with 76 and names it."""
  workdir = trials.place('one', how, number)
  trials.whole(2)
  both = trials.start_all(workdir, 2)
  until(lambda: (workdir / 'checkpoints' / '8').exists(), both[0])
  time.sleep(draw.uniform(0, 0.5))
  victim = number % 2
  other = both[1 - victim]
  both[victim].send_signal(how)
  began = time.monotonic()
  _, err = finish(other, 76, timeout=90)
  took = time.monotonic() - began
  end(both[victim])
  expect(took < 30 + 15, f'the other process noticed after {took:.0f} s')
  expect(f'process {victim} of 2' in err, f'it does not say which one is gone: {err}')
  trials.ends_as_if_nothing_was(workdir, 2)
  return 1


def stops_of_one(trials, draw, number):
  """One of two processes hangs, as SIGSTOP makes it."""
  return kills_of_one(trials, draw, number, signal.SIGSTOP)


# ---- SIGTERM, in each phase


def _is_compiling(trials, workdir, process):
  wait_for(process, 'starting from')


def _is_training(trials, workdir, process):
  wait_for(process, 'tick 1 ')


def _is_saving(trials, workdir, process):
  until(lambda: list(workdir.glob('checkpoints/*.tmp')), process)


def _takes_snapshot(trials, workdir, process):
  # its picture is the first that it writes; the comparison with reals follows
  until(lambda: list(workdir.glob('images/fakes_000000.png')), process)


def _is_measuring(trials, workdir, process):
  until((workdir / 'checkpoints' / '16' / 'manifest.json').exists, process)


def _starts(trials, workdir, process):
  time.sleep(2)


PHASES = {
  'starting': _starts,
  'compiling': _is_compiling,
  'training': _is_training,
  'saving': _is_saving,
  'snapshot': _takes_snapshot,
  'measuring': _is_measuring,
}


def preemption(phase, processes=1):
  """The trial of SIGTERM in a phase, of several processes to one of them."""

  def trial(trials, draw, number):
    workdir = trials.place('term', phase, processes, number)
    trials.whole(processes)
    fields = {}
    if phase == 'compiling':
      fields = {'g.fmap_base': 65 + number, 'total_kimg': 0.008}  # not in the cache
    running = trials.start_all(workdir, processes, **fields)
    PHASES[phase](trials, workdir, running[0])
    if phase not in ('saving', 'snapshot'):  # which are over by then
      time.sleep(draw.uniform(0, 0.2))
    running[number % processes].send_signal(signal.SIGTERM)
    began = time.monotonic()
    for process in running:
      out, err = process.communicate(timeout=60)
      # A handler of its own comes with the run: before it, Python's imports end as any program's.
      early = phase == 'starting' and process.returncode in (143, -15)
      expect(early or process.returncode == 75, f'exit {process.returncode}: {out}{err}')
    took = time.monotonic() - began
    trials.longest = max(trials.longest, took)
    expect(took < BUSY * PATIENCE, f'left after {took:.1f} s')
    if phase == 'compiling':
      expect(not list(workdir.glob('checkpoints/*')), 'something was saved before it was trained')
    else:
      trials.ends_as_if_nothing_was(workdir, processes, means=False)
    return 1

  trial.__name__ = f'SIGTERM while {phase}'
  return trial


# ---- damage on disk


def damage(trials, draw, number):
  """Each kind of file of a checkpoint truncated, deleted and with flipped bits: all are found."""
  workdir = trials.place('damage', number)
  trials.whole()
  shutil.copytree(trials.place('whole', 1), workdir)
  newest = workdir / 'checkpoints' / str(END)
  before = checkpoint_at(workdir)
  kinds = {}
  for path in sorted(newest.rglob('*')):
    if path.is_file():
      kinds.setdefault(re.sub(r'^\d[\d.]*$', 'data', path.name), []).append(path)
  tried = 0
  for paths in kinds.values():
    for kind in ['delete', 'truncate', 'truncate', *['flip'] * (200 if number else 5)]:
      path = draw.choice(paths)
      data = path.read_bytes()
      _harm(draw, path, data, kind)
      found = checkpoint_at(workdir)
      path.write_bytes(data)
      expect(found != before, f'{kind} of {path} was not noticed')
      tried += 1
  expect(checkpoint_at(workdir) == before, 'what was mended is not whole')
  return tried


def _harm(draw, path, data, kind):
  if kind == 'delete':
    path.unlink()
  elif kind == 'truncate':
    path.write_bytes(data[: draw.randrange(len(data))])
  else:
    bit = draw.randrange(8 * len(data))
    harmed = bytearray(data)
    harmed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(harmed)


def damage_of_a_run(trials, draw, number):
  """The newest checkpoint of a run that goes on is damaged: it goes on from the one before."""
  workdir = trials.place('damaged', number)
  trials.whole()
  shutil.copytree(trials.place('whole', 1), workdir)
  files = sorted(p for p in (workdir / 'checkpoints' / str(END)).rglob('*') if p.is_file())
  path = draw.choice(files)
  _harm(draw, path, path.read_bytes(), draw.choice(['delete', 'truncate', 'flip']))
  trials.ends_as_if_nothing_was(workdir)
  aside = list(workdir.glob('checkpoints/*.damaged-0'))
  expect(len(aside) == 1, 'the damaged checkpoint was not set aside')
  return 1


# ---- a full disk


def full_disk(trials, draw, number):
  """A tmpfs fills up in mid-run: exit 5, nothing lost; with more room the same command goes on."""
  workdir = trials.place('tmpfs', number)
  workdir.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o']
  trials.whole()
  size = sum(map(len, trials.whole()[0].values())) // 1024
  if subprocess.run(
    [*mount, f'size={6 * size}k', 'tmpfs', workdir], capture_output=True
  ).returncode:
    return 0  # only root may
  try:
    (workdir / 'filler').write_bytes(bytes(1024 * int(size * draw.uniform(2.5, 5))))
    process = trials.start(workdir)
    out, err = process.communicate(timeout=120)
    expect(process.returncode == 5, f'exit {process.returncode}: {out}{err}')
    expect('bytes free' in err and str(workdir) in err, f'it does not say what is full: {err}')
    subprocess.run(['mount', '-o', f'remount,size={60 * size}k', workdir], check=True)
    trials.ends_as_if_nothing_was(workdir)
  finally:
    subprocess.run(['umount', '-l', workdir], check=False)
  return 1


# ---- numbers that aren't finite


def not_finite(trials, draw, number, processes=1):
  """A phase whose numbers become NaN: exit 4, nothing of it saved, a replay shows the same."""
  from tests.test_nonfinite import CAUSES, SMALL, same_numbers

  phase = list(CAUSES)[number % 4]
  cause, step = CAUSES[phase]
  fields = SMALL | cause
  workdir = trials.place('nan', processes, number)
  running = (
    [start(trials.home, workdir, **fields)]
    if processes == 1
    else [start(trials.home, workdir, job=variables, **fields) for variables in job(processes)]
  )
  for process in running:
    _, err = finish(process, 4)
    expect(f'step {step}, phase {phase}' in err, f'it does not say where: {err}')
  expect(not (workdir / 'checkpoints').exists(), 'a checkpoint came after it')
  file = workdir / 'nonfinite' / f'{step}-{phase}.json'
  if processes == 1:  # sums over other devices have other last bits
    out, _ = finish(start(trials.home, workdir, replay=file, **fields), 4)
    expect(same_numbers(out), f'the replay has other numbers: {out}')
  return 1


def not_finite_in_two(trials, draw, number):
  """The same in a run of two processes."""
  return not_finite(trials, draw, number, 2)


# ---- data that never come

# The reader of minibatch 20 waits for ever.
STALL = """
import threading
from sg2jax import data

def stalled(*args, **kwargs):
  for i, batch in enumerate(read(*args, **kwargs)):
    if i == 20:
      threading.Event().wait()
    yield batch

read, data.batches = data.batches, stalled
"""


def stall(trials, draw, number):
  """The watchdog ends the run with 76 and the stacks; the same command goes on."""
  workdir = trials.place('stall', number)
  trials.whole()
  _, err = finish(trials.start(workdir, patch=STALL, watchdog_seconds=4), 76)
  expect('reading data for minibatch 20' in err, f'it does not say where: {err[-500:]}')
  expect('in stalled' in err, 'the stacks lack the place')
  trials.ends_as_if_nothing_was(workdir)
  return 1


# ---- a bucket


def bucket(trials, draw, number):
  """A run in a bucket of which some requests fail, and that is killed three times."""
  workdir = trials.bucket() / f'run{number}'
  trials.whole()
  before = trials.injected
  tried = _kill_repeatedly(trials, workdir, [draw.uniform(4, 15) for _ in range(3)])
  expect(trials.injected > before, 'no request failed')
  return tried


# ---- two runs, other devices


def two_runs(trials, draw, number):
  """A second run in the workdir of one that runs: exit 2, which names the first; that goes on."""
  workdir = trials.place('two', number)
  trials.whole()
  first = trials.start(workdir)
  until((workdir / 'config.json').exists, first)
  time.sleep(draw.uniform(0, 3))
  _, err = finish(trials.start(workdir), 2)
  expect(str(first.pid) in err, f'it does not name the first: {err}')
  finish(first)
  expect(content(workdir, END) == trials.whole()[0], 'the second run changed the first')
  return 1


def other_devices(trials, draw, number):
  """1 -> 8 -> 2 -> 1 devices, stopped in between: the log goes on as that of one device."""
  import pytest

  workdir = trials.place('devices', number)
  lines = trials.whole()[1]
  for devices, kimg in ((1, 0.064), (8, 0.128), (2, 0.256), (1, 0.384)):
    finish(trials.start(workdir, devices=devices, **RUN | {'total_kimg': kimg}))
  here = [line for line in log(workdir) if 'swd' in line]
  there = [line for line in lines if 'swd' in line]
  steps = [line['step'] for line in here]
  expect(steps == [line['step'] for line in there], f'other ticks: {steps}')
  for a, b in zip(here, there):
    expect(a['nimg'] == b['nimg'] and a['swd'] == pytest.approx(b['swd'], rel=0.02), f'{a} {b}')
  return 1


# name: (trial, how often, how often with --short)
FAULTS = {
  'kill -9': (kills, 20, 0),
  **{f'SIGTERM while {phase}': (preemption(phase), 20, 0) for phase in PHASES},
  'SIGTERM to one of two': (preemption('training', 2), 20, 0),
  **{
    f'SIGTERM to one of two {phase}': (preemption(phase, 2), 4, 0)
    for phase in ('compiling', 'saving', 'snapshot', 'measuring')
  },
  'kill -9 of one of two': (kills_of_one, 4, 0),
  'SIGSTOP of one of two': (stops_of_one, 2, 0),
  'damaged files': (damage, 2, 1),
  'damaged newest checkpoint': (damage_of_a_run, 10, 0),
  'full disk': (full_disk, 5, 1),
  'NaN in each phase': (not_finite, 4, 0),
  'NaN in each phase of two': (not_finite_in_two, 4, 0),
  'data that never come': (stall, 4, 0),
  'failing bucket and kill -9': (bucket, 7, 0),
  'two runs in a workdir': (two_runs, 5, 0),
  '1 to 8 to 2 to 1 devices': (other_devices, 1, 0),
}


def attempt(trials, name, number):
  """(tried, survived) of one trial; tells what was lost."""
  trial = FAULTS[name][0]
  draw = random.Random(f'{name} {number}')
  try:
    tried = trial(trials, draw, number)
  except Exception as e:
    text = str(e) if isinstance(e, Lost) else traceback.format_exc()
    print(f'{name}, trial {number}: {text}', file=sys.stderr, flush=True)
    return 1, 0
  return tried, tried


def main():
  """Tries all, prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--short', action='store_true', help='a few of them, in a minute')
  parser.add_argument('--only', default='', help='names of faults, with commas')
  parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='trials at a time')
  asked = parser.parse_args()
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  logging.set_verbosity(logging.ERROR)  # of each damage there would be a warning
  wanted = asked.only.split(',') if asked.only else list(FAULTS)
  if unknown := [name for name in wanted if name not in FAULTS]:
    parser.error(f'--only: {", ".join(unknown)} unknown; choose from {", ".join(FAULTS)}')
  survived = lost = 0
  with tempfile.TemporaryDirectory(prefix='faults-') as folder:
    trials = Trials(pathlib.Path(folder))
    print(f'{"fault":<34}{"tried":>8}{"survived":>10}{"lost":>6}', flush=True)
    for name in wanted:
      times = FAULTS[name][2 if asked.short else 1]
      with futures.ThreadPoolExecutor(asked.jobs) as pool:
        results = list(pool.map(partial(attempt, trials, name), range(times)))
      tried, good = (sum(x) for x in zip(*results)) if results else (0, 0)
      if tried:
        print(f'{name:<34}{tried:>8}{good:>10}{tried - good:>6}', flush=True)
      elif times:
        print(f'{name:<34}  could not be tried here', flush=True)
      survived += good
      lost += tried - good
  if trials.longest:
    print(f'longest time from SIGTERM to exit: {trials.longest:.1f} s')
  print(f'{survived} survived, {lost} lost')
  sys.exit(lost > 0)


if __name__ == '__main__':
  main()
