"""The algorithm runs with every environment and option that it accepts, and refuses the others clearly."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_dreamer import DreamerV2
from sb3_dreamer.dreamer_v2 import CnnPolicy, MlpPolicy
from tests.small import (
    ASYMMETRIC,
    BOX,
    DICT,
    DISCRETE,
    FLOAT_IMAGE,
    IMAGE,
    SMALL,
    SMALL_POLICY,
    VECTOR,
    RandomEnv,
    inner_env,
    logged,
    random_model,
    small_model,
    weights,
)

ACTIONS: dict[str, spaces.Space] = {
    "discrete": DISCRETE,
    "one action": spaces.Discrete(1),
    "box": BOX,
    "matrix": spaces.Box(-2.0, 3.0, (2, 3), np.float32),
    "float64": spaces.Box(-1.0, 1.0, (2,), np.float64),
    "asymmetric": ASYMMETRIC,
}
OBSERVATIONS: dict[str, spaces.Space] = {
    "vector": VECTOR,
    "float64": spaces.Box(-1.0, 1.0, (3,), np.float64),
    "integers": spaces.Box(0, 9, (3,), np.int64),
    "image": IMAGE,
    "image channel first": spaces.Box(0, 255, (3, 36, 40), np.uint8),
    "dict": DICT,
}


def check_trained(model: DreamerV2, before: dict[str, th.Tensor]) -> None:
    """World model, actor and critic have all moved, to finite values."""
    after = weights(model)
    for part in ("world_model.encoder.", "world_model.rssm.", "world_model.decoder.", "behavior.critic."):
        names = [name for name in after if name.startswith(part)]
        assert names and any(not th.equal(before[name], after[name]) for name in names), part
    assert all(bool(th.isfinite(value).all()) for value in after.values())


@pytest.mark.parametrize("kind", ACTIONS)
def test_action_spaces(kind: str) -> None:
    model = random_model(action_space=ACTIONS[kind])
    before = weights(model)
    assert model.learn(1e2) is model  # the environment checks every action
    assert 100 <= model.num_timesteps < 100 + 8 and model._n_updates == 7
    check_trained(model, before)
    actor = [name for name in before if name.startswith("behavior.actor.")]
    assert any(not th.equal(before[name], weights(model)[name]) for name in actor) or kind == "one action"
    given = np.array(inner_env(model).actions, dtype=np.float64)
    if isinstance(space := ACTIONS[kind], spaces.Box):  # the whole range is used, by warm-up and policy alike
        for part in (given[:50], given[50:]):
            assert np.ptp(part, axis=0) == pytest.approx(space.high - space.low, rel=0.4)


@pytest.mark.parametrize("actions", ["discrete", "matrix"])
@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_observation_spaces(kind: str, actions: str) -> None:
    model = random_model(OBSERVATIONS[kind], ACTIONS[actions], learning_starts=20)
    before = weights(model)
    model.learn(40)
    assert model._n_updates == 3
    check_trained(model, before)


@pytest.mark.parametrize(
    "env",
    [
        "CartPole-v1",
        "Pendulum-v1",
        lambda: gym.make("CartPole-v1"),
        lambda: DummyVecEnv([lambda: gym.make("CartPole-v1")] * 3),
    ],
)
def test_environment_as_id_env_or_vec_env(env: Any) -> None:
    model = DreamerV2("MlpPolicy", env if isinstance(env, str) else env(), policy_kwargs=SMALL_POLICY, **SMALL)
    model.learn(80)
    assert model._n_updates >= 2
    assert model.env is not None and (model.env.env_is_wrapped(Monitor) == [True] or model.n_envs == 3)  # as SB3 does


@pytest.mark.parametrize("n_envs", [2, 3])
def test_environments_in_processes(n_envs: int) -> None:
    env = SubprocVecEnv([lambda: RandomEnv(IMAGE)] * n_envs, start_method="fork")
    try:
        model = small_model(env, learning_starts=30, train_freq=4).learn(60)
        assert model.replay_buffer.n_envs == n_envs and model.num_timesteps % (4 * n_envs) == 0
        assert model._n_updates == model.num_timesteps // (4 * n_envs) - 30 // (4 * n_envs)
    finally:
        env.close()


@pytest.mark.parametrize(
    ("train_freq", "gradient_steps", "updates"),
    [
        (4, 1, 13),
        ((10, "step"), 2, 10),
        ([10, "step"], 2, 10),  # from YAML
        ((1, "episode"), 1, 5),
        ([2, "episode"], -1, 60),
        (10, -1, 50),
        (10, 0, 0),
    ],
)
def test_train_freq_and_gradient_steps(train_freq: Any, gradient_steps: int, updates: int) -> None:
    model = random_model(train_freq=train_freq, gradient_steps=gradient_steps).learn(100, log_interval=None)
    assert model._n_updates == updates
    assert ("train/n_updates" in logged(model)) == (updates > 0)


def test_gradient_steps_count_all_environments() -> None:
    assert random_model(n_envs=2, train_freq=5, gradient_steps=-1).learn(60)._n_updates == 10


def test_episodic_training_needs_one_environment() -> None:
    with pytest.raises(AssertionError, match="only one env when doing episodic training"):
        random_model(n_envs=2, train_freq=(1, "episode")).learn(20)


def test_schedules_of_all_three_learning_rates() -> None:
    model = random_model(
        learning_rate=lambda progress: 1e-3 * progress,
        actor_learning_rate=lambda progress: 2e-3 * progress,
        critic_learning_rate=lambda progress: 4e-3 * (1 - progress),
    )
    model.learn(80, callback=lambda local_vars, _: local_vars["self"].num_timesteps < 61, log_interval=None)
    reached = {"learning_rate": 0.3e-3, "actor_learning_rate": 0.6e-3, "critic_learning_rate": 2.8e-3}  # at 56 of 80 steps
    optimizers = model.policy.world_model_optimizer, model.policy.actor_optimizer, model.policy.critic_optimizer
    for (name, value), optimizer in zip(reached.items(), optimizers, strict=True):
        assert logged(model)[f"train/{name}"] == pytest.approx(value)
        assert optimizer.optimizer.param_groups[0]["lr"] == pytest.approx(value)


def test_learning_rate_zero_changes_nothing_but_the_decay() -> None:
    rates: dict[str, Any] = dict.fromkeys(("learning_rate", "actor_learning_rate", "critic_learning_rate"), 0.0)
    model = random_model(policy_kwargs=dict(optimizer_kwargs=dict(weight_decay=0.0)), **rates)
    trained = {name: value for name, value in weights(model).items() if "target" not in name}  # copies of the critic
    model.learn(60)
    assert model._n_updates == 2
    assert all(th.equal(weights(model)[name], value) for name, value in trained.items())


def test_buffer_shorter_than_a_sequence() -> None:
    model = random_model(n_envs=2, learning_starts=3, batch_length=50, train_freq=2).learn(12)
    assert model._n_updates == 3 and model.replay_buffer.size() < 50


def test_batch_length_that_the_buffer_never_holds() -> None:
    model = random_model(n_envs=2, buffer_size=14, batch_length=8)
    with pytest.raises(ValueError, match=r"batch_length=8 .*buffer_size=14 over n_envs=2 environments holds 7"):
        model.learn(100)
    assert model.num_timesteps < 70 and model._n_updates == 0  # at the first update


def test_buffer_of_one_step_and_a_full_buffer() -> None:
    assert random_model(n_envs=3, buffer_size=1).learn(6).replay_buffer.size() == 1
    model = random_model(buffer_size=20).learn(100)
    assert model.replay_buffer.full and model._n_updates == 7


def test_training_mode_while_training_and_evaluation_mode_while_acting(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    modes: dict[str, set[bool]] = {"act": set(), "update": set()}

    def spy_on(owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def spy(*args: Any, **kwargs: Any) -> Any:
            modes[name].add(model.policy.training)
            return call(*args, **kwargs)

        monkeypatch.setattr(owner, name, spy)

    spy_on(model.policy, "act")
    spy_on(model, "update")
    model.learn(80)
    assert modes == {"act": {False}, "update": {True}}


def test_custom_policy_class() -> None:
    class WithAnotherName(MlpPolicy):
        pass

    model = small_model(RandomEnv(), WithAnotherName).learn(60)
    assert isinstance(model.policy, WithAnotherName) and model._n_updates == 2


NOT_TAKEN = r"does not support the observation space {} \(key '{}'\): it takes Box .*Discrete, MultiDiscrete, MultiBinary"
EMPTY = spaces.Box(-1.0, 1.0, (0,))
FLAT = spaces.Box(np.array([0.0, 0.0]), np.array([1.0, 0.0]))
UNSUPPORTED: dict[str, tuple[Any, Any, str | None, str]] = {
    "text": (spaces.Text(4), DISCRETE, None, NOT_TAKEN.format(r"Text\(.*\)", "observation")),
    "tuple": (spaces.Tuple([VECTOR]), DISCRETE, None, NOT_TAKEN.format(r"Tuple\(.*\)", "observation")),
    "text in a Dict": (spaces.Dict({"a": VECTOR, "b": spaces.Text(4)}), DISCRETE, None, NOT_TAKEN.format("Text.*", "b")),
    "sequence in a Dict": (
        spaces.Dict({"a": VECTOR, "b": spaces.Sequence(VECTOR)}),
        DISCRETE,
        None,
        NOT_TAKEN.format("Sequence.*", "b"),
    ),
    "graph in a Dict": (
        spaces.Dict({"a": VECTOR, "b": spaces.Graph(VECTOR, None)}),
        DISCRETE,
        None,
        NOT_TAKEN.format("Graph.*", "b"),
    ),
    "Dict in a Dict": (spaces.Dict({"a": DICT}), DISCRETE, None, NOT_TAKEN.format("Dict.*", "a") + ".*FlattenObservation"),
    "tuple in a Dict": (spaces.Dict({"a": spaces.Tuple([VECTOR])}), DISCRETE, None, NOT_TAKEN.format("Tuple.*", "a")),
    "empty Dict": (spaces.Dict({}), DISCRETE, None, r"Dict\(\) is empty: sb3_dreamer takes Box"),
    "empty vector": (EMPTY, DISCRETE, None, r"\(0,\), float32\) \(key 'observation'\) is of size zero"),
    "empty vector in a Dict": (spaces.Dict({"a": VECTOR, "b": EMPTY}), DISCRETE, None, r"\(key 'b'\) is of size zero"),
    "empty image": (spaces.Box(0, 255, (0, 4, 3), np.uint8), DISCRETE, None, r"\(0, 4, 3\), uint8\) .* is of size zero"),
    "unbounded action": (VECTOR, spaces.Box(-np.inf, np.inf, (2,)), None, "is unbounded .* Give it bounds"),
    "half-bounded action": (VECTOR, spaces.Box(0.0, np.inf, (2,)), None, r"is unbounded \(low \[0. 0.\], high \[inf inf\]"),
    "action without a range": (VECTOR, FLAT, None, "action space Box.*: low must be below high in every dimension"),
    "empty action": (VECTOR, EMPTY, None, r"action space Box\(.*\): it is of size zero"),
    "no choices": (VECTOR, spaces.MultiDiscrete([]), None, r"action space MultiDiscrete\(.*\): it is of size zero"),
    "text action": (VECTOR, spaces.Text(4), None, "only supports .*Discrete.*Box.* as action spaces but Text"),
    "Dict action": (VECTOR, DICT, None, "only supports .* as action spaces but Dict"),
    "shifted action": (VECTOR, spaces.Discrete(3, start=1), None, r"Discrete\(3, start=1\): SB3 needs start=0"),
    "shifted actions": (VECTOR, spaces.MultiDiscrete([2, 2], start=[0, 1]), None, r"MultiDiscrete.*: SB3 needs start=0"),
    "MlpPolicy for Dict": (DICT, DISCRETE, "MlpPolicy", "must use `MultiInputPolicy`"),
    "CnnPolicy for Dict": (DICT, DISCRETE, "CnnPolicy", "must use `MultiInputPolicy`"),
    "CnnPolicy for vectors": (VECTOR, DISCRETE, "CnnPolicy", "CnnPolicy takes an image observation space"),
    "CnnPolicy for numbers": (spaces.Discrete(4), DISCRETE, "CnnPolicy", "CnnPolicy takes an image observation space"),
    "CnnPolicy for float images": (FLOAT_IMAGE, DISCRETE, "CnnPolicy", r"CnnPolicy takes an image .*normalize_images=False"),
    "MlpPolicy for images": (IMAGE, DISCRETE, "MlpPolicy", "MlpPolicy takes a vector observation space"),
    "MultiInputPolicy for vectors": (VECTOR, DISCRETE, "MultiInputPolicy", "MultiInputPolicy takes a Dict"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_space_or_policy(case: str) -> None:
    observation_space, action_space, policy, message = UNSUPPORTED[case]
    with pytest.raises((ValueError, AssertionError, NotImplementedError), match=message):
        small_model(RandomEnv(observation_space, action_space), policy)


def test_policy_with_its_own_image_size() -> None:
    class Tiny(CnnPolicy):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **{**kwargs, "image_size": (32, 32)})

    model = random_model(IMAGE, policy=Tiny).learn(70)
    assert model.replay_buffer.image_size == (32, 32) and model._n_updates > 0
