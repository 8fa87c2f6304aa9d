"""python -m sg2jax.tools.video --checkpoint=RUN --seeds=0-7 --out=FILE.mp4|gif|webp [--grid=2x2]
[--space=z] [--seconds=S] ...

Makes a video that moves through the images of --seeds, one after another, and back to the first
(--noloop: ends at the last). With --grid=ROWSxCOLUMNS the seeds are shared out to the cells:
--seeds=0-11 --grid=2x2 shows seeds 0, 1, 2 in the first, 3, 4 and 5 in the second, and so on.
--space=w goes straight from one mapped latent to the next, --space=z on the sphere of latents.
Where the network has classes and no --class is given, each seed has its own, and they are blended
on the way; --class=cat,dog goes from one to the other. The file's ending says which kind it is:
mp4, gif or webp. The encoder comes with the package imageio-ffmpeg; nothing else is needed.
"""

import contextlib
import itertools
import os
import re
import subprocess
import tempfile

from absl import flags
import imageio_ffmpeg
import numpy as np
from tqdm import tqdm

from sg2jax import cli, files, grids, sampler
from sg2jax.evaluation import ppl
from sg2jax.faults import UsageError, WriteError
from sg2jax.tools import generate

READABLE = 256  # px; smaller frames are enlarged by a whole factor
ENCODERS = {  # for grey frames, or for RGB
  '.mp4': lambda grey: [
    '-c:v',
    'libx264',
    '-crf',
    '16',
    '-movflags',
    '+faststart',
    '-vf',
    'scale=out_color_matrix=bt709,format=yuv420p',
    '-colorspace',
    'bt709',
    '-color_primaries',
    'bt709',
    '-color_trc',
    'bt709',
  ],
  '.gif': lambda grey: (
    [] if grey else ['-vf', 'split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1']
  ),
  '.webp': lambda grey: ['-c:v', 'libwebp_anim', '-quality', '90', '-loop', '0'],
}
MAX_FPS = {'.gif': 50}  # its clock counts hundredths of a second, and viewers take 1 for 10


def define_flags():
  """The command line. Not at import: tools have flags of the same names."""
  generate.define_common()
  flags.adopt_module_key_flags(generate)  # so that --help has them
  flags.DEFINE_string('out', '', 'File to write; its ending says which kind: .mp4, .gif or .webp.')
  flags.DEFINE_string('grid', '1x1', 'ROWSxCOLUMNS of paths that are shown together.')
  flags.DEFINE_enum(
    'space',
    'w',
    ppl.SPACES,
    'w: straight on between mapped latents; z: on the sphere between latents.',
  )
  flags.DEFINE_float(
    'seconds', 0, 'Length of the video; 0: 2 seconds for each step from seed to seed.'
  )
  flags.DEFINE_float('fps', 30, 'Frames per second.')
  flags.DEFINE_boolean('loop', True, 'Whether the last seed leads back to the first.')


def main(_):
  """Checks, makes, writes."""
  asked = flags.FLAGS
  out, seeds = check(asked.out, asked.fps), cli.seeds(asked.seeds)
  (psi,) = generate.numbers(asked.psi or '1', 'psi')
  grid = re.fullmatch(r'([1-9]\d{0,3})x([1-9]\d{0,3})', asked.grid)
  if not grid:
    raise UsageError(f'--grid={asked.grid} must be ROWSxCOLUMNS, such as 2x3')
  rows, cols = int(grid[1]), int(grid[2])
  if len(seeds) % (rows * cols) or len(seeds) < 2 * rows * cols:
    raise UsageError(
      f'--seeds={asked.seeds} are {len(seeds)}; a grid of {rows}x{cols} needs a multiple of '
      f'{rows * cols}, {2 * rows * cols} or more'
    )
  seeds = np.reshape(seeds, (rows, cols, -1))
  seconds = asked.seconds or 2 * (seeds.shape[2] - (not asked.loop))
  if not 2 <= seconds * asked.fps < 1e9:
    raise UsageError(
      f'--seconds={seconds:g} at {asked.fps:g} frames per second must make 2 frames or more'
    )
  count = round(seconds * asked.fps)
  net = generate.load(asked.checkpoint)
  label = generate.labels(net, asked, seeds.size)
  pictures = frames(
    net, seeds, count, asked.space, asked.loop, psi, asked.cutoff, label, asked.noise
  )
  write_video(out, tqdm(pictures, total=count, unit=' frames', disable=None), asked.fps)
  print(f'wrote {out}: {count} frames')


