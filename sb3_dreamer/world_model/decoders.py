"""From latent features back to observations: one distribution per observation key."""

from collections.abc import Callable, Mapping, Sequence

import torch as th
from gymnasium import spaces
from torch import nn

from sb3_dreamer.common.distributions import Distribution, UnitNormal
from sb3_dreamer.common.layers import MLP, ChannelLayerNorm, LayerOptions, in_place
from sb3_dreamer.common.precision import full
from sb3_dreamer.world_model import encoders
from sb3_dreamer.world_model.convolutions import PointTransposedConv, SubPixelTransposedConv, channels_last
from sb3_dreamer.world_model.encoders import KERNEL, STRIDE

#: The original decodes 64 x 64 images from a 1 x 1 map: 1, 5, 13, 30, 64 pixels
ORIGINAL_SIZE, ORIGINAL_KERNELS = (64, 64), (5, 5, 6, 6)


class ImageDecoder(nn.Module):
    """
    Features to image means, by transposed convolutions.

    64 x 64 images are decoded as in the original, from a 1 x 1 map with kernels 5, 5, 6, 6. For other sizes the decoder
    mirrors the encoder stage by stage, so the output has exactly the input's size.

    :param features_size: F
    :param shape: of the image, (C, h, w)
    :param cnn_depth: channels before the last layer
    :param options: activation, and whether the channels of each pixel are normalized before it; the widths are not used
    """

    def __init__(self, features_size: int, shape: tuple[int, int, int], cnn_depth: int, options: LayerOptions):
        super().__init__()
        layers: list[nn.Module] = []
        activation = in_place(options.activation_fn)
        between = (lambda size: [ChannelLayerNorm(size), activation()]) if options.layer_norm else (lambda _: [activation()])
        if shape[1:] == ORIGINAL_SIZE:
            self.start_shape = (32 * cnn_depth, 1, 1)
            channels = [32 * cnn_depth, *reversed(encoders.stage_depths(3, cnn_depth)), shape[0]]
            for stage, kernel in enumerate(ORIGINAL_KERNELS):
                layer = PointTransposedConv if stage == 0 else SubPixelTransposedConv
                layers += [layer(channels[stage], channels[stage + 1], kernel, STRIDE), *between(channels[stage + 1])]
        else:
            sizes = encoders.stage_sizes(*shape[1:])[::-1]
            depths = encoders.stage_depths(len(sizes) - 1, cnn_depth)[::-1]
            self.start_shape = ((depths or [shape[0]])[0], *sizes[0])
            for stage, channels_in in enumerate(depths):
                channels_out = depths[stage + 1] if stage + 1 < len(depths) else shape[0]
                lost = [(size - KERNEL) % STRIDE for size in sizes[stage + 1]]  # pixels that the encoder's stride left out
                convolution = SubPixelTransposedConv(channels_in, channels_out, KERNEL, STRIDE, 0, lost)  # type: ignore[arg-type]
                layers += [convolution, *between(channels_out)]
        self.linear = nn.Linear(features_size, self.start_shape[0] * self.start_shape[1] * self.start_shape[2])
        # After the last convolution there is neither norm nor activation
        self.cnn = channels_last(nn.Sequential(*(layers[:-2] if options.layer_norm else layers[:-1])))

    def forward(self, features: th.Tensor) -> th.Tensor:
        """Map features (n, F) to means (n, C, h, w) in the units of the encoded images."""
        return self.cnn(self.linear(features).unflatten(-1, self.start_shape))


class DreamerDecoder(nn.Module):
    """
    Reconstructs observation keys: by default unit-variance normals around a decoded mean (V2, section 2.1).

    :param observation_spaces: encoded spaces by key, of the keys that are reconstructed (images channel first)
    :param features_size: F
    :param cnn_depth: channels before the last image layer (V2's code: 48)
    :param net_arch: widths of the trunk for vectors (V2's code: 4 x 400); one linear layer per key follows
    :param activation_fn: activation class (V2: ELU)
    :param layer_norm: normalize before every activation
    :param likelihoods: from the network's outputs to a distribution, for keys that are not normal
    """

    def __init__(
        self,
        observation_spaces: dict[str, spaces.Box],
        features_size: int,
        cnn_depth: int,
        net_arch: Sequence[int],
        activation_fn: type[nn.Module],
        layer_norm: bool,
        likelihoods: Mapping[str, Callable[[th.Tensor], Distribution]],
    ):
        super().__init__()
        self.image_keys = encoders.image_keys(observation_spaces)
        self.vector_keys = encoders.vector_keys(observation_spaces)
        self.image_channels = [observation_spaces[key].shape[0] for key in self.image_keys]
        self.likelihoods = likelihoods
        shape = encoders.image_shape(observation_spaces)
        layers = LayerOptions(net_arch, activation_fn, layer_norm)
        self.images = ImageDecoder(features_size, shape, cnn_depth, layers) if shape is not None else None
        self.trunk = MLP(features_size, layers) if self.vector_keys else None
        self.outputs = nn.ModuleDict()
        if self.trunk is not None:
            for index, key in enumerate(self.vector_keys):
                # Module names must not contain dots, observation keys may
                self.outputs[str(index)] = nn.Linear(self.trunk.output_size, observation_spaces[key].shape[0])

    def forward(self, features: th.Tensor) -> dict[str, Distribution]:
        """Map features (..., F) to one distribution per key over encoded observations, (..., *shape)."""
        predictions: dict[str, Distribution] = {}
        leading = features.shape[:-1]
        if self.images is not None:
            means = self.images(features.reshape(-1, features.shape[-1])).unflatten(0, leading)
            for key, mean in zip(self.image_keys, full(means).split(self.image_channels, dim=-3), strict=True):
                predictions[key] = UnitNormal(mean, event_dims=3)
        if self.trunk is not None:
            hidden = self.trunk(features)
            for index, key in enumerate(self.vector_keys):
                outputs = full(self.outputs[str(index)](hidden))
                predictions[key] = self.likelihoods[key](outputs) if key in self.likelihoods else UnitNormal(outputs, 1)
        return predictions
