"""The command line: what is refused before any work, odd terminals, folders for the cache."""

import os
import pathlib
import subprocess
import sys
import tempfile
import types

from absl import flags
from ml_collections import config_flags
import pytest

import sg2jax
from sg2jax import cli, paths, pretrained
from sg2jax.faults import UsageError
from tests.runs import ROOT, call

# A tool without work: prints what it got.
TOOL = """
import os, sys
from absl import flags
from ml_collections import config_flags
from sg2jax import cli
flags.DEFINE_string('out', '', '')
config_flags.DEFINE_config_file('config', None, '')
def main(argv):
  config = flags.FLAGS.config
  print('out', flags.FLAGS.out, config and config.batch, 'jax' in sys.modules,
        os.environ.get('JAX_COMPILATION_CACHE_DIR'))
cli.run(main, positional=1)
"""


def define_flags():
  """As tools have them."""
  flags.DEFINE_string('out', '', '')
  flags.DEFINE_multi_string('weights', [], '')
  flags.DEFINE_list('metrics', [], '')
  config_flags.DEFINE_config_file('config', None, '')


@pytest.fixture
def tool(tmp_path):
  """Runs TOOL with arguments and environment -> (exit code, output, errors)."""
  (tmp_path / 'tool.py').write_text(TOOL)

  def run(*args, **env):
    env = {'PYTHONPATH': str(ROOT), 'SG2JAX_CACHE': str(tmp_path / 'cache')} | env
    env = {k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'} | env
    command = [sys.executable, tmp_path / 'tool.py', *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, env=env)
    output, errors = (text.decode(errors='replace') for text in (done.stdout, done.stderr))
    return done.returncode, output, errors

  return run


def refused(result, *said):
  """Whether a tool ended with 2 and one line that says all of it."""
  code, out, err = result
  assert code == 2 and not out and len(err.splitlines()) == 1, (code, out, err)
  assert all(text in err for text in said), err


ADDRESSES = {
  'gs://bucket/run': 'gcsfuse',
  's3://b/r': 'mount',
  'http://h/x': 'download it',
  'https://h/x.pkl': 'download it',
  'hdfs://n/x': 'mount it',
  'file:///home/x': 'without file://',
  'GS://b': 'gcsfuse',
  'abfs+x://y': 'mount it',
}


@pytest.mark.parametrize('address', ADDRESSES)
def test_addresses_are_no_paths(address):
  for given in (address, f'inception={address}', address.encode()):
    with pytest.raises(UsageError, match=ADDRESSES[address]):
      paths.check_local(given, '--flag')
  for given in (address, pathlib.Path(address)) if '+' not in address else (address,):
    with pytest.raises(UsageError, match=ADDRESSES[address]):
      sg2jax.load(given)


@pytest.mark.parametrize(
  'text',
  ['runs/x', '/a/b:c', 'C:/x', 'a=b', 'configs/custom.py:64', '', None, 3, 'x/gs://y', '://x'],
)
def test_others_are(text):
  paths.check_local(text)


def parse(*args):
  """What cli.parse makes of TOOL's flags: --config."""
  configs = []
  main = lambda argv: configs.append(flags.FLAGS.config)
  call(types.SimpleNamespace(__name__='tool', define_flags=define_flags, main=main), *args)
  return configs[0]


@pytest.mark.parametrize(
  'args, said',
  [
    (['--out=gs://b/x'], ['--out=gs://b/x', 'gcsfuse']),
    (['--weights=inception=s3://b/x'], ['--weights=inception=s3://b/x']),
    (['--metrics=a,https://b'], ['--metrics=https://b', 'download it']),
    (['hdfs://x'], ['hdfs://x', 'mount it']),
    (['--config=gs://b/c.py'], ['--config=gs://b/c.py']),
    (
      ['--config=configs/custom.py:64', '--config.data.dir=gs://b/x'],
      ['--config.data.dir=gs://b/x'],
    ),
    (
      ['--config=configs/custom.py:64', '--config.init_from=file:///x'],
      ['--config.init_from=file:///x', 'without file://'],
    ),
    (['--out=~nobody-here/x'], ['--out=~nobody-here/x', 'home folder ~nobody-here']),
  ],
)
def test_addresses_in_any_flag_are_refused(args, said):
  with pytest.raises(UsageError) as e:
    parse(*args)
  assert all(text in str(e.value) for text in said)


CONFIGS = {  # name: content (None: no file), what is said
  'missing.py': (None, 'there is no file'),
  'syntax.py': ('def get_config(:', 'syntax'),
  'none.py': ('def get_config(): pass', 'NoneType'),
  'dict.py': ('def get_config(): return {}', 'dict'),
  'raises.py': ('def get_config(): raise RuntimeError("odd\\nlines")', 'odd'),
  'name.py': ('x = undefined', 'undefined'),
  'import.py': ('import nothing_of_this_name', 'nothing_of_this_name'),
  'exit.py': ('import sys; sys.exit(0)', 'ended'),
  'open.py': ('open("/nowhere")', '/nowhere'),
  'args.py': ('def get_config(a): pass', 'argument'),
  'folder': ('/', 'is a folder'),
}


@pytest.mark.parametrize('name', CONFIGS)
def test_whatever_is_wrong_with_a_configuration_is_one_line(tmp_path, name):
  content, said = CONFIGS[name]
  path = tmp_path / name
  if content == '/':
    path.mkdir()
  elif content is not None:
    path.write_text(content)
  with pytest.raises(UsageError) as e:
    parse(f'--config={path}')
  assert said in str(e.value) and '\n' not in str(e.value)


def test_errors_of_a_configuration_are_one_line_and_2(tool, tmp_path):
  contents = {
    'raises': 'def get_config(): raise RuntimeError("odd\\nlines")',
    'NoneType': 'def get_config(): pass',  # of which ml_collections warns, too
    # In a process of its own: the module is loaded over the one of before, get_config and all.
    'get_config': '',
  }
  for said, content in contents.items():
    (tmp_path / 'config.py').write_text(content)
    refused(tool(f'--config={tmp_path}/config.py'), 'odd' if said == 'raises' else said)


@pytest.mark.parametrize(
  'args',
  [
    ['--config', 'configs/no.py'],
    ['-config=configs/no.py'],
    ['-config', 'configs/no.py'],
    ['--config=configs/no.py:64'],
    ['--out=x', '--config', 'configs/no.py', '--config.batch=3'],
  ],
)
def test_all_forms_of_the_flag(args):
  with pytest.raises(UsageError, match='there is no file configs/no.py'):
    parse(*args)
  good = [arg.replace('no.py:64', 'custom.py:64').replace('no.py', 'default.py') for arg in args]
  assert parse(*good).batch == (3 if '--config.batch=3' in args else parse(*good).batch)


def test_no_name_is_too_odd_to_be_printed(tool):
  name = b'x/\xff ' + '坏ü'.encode()
  for encoding in ('ascii', 'latin-1', 'utf-8'):
    code, out, err = tool(b'--out=' + name, PYTHONIOENCODING=encoding)
    assert code == 0 and out.startswith('out x/\\udcff ') and not err, (out, err)
    code, _, err = tool(b'--unknown=' + name, PYTHONIOENCODING=encoding)
    assert code == 2 and len(err.splitlines()) == 1, err


def test_runs_have_names_that_are_text(tmp_path, monkeypatch):
  """The library that reads checkpoints fails on others."""
  odd = os.fsencode(tmp_path) + b'/r\xff'
  os.makedirs(odd + b'/checkpoints')
  for path in (os.fsdecode(odd), pathlib.Path(os.fsdecode(odd)) / 'x', odd):
    with pytest.raises(UsageError, match='no UTF-8'):
      paths.check_text(path)
  with pytest.raises(UsageError, match='no UTF-8'):
    sg2jax.load(os.fsdecode(odd))
  paths.check_text(tmp_path / '写真 ü')
  monkeypatch.chdir(odd)
  with pytest.raises(UsageError, match='no UTF-8'):
    sg2jax.load('.')


def test_what_is_compiled_is_kept_in_the_cache(tool, tmp_path):
  # and without importing jax
  assert tool()[1].split() == ['out', 'None', 'False', str(tmp_path / 'cache' / 'jax')]
  assert tool(JAX_COMPILATION_CACHE_DIR='/mine')[1].split()[-1] == '/mine'


@pytest.mark.parametrize('value', ['gs://bucket/cache', '~nobody-here/cache'])
def test_folders_in_the_environment_are_of_this_machine(tool, monkeypatch, value):
  refused(tool(SG2JAX_CACHE=value), f'SG2JAX_CACHE={value}')
  monkeypatch.setenv('SG2JAX_WEIGHTS', value)
  with pytest.raises(UsageError, match=f'SG2JAX_WEIGHTS={value}'):
    pretrained.folders()


@pytest.mark.parametrize('home', [None, '', 'relative', __file__])
def test_without_a_home_folder(monkeypatch, tmp_path, home, caplog):
  """A user without passwd entry and HOME, or whose home can't be written to."""
  import pwd

  def unknown(_):
    raise KeyError

  monkeypatch.setattr(pwd, 'getpwuid', unknown)
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  monkeypatch.delenv('SG2JAX_CACHE', raising=False)
  monkeypatch.delenv('SG2JAX_WEIGHTS', raising=False)
  monkeypatch.delenv('HOME', raising=False)
  if home is not None:
    monkeypatch.setenv('HOME', home)
  paths._temporary.cache_clear()
  found = paths.cache()
  assert found == tmp_path / f'sg2jax-{os.getuid()}' and found.stat().st_mode & 0o777 == 0o700
  assert paths.cache() == found and pretrained.folders()[0] == found / 'weights'
  paths._temporary.cache_clear()
  found.chmod(0o777)  # others could put compiled code there
  assert paths.cache() != found and paths.cache().parent == tmp_path
  paths._temporary.cache_clear()
  monkeypatch.setenv('SG2JAX_CACHE', str(tmp_path / 'own'))
  assert paths.cache() == tmp_path / 'own'


def test_a_tool_runs_as_a_user_without_home_folder_and_passwd_entry(tool, tmp_path):
  """The whole way, where this machine can take such a user's place and lets it read these files."""
  user = (
    'setpriv --reuid 12345 --regid 12345 --clear-groups --inh-caps +dac_read_search --ambient-caps '
    '+dac_read_search env -u HOME -u SG2JAX_CACHE'
  )
  places = f'TMPDIR={tmp_path / "tmp"}', f'PYTHONPATH={ROOT}'
  command = [*user.split(), *places, sys.executable]
  (tmp_path / 'tmp').mkdir()
  (tmp_path / 'tmp').chmod(0o1777)
  if (
    os.getuid()
    or subprocess.run([*command, '-c', 'import absl, numpy'], capture_output=True).returncode
  ):
    pytest.skip('this machine has no such user')
  tool()  # writes it
  done = subprocess.run(
    [*command, tmp_path / 'tool.py'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env={k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'},
  )
  assert done.returncode == 0 and done.stdout.split()[-1] == str(
    tmp_path / 'tmp' / 'sg2jax-12345' / 'jax'
  ), done.stderr
  assert 'SG2JAX_CACHE=DIR' in done.stderr and 'Traceback' not in done.stderr


def test_a_missing_package_is_named_with_the_remedy(capsys):
  with pytest.raises(SystemExit) as e, cli.exit_codes():
    import no_such_package  # noqa: F401
  assert e.value.code == UsageError.code
  assert 'no_such_package is missing; pip install "sg2jax[train,eval,video]"' in (
    capsys.readouterr().err
  )
  with pytest.raises(ModuleNotFoundError), cli.exit_codes():
    import sg2jax.no_such_module  # noqa: F401 - a fault of ours keeps its traceback
