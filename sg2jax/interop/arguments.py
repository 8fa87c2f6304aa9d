"""What the keyword arguments of other implementations' networks mean to ours.

Sizes follow from a network's arrays. Of the arguments each is taken over, or is checked, or is
known to change no image beyond rounding; any other is refused with its name: it could mean another
network.
"""

import dataclasses
import math
import re
from typing import NamedTuple

from sg2jax.interop.network_file import Net
from sg2jax.ops import ACTIVATIONS

WHOLE_BATCH = 2**16  # minibatch-stddev group that stands for all of the batch
MAX_TAPS = 64


class Arguments(NamedTuple):
  """What the arguments of a network say.

  Attributes:
    fields: of config.g or config.d, with those of its variant; and 'fused' (fused_scale) if given.
    claims: {theirs: (name, value)} of what the arrays must agree with; the name is resolution,
      channels, c_dim, z_dim, w_dim or noise.
    notes: what is not taken over.
  """

  fields: dict
  claims: dict
  notes: list


@dataclasses.dataclass(frozen=True)
class _Table:
  """The arguments that a network may have.

  Attributes:
    fields: {theirs: field of ours}.
    claims: {theirs: name in Arguments.claims}.
    fixed: {theirs: the value that it must have}.
    ignored: what changes no image, or follows from the arrays.
  """

  fields: dict
  claims: dict
  fixed: dict
  ignored: set

  def __or__(self, other):
    pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other))
    return _Table(*(mine | others for mine, others in pairs))


