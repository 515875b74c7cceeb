"""Observations and rewards in units that a world model can learn from."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class BinaryPlanes(gym.ObservationWrapper):
    """
    Planes of zeros and ones (MinAtar's, or MiniGrid's one-hot cells) as a ``MultiBinary`` vector.

    The world model reconstructs ``MultiBinary`` as independent Bernoulli variables, where a rare ball of one pixel costs
    several nats; as gray values under unit variance it would cost half a nat, less than the latents that describe it.

    :param env: with a Box observation of bools or integers; other values than 0 and 1 are refused when they appear
    :raises ValueError: if the observation is something else
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or space.dtype.kind not in "biu":
            raise ValueError(f"BinaryPlanes takes a Box of bools or integers (all 0 or 1), but was given {space}.")
        self.observation_space = spaces.MultiBinary(int(np.prod(space.shape)))

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """
        :param observation: any shape, zeros and ones
        :return: the same, flattened, (n,) int8
        :raises ValueError: if there is another value
        """
        wrong = (observation != 0) & (observation != 1)
        if wrong.any():
            raise ValueError(f"BinaryPlanes takes zeros and ones, but was given {observation[wrong][0]} in an observation.")
        return observation.reshape(-1).astype(np.int8)


class FirstEntries(gym.ObservationWrapper):
    """
    Leaves out the end of a vector observation, such as MuJoCo's contact forces.

    :param env: with a Box observation of rank 1
    :param count: entries to keep
    :raises ValueError: if the observation is no vector, or has not so many entries
    """

    def __init__(self, env: gym.Env, count: int) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not 1 <= count <= space.shape[0]:
            raise ValueError(f"FirstEntries cannot keep {count} entries of the observation space {space}.")
        self.count = count
        self.observation_space = spaces.Box(space.low[:count], space.high[:count], dtype=space.dtype.type)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """
        :param observation: (n,)
        :return: (count,)
        """
        return observation[: self.count]


class ScaleReward(gym.RewardWrapper):
    """
    Multiplies the reward by a constant, so that typical rewards have about unit size.

    The reward head has unit variance and the actor weighs returns against its entropy bonus. ``Monitor`` inside of this
    wrapper, where rl_zoo3 and SB3's ``make_vec_env`` have it, reports the true score.

    :param env: any environment
    :param scale: the factor
    :raises ValueError: if it is not positive and finite
    """

    def __init__(self, env: gym.Env, scale: float) -> None:
        super().__init__(env)
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
            raise ValueError(f"The scale of ScaleReward must be a positive number, but is {scale!r}.")
        self.scale = float(scale)

    def reward(self, reward: float) -> float:  # type: ignore[override]
        """
        :param reward: of the environment
        :return: scaled
        """
        return float(reward) * self.scale
