"""A walk as a video file."""

import pathlib
import tempfile

from sg2jax.tools import videos
from sg2jax.view import picture
from sg2jax.view.server import Viewer
from sg2jax.view.session import Session

FPS = 30
MOST_FRAMES = 30_000


def record(viewer: Viewer, session: Session) -> tuple[str, bytes]:
  """The name and the bytes of an mp4 of a session's walk, once around.

  The thread of JAX makes frame after frame, and pictures of the tabs between them.
  """
  net, shown, directions = viewer.net, session.shown, viewer.directions
  count = session.walk_seeds
  frames = min(MOST_FRAMES, max(2, round(count * session.walk_seconds * FPS)))

  def pictures():
    for i in range(frames):
      if viewer.closing:
        viewer.closing.leave('the walk is not recorded')
      at = i * count / frames
      yield viewer.work_now(picture.walk_frame, net, shown, directions, at, count)

  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'walk.mp4'
    videos.write_video(path, pictures(), FPS)
    return f'walk_seed{shown.seed:04d}.mp4', path.read_bytes()
