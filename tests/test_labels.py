"""Labels from strangers: folders, dataset.json in many forms; names, order, counts; in a Source."""

import json
import os
import pickle
import time
import zipfile

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from sg2jax import data
from sg2jax.data import images, labels, prepare, wording
from sg2jax.faults import DatasetError
from sg2jax.tools import prepare as tool
from tests.pictures import encode, noise, write_all

PNG = encode(noise(0, 8, 8))


def build(tmp_path, files, rule='folder'):
  """Prepares `files` {name: bytes, or JSON values for dataset.json}: (report, source)."""
  (tmp_path / 'in').mkdir(exist_ok=True)
  for name, content in files.items():
    if not isinstance(content, bytes):
      content = json.dumps(content).encode()
    write_all(tmp_path / 'in', {name: content})
  return finish(tmp_path, tmp_path / 'in', rule)


def finish(tmp_path, source, rule='folder'):
  report = prepare.build(str(source), str(tmp_path / 'out'), images.Options(8, 8), rule)
  return report, data.load('', str(tmp_path / 'out'), (8, 8), 3, True)


def shown(report):
  return '\n'.join(tool.summary(report))


def reasons(report):
  return {entry['file']: entry['reason'] for entry in report['unusable']}


def pictures(*names):
  return {name: PNG for name in names}


def of_json(tmp_path, table, *names):
  """(label of each picture or None, report) by a dataset.json."""
  names = names or ('0.png', '1.png', '2.png')
  report, source = build(tmp_path, pictures(*names) | {'dataset.json': table}, 'json')
  gone = reasons(report)
  found = iter([source.label(i).tolist() for i in range(len(source))])
  return {name: None if name in gone else next(found) for name in sorted(names)}, report


# ------------------------------------------------------------------------------------------ folders


def test_numbers_are_sorted_by_value_and_before_text(tmp_path):
  names = ['11', '2', '0', '1', '10', 'b', 'a10', 'a9', '02']
  report, source = build(tmp_path, pictures(*(f'{n}/x.png' for n in names), '2/y.png'))
  assert list(report['classes']) == ['0', '1', '02', '2', '10', '11', 'a9', 'a10', 'b']
  assert list(report['classes'].values()) == [1, 1, 1, 2, 1, 1, 1, 1, 1]
  assert source.labels.names == tuple(report['classes'])
  assert source.labels.class_counts() == report['classes']
  features = tfds.builder_from_directory(tmp_path / 'out').info.features
  assert features['label'].names == list(report['classes'])
  assert '  3: 2, 2\n' in shown(report) and 'natural order' in shown(report)
  assert json.loads((tmp_path / 'out/report.json').read_text())['classes'] == report['classes']


def test_classes_come_from_usable_pictures_only(tmp_path):
  files = pictures('cat/1.png', 'dog/1.png', 'dog/2.png') | {
    'docs/readme.txt': b'hello',
    'broken/a.jpg': b'\xff\xd8\xff',
    'small/a.png': encode(noise(0, 2, 2)),
    'top.jpg': b'x',
  }
  report, source = build(tmp_path, files)
  assert report['classes'] == {'cat': 1, 'dog': 2} and source.c_dim == 2
  assert any('broken, docs, small' in line for line in report['warnings'])
  found = reasons(report)
  assert 'JPEG' in found['broken/a.jpg'] and 'too small' in found['small/a.png']
  assert 'text' in found['top.jpg']
  assert [source.label(i).argmax() for i in range(3)] == [0, 1, 1]


def test_classes_that_look_like_parts_are_shown(tmp_path):
  report, _ = build(tmp_path, pictures('train/a/1.png', 'val/a/1.png', 'val/b/1.png'))
  assert report['classes'] == {'train': 1, 'val': 2} and 'parts of a data set' in shown(report)


def test_suffixes_decide_nothing(tmp_path):
  files = pictures('top/a/1.jpg', 'top/b/1.jfif', 'top/c/x.blob', 'top/d/1')
  report, _ = build(tmp_path, files | {'README.png': b'no picture', 'x/README': b'hello'})
  assert report['classes'] == {'a': 1, 'b': 1, 'c': 1, 'd': 1}


def test_one_folder_is_refused_with_what_was_left_out(tmp_path):
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in/cat').symlink_to('nowhere')
  with pytest.raises(DatasetError, match='one folder per class.*cat: broken link'):
    build(tmp_path, pictures('a.png', 'b.png'))


