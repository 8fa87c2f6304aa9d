"""Evaluation of a tiny checkpoint: what a metric sees, passes that are stopped, cut or damaged, and
whole runs of the tool.
"""

import contextlib
import errno
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import time

import jax
from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import pytest

from sg2jax import build, data, sampler, sharding
from sg2jax import state as state_lib
from sg2jax.data.labels import Labels
from sg2jax.evaluation import detectors, measure, passes, protocols, samples
from sg2jax.faults import DatasetError, UsageError, WeightsError, WriteError
from sg2jax.tools import evaluate as evaluate_tool
from tests.reference.check import read_manifest
from tests.runs import ROOT, TINY, write_run, xla_flags


@pytest.fixture(scope='module')
def run(home, tmp_path_factory):
  """A workdir with the checkpoint of a tiny network that wasn't trained, class-conditional, 16
  px.
  """
  from configs import quickstart

  config = quickstart.get_config()
  config.update_from_flattened_dict(
    TINY | {'resolution': 16, 'metrics': (), 'data.dir': str(home / 'data')}
  )
  source = data.load('digits', str(home / 'data'), (16, 16), 1, True)
  steps = build.steps(config, source.c_dim, None)
  make = jax.jit(
    lambda key: state_lib.init(key, steps.generator, steps.discriminator, steps.g_tx, steps.d_tx)
  )
  state = make(jax.random.key(0))
  workdir, config = tmp_path_factory.mktemp('evaluated'), config.to_dict() | {'c_dim': source.c_dim}
  return write_run(workdir, config, state.replace(step=np.int32(3)))


@pytest.fixture
def setting(quick_compile, run, home, tmp_path, monkeypatch):
  """What `measure` takes, with a cache of its own."""
  monkeypatch.setenv('SG2JAX_CACHE', str(tmp_path / 'cache'))
  source = data.load('digits', str(home / 'data'), (16, 16), 1, True)
  return measure.Setting(
    sampler.load(run), source, sharding.make_mesh(jax.devices()[:1]), tmp_path / 'out', batch=32
  )


def values(names, setting):
  """{name: value} of metrics."""
  found = {}
  for document in measure.measure([protocols.parse(name) for name in names], setting):
    found |= document['values']
  return found


# ---- names


@pytest.mark.parametrize(
  'name, kind, count, full',
  [
    ('fid50k_full', 'fid', 50_000, True),
    ('fid50k', 'fid', 50_000, False),
    ('kid50k_full', 'kid', 50_000, True),
    ('is50k', 'is', 50_000, True),
    ('pr50k3_full', 'pr', 50_000, True),
    ('pr50k3', 'pr', 50_000, False),
    ('swd', 'swd', 16_384, True),
    ('ls', 'ls', 200_000, True),
    ('fid2.5k_full', 'fid', 2500, True),
    ('ppl2_wend', 'ppl', 50_000, True),
    ('ppl_1k_zfull', 'ppl', 1000, True),
    ('pixelnn0.2k', 'pixelnn', 200, True),
  ],
)
def test_a_name_is_the_protocol(name, kind, count, full):
  assert protocols.parse(name)[:4] == (name, kind, count, full)


def test_path_lengths_by_name():
  part = lambda name: protocols.parse(name)[4:]
  assert part('ppl2_wend') == (False, 'w', 'end') and part('ppl_zfull') == (True, 'z', 'full')


@pytest.mark.parametrize(
  'name',
  [
    'fid',
    'fid50',
    'fid0k',
    'fid0.001k',
    'is0.009k',
    'pr0.003k3',
    'FID50k',
    'fid50k_half',
    'pr50k5',
    'ppl_wmid',
    'ppl3_wend',
    '',
  ],
)
def test_unknown_names_are_refused(name):
  with pytest.raises(UsageError, match='fid50k_full|use 0'):
    protocols.parse(name)


# ---- what is seen


def test_latents_belong_to_the_number_of_a_fake(setting):
  draw = lambda numbers: samples.latents(setting.trained, setting.source, 5, np.array(numbers))
  one, other = draw(range(250, 270)), draw([600, 262, 3])
  for name in ('z', 'z1', 't', 'label'):
    np.testing.assert_array_equal(one[name][0, 12], other[name][0, 1])
  z = draw(range(2000))
  assert (
    abs(z['z'].mean()) < 0.02 and abs(z['z'].std() - 1) < 0.02 and abs(z['t'].mean() - 0.5) < 0.03
  )
  assert (
    len(np.unique(z['z'][0, :, 0])) == 2000
    and abs(np.corrcoef(z['z'][0, :, 0], z['z1'][0, :, 0])[0, 1]) < 0.1
  )
  reals = np.mean([setting.source.label(i) for i in range(len(setting.source))], 0)
  assert np.abs(z['label'][0].mean(0) - reals).max() < 0.03


