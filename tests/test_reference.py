"""The public reference vectors in float64, and the runner itself: it must fail where it should."""

import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from tests.reference.__main__ import CASES, main
from tests.reference.check import compare, only, read_manifest, run_case

FOLDER = pathlib.Path(__file__).parent / 'reference'
PUBLIC = {case['id']: case for case in read_manifest(FOLDER)}


def check(case, folder):
  """Every sub-case passes, far below the tolerances: in float64, a slip within them is one."""
  report = run_case(case, folder, CASES[case['id']])
  assert report.passed, str(report)
  # and of what is expected beside the sub-cases, such as filters of all
  assert report.total >= len(case.get('subcases', ['one']))
  # whose reference worked in float32
  assert report.worst[0] < (0.1 if case['id'] == 'inception_v3_fid' else 0.01)
  assert jnp.zeros(()).dtype == jnp.float32  # 64 bits stay in there


# Of the cases that compile for long, sub-cases that have each architecture, option and formula
# once, and of some not all arrays. `python -m tests.reference` runs the rest.
SHORT = {
  'ada_augment': dict.fromkeys(
    [
      'blit_p0.3',
      'bgc_gray_p0.3',
      'bgcfnc_p0.9',
      'filter_bands_p0.7',
      'bgcfnc_random_strength0.6',
    ],
    '.*',
  ),
  'generator': {
    'resnet': '.*',
    'skip_cond_gray_121': '.*',
    'orig': 'img|grad_ws|block/.*',
  },
  'discriminator': {
    'orig': '.*',
    'resnet_cond': '.*',
    'orig_cond_group_none': '.*',
    'skip_gray_batch3_group4': '.*',
    'resnet_no_mbstd_121': '.*',
  },
  'losses': {'resnetG_origD_cond': '(?!Greg_shrink1/).*'},
  'training_trajectory': {'grad_accumulation_ema_rampup': '.*'},
}


@pytest.mark.parametrize('case', sorted(set(CASES) & set(PUBLIC)))
def test_case(case):
  found = PUBLIC[case]
  check(only(found, SHORT[case]) if case in SHORT else found, FOLDER)


@pytest.mark.slow
@pytest.mark.parametrize('case', SHORT)
def test_whole_case(case):
  check(PUBLIC[case], FOLDER)


@pytest.mark.slow
def test_regularization_that_is_not_lazy(tmp_path):
  """Gboth, which the public vectors lack, has the sum of the gradients of Gmain and Greg."""
  sub = 'skipG_resnetD'
  case = only(PUBLIC['losses'], {sub: '.*'})
  with np.load(FOLDER / case['file']) as data:
    arrays = {k: data[k] for k in case['arrays'] if k.split('/')[0] == sub}
  info = {k: case['arrays'][k] for k in arrays if case['arrays'][k]['role'] != 'expected'}
  for key in [k for k in arrays if k.startswith(f'{sub}/Gmain/grad/')]:
    both, reg = key.replace('Gmain', 'Gboth'), key.replace('Gmain', 'Greg')
    arrays[both], info[both] = arrays[key] + arrays[reg], case['arrays'][key]
  np.savez(tmp_path / case['file'], **arrays)
  check(case | {'arrays': info}, tmp_path)


def test_float32():
  assert (
    run_case(PUBLIC['fully_connected'], FOLDER, CASES['fully_connected'], float32=True).worst[0]
    > 1e-5
  )


# ---- the runner


@pytest.fixture
def folder(tmp_path):
  """Writes two sub-cases of minibatch_stddev, after a change of them, and a case nobody knows."""
  case = only(PUBLIC['minibatch_stddev'], {'s2': '.*', 's5': '.*'})
  with np.load(FOLDER / case['file']) as data:
    arrays = {k: data[k] for k in case['arrays']}
  manifest = {'cases': [case, {'id': 'palm_reading', 'file': 'none.npz', 'arrays': {}}]}

  def edit(change=lambda case, arrays: None):
    change(case, arrays)
    (tmp_path / 'manifest.json').write_text(json.dumps(manifest))
    np.savez(tmp_path / case['file'], **arrays)
    return str(tmp_path)

  edit()
  return edit


