"""Actor, critic and target critic, and how they learn from imagined trajectories."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch as th
from torch import nn

from sb3_dreamer.common.distributions import Distribution, UnitNormal
from sb3_dreamer.common.functional import lambda_returns
from sb3_dreamer.common.heads import ScalarHead
from sb3_dreamer.common.layers import LayerOptions
from sb3_dreamer.common.options import check_number
from sb3_dreamer.common.type_aliases import ImaginedTrajectory
from sb3_dreamer.ranks.distributed import average


@dataclass(frozen=True)
class BehaviorObjective:
    """
    How actor and critic are trained (V2, section 2.2); the names are those of the algorithm's arguments.

    :param imagination_horizon: H
    :param imagination_stride: imagine from every k-th step of the replayed sequences
    :param gamma: discount factor, where no discount head has learned it
    :param return_lambda: λ of the returns
    :param reinforce_weight: ρ of V2, eq. 6: 1 is REINFORCE alone, 0 is the gradient through the dynamics alone. In updates
        that are recorded as CUDA graphs, a scalar tensor whose value may change later
    :param ent_coef: η of V2, eq. 6, the weight of the actor's entropy; a tensor as above in recorded updates
    :param reward_norm_momentum: see :class:`RewardNormalizer`; None does not normalize
    :param reward_norm_scale: see :class:`RewardNormalizer`
    :param normalize_returns: divide what the actor maximizes by the spread of the returns, see :class:`ReturnScale`
    """

    imagination_horizon: int
    imagination_stride: int
    gamma: float
    return_lambda: float
    reinforce_weight: float
    ent_coef: float
    reward_norm_momentum: float | None
    reward_norm_scale: float
    normalize_returns: bool

    def __post_init__(self) -> None:
        check_number("imagination_horizon", self.imagination_horizon, 2)  # the actor learns from all steps but the last two
        check_number("imagination_stride", self.imagination_stride, 1)
        for name, highest in (("ent_coef", math.inf), ("gamma", 1.0), ("return_lambda", 1.0), ("reinforce_weight", 1.0)):
            if not isinstance(getattr(self, name), th.Tensor):
                check_number(name, getattr(self, name), 0.0, highest)
        if self.reward_norm_momentum is not None:
            check_number("reward_norm_momentum", self.reward_norm_momentum, 0.0, 1.0)
        check_number("reward_norm_scale", self.reward_norm_scale, 0.0)
        if not isinstance(self.normalize_returns, bool):
            raise ValueError(f"normalize_returns must be True or False, but is {self.normalize_returns!r}.")

    @property
    def is_mixture(self) -> bool:
        """Whether both terms of eq. 6 are computed; always for a tensor, since reading its value would wait for the device."""
        return isinstance(self.reinforce_weight, th.Tensor) or 0.0 < self.reinforce_weight < 1.0

    @property
    def needs_dynamics(self) -> bool:
        """Whether a gradient flows through imagined states."""
        return self.is_mixture or self.reinforce_weight == 0.0


class ReturnEstimate(NamedTuple):
    """Targets for actor and critic."""

    returns: th.Tensor  # (H, N) λ-returns, differentiable where the trajectory is
    values: th.Tensor  # (H + 1, N) of the target critic


class ActorLoss(NamedTuple):
    """The actor's loss and what is logged of it."""

    total: th.Tensor
    entropy: th.Tensor  # mean over the imagined steps, nats


class CriticLoss(NamedTuple):
    """The critic's loss and what is logged of it."""

    total: th.Tensor
    values: th.Tensor  # (H, N) of the online critic


class RewardNormalizer(nn.Module):
    """
    Divides imagined rewards by a running mean of their size, as the original's reward normalizer does.

    :param shape: of the state; () is one number, (C,) one for each entry of the rewards' last axis
    """

    magnitude: th.Tensor

    def __init__(self, shape: tuple[int, ...] = ()):
        super().__init__()
        self.register_buffer("magnitude", th.ones(shape))

    def forward(self, rewards: th.Tensor, momentum: float, scale: float = 1.0, epsilon: float = 1e-8) -> th.Tensor:
        """
        Update the state with the current rewards (of all ranks) and divide by it. The gradient takes the state as constant.

        :param rewards: (...) or (..., C)
        :param momentum: share of the old state that is kept
        :param scale: mean size of the result
        :param epsilon: added to the state
        :return: the same shape
        """
        if momentum < 1.0:  # momentum 1 keeps the state, so ranks need not agree on it
            sizes = average(rewards.detach().abs().reshape(-1, *self.magnitude.shape).mean(0))
            moved = self.magnitude * momentum + sizes * (1.0 - momentum)
            self.magnitude.copy_(th.where(th.isfinite(moved), moved, self.magnitude))
        return rewards / (self.magnitude + epsilon) * scale


class ReturnScale(nn.Module):
    """
    Running range between the 5th and the 95th percentile of returns, at least 1 (V3, arXiv 2301.04104, critic learning).

    :param rate: share of each batch
    """

    range: th.Tensor
    weight: th.Tensor
    percentiles: th.Tensor

    def __init__(self, rate: float = 0.01):
        super().__init__()
        self.rate = rate
        self.register_buffer("range", th.zeros(()))
        self.register_buffer("weight", th.zeros(()))
        self.register_buffer("percentiles", th.tensor([0.05, 0.95]), persistent=False)  # a graph cannot copy it to the device

    @th.no_grad()
    def forward(self, returns: th.Tensor) -> th.Tensor:
        """
        Take returns into the running range (over all ranks).

        :param returns: (...)
        :return: the range, a scalar
        """
        low, high = th.quantile(returns.float().flatten(), self.percentiles)
        moved = self.range.lerp(average(high - low), self.rate)
        finite = th.isfinite(moved)
        self.range.copy_(th.where(finite, moved, self.range))
        self.weight.copy_(th.where(finite, self.weight.lerp(th.ones_like(self.weight), self.rate), self.weight))
        return (self.range / self.weight.clamp(min=self.rate)).clamp(min=1.0)


