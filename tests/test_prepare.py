"""`prepare`: odd files named or converted right, nothing half made, the reference transforms."""

import io
import json
import os
import pathlib
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
from PIL import Image
import pytest

from sg2jax import data, faults
from sg2jax.data import images, prepare

REFERENCE = pathlib.Path(__file__).with_name('reference')


def encode(array, fmt='PNG', mode=None, **kwargs):
  out = io.BytesIO()
  image = Image.fromarray(np.asarray(array))
  (image.convert(mode) if mode else image).save(out, fmt, **kwargs)
  return out.getvalue()


def noise(i, height=20, width=20, channels=3):
  return np.random.default_rng(i).integers(0, 256, (height, width, channels), dtype=np.uint8)


def flat(*color, size=16):
  return np.full((size, size, len(color)), color, np.uint8)


def animation(fmt):
  out = io.BytesIO()
  frames = [Image.fromarray(noise(i)) for i in range(3)]
  frames[0].save(out, fmt, save_all=True, append_images=frames[1:])
  return out.getvalue()


def chunk(kind, content):
  return (struct.pack('>I', len(content)) + kind + content
          + struct.pack('>I', zlib.crc32(kind + content)))


def bomb():
  header = struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)
  pixels = zlib.compress(bytes(100_000))
  return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', pixels)
          + chunk(b'IEND', b''))


