"""Files of safetensors: arrays, also those in bfloat16, which safetensors.numpy doesn't read."""

import ml_dtypes
import numpy as np
import safetensors

from sg2jax.interop import sniff, torch_file
from sg2jax.interop.pickle_reader import describe, need

_DTYPES = {
  'F32': np.float32,
  'F64': np.float64,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U8': np.uint8,
  'BOOL': np.bool_,
}


def parse(data: bytes) -> dict[str, np.ndarray]:
  """The arrays of a file, by name in alphabetical order: safetensors keeps none.

  Args:
    data: content of the file.

  Returns:
    {name: array}, read-only, in the dtype of the file (bfloat16 as ml_dtypes.bfloat16).

  Raises:
    ValueError: malformed, or a dtype that isn't one of PyTorch's storages; says what.
  """
  try:
    views = safetensors.deserialize(data)
  except safetensors.SafetensorError as e:
    reason = ascii(str(e)[:200])[1:-1]  # it may quote names
    raise ValueError(f'a broken safetensors file: {reason}; {sniff.AGAIN}') from None
  arrays = {}
  for name, view in sorted(views, key=lambda pair: pair[0]):
    dtype = view['dtype']
    need(dtype in _DTYPES, f'{describe(name)} is of dtype {dtype}; known are {", ".join(_DTYPES)}')
    content = bytes(view['data'])  # read-only
    arrays[name] = torch_file.numbers(content, _DTYPES[dtype]).reshape(view['shape'])
  return arrays
