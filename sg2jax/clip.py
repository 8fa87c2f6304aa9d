"""CLIP ready to use: texts and pictures to vectors whose product says how well they fit.

net = clip.load('clip-vit-b-32')  # or 'digits', or the path of a file
net.images(pictures) @ net.text('a smiling face')  # cosines

Networks are in nets/clip.py; here is what needs files.
"""

from collections.abc import Sequence
import functools
import gzip
import hashlib
import importlib.resources
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sg2jax import pretrained, sampler
from sg2jax.faults import UsageError, WeightsError
from sg2jax.nets import clip, clip_names
from sg2jax.nets.tokenizer import MERGES, Tokenizer

_PACKAGE = importlib.resources.files('sg2jax.nets')
DIGITS = pathlib.Path(str(_PACKAGE), 'digits_clip.safetensors')  # lab/tiny_clip.py makes it
NAMES = ('digits', *pretrained.CLIP)
FORMAT = 'sg2jax-clip-1'  # of the .config.json of a network of ours
# Texts that have nothing to do with each other: how a text ranks among them says whether an image
# shows it.
NEUTRAL = (
  *('a person', 'a face', 'a crowd', 'a dog', 'a cat', 'a horse', 'a bird', 'a fish', 'an insect'),
  *('a car', 'a train', 'an aeroplane', 'a ship', 'a bicycle', 'a house', 'a church', 'a bridge'),
  *('a street', 'a city', 'a mountain', 'a forest', 'a beach', 'the sea', 'the sky', 'a garden'),
  *('a flower', 'a tree', 'food', 'a fruit', 'a table', 'a chair', 'a book', 'a machine', 'a toy'),
  *('a map', 'a word', 'a number', 'a pattern', 'a drawing', 'a painting', 'a sculpture', 'a room'),
)
# Beside the file of a network, what its arrays don't tell: of transformers, of open_clip.
_CONFIGS = ('config.json', 'open_clip_config.json')


@functools.cache
def tokenizer() -> Tokenizer:
  """The tokenizer with OpenAI's vocabulary, which the package has (MIT licence, beside it)."""
  data = _PACKAGE.joinpath('bpe_simple_vocab_16e6.txt.gz').read_bytes()
  # A line of comment first; after the merges come some that aren't used.
  lines = gzip.decompress(data).decode().splitlines()[1 : 1 + MERGES]
  return Tokenizer([tuple(line.split()) for line in lines])


@functools.cache
def templates() -> tuple[str, ...]:
  """The texts around a name that CLIP was judged with on ImageNet, but one, as in StyleCLIP."""
  return tuple(_PACKAGE.joinpath('imagenet_templates.txt').read_text().splitlines())


def square(picture: Image.Image, size: int) -> np.ndarray:
  """A picture as CLIP looks at it: uint8 [size,size,3], of its middle.

  The shorter side becomes `size`, by Pillow's bicubic filter. Grey pictures become RGB.
  """
  width, height = picture.size
  short = min(width, height)
  if short != size:
    scaled = (int(size * width / short), int(size * height / short))
    picture = picture.resize(scaled, Image.Resampling.BICUBIC)
  left, top = (round((side - size) / 2) for side in picture.size)  # halves to even, as there
  picture = picture.crop((left, top, left + size, top + size))
  return np.asarray(picture.convert('RGB'))


