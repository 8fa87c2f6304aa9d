"""Presets, the paper's configurations, and values that are refused by name."""

import importlib
import math
import pathlib
import re

import jax.numpy as jnp
import pytest

from configs import custom, default, paper
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


@pytest.mark.parametrize(
  'arg, batch, gamma, base',
  [
    ('256', 16, 0.8192, 8192),
    ('256,8', 64, 0.2048, 8192),
    ('1024,8', 32, 6.5536, 16_384),
    ('64', 32, 0.0256, 8192),
  ],
)
def test_custom_follows_the_auto_heuristics(arg, batch, gamma, base):
  c = custom.get_config(arg)
  assert (c.batch, c.loss.r1_gamma, c.g.fmap_base) == (batch, pytest.approx(gamma), base)


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
