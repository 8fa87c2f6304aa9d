"""The run as a user starts it, on a tiny network, and what interrupts it."""

import contextlib
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from tensorboard.backend.event_processing import event_accumulator

from configs import default
from sg2jax import build, main, sharding, state, steps
from sg2jax.faults import Fault, WriteError
from sg2jax.tools import prepare
from sg2jax.training import checkpoint, loop, train
from sg2jax.training import profile as profile_lib
from tests.runs import LAST, ROOT, call, configuration, content, finish, log, start, wait_for
from tests.test_checkpoint import rewrite

# Options that the default leaves out, together, and metrics that are measured on the way.
OPTIONS = {
  'resolution': (8, 12),
  'microbatch': 4,
  'data.holdout': 0.1,
  'g.num_bf16_res': 1,
  'd.num_bf16_res': 1,
  'g.clamp': 256.0,
  'd.clamp': 256.0,
  'g.architecture': 'resnet',
  'd.architecture': 'skip',
  'ema.rampup': 0.05,
  'metrics': ('pixelfd0.1k_full',),
  'metrics_kimg': 0.128,
  'profile': '16,3',
}


@pytest.fixture(scope='module')
def whole(home, tmp_path_factory):
  """A run that nothing interrupted, and what it said."""
  workdir = tmp_path_factory.mktemp('whole')
  out, err = finish(start(home, workdir, **OPTIONS))
  assert 'Traceback' not in err
  return workdir, out


def test_run_leaves_what_scripts_rely_on(whole):
  workdir, out = whole
  assert 'warning: ' not in out
  assert 'img/s' in out and 'compiled in' in out
  lines = log(workdir)
  assert [line['step'] for line in lines if 'swd' in line] == list(range(0, LAST + 1, 4))
  assert all(line['nimg'] == 8 * line['step'] for line in lines)
  assert {'loss_g', 'loss_d', 'pl_length', 'r1', 'swd'} <= set().union(*lines)
  new = {'nearest', 'logits_training', 'logits_heldout', 'logits_generated'}
  assert all(new <= line.keys() for line in lines if 'swd' in line)
  held_out = 1797 - json.loads((workdir / 'config.json').read_text())['data_images']
  assert 100 < held_out < 260 and f'8x12x1 ({held_out} more are held out), 10 label' in out
  assert [line['step'] for line in lines if 'pixelfd0.1k_full' in line] == [16, LAST]
  result = workdir / 'evaluation' / f'{LAST:08d}' / 'pixelfd0.1k_full.json'
  assert json.loads(result.read_text())['values'] == {
    'pixelfd0.1k_full': lines[-1]['pixelfd0.1k_full']
  }
  sizes = [Image.open(workdir / f'images/{name}.png').size for name in ('reals', 'fakes_000000')]
  assert sizes[0] == sizes[1]
  assert json.loads((workdir / 'config.json').read_text())['loss']['r1_gamma'] == 0.05
  assert (workdir / 'checkpoints' / str(LAST) / 'state').is_dir()


def test_tensorboard_has_what_the_log_and_the_snapshots_have(whole):
  workdir, _ = whole
  at_most = {event_accumulator.HISTOGRAMS: 0, event_accumulator.IMAGES: 0}
  events = event_accumulator.EventAccumulator(str(workdir / 'tensorboard'), at_most)
  events.Reload()
  lines = log(workdir)
  for name, shown in {
    'loss_g': 'losses/g',
    'r_t': 'augmentation/r_t',
    'swd': 'quality/swd',
  }.items():
    logged = [(line['step'], line[name]) for line in lines if name in line]
    values = [(event.step, event.value) for event in events.Scalars(shown)]
    assert [step for step, _ in values] == [step for step, _ in logged]
    np.testing.assert_allclose([x for _, x in values], [x for _, x in logged], rtol=1e-6)
  snapshots = [line['step'] for line in lines if 'swd' in line]
  assert [event.step for event in events.Images('pictures/fakes')] == snapshots
  found = events.Histograms('w/components')
  assert [event.step for event in found] == snapshots
  # 64 latents of w_dim 16 in the grid; one distance each
  assert {event.histogram_value.num for event in found} == {64 * 16}
  assert {event.histogram_value.num for event in events.Histograms('w/distance')} == {64}


