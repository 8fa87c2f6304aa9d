"""What a halted run leaves for --replay, and what of it can be read; with stand-ins for the
networks.
"""

import types

import jax
import numpy as np
import pytest

from configs import default
from sg2jax import schedule
from sg2jax.faults import NonFiniteError, UsageError, WriteError
from sg2jax.state import TrainState
from sg2jax.training import checkpoint, nonfinite
from sg2jax.training.stage import TrainStage


class Images:
  place, shape, c_dim, places = 'somewhere', (16, 16, 1), 0, range(50)

  def __len__(self):
    return 50


class Running:
  """Checkpoints of a run whose last save fails, or doesn't."""

  def __init__(self, error=None):
    self.error = error

  def wait(self):
    if self.error:
      raise self.error


@pytest.fixture
def stage():
  config = default.get_config()
  config.update_from_flattened_dict({'data.dir': '-', 'batch': 4})
  steps = types.SimpleNamespace(stage=schedule.GrowthStage(0, 4))
  mesh = types.SimpleNamespace(size=1)
  return TrainStage(config, mesh, jax.random.key(0), Images(), steps, {})


@pytest.fixture
def halt(monkeypatch, stage):
  monkeypatch.setattr(nonfinite, 'compute_again', lambda *_: ({'loss_d': 'nan'}, 'd.b4.out.bias'))

  def call(workdir, weight=0.0, error=None):
    state = TrainState(
      np.int32(3),
      np.int32(12),
      {'w': np.full(2, weight, np.float32)},
      *[{}] * 5,
      w_avg=np.zeros(2, np.float32),
      pl_mean=np.float32(0),
      fault=np.array([3, 2, 0], np.int32),
    )
    with pytest.raises(NonFiniteError) as e:
      nonfinite.halt(stage, state, workdir, Running(error))
    assert 'step 3, phase d: d.b4.out.bias is not finite' in str(e.value) and '\n' not in str(
      e.value
    )
    return str(e.value)

  return call


@pytest.mark.smoke
def test_a_checkpoint_that_fails_at_the_same_time_does_not_hide_why_the_run_ends(
  halt, stage, tmp_path
):
  assert 'saved before is sound' in halt(tmp_path)
  said = halt(tmp_path, error=WriteError('no room'))
  assert 'the last checkpoint before is lost: no room' in said and '--replay=' in said
  saved = nonfinite.read(tmp_path / 'nonfinite/3-d.json')
  assert saved['images'] == nonfinite.indices(stage, 12)


def test_no_place_for_the_minibatch(halt, tmp_path):
  (tmp_path / 'nonfinite').write_text('')
  assert 'could not be saved for --replay' in halt(tmp_path)


def test_what_an_earlier_halt_left_is_replaced_also_behind_a_link(halt, tmp_path):
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'nonfinite').symlink_to(tmp_path / 'elsewhere')
  for weight in (1.0, 2.0):
    (tmp_path / 'elsewhere/2-g.json').write_text('{}')
    halt(tmp_path, weight)
    assert (
      checkpoint.read_state(tmp_path / 'elsewhere/checkpoints/3')['g']['w'].tolist() == [weight] * 2
    )
    assert sorted(p.name for p in (tmp_path / 'elsewhere').glob('*.json')) == [
      '3-d.json',
      'config.json',
    ]


@pytest.mark.parametrize('content', [b'', b'[]', b'null', b'{"step": 1}', b'\xff\xfe'])
def test_files_that_are_none(tmp_path, content):
  (tmp_path / 'a.json').write_bytes(content)
  with pytest.raises(UsageError, match='--replay=.*a.json is not what a run writes'):
    nonfinite.read(tmp_path / 'a.json')
