"""`prepare`: what is read, what is left out and named, where the data set goes, all or nothing."""

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from sg2jax import data
from sg2jax.data import destination, images, prepare, records, shards, sources
from sg2jax.faults import DatasetError, Preempted, UsageError, WriteError
from sg2jax.tools import prepare as tool
from tests.pictures import animation, bomb, encode, noise, odd_files, write_all
from tests.runs import ROOT, call


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


# ---- killed, and started again

FORKS = """
import os, random, signal, sys, time
from sg2jax.data import images, prepare, shards

shards.SHARD_IMAGES = 8
source, dest = sys.argv[1:]
def build(dest):
  prepare.build(source, dest, images.Options(16, 16), 'folder', workers=2)

begin = time.monotonic()
if os.fork() == 0:  # undisturbed, by a process of its own: a fork must find no threads here
  build(dest + '-whole')
  os._exit(0)
assert os.wait()[1] == 0
took = time.monotonic() - begin
there = dest + '/' + '.building'
def shards_there():
  return len([x for x in os.listdir(there) if x.endswith('.json')]) if os.path.exists(there) else -1

random.seed(0)
killed, status = 0, -1
while status:
  before = shards_there()
  if (child := os.fork()) == 0:
    build(dest)
    os._exit(0)
  if killed < 12:  # by its progress, too: the first run may have been slower than this one
    until = time.monotonic() + random.random() * took / 2
    while time.monotonic() < until and shards_there() < before + 3:
      time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
  status = os.waitpid(child, 0)[1]
  killed += status != 0
  print(shards_there())
print('killed', killed)
"""


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(tmp_path):
  """Real processes, SIGKILL at random moments; what they left is used, nothing is left behind."""
  good = {f'{name}/{i:03}.png': encode(noise(i)) for i in range(75) for name in 'ab'}
  write_all(tmp_path / 'in', good | {'a/zero.png': b'', 'b/010.png': b'text'})
  command = [sys.executable, '-c', FORKS, str(tmp_path / 'in'), str(tmp_path / 'out')]
  env = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
  done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
  assert done.returncode == 0, done.stderr
  print(done.stdout)
  *found, killed = done.stdout.splitlines()
  finished = [int(line) for line in found]  # shards after each
  assert int(killed.split()[1]) >= 3 and max(finished) > 0, done.stdout
  assert 'shards are there already' in done.stderr
  names = os.listdir(tmp_path / 'out-whole')
  assert sorted(os.listdir(tmp_path / 'out')) == sorted(names) and len(names) == 20 + 5
  for name in names:
    whole = (tmp_path / 'out-whole' / name).read_bytes()
    assert (tmp_path / 'out' / name).read_bytes() == whole, name


def make_all_but_the_end(tmp_path, monkeypatch, source, **options):
  """Shards of 3 pictures each that lack the description, as a run leaves that was killed there."""
  monkeypatch.setattr(shards, 'SHARD_IMAGES', 3)
  with monkeypatch.context() as patch:
    patch.setattr(prepare, '_finish', fail)
    with pytest.raises(WriteError, match='No space left.* goes on from the shards in .*building'):
      build(source, tmp_path / 'out', **options)
  return tmp_path / 'out' / destination.BUILDING


def fail(*_):
  raise OSError(28, 'No space left on device')


def converted(monkeypatch):
  """A list to which the names of pictures are added as they are converted."""
  names = []
  convert = shards.convert

  def count(name, *rest):
    names.append(name)
    return convert(name, *rest)

  monkeypatch.setattr(shards, 'convert', count)
  return names


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def replace_picture(root):
  """Another picture of the same size and time."""
  path = root / '4.png'
  status = path.stat()
  path.write_bytes(encode(255 - noise(4)).ljust(status.st_size, b'\0')[: status.st_size])
  os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = {
  'nothing': (lambda root, shard: None, ''),
  'the records': (lambda root, shard: flip(shard.with_suffix('.records')), '345'),
  'its end': (lambda root, shard: os.truncate(shard.with_suffix('.records'), 70_000), '345'),
  'its file': (lambda root, shard: os.remove(shard.with_suffix('.records')), '345'),
  'what it says': (lambda root, shard: flip(shard.with_suffix('.json')), '345'),
  'a half of it': (lambda root, shard: os.remove(shard.with_suffix('.json')), '345'),
  'a picture': (lambda root, shard: replace_picture(root), '345'),
  'the last name': (lambda root, shard: os.rename(root / '8.png', root / '9.png'), '679'),
  'the first name': (lambda root, shard: os.remove(root / '0.png'), '12345678'),
}


@pytest.mark.parametrize('change, again', CHANGES.values(), ids=CHANGES.keys())
def test_nothing_wrong_is_used_again(tmp_path, monkeypatch, change, again):
  root = tmp_path / 'in'
  write_all(root, {f'{i}.png': encode(noise(i)) for i in range(9)})
  folder = make_all_but_the_end(tmp_path, monkeypatch, root)
  second = shards.plan(sources.listing(root), str(root), images.Options(16, 16), None)[1]
  change(root, folder / second.key)
  names = converted(monkeypatch)
  report = build(root, tmp_path / 'out')
  assert ''.join(sorted(name[0] for name in names)) == again
  assert not (tmp_path / 'out' / destination.BUILDING).exists()
  assert report == build(root, tmp_path / 'new')
  for name in os.listdir(tmp_path / 'new'):
    assert (tmp_path / 'out' / name).read_bytes() == (tmp_path / 'new' / name).read_bytes()


