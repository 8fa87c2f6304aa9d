"""CLIP: what its reference vectors don't say: errors, rectangles, names there and back."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from sg2jax import clip as clips
from sg2jax.edit import text_directions
from sg2jax.faults import UsageError, WeightsError
from sg2jax.nets import clip, clip_names

VIT = clip.Architecture(
  image_size=16,
  patch_size=8,
  vision_width=64,
  vision_layers=1,
  vision_heads=1,
  embed_dim=8,
  context_length=6,
  vocab_size=20,
  text_width=64,
  text_layers=1,
  text_heads=1,
)


def drawn(spec):
  """Arrays under OpenAI's names, random."""
  draws = np.random.default_rng(0)
  image = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
  tokens = jax.ShapeDtypeStruct((1, spec.context_length), np.int32)
  towers = (clip.image_tower(spec), image), (clip.TextTransformer(spec), tokens)
  visual, text = (
    jax.eval_shape(tower.init, jax.random.key(0), example)['params'] for tower, example in towers
  )
  tree = {'visual': visual, 'text': text, 'logit_scale': np.zeros(())}
  tree = jax.tree.map(lambda x: draws.normal(scale=0.2, size=x.shape).astype(np.float32), tree)
  return clip_names.arrays(tree)


def test_names_there_and_back():
  arrays = drawn(VIT)
  assert clip_names.architecture(arrays) == VIT
  again = clip_names.arrays(clip_names.params(arrays, VIT))
  assert list(again) == list(arrays)
  for name, x in arrays.items():
    np.testing.assert_array_equal(again[name], x)


def test_a_prefixed_text_tower_and_integers():
  arrays = drawn(VIT)
  others = {
    name if name.startswith(('visual.', 'logit')) else f'text.{name}': x
    for name, x in arrays.items()
  }
  assert clip_names.openai(others | {'context_length': np.int64(6)}).keys() == arrays.keys()


@pytest.mark.parametrize(
  'change, says',
  [
    (lambda arrays: arrays.pop('text_projection'), 'text_projection is missing'),
    (lambda arrays: arrays.pop('logit_scale'), 'logit_scale is missing'),
    (lambda arrays: arrays.pop('visual.ln_post.bias'), 'visual.ln_post.bias is missing'),
    (lambda arrays: arrays.update({'visual.third_eye': np.zeros(3)}), 'third_eye is unknown'),
    (lambda arrays: arrays.update({'ln_final.bias': np.zeros(3)}), 'has shape [3], not [64]'),
  ],
)
def test_wrong_arrays_are_named(change, says):
  arrays = drawn(VIT)
  change(arrays)
  with pytest.raises(ValueError) as caught:
    clip_names.params(arrays, clip_names.architecture(arrays))
  assert says in str(caught.value)


def test_a_text_that_is_too_long():
  with pytest.raises(UsageError) as caught:
    clips.tokenizer()(['word ' * 76])
  assert "'word word" in str(caught.value) and '78 tokens' in str(caught.value)
  assert clips.tokenizer()(['word ' * 75]).shape == (1, 77)


@pytest.mark.usefixtures('quick_compile')
def test_a_grey_rectangle_is_seen_in_its_middle_and_clipped():
  image = np.zeros((1, 4, 8, 1), np.float32)
  image[:, :, 2:6] = 3
  seen = clip.view(image, 2)
  white = (1 - np.array(clip.MEAN)) / clip.STD
  np.testing.assert_allclose(seen, np.broadcast_to(white, (1, 2, 2, 3)), rtol=1e-5)


def test_means_over_areas_of_any_ratio():
  row = np.arange(5, dtype=np.float32).reshape(1, 1, 5, 1)
  shrunk = clip.resize_by_area(row, 1, 2)[0, 0, :, 0]
  np.testing.assert_allclose(shrunk, [(0 + 1 + 0.5 * 2) / 2.5, (0.5 * 2 + 3 + 4) / 2.5], rtol=1e-6)
  enlarged = clip.resize_by_area(row, 2, 10)[0, 1, :, 0]
  np.testing.assert_allclose(enlarged, np.repeat(np.arange(5), 2), rtol=1e-6)


