"""Writers of the files of other programs, and changes that damage them.

Classes and functions have the names of those programs, so that `pickle` itself writes the files.
"""

import base64
import collections
from collections.abc import Iterator
import io
import pickle
import random
import struct
import sys
import types
from unittest import mock
import zipfile
import zlib

import numpy as np

from sg2jax.interop import sniff, torch_file

MODULES = {}  # of those programs


def named(module, name, thing=None):
  """A function, or `thing`, that pickles know as module.name."""
  thing = thing or (lambda *args: None)
  thing.__module__, thing.__name__, thing.__qualname__ = module, name, name
  parts = module.split('.')
  for i in range(len(parts)):
    whole = '.'.join(parts[: i + 1])
    MODULES.setdefault(whole, types.ModuleType(whole))
  setattr(MODULES[module], name, thing)
  return thing


EasyDict = named('dnnlib.util', 'EasyDict', type('EasyDict', (dict,), {}))
Network = named('dnnlib.tflib.network', 'Network', type('Network', (), {}))
rebuild_module = named('torch_utils.persistence', '_reconstruct_persistent_obj')
rebuild_tensor = named('torch._utils', '_rebuild_tensor_v2')
rebuild_parameter = named('torch._utils', '_rebuild_parameter')
load_from_bytes = named('torch.storage', '_load_from_bytes')
STORAGES = {
  np.dtype(dtype): named('torch', name, type(name, (), {}))
  for name, dtype in torch_file.STORAGES.items()
}
OLD_NUMPY = {
  '_reconstruct': named('numpy.core.multiarray', '_reconstruct'),
  'scalar': named('numpy.core.multiarray', 'scalar'),
  '_frombuffer': named('numpy.core.numeric', '_frombuffer'),
}
del MODULES['numpy']


class Plain:
  """What is made by calling a function, and its state."""

  def __init__(self, function, args, state=None):
    self.made = function, args, state

  def __reduce__(self):
    return self.made


class Pickler(pickle.Pickler):
  """Writes arrays as numpy 1 (`old`) or the present one, storages as torch.save or as a module.

  Attributes:
    save: how many values say what a storage is: 6 in torch.save, 5 in TorchScript, 0: it isn't
      said, but the storage is within.
    found: {key: storage} of those that it wrote.
  """

  def __init__(self, file, protocol, old=False, save=0):
    super().__init__(file, protocol)
    self.protocol, self.old, self.save = protocol, old, save
    self.found = {}

  def reducer_override(self, value):
    if isinstance(value, (np.ndarray, np.generic)) and self.old:
      function, *rest = value.__reduce_ex__(self.protocol)
      return OLD_NUMPY[function.__name__], *rest
    return NotImplemented

  def persistent_id(self, value):
    if not isinstance(value, Storage) or not self.save:
      return None
    self.found[value.key] = value
    return tuple(value.identity.values())[: self.save]


def dumps(value, protocol=4, **options):
  """The bytes of a pickle."""
  return dumps_with_storages(value, protocol, **options)[0]


def dumps_with_storages(value, protocol=4, **options):
  """(bytes of a pickle, {key: storage} that it refers to)."""
  file = io.BytesIO()
  pickler = Pickler(file, protocol, **options)
  with mock.patch.dict(sys.modules, MODULES):
    pickler.dump(value)
  return file.getvalue(), pickler.found


# What modules and checkpoints hold besides.
UNREAD = {
  **{
    name: named('torch', name)
    for name in ('float16', 'float32', 'device', 'channels_last', 'contiguous_format')
  },
  'TorchVersion': named('torch.torch_version', 'TorchVersion'),
  'torch.channels_last': named('torch._utils', 'torch.channels_last'),
  'torch.contiguous_format': named('torch._utils', 'torch.contiguous_format'),
}
# by which `pickle` finds what has a dot in its name
MODULES['torch._utils'].torch = types.SimpleNamespace(
  channels_last=UNREAD['torch.channels_last'], contiguous_format=UNREAD['torch.contiguous_format']
)


# ---- PyTorch


class Storage:
  """A storage of torch: a part of what torch.save writes, or a file of it within a pickle.

  Attributes:
    identity: what a pickle says of it; `odd` of that is otherwise.
  """

  count = 0

  def __init__(self, data, **odd):
    Storage.count += 1
    self.data = np.asarray(data)
    self.key = str(Storage.count)
    identity = {'kind': STORAGES[self.data.dtype], 'key': self.key, 'device': 'cuda:0'}
    self.identity = {'what': 'storage'} | identity | {'size': self.data.size, 'view': None} | odd

  def __reduce__(self):
    return load_from_bytes, (save_legacy(self),)


