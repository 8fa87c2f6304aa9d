"""Workdirs and data sets in buckets: as on a disk, and nothing lost by what networks do."""

import contextlib
import io
import itertools
import json
import logging as std_logging
import pathlib
import re
import tempfile
import threading
import time
import types

import fsspec
import gcsfs.retry
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from sg2jax import addresses, cli, data, files, locks, paths, processes
from sg2jax.addresses import Address
from sg2jax.data import digits, remote
from sg2jax.evaluation import reals
from sg2jax.faults import CheckpointError, DatasetError, UsageError, WriteError
from sg2jax.training import checkpoint, leaves, profile, report, shelves, workdir
from sg2jax.training.checkpoint import Checkpoints
from tests import emulator, runs
from tests.runs import checkpoint_at, content
from tests.test_checkpoint import META, State, assert_equal
from tests.test_processes import finish_all, start_all


def state_at(step):
  """A state whose values are functions of `step`, with few arrays: each is some objects."""
  w = np.arange(12, dtype=np.float32).reshape(3, 4) / np.float32(7) + np.float32(step)
  odd = jnp.float32([np.nan, -0.0, np.inf, 1e-45])
  return State(jnp.int32(step), {'w': w, 'odd': odd.astype(jnp.bfloat16)}, (), odd)


@pytest.fixture(scope='module')
def served():
  with emulator.serving() as found:
    yield found


@pytest.fixture
def bucket(served, monkeypatch):
  """The emulator without faults; whoever tries again doesn't wait for it."""
  served.fault = lambda method, path: None
  served.requests.clear()
  quick_to_try_again(monkeypatch)
  yield served
  served.fault = lambda method, path: None


def quick_to_try_again(monkeypatch):
  async def sleep(_):
    pass

  monkeypatch.setattr(gcsfs.retry, 'asyncio', types.SimpleNamespace(sleep=sleep))
  monkeypatch.setattr(addresses, 'WAITS', (0,))


NUMBERS = itertools.count()


@pytest.fixture
def scratch(tmp_path, monkeypatch):
  """Where temporary folders are made; all are gone in the end."""
  folder = tmp_path / 'scratch'
  folder.mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(folder))
  yield folder
  assert not list(folder.iterdir())


@pytest.fixture(params=['memory', 'gs'])
def place(request, bucket, scratch):
  """A new address of each kind."""
  return paths.place(f'{request.param}://b/run{next(NUMBERS)}')


@pytest.fixture
def memory(bucket, scratch):
  return paths.place(f'memory://b/run{next(NUMBERS)}')


@pytest.fixture
def gs(bucket, scratch):
  return paths.place(f'gs://b/run{next(NUMBERS)}')


@contextlib.contextmanager
def opened(place, keep=2):
  with contextlib.closing(Checkpoints(place, keep=keep, meta=META)) as checkpoints:
    yield checkpoints


def save(place, *steps, keep=2, scores=None):
  with opened(place, keep) as checkpoints:
    for step in steps:
      checkpoints.save(state_at(step), score=(scores or {}).get(step))
      checkpoints.wait()


def restore(place):
  with opened(place) as checkpoints:
    return checkpoints.restore_latest(state_at(0))


def step_of(state):
  return None if state is None else int(state.step)


def names(place):
  return sorted(path.name for path in (place / 'checkpoints').iterdir())


def slow(*values):
  return pytest.param(*values, marks=pytest.mark.slow)


# ---- as on a disk


def test_checkpoints_are_those_of_a_disk(place, tmp_path):
  assert restore(place) is None and not checkpoint.begun(place)
  assert not place.exists()  # nothing created
  scores = {1: 0.5, 2: 0.1}
  save(place, 1, 2, 3, 4, scores=scores)
  save(tmp_path / 'disk', 4)
  assert names(place) == ['2', '3', '4', 'newest'] and checkpoint.begun(place)
  assert content(place, 4) == content(tmp_path / 'disk', 4)
  assert_equal(restore(place), state_at(4))
  (place / 'config.json').write_bytes(b'{"batch": 4}')
  tree, config = checkpoint.load(str(place))
  assert config == {'batch': 4} and int(tree['step']) == 4
  assert int(checkpoint.load(place / 'checkpoints' / '2')[0]['step']) == 2
  assert checkpoint_at(place / 'checkpoints').name == '4'
  with opened(place) as checkpoints:
    assert set(checkpoints._scores) == {2, 3, 4}
  assert not list(tmp_path.glob('gs:*')) and not list(pathlib.Path().glob('gs:*'))


