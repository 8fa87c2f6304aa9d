r"""LSUN Church at 256x256, config F [S2 Table 3]: 88,000 kimg, gamma 100.0.

The images must be prepared once, from a folder or zip of the LSUN Church pictures
(github.com/fyu/lsun exports them):

    python -m sg2jax.tools.prepare --source=LSUN/church --dest=DATA/lsun_church --resolution=256
    python -m sg2jax.main --config=configs/lsun_church.py --config.data.dir=DATA/lsun_church \
      --workdir=RUN

Not mirrored. Published: FID 3.86. Cost: 1.2 TFLOP per image trained, 1.1e20 for the run.
"""

from configs import lsun_cat


def get_config():
  """Cat's, with gamma 100."""
  c = lsun_cat.get_config()
  c.loss.r1_gamma = 100.0
  return c
