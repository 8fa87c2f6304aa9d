"""The command line: what is refused before any work, odd terminals, folders for the cache."""

import os
import pwd
import subprocess
import sys
import tempfile
import types

from absl import flags
import pytest

from sg2jax import cli, faults, paths, pretrained
from sg2jax.faults import UsageError
from sg2jax.tools import flags as shared
from tests.runs import ROOT, call

# A tool without work: prints what it got.
TOOL = """
from absl import flags
import jax
from sg2jax import cli
flags.DEFINE_string('out', '', '')
def main(argv):
  print('out', flags.FLAGS.out, jax.config.jax_compilation_cache_dir)
  if len(argv) > 1:
    import gc, os, signal, time
    kill = lambda *_: gc.callbacks.clear() or os.kill(os.getpid(), signal.SIGTERM)
    if argv[1] == 'end':
      kill()
    gc.callbacks.append(kill)  # Python drops what is raised there
    gc.collect()
    time.sleep(20)
    print('not ended')
cli.run(main, positional=1)
"""


@pytest.fixture
def tool(tmp_path):
  """Runs TOOL with arguments, on a terminal of ASCII -> (exit code, output, errors)."""
  (tmp_path / 'tool.py').write_text(TOOL)

  def run(*args, prefix=(), **env):
    env = os.environ | {'PYTHONPATH': str(ROOT), 'PYTHONIOENCODING': 'ascii'} | env
    env.pop('JAX_COMPILATION_CACHE_DIR', None)
    command = [*prefix, sys.executable, tmp_path / 'tool.py', *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, env=env, text=True)
    return done.returncode, done.stdout, done.stderr

  return run


# ---- addresses


ADDRESSES = [
  'gs://bucket/run',
  's3://b/r',
  'http://h/x',
  'https://h/x.pkl',
  'hdfs://n/x',
  'file:///home/x',
  'GS://b',
  'abfs+x://y',
]


@pytest.mark.parametrize('address', ADDRESSES)
def test_addresses_are_no_paths(address):
  for given in (address, f'inception={address}', f'a,{address}', address.encode()):
    with pytest.raises(UsageError, match=r'--flag: .* mount the bucket \(gcsfuse'):
      paths.check_local(given, '--flag')


@pytest.mark.parametrize(
  'text',
  ['runs/x', '/a/b:c', 'C:/x', 'a=b', 'configs/custom.py:64', '', None, 3, 'x/gs://y', '://x'],
)
def test_others_are(text):
  paths.check_local(text)


def define_flags():
  """As tools have them."""
  shared.define_config()
  shared.define_out('results')
  flags.DEFINE_multi_string('weights', [], '')


def parse(*args):
  """The configuration that a tool with these flags gets."""
  configs = []
  main = lambda argv: configs.append(flags.FLAGS.config)
  call(types.SimpleNamespace(__name__='tool', define_flags=define_flags, main=main), *args)
  return configs[0]


@pytest.mark.parametrize(
  'args, said',
  [
    (['--dest=gs://b/x'], '--dest=gs://b/x: .* no gs:// address'),
    (['--dest', 'gs://b/x'], 'gs://b/x: .* no gs:// address'),
    (['--weights=inception=s3://b/x'], '--weights=inception=s3://b/x'),
    (['hdfs://x'], 'hdfs://x'),
    (['--config=gs://b/c.py'], '--config=gs://b/c.py'),
    (['--config=configs/custom.py:64', '--config.data.dir=gs:/b/x'], '--config.data.dir=gs:/b/x'),
    (['--out=~nobody-here/x'], '--out=~nobody-here/x: the home folder ~nobody-here is unknown'),
  ],
)
def test_addresses_in_any_flag_are_refused(args, said):
  with pytest.raises(UsageError, match=said):
    parse(*args)


@pytest.mark.parametrize('value', ['gs://bucket/cache', '~nobody-here/cache'])
def test_folders_in_the_environment_are_of_this_machine(monkeypatch, value):
  for name, function in (('SG2JAX_WEIGHTS', pretrained.folders), ('SG2JAX_CACHE', paths.cache)):
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f'{name}={value}'):
      function()


