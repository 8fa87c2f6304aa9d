"""NADA: what is trained, what stays, what comes out, how it goes on."""

from functools import partial
import json
import shutil
import signal
import sys
from types import SimpleNamespace

from absl.testing import flagsaver
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
import pytest

from configs import default
import sg2jax
from sg2jax import build, cli, progress, sharding
from sg2jax import clip as clips
from sg2jax.data.labels import Labels
from sg2jax.edit import nada, text_directions
from sg2jax.edit.text_losses import Tower
from sg2jax.faults import CheckpointError, NonFiniteError, Preempted, UsageError, WeightsError
from sg2jax.models import styles as style_space
from sg2jax.signals import Stop
from sg2jax.tools import convert, edit, export, generate, nada_runs
from sg2jax.tools import nada as tool
from sg2jax.training import init_from, workdir
from tests.runs import call, content, on_devices, random_run
from tests.test_models import variables

pytestmark = pytest.mark.usefixtures('quick_compile')
TEXTS = ('a thin digit', 'a thick digit')
STEPS = 20
FEW_LAYERS = nada.Settings(layers=2, batch=2)
FROZEN = ('mapping', 'affine', 'torgb')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A workdir with a tiny network, 8x8 px, grey, 3 classes, random in what starts at 0."""
  fields = {'g.fmap_base': 32, 'g.z_dim': 8, 'g.w_dim': 8, 'g.mapping_layers': 1}
  folder = tmp_path_factory.mktemp('nada') / 'run'
  return random_run(folder, (0.03, 0.3, 1, 1, 1), resolution=8, **fields | {'data.channels': 1})


@pytest.fixture(scope='module')
def net(run):
  return sg2jax.load(run)


def make_look():
  clip = clips.load('digits')
  direction = text_directions.between(clip, *TEXTS)
  return nada.Look(Tower(clip.params, clip.architecture), direction, clip.text(TEXTS[1]))


@pytest.fixture(scope='module')
def look():
  return make_look()


def tune(run, out, *more):
  """A run of the tool -> what nada.json says."""
  few = [
    f'--steps={STEPS}',
    '--batch=2',
    '--seeds=0-3',
    '--save_every=8',
    '--lr=0.01',
    '--layers=0',
  ]
  args = [f'--checkpoint={run}', f'--out={out}', f'--source={TEXTS[0]}', f'--target={TEXTS[1]}']
  call(edit, 'nada', *args, *few, *more)
  return json.loads((out / 'nada.json').read_text())


@pytest.fixture(scope='module')
def tuned(run, tmp_path_factory):
  out = tmp_path_factory.mktemp('tuned') / 'out'
  return out, tune(run, out)


def flat(tree):
  return {
    jax.tree_util.keystr(path): np.asarray(x)
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def changed(net, params):
  """Names of the arrays that aren't those of a network, bit for bit."""
  before, after = flat(net.variables['params']), flat(params)
  assert before.keys() == after.keys()
  return {name for name, x in after.items() if not np.array_equal(x, before[name])}


# ---- what is trained, and what isn't


def test_images_go_the_way_of_the_texts(net, look, tuned):
  out, said = tuned
  assert said['losses'][0] == 1 and np.mean(said['losses'][-5:]) < 0.8
  # on images that nobody trained on
  clip, seeds = clips.load('digits'), range(100, 132)
  before, after = (clip.images(x(seeds)) for x in (net, sg2jax.load(out)))
  way = after - before
  cosines = way @ look.direction / np.linalg.norm(way, axis=1)
  assert (cosines > 0).mean() > 0.9 and cosines.mean() > 0.2


def test_mapping_styles_and_torgb_stay_bit_for_bit(net, tuned):
  made = sg2jax.load(tuned[0])
  names = changed(net, made.variables['params'])
  assert not [name for name in names for frozen in FROZEN if frozen in name]
  assert names == {
    name for name in flat(net.variables['params']) if not any(x in name for x in FROZEN)
  }
  for a, b in ((net.w_avg, made.w_avg), (net.variables['noise'], made.variables['noise'])):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_only_the_chosen_layers_are_trained(net, look):
  training = nada.Training(net, [look], FEW_LAYERS)
  layers = nada.convolutions(net.variables['params'])
  assert layers == ['b4.conv1', 'b8.conv0', 'b8.conv1']
  before = training.net()
  chosen = training.advance(0).chosen
  assert chosen.sum() == 2
  names = {
    f"['synthesis']['{b}']['{x}']"
    for b, x in (layer.split('.') for layer, is_in in zip(layers, chosen) if is_in)
  }
  there = changed(before, training.net().variables['params'])
  assert {name.rpartition('[')[0] for name in there} == names
  counts = {name: int(x.count) for name, x in training.state.moments.items()}
  assert sum(counts.values()) == 2 and counts['b4.const'] == 0


