"""Networks of others, and our own exports, as a configuration and a state of ours.

Sizes follow from the arrays, the rest from what a file says (interop/arguments.py). Whatever of it
our networks don't have is refused by name; what a file lacks and can be computed is, and the report
says so.
"""

import hashlib
import json
import pathlib
import re
from typing import NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors import numpy as safetensors

from sg2jax import build, files, resample
from sg2jax import state as state_lib
from sg2jax.faults import WeightsError
from sg2jax.interop import arguments, names, network_file
from sg2jax.interop.network_file import Net
from sg2jax.models.stylegan2 import GROWING, block_sizes, fmaps
from sg2jax.models.variant import DiscriminatorVariant, Variant

MAX_BYTES = 2**32  # of a file, and of its arrays
MAX_LAYERS = 64  # of a mapping network; far above any
MEAN_OF = 10_000  # w that w_avg is the mean of if a file lacks it
# of a state: all but the optimizers' moments
FIELDS = ('step', 'nimg', 'g', 'd', 'g_ema', 'noise', 'w_avg', 'pl_mean')


class Imported(NamedTuple):
  """config: what `build.networks` and `sampler` read of one, with `c_dim`, as JSON values; state:
  dict with the FIELDS of a TrainState ('d' is {} without a discriminator); report: JSON values,
  what was found and what was done about it.
  """

  config: dict
  state: dict
  report: dict


def read(path):
  """The Imported of a file: a pickle or .pt that `network_file` reads, or a .safetensors or .npz of
  `export`, with its JSON.

  The arrays are float32.
  Raises: WeightsError: it can't be read, or holds what our networks can't do; names the file and
  the thing.
  """
  path = pathlib.Path(path).expanduser().absolute()
  try:
    if (size := path.stat().st_size) > MAX_BYTES:
      raise ValueError(f'it has {size:,} bytes, and {MAX_BYTES:,} are allowed')
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if data[8:9] == b'{' and int.from_bytes(data[:8], 'little') < size:
      config, state, report = _own(safetensors.load(data), _json(path, digest))
    elif data[:4] == b'PK\x03\x04' and data[
      30 : 30 + int.from_bytes(data[26:28], 'little')
    ].endswith(b'.npy'):
      config, state, report = of_nets(_nets(files.parse_npz(data, MAX_BYTES), _json(path, digest)))
    else:
      config, state, report = of_nets(network_file.parse(data))
    state = _float32(state, report)
  except OSError as e:
    raise WeightsError(f'cannot read {e.filename or path}: {e.strerror or e}') from e
  # of strangers' files: numpy, safetensors, flax and jax raise all sorts of them
  except Exception as e:
    reason = str(e) if type(e) is ValueError else f'it is malformed ({type(e).__name__}: {e})'
    raise WeightsError(f'{path} is refused: {" ".join(reason.split())[:800]}') from e
  return Imported(config, state, {'source': str(path), 'bytes': size, 'sha256': digest} | report)


def of_nets(nets):
  """{'G', 'D', 'G_ema': network_file.Net}, at least one generator -> Imported, in the dtypes of the
  arrays.

  Raises: ValueError, naming what our networks don't have, what is missing, or is of another shape.
  """
  first = 'G_ema' if 'G_ema' in nets else 'G'
  if first not in nets:
    raise ValueError('it holds no generator')
  report = {
    'format': nets[first].format,
    'networks': {name: net.kind for name, net in nets.items()},
    'unused': {},
    'initialised': {},
    'notes': [],
  }
  ema, found = None, {}
  for name in sorted(nets, key=(first, 'G', 'D').index):
    found[name] = _network(nets[name], name, ema, report)
    ema = ema or found[first]
    own, others = (
      {k: v for k, v in net.fields.items() if k != 'net'}
      | (net.fields['net'] if name != 'D' else {})
      for net in (found[name], ema)
    )
    if unlike := [
      f'{name} has {key}={own[key]}, {first} has {others[key]}'
      for key in own
      if own[key] != others[key]
    ]:
      raise ValueError('; '.join(unlike))
  for name, text in (
    ('G', 'g is a copy of g_ema'),
    ('D', 'd is empty'),
    ('G_ema', 'g_ema is a copy of g'),
  ):
    if name not in nets:
      report['initialised'][f'({name})'] = f'the file has no {name}: {text}'
  g = found.get('G', ema)
  if not _equal((g.noise, g.w_avg), (ema.noise, ema.w_avg)):
    report['notes'].append(
      f'G and {first} differ in noise maps or w_avg; those of {first} are used'
    )
  state = {
    'step': np.int32(0),
    'nimg': np.int32(0),
    'g': g.params,
    'd': found['D'].params if 'D' in nets else {},
    'g_ema': ema.params,
    'noise': ema.noise,
    'w_avg': ema.w_avg,
    'pl_mean': np.float32(0),
  }
  config = _config(ema.fields, found['D'].fields['net'] if 'D' in nets else {})
  return Imported(config, _fit(config, state, report), report)


