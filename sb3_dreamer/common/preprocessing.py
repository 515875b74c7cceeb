"""
Between environment and world model: which observations and actions are understood, and how they become tensors.

Inside the package a single (Box) observation is a dict with the one key ``OBSERVATION_KEY``, so that nothing else
distinguishes the two cases. Frames are resized once, by :func:`resize_images`, on entry to the policy and to the
buffer, to the same bytes.
"""

from collections.abc import Mapping

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from torch.nn import functional as F

OBSERVATION_KEY = "observation"

ImageSize = tuple[int, int] | None
NumpyObs = np.ndarray | dict[str, np.ndarray]


def observation_spaces(space: spaces.Space) -> dict[str, spaces.Box]:
    """
    The observation space as a dict of the parts that the world model reads and reconstructs, in the space's own order.

    :param space: a Box (image or vector) or a Dict of these
    :return: one Box per key; a single Box has the key ``OBSERVATION_KEY``
    :raises ValueError: if a part is neither a uint8 image nor a Box of rank 1, naming key and space
    """
    parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {OBSERVATION_KEY: space}
    for key, part in parts.items():
        if not isinstance(part, spaces.Box) or not (is_image_space(part) or _is_vector(part)):
            raise ValueError(
                f"DreamerV2 does not support the observation space {part} (key '{key}'): it takes uint8 images of shape "
                "(height, width, channels) or (channels, height, width), Box vectors of rank 1, and Dict spaces of these."
            )
    return parts


def _is_vector(space: spaces.Box) -> bool:
    return len(space.shape) == 1 and int(np.prod(space.shape)) > 0


def stored_spaces(space: spaces.Space, image_size: ImageSize) -> dict[str, spaces.Box]:
    """
    The spaces after resizing: what the buffer stores and the encoder sees.

    :param space: the (vectorised) environment's observation space; images channel first, as SB3's wrappers make them
    :param image_size: (height, width) to which every image is resized; None keeps the native sizes
    :return: one Box per key; images (C, h, w) uint8, vectors float32
    """
    stored = {}
    for key, part in observation_spaces(space).items():
        if is_image_space(part):
            channels, *native = part.shape if is_image_space_channels_first(part) else (part.shape[-1], *part.shape[:-1])
            stored[key] = spaces.Box(0, 255, (channels, *(image_size or native)), dtype=np.uint8)
        else:
            stored[key] = spaces.Box(-np.inf, np.inf, part.shape, dtype=np.float32)
    return stored


def resize_images(images: np.ndarray, image_size: ImageSize) -> np.ndarray:
    """
    Resize frames by area interpolation (every source pixel counts by the area that it covers).

    :param images: (n, C, height, width) uint8
    :param image_size: (h, w), or None for no change
    :return: (n, C, h, w) uint8, rounded to the nearest value; the input itself if it has the size already
    """
    if image_size is None or images.shape[-2:] == tuple(image_size):
        return images
    resized = F.interpolate(th.as_tensor(images).float(), size=tuple(image_size), mode="area")
    return resized.round_().to(th.uint8).numpy()


def to_stored(observation: NumpyObs, stored: Mapping[str, spaces.Box]) -> dict[str, np.ndarray]:
    """
    Bring a batch of the environment's observations into the stored form: dict, resized uint8 images, float32 vectors.

    :param observation: one array (n, *shape) or a dict of them, channel first, as a VecEnv gives them
    :param stored: the result of :func:`stored_spaces`
    :return: one array (n, *stored shape) per key; may share memory with the input
    """
    parts = observation if isinstance(observation, dict) else {OBSERVATION_KEY: observation}
    result = {}
    for key, space in stored.items():
        value = np.asarray(parts[key])
        if space.dtype == np.uint8:
            result[key] = resize_images(value, space.shape[-2:])
        else:
            result[key] = value.astype(np.float32, copy=False).reshape(-1, *space.shape)
    return result


def action_size(space: spaces.Space) -> int:
    """
    Width A of the action vector that the world model sees.

    :param space: Discrete (one-hot) or Box (flattened)
    :raises ValueError: for any other space
    """
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.Box):
        return int(np.prod(space.shape))
    raise ValueError(f"DreamerV2 does not support the action space {space}: it takes Discrete and Box spaces.")


def encode_actions(actions: th.Tensor, space: spaces.Space) -> th.Tensor:
    """
    Buffer actions to world-model vectors.

    :param actions: Discrete: indices (..., 1); Box: values scaled to [-1, 1], (..., *shape) or already flat
    :param space: the action space
    :return: (..., A) float32, one-hot or flat values
    """
    if isinstance(space, spaces.Discrete):
        return F.one_hot(actions.long().squeeze(-1), int(space.n)).float()
    return actions.float()


def decode_actions(vectors: th.Tensor, space: spaces.Space) -> np.ndarray:
    """
    World-model vectors to the environment's actions.

    :param vectors: (n, A) one-hot, or values in [-1, 1]
    :param space: the action space
    :return: Discrete: (n,) int64; Box: (n, *shape) in the space's own bounds and dtype
    """
    if isinstance(space, spaces.Discrete):
        return vectors.argmax(dim=-1).cpu().numpy()
    assert isinstance(space, spaces.Box)
    values = vectors.cpu().numpy().reshape(-1, *space.shape)
    scaled = space.low + 0.5 * (values + 1.0) * (space.high - space.low)
    return np.clip(scaled, space.low, space.high).astype(space.dtype)


def normalise_observations(observations: Mapping[str, th.Tensor]) -> dict[str, th.Tensor]:
    """
    Stored observations to network inputs and reconstruction targets: images x / 255 - 0.5, vectors as they are.

    :param observations: per key (..., *shape)
    :return: the same keys and shapes, float32
    """
    return {key: x.float() / 255.0 - 0.5 if x.dtype == th.uint8 else x.float() for key, x in observations.items()}