def flip(path):
  old = bytearray(path.read_bytes())
  old[len(old) // 2] ^= 8
  path.write_bytes(bytes(old))


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
  'kind, file, damage',
  [
    ('memory', 'manifest.json', truncate),
    ('memory', 'state/g.w/0.0', flip),
    ('memory', 'state/g.w/0.0', truncate),
    ('memory', 'state/step/.zarray', Address.unlink),
    pytest.param('gs', 'manifest.json', flip, marks=pytest.mark.slow),
    pytest.param('gs', 'state/g.w/0.0', flip, marks=pytest.mark.slow),
    pytest.param('gs', 'state/step/.zarray', Address.unlink, marks=pytest.mark.slow),
  ],
)
def test_damage_is_named_set_aside_and_the_step_before_used(request, kind, file, damage):
  place = request.getfixturevalue(kind)
  save(place, 1, 2)
  damaged = place / 'checkpoints' / '2' / file
  damage(damaged)
  there = content(place, 2)
  with pytest.raises(CheckpointError, match=f'damaged checkpoint: {damaged}'):
    checkpoint.load(place / 'checkpoints' / '2')
  (place / 'config.json').write_bytes(b'{}')
  assert int(checkpoint.load(place)[0]['step']) == 1
  with opened(place) as checkpoints:
    assert step_of(checkpoints.restore_latest(state_at(0))) == 1
    assert names(place) == ['1', '2.damaged-0', 'newest']
    assert content(place, '2.damaged-0') == there  # nothing of it was lost
    checkpoints.save(state_at(2))  # the run comes by here again
  assert step_of(restore(place)) == 2
  flip(place / 'checkpoints' / '1' / 'manifest.json')
  flip(place / 'checkpoints' / '2' / 'manifest.json')
  with pytest.raises(CheckpointError, match=r'no whole checkpoint in .*2\.damaged-\*'):
    restore(place)
  assert names(place) == ['1.damaged-0', '2.damaged-0', '2.damaged-1', 'newest']


def test_what_has_no_manifest_is_no_checkpoint_and_goes(place):
  save(place, 1, 2)
  (place / 'checkpoints' / '2' / 'manifest.json').unlink()
  (place / 'checkpoints' / '3' / 'state' / 'x').write_bytes(b'of a process that was killed')
  (place / 'checkpoints' / 'notes' / 'x').write_bytes(b'mine')
  with opened(place) as checkpoints:
    assert names(place) == ['1', 'newest', 'notes']
    assert step_of(checkpoints.restore_latest(state_at(0))) == 1
  assert names(place) == ['1', 'newest', 'notes']


# ---- faults


def first_time(fault):
  """The fault at the first request of each kind, and never again."""
  seen = set()

  def decide(method, path):
    path = path.partition('?generation')[0]
    if (method, path) in seen:
      return None
    seen.add((method, path))
    return fault

  return decide


@pytest.mark.parametrize('fault', ['drop', *map(slow, [503, 429, 'half'])])
def test_what_passes_is_tried_again(gs, bucket, fault):
  bucket.fault = first_time(fault)
  save(gs, 1, 2, 3)
  bucket.fault = first_time(fault)
  assert_equal(restore(gs), state_at(3))
  bucket.fault = lambda method, path: None
  assert names(gs) == ['2', '3', 'newest']
  assert len(bucket.requests) > 100


