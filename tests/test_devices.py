"""The number of devices is not in the mathematics: 1 and 8 forced CPU devices, runs on 4.

The first test runs this file in a process of its own, because the device count is fixed when JAX
starts.
"""

import math
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

from tests.runs import content, finish, log, start, xla_flags

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize(
  'network, minibatches',
  [
    ('skip', 3),
    pytest.param('skip', 20, marks=pytest.mark.slow),
    pytest.param('growing', 20, marks=pytest.mark.slow),
  ],
)
def test_one_and_eight_devices_agree(network, minibatches):
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_ENABLE_X64': '1',
    'PYTHONPATH': str(ROOT),
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'JAX_CPU_ENABLE_ASYNC_DISPATCH': '0',
    # 8 devices wait for each other in one pool of threads; on a busy machine nothing else may
    # need one of them.
    'XLA_FLAGS': '--xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false '
    f'--xla_cpu_collective_call_terminate_timeout_seconds=400 {xla_flags()}',
  }
  command = [sys.executable, __file__, network, str(minibatches)]
  run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
  assert run.returncode == 0, run.stdout + run.stderr


# Of 8 minibatches, one image a device; half of them for path lengths.
ONE_EACH = {
  'batch': 4,
  'total_kimg': 0.032,
  'tick_kimg': 0.008,
  'snapshot_kimg': 0.016,
  'metrics_kimg': 0.016,
  'metrics': "('pixelfd0.1k_full',)",
  'swd_images': 30,
  'data.holdout': 0.1,
  'g.fmap_base': 16,
  'd.fmap_base': 16,
  'd.architecture': 'skip',
}


@pytest.mark.slow  # in the suite tests/test_processes.py has a run on two devices
def test_training_on_four_devices_is_killed_and_goes_on(home, tmp_path):
  """The loop that users run: snapshots, metrics, a kill while the first is measured, a resume."""
  options = ONE_EACH | {'devices': 4}
  out, _ = finish(start(home, tmp_path / 'whole', **options))
  assert '4 x cpu' in out
  lines = log(tmp_path / 'whole')
  assert [line['step'] for line in lines if 'swd' in line] == [0, 4, 8]
  assert [line['step'] for line in lines if 'pixelfd0.1k_full' in line] == [4, 8]
  process = start(home, tmp_path / 'run', **options)
  while not (tmp_path / 'run' / 'checkpoints' / '4').exists():
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.05)
  process.kill()
  process.communicate()
  assert not (tmp_path / 'run' / 'checkpoints' / '8').exists()
  out, _ = finish(start(home, tmp_path / 'run', **options))
  assert 'resuming at step 4' in out
  assert content(tmp_path / 'run', 8) == content(tmp_path / 'whole', 8)
  assert log(tmp_path / 'run') == lines


@pytest.mark.slow
def test_training_on_four_devices_gives_the_figures_of_one(home, tmp_path):
  finish(start(home, tmp_path / 'four', devices=4, **ONE_EACH))
  finish(start(home, tmp_path / 'alone', **ONE_EACH))
  for one, four in zip(log(tmp_path / 'alone'), log(tmp_path / 'four'), strict=True):
    assert one == pytest.approx(four, rel=0.02, abs=1e-3)


CONFIG = {
  'resolution': 8,
  'batch': 16,
  'microbatch': 8,
  'data.dir': '-',
  'g.fmap_base': 16,
  'd.fmap_base': 16,
  'g.z_dim': 16,
  'g.w_dim': 16,
  'g.mapping_layers': 1,
  'd.mapping_layers': 1,
  'd.architecture': 'skip',
  'loss.pl_interval': 2,
  'loss.r1_interval': 2,
  'ema.rampup': 0.05,
  'augment.pipeline': 'bgcfnc',
  'augment.p': 0.5,
  'augment.interval': 1,
  'augment.kimg': 1.0,
}
# config D from 4 px on, in the fade to 8 px, which is half done after 10 minibatches
GROWING = {
  'g.architecture': 'revised',
  'd.architecture': 'revised',
  'grow.start_res': 4,
  'grow.hold_kimg': 0.0,
  'grow.fade_kimg': 0.32,
}


