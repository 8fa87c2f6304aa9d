"""The viewer as a person meets it: a server of its own, driven by headless Chromium."""

import base64
import contextlib
import http.client
import http.server
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import imageio_ffmpeg
import numpy as np
import pytest

import sg2jax
from sg2jax import files, grids
from sg2jax.edit import direction
from sg2jax.edit.direction import Direction
from sg2jax.view import layers
from sg2jax.view.picture import Shown
from sg2jax.view.serve import RECONNECT_SECONDS
from tests.runs import ROOT, random_run
from tests.test_sampler import CATS, Z, make_run

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not CHROMIUM, reason='there is no Chromium; apt-get install chromium'),
]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  run = make_run(tmp_path_factory.mktemp('viewed') / 'run')
  (run / 'labels.json').write_text(CATS.to_json())
  (run / 'metrics.jsonl').write_text('{"nimg": 0, "swd": 3.0}\n{"nimg": 8, "swd": 2.0}\n')
  (run / 'directions').mkdir()
  wide = Direction('wide', (sg2jax.load(run).hash(),), np.full((6, Z), 0.1, np.float32))
  direction.write(run / 'directions' / 'one.npz', [wide])
  return run


@pytest.fixture(scope='module')
def net(run):
  return sg2jax.load(run)


@contextlib.contextmanager
def served(run, *flags):
  """(process, address) of a viewer; it must end well, and nothing may break in it."""
  command = [sys.executable, '-m', 'sg2jax.tools.view', f'--checkpoint={run}', '--port=0', *flags]
  env = os.environ | {'JAX_PLATFORMS': 'cpu', 'SG2JAX_CACHE': str(run.parent / 'cache')}
  log = tempfile.TemporaryFile('w+', dir=run.parent)
  process = subprocess.Popen(
    command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=log, text=True
  )
  try:
    address = ''
    while not (found := re.match(r'(http://\S+)', address)):
      address = process.stdout.readline()
      assert address, process.wait()
    yield process, found[1]
    assert process.poll() is None
  finally:
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    log.seek(0)
    text = log.read()
    log.close()
    assert 'Traceback' not in text, text


@pytest.fixture(scope='module')
def server(run):
  with served(run) as found:
    yield found


@pytest.fixture(scope='module')
def browser():
  from playwright.sync_api import sync_playwright

  # Names that were made to mean this machine, by whoever owns them.
  names = '--host-resolver-rules=MAP *.example 127.0.0.1, MAP *.colab.dev 127.0.0.1'
  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', names])
    yield browser
    browser.close()


@pytest.fixture
def page(browser, server):
  """A tab that shows its first picture; it must ask no other host, and complain of nothing."""
  yield from tab(browser, server[1])


def tab(browser, address):
  context = browser.new_context(viewport={'width': 1280, 'height': 800})
  page = context.new_page()
  asked, said = [], []
  page.on('request', lambda request: asked.append(request.url))
  page.on('websocket', lambda socket: asked.append(socket.url))
  page.on('console', lambda line: said.append(line.text) if line.type == 'error' else None)
  page.on('pageerror', lambda error: said.append(str(error)))
  page.goto(address)
  page.wait_for_function('document.getElementById("shown").naturalWidth > 0')
  yield page
  context.close()
  here = address.split('/')[2]
  assert asked and any(url.startswith('ws:') for url in asked)
  assert {url.split('/')[2] for url in asked if not url.startswith(('data:', 'blob:'))} == {here}
  assert not said


SHOWN = """async () => {
  const data = await (await fetch(document.getElementById('shown').src)).arrayBuffer();
  return Array.from(new Uint8Array(data));
}"""


def shows(page, image, seconds=15):
  """Whether the file in the page becomes the PNG of an image [H,W,C], byte for byte."""
  wanted = files.png(image)
  end = time.monotonic() + seconds
  found = None
  while found != wanted and time.monotonic() < end:
    with contextlib.suppress(Exception):  # a picture that is replaced as it is asked for
      found = bytes(page.evaluate(SHOWN))
    page.wait_for_timeout(20)
  return found == wanted


