"""Networks of others, and our own exports, as a configuration and a state of ours.

Sizes follow from the arrays, the rest from what a file says (interop/arguments.py). Whatever of it
our networks don't have is refused by name; what a file lacks and can be computed is, and the report
says so.
"""

from functools import partial
import hashlib
import json
import pathlib
import re
from typing import NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

from sg2jax import build, bundle, configurations, files, resample
from sg2jax.data.labels import Labels
from sg2jax.faults import CheckpointError, WeightsError
from sg2jax.interop import architecture, arguments, names, network_file, sniff
from sg2jax.interop.network_file import Net
from sg2jax.interop.pickle_reader import need
from sg2jax.models.sizes import GROWING, block_sizes

MAX_BYTES = 2**32  # of a file, and of its arrays
MAX_LAYERS = 64  # of a mapping network; far above any
MAX_TAPS = 64
# Networks of a file, and what there is if it lacks one.
_SUBSTITUTES = {
  'G_ema': 'g_ema is a copy of g',
  'G': 'g is a copy of g_ema',
  'D': 'd is empty',
}
MEAN_OF = 10_000  # w that w_avg is the mean of if a file lacks it


class Imported(NamedTuple):
  """What was in a file.

  Attributes:
    config: what `build.networks` and `sampler` read of one, with `c_dim`, as JSON values.
    state: dict with the names.FIELDS of a TrainState; 'd' is {} without a discriminator.
    report: JSON values, what was found and what was done about it.
    labels: of its data set, if an export says them.
  """

  config: dict
  state: dict
  report: dict
  labels: Labels | None = None


def read_network(path: str | pathlib.Path) -> Imported:
  """The networks in a pickle or .pt of others, an export with its JSON, a bundle; all float32.

  Raises:
    WeightsError: it can't be read, or holds what our networks can't do; names the file and the
      thing.
  """
  path = pathlib.Path(path).expanduser().absolute()
  if bundle.is_there(path):
    return _of_bundle(path)
  try:
    size = path.stat().st_size
    need(size <= MAX_BYTES, f'it has {size:,} bytes, and {MAX_BYTES:,} are allowed')
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    kind = sniff.kind(data)
    document = _read_json(path, digest) if kind in ('safetensors', 'npz') else {}
    match kind:
      case 'safetensors':
        imported = _own_names(safetensors.load(data), document)
      case 'npz':
        imported = of_nets(_nvidia_names(files.parse_npz(data, MAX_BYTES), document))
      case _:
        imported = of_nets(network_file.parse(data))
    state = _float32(imported.state, imported.report)
    labels = _labels(document, imported.config['c_dim'])
  except OSError as e:
    raise WeightsError(
      f'cannot read {e.filename or path}: {e.strerror or e}; name a network file that is there'
    ) from e
  # Strangers' files make numpy, safetensors, flax and jax raise all sorts of errors.
  except Exception as e:
    reason = str(e) if type(e) is ValueError else f'it is malformed ({type(e).__name__}: {e})'
    raise WeightsError(f'{path} is refused: {" ".join(reason.split())[:800]}') from e
  source = {'source': str(path), 'bytes': size, 'sha256': digest}
  return Imported(imported.config, state, source | imported.report, labels)


def _of_bundle(path):
  try:
    state, config = bundle.read(path)
    build.check_generator(config, state, path)
    labels = path / bundle.LABELS
    labels = Labels.from_json(labels.read_text()) if labels.exists() else None
  except (CheckpointError, ValueError, KeyError, TypeError, RecursionError) as e:
    raise WeightsError(f'{path} is refused: {e}') from e
  report = _report('sg2jax')
  report['initialised'] = {'(D)': f'the bundle has no D: {_SUBSTITUTES["D"]}'}
  file = path / bundle.WEIGHTS
  source = {'source': str(file), 'bytes': file.stat().st_size, 'sha256': files.sha256(file)}
  return Imported(config, _complete(config, state, report), source | report, labels)


# ---- networks of others


