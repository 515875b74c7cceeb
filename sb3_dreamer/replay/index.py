"""The index of the replay buffer on disk: which record a row holds, and whether it counts."""

import zlib

import numpy as np

from sb3_dreamer.replay.rows import RingFile

INDEX = np.dtype([("number", "<i8"), ("checksum", "<u4"), ("flags", "u1"), ("unused", "u1", (3,))])
FLAGS = ("done", "timeout", "episode_start")
PIECE = 1 << 14  # entries that are read together
#: An entry that belongs to no record, from its first byte on
NOTHING = np.array([(-1, 0, 0, (0, 0, 0))], dtype=INDEX).tobytes()


class RecordIndex(RingFile):
    """
    Rings of entries in ``index.bin``, one for every record: its number, its checksum and its flags.

    :param n_envs: number of rings
    :param capacity: entries per ring
    """

    def __init__(self, n_envs: int, capacity: int) -> None:
        super().__init__("index.bin", INDEX, n_envs, capacity)

    def enter(self, env: int, number: int, content: bytes, flags: int) -> None:
        """
        Make a record count.

        :param env: a ring
        :param number: of the record
        :param content: of the record
        :param flags: bits in the order of ``FLAGS``
        :raises OSError: if the disk is full
        """
        self.write(env, number, np.array((number, _checksum(content, number, flags), flags, 0), dtype=INDEX).tobytes())

    def erase(self, env: int, number: int) -> None:
        """
        Erase whatever entry is in the place of a record.

        :param env: a ring
        :param number: of the record
        """
        self.write(env, number, NOTHING)

    def checksum(self, env: int, number: int) -> int:
        """
        Look a record up.

        :param env: a ring
        :param number: of the record
        :return: its checksum, or 0 if it has no entry
        """
        entry = self.read(env, number, 1)[0]
        return int(entry["checksum"]) if entry["number"] == number else 0

    def fits(self, env: int, number: int, content: bytes) -> bool:
        """
        Compare what was read with what was written.

        :param env: a ring
        :param number: of a record
        :param content: that it may have
        :return: whether the record has an entry that fits this content
        """
        entry = self.read(env, number, 1)[0]
        return bool(entry["number"] == number and entry["checksum"] == _checksum(content, number, int(entry["flags"])))

    def oldest(self, env: int, count: int) -> int:
        """
        Find the oldest record from which on none is missing.

        :param env: a ring
        :param count: number of records that have ever been written
        :return: its number
        """
        first = max(0, count - self._capacity)
        entries = self.read(env, first, count - first)
        missing = np.flatnonzero((entries["number"] != np.arange(first, count)) | (entries["checksum"] == 0))
        return first + int(missing[-1]) + 1 if len(missing) else first

    def erase_others(self, env: int, first: int, end: int) -> None:
        """
        Erase the entries of records that do not count, which would count again once newer records precede them.

        :param env: a ring
        :param first: number of the oldest record that counts
        :param end: number after that of the newest
        """
        for start in range(0, self._capacity, PIECE):
            piece = self.read(env, start, min(PIECE, self._capacity - start))
            dead = (piece["checksum"] != 0) & ((piece["number"] < first) | (piece["number"] >= end))
            for row in np.flatnonzero(dead).tolist():
                self.erase(env, start + row)


def _checksum(content: bytes, number: int, flags: int) -> int:
    """CRC-32 of a record with its number and flags, but never 0, which an unwritten entry has."""
    return zlib.crc32(number.to_bytes(8, "little") + bytes([flags]), zlib.crc32(content)) or 1
