"""launch/local_processes.sh and gpu.sh with real processes: places, exit codes, signals."""

import contextlib
import functools
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from tests import runs

LAUNCH = runs.ROOT / 'launch'

# Says what it got; on SIGTERM or SIGINT says so and exits with 75, after its second within a second
# with 99.
LISTENS = """
import os, signal, sys, time
heard = []
def hear(number, _):
  heard.append(number)
  print('heard', signal.Signals(number).name, flush=True)
signal.signal(signal.SIGTERM, hear), signal.signal(signal.SIGINT, hear)
print('ready', flush=True)
while not heard: time.sleep(.01)
time.sleep(.3)
sys.exit(75 if len(heard) == 1 else 99)
"""


def python(code):
  return [sys.executable, '-c', code]


def start(*command, **options):
  """The running process of a script of launch/."""
  return subprocess.Popen(
    [LAUNCH / command[0], *command[1:]],
    cwd=runs.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **options,
  )


def alive(pid):
  with contextlib.suppress(ProcessLookupError):
    os.kill(pid, 0)
    # A zombie whose parent, the first process, doesn't collect it.
    return pathlib.Path(f'/proc/{pid}/stat').read_text().split(') ')[1][0] != 'Z'
  return False


def test_local_processes_get_their_places_and_their_lines_have_ranks():
  code = (
    'import os, sys; e = os.environ; '
    'print(*(e[f"JAX_{x}"] for x in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")), '
    'e.get("JAX_LOCAL_DEVICE_IDS"), *sys.argv[1:]); print("no end", end=""); '
    'print("e", file=sys.stderr)'
  )
  out, err = runs.finish(start('local_processes.sh', '--port=1234', '3', *python(code), 'a b'))
  lines = []
  for rank in range(3):
    lines += [f'[{rank}] 127.0.0.1:1234 3 {rank} None a b', f'[{rank}] no end']
  assert sorted(out.splitlines()) == lines
  assert sorted(err.splitlines()) == ['[0] e', '[1] e', '[2] e']


def test_free_port():
  command = ['local_processes.sh', '--dry-run', '1', 'x']
  ports = {re.search(r':(\d+) ', runs.finish(start(*command))[0])[1] for _ in range(3)}
  assert all(61000 <= int(port) < 65536 for port in ports) and len(ports) > 1


def test_the_first_code_counts_and_the_others_have_time(tmp_path):
  code = (
    'import os, pathlib, sys, time\n'
    'rank = int(os.environ["JAX_PROCESS_ID"])\n'
    f'file = pathlib.Path({str(tmp_path)!r}, "pid")\n'
    'if rank == 0: file.write_text(f"{os.getpid()}."); sys.exit(7)\n'
    # until the script has seen how it ended
    'while not (file.exists() and file.read_text()): time.sleep(.01)\n'
    'try:\n'
    '  while not os.kill(int(file.read_text()[:-1]), 0): time.sleep(.01)\n'
    'except ProcessLookupError: time.sleep(.3)\n'
    'print("noticed", flush=True); sys.exit(76)\n'
  )
  out, err = runs.finish(start('local_processes.sh', '3', *python(code)), code=7)
  assert out.count('noticed') == 2 and 'process 0 ended with exit code 7' in err


@pytest.mark.skipif(not pathlib.Path('/proc/self/stat').exists(), reason='asks /proc')
def test_a_lost_peer_is_not_the_first_failure_even_if_both_are_seen_at_once(tmp_path):
  code = (
    'import os, pathlib, sys, time; print("ready", os.getpid(), flush=True)\n'
    f'while not pathlib.Path({str(tmp_path)!r}, "go").exists(): time.sleep(.01)\n'
    'sys.exit(76 if os.environ["JAX_PROCESS_ID"] == "0" else 4)\n'
  )
  process = start('local_processes.sh', '2', *python(code))
  pids = [int(process.stdout.readline().split()[-1]) for _ in range(2)]
  process.send_signal(signal.SIGSTOP)  # so that it looks when both have ended
  (tmp_path / 'go').write_text('')
  while any(map(alive, pids)):
    time.sleep(0.01)
  process.send_signal(signal.SIGCONT)
  runs.finish(process, code=4)


