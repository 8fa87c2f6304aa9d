"""The feature networks: resize, parameters from PyTorch arrays, outputs against other ways to
compute them.
"""

import json
import pathlib

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from sg2jax.nets import inception, vgg
from tests.reference import cases_detectors
from tests.reference.check import jit, run_case
from tests.reference.names import nchw

MANIFEST = json.loads((pathlib.Path(__file__).parent / 'reference' / 'manifest.json').read_text())
CASES = {case['id']: case for case in MANIFEST['cases'] if case['id'] in cases_detectors.CASES}
CONFIGS = {name: case['config'] for name, case in CASES.items()}
r = np.random.RandomState(0)


def draw(shapes):
  """{name: shape} -> {name: float32 array} that keep activations in size; positive where shapes
  have one axis.
  """
  return {
    k: np.float32(r.randn(*s) * np.sqrt(2 / np.prod(s[1:])) if len(s) > 1 else 0.5 + r.rand(*s))
    for k, s in shapes.items()
  }


def shapes(tree):
  """What tracing needs of arrays."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


# ---- Inception


def test_float64_is_that_of_torch_fidelity():
  """The vectors were computed in float32 (see check.compare); these by torch-fidelity 0.4.0, all of
  it in float64.
  """
  case, folder, found = CASES['inception_v3_fid'], pathlib.Path(__file__).parent, {}

  def compute(sub):
    results = cases_detectors.inception_v3_fid(sub)
    found.update({k: np.asarray(v) for k, v in results.items() if k.startswith('feature/')})
    return results

  report = run_case(
    case
    | {
      'subcases': {'s0': case['subcases']['s0']},
      'arrays': {k: v for k, v in case['arrays'].items() if not k.startswith('tf1')},
    },
    folder / 'reference',
    compute,
  )
  assert report.passed, str(report)
  with np.load(folder / 'inception_float64.npz') as exact:
    for name in exact.files:
      np.testing.assert_allclose(
        found[f'feature/{name}'][:, ::16], exact[name], rtol=1e-11, atol=1e-13
      )


@pytest.fixture(scope='module')
def arrays():
  return draw(CONFIGS['inception_v3_fid']['state_dict'])


@pytest.fixture(scope='module')
def params(arrays):
  return inception.params(arrays)


def resized(x, height, width):
  """What TensorFlow 1 does, pixel by pixel. x: [H,W]."""
  h, w = x.shape
  out = np.zeros((height, width))
  for i in range(height):
    for j in range(width):
      y, z = i * h / height, j * w / width
      a, b = int(y), int(z)
      c, d = min(a + 1, h - 1), min(b + 1, w - 1)
      top, bottom = x[a, b] + (x[a, d] - x[a, b]) * (z - b), x[c, b] + (x[c, d] - x[c, b]) * (z - b)
      out[i, j] = top + (bottom - top) * (y - a)
  return out


@pytest.mark.parametrize('size', [(4, 3), (8, 11), (1, 20)])
def test_tf1_resize(size):
  x = r.rand(2, 5, 7, 3)
  expected = np.stack([[resized(x[n, :, :, c], *size) for c in range(3)] for n in range(2)])
  for wide in (False, True):
    with jax.enable_x64(wide):
      y = inception.tf1_resize(jnp.asarray(x), *size)
      assert y.dtype == (jnp.float64 if wide else jnp.float32)
      np.testing.assert_allclose(nchw(y), expected, rtol=1e-5, atol=1e-6)


def test_batch_norm_is_folded(arrays, params):
  """Convolution and then batch norm, as PyTorch has it, give what the folded convolution gives."""
  name = 'Mixed_6b.branch7x7_2'
  x, (kernel, bias) = r.randn(2, 9, 9, 128), (params[name][k] for k in ('kernel', 'bias'))

  def convolve(kernel):
    return lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  with jax.enable_x64(True):
    gain, shift, mean, variance = (
      arrays[f'{name}.bn.{part}'].astype(float)
      for part in ('weight', 'bias', 'running_mean', 'running_var')
    )
    y = convolve(arrays[f'{name}.conv.weight'].transpose(2, 3, 1, 0).astype(float))
    expected = (y - mean) / np.sqrt(variance + 1e-3) * gain + shift
    np.testing.assert_allclose(
      convolve(kernel.astype(float)) + bias, expected, rtol=1e-5, atol=1e-5
    )


def test_parameter_dtypes(arrays):
  counters = {'Mixed_5b.branch1x1.bn.num_batches_tracked': np.array(7, np.int64)}
  assert {x.dtype for x in jax.tree.leaves(inception.params(arrays | counters))} == {
    np.dtype(np.float32)
  }
  half = {'fc.bias': arrays['fc.bias'].astype(np.float16)}
  assert inception.params(arrays | half)['fc_bias'].dtype == np.float32
  assert (
    inception.params(arrays | {'fc.bias': arrays['fc.bias'].astype(float)})['fc']['kernel'].dtype
    == np.float64
  )


def test_arrays_of_another_network_are_refused(arrays):
  wrong = dict(arrays, **{'AuxLogits.fc.weight': np.zeros((1000, 768)), 'fc.bias': np.zeros(1000)})
  del wrong['Mixed_7c.branch_pool.bn.running_var']
  with pytest.raises(ValueError) as e:
    inception.params(wrong)
  for said in (
    'Mixed_7c.branch_pool.bn.running_var is missing',
    'AuxLogits.fc.weight is unknown',
    'fc.bias has shape [1000], not [1008]',
  ):
    assert said in str(e.value)
  with pytest.raises(ValueError, match='Conv2d_1a_3x3.conv.weight is missing.* and 467 more'):
    inception.params({})


def test_inception(params, quick_compile):
  """Floats are as good as uint8, a batch as good as its images, and the logits differ by the
  bias.
  """
  images = r.randint(0, 256, (2, 20, 30, 3), np.uint8)

  def both(params, images):
    return inception.features(params, images), inception.Inception().apply(
      {'params': params}, images.astype(jnp.float32)
    )

  out, batch = jit(both)(params, images)
  assert {k: v.shape for k, v in out.items()} == {
    k: (2, 1008 if 'logits' in k else int(k)) for k in out
  }
  for k in out:
    np.testing.assert_allclose(
      out[k], batch[k], rtol=1e-4, atol=1e-4 * np.abs(out[k]).max(), err_msg=k
    )
    assert np.abs(out[k][0] - out[k][1]).max() > 1e-3 * np.abs(out[k]).max(), k
  np.testing.assert_allclose(
    out['logits'] - out['logits_unbiased'], np.tile(params['fc_bias'], (2, 1)), atol=1e-4
  )


def test_outputs_that_nobody_uses_cost_nothing(params, quick_compile):
  program = (
    jax.jit(lambda params, images: inception.features(params, images)['192'])
    .lower(shapes(params), jax.ShapeDtypeStruct((2, 64, 64, 3), np.uint8))
    .compile()
    .as_text()
  )
  assert '35,35,192' in program and '35,35,256' not in program and '8,8,' not in program


# ---- VGG16


def conv_arrays():
  """Convolutions of VGG16 under torchvision's names."""
  return cases_detectors.vgg_arrays(
    CONFIGS['lpips']['vgg_weight_rule'], CONFIGS['lpips']['tapped_layers']
  )


