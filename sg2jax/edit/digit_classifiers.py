"""Classifiers of the bundled digits, of two families: what is to be fooled, and who judges it.

Both look at the middle square of any image, in grey. Every fifth of the bundled digits is held out:
neither sees it.
"""

from collections.abc import Callable
import functools
import hashlib
import re
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sg2jax import files, paths
from sg2jax.data import digits
from sg2jax.faults import UsageError
from sg2jax.nets import clip

WORDS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
HELD_OUT = 5  # of so many digits one
SIDE = 32  # px, that the convolutional network looks at
KERNEL_SIDE = 16  # px, that the kernel classifier compares
EPOCHS = 12
BATCH = 64
LR = 2e-3
MAX_BYTES = 2**30  # of a file of samples
_SPEC = re.compile(r'digits(?:-(?P<kind>kernel|\d{1,9}))?(?:\+(?P<more>.+))?')


class Network(nn.Module):
  """Two convolutions and two dense layers: [N,SIDE,SIDE,1] in [-1,1] -> logits [N,10]."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for width in (16, 32):
      x = nn.relu(nn.Conv(width, (3, 3), 2)(x))
    x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
    return nn.Dense(len(WORDS))(x)


def load(spec: str) -> tuple[Callable, Any, str]:
  """(function, params, hash) of a Classifier: 'digits', 'digits-1', 'digits+FILE', 'digits-kernel'.

  A few seconds of training; the hash is that of the samples and settings.

  Raises: UsageError: it is called otherwise, or the file can't be read.
  """
  match = _SPEC.fullmatch(spec)
  if not match:
    raise UsageError(f'classifier {spec} is unknown; digits, digits-1 ..., digits-kernel, +FILE')
  images, labels, held_out = samples()
  images, labels = images[~held_out], labels[~held_out]
  if match['more']:
    more, classes = _read_samples(match['more'])
    images, labels = np.concatenate([images, more]), np.concatenate([labels, classes])
  kind = match['kind'] or '0'
  digest = hashlib.sha256(images.tobytes() + labels.tobytes())
  digest.update(f'{kind} {EPOCHS} {BATCH} {LR} {BANDWIDTH}'.encode())
  if kind == 'kernel':
    return kernel_logits, kernel(images, labels), digest.hexdigest()
  return network_logits, train(images, labels, int(kind)), digest.hexdigest()


@functools.cache  # several classifiers learn them, and Pillow takes half a second
def samples() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The bundled digits: images uint8 [1797,SIDE,SIDE,1], labels [1797], whether held out [1797]."""
  with np.load(digits.ARRAYS) as arrays:
    images = np.stack([digits.enlarge(image, SIDE, SIDE) for image in arrays['images']])
    labels = arrays['labels'].astype(np.int32)
  return images, labels, np.arange(len(labels)) % HELD_OUT == 0


def _read_samples(path):
  """`images` and `labels` of an .npz of samples that were found: uint8 [N,SIDE,SIDE,1], [N]."""
  try:
    with files.reading(paths.place(path)):
      arrays = files.parse_npz(paths.place(path).read_bytes(), MAX_BYTES, 'fiubU')
    images, labels = arrays['images'], arrays['labels']
    if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
      raise ValueError(f'images {images.dtype} {images.shape}, labels {labels.shape}')
    if not np.isin(labels, range(len(WORDS))).all():
      raise ValueError(f'labels that are no digits: {sorted(set(labels.tolist()))[:12]}')
  except OSError as e:
    raise UsageError(f'cannot read {path}: {files.reason(e)}; name an adversarial.npz') from e
  except Exception as e:  # whatever a file that isn't as it was written leads to
    raise UsageError(f'{path} holds no samples of digits: {type(e).__name__} {e}') from e
  grey = np.asarray(_grey(images.astype(np.float32), SIDE))
  return np.clip(np.round(grey), 0, 255).astype(np.uint8), labels.astype(np.int32)


def _grey(images, side):
  """The middle square of images [N,H,W,C], in grey: [N,side,side,1]."""
  return clip.raw_view(images, side).mean(-1, keepdims=True)


# ---- the network


def network_logits(params: Any, images: jax.Array) -> jax.Array:
  """Images [N,H,W,C] in [-1,1] -> logits [N,10] of a Network."""
  with jax.default_matmul_precision('highest'):
    return Network().apply({'params': params}, _grey(images, SIDE))


def train(images: np.ndarray, labels: np.ndarray, seed: int = 0) -> Any:
  """Params of a Network that learned images uint8 [N,SIDE,SIDE,1], labels [N]: Adam, EPOCHS."""
  random = np.random.RandomState(seed)
  images = images.astype(np.float32) / 127.5 - 1
  steps = EPOCHS * (len(images) // BATCH)
  optimizer = optax.adam(optax.cosine_decay_schedule(LR, steps))
  params = Network().init(jax.random.key(seed), images[:1])['params']
  step = _step(optimizer.update)
  state = optimizer.init(params)
  for _ in range(EPOCHS):
    order = random.permutation(len(images))
    for first in range(0, len(images) - BATCH + 1, BATCH):
      rows = order[first : first + BATCH]
      params, state = step(params, state, images[rows], labels[rows])
  return params


def _step(update):
  def loss(params, images, labels):
    logits = Network().apply({'params': params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  @jax.jit
  def step(params, state, images, labels):
    updates, state = update(jax.grad(loss)(params, images, labels), state)
    return optax.apply_updates(params, updates), state

  return step


# ---- the kernel classifier


# Of squared distances of unit vectors. Leave-one-out over the digits that aren't held out: 98.96 %;
# half or twice of it 98.9 % and 98.6 %.
BANDWIDTH = 0.01


def kernel(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Params of `kernel_logits`: unit vectors [M,D] of images uint8, and their classes [M,10]."""
  vectors = np.asarray(_vectors(images.astype(np.float32) / 127.5 - 1))
  return vectors, np.eye(len(WORDS), dtype=np.float32)[labels]


def kernel_logits(params: Any, images: jax.Array) -> jax.Array:
  """Log densities of classes [N,10] at images [N,H,W,C] in [-1,1], by a Gaussian kernel [Parzen].

  With as little width as here it is the nearest neighbours that count. Vectors of pixels have
  length 1, so brightness is none of the differences.
  """
  references, classes = params
  with jax.default_matmul_precision('highest'):
    squares = 2 - 2 * _vectors(images) @ references.T  # [N,M]
  each = jnp.where(classes.T > 0, -squares[:, None] / BANDWIDTH, -jnp.inf)  # [N,10,M]
  return jax.nn.logsumexp(each, -1)


def _vectors(images):
  """Images [N,H,W,C] in [-1,1] -> unit vectors [N,D] of their pixels, 0 where they are black."""
  pixels = (_grey(images, KERNEL_SIDE) + 1) / 2
  return clip.unit(pixels.reshape(len(pixels), -1))