@pytest.mark.parametrize('listens', [True, False])
def test_who_does_not_notice_is_told_then_killed_and_nothing_is_left(tmp_path, listens):
  file = str(tmp_path / 'pids')
  code = (
    'import os, pathlib, signal, subprocess, sys, time\n'
    f'file = pathlib.Path({file!r})\n'
    'if os.environ["JAX_PROCESS_ID"] == "1":\n'
    '  while not file.exists(): time.sleep(.01)\n'
    '  os.kill(os.getpid(), 9)\n'
    'child = subprocess.Popen(["sleep", "100"])\n'
  )
  ready = 'file.write_text(f"{os.getpid()} {child.pid}")\n'
  if listens:
    code += LISTENS.replace("print('ready'", f"{ready}print('ready'")
  else:
    code += f'signal.signal(15, signal.SIG_IGN)\n{ready}time.sleep(100)'
  grace = f'--grace={30 if listens else 1}'
  command = ['local_processes.sh', '--patience=1', grace, '2', *python(code)]
  out, err = runs.finish(start(*command), code=137, timeout=60)
  assert ('heard SIGTERM' in out) == listens
  assert ('SIGKILL' in err) != listens
  assert not any(alive(int(pid)) for pid in pathlib.Path(file).read_text().split())


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT], ids=lambda x: x.name)
@pytest.mark.parametrize('script', [['local_processes.sh', '2'], ['gpu.sh']], ids=lambda x: x[0])
def test_signals_are_passed_on_once(script, number):
  """Ctrl-C goes to the whole group of a terminal: still the command hears of it once."""
  # Where tests run in the background, they and their shells are made deaf to Ctrl-C.
  hears = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
  process = start(*script, *python(LISTENS), start_new_session=True, preexec_fn=hears)
  for _ in range(2 if len(script) > 1 else 1):
    runs.wait_for(process, 'ready')
  os.killpg(process.pid, number)
  out, err = runs.finish(process, code=75, timeout=20)
  assert out.count(f'heard {number.name}') == len(script)
  assert 'again' not in err
  with pytest.raises(ProcessLookupError):
    os.killpg(process.pid, 0)


# ---- training


@pytest.mark.slow
def test_two_processes_one_of_them_killed_go_on_to_the_same_end(home, tmp_path):
  """The same bytes as of two processes that nobody killed; of the killed ones none is left."""

  def train(workdir):
    fields = {'data.dir': home / 'data'} | runs.TINY
    command = ['local_processes.sh', '2', sys.executable, '-m', 'sg2jax.main']
    command += ['--config=configs/quickstart.py', f'--workdir={workdir}']
    command += [f'--config.{name}={value}' for name, value in fields.items()]
    env = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
      'XLA_FLAGS': runs.xla_flags(),
      'SG2JAX_CACHE': str(home / 'sg2jax'),
    }
    return start(*command, env=env)

  runs.finish(train(tmp_path / 'whole'), timeout=500)
  killed = train(tmp_path / 'killed')
  runs.wait_for(killed, '[0] tick 2')
  ranks = {}
  for folder in pathlib.Path('/proc').glob('[0-9]*'):
    with contextlib.suppress(OSError):
      words = (folder / 'environ').read_text().split('\0')
      if f'--workdir={tmp_path}/killed' in (folder / 'cmdline').read_text().split('\0'):
        ranks |= {x[15:]: int(folder.name) for x in words if x.startswith('JAX_PROCESS_ID=')}
  os.kill(ranks['1'], signal.SIGKILL)
  runs.finish(killed, code=137, timeout=200)
  assert len(ranks) == 2 and not any(map(alive, ranks.values()))
  runs.finish(train(tmp_path / 'killed'), timeout=500)
  assert runs.content(tmp_path / 'killed') == runs.content(tmp_path / 'whole')
