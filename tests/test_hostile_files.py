"""Hostile files: what `pickle` would run is refused by name, and nothing happens meanwhile."""

import argparse
import collections
import io
import pickle
import random
import resource
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from sg2jax import pretrained
from sg2jax.interop import mapper_file, network_file, pickle_reader, torch_file
from tests import foreign_files as files
from tests.foreign_files import (
  LEGACY,
  ZIP,
  Plain,
  Tensor,
  dumps,
  modules,
  mutations,
  rezip,
  save_legacy,
  save_legacy_of,
  save_script,
  save_zip,
  script_module,
  script_parts,
  script_zip,
)
from tests.runs import ROOT
from tests.test_network_file import pytorch_file, pytorch_parts, rosinality_file, tensorflow_file
from tests.test_readers import CLIP, script_tree
from tests.tricks import TRICKS, Evil, array, laughs, long_text, tf, tf_value, torch, torch_storage
from tests.tricks_script import SCRIPT_TRICKS, by_hand

EVENTS = []
RECORDING = []


def audited(data, reader=network_file.parse):
  """(what the reader gives, or its ValueError, audit events of the interpreter meanwhile)."""
  EVENTS.clear()
  RECORDING.append(True)
  try:
    result = reader(data)
  except ValueError as e:
    result = e
  finally:
    RECORDING.clear()
  return result, EVENTS


@pytest.fixture(scope='module', autouse=True)
def hook():
  """Records audit events; a hook stays as long as the process."""

  def record(event, args):
    if RECORDING and event != 'builtins.id':  # which the reader calls
      EVENTS.append((event, args))

  sys.addaudithook(record)


def legacy_rosinality():
  return rosinality_file(save=save_legacy)


MAKERS = [tensorflow_file, pytorch_file, rosinality_file, legacy_rosinality]


@pytest.mark.parametrize('make', MAKERS)
def test_reading_does_nothing_else(make):
  nets, events = audited(make()[0])
  assert set(nets) == {'G', 'D', 'G_ema'} and events == []
  # The hook does see what a pickle does.
  _, events = audited(b'cposix\ngetpid\n)R.', pickle.loads)
  assert events[-1] == ('pickle.find_class', ('posix', 'getpid'))


def weights():
  """[file of weights]: TorchScript's archives, state dicts, safetensors."""
  samples = sorted((CLIP / 'clip_files').glob('*.[ps]*'))
  return [save_script(script_tree()[0]), ZIP, LEGACY, *(path.read_bytes() for path in samples)]


def test_reading_weights_does_nothing_else():
  assert len(weights()) == 8
  for data in weights():
    arrays, events = audited(data, pretrained.parse)
    assert len(arrays) >= 8 and events == []


COLD = """
import pickle, sys
from sg2jax import pretrained
from sg2jax.interop import network_file
files, events = pickle.load(sys.stdin.buffer), []
def hook(event, args):
  if event != 'builtins.id':
    events.append((event, args))
sys.addaudithook(hook)
read = []
for parse, group in zip((pretrained.parse, network_file.parse), files):
  for data in group:
    try:
      read.append(sorted(parse(data))[:3])
    except ValueError as e:
      read.append(str(e))
found = events[:]
print(read, found)
"""


def test_the_first_file_that_a_process_reads_imports_nothing():
  evil = [
    b'\x80\x02Vposix\nVsystem\n\x93.',
    save_zip({'g': Evil()}),
    torch_storage(save_legacy_of(dumps(Evil()))),
  ]
  scripts = [*weights(), save_script(script_module(w=Evil()))]
  given = pickle.dumps([scripts, [make()[0] for make in MAKERS] + evil])
  command = [sys.executable, '-c', COLD]
  done = subprocess.run(command, input=given, stdout=subprocess.PIPE, check=True, cwd=ROOT)
  said = done.stdout.decode()
  assert said.count("['D', 'G', 'G_ema']") == 4, said
  assert said.count("['empty', 'logit_scale', 'transformer.turned']") == 1, said
  assert said.count('posix.system is refused') == 4 and said.endswith('] []\n'), said


