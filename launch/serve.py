"""Serves images of a StableHLO module of `sg2jax export`, to begin your own service from.

  pip install jax flatbuffers pillow
  python serve.py MODULE [--port=8000] [--host=127.0.0.1]

GET /?seed=3&psi=0.7&class=7 answers with the PNG that `sg2jax generate` makes of that seed, class
and psi; psi is 1 and class 0 unless they are given. It needs this file and the module, and nothing
of sg2jax; with MODULE.json beside it, which `export` writes, a damaged module is refused. One image
at a time is computed; put in front of it what your service needs: TLS, identities, limits.
"""

import argparse
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import io
import json
import pathlib
import sys
import threading
from urllib.parse import parse_qsl, urlsplit

import jax
from jax import export
import numpy as np
from PIL import Image

VALUES = {'seed': int, 'psi': float, 'class': int}  # of a query
DEFAULTS = {'psi': 1.0, 'class': 0}


class Network:
  """A module that makes images."""

  def __init__(self, path: str):
    data = pathlib.Path(path).read_bytes()
    about = pathlib.Path(f'{path}.json')
    if (
      about.exists() and json.loads(about.read_text())['sha256'] != hashlib.sha256(data).hexdigest()
    ):
      raise ValueError(f'its SHA-256 is not that in {about.name}')
    module = export.deserialize(bytearray(data))
    self._generate = jax.jit(module.call)  # compiled once for each number of images
    z, *c, _ = module.in_avals
    self._z_dim = z.shape[1]
    self._c_dim = c[0].shape[1] if c else 0  # 0: no classes
    self._lock = threading.Lock()  # images by turns: together they would each take longer

  def png(self, seed: int, psi: float, number: int) -> bytes:
    """The image of a seed and of a class by number, as a file. Raises ValueError: out of range."""
    if not -2 <= psi <= 2:  # NaN neither
      raise ValueError(f'psi={psi} is not in [-2, 2]')
    if not 0 <= number < max(self._c_dim, 1):
      raise ValueError(f'class={number} is not in [0, {max(self._c_dim, 1)})')
    if not 0 <= seed < 2**32:
      raise ValueError(f'seed={seed} is not in [0, 2^32)')
    z = np.random.RandomState(seed).randn(1, self._z_dim)
    c = [np.eye(self._c_dim)[[number]]] if self._c_dim else []
    with self._lock:
      image = np.asarray(self._generate(*map(np.float32, (z, *c, psi))))[0]  # [H,W,C], in [-1,1]
    pixels = np.clip(image * 127.5 + 128, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, 'png')
    return file.getvalue()


def read(query: str) -> dict[str, int | float]:
  """The VALUES of a query. Raises ValueError, which names what is wrong."""
  found = {}
  for name, text in parse_qsl(query, keep_blank_values=True):
    if name not in VALUES:
      raise ValueError(f'{name} is unknown; choose from {", ".join(VALUES)}')
    if name in found:
      raise ValueError(f'{name} is given twice')
    try:
      found[name] = VALUES[name](text)
    except ValueError:
      raise ValueError(f'{name}={text} is no {VALUES[name].__name__}') from None
  if 'seed' not in found:
    raise ValueError('seed is missing')
  return DEFAULTS | found


class Handler(BaseHTTPRequestHandler):
  """Answers GET and HEAD by images of `network`, which a subclass has."""

  network: Network
  timeout = 30  # seconds; who says nothing for longer is not waited for

  def do_GET(self) -> None:
    """A picture; 404: another path; 400: a query that `read` or the network refuses."""
    try:
      url = urlsplit(self.path)
      if url.path != '/':
        self.send_error(404)
        return
      values = read(url.query)
      body = self.network.png(values['seed'], values['psi'], values['class'])
    except ValueError as e:
      self.send_error(400, explain=str(e))
      return
    self.send_response(200)
    self.send_header('Content-Type', 'image/png')
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(body)

  do_HEAD = do_GET


class Server(ThreadingHTTPServer):
  """One that doesn't mind who leaves before the answer, nor if many come at once."""

  request_queue_size = 256

  def handle_error(self, request: object, client_address: object) -> None:
    """Prints the traceback of all other errors."""
    if not isinstance(sys.exc_info()[1], ConnectionError):
      super().handle_error(request, client_address)


def main() -> None:
  """Loads, compiles, says its address, serves until it is stopped."""
  parser = argparse.ArgumentParser()
  parser.add_argument('module')
  parser.add_argument('--port', type=int, default=8000)
  parser.add_argument('--host', default='127.0.0.1')
  args = parser.parse_args()
  try:
    network = Network(args.module)
  except OSError as e:
    parser.error(f'{args.module}: {e.strerror}; name a file of `sg2jax export --format=stablehlo`')
  except Exception as e:  # of a file that is torn, or another, flatbuffers and JAX raise all sorts
    parser.error(
      f'{args.module} is no module of `sg2jax export --format=stablehlo`, or not whole '
      f'({type(e).__name__}: {" ".join(str(e).split())[:100]}); copy it again'
    )
  network.png(0, 1, 0)  # compiles, before the first request has to wait for it
  handler = type('HandlerOfNetwork', (Handler,), {'network': network})
  try:
    server = Server((args.host, args.port), handler)
  except (OSError, OverflowError) as e:
    parser.error(f'--host={args.host} --port={args.port}: {e}; name others')
  print(f'http://{args.host}:{server.server_port}/?seed=0', flush=True)
  try:
    server.serve_forever()
  except KeyboardInterrupt:
    sys.exit(130)


if __name__ == '__main__':
  main()
