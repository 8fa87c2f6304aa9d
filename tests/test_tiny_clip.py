"""The CLIP for the bundled digits: what is measured, what is said of it, what the package has."""

import dataclasses

import jax
import numpy as np
from PIL import Image
import pytest

from sg2jax import clip as clips
from sg2jax.edit import digit_classifiers
from sg2jax.lab import digit_attributes, tiny_clip
from sg2jax.lab import digit_captions as captions
from tests.test_clip import VIT

IMAGES, LABELS, HELD_OUT = digit_classifiers.samples()


def drawn(change, box=(10, 4, 18, 28)):
  """Attributes of a bar on black, after an affine change of the place (x, y)."""
  picture = Image.new('L', (32, 32))
  picture.paste(255, box)
  moved = picture.transform((32, 32), Image.Transform.AFFINE, change, Image.Resampling.BILINEAR)
  found = digit_attributes.measure(np.asarray(moved)[None])
  return {name: x[0] for name, x in found.items()}


def test_attributes_of_a_bar():
  plain = drawn((1, 0, 0, 0, 1, 0))
  assert plain['slant'] == pytest.approx(0, abs=1e-9)
  assert plain['width'] == pytest.approx(8 / 24, rel=0.02)
  right = drawn((1, 0.25, -4, 0, 1, 0))  # the top goes to the right
  assert right['slant'] == pytest.approx(0.25, abs=0.02)
  assert right['width'] == pytest.approx(plain['width'], rel=0.05)
  small = drawn((1.5, 0, -6, 0, 1.5, -8))
  assert small['size'] == pytest.approx(plain['size'] / 1.5, rel=0.03)
  assert small['width'] == pytest.approx(plain['width'], rel=0.05)
  thin = drawn((1, 0, 0, 0, 1, 0), (12, 4, 16, 28))
  assert thin['thickness'] == pytest.approx(plain['thickness'] / 2, rel=0.2)
  nothing = digit_attributes.measure(np.zeros((1, 8, 8, 1), np.uint8))
  assert all(np.isfinite(x).all() and x[0] == 0 for x in nothing.values())


def test_captions_are_true_of_their_pictures():
  edges = captions.thirds(IMAGES, LABELS)
  facts = captions.facts_of(IMAGES, LABELS, edges)
  for i in range(1, 5):  # thirds of each class
    assert np.bincount(facts[:, i]) / len(facts) == pytest.approx([1 / 3] * 3, abs=0.01)
  draws = np.random.default_rng(0)
  texts, said = zip(*(captions.caption(row, draws) for row in facts))
  true = tiny_clip.fits(facts, np.stack(said))
  assert true.diagonal().all() and true.mean() < 0.2
  for text, row, what in zip(texts, facts, said):
    if what[0] == captions.UNSAID:
      assert any(noun in text for noun in captions.ANY)
    else:
      assert captions.WORDS[row[0]] in text or str(row[0]) in text
    for i, phrases in enumerate(captions.PHRASES.values(), 1):
      others = [word for third in (0, 2) if third != what[i] for word in phrases[third][0]]
      assert not set(others) & set(text.split()), text
  assert captions.phrase(['thick'], 'eight', ['leaning left']) == 'a thick eight leaning left'
  assert captions.phrase([], 'eight', []) == 'an eight' and captions.phrase([], '8', []) == 'an 8'
  assert captions.phrase(['upright'], 'one', []) == 'an upright one'
  assert captions.phrase([], 'one', []) == 'a one'


def test_the_one_of_the_package_knows_digits_that_it_never_saw():
  net = clips.load('digits')
  seen = net.images(IMAGES[HELD_OUT])
  texts = np.stack([net.text(f'a {word}') for word in captions.WORDS])
  assert ((seen @ texts.T).argmax(1) == LABELS[HELD_OUT]).mean() > 0.97
  thickness = digit_attributes.measure(IMAGES[HELD_OUT])['thickness']
  score = seen @ (net.text('a thick digit') - net.text('a thin digit'))
  assert np.corrcoef(score, thickness)[0, 1] > 0.5


@pytest.mark.usefixtures('quick_compile')
def test_training_writes_what_can_be_loaded(tmp_path, monkeypatch):
  monkeypatch.setattr(tiny_clip, 'COPIES', 1)
  monkeypatch.setattr(tiny_clip, 'BATCH', 8)
  edges = captions.thirds(IMAGES, LABELS)
  params, spec, tokens = tiny_clip.train(IMAGES[:20], LABELS[:20], edges, 2, 0)
  tiny_clip.write(tmp_path / 'net.safetensors', params, tokens)
  net = clips.load(str(tmp_path / 'net.safetensors'))
  assert net.templates == captions.TEMPLATES and len(net.neutral) == 90
  assert net.known == frozenset(tokens.tolist())
  assert net.architecture.embed_dim == spec.embed_dim
  half = jax.tree.map(lambda x: np.asarray(x, np.float16), params['visual'])
  jax.tree.map(np.testing.assert_array_equal, net.params['visual'], half)


@pytest.mark.usefixtures('quick_compile')
def test_what_is_added_makes_pictures_look_like_other_digits():
  spec = dataclasses.replace(VIT, vocab_size=4)
  params = jax.device_get(tiny_clip.initial(spec, 0))
  images = np.float32(IMAGES[:6]) / 127.5 - 1
  tokens = np.zeros((4, spec.context_length), np.int32)
  tokens[:, 1] = range(4)
  said = np.array([0, 1, 2, captions.UNSAID])
  same = LABELS[:6, None] % 3 == said
  loss = jax.jit(tiny_clip.robust_loss, static_argnums=1)
  found = [
    float(loss(params, spec, tiny_clip.Batch(images, tokens, same | (said < 0), same, lengths)))
    for lengths in (np.zeros(6, 'f'), np.full(6, 0.5, 'f'), np.full(6, -0.5, 'f'))
  ]
  assert found[2] < found[0] - 1e-4 and found[0] + 1e-4 < found[1]
  # of a picture of which no text says the digit nothing is known, and nothing is added
  nothing = np.zeros_like(same)
  batch = tiny_clip.Batch(images, tokens, same | (said < 0), nothing, np.full(6, 0.5, 'f'))
  assert float(loss(params, spec, batch)) == pytest.approx(found[0], rel=1e-6)


def test_pictures_are_disturbed_and_varied():
  draws = np.random.default_rng(0)
  found = tiny_clip.disturbed(np.full((200, 32, 32, 1), 255, np.uint8), draws)
  assert found.dtype == np.float32 and np.abs(found).max() <= 1
  levels, noise = np.median(found, (1, 2, 3)), found[:, 1:].std((1, 2, 3))
  assert levels.min() < 0.3 and levels.max() == 1 and 0.4 < (noise < 1e-6).mean() < 0.6
  pictures = captions.varied(IMAGES[:20], LABELS[:20], captions.thirds(IMAGES, LABELS), 3, 0)
  assert pictures.images.shape == (80, 32, 32, 1) and pictures.facts.shape == (80, 5)
  change = np.abs(pictures.images[20:40].astype(int) - IMAGES[:20]).mean((1, 2, 3))
  assert change.min() > 1 and np.median(change) < 60
