"""Picture tasks of the suite as registered ids: importing this module registers them (``--gym-packages`` of rl_zoo3)."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import rl_zoo3.import_envs  # noqa: F401  versions without velocities
from gymnasium import spaces

import sb3_dreamer.envs  # noqa: F401  MinAtar
from benchmarks.tasks.images import PixelCatch
from benchmarks.tasks.reacher import PixelReacher

#: Side of a cell of MinAtar, whose fields have 10 x 10 cells: 40 pixels are enough for SB3's CNN too
CELL = 4
#: MiniGrid's numbers for left, right and forward; with these also pickup and toggle
MOVE, MOVE_AND_USE = (0, 1, 2), (0, 1, 2, 3, 5)
#: As others play this room: with the usual view of 7 x 7 cells it hardly needs a memory. A picture of 63 x 63
NEAR_VIEW = {"agent_view_size": 3, "tile_size": 21}


class DrawnPlanes(gym.ObservationWrapper[np.ndarray, int, np.ndarray]):
    """
    MinAtar as a color picture: every plane has a color of its own, later planes cover earlier ones.

    :param env: with an observation (height, width, planes) of bools
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        height, width, planes = env.observation_space.shape  # type: ignore[misc]
        corners = np.array([[r, g, b] for r in (0, 1) for g in (0, 1) for b in (0, 1)][1:]) * 255
        colors = [*corners, *(corners // 2)][:planes]
        self.palette = np.array([[0, 0, 0], *colors], dtype=np.uint8)
        self.observation_space = spaces.Box(0, 255, (height * CELL, width * CELL, 3), dtype=np.uint8)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """
        :param observation: (height, width, planes)
        :return: (CELL * height, CELL * width, 3) uint8
        """
        last = np.where(observation, np.arange(1, observation.shape[-1] + 1), 0).max(axis=-1)
        return self.palette[last].repeat(CELL, axis=0).repeat(CELL, axis=1)


def make_minatar(game: str, **kwargs: Any) -> gym.Env:
    """
    :param game: as in the id of ``sb3_dreamer.envs``
    :param kwargs: of MinAtar
    :return: the game in colors
    """
    return DrawnPlanes(gym.make(f"MinAtar/{game}-v1", **kwargs).unwrapped)


class SomeActions(gym.ActionWrapper[Any, int, int]):
    """
    A choice of an environment's discrete actions.

    :param env: with a Discrete action space
    :param chosen: their numbers there
    """

    def __init__(self, env: gym.Env, chosen: Sequence[int]) -> None:
        super().__init__(env)
        self.chosen = list(chosen)
        self.action_space = spaces.Discrete(len(self.chosen))

    def action(self, action: int) -> int:
        """
        :param action: an index of those that were chosen
        :return: the environment's own number
        """
        return self.chosen[int(action)]


def make_minigrid(env_id: str, actions: Sequence[int], tile_size: int = 8, **kwargs: Any) -> gym.Env:
    """
    :param env_id: of MiniGrid
    :param actions: those of MiniGrid's seven that do something in this task
    :param tile_size: side of a cell in pixels
    :param kwargs: of the environment
    :return: what the agent sees in front of it as a picture, with the usual 7 x 7 cells of 56 x 56
    """
    import minigrid.wrappers as wrappers

    env = SomeActions(gym.make(env_id, **kwargs), actions)
    return wrappers.ImgObsWrapper(wrappers.RGBImgPartialObsWrapper(env, tile_size))


def register() -> None:
    """Register the ids; again does nothing."""
    entries: dict[str, tuple[Any, dict[str, Any]]] = {
        "suite/PixelCatch-v0": (PixelCatch, {}),
        "suite/PixelReacher-v0": (PixelReacher, {}),
        "suite/MiniGridMemory-v0": (make_minigrid, {"env_id": "MiniGrid-MemoryS7-v0", "actions": MOVE, **NEAR_VIEW}),
        "suite/MiniGridDoorKey-v0": (make_minigrid, {"env_id": "MiniGrid-DoorKey-5x5-v0", "actions": MOVE_AND_USE}),
    }
    for game in ("Breakout", "Freeway", "SpaceInvaders"):
        entries[f"suite/MinAtar{game}-v0"] = (make_minatar, {"game": game})
    for name, (entry, kwargs) in entries.items():
        if name not in gym.registry:
            gym.register(name, entry_point=entry, kwargs=kwargs)


register()
