"""
Where the replay buffer on disk keeps the contents of its records: in rows of fixed size, or compressed in chunks.

Compressed, the newest records wait in rows until a chunk of them is complete; it then goes, as a whole, to a place of fixed
size in a sparse file, which takes as much of the disk as it fills. No place ever moves: there is neither a log to sweep nor an
index that could be lost.
"""

import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

#: In front of every chunk: number of its first record, bytes that follow, their CRC-32
HEADER = np.dtype([("first", "<i8"), ("size", "<u4"), ("checksum", "<u4")])
CHUNK = 64


class Compression(NamedTuple):
    """How records are compressed."""

    level: int  # of zstandard: 1 is the fastest, 22 the smallest
    chunk: int = CHUNK  # records that are compressed, and read, together

    @classmethod
    def of_level(cls, level: int | None, path: str | None) -> "Compression | None":
        """
        :param level: as the user gave it
        :param path: of the buffer's folder
        :return: None for None
        :raises ValueError: if there is no such level, or nothing on the disk to compress
        """
        if level is None:
            return None
        if path is None:
            raise ValueError(f"storage_compression={level} needs a storage_path: records in memory are not compressed.")
        if isinstance(level, bool) or not isinstance(level, int) or not 1 <= level <= 22:
            raise ValueError(f"storage_compression must be a level of zstandard from 1 to 22, or None, but is {level!r}.")
        return cls(level)


