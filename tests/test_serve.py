"""launch/serve.py makes the images of `sg2jax generate`, with jax and a module alone."""

import ast
import hashlib
import io
import json
import os
import subprocess
import sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image
import pytest

from sg2jax import sampler
from sg2jax.interop import write
from tests import runs
from tests.runs import ROOT

SERVE = ROOT / 'launch' / 'serve.py'


@pytest.fixture(scope='module')
def net(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  fields = {'resolution': 8, 'data.channels': 3, 'g.fmap_base': 64, 'g.z_dim': 8, 'g.w_dim': 8}
  return sampler.load(runs.random_run(folder, (0.3, 0.3, 1, 1, 1), **fields))


@pytest.fixture(scope='module')
def address(net, tmp_path_factory):
  module = tmp_path_factory.mktemp('there') / 'net.stablehlo'
  module.write_bytes(write.write_stablehlo(net)[0])
  env = os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  command = [sys.executable, str(SERVE), str(module), '--port=0']
  with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as server:
    yield server.stdout.readline().strip().partition('?')[0]
    server.terminate()


def test_it_imports_nothing_of_this_package():
  nodes = ast.walk(ast.parse(SERVE.read_text()))
  found = {
    getattr(node, 'module', None) or node.names[0].name
    for node in nodes
    if isinstance(node, (ast.Import, ast.ImportFrom))
  }
  assert 'jax' in found and not any(name.startswith(('sg2jax', 'configs')) for name in found)


def test_images_are_those_of_generate(net, address):
  for seed, psi, number in ((3, 1, 0), (2**32 - 1, 0.5, 2)):
    query = f'?seed={seed}' + (f'&psi={psi}&class={number}' if number else '')
    with urlopen(address + query) as answer:
      image = np.asarray(Image.open(io.BytesIO(answer.read())))
    ours = net([seed], psi=psi, label=number)[0]
    assert image.shape == (8, 8, 3) and image.std() > 0
    assert np.abs(np.int32(image) - ours).max() <= 1


@pytest.mark.parametrize(
  'query, said',
  [
    ('', 'seed is missing'),
    ('?seed=', 'seed= is no int'),
    ('?seed=x', 'seed=x is no int'),
    ('?seed=-1', 'seed=-1 is not in [0, 2^32)'),
    ('?seed=4294967296', 'seed=4294967296 is not in'),
    ('?seed=1&psi=nan', 'psi=nan is not in [-2, 2]'),
    ('?seed=1&class=3', 'class=3 is not in [0, 3)'),
    ('?seed=1&class=-1', 'class=-1 is not in'),
    ('?seed=1&psi=', 'psi= is no float'),
    ('?seed=1&psy=0.5', 'psy is unknown'),
    ('?seed=1&seed=2', 'seed is given twice'),
  ],
)
def test_bad_queries_are_refused_and_the_next_is_answered(query, said, address):
  with pytest.raises(HTTPError, match='400') as e:
    urlopen(address + query)
  assert said in e.value.read().decode()
  assert urlopen(address + '?seed=1').status == 200


def test_other_paths_and_heads(address):
  with pytest.raises(HTTPError, match='404'):
    urlopen(address + 'favicon.ico')
  with urlopen(Request(address + '?seed=1', method='HEAD')) as answer:
    assert answer.status == 200 and answer.read() == b''
    assert int(answer.headers['Content-Length']) > 0


def test_what_cannot_be_served_is_said_in_a_line(net, address, tmp_path):
  module = tmp_path / 'net.stablehlo'
  module.write_bytes(write.write_stablehlo(net)[0])
  torn = tmp_path / 'torn.stablehlo'
  torn.write_bytes(module.read_bytes()[:1000])
  flipped = tmp_path / 'flipped.stablehlo'
  flipped.write_bytes(module.read_bytes()[:-1] + b'x')
  digest = hashlib.sha256(module.read_bytes()).hexdigest()
  (tmp_path / 'flipped.stablehlo.json').write_text(json.dumps({'sha256': digest}))
  port = address.rpartition(':')[2].strip('/')
  env = os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  for given, said in (
    ([tmp_path / 'gone'], 'No such file'),
    ([torn], 'copy it again'),
    ([flipped], 'its SHA-256 is not that in flipped.stablehlo.json'),
    ([module, '--port=99999'], 'name others'),
    ([module, f'--port={port}'], 'name others'),
  ):
    ended = subprocess.run([sys.executable, SERVE, *given], env=env, capture_output=True, text=True)
    assert ended.returncode == 2 and 'Traceback' not in ended.stderr
    assert said in ended.stderr.splitlines()[-1]
