"""The bundled data set: 1,797 handwritten digits as a TFDS builder; no download, no TensorFlow.

`digits.npz` holds `images` uint8 [1797,8,8] in 0..16 and `labels` uint8 [1797] in 0..9, saved
unchanged from `sklearn.datasets.load_digits` (scikit-learn 1.9, BSD-3-Clause), so that running
needs no scikit-learn. Origin: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits
(test part), UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0.
"""

import contextlib
import hashlib
import io
import os
import pathlib
import shutil
import tempfile

from absl import logging
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from sg2jax import faults
from sg2jax.data import images

_ARRAYS = pathlib.Path(__file__).with_name('digits.npz')


class Digits(tfds.core.GeneratorBasedBuilder):
  """Handwritten digits, grey; the builder config's name, `<height>x<width>`, is the resolution."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    height, width = self._resolution()
    with np.load(_ARRAYS) as arrays:
      content = hashlib.sha256(arrays['images'].tobytes() + arrays['labels'].tobytes())
    content.update(f'{height}x{width} {self.VERSION}'.encode())
    return tfds.core.DatasetInfo(
      builder=self,
      description='Optical Recognition of Handwritten Digits (UCI), upsampled.',
      homepage='https://doi.org/10.24432/C50P49',
      license='CC BY 4.0',
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(content_sha256=content.hexdigest(), resize_filter='lanczos'),
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(height, width, 1), encoding_format='png'),
          'label': tfds.features.ClassLabel(num_classes=10),
        }
      ),
    )

  def _resolution(self) -> tuple[int, int]:
    height, width = self.builder_config.name.split('x')
    return int(height), int(width)

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    height, width = self._resolution()
    with np.load(_ARRAYS) as arrays:
      pairs = list(zip(arrays['images'], arrays['labels'], strict=True))
    for i, (image, label) in enumerate(pairs):
      # Encoded bytes, because TFDS needs TensorFlow to encode arrays.
      yield i, {'image': images.encode_png(enlarge(image, height, width)), 'label': int(label)}


def enlarge(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """Draws an 8x8 digit at another resolution.

  A border of one source pixel keeps the strokes off the edge; Lanczos keeps them smooth. In a
  rectangle the digit is centred on black, not stretched.

  Args:
    image: uint8 [8,8] in 0..16.
    height: pixels.
    width: pixels.

  Returns:
    uint8 [height,width,1] in 0..255, strokes bright on black.
  """
  grey = np.pad(np.round(image * (255 / 16)).astype(np.uint8), 1)  # [10,10]
  side = min(height, width)
  square = Image.fromarray(grey).resize((side, side), Image.Resampling.LANCZOS)
  canvas = Image.new('L', (width, height))
  canvas.paste(square, ((width - side) // 2, (height - side) // 2))
  return np.asarray(canvas)[:, :, np.newaxis]


@contextlib.contextmanager
def _quiet():
  """TFDS would announce a download that isn't one and warn that the resolution is custom."""
  tfds.disable_progress_bar()
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)


def prepare(data_dir: str, height: int, width: int) -> pathlib.Path:
  """Returns the folder of the digits at this resolution, building it on first use.

  Built beside its place and renamed into it, so a killed build leaves nothing that looks like a
  data set, and of two builds at once one wins and the other is thrown away.

  Args:
    data_dir: the TFDS data directory.
    height: pixels.
    width: pixels.

  Raises:
    WriteError: `data_dir` can't be written.
  """
  config = f'{height}x{width}'
  place = pathlib.Path(data_dir).expanduser() / 'digits' / config / str(Digits.VERSION)
  if (place / 'dataset_info.json').exists():
    return place
  try:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.building-', dir=place.parent) as scratch:
      with _quiet():
        builder = Digits(
          data_dir=scratch,
          file_format='array_record',
          config=tfds.core.BuilderConfig(name=config, version=Digits.VERSION),
        )
        builder.download_and_prepare()
      built = pathlib.Path(builder.data_dir)
      try:
        os.rename(built, place)
      except OSError:
        if not (place / 'dataset_info.json').exists():
          raise
        shutil.rmtree(built)
  except OSError as err:
    raise faults.WriteError(
      f'{place}: the digits could not be written there ({err}); '
      'set data.dir to a folder that can be written'
    ) from err
  return place
