"""`python -m sg2jax TOOL ...`, installed as `sg2jax TOOL ...`: lists the tools, or runs one."""

import ast
import difflib
import os
import pathlib
import runpy
import sys

HERE = pathlib.Path(__file__).parent


def tools() -> dict[str, pathlib.Path]:
  """{name: file} of all that can be run: training, and the files in tools/ that are commands."""
  files = sorted((HERE / 'tools').glob('*.py'))
  commands = [file for file in files if "__name__ == '__main__'" in file.read_text()]
  return {'train': HERE / 'main.py'} | {file.stem: file for file in commands}


def summary(file: pathlib.Path) -> str:
  """First line of a file's docstring, read and not imported: that would take a second each."""
  return ast.get_docstring(ast.parse(file.read_text())).partition('\n')[0]


def main() -> None:
  """Runs the tool that sys.argv names, as `python -m sg2jax.tools.TOOL` does."""
  found = tools()
  name = sys.argv[1] if len(sys.argv) > 1 else ''
  if name in found:
    # Configurations import each other from where the user stands, as `python -m` lets them.
    if os.getcwd() not in sys.path and '' not in sys.path:
      sys.path.insert(0, os.getcwd())
    del sys.argv[1]
    module = '.'.join(['sg2jax', *found[name].relative_to(HERE).with_suffix('').parts])
    from sg2jax import cli  # here, as the list below is to come at once

    with cli.exit_codes():  # a package of an extra may be missing
      runpy.run_module(module, run_name='__main__', alter_sys=True)
  elif name in ('', 'help', '-h', '-help', '--help'):
    print('sg2jax TOOL [--FLAG=VALUE ...]; sg2jax TOOL --help says more. TOOL is\n')
    for name, file in found.items():
      print(f'  {name:<15}{summary(file)}')
  else:
    near = difflib.get_close_matches(name, found, 1)
    hint = f'do you mean {near[0]}? ' if near else ''
    print(
      f'sg2jax: TOOL={name!a} is unknown; {hint}choose from {", ".join(found)}', file=sys.stderr
    )
    sys.exit(2)


if __name__ == '__main__':
  main()