# A line for each module.
NAMES = """
  builtins: eval exec getattr __import__ open compile map bytearray
  __builtin__: eval
  os: system popen execv environ
  nt: system
  posix: system
  subprocess: Popen check_output
  pty: spawn
  shutil: rmtree
  socket: socket
  ctypes: CDLL
  importlib: import_module
  runpy: run_path
  timeit: timeit
  pdb: run
  functools: partial reduce
  operator: attrgetter methodcaller itemgetter
  itertools: starmap
  codecs: decode encode
  _codecs: decode
  pickle: loads
  _pickle: loads
  marshal: loads
  types: FunctionType CodeType
  copyreg: _reconstructor __newobj__
  copy_reg: _reconstructor
  numpy: load fromfile memmap
  numpy.core.records: fromfile
  numpy.testing._private.utils: runstring
  torch: load
  torch.jit: load
  torch.hub: load
  torch.storage: UntypedStorage
  torch._utils: _rebuild_sparse_tensor _rebuild_parameter_with_state
  torch._tensor: _rebuild_from_type_v2
  torch_utils.persistence: persistent_class
  dnnlib.util: call_func_by_name get_obj_by_name open_url
  joblib: load
  cloudpickle: loads
  dill._dill: _create_function
  webbrowser: open
  pip: main
  multiprocessing.context: Process
  asyncio: create_subprocess_shell
  code: interact
  bdb.Bdb: run
  pathlib.Path: write_text
  zipfile: ZipFile
  tempfile: mktemp
  logging.config: dictConfig
  yaml: unsafe_load
  sys: modules
  __main__: main
  tensorflow.io: write_file
  jax.numpy: load
"""
DEEP = [
  ('numpy', 'ndarray.__class__.__base__'),
  ('dnnlib.util', 'EasyDict.__init__.__globals__'),
  ('dnnlib.util', 'os.system'),
  ('torch._utils', '_rebuild_tensor_v2.__globals__'),
  ('numpy', 'dtype\n'),
  ('ｏｓ', 'system'),
  ('collections', 'OrderedDict.update'),
]


# In pickles of TorchScript: at the start, as an attribute.
PLACES = [b'here', b'BLOCK)\x81}X\1\0\0\0wheresb']


def names():
  lines = [line.strip().partition(': ') for line in NAMES.strip().splitlines()]
  return [(module, name) for module, _, found in lines for name in found.split()] + DEEP


def test_every_other_name_is_refused_wherever_it_is():
  """As a call, a value, of remembered texts; at the start, in a variable, in a hidden pickle, in a
  module of TorchScript.
  """
  assert len(names()) > 80
  for module, name in names():
    direct = long_text(module) + long_text(name)
    stack = long_text(module) + b'\x94' + long_text(name) + b'\x94' + b'00h\0h\1\x93'
    ways = [stack + end for end in (long_text('ls') + b'\x85R', b'', b')\x81', b')}\x92', b'}b')]
    if module.isascii() and '\n' not in name:
      ways.append(f'c{module}\n{name}\n'.encode())
    whole = [b'\x80\x04' + way + b'.' for way in ways]
    hidden = [torch_storage(save_legacy_of(data)) for data in whole]
    inside = [tf_value(way.replace(b'h\0h\1', direct)) for way in ways]
    refused = pickle_reader.describe(pickle_reader.Global(module, name)) + ' is refused'
    scripts = [by_hand(place.replace(b'here', way)) for way in ways for place in PLACES]
    networks = [(data, network_file.parse) for data in whole + hidden + inside]
    for data, reader in networks + [(data, torch_file.parse) for data in scripts]:
      error, events = audited(data, reader)
      assert isinstance(error, ValueError) and refused in str(error) and events == [], error


def evil_places():
  """{place: file in which an honest writer's value is replaced by one that runs a shell}."""
  evil = Evil()
  persistent = {'type': 'class', 'version': 6, 'module_src': '', 'class_name': 'G', 'state': {}}
  tensor = Tensor(array(2)).args
  parameter = (Tensor(array(2)), True, collections.OrderedDict())

  def each(args):
    """The arguments with one of them replaced, for each of them."""
    return [args[:i] + (evil,) + args[i + 1 :] for i in range(len(args))]

  files_ = {
    'state of a tensor': torch(Plain(files.rebuild_tensor, tensor, {'__class__': evil})),
    'bytes of a storage': torch_storage(evil),
    'what is saved beside': dumps({'G': modules({}, 'G'), 'augment_pipe': evil}),
    'an array of objects': tf(variables=[('w', np.array([evil], object))]),
    'a key': dumps({'G': modules({}, 'G'), evil: 1}),
    'alone': dumps(evil),
    'in a tuple': dumps((evil, evil, evil)),
  }
  for key in (
    *('version', 'name', 'static_kwargs', 'components', 'build_module_src', 'build_func_name'),
    *('variables', 'unheard_of'),
  ):
    files_[f'{key} of a TensorFlow network'] = tf(**{key: evil})
  for key in (
    *('_parameters', '_buffers', '_modules', '_init_args', '_init_kwargs', '_backward_hooks'),
    *('_forward_hooks', 'unheard_of'),
  ):
    files_[f'{key} of a module'] = torch(**{key: evil})
  for key in persistent:
    made = Plain(files.rebuild_module, (persistent | {key: evil},))
    files_[f'{key} of a persistent object'] = dumps({'G': made})
  for i, args in enumerate(each(tensor)):
    files_[f'argument {i} of a tensor'] = torch(Plain(files.rebuild_tensor, args))
  for i, args in enumerate(each(parameter)):
    files_[f'argument {i} of a parameter'] = torch(Plain(files.rebuild_parameter, args))
  for save in (save_zip, save_legacy):
    for key in ('g', 'd', 'g_ema', 'latent_avg', 'g_optim', 'args', 'unheard_of'):
      files_[f'{key} of a checkpoint, {save.__name__}'] = save({'g': {}, key: evil})
  return files_


