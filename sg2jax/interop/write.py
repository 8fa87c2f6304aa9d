"""A checkpoint for the rest of the world: safetensors, NVIDIA's names, a StableHLO module.

The tool convert reads the first two again. Each function gives the bytes of a file, and a dict that
stands beside it as JSON.
"""

from flax import traverse_util
import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

from sg2jax import build, configurations, files
from sg2jax.faults import UsageError
from sg2jax.interop import arguments, names
from sg2jax.models.sizes import block_sizes
from sg2jax.sampler import Sampler

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def write_safetensors(state: dict, config: dict) -> tuple[bytes, dict]:
  """All of a state but the optimizers' moments, under our names, 'g_ema.synthesis.b4.const'.

  Args:
    state: a TrainState as a dict of numpy arrays, as `checkpoint.load` gives it.
    config: its configuration, JSON values, with `c_dim`.
  """
  flat = traverse_util.flatten_dict({name: state[name] for name in names.FIELDS}, sep='.')
  arrays = {name: np.array(x, order='C') for name, x in flat.items()}
  return safetensors.save(arrays), {'format': 'sg2jax-1', 'config': config}


def write_nvidia(state: dict, config: dict) -> tuple[bytes, dict]:
  """An .npz of the state dicts of stylegan2-ada-pytorch, and what its constructors take.

  The keys are as 'G_ema.mapping.fc0.weight'. The noise maps and w_avg are those of both generators.
  Arguments as of `write_safetensors`.

  Raises:
    UsageError: an architecture, or an fmap_min, that stylegan2-ada-pytorch doesn't have.
  """
  config = configurations.complete(config)
  # Their constructors register the FIR filters as buffers, and load_state_dict wants them all.
  first = block_sizes(build.resolution(config))[0]
  buffers = {'mapping': {'w_avg': state['w_avg']}, **(state['noise'] or {})}
  arrays = {}
  networks = {}
  for name, part in (('G', 'g'), ('G_ema', 'g_ema'), ('D', 'd')):
    if state[part]:
      networks[name] = _constructor_kwargs(config, part[0])
      taps = configurations.variant(config, part[0]).taps
      arrays |= names.to_pytorch(state[part], first, f'{name}.')
      arrays |= names.filters(state[part], taps, name[0], f'{name}.')
      if name != 'D':
        arrays |= names.to_pytorch(buffers, first, f'{name}.')
  return files.npz(**arrays), {'format': 'sg2jax-nvidia-1', 'networks': networks}


def _constructor_kwargs(config, net):
  """What stylegan2-ada-pytorch's Generator or Discriminator takes; net: 'g' or 'd'."""
  fields = config[net]
  variant = configurations.variant(config, net)
  if fields.architecture not in ('orig', 'skip', 'resnet') or variant.fmap_min != 1:
    raise UsageError(
      f'--format=nvidia: stylegan2-ada-pytorch has no {net}.architecture={fields.architecture} '
      f'with fmap_min={variant.fmap_min}; use --format=safetensors'
    )
  height, width = build.resolution(config)
  sizes = {
    'architecture': fields.architecture,
    'channel_base': 2 * fields.fmap_base,
    'channel_max': fields.fmap_max,
    'num_fp16_res': fields.num_bf16_res,
    'conv_clamp': fields.clamp or None,
  }
  layers = {'resample_filter': list(variant.taps), 'activation': variant.activation}
  kwargs = {
    'c_dim': config.c_dim,
    'img_resolution': height if height == width else [height, width],
    'img_channels': config.data.channels,
    'mapping_kwargs': {
      'num_layers': fields.mapping_layers,
      'embed_features': variant.embed_features or None,
      'layer_features': variant.layer_features or None,
      'lr_multiplier': variant.mapping_lr_mul,
    },
  }
  if net == 'g':
    synthesis = {**sizes, **layers, 'use_noise': fields.noise}
    return kwargs | {'z_dim': fields.z_dim, 'w_dim': fields.w_dim, 'synthesis_kwargs': synthesis}
  whole_batch = fields.mbstd_group_size == arguments.WHOLE_BATCH
  epilogue = {
    'mbstd_group_size': None if whole_batch else fields.mbstd_group_size,
    'mbstd_num_channels': variant.mbstd_num_channels,
    'activation': variant.activation,
  }
  cmap_dim = variant.cmap_dim or None
  return {
    **kwargs,
    **sizes,
    'cmap_dim': cmap_dim,
    'block_kwargs': layers,
    'epilogue_kwargs': epilogue,
  }


def write_stablehlo(net: Sampler) -> tuple[bytes, dict]:
  """The generator as a module of StableHLO, weights within; to run it takes jax and flatbuffers.

  It maps (z [N,z_dim], c [N,c_dim] where there are labels, psi []) to images [N,H,W,C], nominally
  in [-1,1], with the constant noise maps; all float32; any N; on PLATFORMS.
  """
  w_avg = jnp.asarray(net.w_avg)
  c_dim = net.config.c_dim

  def images(z, *rest):
    c = rest[0] if c_dim else jnp.zeros((z.shape[0], 0))
    psi = rest[-1]
    # So that it gives on each platform what `sampler` gives.
    with jax.default_matmul_precision('highest'):
      return net.generator.apply(net.variables, z, c, w_avg, psi, None, 'const', **net.growing)

  # Any batch size, in one module.
  (batch,) = jax_export.symbolic_shape('N')
  shapes = {'z': (batch, net.generator.mapping.z_dim)}
  if c_dim:
    shapes['c'] = (batch, c_dim)
  shapes['psi'] = ()
  inputs = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes.values()]
  module = jax_export.export(jax.jit(images), platforms=PLATFORMS)(*inputs)
  return module.serialize(), {
    'format': 'sg2jax-stablehlo-1',
    'arguments': {name: [str(side) for side in shape] for name, shape in shapes.items()},
    'dtype': 'float32',
    'result': [str(side) for side in module.out_avals[0].shape],
    'platforms': PLATFORMS,
    'jax': jax.__version__,
    'calling_convention': module.calling_convention_version,
  }
