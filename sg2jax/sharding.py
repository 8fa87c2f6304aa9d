"""One 1-D mesh ('data',) and its two shardings. The only file that says "device"."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

# Of the steps, by platform (figures in docs/performance.md).
COMPILER_OPTIONS = {
  # XLA would take bfloat16 arrays that a convolution casts for float32 ones, and then write such
  # copies of activations.
  'gpu': {'xla_allow_excess_precision': False},
  # An option of jaxlib 0.10 and 0.11. Of XLA's own convolution and YNNPACK's, XLA's is the faster:
  # up to 1.6 times for 3x3 with 32 or 64 channels, 1.2 to 3.1 times with stride 2. YNNPACK keeps
  # products and sums.
  'cpu': {
    'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE'
  },
}


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """All devices (or the given ones) in one axis, 'data', those of a process side by side.

  `jax.make_mesh` would order them by their place in a TPU slice, where processes interleave; then
  the p-th block of a batch, which process p reads, would lie on devices of others.
  """
  devices = jax.devices() if devices is None else devices
  ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
  return Mesh(np.array(ordered), ('data',), axis_types=(AxisType.Auto,))


def is_tpu(mesh: Mesh) -> bool:
  """Whether its devices are TPUs, for which some things have a form of their own."""
  return mesh.devices.flat[0].platform == 'tpu'


def replicated(mesh: Mesh) -> NamedSharding:
  """Sharding of the state: the same on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
  """Sharding of a batch [R,M,...]: M is divided, so that every round uses all devices."""
  return NamedSharding(mesh, PartitionSpec(None, 'data'))


def to_global(mesh: Mesh, batch: Any) -> Any:
  """Host arrays [R,M/processes,...] -> global arrays [R,M,...]."""
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(batched(mesh), x), batch)


def replicate(mesh: Mesh, tree: Any) -> Any:
  """Arrays of the host, or of one device, that every process has alike -> global ones."""
  # Not `device_put`, which puts no random keys on devices of other processes.
  return jax.jit(_same, out_shardings=replicated(mesh))(tree)


def _same(x):
  return x


def divide(mesh: Mesh, batch: Any) -> Any:
  """Host arrays [R,M,...] that every process has whole -> global arrays [R,M,...]."""
  where = batched(mesh)

  def place(x):
    return jax.make_array_from_callback(x.shape, where, x.__getitem__)

  return jax.tree.map(place, batch)


def constrain(mesh: Mesh) -> Callable:
  """A function that divides [R,M,...] over the devices inside jit, if M divides."""

  def place(x):
    if x.shape[1] % mesh.size:
      return x  # left to the compiler
    return jax.lax.with_sharding_constraint(x, batched(mesh))

  return place


def spread(mesh: Mesh, each: int = 1) -> Callable:
  """A function that divides [M,...] over the devices inside jit -> [M',...], whatever M.

  M' is the next multiple of the number of devices, with `each` rows or more for each. Rows are
  repeated to that end, so whoever uses it takes the first M of what it computes. Without it a batch
  that doesn't divide, such as half of one image for each device, would be computed whole on every
  device.
  """

  def place(x):
    rows = max(each, -(-x.shape[0] // mesh.size)) * mesh.size
    copies = -(-rows // x.shape[0])
    if copies > 1:
      x = jnp.concatenate([x] * copies)[:rows]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec('data')))

  return place


def jit_each(function: Callable, mesh: Mesh, constants: int) -> Callable:
  """jit of `(*constants, batch) -> {name: [N,...]}` where no image needs another.

  Each device does its part for itself. The result is replicated.

  Args:
    function: as the result, but its batch is that of one device, {name: [n,...]}.
    mesh: of the devices.
    constants: number of arguments before the batch, which are replicated. The batch that is given
      is {name: [1,N,...]}.
  """

  def on_device(*args):
    *shared, batch = args
    return function(*shared, {name: x[0] for name, x in batch.items()})

  part = jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(*[PartitionSpec()] * constants, PartitionSpec(None, 'data')),
    out_specs=PartitionSpec('data'),
    check_vma=False,
  )
  return jax.jit(part, out_shardings=replicated(mesh))


def jit_step(step: Callable, mesh: Mesh) -> Callable:
  """jit of `(key, state, batch) -> (state, aux)`: state donated and replicated, batch divided."""
  same = replicated(mesh)
  return jax.jit(
    step,
    in_shardings=(same, same, batched(mesh)),
    out_shardings=(same, same),
    donate_argnums=1,
    compiler_options=COMPILER_OPTIONS.get(mesh.devices.flat[0].platform),
  )
