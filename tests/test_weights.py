"""Files of strangers: read and never run."""

import base64
import bz2
import collections
import contextlib
import fractions
import gzip
import io
import lzma
import pathlib
import pickle
import pickletools
import random
import struct
import tarfile
import time
import zipfile
import zlib

import numpy as np
import pytest
from safetensors import numpy as safetensors

from sg2jax import pretrained
from sg2jax.faults import WeightsError
from sg2jax.interop import pickle_reader, read, torch_file
from sg2jax.interop.pickle_reader import Call, Global

ROOT = pathlib.Path(__file__).parent.parent
unpack = lambda text: zlib.decompress(base64.b85decode(text))
# The same OrderedDict (with _metadata) as torch 2.13.0 saves it, in both formats: a = arange(6) as
# [2,3] and its transpose.
ZIP = unpack(
  'c-pO(&2Jk;7{<rnuJh5a6sH7Ap#>7!I$qnmwo?+P+p-k4&~yP|a<Mkf#<tja^V;L0R;m;UCBO{?=ZgP=8>+Z)DThil;=rwk3UT1Tg(LH^F*BPFD-A18R<`GPp5Kh;eYIIIBT<BsNwnh{L8nkNS6i80wy~XA`_wh`<7hE>t%vJ%&vl(TZh7r)>Skxz={U>RT6LTPG-W|(vKk_0HiYZg>(rZ>S`W9}ZmQOCmU=CBxrUu~*Xz`7=TZ=voUA6u<Sv<MHyns^Ny>0N8-Kt*OhJqpW+7gUkb8Zt2MIHdA$iM0X4s5u!VxoKhBhJfRg(e?VHmbxgiW?H7)F~UrWtL<n(-zR9;L#F8Qz3rW{B#KbKwaLCoLGOlI=lF+g*WET<JqyCm;2ho?}c3q={u1!#HEvfYWAZ1D@x06Bu5w;Kgd3Ok7%_D}pnUq0W}6XnoU{m}w5qa?_W6(^shJIc|C$!>bm&R*lh}@Oo_wuS=dcymq7S$A5`DOcB2jhBt`c)D-u*fZ?JAmzd9rYd5-(k=Z=Y?fXnKp8{k#m*R8fC|92Q6)>n4Xw1)9UBh>vxV`O6tU`&15r#4qBf9G|{8zio4c^2sYr$Og2${TQckERMI~}O(afbRcQZO&&XmEu?>OSOE3VDrZyoJHA;O#Hjo9kb|I~Kg#y9Xu<tr0()o_x5$zJISuYXaWC2RGRnz3p_m<ix{*8R~YsOPK{Tk^IE|TTPO4M#sXQbv1@GURRkFud{07nr~(3xt--T@KR{-4}bmsIbALtdk3e{j34Y5Sj~1@jrOY3#)hsvLpHs%0tKji27iP}M0j6-QKWN#r90U1Xs0mrxo6DXzT6hZu0t6%W}lp<#TDO|VF+FMud7XG4Sn`-0Ni!GLjKH?7a8khd_PZ#(qBLQW}JL6K7eRiAW{td!a<189C|>rw8xLXqn#=`AnU4-l{56pA-8|=L51fhZY@4JXny{G$WQprlwob_sYgST0~jg-L&4B5ABG{sl7Bq+Q&m3yXxHSJkgOVd2rcf%nHFYihJJE4&R-rroTY<Ood5X5w}aO|OpXlm?f0FTLu^1kMUx-hZ+tYk{wI*?Hz2m8uG49e4s_S1j}EogvY{&n2gz!svYIQaTA^4{b6HJQizTI~YNf1F%Bv+sDU@@iVp*k>cej52bCPgOGRhEz?Q@E~dt?W>^c)nFirsfilF^5b-CBLnL2RFC$>CAoVMosnnuz^xR5G!mDA0F<TCr0NN!qO_68mLPD7GD0*o=unB`6g8g)ID466S(JvB+iNhjCGu4+_N^m4&}a!os$2_Y#&iHX#btV4_%$vT$7zYC)k`PQx<lws4P=Bp&eznKg;_E4~FY9>3^MJrlVk{1+hKk45<XpX7Gmjk6Y<^f~z>NG#4ZBWymO`!A~-uS5'
)
LEGACY = unpack(
  'c-nQ7$#T;`5QepQA%cXk6V|ZXEXI~?#RjqvAOw_ETy&vSiad!#DVAFrrz%vr%9n(|GjQO@W8?wCgYXDcaiB+%9Sn-(k)@uQ@BgP~x+{E<+}~g4evN<lzA{$m3X4BQe0G4#>7yLSwS13ymggE<#19;=2|Nzahq1?XD0PWJnhnQng0QDc7^K@RVg$}d5`fr&R8CK0Ft9zJLRuAc5x<-!g^ZfgQ;gv?Hz2E~+HKUdP{t(|MU_BW_8Y_}jhBu^CE)TJ@Hw5w872r8^?b`N7;Wmffn@k(t?jrCgOX<8`NozkftbtbStg7l%?$#nXo@uFdM14r1tm!9BRHmBsa54tv0Rtsx>AHp=+SDm(N<=O!m(AAQw3Grg&|c``CX7c+sw{!3MVue4o8~>3L`d(+9^8`deV+yqYNgh!Y-UrdB!{)!Ol=PtHHT2CAR6V!}*97+n&cz-}Qw<fnsT*jCV<fizpzVz*y*Z2QI1n4qT4lS14T7;F_MnX>02&18{u+KO3f{r1T}m|COj!6}S;g+>9k|F^Sue#2pHEHMkdUw&k^PgL4B43%JdFdVYXjRmw`O2=|fBBmDu=^ZAJSkisJk3L$mfH8%oyJm}l=+&;B9NG;WBbp=YXXF2v<W}Yh%y-GpRU?QZG%@*B;+W%X~P;#lR)S!+i4pC1Sier2CG&&E@BHSc}DGjFeAyzY{Z*CGwe3&`ntoBDp@canXiXvBFHeSGscmXfj0$xRma}-`{Fuxamy!ixgHBj3fSO_f`NH-fMHDNLAU(zwi!Ey&y!pi7X^Qy`RL9m9^_nuXJ!qMWB4ug=CZ80ftsibA4la4?psdBQUAaL<D#qIar_oolv`CdQQi~Kk^m}ITjla2o~+}~Gs8Xq(G!`8+2ZRQW$Nkd!'
)


