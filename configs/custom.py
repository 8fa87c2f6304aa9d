"""Your own images: what to set follows from their size and the devices [ADA App. C, `auto`].

    python -m sg2jax.tools.prepare --source=PHOTOS --dest=DATA/mine --resolution=256
    python -m sg2jax.main --config=configs/custom.py:256 --config.data.dir=DATA/mine --workdir=RUN
    ... --config=configs/custom.py:256,8            for 8 devices

The batch grows with the devices, and gamma follows 0.0002 resolution^2 / batch: a start, and the
first thing to tune (try a fifth and five times of it). A rectangle is HEIGHTxWIDTH:
`custom.py:384x512`.

With fewer than 10,000 pictures, what D sees is augmented (ADA, as in `ada.py:auto`), and the run
says so: docs/small_data.md. `--config.augment.pipeline=` turns it off.
"""

from configs import ada


def get_config(arg='256'):
  """arg: 'RESOLUTION[,DEVICES]'."""
  try:
    c = ada.auto(arg)
  except ValueError as e:
    raise ValueError(f'configs/custom.py:{arg}: {e}') from None
  c.augment.pipeline = 'auto'
  return c
