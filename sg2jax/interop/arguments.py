"""What the keyword arguments of other implementations' networks mean to ours.

Sizes follow from a network's arrays. Of the arguments each is taken over, or is checked, or is
known to change no image beyond rounding; any other is refused with its name: it could mean another
network.
"""

import math
import re
from typing import NamedTuple

from sg2jax.ops import ACTIVATIONS

WHOLE_BATCH = 2**16  # minibatch-stddev group that stands for all of the batch
MAX_TAPS = 64


class Arguments(NamedTuple):
  """sets: fields of config.g or config.d, and 'fused' (fused_scale) where given; says: {theirs:
  (key, value)} of what the arrays must agree with (key: resolution, channels, c_dim, z_dim, w_dim,
  noise); notes: what is not taken over.
  """

  sets: dict
  says: dict
  notes: list


class _Table(NamedTuple):
  sets: dict
  says: dict
  must: dict
  rest: str


_MAPPING = ('num_layers', 'embed_features', 'layer_features', 'w_avg_beta')
_TF = _Table(
  {
    'architecture': 'architecture',
    'nonlinearity': 'activation',
    'resample_kernel': 'taps',
    'conv_clamp': 'clamp',
    'mapping_lrmul': 'mapping_lr_mul',
    'fmap_base': 'fmap_base',
    'fmap_max': 'fmap_max',
    'fmap_min': 'fmap_min',
    'fused_scale': 'fused',
  },
  {'label_size': 'c_dim', 'resolution': 'resolution', 'num_channels': 'channels'},
  {'mapping_nonlinearity': 'lrelu', 'use_wscale': True, 'blur_filter': [1, 2, 1]},
  'fmap_decay fmap_const mapping_layers mapping_fmaps label_fmaps structure is_template_graph '
  'dtype func_name num_fp16_res fused_modconv ',
)
_TORCH = _Table(
  {
    'architecture': 'architecture',
    'activation': 'activation',
    'resample_filter': 'taps',
    'conv_clamp': 'clamp',
    'mapping_kwargs.lr_multiplier': 'mapping_lr_mul',
    'channel_base': 'fmap_base',
    'channel_max': 'fmap_max',
  },
  {'c_dim': 'c_dim', 'img_resolution': 'resolution', 'img_channels': 'channels'},
  {'mapping_kwargs.activation': 'lrelu'},
  ' '.join(f'mapping_kwargs.{name}' for name in _MAPPING)
  + ' num_fp16_res fp16_channels_last use_fp16 class_name ',
)
_TABLES = {
  ('tensorflow', 'G'): _Table(
    _TF.sets,
    _TF.says | {'latent_size': 'z_dim', 'dlatent_size': 'w_dim', 'use_noise': 'noise'},
    _TF.must
    | {
      'normalize_latents': True,
      'use_styles': True,
      'const_input_layer': True,
      'use_pixel_norm': False,
      'use_instance_norm': True,
    },
    _TF.rest
    + 'truncation_psi truncation_cutoff truncation_psi_val truncation_cutoff_val style_mixing_prob '
    'dlatent_avg_beta dlatent_broadcast randomize_noise is_training is_validation return_dlatents '
    'mapping_func synthesis_func force_clean_graph',
  ),
  ('tensorflow', 'D'): _Table(
    _TF.sets | {'mbstd_group_size': 'mbstd_group_size'},
    _TF.says,
    _TF.must | {'score_max': 1, 'use_spectral_norm': False, 'adaptive_dropout': 0},
    _TF.rest + 'mbstd_num_features freeze_layers',
  ),
  ('pytorch', 'G'): _Table(
    _TORCH.sets,
    _TORCH.says | {'z_dim': 'z_dim', 'w_dim': 'w_dim', 'use_noise': 'noise'},
    _TORCH.must,
    _TORCH.rest + 'fused_modconv_default',
  ),
  ('pytorch', 'D'): _Table(
    _TORCH.sets
    | {
      'epilogue_kwargs.mbstd_group_size': 'mbstd_group_size',
      'epilogue_kwargs.activation': 'last',
    },
    _TORCH.says,
    _TORCH.must,
    _TORCH.rest + 'epilogue_kwargs.mbstd_num_channels cmap_dim freeze_layers',
  ),
}
_POSITIONAL = {
  'G': (
    'z_dim',
    'c_dim',
    'w_dim',
    'img_resolution',
    'img_channels',
    'mapping_kwargs',
    'synthesis_kwargs',
  ),
  'D': ('c_dim', 'img_resolution', 'img_channels'),
}
_ATTRIBUTES = (  # of the modules whose path matches: what it is called there and here
  (r'(synthesis\.)?b\d+', 'architecture', 'architecture'),
  (r'(synthesis\.)?b\d+\.(conv[01]?|torgb)', 'conv_clamp', 'clamp'),
  (r'(synthesis\.)?b\d+\.(conv[01]?|fromrgb|fc)', 'activation', 'activation'),
  (r'mapping\.fc\d+', 'bias_gain', 'mapping_lr_mul'),
  (r'mapping\.fc\d+', 'activation', 'mapping'),
  (r'b\d+\.mbstd', 'group_size', 'mbstd_group_size'),
)
_CHECKS = {  # of a field: function of its value, and what it must be
  'architecture': (lambda v: v in ('orig', 'skip', 'resnet'), 'orig, skip or resnet'),
  'activation': (
    lambda v: isinstance(v, str) and v in ACTIVATIONS,
    f'one of {", ".join(ACTIVATIONS)}',
  ),
  'taps': (
    lambda v: (
      isinstance(v, list) and 0 < len(v) <= MAX_TAPS and all(map(_number, v)) and sum(v) != 0
    ),
    f'a list of up to {MAX_TAPS} numbers with a sum',
  ),
  'clamp': (lambda v: v is None or (_number(v) and v > 0), 'a number above 0'),
  'fused': (lambda v: v in (True, False, 'auto'), "True, False or 'auto'"),
  'mbstd_group_size': (lambda v: v is None or (type(v) is int and v >= 0), 'a whole number'),
  'fmap_min': (lambda v: type(v) is int and v >= 1, 'a whole number above 0'),
  **{
    name: (lambda v: _number(v) and v > 0, 'a number above 0')
    for name in ('mapping_lr_mul', 'fmap_base', 'fmap_max')
  },
}
_CHECKS['last'] = _CHECKS['activation']


