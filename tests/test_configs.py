"""Presets, the paper's configurations, and values that are refused by name."""

import importlib
import math
import pathlib
import re

import jax.numpy as jnp
import pytest

from configs import ada, cifar10, custom, default, paper
from sg2jax import build, checks
from sg2jax.faults import UsageError

ROOT = pathlib.Path(__file__).parent.parent
LADDER = [*'abcdef', 'msg'] + [
  f'e:G{g}-D{d}' for g in ('orig', 'skip', 'resnet') for d in ('orig', 'skip', 'resnet')
]


@pytest.mark.parametrize(
  'name', [p.stem for p in (ROOT / 'configs').glob('*.py') if p.stem not in ('__init__', 'default')]
)
def test_presets_are_small_and_pass_the_checks(name):
  module = importlib.import_module(f'configs.{name}')
  assert '--config=configs/' in module.__doc__
  config = module.get_config()
  config.data.dir = 'somewhere'
  checks.check(config)
  generator, discriminator = build.networks(config, 3 if config.data.labels else 0)
  assert generator.synthesis.resolution == discriminator.resolution == build.resolution(config)


# ---- limited data [spec, section 4]

# kimg, batch, mbstd, fmap_base, learning rate, gamma, ema.kimg, ema.rampup, layers of G's mapping
LIMITED = {
  'paper256': (25_000, 64, 8, 8192, 0.0025, 1, 20, 0, 8),
  'paper512': (25_000, 64, 8, 16_384, 0.0025, 0.5, 20, 0, 8),
  'paper1024': (25_000, 32, 4, 16_384, 0.002, 2, 10, 0, 8),
  'cifar': (100_000, 64, 32, 16_384, 0.0025, 0.01, 500, 0.05, 2),
  'auto:32': (25_000, 32, 4, 8192, 0.0025, 0.0064, 10, 0.05, 2),
  'auto:64': (25_000, 32, 4, 8192, 0.0025, 0.0256, 10, 0.05, 2),
  'auto:256': (25_000, 16, 4, 8192, 0.0025, 0.8192, 5, 0.05, 2),
  'auto:256,8': (25_000, 64, 4, 8192, 0.0025, 0.2048, 20, 0.05, 2),
  'auto:256,64': (25_000, 64, 1, 8192, 0.0025, 0.2048, 20, 0.05, 2),
  'auto:512,2': (25_000, 16, 4, 16_384, 0.0025, 3.2768, 5, 0.05, 2),
  'auto:1024,8': (25_000, 32, 4, 16_384, 0.002, 6.5536, 10, 0.05, 2),
}


@pytest.mark.parametrize('arg', LIMITED)
def test_limited_data(arg):
  c = ada.get_config(arg)
  c.data.dir = '-'
  checks.check(c)
  rate, gamma = c.opt.g_lr, pytest.approx(c.loss.r1_gamma)
  sizes = (c.total_kimg, c.batch, c.d.mbstd_group_size, c.g.fmap_base)
  averages = (c.ema.kimg, c.ema.rampup, c.g.mapping_layers)
  assert (*sizes, rate, gamma, *averages) == LIMITED[arg]
  assert (c.d.fmap_base, c.d.mapping_layers, c.opt.d_lr) == (c.g.fmap_base, 8, rate)
  # the same in all of them
  assert (c.opt.beta1, c.opt.beta2, c.opt.eps) == (0, 0.99, 1e-8)
  lazy = (c.loss.r1_interval, c.loss.pl_interval, c.loss.pl_decay, c.loss.pl_shrink)
  assert lazy == (16, 4, 0.01, 2)
  a = c.augment
  assert (a.pipeline, a.p, a.target, a.interval, a.kimg) == ('bgc', 0, 0.6, 4, 0)
  small = arg == 'cifar'
  assert (c.loss.pl_weight, c.loss.mixing_prob) == ((0, 0) if small else (2, 0.9))
  assert (c.g.architecture, c.d.architecture) == ('skip', 'orig' if small else 'resnet')


