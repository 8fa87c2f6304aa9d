"""Tricks that files can try: {what: (file, what the reason for its refusal says)}."""

import collections
import os
import pickle
import struct
import zipfile

import numpy as np

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
  network,
  rezip,
  save_legacy,
  save_legacy_of,
  save_zip,
)
from tests.test_network_file import rosinality_file, tensorflow_file

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
  'keywords': (b'cos\ngetenv\n)}\x92.', 'NEWOBJ_EX is not allowed'),
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


def claims_more(data):
  """A zip file whose last part says that it is larger than the file."""
  at = data.rindex(b'PK\1\2') + 24
  return data[:at] + struct.pack('<I', 2**31) + data[at + 4 :]


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
    'path': ({'key': '../../passwd'}, 'no item named'),
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
    'rest': (LEGACY + b'\0', 'bytes follow'),
    'count': (legacy.replace(size, struct.pack('<q', 3)), 'cut off'),
    'keys': (save_legacy(state, keys=['1']), 'not those of its tensors'),
    'spare key': (save_legacy(state, keys=[storage.key, 'b']), 'not those of its tensors'),
    'big-endian': (save_legacy(state, little_endian=False), 'little-endian'),
    'magic': (pickle.dumps(5, 2), 'not a file of torch.save'),
    'booleans': (save_zip({'w': Tensor(np.uint8([0, 1, 2]).view(bool).copy())}), 'booleans'),
    'compressed': (rezip(ZIP, compress=zipfile.ZIP_DEFLATED), 'compressed'),
    'too large': (claims_more(ZIP), 'overlapping'),
    'no pickle': (rezip(ZIP, {'data.pkl': None}), 'without data.pkl'),
    'two pickles': (rezip(ZIP, {'b/data.pkl': b'N.'}), 'several data.pkl'),
    'traversal': (rezip(ZIP, {'../../etc/data.pkl': b'N.'}), 'several'),
    'absolute': (rezip(ZIP, {'/tmp/data.pkl': b'N.'}), 'several'),
    # Readers see either of two parts of one name.
    'doubled': (rezip(ZIP, {'data.pkX': b'N.'}).replace(b'data.pkX', b'data.pkl'), 'doubled'),
    'no storage': (rezip(ZIP, {'data/0': None}), 'no item named'),
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
    'bytes(n)': (
      ndarray(raw=b'cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R'),
      'builtins.bytes is refused',
    ),
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
    'hidden count': (torch_storage(hidden[:-16] + b'\0' * 16), 'cut off'),
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
    'attributes': dumps({'G': many_modules(a='x' * 10_000)}),
    'arrays': tf(variables=[(str(i), large) for i in range(100)]),
    'tensors': dumps({'G': modules(tensors, 'G')}),
    'components': tf(components=shared_components(18)),
    'modules': dumps({'G': shared_modules()}),
    'long names': dumps({'G': shared_modules(9, 'n' * 20_000)}),
    'entries': dumps({'G': many_modules(_parameters=entries)}),
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