def broken_files():
  """{name: (bytes, part of the reason)}: about 190 files that can't be used."""
  files = {}
  png, jpg = encode(noise(1, 40, 40)), encode(noise(2, 40, 40), 'JPEG')
  webp, bmp = encode(noise(3, 40, 40), 'WEBP', lossless=True), encode(noise(4, 40, 40), 'BMP')
  gif = encode(noise(5, 40, 40), 'GIF', 'P')
  tif = encode(noise(6, 40, 40), 'TIFF')
  for k in range(25):
    for kind, whole in (('png', png), ('jpg', jpg), ('webp', webp), ('bmp', bmp), ('gif', gif)):
      files[f'truncated/{k}.{kind}'] = (whole[:1 + k * (len(whole) - 40) // 25], '')
  for k in range(17):  # damage in the compressed pixels
    cut = 200 + k * 99
    files[f'flipped/{k}.png'] = (png[:cut] + b'\xff\0\xff\0' + png[cut + 4:], '')
  for k in range(8):
    files[f'truncated/{k}.tif'] = (tif[:k * len(tif) // 10], '')
    files[f'zero/{k}.png'] = (b'', 'empty file')
    files[f'zeros/{k}.jpg'] = (b'\0' * (k + 1) * 100, 'not an image')
    files[f'text/{k}.png'] = (b'not a picture ' * (k + 1), 'text')
    files[f'small/{k}.png'] = (encode(noise(k, 1 + k, 40)), 'too small')
  files |= {
      'page.png': (b'<!DOCTYPE html><html></html>', 'HTML'),
      'a.gif': (animation('GIF'), 'animated'), 'a.webp': (animation('WEBP'), 'animated'),
      'a.png': (animation('PNG'), 'animated'), 'pages.tif': (animation('TIFF'), 'multi-page'),
      '1x1.png': (encode(flat(1, 2, 3, size=1)), 'too small'),
      'bomb.png': (bomb(), 'decompression bomb'),
      'x.eps': (b'%!PS-Adobe-3.0 EPSF-3.0\n', 'EPS'),
      'eps.png': (b'%!PS-Adobe-3.0 EPSF-3.0\n', 'EPS'), 'x.pdf': (b'%PDF-1.7\n', 'PDF'),
      'x.svg': (b'<?xml version="1.0"?><svg xmlns="x"/>', 'SVG'),
      'x.heic': (b'\0\0\0\x18ftypheic' + b'\0' * 40, 'HEIC'),
      'x.zip': (b'PK\x03\x04' + b'\0' * 30, 'zip'), 'README.txt': (b'hello', 'text'),
      'float.tif': (encode(np.ones((16, 16), np.float32), 'TIFF'), 'floating-point'),
  }
  return files


def odd_files():
  """{name: (bytes, pixel [3] expected at the top left)}: usable at 16x16 in unusual ways."""
  palette = Image.fromarray(flat(200, 30, 40)).quantize(4)
  hole = Image.new('P', (16, 16), 1)
  hole.putpalette([0, 0, 0, 9, 9, 9])
  turned = np.zeros((16, 16, 3), np.uint8)
  turned[:, 8:] = 255  # shown turned by 90 degrees, so that the top is white
  exif = Image.Exif()
  exif[0x112] = 8

  def saved(image, **kwargs):
    out = io.BytesIO()
    image.save(out, 'PNG', **kwargs)
    return out.getvalue()

  return {
      'palette.png': (saved(palette), (200, 30, 40)),
      'hole.png': (saved(hole, transparency=1), (255, 255, 255)),
      'rgba.png': (encode(flat(0, 0, 0, 0)), (255, 255, 255)),
      'half.png': (encode(flat(0, 0, 0, 51)), (204, 204, 204)),
      'la.png': (saved(Image.new('LA', (16, 16), (100, 255))), (100, 100, 100)),
      'grey.png': (saved(Image.new('L', (16, 16), 77)), (77, 77, 77)),
      'bits.png': (saved(Image.new('1', (16, 16), 1)), (255, 255, 255)),
      'deep.png': (encode(np.full((16, 16), 257 * 99, np.uint16)), (99, 99, 99)),
      'deep.tif': (encode(np.full((16, 16), 257 * 98, np.uint16), 'TIFF'), (98, 98, 98)),
      'cmyk.jpg': (encode(flat(255, 0, 0), 'JPEG', 'CMYK', quality=100), (255, 0, 0)),
      'turned.jpg': (encode(turned, 'JPEG', exif=exif, quality=100), (255, 255, 255)),
      'wrong_suffix.jpg': (encode(flat(1, 2, 3)), (1, 2, 3)),
      'still.gif': (encode(flat(204, 51, 0), 'GIF', 'P'), (204, 51, 0)),
      'UPPER.BMP': (encode(flat(8, 9, 10), 'BMP'), (8, 9, 10)),
      'na\u00efve \u5b57.png': (encode(flat(11, 12, 13)), (11, 12, 13)),
  }


def write_all(root, files):
  for name, content in files.items():
    path = os.path.join(os.fsencode(root), name if isinstance(name, bytes) else name.encode())
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as file:
      file.write(content)


def test_two_hundred_bad_files_among_two_hundred_good(tmp_path):
  bad, odd = broken_files(), odd_files()
  good = {f'good/{i:03}.png': encode(noise(i, 16, 16)) for i in range(200 - len(odd))}
  root = tmp_path / 'in'
  root.mkdir()
  write_all(root, {n: c for n, (c, _) in bad.items()} | {n: c for n, (c, _) in odd.items()} | good)
  write_all(root, {'.hidden.png': b'x', '__MACOSX/a.png': b'x', '.git/a': b'x', 'Thumbs.db': b'x'})
  write_all(root, {b'mojibake-\xff\xfe.png': b'no picture'})
  (root / 'folder.png').mkdir()
  (root / 'gone.png').symlink_to('nowhere.png')
  (root / 'loop').symlink_to(root)
  os.mkfifo(root / 'pipe.png')
  expected = {*bad, 'folder.png', 'gone.png', 'loop', 'pipe.png', 'mojibake-\\udcff\\udcfe.png'}
  assert len(expected) >= 200

  report = prepare.build(str(root), str(tmp_path / 'out'), prepare.Options(16, 16))
  reasons = {e['file']: e['reason'] for e in report['unusable']}
  assert set(reasons) == expected
  assert all(reasons.values())
  for name, (_, words) in bad.items():
    assert words in reasons[name], (name, reasons[name])
  assert 'broken link' in reasons['gone.png']
  assert json.loads((tmp_path / 'out/report.json').read_text())['unusable'] == report['unusable']

  source = data.load('', str(tmp_path / 'out'), (16, 16), 3, False)
  names = sorted([*odd, *good])
  assert len(source) == len(names) == report['images'] == 200
  for i, name in enumerate(names):
    image = source[i]['image']
    if name in odd:
      np.testing.assert_allclose(image[0, 0], odd[name][1], atol=3, err_msg=name)
    else:
      np.testing.assert_array_equal(image, images.decode(good[name]), err_msg=name)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_unreadable_file_is_named(tmp_path):
  write_all(tmp_path / 'in', {'a.png': encode(noise(0)), 'b.png': encode(noise(1))})
  (tmp_path / 'in/a.png').chmod(0)
  report = prepare.build(str(tmp_path / 'in'), str(tmp_path / 'out'), prepare.Options(16, 16))
  assert [e['file'] for e in report['unusable']] == ['a.png']


def make_zip(path):
  with zipfile.ZipFile(path, 'w') as archive:
    for i in range(5):
      archive.writestr(f'top/{i}.png', encode(noise(i)))
    for name in ('../out.png', '/abs.png', '__MACOSX/top/._0.png', 'top/.hidden.png'):
      archive.writestr(name, encode(noise(9)))
    table = {'labels': [[f'{i}.png', i] for i in range(4)]}
    archive.writestr('top/dataset.json', json.dumps(table))
  whole = bytearray(path.read_bytes())
  whole[whole.index(b'top/0.png') + 200] ^= 255
  path.write_bytes(whole)


def test_zip_with_labels_and_damage(tmp_path):
  make_zip(tmp_path / 'in.zip')
  options = prepare.Options(16, 16, labels='json')
  report = prepare.build(str(tmp_path / 'in.zip'), str(tmp_path / 'out'), options)
  reasons = {e['file']: e['reason'] for e in report['unusable']}
  assert set(reasons) == {'top/0.png', 'top/4.png', '../out.png', '/abs.png'}
  assert 'zip' in reasons['top/0.png'] and 'label' in reasons['top/4.png']
  source = data.load('', str(tmp_path / 'out'), (16, 16), 3, True)
  assert [source[i]['label'].tolist() for i in range(3)] == np.eye(4)[1:].tolist()
  assert not (tmp_path / 'out.png').exists()


@pytest.mark.parametrize('table, expected', [
    ({'a/0.png': 1, 'b/1.png': 0}, [[0, 1], [1, 0]]),
    ({'labels': [['a/0.png', [1, 1, 0]], ['b/1.png', [0, 0, 1]]]}, [[1, 1, 0], [0, 0, 1]]),
    (None, [[1, 0], [0, 1]]),
])
def test_labels(tmp_path, table, expected):
  write_all(tmp_path / 'in', {'top/a/0.png': encode(noise(0)), 'top/b/1.png': encode(noise(1)),
                              'README': b'x'})
  if table:
    (tmp_path / 'in/top/dataset.json').write_text(json.dumps(table))
  options = prepare.Options(16, 16, labels='json' if table else 'folder')
  prepare.build(str(tmp_path / 'in'), str(tmp_path / 'out'), options)
  source = data.load('', str(tmp_path / 'out'), (16, 16), 3, True)
  assert [source[i]['label'].tolist() for i in range(2)] == expected


@pytest.mark.parametrize('content', ['[', '{}', '[1]', '{"labels": null}', '{"a": "b"}',
                                     '{"a": [1], "b": [1, 2]}', '{"a": 0.5}', '{"a": -1}'])
def test_bad_label_file(tmp_path, content):
  write_all(tmp_path / 'in', {'a.png': encode(noise(0)), 'dataset.json': content.encode()})
  options = prepare.Options(16, 16, labels='json')
  with pytest.raises(faults.DatasetError, match=r'dataset\.json'):
    prepare.build(str(tmp_path / 'in'), str(tmp_path / 'out'), options)
  assert os.listdir(tmp_path) == ['in']


def test_same_result_from_any_number_of_workers_and_shards(tmp_path, monkeypatch):
  write_all(tmp_path / 'in', {f'{i}.png': encode(noise(i)) for i in range(30)})
  options = prepare.Options(16, 16)
  one = prepare.build(str(tmp_path / 'in'), str(tmp_path / 'one'), options, workers=1)
  monkeypatch.setattr(prepare, 'SHARD_BYTES', 5000)
  many = prepare.build(str(tmp_path / 'in'), str(tmp_path / 'many'), options, workers=8)
  assert len(list((tmp_path / 'many').glob('images-train*'))) > 2
  assert one['content_sha256'] == many['content_sha256']
  a, b = (data.load('', str(tmp_path / d), (16, 16), 3, False) for d in ('one', 'many'))
  assert a.hash == b.hash
  for i in range(30):
    np.testing.assert_array_equal(a[i]['image'], b[i]['image'])


def test_dest_is_replaced_only_if_ours(tmp_path):
  write_all(tmp_path / 'in', {'a.png': encode(noise(0))})
  out = tmp_path / 'out'
  for _ in range(2):
    prepare.build(str(tmp_path / 'in'), str(out), prepare.Options(16, 16))
  (out / 'report.json').unlink()
  with pytest.raises(faults.UsageError, match='not empty'):
    prepare.build(str(tmp_path / 'in'), str(out), prepare.Options(16, 16))
  with pytest.raises(faults.UsageError, match='inside'):
    prepare.build(str(tmp_path / 'in'), str(tmp_path / 'in/out'), prepare.Options(16, 16))
  assert sorted(os.listdir(tmp_path)) == ['in', 'out']


def test_reference_vectors():
  manifest = json.loads((REFERENCE / 'manifest.json').read_text())
  case = next(c for c in manifest['cases'] if c['id'] == 'image_preprocessing')
  arrays = np.load(REFERENCE / case['file'])
  for sub, info in case['subcases'].items():
    config = info['config']
    got = prepare.images.transform_image(
        arrays[sub.split('/')[1]], config['transform'], config['output_width'],
        config['output_height'], config['resize_filter'])
    if config['dropped']:
      assert got is None, sub
    else:
      np.testing.assert_array_equal(got, arrays[sub], err_msg=sub)


def test_fit_rules():
  picture = noise(0, 40, 60)
  np.testing.assert_array_equal(
      images.fit_image(picture, 'center', 20, 20),
      images.transform_image(picture, 'center-crop', 20, 20, 'box'))
  assert images.fit_image(picture, 'center', 10, 20).shape == (10, 20, 3)
  np.testing.assert_array_equal(images.fit_image(picture, 'center', 20, 40),
                                images.transform_image(picture[5:35], None, 40, 20, 'box'))
  padded = images.fit_image(picture, 'pad', 30, 30, background=(1, 2, 3))
  np.testing.assert_array_equal(padded[5:25], images.transform_image(picture, None, 30, 20, 'box'))
  assert (padded[:5] == (1, 2, 3)).all() and (padded[25:] == (1, 2, 3)).all()
  assert images.fit_image(picture, 'wide', 18, 32).shape == (32, 32, 3)
  for fit in images.FITS:
    with pytest.raises(images.Unusable, match='too small'):
      images.fit_image(picture, fit, 80, 80)
  assert images.fit_image(picture, 'center', 80, 80, allow_upscale=True).shape == (80, 80, 3)
  with pytest.raises(images.Unusable, match='wrong aspect'):
    images.fit_image(noise(0, 8, 60), 'wide', 20, 40)


def test_grey(tmp_path):
  write_all(tmp_path / 'in', {'a.png': encode(flat(255, 0, 0)), 'b.png': encode(flat(7, 7, 7))})
  prepare.build(str(tmp_path / 'in'), str(tmp_path / 'out'),
                prepare.Options(24, 16, channels=1, fit='pad', background=(9, 9, 9)))
  source = data.load('', str(tmp_path / 'out'), (24, 16), 1, False)
  assert [source[i]['image'][12, 8, 0] for i in range(2)] == [76, 7]
  assert source[0]['image'][0, 0, 0] == 9


def command(*flags):
  return subprocess.run([sys.executable, '-m', 'sg2jax.tools.prepare', *flags], check=False,
                        text=True, capture_output=True, cwd=pathlib.Path(__file__).parents[1])


def test_command_line(tmp_path):
  write_all(tmp_path / 'in', {'a.png': encode(noise(0)), 'b.png': b''})
  place = f'--source={tmp_path}/in', f'--dest={tmp_path}/out'
  done = command(*place, '--resolution=16')
  assert done.returncode == 0 and 'b.png: empty file' in done.stdout, done
  for flags, code, words in (
      ((*place, '--resolutoin=16'), 2, 'resolution'),
      ((f'--dest={tmp_path}/new', f'--source={tmp_path}/no', '--resolution=16'), 3, 'no such'),
      ((f'--dest={tmp_path}/new', place[0], '--resolution=64'), 3, 'no usable picture')):
    done = command(*flags)
    assert done.returncode == code and words in done.stderr, (flags, done)
    assert len(done.stderr.splitlines()) == 1 and 'Traceback' not in done.stderr
  assert sorted(os.listdir(tmp_path)) == ['in', 'out']
