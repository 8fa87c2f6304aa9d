"""Several processes of one job on this machine: they decide alike, and compute what one computes.

Started as a program, this file is one of them.
"""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests.runs import LAST, content, finish, job, log, of_states, start, wait_for, xla_flags

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = {
  'resolution': 8,
  'batch': 8,
  'microbatch': 4,
  'data.name': 'digits',
  'data.mirror': True,
  'g.fmap_base': 16,
  'd.fmap_base': 16,
  'g.z_dim': 16,
  'g.w_dim': 16,
  'g.mapping_layers': 1,
  'd.mapping_layers': 1,
  'd.architecture': 'skip',
  'ema.rampup': 0.05,
}


def start_all(count, *arguments, devices=1, **env):
  """The running processes of `python ARGUMENTS` as one job of so many processes."""
  given = {
    'JAX_PLATFORMS': 'cpu',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'PYTHONPATH': str(ROOT),
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} '
    f'--xla_cpu_multi_thread_eigen=false {xla_flags()}',
  }
  return [
    subprocess.Popen(
      [sys.executable, *map(str, arguments)],
      cwd=ROOT,
      env=os.environ | given | env | variables,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for variables in job(count)
  ]


def finish_all(processes, codes):
  """Waits for all; (output, errors) of each."""
  return [finish(process, code, 200) for process, code in zip(processes, codes, strict=True)]


# ---- decisions


def test_processes_decide_alike():
  results = finish_all(start_all(3, __file__, 'decide'), [70, 71, 72])
  found = [json.loads(out.splitlines()[-1]) for out, _ in results]
  assert found[0] == {
    'agreed': 'of 0',
    'agreed error': 'WriteError: no room in 0',
    'together': 'CheckpointError: process 1 of 3: 1 has none',
    'before an inner one': 'CheckpointError: process 1 of 3: 1 has none',
    'all': 'UsageError: nobody has it',
    'same': 'UsageError: the run is not the same in all processes (seed=1 here, 0 in process 0); '
    'start each with the same command and the same data',
    'heard before': False,
    'heard': [True, 15],
    'told': 15,
    'everywhere': [True, False],
  }
  # The number of the process that differs is said, and it is that process's own text that all have.
  assert found[1] == found[2] == found[0]


def decide():
  """What the process of a job finds, as JSON; its exit code is 70 + its number."""
  import jax

  from sg2jax import faults, processes
  from sg2jax.signals import Stop

  processes.join('auto', *processes.environment())
  here = jax.process_index()

  def error(function, *args):
    try:
      return function(*args)
    except faults.Fault as e:
      return f'{type(e).__name__}: {e}'

  def no_room():
    raise faults.WriteError(f'no room in {here}')

  def lacks():
    if here == 1:
      raise faults.CheckpointError(f'{here} has none')

  def lacks_before_all_agree():
    lacks() if here == 1 else processes.agreed(lambda: 'what process 1 never asks for')

  def nobody():
    raise faults.UsageError('nobody has it')

  def same():
    # only process 2 differs
    processes.check_same('the run', {'seed': int(here == 2), 'batch': 8})

  found = {
    'agreed': processes.agreed(lambda: f'of {here}'),
    'agreed error': error(processes.agreed, no_room),
    'together': error(processes.together, lacks),
    'before an inner one': error(processes.together, lacks_before_all_agree),
    'all': error(processes.together, nobody),
    'same': error(same).replace('process 2 of 3: ', ''),
  }
  with Stop() as stop:
    found['heard before'] = processes.heard(stop)
    if here == 2:
      # while it waits for process 0, in C++, where Python calls no handler
      threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()

    def work():
      while not stop:  # process 0 hears of it without any common step
        time.sleep(0.01)
      return stop.signal

    found['told'] = processes.agreed(work)
    found['heard'] = [processes.heard(stop), stop.signal]
  found['everywhere'] = [processes.everywhere(True), processes.everywhere(here != 1)]
  print(json.dumps(found), flush=True)
  processes.leave(70 + here, is_alone=False)


@pytest.mark.parametrize(
  'variables, text',
  [
    ({'JAX_NUM_PROCESSES': '2'}, '--coordinator_address and --process_id missing'),
    ({'JAX_NUM_PROCESSES': 'two'}, 'JAX_NUM_PROCESSES=two'),
    (
      {'JAX_COORDINATOR_ADDRESS': 'a:1', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '2'},
      '--process_id=2 must be in 0..1',
    ),
  ],
)
def test_a_job_that_cannot_be(monkeypatch, variables, text):
  from sg2jax import faults, processes

  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(faults.UsageError, match=text):
    processes.join('auto', *processes.environment())


ALONE = """
import sys
from sg2jax import processes
processes.JOINING = 3
processes.join('auto', sys.argv[1], 2, int(sys.argv[2]))
"""


@pytest.mark.parametrize(
  'index, text',
  [
    (0, 'process 0 waited 3 s for the others: not all of the 2 processes came to localhost:'),
    (1, 'process 1 waited 3 s for the others: process 0 does not answer at localhost:'),
  ],
)
def test_who_waits_for_processes_that_never_come_names_them(index, text):
  address = job(2)[0]['JAX_COORDINATOR_ADDRESS']
  process = subprocess.run(
    [sys.executable, '-c', ALONE, address, str(index)],
    cwd=ROOT, env=os.environ | {'JAX_PLATFORMS': 'cpu'}, capture_output=True, text=True, timeout=60
  )  # fmt: skip
  assert process.returncode == 76, process.stderr
  assert text in process.stderr.splitlines()[-1]


def test_alone_everything_is_what_it_says():
  from sg2jax import processes

  assert processes.agreed(lambda: 3) == processes.together(lambda: 3) == 3
  assert processes.everywhere(True) and not processes.everywhere(False)
  assert not processes.heard(()) and processes.is_first()
  processes.leave(5, is_alone=True)  # or no test after it would be run


# ---- training


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
def test_processes_train_what_one_trains_with_as_many_devices(count, tmp_path):
  """In float64, as tests/test_devices.py says; 50 minibatches with all four phases."""
  run = functools.partial(start_all, JAX_ENABLE_X64='1', SG2JAX_CACHE=str(tmp_path / 'cache'))
  finish_all(run(1, __file__, 'train', tmp_path, devices=count), [0])
  results = finish_all(run(count, __file__, 'train', tmp_path), [0] * count)
  alone, several = (np.load(tmp_path / f'{n}.npz') for n in (1, count))
  assert len(alone.files) > 100
  for name in alone.files:
    size = max(np.abs(alone[name]).max(initial=0), 1e-300)
    assert np.abs(alone[name] - several[name]).max(initial=0) < 1e-5 * size, name
  # Each reads other images. That their latents differ follows: those of one process do.
  images = [json.loads(out.splitlines()[-1]) for out, _ in results]
  assert len({digest for digests in images for digest in digests}) == 50 * 8


def train(folder):
  """50 minibatches; process 0 writes the state to FOLDER/<processes>.npz."""
  import hashlib

  import jax

  from configs import default
  from sg2jax import build, processes, sharding
  from sg2jax.training import leaves, stage

  processes.join('auto', *processes.environment())
  config = default.get_config()
  config.update_from_flattened_dict(CONFIG)
  mesh = sharding.make_mesh()
  source = build.dataset(config)
  now = stage.create(config, source, mesh, build.growth(config).current_stage(0, 0))
  state = build.init_state(config, now.steps, sharding.replicated(mesh))
  wide = lambda x: x.astype('float64') if x.dtype == 'float32' else x
  state = jax.jit(lambda tree: jax.tree.map(wide, tree))(state)
  minibatches = now.minibatches(0)
  seen = []
  for i in range(50):
    batch = next(minibatches)
    images = batch['image'].reshape(-1, 8 * 8 * 3)
    seen += [hashlib.sha256(f'{i}'.encode() + x.tobytes()).hexdigest()[:16] for x in images]
    batch = sharding.to_global(mesh, batch)
    for phase in now.steps.phases(i):
      state, _ = now.functions[phase](now.key, state, batch)
  arrays = jax.device_get(leaves.named(state))
  if processes.is_first():
    np.savez(f'{folder}/{jax.process_count()}.npz', **arrays)
  print(json.dumps(seen))
  processes.part()


def test_a_run_of_two_processes(home, tmp_path):
  """The loop that users run: a signal to one ends both; the same command goes on."""
  fields = {'metrics': "('pixelfd0.1k_full',)", 'metrics_kimg': 0.096, 'data.holdout': 0.1}

  def run(name):
    return [start(home, tmp_path / name, job=variables, **fields) for variables in job(2)]

  (out, _), (silent, _) = finish_all(run('whole'), [0, 0])
  assert '2 x cpu' in out and 'tick' not in silent
  both = run('run')
  wait_for(both[0], 'tick 1')
  both[1].send_signal(signal.SIGTERM)
  for _, err in finish_all(both, [75, 75]):
    assert 'SIGTERM: saved step' in err
  (out, _), _ = finish_all(run('run'), [0, 0])
  assert 'resuming at step' in out
  assert content(tmp_path / 'run') == content(tmp_path / 'whole')
  whole = log(tmp_path / 'whole')
  # The means of a tick are of the minibatches after the signal, if it came within one.
  assert of_states(log(tmp_path / 'run')) == of_states(whole)
  assert [line['step'] for line in whole if 'pixelfd0.1k_full' in line] == [12, LAST]
  # What one process computes with as many devices, but for float32's rounding, which has grown.
  finish(start(home, tmp_path / 'one', devices=2, **fields))
  for line, same in zip(whole, log(tmp_path / 'one'), strict=True):
    assert line == pytest.approx(same, rel=0.02, abs=2e-3)
    assert ('logits_heldout' in line) == ('swd' in line)
  # Nothing of process 1, and nothing twice.
  files = {path.name for path in (tmp_path / 'whole').iterdir()}
  assert files == {
    '.lock', 'checkpoints', 'config.json', 'environment.json', 'evaluation', 'images',
    'labels.json', 'metrics.jsonl', 'tensorboard',
  }  # fmt: skip
  assert len(list((tmp_path / 'whole' / 'tensorboard').iterdir())) == 1


def test_what_process_0_alone_finds_ends_all(home, tmp_path):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'config.json').write_text('{')
  (tmp_path / 'run' / 'checkpoints' / '8').mkdir(parents=True)
  both = [start(home, tmp_path / 'run', job=variables) for variables in job(2)]
  for _, err in finish_all(both, [2, 2]):
    assert 'config.json is not readable as JSON' in err
  first, second = job(2)
  both = [start(home, tmp_path / 'other', job=first), start(home, tmp_path, job=second, seed=1)]
  for _, err in finish_all(both, [2, 2]):
    assert 'process 1 of 2: the run is not the same' in err and 'seed=1 here' in err


