"""Pickles, files of PyTorch and downloads that went wrong: read as data, or called by name."""

import collections
import fractions
from functools import partial
import gzip
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
from tests.foreign_files import LEGACY, ZIP, legacy_head

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
  arrays = torch_file.parse(data)
  assert list(arrays) == list(expected)
  for name, value in expected.items():
    assert arrays[name].dtype == value.dtype and arrays[name].shape == np.shape(value)
    assert not arrays[name].size or not arrays[name].flags.writeable
    np.testing.assert_array_equal(arrays[name], value)
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
    'zip': (zipped.getvalue(), 'zip archive without data.pkl, so not of torch.save'),
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
  with pytest.raises(WeightsError, match='unknown content.*dtype'):
    pretrained.load('vgg16', tmp_path / 'network.safetensors')
