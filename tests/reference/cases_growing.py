"""Reference cases of progressive growing (configs A-D): networks, real images, the schedule,
TensorFlow's Adam.

Also the reading of these configs, for cases_growing_train. The reference's images always have the
full size R x R; ours have that of their stage, so they are enlarged or shrunk here.
"""

from functools import cache, partial
import re

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from sg2jax import ops, resample, schedule
from sg2jax import state as state_lib
from sg2jax.data import shrink
from sg2jax.interop.names import BUFFERS, TensorFlow, nchw, nhwc, rows_to_chw
from sg2jax.models.discriminator import Discriminator
from sg2jax.models.generator import Generator, Synthesis
from sg2jax.models.layers import RSQRT2, SynthesisLayer
from sg2jax.models.mapping import Mapping, broadcast, truncate
from sg2jax.models.stylegan1 import BLUR, StyleLayer
from sg2jax.models.variant import DiscriminatorVariant, Variant
from sg2jax.steps import TrainSteps
from sg2jax.update import OBJECTIVE, apply_gradients
from tests.reference.cases_nets import read_stddev
from tests.reference.cases_train import RECORD
from tests.reference.check import Config, jit

KINDS = {
  'G_style': 'stylegan1',
  'G_synthesis_stylegan_revised': 'revised',
  'D_basic': 'stylegan1',
  'D_stylegan': 'revised',
}
# These change no number: three ways to grow that agree, and the precision that the manifest
# promises.
SAME = ('structure', 'dtype', 'fused_modconv', 'is_template_graph')


# ---- configs


def _architecture(letter, text, options):
  """Of the network whose functions `text` and synthesis_func name; letter: G or D."""
  named = {*re.findall(r'\w+', text), options.get('synthesis_func')} & {
    k for k in KINDS if k[0] == letter
  }
  if len(named) != 1:
    raise NotImplementedError(f'{letter} of {text!r}: one of {", ".join(KINDS)} must be named')
  return KINDS[named.pop()]


def _read_common(options, arch):
  """What G and D share -> (keywords of the network, fields of its Variant).

  Layers that none of ours has are an error.
  """
  options.ignore(*SAME)
  for key, value in (('use_wscale', True), ('fmap_decay', 1.0), ('blur_filter', list(BLUR))):
    options.expect(key, value)
  res, act = options['resolution'], options.get('nonlinearity', 'lrelu')
  if arch == 'stylegan1' and ops.ACTIVATIONS[act][1] != ops.SQRT2:
    raise NotImplementedError(f'config A with {act}')
  kwargs = dict(
    resolution=(res, res),
    fmap_base=options['fmap_base'],
    fmap_max=options.get('fmap_max', 512),
    architecture=arch,
  )
  variant = {'activation': act, 'fmap_min': options.get('fmap_min', 1)}
  if arch != 'stylegan1':
    variant['taps'] = tuple(options.get('resample_kernel', (1, 3, 3, 1)))
  return kwargs, variant


def read_generator(options, text):
  """Static arguments of the network that `text` names -> (Generator, TensorFlow)."""
  arch = _architecture('G', text, options)
  adain = arch == 'stylegan1'
  for key, value in (
    ('mapping_func', 'G_mapping'),
    ('use_styles', True),
    ('const_input_layer', True),
    ('use_pixel_norm', False),
    ('use_instance_norm', True),
    ('normalize_latents', True),
    ('randomize_noise', False),
  ):
    options.expect(key, value)
  kwargs, variant = _read_common(options, arch)
  if adain and variant['activation'] != 'lrelu':
    raise NotImplementedError(f'a config A generator with {variant["activation"]}')
  act = options.get('mapping_nonlinearity', 'lrelu')
  if adain and ops.ACTIVATIONS[act][1] != ops.SQRT2:
    raise NotImplementedError(f'a config A mapping with {act}')
  variant |= {
    'layer_features': options['mapping_fmaps'],
    'mapping_lr_mul': options.get('mapping_lrmul', 0.01),
  }
  mapping = Mapping(
    options['latent_size'],
    options.get('label_size', 0),
    options['dlatent_size'],
    options.get('mapping_layers', 8),
    variant=Variant(**variant),
    activation=act,
    joint=True,
    bias_gain=RSQRT2 if adain else 1,
  )
  net = Synthesis(
    img_channels=options['num_channels'],
    use_noise=options.get('use_noise', True),
    variant=Variant(**variant),
    **kwargs,
  )
  fused = options.get('fused_scale', 'auto') if adain else False
  return Generator(mapping, net), TensorFlow(net.resolution[0], adain, fused)


