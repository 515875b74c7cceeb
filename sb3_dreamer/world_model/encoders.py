"""From observations to one embedding: a convolutional part for images, a fully connected part for vectors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_dreamer.common.layers import MLP, ChannelLayerNorm, LayerOptions, in_place
from sb3_dreamer.common.observations import OBSERVATION_KEY, ObservationFormat, split_space
from sb3_dreamer.world_model.convolutions import StridedConv, channels_last

KERNEL, STRIDE = 4, 2
#: Channels of the stages in units of cnn_depth; further stages of large native images stay at the last value
DEPTH_FACTORS = (1, 2, 4, 8)


def image_keys(parts: dict[str, spaces.Box]) -> list[str]:
    """Return the keys of images (encoded spaces of rank 3), in the space's order."""
    return [key for key, space in parts.items() if len(space.shape) == 3]


def vector_keys(parts: dict[str, spaces.Box]) -> list[str]:
    """Return the keys of vectors, in the space's order."""
    return [key for key, space in parts.items() if len(space.shape) == 1]


def stage_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """
    Sizes of the image before and after every stage of the encoder: kernel 4, stride 2, no padding, while the kernel fits.

    64 x 64 gives the original's four stages: 64, 31, 14, 6, 2.

    :param height: of the input, in pixels
    :param width: of the input, in pixels
    :return: (height, width) of the input and after each stage
    """
    sizes = [(height, width)]
    while min(sizes[-1]) >= KERNEL:
        sizes.append(tuple((size - KERNEL) // STRIDE + 1 for size in sizes[-1]))  # type: ignore[arg-type]
    return sizes


def stage_depths(stages: int, cnn_depth: int) -> list[int]:
    """Return the channels after each of some stages, ``cnn_depth`` after the first."""
    return [cnn_depth * DEPTH_FACTORS[min(stage, len(DEPTH_FACTORS) - 1)] for stage in range(stages)]


def image_shape(parts: dict[str, spaces.Box]) -> tuple[int, int, int] | None:
    """
    Shape of all images stacked along the channels, as the networks treat them.

    :param parts: encoded observation spaces by key
    :return: (C, h, w), or None if there is no image
    :raises ValueError: if the images differ in size
    """
    shapes = {key: parts[key].shape for key in image_keys(parts)}
    if not shapes:
        return None
    if len({shape[1:] for shape in shapes.values()}) > 1:
        raise ValueError(f"All images must have one height and width, but these differ: {shapes}. Set image_size=(64, 64).")
    return (sum(shape[0] for shape in shapes.values()), *next(iter(shapes.values()))[1:])  # type: ignore[return-value]


class DreamerEncoder(BaseFeaturesExtractor):
    """
    Embeds images and vectors: a features extractor in SB3's terms (V2, section 2.1 and appendix D).

    :param observation_space: encoded space of what is seen (images channel first and resized, everything else as vectors), a
        Box or a Dict
    :param cnn_depth: channels of the first convolution; the following have 2, 4, 8 times as many (V2's code: 48)
    :param net_arch: widths of the layers for vectors (V2's code: 4 x 400)
    :param activation_fn: activation class (V2: ELU)
    :param layer_norm: normalize before every activation; images over the channels of each pixel
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        cnn_depth: int,
        net_arch: Sequence[int],
        activation_fn: type[nn.Module],
        layer_norm: bool,
    ):
        parts: dict[str, spaces.Box] = split_space(observation_space)  # type: ignore[assignment]
        shape = image_shape(parts)
        self.vector_keys, self.image_keys = vector_keys(parts), image_keys(parts)
        layers: list[nn.Module] = []
        image_features = 0
        if shape is not None:
            sizes = stage_sizes(*shape[1:])
            depths = stage_depths(len(sizes) - 1, cnn_depth)
            for channels_in, channels_out in zip([shape[0], *depths], depths, strict=False):
                norm = [ChannelLayerNorm(channels_out)] if layer_norm else []
                layers += [StridedConv(channels_in, channels_out, KERNEL, STRIDE), *norm, in_place(activation_fn)()]
            image_features = int((depths or [shape[0]])[-1] * np.prod(sizes[-1]))
        vector_size = sum(parts[key].shape[0] for key in self.vector_keys)
        vector_features = (net_arch[-1] if net_arch else vector_size) if vector_size else 0
        super().__init__(observation_space, features_dim=image_features + vector_features)
        self.cnn = channels_last(nn.Sequential(*layers, nn.Flatten())) if shape is not None else None
        self.mlp = MLP(vector_size, LayerOptions(net_arch, activation_fn, layer_norm)) if vector_size else None

    def forward(self, observations: th.Tensor | dict[str, th.Tensor]) -> th.Tensor:
        """
        Embed encoded observations.

        :param observations: float tensors (n, *shape), bytes of images as x / 255 - 0.5; a dict of them for a Dict space
        :return: embedding, (n, E); the images' part comes first
        """
        if isinstance(observations, th.Tensor):
            observations = {OBSERVATION_KEY: observations}
        parts = []
        if self.cnn is not None:
            images = th.cat([observations[key] for key in self.image_keys], dim=-3)
            parts.append(self.cnn(images.contiguous(memory_format=th.channels_last)))
        if self.mlp is not None:
            parts.append(self.mlp(th.cat([observations[key] for key in self.vector_keys], dim=-1)))
        return th.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


def make_encoder(
    observations: ObservationFormat, keys: list[str], encoder_class: type[BaseFeaturesExtractor], kwargs: dict[str, Any]
) -> BaseFeaturesExtractor:
    """
    Build an encoder of any class.

    :param observations: format of the observation space
    :param keys: what the encoder sees
    :param encoder_class: what SB3 calls a features extractor
    :param kwargs: its arguments
    :return: the encoder
    :raises ValueError: if there is nothing to see, or the class is no encoder
    """
    if not keys:
        raise ValueError(f"encoder_keys is empty: name at least one of {list(observations.parts)}.")
    seen = [(key, observations.encoded[key]) for key in keys]  # a plain dict would be sorted
    space = spaces.Dict(seen) if observations.is_dict else observations.encoded[OBSERVATION_KEY]  # type: ignore[arg-type]
    encoder = encoder_class(space, **kwargs)  # type: ignore[arg-type]
    if not isinstance(getattr(encoder, "features_dim", None), int | np.integer):
        name = encoder_class.__name__
        raise ValueError(f"The encoder {name} must tell its features_dim, as SB3's BaseFeaturesExtractor does.")
    return encoder
