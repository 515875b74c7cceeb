"""The index of the replay buffer on disk: which record a row holds, and whether it counts."""

import zlib

import numpy as np

from sb3_dreamer.replay.rows import read_at, write_at

INDEX = np.dtype([("number", "<i8"), ("checksum", "<u4"), ("flags", "u1"), ("unused", "u1", (3,))])
FLAGS = ("done", "timeout", "episode_start")
PIECE = 1 << 14  # entries that are read together
#: Of no record, from the first byte on
NOTHING = np.array([(-1, 0, 0, (0, 0, 0))], dtype=INDEX).tobytes()


class RecordIndex:
    """
    Rings of entries in ``index.bin``, one for every record: its number, a checksum of it, and flags.

    :param n_envs: number of rings
    :param capacity: entries of each
    """

    def __init__(self, n_envs: int, capacity: int) -> None:
        self._capacity, self.size = capacity, INDEX.itemsize * n_envs * capacity  # in bytes
        self._file = -1

    def open(self, descriptor: int) -> None:
        """
        :param descriptor: of the file
        """
        self._file = descriptor

    def write(self, env: int, number: int, content: bytes, flags: int) -> None:
        """
        :param env: a ring
        :param number: of the record
        :param content: of the record
        :param flags: bits in the order of ``FLAGS``
        :raises OSError: if the disk is full
        """
        entry = np.zeros((), dtype=INDEX)
        entry["number"], entry["checksum"], entry["flags"] = number, checksum(content, number, flags), flags
        write_at(self._file, entry.tobytes(), self._place(env, number))

    def erase(self, env: int, number: int) -> None:
        """
        :param env: a ring
        :param number: of a record that no longer counts, or of any other that has the same place
        """
        write_at(self._file, NOTHING, self._place(env, number))

    def entries(self, env: int, numbers: np.ndarray) -> np.ndarray:
        """
        :param env: a ring
        :param numbers: of records
        :return: what is in their places, perhaps of others
        """
        ring = np.frombuffer(read_at(self._file, self._capacity * INDEX.itemsize, self._place(env, 0)), INDEX)
        return ring[numbers % self._capacity]

    def fits(self, env: int, number: int, content: bytes) -> bool:
        """
        :param env: a ring
        :param number: of a record
        :param content: that it may have
        :return: whether it is the one that was written
        """
        entry = self._entry(env, number)
        return bool(entry["number"] == number and entry["checksum"] == checksum(content, number, int(entry["flags"])))

    def has(self, env: int, number: int) -> bool:
        """
        :param env: a ring
        :param number: of a record
        :return: whether there is an entry for it
        """
        entry = self._entry(env, number)
        return bool(entry["number"] == number and entry["checksum"] != 0)

    def checksum(self, env: int, number: int) -> int:
        """
        :param env: a ring
        :param number: of a record
        :return: of its entry; 0 if it has none
        """
        return int(self._entry(env, number)["checksum"]) if number >= 0 and self.has(env, number) else 0

    def oldest(self, env: int, count: int) -> int:
        """
        :param env: a ring
        :param count: of records that have ever been written
        :return: number of the first after the last one that has been overwritten
        """
        numbers = np.arange(max(0, count - self._capacity), count)
        found = self.entries(env, numbers)
        other = np.flatnonzero((found["number"] != numbers) | (found["checksum"] == 0))
        return int(numbers[other[-1]]) + 1 if len(other) else max(0, count - self._capacity)

    def erase_others(self, env: int, first: int, end: int) -> None:
        """
        Entries of records that do not count, but would again behind new ones.

        :param env: a ring
        :param first: the oldest record that counts
        :param end: after the newest
        """
        for start in range(0, self._capacity, PIECE):
            length = min(PIECE, self._capacity - start)
            piece = np.frombuffer(read_at(self._file, length * INDEX.itemsize, self._place(env, start)), INDEX)
            dead = (piece["checksum"] != 0) & ((piece["number"] < first) | (piece["number"] >= end))
            for row in np.flatnonzero(dead).tolist():
                self.erase(env, start + row)

    def _place(self, env: int, number: int) -> int:
        return (env * self._capacity + number % self._capacity) * INDEX.itemsize

    def _entry(self, env: int, number: int) -> np.ndarray:
        return np.frombuffer(read_at(self._file, INDEX.itemsize, self._place(env, number)), INDEX)[0]


def checksum(content: bytes, number: int, flags: int) -> int:
    """
    :param content: of a record
    :param number: of the record in its ring
    :param flags: of its index entry
    :return: CRC-32 of all of them, never 0, which an unwritten entry has
    """
    return zlib.crc32(number.to_bytes(8, "little") + bytes([flags]), zlib.crc32(content)) or 1
