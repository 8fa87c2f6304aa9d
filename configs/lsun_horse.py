"""LSUN Horse at 256x256, config F [S2 Table 3]: 100,000 kimg, gamma 100.0, not mirrored. Published: FID 3.43.

The images must be prepared once, from a folder or zip of the LSUN Horse pictures (github.com/fyu/lsun exports them):

    python -m sg2jax.tools.prepare --source=LSUN/horse --dest=DATA/lsun_horse --resolution=256
    python -m sg2jax.main --config=configs/lsun_horse.py --config.data.dir=DATA/lsun_horse --workdir=RUN

Cost: 1.2 TFLOP per image trained, 1.2e20 for the run.
"""
from configs import default


def get_config():
  """Config F, 256x256."""
  c = default.get_config()
  c.resolution = 256
  c.total_kimg = 100_000.0
  c.device = 'accelerator'
  c.loss.r1_gamma = 100.0
  c.g.num_bf16_res = c.d.num_bf16_res = 4
  c.g.clamp = c.d.clamp = 256.0
  return c