class PlainRows:
    """
    Rings of rows in one file: record n of a ring is in its row ``n % capacity``.

    :param row: layout of a record
    :param n_envs: number of rings
    :param capacity: rows of each
    """

    def __init__(self, row: np.dtype, n_envs: int, capacity: int) -> None:
        self._row, self._n_envs, self._capacity = row, n_envs, capacity
        self._files: dict[str, int] = {}

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file, written or not."""
        return {"records.bin": self._row.itemsize * self._n_envs * self._capacity}

    def open(self, files: dict[str, int], flushed: np.ndarray) -> None:
        """
        :param files: descriptors by name
        :param flushed: records of each ring that are known to be on the disk, (n_envs,)
        """
        self._files = files

    def write(self, env: int, number: int, content: bytes) -> None:
        """
        :param env: a ring
        :param number: of the record in it
        :param content: one row
        :raises OSError: if the disk is full
        """
        write_at(self._files["records.bin"], content, self._place(env, number))

    def read(self, env: int, number: int, count: int) -> np.ndarray:
        """
        :param env: a ring
        :param number: of the first record
        :param count: of records, at most the capacity
        :return: (count,) rows
        :raises ValueError: if the file ends early, or a chunk is damaged
        """
        head = min(count, self._capacity - number % self._capacity)
        rows = self._contiguous(env, number, head)
        return rows if head == count else np.concatenate([rows, self._contiguous(env, number + head, count - head)])

    def view(self, folder: Path, name: str, first: np.ndarray, written: np.ndarray) -> np.ndarray:
        """
        A field of all records, to read; mapped, not copied.

        :param folder: of the files
        :param name: of the field
        :param first: the oldest record of each ring, (n_envs,)
        :param written: number of records of each ring, (n_envs,)
        :return: (n_envs, capacity, *shape)
        """
        return np.memmap(folder / "records.bin", self._row, "r", shape=(self._n_envs, self._capacity))[name]

    def settle(self, env: int, written: int) -> None:
        """
        Do what complete records ask for, before the next one is written.

        :param env: a ring
        :param written: number of its records
        :raises OSError: if the disk is full; nothing is lost then
        """

    def cut(self, env: int, first: int, written: int) -> None:
        """
        Be ready to write another record with this number.

        :param env: a ring
        :param first: its oldest record
        :param written: number of records that are kept
        """

    def cut_off(self, env: int, written: int) -> list[tuple[int, bytes]]:
        """
        What :meth:`cut` may have been about to do when the process ended.

        :param env: a ring
        :param written: number of its records
        :return: number and content of records that may be missing in their rows
        """
        return []

    def _place(self, env: int, number: int) -> int:
        return (env * self._capacity + number % self._capacity) * self._row.itemsize

    def _contiguous(self, env: int, number: int, count: int) -> np.ndarray:
        content = read_at(self._files["records.bin"], count * self._row.itemsize, self._place(env, number))
        return np.frombuffer(content, self._row)


class CompressedRows(PlainRows):
    """
    The same, the newest records in rows, all older ones in compressed chunks.

    Rows are not used again before their records are in a chunk that has been flushed: a chunk that a power cut tore is made
    again.

    :param row: layout of a record
    :param n_envs: number of rings
    :param capacity: records of each
    :param compression: level and size of chunks
    :param flush_interval: records that may be lost with the power
    :raises ImportError: if the package ``zstandard`` is missing
    """

    def __init__(self, row: np.dtype, n_envs: int, capacity: int, compression: Compression, flush_interval: int) -> None:
        self._chunk = compression.chunk
        super().__init__(row, n_envs, flush_interval + 2 * self._chunk)
        self._held, self._slots = capacity, -(-capacity // self._chunk)
        zstandard = _import_zstandard()
        self._compressor, self._decompressor = zstandard.ZstdCompressor(compression.level), zstandard.ZstdDecompressor()
        self._settled = np.zeros(n_envs, dtype=np.int64)  # records of each ring that are in chunks
        self._latest: dict[tuple[int, int], np.ndarray] = {}  # the chunk that was read last

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file, written or not."""
        return {**super().sizes, "chunks.bin": self._slot_bytes * self._n_envs * self._slots}

    @property
    def format(self) -> dict[str, Any]:
        """What must agree when the files are opened again; the level may change."""
        return {"name": "zstandard", "chunk": self._chunk, "rows": self._capacity}

    def view(self, folder: Path, name: str, first: np.ndarray, written: np.ndarray) -> np.ndarray:
        """
        A field of all records, copied.

        :param folder: of the files
        :param name: of the field
        :param first: the oldest record of each ring, (n_envs,)
        :param written: number of records of each ring, (n_envs,)
        :return: (n_envs, capacity, *shape)
        """
        result = np.zeros((self._n_envs, self._held, *self._row[name].shape), self._row[name].base)
        for env, (oldest, end) in enumerate(zip(first.tolist(), written.tolist(), strict=True)):
            for number in range(oldest, end):
                result[env, number % self._held] = self.read(env, number, 1)[name][0]
        return result

    def open(self, files: dict[str, int], flushed: np.ndarray) -> None:
        """
        :param files: descriptors by name
        :param flushed: records of each ring that are known to be on the disk, (n_envs,)
        """
        super().open(files, flushed)
        self._latest = {}
        self._settled = flushed - flushed % self._chunk

    def read(self, env: int, number: int, count: int) -> np.ndarray:
        """
        :param env: a ring
        :param number: of the first record
        :param count: of records, at most the capacity
        :return: (count,) rows
        :raises ValueError: if the file ends early, or a chunk is damaged
        """
        end, settled = number + count, int(self._settled[env])
        firsts = range(number - number % self._chunk, min(end, settled), self._chunk)
        pieces = [self._read_chunk(env, first)[max(number - first, 0) : end - first] for first in firsts]
        if end > settled:
            start = max(number, settled)
            pieces.append(super().read(env, start, end - start))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def settle(self, env: int, written: int) -> None:
        """
        Compress chunks that have become complete.

        :param env: a ring
        :param written: number of its records
        :raises OSError: if the disk is full; nothing is lost then
        """
        while self._settled[env] + self._chunk <= written:
            first = int(self._settled[env])
            content = super().read(env, first, self._chunk).tobytes()
            data = self._compressor.compress(content)
            data = content if len(data) >= len(content) else data
            header = np.zeros((), dtype=HEADER)
            header["first"], header["size"], header["checksum"] = first, len(data), zlib.crc32(data)
            self._latest = {}
            write_at(self._files["chunks.bin"], header.tobytes() + data, self._slot(env, first))
            self._settled[env] += self._chunk

    def cut(self, env: int, first: int, written: int) -> None:
        """
        Bring the records of the chunk that is now incomplete back into rows.

        :param env: a ring
        :param first: its oldest record
        :param written: number of records that are kept
        """
        start = written - written % self._chunk
        if start >= self._settled[env]:
            return
        for number in range(max(start, first), written):
            super().write(env, number, self.read(env, number, 1).tobytes())
        self._settled[env] = start

    def cut_off(self, env: int, written: int) -> list[tuple[int, bytes]]:
        """
        What :meth:`cut` may have been about to do when the process ended.

        :param env: a ring
        :param written: number of its records
        :return: number and content of records that may be missing in their rows
        """
        start = int(self._settled[env])
        try:
            chunk = self._read_chunk(env, start) if start < written else ()
        except ValueError:  # there is none, as usual
            return []
        self._latest = {}
        return [(start + offset, row.tobytes()) for offset, row in enumerate(chunk[: written - start])]

    @property
    def _slot_bytes(self) -> int:
        return HEADER.itemsize + self._chunk * self._row.itemsize

    def _slot(self, env: int, first: int) -> int:
        return (env * self._slots + first // self._chunk % self._slots) * self._slot_bytes

    def _read_chunk(self, env: int, first: int) -> np.ndarray:
        if (env, first) in self._latest:
            return self._latest[env, first]
        place, limit = self._slot(env, first), self._chunk * self._row.itemsize
        header = np.frombuffer(read_at(self._files["chunks.bin"], HEADER.itemsize, place), HEADER)[0]
        if header["first"] != first or not 0 < header["size"] <= limit:
            raise ValueError(f"chunks.bin is damaged: record {first} of ring {env} is not in its place.")
        data = read_at(self._files["chunks.bin"], int(header["size"]), place + HEADER.itemsize)
        if zlib.crc32(data) != header["checksum"]:
            raise ValueError(f"chunks.bin is damaged: the chunk of record {first} of ring {env} does not fit its checksum.")
        content = data if len(data) == limit else self._decompressor.decompress(data)
        self._latest = {(env, first): np.frombuffer(content, self._row)}
        return self._latest[env, first]


def _import_zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise ImportError(
            "storage_compression needs the package zstandard: pip install zstandard, or leave the option out.",
            name="zstandard",
        ) from error
    return zstandard


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """
    :param descriptor: of a file
    :param count: bytes to read
    :param offset: of the first of them
    :return: the bytes
    :raises ValueError: if the file ends early
    """
    if hasattr(os, "pread"):
        content = os.pread(descriptor, count, offset)
    else:
        os.lseek(descriptor, offset, os.SEEK_SET)
        content = os.read(descriptor, count)
    if len(content) != count:
        raise ValueError(f"The replay buffer on disk ends early: {len(content)} of {count} bytes at {offset}.")
    return content


def write_at(descriptor: int, content: bytes, offset: int) -> None:
    """
    :param descriptor: of a file
    :param content: to write
    :param offset: of the first byte
    :raises OSError: if the disk is full
    """
    if hasattr(os, "pwrite"):
        done = os.pwrite(descriptor, content, offset)
    else:
        os.lseek(descriptor, offset, os.SEEK_SET)
        done = os.write(descriptor, content)
    if done != len(content):  # a full disk writes a part first
        raise OSError(28, "No space left on device for the replay buffer")