class _Network(NamedTuple):
  """fields: resolution, channels, c_dim, and 'net', which is to be config.g or config.d."""

  params: dict
  noise: dict
  w_avg: object
  fields: dict


def _network(net, name, generator, report):
  """The _Network of a Net. generator: the _Network of the generator (None: this is it)."""
  letter, arrays = name[0], dict(net.arrays)
  asked = arguments.read(net, name)
  report['notes'] += asked.notes
  unused = report['unused'].setdefault(name, {})
  grows = _growing(net, arrays)
  if net.format == 'tensorflow':
    loaded = _tensorflow(arrays, name, grows, asked.sets.pop('fused', 'auto'), unused)
  else:
    filters = {key: arrays.pop(key) for key in list(arrays) if names.FILTER.fullmatch(key)}
    _check_filters(filters, asked.sets.get('taps', (1, 3, 3, 1)), letter, unused)
    if net.format == 'rosinality':
      arrays = names.rosinality(arrays, letter)
    const = next((x for key, x in arrays.items() if key.endswith('.const')), None)
    first = const.shape[1:] if const is not None else (4, 4)
    if generator:
      first = block_sizes(np.broadcast_to(generator.fields['resolution'], 2).tolist())[0]
    loaded = names.load(arrays, first)
  params, noise, w_avg = loaded
  try:
    fields, widths = (
      _generator(params, grows) if letter == 'G' else _discriminator(params, grows, generator)
    )
  except (KeyError, IndexError, TypeError, AttributeError) as e:
    some = ', '.join(ascii(key[:60]) for key in sorted(net.arrays)[:4])
    raise ValueError(
      f'{name} has not the layers of a StyleGAN2 ({type(e).__name__}: {e}), but {some}, ...'
    ) from e
  for key, (what, told) in asked.says.items():
    there = fields[what] if what in fields else fields['net'][what]
    if told != there and told != [there, there]:
      raise ValueError(f'{name}: {key}={told}, but its arrays say {there}')
  fields['net'] |= _options(name, net.format, grows, asked.sets, widths)
  record = DiscriminatorVariant if letter == 'D' else Variant
  fields['net'] = build.with_variant(fields['net'], record)
  return _Network(params, noise, w_avg, fields)


def _growing(net, arrays):
  """The growing architecture of a TensorFlow network of configs A-D, or ''."""
  if net.format != 'tensorflow':
    return ''
  if (
    net.kind == 'D_basic'
    or '4x4/Dense1/weight' in arrays
    or any('/StyleMod/' in name for name in arrays)
  ):
    return 'stylegan1'
  kinds = {net.kind, net.kwargs.get('synthesis_func')}  # the latter of a generator without parts
  return 'revised' if kinds & {'G_synthesis_stylegan_revised', 'D_stylegan'} else ''


def _tensorflow(arrays, network, grows, fused, unused):
  for name in ('lod', 'synthesis/lod'):
    if name in arrays and arrays.pop(name) != 0:
      raise ValueError(f'{network}: {name} is not 0: this network is still growing')
  for name in [name for name in arrays if re.search(r'_lod[1-9]', name) and not grows]:
    unused[name] = 'of a lower resolution, and this network does not grow'
    del arrays[name]
  sides = [
    int(m[1]) for m in (re.match(r'(?:synthesis/)?(\d{1,5})x\1/', name) for name in arrays) if m
  ]
  return names.TensorFlow(max(sides, default=4), grows == 'stylegan1', fused).load(arrays)


