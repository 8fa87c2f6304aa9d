"""`sg2jax TOOL`, and the flags that several tools share."""

import json
import os
import re
import subprocess
import sys
import types

from absl import flags
from absl.testing import flagsaver
import pytest

from sg2jax import __main__, build, sharding
from sg2jax.faults import UsageError
from sg2jax.lab import bench as lab
from sg2jax.tools import bench
from sg2jax.tools import flags as shared
from tests.runs import ROOT, call, configuration


def run_main(monkeypatch, *args):
  monkeypatch.setattr(sys, 'argv', ['sg2jax', *args])
  __main__.main()


def test_all_tools_are_listed_with_a_line_each(monkeypatch, capsys):
  run_main(monkeypatch)
  lines = capsys.readouterr().out.splitlines()[2:]
  names = [line.split()[0] for line in lines]
  assert names[0] == 'train' and {'generate', 'evaluate', 'minipaper', 'bench'} < set(names)
  assert not {'flags', '__init__', 'sheets'} & set(names)
  for name, line in zip(names, lines):
    summary = line.split(maxsplit=1)[1]
    assert summary[0].isupper() and summary.endswith('.') and len(line) <= 110, f'{name}: {line}'


def test_an_unknown_tool_is_2_and_names_the_others(monkeypatch, capsys):
  with pytest.raises(SystemExit) as e:
    run_main(monkeypatch, 'genrate')
  assert (
    e.value.code == 2
    and "genrate' is unknown; choose from train, adversarial, analyze" in capsys.readouterr().err
  )


@pytest.mark.smoke
def test_a_tool_runs_by_its_name(tmp_path):
  """From anywhere, with its own flags in --help, and its own faults."""
  env = os.environ | {'PYTHONPATH': str(ROOT), 'SG2JAX_WEIGHTS': str(tmp_path)}
  run = lambda *args: subprocess.run(
    [sys.executable, '-m', 'sg2jax', 'fetch_weights', *args],
    cwd=tmp_path,
    env=env,
    capture_output=True,
    text=True,
  )
  done = run('--help')
  assert done.returncode == 0 and '--dest' in done.stdout and 'inception' not in done.stderr
  done = run('resnet')
  assert done.returncode == 2 and done.stderr.startswith('fetch_weights: NAME=resnet is unknown')


def test_a_missing_package_is_named(monkeypatch, capsys):
  """Also of what is imported before anything of a tool runs."""
  monkeypatch.setitem(sys.modules, 'imageio_ffmpeg', None)
  # As if nothing had imported it yet.
  monkeypatch.delitem(sys.modules, 'sg2jax.tools.videos', raising=False)
  monkeypatch.delattr('sg2jax.tools.videos', raising=False)
  monkeypatch.setattr(sys, 'path', sys.path[:])
  with pytest.raises(ModuleNotFoundError) as e:
    run_main(monkeypatch, 'video', '--help')
  with pytest.raises(SystemExit) as end:
    sys.excepthook(e.type, e.value, e.tb)
  err = capsys.readouterr().err
  assert end.value.code == 2 and err.startswith('video: import of imageio_ffmpeg')
  assert 'pip install "sg2jax[train,eval,text,video,view]"' in err


def test_configurations_find_each_other_from_where_the_user_stands(monkeypatch, tmp_path):
  """The installed command has its own folder in sys.path, not the user's."""
  monkeypatch.setattr(sys, 'path', [p for p in sys.path if p not in ('', str(ROOT))])
  monkeypatch.setattr(__main__.runpy, 'run_module', lambda name, **_: ran.append(name))
  monkeypatch.chdir(tmp_path)
  ran = []
  run_main(monkeypatch, 'train', '--config=x.py')
  assert ran == ['sg2jax.main'] and sys.path[0] == str(tmp_path)
  assert sys.argv[1:] == ['--config=x.py']


def test_bench_times_the_input_alone(home, tmp_path, capsys):
  fields = {'resolution': 16, 'batch': 64, 'microbatch': 32, 'data.dir': home / 'data'}
  flags_ = [f'--config.{name}={value}' for name, value in fields.items()]
  where = tmp_path / 'input.json'
  for rounds, is_cold in ((2, True), (30, False)):  # more than the 1,797 digits
    call(
      bench,
      '--config=configs/quickstart.py',
      *flags_,
      '--input',
      f'--rounds={rounds}',
      f'--json={where}',
    )
    result = json.loads(where.read_text())
    assert result['img_per_sec_warm'] > 0 and (result['img_per_sec_cold'] is not None) == is_cold
    assert (result['batch'], result['microbatch'], result['data']) == (64, 32, 'digits')
  assert 'digits, 16x16, batch 64 in rounds of 32' in capsys.readouterr().out