def test_what_could_not_be_read_is_tried_again_and_other_options_start_anew(tmp_path, monkeypatch):
  root = tmp_path / 'in'
  write_all(root, {f'{i}.png': encode(noise(i)) for i in range(9)})

  def fail_to_read(root):
    def read(name):
      if name == '4.png':
        raise images.Unusable('unreadable: Stale file handle')
      return (root / name).read_bytes()

    return read

  with monkeypatch.context() as patch:
    patch.setattr(sources, '_folder_reader', fail_to_read)
    make_all_but_the_end(tmp_path, monkeypatch, root)
  names = converted(monkeypatch)
  assert build(root, tmp_path / 'out')['images'] == 9 and sorted(names) == [
    '3.png',
    '4.png',
    '5.png',
  ]
  make_all_but_the_end(tmp_path, monkeypatch, root)
  names.clear()
  build(root, tmp_path / 'out', resize_filter='lanczos')
  assert len(names) == 9


def test_a_signal_and_another_run_meanwhile(tmp_path, monkeypatch):
  monkeypatch.setattr(shards, 'SHARD_IMAGES', 3)
  write_all(tmp_path / 'in', {f'{i}.png': encode(noise(i)) for i in range(9)})
  arguments = f'--source={tmp_path}/in', f'--dest={tmp_path}/out', '--resolution=16'
  write = shards.write

  def disturb(folder, shard, pictures):
    write(folder, shard, pictures)
    with pytest.raises(UsageError, match=r'\.building is in use by process'):
      build(tmp_path / 'in', tmp_path / 'out')
    sys.exit(128 + 15)  # as `cli` does when SIGTERM comes

  with monkeypatch.context() as patch:
    patch.setattr(shards, 'write', disturb)
    with pytest.raises(Preempted, match='the same command goes on from the finished shards'):
      call(tool, *arguments)
  names = converted(monkeypatch)
  call(tool, *arguments)
  assert len(names) == 6 and len(load(tmp_path / 'out')) == 9


def test_nothing_is_left_of_a_run_that_finished_no_shard(tmp_path, monkeypatch):
  write_all(tmp_path / 'in', {'0.png': encode(noise(0))})
  monkeypatch.setattr(records, 'write_file', fail)
  with pytest.raises(WriteError, match='No space left'):
    build(tmp_path / 'in', tmp_path / 'new/out')
  assert os.listdir(tmp_path) == ['in']


def test_a_shard_that_lacks_records_is_not_finished(tmp_path, monkeypatch):
  """Whatever array_record says: what is on disk counts."""
  write_all(tmp_path / 'in', {f'{i}.png': encode(noise(i)) for i in range(3)})
  write = records.write_file
  monkeypatch.setattr(records, 'write_file', lambda path, x: (write(path, list(x)[1:])[0] + 1, 0))
  with pytest.raises(WriteError, match='has 2 of 3 records'):
    build(tmp_path / 'in', tmp_path / 'out')
  assert os.listdir(tmp_path) == ['in']


def test_workers_that_write_elsewhere_are_found_out(tmp_path):
  write_all(tmp_path / 'in', {'0.png': encode(noise(0))})
  with pytest.raises(
    WriteError, match=r"begins with '0.png' .* all workers need to see one folder"
  ):
    prepare.build(
      str(tmp_path / 'in'), str(tmp_path / 'out'), images.Options(16, 16), write=lambda *_: None
    )


def test_how_many_shards(monkeypatch):
  """Few enough to be open at once; of few images, so that little is lost when a run is killed."""

  def count(images_, side):
    names = [f'{i:07}' for i in range(images_)]
    listing = sources.Listing(names, {}, None, None, names)
    plan = shards.plan(listing, 'in', images.Options(side, side), None)
    assert [name for shard in plan for name in shard.names] == names
    assert len({shard.key for shard in plan}) == len(plan)
    return len(plan)

  assert [count(n, 64) for n in (1, 512, 513, 20_000)] == [1, 1, 2, 40]
  assert count(1000, 1024) == 48  # 21 of 3 MiB each
  assert count(300_000, 256) == 512 and count(1000, 16384) == 500


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
    (['--beam_options=--project=x'], UsageError, 'are of a --runner; name one'),
    (['--runner=DirectRunner', '--workers=2'], UsageError, '--direct_num_workers=8'),
    ([f'--dest={tmp_path}/new', f'--source={tmp_path}/no'], DatasetError, 'no such'),
    ([f'--dest={tmp_path}/new/deep', '--resolution=64'], DatasetError, 'no usable picture'),
  ):
    with pytest.raises(fault, match=words):
      call(tool, *place, *arguments)
  assert not (tmp_path / 'new').exists()


def test_beam_that_is_missing_is_said_before_any_work(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  monkeypatch.delitem(sys.modules, 'sg2jax.data.prepare_beam', raising=False)
  place = f'--source={tmp_path}/in', f'--dest={tmp_path}/out', '--resolution=16'
  with pytest.raises(UsageError, match=r'needs Apache Beam .*pip install "sg2jax\[train,beam\]"'):
    # what is Beam's may be an address
    call(tool, *place, '--runner=DataflowRunner', '--beam_options=--temp_location=gs://b/tmp')
