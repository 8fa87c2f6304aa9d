"""CIFAR-10 at 32 px, class-conditional, the `cifar` configuration of [ADA] without augmentation.

The data set must be in TFDS's array_record format (needs the network and TensorFlow once, on any
machine):

    tfds build cifar10 --file_format=array_record --data_dir=DATA
    python -m sg2jax.main --config=configs/cifar10.py --config.data.dir=DATA --workdir=RUN

100,000 kimg. Published without augmentation: FID 6.96 class-conditional, 8.32 unconditional [ADA
Fig. 11].
"""

from configs import default


def get_config():
  """No path length regularization, no style mixing, D orig [ADA App. D]."""
  c = default.get_config()
  c.resolution = 32
  c.total_kimg = 100_000.0
  c.batch = 64
  c.data.name = 'cifar10'
  c.data.labels = True
  c.device = 'accelerator'
  c.g.mapping_layers = 2
  c.d.architecture = 'orig'
  c.d.mbstd_group_size = 32
  c.loss.r1_gamma = 0.01
  c.loss.pl_weight = 0.0
  c.loss.mixing_prob = 0.0
  c.opt.g_lr = c.opt.d_lr = 0.0025
  c.ema.kimg = 500.0
  c.ema.rampup = 0.05
  return c