@pytest.mark.parametrize(
  'fault, share',
  [(503, 1), (403, 0.3), *(slow(fault, x) for fault in (503, 403, 'drop') for x in (0, 0.4, 0.8))],
)
def test_a_save_that_fails_counts_for_nothing_and_later_ones_work(
  gs, bucket, monkeypatch, fault, share
):
  """After a share of its objects; 1: all but the manifest."""
  monkeypatch.setattr(shelves, 'AT_ONCE', 1)
  save(gs, 1)
  after = round(share * (sum(method == 'POST' for method, _ in bucket.requests) - 2))
  puts = itertools.count()

  def decide(method, path):
    return fault if method == 'POST' and next(puts) >= after else None

  with opened(gs) as checkpoints:
    bucket.fault = decide
    checkpoints.save(state_at(2))
    with pytest.raises(WriteError) as e:
      checkpoints.wait()
    for text in (f'{gs}/checkpoints/2', 'could not be written', 'Those saved before are intact'):
      assert text in str(e.value)
    assert '\n' not in str(e.value)
    bucket.fault = lambda method, path: None
    assert names(gs) == ['1', 'newest']
    assert step_of(restore(gs)) == 1
    checkpoints.save(state_at(3))
  assert step_of(restore(gs)) == 3


def test_a_process_that_is_killed_in_a_save_leaves_what_the_next_one_removes(gs, bucket):
  """Nothing could be deleted, as after a kill."""
  save(gs, 1)
  puts = []

  def decide(method, path):
    if method == 'POST':
      puts.append(path)
      return 400 if len(puts) > 5 else None
    return 400 if method == 'DELETE' and puts else None

  with opened(gs) as checkpoints:
    bucket.fault = decide
    checkpoints.save(state_at(2))
    with pytest.raises(WriteError):
      checkpoints.wait()
  bucket.fault = lambda method, path: None
  assert '2' in names(gs)
  assert int(checkpoint_at(gs).name) == 1
  assert step_of(restore(gs)) == 1 and names(gs) == ['1', 'newest']


def test_an_old_listing_hides_no_checkpoint_and_deletes_none(gs, bucket):
  save(gs, 1)
  bucket.freeze()
  save(gs, 2, 3, keep=1)
  assert names(gs) == ['3', 'newest']
  is_listing = lambda path: path.partition('?')[0].endswith('/o')
  bucket.fault = lambda method, path: 'stale' if method == 'GET' and is_listing(path) else None
  assert names(gs) == ['1', 'newest']
  assert checkpoint.begun(gs) and step_of(restore(gs)) == 3
  save(gs, 4)
  bucket.fault = lambda method, path: None
  assert step_of(restore(gs)) == 4 and '3' in names(gs)


@pytest.mark.parametrize('fault', [403, slow(503), slow('drop')])
def test_a_checkpoint_that_cannot_be_read_for_now_is_not_damaged(gs, bucket, fault):
  save(gs, 1, 2)
  for part in ('manifest.json', 'g.odd'):
    bucket.fault = lambda method, path, part=part: (
      fault if method == 'GET' and part in path else None
    )
    with pytest.raises(CheckpointError, match=f'checkpoints of {gs}.* can not be read for now'):
      restore(gs)
    with pytest.raises(CheckpointError, match='can not be read'):
      checkpoint.load(gs)
  bucket.fault = lambda method, path: None
  assert names(gs) == ['1', '2', 'newest'] and step_of(restore(gs)) == 2


def test_no_bucket_and_no_permission_are_said_in_a_line(bucket):
  nowhere = paths.place('gs://nowhere/run')
  assert not nowhere.exists() and not list(nowhere.iterdir())
  with pytest.raises(WriteError, match='cannot write gs://nowhere/run/x: no such bucket'):
    files.write_atomic(nowhere / 'x', 'text')
  with pytest.raises(WriteError, match='no such bucket'):
    cli.folder('gs://nowhere/run', anywhere=True)
  bucket.fault = lambda method, path: 403
  with pytest.raises(UsageError, match='cannot read gs://b/run: Forbidden'):
    workdir.workdir_path('gs://b/run')
  with pytest.raises(WriteError, match='cannot write gs://b/x: Forbidden'):
    files.write_atomic('gs://b/x', 'text')
  assert len(bucket.requests) < 12  # what was refused isn't asked again


