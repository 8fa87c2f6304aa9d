"""A walk as a video file."""

import pathlib
import tempfile

from sg2jax.faults import UsageError
from sg2jax.tools import videos
from sg2jax.view import picture
from sg2jax.view.server import Leaving, Viewer

FPS = 30
MOST_FRAMES = 30_000


def record(viewer: Viewer, id: str) -> tuple[str, bytes]:
  """The name and the bytes of an mp4 of the walk of the tab `id`, once around.

  The thread of JAX makes frame after frame, and pictures of the tabs between them. Raises:
  Interrupted, if the tab is closed or the server ends; UsageError: it is too long.
  """
  session = viewer.sessions[id]
  leaving = Leaving(viewer, id)
  net, shown, directions = viewer.net, session.shown, viewer.directions
  count, space = session.walk_seeds, session.walk_space
  frames = max(2, round(count * session.walk_seconds * FPS))
  if frames > MOST_FRAMES:
    raise UsageError(
      f'{count} seeds of {session.walk_seconds:g} seconds are {frames:,} pictures, and a recording '
      f'has {MOST_FRAMES:,} at most; choose fewer, or `sg2jax video`'
    )

  def pictures():
    for i in range(frames):
      if leaving:
        leaving.leave('the walk is not recorded')
      session.progress = f'recording: {i + 1} of {frames} pictures'
      at = i * count / frames
      yield viewer.work_now(picture.walk_frame, net, shown, directions, at, count, space)

  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'walk.mp4'
    videos.write_video(path, pictures(), FPS)
    return f'walk_seed{shown.seed:04d}.mp4', path.read_bytes()
