"""`prepare`: what is read, what is left out and named, where the data set goes, all or nothing."""

import json
import os
import zipfile

import numpy as np
import pytest

from sg2jax import data
from sg2jax.data import destination, images, prepare, records, shards
from sg2jax.faults import DatasetError, UsageError, WriteError
from sg2jax.tools import prepare as tool
from tests.pictures import animation, bomb, encode, noise, odd_files, write_all
from tests.runs import call


def build(source, dest, labels='none', workers=None, size=(16, 16), **options):
  return prepare.build(str(source), str(dest), images.Options(*size, **options), labels, workers)


def load(place, channels=3, labels=False):
  return data.load('', str(place), (16, 16), channels, labels)


def reasons(report):
  return {entry['file']: entry['reason'] for entry in report['unusable']}


# ---- what is read


@pytest.mark.smoke
def test_folder_with_everything_odd(tmp_path):
  root = tmp_path / 'in'
  odd = {name: content for name, (content, _) in odd_files().items()}
  good = {f'good/{i:03}.png': encode(noise(i, 16, 16)) for i in range(20)}
  bad = {'zero.png': b'', 'text.png': b'text', 'small.png': encode(noise(0, 8, 8))}
  write_all(root, odd | good | bad | {b'mojibake-\xff\xfe.png': b'no picture', 'bomb.png': bomb()})
  write_all(root, {'.hidden.png': b'x', '__MACOSX/a.png': b'x', '.git/a': b'x', 'Thumbs.db': b'x'})
  (root / 'gone.png').symlink_to('nowhere.png')
  (root / 'circle.png').symlink_to('circle.png')
  (root / 'loop').symlink_to(root)
  os.mkfifo(root / 'pipe.png')

  report = build(root, tmp_path / 'out')
  expected = {
    **dict.fromkeys(['gone.png', 'circle.png'], 'broken link'),
    'zero.png': 'empty file',
    'text.png': 'text',
    'small.png': 'too small',
    'bomb.png': 'decompression bomb',
    'loop': 'a loop',
    'pipe.png': 'not a regular file',
    'mojibake-\\udcff\\udcfe.png': 'text',
  }
  assert reasons(report).keys() == expected.keys()
  for name, words in expected.items():
    assert words in reasons(report)[name]
  assert json.loads((tmp_path / 'out/report.json').read_text())['unusable'] == report['unusable']

  source = load(tmp_path / 'out')
  names = sorted([*odd, *good])
  assert len(source) == len(names) == report['images']
  for i, name in enumerate(names):
    expected = images.convert((odd | good)[name], images.Options(16, 16))
    np.testing.assert_array_equal(source[i]['image'], expected, err_msg=name)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_unreadable_file_is_named(tmp_path):
  write_all(tmp_path / 'in', {'a.png': encode(noise(0)), 'b.png': encode(noise(1))})
  (tmp_path / 'in/a.png').chmod(0)
  assert reasons(build(tmp_path / 'in', tmp_path / 'out')).keys() == {'a.png'}


def test_zip_with_labels_and_damage(tmp_path):
  file = tmp_path / 'in.zip'
  with zipfile.ZipFile(file, 'w') as archive:
    for i in range(5):
      archive.writestr(f'top/{i}.png', encode(noise(i)))
    for name in ('../out.png', '/abs.png', '__MACOSX/top/._0.png', 'top/.hidden.png'):
      archive.writestr(name, encode(noise(9)))
    table = {'labels': [[f'{i}.png', i] for i in range(4)]}
    archive.writestr('top/dataset.json', json.dumps(table))
    archive.writestr('top/lzma.png', encode(noise(5)), zipfile.ZIP_LZMA)
    archive.writestr('top/\u00fc.png', encode(noise(6)))
  whole = bytearray(file.read_bytes())
  whole[whole.index(b'top/0.png') + 200] ^= 255
  whole[whole.index(b'top/lzma.png') + 200] ^= 255
  whole[whole.index(b'top/\xc3') + 4] ^= 255  # now no UTF-8; the list of all names still is
  file.write_bytes(whole)
  found = reasons(build(file, tmp_path / 'out', 'json'))
  damaged = {'top/0.png', 'top/lzma.png', 'top/\u00fc.png'}
  assert found.keys() == damaged | {'top/4.png', '../out.png', '/abs.png'}
  assert all('zip' in found[name] for name in damaged) and 'label' in found['top/4.png']
  source = load(tmp_path / 'out', labels=True)
  assert [source[i]['label'].tolist() for i in range(3)] == np.eye(4)[1:].tolist()
  assert not (tmp_path / 'out.png').exists()
  whole[whole.rindex(b'top/\xc3') + 4] ^= 255
  file.write_bytes(whole)
  with pytest.raises(DatasetError, match='neither a folder nor a readable zip .*utf-8'):
    build(file, tmp_path / 'out')