# ---- addresses


@pytest.mark.parametrize(
  'text, said',
  [
    ('gs:/b/run', 'two slashes'),
    ('gs://', 'two slashes'),
    ('nothing://b/run', 'nothing://b/run: .*gs:// and s3:// are known'),
    ('https://host/run', 'https has no folders'),
    ('gs://b/../c', 'no address has'),
  ],
)
def test_addresses_that_cannot_be(text, said):
  with pytest.raises(UsageError, match=said):
    paths.place(text)
  with pytest.raises(UsageError, match=f'--workdir={text}'):
    cli.parse(['main', f'--workdir={text}'])
  with pytest.raises(UsageError, match=text):
    cli.parse(['main', '--workdir', text])


@pytest.mark.parametrize('scheme, extra', [('gs', 'gcs'), ('s3', 's3')])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, scheme, extra):
  def missing(*_, **__):
    raise ImportError('Please install it')

  monkeypatch.setattr(fsspec, 'get_filesystem_class', missing)
  with pytest.raises(UsageError, match=rf'pip install "sg2jax\[{extra}\]"'):
    paths.place(f'{scheme}://b/run')


def test_paths_of_a_disk_stay_what_they_are(tmp_path):
  for text in ('runs/x', str(tmp_path), '.', 'C:/x', 'a=b'):
    assert paths.place(text) == pathlib.Path(text) and not paths.is_address(text)
  assert paths.place(f'file://{tmp_path}') == tmp_path
  assert paths.place('~/x') == pathlib.Path('~/x').expanduser()


def test_an_address_is_used_like_a_path(place):
  file = place / 'a' / 'b.txt'
  assert (file.name, file.suffix, str(file.parent)) == ('b.txt', '.txt', f'{place}/a')
  assert not file.exists() and not place.is_dir()
  file.write_bytes(b'one')
  assert file.is_file() and place.is_dir() and not file.is_dir() and not place.is_file()
  file.write_bytes(b'two')  # listings and contents are never remembered
  assert file.read_text() == 'two' and list(place.iterdir()) == [place / 'a']
  assert list(place.objects()) == ['a/b.txt']
  with pytest.raises(FileExistsError):
    file.write_bytes(b'three', is_new=True)
  file.unlink()
  file.unlink(missing_ok=True)
  with pytest.raises(FileNotFoundError):
    file.unlink()
  assert not file.exists() and not list(place.iterdir())


@pytest.mark.parametrize(
  'error, attempts', [(TimeoutError(), 2), (ConnectionError('gone'), 2), (PermissionError(), 1)]
)
def test_what_a_store_does_not_try_again_by_itself_is_tried_once_more(
  memory, monkeypatch, error, attempts
):
  asked = []

  def fail(*_):
    asked.append(1)
    raise error

  monkeypatch.setattr(fsspec.get_filesystem_class('memory'), 'cat_file', fail)
  with pytest.raises(addresses.StoreError):
    memory.read_bytes()
  assert len(asked) == attempts


def test_a_disk_of_this_machine_without_room_is_not_the_bucket(gs, monkeypatch):
  save(gs, 1)

  def full(*_, **__):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(pathlib.Path, 'mkdir', full)
  with pytest.raises(CheckpointError, match='No space left.*TMPDIR'):
    restore(gs)


def test_a_bucket_that_is_gone_is_not_asked_for_each_object(gs, bucket):
  """Each would be waited for, for a minute."""
  leaves_there = {f'x{i}': jnp.ones(3) for i in range(40)}  # two objects each
  tried = []

  def gone(method, path):
    if '/upload/' not in path:
      return None
    tried.append(path)
    return 403  # which isn't tried again

  bucket.fault = gone
  with opened(gs) as checkpoints:
    checkpoints.save(State(jnp.int32(1), leaves_there, (), np.ones(3)))
    with pytest.raises(WriteError):
      checkpoints.wait()
  assert 0 < len(tried) < 40


# ---- locks


