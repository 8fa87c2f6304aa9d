"""What `doctor` looks at of the machine: packages, devices, memory, disk, cache, weights."""

from collections.abc import Iterator
import errno
import glob
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from typing import NamedTuple

from sg2jax import __version__, faults, files, paths
from sg2jax.tools.doctor_findings import GB, Finding, amount, install, note, ok, one_line, problem

DEVICE_SECONDS = 90  # that JAX may take to start: on TPUs it is half a minute
# What JAX says of its devices, asked for in a process of its own: a driver may hang or crash, and
# a GPU's memory must not be taken from a run that is on it.
ASK = """
import json, jax
devices = [
  dict(platform=d.platform, kind=d.device_kind, **{
    k: v for k, v in (d.memory_stats() or {}).items() if k == 'bytes_limit'})
  for d in jax.local_devices()
]
print('devices', json.dumps(devices))
"""
PCI = '/sys/bus/pci/devices/*'
LEAST_DISK = 1 * GB  # below it is a problem; with 10 times as much nothing is said
LEAST_MEMORY = 1 * GB
FULL = (errno.ENOSPC, errno.EDQUOT)
LARGE_CACHE = 50 * GB
BUILDS = {'tpu': 'tpu', 'cuda': 'cuda13', 'gpu': 'cuda13'}  # by what JAX_PLATFORMS may name
CUDA13_DRIVER = 580  # the first that runs CUDA 13


# ---- packages


class Requirement(NamedTuple):
  """A line of pyproject.toml's dependencies."""

  name: str
  least: str  # version; '': any
  extra: str  # that it belongs to; '': always needed

  def lacks(self) -> str:
    """What is wrong with what is installed; '' if nothing."""
    try:
      there = importlib.metadata.version(self.name)
    except importlib.metadata.PackageNotFoundError:
      return f'{self.name} is not installed'
    if numbers(there) < numbers(self.least):
      return f'{self.name} {there} is older than {self.least}'
    return ''

  def __str__(self) -> str:
    return f'{self.name}>={self.least}' if self.least else self.name


def numbers(version: str) -> tuple[int, ...]:
  """(0, 10, 1) of '0.10.1.dev3': what counts against a lower bound, which is all that we have."""
  return tuple(map(int, re.match(r'(?:\d+\.)*\d+|', version)[0].split('.'))) if version else ()


def requirements() -> tuple[str, list[Requirement]]:
  """The oldest Python that will do, and packages: of the clone we run from, or as installed."""
  file = pathlib.Path(__file__).parents[2] / 'pyproject.toml'
  if file.exists():
    project = tomllib.loads(file.read_text())['project']
    python = project['requires-python']
    lines = [(text, '') for text in project['dependencies']]
    for extra, texts in project['optional-dependencies'].items():
      lines += [(text, extra) for text in texts]
  else:
    python = importlib.metadata.metadata('sg2jax')['Requires-Python']
    lines = []
    for text in importlib.metadata.requires('sg2jax') or []:
      found = re.search(r'extra == ["\'](\w+)', text)
      lines.append((text, found[1] if found else ''))
  split = [(re.match(r'([\w.-]+)(?:\[.*?\])?\s*(?:>=\s*([\w.]+))?', t), x) for t, x in lines]
  return python.lstrip('>= '), [Requirement(m[1], m[2] or '', extra) for m, extra in split]