def test_same_result_from_any_number_of_workers_and_shards(tmp_path, monkeypatch):
  write_all(tmp_path / 'in', {f'{i}.png': encode(noise(i)) for i in range(30)})
  one = build(tmp_path / 'in', tmp_path / 'one', workers=1)
  monkeypatch.setattr(shards, 'SHARD_BYTES', 5000)
  many = build(tmp_path / 'in', tmp_path / 'many', workers=8)
  assert len(list((tmp_path / 'many').glob('images-train*'))) > 2
  assert one['content_sha256'] == many['content_sha256']
  a, b = load(tmp_path / 'one'), load(tmp_path / 'many')
  assert a.hash == b.hash
  for i in range(30):
    np.testing.assert_array_equal(a[i]['image'], b[i]['image'])


def test_range_of_16_bits_is_warned_of(tmp_path):
  values = np.linspace(0, 4095, 256).reshape(16, 16).astype(np.uint16)
  write_all(tmp_path / 'in', {'a.png': encode(values), 'b.tif': encode(values, 'TIFF')})

  def warning(**options):
    return ''.join(build(tmp_path / 'in', tmp_path / 'out', **options)['warnings'])

  assert '--max_value=4095' in warning()
  assert not warning(max_value=4095)
  write_all(tmp_path / 'in', {'c.png': encode(np.full((16, 16), 60_000, np.uint16))})
  assert not warning()


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_channels(tmp_path, channels):
  write_all(tmp_path / 'in', {'a.png': encode(noise(0, 16, 16, 4))})
  build(tmp_path / 'in', tmp_path / 'out', channels=channels)
  source = load(tmp_path / 'out', channels)
  assert source[0]['image'].shape == (16, 16, channels)
  assert data.Shrunk(source, 2)[0]['image'].shape == (8, 8, channels)


# ---- where the data set goes


def build_into(tmp_path, dest, count):
  """Prepares `count` pictures: warnings."""
  folder = tmp_path / f'in{count}'
  write_all(folder, {f'{i}.png': encode(noise(i)) for i in range(count)})
  return build(folder, dest)['warnings']


@pytest.mark.parametrize('kind', ['to a folder', 'to nothing', 'relative', 'of a link', 'above'])
def test_dest_may_be_a_link(tmp_path, kind):
  store, link = tmp_path / 'disk/store', tmp_path / 'linked'
  (store if kind == 'to a folder' else store.parent).mkdir(parents=True)
  dest = link
  if kind == 'of a link':
    (tmp_path / 'second').symlink_to(store)
    link.symlink_to('second')
  elif kind == 'above':
    link.symlink_to(store.parent)
    dest = link / 'store'
  else:
    link.symlink_to('disk/store' if kind == 'relative' else store)
  before = os.listdir(tmp_path)
  for count in (2, 3):
    assert not build_into(tmp_path, dest, count)
    assert link.is_symlink() and len(load(store)) == len(load(dest)) == count
  assert set(os.listdir(tmp_path)) == {*before, 'in2', 'in3'}
  assert os.listdir(store.parent) == ['store']


def test_dest_that_is_refused(tmp_path):
  (tmp_path / 'a').symlink_to('b')
  (tmp_path / 'b').symlink_to('a')
  (tmp_path / 'linked').symlink_to('in2/new')
  (tmp_path / 'file').write_text('x')
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine/report.json').write_text('{"tool": "another"}')
  for dest, words in {
    'a': 'links',
    'file': 'Not a directory',
    'file/out': 'Not a directory',
    '\udce9': 'utf-8',
    'in2/new': 'is inside of --source',
    'linked': 'is inside of --source',
    'mine': "holds 'report.json', which was not made by this tool",
  }.items():
    with pytest.raises(UsageError, match=words):
      build_into(tmp_path, tmp_path / dest, 2)
  out = tmp_path / 'out'
  build_into(tmp_path, out, 2)
  (out / 'runs').mkdir()  # somebody's own, in a folder that would be replaced
  with pytest.raises(UsageError, match="'runs', which .* would be lost"):
    build_into(tmp_path, out, 3)
  assert len(load(out)) == 2


