"""Every option changes a number, and impossible ones are refused before anything is built."""

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_dreamer import DreamerV2
from sb3_dreamer.common.preprocessing import encode_actions
from sb3_dreamer.common.schedules import parse_schedule, schedule_value
from sb3_dreamer.dreamer_v2 import policies
from tests.small import (
    BOX,
    DICT,
    DISCRETE,
    IMAGE,
    RandomEnv,
    inner_env,
    logged,
    random_model,
    same_weights,
    small_model,
    weights,
)

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
    "imagination_stride": (2, {}),
    "return_lambda": (0.5, {}),
    "target_update_interval": (1, {}),
    "ent_coef": (0.5, {}),
    "reinforce_weight": (0.5, {}),
    "exploration_noise": (0.5, {}),
    "explore_until": (60, {"policy_kwargs": dict(exploration_class="random")}),
    "kl_scale": (1.0, {}),
    "kl_balance": (None, {}),
    "kl_forward": (True, {}),
    "free_nats": (5.0, {}),
    "free_nats_average": (False, {"free_nats": 0.08}),
    "observation_scale": (2.0, {}),
    "reward_scale": (2.0, {}),
    "discount_scale": (1.0, {}),
    "reward_transform": ("sign", {}),
    "reward_norm_momentum": (0.9, {}),
    "reward_norm_scale": (3.0, {"reward_norm_momentum": 0.9}),
    "normalize_returns": (True, {"reward_scale": 100.0}),
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
    "max_skipped_updates",  # tests/test_diagnostics.py
    "precision",  # tests/test_engine.py, like the next two
    "cuda_graphs",
    "overlap",
    "_init_setup_model",
}


def trained(action_space: spaces.Space = DISCRETE, **options: Any) -> dict[str, th.Tensor]:
    return weights(random_model(action_space=action_space, **({"seed": 1} | options)).learn(72))


def option_names(function: Any) -> set[str]:
    return set(signature(function).parameters) - {"self", "observation_space", "action_space", "lr_schedule"}


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


#: option of the policy: (another value, what it needs)
POLICY_OPTIONS: dict[str, list[tuple[Any, dict[str, Any]]]] = {
    "deterministic_size": [(17, {})],
    "hidden_size": [(17, {})],
    "latent": [("gaussian", dict(stochastic_classes=None))],
    "stochastic_size": [(5, {})],
    "stochastic_classes": [(5, {})],
    "latent_min_std": [(0.5, dict(latent="gaussian", stochastic_classes=None))],
    "latent_std_activation": [("softplus", dict(latent="gaussian", stochastic_classes=None))],
    "net_arch": [
        ([16, 16], {}),
        ({part: [16] for part in ("encoder", "reward", "discount", "actor", "decoder")} | {"critic": [8]}, {}),
    ],
    "activation_fn": [(nn.Tanh, {}), ({"reward": nn.Tanh}, {})],
    "layer_norm": [(True, {}), (["rssm"], {}), (["actor"], {})],
    "normalize_observations": [(True, {})],
    "head_init_scale": [(0.0, {})],
    "use_discount_head": [(False, {})],
    "exploration_class": [("random", {}), ("plan2explore", {}), ("model_loss", {})],
    "exploration_kwargs": [(dict(intrinsic_scale=3.0), dict(exploration_class="plan2explore"))],
    "features_extractor_kwargs": [(dict(net_arch=[12]), {})],
    "decoder_kwargs": [(dict(net_arch=[12]), {})],
    "optimizer_class": [(th.optim.RMSprop, {})],
    "optimizer_kwargs": [(dict(eps=0.1), {}), (dict(eps=0.1), dict(optimizer_class=th.optim.RMSprop))],
}
#: those for images, Box actions, Dict spaces and evaluation are tested below
OTHER_POLICY_OPTIONS = {
    "cnn_depth",
    "image_size",
    "encoder_keys",
    "decoder_keys",
    "actor_distribution",
    "actor_min_std",
    "actor_init_std",
    "actor_exact_gradient",
    "evaluation_noise",
    "evaluation_latent",
    "features_extractor_class",  # tests/test_cnn.py
    "decoder_class",  # tests/test_custom_networks.py
    "normalize_images",  # tests/test_spaces.py
}


