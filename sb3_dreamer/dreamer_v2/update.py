"""One training update of DreamerV2: the paper's algorithm box as one function without state of its own."""

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
        """
        :param name: of an option that changes in the course of training
        :return: its present value
        """
        return getattr(self.behavior, name)

    def with_values(self, values: dict[str, Any]) -> "Objective":
        """
        :param values: of such options, numbers or tensors
        :return: the same objective with these
        """
        return self._replace(behavior=replace(self.behavior, **values))


class UpdateNoise(NamedTuple):
    """All random numbers of one update, where they are given instead of drawn."""

    posterior: th.Tensor | None = None  # (T, B, P)
    actions: th.Tensor | None = None  # (H, N, ...)
    latents: th.Tensor | None = None  # (H, N, P)
    exploration_actions: th.Tensor | None = None  # (H, N, ...)
    exploration_latents: th.Tensor | None = None  # (H, N, P)


class Imagination(NamedTuple):
    """Imagined trajectories and what is learned from them."""

    predicted_rewards: th.Tensor  # (H + 1, N) before normalization; the intrinsic ones where exploration imagines
    trajectory: ImaginedTrajectory  # with the rewards that are learned from
    estimate: ReturnEstimate


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


def every(sequence: th.Tensor, stride: int) -> th.Tensor:
    """
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
    noise = noise or UpdateNoise()
    model_objective, behavior_objective, max_grad_norm = objective

    # Dynamics learning: the posterior explains the data, the prior learns to predict it                     [V2, eq. 2]
    model_loss = policy.world_model.loss(batch, model_objective, noise.posterior)
    model_norm = policy.world_model_optimizer.step(model_loss.total, max_grad_norm)

    # Behavior learning: imagine from the posterior states, with the model just updated                 [V2, section 2.2]
    stride = behavior_objective.imagination_stride
    start, continues = start_states(model_loss.states, stride), every(batch.continues, stride)
    imagination = imagine(policy, start, continues, behavior_objective, noise)
    optimizers = policy.actor_optimizer, policy.critic_optimizer
    learned = learn_behavior(policy.behavior, *optimizers, imagination, behavior_objective, max_grad_norm)
    metrics = model_metrics(policy, model_loss) | behavior_metrics(imagination, learned.actor_loss, learned.critic_loss)
    metrics |= {"model_grad_norm": model_norm, "actor_grad_norm": learned.actor_norm, "critic_grad_norm": learned.critic_norm}

    norms = model_norm + learned.actor_norm + learned.critic_norm
    if policy.exploration is None:
        return UpdateResult(model_loss, imagination, metrics | {"skipped_updates": 1.0 - th.isfinite(norms).to(norms.dtype)})
    experience = Experience(
        model_loss.states.detach(),
        model_loss.embeddings.detach(),
        batch.actions,
        batch.episode_starts,
        model_loss.kl_value,
    )
    exploration, more = learn_exploration(policy, experience, start, continues, behavior_objective, max_grad_norm, noise)
    norms = norms + sum(value for name, value in more.items() if name.endswith("grad_norm"))
    metrics["skipped_updates"] = 1.0 - th.isfinite(norms).to(norms.dtype)
    return UpdateResult(model_loss, imagination, metrics | more, exploration)


def learn_behavior(
    behavior: ActorCritic,
    actor_optimizer: ParameterOptimizer,
    critic_optimizer: ParameterOptimizer,
    imagination: Imagination,
    objective: BehaviorObjective,
    max_grad_norm: float | None,
) -> LearnedBehavior:
    """
    One step of an actor and its critic on imagined trajectories, whatever their rewards are.

    :param behavior: actor and critics
    :param actor_optimizer: of this actor
    :param critic_optimizer: of this critic
    :param imagination: trajectories of this actor, with targets
    :param objective: what actor and critic maximize and regress
    :param max_grad_norm: each optimizer's gradients are clipped to this global norm
    :return: losses and norms
    """
    actor_loss = behavior.actor_loss(imagination.trajectory, imagination.estimate, objective)  #                [V2, eq. 6]
    critic_loss = behavior.critic_loss(imagination.trajectory, imagination.estimate.returns)  #                 [V2, eq. 5]
    steps = [(actor_optimizer, actor_loss.total), (critic_optimizer, critic_loss.total)]
    return LearnedBehavior(actor_loss, critic_loss, *step_together(steps, max_grad_norm))


def learn_exploration(
    policy: DreamerPolicy,
    experience: Experience,
    start: LatentState,
    continues: th.Tensor,
    objective: BehaviorObjective,
    max_grad_norm: float | None,
    noise: UpdateNoise | None = None,
) -> tuple[Imagination, dict[str, th.Tensor]]:
    """
    One step of the exploration strategy's heads on replayed experience, then of its actor and critic in imagination.

    :param policy: with an exploration strategy
    :param experience: what the world model made of the batch, (T, B, ...)
    :param start: the same states to imagine from, (N, ...)
    :param continues: 0 where the start is a terminal step, else 1, (N,)
    :param objective: as of the task's behavior; rewards are normalized by the strategy's own options instead
    :param max_grad_norm: each optimizer's gradients are clipped to this global norm
    :param noise: random numbers to use instead of drawing them
    :return: imagined trajectories with the strategy's rewards, and scalars by logged name
    """
    exploration = policy.exploration
    assert exploration is not None
    loss = exploration.loss(experience)
    norm = policy.exploration_optimizer.step(loss, max_grad_norm)
    start_rewards = every(exploration.start_rewards(experience), objective.imagination_stride)
    imagination = imagine_exploration(policy.world_model, exploration, start, continues, start_rewards, objective, noise)
    optimizers = policy.exploration_actor_optimizer, policy.exploration_critic_optimizer
    learned = learn_behavior(exploration.behavior, *optimizers, imagination, objective, max_grad_norm)
    return imagination, {
        "exploration_loss": loss.detach(),
        "intrinsic_reward_mean": imagination.predicted_rewards.detach().mean(),
        "exploration_actor_loss": learned.actor_loss.total.detach(),
        "exploration_actor_entropy": learned.actor_loss.entropy,
        "exploration_critic_loss": learned.critic_loss.total.detach(),
        "exploration_grad_norm": norm,
        "exploration_actor_grad_norm": learned.actor_norm,
        "exploration_critic_grad_norm": learned.critic_norm,
    }


def imagine(
    policy: DreamerPolicy,
    start: LatentState,
    continues: th.Tensor,
    objective: BehaviorObjective,
    noise: UpdateNoise | None = None,
) -> Imagination:
    """
    Imagined trajectories with the targets that actor and critic learn from; REINFORCE alone needs no gradient of them.

    :param policy: world model, actor and target critic
    :param start: states to imagine from, (N, ...)
    :param continues: 0 where the start is a terminal step, else 1, (N,)
    :param objective: horizon, discount, λ, reward normalization
    :param noise: random numbers to use instead of drawing them
    :return: trajectories and returns
    """
    noise, behavior = noise or UpdateNoise(), policy.behavior
    with th.set_grad_enabled(objective.needs_dynamics):
        predicted = policy.world_model.imagine(
            behavior.actor, start, continues, objective.imagination_horizon, objective.gamma, noise.actions, noise.latents
        )
        trajectory = behavior.normalize_rewards(predicted, objective)
        estimate = behavior.lambda_returns(trajectory, objective.return_lambda)  #                           [V2, eq. 4]
    return Imagination(predicted.rewards, trajectory, estimate)


def imagine_exploration(
    world_model: WorldModel,
    exploration: Exploration,
    start: LatentState,
    continues: th.Tensor,
    start_rewards: th.Tensor,
    objective: BehaviorObjective,
    noise: UpdateNoise | None = None,
) -> Imagination:
    """
    As :func:`imagine`, with the exploration strategy's actor, rewards and target critic.

    :param world_model: in which to imagine
    :param exploration: the strategy
    :param start: states to imagine from, (N, ...)
    :param continues: 0 where the start is a terminal step, else 1, (N,)
    :param start_rewards: intrinsic rewards on arrival there, (N,)
    :param objective: horizon, discount, λ
    :param noise: random numbers to use instead of drawing them
    :return: trajectories and returns
    """
    noise = noise or UpdateNoise()
    draws = noise.exploration_actions, noise.exploration_latents
    with th.set_grad_enabled(objective.needs_dynamics):
        predicted = world_model.imagine(
            exploration.behavior.actor, start, continues, objective.imagination_horizon, objective.gamma, *draws
        )
        intrinsic = exploration.intrinsic_rewards(predicted, start_rewards)
        trajectory = predicted._replace(rewards=exploration.mix_rewards(intrinsic, predicted.rewards))
        estimate = exploration.behavior.lambda_returns(trajectory, objective.return_lambda)
    return Imagination(intrinsic, trajectory, estimate)


@th.no_grad()
def model_metrics(policy: DreamerPolicy, loss: WorldModelLoss) -> dict[str, th.Tensor]:
    """
    :param policy: for the latent's kind and the observations' names
    :param loss: the world model's loss
    :return: scalars by logged name
    """
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
    """
    :param imagination: trajectories and targets
    :param actor_loss: the actor's loss
    :param critic_loss: the critic's loss
    :return: scalars by logged name
    """
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
