"""The viewer without a browser: pictures, their command lines, events."""

import asyncio
import dataclasses
import json
import random
import shlex
import shutil
import types
from urllib.parse import unquote

from fastapi import FastAPI
import numpy as np
import pytest

import sg2jax
from sg2jax import files, paths
from sg2jax.edit import direction
from sg2jax.edit.direction import Direction
from sg2jax.faults import CheckpointError, Interrupted, UsageError
from sg2jax.models import styles as style_space
from sg2jax.tools import generate, video, view
from sg2jax.training import checkpoint
from sg2jax.view import catalogue, curves, layers, picture, recording, searches, session
from sg2jax.view.page import Page
from sg2jax.view.picture import Shown
from sg2jax.view.server import Viewer
from sg2jax.view.session import Session
from tests.runs import call
from tests.test_sampler import CATS, Z, make_run

pytestmark = pytest.mark.usefixtures('quick_compile')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A tiny run with named classes, and two directions, one of them in styles."""
  run = make_run(tmp_path_factory.mktemp('viewed') / 'run')
  (run / 'labels.json').write_text(CATS.to_json())
  net = sg2jax.load(run)
  channels = style_space.channels(net.generator, net.variables)['b8.conv1']
  wide = Direction('wide', (net.hash(),), np.full((6, Z), 0.1, np.float32))
  bold = Direction('bold', (net.hash(),), None, {'b8.conv1': np.full(channels, 0.5, np.float32)})
  (run / 'directions' / '3').mkdir(parents=True)
  direction.write(run / 'directions' / '3' / 'two.npz', [wide, bold])
  return run


@pytest.fixture(scope='module')
def viewer(run):
  return Viewer(str(run))


def two(viewer):
  return list(viewer.directions)


# Of each control: what is shown, and the same call of the network.
CONTROLS = {
  'nothing': ({}, {}),
  'seed': ({'seed': 2**32 - 1}, {'seeds': [2**32 - 1]}),
  'class': ({'label': '0'}, {'label': 2}),  # the last class is called 0
  'psi': ({'psi': 0.3}, {'psi': 0.3}),
  'cutoff': ({'psi': -0.5, 'cutoff': 2}, {'psi': -0.5, 'cutoff': 2}),
  'random': ({'noise': 'random', 'seed': 7}, {'noise': 'random', 'seeds': [7]}),
  'none': ({'noise': 'none'}, {'noise': 'none'}),
}


@pytest.mark.parametrize('name', CONTROLS)
def test_a_picture_is_that_of_the_call_and_of_the_command(viewer, tmp_path, name):
  fields, options = CONTROLS[name]
  shown = Shown(**fields)
  made = picture.picture(viewer.net, shown, {})
  np.testing.assert_array_equal(made, viewer.net(**{'seeds': [0]} | options)[0])
  again(viewer, shown, made, tmp_path)


def again(viewer, shown, made, folder):
  """The command writes a file of these pixels, byte for byte that of the download."""
  command = shlex.split(picture.command(viewer.net, shown, viewer.path))
  assert command[1:3] == ['-m', 'sg2jax.tools.generate'] and command[-1] == '--out=pictures'
  call(generate, *command[3:-1], f'--out={folder}')
  (file,) = folder.iterdir()
  assert file.read_bytes() == files.png(made)


def test_a_mix_is_that_of_the_command(viewer, tmp_path):
  shown = Shown(seed=3, mix_seed=8, mix_first=2, mix_last=4, psi=0.8, label='cat', noise='random')
  net = viewer.net
  ws = net.ws([3, 8], 0.8, label=0)
  ws[0, 2:5] = ws[1, 2:5]
  made = picture.picture(net, shown, {})
  np.testing.assert_array_equal(made, net.images(ws[:1], 'random', [3])[0])
  assert (made != net([3], 0.8, label=0, noise='random')[0]).any()
  again(viewer, shown, made, tmp_path)


def test_directions_are_those_of_the_call_and_of_the_command(viewer, tmp_path):
  (file, _), _ = wide, bold = two(viewer)
  shown = Shown(seed=4, moves=((file, 'bold', -1.5), (file, 'wide', 2.25)))
  pairs = [(viewer.directions[bold], -1.5), (viewer.directions[wide], 2.25)]
  made = picture.picture(viewer.net, shown, viewer.directions)
  np.testing.assert_array_equal(made, viewer.net([4], edit=pairs)[0])
  again(viewer, shown, made, tmp_path)
  arrays = files.parse_npz(
    picture.npz(viewer.net, shown, viewer.directions, viewer.path), 2**20, 'fiubU'
  )
  ws, offsets = direction.apply(viewer.net, pairs, viewer.net.ws([4]))
  np.testing.assert_array_equal(arrays['ws'], ws)
  np.testing.assert_array_equal(arrays['styles/b8.conv1'], offsets['b8.conv1'])
  np.testing.assert_array_equal(arrays['image'], made)
  with pytest.raises(UsageError, match='not there any more'):
    picture.picture(viewer.net, shown, {})


def test_a_walk_passes_the_pictures_of_its_seeds(viewer):
  net, shown = viewer.net, Shown(seed=2**32 - 1, psi=0.7, noise='random')
  walk = [picture.walk_frame(net, shown, {}, at, 2) for at in (0, 1, 2, 0.5)]
  np.testing.assert_array_equal(walk[0], picture.picture(net, shown, {}))
  np.testing.assert_array_equal(walk[1], net.images(net.ws([0], 0.7), 'random', [2**32 - 1])[0])
  np.testing.assert_array_equal(walk[2], walk[0])
  assert (walk[3] != walk[0]).any() and (walk[3] != walk[1]).any()
  with pytest.raises(UsageError, match='finite'):
    picture.walk_frame(net, shown, {}, float('inf'), 2)


def test_a_walk_on_the_sphere_is_that_of_video(viewer):
  net = viewer.net
  options = {'psi': 0.7, 'cutoff': 4, 'label': 'cat'}
  seeds = np.array([[[5, 6, 7]]])
  film = list(video.frames(net, seeds, 6, 'z', noise='random', **options))
  shown = Shown(seed=5, noise='random', **options)
  walk = [picture.walk_frame(net, shown, {}, at / 2, 3, 'z') for at in range(6)]
  assert np.abs(np.stack(walk).astype(int) - np.stack(film)).max() <= 1
  straight = picture.walk_frame(net, shown, {}, 0.5, 3)
  assert (straight != walk[1]).any()
  mixed = dataclasses.replace(shown, mix_seed=9, mix_first=0, mix_last=5)
  at = [picture.walk_frame(net, mixed, {}, at, 3, 'z') for at in (0, 0.5)]
  np.testing.assert_array_equal(*at)  # all of it is lent, and stays


# ---- layers, curves


@pytest.mark.parametrize('noise', ('const', 'random', 'none'))
def test_parts_sum_to_the_picture(viewer, noise):
  (file, _), _ = two(viewer)
  shown = Shown(seed=4, noise=noise, moves=((file, 'bold', 2.0),))
  found = layers.parts(viewer.net, shown, viewer.directions)
  assert list(found) == ['b4', 'b8', 'b16']
  assert sum(part.share for part in found.values()) == pytest.approx(1, abs=1e-5)
  # 127 in each is 0; what is off by less than a shade in each part adds up. Clipped ones don't sum.
  images = np.stack([part.image for part in found.values()]).astype(int)
  whole = 128 + (images - 127).sum(0)
  open = ((images > 0) & (images < 255)).all(0) & (whole > 0) & (whole < 255)
  made = picture.picture(viewer.net, shown, viewer.directions)
  assert open.mean() > 0.3
  assert np.abs(whole - made)[open].max() <= 3


def test_feature_maps_are_those_of_the_edited_picture(viewer):
  (file, _), _ = two(viewer)
  assert layers.names(viewer.net)[0] == 'b4.conv1' and len(layers.names(viewer.net)) == 5
  before, after = (
    [layers.maps(viewer.net, shown, viewer.directions, x) for x in ('b4.conv1', 'b8.conv1')]
    for shown in (Shown(), Shown(moves=((file, 'bold', 3.0),)))
  )
  np.testing.assert_array_equal(before[0], after[0])  # below the layer whose styles it moves
  assert (before[1] != after[1]).any()
  with pytest.raises(UsageError, match='layer b9: choose from b4.conv1'):
    layers.maps(viewer.net, Shown(), {}, 'b9')


def test_curves(tmp_path):
  assert curves.read(tmp_path) == {}
  rows = [{'step': k, 'nimg': 1000 * k, 'swd': k / 2, 'loss_g': float('nan')} for k in range(2500)]
  text = '\n'.join([*map(json.dumps, rows), '{"nimg": 1'])
  (tmp_path / 'metrics.jsonl').write_text(text)
  found = curves.read(tmp_path)
  assert list(found) == ['swd'] and curves.first(list(found)) == ['swd']
  assert 500 < len(found['swd']) <= 1000 and found['swd'][-1] == (2499, 2499 / 2)


# ---- events

BAD = ('', None, 'seven', '-1', -1, 1e30, '1e30', 'nan', float('nan'), float('inf'), 0.5, [], '🂡')
GOOD = {
  'seed': (0, '7', 2**32 - 1, ' 12 ', 3.0),
  'label': ('', 'cat', 'dog', '1'),
  'psi': (1, '0.7', -1, 0),
  'cutoff': ('', 0, '6', 3.0),
  'noise': ('const', 'random', 'none'),
  'mix_seed': ('', '5', 0),
  'walk_seeds': ('2', 9),
  'walk_seconds': (0.5, '3'),
  'walk_space': ('w', 'z'),
}


def test_random_events_never_end_it(viewer):
  draw = random.Random(0)
  tab = Session()
  refused = 0
  for _ in range(200):
    before = dataclasses.replace(tab, troubles={})
    name = draw.choice([*GOOD, 'moves', 'mix', 'nonsense'])
    value = draw.choice([*BAD, *GOOD.get(name, (1, -2.5, '0'))])
    if name == 'moves':
      file, which = draw.choice([*two(viewer), ('gone.npz', 'gone')])
      taken = tab.move(viewer.directions, file, which, value)
    elif name == 'mix':
      taken = tab.mix(viewer.net, value, draw.randrange(6))
    else:
      taken = tab.set(viewer.net, name, value)
    refused += not taken
    assert taken or (tab.message and dataclasses.replace(tab, troubles={}) == before)
    assert '\n' not in tab.message and len(tab.message) < 300
    made = picture.picture(viewer.net, tab.shown, viewer.directions)
    assert made.shape == (8, 16, 3)
  assert 40 < refused < 160


def test_what_is_refused_is_named(viewer):
  tab = Session()
  for name, value, said in (
    ('seed', '-1', 'seed=-1 must be a whole number from 0 to 4294967295'),
    ('seed', 1e30, 'seed=1e+30 must be'),
    ('psi', 'much', 'psi=much must be a number'),
    ('label', 'bird', 'class bird: there is no such class'),
    ('cutoff', '7', 'cutoff=7 must be a whole number from 0 to 6'),
  ):
    assert not tab.set(viewer.net, name, value)
    assert said in tab.message
  assert tab.shown == Shown()
  # ---- for as long as it stands there
  assert tab.set(viewer.net, 'cutoff', 2) and 'class bird' in tab.message
  assert tab.set(viewer.net, 'label', '') and tab.set(viewer.net, 'psi', 1)
  assert 'seed=1e+30' in tab.message
  assert not tab.say('the search was lost') and tab.message == 'the search was lost'
  assert not tab.move({}, 'gone.npz', 'wide', 1) and 'wide of gone.npz is not there' in tab.message
  assert tab.set(viewer.net, 'seed', 5) and not tab.message


def test_controls_name_layers_and_classes(viewer):
  assert session.classes(viewer.net) == ['cat', 'dog', '0']
  assert [session.resolution_of(viewer.net, k) for k in range(6)] == [4, 8, 8, 16, 16, 16]
  assert session.drawn_class(viewer.net, Shown(label='dog')) == 'dog'


# ---- searches


def test_a_dropped_picture_is_projected_and_made_again(viewer, run, tmp_path, monkeypatch):
  monkeypatch.setattr(searches, 'STEPS', 3)
  tab = viewer.sessions['x'] = Session(Shown(seed=5, psi=0.5, mix_seed=3))
  (file, _), _ = two(viewer)
  assert tab.move(viewer.directions, file, 'bold', 2)
  with pytest.raises(UsageError, match='broken.png: .*drop a PNG'):
    searches.projected(viewer, 'x', 'broken.png', b'PNG, but broken')
  assert tab.shown.start is None and tab.shown.psi == 0.5
  searches.projected(viewer, 'x', '../a cat.png', files.png(viewer.net([4])[0]))
  shown = tab.shown
  assert shown.start.name == 'a cat' and shown.psi == 1 and shown.mix_seed is None and tab.version
  searches.projected(viewer, 'x', 'small.png', files.png(viewer.net([4])[0, :3, :3]))
  assert tab.shown.start.name == 'small'
  made = picture.picture(viewer.net, shown, viewer.directions)
  # ---- the files that are downloaded make it again
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'a cat.npz').write_bytes(
    picture.npz(viewer.net, shown, viewer.directions, viewer.path)
  )
  again(viewer, shown, made, tmp_path / 'out')
  # ---- its maps are those that were found
  assert layers.maps(viewer.net, shown, viewer.directions, 'b4.conv1').any()
  assert not tab.set(viewer.net, 'psi', 0.7) and 'psi is for seeds' in tab.message
  with pytest.raises(UsageError, match='goes through seeds'):
    picture.walk_frame(viewer.net, shown, {}, 0.5, 2)
  assert tab.set(viewer.net, 'seed', '') and tab.shown.start
  assert tab.set(viewer.net, 'seed', 4) and tab.shown.start is None
  del viewer.sessions['x']


@pytest.mark.parametrize(
  'name, stem',
  (
    ('a cat.v2.png', 'a cat.v2'),
    ('C:\\photos\\Zoë.JPG', 'Zoë'),
    ('../"a" <b>;$(x)🂡:%20.png', 'a_ _b_(x)_20'),
    ('--flag=1.png', 'flag_1'),
    ('.png', 'png'),
    ('...', 'picture'),
    ('x' * 300, 'x' * 60),
  ),
)
def test_names_of_dropped_pictures_are_those_of_files(viewer, name, stem):
  assert searches.stem_of(name) == stem
  start = picture.Start(stem, None)
  tab = viewer.sessions['x'] = Session(Shown(start=start))
  try:
    app = FastAPI()
    viewer.route(app)
    (npz,) = (route for route in app.routes if route.path.endswith('.npz'))
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(picture, 'npz', lambda *args: b'')
      sent = asyncio.run(npz.endpoint('x')).headers['content-disposition']
  finally:
    del viewer.sessions['x']
  assert unquote(sent) == f"attachment; filename*=UTF-8''{stem}.npz"
  assert f'--latents={stem}.npz' in shlex.split(picture.command(viewer.net, tab.shown, viewer.path))


@pytest.mark.parametrize('what', ('the tab was closed', 'the viewer ends'))
def test_work_ends_with_its_tab_and_with_the_server(viewer, monkeypatch, what):
  tab = Session(walk_seeds=2, walk_seconds=1.0)
  sessions = {'x': tab}
  monkeypatch.setattr(viewer, 'sessions', sessions)
  made = []

  def leave(*args):
    if made:
      sessions.clear()
      viewer.is_closing = what == 'the viewer ends'
    made.append(tab.progress)
    return np.zeros((8, 16, 3), np.uint8)

  monkeypatch.setattr(viewer, 'is_closing', False)
  monkeypatch.setattr(picture, 'walk_frame', leave)
  with pytest.raises(Interrupted, match=f'{what}; the walk is not recorded'):
    recording.record(viewer, 'x')
  assert made == ['recording: 1 of 60 pictures', 'recording: 2 of 60 pictures']
  with pytest.raises(Interrupted, match=f'{what}; nothing was searched for'):
    searches.projected(viewer, 'x', 'a.png', b'')
  sessions['x'] = tab
  monkeypatch.setattr(viewer, 'is_closing', False)

  def direction_of(*args, stop):
    assert not stop
    leave()
    assert stop
    stop.leave('7 of 9 channels are measured')

  monkeypatch.setattr(searches.text_directions, 'direction', direction_of)
  with pytest.raises(Interrupted, match=f'{what}; 7 of 9'):
    searches.of_texts(viewer, 'x', 'thin', 'thick')


def test_texts_make_a_direction_of_the_run(viewer, run, monkeypatch):
  (_, wide), _ = two(viewer)
  found = viewer.directions[two(viewer)[0]].named('thin - thick')
  asked = []

  def direction_of(*args, **options):
    asked.append(args[1:])
    return found

  monkeypatch.setattr(searches.text_directions, 'direction', direction_of)
  monkeypatch.setitem(viewer.sessions, 'x', Session())
  with pytest.raises(UsageError, match='say what there is'):
    searches.of_texts(viewer, 'x', 'thin', ' ')
  assert searches.of_texts(viewer, 'x', ' thin', 'thick') == 'thin - thick'
  assert asked == [('thin', 'thick', None)]
  later, notes = catalogue.find(viewer.net)
  assert ('thin - thick' in [name for _, name in later]) and len(later) == 3 and not notes
  shutil.rmtree(run / 'edits')


@pytest.mark.parametrize(
  'flag, said', (('--psi=0.5', '--psi is for seeds'), ('--sheet=x.png', 'a file of its own'))
)
def test_latents_are_taken_as_they_are(run, tmp_path, flag, said):
  with pytest.raises(UsageError, match=said):
    call(generate, f'--checkpoint={run}', '--latents=x.npz', f'--out={tmp_path}', flag)


# ---- what is shared


def test_new_directions_are_found_and_lost_ones_let_go(run):
  viewer = Viewer(str(run))
  tab = viewer.sessions['a'] = Session()
  file, _ = two(viewer)[0]
  assert tab.move(viewer.directions, file, 'wide', 2)
  assert not asyncio.run(viewer.refresh())
  viewer.directions = {}  # as if it were from before
  assert asyncio.run(viewer.refresh()) and len(viewer.directions) == 2 and tab.shown.moves
  (run / 'edits').mkdir()
  (run / 'edits' / 'torn.npz').write_bytes(b'PK')
  found, notes = catalogue.find(viewer.net)
  assert len(found) == 2 and 'torn.npz is no file of directions' in notes[0]
  tab.fit(viewer.net, {})
  assert not tab.shown.moves


def test_a_file_that_is_written_again_moves_as_it_says_now(run):
  """`directions` writes another class's directions to the same file, under the same names."""
  first = catalogue.find(sg2jax.load(run))[0]
  wide = next(one for (_, name), one in first.items() if name == 'wide')
  file = run / 'directions' / 'again.npz'
  direction.write(file, [wide.named('mine')])
  viewer = Viewer(str(run))
  shown = Shown(seed=4, moves=((str(file), 'mine', 1.0),))
  before = picture.picture(viewer.net, shown, viewer.directions)
  direction.write(file, [(3 * wide).named('mine')])
  assert asyncio.run(viewer.refresh()) and not asyncio.run(viewer.refresh())
  made = picture.picture(viewer.net, shown, viewer.directions)
  np.testing.assert_array_equal(made, viewer.net([4], edit=wide * 3)[0])
  assert (made != before).any()
  file.unlink()


