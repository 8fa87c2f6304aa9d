"""A process that compiles one step for a GPU that isn't here, without code: see compile.py.

It reads a job from its input, and prints the figures.
"""

import json
import os
import pathlib
import sys

from sg2jax import configurations
from sg2jax.planning import compile as compile_lib
from sg2jax.planning import devices


def main() -> None:
  """Does the job, and ends the process at once: XLA is still at work in a thread."""
  job = json.load(sys.stdin)
  target, found = devices.resolve(devices.parse(job['device'], job['devices']))
  steps = compile_lib.Steps(configurations.complete(job['config']), target, found)
  folder = pathlib.Path(job['folder'])
  figures = compile_lib.until_assigned(steps.lower(job['step']), target, folder)
  print(json.dumps(figures), flush=True)
  os._exit(0)


if __name__ == '__main__':
  main()
