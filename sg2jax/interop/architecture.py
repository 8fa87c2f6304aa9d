"""The architecture of a network of others, as fields of our configuration.

Sizes follow from its parameters, in our names and layouts; the rest from its arguments. What its
parameters say is told as a tuple:

  image   {'resolution', 'channels', 'c_dim'}
  fields  of config.g or config.d, those of its variant among them
  widths  {side of a block: its feature maps}
"""

import re

from sg2jax.interop.network_file import Net
from sg2jax.interop.pickle_reader import need
from sg2jax.models.sizes import fmaps

Architecture = tuple[dict, dict, dict]  # image, fields, widths


def growing(net: Net) -> str:
  """The growing architecture of a TensorFlow network of configs A-D, or ''."""
  if net.format != 'tensorflow':
    return ''
  if any('/StyleMod/' in name or name == '4x4/Dense1/weight' for name in net.arrays):
    return 'stylegan1'
  kinds = {net.kind, net.kwargs.get('synthesis_func')}  # the latter of a generator without parts
  return 'revised' if kinds & {'G_synthesis_stylegan_revised', 'D_stylegan'} else ''


def of_generator(params: dict, grows: str) -> Architecture:
  """Of a generator's parameters; grows: what `growing` says."""
  mapping = params['mapping']
  blocks = _blocks(params['synthesis'])
  first = blocks[0][1]
  # Each block after the first doubles both sides.
  height, width = (side << len(blocks) - 1 for side in first['const'].shape[:2])
  # Affine layers take w; the mapping network takes z and the embedded label.
  w_dim = first['conv1']['affine']['weight'].shape[0]
  inputs, hidden = mapping['fc0']['weight'].shape
  layers = sum(bool(re.fullmatch(r'fc\d+', name)) for name in mapping)
  # Configs A-D concatenate the label's matrix [c_dim,features] itself, E and F an embedding of it.
  c_dim, features = 0, 0
  if 'embed' in mapping:
    need(
      grows or isinstance(mapping['embed'], dict),
      'mapping/LabelConcat: labels as before stylegan2-ada are supported for configs A-D only',
    )
    c_dim, features = (mapping['embed'] if grows else mapping['embed']['weight']).shape
  fields = {
    'architecture': grows or _kind(blocks, 'torgb'),
    'z_dim': inputs - features,
    'w_dim': w_dim,
    'mapping_layers': layers,
    'layer_features': 0 if layers == 1 else _unless(w_dim, hidden),
    'embed_features': 0 if grows else _unless(w_dim, features),
    'noise': 'noise_strength' in first['conv1'],
  }
  image = {
    'resolution': height if height == width else [height, width],
    'channels': blocks[-1][1]['torgb']['weight'].shape[-1],
    'c_dim': c_dim,
  }
  return image, fields, {side: b['conv1']['bias'].shape[0] for side, b in blocks}


def of_discriminator(params: dict, grows: str, image: dict) -> Architecture:
  """Of a discriminator's parameters; image: the generator's, whose resolution shapes must have."""
  mapping = params.get('mapping', {})
  blocks = _blocks(params)
  # Maps of a block: what its first layer takes; of the last block what its only convolution gives.
  side, last = blocks[0]
  widths = {side: last['conv']['weight'].shape[-1]}
  widths |= {side: block['conv0']['weight'].shape[-1] for side, block in blocks[1:]}
  c_dim = mapping['embed']['weight'].shape[0] if mapping else 0
  cmap_dim = last['out']['weight'].shape[1] if c_dim else 0
  if grows:
    widths[2] = last['fc']['weight'].shape[1]  # see Discriminator.hidden
    c_dim = image['c_dim']
  # Sizes of the mapping network of labels, of which each defaults to the one before.
  layers = sum(name != 'embed' for name in mapping)
  embed = mapping['embed']['weight'].shape[1] if mapping else cmap_dim
  hidden = mapping['fc0']['weight'].shape[1] if layers > 1 else cmap_dim
  fields = {
    'architecture': grows or _kind(blocks, 'fromrgb'),
    'mapping_layers': layers,
    'cmap_dim': _unless(widths[side], cmap_dim),
    'embed_features': _unless(cmap_dim, embed),
    'layer_features': _unless(cmap_dim, hidden),
    # Feature maps that it adds to what the convolution takes.
    'mbstd_num_channels': last['conv']['weight'].shape[2] - widths[side],
  }
  channels = blocks[-1][1]['fromrgb']['weight'].shape[2]
  return image | {'channels': channels, 'c_dim': c_dim}, fields, widths


