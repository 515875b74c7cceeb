"""The examples run to their end, in the short mode that their arguments offer."""

import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType

import optuna
import pytest

from sb3_dreamer import DreamerV2
from tests.test_zoo import TINY

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


def test_sweep(tmp_path, capfd, monkeypatch):
    """Two workers on one journal file; one is killed, and another takes its place."""
    (tmp_path / "tiny.yml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SB3_DREAMER_SIZES", "tiny")
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent), prepend=os.pathsep)
    study = "--trials 3 --workers 2 --storage study.log --study-name tiny --kill-one"
    zoo = "-conf tiny.yml -n 150 --n-evaluations 2 --eval-episodes 1 --n-startup-trials 1 --verbose 0"
    load("sweep").main([*study.split(), *zoo.split()])
    output = capfd.readouterr().out
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", output, re.MULTILINE)
    states = [state for _, state in rows]
    assert sorted(int(number) for number, _ in rows) == list(range(len(rows))), "no trial twice"
    assert states.count("complete") + states.count("pruned") >= 3 and "fail" in states, output
    assert "was left by a worker that died" in output and "trials finished; best: " in output
    study = optuna.load_study(study_name="tiny", storage=journal(tmp_path / "study.log"))
    assert all(0 < len(trial.intermediate_values) <= 2 for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED"))
    assert all(trial.params["size"] == "tiny" for trial in study.trials if trial.params)


def journal(path):
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))


def test_distributed(tmp_path):
    """In one process, twice: the second goes on from the first one's checkpoint."""
    arguments = ["--save-every", "500", "--folder", str(tmp_path)]
    load("distributed").main(["--steps", "1020", *arguments])
    load("distributed").main(["--steps", "1040", *arguments])
    model = DreamerV2.load(tmp_path / "final")
    assert model.num_timesteps == 1040 and model._n_updates == 10


def test_no_example_without_a_test():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"atari", "distributed", "quick_start", "sweep"}