# Names as in the networks' constructors of stylegan, stylegan2 and stylegan2-ada.
_TENSORFLOW = _Table(
  fields={
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
  claims={'label_size': 'c_dim', 'resolution': 'resolution', 'num_channels': 'channels'},
  fixed={'mapping_nonlinearity': 'lrelu', 'use_wscale': True, 'blur_filter': [1, 2, 1]},
  ignored={
    *('dtype', 'fmap_const', 'fmap_decay', 'func_name', 'fused_modconv', 'is_template_graph'),
    *('label_fmaps', 'mapping_fmaps', 'mapping_layers', 'num_fp16_res', 'structure'),
  },
)
# Arguments of stylegan2-ada-pytorch and of stylegan3's copy (parameters are in names.py); nested
# dicts as _flat_kwargs names them.
_PYTORCH = _Table(
  fields={
    'architecture': 'architecture',
    'activation': 'activation',
    'resample_filter': 'taps',
    'conv_clamp': 'clamp',
    'mapping_kwargs.lr_multiplier': 'mapping_lr_mul',
    'channel_base': 'fmap_base',
    'channel_max': 'fmap_max',
  },
  claims={'c_dim': 'c_dim', 'img_resolution': 'resolution', 'img_channels': 'channels'},
  fixed={'mapping_kwargs.activation': 'lrelu'},
  ignored={
    *('class_name', 'fp16_channels_last', 'num_fp16_res', 'use_fp16'),
    *('mapping_kwargs.embed_features', 'mapping_kwargs.layer_features'),
    *('mapping_kwargs.num_layers', 'mapping_kwargs.w_avg_beta'),
  },
)
_TABLES = {
  ('tensorflow', 'G'): _TENSORFLOW
  | _Table(
    fields={},
    claims={'latent_size': 'z_dim', 'dlatent_size': 'w_dim', 'use_noise': 'noise'},
    fixed={
      'normalize_latents': True,
      'use_styles': True,
      'const_input_layer': True,
      'use_pixel_norm': False,
      'use_instance_norm': True,
    },
    ignored={
      *('dlatent_avg_beta', 'dlatent_broadcast', 'force_clean_graph', 'is_training'),
      *('is_validation', 'mapping_func', 'randomize_noise', 'return_dlatents'),
      *('style_mixing_prob', 'synthesis_func', 'truncation_cutoff', 'truncation_cutoff_val'),
      *('truncation_psi', 'truncation_psi_val'),
    },
  ),
  ('tensorflow', 'D'): _TENSORFLOW
  | _Table(
    fields={'mbstd_group_size': 'mbstd_group_size'},
    claims={},
    fixed={'score_max': 1, 'use_spectral_norm': False, 'adaptive_dropout': 0},
    ignored={'freeze_layers', 'mbstd_num_features'},
  ),
  ('pytorch', 'G'): _PYTORCH
  | _Table(
    fields={},
    claims={'z_dim': 'z_dim', 'w_dim': 'w_dim', 'use_noise': 'noise'},
    fixed={},
    ignored={'fused_modconv_default'},
  ),
  ('pytorch', 'D'): _PYTORCH
  | _Table(
    fields={
      'epilogue_kwargs.mbstd_group_size': 'mbstd_group_size',
      'epilogue_kwargs.activation': 'epilogue_activation',
    },
    claims={},
    fixed={},
    ignored={'cmap_dim', 'epilogue_kwargs.mbstd_num_channels', 'freeze_layers'},
  ),
}
_CLASSES = {'G': ('', 'Generator'), 'D': ('', 'Discriminator')}  # of PyTorch
_POSITIONAL = {
  'G': (
    *('z_dim', 'c_dim', 'w_dim', 'img_resolution', 'img_channels'),
    *('mapping_kwargs', 'synthesis_kwargs'),
  ),
  'D': ('c_dim', 'img_resolution', 'img_channels'),
}
_ATTRIBUTES = (  # of the modules whose path matches: what it is called there and here
  (r'(synthesis\.)?b\d+', 'architecture', 'architecture'),
  (r'(synthesis\.)?b\d+\.(conv[01]?|torgb)', 'conv_clamp', 'clamp'),
  (r'(synthesis\.)?b\d+\.(conv[01]?|fromrgb|fc)', 'activation', 'activation'),
  (r'mapping\.fc\d+', 'bias_gain', 'mapping_lr_mul'),
  (r'mapping\.fc\d+', 'activation', 'mapping_activation'),
  (r'b\d+\.mbstd', 'group_size', 'mbstd_group_size'),
)


def parse(net: Net, name: str) -> Arguments:
  """The arguments of a network that is called 'G', 'G_ema' or 'D' in its file.

  Raises:
    ValueError: names an argument that no network of ours has, or its value.
  """
  # rosinality's files hold no arguments, and its networks have no options but sizes.
  if net.format == 'rosinality':
    return Arguments({'clamp': 0.0}, {}, [])
  if net.format == 'pytorch' and net.kind not in _CLASSES[name[0]]:
    raise ValueError(f'{name} is of the class {net.kind[:80]!a}, which is no network of StyleGAN2')
  table = _TABLES[net.format, name[0]]
  fields = {'clamp': None}
  claims = {}
  notes = []
  for key, value in _flat_kwargs(net, name).items():
    text = f'{name}: argument {key}={str(value)[:80]}'
    field = table.fields.get(key)
    if field == 'taps' and value is None:
      raise ValueError(f'{text}: networks here have a filter')
    if field:
      # None is the default of most, and a value of these.
      if value is not None or field in ('clamp', 'mbstd_group_size'):
        fields[field] = value
    elif key in table.claims:
      if value is not None:
        claims[key] = (table.claims[key], value)
    elif key in table.fixed:
      if value != table.fixed[key]:
        raise ValueError(f'{text}: networks here have {table.fixed[key]}')
    elif key not in table.ignored:
      raise ValueError(f'{text} is not known, and could mean another network')
    elif note := _note(key, value):
      notes.append(f'{name}: {key}={value} {note}')
  # After the arguments: defaults have changed between releases, and attributes are what runs.
  fields |= _attributes(net, name)
  for field, value in fields.items():
    if rule := _broken_rule(field, value):
      raise ValueError(f'{name}: {field}={str(value)[:80]} must be {rule}')
  return Arguments(_in_our_units(fields, net.format), claims, notes)


def _note(key, value):
  """What is said of an argument that is not taken over, if anything."""
  if (key in ('num_fp16_res', 'freeze_layers') and value) or (
    key == 'dtype' and value != 'float32'
  ):
    return 'is not taken over: it changes training, or rounding (all is float32 here)'
  if key.startswith('truncation_') and value is not None:
    return 'is a default of their tools; here truncation is asked for when images are made'
  return ''


def _attributes(net, name):
  """Fields that the modules of a PyTorch network hold.

  They are what runs, whatever its arguments and their defaults were.
  """
  modules = net.kwargs.get('attributes', {})
  fields = {}
  for pattern, attribute, field in _ATTRIBUTES:
    values = [
      module[attribute]
      for path, module in modules.items()
      if attribute in module and re.fullmatch(pattern, path)
    ]
    if any(value != values[0] for value in values):
      different = ', '.join(dict.fromkeys(map(str, values)))
      raise ValueError(f'{name}: its layers differ in {attribute}: {different}')
    if values:
      fields[field] = values[0]
  mapping_activation = fields.pop('mapping_activation', 'lrelu')
  if mapping_activation != 'lrelu':
    raise ValueError(
      f'{name}: activation={mapping_activation} of its mapping network: networks here have lrelu'
    )
  return fields


def _broken_rule(field, value):
  """What the value of a field must be, or '' if it is that."""
  match field:
    case 'architecture':
      return '' if value in ('orig', 'skip', 'resnet') else 'orig, skip or resnet'
    case 'activation' | 'epilogue_activation':
      known = isinstance(value, str) and value in ACTIVATIONS
      return '' if known else f'one of {", ".join(ACTIVATIONS)}'
    case 'taps':
      numbers = isinstance(value, list) and len(value) <= MAX_TAPS and all(map(_is_number, value))
      return '' if numbers and sum(value) else f'a list of up to {MAX_TAPS} numbers with a sum'
    case 'fused':
      return '' if value in (True, False, 'auto') else "True, False or 'auto'"
    case 'mbstd_group_size':
      return '' if value is None or (type(value) is int and value >= 0) else 'a whole number'
    case 'fmap_min':
      return '' if type(value) is int and value >= 1 else 'a whole number above 0'
  if (value is None and field == 'clamp') or (_is_number(value) and value > 0):
    return ''
  return 'a number above 0'


def _is_number(value):
  return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _in_our_units(fields, format_):
  fields = dict(fields, clamp=float(fields['clamp'] or 0))
  if 'taps' in fields:
    fields['taps'] = [int(tap) if tap == int(tap) else tap for tap in fields['taps']]
  if 'mbstd_group_size' in fields:
    # Up to 1 means off in TensorFlow, which the shapes say, too.
    size = fields['mbstd_group_size']
    fields['mbstd_group_size'] = WHOLE_BATCH if size is None else max(size, 1)
  # Feature maps are channel_base / side there, and 2 fmap_base / side here.
  if format_ == 'pytorch' and 'fmap_base' in fields:
    fields['fmap_base'] /= 2
  return fields


def _flat_kwargs(net, name):
  """{argument: value}, of PyTorch's nested dicts as 'epilogue_kwargs.activation'."""
  kwargs = dict(net.kwargs)
  if net.format == 'tensorflow':
    parts = kwargs.pop('components', {})
    return _merged_kwargs([kwargs, *parts.values()], name)
  args = kwargs.pop('args', [])
  kwargs.pop('attributes', None)
  positional = _POSITIONAL[name[0]]
  if len(args) > len(positional):
    raise ValueError(
      f'{name}: {len(args)} arguments without names; understood are {", ".join(positional)}'
    )
  flat = {}
  for key, value in (*zip(positional, args), *kwargs.items()):
    # 'args' may give synthesis_kwargs and the like by position.
    nested = {key: value}
    if key.endswith('_kwargs') and isinstance(value, dict):
      # Of these two dicts all arguments are those of the network itself.
      prefix = '' if key in ('synthesis_kwargs', 'block_kwargs') else f'{key}.'
      nested = {prefix + inner: v for inner, v in value.items()}
    for twice in nested.keys() & flat.keys():
      raise ValueError(f'{name}: argument {twice} occurs twice')
    flat |= nested
  return flat


def _merged_kwargs(parts, name):
  """Of TensorFlow's parts, which have arguments of the same names."""
  merged = {}
  for part in parts:
    for key, value in part.items():
      agreed = merged.setdefault(key, value)
      if agreed != value and key not in ('dlatent_broadcast', 'func_name'):
        raise ValueError(f'{name}: its parts disagree about argument {key}: {agreed!r}, {value!r}')
  return merged
