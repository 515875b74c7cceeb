"""From spaces and sizes to world model and behavior: the options of the networks, and who gets which."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_dreamer.behavior.actor_critic import ActorCritic
from sb3_dreamer.behavior.actors import make_actor
from sb3_dreamer.behavior.exploration import Exploration, LatentSizes, make_exploration
from sb3_dreamer.common.distributions import Bernoulli, UnitNormal
from sb3_dreamer.common.heads import ScalarHead
from sb3_dreamer.common.normalization import ObservationNormalizer
from sb3_dreamer.common.observations import OBSERVATION_KEY, ObservationFormat
from sb3_dreamer.common.options import whole_number
from sb3_dreamer.common.preprocessing import action_size
from sb3_dreamer.world_model.decoders import DreamerDecoder
from sb3_dreamer.world_model.encoders import DreamerEncoder
from sb3_dreamer.world_model.latents import Latent
from sb3_dreamer.world_model.rssm import RSSM
from sb3_dreamer.world_model.world_model import WorldModel

#: Parts of the policy with networks of their own, see ``layer_norm`` and ``activation_fn``
PARTS = ("encoder", "rssm", "decoder", "reward", "discount", "actor", "critic")
#: Those whose layers are listed in ``net_arch``; the RSSM has ``hidden_size``
NET_ARCH_PARTS = tuple(part for part in PARTS if part != "rssm")
#: V2's released code for Atari: four layers of 400 everywhere
DEFAULT_NET_ARCH = (400, 400, 400, 400)
#: Longest name of an observation key in the log; SB3's table cuts keys at 36 characters and refuses collisions
LONGEST_LOGGED_KEY = 20
#: Names in the log that an observation key, such as "reward", must not take
OTHER_LOSSES = ("model_loss", "reward_loss", "discount_loss", "kl_loss", "actor_loss", "critic_loss", "exploration_loss")


class PartOptions:
    """
    Options that hold for all parts or are given part by part.

    :param net_arch: widths of layers, one list for all parts or a dict of parts; None is the original's
    :param activation_fn: one class for all parts or a dict of parts (others: ELU)
    :param layer_norm: True for all parts, or a list of those that have it
    :raises ValueError: if a part is unknown, or its option is impossible
    """

    def __init__(
        self,
        net_arch: Sequence[int] | Mapping[str, Sequence[int]] | None,
        activation_fn: type[nn.Module] | Mapping[str, type[nn.Module]],
        layer_norm: bool | Sequence[str],
    ) -> None:
        self._net_arch = net_arch if isinstance(net_arch, Mapping) else dict.fromkeys(NET_ARCH_PARTS, net_arch)
        self._activations = activation_fn if isinstance(activation_fn, Mapping) else dict.fromkeys(PARTS, activation_fn)
        if not isinstance(layer_norm, bool | list | tuple):
            raise ValueError(f"layer_norm must be True, False or a list of parts, but is {layer_norm!r}.")
        self._normed = (list(PARTS) if layer_norm else []) if isinstance(layer_norm, bool) else list(layer_norm)
        options = {"net_arch": self._net_arch, "activation_fn": self._activations, "layer_norm": self._normed}
        for name, parts in options.items():
            known = NET_ARCH_PARTS if name == "net_arch" else PARTS
            unknown = set(parts) - set(known)
            if unknown:
                raise ValueError(f"Unknown parts in {name}: {sorted(unknown)}; known are {list(known)}.")
        for widths in self._net_arch.values():
            if widths is not None and (isinstance(widths, str) or not isinstance(widths, Sequence | np.ndarray)):
                raise ValueError(f"net_arch must be a list of widths, or a dict of such lists, but is {net_arch!r}.")
            for width in () if widths is None else widths:
                whole_number("A width in net_arch", width, 1)
        for activation in self._activations.values():
            if not _makes_modules(activation):
                raise ValueError(f"activation_fn must be a class such as torch.nn.ELU, but is {activation!r}.")

    def net_arch(self, part: str) -> list[int]:
        """
        :param part: one of ``NET_ARCH_PARTS``
        :return: widths of its layers
        """
        given = self._net_arch.get(part)
        return [int(width) for width in (DEFAULT_NET_ARCH if given is None else given)]

    def activation(self, part: str) -> type[nn.Module]:
        """
        :param part: one of ``PARTS``
        :return: its activation class
        """
        return self._activations.get(part, nn.ELU)

    def layer_norm(self, part: str) -> bool:
        """
        :param part: one of ``PARTS``
        :return: whether its layers are normalized
        """
        return part in self._normed


def _makes_modules(activation: Any) -> bool:
    """A class of modules, or anything else that makes one when it is called without arguments."""
    try:
        return isinstance(activation(), nn.Module)
    except TypeError:
        return False


class NetworkBuilder:
    """
    Builds all networks of one policy.

    :param observations: format of the observation space
    :param action_space: of the environment
    :param options: widths, activations and norms of the parts
    :param cnn_depth: channels of the first convolution
    """

    def __init__(
        self, observations: ObservationFormat, action_space: spaces.Space, options: PartOptions, cnn_depth: int
    ) -> None:
        self.observations, self.action_space, self.options = observations, action_space, options
        self.cnn_depth = whole_number("cnn_depth", cnn_depth, 1)

    def encoder(
        self, keys: list[str] | None, encoder_class: type[BaseFeaturesExtractor], kwargs: dict[str, Any]
    ) -> BaseFeaturesExtractor:
        """
        :param keys: of a Dict space that are seen, None for all
        :param encoder_class: what SB3 calls a features extractor
        :param kwargs: its arguments, before our own
        :return: the encoder
        :raises ValueError: if there is nothing to see, or the class is no encoder
        """
        if issubclass(encoder_class, DreamerEncoder):
            own: dict[str, Any] = {"net_arch": self.options.net_arch("encoder"), "cnn_depth": self.cnn_depth}
            own |= {"activation_fn": self.options.activation("encoder"), "layer_norm": self.options.layer_norm("encoder")}
            kwargs = own | kwargs
        chosen = self.observations.chosen(keys, "encoder_keys")
        if not chosen:
            raise ValueError(f"encoder_keys is empty: name at least one of {list(self.observations.parts)}.")
        seen = [(key, self.observations.encoded[key]) for key in chosen]  # a plain dict would be sorted
        space = spaces.Dict(seen) if self.observations.is_dict else self.observations.encoded[OBSERVATION_KEY]  # type: ignore[arg-type]
        encoder = encoder_class(space, **kwargs)  # type: ignore[arg-type]
        if not isinstance(getattr(encoder, "features_dim", None), int | np.integer):
            name = encoder_class.__name__
            raise ValueError(f"The encoder {name} must tell its features_dim, as SB3's BaseFeaturesExtractor does.")
        return encoder

    def world_model(
        self,
        encoder: BaseFeaturesExtractor,
        latent: Latent,
        deterministic_size: int,
        hidden_size: int,
        encoder_keys: list[str] | None,
        decoder_keys: list[str] | None,
        use_discount_head: bool,
        normalize_observations: bool,
    ) -> WorldModel:
        """
        :param encoder: of :meth:`encoder`
        :param latent: kind and size of the stochastic state
        :param deterministic_size: D
        :param hidden_size: width of the RSSM's layers
        :param encoder_keys: what the encoder sees
        :param decoder_keys: what is reconstructed
        :param use_discount_head: whether to learn when episodes end
        :param normalize_observations: whether vectors are seen in units of their spread
        :return: the world model
        """
        options, sizes = self.options, (deterministic_size, hidden_size)
        rssm_options = options.activation("rssm"), options.layer_norm("rssm")
        rssm = RSSM(latent, action_size(self.action_space), encoder.features_dim, *sizes, *rssm_options)
        chosen, likelihoods = self.observations.chosen(decoder_keys, "decoder_keys"), self.observations.likelihoods
        decoder = DreamerDecoder(
            {key: self.observations.encoded[key] for key in chosen},
            rssm.features_size,
            self.cnn_depth,
            options.net_arch("decoder"),
            options.activation("decoder"),
            options.layer_norm("decoder"),
            {key: likelihoods[key] for key in chosen},
        )
        reward = self.scalar_head("reward", rssm.features_size, UnitNormal)
        discount = self.scalar_head("discount", rssm.features_size, Bernoulli) if use_discount_head else None
        has_numbers = any(part.is_numeric for part in self.observations.parts.values())
        normalizer = ObservationNormalizer(self.observations) if normalize_observations and has_numbers else None
        return WorldModel(encoder, rssm, decoder, reward, discount, self.observations, encoder_keys, normalizer)

    def scalar_head(self, part: str, features_size: int, distribution: Any) -> ScalarHead:
        """
        :param part: "reward" or "discount"
        :param features_size: F
        :param distribution: from outputs to a distribution
        :return: the head
        """
        options = self.options
        sizes, kind = (features_size, options.net_arch(part)), (distribution, options.activation(part))
        return ScalarHead(*sizes, *kind, options.layer_norm(part))

    def behavior(self, features_size: int, actor_kwargs: dict[str, Any]) -> ActorCritic:
        """
        :param features_size: F
        :param actor_kwargs: distribution, min_std, init_std, exact_gradient
        :return: actor and critics
        """
        options = self.options
        actor_options = options.net_arch("actor"), options.activation("actor"), options.layer_norm("actor")
        actor = make_actor(features_size, self.action_space, *actor_options, **actor_kwargs)
        critic_options = options.net_arch("critic"), options.activation("critic"), options.layer_norm("critic")
        return ActorCritic(actor, features_size, *critic_options)

    def exploration(
        self, kind: Any, kwargs: dict[str, Any] | None, world_model: WorldModel, actor_kwargs: dict[str, Any]
    ) -> Exploration | None:
        """
        :param kind: name or class; None and "random" need no networks
        :param kwargs: its arguments
        :param world_model: in which it explores
        :param actor_kwargs: as for :meth:`behavior`
        :return: the strategy
        """
        if kind is None or kind == "random":
            if kwargs:
                raise ValueError(f"exploration_class={kind!r} takes no exploration_kwargs, but {kwargs} were given.")
            return None
        rssm = world_model.rssm
        sizes = LatentSizes(rssm.deterministic_size, rssm.latent.size, world_model.encoder.features_dim)  # type: ignore[arg-type]
        options = self.options
        networks = options.net_arch("reward"), options.activation("reward"), options.layer_norm("reward")
        behavior = self.behavior(rssm.features_size, actor_kwargs)
        return make_exploration(kind, behavior, sizes, rssm.action_size, *networks, **(kwargs or {}))


def loss_names(observations: ObservationFormat) -> dict[str, str]:
    """
    :param observations: format of the observation space
    :return: logged name of each key's reconstruction loss
    """
    if not observations.is_dict:
        return {OBSERVATION_KEY: "image_loss" if observations.parts[OBSERVATION_KEY].is_image else "vector_loss"}
    names: dict[str, str] = {}
    for i, key in enumerate(observations.parts):
        name = key if len(key) <= LONGEST_LOGGED_KEY else f"{key[:LONGEST_LOGGED_KEY - 3]}~{i}"
        while f"{name}_loss" in (*OTHER_LOSSES, *names.values()):
            name += "~"
        names[key] = f"{name}_loss"
    return names
