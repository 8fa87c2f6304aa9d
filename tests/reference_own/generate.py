"""python tests/reference_own/generate.py: writes the vectors of this folder. Needs NumPy and
PyTorch, and nothing of sg2jax.

Every expected value comes from the two files beside this one, in float64. `--check FOLDER ...`
compares those files with the official vectors of the neighbouring kinds (`tests/reference`,
`tests/reference_growing`) and writes nothing.
"""

import argparse
import json
import math
import pathlib

import numpy as np
import tf_formulation as tf
import torch
import torch_formulation as pt

HERE = pathlib.Path(__file__).parent
FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64


def f32(x):
  """Drawn numbers as the files hold them."""
  return np.asarray(x, np.float32)


class Draw:
  """Random parameters and inputs."""

  def __init__(self, seed):
    self.r = np.random.RandomState(seed)

  def n(self, *shape, scale=1.0):
    """N(0, scale^2)."""
    return f32(self.r.randn(*shape) * scale)

  def labels(self, *shape):
    """One-hot vectors [..., C]."""
    return f32(np.eye(shape[-1])[self.r.randint(shape[-1], size=shape[:-1])])

  def mapping(self, prefix, inputs, hidden, w, depth, c_dim, embed, lr=0.01):
    """Of NVIDIA's PyTorch names."""
    p = {}
    if c_dim:
      p |= {
        f'{prefix}.embed.weight': self.n(embed, c_dim),
        f'{prefix}.embed.bias': self.n(embed, scale=0.2),
      }
    inputs += embed if c_dim else 0
    for i in range(depth):
      out = w if i == depth - 1 else hidden
      p |= {
        f'{prefix}.fc{i}.weight': self.n(out, inputs, scale=1 / lr),
        f'{prefix}.fc{i}.bias': self.n(out, scale=0.1 / lr),
      }
      inputs = out
    return p

  def generator(self, res, z, w, ch, c_dim=0, channels=3, depth=2):
    """PyTorch state dict of a skip generator with `ch` feature maps."""
    p = self.mapping('mapping', z, w, w, depth, c_dim, w) | {'mapping.w_avg': self.n(w, scale=0.3)}
    r = 4
    while r <= res:
      name = f'synthesis.b{r}'
      p[f'{name}.resample_filter'] = FILTER
      if r == 4:
        p[f'{name}.const'] = self.n(ch, 4, 4)
      for conv in ('conv0', 'conv1')[r == 4 :]:
        p |= {
          f'{name}.{conv}.weight': self.n(ch, ch, 3, 3),
          f'{name}.{conv}.bias': self.n(ch, scale=0.2),
          f'{name}.{conv}.noise_strength': self.n(scale=0.3),
          f'{name}.{conv}.noise_const': self.n(r, r),
          f'{name}.{conv}.resample_filter': FILTER,
          f'{name}.{conv}.affine.weight': self.n(ch, w),
          f'{name}.{conv}.affine.bias': 1 + self.n(ch, scale=0.2),
        }
      p |= {
        f'{name}.torgb.weight': self.n(channels, ch, 1, 1),
        f'{name}.torgb.bias': self.n(channels, scale=0.2),
        f'{name}.torgb.affine.weight': self.n(ch, w),
        f'{name}.torgb.affine.bias': 1 + self.n(ch, scale=0.2),
      }
      r *= 2
    return p

  def discriminator(self, res, ch, c_dim=0, extra=1, skip=True, channels=3, depth=2, lr=0.01):
    """PyTorch state dict of a discriminator whose last block has `extra` channels of minibatch
    stddev.
    """
    p = self.mapping('mapping', 0, ch, ch, depth, c_dim, ch, lr) if c_dim else {}
    layer = lambda name, o, i, k: {
      f'{name}.weight': self.n(o, i, k, k),
      f'{name}.bias': self.n(o, scale=0.2),
      f'{name}.resample_filter': FILTER,
    }
    p |= layer(f'b{res}.fromrgb', ch, channels, 1)
    for k in range(int(math.log2(res)), 2, -1):
      p[f'b{2**k}.resample_filter'] = FILTER
      p |= layer(f'b{2**k}.conv0', ch, ch, 3) | layer(f'b{2**k}.conv1', ch, ch, 3)
      if skip:
        p |= {f'b{2**k}.skip.weight': self.n(ch, ch, 1, 1), f'b{2**k}.skip.resample_filter': FILTER}
    out = ch if c_dim else 1
    return (
      p
      | layer('b4.conv', ch, ch + extra, 3)
      | {
        'b4.fc.weight': self.n(ch, 16 * ch),
        'b4.fc.bias': self.n(ch, scale=0.2),
        'b4.out.weight': self.n(out, ch),
        'b4.out.bias': self.n(out, scale=0.2),
      }
    )

  def tensorflow(self, shapes):
    """{name: array} of {name: shape}; biases are small, mapping weights large."""

    def scale(name):
      if 'mapping/Dense' in name and 'weight' in name:
        return 100
      return 0.3 if 'bias' in name or 'Noise' in name else 1

    return {name: self.n(*shape, scale=scale(name)) for name, shape in shapes.items()}