def test_fakes_have_noise_of_their_own_and_are_never_normalised(setting):
  from flax import traverse_util

  params = traverse_util.flatten_dict(setting.trained.variables['params'])
  loud = {k: np.float32(0.1) if k[-1] == 'noise_strength' else v for k, v in params.items()}
  net = setting.trained._replace(
    variables=setting.trained.variables | {'params': traverse_util.unflatten_dict(loud)}
  )
  show = lambda numbers, seed=0: samples.fake_images(
    net, setting.source, setting.mesh, seed, np.array(numbers)
  )
  few, many = show([3]), show([0, 1, 2, 3])
  assert np.abs(few[0].astype(int) - many[3]).max() <= 1  # a level may flip by rounding
  assert (show([3], 1) != few).mean() > 0.5 and (many[0] != many[1]).mean() > 0.5
  flat = np.float32([-3, -1, 0, 1, 3])
  assert sampler.to_uint8(flat).tolist() == [0, 0, 128, 255, 255]


def test_reals_full_or_as_training_draws_them(setting):
  source, mesh = setting.source, setting.mesh
  raw = detectors.Detector('raw', '', True, '', {}, lambda _, images: {'raw': images})
  look = lambda **options: samples.reals_pass(
    source, mesh, raw, 'raw', np.array([5, 0, 7]), **options
  ).compute(0, 3, 4)['raw']
  np.testing.assert_array_equal(look(), [source[i]['image'] for i in (5, 0, 7)])
  stream = data.stream(source, seed=4, mirror=True)
  np.testing.assert_array_equal(look(training=(4, True)), [stream[i]['image'] for i in (5, 0, 7)])
  batch = next(data.batches(source, batch=8, microbatch=8, seed=4, mirror=True, nimg=0))['image'][0]
  np.testing.assert_array_equal(stream[7]['image'], batch[7])


def test_shrink_on_the_device_is_that_of_the_host():
  images = np.random.default_rng(0).integers(0, 256, (2, 14, 21, 3), np.uint8)
  for factor in (1, 2, 3, 7):
    np.testing.assert_array_equal(detectors.shrink(images, factor), data.shrink(images, factor))


def test_missing_package_is_named():
  detectors.check_installed('numpy', 'sklearn', 'lpips_j', 'flaxmodels')
  with pytest.raises(UsageError, match='nosuchpackage cannot be imported'):
    detectors.check_installed('numpy', 'nosuchpackage')


def test_networks_take_grey_and_rgb_only():
  assert detectors.colour(np.ones((2, 4, 4, 1))).shape == (2, 4, 4, 3)
  with pytest.raises(UsageError, match='4 channels'):
    detectors.load('inception', (8, 8, 4))


# ---- passes


def fake_pass(total, seen, fail_at=None):
  """A Pass whose features are known; it notes in `seen` what it was asked for, and dies at an
  image.
  """

  def compute(first, n, _):
    if fail_at is not None and first >= fail_at:
      raise KeyboardInterrupt
    seen.append(first)
    x = np.arange(first, first + n)[:, None] * np.float32([1, 0.1]) + 0.3
    return {'rows': x, 'sum': x**2}

  return passes.Pass({'images': 'test', 'total': total}, total, compute, ('sum',))


def outcome(result):
  """Bytes of all that a pass found."""
  moments = result.moments('sum')
  return (
    result.rows('rows').tobytes(),
    moments.mean.tobytes(),
    moments.cov().tobytes(),
    moments.count,
  )


def test_pass_is_the_same_whatever_the_batch_and_where_it_was_stopped(tmp_path, monkeypatch):
  whole = outcome(passes.run(fake_pass(5000, []), tmp_path / 'a', 5000))
  assert whole == outcome(passes.run(fake_pass(5000, []), tmp_path / 'b', 77))

  class Later:
    """True from the tenth look on."""

    looks = 0

    def __bool__(self):
      self.looks += 1
      return self.looks > 10

  seen = []
  with pytest.raises(passes.Stopped):
    passes.run(fake_pass(5000, seen), tmp_path / 'c', 77, Later())
  before = len(seen)
  assert outcome(passes.run(fake_pass(5000, seen), tmp_path / 'c', 64)) == whole
  assert seen[before] == 77 * before  # nothing is done twice
  # as after a kill: saved between, but not at the end
  monkeypatch.setattr(passes, 'SAVE_SECONDS', 0)
  seen.clear()
  with pytest.raises(KeyboardInterrupt):
    passes.run(fake_pass(5000, seen, fail_at=2000), tmp_path / 'd', 100)
  before = len(seen)
  assert outcome(passes.run(fake_pass(5000, seen), tmp_path / 'd', 100)) == whole
  assert 1500 <= seen[before] < 2000
  seen.clear()
  assert outcome(passes.run(fake_pass(5000, seen), tmp_path / 'd', 100)) == whole and not seen


