"""What all tools have in common: what is refused before any work, odd terminals, folders for the
cache.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import types

from absl import flags
from ml_collections import config_flags
import pytest

import sg2jax
from sg2jax import __main__, paths, pretrained
from sg2jax.faults import UsageError
from sg2jax.tools import flags as shared
from tests.runs import ROOT, call

# A tool without work: prints what it got.
TOOL = """
from absl import flags
from ml_collections import config_flags
from sg2jax import cli
flags.DEFINE_string('out', '', '')
flags.DEFINE_multi_string('weights', [], '')
flags.DEFINE_list('metrics', [], '')
CONFIG = config_flags.DEFINE_config_file('config', None, '')
def main(argv):
  import os, sys
  print('out', flags.FLAGS.out, CONFIG.value and CONFIG.value.batch, 'jax' in sys.modules,
        os.environ.get('JAX_COMPILATION_CACHE_DIR'))
cli.run(main, positional=1)
"""


@pytest.fixture
def tool(tmp_path):
  """Runs TOOL with arguments; env: {name: value, or None to be without}; -> (exit code, output,
  errors).
  """
  (tmp_path / 'tool.py').write_text(TOOL)

  def run(*args, **env):
    merged = os.environ | {'PYTHONPATH': str(ROOT), 'SG2JAX_CACHE': str(tmp_path / 'cache')} | env
    merged.pop(
      'JAX_COMPILATION_CACHE_DIR', None
    ) if 'JAX_COMPILATION_CACHE_DIR' not in env else None
    done = subprocess.run(
      [sys.executable, tmp_path / 'tool.py', *args],
      cwd=ROOT,
      capture_output=True,
      env={k: v for k, v in merged.items() if v is not None},
    )
    return (
      done.returncode,
      done.stdout.decode(errors='replace'),
      done.stderr.decode(errors='replace'),
    )

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


def define_flags():
  """As TOOL's."""
  flags.DEFINE_string('out', '', '')
  flags.DEFINE_multi_string('weights', [], '')
  flags.DEFINE_list('metrics', [], '')
  config_flags.DEFINE_config_file('config', None, '')


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
  'empty.py': ('', 'get_config'),
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
  (tmp_path / 'raises.py').write_text(CONFIGS['raises.py'][0])
  refused(tool(f'--config={tmp_path}/raises.py'), 'odd')
  (tmp_path / 'none.py').write_text(CONFIGS['none.py'][0])
  refused(tool(f'--config={tmp_path}/none.py'), 'NoneType')  # ml_collections warns of it, too


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
  command = [
    'setpriv',
    '--reuid',
    '12345',
    '--regid',
    '12345',
    '--clear-groups',
    '--inh-caps',
    '+dac_read_search',
    '--ambient-caps',
    '+dac_read_search',
    'env',
    '-u',
    'HOME',
    '-u',
    'SG2JAX_CACHE',
    f'TMPDIR={tmp_path / "tmp"}',
    f'PYTHONPATH={ROOT}',
    sys.executable,
  ]
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


# ---- sg2jax TOOL


def run_main(monkeypatch, *args):
  monkeypatch.setattr(sys, 'argv', ['sg2jax', *args])
  __main__.main()


def test_all_tools_are_listed_with_a_line_each(monkeypatch, capsys):
  run_main(monkeypatch)
  lines = capsys.readouterr().out.splitlines()[2:]
  names = [line.split()[0] for line in lines]
  assert names[0] == 'train' and {'generate', 'evaluate', 'minipaper', 'bench'} < set(names)
  assert not {'flags', '__init__', 'sheets'} & set(names)
  for name, line in zip(names, lines):
    summary = line.split(maxsplit=1)[1]
    assert summary[0].isupper() and summary.endswith('.') and len(line) <= 100, f'{name}: {line}'


def test_an_unknown_tool_is_2_and_names_the_nearest(monkeypatch, capsys):
  with pytest.raises(SystemExit) as e:
    run_main(monkeypatch, 'genrate')
  assert e.value.code == 2 and 'do you mean generate?' in capsys.readouterr().err


