"""The comparison tool with runs that are faked, and, slowly, real."""

from functools import partial
import json
import os
import re
import signal
import subprocess
import sys

from PIL import Image
import pytest

from configs import minipaper as preset
from configs import paper
from sg2jax import build, checks, faults
from sg2jax.lab import minipaper, tables
from sg2jax.lab.minipaper import plan, work
from sg2jax.lab.tables import CELLS
from sg2jax.tools import minipaper as tool
from tests.runs import ROOT, call

# ---- configurations


@pytest.mark.parametrize('cell', CELLS)
@pytest.mark.parametrize('side', [16, 32, 64])
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
  runs = plan(tmp_path, ['e:Gorig-Dorig', 'e', 'e:Gskip-Dresnet'], 2)
  pair = 'e:Gorig-Dorig'
  assert [(run.cell, run.seed) for run in runs] == [(pair, 0), ('e', 0), (pair, 1), ('e', 1)]
  assert runs[2].workdir == tmp_path / 'e-Gorig-Dorig' / 'seed1'
  settings = minipaper.shared_settings(2.0, 32, ['data.dir=a=b', 'batch=8'])
  command = minipaper.command(runs[2], settings)
  assert command[3] == '--config=configs/minipaper.py:e:Gorig-Dorig,32'
  assert command[5:] == [
    '--config.seed=1',
    '--config.total_kimg=2.0',
    '--config.data.dir=a=b',
    '--config.batch=8',
  ]
  assert len({run.workdir for run in plan(tmp_path, CELLS, 2)}) == 30


@pytest.mark.parametrize(
  'args, said',
  [
    ('', '--out is missing; as in python -m'),
    ('--out=OUT --cells=a,g', '--cells=g is unknown; choose from a, b, c, d, e, f, msg, e:Gorig'),
    ('--out=OUT --cells=', '--cells names none'),
    ('--out=OUT --seeds=0', '--seeds=0: 0 is not'),
    ('--out=OUT --set=batch', 'FIELD=VALUE'),
    ('--out=OUT --set=total_kimg=1', 'use --kimg'),
    ('--out=OUT --set=seed=1', 'use --seeds'),
  ],
)
def test_what_cannot_work_is_named(args, said, tmp_path):
  with pytest.raises(faults.UsageError, match=re.escape(said)):
    call(tool, *args.replace('OUT', str(tmp_path / 'out')).split())
  assert not (tmp_path / 'out').exists()


class Stop:
  """A signal that comes, or not."""

  signal = None

  def __bool__(self):
    return self.signal is not None

  def leave(self, text):
    raise faults.Interrupted(text)


class Lab:
  """Fakes of training and measuring that note what they were asked; codes: {workdir's name and
  parent's: exit code}.
  """

  def __init__(self, codes=None):
    self.trained, self.codes, self.stop = [], codes or {}, Stop()

  def train(self, run):
    workdir = run.workdir
    self.trained.append(f'{workdir.parent.name} {workdir.name}')
    (workdir / 'images').mkdir(parents=True, exist_ok=True)
    (workdir / 'checkpoints').mkdir(exist_ok=True)
    for name in 'reals', 'fakes_000001', 'fakes_000002':
      Image.new('L', (64, 64)).save(workdir / 'images' / f'{name}.png')
    return self.codes.get(self.trained[-1], 0)

  def measure(self, run):
    value = {'a': 20, 'e': 10}.get(run.cell, 30) + run.seed
    names = (
      'swd',
      'ppl_w_end_pixel_mse',
      'img_per_sec',
      'img_per_sec_full_size',
      'train_seconds',
      'parameters_g',
      'parameters_d',
    )
    return {'cell': run.cell, 'seed': run.seed, 'data': 'digits', 'device': 'cpu'} | dict.fromkeys(
      names, value
    )

  def __call__(self, out, cells, seeds=2):
    runs = plan(out, cells, seeds)
    settings = minipaper.shared_settings(3.0, 32, [])
    minipaper.begin(out, settings)
    save = lambda failed: tables.save(out, runs, settings, failed)
    return work(runs, self.stop, self.train, self.measure, save)


def test_results_are_recognised_and_more_cells_join(tmp_path):
  assert Lab()(tmp_path, ['a', 'e'], 1) == {}
  lab = Lab()
  lab(tmp_path, ['e', 'e:Gorig-Dorig'], 2)
  assert lab.trained == ['e-Gorig-Dorig seed0', 'e seed1', 'e-Gorig-Dorig seed1']
  (tmp_path / 'e' / 'seed0' / 'result.json').write_text('{"torn')
  lab = Lab()
  lab(tmp_path, ['a', 'e'], 1)
  assert lab.trained == ['e seed0']


