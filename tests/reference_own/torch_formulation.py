"""StyleGAN2 as `tests/reference/naming.md` and the paper describe it, in PyTorch's formulation,
written for these vectors only.

Plain functions of a dict {NVIDIA's key: float64 tensor}, NCHW, each formula as it stands there:
weights are modulated for each sample, filters are convolutions, penalties come from autograd.
Nothing of sg2jax is used.
"""

import math

import torch
import torch.nn.functional as F

SQRT2 = math.sqrt(2)


def fir(x, up=1, pad=(0, 0), gain=1):
  """Zero insertion, zero padding (before, after) and the filter [1,3,3,1], which is symmetric."""
  n, c, h, w = x.shape
  y = torch.zeros(n, c, h * up, w * up, dtype=x.dtype)
  y[:, :, ::up, ::up] = x
  taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype) / 8
  kernel = torch.outer(taps, taps).expand(c, 1, 4, 4) * gain
  return F.conv2d(F.pad(y, (*pad, *pad)), kernel, groups=c)


def up_image(x):
  """An image at twice the size."""
  return fir(x, 2, (2, 1), 4)


def lrelu(x, gain=SQRT2):
  """The activation, slope 0.2, and its gain."""
  return F.leaky_relu(x, 0.2) * gain


def normal(x):
  """Second-moment normalisation over features."""
  return x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()


def dense(p, name, x, lr=1):
  """Fully connected, linear."""
  w = p[f'{name}.weight']
  return x @ w.T * (lr / math.sqrt(w.shape[1])) + p[f'{name}.bias'] * lr


def mapping(p, z, c, prefix='mapping', lr=0.01):
  """z (or None), c (or None) -> w [N,W]."""
  parts = [] if z is None else [normal(z)]
  if c is not None:
    parts.append(normal(dense(p, f'{prefix}.embed', c)))
  x, i = torch.cat(parts, 1), 0
  while f'{prefix}.fc{i}.weight' in p:
    x, i = lrelu(dense(p, f'{prefix}.fc{i}', x, lr)), i + 1
  return x


