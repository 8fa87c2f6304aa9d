"""python -m sg2jax.tools.bench --config=configs/ffhq.py [--json=FILE]: how fast a configuration
trains here.

The four steps and synthesis run interleaved on random images, after compilation and warm-up;
medians are given.
  lazy      images/s of training: 16 minibatches are 16 g + 16 d + 4 g_reg + 1 d_reg (with the
  configured intervals) eager     images/s if R1 and path length ran at every minibatch, in separate
  steps FLOP      multiply-adds of the network's layers, times 2; zeros inserted by up-sampling are
  not counted peak      matrix multiplication on the same device in the same run, in the dtype of
  the upper resolutions
"""

import json
import pathlib
import statistics
import time

from absl import flags
import jax
import jax.numpy as jnp
from ml_collections import config_flags
import numpy as np

from sg2jax import build, cli, files, sharding
from sg2jax.faults import UsageError
from sg2jax.models.stylegan2 import block_sizes

CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Configuration; any field: --config.FIELD=VALUE.'
)
ROUNDS = flags.DEFINE_integer('rounds', 10, 'Timed runs of each step.')
JSON = flags.DEFINE_string('json', None, 'File to write the figures to.')


def main(_):
  """Prints the figures; writes them to --json."""
  config = CONFIG.value
  if ROUNDS.value < 1:
    raise UsageError(f'--rounds={ROUNDS.value} must be 1 or more')
  if not config.data.name:
    config.data.name = 'random'  # no data set is read
  build.check(config)
  build.check_devices(config, jax.devices())
  result = measure(config, ROUNDS.value)
  print(table(config, result))
  if JSON.value:
    files.write_atomic(pathlib.Path(JSON.value), json.dumps(result, indent=1) + '\n')