def test_directions_in_a_bucket_are_found(viewer):
  place = paths.place('memory://viewed/run')
  net = viewer.net._replace(workdir=place)
  assert catalogue.find(net) == ({}, [])
  ((file, _), one), *_ = viewer.directions.items()
  direction.write(place / 'directions' / '3' / 'one.npz', [one])
  direction.write(place / 'edits' / 'viewer' / 'two.npz', [one.named('thin - thick')])
  (place / 'edits' / 'projections' / 'a.npz').write_bytes(b'latents')
  (place / 'edits' / 'torn.npz').write_bytes(b'PK')
  found, notes = catalogue.find(net)
  assert list(found) == [
    ('memory://viewed/run/directions/3/one.npz', one.name),
    ('memory://viewed/run/edits/viewer/two.npz', 'thin - thick'),
  ]
  assert len(notes) == 1 and 'torn.npz' in notes[0]


def test_the_newest_checkpoint_is_taken_also_of_a_run_that_was_begun_again(run, tmp_path):
  place = tmp_path / 'run'
  shutil.copytree(run, place)
  step = place / 'checkpoints' / '3'
  viewer = Viewer(str(place))
  tab = viewer.sessions['a'] = Session(Shown(seed=3))
  assert not asyncio.run(viewer.refresh())
  viewer.net = viewer.net._replace(step=5)  # as if it had come from a later one
  shutil.rmtree(place)
  assert not asyncio.run(viewer.refresh()) and viewer.net.step == 5 and viewer.directions
  shutil.copytree(run, place)
  step.touch()
  assert asyncio.run(viewer.refresh()) and viewer.net.step == 3 and tab.shown.seed == 3


