"""DreamerV3 in rl_zoo3, in the dream tools, and its hyperparameter file."""

import inspect as python_inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
import yaml
from stable_baselines3 import PPO

from sb3_dreamer import DreamerV3, preset
from sb3_dreamer.dream import DreamEnv, DreamVecEnv, open_loop, open_recording
from sb3_dreamer.dream.__main__ import main
from sb3_dreamer.dream.dynamics import DreamDynamics
from sb3_dreamer.dream.inspection import inspect
from sb3_dreamer.dream.zoo_run import load_model
from sb3_dreamer.presets import ZOO_ONLY_KEYS, default_config
from tests.small import DICT, IMAGE, VECTOR, random_model, small_models_of

ROOT = Path(__file__).parents[1]
SECTIONS: dict[str, dict[str, Any]] = yaml.safe_load(default_config("dreamer_v3.yml").read_text())


@pytest.fixture(scope="module")
def models() -> dict[str, DreamerV3]:
    options: dict[str, Any] = dict(seed=0, learning_starts=30, policy_kwargs=dict(image_size=(16, 16)))
    with small_models_of(DreamerV3):
        found: dict[str, Any] = {"vector": VECTOR, "image": IMAGE, "dict": DICT}
        return {kind: random_model(space, **options).learn(60) for kind, space in found.items()}


# ---------------------------------------------------------------------------------------------------- hyperparameter file


@pytest.mark.parametrize("name", SECTIONS)
def test_keys_are_arguments_or_belong_to_the_zoo(name: str) -> None:
    section, arguments = SECTIONS[name], set(python_inspect.signature(DreamerV3).parameters)
    assert set(section) <= (arguments | set(ZOO_ONLY_KEYS)) - {"env", "seed", "device", "verbose", "tensorboard_log"}
    assert (
        section["policy"] in DreamerV3.policy_aliases and set(preset(name, "dreamer_v3.yml")) == set(section) - ZOO_ONLY_KEYS
    )
    numbers = [value for value in section.values() if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value)]
    assert not numbers, f"YAML reads these as text, write !!float: {numbers}"


def test_every_task_of_the_suites_has_a_section() -> None:
    older = yaml.safe_load(default_config().read_text())
    suites = {name for name in older if name.startswith(("dmc_", "CrafterReward"))}
    assert suites <= set(SECTIONS) and len(suites) == 41 and {"default", "atari", "atari100k"} <= set(SECTIONS)


# ------------------------------------------------------------------------------------------------------------------- dreams


@pytest.mark.parametrize("kind", ["vector", "image", "dict"])
def test_dreams(kind: str, models: dict[str, DreamerV3]) -> None:
    model = models[kind]
    recording = open_recording(model)
    loop = open_loop(model, recording, 3, context=3, horizon=4, seed=0)
    for key in loop.truth:
        assert loop.truth[key].shape == loop.model[key].shape and np.isfinite(loop.error(key).model).all()
    found = inspect(model, recording, context=3, horizon=4, n_sequences=4)
    assert found.usage is not None and np.isfinite(found.kl).all() and np.isfinite(found.rewards.error)
    assert found.parameters["RSSM"] == sum(p.numel() for p in model.policy.world_model.rssm.parameters())
    env = DreamVecEnv(model, n_envs=3, horizon=5)
    observations = env.reset()
    for _ in range(12):
        observations, rewards, _, _ = env.step(np.array([env.action_space.sample() for _ in range(3)]))
        assert np.isfinite(rewards).all()
    one = next(iter(observations.values())) if isinstance(observations, dict) else observations
    assert len(one) == 3
    single = DreamEnv(model, horizon=5)
    assert single.observation_space.contains(single.reset(seed=0)[0])


def test_sb3_learns_in_a_dream(models: dict[str, DreamerV3]) -> None:
    env = DreamVecEnv(models["vector"], n_envs=2, horizon=5)
    assert PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, device="cpu").learn(32).num_timesteps == 32


@pytest.mark.parametrize("learns_gamma", [True, False])
def test_probability_to_continue_has_no_gamma(learns_gamma: bool, models: dict[str, DreamerV3]) -> None:
    """Whatever the label of the discount head is."""
    with small_models_of(DreamerV3):
        model = random_model(discount_head_learns_gamma=learns_gamma, gamma=0.5, seed=0)
    head: Any = model.policy.world_model.discount_head
    label = 0.5 if learns_gamma else 1.0
    head.output.weight.data.zero_()
    head.output.bias.data.fill_(float(np.log(label / (1.0 - label))) if label < 1.0 else 20.0)
    dynamics = DreamDynamics(model, th.Generator().manual_seed(0))
    features = model.policy.initial_state(2).latent.features
    assert dynamics.judge(features).continues == pytest.approx(1.0)


