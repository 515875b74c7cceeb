"""The world model: its loss on replayed sequences, imagined trajectories, and the filter of an acting agent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch as th

from sb3_dreamer.common.functional import (
    REWARD_TRANSFORMS,
    balanced_kl,
    flatten_time,
    scale_gradient,
    trajectory_weights,
    unflatten_time,
    variance,
)
from sb3_dreamer.common.normalization import RunningScale
from sb3_dreamer.common.one_hot import Features, accepts_one_hot, features_for
from sb3_dreamer.common.options import check_number
from sb3_dreamer.common.type_aliases import ImaginedTrajectory, LatentState, SequenceBatch
from sb3_dreamer.ranks.distributed import batch_mean
from sb3_dreamer.world_model.base import Actor, BaseWorldModel

#: The reward transform that has a state
NORMALIZE = "normalize"


@dataclass(frozen=True)
class WorldModelObjective:
    """
    Options of the world model's loss (V2, eq. 2); the names are those of the algorithm's arguments.

    :param gamma: discount factor; the discount head's label is gamma, not 1, as in the original
    :param kl_scale: factor of the KL loss
    :param kl_balance: see :func:`sb3_dreamer.common.functional.balanced_kl`
    :param kl_forward: likewise
    :param free_nats: likewise
    :param free_nats_average: likewise
    :param observation_scale: factor of the reconstruction loss: one number, or a dict with those of some keys (others: 1)
    :param reward_scale: factor of the reward head's loss
    :param discount_scale: factor of the discount head's loss
    :param reward_transform: key of ``REWARD_TRANSFORMS``, or ``"normalize"`` for rewards divided by their running size
    :param observation_gradients: whether the reconstruction trains the representation (False: ablation of V2, table 2)
    :param reward_gradients: likewise for the reward head
    :param discount_gradients: likewise for the discount head
    """

    gamma: float
    kl_scale: float
    kl_balance: float | None
    kl_forward: bool
    free_nats: float
    free_nats_average: bool
    observation_scale: float | Mapping[str, float]
    reward_scale: float
    discount_scale: float
    reward_transform: str
    observation_gradients: bool
    reward_gradients: bool
    discount_gradients: bool

    def __post_init__(self) -> None:
        known = sorted([*REWARD_TRANSFORMS, NORMALIZE])
        if self.reward_transform not in known:
            raise ValueError(f"Unknown reward_transform '{self.reward_transform}'; known are {known}.")
        if self.kl_balance is not None:
            check_number("kl_balance", self.kl_balance, 0.0, 1.0)
        for name in ("kl_scale", "reward_scale", "discount_scale", "free_nats"):
            check_number(name, getattr(self, name), 0.0)
        scales = self.observation_scale
        for key, scale in scales.items() if isinstance(scales, Mapping) else {"": scales}.items():
            check_number(f"observation_scale['{key}']" if key else "observation_scale", scale, 0.0)
        check_number("gamma", self.gamma, 0.0, 1.0)
        for name in ("kl_forward", "free_nats_average", "observation_gradients", "reward_gradients", "discount_gradients"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, but is {getattr(self, name)!r}.")

    def scale_of(self, key: str) -> float:
        """Return the factor of an observation key's reconstruction loss."""
        return self.observation_scale.get(key, 1.0) if isinstance(self.observation_scale, Mapping) else self.observation_scale


class WorldModelLoss(NamedTuple):
    """Terms of the loss: means over time and batch of sums over the event, in nats, before scaling."""

    total: th.Tensor  # scaled sum, which the optimizer minimizes
    observations: dict[str, th.Tensor]  # per observation key
    reward: th.Tensor
    discount: th.Tensor | None  # None without a discount head
    kl: th.Tensor  # after free nats
    kl_value: th.Tensor  # KL(posterior, prior) of every step without free nats, (T, B)
    states: LatentState  # posterior states, (T, B, ...)
    posterior: th.Tensor  # parameters, (T, B, P)
    prior: th.Tensor  # parameters, (T, B, P)
    embeddings: th.Tensor  # of the observations, (T, B, E)
    reward_variance: th.Tensor  # of the batch's transformed rewards, without episode starts, which have no reward