# ---- use of a trained network


@pytest.mark.slow
def test_tools_of_two_processes_make_what_one_makes(home, tmp_path):
  """Images, metrics (a last batch that isn't full counts each image once), projections."""
  from PIL import Image

  workdir = tmp_path / 'run'
  finish(start(home, workdir))
  (tmp_path / 'pictures').mkdir()
  random = np.random.RandomState(0)
  for i in range(3):
    pixels = random.randint(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'pictures' / f'{i}.png')
  options = {
    'generate': ['--seeds=0-6', '--batch=4', '--noise=random', '--sheet={out}/sheet.png'],
    'evaluate': ['--metrics=pixelfd0.1k_full,pixelnn0.1k,swd', '--batch=33'],
    'project': [f'--images={tmp_path}/pictures', '--steps=20', '--distance=l2', '--video'],
  }
  for tool, flags in options.items():
    for count in (1, 2):
      out = tmp_path / f'{tool}{count}'
      flags_of_one = [flag.format(out=out) for flag in flags]
      command = ['-m', f'sg2jax.tools.{tool}', f'--checkpoint={workdir}', f'--out={out}']
      found = start_all(count, *command, *flags_of_one, SG2JAX_CACHE=str(home / 'sg2jax'))
      results = finish_all(found, [0] * count)
      assert all(
        not text.replace('[Gloo]', '').strip() or i == 0 or '[Gloo]' in text
        for i, (text, _) in enumerate(results)
      )
    one, two = (
      {p.name: p.read_bytes() for p in (tmp_path / f'{tool}{n}').iterdir()} for n in (1, 2)
    )
    assert one.keys() == two.keys() and len(one) > 3
    if tool == 'generate':
      assert one == two
  for name in ('pixelfd0.1k_full', 'pixelnn0.1k', 'swd'):
    values = [
      json.loads((tmp_path / f'evaluate{n}' / f'{name}.json').read_text())['values'] for n in (1, 2)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
  distances = [
    [
      x['distance']
      for x in json.loads((tmp_path / f'project{n}' / 'projections.json').read_text())['images']
    ]
    for n in (1, 2)
  ]
  assert distances[0] == pytest.approx(distances[1], rel=1e-4)


@pytest.mark.slow
def test_a_signal_to_one_process_ends_an_evaluation(home, tmp_path):
  finish(start(home, tmp_path / 'run'))
  cache = tmp_path / 'cache'
  flags = [f'--checkpoint={tmp_path}/run', '--metrics=pixelfd50k_full', '--batch=8']
  both = start_all(2, '-m', 'sg2jax.tools.evaluate', *flags, SG2JAX_CACHE=str(cache))
  while not list((cache / 'reals').glob('*.npz')):
    assert [process.poll() for process in both] == [None, None]
    time.sleep(0.05)
  both[1].send_signal(signal.SIGTERM)
  finish_all(both, [75, 75])


if __name__ == '__main__':
  globals()[sys.argv[1]](*sys.argv[2:])
