"""Classifiers that are looked into: from images [N,H,W,C] in [-1,1] to logits [N,K].

classifier = classifiers.load('digits', (32, 32, 1))  # or 'my_module:logits', 'mine.stablehlo'
classifier.predict(images)  # of uint8 [N,H,W,C]: logits [N,K]

No image of a batch may have to do with another one: nothing is normalised over a batch.
"""

from collections.abc import Callable, Sequence
import functools
import hashlib
import importlib
import inspect
import pathlib
import re
from typing import Any, NamedTuple

import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np

from sg2jax import files, sampler
from sg2jax.clip import Clip
from sg2jax.edit import digit_classifiers
from sg2jax.edit.text_losses import Tower
from sg2jax.faults import NonFiniteError, UsageError
from sg2jax.nets import clip

CHOICES = (
  'digits (or digits-1 ... from other seeds, digits+FILE.npz trained also on samples that were '
  'found), digits-kernel, MODULE:FUNCTION, or FILE.stablehlo'
)
PROBES = 4  # images


class Classifier(NamedTuple):
  """A classifier of K classes."""

  name: str  # as `load` takes it
  hash: str  # of what decides about its logits
  classes: int  # K
  function: Callable  # (params, float32 [N,H,W,C] in [-1,1]) -> logits [N,K]
  params: Any = None

  def logits(self, images: jax.Array) -> jax.Array:
    """Images [N,H,W,C] in [-1,1] -> logits [N,K]."""
    return self.function(self.params, images)

  def predict(self, images: np.ndarray) -> np.ndarray:
    """Images uint8 [N,H,W,C] -> logits [N,K], a batch at a time.

    Raises: NonFiniteError: one is NaN, by which no class could be said.
    """
    size = min(len(images), sampler.images_at_once(images.shape[1:]))
    found = []
    for rows, count in sampler.parts(len(images), size):
      found.append(np.asarray(_step(self.function, self.params, images[rows]))[:count])
    found = np.concatenate(found)
    if np.isnan(found).any():
      raise NonFiniteError(
        f'{self.name} gives NaN for {np.isnan(found).any(1).sum()} of {len(found)} images; mend it'
      )
    return found


@functools.partial(jax.jit, static_argnums=0)
def _step(function, params, images):
  return function(params, from_uint8(images))


def from_uint8(images: jax.Array) -> jax.Array:
  """Images uint8 -> as classifiers take them, float32 in [-1,1]."""
  return images.astype(jnp.float32) / 127.5 - 1


def is_of_digits(spec: str) -> bool:
  """Whether `load` takes it for one of the package's own."""
  return re.match(r'digits(?=[-+]|$)', spec) is not None


def judge_of(spec: str) -> str:
  """Which of the package's own is of another family than one of them; '' for those of others."""
  if not is_of_digits(spec):
    return ''
  return 'digits' if re.match(r'digits-kernel(?=\+|$)', spec) else 'digits-kernel'


def load(spec: str, shape: Sequence[int], gradient: bool = True) -> Classifier:
  """The Classifier that is called so, for images of a shape (H, W, C).

  Args:
    spec: one of CHOICES.
    shape: of the images.
    gradient: whether it will be differentiated.

  Raises: UsageError: there is none, or it takes or gives something else; WeightsError.
  """
  if is_of_digits(spec):
    function, params, digest = digit_classifiers.load(spec)
    return Classifier(spec, digest, len(digit_classifiers.WORDS), function, params)
  if spec.endswith('.stablehlo'):
    return _of_stablehlo(spec, shape, gradient)
  if ':' in spec:
    return _of_function(spec, shape, gradient)
  raise UsageError(f'classifier {spec} is unknown; give {CHOICES}')


def zero_shot(net: Clip, texts: Sequence[str]) -> Classifier:
  """CLIP as a classifier: of which of K texts an image is nearest.

  Raises: UsageError for texts that it can't take.
  """
  vectors = np.stack([net.text(text) for text in texts])  # [K,E]
  function = _compare(net.architecture)
  params = {'visual': net.params['visual'], 'logit_scale': net.params['logit_scale']}
  return Classifier('clip', net.hash, len(texts), function, (params, vectors))


@functools.lru_cache(8)  # equal towers are one function, and compiled once
def _compare(architecture):
  def function(params, images):
    weights, vectors = params
    features = clip.unit(Tower(weights, architecture).features(images))
    return jnp.exp(weights['logit_scale']) * features @ vectors.T

  return function


# ---- of others


