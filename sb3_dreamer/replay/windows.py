"""Which sub-sequences a replay buffer may return, and how likely each of them is."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class RecordRange(NamedTuple):
    """Records that may be sampled, per environment, counted since the first one ever written."""

    first: np.ndarray  # (n_envs,)
    end: np.ndarray  # (n_envs,) exclusive; not larger than ``first`` where there is nothing


def draw_windows(
    random: np.random.Generator,
    batch_size: int,
    length: int,
    records: RecordRange,
    ends: Sequence[list[int]],
    prioritize_ends: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Choose ring and first record of every sub-sequence.

    All of a ring's masses lie on one line: one unit for each window, then ``length`` units for each window that ends with an
    episode. Integers throughout, so every window has exactly its mass.

    :param random: where the numbers come from
    :param batch_size: number of sub-sequences, B
    :param length: records of each, T
    :param records: that may be used
    :param ends: of every ring the records that end an episode, ascending; older ones than the range may be there
    :param prioritize_ends: whether windows that end with an episode have the extra mass
    :return: rings and numbers of the first records, both (B,)
    """
    first, end = records
    windows = np.maximum(end - first - length + 1, 0)
    earliest = [bisect_left(ring, start + length - 1) for ring, start in zip(ends, first.tolist(), strict=True)]
    ended = np.array([len(ring) - index for ring, index in zip(ends, earliest, strict=True)])
    mass = windows + (length * ended if prioritize_ends else 0)
    edges = np.cumsum(mass)

    units = random.integers(edges[-1], size=batch_size)
    envs = np.searchsorted(edges, units, side="right")
    units -= (edges - mass)[envs]
    starts = first[envs] + units
    for b in np.flatnonzero(units >= windows[envs]):
        env = envs[b]
        index = earliest[env] + (units[b] - windows[env]) // length
        starts[b] = ends[env][index] - length + 1
    return envs, starts