def test_a_killed_run_leaves_no_half_of_a_data_set(tmp_path, monkeypatch):
  out = tmp_path / 'out'
  build_into(tmp_path, out, 2)
  replace = os.replace

  def fail(source, target):
    if str(target).endswith('features.json'):
      raise OSError(28, 'No space left on device')
    replace(source, target)

  with monkeypatch.context() as patch:
    patch.setattr(os, 'replace', fail)
    with pytest.raises(WriteError, match='No space'):
      build_into(tmp_path, out, 3)
  assert not (out / records.INFO).exists()
  build_into(tmp_path, out, 4)
  assert len(load(out)) == 4 and destination.BUILDING not in os.listdir(out)


# ---- sizes, summaries, command line


@pytest.mark.parametrize(
  'height, width, fit, remedy',
  [
    (100, 100, 'center', 'try 96x96'),
    (100, 256, 'center', 'try 128x256'),
    (96, 100, 'wide', '--fit=wide.*100x100.*try 96x96'),
    (3, 3, 'pad', 'try 4x4'),
  ],
)
def test_sizes_that_no_network_has(tmp_path, height, width, fit, remedy):
  with pytest.raises(UsageError, match=remedy):
    build(tmp_path / 'nowhere', tmp_path / 'out', size=(height, width), fit=fit)


def test_height_of_wide_is_free():
  prepare.check_resolution(images.Options(75, 128, fit='wide'))


def test_summary_is_short(tmp_path):
  small = {f'{i}.png': encode(noise(i)) for i in range(40)}
  write_all(tmp_path / 'in', small | {'a.txt': b'text', 'b.gif': animation('GIF')})
  report = build(tmp_path / 'in', tmp_path / 'out', size=(64, 64))
  lines = list(tool.summary(report))
  assert report['images'] == 0 and len(lines) == 1 + 3 + 20 + 1
  assert lines[1] == '  40 x too small' and lines[-1] == '  ... and 22 more, see the report'
  assert any('`prepare --allow_upscale` enlarges it' in line for line in lines)


@pytest.mark.parametrize('hidden', [False, True])
@pytest.mark.parametrize('rule', ['none', 'folder', 'json'])
def test_nothing_to_read_is_said(tmp_path, hidden, rule):
  (tmp_path / 'in').mkdir()
  if hidden:
    write_all(tmp_path / 'in', {'.a.png': b'x', '.git/a.png': b'x', '__MACOSX/x/dataset.json': b''})
  with pytest.raises(DatasetError, match='no file in it'):
    build(tmp_path / 'in', tmp_path / 'out', rule)
  assert os.listdir(tmp_path) == ['in']


def test_command_line(tmp_path, capsys):
  files = {
    'a.png': encode(noise(0)),
    'b.png': b'',
    'c.gif': animation('GIF'),
    'd.png': encode(np.full((20, 20), 4095, np.uint16)),
  }
  write_all(tmp_path / 'in', files)
  place = f'--source={tmp_path}/in', f'--dest={tmp_path}/out', '--resolution=16'
  call(tool, *place, '--animation=first', '--max_value=4095', '--max_pixels=400', '--channels=4')
  printed = capsys.readouterr().out
  assert printed.startswith('3 images, 1 unusable') and 'b.png: empty file' in printed
  assert (load(tmp_path / 'out', 4)[2]['image'] == 255).all()
  for arguments, fault, words in (
    (['--resolutoin=16'], UsageError, 'resolution'),
    (['--resolution=8x'], UsageError, '--resolution=8x: must be R or HEIGHTxWIDTH'),
    (['--resolution='], UsageError, 'resolution'),
    (['--background=mud'], UsageError, '--background=mud: must be a CSS colour'),
    (['--fit=wide', '--resolution=32x16'], UsageError, 'the width must be the larger side'),
    (['--source='], UsageError, '--source is missing; name a folder'),
    ([f'--dest={tmp_path}/new', f'--source={tmp_path}/no'], DatasetError, 'no such'),
    ([f'--dest={tmp_path}/new/deep', '--resolution=64'], DatasetError, 'no usable picture'),
  ):
    with pytest.raises(fault, match=words):
      call(tool, *place, *arguments)
  assert not (tmp_path / 'new').exists()
