"""The sheet of pictures as D sees them under augmentation."""

import numpy as np
from PIL import Image
import pytest

from sg2jax.data import images, prepare
from sg2jax.faults import DatasetError, UsageError
from sg2jax.tools import sheets, show_augment
from tests import pictures
from tests.runs import call

pytestmark = pytest.mark.usefixtures('quick_compile')


def rows(path, shape):
  """The rows of a sheet without their names: uint8 [R,COUNT,h,w,C], for pictures of shape."""
  count, height, width, channels = shape
  sheet = np.asarray(Image.open(path))
  sheet = sheet.reshape(*sheet.shape[:2], channels)[:, -count * width :]
  return sheet.reshape(-1, height, count, width, channels).swapaxes(1, 2)


def test_the_first_row_is_as_it_is_and_others_change_by_p(tmp_path, capsys):
  out = tmp_path / 'a.png'
  call(show_augment, '--data=digits', '--p=0,0.3,1', f'--out={out}')
  assert '8 pictures of digits, bgc' in capsys.readouterr().out
  first, *others = rows(out, (8, 64, 64, 1)).astype(int)  # twice their 32 px
  changed = [[np.abs(a - b).max() > 9 for a, b in zip(first, row)] for row in others]
  zero, some, all_ = np.reshape(changed, (3, -1))
  assert len(others) == 6 and not zero.any() and 0 < some.sum() and all_.all()
  assert (all_ | ~some).all() and not np.array_equal(others[4], others[5])


def test_a_transform_is_turned_off_by_its_name(tmp_path):
  """Of blit without turns and shifts, mirroring is left; the filters blur that a little."""
  out = tmp_path / 'a.png'

  def only_flips(*more):
    call(show_augment, '--data=digits', '--p=1', '--pipeline=blit', *more, f'--out={out}')
    first, *others = rows(out, (8, 64, 64, 1)).astype(int)
    pairs = [(a, b) for row in others for a, b in zip(first, row)]
    return all(min(np.abs(x - b).max() for x in (a, a[:, ::-1])) < 60 for a, b in pairs)

  assert only_flips('--set=rotate90=0', '--set=xint=0') and not only_flips()


def test_rectangles_with_colours_and_alpha(tmp_path, monkeypatch):
  channels = 4
  made = {f'{i}.png': pictures.encode(pictures.noise(i, 16, 24, channels)) for i in range(3)}
  pictures.write_all(tmp_path / 'in', made)
  options = images.Options(16, 24, channels)
  prepare.build(str(tmp_path / 'in'), str(tmp_path / 'data'), options)
  written = []
  monkeypatch.setattr(sheets, 'write_sheet', lambda *args: written.append(args))
  out = tmp_path / 'a.png'
  monkeypatch.setattr(show_augment, 'SIDE', 12)  # so that they are shrunk
  call(show_augment, f'--data={tmp_path / "data"}', '--p=0.5', f'--out={out}')
  ((path, sheet, names),) = written
  assert path == out and names == ['originals', 'p = 0.5', '']
  assert sheet.shape == (3, 3, 8, 12, channels) and sheet.dtype == np.uint8


@pytest.mark.parametrize(
  'flags, said',
  [
    (['--pipeline=bgd'], 'bgcfnc'),
    (['--p=0.5,1.5'], '[0, 1]'),
    (['--p=nan'], '[0, 1]'),
    (['--p='], '[0, 1]'),
    (['--set=rotate=x'], 'rotate=NUMBER'),
    (['--set=rotate90=-1'], 'rotate90=NUMBER'),
    (['--set=flip=0'], 'choose from xflip, rotate90'),
    (['--set=hue=2'], 'hue=1'),
    (['--set=scale_std=11'], 'scale_std=11 must lie in [0, 10]'),
    (['--out=a.jpg'], 'must end in .png'),
    (['--data='], '--data=DATA/mine'),
  ],
)
def test_bad_flags_say_what_is_right(tmp_path, monkeypatch, flags, said):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UsageError) as e:
    call(show_augment, '--data=digits', *flags)
  assert said in str(e.value) and not any(tmp_path.iterdir())


def test_missing_data_says_how_to_make_them(tmp_path):
  with pytest.raises(DatasetError, match='sg2jax.tools.prepare'):
    call(show_augment, f'--data={tmp_path}/none', f'--out={tmp_path}/a.png')
