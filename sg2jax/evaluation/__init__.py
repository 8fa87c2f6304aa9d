"""Metrics of a trained generator. `measure.measure` is the entry.

From a name to a number:
  protocols   what the name stands for: KINDS has a row for each kind of metric
  measure     the passes that it needs, in order, and the file of its result
  features    what looks at images, and which images it sees
  scores      SCORES has the function of each kind, from features to numbers
Below them: passes (batch by batch; those over reals are kept), neighbors, swd, ppl. Beside them:
reals (the data set of a run, or another that fits), artifacts (droplets and such, no scores).

CONTRIBUTING.md says how to add one.
"""