class Tensor:
  """A tensor of torch, of an array (whatever its strides) or of a part of a storage."""

  def __init__(self, array, storage=None, offset=0, parameter=False):
    array = np.asarray(array)
    base = array.base if array.base is not None and array.base.size == array.size else array
    self.storage = storage or Storage(np.ascontiguousarray(base).ravel())
    strides = tuple(s // array.itemsize for s in array.strides)
    self.args = self.storage, offset, array.shape, strides, False, collections.OrderedDict()
    self.parameter = parameter

  def __reduce__(self):
    if self.parameter:
      return rebuild_parameter, (Plain(rebuild_tensor, self.args), True, collections.OrderedDict())
    return rebuild_tensor, self.args


def storages(value):
  """{key: Storage} in a value that torch.save gets."""
  if isinstance(value, Storage):
    return {value.key: value}
  parts = []
  if isinstance(value, Tensor):
    parts = [value.storage]
  elif isinstance(value, dict):
    parts = [*value.values(), *getattr(value, '_metadata', ())]
  elif isinstance(value, (list, tuple)):
    parts = value
  return {k: v for part in parts for k, v in storages(part).items()}


def legacy_head(little_endian=True):
  """The first three pickles of torch.save before 1.6."""
  machine = {'protocol_version': 1001, 'little_endian': little_endian, 'type_sizes': {'int': 4}}
  return b''.join(pickle.dumps(part, 2) for part in (sniff.TORCH_MAGIC, 1001, machine))


def save_legacy_of(tree):
  """A file of torch.save before 1.6 with a pickle of any bytes, and no storages."""
  return legacy_head() + tree + pickle.dumps([], 2)


def save_legacy(value, protocol=2, keys=None, **machine):
  """torch.save before 1.6; keys: those that it lists, if they are odd."""
  found = sorted(storages(value).items())
  data = legacy_head(**machine) + dumps(value, protocol, save=6)
  data += pickle.dumps(keys or [key for key, _ in found], protocol)
  for _, storage in found:
    data += struct.pack('<q', storage.data.size) + storage.data.tobytes()
  return data


def save_zip(value, protocol=2):
  """torch.save since 1.6."""
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as archive:
    archive.writestr('archive/data.pkl', dumps(value, protocol, save=6))
    for key, storage in storages(value).items():
      archive.writestr(f'archive/data/{key}', storage.data.tobytes())
    archive.writestr('archive/version', '3\n')
  return out.getvalue()


# ---- TorchScript

BLOCK = named('__torch__.tiny.___torch_mangle_12', 'Block', type('Block', (), {}))


def script_module(kind=BLOCK, **attributes):
  """A module of TorchScript; what `attributes` can't name goes into its __dict__."""
  module = kind()
  module.__dict__ = {'training': False, '_is_full_backward_hook': None} | attributes
  return module


class _Unseekable:
  """A stream: into it zipfile writes sizes after the content, as PyTorch does (flag 8)."""

  def __init__(self):
    self.data = bytearray()

  def write(self, data):
    self.data += data
    return len(data)

  def flush(self):
    pass


def script_zip(parts, root='modèle'):
  """A zip file as PyTorch writes it, of {name: content}: aligned, and `code/` compressed.

  The name of the folder isn't ASCII so that zipfile says that names are in UTF-8 (flag 11).
  """
  out = _Unseekable()
  with zipfile.ZipFile(out, 'w') as archive:
    for name, content in parts.items():
      info = zipfile.ZipInfo(f'{root}/{name}')
      if name.startswith('code/'):
        info.compress_type = zipfile.ZIP_DEFLATED
      start = archive.fp.tell() + 30 + len(info.filename.encode()) + 4
      padding = bytes(-start % 64)
      info.extra = b'FB' + struct.pack('<H', len(padding)) + padding
      archive.writestr(info, content)
  return bytes(out.data)


def script_parts(module, protocol=2):
  """{name: content} of TorchScript's archive of a module."""
  tree, found = dumps_with_storages(module, protocol, save=5)
  shell = b'cposix\nsystem\n(Vtouch evil\ntR.'  # which nobody reads
  return {
    **{f'data/{key}': storage.data.tobytes() for key, storage in found.items()},
    'data.pkl': tree,
    'code/__torch__/tiny.py': b'import os; os.system("touch evil")\n' * 9,
    'code/__torch__/tiny.py.debug_pkl': shell * 9,
    'constants.pkl': shell,
    'version': b'4\n',
    'byteorder': b'little',
  }


def save_script(module, change=None, **options):
  """TorchScript's archive of a module, with `change` {name: new content or None}."""
  parts = script_parts(module, **options) | (change or {})
  return script_zip({name: content for name, content in parts.items() if content is not None})


# ---- networks


def network(kind, variables, components=None, version=4, **kwargs):
  """A Network of dnnlib.tflib."""
  net = Network()
  net.__dict__ = {
    'version': version,
    'name': kind,
    'static_kwargs': EasyDict(kwargs),
    'components': EasyDict(components or {}),
    'build_module_src': 'import os; os.system("ls")',
    'build_func_name': kind,
    'variables': list(variables.items()),
  }
  return net


class Module:
  """A module of torch, of {name: tensor, parameter or module}, as stylegan2-ada-pytorch has them.

  Attributes:
    state: more, or other, attributes.
  """

  def __init__(self, kind, parts, state=None, **kwargs):
    self.kind, self.parts, self.kwargs = kind, parts, kwargs
    self.state = state or {}

  def meta(self):
    """What it is made of again."""
    groups = {name: collections.OrderedDict() for name in ('_parameters', '_buffers', '_modules')}
    for name, value in self.parts.items():
      group = '_buffers'
      if isinstance(value, Module):
        group = '_modules'
      elif value is None or getattr(value, 'parameter', False):
        group = '_parameters'
      groups[group][name] = value
    state = groups | {
      'training': False,
      'up': 2,
      'clamp': None,
      'filter': (1, 3, 3, 1),
      '_non_persistent_buffers_set': set(),
      '_backward_hooks': collections.OrderedDict(),
      '_init_args': (),
      '_init_kwargs': EasyDict(self.kwargs),
      'weight_gain': np.sqrt(2),
      'bias_init': np.float32(1),
    }
    return EasyDict(
      type='class',
      version=6,
      module_src='import os; os.system("ls")',
      class_name=self.kind,
      state=state | self.state,
    )

  def __reduce__(self):
    return rebuild_module, (self.meta(),), None


def modules(tree, kind, **kwargs):
  """A Module of nested dicts of tensors."""
  parts = {k: modules(v, 'Layer') if isinstance(v, dict) else v for k, v in tree.items()}
  return Module(kind, parts, **kwargs)


# ---- damage


def rezip(data, change=None, compress=zipfile.ZIP_STORED):
  """A zip file again, with `change` {name: new content or None}."""
  source = zipfile.ZipFile(io.BytesIO(data))
  parts = {name.split('/', 1)[1]: source.read(name) for name in source.namelist()} | (change or {})
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w', compress) as archive:
    for name, content in parts.items():
      if content is not None:
        archive.writestr(f'archive/{name}', content)
  return out.getvalue()


def mutations(seeds, count, seed=0) -> Iterator[bytes]:
  """Each one of `seeds` with one to four changes, insertions, deletions; drawn from `seed`."""
  rng = random.Random(seed)
  for _ in range(count):
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 4)):
      at, size = rng.randrange(len(data)), rng.randint(1, 6)
      new = rng.choice((rng.randbytes(size), rng.randbytes(1), b''))
      data[at : at + rng.choice((size, 1, 0))] = new
      data = data or bytearray(b'.')
    yield bytes(data)


