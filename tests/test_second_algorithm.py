"""The rooms serve more than one algorithm: :mod:`tests.toy_algorithm` is one that imports nothing of ``dreamer_v2``."""

import ast
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dreamer.callbacks import ResumableCheckpointCallback
from tests import toy_algorithm
from tests.toy_algorithm import Toy

ROOT = Path(__file__).parents[1]


def weights(model: Toy) -> th.Tensor:
    return th.cat([x.double().reshape(-1) for x in model.policy.state_dict().values()])


def test_it_imports_no_other_algorithm() -> None:
    """Neither does any room that it imports, which ``tests/test_architecture.py`` holds."""
    tree = ast.parse(Path(toy_algorithm.__file__).read_text())
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert any(module.startswith("sb3_dreamer.algorithm") for module in modules)
    assert not [module for module in modules if module.startswith("sb3_dreamer.dreamer_")]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_it_trains_saves_and_resumes(env_id: str, tmp_path: Path) -> None:
    model = Toy("MlpPolicy", env_id, seed=0, learning_rate="lin_1e-2")
    before = weights(model)
    model.learn(20, log_interval=1, callback=ResumableCheckpointCallback(10, tmp_path / "checkpoints"))
    assert model._n_updates == 5 and not th.equal(weights(model), before)
    model.save(tmp_path / "model")
    env = gym.make(env_id)
    loaded = Toy.load(tmp_path / "model", env)
    assert th.equal(weights(loaded), weights(model))
    observation, _ = env.reset(seed=1)
    assert np.array_equal(
        model.predict(observation, deterministic=True)[0], loaded.predict(observation, deterministic=True)[0]
    )

    resumed = Toy.resume(tmp_path / "checkpoints", env)
    assert resumed.num_timesteps == 20 and resumed.replay_buffer.num_records == model.replay_buffer.num_records
    resumed.learn(20, reset_num_timesteps=False)
    assert resumed.num_timesteps == 40 and resumed._n_updates > model._n_updates
    mean, _ = evaluate_policy(resumed, env, n_eval_episodes=1)
    assert np.isfinite(mean)


def test_files_of_one_algorithm_are_refused_by_another(tmp_path: Path) -> None:
    from sb3_dreamer import DreamerV2

    Toy("MlpPolicy", "CartPole-v1").save(tmp_path / "toy")
    with pytest.raises(ValueError, match="needs a policy derived from DreamerPolicy, but ToyPolicy was given"):
        DreamerV2.load(tmp_path / "toy")


ZOO = """
import sys
from sb3_dreamer.zoo import register_algorithm
from tests.toy_algorithm import Toy

register_algorithm("toy", Toy, "toy.yml")
from rl_zoo3.train import train
sys.argv = "train --algo toy --env CartPole-v1 -n 40 --eval-freq 20 --eval-episodes 1 --seed 0 -f logs".split()
train()
from rl_zoo3.enjoy import enjoy
sys.argv = "enjoy --algo toy --env CartPole-v1 -f logs --no-render -n 20".split()
enjoy()
"""


def test_it_runs_in_the_zoo(tmp_path: Path) -> None:
    pytest.importorskip("rl_zoo3")
    (tmp_path / "toy.yml").write_text("CartPole-v1:\n  n_timesteps: 100\n  policy: MlpPolicy\n  batch_length: 3\n")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{ZOO}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "logs" / "toy" / "CartPole-v1_1" / "CartPole-v1.zip").is_file()
    assert (tmp_path / "logs" / "toy" / "CartPole-v1_1" / "evaluations.npz").is_file()
