"""What a run that goes wrong says, once; and that one that doesn't says nothing."""

import json

import numpy as np
import pytest

from sg2jax.training import snapshot
from sg2jax.training.health import LEAST, Health
from sg2jax.training.report import Report
from tests.runs import finish, start

# a tick of the quickstart
HEALTHY = {
  'loss_d': 0.79,
  'logits_real': 1.09,
  'logits_fake': -1.98,
  'grad_norm_g': 43.7,
  'grad_norm_g_reg': 0.045,
  'grad_norm_d': 10.7,
  'pl_length': 0.156,
  'diversity': 0.9,
  'r_v': 0.4,
  'nearest': 0.97,
  'augment_p': 1.0,
  'r_t': 0.55,
}
TARGET = 0.6  # of r_t, by augment_p


@pytest.mark.parametrize(
  'trouble, says',
  [
    ({'loss_d': 0.003, 'logits_real': 7.0, 'logits_fake': -8.0}, 'loss_d 0.003; mean logits of r'),
    ({'loss_d': 0.3, 'logits_fake': -51.0}, 'the logits of D run away'),
    ({'grad_norm_g': 0.0, 'logits_real': 0.0, 'logits_fake': 0.0}, 'no gradient reaches G'),
    ({'diversity': 0.02}, 'samples are alike: their standard deviation is 0.02'),
    ({'nearest': 0.2}, 'samples are copies of training pictures (nearest 0.2,'),
    ({'r_t': 0.65}, 'augment_p is at 1, its bound, and D is still sure'),
    ({'pl_length': 16.0}, 'pl_length runs away: 16, where 0.156 was usual'),
    ({'grad_norm_g_reg': 5.0}, 'grad_norm_g_reg runs away'),
    ({'grad_norm_d': 1.1e3}, 'grad_norm_d runs away'),
  ],
)
def test_each_trouble_is_told_in_the_tick_it_appears_in_and_when_it_comes_back(trouble, says):
  health = Health(TARGET)
  for _ in range(LEAST):
    assert health.look(HEALTHY) == []
  bad = HEALTHY | trouble
  (line,) = health.look(bad)
  assert line.startswith('warning: ') and says in line and not set('\n{}') & set(line)
  assert health.look(bad) == []
  # Between snapshots there is no diversity, and nothing is known of it.
  assert health.look({'sec_per_tick': 1.0}) == health.look(bad) == []
  assert health.look(HEALTHY) == []
  assert len(health.look(bad)) == 1


def test_two_snapshots_in_a_row_show_that_d_memorises():
  health = Health()
  between = {'sec_per_tick': 1.0}
  found = []
  for r_v in (0.9, 0.3, 0.9, 1.1, 1.2, 0.1, 0.9, 0.9):
    found.append(health.look(HEALTHY | {'r_v': r_v}))
    assert health.look(between) == []
  assert [len(warnings) for warnings in found] == [0, 0, 0, 1, 0, 0, 0, 1]
  (line,) = found[3]
  assert line.startswith('warning: D knows its pictures by heart') and 'r_v 1.1' in line
  for remedy in ('More pictures', 'augment.pipeline', 'r1_gamma', 'freeze_layers', 'best checkp'):
    assert remedy in line


def test_p_at_its_bound_is_a_trouble_where_it_is_to_bring_r_t_down():
  for target, count in ((0.7, 0), (0.4, 1), (0.0, 0)):  # 0: p stays, at whatever it was put to
    assert len(Health(target).look(HEALTHY)) == count


def test_what_grows_slowly_or_begins_high_runs_not_away():
  health = Health()
  for tick in range(40):
    assert health.look(HEALTHY | {'grad_norm_d': 1.5**tick, 'grad_norm_g': 1e4 * 0.9**tick}) == []
  young = Health()
  assert young.look(HEALTHY) == young.look(HEALTHY | {'pl_length': 1e6}) == []


def test_all_alike_and_as_diverse_as_reals(rng=np.random.default_rng(0)):
  reals = rng.integers(0, 256, (32, 8, 8, 3), np.uint8)
  assert snapshot.spread(list(reals)) == pytest.approx(73.5, rel=0.02)
  assert snapshot.spread(np.repeat(reals[:1], 32, axis=0)) == 0


def test_the_report_says_it_below_the_tick(tmp_path, capsys):
  log = Report(tmp_path, 0, 10)
  alike = HEALTHY | {'diversity': 0.0}
  log.tick(0, 0, {'diversity': 0.0}, 0, 0)
  for step in (1, 2):
    log.tick(step, 100 * step, alike, 1, 100)
  log.close()
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines] == ['tick', 'tick', 'warning:', 'tick']
  rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert [row['diversity'] for row in rows] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
  'fields, says',
  [
    ({}, None),
    ({'opt.g_lr': 0.25, 'opt.d_lr': 0.25}, 'the logits of D run away'),
    ({'d.clamp': 1e-30}, 'no gradient reaches G'),  # D is constant
  ],
)
def test_runs_that_break_warn_and_others_do_not(home, tmp_path, fields, says):
  out, _ = finish(start(home, tmp_path, **fields, total_kimg=1.6, tick_kimg=0.16))
  warnings = [line for line in out.splitlines() if line.startswith('warning: ')]
  assert len([line for line in warnings if says and says in line]) == bool(says), out
  assert says or not warnings
