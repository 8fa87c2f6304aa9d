"""A bucket on this machine: gcp-storage-emulator, with the faults that a network has."""

import contextlib
import copy
from functools import partial
import io
import logging
import os
import re
import socket
import threading
from unittest import mock
from urllib.parse import unquote

from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.storage import Storage

# It calls each object that isn't there an error.
logging.getLogger('gcp_storage_emulator').setLevel(logging.CRITICAL)


class Memory(Storage):
  """Without the file of all metadata, which would be written anew with each object."""

  def _write_config_to_file(self):
    pass


class Emulator:
  """Serves gs://b on a free port of the loopback.

  `fault(method, path)` is asked before every request, and may return
    a number   the answer is this status
    'drop'     the connection is closed after the request has been read half
    'half'     the answer ends half-way
    'stale'    the answer is of the time when `freeze` was called
  `requests` is a list of (method, path) of all that came.
  """

  def __init__(self):
    self.storage = Memory(use_memory_fs=True)
    buckets.create_bucket('b', self.storage)
    self.old = None
    self.requests = []
    self.fault = lambda method, path: None

  def freeze(self):
    self.old = copy.deepcopy(self.storage)

  def has(self, name):
    with contextlib.suppress(Exception):
      self.storage.get_file_obj('b', name)
      return True
    return False

  def __enter__(self):
    self.httpd = Server(('127.0.0.1', 0), partial(Handler, self))
    self.httpd.handle_error = lambda *_: None  # clients go away
    self.thread = threading.Thread(target=self.httpd.serve_forever, args=(0.02,), daemon=True)
    self.thread.start()
    self.environment = {
      'STORAGE_EMULATOR_HOST': f'http://127.0.0.1:{self.httpd.server_port}',
      'GOOGLE_CLOUD_PROJECT': 'tests',
    }
    return self

  def __exit__(self, *_):
    self.httpd.shutdown()
    self.thread.join()
    self.httpd.server_close()


class Server(server.server.HTTPServer):
  """Lets more clients wait than five: another is refused, and tries again after a second."""

  request_queue_size = 128


class Handler(server.RequestHandler):
  """Answers a request, or does what the Emulator's fault says."""

  disable_nagle_algorithm = True  # else each answer waits 40 ms for its second part

  def __init__(self, emulator, *args):
    self.emulator = emulator
    super().__init__(emulator.storage, *args)

  def _answer(self, method):
    emulator = self.emulator
    path = unquote(self.path)
    emulator.requests.append((method, path))
    size = int(self.headers.get('Content-Length') or 0)
    fault = emulator.fault(method, path)
    if fault == 'drop':
      self.rfile.read(size // 2)
      self.connection.shutdown(socket.SHUT_RDWR)
      return
    body = self.rfile.read(size)
    self.rfile = io.BytesIO(body)
    # The emulator doesn't know this precondition: there must be no such object.
    found = re.search(rb'"name": "([^"]+)"', body)
    if 'ifGenerationMatch=0' in path and found and emulator.has(found[1].decode()):
      fault = 412
    if isinstance(fault, int):
      self.send_response(fault)
      self.send_header('Content-Length', '0')
      self.end_headers()
      return
    if fault == 'stale':
      self.storage = emulator.old
    if fault == 'half':
      self.wfile = Half(self.wfile)
    server.Router(self).handle(method)

  do_GET = lambda self: self._answer('GET')
  do_POST = lambda self: self._answer('POST')
  do_PUT = lambda self: self._answer('PUT')
  do_DELETE = lambda self: self._answer('DELETE')


class Half:
  """A stream that loses the second half of what is written at once, headers excepted."""

  def __init__(self, stream):
    self.stream = stream

  def write(self, data):
    is_header = data.startswith(b'HTTP/')
    self.stream.write(data if is_header else data[: len(data) // 2])

  def __getattr__(self, name):
    return getattr(self.stream, name)


@contextlib.contextmanager
def serving():
  """An Emulator that this process uses for gs://, too."""
  import fsspec

  with Emulator() as emulator, mock.patch.dict(os.environ, emulator.environment):
    # gcsfs reads the variable when it makes a file system, and keeps that.
    fsspec.get_filesystem_class('gs').clear_instance_cache()
    yield emulator
    fsspec.get_filesystem_class('gs').clear_instance_cache()
