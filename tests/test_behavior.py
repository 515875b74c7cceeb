"""Actor and critic: their losses by hand, the routes of their gradients, imagination, acting, resets."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_dreamer import DreamerV2
from sb3_dreamer.algorithm.policy import ActingState
from sb3_dreamer.behavior.actor_critic import ActorCritic, BehaviorObjective, ReturnEstimate, ReturnScale, RewardNormalizer
from sb3_dreamer.behavior.actors import (
    ACTOR_DISTRIBUTIONS,
    CategoricalActor,
    ContinuousActor,
    make_actor,
)
from sb3_dreamer.common.action_distributions import ClippedNormal, TanhNormal, TruncatedNormal
from sb3_dreamer.common.distributions import OneHotBlocks, OneHotCategorical
from sb3_dreamer.common.functional import flatten_time
from sb3_dreamer.common.type_aliases import ImaginedTrajectory, LatentState
from sb3_dreamer.dreamer_v2.update import Imagination, UpdateNoise, every, start_states
from tests.small import continuous, imagine_task, layers
from tests.test_world_model import BATCH, TIME, carried_state, image, make_model, model_loss, random_batch

H = 4
ACTIONS: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(3),
    "continuous": spaces.Box(-1.0, 1.0, (2,)),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(2),
}
KINDS = list(ACTIONS)


def imagined(model: DreamerV2, **changes: Any) -> tuple[Imagination, BehaviorObjective]:
    """Imagination from the states of a random batch, with shared noise."""
    batch = random_batch(model)
    objective = replace(model.behavior_objective, **{"imagination_horizon": H, **changes})
    start = start_states(model_loss(model, batch).states, objective.imagination_stride)
    continues = every(batch.continues, objective.imagination_stride)
    noise = imagination_noise(model, objective.imagination_horizon, len(continues))
    return imagine_task(model.policy, start, continues, objective, noise), objective


def imagination_noise(model: DreamerV2, horizon: int = H, starts: int = TIME * BATCH) -> UpdateNoise:
    generator, rssm = th.Generator().manual_seed(9), model.policy.world_model.rssm
    actions = th.rand(horizon, starts, rssm.action_size, generator=generator)
    latents = th.empty(horizon, starts, rssm.latent.noise_size).exponential_(generator=generator)
    return UpdateNoise(None, actions, latents)


def without_gradient(module: th.nn.Module) -> bool:
    return all(parameter.grad is None for parameter in module.parameters())


def has_gradient(module: th.nn.Module) -> bool:
    return any(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


# --------------------------------------------------------------------------------------------------------------- the losses


def by_hand(result: Imagination, objective: BehaviorObjective, log_prob: th.Tensor, entropy: th.Tensor) -> float:
    """The actor's loss, one number after the other."""
    path, (returns, values) = result.trajectory, result.estimate
    total = 0.0
    for t in range(H - 1):
        for n in range(TIME * BATCH):
            reinforce = log_prob[t, n] * (returns[t + 1, n] - values[t, n])
            gain = objective.reinforce_weight * reinforce + (1 - objective.reinforce_weight) * returns[t + 1, n]
            total -= (path.weights[t, n] * (gain + objective.ent_coef * entropy[t, n])).item()
    return total / ((H - 1) * TIME * BATCH)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_actor_loss_by_hand(kind: str, weight: float) -> None:
    model = make_model(actions=ACTIONS[kind])
    result, objective = imagined(model, reinforce_weight=weight, ent_coef=0.1)
    behavior, path = model.policy.behavior, result.trajectory
    loss = behavior.actor_loss(path, result.estimate, objective)
    policy = behavior.actor(path.features[: H - 1])
    log_prob, entropy = policy.log_prob(path.actions[1:H]), policy.entropy()
    assert loss.total.item() == pytest.approx(by_hand(result, objective, log_prob, entropy), rel=1e-4)
    assert loss.entropy.item() == pytest.approx(entropy.mean().item()) and not loss.entropy.requires_grad