def test_runner_passes_and_lists_what_it_skips(folder, capsys):
  assert main([folder()]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith('minibatch_stddev') and '2/2' in lines[0] and lines[0].endswith('ok')
  assert 'palm_reading' in lines[1]
  assert lines[-1] == '1 passed, 0 failed, 1 skipped'


def wrong_number(case, arrays):
  arrays['s2/y'][0, 0, 0, 0] += 1e-6


def not_finite(case, arrays):
  arrays['s2/x'][0, 0, 0, 0] = np.nan


def other_shape(case, arrays):
  arrays['s2/y'] = arrays['s2/y'][:1]


def unknown_array(case, arrays):
  case['arrays']['s2/grad_aura'] = case['arrays']['s2/grad_x']
  arrays['s2/grad_aura'] = arrays['s2/grad_x']


def unknown_field(case, arrays):
  case['subcases']['s2']['config']['incense'] = 'sandalwood'


def crash(case, arrays):
  case['subcases']['s2']['config']['group_size'] = 2  # 3 images


def lost_array(case, arrays):
  del arrays['s2/dy']


def nothing_expected(case, arrays):
  for key in [
    k for k, v in case['arrays'].items() if k.startswith('s2/') and v['role'] == 'expected'
  ]:
    del case['arrays'][key]


@pytest.mark.parametrize(
  'change, says',
  [
    (wrong_number, 'y: 1 of'),
    (not_finite, 'nan'),
    (other_shape, 'shape [3, 5, 4, 4], expected [1, 5, 4, 4]'),
    (unknown_array, 'grad_aura: nothing computes'),
    (unknown_field, 'incense'),
    (crash, 'ValueError: a batch of 3'),
    (lost_array, 's2/dy'),
    (nothing_expected, 'nothing is expected'),
  ],
)
def test_runner_fails_in_one_subcase(folder, capsys, change, says):
  assert main([folder(change)]) == 1
  out = capsys.readouterr().out
  assert '1/2' in out.splitlines()[0] and 'FAILED' in out.splitlines()[0]
  assert says in out and '    s2: ' in out and '    s5: ' not in out
  assert out.splitlines()[-1] == '0 passed, 1 failed, 1 skipped'


def test_runner_fails_on_arrays_of_no_subcase(folder, capsys):
  def stray(case, arrays):
    del case['subcases']['s2']

  assert main([folder(stray)]) == 1
  assert 's2/y belongs to no sub-case' in capsys.readouterr().out


def test_runner_refuses_folders_and_cases_that_are_not_there(folder, tmp_path, capsys):
  assert main([str(tmp_path / 'nowhere')]) == 2
  assert main([folder(), '--case=mbstd']) == 2
  assert 'minibatch_stddev' in capsys.readouterr().err


@pytest.mark.slow  # main, which it calls, is tested above
def test_command(folder):
  root = FOLDER.parent.parent
  done = subprocess.run(
    [sys.executable, '-m', 'tests.reference', folder(wrong_number), '--float32'],
    cwd=root,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr  # 1e-6 is within the float32 tolerance
  assert done.stdout.splitlines()[-1] == '1 passed, 0 failed, 1 skipped'


def test_compare():
  tol = {'rtol64': 0.1, 'atol64': 1, 'rtol32': 10, 'atol32': 1}
  assert compare([111.0], np.array([100.0]), tol, False) == (1.0, None)
  assert compare([123.0], np.array([100.0]), tol, False)[0] > 2
  assert compare([123.0], np.array([100.0]), tol, True)[1] is None
  assert compare(np.uint8([1]), np.uint8([0]), 'exact, or +-1 level', False)[1] is None
  assert compare(np.uint8([1]), np.uint8([0]), 'exact', False)[1]
  # no wrap-around
  assert compare(np.uint8([0]), np.uint8([255]), 'exact, or +-1 level', False)[0] == 255
