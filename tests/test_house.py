"""The rules of the house, as tests: who imports whom, sizes, names, docstrings, no TensorFlow."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / 'sg2jax').rglob('*.py'))
# A file imports only from floors below its own, or from its own room. Of interop, the files that
# read and write bytes are lower than those that know our networks; of training, `sampler` needs
# checkpoints, and the loop needs all that uses a network.
FLOORS = (
  ('faults', 'keys', 'memory', 'packing', 'products', 'schedule', 'sharding'),
  ('peers',),
  ('addresses', 'ops', 'processes', 'resample'),
  ('folding', 'paths'),
  ('conv', 'warp'),
  ('interop', 'models', 'nets', 'charts', 'files', 'grids', 'signals'),
  ('augment', 'losses', 'state', 'interop.architecture'),
  ('update',),
  ('steps',),
  ('cli', 'locks', 'progress'),
  ('training.events', 'training.health', 'training.leaves', 'training.manifest'),
  ('bundle', 'configurations', 'data', 'training.shelves', 'edit.mapper'),
  ('build', 'training.checkpoint', 'inputs', 'training.report', 'edit.direction'),
  ('checks', 'pretrained', 'sampler'),
  ('clip',),
  ('evaluation', 'edit', 'interop.read', 'planning'),
  ('training.profile', 'training.stage', 'training.watchdog', 'training.workdir', 'interop.write'),
  ('training.init_from', 'training.nonfinite', 'training.memorising'),
  ('training.snapshot',),
  ('training.loop',),
  ('training.train', 'lab'),
  ('tools',),
  ('view',),
  ('main', '__main__', 'tools.view'),
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
  assert len(text.splitlines()) <= 400
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef):
      assert node.end_lineno - node.lineno < 60, f'{node.name} is too long'
  for node in ast.parse(text).body:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
      assert ast.get_docstring(node), f'{path.name}: {node.name} has no docstring'
  if FLOOR.get(here, 9) <= FLOOR['steps'] and here not in (
    'addresses',
    'files',
    'paths',
    'interop',
  ):
    names = {n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)}
    assert not names & {'config', 'print', 'open', 'time'}, (
      f'{path.name}: floors 0-3 see no config, file or clock'
    )


def public_functions(body):
  """The functions in a body, and those in its classes, whose names begin without underscore."""
  for node in body:
    if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
      yield from public_functions(node.body)
    # __call__ is what the users of a network see
    elif isinstance(node, ast.FunctionDef) and (
      not node.name.startswith('_') or node.name == '__call__'
    ):
      yield node


def test_public_functions_are_annotated():
  lacking = []
  for path in FILES:
    for function in public_functions(ast.parse(path.read_text()).body):
      a = function.args
      arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
      names = [x.arg for x in arguments if not x.annotation and x.arg not in ('self', 'cls')]
      if not function.returns:
        names.append('its result')
      lacking += [f'{path.relative_to(ROOT)}: {function.name}: {name}' for name in names]
  assert not lacking


def test_configs_and_package_do_not_know_each_other():
  for path in (ROOT / 'configs').glob('*.py'):
    assert not any(m.startswith('sg2jax') for m in imports(path)), path


def test_importing_main_imports_no_tensorflow(tmp_path):
  (tmp_path / 'tensorflow.py').write_text('raise RuntimeError("TensorFlow was imported")\n')
  code = 'import sg2jax.main, sys; assert "tensorflow" not in sys.modules'
  env = os.environ | {'PYTHONPATH': f'{tmp_path}:{ROOT}', 'JAX_PLATFORMS': 'cpu'}
  subprocess.run([sys.executable, '-c', code], check=True, env=env)