def test_critic_loss_by_hand() -> None:
    model = make_model()
    result, _ = imagined(model)
    behavior, path = model.policy.behavior, result.trajectory
    loss = behavior.critic_loss(path, result.estimate.returns)
    values = behavior.critic(path.features[:H]).mean
    squared = 0.5 * (result.estimate.returns - values) ** 2 + 0.5 * np.log(2 * np.pi)
    assert loss.total.item() == pytest.approx((path.weights[:H] * squared).mean().item())
    assert th.equal(loss.values, values.detach())
    assert result.estimate.returns.shape == (H, TIME * BATCH)
    assert th.equal(result.estimate.values, behavior.critic_target(path.features).mean)


def test_terminal_start_counts_once() -> None:
    """After a terminal start nothing counts: its weight is 1 at the first state and 0 from there on."""
    model = make_model()
    path = imagined(model)[0].trajectory
    terminal = flatten_time(random_batch(model).continues) == 0
    assert terminal.any() and not path.weights[1:, terminal].any()
    assert (path.weights[0] == 1).all() and (path.weights[1:, ~terminal] > 0).all()


# --------------------------------------------------------------------------------------------------- routes of the gradients


def test_model_loss_leaves_nothing_in_the_behavior() -> None:
    model = make_model()
    model.policy.world_model_optimizer.backward(model_loss(model).total)
    assert without_gradient(model.policy.behavior) and has_gradient(model.policy.world_model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_actor_loss_trains_the_actor_only(kind: str, weight: float) -> None:
    model = make_model(actions=ACTIONS[kind])
    result, objective = imagined(model, reinforce_weight=weight)
    policy, behavior = model.policy, model.policy.behavior
    loss = behavior.actor_loss(result.trajectory, result.estimate, objective)
    if weight < 1:  # it does flow through the world model and the target critic, but nothing stays there
        for module in (policy.world_model.reward_head, policy.world_model.rssm, behavior.critic_target):
            found = th.autograd.grad(loss.total, list(module.parameters()), retain_graph=True, allow_unused=True)
            assert any(gradient is not None and gradient.any() for gradient in found)
    policy.actor_optimizer.backward(loss.total)
    assert has_gradient(behavior.actor)
    assert all(without_gradient(module) for module in (policy.world_model, behavior.critic, behavior.critic_target))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_critic_loss_trains_the_critic_only(weight: float) -> None:
    model = make_model()
    result, _ = imagined(model, reinforce_weight=weight)
    policy, behavior = model.policy, model.policy.behavior
    policy.critic_optimizer.backward(behavior.critic_loss(result.trajectory, result.estimate.returns).total)
    assert has_gradient(behavior.critic)
    assert all(without_gradient(module) for module in (policy.world_model, behavior.actor, behavior.critic_target))


@pytest.mark.parametrize("kind", KINDS)
def test_actor_sees_states_as_constants(kind: str) -> None:
    model = make_model(actions=ACTIONS[kind])
    start = LatentState(th.ones(2, 8, requires_grad=True), th.zeros(2, 12))
    world_model, actor = model.policy.world_model, model.policy.behavior.actor
    path = world_model.imagine(actor, start, th.ones(2), H, 0.9)
    assert th.autograd.grad(path.actions[1].sum(), start.deterministic, allow_unused=True, retain_graph=True) == (None,)
    assert th.autograd.grad(path.features[-1].sum(), start.deterministic, retain_graph=True)[0].any()
    to_actor = th.autograd.grad(path.rewards[-1].sum(), list(actor.parameters()), retain_graph=True)
    assert any(gradient.any() for gradient in to_actor)
    assert not path.weights.requires_grad


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_losses_take_states_and_targets_as_constants(weight: float) -> None:
    """Nothing flows into the features through the policy or the critic, nor into the targets through the critic's loss."""
    model = make_model(actions=ACTIONS["continuous"])
    result, objective = imagined(model, reinforce_weight=weight)
    features = result.trajectory.features.detach().requires_grad_()
    path, behavior = result.trajectory._replace(features=features), model.policy.behavior
    returns, values = (x.detach().requires_grad_() for x in result.estimate)
    actor = behavior.actor_loss(path, ReturnEstimate(returns, values), objective).total
    to_features, to_returns, to_values = th.autograd.grad(actor, [features, returns, values], allow_unused=True)
    assert to_features is None and to_values is None and (to_returns is None) == (weight == 1.0)
    critic = behavior.critic_loss(path, returns).total
    assert th.autograd.grad(critic, [features, returns], allow_unused=True) == (None, None)


def test_reinforce_needs_no_graph() -> None:
    result, _ = imagined(make_model(), reinforce_weight=1.0)
    assert not any(x.requires_grad for x in (result.trajectory.features, result.trajectory.actions, *result.estimate))
    result, _ = imagined(make_model(), reinforce_weight=0.9)
    assert result.estimate.returns.requires_grad


def test_mixture_lets_the_gradient_into_continuous_actions() -> None:
    """With weight 1 the actions are constants; in the mixture they are not (as in the original)."""
    model = make_model(actions=ACTIONS["continuous"])
    result, objective = imagined(model, reinforce_weight=0.5)
    actions = result.trajectory.actions.detach().requires_grad_()
    path, estimate = result.trajectory._replace(actions=actions), ReturnEstimate(*(x.detach() for x in result.estimate))
    for weight, reaches in ((0.5, True), (1.0, False)):
        loss = model.policy.behavior.actor_loss(path, estimate, replace(objective, reinforce_weight=weight)).total
        assert (th.autograd.grad(loss, actions, allow_unused=True)[0] is not None) == reaches


# ------------------------------------------------------------------------------------------------------------------- resets


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("garbage", [-9.0, float("nan")])
def test_imagination_does_not_see_behind_an_episode_start(kind: str, garbage: float) -> None:
    """Trajectories that start at or after an episode start do not depend on what was before it, to the bit."""
    model = make_model(actions=ACTIONS[kind])
    batch, state, paths = random_batch(model), carried_state(model), []
    keep = th.zeros(TIME, BATCH, dtype=th.bool)
    for row, first_kept in {0: 3, 1: 4, 2: 0}.items():
        keep[first_kept:, row] = True
    for _ in range(2):
        start = start_states(model_loss(model, batch, state).states)
        objective = replace(model.behavior_objective, imagination_horizon=H, reinforce_weight=0.5)
        result = imagine_task(model.policy, start, flatten_time(batch.continues), objective, imagination_noise(model))
        assert result.trajectory.one_hot is None  # its parts are states and features
        paths.append({**result.trajectory._asdict(), **result.estimate._asdict()})
        del paths[-1]["one_hot"]
        for tensor in (*batch.observations.values(), batch.rewards, batch.continues):
            tensor[~keep] = garbage
        batch.actions[~keep | batch.episode_starts] = garbage
        state.deterministic[:] = state.stochastic[:] = garbage
    for name, before in paths[0].items():
        pair = [x.features if isinstance(x, LatentState) else x for x in (before, paths[1][name])]
        old, new = (x[:, flatten_time(keep)] for x in pair)
        assert th.equal(old, new), name
    old, new = (path["features"][:, flatten_time(~keep)] for path in paths)
    assert not th.equal(old, new)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("garbage", [3.0, float("nan")])
def test_acting_forgets_at_an_episode_start(kind: str, garbage: float) -> None:
    policy = make_model(actions=ACTIONS[kind]).policy
    observations, starts = {"observation": th.rand(2, 4)}, th.tensor([True, False])
    initial = policy.initial_state(2)
    used = ActingState(LatentState(*(th.full_like(x, garbage) for x in initial.latent)), initial.actions + garbage)
    noise = th.empty(2, 12).exponential_(), th.rand(2, policy.world_model.rssm.action_size)
    fresh = policy.act(observations, initial, starts, True, True, *noise)
    after = policy.act(observations, used, starts, True, True, *noise)
    assert th.equal(fresh.latent.features[0], after.latent.features[0]) and th.equal(fresh.actions[0], after.actions[0])
    assert not th.equal(fresh.latent.deterministic[1], after.latent.deterministic[1])  # no start: it remembers


@pytest.mark.parametrize("deterministic", [False, True])
def test_predict_forgets_at_an_episode_start(deterministic: bool) -> None:
    policy = make_model(image(1, 12, 12), ACTIONS["continuous"]).policy
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, 1, 12, 12), dtype=np.uint8)
    _, state = policy.predict(frames[0], None, np.ones(2, dtype=bool), deterministic)
    results = []
    for previous in (state, tuple(np.full_like(x, np.nan) for x in state)):  # type: ignore[union-attr]
        th.manual_seed(0)
        results.append(policy.predict(frames[1], previous, np.array([True, True]), deterministic))
    th.manual_seed(0)
    results.append(policy.predict(frames[1], None, None, deterministic))
    for action, next_state in results[1:]:
        np.testing.assert_array_equal(action, results[0][0])
        for ours, wanted in zip(next_state, results[0][1], strict=True):  # type: ignore[arg-type]
            np.testing.assert_array_equal(ours, wanted)
    th.manual_seed(0)
    remembered, _ = policy.predict(frames[1], state, np.array([True, False]), deterministic)
    assert np.array_equal(remembered[0], results[0][0][0]) and not np.array_equal(remembered[1], results[0][0][1])