def _blocks(tree):
  """[(side, block)], smallest first."""
  return sorted((int(name[1:]), b) for name, b in tree.items() if re.fullmatch(r'b\d{1,5}', name))


def _kind(blocks, image_layer):
  """Which architecture blocks have, by their layers; image_layer: torgb or fromrgb."""
  # With one block they are the same, and it has no skip.
  if len(blocks) == 1:
    return 'orig'
  if 'skip' in blocks[-1][1]:
    return 'resnet'
  return 'skip' if image_layer in blocks[0][1] else 'orig'


def _unless(default, size):
  """A size as configurations say it, with 0 for the default."""
  return 0 if size == default else size


def options(name: str, net: Net, widths: dict, given: dict, grows: str) -> dict:
  """What the parameters don't say: fields of config.g or, for the name 'D', of config.d.

  Args:
    name: of the network in its file, for messages.
    net: the network.
    widths: what the parameters say, as above.
    given: fields that the arguments say.
    grows: as of `growing`.

  Raises:
    ValueError: no configuration of ours says it.
  """
  activation = given.get('activation', 'lrelu')
  is_known = grows != 'stylegan1' or activation == 'lrelu'
  need(is_known, f'{name}: nonlinearity={activation}: networks of config A have lrelu here')
  epilogue = given.pop('epilogue_activation', 'lrelu')
  is_same = epilogue == activation or (name, net.format) != ('D', 'pytorch')
  need(is_same, 'D: the activation of its epilogue is another than that of its blocks')
  # What their networks have where no argument says it.
  fields = {
    'mapping_lr_mul': 0.1 if (name, net.format) == ('D', 'tensorflow') else 0.01,
    'num_bf16_res': 0,
    'remat': 0,
  }
  if name == 'D':
    fields |= {'mbstd_group_size': 4, 'freeze_layers': 0}
  return fields | given | _fmaps(name, widths, given)


def _fmaps(name, widths, given):
  """fmap_base and fmap_max: those given if they fit, or any that do."""
  least = given.get('fmap_min', 1)
  # Widths that are held up by fmap_min say nothing of the base.
  doubled = max((side * n for side, n in widths.items() if n > least), default=2 * least)
  by_arguments = given.get('fmap_base', 0), given.get('fmap_max', 512)
  for base, most in (by_arguments, (doubled / 2, max(widths.values()))):
    if all(fmaps(side, base, most, least) == width for side, width in widths.items()):
      return {'fmap_base': int(base) if base == int(base) else base, 'fmap_max': int(most)}
  raise ValueError(
    f'{name}: numbers of feature maps {widths} are not max(min(2 fmap_base / side, fmap_max), '
    f'{least}) for any fmap_base and fmap_max'
  )


def configuration(image: dict, g: dict, d: dict) -> dict:
  """What of a run's configuration a network needs.

  Args:
    image: what the parameters of its networks say, as above.
    g: config.g.
    d: config.d; {}: there is no discriminator.
  """
  if not d:
    shared = ('fmap_base', 'fmap_max', 'fmap_min', 'clamp', 'num_bf16_res', 'remat')
    d = {name: g[name] for name in shared if name in g}
    d |= {'architecture': 'resnet', 'mapping_layers': 8, 'mbstd_group_size': 4, 'freeze_layers': 0}
  return {
    'resolution': image['resolution'],
    'c_dim': image['c_dim'],
    'data': {
      'name': '',
      'dir': '',
      'channels': image['channels'],
      'labels': image['c_dim'] > 0,
      'mirror': False,
    },
    'g': g,
    'd': d,
  }
