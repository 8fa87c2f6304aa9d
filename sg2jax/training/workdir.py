"""The folder of a run: what it was started with, and whether it may go on with a configuration."""

from collections.abc import Mapping
import contextlib
from functools import partial
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

from flax import traverse_util
import jax
from jax.sharding import Mesh

from sg2jax import __version__, build, bundle, configurations, files, paths, sampler, sharding
from sg2jax import state as state_lib
from sg2jax.faults import UsageError
from sg2jax.state import TrainState
from sg2jax.training import checkpoint

# Fields that may differ from the run that a workdir holds: they change how long or how it is
# watched, not what is computed.
FREE = (
  'total_kimg',
  'tick_kimg',
  'snapshot_kimg',
  'keep',
  'swd_images',
  'metrics',
  'metrics_kimg',
  'profile',
  'watchdog_seconds',
  'device',
  'data.dir',
  'g.remat',
  'd.remat',
)
# These may, too, but it is said: they change what is computed, but not what it is about.
SAID = ('microbatch', 'precision')
# What belongs to the data set, which `config.data.allow_change` lets be another.
OF_DATA = ('data.name', 'data.allow_change', 'data_hash', 'data_title', 'data_images')
# Files in runs that no training made, and what their networks are.
WITHOUT_STATE = {'import.json': 'an imported', 'nada.json': 'a fine-tuned'}
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def workdir_path(workdir: str | os.PathLike) -> paths.Path:
  """The workdir as a path or an address.

  Raises UsageError for a file, an address that can't be read, and a name that isn't UTF-8.
  """
  place = paths.place(workdir, f'--workdir={workdir}')
  paths.check_name(place, f'--workdir={workdir}')
  with files.reading(place):
    there = place if paths.is_address(place) else paths.nearest(place.absolute())
    if there.exists() and not there.is_dir():
      raise UsageError(f'--workdir={workdir}: {there} is a file; name a directory')
  return place


# ---- comparison of configurations


def data_values(source: Any) -> dict[str, Any]:
  """What config.json says of a data.Source, so that another one is noticed and named."""
  return {
    'c_dim': source.c_dim,
    'data_hash': source.hash,
    'data_title': source.name,
    'data_images': len(source),
  }


def settings(config: Any) -> dict[str, Any]:
  """{'g.z_dim': 512, ...}: a configuration of any version, flat, as JSON values."""
  tree = json.loads(json.dumps(configurations.spell_out(configurations.complete(config))))
  return traverse_util.flatten_dict(tree, sep='.')


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, str]:
  """{field: 'a there, b here'} of two `settings`; a field that one lacks doesn't count."""
  return {
    name: f'{there[name]} there, {here[name]} here'
    for name in sorted(there.keys() & here.keys())
    if there[name] != here[name]
  }


def check_workdir(values: dict[str, Any], workdir: paths.Path, labels: Any = None) -> list[str]:
  """Compares a configuration with that of the run which a workdir holds. Creates nothing.

  Args:
    values: the configuration as a dict; once the data set is known with `data_values` of it.
    workdir: path of the run.
    labels: data.labels.Labels of the data set, or None.

  Returns:
    What is another and may be, as lines for people.

  Raises:
    UsageError: it holds a run of another configuration or data set.
  """
  path = workdir / 'config.json'
  with files.reading(workdir):
    is_bundle = bundle.is_there(workdir)  # whose config.json training would write over
    if not is_bundle and not (path.exists() and checkpoint.begun(workdir)):
      return []  # nothing has been trained yet
    kinds = [what for name, what in WITHOUT_STATE.items() if (workdir / name).exists()]
    kinds += ['a published'] * is_bundle
    text = '' if kinds else path.read_text()
  restart = (
    f'a new --workdir with --config.init_from={shlex.quote(str(workdir))} starts from its weights'
  )
  if kinds:
    raise UsageError(
      f'--workdir={workdir} holds {kinds[0]} network, of which there is no state of training to '
      f'go on from; {restart}'
    )
  try:
    old = settings(json.loads(text))
  except (ValueError, AttributeError, TypeError, KeyError):
    raise UsageError(
      f'{path} is not readable as JSON; restore it or use another --workdir'
    ) from None
  new = settings(values)
  # What only one of the two has came with the data set, or with another version.
  differ = differences(old, new)
  pictures = _other_pictures(old, new, workdir, labels)
  free = (*FREE, *SAID, *OF_DATA)
  refused = [f'{name}: {text}' for name, text in differ.items() if name not in free]
  if refused:
    raise UsageError(
      f'--workdir={workdir} holds a run of another configuration '
      f'({"; ".join(refused + pictures)}); use another '
      f'workdir, or the configuration of that run; {restart}'
    )
  if pictures and not new['data.allow_change']:
    raise UsageError(
      f'--workdir={workdir} holds a run on other pictures ({"; ".join(pictures)}); '
      f'--config.data.allow_change=True goes on with these; {restart}'
    )
  lines = [f'{name}: {differ[name]}' for name in SAID if name in differ]
  lines += [f'pictures: {text}' for text in pictures]
  return lines + _other_augmentation(old, new)


