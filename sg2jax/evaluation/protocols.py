"""The names of metrics. A name is the whole protocol: what is compared, how many images, by which
features.

  fid50k_full    Frechet Inception distance of 50,000 fakes to all reals, once each, not mirrored;
  covariance / N fid50k         the same to 50,000 reals as training draws them (mirrored if it
  mirrors); covariance / (N - 1) [S2] kid50k_full    kernel Inception distance: 50,000 fakes, at
  most 1,000,000 reals, 100 subsets of 1000 kid50k         the same with reals as in fid50k is50k
  Inception score, 10 splits pr50k3_full    precision and recall by VGG16's second fully connected
  layer, k = 3; at most 200,000 reals pr50k3         the same with reals as in fid50k ppl2_wend
  perceptual path length of S2: 50,000 pairs in w, end points, whole image; LPIPS at 256 px at most
  ppl_wend       the same of the middle of the image, as for FFHQ [S1]; also ppl_wfull, ppl_zend,
  ppl_zfull, ppl2_... ls             linear separability of 200,000 z and w by 40 attribute
  classifiers [S1] swd            sliced Wasserstein distance x 1000 of 16,384 images at 128 px at
  most (Karras et al. 2018); no network pixelfd50k_full, pixelfd50k   Frechet distance of the pixels
  at 16 px at most; no network, and not FID nn10k          nearest of at most 200,000 reals to each
  of 10,000 fakes by VGG16: are images copied? (Meehan et al. 2020) pixelnn10k     the same by the
  pixels at 16 px at most; no network

Other counts are other metrics: fid10k_full, pr5k3_full, is2.5k, nn1k; and swd_4k, ppl2_1k_wend,
ls_20k.
"""

import difflib
import re
from typing import NamedTuple

from sg2jax.faults import UsageError

OFFLINE = 'pixelfd50k_full'  # needs no weights; measured besides swd if nothing else is asked for
# of protocols that take all; others: no end
MAX_REALS = {'kid': 1_000_000, 'pr': 200_000, 'nn': 200_000, 'pixelnn': 200_000}
K = 3  # neighbours of precision and recall
# images of a kind, fakes and reals; else 1
LEAST = {'fid': 2, 'pixelfd': 2, 'kid': 2, 'is': 10, 'pr': K + 1, 'ls': 4}
_N = r'(?P<count>\d+(\.\d+)?)k'
_FORMS = {  # kind: (pattern, example)
  'fid': (rf'fid{_N}(?P<full>_full)?', 'fid50k_full'),
  'kid': (rf'kid{_N}(?P<full>_full)?', 'kid50k_full'),
  'is': (rf'is{_N}', 'is50k'),
  'pr': (rf'pr{_N}{K}(?P<full>_full)?', 'pr50k3_full'),
  'ppl': (rf'ppl(?P<whole>2)?(_{_N})?_(?P<space>[zw])(?P<sampling>full|end)', 'ppl2_wend'),
  'ls': (rf'ls(_{_N})?', 'ls'),
  'swd': (rf'swd(_{_N})?', 'swd'),
  'pixelfd': (rf'pixelfd{_N}(?P<full>_full)?', 'pixelfd50k_full'),
  'nn': (rf'nn{_N}', 'nn10k'),
  'pixelnn': (rf'pixelnn{_N}', 'pixelnn10k'),
}
_COUNTS = {'ppl': 50_000, 'ls': 200_000, 'swd': 16_384}
_DETECTORS = {
  'fid': 'inception',
  'kid': 'inception',
  'is': 'inception',
  'pr': 'vgg16',
  'nn': 'vgg16',
  'ppl': 'lpips',
  'swd': 'small',
  'pixelfd': 'pixels',
  'pixelnn': 'pixels',
  'ls': 'attributes',
}
_WEIGHTS = {'inception': ('inception',), 'vgg16': ('vgg16',), 'lpips': ('vgg16', 'lpips_vgg')}


class Protocol(NamedTuple):
  """What a metric's name says. kind: 'fid', 'kid', ...; count: fakes, or pairs of latents; full:
  all reals, once each, not mirrored, or else `count` as training draws them; crop, space, sampling:
  of ppl.
  """

  name: str
  kind: str
  count: int
  full: bool
  crop: bool = False
  space: str = ''
  sampling: str = ''

  @property
  def detector(self):
    """Name of what looks at the images, as in `detectors`."""
    return _DETECTORS[self.kind]

  @property
  def weights(self):
    """Names of the weights that it needs, as in `sg2jax.pretrained`."""
    return _WEIGHTS.get(self.detector, ())


def parse(name):
  """A name -> Protocol. Raises UsageError with the choices for any other."""
  for kind, (pattern, _) in _FORMS.items():
    match = re.fullmatch(pattern, name)
    if match:
      found = match.groupdict()
      count = round(1000 * float(found['count'])) if found.get('count') else _COUNTS[kind]
      if count < LEAST.get(kind, 1):
        raise UsageError(
          f'metric {name}: {count} images; use {LEAST.get(kind, 1) / 1000:g}k or more'
        )
      full = found['full'] is not None if 'full' in found else True
      return Protocol(
        name,
        kind,
        count,
        full,
        kind == 'ppl' and not found['whole'],
        found.get('space') or '',
        found.get('sampling') or '',
      )
  examples = [example for _, example in _FORMS.values()]
  near = ''.join(f'did you mean {x}? ' for x in difflib.get_close_matches(name, examples, 1))
  raise UsageError(
    f'metric {name!r} is unknown; {near}Choose from {", ".join(examples)}, or others in '
    'docs/evaluation.md' + "; several are a tuple, ('fid50k_full', 'is50k')" * (',' in name)
  )