def _check_filters(filters, taps, letter, unused):
  """Filters that are used must be those of `taps`; rosinality's that follow an up-sampling have its
  gain.
  """
  f = resample.setup_filter(taps)
  for name, array in filters.items():
    unused[name] = 'the filter that the taps say'
    if name.endswith(tuple(f'.{layer}.resample_filter' for layer in names.IDLE[letter])):
      unused[name] = 'a filter that its layer does not use'
      continue
    array = np.asarray(array, np.float64)
    gain = 4 if name.endswith(('.conv.blur.kernel', '.upsample.kernel')) else 1
    if array.shape != f.shape or not np.allclose(array, f * gain, rtol=0, atol=1e-5):
      raise ValueError(f'{name} is not the filter of the taps {list(taps)}')


def _blocks(tree, rgb):
  """([(side, block)], smallest first; which architecture they are, by their layers, of which `rgb`
  touches images).
  """
  blocks = sorted(
    (int(name[1:]), block) for name, block in tree.items() if re.fullmatch(r'b\d{1,5}', name)
  )
  if len(blocks) == 1:
    return blocks, 'orig'
  return blocks, 'resnet' if 'skip' in blocks[-1][1] else 'skip' if rgb in blocks[0][1] else 'orig'


def _generator(params, grows):
  """({resolution, channels, c_dim, net}, {side: feature maps}) of a generator's parameters."""
  mapping, (blocks, shape) = params['mapping'], _blocks(params['synthesis'], 'torgb')
  (_, first), (_, last) = blocks[0], blocks[-1]
  h, w = (side << len(blocks) - 1 for side in first['const'].shape[:2])
  layers = sum(bool(re.fullmatch(r'fc\d+', name)) for name in mapping)
  w_dim, (inputs, hidden) = (
    first['conv1']['affine']['weight'].shape[0],
    mapping['fc0']['weight'].shape,
  )
  embed = mapping.get('embed')
  if embed is not None and not isinstance(embed, dict) and not grows:
    raise ValueError(
      'mapping/LabelConcat: labels as before stylegan2-ada are supported for configs A-D only'
    )
  c_dim, features = (0, 0) if embed is None else embed.shape if grows else embed['weight'].shape
  net = {
    'architecture': grows or shape,
    'z_dim': inputs - features,
    'w_dim': w_dim,
    'mapping_layers': layers,
    'layer_features': 0 if layers == 1 or hidden == w_dim else hidden,
    'embed_features': 0 if grows or features == w_dim else features,
    'noise': 'noise_strength' in first['conv1'],
  }
  fields = {
    'resolution': h if h == w else [h, w],
    'channels': last['torgb']['weight'].shape[-1],
    'c_dim': c_dim,
    'net': net,
  }
  return fields, {side: block['conv1']['bias'].shape[0] for side, block in blocks}


def _discriminator(params, grows, generator):
  """As _generator. The sizes of images are the generator's: the shapes say if they aren't."""
  mapping, (blocks, shape) = params.get('mapping', {}), _blocks(params, 'fromrgb')
  (side, first), (_, last) = blocks[0], blocks[-1]
  widths = {side: first['conv']['weight'].shape[-1]} | {
    side: block['conv0']['weight'].shape[-1] for side, block in blocks[1:]
  }
  if grows:
    widths[2] = first['fc']['weight'].shape[1]  # see Discriminator.hidden
  c_dim = (
    generator.fields['c_dim'] if grows else mapping['embed']['weight'].shape[0] if mapping else 0
  )
  cmap_dim = first['out']['weight'].shape[1] if c_dim and not grows else 0
  layers = sum(name != 'embed' for name in mapping)
  embed = mapping['embed']['weight'].shape[1] if mapping else cmap_dim
  hidden = mapping['fc0']['weight'].shape[1] if layers > 1 else cmap_dim
  net = {
    'architecture': grows or shape,
    'mapping_layers': layers,
    'cmap_dim': 0 if cmap_dim == widths[side] else cmap_dim,
    'embed_features': 0 if embed == cmap_dim else embed,
    'layer_features': 0 if hidden == cmap_dim else hidden,
    'mbstd_num_channels': first['conv']['weight'].shape[2] - widths[side],
  }
  channels = last['fromrgb']['weight'].shape[2]
  return {
    'resolution': generator.fields['resolution'],
    'channels': channels,
    'c_dim': c_dim,
    'net': net,
  }, widths