@pytest.mark.parametrize(
  'damage', ['truncated', 'flipped', 'missing', 'foreign', 'unsealed and cut']
)
def test_damaged_or_foreign_pass_is_refused(tmp_path, caplog, damage):
  job = fake_pass(300, [])
  whole = outcome(passes.run(job, tmp_path, 64))
  rows, about = tmp_path / job.key / 'rows.npy', tmp_path / job.key / 'about.json'
  content = rows.read_bytes()
  if damage in ('truncated', 'unsealed and cut'):
    rows.write_bytes(content[:-100])
  elif damage == 'flipped':
    rows.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
  elif damage == 'missing':
    rows.unlink()
  else:  # the statistics of another data set, copied to where these should be
    about.write_text(about.read_text().replace('"test"', '"others"'))
  if damage == 'unsealed and cut':
    about.unlink()
  seen = []
  logging.getLogger('absl').propagate = True
  with caplog.at_level('WARNING'):
    assert outcome(passes.run(fake_pass(300, seen), tmp_path, 64)) == whole
  assert seen and 'set aside' in caplog.text and list(tmp_path.glob(f'{job.key}.damaged-*'))


def test_half_a_pass_without_its_rows_or_with_a_torn_state_is_refused(
  tmp_path, caplog, monkeypatch
):
  monkeypatch.setattr(passes, 'SAVE_SECONDS', 0)
  whole = outcome(passes.run(fake_pass(300, []), tmp_path / 'whole', 64))
  logging.getLogger('absl').propagate = True
  for i, name in enumerate(('rows.npy', 'state.npz')):
    root, key = tmp_path / str(i), fake_pass(300, []).key
    with pytest.raises(KeyboardInterrupt):
      passes.run(fake_pass(300, [], fail_at=200), root, 20)
    if i:
      (root / key / name).write_bytes(b'PK')
    else:
      (root / key / name).unlink()
    with caplog.at_level('WARNING'):
      assert outcome(passes.run(fake_pass(300, []), root, 64)) == whole
    assert list(root.glob('*.damaged-*')) and 'set aside' in caplog.text


def test_full_disk_is_an_error_before_anything_is_computed_for_nothing(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'posix_fallocate', full)
  with pytest.raises(WriteError, match='rows.npy: No space left.*bytes are free'):
    passes.run(fake_pass(300, []), tmp_path, 64)
  monkeypatch.undo()
  assert outcome(passes.run(fake_pass(300, []), tmp_path, 64))[3] == 300


@pytest.mark.parametrize('how', ['missing', 'not supported'])
def test_where_room_cannot_be_asked_for_it_is_taken(tmp_path, monkeypatch, how):
  """macOS has no posix_fallocate, some file systems refuse it: the rows are allocated, and a full
  disk is still an error.
  """

  def refuse(*_):
    raise OSError(errno.EOPNOTSUPP, 'not supported')

  if how == 'missing':
    monkeypatch.delattr(os, 'posix_fallocate')
  else:
    monkeypatch.setattr(os, 'posix_fallocate', refuse)
  path = tmp_path / 'rows.npy'
  new = np.lib.format.open_memmap(path, 'w+', np.float32, (700, 1000))
  with open(path, 'r+b') as f:
    passes._reserve(f, new.offset, new.offset + new.nbytes)
  assert path.stat().st_blocks * 512 >= new.nbytes == path.stat().st_size - new.offset
  assert np.load(path).shape == (700, 1000) and not np.load(path).any()
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))
  try:
    with open(path, 'r+b') as f, pytest.raises(OSError, match='too large'):
      passes._reserve(f, new.offset, new.offset + new.nbytes)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, heard)
  assert outcome(passes.run(fake_pass(300, []), tmp_path / 'run', 64)) == outcome(
    passes.run(fake_pass(300, []), tmp_path, 64)
  )


def test_a_pass_belongs_to_one_process_and_waiting_for_it_can_be_ended(tmp_path, capsys):
  job = fake_pass(300, [])
  with contextlib.ExitStack() as held:
    passes.run(job, tmp_path, 64, held=held)
    stop = iter([False] * 3)

    class Later:
      """True from the fourth look on."""

      def __bool__(self):
        return next(stop, True)

    with pytest.raises(passes.Stopped):
      passes.run(fake_pass(300, []), tmp_path, 64, Later())
    assert 'waiting for another process' in capsys.readouterr().err
    passes.remove(tmp_path, [job.key])
  assert not tmp_path.exists()
  assert outcome(passes.run(job, tmp_path, 64))  # its lock file is a new one


