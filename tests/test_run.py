"""The algorithm runs with every environment and option that it accepts, and refuses the others clearly."""

from inspect import signature
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from torch import nn

from sb3_dreamer import DreamerV2
from sb3_dreamer.dreamer_v2 import CnnPolicy, MlpPolicy
from tests.small import (
    ASYMMETRIC,
    BOX,
    DICT,
    DISCRETE,
    IMAGE,
    SMALL,
    SMALL_POLICY,
    VECTOR,
    RandomEnv,
    inner_env,
    logged,
    random_model,
    same_weights,
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


#: option: (a value that differs from the default, other options that it needs)
OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "learning_rate": (1e-2, {}),
    "actor_learning_rate": (1e-2, {}),
    "critic_learning_rate": (1e-2, {}),
    "buffer_size": (30, {}),
    "learning_starts": (40, {}),
    "batch_size": (5, {}),
    "batch_length": (7, {}),
    "tau": (0.5, {"target_update_interval": 1}),
    "gamma": (0.9, {}),
    "train_freq": (7, {}),
    "gradient_steps": (2, {}),
    "imagination_horizon": (4, {}),
    "return_lambda": (0.5, {}),
    "target_update_interval": (1, {}),
    "ent_coef": (0.5, {}),
    "reinforce_weight": (0.5, {}),
    "kl_scale": (1.0, {}),
    "kl_balance": (None, {}),
    "kl_forward": (True, {}),
    "free_nats": (5.0, {}),
    "free_nats_average": (False, {"free_nats": 0.08}),
    "reward_scale": (2.0, {}),
    "discount_scale": (1.0, {}),
    "reward_transform": ("sign", {}),
    "reward_norm_momentum": (0.9, {}),
    "reward_norm_scale": (3.0, {"reward_norm_momentum": 0.9}),
    "observation_gradients": (False, {}),
    "reward_gradients": (False, {}),
    "discount_gradients": (False, {}),
    "max_grad_norm": (1e-3, {}),
    "replay_buffer_kwargs": (dict(prioritize_ends=False), {}),
    "seed": (2, {}),
}
#: arguments whose effect is not on the weights, tested elsewhere
OTHER_OPTIONS = {
    "self",
    "policy",
    "env",
    "replay_buffer_class",  # tests/test_save_load.py
    "policy_kwargs",  # below
    "stats_window_size",  # tests/test_logger.py
    "tensorboard_log",  # tests/test_logger.py
    "verbose",  # tests/test_logger.py
    "device",
    "_init_setup_model",
}


def trained(action_space: spaces.Space = DISCRETE, **options: Any) -> dict[str, th.Tensor]:
    return weights(random_model(action_space=action_space, **({"seed": 1} | options)).learn(72))


@pytest.fixture(scope="module")
def default_weights() -> dict[str, th.Tensor]:
    return trained()


def test_every_option_is_tested() -> None:
    assert set(OPTIONS) | OTHER_OPTIONS >= set(signature(DreamerV2.__init__).parameters)


@pytest.mark.parametrize("name", OPTIONS)
def test_option_changes_the_result(name: str, default_weights: dict[str, th.Tensor]) -> None:
    value, needed = OPTIONS[name]
    reference = trained(**needed) if needed else default_weights
    assert not same_weights(reference, trained(**needed, **{name: value}))


@pytest.mark.parametrize(
    "changes",
    [
        dict(deterministic_size=17),
        dict(hidden_size=17),
        dict(stochastic_size=5),
        dict(stochastic_classes=5),
        dict(net_arch=[16, 16]),
        dict(net_arch={part: [16] for part in ("encoder", "reward", "discount", "actor", "decoder")} | {"critic": [8]}),
        dict(activation_fn=nn.Tanh),
        dict(use_discount_head=False),
        dict(optimizer_class=th.optim.RMSprop),
        dict(optimizer_class=th.optim.RMSprop, optimizer_kwargs=dict(eps=0.1)),
        dict(optimizer_kwargs=dict(eps=0.1)),
        dict(features_extractor_kwargs=dict(net_arch=[12])),
    ],
)
def test_policy_option_changes_the_result(changes: dict[str, Any], default_weights: dict[str, th.Tensor]) -> None:
    assert not same_weights(default_weights, trained(policy_kwargs=changes))


@pytest.mark.parametrize("changes", [dict(actor_min_std=0.5), dict(actor_exact_gradient=True)])
def test_option_of_continuous_actors_changes_the_result(changes: dict[str, Any]) -> None:
    assert not same_weights(trained(BOX), trained(BOX, policy_kwargs=changes))


@pytest.mark.parametrize("changes", [dict(cnn_depth=3), dict(image_size=None), dict(image_size=(32, 48))])
def test_option_for_images_changes_the_result(changes: dict[str, Any]) -> None:
    model = random_model(IMAGE, policy_kwargs=changes)
    default = weights(random_model(IMAGE))
    shapes = {name: value.shape for name, value in weights(model).items()}
    assert shapes != {name: value.shape for name, value in default.items()}
    size = changes.get("image_size", (64, 64)) or (40, 36)
    held = model.learn(4).replay_buffer.observations
    assert isinstance(held, np.ndarray) and held.shape[-2:] == size