def of_nets(nets: dict[str, Net]) -> Imported:
  """{'G', 'D', 'G_ema': Net}, at least one generator -> Imported, in the dtypes of the arrays.

  Raises:
    ValueError: names what our networks don't have, what is missing, or is of another shape.
  """
  need(nets.keys() & {'G', 'G_ema'}, 'it holds no generator')
  report = _report(next(iter(nets.values())).format)
  report['networks'] = {name: net.kind for name, net in nets.items()}
  found = {}
  # The average first: what images are made by decides about sizes, and the others must fit.
  for name, instead in _SUBSTITUTES.items():
    if name in nets:
      generator = next(iter(found.values()), None)
      found[name] = _import(nets[name], name, generator, report)
    else:
      report['initialised'][f'({name})'] = f'the file has no {name}: {instead}'
  ema = found.get('G_ema') or found['G']
  g = found.get('G', ema)
  d = found.get('D', _Network({}, {}, None, {}, {}))
  state = {
    'step': np.int32(0),
    'nimg': np.int32(0),
    'g': g.params,
    'd': d.params,
    'g_ema': ema.params,
    'noise': ema.noise,
    'w_avg': ema.w_avg,
    'pl_mean': np.float32(0),
  }
  # So that fields of the variants are where build looks for them.
  config = architecture.configuration(ema.image, ema.fields, d.fields)
  config = configurations.complete(config).to_dict()
  return Imported(config, _complete(config, state, report), report)


class _Network(NamedTuple):
  """A network with our names; image and fields as `architecture` tells them."""

  params: dict
  noise: dict
  w_avg: np.ndarray | None
  image: dict
  fields: dict


def _report(format_):
  return {'format': format_, 'networks': {}, 'unused': {}, 'initialised': {}, 'notes': []}


def _import(net, name, generator, report):
  """The _Network of a Net; generator: the first of a file, if this is another."""
  given, notes = arguments.parse(net, name)
  report['notes'] += notes
  unused = report['unused'].setdefault(name, {})
  grows = architecture.growing(net)
  if net.format == 'tensorflow':
    fused = given.pop('fused', 'auto')
    params, noise, w_avg = _load_tensorflow(net.arrays, name, grows, fused, unused)
  else:
    taps = given.get('taps', resample.TAPS)
    resolution = generator.image['resolution'] if generator else 4
    params, noise, w_avg = _load_pytorch(net, name[0], taps, resolution, unused)
  try:
    if name == 'D':
      image, fields, widths = architecture.of_discriminator(params, grows, generator.image)
    else:
      image, fields, widths = architecture.of_generator(params, grows)
  # Of a layer that isn't there, or is something else: StyleGAN3, say.
  except (LookupError, TypeError, AttributeError) as e:
    some = ', '.join(ascii(key[:60]) for key in sorted(net.arrays)[:4])
    raise ValueError(
      f'{name} has not the layers of a StyleGAN2 ({type(e).__name__}: {e}), but {some}, ...'
    ) from e
  sizes = image | fields
  if grows or len(widths) == 1:
    given.pop('architecture', None)  # these have no other, and of one block all are the same
  for key in sorted(given.keys() & sizes.keys()):
    value = given.pop(key)
    agrees = value in (sizes[key], [sizes[key]] * 2)
    need(agrees, f'{name}: {key}={value}, but its arrays say {sizes[key]}')
  fields |= architecture.options(name, net, widths, given, grows)
  if generator:
    others = generator.image | generator.fields
    for key, value in (image if name == 'D' else image | fields).items():
      need(value == others[key], f'{name} has {key}={value}, and the generator has {others[key]}')
  return _Network(params, noise, w_avg, image, fields)


def _load_tensorflow(arrays, name, grows, fused, unused):
  arrays = dict(arrays)
  for lod in ('lod', 'synthesis/lod'):
    need(arrays.pop(lod, 0) == 0, f'{name}: {lod} is not 0: this network is still growing')
  # Images' layers of lower resolutions, which no image comes through any more.
  if not grows:
    for key in [key for key in arrays if re.search(r'_lod[1-9]', key)]:
      unused[key] = 'of a lower resolution, and this network does not grow'
      del arrays[key]
  blocks = map(re.compile(r'(?:synthesis/)?(\d{1,5})x\1/').match, arrays)
  resolution = max((int(m[1]) for m in blocks if m), default=4)
  return names.TensorFlow(resolution, grows == 'stylegan1', fused).load(arrays)


