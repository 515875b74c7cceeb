"""Wrappers that bring observations and rewards into units that a world model can learn from."""

from collections.abc import Sequence

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class BinaryPlanes(gym.ObservationWrapper):
    """
    Turns planes of zeros and ones (MinAtar, or one-hot cells of MiniGrid) into a ``MultiBinary`` vector.

    The world model reconstructs ``MultiBinary`` as independent Bernoulli variables, where a rare one-pixel ball costs several
    nats. As a gray value under unit variance it would cost half a nat, less than the latents that describe it.

    :param env: with a Box observation of bools or integers; values other than 0 and 1 raise an error when they appear
    :raises ValueError: if the observation space is not such a Box
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or space.dtype.kind not in "biu":
            raise ValueError(f"BinaryPlanes takes a Box of bools or integers (all 0 or 1), but was given {space}.")
        self.observation_space = spaces.MultiBinary(int(np.prod(space.shape)))

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Flatten to int8; raises a ``ValueError`` for values other than 0 and 1."""
        wrong = (observation != 0) & (observation != 1)
        if wrong.any():
            raise ValueError(f"BinaryPlanes takes zeros and ones, but was given {observation[wrong][0]} in an observation.")
        return observation.reshape(-1).astype(np.int8)


class FirstEntries(gym.ObservationWrapper):
    """
    Drops the end of a vector observation, such as MuJoCo's contact forces.

    :param env: with a Box observation of rank 1
    :param count: number of entries to keep
    :raises ValueError: if the observation is not a vector, or has fewer entries
    """

    def __init__(self, env: gym.Env, count: int) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not 1 <= count <= space.shape[0]:
            raise ValueError(f"FirstEntries cannot keep {count} entries of the observation space {space}.")
        self.count = count
        self.observation_space = spaces.Box(space.low[:count], space.high[:count], dtype=space.dtype.type)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[: self.count]


class ScaleObservation(gym.ObservationWrapper):
    """
    Multiplies a vector observation by constants, so that its entries have about unit scale.

    The world model's decoder has unit variance: an entry that moves by 0.2 is worth 0.02 nats and is hardly learned.
    Unlike ``VecNormalize`` the scale does not change while the model learns, and there are no statistics to save.

    :param env: with a Box observation of rank 1
    :param scale: one factor per entry
    :raises ValueError: if the observation is not a vector, or the number of factors is not its length
    """

    def __init__(self, env: gym.Env, scale: Sequence[float]) -> None:
        super().__init__(env)
        space, factors = env.observation_space, np.asarray(scale, dtype=np.float64)
        if not isinstance(space, spaces.Box) or space.shape != factors.shape or len(space.shape) != 1:
            raise ValueError(f"ScaleObservation was given {factors.size} factors for the observation space {space}.")
        if not np.all(np.isfinite(factors) & (factors > 0)):
            raise ValueError(f"The factors must be positive and finite, but are {list(scale)}.")
        self.scale = factors
        self.observation_space = spaces.Box(self.observation(space.low), self.observation(space.high), dtype=np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # CartPole's bounds are the largest float32
            return (np.asarray(observation, dtype=np.float64) * self.scale).astype(np.float32)


class ScaleReward(gym.RewardWrapper):
    """
    Multiplies the reward by a constant, so that typical rewards have about unit scale.

    The reward head has unit variance, and the actor weighs returns against its entropy bonus. ``Monitor`` inside this wrapper,
    where rl_zoo3 and SB3's ``make_vec_env`` put it, reports the true score.

    :param env: any environment
    :param scale: the factor
    :raises ValueError: if the factor is not positive and finite
    """

    def __init__(self, env: gym.Env, scale: float) -> None:
        super().__init__(env)
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
            raise ValueError(f"The scale of ScaleReward must be a positive number, but is {scale!r}.")
        self.scale = float(scale)

    def reward(self, reward: float) -> float:  # type: ignore[override]
        return float(reward) * self.scale
