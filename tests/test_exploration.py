"""Exploration in imagination: what the heads learn, what they reward, and that the task's learning does not notice."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_checker import check_env
from torch import nn

from benchmarks import exploration as exploration_benchmark
from benchmarks.tasks.grid import SparseGrid
from sb3_dreamer import DreamerV2
from sb3_dreamer.behavior.actor_critic import ActorCritic, BehaviorObjective
from sb3_dreamer.behavior.exploration import (
    EXPLORATIONS,
    EnsembleMLP,
    Exploration,
    LatentSizes,
    ModelLossBonus,
    Plan2Explore,
    make_exploration,
)
from sb3_dreamer.common.functional import flatten_time
from sb3_dreamer.common.layers import MLP, initialize_weights
from sb3_dreamer.common.optimization import DreamerAdam, ParameterOptimizer
from sb3_dreamer.common.type_aliases import Experience, ImaginedTrajectory, LatentState
from sb3_dreamer.dreamer_v2.update import (
    Imagination,
    Objective,
    Start,
    UpdateNoise,
    exploration_rewards,
    imagine,
    learn_exploration,
    start_states,
)
from tests.small import layers
from tests.test_world_model import ACTIONS, BATCH, TIME, make_model, model_loss, posterior_noise, random_batch

D, Z, E, A = 3, 4, 5, 2
SIZES, F, M = LatentSizes(D, Z, E), D + Z, 3
LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
STRATEGIES = sorted(EXPLORATIONS)


def behavior() -> ActorCritic:
    return ActorCritic(nn.Linear(F, A), F, layers(6))


def plan2explore(**options: Any) -> Plan2Explore:
    th.manual_seed(1)
    return Plan2Explore(behavior(), SIZES, A, **{**layers(8)._asdict(), "ensemble_size": M, **options})


def model_loss_bonus(**options: Any) -> ModelLossBonus:
    th.manual_seed(1)
    return ModelLossBonus(behavior(), SIZES, A, **{**layers(8)._asdict(), **options})


def random_experience(steps: int = 6, batch: int = 3, seed: int = 0) -> Experience:
    """Starts in the first row, and in the middle of two sequences."""
    generator = th.Generator().manual_seed(seed)
    latent = LatentState(*(th.randn(steps, batch, size, generator=generator) for size in (D, Z)))
    embeddings, actions = (th.randn(steps, batch, size, generator=generator) for size in (E, A))
    starts = th.zeros(steps, batch, dtype=th.bool)
    starts[0] = starts[steps // 2, 0] = starts[steps - 1, 1] = True
    kl = th.rand(steps, batch, generator=generator)
    return Experience(latent, embeddings, actions.masked_fill(starts[..., None], 0.0), starts, kl)


def random_trajectory(horizon: int = 4, n: int = 5, gradient: bool = False) -> ImaginedTrajectory:
    generator = th.Generator().manual_seed(2)
    rows = (horizon + 1, n)
    states = LatentState(*(th.randn(*rows, size, generator=generator) for size in (D, Z)))
    features, actions = states.features.requires_grad_(gradient), th.randn(*rows, A, generator=generator)
    rewards, ones = th.randn(rows, generator=generator), th.ones(rows)
    return ImaginedTrajectory(states, features, actions.requires_grad_(gradient), rewards, ones, ones)


# ------------------------------------------------------------------------------------------------------------- the ensemble


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("net_arch", [[], [5], [6, 5, 4]])
def test_ensemble_is_its_members(net_arch: list[int], layer_norm: bool) -> None:
    """The batched products give what one ordinary network after the other gives."""
    th.manual_seed(0)
    options = layers(*net_arch, activation_fn=nn.Tanh, layer_norm=layer_norm)
    ensemble = EnsembleMLP(M, F, Z, options)
    for parameter in ensemble.parameters():
        nn.init.normal_(parameter)
    inputs = th.randn(7, 2, F)
    outputs = ensemble(inputs)
    assert outputs.shape == (M, 7, 2, Z)
    for member in range(M):
        hidden = MLP(F, options)
        network = nn.Sequential(hidden, nn.Linear(hidden.output_size, Z))
        linears = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        for layer, weight, bias in zip(linears, ensemble.weights, ensemble.biases, strict=True):
            layer.weight.data, layer.bias.data = weight[member].T, bias[member, 0]
        norms = [layer for layer in network.modules() if isinstance(layer, nn.LayerNorm)]
        for norm, scale, shift in zip(norms, ensemble.norm_scales, ensemble.norm_shifts, strict=True):
            norm.weight.data, norm.bias.data = scale[member, 0], shift[member, 0]
        assert len(norms) == (len(net_arch) if layer_norm else 0)
        th.testing.assert_close(outputs[member], network(inputs))


def test_members_begin_apart_with_glorot_weights() -> None:
    """As separate layers would; what the policy does to all its layers leaves them alone."""
    ensemble = EnsembleMLP(4, 100, 50, layers(60))
    before = [parameter.clone() for parameter in ensemble.parameters()]
    initialize_weights(ensemble)
    assert all(th.equal(*pair) for pair in zip(before, ensemble.parameters(), strict=True))
    for weight, bias, sizes in zip(ensemble.weights, ensemble.biases, [(100, 60), (60, 50)], strict=True):
        assert weight.shape[1:] == sizes and not bias.any()
        bound = math.sqrt(6 / sum(sizes))
        for member in weight:
            assert 0.98 * bound < member.abs().max() <= bound
            assert member.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        correlation = np.corrcoef(weight.detach().flatten(1).numpy()) - np.eye(4)
        assert np.abs(correlation).max() < 0.1


def linear_ensemble(exploration: Plan2Explore, matrices: th.Tensor) -> None:
    """Give the members (net_arch=[]) these weights, (M, F + A, target)."""
    (weight,) = exploration.ensemble.weights
    assert weight.shape == matrices.shape
    weight.data.copy_(matrices)


def test_disagreement_by_hand() -> None:
    """Two members that predict 1 and 5, 0 and 2, ...: half of the distances, averaged over the dimensions."""
    exploration = plan2explore(net_arch=[], ensemble_size=2, target="deterministic")
    matrices = th.zeros(2, F + A, D)
    matrices[0, 0], matrices[1, 0] = th.tensor([1.0, 0.0, -2.0]), th.tensor([5.0, 2.0, -2.0])
    matrices[1, F] = th.tensor([0.0, 0.0, 3.0])  # the second member also looks at the action
    linear_ensemble(exploration, matrices)
    features, actions = th.zeros(2, F), th.zeros(2, A)
    features[:, 0] = th.tensor([1.0, 2.0])
    actions[1, 0] = 1.0
    spread = exploration.disagreement(features, actions)
    np.testing.assert_allclose(spread.detach(), [(2 + 1 + 0) / 3, (4 + 2 + 1.5) / 3], rtol=1e-6)
    exploration.log_disagreement = True
    np.testing.assert_allclose(exploration.disagreement(features, actions).detach(), spread.detach().log(), rtol=1e-6)


@pytest.mark.parametrize("log", [False, True])
def test_agreement_has_finite_reward_and_gradient(log: bool) -> None:
    exploration = plan2explore(net_arch=[], log_disagreement=log)
    linear_ensemble(exploration, th.ones(M, F + A, Z))
    features = th.ones(2, F, requires_grad=True)
    reward = exploration.disagreement(features, th.ones(2, A))
    np.testing.assert_allclose(reward.detach(), [math.log(1e-8)] * 2 if log else [0.0] * 2, atol=1e-6)
    reward.sum().backward()
    assert features.grad is not None and not features.grad.any()


# ---------------------------------------------------------------------------------------------------- what the ensemble learns


def scripted_experience(steps: int, batch: int, law: th.Tensor, seed: int = 0) -> Experience:
    """Every next stochastic state follows from features and the action taken there: ``[s_t; a_{t+1}] @ law``."""
    generator = th.Generator().manual_seed(seed)
    deterministic = th.randn(steps, batch, D, generator=generator)
    actions = th.randn(steps, batch, A, generator=generator)
    stochastic = [th.randn(batch, Z, generator=generator)]
    for step in range(1, steps):
        stochastic.append(th.cat([stochastic[-1], deterministic[step - 1], actions[step]], -1) @ law)
    states = LatentState(deterministic, th.stack(stochastic))
    starts = th.zeros(steps, batch, dtype=th.bool)
    starts[0] = True
    return Experience(states, th.zeros(steps, batch, E), actions, starts, th.zeros(steps, batch))


def some_law() -> th.Tensor:
    law = th.randn(F + A, Z, generator=th.Generator().manual_seed(3)) * 0.3
    law[F:] *= 3.0  # the action matters most
    return law


def test_ensemble_that_knows_the_law_has_no_error() -> None:
    """The loss pairs (s_t, a_{t+1}) with z_{t+1}, exactly; any other pairing has an error."""
    experience, exploration = scripted_experience(8, 5, some_law()), plan2explore(net_arch=[])
    linear_ensemble(exploration, some_law().expand(M, -1, -1))
    perfect = M * Z * LOG_SQRT_2PI
    assert exploration.loss(experience).item() == pytest.approx(perfect, rel=1e-6)
    for shift in (-1, 1):
        assert exploration.loss(experience._replace(actions=experience.actions.roll(shift, 0))).item() > perfect + 1.0
        states = LatentState(*(x.roll(shift, 0) for x in experience.states))
        assert exploration.loss(experience._replace(states=states)).item() > perfect + 1.0
    assert exploration.start_rewards(experience).abs().max() < 1e-6  # and they agree


def test_ensemble_learns_the_law_and_then_agrees() -> None:
    """Error and disagreement fall where there is something to learn; the noise of other actions cannot be learned."""
    errors = {}
    for name, shift in (("aligned", 0), ("action that led to the state", 1)):
        exploration = plan2explore(net_arch=[16])
        optimizer = ParameterOptimizer(exploration.head_parameters(), DreamerAdam, 1e-2)
        before = exploration.start_rewards(scripted_experience(6, 16, some_law()))[1:].mean()
        for step in range(300):
            experience = scripted_experience(6, 16, some_law(), seed=step)
            optimizer.step(exploration.loss(experience._replace(actions=experience.actions.roll(shift, 0))), None)
        errors[name] = exploration.loss(experience._replace(actions=experience.actions.roll(shift, 0))).item() / M
        if shift == 0:
            assert exploration.start_rewards(experience)[1:].mean() < 0.15 * before
    assert errors["aligned"] - Z * LOG_SQRT_2PI < 0.05
    assert errors["action that led to the state"] - Z * LOG_SQRT_2PI > 1.0


def test_loss_by_hand_and_masks_at_episode_starts() -> None:
    experience, exploration = random_experience(), plan2explore()
    starts = experience.episode_starts
    total, count = 0.0, 0
    for t in range(1, 6):
        for b in range(3):
            if starts[t, b]:
                continue
            prediction = exploration.ensemble(th.cat([experience.states.features[t - 1, b], experience.actions[t, b]])[None])
            errors = (prediction[:, 0] - experience.states.stochastic[t, b]).square()
            total += (0.5 * errors + LOG_SQRT_2PI).sum().item()
            count += 1
    assert count == 13
    loss = exploration.loss(experience)
    assert loss.item() == pytest.approx(total / count, rel=1e-5)

    # What lies across a start is not looked at: neither the target at the start nor the input before it
    states, actions = LatentState(*(x.clone() for x in experience.states)), experience.actions.clone()
    states.stochastic[starts] += 5.0  # also inputs of the next step: put back where they are
    states.stochastic[0], states.stochastic[3, 0] = experience.states.stochastic[0], experience.states.stochastic[3, 0]
    actions[starts] = 7.0
    assert th.equal(exploration.loss(experience._replace(states=states, actions=actions)), loss)
    states.stochastic[2, 0] += 5.0  # the end of an episode is a target
    assert not th.equal(exploration.loss(experience._replace(states=states)), loss)


@pytest.mark.parametrize("steps", [1, 4])
def test_nothing_to_learn_from(steps: int) -> None:
    """Only starts, or one step: the loss is 0 and so are its gradients."""
    experience, exploration = random_experience(steps), plan2explore()
    loss = exploration.loss(experience._replace(episode_starts=th.ones(steps, 3, dtype=th.bool)))
    loss.backward()
    assert loss.item() == 0.0
    gradients = [parameter.grad for parameter in exploration.head_parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    assert not exploration.start_rewards(experience._replace(episode_starts=th.ones(steps, 3, dtype=th.bool))).any()


@pytest.mark.parametrize("target, width", [("stochastic", Z), ("deterministic", D), ("features", F), ("embedding", E)])
def test_targets(target: str, width: int) -> None:
    """The loss moves with the last step's target, and with nothing else of that step."""
    experience, exploration = random_experience(), plan2explore(target=target)
    assert exploration.ensemble(th.zeros(1, F + A)).shape == (M, 1, width)
    loss = exploration.loss(experience)
    for changed, part in {"embedding": experience.embeddings, **experience.states._asdict()}.items():
        kept = part[-1].clone()
        part[-1] += 1.0
        moves = changed == target or (target == "features" and changed != "embedding")
        assert (exploration.loss(experience) != loss) == moves, changed
        part[-1] = kept


