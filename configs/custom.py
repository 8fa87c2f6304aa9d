"""Your own images: what to set follows from their size and the devices [ADA App. C, `auto`].

    python -m sg2jax.tools.prepare --source=PHOTOS --dest=DATA/mine --resolution=256
    python -m sg2jax.main --config=configs/custom.py:256 --config.data.dir=DATA/mine --workdir=RUN
    ... --config=configs/custom.py:256,8            for 8 devices

The batch grows with the devices, and gamma follows 0.0002 resolution^2 / batch: a start, and the
first thing to tune (try a fifth and five times of it). A rectangle is HEIGHTxWIDTH:
`custom.py:384x512`.
"""

from configs import default


def get_config(arg='256'):
  """arg: 'RESOLUTION[,DEVICES]'."""
  try:
    size, _, devices = arg.partition(',')
    sides = [int(side) for side in size.split('x')]
    n = int(devices or 1)
    res = max(sides)
    if not 1 <= len(sides) <= 2 or n < 1 or min(sides) < 4:
      raise ValueError
  except ValueError:
    raise ValueError(
      f'configs/custom.py:{arg} must be RESOLUTION[,DEVICES], such as custom.py:256 or '
      'custom.py:384x512,8'
    ) from None
  c = default.get_config()
  c.resolution = res if len(sides) == 1 else tuple(sides)
  c.batch = max(min(n * min(4096 // res, 32), 64), 4)
  c.batch = -(-c.batch // n) * n  # a multiple of the devices
  c.g.fmap_base = c.d.fmap_base = 16_384 if res >= 512 else 8192
  c.g.mapping_layers = 2
  c.d.mbstd_group_size = min(c.batch // n, 4)
  c.opt.g_lr = c.opt.d_lr = 0.002 if res >= 1024 else 0.0025
  c.loss.r1_gamma = 0.0002 * res**2 / c.batch
  c.ema.kimg = c.batch * 10 / 32
  c.ema.rampup = 0.05
  return c
