"""
Resizing of images, and actions as the world model sees them.

Images are resized once, on entry to the policy and to the buffer: both call :func:`resize_images`, hence see the same bytes.
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
def _area_taps(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Area interpolation along one axis: ``out[i] = sum over k of weights[k, i] * x[indices[k, i]]``.

    Indices and float32 weights are both (taps, size_out) and cached: do not change them. BLAS would wake all its threads for
    such a small product, and in PyTorch's "area" mode neighboring windows overlap.
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
    Resize images by area interpolation: every source pixel is weighted by the area that it covers.

    :param images: (..., height, width) uint8
    :param image_size: (h, w), or None for no change
    :return: (..., h, w) uint8, rounded to the nearest value; the input itself if it already has this size
    """
    if image_size is None or images.shape[-2:] == tuple(image_size):
        return images
    resized = images.astype(np.float32)
    rows, row_weights = _area_taps(images.shape[-2], image_size[0])
    resized = sum(resized[..., index, :] * weight[:, None] for index, weight in zip(rows, row_weights, strict=True))
    columns, column_weights = _area_taps(images.shape[-1], image_size[1])
    resized = sum(resized[..., index] * weight for index, weight in zip(columns, column_weights, strict=True))
    return np.rint(resized).astype(np.uint8)


@lru_cache(maxsize=64)
def _area_tensors(size_in: int, size_out: int, device: th.device) -> tuple[th.Tensor, th.Tensor]:
    """Results of :func:`_area_taps` as tensors; cached, do not change them."""
    indices, weights = _area_taps(size_in, size_out)
    return th.as_tensor(indices, device=device), th.as_tensor(weights, device=device)


def resize_tensor(images: th.Tensor, image_size: tuple[int, ...]) -> th.Tensor:
    """
    Resize images of floats by the same interpolation, without rounding.

    :param images: (..., height, width)
    :param image_size: (h, w)
    :return: (..., h, w); the input itself if it already has this size
    """
    for dim, size in ((-2, image_size[0]), (-1, image_size[1])):
        if images.shape[dim] == size:
            continue
        indices, weights = _area_tensors(images.shape[dim], size, images.device)
        shape = (size, 1) if dim == -2 else (size,)
        taps = [
            images.index_select(dim, index) * weight.reshape(shape) for index, weight in zip(indices, weights, strict=True)
        ]
        images = th.stack(taps).sum(0)
    return images


def action_blocks(space: spaces.Space) -> tuple[int, ...] | None:
    """
    Sizes of the one-hot vectors that an action consists of.

    :param space: an action space
    :return: Discrete (n,), MultiDiscrete its nvec, MultiBinary (2, 2, ...); None for Box, whose values are used directly
    :raises ValueError: for any other space, for unbounded or empty ones, and, as everywhere in SB3, if ``start`` is not 0
    """
    if 0 in (space.shape or ()):
        raise _unsupported(space, "it is of size zero, so there is nothing to choose")
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        if np.any(np.asarray(space.start) != 0):
            raise _unsupported(space, "SB3 needs start=0 (wrap the environment)")
        return (int(space.n),) if isinstance(space, spaces.Discrete) else tuple(int(n) for n in space.nvec.reshape(-1))
    if isinstance(space, spaces.MultiBinary):
        return (2,) * int(np.prod(space.shape))
    if not isinstance(space, spaces.Box):
        raise _unsupported(space, "it takes Discrete, MultiDiscrete, MultiBinary and bounded Box spaces")
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        reason = f"it is unbounded (low {space.low}, high {space.high}), but actions are scaled to [-1, 1]"
        raise _unsupported(space, f"{reason}. Give it bounds, e.g. with gymnasium.wrappers.RescaleAction or TransformAction")
    if not np.all(space.low < space.high):
        raise _unsupported(space, f"low must be below high in every dimension (low {space.low}, high {space.high})")
    return None


def _unsupported(space: spaces.Space, reason: str) -> ValueError:
    return ValueError(f"sb3_dreamer does not support the action space {space}: {reason}.")


def action_dim(space: spaces.Space) -> int:
    """
    Count the numbers in an action of the environment; unlike in SB3, spaces may have any rank.

    :param space: an action space that :func:`action_blocks` supports
    :return: number of one-hot vectors, or size of the Box
    """
    return math.prod(space.shape)  # type: ignore[arg-type]


def action_size(space: spaces.Space) -> int:
    """
    Width A of the action vector that the world model sees.

    :param space: an action space
    :return: size of all one-hot vectors together, or of the Box
    :raises ValueError: see :func:`action_blocks`
    """
    blocks = action_blocks(space)
    return action_dim(space) if blocks is None else sum(blocks)


def encode_actions(actions: th.Tensor, space: spaces.Space) -> th.Tensor:
    """
    Convert buffer actions to world-model vectors.

    :param actions: Box: values scaled to [-1, 1], flat; otherwise indices, one per block, (..., blocks)
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
    Convert world-model vectors to actions of the environment.

    :param vectors: (n, A) one-hot, or values in [-1, 1]
    :param space: the action space
    :return: (n, *shape) in the space's own bounds and dtype
    """
    blocks = action_blocks(space)
    if blocks is not None:
        indices = th.stack([block.argmax(dim=-1) for block in vectors.split(blocks, dim=-1)], dim=-1)
        return indices.cpu().numpy().reshape(-1, *space.shape).astype(space.dtype)  # type: ignore[misc, arg-type]
    assert isinstance(space, spaces.Box)
    values, (low, high) = vectors.cpu().numpy().reshape(-1, *space.shape), _float_bounds(space)
    actions = np.clip(low + 0.5 * (values + 1.0) * (high - low), low, high)
    return (np.rint(actions) if np.issubdtype(space.dtype, np.integer) else actions).astype(space.dtype)


def scale_actions(actions: np.ndarray, space: spaces.Box) -> np.ndarray:
    """
    Scale actions of a Box to [-1, 1]: the inverse of :func:`decode_actions`.

    :param actions: in the space's own bounds, (n, *shape)
    :param space: the action space
    :return: buffer actions, (n, *shape) float32
    """
    low, high = _float_bounds(space)
    return (2.0 * (actions - low) / (high - low) - 1.0).astype(np.float32)


def _float_bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """Low and high as float64, in which the range of a small integer type does not overflow."""
    return space.low.astype(np.float64), space.high.astype(np.float64)
