"""What a run was started with, for whoever looks at its folder later."""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from typing import Any

import jax

from sg2jax import __version__, files

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def save_run(
  workdir: str | os.PathLike, config: dict[str, Any], labels: Any = None, changes: list[str] = ()
) -> None:
  """Writes config.json, labels.json and one more start in environment.json into WORKDIR.

  Args:
    workdir: created if need be.
    config: JSON values.
    labels: data.labels.Labels of the data set; None: it has none.
    changes: what is other than in the run that goes on, as lines for people.
  """
  if jax.process_index() != 0:
    return
  workdir = pathlib.Path(workdir)
  if labels is None:
    with files.writing(workdir):
      (workdir / 'labels.json').unlink(missing_ok=True)
  else:
    files.write_atomic(workdir / 'labels.json', labels.to_json())
  files.write_atomic(workdir / 'config.json', json.dumps(config, indent=2, sort_keys=True) + '\n')
  path = workdir / 'environment.json'
  with files.writing(path):
    text = path.read_text() if path.exists() else '[]'
  try:
    starts = json.loads(text)
  except ValueError:
    starts = [{'unreadable': text}]
  start = environment()
  if changes:
    start['changes'] = list(changes)
  files.write_atomic(path, json.dumps([*starts, start], indent=2) + '\n')


def environment() -> dict[str, Any]:
  """What this process runs on: versions, devices, host, command line and git commit."""
  devices = jax.devices()
  return {
    'time': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
    'host': platform.node(),
    'platform': platform.platform(),
    'command': shlex.join([sys.executable, *sys.orig_argv[1:]]),
    'git_commit': _git_commit(),
    'python': platform.python_version(),
    'sg2jax': __version__,
    **{name: _version(name) for name in PACKAGES},
    'device': devices[0].device_kind,
    'backend': devices[0].platform,
    'devices': len(devices),
    'processes': jax.process_count(),
    'cpus': os.cpu_count(),
  }


def _version(package):
  with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    return importlib.metadata.version(package)


def _git_commit():
  """Commit of the checkout that this file is in, with -dirty if changed; None outside of one."""
  root = pathlib.Path(__file__).resolve().parents[2]
  # An installed copy may lie inside another project's checkout; its commit would mislead.
  if not (root / '.git').exists():
    return None
  command = ['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
  with contextlib.suppress(OSError, subprocess.TimeoutExpired):
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=5, check=False)
    return done.stdout.strip() or None
