"""One 1-D mesh ('data',) and its two shardings. The only file that says "device"."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np


def make_mesh(devices=None):
  """All devices (or the given ones) in one axis, 'data', those of a process side by side.

  `jax.make_mesh` would order them by their place in a TPU slice, where processes interleave; then
  the p-th block of a batch, which process p reads, would lie on devices of others.
  """
  devices = jax.devices() if devices is None else devices
  ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
  return Mesh(np.array(ordered), ('data',), axis_types=(AxisType.Auto,))


def replicated(mesh):
  """Sharding of the state: the same on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batched(mesh):
  """Sharding of a batch [R,M,...]: M is divided, so that every round of accumulation uses every
  device.
  """
  return NamedSharding(mesh, PartitionSpec(None, 'data'))


def to_global(mesh, batch):
  """Host arrays [R,M/processes,...] -> global arrays [R,M,...]."""
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(batched(mesh), x), batch)


def constrain(mesh):
  """A function that divides [R,M,...] over the devices inside jit; an M that doesn't divide is left
  to the compiler.
  """

  def place(x):
    return jax.lax.with_sharding_constraint(x, batched(mesh)) if x.shape[1] % mesh.size == 0 else x

  return place


def spread(mesh):
  """A function that divides [M,...] over the devices inside jit: -> [M',...], M' the next multiple
  of their number.

  Rows are repeated to that end, so whoever uses it takes the first M of what it computes. Without
  it a batch that doesn't divide, such as half of one image for each device, would be computed whole
  on every device.
  """

  def place(x):
    rows = -(-x.shape[0] // mesh.size) * mesh.size
    copies = -(-rows // x.shape[0])
    whole = jnp.concatenate([x] * copies)[:rows] if copies > 1 else x
    return jax.lax.with_sharding_constraint(whole, NamedSharding(mesh, PartitionSpec('data')))

  return place


def jit_each(function, mesh, constants):
  """jit of `(*constants, batch) -> {name: [N,...]}` where no image needs another: each device does
  its part for itself.

  constants: so many arguments, replicated; batch: {name: [1,N,...]}, of which `function` gets
  {name: [n,...]}. The result is replicated.
  """
  part = jax.shard_map(
    lambda *args: function(*args[:-1], {name: x[0] for name, x in args[-1].items()}),
    mesh=mesh,
    in_specs=(*[PartitionSpec()] * constants, PartitionSpec(None, 'data')),
    out_specs=PartitionSpec('data'),
    check_vma=False,
  )
  return jax.jit(part, out_shardings=replicated(mesh))


def jit_step(step, mesh):
  """jit of `(key, state, batch) -> (state, aux)`: state donated and replicated, batch divided."""
  same = replicated(mesh)
  return jax.jit(
    step, in_shardings=(same, same, batched(mesh)), out_shardings=(same, same), donate_argnums=1
  )
