"""
Where the replay buffer keeps its records: named arrays of layout (n_envs, capacity, *shape).

With time as the second axis a sub-sequence of one environment is one slice, one read, one chunk. A storage knows
neither episodes nor write positions; whoever owns it says which rows are in use.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Field(NamedTuple):
    """What one record holds under one name."""

    shape: tuple[int, ...]
    dtype: np.dtype


class RamStorage:
    """
    Records in main memory, one ring per environment.

    The arrays are allocated at the first write, as untouched zero pages: the operating system gives real memory row by
    row, when it is written.

    :param fields: shape and dtype of a record, per name
    :param n_envs: number of rings
    :param capacity: records per ring
    """

    def __init__(self, fields: Mapping[str, Field], n_envs: int, capacity: int) -> None:
        self._fields = dict(fields)
        self._n_envs = n_envs
        self._capacity = capacity
        self._arrays: dict[str, np.ndarray] = {}

    @property
    def allocated(self) -> bool:
        """Whether the arrays exist."""
        return bool(self._arrays)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays when every ring is full; computed, not measured."""
        record = sum(field.dtype.itemsize * int(np.prod(field.shape)) for field in self._fields.values())
        return record * self._n_envs * self._capacity

    def view(self, name: str) -> np.ndarray:
        """
        The array itself, to read.

        :param name: name of a field
        :return: (n_envs, capacity, *shape), or (n_envs, 0, *shape) as long as nothing is allocated
        """
        if self._arrays:
            return self._arrays[name]
        field = self._fields[name]
        return np.zeros((self._n_envs, 0, *field.shape), dtype=field.dtype)

    def write(self, envs: np.ndarray, positions: np.ndarray, records: Mapping[str, np.ndarray]) -> None:
        """
        Copy one record into each of some rings.

        :param envs: the rings, (n,)
        :param positions: the row in each of them, (n,)
        :param records: one array (n, *shape) for every field
        """
        if not self._arrays:
            self._arrays = {name: self._allocate(field) for name, field in self._fields.items()}
        for name, array in self._arrays.items():
            array[envs, positions] = records[name]

    def read(self, envs: np.ndarray, starts: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """
        Copy sub-sequences, which may run over the end of the arrays to their beginning.

        :param envs: the ring of each sub-sequence, (B,)
        :param starts: its first row, (B,)
        :param length: rows per sub-sequence, T, at most the capacity
        :return: one new array (T, B, *shape) per field
        """
        windows = list(zip(envs.tolist(), starts.tolist(), strict=True))
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

    def pack(self, rows: Sequence[int]) -> dict[str, list[np.ndarray]]:
        """
        The rows in use, as contiguous views: pickle (protocol 5) streams these to a file without a copy.

        :param rows: how many rows of each ring are in use, counted from row 0
        :return: per field one array for each ring, or, when all rings are full, one for all of them together
        """
        if all(count == self._capacity for count in rows):
            return {name: [array] for name, array in self._arrays.items()}
        return {name: [array[env, :count] for env, count in enumerate(rows)] for name, array in self._arrays.items()}

    def unpack(self, packed: dict[str, list[np.ndarray]]) -> None:
        """
        Take over what :meth:`pack` returned. Full rings are adopted as they are, others copied field by field.

        :param packed: emptied on the way, so that its arrays can be freed
        """
        while packed:
            name, parts = packed.popitem()
            if parts[0].shape == (self._n_envs, self._capacity, *self._fields[name].shape):
                self._arrays[name] = parts[0]
                continue
            array = self._allocate(self._fields[name])
            for env, part in enumerate(parts):
                array[env, : len(part)] = part
            self._arrays[name] = array

    def _allocate(self, field: Field) -> np.ndarray:
        return np.zeros((self._n_envs, self._capacity, *field.shape), dtype=field.dtype)
