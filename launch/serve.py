"""Serves images of a StableHLO module of `sg2jax export`, to begin your own service from.

  pip install jax flatbuffers pillow
  python serve.py MODULE [--port=8000] [--host=127.0.0.1]

GET /?seed=3&psi=0.7&class=7 answers with the PNG that `sg2jax generate` makes of that seed, class
and psi; psi is 1 and class 0 unless they are given. It needs this file and the module, and nothing
of sg2jax. One image at a time is computed; put in front of it what your service needs: TLS,
identities, limits.
"""

import argparse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import io
import pathlib
import sys
import threading
from urllib.parse import parse_qsl, urlsplit

import jax
from jax import export
import numpy as np
from PIL import Image


class Network:
  """A module that makes images."""

  def __init__(self, path: str):
    module = export.deserialize(bytearray(pathlib.Path(path).read_bytes()))
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
    z = np.random.RandomState(seed).randn(1, self._z_dim)
    c = [np.eye(self._c_dim)[[number]]] if self._c_dim else []
    with self._lock:
      image = np.asarray(self._generate(*map(np.float32, (z, *c, psi))))[0]  # [H,W,C], in [-1,1]
    pixels = np.clip(image * 127.5 + 128, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, 'png')
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
  """Answers GET by images of `network`, which a subclass has."""

  network: Network

  def do_GET(self) -> None:
    """A picture; 400 for what is missing, no number, or out of range."""
    try:
      asked = dict(parse_qsl(urlsplit(self.path).query))
      seed, psi, number = (asked['seed'], asked.get('psi', '1'), asked.get('class', '0'))
      body = self.network.png(int(seed), float(psi), int(number))
    except (KeyError, ValueError) as e:
      self.send_error(400, explain=f'{type(e).__name__}: {e}')
      return
    self.send_response(200)
    self.send_header('Content-Type', 'image/png')
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body)


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
    server = ThreadingHTTPServer((args.host, args.port), handler)
  except OSError as e:
    parser.error(f'--host={args.host} --port={args.port}: {e.strerror}; name others')
  print(f'http://{args.host}:{server.server_port}/?seed=0', flush=True)
  try:
    server.serve_forever()
  except KeyboardInterrupt:
    sys.exit(130)


if __name__ == '__main__':
  main()