def read_discriminator(options, text):
  """As read_generator -> (Discriminator, TensorFlow)."""
  arch = _architecture('D', text, options)
  # stands in the image's shape; the fused layer is the same
  options.ignore('num_channels', 'fused_scale')
  group, features = read_stddev(options)
  features = 0 if group == 1 else features  # here 1 means none, too
  kwargs, variant = _read_common(options, arch)
  net = Discriminator(
    c_dim=options.get('label_size', 0),
    mbstd_group_size=group,
    variant=DiscriminatorVariant(mbstd_num_channels=features, **variant),
    **kwargs,
  )
  return net, TensorFlow(net.resolution[0], arch == 'stylegan1')


def store(border, params, names, prefix='', gradients=False):
  """What `border.load` read: {prefix + name: array} for those of `names` that are parameters.

  border: a TensorFlow. gradients: whether `params`, nested parameters, are gradients.
  """
  flat = traverse_util.flatten_dict(params)
  stored = {}
  for name in names:
    path = border.path(name)
    if path[-1] in BUFFERS:
      continue
    x = np.asarray(flat[path])
    if path[-1] == 'const':
      x = nchw(x)[None]
    elif path[-2:] == ('fc', 'weight'):
      x = rows_to_chw(x, (4, 4))
    elif path[-2:] == ('affine', 'bias') and not border.adain and not gradients:
      x = x - x.dtype.type(1)
    elif border.is_flipped(path):
      x = x[::-1, ::-1]
    stored[prefix + name] = x
  return stored


def read_lods(sub):
  """{'lod0.3': (level, alpha), ...} of the config's lods, which are float32."""
  lods = {f'lod{lod:g}': float(np.float32(lod)) for lod in sub.config.get('lods', [])}
  if 'lods' in sub.given and list(lods.values()) != sub.given['lods'].tolist():
    raise ValueError(f'config has lods={list(lods)}, the array {sub.given["lods"]}')
  return {name: split(lod) for name, lod in lods.items()}


def split(lod):
  """Level of detail -> (resolutions not there yet, how far the newest is faded in)."""
  level = int(lod)
  return level, 1 - (lod - level)


def read_growth(config, res):
  """schedule_args at resolution `res`, and the defaults they leave -> (Growth, function of their
  other fields).
  """
  args, defaults = config.sub('schedule_args'), config.sub('defaults')

  def field(key, default=None):
    default = defaults.get(key, default)
    return args.get(key, default)

  def pairs(key):
    return tuple((int(side), value) for side, value in field(f'{key}_dict', {}).items())

  start = field('lod_initial_resolution')
  growth = schedule.Growth(
    res,
    0 if start is None else int(np.log2(res)) - int(np.log2(start)),
    field('lod_training_kimg', 600),
    field('lod_transition_kimg', 600),
    field('minibatch_size_base', 32),
    field('G_lrate_base', 0.002),
    field('D_lrate_base', 0.002),
    pairs('minibatch_size'),
    pairs('G_lrate'),
    pairs('D_lrate'),
    config['minibatch_repeats'],
  )
  gpu = partial(schedule.at_side, pairs('minibatch_gpu'), default=field('minibatch_gpu_base', 4))
  tick = partial(schedule.at_side, pairs('tick_kimg'), default=field('tick_kimg_base', 4))
  return growth, {'minibatch_gpu': gpu, 'tick_kimg': tick, 'rampup': field('lrate_rampup_kimg', 0)}


