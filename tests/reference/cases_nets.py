"""Reference cases of whole networks, and the reading of network configs (also for cases_train)."""

from functools import cache, partial
import re
import types

import jax
import jax.numpy as jnp
import numpy as np

from sg2jax.interop.names import from_pytorch, nchw, nhwc, to_pytorch
from sg2jax.models.discriminator import Discriminator, DiscriminatorBlock
from sg2jax.models.generator import Generator, Synthesis, SynthesisBlock
from sg2jax.models.mapping import Mapping, broadcast, truncate
from sg2jax.models.sizes import block_sizes, fmaps
from sg2jax.models.variant import DiscriminatorVariant, Variant
from sg2jax.steps import TrainSteps
from tests.reference.check import jit

# Of the whole run in double precision that the manifest promises, these change no number.
PRECISION = (
  'num_fp16_res',
  'use_fp16',
  'fp16_channels_last',
  'force_fp32',
  'fused_modconv',
  'fused_modconv_default',
)


# ---- configs


def read_mapping(config, z_dim, c_dim, w_dim, **layers):
  """mapping_kwargs (or the fields of the mapping_network case) -> (Mapping, w_avg_beta).

  layers: fields of the Variant that are of other layers.
  """
  net = Mapping(
    z_dim,
    c_dim,
    w_dim,
    config.get('num_layers', 8),
    Variant(**_mapping_fields(config), **layers),
    config.get('activation', 'lrelu'),
  )
  return net, config.get('w_avg_beta', 0.995)


def _mapping_fields(config):
  """mapping_kwargs -> fields of a Variant."""
  return {
    'embed_features': config.get('embed_features') or 0,
    'layer_features': config.get('layer_features') or 0,
    'mapping_lr_mul': config.get('lr_multiplier', 0.01),
  }


def _size(config):
  res = config['img_resolution']
  return (res, res) if np.ndim(res) == 0 else tuple(res)


def _check_channels(config, sizes, fmap_base, fmap_max):
  widths = config.sub('channels')
  for size in sizes:
    widths.expect(str(max(size)), fmaps(max(size), fmap_base, fmap_max))


def read_generator(config):
  """Their generator config -> (Generator, w_avg_beta)."""
  options = config.sub('synthesis_kwargs')
  options.ignore(*PRECISION)
  mapping, beta = read_mapping(
    config.sub('mapping_kwargs'),
    config['z_dim'],
    config['c_dim'],
    config['w_dim'],
    taps=tuple(options.get('resample_filter', (1, 3, 3, 1))),
    activation=options.get('activation', 'lrelu'),
  )
  net = Synthesis(
    _size(config),
    config['img_channels'],
    options.get('channel_base', 32768) / 2,
    options.get('channel_max', 512),
    options.get('architecture', 'skip'),
    clamp=options.get('conv_clamp'),
    use_noise=options.get('use_noise', True),
    variant=mapping.variant,
  )
  _check_channels(config, block_sizes(net.resolution), net.fmap_base, net.fmap_max)
  config.expect('num_ws', net.num_ws)
  return Generator(mapping, net), beta


def read_stddev(*configs, prefix='mbstd_'):
  """(group size, channels) of the minibatch stddev, channels 0: there is none. The fields stand in
  one of the configs.

  PyTorch switches it off by 0 channels, TensorFlow, which calls them features, by a group of 0.
  """

  def read(default, *keys):
    found = [config[prefix + key] for config in configs for key in keys if prefix + key in config]
    if len(set(found)) > 1:
      raise ValueError(f'{" and ".join(prefix + key for key in keys)} are {found}')
    return found[0] if found else default

  group, channels = read(4, 'group_size'), read(1, 'num_channels', 'num_features')
  return group, 0 if group == 0 else channels or 0


def read_discriminator(config):
  """Their discriminator config -> Discriminator."""
  config.ignore(*PRECISION)
  block, epilogue, mapping = (
    config.sub(f'{name}_kwargs') for name in ('block', 'epilogue', 'mapping')
  )
  block.ignore(*PRECISION)
  activation = block.get('activation', 'lrelu')
  group, channels = read_stddev(epilogue, config)
  if epilogue.get('activation', 'lrelu') != activation:
    raise NotImplementedError(
      f'blocks with {activation} and an epilogue with {epilogue.get("activation", "lrelu")}'
    )
  variant = DiscriminatorVariant(
    taps=tuple(block.get('resample_filter', (1, 3, 3, 1))),
    activation=activation,
    cmap_dim=config.get('cmap_dim') or 0,
    mbstd_num_channels=channels,
    **_mapping_fields(mapping),
  )
  net = Discriminator(
    _size(config),
    config.get('channel_base', 32768) / 2,
    config.get('channel_max', 512),
    config['c_dim'],
    config.get('architecture', 'resnet'),
    clamp=config.get('conv_clamp'),
    mbstd_group_size=group,
    mapping_layers=mapping.get('num_layers', 8),
    variant=variant,
  )
  config.ignore('img_channels')  # stands in the image's shape
  _check_channels(config, block_sizes(net.resolution), net.fmap_base, net.fmap_max)
  return net


