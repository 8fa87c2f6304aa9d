"""The public reference vectors of configs A-D in float64, and the border to TensorFlow's names."""

import json
import pathlib

import numpy as np
import pytest

from sg2jax.interop.names import TensorFlow
from tests.reference.cases_growing import store
from tests.reference.check import only, read_manifest
from tests.test_reference import check

FOLDER = pathlib.Path(__file__).parent / 'reference_growing'
PUBLIC = {case['id']: case for case in read_manifest(FOLDER)}
LONG = ('losses_ad', 'growing_trajectory')  # abridged below
# Sub-cases that have each option once; `python -m tests.reference` runs the rest.
SHORT = {
  'stylegan1_generator': ('cond_r16', 'training_r16'),
  'stylegan1_discriminator': ('cond_nf2_r16', 'fused_scale_r16'),
  'revised_generator': ('cond_r16', 'r16_fmapmin', 'training_r16'),
  'growing_discriminator': ('cond_nf2_r16', 'r16'),
}


@pytest.mark.parametrize('case', sorted(set(PUBLIC) - set(LONG)))
def test_case(case):
  found = PUBLIC[case]
  if case in SHORT:
    found = only(found, {sub: '.*' for sub in SHORT[case]})
  check(found, FOLDER)


@pytest.mark.slow
@pytest.mark.parametrize('case', [*SHORT, *LONG])
def test_whole_case(case):
  check(PUBLIC[case], FOLDER)


def abridge(case, drops):
  """A copy of a case without some arrays.

  drops: function of a sub-case's config, which it may change, -> first parts of their names.
  """
  case = json.loads(json.dumps(case))
  for sub, info in case['subcases'].items():
    gone = drops(info['config'])
    for key in [
      key for key in case['arrays'] if key.split('/')[0] == sub and key.split('/')[1] in gone
    ]:
      del case['arrays'][key]
  return case


@pytest.mark.slow  # the trajectory below goes through the same losses
def test_losses_of_growing_networks_at_one_lod():
  def drops(config):
    *gone, config['lods'] = config['lods'][:-1] + [config['lods'][-1:]]
    return [f'lod{lod:g}' for lod in gone]

  check(abridge(PUBLIC['losses_ad'], drops), FOLDER)


def test_growing_trajectory_to_the_second_resolution():
  def drops(config):
    del config['nimg_at_state'][2:]
    for key in ('num_schedule_evaluations', 'draw_counts', 'reset_before_evaluation'):
      del config[key]
    return 'state2', 'schedule_lod'

  case = only(PUBLIC['growing_trajectory'], {'config_a': '.*'})
  check(abridge(case, drops), FOLDER)


def test_names_of_tensorflow():
  layer = np.arange(18.0).reshape(3, 3, 2, 1)
  arrays = {
    f'synthesis/{r}x{r}/Conv0_up/{leaf}': x
    for r in (64, 128)
    for leaf, x in (('weight', layer), ('mod_bias', np.zeros(2)))
  }
  for adain, fused, flipped in (
    (True, 'auto', [128]),
    (True, True, [64, 128]),
    (True, False, []),
    (False, False, [64, 128]),
  ):
    border = TensorFlow(256, adain, fused)
    params = border.load(arrays)[0]
    for r in (64, 128):
      ours = params['synthesis'][f'b{r}']['conv0']
      np.testing.assert_array_equal(ours['weight'], layer[::-1, ::-1] if r in flipped else layer)
      assert (ours['affine']['bias'] == (0 if adain else 1)).all()
    for gradients in (False, True):
      back = store(border, params, arrays, gradients=gradients)
      assert back.keys() == arrays.keys()
      for key, x in arrays.items():
        np.testing.assert_array_equal(back[key], x + (gradients and not adain and 'bias' in key))
  with pytest.raises(ValueError, match='lod'):
    TensorFlow(16, True).path('lod')
