"""The steps of a configuration, compiled for a target: what the compiler says, kept by content."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sg2jax import build, files, paths, sharding
from sg2jax.faults import UsageError
from sg2jax.planning import devices as devices_lib
from sg2jax.planning import hlo
from sg2jax.planning.devices import Target
from sg2jax.steps import TrainSteps

# What decides what is read out of a compiled step, and what `sharding` asks of the compiler.
SOURCES = (
  pathlib.Path(__file__),
  pathlib.Path(hlo.__file__),
  pathlib.Path(sharding.__file__),
  *sorted(devices_lib.DATA.iterdir()),
)


@dataclasses.dataclass(frozen=True)
class Steps:
  """The steps of a configuration on the devices of a target; they compile when asked for."""

  config: ConfigDict
  target: Target
  devices: list[Any]

  @functools.cached_property
  def mesh(self) -> Mesh:
    """Of all the devices."""
    return sharding.make_mesh(self.devices)

  @functools.cached_property
  def steps(self) -> TrainSteps:
    """The updates, of the last stage of growth."""
    return build.last_steps(self.config, self.mesh)

  @functools.cached_property
  def arguments(self) -> tuple:
    """(key, state, batch) of an update, as shapes."""
    return build.abstract_arguments(self.config, self.steps, self.mesh)

  def lower(self, name: str) -> jax.stages.Lowered:
    """One of them as the compiler gets it."""
    return sharding.jit_step(getattr(self.steps, name), self.mesh).lower(*self.arguments)

  def figures(self, name: str) -> dict:
    """What the compiler says of one of them, with `seconds_compiling`, 0 if it was known.

    Raises:
      UsageError: it does not compile.
    """
    start = time.monotonic()
    lowered = self.lower(name)
    file = paths.cache() / 'plans' / f'{_key(lowered, self.target, len(self.devices))}.json'
    try:
      return json.loads(file.read_text()) | {'seconds_compiling': 0}
    except (OSError, ValueError):  # not there, or not whole
      pass
    if self.target.data.get('platform') == 'cuda' and self.target.name != 'local':
      found = _without_code(self, name)
    else:
      found = whole(lowered, self.target)
    files.write_atomic(file, json.dumps(found))
    return found | {'seconds_compiling': time.monotonic() - start}


def _key(lowered, target, count):
  """SHA-256 of all that decides about the figures. The text has no names of files and lines."""
  parts = [lowered.as_text(), target.name, target.kind, str(count)]
  parts += [f'{name} {value}' for name, value in devices_lib.versions(target).items()]
  parts += [files.sha256(file) for file in SOURCES]
  return hashlib.sha256('\0'.join(parts).encode()).hexdigest()


def _cost_model(target):
  """The option of XLA:GPU that estimates the time of each fusion; it changes nothing else.

  It is refused where XLA has no table of a device's instructions, as of A100 and L4.
  """
  return {'xla_gpu_collect_cost_model_stats': True} if target.data.get('has_cost_model') else {}


# ---- compiled whole, for TPUs and for devices that are here


def whole(lowered: jax.stages.Lowered, target: Target) -> dict:
  """Figures of a step that is compiled to its end."""
  try:
    compiled = lowered.compile(compiler_options=_cost_model(target))
  except jax.errors.JaxRuntimeError as e:
    return _too_large(e)
  stats = compiled.memory_analysis()
  memory = {
    'argument_bytes': stats.argument_size_in_bytes,
    'output_bytes': stats.output_size_in_bytes,
    'alias_bytes': stats.alias_size_in_bytes,
    'temp_bytes': stats.temp_size_in_bytes,
    'code_bytes': stats.generated_code_size_in_bytes,
  }
  if target.data:
    return _with_peak(memory) | describe(compiled.as_text(), target)
  # Of a CPU, or an accelerator that isn't in devices.json: its compiler's own count.
  cost = compiled.cost_analysis() or {}
  said = {'flop': cost.get('flops'), 'bytes': cost.get('bytes accessed')}
  return _with_peak(memory) | dict.fromkeys(DESCRIBED) | said


# What `describe` says of a step.
DESCRIBED = (
  'flop', 'bytes', 'kernels', 'cycles', 'seconds_roofline', 'seconds_model', 'collectives',
  'kernels_unestimated', 'loops_unknown',
)  # fmt: skip


def _with_peak(memory):
  """The sizes with that of all at once: results that are written over arguments take no room."""
  held = sum(memory.values()) - 2 * memory['alias_bytes']
  return memory | {'peak_bytes': held}


def _too_large(error):
  """A TPU's compiler refuses what doesn't fit, and says how much it is."""
  text = ' '.join(str(error).split())
  sizes = [float(size) * 2**30 for size in re.findall(r'\b([\d.]+)G\b', text)]
  if not text.startswith('RESOURCE_EXHAUSTED') or not sizes:
    raise UsageError(f'the compiler says {text[:500]}') from error
  names = ('argument_bytes', 'output_bytes', 'alias_bytes', 'temp_bytes', 'code_bytes')
  return dict.fromkeys((*names, *DESCRIBED)) | {
    'peak_bytes': int(max(sizes)),
    'refused': text[:300],
  }


# ---- of GPUs that aren't here: optimized and laid out in memory, but without code


def _without_code(steps, name):
  """Figures of a step for a GPU, by a process of its own (worker.py).

  XLA has no switch that ends its work once buffers are assigned, and generating code for hundreds
  of kernels takes four fifths of the time, and the tools of CUDA. So the process ends itself when
  XLA has dumped what is wanted.
  """
  job = {
    'config': steps.config.to_dict(),
    'device': steps.target.name,
    'devices': steps.target.count,
    'step': name,
  }
  # Packages may have been found by a path of this process alone.
  path = os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))
  # Here, not in the process, whose thread still writes to it at the end.
  with tempfile.TemporaryDirectory() as folder:
    done = subprocess.run(
      [sys.executable, '-m', 'sg2jax.planning.worker'],
      input=json.dumps(job | {'folder': folder}),
      env=os.environ | {'PYTHONPATH': path, 'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      text=True,
    )
  if done.returncode:
    lines = done.stderr.strip().splitlines() or ['no reason']
    raise UsageError(f'{name} does not compile for --device={steps.target.name}: {lines[-1]}')
  return json.loads(done.stdout.splitlines()[-1])


def until_assigned(lowered: jax.stages.Lowered, target: Target, folder: pathlib.Path) -> dict:
  """Figures of a step for a GPU, as soon as buffers are assigned; XLA goes on in a thread.

  Args:
    lowered: the step.
    target: of what is not here.
    folder: empty, for what XLA dumps.

  Raises:
    JaxRuntimeError: it does not compile.
  """
  failures = []

  def compile_it():
    options = {'xla_dump_to': str(folder), 'xla_dump_hlo_as_text': True}
    try:
      lowered.compile(compiler_options=_cost_model(target) | options)
    except jax.errors.JaxRuntimeError as e:
      failures.append(e)

  thread = threading.Thread(target=compile_it, daemon=True)
  thread.start()
  # Dumped one after the other, so that the others are whole once there is the last.
  last = '*after_optimizations-memory-usage-report.txt'
  while thread.is_alive() and not list(folder.glob(last)):
    time.sleep(0.05)
  if not list(folder.glob(last)):
    raise failures[0]
  text = next(folder.glob('*after_optimizations.txt')).read_text()
  buffers = next(folder.glob('*after_optimizations-buffer-assignment.txt')).read_text()
  return _with_peak(assigned_bytes(buffers)) | describe(text, target)


def assigned_bytes(text: str) -> dict[str, int]:
  """The sizes of memory_analysis(), of a buffer assignment that XLA has dumped."""
  total = dict.fromkeys(('argument_bytes', 'output_bytes', 'alias_bytes', 'temp_bytes'), 0)
  for size, what in re.findall(r'^\s*allocation \d+: size (\d+), (.*)$', text, re.MULTILINE):
    is_argument = what.startswith('parameter')
    is_result = 'maybe-live-out' in what
    total['argument_bytes'] += int(size) * is_argument
    total['output_bytes'] += int(size) * is_result
    total['alias_bytes'] += int(size) * (is_argument and is_result)
    total['temp_bytes'] += int(size) * ('preallocated-temp' in what)
  return total | {'code_bytes': 0}


# ---- what the optimized HLO says


def describe(text: str, target: Target) -> dict:
  """DESCRIBED, of a step's HLO: of one device.

  seconds_roofline is a lower bound: of each kernel the larger of its bytes by the bandwidth of the
  memory and its FLOP by the peak. seconds_model is of a TPU the cycles that its compiler
  estimates; of a GPU XLA's estimate of each fusion, and the roofline of calls of cuDNN and cuBLAS,
  of which it has none; None where XLA has no model of the GPU. kernels_unestimated: fusions of a
  TPU without an estimate, as of gathers and scatters, which count as 0 in it. loops_unknown: loops
  of unknown length, which count as run once in all figures.
  """
  found = hlo.kernels(text)
  counted, cycles, model, unestimated = found, None, None, 0
  if target.data['platform'] == 'tpu':
    # All else is bookkeeping, and copies beside the fusions.
    counted = [k for k in found if k.cycles is not None]
    cycles = sum(k.times * k.cycles for k in counted)
    model = cycles / target.data['clock_hz']
    unestimated = sum(k.times for k in found if k.cycles is None and k.op == 'fusion')
  elif target.data.get('has_cost_model'):
    estimates = ((k, k.seconds) for k in found)
    model = sum(k.times * (_roofline(k, target) if s is None else s) for k, s in estimates)
  return {
    'flop': sum(k.times * k.flop for k in found),
    'bytes': sum(k.times * k.bytes for k in found),
    'kernels': sum(k.times for k in counted),
    'cycles': cycles,
    'seconds_roofline': sum(k.times * _roofline(k, target) for k in found),
    'seconds_model': model,
    'collectives': hlo.collectives(text),
    'kernels_unestimated': unestimated,
    'loops_unknown': hlo.loops_of_unknown_length(text),
  }


def _roofline(kernel, target):
  """The least seconds of a kernel, once."""
  computing = sum(flop / target.flop_per_sec(dtype) for flop, dtype in kernel.products)
  return max(kernel.bytes / target.data['bytes_per_sec'], computing)
