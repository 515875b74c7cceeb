"""
Between environment and world model: which observations and actions are understood, and how they become tensors.

Inside the package a single (Box) observation is a dict with the one key ``OBSERVATION_KEY``, so that nothing else
distinguishes the two cases. Frames are resized once, by :func:`resize_images`, on entry to the policy and to the
buffer, to the same bytes.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
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
    parts: dict[str, spaces.Box] = {}
    for key, part in split_space(space).items():
        if not isinstance(part, spaces.Box) or not (is_image_space(part) or _is_vector(part)):
            raise ValueError(
                f"DreamerV2 does not support the observation space {part} (key '{key}'): it takes uint8 images of shape "
                "(height, width, channels) or (channels, height, width), Box vectors of rank 1, and Dict spaces of these."
            )
        parts[key] = part
    return parts


def split_space(space: spaces.Space) -> dict[str, spaces.Space]:
    """
    :param space: any space
    :return: the parts of a Dict, in its order; any other space under the key ``OBSERVATION_KEY``
    """
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {OBSERVATION_KEY: space}


def _is_vector(space: spaces.Box) -> bool:
    return len(space.shape) == 1 and int(np.prod(space.shape)) > 0


def stored_spaces(space: spaces.Space, image_size: ImageSize) -> dict[str, spaces.Box]:
    """
    The spaces after resizing: what the buffer stores and the encoder sees.

    :param space: the (vectorised) environment's observation space; images channel first, as SB3's wrappers make them
    :param image_size: (height, width) to which every image is resized; None keeps the native sizes
    :return: one Box per key; images (C, h, w) uint8, vectors float32
    """
    stored: dict[str, spaces.Box] = {}
    for key, part in observation_spaces(space).items():
        if is_image_space(part):
            channels, *native = part.shape  # no guess by the smallest size: 50 stacked frames may be 40 pixels wide
            stored[key] = spaces.Box(0, 255, (channels, *(image_size or native)), dtype=np.uint8)
        else:
            stored[key] = spaces.Box(-np.inf, np.inf, part.shape)
    return stored


@lru_cache(maxsize=64)
def area_taps(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Area interpolation along one axis: ``out[i] = sum over k of weights[k, i] * x[indices[k, i]]``.

    Few taps by hand, because BLAS would wake all its threads for such a small product, and PyTorch's "area" mode lets
    neighbouring windows overlap.

    :param size_in: pixels before
    :param size_out: pixels after
    :return: indices and float32 weights, both (taps, size_out); weights sum to 1 over the taps. Shared: do not change them
    """
    edges = np.arange(size_out + 1) * (size_in / size_out)
    first = np.floor(edges[:-1] + 1e-9).astype(np.int64)
    taps = int(np.max(np.ceil(edges[1:] - 1e-9).astype(np.int64) - first))
    indices = first + np.arange(taps)[:, None]
    covered = np.minimum(edges[1:], indices + 1) - np.maximum(edges[:-1], indices)
    weights = covered.clip(min=0)
    return indices.clip(max=size_in - 1), (weights / weights.sum(axis=0)).astype(np.float32)


def resize_images(images: np.ndarray, image_size: ImageSize) -> np.ndarray:
    """
    Resize frames by area interpolation (every source pixel counts by the area that it covers).

    :param images: (..., height, width) uint8
    :param image_size: (h, w), or None for no change
    :return: (..., h, w) uint8, rounded to the nearest value; the input itself if it has the size already
    """
    if image_size is None or images.shape[-2:] == tuple(image_size):
        return images
    resized = images.astype(np.float32)
    rows, row_weights = area_taps(images.shape[-2], image_size[0])
    resized = sum(resized[..., index, :] * weight[:, None] for index, weight in zip(rows, row_weights, strict=True))
    columns, column_weights = area_taps(images.shape[-1], image_size[1])
    resized = sum(resized[..., index] * weight for index, weight in zip(columns, column_weights, strict=True))
    return np.rint(resized).astype(np.uint8)


def to_stored(observation: NumpyObs, stored: Mapping[str, spaces.Box]) -> dict[str, np.ndarray]:
    """
    Bring a batch of the environment's observations into the stored form: dict, resized uint8 images, float32 vectors.

    :param observation: one array (n, *shape) or a dict of them, channel first, as a VecEnv gives them
    :param stored: the result of :func:`stored_spaces`
    :return: one array (n, *stored shape) per key; may share memory with the input
    :raises ValueError: for images that are not uint8 and for vectors that are not finite, naming environment and key
    """
    parts = observation if isinstance(observation, dict) else {OBSERVATION_KEY: observation}
    result = {}
    for key, space in stored.items():
        value = np.asarray(parts[key])
        if space.dtype == np.uint8:
            if value.dtype != np.uint8:
                raise ValueError(f"observation '{key}' has dtype {value.dtype}, expected uint8, as images have.")
            result[key] = resize_images(value, (space.shape[-2], space.shape[-1]))
        else:
            result[key] = _finite(value.reshape(-1, *space.shape), key)
    return result


def _finite(vectors: np.ndarray, key: str) -> np.ndarray:
    """As float32, in which a large float64 may be infinite; (n, size)."""
    with np.errstate(over="ignore"):
        result = vectors.astype(np.float32, copy=False)
    if not np.isfinite(result).all():
        env, index = np.argwhere(~np.isfinite(result))[0]
        raise ValueError(
            f"observation '{key}' of environment {env} is {vectors[env, index]} at index {index}, expected a finite float32."
        )
    return result


def action_size(space: spaces.Space) -> int:
    """
    Width A of the action vector that the world model sees.

    :param space: Discrete (one-hot) or Box (flattened)
    :raises ValueError: for any other space, and, as everywhere in SB3, for actions that do not count from 0
    """
    if isinstance(space, spaces.Discrete):
        if space.start != 0:
            raise ValueError(f"DreamerV2 does not support the action space {space}: SB3 needs start=0 (wrap the environment).")
        return int(space.n)
    if isinstance(space, spaces.Box):
        if not np.all(space.low < space.high):
            raise ValueError(f"Every action needs a range, but in {space} low is not below high ({space.low}, {space.high}).")
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
