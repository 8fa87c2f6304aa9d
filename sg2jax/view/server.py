"""What the tabs of a viewer share: the network, its directions, threads for JAX; the routes.

A tab asks for its next picture when the one before has arrived, so that none waits in a queue: a
slider that moves fast skips pictures, and never lags.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import contextlib
import pathlib
from typing import Any
from urllib.parse import quote

from absl import logging
from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse

from sg2jax import files, paths, sampler
from sg2jax.clip import Clip
from sg2jax.faults import Fault, Interrupted
from sg2jax.sampler import Sampler
from sg2jax.view import catalogue, picture
from sg2jax.view.session import Session

THREADS = ('pictures', 'layers', 'searches')
NEVER_KEPT = {'Cache-Control': 'no-store'}


class Leaving:
  """As a signals.Stop, for work of a tab in a thread: true once the tab is gone, or the server."""

  def __init__(self, viewer: 'Viewer', id: str) -> None:
    """id: of the tab's session."""
    self._viewer = viewer
    self._id = id

  def __bool__(self) -> bool:
    return self._viewer.is_closing or self._id not in self._viewer.sessions

  def leave(self, what: str) -> None:
    """Raises Interrupted. what: was reached."""
    raise Interrupted(
      f'{"the viewer ends" if self._viewer.is_closing else "the tab was closed"}; {what}'
    )


def _differ(found, before):
  """Whether directions are others: a file that was not written again gives the same objects."""
  return found.keys() != before.keys() or any(x is not before[key] for key, x in found.items())


class Viewer:
  """A network, and the sessions of those who look at it."""

  def __init__(self, path: str, clip: Clip | None = None) -> None:
    """Reads the newest checkpoint at a path. clip: of texts. Raises what `sampler.load` does."""
    self.clip = clip
    self.path = path
    self._tried = self._newest()  # the newest checkpoint when one was read
    self.net: Sampler = sampler.load(path)
    self._known = {}
    self.directions, self.notes = catalogue.find(self.net, self._known)
    self.sessions: dict[str, Session] = {}  # by ids that only their tabs know
    self.version = 0  # counts what `refresh` found
    self.is_closing = False
    # Pictures wait for nothing that takes seconds.
    self._threads = {name: ThreadPoolExecutor(1, name) for name in THREADS}

  async def work(self, function: Callable, *args: Any, thread: str = 'pictures') -> Any:
    """What a function returns, called in one of THREADS, one after another."""
    return await asyncio.wrap_future(self._threads[thread].submit(function, *args))

  def work_now(self, function: Callable, *args: Any) -> Any:
    """As `work`, for another thread, which waits."""
    return self._threads['pictures'].submit(function, *args).result()

  def _newest(self):
    """What tells the newest checkpoint from others; None where there is none to follow."""
    root = paths.place(self.path) / 'checkpoints'
    with contextlib.suppress(Fault, OSError):
      steps = [p for p in root.iterdir() if p.name.isdecimal()]
      if steps:
        newest = max(steps, key=lambda p: int(p.name))
        # A run that was begun again may have come to the same step.
        made = newest.stat().st_mtime_ns if isinstance(newest, pathlib.Path) else 0
        return int(newest.name), made
    return None

  async def refresh(self) -> bool:
    """Takes the newest checkpoint, and directions that were saved since; whether any is new."""
    loop = asyncio.get_running_loop()
    net = self.net
    # Of a disk that is away, or a run that was deleted, what was read stays.
    if not await loop.run_in_executor(None, net.workdir.exists):
      return False
    newest = await loop.run_in_executor(None, self._newest)
    if newest and newest != self._tried:
      try:
        net = await loop.run_in_executor(None, sampler.load, self.path)
        self._tried = newest
      except Fault as e:  # deleted as it was read, or the disk is away: the next look finds another
        logging.warning('%s', e)
    found, notes = await loop.run_in_executor(None, catalogue.find, net, self._known)
    is_new = net is not self.net or _differ(found, self.directions)
    if is_new:
      self.net, self.directions, self.notes = net, found, notes
      self.version += 1
      for session in self.sessions.values():
        session.fit(net, found)
    return is_new

  def route(self, app: FastAPI) -> None:
    """The pictures and files of sessions."""

    async def made(id: str, kind: str, make: Callable, name: str = '') -> Response:
      session = self.sessions.get(id)
      if not session:
        return PlainTextResponse('no such tab; load the page again', 404)
      shown = session.shown  # which may be another one by the time that this one is made
      try:
        data = await self.work(make, session, shown)
      except Fault as e:
        return PlainTextResponse(str(e), 422, NEVER_KEPT)
      except Exception as e:  # a picture that can't be made ends no viewer
        logging.exception('a picture could not be made')
        return PlainTextResponse(f'{type(e).__name__}: {e!s:.300}', 500, NEVER_KEPT)
      headers = NEVER_KEPT
      if name:
        file = quote(f'{picture.name_of(shown)}.{name}')
        headers = headers | {'Content-Disposition': f"attachment; filename*=UTF-8''{file}"}
      return Response(data, media_type=kind, headers=headers)

    @app.get('/picture/{id}.png')
    async def show(id: str, at: float | None = None, save: int = 0) -> Response:
      def make(session, shown):
        # While a walk plays, a projection may come to its end.
        if at is None or shown.start:
          image = picture.picture(self.net, shown, self.directions)
        else:
          walk = at, session.walk_seeds, session.walk_space
          image = picture.walk_frame(self.net, shown, self.directions, *walk)
        return files.png(image)

      return await made(id, 'image/png', make, 'png' if save else '')

    @app.get('/picture/{id}.npz')
    async def npz(id: str) -> Response:
      def make(_, shown):
        return picture.npz(self.net, shown, self.directions, self.path)

      return await made(id, 'application/octet-stream', make, 'npz')