def packages() -> Iterator[Finding]:
  """Python, the packages that everything needs, and the extras."""
  python, needed = requirements()
  here = platform.python_version()
  if numbers(here) < numbers(python):
    yield problem(f'Python {here} is older than {python}', f'make an environment of {python}')
  else:
    yield ok(f'sg2jax {__version__}, Python {here}, {platform.platform()}')
  if sys.platform not in ('linux', 'darwin'):
    yield problem(f'sg2jax does not train on {sys.platform}', 'use Linux, macOS or WSL')
  core = [x for x in needed if not x.extra]
  lacking = {x: x.lacks() for x in core}
  for requirement, text in lacking.items():
    if text:
      yield problem(text, f'pip install "{requirement}"')
  if not any(lacking.values()):
    shown = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
    versions = [f'{name} {importlib.metadata.version(name)}' for name in shown]
    yield ok(f'packages: {", ".join(versions)}; all {len(core)} that are needed')
  for extra in dict.fromkeys(x.extra for x in needed if x.extra):
    lacks = [text for x in needed if x.extra == extra and (text := x.lacks())]
    if lacks:
      yield note(f'extra [{extra}]: {", ".join(lacks)}', install(extra))
    else:
      yield ok(f'extra [{extra}]')
  yield from _plugins()


def _plugins():
  """JAX's parts for accelerators have to be of its own version."""
  base = _version('jaxlib')
  for name in ('jax-cuda12-plugin', 'jax-cuda13-plugin'):
    there = _version(name)
    if base and there and numbers(there)[:3] != numbers(base)[:3]:
      cuda = name.split('-')[1]
      yield problem(f'{name} {there} does not fit jaxlib {base}', f'pip install -U "jax[{cuda}]"')


def _version(name):
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return ''


# ---- devices


def accelerators() -> dict[str, str]:
  """{'gpu' or 'tpu': what shows it} of what this machine has, whether JAX uses it or not."""
  found = {}
  if os.path.exists('/dev/nvidiactl') or glob.glob('/dev/nvidia[0-9]*'):
    found['gpu'] = '/dev/nvidia*'
  smi = nvidia_smi()
  if smi:
    found['gpu'] = ', '.join(sorted({name for name, *_ in smi}))
  if glob.glob('/dev/accel[0-9]*'):
    found['tpu'] = '/dev/accel*'
  elif any(map(_is_tpu, glob.glob(PCI))):  # newer ones have /dev/vfio, as much else does
    found['tpu'] = 'on PCI'
  return found


def _is_tpu(device):
  """Whether it is of Google, and neither storage nor network nor a bridge."""
  try:
    vendor, kind = (pathlib.Path(device, name).read_text() for name in ('vendor', 'class'))
  except OSError:
    return False
  return vendor.strip() == '0x1ae0' and not kind.startswith(('0x01', '0x02', '0x06'))


def nvidia_smi() -> list[list[str]]:
  """[name, driver, MiB used, MiB in all] of each GPU; empty where NVIDIA's tool isn't."""
  tool = shutil.which('nvidia-smi')
  if not tool:
    return []
  query = '--query-gpu=name,driver_version,memory.used,memory.total'
  try:
    done = subprocess.run(
      [tool, query, '--format=csv,noheader,nounits'],
      capture_output=True,
      text=True,
      timeout=20,
      check=True,
    )
  except (OSError, subprocess.SubprocessError):
    return []
  rows = [[part.strip() for part in line.split(',')] for line in done.stdout.splitlines()]
  return [row for row in rows if len(row) == 4]


def jax_devices(seconds: float = DEVICE_SECONDS) -> tuple[list[dict], str]:
  """What JAX computes on, dict(platform, kind, bytes_limit?) each or none; and what it said."""
  env = os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false', 'TF_CPP_MIN_LOG_LEVEL': '3'}
  process = subprocess.Popen(
    [sys.executable, '-c', ASK],
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env=env,
    text=True,
    errors='replace',
  )
  try:
    said, err = process.communicate(timeout=seconds)
  except subprocess.TimeoutExpired:
    process.kill()  # and no wait: in a driver's call it may never end
    return [], f'no device started in {seconds:g} s'
  answer = [line for line in said.splitlines() if line.startswith('devices ')]
  lines = [line for line in err.splitlines() if line.strip()]
  # JAX's last line may be about how it shortened the traceback.
  telling = [line for line in lines if re.match(r'[\w.]*(Error|Exception): ', line)]
  last = (telling or lines or [''])[-1][:300]
  if process.returncode == 0 and answer:
    return json.loads(answer[-1].removeprefix('devices ')), last
  return [], last or f'Python ended with {process.returncode}'


