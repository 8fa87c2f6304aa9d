"""python -m sg2jax.tools.directions METHOD --checkpoint=RUN [--out=DIR] [--layers=LO-HI]
[--count=8] [--sigma=3] [--seed=0] ...

Finds directions in w along which images change, and shows them: each row of DIR/METHOD.png moves
one image from -sigma to sigma standard deviations of w along one direction, at the chosen layers.
METHOD is
  pca     principal components of w (GANSpace): where the network's images differ most
  sefa    closed-form factorisation (SeFa): what changes the styles of the chosen layers most
Layers are numbered by the ws that they take, from the coarsest, 0: low ones change shape and pose,
high ones colour and detail. DIR/METHOD.npz has the directions; docs/generate.md says how to use
them. DIR is by default directions/<step> in the workdir.
"""

import math

from absl import flags
import numpy as np

from sg2jax import cli, files, inputs, sampler
from sg2jax.edit import directions
from sg2jax.faults import UsageError
from sg2jax.tools import generate

METHODS = ('pca', 'sefa')
# images of a row; w of which the directions and their standard deviations are computed
STEPS, SAMPLES = 7, 50_000


def define_flags():
  """The command line. Not at import: tools have flags of the same names."""
  flags.DEFINE_string(
    'checkpoint', '', 'Workdir, whose newest checkpoint counts, or one step of it.'
  )
  flags.DEFINE_string(
    'out', '', 'Folder of the results; default: directions/<step> in the workdir.'
  )
  flags.DEFINE_string(
    'layers', '', 'First and last of the ws that are moved, such as 0-3; default: all.'
  )
  flags.DEFINE_integer('count', 8, 'Directions to find.')
  flags.DEFINE_float(
    'sigma', 3, 'How far the sheet goes, in standard deviations of w along the direction.'
  )
  flags.DEFINE_integer('seed', 0, 'Of the image that is moved.')
  flags.DEFINE_string('psi', '', 'Truncation of that image; default: 1, none.')
  generate.define_labels('w that are looked at, and of that image', 'drawn as the data has them')
  flags.adopt_module_key_flags(generate)  # --help shows them


def main(argv):
  """Checks, finds, draws, writes."""
  asked, method = flags.FLAGS, argv[1] if len(argv) > 1 else ''
  if method not in METHODS:
    said = f'METHOD={method} is unknown' if method else 'METHOD is missing'
    raise UsageError(
      f'{said}; choose from {", ".join(METHODS)}, as in python -m sg2jax.tools.directions pca '
      '--checkpoint=RUN'
    )
  (psi,) = generate.numbers(asked.psi or '1', 'psi')
  if not 0 < asked.sigma < math.inf:
    raise UsageError(f'--sigma={asked.sigma:g} must be a finite number above 0')
  inputs.check_seeds([asked.seed])
  net = generate.load(asked.checkpoint)
  label, w_dim = generate.labels(net, asked, 1), net.generator.mapping.w_dim
  layers = generate.span(net, asked.layers or f'0-{net.num_ws - 1}', 'layers')
  if not 1 <= asked.count <= w_dim:
    raise UsageError(
      f'--count={asked.count} must be 1 or more, and at most {w_dim}, the dimensions of w'
    )
  generate.check_sheet(net, asked.count * STEPS)
  out = cli.folder(asked.out or str(net.workdir / 'directions' / f'{net.step:08d}'))
  ws, w = net.ws([asked.seed], psi, label=label)[0], sampler.sample_w(net, SAMPLES, 0, label)
  found = (
    directions.pca(w, asked.count)
    if method == 'pca'
    else directions.sefa(net, w, layers, asked.count)
  )
  at = np.linspace(-asked.sigma, asked.sigma, STEPS)
  moved = np.stack(
    [directions.edit(ws, n, at * s, layers) for n, s in zip(found.vectors, found.stdevs)]
  )
  pictures = net.images(moved.reshape(-1, *ws.shape), seeds=[asked.seed] * moved.shape[0] * STEPS)
  files.write_atomic(
    out / f'{method}.npz',
    files.npz(
      **found._asdict(),
      layers=[layers.start, layers.stop - 1],
      method=method,
      checkpoint=net.hash(),
    ),
  )
  generate.write_sheet(
    out / f'{method}.png',
    pictures.reshape(*moved.shape[:2], *pictures.shape[1:]),
    [f'{method} {i}' for i in range(asked.count)],
    [f'{x:+.2g}' if x else '0' for x in at],
  )
  shares = '  '.join(f'{s * s / w.var(0).sum():.1%}' for s in found.stdevs)
  print(
    f'{net.title}\n  shares of the variance of w: {shares}\nwrote {out / method}.npz and '
    f'{method}.png'
  )


if __name__ == '__main__':
  define_flags()
  cli.run(main, positional=1)
