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
