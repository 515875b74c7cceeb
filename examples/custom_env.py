"""
An environment of one's own: made, checked with SB3's ``check_env``, learned, and used.

    python examples/custom_env.py
"""

import argparse
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_dreamer import DreamerV2, preset


class ReachTarget(gym.Env[np.ndarray, np.int64]):
    """A hand on a line; the reward of each of 20 steps is 1 minus the distance of hand and target."""

    def __init__(self) -> None:
        self.observation_space: Any = spaces.Box(-1.0, 1.0, (2,), np.float32)  # hand, target
        self.action_space: Any = spaces.Discrete(3)  # left, stay, right
        self.steps, self.hand, self.target = 0, 0.0, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.hand = 0, 0.0
        self.target = int(self.np_random.integers(-4, 5)) / 5
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.hand = float(np.clip(self.hand + 0.2 * (int(action) - 1), -1.0, 1.0))
        reward = 1.0 - abs(self.hand - self.target)
        # Not terminated, but truncated: the clock stops the game, nothing in it does
        return self._observe(), reward, False, self.steps == 20, {}

    def _observe(self) -> np.ndarray:
        return np.array([self.hand, self.target], np.float32)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=float, default=4_000, help="environment steps to learn from")
    parser.add_argument("--episodes", type=int, default=50, help="episodes of each evaluation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    check_env(ReachTarget())
    model = DreamerV2("MlpPolicy", ReachTarget(), **preset("default"), seed=options.seed, verbose=1)
    env = Monitor(ReachTarget())
    env.reset(seed=options.seed + 1)
    before, _ = evaluate_policy(model, env, n_eval_episodes=options.episodes)
    model.learn(options.steps)
    after, _ = evaluate_policy(model, env, n_eval_episodes=options.episodes)
    print(f"Mean return before {before:.1f}, after {after:.1f} (the best is 19.6)")


if __name__ == "__main__":
    main()
