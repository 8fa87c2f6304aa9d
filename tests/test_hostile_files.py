"""Hostile files: what `pickle` would run is refused by name, and nothing happens meanwhile."""

import argparse
import collections
import io
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from sg2jax.interop import network_file, pickle_reader, torch_file
from tests import foreign_files as files
from tests.foreign_files import (
  LEGACY,
  ZIP,
  Module,
  Plain,
  Storage,
  Tensor,
  dumps,
  modules,
  mutations,
  network,
  rezip,
  save_legacy,
  save_legacy_of,
  save_zip,
)
from tests.runs import ROOT
from tests.test_network_file import pytorch_file, pytorch_parts, rosinality_file, tensorflow_file

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


COLD = """
import pickle, sys
from sg2jax.interop import network_file
files, events = pickle.load(sys.stdin.buffer), []
def hook(event, args):
  if event != 'builtins.id':
    events.append((event, args))
sys.addaudithook(hook)
read = []
for data in files:
  try:
    read.append(sorted(network_file.parse(data)))
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
  given = pickle.dumps([make()[0] for make in MAKERS] + evil)
  command = [sys.executable, '-c', COLD]
  done = subprocess.run(command, input=given, stdout=subprocess.PIPE, check=True, cwd=ROOT)
  said = done.stdout.decode()
  assert said.count("['D', 'G', 'G_ema']") == 4, said
  assert said.count('posix.system is refused') == 3 and said.endswith('] []\n'), said


# ---- honest files with something else in one place


class Evil:
  """Runs a shell when it is unpickled."""

  def __reduce__(self):
    return os.system, ('touch evil',)


def array(*shape):
  return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def tf(**state):
  """A TensorFlow network with other attributes in the file."""
  net = network('D_stylegan2', {'w': array(2)})
  net.__dict__ |= state
  return dumps(net)


def torch(tensor=None, **state):
  """A PyTorch network with another tensor, or with other attributes in the file."""
  return dumps({'G': Module('Generator', {'w': tensor or Tensor(array(2))}, state)})


def torch_storage(data):
  """A PyTorch network whose tensor has a storage of any bytes."""
  tensor = Tensor(array(2))
  return torch(
    Plain(files.rebuild_tensor, (Plain(files.load_from_bytes, (data,)), *tensor.args[1:]))
  )


def tf_value(value):
  """A TensorFlow network with a variable written by hand: a pickle without protocol and end."""
  marker = 'here it comes'
  data = dumps(network('D_stylegan2', {'w': marker}))
  text = pickle.dumps(marker, 4)[11:-1]
  assert data.count(text) == 1
  data = data.replace(text, value)
  at = data.index(b'\x95')  # a frame, whose size would be wrong
  return data[:at] + data[at + 9 :]


def long_text(text):
  data = text.encode()
  return b'X' + struct.pack('<I', len(data)) + data


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


def names():
  lines = [line.strip().partition(': ') for line in NAMES.strip().splitlines()]
  return [(module, name) for module, _, found in lines for name in found.split()] + DEEP


def test_every_other_name_is_refused_wherever_it_is():
  """As a call, a value, of remembered texts; at the start, in a variable, in a hidden pickle."""
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
    for data in whole + hidden + inside:
      error, events = audited(data)
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


# ---- tricks: {what: (file, what the reason says)}

PICKLES = {
  'nothing': (b'', 'exhausted'),
  'no stop': (b'N', 'exhausted'),
  'two values': (b'NN.', 'unfinished'),
  'no value': (b'.', 'there is none'),
  'open mark': (b'(N.', 'unfinished'),
  'no mark': (b't.', 'no mark'),
  'rest': (b'N.cposix\nsystem\n.', 'bytes follow'),
  'protocol': (b'\x80\x06N.', 'protocol 6'),
  'opcode': (b'\xfe.', 'unknown'),
  'INST': (b'(' + long_text('ls') + b'iposix\nsystem\n.', 'INST is not allowed'),
  'OBJ': (b'(cnumpy\nndarray\n' + long_text('ls') + b'o.', 'OBJ is not allowed'),
  'EXT1': (b'\x82\x01.', 'EXT1 is not allowed'),
  'EXT2': (b'\x83\x01\0.', 'EXT2 is not allowed'),
  'EXT4': (b'\x84\x01\0\0\0.', 'EXT4 is not allowed'),
  'NEXT_BUFFER': (b'\x97.', 'NEXT_BUFFER is not allowed'),
  'READONLY_BUFFER': (b'N\x98.', 'READONLY_BUFFER is not allowed'),
  'persistent': (b'Pposix.system\n.', "'posix.system' outside"),
  'any persistent': (b'cnumpy\nndarray\nQ.', 'numpy.ndarray outside'),
  'underflow': (b'N\x86.', 'there is none'),
  'call of a call': (b'cos\ngetenv\n)R)R.', 'must find Global'),
  'call of text': (b'X\x02\0\0\0os)R.', 'must find Global'),
  'arguments': (b'cos\ngetenv\nNR.', 'must find tuple'),
  'names': (b'K\x01K\x02\x93.', 'must be text'),
  'long name': (b'c' + b'a' * 300 + b'\nb\n.', '256'),
  'name with a blank': (b'cos\nsystem x\n.', 'without blanks'),
  'name that is not ASCII': ('cｏｓ\nsystem\n.'.encode(), 'cannot be decoded'),
  'unknown escape': (b'cpo\\six\nsystem\n.', 'cannot be decoded'),  # under -W error
  'keywords': (b'cos\ngetenv\n)}K\x01K\x02s\x92.', 'keywords'),
  'state of a class': (b'cos\nenviron\n}b.', 'must find Call'),
  'second state': (b'cos\ngetenv\n)R}b}b.', 'twice'),
  'append to text': (b'X\x01\0\0\0aNa.', 'must find list'),
  'late change': (b']q\0]q\x01h\0a0h\0Na0h\x01.', 'changes after'),
  'late change of a dict': (b'}q\0}U\1ah\0s0h\0U\1bK\1s.', 'changes after'),
  'cycle': (b']q\0h\0a.', 'itself'),
  'cycle of two': (b']q\0]q\x01h\0a0h\0h\x01a.', 'changes after'),
  'same key': (b'}K\1K\2sK\1K\2s.', 'twice'),
  'odd': (b'}(NNNu.', 'without a value'),
  'key': (b'})K\2s.', 'not simple'),
  'list as key': (b'}]K\2s.', 'not simple'),
  'huge key': (b'}\x8a\x09' + b'\1' * 9 + b'K\2s.', 'not simple'),
  'forgotten': (b'j\xff\xff\xff\xff.', 'not remembered'),
  'text': (b'\x8d' + b'\xff' * 8 + b'.', 'byte count'),
  'bytes': (b'\x8e' + b'\xff' * 7 + b'\x7f.', 'expected'),
  'bytearray': (b'\x96' + b'\0\0\0\0\1\0\0\0.', 'expected'),
  'negative size': (b'T\xff\xff\xff\xff.', 'byte count < 0'),
  'integer': (b'\x8b\x00\x00\x01\x00' + b'\1' * 65_536 + b'.', 'more than 8192 bits'),
  'cut integer': (b'\x8b\xff\xff\xff\x7f.', 'not enough data'),
  'digits': (b'I' + b'9' * 60_000 + b'\n.', 'digits'),
  'line': (b'V' + b'a' * 100_000, 'no newline'),
  'utf-8': (b'X\x01\0\0\0\xff.', 'decoded'),
  'deep tuples': (b')' + b'\x85' * 400_000 + b'.', 'deep'),
  'deep lists': (b']' * 100_000 + b'a' * 99_999 + b'.', 'deep'),
  'deep calls': (b'ca\nb\n' * 90_000 + b')' + b'R' * 90_000 + b'.', 'must find tuple'),
  'marks': (b'(' * 600_000, 'opcodes'),
  'values': (b'N' * 600_000, 'opcodes'),
}


def torch_tricks():
  """Of files of torch.save."""
  one = Storage(np.arange(6))
  float_ = files.STORAGES[np.dtype(np.float32)]
  odd = {
    'kind': ({'kind': files.named('torch', 'QUInt8Storage')}, 'torch.QUInt8Storage is refused'),
    'no kind': ({'kind': files.named('torch', 'Size')}, 'storage of an unknown kind: torch.Size'),
    'view': ({'view': (1, 2, 3)}, 'storage of an unknown kind'),
    'size': ({'size': '6'}, 'storage of an unknown kind'),
    'other kind': ({'key': one.key, 'kind': float_}, 'disagrees'),
    'path': ({'key': '../../passwd'}, "storage '../../passwd' is missing"),
  }
  tricks = {}
  for name, (identity, said) in odd.items():
    other = Tensor(array(6), Storage(array(6), **identity))
    tricks[name] = save_zip({'a': Tensor(np.arange(6), one), 'w': other}), said
  storage = Storage(array(2))
  state = {'w': Tensor(array(2), storage)}
  legacy = save_legacy(state)
  size = struct.pack('<q', 2)
  return tricks | {
    'shell': (save_legacy({'w': Evil()}), 'posix.system is refused'),
    'hidden pickle': (save_legacy(Plain(files.load_from_bytes, (b'a',))), 'bytes is refused'),
    'number': (save_legacy({'a': Tensor(array(1)), 'w': 1}), "'w' is 1, which is no tensor"),
    'list': (save_legacy([Tensor(array(1))]), 'holds list'),
    'built': (save_zip({'w': Plain(files.rebuild_tensor, state['w'].args, {'a': 1})}), 'no tensor'),
    'unnamed': (save_zip({1: Tensor(array(1))}), 'not text'),
    'name twice': (
      save_zip(Plain(collections.OrderedDict, ([['w', 1], ['w', 1]],))),
      'occurs twice',
    ),
    'cut': (LEGACY[:-1], 'cut off'),
    'cut pickle': (LEGACY[:300], 'byte'),
    'rest': (LEGACY + b'\0', '1 bytes follow'),
    'count': (legacy.replace(size, struct.pack('<q', 3)), 'not of 2'),
    'keys': (save_legacy(state, keys=['1']), 'not those of its tensors'),
    'spare key': (save_legacy(state, keys=[storage.key, 'b']), 'not those of its tensors'),
    'big-endian': (save_legacy(state, little_endian=False), 'little-endian'),
    'magic': (pickle.dumps(5, 2), 'not a file of torch.save'),
    'booleans': (save_zip({'w': Tensor(np.uint8([0, 1, 2]).view(bool).copy())}), 'booleans'),
    'compressed': (rezip(ZIP, compress=zipfile.ZIP_DEFLATED), 'compressed'),
    'no pickle': (rezip(ZIP, {'data.pkl': None}), 'without data.pkl'),
    'two pickles': (rezip(ZIP, {'b/data.pkl': b'N.'}), 'several data.pkl'),
    'traversal': (rezip(ZIP, {'../../etc/data.pkl': b'N.'}), 'several'),
    'absolute': (rezip(ZIP, {'/tmp/data.pkl': b'N.'}), 'several'),
    # Readers see either of two parts of one name.
    'doubled': (rezip(ZIP, {'data.pkX': b'N.'}).replace(b'data.pkX', b'data.pkl'), 'doubled'),
    'no storage': (rezip(ZIP, {'data/0': None}), "storage '0' is missing"),
    'short storage': (rezip(ZIP, {'data/0': b'1234'}), "storage '0'"),
    'endian': (rezip(ZIP, {'byteorder': b'big'}), 'little-endian'),
    'cut zip': (ZIP[:-30], 'broken zip'),
    'flipped bit': (ZIP.replace(np.float32(5).tobytes(), np.float32(6).tobytes()), 'CRC'),
  }


# Arrays by hand.
NEW_ARRAY = b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\x01btR'
ENCODE = b'c_codecs\nencode\n'


def dtype(kind='f4', state=b'(K\3U\1<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb'):
  return b'cnumpy\ndtype\n(' + long_text(kind) + b'\x89\x88tR' + state


def ndarray(shape=b'(K\2t', kind=dtype(), raw=b'C\x08' + b'\0' * 8):
  return tf_value(NEW_ARRAY + b'(K\1' + shape + kind + b'\x89' + raw + b'tb')


def frombuffer(rest):
  data = b'cnumpy.core.numeric\n_frombuffer\n(C\x08' + b'\0' * 8
  return tf_value(data + dtype() + rest + b'tR')


def array_tricks():
  big = b'(K\3U\1>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb'
  return {
    'objects': (ndarray(kind=dtype('O8')), "dtype 'O8'"),
    'void': (ndarray(kind=dtype('V8')), "dtype 'V8'"),
    'text array': (ndarray(kind=dtype('U2')), "dtype 'U2'"),
    'list of a dtype': (ndarray(kind=b'cnumpy\ndtype\n]\x85R'), 'dtype list'),
    'big-endian': (ndarray(kind=dtype(state=big)), 'little-endian'),
    'parts': (ndarray(kind=dtype(state=b'(K\3U\1<(K\4tNNtb')), 'dtype with parts'),
    'negative': (ndarray(b'(J\xff\xff\xff\xffJ\xfe\xff\xff\xfft'), 'impossible shape'),
    'short': (ndarray(b'(K\3t'), 'impossible shape'),
    'huge': (ndarray(b'(\x8a\x09' + b'\xff' * 8 + b'\0K\0t', raw=b'C\0'), 'impossible shape'),
    'shape': (ndarray(b']'), 'impossible'),
    'dimensions': (ndarray(b'(' + b'K\1' * 40 + b't', raw=b'C\4abcd'), 'impossible shape'),
    'no bytes': (ndarray(raw=b']'), 'list where bytes'),
    'booleans': (ndarray(kind=dtype('b1'), raw=b'C\2\1\2'), 'booleans'),
    'true as size': (ndarray(b'(\x88K\2t'), 'impossible'),
    'no state': (tf_value(NEW_ARRAY), 'no array'),
    'other class': (ndarray().replace(b'cnumpy\nndarray', b'cnumpy\ndtype'), 'no array'),
    'order': (frombuffer(b'(K\2tU\1A'), "order 'A'"),
    'axes': (frombuffer(b'(K\2tU\1K(K\1t'), "order 'K'"),
    'array of arrays': (ndarray(raw=NEW_ARRAY), 'where bytes'),
    'change of slots': (
      tf_value(NEW_ARRAY + b'N}U\x09__class__cnumpy\nndarray\ns\x86b'),
      'no array',
    ),
    'number': (tf_value(b'K\1'), "'w' is 1"),
    'encoded': (tf_value(ENCODE + long_text('ls') + b'U\x05rot13\x86R'), 'no array'),
    'encoding': (ndarray(raw=ENCODE + long_text('ls') + b'U\x05rot13\x86R'), 'where bytes'),
    'characters': (ndarray(raw=ENCODE + long_text('\u20ac') + b'U\x06latin1\x86R'), 'latin-1'),
    'bytes(n)': (ndarray(raw=b'cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R'), 'where bytes'),
  }


def tensor_tricks():
  def tensor(offset=0, size=(2,), stride=(1,)):
    args = (Storage(array(2)), offset, size, stride, False, collections.OrderedDict())
    return torch(Plain(files.rebuild_tensor, args))

  hidden = save_legacy(Storage(array(2)))
  again = b'\x80\x02ctorch.storage\n_load_from_bytes\nC\1a\x85R.'
  return {
    'beyond': (tensor(1), 'beyond its storage'),
    'stride': (tensor(0, (2,), (2,)), 'beyond'),
    'expanded': (tensor(0, (9999,), (0,)), 'beyond'),
    'offset': (tensor(-1), 'impossible'),
    'negative stride': (tensor(0, (2,), (-1,)), 'impossible'),
    'rank': (tensor(0, (2,), ()), 'impossible'),
    'fraction': (tensor(0.5), 'impossible'),
    'boolean': (tensor(True), 'impossible'),
    'vast': (tensor(2**47, (2**47, 2**47), (2**47, 2**47)), 'beyond'),
    'hidden storage': (torch_storage(save_legacy_of(again)), '_load_from_bytes is refused'),
    'hidden network': (
      torch_storage(save_legacy_of(torch())),
      '_reconstruct_persistent_obj is refused',
    ),
    'hidden nothing': (torch_storage(b''), 'byte 0'),
    'hidden list': (torch_storage(save_legacy_of(b'].')), 'unknown kind: list'),
    'hidden count': (torch_storage(hidden[:-16] + b'\0' * 16), 'the pickle in a tensor'),
    'hidden end': (torch_storage(hidden + b'a'), 'follow its end'),
    'hidden zip': (torch_storage(rosinality_file()[0]), 'argparse.Namespace is refused'),
    'hidden device': (
      torch_storage(save_legacy_of(b'\x80\x02ctorch\ndevice\n.')),
      'torch.device is refused',
    ),
  }


def network_tricks():
  """Of whole files of networks."""
  made = b'\x80\x02cdnnlib.tflib.network\nNetwork\n'
  unread = files.UNREAD
  function = Plain(files.rebuild_module, ({'type': 'function', 'class_name': 'a', 'state': {}},))
  return {
    'protocol 0': (b'cposix\nsystem\n(Vls\ntR.', 'neither a pickle'),
    'second pickle': (tensorflow_file()[0] + b'\x80\x02cposix\nsystem\n.', 'follow the end'),
    'change of a class': (made + b'}U\x0c__setstate__cnumpy\nndarray\nsb.', 'must find Call'),
    'state of a dict': (made + b')\x81' + made[2:] + b'b.', 'state dict'),
    'items of a network': (made + b')\x81]a}b.', 'should be'),
    'keywords': (made + b')}U\1aK\1s\x92}b.', 'should be'),
    'arguments': (made + b'N\x85\x81}b.', 'should be'),
    'escaped name': (b'\x80\x02cpo\\x73ix\nsystem\n.', 'posix.system is refused'),
    'memo replaced': (
      b'\x80\x02cnumpy\nndarray\nq\xff0cposix\nsystem\nq\xff0h\xff.',
      'posix.system is refused',
    ),
    'name twice': (tf(variables=[('w', array(1))] * 2), 'occurs twice'),
    'name of tensor twice': (torch(_parameters={'w': Tensor(array(1))}), 'occurs twice'),
    'no name': (tf(variables=[(1, array(1))]), 'variable should be'),
    'version': (tf(version=6), 'version 6'),
    'lacking': (
      dumps(Plain(files.Network, (), {'version': 4})),
      'lacks build_func_name, static_kwargs',
    ),
    'variables': (tf(variables=5), 'holds 5 where a state dict'),
    'function': (tf(build_func_name=5), 'build_func_name is 5'),
    'integer': (tf(static_kwargs={'a': 2**64}), 'int is among'),
    'unread': (dumps(Plain(unread['device'], ('cpu',))), 'torch.device(...) where'),
    'unread argument': (torch(_init_kwargs={'a': unread['float32']}), 'torch.float32 is among'),
    'unread state': (torch(_buffers=Plain(unread['device'], ('cpu',))), 'torch.device(...) where'),
    'unread in a checkpoint': (
      save_zip({'g': {}, 'x': unread['float32']}),
      'torch.float32 is refused',
    ),
    'version of torch in a pickle': (tf(name=unread['TorchVersion']), 'TorchVersion is refused'),
    'hidden in a checkpoint': (
      save_zip({'g': {}, 'x': Plain(files.load_from_bytes, (b'',))}),
      '_load_from_bytes is refused',
    ),
    'no class': (dumps({'G': function}), "'function' 'a'"),
    'no module': (dumps({'G': {}}), 'no module'),
    'module with state': (dumps({'G': Plain(files.rebuild_module, ({},), {'a': 1})}), 'no module'),
    'no network': (dumps({'training_set_kwargs': {}}), 'holds no network'),
    'a list': (dumps([1, 2]), 'holds list'),
    'joblib': (
      b'\x80\x04cjoblib.numpy_pickle\nArray\n)\x81.',
      'joblib.numpy_pickle.Array is refused',
    ),
    'tar': (b'storages\0' * 100, 'neither'),
  }


def laughs(depth=24, leaf='ha'):
  """A list of 2^depth leaves, in a few bytes."""
  value = [leaf]
  for _ in range(depth):
    value = [value, value]
  return value


def shared_modules(depth=18, name='a'):
  value = Module('Layer', {})
  for i in range(depth):
    value = Module('Layer', {f'{name}{i}a': value, f'{name}{i}b': value})
  return value


def many_modules(**state):
  return Module('G', {str(i): Module('Layer', {}, state) for i in range(1000)})


def shared_components(depth):
  parts = {}
  for _ in range(depth):
    net = network('G_x', {}, parts)
    parts = {'a': net, 'b': net}
  return parts


def large_tricks():
  """Small files of which much could be made."""
  large, zeros = array(50_000), np.zeros(20_000, np.uint8)
  tensors = {str(i): t for t in [Tensor(large)] for i in range(100)}
  entries = dict.fromkeys(map(str, range(20_000)))
  made = {
    'laughs': tf(static_kwargs={'a': laughs()}),
    'empty laughs': tf(static_kwargs={'a': laughs(leaf=())}),
    'long laughs': torch(_init_kwargs={'a': laughs(8, 'x' * 100_000)}),
    'numbers': tf(static_kwargs={'a': [zeros] * 500}),
    'attributes': torch(a=['x' * 9999] * 9999),
    'arrays': tf(variables=[(str(i), large) for i in range(100)]),
    'tensors': dumps({'G': modules(tensors, 'G')}),
    'components': tf(components=shared_components(18)),
    'modules': dumps({'G': shared_modules()}),
    'long names': dumps({'G': shared_modules(9, 'n' * 20_000)}),
    'entries': dumps({'G': many_modules(_parameters=entries)}),
    'lists': dumps({'G': many_modules(a=[*range(30_000), ()])}),
  }
  return {name: (data, 'far larger') for name, data in made.items()}


TRICKS = [
  (lambda: PICKLES, pickle_reader.parse),
  (torch_tricks, torch_file.parse),
  (array_tricks, network_file.parse),
  (tensor_tricks, network_file.parse),
  (network_tricks, network_file.parse),
  (large_tricks, network_file.parse),
]


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('tricks, reader', TRICKS)
def test_tricks_are_refused_by_name_in_a_short_time(tricks, reader):
  for trick, (data, said) in tricks().items():
    start = time.process_time()
    error, events = audited(data, reader)
    assert isinstance(error, ValueError) and said in str(error) and events == [], (trick, error)
    assert str(error).isprintable() and len(str(error)) < 400, trick
    assert time.process_time() - start < 10, trick


def test_a_small_pickle_can_not_take_long_or_much():
  """Sharing doubles at each level (2^90 paths), and many calls share keywords."""
  doubled = b']' + b'q\x000]h\0ah\0a' * 90
  start = time.process_time()
  pickle_reader.parse(doubled + b'\x94' * 1000 + b'.')
  keywords = b''.join(b'U\x05%05dN' % i for i in range(10_000))
  many = b'cos\nC\nq\x010}(' + keywords + b'uq\x000' + b'h\1)h\0\x92' * 90_000
  with pytest.raises(ValueError, match='100 at most'):
    pickle_reader.parse(many)
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
      for _ in range(rng.randrange(3)):
        at = rng.randrange(len(data))
        data = data[:at] + rng.choice(FRAGMENTS) + data[at + rng.choice((0, 1, 1, 2)) :]
      yield data if seeds is whole else rezip(good, {'data.pkl': data})


def memory():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def check_mutants(count):
  before, read, tried = memory(), 0, 0
  for data in mutants(count):
    start = time.process_time()
    nets, events = audited(data)  # anything but a ValueError is an error here
    assert events == [], events
    assert time.process_time() - start < 10
    tried += 1
    if not isinstance(nets, ValueError):
      read += 1
      size = sum(x.nbytes for net in nets.values() for x in net.arrays.values())
      assert size <= 4 * len(data) + 100_000
  assert tried > count - 10 and count // 50 < read < count * 9 // 10
  assert memory() - before < 200  # MB


@pytest.mark.smoke
@pytest.mark.filterwarnings('error')
def test_mutated_files_are_read_or_refused():
  check_mutants(2000)


@pytest.mark.slow
@pytest.mark.filterwarnings('error')
def test_100_000_mutated_files_are_read_or_refused():
  check_mutants(100_000)


@pytest.mark.filterwarnings('error')
def test_mutated_state_dicts_are_read_or_refused():
  refused = 0
  for data in mutations([LEGACY, ZIP], 2000):
    refused += isinstance(audited(data, torch_file.parse)[0], ValueError)
  assert 700 < refused < 2000


@pytest.mark.filterwarnings('error')
def test_mutated_pickles_are_read_or_refused():
  """Of all protocols, and of opcodes that no file of a network has."""
  value = [collections.OrderedDict(a=1), {1, 2}, {'x': (1, 2.5, 'text', 2**70), 'y': None}]
  seeds = [pickle.dumps(value, protocol) for protocol in range(6)]
  refused = 0
  for data in mutations(seeds, 5000):
    refused += isinstance(audited(data, pickle_reader.parse)[0], ValueError)
  assert 2500 < refused < 5000