def test_statistics_are_found_by_content_not_by_place(setting, home, tmp_path):
  """A second copy of the data set elsewhere uses the cache; the same place with other images
  doesn't.
  """
  detector = detectors.load('pixels', setting.source.shape)
  job = lambda source, **options: (
    samples.reals_pass(source, setting.mesh, detector, 'pixels', np.arange(9), **options).key
  )
  copy = data.load('digits', str(tmp_path / 'elsewhere'), (16, 16), 1, True)
  assert copy.place != setting.source.place and job(copy) == job(setting.source)
  copy.hash = 'of other images'
  assert (
    len(
      {
        job(copy),
        job(setting.source),
        job(setting.source, training=(0, True)),
        job(setting.source, training=(1, True)),
        job(setting.source, training=(0, False)),
      }
    )
    == 5
  )
  other = detector._replace(hash='of other weights')
  assert samples.reals_pass(setting.source, setting.mesh, other, 'pixels', np.arange(9)).key != job(
    setting.source
  )


# ---- metrics


def test_metrics_without_networks(setting):
  names = ['swd_0.2k', 'pixelfd0.2k_full', 'pixelfd0.2k', 'pixelnn0.2k']
  found = values(names, setting)
  assert set(found) == {*names[:3], 'pixelnn0.2k_farther', 'pixelnn0.2k_z'}
  document = json.loads((setting.out / 'pixelfd0.2k_full.json').read_text())
  low, high = document['intervals_95']['pixelfd0.2k_full']
  assert low < found['pixelfd0.2k_full'] < high and (document['fakes'], document['reals']) == (
    200,
    len(setting.source),
  )
  assert (
    document['data']['sha256'] == setting.source.hash
    and document['data']['resize_filter'] == 'lanczos'
  )
  assert (
    document['checkpoint']['step'] == 3
    and document['seed'] == 0
    and document['detector']['resize'] == 'box, 1/1'
  )
  assert found['pixelnn0.2k_farther'] > 0.9  # noise is no copy of a digit
  assert (setting.out / 'pixelnn0.2k.png').stat().st_size > 1000 and not (
    setting.out / 'partial'
  ).exists()
  # batches of 7 give the same, and what is there isn't measured again
  again = values(names[1:2], setting._replace(batch=7, out=setting.out.with_name('seven')))
  assert again['pixelfd0.2k_full'] == pytest.approx(found['pixelfd0.2k_full'], rel=1e-6)
  (setting.out / 'swd_0.2k.json').write_text(
    (setting.out / 'swd_0.2k.json')
    .read_text()
    .replace(f'"swd_0.2k": {found["swd_0.2k"]}', '"swd_0.2k": -1.0')
  )
  assert values(['swd_0.2k'], setting) == {'swd_0.2k': -1}
  (setting.out / 'swd_0.2k.json').write_text('{"torn')
  assert values(['swd_0.2k'], setting)['swd_0.2k'] == found['swd_0.2k']


def test_a_network_in_its_last_fade_has_no_path_length(setting):
  net = setting.trained._replace(growing={'stage': 0, 'alpha': 0.5})
  assert net.grows and not setting.trained.grows and net.hash() != setting.trained.hash()
  with pytest.raises(UsageError, match='full size'):
    values(['ppl2_wend'], setting._replace(trained=net))
  with pytest.raises(UsageError, match='32 px or more'):
    values(['ppl_wend'], setting)
  config = setting.trained.config.copy_and_resolve_references()
  config.g.clamp = 1.0
  assert setting.trained._replace(config=config).hash() != setting.trained.hash()


def test_copies_are_seen(setting, home):
  """A generator of which every image is a real: distance 0, z far below 0; against held-out reals
  as well.
  """
  reals = np.arange(300)
  detector = detectors.load('pixels', setting.source.shape)
  room = measure.Room(setting, {'pixels': detector}, [protocols.parse('pixelnn0.3k')])
  room.fakes = lambda p: room.reals(p, detector, reals)
  found = measure.nearest_reals(room, protocols.parse('pixelnn0.3k'), detector)
  assert found.values['pixelnn0.3k_farther'] == 0 and found.values['pixelnn0.3k_z'] < -20
  assert found.notes['their_reals'] == found.notes['closest_fakes'] and found.notes[
    'held_out'
  ].startswith('each real')
  with pytest.raises(UsageError, match='is the data set itself'):
    values(['pixelnn0.3k'], setting._replace(holdout=setting.source))
  # "held-out" reals that were trained on: no difference then
  room.s = setting._replace(holdout=setting.source)
  assert (
    measure.nearest_reals(room, protocols.parse('pixelnn0.3k'), detector).values['pixelnn0.3k_z']
    == 0
  )


