"""The folder of a run: what may differ at resume, what a new run starts from; all uncompiled."""

import ast
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import shlex

import jax
import ml_collections
import numpy as np
import optax
import pytest

from configs import default
import sg2jax
from sg2jax import build, files, state
from sg2jax.data.labels import Labels
from sg2jax.faults import CheckpointError, UsageError, WeightsError
from sg2jax.interop import write
from sg2jax.tools import convert
from sg2jax.training import init_from, loop, report, train, workdir
from tests.runs import call, write_run

NET = {
  'resolution': 16,
  'batch': 8,
  'data.dir': 'somewhere',
  'metrics': (),
  'g.fmap_base': 32,
  'd.fmap_base': 32,
  'g.z_dim': 16,
  'g.w_dim': 16,
  'g.mapping_layers': 1,
  'd.mapping_layers': 1,
}
LABELS = Labels.of_classes(('cat', 'dog'), [5, 4])


def config_of(**fields):
  config = default.get_config()
  config.update_from_flattened_dict(
    {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in (NET | fields).items()}
  )
  return config


@functools.cache
def shapes_of(config, c_dim):
  """As `build.abstract_state`; config: JSON."""
  config = ml_collections.ConfigDict(json.loads(config))
  return build.abstract_state(config, c_dim)


def state_of(config, c_dim=0, nimg=80):
  """A TrainState as training might have made it: of random numbers."""
  draws = np.random.RandomState(1)

  def make(x):
    if x.dtype == np.float32:
      return draws.normal(size=x.shape).astype(np.float32)
    return np.zeros(x.shape, x.dtype)

  return jax.tree.map(make, shapes_of(config.to_json(), c_dim)).replace(
    step=np.int32(nimg // config.batch), nimg=np.int32(nimg)
  )


def run_of(place, c_dim=0, nimg=80, **fields):
  """A workdir of a run that has seen nimg images."""
  config = config_of(**fields)
  return write_run(place, config.to_dict() | {'c_dim': c_dim}, state_of(config, c_dim, nimg))


@dataclasses.dataclass
class Source:
  """A data set of which nobody reads an image."""

  hash: str = 'abcdefgh12'
  name: str = 'cats'
  count: int = 1200
  c_dim: int = 0
  labels: object = None
  shape: tuple = (16, 16, 3)

  def __len__(self):
    return self.count


@pytest.fixture
def begin(monkeypatch):
  """`train.train` up to where it would compile: (config fields, workdir, Source) -> arguments of
  `run`.
  """

  def begin(fields, place, source=None):
    found = {}
    monkeypatch.setattr(train.build, 'dataset', lambda *_: source or Source())
    monkeypatch.setattr(
      train,
      'restore_and_train',
      lambda config, workdir, source, mesh, stop, origin, changes: found.update(
        start=origin, changes=changes
      ),
    )
    train.train(config_of(**fields), place)
    return found

  return begin


# ---- frozen layers

FROZEN = {'d.freeze_layers': 3}


def test_layers_that_stay_as_they_are_are_not_drawn(begin, tmp_path):
  """From scratch, and from a run without a discriminator."""
  config = config_of()
  made = write_run(
    tmp_path / 'made', config.to_dict() | {'c_dim': 0}, state_of(config).replace(d={})
  )
  for fields in ({}, {'init_from': made}):
    begin(fields, tmp_path / f'unfrozen{len(fields)}')  # no word without frozen layers
    said = r'freeze_layers=3: b16.fromrgb, b16.conv0, b16.conv1 of D .*freeze_layers=0$'
    with pytest.raises(UsageError, match=said):
      begin(FROZEN | fields, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'there, here, said',
  [
    ({}, {}, ''),
    ({}, {'data.labels': True}, ''),
    ({'d.fmap_base': 64}, {}, 'freeze_layers=0'),
    # which lacks only the layer `skip` of a resnet, the fourth
    ({'d.architecture': 'skip'}, {}, ''),
    ({'d.architecture': 'skip'}, {'d.freeze_layers': 5}, ': b16.skip of D .*freeze_layers=3'),
    ({'data.channels': 1}, {'d.freeze_layers': 2}, ': b16.fromrgb of D'),
    ({'resolution': 8}, {}, ': b16.fromrgb, b16.conv0'),
    ({'resolution': 32}, {}, ': b16.fromrgb of D .*freeze_layers=0'),
  ],
)
def test_frozen_layers_and_other_networks(begin, tmp_path, there, here, said):
  made = run_of(tmp_path / 'made', **there)
  fields = FROZEN | here | {'init_from': made}
  source = Source(c_dim=2 if here.get('data.labels') else 0)
  if not said:
    assert begin(fields, tmp_path / 'run', source)['start'].path == str(made)
    return
  with pytest.raises(UsageError, match=said):
    begin(fields, tmp_path / 'run', source)
  assert not (tmp_path / 'run').exists()


def test_a_run_of_frozen_layers_goes_on(begin, tmp_path):
  """Also where what it began from is gone: it isn't read again."""
  run = run_of(tmp_path / 'run', init_from='/gone', **FROZEN)
  assert begin(FROZEN | {'init_from': '/gone'}, run) == {'start': None, 'changes': []}


# ---- starting from files


def test_a_run_starts_from_an_export_and_says_so(begin, tmp_path, capsys):
  config = config_of()
  made = state_of(config)
  document = config.to_dict() | {'c_dim': 0}
  data, beside = write.write_safetensors(vars(made), json.loads(json.dumps(document)))
  files.write_atomic(tmp_path / 'net.safetensors', data)
  digest = hashlib.sha256(data).hexdigest()
  (tmp_path / 'net.safetensors.json').write_text(json.dumps(beside | {'sha256': digest}))
  start = begin({'init_from': tmp_path / 'net.safetensors'} | FROZEN, tmp_path / 'run')['start']
  log = report.Report(tmp_path / 'run', 0, 1)
  fresh = init_from.apply(config, state_of(config), start, tmp_path / 'run', log)
  assert np.array_equal(fresh.g['mapping']['fc0']['weight'], made.g['mapping']['fc0']['weight'])
  note = json.loads((tmp_path / 'run' / 'init_from.json').read_text())
  assert (note['file'], note['sha256'], note['initialised']) == (
    str(tmp_path / 'net.safetensors'),
    digest,
    {},
  )
  assert ' copied, 0 initialised, 0 unused; ' in capsys.readouterr().out


def test_a_run_starts_from_a_file_of_others(begin, tmp_path):
  """A pickle without a discriminator: fine, and what the configuration of ours says of one doesn't
  count.
  """
  from tests.foreign_files import dumps
  from tests.foreign_networks import module, torch_nets

  net = torch_nets('skip')[0]['G_ema']
  (tmp_path / 'net.pkl').write_bytes(dumps({'G_ema': module(net.kind, net.arrays, net.kwargs)}))
  kwargs = net.kwargs
  fields = {
    'init_from': tmp_path / 'net.pkl',
    'd.variant.taps': (1, 2, 1),
    'resolution': kwargs['img_resolution'],
    'data.channels': kwargs['img_channels'],
  }
  start = begin(fields, tmp_path / 'run')['start']
  assert start.note['file'] == str(tmp_path / 'net.pkl') and 'd is empty' in str(
    start.note['notes']
  )
  with pytest.raises(UsageError, match='of D would stay random'):
    begin(fields | {'d.freeze_layers': 1}, tmp_path / 'frozen')
  assert not (tmp_path / 'frozen').exists()


def test_what_makes_weights_mean_something_else_is_named_at_once(begin, tmp_path):
  """All rare fields of a network in one flag, beside those that the user gave."""
  rare = {'d.variant': {'taps': (1, 2, 1), 'mapping_lr_mul': 0.5}, 'g.variant': {'taps': (1, 1)}}
  fields = {'init_from': run_of(tmp_path / 'made', **rare), 'd.variant': {'fmap_min': 6}}
  said = r'd.variant.mapping_lr_mul=0.01: .* --config.d.variant="(.*)"'
  with pytest.raises(UsageError, match=said) as e:
    begin(fields, tmp_path / 'run')
  wanted = ast.literal_eval(re.search(said, str(e.value))[1])
  assert wanted == {'fmap_min': 6, 'taps': [1, 2, 1], 'mapping_lr_mul': 0.5}
  with pytest.raises(UsageError, match=r'g.variant.taps=\[1, 3, 3, 1\]: .*go with \[1, 1\]'):
    begin(fields | {'d.variant': wanted}, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'content',
  [b'', b'<!DOCTYPE html>', b'version https://git-lfs.github.com/spec/v1\n', b'\x1f\x8b1234'],
)
def test_files_that_are_none_are_refused_before_anything_is_made(begin, tmp_path, content):
  (tmp_path / 'net.pkl').write_bytes(content)
  with pytest.raises(WeightsError, match='net.pkl'):
    begin({'init_from': tmp_path / 'net.pkl'}, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_nothing_to_start_from(begin, tmp_path):
  with pytest.raises(CheckpointError, match='init_from=.*nowhere'):
    begin({'init_from': tmp_path / 'nowhere.pkl'}, tmp_path / 'run')
  with pytest.raises(CheckpointError, match='fits this generator'):
    begin(
      {
        'init_from': run_of(
          tmp_path / 'made', **{'resolution': 24, 'g.z_dim': 8, 'g.w_dim': 8, 'g.fmap_base': 48}
        )
      },
      tmp_path / 'run',
    )
  assert not (tmp_path / 'run').exists()


# ---- resuming


def resumed(place, source=None, **fields):
  """A workdir whose run has a checkpoint, and was started by `save_run`."""
  source = source or Source()
  config = config_of()
  workdir.save_run(place, config.to_dict() | workdir.data_values(source) | fields, source.labels)
  (place / 'checkpoints/10').mkdir(parents=True)
  return place


def test_save_run(tmp_path):
  for batch in (8, 16):
    workdir.save_run(tmp_path / 'run', {'z': 1, 'batch': batch, 'data': {'name': 'digits'}})
  config = (tmp_path / 'run' / 'config.json').read_text()
  assert json.loads(config) == {'z': 1, 'batch': 16, 'data': {'name': 'digits'}}
  assert config.index('"batch"') < config.index('"z"')
  starts = json.loads((tmp_path / 'run' / 'environment.json').read_text())
  assert len(starts) == 2 and starts[0]['devices'] >= 1 and starts[0]['jax'] and starts[0]['python']
  assert sorted(os.listdir(tmp_path / 'run')) == ['config.json', 'environment.json']
  # It only informs: a torn one keeps no run from going on.
  (tmp_path / 'run' / 'environment.json').write_text('[{')
  workdir.save_run(tmp_path / 'run', {})
  assert len(json.loads((tmp_path / 'run' / 'environment.json').read_text())) == 1


def test_save_run_keeps_labels_and_what_changed(tmp_path):
  labels = Labels.of_classes(('cat', 'dog'), [3, 0])
  workdir.save_run(tmp_path, {}, labels, ['microbatch: 0 there, 4 here'])
  kept = Labels.from_json((tmp_path / 'labels.json').read_text())
  assert kept.names == labels.names and kept.class_counts() == {'cat': 3, 'dog': 0}
  workdir.save_run(tmp_path, {})  # started again before anything was trained, without labels
  starts = json.loads((tmp_path / 'environment.json').read_text())
  assert [s.get('changes') for s in starts] == [['microbatch: 0 there, 4 here'], None]
  assert not (tmp_path / 'labels.json').exists()


@pytest.mark.smoke
def test_microbatch_may_change_and_is_told(begin, tmp_path):
  run = resumed(tmp_path / 'run')
  assert begin({'microbatch': 4}, run)['changes'] == ['microbatch: 0 there, 4 here']
  assert json.loads((run / 'environment.json').read_text())[-1]['changes'] == [
    'microbatch: 0 there, 4 here'
  ]
  assert begin({'microbatch': 4}, run)['changes'] == []


OTHER = Source('xyz', 'dogs', 900)


def test_other_pictures_are_named_with_the_ways_out(begin, tmp_path):
  run = resumed(tmp_path / 'a run')
  with pytest.raises(UsageError) as e:
    begin({}, run, OTHER)
  for text in (
    'pictures',
    'cats, 1,200 images, hash abcdefgh there; dogs, 900 images, hash xyz here',
    '--config.data.allow_change=True',
    f"--config.init_from='{run}'",
  ):
    assert text in str(e.value)
  assert json.loads((run / 'config.json').read_text())['data_hash'] == 'abcdefgh12'
  changes = begin({'data.allow_change': True, 'data.name': 'dogs'}, run, OTHER)['changes']
  assert len(changes) == 1 and 'dogs, 900 images' in changes[0]
  kept = json.loads((run / 'config.json').read_text())
  assert (kept['data_hash'], kept['data_images'], kept['data_title']) == ('xyz', 900, 'dogs')
  assert json.loads((run / 'environment.json').read_text())[-1]['changes'] == changes
  # allowed once, it is the run's; names don't matter
  assert begin({'data.name': 'elsewhere'}, run, OTHER)['changes'] == []
  with pytest.raises(UsageError, match='dogs, 900 images, hash xyz there; cats, 1,200'):
    begin({}, run)


@pytest.mark.parametrize(
  'pipeline, count, said',
  [
    ('auto', 9_999, None),
    ('auto', 10_000, 'augmentation: bgc there, none here (augment.pipeline=auto: none from 10,000'),
    ('bgc', 10_000, None),
  ],
)
def test_other_pictures_may_be_too_many_to_augment(begin, tmp_path, pipeline, count, said):
  fields = {'augment.pipeline': pipeline}
  source = Source()
  workdir.save_run(tmp_path, config_of(**fields).to_dict() | workdir.data_values(source))
  (tmp_path / 'checkpoints/10').mkdir(parents=True)
  more = Source('xyz', 'dogs', count)
  changes = begin(fields | {'data.allow_change': True}, tmp_path, more)['changes']
  assert changes[0].startswith('pictures: ') and len(changes) == 1 + bool(said)
  assert not said or changes[1].startswith(said)


def test_runs_of_version_0_1_say_what_they_know(begin, tmp_path):
  run = resumed(tmp_path)
  old = json.loads((run / 'config.json').read_text())
  del (
    old['data_images'],
    old['data_title'],
    old['data']['allow_change'],
    old['d']['freeze_layers'],
  )
  (run / 'config.json').write_text(json.dumps(old))
  assert begin({}, run)['changes'] == []
  (run / 'config.json').write_text(json.dumps(old))
  with pytest.raises(
    UsageError, match='a data set, hash abcdefgh there; dogs, 900 images, hash xyz here'
  ):
    begin({}, run, OTHER)
  # what it lacks has a meaning
  with pytest.raises(UsageError, match='d.freeze_layers: 0 there, 3 here'):
    begin(FROZEN, run)
  with pytest.raises(UsageError, match=r'g.variant.taps: \[1, 3, 3, 1\] there, \[1, 2, 1\] here'):
    begin({'g.variant.taps': (1, 2, 1)}, run)


@pytest.mark.parametrize(
  'labels, said',
  [
    (LABELS, None),
    (Labels.of_classes(('cat', 'dog'), [9, 9]), None),
    (Labels.of_classes((), [5, 4]), None),
    (Labels.of_classes(('dog', 'cat'), [4, 5]), 'classes cat, dog there; dog, cat here'),
  ],
)
def test_class_names_are_compared(begin, tmp_path, labels, said):
  fields = {'data.labels': True}
  run = resumed(
    tmp_path, Source(c_dim=2, labels=LABELS), **{'data': config_of(**fields).data.to_dict()}
  )
  assert Labels.from_json((run / 'labels.json').read_text()).names == ('cat', 'dog')
  source = Source(c_dim=2, labels=labels)
  if said:
    with pytest.raises(UsageError, match=said):
      begin(fields, run, source)
    fields['data.allow_change'] = True
  assert begin(fields, run, source)['changes'] == ([f'pictures: {said}'] if said else [])
  assert Labels.from_json((run / 'labels.json').read_text()).names == labels.names


def test_another_number_of_classes_is_another_network(begin, tmp_path):
  fields = {'data.labels': True}
  run = resumed(tmp_path, Source(c_dim=2), **{'data': config_of(**fields).data.to_dict()})
  with pytest.raises(UsageError, match='c_dim: 2 there, 3 here; cats.* dogs.*--config.init_from='):
    begin(fields | {'data.allow_change': True}, run, Source('xyz', 'dogs', 900, 3))
  with pytest.raises(UsageError, match='loss.r1_gamma: 10.0 there, 2.0 here'):
    begin(fields | {'loss.r1_gamma': 2.0, 'data.allow_change': True}, run, Source(c_dim=2))


def test_an_imported_network_is_no_run_to_go_on_with(begin, tmp_path):
  made = run_of(tmp_path / 'made')
  (made / 'import.json').write_text('{}')
  with pytest.raises(UsageError, match='imported network.*--config.init_from='):
    begin({}, made)


def test_a_half_written_first_checkpoint_is_no_beginning(begin, tmp_path):
  run = resumed(tmp_path / 'run')
  (run / 'checkpoints/10').rename(run / 'checkpoints/10.tmp')
  made = run_of(tmp_path / 'made')
  assert begin({'init_from': made, 'batch': 16}, run)['start'].path == str(made)
  with pytest.raises(UsageError, match='would stay random'):
    begin(FROZEN, run)


# ---- going on from a checkpoint


class Log:
  def __init__(self):
    self.said = []

  def say(self, text):
    self.said.append(text)


def go_on(config, before, state, **manifest):
  log = Log()
  found = workdir.resume(
    config,
    8,
    state,
    {'format': 2, 'meta': {'config': before.to_dict()}} | manifest,
    train.sharding.make_mesh(jax.devices()[:1]),
    log,
  )
  return found, ' '.join(log.said)


def test_summed_gradients_of_more_rounds_meet_moments_of_their_size():
  """A step with gradients of twice the size, after moments were adapted, is the step that there
  would have been.
  """
  adam = state.adam(0.01, 0.0, 0.99, 1e-8, 4)
  draws = np.random.RandomState(0)
  params, grads = ({'b4': {'w': draws.randn(5).astype(np.float32)}} for _ in range(2))
  opt = adam.init(params)
  for _ in range(3):
    _, opt = adam.update(grads, opt, params)
  holder = state.TrainState(
    *[None] * 5,
    g_opt=opt,
    d_opt=opt,
    noise=None,
    w_avg=None,
    pl_mean=None,
    **({'fault': None} if 'fault' in state.TrainState.__dataclass_fields__ else {}),
  )
  found, said = go_on(config_of(microbatch=4), config_of(), jax.tree.map(np.copy, holder))
  assert 'rounds of 8 images there, of 4 here' in said and 'minibatch stddev' in said
  wanted, _ = adam.update(grads, opt, params)
  for opt_ in (found.g_opt, found.d_opt):
    update, _ = adam.update(jax.tree.map(lambda x: 2 * x, grads), opt_, params)
    np.testing.assert_allclose(update['b4']['w'], wanted['b4']['w'], rtol=1e-5)
  back, _ = go_on(config_of(), config_of(microbatch=2), jax.tree.map(np.copy, holder))
  assert isinstance(back.g_opt[0], optax.ScaleByAdamState)
  np.testing.assert_allclose(back.g_opt[0].nu['b4']['w'], opt[0].nu['b4']['w'] / 16, rtol=1e-6)
  averaged, said = go_on(
    config_of(microbatch=4, **{'opt.formulation': 'tensorflow'}), config_of(), holder
  )
  assert averaged is holder and 'rounds of' in said


def test_a_run_of_version_0_1_is_told_that_its_numbers_are_others():
  same, said = go_on(config_of(), config_of(), 'state')
  assert (same, said) == ('state', '')
  same, said = go_on(config_of(), config_of(), 'state', format=1)
  assert same == 'state' and 'version 0.1' in said and 'not bit for bit' in said


# ---- addresses and systems


@pytest.mark.parametrize('place', ['none://bucket/run', 'https://host/run', 'gs://', 'gs:/b/run'])
def test_addresses_that_cannot_be_are_refused_also_from_python(begin, tmp_path, monkeypatch, place):
  monkeypatch.chdir(tmp_path)
  for given in (place, pathlib.Path(place)) if 'none' not in place else (place,):
    with pytest.raises(UsageError, match='--workdir='):
      begin({}, given)
  with pytest.raises(UsageError, match='--config.init_from='):
    begin({'init_from': place}, 'run')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('place', ['.', 'run', 'run/checkpoints/1'])
def test_names_that_are_no_utf8_are_refused_before_anything_is_made(
  begin, tmp_path, monkeypatch, place
):
  """Also of the folder where the user stands."""
  here = tmp_path / os.fsdecode(b'caf\xe9')
  here.mkdir()
  (tmp_path / 'x.pkl').write_bytes(b'\x80')
  monkeypatch.chdir(here)
  for call_tool in (
    lambda: begin({}, place),
    lambda: sg2jax.load(place),
    lambda: call(convert, f'--source={tmp_path}/x.pkl', f'--dest={place}'),
  ):
    with pytest.raises(UsageError, match=r"name in UTF-8, and '.*caf\\udce9.*' is none; rename it"):
      call_tool()
  assert not list(here.iterdir())


@pytest.mark.parametrize('place', ['run', 'rect [v1] é#2 100%', "it's", '-x', '$(x) `y`'])
def test_the_hint_at_the_end_can_be_pasted(place):
  text = loop.hint(pathlib.Path(place))
  words = shlex.split(text[text.index('; python') + 2 :])
  assert words == [
    'python',
    '-m',
    'sg2jax.tools.evaluate',
    f'--checkpoint={place}',
    'measures',
    'it',
  ]
