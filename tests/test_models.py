"""Networks: sizes, precision, clamp, noise, initial weights, truncation.

Numbers are checked in test_reference.py. What is compiled is small, and as little as can be.
"""

from functools import partial
import math

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sg2jax import losses
from sg2jax.models.discriminator import Discriminator, DiscriminatorBlock
from sg2jax.models.generator import Generator, Synthesis, SynthesisBlock
from sg2jax.models.layers import Conv, SynthesisLayer, ToRGB
from sg2jax.models.mapping import Mapping, truncate
from sg2jax.models.sizes import ARCHITECTURES, block_dtypes, block_sizes, fmaps

pytestmark = pytest.mark.usefixtures('quick_compile')


def make(resolution=(8, 8), channels=3, architecture='skip', c_dim=0, mapping_layers=1, **options):
  synthesis = Synthesis(resolution, channels, 32, 8, architecture, **options)
  return Generator(Mapping(8, c_dim, 8, mapping_layers), synthesis)


def make_d(resolution=(8, 8), architecture='resnet', **options):
  return Discriminator(resolution, 32, 8, architecture=architecture, mapping_layers=1, **options)


def init(net, key, channels=3):
  """What Flax's init makes of a generator or discriminator."""
  if isinstance(net, Discriminator):
    return net.init(key, images(net.resolution, channels), jnp.zeros((4, net.c_dim)))
  args = (jnp.zeros((2, net.mapping.z_dim)), jnp.zeros((2, net.mapping.c_dim)))
  return net.init(key, *args, noise_mode='const')


