"""The tool doctor: each finding with a stand-in for what is broken, and that it always ends."""

import errno
import fcntl
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading

import pytest

from configs import default, quickstart
from sg2jax import faults, files, pretrained
from sg2jax.data import digits
from sg2jax.tools import doctor, doctor_machine, doctor_run
from sg2jax.tools.doctor_findings import exit_code, look, note, ok, problem
from sg2jax.training import manifest
from tests.runs import ROOT, call

CPU = [{'platform': 'cpu', 'kind': 'cpu'}]


def found(function, *args):
  """The lines of a look."""
  return [finding.line() for finding in look('it', lambda: function(*args))[0]]


def the(lines, *words):
  """The one line with the words."""
  (line,) = [line for line in lines if all(word in line for word in words)]
  return line


def executable(path, text):
  path.write_text(f'#!/bin/sh\n{text}\n')
  path.chmod(0o755)


# ---- looks


def test_a_look_that_raises_or_hangs_is_a_finding():
  def raises():
    yield ok('first')
    raise ZeroDivisionError('of a\nbroken package')

  def refuses():
    raise faults.WriteError('disk full; make room')
    yield

  def hangs():
    yield ok('first')
    threading.Event().wait(60)

  (first, second), ended = look('it', raises)
  assert ended and first == ok('first')
  assert 'it: ZeroDivisionError: of a broken package' in second.line()
  (refused,), _ = look('it', refuses)
  assert (refused.level, refused.code) == ('problem', 5) and 'make room' in refused.what
  (first, late), ended = look('it', hangs, seconds=0.05)
  assert not ended and first == ok('first') and 'no answer in 0.05 s' in late.what


def test_the_exit_code_is_that_of_the_problems():
  fine = [ok('a'), note('b')]
  assert exit_code(fine) == 0
  assert exit_code([*fine, problem('c', 'd', 7)]) == 7
  assert exit_code([*fine, problem('c', 'd', 7), problem('c', 'd', 5)]) == 2


# ---- packages


def test_packages_that_lack_or_are_too_old(monkeypatch):
  real = importlib.metadata.version
  there = {'flax': '0.11.9', 'jaxlib': '0.10.2', 'jax-cuda13-plugin': '0.10.1'}

  def version(name):
    if name in ('optax', 'scipy'):
      raise importlib.metadata.PackageNotFoundError(name)
    return there.get(name) or real(name)

  lines = found(doctor_machine.packages)
  assert not [line for line in lines if line.startswith('problem')]
  assert real('jax') in the(lines, 'packages:') and the(lines, '[train]').startswith('ok')
  monkeypatch.setattr(importlib.metadata, 'version', version)
  lines = found(doctor_machine.packages)
  assert the(lines, 'flax').startswith('problem  flax 0.11.9 is older than 0.12 ')
  assert 'pip install "flax>=0.12"' in the(lines, 'flax')
  assert the(lines, 'optax').startswith('problem  optax is not installed')
  assert the(lines, '[eval]').startswith('note     extra [eval]: scipy is not installed')
  assert the(lines, 'cuda13').endswith('pip install -U "jax[cuda13]"')
  monkeypatch.setattr('platform.python_version', lambda: '3.10.12')
  assert the(found(doctor_machine.packages), 'Python 3.10.12 is older').startswith('problem')


def test_requirements_are_the_same_in_a_clone_and_installed(monkeypatch, tmp_path):
  python, here = doctor_machine.requirements()
  texts = [f'{x}; extra == "{x.extra}"' if x.extra else str(x) for x in here]
  monkeypatch.setattr(doctor_machine, '__file__', str(tmp_path / 'a' / 'b' / 'c.py'))
  monkeypatch.setattr(importlib.metadata, 'requires', lambda name: texts)
  monkeypatch.setattr(importlib.metadata, 'metadata', lambda name: {'Requires-Python': '>=3.11'})
  assert doctor_machine.requirements() == (python, here) and python == '3.11'
  assert {'', 'train', 'eval', 'text', 'video', 'gcs'} <= {x.extra for x in here}


# ---- devices


