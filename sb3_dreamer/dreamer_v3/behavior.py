"""DreamerV3's actor and critic, and how they learn from imagined and from replayed states."""

from typing import NamedTuple

import torch as th
from gymnasium import spaces
from torch import nn

from sb3_dreamer.behavior.actor_critic import Behavior
from sb3_dreamer.behavior.actors import CategoricalActor, make_categorical_actor
from sb3_dreamer.common.distributions import DiagonalNormal
from sb3_dreamer.common.functional import lambda_returns
from sb3_dreamer.common.heads import TRUNK_ACCEPTS_ONE_HOT, ScalarHead
from sb3_dreamer.common.layers import MLP, LayerOptions
from sb3_dreamer.common.one_hot import Features
from sb3_dreamer.common.options import check_number
from sb3_dreamer.common.precision import full
from sb3_dreamer.common.preprocessing import action_blocks, action_size
from sb3_dreamer.common.two_hot import TwoHot
from sb3_dreamer.common.type_aliases import ImaginedTrajectory
from sb3_dreamer.dreamer_v3.objective import Objective
from sb3_dreamer.ranks.distributed import average


class BoundedNormalActor(nn.Module):
    """
    Features to a normal distribution over R^A with mean and standard deviation within bounds (V3's code: ``bounded_normal``).

    From the network's outputs m and s: mean ``tanh(m)``, standard deviation between the two given ones, by
    ``sigmoid(s + 2)``. Samples are not clipped; the world model clips what it is given, and so does the environment.

    :param features_size: F
    :param actions: number of action dimensions A
    :param layers: hidden layers
    :param min_std: smallest standard deviation (V3's code: 0.1)
    :param max_std: largest standard deviation (V3's code: 1)
    """

    accepts_one_hot = TRUNK_ACCEPTS_ONE_HOT

    def __init__(self, features_size: int, actions: int, layers: LayerOptions, min_std: float, max_std: float):
        super().__init__()
        self.min_std, self.max_std = min_std, max_std
        self.trunk = MLP(features_size, layers)
        self.output = nn.Linear(self.trunk.output_size, actions)
        self.output_std = nn.Linear(self.trunk.output_size, actions)

    def forward(self, features: Features) -> DiagonalNormal:
        """Map features (..., F) to a distribution over (..., A)."""
        hidden = self.trunk(features)
        return self.distribution(full(self.output(hidden)), full(self.output_std(hidden)))

    def distribution(self, mean: th.Tensor, std: th.Tensor) -> DiagonalNormal:
        """Return the distribution over (..., A) from the network's raw outputs m (``mean``) and s (``std``), (..., A)."""
        return DiagonalNormal(th.tanh(mean), (self.max_std - self.min_std) * th.sigmoid(std + 2.0) + self.min_std)


def make_actor(
    features_size: int, action_space: spaces.Space, layers: LayerOptions, min_std: float, max_std: float
) -> CategoricalActor | BoundedNormalActor:
    """
    The actor for an action space. As in V3's code, categorical actors have no share of uniform actions.

    :param features_size: F
    :param action_space: Discrete, MultiDiscrete or MultiBinary (categoricals), or Box; a MultiBinary bit is a choice of two
    :param layers: hidden layers
    :param min_std: of a continuous actor, but checked for every space
    :param max_std: likewise
    :return: features to a distribution over action vectors
    :raises ValueError: for impossible standard deviations
    """
    check_number("actor_min_std", min_std, 1e-6)
    check_number("actor_max_std", max_std, min_std)
    if action_blocks(action_space) is None:
        return BoundedNormalActor(features_size, action_size(action_space), layers, min_std, max_std)
    return make_categorical_actor(features_size, action_space, layers)


class ReturnRange(nn.Module):
    """
    Running 5th and 95th percentiles of returns (V3, actor learning); both begin at 0, without correction for that.

    :param rate: share of each batch (V3's code: 0.01)
    """

    limits: th.Tensor
    shares: th.Tensor

    def __init__(self, rate: float = 0.01):
        super().__init__()
        self.rate = rate
        self.register_buffer("limits", th.zeros(2))
        self.register_buffer("shares", th.tensor([0.05, 0.95]), persistent=False)  # a graph cannot copy it to the device

    @th.no_grad()
    def update(self, returns: th.Tensor) -> th.Tensor:
        """
        Take returns into the running percentiles (means over all ranks).

        :param returns: (...)
        :return: their distance, at least 1, a scalar
        """
        moved = self.limits.lerp(average(th.quantile(returns.float().flatten(), self.shares)), self.rate)
        self.limits.copy_(th.where(th.isfinite(moved).all(), moved, self.limits))
        low, high = self.limits.unbind()
        return (high - low).clamp(min=1.0)


class Judgement(NamedTuple):
    """What the critics make of imagined trajectories."""

    logits: th.Tensor  # (H + 1, N, K) of the critic, with gradient
    target_values: th.Tensor  # (H + 1, N) of the slow critic
    values: th.Tensor  # (H + 1, N) that bootstrap the returns and are the baseline; constants
    returns: th.Tensor  # (H, N) λ-returns; constants


class ReplayedSteps(NamedTuple):
    """What the critic needs of a ``SequenceBatch``, (T, B)."""

    rewards: th.Tensor
    continues: th.Tensor
    episode_starts: th.Tensor


