"""One training update of DreamerV2: the paper's algorithm box as one function without state of its own."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch as th

from sb3_dreamer.behavior.actor_critic import ActorCritic, ActorLoss, BehaviorObjective, CriticLoss, ReturnEstimate
from sb3_dreamer.behavior.exploration import Exploration
from sb3_dreamer.common.functional import flatten_time
from sb3_dreamer.common.optimization import ParameterOptimizer, step_together
from sb3_dreamer.common.type_aliases import Experience, ImaginedTrajectory, LatentState, SequenceBatch
from sb3_dreamer.dreamer_v2.policies import DreamerPolicy
from sb3_dreamer.world_model.world_model import WorldModel, WorldModelLoss, WorldModelObjective


class Objective(NamedTuple):
    """What an update minimizes."""

    model: WorldModelObjective
    behavior: BehaviorObjective
    max_grad_norm: float | None  # each optimizer's gradients are clipped to this global norm

    def value(self, name: str) -> float:
        """The present value of an option that changes in the course of training."""
        return getattr(self.behavior, name)

    def with_values(self, values: dict[str, Any]) -> "Objective":
        """The same objective with other values of such options, numbers or tensors."""
        return self._replace(behavior=replace(self.behavior, **values))


class Start(NamedTuple):
    """Where imagination begins."""

    states: LatentState  # (N, ...)
    continues: th.Tensor  # (N,) 0 where the state is terminal, else 1


#: From an imagined path to its rewards as predicted, and as they are learned from, both (H + 1, N)
Rewards = Callable[[ImaginedTrajectory], tuple[th.Tensor, th.Tensor]]


class UpdateNoise(NamedTuple):
    """All random numbers of one update, where they are given instead of drawn."""

    posterior: th.Tensor | None = None  # (T, B, P)
    actions: th.Tensor | None = None  # (H, N, ...)
    latents: th.Tensor | None = None  # (H, N, P)
    exploration_actions: th.Tensor | None = None  # (H, N, ...)
    exploration_latents: th.Tensor | None = None  # (H, N, P)


class Imagination(NamedTuple):
    """Imagined trajectories, and what is learned from them."""

    predicted_rewards: th.Tensor  # (H + 1, N) before normalization; the intrinsic ones where exploration imagines
    trajectory: ImaginedTrajectory  # with the rewards that are learned from
    estimate: ReturnEstimate
    return_scale: th.Tensor | None = None  # () that divides returns in the actor's loss


class LearnedBehavior(NamedTuple):
    """Losses of actor and critic before their step, and the norms of its gradients."""

    actor_loss: ActorLoss
    critic_loss: CriticLoss
    actor_norm: th.Tensor
    critic_norm: th.Tensor


class UpdateResult(NamedTuple):
    """What an update computed on its way; the losses are those before the steps."""

    model_loss: WorldModelLoss
    imagination: Imagination
    metrics: dict[str, th.Tensor]  # scalars by logged name, without the "train/"
    exploration: Imagination | None = None  # None without exploration in imagination


def training_update(
    policy: DreamerPolicy, batch: SequenceBatch, objective: Objective, noise: UpdateNoise | None = None
) -> UpdateResult:
    """
    Train the world model on replayed sequences, then actor and critic in its imagination (V2, algorithm box), then, if the
    policy has one, the exploration strategy.

    Each optimizer differentiates its own parameters only, so the order of the lines is the whole story of the gradients.

    :param policy: the networks and their optimizers; changed in place
    :param batch: sequences from the replay buffer
    :param objective: what the world model minimizes, and what actor and critic maximize and regress
    :param noise: random numbers to use instead of drawing them
    :return: losses, trajectory and metrics
    """
    noise, behavior = noise or UpdateNoise(), policy.behavior
    draws = noise.actions, noise.latents

    # Dynamics learning: the posterior explains the data, the prior learns to predict it                     [V2, eq. 2]
    model_loss = policy.world_model.loss(batch, objective.model, noise.posterior)
    model_norm = policy.world_model_optimizer.step(model_loss.total, objective.max_grad_norm)

    # Behavior learning: imagine from the posterior states, with the model just updated                 [V2, section 2.2]
    stride = objective.behavior.imagination_stride
    start = Start(start_states(model_loss.states, stride), every(batch.continues, stride))
    rewards = task_rewards(behavior, objective.behavior)
    imagination = imagine(policy.world_model, behavior, start, objective.behavior, rewards, draws)
    optimizers = policy.actor_optimizer, policy.critic_optimizer
    learned = learn_behavior(behavior, *optimizers, imagination, objective)

    metrics = model_metrics(policy, model_loss) | behavior_metrics(imagination, learned.actor_loss, learned.critic_loss)
    metrics |= {"model_grad_norm": model_norm, "actor_grad_norm": learned.actor_norm, "critic_grad_norm": learned.critic_norm}
    norms, exploration = [model_norm, learned.actor_norm, learned.critic_norm], None
    if policy.exploration is not None:
        exploration, learned, explored = learn_exploration(policy, experience_of(batch, model_loss), start, objective, noise)
        norms += [explored["exploration_grad_norm"], learned.actor_norm, learned.critic_norm]
        metrics |= explored
    metrics["skipped_updates"] = 1.0 - th.isfinite(sum(norms)).to(model_norm.dtype)  # type: ignore[arg-type]
    return UpdateResult(model_loss, imagination, metrics, exploration)


def every(sequence: th.Tensor, stride: int) -> th.Tensor:
    """
    Every k-th step of replayed sequences.

    :param sequence: (T, B, ...)
    :param stride: k
    :return: steps k, 2k, ... of T, flattened, (N, ...), N = T // k * B; of shorter sequences the last step
    """
    return flatten_time(sequence[min(stride, len(sequence)) - 1 :: stride])


def start_states(states: LatentState, stride: int = 1) -> LatentState:
    """
    Posterior states of the batch, as constants, to imagine from.

    :param states: (T, B, ...)
    :param stride: see :func:`every`
    :return: (N, ...)
    """
    return LatentState(every(states.deterministic, stride), every(states.stochastic, stride)).detach()


def task_rewards(behavior: ActorCritic, objective: BehaviorObjective) -> Rewards:
    """The task's rewards for :func:`imagine`, which moves the state of their normalizer."""
    return lambda path: (path.rewards, behavior.normalize_rewards(path, objective).rewards)


