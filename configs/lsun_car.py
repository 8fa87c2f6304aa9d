r"""LSUN Car at 512x384 (width x height), config F [S2 Table 3]: 57,000 kimg, gamma 10.0.

The images must be prepared once, from a folder or zip of the LSUN Car pictures
(github.com/fyu/lsun exports them):

    python -m sg2jax.tools.prepare --source=LSUN/car --dest=DATA/lsun_car --resolution=384x512 \
      --fit=center
    python -m sg2jax.main --config=configs/lsun_car.py --config.data.dir=DATA/lsun_car --workdir=RUN

Not mirrored. Published: FID 2.32. Cost: 1.2 TFLOP per image trained, 7e19 for the run.
"""

from configs import lsun_cat


def get_config():
  """Cat's, at 512x384 (width x height)."""
  c = lsun_cat.get_config()
  c.resolution = (384, 512)
  c.total_kimg = 57_000.0
  return c
