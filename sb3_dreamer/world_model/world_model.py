"""The world model: explains replayed sequences, imagines new ones, and filters what an acting agent sees."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch as th
from torch import nn

from sb3_dreamer.common.distributions import Distribution
from sb3_dreamer.common.functional import (
    REWARD_TRANSFORMS,
    balanced_kl,
    flatten_time,
    scale_gradient,
    trajectory_weights,
    unflatten_time,
    variance,
)
from sb3_dreamer.common.normalization import ObservationNormalizer
from sb3_dreamer.common.observations import OBSERVATION_KEY, ObservationFormat
from sb3_dreamer.common.one_hot import Features, accepts_one_hot, features_for
from sb3_dreamer.common.options import check_number
from sb3_dreamer.common.type_aliases import ImaginedTrajectory, LatentState, SequenceBatch
from sb3_dreamer.ranks.distributed import batch_mean
from sb3_dreamer.world_model.rssm import RSSM

#: A module that declares ``accepts_one_hot`` is given features in that form where it is cheaper
Actor = Callable[[th.Tensor], Distribution]


@dataclass(frozen=True)
class WorldModelObjective:
    """
    What the world model's loss is made of (V2, eq. 2); the same names as the arguments of ``DreamerV2``.

    :param gamma: discount factor; the discount head's label is gamma, not 1, as in the original
    :param kl_scale: factor of the KL loss
    :param kl_balance: see :func:`sb3_dreamer.common.functional.balanced_kl`
    :param kl_forward: likewise
    :param free_nats: likewise
    :param free_nats_average: likewise
    :param observation_scale: factor of the reconstruction loss: one number, or a dict with those of some keys (others: 1)
    :param reward_scale: factor of the reward head's loss
    :param discount_scale: factor of the discount head's loss
    :param reward_transform: key of ``REWARD_TRANSFORMS``
    :param observation_gradients: whether the reconstruction trains the representation (False: ablation of V2, table 2)
    :param reward_gradients: likewise for the reward head
    :param discount_gradients: likewise for the discount head
    """

    gamma: float = 0.999
    kl_scale: float = 0.1
    kl_balance: float | None = 0.8
    kl_forward: bool = False
    free_nats: float = 0.0
    free_nats_average: bool = True
    observation_scale: float | Mapping[str, float] = 1.0
    reward_scale: float = 1.0
    discount_scale: float = 5.0
    reward_transform: str = "tanh"
    observation_gradients: bool = True
    reward_gradients: bool = True
    discount_gradients: bool = True

    def __post_init__(self) -> None:
        if self.reward_transform not in REWARD_TRANSFORMS:
            raise ValueError(f"Unknown reward_transform '{self.reward_transform}'; known are {sorted(REWARD_TRANSFORMS)}.")
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
        """
        :param key: of an observation
        :return: factor of its reconstruction loss
        """
        return self.observation_scale.get(key, 1.0) if isinstance(self.observation_scale, Mapping) else self.observation_scale


class WorldModelLoss(NamedTuple):
    """Terms of the loss: means over time and batch of sums over the event, in nats, before scaling."""

    total: th.Tensor  # scaled sum, what the optimizer minimizes
    observations: dict[str, th.Tensor]  # per observation key
    reward: th.Tensor
    discount: th.Tensor | None  # None without a discount head
    kl: th.Tensor  # after free nats
    kl_value: th.Tensor  # KL(posterior, prior) of every step without free nats, (T, B)
    states: LatentState  # posterior states, (T, B, ...)
    posterior: th.Tensor  # parameters, (T, B, P)
    prior: th.Tensor  # parameters, (T, B, P)
    embeddings: th.Tensor  # of the observations, (T, B, E)
    reward_variance: th.Tensor  # of the batch's transformed rewards, but for those of episode starts, which are none


class WorldModel(nn.Module):
    """
    Encoder, RSSM, decoder, reward and discount heads (V2, section 2.1).

    :param encoder: observations to embeddings
    :param rssm: the recurrent state-space model
    :param decoder: features to one distribution per observation key
    :param reward_head: features to the distribution of the transformed reward
    :param discount_head: features to the Bernoulli of going on, gamma included; None uses the constant gamma and learns
        nothing from terminal steps
    :param observations: how stored observations become the networks' inputs
    :param encoder_keys: what the encoder sees of a Dict space; None for everything
    :param normalizer: of vectors; None leaves them in their own units
    """

    def __init__(
        self,
        encoder: nn.Module,
        rssm: RSSM,
        decoder: nn.Module,
        reward_head: nn.Module,
        discount_head: nn.Module | None,
        observations: ObservationFormat,
        encoder_keys: list[str] | None = None,
        normalizer: ObservationNormalizer | None = None,
    ):
        super().__init__()
        self.normalizer = normalizer
        self.observations = observations
        self.encoder_keys = observations.chosen(encoder_keys, "encoder_keys")
        self.encoder = encoder
        self.rssm = rssm
        self.decoder = decoder
        self.reward_head = reward_head
        self.discount_head = discount_head

    @property
    def decoder_keys(self) -> list[str]:
        """Observation keys that are reconstructed."""
        return [*self.decoder.image_keys, *self.decoder.vector_keys]  # type: ignore[misc, operator]

    def encode(self, stored: Mapping[str, th.Tensor]) -> dict[str, th.Tensor]:
        """
        :param stored: observations from the buffer, per key (..., *stored shape)
        :return: network inputs and reconstruction targets, per key (..., *encoded shape)
        """
        encoded = self.observations.encode(stored)
        return encoded if self.normalizer is None else self.normalizer(encoded)

    def embed(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        """
        :param observations: encoded, per key (n, *shape)
        :return: (n, E)
        """
        if self.observations.is_dict:
            embeddings = self.encoder({key: observations[key] for key in self.encoder_keys})
        else:  # encoders take the tensor itself, as in SB3
            embeddings = self.encoder(observations[OBSERVATION_KEY])
        if embeddings.shape[-1] != self.encoder.features_dim:
            name, size = type(self.encoder).__name__, self.encoder.features_dim
            raise ValueError(f"The encoder {name} says features_dim={size}, but its features are {tuple(embeddings.shape)}.")
        return embeddings

    def loss(
        self,
        batch: SequenceBatch,
        objective: WorldModelObjective,
        noise: th.Tensor | None = None,
    ) -> WorldModelLoss:
        """
        Loss of replayed sequences (V2, eq. 2). Index diagram, a_t being the action that *led to* o_t::

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

        predictions = self.decoder(scale_gradient(features, float(objective.observation_gradients)))
        observation_losses = {key: -predictions[key].log_prob(observations[key]).mean() for key in predictions}
        rewards = REWARD_TRANSFORMS[objective.reward_transform](batch.rewards)
        reward_prediction = self.reward_head(scale_gradient(features, float(objective.reward_gradients)))
        reward_loss = -reward_prediction.log_prob(rewards).mean()
        kl_loss, kl_value = balanced_kl(
            self.rssm.latent.kl,
            posterior,
            prior,
            objective.kl_balance,
            objective.free_nats,
            objective.free_nats_average,
            objective.kl_forward,
            batch_mean,
        )
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
        :param start_continues: 0 where the start is a terminal step, else 1, (N,); it overrides the discount head's opinion
            of the first state, as in the original
        :param horizon: H
        :param gamma: discount factor, used for the first state, and everywhere if there is no discount head
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

    def predict_rewards(self, features: Features) -> th.Tensor:
        """
        :param features: (..., F)
        :return: mode of the reward on arrival, in transformed reward units, (...)
        """
        return self.reward_head(features_for(self.reward_head, features)).mode

    def predict_discounts(self, features: Features, start_continues: th.Tensor, gamma: float) -> th.Tensor:
        """
        :param features: (H + 1, N, F)
        :param start_continues: known flags of the first states, (N,)
        :param gamma: discount factor
        :return: gamma times the probability of going on (the head's mean has gamma in it already), (H + 1, N)
        """
        if self.discount_head is None:
            return start_continues.new_full(features.shape[:-1], gamma)
        later = features_for(self.discount_head, features)[1:]
        return th.cat([(gamma * start_continues)[None], self.discount_head(later).mean])

    def filter(
        self,
        state: LatentState,
        actions: th.Tensor,
        observations: dict[str, th.Tensor],
        episode_starts: th.Tensor,
        sample: bool = True,
        noise: th.Tensor | None = None,
    ) -> LatentState:
        """
        Posterior of one step, for acting.

        :param state: after the previous step, (n, ...)
        :param actions: taken there, (n, A)
        :param observations: as stored, per key (n, *shape)
        :param episode_starts: bool, (n,)
        :param sample: sample the latent (the original's choice even in evaluation) or take its mode
        :param noise: for the sample, (n, P), or None to draw it
        :return: (n, ...)
        """
        embeddings = self.embed(self.encode(observations))
        return self.rssm.observe_step(state, actions, embeddings, episode_starts, noise, sample)
