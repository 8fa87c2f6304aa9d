"""CIFAR-10 at 32 px, class-conditional: `ada.py:cifar` without augmentation.

The data set must be in TFDS's array_record format (needs the network and TensorFlow once, on any
machine):

    tfds build cifar10 --file_format=array_record --data_dir=DATA
    python -m sg2jax.main --config=configs/cifar10.py --config.data.dir=DATA --workdir=RUN

100,000 kimg. Published without augmentation: FID 6.96 class-conditional, 8.32 unconditional [ADA
Fig. 11].
"""

from configs import ada


def get_config():
  """As [ADA App. D] has it."""
  return ada.cifar()