def read(net, name):
  """Arguments of a Net, which is called so in its file: 'G', 'G_ema' or 'D'.

  Raises: ValueError, naming an argument that no network of ours has, or its value.
  """
  letter, notes, sets, says = name[0], [], {'clamp': None}, {}
  if net.format == 'rosinality':
    return Arguments({'clamp': 0.0}, says, notes)
  kinds = {'G': ('', 'Generator'), 'D': ('', 'Discriminator')}[letter]
  if net.format == 'pytorch' and net.kind not in kinds:
    raise ValueError(f'{name} is of the class {net.kind[:80]!a}, which is no network of StyleGAN2')
  table = _TABLES[net.format, letter]
  for key, value in _flat(net, name).items():
    text = f'{name}: argument {key}={str(value)[:80]}'
    if key in table.sets:
      if value is None and table.sets[key] == 'taps':
        raise ValueError(f'{text}: networks here have a filter')
      if value is not None or table.sets[key] in ('clamp', 'mbstd_group_size'):
        sets[table.sets[key]] = value
    elif key in table.says:
      says |= {} if value is None else {key: (table.says[key], value)}
    elif key in table.must:
      if value != table.must[key]:
        raise ValueError(f'{text}: networks here have {table.must[key]}')
    elif key not in table.rest.split():
      raise ValueError(f'{text} is not known, and could mean another network')
    elif (key in ('num_fp16_res', 'freeze_layers') and value) or (
      key == 'dtype' and value != 'float32'
    ):
      notes.append(
        f'{name}: {key}={value} is not taken over: it changes training, or rounding (all is '
        'float32 here)'
      )
    elif key.startswith('truncation_') and value is not None:
      notes.append(
        f'{name}: {key}={value} is a default of their tools; here truncation is asked for when '
        'images are made'
      )
  sets |= _attributes(net.kwargs.get('attributes', {}), name)
  for key, value in sets.items():
    good, rule = _CHECKS[key]
    if not good(value):
      raise ValueError(f'{name}: {key}={str(value)[:80]} must be {rule}')
  return Arguments(_ours(sets, net.format), says, notes)


def _attributes(modules, name):
  """Fields as the modules of a PyTorch network hold them: what runs, whatever its arguments and
  their defaults were.
  """
  sets = {}
  for pattern, attribute, field in _ATTRIBUTES:
    values = [
      held[attribute]
      for where, held in modules.items()
      if attribute in held and re.fullmatch(pattern, where)
    ]
    if any(value != values[0] for value in values):
      raise ValueError(
        f'{name}: its layers differ in {attribute}: '
        f'{", ".join(map(str, dict.fromkeys(map(str, values))))}'
      )
    if values and field == 'mapping' and values[0] != 'lrelu':
      raise ValueError(
        f'{name}: {attribute}={values[0]} of its mapping network: networks here have lrelu'
      )
    if values and field != 'mapping':
      sets[field] = values[0]
  return sets


def _ours(sets, format_):
  """The fields in our units."""
  sets = dict(sets, clamp=float(sets['clamp'] or 0))
  if 'taps' in sets:
    sets['taps'] = [int(tap) if tap == int(tap) else tap for tap in sets['taps']]
  if 'mbstd_group_size' in sets:  # TensorFlow: up to 1 means off, which the shapes say, too
    sets['mbstd_group_size'] = (
      WHOLE_BATCH if sets['mbstd_group_size'] is None else max(sets['mbstd_group_size'], 1)
    )
  if format_ == 'pytorch' and 'fmap_base' in sets:
    sets['fmap_base'] /= 2
  return sets


def _flat(net, network):
  """{name: value}: of TensorFlow's parts the same names as outside, of PyTorch's nested dicts
  'epilogue_kwargs.activation'.
  """
  kwargs = dict(net.kwargs)
  if net.format == 'tensorflow':
    found, parts = {}, kwargs.pop('components', {})
    for part in (kwargs, *parts.values()):
      for name, value in part.items():
        if (
          name in found and found[name] != value and name not in ('dlatent_broadcast', 'func_name')
        ):
          raise ValueError(
            f'{network}: its parts disagree about argument {name}: {found[name]!r}, {value!r}'
          )
        found[name] = value
    return found
  args, own = kwargs.pop('args', []), _POSITIONAL[network[0]]
  kwargs.pop('attributes', None)
  if len(args) > len(own):
    raise ValueError(
      f'{network}: {len(args)} arguments without names; understood are {", ".join(own)}'
    )
  pairs = []
  for name, value in (*zip(own, args), *kwargs.items()):
    nested = value if name.endswith('_kwargs') else None
    prefix = '' if name in ('synthesis_kwargs', 'block_kwargs') else f'{name}.'
    pairs += (
      [(prefix + key, v) for key, v in nested.items()]
      if isinstance(nested, dict)
      else [(name, value)]
    )
  twice = [name for name, _ in pairs if [key for key, _ in pairs].count(name) > 1]
  if twice:
    raise ValueError(f'{network}: argument {twice[0]} occurs twice')
  return dict(pairs)


def _number(value):
  return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
