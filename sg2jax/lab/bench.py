"""How fast a configuration trains: the four steps and synthesis, timed interleaved."""

from collections.abc import Callable
import dataclasses
from functools import partial
import math
import statistics
import time
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from sg2jax import build, memory, packing, sharding
from sg2jax import state as state_lib
from sg2jax.models.sizes import block_sizes
from sg2jax.planning import plan

# What is timed where p moves from 0. All but 0 costs the same.
MOVING_P = 0.5


def measure(config: ConfigDict, rounds: int) -> dict:
  """All figures of a configuration, as JSON values: seconds, images/s, bytes, FLOP."""
  memory.keep_pages(jax.default_backend())
  mesh = sharding.make_mesh()
  same = sharding.replicated(mesh)
  steps, state, p = _begin(config, mesh)
  batch, ws = _random_batch(config, steps, mesh)
  key = jax.device_put(jax.random.key(0), same)
  flop = flop_per_image(config, state, steps)
  # as the loop trains
  state = jax.jit(partial(state_lib.pack_state, mesh=mesh), out_shardings=same)(state)
  state_bytes = sum(x.nbytes for x in jax.tree.leaves(state))

  # ---- compile
  start = time.perf_counter()
  compiled = {
    name: sharding.jit_step(getattr(steps, name), mesh).lower(key, state, batch).compile()
    for name in steps.phases(0)
  }
  compile_seconds = time.perf_counter() - start

  @jax.jit
  def synthesize(state, ws):
    variables = {'params': packing.unpack(state.g), 'noise': state.noise}
    return steps.generator.apply(variables, ws[0], 'const', method='synthesize')

  # ---- time
  def train(name):
    nonlocal state  # the old one is donated
    state, aux = compiled[name](key, state, batch)
    return state, aux

  dtype = jnp.bfloat16 if config.g.num_bf16_res else jnp.float32
  # Large enough to be bound by arithmetic, not by memory or the launch.
  side = 1536 if jax.default_backend() == 'cpu' else 8192
  matrix = jnp.ones((side, side), dtype)
  functions = {name: partial(train, name) for name in compiled}
  functions |= {
    'synthesis': lambda: synthesize(state, ws),
    'matmul': partial(jax.jit(jnp.matmul), matrix, matrix),
  }
  seconds = interleaved(functions, rounds)
  peak = 2 * side**3 * mesh.size / min(seconds.pop('matmul'))
  device = jax.devices()[0]
  return {
    'device': device.device_kind,
    'devices': mesh.size,
    'jax': jax.__version__,
    'resolution': list(build.resolution(config)),
    'batch': steps.stage.batch,
    'augment_p': p,
    'compile_seconds': compile_seconds,
    'state_bytes': state_bytes,
    'temp_bytes': max(step.memory_analysis().temp_size_in_bytes for step in compiled.values()),
    'device_peak_bytes': (device.memory_stats() or {}).get('peak_bytes_in_use'),
    **flop,
    'peak_dtype': jnp.dtype(dtype).name,
    'peak_flop_per_sec': peak,
    **_rates(seconds, steps, ws.shape[1], flop['flop_lazy'], peak),
  }


def _begin(config, mesh):
  """(steps, state, p) of training, with the strength of the augmentation that is timed, or None.

  That is augment.p, or MOVING_P if p is to move from 0, where nothing is computed.
  """
  steps = build.last_steps(config, mesh)
  state = build.init_state(config, steps, sharding.replicated(mesh))
  if steps.augment is None:
    return steps, state, None
  p = config.augment.p or MOVING_P
  # However often it is timed, p stays.
  still = dataclasses.replace(steps.moves_of_p, kimg=math.inf)
  steps = dataclasses.replace(steps, moves_of_p=still)
  return steps, state.replace(augment_p=jnp.full_like(state.augment_p, p)), p