def devices(found: list[dict], said: str) -> Iterator[Finding]:
  """What JAX computes on, and what it leaves idle; the arguments are what `jax_devices` returns."""
  if not found:
    yield problem(f'JAX starts no device: {said}', _of_no_device(said))
    return
  kinds = {}
  for device in found:
    room = f', {device["bytes_limit"] / GB:.1f} GB each' if 'bytes_limit' in device else ''
    name = f'{device["kind"]} ({device["platform"]}{room})'
    kinds[name] = kinds.get(name, 0) + 1
  used = {device['platform'] for device in found}
  listed = ', '.join(f'{count} x {name}' for name, count in kinds.items())
  yield ok(f'devices: {listed}; {os.cpu_count()} CPU cores')
  there = accelerators()
  if there and used == {'cpu'}:
    yield _idle(*next(iter(there.items())), said)
  for i, (name, _, taken, total) in enumerate(nvidia_smi()):
    if taken.isdigit() and total.isdigit() and int(taken) > int(total) / 5:
      yield note(
        f'GPU {i} ({name}): {taken} of {total} MiB are taken',
        'nvidia-smi names the process; CUDA_VISIBLE_DEVICES=NUMBER takes another GPU',
      )


def _of_no_device(error):
  if 'No module named' in error or 'ImportError' in error or 'jaxlib' in error:
    return 'pip install -U "jax>=0.10" jaxlib, with an accelerator "jax[cuda13]" or "jax[tpu]"'
  if platforms := os.environ.get('JAX_PLATFORMS'):
    builds = [build for kind, build in BUILDS.items() if kind in platforms.split(',')]
    how = f': pip install "jax[{builds[0]}]"' if builds else ''
    return f'unset JAX_PLATFORMS (it is {platforms}), or install what it names{how}'
  return (
    'end the process that holds the device, or ask on all hosts of a TPU slice at once; '
    'JAX_PLATFORMS=cpu goes on without it'
  )


def _idle(kind, shown, said):
  """Of an accelerator that JAX leaves idle."""
  what = f'{kind} {shown} is there, but JAX uses the CPU'
  if platforms := os.environ.get('JAX_PLATFORMS'):
    return note(f'{what}: JAX_PLATFORMS={platforms}', 'unset JAX_PLATFORMS')
  drivers = [numbers(driver)[:1] for _, driver, *_ in nvidia_smi()]
  is_old = drivers and min(drivers) < (CUDA13_DRIVER,)
  build = {'tpu': 'tpu', 'gpu': 'cuda12' if is_old else 'cuda13'}[kind]
  if said and (kind == 'tpu' and _version('libtpu') or _version(f'jax-{build}-plugin')):
    return problem(f'{what}: {said}', 'mend what JAX says there')
  return problem(what, f'pip install "jax[{build}]"')


# ---- memory, disk, cache


def memory() -> Iterator[Finding]:
  """The host's, of which a container may have less."""
  text = pathlib.Path('/proc/meminfo').read_text() if os.path.exists('/proc/meminfo') else ''
  kb = dict(re.findall(r'(\w+): +(\d+) kB', text))
  if 'MemAvailable' not in kb:
    yield note('memory: this system does not tell')
    return
  free = int(kb['MemAvailable']) * 1024
  total = int(kb['MemTotal']) * 1024
  group = pathlib.Path('/sys/fs/cgroup')
  limit = _number(group / 'memory.max')
  if limit and limit < total:
    total = limit
    free = min(free, limit - (_number(group / 'memory.current') or 0))
  what = f'memory: {free / GB:.1f} of {total / GB:.1f} GB free'
  if free < LEAST_MEMORY:
    yield problem(what, 'end other programs; the quickstart takes about 1 GB')
  else:
    yield ok(what)


