"""Small pieces of the official DreamerV3: every check of :mod:`tests.golden_v3_unit`, and the initial weights."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch as th
from torch import nn

from sb3_dreamer.dreamer_v3.convolutions import SameConv
from sb3_dreamer.dreamer_v3.layers import BlockLinear, initialize_weights
from tests.golden_unit import Unit
from tests.golden_v3_unit import CHECKS, NOT_SHIPPED, UnitProof, UnitV3

DATA = Path(__file__).parent / "data" / "golden_v3" / "unit"


@pytest.mark.parametrize("check", CHECKS)
def test_equals_official(check: Callable[[Unit], None]) -> None:
    check(UnitV3())


def test_every_array_is_used() -> None:
    """All but those of options that this package does not have."""
    proof = UnitProof(DATA)
    assert all(row.passed for row in proof.run()) and proof.not_compared == []
    unused = [pattern for pattern in NOT_SHIPPED if not any(re.match(pattern, name) for name in proof.not_shipped)]
    assert unused == []
    assert len(proof.rows) > 500


def test_initial_weights() -> None:
    """Spread and largest value of each kind of layer, in units of the root of its fan-in."""
    recorded = json.loads((DATA / "initialisers.json").read_text())
    th.manual_seed(0)
    cases: dict[str, Any] = {
        "linear": nn.Linear(300, 400),
        "block_linear (blocks, in/blocks, out/blocks)": BlockLinear(480, 720, 8),
        "conv": SameConv(40, 60),
    }
    for name, layer in cases.items():
        initialize_weights(layer)
        official, root = recorded[name], recorded[name]["fan_in"] ** 0.5
        assert (layer.weight.std() * root).item() == pytest.approx(official["std_times_sqrt_fan"], rel=0.01)
        assert (layer.weight.abs().max() * root).item() == pytest.approx(official["max_times_sqrt_fan"], rel=0.001)
        assert abs(layer.weight.mean().item()) < 5e-4 and (layer.bias == 0.0).all()