def test_every_policy_option_is_tested() -> None:
    assert set(POLICY_OPTIONS) | OTHER_POLICY_OPTIONS == option_names(policies.DreamerPolicy.__init__)


@pytest.mark.parametrize("name", POLICY_OPTIONS)
def test_policy_option_changes_the_result(name: str, default_weights: dict[str, th.Tensor]) -> None:
    for value, needed in POLICY_OPTIONS[name]:
        reference = trained(policy_kwargs=needed) if needed else default_weights
        changed = trained(policy_kwargs={**needed, name: value})
        assert not same_weights(reference, {key: value for key, value in changed.items() if "exploration" not in key})


@pytest.mark.parametrize(
    "changes",
    [
        dict(actor_distribution="tanh_normal"),
        dict(actor_distribution="normal"),
        dict(actor_min_std=0.5),
        dict(actor_init_std=1.0),
        dict(actor_exact_gradient=True),
    ],
)
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


@pytest.mark.parametrize("changes", [dict(encoder_keys=["arm"]), dict(decoder_keys=["arm"])])
def test_option_for_dicts_changes_the_result(changes: dict[str, Any]) -> None:
    results = [random_model(DICT, seed=1, policy_kwargs=kwargs).learn(72) for kwargs in ({}, changes)]
    shapes = [{name: value.shape for name, value in weights(model).items()} for model in results]
    assert shapes[0] != shapes[1]


def test_scales_of_single_observation_keys() -> None:
    reference = weights(random_model(DICT, seed=1).learn(72))
    scaled = [weights(random_model(DICT, seed=1, observation_scale={key: 3.0}).learn(72)) for key in ("arm", "leg")]
    assert not same_weights(reference, scaled[0]) and not same_weights(*scaled)


def test_evaluation_noise_and_latent() -> None:
    """Evaluation is exactly repeatable by default; each option makes it random in its own way."""
    observation = np.zeros((200, 3), dtype=np.float32)
    default = random_model(seed=1)
    results = {}
    for changes in (dict(), dict(evaluation_noise=0.5), dict(evaluation_latent="sample")):
        model = random_model(seed=1, policy_kwargs=changes)
        model.policy.load_state_dict(default.policy.state_dict())
        th.manual_seed(0)
        action, state = model.predict(observation, deterministic=True)
        results[tuple(changes)] = action, state[1]  # type: ignore[index]
    (plain, latent), (noisy, same_latent), (_, sampled) = results.values()
    assert len(set(plain.tolist())) == 1 and np.array_equal(latent, same_latent)
    # with probability one half any of three actions: one third of all are others
    assert np.mean(noisy != plain) == pytest.approx(1 / 3, abs=0.1)
    assert not np.array_equal(latent, sampled)


SIZES = ("deterministic_size", "hidden_size", "cnn_depth")


