"""DreamerV3's networks and update: sizes, beginnings, every kind of space, gradients, and ways that must agree."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

from sb3_dreamer.algorithm.engine import Engine, EngineOptions
from sb3_dreamer.algorithm.graphs import WARM_UP
from sb3_dreamer.common.functional import symexp
from sb3_dreamer.common.observations import OBSERVATION_KEY
from sb3_dreamer.common.type_aliases import ContextBatch, LatentState
from sb3_dreamer.dreamer_v3.behavior import ReturnRange
from sb3_dreamer.dreamer_v3.convolutions import UpsampledConv, stage_sizes
from sb3_dreamer.dreamer_v3.layers import BlockLinear
from sb3_dreamer.dreamer_v3.networks import MODEL_SIZES
from sb3_dreamer.dreamer_v3.objective import Objective
from sb3_dreamer.dreamer_v3.policies import CnnPolicy, DreamerV3Policy, MlpPolicy, MultiInputPolicy
from sb3_dreamer.dreamer_v3.rssm import BlockRSSM
from sb3_dreamer.dreamer_v3.update import UpdateNoise, total_loss, training_update
from tests.small import ACTIONS, BOX, DISCRETE, FLOAT_IMAGE, OBSERVATIONS, VECTOR, image, samples, weights
from tests.small_v3 import OBJECTIVE, random_batch, small_policy
from tests.test_engine import PolicyRecorder

#: Parameters without the slow critic: 64 x 64 x 3 images and 18 actions; 24 numbers and 6 actions (official code, by formula)
COUNTS = {
    "1m": (688_004, 640_867),
    "12m": (10_498_772, 9_738_019),
    "25m": (23_496_244, 21_782_947),
    "50m": (41_659_284, 38_612_003),
    "100m": (93_482_068, 86_622_499),
    "200m": (165_967_124, 153_769_507),
    "400m": (372_924_052, 345_473_059),
}
PIXELS, NUMBERS = image(3, 64, 64), spaces.Box(-1.0, 1.0, (24,), np.float32)


# ------------------------------------------------------------------------------------------------------- construction


@pytest.mark.parametrize("size", MODEL_SIZES)
def test_sizes_have_the_official_number_of_parameters(size: str) -> None:
    cases = (PIXELS, spaces.Discrete(18)), (NUMBERS, spaces.Box(-1.0, 1.0, (6,), np.float32))
    with th.device("meta"):
        policies = [DreamerV3Policy(seen, done, lambda _: 4e-5, model_size=size) for seen, done in cases]
    counts = [sum(p.numel() for p in policy.everything_optimizer.parameters) for policy in policies]
    assert tuple(counts) == COUNTS[size]


def test_optimizer_has_everything_but_the_slow_critic() -> None:
    policy = small_policy(OBSERVATIONS["dict"], BOX)
    trained = {id(p) for p in policy.everything_optimizer.parameters}
    left = {name for name, p in policy.named_parameters() if id(p) not in trained}
    assert left == {name for name, _ in policy.named_parameters() if name.startswith("behavior.critic_target.")}
    assert policy.optimizer is policy.everything_optimizer.optimizer


def test_first_predictions() -> None:
    """Rewards and values are exactly 0, both critics are equal, and the actor is close to uniform."""
    policy = small_policy(as_official=True)
    features = 5.0 * th.randn(50, policy.world_model.rssm.features_size)
    assert th.equal(policy.world_model.predict_rewards(features), th.zeros(50))
    assert th.equal(policy.behavior.critic(features).mean, th.zeros(50))
    for mine, slow in zip(policy.behavior.critic.parameters(), policy.behavior.critic_target.parameters(), strict=True):
        assert th.equal(mine, slow)
    assert policy.behavior.actor(features).entropy().min() > 0.99 * np.log(DISCRETE.n)
    continuous = small_policy(action_space=BOX, as_official=True).behavior.actor(features)
    assert continuous.mean.abs().max() < 0.1


def test_first_update_trains_only_outputs_of_reward_and_critic() -> None:
    """The gradient of what is before outputs of zeros is zero."""
    policy = small_policy(as_official=True)
    policy.everything_optimizer.backward(total_loss(policy, random_batch(policy), OBJECTIVE).losses.total)
    for head in (policy.world_model.reward_head, policy.behavior.critic):
        assert all(not p.grad.any() for p in head.trunk.parameters()) and head.output.weight.grad.any()  # type: ignore


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(model_size="2m"), "Unknown model_size '2m'; known are .*'12m'"),
        (dict(blocks=5), "blocks=5 must divide deterministic_size, but that is 16"),
        (dict(deterministic_size=0), "deterministic_size must be a number of at least 1, but is 0"),
        (dict(hidden_size="x"), "hidden_size must be a number of at least 1, but is 'x'"),
        (dict(stochastic_classes=1), "stochastic_classes must be a number of at least 2, but is 1"),
        (dict(unimix=1.0), "unimix must be a number between 0 and 0.999999, but is 1.0"),
        (dict(bins=1), "bins must be a number of at least 2, but is 1"),
        (dict(net_arch=[64]), r"net_arch must be a dict of parts .*, but is \[64\]"),
        (dict(net_arch=dict(policy=[64])), r"Unknown parts in net_arch: \['policy'\]; known are"),
        (dict(net_arch=dict(actor=[])), r"net_arch\['actor'\] must be a list of widths, at least one, but is \[\]"),
        (dict(net_arch=dict(actor=[0])), r"A width in net_arch\['actor'\] must be a number of at least 1, but is 0"),
        (dict(actor_min_std=2.0), "actor_max_std must be a number of at least 2, but is 1.0"),
        (dict(encoder_keys=[]), "encoder_keys is empty"),
        (dict(head_init_scale=-1.0), "head_init_scale must be a number of at least 0, but is -1.0"),
        (dict(optimizer_kwargs=dict(warmup=-1)), "warmup must be a number of at least 0, but is -1"),
        (dict(optimizer_kwargs=dict(clip="x")), "clip must be a number of at least 0, but is 'x'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_policy(**options)


def test_image_decoder_names_sizes_that_its_blocks_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"8 blocks, which must divide deterministic_size \(20\).*4 \* cnn_depth \(8\)"):
        small_policy(PIXELS, deterministic_size=20)
    small_policy(PIXELS, deterministic_size=20, decoder_kwargs=dict(spatial_blocks=4))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(gamma=1.5), "gamma must be a number between 1e-06 and 1, but is 1.5"),
        (dict(tau=-0.1), "tau must be a number between 0 and 1, but is -0.1"),
        (dict(imagination_horizon=0), "imagination_horizon must be a number of at least 1, but is 0"),
        (dict(imagination_last=1), "imagination_last must be a number of at least 2, but is 1"),
        (dict(bootstrap_target=1), "bootstrap_target must be True or False, but is 1"),
        (dict(observation_scale={"a": -1.0}), r"observation_scale\['a'\] must be a number of at least 0, but is -1.0"),
        (dict(dynamics_scale="x"), "dynamics_scale must be a number of at least 0, but is 'x'"),
    ],
)
def test_impossible_objectives_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**changes)


def test_policies_take_their_kind_of_space() -> None:
    for cls, space in ((CnnPolicy, PIXELS), (MlpPolicy, NUMBERS), (MultiInputPolicy, OBSERVATIONS["dict"])):
        cls(space, DISCRETE, lambda _: 1e-4, model_size="1m")
    with pytest.raises(AssertionError, match="MlpPolicy takes a vector observation space"):
        MlpPolicy(PIXELS, DISCRETE, lambda _: 1e-4, model_size="1m")


def test_policy_can_be_saved_and_loaded(tmp_path: Any) -> None:
    policy = small_policy(OBSERVATIONS["dict"], BOX)
    policy.save(tmp_path / "policy.pth")
    loaded = DreamerV3Policy.load(tmp_path / "policy.pth")
    assert all(th.equal(a, b) for a, b in zip(policy.state_dict().values(), loaded.state_dict().values(), strict=True))
    assert loaded._arguments == policy._arguments


# ------------------------------------------------------------------------------------------------------------- spaces


@pytest.mark.parametrize("name", [name for name in OBSERVATIONS if name != "dict"] + ["dict"])
def test_every_kind_of_observation_is_learned(name: str) -> None:
    space = OBSERVATIONS[name]
    policy = small_policy(space, BOX, normalize_images=not name.startswith("float image"))
    check_update(policy)
    action, state = policy.predict(samples(space, 3))
    assert action.shape == (3, *BOX.shape) and state is not None


@pytest.mark.parametrize("name", ACTIONS)
def test_every_kind_of_action_is_learned(name: str) -> None:
    space = ACTIONS[name]
    policy = small_policy(VECTOR, space)
    check_update(policy)
    for deterministic in (False, True):
        action, _ = policy.predict(samples(VECTOR, 3), deterministic=deterministic)
        assert all(space.contains(row) or space.contains(np.asarray(row)) for row in action)


@pytest.mark.parametrize("image_size", [None, (16, 16), (64, 64), (20, 14)])
@pytest.mark.parametrize("shape", [(12, 10, 3), (1, 9, 4), (84, 84, 1), (5, 40, 3)])
def test_images_of_any_size(shape: tuple[int, int, int], image_size: tuple[int, int] | None) -> None:
    height, width, channels = shape
    check_update(small_policy(image(channels, height, width), image_size=image_size))


def check_update(policy: DreamerV3Policy) -> None:
    """One update is finite and moves every parameter."""
    before = weights(policy)
    result = training_update(policy, random_batch(policy), OBJECTIVE)
    assert all(th.isfinite(value).all() for value in result.metrics.values())
    one_choice = isinstance(policy.action_space, spaces.Discrete) and policy.action_space.n == 1
    for name, value in policy.named_parameters():
        moved = not th.equal(value, before[name])
        assert moved or value.grad is None or not value.grad.any(), name  # such as the weights of inputs that are 0
        if name.endswith("output.weight"):
            assert moved or (one_choice and "actor" in name), name


def test_numbers_are_seen_in_symlog_units() -> None:
    space = spaces.Dict(
        {"size": spaces.Box(-1e9, 1e9, (2,), np.float32), "class": spaces.Discrete(3), "bits": spaces.MultiBinary(2)}
    )
    world_model = small_policy(space).world_model
    stored = {"size": th.tensor([[-1e6, 0.0]]), "class": th.tensor([2]), "bits": th.tensor([[1, 0]])}
    encoded = world_model.encode(stored)
    assert th.allclose(encoded["size"], th.tensor([[-np.log1p(1e6), 0.0]], dtype=th.float32))
    assert encoded["class"].tolist() == [[0.0, 0.0, 1.0]] and encoded["bits"].tolist() == [[1.0, 0.0]]
    for key, values in encoded.items():
        restored = world_model.restore(key, values)
        assert th.allclose(restored, symexp(values) if key == "size" else values)
    float_image = small_policy(FLOAT_IMAGE, normalize_images=False, image_size=None).world_model
    frames = th.as_tensor(samples(FLOAT_IMAGE, 2))
    assert th.equal(float_image.encode({OBSERVATION_KEY: frames})[OBSERVATION_KEY], frames.movedim(-1, -3))


# ------------------------------------------------------------------------------------------------------ recurrent model


class Inputs:
    """Random embeddings, actions beyond 1, starts in mid-sequence, a previous state and noise; in 64 bits."""

    def __init__(self, rssm: BlockRSSM, embedding_size: int) -> None:
        th.manual_seed(1)
        self.embeddings = th.randn(6, 4, embedding_size, dtype=th.float64)
        self.actions = 2.0 * th.randn(6, 4, rssm.action_size, dtype=th.float64)
        self.starts = th.zeros(6, 4, dtype=th.bool)
        self.starts[3, 0] = self.starts[1, 1] = self.starts[4, 1] = self.starts[0, 2] = True
        self.state = LatentState(th.randn(4, 16, dtype=th.float64), th.randn(4, rssm.latent.size, dtype=th.float64))
        self.noise = rssm.latent.draw_noise(th.empty(6, 4, rssm.latent.parameter_size, dtype=th.float64))

    def observe(self, rssm: BlockRSSM) -> Any:
        return rssm.observe(self.embeddings, self.actions, self.starts, self.state, self.noise)


@pytest.fixture(params=[(1, 1), (2, 2)], ids=["official", "more layers"])
def rssm(request: pytest.FixtureRequest) -> BlockRSSM:
    layers = dict(zip(("dynamics_layers", "posterior_layers"), request.param, strict=True))
    return small_policy(action_space=BOX, **layers).world_model.rssm.double()  # type: ignore[return-value]


def test_scan_equals_steps(rssm: BlockRSSM) -> None:
    x = Inputs(rssm, 8)
    (states, posterior, prior), state = x.observe(rssm), x.state
    for step in range(6):
        noise = x.noise[step]
        state = rssm.observe_step(state, x.actions[step], x.embeddings[step], x.starts[step], noise)
        assert th.allclose(state.deterministic, states.deterministic[step])
        assert th.equal(state.stochastic, states.stochastic[step])
        assert th.allclose(rssm.represent(state.deterministic, x.embeddings[step]), posterior[step])
    assert th.allclose(rssm.prior(states.deterministic), prior)


HOOKED = (
    *("core", "core.from_state", "core.from_state.0", "core.from_latent", "core.from_latent.0", "core.from_action.0"),
    *("core.input", "core.input_norm", "core.activation", "core.gates", "posterior_hidden", "posterior_hidden.0"),
    *("posterior_hidden.1", "posterior_output"),
)


@pytest.mark.parametrize("name", HOOKED)
def test_layers_with_hooks_are_called_in_every_step(name: str, rssm: BlockRSSM) -> None:
    """The result and all gradients are those of the scan."""
    x, calls, results, gradients = Inputs(rssm, 8), [], [], []  # type: ignore[var-annotated]
    for with_hook in (False, True):
        if with_hook:
            rssm.get_submodule(name).register_forward_hook(lambda *_: calls.append(1))
        rssm.zero_grad()
        states, posterior, prior = x.observe(rssm)
        results.append([*states, posterior, prior])
        weights_of = [th.linspace(0.0, 1.0, part.numel(), dtype=part.dtype).view_as(part) for part in results[-1]]
        th.stack([(part * weight).sum() for part, weight in zip(results[-1], weights_of, strict=True)]).sum().backward()
        gradients.append([p.grad.clone() for p in rssm.parameters()])  # type: ignore[union-attr]
    assert len(calls) == 6
    for parts in (results, gradients):
        for first, second in zip(*parts, strict=True):
            assert th.allclose(first, second)


def test_overridden_steps_are_called() -> None:
    class Own(BlockRSSM):
        calls = 0

        def advance(self, *args: Any) -> th.Tensor:
            type(self).calls += 1
            return super().advance(*args)

    rssm: Any = small_policy(action_space=BOX).world_model.rssm.double()
    x = Inputs(rssm, 8)
    expected = x.observe(rssm).posterior
    rssm.__class__ = Own
    assert th.allclose(x.observe(rssm).posterior, expected) and Own.calls == 6


def test_starts_reset_everything() -> None:
    """Not even a NaN of the episode before remains."""
    rssm: Any = small_policy(action_space=BOX).world_model.rssm.double()
    x = Inputs(rssm, 8)
    x.state = LatentState(x.state.deterministic.fill_(th.nan), x.state.stochastic.fill_(th.nan))
    x.actions[0] = th.nan
    x.starts[0] = True
    assert th.isfinite(x.observe(rssm).posterior).all()


def test_sums_of_rows_equal_products() -> None:
    """Large one-hot latents: the branch of z adds up rows of its weight."""
    rssm = small_policy(action_space=BOX, stochastic_size=32, stochastic_classes=16).world_model.rssm
    state = LatentState(th.randn(5, 16), rssm.latent.sample(th.randn(5, 512)))
    with th.no_grad():
        one_hot, actions = rssm.one_hot(state), th.randn(5, rssm.action_size)
        assert one_hot is not None
        assert th.allclose(rssm.advance(state, actions, one_hot), rssm.advance(state, actions), atol=1e-6)
    assert small_policy().world_model.rssm.one_hot(LatentState(th.randn(5, 16), th.zeros(5, 12))) is None


def test_blocks_see_only_their_part() -> None:
    layer = BlockLinear(6, 9, 3)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = th.randn(5, 6)
    dense = th.block_diag(*layer.weight.unflatten(1, (3, 3)).transpose(0, 1))
    assert th.allclose(layer(x), x @ dense + layer.bias, atol=1e-6)
    with pytest.raises(ValueError, match="4 blocks must divide the layer's sizes, but these are 6 and 8"):
        BlockLinear(6, 8, 4)


# --------------------------------------------------------------------------------------------------------- convolutions


@pytest.mark.parametrize("memory_format", [th.contiguous_format, th.channels_last])
def test_upsampling_equals_its_definition(memory_format: th.memory_format) -> None:
    layer = UpsampledConv(3, 4, (10, 14), True).double()
    x = th.randn(2, 3, 5, 7, dtype=th.float64).contiguous(memory_format=memory_format).requires_grad_()
    larger = F.interpolate(x, scale_factor=2, mode="nearest")
    expected = F.conv2d(larger, layer.weight, layer.bias, padding=2)
    assert th.allclose(layer(x), expected)
    cotangent = th.randn_like(expected)
    inputs = [x, *layer.parameters()]
    ours, theirs = (th.autograd.grad((y * cotangent).sum(), inputs, retain_graph=True) for y in (layer(x), expected))
    assert all(th.allclose(a, b) for a, b in zip(ours, theirs, strict=True))
    cropped = UpsampledConv(3, 4, (9, 13), True).double()
    cropped.load_state_dict(layer.state_dict())
    assert th.allclose(cropped(x), expected[..., :9, :13])


def test_stages_of_images() -> None:
    assert stage_sizes(64, 64, 4) == [(64, 64), (32, 32), (16, 16), (8, 8), (4, 4)]
    assert stage_sizes(96, 96, 4)[-1] == (6, 6)
    assert stage_sizes(84, 84, 4) == [(84, 84), (42, 42), (21, 21), (11, 11), (6, 6)]
    assert stage_sizes(5, 4, 4) == [(5, 4)] * 5
    assert stage_sizes(1, 1, 2) == [(1, 1)] * 3


# --------------------------------------------------------------------------------------------------------------- update


def gradients_of(policy: DreamerV3Policy, objective: Objective) -> dict[str, bool]:
    """Which parts get a gradient from an objective's loss."""
    policy.everything_optimizer.backward(total_loss(policy, random_batch(policy), objective).losses.total)
    world_model, behavior = policy.world_model, policy.behavior
    parts: dict[str, nn.Module] = {
        "encoder": world_model.encoder,
        "rssm": world_model.rssm,
        "decoder": world_model.decoder,
        "reward": world_model.reward_head,
        "discount": world_model.discount_head,  # type: ignore[dict-item]
        "actor": behavior.actor,
        "critic": behavior.critic,
        "critic_target": behavior.critic_target,
    }
    return {name: any(p.grad is not None and bool(p.grad.any()) for p in part.parameters()) for name, part in parts.items()}