def field(page, name):
  return page.get_by_test_id(name)


def choose(page, name, option):
  page.locator('label', has=field(page, name)).click()
  page.get_by_role('option', name=option, exact=True).click()


def test_each_control_makes_the_picture_of_the_call(page, net):
  assert shows(page, net([0])[0])
  field(page, 'seed').fill('4294967295')
  assert shows(page, net([2**32 - 1])[0])
  for name, seed in (('Next seed', 0), ('Seed before', 2**32 - 1)):
    page.get_by_role('button', name=name).click()
    assert shows(page, net([seed])[0])
  page.get_by_role('button', name='Any seed').click()
  page.wait_for_function(f'document.querySelector("[data-testid=seed]").value != {2**32 - 1}')
  assert shows(page, net([int(field(page, 'seed').input_value())])[0])
  field(page, 'seed').fill('5')
  field(page, 'slider psi').locator('[tabindex]').first.press('ArrowLeft')
  assert shows(page, net([5], 0.99)[0]) and field(page, 'psi').input_value() == '0.99'
  field(page, 'psi').fill('0.4')
  assert shows(page, net([5], 0.4)[0])
  field(page, 'cutoff').fill('2')
  assert shows(page, net([5], 0.4, 2)[0])
  choose(page, 'label', 'dog')
  assert shows(page, net([5], 0.4, 2, 1)[0])
  choose(page, 'noise', 'random')
  assert shows(page, net([5], 0.4, 2, 1, 'random')[0])
  choose(page, 'noise', 'none')
  assert shows(page, net([5], 0.4, 2, 1, 'none')[0])
  field(page, 'mix_seed').fill('9')
  for handle in (1, 0):
    field(page, 'mix_range').locator('[tabindex]').nth(handle).press('ArrowRight')
  ws = np.array(net.ws([5, 9], 0.4, 2, 1))
  ws[0, 1:4] = ws[1, 1:4]
  assert shows(page, net.images(ws[:1], 'none', [5])[0])
  slider = field(page, 'direction wide').locator('[tabindex]').first
  slider.press('ArrowRight')
  slider.press('ArrowRight')
  moved = net.images(ws[:1], 'none', [5], 1, [(wide(net), 0.2)])[0]
  assert shows(page, moved)
  with page.expect_download() as saved:
    page.get_by_role('button', name='PNG').click()
  assert saved.value.path().read_bytes() == files.png(moved)
  assert saved.value.suggested_filename == 'seed0005.png'
  with page.expect_download() as saved:
    page.get_by_role('button', name='npz').click()
  arrays = files.parse_npz(saved.value.path().read_bytes(), 2**20, 'fiubU')
  np.testing.assert_array_equal(arrays['image'], moved)
  assert '--edit=' in page.locator('.command').inner_text()


def test_what_is_wrong_is_said_and_the_picture_stays(page, net):
  for name, text in (('seed', '-1'), ('seed', '1e30'), ('psi', 'much'), ('cutoff', '9')):
    field(page, name).fill(text)
    page.get_by_text(f'{name}={text} must be').wait_for()
    assert shows(page, net([0])[0])
  field(page, 'seed').fill('7')
  assert shows(page, net([7])[0])


TEXTS = ('', '-1', '0', '1', '2', '0.5', '1e30', 'nan', 'seven', '<b>', '4294967295', '4294967296')
FIELDS = ('seed', 'psi', 'cutoff', 'mix_seed', 'walk_seeds', 'walk_seconds')
SLIDERS = ('slider psi', 'slider cutoff', 'direction wide', 'mix_range')
KEYS = ('ArrowLeft', 'ArrowRight', 'PageUp', 'PageDown')
OPTIONS = {
  'label': ('drawn from the seed', *CATS.names),
  'noise': ('const', 'random', 'none'),
  'walk_space': ('straight on, in w', 'on the sphere, in z'),
}
BUTTONS = ('Seed before', 'Next seed', 'Any seed', 'PNG', 'npz', 'Copy the command', 'Record')


