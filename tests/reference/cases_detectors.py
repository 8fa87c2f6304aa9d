"""Reference cases of the feature networks; weights are drawn by rules that the manifest has."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from sg2jax.interop.names import nchw, nhwc
from sg2jax.nets import inception, vgg
from tests.reference.check import jit

NUMBER = r'([\d.]+)'
INCEPTION_RULE = (
  r'r = numpy.random.RandomState\((\d+)\); iterate over the state_dict keys in sorted \(ASCII\) '
  r'order, skipping '
  rf'\*.num_batches_tracked; conv.weight\[O,I,kh,kw\] = r.randn\*sqrt\({NUMBER}/\(I\*kh\*kw\)\); '
  rf'bn.weight = {NUMBER}\+{NUMBER}\*r.randn; bn.bias = {NUMBER}\*r.randn; bn.running_mean = '
  rf'{NUMBER}\*r.randn; '
  rf'bn.running_var = {NUMBER}\+r.rand \(uniform\); fc.weight\[1008,2048\] = '
  rf'r.randn\*sqrt\({NUMBER}/2048\); '
  rf'fc.bias = {NUMBER}\*r.randn; all cast to float32. BatchNorm epsilon {NUMBER}, conv without '
  r'bias.'
)
VGG_RULE = (
  r'r = numpy.random.RandomState\((\d+)\); for each of the 13 conv layers in order \(channels '
  r'([\d,M]+); M = 2x2 max-pool\): '
  rf'weight\[O,I,3,3\] = \(r.randn\(O,I,3,3\)\*sqrt\({NUMBER}/\(9\*I\)\)\).astype\(float32\), '
  r'then '
  rf'bias\[O\] = \(r.randn\(O\)\*{NUMBER}\).astype\(float32\). Layout OIHW, padding 1, ReLU after '
  r'each conv.'
)


def parse(pattern, rule):
  """The numbers of a rule; one that is written otherwise is not guessed at."""
  match = re.fullmatch(pattern, rule)
  if not match:
    raise ValueError(f'weight rule is not understood: {rule}')
  return match.groups()


def check_weights(actual, expected):
  """Drawn numbers against the manifest's samples, bit by bit."""
  if not np.array_equal(np.float32(actual), np.float32(expected)):
    raise ValueError(
      f'the weight rule gives {np.float32(actual)}, the vectors have {np.float32(expected)}'
    )


def inception_arrays(rule, shapes):
  """{PyTorch name: float32 array}. shapes: {name: shape} of the config."""
  seed, conv, bn, *numbers, eps = parse(INCEPTION_RULE, rule)
  if float(eps) != inception.BATCH_NORM_EPS:
    raise ValueError(f'BatchNorm epsilon is {eps}, the code has {inception.BATCH_NORM_EPS}')
  conv, bn, bn_noise, bias, mean, var, fc, fc_bias = map(float, (conv, bn, *numbers))
  r = np.random.RandomState(int(seed))
  draws = {
    'conv.weight': lambda s: r.randn(*s) * np.sqrt(conv / np.prod(s[1:])),
    'bn.bias': lambda s: bias * r.randn(*s),
    'bn.weight': lambda s: bn + bn_noise * r.randn(*s),
    'bn.running_mean': lambda s: mean * r.randn(*s),
    'bn.running_var': lambda s: var + r.rand(*s),
    'fc.weight': lambda s: r.randn(*s) * np.sqrt(fc / s[1]),
    'fc.bias': lambda s: fc_bias * r.randn(*s),
  }
  names = sorted(name for name in shapes if not name.endswith('num_batches_tracked'))
  return {name: np.float32(draws['.'.join(name.split('.')[-2:])](shapes[name])) for name in names}


def inception_v3_fid(sub):
  """The network's outputs, and TensorFlow 1's resize on its own."""
  if 'output_size' in sub.config:
    return _resize(sub)
  dtype = jnp.zeros(()).dtype
  arrays = inception_arrays(sub.common['weight_rule'], sub.common['state_dict'])
  for name, samples in sub.under('weights_check/').items():
    array, which = name.rsplit('_', 1)
    part = slice(5) if which == 'first5' else slice(-5, None)
    check_weights(arrays[array].ravel()[part], samples)
  images = nhwc(sub.given['images_uint8'])
  sub.config.expect('images', [len(images), 3, *images.shape[1:3]])
  params = inception.params({k: v.astype(dtype) for k, v in arrays.items()})

  def everything(params, images):
    resized = inception.tf1_resize(images[:1].astype(dtype), 299, 299)[:, ::11, ::13]
    return inception.features(params, images), resized

  out, resized = jit(everything)(params, images)
  return {f'feature/{k}': v for k, v in out.items()} | {
    'resized_crop': nchw(resized),
    'softmax_probs_no_output_bias': jax.nn.softmax(out['logits_unbiased']),
  }


