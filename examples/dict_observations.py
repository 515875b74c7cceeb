"""
Several sensors: a camera and a number that belong together, and one that says nothing and is left out.

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


class CameraAndGauge(gym.Env[Observation, np.int64]):
    """
    A camera shows where a target is, a gauge where the hand is, and a radio only noise. The reward of each of 20 steps is 1
    minus the distance of hand and target: 19.6 at best, 11.1 for standing still.
    """

    def __init__(self) -> None:
        camera = spaces.Box(0, 255, (16, 16, 1), np.uint8)
        gauge, radio = spaces.Box(-1.0, 1.0, (1,), np.float32), spaces.Box(-1.0, 1.0, (8,), np.float32)
        self.observation_space: Any = spaces.Dict({"camera": camera, "gauge": gauge, "radio": radio})
        self.action_space: Any = spaces.Discrete(3)  # left, stay, right
        self.steps, self.hand, self.target = 0, 0.0, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.hand = 0, 0.0
        self.target = int(self.np_random.integers(-4, 5)) / 5
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.hand = float(np.clip(self.hand + 0.2 * (int(action) - 1), -1.0, 1.0))
        return self._observe(), 1.0 - abs(self.hand - self.target), False, self.steps == 20, {}

    def _observe(self) -> Observation:
        camera = np.zeros((16, 16, 1), np.uint8)
        left = round(6 + 7 * self.target)
        camera[6:10, left : left + 4] = 255
        radio = self.np_random.uniform(-1.0, 1.0, 8).astype(np.float32)
        return {"camera": camera, "gauge": np.array([self.hand], np.float32), "radio": radio}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=float, default=4_000, help="environment steps to learn from")
    parser.add_argument("--episodes", type=int, default=20, help="episodes of the evaluation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    hyperparameters = preset("default_pixels")
    # 256 pixels, one number and the reward: all of them are to count
    hyperparameters |= dict(observation_scale={"camera": 16.0, "gauge": 100.0}, reward_scale=25.0, reward_transform="identity")
    hyperparameters["policy_kwargs"] |= dict(
        image_size=None, encoder_keys=["camera", "gauge"], decoder_keys=["camera", "gauge"]
    )
    model = DreamerV2("MultiInputPolicy", CameraAndGauge(), **hyperparameters, seed=options.seed, verbose=1)
    world_model = model.policy.world_model
    print(f"Seen: {', '.join(world_model.encoder_keys)}; reconstructed: {', '.join(world_model.decoder_keys)}")
    model.learn(options.steps, log_interval=20)

    env = Monitor(CameraAndGauge())
    env.reset(seed=options.seed + 1)
    mean, deviation = evaluate_policy(model, env, n_eval_episodes=options.episodes)
    print(f"Return over {options.episodes} episodes: {mean:.1f} +/- {deviation:.1f} (19.6 is the best possible)")


if __name__ == "__main__":
    main()
