"""The examples run to their end, in the short mode that their arguments offer."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from sb3_dreamer import DreamerV2

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quick_start(tmp_path, capsys):
    saved = tmp_path / "agent"
    load("quick_start").main(["--steps", "1040", "--episodes", "2", "--save", str(saved)])
    score = re.search(r"Return over 2 episodes: ([\d.]+) \+/-", capsys.readouterr().out)
    assert score is not None and 1 <= float(score[1]) <= 500
    model = DreamerV2.load(saved)
    assert model.num_timesteps == 1040 and model._n_updates > 0


def test_atari(tmp_path, capsys):
    pytest.importorskip("ale_py")
    arguments = "--small --steps 260 --env ALE/Breakout-v5 --all-actions --max-frames 400 --episodes 1 --save-every 250"
    load("atari").main([*arguments.split(), "--save", str(tmp_path)])
    output = capsys.readouterr().out
    assert "18 actions (full set)" in output and "at most 400 frames" in output
    assert re.search(r"Score over 1 games of ALE/Breakout-v5: [\d.]+", output)
    model = DreamerV2.load(tmp_path / "final")
    assert model.action_space.n == 18 and model._n_updates > 0
    assert len(list(tmp_path.glob("rl_model_250_steps.zip"))) == 1


def test_no_example_without_a_test():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"atari", "distributed", "quick_start", "sweep"}
