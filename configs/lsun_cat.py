"""LSUN Cat at 256x256, config F [S2 Table 3]: 88,000 kimg, gamma 10.0.

The images must be prepared once, from a folder or zip of the LSUN Cat pictures
(github.com/fyu/lsun exports them):

    python -m sg2jax.tools.prepare --source=LSUN/cat --dest=DATA/lsun_cat --resolution=256
    python -m sg2jax.main --config=configs/lsun_cat.py --config.data.dir=DATA/lsun_cat --workdir=RUN

Not mirrored. Published: FID 6.93. Cost: 1.2 TFLOP per image trained, 1.1e20 for the run.
"""

from configs import default


def get_config():
  """Config F, 256x256."""
  c = default.get_config()
  c.resolution = 256
  c.total_kimg = 88_000.0
  c.device = 'accelerator'
  c.loss.r1_gamma = 10.0
  c.g.num_bf16_res = c.d.num_bf16_res = 4
  c.g.clamp = c.d.clamp = 256.0
  return c