def interleaved(functions: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
  """{name: seconds of each round}: a machine that slows down slows all functions alike."""
  seconds = {name: [] for name in functions}
  for i in range(rounds + 1):
    for name, function in functions.items():
      start = time.perf_counter()
      jax.block_until_ready(function())
      # The first round is warm-up, and compiles what isn't yet.
      if i:
        seconds[name].append(time.perf_counter() - start)
  return seconds


def _rates(seconds, steps, images, flop_per_image, peak):
  """Medians, and what follows from them; images: that synthesis makes at once."""
  median = {name: statistics.median(times) for name, times in seconds.items()}
  training = {name: median[name] for name in steps.phases(0)}
  lazy = plan.lazily(training, steps)
  eager = sum(training.values())
  batch = steps.stage.batch
  return {
    **{f'sec_{name}': value for name, value in median.items()},
    'img_per_sec_lazy': batch / lazy,
    'img_per_sec_eager': batch / eager,
    'lazy_over_eager': eager / lazy,
    'img_per_sec_synthesis': images / median['synthesis'],
    'flop_per_sec': flop_per_image * batch / lazy,
    'share_of_peak': flop_per_image * batch / lazy / peak,
  }


def _random_batch(config, steps, mesh):
  """A minibatch {'image': [R,M,H,W,C], 'label': [R,M,c_dim]}, and ws [R,M,num_ws,w_dim] of 0."""
  _, _, spec = build.abstract_arguments(config, steps, mesh)
  images = np.random.default_rng(0).integers(0, 256, spec['image'].shape, np.uint8)
  labels = np.zeros(spec['label'].shape, spec['label'].dtype)
  ws = jnp.zeros((*labels.shape[:2], steps.generator.synthesis.num_ws, config.g.w_dim))
  return (
    sharding.to_global(mesh, {'image': images, 'label': labels}),
    jax.device_put(ws, sharding.batched(mesh)),
  )


def flop_per_image(config: ConfigDict, state: Any, steps: Any) -> dict[str, float]:
  """FLOP of one forward pass of G and D, and of an image trained lazily: weights times pixels."""
  pixels = {f'b{max(s)}': s[0] * s[1] for s in block_sizes(build.resolution(config))}
  # These layers work at a quarter of their block's pixels: before up-, after down-sampling.
  g = _forward_flop(state.g, pixels, ('conv0', 'skip'))
  d = _forward_flop(state.d, pixels, ('conv1', 'skip'))
  # A backward pass costs two forward ones, or one where only the input's gradient is wanted. The
  # step of G takes 3G + 2D, that of D takes G and 3D each for fakes and reals.
  lazy = 4 * g + 8 * d
  if steps.pl_weight:
    lazy += 6 * g / steps.pl_shrink / (steps.pl_interval or 1)
  if steps.r1_gamma:
    lazy += 6 * d / (steps.r1_interval or 1)
  return {'flop_g': g, 'flop_d': d, 'flop_lazy': lazy}


def _forward_flop(params, pixels, quartered):
  total = 0
  for path, w in traverse_util.flatten_dict(params).items():
    times = 1
    if w.ndim == 4:  # a convolution: at each pixel of its block
      times = next((pixels[name] for name in path if name in pixels), 1)
      if path[-2] in quartered:
        times /= 4
    if path[-1] == 'weight':
      total += 2 * w.size * times
  return total


def table(config: ConfigDict, r: dict) -> str:
  """The figures of `measure`, for a person."""
  names = ('g', 'd', 'g_reg', 'd_reg', 'synthesis')
  times = [f'{name} {r[f"sec_{name}"] * 1e3:.1f} ms' for name in names if f'sec_{name}' in r]
  p = '' if r['augment_p'] is None else f', augmented with p = {r["augment_p"]:g}'
  peak = r['device_peak_bytes']
  peak = f', {peak / 2**30:.1f} GiB device peak' if peak else ''
  return '\n'.join(
    [
      f'{r["devices"]} x {r["device"]}, jax {r["jax"]}, {r["resolution"][0]}x{r["resolution"][1]}, '
      f'batch {r["batch"]}, fmap_base {config.g.fmap_base}, fmap_max {config.g.fmap_max}{p}',
      '  '.join(times),
      f'training {r["img_per_sec_lazy"]:.2f} images/s lazily, {r["img_per_sec_eager"]:.2f} eagerly '
      f'({r["lazy_over_eager"]:.2f}x); synthesis {r["img_per_sec_synthesis"]:.1f} images/s',
      f'{r["flop_lazy"] / 1e9:.1f} GFLOP per image trained (forward G {r["flop_g"] / 1e9:.2f}, D '
      f'{r["flop_d"] / 1e9:.2f}); {r["flop_per_sec"] / 1e9:.1f} GFLOP/s, {r["share_of_peak"]:.0%} '
      f'of the {r["peak_dtype"]} matmul peak {r["peak_flop_per_sec"] / 1e9:.0f} GFLOP/s',
      f'compiled in {r["compile_seconds"]:.0f} s; {r["state_bytes"] / 2**20:.0f} MiB state, '
      f'{r["temp_bytes"] / 2**20:.0f} MiB temporaries of the largest step{peak}',
    ]
  )
