"""
Several sensors: a camera and a number, of which both are seen and only the picture is reconstructed.

    python examples/dict_observations.py
"""

import argparse
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_dreamer import DreamerV2, preset

Observation = dict[str, np.ndarray]


class CameraAndFuel(gym.Env[Observation, np.int64]):
    """
    A lamp appears on the left or on the right of a picture; driving to its side pays 1, and uses fuel, which only the gauge
    shows. Without fuel the car stands. Waiting fills the tank.

    Episodes end by time after 16 steps.
    """

    def __init__(self) -> None:
        camera = spaces.Box(0, 255, (32, 32, 1), np.uint8)
        self.observation_space: Any = spaces.Dict({"camera": camera, "fuel": spaces.Box(0.0, 1.0, (1,), np.float32)})
        self.action_space: Any = spaces.Discrete(3)  # left, wait, right
        self.steps, self.fuel, self.lamp = 0, 1.0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.fuel, self.lamp = 0, 1.0, int(self.np_random.integers(2))
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        drives = int(action) != 1 and self.fuel >= 0.5
        reward = 0.0 if not drives else 1.0 if int(action) == 2 * self.lamp else -1.0
        self.fuel = self.fuel - 0.5 if drives else min(self.fuel + 0.5, 1.0)
        self.lamp = int(self.np_random.integers(2))
        return self._observe(), reward, False, self.steps == 16, {}

    def _observe(self) -> Observation:
        camera = np.zeros((32, 32, 1), np.uint8)
        left = 4 + 16 * self.lamp
        camera[12:20, left : left + 8] = 255
        return {"camera": camera, "fuel": np.array([self.fuel], np.float32)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=float, default=6_000, help="environment steps to learn from")
    parser.add_argument("--episodes", type=int, default=20, help="episodes of the evaluation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    hyperparameters = preset("default_pixels")
    # Rewards of one step and pictures of 1,024 pixels: both count
    hyperparameters |= dict(observation_scale={"camera": 4.0}, reward_scale=25.0, gamma=0.95)
    hyperparameters["policy_kwargs"] |= dict(image_size=None, encoder_keys=["camera", "fuel"], decoder_keys=["camera"])
    model = DreamerV2("MultiInputPolicy", CameraAndFuel(), **hyperparameters, seed=options.seed, verbose=1)
    world_model = model.policy.world_model
    print(f"Seen: {', '.join(world_model.encoder_keys)}; reconstructed: {', '.join(world_model.decoder_keys)}")
    model.learn(options.steps, log_interval=25)

    env = Monitor(CameraAndFuel())
    env.reset(seed=options.seed + 1)
    mean, deviation = evaluate_policy(model, env, n_eval_episodes=options.episodes)
    print(f"Return over {options.episodes} episodes: {mean:.1f} +/- {deviation:.1f} (9 is the best possible)")


if __name__ == "__main__":
    main()
