"""python -m sg2jax.tools.generate [KIND] --checkpoint=RUN --seeds=0-31 [--out=DIR]
[--sheet=FILE.png] [--psi=0.7] ...

Makes images with a trained generator (moving average of the weights). The same seed gives the same
image, always. KIND is
  images   (default) one image for each seed: DIR/seed0000.png ..., or all on one sheet, or both mix
  a sheet that mixes styles: rows are --seeds, columns --cols; a picture is its row's with the
  --styles of its column sweep    a sheet of --seeds (rows) at several --psi (columns): 1 is the
  network as it is, 0 its mean image, -1 the opposite
RUN is a workdir (its newest checkpoint) or one step of it. A psi between 0 and 1 trades variety for
quality; --cutoff=N applies it to the N coarsest layers only. docs/generate.md shows what comes out.
"""

from concurrent.futures import ThreadPoolExecutor
import math
import re
import sys
import time

from absl import flags
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from sg2jax import cli, files, grids, inputs, report, sampler
from sg2jax.data.images import MAX_PIXELS
from sg2jax.faults import UsageError
from sg2jax.models.layers import NOISE_MODES

KINDS = ('images', 'mix', 'sweep')
SWEEP = '1,0.7,0.5,0,-0.5,-1'  # [S1 Fig. 8]
LINE = 18  # px, of text on sheets


def define_flags():
  """The command line. Not at import: tools have flags of the same names."""
  define_common()
  flags.DEFINE_string(
    'out', '', 'images: folder for seed0000.png ...; files of these names are replaced.'
  )
  flags.DEFINE_string('sheet', '', 'PNG file for all images on one sheet.')
  flags.DEFINE_string('cols', '4-7', 'mix: seeds of the columns.')
  flags.DEFINE_string(
    'styles',
    '0-3',
    'mix: which ws come from the column: first and last, counted from the coarsest, 0.',
  )
  flags.DEFINE_integer(
    'batch',
    0,
    'Images at once, over all devices; 0: what suits their size. Results do not depend on it.',
  )


def define_common():
  """Flags of all that makes images of seeds."""
  flags.DEFINE_string(
    'checkpoint', '', 'Workdir, whose newest checkpoint counts, or one step of it.'
  )
  flags.DEFINE_string(
    'seeds', '0-7', 'Numbers and ranges, such as 0-31,100. NumPy draws a latent from each.'
  )
  flags.DEFINE_string(
    'psi', '', f'Truncation; default: 1, none. (generate sweep: several; default: {SWEEP}.)'
  )
  flags.DEFINE_integer(
    'cutoff', None, 'How many ws are truncated, counted from the coarsest; default: all.'
  )
  define_labels('images', 'drawn from each seed as the data has them')
  flags.DEFINE_enum(
    'noise',
    'const',
    NOISE_MODES,
    'const: the noise maps of the network; random: drawn from the seed; none.',
  )


def define_labels(what, default):
  """The flags that `labels` reads."""
  flags.DEFINE_string(
    'class',
    None,
    f'Class of all {what} by name or number, or one for each seed: cat,dog,cat; default: '
    f'{default}.',
  )
  flags.DEFINE_string(
    'label',
    None,
    'The same for networks whose labels are vectors: 1,0,1 or one for each seed: 1,0,1;0,0,1.',
  )