def events_of(folder):
  """[(start, name, number of the minibatch or None)] of our names in the trace in a folder."""
  (file,) = folder.glob('*.xplane.pb')
  names = {'minibatch', 'input', *steps.PHASES}
  return sorted(
    (event.start_ns, event.name, dict(event.stats).get('step_num'))
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes
    for line in plane.lines
    for event in line.events
    if event.name in names
  )


def test_a_profile_names_minibatches_and_phases(whole):
  workdir, out = whole
  (folder,) = (workdir / 'profile/plugins/profile').iterdir()
  assert folder.name == 'minibatches_16-18' and f'16 to 18 traced in {folder}' in out
  every = ['minibatch', 'input', 'g', 'd']
  all_phases = ['minibatch', 'input', 'g', 'g_reg', 'd', 'd_reg']
  events = events_of(folder)
  assert [name for _, name, _ in events] == all_phases + 2 * every
  assert [number for _, name, number in events if name == 'minibatch'] == [16, 17, 18]
  with gzip.open(next(folder.glob('*.perfetto_trace.json.gz'))) as file:
    assert 'd_reg' in {event.get('name') for event in json.load(file)['traceEvents']}
  assert os.listdir(workdir / 'profile') == ['plugins']


def test_finished_run_starts_and_ends_at_once(home, whole, capsys):
  before = content(whole[0])
  train.train(configuration(home, **OPTIONS), whole[0])
  assert content(whole[0]) == before
  said = capsys.readouterr().out
  assert f'resuming at step {LAST}' in said and 'done: ' in said and 'compiled' not in said
  assert f'profile=16,3: the run goes on from minibatch {LAST}: nothing will be traced' in said


def test_a_run_killed_and_preempted_ends_with_the_same_bytes(home, whole, tmp_path):
  killed = start(home, tmp_path, **OPTIONS)
  wait_for(killed, 'tick 1 ')
  time.sleep(random.Random(1).uniform(0, 0.1))
  assert killed.poll() is None, 'the run ended before it could be killed'
  killed.kill()
  killed.communicate()

  # Another profile is no other run; its minibatches go on beyond the signal.
  preempted = start(home, tmp_path, **OPTIONS | {'profile': '9,100'})
  wait_for(preempted, 'tick 3 ')
  preempted.send_signal(signal.SIGTERM)
  _, err = finish(preempted, 75, timeout=30)
  assert 'saved step' in err and len(err.splitlines()) == 1
  last_saved = max(int(p.name) for p in (tmp_path / 'checkpoints').iterdir())
  assert 12 <= last_saved < LAST
  traced = events_of(tmp_path / f'profile/plugins/profile/minibatches_9-{last_saved - 1}')
  numbers = [number for _, name, number in traced if name == 'minibatch']
  assert numbers == list(range(9, last_saved))
  # No tick was lost or logged twice by the kill.
  assert log(tmp_path)[:4] == log(whole[0])[:4]

  out, _ = finish(start(home, tmp_path, **OPTIONS))
  assert f'resuming at step {last_saved}' in out and 'another than so far' not in out
  assert content(tmp_path) == content(whole[0])
  assert log(tmp_path)[-1] == log(whole[0])[-1]


@pytest.mark.slow
def test_run_killed_twenty_times_ends_with_the_same_bytes(home, tmp_path):
  draw = random.Random(2)
  longer = {'total_kimg': 6.144, 'snapshot_kimg': 0.128, 'tick_kimg': 0.128}
  finish(start(home, tmp_path / 'whole', **longer))
  for i in range(20):
    process = start(home, tmp_path / 'run', **longer)
    if i % 3:  # every third time it may not have compiled yet
      wait_for(process, 'compiled')
    time.sleep(draw.uniform(0, 3))
    assert process.poll() is None, 'the run ended before it could be killed'
    process.kill()
    process.communicate()
  finish(start(home, tmp_path / 'run', **longer))
  assert content(tmp_path / 'run', 768) == content(tmp_path / 'whole', 768)
  assert log(tmp_path / 'run') == log(tmp_path / 'whole')