class NoEncoder(nn.Flatten):
    """Without features_dim."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__()


class Liar(BaseFeaturesExtractor):
    """Makes three features."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space, features_dim=7)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(policy="NoPolicy"), "NoPolicy unknown"),
        (dict(replay_buffer_class=ReplayBuffer), "must be derived from SequenceReplayBuffer, but ReplayBuffer was given"),
        (dict(policy=ActorCriticPolicy), "needs a policy derived from DreamerPolicy, but ActorCriticPolicy was given"),
        (dict(batch_size=0), "batch_size must be a number of at least 1"),
        (dict(batch_length=2.5), "batch_length must be a whole number"),
        (dict(train_freq=5 / 8), "train_freq must be a number of at least 1, but is 0.625"),
        (dict(train_freq=2.5), "train_freq must be a whole number, but is 2.5"),
        (dict(gradient_steps=1.5), "gradient_steps must be a whole number, but is 1.5"),
        (dict(tau=1.5), "tau must be a number between 0 and 1"),
        (dict(reinforce_weight="both"), "reinforce_weight must be a number, .* or 'auto'.*, but is 'both'"),
        (dict(reinforce_weight=1.5), "reinforce_weight must be a number between 0 and 1"),
        (dict(ent_coef="exp_1e-3"), "ent_coef must be a number, a function .*, but is 'exp_1e-3'"),
        (dict(exploration_noise=1.5), "exploration_noise must be a number between 0 and 1"),
        (dict(explore_until=100), "explore_until=100 has nothing to end"),
        (dict(observation_scale={"hand": 2.0}), r"observation_scale names 'hand', .* the keys are \['observation'\]"),
        (dict(observation_scale=-1.0), "observation_scale must be a number of at least 0"),
        (dict(reward_transform="log"), r"Unknown reward_transform 'log'; known are \["),
        (dict(imagination_horizon=1), "imagination_horizon must be a number of at least 2"),
        (dict(kl_balance=2.0), "kl_balance must be a number between 0 and 1"),
        (dict(train_freq=(4, "minute")), "unit of the `train_freq` must be either 'step' or 'episode'"),
        (dict(replay_buffer_kwargs=dict(optimize_memory_usage=True)), "optimize_memory_usage"),
        (
            dict(policy_kwargs=dict(normalize_images=False)),
            "float Boxes of rank 3 are images, but there is none",
        ),
        (dict(policy_kwargs=dict(net_arch=dict(pi=[16]))), r"Unknown parts in net_arch: \['pi'\]"),
        (
            dict(policy_kwargs=dict(layer_norm=["gru"])),
            r"Unknown parts in layer_norm: \['gru'\]; known are \['encoder',",
        ),
        (dict(policy_kwargs=dict(latent="binary")), "'binary'.*categorical.*gaussian"),
        (dict(policy_kwargs=dict(latent="gaussian")), "classes"),
        (dict(policy_kwargs=dict(latent_min_std=0.2)), "min_std"),
        (dict(policy_kwargs=dict(actor_distribution="beta")), "'beta'.*truncated_normal"),
        (dict(policy_kwargs=dict(exploration_class="curious")), "'?curious'?.*plan2explore"),
        (dict(policy_kwargs=dict(exploration_kwargs=dict(ensemble_size=3))), "takes no exploration_kwargs"),
        (dict(policy_kwargs=dict(evaluation_latent="mean")), "evaluation_latent must be one of"),
        (dict(policy_kwargs=dict(decoder_keys=["hand"])), "decoder_keys names 'hand', which is no observation key"),
        (dict(policy_kwargs=dict(encoder_keys=[])), "encoder_keys is empty"),
        *((dict(policy_kwargs={name: 0}), f"{name} must be a number of at least 1, but is 0") for name in SIZES),
        *((dict(policy_kwargs={name: "3"}), f"{name} must be a number of at least 1, but is '3'") for name in SIZES),
        *((dict(policy_kwargs={name: 1.5}), f"{name} must be a whole number, but is 1.5") for name in SIZES),
        (dict(policy_kwargs=dict(net_arch=[0])), "A width in net_arch must be a number of at least 1, but is 0"),
        (dict(policy_kwargs=dict(net_arch=[16, 1.5])), "A width in net_arch must be a whole number, but is 1.5"),
        (dict(policy_kwargs=dict(net_arch=16)), "net_arch must be a list of widths, or a dict of such lists, but 16 was"),
        (
            dict(policy_kwargs=dict(exploration_class="plan2explore", exploration_kwargs=dict(net_arch=[0]))),
            "A width in net_arch must be",
        ),
        (dict(policy_kwargs=dict(activation_fn="relu")), "activation_fn must be a class such as torch.nn.ELU, but is 'relu'"),
        (dict(policy_kwargs=dict(activation_fn=dict(actor=nn.ReLU()))), "activation_fn must be a class"),
        (dict(policy_kwargs=dict(evaluation_noise=2.0)), "evaluation_noise must be a number between 0 and 1"),
        (dict(policy_kwargs=dict(features_extractor_class=NoEncoder)), "NoEncoder must tell its features_dim"),
        (dict(replay_buffer_kwargs=dict(storage_resume=True)), "storage_resume=True needs a storage_path"),
    ],
)
def test_impossible_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        small_model(RandomEnv(), **options)


def test_encoders_that_do_not_tell_the_truth() -> None:
    model = small_model(RandomEnv(), policy_kwargs=dict(features_extractor_class=Liar))
    with pytest.raises(ValueError, match=r"The encoder Liar says features_dim=7, but its features are \(1, 3\)"):
        model.learn(10)


