"""From spaces and sizes to world model and behavior: the options of the networks, and the classes that are built."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_dreamer.behavior.actor_critic import ActorCritic
from sb3_dreamer.behavior.actors import ContinuousOptions, make_actor
from sb3_dreamer.behavior.exploration import RANDOM, Exploration, LatentSizes, make_exploration
from sb3_dreamer.common.distributions import Bernoulli, UnitNormal
from sb3_dreamer.common.heads import ScalarHead
from sb3_dreamer.common.layers import LayerOptions
from sb3_dreamer.common.normalization import ObservationNormalizer
from sb3_dreamer.common.observations import ObservationFormat
from sb3_dreamer.common.options import whole_number
from sb3_dreamer.common.preprocessing import action_size
from sb3_dreamer.world_model.encoders import DreamerEncoder, make_encoder
from sb3_dreamer.world_model.latents import Latent
from sb3_dreamer.world_model.rssm import RSSM
from sb3_dreamer.world_model.world_model import WorldModel

#: Parts of the policy with networks of their own, see ``layer_norm`` and ``activation_fn``
PARTS = ("encoder", "rssm", "decoder", "reward", "discount", "actor", "critic")
#: Those whose layers are listed in ``net_arch``; the RSSM has ``hidden_size``
NET_ARCH_PARTS = tuple(part for part in PARTS if part != "rssm")
#: V2's released code for Atari: four layers of 400 everywhere
DEFAULT_NET_ARCH = (400, 400, 400, 400)


def layers_by_part(
    net_arch: Sequence[int] | Mapping[str, Sequence[int]] | None,
    activation_fn: type[nn.Module] | Mapping[str, type[nn.Module]],
    layer_norm: bool | Sequence[str],
    hidden_size: int,
) -> dict[str, LayerOptions]:
    """
    The layers of every part, from options that hold for all parts or are given part by part.

    :param net_arch: widths, one list for all parts or a dict of parts; None, and parts left out, have the original's
    :param activation_fn: one class for all parts or a dict of parts (others: ELU)
    :param layer_norm: True for all parts, or a list of those that have it
    :param hidden_size: width of the RSSM's layers
    :return: one entry for each of ``PARTS``
    :raises ValueError: if a part is unknown, or its option is impossible
    """
    if not isinstance(layer_norm, bool | list | tuple):
        raise ValueError(f"layer_norm must be True, False or a list of parts, but is {layer_norm!r}.")
    widths = net_arch if isinstance(net_arch, Mapping) else dict.fromkeys(NET_ARCH_PARTS, net_arch)
    activations = activation_fn if isinstance(activation_fn, Mapping) else dict.fromkeys(PARTS, activation_fn)
    normed = (PARTS if layer_norm else ()) if isinstance(layer_norm, bool) else layer_norm
    for name, given in {"net_arch": widths, "activation_fn": activations, "layer_norm": normed}.items():
        known = NET_ARCH_PARTS if name == "net_arch" else PARTS
        unknown = set(given) - set(known)
        if unknown:
            raise ValueError(f"Unknown parts in {name}: {sorted(unknown)}; known are {list(known)}.")
    widths = {**widths, "rssm": [whole_number("hidden_size", hidden_size, 1)]}
    return {
        part: LayerOptions(_net_arch(widths.get(part)), _activation(activations.get(part, nn.ELU)), part in normed)
        for part in PARTS
    }


def _net_arch(widths: Any) -> list[int]:
    """Checked widths; None are the original's."""
    if widths is None:
        return list(DEFAULT_NET_ARCH)
    if isinstance(widths, str) or not isinstance(widths, Sequence | np.ndarray):
        raise ValueError(f"net_arch must be a list of widths, or a dict of such lists, but {widths!r} was given.")
    return [whole_number("A width in net_arch", width, 1) for width in widths]


def _activation(activation_fn: Any) -> Any:
    """A class of modules, or anything else that makes one when it is called without arguments."""
    try:
        makes_modules = isinstance(activation_fn(), nn.Module)
    except TypeError:
        makes_modules = False
    if not makes_modules:
        raise ValueError(f"activation_fn must be a class such as torch.nn.ELU, but is {activation_fn!r}.")
    return activation_fn