# --------------------------------------------------------------------------------------------------------------- the rewards


def test_start_rewards_are_those_of_the_replayed_predecessor() -> None:
    experience, exploration = random_experience(), plan2explore()
    experience = experience._replace(episode_starts=experience.episode_starts.clone().index_fill_(0, th.tensor(0), False))
    rewards = exploration.start_rewards(experience)
    assert rewards.shape == (6, 3) and not rewards.requires_grad
    assert not rewards[0].any()  # nothing is known of what came before, start or not
    for t in range(1, 6):
        expected = exploration.disagreement(experience.states.features[t - 1], experience.actions[t])
        expected[experience.episode_starts[t]] = 0.0
        th.testing.assert_close(rewards[t], expected)
    assert (rewards[1:] > 0).sum() == 13


def test_rewards_are_on_arrival() -> None:
    """Row k comes from state k - 1 and the action that led to k; the gradient goes to just these."""
    path, exploration, start = random_trajectory(gradient=True), plan2explore(), th.arange(5.0)
    rewards = exploration.intrinsic_rewards(path, start)
    assert rewards.shape == (5, 5) and th.equal(rewards[0], start)
    for k in range(1, 5):
        th.testing.assert_close(rewards[k], exploration.disagreement(path.features[k - 1], path.actions[k]))
        to_features, to_actions = th.autograd.grad(rewards[k].sum(), [path.features, path.actions], retain_graph=True)
        assert [bool(row.any()) for row in to_features] == [row == k - 1 for row in range(5)]
        assert [bool(row.any()) for row in to_actions] == [row == k for row in range(5)]


