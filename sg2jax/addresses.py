"""Addresses: objects of a bucket, or of any other store that fsspec knows, used like paths.

A library of its own exists for that (universal-pathlib), but each of its calls may fail in ways of
the store's library, see a listing of yesterday, or take an error for «isn't there». Here every call
asks anew, tries again what may pass, and raises OSError with a line for people, so that the code
above treats a bucket as it treats a disk.
"""

from collections.abc import Callable, Collection, Iterator
from concurrent import futures
import contextlib
import errno
import logging
import os
import pathlib
import re
import time
from typing import Any, Self, TypeVar

from sg2jax import faults

T = TypeVar('T')

# gs://..., also where pathlib made one slash of two
PATTERN = re.compile(
  r'([A-Za-z][A-Za-z0-9+.-]*)://|(gs|s3|https?|hdfs|ftp|file):(?:/|$)', re.IGNORECASE
)
PACKAGES = {'gs': 'gcs', 'gcs': 'gcs', 's3': 's3', 's3a': 's3'}  # scheme: extra of ours
EXCLUSIVE = ('gs', 'gcs', 's3', 's3a', 'memory')  # they take a precondition with an object
READ_ONLY = ('http', 'https', 'ftp', 'data', 'github', 'git', 'zip', 'tar')
# Seconds before another attempt. The libraries of the stores try again by themselves what they know
# to pass, gcsfs for half a minute; this is for what they don't, and for a somewhat longer failure.
WAITS = (1,)
_FINAL = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_WRONG = (PermissionError, NotImplementedError, ValueError, TypeError, AttributeError)


class StoreError(OSError):
  """What a store or the way to it refused; `strerror` is a line for people."""


class Address:
  """The address of an object, or of all objects below it; what pathlib.Path offers, of that.

  There are no folders: nothing has to be made, and one without objects isn't there.
  """

  def __init__(self, scheme: str, path: pathlib.PurePosixPath) -> None:
    """path: what follows SCHEME://. Nothing is asked, and nobody logs in, before it is used."""
    self._scheme = scheme
    self._path = path

  # ---- names

  def __str__(self) -> str:
    return f'{self._scheme}://{self._path}'

  def __repr__(self) -> str:
    return f'Address({str(self)!r})'

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Address) and str(self) == str(other)

  def __hash__(self) -> int:
    return hash(str(self))

  def _at(self, path):
    return Address(self._scheme, path)

  def __truediv__(self, name: str) -> 'Address':
    return self._at(self._path / name)

  @property
  def name(self) -> str:
    """The last part."""
    return self._path.name

  @property
  def parts(self) -> tuple[str, ...]:
    """Bucket and names."""
    return self._path.parts

  @property
  def suffix(self) -> str:
    """The ending of the name, with its dot."""
    return self._path.suffix

  @property
  def parent(self) -> 'Address':
    """Without the last part; the bucket is its own."""
    return self.parents[0] if self.parents else self

  @property
  def parents(self) -> list['Address']:
    """All above, up to the bucket."""
    return [self._at(path) for path in self._path.parents if path.name]

  def with_name(self, name: str) -> 'Address':
    """With another last part."""
    return self._at(self._path.with_name(name))

  def absolute(self) -> Self:
    """Itself."""
    return self

  def expanduser(self) -> Self:
    """Itself."""
    return self

  # ---- what is there

  def details(self) -> dict[str, Any] | None:
    """What the store says of an object, with `size` and `type`; None: there is none."""
    try:
      return self._ask('info', str(self))
    except FileNotFoundError:
      return None

  def exists(self) -> bool:
    """Whether there is an object, or one below it."""
    return self.details() is not None

  def is_file(self) -> bool:
    """Whether it is an object."""
    return (self.details() or {}).get('type') == 'file'

  def is_dir(self) -> bool:
    """Whether there are objects below it."""
    return (self.details() or {}).get('type') == 'directory'

  def iterdir(self) -> Iterator['Address']:
    """The next parts of what is below it."""
    return iter([self / name for name in self.listing()])

  def listing(self) -> dict[str, dict[str, Any]]:
    """{name: `details`} of `iterdir`; empty if there is nothing."""
    try:
      entries = self._ask('ls', str(self), detail=True)
    except FileNotFoundError:
      return {}
    names = [entry['name'].rstrip('/').rpartition('/')[2] for entry in entries]
    # Some stores have an object of the folder's own name, made by their web page.
    return {name: x for name, x in zip(names, entries) if name and name != self.name}

  def objects(self) -> dict[str, dict[str, Any]]:
    """{name below it, with slashes: `details`} of all objects below it."""
    entries = self._ask('find', str(self), detail=True)
    root = str(_store(self._scheme)._strip_protocol(str(self))).rstrip('/') + '/'
    return {
      name.removeprefix(root): entry for name, entry in entries.items() if name.startswith(root)
    }

  # ---- bytes

  def read_bytes(self) -> bytes:
    """An object."""
    return self._ask('cat_file', str(self))

  def read_text(self, encoding: str = 'utf-8') -> str:
    """An object as text."""
    return self.read_bytes().decode(encoding)

  def write_bytes(self, data: bytes, is_new: bool = False) -> None:
    """Puts an object whole: at any moment there is the old one or the new one.

    is_new: raises FileExistsError if there is one; see `decides_who_is_first`.
    """
    if not is_new:
      self._ask('pipe_file', str(self), data)
    elif self.decides_who_is_first:
      self._ask('pipe_file', str(self), data, mode='create')
    elif self.exists():
      raise FileExistsError(str(self))
    else:
      self._ask('pipe_file', str(self), data)

  @property
  def decides_who_is_first(self) -> bool:
    """Whether of two processes that write a new object at the same moment one gets an error."""
    return self._scheme in EXCLUSIVE

  def upload(self, file: pathlib.Path) -> None:
    """Puts a file of this machine as this object."""
    self._ask('put_file', str(file), str(self))

  def download(self, file: pathlib.Path) -> None:
    """Writes the object to a file of this machine, whose folder is there."""
    self._ask('get_file', str(self), str(file))

  def copy(self, target: 'Address') -> None:
    """Copies the object within its store."""
    self._ask('cp_file', str(self), str(target))

  def unlink(self, missing_ok: bool = False) -> None:
    """Deletes the object."""
    try:
      self._ask('rm_file', str(self))
    except FileNotFoundError:
      if not missing_ok:
        raise

  def remove_all(self) -> None:
    """Deletes all below it; in no order, and not at one moment."""
    with contextlib.suppress(FileNotFoundError):
      self._ask('rm', str(self), recursive=True)

  def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
    """Nothing: there are no folders."""

  def _ask(self, method: str, *args: Any, **options: Any) -> Any:
    """Calls a method of the store. Raises StoreError, or one of _FINAL."""
    for wait in (*WAITS, None):
      try:
        store = _store(self._scheme)
        store.invalidate_cache()
        return getattr(store, method)(*args, **options)
      except _FINAL:
        raise
      except Exception as e:  # each library has its own, and that of HTTP, and that of sockets
        if wait is None or not _may_pass(e):
          raise self._error(e) from e
        time.sleep(wait)
    raise AssertionError

  def _error(self, e):
    text = ' '.join(str(e).split())[:300]
    code = errno.EACCES if _is_refusal(e) else e.errno if isinstance(e, OSError) else None
    return StoreError(code or errno.EIO, f'{text or type(e).__name__} ({self._scheme} store)')


