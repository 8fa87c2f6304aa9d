"""Reference case of the formulas that turn features and statistics into scores."""

from functools import partial

import jax.numpy as jnp
import numpy as np

from sg2jax.evaluation import neighbors, ppl, scores
from sg2jax.interop.names import from_pytorch
from sg2jax.models.sizes import block_sizes
from tests.reference.cases_nets import _labels, read_generator
from tests.reference.check import jit


def _frechet(config, given):
  config.expect('dim', len(given['mu_real']))
  config.ignore('kind')  # how the statistics were made
  distance = scores.frechet_distance(
    *(given[f'{name}_{kind}'] for kind in ('real', 'gen') for name in ('mu', 'sigma'))
  )
  return {'fid_official': distance, 'fid_reference': distance}


def _statistics(config, given):
  x = given['x'][: config['max_items']]
  size = config['batches_of']
  found = scores.moments(x[i : i + size] for i in range(0, len(x), size))
  return {'mean': found.mean, 'cov': found.cov(), 'cov_unbiased_N_minus_1': found.cov(ddof=1)}


def _kid(config, given):
  real = given['real_features']
  fake = given['gen_features']
  sizes = config['num_subsets'], config['max_subset_size']
  drawn = scores.kid_subsets(len(real), len(fake), 0, *sizes)
  subsets = given['real_subset_indices'], given['gen_subset_indices']
  config.expect('feature_dim', real.shape[1])
  config.expect('subset_size_m', drawn[0].shape[1])
  if any(ours.shape != theirs.shape for ours, theirs in zip(drawn, subsets)):
    raise ValueError(f'subsets are {subsets[0].shape}, the code draws {drawn[0].shape}')
  return {'kid': np.mean([scores.mmd(real[i], fake[j]) for i, j in zip(*subsets)])}


def _inception_score(config, given):
  found = scores.inception_scores(given['probs'][: config['num_gen']], config['num_splits'])
  return {'mean': found.mean(), 'std': found.std()}


def _precision_recall(config, given):
  config.ignore('min_relative_margin')  # how far all decisions are from being ties
  found = neighbors.precision_recall(
    given['real_features'], given['gen_features'], config['nhood_size']
  )
  return {
    'precision': found.in_reals.mean(),
    'recall': found.in_fakes.mean(),
    'real_kth_distance': found.real_kth,
    'gen_kth_distance': found.fake_kth,
  }


def _interpolation(config, given):
  a, b, t = (jnp.asarray(given[name]) for name in 'abt')
  num_ws = config.get('num_ws', 3)  # the manifest has it in words
  ws = [jnp.repeat(x[:, None], num_ws, 1) for x in (a, b)]
  results = {}
  for name, at in ('t', t), ('t_plus_eps', t + config['epsilon']):
    results |= {f'slerp_{name}': ppl.slerp(a, b, at), f'lerp_w_{name}': ppl.lerp(*ws, at)}
  return results


def _aggregate(config, given):
  differences = given['features_t'].astype(np.float64) - given['features_t_plus_eps']
  found = (differences**2).sum(1) / config['epsilon'] ** 2
  return {'distances': found, 'ppl': ppl.trimmed(found).mean()}


def _squared(a, b):
  """Of images in [-1,1], as if they were in [0,1]."""
  return ((a - b) ** 2).sum((1, 2, 3)) / 4


def _sampler(config, given, under):
  if config['feature_extractor'] != 'flatten(image in [0,255]) / 255, no resizing':
    raise ValueError(f'feature_extractor={config["feature_extractor"]!r} is not understood')
  if config['space'] not in ppl.SPACES or config['sampling'] not in ('full', 'end'):
    raise ValueError(
      f'space={config["space"]!r}, sampling={config["sampling"]!r} is not understood'
    )
  net, _ = read_generator(config.sub('G'))
  params = from_pytorch(under('G/'), block_sizes(net.synthesis.resolution)[0])[0]
  variables = {'params': params, 'noise': from_pytorch(under('noise/'))[1]}
  t = given['t'] * (config['sampling'] == 'full')
  function = jit(
    partial(
      ppl.distances, net, _squared, config['space'], crop=config['crop'], eps=config['epsilon']
    )
  )
  return {
    'distances': function(variables, given['z0'], given['z1'], t, _labels(given, 'c', len(t), 0))
  }


KINDS = {
  'sigma_real': _frechet,
  'x': _statistics,
  'real_subset_indices': _kid,
  'probs': _inception_score,
  'a': _interpolation,
  'features_t': _aggregate,
}  # by an array that only this kind is given


def metrics(sub):
  """FID, moments, KID, inception score, precision and recall, and the parts of path length."""
  if 'z0' in sub.given:
    return _sampler(sub.config, sub.given, sub.under)
  if 'nhood_size' in sub.config:
    return _precision_recall(sub.config, sub.given)
  kind = [function for name, function in KINDS.items() if name in sub.given]
  if len(kind) != 1:
    raise ValueError(f'no metric, or several, are given {", ".join(sorted(sub.given))}')
  return kind[0](sub.config, sub.given)


CASES = {'metrics': metrics}
