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


def usable_length(batch_length: int, records: RecordRange, count: int, capacity: int, total_size: int) -> int:
    """
    The wanted length of sub-sequences, or the longest that there is so far.

    :param batch_length: wanted
    :param records: that may be used
    :param count: of all records, those that may not be used included
    :param capacity: of each ring
    :param total_size: ``buffer_size`` as the user gave it
    :return: records per sub-sequence
    :raises ValueError: if no ring can ever hold so many, or there is nothing yet
    """
    if not 1 <= batch_length <= capacity:
        raise ValueError(
            f"batch_length={batch_length} does not fit the replay buffer: buffer_size={total_size} over "
            f"n_envs={len(records.first)} environments holds {capacity} records of each. Choose a batch_length from 1 to "
            f"{capacity}, a larger buffer_size or fewer environments."
        )
    longest = int((records.end - records.first).max())
    if longest < 1:
        waiting = " (with sample_running=False it waits for the end of an episode)" if count else ""
        raise ValueError(f"The replay buffer has {count} records, none of which can be sampled yet{waiting}.")
    return min(batch_length, longest)