def measure(config, rounds):
  """All figures of `config`, as a dict of JSON values: seconds, images/s, bytes, FLOP."""
  # as many classes as digits and CIFAR-10
  mesh, c_dim = sharding.make_mesh(), 10 if config.data.labels else 0
  stage = build.growth(config).stage(10**12)  # fully grown
  steps = build.steps(config, c_dim, mesh, stage)
  state = build.init_state(config, steps, sharding.replicated(mesh))
  micro = build.microbatch(config, stage.batch)
  shape = (stage.batch // micro, micro)
  images = np.random.default_rng(0).integers(
    0, 256, (*shape, *build.resolution(config), config.data.channels), np.uint8
  )
  batch = sharding.to_global(
    mesh, {'image': images, 'label': np.zeros((*shape, c_dim), np.float32)}
  )
  key = jax.device_put(jax.random.key(0), sharding.replicated(mesh))
  names = steps.phases(0)
  compiled, times = {}, {}
  for name in names:
    start = time.perf_counter()
    compiled[name] = (
      sharding.jit_step(getattr(steps, name), mesh).lower(key, state, batch).compile()
    )
    times[f'compile_{name}'] = time.perf_counter() - start
  ws = jax.device_put(
    jnp.zeros((*shape, steps.generator.synthesis.num_ws, config.g.w_dim)), sharding.batched(mesh)
  )
  synthesize = (
    jax.jit(
      lambda s, w: steps.generator.apply(
        {'params': s.g, 'noise': s.noise}, w[0], 'const', method='synthesize'
      )
    )
    .lower(state, ws)
    .compile()
  )
  peak_dtype = jnp.bfloat16 if config.g.num_bf16_res else jnp.float32
  matmul, flop = matmul_probe(peak_dtype)
  seconds = {name: [] for name in (*names, 'synthesis', 'matmul')}
  for i in range(rounds + 1):  # the first is warm-up
    for name in seconds:
      start = time.perf_counter()
      if name == 'synthesis':
        jax.block_until_ready(synthesize(state, ws))
      elif name == 'matmul':
        jax.block_until_ready(matmul())
      else:
        state, aux = compiled[name](key, state, batch)
        jax.block_until_ready((state, aux))
      if i:
        seconds[name].append(time.perf_counter() - start)
  t = {name: statistics.median(v) for name, v in seconds.items()}
  every = {'g': 1, 'd': 1, 'g_reg': steps.pl_interval, 'd_reg': steps.r1_interval}
  lazy = sum(t[name] / every[name] for name in names)
  eager = sum(t[name] for name in names)
  per_image = flop_per_image(config, state, steps)
  device = jax.devices()[0]
  return {
    'device': device.device_kind,
    'devices': mesh.size,
    'jax': jax.__version__,
    'resolution': list(build.resolution(config)),
    'batch': stage.batch,
    **{f'sec_{name}': t[name] for name in t if name != 'matmul'},
    'img_per_sec_lazy': stage.batch / lazy,
    'img_per_sec_eager': stage.batch / eager,
    'lazy_over_eager': eager / lazy,
    'img_per_sec_synthesis': shape[1] / t['synthesis'],
    **times,
    'temp_bytes': max(c.memory_analysis().temp_size_in_bytes for c in compiled.values()),
    'state_bytes': sum(x.nbytes for x in jax.tree.leaves(state)),
    'device_peak_bytes': (device.memory_stats() or {}).get('peak_bytes_in_use'),
    **per_image,
    'flop_per_sec': per_image['flop_lazy'] * stage.batch / lazy,
    'peak_dtype': jnp.dtype(peak_dtype).name,
    'peak_flop_per_sec': flop * mesh.size / min(seconds['matmul']),
    'share_of_peak': per_image['flop_lazy']
    * stage.batch
    / lazy
    / (flop * mesh.size / min(seconds['matmul'])),
  }


def matmul_probe(dtype):
  """A function that multiplies two square matrices on one device, and its FLOP."""
  n = 1536 if jax.default_backend() == 'cpu' else 8192
  x = jnp.ones((n, n), dtype)
  f = jax.jit(lambda x: x @ x)
  return lambda: f(x), 2 * n**3


def flop_per_image(config, state, steps):
  """FLOP of one forward pass of G and D, and of an image trained lazily, by counting weights times
  pixels.
  """
  pixels = {f'b{max(s)}': s[0] * s[1] for s in block_sizes(build.resolution(config))}

  def forward(params, half):  # `half`: the layers that work at a quarter of their block's pixels
    total = 0
    for path, w in jax.tree_util.tree_leaves_with_path(params):
      names = [p.key for p in path]
      if names[-1] == 'weight':
        block = next((pixels[n] for n in names if n in pixels), 1) if w.ndim == 4 else 1
        total += 2 * w.size * block / (4 if names[-2] in half and w.ndim == 4 else 1)
    return total

  g, d = forward(state.g, ('conv0', 'skip')), forward(state.d, ('conv1', 'skip'))
  lazy = 4 * g + 8 * d  # g: 3G + 2D, d: G + 6D
  if steps.pl_weight:
    lazy += 6 * g / steps.pl_shrink / (steps.pl_interval or 1)
  if steps.r1_gamma:
    lazy += 6 * d / (steps.r1_interval or 1)
  return {'flop_g': g, 'flop_d': d, 'flop_lazy': lazy}


def table(config, r):
  """The figures, for a person."""
  ms = lambda name: (
    f'{name} {r[f"sec_{name}"] * 1e3:.1f} ms' if f'sec_{name}' in r else f'{name} off'
  )
  compile_time = sum(v for k, v in r.items() if k.startswith('compile_'))
  return '\n'.join(
    [
      f'{r["devices"]} x {r["device"]}, jax {r["jax"]}, {r["resolution"][0]}x{r["resolution"][1]}, '
      f'batch {r["batch"]}, fmap_base {config.g.fmap_base}, fmap_max {config.g.fmap_max}',
      '  '.join(ms(name) for name in ('g', 'd', 'g_reg', 'd_reg', 'synthesis')),
      f'training {r["img_per_sec_lazy"]:.2f} images/s lazily, {r["img_per_sec_eager"]:.2f} eagerly '
      f'({r["lazy_over_eager"]:.2f}x); synthesis {r["img_per_sec_synthesis"]:.1f} images/s',
      f'{r["flop_lazy"] / 1e9:.1f} GFLOP per image trained (forward G {r["flop_g"] / 1e9:.2f}, D '
      f'{r["flop_d"] / 1e9:.2f}); {r["flop_per_sec"] / 1e9:.1f} GFLOP/s, {r["share_of_peak"]:.0%} '
      f'of the {r["peak_dtype"]} matmul peak {r["peak_flop_per_sec"] / 1e9:.0f} GFLOP/s',
      f'compiled in {compile_time:.0f} s; {r["state_bytes"] / 2**20:.0f} MiB state, '
      f'{r["temp_bytes"] / 2**20:.0f} MiB temporaries of the largest step'
      + (
        f', {r["device_peak_bytes"] / 2**30:.1f} GiB device peak' if r['device_peak_bytes'] else ''
      ),
    ]
  )


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  cli.run(main)
