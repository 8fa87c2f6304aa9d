"""From images to features: what looks at images, and the passes of it over reals and over fakes.

Which images a metric sees is fixed here: reals by their place in the data set, fakes by their
number, the same whatever the batch and the number of devices. Steps are compiled once for equal
arguments (`lru_cache`), because training measures again and again.
"""

from collections.abc import Callable, Sequence
from concurrent import futures
import functools
from functools import partial
import hashlib
import importlib
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from sg2jax import data, pretrained, sharding
from sg2jax.build import networks
from sg2jax.evaluation import ppl
from sg2jax.evaluation.passes import Pass, Stopped
from sg2jax.evaluation.protocols import WEIGHTS, Protocol
from sg2jax.faults import UsageError, WeightsError
from sg2jax.keys import purpose_key
from sg2jax.models.layers import draw_noise
from sg2jax.nets import inception, vgg
from sg2jax.sampler import Sampler, images_at_once, to_uint8

PIXELS = 16  # px, longer side of what 'pixels' sees
SWD_SIDE = 128  # px, longer side of what swd sees; larger images would take hours and tens of GB
BLOCK = 256  # latents that are drawn at once
PAIRS = 4  # path lengths that are computed at once, at most


class Setting(NamedTuple):
  """What is measured, and how."""

  sampler: Sampler
  source: Any  # a data.Source of reals
  mesh: Mesh
  out: pathlib.Path  # folder of results
  seed: int = 0  # of latents, labels, noise and subsets
  batch: int = 0  # images at once, over all devices; 0: what suits their size
  holdout: Any = None  # a data.Source of reals that weren't trained on, or None
  explicit: dict[str, str] = {}  # {name: path} of weights that aren't in their place
  stop: Any = ()  # true after a signal

  @property
  def at_once(self) -> int:
    """Images at once, over all devices."""
    return self.batch or images_at_once(self.source.shape) * self.mesh.size

  def check_stop(self) -> None:
    """For long work on the host: raises Stopped after a signal."""
    if self.stop:
      raise Stopped

  def training_order(self, p: Protocol) -> dict[str, Any] | None:
    """Seed and mirror of the order of training, in which a protocol takes reals, if it does."""
    if p.full:
      return None
    return {'seed': self.seed, 'mirror': bool(self.sampler.config.data.mirror)}

  def about_order(self, p: Protocol) -> dict[str, Any] | None:
    """What results that take reals in the order of training depend on, as JSON values."""
    training = self.training_order(p)
    if training and training['mirror']:
      training['order'] = data.ORDER
    return training


# ---- detectors: what looks at images


class Detector(NamedTuple):
  """What looks at images."""

  name: str
  hash: str  # SHA-256 of its weights, '' without
  known: bool  # whether they are the ones that the metric is defined with
  resize: str  # how it brings images to its size
  params: Any
  # (params, uint8 [N,H,W,C]) -> {output: [N,...]}; of lpips (params, two images [N,H,W,C] in
  # [-1,1]) -> distance [N]
  apply: Callable


def load(name: str, shape: Sequence[int], explicit: dict[str, str]) -> Detector:
  """The Detector of that name for images of `shape` (H, W, C).

  Outputs of 'inception': 'pool' [N,2048] and 'probs' [N,1008]; of 'vgg16': 'fc' [N,4096]; of
  'pixels': 'pixels' [N,h*w*C] in 0..1; of 'small': 'small', uint8 images [N,h,w,C] for the SWD.
  'lpips' is the distance of two images. explicit: {name: path} of weights that aren't in their
  place.

  Raises: WeightsError; UsageError for images that a network can't see.
  """
  if name not in NETWORKS:
    factor = shrink_factor(name, shape)
    return Detector(name, '', True, f'box, 1/{factor}', {}, _shrinking(name, factor))
  if shape[2] not in (1, 3):
    raise UsageError(
      f'{name} takes grey or RGB images, and these have {shape[2]} channels; use swd, pixelfd or '
      'pixelnn'
    )
  convert, apply, resize = NETWORKS[name]
  if name != 'inception':
    # What isn't installed is said now and not after hours.
    importlib.import_module('lpips_j')
    importlib.import_module('flaxmodels')
  pretrained.require(WEIGHTS[name], explicit)  # all that are missing in one message
  loaded = [pretrained.load(weights, explicit.get(weights, '')) for weights in WEIGHTS[name]]
  arrays, digests = zip(*loaded)
  known = all(pretrained.FILES[w].sha256 == digest for w, digest in zip(WEIGHTS[name], digests))
  digest = digests[0]
  if len(digests) > 1:
    digest = hashlib.sha256(' '.join(digests).encode()).hexdigest()
  try:
    params = jax.device_put(convert(*arrays))
  except ValueError as e:
    raise WeightsError(f'weights of {name}: {e}') from None
  return Detector(name, digest, known, resize, params, apply)


