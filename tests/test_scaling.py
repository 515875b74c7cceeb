"""Fixed scaling of vector observations."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env

from sb3_dreamer.envs import ScaleObservation
from sb3_dreamer.presets import preset
from tests.small import SMALL, SMALL_POLICY

SCALE = [1.5, 2.0, 15.0, 2.0]


def test_multiplies_observation_and_bounds() -> None:
    env, scaled = gym.make("CartPole-v1"), ScaleObservation(gym.make("CartPole-v1"), SCALE)
    raw, _ = env.reset(seed=0)
    observation, _ = scaled.reset(seed=0)
    np.testing.assert_allclose(observation, raw * SCALE, rtol=1e-6)
    np.testing.assert_allclose(scaled.step(1)[0], env.step(1)[0] * SCALE, rtol=1e-6)
    space: Any = env.observation_space
    bounds: Any = scaled.observation_space
    np.testing.assert_allclose(bounds.high[[0, 2]], space.high[[0, 2]] * [1.5, 15.0], rtol=1e-6)
    assert scaled.observation_space.contains(observation)
    check_env(scaled, warn=False)


@pytest.mark.parametrize("scale", [[1.0, 2.0], [[1.0] * 4], [1.0, 0.0, 1.0, 1.0], [1.0, np.nan, 1.0, 1.0]])
def test_refuses_other_factors(scale: list[float]) -> None:
    with pytest.raises(ValueError, match="factors"):
        ScaleObservation(gym.make("CartPole-v1"), scale)


def test_refuses_images_by_name() -> None:
    class Picture(gym.Env):
        observation_space = gym.spaces.Box(0, 255, (8, 8, 1), np.uint8)
        action_space = gym.spaces.Discrete(2)

    with pytest.raises(ValueError, match="observation space"):
        ScaleObservation(Picture(), [1.0])


def test_trains_through_it() -> None:
    from sb3_dreamer import DreamerV2

    env = ScaleObservation(gym.make("CartPole-v1"), SCALE)
    model = DreamerV2("MlpPolicy", env, **{**preset("CartPole-v1"), **SMALL, "policy_kwargs": SMALL_POLICY}).learn(80)
    assert model._n_updates > 0
