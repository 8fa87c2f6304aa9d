"""Downloads the weights that the metrics need, or lists what there is.

  python -m sg2jax.tools.fetch_weights [NAME ...] [--dest=DIR]

Without NAME: what there is, where it goes and whether it is there. DIR is $SG2JAX_WEIGHTS, else the
cache. Files come by https, are checked (size, sha256) and only then get their name. Behind a proxy,
$https_proxy is used; SSL_CERT_FILE names other certificates. On a machine without network: put the
files there by hand, under the names listed.
"""

import contextlib
import hashlib
import http.client
import os
import pathlib
import urllib.request

from absl import flags
import tqdm

from sg2jax import cli, faults, files, pretrained

_DEST = flags.DEFINE_string(
  'dest', '', 'Folder for the files; default: $SG2JAX_WEIGHTS, else the cache.'
)
CHUNK = 2**20  # bytes
TIMEOUT = 30  # seconds without a byte


def main(argv):
  """Fetches the files named in argv[1:], or lists all."""
  names = list(dict.fromkeys(argv[1:]))
  unknown = [name for name in names if name not in pretrained.FILES]
  if unknown:
    raise faults.UsageError(
      f'NAME={unknown[0]} is unknown; choose from {", ".join(pretrained.FILES)}'
    )
  dest = (
    pathlib.Path(os.path.expanduser(_DEST.value)).absolute()
    if _DEST.value
    else pretrained.folders()[0]
  )
  if not names:
    for name, file in pretrained.FILES.items():
      path = dest / file.name
      state = (
        'there' if right(path, file) else 'there, but another file' if path.exists() else 'missing'
      )
      print(f'{name}: {file.what}; {file.licence}\n  {path} ({file.bytes / 1e6:,.2f} MB): {state}')
    print(f'to fetch them: {pretrained.TOOL} {" ".join(pretrained.FILES)}')
    return
  failed = []
  for name in names:
    try:
      fetch(pretrained.FILES[name], dest)
    except faults.WeightsError as e:
      failed.append(str(e))
  if failed:
    raise faults.WeightsError('\n'.join(failed))


def right(path: pathlib.Path, file: pretrained.File) -> bool:
  """Whether `path` has the size and the sha256 of `file`."""
  if not path.is_file() or path.stat().st_size != file.bytes:
    return False
  return files.sha256(path) == file.sha256


def fetch(file: pretrained.File, dest: pathlib.Path):
  """Makes sure that `dest` holds `file`: checked if it is there, else downloaded from the first
  address that has it.

  Raises:
    WeightsError: no address had it; with reasons, and what to put where by hand.
    WriteError: `dest` can't be written.
  """
  path = dest / file.name
  if right(path, file):
    print(f'{path}: already there, and the right file')
    return
  if path.exists():
    print(f'{path}: another file of that name, replaced if the download succeeds')
  reasons, part = [], path.with_name(f'.{file.name}.{os.getpid()}.part')
  for url in file.urls:
    try:
      _download(url, file, part)
      with files.writing(path):
        os.replace(part, path)
      print(f'{path}: {file.bytes:,} bytes, sha256 {file.sha256}')
      return
    except (OSError, http.client.HTTPException, ValueError) as e:
      reasons.append(f'{url}: {" ".join(str(e).strip("<>").split()) or type(e).__name__}')
    finally:
      with contextlib.suppress(OSError):
        part.unlink()
  raise faults.WeightsError(
    f'{file.name} could not be downloaded ({"; ".join(reasons)}). Without network: get the file '
    f'elsewhere ({file.bytes:,} bytes, sha256 {file.sha256}) and put it at {path}'
  )


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
  def redirect_request(self, req, fp, code, msg, headers, newurl):
    _check_https(newurl)
    return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_https(url):
  if not url.lower().startswith('https://'):
    raise ValueError(f'leads to {url}, and only https is allowed')


def _download(url, file, part):
  """Writes the content of `url` to `part`. Raises ValueError if it isn't `file`, OSError for the
  network.
  """
  _check_https(url)
  digest, size = hashlib.sha256(), 0
  with contextlib.ExitStack() as stack:
    with files.writing(part):
      part.parent.mkdir(parents=True, exist_ok=True)
      out = stack.enter_context(part.open('wb'))
    response = stack.enter_context(
      urllib.request.build_opener(_HttpsOnly).open(url, timeout=TIMEOUT)
    )
    bar = stack.enter_context(
      tqdm.tqdm(total=file.bytes, desc=file.name, unit='B', unit_scale=True, disable=None)
    )
    while (chunk := response.read(CHUNK)) and size <= file.bytes:
      with files.writing(part):
        out.write(chunk)
      digest.update(chunk)
      size += len(chunk)
      bar.update(len(chunk))
    with files.writing(part):
      out.flush()
      os.fsync(out.fileno())
  if size != file.bytes or digest.hexdigest() != file.sha256:
    held = f'{size:,} bytes' if size <= file.bytes else f'more than {file.bytes:,} bytes'
    raise ValueError(
      f'holds {held} with sha256 {digest.hexdigest()}, which is not the file ({file.bytes:,}, '
      f'{file.sha256})'
    )


if __name__ == '__main__':
  cli.run(main, positional=len(pretrained.FILES))
