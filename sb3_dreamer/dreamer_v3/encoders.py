"""DreamerV3's encoder: convolutions with pooling for images, fully connected layers for vectors."""

from collections.abc import Sequence

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn import functional as F

from sb3_dreamer.common.layers import MLP
from sb3_dreamer.common.observations import OBSERVATION_KEY, split_space
from sb3_dreamer.dreamer_v3.convolutions import DEPTH_FACTORS, SameConv, stage_sizes
from sb3_dreamer.dreamer_v3.layers import ChannelRMSNorm, rms_layers
from sb3_dreamer.world_model.convolutions import channels_last
from sb3_dreamer.world_model.encoders import image_keys, image_shape, vector_keys


class PoolStage(nn.Module):
    """
    One stage of the encoder: convolution, maximum of each 2 x 2 cell, RMS norm over the channels, activation.

    Among equal pixels of a cell the gradient goes to one; the original shares it out.

    :param channels_in: of the input
    :param channels_out: of the output
    :param pools: whether the image is halved
    :param activation_fn: activation class
    """

    def __init__(self, channels_in: int, channels_out: int, pools: bool, activation_fn: type[nn.Module]):
        super().__init__()
        self.pools = pools
        self.convolution = SameConv(channels_in, channels_out)
        self.norm = ChannelRMSNorm(channels_out)
        self.activation = activation_fn()

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Map (n, channels_in, h, w) to (n, channels_out, ...)."""
        x = self.convolution(x)
        x = F.max_pool2d(x, 2, ceil_mode=True) if self.pools else x
        return self.activation(self.norm(x))


class PoolEncoder(BaseFeaturesExtractor):
    """
    Embeds vectors and images: a features extractor in SB3's terms (V3).

    :param observation_space: encoded space of what is seen (images channel first, everything else as vectors, numbers already
        in symlog units), a Box or a Dict
    :param cnn_depth: channels of the stages in units of ``depth_factors``
    :param net_arch: widths of the layers for vectors
    :param activation_fn: activation class (V3: SiLU)
    :param depth_factors: one for each stage
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        cnn_depth: int,
        net_arch: Sequence[int],
        activation_fn: type[nn.Module] = nn.SiLU,
        depth_factors: Sequence[int] = DEPTH_FACTORS,
    ):
        parts: dict[str, spaces.Box] = split_space(observation_space)  # type: ignore[assignment]
        shape = image_shape(parts)
        # Sorted as in the original, so that its weights fit; nothing else depends on the order
        self.vector_keys, self.image_keys = sorted(vector_keys(parts)), sorted(image_keys(parts))
        stages: list[nn.Module] = []
        image_features = 0
        if shape is not None:
            sizes = stage_sizes(*shape[1:], len(depth_factors))
            depths = [shape[0], *(cnn_depth * factor for factor in depth_factors)]
            for stage in range(len(depth_factors)):
                pools = sizes[stage] != sizes[stage + 1]
                stages.append(PoolStage(depths[stage], depths[stage + 1], pools, activation_fn))
            image_features = depths[-1] * sizes[-1][0] * sizes[-1][1]
        vector_size = sum(parts[key].shape[0] for key in self.vector_keys)
        vector_features = (net_arch[-1] if net_arch else vector_size) if vector_size else 0
        super().__init__(observation_space, features_dim=vector_features + image_features)
        self.cnn = channels_last(nn.Sequential(*stages)) if shape is not None else None
        self.mlp = MLP(vector_size, rms_layers(list(net_arch), activation_fn)) if vector_size else None

    def forward(self, observations: th.Tensor | dict[str, th.Tensor]) -> th.Tensor:
        """
        Embed encoded observations.

        :param observations: float tensors (n, *shape), bytes of images as x / 255 - 0.5; a dict of them for a Dict space
        :return: embedding, (n, E); the vectors' part comes first, the images' part has its channels last
        """
        if isinstance(observations, th.Tensor):
            observations = {OBSERVATION_KEY: observations}
        parts = []
        if self.mlp is not None:
            parts.append(self.mlp(th.cat([observations[key] for key in self.vector_keys], dim=-1)))
        if self.cnn is not None:
            images = th.cat([observations[key] for key in self.image_keys], dim=-3)
            maps = self.cnn(images.contiguous(memory_format=th.channels_last))
            parts.append(maps.permute(0, 2, 3, 1).flatten(1))
        return th.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
