"""The reference vectors of CLIP and of text-guided editing, in float64."""

import pathlib

import pytest

from tests.reference.__main__ import CASES
from tests.reference.check import read_manifest
from tests.test_reference import check

FOLDER = pathlib.Path(__file__).parent / 'reference_clip'
FOUND = {case['id']: case for case in read_manifest(FOLDER)}


@pytest.mark.parametrize('case', sorted(set(CASES) & set(FOUND)))
def test_case(case):
  check(FOUND[case], FOLDER)
