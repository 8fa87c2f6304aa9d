"""Pictures of strangers become the right pixels, or are named: decoding, formats, sizes, RGBA."""

import numpy as np
from PIL import Image
import pytest

from sg2jax.data import formats, images
from tests.pictures import (
  animation,
  bomb,
  encode,
  files_of_other_formats,
  files_with_broken_metadata,
  flat,
  half,
  noise,
  odd_files,
  unusable_files,
)

HAS_AVIF = 'AVIF' in formats.FORMATS
pytestmark = pytest.mark.filterwarnings('ignore')  # Pillow's, of oddities that it can read


def decode(data, **options):
  return images.decode(data, images.Options(16, 16, **options))


def fit(image, fit, height, width, **options):
  return images.fit_image(image, images.Options(height, width, fit=fit, **options))


@pytest.mark.smoke
def test_unusable_files_are_named():
  for name, (data, words) in (unusable_files() | files_of_other_formats()).items():
    with pytest.raises(images.Unusable) as refusal:
      images.convert(data, images.Options(16, 16))
    assert str(refusal.value) and words in str(refusal.value), name


@pytest.mark.smoke
def test_odd_files_are_shown_as_viewers_do():
  for name, (data, color) in odd_files().items():
    image = images.convert(data, images.Options(16, 16))
    np.testing.assert_allclose(image[0, 0], color, atol=3, err_msg=name)


# ---- metadata and animations


def test_broken_metadata_lose_no_picture():
  for name, (data, turned) in files_with_broken_metadata().items():
    expected = np.rot90(half(), -1) if turned else half()
    np.testing.assert_allclose(decode(data), expected, atol=8, err_msg=name)


@pytest.mark.skipif(not HAS_AVIF, reason='this Pillow reads no AVIF')
def test_avif():
  exif = Image.Exif()
  exif[0x112] = 6
  turned = encode(half(), 'AVIF', quality=100, exif=exif)
  np.testing.assert_allclose(decode(turned), np.rot90(half(), -1), atol=8)


@pytest.mark.parametrize('fmt', ['GIF', 'PNG', 'WEBP', 'TIFF', *['AVIF'] * HAS_AVIF])
def test_first_picture_of_an_animation(fmt):
  data = animation(fmt, (40, 200, 90), (0, 0, 0), (9, 9, 9))
  with pytest.raises(images.Unusable, match=f'3 pictures of {fmt}; `prepare --animation=first`'):
    decode(data)
  first = decode(data, animation='first')
  np.testing.assert_allclose(first, flat(40, 200, 90), atol=4)


# ---- size and range


def test_large_pictures_by_a_flag():
  large = encode(np.zeros((30, 40, 3), np.uint8))
  with pytest.raises(
    images.Unusable, match='1200 pixels, more than 1199; `prepare --max_pixels=1200`'
  ):
    decode(large, max_pixels=1199)
  assert decode(large, max_pixels=1200).shape == (30, 40, 3)
  with pytest.raises(images.Unusable, match='3600000000 pixels.*--max_pixels=3600000000'):
    decode(bomb())


def test_stated_range_of_deep_grey():
  values = np.linspace(0, 4095, 256).reshape(16, 16).astype(np.uint16)
  for data in (encode(values), encode(values, 'TIFF')):
    assert decode(data).max() == 16
    whole = decode(data, max_value=4095)
    expected = np.rint(values * (255 / 4095)).astype(np.uint8)
    np.testing.assert_array_equal(whole, np.repeat(expected[..., None], 3, axis=2))
    assert (decode(data, max_value=1023) == 255).mean() > 0.7
  deep = encode(np.full((16, 16), 70_000, np.int32), 'TIFF')
  with pytest.raises(images.Unusable, match='32-bit.*--max_value'):
    decode(deep)
  assert decode(deep, max_value=140_000).max() == 128


# ---- fitting; the reference vectors are cases of test_reference


