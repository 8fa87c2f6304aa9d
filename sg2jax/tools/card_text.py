"""The text of a card: metadata that hubs read, then Markdown for people."""

import hashlib
import json
import math
import re
import shlex
from typing import Any

import jax

import sg2jax
from sg2jax.evaluation import protocols
from sg2jax.sampler import Sampler
from sg2jax.tools import card_facts, card_pictures
from sg2jax.tools.card_facts import Facts

TASK = 'unconditional-image-generation'
MOST_CLASSES = 40  # in the table; of more, the first
_NN = (
  '`farther` is how often a generated picture is farther from it than a held-out one, 0.5 where '
  'they are alike and less for copies; `z` is that in standard deviations'
)
# What the values in a document of `evaluate` are, where the name alone does not say it.
ABOUT = {
  'fid': 'Fréchet inception distance; lower is better',
  'kid': 'kernel inception distance; lower is better',
  'is': 'inception score; higher is better',
  'pr': 'precision and recall by VGG16; higher is better',
  'ppl': 'perceptual path length; lower is smoother',
  'swd': 'sliced Wasserstein distance x 1000; lower is better',
  'pixelfd': 'Fréchet distance of pixels, not FID; lower is better',
  'nn': f'distance to the nearest training picture by VGG16; {_NN}',
  'pixelnn': f'distance to the nearest training picture by pixels, 16 px at most; {_NN}',
}


def write(net: Sampler, facts: Facts, fields: Any, title: str, pictures: dict[str, str]) -> str:
  """The card. Arguments as of `card.make`; pictures: {file: prefix of its name}."""
  named = {
    file.removeprefix(prefix).removesuffix('.png'): file for file, prefix in pictures.items()
  }
  parts = [
    f'---\n{yaml(metadata(net, facts, fields, title))}---\n\n# {_plain(title)}\n',
    _summary(net, facts, fields),
    _samples(net, named),
    _use(net, title),
    _data(net, fields),
    _training(net, facts, named),
    _metrics(facts),
    _neighbours(facts, named),
    _configuration(net, fields),
    _licences(fields),
  ]
  return '\n'.join(filter(None, parts))


# ---- metadata


def metadata(net: Sampler, facts: Facts, fields: Any, title: str) -> dict[str, Any]:
  """What stands above the Markdown, for hubs."""
  tags = ['stylegan2', 'gan', 'jax', 'flax', 'image-generation']
  found = {
    'license': fields.license,
    'library_name': 'sg2jax',
    'pipeline_tag': TASK,
    'tags': tags + (['class-conditional'] if net.config.c_dim else []),
  }
  if data := net.config.get('data_title'):
    found['datasets'] = [_identifier(data)]
  results = []
  for _, document in facts.evaluations:
    data = document['data']['name'] if document.get('data') else net.config.get('data_title')
    kind = protocols.parse(document['metric']).kind
    results.append(
      {
        'task': {'type': TASK},
        'dataset': {'type': _identifier(data or 'unknown'), 'name': data or 'unknown'},
        'metrics': [
          {'type': kind, 'name': name, 'value': float(f'{value:.6g}')}
          for name, value in document['values'].items()
          if math.isfinite(value)
        ],
      }
    )
  if results:  # hubs refuse an index without results
    found['model-index'] = [{'name': title, 'results': results}]
  return found


def yaml(tree: dict | list, indent: str = '') -> str:
  """YAML of dicts and lists; texts and numbers as JSON, which YAML contains."""
  lines = ''
  pairs = tree.items() if isinstance(tree, dict) else [('-', x) for x in tree]
  for name, value in pairs:
    start = f'{indent}-' if name == '-' else f'{indent}{name}:'
    if not isinstance(value, (dict, list)):
      lines += f'{start} {json.dumps(value, ensure_ascii=False)}\n'
    elif name == '-':
      lines += f'{start} {yaml(value, indent + "  ").lstrip()}'
    else:
      lines += f'{start}\n{yaml(value, indent + "  ")}'
  return lines


def _identifier(name):
  return re.sub(r'[^A-Za-z0-9._/-]+', '-', name).strip('-') or 'unknown'


# ---- for people


