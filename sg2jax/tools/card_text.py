"""The text of a card: metadata that hubs read, then Markdown for people."""

import hashlib
import json
import math
import re
import shlex
from typing import Any

import jax

import sg2jax
from sg2jax.evaluation import reals
from sg2jax.sampler import Sampler
from sg2jax.tools import card_facts, card_pictures
from sg2jax.tools.card_facts import Facts

TASK = 'unconditional-image-generation'
MOST_CLASSES = 40  # in the table; of more, the first
# What distances are compared with, by what `evaluate` calls it.
LEFT_OUT = {
  'holdout': 'pictures that were held out',
  'each real in turn, out of the others': 'each picture of the data set, left out of it in turn',
}
_NN = (
  '`farther` is how often a generated picture is farther from it than {left_out}, 0.5 where they '
  'are alike and less for copies; `z` is that in standard deviations'
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
  'nn': f'distance to the nearest real picture by VGG16; {_NN}',
  'pixelnn': f'distance to the nearest real picture by pixels, 16 px at most; {_NN}',
}


# What a name on a curve is that nothing else on the card says.
CURVES = {
  'r_t': 'mean sign of what D says of real pictures, 1 where it knows them all by heart',
  'augment_p': 'how likely each augmentation is',
}


def write(
  net: Sampler, facts: Facts, fields: Any, title: str, where: str, pictures: dict[str, str]
) -> str:
  """The card. Arguments as of `card.make`; pictures: {file: prefix of its name}."""
  named = {
    file.removeprefix(prefix).removesuffix('.png'): file for file, prefix in pictures.items()
  }
  parts = [
    f'---\n{yaml(metadata(net, facts, fields, title))}---\n\n# {_plain(title)}\n',
    _summary(net, facts, fields),
    _samples(net, facts, named),
    _use(net, facts, where),
    _data(net, facts, fields),
    _training(net, facts, named),
    _metrics(facts),
    _neighbours(facts, named),
    _configuration(net, facts, fields),
    _licences(fields),
  ]
  return '\n'.join(filter(None, parts))


# ---- metadata


def metadata(net: Sampler, facts: Facts, fields: Any, title: str) -> dict[str, Any]:
  """What stands above the Markdown, for hubs: names as in huggingface/hub-docs, modelcard.md."""
  tags = ['stylegan2', 'gan', 'jax', 'flax', 'image-generation']
  found = {'license': fields.license}
  if fields.license_name:
    found |= {'license_name': fields.license_name, 'license_link': fields.license_link}
  found |= {
    'library_name': 'sg2jax',
    'pipeline_tag': TASK,  # also of a class: hubs have no other task for it
    'tags': tags + (['class-conditional'] if net.config.c_dim else []),
  }
  # A hub links it, and under the name that a folder had here there may be somebody else's pictures.
  if fields.data_id:
    found['datasets'] = [fields.data_id]
  if results := _results(net, facts, fields):  # hubs refuse an index without results
    found['model-index'] = [{'name': title, 'results': results}]
  return found


def _results(net, facts, fields):
  """What a hub takes of metrics: by data set."""
  found = {}
  for x in facts.measured:
    is_own = x.below in reals.PARTS or x.data_hash == net.config.get('data_hash')
    name = x.data or 'unknown'
    data = {'type': is_own and fields.data_id or _identifier(name), 'name': name}
    if x.below in reals.PARTS:
      data['split'] = x.below
    result = {'task': {'type': TASK}, 'dataset': data, 'metrics': []}
    metrics = found.setdefault((x.data_hash, x.below), result)['metrics']
    for name, value in x.values.items():
      if math.isfinite(value):  # the others are no JSON, and no scores
        metrics.append({'type': x.kind, 'name': name, 'value': float(f'{value:.6g}')})
  return [result for result in found.values() if result['metrics']]


def yaml(tree: dict | list, indent: str = '') -> str:
  """YAML of dicts and lists; texts and numbers as JSON, which YAML contains but for what can't be
  printed.
  """
  lines = ''
  pairs = tree.items() if isinstance(tree, dict) else [('-', x) for x in tree]
  for name, value in pairs:
    start = f'{indent}-' if name == '-' else f'{indent}{name}:'
    if not value or not isinstance(value, (dict, list)):
      value = _printable(value) if isinstance(value, str) else value
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
  height, width = net.generator.synthesis.resolution
  channels = net.config.data.channels
  what = {1: 'grey', 3: 'RGB', 4: 'RGBA'}.get(channels, f'{channels}-channel')
  lines = [
    f'A StyleGAN2 generator (Karras et al. 2020, [arXiv 1912.04958](https://arxiv.org/abs/1912.'
    f'04958)), architecture `{net.config.g.architecture}`, for {what} pictures of {width} x '
    f'{height} pixels{_of_labels(net, facts)}.'
  ]
  if net.grows:
    level = net.growing['stage']
    alpha = net.growing.get('alpha')
    fading = '' if alpha is None else f', the last of them faded in by {alpha:.2g}'
    lines.append(
      f'It is growing: it has learnt {width >> level} x {height >> level} pixels so far{fading}.'
    )
  lines += [f'Made by {_plain(fields.author)}.', *_origin(net, facts)]
  return ' '.join(lines) + '\n'


