"""python -m sg2jax.tools.analyze KIND --checkpoint=RUN [--checkpoint=OTHER ...] [--out=DIR]
[--images=N] [--seed=S]

Measures artefacts in trained generators, several side by side, and writes DIR/KIND.png and
DIR/KIND.json. KIND is
  contribution   what each resolution adds to the image (skip, msg), and how that went in training
  droplets       how far the tallest pixel stands out of each layer's feature maps: AdaIN against
  demodulation phase          how much of the details stays on its pixels while w moves: growing
  against skip
A checkpoint is a workdir (its newest) or one step of it. Weights are the moving average, w is not
truncated, a network that grows is taken at the stage it had reached. docs/analysis.md says how to
read the figures.
"""

import json
import math
import pathlib

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from sg2jax import build, cli, files, sampler
from sg2jax.evaluation import artifacts
from sg2jax.faults import UsageError
from sg2jax.models.stylegan2 import largest
from sg2jax.tools import figures

CHECKPOINT = flags.DEFINE_multi_string(
  'checkpoint', [], 'Workdir, or one step of it; give several to compare them.'
)
OUT = flags.DEFINE_string(
  'out', None, 'Folder for the figure and the numbers; default: analysis/ in the first workdir.'
)
IMAGES = flags.DEFINE_integer(
  'images', None, 'Samples of w; default: 1024, droplets: 256. phase: 32 make a path.'
)
SEED = flags.DEFINE_integer('seed', 0, 'Of latents and labels.')
FRAMES = 32  # on a path


def main(argv):
  """Measures, prints a table, writes figure and numbers."""
  kind, images = check(argv)
  _, measure, draw = KINDS[kind]
  networks = [sampler.load(path) for path in CHECKPOINT.value]
  if kind == 'contribution':
    for net in networks:
      artifacts.check_parts(net.config.g.architecture)
  numbers, tables, pictures = zip(*(measure(net, images, SEED.value) for net in networks))
  for net, table in zip(networks, tables):
    print(f'{net.title}\n  {table}')
  unit, noise = ('frames', 'none') if kind == 'phase' else ('images', 'const')
  document = {
    'kind': kind,
    'networks': [
      {
        'checkpoint': path,
        'step': net.step,
        'nimg': net.nimg,
        'architecture': net.config.g.architecture,
        'resolution': build.resolution(net.config),
        **net.growing,
        'images': images,
        'seed': SEED.value,
        'weights': 'g_ema',
        'noise_mode': noise,
        **n,
      }
      for path, net, n in zip(CHECKPOINT.value, networks, numbers)
    ],
  }
  caption = f'{images} {unit} of each network, moving average of the weights, noise {noise}'
  figure = draw([net.title for net in networks], numbers, pictures, caption)
  out = pathlib.Path(OUT.value or networks[0].workdir / 'analysis')
  files.write_atomic(out / f'{kind}.png', figures.png(figure))
  files.write_atomic(out / f'{kind}.json', json.dumps(document, indent=1, allow_nan=False) + '\n')
  print(f'wrote {out / kind}.png and {kind}.json')


def check(argv):
  """(kind, number of images). Raises UsageError for flags that can't work."""
  if len(argv) < 2 or argv[1] not in KINDS:
    given = f'KIND={argv[1]} is unknown' if len(argv) > 1 else 'KIND is missing'
    raise UsageError(
      f'{given}; choose from {", ".join(KINDS)}, as in python -m sg2jax.tools.analyze phase '
      '--checkpoint=RUN'
    )
  if not 1 <= len(CHECKPOINT.value) <= len(figures.COLOURS):
    raise UsageError(
      f'--checkpoint is given {len(CHECKPOINT.value)} times; give it 1 to {len(figures.COLOURS)} '
      'times'
    )
  images = IMAGES.value if IMAGES.value is not None else KINDS[argv[1]][0]
  if images < 1 or (argv[1] == 'phase' and (images % FRAMES or images < 2 * FRAMES)):
    rule = f'a multiple of {FRAMES}, {2 * FRAMES} or more' if argv[1] == 'phase' else '1 or more'
    raise UsageError(f'--images={images} must be {rule}')
  if not 0 <= SEED.value < 2**32:
    raise UsageError(f'--seed={SEED.value} must be 0 or more and less than 2^32')
  return argv[1], images


def batched(net, function):
  """function(variables, ws), compiled, as a function of ws [N,...] that returns a list of results
  in numpy.
  """
  size = sampler.images_at_once(net.generator.synthesis.resolution)

  def precise(*args):
    with jax.default_matmul_precision('highest'):  # as everything that makes images
      return function(*args)

  compiled = jax.jit(precise)
  return lambda ws: [
    jax.device_get(compiled(net.variables, ws[i : i + size])) for i in range(0, len(ws), size)
  ]