def test_model_loss_bonus_regresses_the_kl() -> None:
    exploration = model_loss_bonus()
    experience = random_experience()
    weights = th.tensor([1.0, -0.5, 0.0, 0.5, 0.2, 0.0, 0.3])
    experience = experience._replace(kl=th.tanh(experience.states.features @ weights) + 2.0)
    predictions = exploration.head(experience.states.features).mode
    by_hand = (0.5 * (predictions - experience.kl).square() + LOG_SQRT_2PI).mean()
    assert exploration.loss(experience).item() == pytest.approx(by_hand.item(), rel=1e-6)
    optimizer = ParameterOptimizer(exploration.head_parameters(), DreamerAdam, 1e-2)
    for _ in range(400):
        optimizer.step(exploration.loss(experience), None)
    assert (exploration.start_rewards(experience) - experience.kl).abs().mean() < 0.05

    path, start = random_trajectory(gradient=True), th.arange(5.0)
    rewards = exploration.intrinsic_rewards(path, start)
    assert th.equal(rewards[0], start) and th.equal(rewards[1:], exploration.head(path.features[1:]).mode)
    (to_features,) = th.autograd.grad(rewards[3].sum(), [path.features])
    assert [bool(row.any()) for row in to_features] == [row == 3 for row in range(5)]


