"""DreamerV3's world model: its loss on replayed sequences, and imagined trajectories."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch as th

from sb3_dreamer.common.functional import flatten_time, scale_gradient, symexp, symlog, unflatten_time
from sb3_dreamer.common.one_hot import Features, accepts_one_hot, features_for
from sb3_dreamer.common.type_aliases import ContextBatch, ImaginedTrajectory, LatentState
from sb3_dreamer.dreamer_v3.objective import Objective
from sb3_dreamer.world_model.base import Actor, BaseWorldModel
from sb3_dreamer.world_model.latents import Latent


class WorldModelLoss(NamedTuple):
    """Terms of the loss for every step, (T, B), before scaling, and the states from which behaviors are learned."""

    observations: dict[str, th.Tensor]  # per observation key
    reward: th.Tensor
    discount: th.Tensor
    kl: th.Tensor  # after free nats; its gradients have the shares of both KL scales
    kl_value: th.Tensor  # KL(posterior, prior) without free nats and gradient
    states: LatentState  # posterior states, (T, B, ...)
    features: th.Tensor  # of these states, (T, B, F)
    posterior: th.Tensor  # parameters, (T, B, P)
    prior: th.Tensor  # parameters, (T, B, P)
    embeddings: th.Tensor  # of the observations, (T, B, E)

    def total(self, objective: Objective) -> th.Tensor:
        """Scaled sum of the means over time and batch, a scalar (V3, world model learning)."""
        total = (objective.dynamics_scale + objective.representation_scale) * self.kl.mean()
        total = total + objective.reward_scale * self.reward.mean() + objective.discount_scale * self.discount.mean()
        return total + sum(objective.scale_of(key) * loss.mean() for key, loss in self.observations.items())


def shared_kl(latent: Latent, posterior: th.Tensor, prior: th.Tensor, objective: Objective) -> th.Tensor:
    """
    KL(posterior, prior) of every step, whose gradient is shared out by the scales of both KL losses.

    The original adds two KL losses, of which one trains the prior and the other the posterior. They have one value, and are
    clipped at one value, so one KL with scaled gradients is the same function at half the cost.

    :param latent: kind of latent state
    :param posterior: parameters of q(z | h, o), (..., P)
    :param prior: parameters of p(z | h), (..., P)
    :param objective: scales of the two losses
    :return: in nats, (...)
    """
    both = (objective.dynamics_scale + objective.representation_scale) or 1.0
    posterior = scale_gradient(posterior, objective.representation_scale / both)
    return latent.kl(posterior, scale_gradient(prior, objective.dynamics_scale / both))


class WorldModel(BaseWorldModel):
    """
    Encoder, RSSM, decoder, reward and discount heads (V3, world model learning).

    Numbers are seen and predicted in symlog units. The reward head predicts rewards in the environment's units, the discount
    head gamma times the probability that the episode continues (see ``discount_head_learns_gamma``).
    """

    def encode(self, stored: Mapping[str, th.Tensor]) -> dict[str, th.Tensor]:
        """As in the base class; numbers in symlog units, images, classes and bits as they are."""
        encoded = super().encode(stored)
        return {key: symlog(values) if self._is_squashed(key) else values for key, values in encoded.items()}

    def restore(self, key: str, values: th.Tensor) -> th.Tensor:
        return super().restore(key, symexp(values) if self._is_squashed(key) else values)

    def _is_squashed(self, key: str) -> bool:
        """Whether an observation consists of numbers that are not an image."""
        part = self.observations.parts[key]
        return part.is_numeric and not part.is_image

    def loss(self, batch: ContextBatch, objective: Objective, noise: th.Tensor | None = None) -> WorldModelLoss:
        """
        Loss of replayed sequences (V3, world model learning). In the index diagram, a_t is the action that *led to* o_t::

            a_1   a_2   a_3        (zeroed where an episode starts)
              \\     \\     \\
            s_1 - s_2 - s_3        posterior states; before them the stored state of the context
             |     |     |
            o_1   o_2   o_3        r_t and the discount label belong to arriving at o_t

        :param batch: sequences from the replay buffer
        :param objective: scales and options
        :param noise: for the posterior's samples, (T, B, P), or None to draw it
        :return: the terms of every step and the posterior states
        """
        steps, context = batch
        observations = self.encode(steps.observations)
        embeddings = self.embed({key: flatten_time(x) for key, x in observations.items()})
        embeddings = unflatten_time(embeddings, len(steps.rewards))
        inputs = embeddings, steps.actions, steps.episode_starts
        states, posterior, prior = self.rssm.observe(*inputs, state=context, noise=noise)
        features = states.features

        predictions = self.decode(features)
        observation_losses = {key: -predictions[key].log_prob(observations[key]) for key in predictions}
        reward_features = scale_gradient(features, float(objective.reward_gradients))
        reward_loss = -self.reward_head(reward_features).log_prob(steps.rewards)
        label_scale = objective.gamma if objective.discount_head_learns_gamma else 1.0
        assert self.discount_head is not None
        discount_loss = -self.discount_head(features).log_prob(label_scale * steps.continues)
        kl = shared_kl(self.rssm.latent, posterior, prior, objective)
        terms = observation_losses, reward_loss, discount_loss, kl.clamp(min=objective.free_nats), kl.detach()
        return WorldModelLoss(*terms, states, features, posterior, prior, embeddings)

    @th.no_grad()
    def imagine(
        self,
        actor: Actor,
        start: LatentState,
        horizon: int,
        gamma: float,
        action_noise: th.Tensor | None = None,
        latent_noise: th.Tensor | None = None,
    ) -> ImaginedTrajectory:
        """
        Follow the actor through the latent space, without any gradient (V3, critic learning)::

            s_0 -- a_1 --> s_1 -- a_2 --> s_2 ...    a_k ~ actor(s_{k-1}), s_k ~ prior

        Weights include the discount of their own row: whether the first state ends its episode is predicted, too, and not
        taken from the replay buffer.

        :param actor: features to an action distribution
        :param start: posterior states, (N, ...)
        :param horizon: H
        :param gamma: multiplied to the discount head's predictions, which may contain it already
        :param action_noise: (H, N, ...) of the actor's ``draw_noise``, or None to draw it
        :param latent_noise: (H, N, P), or None to draw it
        :return: (H + 1, N, ...), constants
        """
        state, actions = start.detach(), start.stochastic.new_zeros(len(start.stochastic), self.rssm.action_size)
        # Written row by row: features of the whole path are as large as everything else in an update together
        features = start.stochastic.new_empty(horizon + 1, len(start.stochastic), self.rssm.features_size)
        stochastic, deterministic = features.split([self.rssm.latent.size, self.rssm.deterministic_size], dim=-1)
        path, taken, sparse = LatentState(deterministic, stochastic), [actions], accepts_one_hot(actor)
        for step in range(horizon + 1):
            stochastic[step], deterministic[step] = state.stochastic, state.deterministic
            if step == horizon:
                break
            one_hot = self.rssm.one_hot(state)
            inputs: Any = one_hot if sparse and one_hot is not None else features[step]
            actions = actor(inputs).sample(None if action_noise is None else action_noise[step])
            state = self.rssm.imagine_step(state, actions, None if latent_noise is None else latent_noise[step], one_hot)
            taken.append(actions)
        one_hot = self.rssm.one_hot(path)
        cheapest = features if one_hot is None else one_hot
        discounts = gamma * self.predict_discounts(cheapest)
        weights = th.cumprod(discounts, dim=0) / gamma
        rewards = self.predict_rewards(cheapest)
        return ImaginedTrajectory(path, features, th.stack(taken), rewards, discounts, weights, one_hot)

    def predict_discounts(self, features: Features) -> th.Tensor:
        """Map features (..., F) to the mean of the discount head, (...)."""
        assert self.discount_head is not None
        return self.discount_head(features_for(self.discount_head, features)).mean
