"""Checkpoints: bit-equal, whole or not counted, and nothing lost that was saved before."""

from concurrent import futures
import contextlib
import json
import logging as std_logging
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys

from absl import logging
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from sg2jax import files
from sg2jax import state as state_lib
from sg2jax.faults import CheckpointError, WriteError
from sg2jax.training import checkpoint
from sg2jax.training import manifest as manifest_lib
from sg2jax.training.checkpoint import Checkpoints
from tests.runs import ROOT, checkpoint_at

META = {'config_hash': 'c', 'data_hash': 'd', 'batches': {16: 'int keys become strings'}}


@flax.struct.dataclass
class State:
  step: jax.Array
  g: dict
  opt: tuple
  wide: np.ndarray


def state_at(step, width=8):
  """A state whose values are functions of `step`: all dtypes, scalars, NaN, empty optax states."""
  w = np.arange(9 * width, dtype=np.float32).reshape(3, 3, width) / np.float32(7) + np.float32(step)
  g = {
    'b4': {'conv0': {'w': jnp.asarray(w), 'half': jnp.asarray(w[0, 0]).astype(jnp.bfloat16)}},
    'odd': jnp.float32([np.nan, -0.0, np.inf, 1e-45]),
    'pl_mean': jnp.float32(step),
    'none': {},
  }
  opt = optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(g)
  return State(jnp.int32(step), g, opt, np.linspace(0, step, 5))


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@contextlib.contextmanager
def opened(workdir, keep=2):
  with contextlib.closing(Checkpoints(workdir, keep=keep, meta=META)) as checkpoints:
    yield checkpoints