class NetworkBuilder:
    """
    Builds all networks of one policy. A subclass names other classes, or overrides a method; it is used by a subclass of the
    policy with this ``builder_class``.

    :param observations: format of the observation space
    :param action_space: of the environment
    :param layers: of each part
    :param cnn_depth: channels of the first convolution
    :param encoder_keys: keys of a Dict space that are seen; None for all
    :param decoder_keys: keys that are reconstructed; None for all
    """

    world_model_class: type[WorldModel] = WorldModel
    rssm_class: type[RSSM] = RSSM
    actor_critic_class: type[ActorCritic] = ActorCritic

    def __init__(
        self,
        observations: ObservationFormat,
        action_space: spaces.Space,
        layers: Mapping[str, LayerOptions],
        cnn_depth: int,
        encoder_keys: list[str] | None,
        decoder_keys: list[str] | None,
    ) -> None:
        self.observations, self.action_space, self.layers = observations, action_space, layers
        self.cnn_depth = whole_number("cnn_depth", cnn_depth, 1)
        self.encoder_keys = observations.chosen(encoder_keys, "encoder_keys")
        self.decoder_keys = observations.chosen(decoder_keys, "decoder_keys")

    def encoder(self, encoder_class: type[BaseFeaturesExtractor], kwargs: dict[str, Any]) -> BaseFeaturesExtractor:
        """
        Build the encoder.

        :param encoder_class: what SB3 calls a features extractor
        :param kwargs: its arguments; they take precedence over the policy's sizes, which a ``DreamerEncoder`` is given
        :return: the encoder
        :raises ValueError: if there is nothing to see, or the class is no encoder
        """
        if issubclass(encoder_class, DreamerEncoder):
            kwargs = {"cnn_depth": self.cnn_depth, **self.layers["encoder"]._asdict(), **kwargs}
        return make_encoder(self.observations, self.encoder_keys, encoder_class, kwargs)

    def rssm(self, latent: Latent, embedding_size: int, deterministic_size: int) -> RSSM:
        """Build the recurrent state-space model from its latent and the sizes E and D."""
        deterministic_size = whole_number("deterministic_size", deterministic_size, 1)
        return self.rssm_class(latent, action_size(self.action_space), embedding_size, deterministic_size, self.layers["rssm"])

    def decoder(self, features_size: int, decoder_class: type[nn.Module], kwargs: dict[str, Any]) -> nn.Module:
        """
        Build the decoder.

        :param features_size: F
        :param decoder_class: takes the arguments of :class:`~sb3_dreamer.world_model.decoders.DreamerDecoder`
        :param kwargs: take precedence over the policy's sizes
        :return: features (..., F) to one distribution per key
        """
        decoded, likelihoods = (
            {key: parts[key] for key in self.decoder_keys}
            for parts in (self.observations.encoded, self.observations.likelihoods)
        )
        options = {"cnn_depth": self.cnn_depth, **self.layers["decoder"]._asdict(), "likelihoods": likelihoods}
        return decoder_class(decoded, features_size, **{**options, **kwargs})

    def world_model(
        self,
        encoder: BaseFeaturesExtractor,
        rssm: RSSM,
        decoder: nn.Module,
        use_discount_head: bool,
        normalize_observations: bool,
    ) -> WorldModel:
        """
        Build the world model from its parts and new heads.

        :param encoder: of :meth:`encoder`
        :param rssm: of :meth:`rssm`
        :param decoder: of :meth:`decoder`
        :param use_discount_head: whether to learn when episodes end
        :param normalize_observations: whether vectors are seen in units of their spread
        :return: the world model
        """
        reward = ScalarHead(rssm.features_size, self.layers["reward"], UnitNormal)
        discount = ScalarHead(rssm.features_size, self.layers["discount"], Bernoulli) if use_discount_head else None
        has_numbers = any(part.is_numeric for part in self.observations.parts.values())
        normalizer = ObservationNormalizer(self.observations) if normalize_observations and has_numbers else None
        keys = self.encoder_keys, self.decoder_keys
        return self.world_model_class(encoder, rssm, decoder, reward, discount, self.observations, *keys, normalizer)

    def behavior(self, features_size: int, options: ContinuousOptions) -> ActorCritic:
        """Build actor and critics on features of size F; the options are those of continuous actors."""
        actor = make_actor(features_size, self.action_space, self.layers["actor"], options)
        return self.actor_critic_class(actor, features_size, self.layers["critic"])

    def exploration(
        self, kind: Any, kwargs: dict[str, Any] | None, world_model: WorldModel, options: ContinuousOptions
    ) -> Exploration | None:
        """
        Build the exploration strategy.

        :param kind: name or class; None and "random" need no networks
        :param kwargs: its arguments
        :param world_model: in which it explores
        :param options: of continuous actors
        :return: the strategy
        :raises ValueError: for an unknown strategy, or options that it does not have
        """
        if kind is None or kind == RANDOM:
            if kwargs:
                raise ValueError(f"exploration_class={kind!r} takes no exploration_kwargs, but {kwargs} were given.")
            return None
        rssm = world_model.rssm
        sizes = LatentSizes(rssm.deterministic_size, rssm.latent.size, world_model.encoder.features_dim)  # type: ignore[arg-type]
        behavior = self.behavior(rssm.features_size, options)
        return make_exploration(kind, behavior, sizes, rssm.action_size, self.layers["reward"], **(kwargs or {}))
