"""The feature networks: resize, parameters from PyTorch arrays, outputs against other ways.

Their reference vectors, gradients among them, are the cases `inception_v3_fid` and `lpips`.
"""

from flaxmodels import utils
import jax
from jax import lax
import jax.numpy as jnp
import lpips_j.lpips
import numpy as np
import pytest

from sg2jax.interop.names import nchw
from sg2jax.nets import inception, vgg
from sg2jax.nets.arrays import checked
from tests.reference import cases_detectors
from tests.reference.check import jit, read_manifest, run_case
from tests.runs import ROOT

REFERENCE = ROOT / 'tests' / 'reference'
CASES = {c['id']: c for c in read_manifest(REFERENCE) if c['id'] in cases_detectors.CASES}
CONFIGS = {name: case['config'] for name, case in CASES.items()}
HEADS = {'lin0': 64, 'lin1': 128, 'lin2': 256, 'lin3': 512, 'lin4': 512}
random = np.random.RandomState(0)


def shapes(tree):
  """What tracing needs of arrays."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


# ---- Inception


def test_float64_is_that_of_torch_fidelity():
  """The vectors are in float32 (see check.compare); these by torch-fidelity 0.4.0, in float64."""
  case = CASES['inception_v3_fid']
  found = {}

  def compute(sub):
    results = cases_detectors.inception_v3_fid(sub)
    found.update({k: np.asarray(v) for k, v in results.items() if k.startswith('feature/')})
    return results

  only = {
    'subcases': {'s0': case['subcases']['s0']},
    'arrays': {k: v for k, v in case['arrays'].items() if not k.startswith('tf1')},
  }
  report = run_case(case | only, REFERENCE, compute)
  assert report.passed, str(report)
  with np.load(ROOT / 'tests' / 'inception_float64.npz') as exact:
    for name in exact.files:
      images = found[f'feature/{name}']
      np.testing.assert_allclose(images[:, ::16], exact[name], rtol=1e-11, atol=1e-13)
  assert len(images) > 1 and np.abs(images[0] - images[1]).max() > 1e-3  # each has its own


@pytest.fixture(scope='module')
def arrays():
  """Arrays of Inception that keep activations in size, with a counter that nobody reads."""
  drawn = {'Mixed_5b.branch1x1.bn.num_batches_tracked': np.array(7, np.int64)}
  for name, shape in CONFIGS['inception_v3_fid']['state_dict'].items():
    drawn[name] = 0.5 + random.random_sample(shape).astype(np.float32)
    if len(shape) > 1:
      drawn[name] = (drawn[name] - 1) * np.float32(np.sqrt(24 / np.prod(shape[1:])))
  return drawn


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
      top = x[a, b] + (x[a, d] - x[a, b]) * (z - b)
      bottom = x[c, b] + (x[c, d] - x[c, b]) * (z - b)
      out[i, j] = top + (bottom - top) * (y - a)
  return out


@pytest.mark.smoke
@pytest.mark.parametrize('size', [(4, 3), (8, 11)])
def test_tf1_resize(size):
  x = random.rand(2, 5, 7, 3)
  expected = np.stack([[resized(x[n, :, :, c], *size) for c in range(3)] for n in range(2)])
  for wide in (False, True):
    with jax.enable_x64(wide):
      y = inception.tf1_resize(jnp.asarray(x), *size)
      assert y.dtype == (jnp.float64 if wide else jnp.float32)
      np.testing.assert_allclose(nchw(y), expected, rtol=1e-5, atol=1e-6)


def test_batch_norm_is_folded(arrays, params):
  """Convolution and then batch norm, as PyTorch has it, give what the folded convolution gives."""
  name = 'Mixed_6b.branch7x7_2'
  x = random.randn(2, 9, 9, 128)
  kernel, bias = (params[name][k] for k in ('kernel', 'bias'))
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}

  def convolve(kernel):
    layout = ('NHWC', 'HWIO', 'NHWC')
    return lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=layout)

  with jax.enable_x64(True):
    parts = ('weight', 'bias', 'running_mean', 'running_var')
    gain, shift, mean, variance = (arrays[f'{name}.bn.{part}'].astype(float) for part in parts)
    y = convolve(arrays[f'{name}.conv.weight'].transpose(2, 3, 1, 0).astype(float))
    expected = (y - mean) / np.sqrt(variance + 1e-3) * gain + shift
    folded = convolve(kernel.astype(float)) + bias
    np.testing.assert_allclose(folded, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.smoke
def test_dtype_of_parameters_is_float32_or_wider():
  zeros = {dtype: np.zeros(2, dtype) for dtype in ('float16', 'float32', 'float64')}
  for given, expected in (('float16', 'float32'), ('float64', 'float64')):
    found, dtype = checked(
      'a net', {'a': zeros['float32'], 'b': zeros[given]}, dict(a=(2,), b=(2,))
    )
    assert dtype == expected and found['b'].dtype == given


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


def test_outputs_that_nobody_uses_cost_nothing(params, quick_compile):
  first = jax.jit(lambda params, images: inception.features(params, images)['64'])
  images = jax.ShapeDtypeStruct((2, 64, 64, 3), np.uint8)
  program = first.lower(shapes(params), images).compile().as_text()
  assert '147,147,64' in program and '35,35,' not in program and '8,8,' not in program


# ---- VGG16


@pytest.fixture(scope='module')
def vgg_arrays():
  """Convolutions of VGG16 under torchvision's names."""
  config = CONFIGS['lpips']
  return cases_detectors.vgg_arrays(config['vgg_weight_rule'], config['tapped_layers'])