def _number(file):
  try:
    return int(file.read_text())
  except (OSError, ValueError):  # 'max': no limit
    return None


def disk(name: str, place: pathlib.Path, elsewhere: str) -> Iterator[Finding]:
  """The room where a folder is or would be, and whether it may be written to.

  elsewhere: what takes another place.
  """
  place = place.absolute()
  code = faults.WriteError.code
  there = paths.nearest(place)
  if not there.is_dir():
    yield problem(f'{name} {place}: {there} is a file', elsewhere, code)
    return
  free = files.free_bytes(place)
  what = f'{name} {place}: {amount(free)} free'
  try:
    with tempfile.TemporaryFile(dir=there) as f:
      f.write(b'\0' * 4096)
      f.flush()
  except OSError as e:
    remedy = 'make room' if e.errno in FULL else 'ask for the permission'
    reason = f'{name} {place} can not be written to: {e.strerror}'
    yield problem(reason, f'{remedy}, or {elsewhere}', code)
    return
  if free < LEAST_DISK:
    yield problem(what, f'make room, or {elsewhere}', code)
  elif free < 10 * LEAST_DISK:
    yield note(what, 'enough for small runs; a checkpoint at 1024 px has 0.8 GB')
  else:
    yield ok(what)


def temporary() -> Iterator[Finding]:
  """The folder of temporary files, if it is of no use: without it little works."""
  found = disk('temporary files', pathlib.Path(tempfile.gettempdir()), 'export TMPDIR=DIR')
  yield from (finding for finding in found if finding.level == 'problem')


def cache() -> Iterator[Finding]:
  """The folder of what can be made again, and how much is in it."""
  place = paths.cache()
  home = paths.home_cache()
  if not os.environ.get(paths.VARIABLE) and place != home:
    place.rmdir()  # of this process alone, which keeps nothing
    yield note(
      f'cache: {home or "no home folder"} can not be written to, so that everything is compiled '
      'and fetched again each time',
      f'export {paths.VARIABLE}=DIR',
    )
    return
  yield from disk('cache', place, f'export {paths.VARIABLE}=DIR')
  parts = {}
  for part in sorted(place.iterdir()) if place.is_dir() else ():
    parts[part.name] = sum(f.stat().st_size for f in part.rglob('*') if f.is_file())
  if not parts:
    return
  listed = ', '.join(f'{name} {size / GB:.2f}' for name, size in parts.items())
  what = f'cache holds {sum(parts.values()) / GB:.2f} GB ({listed})'
  if sum(parts.values()) > LARGE_CACHE:
    yield note(what, f'rm -r {place}/NAME for what is old: it is made again, weights are fetched')
  else:
    yield ok(what)


# ---- weights


def weights() -> Iterator[Finding]:
  """Of other people's networks: which are here. Sizes are compared; `load` compares hashes."""
  from sg2jax import pretrained  # here: it imports packages that may be what is broken

  missing = []
  for name, known in pretrained.FILES.items():
    place = pretrained.find(name)
    if not place:
      missing.append(name)
    elif (size := place.stat().st_size) != known.bytes:
      yield problem(
        f'weights {name}: {place} has {size:,} bytes instead of {known.bytes:,}',
        f'delete it; {pretrained.TOOL} {name}',
        faults.WeightsError.code,
      )
    else:
      yield ok(f'weights {name}: {place}')
  has_clip = any(name not in missing for name in pretrained.CLIP)
  for name in missing:
    # One CLIP is enough for whoever edits by text.
    if name in pretrained.CLIP and (has_clip or name != pretrained.CLIP[0]):
      continue
    what = one_line(pretrained.FILES[name].what)
    yield note(f'weights {name} missing ({what})', f'{pretrained.TOOL} {name}')