def test_command_line(models: dict[str, DreamerV3], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models["image"].save(tmp_path / "model")
    models["image"].save_replay_buffer(tmp_path / "replay_buffer")
    assert isinstance(load_model(tmp_path / "model.zip", "cpu"), DreamerV3)
    where = [str(tmp_path / "model.zip"), "--context", "3", "--horizon", "4", "--sequences", "2", "--device", "cpu"]
    main(["video", *where])
    main(["inspect", *where])
    out = capsys.readouterr().out
    assert (tmp_path / "dream.gif").exists() and (tmp_path / "inspection.png").exists() and "codes in use" in out


# ---------------------------------------------------------------------------------------------------------------------- zoo

TINY = """
CartPole-v1:
  n_timesteps: 100
  policy: MlpPolicy
  buffer_size: 1000
  batch_size: 4
  batch_length: 8
  train_ratio: 4
  imagination_horizon: 3
  policy_kwargs: "dict(deterministic_size=8, hidden_size=8, blocks=2, stochastic_size=2, stochastic_classes=3, bins=21)"
"""
ZOO = """
import runpy
import sys
from sb3_dreamer.zoo import register

register()

def run(module, *arguments):
    sys.argv[:] = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)

common = ["--algo", "dreamer_v3", "--env", "CartPole-v1", "-f", "logs"]
run("rl_zoo3.train", *common, "-conf", "tiny.yml", "--eval-freq", "60", "--eval-episodes", "1", "--seed", "0")
run("rl_zoo3.enjoy", *common, "--no-render", "-n", "20")
run("rl_zoo3.train", *common, "-conf", "tiny.yml", "-optimize", "--n-trials", "1", "-n", "80", "--sampler", "random",
    "--pruner", "none", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots", "--storage", "study.log",
    "--study-name", "tiny")
run("rl_zoo3.train", *common, "-conf", "tiny.yml", "-n", "60", "--eval-freq", "-1", "--trial-id", "0",
    "--storage", "study.log", "--study-name", "tiny")
run("sb3_dreamer.zoo.report", "--algo", "dreamer_v3", "--env", "CartPole-v1", "-f", "logs", "--exp-id", "1", "--episodes", "1")
run("sb3_dreamer.dream", "card", "logs/dreamer_v3/CartPole-v1_1", "--episodes", "1")
"""


def test_the_zoo_trains_enjoys_and_optimizes(tmp_path: Path) -> None:
    pytest.importorskip("rl_zoo3")
    (tmp_path / "tiny.yml").write_text(TINY)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{ZOO}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "logs" / "dreamer_v3" / "CartPole-v1_1"
    assert (run / "CartPole-v1.zip").is_file() and (run / "evaluations.npz").is_file()
    assert "Number of finished trials:  1" in done.stdout and "DreamerV3 on CartPole-v1, 1 evaluation" in done.stdout
    card = (run / "README.md").read_text()
    assert "# DreamerV3 on CartPole-v1" in card and "--algo dreamer_v3" in card and "2301.04104" in card
    last = max(tmp_path.glob("logs/dreamer_v3/CartPole-v1_*/CartPole-v1/config.yml"), key=lambda path: path.stat().st_mtime)
    text = last.read_text()
    assert last.parts[-3] != run.name and "gamma" in text and "deterministic_size" in text


def test_sections_by_observation(tmp_path: Path) -> None:
    """Environments without a section have no hyperparameters; images get the policy for images."""
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import argparse
import gymnasium as gym
from sb3_dreamer.zoo import register
register()
from rl_zoo3.exp_manager import ExperimentManager
from tests.small import IMAGE, RandomEnv
gym.register("MyImages-v0", lambda: RandomEnv(IMAGE))
for env_id in ("MyImages-v0", "CartPole-v1"):
    made = ExperimentManager(argparse.Namespace(), "dreamer_v3", env_id, "logs", seed=0, verbose=0, device="cpu")
    print(made.read_hyperparameters()[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        "Using the section 'default' with CnnPolicy" in done.stdout
        and "Using the section 'default' with MlpPolicy" in done.stdout
    )