# ---- of torch itself


def unpack(text):
  return zlib.decompress(base64.b85decode(text))


# The same OrderedDict (with _metadata) as torch 2.13.0 saves it, in both formats: a = arange(6) as
# [2,3] and its transpose.
ZIP = unpack(
  'c-pO(&2Jk;7{<rnuJh5a6sH7Ap#>7!I$qnmwo?+P+p-k4&~yP|a<Mkf#<tja^V;L0R;m;UCBO{?=ZgP=8>+Z)DThil;=rwk3UT1Tg(LH^F*BPFD-A18R<`GPp5Kh;eYIIIBT<BsNwnh{L8nkNS6i80wy~XA`_wh`<7hE>t%vJ%&vl(TZh7r)>Skxz={U>RT6LTPG-W|(vKk_0HiYZg>(rZ>S`W9}ZmQOCmU=CBxrUu~*Xz`7=TZ=voUA6u<Sv<MHyns^Ny>0N8-Kt*OhJqpW+7gUkb8Zt2MIHdA$iM0X4s5u!VxoKhBhJfRg(e?VHmbxgiW?H7)F~UrWtL<n(-zR9;L#F8Qz3rW{B#KbKwaLCoLGOlI=lF+g*WET<JqyCm;2ho?}c3q={u1!#HEvfYWAZ1D@x06Bu5w;Kgd3Ok7%_D}pnUq0W}6XnoU{m}w5qa?_W6(^shJIc|C$!>bm&R*lh}@Oo_wuS=dcymq7S$A5`DOcB2jhBt`c)D-u*fZ?JAmzd9rYd5-(k=Z=Y?fXnKp8{k#m*R8fC|92Q6)>n4Xw1)9UBh>vxV`O6tU`&15r#4qBf9G|{8zio4c^2sYr$Og2${TQckERMI~}O(afbRcQZO&&XmEu?>OSOE3VDrZyoJHA;O#Hjo9kb|I~Kg#y9Xu<tr0()o_x5$zJISuYXaWC2RGRnz3p_m<ix{*8R~YsOPK{Tk^IE|TTPO4M#sXQbv1@GURRkFud{07nr~(3xt--T@KR{-4}bmsIbALtdk3e{j34Y5Sj~1@jrOY3#)hsvLpHs%0tKji27iP}M0j6-QKWN#r90U1Xs0mrxo6DXzT6hZu0t6%W}lp<#TDO|VF+FMud7XG4Sn`-0Ni!GLjKH?7a8khd_PZ#(qBLQW}JL6K7eRiAW{td!a<189C|>rw8xLXqn#=`AnU4-l{56pA-8|=L51fhZY@4JXny{G$WQprlwob_sYgST0~jg-L&4B5ABG{sl7Bq+Q&m3yXxHSJkgOVd2rcf%nHFYihJJE4&R-rroTY<Ood5X5w}aO|OpXlm?f0FTLu^1kMUx-hZ+tYk{wI*?Hz2m8uG49e4s_S1j}EogvY{&n2gz!svYIQaTA^4{b6HJQizTI~YNf1F%Bv+sDU@@iVp*k>cej52bCPgOGRhEz?Q@E~dt?W>^c)nFirsfilF^5b-CBLnL2RFC$>CAoVMosnnuz^xR5G!mDA0F<TCr0NN!qO_68mLPD7GD0*o=unB`6g8g)ID466S(JvB+iNhjCGu4+_N^m4&}a!os$2_Y#&iHX#btV4_%$vT$7zYC)k`PQx<lws4P=Bp&eznKg;_E4~FY9>3^MJrlVk{1+hKk45<XpX7Gmjk6Y<^f~z>NG#4ZBWymO`!A~-uS5'
)
LEGACY = unpack(
  'c-nQ7$#T;`5QepQA%cXk6V|ZXEXI~?#RjqvAOw_ETy&vSiad!#DVAFrrz%vr%9n(|GjQO@W8?wCgYXDcaiB+%9Sn-(k)@uQ@BgP~x+{E<+}~g4evN<lzA{$m3X4BQe0G4#>7yLSwS13ymggE<#19;=2|Nzahq1?XD0PWJnhnQng0QDc7^K@RVg$}d5`fr&R8CK0Ft9zJLRuAc5x<-!g^ZfgQ;gv?Hz2E~+HKUdP{t(|MU_BW_8Y_}jhBu^CE)TJ@Hw5w872r8^?b`N7;Wmffn@k(t?jrCgOX<8`NozkftbtbStg7l%?$#nXo@uFdM14r1tm!9BRHmBsa54tv0Rtsx>AHp=+SDm(N<=O!m(AAQw3Grg&|c``CX7c+sw{!3MVue4o8~>3L`d(+9^8`deV+yqYNgh!Y-UrdB!{)!Ol=PtHHT2CAR6V!}*97+n&cz-}Qw<fnsT*jCV<fizpzVz*y*Z2QI1n4qT4lS14T7;F_MnX>02&18{u+KO3f{r1T}m|COj!6}S;g+>9k|F^Sue#2pHEHMkdUw&k^PgL4B43%JdFdVYXjRmw`O2=|fBBmDu=^ZAJSkisJk3L$mfH8%oyJm}l=+&;B9NG;WBbp=YXXF2v<W}Yh%y-GpRU?QZG%@*B;+W%X~P;#lR)S!+i4pC1Sier2CG&&E@BHSc}DGjFeAyzY{Z*CGwe3&`ntoBDp@canXiXvBFHeSGscmXfj0$xRma}-`{Fuxamy!ixgHBj3fSO_f`NH-fMHDNLAU(zwi!Ey&y!pi7X^Qy`RL9m9^_nuXJ!qMWB4ug=CZ80ftsibA4la4?psdBQUAaL<D#qIar_oolv`CdQQi~Kk^m}ITjla2o~+}~Gs8Xq(G!`8+2ZRQW$Nkd!'
)
