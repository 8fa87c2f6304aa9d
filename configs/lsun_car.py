"""LSUN Car at 512x384 (width x height), config F [S2 Table 3]: 57,000 kimg, gamma 10.0, not mirrored. Published: FID 2.32.

The images must be prepared once, from a folder or zip of the LSUN Car pictures (github.com/fyu/lsun exports them):

    python -m sg2jax.tools.prepare --source=LSUN/car --dest=DATA/lsun_car --resolution=384x512 --fit=center
    python -m sg2jax.main --config=configs/lsun_car.py --config.data.dir=DATA/lsun_car --workdir=RUN

Cost: 1.2 TFLOP per image trained, 7e19 for the run.
"""
from configs import default


def get_config():
  """Config F, 512x384 (width x height)."""
  c = default.get_config()
  c.resolution = (384, 512)
  c.total_kimg = 57_000.0
  c.device = 'accelerator'
  c.loss.r1_gamma = 10.0
  c.g.num_bf16_res = c.d.num_bf16_res = 4
  c.g.clamp = c.d.clamp = 256.0
  return c