@pytest.mark.parametrize('architecture', ['resnet', 'stylegan1'])
def test_convolutions_of_other_architectures(architecture):
  config = default.get_config()
  sizes = {'fmap_base': 16, 'fmap_max': 4, 'z_dim': 4, 'w_dim': 4, 'mapping_layers': 1}
  fields = {'data.dir': '-', 'resolution': (8, 16), 'g.architecture': architecture}
  config.update_from_flattened_dict(fields | {f'g.{name}': x for name, x in sizes.items()})
  generator, _ = build.networks(config, 0)
  found = variables(generator)
  layers = nada.convolutions(found['params'])
  ws = np.random.RandomState(0).randn(1, generator.synthesis.num_ws, 4).astype(np.float32)
  assert len(layers) == generator.synthesis.num_ws - (architecture == 'resnet')
  read = jax.jit(partial(style_space.read, generator))
  styles = read(found, ws)
  for j, layer in enumerate(layers):
    other = ws.copy()
    other[:, j] += 1
    moved = read(found, other)
    assert [x for x in layers if not np.array_equal(moved[x], styles[x])] == [layer]
  same = nada.merged(found['params'], nada.trainable(found['params']))
  jax.tree.map(np.testing.assert_array_equal, same, found['params'])


def test_those_are_chosen_whose_w_the_text_would_move_most(net, look):
  """Of a network whose noise has no strength, so that its images are known here."""
  silent = jax.tree_util.tree_map_with_path(
    lambda path, x: x * (path[-1].key != 'noise_strength'), net.variables['params']
  )
  plain = net._replace(variables=net.variables | {'params': silent})
  ws = nada.draw(plain, nada.LAYER_BATCH, (0, 7, 1), 1, None)

  @jax.jit
  @jax.grad
  def gradient(ws):
    images = plain.generator.apply(plain.variables, ws, 'none', method='image')
    return look.tower.loss(images, look.target[None]).sum()

  moved = np.abs(gradient(jnp.asarray(ws))).mean((0, 2))
  chosen = nada.Training(plain, [look], FEW_LAYERS).advance(7).chosen
  assert not chosen[moved[:3].argmin()] and chosen.sum() == 2


def test_steps_are_those_of_adam_and_each_layer_has_its_own_first():
  random = np.random.RandomState(0)
  params = {'b4.conv1': {'weight': random.randn(3)}, 'b8.conv0': {'weight': random.randn(3)}}
  state = nada.first_state(
    {'synthesis': {k.split('.')[0]: {k.split('.')[1]: v} for k, v in params.items()}}
  )
  adam = optax.adam(0.0016, 0.0, 0.99**0.8, 1e-8)
  wanted, kept = params['b4.conv1'], None
  for step in range(3):
    grads = {name: {'weight': random.randn(3)} for name in params}
    chosen = {'b4.conv1': jnp.array(True), 'b8.conv0': jnp.array(step == 2)}
    state = nada.adam_step(nada.Settings(), state, grads, chosen)
    updates, kept = adam.update(grads['b4.conv1'], kept or adam.init(wanted))
    wanted = optax.apply_updates(wanted, updates)
    if step == 1:
      np.testing.assert_array_equal(
        state.params['b8.conv0']['weight'], np.float32(params['b8.conv0']['weight'])
      )
  np.testing.assert_allclose(state.params['b4.conv1']['weight'], wanted['weight'], rtol=1e-5)
  first = state.params['b8.conv0']['weight'] - params['b8.conv0']['weight']
  np.testing.assert_allclose(np.abs(first), 0.0016, rtol=1e-3)


def test_what_is_not_finite_changes_nothing(net, run, look, tmp_path):
  training = nada.Training(net, [look], nada.Settings(lr=1e30, batch=2))
  assert training.advance(0).is_finite
  before = jax.device_get(training.state)
  assert not training.advance(1).is_finite
  jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(training.state))
  with pytest.raises(NonFiniteError, match='^step 1: its loss.*--lr than 1e[+]30'):
    tune(run, tmp_path / 'out', '--lr=1e30')
  assert not list(tmp_path.glob('out/checkpoints/*'))


# ---- what comes out