@pytest.mark.parametrize(
  'code, seconds, said',
  [
    ('raise ImportError("libfoo.so: no such file")', 60, 'ImportError: libfoo.so'),
    (
      'import sys; sys.exit("Traceback\\na.RuntimeError: no cuda\\nfor details set X")',
      60,
      'a.RuntimeError: no cuda',
    ),
    ('import os; os._exit(11)', 60, 'Python ended with 11'),
    ('import time; time.sleep(60)', 0.2, 'no device started in 0.2 s'),
  ],
)
def test_jax_that_does_not_start(monkeypatch, tmp_path, code, seconds, said):
  (tmp_path / 'jax.py').write_text(code)
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  devices, error = doctor_machine.jax_devices(seconds)
  assert devices == [] and said in error
  (line,) = found(doctor_machine.devices, devices, error)
  assert line.startswith('problem') and said in line and '\u2192' in line


@pytest.mark.parametrize('driver, build', [('580.65.06', 'cuda13'), ('550.54.14', 'cuda12')])
def test_an_accelerator_that_jax_does_not_use(monkeypatch, tmp_path, driver, build):
  executable(tmp_path / 'nvidia-smi', f'echo "NVIDIA L4, {driver}, 20000, 23034"')
  monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  lines = found(doctor_machine.devices, CPU, '')
  assert the(lines, 'NVIDIA L4 is there').endswith(f'pip install "jax[{build}]"')
  assert the(lines, '20000 of 23034 MiB').startswith('note')
  # The right build is there, and fails.
  monkeypatch.setattr(doctor_machine, '_version', lambda name: '0.10.2')
  assert 'CUDA_ERROR_X' in the(found(doctor_machine.devices, CPU, 'CUDA_ERROR_X'), 'NVIDIA L4 is')
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  assert the(found(doctor_machine.devices, CPU, ''), 'unset').startswith('note')
  gpu = {'platform': 'gpu', 'kind': 'NVIDIA L4', 'bytes_limit': 18e9}
  lines = found(doctor_machine.devices, [gpu, gpu], '')
  assert '2 x NVIDIA L4 (gpu, 18.0 GB each)' in lines[0] and 'uses the CPU' not in str(lines)


def test_a_tpu_is_known_by_dev_or_by_pci(monkeypatch, tmp_path):
  monkeypatch.setattr(doctor_machine, 'nvidia_smi', list)
  monkeypatch.setattr(doctor_machine, 'PCI', f'{tmp_path}/*')
  monkeypatch.setattr(os.path, 'exists', lambda path: False)  # a GPU's device
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  devices = {'nic': ('0x1ae0', '0x020000'), 'disk': ('0x1ae0', '0x010802'), 'x': ('0x10de', '0xff')}
  for name, (vendor, kind) in devices.items():
    (tmp_path / name).mkdir()
    (tmp_path / name / 'vendor').write_text(f'{vendor}\n')
    (tmp_path / name / 'class').write_text(f'{kind}\n')
  assert doctor_machine.accelerators() == {}
  (tmp_path / 'x' / 'vendor').write_text('0x1ae0\n')
  line = the(found(doctor_machine.devices, CPU, ''), 'tpu on PCI is there')
  assert line.startswith('problem') and line.endswith('pip install "jax[tpu]"')


@pytest.mark.parametrize(
  'platforms, said, remedy',
  [
    ('cpu', 'RuntimeError: jaxlib is version 0.9.0, but', 'pip install -U "jax>=0.10" jaxlib'),
    ('cuda', 'AssertionError', 'unset JAX_PLATFORMS .it is cuda., or .*pip install "jax.cuda13'),
    ('tpu,cpu', 'RuntimeError: no tpu', 'or install what it names: pip install "jax.tpu.'),
    ('', 'RuntimeError: busy', 'end the process'),
  ],
)
def test_the_remedy_is_that_of_what_jax_says(platforms, said, remedy, monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', platforms)
  (line,) = found(doctor_machine.devices, [], said)
  assert re.search(f'{said}.*{remedy}', line)


def test_where_packages_come_from(monkeypatch):
  def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)

  def imports():
    import no_such_package_as_this

    yield no_such_package_as_this

  assert found(imports)[0].endswith('pip install "sg2jax[train,eval,text,video,view]"')
  monkeypatch.setattr(importlib.metadata, 'version', missing)
  assert found(imports)[0].endswith(f'pip install -e "{ROOT}[train,eval,text,video,view]"')
  assert f'pip install -e "{ROOT}[video]"' in the(found(doctor_machine.packages), '[video]')


def test_a_broken_nvidia_smi_is_none(monkeypatch, tmp_path):
  executable(tmp_path / 'nvidia-smi', 'echo "NVIDIA-SMI has failed"; exit 9')
  monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
  assert doctor_machine.nvidia_smi() == []


# ---- memory, disk, cache, weights