def test_predict_is_repeated_filtering() -> None:
    """Episodes through ``predict`` with starts in between give the states of ``WorldModel.loss``; actions are the modes."""
    model = make_model()
    batch, policy = random_batch(model), model.policy
    state, features = None, []
    for t in range(TIME):
        if state is not None:  # the batch's actions, not the policy's
            state = (state[0], state[1], batch.actions[t].numpy())
        else:
            batch.actions[0] = 0.0
        frame, starts = batch.observations["observation"][t].numpy(), batch.episode_starts[t].numpy()
        actions, state = policy.predict(frame, state, starts, deterministic=True)
        latent = LatentState(th.as_tensor(state[0]), th.as_tensor(state[1]))  # type: ignore[index]
        features.append(latent.features)
        np.testing.assert_array_equal(actions, policy.behavior.actor(latent.features).mode.argmax(-1))
    noise = th.ones(TIME, BATCH, 12)
    expected = policy.world_model.loss(batch, model.model_objective, noise).states.features
    th.testing.assert_close(th.stack(features), expected)


def test_stride_keeps_the_last_step_of_every_piece() -> None:
    steps = th.arange(7)[:, None] + th.tensor([0, 100])  # (T, B)
    assert every(steps, 1).tolist() == flatten_time(steps).tolist()
    assert every(steps, 3).tolist() == [2, 102, 5, 105]
    assert every(steps, 7).tolist() == every(steps, 99).tolist() == [6, 106]