def variables(net, channels=3):
  """As `init`, of numbers by NumPy, which compiles nothing; biases and strengths are not zero."""
  draws = np.random.default_rng(0)

  def draw(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if name.endswith(('noise_strength', 'bias')):
      return np.full(x.shape, 1.3 if name.endswith('affine/bias') else 0.3, np.float32)
    scale = 100 if 'mapping/fc' in name else 1  # N(0,1) / lr_mul
    return draws.normal(scale=scale, size=x.shape).astype(np.float32)

  shapes = jax.eval_shape(partial(init, net, channels=channels), jax.random.key(0))
  return jax.tree_util.tree_map_with_path(draw, shapes)


def z(batch=2, dim=8):
  return np.random.default_rng(9).normal(size=(batch, dim)).astype(np.float32)


def images(resolution, channels=3, batch=4):
  return np.random.default_rng(8).normal(size=(batch, *resolution, channels)).astype(np.float32)


def no_label(batch=2):
  return np.zeros((batch, 0), np.float32)


def with_layers(net, layers, params, *args, **options):
  """Result of a network, and of every layer of the given classes: {path: array}."""
  result, captured = net.apply(
    params,
    *args,
    mutable=['intermediates'],
    capture_intermediates=lambda m, name: isinstance(m, layers) and name == '__call__',
    **options,
  )
  flat = traverse_util.flatten_dict(captured['intermediates'], sep='/')
  return result, {path.removesuffix('/__call__'): value[0] for path, value in flat.items()}


# ---- sizes


@pytest.mark.smoke
@pytest.mark.parametrize(
  'resolution, sizes',
  [
    ((4, 4), [(4, 4)]),
    ((16, 16), [(4, 4), (8, 8), (16, 16)]),
    ((16, 24), [(4, 6), (8, 12), (16, 24)]),
    ((48, 64), [(3, 4), (6, 8), (12, 16), (24, 32), (48, 64)]),
    ((20, 20), [(5, 5), (10, 10), (20, 20)]),
    ((7, 2), [(7, 2)]),
    ((14, 12), [(7, 6), (14, 12)]),
    ((384, 512), [(3 << i, 4 << i) for i in range(8)]),
  ],
)
def test_block_sizes(resolution, sizes):
  assert block_sizes(resolution) == sizes


@pytest.mark.parametrize(
  'resolution, remedy',
  [
    ((30, 32), '32x32'),
    ((100, 100), '96x96'),
    ((3, 3), '4x4'),
    ((0, 8), '4x8'),
    ((33, 17), '32x16'),
  ],
)
def test_block_sizes_errors_name_the_remedy(resolution, remedy):
  with pytest.raises(
    ValueError, match=f'resolution={resolution[0]}x{resolution[1]} .* try {remedy}'
  ):
    block_sizes(resolution)
  block_sizes(tuple(int(s) for s in remedy.split('x')))  # which is no worse


@pytest.mark.parametrize(
  'architecture, resolution, channels',
  [
    ('orig', (16, 24), 1),
    ('skip', (48, 64), 4),
    ('resnet', (20, 20), 3),
    ('msg', (28, 28), 1),
    ('revised', (5, 4), 4),
    ('stylegan1', (48, 64), 1),
    ('skip', (4, 4), 1),
    ('resnet', (5, 4), 4),
  ],
)
def test_shapes(architecture, resolution, channels):
  g = make(resolution, channels, architecture)
  d = make_d(resolution, architecture)
  sizes = block_sizes(resolution)
  assert g.synthesis.num_ws == 2 * len(sizes)

  def function(key):
    params = g.init(key, z(4), no_label(4), noise_mode='const')
    img = g.apply(params, z(4), no_label(4), noise_mode='random', rngs={'noise': key})
    return params, img, d.init_with_output(key, img)

  params, img, (logits, d_params) = jax.eval_shape(function, jax.random.key(0))
  assert (img.shape, logits.shape) == ((4, *resolution, channels), (4, 1))
  assert img.dtype == logits.dtype == jnp.float32
  blocks = [f'b{max(size)}' for size in sizes]
  synthesis = params['params']['synthesis']
  assert set(synthesis) == set(d_params['params']) == set(blocks)
  assert synthesis[blocks[0]]['const'].shape[:2] == sizes[0]


def test_rectangular_images_are_made_and_judged():
  g = make((6, 8))
  d = make_d((6, 8))
  params = variables(g)
  d_params = variables(d)

  @jax.jit
  def judge(z):
    img = g.apply(params, z, no_label(), noise_mode='const')
    return img, *jax.value_and_grad(lambda x: d.apply(d_params, x).sum())(img)

  img, logits, grads = judge(z())
  assert jnp.isfinite(logits) and img.std() > 0.1
  assert (jnp.abs(grads) > 0).mean() > 0.99  # every pixel matters, the last row and column too


@pytest.mark.parametrize('fmap_base, fmap_max', [(64, 512), (256, 16), (24, 512)])
def test_widths_follow_fmap_base_in_both_networks(fmap_base, fmap_max):
  g = Generator(Mapping(8, 0, 8, 1), Synthesis((32, 32), 3, fmap_base, fmap_max))
  d = Discriminator((32, 32), fmap_base, fmap_max)
  gp, dp = (jax.eval_shape(partial(init, net), jax.random.key(0))['params'] for net in (g, d))
  width = {res: max(1, min(2 * fmap_base // res, fmap_max)) for res in (4, 8, 16, 32)}
  for res in (8, 16, 32):
    assert fmaps(res, fmap_base, fmap_max) == width[res]
    conv0 = gp['synthesis'][f'b{res}']['conv0']['weight']
    assert conv0.shape == (3, 3, width[res // 2], width[res])
    assert dp[f'b{res}']['conv1']['weight'].shape == (3, 3, width[res], width[res // 2])
  assert dp['b4']['fc']['weight'].shape == (16 * width[4], width[4])


# ---- initial weights


def flat(tree):
  return traverse_util.flatten_dict(tree, sep='/')


@pytest.mark.parametrize(
  'net', [make(c_dim=2, architecture='resnet', mapping_layers=2), make_d(c_dim=2)], ids=['g', 'd']
)
def test_every_weight_is_drawn_from_the_seed_and_from_nothing_else(net):
  draw = jax.jit(partial(init, net))
  first, again, other = (flat(draw(jax.random.key(seed))) for seed in (0, 0, 1))
  drawn = [k for k in first if k.rsplit('/', 1)[-1] in ('weight', 'const', 'noise_const')]
  for key, value in first.items():
    np.testing.assert_array_equal(value, again[key])
    assert (key in drawn) == bool((value != other[key]).any()), key
    if key in drawn and value.size >= 64:
      scale = 100 if 'mapping/fc' in key else 1  # N(0,1) / lr_mul
      assert abs(float(value.std()) / scale - 1) < 0.3, key
    if key not in drawn:
      assert (value == (1 if key.endswith('affine/bias') else 0)).all(), key
  values = [first[k].ravel()[:8] for k in drawn if first[k].size >= 8]
  # no two weights from one key
  assert len({v.tobytes() for v in map(np.asarray, values)}) == len(values)


# ---- noise


def test_every_noise_layer_and_image_draws_its_own_noise():
  net = make()
  # without weights a layer is lrelu(noise) * sqrt(2)
  silent = jax.tree_util.tree_map_with_path(
    lambda path, x: np.full(x.shape, path[-1].key == 'noise_strength', np.float32), variables(net)
  )

  @jax.jit
  def layers(key):
    options = {'noise_mode': 'random', 'rngs': {'noise': key}}
    found = with_layers(net, SynthesisLayer, silent, z(3), no_label(3), **options)[1]
    return {k: jnp.where(x > 0, x, 5 * x) / math.sqrt(2) for k, x in found.items()}

  noise, other = (jax.device_get(layers(jax.random.key(seed))) for seed in (0, 1))
  assert len(noise) == 3
  maps = []
  for key, x in noise.items():
    # one map for all channels
    np.testing.assert_allclose(x, np.repeat(x[..., :1], x.shape[-1], -1), rtol=1e-5)
    assert abs(x.std() - 1) < 0.5 and (x != other[key]).any()
    maps += [x[i, :4, :4, 0].ravel() for i in range(3)]
  assert len({m.round(4).tobytes() for m in maps}) == 9
  assert np.abs(np.corrcoef(maps) - np.eye(9)).max() < 0.9


def test_constant_noise_is_the_same_for_all_images_and_none_is_none():
  net = make()
  params = variables(net)
  same = np.repeat(z()[:1], 2, 0)

  @partial(jax.jit, static_argnames='noise_mode')
  def image(params, noise_mode):
    return net.apply(params, same, no_label(), noise_mode=noise_mode)

  const = image(params, 'const')
  none = image(params, 'none')
  np.testing.assert_allclose(const[0], const[1], atol=1e-5)
  assert jnp.abs(const - none).max() > 0.1
  without = jax.tree_util.tree_map_with_path(
    lambda p, x: x * (p[-1].key != 'noise_strength'), params
  )
  np.testing.assert_allclose(image(without, 'const'), none, atol=1e-5)


# ---- truncation


def test_truncation():
  """Of the first `cutoff` of ws, in a whole network; its mapping network and w_avg decide."""
  net = make()
  params = variables(net)
  w_avg = np.linspace(-1, 1, 8, dtype=np.float32)

  @jax.jit
  def images_and_w(psi, cutoff):
    img = net.apply(params, z(), no_label(), w_avg, psi, cutoff, noise_mode='const')
    return img, net.apply(params, z(), no_label(), method='map')

  direct = jax.jit(partial(net.apply, method='synthesize', noise_mode='const'))
  for psi, cutoff in ((1.0, 4), (0.0, 0), (0.0, 4), (0.5, 3)):
    img, w = images_and_w(psi, cutoff)
    ws = np.repeat(np.asarray(w)[:, None], 4, 1)
    ws[:, :cutoff] = w_avg + psi * (ws[:, :cutoff] - w_avg)
    np.testing.assert_allclose(img, direct(params, ws), atol=1e-4)
  assert np.array_equal(truncate(ws, w_avg, 0.5), w_avg + np.float32(0.5) * (ws - w_avg))


# ---- precision, clamp, rematerialisation


@pytest.mark.parametrize(
  'architecture',
  [
    pytest.param(name, marks=[] if name in ('skip', 'stylegan1') else pytest.mark.slow)
    for name in ARCHITECTURES
  ],
)
def test_bfloat16_blocks_agree_and_end_in_float32(architecture):
  g = make(architecture=architecture)
  d = make_d(architecture=architecture)
  params = variables(g)
  d_params = variables(d)

  @partial(jax.jit, static_argnums=0)
  def both(bits):
    low_g = g.clone(synthesis=g.synthesis.clone(num_bf16_res=bits))
    low_d = d.clone(num_bf16_res=bits)
    img, blocks = with_layers(low_g, SynthesisBlock, params, z(), no_label(), noise_mode='const')
    logits, d_blocks = with_layers(low_d, DiscriminatorBlock, d_params, images((8, 8)))
    return img, logits, blocks, d_blocks

  img, logits, *_ = both(0)
  low_img, low_logits, blocks, d_blocks = both(1)
  assert low_img.dtype == low_logits.dtype == jnp.float32
  for full, low in ((img, low_img), (logits, low_logits)):
    error = jnp.abs(full - low).max() / jnp.abs(full).max()
    assert 1e-6 < error < 0.05  # bfloat16 has 8 bits: different, but not by much
  dtypes = {k.split('/')[-1]: x.dtype for k, (x, _) in blocks.items()}
  assert dtypes == {'b4': jnp.float32, 'b8': jnp.bfloat16}
  assert [x.dtype for x in d_blocks.values()] == [jnp.bfloat16]


def test_first_block_is_never_bfloat16():
  assert block_dtypes(block_sizes((16, 16)), 99) == [None, jnp.bfloat16, jnp.bfloat16]


@pytest.mark.parametrize('architecture', ['skip', 'resnet'])
def test_clamp_reaches_every_layer(architecture):
  g = make(architecture=architecture, clamp=0.01)
  d = make_d(architecture=architecture, clamp=0.01)

  @jax.jit
  def layers(params, d_params):
    options = {'noise_mode': 'const'}
    _, of_g = with_layers(g, (SynthesisLayer, ToRGB), params, z(), no_label(), **options)
    _, of_d = with_layers(d, Conv, d_params, images((8, 8)))
    return of_g, of_d

  of_g, of_d = layers(variables(g), variables(d))
  assert len(of_g) >= 4 and len(of_d) >= 4
  for name, x in [*of_g.items(), *of_d.items()]:
    # the clamp is scaled by the layer's gain
    half = architecture == 'resnet' and name.endswith('b8/conv1')
    free = name.endswith('skip') or name == 'b4/fromrgb'
    at_clamp = math.isclose(jnp.abs(x).max(), 0.01 * math.sqrt(0.5 if half else 1), rel_tol=1e-5)
    assert at_clamp != free, name


def test_remat_changes_neither_values_nor_gradients():
  g = make(architecture='orig')
  d = make_d(architecture='orig')
  params = variables(g), variables(d)

  def run(remat):
    remat_g = g.clone(synthesis=g.synthesis.clone(remat=remat))
    remat_d = d.clone(remat=remat)

    def loss(params):
      rngs = {'noise': jax.random.key(3)}
      img = remat_g.apply(params[0], z(), no_label(), noise_mode='random', rngs=rngs)
      return remat_d.apply(params[1], img).sum()

    traced = jax.jit(jax.value_and_grad(loss)).trace(params)
    return traced.lower().compile()(params), str(traced.jaxpr).count('remat')

  (value, grads), count = run(0)
  (remat_value, remat_grads), remat_count = run(16)
  assert remat_count > run(1)[1] > count == 0
  np.testing.assert_allclose(remat_value, value, rtol=1e-5)
  for a, b in zip(jax.tree.leaves(remat_grads), jax.tree.leaves(grads), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))


def test_remat_changes_no_gradient_of_r1():
  """Nor with its layers once more: there the gradient of a gradient is taken."""
  d = make_d()
  params = variables(d)
  img = images(d.resolution)

  def gradient(remat, remat_layers):
    net = d.clone(remat=remat, remat_layers=remat_layers)

    def penalty(params):
      return losses.r1_penalty(lambda x: net.apply(params, x), img)[0].mean()

    traced = jax.jit(jax.grad(penalty)).trace(params)
    return traced.lower().compile()(params), str(traced.jaxpr).count('remat')

  grads, _ = gradient(0, False)
  _, by_block = gradient(1, False)
  remat_grads, by_layer = gradient(1, True)
  assert by_layer > by_block > 0
  for a, b in zip(jax.tree.leaves(remat_grads), jax.tree.leaves(grads), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))


# ---- labels


@pytest.mark.smoke
def test_labels_matter_in_both_networks():
  g = make(c_dim=3)
  d = make_d(c_dim=3)
  params = variables(g)
  d_params = variables(d)
  labels = np.eye(3, dtype=np.float32)

  @jax.jit
  def both(z, x):
    w = g.apply(params, z, labels, method='map')
    return w, d.apply(d_params, x, labels[np.array([0, 1, 2, 0])])[:, 0]

  w, logits = both(z(1).repeat(3, 0), images((8, 8), batch=1).repeat(4, 0))
  assert jnp.abs(w[0] - w[1]).max() > 0.01
  assert math.isclose(logits[0], logits[3], rel_tol=1e-4) and abs(logits[0] - logits[1]) > 1e-4


def test_styles_are_picked_without_gathers():
  """An index array would be a gather in each block, and a scatter-add in its gradient."""
  g = make()
  params = jax.eval_shape(partial(init, g), jax.random.key(0))

  def loss(variables, ws):
    return g.apply(variables, ws, 'const', method='synthesize').sum()

  ws = jax.ShapeDtypeStruct((2, g.synthesis.num_ws, g.mapping.w_dim), jnp.float32)
  text = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, ws))
  assert 'conv_general_dilated' in text and 'gather' not in text and 'scatter' not in text
