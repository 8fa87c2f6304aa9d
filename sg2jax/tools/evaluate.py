"""Measures a trained generator against a data set: FID, KID, PPL, SWD and others.

  python -m sg2jax.tools.evaluate --checkpoint=RUN [--metrics=fid50k_full,pr50k3_full,ppl2_wend]
      [--data=DATA] [--out=DIR]

Takes the moving average of the weights, without truncation, and by default the data set of the run:
of a run with data.holdout the pictures that it trains on, and --part=holdout the others.
Writes DIR/<metric>.json with the value, its 95 % interval and all that it depends on; without --out
what is measured against other pictures goes to a folder of its own. What needs a network of
others (FID, KID, IS, precision and recall, PPL) wants its weights first: python -m
sg2jax.tools.fetch_weights says which and where. Without --metrics: swd and what the run's
configuration names, or else pixelfd50k_full; these two need no network. All names are in
docs/evaluation.md. Stop it any way you like: the same command goes on where it was.
"""

from functools import partial
import sys

from absl import flags

from sg2jax import build, cli, processes, sampler, sharding
from sg2jax.evaluation import measure, passes, protocols, reals
from sg2jax.evaluation.protocols import Protocol
from sg2jax.faults import UsageError
from sg2jax.signals import Stop
from sg2jax.tools import flags as shared


def define_flags() -> None:
  """The command line."""
  shared.define_processes()
  shared.define_checkpoint()
  flags.DEFINE_list('metrics', [], 'Names of metrics, such as fid50k_full,pr50k3_full,ppl2_wend.')
  flags.DEFINE_string('data', '', 'Folder or TFDS name of the data set; default: that of the run.')
  what = (
    'Of a data set that data.holdout divides: what was trained on, the rest, or all. Default: '
    'training; of --data, all.'
  )
  flags.DEFINE_enum('part', None, reals.PARTS, what)
  flags.DEFINE_string(
    'holdout',
    '',
    'Folder of a data set that was not trained on, for nn and pixelnn; default: what the '
    "run's data.holdout kept aside.",
  )
  shared.define_weights('inception=FILE')
  shared.define_out(
    'evaluation', anywhere=True, below='[/<PART>, or name and hash of another data set]'
  )
  shared.define_seed('Of latents, labels, noise and subsets; default: that of the run.', None)
  shared.define_batch()


def main(_: list[str]) -> None:
  """Checks, measures, prints."""
  args = flags.FLAGS
  explicit = shared.weights_paths()
  wanted = [protocols.parse(name) for name in dict.fromkeys(args.metrics) if name]
  # Before the network is read: that may take long, and a wrong flag is said at once.
  processes.together(partial(measure.check, wanted, explicit))
  net = processes.together(partial(sampler.load, args.checkpoint))
  if not wanted:
    wanted = defaults(net)
  part = args.part or ''
  source = processes.together(partial(reals.load, net, args.data, part=part))
  processes.check_same('--data', {'hash': source.hash, 'images': len(source)})
  holdout = source.held_out
  if args.holdout:
    holdout = processes.together(partial(reals.load, net, args.holdout, labels=False))
    processes.check_same('--holdout', {'hash': holdout.hash, 'images': len(holdout)})
  setting = measure.Setting(
    net,
    source,
    sharding.make_mesh(),
    processes.together(
      # Beside the run's own results, not over them.
      partial(
        shared.out_folder,
        net,
        'evaluation',
        anywhere=True,
        below=reals.subfolder(net, source, args.data, part),
      )
    ),
    net.config.seed if args.seed is None else args.seed,
    args.batch,
    holdout,
    explicit,
  )
  if processes.is_first():
    print(f'{net.title}, against {len(setting.source)} images of {setting.source.name}', flush=True)
  with Stop() as stop:
    try:
      for document in measure.measure(wanted, setting._replace(stop=stop)):
        if processes.is_first():
          print('\n'.join(measure.table(document)), flush=True)
    except passes.Stopped:
      processes.heard(stop)  # another process may have heard of it first
      stop.leave(f'what is done is in {setting.out}')
  if processes.is_first():
    print(f'results in {setting.out}/: {", ".join(f"{p.name}.json" for p in wanted)}')


def defaults(net: sampler.Sampler) -> list[Protocol]:
  """What is measured if nothing is named: swd and the run's own, or what needs no network.

  Names those that don't suit its images. Raises UsageError if none does.
  """
  names = ['swd', *(net.config.get('metrics') or [protocols.OFFLINE])]
  found = [protocols.parse(name) for name in names]
  reasons = [measure.unfit(p, build.resolution(net.config)) for p in found]
  for reason in filter(None, reasons):
    print(f'left out: {reason}', file=sys.stderr)
  if all(reasons):
    raise UsageError(
      f'{net.workdir}: none of the metrics that are measured without --metrics suits its images'
    )
  return [p for p, reason in zip(found, reasons) if not reason]


if __name__ == '__main__':
  define_flags()
  cli.run(main)
