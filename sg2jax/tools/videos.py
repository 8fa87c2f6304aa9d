"""Video files, written frame by frame with the ffmpeg of the package imageio-ffmpeg."""

from collections.abc import Iterable
import contextlib
import itertools
import os
import pathlib
import subprocess
import tempfile

import imageio_ffmpeg
import numpy as np

from sg2jax import cli, files, grids
from sg2jax.faults import UsageError, WriteError

READABLE = 256  # px; smaller frames are enlarged by a whole factor
ENCODERS = {
  '.mp4': '-c:v libx264 -crf 16 -movflags +faststart '
  '-vf scale=out_color_matrix=bt709,format=yuv420p '
  '-colorspace bt709 -color_primaries bt709 -color_trc bt709',
  '.gif': '-vf split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1',
  '.webp': '-c:v libwebp_anim -quality 90 -loop 0',
}
MAX_FPS = {'.mp4': 240, '.gif': 50, '.webp': 240}  # gif: hundredths; viewers take 1 for 10


def check_file(path: str | os.PathLike, fps: float, flag: str = 'out') -> pathlib.Path:
  """The absolute path of a video to be written.

  Raises: UsageError if it can't be one, or `fps` not its frame rate.
  """
  path = cli.file(path, ENCODERS, flag)
  most = MAX_FPS[path.suffix]
  if not 0 < fps <= most:
    raise UsageError(f'--fps={fps:g} must be above 0 and at most {most} for {path.suffix}')
  return path


def write_video(path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float) -> None:
  """Writes a video, frame by frame, so that `path` holds the old or the new one whole.

  Frames under READABLE px are enlarged by a whole factor; sides that mp4 can't have (odd) get one
  more row or column.

  Args:
    path: ends in .mp4, .gif (each frame has 256 colours of its own) or .webp.
    frames: uint8 [H,W,C], all of one shape; C as in `grids.readable_grid`.
    fps: frames per second.

  Raises: UsageError as `check_file`, before the first frame is asked for; WriteError.
  """
  path = check_file(path, fps)
  frames = (_readable(frame, path.suffix) for frame in frames)
  first = next(frames)
  temporary = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
  command = _command(first.shape, path.suffix, fps, temporary)
  with files.writing(path), tempfile.TemporaryFile() as log:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      failed = _encode(command, itertools.chain([first], frames), log)
      if failed:
        raise WriteError(f'cannot write {path}: {failed}')
      with open(temporary, 'rb') as f:
        os.fsync(f.fileno())
      os.replace(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)


def _encode(command, frames, log):
  """Runs the encoder on frames -> why it failed, or ''. What it says goes to the file `log`.

  Not imageio_ffmpeg.write_frames: it doesn't tell how the encoder ended, so that a file that a full
  disk cut short would pass.
  """
  # in a process group of its own: Ctrl-C is ours to handle
  options = {'stdin': subprocess.PIPE, 'stdout': log, 'stderr': log, 'process_group': 0}
  whole = False
  with contextlib.suppress(BrokenPipeError), subprocess.Popen(command, **options) as encoder:
    try:
      for frame in frames:
        encoder.stdin.write(frame.tobytes())
      encoder.stdin.close()
      whole = True
    except BrokenPipeError:
      raise  # it gave up by itself, and is waited for
    except BaseException:
      encoder.kill()
      raise
  if whole and encoder.returncode == 0:
    return ''
  log.seek(0)
  last = log.read().decode(errors='replace').strip().splitlines()[-1:]
  return ': '.join([f'the encoder ended with {encoder.returncode}', *last])


def _command(shape, suffix, fps, path):
  """The encoder's command line for raw frames of a shape [H,W,C]."""
  height, width, channels = shape
  pixels = {1: 'gray', 3: 'rgb24', 4: 'rgba'}[channels]
  source = f'-f rawvideo -pix_fmt {pixels} -s {width}x{height} -r {fps} -i -'
  # a gif has palettes of grey without being told, and these are exact
  options = '' if suffix == '.gif' and channels == 1 else ENCODERS[suffix]
  ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
  return [ffmpeg, '-y', '-loglevel', 'error', *source.split(), *options.split(), str(path)]


def _readable(frame, suffix):
  """A frame as it is encoded: uint8 [H,W,C] -> [h,w,1|3|4]."""
  frame = grids.readable_grid(frame[None])
  factor = max(1, READABLE // min(frame.shape[:2]))
  frame = frame.repeat(factor, 0).repeat(factor, 1)
  if suffix == '.mp4':
    height, width, _ = frame.shape
    frame = np.pad(frame, [(0, height % 2), (0, width % 2), (0, 0)], 'edge')
  return frame