def test_mixed_rewards_by_hand() -> None:
    intrinsic, extrinsic = th.tensor([[1.0, 3.0]]), th.tensor([[-4.0, 0.0]])
    assert th.equal(plan2explore().mix_rewards(intrinsic, extrinsic), intrinsic)
    assert plan2explore(intrinsic_scale=0.5, extrinsic_scale=2.0).mix_rewards(intrinsic, extrinsic).tolist() == [[-7.5, 1.5]]

    exploration = plan2explore(intrinsic_scale=0.5, extrinsic_scale=2.0, reward_norm_momentum=0.75)
    sizes = np.array([1.0, 1.0])
    for factor in (1.0, 10.0):  # each kind is divided by a running mean of its own size: 2 * factor for both
        sizes = 0.75 * sizes + 0.25 * factor * np.array([2.0, 2.0 * factor])
        mixed = exploration.mix_rewards(factor * intrinsic, factor**2 * extrinsic)
        expected = 0.5 * factor * intrinsic.numpy() / sizes[0] + 2.0 * factor**2 * extrinsic.numpy() / sizes[1]
        np.testing.assert_allclose(mixed, expected, rtol=1e-6)

    exploration = plan2explore(reward_norm_momentum=0.75)
    exploration.mix_rewards(intrinsic, extrinsic)
    assert exploration.intrinsic_normalizer.magnitude.item() == pytest.approx(1.25)
    assert exploration.extrinsic_normalizer.magnitude.item() == 1.0


