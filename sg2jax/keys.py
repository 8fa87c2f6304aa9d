"""Random keys: one root for a seed, and from it one key for each purpose."""

import jax

PURPOSES = ('init', 'training', 'evaluation', 'sampling', 'projection')


def purpose_key(seed, purpose):
  """The key of a seed for one of PURPOSES.

  Folding in a constant for each keeps them apart: were the root itself used for more than one
  purpose, a key that one splits off could be the key of a minibatch of another. The order of
  PURPOSES is part of what a seed means.
  """
  return jax.random.fold_in(jax.random.key(seed), PURPOSES.index(purpose))
