"""A grid world that only directed exploration crosses."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class SparseGrid(gym.Env[np.ndarray, np.int64]):
    """
    An empty square, crossed cell by cell from one corner; the only reward is 1 in the opposite corner.

    Actions move up, down, left, right, and do nothing at the border. Row and column are observed, in [-1, 1]. Every episode
    begins in cell (0, 0); it is terminated in the farthest cell and truncated after ``length`` steps. Random actions hardly
    leave the first corner.

    :param size: cells per side
    :param length: steps of an episode at most; the goal is ``2 * (size - 1)`` steps away
    """

    moves = ((-1, 0), (1, 0), (0, -1), (0, 1))

    def __init__(self, size: int = 25, length: int = 60) -> None:
        if size < 2 or length < 1:
            raise ValueError(f"No grid of {size} cells per side and {length} steps.")
        self.size, self.length, self.goal = size, length, (size - 1, size - 1)
        self.observation_space: Any = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space: Any = spaces.Discrete(4)
        self.position, self.steps = (0, 0), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.steps = (0, 0), 0
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        row, column = (old + move for old, move in zip(self.position, self.moves[int(action)], strict=True))
        if 0 <= min(row, column) and max(row, column) < self.size:
            self.position = (row, column)
        self.steps += 1
        arrived = self.position == self.goal
        return self._observe(), float(arrived), arrived, not arrived and self.steps >= self.length, {}

    def _observe(self) -> np.ndarray:
        return np.array(self.position, np.float32) / (self.size - 1) * 2.0 - 1.0

    def rule(self, observation: np.ndarray, memory: Any) -> tuple[int, Any]:
        """
        Scripted play: down first, then to the right.

        :param observation: of one environment
        :param memory: returned as it is
        :return: action and ``memory``
        """
        return (1 if observation[0] < 1.0 else 3), memory
