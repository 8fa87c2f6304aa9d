"""Configs A-D as `tests/reference_growing/naming.md` describes them: variables under TensorFlow's
names and in its layouts.

Plain functions of a dict {name: float64 tensor}, images NCHW and always at full size, level of
detail as a number. Config A is told by its layers (StyleMod, 4x4/Dense1). Nothing of sg2jax is
used.
"""

import math
import re

import torch
import torch.nn.functional as F
from torch_formulation import SQRT2, fir, lrelu, normal, stddev


def box(x, times=1):
  """The mean of 2x2, so many times."""
  for _ in range(times):
    x = F.avg_pool2d(x, 2)
  return x


def nearest(x, factor):
  """Each pixel factor x factor times."""
  return x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def blur(x):
  """[1,2,1] x [1,2,1] / 16 with zero padding."""
  taps = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype) / 4
  return F.conv2d(
    x, torch.outer(taps, taps).expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1]
  )


def conv(x, w, pad=None, stride=1):
  """Correlation with a kernel HWIO."""
  return F.conv2d(
    x, w.permute(3, 2, 0, 1), padding=w.shape[0] // 2 if pad is None else pad, stride=stride
  )


def scaled(w, gain=1):
  """A weight at run time: equalised."""
  return w * (gain / math.sqrt(w[..., 0].numel()))


def resolution(p):
  """Of a network's images."""
  return max(int(m[1]) for m in (re.search(r'(\d+)x\1/', name) for name in p) if m)


def mapping(p, z, c):
  """w [N,W]. Labels pass a matrix and are normalised together with z."""
  adain = 'synthesis/4x4/Conv/StyleMod/weight' in p
  if 'mapping/LabelConcat/weight' in p:
    z = torch.cat([z, c @ p['mapping/LabelConcat/weight']], 1)
  x, i = normal(z), 0
  while f'mapping/Dense{i}/weight' in p:
    y = (
      x @ scaled(p[f'mapping/Dense{i}/weight'], 0.01 * (SQRT2 if adain else 1))
      + p[f'mapping/Dense{i}/bias'] * 0.01
    )
    x, i = lrelu(y, 1 if adain else SQRT2), i + 1
  return x


def layers(p):
  """Number of style inputs of a generator."""
  return 2 * int(math.log2(resolution(p))) - 2


def _grown(p, lod, image):
  """The image at a level of detail from `image(j)`, which is that of resolution R / 2^j."""
  level = int(lod)
  img = image(level)
  if lod > level:
    img = torch.lerp(img, nearest(image(level + 1), 2), lod - level)
  return nearest(img, 2**level)


def synthesis(p, ws, lod):
  """ws [N,layers,W] -> image at full size."""
  return (_synthesis_a if 'synthesis/4x4/Conv/StyleMod/weight' in p else _synthesis_bd)(p, ws, lod)


def _synthesis_a(p, ws, lod):
  steps = int(math.log2(resolution(p)))

  def epilogue(x, name, i):
    x = x + p[f'synthesis/noise{i}'] * p[f'{name}/Noise/weight'][:, None, None]
    x = lrelu(x + p[f'{name}/bias'][:, None, None], 1)
    x = x - x.mean((2, 3), keepdim=True)
    x = x / (x.square().mean((2, 3), keepdim=True) + 1e-8).sqrt()
    s = (ws[:, i] @ scaled(p[f'{name}/StyleMod/weight']) + p[f'{name}/StyleMod/bias']).reshape(
      len(x), 2, -1, 1, 1
    )
    return x * (s[:, 0] + 1) + s[:, 1]

  outs = {}
  for k in range(2, steps + 1):
    name = f'synthesis/{2**k}x{2**k}'
    if k == 2:
      x = epilogue(p[f'{name}/Const/const'].expand(len(ws), -1, -1, -1), f'{name}/Const', 0)
      x = epilogue(conv(x, scaled(p[f'{name}/Conv/weight'], SQRT2)), f'{name}/Conv', 1)
    else:
      x = blur(conv(nearest(x, 2), scaled(p[f'{name}/Conv0_up/weight'], SQRT2)))
      x = epilogue(x, f'{name}/Conv0_up', 2 * k - 4)
      x = epilogue(conv(x, scaled(p[f'{name}/Conv1/weight'], SQRT2)), f'{name}/Conv1', 2 * k - 3)
    outs[steps - k] = x

  def image(j):
    name = f'synthesis/ToRGB_lod{j}'
    return conv(outs[j], scaled(p[f'{name}/weight'])) + p[f'{name}/bias'][:, None, None]

  return _grown(p, lod, image)