@pytest.fixture
def warned():
  """What checkpoint.py warns of."""
  lines, handler = [], std_logging.Handler(std_logging.WARNING)
  handler.emit = lambda r: lines.append(r.getMessage())
  logging.get_absl_logger().addHandler(handler)
  yield lines
  logging.get_absl_logger().removeHandler(handler)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A workdir with steps 1 and 2; tests copy it."""
  workdir = tmp_path_factory.mktemp('saved')
  (workdir / 'config.json').write_text('{"batch": 4}')
  with opened(workdir) as checkpoints:
    for step in (1, 2):
      checkpoints.save(state_at(step))
  return workdir


@pytest.fixture
def workdir(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / 'run')


def names(workdir):
  return sorted(p.name for p in (workdir / 'checkpoints').iterdir())


def restore(workdir, like=None):
  with opened(workdir) as checkpoints:
    return checkpoints.restore_latest(like or state_at(0))


@pytest.mark.smoke
def test_round_trip_is_bit_equal_and_plain_orbax_reads_it(workdir):
  assert_equal(restore(workdir), state_at(2))
  assert isinstance(restore(workdir).step, jax.Array)
  with jax.enable_x64(True):
    assert_equal(restore(workdir, jax.device_put(state_at(0), jax.devices()[0])), state_at(2))
  tree, config = checkpoint.load(workdir)
  assert config == {'batch': 4}
  for item in (
    tree,
    ocp.PyTreeCheckpointer().restore(workdir / 'checkpoints/2/state'),
    ocp.StandardCheckpointer().restore(workdir / 'checkpoints/2/state'),
  ):
    assert_equal(item['g'], jax.device_get(state_at(2).g))
    assert item['wide'].dtype == np.float64
    assert item['opt'][1][0]['count'] == 0
  assert checkpoint_at(workdir / 'checkpoints/1').name == '1'
  assert checkpoint_at(workdir / 'checkpoints').name == '2'


def test_nothing_saved_is_none_and_nothing_created(tmp_path):
  assert restore(tmp_path / 'run') is None
  assert not (tmp_path / 'run').exists()
  with pytest.raises(CheckpointError, match=r'manifest|no whole checkpoint'):
    checkpoint_at(tmp_path / 'run')


def test_equal_states_are_equal_bytes(workdir, tmp_path):
  with opened(tmp_path / 'other') as checkpoints:
    checkpoints.save(state_at(2))
  run, other = (
    {str(p.relative_to(w)): p.read_bytes() for p in w.rglob('checkpoints/2/**/*') if p.is_file()}
    for w in (workdir, tmp_path / 'other')
  )
  assert run == other and len(run) > 20


def flip(path):
  data = path.read_bytes()
  half = len(data) // 2
  path.write_bytes(data[:half] + bytes([data[half] ^ 8]) + data[half + 1 :])


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
  'file, damage',
  [
    ('manifest.json', truncate),
    ('manifest.json', pathlib.Path.unlink),
    ('state/g.b4.conv0.w/0.0.0', flip),
    ('state/g.b4.conv0.w/0.0.0', truncate),
    ('state/step/.zarray', pathlib.Path.unlink),
    ('state/_METADATA', flip),
  ],
)
def test_damage_is_named_set_aside_and_the_step_before_used(workdir, warned, file, damage):
  path = workdir / 'checkpoints/2' / file
  damage(path)
  with pytest.raises(CheckpointError, match=str(path)):
    checkpoint.load(path.parents[len(pathlib.Path(file).parts) - 1])
  assert int(checkpoint.load(workdir)[0]['step']) == 1
  del warned[:]
  with opened(workdir) as checkpoints:
    assert int(checkpoints.restore_latest(state_at(0)).step) == 1
    assert len(warned) == 1
    assert str(path) in warned[0]
    assert names(workdir) == ['1', '2.damaged-0']
    checkpoints.save(state_at(2))  # the run comes by here again
  assert int(restore(workdir).step) == 2
  assert names(workdir) == ['1', '2', '2.damaged-0']


def test_every_bit_of_the_manifest_counts(workdir):
  path = workdir / 'checkpoints/2/manifest.json'
  data = path.read_bytes()
  for at in range(0, len(data), 11):
    path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
    with pytest.raises(CheckpointError, match='damaged checkpoint'):
      checkpoint_at(path.parent)


def test_empty_and_foreign_names_do_not_count(workdir, warned):
  root = workdir / 'checkpoints'
  (root / '9').mkdir()
  (root / '11').write_text('a file')
  (root / '012').mkdir()
  (root / 'notes').mkdir()
  (root / 'notes.txt').write_text('mine')
  (root / '7.tmp/state.orbax-checkpoint-tmp').mkdir(parents=True)
  shutil.copytree(root / '1', root / '13')
  assert int(restore(workdir).step) == 2
  assert names(workdir) == [
    '012',
    '1',
    '11.damaged-0',
    '13.damaged-0',
    '2',
    '9.damaged-0',
    'notes',
    'notes.txt',
  ]
  for name in ('/9', '/11', '/012', '/notes ', '/13'):
    assert any(name in line for line in warned), name


def test_none_whole_is_an_error_again_and_again(workdir, warned):
  for step in '12':
    flip(workdir / 'checkpoints' / step / 'state/step/0')
  for _ in range(2):  # a second start must not silently begin at step 0
    with pytest.raises(CheckpointError, match='no whole checkpoint') as e:
      restore(workdir)
    assert e.value.code == 6
  assert names(workdir) == ['1.damaged-0', '2.damaged-0']


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda g: g | {'pl_mean': g['odd']}, 'g.pl_mean is float32[] there, float32[4] here'),
    (lambda g: g | {'odd': g['odd'].astype(int)}, 'g.odd is float32[4] there, int'),
    (lambda g: g | {'new': jnp.float32([1, 2, 3])}, 'g.new is missing there, float32[3] here'),
    (lambda g: {k: v for k, v in g.items() if k != 'odd'}, 'g.odd is float32[4] there, missing'),
  ],
)
def test_another_state_is_refused_by_its_first_leaf(workdir, change, words):
  state = state_at(0)
  with pytest.raises(CheckpointError, match=re.escape(words)):
    restore(workdir, state.replace(g=change(state.g)))
  assert names(workdir) == ['1', '2']


def test_newer_format_is_refused_and_left_alone(workdir):
  rewrite(workdir / 'checkpoints/2', format=checkpoint.FORMAT + 1)
  for use in (restore, checkpoint.load):
    with pytest.raises(CheckpointError, match='update sg2jax'):
      use(workdir)
  assert names(workdir) == ['1', '2']


@flax.struct.dataclass
class Younger(State):
  """A state of today: version 0.1 had no `fault`."""

  fault: jax.Array


def rewrite(step, **fields):
  """Other fields in a manifest, sealed again."""
  path = step / 'manifest.json'
  manifest = json.loads(path.read_text())
  del manifest['sha256']
  path.write_text(manifest_lib.encode(manifest | fields))


@pytest.mark.parametrize('name', ['../elsewhere', '/etc/elsewhere', 'state/../../elsewhere'])
def test_a_manifest_names_no_files_elsewhere(workdir, name):
  step = workdir / 'checkpoints' / '2'
  files = manifest_lib.read_manifest(step)['files']
  rewrite(step, files=files | {name: [0, '']})
  with pytest.raises(manifest_lib.Damaged, match='elsewhere'):
    manifest_lib.read_manifest(step)


def test_leaves_younger_than_the_format_have_their_defaults(workdir, monkeypatch):
  """A checkpoint of version 0.1 restores into a state of today; one of today that lacks a leaf does
  not.
  """
  monkeypatch.setattr(checkpoint.state_lib, 'LATER_FIELDS', {'fault': np.int32([7, 0, 0])})
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  like = Younger(**vars(state_at(0)), fault=jax.ShapeDtypeStruct((3,), np.int32, sharding=here))
  with pytest.raises(CheckpointError, match='leaf fault is missing there'):
    restore(workdir, like)
  rewrite(workdir / 'checkpoints/2', format=1)
  with opened(workdir) as checkpoints:
    assert checkpoints.restored is None
    state = checkpoints.restore_latest(like)
    assert checkpoints.restored['format'] == 1 and checkpoints.restored['step'] == 2
    assert_equal(state, Younger(**vars(state_at(2)), fault=jnp.int32([7, 0, 0])))
    assert isinstance(state.fault, jax.Array) and int(checkpoint.load(workdir)[0]['step']) == 2
    checkpoints.save(state.replace(step=jnp.int32(3)))
  assert (
    json.loads((workdir / 'checkpoints/3/manifest.json').read_text())['format']
    == checkpoint.FORMAT
    == 3
  )
  assert int(restore(workdir, like).step) == 3
  with pytest.raises(CheckpointError, match=r'leaf g.odd is float32\[4\] there, missing'):
    rewrite(workdir / 'checkpoints/3', format=1)
    restore(workdir, like.replace(g={k: v for k, v in like.g.items() if k != 'odd'}))


def test_a_new_field_of_the_state_comes_with_a_new_format():
  """Or checkpoints of the format before, which lack it, would be refused."""
  fields = {'fault', 'augment_p', 'augment_signs'}
  assert (set(state_lib.LATER_FIELDS), checkpoint.FORMAT) == (fields, 3)


def test_half_written_and_foreign_things_are_no_beginning(workdir, tmp_path):
  assert checkpoint.begun(workdir) and not checkpoint.begun(tmp_path / 'nowhere')
  root = tmp_path / 'b/checkpoints'
  (root / '5.tmp').mkdir(parents=True)
  (root / 'notes').mkdir()
  assert not checkpoint.begun(tmp_path / 'b')
  (root / '5.tmp').rename(root / '5.damaged-0')
  assert checkpoint.begun(tmp_path / 'b')


def test_best_on_other_pictures_is_not_the_best(tmp_path):
  with opened(tmp_path, keep=1) as checkpoints:
    for step, score in enumerate([1.0, 5.0]):
      checkpoints.save(state_at(step), score=score)
  with contextlib.closing(
    Checkpoints(tmp_path, keep=1, meta=META | {'data_hash': 'other'})
  ) as checkpoints:
    for step, score in ((2, 9.0), (3, 10.0)):
      checkpoints.save(state_at(step), score=score)
  assert names(tmp_path) == ['2', '3']


def test_newest_and_best_are_kept_also_by_the_next_process(tmp_path):
  with opened(tmp_path) as checkpoints:
    for step, score in enumerate([5.0, 1.0, None, float('nan'), 2.0]):
      checkpoints.save(state_at(step), score=score)
  assert names(tmp_path) == ['1', '3', '4']
  with opened(tmp_path, keep=1) as checkpoints:
    checkpoints.restore_latest(state_at(0))
    checkpoints.save(state_at(4))  # there already
    checkpoints.save(state_at(5), score=9)
  assert names(tmp_path) == ['1', '5']
  manifest = json.loads((tmp_path / 'checkpoints/1/manifest.json').read_text())
  assert (manifest['score'], manifest['meta']['data_hash']) == (1.0, 'd')
  assert manifest['leaves']['g.b4.conv0.half'] == ['bfloat16', [8]]


# Tensorstore's other writes have no event loop to report to.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_full_disk_is_told_and_loses_nothing(workdir, warned):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  with opened(workdir) as checkpoints:
    assert int(checkpoints.restore_latest(state_at(0)).step) == 2
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
      checkpoints.save(state_at(3, width=16384))
      with pytest.raises(WriteError, match=r'checkpoints/3: .* \(\d{6,} bytes; \d+ bytes fr') as e:
        checkpoints.wait()
      assert '\n' not in str(e.value)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # Another writer of tensorstore's may be late and make 3.tmp again: the next save, or run,
    # removes it.
    assert set(names(workdir)) - {'3.tmp'} == {'1', '2'}
    checkpoints.wait()  # told once
    checkpoints.save(state_at(3))
  assert int(restore(workdir).step) == 3
  assert names(workdir) == ['2', '3']


def test_no_manifest_no_checkpoint_and_the_next_save_says_so(workdir, monkeypatch):
  def full(*_, **__):
    raise OSError(28, 'No space left on device')

  with opened(workdir) as checkpoints:
    with monkeypatch.context() as m:
      m.setattr(checkpoint, 'seal', full)
      checkpoints.save(state_at(3))
      futures.wait([checkpoints._saving])
    with pytest.raises(WriteError, match='No space left'):
      checkpoints.save(state_at(4))
    checkpoints.save(state_at(4))
    checkpoints.wait()
    monkeypatch.setattr(pathlib.Path, 'mkdir', full)
    checkpoints.save(state_at(5))
    with pytest.raises(WriteError, match='No space left'):
      checkpoints.wait()
  assert names(workdir) == ['2', '4']


def test_warns_with_room_for_three_and_refuses_without_for_one(workdir, warned, monkeypatch):
  size = sum(x.nbytes + 12288 for x in jax.tree.leaves(state_at(3)))
  monkeypatch.setattr(files, 'free_bytes', lambda _: 3 * size - 1)
  with opened(workdir) as checkpoints:
    checkpoints.save(state_at(3))
    assert 'room' in warned[0]
    monkeypatch.setattr(files, 'free_bytes', lambda _: 3 * size)
    checkpoints.save(state_at(4))
    checkpoints.wait()
    assert len(warned) == 1
    monkeypatch.setattr(files, 'free_bytes', lambda _: size - 1)
    checkpoints.save(state_at(5))
    with pytest.raises(WriteError, match=f'{size} bytes; {size - 1} bytes free.* No space left'):
      checkpoints.wait()
  assert names(workdir) == ['3', '4']


def donation(workdir, sharding):
  """Saves, then at once reuses the donated buffers; what is saved must be the state at save()."""
  update = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  big = {f'w{i}': jax.device_put(jnp.full((512, 512), float(i)), sharding) for i in range(24)}
  state = State(jax.device_put(jnp.int32(0), sharding), big, (), jnp.zeros(()))
  with opened(workdir) as checkpoints:
    for expected in (0, 30):
      checkpoints.save(state)
      for _ in range(30):
        state = update(state)
      jax.block_until_ready(state)
      checkpoints.wait()
      tree = checkpoint.read_state(workdir / f'checkpoints/{expected}')
      for i in range(24):
        assert (tree['g'][f'w{i}'] == i + expected).all(), (i, expected)


def test_donated_buffers_are_copied_before_save_returns(tmp_path):
  donation(tmp_path, jax.devices()[0])


def run_script(script, workdir, **env):
  subprocess.run(
    [sys.executable, '-c', script, workdir, ROOT],
    check=True,
    timeout=120,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'} | env,
  )


EIGHT = """
import sys, pathlib, jax, numpy as np
sys.path[:0] = [sys.argv[2], sys.argv[2] + '/tests']
from test_checkpoint import State, assert_equal, donation, opened, state_at
assert jax.device_count() == 8
jax.config.update('jax_enable_x64', True)
mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
shard = lambda *spec: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
workdir = pathlib.Path(sys.argv[1])
def abstract(x):
  sharding = shard(None, None, 'data') if x.shape == (3, 3, 8) else shard()
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
template = jax.tree.map(abstract, state_at(0))
with opened(workdir) as checkpoints:
  state = checkpoints.restore_latest(template)