def test_linked_folders_are_classes_and_loops_end(tmp_path):
  write_all(tmp_path, {'far/cat/0.png': PNG, 'far/cat/deep/1.png': PNG, 'far/dog/0.png': PNG})
  (tmp_path / 'in/real').mkdir(parents=True)
  write_all(tmp_path / 'in', {'real/0.png': PNG})
  links = {
    'cat': '../far/cat',
    'dog': '../far/dog',
    'again': '../far/cat/',
    'a_real': 'real',
    'loop': '.',
    'up': '..',
    '../far/dog/back': '../cat',
  }
  for name, target in links.items():
    (tmp_path / 'in' / name).symlink_to(target)
  report, _ = finish(tmp_path, tmp_path / 'in')
  # a folder is read once, by its first path
  assert report['classes'] == {'again': 2, 'dog': 1, 'real': 1}
  found = reasons(report)
  assert set(found) == {'a_real', 'cat', 'dog/back', 'loop', 'up'}
  assert all('link to a folder' in reason for reason in found.values())


def test_names_that_are_no_text(tmp_path):
  names = b'caf\xe9', b'caf\\udce9', b'b\nc', b' ', b' x', b'x', '\u5b57 \U0001f600'.encode()
  write_all(tmp_path / 'in', {name + b'/\xff.png': PNG for name in names})
  report, source = finish(tmp_path, tmp_path / 'in')
  expected = ['\\x20', '\\x20x', 'b\\nc', 'caf\\\\udce9', 'caf\\udce9', 'x', '\u5b57 \U0001f600']
  assert list(report['classes']) == expected and source.labels.names == tuple(expected)
  shown(report).encode()


def test_zip_of_class_folders_from_windows(tmp_path):
  with zipfile.ZipFile(tmp_path / 'win.zip', 'w') as archive:
    for name in (
      'train\\cat\\0.png',
      'train\\dog\\0.png',
      '.\\train\\dog\\1.png',
      '..\\x.png',
      'C:\\y.png',
    ):
      info = zipfile.ZipInfo('x')
      info.filename = name
      archive.writestr(info, PNG)
    link = zipfile.ZipInfo('train/cat/link.png')
    link.external_attr = 0o120777 << 16
    archive.writestr(link, '0.png')
  report, _ = finish(tmp_path, tmp_path / 'win.zip')
  assert report['classes'] == {'cat': 1, 'dog': 2}
  assert set(reasons(report)) == {'../x.png', 'C:/y.png', 'train/cat/link.png'}


# --------------------------------------------------------------------------------------------- json


ZERO, ONE = [1, 0], [0, 1]


@pytest.mark.parametrize(
  'table',
  [
    {'labels': [['0.png', '0'], ['1.png', '1'], ['2.png', 1]]},
    {'labels': {'0.png': 0, '1.png': 1.0, '2.png': ' 1 '}},
    [['0.png', 0.0], ['1.png', 1.0], ['2.png', '1.0']],
    {'./0.png': 0, '.\\1.png': 1, 'x/../2.png': 1},
    {'/0.png': 0, '1.png': 1, 'a\\..\\2.png': 1},
    {'0.png': 'cat', '1.png': 'dog', '2.png': ' dog '},
    [['0.png', 0], ['1.png', 1], ['./2.png', 1], ['2.png', 1]],
    b'{"0.png": 0, "1.png": 1, "2.png": 1, "2.png": 1}',
  ],
)
def test_forms_of_dataset_json(tmp_path, table):
  found, report = of_json(tmp_path, table)
  assert found == {'0.png': ZERO, '1.png': ONE, '2.png': ONE}
  assert list(report['classes'].values()) == [1, 2]


@pytest.mark.parametrize('value', [None, -1, -1.0, '-1', '', float('nan')])
def test_unlabelled_files_are_named(tmp_path, value):
  found, report = of_json(tmp_path, {'0.png': 0, '1.png': value, '2.png': 1})
  assert found == {'0.png': ZERO, '1.png': None, '2.png': ONE}
  assert 'no label' in report['unusable'][0]['reason']


@pytest.mark.parametrize(
  'label',
  [
    0.5,
    True,
    {'a': 1},
    {},
    [],
    [0, [1]],
    [0, 'x'],
    [None],
    -2,
    2_000_000,
    10**400,
    float('inf'),
    [1, 0],
    'cat',
    ['cat'],
  ],
)
def test_the_odd_label_is_named(tmp_path, label):
  with pytest.raises(DatasetError, match=r"dataset\.json: .*'1\.png' is ") as refusal:
    of_json(tmp_path, {'0.png': 0, '1.png': label, '2.png': 1})
  assert len(str(refusal.value)) < 400 and '\n' not in str(refusal.value)
  assert os.listdir(tmp_path) == ['in']


def test_a_vector_beyond_float32_is_named(tmp_path):
  with pytest.raises(DatasetError, match=r"dataset\.json: .*'1\.png' is \[1e\+300, 1"):
    of_json(tmp_path, {'0.png': [0.5, 1], '1.png': [1e300, 1]})


