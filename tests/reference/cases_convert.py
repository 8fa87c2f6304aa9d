"""Reference case of the import of networks in TensorFlow's names and layouts: the functions that the tool goes through."""
from functools import partial

import jax.numpy as jnp
import numpy as np

from sg2jax import build, convert
from sg2jax.interop.names import nchw, nhwc
from sg2jax.interop.network_file import Net
from sg2jax.models.mapping import broadcast, truncate
from tests.reference.cases_nets import _truncation
from tests.reference.check import jit


def tf_checkpoint_import(sub):
  """ws, images and logits of converted networks."""
  config, given = sub.config, sub.given
  config.ignore('equivalent_pytorch')  # what theirs became
  net = lambda letter, key: Net('tensorflow', '', config[key], sub.under(f'tf/{letter}/'))
  nets = {'G_ema': net('G', 'generator_static_kwargs')}
  if 'discriminator_static_kwargs' in config:
    nets['D'] = net('D', 'discriminator_static_kwargs')
  found = convert.of_nets(nets)
  dtype = jnp.zeros(()).dtype  # float32 too, if that was asked for
  generator, discriminator = build.networks(build.complete(found.config), found.config['c_dim'])
  variables = {'params': found.state['g_ema'], 'noise': found.state['noise']}
  labels = lambda name, batch: given[name] if name in given else np.zeros((batch, 0), dtype)
  results, z = {}, given['z']
  w = jit(partial(generator.apply, method='map'))(variables, z, labels('gen_c', len(z)))
  ws = results['ws'] = broadcast(w, generator.synthesis.num_ws)
  image = jit(lambda v, ws: generator.apply(v, ws, 'const', method='synthesize'))
  none = jit(lambda v, ws: generator.apply(v, ws, 'none', method='synthesize'))
  for name in sub.wanted:
    if name in ('img_const', 'img_none', 'img_noise_none'):
      results[name] = nchw((image if name == 'img_const' else none)(variables, ws))
    elif name.startswith('img_psi'):
      results[name] = nchw(image(variables, truncate(ws, found.state['w_avg'], *_truncation(name))))
  if 'D' in nets:
    img = nhwc(given['img'])
    results['logits'] = jit(discriminator.apply)({'params': found.state['d']}, img, labels('img_c', len(img)))
  return results


CASES = {'tf_checkpoint_import': tf_checkpoint_import}