def _options(name, format_, grows, sets, widths):
  """What the arrays don't say, of config.g or, for the name 'D', of config.d."""
  sets = dict(sets)
  if grows:
    sets.pop('architecture', None)
  if grows == 'stylegan1' and sets.get('activation', 'lrelu') != 'lrelu':
    raise ValueError(
      f'{name}: nonlinearity={sets["activation"]}: networks of config A have lrelu here'
    )
  base = sets.pop('fmap_base', 0)
  most = sets.pop('fmap_max', 512)
  least = sets.get('fmap_min', 1)
  fits = lambda: all(fmaps(side, base, most, least) == n for side, n in widths.items())
  if not fits():
    base, most = (
      max((side * n for side, n in widths.items() if n > least), default=2 * least) / 2,
      max(widths.values()),
    )
  if not fits():
    raise ValueError(
      f'{name}: numbers of feature maps {widths} are not max(min(2 fmap_base / side, fmap_max), '
      f'{least}) for any fmap_base and fmap_max'
    )
  net = {
    'fmap_base': int(base) if base == int(base) else base,
    'fmap_max': int(most),
    # what their networks have where no argument says it
    'mapping_lr_mul': 0.1 if (name, format_) == ('D', 'tensorflow') else 0.01,
    'num_bf16_res': 0,
    'remat': False,
  }
  if name == 'D':
    net |= {'mbstd_group_size': 4, 'freeze_layers': 0}
    if format_ == 'pytorch' and sets.pop('last', 'lrelu') != sets.get('activation', 'lrelu'):
      raise ValueError('D: the activation of its epilogue is another than that of its blocks')
  return net | sets


def _config(fields, d):
  """The configuration. d: of the discriminator; {}: there is none."""
  if not d:
    g = fields['net']
    sets = {name: g[name] for name in ('fmap_base', 'fmap_max', 'clamp')}
    sets['fmap_min'] = g['variant'].get('fmap_min', 1)
    d = {'architecture': 'resnet', 'mapping_layers': 8} | _options('D', 'pytorch', '', sets, {})
    d = build.with_variant(d, DiscriminatorVariant)
  return {
    'resolution': fields['resolution'],
    'seed': 0,
    'c_dim': fields['c_dim'],
    'data_hash': '',
    'metrics': [],
    'data': {
      'name': '',
      'dir': '',
      'channels': fields['channels'],
      'labels': fields['c_dim'] > 0,
      'mirror': False,
    },
    'grow': {
      'start_res': 0,
      'hold_kimg': 600.0,
      'fade_kimg': 600.0,
      'batch': [],
      'lr': [],
      'repeats': 4,
    },
    'g': fields['net'],
    'd': d,
  }


