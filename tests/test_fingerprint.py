"""Same seeds, same samples: against what was recorded before the buffer was taken apart into rooms."""

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.fingerprint import CASES, fingerprint

RECORDED = {
    row[0]: np.array(row[1:], dtype=float) for row in csv.reader((Path(__file__).parent / "recorded" / "samples.csv").open())
}


@pytest.mark.parametrize("case", CASES)
def test_the_samples_are_those_that_were_recorded(case: str) -> None:
    np.testing.assert_allclose(fingerprint(*CASES[case]), RECORDED[case], atol=2e-3)
