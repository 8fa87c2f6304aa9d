"""Who may ask a viewer: tokens, names of hosts, pages of other sites."""

import asyncio

import pytest

from sg2jax.view.guard import COOKIE, Guard


def ask(path='', headers=(), kind='http', token='', allowed=()):
  """(status or close code, headers) of a guarded application that answers 200."""
  sent = []

  async def app(scope, receive, send):
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})

  async def receive():
    return {'type': 'websocket.connect'}

  async def send(message):
    sent.append(message)

  pairs = [(name.encode(), value.encode()) for name, value in dict(headers).items()]
  scope = {'type': kind, 'headers': pairs, 'path': '/', 'query_string': path.encode()}
  asyncio.run(Guard(app, token, allowed)(scope, receive, send))
  return sent[0].get('status', sent[0].get('code')), dict(sent[0].get('headers', ()))


def test_only_the_token_opens_it():
  status, headers = ask('token=right', {'host': 'studio:8080'}, token='right')
  assert status == 200 and headers[b'set-cookie'].startswith(f'{COOKIE}=right; HttpOnly'.encode())
  assert ask('', {'cookie': f'a=b; {COOKIE}=right'}, token='right')[0] == 200
  for path in ('', 'token=', 'token=wrong', 'token=r%C3%BCck'):
    assert ask(path, token='right')[0] == 403
    assert ask(path, {'cookie': f'{COOKIE}=wrong'}, 'websocket', 'right')[0] == 4403
  # Cookies are those of all ports of a host.
  known = {'host': 'studio:8080', 'cookie': f'{COOKIE}=right'}
  assert ask('', known | {'origin': 'http://studio:8080'}, 'websocket', 'right')[0] == 200
  assert ask('', known | {'origin': 'http://studio:9999'}, 'websocket', 'right')[0] == 4403


@pytest.mark.parametrize('name', ('localhost', '127.0.0.1', '[::1]', 'Localhost', 'a.localhost'))
def test_it_answers_to_names_of_this_machine_and_pages_of_its_own(name):
  host = f'{name}:8080'
  assert ask('', {'host': host})[0] == ask('', {'host': name})[0] == 200
  for kind, refused in (('http', 403), ('websocket', 4403)):
    assert ask('', {'host': host, 'origin': f'http://{host}'}, kind)[0] == 200
    for origin in ('http://evil.example', 'null', '', f'http://{name}:9999', f'http://{host}.evil'):
      assert ask('', {'host': host, 'origin': origin}, kind)[0] == refused


def test_pages_of_others_may_link_to_it_and_load_nothing():
  host = {'host': 'localhost:8080'}
  for site in ('cross-site', 'same-site'):
    for mode, status in (('navigate', 200), ('no-cors', 403), ('cors', 403)):
      assert ask('', host | {'sec-fetch-site': site, 'sec-fetch-mode': mode})[0] == status
  framed = host | {'sec-fetch-site': 'cross-site', 'sec-fetch-mode': 'no-cors'}
  assert ask('', framed, allowed=['*.colab.dev'])[0] == 200
  for site in ('same-origin', 'none'):
    assert ask('', host | {'sec-fetch-site': site, 'sec-fetch-mode': 'no-cors'})[0] == 200


def test_a_name_that_was_made_to_mean_this_machine_is_refused():
  names = (
    'evil.example:8080',
    'localhost.evil.example',
    '127.0.0.1.nip.io',
    '10.0.0.5',
    '',
    '[',
    '@',
  )
  for name in names:
    for kind, refused in (('http', 403), ('websocket', 4403)):
      headers = {'host': name, 'origin': f'http://{name}'}
      assert ask('token=right', headers, kind)[0] == ask('', {'host': name}, kind)[0] == refused


def test_a_proxy_is_allowed_by_its_name():
  allowed = ['*.colab.dev', 'studio']
  kept = {'host': '8080-m-s-abc.colab.dev', 'origin': 'https://8080-m-s-abc.colab.dev'}
  # of a proxy that asks under a name of this machine
  changed = {'host': 'localhost:8080', 'origin': 'https://8080-m-s-abc.colab.dev'}
  for headers in (kept, changed, {'host': 'STUDIO:8080'}, {'host': 'localhost'}):
    assert ask('', headers, allowed=allowed)[0] == 200
    assert ask('', headers, 'websocket', allowed=allowed)[0] == 200
  for host in ('colab.dev.evil.example', 'xcolab.dev', 'a.studio'):
    assert ask('', {'host': host}, allowed=allowed)[0] == 403
