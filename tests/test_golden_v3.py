"""The golden proof of DreamerV3: equal to the official code, and the proof notices when it is not."""

from pathlib import Path

import pytest
import torch as th

from tests.golden_v3 import GoldenV3Proof

DATA = Path(__file__).parent / "data" / "golden_v3"
IMAGE, VECTOR = "a_image_discrete", "b_vector_continuous"
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
