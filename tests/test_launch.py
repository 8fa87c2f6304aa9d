"""launch/: shellcheck; what its scripts run, by fake gcloud, sbatch, kubectl and so on that record
their arguments; after which exit codes they run it again.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests import runs
from tests.fake_commands import Fakes

LAUNCH = runs.ROOT / 'launch'
SCRIPTS = [
  *sorted(LAUNCH.glob('*.sh')),
  LAUNCH / 'slurm.sbatch',
  *sorted(LAUNCH.glob('kubernetes/*.sh')),
]
AGAIN = (75, 76, 134, 137, 139, 143)  # exit codes after which the same command is to run again
FINAL = (0, 1, 2, 3, 4, 5, 6, 7, 128, 130)
COMMAND = [
  'python',
  '-m',
  'sg2jax.main',
  "--workdir=it's a $HOME & 100% \\name",
  '--config=c.py:256',
]
TPU = ['--name=pod', '--zone=us-east1-d', '--project=mine']
KUBERNETES = ['kubernetes/run.sh', '--name=ab', '--image=here/sg2jax:1', '--nodes=2', '--claim=c']


@pytest.fixture
def fakes(tmp_path):
  folder = tmp_path / 'fakes'
  folder.mkdir()
  found = Fakes(folder)
  for name in ('gcloud', 'sbatch', 'srun', 'scontrol', 'kubectl'):
    found.add(name)
  return found


# ---- all scripts


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(path):
  # Beside Python, or wherever else it was installed.
  places = f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}'
  shellcheck = shutil.which('shellcheck', path=places)
  assert shellcheck, 'shellcheck is missing: pip install -r requirements-dev.txt'
  done = subprocess.run([shellcheck, '-x', path], cwd=runs.ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout
  assert os.access(path, os.X_OK) or path.name == 'slurm.sbatch'


@pytest.mark.parametrize(
  'path', [path for path in SCRIPTS if path.name != 'common.sh'], ids=lambda path: path.name
)
def test_help_says_how_and_mistakes_are_named(fakes, path):
  name = str(path.relative_to(LAUNCH))
  out, _ = fakes.run(name, '--help')
  assert f'launch/{name}' in out and '--dry-run' in out and '#SBATCH' not in out
  given = ['--what=1'] if name != 'slurm.sbatch' else []  # what it doesn't know is sbatch's
  _, err = fakes.run(name, *(['create'] if name == 'tpu_pod.sh' else []), *given, code=2)
  assert ('--what=1' in err or 'COMMAND' in err) and '--help' in err
  assert not fakes.calls


@pytest.mark.parametrize(
  'command',
  [
    ['tpu_pod.sh', 'create', *TPU, '--type=v4-16'],
    ['tpu_pod.sh', 'create', *TPU, '--type=v6e-8', '--spot', '--queued'],
    ['tpu_pod.sh', 'setup', *TPU],
    ['tpu_pod.sh', 'run', *TPU, *COMMAND],
    ['tpu_pod.sh', 'logs', *TPU, '--worker=3'],
    ['tpu_pod.sh', 'status', *TPU, '--queued'],
    ['tpu_pod.sh', 'delete', *TPU],
    ['tpu_pod.sh', 'delete', *TPU, '--queued'],
    [*KUBERNETES, *COMMAND],
    [*KUBERNETES, '--namespace=team', 'echo', '@NAME@', '"$(X)"'],
  ],
  ids=lambda command: '-'.join(x for x in command[:4] if '=' not in x),
)
def test_dry_run_prints_what_is_run(fakes, command):
  """What it prints, pasted into a shell, is recorded as the same calls as without --dry-run."""
  fakes.add('gcloud', 'if [[ $3 == queued-resources && $4 == describe ]]; then echo ACTIVE; fi')
  fakes.run(*command)
  calls = fakes.calls
  assert calls
  fakes.forget()
  place = 2 if command[0] == 'tpu_pod.sh' else 1
  out, _ = fakes.run(*command[:place], '--dry-run', *command[place:])
  assert not fakes.calls
  fakes.run('bash', '-c', f'set -e\n{out}')
  assert fakes.calls == calls


# ---- which exit codes


def test_exit_codes_to_run_again_after(fakes):
  code = 'source launch/common.sh; worth_restarting "$1"'
  for number in AGAIN + FINAL:
    fakes.run('bash', '-c', code, '-', str(number), code=int(number not in AGAIN))


def test_pauses_double_up_to_five_minutes(fakes):
  out, _ = fakes.run(
    'bash', '-c', 'source launch/common.sh; for n in {0..9}; do backoff "$n"; done'
  )
  assert out.split() == '5 10 20 40 80 160 300 300 300 300'.split()


def test_slurm_queues_again_after_those_codes_alone(fakes):
  fakes.add('srun', 'exit "$CODE"')
  for code in AGAIN + FINAL:
    fakes.forget()
    fakes.run('slurm.sbatch', *COMMAND, code=code, CODE=str(code), SLURM_JOB_ID='7')
    again = [['scontrol', 'requeue', '7']] if code in AGAIN else []
    step = ['srun', '--label', '--kill-on-bad-exit=0', '--wait=120', *COMMAND]
    assert fakes.calls == [step, *again]
  fakes.forget()
  env = {'SLURM_JOB_ID': '7', 'SLURM_RESTART_COUNT': '3', 'SG2JAX_RESTARTS': '3', 'CODE': '75'}
  _, err = fakes.run('slurm.sbatch', *COMMAND, code=75, **env)
  assert len(fakes.calls) == 1 and 'given up after 3 restarts' in err


def test_slurm_submits_itself_with_the_options_of_sbatch(fakes):
  options = ['--nodes=2', '--comment=a b']
  fakes.run('slurm.sbatch', *options, *COMMAND)
  submitted = ['sbatch', *options, 'launch/slurm.sbatch', *COMMAND]
  assert fakes.calls == [submitted]
  fakes.forget()
  out, _ = fakes.run('slurm.sbatch', '--dry-run', *options, *COMMAND)
  assert not fakes.calls
  fakes.run('bash', '-c', f'JOB_ID=7\n{out}')
  step = ['srun', '--label', '--kill-on-bad-exit=0', '--wait=120', *COMMAND]
  assert fakes.calls == [submitted, step, ['scontrol', 'requeue', 'JOB_ID']]
  text = (LAUNCH / 'slurm.sbatch').read_text()
  for line in ('--requeue', '--signal=TERM@180', '--open-mode=append'):
    assert f'#SBATCH {line}\n' in text


@pytest.mark.parametrize(
  'tasks, gpus, ids',
  [
    (2, {'SLURM_GPUS_ON_NODE': '4'}, '0,1,2,3'),
    (2, {'SLURM_GPUS_PER_NODE': 'h100:2'}, '0,1'),
    (8, {'SLURM_GPUS_ON_NODE': '4'}, 'none'),
    (2, {}, 'none'),
  ],
)
def test_a_slurm_task_takes_all_gpus_of_its_node_if_it_is_alone_there(fakes, tasks, gpus, ids):
  fakes.add('srun', 'echo "${JAX_LOCAL_DEVICE_IDS:-none} $SRUN_CPUS_PER_TASK"')
  env = {'SLURM_NTASKS': str(tasks), 'SLURM_JOB_NUM_NODES': '2', 'SLURM_CPUS_PER_TASK': '32'}
  out, _ = fakes.run('slurm.sbatch', 'x', SLURM_JOB_ID='7', **env, **gpus)
  assert out.split() == [ids, '32']


# ---- Kubernetes


def test_jobset(fakes):
  fakes.run(*KUBERNETES, *COMMAND, 'now: "$(X)" # @NAME@')
  ((*command, text),) = fakes.calls
  assert command == ['kubectl', 'apply', '--filename=-']
  found = yaml.safe_load(text)
  (job,) = found['spec']['replicatedJobs']
  job = job['template']['spec']
  (container,) = job['template']['spec']['containers']
  # What Kubernetes makes of arguments: $$ is $.
  args = [word.replace('$$', '$') for word in container['args']]
  assert args == [*COMMAND, 'now: "$(X)" # @NAME@']
  env = {x['name']: x.get('value') for x in container['env']}
  assert env['JAX_COORDINATOR_ADDRESS'] == 'ab-train-0-0.ab:8476'
  assert env['JAX_NUM_PROCESSES'] == '2' == str(job['parallelism']) == str(job['completions'])
  assert (container['image'], container['resources']) == (
    'here/sg2jax:1',
    {'limits': {'nvidia.com/gpu': 8}},
  )
  # Pods start anew only all together, and only after codes for which the scripts do the same.
  count, fail = job['podFailurePolicy']['rules']
  assert (count['action'], fail['action'], job['backoffLimit']) == ('Count', 'FailJob', 0)
  assert job['template']['spec']['restartPolicy'] == 'Never'
  assert found['spec']['failurePolicy']['rules'][0]['onJobFailureReasons'] == ['PodFailurePolicy']
  code = 'source launch/common.sh; for c in {1..255}; do ! worth_restarting $c || echo $c; done'
  assert fail['onExitCodes']['values'] == [int(x) for x in fakes.run('bash', '-c', code)[0].split()]
  # The shell in the container waits, then becomes the command.
  fakes.add('sleep')
  for restarts, seconds in ((0, 0), (1, 5), (3, 20), (6, 160), (9, 300)):
    fakes.forget()
    command = [*container['command'], 'printf', '%s|', 'a b', '$x']
    assert fakes.run(*command, RESTARTS=str(restarts))[0] == 'a b|$x|'
    assert fakes.calls == [['sleep', str(seconds)]]


@pytest.mark.parametrize('name', ['-a', 'A', 'a_b', 'a' * 43, ''])
def test_jobset_names_that_kubernetes_refuses(fakes, name):
  fakes.run('kubernetes/run.sh', f'--name={name}', '--image=x', 'true', code=2)


# ---- gpu.sh


def counting(tmp_path, *actions):
  """A command that does the first action at its first run, the second at its second, ..."""
  file = tmp_path / 'count'
  file.write_text('0')
  code = f'n=$(<"{file}"); echo $((n + 1)) >"{file}"; case $n in\n'
  code += ''.join(f'{n}) {action} ;;\n' for n, action in enumerate(actions))
  return ['bash', '-c', f'{code}*) exit 99 ;; esac']


def test_gpu_runs_the_same_command_until_it_is_done(fakes, tmp_path):
  fakes.add('sleep')
  _, err = fakes.run('gpu.sh', *counting(tmp_path, 'exit 76', 'kill -9 $$', 'exit 75', 'exit 0'))
  assert fakes.calls == [['sleep', '5'], ['sleep', '10'], ['sleep', '20']]
  assert 'exit code 137: the same command again in 10 s, restart 2 of 20' in err


def test_gpu_ends_at_its_limit_and_at_final_codes(fakes, tmp_path):
  fakes.add('sleep')
  fakes.run('gpu.sh', '--restarts=2', *counting(tmp_path, *['exit 76'] * 4), code=76)
  assert (tmp_path / 'count').read_text() == '3\n'
  for code in FINAL[1:]:
    fakes.run('gpu.sh', *counting(tmp_path, f'exit {code}'), code=code)
  assert len(fakes.calls) == 2


def test_gpu_with_a_process_a_gpu(fakes):
  out, _ = fakes.run('gpu.sh', '--dry-run', '--processes=2', *COMMAND)
  out, _ = fakes.run('bash', '-c', out.replace('sh --gpu', 'sh --dry-run --gpu'))
  assert out.count('JAX_LOCAL_DEVICE_IDS=1 python') == 1 == out.count('JAX_PROCESS_ID=1 ')


# ---- TPU

# A slice with one machine: a folder that its preemption deletes. $FAKES/state is its state.
CLOUD = """
machine=$FAKES/machine
case "$3 $4" in
  *' create') echo READY >"$FAKES/state"; mkdir -p "$machine/home" ;;
  *' delete') rm -rf "$FAKES/state" "$machine" ;;
  *' describe')
    cat "$FAKES/state" 2>/dev/null || { echo 'ERROR: NOT_FOUND: no such' >&2; exit 1; }
    ;;
  'tpu-vm scp') cp "$6" "$5" "$machine/home/" ;;
  'tpu-vm ssh')
    [[ $(<"$FAKES/state") == READY ]] || exit 255
    for flag in "$@"; do
      if [[ $flag == --command=* ]]; then text=${flag#*=}; fi
    done
    export HOME=$machine/home
    cd "$HOME"
    text=${text//\\/opt\\/sg2jax/"$machine"}
    bash -c "${text/-w 120/-w 0.2}"
    ;;
esac
"""


needs_linux = pytest.mark.skipif(
  not (shutil.which('flock') and shutil.which('fuser')), reason='no TPU VM: lacks flock or fuser'
)


@needs_linux
@pytest.mark.parametrize('queued', [[], ['--queued']])
def test_babysit_goes_on_after_a_preemption_and_a_lost_process(fakes, tmp_path, queued):
  cloud = CLOUD.replace('READY', 'ACTIVE') if queued else CLOUD
  fakes.add('gcloud', cloud)
  fakes.add('sudo', 'mkdir -p "$FAKES/machine/source"')  # in the place of tpu_startup.sh
  fakes.add('sleep', '/bin/sleep 0.05')
  gone = 'SUSPENDED' if queued else 'PREEMPTED'
  command = counting(
    tmp_path,
    f'echo {gone} >"$FAKES/state"; exit 75',
    '/bin/sleep 100 & exit 76',  # what it leaves behind is in the way, and has to go
    'kill -9 $$',
    'exit 0',
  )
  options = [*TPU, '--type=v5litepod-16', '--spot', *queued, '--every=0']
  _, err = fakes.run('tpu_pod.sh', 'babysit', *options, *command)
  assert (tmp_path / 'count').read_text() == '4\n'
  assert 'was preempted' in err and 'exit code 76' in err and 'exit code 137' in err
  calls = [call for call in fakes.calls if call[0] == 'gcloud']
  made = [call[4] for call in calls if call[4] in ('create', 'delete', 'scp')]
  assert made == ['create', 'scp', 'delete', 'create', 'scp']
  # Each of them is in --dry-run, which doesn't need to know how often.
  out, _ = fakes.run('tpu_pod.sh', 'babysit', '--dry-run', *options, *command)
  fakes.forget()
  fakes.add('gcloud')
  fakes.run('bash', '-c', out)
  printed = [call for call in fakes.calls if call[0] == 'gcloud']
  assert all(call in printed for call in calls) and all(call in calls for call in printed)
  # Done is done: nothing is started again.
  fakes.add('gcloud', cloud)
  _, err = fakes.run('tpu_pod.sh', 'babysit', *options, *command)
  assert 'done' in err and (tmp_path / 'count').read_text() == '4\n'


@needs_linux
def test_babysit_ends_at_its_limit_and_at_final_codes(fakes, tmp_path):
  fakes.add('gcloud', CLOUD)
  fakes.add('sudo', 'mkdir -p "$FAKES/machine/source"')
  fakes.add('sleep', '/bin/sleep 0.05')
  options = [*TPU, '--type=v4-8', '--every=0', '--restarts=1']
  fakes.run('tpu_pod.sh', 'babysit', *options, *counting(tmp_path, *['exit 76'] * 3), code=76)
  assert (tmp_path / 'count').read_text() == '2\n'
  # How it ended before is no reason not to try, once.
  command = counting(tmp_path, 'exit 3', 'exit 4')
  fakes.run('tpu_pod.sh', 'babysit', *options, *command, code=3)
  fakes.run('tpu_pod.sh', 'babysit', *options, *command, code=4)


@needs_linux
def test_run_refuses_a_machine_that_runs_something(fakes):
  fakes.add('gcloud', CLOUD)
  (fakes.folder / 'state').write_text('READY\n')
  home = fakes.folder / 'machine' / 'home'
  home.mkdir(parents=True)
  (home.parent / 'source').mkdir()
  log = home / 'sg2jax.log'

  def wait_for(file):
    deadline = time.time() + 20
    while not (file.exists() and file.read_text()):
      assert time.time() < deadline
      time.sleep(0.02)

  fakes.run('tpu_pod.sh', 'run', *TPU, 'false')
  wait_for(home / 'sg2jax.code')
  subprocess.run(['flock', home / 'sg2jax.lock', 'true'], check=True)  # its shell ended
  assert fakes.run('tpu_pod.sh', 'status', *TPU)[0].split()[-1] == '1'
  fakes.run('tpu_pod.sh', 'run', *TPU, 'bash', '-c', 'echo $$; exec sleep 100')
  wait_for(log)
  assert fakes.run('tpu_pod.sh', 'status', *TPU)[0].split()[::2] == ['READY', 'running']
  _, err = fakes.run('tpu_pod.sh', 'run', *TPU, 'true', code=1)
  assert 'a command is running here' in err
  fakes.run('tpu_pod.sh', 'setup', *TPU, code=1)
  os.kill(int(log.read_text()), signal.SIGKILL)
  wait_for(home / 'sg2jax.code')
  assert fakes.run('tpu_pod.sh', 'status', *TPU)[0].split()[-1] == '137'


@needs_linux
def test_tpu_startup_installs_once(fakes, tmp_path):
  env = {'SG2JAX_HOME': str(tmp_path / 'opt')}
  fake_python = fakes.folder / 'python3.13'
  fakes.add(
    'python3.13',
    'if [[ $2 == venv ]]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi',
  )
  source = tmp_path / 'source of mine.tar.gz'
  content = tmp_path / 'content'
  content.mkdir()
  (content / 'requirements.txt').write_text('')
  subprocess.run(['tar', '-czf', source, '-C', content, '.'], check=True)
  fakes.run('tpu_startup.sh', str(source), **env)
  calls = fakes.calls
  assert [' '.join(call[1:4]) for call in calls] == [
    ' '.join(calls[0][1:4]),  # is it new enough?
    f'-m venv {env["SG2JAX_HOME"]}/venv',
    '-m pip install',
    '-m pip install',
  ]
  assert calls[2][-1] == 'jax[tpu]' and calls[3][-4:] == ['-r', 'requirements.txt', '-e', '.[gcs]']
  assert (tmp_path / 'opt/source/requirements.txt').exists() and fake_python.exists()
  fakes.forget()
  fakes.run('tpu_startup.sh', str(source), **env)
  assert [call[-1] for call in fakes.calls] == ['jax[tpu]', '.[gcs]']
  # What --dry-run prints does the same.
  shutil.rmtree(tmp_path / 'opt')
  fakes.forget()
  out, _ = fakes.run('tpu_startup.sh', '--dry-run', str(source), **env)
  assert not (tmp_path / 'opt').exists()
  fakes.run('bash', '-c', f'set -e\n{out}')
  assert [call for call in fakes.calls if '-c' not in call] == calls[1:]
  assert (tmp_path / 'opt/source/requirements.txt').exists()