def act(page, draw, pictures):
  """One thing that a person may do, drawn."""
  kinds = {'fill': 8, 'slide': 3, 'choose': 3, 'press': 3, 'walk': 2, 'drop': 1, 'turn': 1}
  kind = draw.choices(list(kinds), kinds.values())[0]
  if kind == 'fill':
    field(page, draw.choice(FIELDS)).fill(draw.choice(TEXTS))
  elif kind == 'slide':
    slider = field(page, draw.choice(SLIDERS))
    slider.locator('[tabindex]').first.press(draw.choice(KEYS))
  elif kind == 'choose':
    name = draw.choice(list(OPTIONS))
    choose(page, name, draw.choice(OPTIONS[name]))
  elif kind == 'press':
    page.get_by_role('button', name=draw.choice(BUTTONS), exact=True).click()
  elif kind == 'walk':
    page.get_by_role('button', name=re.compile('^(Play|Stop)$')).click()
  elif kind == 'drop':
    page.locator('input[type=file]').set_input_files(draw.choice(pictures))
  else:
    for name in (draw.choice(('Layers', 'Training')), 'Directions'):
      page.get_by_role('tab', name=name).click()
      # NiceGUI's tabs change once the server says so, and a click before that is lost.
      page.get_by_role('tab', name=name, selected=True).wait_for()
      if name == 'Layers':
        choose(page, 'layer', draw.choice(('b4.conv1', 'b8.conv0', 'b16.conv1')))


def test_random_events_in_the_page(page, net):
  draw = random.Random(1)
  file = lambda name, data: {'name': name, 'mimeType': 'image/png', 'buffer': data}
  pictures = [file('no.png', b'no picture'), file('two.png', files.png(net([2])[0]))]
  page.context.grant_permissions(['clipboard-write'])
  for _ in range(200):
    act(page, draw, pictures)
    said = ' '.join(page.locator('.trouble, #trouble').all_inner_texts())
    assert not re.search(r'\w(Error|Exception)\b', said), said
  # ---- what is under way ends, and each control then does what it says
  stop = page.get_by_role('button', name='Stop')
  if stop.count():
    stop.click()
  page.get_by_text(re.compile('^(recording|projecting|waiting)')).wait_for(
    state='hidden', timeout=120_000
  )
  for name, options in OPTIONS.items():
    choose(page, name, options[0])
  page.wait_for_timeout(1000)
  for name, text in (('seed', '3'), ('psi', '0.5'), ('cutoff', '6'), ('mix_seed', '')):
    field(page, name).fill(' ')  # so that the last is another one, whatever there was
    field(page, name).fill(text)
  page.wait_for_timeout(1000)
  command = page.locator('.command').inner_text()
  strength = re.search(r':wide:(\S+)', command)
  edit = [(wide(net), float(strength[1]))] if strength else None
  assert '--seeds=3' in command and '--cols' not in command
  assert shows(page, net([3], 0.5, edit=edit)[0])


def wide(net):
  return direction.read(net.workdir / 'directions' / 'one.npz')


def test_two_tabs_are_apart(browser, server, page, net):
  other = tab(browser, server[1])
  second = next(other)
  field(page, 'seed').fill('3')
  field(second, 'seed').fill('4')
  field(second, 'psi').fill('0.5')
  assert shows(page, net([3])[0]) and shows(second, net([4], 0.5)[0])
  assert list(other) == []


