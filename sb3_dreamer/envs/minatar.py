"""MinAtar (Young & Tian 2019, arXiv 1903.03176), whose package registers no ids with gymnasium 1."""

from typing import Any

import gymnasium as gym
import numpy as np

from sb3_dreamer.envs.optional import optional_import

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")


class _Enlarged(gym.Wrapper[np.ndarray, int, np.ndarray, int]):
    """Renders images of 160 x 160 bytes for videos: MinAtar's are 10 x 10 floats up to 1."""

    def render(self) -> np.ndarray | None:
        image: Any = self.env.render()
        return image if self.render_mode != "rgb_array" else np.rint(255 * image).astype(np.uint8).repeat(16, 0).repeat(16, 1)


def make_minatar_env(game: str, use_minimal_action_set: bool, **kwargs: Any) -> gym.Env:
    """
    Create a game as ``minatar.gym.register_envs`` defines it.

    :param game: one of ``GAMES``
    :param use_minimal_action_set: only the actions that the game uses (version 1) instead of all six (version 0)
    :param kwargs: of MinAtar, such as ``sticky_action_prob``, ``difficulty_ramping``, ``render_mode``
    :return: game with observations of (10, 10, planes) bools
    :raises ImportError: if minatar is not installed
    """
    module = optional_import("minatar.gym", "MinAtar")
    return _Enlarged(module.BaseEnv(game=game, use_minimal_action_set=use_minimal_action_set, **kwargs))
