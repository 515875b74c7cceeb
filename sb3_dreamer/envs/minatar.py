"""MinAtar (Young & Tian 2019, arXiv 1903.03176), whose package registers no ids with gymnasium 1."""

from typing import Any

import gymnasium as gym
import numpy as np

from sb3_dreamer.envs.optional import optional_import

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")


class Drawn(gym.Wrapper[np.ndarray, int, np.ndarray, int]):
    """Pictures for videos: MinAtar's own have 10 x 10 pixels, as floats up to 1."""

    PIXELS = 16

    def render(self) -> np.ndarray | None:
        """
        :return: (160, 160, 3) uint8, or what MinAtar returns in another render mode
        """
        picture: Any = self.env.render()
        if self.render_mode != "rgb_array":
            return picture
        return np.rint(255 * picture).astype(np.uint8).repeat(self.PIXELS, axis=0).repeat(self.PIXELS, axis=1)


def make_minatar_env(game: str, use_minimal_action_set: bool, **kwargs: Any) -> gym.Env:
    """
    One game, as MinAtar's own ``minatar.gym.register_envs`` would make it.

    :param game: one of ``GAMES``
    :param use_minimal_action_set: only the actions that the game uses (version 1), or all six (version 0)
    :param kwargs: of MinAtar, such as ``sticky_action_prob``, ``difficulty_ramping``, ``render_mode``
    :return: the game, its observation (10, 10, planes) bools
    :raises ImportError: if minatar is not installed
    """
    module = optional_import("minatar.gym", "MinAtar")
    return Drawn(module.BaseEnv(game=game, use_minimal_action_set=use_minimal_action_set, **kwargs))