def exploration_rewards(exploration: Exploration, start_rewards: th.Tensor) -> Rewards:
    """
    The exploration strategy's rewards for :func:`imagine`, which moves the states of their normalizers.

    :param exploration: the strategy
    :param start_rewards: intrinsic rewards on arrival at the start states, (N,)
    :return: the intrinsic rewards, and their mixture with the task's
    """

    def rewards(path: ImaginedTrajectory) -> tuple[th.Tensor, th.Tensor]:
        intrinsic = exploration.intrinsic_rewards(path, start_rewards)
        return intrinsic, exploration.mix_rewards(intrinsic, path.rewards)

    return rewards


def experience_of(batch: SequenceBatch, loss: WorldModelLoss) -> Experience:
    """What the world model made of replayed sequences, as constants."""
    states, embeddings = loss.states.detach(), loss.embeddings.detach()
    return Experience(states, embeddings, batch.actions, batch.episode_starts, loss.kl_value)


def imagine(
    world_model: WorldModel,
    behavior: ActorCritic,
    start: Start,
    objective: BehaviorObjective,
    rewards: Rewards,
    noise: tuple[th.Tensor | None, th.Tensor | None] = (None, None),
) -> Imagination:
    """
    Imagined trajectories with the targets that actor and critic learn from; REINFORCE alone needs no gradient of them.

    :param world_model: in which to imagine
    :param behavior: actor and target critic
    :param start: N states to imagine from
    :param objective: horizon, discount, λ
    :param rewards: see :data:`Rewards`
    :param noise: for actions and latents, instead of drawing it
    :return: trajectories and returns
    """
    with th.set_grad_enabled(objective.needs_dynamics):
        horizon, gamma = objective.imagination_horizon, objective.gamma
        path = world_model.imagine(behavior.actor, start.states, start.continues, horizon, gamma, *noise)
        predicted, learned = rewards(path)
        trajectory = path._replace(rewards=learned)
        estimate = behavior.lambda_returns(trajectory, objective.return_lambda)  #                           [V2, eq. 4]
    scale = behavior.return_scale(estimate.returns.detach()) if objective.normalize_returns else None
    return Imagination(predicted, trajectory, estimate, scale)


