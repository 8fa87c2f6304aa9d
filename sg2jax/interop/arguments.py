"""What the keyword arguments of other implementations' networks mean to ours.

Each of them is taken over, must agree with what the arrays say, must have one value, or is known to
change no image beyond rounding; any other is refused with its name: it could mean another network.
"""

import math
import re
from typing import Any

from sg2jax.interop.network_file import Net
from sg2jax.interop.pickle_reader import need
from sg2jax.ops import ACTIVATIONS

WHOLE_BATCH = 2**16  # minibatch-stddev group that stands for all of the batch

# {theirs: ours}, a field of config.g, config.d or a Variant, or of what the arrays must agree with
# (see `architecture`). Dicts among the arguments are flattened, see _flat.
_FIELDS = {
  # as in our networks
  **{name: name for name in ('architecture', 'activation', 'mbstd_group_size', 'resolution')},
  **{name: name for name in ('fmap_base', 'fmap_max', 'fmap_min', 'c_dim', 'z_dim', 'w_dim')},
  'conv_clamp': 'clamp',
  'use_noise': 'noise',
  # stylegan, stylegan2 and stylegan2-ada
  'nonlinearity': 'activation',
  'resample_kernel': 'taps',
  'mapping_lrmul': 'mapping_lr_mul',
  'fused_scale': 'fused',
  'label_size': 'c_dim',
  'num_channels': 'channels',
  'latent_size': 'z_dim',
  'dlatent_size': 'w_dim',
  # stylegan2-ada-pytorch and stylegan3's copy
  'resample_filter': 'taps',
  'mapping_kwargs.lr_multiplier': 'mapping_lr_mul',
  'channel_base': 'fmap_base',
  'channel_max': 'fmap_max',
  'epilogue_kwargs.mbstd_group_size': 'mbstd_group_size',
  'epilogue_kwargs.activation': 'epilogue_activation',
  'img_resolution': 'resolution',
  'img_channels': 'channels',
}
_FIXED = {
  'mapping_nonlinearity': 'lrelu',
  'use_wscale': True,
  'blur_filter': [1, 2, 1],
  'normalize_latents': True,
  'use_styles': True,
  'const_input_layer': True,
  'use_pixel_norm': False,
  'use_instance_norm': True,
  'score_max': 1,
  'use_spectral_norm': False,
  'adaptive_dropout': 0,
  'mapping_kwargs.activation': 'lrelu',
}
# What changes no image, or follows from the arrays.
_IGNORED = frozenset(
  'fmap_const fmap_decay func_name fused_modconv is_template_graph label_fmaps mapping_fmaps '
  'mapping_layers structure dlatent_avg_beta dlatent_broadcast force_clean_graph is_training '
  'is_validation mapping_func randomize_noise return_dlatents style_mixing_prob synthesis_func '
  'mbstd_num_features class_name fp16_channels_last use_fp16 fused_modconv_default cmap_dim '
  'mapping_kwargs.embed_features mapping_kwargs.layer_features mapping_kwargs.num_layers '
  'mapping_kwargs.w_avg_beta epilogue_kwargs.mbstd_num_channels'.split()
)
# What is said of those that are ignored, unless they have one of these values.
_TRAINING = (None, 0, 'float32'), 'it changes training, or rounding (all is float32 here)'
_TRUNCATION = (None,), 'a default of their tools; here truncation is asked for with images'
_NOTED = {
  'dtype': _TRAINING,
  'freeze_layers': _TRAINING,
  'num_fp16_res': _TRAINING,
  'truncation_cutoff': _TRUNCATION,
  'truncation_cutoff_val': _TRUNCATION,
  'truncation_psi': _TRUNCATION,
  'truncation_psi_val': _TRUNCATION,
}
_CLASSES = {'G': ('', 'Generator'), 'D': ('', 'Discriminator')}  # of PyTorch
_ATTRIBUTES = (  # of the modules whose path matches: name, and the argument that it stands for
  (r'(synthesis\.)?b\d+', 'architecture', 'architecture'),
  (r'(synthesis\.)?b\d+\.(conv[01]?|torgb)', 'conv_clamp', 'conv_clamp'),
  (r'(synthesis\.)?b\d+\.(conv[01]?|fromrgb|fc)', 'activation', 'activation'),
  (r'mapping\.fc\d+', 'bias_gain', 'mapping_kwargs.lr_multiplier'),
  (r'mapping\.fc\d+', 'activation', 'mapping_kwargs.activation'),
  (r'b\d+\.mbstd', 'group_size', 'epilogue_kwargs.mbstd_group_size'),
)


