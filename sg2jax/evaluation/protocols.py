"""The names of metrics. A name is the whole protocol.

fid50k_full: Frechet inception distance of 50,000 fakes to all reals, once each, not mirrored;
  covariance / N.
fid50k: the same to 50,000 reals as training draws them (mirrored if it mirrors); covariance /
  (N - 1) [S2].
kid50k_full: kernel inception distance of 50,000 fakes to at most 1,000,000 reals, 100 subsets of
  1000.
kid50k: the same with reals as in fid50k.
is50k: inception score, 10 splits.
pr50k3_full: precision and recall by VGG16's second fully connected layer, k = 3, at most 200,000
  reals.
pr50k3: the same with reals as in fid50k.
ppl2_wend: perceptual path length of S2: 50,000 pairs in w, end points, whole image; LPIPS at 256 px
  at most.
ppl_wend: the same of the middle of the image, as for FFHQ [S1]; also ppl_wfull, ppl2_zend ...
swd: sliced Wasserstein distance x 1000 of 16,384 images at 128 px at most (Karras et al. 2018).
pixelfd50k_full, pixelfd50k: Frechet distance of the pixels at 16 px at most. It is not FID.
nn10k: nearest of at most 200,000 reals to each of 10,000 fakes by VGG16: are images copied? (Meehan
  et al. 2020).
pixelnn10k: the same by the pixels at 16 px at most.

Other counts are other metrics: fid10k_full, pr5k3_full, is2.5k, nn1k; swd_4k, ppl2_1k_wend. swd and
pixel... need no network.
"""

import re
from typing import NamedTuple

from sg2jax.faults import UsageError

OFFLINE = 'pixelfd50k_full'  # needs no weights; measured besides swd if nothing else is asked for
PR_K = 3  # neighbours of precision and recall; another metric has its own
_N = r'(?P<count>\d+(\.\d+)?)k'
_FULL = '(?P<full>_full)?'
# Of a detector, by their names in `sg2jax.pretrained`.
WEIGHTS = {'inception': ('inception',), 'vgg16': ('vgg16',), 'lpips': ('vgg16', 'lpips_vgg')}


class Kind(NamedTuple):
  """What all metrics of a kind have in common."""

  pattern: str  # regular expression of their names; its groups are read by `parse`
  example: str  # a name
  detector: str  # what looks at the images, as in `features.load`
  output: str  # which of the detector's outputs is compared
  count: int | None = None  # images, where the name has no number
  least: int = 2  # images without which it can't be computed, fakes and reals
  reals: str = 'rows'  # what is kept of reals, 'rows' or 'moments'; '' if none are looked at
  max_reals: int | None = None  # of protocols that take all reals; None: no end


KINDS = {
  'fid': Kind(f'fid{_N}{_FULL}', 'fid50k_full', 'inception', 'pool', reals='moments'),
  'kid': Kind(f'kid{_N}{_FULL}', 'kid50k_full', 'inception', 'pool', max_reals=1_000_000),
  'is': Kind(f'is{_N}', 'is50k', 'inception', 'probs', least=10, reals=''),
  'pr': Kind(
    f'pr{_N}{PR_K}{_FULL}', 'pr50k3_full', 'vgg16', 'fc', least=PR_K + 1, max_reals=200_000
  ),
  'ppl': Kind(
    f'ppl(?P<whole>2)?(_{_N})?_(?P<space>[zw])(?P<sampling>full|end)',
    'ppl2_wend',
    'lpips',
    'ppl',
    count=50_000,
    reals='',
  ),
  'swd': Kind(f'swd(_{_N})?', 'swd', 'small', 'small', count=16_384),
  'pixelfd': Kind(f'pixelfd{_N}{_FULL}', 'pixelfd50k_full', 'pixels', 'pixels', reals='moments'),
  'nn': Kind(f'nn{_N}', 'nn10k', 'vgg16', 'fc', max_reals=200_000),
  'pixelnn': Kind(f'pixelnn{_N}', 'pixelnn10k', 'pixels', 'pixels', max_reals=200_000),
}


class Protocol(NamedTuple):
  """What a metric's name says."""

  name: str
  kind: str  # key of KINDS
  count: int  # fakes, or pairs of latents
  full: bool  # all reals, once each, not mirrored; or else `count` as training draws them
  crop: bool = False  # of ppl: only the middle of the image
  space: str = ''  # of ppl: 'z' or 'w'
  sampling: str = ''  # of ppl: 'full' or 'end'

  @property
  def of_kind(self) -> Kind:
    """What it has in common with others of its kind."""
    return KINDS[self.kind]

  @property
  def weights(self) -> tuple[str, ...]:
    """Names of the weights that it needs, as in `sg2jax.pretrained`."""
    return WEIGHTS.get(self.of_kind.detector, ())


def parse(name: str) -> Protocol:
  """A name -> Protocol. Raises UsageError with the choices for any other."""
  for kind, common in KINDS.items():
    if match := re.fullmatch(common.pattern, name):
      groups = match.groupdict()
      count = round(1000 * float(groups['count'])) if groups['count'] else common.count
      if count < common.least:
        raise UsageError(f'metric {name}: {count} images; use {common.least / 1000:g}k or more')
      return Protocol(
        name,
        kind,
        count,
        # Kinds whose names can't say it take all reals, or none.
        full='full' not in groups or groups['full'] is not None,
        crop=kind == 'ppl' and not groups['whole'],
        space=groups.get('space', ''),
        sampling=groups.get('sampling', ''),
      )
  examples = [kind.example for kind in KINDS.values()]
  several = "; several are a tuple, ('fid50k_full', 'is50k')" if ',' in name else ''
  raise UsageError(
    f'metric {name!r} is unknown; choose from {", ".join(examples)}, or others in '
    f'docs/evaluation.md{several}'
  )
