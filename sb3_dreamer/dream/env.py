"""A trained world model as a gymnasium environment, to be watched and played."""

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_dreamer.algorithm.sequence_algorithm import SequenceOffPolicyAlgorithm
from sb3_dreamer.dream.recording import Source
from sb3_dreamer.dream.vec_env import FPS, RENDER_MODES, DreamVecEnv
from sb3_dreamer.dream.window import Window

#: Most switches whose combinations get a key each
MOST_BITS = 4


class DreamEnv(gym.Env[Any, Any]):
    """
    One dream as a gymnasium environment; see :class:`~sb3_dreamer.dream.vec_env.DreamVecEnv` for many.

    ``info`` holds ``continue_probability``, the world model's probability that the episode continues.

    :param model: a trained ``DreamerV2`` or ``DreamerV3``
    :param starts: experience in which dreams begin
    :param render_mode: ``"rgb_array"``, ``"human"`` (a window, through pygame) or None
    :param options: every other argument of ``DreamVecEnv``, such as ``horizon``, but not ``n_envs``
    """

    metadata = {"render_modes": [mode for mode in RENDER_MODES if mode], "render_fps": FPS}  # noqa: RUF012

    def __init__(
        self, model: SequenceOffPolicyAlgorithm, starts: Source = None, *, render_mode: str | None = None, **options: Any
    ) -> None:
        self._dreams = DreamVecEnv(model, 1, starts, render_mode=render_mode, **options)
        self.render_mode = render_mode
        self.observation_space, self.action_space = self._dreams.observation_space, self._dreams.action_space
        self._window = Window(FPS)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a dream; there are no ``options``."""
        super().reset(seed=seed)
        if seed is not None:
            self._dreams.seed(seed)
        self._dreams.reset()
        return self._shown(), {"continue_probability": 1.0}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act in the dream: ``terminated`` is the predicted end of the episode, ``truncated`` the end of the horizon."""
        reward, terminated, truncated, continues = self._dreams.advance(np.asarray(action)[None])
        info = {"continue_probability": float(continues[0])}
        return self._shown(), float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    @property
    def horizon(self) -> int:
        """Steps after which a dream is cut off."""
        return self._dreams.horizon

    def _shown(self) -> Any:
        if self.render_mode == "human":
            image = self._dreams.get_images()[0]
            assert image is not None
            self._window.show(image)
        return self._dreams.observation(0)

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Draw the first image of the current observation, or bars for numbers, with ``"rgb_array"``."""
        return self._dreams.get_images()[0] if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Close the window, if there is one."""
        self._window.close()

    def get_keys_to_action(self) -> dict[tuple[int, ...], Any]:
        """Choose keys for ``gymnasium.utils.play``, see :func:`key_table`; from key codes to actions."""
        return {codes: action for codes, (_, action) in key_table(self.action_space).items()}


def idle_action(space: spaces.Space) -> Any:
    """
    Choose the action while no key is pressed.

    :param space: of actions
    :return: the middle of a Box or of three choices, else the first choice
    """
    if isinstance(space, spaces.Box):
        return ((space.low.astype(np.float64) + space.high) / 2).astype(space.dtype)
    if isinstance(space, spaces.Discrete):
        return 1 if space.n == 3 else 0
    return np.zeros(space.shape, dtype=space.dtype)


def key_table(space: spaces.Space) -> dict[tuple[int, ...], tuple[str, Any]]:
    """
    Choose keys for actions.

    Discrete: left and right arrow are the first and last of two or three choices, digits 1 to 9 are choices by number. Box:
    left and right for the first number, up and down for the second, digits 1, 2 ... for the upper and q, w ... for the lower
    bound of any. MultiDiscrete and MultiBinary: digit k raises part k; switches can be combined.

    :param space: of actions
    :return: from key codes to the keys' names and the action
    """
    import pygame

    arrows = {"left": pygame.K_LEFT, "right": pygame.K_RIGHT, "down": pygame.K_DOWN, "up": pygame.K_UP}
    choose: Any = _part_keys
    if isinstance(space, spaces.Discrete | spaces.Box):
        choose = _discrete_keys if isinstance(space, spaces.Discrete) else _box_keys
    chosen: dict[tuple[str, ...], Any] = choose(space)
    codes = {names: tuple(sorted(arrows.get(name) or ord(name) for name in names)) for names in chosen}
    return {codes[names]: ("+".join(names), action) for names, action in chosen.items()}


def _discrete_keys(space: spaces.Discrete) -> dict[tuple[str, ...], Any]:
    keys: dict[tuple[str, ...], Any] = {(str(index + 1),): index for index in range(min(int(space.n), 9))}
    return keys | ({("left",): 0, ("right",): int(space.n) - 1} if space.n in (2, 3) else {})


def _box_keys(space: spaces.Box) -> dict[tuple[str, ...], Any]:
    size = int(np.prod(space.shape))
    rows = {"1234567890": space.high, "qwertyuiop": space.low}
    moves = [(name, index, bounds) for row, bounds in rows.items() for index, name in enumerate(row[:size])]
    moves += [("right", 0, space.high), ("left", 0, space.low)]
    moves += [("up", 1, space.high), ("down", 1, space.low)] if size > 1 else []
    keys: dict[tuple[str, ...], Any] = {}
    for name, index, bounds in moves:
        action = np.array(idle_action(space)).reshape(-1)
        action[index] = bounds.reshape(-1)[index]
        keys[name,] = action.reshape(space.shape)
    return keys


def _part_keys(space: spaces.MultiDiscrete | spaces.MultiBinary) -> dict[tuple[str, ...], Any]:
    size = int(np.prod(space.shape))
    parts, most_at_once = range(min(size, 9)), 1
    if isinstance(space, spaces.MultiBinary):
        parts, most_at_once = range(min(size, MOST_BITS)), MOST_BITS
    keys = {}
    for count in range(1, most_at_once + 1):
        for combination in itertools.combinations(parts, count):
            action = np.zeros(size, dtype=space.dtype)
            action[list(combination)] = 1
            keys[tuple(str(index + 1) for index in combination)] = action.reshape(space.shape)
    return keys