@pytest.fixture(scope='module')
def heads():
  """Those of LPIPS."""
  return {
    f'{name}.model.1.weight': np.float32(random.rand(1, width, 1, 1))
    for name, width in HEADS.items()
  }


@pytest.fixture
def offline(monkeypatch):
  """Whoever downloads fails."""

  def refuse(*args, **kwargs):
    raise AssertionError('a download was tried')

  monkeypatch.setattr(lpips_j.lpips, 'hf_hub_download', refuse)
  monkeypatch.setattr(utils, 'download', refuse)


def test_lpips_is_a_distance(vgg_arrays, heads, offline, quick_compile):
  """0 between equal images, above it between others, symmetric."""
  a, b = np.float32(random.rand(2, 16, 16, 3) * 2 - 1)
  params = vgg.lpips_params(vgg_arrays, heads)
  ab, ba, aa = y = np.asarray(jit(vgg.lpips)(params, np.stack([a, b, a]), np.stack([b, a, a])))
  assert y.shape == (3,) and y.dtype == jnp.float32 and ab > 0 and aa == 0
  np.testing.assert_allclose(ab, ba, rtol=1e-5)


def test_arrays_of_another_vgg_are_refused(vgg_arrays, heads):
  classifier = {'classifier.6.bias': np.zeros(10, np.float32)}
  layers = {'vgg'} | {f'lins_{i}' for i in range(5)}
  assert vgg.lpips_params(vgg_arrays | classifier, heads).keys() == layers
  with pytest.raises(ValueError, match='classifier.0.weight is missing.* and 1 more'):
    vgg.fc_params(vgg_arrays | classifier)
  with pytest.raises(ValueError, match='features.30.weight is unknown'):  # VGG19 has it
    vgg.lpips_params(vgg_arrays | {'features.30.weight': np.zeros((512, 512, 3, 3))}, heads)
  said = r"LPIPS' heads.*lin4.model.1.weight has shape \[1, 384, 1, 1\], not \[1, 512, 1, 1\]"
  with pytest.raises(ValueError, match=said):
    vgg.lpips_params(vgg_arrays, heads | {'lin4.model.1.weight': np.zeros((1, 384, 1, 1))})


