"""The whole list of bad input: exit code, value and remedy in one line, soon, and nothing created.

Each tool is called in this process as its command line does; the last tests start real processes.
"""

import os
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest

from sg2jax import cli, main
from sg2jax.lab import text_study
from sg2jax.tools import (
  adversarial,
  analyze,
  attribute,
  bench,
  convert,
  directions,
  edit,
  evaluate,
  export,
  fetch_weights,
  generate,
  minipaper,
  plan,
  prepare,
  project,
  video,
  view,
)
from sg2jax.training import checkpoint
from tests.runs import ROOT, SMALL, TINY, call, random_run, xla_flags
from tests.test_checkpoint import rewrite

SECONDS = 5
NETWORK = SMALL | {'batch': 4}


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with all that bad input may name; tests leave it as it is."""
  place = tmp_path_factory.mktemp('place')
  (place / 'file').write_text('not a picture')
  (place / 'empty').mkdir()
  (place / 'pictures').mkdir()
  for i in range(12):
    Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(place / f'pictures/{i}.png')
  where = [f'--source={place}/pictures', f'--dest={place}/grey8']
  call(prepare, *where, '--resolution=8', '--channels=1')
  (place / 'broken').mkdir()
  for path in (place / 'grey8').iterdir():
    data = path.read_bytes()
    (place / 'broken' / path.name).write_bytes(data[: len(data) // 2])
  random_run(place / 'run', (0.3, 0.3, 1, 1, 1), **NETWORK)
  random_run(place / 'newer', (0.3, 0.3, 1, 1, 1), **NETWORK)
  rewrite(place / 'newer/checkpoints/3', format=checkpoint.FORMAT + 1)
  return place


def tree(folder):
  """What is in a folder, with the size of each file."""
  return {str(path): path.stat().st_size for path in folder.rglob('*') if path.is_file()} | {
    str(path): None for path in folder.rglob('*') if path.is_dir()
  }


# A run of a tiny network on the digits, less what a row changes.
TRAIN = {'config': 'configs/quickstart.py', 'workdir': '@/new'} | {
  f'config.{name}': value for name, value in TINY.items()
}
OWN = {'config.data.name': '', 'config.data.labels': False}  # a data set that was prepared
# (tool, arguments, exit code, the value that is named, what else is said: the remedy). @ is the
# folder above; --NAME=VALUE of main comes on top of TRAIN.
ROWS = [
  # ---- an unknown key, a wrong type
  (main, '--config.loss.r1_gama=1', 2, 'r1_gama', 'Did you mean "r1_gamma"'),
  (main, '--config.lossy.r1_gamma=1', 2, 'lossy', 'Did you mean "loss"'),
  (main, '--wrkdir=x', 2, 'wrkdir', 'Did you mean: workdir'),
  (plan, '--config=configs/quickstart.py --config.btch=1', 2, 'btch', 'Did you mean "batch"'),
  (bench, '--config=configs/quickstart.py --config.btch=1', 2, 'btch', 'Did you mean "batch"'),
  (minipaper, '--out=@/new --set=btch=1', 2, 'btch', 'batch'),
  (main, '--config.batch=many', 2, 'batch=many', 'whole number'),
  (main, '--config.batch=8.5', 2, 'batch=8.5', 'whole number'),
  (main, '--config.total_kimg=soon', 2, 'total_kimg=soon', 'number'),
  (main, '--config.data.mirror=maybe', 2, 'data.mirror=maybe', 'True or False'),
  (main, '--config.metrics=3', 2, 'metrics=(3,)', "such as ('fid50k_full',)"),
  (main, '--config.g.architecture=3', 2, 'architecture=3', 'choose from'),
  (minipaper, '--out=@/new --set=batch=many', 2, 'batch=many', 'whole number'),
  (generate, '--checkpoint=@/run --out=@/new --batch=x', 2, 'batch=x', 'whole number'),
  # ---- resolution
  (main, '--config.resolution=100', 2, 'resolution=100', 'try 96x96'),
  (main, '--config.resolution=0', 2, 'resolution=0', '4'),
  (main, '--config.resolution=big', 2, 'resolution=big', 'whole number'),
  (main, '--config.resolution=(8,8,8)', 2, 'resolution=(8, 8, 8)', '(height, width)'),
  (main, 'OWN --config.resolution=16', 3, '8x8, resolution says 16x16', 'set resolution=(8, 8)'),
  (minipaper, '--out=@/new --resolution=48', 2, '48', '16, 32, 64'),
  (prepare, '--source=@/pictures --dest=@/new --resolution=100', 2, '100', 'try 96x96'),
  (prepare, '--source=@/pictures --dest=@/new --resolution=x', 2, '=x', 'such as'),
  # ---- channels
  (main, 'OWN --config.data.channels=3', 3, 'have 1 channels, the', 'set data.channels=1'),
  (main, '--config.data.channels=5', 3, 'says 5', 'set data.channels=1'),
  (main, '--config.data.channels=0', 2, 'data.channels=0', '1 or more'),
  # ---- batch
  (main, '--config.batch=0', 2, 'batch=0', '1 or more'),
  (main, '--config.batch=-8', 2, 'batch=-8', '1 or more'),
  (main, '--config.microbatch=3', 2, 'microbatch=3', 'try 9'),
  (main, '--config.microbatch=-1', 2, 'microbatch=-1', '0 or more'),
  (main, '--config.batch=6', 2, 'batch=6', 'try 4 or 8'),
  (main, '--config.batch=7 --config.d.mbstd_group_size=1', 2, 'batch=7', 'try 6 or 8'),
  (generate, '--checkpoint=@/run --out=@/new --batch=-1', 2, '--batch=-1', 'non-negative'),
  (evaluate, '--checkpoint=@/run --batch=-1', 2, '--batch=-1', 'non-negative'),
  # ---- kimg and intervals
  *[
    (main, f'--config.{name}={value}', 2, f'{name}={value}', 'a finite number above 0')
    for name, value in (
      ('total_kimg', '0.0'),
      ('tick_kimg', '-1.0'),
      ('snapshot_kimg', 'nan'),
      ('metrics_kimg', '0.0'),
      ('ema.kimg', 'inf'),
    )
  ],
  (main, '--config.loss.r1_interval=-1', 2, 'loss.r1_interval=-1', '0 or more'),
  (main, '--config.loss.pl_interval=-1', 2, 'loss.pl_interval=-1', '0 or more'),
  (main, '--config.keep=0', 2, 'keep=0', '1 or more'),
  (main, '--config.watchdog_seconds=-1', 2, 'watchdog_seconds=-1', '0 or more'),
  (minipaper, '--out=@/new --kimg=0', 2, 'kimg=0', 'above 0'),
  (minipaper, '--out=@/new --kimg=nan', 2, 'kimg=nan', 'above 0'),
  (bench, '--config=configs/quickstart.py --rounds=0', 2, '--rounds=0', 'positive'),
  # ---- gamma, learning rates, psi, probabilities
  (main, '--config.loss.r1_gamma=-1', 2, 'loss.r1_gamma=-1', '0 or more'),
  (main, '--config.loss.r1_gamma=nan', 2, 'loss.r1_gamma=nan', 'finite'),
  (main, '--config.opt.g_lr=0.0', 2, 'opt.g_lr=0.0', 'above 0'),
  (generate, '--checkpoint=@/run --out=@/new --psi=nan', 2, '--psi=nan', 'such as'),
  (generate, 'sweep --checkpoint=@/run --sheet=@/new.png --psi=1,inf', 2, 'inf', 'finite'),
  (video, '--checkpoint=@/run --out=@/new.mp4 --psi=inf', 2, '--psi=inf', 'such as'),
  (directions, 'pca --checkpoint=@/run --psi=x', 2, '--psi=x', 'such as'),
  (main, '--config.loss.mixing_prob=1.5', 2, 'loss.mixing_prob=1.5', '[0, 1]'),
  (main, '--config.loss.mixing_prob=-0.1', 2, 'loss.mixing_prob=-0.1', '[0, 1]'),
  (main, '--config.data.holdout=1.0', 2, 'data.holdout=1.0', '[0, 1)'),
  (main, '--config.data.holdout=-0.1', 2, 'data.holdout=-0.1', '[0, 1)'),
  (evaluate, '--checkpoint=@/run --part=holdout', 2, '--part=holdout', '--part=training'),
  (main, '--config.opt.beta1=1.0', 2, 'opt.beta1=1.0', '[0, 1)'),
  # ---- unknown names
  (main, '--config.g.architecture=skp', 2, 'g.architecture=skp', 'choose from orig, skip'),
  (main, '--config.d.architecture=', 2, 'd.architecture=', 'choose from orig, skip'),
  (main, "--config.metrics=('fid50',)", 2, "'fid50'", 'choose from fid50k_full'),
  (evaluate, '--checkpoint=@/run --metrics=fid50', 2, "'fid50'", 'choose from fid50k_full'),
  (main, "--config.metrics=('swd',)", 2, 'swd is logged at every snapshot', 'leave it out'),
  (main, '--config.d.freeze_layers=8', 2, 'd.freeze_layers=8', 'at most 4'),
  (main, '--config.precision=low', 2, 'precision=low', 'choose from default'),
  (main, '--config.opt.formulation=jax', 2, 'formulation=jax', 'choose from pytorch'),
  (minipaper, '--out=@/new --cells=z', 2, '--cells=z', 'choose from'),
  (generate, 'draw --checkpoint=@/run', 2, 'KIND=draw', 'choose from images'),
  (analyze, 'thing --checkpoint=@/run', 2, 'KIND=thing', 'choose from'),
  (directions, 'lda --checkpoint=@/run', 2, 'METHOD=lda', 'choose from pca'),
  (
    export,
    '--checkpoint=@/run --dest=@/new --format=onnx',
    2,
    'format=onnx',
    'safetensors',
  ),
  (plan, '--config=configs/quickstart.py --device=v9', 2, 'v9', 'v5e'),
  (fetch_weights, 'resnet', 2, 'NAME=resnet', 'choose from'),
  # ---- data sets
  (main, 'OWN --config.data.dir=@/nowhere', 3, '@/nowhere', 'sg2jax.tools.prepare'),
  (main, 'OWN --config.data.dir=@/empty', 3, '@/empty', 'sg2jax.tools.prepare'),
  (main, 'OWN --config.data.dir=@/file', 3, '@/file', 'sg2jax.tools.prepare'),
  (main, 'OWN --config.data.dir=@/broken', 3, '@/broken', 'make it again'),
  (main, 'OWN --config.data.dir=', 2, "data.dir=''", 'sg2jax.tools.prepare'),
  (main, '--config.data.name=digitz', 3, 'digitz', 'sg2jax.tools.prepare'),
  (evaluate, '--checkpoint=@/run --data=@/empty', 3, '@/empty', 'sg2jax.tools.prepare'),
  (prepare, '--source=@/nowhere --dest=@/new --resolution=8', 3, '@/nowhere', 'folder'),
  (
    prepare,
    '--source=@/empty --dest=@/new --resolution=8',
    3,
    '@/empty',
    'no file in it',
  ),
  (
    project,
    '--checkpoint=@/run --images=@/empty --distance=l2',
    3,
    '@/empty',
    'picture',
  ),
  (
    project,
    '--checkpoint=@/run --images=@/nowhere --distance=l2',
    3,
    '@/nowhere',
    'picture',
  ),
  (
    attribute,
    '--checkpoint=@/run --reals=@/empty --distance=l2',
    3,
    '@/empty',
    'picture',
  ),
  (main, 'OWN --config.batch=16', 3, '12 images, fewer than batch=16', 'to 12 or less'),
  (main, 'OWN --config.data.labels=True', 3, '@/grey8', 'data.labels=False'),
  (generate, '--checkpoint=@/run --out=@/new --class=cat', 2, '--class=cat', 'class'),
  # ---- weights
  (main, "--config.metrics=('fid50k_full',)", 7, '@/weights', 'fetch_weights inception'),
  (evaluate, '--checkpoint=@/run --metrics=ppl2_wend', 7, '@/weights', 'fetch_weights'),
  (project, '--checkpoint=@/run --images=@/pictures', 7, '@/weights', 'fetch_weights'),
  (
    convert,
    '--source=@/nowhere.pkl --dest=@/new',
    7,
    '@/nowhere.pkl',
    'name a network file',
  ),
  (convert, '--source=@/file --dest=@/new', 7, '@/file', 'is refused'),
  # ---- places to write to
  (main, '--workdir=/proc/new', 5, '/proc/new', 'cannot write'),
  (main, '--workdir=@/file', 2, '@/file', 'name a directory'),
  (main, '--workdir=@/file/in/it', 2, '@/file', 'name a directory'),
  (main, '--workdir=@/run', 2, 'another configuration (', 'use another workdir'),
  (main, 'RUN --workdir=@/newer', 6, 'newer/checkpoints/3', 'update sg2jax'),
  (generate, '--checkpoint=@/newer --out=@/new', 6, 'newer/checkpoints/3', 'update sg2jax'),
  (evaluate, '--checkpoint=@/newer', 6, 'newer/checkpoints/3', 'update sg2jax'),
  (export, '--checkpoint=@/newer --dest=@/new/', 6, 'newer/checkpoints/3', 'update sg2jax'),
  (generate, '--checkpoint=@/empty --out=@/new', 6, '@/empty', 'workdir, one step'),
  (generate, '--checkpoint=@/run --out=@/file', 2, '@/file', 'name a folder'),
  (generate, '--checkpoint=@/run --sheet=@/file/x.png', 2, '@/file', 'name a folder'),
  (evaluate, '--checkpoint=@/run --out=@/file', 2, '@/file', 'name a folder'),
  (video, '--checkpoint=@/run --out=@/file/x.gif', 2, '@/file', 'name a folder'),
  (directions, 'pca --checkpoint=@/run --out=@/file', 2, '@/file', 'name a folder'),
  (analyze, 'phase --checkpoint=@/run --out=@/file', 2, '@/file', 'name a folder'),
  (
    project,
    '--checkpoint=@/run --images=@/pictures --out=@/file',
    2,
    '@/file',
    'name a folder',
  ),
  (
    attribute,
    '--checkpoint=@/run --reals=@/pictures --out=@/file',
    2,
    '@/file',
    'name a folder',
  ),
  (minipaper, '--out=@/file', 2, '@/file', 'name a folder'),
  (convert, '--source=@/file --dest=@/file', 2, '@/file', 'name a folder'),
  (convert, '--source=@/file --dest=@/run', 2, '@/run', 'empty or not there yet'),
  (
    export,
    '--checkpoint=@/run --dest=@/file/x.safetensors',
    2,
    '@/file',
    'name a folder',
  ),
  (fetch_weights, 'vgg16 --dest=@/file', 2, '@/file', 'name a folder'),
  (
    prepare,
    '--source=@/pictures --dest=@/file --resolution=8',
    2,
    '@/file',
    'choose another folder',
  ),
  (bench, '--config=configs/quickstart.py --json=@/empty', 2, '@/empty', 'name a file'),
  (plan, '--config=configs/quickstart.py --json=@/empty', 2, '@/empty', 'name a file'),
  (plan, '--config=configs/quickstart.py --json=@/file/x', 2, '@/file', 'name a folder'),
  (main, '--config.init_from=@/nowhere', 6, '@/nowhere', 'name a workdir, one of its'),
  # ---- seeds
  (generate, '--checkpoint=@/run --out=@/new --seeds=3-1', 2, 'seeds=3-1', 'as in 0-31'),
  (generate, '--checkpoint=@/run --out=@/new --seeds=', 2, 'seeds=', 'as in 0-31'),
  (generate, '--checkpoint=@/run --out=@/new --seeds=1,,2', 2, 'seeds=1,,2', 'as in 0-31'),
  (
    generate,
    'mix --checkpoint=@/run --sheet=@/new.png --cols=a',
    2,
    'cols=a',
    'as in 0-31',
  ),
  (video, '--checkpoint=@/run --out=@/new.gif --seeds=-1', 2, 'seeds=-1', 'as in 0-31'),
  (attribute, '--checkpoint=@/run --reals=@/pictures --own=x', 2, 'own=x', 'as in 0-31'),
  (evaluate, '--checkpoint=@/run --seed=-1', 2, '--seed=-1', 'range'),
  # ---- CLIP
  *[
    (
      tool,
      f'{words} --clip=clip-vit-b-23',
      7,
      '--clip=clip-vit-b-23',
      'name a file, or one of digits',
    )
    for tool, words in (
      (edit, 'text --checkpoint=@/run --source=six --target=seven --out=@/new'),
      (edit, 'nada --checkpoint=@/run --source=seven --target=six --out=@/new'),
      (adversarial, '--checkpoint=@/run --classifier=digits --texts=six=>seven --out=@/new'),
      (text_study, '--checkpoint=@/run --out=@/new'),
      (view, '--checkpoint=@/run --port=0'),
    )
  ],
  # ---- devices
  *[
    (main, f'--config.device={device}', 2, f'device={device}', 'pip install "jax[cuda13]"')
    for device in ('gpu', 'tpu', 'accelerator')
  ],
  (main, '--config.device=cuda', 2, 'device=cuda', 'choose from gpu'),
  (plan, '--config=configs/quickstart.py --config.device=gpu', 2, 'device=gpu', 'jax[cuda13]'),
  (bench, '--config=configs/ffhq.py', 2, 'device=accelerator', '--config.device=cpu'),
]


def arguments(tool, text, place, home):
  """The words of a row as a command line."""
  words = text.replace('@', str(place)).split()
  if tool is not main:
    return words
  given = TRAIN | {'config.data.dir': home / 'data'}
  if words[0] == 'OWN':
    given |= OWN | {'config.data.dir': place / 'grey8'}
  if words[0] == 'RUN':  # as of the workdir
    given = {'config': 'configs/default.py', 'config.data.dir': place / 'grey8'}
    given |= {f'config.{name}': value for name, value in NETWORK.items()}
    given |= {'config.g.variant': "{'mapping_lr_mul': 1.0}"}
  given |= dict(word.lstrip('-').split('=', 1) for word in words if '=' in word)
  if '--wrkdir' in text:
    given |= {'workdir': place / 'new'}
  return [f'--{name}={value}'.replace('@', str(place)) for name, value in given.items()]


def name_of(row):
  tool = row[0].__name__.rpartition('.')[2]
  return f'{tool} {row[1]}'.replace('@/', '').replace('/', ':')


@pytest.mark.parametrize('row', ROWS, ids=name_of)
def test_bad_input_is_told_in_a_line_and_nothing_is_created(place, home, monkeypatch, capsys, row):
  tool, text, code, value, remedy = row
  monkeypatch.setenv('SG2JAX_CACHE', str(place / 'cache'))
  monkeypatch.setenv('SG2JAX_WEIGHTS', str(place / 'weights'))
  before = tree(place)
  began = time.process_time()
  with pytest.raises(Exception) as e:
    call(tool, *arguments(tool, text, place, home))
  seconds = time.process_time() - began
  monkeypatch.setattr(sys, 'argv', ['tool'])
  with pytest.raises(SystemExit) as end:  # other errors than faults are shown, and don't exit
    cli.except_hook(e.type, e.value, e.tb)
  said = capsys.readouterr().err
  problems = [text for text in (value.replace('@', str(place)), remedy) if text not in said]
  assert (end.value.code, problems, said.count('\n')) == (code, [], 1), said
  assert seconds < SECONDS
  assert tree(place) == before


# ---- real processes


@pytest.mark.parametrize(
  'devices, words, code, value',
  [
    (1, '--config.batch=0', 2, 'batch=0 must be 1 or more'),
    (3, '', 2, 'batch=8 must be a multiple of the 3 devices; try 6 or 9'),
  ],
)
def test_as_a_user_sees_it(place, home, tmp_path, devices, words, code, value):
  flags = [x for x in arguments(main, f'{words} --workdir={tmp_path}/run', place, home) if x]
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} {xla_flags()}',
    'SG2JAX_CACHE': str(tmp_path / 'cache'),
  }
  began = time.monotonic()
  done = subprocess.run(
    [sys.executable, '-m', 'sg2jax.main', *flags], cwd=ROOT, env=env, capture_output=True, text=True
  )
  # Twice as long: the machine may be busy, and Python and JAX start, too.
  assert time.monotonic() - began < 2 * SECONDS
  assert done.returncode == code and value in done.stderr and len(done.stderr.splitlines()) == 1
  assert not done.stdout and not (tmp_path / 'run').exists()