def test_rewards_of_both_kinds_are_normalized_before_they_are_scaled() -> None:
    path, exploration = random_trajectory(), plan2explore(extrinsic_scale=1.0, reward_norm_momentum=0.0)
    mixed = exploration.mix_rewards(100.0 * path.rewards, 1e-3 * path.rewards)
    np.testing.assert_allclose(mixed, 2.0 * path.rewards / path.rewards.abs().mean(), rtol=1e-4)


# ------------------------------------------------------------------------------------------------------------ in the update


def exploring_model(strategy: str = "plan2explore", actions: str = "discrete", **options: Any) -> DreamerV2:
    exploration_kwargs = options.pop("exploration_kwargs", {})
    if strategy == "plan2explore":
        exploration_kwargs = {"ensemble_size": M, **exploration_kwargs}
    kwargs = dict(exploration_class=strategy, exploration_kwargs=exploration_kwargs)
    return make_model(actions=ACTIONS[actions], policy_kwargs=kwargs, imagination_horizon=4, **options)


def all_noise(model: DreamerV2, horizon: int = 4) -> UpdateNoise:
    generator, rssm = th.Generator().manual_seed(9), model.policy.world_model.rssm
    draws: list[th.Tensor] = []
    for _ in range(2):
        draws.append(th.rand(horizon, TIME * BATCH, rssm.action_size, generator=generator))
        draws.append(th.empty(horizon, TIME * BATCH, rssm.latent.parameter_size).exponential_(generator=generator))
    return UpdateNoise(posterior_noise(model, TIME, BATCH), *draws)


def exploration_of(model: DreamerV2) -> Exploration:
    exploration = model.policy.exploration
    assert exploration is not None
    return exploration


def explore(
    model: DreamerV2,
    start: LatentState,
    continues: th.Tensor,
    start_rewards: th.Tensor,
    objective: BehaviorObjective,
    noise: UpdateNoise | None = None,
) -> Imagination:
    exploration, draws = exploration_of(model), (None, None)
    if noise is not None:
        draws = noise.exploration_actions, noise.exploration_latents  # type: ignore[assignment]
    rewards = exploration_rewards(exploration, start_rewards)
    return imagine(model.policy.world_model, exploration.behavior, Start(start, continues), objective, rewards, draws)


def experience_of(model: DreamerV2) -> tuple[Experience, LatentState, th.Tensor]:
    """What a random batch gives: experience, start states, continues."""
    batch, loss = random_batch(model), model_loss(model)
    experience = Experience(loss.states.detach(), loss.embeddings.detach(), batch.actions, batch.episode_starts, loss.kl_value)
    return experience, start_states(loss.states), flatten_time(batch.continues)


PARTS: dict[str, Callable[[DreamerV2], list[nn.Parameter]]] = {
    "world model": lambda model: list(model.policy.world_model.parameters()),
    "actor": lambda model: list(model.policy.behavior.actor.parameters()),
    "critic": lambda model: list(model.policy.behavior.critic.parameters()),
    "heads": lambda model: exploration_of(model).head_parameters(),
    "exploration's actor": lambda model: list(exploration_of(model).behavior.actor.parameters()),
    "exploration's critic": lambda model: list(exploration_of(model).behavior.critic.parameters()),
    "exploration's target": lambda model: list(exploration_of(model).behavior.critic_target.parameters()),
}


def snapshot(model: DreamerV2) -> dict[str, list[th.Tensor]]:
    return {name: [parameter.detach().clone() for parameter in part(model)] for name, part in PARTS.items()}


