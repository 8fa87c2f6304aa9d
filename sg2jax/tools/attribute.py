"""Tells whether a network made an image, by how close its projection comes.

python -m sg2jax.tools.attribute --checkpoint=RUN --reals=FOLDER [--images=FILE-OR-FOLDER]
[--own=0-49] [--out=DIR]

A network finds its own images again more exactly than photographs. So this projects (as
sg2jax.tools.project does, with the same flags) images that the network makes now, from the seeds
--own, as many reals that it was not trained on, from --reals, and the images in question.
DIR/attribution.png shows how far the two groups lie apart, DIR/attribution.json has the error
rates, and for each image in question its distance and the decision; DIR/own, DIR/reals and
DIR/images hold the projections. Without --images it says how well the network's images can be told
from reals at all. Without the weights of LPIPS take --distance=pyramid. Stop it any way you like:
the same command goes on where it was.
"""

import json
import pathlib

from absl import flags
from matplotlib.figure import Figure
import numpy as np
from PIL import Image

from sg2jax import charts, cli, files
from sg2jax.edit import attribute
from sg2jax.faults import UsageError
from sg2jax.sampler import Sampler
from sg2jax.signals import Stop
from sg2jax.tools import flags as shared
from sg2jax.tools import pictures, projections

LEAST = 10  # images of each group, for rates to mean anything
GROUPS = {'own': "the network's own", 'reals': 'reals', 'images': 'in question'}
# Examples on the figure, by their place among the sorted distances.
COLUMNS = ('closest', '20 %', '40 %', '60 %', '80 %', 'farthest')


def define_flags() -> None:
  """The command line."""
  projections.define_flags()
  shared.define_out('attribution')
  flags.DEFINE_string('images', '', 'Picture in question, or folder of them.')
  flags.DEFINE_string('reals', None, 'Folder of pictures that the network was not trained on.')
  shared.define_required('reals', 'name a folder of pictures that the network was not trained on')
  shared.define_seeds('own', '0-49', "Seeds of the network's own images; as many reals are taken.")


def main(_: list[str]) -> None:
  """Checks, projects, judges, prints."""
  asked = flags.FLAGS
  seeds = list(dict.fromkeys(asked.own))
  # ---- projections of each group, in a folder of its own
  with Stop() as stop:
    job = projections.read_job(stop)
    out = shared.out_folder(job.net, 'attribution')
    groups = {
      'own': own_items(job.net, seeds),
      'reals': pictures.read_items(asked.reals, job.net, out, len(seeds), asked.seed),
    }
    if min(map(len, groups.values())) < LEAST:
      counts = f'--own has {len(seeds)} seeds, --reals {len(groups["reals"])} pictures'
      raise UsageError(f'{counts}; rates need {LEAST} at least of both')
    if asked.images:
      groups['images'] = pictures.read_items(asked.images, job.net, out)
    documents = {
      name: projections.project_all(job, items, out / name, f'{GROUPS[name]}: ')
      for name, items in groups.items()
    }
  # ---- what they say
  verdict = judge(documents) | {'about': job.about, 'seeds': seeds}
  files.write_atomic(out / 'attribution.json', json.dumps(verdict, indent=1))
  files.write_atomic(out / 'attribution.png', charts.png(draw(job, verdict, documents, out)))
  print('\n'.join([job.net.title, *table(verdict), f'results in {out}/']))


def own_items(net: Sampler, seeds: list[int]) -> list[pictures.Item]:
  """Images of seeds, with random noise and labels."""
  images = net(seeds, noise='random')
  return [
    pictures.Item(f'seed{seed:04d}', f'seed {seed}', image) for seed, image in zip(seeds, images)
  ]


