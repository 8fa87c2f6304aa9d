"""Tricks of TorchScript archives: {what: (file, what the reason for its refusal says)}."""

import collections
import io
import pickle
import struct
import zipfile

import numpy as np

from sg2jax.interop import pickle_reader
from tests import foreign_files as files
from tests.foreign_files import (
  Plain,
  Storage,
  Tensor,
  named,
  save_legacy,
  save_script,
  save_zip,
  script_module,
  script_parts,
)
from tests.tricks import Evil, array, long_text

BLOCK = files.BLOCK
# Of the header of a part in the list at the end of a zip file: where a field lies, and its format.
_FIELDS = {
  'flags': (8, '<H'),
  'method': (10, '<H'),
  'size': (20, '<I'),
  'full_size': (24, '<I'),
  'at': (42, '<I'),
}


def headers(data):
  """{name in the folder: ZipInfo} of an archive."""
  parts = zipfile.ZipFile(io.BytesIO(data)).infolist()
  return {part.filename.split('/', 1)[1]: part for part in parts}


def claim(data, name, **fields):
  """The archive with other `fields` of a part in its list of parts."""
  path = headers(data)[name].filename.encode()
  start = data.rindex(path) - 46
  assert data[start : start + 4] == b'PK\1\2'
  for field, value in fields.items():
    offset, code = _FIELDS[field]
    at = start + offset
    data = data[:at] + struct.pack(code, value) + data[at + struct.calcsize(code) :]
  return data


def compress(data, name):
  """The archive with a part compressed."""
  source = zipfile.ZipFile(io.BytesIO(data))
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as archive:
    for part in source.infolist():
      is_it = part.filename.endswith(f'/{name}')
      kind = zipfile.ZIP_DEFLATED if is_it else zipfile.ZIP_STORED
      archive.writestr(part.filename, source.read(part), kind)
  return out.getvalue()


class Pickled:
  """What pickles write in other opcodes than PyTorch does.

  Attributes:
    made: (function, arguments, state, items, pairs), as `__reduce__` gives them.
  """

  def __init__(self, args=(), state=None, items=None, pairs=None):
    self.made = BLOCK, args, state, items and iter(items), pairs and iter(pairs)

  def __reduce__(self):
    return self.made


def one(value, name='w'):
  """An archive of one attribute, and of a tensor beside it."""
  return save_script(script_module(**{'other': Tensor(array(2)), name: value}))


def by_hand(rest):
  """An archive whose pickle is written by hand, but for its protocol and end."""
  made = b'c__torch__.tiny.___torch_mangle_12\nBlock\n'
  tree = b'\x80\x02' + rest.replace(b'BLOCK', made) + b'.'
  return save_script(script_module(w=Tensor(array(2))), {'data.pkl': tree})


def with_keys(attributes):
  """An archive of a module whose attributes have any keys."""
  module = script_module()
  module.__dict__ |= attributes
  return save_script(module)


def shared(depth, name='a', **leaf):
  """A module to whose parts 2^depth paths lead."""
  module = script_module(**leaf)
  for _ in range(depth):
    module = script_module(**{name: module, f'{name}b': module})
  return module