def main(argv):
  """Checks, makes, writes."""
  asked, kind = flags.FLAGS, argv[1] if len(argv) > 1 else 'images'
  if kind not in KINDS:
    raise UsageError(f'KIND={kind} is unknown; choose from {", ".join(KINDS)}')
  if kind == 'images' and not asked.out and not asked.sheet:
    raise UsageError(
      '--out and --sheet are missing; name a folder for an image per seed, a PNG file for a sheet, '
      'or both'
    )
  if kind != 'images' and asked.out:
    raise UsageError(f'--out={asked.out} is for images; {kind} writes one sheet: --sheet=FILE.png')
  if asked.batch < 0:
    raise UsageError(f'--batch={asked.batch} must be 0 or more')
  out = cli.folder(asked.out) if asked.out else None
  place = cli.file(asked.sheet, ['.png'], 'sheet') if asked.sheet or kind != 'images' else None
  psis = numbers(asked.psi or (SWEEP if kind == 'sweep' else '1'), 'psi', several=kind == 'sweep')
  seeds, cols = cli.seeds(asked.seeds), cli.seeds(asked.cols, 'cols')
  net, options = (
    load(asked.checkpoint),
    {'cutoff': asked.cutoff, 'noise': asked.noise, 'batch': asked.batch or None},
  )
  label = labels(net, asked, len(seeds) + (len(cols) if kind == 'mix' else 0))
  if label is None or len(label) == 1:  # with labels of its own, a seed is worth asking for again
    seeds = list(dict.fromkeys(seeds))
  if place:
    check_sheet(
      net,
      {
        'images': len(seeds),
        'mix': (len(seeds) + 1) * (len(cols) + 1),
        'sweep': len(seeds) * len(psis),
      }[kind],
    )
  if kind == 'images':
    images(net, seeds, label, out, place, psi=psis[0], **options)
  elif kind == 'mix':
    pictures = mix(
      net, seeds, cols, span(net, asked.styles, 'styles'), psi=psis[0], label=label, **options
    )
    names = seed_names(net, [*seeds, *cols], label)
    write_sheet(place, pictures, ['', *names[: len(seeds)]], ['', *names[len(seeds) :]])
  else:
    pictures = sweep(net, seeds, psis, label=label, **options)
    write_sheet(place, pictures, seed_names(net, seeds, label), [f'psi {p:g}' for p in psis])
  print(f'wrote {" and ".join(str(p) for p in (out, place) if p)}')


def load(path):
  """The Sampler of --checkpoint. Raises UsageError if none is named, CheckpointError."""
  cli.check_checkpoint(path)
  return sampler.load(path)


def labels(net, asked, count):
  """What --class or --label ask for, as `net.c` takes it: None, one for all or one for each of
  `count` seeds.

  Raises: UsageError, naming the flag and the choices.
  """
  names, vectors = asked['class'].value, asked['label'].value
  if names is None and vectors is None:
    return None
  flag, text = ('class', names) if vectors is None else ('label', vectors)
  said = f'--{flag}={text}'
  if names is not None and vectors is not None:
    raise UsageError(f'--class={names} --label={vectors}: give one of them')
  if not net.labels:
    raise UsageError(f'{said}: this network was trained without labels; leave --{flag} out')
  if flag == 'class':
    if not net.labels.one_hot:
      raise UsageError(
        f'{said}: the labels of this network are no classes but {net.labels.listing()}; use '
        f'--label, as in --label={net.labels.name(net.labels.values[0])}'
      )
    if not text:
      raise UsageError(f'{said} is empty; choose from {net.labels.listing()}')
    known = net.labels.names
    found = [text] if text in known else [x if x in known else x.strip() for x in text.split(',')]
    counts = list(net.labels.class_counts().items())
    for name, trained_on in (
      counts[inputs.class_number(net.labels, name)] for name in dict.fromkeys(found)
    ):
      if not trained_on:
        print(
          f'{said}: no image that this network was trained on had class {name}; what comes out '
          'means nothing',
          file=sys.stderr,
        )
  else:
    try:
      found = [[float(x) for x in part.split(',')] for part in text.split(';')]
    except ValueError:
      found = [[math.nan]]
    if any(
      len(vector) != net.labels.c_dim or not all(map(math.isfinite, vector)) for vector in found
    ):
      raise UsageError(
        f'{said} must be {net.labels.c_dim} finite numbers, as in '
        f'--label={net.labels.name(net.labels.values[0])}, or so many for each seed with ; between '
        'them'
      )
  if len(found) not in (1, count):
    raise UsageError(
      f'{said} has {len(found)}, and there are {count} seeds; give one for all, or one for each '
      'seed'
    )
  return found if flag == 'class' else np.array(found, np.float32)


def seed_names(net, seeds, label):
  """What a sheet calls the images of seeds."""
  if not net.labels:
    return [f'seed {seed}' for seed in seeds]
  return [f'seed {seed}\n{net.labels.name(c)}' for seed, c in zip(seeds, net.c(seeds, label))]