def test_a_lock_names_its_owner_and_is_released(place):
  with locks.locked(place):
    with pytest.raises(UsageError, match=f'--workdir={place} is in use by process'):
      with quick_locks(), locks.locked(place):
        pass
  assert not list(place.iterdir())
  with locks.locked(place):
    pass


@contextlib.contextmanager
def quick_locks():
  """Another process, which beats once while it is waited for."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(locks, '_is_gone', lambda lock: False)
    yield


@pytest.fixture(autouse=True)
def fast_beat(monkeypatch):
  monkeypatch.setattr(locks, 'BEAT', 0.1)
  monkeypatch.setattr(locks, 'STALE', 0.6)
  monkeypatch.setattr(locks, 'SETTLE', 0.1)


def test_a_lock_of_a_process_that_is_gone_is_taken_over(place):
  lock = place / '.lock'
  lock.write_bytes(b'{"owner": "7 on elsewhere", "machine": "other", "process": 7}')
  with locks.locked(place):
    assert json.loads(lock.read_bytes())['owner'] != '7 on elsewhere'
  here = locks._process()
  lock.write_bytes(json.dumps(here | {'process': 2**30, 'owner': 'x'}).encode())
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(locks, 'STALE', 1e9)  # of this machine: nothing to wait for
    with locks.locked(place):
      pass
  lock.write_bytes(b'torn')
  with locks.locked(place):
    pass


def test_a_lock_whose_answer_was_lost_is_ones_own(place, monkeypatch):
  lock = place / '.lock'
  write = type(lock).write_bytes

  def loses_the_answer(self, data, is_new=False):
    write(self, data, is_new=is_new)
    if is_new:
      write(self, data, is_new=is_new)  # once more, as its first answer did not come

  monkeypatch.setattr(type(lock), 'write_bytes', loses_the_answer)
  monkeypatch.setattr(locks, 'STALE', 1e9)
  with locks.locked(place):
    assert lock.exists()


def test_of_those_that_take_a_lock_over_one_has_it(place, monkeypatch):
  monkeypatch.setattr(locks, 'SETTLE', 0.5)
  gone = json.dumps(locks._process() | {'process': 2**30, 'owner': 'x'}).encode()
  (place / '.lock').write_bytes(gone)
  have = []
  refused = []
  barrier = threading.Barrier(4)

  def take():
    barrier.wait()
    try:
      with locks.locked(place):
        have.append(1)
        time.sleep(3)
    except UsageError as e:
      refused.append(str(e))

  threads = [threading.Thread(target=take) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(have) == 1 and len(refused) == 3


def test_a_store_that_cannot_say_who_was_first_is_warned_of(memory, monkeypatch, caplog):
  std_logging.getLogger('absl').propagate = True
  monkeypatch.setattr(addresses, 'EXCLUSIVE', ())
  with caplog.at_level('WARNING'), locks.locked(memory):
    assert 'does not say who was first' in caplog.text
    with pytest.raises(FileExistsError):
      (memory / '.lock').write_bytes(b'', is_new=True)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_who_was_not_heard_of_and_finds_another_there_stops(place, monkeypatch):
  stopped = threading.Event()

  def exits(code):
    assert code == 2
    stopped.set()
    raise SystemExit  # of this thread

  monkeypatch.setattr(locks.os, '_exit', exits)
  with locks.locked(place):
    (place / '.lock').write_bytes(b'{"owner": "7 on elsewhere", "id": "y"}')
    assert stopped.wait(10)
  assert json.loads((place / '.lock').read_bytes())['id'] == 'y'


# ---- what a run says of itself


def test_reports_are_those_of_a_disk(place, tmp_path, monkeypatch):
  monkeypatch.setattr(report.EventFile, 'MAX_BYTES', 300)
  monkeypatch.setattr(report, 'host_memory', lambda: None)
  lines = {}
  for where in (place, tmp_path / 'disk'):
    for first in (0, 3):  # a run, and one that goes on from step 3
      monkeypatch.setattr(report.time, 'time', lambda now=1e9 + first: now)
      log = report.Report(where, first, 1)
      for step in range(first, first + 5):
        log.tick(step, 8 * step, {'loss_g': float(step)}, 1, 8)
      log.images('fakes_000000', np.zeros((4, 8, 8, 3), np.uint8), step)
      log.close()
    lines[where] = (where / 'metrics.jsonl').read_bytes()
    assert (where / 'images' / 'fakes_000000.png').read_bytes().startswith(b'\x89PNG')
  assert lines[place] == lines[tmp_path / 'disk'] and lines[place].count(b'\n') == 9
  found = sorted((place / 'tensorboard').iterdir(), key=str)
  assert len(found) > 2
  events = [event for file in found for event in read_events(file.read_bytes())]
  steps = [event.step for event in events if event.summary.value]
  assert set(steps) == {0, 1, 2, 3, 4, 5, 6, 7}


def read_events(data):
  """tensorboard's records: length (8 bytes), a checksum (4), the event, a checksum (4)."""
  from tensorboard.compat.proto import event_pb2

  stream = io.BytesIO(data)
  while header := stream.read(12):
    yield event_pb2.Event.FromString(stream.read(int.from_bytes(header[:8], 'little')))
    stream.read(4)


