"""Networks: sizes, precision, clamp, noise, initial weights, truncation. Numbers are checked in
test_reference.py.
"""

from functools import cache, partial
import math

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sg2jax.models.discriminator import Discriminator, DiscriminatorBlock
from sg2jax.models.generator import Generator, Synthesis, SynthesisBlock
from sg2jax.models.layers import Conv, SynthesisLayer, ToRGB
from sg2jax.models.mapping import Mapping
from sg2jax.models.sizes import ARCHITECTURES, block_dtypes, block_sizes, fmaps

pytestmark = pytest.mark.usefixtures('quick_compile')
ARCHITECTURES = ARCHITECTURES


def make(resolution=(8, 8), channels=3, architecture='skip', c_dim=0, mapping_layers=1, **options):
  synthesis = Synthesis(resolution, channels, 32, 8, architecture, **options)
  return Generator(Mapping(8, c_dim, 8, mapping_layers), synthesis)


def make_d(resolution=(8, 8), architecture='resnet', **options):
  return Discriminator(resolution, 32, 8, architecture=architecture, mapping_layers=1, **options)


def variables(net, seed=0, batch=2):
  """Parameters, with noise strengths and biases that aren't zero, and noise maps."""
  args = (jnp.zeros((batch, net.mapping.z_dim)), jnp.zeros((batch, net.mapping.c_dim)))
  return lively(jax.jit(partial(net.init, noise_mode='const'))(jax.random.key(seed), *args))


def variables_d(net, channels=3, seed=0):
  img = jnp.zeros((4, *net.resolution, channels))
  return lively(jax.jit(net.init)(jax.random.key(seed), img, jnp.zeros((4, net.c_dim))))


def lively(tree):
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x + 0.3 if path[-1].key in ('noise_strength', 'bias') else x, tree
  )


@cache
def z(batch=2, dim=8):
  return jax.random.normal(jax.random.key(9), (batch, dim))


def images(resolution, channels=3, batch=4):
  return jax.random.normal(jax.random.key(8), (batch, *resolution, channels))


def captured(net, layers, params, *args, **options):
  """Results of every layer of the given classes: {path: array}."""

  def apply(params):
    return net.apply(
      params,
      *args,
      mutable=['intermediates'],
      **options,
      capture_intermediates=lambda m, name: isinstance(m, layers) and name == '__call__',
    )[1]

  flat = traverse_util.flatten_dict(jax.jit(apply)(params)['intermediates'], sep='/')
  return {path.removesuffix('/__call__'): value[0] for path, value in flat.items()}


# ---- sizes


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


@pytest.mark.parametrize('resolution', [(16, 24), (48, 64), (20, 20), (28, 28), (4, 4), (5, 4)])
@pytest.mark.parametrize('channels', [1, 4])
@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_shapes(resolution, channels, architecture):
  g, d = make(resolution, channels, architecture), make_d(resolution, architecture)
  assert g.synthesis.num_ws == 2 * len(block_sizes(resolution))

  def function(key):
    params = g.init(key, z(4), jnp.zeros((4, 0)), noise_mode='const')
    img = g.apply(params, z(4), jnp.zeros((4, 0)), noise_mode='random', rngs={'noise': key})
    return params, img, d.init_with_output(key, img)

  params, img, (logits, d_params) = jax.eval_shape(function, jax.random.key(0))
  assert (img.shape, logits.shape) == ((4, *resolution, channels), (4, 1))
  assert img.dtype == logits.dtype == jnp.float32
  blocks = [f'b{max(size)}' for size in block_sizes(resolution)]
  assert set(params['params']['synthesis']) == set(blocks) and set(d_params['params']) == set(
    blocks
  )
  assert params['params']['synthesis'][blocks[0]]['const'].shape[:2] == block_sizes(resolution)[0]


def test_rectangular_images_are_made_and_judged():
  g, d = make((6, 8)), make_d((6, 8))
  img = jax.jit(partial(g.apply, noise_mode='const'))(variables(g), z(), jnp.zeros((2, 0)))
  params = variables_d(d)
  logits, grads = jax.jit(jax.value_and_grad(lambda x: d.apply(params, x).sum()))(img)
  assert jnp.isfinite(logits) and img.std() > 0.1
  assert (jnp.abs(grads) > 0).mean() > 0.99  # every pixel matters, the last row and column too