# Pickles

PLAIN = {
  'list': [1, -1, 2**31, -(2**40), 2**100, 1.5, None, True, False, 'é', [], {}],
  'nested': {'a': {1: 2, 3.5: 4}},
  'tuples': [(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
  'long': list(range(3000)),
  'text': 'x' * 300,
}


@pytest.mark.parametrize('protocol', range(6))
def test_plain_values_are_read_as_pickle_reads_them(protocol):
  shared = ['shared']
  value = (
    PLAIN
    | {'twice': [shared, shared]}
    | ({'bytes': [b'\0\xff', b'y' * 70_000, ()]} if protocol >= 3 else {'empty': ()})
  )
  read = pickle_reader.parse(pickle.dumps(value, protocol))
  assert read == value
  assert read['twice'][0] is read['twice'][1]


def run(path):
  """What a malicious pickle would call."""
  pathlib.Path(path).write_text('it ran')


class Runs:
  """Unpickling it runs `run`."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return run, (self.path,), {'state': 1}


@pytest.mark.parametrize('protocol', range(6))
def test_what_would_be_called_becomes_a_node_and_is_not_called(protocol, tmp_path):
  call = pickle_reader.parse(pickle.dumps(Runs(str(tmp_path / 'ran')), protocol))
  assert isinstance(call, Call) and pickle_reader.describe(call) == f'{__name__}.run(...)'
  assert (call.args, call.state) == ((str(tmp_path / 'ran'),), {'state': 1})
  fraction = pickle_reader.parse(pickle.dumps(fractions.Fraction(1, 3), protocol))
  assert fraction.function == Global('fractions', 'Fraction')
  ordered = pickle_reader.parse(pickle.dumps(collections.OrderedDict(a=1, b=[2]), protocol))
  assert ordered.function == Global('collections', 'OrderedDict') and ordered.pairs == [
    ('a', 1),
    ('b', [2]),
  ]
  array = pickle_reader.parse(pickle.dumps(np.arange(3.0), protocol))
  assert array.function.name in (
    '_reconstruct',
    '_frombuffer',
  ) and array.function.module.startswith('numpy.')
  assert not list(tmp_path.iterdir())


def test_states_keywords_sets_and_persistent_ids():
  assert pickle_reader.parse(pickle.dumps({1, 2}, 4)).items == [1, 2]
  assert pickle_reader.parse(pickle.dumps(frozenset([3]), 4)).function == Global(
    'builtins', 'frozenset'
  )
  built = pickle_reader.parse(b'\x80\x04cm\nC\n)}\x8c\x01kK\x07s\x92}\x8c\x01aK\x01sb.')
  assert (built.function, built.args, built.kwargs, built.state) == (
    Global('m', 'C'),
    (),
    {'k': 7},
    {'a': 1},
  )
  found = pickle_reader.parse(b'\x80\x02(\x8c\x07storageK\x01tQ.', persistent_load=list)
  assert found == ['storage', 1]
  assert pickle_reader.parse(b'U\x02\xe9\x00.') == '\xe9\0'  # of Python 2


def test_only_the_given_names():
  data = pickle.dumps(fractions.Fraction(1, 3), 4)
  pickle_reader.parse(data, {Global('fractions', 'Fraction')})
  with pytest.raises(ValueError, match='fractions.Fraction is refused'):
    pickle_reader.parse(data, {Global('fractions', 'fraction')})


TRICKS = {
  'nothing': (b'', 'exhausted'),
  'no stop': (b'N', 'exhausted'),
  'two values': (b'NN.', 'unfinished'),
  'no value': (b'.', 'there is none'),
  'open mark': (b'(N.', 'unfinished'),
  'no mark': (b't.', 'no mark'),
  'rest': (b'N.N', '1 bytes follow'),
  'protocol': (b'\x80\x06N.', 'protocol 6'),
  'opcode': (b'\xfe.', 'unknown'),
  'extension': (b'\x82\x01.', 'not allowed'),
  'buffer': (b'\x97.', 'not allowed'),
  'underflow': (b'N\x86.', 'there is none'),
  'call of a call': (b'cos\ngetenv\n)R)R.', 'must find Global'),
  'call of text': (b'X\x02\0\0\0os)R.', 'must find Global'),
  'arguments': (b'cos\ngetenv\nNR.', 'must find tuple'),
  'names': (b'K\x01K\x02\x93.', 'must be text'),
  'keywords': (b'cos\ngetenv\n)}K\x01K\x02s\x92.', 'keywords'),
  'state of a class': (b'cos\nenviron\n}b.', 'must find Call'),
  'second state': (b'cos\ngetenv\n)R}b}b.', 'twice'),
  'append to text': (b'X\x01\0\0\0aNa.', 'must find list'),
  'late change': (b']q\0]q\x01h\0a0h\0Na0h\x01.', 'changes after'),
  'cycle': (b']q\0h\0a.', 'itself'),
  'cycle of two': (b']q\0]q\x01h\0a0h\0h\x01a.', 'changes after'),
  'same key': (b'}K\1K\2sK\1K\2s.', 'twice'),
  'odd': (b'}(NNNu.', 'without a value'),
  'key': (b'})K\2s.', 'not simple'),
  'list as key': (b'}]K\2s.', 'not simple'),
  'huge key': (b'}\x8a\x09' + b'\1' * 9 + b'K\2s.', 'not simple'),
  'forgotten': (b'h\x07.', 'not remembered'),
  'size': (b'\x8e' + b'\xff' * 8 + b'.', 'byte count'),
  'negative size': (b'T\xff\xff\xff\xff.', 'byte count < 0'),
  'integer': (b'\x8b\x00\x00\x01\x00' + b'\1' * 65_536 + b'.', 'more than 8192 bits'),
  'digits': (b'I' + b'9' * 60_000 + b'\n.', 'digits'),
  'line': (b'V' + b'a' * 100_000, 'no newline'),
  'utf-8': (b'X\x01\0\0\0\xff.', 'decoded'),
  'name': (b'c' + b'a' * 300 + b'\nb\n.', '256'),
  'deep tuples': (b')' + b'\x85' * 400_000 + b'.', 'deep'),
  'deep lists': (b']' * 100_000 + b'a' * 99_999 + b'.', 'deep'),
  'marks': (b'(' * 600_000, 'opcodes'),
  'values': (b'N' * 600_000, 'opcodes'),
}


@pytest.mark.parametrize('name', TRICKS)
def test_malformed_and_malicious_pickles_are_refused(name):
  data, said = TRICKS[name]
  with pytest.raises(ValueError) as e:
    pickle_reader.parse(data)
  assert said in str(e.value) and len(str(e.value)) < 400 and str(e.value).isprintable()


def test_a_small_file_can_not_take_long_or_much():
  """Sharing doubles at each level (2^90 paths), and keywords are shared by many calls; each is read
  once.
  """
  doubled = b']' + b'q\x000]h\0ah\0a' * 90
  start = time.process_time()
  pickle_reader.parse(doubled + b'\x94' * 1000 + b'.')
  many = (
    b'cos\nC\nq\x010}('
    + b''.join(b'U\x05%05dN' % i for i in range(10_000))
    + b'uq\x000'
    + b'h\1)h\0\x92' * 90_000
  )
  with pytest.raises(ValueError, match='100 at most'):
    pickle_reader.parse(many)
  assert time.process_time() - start < 10


def mutations(seeds, count):
  """Each a seed with one to four changes, insertions, deletions."""
  rng = random.Random(0)
  for _ in range(count):
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 4)):
      at, size = rng.randrange(len(data)), rng.randint(1, 6)
      data[at : at + rng.choice((size, 1, 0))] = rng.choice(
        (rng.randbytes(size), rng.randbytes(1), b'')
      )
      data = data or bytearray(b'.')
    yield bytes(data)


def test_mutated_pickles_are_read_or_refused():
  value = [
    collections.OrderedDict(a=1),
    {1, 2},
    fractions.Fraction(1, 2),
    {'x': (1, 2.5, 'text', 2**70), 'y': None},
  ]
  seeds, refused = [pickle.dumps(value, protocol) for protocol in range(6)], 0
  assert {op.code for seed in seeds for op, _, _ in pickletools.genops(seed)} >= set('Raesutq')
  for data in mutations(seeds, 10_000):
    try:
      pickle_reader.parse(data)
    except ValueError:
      refused += 1
  assert refused > 5000


# PyTorch files


def check_tensors(arrays):
  a = np.arange(6, dtype=np.float32).reshape(2, 3)
  expected = {
    'a': a,
    'a.t': a.T,
    'half': np.float16([1.5, -2]),
    'bfloat': np.array([1.5, -2], torch_file.ml_dtypes.bfloat16),
    'count': np.int64(7),
    'flags': np.array([True, False]),
    'empty': np.zeros((0, 3), np.float32),
    'parameter': np.full(2, 0.1, np.float32),
  }
  assert list(arrays) == list(expected)
  for name, value in expected.items():
    assert arrays[name].dtype == value.dtype and not (
      arrays[name].size and arrays[name].flags.writeable
    )
    np.testing.assert_array_equal(arrays[name], value, strict=False)
    assert arrays[name].shape == np.shape(value)
  assert np.shares_memory(arrays['a'], arrays['a.t'])


@pytest.mark.parametrize('data', [ZIP, LEGACY], ids=['zip', 'legacy'])
def test_files_of_torch(data):
  check_tensors(torch_file.parse(data))


text = lambda value: b'U' + bytes([len(value)]) + value.encode()  # as Python 2 wrote it
small = lambda *values: b'(' + b''.join(b'K' + bytes([value]) for value in values) + b't'


def storage(kind='FloatStorage', key='140', count=6, view=b'N', module='torch'):
  return (
    b'('
    + text('storage')
    + f'c{module}\n{kind}\n'.encode()
    + text(key)
    + text('cpu')
    + b'K%c' % count
    + view
    + b'tQ'
  )


def tensor(
  held=None,
  offset=b'K\0',
  shape=small(2, 3),
  stride=small(3, 1),
  function='torch._utils\n_rebuild_tensor',
):
  return b'c' + function.encode() + b'\n(' + (held or storage()) + offset + shape + stride + b'tR'


def legacy(
  value, keys=('140',), data=np.arange(6, dtype=np.float32).tobytes(), count=6, machine=True
):
  parts = [
    0x1950A86A20F9469CFC6C,
    1001,
    {'protocol_version': 1001, 'little_endian': machine, 'type_sizes': {}},
  ]
  return (
    b''.join(pickle.dumps(part, 2) for part in parts)
    + b'\x80\x02'
    + value
    + b'.'
    + pickle.dumps(list(keys), 2)
    + struct.pack('<q', count)
    + data
  )


def state(value=None, name='w'):
  return b'}' + text(name) + (value or tensor()) + b's'


def test_files_of_torch_before_0_4_written_by_python_2():
  shape = b'ctorch\nSize\n' + small(2, 3) + b'\x85R'
  value = tensor(shape=shape, stride=shape.replace(b'K\2K\3', b'K\3K\1'))
  value = b'ccollections\nOrderedDict\n]](' + text('w') + value + b'ea\x85R'
  arrays = torch_file.parse(legacy(value))
  np.testing.assert_array_equal(arrays['w'], np.arange(6, dtype=np.float32).reshape(2, 3))
  assert list(arrays) == ['w']
  assert torch_file.parse(legacy(state(state(), 'state_dict')))['w'].shape == (2, 3)
  assert torch_file.parse(legacy(state(tensor(storage(module='torch.cuda')))))['w'].shape == (2, 3)


def rezip(data, change=None, compress=zipfile.ZIP_STORED):
  """A zip file again, with `change` {name: new content or None}."""
  out, source = io.BytesIO(), zipfile.ZipFile(io.BytesIO(data))
  parts = {name.split('/', 1)[1]: source.read(name) for name in source.namelist()} | (change or {})
  with zipfile.ZipFile(out, 'w', compress) as archive:
    for name, content in parts.items():
      if content is not None:
        archive.writestr(f'archive/{name}', content)
  return out.getvalue()


HOSTILE = {
  'hidden pickle': (
    legacy(b'ctorch.storage\n_load_from_bytes\nC\x01a\x85R'),
    'torch.storage._load_from_bytes is refused',
  ),
  'system': (legacy(state(b'cos\nsystem\n' + text('ls') + b'\x85R')), 'os.system is refused'),
  'in the metadata': (
    legacy(b'ccollections\nOrderedDict\n)R}' + text('_metadata') + b'cos\nsystem\nsb'),
    'os.system is refused',
  ),
  'kind': (legacy(state(tensor(storage('QUInt8Storage')))), 'torch.QUInt8Storage is refused'),
  'no kind': (legacy(state(tensor(storage('Size')))), 'storage of an unknown kind'),
  'view': (legacy(state(tensor(storage(view=small(1, 2, 3))))), 'storage of an unknown kind'),
  'beyond': (legacy(state(tensor(offset=b'K\1'))), 'beyond its storage of 6'),
  'stride': (legacy(state(tensor(stride=small(3, 2)))), 'beyond'),
  'expanded': (legacy(state(tensor(shape=small(99, 99), stride=small(0, 0)))), 'beyond'),
  'negative offset': (legacy(state(tensor(offset=b'J\xff\xff\xff\xff'))), 'impossible'),
  'negative stride': (legacy(state(tensor(stride=b'(J\xff\xff\xff\xffK\1t'))), 'impossible'),
  'dimensions': (legacy(state(tensor(stride=small(1)))), 'impossible'),
  'boolean': (legacy(state(tensor(offset=b'\x88'))), 'impossible'),
  'number': (
    legacy(b'}(' + text('a') + tensor() + text('w') + b'K\1u'),
    "'w' is 1, which is no tensor",
  ),
  'list': (legacy(b']' + tensor() + b'a'), 'holds list'),
  'built': (legacy(state(tensor() + b'}b')), 'no tensor'),
  'unnamed': (legacy(b'}K\1' + tensor() + b's'), 'not text'),
  'cut': (LEGACY[:-1], 'cut off'),
  'cut pickle': (LEGACY[:300], 'byte'),
  'rest': (LEGACY + b'\0', '1 bytes follow'),
  'count': (legacy(state(), count=7), 'not of 6'),
  'keys': (legacy(state(), keys=['1']), 'not those of its tensors'),
  'spare key': (legacy(state(), keys=['140', '141']), 'not those'),
  'big-endian': (legacy(state(), machine=False), 'little-endian'),
  'magic': (pickle.dumps(5, 2), 'not a file of torch.save'),
  'bool': (legacy(state(tensor(storage('BoolStorage'))), data=b'\0\1\2\0\0\0'), 'booleans'),
  'other kind': (
    legacy(b'}(' + text('a') + tensor() + text('b') + tensor(storage('IntStorage')) + b'u'),
    'disagrees',
  ),
  'compressed': (rezip(ZIP, compress=zipfile.ZIP_DEFLATED), 'compressed'),
  'no pickle': (rezip(ZIP, {'data.pkl': None}), 'data.pkl'),
  'two pickles': (rezip(ZIP, {'b/data.pkl': b'N.'}), 'data.pkl'),
  'no storage': (rezip(ZIP, {'data/0': None}), "storage '0' is missing"),
  'short storage': (rezip(ZIP, {'data/0': b'1234'}), "storage '0'"),
  'endian': (rezip(ZIP, {'byteorder': b'big'}), 'little-endian'),
  'bad zip': (ZIP[:-30], 'broken zip'),
  'flipped bit': (ZIP.replace(np.float32(5).tobytes(), np.float32(6).tobytes()), 'CRC'),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_torch_files_are_refused(name, tmp_path):
  data, said = HOSTILE[name]
  (tmp_path / 'bad.pth').write_bytes(data)
  with pytest.raises(WeightsError) as e:
    pretrained.read(tmp_path / 'bad.pth')
  assert (
    f'{tmp_path}/bad.pth is refused: ' in str(e.value)
    and said in str(e.value)
    and '\n' not in str(e.value)
  )


def test_mutated_torch_files_are_read_or_refused():
  refused = 0
  for data in mutations([LEGACY, ZIP, legacy(state())], 3000):
    with contextlib.suppress(ValueError):
      torch_file.parse(data)
      refused -= 1
    refused += 1
  assert refused > 1000


# What isn't weights


def other_files():
  """{name: (content, what it is called)}: what a download brings instead of weights."""
  zipped, tarred = io.BytesIO(), io.BytesIO()
  with zipfile.ZipFile(zipped, 'w', zipfile.ZIP_DEFLATED) as file:
    file.writestr('model/network.pkl', bytes(1000))
  with tarfile.open(fileobj=tarred, mode='w') as file:
    file.addfile(tarfile.TarInfo('network.pkl'))
  return {
    'pointer': (
      b'version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n',
      'pointer of Git LFS',
    ),
    'page': (b'\xef\xbb\xbf\n<!DOCTYPE html><html>', 'web page (HTML)'),
    'bare page': (b'<html><head>', 'web page'),
    'error': (b'<?xml version="1.0"?><Error><Code>AccessDenied', 'XML'),
    'answer': (b'{"message": "Not Found"}', 'Not Found'),
    'text': ('größer als alles\n'.encode() * 99, 'text'),
    'empty': (b'', 'empty'),
    'zeros': (bytes(99), 'zeros'),
    'gzip': (gzip.compress(b'x'), 'gzip'),
    'bzip2': (bz2.compress(b'x'), 'bzip2'),
    'xz': (lzma.compress(b'x'), 'xz'),
    'zip': (
      zipped.getvalue(),
      'zip archive without data.pkl, so not of torch.save (model/network.pkl)',
    ),
    'no zip': (b'PK\5\6' + bytes(18), 'empty zip'),
    'cut zip': (zipped.getvalue()[:-9], 'broken zip'),
    'tar': (tarred.getvalue(), 'tar archive'),
    'picture': (b'\xff\xd8\xff\xe0', 'JPEG'),
    'npy': (b'\x93NUMPY\1\0', '.npy'),
    'noise': (random.Random(0).randbytes(999), 'unknown content'),
  }


@pytest.mark.parametrize('name', other_files())
def test_downloads_that_went_wrong_are_called_by_name(tmp_path, name):
  content, said = other_files()[name]
  (tmp_path / 'network.pkl').write_bytes(content)
  for function in (read.read_network, pretrained.read):
    with pytest.raises(WeightsError) as e:
      function(tmp_path / 'network.pkl')
    text = str(e.value)
    assert (
      said in text
      and 'download it again' in text
      and '\n' not in text
      and str(tmp_path / 'network.pkl') in text
    ), text


def test_a_pickle_that_was_cut_off_is_to_be_downloaded_again(tmp_path):
  (tmp_path / 'network.pkl').write_bytes(pickle.dumps({'G_ema': [list(range(300))]}, 4)[:-100])
  with pytest.raises(WeightsError, match='cut off.*download it again'):
    read.read_network(tmp_path / 'network.pkl')
  for name in ('network.safetensors', 'network.npz'):
    content = safetensors.save({'a': np.zeros(3)}) if name.endswith('s') else None
    if content is None:
      np.savez(tmp_path / name, a=np.zeros(3))
    else:
      (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f'needs {name}.json.* of other programs'):
      read.read_network(tmp_path / name)
  with pytest.raises(WeightsError, match='file of safetensors'):
    pretrained.read(tmp_path / 'network.safetensors')
