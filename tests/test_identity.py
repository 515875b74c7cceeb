"""SB3's identity environments: the reward is 1 for the action that repeats the observation."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.envs import IdentityEnv, IdentityEnvBox, IdentityEnvMultiBinary, IdentityEnvMultiDiscrete
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dreamer import DreamerV2
from tests.small import small_model

ENVS: dict[str, Callable[[], gym.Env]] = {
    "discrete": lambda: IdentityEnv(4),
    "multi-discrete": lambda: IdentityEnvMultiDiscrete(3),
    "multi-binary": lambda: IdentityEnvMultiBinary(3),
    "box": lambda: IdentityEnvBox(eps=0.5),
}
#: What learns them fast: short sequences, as one step is all there is to know, and fast learning
FAST: dict[str, Any] = dict(
    learning_rate=4e-3,
    actor_learning_rate=4e-3,
    critic_learning_rate=4e-3,
    buffer_size=10_000,
    learning_starts=100,
    batch_size=16,
    batch_length=4,
    imagination_horizon=2,
    train_freq=2,
    gamma=0.4,
    ent_coef=1e-2,
    kl_scale=0.1,
    seed=0,
    policy_kwargs=dict(
        deterministic_size=32,
        hidden_size=32,
        stochastic_size=8,
        stochastic_classes=8,
        net_arch=[32],
        use_discount_head=False,
    ),
)


def vec_env(kind: str, n_envs: int = 1) -> DummyVecEnv:
    return DummyVecEnv([ENVS[kind]] * n_envs)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("kind", ENVS)
def test_runs(kind: str, n_envs: int) -> None:
    model = small_model(vec_env(kind, n_envs), learning_starts=30, seed=3).learn(60)
    assert model._n_updates > 0
    env = ENVS[kind]()
    obs, _ = env.reset()
    action, _ = model.predict(obs)
    assert np.shape(action) == np.shape(obs) and env.action_space.contains(action)
    mean, _ = evaluate_policy(model, vec_env(kind, 2), n_eval_episodes=2, warn=False)
    assert isinstance(mean, float) and 0.0 <= mean <= 100.0


def learned(kind: str, steps: int, **options: float) -> float:
    """Mean return of 20 episodes of 100 steps."""
    model = DreamerV2("MlpPolicy", vec_env(kind), device="cpu", **(FAST | options)).learn(steps)
    mean, _ = evaluate_policy(model, vec_env(kind), n_eval_episodes=20, warn=False)
    assert isinstance(mean, float)
    return mean


def test_learns_discrete() -> None:
    """Seeds 0 to 3 have 100 after 800 steps; random actions 25."""
    assert learned("discrete", 800) > 90.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "steps", "options"),
    [
        ("multi-discrete", 1200, {}),  # random actions: 11
        ("multi-binary", 1400, {}),  # 13
        # A number between -1 and 1 is worth too little beside the KL to be remembered exactly: without the scales 85 at most
        ("box", 1200, dict(observation_scale=30.0, reward_scale=10.0)),
    ],
)
def test_learns(kind: str, steps: int, options: dict[str, float]) -> None:
    assert learned(kind, steps, **options) > 90.0