@pytest.mark.slow
def test_ctrl_c_saves_the_last_step(home, tmp_path):
  process = start(home, tmp_path, snapshot_kimg=10)
  wait_for(process, 'tick 1 ')
  process.send_signal(signal.SIGINT)
  _, err = finish(process, 130, timeout=30)
  assert 'saved step' in err and len(err.splitlines()) == 1
  assert max(int(p.name) for p in (tmp_path / 'checkpoints').iterdir()) >= 8


@pytest.mark.slow
def test_signal_while_measuring_saves(home, tmp_path):
  process = start(home, tmp_path, metrics="('pixelfd50k_full',)", metrics_kimg=0.064)
  while not (tmp_path / 'checkpoints' / '8' / 'manifest.json').exists():
    assert process.poll() is None
    time.sleep(0.05)
  time.sleep(1)
  process.send_signal(signal.SIGTERM)
  out, err = finish(process, 75, timeout=60)
  assert 'saved step 8' in err and (tmp_path / 'checkpoints' / '8').is_dir()
  assert [line['step'] for line in log(tmp_path)] == [0, 4, 8] and 'pixelfd50k_full' not in log(
    tmp_path
  )[-1]
  out, _ = finish(
    start(home, tmp_path, metrics="('pixelfd0.1k_full',)", metrics_kimg=0.064, total_kimg=0.096)
  )
  measured = [line['step'] for line in log(tmp_path) if 'pixelfd0.1k_full' in line]
  assert measured == [8, 12]  # what was due is made up for; the end is always measured


def test_signal_while_compiling_leaves_at_once(home, tmp_path):
  process = start(home, tmp_path, **{'g.fmap_base': 80})  # not in the compile cache
  wait_for(process, 'starting from scratch')
  time.sleep(1)
  process.send_signal(signal.SIGTERM)
  began = time.monotonic()
  _, err = finish(process, 75)
  assert time.monotonic() - began < 10 and 'compiling' in err


@pytest.mark.slow
def test_second_run_in_a_workdir_and_another_configuration_are_refused(home, whole, tmp_path):
  first = start(home, tmp_path, total_kimg=100)
  first.stdout.readline()
  _, err = finish(start(home, tmp_path, total_kimg=100), 2)
  assert str(first.pid) in err
  first.kill()
  first.communicate()
  _, err = finish(start(home, whole[0], batch=16), 2)
  assert 'batch: 8 there, 16 here' in err


@pytest.mark.parametrize(
  'config, said', [('configs/custom.py:0', 'RESOLUTION'), ('configs/paper.py:g', 'e:Gskip-Dresnet')]
)
def test_unknown_configurations_name_the_choices(tmp_path, config, said):
  with pytest.raises(Fault, match=said) as e:
    call(main, f'--config={config}', f'--workdir={tmp_path / "run"}')
  assert e.value.code == 2


def test_an_error_is_one_line_and_an_exit_code(tmp_path):
  command = ['--config=configs/nope.py', f'--workdir={tmp_path / "run"}']
  run = subprocess.run(
    [sys.executable, '-m', 'sg2jax.main', *command], cwd=ROOT, capture_output=True, text=True
  )
  assert run.returncode == 2 and 'No such file' in run.stderr and len(run.stderr.splitlines()) == 1
  assert not (tmp_path / 'run').exists()


@pytest.mark.smoke
def test_a_tick_has_the_means_of_each_phase():
  tally = loop.Tally()
  running = types.SimpleNamespace(fault=jnp.asarray(state.NO_FAULT))
  for i in range(100):
    tally.add(
      'd', {'loss_d': jnp.float32(i), 'grad_norm_d': jnp.float32(2), 'grad_squares_d': jnp.ones(3)}
    )
    if i % 16 == 0:
      tally.add('d_reg', {'r1': jnp.float32(i + 1)})
  assert tally.fetch(running) == {'loss_d': 49.5, 'grad_norm_d': 2, 'r1': 49}
  running.fault = jnp.array([-1, 3, 0], np.int32)
  assert tally.fetch(running) is None


