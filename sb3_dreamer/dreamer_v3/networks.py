"""From spaces and sizes to world model and behavior: the options of DreamerV3's networks, and the classes that are built."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_dreamer.common.distributions import Bernoulli
from sb3_dreamer.common.heads import ScalarHead
from sb3_dreamer.common.observations import ObservationFormat
from sb3_dreamer.common.options import whole_number
from sb3_dreamer.common.preprocessing import action_size
from sb3_dreamer.common.two_hot import TwoHot
from sb3_dreamer.dreamer_v3.behavior import ActorCritic, make_actor
from sb3_dreamer.dreamer_v3.decoders import likelihood
from sb3_dreamer.dreamer_v3.encoders import PoolEncoder
from sb3_dreamer.dreamer_v3.layers import rms_layers
from sb3_dreamer.dreamer_v3.rssm import BlockRSSM, CoreSizes
from sb3_dreamer.dreamer_v3.world_model import WorldModel
from sb3_dreamer.world_model.encoders import make_encoder
from sb3_dreamer.world_model.latents import Latent

#: Width of all hidden layers by size of the model, named after its number of parameters with images (V3's code)
MODEL_SIZES = {"1m": 64, "12m": 256, "25m": 384, "50m": 512, "100m": 768, "200m": 1024, "400m": 1536}
#: Number of hidden layers of each part (V3's code)
HIDDEN_LAYERS = {"encoder": 3, "decoder": 3, "reward": 1, "discount": 1, "actor": 3, "critic": 3}


def model_width(model_size: str) -> int:
    """
    Width of the hidden layers.

    :param model_size: key of ``MODEL_SIZES``
    :return: the width, from which V3's code derives all sizes
    :raises ValueError: naming the known sizes
    """
    if model_size not in MODEL_SIZES:
        raise ValueError(f"Unknown model_size {model_size!r}; known are {list(MODEL_SIZES)}.")
    return MODEL_SIZES[model_size]


def net_arch_by_part(net_arch: Mapping[str, Sequence[int]] | None, width: int) -> dict[str, list[int]]:
    """
    Widths of the hidden layers of every part.

    :param net_arch: of some parts; the others have the original's
    :param width: of the original's layers
    :return: one list for each part of ``HIDDEN_LAYERS``
    :raises ValueError: for an unknown part, or widths that are no whole numbers
    """
    given = {} if net_arch is None else net_arch
    if not isinstance(given, Mapping):
        raise ValueError(f"net_arch must be a dict of parts such as dict(actor=[64, 64]), but is {net_arch!r}.")
    unknown = set(given) - set(HIDDEN_LAYERS)
    if unknown:
        raise ValueError(f"Unknown parts in net_arch: {sorted(unknown)}; known are {list(HIDDEN_LAYERS)}.")
    result = {part: [width] * number for part, number in HIDDEN_LAYERS.items()}
    for part, widths in given.items():
        if isinstance(widths, str) or not isinstance(widths, Sequence | np.ndarray) or not len(widths):
            raise ValueError(f"net_arch['{part}'] must be a list of widths, at least one, but is {widths!r}.")
        result[part] = [whole_number(f"A width in net_arch['{part}']", size, 1) for size in widths]
    return result


class NetworkBuilder:
    """
    Builds all networks of one policy. A subclass names other classes, or overrides a method; it is used by a subclass of the
    policy with this ``builder_class``.

    :param observations: format of the observation space
    :param action_space: of the environment
    :param net_arch: widths of each part
    :param activation_fn: activation class of all parts
    :param cnn_depth: channels of the image layers, in units of their factors
    :param bins: of reward head and critics
    :param encoder_keys: keys of a Dict space that are seen; None for all
    :param decoder_keys: keys that are reconstructed; None for all
    """

    world_model_class: type[WorldModel] = WorldModel
    rssm_class: type[BlockRSSM] = BlockRSSM
    actor_critic_class: type[ActorCritic] = ActorCritic

    def __init__(
        self,
        observations: ObservationFormat,
        action_space: spaces.Space,
        net_arch: Mapping[str, list[int]],
        activation_fn: type[nn.Module],
        cnn_depth: int,
        bins: int,
        encoder_keys: list[str] | None,
        decoder_keys: list[str] | None,
    ) -> None:
        self.observations, self.action_space = observations, action_space
        self.net_arch, self.activation_fn = net_arch, activation_fn
        self.layers = {part: rms_layers(widths, activation_fn) for part, widths in net_arch.items()}
        self.cnn_depth, self.bins = whole_number("cnn_depth", cnn_depth, 1), whole_number("bins", bins, 2)
        self.encoder_keys = observations.chosen(encoder_keys, "encoder_keys")
        self.decoder_keys = observations.chosen(decoder_keys, "decoder_keys")

    def encoder(self, encoder_class: type[BaseFeaturesExtractor], kwargs: dict[str, Any]) -> BaseFeaturesExtractor:
        """
        Build the encoder.

        :param encoder_class: what SB3 calls a features extractor
        :param kwargs: its arguments; they take precedence over the policy's sizes, which a ``PoolEncoder`` is given
        :return: the encoder
        :raises ValueError: if there is nothing to see, or the class is no encoder
        """
        if issubclass(encoder_class, PoolEncoder):
            own = dict(cnn_depth=self.cnn_depth, net_arch=self.net_arch["encoder"], activation_fn=self.activation_fn)
            kwargs = {**own, **kwargs}
        return make_encoder(self.observations, self.encoder_keys, encoder_class, kwargs)

    def rssm(self, latent: Latent, embedding_size: int, sizes: CoreSizes) -> BlockRSSM:
        """Build the recurrent state-space model from its latent and sizes."""
        return self.rssm_class(latent, action_size(self.action_space), embedding_size, sizes, self.activation_fn)

    def decoder(self, rssm: BlockRSSM, decoder_class: type[nn.Module], kwargs: dict[str, Any]) -> nn.Module:
        """
        Build the decoder.

        :param rssm: whose states are decoded
        :param decoder_class: takes the arguments of :class:`~sb3_dreamer.dreamer_v3.decoders.GroupDecoder`
        :param kwargs: take precedence over the policy's sizes
        :return: features (..., F) to one distribution per key
        """
        parts = {key: self.observations.parts[key] for key in self.decoder_keys}
        spaces_of_parts = {key: part.encoded for key, part in parts.items()}
        likelihoods = {key: likelihood(part) for key, part in parts.items()}
        own = dict(cnn_depth=self.cnn_depth, net_arch=self.net_arch["decoder"], activation_fn=self.activation_fn)
        options = {**own, "likelihoods": likelihoods, **kwargs}
        return decoder_class(spaces_of_parts, rssm.deterministic_size, rssm.latent.size, **options)

    def world_model(self, encoder: BaseFeaturesExtractor, rssm: BlockRSSM, decoder: nn.Module) -> WorldModel:
        """Build the world model from its parts and new heads."""
        reward = ScalarHead(rssm.features_size, self.layers["reward"], TwoHot, self.bins)
        discount = ScalarHead(rssm.features_size, self.layers["discount"], Bernoulli)
        keys = self.encoder_keys, self.decoder_keys
        return self.world_model_class(encoder, rssm, decoder, reward, discount, self.observations, *keys, normalizer=None)

    def behavior(self, features_size: int, stds: tuple[float, float]) -> ActorCritic:
        """Build actor and critics on features of size F; continuous actors have standard deviations between two numbers."""
        actor = make_actor(features_size, self.action_space, self.layers["actor"], *stds)
        return self.actor_critic_class(actor, features_size, self.layers["critic"], self.bins)
