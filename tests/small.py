"""Models small enough to train for a hundred steps within a second, and environments with any spaces for them."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_dreamer import DreamerV2

SMALL_POLICY: dict[str, Any] = dict(
    deterministic_size=16, hidden_size=16, stochastic_size=4, stochastic_classes=4, net_arch=[16], cnn_depth=2
)
SMALL: dict[str, Any] = dict(
    buffer_size=1000,
    learning_starts=50,
    batch_size=4,
    batch_length=8,
    imagination_horizon=3,
    train_freq=8,
    device="cpu",
)

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (40, 36, 1), np.uint8)
DICT = spaces.Dict({"arm": spaces.Box(-1.0, 1.0, (3,), np.float32), "leg": spaces.Box(-2.0, 2.0, (2,), np.float32)})
DISCRETE = spaces.Discrete(3)
BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
ASYMMETRIC = spaces.Box(np.array([0.0, -5.0]), np.array([1.0, 20.0]), dtype=np.float64)


class RandomEnv(gym.Env):
    """
    Draws observations and rewards, and keeps what it gave and got; refuses actions that its space does not contain.

    :param observation_space: any space
    :param action_space: any space
    :param length: steps per episode; they end by termination and by time limit in turn
    """

    def __init__(
        self, observation_space: spaces.Space = VECTOR, action_space: spaces.Space = DISCRETE, length: int = 10
    ) -> None:
        self.observation_space, self.action_space, self.length = observation_space, action_space, length
        self.observations: list[Any] = []
        self.rewards: list[float] = []
        self.actions: list[Any] = []
        self.episode = self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.episode += 1
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.actions.append(np.array(action))
        self.steps += 1
        self.rewards.append(float(self.np_random.normal()))
        ended, by_time = self.steps >= self.length, self.episode % 2 == 0
        return self._observe(), self.rewards[-1], ended and not by_time, ended and by_time, {}

    def _observe(self) -> Any:
        self.observations.append(self.observation_space.sample())
        return self.observations[-1]


def policy_for(space: spaces.Space) -> str:
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if len(space.shape or ()) == 3 else "MlpPolicy"


def small_model(env: Any, policy: Any = None, policy_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> DreamerV2:
    """
    :param env: environment, VecEnv or id
    :param policy: by the observation space, if None
    :param policy_kwargs: beyond the small sizes
    :param kwargs: constructor arguments in place of the small ones
    """
    policy = policy or ("MlpPolicy" if isinstance(env, str) else policy_for(env.observation_space))
    return DreamerV2(policy, env, **(SMALL | {"policy_kwargs": SMALL_POLICY | (policy_kwargs or {})} | kwargs))


def random_model(
    observation_space: spaces.Space = VECTOR, action_space: spaces.Space = DISCRETE, n_envs: int = 1, **kwargs: Any
) -> DreamerV2:
    """A small model on :class:`RandomEnv`, which needs copies of the spaces: each has a random generator of its own."""
    return small_model(random_envs(observation_space, action_space, n_envs), **kwargs)


def random_envs(
    observation_space: spaces.Space = VECTOR, action_space: spaces.Space = DISCRETE, n_envs: int = 1, length: int = 10
) -> DummyVecEnv:
    def make() -> gym.Env:
        return Monitor(RandomEnv(copy_space(observation_space), copy_space(action_space), length))

    return DummyVecEnv([make] * n_envs)


def copy_space(space: spaces.Space) -> spaces.Space:
    """An equal space with a random generator of its own, always the same one."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: copy_space(part) for key, part in space.spaces.items()}, seed=1)
    if isinstance(space, spaces.Box):
        return spaces.Box(space.low, space.high, space.shape, space.dtype.type, seed=1)
    assert isinstance(space, spaces.Discrete)
    return spaces.Discrete(int(space.n), seed=1)


def inner_env(model: DreamerV2, index: int = 0) -> RandomEnv:
    """The environment itself, below all wrappers."""
    assert model.env is not None
    env: VecEnv = model.env
    return env.unwrapped.envs[index].unwrapped  # type: ignore[attr-defined]


def weights(model: Any) -> dict[str, th.Tensor]:
    """A copy of everything that the policy has learnt."""
    policy = getattr(model, "policy", model)
    return {name: value.clone() for name, value in policy.state_dict().items()}


def same_weights(a: dict[str, th.Tensor], b: dict[str, th.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].shape == b[k].shape and bool(th.equal(a[k], b[k])) for k in a)


def logged(model: DreamerV2) -> dict[str, Any]:
    """What was recorded since the last dump (``log_interval=None``: since the start)."""
    return dict(model.logger.name_to_value)


def spy_on_act(model: DreamerV2, seen: list[Any], note: Callable[..., Any]) -> None:
    """Append ``note(observations, state, episode_starts, result)`` to ``seen`` at every acting step of a model."""
    act = model.policy.act

    def spied(observations: Any, state: Any, episode_starts: Any, *args: Any, **kwargs: Any) -> Any:
        result = act(observations, state, episode_starts, *args, **kwargs)
        seen.append(note(observations, state, episode_starts, result))
        return result

    model.policy.act = spied  # type: ignore[method-assign]


def noting(name: str, notes: list[np.ndarray]) -> Callable[..., bool]:
    """A callback that copies one of the locals at every step."""

    def callback(local_vars: dict[str, Any], _: dict[str, Any]) -> bool:
        notes.append(np.array(local_vars[name]))
        return True

    return callback
