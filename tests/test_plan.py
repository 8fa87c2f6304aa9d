"""Plans: what compilers say of the steps, read, kept, added up; nothing runs."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from sg2jax import build, checks, sharding
from sg2jax import state as state_lib
from sg2jax.faults import UsageError
from sg2jax.planning import compile as compile_lib
from sg2jax.planning import devices, hlo, largest, plan
from sg2jax.planning.devices import Target
from sg2jax.tools import plan as tool
from tests.runs import ROOT, TINY, call, configuration

LOCAL = Target('local', '')


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """A cache for the plans of this file, whose steps are compiled once."""
  with pytest.MonkeyPatch.context() as patch:
    folder = tmp_path_factory.mktemp('cache')
    patch.setenv('SG2JAX_CACHE', str(folder))
    yield folder


def compiled_steps(**fields):
  """The steps of a tiny network on one device of this process."""
  config = configuration(ROOT, **fields)
  checks.check(config)
  return compile_lib.Steps(config, LOCAL, jax.devices()[:1])


# ---- compiled here


@pytest.mark.smoke
def test_memory_is_that_of_a_real_compile(cache, quick_compile):
  """Of real arrays, not of shapes, and without the package's own compile."""
  planned = compiled_steps().figures('d')
  config = configuration(ROOT)
  mesh = sharding.make_mesh(jax.devices()[:1])
  steps = build.steps(config, 10, mesh)
  state = state_lib.pack_state(build.init_state(config, steps, sharding.replicated(mesh)))
  batch = {'image': np.zeros((1, 8, 8, 8, 1), np.uint8), 'label': np.zeros((1, 8, 10), np.float32)}
  batch = sharding.to_global(mesh, batch)
  key = jax.device_put(jax.random.key(0), sharding.replicated(mesh))
  real = sharding.jit_step(steps.d, mesh).lower(key, state, batch).compile().memory_analysis()
  assert planned['temp_bytes'] == real.temp_size_in_bytes > 0
  assert planned['argument_bytes'] == real.argument_size_in_bytes
  assert planned['alias_bytes'] == real.alias_size_in_bytes
  sizes = (real.argument_size_in_bytes, real.temp_size_in_bytes, real.output_size_in_bytes)
  code = real.generated_code_size_in_bytes
  assert planned['peak_bytes'] == sum(sizes) + code - real.alias_size_in_bytes


def test_a_second_plan_compiles_nothing_and_another_configuration_does(
  cache, quick_compile, monkeypatch
):
  compiled_steps().figures('d')
  names = []
  monkeypatch.setattr(compile_lib, 'whole', lambda lowered, target: names.append('d') or {'x': 1})
  assert compiled_steps().figures('d')['seconds_compiling'] == 0
  assert compiled_steps(total_kimg=5.0).figures('d')['peak_bytes']  # of what isn't compiled
  assert not names
  compiled_steps(batch=16).figures('d')
  assert names == ['d']
  # A file that isn't whole is compiled again.
  newest = max((cache / 'plans').iterdir(), key=lambda file: file.stat().st_mtime)
  newest.write_text('{')
  assert compiled_steps(batch=16).figures('d')['x'] == 1 and len(names) == 2


def test_versions_and_flags_of_the_compiler_decide(monkeypatch):
  lowered = types.SimpleNamespace(as_text=lambda: 'text')
  before = compile_lib._key(lowered, LOCAL, 1)
  assert before == compile_lib._key(lowered, LOCAL, 1) != compile_lib._key(lowered, LOCAL, 2)
  monkeypatch.setenv('XLA_FLAGS', '--other')
  assert compile_lib._key(lowered, LOCAL, 1) != before


