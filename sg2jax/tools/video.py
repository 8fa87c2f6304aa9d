"""Makes a video that moves through the images of seeds, one after another.

python -m sg2jax.tools.video --checkpoint=RUN --seeds=0-7 --out=FILE.mp4|gif|webp [--grid=2x2]
[--space=z] [--seconds=S] ...

It goes back to the first seed (--noloop: ends at the last). With --grid=ROWSxCOLUMNS the seeds are
shared out to the cells: --seeds=0-11 --grid=2x2 shows seeds 0, 1, 2 in the first, 3, 4 and 5 in the
second, and so on. --space=w goes straight from one mapped latent to the next, --space=z on the
sphere of latents. Where the network has classes and no --class is given, each seed has its own, and
they are blended on the way; --class=cat,dog goes from one to the other. --edit=FILE:NAME:STRENGTH
moves all frames by a direction that `directions` found; with a range, --edit=FILE:NAME:-3..3, each
cell shows one seed, whose image goes from one strength to the other and back (--noloop: ends
there). The file's ending says which kind it is: mp4, gif or webp. The encoder comes with the
package imageio-ffmpeg; nothing else is needed.
"""

from collections.abc import Iterator, Sequence
import re

from absl import flags
import numpy as np
from tqdm import tqdm

from sg2jax import cli, grids, inputs, sampler
from sg2jax.edit.direction import Direction
from sg2jax.evaluation import ppl
from sg2jax.faults import UsageError
from sg2jax.tools import flags as shared
from sg2jax.tools import videos

_GRID = re.compile(r'([1-9]\d{0,3})x([1-9]\d{0,3})')


def define_flags() -> None:
  """The command line."""
  shared.define_image_flags()
  shared.define_psi()
  shared.define_edit(ranges=True)
  flags.DEFINE_string('out', '', 'File to write; its ending says which kind: .mp4, .gif or .webp.')
  flags.DEFINE_string('grid', '1x1', 'ROWSxCOLUMNS of paths that are shown together.')
  flags.register_validator('grid', _GRID.fullmatch, 'must be ROWSxCOLUMNS, such as 2x3')
  what = 'w: straight on between mapped latents; z: on the sphere between latents.'
  flags.DEFINE_enum('space', 'w', ppl.SPACES, what)
  what = (
    'Length of the video; 0: 2 seconds for each step from seed to seed, or strength to strength.'
  )
  flags.DEFINE_float('seconds', 0, what, lower_bound=0)
  flags.DEFINE_float('fps', 30, 'Frames per second; of a .gif 50 at most.', 0, 240)
  what = 'Whether the last seed leads back to the first, the last strength of a range, too.'
  flags.DEFINE_boolean('loop', True, what)


def main(_: list[str]) -> None:
  """Checks, makes, writes."""
  # ---- what is asked, before anything is loaded
  asked = flags.FLAGS
  out = cli.file(asked.out, videos.ENCODERS)
  rows, cols = map(int, _GRID.fullmatch(asked.grid).groups())
  cells = rows * cols
  edits = shared.edits()
  through_strengths = any(low != high for _, low, high in edits)
  if through_strengths and len(asked.seeds) != cells:
    raise UsageError(
      f'--seeds are {len(asked.seeds)}; where --edit has a range of strengths, each cell shows one '
      f'seed: give {cells}, or another --grid=ROWSxCOLUMNS'
    )
  if not through_strengths and (len(asked.seeds) % cells or len(asked.seeds) < 2 * cells):
    raise UsageError(
      f'--seeds are {len(asked.seeds)}; a grid of {rows}x{cols} needs a multiple of {cells}, '
      f'{2 * cells} or more, or an --edit with a range of strengths, as -3..3'
    )
  seeds = np.reshape(asked.seeds, (rows, cols, -1))
  stops = 2 if through_strengths else seeds.shape[2]
  seconds = asked.seconds or 2 * (stops - (not asked.loop))
  if not 2 <= seconds * asked.fps < 1e9:  # NaN isn't, either
    raise UsageError(f'--seconds={seconds:g} at --fps={asked.fps:g} must make 2 frames or more')
  if out.suffix == '.gif' and asked.fps > 50:
    raise UsageError(f'--fps={asked.fps:g}: a .gif has at most 50')  # viewers show more as 10
  count = round(seconds * asked.fps)

  # ---- frames, made as the encoder takes them
  net = sampler.load(asked.checkpoint)
  label = shared.labels(net, seeds.size)
  pictures = frames(
    net, seeds, count, asked.space, asked.loop, asked.psi, asked.cutoff, label, asked.noise, edits
  )
  videos.write_video(out, tqdm(pictures, total=count, unit=' frames', disable=None), asked.fps)
  print(f'wrote {out}: {count} frames')


