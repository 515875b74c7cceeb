"""Environments for the tests."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

Ending = Literal["terminated", "truncated", "both"]


class Step(NamedTuple):
    """Where a scripted environment is; step 0 is the observation after a reset."""

    env: int
    episode: int
    step: int

    @property
    def reward(self) -> float:
        """Reward on arrival here; exact in float32."""
        return 10000.0 * self.env + 100.0 * self.episode + self.step + 0.5

    @property
    def action(self) -> int:
        """Action that is to be taken here, 0 to 6."""
        return (3 * self.env + 2 * self.episode + self.step) % 7


class ScriptedEnv(gym.Env):
    """
    Observation, action and reward tell environment, episode and step, so that any misalignment in a buffer is seen.

    Episode e of environment i has ``lengths[(e + i) % len(lengths)]`` steps and the ending ``endings[(e + i) % ...]``, so
    environments end at different times. An image holds the three numbers in its (uniform) channels: they survive resizing.

    :param index: number of the environment
    :param lengths: steps per episode
    :param endings: how episodes end
    :param observation: "vector" (3,), "image" (height, width, 3) uint8, or "dict" with both
    :param continuous: actions from a (2, 1) Box with bounds -3 and 3 in place of Discrete(7)
    :param size: height and width of the image
    """

    def __init__(
        self,
        index: int = 0,
        lengths: Sequence[int] = (4, 1, 7),
        endings: Sequence[Ending] = ("terminated", "truncated", "both"),
        observation: Literal["vector", "image", "dict"] = "vector",
        continuous: bool = False,
        size: tuple[int, int] = (12, 16),
    ) -> None:
        self.lengths, self.endings, self.kind, self.size = lengths, endings, observation, size
        vector = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        image = spaces.Box(0, 255, (*size, 3), np.uint8)
        both = spaces.Dict({"vector": vector, "image": image})
        observation_spaces: dict[str, spaces.Space] = {"vector": vector, "image": image, "dict": both}
        self.observation_space = observation_spaces[observation]
        self.action_space = spaces.Box(-3.0, 3.0, (2, 1), np.float64) if continuous else spaces.Discrete(7)
        self.now = Step(index, -1, 0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.now = Step(self.now.env, self.now.episode + 1, 0)
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.now = self.now._replace(step=self.now.step + 1)
        ending = self.ending(self.now)
        return self._observation(), self.now.reward, ending in ("terminated", "both"), ending in ("truncated", "both"), {}

    def ending(self, at: Step) -> Ending | None:
        """How the episode ends on arrival at a step, None if it goes on."""
        turn = at.episode + at.env
        return self.endings[turn % len(self.endings)] if at.step >= self.lengths[turn % len(self.lengths)] else None

    def _observation(self) -> Any:
        vector = np.array(self.now, dtype=np.float32)
        if self.kind == "vector":
            return vector
        image = np.full((*self.size, 3), self.now, dtype=np.uint8)
        return image if self.kind == "image" else {"vector": vector, "image": image}


class PixelReacher(gym.Env[np.ndarray, np.ndarray]):
    """
    A hand (white block) is moved over a gray target that lies elsewhere in every episode; one picture shows both.

    Action (x, y) in [-1, 1] moves the hand by up to 6 pixels per axis, as far as the border. The reward is
    ``max(0, 1 - distance / 28)``, the distance being that of the two centres in pixels. Episodes are truncated after 25
    steps, never terminated. Mean return: 23.1 with :class:`ScriptedReacher`, 5.3 (23 % of that) for random actions and for
    standing still, 9.8 (42 %) for going to the middle, which is the best without looking at the target.
    """

    size, hand_size, target_size, step_size, reach, length = 64, 12, 20, 6.0, 28.0, 25
    hand_value, target_value = 255, 128

    def __init__(self) -> None:
        self.observation_space: Any = spaces.Box(0, 255, (self.size, self.size, 1), np.uint8)
        self.action_space: Any = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.hand = self.target = np.zeros(2)  # centres (x, y), pixels
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
        for centre, width, value in (
            (self.target, self.target_size, self.target_value),
            (self.hand, self.hand_size, self.hand_value),  # over the target, which is larger and so never hidden
        ):
            left, top = np.rint(centre - width / 2).astype(int)
            image[top : top + width, left : left + width] = value
        return image


class ScriptedReacher:
    """Moves the hand of :class:`PixelReacher` straight to the target, as seen in the picture; memoryless."""

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False):
        return np.array([self._action(image[..., 0]) for image in observation], np.float32), state

    @classmethod
    def _action(cls, image: np.ndarray) -> np.ndarray:
        way = cls.centre(image, PixelReacher.target_value) - cls.centre(image, PixelReacher.hand_value)
        return np.clip(way / PixelReacher.step_size, -1.0, 1.0)

    @staticmethod
    def centre(image: np.ndarray, value: int) -> np.ndarray:
        """Middle (x, y) of the rectangle around all pixels of a value, in a (height, width) image."""
        rows, columns = np.nonzero(image == value)
        return np.array([columns.min() + columns.max() + 1, rows.min() + rows.max() + 1]) / 2