def _load_pytorch(net, letter, taps, resolution, unused):
  """Also of rosinality. resolution: of the generator, where this is a discriminator."""
  arrays = dict(net.arrays)
  # Filters that are used must be those of `taps`.
  expected = resample.setup_filter(taps)
  idle = tuple(f'.{layer}.resample_filter' for layer in names.IDLE[letter])
  for key in filter(names.FILTER.fullmatch, net.arrays):
    x = arrays.pop(key)
    unused[key] = 'a filter, which follows from the taps'
    # Those of rosinality that follow an up-sampling have its gain.
    gain = 4 if key.endswith(('.conv.blur.kernel', '.upsample.kernel')) else 1
    fits = x.shape == expected.shape and np.allclose(x, expected * gain, rtol=0, atol=1e-5)
    need(fits or key.endswith(idle), f'{key} is not the filter of the taps {list(taps)}')
  if net.format == 'rosinality':
    arrays = names.rosinality(arrays, letter)
  # What a discriminator's b4.fc flattens has the sides of the first block.
  return names.from_pytorch(arrays, block_sizes(np.broadcast_to(resolution, 2).tolist())[0])


# ---- our own exports


def _read_json(path, digest):
  """What stands beside an export, if it belongs to it."""
  beside = path.with_name(f'{path.name}.json')
  try:
    document = json.loads(beside.read_text())
  except FileNotFoundError:
    raise ValueError(
      f'it needs {beside.name}, which was written beside it; put that there, too '
      '(such files of other programs are not read)'
    ) from None
  said = str(document['sha256'])[:64]
  need(said == digest, f'{beside} belongs to another file: it says sha256 {said}')
  return document


def _labels(document, c_dim):
  """The Labels that the JSON of an export says; None if it says none, as older versions did."""
  if not c_dim or 'labels' not in document:
    return None
  labels = Labels.from_json(json.dumps(document['labels']))
  agrees = labels.c_dim == c_dim
  need(agrees, f'its labels have {labels.c_dim} components, and the network {c_dim}')
  return labels


def _own_names(arrays, document):
  """Imported of an export in our names."""
  state = {'d': {}, 'noise': {}} | traverse_util.unflatten_dict(arrays, sep='.')
  is_whole = state.keys() == set(names.FIELDS)
  need(is_whole, f'it holds {sorted(state)!a}, and should hold {sorted(names.FIELDS)}')
  report = _report('sg2jax')
  return Imported(document['config'], _complete(document['config'], state, report), report)


def _nvidia_names(arrays, document):
  """{name: Net} of an export in NVIDIA's names."""
  nets = {name: Net('pytorch', '', kwargs, {}) for name, kwargs in document['networks'].items()}
  for name, x in arrays.items():
    net, _, key = name.partition('.')
    nets[net].arrays[key] = x
  return nets


# ---- a whole state


