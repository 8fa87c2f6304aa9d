"""Reference cases of StyleCLIP's three methods, and of the directional loss."""

from functools import partial
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np

from sg2jax import sampler
from sg2jax.edit import (
  global_directions,
  mapper,
  mapper_training,
  optimize,
  optimizers,
  text_losses,
)
from sg2jax.edit.project import learning_rates
from sg2jax.interop.names import from_pytorch, nchw
from sg2jax.models import styles as style_space
from sg2jax.models.sizes import block_sizes
from sg2jax.nets import clip_names
from tests.reference.cases_clip import architecture, original_view, resnet_architecture
from tests.reference.cases_nets import read_generator
from tests.reference.check import jit

NOT_MODELLED = {'id_lambda': 0}  # the loss of identity, by a face recogniser


def read_network(sub):
  """(Generator, its variables) of a sub-case."""
  generator, _ = read_generator(sub.config.sub('G'))
  size = block_sizes(generator.synthesis.resolution)[0]
  params, noise, _ = from_pytorch(sub.under('G/'), size)
  return generator, {'params': params, 'noise': noise}


def read_tower(sub, view):
  """The Tower of a sub-case. view: images -> what it takes."""
  config, arrays = sub.config.sub('clip'), sub.under('V/')
  spec = resnet_architecture(config) if 'layers' in config else architecture(config)
  params = {'visual': clip_names.vision_params({name: arrays[name] for name in arrays}, spec)}
  if 'logit_scale' in arrays:
    params['logit_scale'] = arrays['logit_scale']
    # of the config, what was meant before it was rounded to float16
    np.testing.assert_allclose(config['logit_scale'], params['logit_scale'], rtol=1e-3)
  return text_losses.Tower(params, spec, lambda images, _: view(images))


def read_styles(given):
  """Arrays by layers, in the order of the network."""
  return {layer: given[layer] for layer in sorted(given, key=style_space.order)}


def render_styles(generator, variables, styles):
  """Styles {layer: [N,C]} -> images [N,H,W,C]."""
  n = len(next(iter(styles.values())))
  ws = jnp.zeros((n, generator.synthesis.num_ws, generator.mapping.w_dim))
  return style_space.image(generator, variables, ws, lambda layer, _: styles[layer])


# ---- optimisation


def optimization(sub):
  """A search from a given start."""
  config, given = sub.config, sub.given
  for key, value in NOT_MODELLED.items():
    config.expect(key, value)
  space, l2_lambda = config['space'], config['l2_lambda']
  settings = optimize.Settings(
    steps=config['steps'],
    space=space,
    lr=config['lr'],
    l2_lambda={'edit': l2_lambda, 'free_generation': 0}[config['mode']],
    lr_rampup=config['lr_rampup'],
    lr_rampdown=config['lr_rampdown'],
    adam_betas=tuple(config['adam_betas']),
    adam_eps=config['adam_eps'],
  )
  generator, variables = read_network(sub)
  tower, texts = read_tower(sub, original_view(config)), given['text_features']
  start, render = _start(sub, generator, variables)
  adam = optimizers.adam(*settings.adam_betas, settings.adam_eps)
  state = optimize.first_state(adam, jax.tree.map(np.zeros_like, start))

  @jit
  def step(state, lr):
    measure = partial(tower.loss, texts=texts)
    return optimize.search_step(render, measure, adam, settings.l2_lambda, state, lr)

  lr = learning_rates(settings.steps, settings.lr, settings.lr_rampup, settings.lr_rampdown)
  image = jit(render)
  states, losses = [state], []
  for rate in lr:
    state, found = step(state, rate)
    states.append(state)
    losses.append(found)
  latents = [jax.tree.map(np.add, start, state.moves) for state in states]
  # Adam's first moment, which starts at 0, has a tenth of the first gradient.
  grad = jax.tree.map(lambda x: x / (1 - settings.adam_betas[0]), states[1].moments.mean)
  out = {'lr': lr} | {name: jnp.concatenate(x) for name, x in _columns(losses).items()}
  for name, moves in (('start', states[0]), ('last', states[-2]), ('final', states[-1])):
    if f'image_{name}' in sub.wanted:
      out[f'image_{name}'] = nchw(image(moves.moves))
  out |= _named('grad_step1', grad, space)
  for name in sub.wanted:
    if match := re.match(r'latent_step(\d+)', name):
      out |= _named(match[0], latents[int(match[1])], space)
  return out


