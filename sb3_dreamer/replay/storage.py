"""
Where the replay buffer keeps its records: named arrays of layout (n_envs, capacity, *shape).

With time as the second axis a sub-sequence of one environment is one slice, one read, one chunk.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class RecordStorage(ABC):
    """
    One ring of records per environment. A ring numbers its records from 0, and record n is in row ``n % capacity``.

    A storage knows no episodes; :class:`~sb3_dreamer.replay.rings.Rings` knows which records may be read.

    :param row: names, dtypes and shapes of the fields of a record
    :param n_envs: number of rings
    :param capacity: records per ring
    """

    def __init__(self, row: np.dtype, n_envs: int, capacity: int) -> None:
        self._row, self._n_envs, self._capacity = row, n_envs, capacity

    @property
    def nbytes(self) -> int:
        """Bytes of all records when every ring is full, before compression; computed, not measured."""
        return self._row.itemsize * self._n_envs * self._capacity

    @abstractmethod
    def view(self, name: str) -> np.ndarray:
        """
        One field of all rows, to read; copied only if the records are compressed.

        :param name: of the field
        :return: (n_envs, capacity, *shape), or (n_envs, 0, *shape) as long as nothing is allocated
        """

    @abstractmethod
    def write(self, envs: np.ndarray, numbers: np.ndarray, records: Mapping[str, np.ndarray]) -> None:
        """
        Append one record to each of some rings.

        :param envs: the rings, (n,)
        :param numbers: of the records, which follow the newest of their rings, (n,)
        :param records: one array (n, *shape) for every field
        :raises OSError: if the disk is full; none of the records counts then
        """

    @abstractmethod
    def read(self, envs: np.ndarray, numbers: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """
        Copy sub-sequences.

        :param envs: the ring of each sub-sequence, (B,)
        :param numbers: of its first record, (B,)
        :param length: records per sub-sequence, T, at most the capacity
        :return: one new array (T, B, *shape) per field
        :raises DamageError: if one of the records is not what was written
        """

    @abstractmethod
    def clear(self) -> None:
        """Forget all records; memory once allocated, and files, are kept."""

    @abstractmethod
    def pack(self, rows: Sequence[int]) -> Any:
        """
        What a pickle needs to have the records again.

        :param rows: number of records in each ring
        :return: the records themselves, or where they end in the folder
        """

    @abstractmethod
    def unpack(self, packed: Any) -> None:
        """
        Take over what :meth:`pack` returned.

        :param packed: emptied on the way, so that its arrays can be freed
        :raises StorageError: if the folder has lost these records
        """

    def damaged(self) -> list[tuple[int, int]]:
        """
        Compare everything on the disk with its checksums.

        :return: ring and number of every record that is not what was written, besides those that are known to be lost
        """
        return []

    @abstractmethod
    def leave_out(self, records: Sequence[tuple[int, int]], for_good: bool = False) -> None:
        """
        Treat records as lost.

        :param records: ring and number of each
        :param for_good: whether they are erased on the disk, too; their rows stay empty until the ring comes round to them
        """


class RamStorage(RecordStorage):
    """
    Records in main memory.

    The arrays are allocated at the first write, as untouched zero pages: the operating system gives real memory row by
    row, when it is written.
    """

    def __init__(self, row: np.dtype, n_envs: int, capacity: int) -> None:
        super().__init__(row, n_envs, capacity)
        self._arrays: dict[str, np.ndarray] = {}

    def view(self, name: str) -> np.ndarray:
        return self._arrays[name] if self._arrays else self._zeros(name, 0)

    def write(self, envs: np.ndarray, numbers: np.ndarray, records: Mapping[str, np.ndarray]) -> None:
        if not self._arrays:
            self._arrays = {name: self._zeros(name, self._capacity) for name in self._row.names or ()}
        rows = numbers % self._capacity
        for name, array in self._arrays.items():
            array[envs, rows] = records[name]

    def read(self, envs: np.ndarray, numbers: np.ndarray, length: int) -> dict[str, np.ndarray]:
        windows = list(zip(envs.tolist(), (numbers % self._capacity).tolist(), strict=True))
        result = {}
        for name, array in self._arrays.items():
            target = np.empty((length, len(windows), *array.shape[2:]), dtype=array.dtype)
            for column, (env, start) in enumerate(windows):
                head = min(length, self._capacity - start)
                target[:head, column] = array[env, start : start + head]
                if head < length:
                    target[head:, column] = array[env, : length - head]
            result[name] = target
        return result

    def clear(self) -> None:
        pass  # rows are overwritten, never read before

    def leave_out(self, records: Sequence[tuple[int, int]], for_good: bool = False) -> None:
        pass  # nothing is read that the rings do not count

    def pack(self, rows: Sequence[int]) -> dict[str, list[np.ndarray]]:
        # Contiguous views, of each ring or of all if they are full: pickle (protocol 5) streams them to a file without a copy
        if all(count == self._capacity for count in rows):
            return {name: [array] for name, array in self._arrays.items()}
        return {name: [array[env, :count] for env, count in enumerate(rows)] for name, array in self._arrays.items()}

    def unpack(self, packed: dict[str, list[np.ndarray]]) -> None:
        while packed:
            name, parts = packed.popitem()
            if parts[0].shape == (self._n_envs, self._capacity, *self._row[name].shape):
                self._arrays[name] = parts[0]  # of full rings, adopted without a copy
                continue
            self._arrays[name] = self._zeros(name, self._capacity)
            for env, part in enumerate(parts):
                self._arrays[name][env, : len(part)] = part

    def _zeros(self, name: str, rows: int) -> np.ndarray:
        return np.zeros((self._n_envs, rows, *self._row[name].shape), dtype=self._row[name].base)
