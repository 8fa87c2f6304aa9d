"""The tabs beside the picture: what its layers do, and how training goes."""

import base64
from collections.abc import Callable
from typing import Any

from nicegui import run, ui

from sg2jax import files, grids
from sg2jax.faults import Fault
from sg2jax.view import curves, layers
from sg2jax.view.server import Viewer
from sg2jax.view.session import Session

LOOK_SECONDS = 5  # between looks at metrics.jsonl


class LayersPanel:
  """Parts by resolution and feature maps of the picture shown."""

  def __init__(self, viewer: Viewer, session: Session, is_open: Callable[[], bool]) -> None:
    """Builds it; is_open: whether it can be seen, or else nothing is computed."""
    self._viewer = viewer
    self._session = session
    self._is_open = is_open
    self._busy = False
    self._again = False
    names = layers.names(viewer.net)
    ui.label('What each resolution adds').classes('heading')
    self._note = ui.label('').classes('trouble')
    with ui.row().classes('w-full gap-2 no-wrap') as self._parts:
      pass
    ui.label('Feature maps').classes('heading')
    self._layer = ui.select(names, value=names[-1], on_change=self.refresh)
    self._layer.props('dense options-dense').classes('w-full').props('data-testid=layer')
    self._maps = ui.image().classes('w-full pixels').props('no-spinner no-transition')
    ui.label(f'grey: 0; {layers.MAPS} channels at most').classes('small')

  async def refresh(self) -> None:
    """Shows the picture of now; while one is computed, only the last that is asked for counts."""
    self._again = True
    if self._busy or not self._is_open():
      return
    self._busy = True
    try:
      while self._again:
        self._again = False
        await self._show()
    finally:
      self._busy = False

  async def _show(self):
    viewer, shown = self._viewer, self._session.shown
    names = layers.names(viewer.net)
    if names != self._layer.options:  # it has grown, or another one came in its place
      before = self._layer.value
      self._layer.set_options(names, value=before if before in names else names[-1])
    layer = self._layer.value

    def compute():
      given = viewer.net, shown, viewer.directions
      try:
        found, problem = layers.parts(*given), ''
      except Fault as e:
        found, problem = {}, str(e)
      return found, problem, layers.maps(*given, layer)

    try:
      found, problem, maps = await viewer.work(compute, thread='layers')
    except Fault as e:
      self._note.set_text(str(e))
      return
    self._note.set_text(problem)
    self._parts.clear()
    with self._parts:
      for name, part in found.items():
        with ui.column().classes('gap-0').style('flex: 1 1 0; min-width: 0'):
          image = ui.image(_source(layers.reduced(part.image, layers.PART_SIDE)))
          image.classes('w-full pixels').props('no-spinner no-transition')
          ui.label(f'{name[1:]} px').classes('small')
          ui.label(f'{part.share:.0%}')
    self._maps.set_source(_source(maps))


def _source(image):
  """A picture as an address that holds it."""
  data = files.png(grids.readable_grid(image[None], 1))
  return 'data:image/png;base64,' + base64.b64encode(data).decode()


class CurvesPanel:
  """What the run logged."""

  def __init__(self, viewer: Viewer, is_open: Callable[[], bool]) -> None:
    """Builds it; is_open: as of LayersPanel."""
    self._viewer = viewer
    self._is_open = is_open
    self._found = {}
    self._drawn = None
    self._names = ui.select([], label='Metrics', multiple=True, value=[], on_change=self._draw)
    self._names.props('dense options-dense use-chips').classes('w-full').props(
      'data-testid=metrics'
    )
    self._charts = ui.column().classes('w-full gap-0')
    self._note = ui.label('').classes('small')
    ui.timer(LOOK_SECONDS, self.refresh)

  async def refresh(self) -> None:
    """Reads the log, if the panel can be seen."""
    if not self._is_open():
      return
    found = await run.io_bound(curves.read, self._viewer.net.workdir)
    if found == self._found and self._drawn is not None:
      return
    chosen = self._names.value or curves.first(list(found))
    self._found = found
    self._names.set_options(list(found), value=[name for name in chosen if name in found])
    self._note.set_text(
      'Left to right: thousands of real images shown'
      if found
      else 'The run has no metrics.jsonl yet'
    )
    self._draw()

  def _draw(self):
    """A chart for each metric that is chosen: their units differ."""
    drawn = [(name, self._found[name]) for name in self._names.value]
    if drawn == self._drawn:
      return
    self._drawn = drawn
    self._charts.clear()
    with self._charts:
      for name, points in drawn:
        ui.echart(_chart(name, points)).classes('w-full').style('height: 150px')


def _chart(name, points) -> dict[str, Any]:
  faint = {'lineStyle': {'color': '#33383f'}}
  grey = {'color': '#9aa4b2'}
  return {
    'animation': False,
    'title': {'text': name, 'textStyle': {'fontSize': 12, 'color': '#e8e8e8'}},
    'grid': {'left': 48, 'right': 12, 'top': 30, 'bottom': 22},
    'xAxis': {'type': 'value', 'splitLine': {'show': False}, 'axisLabel': grey},
    'yAxis': {'type': 'value', 'scale': True, 'splitLine': faint, 'axisLabel': grey},
    'tooltip': {'trigger': 'axis'},
    'series': [{'type': 'line', 'showSymbol': len(points) < 2, 'data': points}],
  }