class Behavior(nn.Module):
    """
    An actor, a critic, and a copy of the critic that follows it slowly.

    :param actor: features (..., F) to a distribution over action vectors (..., A)
    :param critic: features to the distribution of the return, (...)
    :param critic_target: the same network with other weights
    """

    def __init__(self, actor: nn.Module, critic: nn.Module, critic_target: nn.Module):
        super().__init__()
        self.actor = actor
        self.critic = critic
        self.critic_target = critic_target

    @th.no_grad()
    def update_target(self, fraction: float = 1.0) -> None:
        """Move the target critic by a fraction of its distance to the critic; 1 copies."""
        targets: list[th.Tensor] = list(self.critic_target.parameters())
        th._foreach_lerp_(targets, list(self.critic.parameters()), fraction)


class ActorCritic(Behavior):
    """
    Actor, critic and target critic on latent features (V2, section 2.2).

    :param actor: features (..., F) to a distribution over action vectors (..., A), see
        :func:`~sb3_dreamer.behavior.actors.make_actor`
    :param features_size: F
    :param critic_layers: hidden layers of the critics
    """

    critic: ScalarHead
    critic_target: ScalarHead

    def __init__(self, actor: nn.Module, features_size: int, critic_layers: LayerOptions):
        critics = (ScalarHead(features_size, critic_layers, UnitNormal) for _ in range(2))
        super().__init__(actor, *critics)
        self.reward_normalizer = RewardNormalizer()
        self.return_scale = ReturnScale()

    def normalize_rewards(self, trajectory: ImaginedTrajectory, objective: BehaviorObjective) -> ImaginedTrajectory:
        """Return a trajectory with normalized rewards, if the objective has a momentum; updates the normalizer's state."""
        if objective.reward_norm_momentum is None:
            return trajectory
        rewards = self.reward_normalizer(trajectory.rewards, objective.reward_norm_momentum, objective.reward_norm_scale)
        return trajectory._replace(rewards=rewards)

    def lambda_returns(self, trajectory: ImaginedTrajectory, return_lambda: float) -> ReturnEstimate:
        """
        λ-returns of every imagined step but the last, bootstrapped by the target critic (V2, eq. 4).

        :param trajectory: (H + 1, N, ...), rewards already normalized
        :param return_lambda: λ
        :return: returns (H, N) and the target critic's values (H + 1, N)
        """
        values = self.critic_target(trajectory.inputs_for(self.critic_target)).mode
        returns = lambda_returns(trajectory.rewards[:-1], values, trajectory.discounts[:-1], return_lambda)
        return ReturnEstimate(returns, values)

    def actor_loss(
        self,
        trajectory: ImaginedTrajectory,
        estimate: ReturnEstimate,
        objective: BehaviorObjective,
        return_scale: th.Tensor | None = None,
    ) -> ActorLoss:
        """
        Mixture of REINFORCE and dynamics gradients with an entropy bonus (V2, eq. 6). What is paired with what::

            states   s_0   s_1   ...  s_{H-2}
            actions  a_1   a_2   ...  a_{H-1}     taken in these states
            returns  R_1   R_2   ...  R_{H-1}     of the states that the actions lead to
            baseline v_0   v_1   ...  v_{H-2}     target critic

        As in the original, the baseline of the *next* state's return is the value of this one. Only the value contains this
        state's reward, but that does not depend on the action.

        :param trajectory: (H + 1, N, ...)
        :param estimate: returns (H, N) and values (H + 1, N)
        :param objective: mixture and entropy weights
        :param return_scale: divides returns and values, a scalar; None leaves them as they are
        :return: the loss, a mean over the first H - 1 states, weighted by how likely the episode gets there
        """
        policy: Distribution = self.actor(trajectory.inputs_for(self.actor)[:-2].detach())
        target, values, weight = estimate.returns[1:], estimate.values[:-2], objective.reinforce_weight
        if return_scale is not None:
            target, values = target / return_scale, values / return_scale
        if not objective.is_mixture and objective.needs_dynamics:
            gain = target
        else:
            advantage = (target - values).detach()
            # With weight 1 the actions are constants; in the mixture the original lets the gradient into them
            actions = trajectory.actions[1:-1] if objective.is_mixture else trajectory.actions[1:-1].detach()
            gain = policy.log_prob(actions) * advantage
            gain = weight * gain + (1.0 - weight) * target if objective.is_mixture else gain
        entropy = policy.entropy()
        loss = -(trajectory.weights[:-2] * (gain + objective.ent_coef * entropy)).mean()
        return ActorLoss(loss, entropy.detach().mean())

    def critic_loss(self, trajectory: ImaginedTrajectory, returns: th.Tensor) -> CriticLoss:
        """
        Regression of the λ-returns (V2, eq. 5), on all imagined states but the last.

        :param trajectory: (H + 1, N, ...)
        :param returns: (H, N); constants
        :return: the loss, weighted by how likely the episode gets to each state
        """
        prediction = self.critic(trajectory.inputs_for(self.critic)[:-1].detach())
        loss = -(trajectory.weights[:-1] * prediction.log_prob(returns.detach())).mean()
        return CriticLoss(loss, prediction.mode.detach())