def test_custom_policy_class() -> None:
    class WithAnotherName(MlpPolicy):
        pass

    model = small_model(RandomEnv(), WithAnotherName).learn(60)
    assert isinstance(model.policy, WithAnotherName) and model._n_updates == 2


UNSUPPORTED: dict[str, tuple[Any, Any, str | None, str]] = {
    "Discrete observation": (spaces.Discrete(4), DISCRETE, None, r"observation space Discrete\(4\)"),
    "MultiDiscrete observation": (spaces.MultiDiscrete([2, 3]), DISCRETE, None, "observation space MultiDiscrete"),
    "MultiBinary observation": (spaces.MultiBinary(3), DISCRETE, None, "observation space MultiBinary"),
    "matrix observation": (spaces.Box(-1, 1, (2, 2)), DISCRETE, None, "Box vectors of rank 1"),
    "float image": (spaces.Box(0.0, 1.0, (40, 36, 3)), DISCRETE, None, "takes uint8 images"),
    "part of a Dict": (spaces.Dict({"a": VECTOR, "b": spaces.Discrete(2)}), DISCRETE, None, "key 'b'"),
    "nested Dict": (spaces.Dict({"a": DICT}), DISCRETE, None, "[Nn]ested"),
    "MultiBinary action": (VECTOR, spaces.MultiBinary(2), None, "only supports .*Discrete.*Box.* as action spaces"),
    "MultiDiscrete action": (VECTOR, spaces.MultiDiscrete([2, 2]), None, "only supports .* as action spaces"),
    "unbounded action": (VECTOR, spaces.Box(-np.inf, np.inf, (2,)), None, "finite lower and upper bound"),
    "shifted action": (VECTOR, spaces.Discrete(3, start=1), None, "start"),
    "MlpPolicy for Dict": (DICT, DISCRETE, "MlpPolicy", "must use `MultiInputPolicy`"),
    "CnnPolicy for Dict": (DICT, DISCRETE, "CnnPolicy", "must use `MultiInputPolicy`"),
    "CnnPolicy for vectors": (VECTOR, DISCRETE, "CnnPolicy", "CnnPolicy takes an image observation space"),
    "MlpPolicy for images": (IMAGE, DISCRETE, "MlpPolicy", "MlpPolicy takes a vector observation space"),
    "MultiInputPolicy for vectors": (VECTOR, DISCRETE, "MultiInputPolicy", "MultiInputPolicy takes a Dict"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_space_or_policy(case: str) -> None:
    observation_space, action_space, policy, message = UNSUPPORTED[case]
    with pytest.raises((ValueError, AssertionError, NotImplementedError), match=message):
        small_model(RandomEnv(observation_space, action_space), policy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(policy="NoPolicy"), "NoPolicy unknown"),
        (dict(replay_buffer_class=ReplayBuffer), "must be derived from SequenceReplayBuffer, but ReplayBuffer was given"),
        (dict(policy=ActorCriticPolicy), "needs a policy derived from DreamerPolicy, but ActorCriticPolicy was given"),
        (dict(batch_size=0), "batch_size must be a number of at least 1"),
        (dict(batch_length=2.5), "batch_length must be a whole number"),
        (dict(tau=1.5), "tau must be a number between 0 and 1"),
        (dict(reinforce_weight="both"), "reinforce_weight must be a number between 0 and 1 or 'auto', but is 'both'"),
        (dict(reward_transform="log"), r"Unknown reward_transform 'log'; known are \["),
        (dict(imagination_horizon=1), "imagination_horizon must be a number of at least 2"),
        (dict(kl_balance=2.0), "kl_balance must be a number between 0 and 1"),
        (dict(train_freq=(4, "minute")), "unit of the `train_freq` must be either 'step' or 'episode'"),
        (dict(replay_buffer_kwargs=dict(optimize_memory_usage=True)), "optimize_memory_usage"),
        (dict(policy_kwargs=dict(normalize_images=False)), "normalize_images=False is not supported"),
        (dict(policy_kwargs=dict(net_arch=dict(pi=[16]))), r"Unknown parts in net_arch: \['pi'\]"),
    ],
)
def test_impossible_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        small_model(RandomEnv(), **options)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(ent_coef="1e-3"), "ent_coef must be a number of at least 0, but is '1e-3'"),
        (dict(ent_coef=float("nan")), "ent_coef must be a number"),
        (dict(actor_learning_rate=-1.0), "actor_learning_rate must be a number of at least 0"),
        (dict(train_freq=0), "train_freq must be a number of at least 1"),
        (dict(kl_forward="False"), "kl_forward must be True or False"),
        (dict(replay_buffer_kwargs=dict(batch_length=3)), "batch_length is an argument of the algorithm"),
        (dict(replay_buffer_kwargs=dict(image_size=(32, 32))), "image_size is one of policy_kwargs"),
        (dict(policy_kwargs=dict(image_size=64)), "image_size must be"),
        (dict(policy_kwargs=dict(actor_min_std=0.0)), "actor_min_std must be a number"),
    ],
)
def test_refused_before_training(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_model(**options)


def test_policy_with_its_own_image_size() -> None:
    class Tiny(CnnPolicy):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **{**kwargs, "image_size": (32, 32)})

    model = random_model(IMAGE, policy=Tiny).learn(70)
    assert model.replay_buffer.image_size == (32, 32) and model._n_updates > 0
