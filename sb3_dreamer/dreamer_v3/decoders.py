"""DreamerV3's decoder: upsampled convolutions for images, fully connected layers for vectors."""

from collections.abc import Callable, Mapping, Sequence

import torch as th
from gymnasium import spaces
from torch import nn

from sb3_dreamer.common.distributions import Distribution, SquaredError
from sb3_dreamer.common.layers import MLP
from sb3_dreamer.common.observations import FloatImagePart, ImagePart, ObservationPart
from sb3_dreamer.common.precision import full
from sb3_dreamer.dreamer_v3.convolutions import DEPTH_FACTORS, UpsampledConv, stage_sizes
from sb3_dreamer.dreamer_v3.layers import BlockLinear, ChannelRMSNorm, RMSNorm, rms_layers
from sb3_dreamer.world_model import encoders
from sb3_dreamer.world_model.convolutions import channels_last

#: Blocks of the layer from h to the smallest map (V3's code)
SPATIAL_BLOCKS = 8


def likelihood(part: ObservationPart) -> Callable[[th.Tensor], Distribution]:
    """
    What is compared with an encoded observation, given the decoder's outputs.

    Images of bytes are predicted in (0, 1), as x / 255; in the networks' units that is a sigmoid minus ½. Numbers and images
    of floats are predicted as they are; classes and bits by their probabilities.

    :param part: of the observation space
    :return: from outputs (..., *encoded shape) to a distribution over encoded observations
    """
    if isinstance(part, ImagePart):
        return lambda outputs: SquaredError(th.sigmoid(outputs) - 0.5, event_dims=3)
    if isinstance(part, FloatImagePart):
        return lambda outputs: SquaredError(outputs, event_dims=3)
    if part.is_numeric:
        return lambda outputs: SquaredError(outputs, event_dims=1)
    return part.likelihood


class GroupImageDecoder(nn.Module):
    """
    Features to image outputs. The smallest map is the sum of two paths: a block-diagonal layer from h, each block of which
    makes one group of channels, and two layers from z.

    :param deterministic_size: D
    :param stochastic_size: Z
    :param shape: of the image, (C, h, w)
    :param cnn_depth: channels of the stages in units of ``depth_factors``
    :param units: half the width of the hidden layer of z
    :param activation_fn: activation class
    :param depth_factors: of the encoder's stages, which are mirrored
    :param spatial_blocks: number of blocks, which divides D and the channels of the smallest map
    """

    def __init__(
        self,
        deterministic_size: int,
        stochastic_size: int,
        shape: tuple[int, int, int],
        cnn_depth: int,
        units: int,
        activation_fn: type[nn.Module],
        depth_factors: Sequence[int],
        spatial_blocks: int,
    ):
        super().__init__()
        sizes = stage_sizes(*shape[1:], len(depth_factors))[::-1]
        depths = [*(cnn_depth * factor for factor in reversed(depth_factors)), shape[0]]
        if depths[0] % spatial_blocks or deterministic_size % spatial_blocks:
            raise ValueError(
                f"The image decoder has {spatial_blocks} blocks, which must divide deterministic_size ({deterministic_size}) "
                f"and the channels of its smallest map, {depth_factors[-1]} * cnn_depth ({depths[0]}). Choose other sizes, or "
                "decoder_kwargs=dict(spatial_blocks=...)."
            )
        self.start_size, self.channels = sizes[0], depths[0]
        outputs = depths[0] * sizes[0][0] * sizes[0][1]
        self.from_deterministic = BlockLinear(deterministic_size, outputs, spatial_blocks)
        self.from_stochastic = MLP(stochastic_size, rms_layers([2 * units], activation_fn))
        self.to_map = nn.Linear(2 * units, outputs)
        self.norm, self.activation = RMSNorm(depths[0]), activation_fn()
        layers: list[nn.Module] = []
        for stage in range(len(depth_factors)):
            doubles = sizes[stage] != sizes[stage + 1]
            layers.append(UpsampledConv(depths[stage], depths[stage + 1], sizes[stage + 1], doubles))
            if stage < len(depth_factors) - 1:
                layers += [ChannelRMSNorm(depths[stage + 1]), activation_fn()]
        self.cnn = channels_last(nn.Sequential(*layers))

    def forward(self, stochastic: th.Tensor, deterministic: th.Tensor) -> th.Tensor:
        """Map z, (n, Z), and h, (n, D), to outputs, (n, C, h, w)."""
        blocks = self.from_deterministic.blocks
        groups = self.from_deterministic(deterministic).unflatten(-1, (blocks, *self.start_size, -1))
        start = self.to_map(self.from_stochastic(stochastic)).unflatten(-1, (*self.start_size, self.channels))
        start = start + groups.movedim(1, 3).flatten(3)  # channel g c / blocks + k is channel k of group g
        return self.cnn(self.activation(self.norm(start)).permute(0, 3, 1, 2))


