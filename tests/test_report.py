"""The log of a run: resuming, torn lines, non-finite numbers, event files, grids, failing disks."""

import json
import math
import mmap
import os
import pty
import re
import subprocess
import sys
import termios

import numpy as np
from PIL import Image
import pytest
from tensorboard.backend.event_processing import event_accumulator

from sg2jax import faults, files, grids
from sg2jax.training import report
from sg2jax.training.events import tag
from tests.runs import ROOT


def records(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def run(workdir, start, stop, metrics=None):
  """Logs a tick at every step of (start, stop], as a run resumed from `start` would."""
  log = report.Report(workdir, start, total_kimg=4)
  for step in range(start + 1, stop + 1):
    log.tick(step, step * 32, metrics or {'loss_g': 0.5 + step}, 2.0, 16.0)
  log.close()


@pytest.mark.smoke
def test_resumed_run_logs_each_step_once(tmp_path):
  run(tmp_path / 'whole', 0, 7)
  run(tmp_path / 'parts', 0, 5)  # killed after 5; the last checkpoint is of step 3
  run(tmp_path / 'parts', 3, 7)
  kept = [
    [(r['step'], r['nimg'], r['loss_g']) for r in records(tmp_path / name)]
    for name in ('whole', 'parts')
  ]
  assert kept[0] == kept[1]
  assert [step for step, *_ in kept[1]] == [1, 2, 3, 4, 5, 6, 7]


def test_fresh_run_starts_an_empty_log(tmp_path):
  for stop in (3, 2):
    run(tmp_path, -1, stop)  # logs step 0 too; negative starts are as fresh as 0
  assert [r['step'] for r in records(tmp_path)] == [0, 1, 2]
  report.Report(tmp_path, 0, 4).close()
  assert records(tmp_path) == []


def test_what_a_signal_left_out_of_a_tick_is_known_to_be_lacking(tmp_path):
  run(tmp_path, 0, 1, {'swd': 9.0})
  log = report.Report(tmp_path, 1, 4)
  log.tick(2, 64, {'diversity': 0.5}, 2.0, 16.0)
  assert log.lacks(2, ['diversity', 'swd']) == ['swd']
  log.close()
  log = report.Report(tmp_path, 2, 4)
  assert log.lacks(2, ['diversity', 'swd']) == ['swd']
  log.values(2, 64, {'diversity': 0.6, 'swd': 8.0})
  assert not log.lacks(2, ['diversity', 'swd'])
  log.close()
  last = records(tmp_path)[-1]
  assert last['swd'] == 8 and 'diversity' not in last


@pytest.mark.parametrize('size', range(1, 60, 7))
def test_torn_last_line_is_dropped(tmp_path, size):
  run(tmp_path, 0, 2)
  log = tmp_path / 'metrics.jsonl'
  whole = log.read_bytes()
  log.write_bytes(whole + whole.splitlines()[-1][:size])
  run(tmp_path, 2, 3)
  assert [r['step'] for r in records(tmp_path)] == [1, 2, 3]


def test_line_that_lacks_only_its_newline_is_kept(tmp_path):
  run(tmp_path, 0, 2)
  log = tmp_path / 'metrics.jsonl'
  log.write_bytes(log.read_bytes()[:-1])
  run(tmp_path, 2, 3)
  assert [r['step'] for r in records(tmp_path)] == [1, 2, 3]


def test_non_finite_numbers_are_valid_json(tmp_path, capsys):
  run(tmp_path, 0, 1, {'loss_g': math.nan, 'loss_d': math.inf, 'r1': -np.float32(np.inf)})

  def refuse(name):
    raise AssertionError(f'{name} is not JSON')

  record = json.loads((tmp_path / 'metrics.jsonl').read_text(), parse_constant=refuse)
  assert (record['loss_g'], record['loss_d'], record['r1']) == ('nan', 'inf', '-inf')
  assert 'G nan' in capsys.readouterr().out


@pytest.mark.smoke
def test_status_lines_are_aligned_and_leave_out_what_is_absent(tmp_path, capsys):
  log = report.Report(tmp_path, 0, total_kimg=400)
  log.tick(1, 4000, {'loss_g': 0.816, 'loss_d': 1.307, 'r1': 0.0123, 'other': 5}, 3.2, 78)
  log.tick(2, 248000, {'loss_g': 12.5, 'loss_d': 0.02}, 123.456, 1234.5)
  first, second = capsys.readouterr().out.splitlines()
  assert re.match(
    r'tick 0 +kimg +4\.0/400 +3\.20 s/tick +78\.0 img/s +left 1:24:36 +G 0\.816 ', first
  )
  assert 'D 1.31' in first and 'r1 0.012' in first and ' pl ' not in first and 'other' not in first
  assert re.search(r'mem \d+\.\d GB$', first) and 'device' not in first  # CPU
  for name in ('kimg', 's/tick', 'img/s', 'left', 'G ', 'D ', 'r1', 'mem'):
    assert first.index(name) == second.index(name), (first, second)


def test_ticks_are_numbered_through_kills_resumes_and_lines_of_metrics(tmp_path, capsys):
  log = report.Report(tmp_path, 0, 4)
  for step in range(6):  # 0 to 5; metrics after 2, 3 and 5
    log.tick(step, step * 32, {'loss_g': 1.0}, 2.0, 16.0)
    if step in (2, 3, 5):
      log.values(step, step * 32, {'fid': 3.0, 'kid': 1.0})
  log.close()
  for start in (4, 3):  # the last one was killed at once
    log = report.Report(tmp_path, start, 4)
  log.tick(4, 128, {'loss_g': 1.0}, 2.0, 16.0)
  log.close()
  ticks = [int(n) for n in re.findall(r'^tick (\d+)', capsys.readouterr().out, re.M)]
  assert ticks == [0, 1, 2, 3, 4, 5, 4]
  assert [(r['step'], 'fid' in r) for r in records(tmp_path)] == [
    (0, False),
    (1, False),
    (2, False),
    (2, True),
    (3, False),
    (3, True),
    (4, False),
  ]


def test_metrics_of_a_step_are_logged_once(tmp_path, capsys):
  """Killed between the line and the note that it is written, a run measures again."""
  log = report.Report(tmp_path, 0, 4)
  log.tick(2, 64, {}, 2.0, 16.0)
  log.values(2, 64, {'fid': 3.0})
  log.close()
  log = report.Report(tmp_path, 2, 4)
  log.values(2, 64, {'fid': 3.0})
  log.values(2, 64, {'fid': 3.0, 'kid': 1.0})
  log.values(3, 96, {'fid': 2.0})
  log.close()
  assert [
    {k: v for k, v in r.items() if k in ('step', 'fid', 'kid')} for r in records(tmp_path)[1:]
  ] == [{'step': 2, 'fid': 3.0}, {'step': 2, 'kid': 1.0}, {'step': 3, 'fid': 2.0}]


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_a_grid_is_encoded_once_for_the_file_and_tensorboard(tmp_path, monkeypatch, channels):
  encode, encoded = files.png, []
  monkeypatch.setattr(files, 'png', lambda image: encoded.append(encode(image)) or encoded[-1])
  log = report.Report(tmp_path, 0, 4)
  log.images('fakes_000012', np.full([6, 64, 64, channels], 9, np.uint8), 4, cols=2)
  log.close()
  events = event_accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
  events.Reload()
  (image,) = events.Images('pictures/fakes')
  assert [
    (tmp_path / 'images' / 'fakes_000012.png').read_bytes(),
    image.encoded_image_string,
  ] == encoded * 2
  assert (image.width, image.height) == (128, 192) and len(encoded) == 1


@pytest.mark.parametrize(
  'size, shape',
  [
    ((16, 16), (8, 8)),
    ((256, 256), (8, 8)),
    ((512, 512), (8, 8)),
    ((1024, 1024), (4, 4)),
    ((2048, 2048), (2, 2)),
    ((4096, 4096), (1, 1)),
    ((8192, 8192), (1, 1)),
    ((1024, 512), (4, 8)),
    ((512, 1024), (8, 4)),
    ((768, 1024), (5, 4)),
    ((1024, 768), (4, 5)),
    ((8192, 4096), (1, 1)),
    ((8, 56), (8, 8)),
    ((4, 28), (8, 8)),
    ((384, 512), (8, 8)),
  ],
)
def test_grids_fit_4096_px_without_gaps(size, shape):
  assert grids.grid_shape(*size, 64) == shape
  height, width = grids.readable_grid(
    np.zeros((shape[0] * shape[1], *size, 1), np.uint8), shape[1]
  ).shape[:2]
  factor = max(1, 64 // min(size))
  assert (height, width) == (shape[0] * size[0] * factor, shape[1] * size[1] * factor)
  assert max(height, width) <= max(4096, *size)


def test_event_file_is_what_tensorboard_reads(tmp_path):
  run(tmp_path, 0, 5)
  log = report.Report(tmp_path, 3, total_kimg=4)
  log.tick(4, 128, {'loss_g': 40.0}, 2.0, 16.0)
  log.images('fakes_000048', np.full([2, 16, 16, 1], 7, np.uint8), 4)
  log.close()
  events = event_accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
  events.Reload()
  # Steps 4 and 5 of the interrupted run are forgotten, 1 to 3 are not.
  assert [(e.step, e.value) for e in events.Scalars('losses/g')] == [
    (1, 1.5),
    (2, 2.5),
    (3, 3.5),
    (4, 40.0),
  ]
  (image,) = events.Images('pictures/fakes')
  assert (image.step, image.width, image.height) == (4, 128, 64)


def test_histograms_are_what_tensorboard_reads(tmp_path):
  w = np.random.default_rng(0).normal(2, 3, [64, 16])
  log = report.Report(tmp_path, 0, total_kimg=4)
  log.histograms({'w/components': w}, 4)
  log.histograms({'w/components': np.float32([0, 0, np.nan]), 'w/none': np.float32([np.inf])}, 5)
  log.close()
  events = event_accumulator.EventAccumulator(
    str(tmp_path / 'tensorboard'), {event_accumulator.HISTOGRAMS: 0}
  )
  events.Reload()
  assert events.Tags()['histograms'] == ['w/components']
  drawn, equal = events.Histograms('w/components')
  found = drawn.histogram_value
  assert (drawn.step, equal.step, found.num, equal.histogram_value.num) == (4, 5, 1024, 2)
  np.testing.assert_allclose(
    [found.min, found.max, found.sum, found.sum_squares],
    [w.min(), w.max(), w.sum(), np.square(w).sum()],
  )
  limits = np.array(found.bucket_limit)
  below = [np.sum(w <= limit) for limit in limits]
  np.testing.assert_array_equal(np.cumsum(found.bucket), below)
  assert limits[-1] == w.max() and np.all(np.diff(limits) > 0)


@pytest.mark.parametrize(
  'name, wanted',
  [
    ('loss_d_real', 'losses/d_real'),
    ('contribution_b16', 'contribution/b16'),
    ('augment_p', 'augmentation/p'),
    ('logits_real', 'logits/logits_real'),
    ('logits_heldout', 'memorising/logits_heldout'),
    ('swd_16x16', 'quality/swd_16x16'),
    ('fid50k_full', 'quality/fid50k_full'),
    ('grad_norm_d_reg', 'gradients/d_reg'),
    ('kimg', 'progress/kimg'),
  ],
)
def test_tags_are_grouped(name, wanted):
  assert tag(name) == wanted


def test_training_never_loads_tensorflow(tmp_path):
  """Not even where it is installed: a fake package stands for it that can't be imported."""
  (tmp_path / 'tensorflow').mkdir()
  (tmp_path / 'tensorflow' / '__init__.py').write_text('raise SystemExit("imported")')
  code = (
    'from sg2jax.training import report; import sys\nlog = report.Report(sys.argv[1], 0, 4)\n'
    'log.tick(1, 32, {"loss_g": 1.0}, 2.0, 16.0); log.close()'
  )
  env = os.environ | {'PYTHONPATH': f'{tmp_path}:{ROOT}', 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path / 'run')],
    env=env,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert len(records(tmp_path / 'run')) == 1


def test_other_processes_write_nothing(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(report.jax, 'process_index', lambda: 1)
  log = report.Report(tmp_path / 'run', 0, 4)
  log.tick(1, 32, {}, 1.0, 1.0)
  log.images('reals', np.zeros([1, 8, 8, 3], np.uint8), 1)
  log.say('x')
  log.close()
  assert not (tmp_path / 'run').exists() and not capsys.readouterr().out


@pytest.mark.parametrize(
  'n, cols', [(1, 1), (2, 2), (3, 2), (5, 3), (6, 3), (7, 3), (16, 4), (32, 8), (40, 8), (64, 8)]
)
def test_image_grid_holds_every_image_once(n, cols):
  images = np.random.default_rng(0).integers(0, 256, (n, 4, 6, 3)).astype(np.uint8)
  grid = grids.image_grid(images)
  assert grid.dtype == np.uint8 and grid.shape == (-(-n // cols) * 4, cols * 6, 3)
  for i in range(n):
    y, x = i // cols * 4, i % cols * 6
    np.testing.assert_array_equal(grid[y : y + 4, x : x + 6], images[i])
  assert grid.sum() == images.sum()  # gaps are black


@pytest.mark.parametrize(
  'channels, mode', [(1, 'L'), (2, 'L'), (3, 'RGB'), (4, 'RGBA'), (5, 'RGB')]
)
@pytest.mark.parametrize(
  'size, factor', [((8, 12), 8), ((32, 32), 2), ((48, 64), 1), ((64, 64), 1)]
)
def test_png(tmp_path, channels, mode, size, factor):
  images = np.random.default_rng(0).integers(0, 256, (2, *size, channels)).astype(np.uint8)
  log = report.Report(tmp_path, 0, 4)
  log.images('fakes_000001', images, 1)
  log.close()
  png = Image.open(tmp_path / 'images' / 'fakes_000001.png')
  assert png.mode == mode and os.listdir(tmp_path / 'images') == ['fakes_000001.png']
  pixels = np.asarray(png).reshape(size[0] * factor, 2 * size[1] * factor, -1)
  expected = np.concatenate(list(images), axis=1)[..., : pixels.shape[2]]
  np.testing.assert_array_equal(pixels[::factor, ::factor], expected)


def test_failing_file_system_is_a_write_error(tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  with pytest.raises(faults.WriteError, match=r'file.run.*bytes are free'):
    report.Report(tmp_path / 'file' / 'run', 0, 4)
  log = report.Report(tmp_path, 0, 4)
  log._log = report.pathlib.Path('/dev/full')
  with pytest.raises(faults.WriteError, match='/dev/full: No space left'):
    log.tick(1, 32, {}, 1.0, 1.0)


def test_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
  files.write_atomic(tmp_path / 'a', 'old')

  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(files.os, 'fsync', full)
  with pytest.raises(faults.WriteError, match='No space left'):
    files.write_atomic(tmp_path / 'a', 'new')
  assert (tmp_path / 'a').read_text() == 'old' and os.listdir(tmp_path) == ['a']


def test_progress_bar_only_on_a_terminal(tmp_path, monkeypatch, capsys):
  log = report.Report(tmp_path, 0, 4)
  log.progress(1000)
  assert capsys.readouterr().err == ''
  master, slave = pty.openpty()
  os.set_blocking(master, False)
  termios.tcsetwinsize(slave, (24, 80))
  monkeypatch.setattr(sys, 'stderr', os.fdopen(slave, 'w'))
  log = report.Report(tmp_path, 0, 4)
  for _ in range(5):
    log.progress(1000)
  shown = os.read(master, 1000).decode()
  assert shown.count('\r') == 1 and '25%' in shown and '1.0/4 kimg' in shown
  log.say('a line')
  assert capsys.readouterr().out == 'a line\n'
  assert os.read(master, 1000).decode().startswith('\r   ')  # the bar made room for it
  log.progress(5000)  # the last minibatch may go beyond the end
  log.close()


@pytest.mark.parametrize(
  'value, text',
  [
    (0.0, '0.000'),
    (0.0123, '0.012'),
    (-1.309, '-1.31'),
    (61.24, '61.2'),
    (1234.5, '1234'),
    (3.2e-5, '3e-05'),
    (2e7, '2e+07'),
    (math.nan, 'nan'),
    (-math.inf, '-inf'),
  ],
)
def test_number(value, text):
  assert report.number(value) == text


def test_host_memory_is_that_of_this_process():
  before = report.host_memory()
  # Pages of its own: an array might lie in memory that an earlier test gave back to the allocator
  # only.
  with mmap.mmap(-1, 2**26) as ballast:
    for page in range(0, len(ballast), mmap.PAGESIZE):
      ballast[page] = 1
    assert 0.9 * len(ballast) < report.host_memory() - before < 1.5 * len(ballast)


def test_a_log_is_read_without_what_is_torn(tmp_path):
  assert report.logged(tmp_path) == []
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n7\n{"step": 2}\n{"step": ')
  assert report.logged(tmp_path) == [{'step': 1}, {'step': 2}]