def test_a_disk_that_is_full_or_read_only(monkeypatch, tmp_path):
  place = tmp_path / 'a' / 'b'
  monkeypatch.setattr(files, 'free_bytes', lambda path: 20e9)
  assert found(doctor_machine.disk, 'workdir', place, 'ELSEWHERE') == [
    f'ok       workdir {place}: 20.0 GB free'
  ]
  monkeypatch.setattr(files, 'free_bytes', lambda path: 0.5e9)
  (full,), _ = look('it', lambda: doctor_machine.disk('workdir', place, 'ELSEWHERE'))
  assert (full.level, full.code) == ('problem', 5)
  monkeypatch.setattr(files, 'free_bytes', lambda path: 5e9)
  assert found(doctor_machine.disk, 'workdir', place, 'ELSEWHERE')[0].startswith('note')

  def refused(dir):
    raise OSError(errno.EROFS, 'Read-only file system')

  (tmp_path / 'file').touch()
  line = found(doctor_machine.disk, 'cache', tmp_path / 'file' / 'x', 'export X=DIR')[0]
  assert f'{tmp_path}/file is a file' in line and line.endswith('export X=DIR')
  monkeypatch.setattr(tempfile, 'TemporaryFile', refused)
  (line,) = found(doctor_machine.disk, 'workdir', place, 'ELSEWHERE')
  assert 'Read-only file system' in line and line.endswith('ask for the permission, or ELSEWHERE')
  assert not place.parent.exists()
  assert 'Read-only' in the(found(doctor_machine.temporary), 'problem  temporary files')


def test_memory_of_a_container(monkeypatch, tmp_path):
  real = pathlib.Path.read_text
  texts = {
    '/proc/meminfo': 'MemTotal: 64000000 kB\nMemAvailable: 60000000 kB\n',
    '/sys/fs/cgroup/memory.max': '2000000000',
    '/sys/fs/cgroup/memory.current': '1500000000',
  }
  monkeypatch.setattr(pathlib.Path, 'read_text', lambda p: texts.get(str(p)) or real(p))
  (line,) = found(doctor_machine.memory)
  assert line.startswith('problem  memory: 0.5 of 2.0 GB free')
  texts['/sys/fs/cgroup/memory.max'] = 'max'
  assert found(doctor_machine.memory) == ['ok       memory: 61.4 of 65.5 GB free']


def test_the_cache_and_what_is_in_it(monkeypatch, tmp_path):
  monkeypatch.setenv('SG2JAX_CACHE', str(tmp_path / 'cache'))
  assert found(doctor_machine.cache)[0].endswith('GB free') and not (tmp_path / 'cache').exists()
  (tmp_path / 'cache' / 'jax').mkdir(parents=True)
  (tmp_path / 'cache' / 'jax' / 'x').write_bytes(b'\0' * 10_000_000)
  assert 'jax 0.01' in found(doctor_machine.cache)[1]
  monkeypatch.setattr(doctor_machine, 'LARGE_CACHE', 1e6)
  assert f'rm -r {tmp_path}/cache' in found(doctor_machine.cache)[1]
  monkeypatch.delenv('SG2JAX_CACHE')
  monkeypatch.setenv('HOME', '')
  (line,) = found(doctor_machine.cache)
  assert line.startswith('note') and line.endswith('export SG2JAX_CACHE=DIR')


def test_weights_that_are_missing_or_wrong(monkeypatch, tmp_path):
  monkeypatch.setenv('SG2JAX_WEIGHTS', str(tmp_path))
  monkeypatch.setenv('SG2JAX_CACHE', str(tmp_path / 'cache'))
  lines = found(doctor_machine.weights)
  assert all(line.startswith('note') for line in lines)
  assert the(lines, 'inception').endswith('fetch_weights inception') and len(lines) == 4
  (tmp_path / pretrained.FILES['inception'].name).write_bytes(b'torn')
  place = tmp_path / pretrained.FILES['clip-rn50'].name
  place.touch()
  os.truncate(place, pretrained.FILES['clip-rn50'].bytes)
  lines = found(doctor_machine.weights)
  assert '4 bytes instead of 95,628,359' in the(lines, 'problem')
  assert the(lines, 'clip').startswith('ok')


# ---- a run


