"""Arrays of a network's file: names, shapes and dtypes that it must have."""

from collections.abc import Mapping

import numpy as np


def checked(
  network: str, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], np.dtype]:
  """The arrays {name: array} of a network, as NumPy arrays, and the dtype of its parameters.

  float32, or float64 if one of them is. Raises: ValueError naming up to 5 missing, unknown or
  ill-shaped arrays.
  """
  arrays = {name: np.asarray(x) for name, x in arrays.items()}
  wrong = [f'{name} is missing' for name in shapes if name not in arrays]
  wrong += [f'{name} is unknown' for name in arrays if name not in shapes]
  for name, shape in shapes.items():
    if name in arrays and arrays[name].shape != shape:
      wrong.append(f'{name} has shape {list(arrays[name].shape)}, not {list(shape)}')
  if wrong:
    more = f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''
    raise ValueError(f'not the arrays of {network}: {"; ".join(wrong[:5])}{more}')
  return arrays, np.result_type(np.float32, *(x.dtype for x in arrays.values()))