def test_a_stride_leaves_the_other_trajectories_alone() -> None:
    """Same states, same flags, same noise: the same trajectories as those of all steps, to rounding."""
    model = make_model()
    whole, _ = imagined(model)
    kept = every(th.arange(TIME * BATCH).reshape(TIME, BATCH), 2)
    batch, noise = random_batch(model), imagination_noise(model)
    start, continues = start_states(model_loss(model, batch).states, 2), every(batch.continues, 2)
    assert noise.actions is not None and noise.latents is not None
    noise = UpdateNoise(None, noise.actions[:, kept], noise.latents[:, kept])
    part = imagine_task(model.policy, start, continues, replace(model.behavior_objective, imagination_horizon=H), noise)
    for name in ("rewards", "discounts", "weights", "actions"):
        th.testing.assert_close(getattr(part.trajectory, name), getattr(whole.trajectory, name)[:, kept])
    th.testing.assert_close(part.estimate.returns, whole.estimate.returns[:, kept])


# ----------------------------------------------------------------------------------------------------------- every option

#: For every option a value that is not the default, what else to set, and what must change
OPTIONS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "imagination_horizon": (7, {}, "actor"),
    "imagination_stride": (2, {}, "returns"),
    "gamma": (0.5, {}, "returns"),
    "return_lambda": (0.2, {}, "returns"),
    "reinforce_weight": (0.5, {}, "actor"),
    "ent_coef": (0.5, {}, "actor"),
    "reward_norm_momentum": (0.5, {}, "returns"),
    "reward_norm_scale": (3.0, {"reward_norm_momentum": 0.5}, "returns"),
    "normalize_returns": (True, {"reward_norm_momentum": 1.0, "reward_norm_scale": 100.0}, "actor"),
}