def _modulated(p, name, x, w, up, demodulate):
  weight = scaled(p[f'{name}/weight'])
  s = w @ scaled(p[f'{name}/mod_weight']) + p[f'{name}/mod_bias'] + 1
  x = fir(x, 2, (3, 2), 4) if up else x
  outs = []
  for i in range(len(x)):
    own = weight * s[i][:, None]
    if demodulate:
      own = own / (own.square().sum((0, 1, 2)) + 1e-8).sqrt()
    outs.append(conv(x[i : i + 1], own, 0 if up else None))
  return torch.cat(outs)


def _synthesis_bd(p, ws, lod):
  steps = int(math.log2(resolution(p)))

  def layer(x, name, i, up=False):
    x = (
      _modulated(p, name, x, ws[:, i], up, True)
      + p[f'synthesis/noise{i}'] * p[f'{name}/noise_strength']
    )
    return lrelu(x + p[f'{name}/bias'][:, None, None])

  outs = {}
  for k in range(2, steps + 1):
    name = f'synthesis/{2**k}x{2**k}'
    if k == 2:
      x = layer(p[f'{name}/Const/const'].expand(len(ws), -1, -1, -1), f'{name}/Conv', 0)
    else:
      x = layer(layer(x, f'{name}/Conv0_up', 2 * k - 5, True), f'{name}/Conv1', 2 * k - 4)
    outs[steps - k] = x

  def image(j):
    name = f'synthesis/ToRGB_lod{j}'
    return (
      _modulated(p, name, outs[j], ws[:, 2 * (steps - j) - 3], False, False)
      + p[f'{name}/bias'][:, None, None]
    )

  return _grown(p, lod, image)


def discriminator(p, img, c, lod, group=4, features=1):
  """Scores [N,1] of images at full size. features 0: no minibatch stddev."""
  adain = '4x4/Dense1/weight' in p
  gain, after = (SQRT2, 1) if adain else (1, SQRT2)
  steps, level = int(math.log2(resolution(p))), int(lod)

  def act(x, name):
    return lrelu(
      x + (p[f'{name}/bias'][:, None, None] if x.ndim == 4 else p[f'{name}/bias']), after
    )

  def from_rgb(j):
    name = f'FromRGB_lod{j}'
    return act(conv(box(img, j), scaled(p[f'{name}/weight'], gain)), name)

  def block(x, j):
    name = f'{2 ** (steps - j)}x{2 ** (steps - j)}'
    x = act(conv(x, scaled(p[f'{name}/Conv0/weight'], gain)), f'{name}/Conv0')
    w = scaled(p[f'{name}/Conv1_down/weight'], gain)
    x = box(conv(blur(x), w)) if adain else conv(fir(x, 1, (2, 2)), w, 0, 2)
    return act(x, f'{name}/Conv1_down')

  x = from_rgb(level)
  for j in range(level, steps - 2):
    x = block(x, j)
    if j == level and lod > level:
      x = torch.lerp(x, from_rgb(level + 1), lod - level)
  x = stddev(x, group, features) if features else x
  x = act(conv(x, scaled(p['4x4/Conv/weight'], gain)), '4x4/Conv')
  x = act(x.flatten(1) @ scaled(p['4x4/Dense0/weight'], gain), '4x4/Dense0')
  last = '4x4/Dense1' if adain else 'Output'
  x = x @ scaled(p[f'{last}/weight']) + p[f'{last}/bias']
  return x if c is None else (x * c).sum(1, keepdim=True)


# ---- losses in training mode