def _complete(config, state, report):
  """The state with what a file may lack; shapes go into the report.

  Raises ValueError for arrays unlike the networks'.
  """
  config = configurations.complete(config)
  # The JSON of an export can say anything: a billion layers would be traced one by one.
  layers = max(config.g.mapping_layers, config.d.mapping_layers)
  need(
    layers <= MAX_LAYERS and len(configurations.variant(config, 'g').taps) <= MAX_TAPS,
    f'more than {MAX_LAYERS} layers of a mapping network, or {MAX_TAPS} taps of a filter',
  )
  generator, discriminator = build.networks(config, config.c_dim)
  expected = _shapes(generator, discriminator if state['d'] else None)
  given = {part: state[part] for part in ('g_ema', 'g', 'd', 'noise', 'w_avg')}
  flat = traverse_util.flatten_dict(given)
  if state['w_avg'] is None:
    del flat[('w_avg',)]
    del expected[('w_avg',)]

  # A fixed seed, so that one file gives the same run each time.
  draws = np.random.RandomState(0)
  wrong = []
  for path in sorted(expected.keys() - flat.keys()):
    name = '.'.join(path)
    grows = config['d' if path[0] == 'd' else 'g'].architecture in GROWING
    if path[0] == 'noise':
      # Any map is as good: training draws noise anew for each image.
      flat[path] = np.float32(draws.randn(*expected[path]))
      report['initialised'][name] = 'drawn, N(0,1)'
    elif grows and {'torgb', 'fromrgb'} & set(path):
      flat[path] = np.zeros(expected[path], np.float32)
      report['initialised'][name] = 'zeros: of a lower resolution than the images'
    else:
      wrong.append(f'{name} {list(expected[path])} is missing')
  for path, x in flat.items():
    if path not in expected:
      wrong.append(f'{".".join(path)} is {list(x.shape)}, and belongs to none of its layers')
    elif x.shape != expected[path]:
      wrong.append(f'{".".join(path)} is {list(x.shape)}, and should be {list(expected[path])}')
  need(
    not wrong,
    f'{len(wrong)} arrays are unlike those of the network that it is: {"; ".join(wrong[:4])}',
  )
  state = state | {'d': {}, 'noise': {}} | traverse_util.unflatten_dict(flat)
  if state['w_avg'] is None:
    state['w_avg'] = _mean_w(generator, state['g_ema'], draws)
    report['initialised']['w_avg'] = f'mean of {MEAN_OF:,} w'
  flat = traverse_util.flatten_dict(state, sep='.')
  report['shapes'] = {name: list(np.shape(x)) for name, x in flat.items()}
  return state


def _shapes(generator, discriminator):
  """{path in a state: shape} of the arrays of networks; discriminator: None if there is none."""
  key = jax.random.key(0)
  mapping, synthesis = generator.mapping, generator.synthesis
  inputs = [jnp.zeros((1, size)) for size in (mapping.z_dim, mapping.c_dim)]
  g = jax.eval_shape(partial(generator.init, noise_mode='const'), key, *inputs)
  tree = {'g': g['params'], 'g_ema': g['params'], 'noise': g.get('noise', {})}
  if discriminator:
    img = jnp.zeros((1, *synthesis.resolution, synthesis.img_channels))
    c = jnp.zeros((1, discriminator.c_dim))
    tree['d'] = jax.eval_shape(discriminator.init, key, img, c)['params']
  shapes = {path: x.shape for path, x in traverse_util.flatten_dict(tree).items()}
  return shapes | {('w_avg',): (mapping.w_dim,)}


def _mean_w(generator, params, draws):
  z_dim, c_dim = generator.mapping.z_dim, generator.mapping.c_dim
  z = draws.randn(MEAN_OF, z_dim)
  classes = draws.randint(max(c_dim, 1), size=MEAN_OF)
  c = np.eye(max(c_dim, 1), c_dim)[classes]  # one-hot; [MEAN_OF,0] without labels
  # A mean of float32 over 10,000; on GPUs the default precision would show in it.
  with jax.default_matmul_precision('highest'):
    mean = jax.jit(lambda v, z, c: generator.apply(v, z, c, method='map').mean(0))
    variables = {'params': jax.tree.map(jnp.asarray, params)}
    return np.asarray(mean(variables, jnp.float32(z), jnp.float32(c)))


def _float32(state, report):
  """The state in float32, which a note says. Raises ValueError for numbers that aren't finite."""
  converted = {}
  dtypes = set()
  for name, x in traverse_util.flatten_dict(state, sep='.').items():
    if name in ('step', 'nimg'):
      converted[name] = np.asarray(x, np.int32).reshape(())
      continue
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    need(is_float, f'{name} has the dtype {x.dtype}, which is no float')
    converted[name] = np.ascontiguousarray(x, np.float32).reshape(x.shape)
    is_finite = np.isfinite(converted[name]).all()
    need(is_finite, f'{name} holds NaN, or numbers that are infinite in float32')
    dtypes.add(str(x.dtype))
  if others := sorted(dtypes - {'float32'}):
    report['notes'].append(f'{", ".join(others)} became float32')
  return {'d': {}, 'noise': {}} | traverse_util.unflatten_dict(converted, sep='.')