def test_linear_separability_with_classifiers_from_a_folder(setting, tmp_path):
  from flax import traverse_util

  from sg2jax.models.stylegan2 import Discriminator

  net = Discriminator((16, 16), 64, 16, architecture='stylegan1', mbstd_group_size=1)
  for i in range(2):
    params = net.init(jax.random.key(i), np.zeros((1, 16, 16, 1), np.float32))['params']
    folder = tmp_path / 'classifiers'
    folder.mkdir(exist_ok=True)
    np.savez(
      folder / f'{i:02}.npz',
      **{'/'.join(k): x for k, x in traverse_util.flatten_dict(params).items()},
    )
  found = values(['ls_0.2k'], setting._replace(explicit={'attributes': str(folder)}))
  # 2 attributes: at most 2^2
  assert set(found) == {'ls_0.2k_z', 'ls_0.2k_w'} and all(1 <= v < 4 for v in found.values())
  np.savez(folder / '02.npz', **{'b16/fromrgb/weight': np.zeros((1, 1, 1, 4))})
  with pytest.raises(WeightsError, match='02.npz'):
    detectors.attributes((16, 16, 1), str(folder))
  with pytest.raises(WeightsError, match='--weights=attributes=FOLDER'):
    measure.check([protocols.parse('ls')], {})


# ---- the tool


def evaluate(home, *flags, **env):
  """The running process of the tool on the CPU."""
  env = (
    os.environ
    | {
      'JAX_PLATFORMS': 'cpu',
      'PYTHONPATH': str(home / 'poison'),
      'SG2JAX_CACHE': str(home / 'sg2jax'),
      'XLA_FLAGS': xla_flags(),
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    }
    | env
  )
  return subprocess.Popen(
    [sys.executable, '-m', 'sg2jax.tools.evaluate', *flags],
    cwd=ROOT,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.parametrize(
  'flags, code, said',
  [
    ([], 2, '--checkpoint is missing'),
    (['--checkpoint=RUN', '--metrics=fid'], 2, "'fid' is unknown"),
    (['--checkpoint=RUN', '--batch=-1'], 2, '--batch=-1'),
    (['--checkpoint=/nowhere', '--metrics=swd'], 6, '/nowhere'),
    (['--checkpoint=RUN', '--weights=vgg=x'], 2, 'inception, vgg16'),
    (['--checkpoint=RUN', '--data=/nowhere'], 3, 'nowhere'),
    (
      ['--checkpoint=RUN', '--metrics=fid50k_full,ppl2_wend'],
      7,
      'fetch_weights inception lpips_vgg vgg16',
    ),
  ],
)
def test_bad_input_is_refused_at_once(home, run, flags, code, said):
  # seconds of CPU, whatever else runs here
  spent = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
  before = spent()
  process = evaluate(
    home,
    *[flag.replace('RUN', str(run)) for flag in flags],
    SG2JAX_CACHE=str(home / 'no weights here'),
  )
  out, err = process.communicate(timeout=60)
  assert (process.returncode, len(err.splitlines())) == (code, 1) and said in err, err
  assert spent() - before < 5 and not (run / 'evaluation').exists()


@pytest.mark.slow
def test_killed_evaluation_on_eight_devices_ends_with_the_same_values(home, run, setting, tmp_path):
  """The tool, killed in the middle, then on 8 devices; against `measure` on one."""
  alone = values(['pixelfd2k_full', 'pixelnn0.5k'], setting)
  flags = [
    f'--checkpoint={run}',
    '--metrics=pixelfd2k_full,pixelnn0.5k',
    f'--out={tmp_path / "tool"}',
  ]
  code = (
    'from sg2jax import cli; from sg2jax.evaluation import passes; from sg2jax.tools import '
    'evaluate; passes.SAVE_SECONDS = 0; evaluate.define_flags(); cli.run(evaluate.main)'
  )
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'SG2JAX_CACHE': str(tmp_path / 'cache'),
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
  }
  process = subprocess.Popen(
    [sys.executable, '-c', code, *flags, '--batch=2'], cwd=ROOT, env=env, stdout=subprocess.DEVNULL
  )
  deadline = time.monotonic() + 120
  begun = lambda: [
    p for p in (tmp_path / 'tool' / 'partial').glob('*/state.npz') if np.load(p)['done'] >= 20
  ]
  while not begun():
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.02)
  process.kill()
  process.wait()
  assert not list((tmp_path / 'tool').glob('*.json'))
  process = evaluate(
    home,
    *flags,
    '--batch=64',
    SG2JAX_CACHE=str(tmp_path / 'cache'),
    XLA_FLAGS=f'--xla_force_host_platform_device_count=8 {xla_flags()}',
  )
  out, err = process.communicate(timeout=200)
  assert process.returncode == 0 and 'pixelnn0.5k_z' in out, err
  found = {}
  for name in ('pixelfd2k_full', 'pixelnn0.5k'):
    document = json.loads((tmp_path / 'tool' / f'{name}.json').read_text())
    assert document['devices'] == 8
    found |= document['values']
  assert found == pytest.approx(alone, rel=1e-6)


