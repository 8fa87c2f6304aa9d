"""Weights of others: found where promised, told from other files, downloaded whole or not."""

import contextlib
import hashlib
import http.server
import io
import ssl
import subprocess
import sys
import threading

import numpy as np
import pytest

from sg2jax import files, pretrained
from sg2jax.faults import UsageError, WeightsError, WriteError
from sg2jax.tools import fetch_weights
from tests.runs import ROOT, call

CONTENT = files.npz(a=np.arange(6.0).reshape(2, 3), b=np.float32(2))
OTHER = files.npz(a=np.zeros(2))


def sha256(data):
  return hashlib.sha256(data).hexdigest()


def published(*urls):
  """A file of the registry whose content is CONTENT."""
  return pretrained.File('file.pth', len(CONTENT), sha256(CONTENT), urls, 'a test', 'none')


# ---- reading


def odd_files():
  """{name: (content, part of the reason)}"""
  npz = {}
  for name, array in {'object': np.array([{}], object), 'text': np.array('text')}.items():
    out = io.BytesIO()
    np.savez(out, array)
    npz[name] = out.getvalue()
  return {
    'empty': (b'', 'neither'),
    'page': (b'<html>', 'neither'),
    'npz object': (npz['object'], 'allow_pickle'),
    'npz text': (npz['text'], 'not an array of numbers'),
    'npz cut': (npz['text'][:-9], 'is refused'),
  }


def test_odd_files_are_refused_by_name_and_a_name_does_not_matter(tmp_path):
  path = tmp_path / 'weights.bin'
  path.write_bytes(CONTENT)
  arrays, _ = pretrained.load('inception', path)
  assert list(arrays) == ['a', 'b'] and arrays['a'].shape == (2, 3) and arrays['b'] == 2
  for name, (content, said) in odd_files().items():
    path.write_bytes(content)
    with pytest.raises(WeightsError) as e:
      pretrained.load('inception', path)
    assert str(path) in str(e.value) and said in str(e.value), name
  with pytest.raises(WeightsError, match='missing weights.*/nowhere'):
    pretrained.load('inception', tmp_path / 'nowhere')
  with path.open('wb') as file:
    file.truncate(2**33)  # takes no room
  with pytest.raises(WeightsError, match='8,589,934,592 bytes'):
    pretrained.load('inception', path)


# ---- where files are looked for


@pytest.fixture
def places(tmp_path, monkeypatch):
  """(own folder, cache folder), where the file `inception` is a small one: CONTENT."""
  monkeypatch.setenv('SG2JAX_WEIGHTS', str(tmp_path / 'own'))
  monkeypatch.setenv('SG2JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setitem(pretrained.FILES, 'inception', published())
  folders = tmp_path / 'own', tmp_path / 'cache' / 'weights'
  for folder in folders:
    folder.mkdir(parents=True)
  return folders


@pytest.mark.smoke
def test_explicit_path_then_own_folder_then_cache(places, tmp_path):
  own, cached = (folder / 'file.pth' for folder in places)
  elsewhere = tmp_path / 'elsewhere'
  assert pretrained.find('inception') is None
  cached.write_bytes(CONTENT)
  assert pretrained.find('inception') == cached
  own.write_bytes(CONTENT)
  assert pretrained.find('inception') == own
  assert pretrained.find('inception', elsewhere) is None  # and not another one silently
  elsewhere.write_bytes(OTHER)
  assert pretrained.find('inception', elsewhere) == elsewhere


def test_one_error_names_all_missing_files_the_places_and_the_command(places):
  with pytest.raises(WeightsError) as e:
    pretrained.require(['inception', 'vgg16', 'lpips_vgg'], {'vgg16': '/nowhere/v.pth'})
  own, cached = places
  for said in (
    f'{own}/file.pth',
    f'{cached}/file.pth',
    '/nowhere/v.pth',
    f'{cached}/vgg.pth',
    'python -m sg2jax.tools.fetch_weights inception vgg16 lpips_vgg',
  ):
    assert said in str(e.value)
  assert str(own / 'vgg16-397923af.pth') not in str(e.value)


def test_load_tells_the_hash_and_refuses_another_file_in_a_folder(places, tmp_path):
  own, cached = (folder / 'file.pth' for folder in places)
  cached.write_bytes(CONTENT)
  arrays, digest = pretrained.load('inception')
  np.testing.assert_array_equal(arrays['a'], [[0, 1, 2], [3, 4, 5]])
  assert digest == sha256(CONTENT)
  (tmp_path / 'mine.pt').write_bytes(OTHER)
  arrays, digest = pretrained.load('inception', tmp_path / 'mine.pt')
  assert arrays['a'].shape == (2,) and digest == sha256(OTHER)
  own.write_bytes(OTHER)
  said = f'(?s){own}.*{sha256(OTHER)}.*fetch_weights inception'
  with pytest.raises(WeightsError, match=said):
    pretrained.load('inception')


def test_the_registry_is_consistent():
  for name, file in pretrained.FILES.items():
    assert len(bytes.fromhex(file.sha256)) == 32
    assert file.urls and all(url.startswith('https://') for url in file.urls)
    if name in pretrained.CLIP:
      continue
    digits = file.name.removesuffix('.pth').split('-')[-1]
    assert file.name == 'vgg.pth' or file.sha256.startswith(digits)  # as torch.hub checks it


def test_clips_are_at_addresses_with_their_hashes():
  assert len(pretrained.CLIP) == 9
  for name in pretrained.CLIP:
    file = pretrained.FILES[name]
    assert file.urls[0].endswith(f'/{file.sha256}/{file.name}')


# ---- downloads


class Server(http.server.BaseHTTPRequestHandler):
  """Serves CONTENT rightly and wrongly."""

  def do_GET(self):
    if self.path.startswith('/to/'):
      self.send_response(302)
      self.send_header('Location', self.path.removeprefix('/to/'))
      self.send_header('Content-Length', '0')
      return self.end_headers()
    bodies = {
      '/good': CONTENT,
      '/other': bytes(len(CONTENT)),
      '/long': CONTENT * 1000,
      '/short': CONTENT[:-5],
    }
    body = bodies.get(self.path, b'')
    self.send_response(200 if body else 404)
    promised = len(CONTENT) if self.path == '/short' else len(body)
    self.send_header('Content-Length', str(promised))
    self.end_headers()
    with contextlib.suppress(OSError):  # the client has had enough
      self.wfile.write(body)

  def log_message(self, *args):
    pass


@pytest.fixture(scope='module')
def server():
  """The address of an https server."""
  with http.server.ThreadingHTTPServer(('localhost', 0), Server) as server:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ROOT / 'tests' / 'localhost.pem')
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'https://localhost:{server.server_address[1]}'
    server.shutdown()