# ---- TrainSteps at a level of detail


def steps_at(level, generator=None, discriminator=None, **more):
  """TrainSteps that stay at `level`: one fade of a single image, so that the clock `nimg` is alpha
  itself.
  """
  growth = schedule.Growth(0, level + 1, hold_kimg=0, fade_kimg=0.001, batch=0, g_lr=0, d_lr=0)
  off = dict(
    r1_gamma=0,
    r1_interval=0,
    pl_weight=0,
    pl_decay=0,
    pl_interval=0,
    pl_shrink=1,
    mixing_prob=0,
    ema_kimg=1,
    ema_rampup=None,
    noise_mode='const',
  )
  return TrainSteps(
    generator,
    discriminator,
    RECORD,
    RECORD,
    **off | more,
    growth=growth,
    stage=schedule.GrowthStage(level),
  )


def state_at(alpha, g, d, noise, w_avg, pl_mean, dtype):
  """The TrainState that `steps_at` takes: its clock says alpha."""
  zeros = partial(jax.tree.map, np.zeros_like)
  return jax.tree.map(
    jnp.asarray,
    state_lib.TrainState(
      step=np.zeros((), np.int32),
      nimg=dtype.type(alpha),
      g=g,
      d=d,
      g_ema=g,
      g_opt=zeros(g),
      d_opt=zeros(d),
      noise=noise,
      w_avg=w_avg,
      pl_mean=dtype.type(pl_mean),
    ),
  )


# ---- networks


def _labels(given, batch):
  return given.get('c', np.zeros((batch, 0)))


def _entries(config, key, default=()):
  """(index, Config) of the dicts in an optional list of the config, each complemented by
  `default`.
  """
  for i, values in enumerate(config.get(key, [])):
    entry = Config(dict(default) | values, f'{key}.{i}.')
    yield i, entry
    if entry.unread():
      raise ValueError(f'config field {", ".join(entry.unread())} is not understood')


def generator(sub):
  """w; images at every lod, truncated and without growing; layer outputs; evaluations in training
  mode.
  """
  config, given = sub.config, sub.given
  given.know(r'training/\d+/z_mix')
  net, border = read_generator(config.sub('static_kwargs'), config['network'])
  config.expect('num_layers', net.synthesis.num_ws)
  config.expect('batch', len(given['z']))
  params, noise, w_avg = border.load(sub.under('tf/G/'))
  z, c = given['z'], _labels(given, len(given['z']))
  layers = (SynthesisLayer, StyleLayer)

  @cache
  def compiled(level, grows):
    def function(alpha, psi, cutoff):
      return net.apply(
        {'params': params, 'noise': noise},
        z,
        c,
        w_avg,
        psi,
        cutoff,
        'const',
        level,
        alpha if grows else None,
        capture_intermediates=lambda m, _: isinstance(m, layers),
        mutable=['intermediates'],
      )

    return jit(function)

  def images(level=0, alpha=1.0, psi=1.0, cutoff=None, grows=True):
    return compiled(level, grows)(alpha, psi, net.synthesis.num_ws if cutoff is None else cutoff)

  w = jit(partial(net.apply, method='map'))({'params': params}, z, c)
  results = {'w': w} | {
    f'images/{name}': nchw(images(*lod)[0]) for name, lod in read_lods(sub).items()
  }
  if 'images_fixed' in sub.wanted:
    results['images_fixed'] = nchw(images(grows=False)[0])
  if any(name.startswith('act/') for name in sub.wanted):
    blocks = images()[1]['intermediates']['synthesis']
    outputs = [
      blocks[block][conv]['__call__'][0]
      for block in sorted(blocks, key=lambda b: int(b[1:]))
      for conv in sorted(blocks[block])
    ]
    results |= {f'act/layer{i}': nchw(x) for i, x in enumerate(outputs)}
  default = config.get('network_default_truncation', {})
  for i, trunc in _entries(config, 'trunc', default):
    psi, cutoff = trunc['truncation_psi'], trunc['truncation_cutoff']
    if psi is None or (border.adain and cutoff is None):  # config A truncates only with both
      psi = 1.0
    results[f'trunc/{i}/dlatents'] = truncate(
      broadcast(w, net.synthesis.num_ws), w_avg, psi, cutoff
    )
    results[f'trunc/{i}/images'] = nchw(images(psi=psi, cutoff=cutoff)[0])
  for i, draw in _entries(config, 'training'):
    results |= _training(
      sub.under(f'training/{i}/'), f'training/{i}/', net, draw, params, noise, w_avg, z, c
    )
  return results


