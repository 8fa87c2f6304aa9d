"""Projects pictures: finds the point of the latent space whose image comes nearest to each.

python -m sg2jax.tools.project --checkpoint=RUN --images=FILE-OR-FOLDER [--out=DIR]
[--distance=pyramid] [--video]

The closer it comes, the better the network knows such pictures; what is found can be mixed,
truncated and moved like any w. Writes for a picture cat.jpg DIR/cat.png (the picture beside what
was found), DIR/cat_projected.png (what was found), DIR/cat.npz (its ws and noise maps) and, with
--video, DIR/cat.mp4 (the search); DIR/projections.json has the distances of all. Pictures are
cropped to the middle and shrunk to the network's size. The distance LPIPS wants weights first:
python -m sg2jax.tools.fetch_weights vgg16 lpips_vgg; without them take --distance=pyramid, which
compares pixels. Stop it any way you like: the same command goes on with what isn't finished.
"""

from functools import partial

from absl import flags
import numpy as np

from sg2jax import cli, processes
from sg2jax.signals import Stop
from sg2jax.tools import flags as shared
from sg2jax.tools import pictures, projections


def define_flags() -> None:
  """The command line."""
  shared.define_processes()
  projections.define_flags()
  shared.define_out('projections')
  flags.DEFINE_string('images', None, 'Picture, or folder of pictures.')
  shared.define_required('images', 'name a picture or a folder of pictures')
  flags.DEFINE_bool('video', False, 'Also a video of the search, <name>.mp4.')


def main(_: list[str]) -> None:
  """Checks, projects, prints."""
  asked = flags.FLAGS
  with Stop() as stop:
    job = projections.read_job(stop, asked.video)
    out = shared.out_folder(job.net, 'projections')
    items = processes.together(partial(pictures.read_items, asked.images, job.net, out))
    processes.check_same('--images', {item.name: item.hash for item in items})
    documents = projections.project_all(job, items, out)
  if not processes.is_first():
    return
  factor = np.median([d['distance_start'] / max(d['distance'], 1e-12) for d in documents])
  factor = float(f'{factor:.3g}')  # 3 digits, as 2370 rather than 2.37e+03
  print(
    f'{job.net.title}: {len(documents)} projected; {job.about["distance"]} fell to 1/{factor:g} '
    f'(median); results in {out}/'
  )


if __name__ == '__main__':
  define_flags()
  cli.run(main)