def _start(sub, generator, variables):
  """Start as moves are, and a function of moves that makes images."""
  if sub.config['space'] == 's':
    styles = read_styles(sub.under('start/s/'))

    def render(moves):
      return render_styles(
        generator, variables, {k: x + moves.get(k, 0) for k, x in styles.items()}
      )

    return {k: x for k, x in styles.items() if not k.endswith('.torgb')}, render
  ws = sub.given['start/w']
  ws = ws[:, None] if ws.ndim == 2 else ws

  def render(moves):
    shape = (len(ws), generator.synthesis.num_ws, ws.shape[2])
    moved = jnp.broadcast_to(ws + moves['ws'], shape)
    return generator.apply(variables, moved, 'const', method='image')

  return {'ws': ws}, render


def _columns(rows):
  """[NamedTuple of x] -> {field: [x]}."""
  return {name: [getattr(row, name) for row in rows] for name in rows[0]._fields}


def _named(name, moves, space):
  if space == 's':
    return {f'{name}/{layer}': x for layer, x in moves.items()}
  return {name: moves['ws'][:, 0] if space == 'w' else moves['ws']}


# ---- mapper


def latent_mapper(sub):
  """What a mapper says, its loss and gradients; or a training."""
  config, given = sub.config, sub.given
  for key, value in NOT_MODELLED.items():
    config.expect(key, value)
  generator, variables = read_network(sub)
  tower, texts = read_tower(sub, original_view(config)), given['text_features']
  settings, module = _mapper(config, generator, variables)
  is_training = 'steps' in config
  latents = read_styles(given.under('s/')) if settings.space == 's' else given['w']
  example = _at(latents, 0) if is_training else latents
  arrays = given.under('init/M/' if is_training else 'M/')
  params = mapper.params({name: arrays[name] for name in arrays}, module, example)

  def moved(params, latents):
    said = module.apply({'params': params}, latents)
    moves = jax.tree.map(lambda x: settings.strength * x, said)
    if settings.space == 's':
      return said, moves, {k: x + moves.get(k, 0) for k, x in latents.items()}
    return said, moves, latents + moves

  def render(latents):
    if settings.space == 's':
      return render_styles(generator, variables, latents)
    return generator.apply(variables, latents, 'const', method='image')

  def compute(latents, params):
    _, moves, hat = moved(params, latents)
    return mapper_training.mapper_losses(settings, moves, tower.loss(render(hat), texts))

  if is_training:
    state, out = _training(sub, settings, compute, params, latents)
    return out | _by_layer('final_delta', moved(state.current, example)[0], example)

  @jit
  def everything(params, latents):
    losses = compute(latents, params)
    grad = jax.grad(lambda params: compute(latents, params).loss)(params)
    said, _, hat = moved(params, latents)
    return losses, grad, said, hat, render(jax.tree.map(lambda x: x[:1], hat))

  losses, grad, said, hat, image = everything(params, latents)
  out = losses._asdict() | {'image': nchw(image)}
  out |= {f'grad/{name}': x for name, x in mapper.arrays(grad).items()}
  hat_name = 's_hat' if settings.space == 's' else 'w_hat'
  return out | _by_layer('delta', said, latents) | _by_layer(hat_name, hat, latents)


def _by_layer(name, found, latents):
  """{name: found}, or of styles each; those of torgb, which have no mapper, are 0."""
  if not isinstance(latents, dict):
    return {name: found}
  return {f'{name}/{layer}': found.get(layer, np.zeros_like(x)) for layer, x in latents.items()}


def _at(batches, i):
  return jax.tree.map(lambda x: x[i], batches)


def _mapper(config, generator, variables):
  """(Settings, module) of a config."""
  kind, levels = config['kind'], tuple(config['levels'])
  settings = mapper_training.Settings(
    space='s' if kind == 'stylespace' else 'w+',
    levels={'levels': levels, 'single': ('all',), 'stylespace': ()}[kind],
    normalized=config['normalize_axis'],
    clip_lambda=config['clip_lambda'],
    latent_l2_lambda=config['latent_l2_lambda'],
    strength=config['strength'],
    optimizer=config.get('optimizer', 'adam'),
    lr=config.get('lr', 0),
    adam_betas=tuple(config.get('adam_betas', (0.9, 0.999))),
    adam_eps=config.get('adam_eps', 1e-8),
  )
  if kind == 'stylespace':
    config.expect('normalize_axis', 'features')
    return settings, mapper.StyleMapper(tuple(style_space.channels(generator, variables)))
  return settings, mapper.LatentMapper(settings.levels, settings.normalized)


