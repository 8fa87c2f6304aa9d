"""The tool analyze: its measurements of networks that grow and that do not, and what it refuses."""

import json

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from sg2jax import sampler
from sg2jax.faults import UsageError
from sg2jax.lab import analyze as lab
from sg2jax.tools import analyze
from tests.runs import call, write_run
from tests.test_artifacts import network, tiny

pytestmark = pytest.mark.usefixtures('quick_compile')


@struct.dataclass
class State:
  """What `analyze` reads of a TrainState."""

  step: jax.Array
  nimg: jax.Array
  g_ema: dict
  noise: dict


def save(workdir, architecture, nimg=20_000, **fields):
  # These weights weren't drawn for a learning rate of 1/100: w would hardly depend on z.
  config = tiny(architecture, **{'g.variant.mapping_lr_mul': 1.0}, **fields)
  _, variables, _ = network(architecture)
  state = State(jnp.int32(100), jnp.int32(nimg), variables['params'], variables['noise'])
  return write_run(workdir, config.to_dict() | {'c_dim': 0}, state)


@pytest.fixture(scope='module')
def skip(tmp_path_factory):
  """A skip generator that logged its contributions, and was killed once."""
  run = save(tmp_path_factory.mktemp('analyzed') / 'skip', 'skip')
  shares = {'contribution_b4': 0.5, 'contribution_b8': 0.25, 'contribution_b16': 0.25}
  rows = [json.dumps({'step': s, 'nimg': 10_000 * s} | shares) for s in range(4)]
  (run / 'metrics.jsonl').write_text('\n'.join([*rows, '{"step": 4, "nim']))
  return run


@pytest.fixture(scope='module')
def growing(tmp_path_factory):
  """A network in the middle of its last fade."""
  grow = {'grow.start_res': 8, 'grow.hold_kimg': 4.0, 'grow.fade_kimg': 2.0, 'grow.repeats': 1}
  return save(tmp_path_factory.mktemp('analyzed') / 'grown', 'stylegan1', nimg=5000, **grow)


def read(folder, kind):
  """What the JSON of a kind says of each network; its figure is looked at, too."""
  document = json.loads((folder / f'{kind}.json').read_text())
  assert document['kind'] == kind
  with Image.open(folder / f'{kind}.png') as picture:
    assert picture.size[0] == 1200 and len(picture.getcolors(2**24)) > 50
  return document['networks']


def test_phase_of_two_networks(skip, growing, capsys, monkeypatch):
  kind = lab.KINDS['phase']
  drawn = []

  def draw(titles, measured, caption):
    drawn.extend(measured)
    return kind.draw(titles, measured, caption)

  monkeypatch.setitem(lab.KINDS, 'phase', kind._replace(draw=draw))
  call(analyze, 'phase', f'--checkpoint={skip}', f'--checkpoint={growing}', '--images=64')
  printed = capsys.readouterr().out
  assert 'skip: skip, 20 kimg' in printed and 'grown: stylegan1, alpha 0.5, 5 kimg' in printed
  a, b = read(skip / 'analysis', 'phase')
  names = 'architecture', 'step', 'nimg', 'images', 'seed', 'noise_mode'
  assert [a[k] for k in names] == ['skip', 100, 20_000, 64, 0, 'none']
  assert [b[k] for k in names] == ['stylegan1', 100, 5000, 64, 0, 'none']
  assert (b['stage'], b['alpha']) == (0, 0.5)
  # The frames of the last path are in the middle of the fade, as the images of the network are.
  net = sampler.load(growing)
  first, last = sampler.sample_ws(net, 4, 0)[2:]
  frames, _ = drawn[1].pictures
  images = net.images(np.stack([first, last]), noise='none')
  assert np.allclose(np.clip(frames[[0, -1]], -1, 1) * 127.5 + 128, images, atol=1.5)
  assert all(0 < o['fixed'] < 1 for o in a['octaves'] + b['octaves'])


def test_droplets_of_a_growing_network(growing):
  call(analyze, 'droplets', f'--checkpoint={growing}', '--images=3')
  (network,) = read(growing / 'analysis', 'droplets')
  layers = network['peak_to_median']
  assert list(layers) == [f'b{res}.conv{i}' for res in (4, 8, 16) for i in (0, 1)]
  assert all(1 <= v['median'] <= v['p95'] <= v['max'] for v in layers.values())


def test_contribution_with_what_training_logged(skip, tmp_path):
  run = f'{skip}/checkpoints/100'
  call(analyze, 'contribution', f'--checkpoint={run}', '--images=40', f'--out={tmp_path}')
  (network,) = read(tmp_path, 'contribution')
  assert list(network['share']) == ['b4', 'b8', 'b16']
  assert sum(network['share'].values()) == pytest.approx(1)
  assert [row['kimg'] for row in network['logged']] == [0, 10, 20]  # up to the checkpoint


@pytest.mark.parametrize(
  'args, said',
  [
    ('droplets', '--checkpoint is missing; name a workdir, as in --checkpoint=runs/quickstart'),
    (7 * '--checkpoint=RUN ', 'can be given 6 times at most'),
    ('--checkpoint=RUN', 'KIND is missing; choose from contribution, droplets, phase'),
    ('blobs --checkpoint=RUN', 'KIND=blobs is unknown'),
    ('phase --checkpoint=RUN --images=48', '--images=48 must be a multiple of 32, and 64 at least'),
    ('droplets --checkpoint=RUN --images=0', '--images=0: 0 is not a positive'),
    ('contribution --checkpoint=GROWING', 'needs several torgb layers'),
  ],
)
def test_what_cannot_work_is_named(skip, growing, args, said):
  args = args.replace('RUN', str(skip)).replace('GROWING', str(growing))
  with pytest.raises(UsageError, match=said):
    call(analyze, *args.split())