@pytest.mark.parametrize("option", [field.name for field in fields(BehaviorObjective)])
def test_every_option_changes_a_number(option: str) -> None:
    value, others, what = OPTIONS[option]
    numbers = []
    for changes in (others, {**others, option: value}):
        model = make_model(policy_kwargs=dict(use_discount_head=option != "gamma"), **{"imagination_horizon": H, **changes})
        lengths = {name: getattr(model, name) for name in ("imagination_horizon", "imagination_stride")}
        result, objective = imagined(model, **lengths)
        loss = model.policy.behavior.actor_loss(result.trajectory, result.estimate, objective, result.return_scale).total
        numbers.append(loss.item() if what == "actor" else result.estimate.returns.mean().item())
    assert abs(numbers[0] - numbers[1]) > 1e-4 * abs(numbers[0])


def test_heads_that_predict_nothing_at_first() -> None:
    """With ``head_init_scale=0`` no state is worth more than another before a reward is seen; all else begins as before."""
    ours, plain = make_model(policy_kwargs=dict(head_init_scale=0.0)), make_model()
    assert imagined(ours)[0].estimate.returns.abs().max() == 0.0 and imagined(plain)[0].estimate.returns.std() > 0.0
    scaled = ("reward_head.output.weight", "critic.output.weight", "critic_target.output.weight")
    for (name, one), other in zip(ours.policy.state_dict().items(), plain.policy.state_dict().values(), strict=True):
        assert th.equal(one, other * 0.0 if name.endswith(scaled) else other), name
    with pytest.raises(ValueError, match="head_init_scale must be a number of at least 0, but is -1"):
        make_model(policy_kwargs=dict(head_init_scale=-1))


def test_return_scale_is_the_running_range_of_percentiles() -> None:
    """The first range counts whole, as in V3's debiased mean; small ranges do not amplify anything; NaN changes nothing."""
    scale = ReturnScale(rate=0.25)
    first, second = th.arange(101.0) * 2.0, th.arange(101.0) * 4.0
    assert scale(first.view(101, 1)).item() == pytest.approx(180.0)
    expected = (0.25 * 0.75 * 180.0 + 0.25 * 360.0) / (1.0 - 0.75**2)
    assert scale(second).item() == pytest.approx(expected)
    assert scale(th.full((5,), float("nan"))).item() == pytest.approx(expected)
    assert ReturnScale()(th.tensor([0.0, 0.1])).item() == 1.0


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_normalized_returns_scale_the_actors_gain_alone(weight: float) -> None:
    """With all returns k times as large and an entropy bonus of 0, the actor's loss is the same; the critic's is not."""
    losses = []
    for factor in (100.0, 1000.0):
        options: dict[str, Any] = dict(reward_norm_momentum=1.0, reward_norm_scale=factor, normalize_returns=True)
        model = make_model(reinforce_weight=weight, ent_coef=0.0, **options)
        for part in (model.policy.behavior.critic, model.policy.behavior.critic_target):
            th.nn.init.zeros_(part.output.weight)
        result, objective = imagined(model, reinforce_weight=weight, ent_coef=0.0)
        assert result.return_scale is not None and result.return_scale > 1.0
        losses.append(model.policy.behavior.actor_loss(*result[1:3], objective, result.return_scale).total.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("normalize_returns", 1, "normalize_returns must be True or False, but is 1"),
        ("imagination_horizon", 1, "imagination_horizon must be a number of at least 2"),
        ("imagination_stride", 0, "imagination_stride must be a number of at least 1, but is 0"),
        ("imagination_stride", 1.5, "imagination_stride must be a whole number, but is 1.5"),
        ("gamma", -0.1, "gamma must be a number between 0 and 1, but is -0.1"),
        ("return_lambda", 1.1, "return_lambda must be a number between 0 and 1, but is 1.1"),
        ("reinforce_weight", 2.0, "reinforce_weight must be a number between 0 and 1, but is 2.0"),
        ("reward_norm_momentum", 1.5, "reward_norm_momentum must be a number between 0 and 1, but is 1.5"),
        ("reinforce_weight", "sometimes", "reinforce_weight must be a number.*'auto', but is 'sometimes'"),
    ],
)
def test_bad_option_is_named(option: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**{option: value})