# ---- profiles, of stand-ins for minibatches


@pytest.fixture
def profile(tmp_path):
  """(window) -> a Profile and the list of what it says."""

  def make(first, count):
    said = []
    log = types.SimpleNamespace(say=said.append)
    return profile_lib.Profile(range(first, first + count), tmp_path, log), said

  return make


def minibatch(profile, step):
  """As in loop.loop, with a phase that takes a while; -> what it reports, perhaps not yet."""
  profile.begin(step)
  aux = {'loss': slow_sum(jnp.ones((256, 256)))}
  profile.end(step, aux)
  return aux['loss']


@jax.jit
def slow_sum(x):
  return jax.lax.fori_loop(0, 200, lambda _, x: x @ x / 256, x).sum()


def test_a_profile_waits_for_the_device_at_both_ends(profile, monkeypatch):
  begun = []
  start_trace = jax.profiler.start_trace
  monkeypatch.setattr(
    jax.profiler,
    'start_trace',
    lambda *args, **kwargs: (begun.append(before.is_ready()), start_trace(*args, **kwargs)),
  )
  traces, _ = profile(1, 1)
  slow_sum(jnp.ones((256, 256))).block_until_ready()  # compiled
  with traces:
    before = minibatch(traces, 0)
    assert not before.is_ready()
    assert minibatch(traces, 1).is_ready() and begun == [True]
    assert not minibatch(traces, 2).is_ready()


def test_what_ends_early_is_written_and_goes_on_in_the_next_stage(profile, tmp_path):
  traces, said = profile(1, 5)
  with traces:
    minibatch(traces, 0)
    minibatch(traces, 1)
  with pytest.raises(KeyError), traces:
    minibatch(traces, 2)
    minibatch(traces, 3)
    raise KeyError
  folder = tmp_path / 'profile/plugins/profile'
  assert {p.name for p in folder.iterdir()} == {'minibatches_1-1', 'minibatches_2-3'}
  assert said == [
    f'minibatch 1 traced in {folder}/minibatches_1-1',
    f'minibatches 2 to 3 traced in {folder}/minibatches_2-3',
  ]


@pytest.mark.parametrize(
  'step, says',
  [
    (0, ''),
    (10, ''),
    (11, 'profile=10,5: the run goes on from minibatch 11: minibatches 11 to 14 will be traced'),
    (14, 'minibatch 14 will be traced'),
    (15, 'from minibatch 15: nothing will be traced; name one that is to come'),
  ],
)
def test_a_run_that_is_late_for_its_profile_says_so(profile, step, says):
  traces, said = profile(10, 5)
  traces.announce(step)
  assert says in ' '.join(said) and bool(said) == bool(says)


def test_a_run_that_ends_before_its_profile_says_so(profile):
  traces, said = profile(10, 5)
  traces.conclude(11)
  assert not said
  traces.conclude(10)
  assert said[0].startswith('profile=10,5: the run ended after 10 minibatches: nothing was traced')
  traces, said = profile(0, 0)
  traces.announce(3)
  traces.conclude(0)
  assert not said


def test_a_profile_that_cannot_be_written_names_the_place(profile, tmp_path):
  traces, said = profile(0, 2)
  (tmp_path / 'profile').write_text('')
  with pytest.raises(WriteError, match='profile/.process0'):
    traces.begin(0)
  (tmp_path / 'profile').unlink()
  # It doesn't hide why the run ends.
  with pytest.raises(KeyError), traces:
    minibatch(traces, 0)
    (tmp_path / 'profile/plugins').write_text('')
    raise KeyError
  assert len(said) == 1 and said[0].startswith(f'cannot write {tmp_path}/profile: ')


# ---- what waits for the host


