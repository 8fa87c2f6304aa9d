"""Reference cases of the import of whole networks in NVIDIA's names: the function that
tools.convert goes through.
"""

from functools import partial
import re

import jax.numpy as jnp
import numpy as np

from sg2jax import build, configurations
from sg2jax.interop import names, read
from sg2jax.interop.names import nchw, nhwc
from sg2jax.interop.network_file import Net
from sg2jax.models.mapping import broadcast, truncate
from sg2jax.models.sizes import block_sizes, fmaps
from tests.reference.cases_growing import KINDS
from tests.reference.cases_nets import _IMAGE, _truncation, _variant
from tests.reference.check import jit

# Given arrays 'G/key', 'tf/D/name', 'state_dict/G_ema.key', 'params/D/key' ...: of which network,
# and the key in it.
_NETWORK = re.compile(
  r'(?:(?:tf|torch|pytorch|pt|params|state|state_dict|checkpoint|init)[/.])*(G_ema|Gs|G|D)[/.](.+)'
)
_ARGUMENTS = ('{}', '{}_kwargs', '{}_init_kwargs', '{}_static_kwargs', '{}_args', '{}_config')
# dicts of both networks' arguments
_TOGETHER = ('init_kwargs', 'static_kwargs', 'kwargs', 'networks')
_SHARED = {
  'G': ('z_dim', 'c_dim', 'w_dim', 'img_resolution', 'img_channels'),
  'D': ('c_dim', 'img_resolution', 'img_channels'),
}
_CALLED = {
  'G': ('G', 'generator'),
  'D': ('D', 'discriminator'),
  'G_ema': ('G_ema', 'Gs', 'G', 'generator'),
}


def _arguments(config, name):
  """What the config says that a network was made with, or {}."""
  places = [
    config,
    *(config.sub(key) for key in _TOGETHER if key in config and not isinstance(config[key], str)),
  ]
  keys = [pattern.format(called) for called in _CALLED[name] for pattern in _ARGUMENTS]
  found = next((dict(place[key]) for key in keys for place in places if key in place), {})
  return {key: config[key] for key in _SHARED[name[0]] if key in config} | found


def _checks(kwargs, config, name):
  """Takes the fields that are no arguments but follow from them out of kwargs, and returns
  functions of our network.
  """
  checks = []

  def check(key, ours):
    if key in kwargs:
      value = kwargs.pop(key)

      def agree(net):
        if value != ours(net):
          raise ValueError(f'{name}: config has {key}={value}, the code has {ours(net)}')

      checks.append(agree)

  if 'num_ws' in config and name != 'D':
    kwargs.setdefault('num_ws', config['num_ws'])
  check('num_ws', lambda net: net.synthesis.num_ws)

  def widths(net):
    net = getattr(net, 'synthesis', net)
    return {
      str(max(size)): fmaps(max(size), net.fmap_base, net.fmap_max)
      for size in block_sizes(net.resolution)
    }

  if 'channels' in kwargs:
    told = {key: kwargs['channels'][key] for key in sorted(kwargs['channels'], key=int)}
    kwargs['channels'] = told
  check('channels', widths)
  return checks


def _nets(sub):
  """({'G', 'D', 'G_ema': Net}, [check of (generator, discriminator)]) of the given arrays."""
  config, found, places = sub.config, {}, {}
  for name in list(sub.given):
    if m := _NETWORK.fullmatch(name):
      net, place = 'G_ema' if m[1] == 'Gs' else m[1], name[: m.start(2)]
      if places.setdefault(net, place) != place:
        raise ValueError(f'{net} is given as {places[net]} and as {place}')
      found.setdefault(net, {})[m[2]] = sub.given[name]
  nets, checks = {}, []
  text = ' '.join(str(config.get(key, '')) for key in ('network', 'networks'))
  for name, arrays in found.items():
    kwargs = _arguments(config, name)
    torch = any('.' in key for key in arrays)
    kind = next((k for k in re.findall(r'\w+', text) if k in KINDS and k[0] == name[0]), '')
    if torch:
      checks += [
        partial(lambda check, d, nets: check(nets[d]), c, name == 'D')
        for c in _checks(kwargs, config, name)
      ]
    nets[name] = Net('pytorch' if torch else 'tensorflow', '' if torch else kind, kwargs, arrays)
  config.ignore('equivalent_pytorch', 'format', 'source')  # what theirs became; remarks
  return nets, checks