class Writer:
  """The folder: cases with their sub-cases."""

  def __init__(self):
    self.cases = []

  def case(self, name, title, notes):
    """Begins a case."""
    self.cases.append(
      {
        'id': name,
        'file': f'{name}.npz',
        'title': title,
        'notes': notes,
        'subcases': {},
        'arrays': {},
        'data': {},
      }
    )

  def sub(self, name, config, given, expected):
    """Adds a sub-case. given: {name: array}, expected: {name: tensor}."""
    case = self.cases[-1]
    case['subcases'][name] = {'config': config}
    for key, x in given.items():
      x = np.asarray(x)
      case['data'][f'{name}/{key}'] = x
      role = 'param' if key.split('/')[0] in ('G', 'D', 'G_ema', 'tf', 'init') else 'input'
      case['arrays'][f'{name}/{key}'] = {'role': role}
    for key, x in expected.items():
      x = x.detach().numpy() if torch.is_tensor(x) else np.asarray(x, np.float64)
      most = float(np.abs(x).max()) or 1.0
      case['data'][f'{name}/{key}'] = x
      case['arrays'][f'{name}/{key}'] = {
        'role': 'expected',
        'tol': {
          'rtol64': 1e-6,
          'atol64': float(f'{1e-6 * most:.1e}'),
          'rtol32': 1e-3,
          'atol32': float(f'{1e-2 * most:.1e}'),
        },
      }

  def write(self):
    """Writes all."""
    for case in self.cases:
      np.savez_compressed(HERE / case['file'], **case.pop('data'))
    document = {'format': 'golden-vectors/1', 'set': 'own', 'cases': self.cases}
    (HERE / 'manifest.json').write_text(
      json.dumps(document, indent=None, separators=(',', ':')) + '\n'
    )


def tensors(arrays):
  """float64 tensors."""
  return {k: torch.tensor(v, dtype=torch.float64) for k, v in arrays.items()}


# ---- PyTorch's formulation


def g_config(res, z, w, ch, c_dim=0):
  """init_kwargs of Draw.generator."""
  return {
    'z_dim': z,
    'c_dim': c_dim,
    'w_dim': w,
    'img_resolution': res,
    'img_channels': 3,
    'mapping_kwargs': {'num_layers': 2},
    'synthesis_kwargs': {
      'channel_base': ch * res,
      'channel_max': ch,
      'architecture': 'skip',
      'conv_clamp': None,
    },
  }


def d_config(res, ch, epilogue, c_dim=0, skip=True, **mapping):
  """init_kwargs of Draw.discriminator."""
  config = {
    'c_dim': c_dim,
    'img_resolution': res,
    'img_channels': 3,
    'architecture': 'resnet' if skip else 'orig',
    'channel_base': ch * res,
    'channel_max': ch,
    'conv_clamp': None,
    'epilogue_kwargs': epilogue,
  }
  return config | ({'mapping_kwargs': {'num_layers': 2} | mapping} if c_dim else {})


