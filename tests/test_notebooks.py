"""The notebooks of launch/colab: their form, their commands, and what they do from end to end."""

import ast
import builtins
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
import zipfile

from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
import nbformat
import numpy as np
from PIL import Image
import pytest

from sg2jax.faults import UsageError
from sg2jax.tools import export
from tests import commands, pictures, runs
from tests.runs import ROOT

FOLDER = ROOT / 'launch' / 'colab'
NAMES = ('quickstart', 'train_your_images', 'use_a_trained_network')
TAKES = re.compile(r'\*\*Takes\*\*: .+; .*memory.*;.*(disk|Drive)', re.S)
DEFINES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
# Variables of single cells that are in their commands.
EXAMPLES = {'form': 'stablehlo', 'pictures': 'picture.png', 'clone': 'there', 'constraints': 'file'}


def read(name):
  return nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)


def code(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def cell_of(notebook, id):
  return next(cell for cell in notebook.cells if cell.id == id)


def tree(source):
  """The syntax tree of a cell, in which !COMMAND is get_ipython().system('COMMAND')."""
  return ast.parse(TransformerManager().transform_cell(source))


def shell(source):
  """What stands behind the ! of a cell."""
  lines = map(str.strip, commands.joined(source).splitlines())
  return [line[1:] for line in lines if line.startswith('!')]


def listed(source):
  """The commands of ours that a cell makes as lists, for subprocess, with all that it may add."""
  nodes = list(ast.walk(tree(source)))
  called = {id(x.value): ast.unparse(x.targets[0]) for x in nodes if isinstance(x, ast.Assign)}
  added = [(ast.unparse(x.target), x.value) for x in nodes if isinstance(x, ast.AugAssign)]
  found = []
  for node in nodes:
    if isinstance(node, ast.List) and any(word.startswith('sg2jax.') for word in words(node)):
      more = [value for name, value in added if name == called.get(id(node))]
      found.append([word for part in (node, *more) for word in words(part)])
  # A flag that is added in another way would be looked at by nobody.
  texts = [x.value for x in nodes if isinstance(x, ast.Constant) and isinstance(x.value, str)]
  flags = [text for text in texts if text.startswith('--')]
  assert len(flags) == sum(word.startswith('--') for command in found for word in command), flags
  return list(map(shlex.join, found))


def words(node):
  """The words in the list of a command, {NAME} for what they are filled with; '' for others."""
  for word in node.elts:
    match word:
      case ast.Constant(value=str(text)):
        yield text
      case ast.JoinedStr():
        yield ast.unparse(word)[2:-1]
      case _:
        yield 'python' if ast.unparse(word) == 'sys.executable' else ''


def names(source):
  """(names that a cell reads, names that it sets)."""
  nodes = [node for node in ast.walk(tree(source)) if isinstance(node, ast.Name)]
  used = {node.id for node in nodes if isinstance(node.ctx, ast.Load)}
  used |= {name for command in shell(source) for name in re.findall(r'{(\w+)}', command)}
  made = {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
  for node in ast.walk(tree(source)):
    if isinstance(node, (ast.Import, ast.ImportFrom)):
      made |= {(alias.asname or alias.name).partition('.')[0] for alias in node.names}
  return used, made


def values(notebook):
  """What the cell of parameters sets."""
  found = {}
  exec(cell_of(notebook, 'parameters').source, found)
  return {name: value for name, value in found.items() if name.isupper()}


def filled(command, given):
  """A command as the shell gets it. Raises KeyError if it names a variable that isn't there."""
  return re.sub(r'{(\w+)}', lambda match: str(given[match[1]]), command)


def with_parameters(name, **given):
  """The notebook with other values in its cell of parameters, which must have the names."""
  notebook = read(name)
  cell = cell_of(notebook, 'parameters')
  assert set(given) <= set(values(notebook))
  cell.source = '\n'.join(f'{k} = {v!r}' for k, v in (values(notebook) | given).items())
  return notebook


class Kernel(NotebookClient):
  """A kernel that executes cells of one notebook, in a folder."""

  def __init__(self, notebook, folder=FOLDER):
    super().__init__(notebook, timeout=600, resources={'metadata': {'path': str(folder)}})

  def run(self, ids):
    """Executes the cells of these ids, in their order."""
    for i, cell in enumerate(self.nb.cells):
      if cell.cell_type == 'code' and cell.id in ids:
        self.execute_cell(cell, i)


def text(notebook, id):
  """What a cell has printed."""
  outputs = cell_of(notebook, id).outputs
  return ''.join(output.text for output in outputs if output.output_type == 'stream')


def shown(notebook, id):
  """The kinds of what a cell shows, the first of each: image/png or text/html."""
  outputs = cell_of(notebook, id).outputs
  kinds = ('image/png', 'text/html')
  data = [output.data for output in outputs if output.output_type == 'display_data']
  return [next(kind for kind in kinds if kind in x) for x in data]


# ---- as they are written


@pytest.mark.parametrize('name', NAMES)
def test_form(name):
  notebook = read(name)
  assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
  nbformat.validate(notebook)
  ids = [cell.id for cell in notebook.cells]
  assert len(set(ids)) == len(ids)
  assert [c.id for c in code(notebook) if 'parameters' in c.metadata.get('tags', [])] == [
    'parameters'
  ]
  assert [cell.id for cell in code(notebook)][:3] == ['parameters', 'setup', 'doctor']
  for before, cell in zip(notebook.cells, notebook.cells[1:]):
    if cell.cell_type == 'code':
      assert (cell.outputs, cell.execution_count) == ([], None), 'strip the outputs'
      assert before.cell_type == 'markdown' and TAKES.search(before.source), cell.id


@pytest.mark.parametrize('name', NAMES)
def test_cells_call_and_never_define(name):
  for cell in code(read(name)):
    assert not [node for node in ast.walk(tree(cell.source)) if isinstance(node, DEFINES)], cell.id
    # A command that fails ends the cell; the findings of doctor are for reading.
    checks = cell.source.count('assert _exit_code == 0')
    assert checks == (0 if cell.id == 'doctor' else len(shell(cell.source))), cell.id


@pytest.mark.parametrize('name', NAMES)
def test_after_a_restart_parameters_and_setup_are_enough_for_any_cell(name):
  notebook = read(name)
  known = {*dir(builtins), 'get_ipython', '_exit_code'}
  for id in ('parameters', 'setup'):
    used, made = names(cell_of(notebook, id).source)
    known |= made
    assert used <= known
  for cell in code(notebook):
    used, made = names(cell.source)
    assert used <= known | made, cell.id


@pytest.mark.parametrize('name', NAMES)
def test_commands_are_of_tools_and_flags_that_are_there(name, monkeypatch):
  monkeypatch.chdir(ROOT)
  notebook = read(name)
  given = values(notebook) | EXAMPLES
  for cell in code(notebook):
    for command in shell(cell.source) + listed(cell.source):
      if not command.startswith(('git clone ', 'python -m pip install ')):
        commands.parse(filled(command, given))


@pytest.mark.parametrize(
  'command, error',
  [
    ('python -m sg2jax.tools.generate --checkpoint=run --sed=1', UsageError),
    ('python -m sg2jax.tools.generat --checkpoint=run', ModuleNotFoundError),
    ('python -m sg2jax.tools.video --checkpoint=run --out={GONE}', KeyError),
    ('python -m sg2jax.main --config=configs/custom.py:64 --config.bach=1 --workdir=x', UsageError),
  ],
)
def test_a_wrong_command_is_found(command, error, monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(error):
    commands.parse(filled(command, {}))


VIEW = "command = [sys.executable, '-m', 'sg2jax.tools.view', f'--checkpoint={RUN}', '--port=0']\n"


@pytest.mark.parametrize(
  'source, flag',
  [
    (VIEW.replace('port', 'prot'), 'prot'),
    (VIEW + "if CLIP:\n  command += [f'--clop={CLIP}']", 'clop'),
    ("subprocess.run([sys.executable, '-m', 'sg2jax.tools.video', '--sed=1'])", 'sed'),
  ],
)
def test_a_wrong_flag_in_a_list_is_found(source, flag, monkeypatch):
  monkeypatch.chdir(ROOT)
  given = {'RUN': 'a run', 'CLIP': 'digits'}
  (command,) = listed(source)
  with pytest.raises(UsageError, match=f"'{flag}'"):
    commands.parse(filled(command, given))
  (right,) = listed(VIEW)
  commands.parse(filled(right, given))


def test_a_flag_that_no_list_of_a_command_has_is_found():
  with pytest.raises(AssertionError, match='--clip=digits'):
    listed(VIEW + "command.append('--clip=digits')")


def test_all_are_set_up_alike():
  assert len({cell_of(read(name), 'setup').source for name in NAMES}) == 1


# ---- set-up


def write_colab(home):
  """Stand-ins of Colab's package, whose Drive is a folder, and of the repository -> environment."""
  package = home / 'packages' / 'google' / 'colab'
  package.mkdir(parents=True)
  (package / '__init__.py').write_text('')
  # JAX asks for this module, too, where it sees the package.
  (package / 'output.py').write_text(
    'def serve_kernel_port_as_iframe(port, height):\n  print("port", port, "shown")\n'
  )
  mount = 'import os\n\ndef mount(path):\n  os.makedirs(path + "/MyDrive", exist_ok=True)\n'
  (package / 'drive.py').write_text(mount)
  remote = home / 'remote'
  for name in ('configs/quickstart.py', 'sg2jax/__init__.py'):
    (remote / name).parent.mkdir(parents=True)
    shutil.copy(ROOT / name, remote / name)
  identity = ['-c', 'user.name=x', '-c', 'user.email=x']
  for command in (['init', '-q'], ['add', '.'], [*identity, 'commit', '-q', '-m', 'x']):
    subprocess.run(['git', *command], cwd=remote, check=True)
  return os.environ | {'PYTHONPATH': str(home / 'packages')}


def test_setup_on_colab_clones_once_and_mounts_drive(tmp_path):
  env = write_colab(tmp_path)
  content = tmp_path / 'content'
  content.mkdir()
  lacking = Kernel(with_parameters('train_your_images', REPOSITORY=''), content)
  with lacking.setup_kernel(env=env), pytest.raises(CellExecutionError, match='set REPOSITORY'):
    lacking.run(['parameters', 'setup'])
  given = {'REPOSITORY': str(tmp_path / 'remote'), 'DRIVE': str(tmp_path / 'drive')}
  kernel = Kernel(with_parameters('train_your_images', **given), content)
  with kernel.setup_kernel(env=env):
    kernel.run(['parameters', 'setup'])
    (content / 'sg2jax' / 'mine').write_text('stays')
    kernel.run(['parameters', 'setup'])
  kernel = Kernel(kernel.nb, content)
  with kernel.setup_kernel(env=env):
    kernel.run(['parameters', 'setup'])
  assert text(kernel.nb, 'setup').strip().endswith(f'in {content / "sg2jax"}')
  assert (content / 'sg2jax' / 'mine').exists() and (tmp_path / 'drive' / 'MyDrive').exists()


# In front of Python's own: sg2jax is in no environment, and pip keeps what it was asked, and fails.
SITE = """
from importlib import metadata
there = metadata.distributions
metadata.distributions = lambda **where: [
  x for x in there(**where) if x.name != 'sg2jax' or x._path.suffix == '.egg-info'
]
"""
PIP = """
import pathlib, sys
constraints = pathlib.Path(sys.argv[-1]).read_text()
pathlib.Path('asked').write_text(' '.join(sys.argv[1:-1]) + '\\n' + constraints)
sys.exit(1)
"""


def test_setup_keeps_the_jax_of_the_runtime(tmp_path):
  env = write_colab(tmp_path)
  (tmp_path / 'packages' / 'sitecustomize.py').write_text(SITE)
  (tmp_path / 'packages' / 'pip').mkdir()
  (tmp_path / 'packages' / 'pip' / '__init__.py').write_text('')
  (tmp_path / 'packages' / 'pip' / '__main__.py').write_text(PIP)
  notes = tmp_path / 'remote' / 'sg2jax.egg-info'  # of a pip that has failed
  notes.mkdir()
  (notes / 'PKG-INFO').write_text('Metadata-Version: 2.1\nName: sg2jax\nVersion: 1\n')
  kernel = Kernel(with_parameters('quickstart'), tmp_path / 'remote')
  with kernel.setup_kernel(env=env), pytest.raises(CellExecutionError, match='restart the runtime'):
    kernel.run(['parameters', 'setup'])
  asked, *kept = (tmp_path / 'remote' / 'asked').read_text().splitlines()
  assert asked == 'install -q -r requirements.txt -c'
  assert {f'{x}=={importlib.metadata.version(x)}' for x in ('jax', 'jaxlib')} <= set(kept)
  assert all(line.startswith(('jax', 'libtpu')) for line in kept)


# ---- from end to end


def fields(**changes):
  """--config.FIELD=VALUE of a tiny run, for the shell; None: not this one."""
  tiny = runs.TINY | {'metrics': None} | changes
  return ' '.join(shlex.quote(f'--config.{k}={v}') for k, v in tiny.items() if v is not None)


@pytest.fixture
def env(tmp_path):
  """Of kernels: quick to compile, with a cache of their own."""
  return os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'SG2JAX_CACHE': str(tmp_path / 'cache'),
  }


def run_with_a_restart(notebook, half, env):
  """Half of the cells; a new kernel, in which parameters, set-up and the rest go on; all again."""
  ids = [cell.id for cell in code(notebook)]
  rest = ids[ids.index(half) + 1 :]
  kernel = Kernel(notebook)
  with kernel.setup_kernel(env=env):
    kernel.run(ids[: ids.index(half) + 1])
  kernel = Kernel(notebook)
  with kernel.setup_kernel(env=env):
    kernel.run(['parameters', 'setup', *rest])
    kernel.run(ids)


def test_quickstart(tmp_path, env):
  settings = fields(metrics_kimg=100, swd_images=32)
  given = {'RUN': str(tmp_path / 'a run'), 'SEEDS': '0-15', 'SETTINGS': settings}
  notebook = with_parameters('quickstart', **given)
  run_with_a_restart(notebook, 'train', env)
  assert 'ok       packages' in text(notebook, 'doctor')
  assert 'resuming at step 24' in text(notebook, 'train')
  assert 'swd' in text(notebook, 'evaluate')
  assert {id: shown(notebook, id) for id in ('grids', 'generate', 'python', 'mix', 'video')} == {
    'grids': ['image/png'] * 2,
    'generate': ['image/png'],
    'python': ['image/png'],
    'mix': ['image/png'],
    'video': ['text/html'],
  }


def kill_at_the_first_checkpoint(kernel, run):
  """In a thread: as a runtime ends that Colab takes away."""
  while not list(run.glob('checkpoints/*/manifest.json')):
    time.sleep(0.02)
  os.kill(kernel.km.provisioner.process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_train_your_images_goes_on_in_another_runtime(tmp_path, env):
  source = tmp_path / 'photos.zip'
  with zipfile.ZipFile(source, 'w') as archive:
    for i in range(40):
      archive.writestr(f'{i}.png', pictures.encode(pictures.noise(i)))
  drive = tmp_path / 'My Drive'
  given = {
    'SOURCE': str(source),
    'DATA': str(tmp_path / 'data'),
    'RUN': str(drive / 'mine'),
    'RESOLUTION': '8',
    'TOTAL_KIMG': 1000,  # it doesn't get there
    'SNAPSHOT_KIMG': runs.TINY['snapshot_kimg'],
    'SEEDS': '0-15',
    'SETTINGS': fields(resolution=None, total_kimg=None, snapshot_kimg=None),
  }
  notebook = with_parameters('train_your_images', **given)
  ids = [cell.id for cell in code(notebook)]
  kernel = Kernel(notebook)
  with pytest.raises(DeadKernelError), kernel.setup_kernel(env=env):
    thread = threading.Thread(target=kill_at_the_first_checkpoint, args=(kernel, drive / 'mine'))
    thread.start()
    kernel.run(ids)
  thread.join()
  shutil.rmtree(tmp_path / 'data')  # it was on the disk of the runtime
  last = runs.checkpoint_at(drive / 'mine').name
  given['TOTAL_KIMG'] = (int(last) + 24) * 8 / 1000
  notebook = with_parameters('train_your_images', **given)
  kernel = Kernel(notebook)
  with kernel.setup_kernel(env=env):
    kernel.run(ids)
    assert f'resuming at step {last},' in text(notebook, 'train')
    kernel.run(ids)
  assert f'resuming at step {int(last) + 24},' in text(notebook, 'train')
  assert [len(shown(notebook, id)) for id in ('augment', 'grids', 'generate', 'video')] == [
    1,
    3,
    1,
    1,
  ]
  assert 'swd' in text(notebook, 'evaluate')


@pytest.mark.slow
def test_use_a_trained_network(tmp_path, env, home):
  runs.finish(runs.start(home, tmp_path / 'trained'))
  source = tmp_path / 'theirs.npz'
  runs.call(export, f'--checkpoint={tmp_path / "trained"}', f'--dest={source}', '--format=nvidia')
  out = tmp_path / 'results'
  given = {
    'SOURCE': str(source),
    'RUN': str(tmp_path / 'imported'),
    'OUT': str(out),
    'SEEDS': '0-2',
    'WEIGHTS': '',
    'CLIP': 'digits',
    'BEFORE': 'a thin seven',
    'AFTER': 'a thick seven',
    'DISTANCE': 'pyramid',
    'STEPS': 5,
    'EDIT_STEPS': 2,
  }
  notebook = with_parameters('use_a_trained_network', **given)
  run_with_a_restart(notebook, 'mix', env)
  for id in ('import', 'generate', 'python', 'mix', 'project', 'directions', 'edit', 'stablehlo'):
    assert shown(notebook, id) == ['image/png'], id
  assert len(json.loads((out / 'projected' / 'projections.json').read_text())) > 0
  before = np.asarray(Image.open(out / 'edited' / 'before' / 'seed0000.png'))
  assert before.shape == (8, 8)


@pytest.mark.slow
@pytest.mark.parametrize('is_colab, clip', ((False, 'digits'), (True, '')))
def test_the_viewer_of_a_notebook(is_colab, clip, tmp_path, env):
  env |= write_colab(tmp_path) if is_colab else {}
  run = runs.random_run(tmp_path / 'run', (0.3, 0.3, 1, 1, 1), **runs.SMALL)
  given = {'RUN': str(run), 'OUT': str(tmp_path / 'out'), 'DRIVE': str(tmp_path / 'drive')}
  given['CLIP'] = clip
  kernel = Kernel(with_parameters('use_a_trained_network', **given))
  ended = nbformat.v4.new_code_cell('viewer.terminate()\nviewer.wait()')
  with kernel.setup_kernel(env=env):
    kernel.run(['parameters', 'setup', 'directions', 'view'])
    before = address_shown(kernel.nb)
    page = answer(before)
    assert 'sefa0' in page and ('a thick seven' in page) == bool(clip)
    kernel.run(['view'])
    assert 'sg2jax' in answer(address_shown(kernel.nb)) and not answer(before)
    kernel.execute_cell(ended, 0)
  assert not answer(address_shown(kernel.nb))
  # ---- one that can't start says why
  given['RUN'] = str(tmp_path / 'gone')
  kernel = Kernel(with_parameters('use_a_trained_network', **given))
  with kernel.setup_kernel(env=env), pytest.raises(CellExecutionError, match='gone'):
    kernel.run(['parameters', 'setup', 'view'])


def address_shown(notebook):
  """Of the viewer: what the cell prints, or the port that Colab was asked to show."""
  found = re.fullmatch(r'(http://127.0.0.1:\d+/)|port (\d+) shown', text(notebook, 'view').strip())
  return found[1] or f'http://127.0.0.1:{found[2]}/'


def answer(address):
  """The page at an address; '': nothing listens there."""
  try:
    return urllib.request.urlopen(address).read().decode()
  except urllib.error.URLError:
    return ''