def _other_augmentation(old, new):
  """A line if augment.pipeline=auto is another for so many pictures, as a list."""
  if 'data_images' not in old or 'data_images' not in new:
    return []  # of before version 0.2, without augmentation
  there, here = (
    configurations.chosen_pipeline(x['augment.pipeline'], x['data_images']) or 'none'
    for x in (old, new)
  )
  if there == here:
    return []
  most = f'{configurations.AUTO_IMAGES:,}'
  return [f'augmentation: {there} there, {here} here (augment.pipeline=auto: none from {most} on)']


def _other_pictures(old, new, workdir, labels):
  """How the data sets of two flat configurations differ, as a list of text."""
  differences = []
  if 'data_hash' in old and 'data_hash' in new and old['data_hash'] != new['data_hash']:
    differences.append(f'{_describe_data(old)} there; {_describe_data(new)} here')
  before = sampler.read_labels(workdir, old.get('c_dim', 0)) if labels else None
  if before and before.names and labels.names and before.names != labels.names:
    differences.append(f'classes {before.listing()} there; {labels.listing()} here')
  return differences


def _describe_data(values):
  title = values.get('data_title') or values.get('data.name') or 'a data set'
  count = f'{values["data_images"]:,} images, ' if 'data_images' in values else ''
  return f'{title}, {count}hash {str(values["data_hash"])[:8]}'


# ---- what a run is started with


def save_run(
  workdir: str | os.PathLike, config: dict[str, Any], labels: Any = None, changes: list[str] = ()
) -> None:
  """Writes config.json, labels.json and one more start in environment.json into WORKDIR.

  To be called by one process of a job.

  Args:
    workdir: created if need be.
    config: JSON values.
    labels: data.labels.Labels of the data set; None: it has none.
    changes: what is other than in the run that goes on, as lines for people.
  """
  workdir = paths.place(workdir)
  if labels:
    files.write_atomic(workdir / 'labels.json', labels.to_json())
  else:
    with files.writing(workdir):
      (workdir / 'labels.json').unlink(missing_ok=True)
  files.write_atomic(workdir / 'config.json', json.dumps(config, indent=2, sort_keys=True) + '\n')
  path = workdir / 'environment.json'
  starts = []
  with contextlib.suppress(OSError, ValueError):  # it informs, and decides nothing
    starts = json.loads(path.read_text())
  start = environment() | ({'changes': list(changes)} if changes else {})
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
    **{name: importlib.metadata.version(name) for name in PACKAGES},
    'device': devices[0].device_kind,
    'backend': devices[0].platform,
    'devices': len(devices),
    'processes': jax.process_count(),
    'cpus': os.cpu_count(),
  }


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


# ---- going on


def resume(
  config: Any, batch: int, state: TrainState, manifest: dict, mesh: Mesh, log: Any
) -> TrainState:
  """A restored state, as this configuration goes on with it; says what is not as without the stop.

  Args:
    config: of this start.
    batch: images of a minibatch, at the stage of growing that the state is in.
    state: TrainState on all devices; it is used up.
    manifest: of its checkpoint.
    mesh: of the devices.
    log: report.Report.
  """
  if manifest['format'] < 2:
    log.say(
      'begun by version 0.1, which drew other random numbers: this run goes on from what was '
      'saved, but not bit for bit as that version would have'
    )
  elif manifest['format'] < 3 and config.data.mirror:
    log.say(
      'saved by a version before 0.7, which drew whether a picture is mirrored: from here on each '
      'comes both ways in an epoch, so pictures come in another order'
    )
  before = configurations.complete(manifest['meta']['config'])
  old = build.microbatch(before, batch)
  new = build.microbatch(config, batch)
  if old == new:
    return state
  log.say(
    f'microbatch: rounds of {old} images there, of {new} here: sums differ in rounding, w_avg and '
    'pl_mean move with each round, and the groups of minibatch stddev are those of a round'
  )
  if config.opt.formulation == 'tensorflow':
    return state  # it averages gradients over rounds
  # The other formulation sums them, and Adam's moments are of the sums.
  scale = partial(state_lib.scale_adam, factor=old / new)
  return jax.jit(scale, donate_argnums=0, out_shardings=sharding.replicated(mesh))(state)
