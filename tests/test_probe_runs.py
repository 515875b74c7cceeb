"""The runner of the probes: one short run through the command's own path, its settings, and its tables."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.logger import Logger

from benchmarks.children import attempt_all, run_python
from benchmarks.probes import run
from benchmarks.probes.report import report, score
from benchmarks.probes.run import Run, perform_all, planned
from benchmarks.probes.train import STEPS, Evaluations, LastValues, constructor_arguments, evaluate, parse_settings
from benchmarks.records import load
from benchmarks.tasks.probes import PROBES
from sb3_dreamer import DreamerV2, preset
from tests.small import LEARN, SMALL, SMALL_POLICY

SETTINGS = [
    *(f"{name}={value}" for name, value in {**SMALL, **LEARN}.items() if name != "device"),
    *(f"policy_kwargs.{name}={value}" for name, value in SMALL_POLICY.items()),
]


def small_model(name: str) -> DreamerV2:
    return DreamerV2(
        "MlpPolicy", PROBES[name].make(), seed=0, **{**SMALL, **LEARN, "learning_starts": 8}, policy_kwargs=SMALL_POLICY
    )


def test_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "probes.json"
    runs = planned([PROBES["bandit"]], [1], settings=SETTINGS, steps=300)
    assert perform_all(runs, 2, path) == []
    (result,) = load(path)
    assert {
        **runs[0].identity,
        "half": PROBES["bandit"].half,
        "threshold": PROBES["bandit"].threshold,
    }.items() <= result.items()
    assert [step for step, _ in result["curve"]] == list(range(30, 301, 30))
    assert result["episodes"] == STEPS and 0.0 <= result["greedy_mean"] <= 1.0 and 0.0 <= result["sampled_mean"] <= 1.0
    assert {"train/kl", "train/reward_loss", "train/reward_variance", "train/actor_entropy", "train/vector_loss"} <= set(
        result["logged"]
    )
    assert 0 < result["training_cpu_seconds"] < result["cpu_seconds"] and result["warnings"] == []
    assert "bandit seed 1" in capsys.readouterr().out and "of 1 runs" in report([result])

    def not_again(*_: Any) -> None:
        raise AssertionError("the result is there already")

    monkeypatch.setattr(run, "perform", not_again)
    assert perform_all(runs, 2, path) == []
    with pytest.raises(AssertionError, match="already"):
        perform_all(runs, 2, path, again=True)


def test_runs_are_told_apart() -> None:
    probes = [PROBES["cue-4"], PROBES["grab"]]
    runs = planned(probes, [0, 1], settings=["gamma=0.9", "batch_size=3"])
    assert [(one.task, one.seed, one.steps) for one in runs] == [
        *(("cue-4", 0, 4_000), ("grab", 0, 10_000), ("cue-4", 1, 4_000), ("grab", 1, 10_000))
    ]
    assert runs[0].identity["settings"] == "batch_size=3 gamma=0.9"
    assert json.loads(json.dumps(runs[0].identity)) == runs[0].identity
    command = "benchmarks.probes.train cue-4 --seed 0 --steps 4000 --preset default --set batch_size=3 gamma=0.9"
    assert runs[0].command[1:] == command.split()
    assert Run("grab", 2, "atari", (), 100).command[-2:] == ["--preset", "atari"]


def test_settings_replace_those_of_the_preset() -> None:
    words = ["ent_coef=lin_1e-1_1e-3", "batch_size=5", "kl_balance=None", "policy_kwargs.net_arch=[7, 7]", "gamma=9e-1"]
    settings = parse_settings(words)
    assert settings["ent_coef"] == "lin_1e-1_1e-3" and settings["gamma"] == 0.9 and settings["kl_balance"] is None
    arguments = constructor_arguments(PROBES["cue-4"], "default", settings)
    default = preset("default")
    assert arguments["policy"] == "MlpPolicy" and arguments["batch_size"] == 5
    assert arguments["policy_kwargs"] == {**default["policy_kwargs"], "net_arch": [7, 7]}
    assert arguments["batch_length"] == default["batch_length"]
    pixels = constructor_arguments(PROBES["cue-4-image"], "default", {})
    assert pixels["policy"] == "CnnPolicy" and pixels["reward_scale"] == preset("default_pixels")["reward_scale"]
    assert constructor_arguments(PROBES["fetch-noise"], "default", {})["policy"] == "MultiInputPolicy"
    assert constructor_arguments(PROBES["cue-4"], "dreamer_v1", {})["kl_balance"] is None
    for word in ("batch_size", "=3"):
        with pytest.raises(ValueError, match="name=value"):
            parse_settings([word])
    with pytest.raises(TypeError, match="no_such"):
        DreamerV2(env=PROBES["cue-4"].make(), **constructor_arguments(PROBES["cue-4"], "default", {"no_such": 1}))


def test_evaluations_do_not_touch_the_training() -> None:
    weights = []
    for callback in (None, Evaluations(PROBES["lump-4"], 0, 40)):
        model = small_model("lump-4")
        model.set_logger(Logger(None, [LastValues()]))
        model.learn(40, callback=callback, log_interval=None)
        weights.append(th.nn.utils.parameters_to_vector(model.policy.parameters()))
    assert th.equal(*weights) and callback is not None and len(callback.curve) == 10


def test_episodes_of_an_evaluation() -> None:
    model = small_model("lump-4")
    assert len(evaluate(model, PROBES["lump-4"], 0)) == 260 >= STEPS / 4, "13 in each of 20 environments"
    assert len(evaluate(small_model("cue-fatal"), PROBES["cue-fatal"], 0)) >= 100
    assert len(set(evaluate(model, PROBES["lump-4"], 0, sampled=True))) == 2 and model.policy.evaluation_latent == "mode"


def made_up(task: str, seed: int, greedy: float, reached: int | None, **others: Any) -> dict[str, Any]:
    probe = PROBES[task]
    table = {name: getattr(probe, name) for name in ("kind", "half", "best", "random", "threshold", "steps")}
    result = {"task": task, "seed": seed, "preset": "default", "settings": "", "greedy_mean": greedy, "sampled_mean": 1.0}
    return {**table, **result, "steps_to_threshold": reached, "cpu_seconds": 60.0, "warnings": [], **others}


def test_report() -> None:
    results = [made_up("grab", seed, greedy, 2_000) for seed, greedy in enumerate((10.0, 11.0, -5.0))]
    results += [made_up("cue-4", 0, 20.0, None, settings="gamma=0.9", warnings=["UserWarning: a"])]
    text = report(results)
    head, *_, row, empty, total = text.split("\n\n###")[0].splitlines()
    assert head == "### `default`, tuning half" and empty == ""
    assert row == "| grab | reaction | -0.3 | 9.94 | 12.5 | 5.333 (-5 to 11) | 1 | 2 of 3 | 2,000 of 10,000 | 60 |  |"
    assert total.startswith("Learned in 2 of 3 runs, with every seed on 0 of 1 probes; mean score 0.5")
    assert "`gamma=0.9`, validation half" in text and "| 1 of 1 | none of 4,000 | 60 | 1 |" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1, "every line of the table has as many columns"
    assert [score(result) for result in results[2:]] == [0.0, 1.0]
    assert report([]) == "There are no results."


def test_failures_do_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    done = []

    def perform(item: int) -> None:
        if item == 1:
            raise RuntimeError("item 1")
        done.append(item)

    assert attempt_all(perform, range(3), 1) == ["item 1"] and done == [0, 2]
    assert "item 1" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match=r"ended with 3:\nlast words"):
        run_python(["-c", "import os; print('last words', flush=True); os._exit(3)"])
    assert run_python(["-c", "import os; assert os.environ['OMP_NUM_THREADS'] == '1'; import benchmarks"]).cpu > 0