def contribution(net, images, seed):
  """Share of each resolution, in the image and as torgb returns it, and those that training logged:
  [{'kimg', 'b4', ...}].
  """

  def sums(variables, ws):
    parts = [
      f(net.generator, variables, ws) for f in (artifacts.image_parts, artifacts.torgb_pixels)
    ]
    return jax.tree.map(lambda x: len(ws) * x, [artifacts.moments(p) for p in parts])

  parts = batched(net, sums)(sampler.sample_ws(net, images, seed))
  moments = jax.tree.map(lambda *x: np.sum(x, 0, np.float64) / images, *parts)
  names = sorted(moments[0], key=artifacts.resolution)
  share, share_torgb = (
    {name: float(s[name]) for name in names} for s in map(artifacts.shares, moments)
  )
  log = net.workdir / 'metrics.jsonl'
  lines = log.read_text().splitlines() if log.exists() else []
  # a killed run leaves a torn line
  rows = [json.loads(line) for line in lines if line.endswith('}')]
  logged = [
    {'kimg': row['nimg'] / 1000, **{name: float(row[f'contribution_{name}']) for name in names}}
    for row in rows
    if row['nimg'] <= net.nimg and f'contribution_{names[-1]}' in row
  ]
  text = lambda shares: '  '.join(f'{name} {value:.1%}' for name, value in shares.items())
  table = f'in the image: {text(share)}\n  as torgb returns it: {text(share_torgb)}'
  return {'share': share, 'share_torgb': share_torgb, 'logged': logged}, table, None


def droplets(net, images, seed):
  """Peak-to-median of each layer over samples, and the map of its worst sample {layer: [h,w]}."""

  def worst(variables, ws):
    found = artifacts.droplets(net.generator, variables, ws, **net.growing)
    return {name: (ratio, maps[jnp.argmax(ratio)]) for name, (ratio, maps) in found.items()}

  parts = batched(net, worst)(sampler.sample_ws(net, images, seed))
  layers, maps = {}, {}
  for name in sorted(parts[0], key=lambda name: (artifacts.resolution(name), name)):
    ratio = np.concatenate([part[name][0] for part in parts])
    layers[name] = {
      'median': float(np.median(ratio)),
      'p95': float(np.quantile(ratio, 0.95)),
      'max': float(ratio.max()),
    }
    maps[name] = max((part[name][1] for part in parts), key=np.max)
  table = '  '.join(f'{name} {v["median"]:.1f} ({v["p95"]:.1f})' for name, v in layers.items())
  return {'peak_to_median': layers}, table, maps


def phase(net, images, seed):
  """Shares of detail that keep to their pixels, along paths and among their unrelated starts;
  preference modulo 8.
  """
  ends = sampler.sample_ws(net, 2 * (images // FRAMES), seed)
  render = batched(
    net,
    lambda v, ws: largest(net.generator.apply(v, ws, 'none', **net.growing, method='synthesize')),
  )
  measure, shares, energies, starts = jax.jit(artifacts.phase), [], [], []
  for w0, w1 in zip(ends[::2], ends[1::2]):
    frames = np.concatenate(render(artifacts.path(w0, w1, FRAMES)))
    if min(frames.shape[1:3]) < 16:
      raise UsageError(
        f'{net.workdir}: phase needs images of 16 px or more, and this network makes '
        f'{frames.shape[1:3]}'
      )
    share, energy = jax.device_get(measure(frames))
    shares.append(share)
    energies.append(energy)
    starts.append(frames[0])
  shares = np.array(shares, np.float64)  # [paths,octaves]
  shares = np.concatenate([shares, shares[:, :1] - shares[:, -1:]], 1)
  mean, error = shares.mean(0).tolist(), (shares.std(0, ddof=1) / math.sqrt(len(shares))).tolist()
  unrelated = jax.device_get(measure(np.stack(starts))[0]).tolist()
  (preference, folded), (control, _) = (
    artifacts.grid_preference(np.sum(energies, 0, np.float64), p) for p in (8, 7)
  )
  octaves = [
    {'period_px': [2 ** (k + 1), 2 ** (k + 2)], 'fixed': mean[k], 'error': error[k], 'unrelated': v}
    for k, v in enumerate(unrelated)
  ]
  text = '  '.join(
    '{period_px[0]}-{period_px[1]} px {fixed:.3f} ({unrelated:.3f})'.format(**o) for o in octaves
  )
  table = (
    f'stays on its pixels (among unrelated images): {text}  finest less coarsest {mean[-1]:+.3f}\n'
    f'  preference for positions modulo 8: {preference:.3f}, modulo 7: {control:.3f}'
  )
  return (
    {
      'paths': len(shares),
      'frames': FRAMES,
      'octaves': octaves,
      'excess': mean[-1],
      'excess_error': error[-1],
      'grid_preference': preference,
      'grid_preference_control': control,
    },
    table,
    (frames, folded),
  )


KINDS = {
  'contribution': (1024, contribution, figures.contribution),
  'droplets': (256, droplets, figures.droplets),
  'phase': (1024, phase, figures.phase),
}  # images by default, what measures, what draws


if __name__ == '__main__':
  cli.run(main, positional=1)
