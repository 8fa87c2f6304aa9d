"""Reference cases of augmentation: what a pipeline does to images, and the controller of p."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from sg2jax import augment, schedule, warp
from tests.reference.check import jit

STORED = ('G_inv', 'C', 'g', 'Hz_prime', 'sigma', 'cutout_size', 'cutout_center')


def _augment(sub):
  """Images, their gradients, and the matrices and numbers that make them."""
  if sub.id == 'filters':
    return {'Hz_geom': warp.TAPS, 'Hz_fbank': augment._bands()}
  config = sub.config
  kwargs = config.sub('augment_kwargs')
  fields = [field.name for field in dataclasses.fields(augment.Augment) if field.name in kwargs]
  values = {name: kwargs[name] for name in fields}
  pipe = augment.Augment(
    **{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
  )
  x = jnp.moveaxis(sub.given['x'], 1, -1)  # [N,H,W,C]
  for name, size in zip(('height', 'width', 'channels'), x.shape[1:], strict=True):
    config.expect(name, size)
  noise = sub.given.get('noise_image')
  noise = noise if noise is None else jnp.moveaxis(noise, 1, -1)
  percentile = config['debug_percentile']
  p = config['p']
  if percentile is None:
    # Drawn by the reference, of which only these results are stored; y follows from them.
    stored = _stored(sub)
    done = _from_stored(stored, noise)
    results = stored
  else:
    draws = _draws(percentile, len(x), x.dtype) | ({} if noise is None else {'noise': noise})
    done = pipe.parameters(draws, p, x.shape[1:])
    saturation = pipe.numbers(draws, p)['saturation'] * pipe.saturation_std
    results = _as_stored(done, saturation if x.shape[-1] > 1 else jnp.zeros_like(saturation))
  results |= _images(sub, x, done)
  return results


def _images(sub, x, done):
  results = {}
  padding = None
  if done.geometry is not None:
    left, top, right, bottom = sub.config['official_reflect_padding_x0_y0_x1_y1']
    # of float32's rounding, which moves an image that touches a pixel's edge
    sub.config.ignore('official_reflect_padding_float32')
    padding = (left, right, top, bottom)
    results['y_full_padding'] = jnp.moveaxis(jit(augment.transform)(x, done), -1, 1)

  @jit
  def with_gradient(x, dy):
    y, pull = jax.vjp(lambda x: augment.transform(x, done, padding), x)
    return y, pull(dy)[0]

  dy = sub.given.get('dy')
  y, grad = with_gradient(x, jnp.zeros_like(x) if dy is None else jnp.moveaxis(dy, 1, -1))
  return results | {'y': jnp.moveaxis(y, -1, 1), 'grad_x': jnp.moveaxis(grad, -1, 1)}


def _draws(u, count, dtype):
  """Draws that are all at percentile u, with every transform done."""
  normal = dict.fromkeys(augment.NORMAL, special.erfinv(2 * u - 1)) | {'noise': special.erfinv(u)}
  uniform = dict.fromkeys(augment.UNIFORM, u) | {'rotate_after': 0.5}
  numbers = {
    'gate': [0.0] * len(augment.GATES),
    'uniform': uniform.values(),
    'normal': normal.values(),
  }
  return {k: jnp.asarray(np.tile(list(v), (count, 1)), dtype) for k, v in numbers.items()}


def _as_stored(done, saturation):
  """Parameters as the vectors have them."""
  results = {}
  if done.geometry is not None:
    rows = jnp.stack(done.geometry, -1)  # [N,2,3]
    last = jnp.broadcast_to(jnp.array([[[0.0, 0, 1]]], rows.dtype), (len(rows), 1, 3))
    results['G_inv'] = jnp.concatenate([rows, last], 1)
  if done.colors is not None:
    # The reference's saturation scales the homogeneous component, too, which nothing reads.
    last = jnp.zeros((len(saturation), 1, 4)).at[:, 0, 3].set(jnp.exp2(saturation))
    results['C'] = jnp.concatenate([done.colors, last], 1)
  if done.gains is not None:
    results['g'] = done.gains
    results['Hz_prime'] = done.gains @ augment._bands()
  if done.sigma is not None:
    results['sigma'] = done.sigma[:, None, None, None]
  if done.cutout is not None:
    results['cutout_center'], results['cutout_size'] = done.cutout
  return results


def _stored(sub):
  """What the reference drew, by name: those of STORED that the sub-case has."""
  found = {}
  for file in pathlib.Path(sub.folder).glob('*augment*.npz'):
    with np.load(file) as data:
      keys = [name for name in STORED if f'{sub.id}/{name}' in data]
      found |= {name: jnp.asarray(data[f'{sub.id}/{name}'], sub.given['x'].dtype) for name in keys}
  return found


def _from_stored(stored, noise):
  """Parameters of what the vectors have."""
  done = augment.Parameters(
    colors=stored['C'][:, :3] if 'C' in stored else None, gains=stored.get('g')
  )
  if 'G_inv' in stored:
    g = stored['G_inv']
    done = done._replace(geometry=warp.Geometry(g[:, :2, 0], g[:, :2, 1], g[:, :2, 2]))
  if 'sigma' in stored:
    done = done._replace(sigma=stored['sigma'][:, 0, 0, 0], noise=noise)
  if 'cutout_size' in stored:
    done = done._replace(cutout=(stored['cutout_center'], stored['cutout_size']))
  return done


def _controller(sub):
  """p and r_t after each move, from the logits of every minibatch [iterations, batch]."""
  config = sub.config
  logits = sub.given['real_logits']
  interval = config['ada_interval']
  moves = schedule.MovesOfP(config['ada_target'], interval, config['ada_kimg'])
  p = jnp.asarray(config['p_initial'], logits.dtype)
  signs = jnp.zeros(2, logits.dtype)
  results = {'p': [], 'rt': []}
  for step, x in enumerate(logits):
    signs = signs + jnp.stack([jnp.sign(x).sum(), jnp.asarray(x.size, x.dtype)])
    before = signs
    p, signs = moves.move(p, signs, step, config['batch_size'])
    if (step + 1) % interval == 0:
      results['p'].append(p)
      results['rt'].append(before[0] / before[1])
  return {name: jnp.stack(values) for name, values in results.items()}


CASES = {'ada_augment': _augment, 'ada_controller': _controller}
