"""What editing by text takes in memory, by the compiler: nothing runs, and no weights are read.

python -m sg2jax.lab.edit_memory --config=configs/ffhq.py [--device=h100] [--images=1,8]

Of the generator of --config and a CLIP of the sizes of clip-vit-b-32, for so many images at once: a
step of the search of each image (`optimize`), of a mapper's training, of `nada`, and of the
measuring of channels (`global`). --device and the packages it needs are those of `tools.plan`.
"""

from collections.abc import Iterator
import os
import pathlib
import tempfile
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from sg2jax import build, checks, cli, sharding
from sg2jax.edit import global_directions, mapper, mapper_training, nada, optimize
from sg2jax.models import styles as style_space
from sg2jax.nets import clip
from sg2jax.planning import compile as compile_lib
from sg2jax.planning import devices

CLIP = clip.Architecture(
  image_size=224,
  vision_width=768,
  vision_layers=12,
  vision_heads=12,
  embed_dim=512,
  context_length=77,
  vocab_size=49408,
  text_width=512,
  text_layers=12,
  text_heads=8,
  patch_size=32,
)


def define_flags() -> None:
  """The command line."""
  config_flags.DEFINE_config_file('config', None, 'Configuration; any field: --config.FIELD=VALUE.')
  flags.mark_flag_as_required('config')
  flags.DEFINE_string('device', 'local', f'What to compile for: {", ".join(devices.choices())}.')
  flags.DEFINE_list('images', ['1', '8'], 'Images at once.')


def main(_: list[str]) -> None:
  """Compiles, and prints a line for each step."""
  asked = flags.FLAGS
  checks.check(asked.config)
  # JAX can't read again what it has kept of devices that aren't here.
  jax.config.update('jax_enable_compilation_cache', False)
  target, found = devices.resolve(devices.parse(asked.device))
  mesh = sharding.make_mesh(found[:1])
  for count in map(int, asked.images):
    for name, lowered in lower(asked.config, mesh, count):
      memory = measured(lowered, target)
      peak, held, temporary = (
        memory[kind] / 2**30 for kind in ('peak_bytes', 'argument_bytes', 'temp_bytes')
      )
      print(
        f'{name:<10}{count:>3} images  {peak:6.2f} GiB: {held:.2f} of arguments, '
        f'{temporary:.2f} of temporaries',
        flush=True,
      )
  os._exit(0)  # XLA may still be at work in threads, see planning/compile.py


def measured(lowered: jax.stages.Lowered, target: devices.Target) -> dict:
  """The sizes that the compiler says."""
  if target.name == 'local' or target.data['platform'] == 'tpu':
    return compile_lib.whole(lowered, target)
  folder = tempfile.mkdtemp()  # stays: the compiler goes on writing there
  return compile_lib.until_assigned(lowered, target, pathlib.Path(folder))


def lower(config: ConfigDict, mesh: Mesh, count: int) -> Iterator[tuple[str, jax.stages.Lowered]]:
  """(name, the step as the compiler gets it) for so many images at once."""
  for name, step, arguments in steps(config, mesh, count):
    with jax.default_matmul_precision('highest'):  # as all of them run
      yield name, step.lower(*arguments)


def steps(config: ConfigDict, mesh: Mesh, count: int) -> Iterator[tuple[str, Any, tuple]]:
  """(name, the jitted step, shapes of its arguments) for so many images at once."""
  same = sharding.replicated(mesh)

  def shape(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=same), tree)

  def array(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=same)

  generator, _ = build.networks(config, 0)
  state = build.abstract_state(config, 0, same)
  variables = {'params': state.g_ema, 'noise': state.noise}
  pixels = jnp.zeros((1, CLIP.image_size, CLIP.image_size, 3))
  visual = jax.eval_shape(clip.image_tower(CLIP).init, jax.random.key(0), pixels)['params']
  weights = shape({'visual': visual, 'logit_scale': jnp.zeros(())})
  num_ws, w_dim = generator.synthesis.num_ws, generator.mapping.w_dim
  static = mesh, generator, (), CLIP, clip.view
  ws = array(count, num_ws, w_dim)
  texts = array(1, CLIP.embed_dim)

  # ---- a search for each image
  settings = optimize.Settings()
  begin, advance, *_ = optimize.compiled(
    *static, (*settings.adam_betas, settings.adam_eps), settings.augmentations
  )
  ws_of_each, texts_of_each, search = shape(jax.eval_shape(begin, ws, texts, {'ws': ws}))
  key = shape(jax.eval_shape(lambda: jax.random.key(0)))
  lr = array(settings.steps)
  of_each = ws_of_each, texts_of_each, *search
  yield 'optimize', advance, (variables, weights, array(), lr, key, *of_each)

  # ---- a mapper
  settings = mapper_training.Settings()
  levels, _ = mapper.usable_levels(settings.levels, num_ws)
  module = mapper.LatentMapper(levels, settings.normalized)
  begin, advance = mapper_training.compiled(*static, module, settings)
  training = shape(jax.eval_shape(begin, variables, ws))
  yield 'mapper', advance, (variables, weights, texts, training, ws)

  # ---- the generator itself
  advance = nada.compiled(mesh, generator, ((CLIP, clip.view),), nada.Settings(batch=count))
  training = shape(jax.eval_shape(nada.first_state, variables['params']))
  text, number = [array(CLIP.embed_dim)], array(dtype=jnp.int32)
  ws_of_layers = array(nada.LAYER_BATCH, num_ws, w_dim)
  yield 'nada', advance, (variables, [weights], text, text, training, ws, ws_of_layers, number)

  # ---- the measuring of a channel in half as many latents: each is shown with less and with more
  channels = style_space.channels(generator, variables)
  counts = tuple((layer, channels[layer]) for layer in global_directions.convolutions(channels))
  total = sum(n for _, n in counts)
  step, _ = global_directions.compiled(*static, counts, False, False)
  styles = {layer: array(max(1, count // 2), n) for layer, n in channels.items()}
  channel = array(1, dtype=jnp.int32)
  yield 'global', step, (variables, weights, array(3, total), styles, channel)


if __name__ == '__main__':
  define_flags()
  cli.run(main)