def _fit(config, state, report):
  """The state with what a file may lack; shapes go into the report. Raises ValueError for arrays
  unlike the networks'.
  """
  config = build.complete(config)
  if (
    max(config.g.mapping_layers, config.d.mapping_layers) > MAX_LAYERS
    or len(build.variant(config, 'g').taps) > arguments.MAX_TAPS
  ):
    raise ValueError(
      f'more than {MAX_LAYERS} layers of a mapping network, or {arguments.MAX_TAPS} taps of a '
      'filter'
    )
  generator, discriminator = build.networks(config, config.c_dim)
  nothing = optax.identity()
  wanted = jax.eval_shape(
    lambda key: state_lib.create_train_state(key, generator, discriminator, nothing, nothing),
    jax.random.key(0),
  )
  state, wrong, draws = dict(state), [], np.random.RandomState(0)
  for part in ('g_ema', 'g', 'd', 'noise'):
    if part == 'd' and not state['d']:
      continue
    there = traverse_util.flatten_dict(state[part])
    expected = {
      path: x.shape for path, x in traverse_util.flatten_dict(getattr(wanted, part)).items()
    }
    dtype = next((x.dtype for x in there.values()), np.float32)
    for path in sorted(expected.keys() - there.keys()):
      name = '.'.join((part, *path))
      if part == 'noise':
        there[path] = draws.randn(*expected[path]).astype(dtype)
        report['initialised'][name] = 'drawn, N(0,1)'
      elif config['g' if part != 'd' else 'd'].architecture in GROWING and {
        'torgb',
        'fromrgb',
      } & set(path):
        there[path] = np.zeros(expected[path], dtype)
        report['initialised'][name] = 'zeros: of a lower resolution than the images'
      else:
        wrong.append(f'{name} {list(expected[path])} is missing')
    wrong += [
      f'{".".join((part, *path))} is {list(x.shape)}, '
      + (
        f'and should be {list(expected[path])}'
        if path in expected
        else 'and belongs to none of its layers'
      )
      for path, x in there.items()
      if x.shape != expected.get(path)
    ]
    state[part] = traverse_util.unflatten_dict(there)
  if state['w_avg'] is not None and state['w_avg'].shape != wanted.w_avg.shape:
    wrong.append(f'w_avg is {list(state["w_avg"].shape)}, and should be {list(wanted.w_avg.shape)}')
  if wrong:
    raise ValueError(
      f'{len(wrong)} arrays are unlike those of the network that it says it is: '
      f'{"; ".join(wrong[:4])}'
    )
  if state['w_avg'] is None:
    z = draws.randn(MEAN_OF, config.g.z_dim)
    c = np.eye(max(config.c_dim, 1), config.c_dim)[
      draws.randint(max(config.c_dim, 1), size=MEAN_OF)
    ]
    params = {'params': jax.tree.map(jnp.asarray, state['g_ema'])}
    with jax.default_matmul_precision('highest'):
      w = jax.jit(lambda v, z, c: generator.apply(v, z, c, method='map').mean(0))(
        params, jnp.float32(z), jnp.float32(c)
      )
    state['w_avg'] = np.asarray(w)
    report['initialised']['w_avg'] = f'mean of {MEAN_OF:,} w'
  report['shapes'] = {
    name: list(np.shape(x)) for name, x in traverse_util.flatten_dict(state, sep='.').items()
  }
  return state


def _float32(state, report):
  """The state in float32, which a note says. Raises ValueError for numbers that aren't finite."""
  found = set()

  def convert(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    if name in ('step', 'nimg'):
      return np.asarray(x, np.int32).reshape(())
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError(f'{name} has the dtype {x.dtype}, which is no float')
    y = np.ascontiguousarray(x, np.float32).reshape(x.shape)
    if not np.isfinite(y).all():
      raise ValueError(f'{name} holds NaN, or numbers that are infinite in float32')
    found.add(str(x.dtype))
    return y

  state = jax.tree_util.tree_map_with_path(convert, state)
  if found - {'float32'}:
    report['notes'].append(f'{", ".join(sorted(found - {"float32"}))} became float32')
  return state


def _equal(a, b):
  a, b = jax.tree.leaves(a), jax.tree.leaves(b)
  return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b))


# ---- our own exports


def _json(path, digest):
  """What stands beside an export. Raises ValueError if it isn't there or belongs to another
  file.
  """
  beside = path.with_name(f'{path.name}.json')
  try:
    document = json.loads(beside.read_text())
    if document['sha256'] != digest:
      raise ValueError(
        f'{beside} belongs to another file: it says sha256 {str(document["sha256"])[:64]}'
      )
  except FileNotFoundError:
    raise ValueError(
      f'it needs {beside.name}, which was written beside it; put that there, too '
      '(such files of other programs are not read)'
    ) from None
  return document


def _own(arrays, document):
  """Imported of an export in our names."""
  report = {'format': 'sg2jax', 'networks': {}, 'unused': {}, 'initialised': {}, 'notes': []}
  state = {'d': {}, 'noise': {}} | traverse_util.unflatten_dict(arrays, sep='.')
  for name in set(FIELDS) ^ set(state):
    raise ValueError(
      f'it lacks {name}'
      if name in FIELDS
      else f'it holds {name[:80]!a}, which belongs to no network here'
    )
  return Imported(document['config'], _fit(document['config'], state, report), report)


def _nets(arrays, document):
  """{name: Net} of the arrays of an export in NVIDIA's names."""
  nets = {
    name: Net('pytorch', 'Discriminator' if name == 'D' else 'Generator', kwargs, {})
    for name, kwargs in document['networks'].items()
    if name in ('G', 'D', 'G_ema')
  }
  for name, array in arrays.items():
    net, _, key = name.partition('.')
    if net not in nets:
      raise ValueError(f'holds {name[:80]!a}, of a network that its JSON does not know')
    nets[net].arrays[key] = array
  return nets