def moved(before: dict[str, list[th.Tensor]], after: dict[str, list[th.Tensor]]) -> set[str]:
    return {name for name in before if not all(th.equal(a, b) for a, b in zip(before[name], after[name], strict=True))}


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_optimizer_moves_its_own(strategy: str, weight: float) -> None:
    model = exploring_model(strategy, "continuous", reinforce_weight=weight)
    exploration, policy, objective = exploration_of(model), model.policy, model.behavior_objective
    experience, start, continues = experience_of(model)
    before = snapshot(model)
    policy.exploration_optimizer.step(exploration.loss(experience), None)
    after_heads = snapshot(model)
    assert moved(before, after_heads) == {"heads"}

    rewards = flatten_time(exploration.start_rewards(experience))
    result = explore(model, start, continues, rewards, objective, all_noise(model))
    actor_loss = exploration.behavior.actor_loss(result.trajectory, result.estimate, objective)
    critic_loss = exploration.behavior.critic_loss(result.trajectory, result.estimate.returns)
    policy.exploration_actor_optimizer.step(actor_loss.total, None)
    after_actor = snapshot(model)
    assert moved(after_heads, after_actor) == {"exploration's actor"}
    policy.exploration_critic_optimizer.step(critic_loss.total, None)
    assert moved(after_actor, snapshot(model)) == {"exploration's critic"}
    others = [p for name in ("world model", "actor", "critic", "exploration's target") for p in PARTS[name](model)]
    assert all(parameter.grad is None for parameter in others)


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_task_is_learnt_as_without_exploration(strategy: str, actions: str) -> None:
    """World model, actor and critic after three updates are the same to the bit."""
    with_it, without = exploring_model(strategy, actions), make_model(actions=ACTIONS[actions], imagination_horizon=4)
    for part in ("world_model", "behavior"):
        getattr(with_it.policy, part).load_state_dict(getattr(without.policy, part).state_dict())
    before = snapshot(with_it)
    for seed in range(3):
        results = [model.update(random_batch(model, seed), all_noise(model)) for model in (with_it, without)]
    for part in ("world_model", "behavior"):
        states = [getattr(model.policy, part).state_dict() for model in (with_it, without)]
        assert states[0] and all(th.equal(states[0][name], states[1][name]) for name in states[1])
    assert moved(before, snapshot(with_it)) == set(PARTS)
    assert results[1].exploration is None and set(results[0].metrics) - set(results[1].metrics) == METRICS
    assert all(value.ndim == 0 and value.isfinite() for value in results[0].metrics.values())