@pytest.mark.parametrize(
  'table, words',
  [
    ([['0.png', 0], ['1.png']], 'entry 1'),
    ([['0.png', 0], {'file': '1.png', 'label': 2}], 'entry 1'),
    ([3], 'entry 0'),
    ([[3, '0.png']], 'entry 0'),
    ('text', 'text'),
    ({'labels': None}, 'no labels'),
    ({'0.png': None}, 'no file has a label'),
    ({'0.png': [1, 0], '1.png': [1, 0, 0], '2.png': [0, 1]}, r"'1\.png' is \[1"),
    ({'0.PNG': 1}, "'0.PNG'.*'0.png'"),
    ({'imgs/0.png': 1}, "'imgs/0.png'.*'0.png'"),
    ([['0.png', 0], ['1.png', 1], ['./1.png', 0]], "'./1.png' has two labels, 1 and 0"),
    (b'{"0.png": 0, "0.png": 1, "1.png": 0}', "'0.png' is there twice, with 0 and 1"),
  ],
)
def test_other_json_is_refused(tmp_path, table, words):
  with pytest.raises(DatasetError, match=words):
    of_json(tmp_path, table)


def test_strings_stay_one_number(tmp_path):
  found, report = of_json(tmp_path, [['0.png', '10'], ['1.png', '11'], ['2.png', '9']])
  assert [np.argmax(found[f'{i}.png']) for i in range(3)] == [10, 11, 9]
  assert len(found['0.png']) == 12
  assert report['warnings'] == [
    'never drawn, as no picture has this class: 0, 1, 2, 3, 4, 5, 6, 7, 8'
  ]


def test_stale_entries_and_broken_pictures_make_no_class(tmp_path):
  table = [['0.png', 1], ['1.png', 2], ['gone.png', 7], ['2.png', 2], ['bad.png', 9]]
  report, source = build(
    tmp_path, pictures('0.png', '1.png', '2.png') | {'bad.png': b'x', 'dataset.json': table}, 'json'
  )
  assert report['classes'] == {'0': 0, '1': 1, '2': 2} and source.c_dim == 3
  said = '\n'.join(report['warnings'])
  assert 'gone.png' in said and 'never drawn, as no picture has this class: 0' in said
  assert report['stale_labels'] == ('gone.png',)
  drawn = source.labels.draw(np.random.RandomState(0), 300)
  assert set(drawn.argmax(1)) == {1, 2} and 150 < (drawn.argmax(1) == 2).sum() < 250


def test_names_of_classes_in_json(tmp_path):
  table = {'0.png': 'img10', '1.png': 'img9', '2.png': 'img10', 'bad.png': 'zebra'}
  report, source = build(
    tmp_path, pictures('0.png', '1.png', '2.png') | {'bad.png': b'x', 'dataset.json': table}, 'json'
  )
  assert report['classes'] == {'img9': 1, 'img10': 2} and source.labels.names == ('img9', 'img10')
  assert any('zebra' in line for line in report['warnings'])


def test_paths_are_relative_to_the_json_or_the_source(tmp_path):
  names = 'top/0.png', 'top/a/1.png', 'top/u\u0308.png', 'top/\\2.png', 'b/3.png'
  table = ['0.png', 'top/a/1.png', '\u00fc.png', '\\2.png', 'A/0.png', '3.png']
  files = pictures(*names) | {'top/dataset.json': [[path, i] for i, path in enumerate(table)]}
  report, source = build(tmp_path, files, 'json')
  assert reasons(report).keys() == {'b/3.png'} and 'no label' in report['unusable'][0]['reason']
  order = sorted(names[:4])
  assert [names.index(name) for name in order] == [source.label(i).argmax() for i in range(4)]
  assert list(report['stale_labels']) == ['A/0.png', '3.png']
  assert "'A/0.png' (the source has 'b/3.png')" in report['warnings'][0]


def test_vectors(tmp_path):
  found, report = of_json(
    tmp_path, [['0.png', [1, 0, 0.5]], ['1.png', ['1', '1', '0']], ['2.png', [True, False, 0.5]]]
  )
  assert found == {'0.png': [1, 0, 0.5], '1.png': [1, 1, 0], '2.png': [1, 0, 0.5]}
  assert report['components'] == 3 and 'vectors of 3 components' in shown(report)
  stored = data.load('', str(tmp_path / 'out'), (8, 8), 3, True).labels
  assert (
    not stored.one_hot
    and stored.values.tolist() == [[1, 0, 0.5], [1, 1, 0]]
    and stored.counts.tolist() == [2, 1]
  )


# ----------------------------------------------------------------------------------------- sources


def test_source_without_labels_and_shrunk(tmp_path):
  _, source = build(tmp_path, pictures('a/0.png', 'b/0.png'))
  assert data.load('', str(tmp_path / 'out'), (8, 8), 3, False).labels is None
  assert data.Shrunk(source, 2).labels.names == ('a', 'b')
  assert pickle.loads(pickle.dumps(source)).labels.class_counts() == {'a': 1, 'b': 1}