# ---- cases


def _labels(given, name, batch, dim):
  return given[name] if name in given else np.zeros((batch, dim))


def _truncation(text):
  """'truncation_psi=0.5, truncation_cutoff=4' or 'psi0p5_cut4' -> (0.5, 4); cutoff None for all
  layers.
  """
  psi = re.search(r'psi=?(-?\d+[p.]?\d*)', text)
  cutoff = re.search(r'cut(?:off=)?(\d+)', text)
  return float(psi[1].replace('p', '.')), cutoff and int(cutoff[1])


def mapping_network(sub):
  """ws, their gradients, truncation, and w_avg as `TrainSteps` tracks it."""
  config, given = sub.config, sub.given
  net, beta = read_mapping(config, config['z_dim'], config['c_dim'], config['w_dim'])
  truncations, num_ws = config.get('truncations', {}), config['num_ws']
  params, _, w_avg = from_pytorch(sub.under('P/'))
  batch = len(next(iter(given[k] for k in ('z', 'c') if k in given)))
  z, c = _labels(given, 'z', batch, net.z_dim), _labels(given, 'c', batch, net.c_dim)

  def function(params, z, c):
    w = net.apply({'params': params}, z, c)
    return w if num_ws is None else broadcast(w, num_ws)

  def everything(params, z, c, dy):
    ws, pull = jax.vjp(function, params, z, c)
    return ws, *pull(dy)

  ws, grads, grad_z, grad_c = jit(everything)(params, z, c, given['dy'])
  results = {'ws': ws, 'grad_z': grad_z, 'grad_c': grad_c} | to_pytorch(grads, prefix='grad/')
  for name in sub.wanted:
    if name.startswith('ws_'):
      psi, cutoff = _truncation(truncations.get(name, name))
      results[name] = truncate(ws, w_avg, psi, cutoff)
  if w_avg is not None:
    results |= _w_avg_updates(sub.wanted, net, beta, params, w_avg, z, c)
  return results


def _w_avg_updates(wanted, net, beta, params, w_avg, z, c):
  """w_avg after k training passes, and after a style-mixing pass, which must leave the first pass's
  value.
  """
  generator = types.SimpleNamespace(
    synthesis=types.SimpleNamespace(num_ws=2),
    apply=lambda v, z, c, method: net.apply({'params': v['params']['mapping']}, z, c),
  )
  steps = TrainSteps(generator, None, None, None, 0, 0, 0, 0, 0, 1, 0, 0, None, w_avg_beta=beta)

  def follow(w_avg, mix):
    return jit(steps._ws)({'mapping': params}, w_avg, z, c, mix)[1]

  results, value, mix = {}, w_avg, {'z': -z, 'cutoff': np.ones(len(z), int)}
  counts = [
    int(re.fullmatch(r'w_avg_after_(\d+)_training_forwards?', n)[1])
    for n in wanted
    if '_training_f' in n
  ]
  for k in range(1, max(counts, default=0) + 1):
    if k == 1:
      results['w_avg_after_skipped_update'] = follow(value, mix)
    value = follow(value, None)
    results[f'w_avg_after_{k}_training_forward' + 's' * (k > 1)] = value
  return results


def _blocks(captured):
  """{'block/b8/x': ..., 'block/b8/img': ...} of captured (x, img) results."""
  results = {}
  for res, out in captured.items():
    x, img = out['__call__'][0]
    results |= {f'block/{res}/x': x} | ({} if img is None else {f'block/{res}/img': img})
  return results


def _variant(name, pattern):
  """Named groups of a variant's suffix; ValueError for what isn't wholly understood."""
  match = re.fullmatch(pattern, name)
  if not match:
    raise ValueError(f'expected array {name}: variant not understood')
  return match.groupdict()


_IMAGE = (
  r'img(?P<direct>_ws_direct)?(_noise_(?P<mode>none|const|random))?(?P<psi>_psi-?\d+[p.]?\d*(_cut\d+)?)?'
  r'(_conv_clamp_(?P<clamp>[\d.]+))?'
)


