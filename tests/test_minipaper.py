"""The comparison tool with runs that are faked, and, slowly, real."""

from functools import partial
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
from PIL import Image
import pytest

from configs import minipaper as preset
from configs import paper
from sg2jax import build, checks, faults
from sg2jax.lab import minipaper, tables
from sg2jax.lab.tables import CELLS
from sg2jax.tools import minipaper as tool
from tests.runs import ROOT, call

# ---- configurations


@pytest.mark.parametrize('cell', CELLS)
@pytest.mark.parametrize('side', [16, 64])
def test_every_cell_is_the_papers_scaled_down(cell, side):
  c, whole = preset.get_config(f'{cell},{side}'), paper.get_config(cell)
  checks.check(c)
  generator, discriminator = build.networks(c, 0)
  assert generator.synthesis.resolution == discriminator.resolution == (side, side)
  assert (c.g.architecture, c.d.architecture) == (whole.g.architecture, whole.d.architecture)
  assert c.loss.r1_gamma * 1024**2 == pytest.approx(whole.loss.r1_gamma * side**2)
  assert (
    c.g.fmap_base / side == whole.g.fmap_base / 1024
    and c.batch == 16
    and not c.data.mirror
    and c.data.labels
  )
  same = ('r1_interval', 'pl_interval', 'pl_weight', 'mixing_prob')
  assert [c.loss[name] for name in same] == [
    whole.loss[name] for name in same
  ] and c.opt == whole.opt


@pytest.mark.parametrize('arg, kimg', [('a,16', 30), ('b', 30), ('c', 1), ('d,64', 100)])
def test_growth_takes_the_same_part_of_any_budget(arg, kimg):
  c = preset.get_config(arg)
  c.total_kimg = float(kimg)
  full = paper.get_config('a')
  full.resolution = 1024
  growth, whole = build.growth(c), build.growth(full)
  end = next(i for i in range(1001) if not growth.lod(i * kimg))
  assert end == 336 == next(i for i in range(1001) if not whole.lod(i * 25_000))
  assert (
    growth.stage(kimg * 1000).g_lr
    == growth.stage(kimg * 1000).d_lr
    == whole.stage(25_000_000).g_lr
    == 0.003
  )
  assert growth.stage(kimg * 1000).batch == growth.stage(0).batch == 16


def test_unknown_cell_of_the_preset_is_refused():
  with pytest.raises(ValueError, match='RES=24'):
    preset.get_config('a,24')
  with pytest.raises(ValueError, match='e:Gskip-Dresnet'):
    preset.get_config('g')


# ---- the tool


def test_plan_of_what_is_asked_for(tmp_path):
  pair = 'e:Gorig-Dorig'
  runs = minipaper.plan(tmp_path, [pair, 'e', 'e'], 2)
  assert [(run.cell, run.seed) for run in runs] == [(pair, 0), ('e', 0), (pair, 1), ('e', 1)]
  assert runs[2].workdir == tmp_path / 'e-Gorig-Dorig' / 'seed1'
  settings = {'kimg': 2.0, 'resolution': 32, 'set': {'data.dir': 'a=b', 'batch': '8'}}
  command = minipaper.command(runs[2], settings)
  assert command[3] == '--config=configs/minipaper.py:e:Gorig-Dorig,32'
  assert command[5:] == [
    '--config.seed=1',
    '--config.total_kimg=2.0',
    '--config.data.dir=a=b',
    '--config.batch=8',
  ]
  assert len({run.workdir for run in minipaper.plan(tmp_path, CELLS, 2)}) == 30


@pytest.mark.parametrize(
  'args, said',
  [
    ('', '--out is missing; as in python -m'),
    ('--out=OUT --cells=a,g', '--cells=a,g: choose from a, b, c, d, e, f, msg, e:Gorig'),
    ('--out=OUT --cells=', '--cells=: choose from'),
    ('--out=OUT --seeds=0', '--seeds=0: 0 is not'),
    ('--out=OUT --set=batch', 'FIELD=VALUE'),
    ('--out=OUT --set=total_kimg=1', '--kimg and'),
    ('--out=OUT --set=seed=1', 'use --seeds'),
  ],
)
def test_what_cannot_work_is_named(args, said, tmp_path):
  with pytest.raises(faults.UsageError, match=re.escape(said)):
    call(tool, *args.replace('OUT', str(tmp_path / 'out')).split())
  assert not (tmp_path / 'out').exists()


class Stop:
  """A signal that comes, or not."""

  def __init__(self, came=False):
    self.came = came

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def __bool__(self):
    return self.came

  def leave(self, text):
    raise faults.Interrupted(text)


