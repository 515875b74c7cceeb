"""
Exploration without any reward: Plan2Explore seeks what its world model cannot predict yet, beside random actions.

    python examples/plan2explore.py
"""

import argparse
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_dreamer import DreamerV2


class Grid(gym.Env[np.ndarray, np.int64]):
    """
    An empty square of 25 x 25 cells, entered in one corner; what is paid (1 in the opposite corner) is not told to anybody.

    Remembers the cells that it was seen in, over all episodes of 60 steps.
    """

    size, length = 25, 60

    def __init__(self) -> None:
        self.observation_space: Any = spaces.Box(-1.0, 1.0, (2,), np.float32)  # row, column
        self.action_space: Any = spaces.Discrete(4)  # up, down, left, right
        self.position, self.steps = (0, 0), 0
        self.visited: set[tuple[int, int]] = set()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.steps = (0, 0), 0
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        move = ((-1, 0), (1, 0), (0, -1), (0, 1))[int(action)]
        row, column = self.position[0] + move[0], self.position[1] + move[1]
        if 0 <= row < self.size and 0 <= column < self.size:
            self.position = (row, column)
        self.steps += 1
        arrived = self.position == (self.size - 1, self.size - 1)
        return self._observe(), float(arrived), arrived, not arrived and self.steps >= self.length, {}

    def _observe(self) -> np.ndarray:
        self.visited.add(self.position)
        return np.array(self.position, np.float32) / (self.size - 1) * 2.0 - 1.0


OPTIONS: dict[str, Any] = dict(
    learning_rate=1e-3,
    actor_learning_rate=1e-3,
    critic_learning_rate=1e-3,
    buffer_size=20_000,
    learning_starts=300,
    batch_size=16,
    batch_length=12,
    train_freq=4,
    gamma=0.98,
    imagination_horizon=8,
    target_update_interval=50,
    ent_coef=0.1,  # with less the explorer settles for one way
    reward_transform="identity",
    observation_scale=100.0,  # an error of one cell, 0.08, is worth 0.3 nats
    policy_kwargs=dict(
        deterministic_size=64,
        hidden_size=64,
        stochastic_size=8,
        stochastic_classes=8,
        net_arch=[64, 64],
        exploration_class="plan2explore",
        # only the intrinsic reward (`extrinsic_scale` is 0), in units of its running mean
        exploration_kwargs=dict(ensemble_size=5, reward_norm_momentum=0.95),
    ),
)


def random_cells(steps: int, seed: int) -> int:
    """How many cells uniformly random actions see."""
    env = Grid()
    env.action_space.seed(seed)
    env.reset(seed=seed)
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()
    return len(env.visited)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5_000, help="environment steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    env = Grid()
    model = DreamerV2("MlpPolicy", env, **OPTIONS, seed=options.seed, verbose=1)
    model.learn(options.steps, log_interval=10)
    print(f"Random actions saw {random_cells(options.steps, options.seed)} of {Grid.size**2} cells")
    print(f"Plan2Explore saw {len(env.visited)} of {Grid.size**2} cells")


if __name__ == "__main__":
    main()