class ActorCritic(Behavior):
    """
    Actor, critic and slow critic on latent features (V3, critic learning and actor learning).

    :param actor: features (..., F) to a distribution over action vectors (..., A)
    :param features_size: F
    :param critic_layers: hidden layers of the critics
    :param bins: number of bins of the critics' distributions (V3's code: 255)
    """

    critic: ScalarHead
    critic_target: ScalarHead

    def __init__(self, actor: nn.Module, features_size: int, critic_layers: LayerOptions, bins: int):
        critics = (ScalarHead(features_size, critic_layers, TwoHot, bins) for _ in range(2))
        super().__init__(actor, *critics)
        self.return_range = ReturnRange()

    def judge(self, trajectory: ImaginedTrajectory, objective: Objective) -> Judgement:
        """
        λ-returns of imagined states but the last (V3, critic learning). Reward and discount are those of the *next* state::

            R_t = r_{t+1} + d_{t+1} ((1 - λ) v_{t+1} + λ R_{t+1}),   R_H = v_H

        :param trajectory: (H + 1, N, ...)
        :param objective: λ, and whose values they are
        :return: predictions of both critics, and returns
        """
        prediction: TwoHot = self.critic(trajectory.inputs_for(self.critic))  # type: ignore[assignment]
        with th.no_grad():
            target_values = self.critic_target(trajectory.inputs_for(self.critic_target)).mean
            values = target_values if objective.bootstrap_target else prediction.mean
            returns = lambda_returns(trajectory.rewards[1:], values, trajectory.discounts[1:], objective.return_lambda)
        return Judgement(prediction.logits, target_values, values, returns)

    def actor_loss(
        self, trajectory: ImaginedTrajectory, judgement: Judgement, objective: Objective, return_scale: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        REINFORCE with a baseline and an entropy bonus, for discrete and continuous actions (V3, actor learning)::

            states   s_0   s_1   ...  s_{H-1}
            actions  a_1   a_2   ...  a_H         taken in these states
            returns  R_0   R_1   ...  R_{H-1}     of these states
            baseline v_0   v_1   ...  v_{H-1}

        :param trajectory: (H + 1, N, ...)
        :param judgement: returns and values
        :param objective: weight of the entropy
        :param return_scale: divides the advantage, a scalar
        :return: the loss of every step, weighted by how likely the episode gets there, (H, N); the entropy, (H, N)
        """
        policy = self.actor(trajectory.inputs_for(self.actor)[:-1])
        advantage = (judgement.returns - judgement.values[:-1]) / return_scale
        entropy = policy.entropy()
        gain = policy.log_prob(trajectory.actions[1:]) * advantage + objective.ent_coef * entropy
        return -trajectory.weights[:-1] * gain, entropy.detach()

    def critic_loss(self, trajectory: ImaginedTrajectory, judgement: Judgement, objective: Objective) -> th.Tensor:
        """
        Cross entropy with returns and with the slow critic's predictions (V3, critic learning), on all states but the last.

        :param trajectory: (H + 1, N, ...)
        :param judgement: predictions and returns
        :param objective: weight of the slow critic
        :return: the loss of every step, weighted by how likely the episode gets there, (H, N)
        """
        targets = judgement.returns, judgement.target_values[:-1]
        return trajectory.weights[:-1] * self._regression(judgement.logits[:-1], *targets, objective)

    def replay_critic_loss(
        self, features: th.Tensor, steps: ReplayedSteps, imagined_returns: th.Tensor, objective: Objective
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        The same on replayed states, with the rewards that were received (V3, critic learning).

        Each step is bootstrapped by the return that was imagined from it. λ-returns do not reach beyond the end of an
        episode: of one that was cut off the imagined return is what follows, of one that terminated nothing. The last step of
        an episode is not trained, because its successor belongs to another one.

        :param features: posterior states, (T, B, F); with gradient if the loss is to train the representation
        :param steps: these T steps
        :param imagined_returns: of trajectories that start in these states, (T, B); constants
        :param objective: γ, λ, and weight of the slow critic
        :return: the loss of every step but the last, and the returns, (T - 1, B)
        :raises ValueError: for a single step, which has no next one
        """
        if len(features) < 2:
            raise ValueError("The critic learns from replayed steps and their successors: batch_length must be at least 2.")
        lasts = steps.episode_starts.roll(-1, dims=0)  # that of the final step has no effect
        lambdas = objective.return_lambda * (~lasts[1:]).to(features.dtype)
        discounts = objective.gamma * steps.continues[1:]
        returns = lambda_returns(steps.rewards[1:], imagined_returns, discounts, lambdas)
        prediction: TwoHot = self.critic(features[:-1])  # type: ignore[assignment]
        with th.no_grad():
            target_values = self.critic_target(features[:-1]).mean
        losses = self._regression(prediction.logits, returns, target_values, objective)
        return (~lasts[:-1]).to(losses.dtype) * losses, returns

    @staticmethod
    def _regression(logits: th.Tensor, returns: th.Tensor, target_values: th.Tensor, objective: Objective) -> th.Tensor:
        """Cross entropy of logits (..., K) with returns, and weighted with the slow critic's values, both (...)."""
        prediction = TwoHot(logits)
        loss = -prediction.log_prob(returns)
        if objective.critic_target_scale == 0.0:
            return loss
        return loss - objective.critic_target_scale * prediction.log_prob(target_values)