class Lab:
  """The tool with fakes of training and measuring, which note what was trained."""

  def __init__(self, monkeypatch, out):
    self.out = out
    self.codes = {}  # 'CELL seedK': exit code of its training
    self.numbers = {}  # more of each run
    self.stop = Stop()
    monkeypatch.setattr(minipaper, 'start', self.start)
    monkeypatch.setattr(minipaper, 'measure_run', self.measure)
    monkeypatch.setattr(tool, 'Stop', lambda: self.stop)

  def start(self, command, stop):
    workdir = pathlib.Path(command[4].removeprefix('--workdir='))
    self.trained.append(f'{workdir.parent.name} {workdir.name}')
    (workdir / 'images').mkdir(parents=True, exist_ok=True)
    (workdir / 'checkpoints').mkdir(exist_ok=True)
    for name in 'reals', 'fakes_000001', 'fakes_000002':
      Image.new('L', (64, 64)).save(workdir / 'images' / f'{name}.png')
    return self.codes.get(self.trained[-1], 0)

  def measure(self, run, stop):
    names = [name for name, _, _ in (*tables.QUALITY, *tables.COST)]
    value = {'a': 20, 'e': 10}.get(run.cell, 30) + run.seed
    numbers = dict.fromkeys(names, value) | self.numbers | self.numbers.get(run.cell, {})
    return numbers | {'data': 'digits', 'device': 'cpu'}

  def __call__(self, cells, seeds=2, kimg=3):
    """Trains cells -> what was trained."""
    self.trained = []
    call(tool, f'--out={self.out}', f'--cells={cells}', f'--seeds={seeds}', f'--kimg={kimg}')
    return self.trained


@pytest.fixture
def lab(monkeypatch, tmp_path):
  platforms = jax.config.jax_platforms
  yield Lab(monkeypatch, tmp_path)
  jax.config.update('jax_platforms', platforms)


def test_results_are_recognised_and_more_cells_join(lab):
  assert lab('a,e', 1) == ['a seed0', 'e seed0']
  more = ['e-Gorig-Dorig seed0', 'e seed1', 'e-Gorig-Dorig seed1']
  assert lab('e:Gskip-Dresnet,e:Gorig-Dorig') == more
  assert lab('a,e', 1) == []


def test_tables_hold_mean_and_spread_of_what_was_asked_for(lab, capsys):
  lab('a,e,e:Gorig-Dorig', 3)
  text = (lab.out / 'table.md').read_text()
  assert text in capsys.readouterr().out
  rows = [
    [place.strip() for place in line.split('|')[1:-1]]
    for line in text.splitlines()
    if line.startswith('|')
  ]
  assert ['A  StyleGAN', '3', '21.0 [20.0, 22.0]', '21 [20, 22]'] == rows[2][:4]
  assert rows[3][:3] == ['E  no growing, G skip, D resnet', '3', '11.0 [10.0, 12.0]']
  assert rows[6] == ['G orig', '31.0 [30.0, 32.0]; 31 [30, 32]; 3', '', '']
  assert rows[7] == ['G skip', '', '', '11.0 [10.0, 12.0]; 11 [10, 12]; 3']
  assert 'digits at 32 px, 3 kimg a run; cpu' in text and 'MSG' not in text and 'not FID' in text
  document = json.loads((lab.out / 'table.json').read_text())
  assert [run['swd'] for run in document['cells']['a']['runs']] == [20, 21, 22]
  assert Image.open(lab.out / 'samples.png').width > 900


def test_metrics_of_networks_have_columns_once_all_runs_have_them(lab):
  lab.numbers = {'fid10k_full': 3.25, 'a': {'ppl2_4k_wend': 9.0}}
  lab('a,e:Gorig-Dorig', 1)
  text = (lab.out / 'table.md').read_text()
  assert '| PPL_W of pixels | FID | images/s' in text
  assert 'Table 2: SWD; PPL_W of pixels; FID; seeds' in text
  assert '30.0; 30; 3.2; 1' in text


def test_spread_of_one_run_and_of_none():
  assert tables.spread([{'x': 2.0}], 'x', '', '.1f') == '2.0'
  assert tables.spread([], 'x', '', '.1f') == '-'


def test_failing_cell_is_named_and_the_others_go_on(lab, capsys):
  lab.codes = {'a seed0': 4, 'e seed1': -9}
  with pytest.raises(faults.Fault, match=r'2 of 6 .*a, seed 0 \(exit 4\); e, seed 1 \(exit -9\)'):
    lab('a,e,f')
  assert len(lab.trained) == 6 and 'a, seed 0 failed with exit code 4' in capsys.readouterr().out
  text = (lab.out / 'table.md').read_text()
  assert '| 1 of 2, seed 0: exit 4 ' in text and '| 1 of 2, seed 1: exit -9 ' in text
  lab.codes = {}
  assert lab('a,e,f') == ['a seed0', 'e seed1']


