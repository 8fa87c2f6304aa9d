"""`prepare --runner`: Apache Beam's pipeline makes what threads make.

Skipped only where the extra `beam` isn't installed, as in the environment of all other tests: Beam
wants older pillow and protobuf. To run it, in an environment of its own:

  python -m venv beam && beam/bin/pip install -e .[train,beam] pytest pytest-xdist
  beam/bin/python -m pytest tests/test_prepare_beam.py
"""

import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest

from sg2jax.data import destination, images, prepare, shards
from sg2jax.faults import UsageError, WriteError
from sg2jax.tools import prepare as tool
from tests.pictures import encode, noise, odd_files, unusable_files, write_all
from tests.runs import ROOT, call

pytest.importorskip('apache_beam', reason='the extra `beam` is not installed, see the docstring')
TWO = '--beam_options=--direct_num_workers=2 --direct_running_mode=multi_processing'


def files_of_two_classes():
  """Usable, odd and unusable files in two folders."""
  odd = {f'a/{name}': content for name, (content, _) in odd_files().items()}
  bad = {f'b/{name}': content for name, (content, _) in unusable_files().items()}
  return odd | bad | {f'b/{i:03}.png': encode(noise(i)) for i in range(30)}


def contents(folder):
  return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


@pytest.mark.parametrize('kind', ['folder', 'zip'])
def test_the_same_files_and_report_as_threads_make(tmp_path, monkeypatch, kind):
  monkeypatch.setattr(shards, 'SHARD_IMAGES', 7)
  source = tmp_path / f'in.{kind}'
  if kind == 'folder':
    write_all(source, files_of_two_classes())
  else:
    with zipfile.ZipFile(source, 'w') as archive:
      for name, content in files_of_two_classes().items():
        archive.writestr(name, content)
  arguments = f'--source={source}', '--resolution=16', '--labels=folder'
  call(tool, *arguments, f'--dest={tmp_path}/threads')
  call(tool, *arguments, f'--dest={tmp_path}/beam', '--runner=DirectRunner')
  made = contents(tmp_path / 'threads')
  assert 'images-train.array_record-00006-of-00007' in made
  assert made == contents(tmp_path / 'beam')


def test_killed_with_two_workers_and_started_again(tmp_path):
  """Real processes. The second run makes only what the first one lacks."""
  pictures = [encode(noise(i, 128, 128)) for i in range(50)]
  write_all(tmp_path / 'in', {f'{i:04}.png': pictures[i % 50] for i in range(2500)})
  command = [sys.executable, '-m', 'sg2jax.tools.prepare', f'--source={tmp_path}/in']
  command += [f'--dest={tmp_path}/out', '--resolution=16', '--runner=DirectRunner', TWO]
  env = os.environ | {'JAX_PLATFORMS': 'cpu'}
  folder = tmp_path / 'out' / destination.BUILDING
  with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL) as process:
    while not list(folder.glob('*.json')):
      assert process.poll() is None
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
  assert 'of 5 shards are there already' in done.stderr
  prepare.build(str(tmp_path / 'in'), str(tmp_path / 'threads'), images.Options(16, 16))
  assert contents(tmp_path / 'out') == contents(tmp_path / 'threads')


@pytest.mark.parametrize(
  'runner, options, words',
  [
    ('NoRunner', '', 'NoRunner'),
    ('DirectRunner', '--direct_num_worker=2', "has no 'direct_num_worker'"),
    ('DirectRunner', '--direct_num_workers=two', 'invalid int value'),
    ('DirectRunner', '--job_name="x', 'No closing quotation'),
  ],
)
def test_options_that_beam_refuses(tmp_path, runner, options, words):
  place = f'--source={tmp_path}/in', f'--dest={tmp_path}/out', '--resolution=16'
  with pytest.raises(UsageError, match=words):
    call(tool, *place, f'--runner={runner}', f'--beam_options={options}')
  assert not os.listdir(tmp_path)


def test_what_goes_wrong_in_a_worker_is_one_line(tmp_path, monkeypatch):
  write_all(tmp_path / 'in', {f'{i}.png': encode(noise(i)) for i in range(3)})
  place = f'--source={tmp_path}/in', f'--dest={tmp_path}/out', '--resolution=16'

  def move_away(folder, shard):
    save_task(folder, shard)
    os.rename(tmp_path / 'in', tmp_path / 'elsewhere')

  save_task = shards.save_task
  monkeypatch.setattr(shards, 'save_task', move_away)
  with pytest.raises(WriteError, match='a worker does not see --source=') as error:
    call(tool, *place, '--runner=DirectRunner')
  assert '\n' not in str(error.value)