class WorldModel(BaseWorldModel):
    """
    Encoder, RSSM, decoder, reward and discount heads (V2, section 2.1).

    Without a discount head the discount is constant, and nothing is learned from terminal steps.

    :param args: see :class:`~sb3_dreamer.world_model.base.BaseWorldModel`
    :param kwargs: likewise
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.reward_scale = RunningScale()

    def transform_rewards(self, rewards: th.Tensor, transform: str) -> th.Tensor:
        # See WorldModelObjective
        return rewards / self.reward_scale.scale if transform == NORMALIZE else super().transform_rewards(rewards, transform)

    def invert_rewards(self, rewards: th.Tensor, transform: str) -> th.Tensor:
        return rewards * self.reward_scale.scale if transform == NORMALIZE else super().invert_rewards(rewards, transform)

    def loss(self, batch: SequenceBatch, objective: WorldModelObjective, noise: th.Tensor | None = None) -> WorldModelLoss:
        """
        Loss of replayed sequences (V2, eq. 2). In the index diagram, a_t is the action that *led to* o_t::

            a_1   a_2   a_3        (zeroed where an episode starts)
              \\     \\     \\
            s_1 - s_2 - s_3        posterior states
             |     |     |
            o_1   o_2   o_3        r_t and the discount label belong to arriving at o_t

        :param batch: sequences from the replay buffer
        :param objective: scales and options
        :param noise: for the posterior's samples, (T, B, P), or None to draw it
        :return: the terms and the posterior states
        """
        observations = self.encode(batch.observations)
        embeddings = self.embed({key: flatten_time(x) for key, x in observations.items()})
        embeddings = unflatten_time(embeddings, len(batch.rewards))
        states, posterior, prior = self.rssm.observe(embeddings, batch.actions, batch.episode_starts, noise=noise)
        features = states.features

        predictions = self.decode(scale_gradient(features, float(objective.observation_gradients)))
        observation_losses = {key: -predictions[key].log_prob(observations[key]).mean() for key in predictions}
        if objective.reward_transform == NORMALIZE:
            self.reward_scale.update(batch.rewards)
        rewards = self.transform_rewards(batch.rewards, objective.reward_transform)
        reward_prediction = self.reward_head(scale_gradient(features, float(objective.reward_gradients)))
        reward_loss = -reward_prediction.log_prob(rewards).mean()
        kl_options = objective.kl_balance, objective.free_nats, objective.free_nats_average, objective.kl_forward
        kl_loss, kl_value = balanced_kl(self.rssm.latent.kl, posterior, prior, *kl_options, batch_mean)
        total = objective.reward_scale * reward_loss + objective.kl_scale * kl_loss
        total = total + sum(objective.scale_of(key) * loss for key, loss in observation_losses.items())
        discount_loss = None
        if self.discount_head is not None:
            prediction = self.discount_head(scale_gradient(features, float(objective.discount_gradients)))
            discount_loss = -prediction.log_prob(objective.gamma * batch.continues).mean()
            total = total + objective.discount_scale * discount_loss
        return WorldModelLoss(
            total,
            observation_losses,
            reward_loss,
            discount_loss,
            kl_loss,
            kl_value,
            states,
            posterior,
            prior,
            embeddings,
            variance(rewards, ~batch.episode_starts),
        )

    def imagine(
        self,
        actor: Actor,
        start: LatentState,
        start_continues: th.Tensor,
        horizon: int,
        gamma: float,
        action_noise: th.Tensor | None = None,
        latent_noise: th.Tensor | None = None,
    ) -> ImaginedTrajectory:
        """
        Follow the actor through the latent space (V2, section 2.2)::

            s_0 -- a_1 --> s_1 -- a_2 --> s_2 ...    a_k ~ actor(sg(s_{k-1})), s_k ~ prior

        :param actor: features to an action distribution; sees its input without gradient
        :param start: posterior states, (N, ...)
        :param start_continues: 0 where the start is a terminal step, else 1, (N,); replaces the discount head's prediction for
            the first state, as in the original
        :param horizon: H
        :param gamma: discount factor of the first state, and of all states if there is no discount head
        :param action_noise: (H, N, ...) of the actor's ``draw_noise``, or None to draw it
        :param latent_noise: (H, N, P), or None to draw it
        :return: (H + 1, N, ...), differentiable
        """
        state, actions = start, start.stochastic.new_zeros(len(start.stochastic), self.rssm.action_size)
        states, taken, sparse = [state], [actions], accepts_one_hot(actor)
        for step in range(horizon):
            one_hot = self.rssm.one_hot(state)
            inputs: Any = one_hot if sparse and one_hot is not None else state.features.detach()
            actions = actor(inputs).sample(None if action_noise is None else action_noise[step])
            state = self.rssm.imagine_step(state, actions, None if latent_noise is None else latent_noise[step], one_hot)
            states.append(state)
            taken.append(actions)
        path = LatentState(th.stack([s.deterministic for s in states]), th.stack([s.stochastic for s in states]))
        features, one_hot = path.features, self.rssm.one_hot(path)
        cheapest = features if one_hot is None else one_hot
        discounts = self.predict_discounts(cheapest, start_continues, gamma)
        rewards, weights = self.predict_rewards(cheapest), trajectory_weights(discounts)
        return ImaginedTrajectory(path, features, th.stack(taken), rewards, discounts, weights, one_hot)

    def predict_discounts(self, features: Features, start_continues: th.Tensor, gamma: float) -> th.Tensor:
        """
        Predict the discounts of imagined states.

        :param features: (H + 1, N, F)
        :param start_continues: known flags of the first states, (N,)
        :param gamma: discount factor
        :return: gamma times the probability that the episode continues (the head's mean includes gamma), (H + 1, N)
        """
        if self.discount_head is None:
            return start_continues.new_full(features.shape[:-1], gamma)
        later = features_for(self.discount_head, features)[1:]
        return th.cat([(gamma * start_continues)[None], self.discount_head(later).mean])
