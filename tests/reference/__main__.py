"""`python -m tests.reference DIR`: checks every case of a folder of reference vectors that the code
implements.

What a case is follows from its id (`losses`, and `losses_of_mine` too) or from its field `kind`.
One line per case: sub-cases passed, worst error relative to its tolerance, seconds, ok or FAILED;
below a failed case its sub-cases with the reason. The last line counts cases: a case has passed if
all its sub-cases have. Exit status: 0 no case failed, 1 some did, 2 DIR has no manifest.json or
lacks a case that was asked for.
"""

import argparse
import sys

from tests.reference import (
  cases_augment,
  cases_clip,
  cases_convert,
  cases_detectors,
  cases_edit,
  cases_growing,
  cases_growing_train,
  cases_metrics,
  cases_nets,
  cases_ops,
  cases_styleclip,
  cases_train,
)
from tests.reference.check import kind_of, read_manifest, run_case

CASES = (
  cases_augment.CASES
  | cases_ops.CASES
  | cases_nets.CASES
  | cases_train.CASES
  | cases_growing.CASES
  | cases_growing_train.CASES
  | cases_metrics.CASES
  | cases_detectors.CASES
  | cases_edit.CASES
  | cases_convert.CASES
  | cases_clip.CASES
  | cases_styleclip.CASES
)


def main(argv=None):
  """Runs the checks of the command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m tests.reference',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('dir', metavar='DIR', help='folder with manifest.json and its .npz files')
  parser.add_argument(
    '--float32',
    action='store_true',
    help='run in float32, with those tolerances (default float64). Long trajectories may then '
    'diverge rightly: Adam with beta1 = 0 amplifies rounding of tiny gradients',
  )
  parser.add_argument(
    '--case', action='append', metavar='ID', help='only this case; may be repeated'
  )
  args = parser.parse_args(argv)
  try:
    cases = read_manifest(args.dir)
  except (OSError, ValueError) as e:
    print(f'{args.dir}: no reference vectors: {e}', file=sys.stderr)
    return 2
  unknown = set(args.case or ()) - {case['id'] for case in cases}
  if unknown:
    print(
      f'{args.dir} has no case {", ".join(sorted(unknown))}; it has '
      f'{", ".join(c["id"] for c in cases)}',
      file=sys.stderr,
    )
    return 2
  cases = [case for case in cases if not args.case or case['id'] in args.case]
  reports, skipped = [], []
  for case in cases:
    kind = kind_of(case, CASES)
    if kind is None:
      skipped.append(case['id'])
      continue
    reports.append(run_case(case, args.dir, CASES[kind], args.float32))
    print(reports[-1], flush=True)
  if skipped:
    print('skipped, not implemented: ' + ', '.join(skipped))
  passed = sum(report.passed for report in reports)
  print(f'{passed} passed, {len(reports) - passed} failed, {len(skipped)} skipped')
  return int(passed < len(reports))


if __name__ == '__main__':
  sys.exit(main())