def trajectories(out):
  """Trajectories of which one network or both are regularized in every step."""
  out.case(
    'training_trajectory',
    'training without lazy regularisation',
    [
      'G_reg_interval or D_reg_interval null: one phase Gboth or Dboth, one Adam step on the sum '
      'of both losses, each with gain 1; lr and betas as they are. z and gen_c of a phase serve '
      'both losses, the path length takes the first batch_gpu // pl_batch_shrink images of each '
      'round. w_avg is updated by the main loss and by the path length, in this order.',
      'z_mix [iteration, phase, batch, z_dim] and style_mixing_cutoff [iteration, phase, round]: '
      'the styles of a round from cutoff on come from z_mix; num_ws means none. z_mix_pl [phase '
      'with path length, round, ...] and style_mixing_cutoff_pl: those of the path length.',
    ],
  )
  common = {
    'batch_size': 4,
    'optimizer': 'Adam',
    'lr': 0.002,
    'betas': [0, 0.99],
    'eps': 1e-8,
    'pl_weight': 2.0,
    'pl_decay': 0.01,
    'real_image_scaling': 'x/127.5 - 1',
  }
  settings = {
    'both': (
      0,
      {
        'iterations': 3,
        'batch_gpu': 4,
        'phases': ['Gboth', 'Dboth'],
        'G_reg_interval': None,
        'D_reg_interval': None,
        'r1_gamma': 1.0,
        'pl_batch_shrink': 2,
        'style_mixing_prob': 0,
        'ema_kimg': 0.1,
        'ema_rampup': 0.05,
        'effective': {net: {'mb_ratio': 1.0, 'lr': 0.002, 'betas': [0, 0.99]} for net in 'GD'},
        'regularisation_iterations': {'Gboth': [0, 1, 2], 'Dboth': [0, 1, 2]},
      },
      {'mbstd_group_size': 0},
    ),
    'Gboth_D_lazy_cond_mixing': (
      3,
      {
        'iterations': 3,
        'batch_gpu': 2,
        'phases': ['Gboth', 'Dmain', 'Dreg'],
        'G_reg_interval': None,
        'D_reg_interval': 2,
        'r1_gamma': 10.0,
        'pl_batch_shrink': 1,
        'style_mixing_prob': 0.9,
        'ema_kimg': 0.02,
        'ema_rampup': None,
        'effective': {
          'G': {'mb_ratio': 1.0, 'lr': 0.002, 'betas': [0, 0.99]},
          'D': {'mb_ratio': 2 / 3},
        },
        'regularisation_iterations': {'Gboth': [0, 1, 2], 'Dreg': [0, 2]},
      },
      {'mbstd_group_size': 4, 'mbstd_num_features': 2},
    ),
  }
  for seed, (name, (c_dim, own, epilogue)) in enumerate(settings.items()):
    draw, res, ch, z = Draw(seed), 8, 4, 8
    features = epilogue.get('mbstd_num_features', 1) if epilogue['mbstd_group_size'] else 0
    config = (
      {'G': g_config(res, z, 6, ch, c_dim), 'D': d_config(res, ch, epilogue, c_dim, not c_dim)}
      | common
      | own
    )
    n, phases, batch = config['iterations'], len(config['phases']), 4
    number, micro = batch // config['batch_gpu'], config['batch_gpu']
    given = {
      'z': draw.n(n, phases, batch, z),
      'real_img_uint8': draw.r.randint(256, size=(n, batch, 3, res, res)).astype(np.uint8),
      'pl_noise_raw': draw.n(n, number, micro // config['pl_batch_shrink'], 3, res, res),
    }
    if c_dim:
      given |= {
        'gen_c': draw.labels(n, phases, batch, c_dim),
        'real_c': draw.labels(n, batch, c_dim),
        'z_mix': draw.n(n, phases, batch, z),
        'style_mixing_cutoff': draw.r.randint(1, 5, size=(n, phases, number)),
        'z_mix_pl': draw.n(n, number, micro, z),
        'style_mixing_cutoff_pl': draw.r.randint(1, 5, size=(n, number)),
      }
    init = {f'G/{k}': v for k, v in draw.generator(res, z, 6, ch, c_dim).items()}
    init |= {
      f'D/{k}': v for k, v in draw.discriminator(res, ch, c_dim, features, not c_dim).items()
    }
    group = epilogue['mbstd_group_size']
    expected = pt.run(
      config, given, init, lambda p, x, c, g=group, f=features: pt.discriminator(p, x, c, g, f)
    )
    out.sub(name, config, given | {f'init/{k}': v for k, v in init.items()}, expected)


def discriminators(out):
  """Discriminators without minibatch stddev, and with more channels of it, by TensorFlow's
  names.
  """
  out.case(
    'discriminator',
    "discriminator: minibatch stddev by TensorFlow's names",
    ['mbstd_group_size 0: no minibatch stddev. mbstd_num_features: as mbstd_num_channels.'],
  )
  for seed, (name, epilogue) in enumerate(
    {
      'group0_features1': {'mbstd_group_size': 0, 'mbstd_num_features': 1},
      'features0': {'mbstd_group_size': 4, 'mbstd_num_features': 0},
      'features3': {'mbstd_group_size': 2, 'mbstd_num_features': 3},
    }.items()
  ):
    draw = Draw(10 + seed)
    group = epilogue['mbstd_group_size']
    features = epilogue.get('mbstd_num_features', 1) if group else 0
    p = draw.discriminator(8, 6, extra=features)
    img, dy = draw.n(4, 3, 8, 8), draw.n(4, 1)
    x = torch.tensor(img, dtype=torch.float64, requires_grad=True)
    logits = pt.discriminator(tensors(p), x, None, group, features)
    grad = lambda value, x=x: torch.autograd.grad(value, x, retain_graph=True)[0]
    out.sub(
      name,
      d_config(8, 6, epilogue),
      {'img': img, 'dy': dy} | {f'D/{k}': v for k, v in p.items()},
      {
        'logits': logits,
        'grad_img': grad(logits.sum()),
        'grad_img_dy': grad((logits * torch.tensor(dy)).sum()),
      },
    )


def converted(p):
  """PyTorch's names of a generator or discriminator in TensorFlow's, by section 3 of naming.md."""
  found = {}
  for name, x in p.items():
    part = name.split('/')
    generator, leaf = part[0] in ('synthesis', 'mapping') or name == 'dlatent_avg', part[-1]
    side = next((s.split('x')[0] for s in part if s[0].isdigit()), '4')
    weight = lambda x: x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T
    if name == 'dlatent_avg':
      found['mapping.w_avg'] = x
    elif part[-2] == 'LabelEmbed':
      found[f'mapping.embed.{leaf}'] = x.T
    elif part[0] == 'mapping' or part[0].startswith('Mapping'):
      found[f'mapping.fc{part[-2].removeprefix("Dense").removeprefix("Mapping")}.{leaf}'] = x.T
    elif leaf.startswith('noise') and leaf[5:].isdigit():
      i = int(leaf[5:])
      block, conv = (4, 1) if i == 0 else (2 ** ((i + 5) // 2), (i + 1) % 2)
      found[f'synthesis.b{block}.conv{conv}.noise_const'] = x[0, 0]
    elif leaf == 'const':
      found['synthesis.b4.const'] = x[0]
    else:
      layer = {
        'Conv': 'conv1' if generator else 'conv',
        'Conv0_up': 'conv0',
        'Conv0': 'conv0',
        'Conv1': 'conv1',
        'Skip': 'skip',
        'Conv1_down': 'conv1',
        'ToRGB': 'torgb',
        'FromRGB': 'fromrgb',
        'Dense0': 'fc',
        'Output': 'out',
      }[part[-2]]
      key = f'{"synthesis." if generator else ""}b{side}.{layer}.'
      if leaf == 'weight':
        found[f'{key}weight'] = weight(
          x[::-1, ::-1] if generator and part[-2] in ('Conv0_up', 'Skip') else x
        )
      elif leaf.startswith('mod'):
        found[f'{key}affine.{leaf[4:]}'] = x.T if leaf == 'mod_weight' else np.float64(x) + 1
      else:
        found[f'{key}{leaf}'] = x
  return found


def tensorflow_shapes(z, w, ch, c_dim):
  """Variables of an 8 px skip generator and resnet discriminator without minibatch stddev, in
  TensorFlow's names.
  """
  g = {
    'dlatent_avg': (w,),
    'mapping/LabelEmbed/weight': (c_dim, w),
    'mapping/LabelEmbed/bias': (w,),
    'mapping/Dense0/weight': (z + w, w),
    'mapping/Dense0/bias': (w,),
    'mapping/Dense1/weight': (w, w),
    'mapping/Dense1/bias': (w,),
    'synthesis/noise0': (1, 1, 4, 4),
    'synthesis/noise1': (1, 1, 8, 8),
    'synthesis/noise2': (1, 1, 8, 8),
    'synthesis/4x4/Const/const': (1, ch, 4, 4),
  }
  for name in ('4x4/Conv', '8x8/Conv0_up', '8x8/Conv1'):
    g |= {
      f'synthesis/{name}/weight': (3, 3, ch, ch),
      f'synthesis/{name}/bias': (ch,),
      f'synthesis/{name}/noise_strength': (),
      f'synthesis/{name}/mod_weight': (w, ch),
      f'synthesis/{name}/mod_bias': (ch,),
    }
  for name in ('4x4/ToRGB', '8x8/ToRGB'):
    g |= {
      f'synthesis/{name}/weight': (1, 1, ch, 3),
      f'synthesis/{name}/bias': (3,),
      f'synthesis/{name}/mod_weight': (w, ch),
      f'synthesis/{name}/mod_bias': (ch,),
    }
  d = {
    '8x8/FromRGB/weight': (1, 1, 3, ch),
    '8x8/FromRGB/bias': (ch,),
    '8x8/Skip/weight': (1, 1, ch, ch),
    '4x4/Dense0/weight': (16 * ch, ch),
    '4x4/Dense0/bias': (ch,),
    'Output/weight': (ch, ch),
    'Output/bias': (ch,),
    'LabelEmbed/weight': (c_dim, ch),
    'LabelEmbed/bias': (ch,),
    'Mapping0/weight': (ch, ch),
    'Mapping0/bias': (ch,),
  }
  for name in ('8x8/Conv0', '8x8/Conv1_down', '4x4/Conv'):
    d |= {f'{name}/weight': (3, 3, ch, ch), f'{name}/bias': (ch,)}
  return g, d


def conversions(out):
  """Whole networks in NVIDIA's names."""
  out.case(
    'checkpoint_conversion',
    "whole networks in NVIDIA's names through the importer",
    [
      "G/..., G_ema/..., D/...: state dicts in PyTorch's names; tf/G/..., tf/D/...: in "
      "TensorFlow's. config.G and "
      'config.D: what they were made with. z, gen_c -> ws, img, img_none, img_psi*; img, img_c -> '
      'logits; logits_fake: of the images.',
      'Images are those of G_ema if there is one; G/img: of G. converted/G/...: the same '
      "parameters in PyTorch's names.",
    ],
  )

  def images(p, ws):
    avg = p['mapping.w_avg']
    return {
      'ws': ws,
      'img_const': pt.synthesis(p, ws),
      'img_none': pt.synthesis(p, ws, False),
      'img_psi0p5_cut2': pt.synthesis(p, torch.cat([avg + 0.5 * (ws[:, :2] - avg), ws[:, 2:]], 1)),
    }

  def styles(p, z, c):
    return pt.mapping(p, torch.tensor(z).double(), None if c is None else torch.tensor(c).double())[
      :, None
    ].repeat(1, 4, 1)

  draw = Draw(20)
  g, d = draw.generator(8, 8, 6, 6, 3), draw.discriminator(8, 6, 3, 1, False)
  given = {
    'z': draw.n(2, 8),
    'gen_c': draw.labels(2, 3),
    'img': draw.n(4, 3, 8, 8),
    'img_c': draw.labels(4, 3),
  }
  pg, pd = tensors(g), tensors(d)
  config = {
    'G': g_config(8, 8, 6, 6, 3) | {'num_ws': 4, 'channels': {'4': 6, '8': 6}},
    'D': d_config(8, 6, {'mbstd_group_size': 2}, 3, False),
  }
  logits = pt.discriminator(
    pd, torch.tensor(given['img']).double(), torch.tensor(given['img_c']).double(), 2
  )
  out.sub(
    'pytorch_cond',
    config,
    given | {f'{n}/{k}': v for n, p in (('G', g), ('D', d)) for k, v in p.items()},
    images(pg, styles(pg, given['z'], given['gen_c'])) | {'logits': logits},
  )

  draw = Draw(21)
  g, ema = draw.generator(8, 8, 6, 6), draw.generator(8, 8, 6, 6)
  d = draw.discriminator(8, 6, extra=0)
  ema |= {k: v for k, v in g.items() if k.endswith(('w_avg', 'noise_const'))}
  z = draw.n(2, 8)
  pg, pe, pd = map(tensors, (g, ema, d))
  ws = styles(pe, z, None)
  made = pt.synthesis(pe, ws)
  expected = {
    'ws': ws,
    'img': made,
    'G/img': pt.synthesis(pg, styles(pg, z, None)),
    'logits_fake': pt.discriminator(pd, made, features=0),
  }
  config = {
    'G': g_config(8, 8, 6, 6),
    'D': d_config(8, 6, {'mbstd_group_size': 4, 'mbstd_num_channels': 0}),
  }
  out.sub(
    'pytorch_ema_no_mbstd',
    config,
    {'z': z}
    | {f'{n}/{k}': v for n, p in (('G', g), ('G_ema', ema), ('D', d)) for k, v in p.items()},
    expected,
  )

  draw = Draw(22)
  g, d = map(draw.tensorflow, tensorflow_shapes(8, 6, 6, 3))
  d['Mapping0/weight'] *= 10
  given = {
    'z': draw.n(2, 8),
    'gen_c': draw.labels(2, 3),
    'img': draw.n(4, 3, 8, 8),
    'img_c': draw.labels(4, 3),
  }
  ours = {'G': converted(g), 'D': converted(d)}
  pg, pd = ({k: torch.tensor(np.float64(v)) for k, v in p.items()} for p in ours.values())
  logits = pt.discriminator(
    pd,
    torch.tensor(given['img']).double(),
    torch.tensor(given['img_c']).double(),
    features=0,
    lr=0.1,
  )
  both = {
    'label_size': 3,
    'resolution': 8,
    'num_channels': 3,
    'fmap_base': 24,
    'fmap_max': 6,
    'mapping_fmaps': 6,
  }
  config = {
    'generator_static_kwargs': both
    | {'latent_size': 8, 'dlatent_size': 6, 'mapping_layers': 2, 'architecture': 'skip'},
    'discriminator_static_kwargs': both
    | {
      'architecture': 'resnet',
      'mbstd_group_size': 0,
      'mbstd_num_features': 1,
      'mapping_layers': 1,
    },
  }
  out.sub(
    'tensorflow_cond_no_mbstd',
    config,
    given | {f'tf/{n}/{k}': v for n, p in (('G', g), ('D', d)) for k, v in p.items()},
    images(pg, styles(pg, given['z'], given['gen_c']))
    | {'logits': logits}
    | {f'converted/{n}/{k}': v for n, p in ours.items() for k, v in p.items()},
  )


def growing_conversion(out):
  """A whole config A, fully grown, goes on with the case of `conversions`; its names are others, as
  cases may call them.
  """
  draw, ch, c_dim = Draw(23), 4, 2
  p = {
    net: draw.tensorflow(shapes)
    for net, shapes in growing_shapes(True, 8, 6, 5, ch, c_dim, 1).items()
  }
  given = {'z': draw.n(4, 6), 'c': draw.labels(4, c_dim), 'real_img': draw.n(4, 3, 8, 8)}
  g, d, x = tensors(p['G']), tensors(p['D']), tensors(given)
  ws = tf.mapping(g, x['z'], x['c'])[:, None].repeat(1, tf.layers(g), 1)
  config = growing_config(True, 8, 6, 5, ch, c_dim, {'mbstd_group_size': 2}) | {
    'truncation_psi': 0.7
  }
  avg = g['dlatent_avg']
  out.sub(
    'tensorflow_config_a',
    config,
    given | {f'tf/{net}.{k}': v for net in 'GD' for k, v in p[net].items()},
    {
      'ws': ws,
      'images': tf.synthesis(g, ws, 0),
      'images_trunc': tf.synthesis(g, avg + 0.7 * (ws - avg), 0),
      'scores': tf.discriminator(d, x['real_img'], x['c'], 0, 2),
      'dlatent_avg': avg,
    },
  )


# ---- configs A-D


def growing_shapes(adain, res, z, w, ch, c_dim, features):
  """{'G': {name: shape}, 'D': ...} of configs A (adain) or B-D with `ch` feature maps
  everywhere.
  """
  steps = int(math.log2(res))
  g = {'dlatent_avg': (w,)} | ({'mapping/LabelConcat/weight': (c_dim, z)} if c_dim else {})
  inputs = z * 2 if c_dim else z
  g |= {
    'mapping/Dense0/weight': (inputs, w),
    'mapping/Dense0/bias': (w,),
    'mapping/Dense1/weight': (w, w),
    'mapping/Dense1/bias': (w,),
  }
  for i in range(2 * steps - 2 if adain else 2 * steps - 3):
    side = 2 ** (i // 2 + 2) if adain else 2 ** ((i + 5) // 2)
    g[f'synthesis/noise{i}'] = (1, 1, side, side)
  g['synthesis/4x4/Const/const'] = (1, ch, 4, 4)
  names = ['4x4/Conv'] + [
    f'{2**k}x{2**k}/{conv}' for k in range(3, steps + 1) for conv in ('Conv0_up', 'Conv1')
  ]
  for name in (['4x4/Const'] if adain else []) + names:
    name = f'synthesis/{name}'
    g |= {} if name.endswith('Const') else {f'{name}/weight': (3, 3, ch, ch)}
    g |= {f'{name}/bias': (ch,)} | (
      {
        f'{name}/Noise/weight': (ch,),
        f'{name}/StyleMod/weight': (w, 2 * ch),
        f'{name}/StyleMod/bias': (2 * ch,),
      }
      if adain
      else {f'{name}/mod_weight': (w, ch), f'{name}/mod_bias': (ch,), f'{name}/noise_strength': ()}
    )
  d = {}
  for j in range(steps - 1):
    name = f'synthesis/ToRGB_lod{j}'
    g |= {f'{name}/weight': (1, 1, ch, 3), f'{name}/bias': (3,)}
    g |= {} if adain else {f'{name}/mod_weight': (w, ch), f'{name}/mod_bias': (ch,)}
    d |= {f'FromRGB_lod{j}/weight': (1, 1, 3, ch), f'FromRGB_lod{j}/bias': (ch,)}
  for k in range(3, steps + 1):
    for conv in ('Conv0', 'Conv1_down'):
      d |= {f'{2**k}x{2**k}/{conv}/weight': (3, 3, ch, ch), f'{2**k}x{2**k}/{conv}/bias': (ch,)}
  last = '4x4/Dense1' if adain else 'Output'
  d |= {
    '4x4/Conv/weight': (3, 3, ch + features, ch),
    '4x4/Conv/bias': (ch,),
    '4x4/Dense0/weight': (16 * ch, ch),
    '4x4/Dense0/bias': (ch,),
    f'{last}/weight': (ch, max(c_dim, 1)),
    f'{last}/bias': (max(c_dim, 1),),
  }
  return {'G': g, 'D': d}


def growing_config(adain, res, z, w, ch, c_dim, stddev):
  """Static arguments of both networks."""
  both = {
    'resolution': res,
    'num_channels': 3,
    'label_size': c_dim,
    'fmap_base': ch * res // 2,
    'fmap_max': ch,
  }
  g = both | {'latent_size': z, 'dlatent_size': w, 'mapping_layers': 2, 'mapping_fmaps': w}
  if not adain:
    g['synthesis_func'] = 'G_synthesis_stylegan_revised'
  return {
    'networks': 'G_style, D_basic' if adain else 'G_main, D_stylegan',
    'G_static_kwargs': g,
    'D_static_kwargs': both | stddev,
  }


def growing_losses(out):
  """Losses of A-D with labels, and without minibatch stddev."""
  out.case(
    'losses_ad',
    'losses of configs A-D with labels',
    [
      "lod<x>/call<k>/c_pl: labels of the path length's latents. mbstd_group_size 0 or 1: no "
      'minibatch stddev.'
    ],
  )
  z, w, ch, n = 6, 5, 4, 4
  settings = {
    'config_a_cond': (True, 3, {'mbstd_group_size': 4, 'mbstd_num_features': 2}, 0, False),
    'config_c_cond_no_mbstd': (False, 2, {'mbstd_group_size': 0}, 0, True),
    'config_d_cond': (False, 3, None, 0.6, True),
  }
  for seed, (name, (adain, c_dim, stddev, lod, lazy)) in enumerate(settings.items()):
    draw = Draw(30 + seed)
    group = (stddev or {}).get('mbstd_group_size', 4)
    features = (stddev or {}).get('mbstd_num_features', 1) if group else 0
    config = (
      {'config': name}
      | growing_config(adain, 8, z, w, ch, c_dim, stddev or {})
      | {'batch': n, 'lods': [lod]}
    )
    p = {
      net: draw.tensorflow(shapes)
      for net, shapes in growing_shapes(adain, 8, z, w, ch, c_dim, features).items()
    }
    if stddev is None:  # path lengths only
      del config['D_static_kwargs']
      config |= {'pl_minibatch_shrink': 2, 'pl_decay': 0.01, 'pl_weight': 2.0, 'G_reg_interval': 4}
      given = {
        f'lod{lod:g}/call0/z_pl': draw.n(2, z),
        f'lod{lod:g}/call0/c_pl': draw.labels(2, c_dim),
        f'lod{lod:g}/call0/pl_noise_raw': draw.n(2, 3, 8, 8),
      }
      p['D'] = {}
    else:
      config |= {'r1_gamma': 10.0, 'lazy_regularization': lazy} | (
        {'D_reg_interval': 16} if lazy else {}
      )
      given = {
        'z_G': draw.n(n, z),
        'z_D': draw.n(n, z),
        'c_G': draw.labels(n, c_dim),
        'c_real': draw.labels(n, c_dim),
        f'lod{lod:g}/real_images': draw.n(n, 3, 8, 8),
      }
    expected = tf.losses(
      config, given, p['G'], p['D'], lambda *a, g=group, f=features: tf.discriminator(*a, g, f)
    )
    out.sub(
      name,
      config,
      given | {f'tf/{net}/{k}': v for net in 'GD' for k, v in p[net].items()},
      expected,
    )


def growing_trajectory(out):
  """A trajectory of config D with labels, from 4 to 8 px."""
  out.case(
    'growing_trajectory',
    'training trajectory with progressive growing and labels',
    [
      'c_G/<i>, c_pl/<i>: labels of z_G/<i>, z_pl/<i>; c_real/<i>: labels of reals/<i>, also of '
      'the fakes beside them.'
    ],
  )
  draw, z, w, ch, c_dim = Draw(40), 6, 5, 4, 2
  config = (
    {'config': 'config_d'}
    | growing_config(False, 8, z, w, ch, c_dim, {'mbstd_group_size': 4})
    | {
      'loss': {
        'G': 'G_logistic_ns_pathreg',
        'D': 'D_logistic_r1',
        'r1_gamma': 10.0,
        'pl_weight': 2.0,
        'pl_decay': 0.01,
        'pl_minibatch_shrink': 2,
        'pl_mean_initial': 0.0,
      },
      'schedule_args': {
        'lod_initial_resolution': 4,
        'lod_training_kimg': 0.004,
        'lod_transition_kimg': 0.016,
        'minibatch_size_base': 4,
        'minibatch_gpu_base': 4,
        'G_lrate_base': 0.002,
        'D_lrate_base': 0.005,
      },
      'lazy_regularization': True,
      'G_reg_interval': 2,
      'D_reg_interval': 3,
      'adam': {'beta1': 0.0, 'beta2': 0.99, 'epsilon': 1e-8},
      'G_smoothing_kimg': 0.02,
      'minibatch_repeats': 1,
      'nimg_at_state': [4, 16],
      'num_schedule_evaluations': 4,
      'reset_before_evaluation': [0, 2],
    }
  )
  schedule = [
    (1.0, 0.002, 4, True),
    (1.0, 0.002, 4, False),
    (0.75, 0.002, 4, True),
    (0.5, 0.002, 4, False),
  ]
  given = {}
  for i, (lod, *_) in enumerate(schedule):
    side = 8 >> int(lod)
    given |= {
      f'z_G/{i}': draw.n(4, z),
      f'z_D/{i}': draw.n(4, z),
      f'c_G/{i}': draw.labels(4, c_dim),
      f'c_real/{i}': draw.labels(4, c_dim),
      f'reals/{i}': draw.r.randint(256, size=(4, 3, side, side)).astype(np.uint8),
    }
  for i in range(2):
    given |= {
      f'z_pl/{i}': draw.n(2, z),
      f'c_pl/{i}': draw.labels(2, c_dim),
      f'pl_noise_raw/{i}': draw.n(2, 3, 8, 8),
    }
  p = {
    net: draw.tensorflow(shapes)
    for net, shapes in growing_shapes(False, 8, z, w, ch, c_dim, 1).items()
  }
  init = {f'{net}/{k}': v for net in 'GD' for k, v in p[net].items()}
  expected, used = tf.trajectory(config, given, init, tf.discriminator, schedule)
  config['draw_counts'] = {
    name: used[name] for name in ('z_G', 'z_D', 'z_pl', 'reals', 'c_G', 'c_pl', 'c_real')
  }
  out.sub('config_d_cond', config, given | {f'init/{k}': v for k, v in init.items()}, expected)


# ---- comparison with the official vectors


def check(folder):
  """Prints how far the two files beside this one are from a folder's official vectors, in units of
  their tolerances.
  """
  cases = {case['id']: case for case in json.loads((folder / 'manifest.json').read_text())['cases']}
  for name in ('training_trajectory', 'losses_ad', 'growing_trajectory'):
    if name not in cases:
      continue
    case = cases[name]
    with np.load(folder / case['file']) as data:
      for sub, info in case['subcases'].items():
        own = {
          k[len(sub) + 1 :]: (data[k], i)
          for k, i in case['arrays'].items()
          if k.startswith(f'{sub}/')
        }
        given = {k: x for k, (x, i) in own.items() if i['role'] != 'expected'}
        under = lambda prefix, given=given: {
          k[len(prefix) :]: x for k, x in given.items() if k.startswith(prefix)
        }
        expected = {k: v for k, v in own.items() if v[1]['role'] == 'expected'}
        if name == 'training_trajectory':
          found = pt.run(
            info['config'], given, under('init/'), lambda p, x, c: pt.discriminator(p, x, c)
          )
        elif name == 'losses_ad':
          found = tf.losses(info['config'], given, under('tf/G/'), under('tf/D/'), tf.discriminator)
        elif sub == 'config_d':  # up to its first state: later minibatches have several rounds
          schedule = [(2.0, 0.002, 8, True)] * 1 + [(2.0, 0.002, 8, False)]
          found, _ = tf.trajectory(
            info['config'] | {'minibatch_repeats': 1},
            given,
            under('init/'),
            tf.discriminator,
            schedule,
          )
          expected = {k: v for k, v in expected.items() if k.startswith('state0/')}
        else:
          continue
        worst = max(
          float(
            (
              np.abs(found[k].detach().numpy() - x)
              / (i['tol']['atol64'] + i['tol']['rtol64'] * np.abs(x))
            ).max()
          )
          for k, (x, i) in expected.items()
        )
        print(f'{name}/{sub}: {len(expected)} arrays, worst {worst:.2g} of the tolerance')


def main():
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--check', nargs='+', type=pathlib.Path, metavar='FOLDER')
  args = parser.parse_args()
  torch.set_num_threads(1)
  if args.check:
    for folder in args.check:
      check(folder)
    return
  out = Writer()
  for part in (
    trajectories,
    discriminators,
    conversions,
    growing_conversion,
    growing_losses,
    growing_trajectory,
  ):
    part(out)
  out.write()


if __name__ == '__main__':
  main()