METRICS = {
    "exploration_loss",
    "intrinsic_reward_mean",
    "exploration_actor_loss",
    "exploration_actor_entropy",
    "exploration_critic_loss",
    "exploration_grad_norm",
    "exploration_actor_grad_norm",
    "exploration_critic_grad_norm",
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_exploration_imagines(strategy: str) -> None:
    """Its own actor's path, its own rewards, its own target critic; and the metrics tell of these."""
    model = exploring_model(strategy, exploration_kwargs=dict(intrinsic_scale=3.0, extrinsic_scale=0.5))
    exploration, objective, noise = exploration_of(model), model.behavior_objective, all_noise(model)
    experience, start, continues = experience_of(model)
    rewards = flatten_time(exploration.start_rewards(experience))
    result = explore(model, start, continues, rewards, objective, noise)
    draws = noise.exploration_actions, noise.exploration_latents
    path = model.policy.world_model.imagine(exploration.behavior.actor, start, continues, 4, objective.gamma, *draws)
    th.testing.assert_close(result.trajectory.features, path.features)
    intrinsic = exploration.intrinsic_rewards(path, rewards)
    th.testing.assert_close(result.predicted_rewards, intrinsic)
    th.testing.assert_close(result.trajectory.rewards, 3.0 * intrinsic + 0.5 * path.rewards)
    th.testing.assert_close(result.estimate.values, exploration.behavior.critic_target(path.features).mode)

    with th.random.fork_rng():
        whole = Objective(model.model_objective, objective, 100.0)
        imagined, _, metrics = learn_exploration(model.policy, experience, Start(start, continues), whole, noise)
    assert metrics["intrinsic_reward_mean"].item() == pytest.approx(imagined.predicted_rewards.mean().item())
    assert metrics["exploration_loss"].item() > exploration.loss(experience).item()  # of before the step


def test_rewards_of_the_update_come_from_the_batch() -> None:
    """The first imagined row has the rewards of the replayed predecessors, by the ensemble as it is after its step."""
    model = exploring_model()
    batch, noise = random_batch(model), all_noise(model)
    result = model.update(batch, noise)
    states = result.model_loss.states.detach()
    experience = Experience(
        states, result.model_loss.embeddings.detach(), batch.actions, batch.episode_starts, result.model_loss.kl_value
    )
    assert result.exploration is not None
    expected = flatten_time(exploration_of(model).start_rewards(experience))
    th.testing.assert_close(result.exploration.predicted_rewards[0], expected)
    assert th.equal(expected == 0, flatten_time(batch.episode_starts.clone().index_fill_(0, th.tensor(0), True)))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_dynamics_gradient_flows_through_intrinsic_rewards(strategy: str) -> None:
    """With reinforce_weight=0 the actor learns from the rewards' gradient alone: no rewards, no gradient."""
    gradients = {}
    for scale in (0.0, 1.0, 2.0):
        kwargs = dict(intrinsic_scale=scale)
        model = exploring_model(strategy, "continuous", reinforce_weight=0.0, ent_coef=0.0, exploration_kwargs=kwargs)
        exploration, objective = exploration_of(model), model.behavior_objective
        for parameter in exploration.behavior.critic_target.parameters():
            parameter.data.zero_()
        experience, start, continues = experience_of(model)
        rewards = flatten_time(exploration.start_rewards(experience))
        result = explore(model, start, continues, rewards, objective, all_noise(model))
        loss = exploration.behavior.actor_loss(result.trajectory, result.estimate, objective).total
        found = th.autograd.grad(loss, list(exploration.behavior.actor.parameters()))
        gradients[scale] = th.cat([gradient.flatten() for gradient in found])
    assert not gradients[0.0].any() and gradients[1.0].abs().max() > 1e-6
    th.testing.assert_close(gradients[2.0], 2.0 * gradients[1.0])


# ---------------------------------------------------------------------------------------------------------------- options


def numbers(strategy: str, **options: Any) -> dict[str, float]:
    """Loss and rewards after one step of the heads."""
    th.manual_seed(0)
    exploration = make_exploration(strategy, behavior(), SIZES, A, layers(8), **options)
    experience, path = random_experience(), random_trajectory()
    ParameterOptimizer(exploration.head_parameters(), DreamerAdam, 1e-2).step(exploration.loss(experience), None)
    intrinsic = exploration.intrinsic_rewards(path, exploration.start_rewards(experience)[0].new_zeros(5))
    mixed = exploration.mix_rewards(intrinsic, path.rewards)
    loss = exploration.loss(experience)
    return {"loss": loss.item(), "intrinsic": intrinsic.mean().item(), "mixed": mixed.mean().item()}


COMMON_OPTIONS = [("net_arch", [7]), ("activation_fn", nn.Tanh), ("layer_norm", True)]
REWARD_OPTIONS = [("intrinsic_scale", 0.5), ("extrinsic_scale", 0.5), ("reward_norm_momentum", 0.9)]
PLAN2EXPLORE_OPTIONS = [("ensemble_size", 4), ("target", "embedding"), ("log_disagreement", True)]


@pytest.mark.parametrize("option, value", [*COMMON_OPTIONS, *REWARD_OPTIONS, *PLAN2EXPLORE_OPTIONS])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_option_changes_a_number(strategy: str, option: str, value: Any) -> None:
    if strategy != "plan2explore" and (option, value) in PLAN2EXPLORE_OPTIONS:
        with pytest.raises(ValueError, match=rf"Unknown options \['{option}'\] for exploration 'model_loss'; known are"):
            numbers(strategy, **{option: value})
        return
    default, changed = numbers(strategy), numbers(strategy, **{option: value})
    differ = {name for name in default if default[name] != changed[name]}
    if (option, value) in REWARD_OPTIONS:
        assert differ == {"mixed"}
    elif option == "log_disagreement":
        assert differ == {"intrinsic", "mixed"}
    else:
        assert differ == {"loss", "intrinsic", "mixed"}


def test_options_beat_the_callers_architecture() -> None:
    exploration = make_exploration("plan2explore", behavior(), SIZES, A, layers(9, 9), net_arch=[5])
    assert isinstance(exploration, Plan2Explore)
    assert [weight.shape[2] for weight in exploration.ensemble.weights] == [5, Z]
    exploration = make_exploration("plan2explore", behavior(), SIZES, A, layers(9, 9))
    assert isinstance(exploration, Plan2Explore)
    assert [tuple(weight.shape) for weight in exploration.ensemble.weights] == [(10, F + A, 9), (10, 9, 9), (10, 9, Z)]
    assert not exploration.ensemble.layer_norm and isinstance(exploration.ensemble.activation, nn.ELU)
    exploration = make_exploration(
        "plan2explore", behavior(), SIZES, A, layers(9, 9, activation_fn=nn.Tanh, layer_norm=True), activation_fn=nn.ReLU
    )
    assert isinstance(exploration, Plan2Explore)
    assert exploration.ensemble.layer_norm and isinstance(exploration.ensemble.activation, nn.ReLU)


class CountingBonus(Exploration):
    """A user's own strategy: rewards the first feature."""

    def __init__(self, behavior: ActorCritic, sizes: LatentSizes, action_size: int, net_arch: Any, **rest: Any):
        super().__init__(behavior)
        assert (sizes, action_size, net_arch) == (SIZES, A, (4,))
        self.rest, self.weight = rest, nn.Parameter(th.zeros(()))

    def loss(self, experience: Experience) -> th.Tensor:
        return (self.weight - 1.0).square()

    def start_rewards(self, experience: Experience) -> th.Tensor:
        return experience.states.features[..., 0]

    def intrinsic_rewards(self, trajectory: ImaginedTrajectory, start_rewards: th.Tensor) -> th.Tensor:
        return trajectory.features[..., 0]


def test_a_strategy_of_ones_own() -> None:
    exploration = make_exploration(CountingBonus, behavior(), SIZES, A, layers(4), bonus=2)
    assert isinstance(exploration, CountingBonus) and exploration.rest == {"bonus": 2}
    assert [parameter is exploration.weight for parameter in exploration.head_parameters()] == [True]


@pytest.mark.parametrize(
    "strategy, options, message",
    [
        ("curious", {}, r"Unknown exploration 'curious': give one of 'random', 'plan2explore', 'model_loss', a subclass"),
        (nn.Linear, {}, "Unknown exploration <class"),
        (
            "plan2explore",
            {"ensemble": 5, "bonus": 1},
            r"Unknown options \['bonus', 'ensemble'\].*known are \['net_arch', 'act",
        ),
        ("plan2explore", {"behavior": None}, r"Unknown options \['behavior'\]"),
        (
            "plan2explore",
            {"target": "image"},
            "target must be one of stochastic, deterministic, features, embedding, but",
        ),
        ("plan2explore", {"ensemble_size": 1}, "ensemble_size must be a number of at least 2, but is 1"),
        ("plan2explore", {"ensemble_size": 2.5}, "ensemble_size must be a whole number, but is 2.5"),
        ("plan2explore", {"log_disagreement": "no"}, "log_disagreement must be True or False, but is 'no'"),
        ("plan2explore", {"intrinsic_scale": -1.0}, "intrinsic_scale must be a number of at least 0, but is -1.0"),
        ("model_loss", {"extrinsic_scale": "1"}, "extrinsic_scale must be a number of at least 0, but is '1'"),
        ("model_loss", {"reward_norm_momentum": 1.5}, "reward_norm_momentum must be a number between 0 and 1, but is 1.5"),
    ],
)
def test_bad_options_are_named(strategy: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_exploration(strategy, behavior(), SIZES, A, layers(4), **options)


# --------------------------------------------------------------------------------------------------------- what it explores


@pytest.mark.parametrize("size, length", [(25, 60), (2, 5)])
def test_grid_pays_in_the_farthest_corner(size: int, length: int) -> None:
    grid = SparseGrid(size, length)
    check_env(grid)

    def play(actions: list[int]) -> list[tuple[float, bool, bool]]:
        assert grid.reset()[0].tolist() == [-1.0, -1.0]
        return [
            (reward, terminated, truncated)
            for _, reward, terminated, truncated, _ in (grid.step(np.int64(action)) for action in actions)
        ]

    way = [1] * (size - 1) + [3] * (size - 1)
    assert play(way) == [(0.0, False, False)] * (len(way) - 1) + [(1.0, True, False)]
    assert grid.step(np.int64(0))[0].tolist() == pytest.approx([1 - 2 / (size - 1), 1.0])
    assert grid.step(np.int64(2))[0].tolist() == pytest.approx([1 - 2 / (size - 1)] * 2)
    assert play([0, 2] * length)[:length] == [(0.0, False, False)] * (length - 1) + [(0.0, False, True)]
    assert grid.position == (0, 0)


@pytest.mark.parametrize("sizes", [(1, 3), (2, 0)])
def test_no_grid(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="No grid of"):
        SparseGrid(*sizes)


def test_cells_are_counted_from_the_first_to_the_last_step() -> None:
    result = exploration_benchmark.run("random", seed=3, steps=1000)
    env, cells = SparseGrid(), {(0, 0)}
    env.action_space.seed(3)
    env.reset(seed=3)
    for step in range(1000):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        cells.add(env.position)
        if step % 250 == 249:
            assert result["curve"][step // 250] == len(cells)
        if terminated or truncated:
            env.reset()
    assert result["cells"] == len(cells) and len(result["curve"]) == 4


@pytest.mark.slow
def test_plan2explore_sees_more_than_random_actions() -> None:
    """Minutes; the agent and the numbers are those of ``benchmarks/exploration.py``."""
    random, plan2explore = (exploration_benchmark.run(method, seed=0)["cells"] for method in ("random", "plan2explore"))
    assert plan2explore >= 2 * random