@pytest.fixture(scope='module')
def lpips_arrays():
  heads = {
    f'lin{i}.model.1.weight': np.float32(r.rand(1, width, 1, 1))
    for i, width in enumerate((64, 128, 256, 512, 512))
  }
  return conv_arrays(), heads


@pytest.fixture
def offline(monkeypatch):
  """Whoever downloads fails."""
  from flaxmodels import utils
  import lpips_j.lpips

  def refuse(*args, **kwargs):
    raise AssertionError('a download was tried')

  monkeypatch.setattr(lpips_j.lpips, 'hf_hub_download', refuse)
  monkeypatch.setattr(utils, 'download', refuse)


def test_lpips_is_a_distance(lpips_arrays, offline, quick_compile):
  """0 between equal images, symmetric, and its gradient is the slope."""
  params = vgg.lpips_params(*lpips_arrays)
  a, b = np.float32(r.rand(2, 1, 16, 16, 3) * 2 - 1)
  grad = jit(jax.grad(lambda x, y, params: vgg.lpips(params, x, y).sum()))(a, b, params)
  step = np.float32(1e-3 / np.sqrt((grad**2).sum())) * grad
  pairs = np.concatenate([a, b, a, a + step, a - step]), np.concatenate([b, a, a, b, b])
  ab, ba, aa, up, down = y = np.asarray(jit(vgg.lpips)(params, *pairs))
  assert y.shape == (5,) and y.dtype == jnp.float32 and ab > 0 and aa == 0
  np.testing.assert_allclose(ab, ba, rtol=1e-5)
  np.testing.assert_allclose(up - down, 2 * (grad * step).sum(), rtol=0.05)


def test_arrays_of_another_vgg_are_refused(lpips_arrays):
  arrays, heads = lpips_arrays
  classifier = {'classifier.6.bias': np.zeros(10, np.float32)}
  assert vgg.lpips_params(arrays | classifier, heads).keys() == {'vgg'} | {
    f'lins_{i}' for i in range(5)
  }
  with pytest.raises(ValueError, match='classifier.0.weight is missing.* and 1 more'):
    vgg.fc_params(arrays | classifier)
  with pytest.raises(ValueError, match='features.30.weight is unknown'):  # VGG19 has it
    vgg.lpips_params(arrays | {'features.30.weight': np.zeros((512, 512, 3, 3))}, heads)
  with pytest.raises(
    ValueError,
    match=r"LPIPS' heads.*lin4.model.1.weight has shape \[1, 384, 1, 1\], not \[1, 512, 1, 1\]",
  ):
    vgg.lpips_params(arrays, heads | {'lin4.model.1.weight': np.zeros((1, 384, 1, 1))})


