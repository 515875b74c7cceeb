"""
Latent states beside the records of a replay buffer (V3): what the world model thought when it last saw a record.

They change with every update, so they are in a ring of their own, and no checksum covers them. Each row says whose it is: a
row that belongs to another record, or to an earlier life of the buffer, counts as missing.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from torch.nn import functional as F

from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.replay.rows import RingFile


class StateSizes(NamedTuple):
    """
    Sizes of a latent state with one-hot variables.

    A stored state takes 2 bytes for each number of h, 1 for each variable of z, and 8 more: 1,064 bytes at V3's size 1m. h
    lies in [-1, 1], where 16 bits are exact to 0.0005; V3's code stores what it computed in bfloat16, which is exact to 0.004.
    """

    deterministic: int  # D
    variables: int  # S
    classes: int  # K

    @property
    def row(self) -> np.dtype:
        """Layout of a stored state: whose it is, h, and the class of each variable of z."""
        index = np.uint8 if self.classes <= 256 else np.uint16
        return np.dtype([("tag", "<u8"), ("h", "<f2", (self.deterministic,)), ("z", index, (self.variables,))])

    def to_rows(self, states: LatentState) -> np.ndarray:
        """
        Convert states to rows without tags.

        :param states: (..., D) and one-hot (..., S * K)
        :return: (...)
        """
        h, z = states.deterministic.detach(), states.stochastic.detach()
        rows = np.zeros(tuple(h.shape[:-1]), self.row)
        rows["h"] = h.to(th.float16).cpu().numpy()
        rows["z"] = z.unflatten(-1, (self.variables, self.classes)).argmax(-1).cpu().numpy()
        return rows

    def to_states(self, rows: np.ndarray, to_device: Callable[[np.ndarray], th.Tensor]) -> LatentState:
        """
        Invert :meth:`to_rows`.

        :param rows: (n,)
        :param to_device: from arrays to tensors
        :return: (n, D) and (n, S * K), float32
        """
        h, z = to_device(rows["h"].astype(np.float16)), to_device(rows["z"].astype(np.int64))
        return LatentState(h.float(), F.one_hot(z, self.classes).flatten(-2).float())


class StateStorage(ABC):
    """
    One ring of states per ring of records.

    :param sizes: of the states
    :param n_envs: number of rings
    :param capacity: records per ring
    """

    def __init__(self, sizes: StateSizes, n_envs: int, capacity: int) -> None:
        self.sizes, self._n_envs, self._capacity = sizes, n_envs, capacity
        self._identity = np.uint64(0)

    @property
    def nbytes(self) -> int:
        """Bytes of all states when every ring is full."""
        return self.sizes.row.itemsize * self._n_envs * self._capacity

    def write(self, env: int, first: int, rows: np.ndarray) -> None:
        """
        Store states of consecutive records.

        :param env: ring of the records
        :param first: number of the first record
        :param rows: of :meth:`StateSizes.to_rows`, (n,), n at most the capacity
        :raises OSError: if the disk is full
        """
        numbers = first + np.arange(len(rows))
        tagged = rows.copy()
        tagged["tag"] = self._tags(numbers)
        head = min(len(rows), self._capacity - first % self._capacity)
        self._put(env, first % self._capacity, tagged[:head])
        if head < len(rows):
            self._put(env, 0, tagged[head:])

    def read(self, envs: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Read states of single records.

        :param envs: rings of the records, (n,)
        :param numbers: of the records, (n,)
        :return: rows, (n,), and whether there is none, (n,) bool
        """
        places = zip(envs.tolist(), (numbers % self._capacity).tolist(), strict=True)
        rows = np.concatenate([self._get(env, place) for env, place in places])
        damaged = ~np.isfinite(rows["h"]).all(-1) | (rows["z"] >= self.sizes.classes).any(-1)
        unknown = (rows["tag"] != self._tags(numbers)) | damaged
        rows[unknown] = np.zeros((), rows.dtype)
        return rows, unknown

    def _tags(self, numbers: np.ndarray) -> np.ndarray:
        """Say whose rows are: never 0, which is what an empty ring holds."""
        return (numbers + 1).astype(np.uint64) ^ self._identity

    @abstractmethod
    def clear(self, identity: int) -> None:
        """
        Forget all states.

        :param identity: of the emptied buffer
        """

    @abstractmethod
    def pack(self, counts: list[int]) -> Any:
        """
        What a pickle needs to have the states again.

        :param counts: number of records in each ring
        """

    @abstractmethod
    def unpack(self, packed: Any) -> None:
        """Take over what :meth:`pack` returned."""

    @abstractmethod
    def _put(self, env: int, place: int, rows: np.ndarray) -> None:
        """Write rows that do not wrap, (n,)."""

    @abstractmethod
    def _get(self, env: int, place: int) -> np.ndarray:
        """One row, (1,)."""


class RamStates(StateStorage):
    """States in memory, which the operating system gives row by row as they are written."""

    def __init__(self, sizes: StateSizes, n_envs: int, capacity: int) -> None:
        super().__init__(sizes, n_envs, capacity)
        self._rows = np.zeros((n_envs, capacity), sizes.row)

    def clear(self, identity: int) -> None:
        self._rows = np.zeros(self._rows.shape, self._rows.dtype)  # untouched pages, instead of writing all of them

    def pack(self, counts: list[int]) -> list[np.ndarray]:
        return [self._rows[env, :count] for env, count in enumerate(counts)]

    def unpack(self, packed: list[np.ndarray]) -> None:
        for env, rows in enumerate(packed):
            self._rows[env, : len(rows)] = rows

    def _put(self, env: int, place: int, rows: np.ndarray) -> None:
        self._rows[env, place : place + len(rows)] = rows

    def _get(self, env: int, place: int) -> np.ndarray:
        return self._rows[env, place : place + 1]


class DiskStates(StateStorage):
    """
    States in a file of the folder of a :class:`~sb3_dreamer.replay.disk_storage.DiskStorage`, which keeps other processes out.

    The file belongs to one size of model, so models of several sizes may use the same records one after the other.

    :param sizes: of the states
    :param n_envs: number of rings
    :param capacity: records per ring
    :param folder: of the records
    :param identity: of the buffer in this folder
    :raises PermissionError: if this process cannot write there
    """

    def __init__(self, sizes: StateSizes, n_envs: int, capacity: int, folder: Path, identity: int) -> None:
        super().__init__(sizes, n_envs, capacity)
        self._identity = np.uint64(identity)
        name = "states_{}_{}x{}.bin".format(*sizes)
        self._file = RingFile(sizes.row, n_envs, capacity)
        self._file.name = name
        self._descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        if os.fstat(self._descriptor).st_size != self.nbytes:
            os.ftruncate(self._descriptor, self.nbytes)  # sparse: a row takes disk space when it is written
        self._file.open({name: self._descriptor})

    def clear(self, identity: int) -> None:
        self._identity = np.uint64(identity)  # with which no row counts any longer

    def pack(self, counts: list[int]) -> None:
        return None

    def unpack(self, packed: None) -> None:
        pass  # they are in the file

    def _put(self, env: int, place: int, rows: np.ndarray) -> None:
        self._file.write(env, place, rows.tobytes())

    def _get(self, env: int, place: int) -> np.ndarray:
        return self._file.read(env, place, 1).copy()

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            os.close(descriptor)
