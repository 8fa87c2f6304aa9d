"""Finds directions in w along which images change, without labels, and shows them.

python -m sg2jax.tools.directions METHOD --checkpoint=RUN [--out=DIR] [--layers=LO-HI]
[--count=8] [--sigma=3] [--seed=0] ...

Each row of DIR/METHOD.png moves one image from -sigma to sigma standard deviations of w along one
direction, at the chosen layers. METHOD is
  pca     principal components of w (GANSpace): where the network's images differ most
  sefa    closed-form factorisation (SeFa): what changes the styles of the chosen layers most
Layers are numbered by the ws that they take, from the coarsest, 0: low ones change shape and pose,
high ones colour and detail. DIR/METHOD.npz has the directions: generate and video apply them, as in
--edit=DIR/pca.npz:pca1:3. DIR is by default directions/<step> in the workdir.
"""

from absl import flags
import numpy as np

from sg2jax import cli, sampler
from sg2jax.edit import direction, directions
from sg2jax.faults import UsageError
from sg2jax.tools import flags as shared
from sg2jax.tools import sheets

METHODS = ('pca', 'sefa')
STEPS = 7  # images of a row


def define_flags() -> None:
  """The command line."""
  shared.define_checkpoint()
  shared.define_out('directions', anywhere=True)
  flags.DEFINE_string(
    'layers', '', 'First and last of the ws that are moved, such as 0-3; default: all.'
  )
  flags.DEFINE_integer('count', 8, 'Directions to find.', lower_bound=1)
  shared.define_finite(
    'sigma',
    3,
    'How far the sheet goes, in standard deviations of w along the direction.',
    lower_bound=0,
  )
  shared.define_seed('Of the image that is moved.')
  shared.define_psi('Truncation of that image; default: 1, none.')
  shared.define_labels('w that are looked at, and of that image', 'drawn as the data has them')


def main(argv: list[str]) -> None:
  """Checks, finds, draws, writes."""
  # ---- what is asked
  asked = flags.FLAGS
  method = cli.choice(argv, 'METHOD', METHODS)
  net = sampler.load(asked.checkpoint)
  label = shared.labels(net, 1)
  layers = shared.ws_range(net, 'layers')
  w_dim = net.generator.mapping.w_dim
  if asked.count > w_dim:
    raise UsageError(f'--count={asked.count} must be at most {w_dim}, the dimensions of w')
  out = shared.out_folder(net, 'directions', anywhere=True)

  # ---- directions, and the image moved along each
  # of seed 0 whatever --seed is: the same network has the same directions
  w = sampler.sample_w(net, directions.SAMPLES, 0, label)
  if method == 'pca':
    found = directions.pca(w, asked.count)
  else:
    found = directions.sefa(net, w, layers, asked.count)
  moves = directions.as_directions(net, method, found, layers, w)
  amounts = np.linspace(-asked.sigma, asked.sigma, STEPS)
  ws = net.ws([asked.seed], asked.psi, label=label)
  moved = np.stack([move.move(ws, amounts)[0] for move in moves])
  pictures = sheets.render(net, moved, np.full(moved.shape[:2], asked.seed))

  # ---- files
  direction.write(
    out / f'{method}.npz',
    moves,
    **found._asdict(),
    mean=w.mean(0, dtype=np.float64).astype(np.float32),
    layers=[layers.start, layers.stop - 1],
    method=method,
    checkpoint=net.hash(),
  )
  rows = [move.name for move in moves]
  cols = [f'{amount:+.2g}' if amount else '0' for amount in amounts]
  sheets.write_sheet(out / f'{method}.png', pictures, rows, cols)
  shares = '  '.join(f'{move.about["share"]:.1%}' for move in moves)
  print(f'{net.title}\n  shares of the variance of w: {shares}')
  print(f'wrote {out / method}.npz and {method}.png')


if __name__ == '__main__':
  define_flags()
  cli.run(main, positional=1)