class Clip(NamedTuple):
  """A CLIP network and what belongs to it."""

  name: str
  hash: str  # SHA-256 of its file, and of what is known of it besides if that isn't in the package
  architecture: clip.Architecture
  params: Any
  templates: tuple[str, ...]  # '{}' stands for a text
  neutral: tuple[str, ...]  # texts of all sorts that it knows
  known: frozenset[int] | None = None  # tokens that it was trained on; None: all
  kept: dict[str, np.ndarray] | None = None  # where `text` keeps its vectors; None: nowhere

  def texts(self, texts: Sequence[str]) -> np.ndarray:
    """Unit vectors of texts as they are: float32 [N,E].

    Raises: UsageError for a text that is too long, or with words that it doesn't know.
    """
    tokens = tokenizer()(texts, self.architecture.context_length)
    if self.known is not None:
      self._check_known(texts, tokens)
    return np.asarray(_text_step(self.params, self.architecture, tokens))

  def text(self, text: str) -> np.ndarray:
    """The unit vector of a text: the mean of it in all templates, [E].

    It is computed once: 80 templates take seconds. Raises: UsageError, as `texts`; it is blank.
    """
    if not text.strip():
      raise UsageError(f'the text {text!r} is blank; say something, such as "a thick seven"')
    kept = {} if self.kept is None else self.kept
    if text not in kept:
      features = self.texts([template.format(text) for template in self.templates])
      kept[text] = np.asarray(clip.unit(features.mean(0)))
    return kept[text]

  def images(self, images: np.ndarray) -> np.ndarray:
    """Unit vectors of images uint8 [N,H,W,1|3]: float32 [N,E]. Of rectangles the middle counts."""
    size = min(len(images), sampler.images_at_once(images.shape[1:]))
    found = []
    for rows, count in sampler.parts(len(images), size):
      features = _image_step(self.params, self.architecture, images[rows])
      found.append(np.asarray(features)[:count])
    return np.concatenate(found)

  def _check_known(self, texts, tokens):
    special = {0, tokenizer().start, tokenizer().end}
    for text, row in zip(texts, tokens):
      unknown = set(row.tolist()) - self.known - special
      if unknown:
        words = ', '.join(tokenizer().entries(unknown))
        choices = ', '.join(tokenizer().entries(self.known - special))
        raise UsageError(f'{text!r}: {self.name} does not know {words}; it knows {choices}')


class Scores:
  """How well images fit a text, and how it ranks among others. Made once, for any images."""

  def __init__(self, net: Clip, target: str, source: str = '') -> None:
    """Computes the vectors of texts.

    Args:
      net: whose features are compared.
      target: what images are to show.
      source: another text, '' for none.

    Raises: UsageError, as `Clip.texts`.
    """
    texts = {'target': target} | ({'source': source} if source else {})
    others = [x for x in net.neutral if x != target]
    self.net = net
    self.neutral = len(others)
    self._vectors = {name: net.text(text) for name, text in texts.items()}  # [E]
    # As they are, the target as well, so that its rank is fair: in templates, of which OpenAI's
    # networks have 79, so many texts would take minutes.
    self._ranked = net.texts([target, *others])  # [1+M,E]

  def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
    """Of images uint8 [N,H,W,1|3] what each has, [N].

    'target' and 'source' are cosines with these texts in the network's templates; 'rank', int, is
    that of the plain target among `net.neutral`: 1 if none of these fits the image better.
    """
    seen = self.net.images(images)
    scores = {name: seen @ vector for name, vector in self._vectors.items()}
    ranked = seen @ self._ranked.T
    return scores | {'rank': 1 + (ranked[:, 1:] > ranked[:, :1]).sum(1)}


@functools.partial(jax.jit, static_argnums=1)
def _text_step(params, architecture, tokens):
  return clip.unit(clip.text_features(params, architecture, tokens))


@functools.partial(jax.jit, static_argnums=1)
def _image_step(params, architecture, images):
  images = clip.view(images.astype(jnp.float32) / 127.5 - 1, architecture.image_size)
  return clip.unit(clip.image_features(params, architecture, images))


# ---- where one comes from


def load(name: str, activation: str = '') -> Clip:
  """The Clip of one of NAMES, or in a file.

  Args:
    name: 'digits' is the package's own; 'clip-...' is looked for as `pretrained.load` says; others
      are paths of OpenAI's TorchScript archives, of state dicts, of safetensors of open_clip and
      transformers, or of networks of ours.
    activation: of a file's transformers, 'quick_gelu' or 'gelu', where neither the file nor a
      config.json beside it tells.

  Raises:
    WeightsError: the file is missing or refused; says where it was looked for, and why.
    UsageError: the activation is missing.
  """
  if name == 'digits':
    path = DIGITS
  elif name in NAMES:
    arrays, digest = pretrained.load(name)
    return _ready(name, digest, arrays, {'activation': 'quick_gelu'})
  else:
    path = pathlib.Path(name).expanduser()
  if not path.exists() or path.is_dir():
    what = 'is a folder' if path.is_dir() else 'is missing'
    # Every tool that takes a CLIP calls it --clip.
    raise WeightsError(f'--clip={name} {what}; name a file, or one of {", ".join(NAMES)}')
  arrays, digest = pretrained.load_file(path)
  told = _told(path, arrays)
  if 'activation' not in told:
    if activation not in clip.ACTIVATIONS:
      raise UsageError(
        f'{path} does not tell the activation of its transformers: put its config.json beside it, '
        f"or say --clip_activation={' or '.join(clip.ACTIVATIONS)} (OpenAI's and models named "
        '-quickgelu: quick_gelu; others of open_clip: gelu)'
      )
    told['activation'] = activation
  try:
    if name == 'digits':
      return _ready(name, digest, arrays, told)
    # The same arrays are another network with another activation or other heads.
    besides = json.dumps(told, sort_keys=True)
    digest = hashlib.sha256(f'{digest} {besides}'.encode()).hexdigest()
    return _ready(name, digest, arrays, told)
  except ValueError as e:
    raise WeightsError(f'{path} is refused: {e}') from e


