"""Says what is well and what is not on this machine, with a remedy each; changes nothing.

  python -m sg2jax.tools.doctor [--workdir=RUN] [--data=DIR] [--config=FILE --config.FIELD=VALUE]

One line a finding: ok, note (may be as it is) or problem (will stop a command). Looked at are
versions and extras, devices, memory, disk, the cache, the weights of other people's networks; with
--workdir a run: whether it is in use, its newest whole checkpoint, the room for the next ones; with
--data a data set; with --config what training with it needs. Nothing is downloaded, and a device or
disk that hangs is a finding. Exits with 0 if there is no problem, else with 2, or with the code
that the command would end with.
"""

from functools import partial
import os
import pathlib
import sys

from absl import flags

from sg2jax import cli
from sg2jax.tools import doctor_findings, doctor_machine, doctor_run


def take_config(argv: list[str]) -> tuple[list[str], list[str]]:
  """(what isn't of --config, what is): it is read later, as a broken one is a finding, too."""
  rest = []
  taken = []
  is_value = False
  for argument in argv:
    name = argument.lstrip('-').partition('=')[0]
    is_config = argument.startswith('-') and (name == 'config' or name.startswith('config.'))
    (taken if is_config or is_value else rest).append(argument)
    is_value = is_config and '=' not in argument
  return rest, taken


def define_flags() -> None:
  """The command line."""
  flags.DEFINE_string('workdir', '', 'Directory of a run, to look at or to begin.')
  flags.DEFINE_string('data', '', 'Folder of a data set, as `prepare` writes it.')
  flags.DEFINE_string(
    'config', '', 'A configuration, with --config.FIELD=VALUE as for training, to look at.'
  )


def main(_: list[str], config: list[str] = ()) -> None:
  """Prints the findings, each as it is found.

  Args:
    config: the arguments of `take_config`.
  """
  args = flags.FLAGS
  config = list(config) or ([f'--config={args.config}'] if args.config else [])
  everything = []
  has_ended = True

  def show(subject, function, *arguments):
    nonlocal has_ended
    found, ended = doctor_findings.look(subject, partial(function, *arguments))
    has_ended = has_ended and ended
    everything.extend(found)
    for finding in found:
      print(finding.line(), flush=True)

  show('packages', doctor_machine.packages)
  devices, error = doctor_machine.jax_devices()
  show('devices', doctor_machine.devices, devices, error)
  show('memory', doctor_machine.memory)
  show('temporary files', doctor_machine.temporary)
  show('cache', doctor_machine.cache)
  show('weights', doctor_machine.weights)
  if args.workdir:
    show('workdir', doctor_run.workdir, args.workdir)
  else:
    show('here', doctor_machine.disk, 'here', pathlib.Path('.'), 'cd to another place')
  if args.data:
    show('data', doctor_run.data, args.data)
  if config and devices:
    show('configuration', doctor_run.configuration, config, devices, args.workdir)
  elif config:
    # JAX would be loaded into this process, where what it does can't be ended.
    show('configuration', _not_looked_at)
  count = {x: sum(f.level == x for f in everything) for x in ('problem', 'note')}
  print(f'\n{count["problem"]} problem(s), {count["note"]} note(s)', flush=True)
  code = doctor_findings.exit_code(everything)
  if not has_ended:
    os._exit(code)  # what hangs is still in a thread, and may keep Python from ending
  if code:
    sys.exit(code)


def _not_looked_at():
  yield doctor_findings.note('configuration: not looked at', 'mend JAX first')


if __name__ == '__main__':
  sys.argv[1:], of_config = take_config(sys.argv[1:])
  define_flags()
  cli.run(partial(main, config=of_config))
