"""Whole runs as a user starts them, tools in this process, and workdirs that nobody trained."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
from unittest import mock

from absl.testing import flagsaver

from configs import quickstart
from sg2jax import cli
from sg2jax.addresses import Address
from tests.reference.check import compiler_options

ROOT = pathlib.Path(__file__).parent.parent
TINY = dict(
  resolution=8,
  batch=8,
  total_kimg=0.192,
  tick_kimg=0.064,
  snapshot_kimg=0.032,
  swd_images=32,
  **{
    'g.fmap_base': 64,
    'd.fmap_base': 64,
    'g.z_dim': 16,
    'g.w_dim': 16,
    'g.mapping_layers': 1,
    'd.mapping_layers': 1,
    'data.mirror': True,
    'metrics': (),
  },
)
# Of `random_run`: a network that is quick to compile.
SMALL = {
  'resolution': 8,
  'g.fmap_base': 32,
  'd.fmap_base': 32,
  'g.z_dim': 8,
  'g.w_dim': 8,
  'g.mapping_layers': 1,
  'data.channels': 1,
}
MAIN = 'from sg2jax import cli, main\nmain.define_flags()\ncli.run(main.main)'
LAST = 24  # total_kimg / batch


def call(tool, *args):
  """Runs a tool in this process as its command line does; faults are raised."""
  argv = [tool.__name__, *map(str, args)]
  # flagsaver takes the tool's flags away again: others have such names, too. Of --config.FIELD
  # ml_collections asks sys.argv.
  with flagsaver.flagsaver(), mock.patch.object(sys, 'argv', argv):
    tool.define_flags()
    tool.main(cli.parse(argv))


def xla_flags():
  """compiler_options for a process of its own."""
  return ' '.join(f'--{name}={str(value).lower()}' for name, value in compiler_options().items())


def configuration(home, **fields):
  """The configuration of `start`, for a run in this process."""
  config = quickstart.get_config()
  config.update_from_flattened_dict({'data.dir': str(home / 'data')} | TINY | fields)
  return config


def start(
  home, workdir, config='quickstart.py', devices=1, replay=None, job=None, patch='', **fields
):
  """The running process of `sg2jax.main` on a tiny network and so many devices.

  Fields are --config.<name>; job: what `job` gives one of several processes; patch: code that is
  run before. What it compiles is shared, see conftest.py.
  """
  command = [
    sys.executable,
    *(['-c', f'{patch}\n{MAIN}'] if patch else ['-m', 'sg2jax.main']),
    f'--config=configs/{config}',
    f'--workdir={workdir}',
  ]
  command += [f'--config.{k}={v}' for k, v in ({'data.dir': home / 'data'} | TINY | fields).items()]
  if replay:
    command.append(f'--replay={replay}')
  several = ''
  if devices > 1:
    # Each needs a thread while they wait for each other.
    several = (
      f'--xla_force_host_platform_device_count={devices} --xla_cpu_multi_thread_eigen=false '
    )
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    # compiles five times as fast
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'XLA_FLAGS': several + xla_flags(),
    'PYTHONPATH': str(home / 'poison'),
    'SG2JAX_CACHE': str(home / 'sg2jax'),
  }
  env |= job or {}
  return subprocess.Popen(
    command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )


def on_devices(count, *arguments, **env):
  """Runs `python ARGUMENTS` to its end where JAX sees so many devices of a CPU; it must succeed."""
  given = {
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': str(ROOT),
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={count} {xla_flags()}',
  }
  command = [sys.executable, *map(str, arguments)]
  done = subprocess.run(command, env=os.environ | given | env, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr


def job(count):
  """The variables that make so many processes one job, of each of them."""
  with socket.socket() as s:
    s.bind(('localhost', 0))
    address = f'localhost:{s.getsockname()[1]}'
  names = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
  return [dict(zip(names, (address, str(count), str(i)))) for i in range(count)]


def wait_for(process, text):
  """Reads the output of a process up to the line with a text."""
  line = process.stdout.readline()
  while text not in line:
    assert line, process.stderr.read()
    line = process.stdout.readline()


def finish(process, code=0, timeout=300):
  """Waits for the process; its output and errors."""
  out, err = process.communicate(timeout=timeout)
  assert process.returncode == code, out + err
  return out, err


def of_states(lines):
  """Of lines of metrics.jsonl what is about a state, not about the minibatches of a tick."""
  wanted = re.compile('step|nimg|swd|contribution_|pixelfd|r_v|nearest|logits_(?!real|fake)')
  found = {}  # what a signal left out has a line of its own
  for line in lines:
    found.setdefault(line['step'], {}).update(
      {name: x for name, x in line.items() if wanted.match(name)}
    )
  return list(found.values())


def content(workdir, step=LAST):
  """{file: bytes} of a checkpoint."""
  root = workdir / 'checkpoints' / str(step)
  if isinstance(root, Address):
    return {name: (root / name).read_bytes() for name in root.objects()}
  return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob('*') if p.is_file()}


def checkpoint_at(path):
  """Where the newest whole checkpoint of a workdir is, or `path` itself if it is one."""
  from sg2jax.training import checkpoint  # here, as most who come here need no JAX

  with checkpoint.opened(path) as (place, _):
    return place


def log(workdir):
  """The lines of metrics.jsonl without what depends on the clock and the machine."""
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [
    {
      k: v
      for k, v in line.items()
      if k not in ('time', 'sec_per_tick', 'img_per_sec', 'host_bytes')
    }
    for line in lines
  ]


def write_run(workdir, config, state):
  """Makes a workdir with the checkpoint of a state. config: JSON values, with c_dim. -> workdir"""
  from sg2jax.training.checkpoint import Checkpoints

  checkpoints = Checkpoints(workdir, keep=1, meta={})
  checkpoints.save(state)
  checkpoints.close()
  (workdir / 'config.json').write_text(json.dumps(config))
  return workdir


def random_run(workdir, scales, **fields):
  """`write_run` of a generator for 3 classes, random also in what starts at 0; scales: of arrays by
  their number of axes.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np

  from configs import default
  from sg2jax import build
  from sg2jax.state import TrainState

  config = default.get_config()
  config.update_from_flattened_dict({'data.dir': '-', 'g.variant.mapping_lr_mul': 1.0} | fields)
  generator, _ = build.networks(config, 3)
  make = lambda key: generator.init(
    key, jnp.zeros((1, config.g.z_dim)), jnp.zeros((1, 3)), noise_mode='const'
  )
  random = np.random.RandomState(0)
  found = jax.tree.map(
    lambda x: np.float32(random.randn(*x.shape) * scales[x.ndim]),
    jax.eval_shape(make, jax.random.key(0)),
  )
  none, w_avg = np.zeros((), np.int32), random.randn(config.g.w_dim).astype(np.float32)
  state = TrainState(
    none + 3, none + 24, {}, {}, found['params'], {}, {}, found['noise'], w_avg, none
  )
  return write_run(workdir, config.to_dict() | {'c_dim': 3}, state)
