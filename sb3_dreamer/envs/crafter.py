"""Crafter (Hafner 2021, arXiv 2109.06780) with gymnasium's interface; the crafter package has that of old gym."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_dreamer.envs.optional import optional_import


class CrafterEnv(gym.Env[np.ndarray, int]):
    """
    Crafter, with the player's death reported as termination and the time limit as truncation.

    ``info["achievements"]`` counts all 22 achievements of the current episode, from which Crafter's score is computed. A seed
    reproduces the worlds, but not the behavior of the creatures: Crafter stores them in unordered sets.

    :param reward: return the reward (+1 per unlocked achievement, 0.1 per point of health); otherwise always 0
    :param length: steps until an episode is truncated. Paper: 10,000
    :param size: height and width of the observation in pixels. Paper: 64
    :param render_mode: ``"rgb_array"`` or None
    :raises ImportError: if crafter is not installed
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  as in gymnasium
    #: Height and width of :meth:`render` in pixels
    RENDER_SIZE = 512

    def __init__(self, reward: bool = True, length: int = 10_000, size: int = 64, render_mode: str | None = None) -> None:
        self._crafter = optional_import("crafter", "Crafter")
        self._arguments = dict(reward=reward, length=length, size=(size, size))
        self._game: Any = None
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Discrete(len(self._crafter.constants.actions))  # type: ignore[assignment]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start in a new world; a seed determines this world and all that follow."""
        super().reset(seed=seed)
        if self._game is None or seed is not None:
            self._game = self._crafter.Env(**self._arguments, seed=int(self.np_random.integers(2**31 - 1)))
        return self._game.reset(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, done, info = self._game.step(int(action))
        dead = info["discount"] == 0.0
        info["player_pos"] = info["player_pos"].copy()  # Crafter returns its internal array
        return observation, float(reward), bool(dead), bool(done and not dead), info

    def render(self) -> np.ndarray | None:
        return self._game.render((self.RENDER_SIZE, self.RENDER_SIZE)) if self.render_mode == "rgb_array" else None