def test_the_tool_prints_a_plan_and_writes_it(cache, quick_compile, tmp_path, capsys):
  fields = [f'--config.{name}={value}' for name, value in TINY.items()]
  config = f'--config={ROOT}/configs/quickstart.py'
  call(tool, config, *fields, '--devices=1', f'--json={tmp_path}/plan.json')
  out = capsys.readouterr().out
  found = json.loads((tmp_path / 'plan.json').read_text())
  assert list(found['steps']) == ['g', 'g_reg', 'd', 'd_reg'] and found['device'] == 'local'
  assert found['fits'] is None and found['images_per_sec'] is None  # of a CPU nothing is known
  assert found['steps']['g']['kernels'] is None and found['steps']['g']['flop'] > 0
  assert re.search(r'^g: compiled in \d+ s, ', out, re.MULTILINE) and '1 x cpu, 8x8, batch 8' in out


# ---- devices


@pytest.mark.parametrize(
  'name, count, said',
  [
    ('v5', 0, '--device=v5 is unknown; choose from local, h100, a100, l4, v4:2x2x2, v5e:4x4'),
    ('v5e', 0, '--device=v5e needs a topology in chips, as in v5e:4x4'),
    ('v4:8', 0, '--device=v4:8 needs a topology in chips, as in v4:2x2x2'),
    ('v5e:4x4', 8, '--devices=8 is for GPUs; how many TPUs, v5e:4x4 says'),
    ('h100:8', 0, '--device=h100:8 has no topology; say --device=h100 --devices=8'),
    ('h100', 0, 'by the package jax-cuda13-plugin, which is not installed; pip install -r'),
    ('v5e:4x4', 0, 'by the package libtpu, which is not installed; pip install -r requirements-p'),
  ],
)
def test_devices_that_cannot_be_planned_for(name, count, said, monkeypatch):
  def none(package):
    raise importlib.metadata.PackageNotFoundError(package)

  monkeypatch.setattr(importlib.metadata, 'version', none)
  with pytest.raises(UsageError, match=re.escape(said)):
    devices.parse(name, count)


def test_a_plugin_of_another_version_is_refused(monkeypatch):
  versions = {'jax-cuda13-plugin': '0.9.0', 'jaxlib': '0.10.2'}
  monkeypatch.setattr(importlib.metadata, 'version', versions.get)
  with pytest.raises(UsageError, match='jax-cuda13-plugin 0.9.0 does not fit jaxlib 0.10.2'):
    devices.parse('h100')


def test_more_local_devices_than_there_are():
  with pytest.raises(UsageError, match='--devices=99, but JAX sees only'):
    devices.resolve(devices.parse('local', 99))


def test_device_data_is_whole():
  for kind, data in devices.table().items():
    assert data['source'] and data['memory_bytes'] > 10 * 2**30
    if data['platform'] == 'tpu':
      # What a cycle can do is a whole number of products of the matrix units.
      a_cycle = data['flop_per_sec']['bf16'] / data['clock_hz']
      assert abs(a_cycle / 2**17 - round(a_cycle / 2**17)) < 0.01 * a_cycle / 2**17
    else:
      text = (devices.DATA / f'{kind}.txtpb').read_text()
      assert '# Source:' in text or 'CUDA C++ Programming Guide' in text
      assert int(re.search(r'memory_bandwidth: (\d+)', text)[1]) == data['bytes_per_sec']
      assert int(re.search(r'device_memory_size: (\d+)', text)[1]) == data['memory_bytes']


def test_peaks_and_memory(monkeypatch):
  tpu = Target('v5e:4x4', 'v5e')
  gpu = Target('h100', 'h100')
  assert tpu.flop_per_sec('f32') == 197e12 == 6 * tpu.flop_per_sec('f32_highest')
  assert gpu.flop_per_sec('f32_high') == gpu.flop_per_sec('f32') == 494.7e12
  assert gpu.flop_per_sec('f64') == 66.9e12 and LOCAL.flop_per_sec('f32') is None
  monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.5')
  assert gpu.memory([]) == 84942979072 // 2 and tpu.memory([]) == int(15.75 * 2**30)


# ---- HLO, as compilers print it