@pytest.mark.parametrize(
  'ours, theirs, pipeline',
  [
    (cifar10.get_config(), ada.get_config('cifar'), ''),
    (custom.get_config('384x512,8'), ada.get_config('auto:384x512,8'), 'auto'),
  ],
)
def test_without_ada_it_is_the_same(ours, theirs, pipeline):
  assert ours.augment.pipeline == pipeline
  ours.augment.pipeline = theirs.augment.pipeline
  assert ours.to_dict() == theirs.to_dict()


@pytest.mark.parametrize('module, arg, said', [
  (ada, 'paper128', 'choose from paper256, paper512, paper1024, cifar, auto:RES[,DEVICES]'),
  (ada, 'auto:', 'such as 256 or 384x512,8'),
  (ada, 'paper256:8', 'choose from'),
  (custom, '256,0', "configs/custom.py:256,0: '256,0' must be RESOLUTION[,DEVICES]"),
  (custom, '2x256', 'RESOLUTION[,DEVICES]'),
])  # fmt: skip
def test_what_has_no_such_size_is_refused(module, arg, said):
  with pytest.raises(ValueError) as e:
    module.get_config(arg)
  assert said in str(e.value)


REVISED = {'g.architecture': 'revised', 'd.architecture': 'revised', 'grow.start_res': 8}


@pytest.mark.smoke
@pytest.mark.parametrize(
  'fields, said',
  [
    ({'resolution': 30}, '--config.resolution=30'),
    ({'resolution': (16, 0)}, 'resolution'),
    ({'batch': 0}, 'batch=0'),
    ({'batch': 30}, 'try 28 or 32'),
    ({'batch': 32, 'microbatch': 12}, 'microbatch=12'),
    ({'total_kimg': -1.0}, 'total_kimg'),
    ({'tick_kimg': float('nan')}, 'tick_kimg'),
    ({'loss.r1_gamma': -1.0}, 'r1_gamma'),
    ({'loss.mixing_prob': 1.5}, '[0, 1]'),
    ({'g.architecture': 'unet'}, 'orig, skip, resnet'),
    ({'device': 'npu'}, 'device=npu'),
    ({'data.dir': ''}, 'prepare'),
    ({'loss.pl_shrink': 3}, 'pl_shrink=3'),
    ({'data.channels': 0}, 'channels'),
    ({'opt.beta2': 1.0}, 'beta2'),
    ({'grow.start_res': 8}, 'cannot grow'),
    (REVISED | {'grow.start_res': 512}, 'one of 4, 8, 16'),
    ({'g.architecture': 'msg'}, 'msg in both'),
    ({'d.architecture': 'msg'}, 'msg in both'),
    (REVISED | {'grow.batch': ((8, 6),)}, 'grow.batch[8]=6'),
    (REVISED | {'grow.lr': (8, 0.1)}, 'must be pairs'),
    ({'grow.batch': ((8, 0),)}, 'grow.batch=((8, 0),)'),
    ({'grow.batch': ((8, 2.5),)}, 'whole number'),
    ({'grow.lr': (('8', 0.1),)}, 'pairs of pixels'),
    ({'grow.lr': ((8, math.inf),)}, 'above 0'),
    (REVISED | {'grow.fade_kimg': 0.0, 'grow.hold_kimg': 0.0}, 'no time to grow'),
    ({'opt.formulation': 'jax'}, 'pytorch, tensorflow'),
    ({'loss.r1_interval': -1}, 'r1_interval=-1'),
    ({'profile': '10'}, 'profile=10 must be STEP,COUNT'),
    ({'profile': '1,2,3'}, 'such as 64,5'),
    ({'profile': 'a,b'}, 'profile=a,b'),
    ({'profile': '1.5,2'}, 'profile=1.5,2'),
    ({'profile': '-1,2'}, 'profile=-1,2'),
    ({'profile': '10,0'}, 'profile=10,0'),
    ({'profile': '10,101'}, '1 to 100'),
  ],
)
def test_bad_values_name_the_field_and_the_remedy(fields, said):
  config = default.get_config()
  config.update_from_flattened_dict({'data.dir': 'somewhere'} | fields)
  with pytest.raises(UsageError) as e:
    checks.check(config)
  assert said in str(e.value)