def test_a_trace_is_put_there(place, scratch, monkeypatch):
  def start(folder, **_):
    session = pathlib.Path(folder) / 'plugins/profile' / profile.SESSION
    session.mkdir(parents=True)
    (session / 'host.xplane.pb').write_bytes(b'trace')

  monkeypatch.setattr(profile.jax.profiler, 'start_trace', start)
  monkeypatch.setattr(profile.jax.profiler, 'stop_trace', lambda: None)
  traced = profile.Profile(range(1, 2), place, types.SimpleNamespace(say=lambda text: None))
  with traced:
    traced.begin(1)
    traced.end(1, {})
  trace = place / 'profile/plugins/profile/minibatches_1-1/0.host.xplane.pb'
  assert trace.read_bytes() == b'trace'


# ---- data sets


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  return digits.prepare(tmp_path_factory.mktemp('data'), 8, 8)


@pytest.fixture
def stored(bucket, dataset, tmp_path, monkeypatch):
  """The address of a data set, and an empty cache."""
  monkeypatch.setenv(paths.VARIABLE, str(tmp_path / 'cache'))
  place = paths.place(f'gs://b/data{next(NUMBERS)}')
  for file in dataset.iterdir():
    (place / file.name).upload(file)
  return place


def load(place, name=''):
  return data.load(name, str(place), (8, 8), 1, False)


def test_a_data_set_is_downloaded_once(stored, dataset, bucket):
  there = load(stored)
  here = load(dataset)
  assert (there.hash, len(there)) == (here.hash, 1797)
  np.testing.assert_array_equal(there[1796]['image'], here[1796]['image'])
  # as of a process that was killed
  left = pathlib.Path(there.place) / f'{remote.PART}abc'
  left.mkdir()
  bucket.requests.clear()
  assert load(stored.parent, stored.name).hash == here.hash
  assert not any('alt=media' in path for _, path in bucket.requests)
  assert not left.exists()
  net = types.SimpleNamespace(config=quickstart.get_config(), workdir=stored)
  net.config.update(resolution=8)
  net.config.c_dim = 0
  assert reals.load(net, str(stored), labels=False).hash == here.hash


def test_data_that_does_not_arrive_whole_is_fetched_again(stored, dataset, bucket, tmp_path):
  bucket.fault = first_time('half')
  assert load(stored).hash == load(dataset).hash
  bucket.fault = lambda method, path: None
  record = next(name for name in stored.listing() if 'array_record' in name)
  shard = bucket.storage.objects['b'][f'{stored.name}/{record}']
  shard['md5Hash'] = 'AAAAAAAAAAAAAAAAAAAAAA=='
  with pytest.raises(DatasetError, match=f'{stored}/{record} did not arrive'):
    load(stored)
  assert not [path for path in (tmp_path / 'cache').rglob('.part-*')]


