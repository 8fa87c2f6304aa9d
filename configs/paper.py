"""The configurations of StyleGAN2's Table 1 and Table 2 [S2], on any data set and resolution.

    python -m sg2jax.main --config=configs/paper.py:f --config.data.dir=DIR --config.resolution=R --workdir=RUN
    ... --config=configs/paper.py:e:Gorig-Dskip     one of the nine architecture pairs of Table 2, at config E's size

e: new architectures (G skip, D resnet), fmap_base 8192, gamma 100. f: e with fmap_base 16384, gamma 10.
FFHQ at 1024, FID in Table 1: E 3.31, F 2.84. Cost in `docs/performance.md`.
"""
import re

from configs import default


def get_config(arg='f'):
  """arg: 'e' or 'f', optionally ':G{orig,skip,resnet}-D{orig,skip,resnet}'."""
  match = re.fullmatch(r'(e|f)(?::G(orig|skip|resnet)-D(orig|skip|resnet))?', arg)
  if not match:
    raise ValueError(f"configs/paper.py:{arg} is unknown; use e, f, or e:Gskip-Dresnet with orig, skip or resnet")
  name, g, d = match.groups()
  c = default.get_config()
  c.g.architecture, c.d.architecture = g or 'skip', d or 'resnet'
  c.g.fmap_base = c.d.fmap_base = {'e': 8192, 'f': 16_384}[name]
  c.loss.r1_gamma = {'e': 100.0, 'f': 10.0}[name]
  c.data.mirror = True
  return c
