"""The policy of DreamerV3: builds world model and behavior from spaces and sizes, and has one optimizer for both."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_dreamer.algorithm.policy import WorldModelPolicy
from sb3_dreamer.algorithm.reporting import loss_names
from sb3_dreamer.common.laprop import LaProp
from sb3_dreamer.common.optimization import ParameterOptimizer
from sb3_dreamer.common.options import check_number, whole_number
from sb3_dreamer.common.preprocessing import ImageSize
from sb3_dreamer.dreamer_v3.behavior import ActorCritic
from sb3_dreamer.dreamer_v3.decoders import GroupDecoder
from sb3_dreamer.dreamer_v3.encoders import PoolEncoder
from sb3_dreamer.dreamer_v3.layers import initialize_weights
from sb3_dreamer.dreamer_v3.networks import NetworkBuilder, model_width, net_arch_by_part
from sb3_dreamer.dreamer_v3.rssm import CoreSizes
from sb3_dreamer.dreamer_v3.world_model import WorldModel
from sb3_dreamer.world_model.latents import UnimixLatent


class DreamerV3Policy(WorldModelPolicy):
    """
    World model and actor-critic of DreamerV3 as an SB3 policy. Sizes that are None follow from ``model_size``, as in V3.

    :param observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or Dict of these; uint8 images channel first
    :param action_space: Discrete, MultiDiscrete, MultiBinary or bounded Box
    :param lr_schedule: learning rate of everything
    :param model_size: ``"1m"``, ``"12m"``, ``"25m"``, ``"50m"``, ``"100m"``, ``"200m"`` or ``"400m"``
    :param deterministic_size: D, width of the recurrent state; None is 8 times the width of the hidden layers
    :param hidden_size: H, width of the RSSM's layers around the recurrent state
    :param blocks: of the recurrent model, which divide D (V3: 8)
    :param dynamics_layers: hidden layers of the recurrent model (V3: 1)
    :param prior_layers: hidden layers of the prior (V3: 2)
    :param posterior_layers: hidden layers of the posterior (V3: 1)
    :param stochastic_size: S, number of categorical variables (V3: 32)
    :param stochastic_classes: K, classes of each; None is 1 / 16 of the width of the hidden layers
    :param unimix: share of the uniform distribution in the latent's classes (V3: 0.01)
    :param net_arch: widths of the fully connected layers of some parts: a dict with lists for ``encoder``, ``decoder`` (both
        for vectors), ``reward``, ``discount``, ``actor`` and ``critic``
    :param cnn_depth: channels of the image layers in units of 2, 3, 4, 4; None is 1 / 16 of the width of the hidden layers
    :param activation_fn: activation class everywhere except in the recurrent cell (V3: SiLU)
    :param bins: of the distributions of rewards and returns (V3's code: 255)
    :param image_size: (height, width) to which images are resized on entry; None keeps the native size
    :param encoder_keys: keys of a Dict space that the encoder sees; None for all
    :param decoder_keys: keys that are reconstructed; None for all
    :param actor_min_std: smallest standard deviation of a continuous actor (V3's code: 0.1)
    :param actor_max_std: largest standard deviation of a continuous actor (V3's code: 1)
    :param actor_init_scale: factor of the initial weights of the actor's last layer (V3's code: 0.01)
    :param head_init_scale: factor of the initial weights of the last layers of reward head and critics (V3's code: 0)
    :param evaluation_noise: amount of action noise in :meth:`predict`
    :param evaluation_latent: whether ``predict(deterministic=True)`` takes the latent's ``"mode"``, which needs no random
        number, or a ``"sample"``; V3's code samples everything, also in evaluation
    :param features_extractor_class: the encoder; sees encoded observations (images x / 255 - 0.5, resized; numbers in symlog
        units)
    :param features_extractor_kwargs: further arguments of the encoder
    :param decoder_class: the decoder; takes the arguments of :class:`~sb3_dreamer.dreamer_v3.decoders.GroupDecoder` and maps
        features to one distribution per key
    :param decoder_kwargs: further arguments of the decoder; they take precedence over the policy's sizes
    :param normalize_images: False, as in SB3: float Boxes of rank 3 are images in the network's units, else flat.
        Images of bytes are always normalized inside
    :param optimizer_class: a PyTorch optimizer (V3: :class:`~sb3_dreamer.common.laprop.LaProp`)
    :param optimizer_kwargs: its further arguments
    """

    #: Makes the networks; a subclass of the policy may name a subclass of the builder
    builder_class: type[NetworkBuilder] = NetworkBuilder
    world_model: WorldModel
    behavior: ActorCritic
    exploration: None = None

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        model_size: str = "12m",
        deterministic_size: int | None = None,
        hidden_size: int | None = None,
        blocks: int = 8,
        dynamics_layers: int = 1,
        prior_layers: int = 2,
        posterior_layers: int = 1,
        stochastic_size: int = 32,
        stochastic_classes: int | None = None,
        unimix: float = 0.01,
        net_arch: dict[str, list[int]] | None = None,
        cnn_depth: int | None = None,
        activation_fn: type[nn.Module] = nn.SiLU,
        bins: int = 255,
        image_size: ImageSize = (64, 64),
        encoder_keys: list[str] | None = None,
        decoder_keys: list[str] | None = None,
        actor_min_std: float = 0.1,
        actor_max_std: float = 1.0,
        actor_init_scale: float = 0.01,
        head_init_scale: float = 0.0,
        evaluation_noise: float = 0.0,
        evaluation_latent: str = "mode",
        features_extractor_class: type[BaseFeaturesExtractor] = PoolEncoder,
        features_extractor_kwargs: dict[str, Any] | None = None,
        decoder_class: type[nn.Module] = GroupDecoder,
        decoder_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = LaProp,
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
        super().__init__(observation_space, action_space, random_exploration=False, **of_all_policies)
        self._arguments = dict(
            **of_all_policies,
            model_size=model_size,
            deterministic_size=deterministic_size,
            hidden_size=hidden_size,
            blocks=blocks,
            dynamics_layers=dynamics_layers,
            prior_layers=prior_layers,
            posterior_layers=posterior_layers,
            stochastic_size=stochastic_size,
            stochastic_classes=stochastic_classes,
            unimix=unimix,
            net_arch=net_arch,
            cnn_depth=cnn_depth,
            activation_fn=activation_fn,
            bins=bins,
            encoder_keys=encoder_keys,
            decoder_keys=decoder_keys,
            actor_min_std=actor_min_std,
            actor_max_std=actor_max_std,
            actor_init_scale=actor_init_scale,
            head_init_scale=head_init_scale,
            decoder_class=decoder_class,
            decoder_kwargs=decoder_kwargs,
        )
        self.loss_names = loss_names(self.observations)
        width = model_width(model_size)
        core = dict(
            deterministic=8 * width if deterministic_size is None else deterministic_size,
            hidden=width if hidden_size is None else hidden_size,
            blocks=blocks,
            dynamics_layers=dynamics_layers,
            prior_layers=prior_layers,
            posterior_layers=posterior_layers,
        )
        depth = width // 16 if cnn_depth is None else cnn_depth
        layers = net_arch_by_part(net_arch, width)
        keys = encoder_keys, decoder_keys
        build = self.builder_class(self.observations, action_space, layers, activation_fn, depth, bins, *keys)
        encoder = build.encoder(features_extractor_class, features_extractor_kwargs or {})
        classes = width // 16 if stochastic_classes is None else stochastic_classes
        latent = UnimixLatent(
            whole_number("stochastic_size", stochastic_size, 1), whole_number("stochastic_classes", classes, 2), unimix
        )
        rssm = build.rssm(latent, encoder.features_dim, CoreSizes.checked(**core))
        decoder = build.decoder(rssm, decoder_class, decoder_kwargs or {})
        self.world_model = build.world_model(encoder, rssm, decoder)
        self.behavior = build.behavior(rssm.features_size, (actor_min_std, actor_max_std))
        initialize_weights(self)
        self._scale_outputs(actor_init_scale, head_init_scale)
        self.behavior.update_target()
        self.everything_optimizer = self._make_optimizer(lr_schedule(1))

    def _scale_outputs(self, actor_factor: float, head_factor: float) -> None:
        """Multiply the initial weights of the last layers of actor, reward head and critic."""
        check_number("actor_init_scale", actor_factor, 0.0)
        check_number("head_init_scale", head_factor, 0.0)
        actor: Any = self.behavior.actor
        reward: Any = self.world_model.reward_head
        for output in [actor.output, getattr(actor, "output_std", None)]:
            if output is not None:
                output.weight.data.mul_(actor_factor)
        for head in (reward, self.behavior.critic):
            head.output.weight.data.mul_(head_factor)

    def _make_optimizer(self, learning_rate: float) -> ParameterOptimizer:
        """The one optimizer of everything but the slow critic."""
        parts = self.world_model, self.behavior.actor, self.behavior.critic
        parameters = [parameter for part in parts for parameter in part.parameters()]
        return ParameterOptimizer(parameters, self.optimizer_class, learning_rate, self.optimizer_kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._arguments, "lr_schedule": self._dummy_schedule}


class CnnPolicy(DreamerV3Policy):
    """:class:`DreamerV3Policy` for images."""

    _takes = "image"


class MlpPolicy(DreamerV3Policy):
    """:class:`DreamerV3Policy` for vectors and everything else that is neither an image nor a Dict."""

    _takes = "vector"


class MultiInputPolicy(DreamerV3Policy):
    """:class:`DreamerV3Policy` for Dict observations."""

    _takes = "dict"