def _of_labels(net, facts):
  count = net.config.c_dim
  if not count:
    return ''
  if facts.labels and facts.labels.one_hot:
    return f', of {count:,} classes'
  meaning = '' if facts.labels else ', of which nothing says what they mean'
  return f', with labels of {count:,} components{meaning}'


def _origin(net, facts):
  """Sentences on where the weights are from."""
  if made := facts.made_from:
    yield (
      f'Fine-tuned for a text (StyleGAN-NADA, Gal et al. 2021, [arXiv 2108.00946](https://arxiv.org'
      f'/abs/2108.00946)) in {net.step:,} steps, from "{_plain(made["source"])}" to '
      f'"{_plain(made["target"])}" by CLIP {_plain(made["clip"])}, of a network with SHA-256 '
      f'`{_code(made["network"])}`.'
    )
  elif net.nimg:  # files of others don't tell
    yield f'Checkpoint of step {net.step:,}, after {net.nimg:,} images.'
  if facts.imported:
    name, digest = facts.imported
    yield f'Imported from `{_code(name)}` (SHA-256 `{_code(digest)}`).'
  if facts.began_with:
    name, copied, drawn = facts.began_with
    yield (
      f'Training began with the weights of `{_code(name)}`: {copied:,} arrays of them, and '
      f'{drawn:,} drawn anew.'
    )


def _samples(net, facts, named):
  rows = card_pictures.classes(net)
  seeds = card_pictures.COLUMNS * (1 if rows else card_pictures.ROWS)
  each = f', a row for {_which_rows(net, facts, len(rows))}' if rows else ''
  return (
    f'## Samples\n\nSeeds 0 to {seeds - 1}, none chosen{each}, with the constant noise maps, at '
    f'psi 1 (no truncation):\n\n![Samples at psi 1]({named["samples"]})\n\n'
    f'The same seeds at psi 0.7:\n\n![Samples at psi 0.7]({named["samples_psi07"]})\n'
  )


def _which_rows(net, facts, rows):
  """What each row of samples shows."""
  one, several = ('class', 'classes') if facts.labels else ('component of the label', 'components')
  present = len(net.labels.values)
  having = '' if present == net.config.c_dim else ' of which there are pictures'
  return f'each of the first {rows} {several}{having}' if rows < present else f'each {one}{having}'


def _use(net, facts, where):
  image = net([0])
  digest = hashlib.sha256(image.tobytes()).hexdigest()
  shape = ','.join(map(str, image.shape[1:]))
  chosen = ''
  rows = card_pictures.classes(net)
  if rows and facts.labels:
    names = facts.labels.names
    name = names[rows[0]] if names else rows[0]
    chosen = f'\nof_a_class = net(seeds=range(8), label={name!r})'
  where = _printable(where)
  return (
    f'## Use\n\nWith sg2jax {sg2jax.__version__} or later installed; its core is enough.\n\n'
    f'```python\nimport sg2jax\n\nnet = sg2jax.load({where!r})\n'
    f'images = net(seeds=range(8), psi=0.7)  # uint8 [8,{shape}]{chosen}\n```\n\n'
    f'```sh\nsg2jax generate --checkpoint={shlex.quote(where)} --seeds=0-31 --psi=0.7 '
    f'--out=pictures\n```\n\n'
    f'The pixels of seed 0 at psi 1 have SHA-256 `{digest}` on {jax.default_backend()}; other '
    'kinds of machine may differ by 1 of 255.\n'
  )


def _data(net, facts, fields):
  config = net.config
  if not config.get('data_title'):
    return ''
  rows = [
    ('name', _plain(config.data_title)),
    ('hash', f'`{_code(config.get("data_hash", "unknown"))}`'),
    ('licence', fields.data_license),
    ('mirrored', 'yes' if config.data.mirror else 'no'),
  ]
  if images := config.get('data_images'):
    rows.insert(2, ('pictures trained on', f'{images:,}'))
  if config.data.holdout:
    rows.append(('never trained on', f'besides these, a share of {config.data.holdout:g}'))
  text = '## Data\n\n'
  if facts.made_from:
    text += 'Of the network that was fine-tuned; the fine-tuning saw no pictures.\n\n'
  text += table(('data set', 'value'), rows)
  counts = facts.labels.class_counts() if facts.labels else {}
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
  machines = list(dict.fromkeys(start.machine for start in facts.starts))
  if machines:
    rows.append(('devices', '; then '.join(map(_plain, machines))))
  if spent := card_facts.hours(facts):
    rows.append(('time, without stops', _duration(spent)))
    if len(machines) == 1:
      rows.append(('devices x time', _duration(spent * facts.starts[0].devices)))
  if facts.lines:
    rows.append(('time in minibatches', _duration(card_facts.training_hours(facts))))
  if facts.starts:
    last = facts.starts[-1]
    rows.append(('started', f'{len(facts.starts)} times' if len(facts.starts) > 1 else 'once'))
    rows.append(('software', _plain(last.packages)))
    if last.commit:
      rows.append(('commit', f'`{_code(last.commit)}`'))
  picture = ''
  if 'curves' in named:
    shown = {name for panel in card_pictures.panels(facts) for name in panel}
    said = [f' `{name}`: {what}.' for name, what in CURVES.items() if name in shown]
    said = ''.join(['By thousands of images.', *said])
    picture = f'\n{said}\n\n![Curves of the training]({named["curves"]})\n'
  return f'## Training\n\n{table(("training", "value"), rows)}{picture}'