def test_a_shell_is_refused_at_every_place():
  places = evil_places()
  assert len(places) > 40
  for place, data in places.items():
    error, events = audited(data)
    assert 'posix.system is refused' in str(error) and events == [], (place, error)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize(
  'tricks, reader', TRICKS + [(tricks, torch_file.parse) for tricks in SCRIPT_TRICKS]
)
def test_tricks_are_refused_by_name_in_a_short_time(tricks, reader):
  for trick, (data, said) in tricks().items():
    start = time.process_time()
    error, events = audited(data, reader)
    assert isinstance(error, ValueError) and said in str(error) and events == [], (trick, error)
    assert str(error).isprintable() and len(str(error)) < 400, trick
    assert time.process_time() - start < 10, trick


def test_a_small_pickle_can_not_take_long_or_much():
  """Sharing doubles at each level: 2^90 paths."""
  doubled = b']' + b'q\x000]h\0ah\0a' * 90
  start = time.process_time()
  pickle_reader.parse(doubled + b'\x94' * 1000 + b'.')
  assert time.process_time() - start < 10


class Shared:
  """What writers of storages don't look into."""

  def __init__(self, value):
    self.value = value

  def __reduce__(self):
    return argparse.Namespace, (), {'value': self.value}


@pytest.mark.parametrize('save', [save_zip, save_legacy])
def test_what_is_skipped_costs_nothing_and_its_storages_are_found(save):
  odd = collections.OrderedDict(a=Tensor(array(3)))
  odd._metadata = [Tensor(array(5))]
  value = {
    'g': {'w': Tensor(array(2))},
    'args': Shared(laughs(40)),
    'g_optim': [(Tensor(array(4)),)],
    'ada': np.float64(0.5),
    'odd': odd,
  }
  start = time.process_time()
  assert list(network_file.parse(save(value))['G'].arrays) == ['w']
  assert time.process_time() - start < 10


# ---- mutations

FRAGMENTS = [
  *(b'R', b'b', b'\x81', b'\x92', b'\x93', b'0', b'2', b'(', b't', b'u', b'a', b'}', b']', b')'),
  *(b'N', b'K\0', b'\xff' * 8, b'\0' * 8, b'q\0', b'h\0', b'h\1', b'h\2', b'\x94', b'f4', b'O8'),
  *(b'cposix\nsystem\n', b'Vls\n\x85R', b'\x8c\5posix\x8c\6system\x93', b'.'),
  *(b'c__torch__\nA\n', b'c__torch__\nA\n)\x81}b', b'Q', b's'),
  *(b'cnumpy\nndarray\n', b'cnumpy\ndtype\n', b'ctorch.storage\n_load_from_bytes\n'),
  b'ccollections\nOrderedDict\n)R',
]


