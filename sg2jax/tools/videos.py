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

from sg2jax import files, grids
from sg2jax.faults import WriteError

READABLE = 256  # px; smaller frames are enlarged by a whole factor
ENCODERS = {
  '.mp4': '-c:v libx264 -crf 16 -movflags +faststart '
  '-vf scale=out_color_matrix=bt709,format=yuv420p '
  '-colorspace bt709 -color_primaries bt709 -color_trc bt709',
  '.gif': '-vf split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1',
  '.webp': '-c:v libwebp_anim -quality 90 -loop 0',
}


def write_video(path: pathlib.Path, frames: Iterable[np.ndarray], fps: float) -> None:
  """Writes a video, frame by frame, so that `path` holds the old or the new one whole.

  Frames under READABLE px are enlarged by a whole factor; sides that mp4 can't have (odd) get one
  more row or column.

  Args:
    path: ends in .mp4, .gif (each frame has 256 colours of its own) or .webp.
    frames: uint8 [H,W,C], all of one shape; C as in `grids.readable_grid`.
    fps: frames per second.

  Raises: WriteError.
  """
  frames = (_readable(frame, path.suffix) for frame in frames)
  first = next(frames)
  temporary = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
  # Not imageio_ffmpeg.write_frames: it doesn't tell how the encoder ended, so that a file that a
  # full disk cut short would pass. In a process group of its own: Ctrl-C is ours to handle.
  command = _command(first.shape, path.suffix, fps, temporary)
  with files.writing(path), tempfile.TemporaryFile() as log:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {'stdin': subprocess.PIPE, 'stdout': log, 'stderr': log, 'process_group': 0}
    try:
      # A pipe breaks where the encoder gives up by itself; it then says why.
      with contextlib.suppress(BrokenPipeError), subprocess.Popen(command, **options) as encoder:
        for frame in itertools.chain([first], frames):
          encoder.stdin.write(frame.tobytes())
      if encoder.returncode:
        log.seek(0)
        said = log.read().decode(errors='replace').strip().splitlines()[-1:]
        reason = ': '.join([f'the encoder ended with {encoder.returncode}', *said])
        raise WriteError(f'cannot write {path}: {reason}')
      with open(temporary, 'rb') as f:
        os.fsync(f.fileno())
      os.replace(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)


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
  frame = grids.readable_grid(frame[None], 1, READABLE)
  if suffix == '.mp4':
    height, width, _ = frame.shape
    frame = np.pad(frame, [(0, height % 2), (0, width % 2), (0, 0)], 'edge')
  return frame