@pytest.mark.parametrize(
  'code',
  [2, 3, 5, 75, 130],
)
def test_codes_that_are_not_about_the_cell_end_the_comparison(lab, code):
  lab.codes = {'e seed0': code}
  said = 'e, seed 0 ended with exit code .* 1 of 4 runs are done'
  with pytest.raises(faults.Fault, match=said) as e:
    lab('a,e')
  assert e.value.code == code and lab.trained == ['a seed0', 'e seed0']
  lab.codes = {}
  assert lab('a,e') == ['e seed0', 'a seed1', 'e seed1']


def test_signal_ends_the_comparison_whatever_the_run_returned(lab):
  lab('a', 1)
  lab.stop = Stop(came=True)
  with pytest.raises(faults.Interrupted, match='1 of 2 runs are done'):
    lab('a,e', 1)
  assert not (lab.out / 'e' / 'seed0' / 'result.json').exists()


def test_runs_under_other_settings_are_refused(lab):
  lab('e', 1)
  with pytest.raises(faults.UsageError, match=r'holds runs with .*"kimg": 3.0.* not .*"kimg": 4.0'):
    lab('e', 1, kimg=4)
  (lab.out / 'settings.json').unlink()
  with pytest.raises(faults.UsageError, match='holds runs with "no settings.json", not .* --out'):
    lab('e', 1)


def test_process_is_told_once_to_stop():
  code = (
    'import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n'
    'print(flush=True)\ntime.sleep(60)'
  )
  assert minipaper.start([sys.executable, '-c', 'raise SystemExit(4)'], Stop()) == 4
  assert minipaper.start([sys.executable, '-c', code], Stop(came=True)) in (75, -signal.SIGTERM)


@pytest.mark.slow
def test_two_cells_interrupted_killed_and_resumed(home, tmp_path):
  """A growing cell and config E at 16 px: Ctrl-C in the first, kill -9 of the tool in the second;
  then to the end.
  """
  fields = {
    'g.fmap_base': 64,
    'd.fmap_base': 64,
    'g.w_dim': 16,
    'g.z_dim': 16,
    'tick_kimg': 0.064,
    'snapshot_kimg': 0.064,
    'swd_images': 256,
    'data.dir': home / 'data',
  }
  command = [
    sys.executable,
    '-m',
    'sg2jax.tools.minipaper',
    f'--out={tmp_path / "out"}',
    '--cells=a,e',
    '--seeds=1',
    '--kimg=2',
    '--resolution=16',
    *[f'--set={k}={v}' for k, v in fields.items()],
  ]
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'JAX_COMPILATION_CACHE_DIR': str(home / 'cache'),
  }
  begin = partial(
    subprocess.Popen,
    command,
    cwd=ROOT,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    process_group=0,
  )

  def until(process, word):
    while word not in (line := process.stdout.readline()):
      assert line, process.stderr.read()

  process = begin()
  until(process, '16x16x1')
  until(process, 'tick 2')
  os.kill(process.pid, signal.SIGINT)  # to the tool alone
  out, err = process.communicate(timeout=60)
  assert process.returncode == 130 and '0 of 2 runs are done' in err, out + err
  saved = (tmp_path / 'out' / 'a' / 'seed0' / 'checkpoints').glob('*')
  assert 0 < max(int(path.name) for path in saved) < 125
  process = begin()
  until(process, 'resuming')
  until(process, '[2/2] e, seed 0')
  until(process, 'tick 2')
  while not list((tmp_path / 'out/e/seed0/checkpoints').glob('[0-9]*/manifest.json')):
    time.sleep(0.1)  # a tick is logged before its checkpoint is whole
  os.killpg(process.pid, signal.SIGKILL)
  process.communicate()
  process = begin()
  out, err = process.communicate(timeout=600)
  assert process.returncode == 0, out + err
  assert '[1/2]' not in out and 'resuming' in out and 'Table 1' in out
  cells = json.loads((tmp_path / 'out' / 'table.json').read_text())['cells']
  for run in (cells[cell]['runs'][0] for cell in 'ae'):
    assert (
      run['kimg'] >= 2
      and run['swd'] < run['swd_start']
      and run['ppl_w_end_pixel_mse'] > 0
      and run['img_per_sec'] > 0
    )
  before = (tmp_path / 'out' / 'samples.png').read_bytes()
  process = begin()
  out, err = process.communicate(timeout=60)
  assert process.returncode == 0 and 'compiled' not in out
  assert (tmp_path / 'out' / 'samples.png').read_bytes() == before