LINES = '\n'.join(
  [
    'HloModule jit_step, is_scheduled=true',
    '',
    '%sliced (p.0: f32[8,100], p.1: f32[8,10]) -> f32[8,10] {',
    '  %p.0 = f32[8,100]{1,0} parameter(0)',
    '  %p.1 = f32[8,10]{1,0} parameter(1)',
    '  %bitcast.0 = f32[800]{0} bitcast(%p.0)',
    '  %slice.0 = f32[80]{0} slice(%bitcast.0), slice={[0:80]}',
    '  %bitcast.1 = f32[8,10]{1,0} bitcast(%slice.0)',
    '  ROOT %add.0 = f32[8,10]{1,0} add(%bitcast.1, %p.1)',
    '}',
    '',
    '%updated (q.0: f32[8,100], q.1: f32[1,100], q.2: s32[]) -> f32[8,100] {',
    '  %q.0 = f32[8,100]{1,0} parameter(0)',
    '  %q.1 = f32[1,100]{1,0} parameter(1)',
    '  %q.2 = s32[] parameter(2)',
    '  ROOT %dus = f32[8,100]{1,0} dynamic-update-slice(%q.0, %q.1, %q.2, %q.2)',
    '}',
    '',
    '%body (arg: (s32[], f32[8,100])) -> (s32[], f32[8,100]) {',
    '  %arg = (s32[], f32[8,100]{1,0}) parameter(0)',
    '  %gte.0 = s32[] get-tuple-element(%arg), index=0',
    '  %gte.1 = f32[8,100]{1,0} get-tuple-element(%arg), index=1',
    '  %negate = f32[8,100]{1,0} negate(%gte.1)',
    '  ROOT %tuple = (s32[], f32[8,100]{1,0}) tuple(%gte.0, %negate)',
    '}',
    '',
    'ENTRY %main (a: f32[8,100], b: f32[8,10], c: f32[1,100], n: s32[]) -> f32[8,100] {',
    '  %a = f32[8,100]{1,0} parameter(0)',
    '  %b = f32[8,10]{1,0} parameter(1)',
    '  %c = f32[1,100]{1,0} parameter(2)',
    '  %n = s32[] parameter(3)',
    '  %fusion.0 = f32[8,10]{1,0} fusion(%a, %b), kind=kLoop, calls=%sliced, '
    'backend_config={"reification_cost":[{"end_to_end_cycles":1,"exec_time_us":1.5}]}',
    '  %fusion.1 = f32[8,100]{1,0} fusion(%a, %c, %n), kind=kLoop, calls=%updated',
    '  %tuple.0 = (s32[], f32[8,100]{1,0}) tuple(%n, %fusion.1)',
    '  %loop = (s32[], f32[8,100]{1,0}) while(%tuple.0), condition=%cond, body=%body, '
    'backend_config={"known_trip_count":{"n":"7"}}',
    '  %dot = f32[10,100]{1,0} dot(%fusion.0, %a), lhs_contracting_dims={0}, '
    'rhs_contracting_dims={0}, operand_precision={highest,highest}',
    '  ROOT %gte.2 = f32[8,100]{1,0} get-tuple-element(%loop), index=1',
    '}',
  ]
)


def test_bytes_of_slices_updates_and_loops():
  found = {k.name: k for k in hlo.kernels(LINES)}
  assert list(found) == ['fusion.0', 'fusion.1', 'negate', 'dot']
  assert found['fusion.0'].bytes == 4 * (80 + 80 + 80)  # the slice, %b, the result
  assert found['fusion.0'].seconds == 1.5e-6 and found['fusion.1'].seconds is None
  assert found['fusion.1'].bytes == 4 * (100 + 100 + 1)  # the row that is read and written, %n
  assert found['negate'].times == 7 and found['negate'].bytes == 4 * 1600
  assert found['dot'].products == ((2 * 10 * 100 * 8, 'f32_highest'),)


def call_of_cudnn(target, x, w, result, window):
  """The kernel of a convolution, or of one of its gradients, as cuDNN is called."""
  return hlo.kernels(
    '\n'.join(
      [
        'ENTRY %main (x: f32[1]) -> f32[1] {',
        f'  %x = bf16[{x}] parameter(0)',
        f'  %w = bf16[{w}] parameter(1)',
        f'  ROOT %r = (bf16[{result}], u8[0]) custom-call(%x, %w), window={{{window}}}, '
        f'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$conv{target}"',
        '}',
      ]
    )
  )[0]


