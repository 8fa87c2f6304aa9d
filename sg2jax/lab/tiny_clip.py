"""Trains the tiny CLIP for the bundled digits, `--clip=digits`: minutes on two cores.

python -m sg2jax.lab.tiny_clip [--out=FILE] [--steps=1500] [--seed=0]

It learns from digits and variations of them, and captions made of their label and of attributes
that are measured from the pixels. To each picture is added what would make it look like another
digit to the network: else images that a search or a direction makes please it and show nothing. Of
the bundled digits every fifth is held out; how well those are told apart by text is printed at the
end. FILE is by default the one that the package has.
"""

import json
import pathlib
import time
from typing import Any, NamedTuple

from absl import flags
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors import numpy as safetensors

from sg2jax import cli, files
from sg2jax import clip as clips
from sg2jax.edit import digit_classifiers
from sg2jax.lab import digit_captions as captions
from sg2jax.nets import clip, clip_names

BATCH = 128
COPIES = 20  # variations of each digit
LR = 1e-3
# What pictures are changed by in training, so that a search can't please it by what no person sees.
ATTACK = 3.0  # the largest length of what is added, in levels of [-1,1]; other digits are 10 away
NOISE = 0.15  # the largest deviation
CONTRAST = (0.6, 1.1)
CONTEXT = 32  # tokens of a text
ARCHITECTURE = dict(
  image_size=2 * captions.RESOLUTION,  # as the tower halves five times
  vision_width=8,
  vision_layers=(1, 1, 1, 1),
  vision_heads=4,
  embed_dim=64,
  context_length=CONTEXT,
  text_width=64,
  text_layers=2,
  text_heads=1,
)


def define_flags() -> None:
  """The command line."""
  flags.DEFINE_string('out', str(clips.DIGITS), 'File of the weights, .safetensors.')
  flags.DEFINE_integer('steps', 1500, 'Minibatches of 128 pictures.', lower_bound=1)
  flags.DEFINE_integer('seed', 0, 'Of everything that is drawn.')


def main(_: list[str]) -> None:
  """Trains, writes, judges."""
  asked = flags.FLAGS
  images, labels, held_out = digit_classifiers.samples()
  edges = captions.thirds(images[~held_out], labels[~held_out])
  params, spec, tokens = train(images[~held_out], labels[~held_out], edges, asked.steps, asked.seed)
  out = pathlib.Path(asked.out)
  write(out, params, tokens)
  print(f'wrote {out}')
  net = clips.load(str(out))
  facts = captions.facts_of(images[held_out], labels[held_out], edges)
  for name, share in judge(net, images[held_out], facts).items():
    print(f'{name}: {share:.1%}')


# ---- training


def fits(facts: np.ndarray, said: np.ndarray) -> np.ndarray:
  """Whether each text is true of each picture: facts [N,5], said [M,5] -> bool [N,M]."""
  agree = (facts[:, None] == said) | (said == captions.UNSAID)
  return agree.all(-1)


def contrastive_loss(
  features: jax.Array, texts: jax.Array, scale: jax.Array, true: jax.Array
) -> jax.Array:
  """CLIP's loss, where several texts may be true of a picture.

  As [Yang et al. 2022, UniCL, arXiv 2204.03610, eq. 3] has it, with texts in place of labels.
  features: [N,E] and texts: [M,E], unit vectors; scale: log of that of cosines; true: bool [N,M].
  """
  logits = jnp.exp(scale) * features @ texts.T  # [N,M]
  losses = []
  for rows, target in ((logits, true), (logits.T, true.T)):
    target = target / target.sum(1, keepdims=True)
    losses.append(-(target * nn.log_softmax(rows)).sum(1).mean())
  return sum(losses) / 2


class Batch(NamedTuple):
  """What a step learns from."""

  images: np.ndarray  # [N,H,W,1] in [-1,1]
  tokens: np.ndarray  # int32 [M,T] of texts
  true: np.ndarray  # bool [N,M]: the text is true of the picture
  same: np.ndarray  # bool [N,M]: it says its digit
  lengths: np.ndarray  # [N]: of what is added against the network