def main(network, minibatches):
  """Minibatches with all four steps in float64 on 1 and on 8 devices, from the same state.

  Rounds of 8 images: one on each device, and half of them for path lengths.
  """
  import jax
  import numpy as np

  from configs import default
  from sg2jax import build

  config = default.get_config()
  config.update_from_flattened_dict(CONFIG | (GROWING if network == 'growing' else {}))
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (minibatches, 2, 8, 8, 8, 3), np.uint8)
  labels = np.eye(4)[random.integers(0, 4, (minibatches, 2, 8))]
  stage = build.growth(config).stage(1)
  steps = build.steps(config, 4, None, stage)
  start = jax.tree.map(
    lambda x: x.astype('float64') if x.dtype == 'float32' else x,
    jax.device_get(build.init_state(config, steps, None)),
  )
  alone, _ = train(config, stage, jax.devices()[:1], start, images, labels)
  together, compiled = train(config, stage, jax.devices(), start, images, labels)
  for name, step in compiled.items():
    check_division(name, step.as_text())
  assert stage.level == 0
  assert (alone.step, alone.nimg) == (minibatches, 16 * minibatches)
  assert alone.augment_p != 0.5
  worst, tolerance = 0, 1e-11 if minibatches < 10 else 1e-5  # rounding grows
  leaves = jax.tree_util.tree_leaves_with_path(alone)
  for (path, a), b in zip(leaves, jax.tree.leaves(together), strict=True):
    error = np.abs(a - b).max() / max(np.abs(a).max(), 1e-300)
    assert error < tolerance, f'{jax.tree_util.keystr(path)} differs by {error:.1e}'
    worst = max(worst, error)
  print(f'worst relative difference of a leaf {worst:.1e}')


def train(config, stage, devices, state, images, labels):
  """The state after these minibatches [n,R,M,...], as NumPy arrays, and the compiled steps."""
  import jax

  from sg2jax import build, sharding

  mesh = sharding.make_mesh(devices)
  same = sharding.replicated(mesh)
  steps = build.steps(config, 4, mesh, stage)
  state, key = jax.device_put((state, jax.random.key(7)), same)
  compiled = {}
  for i in range(len(images)):
    batch = sharding.to_global(mesh, {'image': images[i], 'label': labels[i]})
    for name in steps.phases(i):
      if name not in compiled:
        step = sharding.jit_step(getattr(steps, name), mesh)
        compiled[name] = step.lower(key, state, batch).compile()
      state, _ = compiled[name](key, state, batch)
  assert len(compiled) == 4
  return jax.device_get(state), compiled


def check_division(name, hlo):
  """A device convolves one image at a time; it reduces, but gathers and shifts no activations."""
  shapes = dict(re.findall(r'%([\w.-]+) = \w+\[([\d,]*)\]', hlo))
  batches = set()
  for left, labels in re.findall(r' convolution\(%([\w.-]+), [^)]*\)[^\n]*dim_labels=(\w+)_', hlo):
    batches.add(int(shapes[left].split(',')[labels.index('b')]))
  assert batches == {1}, f'the {name} step convolves {sorted(batches)} images at once'
  assert re.search(r' all-reduce(?:-start)?\(', hlo), f'the {name} step reduces nothing'
  gathers = re.findall(r'= \w+\[([\d,]*)\][^=]* all-gather', hlo)
  for shape in gathers:
    size = math.prod(int(n) for n in shape.split(',') if n)
    assert size <= 16 * 16, f'the {name} step gathers [{shape}]'
  # 4 latents over 8 devices, not spread, were shifted about by 360 of them
  permutes = len(re.findall(r' collective-permute(?:-start)?\(', hlo))
  assert permutes < 50, f'the {name} step shifts rows between devices {permutes} times'
  print(f'{name}: {len(shapes)} values, {permutes} permutes, all-gathers {gathers}')


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]))
