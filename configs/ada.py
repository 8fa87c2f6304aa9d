"""Limited data: the configurations of [ADA], with adaptive augmentation.

    python -m sg2jax.tools.prepare --source=PHOTOS --dest=DATA/mine --resolution=512
    python -m sg2jax.main --config=configs/ada.py:auto:512 --config.data.dir=DATA/mine --workdir=RUN

`auto:RES[,DEVICES]`: any pictures of one size, HEIGHTxWIDTH of rectangles (`auto:384x512,8`);
`paper256`, `paper512`, `paper1024`: the paper's of these sizes; `cifar`: class-conditional CIFAR-10
at 32 px, which must be there in TFDS's array_record format (configs/cifar10.py says how).

25,000 kimg, `cifar` 100,000; with few pictures the best is often earlier, see docs/small_data.md.
Cost: about 0.4, 1.6 and 2.0 TFLOP per image trained for paper256, paper512 and paper1024.
Published: FID 2.42 of CIFAR-10, class-conditional [ADA, abstract]; for those of other data sets,
which depend on the pictures, their number and mirroring, see the paper. Nothing is mirrored here:
`data.mirror=True` doubles the pictures honestly where a mirrored one could be one of them.
"""

from configs import default

# kimg, batch, mbstd group, fmap_base, learning rate, gamma, half-life of the EMA in kimg [ADA App.
# C, D]
PAPER = {
  'paper256': (25_000.0, 64, 8, 8192, 0.0025, 1.0, 20.0),
  'paper512': (25_000.0, 64, 8, 16_384, 0.0025, 0.5, 20.0),
  'paper1024': (25_000.0, 32, 4, 16_384, 0.002, 2.0, 10.0),
  'cifar': (100_000.0, 64, 32, 16_384, 0.0025, 0.01, 500.0),
}
NAMES = (*PAPER, 'auto:RES[,DEVICES]')


def get_config(arg='auto:256'):
  """arg: one of NAMES."""
  name, _, size = arg.partition(':')
  if name == 'auto':
    try:
      c = auto(size)
    except ValueError as e:
      raise ValueError(f'configs/ada.py:{arg}: {e}') from None
  elif arg in PAPER:
    c = cifar() if arg == 'cifar' else paper(arg)
  else:
    raise ValueError(f'configs/ada.py:{arg}: choose from {", ".join(NAMES)}')
  c.augment.pipeline = 'bgc'
  return c


def paper(name):
  """A row of PAPER, without augmentation."""
  c = default.get_config()
  c.total_kimg, c.batch, c.d.mbstd_group_size, base, lr, c.loss.r1_gamma, c.ema.kimg = PAPER[name]
  c.g.fmap_base = c.d.fmap_base = base
  c.opt.g_lr = c.opt.d_lr = lr
  c.device = 'accelerator'
  if name != 'cifar':
    c.resolution = int(name.removeprefix('paper'))
    c.g.num_bf16_res = c.d.num_bf16_res = 4
    c.g.clamp = c.d.clamp = 256.0
  return c


def cifar():
  """CIFAR-10 without augmentation: no path lengths, no style mixing, D orig [ADA App. D]."""
  c = paper('cifar')
  c.resolution = 32
  c.data.name = 'cifar10'
  c.data.labels = True
  c.g.mapping_layers = 2
  c.d.architecture = 'orig'
  c.loss.pl_weight = 0.0
  c.loss.mixing_prob = 0.0
  c.ema.rampup = 0.05
  return c


def auto(arg):
  """What follows from 'RESOLUTION[,DEVICES]' [ADA App. C, `auto`], without augmentation.

  Batches are multiples of the devices, and at least 4: the rule's 2 at 2048 px and one device would
  leave minibatch stddev hardly anything to compare.
  """
  try:
    size, _, devices = arg.partition(',')
    sides = [int(side) for side in size.split('x')]
    n = int(devices or 1)
    res = max(sides)
    if not 1 <= len(sides) <= 2 or n < 1 or min(sides) < 4:
      raise ValueError
  except ValueError:
    raise ValueError(f'{arg!r} must be RESOLUTION[,DEVICES], such as 256 or 384x512,8') from None
  c = default.get_config()
  c.resolution = res if len(sides) == 1 else tuple(sides)
  c.batch = max(min(n * min(4096 // res, 32), 64), 4)
  c.batch = -(-c.batch // n) * n
  c.g.fmap_base = c.d.fmap_base = 16_384 if res >= 512 else 8192
  c.g.mapping_layers = 2
  c.d.mbstd_group_size = min(c.batch // n, 4)
  c.opt.g_lr = c.opt.d_lr = 0.002 if res >= 1024 else 0.0025
  c.loss.r1_gamma = 0.0002 * res**2 / c.batch
  c.ema.kimg = c.batch * 10 / 32
  c.ema.rampup = 0.05
  return c
