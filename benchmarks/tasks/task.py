"""What small tasks have in common: a clock, an end, and a rule that solves them from their observations alone."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Task(gym.Env[np.ndarray, Any], ABC):
    """
    Base of tasks that observe a vector and last at most ``length`` steps.

    A subclass says how an episode begins, what a step does, what is observed, and by which rule it is solved. :meth:`rule`
    may read sizes from the task, never its state.

    :param observation_space: of the vectors
    :param action_space: of the actions
    :param length: steps per episode at most
    :param ends: whether the last step terminates the episode; otherwise it is truncated
    """

    def __init__(self, observation_space: spaces.Box, action_space: spaces.Space, length: int, ends: bool = False) -> None:
        self.observation_space: Any = observation_space
        self.action_space: Any = action_space
        self.length, self.ends, self.time = length, ends, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        self._begin()
        return self._observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, over = self._advance(action)
        self.time += 1
        last = self.time >= self.length
        terminated = over or (last and self.ends)
        return self._observe(), float(reward), terminated, last and not terminated, {}

    @abstractmethod
    def _begin(self) -> None:
        """Draw a new episode."""

    @abstractmethod
    def _advance(self, action: Any) -> tuple[float, bool]:
        """Reward of an action at ``time``, and whether it terminates the episode."""

    @abstractmethod
    def _observe(self) -> np.ndarray:
        """The observation now."""

    @abstractmethod
    def rule(self, observation: np.ndarray, memory: Any) -> tuple[Any, Any]:
        """
        Solve the task.

        :param observation: of one environment
        :param memory: what the rule returned one step before, None at the start of an episode
        :return: action and memory
        """

    def to_cells(self, observation: np.ndarray) -> np.ndarray:
        """
        Arrange an observation with values in [0, 1] as the cells of an image.

        :param observation: of one environment
        :return: brightness in [0, 1], (rows, columns)
        """
        return observation[None]

    def from_cells(self, cells: np.ndarray) -> np.ndarray:
        """
        Invert :meth:`to_cells`.

        :param cells: brightness in [0, 1], (rows, columns)
        :return: the observation
        """
        return cells[0]


class Scripted:
    """
    A policy with SB3's ``predict`` that follows the rule of a task, and sees only observations.

    :param make: makes an environment with a method ``rule``; the one that is made here is never played
    """

    def __init__(self, make: Callable[[], gym.Env]) -> None:
        self._rule: Callable[[Any, Any], tuple[Any, Any]] = make().rule  # type: ignore[attr-defined]

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """
        Act in all environments.

        :param observation: batch of observations, an array or a dict of arrays
        :param state: memory of the rule in each environment, None at first
        :param episode_start: where the memory is forgotten
        :param deterministic: changes nothing
        :return: actions and the new memory
        """
        count = len(next(iter(observation.values())) if isinstance(observation, dict) else observation)
        memories = [None] * count if state is None else state
        if episode_start is not None:
            memories = [None if start else memory for start, memory in zip(episode_start, memories, strict=True)]
        rows = [
            {k: v[i] for k, v in observation.items()} if isinstance(observation, dict) else observation[i]
            for i in range(count)
        ]
        actions, memories = zip(*(self._rule(row, memory) for row, memory in zip(rows, memories, strict=True)), strict=True)
        return np.array(actions), list(memories)


class RandomPlay:
    """
    Uniformly random actions with SB3's ``predict``.

    :param make: makes the environment whose actions are drawn
    :param seed: of the actions
    """

    def __init__(self, make: Callable[[], gym.Env], seed: int = 0) -> None:
        self._space = make().action_space
        self._space.seed(seed)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """
        Act in all environments.

        :param observation: batch of observations
        :param state: returned as it is
        :param episode_start: changes nothing
        :param deterministic: changes nothing
        :return: actions and ``state``
        """
        return np.array([self._space.sample() for _ in rows_of(observation)]), state


def rows_of(observation: Any) -> list[Any]:
    """
    Split a batch of observations.

    :param observation: an array, or a dict of arrays
    :return: one observation per environment
    """
    if not isinstance(observation, dict):
        return list(observation)
    return [dict(zip(observation, row, strict=True)) for row in zip(*observation.values(), strict=True)]


def one_hot(index: int, size: int) -> np.ndarray:
    """
    Encode a choice.

    :param index: what is chosen
    :param size: number of choices
    :return: (size,) float32
    """
    encoded = np.zeros(size, np.float32)
    encoded[index] = 1.0
    return encoded


def unit_box(size: int) -> spaces.Box:
    """
    Space of vectors with entries in [0, 1].

    :param size: of the vectors
    :return: the space
    """
    return spaces.Box(0.0, 1.0, (size,), np.float32)


def choices_of(space: spaces.Space) -> Sequence[int]:
    """
    Number of choices of each part of an action.

    :param space: Discrete, MultiDiscrete or MultiBinary
    :return: one number per part
    """
    if isinstance(space, spaces.MultiBinary):
        return [2] * int(np.prod(space.shape))
    return [int(n) for n in np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec)]  # type: ignore[attr-defined]