def _training(given, prefix, net, draw, params, noise, w_avg, z, c):
  """One evaluation in training mode, with style mixing and tracking of w_avg."""
  level, alpha = split(float(np.float32(draw['lod'])))
  prob, u, drawn = draw['style_mixing_prob'], draw['u'], draw['cutoff']
  mix = None
  if prob is not None:
    cutoff = drawn if u < prob else net.synthesis.num_ws - 2 * level
    mix = {'z': given['z_mix'], 'cutoff': np.full(len(z), cutoff)}
  steps = steps_at(level, net, w_avg_beta=draw['dlatent_avg_beta'])
  state = state_at(alpha, params, {}, noise, w_avg, 0, z.dtype)
  ws, after, img = _evaluate(steps, state, z, c, mix)
  return {
    f'{prefix}dlatents': ws,
    f'{prefix}dlatent_avg_after': after,
    f'{prefix}images': nchw(img),
  }


@partial(jit, static_argnums=0)
def _evaluate(steps, state, z, c, mix):
  ws, w_avg = steps._ws(state.g, state.w_avg, z, c, mix)
  return (
    ws,
    w_avg,
    resample.nearest(steps._synthesize(state, state.g, None, ws), 2**steps.stage.level),
  )


def discriminator(sub):
  """Logits and the gradient of their sum by the full-size images, at every lod and without
  growing.
  """
  config, given = sub.config, sub.given
  net, border = read_discriminator(config.sub('static_kwargs'), config['network'])
  params = border.load(sub.under('tf/D/'))[0]
  img, c = nhwc(given['images']), _labels(given, len(given['images']))
  config.expect('batch', len(img))

  @cache
  def compiled(level, grows):
    def function(img, alpha):
      for _ in range(level):
        img = resample.half(img)
      logits = net.apply({'params': params}, img, c, alpha if grows else None)
      return logits.sum(), logits

    return jit(jax.grad(function, has_aux=True))

  results, variants = (
    {},
    {f'/{name}': (*lod, True) for name, lod in read_lods(sub).items()}
    | {'_fixed': (0, 1.0, False)},
  )
  for suffix, (level, alpha, grows) in variants.items():
    if f'logits{suffix}' in sub.wanted or f'grad_images{suffix}' in sub.wanted:
      grad, logits = compiled(level, grows)(img, alpha)
      results |= {f'logits{suffix}': logits, f'grad_images{suffix}': nchw(grad)}
  return results


# ---- real images, schedule, Adam


def process_reals(sub):
  """The uint8 pyramid, and what the discriminator gets of it at every lod."""
  config, given = sub.config, sub.given
  images = nhwc(given['reals_uint8'])
  for key, value in (
    ('resolution', images.shape[1]),
    ('channels', images.shape[-1]),
    ('batch', len(images)),
    ('drange_data', [0, 255]),
    ('drange_net', [-1, 1]),
  ):
    config.expect(key, value)
  given.know('u')
  dtype = given['lods'].dtype
  pyramid = [shrink(images, 2**k) for k in range(int(np.log2(images.shape[1])) - 1)]
  results = {f'pyramid/{k}': nchw(x) for k, x in enumerate(pyramid)}
  flips = given['u'] >= 0.5 if config['mirror_augment'] else np.zeros(len(images), bool)
  for name, (level, alpha) in read_lods(sub).items():
    x = np.where(flips[:, None, None, None], pyramid[level][:, :, ::-1], pyramid[level])
    state = state_at(alpha, {}, {}, {}, np.zeros(0), 0, dtype)
    results[f'net_input/{name}'] = nchw(_net_input(steps_at(level), state, x))
  return results