def test_fc_features(offline, quick_compile):
  """Against torchvision's layers on NCHW, with a classifier that is sparse because it is large."""
  arrays = conv_arrays()
  for place, (o, i) in {0: (4096, 25088), 3: (4096, 4096), 6: (1000, 4096)}.items():
    weight = arrays[f'classifier.{place}.weight'] = np.zeros((o, i), np.float32)
    weight[r.randint(0, o, 20_000), r.randint(0, i, 20_000)] = r.randn(20_000)
    arrays[f'classifier.{place}.bias'] = np.float32(r.randn(o))
  images = r.randint(0, 256, (1, 448, 448, 3), np.uint8)

  @jit
  def torchvision(arrays, images):
    # half-pixel centres, no antialiasing
    x = images.astype(jnp.float32).reshape(1, 224, 2, 224, 2, 3).mean((2, 4))
    x = ((x / 255 - jnp.array([0.485, 0.456, 0.406])) / jnp.array([0.229, 0.224, 0.225])).transpose(
      0, 3, 1, 2
    )
    for place in range(31):
      if f'features.{place}.weight' in arrays:
        x = lax.conv_general_dilated(x, arrays[f'features.{place}.weight'], (1, 1), 'SAME')
        x = jax.nn.relu(x + arrays[f'features.{place}.bias'][:, None, None])
      elif f'features.{place - 1}.weight' not in arrays:
        x = x.reshape(1, x.shape[1], x.shape[2] // 2, 2, -1, 2).max((3, 5))
    x = x.reshape(1, -1)
    for place in (0, 3):
      x = jax.nn.relu(
        x @ arrays[f'classifier.{place}.weight'].T + arrays[f'classifier.{place}.bias']
      )
    return x

  y = jit(vgg.fc_features)(vgg.fc_params(arrays), images)
  assert y.shape == (1, 4096) and y.dtype == jnp.float32
  np.testing.assert_allclose(y, torchvision(arrays, images), rtol=1e-4, atol=1e-4 * float(y.max()))
  assert 0.2 < (y > 0).mean() < 0.8


# ---- accelerators


def lowered(function, platform, *args):
  """A platform's program before XLA sees it -> (text, number of convolutions and products, how many
  are exact).
  """
  text = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()
  products = [
    line
    for line in text.splitlines()
    if 'stablehlo.convolution' in line or 'stablehlo.dot_general' in line
  ]
  return text, len(products), sum(line.count('HIGHEST') == 2 for line in products)


def test_accelerators_take_the_batch_and_full_precision(params, lpips_arrays):
  x, y = np.zeros((2, 64, 64, 3), np.uint8), np.zeros((2, 32, 32, 3), np.float32)
  text, products, exact = lowered(inception.features, 'cuda', shapes(params), x)
  assert products == exact == 95 and 'stablehlo.while' not in text and '2x149x149x32' in text
  text, *_ = lowered(inception.features, 'cpu', shapes(params), x)
  assert 'stablehlo.while' in text and '2x149x149x32' not in text

  def slope(params, x, y):
    return jax.grad(lambda x: vgg.lpips(params, x, y).sum())(x)

  text, products, exact = lowered(slope, 'cuda', shapes(vgg.lpips_params(*lpips_arrays)), y, y)
  assert products == exact > 3 * 13


# ---- the rules of the reference cases


def test_rules_that_say_something_else_are_not_guessed_at():
  config = CONFIGS['lpips']
  other = config['vgg_weight_rule'].replace('RandomState(15)', 'RandomState(16)')
  first = [
    cases_detectors.vgg_arrays(rule, config['tapped_layers'])['features.0.weight'].ravel()[:5]
    for rule in (config['vgg_weight_rule'], other)
  ]
  cases_detectors.check_weights(first[0].astype(float), first[0])
  with pytest.raises(ValueError, match='the weight rule gives'):
    cases_detectors.check_weights(first[1], first[0])
  for rule in (
    config['vgg_weight_rule'].replace('randn', 'rand'),
    config['vgg_weight_rule'] + ' Then shuffle.',
  ):
    with pytest.raises(ValueError, match='not understood'):
      cases_detectors.vgg_arrays(rule, config['tapped_layers'])
  with pytest.raises(ValueError, match='tapped'):
    cases_detectors.vgg_arrays(config['vgg_weight_rule'], ['relu1_1'])
  rule, shapes = CONFIGS['inception_v3_fid']['weight_rule'], {'a.conv.weight': [2, 3, 1, 1]}
  with pytest.raises(ValueError, match='epsilon'):
    cases_detectors.inception_arrays(rule.replace('epsilon 0.001', 'epsilon 0.1'), shapes)
  scaled = cases_detectors.inception_arrays(rule.replace('sqrt(2/(I', 'sqrt(8/(I'), shapes)
  np.testing.assert_allclose(
    scaled['a.conv.weight'], 2 * cases_detectors.inception_arrays(rule, shapes)['a.conv.weight']
  )