def test_flop_of_a_convolution_and_its_gradients():
  """By counting: 3 taps meet 3 * 8 - 2 samples of 8 where the ends are padded."""
  image, kernel = '2,8,8,5', '7,3,3,5'
  out = '2,8,8,7'
  window = 'size=3x3 pad=1_1x1_1'
  expected = 2 * 2 * 7 * 5 * (3 * 8 - 2) ** 2
  assert call_of_cudnn('Forward', image, kernel, out, window).flop == expected
  assert call_of_cudnn('BackwardInput', out, kernel, image, window).flop == expected
  forward = call_of_cudnn('BackwardFilter', image, out, kernel, window)
  assert forward.products == ((expected, 'bf16'),)
  # Strided, from 9x9 to 4x4 without padding: every tap of every output.
  strided = call_of_cudnn('BackwardInput', '2,4,4,7', kernel, '2,9,9,5', 'size=3x3 stride=2x2')
  assert strided.flop == 2 * 2 * 7 * 5 * (3 * 4) ** 2


def test_zeros_between_samples_are_not_counted():
  """A dilated convolution by itself, inside of a fusion; and grouped."""
  lines = [
    '%inside (p.0: f32[1,4,4,6], p.1: f32[2,2,3,6]) -> f32[1,8,8,6] {',
    '  %p.0 = f32[1,4,4,6]{3,2,1,0} parameter(0)',
    '  %p.1 = f32[2,2,3,6]{3,2,1,0} parameter(1)',
    '  ROOT %conv = f32[1,8,8,6]{3,2,1,0} convolution(%p.0, %p.1), window={size=2x2 pad=1_1x1_1 '
    'lhs_dilate=2x2}, dim_labels=b01f_01io->b01f, feature_group_count=2, '
    'operand_precision={high,high}',
    '}',
    'ENTRY %main (a: f32[1,4,4,6], b: f32[2,2,3,6]) -> f32[1,8,8,6] {',
    '  %a = f32[1,4,4,6]{3,2,1,0} parameter(0)',
    '  %b = f32[2,2,3,6]{3,2,1,0} parameter(1)',
    '  ROOT %f = f32[1,8,8,6]{3,2,1,0} fusion(%a, %b), kind=kOutput, calls=%inside, '
    'backend_config={"window_config":{"estimated_cycles":"123"}}',
    '}',
  ]
  [kernel] = hlo.kernels('\n'.join(lines))
  # Of each output one tap in 2 x 2 meets a sample: 8 along an axis.
  assert kernel.products == ((2 * 6 * 3 * 8 * 8, 'f32_high'),) and kernel.cycles == 123


def test_collectives_and_what_is_not_in_the_memory():
  lines = [
    'ENTRY %main (a: f32[256]) -> f32[256] {',
    '  %a = f32[256]{0} parameter(0)',
    '  %copy-start = (f32[256]{0:T(128)S(1)}, f32[256]{0}, u32[]) copy-start(%a)',
    '  %copy-done = f32[256]{0:T(128)S(1)} copy-done(%copy-start)',
    '  %near = f32[256]{0:T(128)S(1)} negate(%copy-done)',
    '  %r = (f32[256]{0}, bf16[64]{0}) all-reduce(%a, %b), to_apply=%add',
    '  %start = (f32[64]{0}, f32[256]{0}) all-gather-start(%near), dimensions={0}',
    '  ROOT %done = f32[256]{0} all-gather-done(%start)',
    '}',
  ]
  text = '\n'.join(lines)
  assert hlo.collectives(text) == {
    'all-gather': {'count': 1, 'bytes': 1024},
    'all-reduce': {'count': 1, 'bytes': 1024 + 128},
  }
  sizes = {k.name: k.bytes for k in hlo.kernels(text)}
  assert sizes['copy-done'] == 1024 and sizes['near'] == 0  # read once, into other memory


