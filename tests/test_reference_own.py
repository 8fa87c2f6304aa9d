"""Kinds of reference case that the public folders lack, with vectors computed independently."""

import json
import pathlib

import numpy as np
import pytest

from tests.reference import cases_train
from tests.reference.__main__ import CASES, main
from tests.reference.check import Given, kind_of, only, read_manifest, run_case
from tests.test_reference_growing import abridge

FOLDER = pathlib.Path(__file__).parent / 'reference_own'
OWN = {case['id']: case for case in read_manifest(FOLDER)}
FAST = ('both', 'config_a_cond')  # of the cases that take long to compile
LONG = ('training_trajectory', 'losses_ad', 'growing_trajectory')


def one(case, sub):
  return only(case, {sub: '.*'})


def written(case, folder, **more):
  """Writes the arrays of a case, and `more` ones of it, into another folder."""
  with np.load(FOLDER / case['file']) as data:
    np.savez(
      folder / case['file'], **{key: data[key] for key in case['arrays'] if key in data}, **more
    )


def passes_but_for_strangers(case, sub, folder):
  """Runs a sub-case with a field and arrays that nobody knows: they, and nothing else, fail."""
  strangers = {f'{sub}/incense': np.zeros(3, np.float32), f'{sub}/aura': np.zeros(3)}
  case['subcases'][sub]['config']['palmistry'] = True
  case['arrays'] |= {
    f'{sub}/incense': {'role': 'input'},
    f'{sub}/aura': {'role': 'expected', 'tol': 'exact'},
  }
  written(case, folder, **strangers)
  report = run_case(case, folder, CASES[case['id']])
  assert report.failures == {
    sub: [
      'config field palmistry is not understood',
      'incense: nothing takes this given array',
      'aura: nothing computes this expected array',
    ]
  }, str(report)
  assert report.worst[0] < 0.01


@pytest.mark.parametrize(
  'name, sub',
  [
    pytest.param(name, sub, marks=[pytest.mark.slow] * (name in LONG and sub not in FAST))
    for name, case in OWN.items()
    for sub in case['subcases']
  ],
)
def test_case(name, sub, tmp_path):
  passes_but_for_strangers(one(OWN[name], sub), sub, tmp_path)


def test_labels_in_a_growing_trajectory(tmp_path):
  """Its first state; the whole of it is slow."""

  def drops(config):
    del config['nimg_at_state'][1:]
    for key in ('num_schedule_evaluations', 'draw_counts', 'reset_before_evaluation'):
      del config[key]
    return 'state1', 'schedule_lod'

  passes_but_for_strangers(abridge(OWN['growing_trajectory'], drops), 'config_d_cond', tmp_path)


def fails(name, sub, change, folder):
  """What a sub-case says after change(config, arrays)."""
  case = one(OWN[name], sub)
  with np.load(FOLDER / case['file']) as data:
    arrays = {key.partition('/')[2]: data[key] for key in case['arrays']}
  change(case['subcases'][sub]['config'], arrays)
  info = {f'{sub}/{key}': case['arrays'].get(f'{sub}/{key}', {'role': 'param'}) for key in arrays}
  np.savez(folder / case['file'], **{f'{sub}/{key}': x for key, x in arrays.items()})
  return str(run_case(case | {'arrays': info}, folder, CASES[name]))


def extra_parameter(config, arrays):
  arrays['G/synthesis.b4.conv9.weight'] = arrays['G/synthesis.b4.conv1.weight']


def unknown_argument(config, arrays):
  config['G']['synthesis_kwargs']['incense'] = 1


def wrong_width(config, arrays):
  config['G']['channels']['4'] = 7


def no_discriminator(config, arrays):
  for key in [key for key in arrays if key.startswith('D/')]:
    del arrays[key]


def other_group(config, arrays):
  config['D']['epilogue_kwargs']['mbstd_group_size'] = 4


@pytest.mark.parametrize(
  'change, says',
  [
    (extra_parameter, 'conv9'),
    (unknown_argument, 'argument incense'),
    (wrong_width, 'channels'),
    (no_discriminator, 'no discriminator is given'),
    (other_group, 'logits: 4 of 4 differ'),
  ],
)
def test_conversion_that_must_fail(change, says, tmp_path):
  assert says in fails('checkpoint_conversion', 'pytorch_cond', change, tmp_path)


