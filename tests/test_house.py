"""The rules of the house, as tests: who imports whom, sizes, names, docstrings, no TensorFlow."""

import ast
import importlib
import math
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / 'sg2jax').rglob('*.py'))
# A file imports only from floors below its own, or from its own room. Of interop, the files that
# read and write bytes are lower than those that know our networks.
FLOORS = (
  ('faults', 'keys', 'ops', 'schedule', 'sharding'),
  ('resample',),
  ('conv',),
  ('interop', 'models', 'nets', 'charts', 'files', 'grids', 'paths', 'signals'),
  ('losses', 'state', 'interop.architecture'),
  ('steps',),
  ('cli', 'data', 'environment', 'event_files', 'locks', 'manifest'),
  ('build', 'checkpoint', 'inputs', 'report'),
  ('checks', 'pretrained', 'sampler'),
  ('evaluation', 'edit', 'interop.read'),
  ('stage', 'workdir', 'interop.write'),
  ('init_from', 'nonfinite', 'snapshot'),
  ('train', 'lab'),
  ('tools',),
  ('main',),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room(module):
  """sg2jax.models.layers -> models; what has a floor of its own -> itself; the package -> None."""
  parts = module.split('.')[1:]
  whole = '.'.join(parts[:2])
  return whole if whole in FLOOR else parts[0] if parts else None


def imports(path):
  """Modules that a file names in imports, anywhere in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (a.name for a in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{a.name}' for a in node.names)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_and_files_stay_small(path):
  here = room('.'.join(path.relative_to(ROOT).with_suffix('').parts))
  for module in imports(path):
    assert not module.startswith(('tensorflow.', 'configs')) and module != 'tensorflow', module
    if (
      module.startswith('sg2jax.')
      and here != '__init__'
      and room(module) not in (here, '__version__')
    ):
      assert FLOOR[room(module)] < FLOOR[here], f'{path.name} imports {module}'
  text = path.read_text()
  assert len(text.splitlines()) <= 560
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
      if isinstance(node, ast.FunctionDef):
        assert node.end_lineno - node.lineno < 110, f'{node.name} is too long'
  for node in ast.parse(text).body:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
      assert ast.get_docstring(node), f'{path.name}: {node.name} has no docstring'
  if FLOOR.get(here, 9) <= FLOOR['steps'] and here not in ('files', 'paths', 'interop'):
    names = {n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)}
    assert not names & {'config', 'print', 'open', 'time'}, (
      f'{path.name}: floors 0-3 see no config, file or clock'
    )


def test_configs_and_package_do_not_know_each_other():
  for path in (ROOT / 'configs').glob('*.py'):
    assert not any(m.startswith('sg2jax') for m in imports(path)), path


@pytest.mark.parametrize(
  'name', [p.stem for p in (ROOT / 'configs').glob('*.py') if p.stem not in ('__init__', 'default')]
)
def test_presets_are_small_and_pass_the_checks(name):
  from sg2jax import build, checks

  module = importlib.import_module(f'configs.{name}')
  assert '--config=configs/' in module.__doc__
  config = module.get_config()
  config.data.dir = 'somewhere'
  checks.check(config)
  generator, discriminator = build.networks(config, 3 if config.data.labels else 0)
  assert generator.synthesis.resolution == discriminator.resolution == build.resolution(config)


@pytest.mark.parametrize(
  'arg, batch, gamma, base',
  [
    ('256', 16, 0.8192, 8192),
    ('256,8', 64, 0.2048, 8192),
    ('1024,8', 32, 6.5536, 16_384),
    ('64', 32, 0.0256, 8192),
  ],
)
def test_custom_follows_the_auto_heuristics(arg, batch, gamma, base):
  from configs import custom

  c = custom.get_config(arg)
  assert (c.batch, c.loss.r1_gamma, c.g.fmap_base) == (batch, pytest.approx(gamma), base)


REVISED = {'g.architecture': 'revised', 'd.architecture': 'revised', 'grow.start_res': 8}


@pytest.mark.parametrize(
  'fields, said',
  [
    ({'resolution': 30}, '--config.resolution=30'),
    ({'resolution': (16, 0)}, 'resolution'),
    ({'batch': 0}, 'batch=0'),
    ({'batch': 30}, 'try 28 or 32'),
    ({'batch': 32, 'microbatch': 12}, 'microbatch=12'),
    ({'total_kimg': -1.0}, 'total_kimg'),
    ({'tick_kimg': float('nan')}, 'tick_kimg'),
    ({'loss.r1_gamma': -1.0}, 'r1_gamma'),
    ({'loss.mixing_prob': 1.5}, '[0, 1]'),
    ({'g.architecture': 'unet'}, 'orig, skip, resnet'),
    ({'device': 'npu'}, 'device=npu'),
    ({'data.dir': ''}, 'prepare'),
    ({'loss.pl_shrink': 3}, 'pl_shrink=3'),
    ({'data.channels': 0}, 'channels'),
    ({'opt.beta2': 1.0}, 'beta2'),
    ({'grow.start_res': 8}, 'cannot grow'),
    (REVISED | {'grow.start_res': 512}, 'one of 4, 8, 16'),
    ({'g.architecture': 'msg'}, 'msg in both'),
    ({'d.architecture': 'msg'}, 'msg in both'),
    (REVISED | {'grow.batch': ((8, 6),)}, 'grow.batch[8]=6'),
    (REVISED | {'grow.lr': (8, 0.1)}, 'must be pairs'),
    ({'grow.batch': ((8, 0),)}, 'grow.batch=((8, 0),)'),
    ({'grow.batch': ((8, 2.5),)}, 'whole number'),
    ({'grow.lr': (('8', 0.1),)}, 'pairs of pixels'),
    ({'grow.lr': ((8, math.inf),)}, 'above 0'),
    (REVISED | {'grow.fade_kimg': 0.0, 'grow.hold_kimg': 0.0}, 'no time to grow'),
    ({'opt.formulation': 'jax'}, 'pytorch, tensorflow'),
    ({'loss.r1_interval': -1}, 'r1_interval=-1'),
  ],
)
def test_bad_values_name_the_field_and_the_remedy(fields, said):
  from configs import default
  from sg2jax import checks
  from sg2jax.faults import UsageError

  config = default.get_config()
  config.update_from_flattened_dict({'data.dir': 'somewhere'} | fields)
  with pytest.raises(UsageError) as e:
    checks.check(config)
  assert said in str(e.value)


def test_importing_main_imports_no_tensorflow(tmp_path):
  (tmp_path / 'tensorflow.py').write_text('raise RuntimeError("TensorFlow was imported")\n')
  code = 'import sg2jax.main, sys; assert "tensorflow" not in sys.modules'
  env = os.environ | {'PYTHONPATH': f'{tmp_path}:{ROOT}', 'JAX_PLATFORMS': 'cpu'}
  subprocess.run([sys.executable, '-c', code], check=True, env=env)
