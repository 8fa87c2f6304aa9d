"""Random keys: one root for a seed, and from it one key for each purpose."""

import jax

# The order is part of what a seed means: only append.
PURPOSES = (
  'init',
  'training',
  'evaluation',
  'sampling',
  'projection',
  'mapper',
  'views',
  'memorising',
)


def purpose_key(seed: int, purpose: str) -> jax.Array:
  """The key of a seed for one of PURPOSES.

  Folding in a constant for each keeps them apart: were the root itself used for more than one
  purpose, a key that one splits off could be the key of a minibatch of another.
  """
  return jax.random.fold_in(jax.random.key(seed), PURPOSES.index(purpose))