def test_a_checkpoint_that_is_deleted_as_it_is_read_is_looked_for_again(run, tmp_path, monkeypatch):
  place = tmp_path / 'run'
  shutil.copytree(run, place)
  viewer = Viewer(str(place))
  (place / 'checkpoints' / '3').touch()
  read = checkpoint.read_state

  def deleted(folder):
    shutil.rmtree(next((folder / 'state').iterdir()))
    return read(folder)

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, 'read_state', deleted)
    with pytest.raises(CheckpointError, match='checkpoints/3 could not be read: .* a newer one'):
      sg2jax.load(place)
    assert not asyncio.run(viewer.refresh())
  shutil.rmtree(place)
  shutil.copytree(run, place)
  (place / 'checkpoints' / '3').touch()
  assert asyncio.run(viewer.refresh())


def test_an_address_that_is_taken_is_named():
  with view.listen('127.0.0.1', 0) as first:
    port = first.getsockname()[1]
    with pytest.raises(UsageError, match=f'--port={port}: .*--port=0'):
      view.listen('127.0.0.1', port)


def test_files_of_directions_are_read_once_and_again_when_they_change(viewer, run, monkeypatch):
  read = []
  known = {}
  read_all = direction.read_all
  monkeypatch.setattr(direction, 'read_all', lambda place: read.append(place) or read_all(place))
  file = run / 'directions' / 'again.npz'
  try:
    file.write_bytes((run / 'directions' / '3' / 'two.npz').read_bytes())
    assert (str(file), 'wide') in catalogue.find(viewer.net, known)[0]
    assert (str(file), 'wide') in catalogue.find(viewer.net, known)[0] and read.count(file) == 1
    one = read_all(file)[0]
    direction.write(file, [dataclasses.replace(one, name='other')])
    found, _ = catalogue.find(viewer.net, known)
    assert (str(file), 'other') in found and (str(file), 'wide') not in found
  finally:
    file.unlink(missing_ok=True)