NOTHING: dict[str, Any] = dict.fromkeys(
    ("dynamics_scale", "representation_scale", "observation_scale", "reward_scale", "discount_scale"), 0.0
) | dict.fromkeys(("actor_scale", "critic_scale", "replay_critic_scale"), 0.0)


@pytest.mark.parametrize(
    "changes, reached",
    [
        (dict(dynamics_scale=1.0), {"rssm", "encoder"}),  # h of the prior depends on what was seen before
        (dict(representation_scale=1.0), {"rssm", "encoder"}),
        (dict(observation_scale=1.0), {"rssm", "encoder", "decoder"}),
        (dict(reward_scale=1.0), {"rssm", "encoder", "reward"}),
        (dict(reward_scale=1.0, reward_gradients=False), {"reward"}),
        (dict(discount_scale=1.0), {"rssm", "encoder", "discount"}),
        (dict(actor_scale=1.0), {"actor"}),
        (dict(actor_scale=1.0, behavior_gradients=True), {"actor", "rssm", "encoder"}),
        (dict(critic_scale=1.0), {"critic"}),
        (dict(critic_scale=1.0, behavior_gradients=True), {"critic", "rssm", "encoder"}),
        (dict(replay_critic_scale=1.0), {"critic", "rssm", "encoder"}),
        (dict(replay_critic_scale=1.0, replay_critic_gradients=False), {"critic"}),
    ],
)
def test_what_each_term_trains(changes: dict[str, Any], reached: set[str]) -> None:
    objective = Objective(**{**NOTHING, "imagination_horizon": 3, "free_nats": 0.0, **changes})
    assert {name for name, found in gradients_of(small_policy(), objective).items() if found} == reached


