"""Crafter (Hafner 2021, arXiv 2109.06780) in gymnasium's interface; the package has that of old gym."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_dreamer.envs.optional import optional_import


class CrafterEnv(gym.Env[np.ndarray, int]):
    """
    Crafter's game, with the end of the player told apart from the end of time.

    ``info["achievements"]`` counts all 22 achievements of the running episode, from which Crafter's score is computed. A seed
    repeats the worlds, but not what the creatures in them do: Crafter keeps them in sets without an order.

    :param reward: give the reward (+1 for each achievement unlocked, 0.1 for each point of health); without it always 0
    :param length: steps until an episode is cut off, reported as truncation. Paper: 10,000
    :param size: height and width of the observation in pixels. Paper: 64
    :param render_mode: ``"rgb_array"`` or None
    :raises ImportError: if crafter is not installed
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  as in gymnasium
    #: Pixels of ``render``
    RENDER_SIZE = 512

    def __init__(self, reward: bool = True, length: int = 10_000, size: int = 64, render_mode: str | None = None) -> None:
        self._crafter = optional_import("crafter", "Crafter")
        self._arguments = dict(reward=reward, length=length, size=(size, size))
        self._game: Any = None
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Discrete(len(self._crafter.constants.actions))  # type: ignore[assignment]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Start in a new world.

        :param seed: of this world and all that follow; ``None`` goes on
        :param options: not used by Crafter
        :return: first picture, no information
        """
        super().reset(seed=seed)
        if self._game is None or seed is not None:
            self._game = self._crafter.Env(**self._arguments, seed=int(self.np_random.integers(2**31 - 1)))
        return self._game.reset(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param action: one of 17
        :return: picture, reward, player dead, time over, Crafter's information
        """
        observation, reward, done, info = self._game.step(int(action))
        dead = info["discount"] == 0.0
        info["player_pos"] = info["player_pos"].copy()  # Crafter hands out its own
        return observation, float(reward), bool(dead), bool(done and not dead), info

    def render(self) -> np.ndarray | None:
        """
        :return: a larger picture, or None without a render mode
        """
        return self._game.render((self.RENDER_SIZE, self.RENDER_SIZE)) if self.render_mode == "rgb_array" else None