def modulated(p, name, x, w, up, demodulate, noise):
  """A synthesis layer without bias and activation."""
  weight = p[f'{name}.weight']
  s = dense(p, f'{name}.affine', w)
  if not demodulate:
    s = s / math.sqrt(weight[0].numel())
  weight = weight[None] * s[:, None, :, None, None]
  if demodulate:
    weight = weight / (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
  if up:  # filtered first; then a true convolution
    x, weight = fir(x, 2, (3, 2), 4), weight.flip(3, 4)
  pad = 0 if up else weight.shape[-1] // 2
  y = torch.cat([F.conv2d(x[i : i + 1], weight[i], padding=pad) for i in range(len(x))])
  return y + p[f'{name}.noise_const'] * p[f'{name}.noise_strength'] if noise else y


def synthesis(p, ws, noise=True):
  """ws [N,num_ws,W] -> image, architecture skip."""
  res = sorted(int(key.split('.')[1][1:]) for key in p if key.endswith('torgb.bias'))

  def layer(name, x, w, up=False):
    return lrelu(modulated(p, name, x, w, up, True, noise) + p[f'{name}.bias'][:, None, None])

  x, img, i = p['synthesis.b4.const'].expand(len(ws), -1, -1, -1), None, 0
  for r in res:
    if r > 4:
      x, i = layer(f'synthesis.b{r}.conv0', x, ws[:, i], True), i + 1
    x, i = layer(f'synthesis.b{r}.conv1', x, ws[:, i]), i + 1
    name = f'synthesis.b{r}.torgb'
    rgb = modulated(p, name, x, ws[:, i], False, False, False) + p[f'{name}.bias'][:, None, None]
    img = rgb if img is None else up_image(img) + rgb
  return img


def num_ws(p):
  """Of a generator."""
  return 2 * sum(key.endswith('torgb.bias') for key in p)


def stddev(x, group, features):
  """Minibatch standard deviation: sample i is in group i mod n."""
  g = min(group or len(x), len(x))
  y = x.reshape(g, -1, features, x.shape[1] // features, *x.shape[2:])
  y = ((y - y.mean(0)).square().mean(0) + 1e-8).sqrt().mean((2, 3, 4))  # [n,F]
  y = y[torch.arange(len(x)) % (len(x) // g)]
  return torch.cat([x, y[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1)


def discriminator(p, img, c=None, group=4, features=1, lr=0.01):
  """Logits [N,1]; architecture resnet if there are skips, else orig. features 0: no minibatch
  stddev.
  """
  res = sorted({int(key[1 : key.index('.')]) for key in p if key.startswith('b')})[:0:-1]

  def conv(name, x, down=False, gain=SQRT2):
    weight = p[f'{name}.weight']
    k = weight.shape[-1]
    weight = weight / math.sqrt(weight[0].numel())
    pad = k // 2
    x = fir(x, 1, (pad + 1, pad + 1)) if down else x
    x = F.conv2d(x, weight, stride=2 if down else 1, padding=0 if down else pad)
    return lrelu(x + p[f'{name}.bias'][:, None, None], gain)

  x = conv(f'b{res[0]}.fromrgb', img)
  for r in res:
    skip = f'b{r}.skip.weight'
    y = conv(f'b{r}.conv1', conv(f'b{r}.conv0', x), True, 1 if skip in p else SQRT2)
    if skip in p:
      y = y + F.conv2d(fir(x, 1, (1, 1)), p[skip] / math.sqrt(x.shape[1]), stride=2) * math.sqrt(
        0.5
      )
    x = y
  x = stddev(x, group, features) if features else x
  x = conv('b4.conv', x)
  x = dense(p, 'b4.out', lrelu(dense(p, 'b4.fc', x.flatten(1))))
  if c is not None:
    cmap = mapping(p, None, c, lr=lr)
    x = (x * cmap).sum(1, keepdim=True) / math.sqrt(cmap.shape[1])
  return x


class Training:
  """NVIDIA's loop over phases, with all draws given."""

  def __init__(self, config, g, d, discriminate):
    self.config, self.discriminate = config, discriminate
    buffer = lambda key: key.endswith(('w_avg', 'noise_const', 'resample_filter'))
    self.g, self.d = (
      {
        key: torch.tensor(x, dtype=torch.float64, requires_grad=not buffer(key))
        for key, x in net.items()
      }
      for net in (g, d)
    )
    self.own = {
      name: {k: x for k, x in net.items() if x.requires_grad}
      for name, net in (('G', self.g), ('D', self.d))
    }
    self.ema = {key: x.detach().clone() for key, x in self.g.items()}
    self.pl_mean = torch.zeros((), dtype=torch.float64)
    self.intervals = {net: config[f'{net}_reg_interval'] for net in 'GD'}
    self.opt, self.nimg = {}, 0
    for net, k in self.intervals.items():
      c = 1 if k is None else k / (k + 1)
      self.opt[net] = torch.optim.Adam(
        list(self.own[net].values()),
        config['lr'] * c,
        [float(b) ** c for b in config['betas']],
        config['eps'],
      )
    self.trace = {}

  def note(self, name, value):
    """Adds to a trace."""
    value = (
      value.detach().clone() if torch.is_tensor(value) else torch.tensor(value, dtype=torch.float64)
    )
    self.trace.setdefault(name, []).append(value)

  def styles(self, z, c, mix, track=True):
    """ws of a forward pass in training mode. mix: (latents, cutoff) or None."""
    w = mapping(self.g, z, c)
    self.g['mapping.w_avg'].copy_(w.detach().mean(0) * 0.005 + self.g['mapping.w_avg'] * 0.995)
    ws = w[:, None].repeat(1, num_ws(self.g), 1)
    if mix is not None and mix[1] < ws.shape[1]:
      other = mapping(self.g, mix[0], c)[:, None].repeat(1, ws.shape[1], 1)
      ws = torch.cat([ws[:, : mix[1]], other[:, mix[1] :]], 1)
    return ws

  def main_g(self, x):
    """Non-saturating loss of a round."""
    logits = self.discriminate(
      self.d, synthesis(self.g, self.styles(x['z'], x['c'], x['mix'])), x['c']
    )
    return F.softplus(-logits).mean(), {
      'loss_Gmain': F.softplus(-logits).mean(),
      'scores_fake_Gmain': logits.mean(),
    }

  def reg_g(self, x):
    """Path length penalty of a round."""
    ws = self.styles(x['z_pl'], x['c_pl'], x['mix_pl'])
    img = synthesis(self.g, ws)
    noise = x['noise'] / math.sqrt(img.shape[2] * img.shape[3])
    grad = torch.autograd.grad((img * noise).sum(), ws, create_graph=True)[0]
    lengths = grad.square().sum(2).mean(1).sqrt()
    mean = self.pl_mean + self.config['pl_decay'] * (lengths.mean() - self.pl_mean)
    self.pl_mean = mean.detach()
    penalty = (lengths - mean).square().mean()
    return penalty * self.config['pl_weight'], {'pl_lengths': lengths, 'pl_penalty_mean': penalty}

  def main_d(self, x):
    """Logistic loss of a round."""
    fakes = synthesis(self.g, self.styles(x['z'], x['c'], x['mix'])).detach()
    fake, real = (
      self.discriminate(self.d, fakes, x['c']),
      self.discriminate(self.d, x['reals'], x['real_c']),
    )
    a, b = F.softplus(fake).mean(), F.softplus(-real).mean()
    return a + b, {'loss_Dgen': a, 'loss_Dreal': b, 'scores_real': real.mean()}

  def reg_d(self, x):
    """R1 of a round."""
    reals = x['reals'].clone().requires_grad_()
    grad = torch.autograd.grad(
      self.discriminate(self.d, reals, x['real_c']).sum(), reals, create_graph=True
    )[0]
    penalty = grad.square().sum((1, 2, 3)).mean()
    return penalty * self.config['r1_gamma'] / 2, {'r1_penalty_mean': penalty}

  def phase(self, name, rounds):
    """One Adam step; gradients of the rounds are summed."""
    net, what = name[0], name[1:]
    terms = {'main': ['main'], 'reg': ['reg'], 'both': ['main', 'reg']}[what]
    gain = self.intervals[net] if what == 'reg' else 1
    self.opt[net].zero_grad()
    notes = {}
    for x in rounds:
      for term in terms:
        value, aux = getattr(self, f'{term}_{net.lower()}')(x)
        keys = list(self.own[net].values())
        for p, grad in zip(keys, torch.autograd.grad(value * gain, keys, allow_unused=True)):
          grad = torch.zeros_like(p) if grad is None else grad
          p.grad = grad if p.grad is None else p.grad + grad
        for key, v in aux.items():
          notes.setdefault(key, []).append(v)
    for key, values in notes.items():
      values = torch.stack(values)
      self.note(key, values if key == 'pl_lengths' else values.mean())
    self.opt[net].step()

  def end(self):
    """The moving average, and traces of the state."""
    c = self.config
    nimg = c['ema_kimg'] * 1000
    if c['ema_rampup'] is not None:
      nimg = min(nimg, self.nimg * c['ema_rampup'])
    beta = 0.5 ** (c['batch_size'] / max(nimg, 1e-8))
    for key, x in self.g.items():
      x = x.detach()
      self.ema[key] = x + (self.ema[key] - x) * beta if key in self.own['G'] else x.clone()
    self.nimg += c['batch_size']
    sumsq = lambda net: sum(x.detach().square().sum() for x in net.values())
    self.note('pl_mean', self.pl_mean)
    self.note('w_avg_norm', self.g['mapping.w_avg'].norm())
    self.note('G_param_sumsq', sumsq(self.own['G']))
    self.note('D_param_sumsq', sumsq(self.own['D']))
    self.note('G_ema_param_sumsq', sumsq({key: self.ema[key] for key in self.own['G']}))
    self.note('ema_beta', beta)

  def snapshot(self):
    """{'G/key': array ...} of parameters, w_avg and pl_mean."""
    nets = {
      'G': self.own['G'],
      'D': self.own['D'],
      'G_ema': {key: self.ema[key] for key in self.own['G']},
    }
    found = {
      f'{name}/{key}': x.detach().clone() for name, net in nets.items() for key, x in net.items()
    }
    return found | {'w_avg': self.g['mapping.w_avg'].clone(), 'pl_mean': self.pl_mean}


def run(config, given, init, discriminate):
  """A whole trajectory in the layout of the case `training_trajectory` -> {name: tensor} of what it
  expects.
  """
  pick = lambda prefix: {k[len(prefix) :]: v for k, v in init.items() if k.startswith(prefix)}
  t = Training(config, pick('G/'), pick('D/'), discriminate)
  batch, micro = config['batch_size'], config['batch_gpu']
  number, phases, results, regs = batch // micro, config['phases'], {}, 0
  tensor = lambda x: torch.tensor(x, dtype=torch.float64)
  for i in range(config['iterations']):
    reals = tensor(given['real_img_uint8'][i]) / 127.5 - 1
    for j, name in enumerate(phases):
      if name.endswith('reg') and i % t.intervals[name[0]]:
        continue
      rounds = []
      for r in range(number):
        part = slice(r * micro, (r + 1) * micro)
        x = {
          'z': tensor(given['z'][i, j, part]),
          'c': None,
          'mix': None,
          'reals': reals[part],
          'real_c': None,
        }
        if 'gen_c' in given:
          x |= {'c': tensor(given['gen_c'][i, j, part]), 'real_c': tensor(given['real_c'][i, part])}
        if 'z_mix' in given:
          x['mix'] = tensor(given['z_mix'][i, j, part]), int(given['style_mixing_cutoff'][i, j, r])
        n = micro // config['pl_batch_shrink']
        x |= {'z_pl': x['z'][:n], 'c_pl': None if x['c'] is None else x['c'][:n], 'mix_pl': None}
        if name in ('Greg', 'Gboth'):
          x['noise'] = tensor(given['pl_noise_raw'][regs, r])
          if 'z_mix_pl' in given:
            x['mix_pl'] = (
              tensor(given['z_mix_pl'][regs, r]),
              int(given['style_mixing_cutoff_pl'][regs, r]),
            )
        rounds.append(x)
      regs += name in ('Greg', 'Gboth')
      t.phase(name, rounds)
    t.end()
    if i == 0:
      results |= {f'iter1/{k}': v for k, v in t.snapshot().items() if not k.startswith('G_ema')}
  results |= {f'final/{k}': v for k, v in t.snapshot().items()} | {
    f'trace/{k}': torch.stack(v) for k, v in t.trace.items()
  }
  z, c = tensor(given['z'][0, 0]), tensor(given['gen_c'][0, 0]) if 'gen_c' in given else None
  ws = mapping(t.ema, z, c)[:, None].repeat(1, num_ws(t.ema), 1)
  return results | {'final/G_ema_img': synthesis(t.ema, ws)}