def _ready(name, digest, arrays, told):
  """The Clip of arrays under any names. told: see `_told`."""
  known = None
  if 'tokens' in arrays:
    arrays, known = _with_all_tokens(arrays)
  arrays = clip_names.openai(arrays)
  around = tuple(told.pop('templates', ())) or templates()
  neutral = tuple(told.pop('neutral', ())) or NEUTRAL
  architecture = clip_names.architecture(arrays, **told)
  params = clip_names.params(arrays, architecture)
  return Clip(name, digest, architecture, params, around, neutral, known, {})


def _with_all_tokens(arrays):
  """Of a network of ours, which has embeddings of a few tokens, arrays as others have them."""
  arrays = dict(arrays)
  tokens = arrays.pop('tokens')
  rows = arrays['token_embedding.weight']
  table = np.zeros((tokenizer().end + 1, rows.shape[1]), rows.dtype)
  table[tokens] = rows
  return arrays | {'token_embedding.weight': table}, frozenset(tokens.tolist())


def _told(path, arrays):
  """What is known besides arrays: 'activation', 'vision_heads', 'text_heads', 'templates',
  'neutral'.

  From a JSON file beside: <name>.config.json, or one of _CONFIGS in the folder.
  """
  places = [path.with_suffix('.config.json'), *(path.with_name(name) for name in _CONFIGS)]
  place = next((place for place in places if place.is_file()), None)
  if place is None:
    # Scalars that only OpenAI's archives have.
    return {'activation': 'quick_gelu'} if 'input_resolution' in arrays else {}
  try:
    config = json.loads(place.read_text(encoding='utf-8'))
    if config.get('format') == FORMAT:
      return _told_by_us(config)
    if 'model_cfg' in config:
      return _told_by_open_clip(config['model_cfg'])
    return _told_by_transformers(config)
  # Whatever a file that isn't as it was written leads to.
  except Exception as e:
    raise WeightsError(f'{place} is refused: {type(e).__name__}: {e}') from e


def _told_by_us(config):
  found = {name: config[name] for name in ('activation', 'templates', 'neutral')}
  if found['activation'] not in clip.ACTIVATIONS:
    raise ValueError(f'activation is {found["activation"]!r}, not {" or ".join(clip.ACTIVATIONS)}')
  for name in ('templates', 'neutral'):
    texts = found[name]
    if not isinstance(texts, list) or not all(isinstance(x, str) for x in texts):
      raise ValueError(f'{name} must be a list of texts')
  for template in found['templates']:
    if template.count('{}') != 1 or set('{}') & set(template.replace('{}', '')):
      raise ValueError(f'the template {template!r} must have {{}} once, and no other braces')
  if len(set(found['neutral'])) == 1:
    raise ValueError('neutral must be two texts at least: a rank is among others')
  return found


def _told_by_open_clip(config):
  vision, text = config['vision_cfg'], config['text_cfg']
  # A ResNet's width is that of its first stage.
  width = vision['width'] * (32 if isinstance(vision['layers'], list) else 1)
  return {
    'activation': 'quick_gelu' if config.get('quick_gelu') else 'gelu',
    'vision_heads': width // vision.get('head_width', clip_names.HEAD),
    'text_heads': text['heads'],
  }


def _told_by_transformers(config):
  # Both are there, or it is the config.json of something else. A missing field is that of ViT-B/32.
  vision, text = config['vision_config'], config['text_config']
  activations = {part.get('hidden_act', 'quick_gelu') for part in (vision, text)}
  if len(activations) > 1 or not activations <= set(clip.ACTIVATIONS):
    raise ValueError(f'hidden_act is {", ".join(sorted(activations))}')
  return {
    'activation': activations.pop(),
    'vision_heads': vision.get('num_attention_heads', 12),
    'text_heads': text.get('num_attention_heads', 8),
  }