def colour(images: jax.Array) -> jax.Array:
  """Grey images [N,H,W,1] as RGB; others as they are."""
  return jnp.repeat(images, 3, -1) if images.shape[-1] == 1 else images


def _inception(params, images):
  features = inception.features(params, colour(images))
  # The score takes the logits without their bias [Salimans et al. 2016; as in NVIDIA's and OpenAI's
  # evaluation].
  return {'pool': features['2048'], 'probs': jax.nn.softmax(features['logits_unbiased'])}


def _vgg16(params, images):
  return {'fc': vgg.fc_features(params, colour(images))}


def _lpips(params, x, y):
  return vgg.lpips(params, colour(x), colour(y))


# name: (arrays of its weights -> parameters, apply, resize)
NETWORKS = {
  'inception': (inception.params, _inception, 'bilinear to 299x299 as TensorFlow 1'),
  'vgg16': (vgg.fc_params, _vgg16, 'bilinear to 224x224'),
  'lpips': (vgg.lpips_params, _lpips, 'box to 256 px or a little more'),
}


def shrink_factor(name: str, shape: Sequence[int]) -> int:
  """By how much a detector that shrinks makes images of `shape` (H, W, ...) smaller; others: 1."""
  side = {'small': SWD_SIDE, 'pixels': PIXELS}.get(name)
  return -(-max(shape[:2]) // side) if side else 1


@functools.lru_cache
def _shrinking(name, factor):
  """The apply of 'small' and of 'pixels', always the same object: what has it is compiled once."""

  def apply(_, images):
    small = data.shrink(images, factor)
    if name == 'pixels':
      small = small.reshape(len(images), -1).astype(jnp.float32) / 255
    return {name: small}

  return apply


# ---- batches


def _share(mesh, first, n, size, group=1):
  """Those of the n images from `first` on that this process computes.

  They are repeated up to `size`, or up to whole groups on every device: so the last batch is as
  large as the others, and isn't compiled for itself.
  """
  size = -(-size // (group * mesh.size)) * group * mesh.size
  numbers = first + np.arange(size) % n
  return np.array_split(numbers, jax.process_count())[jax.process_index()]


def _on_devices(mesh, step, *constants):
  """A step of `sharding.jit_each` -> (n, batch of this process) -> {output: [n,...]}."""
  constants = sharding.replicate(mesh, constants)

  def compute(n, batch):
    outputs = step(*constants, sharding.to_global(mesh, batch))
    return {name: x[:n] for name, x in outputs.items()}

  return compute


# ---- reals


@functools.lru_cache
def _reals_step(mesh, apply, output):
  def step(params, batch):
    with jax.default_matmul_precision('highest'):  # as the fakes
      return {output: apply(params, batch['image'])[output]}

  return sharding.jit_each(step, mesh, 1)


def reals_pass(
  s: Setting, p: Protocol, source: Any, detector: Detector, places: np.ndarray
) -> Pass:
  """The Pass of a detector over reals at `places`, of what a protocol compares.

  source: a data.Source; places: int [N], in it, or in the order of training.
  """
  training = s.training_order(p)
  samples = data.stream(source, **training) if training else source
  about = {
    'data': source.hash,
    'shape': list(source.shape),
    'places': hashlib.sha256(np.asarray(places, np.int64).tobytes()).hexdigest(),
    'training': s.about_order(p),
    'detector': [detector.name, detector.hash, detector.resize],
    'output': p.of_kind.output,
    'kept': p.of_kind.reals,
  }
  step = _reals_step(s.mesh, detector.apply, p.of_kind.output)
  outputs = _on_devices(s.mesh, step, detector.params)
  pool = futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1))

  def read(number):
    return samples[int(places[number])]['image']

  def compute(first, n, size):
    images = np.stack(list(pool.map(read, _share(s.mesh, first, n, size))))
    return outputs(n, {'image': images[None]})

  return Pass(f'reals: {detector.name}', len(places), compute, about)


# ---- fakes


