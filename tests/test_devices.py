"""The number of devices is not in the mathematics: 1 and 8 forced CPU devices, and what the
compiler makes of it.

Runs itself in a subprocess, because the device count is fixed when JAX starts.
"""

import math
import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.runs import content, finish, log, start, xla_flags

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize('network', ['skip', pytest.param('growing', marks=pytest.mark.slow)])
def test_one_and_eight_devices_agree(network):
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
  run = subprocess.run(
    [sys.executable, __file__, network], env=env, capture_output=True, text=True, timeout=500
  )
  assert run.returncode == 0, run.stdout + run.stderr


ONE_EACH = dict(
  batch=4,
  total_kimg=0.064,
  tick_kimg=0.016,
  snapshot_kimg=0.016,
  swd_images=30,
  metrics="('pixelfd0.1k_full',)",
  metrics_kimg=0.032,
)


def test_training_on_four_devices_is_killed_and_goes_on(home, tmp_path):
  """The loop that users run: one image a device, half of them for path lengths; snapshots, a
  metric, a kill, a resume.
  """
  options = ONE_EACH | {'devices': 4}
  out, _ = finish(start(home, tmp_path / 'whole', **options))
  assert '4 x cpu' in out
  lines = log(tmp_path / 'whole')
  assert [line['step'] for line in lines if 'swd' in line] == [0, 4, 8, 12, 16]
  assert [line['step'] for line in lines if 'pixelfd0.1k_full' in line] == [8, 16]
  process = start(home, tmp_path / 'run', **options)
  while 'tick 2' not in process.stdout.readline():
    assert process.poll() is None, process.stderr.read()
  process.kill()
  process.communicate()
  finish(start(home, tmp_path / 'run', **options))
  assert content(tmp_path / 'run', 16) == content(tmp_path / 'whole', 16)
  assert log(tmp_path / 'run') == lines


@pytest.mark.slow
def test_training_on_four_devices_gives_the_figures_of_one(home, tmp_path):
  finish(start(home, tmp_path / 'four', devices=4, **ONE_EACH))
  finish(start(home, tmp_path / 'alone', **ONE_EACH))
  for one, four in zip(log(tmp_path / 'alone'), log(tmp_path / 'four'), strict=True):
    assert one.keys() == four.keys()
    assert all(one[name] == pytest.approx(four[name], rel=0.02, abs=1e-3) for name in one), (
      one,
      four,
    )


def main(network):
  """20 minibatches with all four steps in float64 on 1 and on 8 devices, from the same state and
  images.

  Rounds of 8 images: one on each device, and half of them for path lengths.

  network: 'skip', or 'growing': config D from 4 px on, in the fade to 8 px, which is half done
  after 10 minibatches.
  """
  import jax
  import numpy as np

  from configs import default
  from sg2jax import build, sharding

  config = default.get_config()
  config.update_from_flattened_dict(
    {
      'resolution': 8,
      'batch': 16,
      'microbatch': 8,
      'data.dir': '-',
      'g.fmap_base': 32,
      'd.fmap_base': 32,
      'g.z_dim': 16,
      'g.w_dim': 16,
      'g.mapping_layers': 1,
      'd.mapping_layers': 1,
      'd.architecture': 'skip',
      'ema.rampup': 0.05,
    }
  )
  if network == 'growing':
    config.g.architecture = config.d.architecture = 'revised'
    config.grow.start_res, config.grow.hold_kimg, config.grow.fade_kimg = 4, 0.0, 0.32
  images = np.random.default_rng(0).integers(0, 256, (20, 2, 8, 8, 8, 3), np.uint8)
  labels = np.eye(4)[np.random.default_rng(1).integers(0, 4, (20, 2, 8))]
  ends = []
  for devices in (jax.devices()[:1], jax.devices()):
    mesh = sharding.make_mesh(devices)
    same = sharding.replicated(mesh)
    steps = build.steps(config, 4, mesh, build.growth(config).stage(1))
    state = jax.tree.map(
      lambda x: x.astype('float64') if x.dtype == 'float32' else x,
      build.init_state(config, steps, same),
    )
    key = jax.device_put(jax.random.key(7), same)
    batch = sharding.to_global(mesh, {'image': images[0], 'label': labels[0]})
    compiled = {
      name: sharding.jit_step(getattr(steps, name), mesh).lower(key, state, batch).compile()
      for name in steps.phases(0)
    }
    for i in range(20):
      batch = sharding.to_global(mesh, {'image': images[i], 'label': labels[i]})
      for name in steps.phases(i):
        state, aux = compiled[name](key, state, batch)
    ends.append(jax.device_get(state))
  assert steps.stage.level == 0
  for name, step in compiled.items():
    check_division(name, step.as_text())
  assert ends[0].step == 20 and ends[0].nimg == 320
  worst = 0
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(ends[0]), jax.tree.leaves(ends[1]), strict=True
  ):
    error = np.abs(a - b).max() / max(np.abs(a).max(), 1e-300)
    assert error < 1e-5, f'{jax.tree_util.keystr(path)} differs by {error:.1e}'
    worst = max(worst, error)
  print(f'worst relative difference of a leaf {worst:.1e}')


def check_division(name, hlo):
  """One image in each convolution of a device; all-reduces, and no all-gather of anything as large
  as an activation.
  """
  shapes = dict(re.findall(r'%([\w.-]+) = \w+\[([\d,]*)\]', hlo))
  images = set()
  for left, labels in re.findall(r' convolution\(%([\w.-]+), [^)]*\)[^\n]*dim_labels=(\w+)_', hlo):
    images.add(int(shapes[left].split(',')[labels.index('b')]))
  assert images == {1}, f'the {name} step convolves {sorted(images)} images at once'
  reduces = len(re.findall(r' all-reduce(?:-start)?\(', hlo))
  assert reduces, f'the {name} step reduces nothing'
  gathers = re.findall(r'= \w+\[([\d,]*)\][^=]* all-gather', hlo)
  for shape in gathers:
    assert math.prod(int(n) for n in shape.split(',') if n) <= 16 * 16, (
      f'the {name} step gathers [{shape}]'
    )
  print(
    f'{name}: {len(shapes)} values, convolutions of {images} images, {reduces} all-reduces, '
    f'all-gathers {gathers}'
  )


if __name__ == '__main__':
  main(sys.argv[1])
