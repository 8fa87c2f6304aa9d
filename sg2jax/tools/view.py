"""Shows a trained network, or one in training, in the browser.

python -m sg2jax.tools.view --checkpoint=RUN [--port=8080] [--host=127.0.0.1]
[--allow_host=NAMES] [--clip=digits]

It prints the address of a page: pictures of seeds and classes, truncation, noise, mixed styles, the
directions that `directions` and `edit` saved in the run, projections of dropped pictures, a walk
through seeds with its mp4; and of every picture its PNG, an .npz and the command line that makes
it. RUN is a workdir, whose newest checkpoint is followed while it trains, or one step of it. With
--clip texts make directions, which the run keeps.

It listens on this machine only, and answers no page of another site. From another machine,
`ssh -L 8080:localhost:8080 MACHINE` brings the page there. With --host=0.0.0.0 whoever has the
address that is printed, with its token, may look. Behind a proxy with a name of its own, such as
Colab's, --allow_host=NAME lets that name in. --port=0 takes any free port. Nothing is asked of
other hosts, and nothing is sent to them.
"""

import secrets
import socket

from absl import flags

from sg2jax import cli
from sg2jax.faults import UsageError
from sg2jax.tools import flags as shared


def define_flags() -> None:
  """The command line."""
  shared.define_checkpoint()
  flags.DEFINE_integer('port', 8080, 'Where it listens; 0: any free one.', 0, 65535)
  what = 'For editing by text: digits, another name that `edit text` takes, or a file of weights.'
  flags.DEFINE_string('clip', '', what)
  shared.define_clip_activation()
  what = 'Address it listens at; another than this machine itself, and a token is asked for.'
  flags.DEFINE_string('host', '127.0.0.1', what)
  what = (
    'Names besides those of this machine that it is asked under, as behind a proxy; * fits any.'
  )
  flags.DEFINE_list('allow_host', [], what)


def main(_: list[str]) -> None:
  """Reads the network, and serves until Ctrl-C."""
  asked = flags.FLAGS
  # Before the network is read, which may take long.
  listening = listen(asked.host, asked.port)
  with listening:
    from sg2jax.view import guard, serve

    token = '' if guard.is_loopback(asked.host) else secrets.token_urlsafe(24)
    port = listening.getsockname()[1]
    # Where it listens at every address, one that others can write.
    host = socket.gethostname() if asked.host in ('0.0.0.0', '::') else asked.host
    host = f'[{host}]' if ':' in host else host
    address = f'http://{host}:{port}/' + (f'?token={token}' if token else '')
    hello = f'{address}  (Ctrl-C ends it)'
    serve.serve(
      asked.checkpoint,
      listening,
      hello,
      token,
      asked.allow_host,
      asked.clip,
      asked.clip_activation or '',
    )


def listen(host: str, port: int) -> socket.socket:
  """A socket that listens. Raises UsageError, naming the address, if there can't be one."""
  try:
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    return socket.create_server((host, port), family=family)
  except OSError as e:
    raise UsageError(
      f'cannot listen at --host={host} --port={port}: {e.strerror or e}; take another port, or '
      '--port=0 for any that is free'
    ) from e


if __name__ == '__main__':
  define_flags()
  cli.run(main)