def test_the_run_goes_into_other_tools(net, tuned, tmp_path):
  out, said = tuned
  made = sg2jax.load(out)
  assert made.hash() == said['network'] != net.hash() == made.config.made_from.network
  assert (made.step, made.nimg) == (STEPS, net.nimg)
  call(generate, f'--checkpoint={out}', f'--out={tmp_path}', '--seeds=3', '--batch=4')
  picture = np.asarray(Image.open(tmp_path / 'seed0003.png'))
  np.testing.assert_array_equal(picture, made([3], batch=4)[0, ..., 0])
  sheet = np.asarray(Image.open(out / 'sheet.png'))
  assert sheet.ndim == 2 and (out / 'sheets' / '000008.png').exists()
  # each checkpoint is a network
  assert sg2jax.load(out / 'checkpoints' / '8').hash() not in (net.hash(), made.hash())
  for kind, name in (('safetensors', 'a.safetensors'), ('nvidia', 'a.npz')):
    call(export, f'--checkpoint={out}', f'--dest={tmp_path / name}', f'--format={kind}')
  call(convert, f'--source={tmp_path / "a.safetensors"}', f'--dest={tmp_path / "back"}')
  assert sg2jax.load(tmp_path / 'back').hash() == made.hash()


def test_a_training_starts_from_it_but_does_not_go_on_with_it(tuned):
  out, _ = tuned
  config = sg2jax.load(out).config
  with pytest.raises(UsageError, match='a fine-tuned network.*--config.init_from='):
    workdir.check_workdir(config.to_dict(), out)
  config.init_from = str(out)
  origin = init_from.read(config)
  assert origin.state['g'].keys() == {'mapping', 'synthesis'} and not origin.state['d']


def test_scores_are_those_of_the_images(net, tuned):
  out, said = tuned
  clip = clips.load('digits')
  for when, network in (('before', net), ('after', sg2jax.load(out))):
    seen = clip.images(network(range(4)))
    for what, text in zip(('source', 'target'), TEXTS):
      scores = [row['clips']['digits'][when][what] for row in said['images']]
      np.testing.assert_allclose(scores, seen @ clip.text(text), atol=1e-4)
      np.testing.assert_allclose(said['mean']['digits'][when][what], np.mean(scores), atol=1e-6)
    assert 1 <= said['mean']['digits'][when]['rank'] <= 1 + said['mean']['digits']['neutral']
  assert said['pixels'] > 0 and said['relative_loss'] < 0.9


def test_classes_and_several_clips(net, run, tmp_path):
  more = ['--steps=1', '--class=0,2', f'--clip=digits,{clips.DIGITS}', '--seeds=5-7']
  said = tune(run, tmp_path, *more)
  assert said['losses'] == [2] and said['about']['labels'] == [[1, 0, 0], [0, 0, 1]]
  assert len(said['mean']) == 2 and [row['seed'] for row in said['images']] == [5, 6, 7]
  labels = np.eye(3, dtype=np.float32)[[0, 2]]
  random = np.random.RandomState((1, 2))
  z, classes = random.randn(6, 8).astype(np.float32), random.randint(2, size=6)
  drawn = nada.draw(net, 6, (1, 2), 1, labels)
  np.testing.assert_array_equal(drawn[:, 0], net.map(z, labels[classes]))
  assert len(set(classes)) == 2


# ---- how it goes on


def test_the_small_clip_has_defaults_of_its_own():
  def read(*args):
    with flagsaver.flagsaver():
      tool.define_flags()
      cli.parse(['nada', '--checkpoint=run', *args])
      return tool.read_settings()

  assert read() == (nada.Settings(0.005, layers=2), 50)
  assert read('--layers=0', '--steps=9') == (nada.Settings(0.005), 9)
  assert read('--clip=digits,clip-vit-b-32') == (nada.Settings(0.002), 300)
  assert read('--clip=clip-vit-b-32', '--layers=3', '--lr=0')[0] == nada.Settings(0, layers=3)


class Signal(Stop):
  """Hears a signal at its fourth look."""

  looks = 0

  def __bool__(self):
    self.looks += 1
    self.signal = signal.SIGTERM
    return self.looks > 3