def module_tricks():
  """Of what a pickle holds."""
  tensor = Tensor(array(2))
  args = tensor.args
  near = ('torch', 'nn'), ('x.__torch__', 'A'), ('__torch__x', 'A'), ('__torch__..a', 'A')
  near += ('__torch__.a-b', 'A'), ('__torch__', 'A.b'), ('__torch__.a.', 'A'), ('__torch', '_.A')
  near += ('__torch__', '1'), ('__torch__.aａ', 'A'), ('__torch__.a\n', 'A'), ('__torch__', 'Aａ')
  tricks = {}
  for module, name in near:
    said = pickle_reader.describe(pickle_reader.Global(module, name)) + ' is refused'
    data = long_text(module) + long_text(name) + b'\x93)\x81}b'
    tricks[f'class {module} {name}'] = by_hand(data), said
  for i in range(len(args)):
    odd = Plain(files.rebuild_tensor, (*args[:i], Evil(), *args[i + 1 :]))
    tricks[f'shell as argument {i} of a tensor'] = one(odd), 'posix.system is refused'
  for part in args[0].identity:
    if part != 'view':
      odd = Tensor(array(2), Storage(array(2), **{part: Evil()}))
      tricks[f'shell as {part} of a storage'] = one(odd), 'posix.system is refused'
  return tricks | {
    'a class of torch': (by_hand(b'}X\1\0\0\0actorch.nn.modules\nLinear\n)\x81s'), 'refused'),
    'shell': (one(Evil()), 'posix.system is refused'),
    'shell in a state': (save_script(Pickled(state={'a': Evil()})), 'posix.system is refused'),
    'shell as arguments': (one(Pickled((Evil(),), {'training': True})), 'posix.system is refused'),
    'shell as a key': (by_hand(b'BLOCK)\x81}cposix\nsystem\nNsb'), 'posix.system is refused'),
    'called with arguments': (one(Pickled((1,), {'training': True})), 'more than attributes'),
    'made with arguments': (by_hand(b'BLOCKK\1\x85\x81}b'), "'' is __torch__.tiny"),
    'items': (one(Pickled(state={}, items=[1])), "'w' is __torch__"),
    'pairs': (one(Pickled(state={}, pairs=[('a', 1)])), "'w' is __torch__"),
    'no state': (one(Pickled()), 'holds None where a state dict'),
    'state of slots': (one(Pickled(state=(None, {'a': 1}))), 'holds tuple where a state dict'),
    'state of a list': (one(Pickled(state=[['a', 1]])), 'holds list where a state dict'),
    'second state': (by_hand(b'BLOCK)\x81}b}b'), 'gets a state twice'),
    'cycle': (by_hand(b'BLOCK)\x81q\0}X\1\0\0\0ah\0sb'), 'itself'),
    'same attribute': (by_hand(b'BLOCK)\x81}X\1\0\0\0aNsX\1\0\0\0aNsb'), 'occurs twice'),
    'class alone': (by_hand(b'BLOCK'), 'compressed'),
    'class as a value': (one(BLOCK), "'w' is __torch__.tiny.___torch_mangle_12.Block, which is no"),
    'list of modules': (one([script_module()]), "'w' is list, which is no tensor"),
    'dict of tensors': (one({'a': tensor}), "'w' is dict, which is no tensor"),
    'bytes': (by_hand(b'BLOCK)\x81}X\1\0\0\0aC\1asb'), "'a' is b'a', which is no tensor"),
    'huge integer': (one(2**64), "'w' is int, which is no tensor"),
    'path': (
      save_script(script_module(**{'a.b': tensor, 'a': script_module(b=tensor)})),
      "the module '' has an attribute 'a.b'",
    ),
    'path of a scalar': (one(script_module(**{'a.b': 1})), "the module 'w' has an attribute 'a.b'"),
    'no name': (with_keys({'': tensor}), "has an attribute ''"),
    'number as name': (with_keys({1: tensor}), 'names are not text'),
    'class as name': (by_hand(b'BLOCK)\x81}BLOCKNsb'), 'names are not text'),
    'tensor with a state': (one(Plain(files.rebuild_tensor, args, {'a': 1})), 'which is no tensor'),
    'hidden file': (one(Plain(files.load_from_bytes, (b'a',))), 'refused'),
    'module in a dict': (save_zip({'w': script_module()}), "'w' is __torch__.tiny"),
    'module before 1.6': (
      save_legacy(script_module()),
      '__torch__.tiny.___torch_mangle_12.Block is',
    ),
    'beyond': (one(Plain(files.rebuild_tensor, (args[0], 1, *args[2:]))), 'beyond its storage'),
    'expanded': (
      one(Plain(files.rebuild_tensor, (args[0], 0, (99,), (0,), *args[4:]))),
      'beyond its storage',
    ),
  }


def storage_tricks():
  """Of what a pickle says of storages."""
  other = named('__torch__', 'FloatStorage', type('FloatStorage', (), {}))
  first = Storage(array(2))
  odd = {
    'class of a module': ({'kind': other}, 'a storage of an unknown kind: __torch__.FloatStorage'),
    'class of a block': ({'kind': BLOCK}, 'a storage of an unknown kind: __torch__.tiny'),
    'kind': ({'kind': named('torch', 'QUInt8Storage')}, 'torch.QUInt8Storage is refused'),
    'no kind': ({'kind': 'FloatStorage'}, "a storage of an unknown kind: 'FloatStorage'"),
    'what': ({'what': 'module'}, 'a storage of an unknown kind'),
    'size': ({'size': -2}, 'a storage of an unknown kind'),
    'fraction as size': ({'size': 2.0}, 'a storage of an unknown kind'),
    'more': ({'size': 3}, 'is not of 3 elements'),
    'number as key': ({'key': 7}, 'a storage of an unknown kind'),
    'pickle as storage': ({'key': '../data.pkl'}, 'no item named'),
    'elsewhere': ({'key': '../../etc/passwd'}, 'no item named'),
    'other size': ({'key': first.key, 'size': 3}, 'disagrees'),
    'other dtype': ({'key': first.key, 'kind': files.STORAGES[np.dtype('i4')]}, 'disagrees'),
  }
  tricks = {}
  for name, (identity, said) in odd.items():
    tensor = Tensor(array(2), Storage(array(2), **identity))
    tricks[name] = save_script(script_module(a=Tensor(array(2), first), w=tensor)), said
  flags = Tensor(np.uint8([0, 1, 2]).view(bool).copy())
  return tricks | {'booleans': (one(flags), 'booleans other than 0 and 1')}