def judge(documents: dict[str, list[dict]]) -> dict:
  """What attribution.json says, of {group: documents of projections}."""
  distances = {name: [d['distance'] for d in group] for name, group in documents.items()}
  both = distances['own'], distances['reals']
  missed, false = attribute.error_rates(*both)
  return {
    'auc': attribute.auc(*both),
    'auc_interval': attribute.auc_interval(*both),
    'threshold': attribute.threshold(*both),
    'own_missed': missed,
    'reals_taken_for_own': false,
    'distances': distances,
    'images': [d | attribute.judge(d['distance'], *both) for d in documents.get('images', [])],
  }


def table(verdict: dict) -> list[str]:
  """Lines for people: two of both groups, and one of each image in question."""
  low, high = verdict['auc_interval']
  distances = verdict['distances']
  lines = [
    f'{len(distances["own"])} own images and {len(distances["reals"])} reals: AUC '
    f'{verdict["auc"]:.3f} (95 % interval {low:.3f} to {high:.3f})',
    f'threshold {verdict["threshold"]:.3g}; errors: {verdict["own_missed"]:.1%} of own images '
    f'missed, {verdict["reals_taken_for_own"]:.1%} of reals taken for own',
  ]
  for image in verdict['images']:
    said = GROUPS['own'] if image['own'] else 'not of this network'
    lines.append(
      f'{image["name"]}: {said}; distance {image["distance"]:.3g}, as far {image["p_own"]:.1%} '
      f'of own images, as close {image["p_real"]:.1%} of reals'
    )
  return lines


def draw(
  job: projections.Job, verdict: dict, documents: dict[str, list[dict]], out: pathlib.Path
) -> Figure:
  """Histograms of the groups, the threshold, examples of targets and results: a Figure."""
  distances = {name: np.maximum(x, 1e-12) for name, x in verdict['distances'].items()}
  caption = '\n'.join([f'{job.net.title}, {job.about["steps"]} steps', *table(verdict)[:2]])
  figure, chart = charts.sheet(
    'Attribution: how close projections come to their targets',
    caption,
    'images per bin of distance (line: threshold; triangles: images in question)',
    [f'{GROUPS[name]} (target beside what was found)' for name in documents],
    [examples(out / name, group) for name, group in documents.items()],
    list(COLUMNS),
    cmap='gray',
    vmin=0,
    vmax=255,
  )
  # ---- histograms, with bins of equal width on a logarithmic axis
  everything = np.concatenate(list(distances.values()))
  bins = np.geomspace(everything.min() / 1.05, everything.max() * 1.05, 33)
  for name, colour in zip(('own', 'reals'), charts.COLOURS):
    chart.hist(distances[name], bins, color=colour, alpha=0.6, label=GROUPS[name])
  chart.axvline(verdict['threshold'], color=charts.INK, linestyle='dashed')
  if 'images' in distances:
    at = distances['images']
    style = {'color': charts.COLOURS[2], 'markersize': 9, 'clip_on': False}
    chart.plot(at, np.zeros_like(at), '^', label=GROUPS['images'], **style)
  chart.set_xscale('log')
  chart.yaxis.get_major_locator().set_params(integer=True)
  chart.set_xlabel(f'distance: {job.about["distance"]}')
  chart.legend(frameon=False, loc='lower right', bbox_to_anchor=(1, 0.99), ncols=3)
  return figure


def examples(folder: pathlib.Path, documents: list[dict]) -> dict[str, np.ndarray]:
  """{column: target beside what was found, uint8 [h,w] or [h,w,3]}, no image twice."""
  ordered = sorted(documents, key=lambda document: document['distance'])
  places = np.linspace(0, len(ordered) - 1, len(COLUMNS)).round().astype(int)
  # Where few images share places, the ends count.
  columns = dict(zip(places.tolist(), COLUMNS)) | {0: COLUMNS[0]}
  return {
    column: np.asarray(Image.open(folder / f'{ordered[i]["name"]}.png'))
    for i, column in columns.items()
  }


if __name__ == '__main__':
  define_flags()
  cli.run(main)