def _summary(net, facts, fields):
  height, width, channels = _shape(net)
  what = {1: 'grey', 3: 'RGB', 4: 'RGBA'}.get(channels, f'{channels}-channel')
  classes = f', with labels of {net.config.c_dim} components' if net.config.c_dim else ''
  if net.labels and net.labels.one_hot:
    classes = f', of {net.config.c_dim} classes'
  lines = [
    f'A StyleGAN2 generator (Karras et al. 2020, [arXiv 1912.04958](https://arxiv.org/abs/1912.'
    f'04958)), architecture `{net.config.g.architecture}`, for {what} pictures of {width} x '
    f'{height} pixels{classes}.',
    f'Made by {_plain(fields.author)}; checkpoint of step {net.step:,}, after {net.nimg:,} images.',
  ]
  origin = facts.origin
  source = origin.get('source') or origin.get('file') or origin.get('checkpoint')
  if source:
    verb = 'Imported from' if 'source' in origin else 'Training began with the weights of'
    last = re.split(r'[/\\]', source)[-1]
    digest = f' (SHA-256 `{origin["sha256"]}`)' if origin.get('sha256') else ''
    lines.append(f'{verb} `{last}`{digest}.')
  return '\n'.join(lines) + '\n'


def _samples(net, named):
  seeds = card_pictures.COLUMNS * (1 if card_pictures.classes(net) else card_pictures.ROWS)
  return (
    f'## Samples\n\nSeeds 0 to {seeds - 1}, none chosen, with the constant noise maps, at psi 1 '
    f'(no truncation):\n\n![Samples at psi 1]({named["samples"]})\n\n'
    f'The same seeds at psi 0.7:\n\n![Samples at psi 0.7]({named["samples_psi07"]})\n'
  )


def _use(net, where):
  image = net([0])
  digest = hashlib.sha256(image.tobytes()).hexdigest()
  shape = ','.join(map(str, image.shape[1:]))
  chosen = ''
  if rows := card_pictures.classes(net):
    name = net.labels.names[rows[0]] if net.labels.names else rows[0]
    chosen = f'\nof_a_class = net(seeds=range(8), label={name!r})'
  return (
    f'## Use\n\nWith sg2jax {sg2jax.__version__} or later installed; its core is enough.\n\n'
    f'```python\nimport sg2jax\n\nnet = sg2jax.load({where!r})\n'
    f'images = net(seeds=range(8), psi=0.7)  # uint8 [8,{shape}]{chosen}\n```\n\n'
    f'```sh\nsg2jax generate --checkpoint={shlex.quote(where)} --seeds=0-31 --psi=0.7 '
    f'--out=pictures\n```\n\n'
    f'The pixels of seed 0 at psi 1 have SHA-256 `{digest}` on {jax.default_backend()}; other '
    'kinds of machine may differ by 1 of 255.\n'
  )


def _data(net, fields):
  config = net.config
  if not config.get('data_title'):
    return ''
  rows = [
    ('name', _plain(config.data_title)),
    ('SHA-256', f'`{config.data_hash}`'),
    ('pictures', f'{config.data_images:,}'),
    ('licence', fields.data_license),
    ('mirrored', 'yes' if config.data.mirror else 'no'),
  ]
  if config.data.holdout:
    rows.append(('never trained on', f'a share of {config.data.holdout:g}'))
  text = f'## Data\n\n{table(("data set", "value"), rows)}'
  counts = net.labels.class_counts() if net.labels else {}
  if counts:
    shown = [(_plain(name), f'{count:,}') for name, count in list(counts.items())[:MOST_CLASSES]]
    text += f'\nPictures of each class:\n\n{table(("class", "pictures"), shown)}'
    if rest := len(counts) - len(shown):
      text += f'\n{rest:,} more classes are in `labels.json`.\n'
  return text


