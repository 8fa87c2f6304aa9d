"""python -m sg2jax.tools.evaluate --checkpoint=RUN [--metrics=fid50k_full,pr50k3_full,ppl2_wend]
[--data=DATA] [--out=DIR]

Measures a trained generator (moving average of the weights, no truncation) against a data set, by
default that of its run, and writes DIR/<metric>.json with the value, its 95 % interval and all that
it depends on. What needs a network of others (FID, KID, IS, precision and recall, PPL) wants its
weights first: python -m sg2jax.tools.fetch_weights says which and where. Without
--metrics: swd and what the run's configuration names, or else pixelfd50k_full; these two need no
network. All names are in docs/evaluation.md. Stop it any way you like: the same command goes on
where it was.
"""

import pathlib
import sys

from absl import flags
import jax

from sg2jax import build, cli, data, pretrained, sampler, sharding
from sg2jax.evaluation import passes, protocols
from sg2jax.evaluation.measure import Setting, check, measure, table, unfit
from sg2jax.faults import DatasetError, UsageError
from sg2jax.signals import Stop


def define_flags():
  """The command line. Not at import: tools have flags of the same names."""
  flags.DEFINE_string(
    'checkpoint', None, 'Workdir, whose newest checkpoint counts, or one step of it.'
  )
  flags.DEFINE_list('metrics', [], 'Names of metrics, such as fid50k_full,pr50k3_full,ppl2_wend.')
  flags.DEFINE_string('data', '', 'Folder or TFDS name of the data set; default: that of the run.')
  flags.DEFINE_string(
    'holdout', '', 'Folder of a data set that was not trained on, for nn and pixelnn.'
  )
  flags.DEFINE_multi_string(
    'weights',
    [],
    'NAME=PATH of weights elsewhere, or others than the standard ones: inception=FILE.',
  )
  flags.DEFINE_string('out', '', 'Folder of results; default: evaluation/<step> in the workdir.')
  flags.DEFINE_integer(
    'seed', None, 'Of latents, labels, noise and subsets; default: that of the run.'
  )
  flags.DEFINE_integer(
    'batch',
    0,
    'Images at once, over all devices; 0: what suits their size. Results do not depend on it.',
  )


def main(_):
  """Checks, measures, prints."""
  asked = flags.FLAGS
  wanted, explicit = (
    [protocols.parse(name) for name in dict.fromkeys(asked.metrics) if name],
    parse_weights(asked.weights),
  )
  cli.check_checkpoint(asked.checkpoint)
  if asked.batch < 0:
    raise UsageError(f'--batch={asked.batch} must be 0 or more')
  if not 0 <= (asked.seed or 0) < 2**32:
    raise UsageError(f'--seed={asked.seed} must be 0 or more and less than 2^32')
  check(wanted, explicit)
  net = sampler.load(asked.checkpoint)
  wanted = wanted or defaults(net)
  check(wanted, explicit)
  source = load(net, asked.data)
  mesh = sharding.make_mesh()
  seed = net.config.seed if asked.seed is None else asked.seed
  setting = Setting(
    net,
    source,
    mesh,
    out_of(net, asked.out),
    seed,
    asked.batch,
    load(net, asked.holdout, labels=False) if asked.holdout else None,
    explicit,
  )
  print(f'{net.title}, against {len(source)} images of {source.name}', flush=True)
  with Stop() as stop:
    try:
      for document in measure(wanted, setting._replace(stop=stop)):
        print('\n'.join(table(document)), flush=True)
    except passes.Stopped:
      stop.leave(f'what is done is in {setting.out}')
  if jax.process_index() == 0:
    print(f'results in {setting.out}/: {", ".join(f"{p.name}.json" for p in wanted)}')


def defaults(net):
  """The protocols that are measured if none is named: those that can be; names the others. Raises
  UsageError without any.
  """
  found = [
    protocols.parse(name) for name in ('swd', *(net.config.get('metrics') or [protocols.OFFLINE]))
  ]
  reasons = {p: unfit(p, build.resolution(net.config)) for p in found}
  for reason in filter(None, reasons.values()):
    print(f'left out: {reason}', file=sys.stderr)
  if all(reasons.values()):
    raise UsageError(
      f'{net.workdir}: none of the metrics that are measured without --metrics suits its images'
    )
  return [p for p, reason in reasons.items() if not reason]


def out_of(net, given):
  """Folder of the results. Raises UsageError if it is a file."""
  return cli.folder(given or str(net.workdir / 'evaluation' / f'{net.step:08d}'))


def parse_weights(pairs):
  """['inception=FILE', ...] -> {'inception': 'FILE'}. Raises UsageError for anything else."""
  names = list(pretrained.FILES)
  for pair in pairs:
    if '=' not in pair or pair.split('=')[0] not in names:
      raise UsageError(f'--weights={pair} must be NAME=PATH, with a NAME of {", ".join(names)}')
  return dict(pair.split('=', 1) for pair in pairs)


def load(net, given, labels=True):
  """The Source of a data set, by default that of the run. Raises DatasetError, UsageError if its
  labels don't fit.
  """
  config = net.config
  name, folder = given or config.data.name, config.data.dir
  if not (name or folder):
    raise UsageError(
      f'{net.workdir} was imported and names no data set; name one, as in --data=DATA/mine'
    )
  if given and (given.startswith(('/', '.', '~')) or pathlib.Path(given).exists()):
    name, folder = '', given
  source = data.load(
    name, folder, build.resolution(config), config.data.channels, config.data.labels and labels
  )
  if labels and source.c_dim != config.c_dim:
    raise UsageError(
      f'--data={given}: its labels have {source.c_dim} components, and those of the run '
      f'{config.c_dim}; use a data set with the same classes'
    )
  if labels and config.c_dim:
    check_labels(net, source)
  return source


def check_labels(net, source):
  """Raises DatasetError if the labels of a data set mean something else than those of the run, as
  far as both say it.
  """
  ours, theirs = net.labels, source.labels
  known = ours.names or not ours.one_hot  # older and imported runs don't say
  remedy = 'prepare it again with the classes of the run, in their order, or name another --data'
  if known and ours.one_hot != theirs.one_hot:
    kind = lambda labels: 'classes' if labels.one_hot else 'vectors'
    raise DatasetError(
      f'{source.place}: its labels are {kind(theirs)}, and those of the run {kind(ours)}; {remedy}'
    )
  if ours.names and theirs.names and ours.names != theirs.names:
    i = next(i for i, pair in enumerate(zip(ours.names, theirs.names)) if pair[0] != pair[1])
    order = (
      ' (the same names in another order)' if sorted(ours.names) == sorted(theirs.names) else ''
    )
    raise DatasetError(
      f'{source.place}: its class {i} is {theirs.names[i]}, and that of the run '
      f'{ours.names[i]}{order}; {remedy}'
    )


if __name__ == '__main__':
  define_flags()
  cli.run(main)