def robust_loss(params: Any, spec: clip.Architecture, batch: Batch) -> jax.Array:
  """`contrastive_loss` of images to which was added what makes them look like other digits most.

  One step along the gradient [Goodfellow et al. 2015, arXiv 1412.6572; in L2, as Madry et al. 2018,
  arXiv 1706.06083]. Against the digits only: of strokes' thickness so little makes another that
  nothing would be learned of it.
  """
  texts = clip.unit(clip.text_features(params, spec, batch.tokens))

  def look(params, images):
    return clip.unit(clip.image_features(params, spec, clip.view(images, spec.image_size)))

  def digits_loss(images):
    fixed, known = jax.lax.stop_gradient((params, texts))
    logits = jnp.exp(fixed['logit_scale']) * look(fixed, images) @ known.T  # [N,M]
    logits = jnp.where(batch.same.any(0), logits, -jnp.inf)  # texts that say a digit
    right = nn.logsumexp(jnp.where(batch.same, logits, -1e9), 1)
    return (nn.logsumexp(logits, 1) - right).sum()

  way = jax.grad(digits_loss)(batch.images)
  way = clip.unit(way.reshape(len(way), -1)).reshape(way.shape)
  images = jnp.clip(batch.images + batch.lengths[:, None, None, None] * way, -1, 1)
  return contrastive_loss(look(params, images), texts, params['logit_scale'], batch.true)


def disturbed(images: np.ndarray, draws: np.random.Generator) -> np.ndarray:
  """uint8 [N,H,W,1] -> float32 in [-1,1], of other contrast, and half of them with noise."""
  ink = images.astype(np.float32) / 255
  shape = (len(ink), 1, 1, 1)
  ink = ink * draws.uniform(*CONTRAST, shape)
  noise = draws.uniform(0, NOISE, shape) * (draws.random(shape) < 0.5)
  found = 2 * ink - 1 + noise * draws.standard_normal(ink.shape, np.float32)
  return np.clip(found, -1, 1).astype(np.float32)