def test_fit_rules():
  picture = noise(0, 40, 60)
  square = images.resize(picture[:, 10:50], 20, 20, 'box')
  np.testing.assert_array_equal(fit(picture, 'center', 20, 20), square)
  wide = images.resize(picture[5:35], 20, 40, 'box')
  np.testing.assert_array_equal(fit(picture, 'center', 20, 40), wide)
  assert fit(picture, 'center', 10, 20).shape == (10, 20, 3)
  padded = fit(picture, 'pad', 30, 30, background=(1, 2, 3))
  np.testing.assert_array_equal(padded[5:25], images.resize(picture, 20, 30, 'box'))
  assert (padded[:5] == (1, 2, 3)).all() and (padded[25:] == (1, 2, 3)).all()
  assert fit(picture, 'wide', 18, 32).shape == (32, 32, 3)
  assert fit(picture, 'center', 80, 80, allow_upscale=True).shape == (80, 80, 3)


@pytest.mark.parametrize('rule', images.FITS)
def test_too_small(rule):
  with pytest.raises(images.Unusable, match='too small'):
    fit(noise(0, 40, 60), rule, 80, 80)


def test_too_flat():
  with pytest.raises(images.Unusable, match='wrong aspect'):
    fit(noise(0, 8, 60), 'wide', 20, 40)


def test_grey():
  options = images.Options(24, 16, channels=1, fit='pad', background=(9, 9, 9))
  image = images.convert(encode(flat(255, 0, 0)), options)
  assert image.shape == (24, 16, 1) and image[12, 8, 0] == 76 and image[0, 0, 0] == 9


# ---- RGBA


def test_rgba_keeps_alpha():
  straight = noise(0, 16, 16, 4)
  opaque = np.dstack([noise(1, 16, 16), np.full((16, 16), 255, np.uint8)])
  np.testing.assert_array_equal(decode(encode(straight), channels=4), straight)
  np.testing.assert_array_equal(decode(encode(opaque[..., :3]), channels=4), opaque)
  expected = {
    'la.png': [100, 100, 100, 255],
    'hole.png': [9, 9, 9, 0],
    'half.png': [0, 0, 0, 51],
    'deep.png': [99, 99, 99, 255],
    'grey.png': [77, 77, 77, 255],
  }
  for name, pixel in expected.items():
    assert decode(odd_files()[name][0], channels=4)[3, 3].tolist() == pixel, name
  assert decode(odd_files()['cmyk.jpg'][0], channels=4)[0, 0, 3] == 255


@pytest.mark.parametrize('resize_filter', sorted(images.FILTERS))
def test_hidden_colours_do_not_bleed(resize_filter):
  picture = np.zeros((40, 40, 4), np.uint8)
  picture[:, :, 1] = 255  # green that nobody sees
  picture[10:30, 10:30] = (200, 30, 40, 255)
  small = fit(picture, 'center', 15, 15, resize_filter=resize_filter)
  visible = small[:, :, 3] > 0
  assert 0 < visible.mean() < 1
  colours = small[visible][:, :3].astype(int)
  np.testing.assert_allclose(colours, np.broadcast_to((200, 30, 40), colours.shape), atol=1)
  opaque = np.dstack([noise(0, 40, 40), np.full((40, 40), 255, np.uint8)])
  resized = fit(opaque, 'center', 15, 15, resize_filter=resize_filter)
  rgb = fit(opaque[:, :, :3], 'center', 15, 15, resize_filter=resize_filter)
  np.testing.assert_array_equal(resized[:, :, :3], rgb)
  assert (resized[:, :, 3] == 255).all()


def test_half_transparent_means_are_weighted():
  pair = np.array([[[255, 0, 0, 255], [0, 0, 255, 85]]], np.uint8)
  assert fit(pair, 'pad', 1, 1, channels=4).tolist() == [[[191, 0, 64, 170]]]
  padded = fit(np.full((4, 8, 4), 255, np.uint8), 'pad', 8, 8, channels=4, background=(1, 2, 3))
  assert padded[0, 0].tolist() == [1, 2, 3, 0] and padded[4, 0, 3] == 255
  wide = fit(np.full((8, 16, 4), 255, np.uint8), 'wide', 8, 16)
  assert wide.shape == (16, 16, 4) and wide[0, 0, 3] == 0 and wide[8, 0, 3] == 255