class GroupDecoder(nn.Module):
    """
    Reconstructs observation keys (V3).

    :param observation_spaces: encoded spaces by key, of the keys that are reconstructed (images channel first)
    :param deterministic_size: D
    :param stochastic_size: Z
    :param cnn_depth: channels of the image layers in units of ``depth_factors``
    :param net_arch: widths of the trunk for vectors; one linear layer per key follows. The last one is also the ``units`` of
        the image decoder
    :param likelihoods: from the outputs to a distribution, for every key
    :param activation_fn: activation class (V3: SiLU)
    :param depth_factors: of the encoder's stages
    :param spatial_blocks: see :class:`GroupImageDecoder`
    """

    def __init__(
        self,
        observation_spaces: dict[str, spaces.Box],
        deterministic_size: int,
        stochastic_size: int,
        cnn_depth: int,
        net_arch: Sequence[int],
        likelihoods: Mapping[str, Callable[[th.Tensor], Distribution]],
        activation_fn: type[nn.Module] = nn.SiLU,
        depth_factors: Sequence[int] = DEPTH_FACTORS,
        spatial_blocks: int = SPATIAL_BLOCKS,
    ):
        super().__init__()
        self.sizes = [stochastic_size, deterministic_size]
        self.image_keys = encoders.image_keys(observation_spaces)
        self.vector_keys = encoders.vector_keys(observation_spaces)
        self.image_channels = [observation_spaces[key].shape[0] for key in self.image_keys]
        self.likelihoods = likelihoods
        shape = encoders.image_shape(observation_spaces)
        options = (cnn_depth, net_arch[-1], activation_fn, depth_factors, spatial_blocks)
        self.images = None if shape is None else GroupImageDecoder(deterministic_size, stochastic_size, shape, *options)
        self.trunk = MLP(sum(self.sizes), rms_layers(list(net_arch), activation_fn)) if self.vector_keys else None
        self.outputs = nn.ModuleDict()
        for index, key in enumerate(self.vector_keys):
            # Module names must not contain dots, observation keys may
            self.outputs[str(index)] = nn.Linear(net_arch[-1], observation_spaces[key].shape[0])

    def forward(self, features: th.Tensor) -> dict[str, Distribution]:
        """Map features [z; h], (..., F), to one distribution per key over encoded observations, (..., *shape)."""
        predictions: dict[str, Distribution] = {}
        if self.images is not None:
            outputs = self.images(*features.reshape(-1, features.shape[-1]).split(self.sizes, dim=-1))
            images = full(outputs).unflatten(0, features.shape[:-1]).split(self.image_channels, dim=-3)
            predictions |= {key: self.likelihoods[key](image) for key, image in zip(self.image_keys, images, strict=True)}
        if self.trunk is not None:
            hidden = self.trunk(features)
            for index, key in enumerate(self.vector_keys):
                predictions[key] = self.likelihoods[key](full(self.outputs[str(index)](hidden)))
        return predictions