@partial(jit, static_argnums=0)
def _net_input(steps, state, images):
  return resample.nearest(steps.reals(state, images[None])[0], 2**steps.stage.level)


def training_schedule(sub):
  """What depends on the number of images shown, and the events of a whole run."""
  config = sub.config
  growth, more = read_growth(config, config['resolution'])
  kimg, results = config.get('G_smoothing_kimg', 10), {}

  def at(nimg):
    stage, side = growth.stage(nimg), growth.side >> growth.stage(nimg).level
    ramp = schedule.ramp(nimg, more['rampup'])
    beta = schedule.ema_beta(nimg, stage.batch, kimg, None, jnp.result_type(float))
    return {
      'lod': growth.lod(nimg),
      'G_lrate': stage.g_lr * ramp,
      'D_lrate': stage.d_lr * ramp,
      'resolution': side,
      'minibatch_size': stage.batch,
      'minibatch_gpu': more['minibatch_gpu'](side),
      'tick_kimg': more['tick_kimg'](side),
      'Gs_beta': beta,
    }

  for nimg in sub.given['nimg'].tolist():
    for name, value in at(nimg).items():
      results.setdefault(name, []).append(value)
  nimg, looks, before, resets = 0, 0, None, []
  while nimg < 1000 * config['total_kimg']:
    if before is None or growth.resets_adam(before, nimg):
      resets.append(nimg)
    before, looks = nimg, looks + 1
    nimg += growth.repeats * growth.stage(nimg).batch
  results |= {
    'loop/reset_nimg': resets,
    'loop/reset_lod': [growth.lod(n) for n in resets],
    'loop/num_evaluations': looks,
    'loop/num_minibatches': looks * growth.repeats,
    'loop/final_nimg': nimg,
  }
  return {name: np.asarray(value) for name, value in results.items()}


def tf_adam(sub):
  """Parameters after each step of Adam, through the update of TrainSteps that skips what isn't
  finite.
  """
  config, given = sub.config, sub.given
  interval = config.get('reg_interval', 0)
  beta1, c = config['beta1'], schedule.lazy_correction(interval)
  if interval:  # what it is before the correction; the corrected values follow
    lr, beta1, beta2 = (
      config['base_learning_rate'],
      config.get('base_beta1', beta1 ** (1 / c)),
      config['base_beta2'],
    )
    config.ignore('learning_rate', 'beta2')
  else:
    lr, beta2 = config['learning_rate'], config['beta2']
  tx = state_lib.adam(lr, beta1, beta2, config['epsilon'], interval, eps_hat=True)
  params = {'x': given['x0']}
  state = state_at(1, params, {}, {}, np.zeros(0), 0, given['x0'].dtype).replace(
    g_opt=tx.init(params)
  )
  aux = {OBJECTIVE: jnp.zeros(())}
  step = jit(lambda state, grad: apply_gradients('g', tx, state, {'x': grad}, aux, 1.0)[0])
  after, resets = [], config['reset_before']
  for i, grad in enumerate(given['grads']):
    if i in resets:
      state = state.replace(g_opt=tx.init(state.g))
    # theirs goes on after a number that isn't finite; ours halts
    state = step(state, grad).replace(fault=state.fault)
    after.append(state.g['x'])
  return {'params_after': np.stack(after)}


CASES = {
  'stylegan1_generator': generator,
  'revised_generator': generator,
  'stylegan1_discriminator': discriminator,
  'growing_discriminator': discriminator,
  'process_reals': process_reals,
  'training_schedule': training_schedule,
  'tf_adam': tf_adam,
}