@pytest.mark.parametrize('fmap_base, fmap_max', [(64, 512), (256, 16), (24, 512)])
def test_widths_follow_fmap_base_in_both_networks(fmap_base, fmap_max):
  g = Generator(Mapping(8, 0, 8, 1), Synthesis((32, 32), 3, fmap_base, fmap_max))
  d = Discriminator((32, 32), fmap_base, fmap_max)
  gp = jax.eval_shape(
    partial(g.init, noise_mode='const'), jax.random.key(0), z(), jnp.zeros((2, 0))
  )['params']
  dp = jax.eval_shape(d.init, jax.random.key(0), images((32, 32)))['params']
  width = {res: max(1, min(2 * fmap_base // res, fmap_max)) for res in (4, 8, 16, 32)}
  for res in (8, 16, 32):
    assert fmaps(res, fmap_base, fmap_max) == width[res]
    assert gp['synthesis'][f'b{res}']['conv0']['weight'].shape == (
      3,
      3,
      width[res // 2],
      width[res],
    )
    assert dp[f'b{res}']['conv1']['weight'].shape == (3, 3, width[res], width[res // 2])
  assert dp['b4']['fc']['weight'].shape == (16 * width[4], width[4])


# ---- initial weights


def flat(tree):
  return traverse_util.flatten_dict(tree, sep='/')


@pytest.mark.parametrize('net', ['g', 'd'])
def test_every_weight_is_drawn_from_the_seed_and_from_nothing_else(net):
  def init(seed):
    if net == 'g':
      return make(c_dim=2, architecture='resnet', mapping_layers=2).init(
        jax.random.key(seed), z(), jnp.zeros((2, 2)), noise_mode='const'
      )
    return make_d(c_dim=2).init(jax.random.key(seed), images((8, 8)), jnp.zeros((4, 2)))

  first, again, other = (flat(jax.jit(init)(seed)) for seed in (0, 0, 1))
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
  net = make((16, 16))
  params = variables(net, batch=3)
  silent = jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.ones_like(x) if path[-1].key == 'noise_strength' else jnp.zeros_like(x),
    params,
  )

  def noise(seed):  # without weights a layer is lrelu(noise) * sqrt(2)
    out = captured(
      net,
      SynthesisLayer,
      silent,
      z(3),
      jnp.zeros((3, 0)),
      noise_mode='random',
      rngs={'noise': jax.random.key(seed)},
    )
    return {k: np.asarray(jnp.where(x > 0, x, 5 * x) / math.sqrt(2)) for k, x in out.items()}

  layers, other = noise(0), noise(1)
  assert len(layers) == 5
  maps = []
  for key, x in layers.items():
    # one map for all channels
    np.testing.assert_allclose(x, np.repeat(x[..., :1], x.shape[-1], -1), rtol=1e-5)
    assert abs(x.std() - 1) < 0.5 and (x != other[key]).any()
    maps += [x[i, :4, :4, 0].ravel() for i in range(3)]
  assert len({m.round(4).tobytes() for m in maps}) == 15
  assert np.abs(np.corrcoef(maps) - np.eye(15)).max() < 0.9


def test_constant_noise_is_the_same_for_all_images_and_none_is_none():
  net = make()
  params = variables(net)
  same = jnp.broadcast_to(z()[:1], (2, 8))
  image = jax.jit(partial(net.apply, params), static_argnames='noise_mode')
  const, none = (image(same, jnp.zeros((2, 0)), noise_mode=mode) for mode in ('const', 'none'))
  np.testing.assert_allclose(const[0], const[1], atol=1e-5)
  assert jnp.abs(const - none).max() > 0.1
  without = jax.tree_util.tree_map_with_path(
    lambda p, x: x * (p[-1].key != 'noise_strength'), params
  )
  still = jax.jit(partial(net.apply, noise_mode='const'))(without, same, jnp.zeros((2, 0)))
  np.testing.assert_allclose(still, none, atol=1e-5)


# ---- truncation


def test_truncation():
  net = make((16, 16))
  params, w_avg, c = variables(net), jnp.linspace(-1, 1, 8), jnp.zeros((2, 0))
  image = jax.jit(partial(net.apply, params, noise_mode='const'))
  plain, average = image(z(), c), image(z(), c, w_avg, 0.0)
  np.testing.assert_allclose(average[0], average[1], atol=1e-5)  # w_avg alone
  np.testing.assert_allclose(image(z(), c, w_avg, 1.0), plain, atol=1e-4)
  # cutoff 0: nothing truncated
  np.testing.assert_allclose(image(z(), c, w_avg, 0.0, 0), plain, atol=1e-4)
  # cutoff num_ws: everything
  np.testing.assert_allclose(image(z(), c, w_avg, 0.0, 6), average, atol=1e-5)
  half = image(z(), c, w_avg, 0.5, 3)
  ws = jnp.repeat(jax.jit(partial(net.apply, method='map'))(params, z(), c)[:, None], 6, 1)
  ws = np.concatenate([w_avg + 0.5 * (ws[:, :3] - w_avg), ws[:, 3:]], axis=1)
  direct = jax.jit(partial(net.apply, method='synthesize', noise_mode='const'))(params, ws)
  np.testing.assert_allclose(half, direct, atol=1e-4)


# ---- precision, clamp, rematerialisation


@pytest.mark.parametrize(
  'architecture',
  [
    pytest.param(name, marks=[] if name in ('skip', 'stylegan1') else pytest.mark.slow)
    for name in ARCHITECTURES
  ],
)
def test_bfloat16_blocks_agree_and_end_in_float32(architecture):
  g, d = make((16, 16), architecture=architecture), make_d((16, 16), architecture)
  params, d_params, x = variables(g), variables_d(d), images((16, 16))
  c = jnp.zeros((2, 0))

  def both(bits):
    low_g, low_d = (
      g.clone(synthesis=g.synthesis.clone(num_bf16_res=bits)),
      d.clone(num_bf16_res=bits),
    )
    blocks = captured(low_g, SynthesisBlock, params, z(), c, noise_mode='const')
    d_blocks = captured(low_d, DiscriminatorBlock, d_params, x)
    return (
      low_g.apply(params, z(), c, noise_mode='const'),
      low_d.apply(d_params, x),
      blocks,
      d_blocks,
    )

  img, logits, *_ = jax.jit(partial(both, 0))()
  low_img, low_logits, blocks, d_blocks = jax.jit(partial(both, 2))()
  assert low_img.dtype == low_logits.dtype == jnp.float32
  for full, low in ((img, low_img), (logits, low_logits)):
    error = jnp.abs(full - low).max() / jnp.abs(full).max()
    assert 1e-6 < error < 0.05  # bfloat16 has 8 bits: different, but not by much
  dtypes = {k.split('/')[-1]: x.dtype for k, (x, _) in blocks.items()}
  assert dtypes == {'b4': jnp.float32, 'b8': jnp.bfloat16, 'b16': jnp.bfloat16}
  assert all(x.dtype == jnp.bfloat16 for x in d_blocks.values())


def test_first_block_is_never_bfloat16():
  assert block_dtypes(block_sizes((16, 16)), 99) == [None, jnp.bfloat16, jnp.bfloat16]


# which normalizes after it
@pytest.mark.parametrize('architecture', [a for a in ARCHITECTURES if a != 'stylegan1'])
def test_clamp_reaches_every_layer(architecture):
  g, d = make(architecture=architecture, clamp=0.01), make_d(architecture=architecture, clamp=0.01)
  g_layers = captured(
    g, (SynthesisLayer, ToRGB), variables(g), z(), jnp.zeros((2, 0)), noise_mode='const'
  )
  d_layers = captured(d, Conv, variables_d(d), images((8, 8)))
  assert len(g_layers) >= 4 and len(d_layers) >= 4
  for name, x in [*g_layers.items(), *d_layers.items()]:
    # the clamp is scaled by the layer's gain
    half = architecture == 'resnet' and name.endswith('b8/conv1')
    free = name.endswith('skip') or name == 'b4/fromrgb'
    at_clamp = math.isclose(jnp.abs(x).max(), 0.01 * math.sqrt(0.5 if half else 1), rel_tol=1e-5)
    assert at_clamp != free, name


def test_remat_changes_neither_values_nor_gradients():
  g, d = make(architecture='orig'), make_d(architecture='orig')
  params, d_params, c = variables(g), variables_d(d), jnp.zeros((2, 0))

  def run(remat):
    g_, d_ = g.clone(synthesis=g.synthesis.clone(remat=remat)), d.clone(remat=remat)

    def loss(params, d_params):
      img = g_.apply(params, z(), c, noise_mode='random', rngs={'noise': jax.random.key(3)})
      return d_.apply(d_params, img).sum()

    function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return function(params, d_params), str(function.trace(params, d_params).jaxpr)

  (value, grads), text = run(False)
  (remat_value, remat_grads), remat_text = run(True)
  assert remat_text.count('remat') > text.count('remat')
  np.testing.assert_allclose(remat_value, value, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max())),
    remat_grads,
    grads,
  )


# ---- labels


def test_labels_matter_in_both_networks():
  g, d = make(c_dim=3), make_d(c_dim=3)
  params, d_params, labels = variables(g), variables_d(d), jnp.eye(3)
  w = jax.jit(partial(g.apply, method='map'))(params, jnp.repeat(z()[:1], 3, 0), labels)
  assert jnp.abs(w[0] - w[1]).max() > 0.01
  x = images((8, 8), batch=1).repeat(4, 0)
  logits = jax.jit(d.apply)(d_params, x, labels[jnp.array([0, 1, 2, 0])])[:, 0]
  assert math.isclose(logits[0], logits[3], rel_tol=1e-4) and abs(logits[0] - logits[1]) > 1e-4


def test_styles_are_picked_without_gathers():
  """An index array would be a gather in each block, and a scatter-add in its gradient."""
  g = make()
  params = jax.eval_shape(
    partial(g.init, noise_mode='const'), jax.random.key(0), z(), jnp.zeros((2, 0))
  )
  loss = lambda variables, ws: sum(
    x.sum() for x in jax.tree.leaves(g.apply(variables, ws, 'const', method='synthesize'))
  )
  ws = jax.ShapeDtypeStruct((2, g.synthesis.num_ws, g.mapping.w_dim), jnp.float32)
  text = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, ws))
  assert 'conv_general_dilated' in text and 'gather' not in text and 'scatter' not in text