@pytest.fixture
def trusted(monkeypatch):
  monkeypatch.setenv('SSL_CERT_FILE', str(ROOT / 'tests' / 'localhost.pem'))
  monkeypatch.setenv('no_proxy', 'localhost')


def test_download_to_a_new_folder_and_again(server, trusted, tmp_path, capsys):
  dest = tmp_path / 'new' / 'folder'
  pretrained.fetch(published(f'{server}/missing', f'{server}/to/{server}/good'), dest)
  assert (dest / 'file.pth').read_bytes() == CONTENT and len(list(dest.iterdir())) == 1
  pretrained.fetch(published(), dest)  # no address is needed
  assert 'already there, and the right file' in capsys.readouterr().out
  (dest / 'file.pth').write_bytes(CONTENT[:-1])
  pretrained.fetch(published(f'{server}/good'), dest)
  assert (dest / 'file.pth').read_bytes() == CONTENT
  with pytest.raises(WriteError, match='choose another place'):
    pretrained.fetch(published(f'{server}/good'), dest / 'file.pth')


@pytest.mark.parametrize(
  'path, said',
  [
    ('/other', 'sha256'),
    ('/long', f' {2 * len(CONTENT):,} bytes with sha256 '),  # no more is read
    ('/short', f'{len(CONTENT) - 5:,} bytes with'),
    ('/missing', '404'),
    ('/to/http://localhost/good', 'unknown url type: http'),
    ('/to/file:///etc/passwd', 'Redirection to'),
    ('/to/ftp://localhost/a', 'unknown url type: ftp'),
  ],
)
def test_a_wrong_download_leaves_nothing(server, trusted, tmp_path, monkeypatch, path, said):
  monkeypatch.setattr(pretrained, 'CHUNK', len(CONTENT))
  (tmp_path / 'file.pth').write_bytes(b'old')
  with pytest.raises(WeightsError) as e:
    pretrained.fetch(published(server + path), tmp_path)
  for part in (server + path, said, f'put it at {tmp_path}/file.pth', sha256(CONTENT)):
    assert part in str(e.value)
  assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [('file.pth', b'old')]


def test_an_untrusted_server_and_http(server, tmp_path, monkeypatch):
  monkeypatch.setenv('no_proxy', 'localhost')
  monkeypatch.delenv('SSL_CERT_FILE', raising=False)
  with pytest.raises(WeightsError, match='CERTIFICATE_VERIFY_FAILED'):
    pretrained.fetch(published(f'{server}/good'), tmp_path)
  with pytest.raises(WeightsError, match='unknown url type: http'):
    pretrained.fetch(published(server.replace('https', 'http') + '/good'), tmp_path)
  assert not list(tmp_path.iterdir())


def test_the_tool_downloads_lists_and_fails_as_promised(
  server, trusted, places, monkeypatch, capsys
):
  monkeypatch.setitem(pretrained.FILES, 'inception', published(f'{server}/good'))
  bad = pretrained.File('other.pth', 5, '0' * 64, (f'{server}/missing',), 'a test', 'none')
  monkeypatch.setitem(pretrained.FILES, 'bad', bad)
  with pytest.raises(WeightsError) as e:
    call(fetch_weights, 'inception', 'bad', 'inception')
  assert f'{server}/missing: HTTP Error 404' in str(e.value)
  assert f'put it at {places[0]}/other.pth' in str(e.value)
  assert pretrained.load('inception')  # came before
  capsys.readouterr()
  (places[0] / 'vgg.pth').write_text('')
  call(fetch_weights)
  listed = capsys.readouterr().out
  for said in (
    'file.pth (0.00 MB): there\n',
    'other.pth (0.00 MB): missing',
    'vgg.pth (0.01 MB): another file',
  ):
    assert said in listed
  with pytest.raises(UsageError, match='NAME=resnet is unknown; choose from inception, vgg16'):
    call(fetch_weights, 'inception', 'resnet')


def test_the_tool_runs_without_jax():
  """It is run before anything else is set up, and `fetch_weights` alone takes no time."""
  code = 'import sys; from sg2jax.tools import fetch_weights; sys.exit("jax" in sys.modules)'
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