def latents(s: Setting, numbers: np.ndarray, kind: int = 0) -> dict[str, np.ndarray]:
  """What fakes are made of, by their numbers [n].

  z and z1 [1,n,z_dim], t [1,n] in [0,1), label [1,n,c_dim], number [1,n]. They are drawn in
  blocks, so that a fake is the same whichever others are drawn with it. Labels are those of random
  images of the data set, as in NVIDIA's metrics. kind: of the sequence.
  """
  blocks = np.unique(numbers // BLOCK)
  drawn = []
  for block in blocks:
    random = np.random.default_rng([s.seed, kind, int(block)])
    z, z1 = random.standard_normal((2, BLOCK, s.sampler.generator.mapping.z_dim), np.float32)
    drawn.append(
      (z, z1, random.random(BLOCK, np.float32), random.integers(0, len(s.source), BLOCK))
    )
  rows = np.searchsorted(blocks, numbers // BLOCK) * BLOCK + numbers % BLOCK
  z, z1, t, places = (np.concatenate(parts)[rows][None] for parts in zip(*drawn))
  label = np.stack([s.source.label(int(i)) for i in places[0]])[None]
  return {'z': z, 'z1': z1, 't': t, 'label': label, 'number': numbers[None].astype(np.int32)}


def _keys(seed, numbers):
  """One key for each fake, by its number."""
  return jax.vmap(partial(jax.random.fold_in, purpose_key(seed, 'evaluation')))(numbers)


@functools.lru_cache
def _fakes_step(mesh, generator, growing, seed, applies):
  """applies: (name, apply) of detectors; none: the images themselves."""

  def step(variables, params, batch):
    noise = draw_noise(variables['noise'], _keys(seed, batch['number']))
    with jax.default_matmul_precision('highest'):  # in TF32 the batch would show
      images = to_uint8(
        generator.apply(
          {'params': variables['params'], 'noise': noise},
          batch['z'],
          batch['label'],
          noise_mode='const',
          **dict(growing),
        )
      )
      outputs = {} if applies else {'image': images}
      for name, apply in applies:
        outputs |= apply(params[name], images)
    return outputs

  return sharding.jit_each(step, mesh, 2)


def _outputs_of_fakes(s, detectors):
  growing = tuple(s.sampler.growing.items())
  applies = tuple((d.name, d.apply) for d in detectors)
  step = _fakes_step(s.mesh, s.sampler.generator, growing, s.seed, applies)
  return _on_devices(s.mesh, step, s.sampler.variables, {d.name: d.params for d in detectors})


def fakes_pass(s: Setting, detectors: list[Detector], count: int) -> Pass:
  """The Pass of detectors over `count` fakes: no truncation, noise of its own for each."""
  outputs = _outputs_of_fakes(s, detectors)

  def compute(first, n, size):
    return outputs(n, latents(s, _share(s.mesh, first, n, size)))

  return Pass(f'fakes: {", ".join(d.name for d in detectors)}', count, compute)


def fake_images(s: Setting, numbers: np.ndarray) -> np.ndarray:
  """The fakes with these numbers, uint8 [N,H,W,C]."""
  here = np.asarray(numbers)[_share(s.mesh, 0, len(numbers), len(numbers))]
  return np.asarray(_outputs_of_fakes(s, ())(len(numbers), latents(s, here))['image'])


# ---- pairs of fakes


def pairs_at_once(shape: Sequence[int]) -> int:
  """Path lengths computed at once, whatever the batch: they feel the last bits of float32."""
  return min(PAIRS, max(1, images_at_once(shape) // 2))


@functools.lru_cache
def _ppl_step(mesh, generator, distance, protocol, seed):
  pairs = pairs_at_once(generator.synthesis.resolution)

  def step(variables, params, batch):
    def group(part):
      return ppl.distances(
        generator,
        partial(distance, params),
        protocol.space,
        variables,
        part['z'],
        part['z1'],
        part['t'] * (protocol.sampling == 'full'),
        part['label'],
        _keys(seed, part['number']),
        protocol.crop,
      )

    with jax.default_matmul_precision('highest'):
      groups = {name: x.reshape(-1, pairs, *x.shape[1:]) for name, x in batch.items()}
      return {'ppl': jax.lax.map(group, groups).ravel()}

  return sharding.jit_each(step, mesh, 2)


def ppl_pass(s: Setting, p: Protocol, distance: Detector) -> Pass:
  """The Pass of perceptual path lengths [pairs]. distance: the Detector 'lpips'."""
  config = s.sampler.config.copy_and_resolve_references()
  config.g.num_bf16_res = 0  # a step of 1e-4 is lost in bfloat16
  generator = networks(config, config.c_dim)[0]
  step = _ppl_step(s.mesh, generator, distance.apply, p, s.seed)
  outputs = _on_devices(s.mesh, step, s.sampler.variables, distance.params)
  pairs = pairs_at_once(generator.synthesis.resolution)

  def compute(first, n, size):
    return outputs(n, latents(s, _share(s.mesh, first, n, size, pairs), kind=1))

  return Pass(f'pairs: {p.name}', p.count, compute)
