r"""LSUN Horse at 256x256, config F [S2 Table 3]: 100,000 kimg, gamma 100.0.

The images must be prepared once, from a folder or zip of the LSUN Horse pictures
(github.com/fyu/lsun exports them):

    python -m sg2jax.tools.prepare --source=LSUN/horse --dest=DATA/lsun_horse --resolution=256
    python -m sg2jax.main --config=configs/lsun_horse.py --config.data.dir=DATA/lsun_horse \
      --workdir=RUN

Not mirrored. Published: FID 3.43. Cost: 1.2 TFLOP per image trained, 1.2e20 for the run.
"""

from configs import lsun_church


def get_config():
  """Church's, for 100,000 kimg."""
  c = lsun_church.get_config()
  c.total_kimg = 100_000.0
  return c