@pytest.mark.slow
def test_two_processes_agree_with_one(home, run, setting, tmp_path):
  alone = values(['pixelfd2k_full', 'pixelnn0.5k', 'pixelfd2k'], setting)
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'SG2JAX_CACHE': str(tmp_path / 'cache2'),
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
  }

  def start(*flags):
    with socket.socket() as s:
      s.bind(('localhost', 0))
      port = s.getsockname()[1]
    return [
      subprocess.Popen(
        [
          sys.executable,
          '-m',
          'tests.two_processes',
          str(i),
          str(port),
          f'--checkpoint={run}',
          *flags,
          f'--out={tmp_path / "tool"}',
        ],
        cwd=ROOT,
        env=env,
      )
      for i in range(2)
    ]

  both = start('--metrics=pixelfd50k_full', '--batch=8')  # a signal to the second one ends both
  while not list((tmp_path / 'tool' / 'partial').glob('*/*.npy')):
    assert [process.poll() for process in both] == [None, None]
    time.sleep(0.05)
  both[1].send_signal(signal.SIGTERM)
  assert [process.wait(60) for process in both] == [75, 75]
  assert [
    process.wait(300) for process in start('--metrics=pixelfd2k_full,pixelnn0.5k,pixelfd2k')
  ] == [0, 0]
  documents = [json.loads(path.read_text()) for path in (tmp_path / 'tool').glob('*.json')]
  assert {k: v for document in documents for k, v in document['values'].items()} == pytest.approx(
    alone, rel=1e-6
  )
  assert {document['devices'] for document in documents} == {2}


@pytest.fixture(scope='module')
def networks(tmp_path_factory):
  """Flags for the weights of all networks, drawn at random: Inception and VGG16 by the rules of the
  vectors.
  """
  from tests.reference import cases_detectors

  folder, r, inputs = tmp_path_factory.mktemp('weights'), np.random.default_rng(0), 7 * 7 * 512
  cases = {case['id']: case for case in read_manifest(ROOT / 'tests' / 'reference')}
  inception, lpips = (cases[name]['config'] for name in ('inception_v3_fid', 'lpips'))
  heads = {
    f'lin{i}.model.1.weight': r.random((1, w, 1, 1), np.float32)
    for i, w in enumerate((64, 128, 256, 512, 512))
  }
  arrays = {
    'inception': cases_detectors.inception_arrays(
      inception['weight_rule'], inception['state_dict']
    ),
    'vgg16': cases_detectors.vgg_arrays(lpips['vgg_weight_rule'], lpips['tapped_layers']),
    'lpips_vgg': heads,
  }
  for place, width in ((0, 4096), (3, 4096), (6, 1000)):
    weight = r.standard_normal((width, inputs), np.float32) / np.float32(inputs) ** 0.5
    arrays['vgg16'] |= {
      f'classifier.{place}.weight': weight,
      f'classifier.{place}.bias': np.zeros(width, np.float32),
    }
    inputs = width
  for name in arrays:
    np.savez(folder / f'{name}.npz', **arrays[name])
  return [f'--weights={name}={folder / name}.npz' for name in arrays]


