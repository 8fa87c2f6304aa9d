"""Says what a run will cost on a device, before anything runs: memory, time, days.

  python -m sg2jax.tools.plan --config=configs/ffhq.py --device=v5e:4x4 [--largest] [--json=FILE]
  python -m sg2jax.tools.plan --config=configs/ffhq.py --device=h100 --devices=8

The four steps are compiled for the device, which need not be here; nothing runs, and no data set is
read. That takes a minute for GPUs, and for TPUs minutes a step; what was compiled once is kept in
the cache. --device is

  local                  the devices of this process, by default
  h100, a100, l4         GPUs, --devices of them (1)
  v4:2x2x2, v5e:4x4 ...  slices of TPUs, in chips (v4, v5e, v5p, v6e)

All but local need compilers: pip install -r requirements-plan.txt.

  roofline   a lower bound: of each kernel the larger of bytes / bandwidth and FLOP / peak
  model      the compiler's own estimate: on TPUs of all, on GPUs of fusions, with the roofline for
             cuDNN's convolutions and cuBLAS's products
  memory     arguments, temporaries and results of the largest step, of what a process can have: on
             GPUs the share that JAX takes, 75 % or XLA_PYTHON_CLIENT_MEM_FRACTION. Of GPUs that
             aren't here, cuDNN's workspace is not in it

Networks that grow are planned as in their last stage, where a run spends most of its time.
"""

from absl import flags

from sg2jax import checks, cli
from sg2jax.planning import devices, plan
from sg2jax.tools import flags as shared


def define_flags() -> None:
  """The command line."""
  shared.define_config()
  choices = ', '.join(devices.choices())
  flags.DEFINE_string('device', 'local', f'What to plan for: {choices}.')
  flags.DEFINE_integer('devices', 0, 'How many GPUs; 0: one, of local all.', lower_bound=0)
  flags.DEFINE_bool(
    'largest', False, 'Look for the largest batch and microbatch that fit; compiles about 25 more.'
  )
  shared.define_json()


def main(_: list[str]) -> None:
  """Prints the plan, with a line for each step as it is compiled; writes it to --json."""
  args = flags.FLAGS
  config = args.config
  if not config.data.name:
    config.data.name = 'random'  # no data set is read
  checks.check(config)
  target, found = devices.resolve(devices.parse(args.device, args.devices))
  checks.check_devices(config, found)
  result = plan.make(config, target, found, args.largest, lambda line: print(line, flush=True))
  print(f'\n{plan.table(config, result)}')
  shared.write_json(result)


if __name__ == '__main__':
  define_flags()
  cli.run(main)
