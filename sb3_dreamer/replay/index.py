"""
The index of the replay buffer on disk: one entry of 16 bytes for each row, which makes its record count.

    tag       u8   number of the record, shifted by 8 bits, and its flags
    content   u4   CRC-32 of the record
    seal      u4   of tag, content, folder and ring

A damaged entry does not fit its seal, nor does one of another folder or ring. Whatever else is lost, every entry that fits
says by itself which record its row holds.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sb3_dreamer.replay.rows import RingFile

ENTRY = np.dtype([("tag", "<u8"), ("content", "<u4"), ("seal", "<u4")])
FLAGS = ("done", "timeout", "episode_start")
#: What a row may say: it was never written, or its entry is damaged; its record was erased on purpose; or a number from 0 on
NO_ENTRY, ERASED = -2, -1
_SHIFT, _MASK, _ERASED_TAG = np.uint64(8), np.uint64(0xFF), np.uint64(2**64 - 1)
_PIECE = 1 << 14  # entries that are read together


class RecordIndex(RingFile):
    """Rings of entries, one for every row of the buffer."""

    name = "entries.bin"

    def belong_to(self, identity: int) -> None:
        """
        Take only the entries of one folder for valid.

        :param identity: of the folder, 64 bits
        """
        rings = np.arange(self.n_envs, dtype=np.uint64)
        self._salts = _mixed(np.full(self.n_envs, identity, dtype=np.uint64) + rings)

    def entries(self, places: Sequence[tuple[int, int]], contents: Sequence[bytes], flags: Sequence[int]) -> list[bytes]:
        """
        Make entries, which count once they are written.

        :param places: ring and number of each record
        :param contents: of the records
        :param flags: of the records, bits in the order of ``FLAGS``
        :return: the entries
        """
        tags = [number << 8 | flag for (_, number), flag in zip(places, flags, strict=True)]
        return self._sealed([env for env, _ in places], tags, [zlib.crc32(content) for content in contents])

    def erase(self, env: int, number: int) -> None:
        """
        Make the record in the place of a number no longer count.

        :param env: a ring
        :param number: of a record with the same row
        """
        self.write(env, number, self._sealed([env], [int(_ERASED_TAG)], [0])[0])

    def is_used(self) -> bool:
        """Whether anything was ever written, valid or not."""
        pieces = [(env, start) for env in range(self.n_envs) for start in range(0, self.capacity, _PIECE)]
        return any(self.read(env, start, min(_PIECE, self.capacity - start))["seal"].any() for env, start in pieces)

    def numbers(self, env: int) -> np.ndarray:
        """
        Read the whole ring.

        :param env: a ring
        :return: for every row the number of its record, ``ERASED`` or ``NO_ENTRY``, (capacity,)
        """
        result = np.empty(self.capacity, dtype=np.int64)
        for start in range(0, self.capacity, _PIECE):
            rows = np.arange(start, min(start + _PIECE, self.capacity))
            numbers = self._numbers(env, self.read(env, start, len(rows)))
            result[rows] = np.where((numbers >= 0) & (numbers % self.capacity != rows), NO_ENTRY, numbers)
        return result

    def ends(self, env: int, first: int, end: int) -> list[int]:
        """
        Find the ends of episodes.

        :param env: a ring
        :param first: number of the first record to look at
        :param end: number after the last one
        :return: numbers of the records that end an episode, ascending
        """
        result: list[int] = []
        for start in range(first, end, _PIECE):
            entries = self.read(env, start, min(_PIECE, end - start))
            done = (entries["tag"] & np.uint64(1 << FLAGS.index("done"))) != 0
            own = self._numbers(env, entries) == np.arange(start, start + len(entries))
            result += (start + np.flatnonzero(done & own)).tolist()
        return result

    def checksum(self, env: int, number: int) -> int:
        """
        What tells a record from others in its place.

        :param env: a ring
        :param number: of the record
        :return: its seal, 0 if it has no entry
        """
        return int(self.read(env, number, 1)["seal"][0]) if self.state(env, number) == number else 0

    def state(self, env: int, number: int) -> int:
        """
        Look at one row.

        :param env: a ring
        :param number: of a record whose row it is
        :return: number of the record that it holds, ``ERASED`` or ``NO_ENTRY``
        """
        return int(self._numbers(env, self.read(env, number, 1))[0])

    def misfits(self, windows: Sequence[tuple[int, int, np.ndarray]]) -> list[tuple[int, int]]:
        """
        Compare records with their entries.

        :param windows: ring, number of the first record, and consecutive records, of the same length in all windows
        :return: ring and number of each record that is not what was written
        """
        length = len(windows[0][2])
        envs = np.repeat([env for env, _, _ in windows], length)
        numbers = np.concatenate([np.arange(number, number + length) for _, number, _ in windows])
        entries = np.concatenate([self.read(env, number, length) for env, number, _ in windows])
        contents = (content for _, _, rows in windows for content in rows.view(np.uint8).reshape(length, rows.itemsize))
        found = np.fromiter(map(zlib.crc32, contents), np.uint32, len(numbers))  # type: ignore[arg-type]
        fits = (self._numbers(envs, entries) == numbers) & (entries["content"] == found)
        return [(int(envs[index]), int(numbers[index])) for index in np.flatnonzero(~fits)]

    def _numbers(self, env: int | np.ndarray, entries: np.ndarray) -> np.ndarray:
        """Number of each entry, ``ERASED``, or ``NO_ENTRY`` if it does not fit its seal."""
        tags = entries["tag"].astype(np.uint64)
        sealed = entries["seal"] == _seals(tags, entries["content"], self._salts[env])
        numbers = np.where(tags == _ERASED_TAG, ERASED, (tags >> _SHIFT).astype(np.int64))
        return np.where(sealed, numbers, NO_ENTRY)

    def _sealed(self, envs: Sequence[int], tags: Sequence[int], contents: Sequence[int]) -> list[bytes]:
        entries = np.zeros(len(tags), dtype=ENTRY)
        entries["tag"], entries["content"] = tags, contents
        entries["seal"] = _seals(entries["tag"].astype(np.uint64), entries["content"], self._salts[envs])
        return [entry.tobytes() for entry in entries]


def flags_of(records: Mapping[str, np.ndarray]) -> list[int]:
    """
    Flags of records as bits.

    :param records: one array (n,) for each of ``FLAGS``
    :return: one number for each record
    """
    return [int(flags) for flags in sum(records[name].astype(np.uint8) << bit for bit, name in enumerate(FLAGS))]  # type: ignore[union-attr]


def runs(numbers: np.ndarray) -> Iterator[tuple[int, int]]:
    """
    Group numbers that follow each other.

    :param numbers: ascending
    :return: first and last of each group
    """
    cuts = np.flatnonzero(np.diff(numbers) > 1) + 1
    return ((int(part[0]), int(part[-1])) for part in np.split(numbers, cuts) if len(part))


def _seals(tags: np.ndarray, contents: np.ndarray, salts: np.ndarray) -> np.ndarray:
    return _mixed(_mixed(tags ^ salts) + contents.astype(np.uint64)).astype(np.uint32)


def _mixed(values: np.ndarray) -> np.ndarray:
    """64 bits of which each depends on all given ones, the finalizer of splitmix64 (Steele et al., 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