def _is_refusal(e):
  """Whether the store knows us not, or lets us not: 401, 403."""
  refused = isinstance(e, PermissionError) or str(getattr(e, 'code', '')) in ('401', '403')
  return refused or str(e).startswith('Forbidden')  # as gcsfs says it


def _may_pass(e):
  """Whether another attempt may do: not if we asked for what can't be."""
  code = str(getattr(e, 'code', ''))
  asked_wrong = re.fullmatch('4..', code) and code not in ('408', '429')
  # of the disk of this machine: no room, no such folder
  ours = isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
  return not (isinstance(e, _WRONG) or _is_refusal(e) or asked_wrong or ours)


def parse(text: str, said: str = '') -> Address:
  """The Address that a text says. Asks nothing yet.

  Args:
    text: SCHEME://BUCKET/NAME...
    said: how it was given, for errors.

  Raises:
    UsageError: no such scheme, or a package is missing; the remedy says which.
  """
  scheme, separator, path = text.partition('://')
  said = said or text
  if not separator or not path.strip('/'):
    raise faults.UsageError(
      f'{said}: an address has two slashes and a bucket, as in gs://bucket/folder'
    )
  scheme = scheme.lower()
  if scheme in READ_ONLY:
    raise faults.UsageError(
      f'{said}: {scheme} has no folders that can be listed and written to; download it, and give '
      'the path'
    )
  path = re.sub('/+', '/', path).strip('/')
  if '..' in path.split('/'):
    raise faults.UsageError(f'{said}: no address has .. in it; give the whole one')
  _check_scheme(scheme, said)
  return Address(scheme, pathlib.PurePosixPath(path))


def transfer(
  work: Callable[[str], T], names: Collection[str], at_once: int, done: Callable[[T], Any] = id
) -> None:
  """Does the work for each name, several at once; done(result) as results come.

  Raises: the first error, after which nothing is begun: a store that is gone would be waited for
    name by name, each for a minute.
  """
  with futures.ThreadPoolExecutor(at_once) as pool:
    running = [pool.submit(work, name) for name in names]
    try:
      for one in futures.as_completed(running):
        done(one.result())
    except BaseException:  # SIGTERM, too
      pool.shutdown(cancel_futures=True)
      raise


def _check_scheme(scheme, said):
  """Raises UsageError if no package is there for a scheme."""
  extra = PACKAGES.get(scheme)
  remedy = f'pip install "sg2jax[{extra}]"' if extra else 'pip install the package named there'
  try:
    _fsspec().get_filesystem_class(scheme)
  except ImportError as e:
    raise faults.UsageError(f'{said}: {e}; {remedy}') from e
  except ValueError as e:
    raise faults.UsageError(
      f'{said}: {e}; gs:// and s3:// are known, and what fsspec has packages for'
    ) from e


def _fsspec():
  # gcsfs asks by gRPC what kind of bucket each is, which needs permissions of its own and fails in
  # other ways than all else; that is for kinds of buckets that need it, and can be set by users.
  os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
  import fsspec  # here, because it takes time, and who has no bucket does without

  # It shows tracebacks of what comes to the user as one line.
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL)

  return fsspec


def _store(scheme):
  """fsspec's file system, one for the process; it logs in when it is made."""
  return _fsspec().filesystem(scheme, use_listings_cache=False)
