"""The devices that a plan is for: what `--device` says, and what such a device has."""

from collections.abc import Sequence
import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
from typing import Any

import jax

from sg2jax.faults import UsageError

DATA = pathlib.Path(__file__).parent / 'devices'
INSTALL = 'pip install -r requirements-plan.txt'
PLATFORMS = {'tpu': 'libtpu', 'cuda': 'jax-cuda13-plugin'}  # {platform: package of its compiler}
# Of float32 products, in bfloat16 passes of a TPU: see jax.lax.Precision.
PASSES = {'f32': 1, 'f32_high': 3, 'f32_highest': 6}


@functools.cache
def table() -> dict[str, dict]:
  """devices.json: {name: what the device has, with its source}; sizes in bytes, rates a second."""
  return json.loads((DATA / 'devices.json').read_text())


@dataclasses.dataclass(frozen=True)
class Target:
  """Devices to compile for.

  Attributes:
    name: as --device says it: local, h100, v5e:4x4.
    kind: its name in devices.json, '' for what isn't there.
    count: of GPUs; 0: as many as the topology or this process has.
  """

  name: str
  kind: str
  count: int = 0

  @property
  def data(self) -> dict:
    """What a device has, as in devices.json; {} if that is unknown."""
    return table().get(self.kind, {})

  def flop_per_sec(self, dtype: str) -> float | None:
    """Peak of products of bf16, f32, f32_high or f32_highest; None: unknown."""
    peaks = self.data.get('flop_per_sec')
    if not peaks:
      return None
    if self.data['platform'] == 'tpu':
      return peaks['bf16'] / PASSES.get(dtype, 1)
    # What isn't known to be faster is a product of float32: float64 isn't trained in.
    return peaks.get({'f16': 'bf16', 'f32_high': 'f32'}.get(dtype, dtype), peaks['f32_highest'])

  def memory(self, devices: Sequence[Any]) -> int | None:
    """Bytes of one device that a process can have; None: unknown, as of a CPU."""
    if self.name == 'local':
      return (devices[0].memory_stats() or {}).get('bytes_limit')
    share = gpu_share() if self.data['platform'] == 'cuda' else 1
    return int(self.data['memory_bytes'] * share)


def gpu_share() -> float:
  """The share of a GPU's memory that JAX takes."""
  return float(os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.75'))


def parse(name: str, count: int = 0) -> Target:
  """--device and --devices -> Target.

  Raises:
    UsageError: with the value and the choices, or the package that is missing.
  """
  kind, _, topology = name.partition(':')
  data = table().get(kind)
  if name != 'local' and not data:
    raise UsageError(f'--device={name} is unknown; choose from {", ".join(choices())}')
  if name == 'local':
    return Target(name, '', count)
  if data['platform'] == 'tpu':
    if not re.fullmatch(r'\d+x\d+(x\d+)?', topology):
      raise UsageError(f'--device={name} needs a topology in chips, as in {_example(kind)}')
    if count:
      raise UsageError(f'--devices={count} is for GPUs; how many TPUs, {name} says')
  elif topology:
    raise UsageError(f'--device={name} has no topology; say --device={kind} --devices=8')
  check_installed(name, data['platform'])
  return Target(name, kind, count)


def choices() -> list[str]:
  """What --device may be, TPUs with an example of a topology."""
  gpus = [kind for kind, data in table().items() if data['platform'] == 'cuda']
  tpus = [_example(kind) for kind, data in table().items() if data['platform'] == 'tpu']
  return ['local', *gpus, *tpus]


def _example(kind):
  return f'{kind}:2x2x2' if kind in ('v4', 'v5p') else f'{kind}:4x4'


def check_installed(name: str, platform: str) -> None:
  """Raises UsageError if the compiler for a platform isn't there, or doesn't fit JAX."""
  package = PLATFORMS[platform]
  try:
    version = importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    raise UsageError(
      f'--device={name} is compiled by the package {package}, which is not installed; {INSTALL}'
    ) from None
  ours = importlib.metadata.version('jaxlib')
  if platform == 'cuda' and version != ours:
    raise UsageError(
      f'--device={name}: {package} {version} does not fit jaxlib {ours}; pip install '
      f'{package}=={ours} jax-cuda13-pjrt=={ours}'
    )


def resolve(target: Target) -> tuple[Target, list[Any]]:
  """A target and its devices: of this process, or some to compile for that need not be here.

  Raises:
    UsageError: there are no such devices.
  """
  if target.name == 'local':
    found = jax.devices()
    if target.count > len(found):
      raise UsageError(f'--devices={target.count}, but JAX sees only {len(found)} device(s)')
    kinds = [kind for kind, data in table().items() if found[0].device_kind in data['kinds']]
    target = dataclasses.replace(target, kind=''.join(kinds))
    return target, found[: target.count or len(found)]
  # Nothing is computed, so no device is taken from a run that may be going on here.
  jax.config.update('jax_platforms', 'cpu')
  # Here: it starts the compilers' plugins.
  from jax.experimental import topologies

  try:
    if target.data['platform'] == 'cuda':
      text = (DATA / f'{target.kind}.txtpb').read_text()
      shape = f'1x1x{target.count or 1}'
      found = topologies.get_topology_desc('gpu', 'cuda', target_config=text, topology=shape)
    else:
      _quiet_libtpu()
      # Both cores of a v4 chip are one device to JAX, as in the cloud.
      options = {'chip_config_name': 'megacore'} if target.kind == 'v4' else {}
      found = topologies.get_topology_desc(target.name, 'tpu', **options)
  except jax.errors.JaxRuntimeError as e:
    reason = ' '.join(str(e).split())[:300]
    raise UsageError(f'--device={target.name}: its compiler says {reason}') from e
  return target, list(found.devices)


def _quiet_libtpu():
  """libtpu asks the cloud where it is, tells it at length, and keeps other processes out."""
  for name, value in {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_HOST_BOUNDS': '1,1,1',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  }.items():
    os.environ.setdefault(name, value)


def versions(target: Target) -> dict[str, str]:
  """{package: version} of what compiles for a target, and its options in the environment."""
  found = {package: importlib.metadata.version(package) for package in ('jax', 'jaxlib')}
  if target.name == 'local':
    device = jax.devices()[0]
    found |= {'kind': device.device_kind, 'platform': device.client.platform_version}
  else:
    package = PLATFORMS[target.data['platform']]
    found[package] = importlib.metadata.version(package)
  return found | {name: os.environ.get(name, '') for name in ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')}