@pytest.mark.smoke
@pytest.mark.parametrize('implicit', [False, True])
def test_a_copy_that_nobody_asked_for_is_an_error(profile, implicit):
  """A number of Python as argument. On CPUs the way back is no copy, and can't be guarded."""
  add = jax.jit(jnp.add)
  clock = types.SimpleNamespace(step=jnp.int32(0), nimg=jnp.int32(0))
  one = jnp.int32(1)
  stage = types.SimpleNamespace(
    mesh=sharding.make_mesh(jax.devices()[:1]),
    key=jax.random.key(0),
    batch=4,
    steps=types.SimpleNamespace(phases=lambda step: ['d']),
    functions={'d': lambda key, x, batch: (x, {'loss': add(one, 1 if implicit else one)})},
  )
  run = types.SimpleNamespace(
    stop=False,
    profile=profile(0, 0)[0],
    growth=types.SimpleNamespace(repeats=9),
    log=types.SimpleNamespace(progress=lambda nimg: setattr(run, 'stop', nimg == 8)),
  )
  minibatches = iter([{'image': np.zeros((1, 4, 8, 8, 3), np.uint8)}] * 2)
  context = contextlib.nullcontext()
  if implicit:
    context = pytest.raises(RuntimeError, match='Disallowed host-to-device transfer')
  with context:
    assert loop.loop(run, stage, clock, minibatches) is clock


@pytest.mark.slow  # in the suite tests/test_workdir.py has it, without whole runs
def test_a_run_starts_from_the_weights_of_another(home, whole, tmp_path):
  """Without labels and with the upper layers of D frozen; what doesn't fit is listed and drawn."""
  fields = OPTIONS | {
    'metrics': (),
    'data.labels': False,
    'd.freeze_layers': 3,
    'total_kimg': 0.016,
    'snapshot_kimg': 0.008,
    'keep': 9,
    'init_from': whole[0],
  }
  out, _ = finish(start(home, tmp_path / 'a', **fields))
  done = json.loads((tmp_path / 'a' / 'init_from.json').read_text())
  assert done['settings'] == {'d.freeze_layers': '0 there, 3 here'} and 'starting from' in out
  fc0 = '[16, 16], [32, 16] there'
  assert done['initialised'] == {
    'g.mapping.fc0.weight': fc0,
    'g_ema.mapping.fc0.weight': fc0,
    'd.b6.out.weight': '[21, 1], [21, 21] there',
    'd.b6.out.bias': '[1], [21] there',
  }
  assert {name.split('.')[2] for name in done['unused']} <= {'embed', 'fc0'}
  assert f'{len(done["copied"])} copied, 4 initialised, 8 unused' in out

  old = checkpoint.load(whole[0])[0]
  new = checkpoint.load(tmp_path / 'a' / 'checkpoints' / '1')[0]
  assert set(old['d']['b12']) == {'fromrgb', 'conv0', 'conv1'}
  assert jax.tree.all(jax.tree.map(np.array_equal, old['d']['b12'], new['d']['b12']))
  assert not np.array_equal(old['d']['b6']['conv']['weight'], new['d']['b6']['conv']['weight'])
  assert jax.tree.all(jax.tree.map(np.array_equal, old['noise'], new['noise']))
  consts = [x['g']['synthesis']['b6']['const'] for x in (old, new)]
  near = abs(consts[0] - consts[1]).max()
  assert 0 < near < 0.01 and int(new['nimg']) == 8  # one step of Adam away, with a clock of its own

  out, _ = finish(start(home, tmp_path / 'a', **fields | {'total_kimg': 0.024}))
  assert 'resuming at step 2' in out and ' copied, ' not in out


def as_format(workdir, step, version, lacks):
  """Makes the checkpoint of a step one of an earlier format, whose states lack these fields."""
  place = workdir / 'checkpoints' / str(step)
  tree, meta = checkpoint.load(place)[0], checkpoint.read_manifest(place)['meta']
  tree = {name: value for name, value in tree.items() if name not in lacks}
  old = flax.struct.dataclass(type('Old', (), {'__annotations__': dict.fromkeys(tree, object)}))(
    **tree
  )
  shutil.rmtree(workdir / 'checkpoints')
  with contextlib.closing(checkpoint.Checkpoints(workdir, keep=1, meta=meta)) as checkpoints:
    checkpoints.save(old)
  rewrite(place, format=version)


