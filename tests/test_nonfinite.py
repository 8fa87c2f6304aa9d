"""Runs that end because a number isn't finite, in each phase, and their minibatches once more."""

import json
import re

import pytest

from sg2jax.faults import NonFiniteError, UsageError
from sg2jax.training import nonfinite
from sg2jax.training.train import train
from tests.runs import configuration, finish, start

# What makes a phase the first whose numbers aren't finite, and the minibatch in which that is.
CAUSES = {
  'g': ({'opt.d_lr': 1e30, 'loss.r1_gamma': 0.0, 'loss.pl_weight': 0.0}, 1),
  'g_reg': ({'loss.pl_weight': 3e37, 'loss.r1_gamma': 0.0}, 0),
  'd': ({'opt.g_lr': 1e30, 'loss.r1_gamma': 0.0, 'loss.pl_weight': 0.0}, 0),
  'd_reg': ({'loss.r1_gamma': 4e37, 'loss.pl_weight': 0.0}, 0),
}
# Of one block, which compiles in half the time, and no longer than it takes.
SMALL = {
  'resolution': 4,
  'swd_images': 0,
  'total_kimg': 0.032,
  'tick_kimg': 0.016,
  'snapshot_kimg': 0.016,
  'data.labels': False,
}


@pytest.fixture(autouse=True)
def as_in_a_process_of_its_own(quick_compile, home, monkeypatch):
  """It shares compiled steps with those, whose options it has."""
  monkeypatch.setenv('SG2JAX_CACHE', str(home / 'sg2jax'))


def same_numbers(out):
  """Whether the numbers that a replay prints are those of then, and there are some."""
  rows = [line.split() for line in out.splitlines()]
  first = rows.index(['then', 'now']) + 1
  pairs = [row[-2:] for row in rows[first:] if len(row) >= 3]
  return len(pairs) >= 3 and all(then == now for then, now in pairs)


@pytest.mark.parametrize(
  'phase',
  ['g_reg', pytest.param('g', marks=pytest.mark.slow), pytest.param('d', marks=pytest.mark.slow)],
)
def test_a_run_exits_with_4_and_its_minibatch_can_be_replayed(home, tmp_path, capsys, phase):
  fields, step = CAUSES[phase]
  config = configuration(home, **SMALL, **fields)
  with pytest.raises(NonFiniteError) as e:
    train(config, tmp_path)
  said = str(e.value)
  file = tmp_path / 'nonfinite' / f'{step}-{phase}.json'
  saved = json.loads(file.read_text())
  assert f'step {step}, phase {phase}: {saved["array"]} is not finite' in said and str(file) in said
  assert saved['array'].startswith(f'{phase[0]}.')
  assert (saved['nimg'], len(saved['images']), len(saved['key'])) == (8 * step, 8, 2)
  assert saved['numbers'][f'grad_norm_{phase}'] in ('nan', 'inf')
  # The state that it met, of which nothing was applied.
  manifest = json.loads((tmp_path / 'nonfinite' / saved['state'] / 'manifest.json').read_text())
  assert manifest['step'] == step
  capsys.readouterr()
  again = f'{saved["array"]} is not finite; then it was {saved["array"]}'
  with pytest.raises(NonFiniteError, match=re.escape(again)):
    nonfinite.replay(config, file)
  out = capsys.readouterr().out
  assert same_numbers(out), out


def test_the_command_line_a_remedy_and_what_replay_refuses(home, tmp_path, capsys):
  cause, _ = CAUSES['d_reg']
  fields = SMALL | cause
  _, err = finish(start(home, tmp_path, **fields), 4)
  assert 'step 0, phase d_reg: d.' in err and len(err.splitlines()) == 1
  file = tmp_path / 'nonfinite' / '0-d_reg.json'
  saved = json.loads(file.read_text())
  assert (saved['nimg'], saved['state']) == (0, 'checkpoints/1')  # its clock has moved on
  out, err = finish(start(home, tmp_path, replay=file, **fields), 4)
  assert same_numbers(out) and f'then it was {saved["array"]}' in err
  assert len(err.splitlines()) == 1

  remedy = {'loss.r1_gamma': 0.05, 'd.variant.mapping_lr_mul': 1.0}
  nonfinite.replay(configuration(home, **fields | remedy), file)
  out = capsys.readouterr().out
  assert 'd.variant.mapping_lr_mul: 0.01 there, 1.0 here' in out
  assert 'loss.r1_gamma: 4e+37 there, 0.05 here' in out and 'all numbers are finite now' in out
  with pytest.raises(NonFiniteError):
    nonfinite.replay(configuration(home, **fields), file)
  with pytest.raises(UsageError, match='--replay=.*WORKDIR/nonfinite/'):
    nonfinite.replay(configuration(home), tmp_path / 'config.json')
  with pytest.raises(UsageError, match='make another minibatch'):
    nonfinite.replay(configuration(home, **fields, seed=1), file)
