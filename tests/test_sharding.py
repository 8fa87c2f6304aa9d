"""The mesh on slices where processes interleave, rows that don't divide, keys that differ."""

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from sg2jax import data, keys, sharding
from sg2jax.evaluation import features


class Device:
  """As much of a jax.Device as a mesh looks at."""

  platform, device_kind, client = 'tpu', 'simulated', None

  def __init__(self, number, process):
    self.id, self.process_index = number, process

  def __repr__(self):
    return f'{self.id}@{self.process_index}'


# (processes, ids) of the devices in the order in which jax.make_mesh lays out these slices: of
# libtpu 0.0.52's topologies v5e:4x4 and v4:2x2x4 (one device a chip) with jax 0.10.2.
SLICES = {
  'v5e-16': (
    [0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0],
    [0, 1, 2, 3, 7, 6, 5, 9, 10, 11, 15, 14, 13, 12, 8, 4],
  ),
  'v4-32': ([0, 1, 2, 3] * 4, [0, 8, 16, 24, 4, 12, 20, 28, 2, 10, 18, 26, 6, 14, 22, 30]),
}


def laid_out(slice_):
  """Its devices in that order."""
  return [Device(number, process) for process, number in zip(*SLICES[slice_], strict=True)]


def global_rows(mesh, local, n):
  """What a mesh makes of the rows of each process, {process: rows} -> [n]."""
  slices = NamedSharding(mesh, PartitionSpec('data')).devices_indices_map((n,))
  rows = [None] * n
  next_row = {process: iter(part) for process, part in local.items()}
  for device in mesh.devices.flat:  # each takes the next of its process's rows
    for row in range(n)[slices[device][0]]:
      rows[row] = next(next_row[device.process_index])
  return rows


@pytest.fixture
def as_process(monkeypatch):
  """A function that makes jax say that it is process p of n."""

  def pose(p, n=4):
    monkeypatch.setattr(jax, 'process_index', lambda: p)
    monkeypatch.setattr(jax, 'process_count', lambda: n)

  return pose


@pytest.mark.parametrize('slice_', SLICES)
@pytest.mark.parametrize('n, size, group', [(100, 64, 1), (64, 64, 1), (7, 32, 1), (50, 64, 4)])
def test_evaluation_counts_every_image_once_on_slices(slice_, n, size, group, as_process):
  mesh = sharding.make_mesh(laid_out(slice_)[::-1])
  counted = []
  for first in range(0, n, size):
    batch, local = min(size, n - first), {}
    for p in range(4):
      as_process(p)
      local[p] = features._share(mesh, first, batch, size, group).tolist()
    total = sum(map(len, local.values()))
    counted += global_rows(mesh, local, total)[:batch]
  assert counted == list(range(n))


@pytest.mark.parametrize('slice_', SLICES)
def test_the_order_of_make_mesh_would_lose_images(slice_, as_process):
  """What the test above says of the layout that jax.make_mesh chooses: so it can fail."""
  mesh, local = jax.sharding.Mesh(np.array(laid_out(slice_)), ('data',)), {}
  for p in range(4):
    as_process(p)
    local[p] = features._share(mesh, 0, 50, 64).tolist()
  counted = global_rows(mesh, local, 64)[:50]
  assert len(set(counted)) < 50


@pytest.mark.parametrize('slice_', SLICES)
def test_training_sees_every_image_once_on_slices(slice_):
  """What processes read of a round, put together by the mesh, is the round as one reads it."""

  class Numbers:
    stored = shape = (1, 1, 1)
    place = 'numbers'

    def __len__(self):
      return 97

    def __getitem__(self, i):
      return {'image': np.full((1, 1, 1), i, np.uint8), 'label': np.zeros(0, np.float32)}

  options = dict(batch=64, microbatch=32, seed=3, mirror=False, nimg=64)
  read = [
    next(data.batches(Numbers(), process_index=p, process_count=4, **options))['image']
    for p in range(4)
  ]
  alone = next(data.batches(Numbers(), **options))['image']
  mesh = sharding.make_mesh(laid_out(slice_))
  for r in range(2):
    local = {p: x[r].ravel().tolist() for p, x in enumerate(read)}
    assert global_rows(mesh, local, 32) == alone[r].ravel().tolist()


def test_mesh_keeps_the_devices_of_a_process_side_by_side():
  mesh = sharding.make_mesh(laid_out('v5e-16'))
  assert [d.process_index for d in mesh.devices.flat] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
  assert [d.id for d in mesh.devices.flat] == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
  assert mesh.axis_types == (jax.sharding.AxisType.Auto,)


@pytest.mark.parametrize('seed', [0, 7])
def test_keys_of_purposes_are_kept_apart(seed):
  """Children and keys of minibatches, too: D's first key was once the parent of minibatch 1's."""
  drawn = []
  for purpose in keys.PURPOSES:
    key = keys.purpose_key(seed, purpose)
    children = [key, *jax.random.split(key, 3), *(jax.random.fold_in(key, i) for i in range(50))]
    # Within a purpose split and fold_in may coincide; one purpose uses one of them.
    drawn.append({tuple(jax.random.key_data(k).tolist()) for k in children})
  assert len(set().union(*drawn)) == sum(map(len, drawn))
  root = tuple(jax.random.key_data(jax.random.key(seed)).tolist())
  assert root not in set().union(*drawn)


@pytest.mark.smoke
def test_keys_are_those_of_version_0_2():
  """What a seed means is a promise: a run goes on bit for bit."""
  numbers = {'init': [1797259609, 2579123966], 'training': [928981903, 3453687069]}
  for purpose, number in numbers.items():
    assert jax.random.key_data(keys.purpose_key(0, purpose)).tolist() == number


@pytest.mark.parametrize(
  'n, devices, each',
  [(4, 8, 1), (3, 8, 1), (12, 8, 1), (5, 4, 1), (1, 6, 1), (8, 8, 1), (16, 8, 1), (12, 2, 8)],
)
def test_rows_that_do_not_divide_are_repeated(n, devices, each, monkeypatch):
  monkeypatch.setattr(jax.lax, 'with_sharding_constraint', lambda x, _: x)
  mesh = sharding.make_mesh([Device(i, 0) for i in range(devices)])
  rows = sharding.spread(mesh, each)(np.arange(n)).tolist()
  assert rows[:n] == list(range(n)) and set(rows) == set(range(n))
  assert len(rows) == max(each * devices, -(-n // devices) * devices)
