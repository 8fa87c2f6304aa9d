"""Who may ask a viewer: a token, the names it goes by, and no pages of other sites.

A page of another site, open in the same browser, can send requests to this machine. If its name was
made to mean this machine meanwhile (DNS rebinding), it may read the answers; the name it asks under
remains its own, and is refused. An address of numbers is no such name, but may be that of another
machine's network, so those must be of this machine, too.
"""

from collections.abc import Callable, Sequence
import fnmatch
import hmac
from http.cookies import CookieError, SimpleCookie
import ipaddress
from urllib.parse import parse_qs, urlsplit

from fastapi.responses import PlainTextResponse

COOKIE = 'sg2jax_view'


def is_loopback(name: str) -> bool:
  """Whether a host name or address can only mean the machine itself."""
  try:
    return ipaddress.ip_address(name.strip('[]')).is_loopback
  except ValueError:
    # *.localhost: as browsers take it.
    return name.lower().rstrip('.').rpartition('.')[2] == 'localhost'


class Guard:
  """ASGI: lets through only who may ask.

  With a token: who knows it, by `?token=`, once, and then by a cookie. Without: who asks under a
  name of this machine, or one that is allowed. Never what a page of another origin asks for.
  """

  def __init__(self, app: Callable, token: str = '', allowed: Sequence[str] = ()) -> None:
    """app: what is guarded. allowed: other names it goes by, such as those of a proxy; * in them
    is any text."""
    self._app = app
    self._token = token.encode()
    self._allowed = [pattern.lower() for pattern in allowed]

  async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
    """As ASGI has it."""
    if scope['type'] not in ('http', 'websocket'):
      await self._app(scope, receive, send)
      return
    headers = {name: value.decode('latin-1') for name, value in scope['headers']}
    asked = parse_qs(scope['query_string'].decode('latin-1')).get('token', [''])[0]
    refusal = self._refusal(headers, asked)
    if not refusal:
      is_new = self._token and self._is_right(asked)
      await self._app(scope, receive, self._with_cookie(send) if is_new else send)
    elif scope['type'] == 'websocket':
      await receive()
      await send({'type': 'websocket.close', 'code': 4403})  # before accepting: the client sees 403
    else:
      await PlainTextResponse(refusal + '\n', 403)(scope, receive, send)

  def _refusal(self, headers, asked):
    """Why not, for people; '': it may pass."""
    host = headers.get(b'host', '')
    if self._token:
      if not (self._is_right(asked) or self._is_right(_cookie(headers.get(b'cookie', '')))):
        return 'This viewer wants the token that is in the address it printed.'
    elif not (is_loopback(_name(host)) or self._is_allowed(_name(host))):
      return (
        f'This viewer does not go by the name {_name(host)!r:.80}: open the address it printed, or '
        f'start it with --allow_host={_name(host):.80}'
      )
    # What a page may send without saying where it comes from; a link on it, or a frame, may be. A
    # proxy's own pages may be other sites to it.
    strange = headers.get(b'sec-fetch-site') in ('cross-site', 'same-site') and not self._allowed
    if strange and headers.get(b'sec-fetch-mode') != 'navigate':
      return 'A page of another site asked for this.'
    # Browsers tell it of whatever else a page sends, and of websockets.
    origin = headers.get(b'origin')
    if origin is not None and not self._is_own(origin, host):
      return (
        f'The page of {origin!r:.80} is no page of this viewer. If it is that of a proxy, start '
        'the viewer with --allow_host=NAME of the proxy.'
      )
    return ''

  def _is_own(self, origin, host):
    try:
      parts = urlsplit(origin)
    except ValueError:
      return False
    # The scheme may be that of a proxy; it leaves out its default port in both.
    if parts.netloc and parts.netloc.lower() == host.lower():
      return True
    return self._is_allowed((parts.hostname or '').lower())

  def _is_allowed(self, name):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in self._allowed)

  def _is_right(self, given):
    return hmac.compare_digest(given.encode('utf-8', 'replace'), self._token)

  def _with_cookie(self, send):
    async def sending(message):
      if message['type'] == 'http.response.start':
        cookie = f'{COOKIE}={self._token.decode()}; HttpOnly; SameSite=Strict; Path=/'
        message['headers'] = [*message.get('headers', []), (b'set-cookie', cookie.encode())]
      await send(message)

    return sending


def _name(host):
  """Of a Host header: without its port."""
  try:
    return (urlsplit(f'//{host}').hostname or '').lower()
  except ValueError:
    return ''


def _cookie(header):
  try:
    morsel = SimpleCookie(header).get(COOKIE)
  except CookieError:
    return ''
  return morsel.value if morsel else ''
