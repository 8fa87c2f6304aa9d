"""`python -m tests.two_processes INDEX PORT FLAGS`: the evaluate tool as process INDEX of two, for
test_evaluation.py.
"""

import sys

import jax

from sg2jax import cli
from sg2jax.tools import evaluate

if __name__ == '__main__':
  index, port = map(int, sys.argv[1:3])
  del sys.argv[1:3]
  jax.distributed.initialize(f'localhost:{port}', 2, index)
  evaluate.define_flags()
  cli.run(evaluate.main)
