"""
Continuous control from pixels: a hand is moved over a target, both are seen in one picture and nowhere else.

    python examples/continuous_pixels.py
    python examples/continuous_pixels.py --env dmc_vision/reacher-easy-v0 --steps 5e5

The second is a task of the DeepMind Control Suite (``pip install "sb3-dreamer[envs]"``), and wants a GPU.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from rl_zoo3.wrappers import FrameSkip
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_dreamer import DreamerV2, preset
from sb3_dreamer.envs import DMCPixels, register_envs


class Reacher(gym.Env[np.ndarray, np.ndarray]):
    """
    Action (x, y) in [-1, 1] moves the hand (white) by up to 6 pixels per axis; the reward is 1 over the target (gray) and
    falls with the distance. Episodes end by time after 25 steps. The best is 23.1, standing still gets 5.3.
    """

    def __init__(self) -> None:
        self.observation_space: Any = spaces.Box(0, 255, (64, 64, 1), np.uint8)
        self.action_space: Any = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.hand = self.target = np.zeros(2)  # centers (x, y), pixels
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.hand = self.np_random.uniform(6, 58, 2)
        self.target = self.np_random.uniform(10, 54, 2)
        self.steps = 0
        return self._image(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        move = 6.0 * np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        self.hand = np.clip(self.hand + move, 6, 58)
        self.steps += 1
        distance = float(np.linalg.norm(self.hand - self.target))
        return self._image(), max(0.0, 1.0 - distance / 28.0), False, self.steps == 25, {}

    def _image(self) -> np.ndarray:
        image = np.zeros((64, 64, 1), np.uint8)
        for center, width, value in ((self.target, 20, 128), (self.hand, 12, 255)):
            left, top = np.rint(center - width / 2).astype(int)
            image[top : top + width, left : left + width] = value
        return image


def make(env_id: str) -> tuple[gym.Env, dict[str, Any]]:
    """The environment and the hyperparameters for it."""
    if env_id == "reacher":
        return Monitor(Reacher()), preset("continuous_pixels")
    register_envs()
    return Monitor(DMCPixels(FrameSkip(gym.make(env_id), skip=2))), preset(env_id)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="reacher", help="reacher, or dmc_vision/<domain>-<task>-v0")
    parser.add_argument("--steps", type=float, default=10_000, help="environment steps to learn from")
    parser.add_argument("--episodes", type=int, default=50, help="episodes of the evaluation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    env, hyperparameters = make(options.env)
    model = DreamerV2("CnnPolicy", env, **hyperparameters, seed=options.seed, verbose=1)
    model.learn(options.steps, log_interval=20)

    env, _ = make(options.env)
    env.reset(seed=options.seed + 1)
    mean, deviation = evaluate_policy(model, env, n_eval_episodes=options.episodes)
    print(f"Return over {options.episodes} episodes: {mean:.1f} +/- {deviation:.1f}")


if __name__ == "__main__":
    main()