def frames(
  net, seeds, count, space='w', loop=True, psi=1.0, cutoff=None, label=None, noise='const'
):
  """Frames of a path through the seeds [rows,cols,K] of each cell, a generator of `count` uint8
  [rows*h,cols*w,C].

  The first frame shows the first seeds, as `net` makes them; without `loop` the last one the last.
  Labels are blended, noise 'random' is that of a cell's first seed throughout. Other arguments as
  of a call of `net`.
  """
  cells, keys = seeds.shape[0] * seeds.shape[1], seeds.shape[2]
  z, c = net.z(seeds.ravel()), net.c(seeds.ravel(), label)
  w = net.map(z, c) if space == 'w' else None
  at = np.arange(count) * (keys / count) if loop else np.linspace(0, keys - 1, count)
  per = min(count, max(1, net.batch // cells))
  for part, kept in sampler.parts(count, per):
    i = at[part].astype(int)
    t = np.repeat((at[part] - i).astype(np.float32), cells)
    # [per*cells]
    a, b = ((np.arange(cells) * keys + k[:, None] % keys).ravel() for k in (i, i + 1))
    between = (
      ppl.lerp(w[a], w[b], t)
      if space == 'w'
      else net.map(arc(z[a], z[b], t), ppl.lerp(c[a], c[b], t))
    )
    made = net.images(
      net.truncate(between, psi, cutoff), noise, np.tile(seeds[..., 0].ravel(), per), per * cells
    )
    for frame in made.reshape(per, cells, *made.shape[1:])[:kept]:
      yield grids.image_grid(frame, seeds.shape[1])


def arc(a, b, t):
  """`ppl.slerp`, with lengths between those of a and b, which some mappings see; a where b is the
  same. [N,K] x 2, t [N].
  """
  length = ppl.lerp(*(np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)), t)
  return np.where((a == b).all(1, keepdims=True), a, length * ppl.slerp(a, b, t))


def write_video(path, frames, fps):
  """Writes a video, frame by frame, so that `path` holds the old or the new one whole.

  Frames under READABLE px are enlarged by a whole factor; sides that mp4 can't have (odd) get one
  more row or column.

  Args:
    path: ends in .mp4, .gif (each frame has 256 colours of its own) or .webp.
    frames: iterable of uint8 [H,W,C], all of one shape; C as in `grids.readable_grid`.
    fps: frames per second.

  Raises: UsageError as `check` does, before the first frame is asked for; WriteError.
  """
  path = check(path, fps)
  frames = iter(frames)
  first = _readable(next(frames), path.suffix)
  height, width, channels = first.shape
  temporary = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
  command = [
    imageio_ffmpeg.get_ffmpeg_exe(),
    '-y',
    '-loglevel',
    'error',
    '-f',
    'rawvideo',
    '-pix_fmt',
    {1: 'gray', 3: 'rgb24', 4: 'rgba'}[channels],
    '-s',
    f'{width}x{height}',
    '-r',
    f'{fps}',
    '-i',
    '-',
    *ENCODERS[path.suffix](channels == 1),
    str(temporary),
  ]
  with files.writing(path), tempfile.TemporaryFile() as said:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A process group of its own: Ctrl-C is ours to handle.
    encoder = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=said, stderr=said, process_group=0
    )
    try:
      for frame in itertools.chain([first], (_readable(f, path.suffix) for f in frames)):
        encoder.stdin.write(frame.tobytes())
      encoder.stdin.close()
      if encoder.wait():
        raise BrokenPipeError
      with open(temporary, 'rb') as f:
        os.fsync(f.fileno())
      os.replace(temporary, path)
    except BrokenPipeError:
      encoder.wait()
      said.seek(0)
      lines = said.read().decode(errors='replace').strip().splitlines()
      raise WriteError(
        f'cannot write {path}: the encoder ended with {encoder.returncode}'
        f'{": " + lines[-1] if lines else ""}'
      ) from None
    finally:
      with contextlib.suppress(OSError):
        encoder.stdin.close()
      encoder.kill()
      encoder.wait()
      temporary.unlink(missing_ok=True)


def check(path, fps, flag='out'):
  """The absolute path of a video to be written. Raises UsageError if it can't be one, or fps not
  its frame rate.
  """
  path = cli.file(path, ENCODERS, flag)
  if not 0 < fps <= MAX_FPS.get(path.suffix, 240):
    raise UsageError(
      f'--fps={fps:g} must be above 0 and at most {MAX_FPS.get(path.suffix, 240)} for {path.suffix}'
    )
  return path


def _readable(frame, suffix):
  """A frame as it is encoded: uint8 [H,W,C] -> [h,w,1|3|4]."""
  frame = grids.readable_grid(frame[None])
  k = max(1, READABLE // min(frame.shape[:2]))
  frame = frame.repeat(k, 0).repeat(k, 1)
  odd = [(0, side % 2 if suffix == '.mp4' else 0) for side in frame.shape[:2]]
  return np.pad(frame, [*odd, (0, 0)], 'edge')


if __name__ == '__main__':
  define_flags()
  cli.run(main)