def test_terms_add_up() -> None:
    policy = small_policy(OBSERVATIONS["dict"])
    scales = Objective(
        dynamics_scale=0.7,
        representation_scale=0.2,
        observation_scale={"vector": 2.0, "image": 0.5},
        reward_scale=3.0,
        discount_scale=1.5,
        actor_scale=0.8,
        critic_scale=0.6,
        replay_critic_scale=0.4,
        imagination_horizon=3,
    )
    losses = total_loss(policy, random_batch(policy), scales).losses
    model = losses.model
    expected = (0.7 + 0.2) * model.kl.mean() + 3.0 * model.reward.mean() + 1.5 * model.discount.mean()
    for key, loss in model.observations.items():
        expected = expected + {"vector": 2.0, "image": 0.5}.get(key, 1.0) * loss.mean()
    assert losses.replay_critic is not None
    expected = expected + 0.8 * losses.actor.mean() + 0.6 * losses.critic.mean() + 0.4 * losses.replay_critic.mean()
    assert th.isclose(losses.total, expected)


def test_switched_off_losses_are_not_computed() -> None:
    policy = small_policy()
    result = total_loss(policy, random_batch(policy), Objective(replay_critic_scale=0.0, imagination_horizon=3))
    assert result.losses.replay_critic is None and result.replay_returns is None
    metrics = training_update(policy, random_batch(policy), Objective(replay_critic_scale=0.0)).metrics
    assert "replay_critic_loss" not in metrics and "reward_loss" in metrics