def test_labels_are_read_where_nothing_is_stored(tmp_path):
  _, source = build(tmp_path, pictures('a/0.png', 'a/1.png', 'b/0.png'))
  first = source.labels
  (tmp_path / 'out' / labels.FILE).unlink()  # as earlier versions left it
  again = data.load('', str(tmp_path / 'out'), (8, 8), 3, True)
  assert again.hash == source.hash
  assert again.labels.names == first.names and again.labels.class_counts() == {'a': 2, 'b': 1}


def test_stored_labels_that_are_damaged_or_of_another_set(tmp_path):
  _, source = build(tmp_path, pictures('a/0.png', 'b/0.png'))
  file = tmp_path / 'out' / labels.FILE
  whole = file.read_text()
  for text in (
    whole[:7],
    whole.replace('["a", "b"]', '["a"]'),
    labels.Labels.unknown(3).to_json(),
    labels.Labels.of_vectors(source.labels.values).to_json(),
  ):
    file.write_text(text)
    again = data.load('', str(tmp_path / 'out'), (8, 8), 3, True)
    with pytest.raises(DatasetError, match=f'{file} does not hold .* or delete this file'):
      _ = again.labels


def test_labels_of_a_large_foreign_set_are_those_of_a_subset(tmp_path, monkeypatch):
  source = data.load('digits', str(tmp_path), (8, 8), 1, True)
  assert sum(source.labels.counts) == 1797 and len(source.labels.counts) == 10
  assert source.labels.names == ()
  monkeypatch.setattr(type(source), 'READ_RECORDS', 1000)
  parts = [data.load('digits', str(tmp_path), (8, 8), 1, True).labels for _ in range(2)]
  assert sum(parts[0].counts) == 1000 and parts[0].counts.tolist() == parts[1].counts.tolist()


def test_old_hashes_stay(tmp_path):
  """Runs resume by this hash; it is that of version 0.1 for the same pictures and labels."""
  write_all(tmp_path / 'in', {})
  for i in range(3):
    path = tmp_path / 'in' / 'ab'[i % 2] / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), i * 50, np.uint8)).save(path)
  report, source = finish(tmp_path, tmp_path / 'in')
  digest = '320aaad1f6680b2cab6d8f064c1aabf111208453fee0810568c3657d9cf7c2fa'
  assert report['content_sha256'] == digest
  assert source.hash == '3ee38de633c60a17fdc9bdd29df0c4b444956f79296e61619d6f078e2fc949e3'


def test_natural_order():
  names = ['b', 'a10', 'a9', '10', '9', '009', 'a', '', '9b', '9' * 5000]
  expected = ['', '009', '9', '9b', '10', '9' * 5000, 'a', 'a9', 'a10', 'b']
  assert sorted(names, key=wording.natural_key) == expected


def test_one_hot_labels_of_many_classes_take_no_square(tmp_path):
  # the square would be 40 GB
  many = labels.Labels.of_classes((), np.eye(1, 100_000, 7, dtype=int)[0])
  again = labels.Labels.from_json(many.to_json())
  assert many.c_dim == again.c_dim == 100_000 and again.values.argmax() == 7


@pytest.mark.parametrize(
  'name, value',
  [
    ('counts', [0, 3]),
    ('counts', [-1, 3]),
    ('values', [-1, 1]),
    ('values', [0.5, 1]),
    ('values', [1, 1]),
    ('values', [0, 3]),
    ('names', [1, 2, 3]),
    ('one_hot', False),
    ('counts', [2**70, 1]),
    ('counts', [1.5, 1]),
    ('counts', [[1], [1]]),
    ('counts', '11'),
    ('c_dim', 10**15),
    ('c_dim', 3.0),
  ],
)
def test_labels_that_nobody_wrote_are_refused(name, value):
  fields = json.loads(labels.Labels.of_classes(('a', 'b', 'c'), (2, 3, 0)).to_json())
  assert labels.Labels.from_json(json.dumps(fields)).c_dim == 3
  with pytest.raises((ValueError, TypeError)):
    labels.Labels.from_json(json.dumps(fields | {name: value}))


def test_many_classes_are_read_in_a_moment():
  text = labels.Labels.unknown(4000).to_json()
  start = time.process_time()
  assert labels.Labels.from_json(text).values.sum() == 4000
  assert time.process_time() - start < 1  # comparing rows took 2 s


def test_of_nothing_there_are_no_labels():
  fields = {'names': [], 'one_hot': True, 'c_dim': 2, 'values': [], 'counts': []}
  with pytest.raises(ValueError):
    labels.Labels.from_json(json.dumps(fields))
