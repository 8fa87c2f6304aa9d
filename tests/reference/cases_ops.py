"""Reference cases of parameter-free maths and single layers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sg2jax import conv, ops, resample
from sg2jax.data import images
from sg2jax.interop.names import nchw, nhwc
from sg2jax.models.layers import Dense
from tests.reference.cases_nets import read_stddev


def _second_order(f, x, dy, v):
  """y and the derivatives of L = sum(y dy) and of s = sum(grad_x v). x: a tuple of arguments, the
  first is `x`.

  -> y, (grads of L), (grads of s: by dy, then by each argument).
  """

  def first(dy, *x):
    y, pull = jax.vjp(f, *x)
    return y, pull(dy)

  def s(dy, *x):
    return jnp.sum(first(dy, *x)[1][0] * v)

  def everything():
    y, grads = first(dy, *x)
    return y, grads, jax.grad(s, argnums=tuple(range(len(x) + 1)))(dy, *x)

  return jax.jit(everything)()


def upfirdn2d(sub):
  """upfirdn2d, its three wrappers and the filter set-up."""
  config, given = sub.config, sub.given
  op = config.get('op', 'upfirdn2d')
  f = config.get('f')
  f = given['filter_raw'] if 'filter_raw' in given else f
  prepare = partial(
    resample.setup_filter,
    normalize=config.get('normalize', True),
    separable=config.get('separable'),
  )
  if op == 'setup_filter':
    return {'filter': prepare(f, flip=config.get('flip_filter', False), gain=config.get('gain', 1))}
  f = None if f is None else prepare(f)
  options = {
    key: config[key] for key in ('up', 'down', 'padding', 'flip_filter', 'gain') if key in config
  }
  function = {
    'upfirdn2d': resample.upfirdn2d,
    'filter2d': resample.filter2d,
    'upsample2d': resample.upsample2d,
    'downsample2d': resample.downsample2d,
  }[op]
  function, x = partial(function, f=f, **options), nhwc(given['x'])
  dy = nhwc(given['dy']) if 'dy' in given else np.zeros(jax.eval_shape(function, x).shape, x.dtype)
  y, (grad_x,), (grad_dy, _) = _second_order(
    function, (x,), dy, nhwc(given['v']) if 'v' in given else 0
  )
  results = {'y': nchw(y), 'filter': f}
  results |= {'grad_x': nchw(grad_x)} if 'dy' in given else {}
  return results | ({'grad_dy_of_sum_gx_v': nchw(grad_dy)} if 'v' in given else {})


def bias_act(sub):
  """bias_act with first and second derivatives; our channels are the last axis, theirs
  config.dim.
  """
  config, given = sub.config, sub.given
  dim, act, gain, alpha = (
    config.get('dim', 1),
    config['act'],
    config.get('gain'),
    config.get('alpha'),
  )
  config.expect('effective_gain', ops.ACTIVATIONS[act][1] if gain is None else gain)
  config.ignore('effective_alpha')  # alpha, or the default that the arrays check
  function = partial(
    ops.bias_act,
    act=act,
    gain=gain,
    clamp=config.get('clamp'),
    **({} if alpha is None else {'alpha': alpha}),
  )
  inward, outward = (
    (lambda x: np.moveaxis(x, dim, -1)),
    (lambda x: np.moveaxis(np.asarray(x), -1, dim)),
  )
  x = (inward(given['x']),) + ((given['b'],) if 'b' in given else ())
  dy = inward(given.get('dy', np.zeros_like(given['x'])))
  v = inward(given.get('v', np.zeros_like(given['x'])))
  y, grads, (by_dy, *by_x) = _second_order(function, x, dy, v)
  results = {
    'y': outward(y),
    'grad_x': outward(grads[0]),
    'gradgrad_dy': outward(by_dy),
    'gradgrad_x': outward(by_x[0]),
  }
  return results | ({'grad_b': grads[1], 'gradgrad_b': by_x[1]} if 'b' in given else {})


def _oihw(w):
  return np.asarray(w).transpose(3, 2, 0, 1)


def _convolution(config):
  config.ignore('kernel')  # stands in the weight's shape
  return dict(
    taps=tuple(config.get('resample_filter') or (1,)),
    up=config.get('up', 1),
    down=config.get('down', 1),
    padding=config.get('padding', 0),
    flip_weight=config.get('flip_weight', True),
  )


def conv2d_resample(sub):
  """Convolution with resampling, and its gradients."""
  given = sub.given
  function = partial(conv.conv2d_resample, **_convolution(sub.config))

  def everything(x, w, dy):
    y, pull = jax.vjp(function, x, w)
    return y, *pull(dy)

  y, grad_x, grad_w = jax.jit(everything)(
    nhwc(given['x']), given['weight'].transpose(2, 3, 1, 0), nhwc(given['dy'])
  )
  return {'y': nchw(y), 'grad_x': nchw(grad_x), 'grad_weight': _oihw(grad_w)}


def modulated_conv2d(sub):
  """(De)modulated convolution with noise, and its gradients; ours has one form for y and
  y_nonfused.
  """
  given = sub.given
  sub.config.ignore('noise_shape')  # stands in the noise's shape
  function = partial(
    conv.modulated_conv2d, demodulate=sub.config.get('demodulate', True), **_convolution(sub.config)
  )
  args = {
    'x': nhwc(given['x']),
    'w': given['weight'].transpose(2, 3, 1, 0),
    'styles': given['styles'],
  }
  if 'noise' in given:
    args['noise'] = nhwc(given['noise'].reshape((-1, 1) + given['noise'].shape[-2:]))

  def everything(args, dy):
    y, pull = jax.vjp(lambda args: function(**args), args)
    return y, *pull(dy)

  y, grads = jax.jit(everything)(args, nhwc(given['dy']))
  results = {
    'y': nchw(y),
    'y_nonfused': nchw(y),
    'grad_x': nchw(grads['x']),
    'grad_weight': _oihw(grads['w']),
    'grad_styles': grads['styles'],
  }
  if 'noise' in given:
    results['grad_noise'] = np.asarray(grads['noise']).reshape(given['noise'].shape)
  return results


def fully_connected(sub):
  """The dense layer with equalized learning rate, and its gradients."""
  config, given = sub.config, sub.given
  config.expect('in_features', given['weight'].shape[1])
  config.ignore('bias_init')  # the bias is given
  layer = Dense(
    given['weight'].shape[0],
    config.get('activation', 'linear'),
    config.get('lr_multiplier', 1),
    use_bias=config.get('bias', True),
  )
  config.expect('out_features', layer.features)
  params = {'weight': given['weight'].T} | ({'bias': given['bias']} if layer.use_bias else {})

  def everything(params, x, dy):
    y, pull = jax.vjp(lambda params, x: layer.apply({'params': params}, x), params, x)
    return y, *pull(dy)

  y, grads, grad_x = jax.jit(everything)(params, given['x'], given['dy'])
  results = {'y': y, 'grad_x': grad_x, 'grad_weight': grads['weight'].T}
  return results | ({'grad_bias': grads['bias']} if layer.use_bias else {})


def minibatch_stddev(sub):
  """Minibatch standard deviation and its gradient."""
  config, given = sub.config, sub.given
  config.expect('batch', len(given['x']))
  group, channels = read_stddev(config, prefix='')
  # where there is none, as in sg2jax.models.discriminator, nothing is called
  function = (
    partial(ops.minibatch_stddev, group_size=group, num_channels=channels)
    if channels
    else lambda x: x
  )

  def everything(x, dy):
    y, pull = jax.vjp(function, x)
    return y, *pull(dy)

  y, grad_x = jax.jit(everything)(nhwc(given['x']), nhwc(given['dy']))
  return {'y': nchw(y), 'grad_x': nchw(grad_x)}


def image_preprocessing(sub):
  """Crop and resize of the data set tool; its arrays' names are the ids of the sub-cases."""
  config = sub.config
  image = sub.given[sub.id.rsplit('/', 1)[-1]]
  size = config['output_height'], config['output_width']
  if config['transform'] is None:
    config.expect('dropped', False)
    return {'': images.resize(image, *size, config['resize_filter'])}
  options = images.Options(
    *size,
    fit={'center-crop': 'center', 'center-crop-wide': 'wide'}[config['transform']],
    resize_filter=config['resize_filter'],
    allow_upscale=True,
  )
  try:
    image = images.fit_image(image, options)
  except images.Unusable:
    if config['dropped']:
      return {}
    raise
  if config['dropped']:
    raise ValueError(f'should have been dropped, but became {image.shape}')
  return {'': image}


CASES = {
  'upfirdn2d': upfirdn2d,
  'bias_act': bias_act,
  'conv2d_resample': conv2d_resample,
  'modulated_conv2d': modulated_conv2d,
  'fully_connected': fully_connected,
  'minibatch_stddev': minibatch_stddev,
  'image_preprocessing': image_preprocessing,
}
