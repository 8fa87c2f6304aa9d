r"""CelebA-HQ at 1024 px, config F [S2 Table 1 hyper-parameters]: 25,000 kimg, mirrored.

The 30,000 images must be prepared once, from a folder or zip of the 1024 px PNGs
(github.com/tkarras/progressive_growing_of_gans tells how they are made from CelebA):

    python -m sg2jax.tools.prepare --source=celeba-hq-1024 --dest=DATA/celeba_hq --resolution=1024
    python -m sg2jax.main --config=configs/celeba_hq.py --config.data.dir=DATA/celeba_hq \
      --workdir=RUN

Cost as `ffhq.py`. [S2] gives no FID for this data set.
"""

from configs import ffhq


def get_config():
  """FFHQ's configuration."""
  return ffhq.get_config()