def _training(net, facts, named):
  if not facts.lines and not facts.starts:
    return ''
  rows = [('images', f'{net.nimg:,}'), ('minibatches', f'{net.step:,}')]
  machines = [
    f'{start["devices"]} x {start["device"]}'
    + (f' in {start["processes"]} processes' if start['processes'] > 1 else '')
    for start in facts.starts
  ]
  if machines:
    rows.append(('devices', '; then '.join(dict.fromkeys(map(_plain, machines)))))
  spent = card_facts.hours(facts)
  if spent:
    rows.append(('time, without stops', _duration(spent)))
  if spent and len(set(machines)) == 1:
    rows.append(('devices x time', _duration(spent * facts.starts[0]['devices'])))
  rows.append(('time in minibatches', _duration(card_facts.training_hours(facts))))
  if facts.starts:
    last = facts.starts[-1]
    rows.append(('started', f'{len(facts.starts)} times' if len(facts.starts) > 1 else 'once'))
    packages = [f'{name} {last[name]}' for name in ('sg2jax', 'jax', 'flax') if name in last]
    rows.append(('software', ', '.join(packages)))
    if last.get('git_commit'):
      rows.append(('commit', f'`{last["git_commit"]}`'))
  picture = f'\n![Curves of the training]({named["curves"]})\n' if 'curves' in named else ''
  return f'## Training\n\n{table(("training", "value"), rows)}{picture}'


def _metrics(facts):
  if not facts.evaluations:
    return '## Metrics\n\nNone were measured of this checkpoint; `sg2jax evaluate` does.\n'
  rows = []
  notes = {}
  for below, document in facts.evaluations:
    data = document.get('data') or {}
    against = f'{document.get("reals", 0):,} of {data["name"]}' if data else ''
    against += f' ({below})' if below else ''
    detector = document['detector']
    detector = detector['name'] + ('' if detector['standard'] else ', not the standard weights')
    for name, value in document['values'].items():
      ends = document['intervals_95'].get(name)
      interval = f'{ends[0]:.4g} to {ends[1]:.4g}' if ends else 'none'
      fakes = f'{document["fakes"]:,}' if 'fakes' in document else ''
      row = (name, f'{value:.4g}', interval, fakes, against, detector, document['seed'])
      rows.append(tuple(map(str, row)))
    kind = protocols.parse(document['metric']).kind
    cover = document.get('intervals_cover')
    notes[document['metric']] = ABOUT[kind] + (f'. Interval: {cover}' if cover else '')
  heads = ('metric', 'value', '95 % interval', 'fakes', 'reals', 'detector', 'seed')
  text = '## Metrics\n\nOf the moving average of the weights, without truncation.\n\n'
  text += table(heads, rows) + '\n'
  return text + ''.join(f'- `{name}`: {note}.\n' for name, note in notes.items())


def _neighbours(facts, named):
  text = ''
  documents = {document['metric']: document for below, document in facts.evaluations if not below}
  for name in facts.pictures:
    median = documents[name]['median_distance']
    text += (
      f'\n`{name}`: the generated pictures that are closest to the data set, each with its nearest '
      f'one to the right. Median distance to the nearest: {median["fakes"]:.3g} for generated, '
      f'{median["held_out"]:.3g} for held-out pictures.\n\n'
      f'![Nearest neighbours]({named[f"neighbours_{name}"]})\n'
    )
  return f'## Nearest neighbours\n{text}' if text else ''


def _configuration(net, fields):
  here = card_facts.settings(net.config)
  base = fields.base
  if not base:
    rows = [(f'`{name}`', _value(value)) for name, value in sorted(here.items())]
    return f'## Configuration\n\n{table(("field", "value"), rows)}'
  rows = [
    (f'`{name}`', _value(base[name]) if name in base else 'not there', _value(value))
    for name, value in sorted(here.items())
    if base.get(name) != value
  ]
  text = f'## Configuration\n\nWhat is not as in `{fields.base_name}`:\n\n'
  return text + (table(('field', 'there', 'here'), rows) if rows else 'nothing.\n')


def _licences(fields):
  return (
    f'## Licences\n\nNetwork: `{fields.license}`. Pictures that it learnt from: '
    f'`{fields.data_license}`.\n'
  )


# ---- Markdown


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
  """A table of GitHub's Markdown."""
  lines = [heads, ['---'] * len(heads), *rows]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def _plain(text):
  """A text from outside on one line, of which Markdown and HTML make nothing else."""
  return re.sub(r'([\\`*_{}\[\]<>|#])', r'\\\1', ' '.join(str(text).split()))


def _duration(hours):
  if hours < 1:
    return f'{60 * hours:.2g} minutes'
  return f'{hours:.2g} hours' if hours < 10 else f'{hours:,.0f} hours'


def _value(value):
  return f'`{json.dumps(value)}`'.replace('|', r'\|')


def _shape(net):
  return (*net.generator.synthesis.resolution, net.config.data.channels)
