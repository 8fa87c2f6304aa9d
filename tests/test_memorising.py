"""What a snapshot says of memorising: by a D and by pictures of which the answer is known."""

import dataclasses
import types

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sg2jax import schedule, sharding
from sg2jax.training import memorising
from sg2jax.training.memorising import (
  LOGITS,
  Logits,
  Memorising,
  Nearest,
  full_batches,
  overfitting,
)
from tests.test_snapshot import config_of


@flax.struct.dataclass
class State:
  """What is looked at of a TrainState; a network is one number."""

  g: float = 0.0
  d: float = 7.0
  noise: dict = dataclasses.field(default_factory=dict)
  pl_mean: np.float32 = np.float32(0)
  augment_p: float = 0.0


class Pictures:
  """A data.Source of images [N,H,W,C]; its labels are the numbers of the images."""

  def __init__(self, images, held_out=None):
    self.images, self.held_out = np.asarray(images, np.uint8), held_out
    self.shape = self.stored = self.images.shape[1:]
    self.c_dim, self.place, self.places, self.labels = 1, '-', range(len(images)), None

  def __len__(self):
    return len(self.images)

  def __getitem__(self, i):
    return {'image': self.images[i], 'label': self.label(i)}

  def label(self, i):
    return np.float32([i])


def grey(values, side=8):
  return np.broadcast_to(np.uint8(values)[:, None, None, None], (len(values), side, side, 1))


# ---- batches for D


@pytest.mark.parametrize('count', [1, 3, 4, 5, 8, 15, 16, 17, 32, 40])
@pytest.mark.parametrize('batch, group', [(16, 4), (8, 8), (4, 4), (8, 1), (2, 4)])
def test_batches_are_full_and_no_group_has_a_picture_twice(count, batch, group):
  counted = []
  for pictures, is_counted in full_batches(count, batch, group):
    assert pictures.shape == is_counted.shape == (batch,)
    counted += pictures[is_counted].tolist()
    groups = batch // min(group, batch)
    for g in range(groups):  # ops.minibatch_stddev: sample i is in group i mod N/G
      members = pictures[np.arange(batch) % groups == g]
      assert len(set(members)) == min(len(members), count)
  assert sorted(counted) == list(range(count))


# ---- logits


def steps_of(level, batch, generated=0.0):
  """Steps whose D gives the mean grey value of an image, and whose G makes images of one value."""

  def generate(variables, x, *args, method, **_):
    if method == 'map':
      return x
    assert args[0] == 'random' and x.shape[1] == 3  # [M,num_ws,z_dim]
    return jnp.full((len(x), 2, 2, 1), generated) + 0 * variables['params']

  def discriminate(variables, x, c, alpha):
    # A group whose images are alike would be seen, and so would labels of other images.
    return (x.mean((1, 2, 3)) + variables['params'] + 1000 * c[:, 0])[:, None]

  return types.SimpleNamespace(
    generator=types.SimpleNamespace(apply=generate, synthesis=types.SimpleNamespace(num_ws=3)),
    discriminator=types.SimpleNamespace(apply=discriminate),
    stage=schedule.GrowthStage(level=level, batch=batch),
    alpha=lambda state: None,
    augment=types.SimpleNamespace(
      draw=lambda key, shape, image, dtype: jax.random.uniform(key, (*shape, *image), dtype),
      apply=lambda x, draws, p: x + p * (1 + draws),
    ),
    noise_mode='random',
    reals=lambda state, images: images.astype(jnp.float32),
  )


