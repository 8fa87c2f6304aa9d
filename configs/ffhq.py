r"""FFHQ at 1024 px, config F [S2 Table 1]: 25,000 kimg, mirrored.

The images must be prepared once (70,000 PNGs from github.com/NVlabs/ffhq-dataset, 90 GB):

    python -m sg2jax.tools.prepare --source=ffhq/images1024x1024 --dest=DATA/ffhq1024 \
      --resolution=1024
    python -m sg2jax.main --config=configs/ffhq.py --config.data.dir=DATA/ffhq1024 --workdir=RUN

Published: FID 2.84, ppl2_wend 145.0, P/R .689/.492. Cost: 2.0 TFLOP per image trained, 5e19 for the
run; 8 V100 took 9 days [S2 App. B]. Out of memory: --config.microbatch=16.
"""

from configs import default


def get_config():
  """Config F at 1024, bfloat16 in the upper four resolutions."""
  c = default.get_config()
  c.resolution = 1024
  c.device = 'accelerator'
  c.data.mirror = True
  c.g.num_bf16_res = c.d.num_bf16_res = 4
  c.g.clamp = c.d.clamp = 256.0
  return c
