"""Starts the server of a viewer, and ends it."""

import asyncio
from collections.abc import Sequence
import contextlib
import logging as python_logging
import socket

from absl import logging
from fastapi import FastAPI
from nicegui import ui
import uvicorn

from sg2jax import clip as clips
from sg2jax.view.guard import Guard
from sg2jax.view.page import FAVICON, Page
from sg2jax.view.server import Viewer

FOLLOW_SECONDS = 5  # between looks at the run's folder
# A tab that was cut off for longer, by a network or as its machine slept, begins anew.
RECONNECT_SECONDS = 30


def serve(
  path: str,
  listening: socket.socket,
  hello: str,
  token: str,
  allowed: Sequence[str] = (),
  clip: str = '',
  activation: str = '',
) -> None:
  """Serves a viewer of the checkpoint at a path until a signal ends it.

  Args:
    path: of the checkpoint.
    listening: a socket that does.
    hello: what is printed as soon as it answers.
    token, allowed: as of Guard.
    clip, activation: as of clip.load; '': no texts.
  """
  viewer = Viewer(path, clips.load(clip, activation) if clip else None)
  config = uvicorn.Config(
    Guard(application(viewer), token, allowed),
    log_level='warning',
    access_log=False,
    timeout_graceful_shutdown=1,
    ws_max_size=2**24,
  )
  # What still waits as the server ends is cancelled, which is no fault.
  python_logging.getLogger('uvicorn.error').addFilter(_is_no_cancelling)
  print(viewer.net.title)
  print(hello, flush=True)
  with contextlib.suppress(KeyboardInterrupt):
    uvicorn.Server(config).run([listening])


def _is_no_cancelling(record):
  return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def application(viewer: Viewer) -> FastAPI:
  """The ASGI application of a viewer."""

  async def follow():
    while True:
      await asyncio.sleep(FOLLOW_SECONDS)
      try:
        await viewer.refresh()
      except Exception:  # a disk that is away for a moment ends no viewer
        logging.exception('the folder of the run could not be looked at')

  @contextlib.asynccontextmanager
  async def lifespan(_):
    following = asyncio.create_task(follow())
    yield
    viewer.is_closing = True
    following.cancel()

  app = FastAPI(
    lifespan=lifespan,
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
    # Whatever OpenTelemetry is told by the environment: nothing is measured of who looks.
    telemetry=dict.fromkeys(('tracing', 'metrics', 'logs', 'auto_configure'), False),
  )
  viewer.route(app)
  # Of the page, and not of ui.run_with: that would ask browsers for signs of life less often.
  ui.page('/', reconnect_timeout=RECONNECT_SECONDS)(lambda: Page(viewer) and None)
  ui.run_with(app, title='sg2jax', favicon=FAVICON, show_welcome_message=False)
  return app
