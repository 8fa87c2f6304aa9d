"""`python -m sg2jax TOOL ...`, installed as `sg2jax TOOL ...`: lists the tools, or runs one."""

import ast
import os
import pathlib
import runpy
import sys

HERE = pathlib.Path(__file__).parent


def tools() -> dict[str, str]:
  """{name: summary} of all that can be run: training, and the files in tools/ that are commands."""
  found = {}
  for file in (HERE / 'main.py', *sorted((HERE / 'tools').glob('*.py'))):
    text = file.read_text()
    if "__name__ == '__main__'" in text:
      # Read and not imported: that would take a second each.
      docstring = ast.get_docstring(ast.parse(text))
      name = 'train' if file.stem == 'main' else file.stem
      found[name] = docstring.partition('\n')[0]
  return found


def main() -> None:
  """Runs the tool that sys.argv names, as `python -m sg2jax.tools.TOOL` does."""
  found = tools()
  name = sys.argv[1] if len(sys.argv) > 1 else '--help'
  if name in found:
    # Configurations import each other from where the user stands, as `python -m` lets them.
    sys.path.insert(0, os.getcwd())
    sys.argv[:2] = [name]
    module = 'main' if name == 'train' else f'tools.{name}'
    runpy.run_module(f'sg2jax.{module}', run_name='__main__', alter_sys=True)
  elif name in ('help', '-h', '--help'):
    print('sg2jax TOOL [--FLAG=VALUE ...]; sg2jax TOOL --help says more. TOOL is\n')
    for name, summary in found.items():
      print(f'  {name:<15}{summary}')
  else:
    print(f'sg2jax: TOOL={name!a} is unknown; choose from {", ".join(found)}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  main()