def test_a_walk_plays_is_recorded_and_stops_at_a_seed(page, server, net, tmp_path):
  field(page, 'walk_seeds').fill('2')
  field(page, 'walk_seconds').fill('0.5')
  with page.expect_download(timeout=60_000) as saved:
    page.get_by_role('button', name='Record').click()
  film = tmp_path / 'walk.mp4'
  saved.value.save_as(film)
  assert imageio_ffmpeg.count_frames_and_secs(film)[0] == 30
  # ---- a frame on its way
  address = f'{server[1]}picture/{page.evaluate("view.id")}.png?at=0.25'
  ws = np.array(net.ws([0, 1]))
  between = net.images(ws[:1] + np.float32(0.25) * (ws[1:] - ws[:1]), 'const', [0])[0]
  assert page.request.get(address).body() == files.png(between)
  choose(page, 'walk_space', 'on the sphere, in z')
  assert page.request.get(address).body() != files.png(between)
  page.get_by_role('button', name='Play').click()
  page.locator('#speed').get_by_text('frames/s').wait_for()
  page.wait_for_timeout(2000)
  assert int(page.locator('#speed').inner_text().split()[0]) >= 20
  page.get_by_role('button', name='Stop').click()
  page.wait_for_function('!view.playing && !view.busy')
  assert page.locator('#speed').inner_text() == ''
  seed = int(field(page, 'seed').input_value())
  assert seed in (0, 1) and shows(page, net([seed])[0])


def test_layers_and_training_are_shown(page, net):
  field(page, 'seed').fill('3')
  page.get_by_role('tab', name='Layers').click()
  page.get_by_text('16 px', exact=True).wait_for()
  choose(page, 'layer', 'b4.conv1')
  maps = layers.maps(net, Shown(seed=3), {}, 'b4.conv1')
  data = files.png(grids.readable_grid(maps[None], 1))
  source = 'data:image/png;base64,' + base64.b64encode(data).decode()
  page.locator(f'img[src="{source}"]').wait_for(state='attached')
  page.get_by_role('tab', name='Training').click()
  page.locator('.nicegui-echart canvas').first.wait_for()


def test_a_dropped_picture_is_projected(page, net):
  def drop(name, data):
    file = {'name': name, 'mimeType': 'image/png', 'buffer': data}
    page.locator('input[type=file]').set_input_files(file)

  drop('broken.png', b'no picture')
  page.get_by_text('broken.png: not an image').wait_for()
  assert shows(page, net([0])[0])
  drop('two.png', files.png(net([2])[0]))
  page.get_by_text('two, projected').wait_for(timeout=60_000)
  field(page, 'psi').fill('0.5')
  page.get_by_text('psi is for seeds').wait_for()
  choose(page, 'label', 'dog')
  page.get_by_text('label is for seeds').wait_for()
  # ---- the fields are those of the picture again once a seed is shown, be it the one before
  field(page, 'seed').fill('0')
  assert shows(page, net([0])[0])
  page.get_by_text('is for seeds').wait_for(state='hidden')
  assert field(page, 'psi').input_value() == '1'
  field(page, 'cutoff').fill('5')
  field(page, 'psi').fill('0.3')
  assert shows(page, net([0], 0.3, 5)[0])
  # ---- while a walk plays, which then ends
  page.get_by_role('button', name='Play').click()
  drop('three.png', files.png(net([3])[0]))
  page.get_by_text('three, projected').wait_for(timeout=60_000)
  page.get_by_role('button', name='Play').wait_for()
  page.wait_for_function('!view.playing && !view.busy')
  page.get_by_text('three, projected').wait_for()


def test_a_tab_that_is_closed_is_forgotten(browser, server):
  pages = tab(browser, server[1])
  page = next(pages)
  address = f'{server[1]}picture/{page.evaluate("view.id")}.png'
  asking = browser.new_context()
  assert asking.request.get(address).ok
  assert asking.request.get(f'{address}?at=nan').status == 422
  assert list(pages) == []
  end = time.monotonic() + RECONNECT_SECONDS + 20
  while asking.request.get(address).status != 404:
    assert time.monotonic() < end
    time.sleep(0.5)
  asking.close()


def test_memory_does_not_grow(server, page):
  process, address = server
  id = page.evaluate('view.id')

  def resident():
    with open(f'/proc/{process.pid}/status') as f:
      return int(re.search(r'VmRSS:\s+(\d+)', f.read())[1]) / 1024  # MiB

  def ask(count):
    for i in range(count):
      answer = page.request.get(f'{address}picture/{id}.png?at={i / 7}')
      assert answer.ok
      answer.dispose()

  ask(300)
  before = resident()
  ask(1000)
  grown = resident() - before
  print(f'{before:.1f} MiB, grown by {grown:.2f} MiB')
  assert grown < 8