def _metrics(facts):
  if not facts.measured:
    return '## Metrics\n\nNone were measured of this checkpoint; `sg2jax evaluate` does.\n'
  rows = []
  notes = []
  for x in facts.measured:
    against = ''
    if x.reals:
      against = f'{x.reals:,} of {_plain(x.data)}'
      if x.below and x.below != 'holdout':  # the name tells of that
        against += f' ({_plain(x.below)})'
    for name, value in x.values.items():
      ends = x.intervals.get(name)
      interval = f'{ends[0]:.4g} to {ends[1]:.4g}' if ends else 'none'
      row = (name, f'{value:.4g}', interval, f'{x.fakes:,}', against, _plain(x.detector))
      rows.append((*row, str(x.seed)))
    about = ABOUT[x.kind].format(left_out=LEFT_OUT.get(x.left_out, _plain(x.left_out)))
    notes.append(f'- `{x.metric}`: {about}. Interval: {_plain(x.covers)}.\n')
  heads = ('metric', 'value', '95 % interval', 'fakes', 'reals', 'detector', 'seed')
  text = '## Metrics\n\nOf the moving average of the weights, without truncation.\n\n'
  return f'{text}{table(heads, rows)}\n' + ''.join(dict.fromkeys(notes))


def _neighbours(facts, named):
  text = ''
  for x in facts.measured:
    if x.picture:
      left_out = LEFT_OUT.get(x.left_out, _plain(x.left_out))
      text += (
        f'\n`{x.metric}`: the generated pictures that are closest to the data set, each with its '
        f'nearest one to the right. Median distance to the nearest: {x.medians[0]:.3g} for '
        f'generated pictures, {x.medians[1]:.3g} for {left_out}.\n\n'
        f'![Nearest neighbours]({named[f"neighbours_{x.metric}"]})\n'
      )
  return f'## Nearest neighbours\n{text}' if text else ''


def _configuration(net, facts, fields):
  here = card_facts.settings(net.config)
  base = fields.base
  # What follows from the name of a pipeline; without a base all is shown.
  implied = card_facts.of_pipeline(net.config) if base else {}
  here = {name: x for name, x in here.items() if name in base or implied.get(name) != x}
  text = '## Configuration\n\n'
  if not facts.is_trained_here:
    before = 'before the fine-tuning ' if facts.made_from else ''
    text += f'Of the network; what it was trained with {before}is not known here.\n\n'
    here = {name: x for name, x in here.items() if name.startswith(card_facts.OF_NETWORK)}
  if not base:
    rows = [(f'`{name}`', _value(value)) for name, value in sorted(here.items())]
    return text + table(('field', 'value'), rows)
  rows = [
    (f'`{name}`', _value(base[name]) if name in base else 'not there', _value(value))
    for name, value in sorted(here.items())
    if base.get(name) != value
  ]
  text += f'What is not as in `{_code(fields.base_name)}`:\n\n'
  return text + (table(('field', 'there', 'here'), rows) if rows else 'nothing.\n')


def _licences(fields):
  network = f'`{fields.license}`'
  if fields.license_name:
    network = f'[{fields.license_name}]({fields.license_link})'
  return (
    f'## Licences\n\nNetwork: {network}. Pictures that it learnt from: `{fields.data_license}`.\n'
  )


# ---- Markdown


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
  """A table of GitHub's Markdown."""
  lines = [heads, ['---'] * len(heads), *rows]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def _plain(text):
  """A text from outside on one line, of which Markdown and HTML make nothing else."""
  return re.sub(r'([\\`*_{}\[\]<>|#$])', r'\\\1', _printable(' '.join(str(text).split())))


def _code(text):
  """A text from outside, to stand between `s."""
  return re.sub(r'[`|]', '', _printable(str(text)))


def _printable(text):
  """A text without what neither YAML nor UTF-8 has, such as bytes of a file name that is none."""
  return ''.join(x for x in text if x.isprintable() or x in '\n\t')


def _duration(hours):
  if hours < 1 / 60:
    return f'{3600 * hours:.2g} seconds'
  if hours < 1:
    return f'{60 * hours:.2g} minutes'
  return f'{hours:.2g} hours' if hours < 10 else f'{hours:,.0f} hours'


def _value(value):
  text = json.dumps(value).replace('`', r'\u0060').replace('|', r'\|')
  return f'`{text}`'