def archive_tricks():
  """Of zip files."""
  module = script_module(a=Tensor(array(16)), b=Tensor(np.arange(3)))
  good = save_script(module)
  first, second = (name for name in headers(good) if name.startswith('data/'))
  parts = headers(good)
  bomb = save_script(script_module(a=Tensor(np.zeros(2**20))))
  key = next(name for name in headers(bomb) if name.startswith('data/'))
  tricks = {
    'pickle compressed': (compress(good, 'data.pkl'), "data.pkl' is compressed"),
    'storage compressed': (compress(good, second), f"{second}' is compressed"),
    'byteorder compressed': (compress(good, 'byteorder'), "byteorder' is compressed"),
    'said to be compressed': (claim(good, first, method=8), f"{first}' is compressed"),
    'bomb': (compress(bomb, key), f"{key}' is compressed"),
    'pickle encrypted': (
      claim(good, 'data.pkl', flags=0x809),
      "data.pkl' is compressed, encrypted",
    ),
    'storage encrypted': (claim(good, first, flags=0x809), f"{first}' is compressed, encrypted"),
    'strongly encrypted': (claim(good, 'data.pkl', flags=0x840), 'strong encryption'),
    'patched': (claim(good, 'data.pkl', flags=0x820), 'compressed patched data'),
    'larger': (claim(good, first, full_size=2**30), f"{first}' is compressed"),
    'shorter': (claim(good, first, full_size=4), f"{first}' is compressed"),
    'longer': (claim(good, first, size=128, full_size=128), f"{first}' is compressed"),
    'vast': (claim(good, first, size=2**30, full_size=2**30), f"{first}' is compressed"),
    'same place': (claim(good, second, at=parts[first].header_offset), 'doubled or overlapping'),
    'place of a program': (
      claim(good, 'code/__torch__/tiny.py', at=parts[first].header_offset),
      'doubled or overlapping',
    ),
    'within another': (claim(good, 'version', at=parts[first].header_offset + 70), 'overlapping'),
    'no place': (claim(good, 'data.pkl', at=2**31), 'overlapping'),
    'pickle twice': (save_script(module, {'code/data.pkl': b'N.'}), 'several data.pkl'),
    'program as pickle': (
      save_script(module, {'data.pkl': None, 'code/data.pkl': b'N.'}),
      "code/data.pkl' is compressed",
    ),
    'no pickle': (save_script(module, {'data.pkl': None}), 'without data.pkl'),
    'no storage': (save_script(module, {first: None}), 'no item named'),
    'short storage': (save_script(module, {first: b'1234'}), 'is not of 16 elements'),
    'big-endian': (save_script(module, {'byteorder': b'big'}), 'little-endian'),
    'cut': (good[:-30], 'broken zip'),
    'flipped bit': (good.replace(array(16).tobytes(), array(16)[::-1].tobytes()), 'CRC'),
    'state dict, program compressed': (
      save_script({'w': Tensor(array(2))}),
      "code/__torch__/tiny.py' is compressed",
    ),
    'pickle of a number': (save_script(module, {'data.pkl': pickle.dumps(1, 2)}), 'compressed'),
  }
  for name in ('data.pkl', first, 'code/__torch__/tiny.py'):
    spare = name[:-1] + '~'
    data = save_script(module, {spare: script_parts(module).get(name, b'a')})
    tricks[f'{name} twice'] = data.replace(spare.encode(), name.encode()), 'doubled'
  return tricks


def large_script_tricks():
  """Small files of which much could be made."""
  tensor = Tensor(array(50_000))
  many = collections.OrderedDict.fromkeys(map(str, range(20_000)))
  leaf = {'w': Tensor(array(1))}
  return {
    'modules': (save_script(shared(45, **leaf)), 'far larger'),
    'empty modules': (save_script(shared(45)), 'far larger'),
    # Few bytes are made of it: its weights are large.
    'many modules': (save_script(shared(45, room=Tensor(np.zeros(10**6)))), '100,000 attributes'),
    'scalars': (save_script(shared(9, **many, room=Tensor(np.zeros(10**6)))), '100,000 attributes'),
    'long names': (save_script(shared(9, 'n' * 20_000, **leaf)), 'far larger'),
    'tensors': (save_script(script_module(**{f't{i}': tensor for i in range(100)})), 'far larger'),
    'deep': (save_script(shared(60, **leaf)), 'values nested more than 100 deep'),
    'state dict': (save_zip({f't{i}': tensor for i in range(100)}), 'far larger'),
  }


SCRIPT_TRICKS = [module_tricks, storage_tricks, archive_tricks, large_script_tricks]
