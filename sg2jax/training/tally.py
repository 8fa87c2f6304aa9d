"""Means over a tick of what steps report, summed on the device and fetched as one small array."""

import jax
import jax.numpy as jnp
import numpy as np

from sg2jax.state import TrainState


class Tally:
  """Sums of the scalars that the steps of a tick report, by phase."""

  def __init__(self) -> None:
    self._sums = {}  # phase: [K+1] on the device, sums in the order of `_names`, and their number
    self._names = {}

  def add(self, phase: str, aux: dict[str, jax.Array]) -> None:
    """Adds what a step of `phase` reported; arrays with axes are left out."""
    scalars = {name: x for name, x in aux.items() if x.ndim == 0}
    if phase in self._sums:
      self._sums[phase] = _add(self._sums[phase], scalars)
    else:
      self._sums[phase] = _start(scalars)
      self._names[phase] = sorted(scalars)

  def fetch(self, state: TrainState) -> dict[str, float] | None:
    """{name: mean}; None if `state` is halted. Waits for the device."""
    phases = sorted(self._sums)
    # One transfer: each costs a round trip to the device, however small it is. So the integers of
    # the fault travel beside the bits of the floats.
    packed = jax.device_get(_pack([self._sums[phase] for phase in phases], state.fault))
    fault = packed[:3]
    sums = packed[3:].view(np.float32)
    if fault[1] >= 0:
      return None
    means = {}
    first = 0
    for phase in phases:
      names = self._names[phase]
      count = sums[first + len(names)]
      means |= {name: float(sums[first + i] / count) for i, name in enumerate(names)}
      first += len(names) + 1
    return means


@jax.jit
def _start(scalars):
  """[K+1]: the scalars in the order of their names, and 1."""
  return jnp.stack([*(scalars[name] for name in sorted(scalars)), jnp.float32(1)])


@jax.jit
def _add(sums, scalars):
  return sums + _start(scalars)


@jax.jit
def _pack(sums, fault):
  """One array of int32, the sums by their bits."""
  return jnp.concatenate([fault, *(jax.lax.bitcast_convert_type(x, jnp.int32) for x in sums)])