def both_names(config, arrays):
  config['epilogue_kwargs'] |= {'mbstd_num_channels': 3, 'mbstd_num_features': 1}


def a_group(config, arrays):
  config['epilogue_kwargs']['mbstd_group_size'] = 4


@pytest.mark.parametrize('change, says', [(both_names, 'are [3, 1]'), (a_group, '(3, 3, 7, 6)')])
def test_minibatch_stddev_that_must_fail(change, says, tmp_path):
  assert says in fails('discriminator', 'group0_features1', change, tmp_path)


def unlike_phases(config, arrays):
  config['phases'] = ['Gmain', 'Greg', 'Dmain', 'Dreg']


def corrected(config, arrays):
  config['effective']['G']['mb_ratio'] = 0.8


def sometimes(config, arrays):
  config['regularisation_iterations']['Gboth'] = [0, 2]


def needless_labels(config, arrays):
  arrays['gen_c'] = np.zeros((3, 2, 4, 1), np.float32)


def other_phases_of_z(config, arrays):
  arrays['z'] = np.concatenate([arrays['z']] * 2, 1)


@pytest.mark.parametrize(
  'change, says',
  [
    (unlike_phases, 'phases'),
    (corrected, 'effective.G.mb_ratio'),
    (sometimes, 'regularisation_iterations.Gboth'),
    (needless_labels, 'no labels'),
    (other_phases_of_z, 'z is for 4 phases'),
  ],
)
def test_trajectory_that_must_fail(change, says, tmp_path):
  assert says in fails('training_trajectory', 'both', change, tmp_path)


def test_draws_called_after_their_phase():
  """<phase>/z ... are the same as one array for all; path lengths take a round's first images."""
  z, c, noise = (
    np.random.randn(3, 2, 4, 5),
    np.random.randn(3, 2, 4, 1),
    np.random.randn(3, 2, 1, 3, 8, 8),
  )
  together = Given({'z': z, 'gen_c': c, 'pl_noise_raw': noise})
  split = {
    f'{phase}/{name}': x[:, i]
    for name, x in (('z', z), ('gen_c', c))
    for i, phase in enumerate(('Gboth', 'Dboth'))
  }
  apart = Given(split | {'Gboth/pl_noise_raw': noise}, ['Gboth/z', 'Dboth/gen_c', 'incense'])
  rounds = lambda x: x.reshape(2, 2, *x.shape[1:])
  for given in (together, apart):
    draws = cases_train._Draws(given, ['Gboth', 'Dboth'], rounds, 4, 1)
    for i in range(3):
      main = draws.main(i, 'Gboth')
      np.testing.assert_array_equal(main['z'], z[i, 0].reshape(2, 2, 5))
      reg = draws.path_lengths('Gboth', main, 1)
      np.testing.assert_array_equal(reg['z'][:, 0], z[i, 0, ::2])
      np.testing.assert_array_equal(reg['c'][:, 0], c[i, 0, ::2])
      np.testing.assert_array_equal(reg['pl'], np.moveaxis(noise[i], 2, -1))
      np.testing.assert_array_equal(draws.main(i, 'Dboth')['c'], c[i, 1].reshape(2, 2, 1))
  assert apart.unread() == ['incense']


def test_kind_of():
  assert kind_of({'id': 'losses_ad_labels'}, CASES) == 'losses_ad'
  assert kind_of({'id': 'losses_of_mine'}, CASES) == 'losses'
  assert kind_of({'id': 'mine', 'kind': 'losses'}, CASES) == 'losses'
  assert kind_of({'id': 'lossesad'}, CASES) is None


def test_command_takes_other_ids(tmp_path, capsys):
  case = one(OWN['discriminator'], 'features0')
  written(case, tmp_path)
  (tmp_path / 'manifest.json').write_text(
    json.dumps({'cases': [case | {'id': 'discriminator_without_stddev'}]})
  )
  assert main([str(tmp_path)]) == 0
  assert '1 passed, 0 failed, 0 skipped' in capsys.readouterr().out