def test_texts_make_a_slider(browser, run, net):
  with served(run, '--clip=digits') as (_, address):
    pages = tab(browser, address)
    page = next(pages)
    page.get_by_role('button', name='Find').click()
    page.get_by_text('say what there is').wait_for()
    field(page, 'source').fill('a thin seven')
    field(page, 'target').fill('a thick seven')
    page.get_by_role('button', name='Find').click()
    slider = field(page, 'direction a thin seven - a thick seven')
    slider.wait_for(timeout=120_000)
    slider.locator('[tabindex]').first.press('ArrowLeft')
    (file,) = (run / 'edits' / 'viewer').iterdir()
    assert shows(page, net([0], edit=direction.read(file) * -0.1)[0])
    assert list(pages) == []


def test_others_need_the_token(browser, run, net):
  with served(run, '--host=0.0.0.0') as (_, address):
    port = re.search(r':(\d+)/', address)[1]
    token = address.partition('?token=')[2]
    here = f'http://127.0.0.1:{port}/'
    stranger = browser.new_context()
    for path in ('', '?token=wrong', 'picture/x.png', '_nicegui_ws/socket.io/?EIO=4'):
      assert stranger.request.get(here + path).status == 403
    stranger.close()
    pages = tab(browser, f'{here}?token={token}')
    page = next(pages)
    field(page, 'seed').fill('3')
    assert shows(page, net([3])[0])
    assert list(pages) == []


def test_another_network_in_its_place_is_shown(browser, run, net, tmp_path):
  place = tmp_path / 'run'
  shutil.copytree(run, place)
  with served(place) as (_, address):
    page = browser.new_page()
    page.goto(address)
    assert shows(page, net([0])[0])
    page.get_by_role('tab', name='Layers').click()
    page.get_by_text('b16.conv1').wait_for()
    choose(page, 'label', 'dog')
    # ---- as a run that grows: it has fewer layers for a while
    shutil.rmtree(place)
    grow = {'grow.start_res': 8, 'grow.hold_kimg': 4.0, 'grow.fade_kimg': 2.0, 'grow.repeats': 1}
    architectures = {'g.architecture': 'revised', 'd.architecture': 'revised'}
    small = {'g.fmap_base': 64, 'g.z_dim': Z, 'g.w_dim': Z, 'g.mapping_layers': 2}
    scales = (0.3, 0.3, 1, 1, 1)
    random_run(place, scales, resolution=(8, 16), **small, **grow, **architectures)
    (place / 'labels.json').write_text(CATS.to_json())
    other = sg2jax.load(place)
    assert shows(page, other([0], label='dog')[0])
    page.get_by_text('b8.conv1').wait_for()
    # ---- and one without classes, of another size
    shutil.rmtree(place)
    random_run(place, scales, resolution=(8, 8), **small)
    page.wait_for_function('document.getElementById("shown").naturalWidth == 8')
    assert shows(page, sg2jax.load(place)([0])[0])
    page.close()


# ---- windows, networks


NAME = """x => {
  const copy = x.cloneNode(true);
  copy.querySelectorAll('i').forEach(icon => icon.remove());
  const labels = [...(x.labels || [])].map(y => y.innerText).join('');
  return x.ariaLabel || copy.textContent || labels;
}"""


@pytest.mark.parametrize('width, height', ((1300, 820), (800, 900), (390, 844)))
def test_nothing_is_cut_off_and_the_picture_stays_in_view(browser, server, net, width, height):
  context = browser.new_context(viewport={'width': width, 'height': height})
  page = context.new_page()
  page.goto(server[1])
  assert shows(page, net([0])[0])
  assert page.evaluate('document.documentElement.scrollWidth') == width
  slider = field(page, 'direction wide')
  slider.scroll_into_view_if_needed()
  frame = page.locator('.frame').bounding_box()
  assert min(frame['width'], frame['height']) > 300
  assert frame['y'] > -20 and frame['y'] + frame['height'] < height
  # ---- each control says what it is to who can't see it
  for role in ('button', 'slider', 'textbox', 'combobox'):
    for control in page.get_by_role(role).all():
      assert control.evaluate(NAME).strip(), control.evaluate('x => x.outerHTML')
  context.close()