def test_of_many_files_the_newest_are_sliders_and_the_rest_is_said(run):
  found, notes = catalogue.find(sg2jax.load(run))
  one = next(iter(found.values()))
  folder = run / 'directions' / 'many'
  folder.mkdir()
  try:
    for i in range(300):
      (folder / f'{i}.npz').write_bytes(b'no directions')
    direction.write(folder / 'long.npz', [one.named(f'number {i}') for i in range(100)])
    viewer = Viewer(str(run))
    assert len(viewer.directions) == catalogue.MOST == 64
    assert 'Only 64 directions are shown' in viewer.notes[-1]
    assert not asyncio.run(viewer.refresh())
    (folder / 'long.npz').unlink()
    assert asyncio.run(viewer.refresh()) and not asyncio.run(viewer.refresh())
    assert len(viewer.directions) == 2 and len(viewer.notes) == catalogue.MOST_NOTES + 1
    assert viewer.notes[-1] == f'{292 + len(notes)} more can not be used'
  finally:
    shutil.rmtree(folder)


def test_a_disk_that_is_away_for_a_moment_takes_no_directions(run, monkeypatch):
  def away(place):
    raise UsageError(f'cannot read {place}: Input/output error')

  net = sg2jax.load(run)
  known = {}
  with monkeypatch.context() as patch:
    patch.setattr(direction, 'read_all', away)
    found, notes = catalogue.find(net, known)
  assert not found and 'Input/output error' in notes[0]
  assert catalogue.find(net, known)[0]


def test_a_walk_that_is_too_long_is_not_recorded(viewer):
  viewer.sessions['x'] = Session(walk_seeds=1000, walk_seconds=60.0)
  with pytest.raises(UsageError, match='1000 seeds of 60 seconds are 1,800,000 pictures'):
    recording.record(viewer, 'x')
  del viewer.sessions['x']


@pytest.mark.parametrize('action', ['_record', '_search'])
def test_a_tab_does_one_long_thing_at_a_time(action):
  page = object.__new__(Page)
  page.session = Session(progress='projecting: 3 of 500')
  page.message = types.SimpleNamespace(set_text=lambda text: None)
  page.viewer = None  # nothing of it is asked for
  asyncio.run(getattr(page, action)(*([None] if action == '_search' else [])))
  assert page.session.progress == 'projecting: 3 of 500'
  assert page.session.message == 'wait for what is under way'
