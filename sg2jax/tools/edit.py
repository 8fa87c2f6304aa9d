"""Edits images by text, by channels or by directions, or trains a generator for a text.

python -m sg2jax.tools.edit text --checkpoint=RUN --clip=digits --source="a thin seven"
--target="a thick seven" [--method=global|optimize|mapper] [--strength=3] [--seeds=0-7] ...
python -m sg2jax.tools.edit channel --checkpoint=RUN --channel=b8.conv0.12 [--strength=3] ...
python -m sg2jax.tools.edit direction --checkpoint=RUN --edit=FILE:NAME:STRENGTH ...
python -m sg2jax.tools.edit nada --checkpoint=RUN --source="a digit" --target="a thick digit" ...

`nada` makes a run with a generator of its own: python -m sg2jax.tools.edit nada --help. The others
write DIR/seed0000.png ... (edited), DIR/before/seed0000.png ..., DIR/sheet.png (both, side by
side), DIR/directions.npz (what moved them: for --edit of `generate` and `video`) and DIR/edit.json;
with --video DIR/strength.mp4, the first images from the strength's negative to it and back. DIR is
--out, by default RUN/edits/<step>/ and a name made of the method and the texts.
--latents=FILE-OR-FOLDER edits what `project` found, --images=FILES-OR-FOLDER pictures, which are
projected first, instead of seeds. `direction` moves them by what `directions`, `adversarial` or an
edit wrote, with the strengths that --edit has, as `generate` does it. The methods of StyleCLIP are
  global    directions in style space that a pair of texts says, the same for all images. What each
            channel does is measured once for a network and a CLIP: minutes for a small network,
            hours for one of 1024 px; stop it any way you like, the same command goes on. Then any
            texts take seconds. DIR/strengths.png has several strengths and numbers of channels.
  optimize  a search for each image. Without --source it only goes towards --target. --free makes
            one image, DIR/free.png, from the mean w, as near to --target as it gets.
  mapper    a network that looks at a latent and says how to move it, trained for one text on
            latents that it draws. Stop it any way you like. DIR/mapper.npz moves any latent, here
            as --mapper=DIR/mapper.npz; so does a mapper of StyleCLIP's, --mapper=FILE.pt.
CLIP is `digits`, the package's own for the bundled digits; clip-vit-b-32 or another of OpenAI's
(python -m sg2jax.tools.fetch_weights clip-vit-b-32); or a file. docs/editing.md says more.
"""

import contextlib
from functools import partial
import sys

from absl import flags

from sg2jax import cli, sampler
from sg2jax import clip as clips
from sg2jax.edit import directions
from sg2jax.faults import UsageError
from sg2jax.locks import locked
from sg2jax.signals import Stop
from sg2jax.tools import edit_methods, edit_results, latents, nada
from sg2jax.tools import flags as shared

KINDS = ('text', 'channel', 'direction', 'nada')


def define_flags() -> None:
  """The command line."""
  if sys.argv[1:2] == ['nada']:  # it has flags of its own, some by the same names
    nada.define_flags()
    flags.adopt_module_key_flags(nada)
    return
  shared.define_image_flags()
  latents.define_flags()
  shared.define_psi()
  shared.define_batch()
  shared.define_out('edits', below='/<method and texts>')
  what = (
    'text, channel: how far: of directions the amount, by default 3, of mappers 1; optimize: its '
    'penalty is divided by its square. Those of --edit have their own.'
  )
  shared.define_finite('strength', None, what)
  flags.DEFINE_bool('video', False, 'Also DIR/strength.mp4; takes as long as some 800 images.')
  edit_methods.define_flags()
  what = 'channel: LAYER.NUMBER, such as b8.conv0.12.'
  shared.define_parsed('channel', None, what, _channel)
  shared.define_edit()


def _channel(text: str) -> tuple[str, int]:
  layer, _, number = text.rpartition('.')
  if not layer or not number.isdecimal():
    raise ValueError('must be LAYER.NUMBER, such as b8.conv0.12')
  return layer, int(number)


def main(argv: list[str]) -> None:
  """Checks, edits, writes, prints."""
  # ---- what is asked, before anything is loaded
  asked = flags.FLAGS
  kind = cli.choice(argv, 'KIND', KINDS)
  if kind == 'nada':
    if sys.argv[1] != 'nada':
      raise UsageError('write nada before the flags: edit nada --checkpoint=... ...')
    nada.main(argv)
    return
  edit_methods.check(kind)
  move = edit_methods.mix() if kind == 'direction' else None
  strength = edit_methods.strength(kind)
  with contextlib.ExitStack() as held:
    with Stop() as stop:
      clip = clips.load(asked.clip, asked.clip_activation or '') if kind == 'text' else None
      if clip:
        # Texts that it doesn't take are found now, and not after a training.
        for text in filter(None, (asked.target, asked.source)):
          clip.text(text)
      net = sampler.load(asked.checkpoint)
      if kind == 'channel':
        move = directions.channel(net, *asked.channel)
      if move:
        move.check(net)  # before pictures are projected
      out = shared.out_folder(net, 'edits', below=edit_methods.folder_name(kind))
      # Of a network's default folders all edits share those of pictures, which take longest.
      projected = (out if asked.out else out.parent) / 'projections'
      find_latents = partial(edit_methods.free, net)
      if not asked.free:
        find_latents = latents.read(net, out, projected, stop)
      held.enter_context(locked(out, 'out'))
      given = find_latents()
      # ---- the edit
      if move:
        found = edit_methods.Found([move], strength)
      else:
        found = edit_methods.find(net, clip, given, out, stop)
      if stop:
        stop.leave('what moves the images is found, and no image is written')
    # ---- files; from here on nothing is lost, and a signal ends it at once
    edited = edit_results.apply(net, given, found.moves, found.amount)
    if found.relevance:
      edit_results.write_strengths(out, net, given, found.relevance, strength)
    if asked.video:
      edit_results.write_video(out, net, given, edited)
    describe = edit_results.describe if clip is None else partial(edit_results.judge, clip)
    document = describe(given, edited) | {'network': net.hash(), 'strength': strength}
    edit_results.write(out, given, edited, document)
  print('\n'.join([net.title, *edit_results.summary(document), f'results in {out}/']))


if __name__ == '__main__':
  define_flags()
  cli.run(main, positional=1)