@pytest.mark.parametrize(
    "kind, weight", [("discrete", 1.0), ("continuous", 0.0), ("multi_discrete", 1.0), ("multi_binary", 1.0)]
)
def test_automatic_reinforce_weight(kind: str, weight: float) -> None:
    assert make_model(actions=ACTIONS[kind]).behavior_objective.reinforce_weight == weight


# ----------------------------------------------------------------------------------------------------------------- the parts


def test_reward_normalizer_by_hand() -> None:
    normalizer = RewardNormalizer()
    assert normalizer(th.tensor([1.0, -3.0]), 0.75, 2.0).tolist() == pytest.approx([1.6, -4.8])  # state 0.75 + 0.25 * 2
    assert normalizer.magnitude.item() == pytest.approx(1.25)
    assert normalizer(th.tensor([4.0]), 1.0).tolist() == pytest.approx([3.2])
    assert normalizer.magnitude.item() == pytest.approx(1.25)
    assert "magnitude" in normalizer.state_dict()


def test_off_normalizer_leaves_rewards_alone() -> None:
    model = make_model()
    result, _ = imagined(model)
    assert th.equal(result.trajectory.rewards, result.predicted_rewards)
    assert model.policy.behavior.reward_normalizer.magnitude.item() == 1.0


def test_target_moves_by_the_fraction() -> None:
    behavior = ActorCritic(make_actor(5, spaces.Discrete(2), layers(4), continuous()), 5, layers(4))
    old = [p.clone() for p in behavior.critic_target.parameters()]
    behavior.update_target(0.25)
    pairs = list(zip(old, behavior.critic.parameters(), behavior.critic_target.parameters(), strict=True))
    for before, online, after in pairs:
        th.testing.assert_close(after, 0.75 * before + 0.25 * online)
    behavior.update_target()
    assert all(th.equal(online, after) for _, online, after in pairs)
    assert any(not th.equal(before, online) for before, online, _ in pairs)


def test_critics_have_layer_norm_by_argument() -> None:
    """The actor is built before; the option is that of the two critics."""
    actor = make_actor(5, spaces.Discrete(2), layers(4), continuous())
    for layer_norm in (False, True):
        behavior = ActorCritic(actor, 5, layers(4, 3, activation_fn=th.nn.Tanh, layer_norm=layer_norm))
        for critic in (behavior.critic, behavior.critic_target):
            norms = [layer for layer in critic.modules() if isinstance(layer, th.nn.LayerNorm)]
            assert [norm.normalized_shape for norm in norms] == ([(4,), (3,)] if layer_norm else [])
            assert any(isinstance(layer, th.nn.Tanh) for layer in critic.modules())
        assert behavior.actor is actor


# ------------------------------------------------------------------------------------------------------------------- actors

BOX = spaces.Box(-1.0, 1.0, (3,))


def softplus(x: float) -> float:
    return float(np.log1p(np.exp(x)))


