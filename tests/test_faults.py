"""The short form of the table of faults."""

import os
import subprocess
import sys

from tests.runs import ROOT


def test_nothing_is_lost():
  run = subprocess.run(
    [sys.executable, '-m', 'tests.faults', '--short', '--jobs=1'],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert run.returncode == 0, run.stdout + run.stderr
  *table, last = run.stdout.splitlines()
  assert last.endswith(' survived, 0 lost') and int(last.split()[0]) > 40
  assert any(line.startswith('damaged files') for line in table)
