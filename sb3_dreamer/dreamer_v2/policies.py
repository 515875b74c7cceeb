"""The policy: builds world model and behavior from spaces and sizes, acts, and predicts as SB3's policies do."""

from collections.abc import Iterable
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_dreamer.algorithm.policy import WorldModelPolicy
from sb3_dreamer.algorithm.reporting import loss_names
from sb3_dreamer.behavior.actor_critic import ActorCritic
from sb3_dreamer.behavior.actors import ContinuousOptions
from sb3_dreamer.behavior.exploration import RANDOM, Exploration
from sb3_dreamer.common.layers import initialize_weights
from sb3_dreamer.common.optimization import DreamerAdam, ParameterOptimizer
from sb3_dreamer.common.options import check_number
from sb3_dreamer.common.preprocessing import ImageSize
from sb3_dreamer.dreamer_v2.networks import NetworkBuilder, layers_by_part
from sb3_dreamer.world_model.decoders import DreamerDecoder
from sb3_dreamer.world_model.encoders import DreamerEncoder
from sb3_dreamer.world_model.latents import make_latent
from sb3_dreamer.world_model.world_model import WorldModel


class DreamerPolicy(WorldModelPolicy):
    """
    World model and actor-critic of DreamerV2 as an SB3 policy.

    The *parts* of ``net_arch``, ``activation_fn`` and ``layer_norm`` are ``encoder``, ``rssm`` (not in ``net_arch``),
    ``decoder``, ``reward``, ``discount``, ``actor`` and ``critic``.

    :param observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or Dict of these; uint8 images channel first
    :param action_space: Discrete, MultiDiscrete, MultiBinary or bounded Box
    :param lr_schedule: learning rate of the world model; actor and critic have theirs set by the algorithm
    :param deterministic_size: D, width of the recurrent state (V2's code for Atari: 600)
    :param hidden_size: width of the RSSM's layers around the cell (V2's code for Atari: 600)
    :param latent: kind of the stochastic state, ``"categorical"`` (V2) or ``"gaussian"`` (V1)
    :param stochastic_size: S, number of stochastic variables (V2: 32, V1: 30)
    :param stochastic_classes: K, classes of each categorical variable; None is 32, as in V2
    :param latent_min_std: smallest standard deviation of a Gaussian latent; None is 0.1, as in both papers' code
    :param latent_std_activation: of a Gaussian latent's standard deviation, see ``STD_ACTIVATIONS``; None is ``"sigmoid2"``,
        as in V2
    :param net_arch: widths of the fully connected layers: one list for all parts, or a dict with lists for some (V2's code:
        4 x 400); those of the decoder are for vectors only
    :param cnn_depth: channels of the encoder's first convolution (V2's code: 48)
    :param activation_fn: activation class everywhere except in the recurrent cell (V2: ELU), or a dict of parts
    :param layer_norm: normalize before every activation, everywhere or in a list of parts (V2's code: for Crafter); the
        recurrent cell always normalizes
    :param image_size: (height, width) to which images are resized on entry; None keeps the native size
    :param encoder_keys: keys of a Dict space that the encoder sees; None for all
    :param decoder_keys: keys that are reconstructed; None for all
    :param normalize_observations: scale numbers by their running standard deviation, which is saved with the networks;
        images, classes and bits stay as they are (V2's code: no)
    :param head_init_scale: factor of the initial weights of the last layers of reward head and critics; 0 predicts nothing at
        first, so that the actor explores until rewards are seen (V2's code: 1; V3's: 0)
    :param use_discount_head: learn when episodes end (V2's code: yes for Atari); otherwise the discount is constant
    :param actor_distribution: for Box actions: ``"truncated_normal"`` (V2), ``"tanh_normal"`` (V1) or ``"normal"``
    :param actor_min_std: smallest scale of a continuous actor (V2's code: 0.1)
    :param actor_init_std: added to the actor's raw scale before its activation (V2's code: 0)
    :param actor_exact_gradient: use the exact reparameterization gradient of the truncated normal instead of the original's
    :param exploration_class: strategy that collects experience in place of the actor: ``"random"``, ``"plan2explore"``,
        ``"model_loss"`` or a subclass of :class:`~sb3_dreamer.behavior.exploration.Exploration`; None lets the actor collect
    :param exploration_kwargs: arguments of the strategy
    :param evaluation_noise: amount of action noise in :meth:`predict` (V2's code, ``eval_noise``: 0)
    :param evaluation_latent: whether ``predict(deterministic=True)`` takes the latent's ``"mode"``, which needs no random
        number, or a ``"sample"``, as V2's code does
    :param features_extractor_class: the encoder; sees encoded observations (images x / 255 - 0.5, resized; vectors)
    :param features_extractor_kwargs: further arguments of the encoder
    :param decoder_class: the decoder; takes the arguments of :class:`~sb3_dreamer.world_model.decoders.DreamerDecoder` and
        maps features to one distribution per key
    :param decoder_kwargs: further arguments of the decoder; they take precedence over the policy's sizes
    :param normalize_images: False, as in SB3: float Boxes of rank 3 are images in the network's units, else flat.
        Images of bytes are always normalized inside
    :param optimizer_class: a PyTorch optimizer (V2: Adam, see :class:`~sb3_dreamer.common.optimization.DreamerAdam`)
    :param optimizer_kwargs: its further arguments (V2, table D.1: eps 1e-5, weight_decay 1e-6)
    """

    #: Makes the networks; a subclass of the policy may name a subclass of the builder
    builder_class: type[NetworkBuilder] = NetworkBuilder
    world_model: WorldModel
    behavior: ActorCritic

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        deterministic_size: int = 600,
        hidden_size: int = 600,
        latent: str = "categorical",
        stochastic_size: int = 32,
        stochastic_classes: int | None = None,
        latent_min_std: float | None = None,
        latent_std_activation: str | None = None,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        cnn_depth: int = 48,
        activation_fn: type[nn.Module] | dict[str, type[nn.Module]] = nn.ELU,
        layer_norm: bool | list[str] = False,
        image_size: ImageSize = (64, 64),
        encoder_keys: list[str] | None = None,
        decoder_keys: list[str] | None = None,
        normalize_observations: bool = False,
        head_init_scale: float = 1.0,
        use_discount_head: bool = True,
        actor_distribution: str = "truncated_normal",
        actor_min_std: float = 0.1,
        actor_init_std: float = 0.0,
        actor_exact_gradient: bool = False,
        exploration_class: str | type[Exploration] | None = None,
        exploration_kwargs: dict[str, Any] | None = None,
        evaluation_noise: float = 0.0,
        evaluation_latent: str = "mode",
        features_extractor_class: type[BaseFeaturesExtractor] = DreamerEncoder,
        features_extractor_kwargs: dict[str, Any] | None = None,
        decoder_class: type[nn.Module] = DreamerDecoder,
        decoder_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = DreamerAdam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ):
        of_all_policies: dict[str, Any] = dict(
            image_size=image_size,
            evaluation_noise=evaluation_noise,
            evaluation_latent=evaluation_latent,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        is_random = isinstance(exploration_class, str) and exploration_class == RANDOM
        super().__init__(observation_space, action_space, random_exploration=is_random, **of_all_policies)
        self._arguments = dict(
            **of_all_policies,
            deterministic_size=deterministic_size,
            hidden_size=hidden_size,
            latent=latent,
            stochastic_size=stochastic_size,
            stochastic_classes=stochastic_classes,
            latent_min_std=latent_min_std,
            latent_std_activation=latent_std_activation,
            net_arch=net_arch,
            cnn_depth=cnn_depth,
            activation_fn=activation_fn,
            layer_norm=layer_norm,
            encoder_keys=encoder_keys,
            decoder_keys=decoder_keys,
            normalize_observations=normalize_observations,
            head_init_scale=head_init_scale,
            use_discount_head=use_discount_head,
            actor_distribution=actor_distribution,
            actor_min_std=actor_min_std,
            actor_init_std=actor_init_std,
            actor_exact_gradient=actor_exact_gradient,
            exploration_class=exploration_class,
            exploration_kwargs=exploration_kwargs,
            decoder_class=decoder_class,
            decoder_kwargs=decoder_kwargs,
        )
        self.loss_names = loss_names(self.observations)
        layers = layers_by_part(net_arch, activation_fn, layer_norm, hidden_size)
        keys = encoder_keys, decoder_keys
        build = self.builder_class(self.observations, action_space, layers, cnn_depth, *keys)
        encoder = build.encoder(features_extractor_class, features_extractor_kwargs or {})
        state = make_latent(latent, stochastic_size, stochastic_classes, latent_min_std, latent_std_activation)
        rssm = build.rssm(state, encoder.features_dim, deterministic_size)
        decoder = build.decoder(rssm.features_size, decoder_class, decoder_kwargs or {})
        self.world_model = build.world_model(encoder, rssm, decoder, use_discount_head, normalize_observations)
        actor_options = ContinuousOptions(actor_distribution, actor_min_std, actor_init_std, actor_exact_gradient)
        self.behavior = build.behavior(rssm.features_size, actor_options)
        self.exploration = build.exploration(exploration_class, exploration_kwargs, self.world_model, actor_options)
        initialize_weights(self)
        self._scale_heads(head_init_scale)
        self._make_optimizers(lr_schedule(1))

    def _scale_heads(self, factor: float) -> None:
        """Multiply the initial weights of the last layers of reward head and critics."""
        check_number("head_init_scale", factor, 0.0)
        critics = [critic for one in self.behaviors for critic in (one.critic, one.critic_target)]
        heads: list[Any] = [self.world_model.reward_head, *critics] if factor != 1.0 else []
        for head in heads:
            head.output.weight.data.mul_(factor)

    def _make_optimizers(self, learning_rate: float) -> None:
        """One optimizer each for world model, actor and critic, and those of exploration; target critics have none."""

        def make(parameters: Iterable[nn.Parameter]) -> ParameterOptimizer:
            return ParameterOptimizer(parameters, self.optimizer_class, learning_rate, self.optimizer_kwargs)

        self.world_model_optimizer = make(self.world_model.parameters())
        self.actor_optimizer = make(self.behavior.actor.parameters())
        self.critic_optimizer = make(self.behavior.critic.parameters())
        if self.exploration is not None:
            self.exploration_optimizer = make(self.exploration.head_parameters())
            self.exploration_actor_optimizer = make(self.exploration.behavior.actor.parameters())
            self.exploration_critic_optimizer = make(self.exploration.behavior.critic.parameters())

    @property
    def optimizers_by_rate(self) -> tuple[list[ParameterOptimizer], ...]:
        """Those that learn at the world model's rate, at the actor's, and at the critic's."""
        groups = ([self.world_model_optimizer], [self.actor_optimizer], [self.critic_optimizer])
        if self.exploration is not None:
            own = self.exploration_optimizer, self.exploration_actor_optimizer, self.exploration_critic_optimizer
            groups = tuple([*group, optimizer] for group, optimizer in zip(groups, own, strict=True))  # type: ignore[assignment]
        return groups

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._arguments, "lr_schedule": self._dummy_schedule}


class CnnPolicy(DreamerPolicy):
    """:class:`DreamerPolicy` for images."""

    _takes = "image"


class MlpPolicy(DreamerPolicy):
    """:class:`DreamerPolicy` for vectors and everything else that is neither an image nor a Dict."""

    _takes = "vector"


class MultiInputPolicy(DreamerPolicy):
    """:class:`DreamerPolicy` for Dict observations."""

    _takes = "dict"
