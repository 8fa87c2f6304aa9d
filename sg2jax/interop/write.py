"""A checkpoint for the rest of the world: safetensors, NVIDIA's names, a StableHLO module.
`convert` reads the first two again.

Each function gives the bytes of a file and a dict, which stands beside it as JSON.
"""

from flax import traverse_util
import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors_numpy

from sg2jax import build, files
from sg2jax.faults import UsageError
from sg2jax.interop import arguments, names
from sg2jax.interop.read import FIELDS
from sg2jax.models.stylegan2 import block_sizes

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
RUN = (
  "from jax import export; net = export.deserialize(open('FILE', 'rb').read()); "
  'images = net.call({arguments})  # numpy arrays of these shapes; needs jax and flatbuffers'
)


def safetensors(state, config):
  """All of a state but the optimizers' moments, under our names, 'g_ema.synthesis.b4.const', in our
  layouts.

  Args:
    state: a TrainState as a dict of numpy arrays, as `checkpoint.load` gives it.
    config: its configuration, JSON values, with `c_dim`.
  """
  flat = traverse_util.flatten_dict({name: state[name] for name in FIELDS}, sep='.')
  arrays = {name: np.array(x, order='C') for name, x in flat.items()}
  return safetensors_numpy.save(arrays), {'format': 'sg2jax-1', 'config': config}


def nvidia(state, config):
  """An .npz of the state dicts of stylegan2-ada-pytorch, 'G_ema.mapping.fc0.weight', and what its
  constructors take.

  The noise maps and w_avg are those of both generators. Arguments as of `safetensors`.
  Raises: UsageError: an architecture, or an fmap_min, that stylegan2-ada-pytorch doesn't have.
  """
  config = build.complete(config)
  g, d = config.g, config.d
  variants = {name: build.variant(config, name) for name in 'gd'}
  for name in 'gd':
    net, variant = config[name], variants[name]
    if net.architecture not in ('orig', 'skip', 'resnet'):
      raise UsageError(
        f'--format=nvidia: stylegan2-ada-pytorch has no architecture {net.architecture}; use '
        '--format=safetensors'
      )
    if variant.fmap_min != 1:
      raise UsageError(
        f'--format=nvidia: stylegan2-ada-pytorch has no fmap_min={variant.fmap_min}; use '
        '--format=safetensors'
      )
  resolution = build.resolution(config)
  first = block_sizes(resolution)[0]
  buffers = names.store({'mapping': {'w_avg': state['w_avg']}, **(state['noise'] or {})}, first)
  arrays = {}
  for name, part in (('G', 'g'), ('G_ema', 'g_ema'), ('D', 'd')):
    if state[part]:
      arrays |= names.store(state[part], first, f'{name}.')
      arrays |= names.filters(state[part], variants[part[0]].taps, name[0], f'{name}.')
      arrays |= {} if name == 'D' else {f'{name}.{key}': x for key, x in buffers.items()}
  common = {
    'c_dim': config.c_dim,
    'img_resolution': resolution[0] if resolution[0] == resolution[1] else list(resolution),
    'img_channels': config.data.channels,
  }
  mapping = lambda name: {
    'num_layers': config[name].mapping_layers,
    'embed_features': variants[name].embed_features or None,
    'layer_features': variants[name].layer_features or None,
    'lr_multiplier': variants[name].mapping_lr_mul,
  }
  layers = lambda name: {
    'resample_filter': list(variants[name].taps),
    'activation': variants[name].activation,
  }
  sizes = lambda net: {
    'architecture': net.architecture,
    'channel_base': 2 * net.fmap_base,
    'channel_max': net.fmap_max,
    'num_fp16_res': net.num_bf16_res,
    'conv_clamp': net.clamp or None,
  }
  generator = common | {
    'z_dim': g.z_dim,
    'w_dim': g.w_dim,
    'synthesis_kwargs': sizes(g) | layers('g') | {'use_noise': g.noise},
    'mapping_kwargs': mapping('g'),
  }
  group = None if d.mbstd_group_size == arguments.WHOLE_BATCH else d.mbstd_group_size
  discriminator = (
    common
    | sizes(d)
    | {
      'cmap_dim': variants['d'].cmap_dim or None,
      'block_kwargs': layers('d'),
      'mapping_kwargs': mapping('d'),
      'epilogue_kwargs': {
        'mbstd_group_size': group,
        'mbstd_num_channels': variants['d'].mbstd_num_channels,
        'activation': variants['d'].activation,
      },
    }
  )
  networks = {'G': generator, 'G_ema': generator} | ({'D': discriminator} if state['d'] else {})
  return files.npz(**arrays), {'format': 'sg2jax-nvidia-1', 'networks': networks}


def stablehlo(net):
  """The generator of a sampler.Sampler as a module of StableHLO, its weights within; to run it
  needs jax and flatbuffers only.

  It maps (z [N,z_dim], c [N,c_dim] where there are labels, psi []) to images [N,H,W,C], nominally
  in [-1,1], with the constant noise maps; all float32; any N; on PLATFORMS.
  """
  generator, variables, w_avg = net.generator, net.variables, jnp.asarray(net.w_avg)
  z_dim, c_dim = generator.mapping.z_dim, net.config.c_dim

  def images(z, *rest):
    c = rest[0] if c_dim else jnp.zeros((z.shape[0], 0))
    with jax.default_matmul_precision('highest'):
      return generator.apply(variables, z, c, w_avg, rest[-1], None, 'const', **net.growing)

  (batch,) = jax_export.symbolic_shape('N')
  shapes = {'z': (batch, z_dim)} | ({'c': (batch, c_dim)} if c_dim else {}) | {'psi': ()}
  module = jax_export.export(jax.jit(images), platforms=PLATFORMS)(
    *(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes.values())
  )
  return module.serialize(), {
    'format': 'sg2jax-stablehlo-1',
    'arguments': {name: [str(side) for side in shape] for name, shape in shapes.items()},
    'dtype': 'float32',
    'result': [str(side) for side in module.out_avals[0].shape],
    'platforms': PLATFORMS,
    'jax': jax.__version__,
    'calling_convention': module.calling_convention_version,
    'step': net.step,
    'run': RUN.format(arguments=', '.join(shapes)),
  }
