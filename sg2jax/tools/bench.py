"""Measures how fast a configuration trains here.

  python -m sg2jax.tools.bench --config=configs/ffhq.py [--rounds=10] [--json=FILE]
  python -m sg2jax.tools.bench --config=configs/ffhq.py --config.data.dir=DIR --input

The four steps and synthesis run interleaved on random images, after compilation and warm-up;
medians are given.

  lazy    images/s of training: 16 minibatches are 16 g + 16 d + 4 g_reg + 1 d_reg (with the
          configured intervals)
  eager   images/s if R1 and path length ran at every minibatch, in separate steps
  FLOP    multiply-adds of the network's layers, times 2; zeros inserted by up-sampling are not
          counted
  peak    matrix multiplication on the same device in the same run, in the dtype of the upper
          resolutions

With --input instead: images/s of reading, decoding, flipping and handing to the devices what the
configuration trains on, in the order of training, of so many minibatches. First from disk (the page
cache is emptied of the data set; only if it has that many images), then once more from memory.
"""

from absl import flags
import jax

from sg2jax import checks, cli
from sg2jax.lab import bench, bench_input
from sg2jax.tools import flags as shared


def define_flags() -> None:
  """The command line."""
  shared.define_config()
  flags.DEFINE_integer('rounds', 10, 'Timed runs of each step, or minibatches.', lower_bound=1)
  flags.DEFINE_bool('input', False, 'Times reading of the data set instead of training.')
  shared.define_json()


def main(_: list[str]) -> None:
  """Prints the figures; writes them to --json."""
  args = flags.FLAGS
  config = args.config
  if not args.input and not config.data.name:
    config.data.name = 'random'  # no data set is read
  checks.check(config)
  checks.check_devices(config, jax.devices())
  if args.input:
    result = bench_input.measure(config, args.rounds)
    print(bench_input.table(result))
  else:
    result = bench.measure(config, args.rounds)
    print(bench.table(config, result))
  shared.write_json(result)


if __name__ == '__main__':
  define_flags()
  cli.run(main)