class _Converted:
  """The networks that `convert.of_nets` made, and what they compute."""

  def __init__(self, sub):
    nets, checks = _nets(sub)
    found = read.of_nets(nets)
    self.state, self.given = found.state, sub.given
    self.generator, self.discriminator = both = build.networks(
      configurations.complete(found.config), found.config['c_dim']
    )
    for check in checks:
      check(both)
    self.config, self.has_d = found.config, 'D' in nets
    self.size = block_sizes(self.generator.synthesis.resolution)[0]
    self._map = jit(partial(self.generator.apply, method='map'))
    self._image = {
      mode: jit(lambda v, ws, mode=mode: self.generator.apply(v, ws, mode, method='synthesize'))
      for mode in ('const', 'none')
    }
    self._logits = jit(self.discriminator.apply)

  def labels(self, count, *called):
    """Labels, without columns if there are none."""
    found = self.given.first(*called)
    if found is not None and not self.config['c_dim']:
      raise ValueError(f'labels of shape {found.shape}, but the networks take none')
    return np.zeros((count, 0), jnp.zeros(()).dtype) if found is None else found

  def ws(self, net):
    """(w, ws) of the given latents."""
    z = self.given['z']
    c = self.labels(len(z), 'gen_c', 'c', 'c_G', 'z_c')
    w = self._map({'params': self.state[net]}, z, c)
    return w, broadcast(w, self.generator.synthesis.num_ws)

  def image(self, net, name, ws):
    """The image that an array of this name holds."""
    v = _variant(name, _IMAGE)
    if v['clamp']:
      raise ValueError(f'{name}: the clamp is that of the network')
    ws = self.given['ws_direct'] if v['direct'] else ws
    if v['psi']:
      ws = truncate(ws, self.state['w_avg'], *_truncation(v['psi']))
    noise = self.state['noise']
    if v['mode'] == 'random':
      given = {
        f'synthesis.{k}.noise_const': nhwc(x) for k, x in self.given.under('noise_random/').items()
      }
      noise = names.from_pytorch(given)[1]
    mode = 'none' if v['mode'] == 'none' else 'const'
    return self._image[mode]({'params': self.state[net], 'noise': noise}, ws)

  def logits(self, img, *labels):
    """Of images [N,H,W,C]."""
    if not self.has_d:
      raise ValueError('logits are expected, but no discriminator is given')
    return self._logits({'params': self.state['d']}, img, self.labels(len(img), *labels))

  def parameters(self, net):
    """{PyTorch's key: array} of one of 'G', 'G_ema', 'D', with its buffers."""
    letter = net[0]
    config = configurations.complete(self.config)
    variant = configurations.variant(config, 'd' if net == 'D' else 'g')
    params = self.state[{'G': 'g', 'G_ema': 'g_ema', 'D': 'd'}[net]]
    found = names.to_pytorch(params, self.size) | names.filters(params, variant.taps, letter)
    if net != 'D':
      noise = names.to_pytorch(self.state['noise'])
      found |= noise | {'mapping.w_avg': self.state['w_avg']}
    return found


def checkpoint_conversion(sub):
  """ws, images and logits of converted networks; and their parameters in PyTorch's names, where
  those are expected.

  Given: the networks (see _NETWORK); z with gen_c, c, c_G or z_c; img, images or real_img with
  img_c, real_c, c_D, c_real or c.
  Config: what the networks were made with, as G, G_kwargs, G_static_kwargs, generator_kwargs ...,
  or these in a dict (see _TOGETHER). Expected: w, ws, w_avg, img or images (with const, none,
  noise_none, noise_random, psi<x>, cut<n>, trunc), logits or scores, logits_fake; G/img if that is
  not of G_ema; converted/G/<key>, G/<key> ... of parameters and buffers.
  """
  nets, results = _Converted(sub), {}
  for name in sub.wanted:
    m = re.fullmatch(r'(?:(G_ema|Gs|G|D)/)?([^/.]+)', name)
    if not m:
      if stored := _NETWORK.fullmatch(re.sub(r'^(converted|expected|out)/', '', name)):
        found = nets.parameters('G_ema' if stored[1] == 'Gs' else stored[1])
        results |= {name: found[stored[2]]} if stored[2] in found else {}
      continue  # what nothing computes is reported
    net, what = 'g' if m[1] == 'G' else 'g_ema', m[2]
    if what in ('w', 'ws'):
      results[name] = nets.ws(net)[what == 'ws']
    elif what in ('w_avg', 'dlatent_avg'):
      results[name] = nets.state['w_avg']
    elif re.match(r'im(g|ages?)(_|$)', what):
      short = re.sub(r'^images?', 'img', what)
      short = {'img_const': 'img', 'img_none': 'img_noise_none'}.get(short, short)
      if short in ('img_trunc', 'img_truncated'):
        cutoff = sub.config.get('truncation_cutoff')
        short = f'img_psi{sub.config["truncation_psi"]}' + (
          '' if cutoff is None else f'_cut{cutoff}'
        )
      results[name] = nchw(nets.image(net, short, nets.ws(net)[1]))
    elif what in ('logits', 'logits_real', 'real_logits', 'scores'):
      img = sub.given.first('img', 'images', 'real_img')
      if img is None:
        raise ValueError(
          f'{name} is expected, but none of the arrays img, images, real_img is given'
        )
      results[name] = nets.logits(nhwc(img), 'img_c', 'real_c', 'c_D', 'c_real', 'c')
    elif what in ('logits_fake', 'gen_logits', 'logits_gen', 'fake_logits'):
      img = nets.image(net, 'img', nets.ws(net)[1])
      results[name] = nets.logits(img, 'gen_c', 'c', 'c_G', 'z_c')
  return results


CASES = {
  'tf_checkpoint_import': checkpoint_conversion,
  'checkpoint_conversion': checkpoint_conversion,
}
