"""The reference vectors of CLIP and of text-guided editing, in float64."""

import pathlib

import pytest

from tests.reference.__main__ import CASES
from tests.reference.check import only, read_manifest
from tests.test_reference import check

FOLDER = pathlib.Path(__file__).parent / 'reference_clip'
FOUND = {case['id']: case for case in read_manifest(FOLDER)}
# Of the cases that compile for long, as in test_reference.py.
SHORT = {
  'styleclip_optimization': {'stylespace': '.*'},
  'styleclip_mapper': {'ranger': '.*'},
  'styleclip_global': {
    'features_cumulative': '.*',
    'from_features': '.*',
    'text_direction': '.*',
    'some_layers': '.*',
    'auto_beta': '.*',
  },
}


@pytest.mark.parametrize('case', sorted(set(CASES) & set(FOUND)))
def test_case(case):
  found = FOUND[case]
  check(only(found, SHORT[case]) if case in SHORT else found, FOLDER)


@pytest.mark.slow
@pytest.mark.parametrize('case', SHORT)
def test_whole_case(case):
  check(FOUND[case], FOLDER)