def test_continuous_actor_formula() -> None:
    actor = ContinuousActor(1, 3, layers(), continuous(min_std=0.2))
    policy = actor.distribution(th.tensor([0.0, 1.0, -50.0]), th.tensor([0.0, -50.0, 50.0]))
    assert isinstance(policy, TruncatedNormal)
    assert policy.loc.tolist() == pytest.approx([0.0, np.tanh(1.0), -1.0])
    assert policy.scale.tolist() == pytest.approx([1.2, 0.2, 2.2])


@pytest.mark.parametrize("distribution", ["truncated_normal", "normal"])
def test_init_std_is_added_before_the_activation(distribution: str) -> None:
    actor = ContinuousActor(1, 2, layers(), continuous(distribution=distribution, init_std=3.0))
    policy = actor.distribution(th.tensor([0.5, -0.5]), th.tensor([-3.0, 1.0]))
    assert isinstance(policy, TruncatedNormal if distribution == "truncated_normal" else ClippedNormal)
    assert policy.loc.tolist() == pytest.approx([np.tanh(0.5), np.tanh(-0.5)])
    assert policy.scale.tolist() == pytest.approx([1.1, 2.0 / (1.0 + np.exp(-2.0)) + 0.1])


def test_tanh_normal_actor_formula() -> None:
    actor = ContinuousActor(1, 2, layers(), continuous(distribution="tanh_normal", min_std=0.01, init_std=0.5))
    policy = actor.distribution(th.tensor([2.0, -100.0]), th.tensor([-0.5, 1.0]))
    assert isinstance(policy, TanhNormal)
    assert policy.normal.mean.tolist() == pytest.approx([5 * np.tanh(0.4), -5.0])
    assert policy.normal.std.tolist() == pytest.approx([softplus(0.0) + 0.01, softplus(1.5) + 0.01])


@pytest.mark.parametrize(
    "space, kind, blocks",
    [
        (spaces.Discrete(4), OneHotCategorical, (4,)),
        (spaces.MultiDiscrete([3, 2]), OneHotBlocks, (3, 2)),
        (spaces.MultiDiscrete([3]), OneHotBlocks, (3,)),
        (spaces.MultiBinary(3), OneHotBlocks, (2, 2, 2)),
        (spaces.Box(-2.0, 5.0, (2, 2)), TruncatedNormal, (4,)),
    ],
)
def test_actor_for_every_space(space: spaces.Space, kind: Any, blocks: tuple[int, ...]) -> None:
    """The distribution's width, valid samples, and gradients to every weight."""
    th.manual_seed(0)
    actor = make_actor(6, space, layers(8, 7, activation_fn=th.nn.Tanh, layer_norm=True), continuous())
    assert type(actor) is (ContinuousActor if kind is TruncatedNormal else CategoricalActor)
    assert [type(layer) for layer in actor.modules()].count(th.nn.LayerNorm) == 2
    policy: Any = actor(th.randn(5, 9, 6))
    width = sum(blocks)
    actions = policy.sample()
    assert (
        type(policy) is kind
        and actions.shape == policy.mode.shape == (5, 9, width)
        and policy.log_prob(actions).shape == policy.entropy().shape == (5, 9)
    )
    if isinstance(space, spaces.Box):
        assert actions.abs().max() <= 1.0
    else:
        for block in actions.detach().split(blocks, -1):
            assert th.equal(block.sum(-1), th.ones(5, 9)) and set(block.unique().tolist()) == {0.0, 1.0}
    total = policy.log_prob(actions.detach()).sum() + policy.entropy().sum()
    assert all(gradient.any() for gradient in th.autograd.grad(total, list(actor.parameters())))


def test_multi_discrete_actor_is_several_discrete_ones() -> None:
    """With the same weights, the blocks of the output are what single actors would say."""
    th.manual_seed(0)
    actor, features = make_actor(6, spaces.MultiDiscrete([3, 2]), layers(8), continuous()), th.randn(4, 6)
    policy = actor(features)
    assert isinstance(policy, OneHotBlocks)
    entropy = 0.0
    for start, size in ((0, 3), (3, 2)):
        single = CategoricalActor(6, size, layers(8), OneHotCategorical)
        trunk = {key: value for key, value in actor.state_dict().items() if key.startswith("trunk")}
        rows = slice(start, start + size)
        single.load_state_dict(trunk | {f"output.{p}": actor.state_dict()[f"output.{p}"][rows] for p in ("weight", "bias")})
        th.testing.assert_close(single(features).probs, policy.probs[:, rows])
        entropy = entropy + single(features).entropy()
    th.testing.assert_close(policy.entropy(), entropy)


