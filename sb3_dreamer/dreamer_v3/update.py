"""One training update of DreamerV3: the paper's algorithm box as one function without state of its own."""

from typing import NamedTuple

import torch as th

from sb3_dreamer.common.functional import flatten_time, scale_gradient
from sb3_dreamer.common.type_aliases import ContextBatch, ImaginedTrajectory, LatentState
from sb3_dreamer.dreamer_v3.behavior import Judgement, ReplayedSteps
from sb3_dreamer.dreamer_v3.objective import Objective
from sb3_dreamer.dreamer_v3.policies import DreamerV3Policy
from sb3_dreamer.dreamer_v3.world_model import WorldModelLoss


class UpdateNoise(NamedTuple):
    """All random numbers of one update, where they are given instead of drawn."""

    posterior: th.Tensor | None = None  # (T, B, P)
    actions: th.Tensor | None = None  # (H, N, ...)
    latents: th.Tensor | None = None  # (H, N, P)


class Losses(NamedTuple):
    """All terms of the loss, before scaling."""

    model: WorldModelLoss  # every step of the T replayed ones, (T, B)
    actor: th.Tensor  # every imagined state but the last, (H, N)
    critic: th.Tensor  # likewise
    replay_critic: th.Tensor | None  # every step but the last that imagination starts from; None if it is switched off
    total: th.Tensor  # scaled sum of the means, scalar


class LossResult(NamedTuple):
    """The loss, and what it was computed from."""

    losses: Losses
    trajectory: ImaginedTrajectory  # from N states, H steps
    judgement: Judgement  # of the trajectory
    replay_returns: th.Tensor | None  # targets of the replayed steps
    return_scale: th.Tensor  # that divides advantages, scalar
    entropy: th.Tensor  # of the actor in every imagined state but the last, (H, N)


class UpdateResult(NamedTuple):
    """What an update computed on its way; the losses are those before the step."""

    loss: LossResult
    metrics: dict[str, th.Tensor]  # scalars by logged name, without the "train/"

    @property
    def states(self) -> LatentState:
        """Posterior states of the sequences, (T, B, ...), which replace those in the replay buffer."""
        return self.loss.losses.model.states.detach()


def training_update(
    policy: DreamerV3Policy, batch: ContextBatch, objective: Objective, noise: UpdateNoise | None = None
) -> UpdateResult:
    """
    Train world model, actor and critic on replayed sequences and in imagination, all at once: every loss sees the weights
    before the step.

    :param policy: the networks and their optimizer; changed in place
    :param batch: sequences from the replay buffer
    :param objective: what is minimized
    :param noise: random numbers to use instead of drawing them
    :return: losses, states and metrics
    """
    result = total_loss(policy, batch, objective, noise)
    norm = policy.everything_optimizer.step(result.losses.total, max_grad_norm=None)
    policy.behavior.update_target(objective.tau)
    skipped = 1.0 - th.isfinite(norm).to(norm.dtype)
    return UpdateResult(result, metrics_of(policy, result) | {"grad_norm": norm, "skipped_updates": skipped})


def total_loss(
    policy: DreamerV3Policy, batch: ContextBatch, objective: Objective, noise: UpdateNoise | None = None
) -> LossResult:
    """
    The loss of everything; moves the running range of the returns.

    :param policy: the networks
    :param batch: sequences from the replay buffer
    :param objective: scales and options
    :param noise: random numbers to use instead of drawing them
    :return: all terms, with gradient
    """
    noise, world_model, behavior = noise or UpdateNoise(), policy.world_model, policy.behavior

    # World model learning: the posterior explains the data, the prior learns to predict it
    model = world_model.loss(batch, objective, noise.posterior)

    # Imagination from the posterior states
    start = LatentState(*(flatten_time(last_steps(part, objective)) for part in model.states))
    features = last_steps(model.features, objective)
    draws = noise.actions, noise.latents
    horizon, gamma = objective.imagination_horizon, objective.imagined_gamma
    trajectory = world_model.imagine(behavior.actor, start, horizon, gamma, *draws)
    if objective.behavior_gradients:
        attached = th.cat([flatten_time(features)[None], trajectory.features[1:]])
        trajectory = trajectory._replace(features=attached, one_hot=None)

    # Actor and critic learning on the imagined states
    judgement = behavior.judge(trajectory, objective)
    return_scale = behavior.return_range.update(judgement.returns)
    actor, entropy = behavior.actor_loss(trajectory, judgement, objective, return_scale)
    critic = behavior.critic_loss(trajectory, judgement, objective)
    total = model.total(objective) + objective.actor_scale * actor.mean() + objective.critic_scale * critic.mean()

    # The critic on the replayed states, whose gradient reaches the world model
    replay_critic = replay_returns = None
    if objective.replay_critic_scale > 0.0:
        features = scale_gradient(features, float(objective.replay_critic_gradients))
        steps = ReplayedSteps(*(last_steps(getattr(batch.steps, name), objective) for name in ReplayedSteps._fields))
        imagined_returns = judgement.returns[0].unflatten(0, steps.rewards.shape)
        replay_critic, replay_returns = behavior.replay_critic_loss(features, steps, imagined_returns, objective)
        total = total + objective.replay_critic_scale * replay_critic.mean()
    losses = Losses(model, actor, critic, replay_critic, total)
    return LossResult(losses, trajectory, judgement, replay_returns, return_scale, entropy)


def last_steps(sequence: th.Tensor, objective: Objective) -> th.Tensor:
    """
    Steps that imagination starts from.

    :param sequence: (T, B, ...)
    :param objective: how many of the T
    :return: the last ones
    """
    return sequence if objective.imagination_last is None else sequence[-objective.imagination_last :]


@th.no_grad()
def metrics_of(policy: DreamerV3Policy, result: LossResult) -> dict[str, th.Tensor]:
    """What is logged of an update, scalars by name."""
    model, latent, judgement = result.losses.model, policy.world_model.rssm.latent, result.judgement
    metrics = {"loss": result.losses.total.detach()}
    metrics.update({policy.loss_names[key]: value.mean() for key, value in model.observations.items()})
    metrics |= {
        "reward_loss": model.reward.mean(),
        "discount_loss": model.discount.mean(),
        "kl_loss": model.kl.mean(),
        "kl": model.kl_value.mean(),
        "posterior_entropy": latent.entropy(model.posterior).mean(),
        "prior_entropy": latent.entropy(model.prior).mean(),
        "actor_loss": result.losses.actor.mean(),
        "actor_entropy": result.entropy.mean(),
        "critic_loss": result.losses.critic.mean(),
        "value_mean": judgement.values.mean(),
        "target_value_mean": judgement.target_values.mean(),
        "return_mean": judgement.returns.mean(),
        "return_scale": result.return_scale,
        "imagined_reward_mean": result.trajectory.rewards.mean(),
        "imagined_discount_mean": result.trajectory.discounts.mean(),
        "imagined_weight_mean": result.trajectory.weights.mean(),
    }
    if result.losses.replay_critic is not None:
        metrics["replay_critic_loss"] = result.losses.replay_critic.mean()
    return metrics
