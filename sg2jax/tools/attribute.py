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

from collections.abc import Iterator
from functools import partial
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
# Examples on the figure, by their place among the sorted distances. Where few images share places,
# the last of these counts: the ends.
QUANTILES = {'20 %': 0.2, '40 %': 0.4, '60 %': 0.6, '80 %': 0.8, 'closest': 0, 'farthest': 1}
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
  if len(seeds) < LEAST:
    raise UsageError(f'--own has {len(seeds)} seeds, and rates need {LEAST} at least')
  # ---- projections of each group, in a folder of its own
  with Stop() as stop:
    job = projections.read_job(stop)
    out = shared.out_folder(job.net, 'attribution')
    reals = pictures.read_items(asked.reals, job.net, out)
    if len(reals) < LEAST:
      raise UsageError(
        f'--reals={asked.reals} has {len(reals)} pictures, and rates need {LEAST} at least'
      )
    # drawn, and not the first: folders are often sorted by what they show
    chosen = np.sort(np.random.RandomState(asked.seed).permutation(len(reals))[: len(seeds)])
    groups = {'own': own_items(job.net, seeds), 'reals': [reals[i] for i in chosen]}
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
  return [
    pictures.Item(
      f'seed{seed:04d}', f'seed {seed}', partial(np.asarray, image), pictures.image_hash(image)
    )
    for seed, image in zip(seeds, net(seeds, noise='random'))
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
    'images': [
      document | attribute.judge(document['distance'], *both)._asdict()
      for document in documents.get('images', [])
    ],
  }


def table(verdict: dict) -> Iterator[str]:
  """Lines for people."""
  low, high = verdict['auc_interval']
  counts = {name: len(distances) for name, distances in verdict['distances'].items()}
  yield (
    f'{counts["own"]} own images and {counts["reals"]} reals: AUC {verdict["auc"]:.3f} (95 % '
    f'interval {low:.3f} to {high:.3f})'
  )
  yield (
    f'threshold {verdict["threshold"]:.3g}; errors: {verdict["own_missed"]:.1%} of own images '
    f'missed, {verdict["reals_taken_for_own"]:.1%} of reals taken for own'
  )
  for image in verdict['images']:
    said = GROUPS['own'] if image['own'] else 'not of this network'
    yield (
      f'{image["name"]}: {said}; distance {image["distance"]:.3g}, as far {image["p_own"]:.1%} '
      f'of own images, as close {image["p_real"]:.1%} of reals'
    )


def draw(
  job: projections.Job, verdict: dict, documents: dict[str, list[dict]], out: pathlib.Path
) -> Figure:
  """Histograms of the groups, the threshold, examples of targets and results: a Figure."""
  distances = {name: np.maximum(x, 1e-12) for name, x in verdict['distances'].items()}
  caption = (
    f'{job.net.title}; {job.distance.name}, {job.settings.steps} steps; AUC {verdict["auc"]:.3f}; '
    f'errors: {verdict["own_missed"]:.1%} of own missed, {verdict["reals_taken_for_own"]:.1%} of '
    'reals taken for own'
  )
  figure, chart = charts.sheet(
    'Attribution: how close projections come to their targets',
    caption,
    [f'{GROUPS[name]} (target beside what was found)' for name in documents],
    [examples(out / name, group) for name, group in documents.items()],
    list(COLUMNS),
    cmap='gray',
    vmin=0,
    vmax=255,
  )
  charts.plain(
    chart, 'y', 'images per bin of distance (line: threshold; triangles: images in question)'
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
  chart.set_xlabel(f'distance: {job.distance.name}')
  chart.legend(frameon=False, loc='lower right', bbox_to_anchor=(1, 0.99), ncols=3)
  return figure


def examples(folder: pathlib.Path, documents: list[dict]) -> dict[str, np.ndarray]:
  """{column: target beside what was found, uint8 [h,w] or [h,w,3]}, no image twice."""
  ordered = sorted(documents, key=lambda document: document['distance'])
  titles = {round(share * (len(ordered) - 1)): title for title, share in QUANTILES.items()}
  return {
    title: np.asarray(Image.open(folder / f'{ordered[i]["name"]}.png'))
    for i, title in titles.items()
  }


if __name__ == '__main__':
  define_flags()
  cli.run(main)
