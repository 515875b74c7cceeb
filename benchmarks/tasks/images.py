"""
Small image tasks that a working agent learns within minutes on a CPU, each with a policy that solves it.

The policies have SB3's ``predict`` and see only the images, so a task that they solve with ``evaluate_policy`` can be
solved from its observations.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

IMAGE_SIZE = 64
BALL, PADDLE = 255, 128
LEFT, STAY, RIGHT = 0, 1, 2
CUE, CORRIDOR, JUNCTION = 255, 40, 160


class PixelCatch(gym.Env[np.ndarray, np.int64]):
    """
    A ball falls, one row per step; the paddle in the bottom row moves left, stays, or moves right.

    One fall is one episode of ``rows - 1`` steps. The reward comes with the last step: 1 for a catch, else -1.
    Mean return: 1 at best, about ``2 / columns - 1`` for random actions.

    :param columns: columns of the field, at least 2
    :param rows: rows of the field, the paddle's included; at least ``columns``, so that the paddle is always in time
    :param channels: 1 (gray) or 3 (the same in all three)
    """

    def __init__(self, columns: int = 5, rows: int = 9, channels: int = 1) -> None:
        if not (2 <= columns <= rows <= IMAGE_SIZE // 3 and channels in (1, 3)):
            raise ValueError(f"No field of {columns} columns, {rows} rows and {channels} channels.")
        self.columns, self.rows, self.channels = columns, rows, channels
        self.observation_space = spaces.Box(0, 255, (IMAGE_SIZE, IMAGE_SIZE, channels), dtype=np.uint8)
        self.action_space = spaces.Discrete(3)
        self.ball_column = self.ball_row = self.paddle_column = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.ball_row = 0
        self.ball_column = int(self.np_random.integers(self.columns))
        self.paddle_column = int(self.np_random.integers(self.columns))
        return self._image(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.paddle_column = int(np.clip(self.paddle_column + int(action) - STAY, 0, self.columns - 1))
        self.ball_row += 1
        landed = self.ball_row == self.rows - 1
        caught = self.ball_column == self.paddle_column
        reward = (1.0 if caught else -1.0) if landed else 0.0
        return self._image(), reward, landed, False, {}

    def _image(self) -> np.ndarray:
        image = np.zeros((IMAGE_SIZE, IMAGE_SIZE, self.channels), dtype=np.uint8)
        height, width = IMAGE_SIZE // self.rows, IMAGE_SIZE // self.columns
        for value, row, column, margin in (
            (PADDLE, self.rows - 1, self.paddle_column, 0),
            (BALL, self.ball_row, self.ball_column, 1),
        ):
            top, left = row * height, column * width
            image[top : top + height, left + margin : left + width - margin] = value
        return image


class MemoryCue(gym.Env[np.ndarray, np.int64]):
    """
    A cue on the left or right, a corridor without any cue, and a junction where the cued side must be taken.

    An episode has ``corridor + 2`` steps. Actions before the junction do nothing; the one at the junction ends the
    episode with reward 1 if it is the cued side, else -1. Mean return: 1 at best, 0 without memory.

    :param corridor: steps between the cue and the junction
    """

    def __init__(self, corridor: int = 4) -> None:
        if corridor < 1:
            raise ValueError(f"The corridor needs at least one step, not {corridor}.")
        self.corridor = corridor
        self.observation_space = spaces.Box(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 1), dtype=np.uint8)
        self.action_space = spaces.Discrete(2)
        self.cue = self.position = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.cue = int(self.np_random.integers(2))
        self.position = 0
        return self._image(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        decided = self.position == self.corridor + 1
        self.position += 1
        reward = (1.0 if int(action) == self.cue else -1.0) if decided else 0.0
        return self._image(), reward, decided, False, {}

    def _image(self) -> np.ndarray:
        image = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 1), dtype=np.uint8)
        half = IMAGE_SIZE // 2
        if self.position == 0:
            start = half * self.cue
            image[16:48, start + 8 : start + 24] = CUE
        elif self.position <= self.corridor:
            image[:, 24:40] = CORRIDOR
        elif self.position == self.corridor + 1:
            image[half - 8 : half + 8] = JUNCTION
        return image  # black after the decision, whatever it was


class HoldCue(gym.Env[np.ndarray, int]):
    """
    A cue on the left or right in the first image only; its side must be chosen in that and all following steps.

    Every step gives ``1 / steps`` for the cued side, else minus that. Mean return: 1 at best, 0 without memory or by
    chance. Easier than :class:`MemoryCue`, as every step tells something about remembering one step longer.

    :param steps: steps per episode
    """

    def __init__(self, steps: int = 5) -> None:
        if not 2 <= steps <= 7:
            raise ValueError(f"HoldCue takes 2 to 7 steps, not {steps}.")
        self.steps = steps
        self.observation_space: Any = spaces.Box(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 1), dtype=np.uint8)
        self.action_space: Any = spaces.Discrete(2)
        self.cue = self.position = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.cue = int(self.np_random.integers(2))
        self.position = 0
        return self._image(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = (1.0 if int(action) == self.cue else -1.0) / self.steps
        self.position += 1
        return self._image(), reward, self.position == self.steps, False, {}

    def _image(self) -> np.ndarray:
        image = np.zeros(self.observation_space.shape, dtype=np.uint8)
        if self.position == 0:
            start = IMAGE_SIZE // 2 * self.cue
            image[16:48, start + 8 : start + 24] = CUE
        else:  # how many steps have passed, and nothing else
            image[8 * self.position : 8 * self.position + 8, 24:40] = PADDLE
        return image


class PerfectCatch:
    """Moves the paddle under the ball, as seen in the image."""

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False):
        return np.array([self._action(image[..., 0]) for image in observation]), state

    @staticmethod
    def _action(image: np.ndarray) -> int:
        ball = np.nonzero((image == BALL).any(axis=0))[0].mean()
        paddle = np.nonzero((image == PADDLE).any(axis=0))[0].mean()
        return STAY + int(np.sign(round(ball - paddle)))


class PerfectMemory:
    """Keeps the side of the cue as its state and always goes there."""

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False):
        sides = np.zeros(len(observation), dtype=np.int64) if state is None else state.copy()
        for i in range(len(observation)):
            if episode_start is None or episode_start[i]:
                sides[i] = int((observation[i, :, IMAGE_SIZE // 2 :] == CUE).any())
        return sides, sides