class Nets:
  """Variables of G and D, and the state that losses leave."""

  def __init__(self, g, d, discriminate, pl_mean=0.0):
    still = lambda name: name == 'dlatent_avg' or 'synthesis/noise' in name
    self.g, self.d = (
      {k: torch.tensor(x, dtype=torch.float64, requires_grad=not still(k)) for k, x in net.items()}
      for net in (g, d)
    )
    self.own = {
      name: {k: x for k, x in net.items() if x.requires_grad}
      for name, net in (('G', self.g), ('D', self.d))
    }
    self.discriminate, self.pl_mean = (
      discriminate,
      torch.tensor(float(pl_mean), dtype=torch.float64),
    )

  def styles(self, z, c):
    """dlatents of a forward pass in training mode."""
    w = mapping(self.g, z, c)
    self.g['dlatent_avg'].copy_(w.detach().mean(0) * 0.005 + self.g['dlatent_avg'] * 0.995)
    return w[:, None].repeat(1, layers(self.g), 1)

  def g_loss(self, z, c, lod):
    """G_logistic_ns."""
    images = synthesis(self.g, self.styles(z, c), lod)
    scores = self.discriminate(self.d, images, c, lod)
    return {'loss': F.softplus(-scores), 'fake_scores': scores, 'fake_images': images}

  def d_loss(self, z, c, reals, lod, gamma):
    """D_logistic_r1; c: of the reals."""
    fake = self.discriminate(self.d, synthesis(self.g, self.styles(z, c), lod).detach(), c, lod)
    penalty = self.r1(c, reals, lod, gamma)
    return {
      'loss': F.softplus(fake) + F.softplus(-penalty['real_scores']),
      'fake_scores': fake,
    } | penalty

  def r1(self, c, reals, lod, gamma):
    """The regularizer of D_logistic_r1."""
    reals = reals.clone().requires_grad_()
    real = self.discriminate(self.d, reals, c, lod)
    penalty = torch.autograd.grad(real.sum(), reals, create_graph=True)[0].square().sum((1, 2, 3))
    return {'reg': penalty * (gamma / 2), 'gradient_penalty': penalty, 'real_scores': real}

  def pl_loss(self, z, c, noise, lod, weight, decay):
    """The regularizer of G_logistic_ns_pathreg."""
    ws = self.styles(z, c)
    images = synthesis(self.g, ws, lod)
    grad = torch.autograd.grad((images * noise).sum() / images.shape[2], ws, create_graph=True)[0]
    lengths = grad.square().sum(2).mean(1).sqrt()
    mean = self.pl_mean + decay * (lengths.mean() - self.pl_mean)
    self.pl_mean = mean.detach()
    penalty = (lengths - mean).square()
    return {'reg': penalty * weight, 'pl_penalty': penalty, 'pl_lengths': lengths}

  def grads(self, net, value):
    """{name: gradient} of a network's trainable variables, 0 where nothing depends on one."""
    own = self.own[net]
    found = torch.autograd.grad(value, list(own.values()), allow_unused=True, retain_graph=True)
    return {k: torch.zeros_like(x) if v is None else v for (k, x), v in zip(own.items(), found)}


def losses(config, given, g, d, discriminate):
  """A sub-case in the layout of `losses_ad`: {name: tensor} of what it expects."""
  tensor = lambda x: torch.tensor(x, dtype=torch.float64)
  t = lambda name: tensor(given[name]) if name in given else None
  results = {}

  def note(prefix, net, nets, values, grads):
    values['dlatent_avg_after'] = nets.g['dlatent_avg'].clone()
    results.update({f'{prefix}/{k}': v for k, v in values.items()})
    for kind, value in grads.items():
      results.update({f'{prefix}/{kind}/{k}': v for k, v in nets.grads(net, value).items()})

  for lod in config['lods']:
    name, lod = f'lod{lod:g}', float(torch.tensor(lod, dtype=torch.float32))
    if 'z_G' in given:
      nets = Nets(g, d, discriminate)
      values = nets.g_loss(t('z_G'), t('c_G'), lod)
      note(f'{name}/G', 'G', nets, values, {'grad': values['loss'].mean()})
    if 'z_D' in given:
      nets = Nets(g, d, discriminate)
      values = nets.d_loss(t('z_D'), t('c_real'), t(f'{name}/real_images'), lod, config['r1_gamma'])
      a, b = values['loss'].mean(), values['reg'].mean()
      lazy = config['lazy_regularization']
      note(
        f'{name}/D',
        'D',
        nets,
        values,
        {'grad_main': a, 'grad_reg': b} if lazy else {'grad_total': a + b},
      )
    nets, call = Nets(g, d, discriminate, given.get('pl_mean_before', 0.0)), 0
    while f'{name}/call{call}/z_pl' in given:
      prefix = f'{name}/call{call}'
      values = nets.pl_loss(
        t(f'{prefix}/z_pl'),
        t(f'{prefix}/c_pl'),
        t(f'{prefix}/pl_noise_raw'),
        lod,
        config['pl_weight'],
        config['pl_decay'],
      )
      note(
        prefix,
        'G',
        nets,
        values | {'pl_mean_after': nets.pl_mean},
        {'grad_reg': values['reg'].mean()},
      )
      call += 1
  return results


