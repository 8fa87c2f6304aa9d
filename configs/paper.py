r"""The configurations of StyleGAN2's Tables 1 and 2 [S2], on any data set and resolution.

    python -m sg2jax.main --config=configs/paper.py:f --config.data.dir=DIR \
      --config.resolution=R --workdir=RUN
    ... --config=configs/paper.py:e:Gorig-Dskip

  a    StyleGAN: AdaIN, growing              FID of FFHQ at 1024 px [S2 Table 1]: 4.40
  b    a with weight demodulation            4.39
  c    b with lazy regularization            4.38
  d    c with path length regularization     4.34
  e    d without growing, new architectures (G skip, D resnet), gamma 100    3.31
  f    e with fmap_base 16384, gamma 10      2.84
  e:G...-D...   one of the nine architecture pairs of Table 2, of e's size
  msg  e with MSG-GAN's connections [S2 Fig. 7a]

Cost: `docs/performance.md`.
"""

import re

from configs import default


def get_config(arg='f'):
  """arg: 'a' ... 'f', 'msg', or 'e:G{orig,skip,resnet}-D{orig,skip,resnet}'."""
  match = re.fullmatch(r'([a-f]|msg)|(e|f):G(orig|skip|resnet)-D(orig|skip|resnet)', arg)
  if not match:
    raise ValueError(
      f'configs/paper.py:{arg} is unknown; use a, b, c, d, e, f, msg, or e:Gskip-Dresnet with '
      'orig, skip or resnet'
    )
  name = match[1] or match[2]
  c = default.get_config()
  c.data.mirror = True
  c.g.fmap_base = c.d.fmap_base = 16_384 if name == 'f' else 8192
  if name in 'abcd':
    c.g.architecture = c.d.architecture = 'stylegan1' if name == 'a' else 'revised'
    c.opt.g_lr = c.opt.d_lr = 0.001
    c.opt.formulation = 'tensorflow'
    c.grow.start_res = 8
    c.grow.batch = ((8, 256), (16, 128), (32, 64))
    c.grow.lr = ((128, 0.0015), (256, 0.002), (512, 0.003), (1024, 0.003))
    if name in 'ab':
      c.loss.r1_interval = c.loss.pl_interval = 0
    if name != 'd':
      c.loss.pl_weight = 0.0
    return c
  c.g.architecture, c.d.architecture = (match[3], match[4]) if match[3] else ('skip', 'resnet')
  c.loss.r1_gamma = 10.0 if name == 'f' else 100.0
  if name == 'msg':
    c.g.architecture = c.d.architecture = 'msg'
  return c