def frames(
  net: sampler.Sampler,
  seeds: np.ndarray,
  count: int,
  space: str = 'w',
  loop: bool = True,
  psi: float = 1.0,
  cutoff: int | None = None,
  label: inputs.LabelsLike | None = None,
  noise: str = 'const',
  edits: Sequence[tuple[Direction, float, float]] = (),
) -> Iterator[np.ndarray]:
  """`count` frames of a path through the seeds [rows,cols,K] of each cell: uint8 [rows*h,cols*w,C].

  The first frame shows the first seeds, as `net` makes them; without `loop` the last one the last.
  Labels are blended. Noise 'random' is that of a cell's first seed throughout. edits: directions,
  each with the strengths between which it goes, evenly, with `loop` there and back. The other
  arguments are those of a call of `net`, a Sampler.
  """
  rows, cols, keys = seeds.shape
  cells = rows * cols
  z = net.z(seeds.ravel())
  c = net.c(seeds.ravel(), label)
  # In w the ends are mapped once; in z every frame has a latent of its own to be mapped.
  w = net.map(z, c) if space == 'w' else None
  # where each frame is, in seeds from the first
  at = np.arange(count) * (keys / count) if loop else np.linspace(0, keys - 1, count)
  # and between the lowest strength, 0, and the highest, 1
  rise = 1 - np.abs(1 - 2 * np.arange(count) / count) if loop else np.linspace(0, 1, count)
  # Frames that are made at once: as many images as fit the devices, but one frame at least.
  size = min(count, max(1, net.batch // cells))
  noise_seeds = np.tile(seeds[..., 0].ravel(), size)
  for part, shown in sampler.parts(count, size):
    key = at[part].astype(int)
    t = np.repeat((at[part] - key).astype(np.float32), cells)  # [size*cells]
    first = np.arange(cells) * keys  # of each cell
    a = (first + key[:, None] % keys).ravel()  # [size*cells], indices of seeds
    b = (first + (key + 1)[:, None] % keys).ravel()
    if space == 'w':
      between = ppl.lerp(w[a], w[b], t)
    else:
      between = net.map(arc(z[a], z[b], t), ppl.lerp(c[a], c[b], t))
    ws = net.truncate(between, psi, cutoff)
    amounts = np.repeat(rise[part], cells)
    edit = [(move, low + (high - low) * amounts) for move, low, high in edits]
    made = net.images(ws, noise, noise_seeds, size * cells, edit)
    for frame in made.reshape(size, cells, *made.shape[1:])[:shown]:
      yield grids.image_grid(frame, cols)


def arc(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
  """On the sphere from a (t = 0) to b (1), both [N,K], t [N]; lengths between those of a and b.

  Some mappings see lengths, which `ppl.slerp` loses. Where a and b are the same, there is no arc.
  """
  length = ppl.lerp(
    np.linalg.norm(a, axis=1, keepdims=True), np.linalg.norm(b, axis=1, keepdims=True), t
  )
  return np.where((a == b).all(1, keepdims=True), a, length * ppl.slerp(a, b, t))


if __name__ == '__main__':
  define_flags()
  cli.run(main)
