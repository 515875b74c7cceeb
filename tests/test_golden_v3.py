"""The golden proof of DreamerV3: equal to the official code, and the proof notices when it is not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from tests.golden import main
from tests.golden_rows import Row
from tests.golden_v3 import GoldenV3Proof
from tests.golden_v3_cases import make_folder
from tests.golden_v3_loader import UnsupportedFolder
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
    assert len(proof.rows) == len({row.name for row in proof.rows}) == recorded - len(proof.skipped)
    assert device != "cpu" or not proof.skipped


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


@pytest.mark.parametrize("name, lengths", [("images_and_vectors", (2, 3, 1)), ("choices", (1, 7, 2)), ("layers", (3, 2, 1))])
def test_other_sizes_keys_and_lengths(name: str, lengths: tuple[int, int, int], tmp_path: Path) -> None:
    """
    Folders with several images, classes, choices, numbers without an axis, dots in names, more or fewer layers.

    Every official weight finds its place, and everything that the format describes is computed; what would be compared is
    named. Official numbers exist for the two folders alone.
    """
    folder = make_folder(tmp_path / name, name, *lengths)
    proof = GoldenV3Proof(folder)
    entries = proof.folder.entries(policy := proof.folder.policy())
    for key, entry in entries.items():
        value = proof.folder.arrays["weights"][key]
        assert np.array_equal(entry.to_official(entry.parameter.detach().numpy()), value), key
    placed = {id(entry.parameter) for entry in entries.values()}
    assert all(id(parameter) in placed for parameter in policy.parameters())
    rows = proof.run()
    assert all(np.isfinite(row.error) for row in rows)
    missing = {text.partition(": ")[2] for text in proof.missing}
    expected = {"imag/action/move", "loss/policy", "repval/ret", "train2/metric/opt/update_rms", "policy/stoch", "tokens"}
    expected |= {f"dec/{key}" for key in proof.folder.keys} | {
        f"total/{key}" for key in proof.folder.meta["trained_variables"]
    }
    assert expected <= missing


def edited(tmp_path: Path, **settings: Any) -> Path:
    """A copy of a folder with other settings."""
    copy = tmp_path / VECTOR
    shutil.copytree(DATA / VECTOR, copy)
    meta = json.loads((copy / "meta.json").read_text())
    meta["agent"].update({name.replace("__", "."): value for name, value in settings.items()})
    (copy / "meta.json").write_text(json.dumps(meta))
    return copy


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"opt__schedule": "cosine"}, "Setting opt.schedule: 'cosine' is not supported"),
        ({"dec__simple__strided": True}, "Setting dec.simple.strided: True"),
        ({"valnorm__impl": "perc"}, "Setting valnorm.impl: 'perc'"),
        ({"value__bins": 41}, "rewhead.bins, value.bins must agree"),
    ],
)
def test_unsupported_setting_is_refused_by_name(settings: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFolder, match=named):
        GoldenV3Proof(edited(tmp_path, **settings))


def test_flags_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = edited(tmp_path)
    with np.load(folder / "inputs.npz") as file:
        inputs = dict(file)
    inputs["is_last"][0, 2] = True
    np.savez(folder / "inputs.npz", **inputs)
    with pytest.raises(UnsupportedFolder, match="An episode ends where none begins"):
        GoldenV3Proof(folder)


def test_missing_comparison_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An array that nobody looks at makes the command fail, although every comparison passed."""
    folder = edited(tmp_path)
    with np.load(folder / "outputs.npz") as file:
        outputs = dict(file)
    outputs["imag/surprise"] = np.zeros(3, np.float32)
    np.savez(folder / "outputs.npz", **outputs)
    assert main([str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("FAIL")] == []
    assert "NOT COMPARED  outputs: imag/surprise" in lines


def test_command_compares_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(DATA / "unit")]) == 0
    assert "0 failed, 0 not compared" in capsys.readouterr().out
