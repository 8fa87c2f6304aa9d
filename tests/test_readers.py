"""Pickles, files of PyTorch and downloads that went wrong: read as data, or called by name."""

import collections
import fractions
from functools import partial
import gzip
import hashlib
import io
import pathlib
import pickle
import random
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

from sg2jax import pretrained
from sg2jax.faults import WeightsError
from sg2jax.interop import pickle_reader, read, torch_file
from sg2jax.interop.pickle_reader import Global
from tests.foreign_files import (
  LEGACY,
  ZIP,
  Storage,
  Tensor,
  legacy_head,
  save_script,
  script_module,
  script_parts,
  script_zip,
)
from tests.reference import cases_clip_files
from tests.reference.check import compare, read_manifest

CLIP = pathlib.Path(__file__).parent / 'reference_clip'
CLIP_FILES = next(case for case in read_manifest(CLIP) if case['id'] == 'clip_state_dict')

# ---- pickles


@pytest.mark.parametrize('protocol', range(6))
def test_plain_values_are_read_as_pickle_reads_them(protocol):
  shared = ['shared']
  value = {
    'list': [1, -1, 2**31, -(2**40), 2**100, 1.5, None, True, False, 'é', [], {}, ()],
    'nested': {'a': {1: 2, 3.5: 4}},
    'tuples': [(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    'long': list(range(3000)),
    'text': 'x' * 300,
    'twice': [shared, shared],
    'bytes': [b'\0\xff', b'y' * 70_000] if protocol >= 3 else [],
  }
  result = pickle_reader.parse(pickle.dumps(value, protocol))
  assert result == value
  assert result['twice'][0] is result['twice'][1]


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
  value = [
    Runs(str(tmp_path / 'ran')),
    fractions.Fraction(1, 3),
    collections.OrderedDict(a=1, b=[2]),
    np.arange(3.0),
  ]
  call, fraction, ordered, array = pickle_reader.parse(pickle.dumps(value, protocol))
  assert pickle_reader.describe(call) == f'{__name__}.run(...)'
  assert (call.args, call.state) == ((str(tmp_path / 'ran'),), {'state': 1})
  assert fraction.function == Global('fractions', 'Fraction')
  assert ordered.function == Global('collections', 'OrderedDict')
  assert ordered.pairs == [('a', 1), ('b', [2])]
  assert array.function.name in ('_reconstruct', '_frombuffer')
  assert array.function.module.startswith('numpy.')
  assert not list(tmp_path.iterdir())


def test_states_sets_and_persistent_ids():
  parse = pickle_reader.parse
  assert parse(pickle.dumps({1, 2}, 4)).items == [1, 2]
  built = parse(b'\x80\x04cm\nC\n)\x81}\x8c\x01aK\x01sb.')
  assert (built.function, built.args, built.state) == (Global('m', 'C'), (), {'a': 1})
  identity = b'\x80\x02(\x8c\x07storageK\x01tQ.'
  assert parse(identity, persistent_load=list) == ['storage', 1]
  assert parse(b'U\x02\xe9\x00.') == '\xe9\0'  # of Python 2


def test_only_the_given_names():
  data = pickle.dumps(fractions.Fraction(1, 3), 4)
  pickle_reader.parse(data, {Global('fractions', 'Fraction')})
  with pytest.raises(ValueError, match='fractions.Fraction is refused'):
    pickle_reader.parse(data, {Global('fractions', 'fraction')})


# ---- files of PyTorch


def check_arrays(data, expected):
  """Reads a file and compares names, order, dtypes and values; the arrays."""
  arrays = torch_file.parse(data)
  assert list(arrays) == list(expected)
  for name, value in expected.items():
    assert arrays[name].dtype == value.dtype and arrays[name].shape == np.shape(value)
    assert not arrays[name].size or not arrays[name].flags.writeable
    np.testing.assert_array_equal(arrays[name], value)
  return arrays


@pytest.mark.parametrize('data', [ZIP, LEGACY], ids=['zip', 'legacy'])
def test_files_of_torch(data):
  a = np.arange(6, dtype=np.float32).reshape(2, 3)
  expected = {
    'a': a,
    'a.t': a.T,
    'half': np.float16([1.5, -2]),
    'bfloat': np.array([1.5, -2], ml_dtypes.bfloat16),
    'count': np.int64(7),
    'flags': np.array([True, False]),
    'empty': np.zeros((0, 3), np.float32),
    'parameter': np.full(2, 0.1, np.float32),
  }
  arrays = check_arrays(data, expected)
  assert np.shares_memory(arrays['a'], arrays['a.t'])


def text(value):
  return b'U' + bytes([len(value)]) + value.encode()  # as Python 2 wrote it


def test_a_file_of_torch_0_3_written_by_python_2():
  """[2,3] with a torch.Size, in an OrderedDict of pairs."""
  storage = b'(' + text('storage') + b'ctorch.cuda\nFloatStorage\n' + text('7') + text('cpu')
  tensor = b'ctorch._utils\n_rebuild_tensor\n(' + storage + b'K\6NtQK\0'
  tensor += b'ctorch\nSize\n(K\2K\3t\x85Rctorch\nSize\n(K\3K\1t\x85RtR'
  tree = b'\x80\x02ccollections\nOrderedDict\n]](' + text('w') + tensor + b'ea\x85R.'
  values = np.arange(6, dtype=np.float32)
  data = legacy_head() + tree + pickle.dumps(['7'], 2) + b'\6' + bytes(7) + values.tobytes()
  arrays = torch_file.parse(data)
  assert list(arrays) == ['w']
  np.testing.assert_array_equal(arrays['w'], values.reshape(2, 3))


# ---- TorchScript


def script_tree():
  """(module, {name: array} that must be read of it, in that order)."""
  grid = np.arange(6, dtype=np.float16).reshape(2, 3)
  storage = Storage(grid.ravel())
  bias = np.float32([1.5, -2])
  block = script_module(weight=Tensor(grid, storage), turned=Tensor(grid.T, storage))
  # "-1": the shortcut of CLIP's ResNet has such a child, without tensors.
  shortcut = script_module(**{'-1': script_module(), '0': block})
  tree = script_module(
    visual=script_module(layer=shortcut, bias=Tensor(bias, parameter=True)),
    transformer=block,
    logit_scale=Tensor(np.float32(4.6)),
    vocab_size=Tensor(np.int64(90)),
    empty=Tensor(np.zeros((0, 3), np.float32)),
    heads=8,
    eps=1e-5,
    padding='zeros',
  )
  expected = {
    'logit_scale': np.float32(4.6),
    'vocab_size': np.int64(90),
    'empty': np.zeros((0, 3), np.float32),
    'visual.bias': bias,
    'visual.layer.0.weight': grid,
    'visual.layer.0.turned': grid.T,
    'transformer.weight': grid,
    'transformer.turned': grid.T,
  }
  return tree, expected


@pytest.mark.parametrize('protocol', [2, 4])
def test_torchscript_archives(protocol):
  tree, expected = script_tree()
  data = save_script(tree, protocol=protocol)
  arrays = check_arrays(data, expected)
  assert np.shares_memory(arrays['visual.layer.0.weight'], arrays['transformer.turned'])
  # It is laid out as those of PyTorch, which the vectors have.
  for archive in (data, (CLIP / 'clip_files/tiny_vit.pt').read_bytes()):
    parts = zipfile.ZipFile(io.BytesIO(archive)).infolist()
    assert all(part.flag_bits == 0x808 for part in parts if part.file_size)
    compressed = [part.filename for part in parts if part.compress_type]
    assert compressed and all('/code/__torch__/' in name for name in compressed)


def test_torchscript_archives_may_lack_what_is_not_read_and_have_any_folder():
  tree, expected = script_tree()
  parts = script_parts(tree)
  needed = [name for name in parts if name == 'data.pkl' or name.startswith('data/')]
  for root in ('ViT-B-32', 'a/b'):
    check_arrays(script_zip({name: parts[name] for name in needed}, root), expected)


def test_nobody_opens_the_program_of_a_torchscript_archive():
  """Its bytes are damaged, and one of its parts would unpack to 50 MB."""
  tree, expected = script_tree()
  data = save_script(tree, {'code/bomb.py': bytes(50 * 2**20)})
  assert len(data) < 2**20
  archive = zipfile.ZipFile(io.BytesIO(data))
  damaged = bytearray(data)
  for part in archive.infolist():
    if '/code/' in part.filename or part.filename.endswith('/constants.pkl'):
      lengths = damaged[part.header_offset + 26 : part.header_offset + 30]
      start = part.header_offset + 30 + lengths[0] + lengths[2]
      damaged[start : start + part.compress_size] = b'\xff' * part.compress_size
  with pytest.raises(Exception, match='invalid|CRC'):
    zipfile.ZipFile(io.BytesIO(damaged)).testzip()
  check_arrays(bytes(damaged), expected)


@pytest.mark.parametrize('sub', CLIP_FILES['subcases'])
def test_files_of_clip(sub):
  config = CLIP_FILES['subcases'][sub]['config']
  arrays, sums = cases_clip_files.arrays(CLIP, config)
  assert [*arrays] == [name for name, _, _ in config['parameters']]
  with np.load(CLIP / CLIP_FILES['file']) as expected:
    for name, values in sums.items():
      key = f'{sub}/{name}'
      _, message = compare(values, expected[key], CLIP_FILES['arrays'][key]['tol'], float32=False)
      assert message is None
  for change in (
    {'sha256': '0' * 64},
    {'bytes': 7},
    {'parameters': config['parameters'][1:]},
    {'parameters': [[name, shape, 'float64'] for name, shape, _ in config['parameters']]},
    {'parameters': config['parameters'][::-1]},
  ):
    with pytest.raises(ValueError, match='another file|first difference'):
      cases_clip_files.arrays(CLIP, config | change)


# ---- safetensors


def test_weights_in_torchscript_and_safetensors(tmp_path):
  """As `pretrained` takes them, whatever they are called."""
  tree, expected = script_tree()
  arrays = {
    'count': np.array(7),
    'a.half': np.float16([1.5, -2]),
    'flags': np.array([True, False]),
    'wide': np.arange(6.0).reshape(2, 3),
    'empty': np.zeros((0, 3), np.float32),
    'brain': np.array([1.5, -2], ml_dtypes.bfloat16),
  }
  path = tmp_path / 'weights.bin'
  for data, values in (
    (save_script(tree), expected),
    (safetensors.save(arrays, {'format': 'pt'}), dict(sorted(arrays.items()))),
  ):
    path.write_bytes(data)
    found, digest = pretrained.load('vgg16', path)
    assert digest == hashlib.sha256(data).hexdigest() and list(found) == list(values)
    for name, value in values.items():
      assert found[name].dtype == value.dtype and found[name].shape == value.shape
      assert not found[name].size or not found[name].flags.writeable
      np.testing.assert_array_equal(found[name], value)


def test_odd_safetensors_are_refused_by_name(tmp_path):
  good = safetensors.save({'a': np.arange(3, dtype=np.uint16), 'b': np.array([True])})
  rest = good.replace(b'U16', b'I16')
  path = tmp_path / 'weights.safetensors'
  for data, said in (
    (good, "'a' is of dtype U16; known are F32"),
    (rest[:-1], 'broken safetensors file.*download it again'),
    (rest + b'\0', 'broken safetensors file'),
    (rest[:-1] + b'\2', 'booleans other than'),
    (rest.replace(b'I16', b'\n16'), 'broken safetensors file'),
    (rest.replace(b'"b"', b'"a"'), 'broken safetensors file'),
  ):
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=f'{path} is refused: .*{said}') as e:
      pretrained.load('vgg16', path)
    assert str(e.value).isprintable()
  path.write_bytes(rest)
  assert list(pretrained.load('vgg16', path)[0]) == ['a', 'b']


# ---- what isn't a network


def other_files():
  """{name: (content, what it is called)}: what a download brings instead of weights."""
  zipped = io.BytesIO()
  with zipfile.ZipFile(zipped, 'w', zipfile.ZIP_DEFLATED) as file:
    file.writestr('model/network.pkl', bytes(1000))
  return {
    'pointer': (b'version https://git-lfs.github.com/spec/v1\noid sha256:ab\n', 'Git LFS'),
    'page': (b'\xef\xbb\xbf\n<!DOCTYPE html><html>', 'web page'),
    'answer': (b'{"message": "Not Found"}', 'Not Found'),
    'stablehlo': (b'<\0\0\0008\0', 'unknown content'),
    'empty': (b'', 'empty'),
    'gzip': (gzip.compress(b'x'), 'compressed'),
    'zip': (zipped.getvalue(), 'zip archive without data.pkl, so not of PyTorch'),
    'cut zip': (zipped.getvalue()[:-9], 'broken zip'),
    'picture': (b'\xff\xd8\xff\xe0\0\x10JFIF', 'JFIF'),
    'noise': (random.Random(0).randbytes(999), 'unknown content'),
  }


@pytest.mark.parametrize('name', other_files())
def test_downloads_that_went_wrong_are_called_by_name(tmp_path, name):
  content, said = other_files()[name]
  (tmp_path / 'network.pkl').write_bytes(content)
  for function in (read.read_network, partial(pretrained.load, 'vgg16')):
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
