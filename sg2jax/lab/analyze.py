"""Artefacts of trained generators, measured and drawn side by side: what the tool analyze does."""

from collections.abc import Callable
import json
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sg2jax import build, charts, sampler
from sg2jax.evaluation import artifacts, ppl
from sg2jax.faults import UsageError
from sg2jax.files import write_atomic
from sg2jax.lab import figures
from sg2jax.models.generator import largest
from sg2jax.sampler import Sampler
from sg2jax.training import report

FRAMES = 32  # on a path


class Measured(NamedTuple):
  """Of one network."""

  numbers: dict  # JSON values
  table: str  # lines for people
  pictures: Any = None  # what the figure shows besides the numbers


class Kind(NamedTuple):
  """An artefact."""

  images: int  # by default
  measure: Callable  # (net, images, seed) -> Measured
  draw: Callable  # (titles, [Measured, ...], caption) -> Figure
  noise: str = 'const'  # noise_mode of the images


def analyze(
  kind: str,
  networks: list[tuple[str, Sampler]],
  images: int,
  seed: int,
  out: pathlib.Path,
) -> None:
  """Measures networks, prints a table of each, writes <out>/<kind>.png and .json.

  Args:
    kind: of KINDS.
    networks: (path as the user named it, network).
    images: how many of each.
    seed: of latents and labels.
    out: a folder.
  """
  _, measure, draw, noise = KINDS[kind]
  measured = []
  documents = []
  for path, net in networks:
    m = measure(net, images, seed)
    print(f'{net.title}\n  {m.table}')
    measured.append(m)
    documents.append(
      {
        'checkpoint': path,
        'step': net.step,
        'nimg': net.nimg,
        'architecture': net.config.g.architecture,
        'resolution': build.resolution(net.config),
        **net.growing,
        'images': images,
        'seed': seed,
        'weights': 'g_ema',
        'noise_mode': noise,
        **m.numbers,
      }
    )
  caption = f'{images} images of each network, moving average of the weights, noise {noise}'
  figure = draw([net.title for _, net in networks], measured, caption)
  write_atomic(out / f'{kind}.png', charts.png(figure))
  document = {'kind': kind, 'networks': documents}
  write_atomic(out / f'{kind}.json', json.dumps(document, indent=1, allow_nan=False) + '\n')
  print(f'wrote {out / kind}.png and {kind}.json')


def _in_parts(net: Sampler, function: Callable, ws) -> list:
  """[function(variables, part), in numpy] of parts of ws [N,...] that fit the device.

  The function is jitted, by the caller: what is called for many ws compiles once.
  """
  size = sampler.images_at_once(net.generator.synthesis.resolution)
  with jax.default_matmul_precision('highest'):  # as everything that makes images
    return [
      jax.device_get(function(net.variables, ws[i : i + size])) for i in range(0, len(ws), size)
    ]


# ---- contribution


def contribution(net: Sampler, images: int, seed: int) -> Measured:
  """Share of each resolution, in the image and as torgb returns it, and what training logged."""

  @jax.jit
  def sums(variables, ws):
    parts = artifacts.image_parts(net.generator, variables, ws)
    pixels = artifacts.torgb_pixels(net.generator, variables, ws)
    moments = [artifacts.moments(parts), artifacts.moments(pixels)]
    return jax.tree.map(lambda x: len(ws) * x, moments)

  # Summed in float64 on the host: of 1024 images float32 would lose digits that the shares show.
  parts = _in_parts(net, sums, sampler.sample_ws(net, images, seed))
  moments = jax.tree.map(lambda *x: np.sum(x, 0, np.float64) / images, *parts)
  names = sorted(moments[0], key=artifacts.resolution)
  shares = map(artifacts.shares, moments)
  share, share_torgb = ({name: float(x[name]) for name in names} for x in shares)
  table = f'in the image: {_percent(share)}\n  as torgb returns it: {_percent(share_torgb)}'
  logged = _logged(net, names)
  return Measured({'share': share, 'share_torgb': share_torgb, 'logged': logged}, table)


def _percent(shares):
  return '  '.join(f'{name} {value:.1%}' for name, value in shares.items())