def generator(sub):
  """Images of every variant, block outputs and the gradient by ws."""
  given = sub.given
  given.know('ws_direct')
  net, _ = read_generator(sub.config)
  size = block_sizes(net.synthesis.resolution)[0]
  params, const, w_avg = from_pytorch(sub.under('G/'), size)
  drawn = from_pytorch(
    {f'synthesis.{k}.noise_const': nhwc(v) for k, v in sub.under('noise_random/').items()}
  )[1]
  z = given['z']
  ws = broadcast(
    jit(partial(net.apply, method='map'))({'params': params}, z, _labels(given, 'c', len(z), 0)),
    net.synthesis.num_ws,
  )

  @cache
  def synthesis(mode, clamp):
    module = net.clone(synthesis=net.synthesis.clone(clamp=clamp))

    def function(ws, noise):
      img, captured = module.apply(
        {'params': params, 'noise': noise},
        ws,
        mode,
        method='synthesize',
        capture_intermediates=lambda m, _: isinstance(m, SynthesisBlock),
        mutable=['intermediates'],
      )
      return img, _blocks(captured['intermediates']['synthesis'])

    return function

  @jit
  def everything(ws, dy):
    img, pull, blocks = jax.vjp(
      lambda ws: synthesis('const', net.synthesis.clamp)(ws, const), ws, has_aux=True
    )
    return img, blocks, pull(dy)[0]

  forward = cache(lambda *key: jit(lambda ws, noise: synthesis(*key)(ws, noise)[0]))
  img, blocks, grad_ws = everything(ws, nhwc(given['dy']))
  results = {'ws': ws, 'grad_ws': grad_ws} | {name: nchw(block) for name, block in blocks.items()}
  for name in sub.wanted:
    if name == 'img':
      results[name] = nchw(img)
    elif name.startswith('img'):
      v = _variant(name, _IMAGE)
      w = given['ws_direct'] if v['direct'] else ws
      w = truncate(w, w_avg, *_truncation(v['psi'])) if v['psi'] else w
      clamp = float(v['clamp']) if v['clamp'] else net.synthesis.clamp
      noise, mode = (drawn, 'const') if v['mode'] == 'random' else (const, v['mode'] or 'const')
      results[name] = nchw(forward(mode, clamp)(w, noise))
  return results


def discriminator(sub):
  """Logits, gradients by the image, block outputs and the label map, for each clamp that is asked
  for.
  """
  given, net = sub.given, read_discriminator(sub.config)
  size = block_sizes(net.resolution)[0]
  params, _, _ = from_pytorch(sub.under('D/'), size)
  img, c = nhwc(given['img']), _labels(given, 'c', len(given['img']), 0)
  sub.config.expect('img_channels', img.shape[-1])

  def outputs(clamp, wanted):
    module = net.clone(clamp=clamp)
    layers = (DiscriminatorBlock, Mapping, Discriminator)

    def function(img):
      logits, captured = module.apply(
        {'params': params},
        img,
        c,
        mutable=['intermediates'],
        capture_intermediates=lambda m, method: (
          isinstance(m, layers) and method in ('__call__', '_pyramid')
        ),
      )
      return logits, captured['intermediates']

    def everything(img, dy):
      logits, pull, captured = jax.vjp(function, img, has_aux=True)
      results = {'logits': logits}
      if 'mapping' in captured:
        results['cmap'] = captured['mapping']['__call__'][0]
      for i, size in enumerate(block_sizes(net.resolution)):
        if i:
          block, images = f'b{max(size)}', captured['_pyramid'][0]
          results[f'block/{block}/x'] = jnp.moveaxis(captured[block]['__call__'][0], -1, 1)
          if i - 1 in images:  # theirs leave a block with the image of the next
            results[f'block/{block}/img'] = jnp.moveaxis(images[i - 1], -1, 1)
      for name, cotangent in (('grad_img', jnp.ones_like(logits)), ('grad_img_dy', dy)):
        if name in wanted:
          results[name] = jnp.moveaxis(pull(cotangent)[0], -1, 1)
      return results

    return jit(everything)(img, given.get('dy', np.ones((len(img), 1))))

  results = outputs(net.clamp, sub.wanted)
  variants = {}
  for name in sub.wanted:
    if '_conv_clamp_' in name:
      v = _variant(name, r'(?P<base>.+)_conv_clamp_(?P<clamp>[\d.]+)')
      variants.setdefault(v['clamp'], []).append(v['base'])
  for clamp, names in variants.items():
    clamped = outputs(float(clamp), names)
    results |= {f'{name}_conv_clamp_{clamp}': clamped[name] for name in names}
  return results


CASES = {'mapping_network': mapping_network, 'generator': generator, 'discriminator': discriminator}