def test_a_tab_that_was_cut_off_goes_on(browser, server, net):
  context = browser.new_context()
  page = context.new_page()
  page.goto(server[1])
  field(page, 'seed').fill('77')
  assert shows(page, net([77])[0])
  context.set_offline(True)
  page.wait_for_timeout(7000)
  context.set_offline(False)
  page.wait_for_function('window.socket.connected')
  assert field(page, 'seed').input_value() == '77'
  field(page, 'psi').fill('0.5')
  assert shows(page, net([77], 0.5)[0])
  context.close()


@contextlib.contextmanager
def answering(handler):
  """The port of an HTTP server of this process."""
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield server.server_port
  finally:
    server.shutdown()
    server.server_close()


ASKED = """async (port) => {
  const path = '/_nicegui_ws/socket.io/?EIO=4&transport=';
  const socket = new WebSocket(`ws://localhost:${port}${path}websocket`);
  const opened = new Promise(done => {
    socket.onopen = () => done(1);
    socket.onerror = () => done(0);
  });
  const asked = path => fetch(`http://localhost:${port}${path}`).then(x => x.text()).catch(_ => '');
  return [await opened, await asked('/'), await asked(path + 'polling')];
}"""


def test_other_sites_get_nothing(browser, server):
  class Stranger(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802, as http.server calls it
      self.send_response(200)
      self.end_headers()

    def log_message(self, *_): ...

  port = int(re.search(r':(\d+)/', server[1])[1])
  context = browser.new_context()
  page = context.new_page()
  with answering(Stranger) as other:
    for site in (f'http://evil.example:{other}', f'http://localhost:{other}'):
      page.goto(site)
      assert page.evaluate(ASKED, port) == [0, '', '']
  page.goto(f'http://localhost:{port}')  # the same, as a page of its own
  opened, text, polled = page.evaluate(ASKED, port)
  assert opened and '<html' in text and '"sid"' in polled
  # ---- a name that means this machine by now
  answer = page.goto(f'http://evil.example:{port}')
  assert answer.status == 403 and 'does not go by the name' in answer.text()
  context.close()


def test_it_works_behind_a_proxy_without_websockets(browser, run, net):
  """As Colab's: a name of its own, and no websockets (googlecolab/colabtools issue 2529)."""
  with served(run, '--allow_host=*.colab.dev') as (_, address):
    target = address.split('/')[2]

    class Proxy(http.server.BaseHTTPRequestHandler):
      refused = 0

      def forward(self):
        if 'upgrade' in self.headers.get('Connection', '').lower():
          Proxy.refused += 1
          self.send_error(500)
          return
        data = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        asking = http.client.HTTPConnection(target)
        asking.request(self.command, self.path, data, dict(self.headers))
        answer = asking.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
          if name.lower() not in ('content-length', 'transfer-encoding', 'connection'):
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        asking.close()

      do_GET = do_POST = forward  # noqa: N815, as http.server calls them

      def log_message(self, *_): ...

    with answering(Proxy) as port:
      context = browser.new_context()
      page = context.new_page()
      page.goto(f'http://8080-abc.colab.dev:{port}/')
      assert shows(page, net([0])[0])
      field(page, 'seed').fill('3')
      assert shows(page, net([3])[0])
      file = {'name': 'no.png', 'mimeType': 'image/png', 'buffer': b'no picture'}
      page.locator('input[type=file]').set_input_files(file)
      page.get_by_text('no.png: not an image').wait_for()
      with page.expect_download() as saved:
        page.get_by_role('button', name='PNG').click()
      assert saved.value.path().read_bytes() == files.png(net([3])[0])
      assert Proxy.refused
      context.close()