@pytest.fixture
def run(tmp_path):
  """A run with two whole checkpoints."""
  (tmp_path / 'config.json').write_text(json.dumps({'keep': 2, 'total_kimg': 60}))
  (tmp_path / 'metrics.jsonl').write_text('{"step": 5, "nimg": 12500}\n')
  for step in (3, 5):
    folder = tmp_path / 'checkpoints' / str(step)
    (folder / 'state').mkdir(parents=True)
    (folder / 'state' / '_CHECKPOINT_METADATA').write_text('{}')
    (folder / 'state' / 'x').write_bytes(b'x' * 1_000_000)
    manifest.seal(folder, {'format': manifest.FORMAT, 'step': step})
  return tmp_path


def test_a_run_and_its_newest_whole_checkpoint(run, monkeypatch):
  lines = found(doctor_run.workdir, str(run))
  assert not [line for line in lines if line.startswith('problem')]
  assert the(lines, 'run:') == 'ok       run: 12.5 of 60 kimg'
  assert 'step 5, 1.0 MB, whole' in the(lines, 'newest checkpoint')
  assert 'keep=2' in the(lines, 'room for')
  before = sorted(run.rglob('*'))
  (run / 'checkpoints' / '5' / 'state' / 'x').write_bytes(b'y' * 1_000_000)
  lines = found(doctor_run.workdir, str(run))
  assert 'step 3' in the(lines, 'newest checkpoint') and 'from step 3' in the(
    lines, 'damaged', 'SHA-256'
  )
  assert sorted(run.rglob('*')) == before
  (run / 'checkpoints' / '3' / 'manifest.json').unlink()
  (run / 'config.json').write_text('{')
  findings, _ = look('it', lambda: doctor_run.workdir(str(run)))
  assert [f.code for f in findings if f.level == 'problem'] == [2, 6, 6]
  monkeypatch.setattr(files, 'free_bytes', lambda path: 5e5)
  (run / 'checkpoints' / '5' / 'state' / 'x').write_bytes(b'x' * 1_000_000)
  assert the(found(doctor_run.workdir, str(run)), 'room for').startswith('problem')


def test_a_run_whose_files_are_odd(run):
  (run / 'metrics.jsonl').write_bytes(b'{"step": 1}\n\xff\xfe')
  (run / 'config.json').write_text('{"keep": "many"}')
  lines = found(doctor_run.workdir, str(run))
  assert 'the next start cuts it off' in the(lines, 'torn') and the(lines, 'newest checkpoint')
  assert '2.0 MB more for keep=2' in the(lines, 'room for')
  (run / 'metrics.jsonl').unlink()
  (run / 'metrics.jsonl').mkdir()
  (run / 'config.json').unlink()
  lines = found(doctor_run.workdir, str(run))
  assert the(lines, 'metrics.jsonl').endswith('move it away') and the(lines, 'newest checkpoint')
  assert the(lines, 'no config.json').startswith('problem')


def test_a_run_that_another_process_holds(run):
  (run / '.lock').write_text('4711 on elsewhere')
  assert 'in use' not in str(found(doctor_run.workdir, str(run)))
  with open(run / '.lock') as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    assert 'in use by process 4711 on elsewhere' in the(found(doctor_run.workdir, str(run)), 'note')


def test_a_workdir_that_is_not_there_or_a_file(tmp_path):
  assert 'training makes it' in the(found(doctor_run.workdir, f'{tmp_path}/a'), 'note')
  (tmp_path / 'file').touch()
  assert 'name a folder' in the(found(doctor_run.workdir, f'{tmp_path}/file'), 'is a file')
  assert 'training begins one' in str(found(doctor_run.workdir, str(tmp_path)))


# ---- a data set, a configuration, the command


def test_a_data_set(tmp_path):
  place = digits.prepare(tmp_path, 8, 8)
  (line,) = found(doctor_run.data, str(place))
  assert line.startswith(f'ok       data {place}: 1,797 images 8x8x1') and ', hash ' in line
  (tmp_path / 'photos').mkdir()
  (bad,), _ = look('it', lambda: doctor_run.data(str(tmp_path / 'photos')))
  assert (bad.level, bad.code) == ('problem', 3) and 'sg2jax.tools.prepare' in bad.remedy


