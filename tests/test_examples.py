"""
The examples run to their end, in the short mode that their arguments offer: ``--steps`` a little beyond the warm-up, so that
there are some updates. What is measured elsewhere (``benchmarks/``) is measured of the same environments and hyperparameters.
"""

import ast
import importlib.util
import json
import os
import re
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np
import optuna
import pytest

from benchmarks import exploration
from benchmarks.tasks.grid import SparseGrid
from benchmarks.tasks.reacher import PixelReacher
from sb3_dreamer import DreamerV2
from tests.short_mode import short_mode
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


def run(name: str, arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What an example prints."""
    load(name).main(arguments.split())
    return capsys.readouterr().out


def number(pattern: str, output: str) -> float:
    found = re.search(pattern, output)
    assert found is not None, output
    return float(found[1].replace(",", ""))


def same_steps(one: gym.Env, other: gym.Env, steps: int = 70) -> None:
    """Two environments that answer the same actions in the same way."""
    assert one.observation_space == other.observation_space and one.action_space == other.action_space
    one.action_space.seed(1)
    assert np.array_equal(one.reset(seed=1)[0], other.reset(seed=1)[0])
    for _ in range(steps):
        action = one.action_space.sample()
        (seen, *rest, _), (also_seen, *also, _) = one.step(action), other.step(action)
        assert np.array_equal(seen, also_seen) and rest == also
        if rest[1] or rest[2]:
            assert np.array_equal(one.reset()[0], other.reset()[0])


def test_custom_env(capsys):
    output = run("custom_env", "--steps 1015 --episodes 2", capsys)
    assert -20 <= number(r"Mean return before ([-\d.]+), after", output) <= 19.6


def test_dict_observations(capsys):
    output = run("dict_observations", "--steps 1008 --episodes 1", capsys)
    assert "Seen: camera, gauge; reconstructed: camera, gauge" in output
    assert -20 <= number(r"Return over 1 episodes: ([-\d.]+)", output) <= 20


def test_continuous_pixels(capsys):
    example = load("continuous_pixels")
    same_steps(example.Reacher(), PixelReacher())
    output = run("continuous_pixels", "--steps 505 --episodes 1", capsys)
    assert 0 <= number(r"Return over 1 episodes: ([\d.]+)", output) <= 25


def test_callbacks_tensorboard(tmp_path, capsys):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    output = run("callbacks_tensorboard", f"--steps 1020 --every 510 --episodes 1 --logs {tmp_path}", capsys)
    assert number(r"Best mean return of an evaluation: ([-\d.]+)", output) < 0
    assert (tmp_path / "best" / "best_model.zip").exists() and len(list(tmp_path.glob("checkpoints/*.zip"))) == 2
    (events,) = tmp_path.glob("DreamerV2_*/events.out.tfevents.*")
    accumulator = accumulators.EventAccumulator(str(events.parent)).Reload()
    assert {"world_model/rewards", "prediction/open_loop"} <= set(accumulator.Tags()["images"])
    assert list((tmp_path / "predictions").glob("*.png"))
    assert {"eval/mean_reward", "rollout/ep_rew_mean"} <= set(accumulator.Tags()["scalars"])


def test_resume(tmp_path, capsys):
    first = run("resume", f"--steps 1010 --save-every 500 --folder {tmp_path}", capsys)
    assert "starting" in first and number(r"([\d,]+) steps and", first) == 1012
    second = run("resume", f"--steps 1030 --folder {tmp_path}", capsys)
    assert "Going on from 1,012 steps, all of them remembered" in second
    assert number(r"([\d,]+) steps and", second) >= 1030
    assert "1,032 steps" in run("resume", f"--steps 1030 --folder {tmp_path}", capsys)  # nothing is left to do


def test_plan2explore(capsys):
    example = load("plan2explore")
    same_steps(example.Grid(), SparseGrid(), steps=130)
    options = {**example.OPTIONS, "policy_kwargs": dict(example.OPTIONS["policy_kwargs"])}
    assert options["policy_kwargs"].pop("exploration_class") == "plan2explore"
    assert options["policy_kwargs"].pop("exploration_kwargs") == exploration.EXPLORATION
    assert options.pop("policy_kwargs") == exploration.POLICY and options == exploration.OPTIONS
    output = run("plan2explore", "--steps 310", capsys)
    assert 1 < number(r"Plan2Explore saw (\d+) of 625", output) <= 311


def test_ppo_in_dream(tmp_path, capsys):
    arguments = f"--steps 1010 --dream-steps 256 --dreams 4 --horizon 8 --episodes 1 --folder {tmp_path}"
    output = run("ppo_in_dream", arguments, capsys)
    assert number(r"PPO, trained in the dream alone: ([\d.]+) \+/-", output) >= 8
    assert (tmp_path / "dreamer.zip").exists() and (tmp_path / "dreamer_buffer.pkl").exists()


def test_optuna_zoo(tmp_path, capsys):
    arguments = f"--trials 1 --steps 60 --evaluations 1 --episodes 1 --folder {tmp_path}"
    output = run("optuna_zoo", arguments, capsys)
    assert number(r"Best of 1 trials: number 0, mean return ([\d.]+)", output) >= 8
    arguments_of_best = ast.literal_eval(output[output.index("{", output.index("Best of")) :])
    assert DreamerV2("MlpPolicy", "CartPole-v1", buffer_size=100, **arguments_of_best).gamma == arguments_of_best["gamma"]


def test_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its cells are one program, in short mode."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "quick_start.ipynb").read_text())
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    namespace: dict[str, object] = {"__name__": "__main__"}
    with short_mode():
        for cell in cells:
            exec(compile(cell, "quick_start.ipynb", "exec"), namespace)
    output = capsys.readouterr().out
    assert number(r"One more episode: ([\d.]+)", output) >= 8 and "error after 15 imagined steps: [" in output


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
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == {"quick_start"}
    listed = (EXAMPLES.parent / "docs" / "examples.md").read_text()
    for path in EXAMPLES.glob("*.*"):
        assert f"`{path.name}`" in listed, path.name