# ---- Table 1 and Table 2

TABLE_1 = {  # architectures, gamma, r1_interval, pl_interval, pl_weight, fmap_base, lr, start_res
  'a': ('stylegan1', 'stylegan1', 10, 0, 0, 0, 8192, 0.001, 8),
  'b': ('revised', 'revised', 10, 0, 0, 0, 8192, 0.001, 8),
  'c': ('revised', 'revised', 10, 16, 4, 0, 8192, 0.001, 8),
  'd': ('revised', 'revised', 10, 16, 4, 2, 8192, 0.001, 8),
  'e': ('skip', 'resnet', 100, 16, 4, 2, 8192, 0.002, 0),
  'f': ('skip', 'resnet', 10, 16, 4, 2, 16384, 0.002, 0),
  'msg': ('msg', 'msg', 100, 16, 4, 2, 8192, 0.002, 0),
}


@pytest.mark.parametrize('cell', LADDER)
def test_paper_configurations(cell):
  c = paper.get_config(cell)
  c.data.dir = '-'
  checks.check(c)
  g, d, *rest = TABLE_1[cell.split(':')[0]]
  if ':' in cell:
    g, d = re.fullmatch('e:G(.*)-D(.*)', cell).groups()
  assert (c.g.architecture, c.d.architecture) == (g, d)
  assert rest == [
    c.loss.r1_gamma,
    c.loss.r1_interval,
    c.loss.pl_interval,
    c.loss.pl_weight,
    c.g.fmap_base,
    c.opt.g_lr,
    c.grow.start_res,
  ]
  assert c.d.fmap_base == c.g.fmap_base and c.opt.d_lr == c.opt.g_lr
  adam = (c.opt.beta1, c.opt.beta2, c.opt.eps)
  assert adam == (0, 0.99, 1e-8) and (c.total_kimg, c.ema.kimg) == (25_000, 10)
  c.resolution = 1024
  growth = build.growth(c)
  sizes = {1024 >> growth.stage(nimg).level: growth.stage(nimg) for nimg in range(0, 10**7, 10**5)}
  lr, batch = {128: 0.0015, 256: 0.002, 512: 0.003, 1024: 0.003}, {8: 256, 16: 128, 32: 64}
  assert sorted(sizes) == ([8 << i for i in range(8)] if cell in 'abcd' else [1024])
  for side, stage in sizes.items():
    table = (batch.get(side, 32), lr.get(side, 0.001)) if cell in 'abcd' else (32, 0.002)
    assert (stage.batch, stage.g_lr) == table and stage.d_lr == stage.g_lr
  steps = build.steps(c, 0, None)
  lazy = {'a': ['g', 'd'], 'b': ['g', 'd'], 'c': ['g', 'd', 'd_reg']}.get(
    cell, ['g', 'g_reg', 'd', 'd_reg']
  )
  assert steps.phases(0) == lazy


def test_adam_of_config_c_is_corrected_without_path_lengths():
  """Config C's G has no regularizer and the learning rate of a lazy one; A and B have neither."""
  grads = jnp.ones(3)
  updates = {}
  for cell in 'abc':
    tx = build.steps(paper.get_config(cell), 0, None).g_tx
    updates[cell] = float(tx.update(grads, tx.init(grads), grads)[0][0])
  assert updates['a'] == updates['b'] and updates['c'] == pytest.approx(
    0.8 * updates['a'], rel=1e-5
  )


def test_unknown_paper_configuration_is_refused():
  for arg in ('g', 'e:Gskip-Dmsg', 'a:Gskip-Dskip'):
    with pytest.raises(ValueError, match='e:Gskip-Dresnet'):
      paper.get_config(arg)
