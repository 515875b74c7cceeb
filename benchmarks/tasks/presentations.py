"""The same task seen or paid in another way. Each wrapper passes the rule of its task on, so that it stays solvable."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv

IMAGE_SIZE = 64


class Units(gym.ObservationWrapper[np.ndarray, Any, np.ndarray]):
    """
    A vector in other units.

    :param env: with a Box of vectors
    :param factor: of all numbers
    """

    def __init__(self, env: gym.Env, factor: float) -> None:
        super().__init__(env)
        space: Any = env.observation_space
        self.factor = np.float32(factor)
        self.observation_space: Any = spaces.Box(space.low * self.factor, space.high * self.factor, dtype=np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation * self.factor

    def rule(self, observation: np.ndarray, memory: Any) -> tuple[Any, Any]:
        """As :meth:`benchmarks.tasks.task.Task.rule`."""
        return self.env.rule(observation / self.factor, memory)  # type: ignore[attr-defined]


class Distracted(gym.ObservationWrapper[dict[str, np.ndarray], Any, np.ndarray]):
    """
    A Dict of the observation (``"task"``) and of standard normal numbers that mean nothing (``"noise"``).

    :param env: with any observation that is no Dict
    :param size: how many such numbers
    """

    def __init__(self, env: gym.Env, size: int = 8) -> None:
        super().__init__(env)
        noise = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.observation_space: Any = spaces.Dict({"task": env.observation_space, "noise": noise})
        self.size = size

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {"task": observation, "noise": self.np_random.standard_normal(self.size).astype(np.float32)}

    def rule(self, observation: dict[str, np.ndarray], memory: Any) -> tuple[Any, Any]:
        """As :meth:`benchmarks.tasks.task.Task.rule`."""
        return self.env.rule(observation["task"], memory)  # type: ignore[attr-defined]


class Drawn(gym.ObservationWrapper[np.ndarray, Any, np.ndarray]):
    """
    A gray image of 64 x 64 with the cells of :meth:`benchmarks.tasks.task.Task.to_cells`.

    :param env: a task with observations in [0, 1]
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        rows, columns = self._cells(np.zeros(env.observation_space.shape or (), np.float32)).shape
        self.height, self.width = IMAGE_SIZE // rows, IMAGE_SIZE // columns
        self.observation_space: Any = spaces.Box(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 1), np.uint8)

    def _cells(self, observation: np.ndarray) -> np.ndarray:
        return self.env.to_cells(observation)  # type: ignore[attr-defined]

    def observation(self, observation: np.ndarray) -> np.ndarray:
        cells = np.rint(255.0 * self._cells(observation)).astype(np.uint8)
        image = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 1), np.uint8)
        drawn = cells.repeat(self.height, axis=0).repeat(self.width, axis=1)
        image[: len(drawn), : drawn.shape[1], 0] = drawn
        return image

    def rule(self, observation: np.ndarray, memory: Any) -> tuple[Any, Any]:
        """As :meth:`benchmarks.tasks.task.Task.rule`."""
        cells = observation[self.height // 2 :: self.height, self.width // 2 :: self.width, 0] / np.float32(255.0)
        return self.env.rule(self.env.from_cells(cells), memory)  # type: ignore[attr-defined]


class Paid(gym.Wrapper[Any, Any, Any, Any]):
    """
    The same task in another currency.

    :param env: any
    :param factor: of every reward
    :param bonus: added to every reward after that
    """

    def __init__(self, env: gym.Env, factor: float = 1.0, bonus: float = 0.0) -> None:
        super().__init__(env)
        self.factor, self.bonus = factor, bonus

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, self.factor * float(reward) + self.bonus, terminated, truncated, info

    def rule(self, observation: Any, memory: Any) -> tuple[Any, Any]:
        """As :meth:`benchmarks.tasks.task.Task.rule`."""
        return self.env.rule(observation, memory)  # type: ignore[attr-defined]


class HiddenVelocities(gym.ObservationWrapper[np.ndarray, int, np.ndarray]):
    """
    CartPole-v1 that shows the position of the cart and the angle of the pole, not their velocities.

    :param length: steps per episode at most
    """

    shown = (0, 2)

    def __init__(self, length: int = 200) -> None:
        super().__init__(gym.wrappers.TimeLimit(CartPoleEnv(), length))
        space: Any = self.env.observation_space
        self.observation_space: Any = spaces.Box(space.low[[*self.shown]], space.high[[*self.shown]], dtype=np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[[*self.shown]]

    def rule(self, observation: np.ndarray, memory: Any) -> tuple[Any, Any]:
        """Push the cart under the point that the pole is falling to; velocities are differences of two observations."""
        x, angle = observation
        x_step, angle_step = observation - (observation if memory is None else memory)
        return int(angle + 25.0 * angle_step + 0.1 * x + 5.0 * x_step > 0.0), observation