def test_data_sets_that_cannot_be_had(stored, bucket, monkeypatch):
  with pytest.raises(DatasetError, match='no dataset_info.json there.*copied there'):
    load(stored / 'below')
  monkeypatch.setattr(files, 'free_bytes', lambda path: 1000)
  with pytest.raises(DatasetError, match='1,000 are free there.*SG2JAX_CACHE=DIR'):
    load(stored)
  bucket.fault = lambda method, path: 403
  with pytest.raises(DatasetError, match='can not be read: Forbidden'):
    load(stored)


# ---- several processes


@pytest.mark.slow
def test_of_several_processes_the_first_alone_sees_the_bucket():
  """memory:// is another one in each process."""
  results = finish_all(start_all(3, __file__), [0, 0, 0])
  found = [json.loads(out.splitlines()[-1]) for out, _ in results]
  values = {name: x.tobytes().hex() for name, x in leaves.named(state_at(2)).items()}
  assert found[0].pop('there') and not found[1].pop('there') and not found[2].pop('there')
  assert found[0]['values'] == values
  assert [text[:40] for text in found[0]['errors']] == [
    'WriteError: memory://b/run/checkpoints/3',
    'CheckpointError: no whole checkpoint in ',
  ]
  assert found[1] == found[2] == found[0]


def hand():
  """What a process of a job finds, as JSON."""
  processes.join('auto', *processes.environment())
  place = paths.place('memory://b/run')
  found = {'errors': []}
  with opened(place) as checkpoints:
    for step in (1, 2):
      checkpoints.save(state_at(step))
      checkpoints.wait()
    upload = Address.upload
    Address.upload = refuse
    checkpoints.save(state_at(3))
    try:
      checkpoints.wait()
    except WriteError as e:
      found['errors'].append(f'WriteError: {e}')
    Address.upload = upload
  found['there'] = place.exists()
  restored = restore(place)
  found['values'] = {
    name: np.asarray(x).tobytes().hex() for name, x in leaves.named(restored).items()
  }
  if processes.is_first():
    for step in '12':
      flip(place / 'checkpoints' / step / 'manifest.json')
  try:
    restore(place)
  except CheckpointError as e:
    found['errors'].append(f'CheckpointError: {e}')
  print(json.dumps(found))
  processes.part()


def refuse(*_):
  raise OSError('no more')


# ---- whole runs


def start(bucket, home, workdir, monkeypatch, **fields):
  for name, value in bucket.environment.items():
    monkeypatch.setenv(name, value)
  return runs.start(home, workdir, **fields)


@pytest.mark.slow
def test_a_run_in_a_bucket_killed_and_resumed_is_that_of_a_disk(
  gs, bucket, home, tmp_path, monkeypatch
):
  killed = start(bucket, home, gs, monkeypatch)
  runs.wait_for(killed, 'tick 3')
  killed.kill()
  killed.wait()
  assert gs.exists()
  out, err = runs.finish(start(bucket, home, gs, monkeypatch))
  assert 'resuming at step' in out
  assert not re.search('Traceback|Unclosed|retry', err), err
  runs.finish(runs.start(home, tmp_path / 'disk'))
  assert content(gs, runs.LAST) == content(tmp_path / 'disk', runs.LAST)
  assert len(runs.log(gs)) == len(runs.log(tmp_path / 'disk'))
  assert not (gs / '.lock').exists()
  use(gs, tmp_path, home)


def use(gs, tmp_path, home):
  """Tools that make images and measure, of the run and into the bucket."""
  from sg2jax.tools import evaluate, generate

  runs.call(generate, f'--checkpoint={gs}', '--seeds=0-3', f'--out={gs}/fakes')
  runs.call(generate, f'--checkpoint={tmp_path}/disk', '--seeds=0-3', f'--out={tmp_path}/fakes')
  for seed in range(4):
    name = f'seed{seed:04d}.png'
    assert (gs / 'fakes' / name).read_bytes() == (tmp_path / 'fakes' / name).read_bytes()
  runs.call(evaluate, f'--checkpoint={gs}', '--metrics=pixelfd0.1k_full')
  results = [name for name in (gs / 'evaluation').objects() if name.endswith('.json')]
  assert results


if __name__ == '__main__':
  hand()
