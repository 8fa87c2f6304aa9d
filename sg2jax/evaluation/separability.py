"""Linear separability: how well one plane in latent space tells an attribute of the image [S1
4.2].
"""

import numpy as np


def linear_separability(points, probabilities):
  """exp(sum_i H(Y_i|X_i)) over attributes i: (score >= 1, float; entropies [A]). 1: planes tell
  everything.

  Per attribute the less confident half of the samples is dropped; a linear SVM learns the label Y
  from the point, and X is what it predicts. Entropies are in nats; an attribute that all samples
  have, or none, has entropy 0. S1 takes 200,000 samples, 40 classifiers trained on CelebA-HQ, and z
  or w for points.

  Args:
    points: [N,D], z or w.
    probabilities: [N,A] in [0,1], that the image has the attribute, from a classifier.

  Raises: ImportError without scikit-learn; ValueError for shapes that don't match, or N < 2.
  """
  from sklearn.svm import LinearSVC

  points, probabilities = np.asarray(points, np.float64), np.asarray(probabilities, np.float64)
  if probabilities.ndim != 2 or points.ndim != 2 or not 2 <= len(points) == len(probabilities):
    raise ValueError(
      'linear separability needs points [N,D] and probabilities [N,A], N >= 2; got '
      f'{list(points.shape)} and {list(probabilities.shape)}'
    )
  entropies = []
  for p in probabilities.T:
    keep = np.argsort(-np.abs(p - 0.5), kind='stable')[: len(p) // 2]
    x, y = points[keep], p[keep] > 0.5
    constant = y.all() or not y.any()
    entropies.append(
      0.0 if constant else conditional_entropy(y, LinearSVC(dual=False).fit(x, y).predict(x))
    )
  return float(np.exp(sum(entropies))), np.array(entropies)


def conditional_entropy(y, x):
  """H(Y|X) in nats of two bool arrays [N], a float >= 0: how much is left to be said of y by one
  who knows x.
  """
  # [x,y]
  joint = np.array([[np.mean((x == a) & (y == b)) for b in (False, True)] for a in (False, True)])
  given = joint / np.maximum(joint.sum(1, keepdims=True), np.finfo(float).tiny)
  return float(-(joint * np.log(np.where(given > 0, given, 1))).sum() + 0.0)