def torchvision_fc7(arrays, images):
  """What torchvision's layers make of images at twice their size, on NCHW: [N,4096]."""
  # half-pixel centres, no antialiasing
  x = images.astype(jnp.float32).reshape(1, 224, 2, 224, 2, 3).mean((2, 4)) / 255
  x = (x - jnp.array([0.485, 0.456, 0.406])) / jnp.array([0.229, 0.224, 0.225])
  x = x.transpose(0, 3, 1, 2)
  for place in range(31):
    if f'features.{place}.weight' in arrays:
      x = lax.conv_general_dilated(x, arrays[f'features.{place}.weight'], (1, 1), 'SAME')
      x = jax.nn.relu(x + arrays[f'features.{place}.bias'][:, None, None])
    elif f'features.{place - 1}.weight' not in arrays:
      x = x.reshape(1, x.shape[1], x.shape[2] // 2, 2, -1, 2).max((3, 5))
  x = x.reshape(1, -1)
  for place in (0, 3):
    x = x @ arrays[f'classifier.{place}.weight'].T + arrays[f'classifier.{place}.bias']
    x = jax.nn.relu(x)
  return x


def test_fc_features(vgg_arrays, offline, quick_compile):
  """Against torchvision's layers on NCHW, with a classifier that is sparse because it is large."""
  arrays = dict(vgg_arrays)
  for place, (o, i) in {0: (4096, 25088), 3: (4096, 4096), 6: (1000, 4096)}.items():
    weight = arrays[f'classifier.{place}.weight'] = np.zeros((o, i), np.float32)
    weight[random.randint(0, o, 20_000), random.randint(0, i, 20_000)] = random.randn(20_000)
    arrays[f'classifier.{place}.bias'] = np.float32(random.randn(o))
  images = random.randint(0, 256, (1, 448, 448, 3), np.uint8)
  y = jit(vgg.fc_features)(vgg.fc_params(arrays), images)
  assert y.shape == (1, 4096) and y.dtype == jnp.float32 and 0.2 < (y > 0).mean() < 0.8
  expected = jit(torchvision_fc7)(arrays, images)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * float(y.max()))


# ---- accelerators


def lowered(function, platform, *args):
  """A platform's program before XLA sees it: (text, convolutions and products, exact ones)."""
  text = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()
  kinds = 'stablehlo.convolution', 'stablehlo.dot_general'
  products = [line for line in text.splitlines() if any(kind in line for kind in kinds)]
  return text, len(products), sum(line.count('HIGHEST') == 2 for line in products)


def test_accelerators_take_the_batch_and_full_precision(params, vgg_arrays, heads):
  x, y = np.zeros((2, 64, 64, 3), np.uint8), np.zeros((2, 32, 32, 3), np.float32)
  text, products, exact = lowered(inception.features, 'cuda', shapes(params), x)
  assert products == exact == 95 and 'stablehlo.while' not in text and '2x149x149x32' in text
  text, *_ = lowered(inception.features, 'cpu', shapes(params), x)
  assert 'stablehlo.while' in text and '2x149x149x32' not in text

  def slope(params, x, y):
    return jax.grad(lambda x: vgg.lpips(params, x, y).sum())(x)

  text, products, exact = lowered(slope, 'cuda', shapes(vgg.lpips_params(vgg_arrays, heads)), y, y)
  assert products == exact > 3 * 13


# ---- the rules of the reference cases


def test_rules_that_say_something_else_are_not_guessed_at(vgg_arrays):
  rule, tapped = (CONFIGS['lpips'][name] for name in ('vgg_weight_rule', 'tapped_layers'))
  first = vgg_arrays['features.0.weight'].ravel()[:5]
  cases_detectors.check_weights(first.astype(float), first)
  with pytest.raises(ValueError, match='the weight rule gives'):
    cases_detectors.check_weights(np.nextafter(first, 1), first)
  for other in (rule.replace('randn', 'rand'), rule + ' Then shuffle.'):
    with pytest.raises(ValueError, match='not understood'):
      cases_detectors.vgg_arrays(other, tapped)
  short = rule.replace('64,64,M,128,128,M,256,256,256,M,512,512,512,M,512,512,512', '2,M,2')
  assert short != rule
  with pytest.raises(ValueError, match='tapped'):
    cases_detectors.vgg_arrays(short, tapped)
  rule = CONFIGS['inception_v3_fid']['weight_rule']
  one = {'a.conv.weight': [2, 3, 1, 1]}
  with pytest.raises(ValueError, match='epsilon'):
    cases_detectors.inception_arrays(rule.replace('epsilon 0.001', 'epsilon 0.1'), one)
  scaled = cases_detectors.inception_arrays(rule.replace('sqrt(2/(I', 'sqrt(8/(I'), one)
  whole = cases_detectors.inception_arrays(rule, one)
  np.testing.assert_allclose(scaled['a.conv.weight'], 2 * whole['a.conv.weight'])