def test_bench_times_what_augments(quick_compile, monkeypatch):
  """However fast p would move, and though it begins at 0, where nothing is computed."""
  seen = []

  def interleaved(functions, rounds):
    seen.extend(float(functions['d']()[1]['augment_p']) for _ in range(rounds))
    return dict.fromkeys(functions, [1.0])

  monkeypatch.setattr(lab, 'interleaved', interleaved)
  config = configuration(
    ROOT,
    **{
      'loss.pl_weight': 0.0,
      'loss.r1_gamma': 0.0,
      'augment.pipeline': 'blit',
      'augment.interval': 1,
      'augment.kimg': 0.01,
    },
  )
  figures = lab.measure(config, 3)
  assert seen == [0.5] * 3 and figures['augment_p'] == 0.5
  assert ', augmented with p = 0.5\n' in lab.table(config, figures)
  config.augment.p = 0.25
  mesh = sharding.make_mesh()
  shapes = build.abstract_state(config, 0, None)
  monkeypatch.setattr(build, 'init_state', lambda *_: shapes)
  assert lab._begin(config, mesh)[2] == 0.25
  config.augment.update({'pipeline': '', 'p': 0.0})
  assert lab._begin(config, mesh)[2] is None


# ---- flags that several tools share


def define_all():
  """One of each kind of shared flag."""
  shared.define_checkpoint()
  shared.define_out('results')
  shared.define_seed('Of it.')
  shared.define_batch()
  shared.define_finite('lr', 0.1, 'Rate.', lower_bound=0)
  shared.define_weights('inception=FILE')
  shared.define_seeds('seeds', '0-2', 'Numbers.')
  shared.define_psis('Truncation.')
  shared.define_labels('images', 'drawn')


TOOL_WITH_ALL = types.SimpleNamespace(
  __name__='tool', define_flags=define_all, main=lambda argv: flags.FLAGS.flag_values_dict()
)


@pytest.mark.parametrize(
  'args, said',
  [
    ('', '--checkpoint is missing; name a workdir, as in --checkpoint=runs/quickstart'),
    ('--checkpoint=', '--checkpoint is missing'),
    ('--checkpoint=r --seed=-1', '--seed=-1: -1 is not'),
    ('--checkpoint=r --seed=4294967296', 'in the range [0, 4294967295]'),
    ('--checkpoint=r --batch=-1', '--batch=-1: -1 is not a non-negative integer'),
    ('--checkpoint=r --lr=nan', '--lr=nan: must be a finite number'),
    ('--checkpoint=r --lr=-1', '--lr=-1: -1.0 is not a non-negative number'),
    ('--checkpoint=r --weights=vgg16', 'must be NAME=PATH, with a NAME of inception'),
    ('--checkpoint=r --weights=vgg=x', 'must be NAME=PATH'),
    ('--checkpoint=r --seeds=3-1', "--seeds=3-1: '3-1' is no seed"),
    ('--checkpoint=r --seeds=4294967296', 'is no seed'),
    ('--checkpoint=r --seeds=', "'' is no seed"),
    ('--checkpoint=r --seeds=3-', "--seeds=3-: '3-' is no seed"),
    ('--checkpoint=r --seeds=0-1000000', 'is no seed'),
    ('--checkpoint=r --seeds=0-99999999999999999999', 'is no seed'),
    ('--checkpoint=r --psi=inf', '--psi=inf: must be finite numbers'),
    ('--checkpoint=r --label=nan,1', '--label=nan,1: must be numbers, as in 1,0,1'),
    (f'--checkpoint=r --out={__file__}', 'is a file; name a folder'),
    ('--checkpoint=r --sed=1', "Unknown command line flag 'sed'. Did you mean: seed"),
  ],
)
def test_shared_flags_name_value_and_rule(args, said):
  with pytest.raises(UsageError, match=re.escape(said)):
    call(TOOL_WITH_ALL, *args.split())


def test_one_psi_is_one_number():
  tool = types.SimpleNamespace(__name__='tool', define_flags=shared.define_psi, main=print)
  with pytest.raises(UsageError, match='--psi=1,0.5: must be one number, such as 0.7'):
    call(tool, '--psi=1,0.5')


def test_help_shows_defaults_as_one_writes_them():
  with flagsaver.flagsaver():
    define_all()
    text = flags.FLAGS.get_help()
  assert "(default: '0-2')" in text


def test_shared_flags_hand_over_values_and_are_defined_again_by_the_next_tool(monkeypatch):
  values = {}
  tool = types.SimpleNamespace(
    __name__='tool',
    define_flags=define_all,
    main=lambda argv: values.update(flags.FLAGS.flag_values_dict(), paths=shared.weights_paths()),
  )
  for _ in range(2):
    call(tool, '--checkpoint=r', '--seeds=3,5-7', '--psi=1,-0.5', '--weights=vgg16=a=b')
    assert values['seeds'] == [3, 5, 6, 7] and values['psi'] == [1, -0.5]
    assert values['paths'] == {'vgg16': 'a=b'} and values['lr'] == 0.1
    assert 'checkpoint' not in flags.FLAGS