def test_buffers_as_xla_dumps_them():
  text = (
    'BufferAssignment:\n'
    'allocation 0: size 16, parameter 3, shape |f32[4]| at ShapeIndex {}, maybe-live-out:\n'
    ' value: <1 p @0> (size=16,offset=0): f32[4]\n'
    'allocation 1: size 5, parameter 0, shape |u8[5]| at ShapeIndex {}:\n'
    'allocation 2: size 8, maybe-live-out:\n'
    'allocation 3: size 4, thread-local:\n'
    'allocation 4: size 100, preallocated-temp:\n'
  )
  assert compile_lib.assigned_bytes(text) == {
    'argument_bytes': 21,
    'output_bytes': 24,
    'alias_bytes': 16,
    'temp_bytes': 100,
    'code_bytes': 0,
  }


def test_what_a_compiler_refuses_is_read():
  error = RuntimeError(
    'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.40G of 15.75G hbm. Total '
    'hbm usage >= 18.65G:\n  reserved 258.00M'
  )
  found = compile_lib._too_large(error)
  assert found['peak_bytes'] == int(18.65 * 2**30) and found['flop'] is None
  with pytest.raises(UsageError, match='the compiler says INTERNAL: 3.0G'):
    compile_lib._too_large(RuntimeError('INTERNAL: 3.0G'))


# ---- added up


def told(**values):
  """Figures of a step."""
  figures = dict.fromkeys(compile_lib.DESCRIBED) | {'peak_bytes': 10, 'collectives': {}}
  return figures | values


def test_regularizers_count_once_in_their_interval():
  config = configuration(ROOT, **{'loss.pl_interval': 4, 'loss.r1_interval': 16})
  steps = build.steps(config, 0, None)
  seconds = {'g': 1.0, 'g_reg': 2.0, 'd': 3.0, 'd_reg': 8.0}
  figures = {name: told(seconds_roofline=value) for name, value in seconds.items()}
  assert plan.lazily(seconds, steps) == 1 + 2 / 4 + 3 + 8 / 16
  config.total_kimg = 8.0  # 1000 minibatches of 8
  found = plan.rates('roofline', config, figures, steps, 3)
  assert found['seconds_per_image_roofline'] == 5 / 8 and found['laziness_roofline'] == 14 / 5
  assert found['images_per_sec_roofline'] == 8 / 5
  assert found['days_roofline'] == pytest.approx(5000 / 86400)
  assert found['device_hours_roofline'] == pytest.approx(5000 / 3600 * 3)
  assert set(plan.rates('model', config, figures, steps, 3).values()) == {None}


def test_describe_adds_kernels_and_says_what_bounds_them():
  gpu = compile_lib.describe(LINES, Target('h100', 'h100'))
  assert gpu['kernels'] == 1 + 1 + 7 + 1 and gpu['cycles'] is None
  sizes = [240 * 4, 201 * 4, *[6400] * 7, 4 * (80 + 800 + 1000)]
  seconds = [size / 3352320000000 for size in sizes]
  seconds[-1] = max(seconds[-1], 16000 / 66.9e12)
  assert gpu['bytes'] == sum(sizes) and gpu['seconds_roofline'] == pytest.approx(sum(seconds))
  # XLA's estimate of the fusion that has one, the roofline of the others.
  assert gpu['seconds_model'] == pytest.approx(sum(seconds) - seconds[0] + 1.5e-6)
  assert compile_lib.describe(LINES, Target('a100', 'a100'))['seconds_model'] is None
  # Bound by its products: 8 times the columns, and so on, of few bytes.
  large = call_of_cudnn('Forward', '8,64,64,512', '512,3,3,512', '8,64,64,512', 'size=3x3')
  assert compile_lib._roofline(large, Target('h100', 'h100')) == large.flop / 989.4e12
  tpu = compile_lib.describe(
    LINES.replace('"exec_time_us"', '"estimated_cycles":"3000","x"'), Target('v5e:2x2', 'v5e')
  )
  assert tpu['cycles'] == 3000 and tpu['seconds_model'] == 2e-6 and tpu['kernels'] == 1