def mutants(count):
  """Files with a few changes each: whole ones (hidden pickles among what changes), and pickles in
  archives that are whole.
  """
  rng = random.Random(1)
  good = rosinality_file()[0]
  torch_net = {'G_ema': modules(pytorch_parts()[0], 'Generator', z_dim=3)}
  whole = [
    *(tensorflow_file(protocol)[0] for protocol in (2, 4, 5)),
    dumps(torch_net, 2),
    dumps(torch_net, 4),
    legacy_rosinality()[0],
    LEGACY,
    good,
  ]
  archived = zipfile.ZipFile(io.BytesIO(good)).read('archive/data.pkl')
  for seeds in (whole, [archived]):
    for data in mutations(seeds, count * len(seeds) // (len(whole) + 1)):
      data = with_fragments(data, rng)
      yield data if seeds is whole else rezip(good, {'data.pkl': data})


def with_fragments(data, rng):
  """`data` with up to two of FRAGMENTS in it."""
  for _ in range(rng.randrange(3)):
    at = rng.randrange(len(data))
    data = data[:at] + rng.choice(FRAGMENTS) + data[at + rng.choice((0, 1, 1, 2)) :]
  return data


def script_mutants(count, seed=0):
  """TorchScript's archives with a few changes each: in the whole file, in the list of its parts,
  and, in archives that are whole, in the pickle.
  """
  rng = random.Random(seed)
  module = script_tree()[0]
  good = save_script(module)
  parts = script_parts(module)
  start = good.index(b'PK\1\2')
  for i, (whole, ending, tree) in enumerate(
    zip(*(mutations([x], count, seed) for x in (good, good[start:], parts['data.pkl'])))
  ):
    match i % 4:
      case 0:
        yield whole
      case 1:
        yield good[:start] + ending
      case 2:
        yield script_zip(parts | {'data.pkl': tree})
      case _:
        changed = with_fragments(parts['data.pkl'], rng)
        yield script_zip(parts | {'data.pkl': changed})


def memory():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def arrays_of_networks(nets):
  return [x for net in nets.values() for x in net.arrays.values()]


def check_mutants(found, count, reader=network_file.parse, arrays_of=arrays_of_networks):
  """Of `count` files, `found`: each is read or refused, in a short time, and nothing happens."""
  before, read, tried = memory(), 0, 0
  for data in found:
    start = time.process_time()
    result, events = audited(data, reader)  # anything but a ValueError is an error here
    assert events == [], events
    assert time.process_time() - start < 10
    tried += 1
    if not isinstance(result, ValueError):
      read += 1
      size = sum(x.nbytes for x in arrays_of(result))
      assert size <= 4 * len(data) + 100_000
  assert tried > count - 10 and count // 50 < read < count * 9 // 10
  assert memory() - before < 200  # MB


@pytest.mark.smoke
@pytest.mark.filterwarnings('error')
def test_mutated_files_are_read_or_refused():
  check_mutants(mutants(2000), 2000)


@pytest.mark.slow
@pytest.mark.filterwarnings('error')
def test_100_000_mutated_files_are_read_or_refused():
  check_mutants(mutants(100_000), 100_000)


def check_script_mutants(count, seed):
  check_mutants(script_mutants(count, seed), count, torch_file.parse, dict.values)


@pytest.mark.filterwarnings('error')
def test_mutated_torchscript_archives_are_read_or_refused():
  check_script_mutants(2000, 0)


@pytest.mark.slow
@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('seed', range(1, 5))
def test_100_000_mutated_torchscript_archives_are_read_or_refused(seed):
  """A quarter of them each."""
  check_script_mutants(25_000, seed)


@pytest.mark.filterwarnings('error')
def test_mutated_state_dicts_are_read_or_refused():
  refused = 0
  for data in mutations([LEGACY, ZIP], 2000):
    refused += isinstance(audited(data, torch_file.parse)[0], ValueError)
  assert 700 < refused < 2000


@pytest.mark.filterwarnings('error')
def test_mutated_mappers_are_read_or_refused():
  state = {
    'mapper.course_mapping.mapping.1.weight': Tensor(np.ones((4, 4), np.float32)),
    'decoder.convs.0.conv.weight': Tensor(np.zeros((1, 2, 2, 3, 3), np.float32)),
  }
  tree = {'state_dict': collections.OrderedDict(state), 'opts': {'lr': 0.5, 'latents': None}}
  found = mutations([save_zip(tree), save_legacy(tree)], 1000)
  check_mutants(found, 1000, mapper_file.parse, lambda file: file.arrays.values())


@pytest.mark.filterwarnings('error')
def test_mutated_pickles_are_read_or_refused():
  """Of all protocols, and of opcodes that no file of a network has."""
  value = [collections.OrderedDict(a=1), {1, 2}, {'x': (1, 2.5, 'text', 2**70), 'y': None}]
  seeds = [pickle.dumps(value, protocol) for protocol in range(6)]
  refused = 0
  for data in mutations(seeds, 5000):
    refused += isinstance(audited(data, pickle_reader.parse)[0], ValueError)
  assert 2500 < refused < 5000