def test_imagination_from_the_last_steps() -> None:
    policy = small_policy()
    batch = random_batch(policy, time=6)
    result = total_loss(policy, batch, Objective(imagination_horizon=3, imagination_last=4))
    assert result.trajectory.rewards.shape == (4, 4 * 2) and result.losses.actor.shape == (3, 8)
    assert result.replay_returns is not None and result.replay_returns.shape == (3, 2)
    start = result.losses.model.states.deterministic[-4:].flatten(0, 1)
    assert th.equal(result.trajectory.states.deterministic[0], start)


def test_single_steps_are_refused() -> None:
    policy = small_policy()
    with pytest.raises(ValueError, match="batch_length must be at least 2"):
        training_update(policy, random_batch(policy, time=1), OBJECTIVE)
    training_update(policy, random_batch(policy, time=1), replace(OBJECTIVE, replay_critic_scale=0.0))


def test_ent_coef_and_tau_change_what_they_name() -> None:
    policy = small_policy()
    batch = random_batch(policy)
    th.manual_seed(3)
    low = total_loss(policy, batch, Objective(imagination_horizon=3, ent_coef=0.0))
    th.manual_seed(3)
    policy.behavior.return_range.limits.zero_()
    high = total_loss(policy, batch, Objective(imagination_horizon=3, ent_coef=1.0))
    assert th.allclose(low.losses.actor - high.losses.actor, low.trajectory.weights[:-1] * low.entropy, atol=1e-4)
    before = [p.clone() for p in policy.behavior.critic_target.parameters()]
    training_update(policy, batch, Objective(imagination_horizon=3, tau=0.25))
    for slow, critic, old in zip(
        policy.behavior.critic_target.parameters(), policy.behavior.critic.parameters(), before, strict=True
    ):
        assert th.allclose(slow, old + 0.25 * (critic - old))