def numbers(text, flag, several=False):
  """'1,0.5' -> [1.0, 0.5]. Raises UsageError, naming the flag, for what isn't finite numbers, or
  more than one of them.
  """
  try:
    found = [float(part) for part in text.split(',')]
  except ValueError:
    found = [math.nan]
  if not all(map(math.isfinite, found)) or len(found) > 1 and not several:
    rule = 'finite numbers, such as 1,0.5,0' if several else 'a finite number, such as 0.7'
    raise UsageError(f'--{flag}={text} must be {rule}')
  return found


def span(net, text, flag):
  """'2-4' -> slice(2, 5) of the ws of a network. Raises UsageError, naming the flag, if it hasn't
  got them.
  """
  found = re.fullmatch(r'(\d{1,4})-(\d{1,4})', text)
  if not found or not int(found[1]) <= int(found[2]) < net.num_ws:
    raise UsageError(
      f'--{flag}={text} must be the first and the last of some ws, as in 0-1; this network has the '
      f'ws 0 to {net.num_ws - 1}'
    )
  return slice(int(found[1]), int(found[2]) + 1)


def check_sheet(net, count):
  """Raises UsageError if `count` images make a sheet that image viewers refuse."""
  h, w = net.generator.synthesis.resolution
  factor = max(1, grids.READABLE // min(h, w))
  if count * (factor * h + LINE) * factor * w > MAX_PIXELS:
    raise UsageError(
      f'a sheet of {count} images of {h}x{w} would have more than {MAX_PIXELS:,} pixels; ask for '
      'fewer'
    )


def images(net, seeds, label, out, place, **options):
  """An image of each seed into the folder `out`, a sheet of all to `place`; None: not. Memory for
  some batches at most.

  label: of `labels`; options: of a call of `net`.
  """
  size, kept, start, pending = (
    min(options['batch'] or net.batch, len(seeds)),
    [],
    time.monotonic(),
    [],
  )
  names, below, each = file_names(seeds), [], label is not None and len(label) > 1
  save = lambda name, image: files.write_atomic(out / name, files.png(image))
  with ThreadPoolExecutor() as pool, tqdm(total=len(seeds), unit=' images', disable=None) as bar:
    for rows, count in sampler.parts(len(seeds), size):
      part = [seeds[i] for i in rows]
      c = net.c(part, [label[i] for i in rows] if each else label) if net.labels else None
      made = net(part, label=c, **options)[:count]
      for job in pending:
        job.result()
      pending = [pool.submit(save, names[i], image) for i, image in zip(rows, made)] if out else []
      if place:
        kept += list(made)
        below += [net.labels.name(x) for x in c[:count]] if net.labels else []
      bar.update(count)
    for job in pending:
      job.result()
  if place:
    cols = min(len(seeds), max(8, math.isqrt(len(seeds) - 1) + 1))
    kept += [np.full_like(kept[0], 255)] * (-len(kept) % cols)
    pictures = np.stack(kept).reshape(-1, cols, *kept[0].shape)
    write_sheet(
      place,
      pictures,
      [f'seed {s} ...' if cols > 1 else f'seed {s}' for s in seeds[::cols]],
      below=below,
    )
  seconds = time.monotonic() - start
  print(
    f'{len(seeds)} images in {report.duration(seconds)}, {report.number(len(seeds) / seconds)} a '
    'second'
  )


def file_names(seeds):
  """A PNG file for each seed; a seed that comes again (with another label) has its count in its
  name.
  """
  found, counts = [], {}
  for seed in seeds:
    counts[seed] = counts.get(seed, 0) + 1
    found.append(f'seed{seed:04d}' + (f'_{counts[seed]}' if counts[seed] > 1 else '') + '.png')
  return found


def mix(net, rows, cols, styles, noise='const', batch=None, label=None, **options):
  """Style mixing [S1 Fig. 3]: uint8 [1+rows,1+cols,H,W,C]; seeds of rows on the left, of columns on
  top, mixed ones between.

  styles: slice of the ws that come from the column; the others are the row's, as is its noise.
  label: one for all, or one for each row and then for each column; options: of `net.ws`.
  """
  c = net.c([*rows, *cols], label)
  a, b = (
    net.ws(seeds, label=part if net.labels else None, **options)
    for seeds, part in ((rows, c[: len(rows)]), (cols, c[len(rows) :]))
  )
  ws = np.empty((1 + len(a), 1 + len(b), *a.shape[1:]), np.float32)
  ws[0, 1:], ws[1:] = b, a[:, None]
  ws[1:, 1:, styles] = b[:, styles]
  ws[0, 0] = b[0]  # made, but not shown
  number = np.array([[cols[0], *cols], *([r] * (1 + len(cols)) for r in rows)])
  pictures = net.images(ws.reshape(-1, *a.shape[1:]), noise, number.ravel(), batch)
  pictures = pictures.reshape(*ws.shape[:2], *pictures.shape[1:])
  pictures[0, 0] = 255
  return pictures


def sweep(net, seeds, psis, noise='const', batch=None, **options):
  """Images of seeds (rows) at several psi (columns) [S1 Fig. 8]: uint8 [seeds,psis,H,W,C]. options:
  of `net.ws`.
  """
  ws = np.stack([net.ws(seeds, psi, **options) for psi in psis], 1)
  pictures = net.images(ws.reshape(-1, *ws.shape[2:]), noise, np.repeat(seeds, len(psis)), batch)
  return pictures.reshape(*ws.shape[:2], *pictures.shape[1:])


def write_sheet(path, pictures, rows=(), cols=(), below=()):
  """Writes a PNG of pictures, with names around them.

  Args:
    path: of the file.
    pictures: uint8 [R,C,h,w,channels].
    rows: names of the rows, left of them; of one or more lines.
    cols: names of the columns, above them.
    below: names of the pictures, row by row, each below its own and cut to its width.

  Raises: WriteError.
  """
  tiles = grids.readable_grid(pictures.reshape(-1, *pictures.shape[2:]), pictures.shape[1])
  count, h, w = (
    pictures.shape[0],
    tiles.shape[0] // pictures.shape[0],
    tiles.shape[1] / pictures.shape[1],
  )
  if below:
    tiles = np.pad(
      tiles.reshape(count, h, *tiles.shape[1:]),
      [(0, 0), (0, LINE), (0, 0), (0, 0)],
      constant_values=255,
    )
    h, tiles = h + LINE, tiles.reshape(-1, *tiles.shape[2:])
  font, rows, cols = ImageFont.load_default(14), [*map(_drawable, rows)], [*map(_drawable, cols)]
  width = lambda name: max(map(font.getlength, name.split('\n')))
  left = max([math.ceil(width(name)) + 16 for name in rows], default=0)
  top = 8 + LINE * max((name.count('\n') + 1 for name in cols), default=0) if cols else 0
  sheet = np.full((top + tiles.shape[0], left + tiles.shape[1], tiles.shape[2]), 255, np.uint8)
  sheet[top:, left:] = tiles
  picture = Image.fromarray(sheet[..., 0] if sheet.shape[2] == 1 else sheet)
  draw, dark = ImageDraw.Draw(picture), (0, 0, 0, 255) if sheet.shape[2] == 4 else 0
  for i, name in enumerate(rows):
    draw.text((left - 8, top + h * (i + 0.5)), name, dark, font, 'rm')
  for j, name in enumerate(cols):
    draw.text((left + w * (j + 0.5), top / 2), name, dark, font, 'mm', align='center')
  for i, name in enumerate(map(_drawable, below)):
    while width(name) > w - 4 and len(name) > 1:
      name = name[:-2] + '\u2026' if name.endswith('\u2026') else name[:-1] + '\u2026'
    row, col = divmod(i, pictures.shape[1])
    draw.text((left + w * (col + 0.5), top + h * (row + 1) - LINE / 2), name, dark, font, 'mm')
  files.write_atomic(path, files.png(np.asarray(picture).reshape(sheet.shape)))


def _drawable(name):
  """A name without what fonts and files can't hold."""
  return name.encode('utf-8', 'backslashreplace').decode()


if __name__ == '__main__':
  define_flags()
  cli.run(main, positional=1)