@pytest.mark.slow
def test_a_run_goes_on_with_other_rounds_other_pictures_and_from_version_0_1(home, tmp_path):
  run, fields = tmp_path / "it's a run", {'data.labels': False, 'total_kimg': 0.032}
  out, _ = finish(start(home, run, **fields))
  assert f"--checkpoint='{tmp_path}/it'\"'\"'s a run'" in out
  out, _ = finish(start(home, run, **fields | {'microbatch': 4, 'total_kimg': 0.064}))
  assert 'rounds of 8 images there, of 4 here' in out and [
    line['step'] for line in log(run) if 'swd' in line
  ] == [0, 4, 8]
  (tmp_path / 'pictures').mkdir()
  for i in range(16):
    Image.fromarray(np.full((16, 16), 9 * i, np.uint8)).save(tmp_path / 'pictures' / f'{i}.png')
  where = [f'--source={tmp_path}/pictures', f'--dest={tmp_path}/other']
  call(prepare, *where, '--resolution=8', '--channels=1')
  fields |= {'microbatch': 4, 'total_kimg': 0.096, 'data.name': '', 'data.dir': tmp_path / 'other'}
  _, err = finish(start(home, run, **fields), 2)
  assert (
    'pictures' in err
    and 'data.allow_change=True' in err
    and 'init_from' in err
    and len(err.splitlines()) == 1
  )
  out, _ = finish(start(home, run, **fields | {'data.allow_change': True}))
  assert 'another than so far: pictures' in out and (run / 'images' / 'reals_000000.png').exists()
  as_format(run, 12, 1, state.LATER_FIELDS)
  out, _ = finish(start(home, run, **fields | {'total_kimg': 0.128}))
  assert 'version 0.1' in out and 'resuming at step 12' in out and log(run)[-1]['step'] == 16
  as_format(run, 16, 2, {'augment_p', 'augment_signs'})
  out, _ = finish(start(home, run, **fields | {'total_kimg': 0.16}))
  assert 'before 0.7' in out and 'resuming at step 16' in out and log(run)[-1]['step'] == 20


@pytest.mark.slow
def test_restoring_every_checkpoint_of_32_steps_changes_nothing(quick_compile, tmp_path):
  """Save and restore after each of steps 1..32, going on from what was restored: bit-equal to no
  saving at all.
  """
  config = default.get_config()
  config.update_from_flattened_dict(
    {
      'resolution': 8,
      'batch': 4,
      'data.dir': '-',
      'g.fmap_base': 16,
      'd.fmap_base': 16,
      'g.z_dim': 8,
      'g.w_dim': 8,
      'g.mapping_layers': 1,
      'augment.pipeline': 'bgc',
      'augment.p': 0.5,
    }
  )
  mesh = sharding.make_mesh()
  same = sharding.replicated(mesh)
  steps = build.steps(config, 0, mesh)
  images = np.random.default_rng(0).integers(0, 256, (32, 1, 4, 8, 8, 3), np.uint8)
  key, jitted = (
    jax.random.key(3),
    {name: sharding.jit_step(getattr(steps, name), mesh) for name in steps.phases(0)},
  )

  def run(checkpoints=None):
    state = build.init_state(config, steps, same)
    for i in range(32):
      for name in steps.phases(i):
        state, _ = jitted[name](
          key,
          state,
          sharding.to_global(mesh, {'image': images[i], 'label': np.zeros((1, 4, 0), 'f')}),
        )
      if checkpoints:
        checkpoints.save(state)
        before, state = jax.device_get(state), checkpoints.restore_latest(state)
        assert int(state.step) == i + 1
        jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state))
    return jax.device_get(state)

  with contextlib.closing(checkpoint.Checkpoints(tmp_path, keep=2, meta={})) as checkpoints:
    jax.tree.map(np.testing.assert_array_equal, run(), run(checkpoints))
