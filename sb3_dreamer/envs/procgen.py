"""Procgen's 16 games (Cobbe et al. 2020, arXiv 1912.01588) with gymnasium's interface."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_dreamer.envs.optional import optional_import

GAMES = (
    "bigfish bossfight caveflyer chaser climber coinrun dodgeball fruitbot "
    "heist jumper leaper maze miner ninja plunder starpilot"
).split()
#: Action that makes Procgen start a new level
_RESTART = -1


class ProcgenEnv(gym.Env[np.ndarray, int]):
    """
    One game of Procgen.

    The step that ends a level in Procgen also starts the next one, and returns its first image. Here this image is kept for
    ``reset``, and the episode ends with the last image of its own level. Procgen does not distinguish lost levels from
    timeouts: both are reported as terminated.

    :param game: one of ``GAMES``
    :param render_mode: ``"rgb_array"`` or None
    :param options: of Procgen, such as ``distribution_mode="easy"``, ``num_levels=200``, ``start_level=0``
    :raises ImportError: if procgen is not installed
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012  as in gymnasium

    def __init__(self, game: str, render_mode: str | None = None, **options: Any) -> None:
        self._procgen = optional_import("procgen", "Procgen", extra="procgen")
        self._arguments = dict(num=1, num_threads=0, env_name=game, render_mode=render_mode, **options)
        self._game: Any = None
        self._image = np.zeros((64, 64, 3), np.uint8)
        self._is_fresh = False
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = spaces.Discrete(15)  # type: ignore[assignment]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start the next level; a seed determines the choice of this level and all that follow."""
        super().reset(seed=seed)
        if self._game is None or seed is not None:
            self.close()
            rand_seed = int(self.np_random.integers(2**31 - 1))
            self._game = self._procgen.ProcgenGym3Env(**self._arguments, rand_seed=rand_seed)
        elif not self._is_fresh:
            self._game.act(np.array([_RESTART]))
        self._is_fresh = False
        self._image = self._observe()[1]
        return self._image, self._game.get_info()[0]

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._game.act(np.array([action]))
        reward, image, self._is_fresh = self._observe()
        if not self._is_fresh:
            self._image = image
        return self._image, reward, self._is_fresh, False, self._game.get_info()[0]

    def _observe(self) -> tuple[float, np.ndarray, bool]:
        """Reward of the last action, image, and whether it is the first of a level."""
        reward, observation, first = self._game.observe()
        return float(reward[0]), observation["rgb"][0].copy(), bool(first[0])

    def render(self) -> np.ndarray | None:
        return self._game.get_info()[0]["rgb"] if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        if self._game is not None:
            self._game.close()
            self._game = None
