"""`prepare`: odd files named or converted right, nothing half made, the reference transforms."""

import io
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
from PIL import Image
import pytest

from sg2jax import data, faults
from sg2jax.data import destination, formats, images, prepare, summary

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
  return (
    struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))
  )


def bomb():
  header = struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)
  pixels = zlib.compress(bytes(100_000))
  return (
    b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')
  )


def broken_files():
  """{name: (bytes, part of the reason)}: about 190 files that can't be used."""
  files = {}
  png, jpg = encode(noise(1, 40, 40)), encode(noise(2, 40, 40), 'JPEG')
  webp, bmp = encode(noise(3, 40, 40), 'WEBP', lossless=True), encode(noise(4, 40, 40), 'BMP')
  gif = encode(noise(5, 40, 40), 'GIF', 'P')
  tif = encode(noise(6, 40, 40), 'TIFF')
  for k in range(25):
    for kind, whole in (('png', png), ('jpg', jpg), ('webp', webp), ('bmp', bmp), ('gif', gif)):
      files[f'truncated/{k}.{kind}'] = (whole[: 1 + k * (len(whole) - 40) // 25], '')
  for k in range(17):  # damage in the compressed pixels
    cut = 200 + k * 99
    files[f'flipped/{k}.png'] = (png[:cut] + b'\xff\0\xff\0' + png[cut + 4 :], '')
  for k in range(8):
    files[f'truncated/{k}.tif'] = (tif[: k * len(tif) // 10], '')
    files[f'zero/{k}.png'] = (b'', 'empty file')
    files[f'zeros/{k}.jpg'] = (b'\0' * (k + 1) * 100, 'not an image')
    files[f'text/{k}.png'] = (b'not a picture ' * (k + 1), 'text')
    files[f'small/{k}.png'] = (encode(noise(k, 1 + k, 40)), 'too small')
  files |= {
    'page.png': (b'<!DOCTYPE html><html></html>', 'HTML'),
    'a.avif': (animation('AVIF') if 'AVIF' in formats.FORMATS else b'\0\0\0\x18ftypavif', 'AVIF'),
    'a.gif': (animation('GIF'), 'animated'),
    'a.webp': (animation('WEBP'), 'animated'),
    'a.png': (animation('PNG'), 'animated'),
    'pages.tif': (animation('TIFF'), 'multi-page'),
    '1x1.png': (encode(flat(1, 2, 3, size=1)), 'too small'),
    'bomb.png': (bomb(), 'decompression bomb'),
    'x.eps': (b'%!PS-Adobe-3.0 EPSF-3.0\n', 'EPS'),
    'eps.png': (b'%!PS-Adobe-3.0 EPSF-3.0\n', 'EPS'),
    'x.pdf': (b'%PDF-1.7\n', 'PDF'),
    'x.svg': (b'<?xml version="1.0"?><svg xmlns="x"/>', 'SVG'),
    'x.heic': (b'\0\0\0\x18ftypheic' + b'\0' * 40, 'HEIC'),
    'x.zip': (b'PK\x03\x04' + b'\0' * 30, 'zip'),
    'README.txt': (b'hello', 'text'),
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


@pytest.mark.parametrize(
  'table, expected',
  [
    ({'a/0.png': 1, 'b/1.png': 0}, [[0, 1], [1, 0]]),
    ({'labels': [['a/0.png', [1, 1, 0]], ['b/1.png', [0, 0, 1]]]}, [[1, 1, 0], [0, 0, 1]]),
    (None, [[1, 0], [0, 1]]),
  ],
)
def test_labels(tmp_path, table, expected):
  write_all(
    tmp_path / 'in',
    {'top/a/0.png': encode(noise(0)), 'top/b/1.png': encode(noise(1)), 'README': b'x'},
  )
  if table:
    (tmp_path / 'in/top/dataset.json').write_text(json.dumps(table))
  options = prepare.Options(16, 16, labels='json' if table else 'folder')
  prepare.build(str(tmp_path / 'in'), str(tmp_path / 'out'), options)
  source = data.load('', str(tmp_path / 'out'), (16, 16), 3, True)
  assert [source[i]['label'].tolist() for i in range(2)] == expected


@pytest.mark.parametrize(
  'content',
  [
    '[',
    '{}',
    '[1]',
    '{"labels": null}',
    '{"b.png": 1}',
    '\xff',
    '[' * 10**5,
    '{"a.png": []}',
    '{"a.png": 0.5}',
    '{"a.png": -1}',
    '{"a.png": -2}',
  ],
)
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
      arrays[sub.split('/')[1]],
      config['transform'],
      config['output_width'],
      config['output_height'],
      config['resize_filter'],
    )
    if config['dropped']:
      assert got is None, sub
    else:
      np.testing.assert_array_equal(got, arrays[sub], err_msg=sub)


def test_fit_rules():
  picture = noise(0, 40, 60)
  np.testing.assert_array_equal(
    images.fit_image(picture, 'center', 20, 20),
    images.transform_image(picture, 'center-crop', 20, 20, 'box'),
  )
  assert images.fit_image(picture, 'center', 10, 20).shape == (10, 20, 3)
  np.testing.assert_array_equal(
    images.fit_image(picture, 'center', 20, 40),
    images.transform_image(picture[5:35], None, 40, 20, 'box'),
  )
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
  prepare.build(
    str(tmp_path / 'in'),
    str(tmp_path / 'out'),
    prepare.Options(24, 16, channels=1, fit='pad', background=(9, 9, 9)),
  )
  source = data.load('', str(tmp_path / 'out'), (24, 16), 1, False)
  assert [source[i]['image'][12, 8, 0] for i in range(2)] == [76, 7]
  assert source[0]['image'][0, 0, 0] == 9


def read(data, **rules):
  return images.read(data, images.Rules(**rules))


# ------------------------------------------------------------------------- metadata, formats, sizes


def exif_block(entries, prefix=b''):
  """A TIFF header and one IFD of (tag, type, count, value)."""
  ifd = (
    struct.pack('<H', len(entries)) + b''.join(struct.pack('<HHII', *e) for e in entries) + bytes(4)
  )
  return prefix + b'II*\0\x08\0\0\0' + ifd + struct.pack('<II', 1, 2)


def with_chunk(png, kind, content):
  return png[:33] + chunk(kind, content) + png[33:]  # after IHDR


def with_segment(jpeg, marker, content):
  return jpeg[:2] + bytes([0xFF, marker]) + struct.pack('>H', len(content) + 2) + content + jpeg[2:]


def broken_metadata():
  """{name: (bytes, is it to be turned by 270 degrees)}: pictures that any viewer shows."""
  junk = b'\x00\x08\x00\x02\x01\x12\x00\x03'
  turn, rational = (0x112, 3, 1, 6), (0x10F, 5, 1, 38)
  png, jpeg, webp = (
    encode(half(), fmt, **more)
    for fmt, more in (('PNG', {}), ('JPEG', {'quality': 100}), ('WEBP', {'lossless': True}))
  )
  files = {
    'junk.png': (encode(half(), exif=junk), False),
    'junk.webp': (encode(half(), 'WEBP', exif=junk, lossless=True), False),
    'rational.png': (with_chunk(png, b'eXIf', exif_block([rational, turn])), True),
    'rational.jpg': (with_segment(jpeg, 0xE1, exif_block([rational, turn], b'Exif\0\0')), True),
    'junk.jpg': (with_segment(jpeg, 0xE1, b'Exif\0\0' + junk), False),
    'mpf.jpg': (with_segment(jpeg, 0xE2, b'MPF\0' + exif_block([(0xB001, 2, 9, 0)])), False),
    'photoshop.jpg': (with_segment(jpeg, 0xED, b'Photoshop 3.0\x008BIM\x04'), False),
    'long.png': (with_chunk(png, b'zTXt', b'a\0\0' + zlib.compress(bytes(2**21))), False),
    'hex.png': (with_chunk(png, b'tEXt', b'Raw profile type exif\0\nexif\n 8\nxyz'), False),
    'phys.png': (with_chunk(png, b'pHYs', b'\0'), False),
    'iccp.png': (with_chunk(png, b'iCCP', b'x\0\0y'), False),
    'xmp.webp': (webp, False),
    'array.jpg': (with_segment(jpeg, 0xE1, exif_block([(0x112, 3, 9, 6)], b'Exif\0\0')), False),
    'pointer.tif': (encode(half(), 'TIFF', tiffinfo={0x8769: 3}), False),
  }
  if 'AVIF' in formats.FORMATS:
    good = encode(half(), 'AVIF', quality=100, exif=exif_block([(0x10F, 3, 1, 1)], b'Exif\0\0'))
    files['junk.avif'] = good.replace(b'II*\0', b'xx*\0'), False
  return files


def half():
  """White left, black right."""
  array = np.zeros((16, 16, 3), np.uint8)
  array[:, :8] = 255
  return array


@pytest.mark.filterwarnings('ignore')
def test_broken_metadata_lose_no_picture():
  for name, (content, turned) in broken_metadata().items():
    expected = np.rot90(half(), -1) if turned else half()
    np.testing.assert_allclose(images.decode(content), expected, atol=8, err_msg=name)


def test_stripping_metadata_changes_no_pixel_and_hides_no_animation():
  for fmt in ('PNG', 'JPEG', 'WEBP', 'GIF'):
    whole = encode(noise(1), fmt, 'P' if fmt == 'GIF' else None)
    np.testing.assert_array_equal(
      images.decode(formats.without_metadata(whole)), images.decode(whole)
    )
    if fmt != 'JPEG':
      with pytest.raises(images.Unusable, match='animated'):
        images.decode(formats.without_metadata(animation(fmt)))
  assert formats.without_metadata(b'\xff\xd8\xff') and formats.without_metadata(b'') == b''


def other_formats():
  """{name: (bytes, what is said)}"""
  made = {
    'TGA': 'TGA',
    'ICO': 'ICO',
    'PCX': 'PCX',
    'DDS': 'DDS',
    'SGI': 'SGI',
    'ICNS': 'ICNS',
    'JPEG2000': 'JPEG 2000',
  }
  files = {f'{fmt}.png': (encode(noise(0, 32, 32), fmt), said) for fmt, said in made.items()}
  plain_tga = bytes([0, 0, 2] + [0] * 9) + struct.pack('<HHBB', 20, 20, 24, 0) + bytes(1200)
  return files | {
    'old.jpg': (plain_tga, 'TGA'),
    'x.tga': (b'\1\2' * 30, 'TGA'),
    'x.nef': (b'\1\2' * 30, 'NEF'),
    'a.jxl': (b'\xff\x0a' + b'abc' * 9, 'JPEG XL'),
    'b.png': (b'\0\0\0\x0cJXL \r\n\x87\n', 'JPEG XL'),
    'codestream.jpg': (b'\xff\x4f\xff\x51' + bytes(40), 'JPEG 2000'),
    'q.png': (b'qoif' + bytes(40), 'QOI'),
    'p.jpg': (b'8BPS\0\1' + bytes(40), 'PSD'),
    'x.exr': (b'\x76\x2f\x31\x01' + bytes(40), 'OpenEXR'),
    'h.jpg': (b'\0\0\0\x18ftypheic' + bytes(40), 'HEIC'),
    'm.jpg': (b'\0\0\0\x18ftypmif1\0\0\0\0heic', 'HEIC'),
    'v.png': (b'\0\0\0\x18ftypmp42' + bytes(40), 'video'),
    'k.webm': (b'\x1aE\xdf\xa3' + bytes(40), 'video'),
    's.svg': (b'<svg xmlns="x"/>', 'SVG'),
    'z.svgz': (b'\x1f\x8b\x08' + bytes(40), 'gzip'),
    'l.png': (b'version https://git-lfs.github.com/spec/v1', 'git lfs pull'),
    'n.png': (b'\x93NUMPY', 'NumPy'),
  }


def test_other_formats_are_named():
  for name, (content, said) in other_formats().items():
    with pytest.raises(images.Unusable) as refusal:
      images.read(content, images.Rules(), name)
    assert said in str(refusal.value), (name, str(refusal.value))


@pytest.mark.skipif('AVIF' not in formats.FORMATS, reason='this Pillow reads no AVIF')
def test_avif():
  np.testing.assert_allclose(images.decode(encode(half(), 'AVIF', quality=100)), half(), atol=8)
  exif = Image.Exif()
  exif[0x112] = 6
  np.testing.assert_allclose(
    images.decode(encode(half(), 'AVIF', quality=100, exif=exif)), np.rot90(half(), -1), atol=8
  )


@pytest.mark.parametrize(
  'fmt', ['GIF', 'PNG', 'WEBP', 'TIFF', *(['AVIF'] if 'AVIF' in formats.FORMATS else [])]
)
def test_first_picture_of_an_animation(fmt):
  out = io.BytesIO()
  frames = [
    Image.fromarray(flat(40, 200, 90)),
    Image.fromarray(flat(0, 0, 0)),
    Image.fromarray(flat(9, 9, 9)),
  ]
  frames[0].save(out, fmt, save_all=True, append_images=frames[1:])
  with pytest.raises(images.Unusable, match=f'{fmt}: 3 pictures; --animation=first'):
    read(out.getvalue())
  np.testing.assert_allclose(
    read(out.getvalue(), animation='first').pixels, flat(40, 200, 90), atol=4
  )


def test_large_pictures_by_a_flag(tmp_path):
  large = encode(np.zeros((30, 40, 3), np.uint8))
  with pytest.raises(images.Unusable, match='1200 pixels, more than 1199; --max_pixels=1200'):
    read(large, max_pixels=1199)
  assert read(large, max_pixels=1200).pixels.shape == (30, 40, 3)
  with pytest.raises(images.Unusable, match='3600000000 pixels.*--max_pixels=3600000000'):
    read(bomb())
  # More than twice Pillow's own limit, which it would refuse by itself.
  out = io.BytesIO()
  Image.new('1', (16_384, 12_000), 1).save(out, 'PNG')
  write_all(tmp_path / 'in', {'a.png': out.getvalue()})
  small = prepare.build(str(tmp_path / 'in'), str(tmp_path / 'out'), prepare.Options(16, 16))
  assert small['images'] == 0 and '--max_pixels=196608000' in small['unusable'][0]['reason']
  limit = Image.MAX_IMAGE_PIXELS
  pictures = prepare._Pictures(
    prepare.sources.listing(tmp_path / 'in'), prepare.Options(16, 16, max_pixels=2 * 10**8)
  )
  with prepare._pillow(pictures.options):
    assert Image.MAX_IMAGE_PIXELS == 2 * 10**8
  assert Image.MAX_IMAGE_PIXELS == limit


def test_stated_range_of_deep_grey(tmp_path):
  values = np.linspace(0, 4095, 256).reshape(16, 16).astype(np.uint16)
  write_all(
    tmp_path / 'in', {'a.png': encode(values), 'b.tif': encode(values[::-1].copy(), 'TIFF')}
  )

  def build(**options):
    report = prepare.build(
      str(tmp_path / 'in'), str(tmp_path / 'out'), prepare.Options(16, 16, **options)
    )
    return data.load('', str(tmp_path / 'out'), (16, 16), 3, False)[0]['image'][:, :, 0], report[
      'warnings'
    ]

  dark, said = build()
  assert dark.max() == 16 and '--max_value=4095' in said[0]
  full, said = build(max_value=4095)
  assert not said
  np.testing.assert_array_equal(full, np.rint(values * (255 / 4095)).astype(np.uint8))
  clipped, said = build(max_value=1023)
  assert (
    '2 pictures with values above --max_value=1023' in said[0] and (clipped == 255).mean() > 0.7
  )
  write_all(tmp_path / 'in', {'c.png': encode(np.full((16, 16), 60_000, np.uint16))})
  assert not build()[1]
  deep = encode(np.full((16, 16), 70_000, np.int32), 'TIFF')
  with pytest.raises(images.Unusable, match='32-bit.*--max_value'):
    read(deep)
  assert read(deep, max_value=140_000).pixels.max() == 128


def test_dark_deep_colour_is_warned_of(tmp_path):
  rows = b''.join(b'\0' + struct.pack('>48H', *range(0, 4080, 85)) for _ in range(16))
  header = struct.pack('>IIBBBBB', 16, 16, 16, 2, 0, 0, 0)
  content = (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(rows))
    + chunk(b'IEND', b'')
  )
  write_all(tmp_path / 'in', {'a.png': content})
  report = prepare.build(str(tmp_path / 'in'), str(tmp_path / 'out'), prepare.Options(16, 16))
  assert 'convert colour' in report['warnings'][0]


# --------------------------------------------------------------------------------------------- RGBA


def test_rgba_keeps_alpha(tmp_path):
  straight = noise(0, 16, 16, 4)
  grey_alpha = Image.new('LA', (16, 16), (100, 30))
  palette = Image.new('P', (16, 16), 1)
  palette.putpalette([0, 0, 0, 9, 8, 7])
  files = {
    'a.png': encode(straight),
    'b.png': encode(noise(1, 16, 16)),
    'd.jpg': encode(flat(255, 0, 0), 'JPEG', 'CMYK'),
    'e.png': encode(np.full((16, 16), 257 * 99, np.uint16)),
  }
  for name, image, more in (('c.png', grey_alpha, {}), ('f.png', palette, {'transparency': 1})):
    out = io.BytesIO()
    image.save(out, 'PNG', **more)
    files[name] = out.getvalue()
  write_all(tmp_path / 'in', files)
  prepare.build(str(tmp_path / 'in'), str(tmp_path / 'out'), prepare.Options(16, 16, channels=4))
  source = data.load('', str(tmp_path / 'out'), (16, 16), 4, False)
  np.testing.assert_array_equal(source[0]['image'], straight)
  np.testing.assert_array_equal(
    source[1]['image'], np.dstack([noise(1, 16, 16), np.full((16, 16), 255, np.uint8)])
  )
  assert source[2]['image'][3, 3].tolist() == [100, 100, 100, 30] and source[5]['image'][
    0, 0
  ].tolist() == [9, 8, 7, 0]
  assert source[3]['image'][0, 0, 3] == 255 and source[4]['image'][0, 0].tolist() == [
    99,
    99,
    99,
    255,
  ]
  assert data.Shrunk(source, 2)[0]['image'].shape == (8, 8, 4)


@pytest.mark.parametrize('resize_filter', sorted(images.FILTERS))
def test_hidden_colours_do_not_bleed(resize_filter):
  picture = np.zeros((40, 40, 4), np.uint8)
  picture[:, :, 1] = 255  # green that nobody sees
  picture[10:30, 10:30] = (200, 30, 40, 255)
  small = images.fit_image(picture, 'center', 15, 15, resize_filter)
  seen = small[:, :, 3] > 0
  assert 0 < seen.mean() < 1
  np.testing.assert_allclose(
    small[seen][:, :3].astype(int), np.broadcast_to((200, 30, 40), (seen.sum(), 3)), atol=1
  )
  opaque = np.dstack([noise(0, 40, 40), np.full((40, 40), 255, np.uint8)])
  got = images.fit_image(opaque, 'center', 15, 15, resize_filter)
  np.testing.assert_array_equal(
    got[:, :, :3], images.fit_image(opaque[:, :, :3], 'center', 15, 15, resize_filter)
  )
  assert (got[:, :, 3] == 255).all()


def test_half_transparent_means_are_weighted():
  pair = np.array([[[255, 0, 0, 255], [0, 0, 255, 85]]], np.uint8)
  assert images.fit_image(pair, 'pad', 1, 1).tolist() == [[[191, 0, 64, 170]]]
  padded = images.fit_image(np.full((4, 8, 4), 255, np.uint8), 'pad', 8, 8, background=(1, 2, 3))
  assert padded[0, 0].tolist() == [1, 2, 3, 0] and padded[4, 0, 3] == 255
  wide = images.fit_image(np.full((8, 16, 4), 255, np.uint8), 'wide', 8, 16)
  assert wide.shape == (16, 16, 4) and wide[0, 0, 3] == 0 and wide[8, 0, 3] == 255


# --------------------------------------------------------------------------- where the data set goe


def build_into(tmp_path, dest, count):
  """Prepares `count` pictures: warnings."""
  folder = tmp_path / f'in{count}'
  write_all(folder, {f'{i}.png': encode(noise(i)) for i in range(count)})
  return prepare.build(str(folder), str(dest), prepare.Options(16, 16))['warnings']


def images_in(place):
  return len(data.load('', str(place), (16, 16), 3, False))


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
  for count in (2, 3):
    assert not build_into(tmp_path, dest, count)
    assert link.is_symlink() and images_in(store) == images_in(dest) == count
  assert sorted(p for p in os.listdir(tmp_path) if not p.startswith('in')) == sorted(
    ['disk', 'linked'] + ['second'] * (kind == 'of a link')
  )
  assert os.listdir(store.parent) == ['store']


def test_dest_that_is_refused(tmp_path):
  (tmp_path / 'a').symlink_to('b')
  (tmp_path / 'b').symlink_to('a')
  (tmp_path / 'file').write_text('x')
  for dest, words in (
    ('a', 'a'),
    ('file', 'is a file'),
    ('file/out', 'is a file'),
    ('in2/out', 'inside'),
    ('\udce9', 'UTF-8'),
  ):
    with pytest.raises(faults.UsageError, match=words):
      build_into(tmp_path, tmp_path / dest, 2)
  build_into(tmp_path, tmp_path / 'out', 2)
  (tmp_path / 'out/runs').mkdir()  # somebody's own, in a folder that would be replaced
  with pytest.raises(faults.UsageError, match="'runs', which would be lost"):
    build_into(tmp_path, tmp_path / 'out', 3)
  (tmp_path / 'out/runs').rmdir()
  (tmp_path / 'out/in3').symlink_to('../in3')
  os.rename(tmp_path / 'in3', tmp_path / 'out/pictures')
  with pytest.raises(faults.UsageError, match='which would be replaced'):
    prepare.build(str(tmp_path / 'out/pictures'), str(tmp_path / 'out'), prepare.Options(16, 16))
  assert images_in(tmp_path / 'out') == 2


def test_a_mounted_disk_is_filled(tmp_path, monkeypatch):
  store = tmp_path / 'store'
  store.mkdir()
  monkeypatch.setattr(os.path, 'ismount', lambda path: str(path) == str(store))
  rename = os.rename

  def renamed(old, new):
    assert str(store) not in (str(old), str(new)), 'it can not be renamed'
    rename(old, new)

  monkeypatch.setattr(os, 'rename', renamed)
  for count in (2, 3):
    assert not build_into(tmp_path, store, count)
    assert images_in(store) == count and not [n for n in os.listdir(store) if n[0] == '.']

  def full(old, new):
    if str(old).endswith('.building-1/features.json'):
      raise OSError(28, 'No space left on device')
    rename(old, new)

  with monkeypatch.context() as patch:
    patch.setattr(os, 'rename', full)
    with pytest.raises((faults.WriteError, OSError)):
      destination.replace(*broken_build(store))
  assert images_in(store) == 3


def broken_build(store):
  """A finished folder inside of `store`, as `prepare` has it before it moves the files."""
  built = store / '.building-1'
  built.mkdir()
  for name in ('a', 'features.json', 'dataset_info.json'):
    (built / name).write_text('x')
  return built, store


def test_the_earlier_data_set_survives_a_failure(tmp_path, monkeypatch):
  build_into(tmp_path, tmp_path / 'out', 2)
  rename = os.rename

  def fail(old, new):
    if 'building' in str(old):
      raise OSError(5, 'Input/output error')
    rename(old, new)

  with monkeypatch.context() as patch:
    patch.setattr(destination.os, 'rename', fail)
    with pytest.raises(faults.WriteError):
      destination_of(tmp_path)
  assert images_in(tmp_path / 'out') == 2 and sorted(os.listdir(tmp_path)) == ['in2', 'in3', 'out']


def destination_of(tmp_path):
  """Builds with file names that TFDS needs, but the last rename."""
  try:
    build_into(tmp_path, tmp_path / 'out', 3)
  except OSError as err:
    raise faults.WriteError(str(err)) from err


def test_what_can_not_be_deleted_is_named(tmp_path, monkeypatch):
  build_into(tmp_path, tmp_path / 'out', 2)
  remove = destination.shutil.rmtree

  def fail(path, **kwargs):
    if '.old-' in str(path):
      raise PermissionError(13, 'Permission denied', str(path))
    remove(path, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(destination.shutil, 'rmtree', fail)
    said = build_into(tmp_path, tmp_path / 'out', 3)
  old = tmp_path / f'.out.old-{os.getpid()}'
  assert (
    len(said) == 1
    and str(old) in said[0]
    and 'Permission denied' in said[0]
    and images_in(tmp_path / 'out') == 3
  )
  old.rename(tmp_path / '.out.old-999999999')  # as of a run that was killed
  assert '.out.old-999999999' in build_into(tmp_path, tmp_path / 'out', 4)[0]


def test_nothing_is_left_where_nothing_was_made(tmp_path):
  write_all(tmp_path / 'in', {'a.png': encode(noise(0))})
  report = prepare.build(str(tmp_path / 'in'), str(tmp_path / 'x/y/out'), prepare.Options(64, 64))
  assert not report['images'] and os.listdir(tmp_path) == ['in']


# ------------------------------------------------------------------------------- sizes and summarie


@pytest.mark.parametrize(
  'height, width, fit, remedy',
  [
    (100, 100, 'center', '--resolution=96'),
    (100, 256, 'center', '128x256'),
    (96, 100, 'wide', '92x96'),
    (3, 3, 'pad', '4'),
    (2, 3, 'center', '4'),
  ],
)
def test_sizes_that_no_network_has(tmp_path, height, width, fit, remedy):
  with pytest.raises(faults.UsageError, match=remedy) as refusal:
    prepare.build(
      str(tmp_path / 'nowhere'), str(tmp_path / 'out'), prepare.Options(height, width, fit=fit)
    )
  near = re.search(r'try --resolution=(\d+)(?:x(\d+))?$', str(refusal.value))
  prepare.Options(int(near[1]), int(near[2] or near[1]), fit=fit).check_resolution()


def test_height_of_wide_is_free():
  prepare.Options(75, 128, fit='wide').check_resolution()


def test_summary_is_short(tmp_path):
  write_all(
    tmp_path / 'in',
    {f'{i}.png': encode(noise(i)) for i in range(40)}
    | {'a.txt': b'text', 'b.gif': animation('GIF')},
  )
  report = prepare.build(str(tmp_path / 'in'), str(tmp_path / 'out'), prepare.Options(64, 64))
  lines = summary.lines(report).splitlines()
  assert report['images'] == 0 and len(lines) == 1 + 3 + 20 + 1 and lines[-1] == '  ... and 22 more'
  assert any('40 x too small' in line and '--allow_upscale' in line for line in lines)
  assert any('1 x animated' in line and '--animation=first' in line for line in lines)
  wide = prepare.build(
    str(tmp_path / 'in'), str(tmp_path / 'out'), prepare.Options(64, 64, fit='wide')
  )
  assert 'allow_upscale' not in summary.lines(wide)


@pytest.mark.parametrize('hidden', [False, True])
@pytest.mark.parametrize('rule', ['none', 'folder', 'json'])
def test_nothing_to_read_is_said(tmp_path, hidden, rule):
  (tmp_path / 'in').mkdir()
  if hidden:
    write_all(
      tmp_path / 'in',
      {'.a.png': encode(noise(0)), '.git/a.png': b'x', '__MACOSX/x/dataset.json': b'{}'},
    )
  with pytest.raises(faults.DatasetError, match='no file in it'):
    prepare.build(str(tmp_path / 'in'), str(tmp_path / 'out'), prepare.Options(16, 16, labels=rule))
  assert os.listdir(tmp_path) == ['in']


def command(*flags):
  return subprocess.run(
    [sys.executable, '-m', 'sg2jax.tools.prepare', *flags],
    check=False,
    text=True,
    capture_output=True,
    cwd=pathlib.Path(__file__).parents[1],
  )


def test_command_line(tmp_path):
  write_all(tmp_path / 'in', {'a.png': encode(noise(0)), 'b.png': b''})
  place = f'--source={tmp_path}/in', f'--dest={tmp_path}/out'
  write_all(
    tmp_path / 'in',
    {'c.gif': animation('GIF'), 'd.png': encode(np.full((20, 20), 4095, np.uint16))},
  )
  done = command(
    *place,
    '--resolution=16',
    '--animation=first',
    '--max_value=4095',
    '--max_pixels=400',
    '--channels=4',
  )
  assert done.returncode == 0 and done.stdout.startswith('3 images, 1 unusable'), done
  assert 'b.png: empty file' in done.stdout
  assert (data.load('', str(tmp_path / 'out'), (16, 16), 4, False)[2]['image'] == 255).all()
  for flags, code, words in (
    ((*place, '--resolutoin=16'), 2, 'resolution'),
    ((f'--dest={tmp_path}/new', f'--source={tmp_path}/no', '--resolution=16'), 3, 'no such'),
    ((f'--dest={tmp_path}/new', place[0], '--resolution=64'), 3, 'no usable picture'),
  ):
    done = command(*flags)
    assert done.returncode == code and words in done.stderr, (flags, done)
    assert len(done.stderr.splitlines()) == 1 and 'Traceback' not in done.stderr
  assert sorted(os.listdir(tmp_path)) == ['in', 'out']