def test_states_are_returned_for_the_buffer() -> None:
    policy = small_policy()
    batch = random_batch(policy)
    states = training_update(policy, batch, OBJECTIVE).states
    assert states.deterministic.shape == (5, 2, 16) and not states.deterministic.requires_grad
    assert set(states.stochastic.unique().tolist()) == {0.0, 1.0}


def test_context_matters_until_an_episode_starts() -> None:
    policy = small_policy()
    steps, context = random_batch(policy)
    starts = th.zeros_like(steps.episode_starts)
    starts[2, 0] = True
    batch = random_batch(policy)._replace(steps=steps._replace(episode_starts=starts))
    other = batch._replace(context=LatentState(context.deterministic + 1.0, context.stochastic))
    noise = th.ones(5, 2, 12)  # of samples: the most likely classes
    first, second = (policy.world_model.loss(b, OBJECTIVE, noise).states.deterministic for b in (batch, other))
    differs = (first != second).any(-1)
    assert differs[:2].all() and differs[:, 1].all() and not differs[2:, 0].any()


def test_bad_numbers_skip_the_update() -> None:
    policy = small_policy()
    training_update(policy, random_batch(policy), OBJECTIVE)
    steps, context = random_batch(policy, seed=1)
    bad = steps._replace(rewards=steps.rewards.clone().index_put_((th.tensor(2), th.tensor(1)), th.tensor(th.nan)))
    moving = ("behavior.critic_target.", "behavior.return_range.")  # of imagined states, which are not affected
    before = {name: value for name, value in weights(policy).items() if not name.startswith(moving)}
    result = training_update(policy, ContextBatch(bad, context), OBJECTIVE)
    assert not th.isfinite(result.metrics["grad_norm"])
    after = weights(policy)
    assert all(th.equal(value, after[name]) for name, value in before.items())