def _of_function(spec, shape, gradient):
  name, _, attribute = spec.partition(':')
  try:
    module = importlib.import_module(name)
    given = getattr(module, attribute)
  except Exception as e:  # the module is another's: it may raise whatever it likes
    raise UsageError(
      f'classifier {spec}: {type(e).__name__}: {_line(e)}; MODULE must be importable (in this '
      'folder or in $PYTHONPATH) and have FUNCTION'
    ) from e
  rule = f'it must be a JAX function of images float32 [N,{_sides(shape)}] to logits float [N,K]'
  try:
    found = jax.eval_shape(given, jax.ShapeDtypeStruct((3, *shape), np.float32))
  except Exception as e:
    raise UsageError(f'classifier {spec}: {type(e).__name__}: {_line(e)}; {rule}') from e
  if not _are_logits(found, 3):
    raise UsageError(f'classifier {spec} returns {_shown(found)} for 3 images; {rule}')
  if gradient:
    try:
      of_sum = jax.grad(lambda images: given(images).sum())
      jax.eval_shape(of_sum, jax.ShapeDtypeStruct((2, *shape), np.float32))
    except Exception as e:
      raise UsageError(
        f'classifier {spec} has no gradient by which to search: {type(e).__name__}: {_line(e)}'
      ) from e
  source = inspect.getsourcefile(given) if inspect.isfunction(given) else module.__file__
  digest = files.sha256(source) if source and pathlib.Path(source).exists() else ''
  try:
    digest = hashlib.sha256(digest.encode() + _probe(given, shape)).hexdigest()
  except Exception as e:  # what it does only when it runs, such as a callback
    raise UsageError(f'classifier {spec}: {type(e).__name__}: {_line(e)}; {rule}') from e

  def function(_, images):
    return given(images)

  return Classifier(spec, digest, found.shape[1], function)


def _probe(function, shape):
  """Bytes that other weights change, which a function may have read from anywhere.

  A number of each of a few fixed images, of so few digits that other devices say the same.
  """
  images = np.random.RandomState(0).uniform(-1, 1, (PROBES, *shape)).astype(np.float32)
  with jax.default_matmul_precision('highest'):
    logits = np.asarray(jax.jit(function)(images), np.float32)
  found = logits @ np.cos(np.arange(logits.shape[1]))
  return np.array2string(found, formatter={'float': '{:.2e}'.format}).encode()


def _of_stablehlo(spec, shape, gradient):
  path = pathlib.Path(spec).expanduser()
  try:
    data = path.read_bytes()
  except OSError as e:
    raise UsageError(f'classifier {spec}: {files.reason(e)}') from e
  try:
    module = jax_export.deserialize(bytearray(data))
  except Exception as e:  # whatever flatbuffers and MLIR raise on other files
    raise UsageError(
      f'classifier {spec} is no module of jax.export: {type(e).__name__}: {_line(e)}'
    ) from e
  takes, gives = module.in_avals, module.out_avals
  rule = f'it must take float32 [N,{_sides(shape)}], of any N, and give float [N,K]'
  if len(takes) != 1 or not _takes_images(takes[0], shape):
    raise UsageError(f'classifier {spec} takes {_shown(takes)}; {rule}')
  if len(gives) != 1 or not _are_logits(gives[0], takes[0].shape[0]):
    raise UsageError(f'classifier {spec} gives {_shown(gives)}; {rule}')
  here = jax.default_backend()
  here = 'cuda' if here == 'gpu' and 'rocm' not in module.platforms else here
  if here not in module.platforms:
    raise UsageError(
      f'classifier {spec} runs on {", ".join(module.platforms)} and this is {here}; export it '
      f'with platforms=[{here!r}, ...]'
    )
  if gradient and not module.has_vjp():
    raise UsageError(
      f'classifier {spec} was written without its gradient; write it with '
      'exported.serialize(vjp_order=1)'
    )

  def function(_, images):
    return module.call(images)

  return Classifier(spec, files.sha256(path), gives[0].shape[1], function)


def _takes_images(aval, shape):
  n, *sides = aval.shape or (None,)
  return jax_export.is_symbolic_dim(n) and sides == list(shape) and aval.dtype == np.float32


def _are_logits(x, n):
  """Whether a shape is that of logits of n images."""
  shape = getattr(x, 'shape', ())
  if len(shape) != 2 or shape[0] != n or not isinstance(shape[1], int) or shape[1] < 2:
    return False
  return jnp.issubdtype(x.dtype, jnp.floating)


def _shown(x):
  """Shapes and dtypes for a message."""
  leaves = jax.tree.leaves(x)
  shown = [f'{x.dtype} [{_sides(x.shape)}]' for x in leaves if hasattr(x, 'shape')]
  return ', '.join(shown) or str(x)


def _sides(shape):
  return ','.join(map(str, shape))


def _line(e):
  """What an error says, in one line."""
  return ' '.join(str(e).split())[:200]