def test_a_configuration_and_what_it_needs(monkeypatch, tmp_path):
  monkeypatch.setenv('SG2JAX_WEIGHTS', str(tmp_path))
  monkeypatch.setenv('SG2JAX_CACHE', str(tmp_path / 'cache'))
  quick = f'--config={ROOT}/configs/quickstart.py'
  look_at = lambda *args: found(doctor_run.configuration, [quick, *args], CPU, 'runs/a')
  lines = look_at('--config.metrics=("fid1k",)')
  assert 'fetch_weights inception' in the(lines, 'problem')
  assert the(lines, 'next').endswith('--workdir=runs/a') and 'sg2jax plan' in the(lines, 'memory')
  assert not [line for line in look_at() if line.startswith('problem')]
  assert 'config.batch=0 must be 1 or more' in the(look_at('--config.batch=0'), 'problem')
  assert 'device=gpu, but JAX sees' in the(look_at('--config.device=gpu'), 'problem')
  missing = the(look_at('--config.data.name=', f'--config.data.dir={tmp_path}/no'), 'problem')
  assert f'{tmp_path}/no' in missing
  (line,) = found(doctor_run.configuration, ['--config=nowhere.py'], CPU, '')
  assert 'nowhere.py' in line and line.endswith('from the folder that holds configs/')
  assert 'is not there' in the(look_at(f'--config.init_from={tmp_path}/no'), 'problem')
  (alone,) = found(doctor_run.configuration, ['--config.batch=8'], CPU, '')
  assert alone.endswith('--config=configs/quickstart.py')


def test_a_workdir_of_another_configuration(run):
  there = quickstart.get_config().to_dict() | {'resolution': 64}
  (run / 'config.json').write_text(json.dumps(there))
  quick = [f'--config={ROOT}/configs/quickstart.py']
  lines = found(doctor_run.configuration, quick, CPU, str(run))
  assert 'resolution: 64 there, 32 here' in the(lines, 'problem') and 'next' not in lines[-1]


def test_after_a_run_that_is_finished_comes_what_uses_it(run):
  config = quickstart.get_config()
  (run / 'config.json').write_text(json.dumps(config.to_dict()))
  quick = [f'--config={ROOT}/configs/quickstart.py']
  images = 1000 * config.total_kimg
  for step, nimg, is_finished in (
    (5, 1000, False),
    (9, images, False),  # its checkpoint isn't there: it was killed before, or is damaged
    (5, images, True),
  ):
    (run / 'metrics.jsonl').write_text(json.dumps({'step': step, 'nimg': nimg}) + '\n{"st')
    line = the(found(doctor_run.configuration, quick, CPU, str(run)), 'next')
    assert ('generate, evaluate' in line) == is_finished
    assert f'sg2jax train {quick[0]} --workdir={run}' in line
  (run / 'metrics.jsonl').unlink()
  (run / 'metrics.jsonl').mkdir()
  line = the(found(doctor_run.configuration, quick, CPU, str(run)), 'next')
  assert 'sg2jax train' in line


def test_a_run_that_does_not_say_keeps_what_the_default_does():
  assert default.get_config().keep == doctor_run.KEEP


def test_the_command_prints_a_line_each_and_exits(monkeypatch, capsys, tmp_path):
  monkeypatch.setattr(doctor_machine, 'jax_devices', lambda: (CPU, ''))
  monkeypatch.setattr(doctor_machine, 'accelerators', dict)
  monkeypatch.setattr(files, 'free_bytes', lambda path: 20e9)
  monkeypatch.setenv('SG2JAX_CACHE', str(tmp_path))
  call(doctor, f'--workdir={tmp_path}')
  *lines, empty, last = capsys.readouterr().out.splitlines()
  assert all(line.split()[0] in ('ok', 'note', 'problem') for line in lines) and not empty
  assert last.startswith('0 problem(s)')
  with pytest.raises(SystemExit) as e:
    call(doctor, f'--data={tmp_path}')
  assert e.value.code == 3
  assert doctor.take_config(['--config=a.py', '--data=b', '--config.batch', '8', '--x']) == (
    ['--data=b', '--x'],
    ['--config=a.py', '--config.batch', '8'],
  )


def test_the_command_stands_a_broken_jax_and_a_broken_configuration(tmp_path):
  (tmp_path / 'jax.py').write_text('raise ImportError("libfoo.so: no such file")')
  (tmp_path / 'broken.py').write_text('1 / 0')
  env = os.environ | {'PYTHONPATH': f'{tmp_path}:{ROOT}', 'SG2JAX_CACHE': '/proc/no/cache'}
  done = subprocess.run(
    [sys.executable, '-m', 'sg2jax', 'doctor', f'--config={tmp_path}/broken.py', '--workdir=w'],
    cwd=tmp_path,
    env=env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2 and 'Traceback' not in done.stdout + done.stderr
  lines = done.stdout.splitlines()
  assert 'libfoo.so' in the(lines, 'JAX starts no device') and 'mend JAX' in done.stdout
  assert the(lines, '/proc/no/cache').startswith('problem')
