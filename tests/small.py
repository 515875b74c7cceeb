"""Models small enough to train for a hundred steps within a second, and environments with any spaces for them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import nn

from sb3_dreamer import DreamerV2
from sb3_dreamer.behavior.actor_critic import BehaviorObjective
from sb3_dreamer.behavior.actors import ContinuousOptions
from sb3_dreamer.common.layers import LayerOptions
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.dreamer_v2.policies import DreamerPolicy
from sb3_dreamer.dreamer_v2.update import Imagination, Start, UpdateNoise, imagine, task_rewards
from sb3_dreamer.dreamer_v3.networks import HIDDEN_LAYERS
from sb3_dreamer.world_model.state_space import StateSpaceModel

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
#: Class of small models
_CLASS: list[Any] = [DreamerV2]
#: A first update after some twenty steps, for whoever needs a trained model and no more
LEARN: dict[str, Any] = dict(learning_starts=16, train_freq=8, batch_size=2, batch_length=4)

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (40, 36, 1), np.uint8)
DICT = spaces.Dict({"arm": spaces.Box(-1.0, 1.0, (3,), np.float32), "leg": spaces.Box(-2.0, 2.0, (2,), np.float32)})
DISCRETE = spaces.Discrete(3)
BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
ASYMMETRIC = spaces.Box(np.array([0.0, -5.0]), np.array([1.0, 20.0]), dtype=np.float64)
FLOAT_IMAGE = spaces.Box(0.0, 1.0, (12, 10, 3), np.float32)


def imagine_task(
    policy: DreamerPolicy, start: LatentState, continues: th.Tensor, objective: BehaviorObjective, noise: UpdateNoise
) -> Imagination:
    """The part of an update in which actor and critic imagine."""
    rewards, draws = task_rewards(policy.behavior, objective), (noise.actions, noise.latents)
    return imagine(policy.world_model, policy.behavior, Start(start, continues), objective, rewards, draws)


def layers(*net_arch: int, activation_fn: type[nn.Module] = nn.ELU, layer_norm: bool = False) -> LayerOptions:
    """Layers of these widths."""
    return LayerOptions(net_arch, activation_fn, layer_norm)


def continuous(**changes: Any) -> ContinuousOptions:
    """Options of continuous actors: the defaults of ``policy_kwargs`` with these changes."""
    return ContinuousOptions("truncated_normal", 0.1, 0.0, False)._replace(**changes)


@contextmanager
def carried_into(rssm: StateSpaceModel, state: LatentState) -> Iterator[None]:
    """Sequences begin in this state, as where the official code carries it from one batch to the next."""
    rssm.initial_state = lambda batch_size: state  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del rssm.initial_state  # type: ignore[method-assign]


def image(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


#: Every kind of observation. A key that begins with "float image" needs ``normalize_images=False``
OBSERVATIONS: dict[str, spaces.Space] = {
    "image": image(12, 10, 1),
    "image rgb": image(12, 10, 3),
    "image with depth": image(10, 12, 4),
    "image channel first": image(3, 11, 9),
    "image of odd size": image(13, 7, 3),
    "image of one pixel": image(1, 1, 1),
    "image with more channels than rows": image(41, 40, 50),
    "float image": FLOAT_IMAGE,
    "float image channel first": spaces.Box(-1.0, 1.0, (3, 12, 10), np.float64),
    "number": spaces.Box(-1.0, 1.0, (), np.float32),
    "vector": VECTOR,
    "float64": spaces.Box(-np.inf, np.inf, (3,), np.float64),
    "matrix": spaces.Box(-1.0, 1.0, (2, 3), np.float32),
    "rank 3": spaces.Box(-1.0, 1.0, (2, 3, 4), np.float32),
    "bytes": spaces.Box(0, 255, (6,), np.uint8),
    "integers": spaces.Box(-128, 127, (3,), np.int8),
    "discrete": spaces.Discrete(4),
    "discrete from -2": spaces.Discrete(3, start=-2),
    "one class": spaces.Discrete(1),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-discrete from 1 and -1": spaces.MultiDiscrete([2, 3], start=[1, -1]),
    "multi-discrete matrix": spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])),
    "multi-binary": spaces.MultiBinary(5),
    "multi-binary matrix": spaces.MultiBinary((2, 3)),
}
MIXED_KEYS = ("vector", "image rgb", "discrete from -2", "multi-discrete", "multi-binary matrix", "bytes", "image", "number")
OBSERVATIONS["dict"] = spaces.Dict({key: OBSERVATIONS[key] for key in MIXED_KEYS})

#: Every kind of action
ACTIONS: dict[str, spaces.Space] = {
    "discrete": DISCRETE,
    "one action": spaces.Discrete(1),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-discrete matrix": spaces.MultiDiscrete(np.array([[2, 3], [4, 2]])),
    "multi-binary": spaces.MultiBinary(3),
    "multi-binary matrix": spaces.MultiBinary((2, 2)),
    "box": BOX,
    "number": spaces.Box(-1.0, 1.0, (), np.float32),
    "matrix": spaces.Box(-2.0, 3.0, (2, 3), np.float32),
    "float64": spaces.Box(-1.0, 1.0, (2,), np.float64),
    "asymmetric": ASYMMETRIC,
    "integers": spaces.Box(0, 9, (2,), np.int64),
    "all bytes": spaces.Box(-128, 127, (2,), np.int8),
}


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


def policy_for(space: spaces.Space, float_images: bool = False) -> str:
    """
    :param space: of observations
    :param float_images: whether float Boxes of rank 3 are images (``normalize_images=False``)
    """
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    is_image = is_image_space(space) or (float_images and len(space.shape or ()) == 3)
    return "CnnPolicy" if is_image else "MlpPolicy"


@contextmanager
def small_models_of(algorithm_class: Any) -> Iterator[None]:
    """Small models are of this class meanwhile."""
    _CLASS[0] = algorithm_class
    try:
        yield
    finally:
        _CLASS[0] = DreamerV2


def options_v3(options: dict[str, Any], n_envs: int = 1) -> dict[str, Any]:
    """Constructor arguments of DreamerV2 as those of DreamerV3 that make as many updates, with networks of like size."""
    result = {name: value for name, value in options.items() if name not in ("train_freq", "gradient_steps")}
    policy_kwargs = {"bins": 21, "blocks": 4, **options["policy_kwargs"]}
    if "optimizer_class" not in policy_kwargs:
        policy_kwargs.setdefault("optimizer_kwargs", dict(warmup=0))
    if isinstance(policy_kwargs.get("net_arch"), list):
        policy_kwargs["net_arch"] = dict.fromkeys(HIDDEN_LAYERS, policy_kwargs["net_arch"])
    updates = options.get("gradient_steps", 1) / (options["train_freq"] * n_envs)
    result.setdefault("train_ratio", updates * options["batch_size"] * options["batch_length"])
    return result | {"policy_kwargs": policy_kwargs}


def small_model(env: Any, policy: Any = None, policy_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    """
    :param env: environment, VecEnv or id
    :param policy: by the observation space, if None
    :param policy_kwargs: beyond the small sizes
    :param kwargs: constructor arguments in place of the small ones
    """
    policy_kwargs = SMALL_POLICY | (policy_kwargs or {})
    float_images = not policy_kwargs.get("normalize_images", True)
    policy = policy or ("MlpPolicy" if isinstance(env, str) else policy_for(env.observation_space, float_images))
    options = SMALL | {"policy_kwargs": policy_kwargs} | kwargs
    return _CLASS[0](policy, env, **(options if _CLASS[0] is DreamerV2 else options_v3(options, getattr(env, "num_envs", 1))))


def random_model(
    observation_space: spaces.Space = VECTOR, action_space: spaces.Space = DISCRETE, n_envs: int = 1, **kwargs: Any
) -> Any:
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
    copy = deepcopy(space)
    copy.seed(1)
    return copy


def samples(space: spaces.Space, n: int, seed: int = 0) -> Any:
    """``n`` observations as a VecEnv would stack them: one array (n, *shape), or a dict of these."""
    space = copy_space(space)
    space.seed(seed)
    drawn = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([one[key] for one in drawn]) for key in space.spaces}
    return np.stack(drawn)


def row(obs: Any, index: int) -> Any:
    """One of :func:`samples`, without the batch axis."""
    return {key: value[index] for key, value in obs.items()} if isinstance(obs, dict) else obs[index]


def inner_env(model: DreamerV2, index: int = 0) -> RandomEnv:
    """The environment itself, below all wrappers."""
    assert model.env is not None
    env: VecEnv = model.env
    return env.unwrapped.envs[index].unwrapped  # type: ignore[attr-defined]


def weights(model: Any) -> dict[str, th.Tensor]:
    """A copy of everything that the policy has learned."""
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
