"""From latent features back to observations: one distribution per observation key."""

from collections.abc import Sequence

import torch as th
from gymnasium import spaces
from torch import nn

from sb3_dreamer.common.distributions import UnitNormal
from sb3_dreamer.common.layers import MLP
from sb3_dreamer.world_model.encoders import (
    KERNEL,
    STRIDE,
    image_keys,
    image_shape,
    stage_depths,
    stage_sizes,
    vector_keys,
)

#: The original decodes 64 x 64 images from a 1 x 1 map: 1, 5, 13, 30, 64 pixels
ORIGINAL_SIZE, ORIGINAL_KERNELS = (64, 64), (5, 5, 6, 6)


class PointTransposedConv(nn.ConvTranspose2d):
    """
    A transposed convolution over a map of one pixel, computed as the matrix product that it is.

    PyTorch's CPU kernel takes over ten times as long for the same numbers.
    """

    def forward(self, x: th.Tensor, output_size: list[int] | None = None) -> th.Tensor:
        """
        :param x: (n, channels, 1, 1)
        :param output_size: not used, the size is the kernel's
        :return: (n, out_channels, kernel, kernel)
        """
        assert self.bias is not None
        y = x.flatten(1) @ self.weight.flatten(1)
        return y.unflatten(1, self.weight.shape[1:]) + self.bias[:, None, None]


class ImageDecoder(nn.Module):
    """
    Features to image means, by transposed convolutions.

    64 x 64 images are decoded as in the original, from a 1 x 1 map with kernels 5, 5, 6, 6. Every other size mirrors the
    encoder stage by stage, so that the output has exactly the input's size.

    :param features_size: F
    :param shape: of the image, (C, h, w)
    :param cnn_depth: channels before the last layer
    :param activation_fn: activation class
    """

    def __init__(self, features_size: int, shape: tuple[int, int, int], cnn_depth: int, activation_fn: type[nn.Module]):
        super().__init__()
        layers: list[nn.Module] = []
        if shape[1:] == ORIGINAL_SIZE:
            self.start_shape = (32 * cnn_depth, 1, 1)
            channels = [32 * cnn_depth, *reversed(stage_depths(3, cnn_depth)), shape[0]]
            for stage, kernel in enumerate(ORIGINAL_KERNELS):
                layer = PointTransposedConv if stage == 0 else nn.ConvTranspose2d
                layers += [layer(channels[stage], channels[stage + 1], kernel, STRIDE), activation_fn()]
        else:
            sizes = stage_sizes(*shape[1:])[::-1]
            depths = stage_depths(len(sizes) - 1, cnn_depth)[::-1]
            self.start_shape = ((depths or [shape[0]])[0], *sizes[0])
            for stage, channels_in in enumerate(depths):
                channels_out = depths[stage + 1] if stage + 1 < len(depths) else shape[0]
                lost = [(size - KERNEL) % STRIDE for size in sizes[stage + 1]]  # pixels that the encoder's stride left out
                layers += [nn.ConvTranspose2d(channels_in, channels_out, KERNEL, STRIDE, 0, lost), activation_fn()]  # type: ignore[arg-type]
        self.linear = nn.Linear(features_size, self.start_shape[0] * self.start_shape[1] * self.start_shape[2])
        self.cnn = nn.Sequential(*layers[:-1])  # the last layer has no activation

    def forward(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: (n, F)
        :return: means in units of x / 255 - 0.5, (n, C, h, w)
        """
        return self.cnn(self.linear(features).unflatten(-1, self.start_shape))


class DreamerDecoder(nn.Module):
    """
    Reconstructs every observation key: unit-variance normals around a decoded mean (V2, section 2.1).

    :param observation_spaces: stored spaces by key (images channel first)
    :param features_size: F
    :param cnn_depth: channels before the last image layer (V2's code: 48)
    :param net_arch: widths of the trunk for vectors (V2's code: 4 x 400); one linear layer per key follows
    :param activation_fn: activation class (V2: ELU)
    """

    def __init__(
        self,
        observation_spaces: dict[str, spaces.Box],
        features_size: int,
        cnn_depth: int = 48,
        net_arch: Sequence[int] = (400, 400, 400, 400),
        activation_fn: type[nn.Module] = nn.ELU,
    ):
        super().__init__()
        self.image_keys, self.vector_keys = image_keys(observation_spaces), vector_keys(observation_spaces)
        self.image_channels = [observation_spaces[key].shape[0] for key in self.image_keys]
        shape = image_shape(observation_spaces)
        self.images = ImageDecoder(features_size, shape, cnn_depth, activation_fn) if shape is not None else None
        self.trunk = MLP(features_size, net_arch, activation_fn) if self.vector_keys else None
        self.outputs = nn.ModuleDict()
        if self.trunk is not None:
            for index, key in enumerate(self.vector_keys):
                # Module names must not contain dots, observation keys may
                self.outputs[str(index)] = nn.Linear(self.trunk.output_size, observation_spaces[key].shape[0])

    def forward(self, features: th.Tensor) -> dict[str, UnitNormal]:
        """
        :param features: (..., F)
        :return: per key a distribution over (..., *shape); images in units of x / 255 - 0.5
        """
        predictions: dict[str, UnitNormal] = {}
        leading = features.shape[:-1]
        if self.images is not None:
            means = self.images(features.reshape(-1, features.shape[-1])).unflatten(0, leading)
            for key, mean in zip(self.image_keys, means.split(self.image_channels, dim=-3), strict=True):
                predictions[key] = UnitNormal(mean, event_dims=3)
        if self.trunk is not None:
            hidden = self.trunk(features)
            for index, key in enumerate(self.vector_keys):
                predictions[key] = UnitNormal(self.outputs[str(index)](hidden), event_dims=1)
        return predictions