def learn_behavior(
    behavior: ActorCritic,
    actor_optimizer: ParameterOptimizer,
    critic_optimizer: ParameterOptimizer,
    imagination: Imagination,
    objective: Objective,
) -> LearnedBehavior:
    """
    One step of an actor and its critic on imagined trajectories, whatever their rewards are.

    :param behavior: actor and critics
    :param actor_optimizer: of this actor
    :param critic_optimizer: of this critic
    :param imagination: trajectories of this actor, with targets
    :param objective: what actor and critic maximize and regress
    :return: losses and norms
    """
    _, path, estimate, scale = imagination
    actor_loss = behavior.actor_loss(path, estimate, objective.behavior, scale)  #                              [V2, eq. 6]
    critic_loss = behavior.critic_loss(path, estimate.returns)  #                                               [V2, eq. 5]
    steps = [(actor_optimizer, actor_loss.total), (critic_optimizer, critic_loss.total)]
    return LearnedBehavior(actor_loss, critic_loss, *step_together(steps, objective.max_grad_norm))


def learn_exploration(
    policy: DreamerPolicy,
    experience: Experience,
    start: Start,
    objective: Objective,
    noise: UpdateNoise | None = None,
) -> tuple[Imagination, LearnedBehavior, dict[str, th.Tensor]]:
    """
    One step of the exploration strategy's heads on replayed experience, then of its actor and critic in imagination.

    :param policy: with an exploration strategy
    :param experience: what the world model made of the batch, (T, B, ...)
    :param start: the same states to imagine from
    :param objective: as of the task's behavior; rewards are normalized by the strategy's own options instead
    :param noise: random numbers to use instead of drawing them
    :return: imagined trajectories with the strategy's rewards, losses, and scalars by logged name
    """
    exploration, noise = policy.exploration, noise or UpdateNoise()
    assert exploration is not None
    loss = exploration.loss(experience)
    norm = policy.exploration_optimizer.step(loss, objective.max_grad_norm)
    start_rewards = every(exploration.start_rewards(experience), objective.behavior.imagination_stride)
    rewards = exploration_rewards(exploration, start_rewards)
    draws = noise.exploration_actions, noise.exploration_latents
    imagination = imagine(policy.world_model, exploration.behavior, start, objective.behavior, rewards, draws)
    optimizers = policy.exploration_actor_optimizer, policy.exploration_critic_optimizer
    learned = learn_behavior(exploration.behavior, *optimizers, imagination, objective)
    metrics = {
        "exploration_loss": loss.detach(),
        "intrinsic_reward_mean": imagination.predicted_rewards.detach().mean(),
        "exploration_actor_loss": learned.actor_loss.total.detach(),
        "exploration_actor_entropy": learned.actor_loss.entropy,
        "exploration_critic_loss": learned.critic_loss.total.detach(),
        "exploration_grad_norm": norm,
        "exploration_actor_grad_norm": learned.actor_norm,
        "exploration_critic_grad_norm": learned.critic_norm,
    }
    return imagination, learned, metrics


@th.no_grad()
def model_metrics(policy: DreamerPolicy, loss: WorldModelLoss) -> dict[str, th.Tensor]:
    """What is logged of the world model, scalars by name."""
    latent = policy.world_model.rssm.latent
    metrics = {"model_loss": loss.total.detach()}
    metrics.update({policy.loss_names[key]: value.detach() for key, value in loss.observations.items()})
    metrics["reward_loss"] = loss.reward.detach()
    metrics["reward_variance"] = loss.reward_variance
    if loss.discount is not None:
        metrics["discount_loss"] = loss.discount.detach()
    metrics["kl_loss"] = loss.kl.detach()
    metrics["kl"] = loss.kl_value.mean()
    metrics["posterior_entropy"] = latent.entropy(loss.posterior).mean()
    metrics["prior_entropy"] = latent.entropy(loss.prior).mean()
    return metrics


@th.no_grad()
def behavior_metrics(imagination: Imagination, actor_loss: ActorLoss, critic_loss: CriticLoss) -> dict[str, th.Tensor]:
    """What is logged of actor and critic, scalars by name."""
    trajectory, estimate = imagination.trajectory, imagination.estimate
    return {
        "actor_loss": actor_loss.total.detach(),
        "actor_entropy": actor_loss.entropy,
        "critic_loss": critic_loss.total.detach(),
        "value_mean": critic_loss.values.mean(),
        "target_value_mean": estimate.values.mean(),
        "return_mean": estimate.returns.mean(),
        "imagined_reward_mean": imagination.predicted_rewards.mean(),
        "imagined_reward_std": imagination.predicted_rewards.std(correction=0),
        "normed_reward_mean": trajectory.rewards.mean(),
        "normed_reward_std": trajectory.rewards.std(correction=0),
        "imagined_discount_mean": trajectory.discounts.mean(),
    }
