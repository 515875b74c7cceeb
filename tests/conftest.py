"""Fixtures of all tests."""

from collections.abc import Iterator
from typing import Any

import pytest

from sb3_dreamer import DreamerV2, DreamerV3
from tests.small import small_models_of


@pytest.fixture(params=[DreamerV2, DreamerV3], ids=["V2", "V3"])
def algorithm(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The class of small models while a test that uses this fixture runs."""
    with small_models_of(request.param):
        yield request.param