# ---- configurations


CONFIGS = {  # name: (content, what is said)
  'missing.py': (None, r'No such file.*/missing.py.* run from the folder that holds configs/'),
  'syntax.py': ('def get_config(:', 'syntax'),
  'none.py': ('def get_config(): pass', r'none.py: get_config\(\) returns None; it must return a'),
  'dict.py': ('def get_config(): return {"x": 1}', 'must return a ConfigDict'),
  'raises.py': ('def get_config(): raise RuntimeError("odd\\nlines")', '^odd lines$'),
  'name.py': ('x = undefined', 'undefined'),
  'import.py': ('import nothing_of_this_name', 'nothing_of_this_name'),
  'open.py': ('open("/nowhere")', '/nowhere'),
  'args.py': ('def get_config(a): pass', "^get_config.* argument: 'a'$"),
  'folder': ('/', 'Is a directory'),
  'exit.py': (
    'import sys\ndef get_config(): sys.exit("no\\ndata")',
    'exit.py .* SystemExit: no data',
  ),
  'exit0.py': ('def get_config(): raise SystemExit', 'exit0.py ends with SystemExit'),
  'key.py': ('def get_config(): {}["MY_DATA"]', "key.py ends with KeyError: 'MY_DATA'$"),
  'attribute.py': ('def get_config(): 1 .x', "AttributeError: 'int' object has no attribute 'x'$"),
}


@pytest.mark.parametrize('override', [False, True])
@pytest.mark.parametrize('name', CONFIGS)
def test_whatever_is_wrong_with_a_configuration_is_one_line(tmp_path, name, override):
  content, said = CONFIGS[name]
  path = tmp_path / name
  if content == '/':
    path.mkdir()
  elif content is not None:
    path.write_text(content)
  # With a blank, too, as absl knows it.
  args = ['--config', str(path), '--config.batch=3'] if override else [f'--config={path}']
  with pytest.raises(UsageError) as e:
    parse(*args)
  assert '\n' not in str(e.value)
  if not override or name != 'dict.py':
    assert e.match(said)


@pytest.mark.parametrize(
  'field, said',
  [
    ('batchh=3', 'no such field: batchh Did you mean "batch" instead of "batchh"?; configs/'),
    ('g.taps=3', '--config has no such field: taps; configs/default.py has all'),
    ('batch=x', 'flag --config.batch=x: must be a whole number'),
  ],
)
def test_fields_are_named(field, said):
  assert parse('--config', 'configs/default.py', '--config.batch=3').batch == 3
  with pytest.raises(UsageError) as e:
    parse('--config=configs/default.py', f'--config.{field}')
  assert said in str(e.value)


# ---- how tools end


def test_a_tool_by_itself(tool, tmp_path):
  """Names are escaped; what is compiled goes to the cache; SIGTERM cleans up."""
  cache = {'SG2JAX_CACHE': str(tmp_path)}
  name = os.fsdecode(b'x/\xff ' + '坏ü'.encode())
  assert tool(f'--out={name}', **cache) == (0, f'out x/\\udcff \\u574f\\xfc {tmp_path}/jax\n', '')
  code, out, err = tool(f'--unknown={name}', **cache)
  assert (code, out, len(err.splitlines())) == (2, '', 1) and err.startswith('tool: Unknown')
  assert tool('end', **cache)[0] == 143
  assert tool('drop', **cache)[::2] == (143, '')
  assert 'unexpected argument' in tool('end', 'more', **cache)[2]


