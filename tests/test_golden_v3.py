"""The golden proof of DreamerV3: equal to the official code, and the proof notices when it is not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch as th

from tests.golden_rows import Row
from tests.golden_v3 import GoldenV3Proof
from tests.golden_v3_mistakes import IMAGE, MISTAKES, VECTOR, Patch

DATA = Path(__file__).parent / "data" / "golden_v3"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not th.cuda.is_available(), reason="there is no CUDA device"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("folder", [IMAGE, VECTOR])
def test_equals_official(folder: str, device: str) -> None:
    proof = GoldenV3Proof(DATA / folder, device)
    failed = [row for row in proof.run() if not row.passed]
    assert not failed, "\n".join(f"{row.name}: {row.error:.1e}, tolerance {row.tolerance:.0e}" for row in failed)
    assert proof.not_compared == []
    assert proof.missing == []
    recorded = sum(len(proof.folder.arrays[file]) for file in ("outputs", "grads", "after"))
    assert len(proof.rows) == len({row.name for row in proof.rows}) == recorded


@pytest.mark.parametrize("break_it, folder, fails, passes", [pytest.param(*case, id=case[0].__name__) for case in MISTAKES])
def test_mistake_is_detected(break_it: Callable[[Patch], None], folder: str, fails: str, passes: str) -> None:
    """Each mistake in the shipped code is seen, in the quantity where it belongs; what it cannot reach still agrees."""
    with Patch.context() as patch:
        break_it(patch)
        slow = {name.partition(":")[0].partition("/")[0] for name in (fails, passes)} & {"grads", "variant", "after"}
        parts = [GoldenV3Proof(DATA / folder).run(only) for only in slow or {""}]
        rows: dict[str, Row] = {row.name: row for part in parts for row in part}
    assert not rows[fails].passed, f"{fails}: {rows[fails]}"
    assert rows[passes].passed, f"{passes}: {rows[passes]}"
