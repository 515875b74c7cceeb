"""The counts of the replay buffer: which records each ring holds, and which of them begin and end episodes."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np


class Rings:
    """
    One ring of record numbers per environment.

    Records are numbered from 0 without end, so that nothing special happens when a ring wraps.

    :param buffer_size: records over all rings
    :param n_envs: number of rings
    """

    def __init__(self, buffer_size: int, n_envs: int) -> None:
        self._total_size, self._n_envs = int(buffer_size), n_envs
        self.capacity = max(self._total_size // n_envs, 1)  # of each ring
        self.clear()

    def clear(self) -> None:
        """Forget all records."""
        self.written = np.zeros(self._n_envs, dtype=np.int64)  # number that the next record gets
        self.starting = np.ones(self._n_envs, dtype=bool)  # whether the next step begins an episode
        self.ends: list[list[int]] = [[] for _ in range(self._n_envs)]  # records that end an episode, ascending
        self._lost = np.zeros(self._n_envs, dtype=np.int64)  # older records than this are lost, overwritten or not
        self.episode_first = np.zeros(self._n_envs, dtype=np.int64)  # first record of the latest episode
        self.holes: list[list[int]] = [[] for _ in range(self._n_envs)]  # records in between that are lost, ascending

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.holes = [[] for _ in state["ends"]]  # which older pickles do not have
        self.__dict__.update(state)

    def take_over(self, written: np.ndarray, first: np.ndarray, ends: list[list[int]], holes: Sequence[Sequence[int]]) -> None:
        """
        Count the records that a storage holds already.

        :param written: number that the next record of each ring gets, (n_envs,)
        :param first: number of the oldest record of each ring, (n_envs,)
        :param ends: for each ring, the records that end an episode, ascending
        :param holes: for each ring, records in between that are lost, ascending
        """
        self.clear()
        self.written, self._lost, self.ends = written.copy(), first.copy(), ends
        self.holes = [[number for number in ring if number < count] for ring, count in zip(holes, written, strict=True)]

    def leave_out(self, records: Sequence[tuple[int, int]]) -> None:
        """
        Never sample some records again.

        :param records: ring and number of each
        """
        for env, number in records:
            self.holes[env] = sorted({number, *(old for old in self.holes[env] if old >= self.first[env])})

    @property
    def first(self) -> np.ndarray:
        """Number of the oldest record of each ring, (n_envs,)."""
        return np.maximum(self._lost, self.written - self.capacity)

    @property
    def rows(self) -> np.ndarray:
        """Number of records in each ring, (n_envs,)."""
        return self.written - self.first

    def sampleable(self, running: bool) -> tuple[np.ndarray, np.ndarray]:
        """
        Records that may be sampled now.

        :param running: whether those of episodes that have not ended are among them
        :return: first and last (exclusive) of each ring, (n_envs,); the last is not larger where there is nothing
        """
        waiting = ~self.starting & (not running)
        return self.first, np.where(waiting, self.episode_first, self.written)

    def runs(self, running: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Runs of consecutive records that may be sampled now; a ring without holes has one.

        :param running: see :meth:`sampleable`
        :return: ring, first and last (exclusive) record of each, (n,); the last is not larger where there is nothing
        """
        first, end = self.sampleable(running)
        if not any(self.holes):
            return np.arange(self._n_envs), first, end
        found = []
        for env, (start, stop) in enumerate(zip(first.tolist(), end.tolist(), strict=True)):
            holes = self.holes[env]
            cuts = [start - 1, *holes[bisect_left(holes, start) : bisect_left(holes, stop)], stop]
            found += [(env, before + 1, after) for before, after in pairwise(cuts)]
        ring, first, end = np.array(found, dtype=np.int64).T
        return ring, first, end

    def count(self, running: bool = True) -> int:
        """Number of records in :meth:`runs`."""
        _, first, end = self.runs(running)
        return int(np.maximum(end - first, 0).sum())

    def append(self, envs: np.ndarray, done: np.ndarray) -> None:
        """
        Count one more record.

        :param envs: in these rings, (n,)
        :param done: whether it ends an episode, (n,)
        """
        for env in envs[done]:
            ends, number = self.ends[env], int(self.written[env])
            ends.append(number)
            overwritten = bisect_left(ends, number - self.capacity + 1)
            if 2 * overwritten > len(ends):  # seldom enough to cost nothing, often enough to stay small
                del ends[:overwritten]
        self.written[envs] += 1

    def lose_next_rows(self) -> None:
        """Give up the records that the next ones would overwrite, after a write that failed halfway."""
        self._lost = np.maximum(self._lost, self.written + 1 - self.capacity)

    def episodes(self) -> list[tuple[int, int, int]]:
        """
        List the episodes, whole or in part.

        :return: ring, first and last record (exclusive) of each, the oldest first
        """
        found, newest = [], self.written.tolist()
        for env, first, end in zip(*(part.tolist() for part in self.runs(True)), strict=True):
            cuts = [first, *(last + 1 for last in self.ends[env] if first <= last < end), end]
            found += [(env, start, stop) for start, stop in pairwise(cuts) if stop > start]
        return sorted(found, key=lambda part: part[1] - newest[part[0]])

    def draw_windows(
        self, random: np.random.Generator, batch_size: int, batch_length: int, running: bool, prioritize_ends: bool
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """
        Choose ring and first record of every sub-sequence.

        All of a ring's masses lie on one line: one unit for each window, then ``length`` units for each window that ends with
        an episode. All of them are integers, so every window has exactly its mass.

        :param random: source of the numbers
        :param batch_size: number of sub-sequences, B
        :param batch_length: records per sub-sequence; fewer as long as no ring has enough of them
        :param running: see :meth:`sampleable`
        :param prioritize_ends: whether windows that end with an episode have the extra mass
        :return: rings and numbers of the first records, both (B,), and records per sub-sequence, T
        :raises ValueError: if no ring can ever hold so many, or none has a record yet
        """
        ring, first, end = self.runs(running)
        length = self._usable_length(batch_length, int((end - first).max()))
        windows = np.maximum(end - first - length + 1, 0)
        earliest = np.array([bisect_left(self.ends[env], last) for env, last in zip(ring, first + length - 1, strict=True)])
        latest = np.array([bisect_left(self.ends[env], last) for env, last in zip(ring, end, strict=True)])
        mass = windows + (length * np.maximum(latest - earliest, 0) if prioritize_ends else 0)
        edges = np.cumsum(mass)

        units = random.integers(edges[-1], size=batch_size)
        run = np.searchsorted(edges, units, side="right")
        units -= (edges - mass)[run]
        starts = first[run] + units
        for b in np.flatnonzero(units >= windows[run]):
            chosen = run[b]
            index = earliest[chosen] + (units[b] - windows[chosen]) // length
            starts[b] = self.ends[ring[chosen]][index] - length + 1
        return ring[run], starts, length

    def _usable_length(self, batch_length: int, longest: int) -> int:
        if not 1 <= batch_length <= self.capacity:
            raise ValueError(
                f"batch_length={batch_length} does not fit the replay buffer: buffer_size={self._total_size} over "
                f"n_envs={self._n_envs} environments holds {self.capacity} records of each. Choose a batch_length from 1 to "
                f"{self.capacity}, a larger buffer_size or fewer environments."
            )
        if longest < 1:
            count = self.count()
            waiting = " (with sample_running=False they become available when their episode ends)" if count else ""
            raise ValueError(f"The replay buffer has {count} records, none of which can be sampled yet{waiting}.")
        return min(batch_length, longest)
