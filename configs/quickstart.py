"""Handwritten digits at 32 px, class-conditional: minutes on two CPU cores, nothing to download.

    python -m sg2jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Expected: 6 minutes on two cores, SWD from 206 to 14 (two halves of the real images are 8 apart),
and digits that a person can read.
"""

from configs import default


def get_config():
  """A narrow StyleGAN2 for the bundled digits."""
  c = default.get_config()
  c.resolution = 32
  c.total_kimg = 60.0
  c.batch = 16
  c.tick_kimg = 1.0
  c.snapshot_kimg = 4.0
  c.swd_images = 1797  # all
  c.metrics = ('pixelfd2k_full',)
  c.metrics_kimg = 20.0
  c.data.name = 'digits'
  c.data.channels = 1
  c.data.labels = True
  c.g.fmap_base = c.d.fmap_base = 256
  c.g.fmap_max = c.d.fmap_max = 64
  c.g.z_dim = c.g.w_dim = 64
  c.g.mapping_layers = c.d.mapping_layers = 2
  c.loss.r1_gamma = 0.05
  c.opt.g_lr = c.opt.d_lr = 0.0025
  c.ema.kimg = 1.0
  return c