def test_tables_hold_mean_and_spread_of_what_was_asked_for(tmp_path):
  Lab()(tmp_path, ['a', 'e', 'e:Gorig-Dorig'], 3)
  text = (tmp_path / 'table.md').read_text()
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
  document = json.loads((tmp_path / 'table.json').read_text())
  assert [run['swd'] for run in document['cells']['a']['runs']] == [20, 21, 22]
  assert Image.open(tmp_path / 'samples.png').width > 900


def test_metrics_of_networks_have_columns_once_all_runs_have_them(tmp_path):
  lab = Lab()
  of_pixels = lab.measure
  lab.measure = lambda run: (
    of_pixels(run) | {'fid10k_full': 3.25} | ({'ppl2_4k_wend': 9.0} if run.cell == 'a' else {})
  )
  lab(tmp_path, ['a', 'e:Gorig-Dorig'], 1)
  text = (tmp_path / 'table.md').read_text()
  assert (
    '| PPL_W of pixels | FID | images/s' in text
    and 'Table 2: SWD; PPL_W of pixels; FID; seeds' in text
  )
  assert '20.0; 20' not in text and '30.0; 30; 3.2; 1' in text


def test_spread_of_one_run_and_of_none():
  assert tables.spread([{'x': 2.0}], 'x', 1) == '2.0' and tables.spread([], 'x') == '-'


def test_failing_cell_is_named_and_the_others_go_on(tmp_path, capsys):
  lab = Lab({'a seed0': 4, 'e seed1': -9})
  failed = lab(tmp_path, ['a', 'e', 'f'])
  assert {str(run): code for run, code in failed.items()} == {'a, seed 0': 4, 'e, seed 1': -9}
  assert len(lab.trained) == 6 and 'a, seed 0 failed with exit code 4' in capsys.readouterr().out
  text = (tmp_path / 'table.md').read_text()
  assert '| 1 of 2, seed 0: exit 4 ' in text and '| 1 of 2, seed 1: exit -9 ' in text
  lab = Lab()
  assert lab(tmp_path, ['a', 'e', 'f']) == {} and lab.trained == ['a seed0', 'e seed1']


@pytest.mark.parametrize(
  'code, fault',
  [
    (2, faults.UsageError),
    (3, faults.DatasetError),
    (5, faults.WriteError),
    (75, faults.Preempted),
    (130, faults.Interrupted),
  ],
)
def test_codes_that_are_not_about_the_cell_end_the_comparison(tmp_path, code, fault):
  lab = Lab({'e seed0': code})
  with pytest.raises(fault, match='e, seed 0 ended with exit code .* 1 of 4 runs are done') as e:
    lab(tmp_path, ['a', 'e'])
  assert e.value.code == code and lab.trained == ['a seed0', 'e seed0']
  lab = Lab()
  lab(tmp_path, ['a', 'e'])
  assert lab.trained == ['e seed0', 'a seed1', 'e seed1']


def test_signal_ends_the_comparison_whatever_the_run_returned(tmp_path):
  lab = Lab()
  train = lab.train

  def interrupted(run):
    lab.stop.signal = signal.SIGINT if len(lab.trained) == 1 else None
    return train(run)

  lab.train = interrupted
  with pytest.raises(faults.Interrupted, match='1 of 2 runs are done'):
    lab(tmp_path, ['a', 'e'], 1)
  assert not (tmp_path / 'e' / 'seed0' / 'result.json').exists()


def test_runs_under_other_settings_are_refused(tmp_path):
  Lab()(tmp_path, ['e'], 1)
  with pytest.raises(faults.UsageError, match=r'holds runs with .*"kimg": 3.0.* not .*"kimg": 4.0'):
    minipaper.begin(tmp_path, {'kimg': 4.0, 'resolution': 32, 'set': {}})
  (tmp_path / 'settings.json').unlink()
  with pytest.raises(faults.UsageError, match='not readable'):
    minipaper.begin(tmp_path, {'kimg': 3.0, 'resolution': 32, 'set': {}})


def test_process_is_told_once_to_stop():
  code = (
    'import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n'
    'print(flush=True)\ntime.sleep(60)'
  )
  stop = Stop()
  stop.signal = signal.SIGINT
  assert minipaper.start([sys.executable, '-c', 'raise SystemExit(4)'], Stop()) == 4
  assert minipaper.start([sys.executable, '-c', code], stop) in (75, -signal.SIGTERM)


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
  until(process, 'tick')
  os.kill(process.pid, signal.SIGINT)  # to the tool alone
  out, err = process.communicate(timeout=60)
  assert process.returncode == 130 and '0 of 2 runs are done' in err, out + err
  saved = (tmp_path / 'out' / 'a' / 'seed0' / 'checkpoints').glob('*')
  assert 0 < max(int(path.name) for path in saved) < 125
  process = begin()
  until(process, 'resuming')
  until(process, '[2/2] e, seed 0')
  until(process, 'tick 2')
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
