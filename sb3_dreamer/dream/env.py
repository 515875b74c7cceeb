"""A trained world model as a gymnasium environment, to be watched and played."""

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dreamer.algorithm.sequence_algorithm import SequenceOffPolicyAlgorithm
from sb3_dreamer.dream.recording import Source
from sb3_dreamer.dream.vec_env import FPS, RENDER_MODES, DreamVecEnv
from sb3_dreamer.dream.window import Window

#: Most switches whose combinations get a key each
MOST_BITS = 4


class DreamEnv(gym.Env[Any, Any]):
    """
    One dream; see :class:`~sb3_dreamer.dream.vec_env.DreamVecEnv`, of which this is the gymnasium form.

    ``info`` holds ``continue_probability``, what the world model gives for the episode to go on.

    :param model: a trained ``DreamerV2``
    :param starts: experience in which dreams begin
    :param horizon: steps after which a dream is cut off; None is the model's ``batch_length``
    :param context: recorded steps from which the first state is inferred
    :param start_at_reset: begin only where recorded episodes begin
    :param termination: ``"threshold"``, ``"sample"`` or ``"never"``
    :param threshold: see there
    :param transformed_rewards: rewards as the reward head learned them
    :param keys: of a Dict space, to see only these
    :param vec_normalize: statistics with which the model was trained, if it has no environment any more
    :param channels_last: of pictures; None is as in the model's environment, True if it has none
    :param start_steps: to play, if ``starts`` is an environment
    :param render_mode: ``"rgb_array"``, ``"human"`` (a window, through pygame) or None
    """

    metadata = {"render_modes": [mode for mode in RENDER_MODES if mode], "render_fps": FPS}  # noqa: RUF012

    def __init__(
        self,
        model: SequenceOffPolicyAlgorithm,
        starts: Source = None,
        horizon: int | None = None,
        context: int = 5,
        start_at_reset: bool = False,
        termination: str = "threshold",
        threshold: float = 0.5,
        transformed_rewards: bool = False,
        keys: list[str] | None = None,
        vec_normalize: VecNormalize | None = None,
        channels_last: bool | None = None,
        start_steps: int = 1000,
        render_mode: str | None = None,
    ) -> None:
        self._dreams = DreamVecEnv(
            model,
            1,
            starts,
            horizon,
            context,
            start_at_reset,
            termination,
            threshold,
            transformed_rewards,
            keys,
            vec_normalize,
            channels_last,
            start_steps,
            render_mode=render_mode,
        )
        self.render_mode = render_mode
        self.observation_space, self.action_space = self._dreams.observation_space, self._dreams.action_space
        self._window = Window(FPS)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Begin a dream.

        :param seed: of everything that follows
        :param options: none are known
        :return: observation and info
        """
        super().reset(seed=seed)
        if seed is not None:
            self._dreams.seed(seed)
        self._dreams.reset()
        return self._shown(), {"continue_probability": 1.0}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        :param action: of the environment's action space
        :return: observation, reward, whether the dream has ended by itself, whether it was cut off, info
        """
        reward, terminated, truncated, continues = self._dreams.advance(np.asarray(action)[None])
        info = {"continue_probability": float(continues[0])}
        return self._shown(), float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    @property
    def horizon(self) -> int:
        """Steps after which a dream is cut off."""
        return self._dreams.horizon

    def _shown(self) -> Any:
        if self.render_mode == "human":
            picture = self._dreams.get_images()[0]
            assert picture is not None
            self._window.show(picture)
        return self._dreams.observation(0)

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """
        :return: with ``"rgb_array"``: what is seen, (height, width, 3) uint8, numbers as bars
        """
        if self.render_mode == "rgb_array":
            return self._dreams.get_images()[0]
        return None

    def close(self) -> None:
        """Close the window, if there is one."""
        self._window.close()

    def get_keys_to_action(self) -> dict[tuple[int, ...], Any]:
        """
        Keys for ``gymnasium.utils.play``: arrows for the first choices, digits for all of them; see :func:`key_table`.

        :return: from key codes to actions
        """
        return {codes: action for codes, (_, action) in key_table(self.action_space).items()}


def idle_action(space: spaces.Space) -> Any:
    """
    What is done while no key is pressed.

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
    Keys that choose actions. Discrete: left and right arrow are the first and last of two or three, digits 1 to 9 are choices
    by number. Box: left and right for the first number, up and down for the second, digits 1, 2 ... for the upper and q, w
    ... for the lower bound of any. MultiDiscrete and MultiBinary: digit k raises part k; switches can be combined.

    :param space: of actions
    :return: from key codes to the keys' names and the action
    """
    import pygame

    arrows = {"left": pygame.K_LEFT, "right": pygame.K_RIGHT, "down": pygame.K_DOWN, "up": pygame.K_UP}
    chosen: dict[tuple[str, ...], Any] = {}
    if isinstance(space, spaces.Discrete):
        chosen = {(str(index + 1),): index for index in range(min(int(space.n), 9))}
        if space.n in (2, 3):
            chosen |= {("left",): 0, ("right",): int(space.n) - 1}
    elif isinstance(space, spaces.Box):
        size = int(np.prod(space.shape))
        ways = [(("1234567890"[i],), i, 1) for i in range(min(size, 10))] + [
            (("qwertyuiop"[i],), i, -1) for i in range(min(size, 10))
        ]
        ways += [(("right",), 0, 1), (("left",), 0, -1)] + ([(("up",), 1, 1), (("down",), 1, -1)] if size > 1 else [])
        for names, index, side in ways:
            action = np.array(idle_action(space)).reshape(-1)
            action[index] = (space.high if side > 0 else space.low).reshape(-1)[index]
            chosen[names] = action.reshape(space.shape)
    else:
        size = int(np.prod(space.shape))  # type: ignore[arg-type]
        parts = range(min(size, MOST_BITS if isinstance(space, spaces.MultiBinary) else 9))
        largest = MOST_BITS if isinstance(space, spaces.MultiBinary) else 1
        for count in range(1, largest + 1):
            for combination in itertools.combinations(parts, count):
                action = np.zeros(size, dtype=space.dtype)
                action[list(combination)] = 1
                chosen[tuple(str(index + 1) for index in combination)] = action.reshape(space.shape)  # type: ignore[arg-type]
    codes = {names: tuple(sorted(arrows.get(name) or ord(name) for name in names)) for names in chosen}
    return {codes[names]: ("+".join(names), action) for names, action in chosen.items()}