def test_return_range_ignores_bad_numbers() -> None:
    running = ReturnRange(0.5)
    assert running.update(th.linspace(0.0, 100.0, 101)) == pytest.approx(0.5 * 90.0)
    before = running.limits.clone()
    running.update(th.tensor([1.0, th.nan]))
    assert th.equal(running.limits, before)
    assert ReturnRange().update(th.zeros(5)) == 1.0


def test_engine_updates() -> None:
    """Directly and in 16 bits, with everything sensitive in 32."""
    policies = [small_policy(OBSERVATIONS["dict"], BOX) for _ in range(2)]
    batch = random_batch(policies[0])
    results = []
    for policy, precision in zip(policies, ("float32", "bfloat16"), strict=True):
        th.manual_seed(2)
        results.append(Engine(policy, training_update, EngineOptions(precision)).update(batch, OBJECTIVE))
        assert all(p.dtype == th.float32 for p in policy.parameters())
        assert results[-1].states.deterministic.dtype == th.float32
    full, half = (float(result.metrics["loss"]) for result in results)
    assert half == pytest.approx(full, rel=0.05) and half != full


RECORDED: dict[str, tuple[spaces.Space, spaces.Space, dict[str, Any]]] = {
    "numbers": (VECTOR, BOX, {}),
    "everything": (OBSERVATIONS["dict"], ACTIONS["multi-discrete"], {"imagination_last": 3}),
    "options": (VECTOR, DISCRETE, {"behavior_gradients": True, "bootstrap_target": True, "replay_critic_scale": 0.0}),
}