def test_activations_may_be_made_by_any_call() -> None:
    options = dict(activation_fn=partial(nn.LeakyReLU, 0.3), net_arch=np.array([8, 8]))
    model = small_model(RandomEnv(), policy_kwargs=options)
    slopes = {module.negative_slope for module in model.policy.modules() if isinstance(module, nn.LeakyReLU)}
    assert slopes == {0.3}


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(ent_coef="1e-3"), "ent_coef must be a number, .*, but is '1e-3'"),
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


# ------------------------------------------------------------------------------------------------------------------ schedules


def test_notation_of_schedules() -> None:
    falling, changing = parse_schedule("x", "lin_3e-4"), parse_schedule("x", "lin_1_0.1")
    assert [schedule_value("x", falling, progress) for progress in (1.0, 0.5, 0.0, -0.1)] == pytest.approx(
        [3e-4, 1.5e-4, 0, 0]
    )
    assert [schedule_value("x", changing, progress) for progress in (1.0, 0.5, 0.0)] == pytest.approx([1.0, 0.55, 0.1])
    early = parse_schedule("x", "lin_1_0.2_0.5")
    assert [schedule_value("x", early, progress) for progress in (1.0, 0.75, 0.5, 0.0)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    for wrong in ("lin", "lin_", "lin_1_2_0", "lin_1_2_3", "lin_1_0_1_1", "exp_1"):
        with pytest.raises(ValueError, match="x must be a number, a function of the remaining progress"):
            parse_schedule("x", wrong)
    assert parse_schedule("x", 0.3) == 0.3 and parse_schedule("x", "auto", "auto") == "auto"
    with pytest.raises(ValueError, match="x must be a number between 0 and 1, but is"):
        schedule_value("x", lambda progress: 2.0, 1.0, 0.0, 1.0)


@pytest.mark.parametrize("name", ["ent_coef", "reinforce_weight", "exploration_noise"])
@pytest.mark.parametrize("schedule", ["lin_0.8_0.3", lambda progress: 0.3 + 0.5 * progress])
def test_options_follow_their_schedules(name: str, schedule: Any) -> None:
    model = random_model(**{name: schedule})
    now: dict[str, Callable[[], float]] = {
        "ent_coef": lambda: model.behavior_objective.ent_coef,
        "reinforce_weight": lambda: model.behavior_objective.reinforce_weight,
        "exploration_noise": model._noise_amount,
    }
    assert now[name]() == pytest.approx(0.8)
    model._current_progress_remaining = 0.4
    assert now[name]() == pytest.approx(0.5)
    assert logged(model.learn(80, log_interval=1))[f"train/{name}"] == pytest.approx(0.3)


@pytest.mark.parametrize("name", ["ent_coef", "reinforce_weight", "exploration_noise"])
def test_a_schedule_differs_from_its_start(name: str) -> None:
    options: list[dict[str, Any]] = [{name: 0.8}, {name: "lin_0.8_0.8"}, {name: "lin_0.8_0.1"}]
    constant, flat, falling = (trained(**changes) for changes in options)
    assert same_weights(constant, flat) and not same_weights(constant, falling)


def test_exploration_ends() -> None:
    """Random actions until step 60, the actor's own afterwards."""
    model = random_model(learning_starts=20, explore_until=60, policy_kwargs=dict(exploration_class="random"), ent_coef=0.0)
    with th.no_grad():
        model.policy.behavior.actor.output.bias[1] = 100.0  # type: ignore[union-attr, index, operator]
    model.learn(100)
    taken = inner_env(model).actions
    assert len({int(action) for action in taken[20:60]}) == 3 and {int(action) for action in taken[60:]} == {1}


@pytest.mark.parametrize("action_space", [DISCRETE, BOX, spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)])
def test_action_noise_is_what_the_model_remembers(action_space: spaces.Space) -> None:
    """Executed, stored and remembered actions agree under noise."""
    model = random_model(action_space=action_space, learning_starts=0, exploration_noise=0.7, train_freq=100)
    model.learn(20)
    stored = th.as_tensor(model.replay_buffer.actions[model.replay_buffer.pos - 1])
    remembered = model._acting_state.actions  # type: ignore[union-attr]
    assert th.allclose(encode_actions(stored, action_space), remembered)