def _logged(net, names):
  """[{'kimg', 'b4', ...}]: what training logged up to this checkpoint."""
  return [
    {'kimg': row['nimg'] / 1000} | {name: float(row[f'contribution_{name}']) for name in names}
    for row in report.logged(net.workdir)
    if row['nimg'] <= net.nimg and f'contribution_{names[-1]}' in row
  ]


# ---- droplets


def droplets(net: Sampler, images: int, seed: int) -> Measured:
  """Peak-to-median of each layer; pictures: {layer: map [h,w] of its worst sample}."""

  @jax.jit
  def worst(variables, ws):
    layers = artifacts.droplets(net.generator, variables, ws, **net.growing)
    return {name: (ratio, maps[jnp.argmax(ratio)]) for name, (ratio, maps) in layers.items()}

  parts = _in_parts(net, worst, sampler.sample_ws(net, images, seed))
  layers = {}
  maps = {}
  for name in sorted(parts[0], key=lambda name: (artifacts.resolution(name), name)):
    ratio = np.concatenate([part[name][0] for part in parts])
    layers[name] = {
      'median': float(np.median(ratio)),
      'p95': float(np.quantile(ratio, 0.95)),
      'max': float(ratio.max()),
    }
    # Each part brought only its own worst: maps of all samples wouldn't fit.
    maps[name] = max((part[name][1] for part in parts), key=np.max)
  table = '  '.join(f'{name} {v["median"]:.1f} ({v["p95"]:.1f})' for name, v in layers.items())
  return Measured({'peak_to_median': layers}, table, maps)


# ---- phase


def phase(net: Sampler, images: int, seed: int) -> Measured:
  """Shares of detail that keep to their pixels, along paths and among their unrelated starts.

  The last of the means is the finest octave's less the coarsest's. pictures: the frames of the last
  path, and where the details of all lie modulo 8.
  """

  @jax.jit
  def render(variables, ws):
    pictures = net.generator.apply(variables, ws, 'none', **net.growing, method='synthesize')
    return largest(pictures)

  measure = jax.jit(artifacts.phase)
  ends = sampler.sample_ws(net, 2 * (images // FRAMES), seed)
  shares = []
  energies = []
  starts = []
  # One path after the other: their frames together can be more than the memory of the host.
  for w0, w1 in zip(ends[::2], ends[1::2]):
    ws = ppl.lerp(w0[None], w1[None], jnp.linspace(0, 1, FRAMES))
    frames = np.concatenate(_in_parts(net, render, ws))
    if min(frames.shape[1:3]) < 16:
      raise UsageError(
        f'{net.workdir}: phase needs images of 16 px or more, not {frames.shape[1:3]}'
      )
    share, energy = map(np.float64, measure(frames))
    # The finest less the coarsest, too, of each path: so it has an error of its own.
    shares.append([*share, share[0] - share[-1]])
    energies.append(energy)
    starts.append(frames[0])
  mean = np.mean(shares, 0).tolist()
  error = (np.std(shares, 0, ddof=1) / math.sqrt(len(shares))).tolist()
  unrelated = jax.device_get(measure(np.stack(starts))[0]).tolist()
  octaves = [
    {'period_px': [2 ** (k + 1), 2 ** (k + 2)], 'fixed': mean[k], 'error': error[k], 'unrelated': u}
    for k, u in enumerate(unrelated)
  ]
  energy = np.sum(energies, 0)
  preference, folded = artifacts.grid_preference(energy, 8)
  # No layer repeats every 7 px: what shows there, too, is of the subject and not of the network.
  control, _ = artifacts.grid_preference(energy, 7)
  text = '  '.join(
    '{period_px[0]}-{period_px[1]} px {fixed:.3f} ({unrelated:.3f})'.format(**o) for o in octaves
  )
  numbers = {
    'paths': len(shares),
    'frames': FRAMES,
    'octaves': octaves,
    'excess': mean[-1],
    'excess_error': error[-1],
    'grid_preference': preference,
    'grid_preference_control': control,
  }
  table = f'stays on its pixels (among unrelated images): {text}'
  return Measured(numbers, table, (frames, folded))


KINDS = {
  'contribution': Kind(1024, contribution, figures.contribution),
  'droplets': Kind(256, droplets, figures.droplets),
  'phase': Kind(1024, phase, figures.phase, noise='none'),
}