def test_what_a_time_lacks_is_counted():
  """Fusions that a TPU's compiler doesn't estimate, and loops of unknown length."""
  v5e = Target('v5e:2x2', 'v5e')
  said = '"estimated_cycles":"3000"'
  text = LINES.replace('"exec_time_us":1.5', said)
  lacks = compile_lib.describe(text, v5e)
  assert (lacks['kernels_unestimated'], lacks['loops_unknown']) == (1, 0)
  whole = text.replace('calls=%updated', f'calls=%updated, backend_config={{{said}}}')
  assert compile_lib.describe(whole, v5e)['kernels_unestimated'] == 0
  endless = compile_lib.describe(whole.replace('known_trip_count', 'x'), v5e)
  assert endless['loops_unknown'] == 1
  assert compile_lib.describe(LINES, Target('h100', 'h100'))['kernels_unestimated'] == 0
  steps = {'g': told(**lacks), 'd': told(**endless)}
  lines = list(plan._left_out({'steps': steps}))
  assert [line.rpartition(': ')[2] for line in lines] == ['g 1', 'd 1']
  assert all(line.startswith('warning: ') and 'a lower bound' in line for line in lines)
  assert not list(plan._left_out({'steps': {'g': told()}}))


def test_a_plan_says_whether_it_fits(monkeypatch):
  compiled = dict.fromkeys(('argument_bytes', 'temp_bytes'), 5)
  sent = {'all-reduce': {'count': 2, 'bytes': 9_000_000}}
  monkeypatch.setattr(
    compile_lib.Steps,
    'figures',
    lambda self, name: told(
      seconds_compiling=0, seconds_roofline=0.1, peak_bytes=16 * 2**30, flop=8e9, bytes=8e6,
      collectives=sent, **compiled,
    ),
  )  # fmt: skip
  found = jax.devices()[:1]
  config = configuration(ROOT)
  target = Target('v5e:1x1', 'v5e')
  lines = []
  result = plan.make(config, target, found, False, lines.append)
  assert result['fits'] is False and lines[0] == 'g: known already, 16.00 GiB'
  text = plan.table(config, result)
  assert 'memory: 16.00 of 15.75 GiB a device: DOES NOT FIT' in text and '2: 9 MB' in text
  # 2.3125 steps of a minibatch of 8, each of 8 GFLOP
  assert result['flop_per_image'] == 2.3125e9 and result['images_per_sec'] == 8 / 0.23125
  assert result['seconds_collectives'] == pytest.approx(2.3125 * 2 * 9e6 / 200e9)
  assert plan.make(config, Target('v6e:1x1', 'v6e'), found, False, lines.append)['fits'] is True


# ---- the largest that fits


@pytest.mark.parametrize('limit', [0, 11, 29, 30, 31, 145, 500, 1000, 2074, 10**6])
@pytest.mark.parametrize('start', [0, 1, 7, 255])
def test_search_finds_where_it_no_longer_fits_with_few_compiles(limit, start):
  """Memory of 10 + 2 a size, with a step in it, and up and down by 2 % as compilers have it."""
  asked = []

  def need(size):
    return (10 + 2 * size + (6 if size > 64 else 0)) * (1.02 if size % 12 == 0 else 1)

  def peak(size):
    asked.append(size)
    return need(size)

  sizes = range(4, 1025, 4)
  index = largest.search(sizes, peak, limit, start)
  if index is None:
    assert limit < need(4)
  else:
    assert need(sizes[index]) <= limit
    assert sizes[index] == 1024 or need(sizes[index + 1]) > limit
  assert len(asked) == len(set(asked)) <= 12


def test_candidates_pass_the_checks():
  config = configuration(ROOT, batch=48, **{'d.mbstd_group_size': 4, 'loss.pl_shrink': 3})
  assert largest.candidates(config, 'microbatch', 2) == [12, 24, 48]
  assert list(largest.candidates(config, 'batch', 8))[:2] == [24, 48]
  for size in largest.candidates(config, 'microbatch', 2):
    config.microbatch = size
    checks.check(config)
    checks.check_devices(config, [types.SimpleNamespace(platform='cpu')] * 2)


