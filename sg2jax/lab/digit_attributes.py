"""What a person would say of a handwritten digit, measured from its pixels."""

import numpy as np

NAMES = ('thickness', 'slant', 'width', 'size')


def measure(images: np.ndarray) -> dict[str, np.ndarray]:
  """Attributes of bright digits on black, uint8 [N,H,W] or [N,H,W,1]: {name: float64 [N]}.

  thickness: of the strokes, in sides of the image: twice their area over the length of their edges.
  slant: how far they lean to the right as they go up, in pixels a pixel.
  width: standard deviation of the ink across over that along the height, once it stands upright.
  size: standard deviation of the ink in both directions, in sides of the image.
  An image without ink has zeros.
  """
  ink = np.reshape(images, (*np.shape(images)[:3],)) / 255.0  # [N,H,W]
  side = max(ink.shape[1:])
  y, x = np.arange(ink.shape[1])[:, None], np.arange(ink.shape[2])
  area = ink.sum((1, 2))
  safe = np.maximum(area, 1e-9)

  def mean(values):
    return (ink * values).sum((1, 2)) / safe

  def variance(a, b):
    return mean(a * b) - mean(a) * mean(b)

  across, along, both = variance(x, x), variance(y, y), variance(x, y)
  along = np.maximum(along, 1e-9)
  steps = np.diff(ink, axis=1)[:, :, :-1], np.diff(ink, axis=2)[:, :-1]
  edges = np.hypot(*steps).sum((1, 2))
  upright = np.maximum(across - both**2 / along, 0)  # of what is sheared until it has no slant
  return {
    'thickness': np.where(area > 0, 2 * area / np.maximum(edges, 1e-9) / side, 0),
    'slant': -both / along,  # rows count downwards
    'width': np.sqrt(upright / along) * (area > 0),
    'size': np.sqrt((across + along) / 2) / side * (area > 0),
  }