def _training(sub, settings, compute, params, batches):
  """(state after it, results) of a training on given batches of latents [steps,N,...]."""
  state = mapper_training.first_state(settings, params)

  @jit
  def step(state, latents):
    return mapper_training.train_step(partial(compute, latents), settings, state)

  states, losses = [state], []
  for i in range(sub.config['steps']):
    state, found = step(state, _at(batches, i))
    states.append(state)
    losses.append(found)
  out = {name: jnp.stack(x) for name, x in _columns(losses).items()}
  for name, state in (('step1', states[1]), ('final', states[-1])):
    out |= {f'{name}/M/{key}': x for key, x in mapper.arrays(state.current).items()}
  return state, out


# ---- global directions


def global_direction(sub):
  """One of the steps from statistics of styles to an edit."""
  config, given = sub.config, sub.given
  if 'ws' in given:
    found = global_directions.statistics(_sampler(sub), [given['ws']])
    return {
      f'{name}/{layer}': x for name in found._fields for layer, x in getattr(found, name).items()
    }
  if 'view' in config:
    return _features(sub)
  if 'delta_i' in given:
    return _edit(sub)
  if 'min_channels' in config:
    relevance = given['relevance']
    return {
      'num_channels': global_directions.count_kept(relevance, global_directions.BETAS),
      'beta': [global_directions.auto_beta(relevance, n) for n in config['min_channels']],
    }
  features = given['features']
  if 'templates' in config:
    config.expect('templates', features.shape[1])
    return {'dt': text_losses.text_direction(source=features[1], target=features[0])}
  return {'delta_i': global_directions.delta_i(features)}


def _sampler(sub):
  generator, variables = read_network(sub)
  config = types.SimpleNamespace(c_dim=generator.mapping.c_dim)
  return sampler.Sampler(pathlib.Path(), config, 0, 0, generator, variables, {}, None)


def _counts(sub, of):
  """{layer: channels} of the layers of a config, by given arrays."""
  return {layer: len(sub.given[f'{of}/{layer}']) for layer in sub.config['layers']}


def _features(sub):
  config = sub.config
  view = {name: config[name] for name in ('upsample', 'pool')} | {'normalize': True}
  pictures = {'float': False, 'uint8': True}[config['view']]
  found = global_directions.Statistics(
    *({k: v for k, v in sub.under(f'{name}/').items()} for name in ('mean', 'std'))
  )
  counts = _counts(sub, 'mean')
  measured = global_directions.Measured(
    counts, found, config['alpha'], config['cumulative'], pictures
  )
  tower = read_tower(sub, original_view(view))
  features = global_directions.ChannelFeatures(_sampler(sub), tower, measured)
  styles = read_styles(sub.under('s/'))
  # in three parts, as a user's would be: the last begins earlier, for its size
  size = -(-features.channels // 3)
  parts = [range(first, first + size) for first in (0, size, features.channels - size)]
  y = np.concatenate([features(styles, part) for part in parts[:2]])
  y = np.concatenate([y, features(styles, parts[2])[2 * size - parts[2].start :]])
  return {'features': y, 'delta_i': global_directions.delta_i(y)}


def _edit(sub):
  given, counts = sub.given, _counts(sub, 'std')
  std = sub.under('std/')
  relevance = np.asarray(given['delta_i'] @ given['dt'])
  selected = global_directions.select(relevance, sub.config['beta'])
  shifts = selected.shifts(counts, {layer: std[layer] for layer in std})
  styles = read_styles(sub.under('s/'))
  generator, variables = read_network(sub)

  @jit
  def render(alpha):
    moved = {layer: x + alpha * shifts.get(layer, 0) for layer, x in styles.items()}
    return render_styles(generator, variables, moved)

  images = [nchw(render(alpha)) for alpha in sub.config['alphas']]
  # layers that aren't among these, torgb's for example, stay
  shift = {layer: shifts.get(layer, np.zeros(x.shape[1])) for layer, x in styles.items()}
  return {
    'relevance': relevance,
    'num_channels': selected.channels,
    'images': np.stack(images, 1),
  } | {f'shift/{layer}': x for layer, x in shift.items()}


# ---- directional loss


TEXT_MEANS = {
  'normalized': text_losses.text_direction,
  'plain': text_losses.plain_text_direction,
}


def directional_loss(sub):
  """The loss, its gradient and the direction of the texts."""
  given = sub.given
  texts = TEXT_MEANS[sub.config['text_means']](given['source_texts'], given['target_texts'])

  def loss(images):
    return text_losses.directional_loss(given['source_images'], images, texts).mean()

  value, grad = jit(jax.value_and_grad(loss))(given['target_images'])
  return {'text_direction': texts, 'loss': value, 'grad_target': grad}


CASES = {
  'styleclip_global': global_direction,
  'styleclip_mapper': latent_mapper,
  'styleclip_optimization': optimization,
  'directional_loss': directional_loss,
}