@pytest.mark.smoke
def test_a_tool_runs_by_its_name(tmp_path):
  """From anywhere, with its own flags in --help, and its own faults."""
  env = os.environ | {'PYTHONPATH': str(ROOT), 'SG2JAX_WEIGHTS': str(tmp_path)}
  run = lambda *args: subprocess.run(
    [sys.executable, '-m', 'sg2jax', 'fetch_weights', *args],
    cwd=tmp_path,
    env=env,
    capture_output=True,
    text=True,
  )
  done = run('--help')
  assert done.returncode == 0 and '--dest' in done.stdout and 'inception' not in done.stderr
  done = run('resnet')
  assert done.returncode == 2 and done.stderr.startswith('fetch_weights.py: NAME=resnet is unknown')


def test_configurations_find_each_other_from_where_the_user_stands(monkeypatch, tmp_path):
  """The installed command has its own folder in sys.path, not the user's."""
  monkeypatch.setattr(sys, 'path', [p for p in sys.path if p not in ('', str(ROOT))])
  monkeypatch.setattr(__main__.runpy, 'run_module', lambda name, **_: ran.append(name))
  monkeypatch.chdir(tmp_path)
  ran = []
  run_main(monkeypatch, 'train', '--config=x.py')
  assert ran == ['sg2jax.main'] and sys.path[0] == str(tmp_path)
  assert sys.argv[1:] == ['--config=x.py']


# ---- flags that several tools share


def define_all():
  """One of each kind of shared flag."""
  shared.define_checkpoint()
  shared.define_out('results')
  shared.define_seed('Of it.')
  shared.define_batch()
  shared.define_finite('lr', 0.1, 'Rate.', positive=True)
  shared.define_weights('inception=FILE')
  shared.define_seeds('seeds', '0-2', 'Numbers.')
  shared.define_psis('Truncation.')


TOOL_WITH_ALL = types.SimpleNamespace(
  __name__='tool', define_flags=define_all, main=lambda argv: flags.FLAGS.flag_values_dict()
)


@pytest.mark.parametrize(
  'args, said',
  [
    ('', '--checkpoint is missing; name a workdir, as in --checkpoint=runs/quickstart'),
    ('--checkpoint=', '--checkpoint is missing'),
    ('--checkpoint=r --seed=-1', '--seed=-1: -1 is not'),
    ('--checkpoint=r --seed=4294967296', 'in the range [0, 4294967295]'),
    ('--checkpoint=r --batch=-1', '--batch=-1: -1 is not a non-negative integer'),
    ('--checkpoint=r --lr=nan', '--lr=nan: must be a finite number above 0'),
    ('--checkpoint=r --lr=0', '--lr=0.0: must be a finite number above 0'),
    ('--checkpoint=r --weights=vgg16', 'must be NAME=PATH, with a NAME of inception'),
    ('--checkpoint=r --weights=vgg=x', 'must be NAME=PATH'),
    ('--checkpoint=r --seeds=3-1', "--seeds=3-1: '3-1' is no seed"),
    ('--checkpoint=r --seeds=4294967296', 'is no seed'),
    ('--checkpoint=r --psi=inf', '--psi=inf: must be finite numbers'),
    (f'--checkpoint=r --out={__file__}', 'is a file; name a folder'),
    ('--checkpoint=r --sed=1', "Unknown command line flag 'sed'. Did you mean: seed"),
  ],
)
def test_shared_flags_name_value_and_rule(args, said):
  with pytest.raises(UsageError, match=re.escape(said)):
    call(TOOL_WITH_ALL, *args.split())


def test_shared_flags_hand_over_values_and_are_defined_again_by_the_next_tool(monkeypatch):
  values = {}
  tool = types.SimpleNamespace(
    __name__='tool',
    define_flags=define_all,
    main=lambda argv: values.update(flags.FLAGS.flag_values_dict(), paths=shared.weights_paths()),
  )
  for _ in range(2):
    call(tool, '--checkpoint=r', '--seeds=3,5-7', '--psi=1,-0.5', '--weights=vgg16=a=b')
    assert values['seeds'] == [3, 5, 6, 7] and values['psi'] == [1, -0.5]
    assert values['paths'] == {'vgg16': 'a=b'} and values['lr'] == 0.1
    assert 'checkpoint' not in flags.FLAGS