# ---- a trajectory


class Adam:
  """TensorFlow's: epsilon is added before the correction of the bias."""

  def __init__(self, own, lr, beta1, beta2, eps):
    self.own, self.hyper, self.t = own, (lr, beta1, beta2, eps), 0
    self.m, self.v = ({k: torch.zeros_like(x) for k, x in own.items()} for _ in range(2))

  def step(self, grads, lr_now=None):
    """One step."""
    lr, b1, b2, eps = self.hyper
    self.t += 1
    lr = (lr if lr_now is None else lr_now) * math.sqrt(1 - b2**self.t) / (1 - b1**self.t)
    with torch.no_grad():
      for k, x in self.own.items():
        self.m[k] = b1 * self.m[k] + (1 - b1) * grads[k]
        self.v[k] = b2 * self.v[k] + (1 - b2) * grads[k].square()
        x -= lr * self.m[k] / (self.v[k].sqrt() + eps)


def trajectory(config, given, init, discriminate, schedule):
  """A sub-case in the layout of `growing_trajectory`, one round a minibatch.

  schedule: [(lod, learning rate, images, whether Adam is reset)] of its evaluations.
  """
  tensor = lambda x: torch.tensor(x, dtype=torch.float64)
  pick = lambda prefix: {k[len(prefix) :]: v for k, v in init.items() if k.startswith(prefix)}
  nets = Nets(pick('G/'), pick('D/'), discriminate)
  ema = {k: x.detach().clone() for k, x in nets.own['G'].items()}
  used, counter, nimg, results = {}, 0, 0, {}
  loss = config['loss']
  k = {net: config[f'{net}_reg_interval'] for net in 'GD'}

  def take(name):
    used[name] = used.get(name, 0) + 1
    key = f'{name}/{used[name] - 1}'
    return tensor(given[key]) if f'{name}/0' in given else None

  for lod, lr, batch, reset in schedule:
    if reset:
      opt = {
        net: Adam(
          nets.own[net],
          0,
          config['adam']['beta1'],
          config['adam']['beta2'] ** (k[net] / (k[net] + 1)),
          config['adam']['epsilon'],
        )
        for net in 'GD'
      }
    rate = {net: lr * k[net] / (k[net] + 1) for net in 'GD'}
    for _ in range(config['minibatch_repeats']):
      opt['G'].step(
        nets.grads('G', nets.g_loss(take('z_G'), take('c_G'), lod)['loss'].mean()), rate['G']
      )
      if counter % k['G'] == 0:
        values = nets.pl_loss(
          take('z_pl'), take('c_pl'), take('pl_noise_raw'), lod, loss['pl_weight'], loss['pl_decay']
        )
        opt['G'].step(nets.grads('G', values['reg'].mean() * k['G']), rate['G'])
      beta = 0.5 ** (batch / (1000 * config['G_smoothing_kimg']))
      ema = {key: x.detach() + (ema[key] - x.detach()) * beta for key, x in nets.own['G'].items()}
      reals = take('reals') / 127.5 - 1
      level = int(lod)
      reals = nearest(
        torch.lerp(reals, nearest(box(reals), 2), lod - level) if lod > level else reals, 2**level
      )
      c = take('c_real')
      values = nets.d_loss(take('z_D'), c, reals, lod, loss['r1_gamma'])
      opt['D'].step(nets.grads('D', values['loss'].mean()), rate['D'])
      if counter % k['D'] == 0:
        opt['D'].step(
          nets.grads('D', nets.r1(c, reals, lod, loss['r1_gamma'])['reg'].mean() * k['D']),
          rate['D'],
        )
      counter, nimg = counter + 1, nimg + batch
    for i, at in enumerate(config['nimg_at_state']):
      if nimg == at:
        for name, net in (('G', nets.own['G']), ('D', nets.own['D']), ('Gs', ema)):
          results |= {f'state{i}/{name}/{key}': x.detach().clone() for key, x in net.items()}
        results |= {
          f'state{i}/G/dlatent_avg': nets.g['dlatent_avg'].clone(),
          f'state{i}/pl_mean': nets.pl_mean.clone(),
        }
  return results | {'schedule_lod': tensor([lod for lod, *_ in schedule])}, used