@pytest.mark.parametrize("distribution", ACTOR_DISTRIBUTIONS)
def test_distribution_by_name(distribution: str) -> None:
    actor = make_actor(2, BOX, layers(), continuous(distribution=distribution, min_std=0.3, init_std=0.7))
    kinds = {"truncated_normal": TruncatedNormal, "tanh_normal": TanhNormal, "normal": ClippedNormal}
    assert type(actor(th.zeros(1, 2))) is kinds[distribution]
    assert isinstance(actor, ContinuousActor) and (actor.options.min_std, actor.options.init_std) == (0.3, 0.7)
    assert make_actor(2, BOX, layers(), continuous(exact_gradient=True))(th.zeros(1, 2)).exact_gradient is True


@pytest.mark.parametrize("distribution", ACTOR_DISTRIBUTIONS)
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_every_distribution_has_gradients(distribution: str, weight: float) -> None:
    """For every weight of the actor, in two updates; the second is after a large step."""
    model = make_model(actions=BOX, policy_kwargs=dict(actor_distribution=distribution), actor_learning_rate=0.1)
    for _ in range(2):
        result, objective = imagined(model, reinforce_weight=weight, ent_coef=0.1)
        loss = model.policy.behavior.actor_loss(result.trajectory, result.estimate, objective).total
        model.policy.actor_optimizer.step(loss, None)
        gradients = [parameter.grad for parameter in model.policy.behavior.actor.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("space", [BOX, spaces.Discrete(2)])
@pytest.mark.parametrize(
    "options, message",
    [
        (
            dict(distribution="beta"),
            r"Unknown actor_distribution 'beta'; known are \['truncated_normal', 'tanh_normal', 'normal'\]",
        ),
        (dict(min_std=0.0), "actor_min_std must be a number of at least 1e-06, but is 0.0"),
        (dict(init_std=float("nan")), "actor_init_std must be a number between -50 and 50, but is nan"),
        (dict(init_std="5"), "actor_init_std must be a number between -50 and 50, but is '5'"),
        (
            dict(distribution="normal", exact_gradient=True),
            "actor_exact_gradient=True was given, but it is for .* not 'normal'",
        ),
    ],
)
def test_bad_actor_options_are_named(space: spaces.Space, options: dict[str, Any], message: str) -> None:
    """Whatever the space: a typo must not wait for the day on which actions become continuous."""
    with pytest.raises(ValueError, match=message):
        make_actor(2, space, layers(), continuous(**options))


def test_unknown_action_space_is_named() -> None:
    with pytest.raises(ValueError, match="does not support the action space Text"):
        make_actor(2, spaces.Text(3), layers(), continuous())


@pytest.mark.parametrize("kind", KINDS)
def test_trajectory_shapes(kind: str) -> None:
    path: ImaginedTrajectory = imagined(make_model(actions=ACTIONS[kind]))[0].trajectory
    blocks = {"discrete": [3], "continuous": [2], "multi_discrete": [2, 3], "multi_binary": [2, 2]}[kind]
    n, size = TIME * BATCH, sum(blocks)
    assert path.features.shape == (H + 1, n, 20) and th.equal(path.features, path.states.features)
    assert path.actions.shape == (H + 1, n, size) and not path.actions[0].any()
    assert path.rewards.shape == path.discounts.shape == path.weights.shape == (H + 1, n)
    assert path.actions[1:].abs().max() <= 1.0
    if kind != "continuous":
        assert all(th.equal(block.sum(-1), th.ones(H, n)) for block in path.actions[1:].split(blocks, -1))