@pytest.mark.parametrize("name", RECORDED)
def test_repeated_update_is_the_update(name: str) -> None:
    """From a recording, to the bit, while the rate warms up and the entropy's weight moves."""
    seen, done, options = RECORDED[name]
    policies = [small_policy(seen, done, optimizer_kwargs=dict(warmup=4)) for _ in range(2)]
    graphed, plain = (
        Engine(policy, training_update, EngineOptions(cuda_graphs=True), ["ent_coef"], False, partial(PolicyRecorder, policy))  # type: ignore[arg-type]
        for policy in policies
    )
    for step in range(WARM_UP + 5):
        objective = Objective(imagination_horizon=3, ent_coef=0.1 / (step + 1), **options)
        results = []
        for engine, noise in ((graphed, None), (plain, UpdateNoise())):  # given noise is never recorded
            th.manual_seed(step)
            results.append(engine.update(random_batch(policies[0], seed=step), objective, noise))
        for key, value in results[0].metrics.items():
            assert th.equal(value, results[1].metrics[key]), (step, key)
        for (key, a), b in zip(policies[0].state_dict().items(), policies[1].state_dict().values(), strict=True):
            assert th.equal(a, b), (step, key)
    recorded: Any = graphed._graphed
    assert len(recorded._recorded._recorder.tape) > 300


def test_learning_lowers_the_loss() -> None:
    policy = small_policy()
    batch = random_batch(policy)
    losses = []
    for _ in range(150):
        losses.append(training_update(policy, batch, OBJECTIVE).metrics["reward_loss"].item())
    assert losses[-1] < 0.7 * losses[0]