def test_unit_vectors_and_the_gradient_of_none():
  vectors = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
  np.testing.assert_allclose(clip.unit(vectors), [[0.6, 0.8], [0, 0]], rtol=1e-6)
  slope = jax.grad(lambda x: clip.unit(x).sum())(vectors)
  assert np.isfinite(slope).all()


def test_scores_rank_plain_texts_and_each_text_is_computed_once(monkeypatch):
  net = clips.load('digits')
  asked = []

  def texts(self, texts):
    asked.extend(texts)
    return [{'a two': [0, 1], 'a one': [0.6, 0.8]}.get(x, [1, 0]) for x in texts] @ np.eye(2)

  monkeypatch.setattr(clips.Clip, 'texts', texts)
  monkeypatch.setattr(clips.Clip, 'images', lambda self, images: images)
  net = net._replace(templates=('{}', 'say {}'), neutral=('a one', 'a two', 'a cow'))
  scores = clips.Scores(net, 'a two', 'a one')
  assert scores.neutral == 2
  assert sorted(asked) == sorted(
    ['a two', 'say a two', 'a one', 'say a one', 'a two', 'a one', 'a cow']
  )
  found = scores(np.array([[0.0, 1.0], [0.6, 0.8], [1.0, 0.0]]))
  # in templates: of the other texts here each vector is [1, 0]
  np.testing.assert_allclose(found['target'], np.array([1, 1.4, 1]) / 2**0.5)
  np.testing.assert_allclose(found['source'], np.array([1, 2, 2]) / 5**0.5)
  assert found['rank'].tolist() == [1, 2, 3]
  net.text('a two')
  text_directions.between(net, 'a one', 'a two')
  clips.Scores(net, 'a two')
  assert len(asked) == 7 + 3
  assert scores(np.eye(2)).keys() - clips.Scores(net, 'a two')(np.eye(2)).keys() == {'source'}


# ---- files


def save(folder, arrays, name='net.safetensors', **config):
  """The path of a network's file, with a config beside it if one is given."""
  path = folder / name
  path.write_bytes(safetensors.save({k: np.asarray(x) for k, x in arrays.items()}))
  if config:
    path.with_suffix('.config.json').write_text(json.dumps(config))
  return str(path)


def test_the_activation_must_be_told(tmp_path):
  path = save(tmp_path, drawn(VIT))
  with pytest.raises(UsageError) as caught:
    clips.load(path)
  assert path in str(caught.value) and '--clip_activation' in str(caught.value)
  gelu, quick = (clips.load(path, activation) for activation in clip.ACTIVATIONS[::-1])
  assert gelu.architecture.activation == 'gelu'
  assert gelu.hash != quick.hash  # what was kept of one is nothing of the other
  assert gelu.hash == clips.load(path, 'gelu').hash


def test_configs_of_open_clip_and_of_transformers(tmp_path):
  vision = {'layers': 1, 'width': 64, 'head_width': 32}
  model = {'quick_gelu': False, 'vision_cfg': vision, 'text_cfg': {'heads': 4}}
  (tmp_path / 'open_clip_config.json').write_text(json.dumps({'model_cfg': model}))
  found = clips.load(save(tmp_path, drawn(VIT))).architecture
  assert (found.activation, found.vision_heads, found.text_heads) == ('gelu', 2, 4)
  parts = {f'{tower}_config': {'num_attention_heads': 2} for tower in ('vision', 'text')}
  found = clips.load(save(tmp_path, drawn(VIT), **parts)).architecture
  assert (found.activation, found.vision_heads, found.text_heads) == ('quick_gelu', 2, 2)
  parts['text_config']['hidden_act'] = 'relu'
  with pytest.raises(WeightsError) as caught:
    clips.load(save(tmp_path, drawn(VIT), **parts))
  assert 'relu' in str(caught.value) and '.config.json is refused' in str(caught.value)
  with pytest.raises(WeightsError, match="config.json is refused: KeyError: 'vision_config'"):
    clips.load(save(tmp_path, drawn(VIT), g={'z_dim': 512}))  # of something else


