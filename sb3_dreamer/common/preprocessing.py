"""
Frames of another size, and actions as the world model sees them.

Frames are resized once, by :func:`resize_images`, on entry to the policy and to the buffer, to the same bytes.
"""

import math
from functools import lru_cache

import numpy as np
import torch as th
from gymnasium import spaces
from torch.nn import functional as F

ImageSize = tuple[int, int] | None
NumpyObs = np.ndarray | dict[str, np.ndarray]


@lru_cache(maxsize=64)
def area_taps(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Area interpolation along one axis: ``out[i] = sum over k of weights[k, i] * x[indices[k, i]]``.

    Few taps by hand, because BLAS would wake all its threads for such a small product, and PyTorch's "area" mode lets
    neighboring windows overlap.

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


@lru_cache(maxsize=64)
def area_tensors(size_in: int, size_out: int, device: th.device) -> tuple[th.Tensor, th.Tensor]:
    """
    :param size_in: pixels before
    :param size_out: pixels after
    :param device: of the result
    :return: :func:`area_taps` as tensors; shared, do not change them
    """
    indices, weights = area_taps(size_in, size_out)
    return th.as_tensor(indices, device=device), th.as_tensor(weights, device=device)


def resize_tensor(images: th.Tensor, image_size: tuple[int, ...]) -> th.Tensor:
    """
    The same interpolation for floats, without rounding.

    :param images: (..., height, width)
    :param image_size: (h, w)
    :return: (..., h, w); the input itself if it has the size already
    """
    for dim, size in ((-2, image_size[0]), (-1, image_size[1])):
        if images.shape[dim] == size:
            continue
        indices, weights = area_tensors(images.shape[dim], size, images.device)
        shape = (size, 1) if dim == -2 else (size,)
        taps = [
            images.index_select(dim, index) * weight.reshape(shape) for index, weight in zip(indices, weights, strict=True)
        ]
        images = th.stack(taps).sum(0)
    return images


def action_blocks(space: spaces.Space) -> tuple[int, ...] | None:
    """
    Sizes of the one-hot vectors that an action is made of.

    :param space: an action space
    :return: Discrete (n,), MultiDiscrete its nvec, MultiBinary (2, 2, ...); None for Box, whose values are used as they are
    :raises ValueError: for any other space, and, as everywhere in SB3, for actions that do not count from 0
    """
    if 0 in (space.shape or ()):
        raise ValueError(f"DreamerV2 does not support the action space {space}: it is of size zero, with nothing to choose.")
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        if np.any(np.asarray(space.start) != 0):
            raise ValueError(f"DreamerV2 does not support the action space {space}: SB3 needs start=0 (wrap the environment).")
        return (int(space.n),) if isinstance(space, spaces.Discrete) else tuple(int(n) for n in space.nvec.reshape(-1))
    if isinstance(space, spaces.MultiBinary):
        return (2,) * int(np.prod(space.shape))
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"DreamerV2 does not support the action space {space}: it takes Discrete, MultiDiscrete, MultiBinary and bounded "
            "Box spaces."
        )
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(
            f"DreamerV2 does not support the action space {space}: it is unbounded (low {space.low}, high {space.high}), and "
            "actions are scaled to [-1, 1]. Give it bounds, e.g. with gymnasium.wrappers.RescaleAction or TransformAction."
        )
    if not np.all(space.low < space.high):
        raise ValueError(f"Every action needs a range, but in {space} low is not below high ({space.low}, {space.high}).")
    return None


def action_dim(space: spaces.Space) -> int:
    """
    Numbers that an action of the environment consists of; unlike in SB3, spaces of any rank have one.

    :param space: an action space that :func:`action_blocks` takes
    :return: one for each one-hot vector, or the size of the Box
    """
    return math.prod(space.shape)  # type: ignore[arg-type]


def action_size(space: spaces.Space) -> int:
    """
    Width A of the action vector that the world model sees.

    :param space: an action space
    :return: all one-hot vectors side by side, or the flattened Box
    :raises ValueError: see :func:`action_blocks`
    """
    blocks = action_blocks(space)
    return action_dim(space) if blocks is None else sum(blocks)


def encode_actions(actions: th.Tensor, space: spaces.Space) -> th.Tensor:
    """
    Buffer actions to world-model vectors.

    :param actions: Box: values scaled to [-1, 1], flat; otherwise indices, one for each block, (..., blocks)
    :param space: the action space
    :return: (..., A) float32, one-hot or flat values
    """
    blocks = action_blocks(space)
    if blocks is None:
        return actions.float()
    hot = [F.one_hot(actions[..., index].long(), size) for index, size in enumerate(blocks)]
    return th.cat(hot, dim=-1).float()


def decode_actions(vectors: th.Tensor, space: spaces.Space) -> np.ndarray:
    """
    World-model vectors to the environment's actions.

    :param vectors: (n, A) one-hot, or values in [-1, 1]
    :param space: the action space
    :return: (n, *shape) in the space's own bounds and dtype
    """
    blocks = action_blocks(space)
    if blocks is not None:
        indices = th.stack([block.argmax(dim=-1) for block in vectors.split(blocks, dim=-1)], dim=-1)
        return indices.cpu().numpy().reshape(-1, *space.shape).astype(space.dtype)  # type: ignore[misc, arg-type]
    assert isinstance(space, spaces.Box)
    values, (low, high) = vectors.cpu().numpy().reshape(-1, *space.shape), float_bounds(space)
    actions = np.clip(low + 0.5 * (values + 1.0) * (high - low), low, high)
    return (np.rint(actions) if np.issubdtype(space.dtype, np.integer) else actions).astype(space.dtype)


def scale_actions(actions: np.ndarray, space: spaces.Box) -> np.ndarray:
    """
    The inverse of :func:`decode_actions` for a Box.

    :param actions: in the space's own bounds, (n, *shape)
    :return: buffer actions, in [-1, 1], (n, *shape) float32
    """
    low, high = float_bounds(space)
    return (2.0 * (actions - low) / (high - low) - 1.0).astype(np.float32)


def float_bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """
    :param space: with bounds
    :return: low and high as float64, in which the range of a small integer type does not overflow
    """
    return space.low.astype(np.float64), space.high.astype(np.float64)