@pytest.mark.slow
def test_metrics_of_networks_whatever_the_batch_and_the_devices(home, run, networks, tmp_path):
  """All of them, with networks that were drawn at random, on 60 digits: batches of 32, of 7, and 8
  devices.
  """
  source = data.load('digits', str(home / 'data'), (16, 16), 1, True)
  for i in range(60):
    folder = tmp_path / 'pictures' / str(source[i]['label'].argmax())
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(source[i]['image'][..., 0]).save(folder / f'{i}.png')
  subprocess.run(
    [
      sys.executable,
      '-m',
      'sg2jax.tools.prepare',
      f'--source={tmp_path / "pictures"}',
      '--labels=folder',
      '--resolution=16',
      f'--dest={tmp_path / "set"}',
      '--channels=1',
    ],
    cwd=ROOT,
    check=True,
    capture_output=True,
  )
  names, found = (
    ['fid0.06k_full', 'fid0.06k', 'kid0.05k_full', 'is0.06k', 'pr0.06k3_full', 'nn0.06k'],
    [],
  )
  names += ['ppl2_0.016k_wend', 'ppl2_0.016k_zfull']
  for batch, devices in ((32, 1), (7, 1), (64, 8)):
    out = tmp_path / f'{batch} on {devices}'
    process = evaluate(
      home,
      f'--checkpoint={run}',
      f'--data={tmp_path / "set"}',
      f'--metrics={",".join(names)}',
      f'--batch={batch}',
      *networks,
      f'--out={out}',
      SG2JAX_CACHE=str(out / 'cache'),
      JAX_DISABLE_MOST_OPTIMIZATIONS='0',
      XLA_FLAGS=f'--xla_force_host_platform_device_count={devices}',
    )
    text, err = process.communicate()
    assert process.returncode == 0, err
    documents = [json.loads((out / f'{name}.json').read_text()) for name in names]
    assert (
      not any(document['detector']['standard'] for document in documents)
      and 'not the standard weights' in text
    )
    found.append(
      {k: v for document in documents for k, v in document['values'].items() if k != 'is0.06k_std'}
    )
  assert len(found[0]) == 10 and found[0]['nn0.06k_farther'] > 0.5 and found[0]['is0.06k_mean'] >= 1
  assert found[1] == pytest.approx(found[0], rel=1e-6) and found[2] == pytest.approx(
    found[0], rel=1e-6
  )


def test_signal_keeps_what_is_done(home, run, tmp_path):
  process = evaluate(
    home, f'--checkpoint={run}', '--metrics=pixelfd50k_full', f'--out={tmp_path}', '--batch=8'
  )
  while not list((tmp_path / 'partial').glob('*')):
    assert process.poll() is None
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=60)
  assert (
    process.returncode == 75 and 'the same command goes on' in err and len(err.splitlines()) == 1
  )
  assert list((tmp_path / 'partial').glob('*/state.npz'))


# ---- what is measured, and how much at once


@pytest.mark.parametrize(
  'shape, each',
  [
    ((4, 4), 32),
    ((256, 256), 32),
    ((512, 256), 32),
    ((512, 512), 16),
    ((1024, 1024), 4),
    ((1024, 512), 8),
    ((2048, 2048), 1),
    ((8192, 8192), 1),
  ],
)
def test_images_at_once_are_bound_by_their_pixels(shape, each, run):
  assert sampler.images_at_once(shape) == each and sampler.images_at_once((*shape, 3)) == each
  source = type('Source', (), {'shape': (*shape, 3)})
  mesh = type('Mesh', (), {'size': 8})
  assert measure.Setting(None, source, mesh, None).at_once == 8 * each
  assert measure.Setting(None, source, mesh, None, batch=24).at_once == 24
  assert 2 * samples._pairs(shape) <= max(2, each)
  net = sampler.load(run)
  big = net.generator.clone(synthesis=net.generator.synthesis.clone(resolution=shape))
  assert net._replace(generator=big).batch == each * jax.device_count()


@pytest.mark.parametrize(
  'name, shape, said',
  [
    ('swd', (4, 4, 1), '7 px or more; these have 4x4'),
    ('swd', (4, 16, 3), '4x16'),
    ('swd', (5, 5, 1), '5x5'),
    ('swd', (6, 6, 1), '6x6'),
    ('swd', (7, 7, 1), ''),
    ('swd', (8, 2048, 1), '8x2048, 0x128 after shrinking'),
    ('swd', (512, 32, 1), '128x8 after'),
    ('pixelfd1k_full', (4, 16, 1), ''),
    ('pixelfd1k_full', (4, 256, 1), '0x16 after'),
    ('pixelnn1k', (4, 256, 1), '0x16 after'),
    ('ppl2_1k_wend', (8, 16, 3), '16 px'),
    ('ppl_1k_wend', (16, 16, 3), '32 px'),
    ('ppl_1k_wend', (32, 32, 3), ''),
    ('fid1k', (4, 4, 1), ''),
  ],
)
def test_images_that_are_too_small_for_a_metric(name, shape, said):
  reason = measure.unfit(protocols.parse(name), shape)
  if said and '128x8' not in said:
    assert said in reason and name in reason
    with pytest.raises(UsageError, match='px or more'):
      measure.load(
        [protocols.parse(name)], type('Source', (), {'shape': shape, '__len__': lambda _: 99})(), {}
      )
  else:
    assert reason == ''