def parse(net: Net, name: str) -> tuple[dict[str, Any], list[str]]:
  """What the arguments of a network say that is called 'G', 'G_ema' or 'D' in its file.

  Returns:
    ({field: value}, with the fields that _FIELDS names; [what is not taken over]).

  Raises:
    ValueError: names an argument that no network of ours has, or its value.
  """
  is_known = net.format != 'pytorch' or net.kind in _CLASSES[name[0]]
  need(is_known, f'{name} is of the class {net.kind[:80]!a}, which is no network of StyleGAN2')
  fields = {'clamp': 0.0}
  notes = []
  # After the arguments: defaults have changed between releases, and attributes are what runs.
  for key, value in (_flat(net.kwargs) | _attributes(net, name)).items():
    text = f'{name}: argument {key}={str(value)[:80]}'
    if key in _FIELDS:
      try:
        fields |= _in_our_units(key, value)
      except ValueError as e:
        raise ValueError(f'{text}: {e}') from None
    elif key in _FIXED:
      need(value == _FIXED[key], f'{text}: networks here have {_FIXED[key]}')
    elif key in _NOTED:
      silent, note = _NOTED[key]
      if value not in silent:
        notes.append(f'{name}: {key}={value} is not taken over: {note}')
    else:
      need(key in _IGNORED, f'{text} is not known, and could mean another network')
  return fields, notes


def _flat(kwargs):
  """{argument: value}, of dicts among them as 'epilogue_kwargs.activation'."""
  flat = {}
  for key, value in kwargs.items():
    if key in ('synthesis_kwargs', 'block_kwargs'):  # all are the network's own
      flat |= value
    elif key in ('mapping_kwargs', 'epilogue_kwargs'):
      flat |= {f'{key}.{inner}': x for inner, x in value.items()}
    else:
      flat[key] = value
  return flat


def _attributes(net, name):
  """{argument: value} by what the modules of a PyTorch network hold."""
  arguments = {}
  for pattern, attribute, argument in _ATTRIBUTES:
    for path, module in net.attributes.items():
      if attribute in module and re.fullmatch(pattern, path):
        agreed = arguments.setdefault(argument, module[attribute])
        is_same = module[attribute] == agreed
        need(is_same, f'{name}: its layers differ in {attribute}: {agreed}, {module[attribute]}')
  return arguments


def _in_our_units(key, value):
  """{field: value} of an argument, {} if it is as if it weren't there. Raises ValueError."""
  field = _FIELDS[key]
  if value is None and field not in ('clamp', 'mbstd_group_size', 'taps'):
    return {}  # the default of most, and a value of these
  match field:
    case 'clamp':
      need(value is None or (_is_number(value) and value > 0), 'it must be a number above 0')
      value = float(value or 0)
    case 'taps':
      is_filter = isinstance(value, list) and all(map(_is_number, value)) and sum(value)
      need(is_filter, 'networks here have a filter, a list of numbers with a sum')
      value = [int(tap) if tap == int(tap) else tap for tap in value]
    case 'mbstd_group_size':
      # Up to 1 means off in TensorFlow, which the shapes say, too.
      value = WHOLE_BATCH if value is None else max(value, 1)
    case 'activation' | 'epilogue_activation':
      need(value in tuple(ACTIVATIONS), f'it must be one of {", ".join(ACTIVATIONS)}')
  if key == 'channel_base':
    value /= 2  # feature maps are channel_base / side there, and 2 fmap_base / side here
  return {field: value}


def _is_number(value):
  return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
