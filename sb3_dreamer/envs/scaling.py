"""Fixed units for vector observations, where a running normalization would move under the world model."""

from collections.abc import Sequence

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class ScaleObservation(gym.ObservationWrapper):
    """
    Multiplies a vector observation by constants, so that its entries have about unit size.

    The world model's decoder has unit variance: an entry that moves by 0.2 is worth 0.02 nats and is hardly learned.
    Unlike ``VecNormalize`` the scale does not move while the model learns, and there are no statistics to save.

    :param env: with a Box observation of rank 1
    :param scale: one factor per entry
    :raises ValueError: if the observation is no vector, or the number of factors is not its length
    """

    def __init__(self, env: gym.Env, scale: Sequence[float]) -> None:
        super().__init__(env)
        space, factors = env.observation_space, np.asarray(scale, dtype=np.float64)
        if not isinstance(space, spaces.Box) or space.shape != factors.shape or len(space.shape) != 1:
            raise ValueError(f"ScaleObservation was given {factors.size} factors for the observation space {space}.")
        if not np.all(np.isfinite(factors) & (factors > 0)):
            raise ValueError(f"The factors must be positive and finite, but are {list(scale)}.")
        self.scale = factors
        low, high = (self._scaled(bound) for bound in (space.low, space.high))
        self.observation_space = spaces.Box(low, high, dtype=np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """
        :param observation: (n,)
        :return: (n,) float32
        """
        return self._scaled(observation)

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # CartPole's bounds are the largest float32
            return (np.asarray(values, dtype=np.float64) * self.scale).astype(np.float32)