def train(
  images: np.ndarray, labels: np.ndarray, edges: np.ndarray, steps: int, seed: int
) -> tuple[dict, clip.Architecture, np.ndarray]:
  """(params, their Architecture, the tokens [K] of its vocabulary)."""
  pictures = captions.varied(images, labels, edges, COPIES, seed)
  draws = np.random.default_rng(seed)
  tokenizer = clips.tokenizer()
  # ---- its vocabulary: all tokens that its captions can have
  texts = [captions.caption(facts, draws)[0] for facts in pictures.facts]
  used = np.unique(tokenizer(texts, CONTEXT))
  spec = clip.Architecture(**ARCHITECTURE, vocab_size=len(used))
  params = initial(spec, seed)
  schedule = optax.warmup_cosine_decay_schedule(0, LR, min(100, steps // 10 + 1), steps)
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(schedule, 0.9, 0.98, weight_decay=0.02)
  )
  state = optimizer.init(params)

  @jax.jit
  def step(params, state, batch):
    loss, grads = jax.value_and_grad(robust_loss)(params, spec, batch)
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    # as CLIP: no more than 100 [2.5]
    params['logit_scale'] = jnp.minimum(params['logit_scale'], np.log(100))
    return params, state, loss

  began = time.monotonic()
  for i in range(steps):
    rows = draws.integers(len(pictures.images), size=BATCH)
    facts = pictures.facts[rows]
    texts, said = zip(*(captions.caption(row, draws) for row in facts))
    tokens = np.searchsorted(used, tokenizer(texts, CONTEXT)).astype(np.int32)
    shown = disturbed(pictures.images[rows], draws)
    # more and more: at first it has to learn what there is to see at all
    lengths = draws.uniform(0, ATTACK * min(1, 2 * i / steps), BATCH).astype(np.float32)
    said = np.stack(said)
    same = facts[:, :1] == said[:, 0]
    params, state, loss = step(
      params, state, Batch(shown, tokens, fits(facts, said), same, lengths)
    )
    if (i + 1) % 100 == 0:
      print(f'{i + 1} of {steps}: loss {loss:.3f}, {time.monotonic() - began:.0f} s', flush=True)
  return jax.device_get(params), spec, used


def initial(spec: clip.Architecture, seed: int) -> dict:
  """Parameters to start from."""
  keys = jax.random.split(jax.random.key(seed))
  image = np.zeros((1, spec.image_size, spec.image_size, 3), np.float32)
  tokens = np.zeros((1, spec.context_length), np.int32)
  return {
    'visual': jax.jit(clip.image_tower(spec).init)(keys[0], image)['params'],
    'text': jax.jit(clip.TextTransformer(spec).init)(keys[1], tokens)['params'],
    'logit_scale': np.float32(np.log(1 / 0.07)),
  }


def write(path: pathlib.Path, params: dict, tokens: np.ndarray) -> None:
  """The weights under OpenAI's names in float16, and beside them what they don't tell.

  Of the embedding only the rows of known tokens are there, and `tokens` says which.
  """
  arrays = clip_names.arrays(params)
  arrays = {name: np.ascontiguousarray(x, np.float16) for name, x in arrays.items()}
  arrays |= {
    'logit_scale': np.asarray(params['logit_scale'], np.float32),
    'tokens': tokens.astype(np.int32),
  }
  files.write_atomic(path, safetensors.save(arrays))
  about = {
    'format': clips.FORMAT,
    'activation': 'quick_gelu',
    'templates': captions.TEMPLATES,
    'neutral': captions.neutral(),
    'made_by': 'python -m sg2jax.lab.tiny_clip',
    'licence': 'Apache-2.0; of digits under CC BY 4.0, see sg2jax/data/digits.py',
  }
  files.write_atomic(path.with_suffix('.config.json'), json.dumps(about, indent=1) + '\n')


# ---- how good it is


def judge(net: clips.Clip, images: np.ndarray, facts: np.ndarray) -> dict[str, float]:
  """Shares of pictures [N,32,32,1] with these facts [N,5] of which texts are told apart rightly.

  Of the digit among ten; of each attribute between the lowest and the highest third of the class,
  for pictures that are in one of them; of captions: whether the best of 100, of which one is true
  of the picture, is that one.
  """
  seen = net.images(images)
  digits = np.stack([net.text(f'a {word}') for word in captions.WORDS])
  found = {'digit': ((seen @ digits.T).argmax(1) == facts[:, 0]).mean()}
  for i, (name, phrases) in enumerate(captions.PHRASES.items(), 1):
    right = []
    for digit, word in enumerate(captions.WORDS):
      low, high = (net.text(captions.phrase([phrases[t][0][0]], word, [])) for t in (0, 2))
      rows = (facts[:, 0] == digit) & (facts[:, i] != 1)
      right.append((seen[rows] @ (high - low) > 0) == (facts[rows, i] == 2))
    found[name] = np.concatenate(right).mean()
  found['captions'] = np.mean(retrieved(net, seen, facts))
  return found


def retrieved(net: clips.Clip, seen: np.ndarray, facts: np.ndarray) -> list[bool]:
  """Of each picture whether the best of 100 captions is the one that is true of it."""
  draws = np.random.default_rng(0)
  texts, said = zip(*(captions.caption(row, draws) for row in facts for _ in range(4)))
  features = net.texts(texts)
  true = fits(facts, np.stack(said))  # [N,4N]
  right = []
  for picture, row in zip(seen, true):
    others = draws.permutation(np.flatnonzero(~row))[:99]
    own = draws.choice(np.flatnonzero(row))
    right.append(bool(picture @ features[own] > (features[others] @ picture).max()))
  return right


if __name__ == '__main__':
  define_flags()
  cli.run(main)