def test_largest_checks_all_steps_at_the_answer(monkeypatch):
  """g_reg needs most at the configured size, d beyond it; remat halves it."""

  def figures(self, name):
    images = self.config.microbatch or self.steps.stage.batch
    need = {'g_reg': 100 + images, 'd': 4 * images}.get(name, 0)
    return told(peak_bytes=need // 2 if self.config.g.remat == self.config.d.remat == 16 else need)

  monkeypatch.setattr(compile_lib.Steps, 'figures', figures)
  # What a schedule of growth says is that of the last stage, and no other.
  config = configuration(
    ROOT, batch=16, **{'g.architecture': 'revised', 'd.architecture': 'revised'}
  )
  config.update_from_flattened_dict({'grow.start_res': 4, 'grow.batch': ((4, 32), (8, 64))})
  steps = compile_lib.Steps(config, LOCAL, jax.devices()[:1])
  start = {name: steps.figures(name) for name in ('g', 'g_reg', 'd', 'd_reg')}
  start['g_reg']['peak_bytes'] = 10**6
  lines = []
  found = largest.largest(steps, start, 200, lines.append)
  values = [(x['field'], x['remat'], x['value'], x['peak_bytes']) for x in found]
  assert values == [
    ('batch', False, 48, 192),
    ('microbatch', False, 32, 132),
    ('batch', True, 100, 200),
    ('microbatch', True, 64, 128),
  ]
  assert largest.line(found[2]).endswith('fits with g.remat and d.remat of 16: 100 (0.00 GiB)')
  most = largest.largest(steps, start, 10**6, lines.append)[0]
  assert largest.line(most) == 'the largest batch that fits: 1024 or more (0.00 GiB)'
  assert largest.largest(steps, start, None, lines.append) == []
  assert largest.line(largest.largest(steps, start, 1, lines.append)[0]) == 'no batch fits'


# ---- with the compilers, where they are installed


def is_missing(package):
  try:
    importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return True
  return False


def planned_elsewhere(device, count):
  """(figures of d, bytes of temporaries and arguments by its whole compile), by another process.

  JAX looks for the compilers' plugins once, and then without the CPU's alone it fails.
  """
  code = (
    'import json\n'
    'from sg2jax.planning import compile as compile_lib, devices\n'
    'from tests.runs import ROOT, configuration\n'
    f'target, found = devices.resolve(devices.parse({device!r}, {count}))\n'
    'steps = compile_lib.Steps(configuration(ROOT), target, found)\n'
    "figures = steps.figures('d')\n"
    "real = steps.lower('d').compile().memory_analysis()\n"
    'sizes = [real.temp_size_in_bytes, real.argument_size_in_bytes]\n'
    'print(json.dumps([len(found), figures, sizes]))\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path])},
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(is_missing('jax-cuda13-plugin'), reason='needs requirements-plan.txt')
def test_a_gpu_that_is_not_here(cache):
  """As soon as buffers are assigned, the sizes are those of the whole compile.

  The code of that needs ptxas, as of the package nvidia-cuda-nvcc.
  """
  count, figures, sizes = planned_elsewhere('h100', 2)
  assert count == 2 and [figures['temp_bytes'], figures['argument_bytes']] == sizes
  assert figures['kernels'] > 50 and figures['seconds_model'] >= figures['seconds_roofline'] > 0
  assert figures['collectives']['all-reduce']['bytes'] > 0


@pytest.mark.slow
@pytest.mark.skipif(is_missing('libtpu'), reason='needs requirements-plan.txt')
def test_tpus_that_are_not_here(cache):
  count, figures, sizes = planned_elsewhere('v5e:2x2', 0)
  assert count == 4 and [figures['temp_bytes'], figures['argument_bytes']] == sizes
  assert figures['cycles'] > 0 and figures['seconds_model'] == figures['cycles'] / 1.5e9
  assert figures['flop'] > 0 and figures['collectives']['all-reduce']['count'] > 0