def _resize(sub):
  y = inception.tf1_resize(jnp.asarray(nhwc(sub.given['x'])), *sub.config['output_size'])
  stored = sub.config['stored']
  rows = columns = 1
  if stored != 'full':
    rows, columns = map(int, parse(r'every (\d+)\w+ row, (\d+)\w+ column', stored))
  return {'y': nchw(y[:, ::rows, ::columns])}


def vgg_arrays(rule, tapped):
  """{torchvision's name: float32 array}."""
  seed, channels, gain, bias = parse(VGG_RULE, rule)
  r = np.random.RandomState(int(seed))
  arrays = {}
  place = 0  # in torchvision's `features`
  inputs = 3
  block = 1
  layer = 0
  last = []  # layers of the blocks before
  for width in channels.split(','):
    if width == 'M':
      last.append(f'relu{block}_{layer}')
      place, block, layer = place + 1, block + 1, 0
      continue
    width = int(width)
    arrays[f'features.{place}.weight'] = np.float32(
      r.randn(width, inputs, 3, 3) * np.sqrt(float(gain) / (9 * inputs))
    )
    arrays[f'features.{place}.bias'] = np.float32(r.randn(width) * float(bias))
    place, inputs, layer = place + 2, width, layer + 1
  if last + [f'relu{block}_{layer}'] != tapped:
    raise ValueError(f'the channels have blocks that end in {last}, the tapped layers are {tapped}')
  return arrays


def _scaled(network, params, x):
  """What the first convolution sees: its output where it copies its input."""
  probe = jax.tree.map(jnp.zeros_like, params)
  first = probe['vgg']['conv1_1']
  first['kernel'] = first['kernel'].at[1, 1, [0, 1, 2], [0, 1, 2]].set(1)
  return _activations(network, probe, x, x)['conv1_1'][..., :3]


def _activations(network, params, x0, x1):
  """Of the first image, {layer: [N,H,W,C]}."""
  state = network.apply(
    {'params': params}, x0, x1, capture_intermediates=lambda module, _: module.name == 'vgg'
  )[1]
  return state['intermediates']['vgg']['__call__'][0]


def lpips(sub):
  """The distance, its layers and gradient, and the features below it."""
  config, given = sub.config, sub.given
  # These three say in words what the expected arrays check in numbers.
  config.ignore('input_scaling', 'normalisation', 'vgg_weight_checksums')
  dtype = jnp.zeros(()).dtype
  arrays = vgg_arrays(config['vgg_weight_rule'], config['tapped_layers'])
  check_weights(arrays['features.0.weight'].ravel()[:5], given['vgg_first_conv_weight_first5'])
  check_weights(arrays['features.28.bias'][-5:], given['vgg_last_conv_bias_last5'])
  heads = {
    f'lin{i}.model.1.weight': v[None, :, None, None] for i, v in sub.under('lin_random/').items()
  }
  params = vgg.lpips_params({k: v.astype(dtype) for k, v in arrays.items()}, heads)
  x0, x1 = nhwc(given['x0']), nhwc(given['x1'])
  network = vgg.lpips_network(dtype)
  count = len(heads)

  def with_heads(params, x0, x1, scale):  # scale: function of layer and weights
    lins = {f'lins_{i}': {'kernel': scale(i, params[f'lins_{i}']['kernel'])} for i in range(count)}
    return vgg.lpips(params | lins, x0, x1)

  def everything(params, x0, x1):
    def total(x0):
      distance = vgg.lpips(params, x0, x1)
      return distance.sum(), distance

    grad, distance = jax.grad(total, has_aux=True)(x0)
    layers = jax.vmap(lambda one: with_heads(params, x0, x1, lambda i, w: w * one[i]), out_axes=1)(
      jnp.eye(count, dtype=dtype)
    )
    return (
      {
        'distance_random_heads': distance,
        'per_layer_random_heads': layers,
        'grad_x0': grad,
        'distance_no_heads': with_heads(params, x0, x1, lambda i, w: jnp.ones_like(w)),
      },
      _scaled(network, params, x0[:1]),
      _activations(network, params, x0, x1),
    )

  out, scaled, layers = jit(everything)(params, x0, x1)
  results = out | {'grad_x0': nchw(out['grad_x0']), 'scaled_x0': nchw(scaled[:, :8, :8])}
  for name in config['tapped_layers']:
    f = np.asarray(layers[name])
    results[f'feature_stats/relu{name[4]}'] = [f.mean(), np.sqrt((f**2).mean()), f.max()]
    results[f'feature_crop/relu{name[4]}'] = nchw(f[:1, :4, :4, :8])
  return results


CASES = {'inception_v3_fid': inception_v3_fid, 'lpips': lpips}
