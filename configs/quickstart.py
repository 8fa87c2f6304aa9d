"""Handwritten digits at 32 px: minutes on two CPU cores, no network, nothing to download.

    python -m sg2jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Expected: TODO
"""
from configs import default


def get_config():
  """A narrow StyleGAN2 for the bundled digits."""
  c = default.get_config()
  c.resolution = 32
  c.total_kimg = 24.0
  c.batch = 16
  c.tick_kimg = 1.0
  c.snapshot_kimg = 4.0
  c.data.name = 'digits'
  c.data.channels = 1
  c.g.fmap_base = c.d.fmap_base = 512
  c.g.fmap_max = c.d.fmap_max = 64
  c.g.z_dim = c.g.w_dim = 64
  c.g.mapping_layers = 2
  c.loss.r1_gamma = 0.5
  c.ema.kimg = 1.0
  return c
