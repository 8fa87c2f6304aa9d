"""Commands that only record how they were called, for the scripts of launch/."""

import os
import pathlib
import subprocess

from tests import runs

# A command that records itself, its arguments and, of kubectl, its input; then does what
# $FAKES/NAME.sh says, if there is such a file.
FAKE = """#!/usr/bin/env bash
name=$(basename "$0")
{
  printf '%s\\0' "$name" "$@"
  if [[ $name == kubectl ]]; then cat; fi
  printf '\\n\\1\\n'
} >>"$FAKES/record"
if [[ -e $FAKES/$name.sh ]]; then source "$FAKES/$name.sh"; fi
"""


class Fakes:
  """A folder of fake commands, first on PATH. `calls`: each call's words since `forget`."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.env = os.environ | {'PATH': f'{folder}:{os.environ["PATH"]}', 'FAKES': str(folder)}
    self.forget()

  def add(self, name, does=''):
    """A fake; does: what it does besides recording, in bash."""
    (self.folder / name).write_text(FAKE)
    (self.folder / name).chmod(0o755)
    (self.folder / f'{name}.sh').write_text(does)

  def forget(self):
    (self.folder / 'record').write_text('')

  @property
  def calls(self):
    text = (self.folder / 'record').read_text()
    calls = [call.split('\0') for call in text.split('\n\1\n')[:-1]]
    return [call if call[-1] else call[:-1] for call in calls]  # there is no input

  def run(self, *command, code=0, **env):
    """Runs a script of launch/ (or bash -c TEXT), checks its exit code; its output and errors."""
    if command[0] != 'bash':
      command = ('bash', f'launch/{command[0]}', *command[1:])
    done = subprocess.run(
      command, cwd=runs.ROOT, env=self.env | env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr
