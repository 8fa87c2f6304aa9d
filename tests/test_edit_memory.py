"""The steps of text editing whose memory is told are those that run."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import default
from sg2jax import build, clip, sampler, sharding
from sg2jax.edit import mapper_training, nada, optimize, text_losses
from sg2jax.lab import edit_memory
from tests.runs import ROOT, TINY, call
from tests.test_plan import is_missing


@pytest.fixture
def config():
  config = default.get_config()
  fields = TINY | {'data.name': 'random', 'data.dir': '-', 'data.channels': 1, 'resolution': 16}
  config.update_from_flattened_dict(fields)
  return config


def test_they_are_the_steps_that_run(config, monkeypatch, quick_compile):
  digits = clip.load('digits')
  monkeypatch.setattr(edit_memory, 'CLIP', digits.architecture)
  mesh = sharding.make_mesh()
  found = {name: lowered.as_text() for name, lowered in edit_memory.lower(config, mesh, 2)}
  state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), build.abstract_state(config, 0))
  net = sampler.from_state('-', config.to_dict() | {'c_dim': 0}, state)
  ws = sharding.replicate(mesh, np.zeros((2, net.num_ws, config.g.w_dim), 'f'))
  tower = text_losses.Tower(digits.params, digits.architecture)
  text = np.zeros((1, digits.architecture.embed_dim), np.float32)

  search = optimize.Optimizer(net, ws, tower, text)
  training = mapper_training.Training(net, tower, text, mapper_training.Settings())
  look = nada.Look(tower, text[0], text[0])
  tuning = nada.Training(net, [look], nada.Settings(batch=2))
  layer_ws = sharding.replicate(mesh, np.zeros((nada.LAYER_BATCH, *ws.shape[1:]), 'f'))
  number = sharding.replicate(mesh, np.int32(0))
  with jax.default_matmul_precision('highest'):  # as they run
    for name, step, more in (
      ('optimize', search._advance, search._state),
      ('mapper', training._advance, (training.state, ws)),
      ('nada', tuning._advance, (tuning.state, ws, layer_ws, number)),
    ):
      assert step.func.lower(*step.args, *more).as_text() == found[name], name


def test_each_step_has_a_line(monkeypatch, capsys):
  ended = []
  monkeypatch.setattr(edit_memory.os, '_exit', ended.append)
  double = jax.jit(lambda x: 2 * x)

  def lower(config, mesh, count):
    yield 'double', double.lower(jax.ShapeDtypeStruct((count, 2**27), np.float32))

  monkeypatch.setattr(edit_memory, 'lower', lower)
  call(edit_memory, '--config=configs/quickstart.py', '--images=1,2')
  assert capsys.readouterr().out.splitlines() == [
    'double      1 images    1.00 GiB: 0.50 of arguments, 0.00 of temporaries',
    'double      2 images    2.00 GiB: 1.00 of arguments, 0.00 of temporaries',
  ]
  assert ended == [0]


@pytest.mark.slow
@pytest.mark.skipif(is_missing('jax-cuda13-plugin'), reason='needs requirements-plan.txt')
def test_all_compile_for_a_gpu_at_1024_px():
  """Measuring channels once did not: XLA found no tiles for the product of `resize_by_area`."""
  flags = ['--config=configs/ffhq.py', '--config.data.name=random', '--device=h100', '--images=1']
  done = subprocess.run(
    [sys.executable, '-m', 'sg2jax.lab.edit_memory', *flags],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  sizes = {line.split()[0]: float(line.split()[3]) for line in done.stdout.splitlines()}
  assert sizes.keys() == {'optimize', 'mapper', 'nada', 'global'} and max(sizes.values()) < 4