@pytest.mark.parametrize('level, batch, micro', [(0, 8, 4), (2, 8, 0)])
def test_d_is_asked_about_each_part_and_fakes_of_the_training_generator(level, batch, micro):
  heldout = Pictures(grey(range(200, 207)))
  source = Pictures(grey(range(100, 120)), heldout)
  mesh = sharding.make_mesh(jax.devices()[:1])
  logits = Logits(config_of(batch=batch, microbatch=micro, **{'g.z_dim': 2}), source, mesh)
  logits.compile(steps_of(level, batch, generated=50.0))
  stops = []
  found = logits.take(State(), lambda: stops.append(1))
  size = micro or batch
  assert len(stops) == -(-20 // size) + -(-7 // size) + -(-LOGITS // size)
  # Each picture once, with its label; fakes have the labels of training pictures.
  assert found['logits_training'] == pytest.approx(109.5 + 7 + 9500)
  assert found['logits_heldout'] == pytest.approx(203 + 7 + 3000)
  labels = np.resize(logits._places[0], LOGITS)
  assert sorted(labels[:20]) == list(range(20))
  assert found['logits_generated'] == pytest.approx(50 + 7 + 1000 * labels.mean(), rel=1e-6)
  margin = found['logits_training'] - found['logits_generated']
  expected = (found['logits_training'] - found['logits_heldout']) / margin
  assert found['r_v'] == pytest.approx(expected)


def test_all_are_seen_through_the_augmentation_that_training_has(monkeypatch):
  """With the same draws, so that pictures alone differ."""
  monkeypatch.setattr(memorising, 'LOGITS', 6)
  heldout = Pictures(grey([200] * 6))
  source = Pictures(grey([100] * 6), heldout)
  mesh = sharding.make_mesh(jax.devices()[:1])
  logits = Logits(config_of(batch=8, **{'g.z_dim': 2}), source, mesh)
  logits.compile(steps_of(2, 8, generated=50.0))  # all 2x2
  plain, augmented = (logits.take(State(augment_p=p), lambda: None) for p in (0.0, 40.0))
  moved = [augmented[name] - plain[name] for name in logits.names]
  assert 40 < moved[0] < 80 and moved == pytest.approx([moved[0]] * 3, abs=1e-2)
  assert logits.take(State(augment_p=40.0), lambda: None) == augmented


def test_r_v_of_a_healthy_d_of_one_that_memorises_and_of_one_that_knows_nothing():
  assert overfitting(2.0, 2.0, -1.0) == {'r_v': 0}
  assert overfitting(2.0, -1.0, -1.0) == {'r_v': 1}
  assert overfitting(0.1, -3.0, 0.1) == overfitting(0.1, 0.0, 1.0) == {}
  assert overfitting(float('nan'), 0.0, 1.0) == {}


# ---- neighbours


def noise(count, seed, side=8):
  return np.random.default_rng(seed).integers(0, 256, (count, side, side, 1), np.uint8)


def nearest_of(training, heldout=None, mirror=False, level=0, factor=1):
  held_out = None if heldout is None else Pictures(heldout)
  found = Nearest(config_of(**{'data.mirror': mirror}), Pictures(training, held_out), factor)
  assert found.names == [] and found.take(training) == {}
  found.compile(level)
  return found


@pytest.mark.parametrize('heldout', [None, noise(30, 1)])
def test_copies_are_near_and_new_pictures_as_far_as_reals(heldout):
  training = noise(90, 0)
  found = nearest_of(training, heldout)
  assert found.names == ['nearest']
  assert found.take(noise(80, 2))['nearest'] == pytest.approx(1, abs=0.05)
  assert found.take(training[5:40])['nearest'] == 0
  few = np.concatenate([training[:30], noise(70, 2)])
  assert 0.9 < found.take(few)['nearest'] < 1.05  # the median


@pytest.mark.parametrize('mirror', [False, True])
def test_flipped_copies_are_copies_where_training_mirrors(mirror):
  training = noise(50, 0)
  found = nearest_of(training, mirror=mirror).take(training[:, :, ::-1])['nearest']
  assert found == 0 if mirror else 0.9 < found < 1.1


def test_a_symmetric_picture_is_no_neighbour_of_itself_flipped():
  half = noise(50, 0)
  symmetric = np.concatenate([half, half[:, :, ::-1]], axis=2)
  found = nearest_of(symmetric, mirror=True)
  assert found.take(np.concatenate([noise(50, 1), noise(50, 2)], axis=2))['nearest'] > 0.5


def test_a_coarse_stage_compares_coarse_pictures():
  """Fakes of 2 px, enlarged to 8: of sharp pictures they would not be copies."""
  training = noise(50, 0)
  coarse = memorising.data.shrink(training, 4).repeat(4, 1).repeat(4, 2)
  found = nearest_of(training, noise(20, 1))
  assert found.take(coarse)['nearest'] > 0.3
  found.compile(2)
  assert found.take(coarse)['nearest'] == 0
  # What comes is shrunk already; the rest of the way is to 32 px.
  large = noise(9, 0, 128)
  found = nearest_of(large, noise(9, 1, 128), factor=2)
  assert found._base[0].shape == (9, 32 * 32)
  assert found.take(memorising.data.shrink(large, 2)) == {'nearest': 0}


def test_where_most_pictures_have_an_equal_one_there_is_no_number():
  assert nearest_of(np.repeat(noise(20, 0), 2, axis=0)).names == []
  assert nearest_of(noise(1, 0)).names == []


def test_what_is_left_out_without_held_out_pictures():
  mesh = sharding.make_mesh(jax.devices()[:1])
  source = Pictures(noise(20, 0))
  both = Memorising(config_of(), source, mesh, 1)
  both.compile(steps_of(0, 8))
  assert both.names == ['nearest'] and both.take(State(), noise(10, 1)).keys() == {'nearest'}
  source.held_out = Pictures(noise(5, 1))
  both = Memorising(config_of(batch=8), source, mesh, 1)
  both.compile(steps_of(0, 8))
  assert both.names == ['logits_training', 'logits_heldout', 'logits_generated', 'nearest']
