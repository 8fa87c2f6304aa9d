"""Cells of the paper's Tables 1 and 2 [S2] in minutes on two cores, on the bundled digits.

    python -m sg2jax.tools.minipaper --out=runs/minipaper --cells=a,e,e:Gorig-Dorig
    python -m sg2jax.main --config=configs/minipaper.py:a --workdir=runs/a

The first trains cells and compares them, the second trains one; `minipaper.py:a,64`: at 64 px.

Cells are those of `paper.py`. RES px stand for its 1024: as many feature maps at full size, R1 as
strong per pixel, growth over the same part of the run, learning rates as from 128 to 1024 px, half
its batch there. Why: docs/minipaper.md.
"""

import math

from configs import paper


def get_config(arg='e'):
  """arg: 'CELL[,RES]', CELL as in paper.py, RES a power of 2 from 16 px on."""
  cell, _, side = arg.partition(',')
  c = paper.get_config(cell)
  if (side or '32') not in ('16', '32', '64', '128', '256', '512', '1024'):
    raise ValueError(
      f'configs/minipaper.py:{arg}: RES={side} must be 16, 32, 64, 128, 256, 512 or 1024'
    )
  c.resolution = int(side or 32)
  scale = c.resolution / 1024
  c.total_kimg = 30.0
  c.batch = 16
  c.tick_kimg = 1.0
  c.snapshot_kimg = 10.0
  c.swd_images = 1797  # all digits
  c.data.name = 'digits'
  c.data.channels = 1
  c.data.labels = True  # without them, all cells make one digit for a long time
  c.data.mirror = False
  c.g.fmap_base = c.d.fmap_base = int(c.g.fmap_base * scale)
  c.g.fmap_max = c.d.fmap_max = 64
  c.g.z_dim = c.g.w_dim = 64
  c.g.mapping_layers = c.d.mapping_layers = 2
  c.loss.r1_gamma *= scale**2
  c.ema.kimg = 1.0
  if c.grow.start_res:
    c.grow.batch = ()
    c.grow.lr = tuple((int(px * scale), lr) for px, lr in c.grow.lr)
    # of the run, per doubling
    share = 7 * (600 + 600) / 25_000 / math.log2(c.resolution / c.grow.start_res)
    c.grow.hold_kimg = c.get_ref('total_kimg') * (share / 2)
    c.grow.fade_kimg = c.grow.get_ref('hold_kimg')
  return c