assert_equal(state, state_at(2))
leaves = zip(jax.tree.leaves(state), jax.tree.leaves(template))
assert all(x.sharding == t.sharding for x, t in leaves)
with opened(workdir.parent / 'eight') as checkpoints:
  checkpoints.save(state)
donation(workdir.parent / 'donation', shard())
"""


def test_one_to_eight_to_one_device_is_bit_equal(workdir):
  run_script(EIGHT, workdir, XLA_FLAGS='--xla_force_host_platform_device_count=8')
  assert_equal(restore(workdir.parent / 'eight'), state_at(2))
  one, eight = workdir / 'checkpoints/2', workdir.parent / 'eight/checkpoints/2'
  assert (one / 'manifest.json').read_text() == (eight / 'manifest.json').read_text()  # all SHA-256


KILL = """
import os, pathlib, random, signal, sys, time
sys.path[:0] = [sys.argv[2], sys.argv[2] + '/tests']
import numpy as np
from test_checkpoint import State, assert_equal, opened

workdir = pathlib.Path(sys.argv[1])

def state_at(step):  # numpy alone: nothing to compile, so that the time goes into saving
  leaves = {str(i): np.full((64, 256), step + i, np.float32) for i in range(20)}
  return State(np.int32(step), leaves, (), ())

def child(ready):
  with opened(workdir) as checkpoints:
    state = checkpoints.restore_latest(state_at(0))
    step = 0 if state is None else int(state.step)
    assert step >= int((workdir / 'done').read_text()), 'a finished save was lost'
    if state is not None:
      assert_equal(state, state_at(step))
    os.write(ready, b'r')
    while True:  # one save tells the parent how long it takes; it kills in one of the next
      step += 1
      checkpoints.save(state_at(step))
      checkpoints.wait()
      (workdir / 'done.new').write_text(str(step))
      os.replace(workdir / 'done.new', workdir / 'done')
      os.write(ready, b'd')

workdir.mkdir()
(workdir / 'done').write_text('0')
rng, halves = random.Random(0), 0
for trial in range(8):  # jax is imported once, and forked before it starts a thread
  read, ready = os.pipe()
  pid = os.fork()
  if pid == 0:
    try:
      child(ready)
    finally:
      os._exit(1)
  os.close(ready)
  start = os.read(read, 1) and time.time()
  assert os.read(read, 1) == b'd', f'trial {trial}: the child failed'
  time.sleep(rng.uniform(0, 2) * (time.time() - start))
  os.kill(pid, signal.SIGKILL)
  assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]), f'trial {trial}: the child failed'
  halves += bool(list(workdir.glob('checkpoints/*.tmp')))
assert halves, 'no save was hit: prolong them'
"""


def test_kill_at_any_moment_leaves_whole_checkpoints_only(tmp_path):
  run_script(KILL, tmp_path / 'run')
  assert not [name for name in names(tmp_path / 'run') if '.damaged' in name]
  done = int((tmp_path / 'run/done').read_text())
  assert int(checkpoint_at(tmp_path / 'run').name) >= done > 0