@pytest.mark.parametrize('tool', ['edit', 'video'])
def test_one_of_several_processes_is_refused_where_one_does_all(tool):
  done = subprocess.run(
    [sys.executable, '-m', f'sg2jax.tools.{tool}', '--checkpoint=run'],
    cwd=ROOT,
    env=os.environ | {'JAX_NUM_PROCESSES': '2', 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert done.stderr.startswith(f'{tool}: JAX_NUM_PROCESSES=2: this tool runs as one process')


def test_a_closed_terminal(monkeypatch):
  ran = []
  for name in ('stdout', 'stderr'):
    monkeypatch.setattr(sys, name, None)
  monkeypatch.setattr(sys, 'excepthook', sys.excepthook)
  monkeypatch.setattr(cli.app, 'run', lambda main, **_: ran.append(main))
  cli.run(print)
  assert ran


def ends(capsys, error):
  """(exit code, what is said) after an error that nothing catches."""
  with pytest.raises(SystemExit) as e:
    cli.except_hook(type(error), error, None)
  return e.value.code, capsys.readouterr().err.partition(': ')[2]


@pytest.mark.parametrize('debug', ['--debug', '--debug=true'])
def test_errors_that_a_user_can_mend_are_a_line_and_an_exit_code(capsys, monkeypatch, debug):
  assert ends(capsys, faults.WriteError('full')) == (5, 'full\n')
  assert ends(capsys, KeyboardInterrupt())[0] == 130
  code, said = ends(capsys, ModuleNotFoundError("No module named 'x'", name='x'))
  assert (code, said[:55]) == (2, "No module named 'x'; pip install \"sg2jax[train,eval,tex")
  # a fault of ours keeps its traceback
  cli.except_hook(KeyError, KeyError('x'), None)
  cli.except_hook(ModuleNotFoundError, ModuleNotFoundError('x', name='sg2jax.x'), None)
  monkeypatch.setattr(sys, 'argv', ['tool', debug])
  with pytest.raises(SystemExit, match='5'):  # the code that scripts look at is the same
    cli.except_hook(faults.WriteError, faults.WriteError('full'), None)
  err = capsys.readouterr().err
  assert [line.split(':')[0] for line in err.splitlines()] == [
    'KeyError',
    'ModuleNotFoundError',
    'sg2jax.faults.WriteError',
  ]


# ---- without a home folder


@pytest.mark.parametrize('home', [None, '', 'relative', __file__])
def test_without_a_home_folder(monkeypatch, tmp_path, home):
  """A user without passwd entry and HOME, or whose home can't be written to."""

  def unknown(_):
    raise KeyError

  monkeypatch.setattr(pwd, 'getpwuid', unknown)
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  for name in ('SG2JAX_CACHE', 'SG2JAX_WEIGHTS', 'HOME'):
    monkeypatch.delenv(name, raising=False)
  if home is not None:
    monkeypatch.setenv('HOME', home)
  paths._temporary.cache_clear()
  found = paths.cache()
  # Of this user alone: others could put compiled code there.
  assert found.parent == tmp_path and found.stat().st_mode & 0o777 == 0o700
  assert paths.cache() == found and pretrained.folders()[0] == found / 'weights'
  paths._temporary.cache_clear()
  monkeypatch.setenv('SG2JAX_CACHE', str(tmp_path / 'own'))
  assert paths.cache() == tmp_path / 'own'


def test_a_tool_runs_as_a_user_without_home_folder_and_passwd_entry(tool, tmp_path):
  """The whole way, where this machine can take such a user's place and lets it read these files."""
  user = (
    'setpriv --reuid 12345 --regid 12345 --clear-groups --inh-caps +dac_read_search --ambient-caps '
    f'+dac_read_search env -u HOME -u SG2JAX_CACHE TMPDIR={tmp_path}'
  ).split()
  tmp_path.chmod(0o1777)
  check = [*user, sys.executable, '-c', 'import absl, numpy']
  if os.getuid() or subprocess.run(check, capture_output=True).returncode:
    pytest.skip('this machine has no such user')
  code, out, err = tool(prefix=user)
  assert code == 0 and out.split()[1].startswith(f'{tmp_path}/sg2jax-'), err
  assert 'SG2JAX_CACHE=DIR' in err and 'Traceback' not in err
