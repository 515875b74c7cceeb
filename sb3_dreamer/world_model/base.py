"""What every world model has: its parts, the way of observations into and out of the networks, and the filter for acting."""

from collections.abc import Callable, Mapping

import torch as th
from torch import nn

from sb3_dreamer.common.distributions import Distribution
from sb3_dreamer.common.functional import INVERSE_REWARD_TRANSFORMS, REWARD_TRANSFORMS
from sb3_dreamer.common.normalization import ObservationNormalizer
from sb3_dreamer.common.observations import OBSERVATION_KEY, ObservationFormat
from sb3_dreamer.common.one_hot import Features, features_for
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.world_model.state_space import StateSpaceModel

#: A module that declares ``accepts_one_hot`` is given features in that form where it is cheaper
Actor = Callable[[th.Tensor], Distribution]


class BaseWorldModel(nn.Module):
    """
    Encoder, recurrent state-space model, decoder, reward and discount heads; a subclass says what they learn.

    :param encoder: observations to embeddings
    :param rssm: the recurrent state-space model
    :param decoder: features to one distribution per observation key
    :param reward_head: features to the distribution of the transformed reward
    :param discount_head: features to the probability that the episode continues, times gamma; None if there is none
    :param observations: format of stored observations and of the networks' inputs
    :param encoder_keys: keys of a Dict space that the encoder sees; None for all
    :param decoder_keys: keys that the decoder reconstructs; None for all
    :param normalizer: of vectors; None leaves them in their own units
    """

    def __init__(
        self,
        encoder: nn.Module,
        rssm: StateSpaceModel,
        decoder: nn.Module,
        reward_head: nn.Module,
        discount_head: nn.Module | None,
        observations: ObservationFormat,
        encoder_keys: list[str] | None,
        decoder_keys: list[str] | None,
        normalizer: ObservationNormalizer | None,
    ):
        super().__init__()
        self.normalizer = normalizer
        self.observations = observations
        self.encoder_keys = observations.chosen(encoder_keys, "encoder_keys")
        self.decoder_keys = observations.chosen(decoder_keys, "decoder_keys")
        self.encoder = encoder
        self.rssm = rssm
        self.decoder = decoder
        self.reward_head = reward_head
        self.discount_head = discount_head

    def encode(self, stored: Mapping[str, th.Tensor]) -> dict[str, th.Tensor]:
        """
        Encode stored observations.

        :param stored: observations from the buffer, per key (..., *stored shape)
        :return: network inputs and reconstruction targets, per key (..., *encoded shape)
        """
        encoded = self.observations.encode(stored)
        return encoded if self.normalizer is None else self.normalizer(encoded)

    def restore(self, key: str, values: th.Tensor) -> th.Tensor:
        """
        Undo the normalization of :meth:`encode`, except for clipping.

        :param key: of an observation
        :param values: as the networks see and predict them, (..., *encoded shape)
        :return: the same shape, in the units of ``observations.encode``
        """
        has_spread = self.normalizer is not None and key in self.normalizer.shapes
        return self.normalizer.inverse(key, values) if has_spread else values  # type: ignore[union-attr]

    def embed(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        """
        Embed encoded observations.

        :param observations: per key (n, *shape)
        :return: (n, E)
        :raises ValueError: if the output's width is not the encoder's ``features_dim``
        """
        if self.observations.is_dict:
            embeddings = self.encoder({key: observations[key] for key in self.encoder_keys})
        else:  # encoders take the tensor itself, as in SB3
            embeddings = self.encoder(observations[OBSERVATION_KEY])
        if embeddings.shape[-1] != self.encoder.features_dim:
            name, size = type(self.encoder).__name__, self.encoder.features_dim
            raise ValueError(f"The encoder {name} says features_dim={size}, but its features are {tuple(embeddings.shape)}.")
        return embeddings

    def decode(self, features: th.Tensor) -> dict[str, Distribution]:
        """
        Reconstruct observations.

        :param features: (..., F)
        :return: per key of ``decoder_keys`` a distribution over encoded observations, (..., *shape)
        :raises ValueError: if the decoder predicts other keys
        """
        predictions = self.decoder(features)
        if predictions.keys() != set(self.decoder_keys):
            name, found = type(self.decoder).__name__, sorted(predictions)
            raise ValueError(f"The decoder {name} must predict the keys {self.decoder_keys}, but predicts {found}.")
        return predictions

    def transform_rewards(self, rewards: th.Tensor, transform: str) -> th.Tensor:
        """
        Bring rewards into the units that the reward head learns.

        :param rewards: of the environment, any shape
        :param transform: key of ``REWARD_TRANSFORMS``
        :return: the same shape
        """
        return REWARD_TRANSFORMS[transform](rewards)

    def invert_rewards(self, rewards: th.Tensor, transform: str) -> th.Tensor:
        """
        Bring predicted rewards back into the environment's units.

        :param rewards: of the reward head, any shape
        :param transform: key of ``REWARD_TRANSFORMS``
        :return: the same shape
        """
        return INVERSE_REWARD_TRANSFORMS[transform](rewards)

    def predict_rewards(self, features: Features) -> th.Tensor:
        """Map features (..., F) to the expected reward on arrival, (...), in transformed reward units."""
        return self.reward_head(features_for(self.reward_head, features)).mean

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
        Posterior state of one step, for acting.

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
