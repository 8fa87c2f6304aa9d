"""The page of a viewer, NiceGUI's: the controls of a tab, its picture, walk and downloads."""

from collections.abc import Callable
import html
import math
import pathlib
import secrets
import shlex
from typing import Any

from absl import logging
from nicegui import background_tasks, run, ui

from sg2jax.faults import Fault, Interrupted
from sg2jax.models.layers import NOISE_MODES
from sg2jax.view import picture, recording, searches, session
from sg2jax.view.panels import CurvesPanel, LayersPanel
from sg2jax.view.server import Viewer
from sg2jax.view.session import Session

HERE = pathlib.Path(__file__).parent
FAVICON = (
  '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" '
  'fill="#1e2126"/><rect x="3" y="3" width="5" height="5" fill="#7fb5ff"/><rect x="8" y="8" '
  'width="5" height="5" fill="#ffb4a2"/></svg>'
)
TABS = ('Directions', 'Layers', 'Training')
REACH = 5  # strengths on the sliders of directions
LOOK_SECONDS = 0.5  # between looks at whether the run has something new


class Page:
  """One tab."""

  def __init__(self, viewer: Viewer) -> None:
    """Makes the session, and builds the page; to be called where NiceGUI builds one."""
    self.viewer = viewer
    self.session = Session()
    self.id = secrets.token_urlsafe(16)
    viewer.sessions[self.id] = self.session
    self._version = viewer.version
    self._built_for = session.controls(viewer.net)
    self._found = 0
    self._defaults = {}  # name of a control: (element, value)
    client = ui.context.client
    client.on_delete(lambda: viewer.sessions.pop(self.id, None))
    ui.dark_mode(True)
    ui.add_css((HERE / 'page.css').read_text())
    ui.add_head_html(f'<script>{(HERE / "page.js").read_text()}</script>')
    self._build()
    ui.timer(LOOK_SECONDS, self._look)
    ui.on('walk_broke', lambda: self._show_playing(False))
    client.on_connect(lambda: self.script(f'view.begin("{self.id}")'))

  def script(self, code: str) -> None:
    """Has the browser run some JavaScript."""
    ui.run_javascript(code)

  # ---- layout

  def _build(self):
    with ui.element('main').classes('all'):
      with ui.column().classes('pane controls gap-1'):
        self._seed()
        self._truncation()
        self._mixing()
        self._walk()
        self._projection()
      with ui.element().classes('shows'):
        self.title = ui.label(self.viewer.net.title).classes('text-base')
        ui.html('<div class="frame"><img id="shown" alt="the picture"></div>', sanitize=False)
        with ui.row().classes('w-full no-wrap items-center justify-between'):
          self.about = ui.label('').classes('small')
          ui.html('<div id="speed"></div>', sanitize=False)
        self.progress = ui.label('').classes('small')
        self.message = ui.label('').classes('trouble').props('role=alert')
        ui.html('<div id="trouble" role="alert"></div>', sanitize=False)
        self._downloads()
      with ui.column().classes('pane tabs gap-1'):
        self._tabs()
    self.changed()

  def _tabs(self):
    async def show():
      await self.layers.refresh()
      await self.curves.refresh()

    with ui.tabs(on_change=show).props('dense no-caps').classes('w-full') as tabs:
      for name in TABS:
        ui.tab(name)
    with ui.tab_panels(tabs, value=TABS[0], animated=False, keep_alive=True) as panels:
      panels.classes('w-full bg-transparent')
      with ui.tab_panel(TABS[0]).classes('p-0'):
        self._texts()
        self._directions()
      with ui.tab_panel(TABS[1]).classes('p-0'):
        self.layers = LayersPanel(self.viewer, self.session, lambda: tabs.value == TABS[1])
      with ui.tab_panel(TABS[2]).classes('p-0'):
        self.curves = CurvesPanel(self.viewer, lambda: tabs.value == TABS[2])

  def _seed(self):
    with ui.row().classes('w-full no-wrap items-center gap-1'):
      self.seed = self._field('seed', 'Seed', '0').classes('grow')
      for icon, said, click in (
        ('chevron_left', 'Seed before', lambda: self._step(-1)),
        ('chevron_right', 'Next seed', lambda: self._step(1)),
        ('casino', 'Any seed', lambda: self._step(secrets.randbelow(100_000))),
      ):
        button = ui.button(icon=icon, on_click=click).props('flat dense').tooltip(said)
        button.props['aria-label'] = said
    labels = self.viewer.net.labels
    if names := session.classes(self.viewer.net):
      options = {'': 'drawn from the seed'} | {name: name for name in names}
      self._select('label', 'Class', options, '')
    elif labels:
      self._field('label', f'Label: {labels.listing()}', '')

  def _truncation(self):
    said = 'Truncation psi: 1 varied, 0 the mean'
    self._slider('psi', said, -1, 1.5, 0.01, 1.0)
    most = self.viewer.net.num_ws
    said = f'Cutoff: psi acts on so many coarse ws, of {most}'
    self._slider('cutoff', said, 0, most, 1, most)
    self._select('noise', 'Noise', list(NOISE_MODES), 'const')

  def _mixing(self):
    net = self.viewer.net
    ui.label('Style mixing').classes('heading')
    self._field('mix_seed', 'Seed that lends styles; empty: none', '')
    last = net.num_ws - 1
    told = ui.label().classes('small')

    def tell(first, last):
      sizes = sorted({session.resolution_of(net, k) for k in (first, last)})
      told.set_text(f'ws {first} to {last}: layers of {" to ".join(map(str, sizes))} px')

    def take(ends):
      self.event(self.session.mix(net, ends['min'], ends['max']))
      tell(self.session.shown.mix_first, self.session.shown.mix_last)

    tell(0, last // 2)
    self.session.mix(net, 0, last // 2)
    slider = ui.range(
      min=0, max=last, step=1, value={'min': 0, 'max': last // 2}, on_change=lambda e: take(e.value)
    )
    slider.props('snap markers').classes('px-2').props('data-testid=mix_range')
    slider.props['aria-label'] = 'ws that are mixed'

  def _walk(self):
    ui.label('Walk through seeds').classes('heading')
    with ui.row().classes('w-full no-wrap gap-2'):
      self._field('walk_seeds', 'Seeds', '8').classes('grow')
      self._field('walk_seconds', 'Seconds each', '2').classes('grow')
    ways = {'w': 'straight on, in w', 'z': 'on the sphere, in z'}
    self._select('walk_space', 'Way', ways, 'w')
    with ui.row().classes('w-full no-wrap items-center gap-1'):
      self.play = ui.button('Play', icon='play_arrow', on_click=self._play).props('dense')
      ui.button('Record', icon='movie', on_click=self._record).props('dense flat').tooltip(
        'The walk as an mp4 file'
      )

  def _projection(self):
    ui.label('Project a picture').classes('heading')
    upload = ui.upload(
      label='Drop a picture here, or choose one with +',
      auto_upload=True,
      max_file_size=searches.MOST_BYTES,
      on_upload=self._project,
      on_rejected=lambda: self._say(f'a file has {searches.MOST_BYTES:,} bytes at most'),
    )
    upload.classes('w-full drop').props('flat bordered data-testid=upload')

  def _downloads(self):
    with ui.row().classes('items-center gap-2'):
      address = f'/picture/{self.id}'
      ui.button('PNG', icon='download', on_click=lambda: ui.download(f'{address}.png?save=1'))
      ui.button('npz', icon='download', on_click=lambda: ui.download(f'{address}.npz'))
      ui.button(
        'Copy the command', icon='content_copy', on_click=lambda: ui.clipboard.write(self.command())
      )
    self.line = ui.html('', sanitize=False).classes('command')

  def _texts(self):
    """Two texts that make a direction, where there is a CLIP."""
    if not self.viewer.clip:
      return
    source = ui.input('From: what there is, "a thin seven"').classes('w-full')
    target = ui.input('To: what it is to become, "a thick seven"').classes('w-full')

    async def find():
      await self._search(searches.of_texts, self.id, source.value or '', target.value or '')
      await self.viewer.refresh()

    with ui.row().classes('w-full items-center'):
      ui.button('Find', icon='search', on_click=find).props('dense')
    for field, name in ((source, 'source'), (target, 'target')):
      field.props(f'dense data-testid={name}')

  @ui.refreshable_method
  def _directions(self):
    found = self.viewer.directions
    if not found:
      command = shlex.join(['sg2jax', 'directions', 'pca', f'--checkpoint={self.viewer.path}'])
      ui.label(f'None yet. This finds some: {command}').classes('small')
    before = ''
    for file, name in found:
      if file != before:
        ui.label('/'.join(pathlib.Path(file).parts[-3:])).classes('small')
      before = file
      self._direction(file, name)
    for note in self.viewer.notes:
      ui.label(note).classes('small')

  def _direction(self, file, name):
    with ui.column().classes('w-full gap-0'):
      ui.label(name).classes('small').style('color: #e8e8e8')
      with ui.row().classes('w-full no-wrap items-center gap-2'):
        value = self.session.strength(file, name)

        def take(e):
          self.event(self.session.move(self.viewer.directions, file, name, e.value))
          shown.set_text(f'{self.session.strength(file, name):g}')

        slider = ui.slider(min=-REACH, max=REACH, step=0.1, value=value, on_change=take)
        slider.classes('grow').props('dense')
        slider.props['data-testid'] = f'direction {name}'  # a name may hold quotes
        slider.props['aria-label'] = f'strength of {name}'
        shown = ui.label(f'{value:g}').style('width: 36px; text-align: right')

  # ---- controls

  def _take(self, name: str, value: Any) -> None:
    """Takes what was given for a control."""
    was_projected = self.session.shown.start
    is_taken = self.session.set(self.viewer.net, name, value)
    if was_projected and not self.session.shown.start:
      self._reset()  # what was typed meanwhile, and refused, isn't what is shown
    self.event(is_taken)

  def _field(self, name: str, label: str, value: str) -> ui.input:
    field = ui.input(label, value=value, on_change=lambda e: self._take(name, e.value))
    self._defaults[name] = field, value
    return field.props('dense debounce=150').classes('w-full').props(f'data-testid={name}')

  def _select(self, name: str, label: str, options: Any, value: str) -> ui.select:
    field = ui.select(
      options, label=label, value=value, on_change=lambda e: self._take(name, e.value)
    )
    self._defaults[name] = field, value
    return field.props('dense options-dense').classes('w-full').props(f'data-testid={name}')

  def _slider(self, name, label, low, high, step, value):
    """A slider, and beside it a field for what is typed; each follows the other."""

    def current():
      found = getattr(self.session.shown, name)
      return value if found is None else found

    def take(e: Any):
      self._take(name, e.value)
      slider.set_value(min(max(current(), low), high))

    def take_slid(e: Any):
      # What was typed already isn't written anew: 0. would become 0 before its digits come.
      if e.value != min(max(current(), low), high):
        field.set_value(f'{e.value:g}')

    with ui.row().classes('w-full no-wrap items-end gap-2'):
      with ui.column().classes('grow gap-0 pr-2'):
        ui.label(label).classes('small')
        slider = ui.slider(min=low, max=high, step=step, value=value, on_change=take_slid)
        slider.props['data-testid'] = f'slider {name}'
        slider.props['aria-label'] = label
      field = ui.input(value=f'{value:g}', on_change=take)
      field.props('dense debounce=100').style('width: 64px').props(f'data-testid={name}')
      field.props['aria-label'] = label
    self._defaults[name] = field, f'{value:g}'

  # ---- events

  def event(self, is_good: bool) -> None:
    """After one: shows what came of it."""
    self.message.set_text(self.session.message)
    if is_good:
      self.changed()
      self.script('view.show()')

  def changed(self) -> None:
    """Says what is shown, and how it is made."""
    net, shown = self.viewer.net, self.session.shown
    name = session.drawn_class(net, shown)
    title = f'{shown.start.name}, projected' if shown.start else f'seed {shown.seed}'
    self.about.set_text(title + (f', class {name}' if name else ''))
    # Lines break between flags, not at their hyphens.
    parts = html.escape(self.command()).split(' ')
    self.line.set_content(' '.join(f'<span>{part}</span>' for part in parts))
    background_tasks.create(self.layers.refresh())

  def command(self) -> str:
    """The command line for the picture."""
    return picture.command(self.viewer.net, self.session.shown, self.viewer.path)

  def _step(self, by):
    self.seed.set_value(str((self.session.shown.seed + by) % 2**32))

  async def _play(self):
    is_playing = self.play.text == 'Play'
    if is_playing and not self._can_walk():
      return
    self._show_playing(is_playing)
    if is_playing:
      self.script(f'view.play({self.session.walk_seconds})')
      return
    # The nearest seed stays, so that the picture is the one of the fields and of the downloads.
    at = await ui.run_javascript('view.stop()')
    if isinstance(at, (int, float)) and math.isfinite(at):
      self._step(round(at) % self.session.walk_seeds)
    self.event(True)

  def _show_playing(self, is_playing):
    self.play.set_text('Stop' if is_playing else 'Play')
    self.play.props(f'icon={"stop" if is_playing else "play_arrow"}')

  def _can_walk(self):
    """Whether what is shown can walk; says it if not."""
    if self.session.shown.start:
      self._say(picture.NO_WALK)
    return not self.session.shown.start

  async def _record(self):
    async def record():
      found = await run.io_bound(recording.record, self.viewer, self.id)
      if found:  # None: the server ends
        ui.download(found[1], found[0])

    if self._can_walk():
      await self._alone('recording ...', record)

  async def _project(self, e: Any):
    e.sender.reset()
    await self._search(searches.projected, self.id, e.file.name, await e.file.read())

  async def _search(self, function: Callable, *args: Any) -> None:
    """Calls one of `searches` in their thread."""

    async def search():
      await self.viewer.work(function, self.viewer, *args, thread='searches')

    await self._alone('waiting for the searches of others', search)

  async def _alone(self, said: str, work: Callable) -> None:
    """Awaits `work()`, which takes a while, one at a time of each tab. said: while it begins."""
    if self.session.progress:
      self._say('wait for what is under way')
      return
    self.session.progress = said
    self._say('')
    try:
      await work()
      self._say('')
    except Interrupted as e:  # nobody is there to be told
      logging.info('%s', e)
    except Fault as e:
      self._say(str(e))
    except Exception as e:  # of the encoder, the disk ...: it ends no viewer
      logging.exception('what a tab asked for broke')
      self._say(f'{type(e).__name__}: {e!s:.300}')
    finally:
      self.session.progress = ''

  def _say(self, text):
    self.session.say(text)
    self.message.set_text(self.session.message)

  def _reset(self):
    """Sets the controls that only seeds have, after something else was found."""
    for name in session.OF_SEEDS:
      if name in self._defaults:
        element, value = self._defaults[name]
        element.set_value(value)

  def _look(self):
    """Shows what the run, or a search, has that it hadn't before."""
    self.progress.set_text(self.session.progress)
    if self._found != self.session.version:
      self._found = self.session.version
      if self.session.shown.start:  # a walk that was playing is over
        self.script('view.stop()')
        self._show_playing(False)
        self.seed.set_value('')
      self._reset()
      self.event(True)
    if self._version != self.viewer.version:
      self._version = self.viewer.version
      if session.controls(self.viewer.net) != self._built_for:  # another network came in its place
        ui.navigate.reload()
        return
      self.title.set_text(self.viewer.net.title)
      self._directions.refresh()
      self.event(True)
