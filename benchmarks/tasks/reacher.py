"""A continuous control task from pixels that takes minutes on a CPU, with a policy that solves it."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class PixelReacher(gym.Env[np.ndarray, np.ndarray]):
    """
    A hand (white block) is moved over a gray target that lies elsewhere in every episode; one image shows both.

    Action (x, y) in [-1, 1] moves the hand by up to 6 pixels per axis, as far as the border. The reward is
    ``max(0, 1 - distance / 28)``, the distance being that of the two centers in pixels. Episodes are truncated after 25
    steps, never terminated. Mean return: 23.1 with :class:`ScriptedReacher`, 5.3 (23 % of that) for random actions and for
    standing still, 9.8 (42 %) for going to the middle, which is the best without looking at the target.
    """

    size, hand_size, target_size, step_size, reach, length = 64, 12, 20, 6.0, 28.0, 25
    hand_value, target_value = 255, 128

    def __init__(self) -> None:
        self.observation_space: Any = spaces.Box(0, 255, (self.size, self.size, 1), np.uint8)
        self.action_space: Any = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.hand = self.target = np.zeros(2)  # centers (x, y), pixels
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.hand = self.np_random.uniform(self.hand_size / 2, self.size - self.hand_size / 2, 2)
        self.target = self.np_random.uniform(self.target_size / 2, self.size - self.target_size / 2, 2)
        self.steps = 0
        return self._image(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        move = self.step_size * np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        self.hand = np.clip(self.hand + move, self.hand_size / 2, self.size - self.hand_size / 2)
        self.steps += 1
        distance = float(np.linalg.norm(self.hand - self.target))
        return self._image(), max(0.0, 1.0 - distance / self.reach), False, self.steps == self.length, {}

    def _image(self) -> np.ndarray:
        image = np.zeros((self.size, self.size, 1), np.uint8)
        for center, width, value in (
            (self.target, self.target_size, self.target_value),
            (self.hand, self.hand_size, self.hand_value),  # over the target, which is larger and so never hidden
        ):
            left, top = np.rint(center - width / 2).astype(int)
            image[top : top + width, left : left + width] = value
        return image


class ScriptedReacher:
    """Moves the hand of :class:`PixelReacher` straight to the target, as seen in the image; memoryless."""

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False):
        return np.array([self._action(image[..., 0]) for image in observation], np.float32), state

    @classmethod
    def _action(cls, image: np.ndarray) -> np.ndarray:
        way = cls.center(image, PixelReacher.target_value) - cls.center(image, PixelReacher.hand_value)
        return np.clip(way / PixelReacher.step_size, -1.0, 1.0)

    @staticmethod
    def center(image: np.ndarray, value: int) -> np.ndarray:
        """Middle (x, y) of the rectangle around all pixels of a value, in a (height, width) image."""
        rows, columns = np.nonzero(image == value)
        return np.array([columns.min() + columns.max() + 1, rows.min() + rows.max() + 1]) / 2
