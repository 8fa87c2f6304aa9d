"""The bundled data set: 1,797 handwritten digits; no download, no TensorFlow.

`digits.npz` holds `images` uint8 [1797,8,8] in 0..16 and `labels` uint8 [1797] in 0..9, saved
unchanged from `sklearn.datasets.load_digits` (scikit-learn 1.9, BSD-3-Clause), so that running
needs no scikit-learn. Origin: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits
(test part), UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0.
"""

import hashlib
import os
import pathlib
import tempfile

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from sg2jax import files
from sg2jax.data import records

ARRAYS = pathlib.Path(__file__).with_name('digits.npz')
VERSION = '1.0.0'


def prepare(data_dir: str | os.PathLike, height: int, width: int) -> pathlib.Path:
  """Returns the folder of the digits at this resolution, made on first use.

  Made beside its place and renamed into it, so a killed build leaves nothing that looks like a
  data set, and of two builds at once one wins and the other is thrown away. Raises WriteError if
  it can't be written.
  """
  place = pathlib.Path(data_dir).expanduser() / 'digits' / f'{height}x{width}' / VERSION
  if (place / records.INFO).exists():
    return place
  with files.writing(place):
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.building-', dir=place.parent) as scratch:
      built = pathlib.Path(scratch, VERSION)
      built.mkdir()
      _write(built, height, width)
      try:
        os.rename(built, place)
      except OSError:
        if not (place / records.INFO).exists():
          raise
  return place


def _write(place: pathlib.Path, height: int, width: int):
  with np.load(ARRAYS) as arrays:
    images = arrays['images']  # uint8 [1797,8,8]
    labels = arrays['labels']  # uint8 [1797]
  content = hashlib.sha256(images.tobytes() + labels.tobytes())
  content.update(f'{height}x{width} {VERSION}'.encode())
  examples = (
    records.example(records.png(enlarge(image, height, width)), int(label))
    for image, label in zip(images, labels, strict=True)
  )
  count, size = records.write_file(place / 'part', examples)
  (name,) = records.describe(
    place,
    'digits',
    [count],
    size,
    (height, width, 1),
    tfds.features.ClassLabel(num_classes=10),
    {'content_sha256': content.hexdigest(), 'resize_filter': 'lanczos'},
    description='Optical Recognition of Handwritten Digits (UCI), upsampled.',
    homepage='https://doi.org/10.24432/C50P49',
    license='CC BY 4.0',
  )
  os.rename(place / 'part', place / name)


def enlarge(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """Draws a digit, uint8 [8,8] in 0..16, as uint8 [height,width,1] in 0..255, bright on black.

  A border of one source pixel keeps the strokes off the edge; Lanczos keeps them smooth. In a
  rectangle the digit is centred, not stretched.
  """
  grey = np.pad(np.round(image * (255 / 16)).astype(np.uint8), 1)  # [10,10]
  side = min(height, width)
  square = Image.fromarray(grey).resize((side, side), Image.Resampling.LANCZOS)
  canvas = Image.new('L', (width, height))
  canvas.paste(square, ((width - side) // 2, (height - side) // 2))
  return np.asarray(canvas)[:, :, np.newaxis]