def test_tiny_networks_are_measured_by_what_suits_them(capsys):
  net = lambda side, metrics=(): type(
    'Net', (), {'workdir': 'W', 'config': ConfigDict({'resolution': side, 'metrics': metrics})}
  )
  assert [p.name for p in evaluate_tool.defaults(net(16))] == ['swd', protocols.OFFLINE]
  assert [p.name for p in evaluate_tool.defaults(net((4, 16)))] == [protocols.OFFLINE]
  assert 'left out: swd needs images of 7 px or more; these have 4x16' in capsys.readouterr().err
  with pytest.raises(UsageError, match='W: none of the metrics'):
    evaluate_tool.defaults(net((4, 16), ('ppl2_wend',)))


def of(names, counts, one_hot=True):
  """Labels of classes, or of one vector with each name."""
  return (
    Labels.of_classes(names, counts)
    if one_hot
    else Labels.of_vectors(np.eye(len(counts)) + 1, names)
  )


@pytest.mark.parametrize(
  'ours, theirs, said',
  [
    (
      of(('cat', 'dog'), (3, 4)),
      of(('dog', 'cat'), (3, 4)),
      'its class 0 is dog, and that of the run cat .*another order',
    ),
    (
      of(('cat', 'dog'), (3, 4)),
      of(('cat', 'bird'), (3, 4)),
      'its class 1 is bird, and that of the run dog; prepare',
    ),
    (
      of(('cat', 'dog'), (3, 4)),
      of((), (3, 4), False),
      'its labels are vectors, and those of the run classes',
    ),
    (
      of((), (3, 4), False),
      of(('cat', 'dog'), (3, 4)),
      'its labels are classes, and those of the run vectors',
    ),
    (of(('cat', 'dog'), (3, 4)), of(('cat', 'dog'), (9, 0)), ''),
    (Labels.unknown(2), of(('cat', 'dog'), (3, 4)), ''),
    (Labels.unknown(2), of((), (3, 4), False), ''),
    (of(('cat', 'dog'), (3, 4)), Labels.unknown(2), ''),
  ],
)
def test_a_data_set_of_other_classes_is_refused(ours, theirs, said):
  net, source = (
    type('Net', (), {'labels': ours}),
    type('Source', (), {'labels': theirs, 'place': 'D/other'}),
  )
  if not said:
    evaluate_tool.check_labels(net, source)
    return
  with pytest.raises(DatasetError, match=said) as e:
    evaluate_tool.check_labels(net, source)
  assert 'D/other' in str(e.value) and '--data' in str(e.value)


def test_the_tool_compares_labels(run):
  net = sampler.load(run)
  assert evaluate_tool.load(net, '').labels.c_dim == 10
  other = net._replace(labels=Labels.of_vectors(np.eye(10) + 1))
  with pytest.raises(DatasetError, match='its labels are classes, and those of the run vectors'):
    evaluate_tool.load(other, '')


def precisions(step, *args):
  """Those of all products of float32 arrays in a step."""
  found = set()

  def look(jaxpr):
    for eqn in jaxpr.eqns:
      if eqn.primitive.name in ('dot_general', 'conv_general_dilated'):
        found.add(str(eqn.params['precision']))
      for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else [value]:
          inner = getattr(part, 'jaxpr', part)
          if hasattr(inner, 'eqns'):
            look(inner)

  look(jax.make_jaxpr(step)(*args).jaxpr)
  return found


def test_what_is_looked_at_is_made_in_full_precision(run):
  net, mesh = sampler.load(run), sharding.make_mesh(jax.devices()[:1])
  latents = {
    'z': np.zeros((1, 4, 16), np.float32),
    'label': np.zeros((1, 4, 10), np.float32),
    'number': np.zeros((1, 4), np.int32),
  }
  looks = (
    (
      'attributes',
      lambda params, x: {'attributes': x.reshape(len(x), -1)[:, :3].astype(np.float32) @ params},
    ),
  )
  steps = {
    'fakes': (
      samples._fakes_step(mesh, net.generator, (), 0, looks),
      net.variables,
      {'attributes': np.eye(3, dtype=np.float32)},
      latents,
    ),
    'reals': (
      samples._reals_step(mesh, lambda p, x: {'a': x @ p}, 'a'),
      np.eye(3, dtype=np.float32),
      {'image': np.zeros((1, 4, 3), np.float32)},
    ),
    'w': (
      sampler._map_step(mesh, net.generator),
      net.variables,
      {'z': latents['z'], 'c': latents['label']},
    ),
    'images': (
      sampler._images_step(mesh, net.generator, (), 'const'),
      net.variables,
      {'ws': np.zeros((1, 4, net.num_ws, 16), np.float32), 'number': latents['number']},
    ),
  }
  for name, (step, *args) in steps.items():
    assert precisions(step, *args) == {'(Precision.HIGHEST, Precision.HIGHEST)'}, name