def test_it_goes_on_bit_for_bit(run, tuned, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(progress, 'EVERY', 0)
  whole, said = tuned
  out = tmp_path / 'out'
  with monkeypatch.context() as patch:
    patch.setattr(tool, 'Stop', Signal)
    with pytest.raises(Preempted, match=f'3 of {STEPS} steps.*same command goes on'):
      tune(run, out)
  assert sorted(x.name for x in (out / 'checkpoints').iterdir()) == ['3']
  assert f'nada: 1 of {STEPS} steps, loss 1.000' in capsys.readouterr().err
  assert tune(run, out) == said
  assert content(out, STEPS) == content(whole, STEPS)
  # killed, a moment before the last checkpoint was whole
  (out / 'checkpoints' / str(STEPS)).rename(out / 'checkpoints' / f'{STEPS}.tmp')
  assert tune(run, out) == said
  assert content(out, STEPS) == content(whole, STEPS)
  # more of the same
  more = tune(run, out, f'--steps={STEPS + 1}')
  assert more['losses'][:STEPS] == said['losses'] and more['steps'] == STEPS + 1
  for flag, says in (('--steps=5', f'{STEPS + 1} steps already'), ('--lr=0.1', 'lr: 0.01 there')):
    with pytest.raises(UsageError) as caught:
      tune(run, out, flag)
    assert says in str(caught.value) and 'another --out' in str(caught.value)


@pytest.mark.parametrize(
  'flag, kind, says',
  [
    ('--source=a thick digit', UsageError, 'say the same'),
    ('--source=', UsageError, '--source="a digit"'),
    ('--target=an octopus', UsageError, 'does not know'),
    ('--clip=clap', WeightsError, 'clap is missing'),
    ('--clip=digits,digits', UsageError, '--clip=digits,digits'),
    ('--layers=4', UsageError, 'layers=4 must be from 1 to 3'),
    ('--class=7', UsageError, '--class=7'),
    ('--lr=nan', UsageError, 'finite'),
    ('--target= ', UsageError, 'is blank'),
  ],
)
def test_mistakes(run, tmp_path, flag, kind, says):
  with pytest.raises(kind) as caught:
    tune(run, tmp_path / 'out', flag)
  said = str(caught.value)
  assert says in said and '\n' not in said and not (tmp_path / 'out').exists()


def test_a_kill_at_the_beginning_and_damaged_losses(tuned, run, tmp_path):
  whole, said = tuned
  out = tmp_path / 'out'
  shutil.copytree(whole, out)
  (out / 'nada.json').write_text('{')
  for remedy in ('is damaged', 'is missing'):
    with pytest.raises(CheckpointError, match=f'{remedy}.*another --out'):
      tune(run, out)
    (out / 'nada.json').unlink(missing_ok=True)
  # ---- killed while its first file was written, and right after
  shutil.rmtree(out / 'checkpoints')
  (out / 'config.json').rename(out / '.config.json.123')
  for path in (*out.glob('*.png'), *out.glob('sheets/*')):
    path.unlink()
  (out / 'sheets').rmdir()
  (out / 'labels.json').unlink(missing_ok=True)
  job = SimpleNamespace(net=sg2jax.load(run), about=said['about'])
  job.net = job.net._replace(labels=Labels.of_classes(('a', 'b', 'c'), (1, 1, 1)))
  config = nada_runs.configuration(job)
  for _ in range(2):
    assert nada_runs.begin(job, config, out) == [] and (out / 'config.json').exists()
    assert (out / 'labels.json').read_text() == job.net.labels.to_json()
    (out / 'labels.json').unlink()


def test_a_folder_with_something_else_is_left_alone(run, tmp_path):
  (tmp_path / 'thesis.txt').write_text('years of work')
  with pytest.raises(UsageError, match='holds something else'):
    tune(run, tmp_path)
  assert {path.name for path in tmp_path.iterdir()} == {'thesis.txt', '.lock'}


# ---- several devices


def results(net, look):
  """What a training comes to, by the devices that there are."""
  training = nada.Training(net, [look], nada.Settings(lr=0.01, layers=2, batch=2))
  losses = [float(training.advance(step).loss) for step in range(4)]
  return losses, flat(training.net().variables['params'])


@pytest.mark.slow
def test_one_and_three_devices_agree(run):
  """In float64: without a mean of gradients, Adam makes steps of the signs of rounding errors."""
  on_devices(3, __file__, run, JAX_ENABLE_X64='1')


if __name__ == '__main__':
  assert jax.device_count() == 3
  wide = lambda x: x.astype(np.float64) if x.dtype == np.float32 else x
  net, look = sg2jax.load(sys.argv[1]), make_look()
  look = look._replace(tower=look.tower._replace(params=jax.tree.map(wide, look.tower.params)))
  given = net._replace(variables=jax.tree.map(wide, net.variables)), look
  three = results(*given)
  real = sharding.make_mesh
  sharding.make_mesh = lambda: real(jax.devices()[:1])
  one = results(*given)
  assert {x.dtype for x in one[1].values()} == {np.dtype(np.float64)}
  np.testing.assert_allclose(three[0], one[0], rtol=1e-6)
  for name, x in one[1].items():
    np.testing.assert_allclose(three[1][name], x, rtol=1e-6, atol=1e-6, err_msg=name)