@pytest.mark.parametrize(
  'change, says',
  [
    ({'activation': 'relu'}, "activation is 'relu', not quick_gelu or gelu"),
    ({'templates': ['a {} {1}']}, 'must have {} once'),
    ({'templates': 'a {}'}, 'templates must be a list of texts'),
    ({'neutral': 3}, 'neutral must be a list of texts'),
    ({'neutral': ['a dog']}, 'two texts at least'),
    ({'format': None, 'vision_config': {'num_attention_heads': 7}}, '7 heads of the vision tower'),
    ({'format': None, 'text_config': {'num_attention_heads': -2}}, '-2 heads of the text tower'),
  ],
)
def test_configs_that_are_refused(tmp_path, change, says):
  config = {'format': clips.FORMAT, 'activation': 'gelu', 'templates': ['{}'], 'neutral': []}
  parts = {f'{tower}_config': {'num_attention_heads': 2} for tower in ('vision', 'text')}
  path = save(tmp_path, drawn(VIT), **config | parts | change)
  with pytest.raises(WeightsError) as caught:
    clips.load(path)
  assert says in str(caught.value) and 'is refused' in str(caught.value)


def test_missing_and_wrong_files(tmp_path, monkeypatch):
  monkeypatch.setenv('SG2JAX_WEIGHTS', str(tmp_path))
  with pytest.raises(WeightsError) as caught:
    clips.load('clip-vit-b-32')
  said = str(caught.value)
  assert f'{tmp_path}/ViT-B-32.pt' in said and 'fetch_weights clip-vit-b-32' in said
  with pytest.raises(WeightsError) as caught:
    clips.load('clip-vit-b-23')
  said = str(caught.value)
  assert said.startswith('--clip=clip-vit-b-23 is missing; name a file') and 'clip-vit-b-16' in said
  with pytest.raises(WeightsError, match=f'--clip={tmp_path} is a folder; name a file'):
    clips.load(str(tmp_path))
  arrays = drawn(VIT)
  del arrays['ln_final.bias']
  path = save(tmp_path, arrays)
  with pytest.raises(WeightsError) as caught:
    clips.load(path, 'gelu')
  assert path in str(caught.value) and 'ln_final.bias is missing' in str(caught.value)


def test_a_network_of_few_tokens_refuses_the_others(tmp_path):
  words = np.unique(clips.tokenizer()(['a thin seven'], 6))
  spec = dataclasses.replace(VIT, vocab_size=len(words))
  path = save(
    tmp_path,
    drawn(spec) | {'tokens': words.astype(np.int32)},
    format=clips.FORMAT,
    activation='gelu',
    templates=['{}', 'a {}'],
    neutral=['seven', 'thin seven'],
  )
  net = clips.load(path)
  mean = net.texts(['thin seven', 'a thin seven']).mean(0)
  np.testing.assert_allclose(net.text('thin seven'), mean / np.linalg.norm(mean), rtol=1e-5)
  with pytest.raises(UsageError) as caught:
    net.text('a thin octopus')
  assert 'does not know octopus; it knows a, seven, thin' in str(caught.value)


def test_images_in_batches_are_as_one_by_one(tmp_path):
  net = clips.load(save(tmp_path, drawn(VIT)), 'gelu')
  images = np.random.default_rng(0).integers(0, 256, (35, 8, 8, 1), np.uint8)  # 32 at once
  found = net.images(images)
  assert found.shape == (35, 8)
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
  np.testing.assert_allclose(found[34:], net.images(images[34:]), atol=1e-5)
